"""Heads turn features into a `tfd.Distribution`: the only place where an observation family is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.ops.linear import project
from tfseq.ops.masking import fill

MIN_STDDEV = 1e-4  # a density may not grow without bound on a repeated value
_POISSON_MAX = 4096  # largest count that is drawn


def check_support(x: np.ndarray, supported: np.ndarray, rule: str, hint: str) -> None:
    """Raises ValueError where the finite array x is not in a family's support, bool of its shape."""
    if not supported.all():
        place = tuple(int(i) for i in np.argwhere(~supported)[0])
        raise ValueError(f"`x` must be {rule}; received {x[place]:.6g} at index {place}. {hint}")


class Head(keras.layers.Layer):
    """Features `[..., F]` -> a distribution with one independent factor a feature, batch shape `[..., D]`.

    Args:
        event_dim: D, number of features (number of classes for `Categorical`).
        mean: mean of the encoded data, `[D]`; the head starts there. None starts at the family's default.
    """

    parameters_per_feature: ClassVar[int] = 1
    is_symbol: ClassVar[bool] = False  # observations are symbols `[...]` int, not vectors `[..., D]`
    support: ClassVar[str] = "finite"  # in words, for errors; {} is the last symbol
    hint: ClassVar[str] = ""  # the likely cause of values outside it

    def __init__(self, event_dim: int, mean: Sequence[float] | None = None, **kwargs: Any) -> None:
        # log-probabilities in the dtype of the weights: float32 under mixed precision, float64 where they are
        super().__init__(**{"dtype": keras.config.dtype_policy().variable_dtype, **kwargs})
        checks.at_least(1, event_dim=event_dim)
        if mean is not None and len(mean) != event_dim:
            raise ValueError(f"`mean` must have one number for each of the {event_dim} features; received {len(mean)}.")
        self.event_dim = event_dim
        self.mean = None if mean is None else [float(m) for m in mean]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = self.parameters_per_feature * self.event_dim
        start = np.zeros([self.parameters_per_feature, self.event_dim])
        if self.mean is not None:
            start[0] = self.link(np.asarray(self.mean))
        self.kernel = self.add_weight(shape=(input_shape[-1], width), initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(width,), initializer=keras.initializers.Constant(start.reshape(-1)), name="bias")
        self.built = True

    def call(self, features: tf.Tensor) -> tfd.Distribution:
        """Features `[..., F]` -> distribution of batch shape `[..., D]` (`[...]` for symbols)."""
        parameters = project(tf.cast(features, self.compute_dtype), self.kernel, self.bias)
        return self.distribution(*tf.split(parameters, self.parameters_per_feature, -1))

    def log_prob(self, distribution: tfd.Distribution, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        """log p(observed part of x), `[...]`, nats; `observed` bool of the shape of x. Unobserved values must be finite."""
        log_prob = distribution.log_prob(tf.cast(x, distribution.dtype))
        log_prob = log_prob if observed is None else fill(log_prob, observed)
        return log_prob if self.is_symbol else tf.reduce_sum(log_prob, -1)

    def encode(self, x: tf.Tensor) -> tf.Tensor:
        """Observation -> real vector `[..., D]` for a network to read."""
        return tf.cast(x, self.compute_dtype)

    def spec(self, *leading: int | None) -> tf.TensorSpec:
        """Shape and dtype of an observation with the given leading axes."""
        return tf.TensorSpec(
            leading if self.is_symbol else [*leading, self.event_dim], tf.int32 if self.is_symbol else tf.float32
        )

    @classmethod
    def event_dim_of(cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None) -> int:
        """D of a data set of sequences `[T_i, D]`."""
        return int(x[0].shape[-1])

    @classmethod
    def mean_of(cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None) -> list[float]:
        """Mean of each feature over the observed entries of all steps, `[D]`."""
        rows = np.concatenate(x).astype(np.float64)
        keep = np.ones(rows.shape, bool) if observed is None else np.concatenate(observed)
        return list(np.where(keep, rows, 0.0).sum(0) / np.maximum(keep.sum(0), 1))

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        """Where x (an array or a tensor) is what the family can produce, bool of its shape."""
        return x == x

    @classmethod
    def check(cls, x: np.ndarray, event_dim: int) -> None:
        """Raises ValueError where the finite array x holds what the family cannot produce."""
        check_support(x, cls.supports(x, event_dim), cls.support.format(event_dim - 1), cls.hint)

    # What a family defines -----------------------------------------------------------------------------------------
    def distribution(self, *parameters: tf.Tensor) -> tfd.Distribution:
        """Raw parameters, each `[..., D]` -> distribution."""
        raise NotImplementedError

    def link(self, mean: np.ndarray) -> np.ndarray:
        """Mean `[D]` -> the first raw parameter that gives it."""
        raise NotImplementedError

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        """The quantiles of `uniform` `[..., D]` (`[..., 1]` for symbols) in (0, 1): a sample where that is random."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("tfseq")
class Bernoulli(Head):
    """Binary features: p(x_d = 1) = sigmoid(a_d)."""

    support = "0 or 1 everywhere for a Bernoulli head"
    hint = "Did you pass MIDI velocities or real values? Binarise them (`x > 0`), or choose another head."

    def distribution(self, logits: tf.Tensor) -> tfd.Distribution:
        return tfd.Bernoulli(logits=logits, dtype=self.compute_dtype)

    def link(self, mean: np.ndarray) -> np.ndarray:
        p = np.clip(mean, 1e-4, 1.0 - 1e-4)  # a feature never seen keeps a finite log-odds
        return np.log(p) - np.log1p(-p)

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        return tf.cast(uniform < tf.cast(distribution.probs_parameter(), uniform.dtype), tf.float32)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x == 0) | (x == 1)


@keras.saving.register_keras_serializable("tfseq")
class Normal(Head):
    """Real features: x_d ~ N(a_d, (softplus(b_d) + 1e-4)^2)."""

    parameters_per_feature = 2

    def distribution(self, mean: tf.Tensor, scale: tf.Tensor) -> tfd.Distribution:
        return tfd.Normal(mean, tf.nn.softplus(scale) + MIN_STDDEV)

    def link(self, mean: np.ndarray) -> np.ndarray:
        return mean

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        return tf.cast(distribution.quantile(tf.cast(uniform, distribution.dtype)), tf.float32)


def poisson_quantile(rate: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The smallest count whose cumulative probability reaches `uniform`, by bisection; float32 of the shape of `rate`."""
    uniform = tf.cast(uniform, rate.dtype)
    low, high = tf.zeros_like(rate) - 1.0, tf.zeros_like(rate) + float(_POISSON_MAX)
    for _ in range(13):  # 2^13 > _POISSON_MAX + 1
        middle = tf.floor((low + high) / 2.0)
        reached = tf.math.igammac(tf.maximum(middle, 0.0) + 1.0, rate) >= uniform
        reached = reached & (middle >= 0.0)
        low, high = tf.where(reached, low, middle), tf.where(reached, middle, high)
    return tf.cast(high, tf.float32)


@keras.saving.register_keras_serializable("tfseq")
class Poisson(Head):
    """Counts: x_d ~ Poisson(exp(a_d))."""

    support = "a whole number of at least 0 everywhere for a Poisson head"
    hint = "Were the counts scaled or averaged? Pass the raw counts."

    def distribution(self, log_rate: tf.Tensor) -> tfd.Distribution:
        return tfd.Poisson(log_rate=log_rate)

    def link(self, mean: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(mean, 1e-4))

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        return poisson_quantile(distribution.rate_parameter(), uniform)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x >= 0) & (x % 1 == 0)


