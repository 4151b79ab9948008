"""Heads turn features into a distribution of observations, by family: the only place where one is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.special
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers.head import MIN_STDDEV, Head, RealHead, Scaling, check_support, is_count, log_odds
from tfseq.layers.mixtures import BivariatePen, GaussianMixture
from tfseq.layers.nade import NADE
from tfseq.layers.rbm_head import RBMHead
from tfseq.ops import random
from tfseq.ops.tracing import is_single

__all__ = [
    "HEADS",
    "MIN_STDDEV",
    "NADE",
    "Bernoulli",
    "BivariatePen",
    "Categorical",
    "GaussianMixture",
    "Head",
    "Normal",
    "Poisson",
    "RBMHead",
    "RealHead",
    "Scaling",
    "check_support",
    "head_class",
    "make_head",
    "poisson_quantile",
]

# Above this rate the normal approximation is nearer to the quantiles than float32 probabilities are (measured against scipy).
_MAX_EXACT_RATE = 512.0
_MAX_COUNT = 2.0**31 - 128.0  # the largest float32 that is in the support


@keras.saving.register_keras_serializable("tfseq")
class Bernoulli(Head):
    """Binary features: p(x_d = 1) = sigmoid(a_d)."""

    support = "0 or 1 everywhere for a Bernoulli head"
    hint = "Did you pass MIDI velocities or real values? Binarise them (`x > 0`), or choose another head."

    def distribution(self, logits: tf.Tensor) -> tfd.Distribution:
        return tfd.Bernoulli(logits=logits, dtype=self.compute_dtype)

    def link(self, mean: np.ndarray) -> np.ndarray:
        return log_odds(mean)

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        return tf.cast(uniform < tf.cast(distribution.probs_parameter(), uniform.dtype), tf.float32)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x == 0) | (x == 1)


@keras.saving.register_keras_serializable("tfseq")
class Normal(RealHead):
    """Real features: x_d ~ N(a_d, (softplus(b_d) + 1e-4)^2), in units of `scale` around `mean` where there is a scale."""

    parameters_per_feature = 2

    def distribution(self, mean: tf.Tensor, raw_stddev: tf.Tensor) -> tfd.Distribution:
        return tfd.Normal(*self.to_units(mean, raw_stddev))

    def link(self, mean: np.ndarray) -> np.ndarray:
        return self.standardised_mean()

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        noise = random.normal_quantile(tf.cast(uniform, distribution.dtype))
        return tf.cast(distribution.loc + distribution.scale * noise, tf.float32)


def poisson_quantile(rate: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The smallest count whose cumulative probability reaches `uniform`, in (0, 1); float32 of the shape of both.

    Above a rate of 512 by the expansion of Cornish and Fisher, at most one count away (while float32 tells counts apart).
    """
    uniform = tf.cast(uniform, rate.dtype)
    exact = _exact_poisson_quantile(tf.minimum(rate, _MAX_EXACT_RATE), uniform)
    large = tf.clip_by_value(rate, _MAX_EXACT_RATE, 2.0**31)
    z, root = random.normal_quantile(uniform), tf.sqrt(large)
    offset = root * z + (z * z - 1.0) / 6.0 + z * (1.0 - z * z) / (72.0 * root)
    # P(x <= k) is the normal probability of k + 1/2, so counts are rounded
    approximate = tf.clip_by_value(tf.floor(large + offset + 0.5), 0.0, _MAX_COUNT)
    return tf.cast(tf.where(rate <= _MAX_EXACT_RATE, exact, approximate), tf.float32)


