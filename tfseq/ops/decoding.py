"""Choosing tokens one after the other: sampling with temperature, top-k and top-p, and beam search, in one loop of the graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfseq.ops import random

Step = Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]]
"""(tokens `[B]` int32, state) -> (scores of the next token `[B, V]`, next state)."""

SALT = 70


class Generated(NamedTuple):
    """Tokens `[B, T]` int32, -1 after the end; how many there are `[B]` (an end token is none); of a beam their log p `[B]`."""

    tokens: tf.Tensor
    lengths: tf.Tensor
    log_prob: tf.Tensor | None = None


class Choice(NamedTuple):
    """How tokens are drawn, one number a row `[B]`.

    Attributes:
        temperature: scores are divided by it; 0 takes the best token.
        top_k: draw among the k best; 0 for all.
        top_p: draw among the best whose probabilities reach p (Holtzman et al. 2020); 1 for all.
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor


def restrict(scores: tf.Tensor, choice: Choice) -> tf.Tensor:
    """Scores `[B, V]`, -inf where top-k or top-p leave a token out; the best token always stays."""
    size = scores.shape[-1]
    ordered = tf.sort(scores, direction="DESCENDING")
    most = tf.where(choice.top_k > 0, tf.minimum(choice.top_k, size), size)
    least_k = tf.gather(ordered, most - 1, batch_dims=1)[:, None]
    # of the scores in order, those before which less than p of the probability lies
    probs = tf.nn.softmax(tf.where(ordered >= least_k, ordered, tf.constant(-math.inf, scores.dtype)))
    before = tf.cumsum(probs, axis=-1, exclusive=True)
    top_p = tf.cast(choice.top_p, scores.dtype)[:, None]
    within = (before < top_p) | (top_p >= 1.0)  # the sum may round to 1 before its end
    num = tf.maximum(tf.math.count_nonzero(within, -1, dtype=tf.int32), 1)
    least_p = tf.gather(ordered, num - 1, batch_dims=1)[:, None]
    return tf.where(scores >= tf.maximum(least_k, least_p), scores, tf.constant(-math.inf, scores.dtype))


def draw(scores: tf.Tensor, choice: Choice, uniform: tf.Tensor) -> tf.Tensor:
    """A token `[B]` int32 for each row of scores `[B, V]` (of the temperature) and of uniform numbers `[B]` in (0, 1)."""
    drawn = random.categorical_quantile(tf.nn.softmax(scores), uniform)
    return tf.where(choice.temperature > 0.0, drawn, tf.argmax(scores, -1, tf.int32))


