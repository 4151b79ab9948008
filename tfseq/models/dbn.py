"""The deep belief network: directed layers of binary units below a restricted Boltzmann machine.

    p(v, h_1, ..., h_L) = p(v | h_1) p(h_1 | h_2) ... p(h_{L-2} | h_{L-1}) p(h_{L-1}, h_L)

Hinton, Osindero and Teh 2006, "A fast learning algorithm for deep belief nets". A recognition network q(h_{l+1} | h_l) of its own
weights infers the directed layers; `pretrain` finds all weights greedily, `fit` tunes them by the up-down algorithm (appendix B).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import FROM_DATA, graph
from tfseq.models.dbm import check_hidden_units
from tfseq.models.energy import START_SWEEP, Binarise, Inferred, Sampler
from tfseq.models.feedforward import NetworkClassifier
from tfseq.models.layered import LayeredModel, check_data_arguments
from tfseq.models.pretraining import pretrain_layers
from tfseq.models.rbm import RBM
from tfseq.ops import random
from tfseq.ops.gibbs import Machine, Phase, States
from tfseq.ops.units import Bernoulli, Kind, Units, make_units

_UP, _DOWN = 200, 300  # salts of the noise of directed layers


@keras.saving.register_keras_serializable("tfseq")
class DeepBeliefNetwork(LayeredModel):
    """Deep belief network with two or more hidden layers; its score is a sampled variational lower bound.

    >>> import numpy as np, keras, tfseq
    >>> x = np.random.default_rng(0).integers(2, size=(64, 1)).repeat(6, 1).astype("float32")
    >>> model = tfseq.DeepBeliefNetwork.from_data(x, hidden_units=[4, 3])
    >>> _ = model.pretrain(x, epochs=2)
    >>> model.compile(keras.optimizers.SGD(0.05))
    >>> _ = model.fit(x, epochs=2, batch_size=16, verbose=0)
    >>> model.log_prob(x).shape.as_list(), model.to_classifier(2)(x).shape.as_list()
    ([64], [64, 2])

    Args:
        num_visible, data_mean, data_scale: as of `RBM`.
        hidden_units: sizes of the hidden layers, from the data upwards; the last two are the restricted Boltzmann machine.
        visible, visible_count: the visible units, as of `RBM`; hidden ones are binary.
        binarise: as of `RBM`.
        sampler, num_chains, num_sweeps, max_sweeps, sweeps_growth: of the top machine, as of `RBM`; its samples are also what the
            recognition network learns from. `"exact"` is not among them.
        centred, l2, sparsity_target, sparsity_cost, initial_stddev, num_temperatures: as of `RBM`.
    """

    is_bound = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mnist": {"hidden_units": [500, 500, 2000]}}

    def __init__(
        self,
        *,
        num_visible: Annotated[int, FROM_DATA],
        data_mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        data_scale: Annotated[Sequence[float] | None, FROM_DATA] = None,
        hidden_units: Sequence[int] = (500, 500),
        visible: Kind = "bernoulli",
        visible_count: int = 1,
        binarise: Binarise = "sample",
        sampler: Sampler = "pcd",
        num_chains: int = 100,
        num_sweeps: int = 1,
        max_sweeps: int | None = None,
        sweeps_growth: int = 0,
        centred: bool = True,
        l2: float = 0.0,
        sparsity_target: float = 0.1,
        sparsity_cost: float = 0.0,
        initial_stddev: float = 0.01,
        num_temperatures: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, num_visible=num_visible)
        check_hidden_units(hidden_units, 2)
        bottom = make_units("visible", visible, num_visible, visible_count)
        if not bottom.normalised:
            raise ValueError("`visible` must have a density given the hidden units; received 'relu'.")
        check_data_arguments(bottom, data_mean, data_scale)
        self._make_layers(
            (Bernoulli(hidden_units[-2]), Bernoulli(hidden_units[-1])),
            data_mean=None,
            data_scale=None,
            learned_scale=False,
            centred=centred,
            sparsity_target=sparsity_target,
            sparsity_cost=sparsity_cost,
            initial_stddev=initial_stddev,
        )
        self.visible_units = bottom
        # the directed layers, from the data upwards, and those that the top machine stands on
        self.directed_units: list[Units] = [bottom, *(Bernoulli(n) for n in hidden_units[:-1])]
        scale = np.ones(num_visible) if data_scale is None else np.asarray(data_scale, float)
        base = np.zeros(num_visible) if data_mean is None else bottom.natural(np.asarray(data_mean) / scale)
        if visible == "gaussian":
            self.log_scale = self._state((num_visible,), keras.initializers.Constant(np.log(scale)), "log_scale")
        normal = keras.initializers.RandomNormal(stddev=initial_stddev)
        shapes = [(a.columns, b.columns) for a, b in itertools.pairwise(self.directed_units)]
        first = [keras.initializers.Constant(base), *["zeros"] * len(shapes)]
        self.generative = [self._parameter(shape, normal, f"generative_{i}") for i, shape in enumerate(shapes)]
        self.generative_biases = [self._parameter(a[:1], first[i], f"generative_bias_{i}") for i, a in enumerate(shapes)]
        self.recognition = [self._parameter(shape, normal, f"recognition_{i}") for i, shape in enumerate(shapes)]
        self.recognition_biases = [self._parameter(a[1:], "zeros", f"recognition_bias_{i}") for i, a in enumerate(shapes)]
        self._set_training(
            sampler=sampler,
            num_chains=num_chains,
            num_sweeps=num_sweeps,
            max_sweeps=max_sweeps,
            sweeps_growth=sweeps_growth,
            binarise=binarise,
            l2=l2,
            num_temperatures=num_temperatures,
            samplers=("cd", "pcd", "fpcd", "pt"),
        )
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        return cls(**{"num_visible": 3, "hidden_units": [4, 3], "num_chains": 16, "initial_stddev": 0.1, **hyperparameters})

    # The directed layers -------------------------------------------------------------------------------------------

    def _up(self, layer: int, h: tf.Tensor) -> tf.Tensor:
        """Inputs of the recognition of h_{l+1} given h_l."""
        return h @ self.recognition[layer] + self.recognition_biases[layer]

    def _down(self, layer: int, h: tf.Tensor) -> tf.Tensor:
        """Inputs of h_l given h_{l+1}."""
        return tf.matmul(h, self.generative[layer], transpose_b=True) + self.generative_biases[layer]

    def _log_density(self, layer: int, h: tf.Tensor, a: tf.Tensor) -> tf.Tensor:
        """log p of states h_l `[N, n]` with inputs a, `[N]`."""
        units = self.directed_units[layer]
        return tf.reduce_sum(h * a, -1) + units.log_base(h) - tf.reduce_sum(units.log_normaliser(a), -1)

    def infer(self, s: tf.Tensor, seed: tf.Tensor) -> Inferred:
        """A sample of the recognition network for the directed layers, and the bound that it gives."""
        states, log_q, log_p = [s], [], []
        for layer in range(len(self.generative)):
            a = self._up(layer, states[-1])
            states.append(tf.stop_gradient(self.directed_units[layer + 1].sample(a, seed, 0, _UP + layer)))
            log_q.append(self._log_density(layer + 1, states[-1], a))
            log_p.append(self._log_density(layer, states[-2], self._down(layer, states[-1])))
        machine, top = self.machine(), states[-1]
        inputs, directed = machine.inputs((top,), 1), tf.add_n(log_p)
        log_prob = directed + machine.log_prob((top,), inputs, 0) - tf.add_n(log_q)
        return Inferred((top,), inputs, machine.means(inputs, 1), log_prob, directed)

    def visible_of(self, even: States, odd: States, seed: tf.Tensor) -> tf.Tensor:
        """Visible states drawn downwards from the top machine's."""
        return self._dream(even[0], seed)[0]

    def _dream(self, h: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        """Samples of all directed layers given h_{L-1}, from the data upwards; h_{L-1} is the last."""
        states = [h]
        for layer in reversed(range(len(self.generative))):
            states.insert(0, self.directed_units[layer].sample(self._down(layer, states[0]), seed, START_SWEEP, _DOWN + layer))
        return states

    def _score(
        self,
        machine: Machine,
        s: tf.Tensor,
        found: Inferred,
        weights: tf.Tensor,
        phase: Phase | None,
        negative: tf.Tensor,
        model_log_prob: tf.Tensor,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """Wake: the directed layers, at what recognition finds. Sleep: recognition, at what the network dreams. And the top."""
        top = super()._score(machine, s, found, weights, phase, negative, model_log_prob, seed)
        if phase is None:
            raise ValueError("A deep belief network needs a sampler.")
        dream = [tf.stop_gradient(h) for h in self._dream(phase.even[0], seed)]
        asleep = tf.add_n([self._log_density(i + 1, dream[i + 1], self._up(i, dream[i])) for i in range(len(self.recognition))])
        return top + tf.reduce_sum(weights * found.directed) + tf.reduce_sum(negative * asleep)

    # Quantities ----------------------------------------------------------------------------------------------------

    def log_prob(
        self, x: Any, mask: Any = None, *, log_partition: Any = None, num_samples: int = 16, seed: Any = (0, 0)
    ) -> tf.Tensor:
        """A lower bound of log p(x) of each sequence, nats, `[B]`: the mean over samples of the recognition network.

        Args:
            x, mask, log_partition: as of `RBM.log_prob`.
            num_samples: of each row.
            seed: whole numbers `[2]`.
        """
        checks.at_least(1, num_samples=num_samples)
        batch = self.given(x, mask)
        parts = []
        for i in range(num_samples):
            batch["seed"] = random.row_seeds(random.fold_in(random.as_seed(seed), i), batch["row"])
            parts.append(super().log_prob(batch, log_partition=log_partition))
        return tf.add_n(parts) / num_samples

    def hidden_probs(self, v: Any) -> tf.Tensor:
        """Activities of the last hidden layer, `[N, n_L]`, each layer given the activities of the one below."""
        return self._activities(self._visible(v))[-1]

    def _activities(self, s: tf.Tensor) -> list[tf.Tensor]:
        found = [s]
        for layer in range(len(self.recognition)):
            found.append(self.directed_units[layer + 1].mean(self._up(layer, found[-1])))
        machine = self.machine()
        return [*found, machine.means(machine.inputs((found[-1],), 1), 1)[0]]

    def reconstruct(self, v: Any) -> tf.Tensor:
        """Means of the visible units after a pass of activities upwards and back down."""
        machine, h = self.machine(), self._activities(self._visible(v))[-1]
        h = machine.means(machine.inputs((h,), 0), 0)[0]
        for layer in reversed(range(len(self.generative))):
            h = self.directed_units[layer].mean(self._down(layer, h))
        return self._unscaled(h)

    def energy(self, v: Any, *h: Any) -> tf.Tensor:
        """Not defined: the layers below the top machine are directed.

        Raises:
            ValueError: always; `free_energy` is a bound of -log p(v) - log Z of the top machine.
        """
        raise ValueError("A deep belief network has no joint energy: its lower layers are directed. See `free_energy`.")

    @graph
    def _gibbs(self, v: tf.Tensor, num_sweeps: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Recognition upwards, sweeps of the top machine, and down again; the mean is that of v given the layer above."""
        machine, s = self.machine(), self._scaled(v)
        found = self.infer(s, seed)
        odd = machine.sample(found.inputs, 1, seed, START_SWEEP)

        def sweep(t: tf.Tensor, odd: States, even: tf.Tensor) -> tuple:
            keep, phase = (t < num_sweeps)[:, None], machine.sweep(odd, seed, t)
            return t + 1, phase.odd, tf.where(keep, phase.even[0], even)

        start = (tf.constant(0), odd, found.even[0])
        even = tf.while_loop(lambda t, *_: t < tf.reduce_max(num_sweeps), sweep, start)[2]
        states, moved = self._dream(even, seed), (num_sweeps > 0)[:, None]
        mean = self.directed_units[0].mean(self._down(0, states[1]))
        return self._unscaled(tf.where(moved, states[0], s)), self._unscaled(tf.where(moved, mean, s))

    # Pre-training and conversion -----------------------------------------------------------------------------------

    def pretrain(
        self, x: Any, *, epochs: int | Sequence[int] = 10, batch_size: int = 100, **settings: Any
    ) -> list[dict[str, Any]]:
        """Greedy pre-training, a restricted Boltzmann machine a layer, with `fit` (2006, sec. 5); all parameters are then set.

        Args:
            x: vectors `[N, V]`, a data set, or a finite `tf.data` stream of batches.
            epochs: passes over the data, or one number a layer.
            batch_size: of arrays.
            **settings: `optimizer` (a new one like it for each layer; SGD(0.05, 0.5) by default), `verbose`, `callbacks`,
                `hyperparameters` (of the layers' `RBM`, as `sampler`).

        Returns:
            the history of every layer's `fit`.
        """
        sizes = [*(u.columns for u in self.directed_units), self.units[1].columns]

        def make(layer: int, **hyperparameters: Any) -> RBM:
            return RBM(**hyperparameters)

        machines, histories = pretrain_layers(self, sizes, x, make, epochs=epochs, batch_size=batch_size, **settings)
        for i, machine in enumerate(machines[:-1]):
            (visible, hidden), weights = machine.bias_vectors, machine.weight_matrices[0]
            self.generative[i].assign(weights)
            self.recognition[i].assign(weights)
            self.generative_biases[i].assign(visible)
            self.recognition_biases[i].assign(hidden)
        self.weight_matrices[0].assign(machines[-1].weight_matrices[0])
        for bias, value in zip(self.bias_vectors, machines[-1].bias_vectors, strict=True):
            bias.assign(value)
        self.restart_chains()
        return histories

    def to_classifier(self, num_classes: int, seed: int = 0) -> NetworkClassifier:
        """A network with the recognition weights and a new softmax layer, to be fine-tuned with `fit`."""
        weights = [*self.recognition, self.weight_matrices[0]]
        return self._network(num_classes, seed, weights, [*self.recognition_biases, self.bias_vectors[1]])

    def to_autoencoder(self) -> keras.Sequential:
        """A network of the recognition weights upwards and the generative weights down again, to be fine-tuned with `fit`.

        All layers are sigmoid, the output linear for Gaussian visible units (Hinton and Salakhutdinov 2006, "Reducing the
        dimensionality of data with neural networks"); it takes and gives v in the machine's own scale, v / scale.
        """
        matrices = [*self.recognition, self.weight_matrices[0], tf.transpose(self.weight_matrices[0])]
        matrices += [tf.transpose(w) for w in reversed(self.generative)]
        biases = [*self.recognition_biases, self.bias_vectors[1], self.bias_vectors[0], *reversed(self.generative_biases)]
        last = "linear" if self.log_scale is not None else "sigmoid"
        layers = [
            keras.layers.Dense(int(b.shape[0]), last if i + 1 == len(biases) else "sigmoid", name=f"layer_{i}")
            for i, b in enumerate(biases)
        ]
        network = keras.Sequential([keras.Input((self.visible_units.columns,)), *layers])
        for layer, w, b in zip(layers, matrices, biases, strict=True):
            layer.kernel.assign(np.asarray(w))
            layer.bias.assign(np.asarray(b))
        return network
