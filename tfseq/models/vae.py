"""The variational autoencoder: one latent variable for each step, and none of them knows of another.

    z ~ N(0, I),   x ~ p(x | z)

Kingma and Welling 2014, "Auto-encoding variational Bayes"; Rezende, Mohamed and Wierstra 2014. Equations (3) and (4) are those of
Chung et al. 2015, whose VRNN-I is this model at its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfseq import checks
from tfseq.layers.mlp import MLP
from tfseq.models.base import FROM_DATA
from tfseq.models.state_space import HeadName, Known, Objective, Recursion, State, StateSpaceModel, to_stddev


@keras.saving.register_keras_serializable("tfseq")
class VariationalAutoencoder(StateSpaceModel):
    """Variational autoencoder (Kingma and Welling 2014) of vectors, or of the steps of sequences one by one.

    >>> import keras, numpy as np, tfseq
    >>> keras.utils.set_random_seed(0)
    >>> x = (np.random.default_rng(0).random((8, 1, 6)) < 0.5).astype("float32")
    >>> model = tfseq.VariationalAutoencoder(observation_dim=6, latent_dim=2, hidden_dim=4)
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> history = model.fit(x, epochs=1, verbose=0)
    >>> model.importance_log_prob(x, num_samples=10).shape
    TensorShape([8])

    Args:
        observation_dim: D, features of an observation (number of symbols for `"categorical"`). From data.
        mean: mean of the (encoded) data, `[D]`: the emission starts there. From data.
        stddev: standard deviation of real-valued features, `[D]`: networks see standardised ones. Bounds and samples are in the
            units of the data. From data.
        control_dim: U, size of the controls `u`, which guide and emission see: a conditional autoencoder. From data.
        missing: whether features may be missing: the guide then also sees `observed`. From data.
        latent_dim: Z.
        head: family of the observations: `"bernoulli"`, `"normal"`, `"mixture"` (of Gaussians, over all features), `"pen"`
            (pen, dx, dy), `"poisson"`, `"categorical"`, or of binary features that depend on each other `"nade"`, `"rbm"`.
        num_components: Gaussians of the heads `"mixture"` and `"pen"`.
        head_units: hidden units of the heads `"nade"` and `"rbm"`.
        scaling: what `from_data` standardises real-valued data by: mean and deviation of each feature (`"feature"`), of all
            together (`"global"`), or not at all (`"none"`).
        hidden_dim, num_layers: size and number of the ReLU layers of guide and emission.
        kl: `"analytic"`, `"sampled"` or `"auto"`, which is analytic.
        objective: `"elbo"`; or `"iwae"` or `"fivo"` of `train_samples` paths. See `VariationalRNN`.
        train_samples: paths of the guide for each training sequence.
        free_bits: nats per step that each latent dimension may take without cost (Kingma et al. 2016), of each sequence.
    """

    is_sequential, guide_is_causal = False, True

    def __init__(
        self,
        *,
        observation_dim: Annotated[int, FROM_DATA],
        mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        stddev: Annotated[Sequence[float] | None, FROM_DATA] = None,
        control_dim: Annotated[int, FROM_DATA] = 0,
        missing: Annotated[bool, FROM_DATA] = False,
        latent_dim: int = 20,
        head: HeadName = "bernoulli",
        num_components: int = 20,
        head_units: int = 100,
        scaling: Literal["feature", "global", "none"] = "feature",
        hidden_dim: int = 200,
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
        checks.at_least(1, hidden_dim=hidden_dim, num_layers=num_layers)
        self.guide = MLP(hidden_dim, 2 * latent_dim, num_layers=num_layers, name="guide")
        self.emission = MLP(hidden_dim, num_layers=num_layers, name="emission")
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        sizes = {"observation_dim": 3, "latent_dim": 2, "hidden_dim": 5, "num_layers": 1}
        return cls(**{**sizes, "num_components": 2, "head_units": 3, **hyperparameters})

    @property
    def state_sizes(self) -> Sequence[int]:
        return []

    def features(self, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return ()

    def read(self, inputs: Known, training: bool = False) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
        """(4): the moments of q(z | x)."""
        parts = [inputs["encoded"], *([inputs["u"]] if self.control_dim else [])]
        return (self.guide(tf.concat(parts, -1)),), ()

    def recursion(self) -> Recursion:
        def propose(context: tuple[tf.Tensor, ...], state: State, multiply: Any) -> tuple[tf.Tensor, tf.Tensor]:
            mean, raw = tf.split(context[0], 2, -1)
            return mean, to_stddev(raw)

        return Recursion(propose, lambda state, z, multiply: z, lambda state, z, features, multiply: ())

    def prior(self, state: State, known: Known, is_first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(3): N(0, I)."""
        return tf.zeros([self.latent_dim], self.compute_dtype), tf.ones([self.latent_dim], self.compute_dtype)

    def emit(self, state: State, embedded: tf.Tensor, known: Known) -> tfd.Distribution:
        """x given z."""
        return self.head(self.emission(tf.concat([embedded, known["u"]], -1) if "u" in known else embedded))
