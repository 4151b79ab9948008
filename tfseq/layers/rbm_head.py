"""Restricted Boltzmann machines over the features of a step, with biases that features give and shared weights.

    p(x) = exp(-F(x)) / Z,   F(x) = -b.x - sum_j softplus(c_j + (x W)_j)

Rows N, visible units V, hidden units H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.head import Head, log_odds
from tfseq.ops import random, tracing
from tfseq.ops.linear import project
from tfseq.ops.units import softplus

_SEED = (2012, 1206)  # of chains, which are part of the head and no choice of a user's
_ANNEAL, _CONTRAST = range(2)  # salts
_BLOCK_FLOATS = 2**20  # what a block of the enumeration holds at once
_CHAIN_FLOATS = 2**20  # what a block of annealed chains holds at once: it should stay in the cache


def _states(num_units: int, dtype: tf.DType) -> tf.Tensor:
    """All joint states of binary units, `[2^n, n]`."""
    index = tf.range(2**num_units)
    return tf.cast(index[:, None] // tf.constant([2**i for i in range(num_units)]) % 2, dtype)


@tracing.fused
def _log_weights(own: tf.Tensor, b: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """log p* `[N, S]` of hidden states, the visible units summed out: own terms `[N, S]`, inputs of visible units `[S, V]`."""
    return own + tf.reduce_sum(softplus(b[:, None] + inputs), -1)


@tracing.fused
def _visible_sums(share: tf.Tensor, b: tf.Tensor, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Means of visible units, weighted by `share` `[N, S]` and summed over states, `[N, V]`, and over rows, `[S, V]`."""
    means = tf.sigmoid(b[:, None] + inputs) * share[:, :, None]
    return tf.reduce_sum(means, 1), tf.reduce_sum(means, 0)


