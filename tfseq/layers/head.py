"""What a head is: features in, a distribution of one observation out, and all that depends on the family of observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.ops.linear import project
from tfseq.ops.masking import fill

Scaling = Literal["feature", "global"]

MIN_STDDEV = 1e-4  # a density may not grow without bound on a repeated value


def check_support(x: np.ndarray, supported: np.ndarray, rule: str, hint: str, name: str = "x") -> None:
    """Raises ValueError where the finite array x is not in a family's support, bool of its shape."""
    if not supported.all():
        place = tuple(int(i) for i in np.argwhere(~supported)[0])
        raise ValueError(f"`{name}` must be {rule}; received {x[place]:.6g} at index {place}. {hint}")


def is_count(x: Any) -> Any:
    """Where x is a whole number from 0 that float32 log-factorials can be made of, bool of its shape."""
    return (x >= 0) & (x % 1 == 0) & (x < 2**31)


def log_odds(p: np.ndarray) -> np.ndarray:
    """log p / (1 - p); a feature never seen keeps a finite one."""
    p = np.clip(p, 1e-4, 1.0 - 1e-4)
    return np.log(p) - np.log1p(-p)


class Head(keras.layers.Layer):
    """Features `[..., F]` -> a distribution of x `[..., D]`: one independent factor a feature, unless the head `is_joint`.

    Args:
        event_dim: D, number of features (number of classes for `Categorical`).
        mean: mean of the encoded data, `[D]`; the head starts there. None starts at the family's default.
    """

    parameters_per_feature: ClassVar[int] = 1
    is_symbol: ClassVar[bool] = False  # observations are symbols `[...]` int, not vectors `[..., D]`
    is_joint: ClassVar[bool] = False  # features depend on each other, so the distribution has no factor for each
    supports_missing: ClassVar[bool] = True  # whether features may be summed out of the likelihood
    options: ClassVar[tuple[str, ...]] = ()  # the constructor's other arguments that `make_head` passes
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
        start = self.start()
        self.kernel = self.add_weight(shape=(input_shape[-1], len(start)), initializer="glorot_uniform", name="kernel")
        self.bias = self.add_weight(shape=(len(start),), initializer=keras.initializers.Constant(start), name="bias")
        self.built = True

    @property
    def sizes(self) -> list[int]:
        """Into which parts the raw parameters of a step are cut."""
        return [self.event_dim] * self.parameters_per_feature

    @property
    def num_uniforms(self) -> int:
        """How many uniform numbers `sample` and `complete` take for each step."""
        return 1 if self.is_symbol else self.event_dim

    @property
    def is_exact(self) -> bool:
        """Whether `log_prob` is exact, and not an estimate."""
        return True

    def start(self) -> np.ndarray:
        """Raw parameters of a step before training, `[sum of sizes]`."""
        start = np.zeros([self.parameters_per_feature, self.event_dim])
        if self.mean is not None:
            start[0] = self.link(np.asarray(self.mean))
        return start.reshape(-1)

    def call(self, features: tf.Tensor) -> Any:
        """Features `[..., F]` -> distribution of batch shape `[..., D]` (`[...]` for symbols and joint heads)."""
        parameters = project(tf.cast(features, self.compute_dtype), self.kernel, self.bias)
        return self.distribution(*tf.split(parameters, self.sizes, -1))

    def log_prob(self, distribution: Any, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        """log p(observed part of x), `[...]`, nats; `observed` bool of the shape of x. Unobserved values must be finite."""
        log_prob = distribution.log_prob(tf.cast(x, distribution.dtype))
        log_prob = log_prob if observed is None else fill(log_prob, observed)
        return log_prob if self.is_symbol else tf.reduce_sum(log_prob, -1)

    def complete(self, distribution: Any, x: tf.Tensor, observed: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """x where `observed`; elsewhere a sample given what was observed at the step. `uniform` as in `sample`."""
        if not self.supports_missing:
            self.refuse_missing(observed)
        drawn = self.sample(distribution, uniform)
        return tf.where(observed, tf.cast(x, drawn.dtype), drawn)

    def refuse_missing(self, observed: tf.Tensor | None) -> None:
        """Raises ValueError where `observed` is given."""
        if observed is not None:
            raise ValueError(
                f"`observed` must be None for a {type(self).__name__} head, whose features cannot be summed out one by one; "
                f"received a tensor of shape {observed.shape}. Choose a head with independent features for missing values."
            )

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
        if np.ndim(x[0]) != 2:
            raise ValueError(f"`x` must be vectors [T, D] for this head; received shape {list(np.shape(x[0]))}.")
        return int(np.shape(x[0])[-1])

    @classmethod
    def mean_of(
        cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None, scaling: Scaling = "feature"
    ) -> list[float]:
        """Mean of each feature over the observed entries of all steps, `[D]`; for real heads, see `RealHead.mean_of`."""
        rows, keep = _rows(x, observed)
        return list(np.where(keep, rows, 0.0).sum(0) / np.maximum(keep.sum(0), 1))

    @classmethod
    def scale_of(
        cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None, scaling: Scaling = "feature"
    ) -> list[float] | None:
        """What a real head divides the data by, `[D]`; None for other heads."""
        return None

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        """Where x (an array or a tensor) is what the family can produce, bool of its shape."""
        return x == x

    @classmethod
    def check(cls, x: np.ndarray, event_dim: int) -> None:
        """Raises ValueError where the finite array x holds what the family cannot produce."""
        check_support(x, cls.supports(x, event_dim), cls.support.format(event_dim - 1), cls.hint)

    # What a family defines -----------------------------------------------------------------------------------------
    def distribution(self, *parameters: tf.Tensor) -> Any:
        """Raw parameters, `[..., n]` for the n of `sizes` -> distribution."""
        raise NotImplementedError

    def link(self, mean: np.ndarray) -> np.ndarray:
        """Mean `[D]` -> the first raw parameter that gives it."""
        raise NotImplementedError

    def sample(self, distribution: Any, uniform: tf.Tensor) -> tf.Tensor:
        """The observation that `uniform` `[..., num_uniforms]` in (0, 1) stands for: a sample where that is random."""
        raise NotImplementedError


class RealHead(Head):
    """A head of real features: networks read (x - mean) / scale; densities and samples are those of x in its own units.

    Args:
        event_dim: D, number of features.
        mean: mean of the data, `[D]`; the head starts there.
        scale: what the data is divided by, `[D]`, above 0; the floor of standard deviations, 1e-4, is in these units. None
            leaves the data as it is: `encode` then does not subtract the mean either.
    """

    options: ClassVar[tuple[str, ...]] = ("scale",)
    unscaled: ClassVar[tuple[int, ...]] = ()  # features that are no real numbers

    def __init__(
        self, event_dim: int, mean: Sequence[float] | None = None, scale: Sequence[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(event_dim, mean, **kwargs)
        self.scale = None if scale is None else [float(s) for s in scale]
        if self.scale is not None and len(self.scale) != event_dim:
            raise ValueError(f"`scale` must have one number for each of the {event_dim} features; received {len(self.scale)}.")
        checks.positive(**{f"scale[{d}]": s for d, s in enumerate(self.scale or [])})

    def _units(self) -> tuple[np.ndarray, np.ndarray]:
        """What x is made of, offset + scale * (what networks see): both `[D]`."""
        offset, scale = np.zeros(self.event_dim), np.ones(self.event_dim)
        if self.scale is not None:
            real = [d for d in range(self.event_dim) if d not in self.unscaled]
            offset[real] = np.zeros(len(real)) if self.mean is None else np.asarray(self.mean)[real]
            scale[real] = np.asarray(self.scale)[real]
        return offset, scale

    def standardised_mean(self) -> np.ndarray:
        """Where the head starts, `[D]`, in the units that networks see."""
        offset, scale = self._units()
        return np.zeros(self.event_dim) if self.mean is None else (np.asarray(self.mean) - offset) / scale

    def encode(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.compute_dtype)
        if self.scale is None:
            return x
        offset, scale = self._units()
        return (x - tf.constant(offset, x.dtype)) / tf.constant(scale, x.dtype)

    def to_units(self, mean: tf.Tensor, raw_stddev: tf.Tensor, first: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and raw standard deviation of features `first`, ... as networks give them, `[..., D - first]` -> those of x."""
        stddev = tf.nn.softplus(raw_stddev) + MIN_STDDEV
        if self.scale is None:
            return mean, stddev
        offset, scale = (tf.constant(a[first:], mean.dtype) for a in self._units())
        return offset + scale * mean, scale * stddev

    @classmethod
    def mean_of(
        cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None, scaling: Scaling = "feature"
    ) -> list[float]:
        """Mean over the observed entries of all steps, `[D]`: of each feature, or of all (`"global"`)."""
        checks.choice("scaling", scaling, ("feature", "global"))
        means = super().mean_of(x, observed)
        if scaling == "feature":
            return means
        rows, keep = _rows(x, observed)
        real = [d for d in range(rows.shape[1]) if d not in cls.unscaled]
        pooled = float(rows[:, real][keep[:, real]].mean()) if keep[:, real].any() else 0.0
        return [pooled if d in real else mean for d, mean in enumerate(means)]

    @classmethod
    def scale_of(
        cls, x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None = None, scaling: Scaling = "feature"
    ) -> list[float]:
        """Standard deviation over the observed entries of all steps, `[D]`: of each feature, or of all (`"global"`).

        Raises:
            ValueError: one is 0 or not finite.
        """
        rows, keep = _rows(x, observed)
        mean = np.asarray(cls.mean_of(x, observed, scaling))
        square = np.where(keep, np.where(keep, rows, 0.0) - mean, 0.0) ** 2
        real = [d for d in range(rows.shape[1]) if d not in cls.unscaled]
        total, count = square[:, real].sum(0), keep[:, real].sum(0)
        if scaling == "global":
            total, count = total.sum(keepdims=True), count.sum(keepdims=True)
        found = np.sqrt(total / np.maximum(count, 1))
        # rounding leaves a constant column a deviation of about its size times 1e-16
        level = np.abs(mean[real]) if scaling == "feature" else np.abs(mean[real]).max(keepdims=True)
        bad = ~np.isfinite(found) | (found <= 1e-12 * level)
        if bad.any():
            which = "all columns together" if scaling == "global" else f"column(s) {[real[d] for d in np.flatnonzero(bad)]}"
            raise ValueError(
                f"`x` must vary in every column that is scaled; {which} of its {rows.shape[1]} have standard deviation "
                f"{[float(s) for s in found[bad]]}. Is a column constant or never observed? Drop it, or do not scale."
            )
        scale = np.ones(rows.shape[1])
        scale[real] = found
        return [float(s) for s in scale]


def _rows(x: Sequence[np.ndarray], observed: Sequence[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
    """All steps of all sequences, float64, and which of their entries were observed: both `[N, D]`."""
    rows = np.concatenate(x).astype(np.float64)
    return rows, np.ones(rows.shape, bool) if observed is None else np.concatenate(observed).astype(bool)
