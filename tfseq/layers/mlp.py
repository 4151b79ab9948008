"""A multilayer perceptron that takes any leading axes (`keras.Sequential` keeps the shape of its first call)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfseq.ops.linear import project


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
        self.hidden_dim, self.out_dim, self.num_layers = hidden_dim, out_dim, num_layers

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def build_for(self, in_dim: int) -> int:
        """Makes the weights for inputs of that size; returns the size of the output."""
        for layer in self.layers:
            layer.build((None, in_dim))
            in_dim = layer.units
        self.built = True
        return in_dim

    def in_loop(self, split: int = 0) -> Callable[..., tf.Tensor]:
        """The network as a function for a loop over time, whose products are counted (`ops.scan`); weights are read here, once.

        Args:
            split: how many of the input's features, its first ones, come as their product with the first layer's kernel, bias
                included, found before the loop (`first`).

        Returns:
            (x, multiply, known) -> output: x `[..., D - split]`, and `known` from `first`, or None.
        """
        weights = [(tf.cast(a.kernel, self.compute_dtype), tf.cast(a.bias, self.compute_dtype)) for a in self.layers]
        if weights:
            weights[0] = (weights[0][0][split:], weights[0][1])

        def run(x: tf.Tensor, multiply: Any = project, known: tf.Tensor | None = None) -> tf.Tensor:
            for i, (layer, (kernel, bias)) in enumerate(zip(self.layers, weights, strict=True)):
                product = multiply(x, kernel)
                x = layer.activation(product + (bias if i or known is None else known))
            return x

        return run

    def first(self, x: tf.Tensor) -> tf.Tensor:
        """What x `[..., split]`, the first features of an input, add to the first layer, bias included."""
        layer = self.layers[0]
        return project(x, layer.kernel[: x.shape[-1]], layer.bias)
