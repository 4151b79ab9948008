"""Recurrent layers with explicit masks and states: vanilla RNN, GRU, LSTM, either direction, deep, time first.

All three cells are one product with the state and element-wise arithmetic after it, so one scan serves them; LSTM and GRU have
a shorter way (`ops/recurrences.py`) where they train as they are usually written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfseq import checks
from tfseq.ops import random, recurrences
from tfseq.ops.linear import project
from tfseq.ops.masking import fill, reverse_by_length
from tfseq.ops.scan import Multiply, scan
from tfseq.ops.tracing import wants_gradients

Cell = Literal["rnn", "gru", "lstm"]

SALT = 40
"""Where the numbers of the random streams begin that stacks draw from."""

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
        zoneout: share of the state's units that stay as they were.
    """

    def __init__(
        self,
        units: int,
        cell: Cell = "rnn",
        activation: str = "tanh",
        reverse: bool = False,
        learned_initial: bool = False,
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cell not in _NUM_GATES:
            raise ValueError(f"`cell` must be one of {sorted(_NUM_GATES)}; received {cell!r}.")
        if units < 1:
            raise ValueError(f"`units` must be at least 1; received {units}.")
        self.units, self.cell, self.reverse, self.learned_initial = units, cell, reverse, learned_initial
        self.zoneout, self.supports_masking = zoneout, True
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

    def advance(self, state: tuple[tf.Tensor, ...], product: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
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

    def _zone(self, before: tuple[tf.Tensor, ...], after: tuple[tf.Tensor, ...], moves: Any) -> tuple[tf.Tensor, ...]:
        """The state after, where it `moves` (or in the share in which it does), else the state before; Krueger et al. 2017."""
        return tuple(b + m * (a - b) for b, a, m in zip(before, after, moves, strict=True))

    def step(self, x: tf.Tensor, state: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        """One step: x `[B, D]` and a state -> the next state; its first tensor is the output."""
        return self.step_projected(self.project(x), state)

    def step_projected(self, product: tf.Tensor, state: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        """`step` of the x whose `project(x)` is given."""
        new = self.advance(state, project(state[0], self.recurrent_kernel), product)
        return self._zone(state, new, [1.0 - self.zoneout] * self.num_states) if self.zoneout else new

    def call(
        self,
        x: tf.Tensor,
        mask: tf.Tensor | None = None,
        initial_state: tuple[tf.Tensor, ...] | None = None,
        *,
        recurrent_mask: tf.Tensor | None = None,
        kernel_mask: tf.Tensor | None = None,
        moves: tuple[tf.Tensor, ...] | None = None,
        memory_gradient: bool = True,
        fills: bool = True,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Runs over x `[T, B, D]` with mask `[T, B]` -> (outputs `[T, B, units]`, final state).

        Args:
            x, mask, initial_state: inputs, True where a step is real, state before the first step.
            recurrent_mask: `[B, units]`, multiplies the output before wherever the cell takes it (Gal and Ghahramani 2016).
            kernel_mask: of the shape of the recurrent kernel, multiplies it (weight drop, Merity et al. 2018).
            moves: `[T, B, units]` for each tensor of the state, 1 where it moves on and 0 where it stays (zoneout).
            memory_gradient: whether the final state's memory of an LSTM has a gradient; the loop is shorter without.
            fills: False where the caller makes padded inputs finite before, and padded outputs zero afterwards, itself.
        """
        x = tf.convert_to_tensor(x)
        keep = tf.ones(tf.shape(x)[:2], tf.bool) if mask is None else mask
        lengths = tf.reduce_sum(tf.cast(keep, tf.int32), 0)
        initial = self.initial_state(tf.shape(x)[1]) if initial_state is None else initial_state
        x = self._by_time(fill(x, keep) if fills else x, lengths)
        kernel = tf.cast(self.recurrent_kernel, x.dtype)
        kernel = kernel if kernel_mask is None else kernel * tf.cast(kernel_mask, x.dtype)
        is_plain = self.activation is keras.activations.tanh and not self.zoneout and wants_gradients()
        if is_plain and self.cell == "lstm":
            double = tf.constant(recurrences.doubled_memory_columns(self.units), x.dtype)
            inputs = project(x, tf.cast(self.kernel, x.dtype) * double, tf.cast(self.bias, x.dtype) * double)
            states: tuple[tf.Tensor, ...] = recurrences.lstm(inputs, kernel * double, initial, recurrent_mask, memory_gradient)
        elif is_plain and self.cell == "gru":
            bias = tf.cast(self.recurrent_bias, x.dtype)
            states = (recurrences.gru(self.project(x), kernel, bias, initial[0], recurrent_mask),)
        else:
            states = self._scan(self.project(x), kernel, initial, recurrent_mask, moves)
        # padding comes last in either direction, so it cannot reach a real step; the final state is that of the last real one
        num_rows = tf.shape(x)[1]
        last = tf.maximum(lengths - 1, 0) * num_rows + tf.range(num_rows)
        final = tuple(
            tf.where(lengths[:, None] > 0, tf.gather(tf.reshape(s, [-1, self.units]), last), s0)
            for s, s0 in zip(states, initial, strict=True)
        )
        outputs = self._by_time(states[0], lengths)
        return fill(outputs, keep) if fills else outputs, final

    def _scan(
        self, inputs: tf.Tensor, kernel: tf.Tensor, initial: tuple[tf.Tensor, ...], recurrent_mask: Any, moves: Any
    ) -> tuple[tf.Tensor, ...]:
        """All states, each `[T, B, units]`, by the general scan: any cell and activation, zoneout, and inference."""
        share = [1.0 - self.zoneout] * self.num_states

        def step(state: tuple, ins: Any, multiply: Multiply) -> tuple:
            now, stays = ins if moves is not None else (ins, share)
            taken = state[0] if recurrent_mask is None else state[0] * recurrent_mask
            new = self.advance(state, multiply(taken, kernel), now)
            return self._zone(state, new, stays) if self.zoneout else new, ()

        return scan(step, initial, inputs if moves is None else (inputs, moves))[0]

    def _by_time(self, x: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """x `[T, B, ...]`, the real steps of each row reversed where the layer is."""
        return tf.ensure_shape(reverse_by_length(x, lengths), x.shape) if self.reverse else x


def locked_dropout(x: tf.Tensor, rate: float, seed: tf.Tensor, salt: int) -> tf.Tensor:
    """x `[T, B, D]` with features of a row dropped at all steps alike, for row seeds `[B, 2]` (Gal and Ghahramani 2016)."""
    return x * keep_mask(seed, x.shape[-1], rate, salt, x.dtype)


def keep_mask(seed: tf.Tensor, num: int, rate: float, salt: int, dtype: Any = tf.float32) -> tf.Tensor:
    """`[B, num]` for row seeds `[B, 2]`: 0 with probability `rate`, else 1 / (1 - rate)."""
    drawn = random.uniform(seed, tf.zeros([1], tf.int32), num, salt)[0]
    return tf.cast(drawn >= rate, dtype) / (1.0 - rate)


State = list[tuple[tuple[tf.Tensor, ...], ...]]
"""A state of a stack: of each layer, of each direction, tensors `[B, units]` (one; h and c of an LSTM)."""


@keras.saving.register_keras_serializable("tfseq")
class RecurrentStack(keras.layers.Layer):
    """Layers of recurrent cells, each in one or two directions: x `[T, B, D]` -> `[T, B, F]`, time first.

    Each layer feeds the next at the same step; of two directions the outputs are joined, so F is the sum of their units.

    Args:
        units: size of each layer (of its forward direction).
        cell: `"rnn"`, `"gru"` or `"lstm"`.
        bidirectional: run each layer from both ends.
        backward_units: sizes of the backward direction; those of the forward one by default.
        dropout: share of the features of each layer's input, and of the last one's output, that is dropped in training, the
            same at all steps (Gal and Ghahramani 2016).
        recurrent_dropout: the same of the state before, wherever the cell takes it.
        weight_drop: share of the recurrent kernels' entries dropped in training, the same for a whole batch (Merity et al. 2018).
        zoneout: share of the state's units that stay as they were, in training at random, else in expectation (Krueger et al.
            2017).
        residual: add a layer's input to its output, where they have one size (Kim et al. 2017).
        layer_norm: normalise each layer's input over its features (Ba et al. 2016).
    """

    def __init__(
        self,
        units: Sequence[int],
        cell: Cell = "lstm",
        bidirectional: bool = False,
        backward_units: Sequence[int] | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        zoneout: float = 0.0,
        residual: bool = False,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.fraction(dropout=dropout, recurrent_dropout=recurrent_dropout, weight_drop=weight_drop, zoneout=zoneout)
        if not units:
            raise ValueError("`units` must name the size of at least one layer; received none.")
        if backward_units is not None and (not bidirectional or len(backward_units) != len(units)):
            raise ValueError(
                f"`backward_units` must have a size for each of the {len(units)} layers of a bidirectional stack; received "
                f"{list(backward_units)} with bidirectional={bidirectional}."
            )
        self.units, self.cell, self.bidirectional, self.backward_units = list(units), cell, bidirectional, backward_units
        self.dropout, self.recurrent_dropout, self.weight_drop, self.zoneout = dropout, recurrent_dropout, weight_drop, zoneout
        self.residual, self.supports_masking = residual, True
        sizes = [list(units)] + ([list(backward_units or units)] if bidirectional else [])
        self.layers = [
            [
                Recurrent(
                    n, cell, reverse=bool(d), zoneout=zoneout, name=f"{'back' if d else 'layer'}_{k}", dtype=self.dtype_policy
                )
                for d, n in enumerate(row)
            ]
            for k, row in enumerate(zip(*sizes, strict=True))
        ]
        norm = keras.layers.LayerNormalization
        self.norms = [norm(name=f"norm_{k}", dtype=self.dtype_policy) for k in range(len(units))] if layer_norm else []

    @property
    def size(self) -> int:
        """F, the number of features of an output."""
        return sum(layer.units for layer in self.layers[-1])

    def initial_state(self, batch_size: tf.Tensor | int) -> State:
        """Zeros."""
        return [tuple(layer.initial_state(batch_size) for layer in row) for row in self.layers]

    def _before(self, k: int, x: tf.Tensor) -> tf.Tensor:
        """What layer k takes of its input x."""
        return self.norms[k](x) if self.norms else x

    def _after(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """A layer's output, with its input where that is added."""
        return x + y if self.residual and x.shape[-1] == y.shape[-1] else y

    def project(self, x: tf.Tensor) -> tf.Tensor:
        """The first layer's products with x `[..., D]`: `[..., gates * units]`."""
        return self.layers[0][0].project(self._before(0, x))

    def step(self, x: tf.Tensor, state: State, product: tf.Tensor | None = None) -> tuple[tf.Tensor, State]:
        """One step of a stack of one direction: x `[B, D]` and a state -> (output `[B, F]`, next state).

        `product` is `project(x)` where that is known.
        """
        if self.bidirectional:
            raise ValueError("A bidirectional stack cannot go step by step: its backward direction begins at the end.")
        new: State = []
        for k, ((layer,), (before,)) in enumerate(zip(self.layers, state, strict=True)):
            if k or product is None:
                product = layer.project(self._before(k, x))
            after = layer.step_projected(product, before)
            new.append((after,))
            x = self._after(x, after[0])
        return x, new

    def call(
        self,
        x: tf.Tensor,
        mask: tf.Tensor | None = None,
        initial_state: State | None = None,
        *,
        seed: tf.Tensor | None = None,
        common_seed: tf.Tensor | None = None,
        memory_gradient: bool = True,
        raw: bool = False,
    ) -> tuple[tf.Tensor, State]:
        """Runs over x `[T, B, D]` with mask `[T, B]` -> (outputs `[T, B, F]`, final state).

        Args:
            x, mask, initial_state: inputs, True where a step is real, state before the first step.
            seed: `[B, 2]`, decides what is dropped in training; None drops nothing.
            common_seed: `[1, 2]`, decides what weight drop drops, which all rows share.
            memory_gradient: as of `Recurrent.call`.
            raw: leave the last output as it is; `dropped` makes of it what it is otherwise.
        """
        keep = tf.ones(tf.shape(x)[:2], tf.bool) if mask is None else mask  # Keras fills in a mask of None, by its name
        x = fill(tf.convert_to_tensor(x), keep)  # once for all layers: what they make of finite padding is finite
        final: State = []
        for k, row in enumerate(self.layers):
            taken = self._before(k, x)
            if seed is not None and self.dropout:
                taken = locked_dropout(taken, self.dropout, seed, SALT + 8 * k)
            states = [None] * len(row) if initial_state is None else initial_state[k]
            found = []
            for d, (layer, state) in enumerate(zip(row, states, strict=True)):
                noise = self._noise(layer, seed, common_seed, tf.shape(x)[0], SALT + 8 * k + 4 * d)
                found.append(layer(taken, keep, state, memory_gradient=memory_gradient, fills=False, **noise))
            y = found[0][0] if len(row) == 1 else tf.concat([output for output, _ in found], -1)
            x = self._after(x, y)
            final.append(tuple(state for _, state in found))
        x = fill(x, keep)
        return x if raw else self.dropped(x, seed), final

    def dropped(self, x: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        """The last layer's output `[T, B, F]` as it goes on in training, for row seeds `[B, 2]`; None drops nothing."""
        if seed is None or not self.dropout:
            return x
        return locked_dropout(x, self.dropout, seed, SALT + 8 * len(self.layers))

    def _noise(self, layer: Recurrent, seed: Any, common_seed: Any, num_steps: tf.Tensor, salt: int) -> dict[str, Any]:
        """What is dropped in a layer in training."""
        if seed is None:
            return {}
        noise: dict[str, Any] = {}
        if self.recurrent_dropout:
            noise["recurrent_mask"] = keep_mask(seed, layer.units, self.recurrent_dropout, salt + 1, self.compute_dtype)
        if self.weight_drop and common_seed is not None:
            shape = layer.units, _NUM_GATES[layer.cell] * layer.units
            mask = keep_mask(common_seed, shape[0] * shape[1], self.weight_drop, salt + 2, self.compute_dtype)
            noise["kernel_mask"] = tf.reshape(mask, shape)
        if self.zoneout:
            drawn = random.uniform(seed, tf.range(num_steps), layer.units * layer.num_states, salt + 3)
            noise["moves"] = tuple(tf.split(tf.cast(drawn >= self.zoneout, self.compute_dtype), layer.num_states, -1))
        return noise
