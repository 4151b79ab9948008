"""Recurrent layers with explicit masks and states: vanilla RNN, GRU, LSTM, either direction, time first inside.

All three cells are one product with the state and element-wise arithmetic after it, so one scan serves them.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

from tfseq.ops.linear import project
from tfseq.ops.masking import fill, reverse_by_length
from tfseq.ops.scan import Multiply, scan

Cell = Literal["rnn", "gru", "lstm"]

_NUM_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@keras.saving.register_keras_serializable("tfseq")
class Recurrent(keras.layers.Layer):
    """h_t = cell(x_t, h_{t-1}): x `[T, B, D]` -> h `[T, B, units]`, time first.

    - `"rnn"`: h = f(W x + U h + b).
    - `"gru"` (Cho et al. 2014, reset after the product): z, r = sigmoid(.), n = f(W x + b + r * (U h + c)), h = z h + (1 - z) n.
    - `"lstm"` (Hochreiter and Schmidhuber 1997, with forget gate): c = f c + i g, h = o * tanh(c); the forget bias starts at 1.

    The loop is correct on every device and exports to a portable graph. At masked steps the state is kept and the
    output is zero, so a reversed layer starts at the last real step of each row.

    Args:
        units: size of h.
        cell: `"rnn"`, `"gru"` or `"lstm"`.
        activation: f, `"tanh"` by default.
        reverse: run from the last step to the first.
        learned_initial: learn the state before the first step; zero otherwise.
    """

    def __init__(
        self,
        units: int,
        cell: Cell = "rnn",
        activation: str = "tanh",
        reverse: bool = False,
        learned_initial: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cell not in _NUM_GATES:
            raise ValueError(f"`cell` must be one of {sorted(_NUM_GATES)}; received {cell!r}.")
        if units < 1:
            raise ValueError(f"`units` must be at least 1; received {units}.")
        self.units, self.cell, self.reverse, self.learned_initial = units, cell, reverse, learned_initial
        self.activation = keras.activations.get(activation)
        self.num_states = 2 if cell == "lstm" else 1

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = _NUM_GATES[self.cell] * self.units
        self.kernel = self.add_weight(shape=(input_shape[-1], width), initializer="glorot_uniform", name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, width), initializer=self._orthogonal, name="recurrent_kernel")
        self.bias = self.add_weight(shape=(width,), initializer=self._initial_bias, name="bias")
        if self.cell == "gru":
            self.recurrent_bias = self.add_weight(shape=(width,), initializer="zeros", name="recurrent_bias")
        if self.learned_initial:
            self.initial = [
                self.add_weight(shape=(self.units,), initializer="zeros", name=f"initial_{i}") for i in range(self.num_states)
            ]
        self.built = True

    def _orthogonal(self, shape: tuple[int, int], dtype: Any = None) -> tf.Tensor:
        """One orthogonal block `[units, units]` a gate."""
        block = keras.initializers.Orthogonal()
        return tf.concat([block((self.units, self.units), dtype) for _ in range(shape[1] // self.units)], 1)

    def _initial_bias(self, shape: tuple[int], dtype: Any = None) -> tf.Tensor:
        blocks = [tf.zeros([self.units], dtype) for _ in range(shape[0] // self.units)]
        if self.cell == "lstm":
            blocks[1] = tf.ones([self.units], dtype)
        return tf.concat(blocks, 0)

    def initial_state(self, batch_size: tf.Tensor | int) -> tuple[tf.Tensor, ...]:
        """State before the first step: one tensor `[B, units]`, two for the LSTM (h and c)."""
        if not self.learned_initial:
            return tuple(tf.zeros([batch_size, self.units], self.compute_dtype) for _ in range(self.num_states))
        return tuple(tf.repeat(tf.cast(s, self.compute_dtype)[None], batch_size, 0) for s in self.initial)

    def project(self, x: tf.Tensor) -> tf.Tensor:
        """The part of the cell that needs no state, for all steps in one product: `[..., D]` -> `[..., gates * units]`."""
        return project(x, self.kernel, self.bias)

    def _advance(self, state: tuple[tf.Tensor, ...], product: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """(state, U h, W x + b) -> next state; element-wise."""
        if self.cell == "rnn":
            return (self.activation(x + product),)
        if self.cell == "gru":
            xz, xr, xn = tf.split(x, 3, -1)
            hz, hr, hn = tf.split(product + tf.cast(self.recurrent_bias, product.dtype), 3, -1)
            update, reset = tf.sigmoid(xz + hz), tf.sigmoid(xr + hr)
            new = self.activation(xn + reset * hn)
            return (update * state[0] + (1.0 - update) * new,)
        i, f, g, o = tf.split(x + product, 4, -1)
        memory = tf.sigmoid(f) * state[1] + tf.sigmoid(i) * self.activation(g)
        return tf.sigmoid(o) * self.activation(memory), memory

    def step(self, x: tf.Tensor, state: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        """One step: x `[B, D]` and a state -> the next state; its first tensor is the output."""
        return self._advance(state, project(state[0], self.recurrent_kernel), self.project(x))

    def call(
        self, x: tf.Tensor, mask: tf.Tensor | None = None, initial_state: tuple[tf.Tensor, ...] | None = None
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Runs over x `[T, B, D]` with mask `[T, B]` -> (outputs `[T, B, units]`, final state)."""
        x = tf.convert_to_tensor(x)
        keep = tf.ones(tf.shape(x)[:2], tf.bool) if mask is None else mask
        lengths = tf.reduce_sum(tf.cast(keep, tf.int32), 0)
        initial = self.initial_state(tf.shape(x)[1]) if initial_state is None else initial_state
        x = self._by_time(fill(x, keep), lengths)

        kernel = tf.cast(self.recurrent_kernel, x.dtype)

        def step(state: tuple, projected: tf.Tensor, multiply: Multiply) -> tuple:
            return self._advance(state, multiply(state[0], kernel), projected), ()

        states, _ = scan(step, initial, self.project(x))
        # padding comes last in either direction, so it cannot reach a real step; the final state is that of the last real one
        final = tuple(
            tf.where(lengths[:, None] > 0, tf.gather(tf.transpose(s, [1, 0, 2]), tf.maximum(lengths - 1, 0), batch_dims=1), s0)
            for s, s0 in zip(states, initial, strict=True)
        )
        return fill(self._by_time(states[0], lengths), keep), final

    def _by_time(self, x: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """x `[T, B, ...]`, the real steps of each row reversed where the layer is."""
        return tf.ensure_shape(reverse_by_length(x, lengths), x.shape) if self.reverse else x
