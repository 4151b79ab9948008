"""Boltzmann machines of layers: the parameters, the contrastive gradient in products of states, and the quantities served."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import graph
from tfseq.models.energy import START_SWEEP, EnergyModel, Inferred, smaller
from tfseq.models.feedforward import NetworkClassifier
from tfseq.models.replicas import sum_over_replicas
from tfseq.ops.ais import exact_log_z
from tfseq.ops.gibbs import Layered, Phase, States, centred_parameters
from tfseq.ops.units import Bernoulli, Binomial, Units

_OFFSET_RATE = 0.01  # of the running means that centring subtracts


class LayeredModel(EnergyModel):
    """A machine of layers, the first of them visible; its constructor calls `_make_layers`, then `_set_training`."""

    def _make_layers(
        self,
        units: tuple[Units, ...],
        *,
        data_mean: Sequence[float] | None,
        data_scale: Sequence[float] | None,
        learned_scale: bool,
        centred: bool,
        sparsity_target: float,
        sparsity_cost: float,
        initial_stddev: float,
    ) -> None:
        visible, num = units[0], units[0].columns
        check_data_arguments(visible, data_mean, data_scale, learned_scale)
        if sum(u.rule == "finite" for u in units) > 1:
            raise ValueError(
                "Only one side may be Gaussian: with Gaussian visible and hidden units the probability has no finite sum "
                "for most weights. Choose hidden='bernoulli' or hidden='relu'."
            )
        checks.share(sparsity_target=sparsity_target)
        checks.positive(initial_stddev=initial_stddev)
        if not 0.0 <= sparsity_cost < math.inf:
            raise ValueError(f"`sparsity_cost` must be a number of at least 0; received {sparsity_cost!r}.")
        self.units, self.visible_units, self.centred = units, visible, centred
        self.sparsity_target, self.sparsity_cost, self.learned_scale = sparsity_target, sparsity_cost, learned_scale
        scale = np.ones(num) if data_scale is None else np.asarray(data_scale, float)
        mean = None if data_mean is None else np.asarray(data_mean, float) / scale
        base = np.zeros(num) if mean is None else visible.natural(mean)
        normal = keras.initializers.RandomNormal(stddev=initial_stddev)
        self.weight_matrices = [
            self._parameter((a.columns, b.columns), normal, f"weights_{i}") for i, (a, b) in enumerate(_pairs(units))
        ]
        first = keras.initializers.Constant(base)
        self.bias_vectors = [self._parameter((u.columns,), "zeros" if i else first, f"bias_{i}") for i, u in enumerate(units)]
        self.base = self._state((num,), first, "base")
        if learned_scale:
            self.log_scale = self._parameter((num,), keras.initializers.Constant(np.log(scale)), "log_scale")
        elif visible.rule == "finite":
            self.log_scale = self._state((num,), keras.initializers.Constant(np.log(scale)), "log_scale")
        at_rest = [np.asarray(u.mean(np.zeros((1, u.columns), np.float32)))[0] for u in units]
        if mean is not None:
            at_rest[0] = mean
        self.offsets = [
            self._state((u.columns,), keras.initializers.Constant(a), f"offset_{i}")
            for i, (u, a) in enumerate(zip(units, at_rest, strict=True))
        ]

    def machine(self) -> Layered:
        return self._machine(
            [tf.convert_to_tensor(w) for w in self.weight_matrices], [tf.convert_to_tensor(b) for b in self.bias_vectors]
        )

    def _fast_machine(self) -> Layered:
        moved = {id(w): w.value + fast.value for w, fast in zip(self.trainable_weights, self.fast, strict=True)}
        return self._machine([moved[id(w)] for w in self.weight_matrices], [moved[id(b)] for b in self.bias_vectors])

    def _machine(self, weights: list[tf.Tensor], biases: list[tf.Tensor]) -> Layered:
        start = (tf.convert_to_tensor(self.base), *(tf.zeros_like(b) for b in biases[1:]))
        return Layered(self.units, tuple(weights), tuple(biases), start)

    def _reconstruct(self, found: Inferred) -> tf.Tensor:
        machine = self.machine()
        return self._unscaled(machine.means(machine.inputs(found.odd, 0), 0)[0])

    def _model_log_prob(self, machine: Any, phase: Phase) -> tf.Tensor:
        return machine.log_prob(phase.even, phase.inputs, 0)

    def _score(
        self,
        machine: Any,
        s: tf.Tensor,
        found: Inferred,
        weights: tf.Tensor,
        phase: Phase | None,
        negative: tf.Tensor,
        model_log_prob: tf.Tensor,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        offsets = [tf.convert_to_tensor(w) for w in self.offsets] if self.centred else None
        if phase is None:
            whole = centred_parameters(machine, offsets) if offsets else machine
            score = whole.score(found.even, found.inputs, found.odd, weights)
            score -= negative * tf.cast(exact_log_z(smaller(whole)), score.dtype)
        else:
            pairs = ((found.even, phase.even), (found.inputs, phase.inputs), (found.odd, machine.means(phase.inputs, 1)))
            both = [tuple(tf.concat(pair, 0) for pair in zip(*parts, strict=True)) for parts in pairs]
            score = machine.score(*both, tf.concat([weights, -negative], 0), offsets)
        means: list[Any] = [None] * len(self.units)
        means[0::2], means[1::2] = found.even, found.odd
        sums = sum_over_replicas([tf.linalg.matvec(a, weights, transpose_a=True) for a in means] + [tf.reduce_sum(weights)])
        averages = [tf.stop_gradient(tf.math.divide_no_nan(a, sums[-1])) for a in sums[:-1]]
        if self.sparsity_cost:  # linear in the means of each row, with the slope at the mean of all
            for units, average, a in zip(self.units[1:], averages[1:], means[1:], strict=True):
                most = units.count if isinstance(units, Binomial) else 1
                average, a = average / most, a / most
                low = tf.clip_by_value(average, 1e-4, 1.0 - 1e-4)
                slope = (1.0 - self.sparsity_target) / (1.0 - low) - self.sparsity_target / low
                score -= self.sparsity_cost * tf.reduce_sum(weights * tf.linalg.matvec(a, slope))
        if self.learned_scale:
            # the machine itself is free of scale: d log p(v) / d s, then s = v / scale
            slope = tf.stop_gradient(machine.inputs(found.odd, 0)[0] - s)
            score += tf.reduce_sum(weights * (tf.reduce_sum(slope * s, -1) - self._log_scale_sum()))
        if self.centred:
            rate = _OFFSET_RATE * tf.cast(sums[-1] > 0.0, sums[-1].dtype)
            for offset, average in zip(self.offsets, averages, strict=True):
                offset.assign(offset + rate * (average - offset))
        return score

    def to_classifier(self, num_classes: int, seed: int = 0) -> NetworkClassifier:
        """A network with this machine's hidden layer and a new softmax layer, to be fine-tuned with `fit`.

        Args:
            num_classes: C.
            seed: of the new layer's weights.
        """
        return self._network(num_classes, seed, self.weight_matrices, self.bias_vectors[1:])

    def _network(self, num_classes: int, seed: int, weights: Sequence[Any], biases: Sequence[Any], **settings: Any) -> Any:
        if others := [type(u).__name__ for u in self.units[1:] if not isinstance(u, Bernoulli)]:
            raise ValueError(f"A network of sigmoids goes on from binary hidden units; this machine's are {others[0].lower()}.")
        scale = None if self.log_scale is None else np.exp(np.asarray(self.log_scale))
        sizes = [int(b.shape[0]) for b in biases]
        network = NetworkClassifier(
            num_visible=self.visible_units.columns, hidden_units=sizes, num_classes=num_classes, scale=scale, **settings
        )
        network.set_parameters(weights, biases, seed)
        return network

    # The machine's quantities --------------------------------------------------------------------------------------

    def energy(self, v: Any, *h: Any) -> tf.Tensor:
        """E(v, h_1, ...), nats, `[N]`, of observations v `[N, V]` and the states of every hidden layer `[N, n]`.

        With the logarithms of the scales, so that exp(-E) / Z is the density of v itself.
        """
        if len(h) + 1 != len(self.units):
            raise ValueError(f"`energy` takes the states of {len(self.units) - 1} hidden layers; received {len(h)}.")
        s = self._visible(v)
        layers = enumerate(zip(h, self.units[1:], strict=True))
        states = [s, *(self._rows(f"h{i}", a, u.columns, like=s) for i, (a, u) in layers)]
        machine = self.machine()
        pairs = [tf.reduce_sum((a @ w) * b, -1) for (a, b), w in zip(_pairs(states), machine.weights, strict=True)]
        own = [machine.own_terms(tuple(states[parity::2]), parity) for parity in (0, 1)]
        return self._log_scale_sum() - tf.add_n(pairs + own)

    @graph
    def _gibbs(self, v: tf.Tensor, num_sweeps: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        machine, s = self.machine(), self._scaled(v)
        found = self.infer(s, seed)
        odd = machine.sample(found.inputs, 1, seed, START_SWEEP)

        def sweep(t: tf.Tensor, odd: States, s: tf.Tensor, mean: tf.Tensor) -> tuple:
            inputs = machine.inputs(odd, 0)
            even, keep = machine.sample(inputs, 0, seed, t), (t < num_sweeps)[:, None]
            odd = machine.sample(machine.inputs(even, 1), 1, seed, t)
            return t + 1, odd, tf.where(keep, even[0], s), tf.where(keep, machine.means(inputs, 0)[0], mean)

        *_, s, mean = tf.while_loop(lambda t, *_: t < tf.reduce_max(num_sweeps), sweep, (tf.constant(0), odd, s, s))
        return self._unscaled(s), self._unscaled(mean)


def check_data_arguments(
    visible: Units, data_mean: Sequence[float] | None, data_scale: Sequence[float] | None, learned_scale: bool = False
) -> None:
    """Raises where what the data told does not fit the visible units."""
    num = visible.columns
    for name, values in (("data_mean", data_mean), ("data_scale", data_scale)):
        if values is not None and np.shape(values) != (num,):
            raise ValueError(f"`{name}` must have one value a visible unit, shape [{num}]; received {list(np.shape(values))}.")
    if visible.rule != "finite" and (learned_scale or data_scale is not None):
        raise ValueError("`learned_scale` and `data_scale` are for visible='gaussian'.")
    if data_scale is not None and not np.all((np.asarray(data_scale) > 0.0) & np.isfinite(data_scale)):
        raise ValueError("`data_scale` must be above 0 and finite: a feature of zero variance says nothing; leave it out.")
    if data_mean is not None and not np.isfinite(data_mean).all():
        raise ValueError("`data_mean` must be finite; it holds NaN or infinity, as the data may.")


def _pairs(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Neighbours."""
    return list(itertools.pairwise(items))
