"""Emissions of a hidden Markov model: p(x_t | z_t = k) of K states, their sufficient statistics, priors and closed-form M steps.

All conjugate families here are one mechanism. A family is  log p(x | k) = T(x) . eta_k + h(x)  with features T(x) `[F]` and
natural parameters eta `[K, F]`, so the log-probabilities of all steps and states are one product of matrices, and so are the
expected statistics  sum_t p(z_t = k) T(x_t)  `[K, F]` of an E step. A family then says, for given statistics, which parameters
maximise the likelihood or, with its conjugate prior, the posterior, and for variational Bayes what the expectation of eta is and
how far the posterior is from the prior (Beal 2003, "Variational algorithms for approximate Bayesian inference", ch. 2 and 3).

B rows, T steps, K states, D features, F statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers import heads
from tfseq.layers.mlp import MLP
from tfseq.layers.tables import ProbabilityTable
from tfseq.ops import random
from tfseq.ops.masking import fill
from tfseq.ops.tracing import is_single, wide

Covariance = Literal["full", "diag", "spherical", "tied"]
_LOG_2PI = math.log(2.0 * math.pi)
_MIN_STDDEV = 1e-3  # of the standard deviation of the data: a state may not collapse onto one value


class Emission(keras.layers.Layer):
    """Emission of `num_states` states.

    Args:
        num_states: K.
        event_dim: D, features of an observation (symbols, where the observations are symbols).
        prior: numbers of the family's conjugate prior; None for its default.
        mean, stddev: of the data, `[D]`: what the family starts from and what its prior is centred at.
        pooled_states: how many states in a row share what is tied; K by default.
    """

    is_symbol: ClassVar[bool] = False  # observations are `[...]` int, not vectors `[..., D]`
    methods: ClassVar[tuple[str, ...]] = ("gradient", "em", "map", "vb")  # of training that it has closed forms for
    takes_missing_features: ClassVar[bool] = True  # else a step is observed as a whole or not at all
    support: ClassVar[str] = "finite"
    hint: ClassVar[str] = ""
    prior_names: ClassVar[tuple[str, ...]] = ()
    default_prior: ClassVar[tuple[float, ...]] = ()

    def __init__(
        self,
        num_states: int,
        event_dim: int,
        *,
        prior: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        stddev: Sequence[float] | None = None,
        pooled_states: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": keras.config.dtype_policy().variable_dtype, **kwargs})
        checks.at_least(1, num_states=num_states, event_dim=event_dim)
        self.num_states, self.event_dim = num_states, event_dim
        self.prior = tuple(self.default_prior if prior is None else map(float, prior))
        if len(self.prior) != len(self.prior_names) or not all(0.0 < a < math.inf for a in self.prior):
            names = ", ".join(self.prior_names) or "nothing"
            raise ValueError(f"`emission_prior` must be positive numbers ({names}) for this emission; received {prior}.")
        for argument, value in (("mean", mean), ("stddev", stddev)):
            if value is not None and len(value) != event_dim:
                raise ValueError(
                    f"`{argument}` must have one number for each of the {event_dim} features; received {len(value)}."
                )
        self.data_mean = np.zeros(event_dim) if mean is None else np.asarray(mean, float)
        scale = np.ones(event_dim) if stddev is None else np.asarray(stddev, float)
        self.data_stddev = np.where(scale > 0.0, scale, 1.0)  # a constant feature has a scale of its own unit
        self.pooled_states = pooled_states or num_states
        self.create()
        self.built = True

    def create(self) -> None:
        """Makes the weights."""
        raise NotImplementedError

    def spec(self, *leading: int | None) -> tf.TensorSpec:
        """Shape and dtype of an observation with the given leading axes."""
        return tf.TensorSpec(
            leading if self.is_symbol else [*leading, self.event_dim], tf.int32 if self.is_symbol else tf.float32
        )

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        """Where x (an array or a tensor) is what the family can produce, bool of its shape."""
        return x == x

    def check(self, x: np.ndarray) -> None:
        """Raises ValueError where the finite array x holds what the family cannot produce."""
        supported = np.asarray(self.supports(x, self.event_dim))
        heads.check_support(x, supported, self.support.format(self.event_dim - 1), self.hint)

    def context(self, x: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor | None:
        """What the family conditions on beside the state, `[B, T, P]`, of x `[B, T, D]` and controls u `[B, T, U]`; or None."""
        return None

    # What is known of the observations ------------------------------------------------------------------------------

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None, context: tf.Tensor | None, natural: Any = None) -> tf.Tensor:
        """log p(observed part of x | z = k), `[B, T, K]`; with `natural`, these parameters in place of the family's own.

        Args:
            x: `[B, T, D]` (symbols `[B, T]`), finite everywhere.
            observed: bool of the shape of x, or None where all is.
            context: what regressions see beside it, `[B, T, P]`.
        """
        features, base = self.features(x, observed, context)
        natural = self.natural() if natural is None else natural
        found = tf.matmul(features, tf.cast(natural, features.dtype), transpose_b=True)
        return tf.cast(found + base[..., None], self.compute_dtype)

    def statistics(self, x: tf.Tensor, observed: Any, context: Any, probs: tf.Tensor, natural: Any = None) -> list[tf.Tensor]:
        """Expected sufficient statistics given p(z_t = k) `[B, T, K]` (zero at padded steps), one tensor for each shape.

        `natural`: the parameters that gave these probabilities, where they are not the family's own; what else is latent in a
        family (missing features, the component of a mixture) is inferred with them.
        """
        features, _ = self.features(x, observed, context)
        weights = tf.reshape(tf.cast(probs, features.dtype), [-1, self.num_states])
        return [tf.matmul(weights, tf.reshape(features, [-1, features.shape[-1]]), transpose_a=True)]

    # What a conjugate family defines --------------------------------------------------------------------------------

    @property
    def statistics_shapes(self) -> list[list[int]]:
        """Shapes of what `statistics` returns."""
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """Free parameters of all states."""
        raise NotImplementedError

    def features(self, x: tf.Tensor, observed: Any, context: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """T(x) `[B, T, F]` and h(x) `[B, T]`, both of the observed features alone."""
        raise NotImplementedError

    def natural(self) -> tf.Tensor:
        """eta `[K, F]`."""
        raise NotImplementedError

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        """The parameters of the highest likelihood (with `prior`, posterior density) given expected statistics."""
        raise NotImplementedError

    def log_prior(self) -> tf.Tensor:
        """log density of the prior at the parameters."""
        raise NotImplementedError

    def typical_statistics(self) -> list[tf.Tensor]:
        """E T(x) of one observation of each state, float64: what the parameters would be learned from."""
        raise NotImplementedError

    def expected_natural(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        """E eta `[K, F]` under the posterior that the statistics make of the prior."""
        raise NotImplementedError

    def use_mean(self, statistics: list[tf.Tensor]) -> None:
        """The posterior mean becomes the parameters."""
        raise NotImplementedError

    def divergence(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        """KL(posterior given the statistics || prior), nats, float64."""
        raise NotImplementedError

    # What is to be observed -----------------------------------------------------------------------------------------

    def means(self) -> tf.Tensor:
        """E[x | z = k] `[K, D]` (symbols: probabilities of the symbols)."""
        raise NotImplementedError

    def means_given(self, context: tf.Tensor) -> tf.Tensor:
        """E[x | z = k, context] `[..., K, D]` for what `context` `[..., P]` gives."""
        raise NotImplementedError

    @property
    def noise_dim(self) -> int:
        """How many uniform numbers one draw takes."""
        return 1 if self.is_symbol else self.event_dim

    def distribution(self) -> tfd.Distribution:
        """p(x | z = k) as a distribution of batch shape `[K]`."""
        raise ValueError(
            f"`distribution` has no form for a {type(self).__name__}, whose observations depend on more than the state."
        )

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """x given states `[...]` by quantiles of uniform numbers `[..., noise_dim]`: `[..., D]` (symbols `[...]`)."""
        raise NotImplementedError

    def complete(
        self, x: tf.Tensor, observed: tf.Tensor, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None
    ) -> tf.Tensor:
        """x where `observed`, else a draw given the state (and what was observed, where features depend on one another)."""
        return tf.where(observed, x, self.draw(states, uniform, context))


def _seen(x: tf.Tensor, observed: tf.Tensor | None) -> tf.Tensor:
    """`observed` as numbers of the dtype and shape of x."""
    return tf.ones_like(x) if observed is None else tf.cast(observed, x.dtype)


class BernoulliEmission(Emission):
    """Binary features, independent given the state: theta_kd ~ Beta(a, b)."""

    support = "0 or 1 everywhere for a Bernoulli emission"
    hint = "Binarise them (`x > 0`), or choose another emission."
    prior_names, default_prior = ("a", "b"), (1.0, 1.0)

    def create(self) -> None:
        # every feature of every state is a distribution over (on, off)
        concentration = np.broadcast_to(self.prior, [self.num_states * self.event_dim, 2])
        mean = np.tile(np.clip(self.data_mean, 0.01, 0.99), self.num_states)
        noise = keras.random.uniform([self.num_states * self.event_dim], 0.5, 1.5)
        on = np.clip(mean * np.asarray(noise), 0.01, 0.99)
        start = np.stack([on, 1.0 - on], 1)
        shape = [self.num_states * self.event_dim, 2]
        self.table = ProbabilityTable(shape, None, None, concentration, start, "emission", dtype=self.dtype_policy)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x == 0) | (x == 1)

    @property
    def statistics_shapes(self) -> list[list[int]]:
        return [[self.num_states, 2 * self.event_dim]]

    @property
    def num_parameters(self) -> int:
        return self.table.num_parameters

    def features(self, x: tf.Tensor, observed: Any, context: Any) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.cast(x, self.compute_dtype)
        seen = _seen(x, observed)
        return tf.concat([x * seen, (1.0 - x) * seen], -1), tf.zeros_like(x[..., 0])

    def _as_features(self, values: tf.Tensor) -> tf.Tensor:
        """`[K D, 2]` -> `[K, 2 D]`, first all (on)."""
        values = tf.reshape(values, [self.num_states, self.event_dim, 2])
        return tf.concat([values[..., 0], values[..., 1]], -1)

    def _as_counts(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        on, off = tf.split(statistics[0], 2, -1)
        return tf.reshape(tf.stack([on, off], -1), [-1, 2])

    def natural(self) -> tf.Tensor:
        # an event never seen keeps a finite log-probability: 0 * -inf would be NaN
        return self._as_features(tf.maximum(self.table.log_probs(), -700.0))

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        self.table.maximise(self._as_counts(statistics), prior)

    def log_prior(self) -> tf.Tensor:
        return self.table.log_prior()

    def typical_statistics(self) -> list[tf.Tensor]:
        return [tf.cast(tf.concat([self.means(), 1.0 - self.means()], -1), tf.float64)]

    def expected_natural(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        return self._as_features(self.table.expected_log_probs(self._as_counts(statistics)))

    def use_mean(self, statistics: list[tf.Tensor]) -> None:
        self.table.use_mean(self._as_counts(statistics))

    def divergence(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        return self.table.divergence(self._as_counts(statistics))

    def means(self) -> tf.Tensor:
        return tf.reshape(tf.exp(self.table.log_probs())[:, 0], [self.num_states, self.event_dim])

    def distribution(self) -> tfd.Distribution:
        return tfd.Independent(tfd.Bernoulli(probs=self.means(), dtype=self.compute_dtype), 1)

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        return tf.cast(tf.cast(uniform, self.compute_dtype) < tf.gather(self.means(), states), tf.float32)


class MultinomialEmission(Emission):
    """Counts of D outcomes at every step, their total given: rows of probabilities ~ Dirichlet(concentration)."""

    support = "a whole number of at least 0 everywhere for a multinomial emission, below 2^31"
    hint = "Were the counts scaled? Pass the raw counts."
    prior_names, default_prior = ("concentration",), (1.0,)
    takes_missing_features = False

    def create(self) -> None:
        shape, total = [self.num_states, self.event_dim], max(float(self.data_mean.sum()), 1e-6)
        base = (self.data_mean + 0.01 * total) if self.data_mean.any() else np.ones(self.event_dim)
        start = base * np.asarray(keras.random.uniform(shape, 0.5, 1.5))
        start /= start.sum(1, keepdims=True)
        self.table = ProbabilityTable(shape, None, None, self.prior[0], start, "emission", dtype=self.dtype_policy)

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return heads.is_count(x)

    @property
    def statistics_shapes(self) -> list[list[int]]:
        return [[self.num_states, self.event_dim]]

    @property
    def num_parameters(self) -> int:
        return self.table.num_parameters

    def features(self, x: tf.Tensor, observed: Any, context: Any) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.cast(x, self.compute_dtype)
        x *= _seen(x, observed)
        total = tf.reduce_sum(x, -1)
        return x, tf.math.lgamma(total + 1.0) - tf.reduce_sum(tf.math.lgamma(x + 1.0), -1)

    def natural(self) -> tf.Tensor:
        return tf.maximum(self.table.log_probs(), -700.0)

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        self.table.maximise(statistics[0], prior)

    def log_prior(self) -> tf.Tensor:
        return self.table.log_prior()

    def typical_statistics(self) -> list[tf.Tensor]:
        return [tf.cast(self.means(), tf.float64)]

    def expected_natural(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        return self.table.expected_log_probs(statistics[0])

    def use_mean(self, statistics: list[tf.Tensor]) -> None:
        self.table.use_mean(statistics[0])

    def divergence(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        return self.table.divergence(statistics[0])

    def means(self) -> tf.Tensor:
        """Of one trial: probabilities of the outcomes; a step's total is not modelled."""
        return tf.exp(self.table.log_probs())

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        """One trial a step, as an indicator of its outcome."""
        return tf.one_hot(_quantile(self.means(), states, uniform[..., 0]), self.event_dim)


