"""The deep Boltzmann machine: layers of binary units with undirected weights between neighbours.

    E(v, h_1, ..., h_L) = -b.v - sum_l c_l.h_l - v W_1 h_1 - sum_l h_l W_{l+1} h_{l+1}

Salakhutdinov and Hinton 2009, "Deep Boltzmann machines" (AISTATS); 2012, "An efficient learning procedure for deep Boltzmann
machines". The data's side of the gradient is a mean-field posterior, the model's side persistent chains; odd layers are drawn at
once, then even ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import FROM_DATA
from tfseq.models.energy import Binarise, Inferred, Sampler
from tfseq.models.feedforward import NetworkClassifier
from tfseq.models.layered import LayeredModel
from tfseq.models.pretraining import pretrain_layers
from tfseq.models.rbm import RBM
from tfseq.ops.gibbs import Layered, States, mean_field
from tfseq.ops.units import Bernoulli, Kind, make_units


class _GreedyRBM(RBM):
    """A layer in greedy pre-training, its inputs multiplied towards the side whose next layer is missing (2012, sec. 3.3)."""

    gains: tuple[float, float] = (1.0, 1.0)

    def _machine(self, weights: list[tf.Tensor], biases: list[tf.Tensor]) -> Layered:
        return super()._machine(weights, biases)._replace(gains=self.gains)


@keras.saving.register_keras_serializable("tfseq")
class DeepBoltzmannMachine(LayeredModel):
    """Deep Boltzmann machine with two or more hidden layers; its score is a variational lower bound.

    >>> import numpy as np, keras, tfseq
    >>> x = np.random.default_rng(0).integers(2, size=(64, 1)).repeat(6, 1).astype("float32")
    >>> model = tfseq.DeepBoltzmannMachine.from_data(x, hidden_units=[4, 3])
    >>> _ = model.pretrain(x, epochs=2)
    >>> model.compile(keras.optimizers.SGD(0.05))
    >>> _ = model.fit(x, epochs=2, batch_size=16, verbose=0)
    >>> model.log_prob(x).shape.as_list(), model.mean_field(x)[1].shape.as_list()
    ([64], [64, 3])

    Args:
        num_visible, data_mean, data_scale: as of `RBM`.
        hidden_units: sizes of the hidden layers, from the data upwards.
        visible, visible_count, learned_scale: the visible units, as of `RBM`; hidden ones are binary.
        binarise: as of `RBM`.
        sampler: `"pcd"`, `"fpcd"`, `"pt"` or `"exact"`, as of `RBM`.
        num_chains: persistent chains.
        num_sweeps: Gibbs sweeps a training step.
        max_sweeps, sweeps_growth: growth of `num_sweeps`, as of `RBM`.
        mean_field_sweeps: most sweeps of the mean field; a row stops before where its means move no more than 1e-4.
        damping: share of the old mean that is kept in a mean-field update, in [0, 1).
        centred, l2, sparsity_target, sparsity_cost, initial_stddev, num_temperatures: as of `RBM`.
    """

    is_bound = True

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mnist": {"hidden_units": [500, 1000], "num_sweeps": 5, "l2": 2e-4},
    }

    def __init__(
        self,
        *,
        num_visible: Annotated[int, FROM_DATA],
        data_mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        data_scale: Annotated[Sequence[float] | None, FROM_DATA] = None,
        hidden_units: Sequence[int] = (500, 1000),
        visible: Kind = "bernoulli",
        visible_count: int = 1,
        learned_scale: bool = False,
        binarise: Binarise = "sample",
        sampler: Sampler = "pcd",
        num_chains: int = 100,
        num_sweeps: int = 5,
        max_sweeps: int | None = None,
        sweeps_growth: int = 0,
        mean_field_sweeps: int = 20,
        damping: float = 0.0,
        centred: bool = True,
        l2: float = 0.0,
        sparsity_target: float = 0.1,
        sparsity_cost: float = 0.0,
        initial_stddev: float = 0.01,
        num_temperatures: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, num_visible=num_visible, mean_field_sweeps=mean_field_sweeps)
        checks.fraction(damping=damping)
        check_hidden_units(hidden_units, 2)
        self.mean_field_sweeps, self.damping = mean_field_sweeps, damping
        self._make_layers(
            (make_units("visible", visible, num_visible, visible_count), *(Bernoulli(n) for n in hidden_units)),
            data_mean=data_mean,
            data_scale=data_scale,
            learned_scale=learned_scale,
            centred=centred,
            sparsity_target=sparsity_target,
            sparsity_cost=sparsity_cost,
            initial_stddev=initial_stddev,
        )
        self._set_training(
            sampler=sampler,
            num_chains=num_chains,
            num_sweeps=num_sweeps,
            max_sweeps=max_sweeps,
            sweeps_growth=sweeps_growth,
            binarise=binarise,
            l2=l2,
            num_temperatures=num_temperatures,
            samplers=("pcd", "fpcd", "pt", "exact"),
        )
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        return cls(
            **{
                "num_visible": 3,
                "hidden_units": [4, 3],
                "num_chains": 16,
                "num_sweeps": 1,
                "initial_stddev": 0.1,
                **hyperparameters,
            }
        )

    # Inference -----------------------------------------------------------------------------------------------------

    def _mean_field(self, s: tf.Tensor) -> States:
        """Means of all hidden layers given visible states s `[N, V]`."""
        machine = self.machine()
        # the visible layer is a part of the biases of the first hidden one
        biases = (s @ machine.weights[0] + machine.biases[1], *machine.biases[2:])
        hidden = Layered(machine.units[1:], machine.weights[1:], biases, machine.biases[1:])
        return tuple(tf.stop_gradient(a) for a in mean_field(hidden, self.mean_field_sweeps, self.damping))

    def infer(self, s: tf.Tensor, seed: tf.Tensor) -> Inferred:
        machine, means = self.machine(), self._mean_field(s)
        even = (s, *means[1::2])
        inputs = machine.inputs(even, 1)
        # the odd layers are at their best given the even ones, so their entropy is part of log_prob
        entropies = [tf.reduce_sum(_entropy(mean), -1) for mean in even[1:]]
        log_prob = tf.add_n([machine.log_prob(even, inputs, 0), *entropies])
        return Inferred(even, inputs, machine.means(inputs, 1), log_prob)

    def mean_field(self, v: Any) -> list[tf.Tensor]:
        """Posterior means of every hidden layer given observations v `[N, V]`, from the data upwards, `[N, n]` each."""
        found = self._inferred(v)
        means: list[Any] = [None] * len(self.units)
        means[0::2], means[1::2] = found.even, found.odd
        return means[1:]

    # Pre-training and conversion -----------------------------------------------------------------------------------

    def pretrain(
        self, x: Any, *, epochs: int | Sequence[int] = 10, batch_size: int = 100, **settings: Any
    ) -> list[dict[str, Any]]:
        """Greedy pre-training, a machine a layer, with `fit` (2012, algorithm 2); the parameters of all are then set.

        In the first machine the inputs of the hidden units are doubled, in the last those of the visible units, in others both:
        each direction stands for the layer that is not there yet. A layer that two machines share gets the sum of their biases.

        Args:
            x: vectors `[N, V]`, a data set, or a finite `tf.data` stream of batches.
            epochs: passes over the data, or one number a layer.
            batch_size: of arrays.
            **settings: `optimizer` (a new one like it for each layer; SGD(0.05, 0.5) by default), `verbose`, `callbacks`,
                `hyperparameters` (of the layers' `RBM`, as `sampler`).

        Returns:
            the history of every layer's `fit`.
        """
        last = len(self.units) - 2

        def make(layer: int, **hyperparameters: Any) -> RBM:
            machine = _GreedyRBM(**hyperparameters)
            machine.gains = (2.0 if layer > 0 else 1.0, 2.0 if layer < last else 1.0)
            return machine

        machines, histories = pretrain_layers(
            self, [u.columns for u in self.units], x, make, epochs=epochs, batch_size=batch_size, **settings
        )
        biases = [np.zeros(u.columns) for u in self.units]
        for i, machine in enumerate(machines):
            self.weight_matrices[i].assign(machine.weight_matrices[0])
            for side in (0, 1):
                biases[i + side] += np.asarray(machine.bias_vectors[side])
        for bias, value in zip(self.bias_vectors, biases, strict=True):
            bias.assign(value)
        if self.log_scale is not None:
            self.log_scale.assign(machines[0].log_scale)
        self.restart_chains()
        return histories

    def to_classifier(self, num_classes: int, seed: int = 0) -> NetworkClassifier:
        """A network with this machine's weights and a new softmax layer, to be fine-tuned with `fit`.

        Its second input is the mean field of the second hidden layer, computed once (`classifier.inputs_for(x)`), which enters
        the first through W_2 transposed (2009, sec. 3.4); fed with v alone it computes that itself, from the weights that the
        machine had. Before any tuning its hidden layers are one more sweep of the mean field.
        """
        biases = self.bias_vectors[1:]
        return self._network(num_classes, seed, self.weight_matrices, biases, mean_field_sweeps=self.mean_field_sweeps)


def check_hidden_units(hidden_units: Sequence[int], least: int) -> None:
    """Raises unless these are sizes of at least so many layers."""
    if isinstance(hidden_units, (str, int)) or len(hidden_units) < least:
        raise ValueError(f"`hidden_units` must be the sizes of at least {least} hidden layers; received {hidden_units!r}.")
    for n in hidden_units:
        checks.at_least(1, hidden_units=n)


def _entropy(p: tf.Tensor) -> tf.Tensor:
    return -tf.math.xlogy(p, p) - tf.math.xlog1py(1.0 - p, -p)
