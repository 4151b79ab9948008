"""Vectors of tokens: a learned table, beside it what a token's characters say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfseq import checks
from tfseq.layers.recurrent import keep_mask
from tfseq.ops import random

SALT = 30
"""Where the numbers of the random streams begin that are drawn here."""


@tf.custom_gradient
def rows_of(table: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Rows `ids` `[...]` of a table `[V, E]` -> `[..., E]`; the gradient is a whole table, which every optimiser takes."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        rows = tf.reshape(upstream, [-1, table.shape[1]])
        return tf.math.unsorted_segment_sum(rows, tf.reshape(ids, [-1]), table.shape[0]), None

    return tf.gather(table, ids), gradient


@keras.saving.register_keras_serializable("tfseq")
class TokenEmbedding(keras.layers.Layer):
    """Ids `[...]` int32 -> vectors `[..., E]`, rows of a learned table `[V, E]`.

    Args:
        size: V, number of ids; id 0 is that of unknown tokens.
        dim: E.
        token_dropout: share of the tokens that are unknown in training, so that the vector of unknown tokens is learned too.
        row_dropout: share of the table's rows that are zero in training, the same for a batch (Merity et al. 2018, sec. 4.3).
    """

    def __init__(self, size: int, dim: int, token_dropout: float = 0.0, row_dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, size=size, dim=dim)
        checks.fraction(token_dropout=token_dropout, row_dropout=row_dropout)
        self.size, self.dim, self.token_dropout, self.row_dropout = size, dim, token_dropout, row_dropout

    def build(self, input_shape: Any) -> None:
        scale = (3.0 / self.dim) ** 0.5  # a row's squared norm is 1 on average
        start = keras.initializers.RandomUniform(-scale, scale)
        self.table = self.add_weight(shape=(self.size, self.dim), initializer=start, name="table")
        self.built = True

    def call(self, ids: tf.Tensor, *, seed: tf.Tensor | None = None, common_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Ids `[T, B]` -> `[T, B, E]`.

        Args:
            ids: time first.
            seed: `[B, 2]`, decides which tokens are unknown in training; None: none.
            common_seed: `[1, 2]`, decides which rows of the table are dropped; None: none.
        """
        if seed is not None and self.token_dropout:
            drawn = random.uniform(seed, tf.range(tf.shape(ids)[0]), 1, SALT)[..., 0]
            ids = tf.where(drawn < self.token_dropout, tf.zeros_like(ids), ids)
        table = tf.cast(self.table, self.compute_dtype)
        if common_seed is not None and self.row_dropout:
            table *= keep_mask(common_seed, self.size, self.row_dropout, SALT + 1, table.dtype)[0][:, None]
        return rows_of(table, ids)