def _quantile(probs: tf.Tensor, states: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The outcome of row `states` `[...]` of `probs` `[K, V]` whose cumulative probability first exceeds `uniform` `[...]`."""
    return random.categorical_quantile(tf.gather(probs, states), uniform)


class CategoricalEmission(MultinomialEmission):
    """Symbols 0 .. D-1, one a step; rows of probabilities ~ Dirichlet(concentration)."""

    support = "a symbol from 0 to {} everywhere"
    hint = "Is the vocabulary another one?"
    is_symbol = True

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return (x >= 0) & (x < event_dim) & (x % 1 == 0)

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None, context: tf.Tensor | None, natural: Any = None) -> tf.Tensor:
        natural = self.table.log_probs() if natural is None else tf.cast(natural, self.compute_dtype)
        found = tf.gather(tf.transpose(natural), x)
        return found if observed is None else fill(found, observed)

    def statistics(self, x: tf.Tensor, observed: Any, context: Any, probs: tf.Tensor, natural: Any = None) -> list[tf.Tensor]:
        probs = probs if observed is None else fill(probs, observed)
        rows = tf.reshape(probs, [-1, self.num_states])
        # one product with indicators: faster than adding rows up where the vocabulary is small
        if self.event_dim <= 256:
            return [tf.matmul(rows, tf.one_hot(tf.reshape(x, [-1]), self.event_dim, dtype=rows.dtype), transpose_a=True)]
        return [tf.transpose(tf.math.unsorted_segment_sum(rows, tf.reshape(x, [-1]), self.event_dim))]

    def distribution(self) -> tfd.Distribution:
        return tfd.Categorical(logits=self.table.log_probs())

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        return _quantile(self.means(), states, uniform[..., 0])


class PoissonEmission(Emission):
    """Counts, independent given the state: rate_kd ~ Gamma(shape, rate); shape / rate is the mean of the prior."""

    support = "a whole number of at least 0 everywhere for a Poisson emission, below 2^31"
    hint = "Were the counts scaled or averaged? Pass the raw counts."
    prior_names, default_prior = ("shape", "rate"), (1.0, 1e-3)

    def create(self) -> None:
        mean = np.maximum(self.data_mean, 0.1) * np.asarray(keras.random.uniform([self.num_states, self.event_dim], 0.5, 1.5))
        self.log_rate = self.add_weight(
            autocast=False, shape=mean.shape, initializer=keras.initializers.Constant(np.log(mean)), name="log_rate"
        )

    @classmethod
    def supports(cls, x: Any, event_dim: int) -> Any:
        return heads.is_count(x)

    @property
    def statistics_shapes(self) -> list[list[int]]:
        return [[self.num_states, 2 * self.event_dim]]

    @property
    def num_parameters(self) -> int:
        return self.num_states * self.event_dim

    def features(self, x: tf.Tensor, observed: Any, context: Any) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.cast(x, self.compute_dtype)
        seen = _seen(x, observed)
        return tf.concat([x * seen, seen], -1), -tf.reduce_sum(tf.math.lgamma(x * seen + 1.0), -1)

    def natural(self) -> tf.Tensor:
        log_rate = tf.convert_to_tensor(self.log_rate)
        return tf.concat([log_rate, -tf.exp(log_rate)], -1)

    def _set(self, rate: tf.Tensor) -> None:
        floor = 1e-6 * np.maximum(self.data_mean, 1e-3)  # a state that saw zeros alone still gives a count a probability
        self.log_rate.assign(tf.cast(tf.math.log(tf.maximum(rate, tf.constant(floor, rate.dtype))), self.log_rate.dtype))

    def _posterior(self, statistics: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        total, count = tf.split(tf.cast(statistics[0], tf.float64), 2, -1)
        return total + self.prior[0], count + self.prior[1]

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        total, count = tf.split(statistics[0], 2, -1)
        if prior:
            total, count = (a - b for a, b in zip(self._posterior(statistics), (1.0, 0.0), strict=True))
        rate = tf.exp(tf.cast(self.log_rate, count.dtype))
        self._set(tf.where(count > 0.0, tf.maximum(total, 0.0) / tf.maximum(count, 1e-30), rate))

    def log_prior(self) -> tf.Tensor:
        log_rate, (shape, rate) = tf.convert_to_tensor(self.log_rate), self.prior
        density = (shape - 1.0) * log_rate - rate * tf.exp(log_rate)
        return tf.reduce_sum(density + shape * math.log(rate) - math.lgamma(shape))

    def typical_statistics(self) -> list[tf.Tensor]:
        return [tf.cast(tf.concat([self.means(), tf.ones_like(self.means())], -1), tf.float64)]

    def expected_natural(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        shape, rate = self._posterior(statistics)
        return tf.concat([tf.math.digamma(shape) - tf.math.log(rate), -shape / rate], -1)

    def use_mean(self, statistics: list[tf.Tensor]) -> None:
        shape, rate = self._posterior(statistics)
        self._set(shape / rate)

    def divergence(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        (shape, rate), (shape0, rate0) = self._posterior(statistics), self.prior
        terms = (
            (shape - shape0) * tf.math.digamma(shape)
            - tf.math.lgamma(shape)
            + math.lgamma(shape0)
            + shape0 * (tf.math.log(rate) - math.log(rate0))
            + shape * (rate0 - rate) / rate
        )
        return tf.reduce_sum(terms)

    def means(self) -> tf.Tensor:
        return tf.exp(tf.convert_to_tensor(self.log_rate))

    def distribution(self) -> tfd.Distribution:
        return tfd.Independent(tfd.Poisson(log_rate=tf.convert_to_tensor(self.log_rate)), 1)

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        return heads.poisson_quantile(tf.gather(self.means(), states), uniform)


class NormalEmission(Emission):
    """Real features: x_t ~ N(W_k' c_t, Sigma_k), a linear regression on c_t = (1, what else `context` holds); plainly, on 1.

    Everything inside is in units of the data's standard deviation about its mean. With w = (c, x), the exponent is the quadratic
    form w' Q_k w, so the features are products of w with itself; they and their sums are in float64, since these squares cancel.
    For `"diag"` and `"spherical"` without regression only squares are needed. The prior is matrix-normal-inverse-Wishart (Bishop
    2006, ex. 2.45; Minka 2000, "Bayesian linear regression"): W | Sigma ~ MN(0, (kappa I)^-1, Sigma) and Sigma ~ IW(dof + q, S),
    q its size, with mean about the data's variance; where the covariance has no off-diagonal entries, every variance is an
    inverse Wishart of size 1.

    Args:
        covariance: `"full"`, `"diag"`, `"spherical"` (one variance a state) or `"tied"` (one full covariance of all states).
        num_lags: how many earlier observations the regression sees (autoregression); before the first is the data's mean.
        control_dim: U, size of the controls that it sees.
    """

    prior_names, default_prior = ("kappa", "dof"), (0.01, 2.0)

    def __init__(
        self,
        num_states: int,
        event_dim: int,
        covariance: Covariance = "full",
        num_lags: int = 0,
        control_dim: int = 0,
        **kwargs: Any,
    ) -> None:
        checks.choice("covariance", covariance, ("full", "diag", "spherical", "tied"))
        checks.at_least(0, num_lags=num_lags, control_dim=control_dim)
        self.covariance, self.num_lags, self.control_dim = covariance, num_lags, control_dim
        self.context_dim = num_lags * event_dim + control_dim
        # scales of size q, G of them, each of r outputs: full (q = D), diag (G = D), spherical (r = D)
        self._groups, self._repeats, self._size = {
            "diag": (event_dim, 1, 1),
            "spherical": (1, event_dim, 1),
        }.get(covariance, (1, 1, event_dim))
        super().__init__(num_states, event_dim, **kwargs)

    def create(self) -> None:
        num_regressors = 1 + self.context_dim
        self._plain = not self.context_dim and self._size == 1  # squares will do
        weights = np.zeros([self.num_states, num_regressors, self.event_dim])
        weights[:, 0] = np.asarray(keras.random.normal([self.num_states, self.event_dim]))
        self.weights_of_mean = self.add_weight(
            autocast=False, shape=weights.shape, initializer=keras.initializers.Constant(weights), name="mean"
        )
        # Cholesky factors of the precisions: exp of the diagonal, `[K, G, q, q]`
        shape = [self.num_states, self._groups, self._size, self._size]
        self.raw_precision = self.add_weight(autocast=False, shape=shape, initializer="zeros", name="precision")

    def context(self, x: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor | None:
        if not self.context_dim:
            return None
        y, parts = self._scaled(x), []
        for lag in range(1, self.num_lags + 1):
            parts.append(tf.pad(y, [[0, 0], [lag, 0], [0, 0]])[:, : tf.shape(y)[1]])
        return tf.concat([*parts, *([tf.cast(u, y.dtype)] if self.control_dim else [])], -1)

    @property
    def takes_missing_features(self) -> bool:  # type: ignore[override]
        """A regression on earlier steps would need them."""
        return not self.context_dim

    @property
    def statistics_shapes(self) -> list[list[int]]:
        size = 1 + self.context_dim + self.event_dim
        return [[self.num_states, 2 * self.event_dim + 1 if self._plain else size * size]]

    @property
    def num_parameters(self) -> int:
        scales = self._groups * self._size * (self._size + 1) // 2 * (1 if self.covariance == "tied" else self.num_states)
        return self.num_states * (1 + self.context_dim) * self.event_dim + scales

    # Parameters

    def _raw(self) -> tf.Tensor:
        """Cholesky factors of the precisions with the logarithms of their diagonal in its place, `[K, G, q, q]`."""
        raw = tf.convert_to_tensor(self.raw_precision)
        raw = self._pool(raw) / self.pooled_states if self.covariance == "tied" else raw
        return tf.where(np.eye(self._size, dtype=bool), tf.minimum(raw, -math.log(_MIN_STDDEV)), raw)

    def _factors(self) -> tf.Tensor:
        """Lower Cholesky factors of the precisions, `[K, G, q, q]`."""
        raw, eye = self._raw(), np.eye(self._size, dtype=bool)
        below = raw * tf.constant(np.tri(self._size, k=-1), raw.dtype)
        return tf.where(eye, tf.exp(tf.where(eye, raw, tf.zeros_like(raw))), below)

    def _pool(self, values: tf.Tensor) -> tf.Tensor:
        """Sums over the states that share their covariance, for each of them, `[K, ...]`."""
        grouped = tf.reshape(values, tf.concat([[-1, self.pooled_states], tf.shape(values)[1:]], 0))
        total = tf.reduce_sum(grouped, 1, keepdims=True)
        return tf.reshape(tf.broadcast_to(total, tf.shape(grouped)), tf.shape(values))

    def _precisions(self) -> tf.Tensor:
        factors = tf.cast(self._factors(), tf.float64)
        return tf.matmul(factors, factors, transpose_b=True)

    def _scaled(self, x: tf.Tensor) -> tf.Tensor:
        """x in units of the data's standard deviation about its mean, float64."""
        dtype = wide(self.compute_dtype)
        return (tf.cast(x, dtype) - tf.constant(self.data_mean, dtype)) / tf.constant(self.data_stddev, dtype)

    def means(self) -> tf.Tensor:
        mean = self.weights_of_mean[:, 0] * tf.constant(self.data_stddev, self.compute_dtype)
        return mean + tf.constant(self.data_mean, self.compute_dtype)

    def means_given(self, context: tf.Tensor) -> tf.Tensor:
        weights = tf.convert_to_tensor(self.weights_of_mean)
        scaled = weights[:, 0] + tf.einsum("...p,kpd->...kd", tf.cast(context, weights.dtype), weights[:, 1:])
        return scaled * tf.constant(self.data_stddev, weights.dtype) + tf.constant(self.data_mean, weights.dtype)

    def covariances(self) -> tf.Tensor:
        """Sigma `[K, D, D]`, in the data's units."""
        inverse = tf.linalg.inv(self._precisions())
        full = self._to_full(inverse) * tf.constant(self.data_stddev[:, None] * self.data_stddev)
        return tf.cast(full, self.compute_dtype)

    def distribution(self) -> tfd.Distribution:
        if self.context_dim:
            return super().distribution()
        return tfd.MultivariateNormalTriL(self.means(), tf.linalg.cholesky(self.covariances()))

    def _to_full(self, scales: tf.Tensor) -> tf.Tensor:
        """`[K, G, q, q]` -> `[K, D, D]`."""
        if self._size > 1 or self.event_dim == 1:
            return scales[:, 0]
        diagonal = tf.broadcast_to(scales[:, :, 0, 0], [self.num_states, self.event_dim])
        return tf.linalg.diag(diagonal)

    def assign(self, mean: Any, covariance: Any) -> None:
        """Sets means `[K, D]` and covariances `[K, D, D]`, in the data's units."""
        weights = np.zeros(self.weights_of_mean.shape)
        weights[:, 0] = (np.asarray(mean) - self.data_mean) / self.data_stddev
        scaled = np.asarray(covariance) / (self.data_stddev[:, None] * self.data_stddev)
        self.weights_of_mean.assign(weights)
        self._set_covariances(self._from_full(tf.constant(scaled, tf.float64)))

    def _from_full(self, full: tf.Tensor) -> tf.Tensor:
        if self._size > 1 or self.event_dim == 1:
            return full[:, None]
        diagonal = tf.linalg.diag_part(full)
        diagonal = tf.reduce_mean(diagonal, -1, keepdims=True) if self.covariance == "spherical" else diagonal
        return diagonal[..., None, None]

    def _set_covariances(self, scales: tf.Tensor) -> None:
        """Covariances `[K, G, q, q]` -> the weights; no variance falls below its floor."""
        if self._size == 1:
            raw = -0.5 * tf.math.log(tf.maximum(scales, _MIN_STDDEV**2))
            self.raw_precision.assign(tf.cast(raw, self.raw_precision.dtype))
            return
        values, vectors = tf.linalg.eigh(0.5 * (scales + tf.linalg.matrix_transpose(scales)))
        values = 1.0 / tf.maximum(values, _MIN_STDDEV**2)
        precision = tf.matmul(vectors * values[..., None, :], vectors, transpose_b=True)
        factors = tf.linalg.cholesky(precision)
        raw = tf.linalg.set_diag(factors, tf.math.log(tf.linalg.diag_part(factors)))
        self.raw_precision.assign(tf.cast(raw, self.raw_precision.dtype))

    # Likelihood

    def _mahalanobis(self, x: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        """Squared distances from the means in units of the covariance, `[B, T, K]`: from the differences `[B, T, K, D]`."""
        dtype, weights = self.compute_dtype, tf.convert_to_tensor(self.weights_of_mean)
        y = (tf.cast(x, dtype) - tf.constant(self.data_mean, dtype)) / tf.constant(self.data_stddev, dtype)
        mean = weights[:, 0]
        if self.context_dim:
            mean += tf.einsum("btp,kpd->btkd", tf.cast(context, dtype), weights[:, 1:])
        gap = y[:, :, None] - mean
        factors = self._factors()
        if self._size == 1:
            return tf.reduce_sum((gap * factors[:, :, 0, 0]) ** 2, -1)
        return tf.reduce_sum(tf.einsum("btkd,kde->btke", gap, factors[:, 0]) ** 2, -1)

    def _joint(self, x: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        """w = (1, context, x) `[..., 1 + P + D]`, float64, x scaled."""
        y = self._scaled(x)
        parts = [tf.ones_like(y[..., :1]), *([tf.cast(context, y.dtype)] if self.context_dim else []), y]
        return tf.concat(parts, -1)

    def features(self, x: tf.Tensor, observed: Any, context: Any) -> tuple[tf.Tensor, tf.Tensor]:
        if self._plain:
            y = self._scaled(x)
            seen = _seen(y, observed)
            found = tf.concat([y**2 * seen, y * seen, tf.ones_like(y[..., :1])], -1)
        else:
            w = self._joint(x, context)
            found = tf.reshape(w[..., :, None] * w[..., None, :], tf.concat([tf.shape(w)[:-1], [w.shape[-1] ** 2]], 0))
        jacobian = -math.log(2.0 * math.pi) * 0.5 * self.event_dim - float(np.log(self.data_stddev).sum())
        return found, tf.zeros_like(found[..., 0]) + jacobian

    def natural(self) -> tf.Tensor:
        weights, precisions = tf.cast(self.weights_of_mean, tf.float64), self._precisions()
        return self._natural(weights, precisions, self._log_dets(), None)

    def _log_dets(self) -> tf.Tensor:
        """log |precision| of all D outputs, `[K]`."""
        raw = tf.cast(self._raw(), wide(self.compute_dtype))
        return 2.0 * self._repeats * tf.reduce_sum(raw * tf.constant(np.eye(self._size), raw.dtype), [1, 2, 3])

    def _natural(self, weights: tf.Tensor, precisions: tf.Tensor, log_det: tf.Tensor, spread: tf.Tensor | None) -> tf.Tensor:
        """eta of -1/2 (x - W'c)' Lambda (x - W'c) - D/2 c' spread c + 1/2 log|Lambda|, without what `features` adds."""
        if self._plain:
            scale = tf.broadcast_to(precisions[:, :, 0, 0], [self.num_states, self.event_dim])
            mean = weights[:, 0]
            constant = 0.5 * log_det - 0.5 * tf.reduce_sum(scale * mean**2, -1)
            constant = constant if spread is None else constant - 0.5 * self.event_dim * spread[:, 0, 0]
            return tf.concat([-0.5 * scale, scale * mean, constant[:, None]], -1)
        full = self._to_full(precisions)
        product = tf.matmul(weights, full)  # W Lambda, [K, P, D]
        corner = tf.matmul(product, weights, transpose_b=True)
        corner = corner if spread is None else corner + self.event_dim * spread
        form = tf.concat([tf.concat([corner, -product], -1), tf.concat([-tf.linalg.matrix_transpose(product), full], -1)], 1)
        form = -0.5 * form
        form = tf.tensor_scatter_nd_add(form, [[k, 0, 0] for k in range(self.num_states)], 0.5 * log_det)  # w_0 = 1
        return tf.reshape(form, [self.num_states, -1])

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None, context: tf.Tensor | None, natural: Any = None) -> tf.Tensor:
        if is_single() and observed is None and natural is None:
            units = 0.5 * _LOG_2PI * self.event_dim + float(np.log(self.data_stddev).sum())
            return 0.5 * (tf.cast(self._log_dets(), self.compute_dtype) - self._mahalanobis(x, context)) - units
        if self.context_dim:  # a step is observed in full or not at all
            found = super().log_prob(x, None, context, natural)
            return found if observed is None else fill(found, tf.reduce_any(observed, -1))
        if observed is None or (self._plain and natural is None):
            found = super().log_prob(x, observed, context, natural)
            return found if observed is None else found - self._constant_of_missing(observed)
        return tf.cast(self._marginal(x, observed, natural)[0], self.compute_dtype)

    def _constant_of_missing(self, observed: tf.Tensor) -> tf.Tensor:
        """What `features` and `natural` count for a feature that was not observed: its share of the constants, `[B, T, K]`."""
        log_precision = tf.math.log(self._precisions()[:, :, 0, 0])
        mean, precision = tf.cast(self.weights_of_mean[:, 0], tf.float64), tf.exp(log_precision)
        share = 0.5 * (log_precision - precision * mean**2) - 0.5 * _LOG_2PI - tf.constant(np.log(self.data_stddev))
        missing = tf.cast(~observed, tf.float64)
        return tf.cast(tf.matmul(missing, share, transpose_b=True), self.compute_dtype)

    def _moments(self, natural: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(mean `[K, D]`, covariance `[K, D, D]`, a constant `[K]` that its Gaussian lacks), from `natural` where given."""
        if natural is None:
            return (
                tf.cast(self.weights_of_mean[:, 0], tf.float64),
                self._to_full(tf.linalg.inv(self._precisions())),
                tf.zeros([self.num_states], tf.float64),
            )
        natural = tf.cast(natural, tf.float64)
        if self._plain:
            squares, linear, constant = tf.split(natural, [self.event_dim, self.event_dim, 1], -1)
            covariance, mean, constant = tf.linalg.diag(-0.5 / squares), -0.5 * linear / squares, constant[:, 0]
        else:
            form = tf.reshape(natural, [self.num_states, 1 + self.event_dim, 1 + self.event_dim])
            covariance = tf.linalg.inv(-2.0 * form[:, 1:, 1:])
            mean = tf.linalg.matvec(covariance, form[:, 0, 1:] + form[:, 1:, 0])
            constant = form[:, 0, 0]
        log_det = -tf.linalg.logdet(covariance)
        own = 0.5 * log_det - 0.5 * tf.einsum("kd,kde,ke->k", mean, tf.linalg.inv(covariance), mean)
        return mean, covariance, constant - own

    def _marginal(self, x: tf.Tensor, observed: tf.Tensor, natural: Any = None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """log p(observed features | k) `[B, T, K]`; mean `[B, T, K, D]` and covariance `[B, T, K, D, D]` of all given them.

        Where the observed part O of Sigma is kept and 1 stands on the rest of the diagonal, the Cholesky factor is that of O.
        """
        mean, covariance, constant = self._moments(natural)
        seen = tf.cast(observed, tf.float64)[:, :, None]  # [B, T, 1, D]
        gap = (self._scaled(x)[:, :, None] - mean) * seen  # [B, T, K, D]
        kept = covariance * seen[..., :, None] * seen[..., None, :] + tf.linalg.diag(1.0 - seen)
        factor = tf.linalg.cholesky(kept)
        whitened = tf.linalg.triangular_solve(factor, gap[..., None])[..., 0]
        log_det = 2.0 * tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)), -1)
        units = tf.reduce_sum(seen * tf.constant(np.log(self.data_stddev) + 0.5 * _LOG_2PI), -1)
        log_prob = -0.5 * (tf.reduce_sum(whitened**2, -1) + log_det) - units
        log_prob += tf.where(tf.reduce_any(observed, -1)[..., None], constant, 0.0)
        gain = tf.linalg.cholesky_solve(factor, covariance * seen[..., :, None])  # Sigma_oo^-1 Sigma_o:, [.., D(o), D]
        filled = mean + tf.einsum("btko,btkod->btkd", gap, gain)
        rest = covariance - tf.einsum("btkod,kof->btkdf", gain * seen[..., :, None], covariance)
        return log_prob, filled, rest

    def statistics(self, x: tf.Tensor, observed: Any, context: Any, probs: tf.Tensor, natural: Any = None) -> list[tf.Tensor]:
        if observed is None:
            return super().statistics(x, observed, context, probs, natural)
        # a step of which nothing was observed says nothing; of others, missing features are latent too
        probs = tf.cast(fill(probs, tf.reduce_any(observed, -1)), tf.float64)
        if self.context_dim:
            return super().statistics(x, None, context, probs, natural)
        if self._plain:  # a missing feature has the state's own moments
            mean, covariance, _ = self._moments(natural)
            seen = tf.cast(observed, tf.float64)
            y = self._scaled(x) * seen
            linear, squares = (tf.einsum("btk,btd->kd", probs, a) for a in (y, y**2))
            missing = tf.einsum("btk,btd->kd", probs, 1.0 - seen)
            squares += missing * (mean**2 + tf.linalg.diag_part(covariance))
            count = tf.reduce_sum(probs, [0, 1])[:, None]
            return [tf.concat([squares, linear + missing * mean, count], -1)]
        _, filled, rest = self._marginal(x, observed, natural)
        seen = tf.cast(observed, tf.float64)[:, :, None]
        filled = self._scaled(x)[:, :, None] * seen + filled * (1.0 - seen)
        w = tf.concat([tf.ones_like(filled[..., :1]), filled], -1)
        products = tf.einsum("btk,btki,btkj->kij", probs, w, w)
        spread = tf.pad(tf.einsum("btk,btkde->kde", probs, rest), [[0, 0], [1, 0], [1, 0]])
        return [tf.reshape(products + spread, [self.num_states, -1])]

    # Learning

    def _moments_of(self, statistics: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Sums of c c' `[K, P, P]`, c x' `[K, P, D]` and x x' `[K, D, D]`, its diagonal alone where no more was kept."""
        found = tf.cast(statistics[0], tf.float64)
        if self._plain:
            squares, linear, count = tf.split(found, [self.event_dim, self.event_dim, 1], -1)
            return count[..., None], linear[:, None], tf.linalg.diag(squares)
        size = 1 + self.context_dim + self.event_dim
        joint = tf.reshape(found, [self.num_states, size, size])
        cut = 1 + self.context_dim
        return joint[:, :cut, :cut], joint[:, :cut, cut:], joint[:, cut:, cut:]

    def _posterior(self, statistics: list[tf.Tensor], prior: bool = True) -> tuple[tf.Tensor, ...]:
        """(W `[K, P, D]`, K_n `[K, P, P]`, S_n `[K, G, q, q]`, nu_n `[K]`); without the prior, those of the likelihood alone."""
        inner, cross, outer = self._moments_of(statistics)
        kappa = self.prior[0] if prior else 1e-10  # so little that a state without data keeps a solution
        precision = inner + kappa * tf.eye(1 + self.context_dim, dtype=tf.float64)
        weights = tf.linalg.solve(precision, cross)
        rest = outer - tf.matmul(weights, tf.matmul(precision, weights), transpose_a=True)
        scales = self._gathered(rest)
        count = inner[:, 0, 0] * self._repeats
        if self.covariance == "tied":
            scales, count = self._pool(scales), self._pool(count)
        nu, scale0 = self._prior_scale() if prior else (0.0, 0.0)
        return weights, precision, scales + scale0, count + nu

    def _prior_scale(self) -> tuple[float, tf.Tensor]:
        """(nu_0, S_0 `[q, q]`): the mean of the inverse Wishart, S_0 / (nu_0 - q - 1), is the data's variance."""
        nu = self.prior[1] + self._size
        return nu, max(nu - self._size - 1.0, 0.5) * tf.eye(self._size, dtype=tf.float64)

    def _gathered(self, full: tf.Tensor) -> tf.Tensor:
        """`[K, D, D]` -> sums over what shares a scale, `[K, G, q, q]`."""
        if self._size > 1 or self.event_dim == 1:
            return full[:, None]
        diagonal = tf.linalg.diag_part(full)
        return (diagonal if self._groups > 1 else tf.reduce_sum(diagonal, -1, keepdims=True))[..., None, None]

    def _regressors(self) -> int:
        """Coefficients that share one scale, beside its own counts: P r, and of all states where the scale is tied."""
        return (1 + self.context_dim) * self._repeats * (self.pooled_states if self.covariance == "tied" else 1)

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        weights, _, scales, count = self._posterior(statistics, prior)
        self._assign_mode(weights, scales, count, self._moments_of(statistics)[0][:, 0, 0], prior)

    def _assign_mode(self, weights: tf.Tensor, scales: tf.Tensor, count: tf.Tensor, own: tf.Tensor, prior: bool) -> None:
        """The mode given `_posterior`; `own`: steps of each state `[K]`. Without a prior, parameters without data stay."""
        alive, shared = (
            tf.ones_like(own, tf.bool) if prior else steps > 1e-8
            for steps in (own, self._pool(own) if self.covariance == "tied" else own)
        )
        divisor = count + (self._size + 1.0 + self._regressors() if prior else 0.0)
        self.weights_of_mean.assign(
            tf.where(alive[:, None, None], tf.cast(weights, self.compute_dtype), tf.convert_to_tensor(self.weights_of_mean))
        )
        old = tf.linalg.inv(self._precisions())
        covariance = scales / tf.maximum(divisor, 1e-30)[:, None, None, None]
        self._set_covariances(tf.where(shared[:, None, None, None], covariance, old))

    def log_prior(self) -> tf.Tensor:
        weights, precisions = tf.cast(self.weights_of_mean, tf.float64), self._precisions()
        nu, scale0 = self._prior_scale()
        kappa, log_det = self.prior[0], self._log_dets()
        # matrix normal of W given Sigma
        form = tf.einsum("kpd,kde,kpe->k", weights, self._to_full(precisions), weights)
        outputs = (1 + self.context_dim) * self.event_dim
        normal = 0.5 * ((1 + self.context_dim) * log_det + outputs * (math.log(kappa) - _LOG_2PI) - kappa * form)
        # inverse Wishart of every scale
        logs = tf.linalg.logdet(precisions)
        constant = 0.5 * nu * tf.linalg.logdet(scale0) - 0.5 * nu * self._size * math.log(2.0) - _log_gamma(0.5 * nu, self._size)
        wishart = 0.5 * (nu + self._size + 1.0) * logs - 0.5 * tf.einsum("ij,kgji->kg", scale0, precisions) + constant
        wishart = tf.reduce_sum(wishart, -1)
        if self.covariance == "tied":
            wishart /= self.pooled_states
        return tf.cast(tf.reduce_sum(normal + wishart), self.compute_dtype)

    def typical_statistics(self) -> list[tf.Tensor]:
        weights = tf.cast(self.weights_of_mean, tf.float64)
        inner = tf.eye(1 + self.context_dim, batch_shape=[self.num_states], dtype=tf.float64)  # regressors of scale 1
        outer = tf.matmul(weights, weights, transpose_a=True) + self._to_full(tf.linalg.inv(self._precisions()))
        if self._plain:
            return [tf.concat([tf.linalg.diag_part(outer), weights[:, 0], inner[:, 0]], -1)]
        joint = tf.concat([tf.concat([inner, weights], -1), tf.concat([tf.linalg.matrix_transpose(weights), outer], -1)], 1)
        return [tf.reshape(joint, [self.num_states, -1])]

    def expected_natural(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        weights, precision, scales, count = self._posterior(statistics)
        precisions = count[:, None, None, None] * tf.linalg.inv(scales)
        halves = 0.5 * (count[:, None] - np.arange(self._size))
        each = tf.reduce_sum(tf.math.digamma(halves), -1)[:, None] + self._size * math.log(2.0) - tf.linalg.logdet(scales)
        return self._natural(weights, precisions, self._repeats * tf.reduce_sum(each, -1), tf.linalg.inv(precision))

    def use_mean(self, statistics: list[tf.Tensor]) -> None:
        weights, _, scales, count = self._posterior(statistics)
        self.weights_of_mean.assign(tf.cast(weights, self.compute_dtype))
        # of the precision: the mean of the covariance may not exist
        self._set_covariances(scales / count[:, None, None, None])

    def divergence(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        weights, precision, scales, count = self._posterior(statistics)
        nu, scale0 = self._prior_scale()
        kappa, size = self.prior[0], self._size
        regressors = 1 + self.context_dim
        inverse = tf.linalg.inv(scales)
        expected = count[:, None, None, None] * inverse
        # KL of the matrix normals given the scales, in expectation
        form = tf.einsum("kpd,kde,kpe->k", weights, self._to_full(expected), weights)
        normal = 0.5 * (
            self.event_dim * kappa * tf.linalg.trace(tf.linalg.inv(precision))
            + kappa * form
            - self.event_dim * regressors
            + self.event_dim * (tf.linalg.logdet(precision) - regressors * math.log(kappa))
        )
        # KL of the Wisharts of the precisions
        count = count[:, None]
        halves = 0.5 * (count[..., None] - np.arange(size))
        digammas = tf.reduce_sum(tf.math.digamma(halves), -1)
        log_gammas = tf.reduce_sum(tf.math.lgamma(halves), -1) + 0.25 * size * (size - 1) * math.log(math.pi)
        ratio = tf.linalg.trace(tf.einsum("ij,kgjl->kgil", scale0, inverse))
        wishart = (
            0.5 * nu * (tf.linalg.logdet(scales) - tf.linalg.logdet(scale0))
            + 0.5 * count * (ratio - size)
            + _log_gamma(0.5 * nu, size)
            - log_gammas
            + 0.5 * (count - nu) * digammas
        )
        wishart = tf.reduce_sum(wishart, -1)
        if self.covariance == "tied":
            wishart /= self.pooled_states
        return tf.reduce_sum(normal + wishart)

    # Drawing

    def _location(self, states: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        """E[x | z, c] `[..., D]`, scaled units."""
        weights = tf.gather(self.weights_of_mean, states)
        if not self.context_dim:
            return weights[..., 0, :]
        c = tf.concat([tf.ones_like(context[..., :1]), context], -1)  # type: ignore[index]
        return tf.einsum("...p,...pd->...d", tf.cast(c, weights.dtype), weights)

    def _noise(self, states: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """Noise of covariance Sigma by standard normal quantiles."""
        normal = random.normal_quantile(tf.cast(uniform[..., : self.event_dim], self.compute_dtype))
        full = tf.linalg.cholesky(self._to_full(tf.linalg.inv(self._precisions())))
        return tf.linalg.matvec(tf.gather(tf.cast(full, self.compute_dtype), states), normal)

    def _unscaled(self, y: tf.Tensor) -> tf.Tensor:
        found = y * tf.constant(self.data_stddev, y.dtype) + tf.constant(self.data_mean, y.dtype)
        return tf.cast(found, tf.float32)

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        return self._unscaled(self._location(states, context) + self._noise(states, uniform))

    def complete(
        self, x: tf.Tensor, observed: tf.Tensor, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None
    ) -> tf.Tensor:
        """A draw of all, moved by what the observed features say of the others: x_m + Sigma_mo Sigma_oo^-1 (x_o - drawn_o).

        Matheron's rule: the result has the exact conditional distribution.
        """
        drawn = self.draw(states, uniform, context)
        if self._size == 1:
            return tf.where(observed, x, drawn)
        covariance = tf.gather(self._to_full(tf.linalg.inv(self._precisions())), states)  # [..., D, D]
        seen = tf.cast(observed, covariance.dtype)
        gap = tf.cast((x - drawn), covariance.dtype) / self.data_stddev * seen
        kept = covariance * seen[..., :, None] * seen[..., None, :] + tf.linalg.diag(1.0 - seen)
        change = tf.linalg.matvec(covariance, tf.linalg.cholesky_solve(tf.linalg.cholesky(kept), gap[..., None])[..., 0] * seen)
        moved = drawn + tf.cast(change * self.data_stddev, drawn.dtype)
        return tf.where(observed, x, moved)


def _gamma_quantile(shape: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Quantile of Gamma(shape, rate=shape), whose mean is 1, by bisection of its logarithm."""
    low, high = tf.fill(tf.shape(uniform), tf.cast(-40.0, shape.dtype)), tf.fill(tf.shape(uniform), tf.cast(5.0, shape.dtype))

    def halve(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        middle = 0.5 * (low + high)
        below = tf.math.igamma(shape, shape * tf.exp(middle)) < uniform
        return i + 1, tf.where(below, middle, low), tf.where(below, high, middle)

    # 45 / 2^32, the resolution of float32 at 1
    return tf.exp(tf.while_loop(lambda i, *_: i < 32, halve, (0, low, high))[2])


def _log_gamma(a: float, size: int) -> float:
    """log of the multivariate gamma function."""
    return 0.25 * size * (size - 1) * math.log(math.pi) + sum(math.lgamma(a - 0.5 * i) for i in range(size))


class StudentTEmission(NormalEmission):
    """Real features with heavy tails: x_t ~ t_nu(mu_k, Sigma_k).

    That is a Normal whose precision is multiplied by w ~ Gamma(nu / 2, nu / 2).

    EM with w latent (Liu and Rubin 1995, "ML estimation of the t distribution using EM and its extensions", sec. 3): weights
    E[w] = (nu + D) / (nu + mahalanobis^2); `df` nu is learned with them, one for each state.
    """

    takes_missing_features = False
    methods = ("gradient", "em", "map")

    def __init__(self, num_states: int, event_dim: int, covariance: Covariance = "diag", df: float = 4.0, **kwargs: Any) -> None:
        checks.positive(df=df)
        self.df_start = df
        super().__init__(num_states, event_dim, covariance, **kwargs)

    def create(self) -> None:
        super().create()
        self.log_df = self.add_weight(
            autocast=False,
            shape=(self.num_states,),
            initializer=keras.initializers.Constant(math.log(self.df_start)),
            name="log_df",
        )

    @property
    def num_parameters(self) -> int:
        return super().num_parameters + self.num_states

    @property
    def statistics_shapes(self) -> list[list[int]]:
        # beside the weighted ones: counts, and sum of log w - w
        return [*super().statistics_shapes, [self.num_states, 2]]

    def _distances(self, x: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        """Mahalanobis distances squared, `[B, T, K]`, float64."""
        if is_single():
            return self._mahalanobis(x, context)
        features, _ = self.features(x, None, context)
        form = self._natural(
            tf.cast(self.weights_of_mean, tf.float64), self._precisions(), tf.zeros([self.num_states], tf.float64), None
        )
        return tf.maximum(-2.0 * tf.matmul(features, form, transpose_b=True), 0.0)

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None, context: tf.Tensor | None, natural: Any = None) -> tf.Tensor:
        df, half = tf.exp(tf.cast(self.log_df, wide(self.compute_dtype))), 0.5 * self.event_dim
        constant = tf.math.lgamma(0.5 * df + half) - tf.math.lgamma(0.5 * df) - half * tf.math.log(df * math.pi)
        constant += 0.5 * self._log_dets() - float(np.log(self.data_stddev).sum())
        found = constant - (0.5 * df + half) * tf.math.log(1.0 + self._distances(x, context) / df)
        found = tf.cast(found, self.compute_dtype)
        return found if observed is None else fill(found, tf.reduce_any(observed, -1))

    def statistics(self, x: tf.Tensor, observed: Any, context: Any, probs: tf.Tensor, natural: Any = None) -> list[tf.Tensor]:
        probs = tf.cast(probs if observed is None else fill(probs, tf.reduce_any(observed, -1)), tf.float64)
        df = tf.exp(tf.cast(self.log_df, tf.float64))
        weight = (df + self.event_dim) / (df + self._distances(x, context))
        half = 0.5 * (df + self.event_dim)
        # E log w - E w, without which nu would not move
        about = tf.math.log(weight) + tf.math.digamma(half) - tf.math.log(half) - weight
        sums = tf.stack([tf.reduce_sum(probs, [0, 1]), tf.reduce_sum(probs * about, [0, 1])], -1)
        features, _ = self.features(x, None, context)
        flat = tf.reshape(probs * weight, [-1, self.num_states])
        return [tf.matmul(flat, tf.reshape(features, [-1, features.shape[-1]]), transpose_a=True), sums]

    def typical_statistics(self) -> list[tf.Tensor]:
        half = 0.5 * tf.exp(tf.cast(self.log_df, tf.float64))  # of w ~ Gamma(half, half)
        about = tf.math.digamma(half) - tf.math.log(half) - 1.0
        return [*super().typical_statistics(), tf.stack([tf.ones_like(half), about], -1)]

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        weighted, (count, about) = statistics[0], tf.unstack(tf.cast(statistics[1], tf.float64), axis=-1)
        # covariance: weighted scatter over the plain count
        weights, _, scales, total = self._posterior([weighted], prior)
        change = count - self._moments_of([weighted])[0][:, 0, 0]
        total += (self._pool(change) if self.covariance == "tied" else change) * self._repeats
        self._assign_mode(weights, scales, total, count, prior)
        # log(nu / 2) + 1 - digamma(nu / 2) + mean(E log w - E w) = 0 falls with nu: bisection on log nu
        mean = tf.math.divide_no_nan(about, count)
        low, high = (
            tf.fill([self.num_states], tf.constant(math.log(0.5), tf.float64)),
            tf.fill([self.num_states], tf.constant(math.log(200.0), tf.float64)),
        )
        for _ in range(40):
            middle = 0.5 * (low + high)
            half = 0.5 * tf.exp(middle)
            above = tf.math.log(half) + 1.0 - tf.math.digamma(half) + mean > 0.0
            low, high = tf.where(above, middle, low), tf.where(above, high, middle)
        self.log_df.assign(tf.where(count > 1e-8, tf.cast(low, self.log_df.dtype), tf.convert_to_tensor(self.log_df)))

    def _noise(self, states: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        df = tf.gather(tf.exp(tf.convert_to_tensor(self.log_df)), states)
        weight = _gamma_quantile(0.5 * df, tf.cast(uniform[..., -1], df.dtype))
        return super()._noise(states, uniform) / tf.sqrt(weight)[..., None]

    @property
    def noise_dim(self) -> int:
        return self.event_dim + 1

    def distribution(self) -> tfd.Distribution:
        scale = tf.linalg.LinearOperatorLowerTriangular(tf.linalg.cholesky(self.covariances()))
        return tfd.MultivariateStudentTLinearOperator(tf.exp(tf.convert_to_tensor(self.log_df)), self.means(), scale)

    complete = Emission.complete


class MixtureEmission(Emission):
    """Real features: a mixture of M Gaussians in each state, p(x | k) = sum_m c_km N(x; mu_km, Sigma_km).

    The components are the states of a `NormalEmission` of K M states; the weights a table with a Dirichlet prior.
    """

    prior_names, default_prior = ("kappa", "dof"), (0.01, 2.0)

    def __init__(
        self, num_states: int, event_dim: int, covariance: Covariance = "diag", num_components: int = 2, **kwargs: Any
    ) -> None:
        checks.at_least(1, num_components=num_components)
        self.covariance, self.num_components = covariance, num_components
        super().__init__(num_states, event_dim, **kwargs)

    def create(self) -> None:
        count = self.num_states * self.num_components
        shared = {"prior": self.prior, "mean": self.data_mean, "stddev": self.data_stddev, "dtype": self.dtype_policy}
        self.components = NormalEmission(
            count, self.event_dim, self.covariance, pooled_states=self.pooled_states * self.num_components, **shared
        )
        self.table = ProbabilityTable([self.num_states, self.num_components], label="mixture", dtype=self.dtype_policy)

    @property
    def takes_missing_features(self) -> bool:  # type: ignore[override]
        """As its components."""
        return self.components.takes_missing_features

    @property
    def statistics_shapes(self) -> list[list[int]]:
        return [[self.num_states, self.num_components], *self.components.statistics_shapes]

    @property
    def num_parameters(self) -> int:
        return self.table.num_parameters + self.components.num_parameters

    def _log_joint(self, x: tf.Tensor, observed: Any, natural: Any = None) -> tf.Tensor:
        """log c_km N(x; k, m), `[B, T, K, M]`."""
        weights, components = (self.table.log_probs(), None) if natural is None else natural
        found = self.components.log_prob(x, observed, None, components)
        shape = tf.concat([tf.shape(found)[:2], [self.num_states, self.num_components]], 0)
        return tf.reshape(found, shape) + tf.cast(weights, found.dtype)

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None, context: tf.Tensor | None, natural: Any = None) -> tf.Tensor:
        found = tf.reduce_logsumexp(self._log_joint(x, observed, natural), -1)
        # of nothing observed, the weights' sum is 1 but for variational Bayes: it says nothing either way
        return found if observed is None else fill(found, tf.reduce_any(observed, -1))

    def statistics(self, x: tf.Tensor, observed: Any, context: Any, probs: tf.Tensor, natural: Any = None) -> list[tf.Tensor]:
        probs = probs if observed is None else fill(probs, tf.reduce_any(observed, -1))
        parts = tf.nn.softmax(self._log_joint(x, observed, natural), -1) * probs[..., None]
        flat = tf.reshape(parts, tf.concat([tf.shape(parts)[:2], [self.num_states * self.num_components]], 0))
        components = None if natural is None else natural[1]
        return [
            tf.reduce_sum(tf.cast(parts, tf.float64), [0, 1]),
            *self.components.statistics(x, observed, None, flat, components),
        ]

    def maximise(self, statistics: list[tf.Tensor], prior: bool = False) -> None:
        self.table.maximise(statistics[0], prior)
        self.components.maximise(statistics[1:], prior)

    def log_prior(self) -> tf.Tensor:
        return self.table.log_prior() + self.components.log_prior()

    def typical_statistics(self) -> list[tf.Tensor]:
        weights = tf.exp(tf.cast(self.table.log_probs(), tf.float64))
        found = [tf.reshape(weights, [-1, 1]) * a for a in self.components.typical_statistics()]
        return [weights, *found]

    def expected_natural(self, statistics: list[tf.Tensor]) -> Any:
        return self.table.expected_log_probs(statistics[0]), self.components.expected_natural(statistics[1:])

    def use_mean(self, statistics: list[tf.Tensor]) -> None:
        self.table.use_mean(statistics[0])
        self.components.use_mean(statistics[1:])

    def divergence(self, statistics: list[tf.Tensor]) -> tf.Tensor:
        return self.table.divergence(statistics[0]) + self.components.divergence(statistics[1:])

    def means(self) -> tf.Tensor:
        means = tf.reshape(self.components.means(), [self.num_states, self.num_components, self.event_dim])
        return tf.einsum("km,kmd->kd", tf.exp(self.table.log_probs()), means)

    @property
    def noise_dim(self) -> int:
        return self.event_dim + 1

    def distribution(self) -> tfd.Distribution:
        shape = [self.num_states, self.num_components, self.event_dim]
        means = tf.reshape(self.components.means(), shape)
        factors = tf.reshape(tf.linalg.cholesky(self.components.covariances()), [*shape, self.event_dim])
        return tfd.MixtureSameFamily(tfd.Categorical(logits=self.table.log_probs()), tfd.MultivariateNormalTriL(means, factors))

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        component = _quantile(tf.exp(self.table.log_probs()), states, uniform[..., -1])
        return self.components.draw(states * self.num_components + component, uniform)

    def complete(
        self, x: tf.Tensor, observed: tf.Tensor, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The component is drawn given what was observed; `[B, ..., T]` leading axes of x and observed broadcast."""
        log_joint = self._log_joint_of(x, observed)
        probs = tf.nn.softmax(tf.gather(log_joint, states, batch_dims=states.shape.rank), -1)
        component = random.categorical_quantile(probs, uniform[..., -1])
        return self.components.complete(x, observed, states * self.num_components + component, uniform)

    def _log_joint_of(self, x: tf.Tensor, observed: tf.Tensor) -> tf.Tensor:
        """`_log_joint` of x `[..., D]` with any leading axes."""
        leading = tf.shape(x)[:-1]
        found = self._log_joint(tf.reshape(x, [1, -1, self.event_dim]), tf.reshape(observed, [1, -1, self.event_dim]))
        return tf.reshape(found, tf.concat([leading, [self.num_states, self.num_components]], 0))


class NeuralEmission(Emission):
    """Any head over a network of the state and, where there are any, of controls: p(x_t | z_t, u_t) = head(network(z_t, u_t)).

    Args:
        head: a name of `tfseq.layers.heads.HEADS`.
        hidden_dim: units of the network's ReLU layer and of the vector learned for each state.
        control_dim: U, size of the controls.
    """

    methods = ("gradient",)

    def __init__(
        self, num_states: int, event_dim: int, head: str = "bernoulli", hidden_dim: int = 32, control_dim: int = 0, **kwargs: Any
    ) -> None:
        if heads.head_class(head).is_joint:
            raise ValueError(f"`head` of a neural emission must have a factor for each feature; received {head!r}, a joint one.")
        self.head_name, self.hidden_dim, self.context_dim = head, hidden_dim, control_dim
        super().__init__(num_states, event_dim, **kwargs)

    def create(self) -> None:
        mean = list(map(float, self.data_mean)) if self.data_mean.any() else None
        self.head = heads.head_class(self.head_name)(self.event_dim, mean, dtype=self.dtype_policy, name="head")
        for name in ("is_symbol", "support", "hint"):
            setattr(self, name, getattr(self.head, name))
        self.network = MLP(self.hidden_dim, num_layers=1, dtype=self.dtype_policy, name="network")
        self.states = self.add_weight(
            autocast=False, shape=(self.num_states, self.hidden_dim), initializer="random_normal", name="states"
        )
        self.head(self.network(tf.zeros([1, self.hidden_dim + self.context_dim], self.compute_dtype)))

    def context(self, x: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor | None:
        return u if self.context_dim else None

    def supports(self, x: Any, event_dim: int) -> Any:  # type: ignore[override]
        return self.head.supports(x, event_dim)

    @property
    def num_parameters(self) -> int:
        return int(sum(np.prod(w.shape) for w in self.trainable_weights))

    def _distribution(self, context: tf.Tensor | None, states: tf.Tensor | None = None) -> tfd.Distribution:
        """Of all states, batch shape `[B, T, K, D]` (`[K, D]` without a context); or of the given states `[...]`."""
        vectors = tf.convert_to_tensor(self.states) if states is None else tf.gather(self.states, states)
        if self.context_dim:
            u = tf.cast(context, vectors.dtype)
            if states is None:
                u = tf.repeat(u[..., None, :], self.num_states, -2)
                vectors = tf.broadcast_to(vectors, tf.concat([tf.shape(u)[:-1], [self.hidden_dim]], 0))
            vectors = tf.concat([vectors, u], -1)
        return self.head(self.network(vectors))

    def log_prob(self, x: tf.Tensor, observed: tf.Tensor | None, context: tf.Tensor | None, natural: Any = None) -> tf.Tensor:
        observed = None if observed is None else observed[:, :, None]
        return self.head.log_prob(self._distribution(context), x[:, :, None], observed)

    def means_given(self, context: tf.Tensor) -> tf.Tensor:
        distribution = self._distribution(context)
        return distribution.probs_parameter() if self.is_symbol else distribution.mean()

    def means(self) -> tf.Tensor:
        distribution = self._distribution(tf.zeros([self.num_states, self.context_dim]), tf.range(self.num_states))
        return distribution.probs_parameter() if self.is_symbol else distribution.mean()

    def distribution(self) -> tfd.Distribution:
        if self.context_dim:
            return super().distribution()
        found = self._distribution(None)
        return found if self.is_symbol else tfd.Independent(found, 1)

    def draw(self, states: tf.Tensor, uniform: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        return self.head.sample(self._distribution(context, states), uniform)


EMISSIONS: dict[str, type[Emission]] = {
    "bernoulli": BernoulliEmission,
    "categorical": CategoricalEmission,
    "multinomial": MultinomialEmission,
    "poisson": PoissonEmission,
    "normal": NormalEmission,
    "mixture": MixtureEmission,
    "student-t": StudentTEmission,
    "neural": NeuralEmission,
}
