"""Encoder and decoder: one sequence into another of a length of its own (Sutskever et al. 2014), with attention.

The encoder reads x in both directions into a memory m_1 .. m_S; the decoder starts from its last states, each tensor of the state
tanh(W [forward; backward]), and says the target token by token: p(y | x) = prod_t p(y_t | y_1 .. y_{t-1}, x). With

- no attention: s_t = stack(e(y_{t-1}), s_{t-1}), scores of s_t;
- `"luong"` (Luong et al. 2015, eq. 5-8): the same s_t, context c_t by attention with s_t, scores of tanh(W [c_t; s_t]); all steps
  at once in training;
- `"bahdanau"` (Bahdanau et al. 2015, sec. 3.1): c_t by attention with s_{t-1} of the first layer, which reads [e(y_{t-1}); c_t];
  scores of tanh(W [s_t; c_t; e(y_{t-1})]).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.attention import Attention
from tfseq.layers.embedding import TokenEmbedding
from tfseq.layers.recurrent import Cell, Recurrent, RecurrentStack, locked_dropout
from tfseq.layers.text import END, Text, Unit, append_end, with_end
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, graph
from tfseq.models.reader import Reader, ended, is_text, with_end_id
from tfseq.ops import decoding, random
from tfseq.ops.decoding import Generated
from tfseq.ops.linear import project
from tfseq.ops.masking import fill, lengths_to_mask, mask_to_lengths
from tfseq.ops.scan import Multiply, scan

_SALT = 90


@keras.saving.register_keras_serializable("tfseq")
class Seq2Seq(Reader):
    """log p(target | x): translation of texts, or transcription of frames, by an encoder and a decoder with attention.

    >>> import tfseq
    >>> data = tfseq.Sequences(["ein Hund", "eine Katze"], target=["a dog", "a cat"])
    >>> model = tfseq.Seq2Seq.from_data(data, min_count=1, embedding_dim=8, units=[8])
    >>> model.compile("adam")
    >>> history = model.fit(data, epochs=1, verbose=0)
    >>> model.translate(["ein Hund"]).shape
    TensorShape([1])

    Args:
        target_vocabulary: tokens that can be written, the one that ends a text among them.
        vocabulary: tokens of x that have a vector of their own.
        feature_dim: D of real-valued frames, which take the place of tokens in x.
        unit: what a token of x is, and of a target; `"words"` where the data are ids, which are written as numbers.
        target_unit: what a token of a target is; as `unit` by default.
        lowercase: read and write lower case.
        min_count: how often a token must stand in the training data; read by `from_data`.
        max_vocabulary: number of tokens at most, the most frequent; read by `from_data`.
        embedding_dim: size of a token's vector.
        units: size of each recurrent layer, of the decoder and of each direction of the encoder.
        cell: `"rnn"`, `"gru"` or `"lstm"`.
        attention: `"bahdanau"`, which translated best (README); `"luong"`, which trains all steps at once; or None.
        dropout: share of features dropped in training at all steps of a sequence alike.
        token_dropout: share of the tokens of x that are unknown in training.
        own_tokens: share of the decoder's inputs in training that are its own best guesses and not the target's tokens (Bengio et
            al. 2015), guessed in one pass with the target's (Duckworth et al. 2019).
        own_tokens_warmup: training steps in which that share rises linearly from 0 (Bengio et al. 2015, sec. 2.4, the linear
            decay of 1 - share); 0 for a share that is constant.
    """

    unaligned = frozenset({"target", "target_mask"})
    learned = "target"

    def __init__(
        self,
        *,
        target_vocabulary: Annotated[list[str], FROM_DATA],
        vocabulary: Annotated[list[str], FROM_DATA] = (),  # type: ignore[assignment]
        feature_dim: Annotated[int, FROM_DATA] = 0,
        unit: Unit = "words",
        target_unit: Unit | None = None,
        lowercase: bool = False,
        min_count: int = 2,
        max_vocabulary: int | None = None,
        embedding_dim: int = 256,
        units: list[int] = (256,),  # type: ignore[assignment]
        cell: Cell = "gru",
        attention: Literal["bahdanau", "luong"] | None = "luong",
        dropout: float = 0.3,
        token_dropout: float = 0.0,
        own_tokens: float = 0.0,
        own_tokens_warmup: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, min_count=min_count)
        checks.share(own_tokens=own_tokens)
        checks.at_least(0, own_tokens_warmup=own_tokens_warmup)
        if END not in target_vocabulary:
            raise ValueError(f"`target_vocabulary` must have {END!r}, which ends a text; `from_data` adds it.")
        self.read_input(vocabulary, unit, lowercase, embedding_dim, feature_dim=feature_dim, token_dropout=token_dropout)
        self.own_tokens, self.own_tokens_warmup = own_tokens, own_tokens_warmup
        self.dropout, self.attention_kind = dropout, attention
        self.target_text = Text(target_vocabulary, target_unit or unit, lowercase, name="target_text")
        self.size = self.num_targets = self.target_text.size
        self.boundary, self.end = self.size, 1 + list(target_vocabulary).index(END)
        self.target_embedding = TokenEmbedding(self.size + 1, embedding_dim, name="target_embedding")
        self.encoder = RecurrentStack(units, cell, True, None, dropout, name="encoder")
        num_states = 2 if cell == "lstm" else 1
        self.bridges = [
            [keras.layers.Dense(n, "tanh", name=f"bridge_{k}_{i}") for i in range(num_states)] for k, n in enumerate(units)
        ]
        self.first: Any = Recurrent(units[0], cell, name="first") if attention == "bahdanau" else None
        upper = list(units[1:]) if self.first is not None else list(units)
        self.decoder = RecurrentStack(upper, cell, False, None, dropout, name="decoder") if upper else None
        self.attention: Any = None
        if attention is not None:
            self.attention = Attention(attention, units[0], name="attention")
            self.attention.create(units[0] if attention == "bahdanau" else units[-1], 2 * units[-1])
            self.combine = keras.layers.Dense(units[-1], "tanh", name="combine")
        self.float_dtype = keras.config.dtype_policy().variable_dtype
        self.output_layer = keras.layers.Dense(self.size, dtype=self.float_dtype, name="scores")
        self.create_weights()

    @property
    def convention(self) -> str:
        return "nats per token of the target, lower is better"

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A model whose vocabularies are those of a data set of texts (or tokens, or frames) x and of targets.

        Of ids 1 .. K the vocabulary is their numbers; those of targets are written with blanks between, and their end is K + 1.
        """
        data = cls.as_dataset(dataset)
        if getattr(data, "target", None) is None:
            raise ValueError(
                "`dataset` must have `target`, another sequence for each x; received none. Is it for a tagger or a classifier?"
            )
        found = cls.text_arguments(data, hyperparameters)
        settings = dict(hyperparameters)
        if settings.get("target_unit") is not None:
            settings["unit"] = settings["target_unit"]
        words = cls.text_arguments(data, settings, "target")["vocabulary"]
        words = [w for w in words if w != END]
        units = {}
        if "vocabulary" in found and not is_text(data.x):
            units = {"unit": "words", "target_unit": settings.get("unit", cls.hyperparameters()["unit"].default)}
        if of_ids := not is_text(data.target):  # which are places in the vocabulary already
            units["target_unit"] = "words"
        return cls(**{**found, "target_vocabulary": [*words, END] if of_ids else [END, *words], **hyperparameters, **units})

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        settings = {
            "vocabulary": ["on", "off"], "target_vocabulary": ["on", "off", END], "embedding_dim": 4, "units": [5],
            "dropout": 0.1,
        }  # fmt: skip
        return cls(**{**settings, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        target = {"target": tf.TensorSpec([None, None], tf.int32), "target_mask": tf.TensorSpec([None, None], tf.bool)}
        return {**super().batch_spec(), **target}

    def prepare(self, data: Any) -> Any:
        """As of `Reader`; targets of ids too get the end token."""
        data = super().prepare(data)
        return data if data.target is None else dataclasses.replace(data, target=with_end_id("target", data.target, self.end))

    def as_batch(self, data: Any) -> Batch:
        """As of `Reader`; a list of targets of ids gets the end token as texts do, an array `[B, L]` is taken as it is."""
        return super().as_batch(ended(data, "target", self.end))

    def cut(self, name: str, items: Any) -> list[np.ndarray]:
        """As of `Reader`; each target with the end token."""
        found = super().cut(name, items)
        return found if name == "x" else with_end(found)

    def tokenize_target(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return append_end(*self.target_text.tokenize(text))

    def target_ids(self, tokens: tf.Tensor) -> tf.Tensor:
        return self.target_text.to_ids(tokens)

    # The network ---------------------------------------------------------------------------------------------------

    def remember(self, batch: Batch, seed: tf.Tensor | None = None) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """(memory `[B, S, M]`, its keys and mask; the decoder's first state, flat), of a complete batch."""
        mask = batch["mask"]
        hidden, states = self.encoder(self.read(batch, seed), tf.transpose(mask), seed=seed)
        flat = []
        for bridges, (forward, backward) in zip(self.bridges, states, strict=True):
            flat += [bridge(tf.concat([f, b], -1)) for bridge, f, b in zip(bridges, forward, backward, strict=True)]
        memory = {"values": tf.transpose(hidden, [1, 0, 2]), "mask": mask}
        if self.attention is not None:
            memory["keys"] = self.attention.keys(memory["values"])
        return memory, flat

    def _split(self, flat: list[tf.Tensor]) -> tuple[tuple[tf.Tensor, ...], Any]:
        """A flat state as (that of the first layer with Bahdanau's attention, that of the stack)."""
        num = len(self.bridges[0])
        rows = [tuple(flat[i : i + num]) for i in range(0, len(flat), num)]
        if self.first is None:
            return (), [(row,) for row in rows]
        return rows[0], [(row,) for row in rows[1:]]

    def _attending(self, memory: dict[str, tf.Tensor], state: tuple, projected: tf.Tensor, multiply: Multiply) -> tuple:
        """One step of the first layer with Bahdanau's attention: (next state, context, weights)."""
        layer, embedding_dim = self.first, self.target_embedding.dim
        context, weights = self.attention.look(state[0], memory["values"], memory["keys"], memory["mask"], multiply)
        kernel, recurrent = (tf.cast(w, projected.dtype) for w in (layer.kernel[embedding_dim:], layer.recurrent_kernel))
        return layer.advance(state, multiply(state[0], recurrent), projected + multiply(context, kernel)), context, weights

    def _projected(self, vectors: tf.Tensor) -> tf.Tensor:
        """What the first layer takes of the embeddings, for all steps at once."""
        if not self.first.built:
            self.first.build((None, None, self.target_embedding.dim + 2 * self.encoder.units[-1]))
        return project(vectors, self.first.kernel[: self.target_embedding.dim], self.first.bias)

    def _decoded(
        self, previous: tf.Tensor, memory: dict[str, tf.Tensor], flat: list[tf.Tensor], mask: tf.Tensor, seed: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """From the token before each `[B, L]`: scores `[L, B, V]`, and attention `[L, B, S]`."""
        vectors = self.target_embedding(tf.transpose(previous))
        seed = None if seed is None else random.derive(seed, 1)  # the encoder draws from the same streams
        if seed is not None and self.dropout and self.first is not None:  # a stack drops its input itself
            vectors = locked_dropout(vectors, self.dropout, seed, _SALT)
        first, rest = self._split(flat)
        x, context, weights = vectors, None, None
        if self.first is not None:

            def step(state: tuple, projected: tf.Tensor, multiply: Multiply) -> tuple:
                new, context, weights = self._attending(memory, state, projected, multiply)
                return new, (context, weights)

            states, (context, weights) = scan(step, first, self._projected(vectors))
            x = states[0]
        if self.decoder is not None:
            x, _ = self.decoder(x, tf.transpose(mask), rest, seed=seed)
        elif seed is not None and self.dropout:  # a stack drops its output itself
            x = locked_dropout(x, self.dropout, seed, _SALT + 2)
        if self.attention_kind == "luong":
            context, weights = self.attention.look(x, memory["values"], memory["keys"], memory["mask"])
        return self._scores(x, context, vectors), weights

    def _scores(self, hidden: tf.Tensor, context: tf.Tensor | None, vectors: tf.Tensor) -> tf.Tensor:
        if self.attention_kind == "luong":
            hidden = self.combine(tf.concat([context, hidden], -1))
        elif self.attention_kind == "bahdanau":
            hidden = self.combine(tf.concat([hidden, context, vectors], -1))
        return self.output_layer(tf.cast(hidden, self.float_dtype))

    def next_scores(
        self, token: tf.Tensor, flat: list[tf.Tensor], memory: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Token `[B]` and a flat state -> (scores of the next one `[B, V]`, next state)."""
        vectors = self.target_embedding(token)
        first, rest = self._split(flat)
        x, context = vectors, None
        if self.first is not None:
            first, context, _ = self._attending(memory, first, self._projected(vectors), project)
            x = first[0]
        if self.decoder is not None:
            x, rest = self.decoder.step(x, rest)
        if self.attention_kind == "luong":
            context, _ = self.attention.look(x, memory["values"], memory["keys"], memory["mask"])
        return self._scores(x, context, vectors), [*first, *tf.nest.flatten(rest)]

    def _own_share(self, dtype: tf.DType) -> tf.Tensor | float:
        """The share of own tokens in this training step."""
        if not self.own_tokens_warmup:
            return self.own_tokens
        return self.own_tokens * tf.minimum(tf.cast(self.step.value, dtype) / self.own_tokens_warmup, 1.0)

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        seed = batch["seed"] if training else None
        if "target" in batch:
            mask = batch["target_mask"]
            target = fill(batch["target"], mask)
        else:
            mask, target = tf.zeros_like(batch["mask"][:, :1]), tf.zeros_like(batch["mask"][:, :1], tf.int32)
        memory, state = self.remember(batch, seed)
        previous = tf.concat([tf.fill([tf.shape(target)[0], 1], self.boundary), target[:, :-1]], 1)
        if training and self.own_tokens:
            guesses = tf.argmax(self._decoded(previous, memory, state, mask, seed)[0], -1, tf.int32)
            drawn = random.uniform(seed, tf.range(tf.shape(target)[1]), 1, _SALT + 1)[..., 0]
            own = tf.transpose(tf.where(drawn < self._own_share(drawn.dtype), guesses, -1))[:, :-1]
            own = tf.pad(tf.stop_gradient(own), [[0, 0], [1, 0]], constant_values=-1)
            previous = tf.where(own >= 0, own, previous)
        scores, _ = self._decoded(previous, memory, state, mask, seed)
        found = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.transpose(target), scores)
        log_lik = fill(-tf.transpose(found), mask)
        return Terms(log_lik, tf.zeros_like(log_lik), mask)

    # What users call -----------------------------------------------------------------------------------------------

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """log p(target | x) of a batch, `[B]`, nats: what `predict` returns."""
        terms = self.terms(self.complete(batch))
        return terms.per_sequence(terms.log_lik)

    def log_prob(self, data: Any, target: Any = None) -> tf.Tensor:
        """log p(target | x) `[B]`, nats.

        Args:
            data: x, with the targets apart; or a batch or data set of both.
            target: texts, or lists of tokens.
        """
        return self._graph_log_prob(self._with_target(data, target))

    def _with_target(self, data: Any, target: Any) -> Batch:
        batch = self.given(data if target is None else {"x": data, "target": target})
        if "target" not in batch:
            raise ValueError("`target` must be given, apart or in the batch: what is to be scored.")
        return batch

    @graph
    def _graph_log_prob(self, batch: Batch) -> tf.Tensor:
        terms = self.terms(batch)
        return terms.per_sequence(terms.log_lik)

    def attention_weights(self, data: Any, target: Any = None) -> tf.Tensor:
        """Where the decoder looks as it writes each target: `[B, L, S]`, rows sum to 1 at real steps.

        Args:
            data, target: as of `log_prob`.
        """
        if self.attention is None:
            raise ValueError("`attention_weights` needs a model with attention; this one has attention=None.")
        return self._graph_weights(self._with_target(data, target))

    @graph
    def _graph_weights(self, batch: Batch) -> tf.Tensor:
        memory, state = self.remember(batch)
        target, mask = fill(batch["target"], batch["target_mask"]), batch["target_mask"]
        previous = tf.concat([tf.fill([tf.shape(target)[0], 1], self.boundary), target[:, :-1]], 1)
        weights = self._decoded(previous, memory, state, mask, None)[1]
        return fill(tf.transpose(weights, [1, 0, 2]), mask)

    def translate(
        self, data: Any, *, num_beams: int = 4, length_penalty: float = 1.0, max_tokens: int | None = None
    ) -> tf.Tensor:
        """The most probable targets that a beam finds, `[B]` string.

        Args:
            data: texts, tokens, ids or frames, or a batch.
            num_beams: prefixes kept; 1 takes the best token each time.
            length_penalty: see `ops.decoding.beam_search`.
            max_tokens: tokens at most; twice those of x and ten by default.
        """
        checks.at_least(1, num_beams=num_beams, **({} if max_tokens is None else {"max_tokens": max_tokens}))
        batch = self.given({"x": data} if not isinstance(data, dict) and not hasattr(data, "x") else data)
        batch = {name: a for name, a in batch.items() if not name.startswith("target")}
        found = Generated(*self._translate(batch, int(num_beams), float(length_penalty), int(max_tokens or 0)))
        return self.target_text.write(found.tokens)

    @graph
    def _translate(self, batch: Batch, num_beams: int, length_penalty: float, max_tokens: int) -> tuple[tf.Tensor, ...]:
        return tuple(self._search(batch, num_beams, length_penalty, max_tokens))

    def _search(self, batch: Batch, num_beams: int, length_penalty: float, max_tokens: int = 0) -> Generated:
        memory, state = self.remember(batch)
        wide = {name: tf.repeat(a, num_beams, 0) for name, a in memory.items()}  # beams of a row share its memory
        lengths = mask_to_lengths(batch["mask"])
        most = 2 * lengths + 10 if not max_tokens else tf.fill(tf.shape(lengths), max_tokens)
        most = tf.where(lengths > 0, most, 0)
        scores, state = self.next_scores(tf.fill(tf.shape(lengths), self.boundary), state, memory)
        forbidden = tf.range(self.size) == 0
        return decoding.beam_search(
            lambda token, flat: self.next_scores(token, flat, wide),
            scores,
            state,
            num_beams,
            most,
            self.end,
            forbidden,
            length_penalty,
        )

    def decode(self, data: Any) -> dict[str, np.ndarray]:
        """What `tfseq predict` writes of a batch: the translation of each row, and its log-probability."""
        batch = self.given(data)
        batch = {name: a for name, a in batch.items() if not name.startswith("target")}
        found = Generated(*self._translate(batch, 4, 1.0, 0))
        return {
            "text": np.array([t.decode() for t in self.target_text.write(found.tokens).numpy()]),
            "log_prob": np.asarray(found.log_prob),
        }

    # Serving -------------------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """`serving_default`: a beam of four, of texts (of frames where it reads them); `ids` of token ids, into token ids."""
        if self.text is None:
            specs = [tf.TensorSpec([None, None, self.feature_dim], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "lengths")]
            return {"serving_default": (self._serve_frames, specs)}
        of_ids = [tf.TensorSpec([None, None], tf.int32, "token_ids"), tf.TensorSpec([None], tf.int32, "lengths")]
        return {
            "serving_default": (self._serve_text, [tf.TensorSpec([None], tf.string, "text")]),
            "ids": (self._serve_ids, of_ids),
        }

    def _found(self, batch: Batch) -> Generated:
        batch = self.complete({**batch, "seed": tf.zeros([tf.shape(batch["x"])[0], 2], tf.int32)})
        return Generated(*self._translate(batch, 4, 1.0, 0))

    def _answer(self, batch: Batch) -> dict[str, tf.Tensor]:
        found = self._found(batch)
        return {"text": self.target_text.write(found.tokens), "score": found.log_prob, "length": found.lengths}

    def _serve_ids(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Ids of the target's vocabulary, 0 after the end of a row."""
        mask = lengths_to_mask(lengths, tf.shape(token_ids)[1])
        found = self._found({"x": self.known_ids(token_ids), "mask": mask})
        return {"token_ids": tf.maximum(found.tokens, 0), "score": found.log_prob, "length": found.lengths}

    def _serve_text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._answer({"x": text})

    def _serve_frames(self, x: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._answer({"x": x, "mask": lengths_to_mask(lengths, tf.shape(x)[1])})
