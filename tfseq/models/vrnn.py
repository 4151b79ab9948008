"""The variational recurrent network: a recurrent network with a latent variable at every step.

    z_t ~ N(mu(h_{t-1}), diag sigma^2(h_{t-1})),   x_t ~ p(x_t | z_t, h_{t-1}),   h_t = f(x_t, z_t, h_{t-1})

Chung, Kastner, Dinh, Goel, Courville and Bengio 2015, "A recurrent latent variable model for sequential data"; equations are
theirs. STORN is that of Bayer and Osendorfer 2014, "Learning stochastic recurrent networks".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers.mlp import MLP
from tfseq.layers.recurrent import Recurrent
from tfseq.models.base import FROM_DATA
from tfseq.models.state_space import HeadName, Known, Objective, Recursion, State, StateSpaceModel, to_stddev
from tfseq.ops.linear import project
from tfseq.ops.scan import Multiply

Variant = Literal["vrnn", "vrnn-i", "storn"]


@keras.saving.register_keras_serializable("tfseq")
class VariationalRNN(StateSpaceModel):
    """Variational recurrent network (Chung et al. 2015), trained on the ELBO, IWAE or FIVO with `fit`.

    >>> import keras, numpy as np, tfseq
    >>> keras.utils.set_random_seed(0)
    >>> x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    >>> model = tfseq.VariationalRNN(observation_dim=3, head="normal", latent_dim=2, rnn_units=4, hidden_dim=4)
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> history = model.fit(x, epochs=1, verbose=0)
    >>> model.forecast(x, num_steps=7, num_samples=5, seed=[0, 1]).shape
    TensorShape([8, 5, 7, 3])

    Args:
        observation_dim: D, features of an observation (number of symbols for `"categorical"`). From data.
        mean: mean of the (encoded) data, `[D]`: the emission starts there. From data.
        stddev: standard deviation of real-valued features, `[D]`: networks see standardised ones. Bounds, samples and forecasts
            are in the units of the data. From data.
        control_dim: U, size of the controls `u`, which prior, guide and emission see. From data.
        missing: whether features may be missing: networks then also see `observed`. From data.
        variant: `"vrnn"`; `"vrnn-i"`, whose prior is N(0, I) at every step (section 4); or `"storn"`: that prior, a guide that is
            a recurrent network of its own, and x_t from a state that z_t has entered.
        latent_dim: Z.
        head: family of the observations: `"bernoulli"`, `"normal"`, `"mixture"` (of Gaussians, over all features), `"pen"`
            (pen, dx, dy), `"poisson"`, `"categorical"`, or of binary features that depend on each other `"nade"`, `"rbm"`.
        num_components: Gaussians of the heads `"mixture"` and `"pen"`.
        head_units: hidden units of the heads `"nade"` and `"rbm"`.
        scaling: what `from_data` standardises real-valued data by: mean and deviation of each feature (`"feature"`), of all
            together (`"global"`), or not at all (`"none"`).
        cell, rnn_units: the recurrent cell, `"lstm"`, `"gru"` or `"rnn"`, and its size H.
        hidden_dim, num_layers: size and number of the ReLU layers of each network: the extractors phi_x and phi_z, prior, guide
            and emission.
        kl: `"analytic"` for the closed form of each step given h_{t-1}, `"sampled"` for log q - log p; `"auto"` is analytic.
        objective: what training maximises: `"elbo"`; `"iwae"`, the importance-weighted bound of `train_samples` paths (Burda
            et al. 2016, eq. 8), a tighter one, while the ELBO is reported; or `"fivo"`, the bound of a particle filter of
            `train_samples` particles (Maddison et al. 2017), which is then the one that is reported.
        train_samples: paths of the guide, or particles, for each training sequence.
        free_bits: nats per step that each latent dimension may take without cost (Kingma et al. 2016), of each sequence.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "speech": {
            "head": "normal",
            "latent_dim": 200,
            "rnn_units": 2000,
            "hidden_dim": 500,
            "num_layers": 4,
            "scaling": "global",
        },
        "handwriting": {"head": "pen", "latent_dim": 50, "rnn_units": 1200, "hidden_dim": 500, "num_layers": 1},
    }

    def __init__(
        self,
        *,
        observation_dim: Annotated[int, FROM_DATA],
        mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        stddev: Annotated[Sequence[float] | None, FROM_DATA] = None,
        control_dim: Annotated[int, FROM_DATA] = 0,
        missing: Annotated[bool, FROM_DATA] = False,
        variant: Variant = "vrnn",
        latent_dim: int = 64,
        head: HeadName = "bernoulli",
        num_components: int = 20,
        head_units: int = 100,
        scaling: Literal["feature", "global", "none"] = "feature",
        cell: Literal["rnn", "gru", "lstm"] = "lstm",
        rnn_units: int = 256,
        hidden_dim: int = 256,
        num_layers: int = 2,
        kl: Literal["auto", "analytic", "sampled"] = "auto",
        objective: Objective = "elbo",
        train_samples: int = 1,
        free_bits: float = 0.0,
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
            scaling=scaling,
            kl=kl,
            objective=objective,
            train_samples=train_samples,
            free_bits=free_bits,
            **kwargs,
        )
        checks.choice("variant", variant, ("vrnn", "vrnn-i", "storn"))
        checks.at_least(1, rnn_units=rnn_units, hidden_dim=hidden_dim, num_layers=num_layers)
        self.variant, self.guide_is_causal = variant, variant != "storn"

        def network(name: str, out_dim: int | None = None) -> MLP:
            return MLP(hidden_dim, out_dim, num_layers=num_layers, name=name)

        # networks that loops run by their weights, and never call, are built here
        self.extract_x, self.extract_z = network("phi_x"), network("phi_z")
        self.extract_z.build_for(latent_dim)
        self.recurrent = Recurrent(rnn_units, cell, name="recurrent")
        self.recurrent.build((None, None, 2 * hidden_dim))  # of phi_x(x) and phi_z(z)
        self.prior_network = network("prior", 2 * latent_dim) if variant == "vrnn" else None
        self.guide_rnn = Recurrent(rnn_units, cell, name="guide_rnn") if variant == "storn" else None
        self.guide = network("guide", 2 * latent_dim)
        if self.guide_is_causal:
            self.guide.build_for(hidden_dim + control_dim + rnn_units)
        self.emission = network("emission")
        self.hidden_dim = hidden_dim
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        sizes = {"observation_dim": 3, "latent_dim": 2, "rnn_units": 4, "hidden_dim": 5, "num_layers": 1}
        return cls(**{**sizes, "num_components": 2, "head_units": 3, **hyperparameters})

    @property
    def state_sizes(self) -> Sequence[int]:
        """h (and c) of the cell; of STORN also what the observation before gives to the next step."""
        cell = [self.recurrent.units] * self.recurrent.num_states
        return cell if self.variant != "storn" else [*cell, self.recurrent.kernel.shape[1]]

    @property
    def widest(self) -> int:
        return 4 * sum(self.state_sizes) + 6 * self.hidden_dim

    def initial_state(self, leading: Sequence[Any]) -> State:
        """Zeros; of STORN, the product of an observation of zeros."""
        state = super().initial_state(leading)
        return state if self.variant != "storn" else (*state[:-1], state[-1] + tf.cast(self.recurrent.bias, state[-1].dtype))

    # Generation ----------------------------------------------------------------------------------------------------

    def features(self, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """phi_x(x_t) times its part of the cell's kernel, for all steps at once."""
        return (self._into_cell(self.extract_x(encoded)),)

    def _into_cell(self, extracted: tf.Tensor) -> tf.Tensor:
        return project(extracted, self.recurrent.kernel[: self.hidden_dim], self.recurrent.bias)

    def prior(self, state: State, known: Known, is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(5): z_t ~ N(mu, diag sigma^2) of h_{t-1}; of the variants N(0, I)."""
        if self.prior_network is None:
            zeros = tf.zeros(tf.concat([tf.shape(state[0])[:-1], [self.latent_dim]], 0), state[0].dtype)
            return zeros, zeros + 1.0
        mean, raw = tf.split(self.prior_network(self._with_controls(state[0], known)), 2, -1)
        return mean, to_stddev(raw)

    @staticmethod
    def _with_controls(hidden: tf.Tensor, known: Known) -> tf.Tensor:
        return tf.concat([known["u"], hidden], -1) if "u" in known else hidden

    def emit(self, state: State, embedded: tf.Tensor, known: Known) -> tfd.Distribution:
        """(6): x_t given phi_z(z_t) and h_{t-1}; of STORN given the h_t that z_t has entered."""
        units = self.recurrent.units
        hidden = embedded[..., :units] if self.variant == "storn" else tf.concat([embedded, state[0]], -1)
        return self.head(self.emission(self._with_controls(hidden, known)))

    # Inference -----------------------------------------------------------------------------------------------------

    def read(self, inputs: Known, training: bool = False) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        extracted = self.extract_x(inputs["encoded"])
        seen = self._with_controls(extracted, inputs)
        if self.guide_rnn is None:
            return (self.guide.first(seen),), (self._into_cell(extracted),)
        hidden, _ = self.guide_rnn(seen, inputs["mask"])
        return (self.guide(hidden),), (self._into_cell(extracted),)

    def recursion(self) -> Recursion:
        recurrent, units = self.recurrent, self.hidden_dim
        guide = self.guide.in_loop(units + self.control_dim) if self.guide_is_causal else None
        extract = self.extract_z.in_loop()
        kernel, recurrent_kernel = (tf.cast(a, self.compute_dtype) for a in (recurrent.kernel, recurrent.recurrent_kernel))
        kernel = kernel[units:]

        def propose(context: tuple[tf.Tensor, ...], state: State, multiply: Multiply) -> tuple[tf.Tensor, tf.Tensor]:
            """(9): q(z_t | x_t, h_{t-1}); of STORN q(z_t | x_1 .. x_t)."""
            raw = context[0] if guide is None else guide(state[0], multiply, context[0])
            mean, scale = tf.split(raw, 2, -1)
            return mean, to_stddev(scale)

        def cell(state: State, extracted: tf.Tensor, product: tf.Tensor, multiply: Multiply) -> State:
            return recurrent.advance(state, multiply(state[0], recurrent_kernel), product + multiply(extracted, kernel))

        def embed(state: State, z: tf.Tensor, multiply: Multiply) -> tf.Tensor:
            extracted = extract(z, multiply)
            if self.variant != "storn":
                return extracted
            return tf.concat(cell(state[:-1], extracted, state[-1], multiply), -1)

        def advance(state: State, embedded: tf.Tensor, features: tuple[tf.Tensor, ...], multiply: Multiply) -> State:
            """(7): h_t = f(phi_x(x_t), phi_z(z_t), h_{t-1})."""
            if self.variant != "storn":
                return cell(state, embedded, features[0], multiply)
            seen = features[0] + tf.zeros_like(state[-1])  # with the sample axis of the state, which features do not have
            return (*tf.split(embedded, recurrent.num_states, -1), seen)

        return Recursion(propose, embed, advance)
