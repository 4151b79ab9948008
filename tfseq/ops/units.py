"""Unit types of Boltzmann machines, each an exponential family with one natural parameter (its total input) a column.

    p(s | a) = exp(a.s + log_base(s) - log_normaliser(a)),   mean = d log_normaliser / d a

States s are in the units' own scale, so a model may rescale what it observes before. Rows N, columns n.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.ops import random

Kind = Literal["bernoulli", "binomial", "categorical", "gaussian", "relu"]


_UNITS: dict[tuple[type, int, int], Units] = {}


@dataclass(frozen=True)
class Units(abc.ABC):
    """Units of one type in `columns` columns; `count` is what else the type needs (trials, categories)."""

    columns: int
    count: int = 1

    def __new__(cls, columns: int, count: int = 1) -> Units:
        """The one object of these values, which lives on: graphs are found again by the settings they were traced with."""
        return _UNITS.setdefault((cls, columns, count), super().__new__(cls))

    normalised: ClassVar[bool] = True
    """Whether samples are exact, so that likelihoods and annealed importance sampling mean something."""
    rule: ClassVar[str] = ""
    hint: ClassVar[str] = ""

    @property
    def num_values(self) -> int | None:
        """In how many joint states these units can be; None where they are not discrete."""
        return None

    @abc.abstractmethod
    def log_normaliser(self, a: tf.Tensor) -> tf.Tensor:
        """a `[N, n]` -> `[N, n]`, or `[N, groups]`; its sum over the last axis is meant."""

    @abc.abstractmethod
    def mean(self, a: tf.Tensor) -> tf.Tensor:
        """Expected state, `[N, n]` of `[N, n]`."""

    @abc.abstractmethod
    def sample(self, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, salt: int) -> tf.Tensor:
        """A state for each row of a `[N, n]`; seeds `[N, 2]` and a time decide it."""

    def log_base(self, s: tf.Tensor) -> tf.Tensor:
        """`[N, n]` -> `[N]`."""
        return tf.zeros_like(s[:, 0])

    def natural(self, mean: np.ndarray) -> np.ndarray:
        """Inputs `[n]` under which the mean is about `mean` `[n]`, kept finite."""
        return np.asarray(mean)

    def supports(self, s: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
        """Where states `[..., n]` are in the range, bool of their shape."""
        return s == s

    def states(self, index: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """The joint states of numbers `index` `[N]` int64 below `num_values`, `[N, n]`."""
        base = self.count + 1
        powers = tf.constant([base**i for i in range(self.columns)], tf.int64)
        return tf.cast(index[:, None] // powers % base, dtype)


def _uniform(a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, num: int, salt: int) -> tf.Tensor:
    return tf.cast(random.uniform(seed, tf.reshape(tf.cast(time, tf.int32), [1]), num, salt)[0], a.dtype)


def _normal(a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, num: int, salt: int) -> tf.Tensor:
    return tf.cast(random.normal(seed, tf.reshape(tf.cast(time, tf.int32), [1]), num, salt)[0], a.dtype)


def softplus(a: tf.Tensor) -> tf.Tensor:
    """log(1 + e^a), in float32 to 3e-7 of it by arithmetic alone: a third of the time of `tf.nn.softplus` in a kernel of XLA.

    log(1 + t) = 2 artanh(t / (2 + t)) with t = e^-|a| at most 1, whose series in z <= 1/3 has float32's digits after seven terms.
    """
    if a.dtype != tf.float32:
        return tf.nn.softplus(a)
    t = tf.exp(-tf.abs(a))
    z = t / (2.0 + t)
    square, series = tf.square(z), tf.constant(2.0 / 13.0, a.dtype)
    for k in (11, 9, 7, 5, 3, 1):
        series = series * square + 2.0 / k
    return 0.5 * a + 0.5 * tf.abs(a) + z * series  # not max(a, 0), whose derivative at 0 is not 1/2


class Bernoulli(Units):
    """s in {0, 1}; a mean in [0, 1] (a grey pixel) may stand in a state's place."""

    rule = "in [0, 1]"
    hint = "Scale the data to [0, 1], binarise it, or choose visible='gaussian' for real values."

    @property
    def num_values(self) -> int:
        return 2**self.columns

    def log_normaliser(self, a: tf.Tensor) -> tf.Tensor:
        return softplus(a)

    def mean(self, a: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(a)

    def sample(self, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, salt: int) -> tf.Tensor:
        return tf.cast(_uniform(a, seed, time, self.columns, salt) < tf.sigmoid(a), a.dtype)

    def natural(self, mean: np.ndarray) -> np.ndarray:
        p = np.clip(mean, 0.005, 0.995)  # a pixel that was never on is still possible
        return np.log(p) - np.log1p(-p)

    def supports(self, s: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
        return (s >= 0.0) & (s <= 1.0)


class Binomial(Units):
    """s in {0, ..., K}: K Bernoulli units with shared weights, counted; K is `count`."""

    rule = "a whole number in [0, K], K the number of trials"
    hint = "Scale the data, or give a larger visible_count."

    @property
    def num_values(self) -> int:
        return (self.count + 1) ** self.columns

    def log_normaliser(self, a: tf.Tensor) -> tf.Tensor:
        return self.count * softplus(a)

    def mean(self, a: tf.Tensor) -> tf.Tensor:
        return self.count * tf.sigmoid(a)

    def sample(self, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, salt: int) -> tf.Tensor:
        trials = _uniform(a, seed, time, self.columns * self.count, salt)
        trials = tf.reshape(trials, [-1, self.count, self.columns])
        return tf.reduce_sum(tf.cast(trials < tf.sigmoid(a)[:, None], a.dtype), 1)

    def log_base(self, s: tf.Tensor) -> tf.Tensor:
        log_choose = math.lgamma(self.count + 1) - tf.math.lgamma(s + 1.0) - tf.math.lgamma(self.count - s + 1.0)
        return tf.reduce_sum(log_choose, -1)

    def natural(self, mean: np.ndarray) -> np.ndarray:
        return Bernoulli(self.columns).natural(np.asarray(mean) / self.count)

    def supports(self, s: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
        return (s >= 0.0) & (s <= float(self.count)) & (s == s // 1)


class Categorical(Units):
    """Groups of K columns of which one is 1 (softmax units); K is `count`."""

    rule = "one-hot in every group of K columns, or the probabilities of one"
    hint = "Encode symbols as one-hot vectors, and give their number as visible_count."

    @property
    def num_groups(self) -> int:
        """Groups: columns / K."""
        return self.columns // self.count

    @property
    def num_values(self) -> int:
        return self.count**self.num_groups

    def _grouped(self, a: tf.Tensor) -> tf.Tensor:
        return tf.reshape(a, [-1, self.num_groups, self.count])

    def log_normaliser(self, a: tf.Tensor) -> tf.Tensor:
        return tf.reduce_logsumexp(self._grouped(a), -1)

    def mean(self, a: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.nn.softmax(self._grouped(a)), tf.shape(a))

    def sample(self, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, salt: int) -> tf.Tensor:
        uniform = _uniform(a, seed, time, self.num_groups, salt)
        picked = random.categorical_quantile(tf.nn.softmax(self._grouped(a)), uniform)
        return tf.reshape(tf.one_hot(picked, self.count, dtype=a.dtype), tf.shape(a))

    def natural(self, mean: np.ndarray) -> np.ndarray:
        return np.log(np.clip(mean, 0.005, 1.0))

    def supports(self, s: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
        grouped = tf.reshape(s, tf.concat([tf.shape(s)[:-1], [self.num_groups, self.count]], 0))
        total = tf.abs(tf.reduce_sum(grouped, -1, keepdims=True) - 1.0) < 1e-3
        return tf.reshape((grouped >= 0.0) & total, tf.shape(s))

    def states(self, index: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        powers = tf.constant([self.count**i for i in range(self.num_groups)], tf.int64)
        return tf.reshape(tf.one_hot(index[:, None] // powers % self.count, self.count, dtype=dtype), [-1, self.columns])


class Gaussian(Units):
    """Real s with variance 1: s ~ N(a, 1)."""

    rule = "finite"
    hint = "Standardise the data."

    def log_normaliser(self, a: tf.Tensor) -> tf.Tensor:
        return 0.5 * tf.square(a) + 0.5 * math.log(2.0 * math.pi)

    def mean(self, a: tf.Tensor) -> tf.Tensor:
        return tf.identity(a)

    def sample(self, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, salt: int) -> tf.Tensor:
        return a + _normal(a, seed, time, self.columns, salt)

    def log_base(self, s: tf.Tensor) -> tf.Tensor:
        return -0.5 * tf.reduce_sum(tf.square(s), -1)


class NoisyReLU(Units):
    """max(0, a + N(0, sigmoid(a))): stands for infinitely many Bernoulli units with inputs a - 0.5, a - 1.5, ...

    Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines". Their summed log-normaliser is
    -Li2(-e^a), the integral of softplus, but for about softplus'(a) / 24 a unit. Samples are approximate: there is no likelihood.
    """

    normalised = False
    rule = "at least 0"
    hint = "Shift the data, or choose visible='gaussian' for real values."

    def log_normaliser(self, a: tf.Tensor) -> tf.Tensor:
        return _softplus_integral(a)

    def mean(self, a: tf.Tensor) -> tf.Tensor:
        return tf.nn.softplus(a)

    def sample(self, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int, salt: int) -> tf.Tensor:
        return tf.nn.relu(a + tf.sqrt(tf.sigmoid(a)) * _normal(a, seed, time, self.columns, salt))

    def natural(self, mean: np.ndarray) -> np.ndarray:
        mean = np.maximum(np.asarray(mean), 1e-2)
        return mean + np.log(-np.expm1(-mean))  # the inverse of softplus

    def supports(self, s: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
        return s >= 0.0


@tf.custom_gradient
def _softplus_integral(a: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Integral of softplus up to a, -Li2(-e^a); above 0 by the inversion formula of the dilogarithm."""
    t = tf.math.log1p(tf.exp(-tf.abs(a)))  # at most log 2, where the series with Bernoulli numbers has 13 digits
    odd = 1.0 / 36.0, -1.0 / 3600.0, 1.0 / 211680.0, -1.0 / 10886400.0, 5.0 / (66.0 * math.factorial(11))
    series = tf.zeros_like(t)
    for coefficient in reversed(odd):
        series = series * tf.square(t) + coefficient
    below = t + 0.25 * tf.square(t) + series * t**3
    value = tf.where(a > 0.0, math.pi**2 / 6.0 + 0.5 * tf.square(a) - below, below)
    return value, lambda upstream: upstream * tf.nn.softplus(a)


UNITS: dict[str, type[Units]] = {
    "bernoulli": Bernoulli,
    "binomial": Binomial,
    "categorical": Categorical,
    "gaussian": Gaussian,
    "relu": NoisyReLU,
}


def make_units(argument: str, kind: str, columns: int, count: int) -> Units:
    """Units of a type in `columns` columns.

    Raises:
        ValueError: an unknown type, a count that it has no use for, or columns that are no whole number of groups.
    """
    checks.choice(argument, kind, UNITS)
    checks.at_least(1, **{f"{argument}_count": count})
    if kind == "categorical" and (count < 2 or columns % count):
        raise ValueError(
            f"`{argument}_count` must be the number of categories, at least 2, and divide the {columns} columns of "
            f"{argument}='categorical'; received {count}."
        )
    if kind not in ("binomial", "categorical") and count != 1:
        raise ValueError(f"`{argument}_count` is for binomial and categorical units; received {count} with {kind!r}.")
    return UNITS[kind](columns, count)
