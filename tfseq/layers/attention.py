"""Attention over the steps of a sequence: pooling to one vector, and a decoder's look at what was encoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from tfseq import checks
from tfseq.ops.linear import project
from tfseq.ops.masking import fill

Kind = Literal["bahdanau", "luong"]


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Softmax along the last axis over the real places; zeros where there is none."""
    scores = fill_last(scores, mask, -math.inf)
    top = tf.reduce_max(scores, -1, keepdims=True)
    weights = tf.exp(scores - tf.where(tf.math.is_finite(top), top, tf.zeros_like(top)))
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, -1, keepdims=True))


def fill_last(scores: tf.Tensor, mask: tf.Tensor, value: float) -> tf.Tensor:
    """Scores `[..., S]` where mask, which broadcasts with them, is True, else a value."""
    return tf.where(mask, scores, tf.constant(value, scores.dtype))


@keras.saving.register_keras_serializable("tfseq")
class AttentionPooling(keras.layers.Layer):
    """h `[T, B, H]` and mask `[T, B]` -> sum_t a_t h_t `[B, H]`, a = softmax(v' tanh(W h_t + b)); Yang et al. 2016, eq. 5-7.

    Args:
        units: size of the hidden layer.
    """

    def __init__(self, units: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, units=units)
        self.units, self.supports_masking = units, True

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        self.vector = self.add_weight(shape=(self.units, 1), initializer="glorot_uniform", name="vector")
        self.built = True

    def weights_of(self, hidden: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """a `[T, B]`, zero at padded steps; they sum to 1 where a row has steps."""
        scores = project(tf.tanh(project(hidden, self.kernel, self.bias)), self.vector)[..., 0]
        return tf.transpose(masked_softmax(tf.transpose(scores), tf.transpose(mask)))

    def call(self, hidden: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        keep = tf.ones(tf.shape(hidden)[:2], tf.bool) if mask is None else mask
        hidden = fill(hidden, keep)
        return tf.reduce_sum(self.weights_of(hidden, keep)[..., None] * hidden, 0)


@keras.saving.register_keras_serializable("tfseq")
class Attention(keras.layers.Layer):
    """A query `[..., B, Q]` and a memory `[B, S, M]` -> context `[..., B, M]` = sum_s a_s m_s, and a `[..., B, S]`.

    - `"bahdanau"`: a = softmax(v' tanh(W q + U m_s)) (Bahdanau et al. 2015, appendix A.1.2), W and U to `units`.
    - `"luong"`: a = softmax(q' W m_s), the "general" score (Luong et al. 2015, eq. 8).

    Args:
        kind: which of these.
        units: size of the hidden layer of `"bahdanau"`.
    """

    def __init__(self, kind: Kind = "luong", units: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.choice("kind", kind, ("bahdanau", "luong"))
        checks.at_least(1, units=units)
        self.kind, self.units = kind, units

    def create(self, query_dim: int, memory_dim: int) -> None:
        """Makes the weights."""
        width = self.units if self.kind == "bahdanau" else query_dim
        self.memory_kernel = self.add_weight(shape=(memory_dim, width), initializer="glorot_uniform", name="memory_kernel")
        if self.kind == "bahdanau":
            self.query_kernel = self.add_weight(shape=(query_dim, width), initializer="glorot_uniform", name="query_kernel")
            self.vector = self.add_weight(shape=(width, 1), initializer="glorot_uniform", name="vector")
        self.built = True

    def keys(self, memory: tf.Tensor) -> tf.Tensor:
        """U m_s (W m_s of Luong), `[B, S, units]`, once for all queries."""
        return project(memory, self.memory_kernel)

    def look(
        self, query: tf.Tensor, memory: tf.Tensor, keys: tf.Tensor, mask: tf.Tensor, multiply: Callable = project
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Query `[B, Q]` or `[T, B, Q]`, memory `[B, S, M]`, its `keys`, mask `[B, S]` -> (context, weights).

        Inside a scan, `multiply` is its product with a weight.
        """
        if self.kind == "luong":
            scores = tf.einsum("...bq,bsq->...bs", query, keys)
        else:
            product = multiply(query, tf.cast(self.query_kernel, query.dtype))
            summed = tf.tanh(product[..., None, :] + keys)
            scores = project(summed, self.vector)[..., 0]
        weights = masked_softmax(scores, mask)
        return tf.einsum("...bs,bsm->...bm", weights, memory), weights
