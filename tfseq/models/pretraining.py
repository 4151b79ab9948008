"""Greedy pre-training: a restricted Boltzmann machine a layer, each on what the one below it makes of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.energy import EnergyModel
from tfseq.models.rbm import RBM

History: TypeAlias = dict[str, list[float]]

_ROWS = 1000  # of an array, lifted at once


def pretrain_layers(
    model: EnergyModel,
    sizes: Sequence[int],
    x: Any,
    make: Callable[..., RBM],
    *,
    epochs: int | Sequence[int],
    batch_size: int,
    optimizer: keras.optimizers.Optimizer | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = 0,
) -> tuple[list[RBM], list[History]]:
    """Trains a machine for each pair of neighbouring layers; (the machines, their histories).

    Args:
        model: whose settings the machines share where they have the same name; the first has its visible units.
        sizes: units of every layer, the visible one first.
        x: vectors `[N, V]`, a data set, or a finite `tf.data` stream of batches.
        make: (number of the layer, hyper-parameters of an `RBM`) -> the machine.
        epochs: passes over the data, or one number a layer.
        batch_size: of arrays.
        optimizer: each machine gets a new one like it; SGD(0.05, momentum 0.5) by default.
        hyperparameters: of the machines, for example `sampler`, which is `"cd"` by default.
        callbacks, verbose: of `fit`.
    """
    num = len(sizes) - 1
    each = [epochs] * num if isinstance(epochs, int) else list(epochs)
    if len(each) != num:
        raise ValueError(f"`epochs` must be a number, or one for each of the {num} layers; received {epochs!r}.")
    checks.at_least(1, batch_size=batch_size, epochs=min(each))
    config = model.get_config()
    shared: dict[str, Any] = {
        n: config[n] for n in ("num_chains", "centred", "l2", "sparsity_target", "sparsity_cost") if n in config
    }
    first = ("data_mean", "data_scale", "visible", "visible_count", "learned_scale", "binarise")
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.5)
    data = x if isinstance(x, tf.data.Dataset) else vectors_of(model, x)
    machines, histories = [], []
    for layer in range(num):
        settings: dict[str, Any] = {n: config[n] for n in first if n in config} if layer == 0 else {"binarise": "none"}
        settings |= {**shared, "sampler": "cd", "num_visible": sizes[layer], "num_hidden": sizes[layer + 1]}
        settings |= dict(hyperparameters or {})
        machine = make(layer, **settings)
        machine.compile(type(optimizer).from_config(optimizer.get_config()))
        size = {} if isinstance(data, tf.data.Dataset) else {"batch_size": batch_size}
        history = machine.fit(data, epochs=each[layer], callbacks=list(callbacks), verbose=verbose, **size)
        machines.append(machine)
        histories.append(history.history)
        if layer + 1 < num:
            data = _lifted(machine, data)
    return machines, histories


def vectors_of(model: EnergyModel, x: Any) -> np.ndarray:
    """A data set, sequences or vectors as vectors `[N, V]`, checked."""
    if hasattr(x, "x") and isinstance(x.x, np.ndarray) and x.x.ndim == 3 and x.x.shape[1] == 1:
        x = x.x[:, 0]
    if not (hasattr(x, "shape") and len(x.shape) == 2):
        rows = [np.asarray(a) for a in model.as_dataset(x).x]
        x = np.concatenate(rows) if rows else np.zeros((0, model.visible_units.columns))
    model.as_batch(x)
    return np.asarray(x, model.variable_dtype)


def _lifted(machine: RBM, data: Any) -> Any:
    """The data as means of the machine's hidden units."""
    lift = tf.function(machine.hidden_probs, autograph=False, reduce_retracing=True)
    if isinstance(data, tf.data.Dataset):

        def lifted(batch: Any) -> dict[str, tf.Tensor]:
            x = batch["x"] if isinstance(batch, Mapping) else batch
            return {"x": lift(tf.reshape(x, [-1, x.shape[-1]]))}

        return data.map(lifted).prefetch(2)
    return np.concatenate([lift(tf.constant(data[i : i + _ROWS])).numpy() for i in range(0, len(data), _ROWS)])
