"""The neural autoregressive distribution estimator of binary vectors, with biases that features give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.head import Head, log_odds
from tfseq.ops import tracing


def _hidden_step(a: tf.Tensor, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """What one feature adds to the hidden inputs: a `[N, H]`, its values x `[N]`, its row of W `[H]`."""
    return a + x[:, None] * kernel


def _sweep(x: tf.Tensor, hidden: tf.Tensor, w: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(V_d . h_d for all d `[D, N]`, hidden inputs after the last feature `[N, H]`) for x `[D, N]`."""
    num = v.shape[0]

    def step(d: tf.Tensor, a: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        return d + 1, _hidden_step(a, x[d], w[d]), found.write(d, tf.linalg.matvec(tf.sigmoid(a), v[d]))

    start = (tf.constant(0), hidden, tf.TensorArray(hidden.dtype, num, element_shape=hidden.shape[:1]))
    _, last, found = tf.while_loop(lambda d, *_: d < num, step, start)
    return found.stack(), last


@tf.custom_gradient
def _with_gradient(x: tf.Tensor, hidden: tf.Tensor, w: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The first result of `_sweep`. Going back, hidden inputs are found again by subtraction, so that none are kept."""
    found, last = _sweep(x, hidden, w, v)
    num, units = v.shape

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor, tf.Tensor, tf.Tensor]:
        def step(d: tf.Tensor, a: tf.Tensor, by_a: tf.Tensor, by_w: Any, by_v: Any) -> tuple:
            """`by_a` `[N, H]`: the gradient of the hidden inputs of all features after d."""
            by_w = by_w.write(d, tf.linalg.matvec(by_a, x[d], transpose_a=True))
            a = _hidden_step(a, -x[d], w[d])
            h = tf.sigmoid(a)
            by_v = by_v.write(d, tf.linalg.matvec(h, upstream[d], transpose_a=True))
            return d - 1, a, by_a + upstream[d][:, None] * v[d] * (h * (1.0 - h)), by_w, by_v

        rows = [tf.TensorArray(v.dtype, num, element_shape=[units]) for _ in range(2)]
        start = (tf.constant(num - 1), last, tf.zeros_like(last), *rows)
        _, _, by_hidden, by_w, by_v = tf.while_loop(lambda d, *_: d >= 0, step, start)
        return None, by_hidden, by_w.stack(), by_v.stack()

    return found, gradient


@dataclass(frozen=True)
class NadeDistribution:
    """p(x) = prod_d p(x_d | x_1 .. x_{d-1}) over binary x `[..., D]`.

    p(x_d = 1 | x_<d) = sigmoid(b_d + V_d . h_d),   h_d = sigmoid(c + sum_{k<d} W_k x_k)

    Attributes:
        visible, hidden: b `[..., D]` and c `[..., H]`.
        w, v: W and V, `[D, H]`.
    """

    visible: tf.Tensor
    hidden: tf.Tensor
    w: tf.Tensor
    v: tf.Tensor

    @property
    def dtype(self) -> tf.DType:
        """Of the parameters."""
        return self.visible.dtype

    def log_prob(self, x: tf.Tensor) -> tf.Tensor:
        """log p(x), `[...]`: a loop over features whose step is all rows', O(rows D H) time and O(rows (D + H)) memory."""
        num, units = self.v.shape
        static = tf.broadcast_static_shape(x.shape[:-1], self.visible.shape[:-1])
        dynamic = tf.broadcast_dynamic_shape(tf.shape(x)[:-1], tf.shape(self.visible)[:-1])
        leading = static.as_list() if static.is_fully_defined() else dynamic  # LiteRT's arrays need sizes known beforehand

        def columns(a: tf.Tensor, width: int) -> tf.Tensor:
            return tf.reshape(tf.broadcast_to(a, tf.concat([leading, [width]], 0)), [-1, width])

        x = tf.transpose(columns(x, num))
        arguments = (x, columns(self.hidden, units), self.w, self.v)
        found = _with_gradient(*arguments) if tracing.wants_gradients() else _sweep(*arguments)[0]
        logits = tf.transpose(columns(self.visible, num)) + found
        return tf.reshape(-tf.reduce_sum(tf.nn.softplus((1.0 - 2.0 * x) * logits), 0), leading)

    def sample(self, uniform: tf.Tensor) -> tf.Tensor:
        """The sample of `uniform` `[..., D]`, feature by feature."""
        num = self.v.shape[0]
        uniform = tf.cast(uniform, self.dtype)

        def step(d: tf.Tensor, a: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            logit = tf.gather(self.visible, d, axis=-1) + tf.reduce_sum(tf.sigmoid(a) * self.v[d], -1)
            new = tf.cast(tf.gather(uniform, d, axis=-1) < tf.sigmoid(logit), a.dtype)[..., None]
            return d + 1, a + new * self.w[d], x + new * tf.one_hot(d, num, dtype=a.dtype)

        x = tf.zeros_like(self.visible + uniform)
        start = (tf.constant(0), self.hidden + tf.zeros_like(x[..., :1]), x)
        return tf.while_loop(lambda d, *_: d < num, step, start)[-1]


@keras.saving.register_keras_serializable("tfseq")
class NADE(Head):
    """Binary vectors by a NADE: features give the biases b and c, W and V are shared; probabilities sum to one exactly.

    Larochelle and Murray 2011, "The neural autoregressive distribution estimator", eq. 8-10; over a recurrent network, the
    RNN-NADE of Boulanger-Lewandowski et al. 2012, "Modeling temporal dependencies in high-dimensional sequences", sec. 5.

    Args:
        event_dim: D.
        mean: mean of the data, `[D]`; the head starts near it.
        units: H, hidden units.
    """

    is_joint = True
    supports_missing = False
    options = ("units",)
    support = "0 or 1 everywhere for a NADE head"
    hint = "Did you pass MIDI velocities or real values? Binarise them (`x > 0`), or choose another head."

    def __init__(self, event_dim: int, mean: Sequence[float] | None = None, units: int = 64, **kwargs: Any) -> None:
        super().__init__(event_dim, mean, **kwargs)
        checks.at_least(1, units=units)
        self.units = units

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape, small = (self.event_dim, self.units), keras.initializers.RandomNormal(stddev=0.01)
        self.input_kernel = self.add_weight(shape=shape, initializer="glorot_uniform", name="input_kernel")  # W
        self.output_kernel = self.add_weight(shape=shape, initializer=small, name="output_kernel")  # V
        super().build(input_shape)

    @property
    def sizes(self) -> list[int]:
        return [self.event_dim, self.units]

    def start(self) -> np.ndarray:
        visible = np.zeros(self.event_dim) if self.mean is None else log_odds(np.asarray(self.mean))
        return np.concatenate([visible, np.zeros(self.units)])

    def distribution(self, visible: tf.Tensor, hidden: tf.Tensor) -> NadeDistribution:
        w, v = (tf.cast(a, visible.dtype) for a in (self.input_kernel, self.output_kernel))
        return NadeDistribution(visible, hidden, w, v)

    def log_prob(self, distribution: NadeDistribution, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        self.refuse_missing(observed)
        return distribution.log_prob(tf.cast(x, distribution.dtype))

    def sample(self, distribution: NadeDistribution, uniform: tf.Tensor) -> tf.Tensor:
        return tf.cast(distribution.sample(uniform), tf.float32)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x == 0) | (x == 1)
