"""The deep Markov model: a Gaussian state-space model with neural transition, emission and structured inference.

    z_1 ~ p(z_1),   z_t ~ N(mu(z_{t-1}), diag sigma^2(z_{t-1})),   x_t ~ p(x_t | z_t)

Krishnan, Shalit and Sontag 2017, "Structured inference networks for nonlinear state space models"; equations are theirs. Of the
posterior only the sampling of z is sequential: encoder, transition, KL and emission run on all steps at once.
Inside this file time comes first: T steps, B rows, S samples, Z latent, H hidden units, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers import heads
from tfseq.layers.flows import InverseAutoregressiveFlow
from tfseq.layers.mlp import MLP
from tfseq.layers.recurrent import Cell, Recurrent
from tfseq.models.base import FROM_DATA, Batch, Endpoint, SequenceModel, Terms, counts, graph
from tfseq.ops import bounds, particles, random
from tfseq.ops.linear import project
from tfseq.ops.masking import fill, lengths_to_mask, mask_to_lengths, masked_sum
from tfseq.ops.scan import Multiply, loop, scan

Dense = keras.layers.Dense

Scale = Literal["variance", "stddev"]
Guide = Literal["ST-R", "ST-L", "ST-LR", "MF-LR"]

# What a random number is for; two uses never share their numbers.
_GUIDE, _PRIOR, _EMISSION, _DROPOUT, _RESAMPLE, _FUTURE = range(6)
_CHUNK_FLOATS = 2**26  # what the samples of one chunk of importance sampling may hold at once


def to_stddev(raw: tf.Tensor, scale: Scale) -> tf.Tensor:
    """softplus(raw), read as a variance or as a standard deviation, -> standard deviation, at least 1e-4."""
    raw = tf.nn.softplus(raw)
    return (tf.sqrt(raw + heads.MIN_STDDEV**2)) if scale == "variance" else raw + heads.MIN_STDDEV


@keras.saving.register_keras_serializable("tfseq")
class Transition(keras.layers.Layer):
    """p(z_t | z_{t-1}, c_t) = N(mu, diag sigma^2): (z `[..., Z]`, c `[..., C]` or None) -> mu, sigma `[..., Z]`.

    c holds what else enters a transition: controls and, with "Aug" edges, the previous observation.

    - `"gated"`, section 5: g = sigmoid(W2 relu(W1 z)), h = W4 relu(W3 z), mu = (1 - g) (Wp z + bp) + g h,
      sigma from softplus(W relu(h) + b), with Wp = I and bp = 0 at the start.
    - `"mlp"`: mu = W2 relu(W1 z), sigma from softplus(W3 relu(W1 z)).
    - `"linear"`: mu = W z + b, sigma constant: with linear emissions, a linear-Gaussian state-space model.
    """

    def __init__(self, latent_dim: int, hidden_dim: int, kind: str = "gated", scale: Scale = "stddev", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.choice("transition", kind, ("gated", "mlp", "linear"))
        self.kind, self.scale, self.hidden_dim = kind, scale, hidden_dim
        # the identity for z; controls start without effect
        identity = keras.initializers.Constant(0.0) if kind == "mlp" else _identity
        self.linear: Any = Dense(latent_dim, kernel_initializer=identity, name="linear") if kind != "mlp" else None
        if kind == "gated":
            self.gate = MLP(hidden_dim, latent_dim, "sigmoid", name="gate")
            self.proposal = MLP(hidden_dim, latent_dim, name="proposal")
        if kind == "mlp":
            self.hidden, self.mean = Dense(hidden_dim, "relu", name="hidden"), Dense(latent_dim, name="mean")
        if kind == "linear":
            self.raw_scale = self.add_weight(shape=(latent_dim,), initializer="zeros", name="raw_scale")
        else:
            self.raw_scale = Dense(latent_dim, name="raw_scale")

    def call(self, z: tf.Tensor, extra: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = z if extra is None else tf.concat([z, extra], -1)
        if self.kind == "gated":
            gate, proposal = self.gate(inputs), self.proposal(inputs)  # (2), (3)
            mean = (1.0 - gate) * self.linear(inputs) + gate * proposal  # (4)
            return mean, to_stddev(self.raw_scale(tf.nn.relu(proposal)), self.scale)  # (5)
        if self.kind == "mlp":
            hidden = self.hidden(inputs)
            return self.mean(hidden), to_stddev(self.raw_scale(hidden), self.scale)
        mean = self.linear(inputs)
        return mean, to_stddev(tf.cast(self.raw_scale, mean.dtype) + tf.zeros_like(mean), self.scale)


@keras.saving.register_keras_serializable("tfseq", "identity")
def _identity(shape: tuple[int, int], dtype: Any = None) -> tf.Tensor:
    """Ones on the diagonal of a `[Z + C, Z]` kernel."""
    return tf.eye(*shape, dtype=dtype)


@keras.saving.register_keras_serializable("tfseq")
class StructuredGuide(keras.layers.Layer):
    """q(z_t | z_{t-1}, x) for all t: an encoder over the observations and a combiner with the previous latent.

    Section 4 and table 1 of the paper. With h_left from x_1..x_t and h_right from x_t..x_T:

    - `"ST-R"` (DKS): h = (tanh(W z_{t-1} + b) + h_right) / 2, the factorisation of the exact posterior;
    - `"ST-L"`: the same with h_left, a filter;
    - `"ST-LR"`: h = (tanh(W z_{t-1} + b) + h_left + h_right) / 3;
    - `"MF-LR"`: no z_{t-1}; the product of one Gaussian from h_left and one from h_right;

    then mu = W h + b, sigma from softplus(W h + b).

    Args:
        latent_dim: Z.
        kind: one of the four names above.
        cell, units: the encoder's recurrent cell and its size H.
        embedding_dim: units of a ReLU layer between the observation and the encoder; 0 for none.
        scale: whether softplus gives a variance or a standard deviation.
        learned_start: learn the encoder's initial state.
        dropout: share of the encoder's outputs that is set to zero in training.
    """

    def __init__(
        self,
        latent_dim: int,
        kind: Guide = "ST-R",
        cell: Cell = "rnn",
        units: int = 600,
        embedding_dim: int = 0,
        scale: Scale = "stddev",
        learned_start: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.choice("guide", kind, ("ST-R", "ST-L", "ST-LR", "MF-LR"))
        self.kind, self.scale, self.dropout, self.units = kind, scale, dropout, units
        self.is_structured = kind != "MF-LR"
        self.embedding = Dense(embedding_dim, "relu", name="embedding") if embedding_dim else None
        activation = "relu" if cell == "rnn" else "tanh"
        self.encoders = [
            Recurrent(units, cell, activation, reverse=reverse, learned_initial=learned_start, name=name)
            for name, reverse, letter in (("left", False, "L"), ("right", True, "R"))
            if letter in kind.split("-")[1]
        ]
        self.from_latent: Any = Dense(units, name="from_latent") if self.is_structured else None
        self.moments = [Dense(2 * latent_dim, name=f"moments_{i}") for i in range(1 if self.is_structured else 2)]
        for moments in self.moments:
            moments.build((None, units))
        if self.from_latent is not None:
            self.from_latent.build((None, latent_dim))  # the scan multiplies by its kernel and never calls it

    def encode(self, inputs: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor, training: bool) -> tuple[tf.Tensor, ...]:
        """Inputs `[T, B, D]` -> what the encoders say of each step: one or two tensors `[T, B, H]`."""
        inputs = inputs if self.embedding is None else self.embedding(inputs)
        outputs = []
        for i, encoder in enumerate(self.encoders):
            hidden, _ = encoder(inputs, mask)
            if training and self.dropout:
                times = tf.range(tf.shape(hidden)[0])
                uniform = random.uniform(random.fold_in(seed, i), times, self.units, _DROPOUT)
                hidden *= tf.cast(uniform >= self.dropout, hidden.dtype) / (1.0 - self.dropout)
            outputs.append(hidden)
        return (tf.add_n(outputs),) if self.is_structured else tuple(outputs)

    def combiner(self) -> Callable[[tuple[tf.Tensor, ...], tf.Tensor, Multiply], tuple[tf.Tensor, tf.Tensor]]:
        """The function (encoder outputs `[..., H]`, z_{t-1} `[..., Z]`, multiply) -> mean and stddev of z_t `[..., Z]`.

        The weights are cast here, once, and not at every step of a loop.
        """
        layers = [*([self.from_latent] if self.is_structured else []), *self.moments]
        weights = [(tf.cast(a.kernel, self.compute_dtype), tf.cast(a.bias, self.compute_dtype)) for a in layers]

        def structured(context: tuple[tf.Tensor, ...], z: tf.Tensor, multiply: Multiply) -> tuple[tf.Tensor, tf.Tensor]:
            (kernel, bias), (moments_kernel, moments_bias) = weights
            latent = tf.tanh(tf.nn.bias_add(multiply(z, kernel), bias))
            hidden = (latent + context[0]) / (1.0 + len(self.encoders))
            mean, raw = tf.split(tf.nn.bias_add(multiply(hidden, moments_kernel), moments_bias), 2, -1)
            return mean, to_stddev(raw, self.scale)

        def mean_field(context: tuple[tf.Tensor, ...], _: tf.Tensor, multiply: Multiply) -> tuple[tf.Tensor, tf.Tensor]:
            raw = (
                tf.split(tf.nn.bias_add(multiply(h, kernel), bias), 2, -1)
                for h, (kernel, bias) in zip(context, weights, strict=True)
            )
            # precisions do not fit into float16, so the product of the two Gaussians takes the dtype of the weights
            (left, stddev_left), (right, stddev_right) = (
                (tf.cast(mean, self.variable_dtype), tf.cast(to_stddev(scale, self.scale), self.variable_dtype))
                for mean, scale in raw
            )
            precise_left, precise_right = stddev_left**-2, stddev_right**-2
            precision = precise_left + precise_right
            mean = (left * precise_left + right * precise_right) / precision
            return tf.cast(mean, self.compute_dtype), tf.cast(precision**-0.5, self.compute_dtype)

        return structured if self.is_structured else mean_field


def gaussian_kl(mean: tf.Tensor, stddev: tf.Tensor, prior_mean: tf.Tensor, prior_stddev: tf.Tensor) -> tf.Tensor:
    """KL(N(mean, diag stddev^2) || N(prior_mean, diag prior_stddev^2)), summed over the last axis; equation (7) of the paper."""
    ratio = stddev / prior_stddev
    return tf.reduce_sum(0.5 * (ratio**2 + ((mean - prior_mean) / prior_stddev) ** 2 - 1.0) - tf.math.log(ratio), -1)


class Latents(NamedTuple):
    """A path z of the guide, all `[T, ..., Z]`: z = flows(mean + stddev * noise); log_det `[T, ...]` is the flows'."""

    z: tf.Tensor
    mean: tf.Tensor
    stddev: tf.Tensor
    noise: tf.Tensor
    log_det: tf.Tensor


