"""The deep Markov model: a Gaussian state-space model with neural transition, emission and structured inference.

    z_1 ~ p(z_1),   z_t ~ N(mu(z_{t-1}), diag sigma^2(z_{t-1})),   x_t ~ p(x_t | z_t)

Krishnan, Shalit and Sontag 2017, "Structured inference networks for nonlinear state space models"; equations are theirs.
Time comes first, and letters are those of `state_space`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers.flows import InverseAutoregressiveFlow
from tfseq.layers.mlp import MLP
from tfseq.layers.recurrent import Cell, Recurrent
from tfseq.models.base import FROM_DATA
from tfseq.models.state_space import (
    DROPOUT,
    HeadName,
    Known,
    Objective,
    Recursion,
    Scale,
    State,
    StateSpaceModel,
    to_stddev,
)
from tfseq.ops import random
from tfseq.ops.scan import Multiply

Dense = keras.layers.Dense

Guide = Literal["ST-R", "ST-L", "ST-LR", "MF-LR"]


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
                uniform = random.uniform(random.fold_in(seed, i), times, self.units, DROPOUT)
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


@keras.saving.register_keras_serializable("tfseq")
class DeepMarkovModel(StateSpaceModel):
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
        stddev: standard deviation of real-valued features, `[D]`: networks see standardised ones. Bounds, samples and forecasts
            are in the units of the data. From data.
        control_dim: U, size of the controls `u`. From data.
        missing: whether features may be missing: the encoder and "Aug" edges then also see `observed`. From data.
        latent_dim: Z.
        head: family of the observations: `"bernoulli"`, `"normal"`, `"mixture"` (of Gaussians, over all features), `"pen"`
            (pen, dx, dy), `"poisson"`, `"categorical"`, or of binary features that depend on each other `"nade"`, `"rbm"`.
        num_components: Gaussians of the heads `"mixture"` and `"pen"`.
        head_units: hidden units of the heads `"nade"` and `"rbm"`.
        scaling: what `from_data` standardises real-valued data by: mean and deviation of each feature (`"feature"`), of all
            together (`"global"`), or not at all (`"none"`).
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
        objective: what training maximises: `"elbo"`; `"iwae"`, the importance-weighted bound of `train_samples` paths (Burda
            et al. 2016, eq. 8), a tighter one, while the ELBO is reported; or `"fivo"`, the bound of a particle filter of
            `train_samples` particles (Maddison et al. 2017), which is then the one that is reported.
        train_samples: paths of the guide, or particles, for each training sequence.
        free_bits: nats per step that each latent dimension may take without cost (Kingma et al. 2016), of each sequence.
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
        stddev: Annotated[Sequence[float] | None, FROM_DATA] = None,
        control_dim: Annotated[int, FROM_DATA] = 0,
        missing: Annotated[bool, FROM_DATA] = False,
        latent_dim: int = 100,
        head: HeadName = "bernoulli",
        num_components: int = 20,
        head_units: int = 100,
        scaling: Literal["feature", "global", "none"] = "feature",
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
        objective: Objective = "elbo",
        train_samples: int = 1,
        free_bits: float = 0.0,
        num_flows: int = 0,
        flow_dim: int = 100,
        augment: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_dim=observation_dim,
            mean=mean,
            stddev=stddev,
            control_dim=control_dim,
            missing=missing,
            latent_dim=latent_dim,
            head=head,
            num_components=num_components,
            head_units=head_units,
            kl=kl,
            objective=objective,
            train_samples=train_samples,
            free_bits=free_bits,
            num_flows=num_flows,
            scaling=scaling,
            **kwargs,
        )
        checks.at_least(1, transition_dim=transition_dim, emission_dim=emission_dim, rnn_units=rnn_units, flow_dim=flow_dim)
        checks.at_least(0, emission_layers=emission_layers, embedding_dim=embedding_dim)
        checks.fraction(dropout=dropout)
        checks.choice("scale", scale, ("variance", "stddev"))
        self.learned_start, self.augment, self.looks_back = learned_start, augment, augment

        # p(z_t | z_{t-1})
        self.transition = Transition(latent_dim, transition_dim, transition, scale, name="transition")
        # p(x_t | z_t)
        self.emission = MLP(emission_dim, num_layers=emission_layers, name="emission")
        # q(z_t | z_{t-1}, x)
        self.guide = StructuredGuide(
            latent_dim, guide, cell, rnn_units, embedding_dim, scale, learned_start, dropout, name="guide"
        )
        self.flows = [InverseAutoregressiveFlow(flow_dim, reverse=i % 2 == 1, name=f"flow_{i}") for i in range(num_flows)]
        if learned_start:
            self.prior_start = self.add_weight(shape=(latent_dim,), initializer="zeros", name="prior_start")
            if self.guide.is_structured:
                self.guide_start = self.add_weight(shape=(latent_dim,), initializer="zeros", name="guide_start")
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        sizes = {"observation_dim": 3, "latent_dim": 2, "transition_dim": 4, "emission_dim": 4, "rnn_units": 5}
        small = {"emission_layers": 1, "num_components": 2, "head_units": 3}
        return cls(**{**sizes, **small, **hyperparameters})

    state_is_latent = True

    @property
    def is_sequential(self) -> bool:  # type: ignore[override]
        return self.guide.is_structured

    @property
    def state_sizes(self) -> Sequence[int]:
        return [self.latent_dim]

    @property
    def widest(self) -> int:
        return self.guide.units + 2 * self.transition.hidden_dim

    def initial_state(self, leading: Sequence[Any]) -> State:
        """The guide's z_0; the prior has its own."""
        (start,) = super().initial_state(leading)
        return (start + tf.cast(self.guide_start, start.dtype) if self.learned_start and self.is_sequential else start,)

    def read(self, inputs: Known, training: bool = False) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        parts = [inputs["encoded"], *([inputs["u"]] if self.control_dim else [])]
        return self.guide.encode(tf.concat(parts, -1), inputs["mask"], inputs["seed"], training), ()

    def features(self, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return ()

    def recursion(self) -> Recursion:
        combine = self.guide.combiner()
        return Recursion(
            propose=lambda context, state, multiply: combine(context, state[0] if state else None, multiply),
            embed=lambda state, z, multiply: z,
            advance=lambda state, z, features, multiply: (z,),
        )

    def prior(self, state: State, known: Known, is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        (z,), is_first = state, is_first[..., None]
        parts = [known[name] for name in ("previous", "u") if name in known]
        extra = tf.concat(parts, -1) if parts else None
        if self.learned_start:
            return self.transition(tf.where(is_first, tf.cast(self.prior_start, z.dtype), z), extra)
        mean, stddev = self.transition(z, extra)
        return tf.where(is_first, tf.zeros_like(mean), mean), tf.where(is_first, tf.ones_like(stddev), stddev)

    def emit(self, state: State, embedded: tf.Tensor, known: Known) -> tfd.Distribution:
        hidden = tf.concat([embedded, known["previous"]], -1) if self.augment else embedded
        return self.head(self.emission(hidden))
