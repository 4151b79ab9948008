"""Normalising flows as Keras layers: the inverse autoregressive flow."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.ops.linear import project


@keras.saving.register_keras_serializable("tfseq")
class InverseAutoregressiveFlow(keras.layers.Layer):
    """z' = s z + (1 - s) m with s = sigmoid(a), (m, a) autoregressive in z: z `[..., D]` -> (z', log |det|).

    Feature i of m and a depends on z_1 .. z_{i-1} only, so the Jacobian is triangular and log |det| = sum log s.
    Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow", equations (11)-(14); the masked
    network is that of Germain et al. 2015 (MADE), one hidden layer. It starts near the identity (a = 2).

    Args:
        hidden_dim: units of the hidden layer, at least 1.
        reverse: take the features in descending order; successive flows should alternate.
    """

    def __init__(self, hidden_dim: int = 100, reverse: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, hidden_dim=hidden_dim)
        self.hidden_dim, self.reverse = hidden_dim, reverse

    def build(self, input_shape: tuple[int, ...]) -> None:
        dim = input_shape[-1]
        order = np.arange(dim)[::-1] if self.reverse else np.arange(dim)
        degrees = np.arange(self.hidden_dim) % max(dim - 1, 1)  # a hidden unit of degree d sees features of order <= d
        into = (order[:, None] <= degrees).astype(np.float32)
        out_of = (degrees[:, None] < order).astype(np.float32)
        self.hidden_mask, self.output_mask = into, np.concatenate([out_of, out_of], 1)
        self.hidden_kernel = self.add_weight(shape=into.shape, initializer="glorot_uniform", name="hidden_kernel")
        self.hidden_bias = self.add_weight(shape=(self.hidden_dim,), initializer="zeros", name="hidden_bias")
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.output_kernel = self.add_weight(shape=self.output_mask.shape, initializer=small, name="output_kernel")
        start = keras.initializers.Constant(np.repeat([0.0, 2.0], dim))
        self.output_bias = self.add_weight(shape=(2 * dim,), initializer=start, name="output_bias")
        self.built = True

    def call(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """z `[..., D]` -> (z' `[..., D]`, log |det dz'/dz| `[...]`)."""
        hidden = tf.nn.relu(project(z, self.hidden_kernel * self.hidden_mask, self.hidden_bias))
        shift, gate = tf.split(project(hidden, self.output_kernel * self.output_mask, self.output_bias), 2, -1)
        share = tf.sigmoid(gate)
        return share * z + (1.0 - share) * shift, tf.reduce_sum(tf.math.log_sigmoid(gate), -1)