def sample(
    step: Step,
    scores: tf.Tensor,
    state: Any,
    seed: tf.Tensor,
    max_tokens: tf.Tensor,
    choice: Choice,
    end: int | None = None,
    forbidden: tf.Tensor | None = None,
) -> Generated:
    """Draws tokens until each row has its `max_tokens` or the end token.

    Args:
        step: see `Step`.
        scores: of the first token, `[B, V]`.
        state: before it, tensors `[B, ...]`.
        seed: `[B, 2]`; the token of a row at a time depends on nothing else.
        max_tokens: `[B]` int32.
        choice: how they are drawn.
        end: the token that ends a row.
        forbidden: `[V]` bool, tokens that are never drawn.
    """
    most = tf.maximum(tf.reduce_max(max_tokens), 0)
    rows, size = tf.shape(scores)[0], scores.shape[-1]
    warmth = tf.cast(tf.where(choice.temperature > 0.0, tf.maximum(choice.temperature, 1e-6), 1.0)[:, None], scores.dtype)
    # what is never drawn gets a score that no other reaches
    never = tf.zeros([size], scores.dtype) if forbidden is None else tf.where(forbidden, scores.dtype.min / 2.0, 0.0)
    numbers = random.uniform(seed, tf.range(tf.maximum(most, 1)), 1, SALT)[..., 0]  # [T, B]

    def loop(is_restricted: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """(tokens `[T, B]`, lengths); one step is a few microseconds, so what is not asked for is not in it."""

        def advance(t: tf.Tensor, scores: tf.Tensor, lengths: tf.Tensor, done: tf.Tensor, tokens: Any, *flat: Any) -> tuple:
            allowed = scores / warmth + never
            token = draw(restrict(allowed, choice) if is_restricted else allowed, choice, numbers[t])
            kept = ~done if end is None else ~done & (token != end)
            lengths += tf.cast(kept, tf.int32)
            tokens = tokens.write(t, tf.where(kept, token, -1))
            new_scores, new = step(token, tf.nest.pack_sequence_as(state, flat))
            new_scores = tf.ensure_shape(new_scores, scores.shape)
            return t + 1, new_scores, lengths, ~kept | (t + 1 >= max_tokens), tokens, *tf.nest.flatten(new)

        tokens = tf.TensorArray(tf.int32, most, element_shape=[scores.shape[0]])
        start = (0, scores, tf.zeros([rows], tf.int32), max_tokens <= 0, tokens, *tf.nest.flatten(state))
        found = tf.while_loop(lambda t, scores, lengths, done, *_: (t < most) & ~tf.reduce_all(done), advance, start)
        count, lengths, tokens = found[0], found[2], found[4]
        written = tf.cond(most > 0, tokens.stack, lambda: tf.zeros([0, rows], tf.int32))
        return written[:count], lengths

    asks = tf.reduce_any((choice.top_k > 0) & (choice.top_k < size)) | tf.reduce_any(choice.top_p < 1.0)
    tokens, lengths = tf.cond(asks, lambda: loop(True), lambda: loop(False))
    return Generated(tf.transpose(tokens), lengths)


def beam_search(
    step: Step,
    scores: tf.Tensor,
    state: Any,
    num_beams: int,
    max_tokens: tf.Tensor,
    end: int | None = None,
    forbidden: tf.Tensor | None = None,
    length_penalty: float = 0.0,
) -> Generated:
    """The best token sequence of each row among those that a beam of `num_beams` prefixes finds.

    Sequences are compared by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, eq. 14), where an end token counts.
    Finished sequences stay in the beam until a row has no unfinished one, or its tokens are used up.

    Args:
        step, scores, state, end, forbidden: as of `sample`.
        num_beams: K.
        max_tokens: `[B]` int32.
        length_penalty: 0 compares log-probabilities as they are.
    """
    rows, size, dtype = tf.shape(scores)[0], scores.shape[-1], scores.dtype
    never = tf.constant(-math.inf, dtype)
    most = tf.maximum(tf.reduce_max(max_tokens), 0)
    is_forbidden = tf.zeros([size], tf.bool) if forbidden is None else forbidden

    def spread(a: tf.Tensor) -> tf.Tensor:
        """`[B, ...]` -> `[B K, ...]`."""
        return tf.repeat(a, num_beams, 0)

    flat = [spread(a) for a in tf.nest.flatten(state)]

    def counted(lengths: tf.Tensor) -> tf.Tensor:
        """Tokens with the one that comes now, or with the end token of those that have one: all that had to be chosen."""
        return tf.minimum(lengths + 1, max_tokens[:, None])

    def value(total: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return total / ((5.0 + tf.cast(lengths, dtype)) / 6.0) ** length_penalty

    def advance(
        t: tf.Tensor, scores: tf.Tensor, total: tf.Tensor, lengths: tf.Tensor, done: tf.Tensor, tokens: Any, *flat: Any
    ) -> tuple:
        log_probs = tf.nn.log_softmax(tf.where(is_forbidden, never, scores))  # [B K, V]
        log_probs = tf.reshape(log_probs, [rows, num_beams, size])
        open_now = ~done & (t < max_tokens)[:, None]
        # a finished beam goes on as itself alone, in the place of its first token
        stays = tf.concat([total[..., None], tf.fill([rows, num_beams, size - 1], never)], -1)
        totals = tf.where(open_now[..., None], total[..., None] + log_probs, stays)
        long = counted(lengths)[..., None]
        ranked = tf.reshape(value(totals, long), [rows, num_beams * size])
        _, best = tf.math.top_k(ranked, num_beams)  # [B, K]
        beam, token = best // size, best % size
        was_open = tf.gather(open_now, beam, batch_dims=1)
        total = tf.gather(tf.reshape(totals, [rows, -1]), best, batch_dims=1)
        ended = was_open & (token == (-1 if end is None else end))
        kept = was_open & ~ended
        lengths = tf.gather(lengths, beam, batch_dims=1) + tf.cast(kept, tf.int32)
        done = ~was_open | ended
        tokens = tf.gather(tokens, beam, batch_dims=1)
        tokens = tf.concat([tokens, tf.where(kept, token, -1)[..., None]], -1)
        source = tf.reshape(beam + tf.range(rows)[:, None] * num_beams, [-1])
        chosen = [tf.gather(a, source) for a in flat]
        new_scores, new = step(tf.reshape(token, [-1]), tf.nest.pack_sequence_as(state, chosen))
        return t + 1, tf.ensure_shape(new_scores, [None, size]), total, lengths, done, tokens, *tf.nest.flatten(new)

    first = tf.where(tf.range(num_beams) == 0, tf.zeros([], dtype), never)  # all beams begin alike: one of them counts
    nothing = tf.zeros([rows, num_beams], tf.int32)
    start = (
        0,
        spread(scores),
        tf.tile(first[None], [rows, 1]),
        nothing,
        nothing > 0,
        tf.zeros([rows, num_beams, 0], tf.int32),
        *flat,
    )
    invariants = tuple(
        tf.TensorShape([None] * a.shape.rank) if i == 5 else tf.TensorShape([None, *a.shape[1:]]) if i else tf.TensorShape([])
        for i, a in enumerate(map(tf.convert_to_tensor, start))
    )
    found = tf.while_loop(
        lambda t, scores, total, lengths, done, *_: (t < most) & ~tf.reduce_all(done), advance, start, shape_invariants=invariants
    )
    total, lengths, tokens = found[2], found[3], found[5]
    best = tf.argmax(value(total, counted(lengths)), -1, tf.int32)
    return Generated(*(tf.gather(a, best, batch_dims=1) for a in (tokens, lengths, total)))
