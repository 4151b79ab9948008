"""Features of a word from its characters, for words that a vocabulary does not have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.embedding import rows_of
from tfseq.layers.recurrent import Recurrent
from tfseq.layers.text import check_distinct, static_table, vocabulary_of
from tfseq.ops.masking import fill
from tfseq.ops.tracing import is_single

Kind = Literal["cnn", "lstm"]


@keras.saving.register_keras_serializable("tfseq")
class Characters(keras.layers.Layer):
    """Characters of words `[..., W]` int32 -> features `[..., units]`; 0 is padding, 1 unknown, 2 .. the alphabet.

    - `"cnn"`: max over t of sum_k F_k e(c_{t+k}) + b, zeros beyond the ends of a word (Ma and Hovy 2016, sec. 2.1).
    - `"lstm"`: last states of an LSTM from the left and of one from the right (Lample et al. 2016, sec. 4.1).

    A word without characters has zeros.

    Args:
        alphabet: distinct characters, see `alphabet_of`.
        embedding_dim: size of e(c).
        units: number of filters; for `"lstm"` even, half for each direction.
        kind: `"cnn"` or `"lstm"`.
        max_length: of longer words, the first and the last halves are kept.
        width: number of characters a filter sees; odd ones see as many to the left as to the right.
    """

    def __init__(
        self,
        alphabet: Sequence[str],
        embedding_dim: int = 25,
        units: int = 50,
        kind: Kind = "cnn",
        max_length: int = 20,
        width: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        characters = check_distinct("alphabet", alphabet)
        if long := [character for character in characters if len(character) != 1]:
            raise ValueError(f"`alphabet` must hold single characters; received {long[0]!r}. Are these words?")
        checks.choice("kind", kind, ["cnn", "lstm"])
        checks.at_least(1, embedding_dim=embedding_dim, units=units, width=width)
        checks.at_least(2, max_length=max_length)
        if kind == "lstm" and units % 2:
            raise ValueError(f"`units` must be even for `kind` 'lstm', half for each direction; received {units}.")
        self.embedding_dim, self.units, self.kind, self.max_length, self.width = embedding_dim, units, kind, max_length, width
        self.size = 2 + len(characters)
        with tf.init_scope():
            self._table = static_table([ord(c) for c in characters], np.arange(2, self.size), default=1)
        spread = math.sqrt(3.0 / embedding_dim)  # Ma and Hovy 2016, sec. 3.1
        uniform = keras.initializers.RandomUniform(-spread, spread)
        self.embedding = self.add_weight(shape=(self.size, embedding_dim), initializer=uniform, name="embedding")
        if kind == "cnn":
            self.kernel = self.add_weight(shape=(width, embedding_dim, units), initializer="glorot_uniform", name="kernel")
            self.bias = self.add_weight(shape=(units,), initializer="zeros", name="bias")
        else:
            self.directions = [
                Recurrent(units // 2, "lstm", reverse=reverse, dtype=self.dtype_policy) for reverse in (False, True)
            ]
            for direction in self.directions:
                direction.build((None, None, embedding_dim))
        self.built = True

    def split(self, tokens: tf.Tensor) -> tf.Tensor:
        """Words `[...]` string -> ids of their characters `[..., W]` int32; W is the largest length, 1 to `max_length`."""
        tokens = tf.convert_to_tensor(tokens, tf.string)
        codes = tf.strings.unicode_decode(tf.reshape(tokens, [-1]), "UTF-8", errors="replace")
        lengths = tf.cast(codes.row_lengths(), tf.int32)[:, None]
        kept = tf.minimum(lengths, self.max_length)
        place = tf.range(tf.maximum(tf.reduce_max(kept), 1))
        real = place < kept
        left_out = tf.where(place < (self.max_length + 1) // 2, 0, lengths - kept)  # between the halves
        index = tf.where(real, tf.cast(codes.row_starts(), tf.int32)[:, None] + place + left_out, 0)
        known = tf.cast(self._table.lookup(tf.cast(codes.flat_values, tf.int64)), tf.int32)
        ids = tf.where(real, tf.gather(tf.concat([known, [0]], 0), index), 0)  # the 0 is for a batch without characters
        return tf.reshape(ids, tf.concat([tf.shape(tokens), [tf.shape(ids)[1]]], 0))

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Characters `[..., W]` -> features `[..., units]`."""
        ids = tf.cast(ids, tf.int32)
        leading = tf.shape(ids)[:-1]
        if is_single():  # LiteRT finds no equal rows, and has no segments
            words = tf.reshape(ids, [-1, tf.shape(ids)[-1]])
            features = self._convolve_all(words) if self.kind == "cnn" else self._recur(words)
            return tf.ensure_shape(tf.reshape(features, tf.concat([leading, [self.units]], 0)), [*ids.shape[:-1], self.units])
        # words repeat in a batch, as padding does: each is computed once
        with tf.device("CPU"):  # where rows, and not only numbers, can be compared
            words, index = tf.raw_ops.UniqueV2(x=tf.reshape(ids, [-1, tf.shape(ids)[-1]]), axis=[0])
        features = tf.gather(self._convolve(words) if self.kind == "cnn" else self._recur(words), index)
        return tf.ensure_shape(tf.reshape(features, tf.concat([leading, [self.units]], 0)), [*ids.shape[:-1], self.units])

    def _convolve(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids `[N, W]` -> `[N, units]`: F_k e(c) is looked up, in a table over the alphabet, at real positions alone."""
        products = tf.einsum("ce,keu->kcu", *(tf.cast(w, self.compute_dtype) for w in (self.embedding, self.kernel)))
        products = tf.pad(products[:, 1:], [[0, 0], [1, 0], [0, 0]])  # nothing stands beyond the ends of a word
        left = (self.width - 1) // 2
        padded = tf.pad(ids, [[0, 0], [left, self.width - 1 - left]])
        places = tf.where(ids > 0)
        row, place = tf.unstack(tf.cast(places, tf.int32), axis=1)
        at = [tf.gather(products[k], tf.gather_nd(padded, tf.stack([row, place + k], 1))) for k in range(self.width)]
        largest = tf.math.segment_max(tf.add_n(at), row)  # ends at the last word that is not empty
        largest = tf.pad(largest, [[0, tf.shape(ids)[0] - tf.shape(largest)[0]], [0, 0]])
        return fill(largest + tf.cast(self.bias, largest.dtype), tf.reduce_any(ids > 0, 1))

    def _convolve_all(self, ids: tf.Tensor) -> tf.Tensor:
        """The same at all positions, those that are not real left out of the maximum."""
        x = fill(tf.gather(tf.cast(self.embedding, self.compute_dtype), ids), ids > 0)
        found = tf.nn.conv1d(x, tf.cast(self.kernel, self.compute_dtype), 1, "SAME")
        largest = tf.reduce_max(tf.where((ids > 0)[..., None], found, found.dtype.min), 1)
        return fill(largest + tf.cast(self.bias, largest.dtype), tf.reduce_any(ids > 0, 1))

    def _recur(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids `[N, W]` -> `[N, units]`: the last output of each direction."""
        ids = tf.transpose(ids)
        x = rows_of(tf.cast(self.embedding, self.compute_dtype), ids)
        return tf.concat([direction(x, ids > 0)[1][0] for direction in self.directions], -1)


def alphabet_of(words: Iterable[str], *, min_count: int = 1) -> list[str]:
    """Characters of words, the most frequent first, then by code point."""
    return vocabulary_of((list(word) for word in words), min_count=min_count)