@keras.saving.register_keras_serializable("tfseq")
class Categorical(Head):
    """Symbols 0 .. D-1, one a step: p(x = k) = softmax(a)_k; x is `[...]` int."""

    support = "a symbol from 0 to {} everywhere"
    hint = "Is the vocabulary another one?"

    is_symbol = True

    def distribution(self, logits: tf.Tensor) -> tfd.Distribution:
        return tfd.Categorical(logits=logits, dtype=tf.int32)

    def link(self, mean: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(mean, 1e-4))

    def encode(self, x: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(x, self.event_dim, dtype=self.compute_dtype)

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        below = tf.cumsum(distribution.probs_parameter(), axis=-1) <= tf.cast(uniform, distribution.logits.dtype)
        return tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32), -1), self.event_dim - 1)  # rounding may leave the sum below 1

    @classmethod
    def event_dim_of(cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None) -> int:
        return 1 + int(cls._seen(x, observed).max(initial=0))

    @classmethod
    def mean_of(cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None) -> list[float]:
        symbols = cls._seen(x, observed)
        return list(np.bincount(symbols, minlength=cls.event_dim_of(x, observed)) / max(len(symbols), 1))

    @staticmethod
    def _seen(x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None) -> np.ndarray:
        """The observed symbols of all steps; what stands in the place of a missing one is no symbol."""
        symbols = np.concatenate(x)
        return symbols if observed is None else symbols[np.concatenate(observed)]

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x >= 0) & (x < event_dim) & (x % 1 == 0)


HEADS: dict[str, type[Head]] = {"bernoulli": Bernoulli, "normal": Normal, "poisson": Poisson, "categorical": Categorical}


def head_class(name: str) -> type[Head]:
    """The head of that name; ValueError with the nearest name."""
    checks.choice("head", name, HEADS)
    return HEADS[name]