def _enumerate(b: tf.Tensor, c: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """log Z `[N]` of b `[N, V]`, c `[N, H]`, W `[V, H]` over the states of the hidden units, and its gradient."""
    states = _states(w.shape[1], w.dtype)
    inputs = tf.matmul(states, w, transpose_b=True)  # of the visible units, the same for all rows
    num = states.shape[0]
    powers = tf.constant([2**i for i in range(w.shape[1] + 1)])  # chunks divide the states
    chunk = tf.reduce_max(tf.where(powers <= _BLOCK_FLOATS // tf.maximum(tf.size(b), 1), powers, 1))

    def log_weights(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Of a chunk of S states: states `[S, H]`, inputs of the visible units `[S, V]`, log p* `[N, S]`."""
        s, into = (tf.gather(a, first + tf.range(chunk)) for a in (states, inputs))  # XLA cannot slice what moves
        return s, into, _log_weights(tf.matmul(c, s, transpose_b=True), b, into)

    def more(first: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        log_prob = log_weights(first)[2]
        return first + chunk, tf.reduce_logsumexp(tf.concat([found[:, None], log_prob], 1), 1)

    start = (tf.constant(0), tf.fill(tf.shape(b)[:1], tf.constant(-math.inf, b.dtype)))
    log_z = tf.while_loop(lambda first, _: first < num, more, start, parallel_iterations=1)[1]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def more(first: tf.Tensor, by_b: tf.Tensor, by_c: tf.Tensor, by_w: tf.Tensor) -> tuple[tf.Tensor, ...]:
            s, into, log_prob = log_weights(first)
            share = tf.exp(log_prob - log_z[:, None]) * upstream[:, None]
            by_row, by_state = _visible_sums(share, b, into)
            return first + chunk, by_b + by_row, by_c + tf.matmul(share, s), by_w + tf.matmul(by_state, s, transpose_a=True)

        start = (tf.constant(0), tf.zeros_like(b), tf.zeros_like(c), tf.zeros_like(w))
        return tuple(tf.while_loop(lambda first, *_: first < num, more, start, parallel_iterations=1)[1:])

    return log_z, gradient


def exact_log_z(b: tf.Tensor, c: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """log Z `[N]` by enumeration of the smaller side; nothing of a chunk is kept, its gradient finds it again."""
    if w.shape[0] < w.shape[1]:
        b, c, w = c, b, tf.transpose(w)
    return tf.custom_gradient(_enumerate)(b, c, w) if tracing.wants_gradients() else _enumerate(b, c, w)[0]


@tracing.fused
def _draw(bias: tf.Tensor, inputs: tf.Tensor, beta: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Binary states of units with total inputs bias + beta * inputs."""
    return tf.cast(uniform < tf.sigmoid(bias + beta * inputs), bias.dtype)


@tracing.fused
def _ratio_and_draw(
    bias: tf.Tensor, inputs: tf.Tensor, before: tf.Tensor, after: tf.Tensor, uniform: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """(log-normaliser at `after` less that at `before`, summed over units; states drawn at `after`)."""
    # unit by unit, since the difference of two sums would lose what the annealing is about
    ratio = softplus(bias + after * inputs) - softplus(bias + before * inputs)
    return tf.reduce_sum(ratio, -1), _draw(bias, inputs, after, uniform)


def annealed_log_z(b: tf.Tensor, c: tf.Tensor, w: tf.Tensor, num_chains: int, num_temperatures: int) -> tf.Tensor:
    """log Z `[N]` by annealed importance sampling from W = 0 to W, without a gradient.

    The estimate of Z is unbiased, that of log Z too low on average. All rows use the same numbers, so that one's log Z does not
    depend on what else is in the batch. Neal 2001; the visible units are summed out of the weights (Salakhutdinov and Murray
    2008, sec. 4.1).
    """
    b, c, w = (tf.stop_gradient(a) for a in (b, c, w))
    num_visible, num_hidden = w.shape
    across = tf.transpose(w)
    seeds = random.row_seeds(_SEED, tf.range(num_chains))
    betas = tf.constant(np.linspace(0.0, 1.0, num_temperatures + 1), b.dtype)

    def log_ratios(b: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Log-weights of the chains of a block of rows, `[C, n]`."""

        def uniform(k: tf.Tensor, num: int) -> tf.Tensor:
            return tf.cast(random.uniform(seeds, k[None], num, _ANNEAL)[0, :, None], b.dtype)

        def step(k: tf.Tensor, total: tf.Tensor, h: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            inputs, numbers = project(h, across), uniform(k + 1, num_visible + num_hidden)
            ratio, v = _ratio_and_draw(b, inputs, betas[k], betas[k + 1], numbers[..., :num_visible])
            h = _draw(c, project(v, w), betas[k + 1], numbers[..., num_visible:])
            return k + 1, total + tf.cast(ratio, total.dtype), h

        h = tf.cast(uniform(tf.constant(0), num_hidden) < tf.sigmoid(c), b.dtype)
        start = (tf.constant(0), tf.zeros(tf.shape(h)[:2], tracing.wide(b.dtype)), h)
        return tf.while_loop(lambda k, *_: k < num_temperatures, step, start, parallel_iterations=1)[1]

    # blocks of equal size, the last one filled up
    num_rows = tf.shape(b)[0]
    most = max(1, _CHAIN_FLOATS // (num_chains * (num_visible + num_hidden)))
    num_blocks = tf.maximum(-(-num_rows // most), 1)
    size = -(-num_rows // num_blocks)
    blocks = tuple(
        tf.reshape(tf.pad(a, [[0, num_blocks * size - num_rows], [0, 0]]), [num_blocks, size, a.shape[1]]) for a in (b, c)
    )

    def log_mean(block: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return tf.cast(tf.reduce_logsumexp(log_ratios(*block), 0) - math.log(num_chains), b.dtype)

    found = tf.map_fn(log_mean, blocks, fn_output_signature=b.dtype, parallel_iterations=1)
    return tf.reduce_sum(tf.nn.softplus(b), -1) + tf.reduce_sum(tf.nn.softplus(c), -1) + tf.reshape(found, [-1])[:num_rows]


def free_energy(x: tf.Tensor, b: tf.Tensor, c: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """F(x) `[...]` of x `[..., V]`, b `[..., V]`, c `[..., H]`, W `[V, H]`."""
    return -tf.reduce_sum(x * b, -1) - tf.reduce_sum(tf.nn.softplus(c + project(x, w)), -1)


def gibbs(
    x: tf.Tensor, b: tf.Tensor, c: tf.Tensor, w: tf.Tensor, num_sweeps: int, uniform: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Visible states `[..., V]` after sweeps x -> h -> x; `uniform(k)` gives sweep k its H and then V numbers `[..., H + V]`."""
    num_hidden, across = w.shape[1], tf.transpose(w)

    def sweep(k: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        numbers = tf.cast(uniform(k), x.dtype)
        h = tf.cast(numbers[..., :num_hidden] < tf.sigmoid(c + project(x, w)), x.dtype)
        return k + 1, tf.cast(numbers[..., num_hidden:] < tf.sigmoid(b + project(h, across)), x.dtype)

    return tf.while_loop(lambda k, _: k < num_sweeps, sweep, (tf.constant(0), x), parallel_iterations=1)[1]


@dataclass(frozen=True)
class RBMDistribution:
    """p(x) of a restricted Boltzmann machine for each row of biases.

    Attributes:
        visible, hidden: b `[..., V]` and c `[..., H]`.
        w: W `[V, H]`.
        is_exact: whether log Z is a sum over all states of the smaller side, and not an estimate.
        num_sweeps, num_chains, num_temperatures: as in `RBMHead`.
    """

    visible: tf.Tensor
    hidden: tf.Tensor
    w: tf.Tensor
    is_exact: bool
    num_sweeps: int
    num_chains: int
    num_temperatures: int

    @property
    def dtype(self) -> tf.DType:
        """Of the parameters."""
        return self.visible.dtype

    def log_z(self) -> tf.Tensor:
        """log Z of each row, `[...]`; estimates carry no gradient."""
        b, c = (tf.reshape(a, [-1, a.shape[-1]]) for a in (self.visible, self.hidden))
        if self.is_exact:
            found = exact_log_z(b, c, self.w)
        else:
            found = annealed_log_z(b, c, self.w, self.num_chains, self.num_temperatures)
        return tf.reshape(found, tf.shape(self.visible)[:-1])

    def log_prob(self, x: tf.Tensor) -> tf.Tensor:
        """log p(x) = -F(x) - log Z, `[...]`.

        Where log Z is estimated, so is its gradient: the mean of -dF under the machine, by contrastive divergence (Hinton 2002),
        a chain of `num_sweeps` sweeps from x. The ends of the annealed chains would be unbiased in the limit and cost nothing,
        but they are few, the same for all rows and weighted unequally; a chain from each x has its own numbers, and its
        errors average out over steps. Its bias falls with the number of sweeps.
        """
        log_prob = -free_energy(x, self.visible, self.hidden, self.w)
        if self.is_exact or not tracing.wants_gradients():
            return log_prob - self.log_z()
        away = free_energy(tf.stop_gradient(self._fantasy(x)), self.visible, self.hidden, self.w)
        return log_prob + away - tf.stop_gradient(away + self.log_z())

    def _fantasy(self, x: tf.Tensor) -> tf.Tensor:
        """A sample near x `[..., V]`, of the shape of x and the biases together; its numbers depend on x alone."""
        b, c, w = (tf.stop_gradient(a) for a in (self.visible, self.hidden, self.w))
        num_visible, num_hidden = w.shape
        leading = tf.broadcast_dynamic_shape(tf.shape(x)[:-1], tf.shape(b)[:-1])
        x, b, c = (tf.reshape(tf.broadcast_to(a, tf.concat([leading, [a.shape[-1]]], 0)), [-1, a.shape[-1]]) for a in (x, b, c))
        # a sum of random words, one for each 1 of x
        words = np.random.default_rng(0).integers(-(2**31), 2**31, num_visible).astype(np.int32)
        hashed = tf.reduce_sum(tf.where(x > 0.5, tf.constant(words), 0), -1)
        seeds = random.derive(random.as_seed(_SEED)[None], hashed)
        found = gibbs(
            x, b, c, w, self.num_sweeps, lambda k: random.uniform(seeds, k[None], num_hidden + num_visible, _CONTRAST)[0]
        )
        return tf.reshape(found, tf.concat([leading, [num_visible]], 0))

    def sample(self, uniform: tf.Tensor) -> tf.Tensor:
        """The state after block Gibbs sweeps with the numbers `uniform` `[..., num_sweeps (H + V)]`, from sigmoid(b)."""
        width = sum(self.w.shape)
        start = tf.sigmoid(self.visible) + tf.zeros_like(tf.cast(uniform[..., :1], self.dtype))
        return gibbs(
            start,
            self.visible,
            self.hidden,
            self.w,
            self.num_sweeps,
            lambda k: tf.gather(uniform, k * width + tf.range(width), axis=-1),
        )


@keras.saving.register_keras_serializable("tfseq")
class RBMHead(Head):
    """Binary vectors by a restricted Boltzmann machine: features give the biases b and c, W is shared.

    Over a recurrent network, the RNN-RBM of Boulanger-Lewandowski et al. 2012, "Modeling temporal dependencies in
    high-dimensional sequences", sec. 4. log Z is exact where one side has at most `exact_units` units; else it is estimated by
    annealed importance sampling, log-likelihoods are then too high on average, and the gradient is that of contrastive
    divergence. Samples are the ends of Gibbs chains. `num_uniforms` is `num_sweeps` times (H + D).

    Args:
        event_dim: D, the visible units.
        mean: mean of the data, `[D]`; the head starts near it.
        units: H, hidden units.
        num_sweeps: Gibbs sweeps of a sample and of contrastive divergence.
        num_chains, num_temperatures: of annealed importance sampling, what most of the time goes to; more for a figure to quote.
        exact_units: most units of the smaller side whose states are enumerated.
    """

    is_joint = True
    supports_missing = False
    options = ("units",)
    support = "0 or 1 everywhere for an RBM head"
    hint = "Did you pass MIDI velocities or real values? Binarise them (`x > 0`), or choose another head."

    def __init__(
        self,
        event_dim: int,
        mean: Sequence[float] | None = None,
        units: int = 64,
        num_sweeps: int = 15,
        num_chains: int = 8,
        num_temperatures: int = 50,
        exact_units: int = 12,
        **kwargs: Any,
    ) -> None:
        super().__init__(event_dim, mean, **kwargs)
        checks.at_least(1, units=units, num_sweeps=num_sweeps, num_chains=num_chains, num_temperatures=num_temperatures)
        checks.at_least(0, exact_units=exact_units)
        if exact_units > 20:
            raise ValueError(f"`exact_units` must be at most 20, or a step sums over millions of states; received {exact_units}.")
        self.units, self.num_sweeps, self.exact_units = units, num_sweeps, exact_units
        self.num_chains, self.num_temperatures = num_chains, num_temperatures

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.coupling = self.add_weight(shape=(self.event_dim, self.units), initializer=small, name="coupling")
        super().build(input_shape)

    @property
    def is_exact(self) -> bool:
        return min(self.event_dim, self.units) <= self.exact_units

    @property
    def sizes(self) -> list[int]:
        return [self.event_dim, self.units]

    @property
    def num_uniforms(self) -> int:
        return self.num_sweeps * (self.event_dim + self.units)

    def start(self) -> np.ndarray:
        visible = np.zeros(self.event_dim) if self.mean is None else log_odds(np.asarray(self.mean))
        return np.concatenate([visible, np.zeros(self.units)])

    def distribution(self, visible: tf.Tensor, hidden: tf.Tensor) -> RBMDistribution:
        settings = self.is_exact, self.num_sweeps, self.num_chains, self.num_temperatures
        return RBMDistribution(visible, hidden, tf.cast(self.coupling, visible.dtype), *settings)

    def log_prob(self, distribution: RBMDistribution, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        self.refuse_missing(observed)
        return distribution.log_prob(tf.cast(x, distribution.dtype))

    def sample(self, distribution: RBMDistribution, uniform: tf.Tensor) -> tf.Tensor:
        return tf.cast(distribution.sample(uniform), tf.float32)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x == 0) | (x == 1)