def _exact_poisson_quantile(rate: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The quantile by bisection, for rates up to `_MAX_EXACT_RATE`; of dtype and shape of `rate`."""
    largest = 1023  # in float32 no probability is left above it
    if is_single():  # LiteRT has no gamma function: the probabilities of all counts are added up
        counts = np.arange(largest + 1.0)
        log_factorials = tf.constant(scipy.special.gammaln(counts + 1.0), rate.dtype)
        log_prob = tf.math.log(tf.maximum(rate, 1e-30))[..., None] * tf.constant(counts, rate.dtype) - log_factorials
        total = tf.cumsum(tf.exp(log_prob - rate[..., None]), axis=-1)
        # rounding may leave the sum of all below the number drawn
        return tf.reduce_sum(tf.cast(total < uniform[..., None] * total[..., -1:], rate.dtype), -1)
    low, high = tf.zeros_like(rate) - 1.0, tf.zeros_like(rate) + float(largest)
    for _ in range(10):  # 2^10 = largest + 1
        middle = tf.floor((low + high) / 2.0)
        reached = tf.math.igammac(tf.maximum(middle, 0.0) + 1.0, rate) >= uniform
        reached = reached & (middle >= 0.0)
        low, high = tf.where(reached, low, middle), tf.where(reached, middle, high)
    return high


@keras.saving.register_keras_serializable("tfseq")
class Poisson(Head):
    """Counts: x_d ~ Poisson(exp(a_d))."""

    support = "a whole number of at least 0 everywhere for a Poisson head, below 2^31"
    hint = "Were the counts scaled or averaged? Pass the raw counts."

    def distribution(self, log_rate: tf.Tensor) -> tfd.Distribution:
        return tfd.Poisson(log_rate=log_rate)

    def link(self, mean: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(mean, 1e-4))

    def sample(self, distribution: tfd.Distribution, uniform: tf.Tensor) -> tf.Tensor:
        return poisson_quantile(distribution.rate_parameter(), uniform)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return is_count(x)


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
    def mean_of(
        cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None, scaling: Scaling = "feature"
    ) -> list[float]:
        symbols = cls._seen(x, observed)
        return list(np.bincount(symbols, minlength=cls.event_dim_of(x, observed)) / max(len(symbols), 1))

    @staticmethod
    def _seen(x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None) -> np.ndarray:
        """The observed symbols of all steps; what stands in the place of a missing one is no symbol."""
        symbols = np.concatenate(x)
        if symbols.ndim != 1 or (symbols.size and symbols.dtype.kind not in "iu"):
            raise ValueError(
                f"`x` must be symbols [T] of whole numbers for this head; received {symbols.dtype} of shape "
                f"[T{''.join(f', {n}' for n in symbols.shape[1:])}]."
            )
        symbols = symbols.astype(np.int64)
        return symbols if observed is None else symbols[np.concatenate(observed)]

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x >= 0) & (x < event_dim) & (x % 1 == 0)


HEADS: dict[str, type[Head]] = {
    "bernoulli": Bernoulli,
    "normal": Normal,
    "poisson": Poisson,
    "categorical": Categorical,
    "mixture": GaussianMixture,
    "pen": BivariatePen,
    "nade": NADE,
    "rbm": RBMHead,
}


def head_class(name: str) -> type[Head]:
    """The head of that name; ValueError with the nearest name."""
    checks.choice("head", name, HEADS)
    return HEADS[name]


def make_head(
    family: str,
    event_dim: int,
    mean: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    *,
    num_components: int = 20,
    units: int = 64,
    **kwargs: Any,
) -> Head:
    """The head of that name, given those of the arguments that it takes; `kwargs` are the layer's.

    Args:
        family: a name of `HEADS`.
        event_dim: D, number of features or symbols.
        mean: mean of the data, `[D]`, where the head starts.
        scale: of real data, `[D]`; see `RealHead`.
        num_components: K of `"mixture"` and `"pen"`.
        units: hidden units of `"nade"` and `"rbm"`.
        **kwargs: the layer's name and dtype, and what only one head takes.
    """
    made = head_class(family)
    given = {"scale": scale, "num_components": num_components, "units": units}
    return made(event_dim, mean, **{option: given[option] for option in made.options}, **kwargs)
