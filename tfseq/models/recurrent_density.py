"""The recurrent density: a recurrent network that predicts the distribution of the next observation; no latent variables.

    x_t ~ p(x_t | h_{t-1}),   h_t = f(x_t, h_{t-1})

With the heads `"normal"`, `"mixture"`, `"nade"` and `"rbm"` it is the RNN-Gauss and RNN-GMM of Chung et al. 2015, and the
RNN-NADE and RNN-RBM of Boulanger-Lewandowski, Bengio and Vincent 2012, "Modeling temporal dependencies in
high-dimensional sequences".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers.mlp import MLP
from tfseq.layers.recurrent import Cell, RecurrentStack
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, graph
from tfseq.models.state_space import HeadName, Known, Latents, Recursion, State, StateSpaceModel
from tfseq.ops import random
from tfseq.ops.masking import masked_sum

_WEIGHT_DROP = 17  # salt of what a whole batch drops


@keras.saving.register_keras_serializable("tfseq")
class RecurrentDensity(StateSpaceModel):
    """Recurrent network with a density of the next observation as output, trained on its exact likelihood with `fit`.

    >>> import keras, numpy as np, tfseq
    >>> keras.utils.set_random_seed(0)
    >>> x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    >>> model = tfseq.RecurrentDensity(observation_dim=3, head="mixture", num_components=2, units=[4])
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> history = model.fit(x, epochs=1, verbose=0)
    >>> model.log_prob(x).shape
    TensorShape([8])

    Args:
        observation_dim: D, features of an observation (number of symbols for `"categorical"`). From data.
        mean: mean of the (encoded) data, `[D]`: the head starts there. From data.
        stddev: standard deviation of real-valued features, `[D]`: networks see standardised ones. Likelihoods, samples and
            forecasts are in the units of the data. From data.
        control_dim: U, size of the controls `u`, which the head sees at their own step. From data.
        missing: whether features may be missing: the network then also sees `observed`, and the likelihood is that of what was
            observed. From data.
        head: family of the observations: `"bernoulli"`, `"normal"` (RNN-Gauss), `"mixture"` (RNN-GMM: Gaussians over all
            features), `"pen"` (pen, dx, dy), `"poisson"`, `"categorical"`, or of binary features that depend on each other
            `"nade"`, `"rbm"`.
        num_components: Gaussians of the heads `"mixture"` and `"pen"`.
        head_units: hidden units of the heads `"nade"` and `"rbm"`; the likelihood of the latter is exact up to 12, and estimated
            by annealed importance sampling above.
        scaling: what `from_data` standardises real-valued data by: mean and deviation of each feature (`"feature"`), of all
            together (`"global"`), or not at all (`"none"`).
        units: size of each recurrent layer.
        cell: `"lstm"`, `"gru"` or `"rnn"`.
        hidden_dim: units of the ReLU layers before and after the recurrent ones.
        input_layers, output_layers: their numbers.
        dropout, recurrent_dropout, weight_drop: as of the recurrent stack: shares of inputs and outputs, of states, and of
            recurrent weights that are dropped in training.
        residual, layer_norm: as of the recurrent stack.
    """

    has_kl = False

    def __init__(
        self,
        *,
        observation_dim: Annotated[int, FROM_DATA],
        mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        stddev: Annotated[Sequence[float] | None, FROM_DATA] = None,
        control_dim: Annotated[int, FROM_DATA] = 0,
        missing: Annotated[bool, FROM_DATA] = False,
        head: HeadName = "bernoulli",
        num_components: int = 20,
        head_units: int = 100,
        scaling: Literal["feature", "global", "none"] = "feature",
        units: Sequence[int] = (256,),
        cell: Cell = "lstm",
        hidden_dim: int = 256,
        input_layers: int = 0,
        output_layers: int = 0,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        residual: bool = False,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_dim=observation_dim,
            mean=mean,
            stddev=stddev,
            control_dim=control_dim,
            missing=missing,
            latent_dim=0,
            head=head,
            num_components=num_components,
            head_units=head_units,
            scaling=scaling,
            **kwargs,
        )
        checks.at_least(1, hidden_dim=hidden_dim, **{f"units[{i}]": n for i, n in enumerate(units)})
        checks.at_least(0, input_layers=input_layers, output_layers=output_layers)
        self.extract_x = MLP(hidden_dim, num_layers=input_layers, name="phi_x")
        self.stack = RecurrentStack(
            units,
            cell,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            weight_drop=weight_drop,
            residual=residual,
            layer_norm=layer_norm,
            name="stack",
        )
        self.emission = MLP(hidden_dim, num_layers=output_layers, name="emission")
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        sizes = {"observation_dim": 3, "units": [5], "hidden_dim": 4, "num_components": 2, "head_units": 3}
        return cls(**{**sizes, **hyperparameters})

    @property
    def convention(self) -> str:
        return "exact, nats per step" if self.head.is_exact else "nats per step, log Z by annealed importance sampling"

    @property
    def state_sizes(self) -> Sequence[int]:
        """The stack's output, and the states of its layers."""
        return [self.stack.size, *(s.shape[-1] for s in tf.nest.flatten(self.stack.initial_state(1)))]

    # The model -----------------------------------------------------------------------------------------------------

    def features(self, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (self.extract_x(encoded),)

    def read(self, inputs: Known, training: bool = False) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        return (), self.features(inputs["encoded"])

    def recursion(self) -> Recursion:
        layers = self.stack.initial_state(1)  # the structure of a state

        def propose(context: tuple[tf.Tensor, ...], state: State, multiply: Any) -> tuple[tf.Tensor, tf.Tensor]:
            nothing = state[0][..., :0]
            return nothing, nothing

        def advance(state: State, embedded: tf.Tensor, features: tuple[tf.Tensor, ...], multiply: Any) -> State:
            leading = tf.shape(state[0])[:-1]
            rows = [tf.reshape(a, [-1, a.shape[-1]]) for a in state[1:]]
            x = tf.broadcast_to(features[0], tf.concat([leading, tf.shape(features[0])[-1:]], 0))
            x = tf.reshape(x, [-1, features[0].shape[-1]])
            output, new = self.stack.step(x, tf.nest.pack_sequence_as(layers, rows))
            return tuple(tf.reshape(a, tf.concat([leading, [a.shape[-1]]], 0)) for a in (output, *tf.nest.flatten(new)))

        return Recursion(propose, lambda state, z, multiply: z, advance)

    def prior(self, state: State, known: Known, is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        nothing = state[0][..., :0]
        return nothing, nothing

    def emit(self, state: State, embedded: tf.Tensor, known: Known) -> tfd.Distribution:
        hidden = tf.concat([known["u"], state[0]], -1) if "u" in known else state[0]
        return self.head(self.emission(hidden))

    def _run(self, inputs: Known, training: bool = False) -> tuple[tf.Tensor, Any]:
        """The stack over whole sequences: outputs `[T, B, H]` and the state after the last real step."""
        (features,), mask = self.read(inputs)[1], inputs["mask"]
        if not training:
            return self.stack(features, mask)
        common = random.derive(self.seed.value[None], self.step.value, tf.constant([_WEIGHT_DROP]))
        return self.stack(features, mask, seed=inputs["seed"], common_seed=common)

    def _infer(self, inputs: Known, reading: Any, numbers: tf.Tensor | None = None, training: bool = False) -> Latents:
        output, _ = self._run(inputs, training)
        if numbers is not None:
            output = tf.repeat(output[:, :, None], tf.size(numbers), 2)
        nothing = output[..., :0]
        return Latents(nothing, nothing, nothing, nothing, None, nothing, (output,))

    def _state_after(self, inputs: Known, numbers: tf.Tensor, last: tf.Tensor, is_new: tf.Tensor) -> State:
        output, final = self._run(inputs)
        output = tf.where(is_new[:, None], tf.zeros([], output.dtype), tf.gather_nd(output, last))
        return tuple(tf.repeat(a, tf.size(numbers), 0) for a in (output, *tf.nest.flatten(final)))

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        inputs = self._inputs(batch)
        log_lik, kl, _ = self._terms(inputs, self._infer(inputs, None, None, training), analytic=False)
        return Terms(tf.transpose(log_lik), tf.transpose(kl), batch["mask"])

    # What users ask of it ------------------------------------------------------------------------------------------

    def log_prob(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None) -> tf.Tensor:
        """Log-likelihood of each sequence, nats, `[B]`: exact, but for an RBM with many hidden units. Arguments as of `elbo`."""
        return self._log_prob(self.given(x, mask, observed=observed, u=u))

    @graph
    def _log_prob(self, batch: Batch) -> tf.Tensor:
        terms = self.terms(batch)
        return masked_sum(terms.log_lik, terms.mask, axis=-1)

    def score(self, batch: Batch, num_samples: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"log_prob": self._log_prob(batch)}

    def init_state(self, num_sequences: int, num_particles: int = 1) -> dict[str, tf.Tensor]:
        """State before the first observation; nothing is hidden, so one particle is enough. See `filter_step`."""
        return super().init_state(num_sequences, num_particles)

    def endpoints(self, num_samples: int = 16, num_particles: int = 1) -> dict[str, Endpoint]:
        return super().endpoints(num_samples, 1)
