"""The linear-Gaussian state-space model: a Gaussian state that moves linearly, seen through a linear map and Gaussian noise.

    z_1 ~ N(m, P),   z_t = A z_{t-1} + b + w_t,  w_t ~ N(0, Q)                                                    (1)
    x_t = C z_t + d + v_t,  v_t ~ N(0, R)                                                                         (2)

All of its inference is exact (Kalman 1960; Rauch, Tung and Striebel 1965) and lives in `ops/kalman.py`; this file holds the
parameters, their training and what is served. It is what deep state-space models are held against: their likelihoods are
bounds, its own is not. Features are standardised inside (2); likelihoods and all that users see of x are in the data's units.
Public arrays are `[B, T, ...]`: B sequences, T steps, Z latent, D features, S samples, H steps to come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, counts, graph
from tfseq.models.closed_form import ClosedFormModel
from tfseq.ops import kalman, random
from tfseq.ops.masking import fill, lengths_to_mask, until
from tfseq.ops.tracing import wide

Noise = Literal["diagonal", "full"]

# What a random number is for; two uses never share their numbers.
_PATH, _STATE, _EMISSION, _FUTURE = range(4)
_MIN_STDDEV = 1e-3  # of noise, in standard deviations of the data: a density may not grow without bound, nor leave float32


class Filtered(NamedTuple):
    """log p(x_t | x_1 .. x_{t-1}) `[B, T]`; z_t given x_1 .. x_{t-1}, and given x_1 .. x_t: `[B, T, Z]`, `[B, T, Z, Z]`."""

    log_prob: tf.Tensor
    predicted_mean: tf.Tensor
    predicted_covariance: tf.Tensor
    mean: tf.Tensor
    covariance: tf.Tensor


class Posterior(NamedTuple):
    """p(z_t | x): mean, stddev `[B, T, Z]`, covariance `[B, T, Z, Z]`; Cov(z_{t+1}, z_t | x) `[B, T-1, Z, Z]`; 0 where padded."""

    mean: tf.Tensor
    stddev: tf.Tensor
    covariance: tf.Tensor
    cross_covariance: tf.Tensor


class Moments(NamedTuple):
    """Exact mean `[B, H, D]` and covariance `[B, H, D, D]` of the observation at each of the steps to come."""

    mean: tf.Tensor
    covariance: tf.Tensor


class _Inputs(NamedTuple):
    """A batch, time first: standardised x, zero where it is not known; mask; what was observed of it; log of the units."""

    x: tf.Tensor
    mask: tf.Tensor
    observed: tf.Tensor | None
    log_scale: tf.Tensor


def _batch_first(a: tf.Tensor) -> tf.Tensor:
    """`[T, B, ...]` <-> `[B, T, ...]`."""
    return tf.transpose(a, [1, 0, *range(2, a.shape.rank)])


def _raw_of(root: Any) -> tf.Tensor:
    """What a weight holds for standard deviations `[N]` above the least."""
    return tfp.math.softplus_inverse(root - _MIN_STDDEV)


@keras.saving.register_keras_serializable("tfseq")
class LinearGaussianModel(ClosedFormModel):
    """Linear-Gaussian state-space model with exact inference, trained by gradient or EM through `fit`.

    >>> import keras, numpy as np, tfseq
    >>> keras.utils.set_random_seed(0)
    >>> x = np.random.default_rng(0).normal(size=(2, 40, 3)).cumsum(1).astype("float32")
    >>> model = tfseq.LinearGaussianModel.from_data({"x": x}, latent_dim=2)
    >>> model.compile(method="em")
    >>> history = model.fit(x, epochs=2, verbose=0)
    >>> model.log_prob(x).shape, model.forecast(x, num_steps=4, num_samples=6).shape
    (TensorShape([2]), TensorShape([2, 6, 4, 3]))

    Args:
        observation_dim: D, features of an observation. From data.
        mean, stddev: of the data, `[D]`: features are standardised by them. From data.
        latent_dim: Z.
        transition_noise: whether Q is `"diagonal"` or `"full"`. A diagonal one loses nothing: it is a choice of the axes of z.
        observation_noise: whether R is `"diagonal"` or `"full"`.
    """

    has_kl = False
    missing = True  # takes features that were not measured
    methods = ("gradient", "em")

    def __init__(
        self,
        *,
        observation_dim: Annotated[int, FROM_DATA],
        mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        stddev: Annotated[Sequence[float] | None, FROM_DATA] = None,
        latent_dim: int = 4,
        transition_noise: Noise = "diagonal",
        observation_noise: Noise = "diagonal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, observation_dim=observation_dim, latent_dim=latent_dim)
        checks.choice("transition_noise", transition_noise, ("diagonal", "full"))
        checks.choice("observation_noise", observation_noise, ("diagonal", "full"))
        self.observation_dim, self.latent_dim = observation_dim, latent_dim
        self.noise_kinds: tuple[Noise, Noise, Noise] = ("full", transition_noise, observation_noise)  # of z_1, w, v
        self.data_mean = np.zeros(observation_dim) if mean is None else np.asarray(mean, float)
        self.data_stddev = np.ones(observation_dim) if stddev is None else np.asarray(stddev, float)
        for name, value in (("mean", self.data_mean), ("stddev", self.data_stddev)):
            if value.shape != (observation_dim,) or not np.isfinite(value).all():
                raise ValueError(f"`{name}` must be {observation_dim} finite numbers, one a feature; received {value.tolist()}.")
        if (self.data_stddev <= 0.0).any():
            raise ValueError(f"`stddev` must be above 0; received {self.data_stddev.tolist()}. A constant feature has no scale.")

        def weight(name: str, value: Any) -> Any:
            value = np.asarray(value, np.float32)
            return self.add_weight(
                shape=value.shape, initializer=lambda shape, dtype=None: tf.cast(value, dtype), autocast=False, name=name
            )

        def root(name: str, stddev: np.ndarray, kind: Noise) -> Any:
            raw = np.asarray(_raw_of(stddev))
            return weight(name, raw if kind == "diagonal" else tfp.math.fill_triangular_inverse(np.diag(raw)))

        # states of unit variance that forget at different rates, each feature seeing all of them
        stay = np.linspace(0.95, 0.5, latent_dim)
        draw = keras.random.normal([observation_dim, latent_dim], stddev=(0.75 / latent_dim) ** 0.5)
        self.transition = weight("transition", np.diag(stay))
        self.transition_bias = weight("transition_bias", np.zeros(latent_dim))
        self.transition_noise = root("transition_noise", np.sqrt(1.0 - stay**2), self.noise_kinds[1])
        self.emission = weight("emission", draw)
        self.emission_bias = weight("emission_bias", np.zeros(observation_dim))
        self.emission_noise = root("emission_noise", np.full(observation_dim, 0.5), self.noise_kinds[2])
        self.initial_mean = weight("initial_mean", np.zeros(latent_dim))
        self.initial_noise = root("initial_noise", np.ones(latent_dim), self.noise_kinds[0])

        sizes = (latent_dim, 2 * latent_dim, observation_dim + latent_dim)
        self.create_statistics([(n + 1, n + 1) for n in sizes])
        self.create_weights()

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A model for the observations `dataset.x` (and `.observed`): their number, mean and stddev are filled in."""
        dataset = cls.as_dataset(dataset)
        if not len(dataset.x) or not sum(map(len, dataset.x)):
            raise ValueError("`dataset` has no steps; the size and the mean of its observations make the model.")
        rows, observed = np.concatenate([np.asarray(a) for a in dataset.x]), getattr(dataset, "observed", None)
        if rows.ndim != 2:
            raise ValueError(f"`dataset.x` must hold vectors [T, D]; received shape {list(rows.shape)}. Symbols have no mean.")
        seen = np.ones(rows.shape, bool) if observed is None else np.concatenate(observed)
        count = np.maximum(seen.sum(0), 1)
        values = np.where(seen, rows, 0.0).astype(np.float64)
        mean = values.sum(0) / count
        deviation = np.sqrt(np.where(seen, (values - mean) ** 2, 0.0).sum(0) / count)
        constant = np.flatnonzero(deviation <= 1e-7 * np.abs(mean))  # what float32 leaves of a constant
        if len(constant):
            first = int(constant[0])
            name = f"{dataset.columns[first]!r}" if len(getattr(dataset, "columns", ())) else f"{first} (from 0)"
            raise ValueError(
                f"`dataset.x` must vary in every feature, since each is standardised; feature {name} is {mean[first]:g} at "
                f"all of its {int(seen[:, first].sum())} observations. Leave it out."
            )
        found = {"observation_dim": rows.shape[1], "mean": mean.tolist(), "stddev": deviation.tolist()}
        return cls(**{**found, **hyperparameters})

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        return cls(**{"observation_dim": 3, "latent_dim": 2, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        shape = [None, None, self.observation_dim]
        return {"x": tf.TensorSpec(shape), "observed": tf.TensorSpec(shape, tf.bool)}

    def compile(self, optimizer: Any = "rmsprop", *, method: str = "gradient", **kwargs: Any) -> None:
        """As of every model; `method="em"` begins with the parameters as they are."""
        super().compile(optimizer, method=method, **kwargs)
        self.forget()
        self.num_updates.assign(0)

    # The model of a batch ------------------------------------------------------------------------------------------

    def _parameters(self, dtype: tf.DType) -> kalman.Parameters:
        """(1) and (2) for standardised x."""

        def cast(weight: Any) -> tf.Tensor:
            return tf.cast(weight, dtype)

        def root(weight: Any, kind: Noise) -> tf.Tensor:
            """Standard deviations, or an upper triangular root."""
            raw = cast(weight)
            if kind == "diagonal":
                return tf.nn.softplus(raw) + _MIN_STDDEV
            raw = tfp.math.fill_triangular(raw)
            return tf.transpose(tf.linalg.set_diag(raw, tf.nn.softplus(tf.linalg.diag_part(raw)) + _MIN_STDDEV))

        q = root(self.transition_noise, self.noise_kinds[1])
        return kalman.Parameters(
            cast(self.initial_mean),
            root(self.initial_noise, self.noise_kinds[0]),
            cast(self.transition),
            cast(self.transition_bias),
            tf.linalg.diag(q) if q.shape.rank == 1 else q,
            cast(self.emission),
            cast(self.emission_bias),
            root(self.emission_noise, self.noise_kinds[2]),
        )

    def _inputs(self, batch: Batch, dtype: tf.DType) -> _Inputs:
        mask, observed = batch["mask"], batch.get("observed")
        keep = tf.repeat(mask[..., None], self.observation_dim, -1)
        keep = keep if observed is None else keep & observed
        x = fill((tf.cast(fill(batch["x"], keep), dtype) - self.data_mean) / self.data_stddev, keep)
        log_scale = tf.reduce_sum(tf.cast(keep, dtype) * tf.constant(np.log(self.data_stddev), dtype), -1)
        keep = None if observed is None else _batch_first(keep)
        return _Inputs(_batch_first(x), tf.transpose(mask), keep, tf.transpose(log_scale))

    def _found(self, batch: Batch) -> tuple[kalman.Parameters, _Inputs, kalman.Filtered]:
        """What the filter says of a batch; likelihoods are in the data's units."""
        p, inputs = self._parameters(self.variable_dtype), self._inputs(batch, self.variable_dtype)
        found = kalman.filter(p, *inputs[:3])
        return p, inputs, found._replace(log_prob=found.log_prob - inputs.log_scale)

    def _in_units(self, x: tf.Tensor) -> tf.Tensor:
        """Standardised x `[..., D]` in the data's units."""
        return x * self.data_stddev + self.data_mean

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        log_lik = tf.transpose(self._found(batch)[2].log_prob)
        return Terms(log_lik, tf.zeros_like(log_lik), batch["mask"])

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """log p(x) of each sequence, `[B]`: what `predict` returns."""
        return tf.reduce_sum(self.terms(self.complete(batch), training).log_lik, -1)

    # EM ------------------------------------------------------------------------------------------------------------

    def expectation(self, batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """E step, in float64."""
        inputs = self._inputs(batch, tf.float64)
        log_prob, statistics = kalman.statistics(self._parameters(tf.float64), *inputs[:3])
        return log_prob - tf.reduce_sum(inputs.log_scale, 0), statistics

    def maximise(self, statistics: Sequence[tf.Tensor]) -> None:
        """M step: three regressions (Shumway and Stoffer 1982; Ghahramani and Hinton 1996), each where it has data."""
        first, pairs, emitted = statistics
        parts: list[tuple[tf.Tensor, int, list[Any], Any]] = [
            (first, self.latent_dim, [self.initial_mean], self.initial_noise),
            (pairs, self.latent_dim, [self.transition, self.transition_bias], self.transition_noise),
            (emitted, self.observation_dim, [self.emission, self.emission_bias], self.emission_noise),
        ]
        for (gram, size, linear, noise), kind in zip(parts, self.noise_kinds, strict=True):
            weights, covariance, count = kalman.regress(gram, size)
            new = [weights[:, :-1], weights[:, -1]][-len(linear) :]
            for own, value in zip([*linear, noise], [*new, self._raw(covariance, kind)], strict=True):
                own.assign(tf.where(count > 0.0, tf.cast(value, own.dtype), own.value))

    @staticmethod
    def _raw(covariance: tf.Tensor, kind: Noise) -> tf.Tensor:
        """The weight of a covariance `[N, N]`; variances below four times the least are raised to it."""
        least = (2.0 * _MIN_STDDEV) ** 2
        if kind == "diagonal":
            return _raw_of(tf.sqrt(tf.maximum(tf.linalg.diag_part(covariance), least)))
        values, vectors = tf.linalg.eigh(covariance)
        covariance = tf.matmul(vectors * tf.maximum(values, least), vectors, transpose_b=True)
        root = tf.linalg.cholesky(covariance)
        return tfp.math.fill_triangular_inverse(tf.linalg.set_diag(root, _raw_of(tf.linalg.diag_part(root))))

    # What users ask of it ------------------------------------------------------------------------------------------

    def log_prob(self, x: Any, mask: Any = None, *, observed: Any = None) -> tf.Tensor:
        """log p(x), exact, nats, `[B]`.

        Args:
            x: `[B, T, D]`, or anything that `as_batch` takes (a list of sequences, a dict, a data set).
            mask: `[B, T]` bool, right-padded; all real by default.
            observed: `[B, T, D]` bool, False where a feature was not measured; it is integrated out.
        """
        return self._log_prob(self.given(x, mask, observed=observed))

    def filter(self, x: Any, mask: Any = None, *, observed: Any = None) -> Filtered:
        """log p(x_t | x_1 .. x_{t-1}), one-step predictions and filtered states; arguments as of `log_prob`."""
        return self._filter(self.given(x, mask, observed=observed))

    def posterior(self, x: Any, mask: Any = None, seed: Any = (0, 0), *, observed: Any = None) -> Posterior:
        """p(z_t | x), smoothed over the whole sequence; nothing is random. Arguments as of `log_prob`."""
        return self._posterior(self.given(x, mask, seed, observed=observed))

    def posterior_sample(
        self, x: Any, mask: Any = None, num_samples: int = 1, seed: Any = (0, 0), *, observed: Any = None
    ) -> tf.Tensor:
        """Paths from p(z | x), `[B, S, T, Z]`; zeros at padded steps."""
        return self._posterior_sample(self.given(x, mask, seed, observed=observed), *counts(num_samples=num_samples))

    def leave_one_out(self, x: Any, mask: Any = None, *, observed: Any = None) -> tf.Tensor:
        """log p(x_t | all other steps), `[B, T]`, from one pass forward and back; zeros at padded steps."""
        return self._leave_one_out(self.given(x, mask, observed=observed))

    def sample(self, num_sequences: int, num_steps: int, seed: Any = (0, 0)) -> tf.Tensor:
        """New sequences `[num_sequences, num_steps, D]`."""
        num_sequences, num_steps = counts(num_sequences=num_sequences, num_steps=num_steps)
        return self._sample(num_steps, random.row_seeds(seed, tf.range(num_sequences)))

    def forecast(
        self,
        x: Any,
        mask: Any = None,
        num_steps: int = 1,
        num_samples: int = 100,
        seed: Any = (0, 0),
        *,
        observed: Any = None,
    ) -> tf.Tensor:
        """Continuations of each sequence after its last real step: samples `[B, num_samples, num_steps, D]`.

        `forecast_moments` gives their exact means and covariances. Arguments as of `log_prob`.
        """
        batch = self.given(x, mask, seed, observed=observed)
        return self._forecast(batch, *counts(num_steps=num_steps, num_samples=num_samples))

    def forecast_moments(self, x: Any, mask: Any = None, num_steps: int = 1, *, observed: Any = None) -> Moments:
        """Exact moments of the observation at each of the next steps. Arguments as of `log_prob`."""
        return self._forecast_moments(self.given(x, mask, observed=observed), *counts(num_steps=num_steps))

    def impute(self, x: Any, mask: Any = None, observed: Any = None, num_samples: int = 1, seed: Any = (0, 0)) -> tf.Tensor:
        """Completions `[B, num_samples, T, D]`: x where `observed`, else a draw given all that was; zeros at padded steps."""
        batch = self.given(x, mask, seed, observed=observed)
        if "observed" not in batch:
            raise ValueError("`impute` needs `observed`, bool of the shape of `x`, False where a value is to be filled in.")
        return self._impute(batch, *counts(num_samples=num_samples))

    def decode(self, data: Any) -> dict[str, np.ndarray]:
        """The smoothed state of a batch, for tables: `mean` and `stddev` `[B, T, Z]`."""
        found = self.posterior(data)
        return {"mean": found.mean.numpy(), "stddev": found.stddev.numpy()}

    def init_state(self, num_sequences: int) -> dict[str, tf.Tensor]:
        """What is known before the first observation; see `filter_step`."""
        checks.at_least(1, num_sequences=num_sequences)
        return self._init_state(tf.zeros([num_sequences, 2], tf.int32))

    def filter_step(self, x: Any, state: Mapping[str, Any], *, observed: Any = None) -> dict[str, tf.Tensor]:
        """One step of the exact filter.

        Args:
            x: the next observation of each sequence, `[B, D]`.
            state: `mean` `[B, Z]` and `covariance` `[B, Z, Z]` of p(z_t | x_1 .. x_{t-1}), of the step that x belongs to; `step`
                `[B]` int32 counts the steps before it. From `init_state` or from the last call.
            observed: `[B, D]` bool, False where a feature was not measured.

        Returns:
            the next state, `log_prob` `[B]` = log p(x_t | x_1 .. x_{t-1}), and `filtered_mean` `[B, Z]` and
            `filtered_covariance` `[B, Z, Z]` of p(z_t | x_1 .. x_t).
        """
        batch = self.one_step(x=x, observed=observed)
        like = self._init_state(batch["seed"])
        seen = batch["observed"][:, 0] if "observed" in batch else None
        return self._filter_step(batch["x"][:, 0], self.checked_state(state, like), seen)

    def distribution(self, num_steps: int) -> tfd.LinearGaussianStateSpaceModel:
        """The `tfd.LinearGaussianStateSpaceModel` with the present parameters, of x `[T, D]` in the data's units."""
        checks.at_least(1, num_steps=num_steps)
        p = self._parameters(tf.as_dtype(self.variable_dtype))
        scale, root = tf.constant(self.data_stddev, p.emission.dtype), p.emission_root
        root = tf.linalg.diag(root) if root.shape.rank == 1 else root
        normal = tfd.MultivariateNormalTriL
        return tfd.LinearGaussianStateSpaceModel(
            num_steps,
            tf.linalg.LinearOperatorFullMatrix(p.transition),
            normal(p.transition_bias, tf.transpose(p.transition_root)),
            tf.linalg.LinearOperatorFullMatrix(scale[:, None] * p.emission),
            normal(self._in_units(p.emission_bias), scale[:, None] * tf.transpose(root)),
            normal(p.initial_mean, tf.transpose(p.initial_root)),
        )

    # Their graphs --------------------------------------------------------------------------------------------------

    @graph
    def _log_prob(self, batch: Batch) -> tf.Tensor:
        return tf.reduce_sum(self._found(batch)[2].log_prob, 0)

    @graph
    def _filter(self, batch: Batch) -> Filtered:
        found = self._found(batch)[2]
        beliefs = [part for belief in (found.predicted, found.filtered) for part in (belief.mean, kalman.square(belief.root))]
        return Filtered(*(fill(_batch_first(a), batch["mask"]) for a in (found.log_prob, *beliefs)))

    @graph
    def _posterior(self, batch: Batch) -> Posterior:
        p, inputs, found = self._found(batch)
        mask, smoothed = batch["mask"], kalman.smooth(p, found.filtered, inputs.mask)
        mean, covariance, cross = (fill(_batch_first(a), mask) for a in smoothed)
        stddev = tf.sqrt(tf.maximum(kalman.diagonal(covariance), 0.0))
        return Posterior(mean, stddev, covariance, fill(cross[:, :-1], mask[:, 1:]))

    def _normal(self, seed: tf.Tensor, num_steps: tf.Tensor, size: int, use: int) -> tf.Tensor:
        """Standard normal noise `[T, N, size]` of row seeds `[N, 2]`."""
        return tf.cast(random.normal(seed, tf.range(num_steps), size, use), self.variable_dtype)

    def _paths(self, batch: Batch, num_samples: tf.Tensor) -> tuple[kalman.Parameters, _Inputs, tf.Tensor, tf.Tensor]:
        """Parameters, inputs, paths from p(z | x) `[T, B, S, Z]`, and the seeds of their rows `[B S, 2]`."""
        p, inputs, found = self._found(batch)
        num_steps, num_rows = tf.unstack(tf.shape(inputs.mask))
        seed = tf.reshape(random.fold_in(batch["seed"][:, None], tf.range(num_samples)), [-1, 2])
        noise = self._normal(seed, num_steps, self.latent_dim, _PATH)
        noise = tf.reshape(noise, [num_steps, num_rows, num_samples, self.latent_dim])
        return p, inputs, kalman.sample_paths(p, found.filtered, inputs.mask, noise), seed

    @graph
    def _posterior_sample(self, batch: Batch, num_samples: tf.Tensor) -> tf.Tensor:
        z = tf.transpose(self._paths(batch, num_samples)[2], [1, 2, 0, 3])
        return fill(z, tf.repeat(batch["mask"][:, None], num_samples, 1))

    @graph
    def _leave_one_out(self, batch: Batch) -> tf.Tensor:
        # the state with and without x_t may differ little, and a difference of covariances is their distance
        dtype = wide(tf.as_dtype(self.variable_dtype))
        inputs = self._inputs(batch, dtype)
        log_prob = kalman.leave_one_out(self._parameters(dtype), *inputs[:3]) - inputs.log_scale
        return tf.cast(tf.transpose(log_prob), self.variable_dtype)

    def _generate(self, p: kalman.Parameters, belief: kalman.Belief, num_steps: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """x `[N, num_steps, D]` in the data's units, of steps of which the first has the state `belief`."""
        several = tf.maximum(num_steps, 1)
        noise = self._normal(seed, several, self.latent_dim, _STATE)
        x = kalman.generate(p, belief, noise, self._normal(seed, several, self.observation_dim, _EMISSION))
        return self._in_units(_batch_first(x)[:, :num_steps])

    @graph
    def _sample(self, num_steps: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        p = self._parameters(self.variable_dtype)
        return self._generate(p, kalman.initial(p, tf.shape(seed)[0]), num_steps, seed)

    @graph
    def _forecast(self, batch: Batch, num_steps: tf.Tensor, num_samples: tf.Tensor) -> tf.Tensor:
        p, _, found = self._found(batch)
        seed = random.fold_in(batch["seed"], _FUTURE)
        seed = tf.reshape(random.fold_in(seed[:, None], tf.range(num_samples)), [-1, 2])
        belief = kalman.Belief(*(tf.repeat(a, num_samples, 0) for a in (found.next.mean, kalman.unique(found.next.root))))
        x = self._generate(p, belief, num_steps, seed)
        return tf.reshape(x, tf.concat([[-1, num_samples], tf.shape(x)[1:]], 0))

    @graph
    def _forecast_moments(self, batch: Batch, num_steps: tf.Tensor) -> Moments:
        p, _, found = self._found(batch)
        mean, covariance = kalman.moments_ahead(p, found.next, tf.maximum(num_steps, 1))
        units = self.data_stddev[:, None] * self.data_stddev
        return Moments(self._in_units(_batch_first(mean)[:, :num_steps]), units * _batch_first(covariance)[:, :num_steps])

    @graph
    def _impute(self, batch: Batch, num_samples: tf.Tensor) -> tf.Tensor:
        p, inputs, z, seed = self._paths(batch, num_samples)
        num_steps = tf.shape(z)[0]
        noise = self._normal(seed, num_steps, self.observation_dim, _EMISSION)
        noise = tf.reshape(noise, tf.concat([tf.shape(z)[:3], [self.observation_dim]], 0))
        drawn = tf.transpose(self._in_units(kalman.complete(p, inputs.x, inputs.observed, z, noise)), [1, 2, 0, 3])
        given = tf.cast(fill(batch["x"], batch["observed"]), drawn.dtype)[:, None]  # as it was, without its rounding
        drawn = tf.where(batch["observed"][:, None], given, drawn)
        return fill(drawn, tf.repeat(batch["mask"][:, None], num_samples, 1))

    def _init_state(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        mean, root = kalman.initial(self._parameters(self.variable_dtype), tf.shape(seed)[0])
        return {"mean": mean, "covariance": kalman.square(root), "step": tf.zeros(tf.shape(seed)[:1], tf.int32)}

    @graph
    def _filter_step(self, x: tf.Tensor, state: dict[str, tf.Tensor], observed: tf.Tensor | None) -> dict[str, tf.Tensor]:
        batch = {"x": x[:, None], "mask": tf.ones([tf.shape(x)[0], 1], tf.bool)}
        inputs = self._inputs(batch if observed is None else {**batch, "observed": observed[:, None]}, self.variable_dtype)
        before = kalman.Belief(
            tf.cast(state["mean"], self.variable_dtype), kalman.root_of(tf.cast(state["covariance"], self.variable_dtype))
        )
        p = self._parameters(self.variable_dtype)
        after, filtered, log_prob = kalman.filter_step(p, before, inputs.x[0], observed)
        return {
            "mean": after.mean,
            "covariance": kalman.square(after.root),
            "step": state["step"] + 1,
            "log_prob": log_prob - inputs.log_scale[0],
            "filtered_mean": filtered.mean,
            "filtered_covariance": kalman.square(filtered.root),
        }

    # Served signatures ---------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures; `num_samples` is fixed at export, inference is exact and has no use for `num_particles`."""
        x, several = self.batch_spec()["x"], tf.constant(num_samples)

        def named(name: str, *shape: int | None, dtype: tf.DType = tf.int32) -> tf.TensorSpec:
            return tf.TensorSpec(shape, dtype, name)

        sequence = [tf.TensorSpec(x.shape, x.dtype, "x"), named("lengths", None)]
        steps, seed = named("num_steps", None), named("seed", None, 2)

        def batch(given: dict[str, tf.Tensor]) -> Batch:
            """Served inputs as a batch."""
            entries: Batch = {name: given[name] for name in ("x", "observed", "seed") if name in given}
            entries.setdefault("seed", tf.zeros([tf.shape(given["x"])[0], 2], tf.int32))
            return self.complete({**entries, "mask": lengths_to_mask(given["lengths"], tf.shape(given["x"])[1])})

        def score(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"log_prob": self._log_prob(batch(given))}

        def smooth(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            found, num_steps = self._posterior(batch(given)), tf.shape(given["x"])[1]
            return {"mean": found.mean[:, :num_steps], "stddev": found.stddev[:, :num_steps]}

        def forecast(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps, whole = given["num_steps"], batch(given)
            moments = self._forecast_moments(whole, tf.reduce_max(num_steps))
            return {
                "x": until(self._forecast(whole, tf.reduce_max(num_steps), several), num_steps, 2),
                "mean": until(moments.mean, num_steps),
                "stddev": until(tf.sqrt(kalman.diagonal(moments.covariance)), num_steps),
                "length": tf.identity(num_steps),
            }

        def impute(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"x": self._impute(batch(given), tf.constant(1))[:, 0, : tf.shape(given["x"])[1]]}

        def sample(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps = given["num_steps"]
            x = self._sample(tf.reduce_max(num_steps), given["seed"])
            return {"x": until(x, num_steps), "length": tf.identity(num_steps)}

        state = self._init_state(tf.zeros([1, 2], tf.int32))

        def init_state(seed: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._init_state(seed)

        def filter_step(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._filter_step(given["x"], {name: given[name] for name in state}, None)

        states = [tf.TensorSpec([None, *a.shape[1:]], a.dtype, name) for name, a in state.items()]
        return {
            "serving_default": (score, sequence),
            "score": (score, sequence),
            "smooth": (smooth, sequence),
            "forecast": (forecast, [*sequence, steps, seed]),
            "impute": (impute, [*sequence, tf.TensorSpec(x.shape, tf.bool, "observed"), seed]),
            "sample": (sample, [steps, seed]),
            "init_state": (init_state, [seed]),
            "filter_step": (filter_step, [named("x", None, self.observation_dim, dtype=tf.float32), *states]),
        }
