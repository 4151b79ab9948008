"""A multilayer perceptron that takes any leading axes (`keras.Sequential` keeps the shape of its first call)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfseq")
class MLP(keras.layers.Layer):
    """`num_layers` ReLU layers of `hidden_dim` units, then a layer of `out_dim`: `[..., D]` -> `[..., out_dim]`.

    With `out_dim=None` the last hidden layer is the output.
    """

    def __init__(
        self, hidden_dim: int, out_dim: int | None = None, activation: str | None = None, num_layers: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.layers = [keras.layers.Dense(hidden_dim, "relu", name=f"hidden_{i}") for i in range(num_layers)]
        if out_dim is not None:
            self.layers.append(keras.layers.Dense(out_dim, activation, name="out"))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
