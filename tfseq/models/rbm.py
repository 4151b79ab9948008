"""The restricted Boltzmann machine, with the unit types of either side chosen freely.

    E(v, h) = -b.s(v) - c.h - s(v) W h - log base measures
    F(v) = -b.s(v) - sum_j A_j(c_j + (s(v) W)_j),   p(v) = exp(-F(v)) / Z

A is the log-normaliser of the hidden units, softplus for binary ones; s(v) = v / scale for Gaussian visible units, else v.
Smolensky 1986; Hinton 2002, "Training products of experts by minimizing contrastive divergence"; Hinton 2012, "A practical guide
to training restricted Boltzmann machines".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import keras
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import FROM_DATA
from tfseq.models.energy import Binarise, Inferred, Sampler
from tfseq.models.layered import LayeredModel
from tfseq.ops.units import Kind, make_units


@keras.saving.register_keras_serializable("tfseq")
class RBM(LayeredModel):
    """Restricted Boltzmann machine: one visible and one hidden layer, independent given each other.

    >>> import numpy as np, keras, tfseq
    >>> x = np.random.default_rng(0).integers(2, size=(640, 1)).repeat(6, 1).astype("float32")
    >>> model = tfseq.RBM.from_data(x, num_hidden=4)
    >>> model.compile(keras.optimizers.SGD(0.2))
    >>> _ = model.fit(x, epochs=10, batch_size=16, verbose=0)
    >>> bool(-model.log_prob(x).numpy().mean() < 0.5 * 6 * np.log(2.0))
    True
    >>> model.hidden_probs(x).shape.as_list(), model.sample(3).shape.as_list()
    ([640, 4], [3, 1, 6])

    Args:
        num_visible: V, columns of an observation.
        data_mean: mean of the data, `[V]`, where the visible biases start; also the start of annealing. None: of unbiased units.
        data_scale: standard deviations, `[V]`, that Gaussian observations are divided by. None for 1.
        num_hidden: H, hidden units.
        visible, hidden: unit types. `"bernoulli"` in {0, 1} (grey values as `binarise` says); `"binomial"` counts of
            visible_count trials; `"categorical"` one-hot groups of visible_count columns; `"gaussian"` real values, one side
            only; `"relu"` noisy rectified linear units, which have no likelihood.
        visible_count, hidden_count: trials, or categories, of these types; 1 for the others.
        learned_scale: learn the standard deviations of Gaussian visible units.
        binarise: what Bernoulli units see of grey values in [0, 1], in training and in likelihoods: `"sample"` draws pixels anew
            at each presentation, `"threshold"` cuts at 0.5, `"none"` takes them as probabilities.
        sampler: how the model's side of the gradient is estimated. `"cd"`: contrastive divergence, chains from the data (Hinton
            2002); `"pcd"`: persistent chains (Tieleman 2008); `"fpcd"`: these, with fast weights (Tieleman and Hinton 2009);
            `"pt"`: parallel tempering, persistent chains at 10 temperatures (Desjardins et al. 2010); `"exact"`: by
            enumeration, for small machines.
        num_chains: persistent chains.
        num_sweeps: Gibbs sweeps a training step.
        max_sweeps: largest number of sweeps, reached by growth; None for no growth.
        sweeps_growth: training steps after which one sweep more is made.
        centred: subtract running means of the units in the gradient (Melchior, Fischer and Wiskott 2016).
        l2: decay of the weights, added to their gradient; biases have none.
        sparsity_target: wanted mean activity of hidden units.
        sparsity_cost: weight of the cross-entropy between it and their mean over the batch.
        initial_stddev: standard deviation of the weights at the start.
        num_temperatures: of the annealing that estimates log Z for validation; small machines have it exact.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Salakhutdinov and Murray 2008, sec. 4.1: CD with a growing number of steps
        "salakhutdinov": {
            "num_hidden": 500,
            "sampler": "cd",
            "max_sweeps": 25,
            "sweeps_growth": 6000,
            "l2": 2e-4,
            "centred": False,
        }
    }

    def __init__(
        self,
        *,
        num_visible: Annotated[int, FROM_DATA],
        data_mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        data_scale: Annotated[Sequence[float] | None, FROM_DATA] = None,
        num_hidden: int = 500,
        visible: Kind = "bernoulli",
        hidden: Kind = "bernoulli",
        visible_count: int = 1,
        hidden_count: int = 1,
        learned_scale: bool = False,
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
        checks.at_least(1, num_visible=num_visible, num_hidden=num_hidden)
        columns = num_hidden * hidden_count if hidden == "categorical" else num_hidden
        self._make_layers(
            (
                make_units("visible", visible, num_visible, visible_count),
                make_units("hidden", hidden, columns, hidden_count),
            ),
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
        )
        self.create_weights()

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        return cls(**{"num_visible": 3, "num_hidden": 4, "num_chains": 16, **hyperparameters})

    def infer(self, s: tf.Tensor, seed: tf.Tensor) -> Inferred:
        machine = self.machine()
        inputs = machine.inputs((s,), 1)
        return Inferred((s,), inputs, machine.means(inputs, 1), machine.log_prob((s,), inputs, 0))

    def visible_probs(self, h: Any) -> tf.Tensor:
        """Means of the visible units given hidden states or means h `[N, H]`, `[N, V]`, in the scale of the data."""
        machine = self.machine()
        h = self._rows("h", h, self.units[1].columns)
        return self._unscaled(machine.means(machine.inputs((h,), 0), 0)[0])
