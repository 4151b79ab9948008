"""State-space models: sequences told step by step, with latent variables that a guide infers. What they have in common.

    s_0,   z_t ~ p(z_t | s_{t-1}),   x_t ~ p(x_t | s_{t-1}, z_t),   s_t = f(s_{t-1}, z_t, x_t),   q(z_t | s_{t-1}, x)

A model states these five parts; bounds, particle filter, samples, forecasts, imputations and served signatures follow from them.
Only the sampling of z (and the state with it) is sequential: prior, emission and divergence run on all steps at once.
Inside this file time comes first: T steps, B rows, S samples or particles, Z latent, H hidden units, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers import heads
from tfseq.models.base import Batch, Endpoint, SequenceModel, Terms, counts, graph
from tfseq.ops import bounds, particles, random
from tfseq.ops.linear import project
from tfseq.ops.masking import fill, lengths_to_mask, mask_to_lengths, masked_sum, some_steps, until
from tfseq.ops.scan import Multiply, loop, scan

HeadName = Literal["bernoulli", "normal", "mixture", "pen", "poisson", "categorical", "nade", "rbm"]
Objective = Literal["elbo", "iwae", "fivo"]
Scale = Literal["variance", "stddev"]
State = tuple[tf.Tensor, ...]
Known = Mapping[str, tf.Tensor]
"""What else is known of steps: controls `u` and, where the model looks at it, the encoded observation before, `previous`."""

# What a random number is for; two uses never share their numbers.
GUIDE, PRIOR, EMISSION, DROPOUT, RESAMPLE, FUTURE = range(6)
_CHUNK_FLOATS = 2**26  # what the samples of one chunk of importance sampling may hold at once


def to_stddev(raw: tf.Tensor, scale: Scale = "stddev") -> tf.Tensor:
    """softplus(raw), read as a variance or as a standard deviation, -> standard deviation, at least 1e-4."""
    raw = tf.nn.softplus(raw)
    if scale == "stddev":
        return raw + heads.MIN_STDDEV
    variance = tf.cast(raw, tf.float32) if raw.dtype == tf.float16 else raw  # float16 rounds 1e-8 to 0
    return tf.cast(tf.sqrt(variance + heads.MIN_STDDEV**2), raw.dtype)


def gaussian_kl(mean: tf.Tensor, stddev: tf.Tensor, prior_mean: tf.Tensor, prior_stddev: tf.Tensor) -> tf.Tensor:
    """KL(N(mean, stddev^2) || N(prior_mean, prior_stddev^2)) of each dimension."""
    ratio = stddev / prior_stddev
    return 0.5 * (ratio**2 + ((mean - prior_mean) / prior_stddev) ** 2 - 1.0) - tf.math.log(ratio)


class Recursion(NamedTuple):
    """What a model does at every step, for any leading axes `[...]`; weights are read once, outside of the loop.

    Attributes:
        propose: q(z_t | s_{t-1}, x): (context, state, multiply) -> mean and stddev `[..., Z]`.
        embed: what networks take of z_t: (state, z, multiply) -> `[..., E]`.
        advance: s_t: (state, embedded z, features of x_t, multiply) -> state.
    """

    propose: Callable[[tuple[tf.Tensor, ...], State, Multiply], tuple[tf.Tensor, tf.Tensor]]
    embed: Callable[[State, tf.Tensor, Multiply], tf.Tensor]
    advance: Callable[[State, tf.Tensor, tuple[tf.Tensor, ...], Multiply], State]


class Latents(NamedTuple):
    """A path of the guide, all `[T, ..., .]`: z = flows(mean + stddev * noise) and the states it goes through."""

    z: tf.Tensor
    mean: tf.Tensor
    stddev: tf.Tensor
    noise: tf.Tensor
    log_det: tf.Tensor | None
    embedded: tf.Tensor
    states: State


class Posterior(NamedTuple):
    """q(z | x): mean and stddev `[B, T, Z]` of each step, over the sampled paths; sample `[B, S, T, Z]`, the paths."""

    mean: tf.Tensor
    stddev: tf.Tensor
    sample: tf.Tensor


class StateSpaceModel(SequenceModel):
    """A generative model of sequences, trained on a bound of its likelihood.

    Constructor arguments are those that all such models share; see one of them. A model defines `state_sizes`, `read`,
    `features`, `recursion`, `prior` and `emit`, and after its layers calls `create_weights`.
    """

    state_is_latent: ClassVar[bool] = False
    """Whether the state is z itself."""

    is_sequential: bool = True
    """Whether the guide looks at the state before; all steps are inferred at once where it does not."""

    guide_is_causal: bool = False
    """Whether the guide of a step looks at no other observation than that step's: the particle filter then proposes with it."""

    looks_back: bool = False
    """Whether networks see the observation before, beside the state."""

    flows: Sequence[Any] = ()

    def __init__(
        self,
        *,
        observation_dim: int,
        mean: Sequence[float] | None,
        stddev: Sequence[float] | None,
        control_dim: int,
        missing: bool,
        latent_dim: int,
        head: HeadName,
        num_components: int,
        head_units: int,
        kl: Literal["auto", "analytic", "sampled"] = "auto",
        objective: Objective = "elbo",
        train_samples: int = 1,
        free_bits: float = 0.0,
        num_flows: int = 0,
        scaling: str = "feature",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, observation_dim=observation_dim, train_samples=train_samples)
        checks.at_least(int(self.has_kl), latent_dim=latent_dim)  # a model without a divergence has none
        checks.at_least(0, control_dim=control_dim, num_flows=num_flows)
        checks.choice("kl", kl, ("auto", "analytic", "sampled"))
        checks.choice("objective", objective, ("elbo", "iwae", "fivo"))
        checks.choice("scaling", scaling, ("feature", "global", "none"))
        if kl == "analytic" and num_flows:
            raise ValueError(
                f"`kl` must be 'sampled' or 'auto' with flows (no closed form); received 'analytic' and num_flows={num_flows}."
            )
        self.analytic_kl = kl == "analytic" or (kl == "auto" and not num_flows)
        if free_bits < 0.0 or (free_bits > 0.0 and not (self.analytic_kl and objective == "elbo")):
            raise ValueError(
                f"`free_bits` must be at least 0, and above 0 only with the ELBO and its analytic divergence; received "
                f"{free_bits} with objective={objective!r}, kl={kl!r}, num_flows={num_flows}."
            )
        if objective != "elbo" and train_samples < 2:
            raise ValueError(
                f"`train_samples` must be at least 2 for objective={objective!r}, the number of its paths; received "
                f"{train_samples}. Of one path either is the ELBO."
            )
        family = heads.head_class(head)
        if missing and not family.supports_missing:
            raise ValueError(f"`missing` must be False with head={head!r}, which has no marginals in closed form; received True.")
        self.latent_dim, self.control_dim, self.missing = latent_dim, control_dim, missing
        self.latent_units = latent_dim if self.analytic_kl and objective == "elbo" else 0
        self.objective, self.train_samples, self.free_bits = objective, train_samples, float(free_bits)
        self.head = heads.make_head(
            head, observation_dim, mean, stddev, num_components=num_components, units=head_units, name="head"
        )

    @property
    def convention(self) -> str:
        if self.objective == "fivo":
            return f"pooled bound, nats per step (b), by filters of {self.train_samples} particles (FIVO)"
        return super().convention

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A model for the observations `dataset.x` (and `.observed`, `.u`): their number, range, mean and scale are filled in."""
        dataset = cls.as_dataset(dataset)
        if not len(dataset.x):
            raise ValueError("`dataset` has no sequences; the size and the mean of its observations make the model.")
        defaults = {name: parameter.default for name, parameter in cls.hyperparameters().items()}
        head = heads.head_class(hyperparameters.get("head", defaults["head"]))
        scaling = hyperparameters.get("scaling", defaults["scaling"])
        observed, u = getattr(dataset, "observed", None), getattr(dataset, "u", None)
        found = {
            "observation_dim": head.event_dim_of(dataset.x, observed),
            "mean": head.mean_of(dataset.x, observed, "feature" if scaling == "none" else scaling),
            "stddev": None if scaling == "none" else head.scale_of(dataset.x, observed, scaling),
            "control_dim": 0 if u is None else int(u[0].shape[-1]),
            "missing": observed is not None,
        }
        return cls(**{**found, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        x = self.head.spec(None, None)
        specs = {"x": x} | ({"observed": tf.TensorSpec(x.shape, tf.bool)} if self.head.supports_missing else {})
        return specs | ({"u": tf.TensorSpec([None, None, self.control_dim])} if self.control_dim else {})

    def check_values(self, x: np.ndarray) -> None:
        self.head.check(x, self.head.event_dim)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        return self.head.supports(x, self.head.event_dim)

    # What a model defines ------------------------------------------------------------------------------------------

    @property
    def state_sizes(self) -> Sequence[int]:
        """Size of each tensor of the state."""
        raise NotImplementedError

    def initial_state(self, leading: Sequence[Any]) -> State:
        """s_0, `[*leading, size]` each; zeros."""
        return tuple(tf.zeros([*leading, size], self.compute_dtype) for size in self.state_sizes)

    def read(self, inputs: Known, training: bool = False) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        """What the guide needs of whole sequences, and what the state takes of their steps; each `[T, B, .]`."""
        raise NotImplementedError

    def features(self, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What the state takes of encoded observations `[..., E]`."""
        raise NotImplementedError

    def recursion(self) -> Recursion:
        """The model's step."""
        raise NotImplementedError

    def prior(self, state: State, known: Known, is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """p(z_t | s_{t-1}): state `[..., .]` -> mean, stddev `[..., Z]`; p(z_1) where `is_first`, bool."""
        raise NotImplementedError

    def emit(self, state: State, embedded: tf.Tensor, known: Known) -> tfd.Distribution:
        """p(x_t | s_{t-1}, z_t)."""
        raise NotImplementedError

    @property
    def widest(self) -> int:
        """About how many numbers one step of one sample holds in memory."""
        return 4 * (sum(self.state_sizes) + self.latent_dim + self.head.event_dim)

    # Inference -----------------------------------------------------------------------------------------------------

    @property
    def encoded_dim(self) -> int:
        """Size of what networks see of an observation."""
        symbol, flags = self.head.is_symbol, int(self.missing)
        return self.head.event_dim + (flags if symbol else flags * self.head.event_dim)

    def encoded(self, x: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
        """What networks see of an observation: the encoded x, and which features were measured where some may be missing."""
        encoded = tf.cast(self.head.encode(x), self.compute_dtype)
        if not self.missing:
            return encoded
        seen = tf.ones_like(x, tf.bool) if observed is None else observed
        return tf.concat([encoded, tf.cast(seen[..., None] if self.head.is_symbol else seen, encoded.dtype)], -1)

    def _inputs(self, batch: Batch) -> dict[str, tf.Tensor]:
        """A batch, time first: finite x, `encoded`, `mask`, `seed`, and what else is known (`previous`, `u`)."""
        mask, observed = batch["mask"], batch.get("observed")
        x = fill(batch["x"], mask)
        if observed is not None:
            observed = observed & tf.reshape(mask, tf.concat([tf.shape(mask), [1] * (observed.shape.rank - 2)], 0))
            x = fill(x, observed, self._filling(x))
        steps = {"x": x, "mask": mask} | ({} if observed is None else {"observed": observed})
        if self.control_dim:
            steps["u"] = tf.cast(fill(batch["u"], mask), self.compute_dtype)
        inputs = {name: tf.transpose(a, [1, 0, *range(2, a.shape.rank)]) for name, a in steps.items()}
        inputs["encoded"] = self.encoded(inputs["x"], inputs.get("observed"))
        if self.looks_back:
            inputs["previous"] = tf.concat([tf.zeros_like(inputs["encoded"][:1]), inputs["encoded"][:-1]], 0)
        return {**inputs, "seed": batch["seed"]}

    def _filling(self, x: tf.Tensor) -> tf.Tensor:
        """What stands where a feature was not measured: its mean; symbol 0 for symbols."""
        if self.head.mean is None or self.head.is_symbol:
            return tf.zeros([], x.dtype)
        return tf.constant(self.head.mean, x.dtype)

    def _noise(self, seed: tf.Tensor, num_steps: tf.Tensor, numbers: tf.Tensor | None = None) -> tf.Tensor:
        """The guide's noise `[T, B, Z]`; with sample `numbers` `[S]`, `[T, B, S, Z]`."""
        shape = [num_steps, tf.shape(seed)[0], self.latent_dim]
        if numbers is not None:
            shape = [*shape[:2], tf.size(numbers), self.latent_dim]
            seed = tf.reshape(random.fold_in(seed[:, None], numbers), [-1, 2])
        noise = tf.reshape(random.normal(seed, tf.range(num_steps), self.latent_dim, GUIDE), shape)
        return tf.cast(noise, self.compute_dtype)

    def _flow(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """z through the flows, and log |det|."""
        log_det = None
        for flow in self.flows:
            z, change = flow(z)
            log_det = change if log_det is None else log_det + change
        return z, log_det

    def _infer(
        self,
        inputs: Known,
        reading: tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]],
        numbers: tf.Tensor | None = None,
    ) -> Latents:
        """One path of the guide, `[T, B, Z]`; with sample `numbers` `[S]`, a path for each, `[T, B, S, Z]`."""
        context, features = reading
        noise = self._noise(inputs["seed"], tf.shape(inputs["mask"])[0], numbers)
        if numbers is not None:
            context, features = (tuple(a[:, :, None] for a in part) for part in (context, features))
        recursion = self.recursion()

        def step(state: State, inputs: tuple, multiply: Multiply) -> tuple[State, tuple[tf.Tensor, ...]]:
            context, features, noise = inputs
            mean, stddev = recursion.propose(context, state, multiply)
            mean, stddev = mean + tf.zeros_like(noise), stddev + tf.zeros_like(noise)
            z, log_det = self._flow(mean + stddev * noise)
            embedded = recursion.embed(state, z, multiply)
            outputs = (mean, stddev, *(() if self.state_is_latent else (embedded,)), *((log_det, z) if self.flows else ()))
            return recursion.advance(state, embedded, features, multiply), outputs

        if self.is_sequential:
            start = tuple(tf.convert_to_tensor(s) for s in self.initial_state(tf.unstack(tf.shape(noise)[1:-1])))
            states, outputs = scan(step, start, (context, features, noise))
        else:  # no step depends on another
            states, outputs = step((), (context, features, noise), project)
        mean, stddev, *rest = outputs
        log_det, z = rest[-2:] if self.flows else (None, mean + stddev * noise)
        return Latents(z, mean, stddev, noise, log_det, states[0] if self.state_is_latent else rest[0], states)

    def _before(self, states: State) -> State:
        """States after each step `[T, ...]` -> those before it."""

        def shifted(a: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
            # tf.slice, whose gradient is a padding: that of a[:-1] is slow
            earlier = tf.slice(a, [0] * a.shape.rank, tf.shape(a) - [1, *[0] * (a.shape.rank - 1)])
            return tf.concat([start[None], earlier], 0)

        if not states:
            return ()
        start = self.initial_state(tf.unstack(tf.shape(states[0])[1:-1]))
        return tuple(shifted(a, s) for a, s in zip(states, start, strict=False))

    @staticmethod
    def _known(inputs: Known, num_samples: tf.Tensor | None = None) -> Known:
        """What else is known of the steps `[T, B, .]`, repeated over a sample axis where there is one."""
        found = {name: inputs[name] for name in ("previous", "u") if name in inputs}
        return found if num_samples is None else {n: tf.repeat(a[:, :, None], num_samples, 2) for n, a in found.items()}

    def _divergence(self, latents: Latents, mean: tf.Tensor, stddev: tf.Tensor, analytic: bool) -> tf.Tensor:
        """KL of the guide from the prior N(mean, stddev^2) of each dimension `[..., Z]`; sampled: log q / p at z, `[...]`."""
        if analytic:
            return gaussian_kl(tf.cast(latents.mean, mean.dtype), tf.cast(latents.stddev, mean.dtype), mean, stddev)
        z, stddev_q, noise = (tf.cast(a, mean.dtype) for a in (latents.z, latents.stddev, latents.noise))
        log_q = -tf.reduce_sum(0.5 * noise**2 + tf.math.log(stddev_q), -1)  # both without Z/2 log 2 pi
        if latents.log_det is not None:
            log_q -= tf.cast(latents.log_det, mean.dtype)
        return log_q + tf.reduce_sum(0.5 * ((z - mean) / stddev) ** 2 + tf.math.log(stddev), -1)

    def _terms(self, inputs: Known, latents: Latents, analytic: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """log p(x_t | .) and the divergence of step t, `[T, B]` (`[T, B, S]` with a sample axis), and that of each dimension."""
        has_samples = latents.z.shape.rank == 4
        known = self._known(inputs, tf.shape(latents.z)[2] if has_samples else None)
        before = self._before(latents.states)
        x, observed = inputs["x"], inputs.get("observed")
        if has_samples:
            x, observed = x[:, :, None], observed if observed is None else observed[:, :, None]
        log_lik = self.head.log_prob(self.emit(before, latents.embedded, known), x, observed)
        if not self.latent_dim:
            return log_lik, tf.zeros_like(log_lik), None
        is_first = tf.reshape(tf.range(tf.shape(latents.z)[0]) == 0, [-1] + [1] * (latents.z.shape.rank - 2))
        mean, stddev = (tf.cast(a, log_lik.dtype) for a in self.prior(before, known, is_first))
        kl = self._divergence(latents, mean, stddev, analytic)
        return (log_lik, tf.reduce_sum(kl, -1), kl) if analytic else (log_lik, kl, None)

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        inputs = self._inputs(batch)
        reading = self.read(inputs, training)
        weight = tf.cast(self.kl_weight, self.head.compute_dtype)
        if self.objective == "fivo":
            bound, kl = self._filtered(inputs, reading, tf.range(self.train_samples), weight if training else 1.0)
            objective = tf.reduce_sum(bound, 0) if training else None
            kl = tf.stop_gradient(kl)
            kl = tf.where(tf.equal(bound, -math.inf), tf.zeros_like(kl), kl)  # which may be infinite where x is impossible
            log_lik = bound + (tf.stop_gradient(weight) if training else 1.0) * kl
            return Terms(tf.transpose(log_lik), tf.transpose(kl), batch["mask"], objective)
        numbers = tf.range(self.train_samples) if training and self.train_samples > 1 else None
        latents = self._infer(inputs, reading, numbers)
        weighted = self.objective == "iwae" and numbers is not None
        log_lik, kl, units = self._terms(inputs, latents, self.analytic_kl and not weighted)
        objective = None
        if weighted:
            log_weights = masked_sum(log_lik - weight * kl, inputs["mask"], axis=0)  # [B, S]
            objective = bounds.iwae(tf.transpose(log_weights))
        if numbers is not None:
            log_lik, kl = tf.reduce_mean(log_lik, -1), tf.reduce_mean(kl, -1)
            units = units if units is None else tf.reduce_mean(units, 2)
        if units is not None and training and self.free_bits:
            objective = masked_sum(log_lik, inputs["mask"], axis=0) - weight * self._with_free_bits(units, inputs["mask"])
        units = units if units is None else tf.transpose(units, [1, 0, 2])
        return Terms(tf.transpose(log_lik), tf.transpose(kl), batch["mask"], objective, kl_units=units)

    def _with_free_bits(self, units: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """sum_i max(free_bits * T, KL of dimension i) of each sequence `[B]` (Kingma et al. 2016, appendix C.8, per sequence)."""
        floor = self.free_bits * tf.reduce_sum(tf.cast(mask, units.dtype), 0)  # [B]
        return tf.reduce_sum(tf.maximum(floor[:, None], tf.reduce_sum(fill(units, mask), 0)), -1)

    # Particle filters ----------------------------------------------------------------------------------------------

    def _resampled(self, state: State, log_weights: tf.Tensor, uniform: tf.Tensor) -> tuple[State, tf.Tensor]:
        """Particles `[..., N, .]` resampled (systematically) where their effective number is below half of them."""
        num = log_weights.shape[-1] or tf.shape(log_weights)[-1]
        size = tf.cast(num, log_weights.dtype)
        flat = tf.reshape(tf.stop_gradient(log_weights), [-1, num])
        ancestors = particles.systematic_ancestors(flat, tf.cast(tf.reshape(uniform, [-1]), flat.dtype))
        poor = (particles.effective_sample_size(flat) < 0.5 * size)[:, None]
        ancestors = tf.reshape(tf.where(poor, ancestors, tf.range(num)), tf.shape(log_weights))
        poor = tf.reshape(poor, tf.concat([tf.shape(log_weights)[:-1], [1]], 0))
        axes = log_weights.shape.rank - 1
        state = tuple(tf.gather(a, ancestors, axis=axes, batch_dims=axes) for a in state)
        return state, tf.where(poor, -tf.math.log(size), log_weights)

    def _filtered(
        self,
        inputs: Known,
        reading: tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]],
        numbers: tf.Tensor,
        kl_weight: tf.Tensor | float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """log p-hat(x_t | x_1 .. x_{t-1}) by a particle filter that proposes with the guide, and the divergence; `[T, B]` each.

        Maddison et al. 2017, "Filtering variational objectives", algorithm 1: their sum over t estimates p(x) without bias.
        The gradient stops at the choice of ancestors.
        """
        context, features = (tuple(a[:, :, None] for a in part) for part in reading)
        num = tf.size(numbers)
        num_steps, num_rows = tf.unstack(tf.shape(inputs["mask"]))
        noise = self._noise(inputs["seed"], num_steps, numbers)
        times = tf.range(num_steps)
        uniform = random.uniform(inputs["seed"], times, 1, RESAMPLE)[..., 0]
        known = self._known(inputs, num)
        seen = {"x": inputs["x"][:, :, None]} | ({"observed": inputs["observed"][:, :, None]} if "observed" in inputs else {})
        recursion, dtype = self.recursion(), self.head.compute_dtype

        def step(carried: tuple[State, tf.Tensor], inputs: tuple, multiply: Multiply) -> tuple:
            (state, log_weights), (context, features, noise, uniform, mask, t, known, seen) = carried, inputs
            state, log_weights_before = self._resampled(state, log_weights, uniform)
            mean, stddev = recursion.propose(context, state, multiply)
            mean, stddev = mean + tf.zeros_like(noise), stddev + tf.zeros_like(noise)
            z, log_det = self._flow(mean + stddev * noise)
            embedded = recursion.embed(state, z, multiply)
            is_first = tf.reshape(t == 0, tf.concat([tf.shape(t), [1] * (z.shape.rank - 1 - t.shape.rank)], 0))
            prior_mean, prior_stddev = (tf.cast(a, dtype) for a in self.prior(state, known, is_first))
            path = Latents(z, mean, stddev, noise, log_det, embedded, state)
            kl = self._divergence(path, prior_mean, prior_stddev, analytic=False)
            log_lik = self.head.log_prob(self.emit(state, embedded, known), seen["x"], seen.get("observed"))
            joint = log_weights_before + log_lik - kl_weight * kl
            after, log_prob = particles.normalised(joint)
            kl = tf.reduce_sum(tf.exp(after) * kl, -1)
            state = recursion.advance(state, embedded, features, multiply)
            return (state, tf.where(mask[..., None], after, log_weights)), (fill(log_prob, mask), fill(kl, mask))

        start = self.initial_state([num_rows, num])
        weights = tf.fill([num_rows, num], -tf.math.log(tf.cast(num, dtype)))
        ins = (context, features, noise, uniform, inputs["mask"], times, known, seen)
        return scan(step, (tuple(start), weights), ins)[1]

    # What users ask of it ------------------------------------------------------------------------------------------

    def elbo(
        self, x: Any, mask: Any = None, seed: Any = (0, 0), num_samples: int = 1, *, observed: Any = None, u: Any = None
    ) -> tf.Tensor:
        """Evidence lower bound of each sequence, nats, `[B]`: the mean over `num_samples` paths of the guide.

        Args:
            x: `[B, T, D]`, or anything that `as_batch` takes (a list of sequences, a dict, a data set).
            mask: `[B, T]` bool, right-padded; all real by default.
            seed: `[2]`, or `[B, 2]` for a seed per row; the same seed gives the same bound.
            num_samples: paths per sequence.
            observed: `[B, T, D]` bool, False where a feature was not measured.
            u: controls `[B, T, U]`, where the model has them.
        """
        return self._bounds(self.given(x, mask, seed, observed=observed, u=u), *counts(num_samples=num_samples))[0]

    def importance_log_prob(
        self, x: Any, mask: Any = None, num_samples: int = 100, seed: Any = (0, 0), *, observed: Any = None, u: Any = None
    ) -> tf.Tensor:
        """Importance-sampled log-likelihood of each sequence, nats, `[B]`: log 1/K sum_k p(x, z_k) / q(z_k | x).

        A lower bound in expectation that rises with `num_samples` towards log p(x). Arguments as of `elbo`; memory
        does not grow with `num_samples`.
        """
        return self._bounds(self.given(x, mask, seed, observed=observed, u=u), *counts(num_samples=num_samples))[1]

    def filter_log_prob(
        self, x: Any, mask: Any = None, num_particles: int = 128, seed: Any = (0, 0), *, observed: Any = None, u: Any = None
    ) -> tf.Tensor:
        """log of an unbiased estimate of p(x) by a particle filter that proposes with the guide, nats, `[B]` (FIVO).

        In expectation a lower bound of log p(x), tighter than `importance_log_prob` where sequences are long (Maddison et al.
        2017). Arguments as of `elbo`.
        """
        return self._filter_log_prob(self.given(x, mask, seed, observed=observed, u=u), *counts(num_particles=num_particles))

    def bounds(self, data: Any, num_samples: int, seed: Any = (0, 0)) -> tuple[tf.Tensor, tf.Tensor]:
        """(`elbo`, `importance_log_prob`) of each sequence from the same samples, `[B]` each, with the sampled KL."""
        return self._bounds(self.given(data, seed=seed), *counts(num_samples=num_samples))

    def posterior(
        self, x: Any, mask: Any = None, seed: Any = (0, 0), num_samples: int = 100, *, observed: Any = None, u: Any = None
    ) -> Posterior:
        """q(z | x) of each step; zeros at padded steps. Arguments as of `elbo`.

        Mean and stddev are those over `num_samples` paths, since each step's Gaussian depends on the step before.
        """
        return self._posterior(self.given(x, mask, seed, observed=observed, u=u), *counts(num_samples=num_samples))

    def sample(self, num_sequences: int, num_steps: int, seed: Any = (0, 0), *, u: Any = None) -> tf.Tensor:
        """New sequences `[num_sequences, num_steps, D]`; `u` `[num_sequences, num_steps, U]` where the model has controls."""
        num_sequences, num_steps = counts(num_sequences=num_sequences, num_steps=num_steps)
        seed = random.row_seeds(seed, tf.range(num_sequences))
        return self._sample(num_steps, seed, self.future_controls(u, num_sequences, num_steps, "u"))

    def forecast(
        self,
        x: Any,
        mask: Any = None,
        num_steps: int = 1,
        num_samples: int = 100,
        seed: Any = (0, 0),
        *,
        observed: Any = None,
        u: Any = None,
        future_u: Any = None,
    ) -> tf.Tensor:
        """Continuations of each sequence after its last real step: samples `[B, num_samples, num_steps, D]`.

        The state at the last step is drawn from the guide, the rest from the model. Arguments as of `elbo`; `future_u`
        `[B, num_steps, U]` are the controls to come, which the caller sets (an intervention, do(u)).
        """
        batch = self.given(x, mask, seed, observed=observed, u=u)
        num_steps, num_samples = counts(num_steps=num_steps, num_samples=num_samples)
        return self._forecast(
            batch, num_steps, num_samples, self.future_controls(future_u, tf.shape(batch["x"])[0], num_steps, "future_u")
        )

    def impute(
        self, x: Any, mask: Any = None, observed: Any = None, num_samples: int = 1, seed: Any = (0, 0), *, u: Any = None
    ) -> tf.Tensor:
        """Completions `[B, num_samples, T, D]`: x where `observed`, else a sample given what was; zeros at padded steps.

        What a missing value depends on is what the guide looks at: of the deep Markov model all observations, of the others
        those up to its step.
        """
        self._check_missing()
        batch = self.given(x, mask, seed, observed=observed, u=u)
        if "observed" not in batch:
            raise ValueError("`impute` needs `observed`, bool of the shape of `x`, False where a value is to be filled in.")
        return self._impute(batch, *counts(num_samples=num_samples))

    def _check_missing(self) -> None:
        if not self.head.supports_missing:
            raise ValueError(
                f"`head` must have marginals in closed form for missing features; received {type(self.head).__name__}, of which "
                "no feature may be missing."
            )

    def init_state(self, num_sequences: int, num_particles: int = 256) -> dict[str, tf.Tensor]:
        """State of the particle filter before the first observation; see `filter_step`."""
        checks.at_least(1, num_sequences=num_sequences, num_particles=num_particles)
        return self._init_state(tf.zeros([num_sequences, 2], tf.int32), num_particles)

    def filter_step(self, x: Any, state: Mapping[str, Any], seed: Any = (0, 0), *, u: Any = None) -> dict[str, tf.Tensor]:
        """One step of a particle filter: the guide proposes where it looks at no other step, else the prior; the rest weighs.

        Particles are resampled (systematically) before a step where their effective number is below half of them.

        Args:
            x: the next observation of each sequence, `[B, D]`.
            state: `particles` `[B, N, S]`, `log_weights` `[B, N]` (normalised), `step` `[B]` int32, and where networks look
                back `previous` `[B, D]`; from `init_state` or from the last call.
            seed: `[2]` or `[B, 2]`; the same at every step, since `step` is counted in.
            u: controls `[B, U]`, where the model has them.

        Returns:
            the next state, and `log_prob` `[B]`: an estimate of log p(x_t | x_1 .. x_{t-1}), nats.
        """
        batch = self.one_step(x=x, u=u)
        weights = checks.array("state", state.get("log_weights")) if isinstance(state, Mapping) else np.zeros([])
        like = self._init_state(batch["seed"], weights.shape[-1] if weights.ndim else 1)
        seeds = random.row_seeds(seed, batch["row"])
        u = batch["u"][:, 0] if self.control_dim else None
        return self._filter_step(batch["x"][:, 0], self.checked_state(state, like), seeds, u)

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """The bound of each sequence, `[B]`: what `predict` returns."""
        return bounds.elbo(*self.terms(self.complete(batch), training)[:3])

    # Their graphs --------------------------------------------------------------------------------------------------

    @graph
    def _bounds(self, batch: Batch, num_samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = self._inputs(batch)
        reading = self.read(inputs)
        like = tf.zeros(tf.shape(batch["mask"])[:1], self.head.compute_dtype)

        def log_weights(numbers: tf.Tensor) -> tf.Tensor:
            log_lik, kl, _ = self._terms(inputs, self._infer(inputs, reading, numbers), analytic=False)
            return tf.transpose(masked_sum(log_lik - kl, inputs["mask"], axis=0))

        one = tf.size(batch["mask"], tf.int64) * self.widest  # int64: of many long sequences it passes 2^31
        chunk = tf.maximum(_CHUNK_FLOATS // tf.maximum(one, 1), 1)  # a number first would be int32
        return bounds.in_chunks(log_weights, num_samples, tf.cast(chunk, tf.int32), like)

    @graph
    def _filter_log_prob(self, batch: Batch, num_particles: tf.Tensor) -> tf.Tensor:
        inputs = self._inputs(batch)
        return tf.reduce_sum(self._filtered(inputs, self.read(inputs), tf.range(num_particles))[0], 0)

    @graph
    def _posterior(self, batch: Batch, num_samples: tf.Tensor) -> Posterior:
        inputs = self._inputs(batch)
        latents = self._infer(inputs, self.read(inputs), tf.range(num_samples))
        keep, path = batch["mask"], tf.transpose(latents.z, [1, 2, 0, 3])
        if self.flows:
            mean, variance = tf.nn.moments(path, [1])
        else:  # the moments of the mixture of the paths' Gaussians
            mean = tf.reduce_mean(latents.mean, 2)
            variance = tf.reduce_mean(latents.stddev**2 + (latents.mean - mean[:, :, None]) ** 2, 2)
            mean, variance = tf.transpose(mean, [1, 0, 2]), tf.transpose(variance, [1, 0, 2])
        samples = fill(path, tf.repeat(keep[:, None], num_samples, 1))
        return Posterior(fill(mean, keep), fill(tf.sqrt(variance), keep), samples)

    @graph
    def _sample(self, num_steps: tf.Tensor, seed: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor:
        rows = tf.shape(seed)[0]
        return self._generate(self.initial_state([rows]), self._silence(rows), tf.fill([rows], True), num_steps, seed, u)

    def _silence(self, num_rows: tf.Tensor) -> tf.Tensor:
        """What networks that look back see before the first step: zeros, `[B, .]`."""
        return tf.zeros([num_rows, self.encoded_dim], self.compute_dtype)

    def _generate(
        self, state: State, previous: tf.Tensor, is_new: tf.Tensor, num_steps: tf.Tensor, seed: tf.Tensor, u: tf.Tensor | None
    ) -> tf.Tensor:
        """x `[B, num_steps, D]` after the state and the observation `previous` `[B, .]`; rows that are new start with p(z_1)."""
        times = tf.range(tf.maximum(num_steps, 1))
        noise = tf.cast(random.normal(seed, times, self.latent_dim, PRIOR), self.compute_dtype)
        uniform = random.uniform(seed, times, self.head.num_uniforms, EMISSION)
        controls = () if u is None else (tf.transpose(tf.cast(some_steps(u), self.compute_dtype), [1, 0, 2]),)
        recursion = self.recursion()

        def advance(carried: tuple, inputs: tuple) -> tuple:
            (state, previous), (noise, uniform, t, *u) = carried, inputs
            known: dict[str, Any] = {"previous": previous} if self.looks_back else {}
            known |= {"u": u[0]} if u else {}
            mean, stddev = self.prior(state, known, is_new & (t == 0))
            embedded = recursion.embed(state, mean + stddev * noise, project)
            x = self.head.sample(self.emit(state, embedded, known), uniform)
            encoded = self.encoded(x)
            return (recursion.advance(state, embedded, self.features(encoded), project), encoded), x

        x = tf.zeros(self._shape_of_x(tf.shape(seed)[:1]), self.head.spec().dtype)
        _, x = loop(advance, (tuple(state), previous), (noise, uniform, times, *controls), x)
        return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])[:, :num_steps]

    def _shape_of_x(self, leading: tf.Tensor) -> tf.Tensor:
        return leading if self.head.is_symbol else tf.concat([leading, [self.head.event_dim]], 0)

    @graph
    def _forecast(self, batch: Batch, num_steps: tf.Tensor, num_samples: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor:
        inputs = self._inputs(batch)
        numbers, lengths = tf.range(num_samples), mask_to_lengths(batch["mask"])
        num_rows, is_new = tf.size(lengths), lengths == 0

        def per_sample(a: tf.Tensor) -> tf.Tensor:
            return tf.repeat(a, num_samples, 0)

        last = tf.stack([tf.maximum(lengths - 1, 0), tf.range(num_rows)], 1)
        state = self._state_after(inputs, numbers, last, is_new)
        previous = tf.where(is_new[:, None], self._silence(num_rows), tf.gather_nd(inputs["encoded"], last))
        seed = tf.reshape(random.fold_in(random.fold_in(batch["seed"], FUTURE)[:, None], numbers), [-1, 2])
        u = u if u is None else per_sample(u)
        x = self._generate(state, per_sample(previous), per_sample(is_new), num_steps, seed, u)
        return tf.reshape(x, tf.concat([[num_rows, num_samples], tf.shape(x)[1:]], 0))

    def _state_after(self, inputs: Known, numbers: tf.Tensor, last: tf.Tensor, is_new: tf.Tensor) -> State:
        """States after the `last` step `[B, 2]` (its time, its row) of paths of the guide, `[B * S, .]`; s_0 of new rows."""
        states = self._infer(inputs, self.read(inputs), numbers).states
        start = self.initial_state([tf.size(is_new) * tf.size(numbers)])
        found = (tf.reshape(tf.gather_nd(a, last), tf.shape(s)) for a, s in zip(states, start, strict=True))
        is_new = tf.repeat(is_new, tf.size(numbers))[:, None]
        return tuple(tf.where(is_new, s, a) for a, s in zip(found, start, strict=True))

    @graph
    def _impute(self, batch: Batch, num_samples: tf.Tensor) -> tf.Tensor:
        inputs = self._inputs(batch)
        numbers = tf.range(num_samples)
        latents = self._infer(inputs, self.read(inputs), numbers)
        num_steps, num_rows = tf.unstack(tf.shape(inputs["mask"]))
        width = self.head.num_uniforms
        seed = tf.reshape(random.fold_in(batch["seed"][:, None], numbers), [-1, 2])
        uniform = random.uniform(seed, tf.range(num_steps), width, EMISSION)
        uniform = tf.reshape(uniform, [num_steps, num_rows, num_samples, width])
        distribution = self.emit(self._before(latents.states), latents.embedded, self._known(inputs, num_samples))
        x = self.head.complete(distribution, inputs["x"][:, :, None], inputs["observed"][:, :, None], uniform)
        x = fill(x, tf.repeat(inputs["mask"][:, :, None], num_samples, 2))
        return tf.transpose(x, [1, 2, 0, *range(3, x.shape.rank)])

    @staticmethod
    def _joined(state: State, leading: Sequence[Any]) -> tf.Tensor:
        """A state as one float32 tensor `[*leading, S]`, also where it has no parts."""
        return tf.concat([*(tf.cast(a, tf.float32) for a in state), tf.zeros([*leading, 0])], -1)

    def _init_state(self, seed: tf.Tensor, num_particles: int) -> dict[str, tf.Tensor]:
        rows = tf.shape(seed)[0]
        state = {
            "particles": self._joined(self.initial_state([rows, num_particles]), [rows, num_particles]),
            "log_weights": tf.fill([rows, num_particles], -math.log(num_particles)),
            "step": tf.zeros([rows], tf.int32),
        }
        return state | (
            {"previous": tf.zeros(self._shape_of_x(tf.stack([rows])), self.head.spec().dtype)} if self.looks_back else {}
        )

    @graph
    def _filter_step(
        self, x: tf.Tensor, state: dict[str, tf.Tensor], seed: tf.Tensor, u: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        log_weights, step = state["log_weights"], state["step"]
        u = u if u is None else tf.cast(u, self.compute_dtype)
        rows, num = tf.unstack(tf.shape(log_weights))
        uniform = random.uniform(seed, step[None], 1, RESAMPLE)[0, :, 0]
        whole, sizes = tf.cast(state["particles"], self.compute_dtype), list(self.state_sizes)
        carried = tuple(tf.split(whole, sizes, -1)) if sizes else ()
        carried, log_weights = self._resampled(carried, log_weights, uniform)
        noise = random.normal(seed, step[None], num * self.latent_dim, PRIOR)
        noise = tf.reshape(tf.cast(noise, self.compute_dtype), [rows, num, self.latent_dim])
        known: dict[str, tf.Tensor] = {} if u is None else {"u": tf.repeat(u[:, None], num, 1)}
        if self.looks_back:
            before = tf.where(step[:, None] == 0, self._silence(rows), self.encoded(state["previous"]))
            known["previous"] = tf.repeat(before[:, None], num, 1)
        recursion, encoded = self.recursion(), self.encoded(x)
        prior_mean, prior_stddev = mean, stddev = self.prior(carried, known, tf.repeat((step == 0)[:, None], num, 1))
        if self.guide_is_causal:
            now = {"encoded": encoded[None], "mask": tf.fill([1, rows], True), "seed": seed} | (
                {} if u is None else {"u": u[None]}
            )
            context, features = (tuple(a[0][:, None] for a in part) for part in self.read(now))
            mean, stddev = recursion.propose(context, carried, project)
        else:
            features = tuple(a[:, None] for a in self.features(encoded))
        z = mean + stddev * noise
        embedded = recursion.embed(carried, z, project)
        weight = self.head.log_prob(self.emit(carried, embedded, known), x[:, None])
        if self.guide_is_causal:
            path = Latents(z, mean, stddev, noise, None, embedded, carried)
            weight -= self._divergence(
                path, tf.cast(prior_mean, weight.dtype), tf.cast(prior_stddev, weight.dtype), analytic=False
            )
        log_weights += tf.cast(weight, log_weights.dtype)
        log_weights, log_prob = particles.normalised(log_weights)
        carried = recursion.advance(carried, embedded, features, project)
        after = {
            "particles": self._joined(carried, [rows, num]),
            "log_weights": log_weights,
            "step": step + 1,
        }
        return after | ({"previous": x} if self.looks_back else {}) | {"log_prob": log_prob}

    # Served signatures ---------------------------------------------------------------------------------------------

    def score(self, batch: Batch, num_samples: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the served signature `score` answers, `[B]`."""
        return {"elbo": self._bounds(batch, num_samples)[0]}

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures; `num_samples` and `num_particles` are fixed at export."""
        x, state = self.batch_spec()["x"], self._init_state(tf.zeros([1, 2], tf.int32), num_particles)

        def several() -> tf.Tensor:
            """A constant of the graph that asks for it, so that shapes are known there: LiteRT needs them."""
            return tf.constant(num_samples)

        def named(name: str, *shape: int | None, dtype: tf.DType = tf.int32) -> tf.TensorSpec:
            return tf.TensorSpec(shape, dtype, name)

        sequence = [tf.TensorSpec(x.shape, x.dtype, "x"), named("lengths", None), named("seed", None, 2)]
        controls = [named("u", None, None, self.control_dim, dtype=tf.float32)] if self.control_dim else []
        future = [named("future_u", None, None, self.control_dim, dtype=tf.float32)] if self.control_dim else []

        def batch(given: dict[str, tf.Tensor]) -> Batch:
            """Served inputs as a batch."""
            entries: Batch = {name: given[name] for name in ("x", "u", "observed", "seed") if name in given}
            return self.complete({**entries, "mask": lengths_to_mask(given["lengths"], tf.shape(given["x"])[1])})

        def score(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.score(batch(given), several())

        def smooth(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            mean, stddev, _ = self._posterior(batch(given), several())
            num_steps = tf.shape(given["x"])[1]
            return {"mean": mean[:, :num_steps], "stddev": stddev[:, :num_steps]}

        def impute(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"x": self._impute(batch(given), tf.constant(1))[:, 0, : tf.shape(given["x"])[1]]}

        def forecast(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps = given["num_steps"]
            x = self._forecast(batch(given), tf.reduce_max(num_steps), several(), given.get("future_u"))
            return {"x": until(x, num_steps, 2), "length": tf.identity(num_steps)}

        def sample(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps = given["num_steps"]
            x = self._sample(tf.reduce_max(num_steps), given["seed"], given.get("u"))
            return {"x": until(x, num_steps, 1), "length": tf.identity(num_steps)}

        def init_state(seed: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._init_state(seed, num_particles)

        def filter_step(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._filter_step(given["x"], {k: given[k] for k in state}, given["seed"], given.get("u"))

        steps, seed = named("num_steps", None), sequence[2]
        now = [self.head.spec(None), *([tf.TensorSpec([None, self.control_dim])] if self.control_dim else [])]
        now = [tf.TensorSpec(s.shape, s.dtype, n) for s, n in zip(now, ("x", "u"), strict=False)]
        states = [tf.TensorSpec([None, *a.shape[1:]], a.dtype, n) for n, a in state.items()]
        scored = sequence[:2] if hasattr(self, "log_prob") else sequence  # where nothing is random there is no seed
        found: dict[str, Endpoint] = {name: (score, [*scored, *controls]) for name in ("serving_default", "score")}
        if self.latent_dim:
            found["smooth"] = (smooth, [*sequence, *controls])
        found["forecast"] = (forecast, [*sequence, *controls, steps, *future])
        if self.head.supports_missing:
            found["impute"] = (impute, [*sequence, tf.TensorSpec(x.shape, tf.bool, "observed"), *controls])
        found["sample"] = (sample, [steps, seed, *controls])
        found["init_state"] = (init_state, [seed])
        found["filter_step"] = (filter_step, [*now, *states, seed])
        return found
