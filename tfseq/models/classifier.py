"""Sequence classifier: one label for a whole sequence, by a recurrent network and pooling over its steps.

h = stack([embedding, characters]) as in `models/tagger.py`; v is the last state of each direction, or the mean, the largest
or a weighted sum of h over real steps; p(y | x) = softmax(W v + b).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.attention import AttentionPooling
from tfseq.layers.recurrent import Cell, RecurrentStack
from tfseq.layers.text import Unit
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, graph
from tfseq.models.reader import NEVER_SEEN, UNKNOWN_LABEL, Reader, as_numpy, classes_of
from tfseq.ops.masking import fill, lengths_to_mask

POOLINGS = ("last", "mean", "max", "attention")


class Classes(NamedTuple):
    """The most probable class of each row `[B]` int32, and the probabilities of all `[B, C]`."""

    label: tf.Tensor
    probs: tf.Tensor


@keras.saving.register_keras_serializable("tfseq")
class SequenceClassifier(Reader):
    """A class `[B]` of tokens, texts or frames: p(y | x) of a recurrent network that reads the whole sequence.

    >>> import tfseq
    >>> data = tfseq.Sequences(["a fine film", "no plot at all", "fine"], y=["pos", "neg", "pos"])
    >>> model = tfseq.SequenceClassifier.from_data(data, units=[8], embedding_dim=8)
    >>> model.compile("adam")
    >>> history = model.fit(data, epochs=1, verbose=0)
    >>> model.classify(["a fine plot"]).probs.shape
    TensorShape([1, 2])

    Args:
        vocabulary: tokens that have a vector of their own; all others share one.
        classes: names of the classes.
        alphabet: characters that have a vector of their own.
        feature_dim: D of real-valued frames, which take the place of tokens.
        unit: what a token of a raw text is.
        lowercase: look tokens up in lower case; their characters keep their case.
        min_count: how often a token must stand in the training data to have a vector; read by `from_data`.
        max_vocabulary: number of tokens at most, the most frequent; read by `from_data`.
        embedding_dim: size of a token's vector.
        characters: features of a token's characters, by a convolution or an LSTM; None for none.
        character_dim: size of a character's vector.
        character_units: number of these features.
        units: size of each recurrent layer, in each direction.
        cell: `"rnn"`, `"gru"` or `"lstm"`.
        bidirectional: read from both ends.
        pooling: `"last"` state of each direction, `"mean"` or `"max"` over steps, or `"attention"`.
        dropout: share of each layer's input, and of the last output, dropped in training, at all steps alike.
        recurrent_dropout: the same of the state.
        zoneout: share of the state's units that stay as they were.
        token_dropout: share of tokens that are unknown in training.
        residual: add a layer's input to its output where they have one size.
        layer_norm: normalise each layer's input.
    """

    unaligned = frozenset({"y"})
    monitor, higher_is_better = "accuracy", True
    rules = (
        "`y` must hold labels that were seen in training, the same at all steps of a sequence; a batch of the stream holds "
        "others. `model.as_batch(batch)` names the first.",
        *Reader.rules[1:],
    )

    def __init__(
        self,
        *,
        classes: Annotated[list[str], FROM_DATA],
        vocabulary: Annotated[list[str], FROM_DATA] = (),  # type: ignore[assignment]
        alphabet: Annotated[list[str], FROM_DATA] = (),  # type: ignore[assignment]
        feature_dim: Annotated[int, FROM_DATA] = 0,
        unit: Unit = "words",
        lowercase: bool = False,
        min_count: int = 1,
        max_vocabulary: int | None = None,
        embedding_dim: int = 100,
        characters: Literal["cnn", "lstm"] | None = None,
        character_dim: int = 25,
        character_units: int = 50,
        units: list[int] = (128,),  # type: ignore[assignment]
        cell: Cell = "gru",
        bidirectional: bool = True,
        pooling: Literal["last", "mean", "max", "attention"] = "max",
        dropout: float = 0.3,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        token_dropout: float = 0.05,
        residual: bool = False,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.choice("pooling", pooling, POOLINGS)
        checks.at_least(1, min_count=min_count)
        self.read_labels(classes, "classes")
        self.classes, self.pooling = self.labels, pooling
        self.read_input(
            vocabulary, unit, lowercase, embedding_dim, feature_dim=feature_dim, token_dropout=token_dropout,
            characters=characters, alphabet=alphabet, character_dim=character_dim, character_units=character_units,
        )  # fmt: skip
        self.stack = RecurrentStack(
            units, cell, bidirectional, None, dropout, recurrent_dropout, 0.0, zoneout, residual, layer_norm, name="stack"
        )
        self.attention = AttentionPooling(name="attention") if pooling == "attention" else None
        self.float_dtype = keras.config.dtype_policy().variable_dtype
        self.output_layer = keras.layers.Dense(len(classes), dtype=self.float_dtype, name="scores")
        self.add_ratio("accuracy")
        self.create_weights()

    learned = "y"

    @property
    def convention(self) -> str:
        return "share of sequences classified right, higher is better"

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A classifier whose vocabulary and classes are those of a data set with tokens, texts or frames x and labels y.

        A sequence has one label, or one at each step, all alike where they are known.
        """
        data = cls.as_dataset(dataset)
        if getattr(data, "y", None) is None:
            raise ValueError("`dataset` must have `y`, a label for each sequence; received none.")
        classes = classes_of(whole_labels(data))
        return cls(**{**cls.text_arguments(data, hyperparameters), "classes": classes, **hyperparameters})

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        settings = {"vocabulary": ["on", "off"], "classes": ["A", "B"], "embedding_dim": 4, "units": [5], "dropout": 0.1}
        return cls(**{**settings, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        return {**super().batch_spec(), "y": tf.TensorSpec([None], tf.int32)}

    def prepare(self, data: Any) -> Any:
        """As of `Reader`; labels of steps become those of sequences."""
        data = super().prepare(data)
        return data if data.y is None else dataclasses.replace(data, y=whole_labels(data))

    def as_batch(self, data: Any) -> Batch:
        """As of `Reader`; labels of steps become those of sequences."""
        if dataclasses.is_dataclass(data):
            data = self.prepare(data)
        elif isinstance(data, Mapping):
            data = {**data, "y": _of_sequences(as_numpy(data.get("y")), data.get("mask"))}
        return super().as_batch(data)

    def encode(self, batch: Batch) -> Batch:
        """As of `Reader`; labels of steps `[B, T]`, as a stream may have them, become those of sequences `[B]`."""
        batch = super().encode(batch)
        y = batch.get("y")
        if y is None or y.shape.rank < 2:
            return batch
        y = tf.cast(y, tf.int32)
        if "mask" in batch:  # strings need none: those of padded steps are empty
            y = tf.where(batch["mask"], y, UNKNOWN_LABEL)
        high = tf.reduce_max(y, 1)
        low = tf.reduce_min(tf.where(y == UNKNOWN_LABEL, high[:, None], y), 1)
        return {**batch, "y": tf.where(low == high, high, NEVER_SEEN)}

    # The network ---------------------------------------------------------------------------------------------------

    def scores(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Scores of the classes of a complete batch, `[B, C]`."""
        seed, mask = batch["seed"] if training else None, tf.transpose(batch["mask"])
        is_last = self.pooling == "last"
        hidden, states = self.stack(self.read(batch, seed), mask=mask, seed=seed, memory_gradient=False)
        if is_last:
            pooled = tf.concat([direction[0] for direction in states[-1]], -1)
        elif self.attention is not None:
            pooled = self.attention(hidden, mask=mask)
        elif self.pooling == "mean":
            count = tf.cast(tf.math.count_nonzero(mask, 0), hidden.dtype)
            pooled = tf.math.divide_no_nan(tf.reduce_sum(hidden, 0), count[:, None])
        else:
            pooled = tf.reduce_max(fill(hidden, mask, hidden.dtype.min), 0)
            pooled = fill(pooled, tf.reduce_any(mask, 0))
        return self.output_layer(tf.cast(pooled, self.float_dtype))

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        scores, y = self.scores(batch, training), batch.get("y")
        y = tf.fill(tf.shape(scores)[:1], -1) if y is None else y
        known = (y >= 0) & tf.reduce_any(batch["mask"], 1)  # an empty sequence says nothing
        chosen = tf.gather(tf.nn.log_softmax(scores), tf.maximum(y, 0), batch_dims=1)
        log_lik = fill(chosen, known)
        ratios = {}
        if not training:
            right = tf.math.count_nonzero(known & (tf.argmax(scores, -1, tf.int32) == y), dtype=tf.int32)
            ratios["accuracy"] = (right, tf.math.count_nonzero(known, dtype=tf.int32))
        return Terms(log_lik, tf.zeros_like(log_lik), known[:, None], ratios=ratios)

    # What users call -----------------------------------------------------------------------------------------------

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """p(y | x) of a batch, `[B, C]`: what `predict` returns."""
        return tf.nn.softmax(self.scores(self.complete(batch)))

    def classify(self, data: Any, mask: Any = None) -> Classes:
        """The most probable class of texts, tokens, ids or frames, and the probabilities of all.

        Args:
            data: a list of texts, lists of tokens, ids `[B, T]`, frames `[B, T, D]`, or a batch.
            mask: `[B, T]`, True where a step is real.
        """
        return Classes(*self._classify(self.given(data, mask)))

    @graph
    def _classify(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        scores = self.scores(batch)
        return tf.argmax(scores, -1, tf.int32), tf.nn.softmax(scores)

    def decode(self, data: Any) -> dict[str, np.ndarray]:
        """What `tfseq predict` writes of a batch: the class of each sequence, and its probability."""
        label, probs = (a.numpy() for a in self._classify(self.given(data)))
        return {"label": np.array(self.classes)[label], "prob": probs.max(-1)}

    # Serving -------------------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """`serving_default` of texts (of frames where it reads them), and `ids` of token ids."""
        lengths = tf.TensorSpec([None], tf.int32, "lengths")
        if self.text is None:
            return {"serving_default": (self._serve, [tf.TensorSpec([None, None, self.feature_dim], tf.float32, "x"), lengths])}
        return {
            "serving_default": (self._serve_text, [tf.TensorSpec([None], tf.string, "text")]),
            "ids": (self._serve_ids, [tf.TensorSpec([None, None], tf.int32, "token_ids"), lengths]),
        }

    def _answer(self, batch: Batch) -> dict[str, tf.Tensor]:
        label, probs = self._classify(self.complete({**batch, "seed": tf.zeros([tf.shape(batch["x"])[0], 2], tf.int32)}))
        return {"label": self.label_names(label), "probs": probs}

    def _serve(self, x: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._answer({"x": x, "mask": lengths_to_mask(lengths, tf.shape(x)[1])})

    def _serve_ids(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._serve(self.known_ids(token_ids), lengths)

    def _serve_text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens, mask = self.text.tokenize(text)
        return self._answer({"x": tokens, "mask": mask})


def _of_sequences(y: Any, mask: Any) -> Any:
    """Labels of steps, `[B, T]` or a list of `[T_i]`, as `whole_labels` has them; whatever else y is as it is."""
    if not isinstance(y, np.ndarray | list | tuple) or not np.iterable(y):
        return y
    rows = [as_numpy(checks.array("y", row)) for row in y]
    if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iuU") for row in rows):
        return y
    if mask is not None and np.ndim(mask) == 2 and len(mask) == len(rows):  # which `SequenceModel.as_batch` checks
        rows = [row[:n] for row, n in zip(rows, np.asarray(mask).sum(1), strict=True)]
    return whole_labels(types.SimpleNamespace(y=rows))


def whole_labels(data: Any) -> Any:
    """The label of each sequence of a data set; where its labels are of steps, the one that those of a sequence share.

    Steps whose label is not known do not count.

    Raises:
        ValueError: the labels of a sequence differ.
    """
    if not len(data.y) or np.ndim(data.y[0]) == 0:
        return data.y
    found = []
    for i, y in enumerate(data.y):
        known = sorted(set(np.ravel(y).tolist()) - {UNKNOWN_LABEL, ""})
        if len(known) > 1:
            name = repr(data.names[i]) if getattr(data, "names", ()) else i
            raise ValueError(
                f"`y` must have one label for each sequence, or the same at all its steps; sequence {name} of "
                f"{getattr(data, 'source', '') or 'the data'} has {known[0]!r} and {known[1]!r}. The model tagger learns labels "
                "of steps."
            )
        found += known or [None]
    unknown = "" if any(isinstance(label, str) for label in found) else UNKNOWN_LABEL
    return [unknown if label is None else label for label in found]
