"""The linear-chain conditional random field: scores of tags in context, with constraints in every sum and every maximum."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.ops import chains, scan
from tfseq.ops.entities import boundaries, to_first
from tfseq.ops.masking import fill
from tfseq.schemes import Tables

Allowed = tuple[Any, Any, Any]  # arrays of bools, or nested lists


class Ranking(NamedTuple):
    """The best sequences, best first: tags `[B, N, T]` int32, -1 where there is none; score and log_prob `[B, N]`, then -inf."""

    tags: tf.Tensor
    score: tf.Tensor
    log_prob: tf.Tensor


@keras.saving.register_keras_serializable("tfseq")
class CRF(keras.layers.Layer):
    """p(y | x) over tags y of T tokens with the scores of a network: a linear-chain CRF (Lafferty et al. 2001).

    log p(y | x) = start[y_1] + sum_t scores[t, y_t] + sum_t transition[y_{t-1}, y_t] + end[y_T] - log Z (Sutton and McCallum
    2012, sec. 2.3), where log Z sums over the allowed sequences alone: what is forbidden has probability zero, in training too.

    Everywhere scores are `[B, T, K]`, tags `[B, T]` int32 and mask `[B, T]` bool with padding on the right (None: every step is
    real). What stands at padded steps, NaN included, changes nothing; an empty row has one sequence, of probability 1.

    Args:
        num_tags: K.
        allowed: what a sequence may begin with `[K]`, may follow `[K, K]` (from, to) and may end with `[K]`, bools as
            `schemes.constraints` makes them; None: everything.
    """

    def __init__(self, num_tags: int, allowed: Allowed | None = None, **kwargs: Any) -> None:
        super().__init__(**{"dtype": keras.config.dtype_policy().variable_dtype, **kwargs})
        checks.at_least(1, num_tags=num_tags)
        self.num_tags = num_tags
        shapes = ([num_tags], [num_tags, num_tags], [num_tags])
        parts = [np.ones(shape, bool) for shape in shapes] if allowed is None else [np.array(a, bool) for a in allowed]
        if [list(a.shape) for a in parts] != list(shapes):
            raise ValueError(
                f"`allowed` must be (start [K], transition [K, K], end [K]) with K = {num_tags}; received the shapes "
                f"{[list(a.shape) for a in parts]}. Are the constraints of another tag list?"
            )
        self.allowed = None if allowed is None else tuple(a.tolist() for a in parts)
        self._may_start, self._may_follow, self._may_end = parts
        self.start, self.transition, self.end = (
            self.add_weight(autocast=False, shape=shape, initializer="zeros", name=name)
            for name, shape in zip(("start", "transition", "end"), shapes, strict=True)
        )
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_tags": self.num_tags, "allowed": self.allowed}

    def call(self, scores: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Marginals `[B, T, K]` (see `marginals`)."""
        return self.marginals(scores, mask)

    def log_prob(self, scores: tf.Tensor, tags: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """log p(tags | scores) `[B]`, nats; a tag of -1 is unknown, and summed over.

        A sequence that is forbidden has -inf, and a gradient of zero: `schemes.repair` mends those of data. A batch without
        unknown tags pays for one sum over sequences, one with them for two.
        """
        scores, mask = self._checked(scores, mask)
        tags = fill(tf.convert_to_tensor(tags, tf.int32), mask)
        chain = self._chain(scores, mask)

        def complete() -> tf.Tensor:
            return self._score(scores, tags, mask)

        def partial() -> tf.Tensor:
            is_known = tf.expand_dims(tags >= 0, -1)
            agrees = ~is_known | (tf.range(self.num_tags) == tags[..., None])
            log_initial, log_transition, log_emission = chain
            log_emission = tf.where(agrees, log_emission, tf.constant(-math.inf, log_emission.dtype))
            return chains.log_prob(log_initial, log_transition, log_emission, mask)

        is_partial = tf.reduce_any(tags < 0)
        eagerly = tf.executing_eagerly()
        score = (partial() if is_partial else complete()) if eagerly else tf.cond(is_partial, partial, complete)
        log_norm = chains.log_prob(*chain, mask)
        impossible = tf.constant(-math.inf, scores.dtype)
        return tf.where((score > impossible) & (log_norm > impossible), score - log_norm, impossible)

    def marginals(self, scores: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """p(y_t = k | scores) `[B, T, K]`; zero at padded steps, and exactly zero for what is forbidden."""
        scores, mask = self._checked(scores, mask)
        return chains.smooth(*self._chain(scores, mask), mask)

    def decode(self, scores: tf.Tensor, mask: tf.Tensor | None = None) -> chains.Path:
        """The most probable tags: states `[B, T]` int32, -1 at padded steps, and their score `[B]` (Viterbi 1967)."""
        scores, mask = self._checked(scores, mask)
        return chains.viterbi(*self._chain(scores, mask), mask)

    def n_best(self, scores: tf.Tensor, mask: tf.Tensor | None = None, num: int = 5) -> Ranking:
        """The `num` most probable tag sequences with their scores and log-probabilities (Seshadri and Sundberg 1994)."""
        scores, mask = self._checked(scores, mask)
        chain = self._chain(scores, mask)
        found = chains.n_best(*chain, mask, num=num)
        log_norm = chains.log_prob(*chain, mask)[:, None]
        impossible = tf.constant(-math.inf, scores.dtype)
        # rounding may not make a certain sequence more than certain
        log_prob = tf.where(found.score > impossible, tf.minimum(found.score - log_norm, 0.0), impossible)
        return Ranking(found.states, found.score, log_prob)

    def entity_probs(self, scores: tf.Tensor, tags: tf.Tensor, mask: tf.Tensor | None = None, *, tables: Tables) -> tf.Tensor:
        """Of each entity of tags `[B, T]`, at its first token, the probability of exactly it; `[B, T]`, zero elsewhere.

        That is the total probability of all sequences with an entity of this type that begins and ends there. The posterior is
        a Markov chain, p(y_{t+1} | y_t) = p(y_t, y_{t+1}) / p(y_t), so it is the product, along the entity, of those parts of
        the conditionals that continue an entity, between a beginning and an end that do not (Culotta and McCallum 2004).

        Args:
            scores: of the tags.
            tags: such as `decode` finds; the entities of a row do not overlap, so one pass finds all of them.
            mask: of the steps.
            tables: `schemes.tables(tag list, scheme)`.
        """
        scores, mask = self._checked(scores, mask)
        chain = self._chain(scores, mask)
        found = boundaries(tags, mask, tables)
        if not tables.names:
            return tf.zeros_like(scores[..., 0])
        marginals = tf.transpose(chains.smooth(*chain, mask), [1, 0, 2])  # [T, B, K]
        pairs = tf.transpose(chains.two_slice(*chain, mask), [1, 0, 2, 3])  # [T - 1, B, from, to]
        continues = tf.constant(tables.continues, scores.dtype)
        of_kind = tf.constant(tables.kinds == np.arange(len(tables.names))[:, None], scores.dtype)  # [kinds, K]
        of_kind = tf.gather(of_kind, tf.transpose(tf.maximum(found.kind, 0)))  # [T, B, K]
        conditional = tf.math.divide_no_nan(pairs, tf.reduce_sum(pairs, -1, keepdims=True))
        onward = conditional * continues
        nothing = tf.zeros_like(marginals[:1])
        begins = tf.concat([marginals[:1], tf.reduce_sum(pairs * (1.0 - continues), -2)], 0) * of_kind
        stops = tf.concat([tf.reduce_sum(conditional * (1.0 - continues), -1), nothing], 0)
        stops = tf.where(tf.transpose(_last(mask))[..., None], tf.ones_like(stops), stops)

        def advance(inside: tf.Tensor, now: tuple) -> tuple[tf.Tensor, tuple]:
            """p(the entity so far, y_t), `[B, K]`."""
            is_first, begins, onward = now
            return tf.where(is_first, begins, tf.linalg.matvec(onward, inside, transpose_a=True)), ()

        is_first = tf.transpose(found.first)[..., None]
        onward = tf.concat([nothing[..., None] * continues, onward], 0)
        inside, _ = scan.loop(advance, nothing[0], (is_first, begins, onward))
        probs = tf.minimum(tf.transpose(tf.reduce_sum(inside * stops, -1)), 1.0)  # at last tokens; rounding makes none above 1
        return to_first(probs, found)

    def _checked(self, scores: Any, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores in the dtype of the weights, zero at padded steps; the mask."""
        scores = tf.cast(tf.convert_to_tensor(scores), self.compute_dtype)
        if scores.shape.rank != 3 or scores.shape[-1] != self.num_tags:
            raise ValueError(
                f"`scores` must have shape [B, T, K] with K = {self.num_tags}; received {scores.shape}. Does the layer before "
                "have one unit a tag, and does the batch axis come first?"
            )
        mask = tf.ones(tf.shape(scores)[:2], tf.bool) if mask is None else tf.convert_to_tensor(mask, tf.bool)
        return fill(scores, mask), mask

    def _chain(self, scores: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What `ops/chains.py` takes: `end` is part of the scores of each row's last real step."""
        start, transition, end = (
            tf.where(may, tf.convert_to_tensor(weight), tf.constant(-math.inf, scores.dtype))
            for may, weight in (
                (self._may_start, self.start),
                (self._may_follow, self.transition),
                (self._may_end, self.end),
            )
        )
        return start, transition, tf.where(_last(mask)[..., None], scores + end, scores)

    def _score(self, scores: tf.Tensor, tags: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """The score `[B]` of complete tags, -inf where they are forbidden."""
        start, transition, end = (tf.convert_to_tensor(w) for w in (self.start, self.transition, self.end))
        emission = tf.gather(scores, tags, batch_dims=2)
        pairs = tags[:, :-1] * self.num_tags + tags[:, 1:]
        is_last, is_pair, is_real = _last(mask), mask[:, 1:], mask[:, 0]
        last_tag = tf.reduce_sum(fill(tags, is_last), -1)
        total = tf.reduce_sum(fill(emission, mask), -1)
        total += tf.reduce_sum(fill(tf.gather(tf.reshape(transition, [-1]), pairs), is_pair), -1)
        total += fill(tf.gather(start, tags[:, 0]) + tf.gather(end, last_tag), is_real)
        if self.allowed is None:
            return total
        legal = tf.reduce_all(tf.gather(self._may_follow.reshape(-1), pairs) | ~is_pair, -1)
        legal &= (tf.gather(self._may_start, tags[:, 0]) & tf.gather(self._may_end, last_tag)) | ~is_real
        return tf.where(legal, total, tf.constant(-math.inf, total.dtype))


def _last(mask: tf.Tensor) -> tf.Tensor:
    """Where the last real step of each row is, `[B, T]` bool."""
    return mask & ~tf.concat([mask[:, 1:], tf.zeros_like(mask[:, :1])], 1)
