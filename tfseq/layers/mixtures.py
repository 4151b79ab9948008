"""Heads whose observation is one draw of K Gaussian components: all features of a step come from the same one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers.head import RealHead, log_odds
from tfseq.ops import random

MIN_TAIL = 1e-4  # 1 - rho^2 is at least this, so that a density is bounded
_LOG_2PI = math.log(2.0 * math.pi)


def spread(num_components: int, event_dim: int) -> np.ndarray:
    """Offsets `[K, D]` by which components differ at the start: in each feature the same Gaussian quantiles, whose sum is 0.

    Their variance is about a half, as is that of a component with raw standard deviation 0: the mixture's is about 1.
    """
    quantiles = [NormalDist(0.0, 0.7).inv_cdf((k + 0.5) / num_components) for k in range(num_components)]
    order = np.random.default_rng(0)  # another order in each feature: components lie about the mean, not on a line
    return np.stack([order.permutation(quantiles) for _ in range(event_dim)], -1)


def pick(parameters: tf.Tensor, component: tf.Tensor) -> tf.Tensor:
    """Those of one component: `[..., K, D]`, component `[...]` (shapes broadcast) -> `[..., D]`."""
    chosen = tf.one_hot(component, parameters.shape[-2], dtype=parameters.dtype)
    return tf.reduce_sum(parameters * chosen[..., None], -2)


def _by_component(a: tf.Tensor, num_components: int) -> tf.Tensor:
    """`[..., K n]` -> `[..., K, n]`."""
    return tf.reshape(a, tf.concat([tf.shape(a)[:-1], [num_components, a.shape[-1] // num_components]], 0))


@keras.saving.register_keras_serializable("tfseq")
class GaussianMixture(RealHead):
    """x ~ sum_k pi_k N(mu_k, diag sigma_k^2): K components over the whole frame, pi = softmax, sigma = softplus + 1e-4.

    What was not observed is summed out of each component. `num_uniforms` is D + 1: the first picks the component.

    Args:
        event_dim, mean, scale: as in `RealHead`.
        num_components: K.
    """

    is_joint = True
    options = ("scale", "num_components")

    def __init__(
        self,
        event_dim: int,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        num_components: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(event_dim, mean, scale, **kwargs)
        checks.at_least(1, num_components=num_components)
        self.num_components = num_components

    @property
    def sizes(self) -> list[int]:
        return [self.num_components, *[self.num_components * self.event_dim] * 2]

    @property
    def num_uniforms(self) -> int:
        return self.event_dim + 1

    def start(self) -> np.ndarray:
        means = self.standardised_mean() + spread(self.num_components, self.event_dim)
        return np.concatenate([np.zeros(self.num_components), means.reshape(-1), np.zeros(means.size)])

    def distribution(self, logits: tf.Tensor, mean: tf.Tensor, raw_stddev: tf.Tensor) -> tfd.MixtureSameFamily:
        mean, raw_stddev = (_by_component(a, self.num_components) for a in (mean, raw_stddev))
        mean, stddev = self.to_units(mean, raw_stddev)
        return tfd.MixtureSameFamily(tfd.Categorical(logits=logits), tfd.Independent(tfd.Normal(mean, stddev), 1))

    def log_joint(self, distribution: tfd.MixtureSameFamily, x: tf.Tensor, observed: tf.Tensor | None) -> tf.Tensor:
        """log pi_k + log p(observed part of x | k), `[..., K]`."""
        normal = distribution.components_distribution.distribution
        log_prob = normal.log_prob(tf.cast(x, normal.dtype)[..., None, :])
        if observed is not None:
            log_prob = tf.where(observed[..., None, :], log_prob, tf.zeros([], log_prob.dtype))
        return tf.nn.log_softmax(distribution.mixture_distribution.logits) + tf.reduce_sum(log_prob, -1)

    def log_prob(self, distribution: tfd.MixtureSameFamily, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        return tf.reduce_logsumexp(self.log_joint(distribution, x, observed), -1)

    def _draw(self, distribution: tfd.MixtureSameFamily, logits: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """A sample whose component has the given log-weights `[..., K]`."""
        normal = distribution.components_distribution.distribution
        component = random.categorical_quantile(tf.nn.softmax(logits), uniform[..., 0])
        noise = random.normal_quantile(tf.cast(uniform[..., 1:], normal.dtype))
        return tf.cast(pick(normal.loc, component) + pick(normal.scale, component) * noise, tf.float32)

    def sample(self, distribution: tfd.MixtureSameFamily, uniform: tf.Tensor) -> tf.Tensor:
        return self._draw(distribution, distribution.mixture_distribution.logits, uniform)

    def complete(self, distribution: tfd.MixtureSameFamily, x: tf.Tensor, observed: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        x = tf.where(observed, x, tf.zeros([], x.dtype))
        drawn = self._draw(distribution, self.log_joint(distribution, x, observed), uniform)
        return tf.where(observed, tf.cast(x, drawn.dtype), drawn)


@dataclass(frozen=True)
class PenDistribution:
    """A pen's step (pen, dx, dy): Bernoulli times a mixture of K bivariate Gaussians with correlation.

    Attributes:
        pen: log-odds of pen = 1, `[...]`.
        logits: of the components, `[..., K]`.
        mean, stddev: of dx and dy, `[..., K, 2]`.
        rho: correlation, `[..., K]`.
        tail: 1 - rho^2, `[..., K]`, at least 1e-4 and without the rounding of the difference.
    """

    pen: tf.Tensor
    logits: tf.Tensor
    mean: tf.Tensor
    stddev: tf.Tensor
    rho: tf.Tensor
    tail: tf.Tensor

    @property
    def dtype(self) -> tf.DType:
        """Of the parameters."""
        return self.mean.dtype

    def log_joint(self, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        """log pi_k + log p(observed part of (dx, dy) | k), `[..., K]`."""
        z = (x[..., None, 1:] - self.mean) / self.stddev
        alone = -0.5 * (tf.square(z) + _LOG_2PI) - tf.math.log(self.stddev)  # of dx, of dy
        left, right = tf.unstack(alone, axis=-1)
        # log p(dy | dx)
        given = -0.5 * (tf.square(z[..., 1] - self.rho * z[..., 0]) / self.tail + _LOG_2PI + tf.math.log(self.tail))
        given -= tf.math.log(self.stddev[..., 1])
        if observed is None:
            log_prob = left + given
        else:
            has_left, has_right = observed[..., None, 1], observed[..., None, 2]
            zero = tf.zeros([], given.dtype)
            log_prob = tf.where(has_left, left, zero) + tf.where(has_right, tf.where(has_left, given, right), zero)
        return tf.nn.log_softmax(self.logits) + log_prob

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        """log p(observed part of x `[..., 3]`), `[...]`."""
        pen = -tf.nn.softplus((1.0 - 2.0 * x[..., 0]) * self.pen)
        if observed is not None:
            pen = tf.where(observed[..., 0], pen, tf.zeros([], pen.dtype))
        return pen + tf.reduce_logsumexp(self.log_joint(x, observed), -1)


@keras.saving.register_keras_serializable("tfseq")
class BivariatePen(RealHead):
    """Handwriting, x = (pen, dx, dy): pen ~ Bernoulli, (dx, dy) ~ a mixture of K bivariate Gaussians with correlation.

    Graves 2013, "Generating sequences with recurrent neural networks", sec. 4.1 (eq. 19-25); rho = sqrt(1 - 1e-4) tanh(r), so
    that 1 - rho^2 >= 1e-4. What was not observed is summed out: dx alone has its marginal. `num_uniforms` is 4, for the
    component, dx, dy given dx, and the pen. `scale` is that of dx and dy; its first number is not read.

    Args:
        event_dim: 3.
        mean, scale: as in `RealHead`.
        num_components: K.
    """

    is_joint = True
    options = ("scale", "num_components")
    unscaled = (0,)
    support = "0 or 1 in its first column, the pen, for a pen head"
    hint = "Is the pen another column? The order is (pen, dx, dy)."

    def __init__(
        self,
        event_dim: int = 3,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        num_components: int = 20,
        **kwargs: Any,
    ) -> None:
        if event_dim != 3:
            raise ValueError(f"`event_dim` must be 3 for a pen head, (pen, dx, dy); received {event_dim}. Use 'mixture' instead?")
        super().__init__(event_dim, mean, scale, **kwargs)
        checks.at_least(1, num_components=num_components)
        self.num_components = num_components

    @property
    def sizes(self) -> list[int]:
        return [1, self.num_components, 2 * self.num_components, 2 * self.num_components, self.num_components]

    @property
    def num_uniforms(self) -> int:
        return 4

    def start(self) -> np.ndarray:
        pen = np.zeros(1) if self.mean is None else log_odds(np.asarray(self.mean[:1]))
        means = self.standardised_mean()[1:] + spread(self.num_components, 2)
        return np.concatenate(
            [pen, np.zeros(self.num_components), means.reshape(-1), np.zeros(means.size), np.zeros(self.num_components)]
        )

    def distribution(
        self, pen: tf.Tensor, logits: tf.Tensor, mean: tf.Tensor, raw_stddev: tf.Tensor, raw_rho: tf.Tensor
    ) -> PenDistribution:
        mean, raw_stddev = (_by_component(a, self.num_components) for a in (mean, raw_stddev))
        mean, stddev = self.to_units(mean, raw_stddev, first=1)
        tanh, squared_sech = tf.tanh(raw_rho), 4.0 * tf.sigmoid(2.0 * raw_rho) * tf.sigmoid(-2.0 * raw_rho)
        tail = squared_sech + MIN_TAIL * tf.square(tanh)
        return PenDistribution(pen[..., 0], logits, mean, stddev, math.sqrt(1.0 - MIN_TAIL) * tanh, tail)

    def log_prob(self, distribution: PenDistribution, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        return distribution.log_prob(tf.cast(x, distribution.dtype), observed)

    def sample(self, distribution: PenDistribution, uniform: tf.Tensor) -> tf.Tensor:
        x = tf.zeros_like(uniform[..., :3])
        return self.complete(distribution, x, tf.zeros_like(x, tf.bool), uniform)

    def complete(self, distribution: PenDistribution, x: tf.Tensor, observed: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        p, uniform = distribution, tf.cast(uniform, distribution.dtype)
        x = tf.cast(tf.where(observed, x, tf.zeros([], x.dtype)), p.dtype)
        component = random.categorical_quantile(tf.nn.softmax(p.log_joint(x, observed)), uniform[..., 0])
        mean, stddev = pick(p.mean, component), pick(p.stddev, component)
        rho, tail = pick(p.rho[..., None], component)[..., 0], pick(p.tail[..., None], component)[..., 0]
        noise = random.normal_quantile(uniform[..., 1:3])
        (seen_pen, seen_dx, seen_dy), z = tf.unstack(observed, axis=-1), (x[..., 1:] - mean) / stddev
        # dx given dy where that is known, then dy given dx; in units of the component
        dx = tf.where(seen_dy, rho * z[..., 1] + tf.sqrt(tail) * noise[..., 0], noise[..., 0])
        dx = tf.where(seen_dx, z[..., 0], dx)
        dy = tf.where(seen_dy, z[..., 1], rho * dx + tf.sqrt(tail) * noise[..., 1])
        drawn = mean + stddev * tf.stack([dx, dy], -1)
        pen = tf.where(seen_pen, x[..., 0], tf.cast(uniform[..., 3] < tf.sigmoid(p.pen), x.dtype))
        offsets = tf.where(observed[..., 1:], x[..., 1:], drawn)
        pen = tf.broadcast_to(pen, tf.shape(offsets)[:-1])
        return tf.cast(tf.concat([pen[..., None], offsets], -1), tf.float32)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        is_offset = np.array([False, True, True])  # only the pen is binary
        return (x == 0) | (x == 1) | (is_offset & (x == x))