class Posterior(NamedTuple):
    """q(z | x): mean and stddev `[B, T, Z]` of each step, over the sampled paths; sample `[B, S, T, Z]`, the paths."""

    mean: tf.Tensor
    stddev: tf.Tensor
    sample: tf.Tensor


@keras.saving.register_keras_serializable("tfseq")
class DeepMarkovModel(SequenceModel):
    """Deep Markov model (Krishnan et al. 2017), trained on the ELBO with `fit`.

    >>> import keras, numpy as np, tfseq
    >>> keras.utils.set_random_seed(0)
    >>> x = (np.random.default_rng(0).random((8, 5, 3)) < 0.5).astype("float32")
    >>> model = tfseq.DeepMarkovModel(observation_dim=3, latent_dim=2, rnn_units=4)
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> history = model.fit(x, epochs=1, verbose=0)
    >>> model.sample(num_sequences=2, num_steps=7, seed=[0, 1]).shape
    TensorShape([2, 7, 3])

    Args:
        observation_dim: D, features of an observation (number of symbols for `"categorical"`). From data.
        mean: mean of the (encoded) data, `[D]`: the emission starts there. From data.
        control_dim: U, size of the controls `u`. From data.
        missing: whether features may be missing: the encoder and "Aug" edges then also see `observed`. From data.
        latent_dim: Z.
        head: family of the observations: `"bernoulli"`, `"normal"`, `"poisson"`, `"categorical"`.
        transition: `"gated"`, `"mlp"` or `"linear"`.
        transition_dim: hidden units of the transition.
        emission_layers, emission_dim: number and size of the emission's ReLU layers.
        guide: `"ST-R"` (DKS), `"ST-L"`, `"ST-LR"` or `"MF-LR"`.
        cell, rnn_units: the guide's recurrent cell (`"rnn"` is ReLU) and its size.
        embedding_dim: units of a ReLU layer before the encoder, 0 for none.
        dropout: share of the encoder's outputs that is dropped in training.
        scale: whether softplus outputs are standard deviations (`"stddev"`) or variances (`"variance"`).
        learned_start: p(z_1) = transition from a learned z_0, and a learned z_0 of the guide and its encoder;
            if False, p(z_1) = N(0, I) and zeros.
        kl: `"analytic"` for the closed form of each step given z_{t-1}, `"sampled"` for log q - log p; `"auto"` is
            analytic where there are no flows.
        objective: what training maximises: `"elbo"`, or `"iwae"`, the importance-weighted bound of `train_samples` paths (Burda
            et al. 2016, eq. 8), a tighter one. The bound that is reported is the ELBO in either case.
        train_samples: paths of the guide for each training sequence.
        num_flows, flow_dim: inverse autoregressive flows after the guide's Gaussian, shared over time, and their size.
        augment: "Aug" edges: the previous observation also enters transition and emission.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "krishnan": {
            "cell": "lstm",
            "embedding_dim": 600,
            "dropout": 0.1,
            "scale": "variance",
            "learned_start": False,
            "kl": "analytic",
        },
        "pyro": {"cell": "rnn", "embedding_dim": 0, "dropout": 0.0, "scale": "stddev", "learned_start": True, "kl": "sampled"},
    }

    def __init__(
        self,
        *,
        observation_dim: Annotated[int, FROM_DATA],
        mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        control_dim: Annotated[int, FROM_DATA] = 0,
        missing: Annotated[bool, FROM_DATA] = False,
        latent_dim: int = 100,
        head: Literal["bernoulli", "normal", "poisson", "categorical"] = "bernoulli",
        transition: Literal["gated", "mlp", "linear"] = "gated",
        transition_dim: int = 200,
        emission_layers: int = 2,
        emission_dim: int = 100,
        guide: Guide = "ST-R",
        cell: Cell = "rnn",
        rnn_units: int = 600,
        embedding_dim: int = 0,
        dropout: float = 0.0,
        scale: Scale = "stddev",
        learned_start: bool = True,
        kl: Literal["auto", "analytic", "sampled"] = "auto",
        objective: Literal["elbo", "iwae"] = "elbo",
        train_samples: int = 1,
        num_flows: int = 0,
        flow_dim: int = 100,
        augment: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, observation_dim=observation_dim, latent_dim=latent_dim, transition_dim=transition_dim)
        checks.at_least(1, emission_dim=emission_dim, rnn_units=rnn_units, flow_dim=flow_dim)
        checks.at_least(0, control_dim=control_dim, emission_layers=emission_layers, embedding_dim=embedding_dim)
        checks.at_least(0, num_flows=num_flows)
        checks.at_least(1, train_samples=train_samples)
        checks.fraction(dropout=dropout)
        checks.choice("scale", scale, ("variance", "stddev"))
        checks.choice("kl", kl, ("auto", "analytic", "sampled"))
        checks.choice("objective", objective, ("elbo", "iwae"))
        if kl == "analytic" and num_flows:
            raise ValueError(
                f"`kl` must be 'sampled' or 'auto' with flows (no closed form); received 'analytic' and num_flows={num_flows}."
            )
        self.latent_dim, self.control_dim, self.missing = latent_dim, control_dim, missing
        self.learned_start, self.augment = learned_start, augment
        self.objective, self.train_samples = objective, train_samples
        self.analytic_kl = kl == "analytic" or (kl == "auto" and not num_flows)

        # p(z_t | z_{t-1})
        self.transition = Transition(latent_dim, transition_dim, transition, scale, name="transition")
        # p(x_t | z_t)
        self.emission = MLP(emission_dim, num_layers=emission_layers, name="emission")
        self.head = heads.head_class(head)(observation_dim, mean, name="head")
        # q(z_t | z_{t-1}, x)
        self.guide = StructuredGuide(
            latent_dim, guide, cell, rnn_units, embedding_dim, scale, learned_start, dropout, name="guide"
        )
        self.flows = [InverseAutoregressiveFlow(flow_dim, reverse=i % 2 == 1, name=f"flow_{i}") for i in range(num_flows)]
        if learned_start:
            self.prior_start = self.add_weight(shape=(latent_dim,), initializer="zeros", name="prior_start")
            if self.guide.is_structured:
                self.guide_start = self.add_weight(shape=(latent_dim,), initializer="zeros", name="guide_start")
        self._encoded_dim = observation_dim * (1 + (missing and not self.head.is_symbol)) + (missing and self.head.is_symbol)
        self.create_weights()

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A model for the observations `dataset.x` (and `.observed`, `.u`): their number, range and mean are filled in."""
        dataset = cls.as_dataset(dataset)
        if not len(dataset.x):
            raise ValueError("`dataset` has no sequences; the size and the mean of its observations make the model.")
        head = heads.head_class(hyperparameters.get("head", "bernoulli"))
        observed, u = getattr(dataset, "observed", None), getattr(dataset, "u", None)
        found = {
            "observation_dim": head.event_dim_of(dataset.x, observed),
            "mean": head.mean_of(dataset.x, observed),
            "control_dim": 0 if u is None else int(u[0].shape[-1]),
            "missing": observed is not None,
        }
        return cls(**{**found, **hyperparameters})

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        sizes = {"observation_dim": 3, "latent_dim": 2, "transition_dim": 4, "emission_dim": 4, "rnn_units": 5}
        return cls(**{**sizes, "emission_layers": 1, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        x = self.head.spec(None, None)
        specs = {"x": x, "observed": tf.TensorSpec(x.shape, tf.bool)}
        return specs | ({"u": tf.TensorSpec([None, None, self.control_dim])} if self.control_dim else {})

    def check_values(self, x: np.ndarray) -> None:
        self.head.check(x, self.head.event_dim)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        return self.head.supports(x, self.head.event_dim)

    # The generative story ------------------------------------------------------------------------------------------

    def prior(self, z: tf.Tensor, extra: tf.Tensor | None, is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """p(z_t | z_{t-1}): z `[..., Z]`, extra `[..., C]` -> mean, stddev; where `is_first` (bool, `[...]`), p(z_1)."""
        is_first = is_first[..., None]
        if self.learned_start:
            return self.transition(tf.where(is_first, tf.cast(self.prior_start, z.dtype), z), extra)
        mean, stddev = self.transition(z, extra)
        return tf.where(is_first, tf.zeros_like(mean), mean), tf.where(is_first, tf.ones_like(stddev), stddev)

    def emit(self, z: tf.Tensor, previous: tf.Tensor | None) -> tfd.Distribution:
        """p(x_t | z_t): z `[..., Z]` (and with "Aug" edges the encoded x_{t-1}) -> distribution."""
        hidden = z if previous is None else tf.concat([z, previous], -1)
        return self.head(self.emission(hidden))

    def _encode(self, x: tf.Tensor, observed: tf.Tensor | None) -> tf.Tensor:
        """What networks see of an observation: the encoded x, and which features were measured where some may be missing."""
        encoded = tf.cast(self.head.encode(x), self.compute_dtype)
        if not self.missing:
            return encoded
        seen = tf.ones_like(x, tf.bool) if observed is None else observed
        return tf.concat([encoded, tf.cast(seen[..., None] if self.head.is_symbol else seen, encoded.dtype)], -1)

    def _extra(self, previous: tf.Tensor | None, u: tf.Tensor | None) -> tf.Tensor | None:
        parts = [tf.cast(a, self.compute_dtype) for a in (previous, u) if a is not None]
        return tf.concat(parts, -1) if parts else None

    # Inference -----------------------------------------------------------------------------------------------------

    def _inputs(self, batch: Batch) -> dict[str, tf.Tensor]:
        """A batch, time first: finite x, `encoded`, `previous` (with "Aug" edges), `mask`, `seed`, the transition's `extra`."""
        mask, observed = batch["mask"], batch.get("observed")
        x = fill(batch["x"], mask)
        if observed is not None:
            observed = observed & tf.reshape(mask, tf.concat([tf.shape(mask), [1] * (observed.shape.rank - 2)], 0))
            x = fill(x, observed, self._filling(x))
        steps = {"x": x, "mask": mask} | ({} if observed is None else {"observed": observed})
        if self.control_dim:
            steps["u"] = fill(batch["u"], mask)
        inputs = {name: tf.transpose(a, [1, 0, *range(2, a.shape.rank)]) for name, a in steps.items()}
        inputs["encoded"] = self._encode(inputs["x"], inputs.get("observed"))
        if self.augment:
            inputs["previous"] = tf.concat([tf.zeros_like(inputs["encoded"][:1]), inputs["encoded"][:-1]], 0)
        extra = self._extra(inputs.get("previous"), inputs.get("u"))
        if extra is not None:
            inputs["extra"] = extra
        return {**inputs, "seed": batch["seed"]}

    def _filling(self, x: tf.Tensor) -> tf.Tensor:
        """What stands where a feature was not measured: its mean; symbol 0 for symbols."""
        if self.head.mean is None or self.head.is_symbol:
            return tf.zeros([], x.dtype)
        return tf.constant(self.head.mean, x.dtype)

    def _context(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tuple[tf.Tensor, ...]:
        """What the guide's encoder says of each step, `[T, B, H]`."""
        parts = [inputs["encoded"], *([tf.cast(inputs["u"], self.compute_dtype)] if self.control_dim else [])]
        return self.guide.encode(tf.concat(parts, -1), inputs["mask"], inputs["seed"], training)

    def _infer(
        self, inputs: Mapping[str, tf.Tensor], context: tuple[tf.Tensor, ...], numbers: tf.Tensor | None = None
    ) -> Latents:
        """One path of the guide, `[T, B, Z]`; with sample `numbers` `[S]`, a path for each, `[T, B, S, Z]`."""
        num_steps, num_rows = tf.unstack(tf.shape(inputs["mask"]))
        seed, shape = inputs["seed"], [num_steps, num_rows, self.latent_dim]
        if numbers is not None:
            context = tuple(c[:, :, None] for c in context)
            seed = tf.reshape(random.fold_in(seed[:, None], numbers), [-1, 2])
            shape = [num_steps, num_rows, tf.size(numbers), self.latent_dim]
        noise = tf.reshape(random.normal(seed, tf.range(num_steps), self.latent_dim, _GUIDE), shape)
        noise = tf.cast(noise, context[0].dtype)

        combine = self.guide.combiner()

        def step(z: tf.Tensor, inputs: tuple, multiply: Multiply) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
            context, noise = inputs
            mean, stddev = combine(context, z, multiply)
            z = mean + stddev * noise
            log_det = tf.zeros_like(z[..., 0])
            for flow in self.flows:
                z, change = flow(z)
                log_det += change
            return z, (mean, stddev, log_det)

        if self.guide.is_structured:
            start = tf.cast(self.guide_start, noise.dtype) if self.learned_start else tf.zeros([self.latent_dim], noise.dtype)
            z, (mean, stddev, log_det) = scan(step, start + tf.zeros_like(noise[0]), (context, noise))
        else:
            z, (mean, stddev, log_det) = step(noise, (context, noise), project)  # no step depends on another
            mean, stddev = (tf.broadcast_to(a, tf.shape(noise)) for a in (mean, stddev))
        return Latents(z, mean, stddev, noise, log_det)

    def _terms(self, inputs: Mapping[str, tf.Tensor], latents: Latents, analytic: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """log p(x_t | z_t) and the divergence of step t, both `[T, B]` (`[T, B, S]` with a sample axis)."""
        has_samples = latents.z.shape.rank == 4

        def match(a: tf.Tensor | None) -> tf.Tensor | None:
            """`[T, B, ...]` -> broadcast over the sample axis."""
            if a is None or not has_samples:
                return a
            return tf.repeat(a[:, :, None], tf.shape(latents.z)[2], 2)

        # tf.slice, whose gradient is a padding: that of z[:-1] is slow
        earlier = tf.slice(latents.z, [0] * latents.z.shape.rank, tf.shape(latents.z) - [1, *[0] * (latents.z.shape.rank - 1)])
        z_previous = tf.concat([tf.zeros_like(latents.z[:1]), earlier], 0)
        is_first = tf.reshape(tf.range(tf.shape(z_previous)[0]) == 0, [-1] + [1] * (z_previous.shape.rank - 2))
        mean, stddev = self.prior(z_previous, match(inputs.get("extra")), is_first)
        observed = inputs.get("observed")
        x = inputs["x"][:, :, None] if has_samples else inputs["x"]
        observed = observed[:, :, None] if has_samples and observed is not None else observed
        log_lik = self.head.log_prob(self.emit(latents.z, match(inputs.get("previous"))), x, observed)
        q = [tf.cast(a, log_lik.dtype) for a in latents]
        mean, stddev = tf.cast(mean, log_lik.dtype), tf.cast(stddev, log_lik.dtype)
        if analytic:
            return log_lik, gaussian_kl(q[1], q[2], mean, stddev)
        log_q = -tf.reduce_sum(0.5 * q[3] ** 2 + tf.math.log(q[2]), -1) - q[4]  # both without Z/2 log 2 pi
        log_p = -tf.reduce_sum(0.5 * ((q[0] - mean) / stddev) ** 2 + tf.math.log(stddev), -1)
        return log_lik, log_q - log_p

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        inputs = self._inputs(batch)
        numbers = tf.range(self.train_samples) if training and self.train_samples > 1 else None
        latents = self._infer(inputs, self._context(inputs, training), numbers)
        weighted = self.objective == "iwae" and numbers is not None
        log_lik, kl = self._terms(inputs, latents, self.analytic_kl and not weighted)
        objective = None
        if weighted:
            log_weights = masked_sum(log_lik - tf.cast(self.kl_weight, kl.dtype) * kl, inputs["mask"], axis=0)  # [B, S]
            objective = bounds.iwae(tf.transpose(log_weights))
        if numbers is not None:
            log_lik, kl = tf.reduce_mean(log_lik, -1), tf.reduce_mean(kl, -1)
        return Terms(tf.transpose(log_lik), tf.transpose(kl), batch["mask"], objective)

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

    def bounds(self, data: Any, num_samples: int, seed: Any = (0, 0)) -> tuple[tf.Tensor, tf.Tensor]:
        """(`elbo`, `importance_log_prob`) of each sequence from the same samples, `[B]` each, with the sampled KL."""
        return self._bounds(self.given(data, seed=seed), *counts(num_samples=num_samples))

    def posterior(
        self, x: Any, mask: Any = None, seed: Any = (0, 0), num_samples: int = 100, *, observed: Any = None, u: Any = None
    ) -> Posterior:
        """q(z | x), smoothed over the whole sequence; zeros at padded steps. Arguments as of `elbo`.

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
        """Completions `[B, num_samples, T, D]`: x where `observed`, else a sample given what was; zeros at padded steps."""
        batch = self.given(x, mask, seed, observed=observed, u=u)
        if "observed" not in batch:
            raise ValueError("`impute` needs `observed`, bool of the shape of `x`, False where a value is to be filled in.")
        return self._impute(batch, *counts(num_samples=num_samples))

    def init_state(self, num_sequences: int, num_particles: int = 256) -> dict[str, tf.Tensor]:
        """State of the particle filter before the first observation; see `filter_step`."""
        checks.at_least(1, num_particles=num_particles)
        return self._init_state(tf.zeros([num_sequences, 2], tf.int32), num_particles)

    def filter_step(self, x: Any, state: Mapping[str, Any], seed: Any = (0, 0), *, u: Any = None) -> dict[str, tf.Tensor]:
        """One step of a bootstrap particle filter: the transition proposes, the emission weighs.

        Particles are resampled (systematically) before a step where their effective number is below half of them.

        Args:
            x: the next observation of each sequence, `[B, D]`.
            state: `particles` `[B, N, Z]`, `log_weights` `[B, N]` (normalised), `step` `[B]` int32, and with "Aug" edges
                `previous` `[B, D]`; from `init_state` or from the last call.
            seed: `[2]` or `[B, 2]`; the same at every step, since `step` is counted in.
            u: controls `[B, U]`, where the model has them.

        Returns:
            the next state, and `log_prob` `[B]`: an estimate of log p(x_t | x_1 .. x_{t-1}), nats.
        """
        sequences = {name: np.asarray(a)[:, None] for name, a in (("x", x), ("u", u)) if a is not None}  # of one step
        batch = self.complete({**self.as_batch(sequences), "seed": random.as_seed(seed)})
        return self._filter_step(batch["x"][:, 0], dict(state), batch["seed"], batch["u"][:, 0] if self.control_dim else None)

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """The ELBO of each sequence, `[B]`: what `predict` returns."""
        return bounds.elbo(*self.terms(self.complete(batch), training)[:3])

    # Their graphs --------------------------------------------------------------------------------------------------

    @graph
    def _bounds(self, batch: Batch, num_samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = self._inputs(batch)
        encoded = self._context(inputs)
        like = tf.zeros(tf.shape(batch["mask"])[:1], self.head.compute_dtype)
        widest = self.guide.units + 2 * self.transition.hidden_dim

        def log_weights(numbers: tf.Tensor) -> tf.Tensor:
            log_lik, kl = self._terms(inputs, self._infer(inputs, encoded, numbers), analytic=False)
            return tf.transpose(masked_sum(log_lik - kl, inputs["mask"], axis=0))

        chunk = tf.maximum(1, _CHUNK_FLOATS // tf.maximum(1, tf.size(batch["mask"]) * widest))
        return bounds.in_chunks(log_weights, num_samples, chunk, like)

    @graph
    def _posterior(self, batch: Batch, num_samples: tf.Tensor) -> Posterior:
        inputs = self._inputs(batch)
        latents = self._infer(inputs, self._context(inputs), tf.range(num_samples))
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
        z = tf.zeros([tf.shape(seed)[0], self.latent_dim], self.compute_dtype)
        return self._generate(z, self._silence(tf.shape(seed)[0]), tf.ones(tf.shape(seed)[:1], tf.bool), num_steps, seed, u)

    def _silence(self, num_rows: tf.Tensor) -> tf.Tensor:
        """What "Aug" edges see before the first step: zeros, `[B, ...]`."""
        return tf.zeros([num_rows, self._encoded_dim], self.compute_dtype)

    def _generate(
        self, z: tf.Tensor, previous: tf.Tensor, is_new: tf.Tensor, num_steps: tf.Tensor, seed: tf.Tensor, u: tf.Tensor | None
    ) -> tf.Tensor:
        """x `[B, num_steps, D]` after the state (z `[B, Z]`, previous `[B, .]`); rows that are new start with p(z_1)."""
        times = tf.range(tf.maximum(num_steps, 1))
        noise = tf.cast(random.normal(seed, times, self.latent_dim, _PRIOR), z.dtype)
        uniform = random.uniform(seed, times, 1 if self.head.is_symbol else self.head.event_dim, _EMISSION)
        controls = () if u is None else (tf.transpose(u, [1, 0, 2]),)

        def advance(state: tuple, inputs: tuple) -> tuple:
            (z, previous), (noise, uniform, t, *u) = state, inputs
            previous = previous if self.augment else None
            mean, stddev = self.prior(z, self._extra(previous, u[0] if u else None), is_new & (t == 0))
            z = mean + stddev * noise
            x = self.head.sample(self.emit(z, previous), uniform)
            return (z, self._encode(x, None)), x

        x = tf.zeros(self._shape_of_x(tf.shape(z)[:1]), self.head.spec().dtype)
        _, x = loop(advance, (z, previous), (noise, uniform, times, *controls), x)
        return tf.transpose(x, [1, 0, *range(2, x.shape.rank)])[:, :num_steps]

    def _shape_of_x(self, leading: tf.Tensor) -> tf.Tensor:
        return leading if self.head.is_symbol else tf.concat([leading, [self.head.event_dim]], 0)

    @graph
    def _forecast(self, batch: Batch, num_steps: tf.Tensor, num_samples: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor:
        inputs = self._inputs(batch)
        numbers = tf.range(num_samples)
        latents = self._infer(inputs, self._context(inputs), numbers)
        lengths = mask_to_lengths(batch["mask"])
        last = tf.stack([tf.maximum(lengths - 1, 0), tf.range(tf.size(lengths))], 1)

        def per_sample(a: tf.Tensor) -> tf.Tensor:
            return tf.repeat(a, num_samples, 0)

        z = tf.reshape(tf.gather_nd(latents.z, last), [-1, self.latent_dim])
        is_new = lengths == 0
        previous = tf.where(is_new[:, None], self._silence(tf.size(lengths)), tf.gather_nd(inputs["encoded"], last))
        seed = tf.reshape(random.fold_in(random.fold_in(batch["seed"], _FUTURE)[:, None], numbers), [-1, 2])
        u = u if u is None else per_sample(u)
        x = self._generate(z, per_sample(previous), per_sample(is_new), num_steps, seed, u)
        return tf.reshape(x, tf.concat([[tf.size(lengths), num_samples], tf.shape(x)[1:]], 0))

    @graph
    def _impute(self, batch: Batch, num_samples: tf.Tensor) -> tf.Tensor:
        inputs = self._inputs(batch)
        numbers = tf.range(num_samples)
        latents = self._infer(inputs, self._context(inputs), numbers)
        previous = inputs.get("previous")
        previous = previous if previous is None else tf.repeat(previous[:, :, None], num_samples, 2)
        num_steps, num_rows = tf.unstack(tf.shape(inputs["mask"]))
        width = 1 if self.head.is_symbol else self.head.event_dim
        seed = tf.reshape(random.fold_in(batch["seed"][:, None], numbers), [-1, 2])
        uniform = random.uniform(seed, tf.range(num_steps), width, _EMISSION)
        uniform = tf.reshape(uniform, [num_steps, num_rows, num_samples, width])
        drawn = self.head.sample(self.emit(latents.z, previous), uniform)
        x = tf.where(inputs["observed"][:, :, None], inputs["x"][:, :, None], drawn)
        x = fill(x, tf.repeat(inputs["mask"][:, :, None], num_samples, 2))
        return tf.transpose(x, [1, 2, 0, *range(3, x.shape.rank)])

    def _init_state(self, seed: tf.Tensor, num_particles: int) -> dict[str, tf.Tensor]:
        rows = tf.shape(seed)[0]
        state = {
            "particles": tf.zeros([rows, num_particles, self.latent_dim]),
            "log_weights": tf.fill([rows, num_particles], -math.log(num_particles)),
            "step": tf.zeros([rows], tf.int32),
        }
        return state | (
            {"previous": tf.zeros(self._shape_of_x(tf.stack([rows])), self.head.spec().dtype)} if self.augment else {}
        )

    @graph
    def _filter_step(
        self, x: tf.Tensor, state: dict[str, tf.Tensor], seed: tf.Tensor, u: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        z, log_weights, step = tf.cast(state["particles"], self.compute_dtype), state["log_weights"], state["step"]
        rows, num, _ = tf.unstack(tf.shape(z))
        # resample where the effective number of particles is low
        uniform = random.uniform(seed, step[None], 1, _RESAMPLE)[0, :, 0]
        ancestors = particles.systematic_ancestors(log_weights, uniform)
        poor = (particles.effective_sample_size(log_weights) < 0.5 * tf.cast(num, log_weights.dtype))[:, None]
        z = tf.gather(z, tf.where(poor, ancestors, tf.range(num)), batch_dims=1)
        log_weights = tf.where(poor, -tf.math.log(tf.cast(num, log_weights.dtype)), log_weights)
        # propose
        noise = random.normal(seed, step[None], num * self.latent_dim, _PRIOR)
        noise = tf.reshape(tf.cast(noise, z.dtype), [rows, num, self.latent_dim])
        previous = None
        if self.augment:
            encoded = tf.where(step[:, None] == 0, self._silence(rows), self._encode(state["previous"], None))
            previous = tf.repeat(encoded[:, None], num, 1)
        extra = self._extra(previous, u if u is None else tf.repeat(u[:, None], num, 1))
        mean, stddev = self.prior(z, extra, tf.repeat((step == 0)[:, None], num, 1))
        z = mean + stddev * noise
        # weigh
        log_weights += tf.cast(self.head.log_prob(self.emit(z, previous), x[:, None]), log_weights.dtype)
        log_prob = tf.reduce_logsumexp(log_weights, -1)
        after = {"particles": tf.cast(z, tf.float32), "log_weights": log_weights - log_prob[:, None], "step": step + 1}
        return after | ({"previous": x} if self.augment else {}) | {"log_prob": log_prob}

    # Served signatures ---------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures; `num_samples` and `num_particles` are fixed at export."""
        x, state = self.batch_spec()["x"], self._init_state(tf.zeros([1, 2], tf.int32), num_particles)
        several = tf.constant(num_samples)

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
            return {"elbo": self._bounds(batch(given), several)[0]}

        def smooth(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            mean, stddev, _ = self._posterior(batch(given), several)
            num_steps = tf.shape(given["x"])[1]
            return {"mean": mean[:, :num_steps], "stddev": stddev[:, :num_steps]}

        def impute(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"x": self._impute(batch(given), tf.constant(1))[:, 0, : tf.shape(given["x"])[1]]}

        def until(x: tf.Tensor, num_steps: tf.Tensor, axis: int) -> tf.Tensor:
            """Zeros after each row's own number of steps."""
            keep = lengths_to_mask(num_steps, tf.shape(x)[axis])
            return fill(x, keep if axis == 1 else tf.repeat(keep[:, None], num_samples, 1))

        def forecast(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps = given["num_steps"]
            x = self._forecast(batch(given), tf.reduce_max(num_steps), several, given.get("future_u"))
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
        return {
            "serving_default": (score, [*sequence, *controls]),
            "score": (score, [*sequence, *controls]),
            "smooth": (smooth, [*sequence, *controls]),
            "forecast": (forecast, [*sequence, *controls, steps, *future]),
            "impute": (impute, [*sequence, tf.TensorSpec(x.shape, tf.bool, "observed"), *controls]),
            "sample": (sample, [steps, seed, *controls]),
            "init_state": (init_state, [seed]),
            "filter_step": (filter_step, [*now, *states, seed]),
        }
