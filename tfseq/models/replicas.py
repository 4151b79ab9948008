"""Replicas: the parts of a batch on several devices, and on several machines, so that together they make the step of one."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import trainer as keras_trainer  # no public name: see `keras_reduces_numbers`

_SUMS = "_all_reduce_sum_gradients"


def num_replicas() -> int:
    """How many replicas train together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(value: Any) -> Any:
    """Sum of a tensor (or list of tensors) over all replicas; the value itself where there is one."""
    context = tf.distribute.get_replica_context()
    if num_replicas() == 1 or context is None:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def gradient_of_all(optimizer: Any, gradients: list[Any]) -> list[Any]:
    """A replica's part of the gradient -> that of all replicas, which a Keras optimiser is then to apply as it is.

    Keras sums over replicas after it has clipped, and after a loss scale has looked for overflow, so neither would be of the
    whole gradient. The method that sums is left out of this optimiser, for good; it has no public switch.
    """
    gradients = [g if g is None else tf.convert_to_tensor(g) for g in gradients]
    if num_replicas() == 1:
        return gradients
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(inner, _SUMS):
        raise RuntimeError(
            f"Keras {keras.__version__} sums gradients over replicas in a new way: use the versions in pyproject.toml."
        )
    object.__setattr__(inner, _SUMS, list)  # pairs of a gradient and a variable, as they are
    summed = iter(sum_over_replicas([g for g in gradients if g is not None]))
    return [g if g is None else next(summed) for g in gradients]


def strategy_of_cluster() -> tf.distribute.Strategy:
    """The strategy of this process: of all workers where `TF_CONFIG` lists several, else TensorFlow's default.

    A cluster manager, or `tfseq train --workers`, sets `TF_CONFIG` to JSON of the addresses of all workers and the place of this
    one: `{"cluster": {"worker": ["host-0:2222", "host-1:2222"]}, "task": {"type": "worker", "index": 0}}`. To be called before
    anything else of TensorFlow runs.

    Raises:
        ValueError: `TF_CONFIG` is no such JSON.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return tf.distribute.get_strategy()
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        known = (
            set(config["cluster"]) == {"worker"}
            and isinstance(workers, list)
            and task["type"] == "worker"
            and 0 <= int(task["index"]) < len(workers)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"TF_CONFIG must be JSON with cluster.worker, task.type and task.index; received {text!r}.") from error
    if not known:
        raise ValueError(
            "TF_CONFIG must list `worker`s alone (the first of them is the chief), with the index of this one; received "
            f"{text!r}. Parameter servers and evaluators have no part in synchronous training."
        )
    return tf.distribute.MultiWorkerMirroredStrategy() if len(workers) > 1 else tf.distribute.get_strategy()


def spans_machines(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes train with this one."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.extended._in_multi_worker_mode()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its strategy that writes files and prints."""
    return not spans_machines(strategy) or strategy.cluster_resolver.task_id == 0


def word_of_chief(strategy: tf.distribute.Strategy, value: float) -> float:
    """The chief's value on every worker, exactly; waits for all of them, so what the chief did before is done."""
    if not spans_machines(strategy):
        return value
    return float(strategy.experimental_local_results(_first_of(strategy)(tf.constant(value, tf.float64)))[0])


@functools.cache
def _first_of(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    """A graph of a number of each worker -> that of the first replica, on all."""

    def first(value: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return sum_over_replicas(tf.where(tf.equal(context.replica_id_in_sync_group, 0), value, 0.0))

    return tf.function(lambda value: strategy.run(first, args=(value,)), autograph=False)


def keras_reduces_numbers(strategy: tf.distribute.Strategy) -> bool:
    """Whether Keras can take the mean of a metric over workers.

    Keras 3.15 asks the strategy for the mean over axis 0, which a number does not have (keras-team/keras, thread 20585). Where it
    cannot, train and test steps give each number one axis. Run by all workers at once: where it can, they talk.
    """
    try:
        keras_trainer.reduce_per_replica(tf.constant(0.0), strategy, "mean")
    except ValueError:
        return False
    return True


def rows_by_replica(batches: tf.data.Dataset, strategy: tf.distribute.Strategy) -> Any:
    """Batches of all replicas -> those of each: consecutive rows, as many as the others have or one less.

    Every worker reads all batches and keeps its rows. A row keeps its number `row`, and with it its random numbers; row b of the
    batches stays with its replica, and with it the state that is carried from window to window. A replica without rows gets an
    empty sequence, which contributes nothing.
    """
    num = strategy.num_replicas_in_sync

    def part(batch: dict[str, tf.Tensor], replica: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = tf.shape(batch["x"], tf.int64)
        whole = {"mask": tf.ones(shape[:2], tf.bool), "row": tf.range(tf.cast(shape[0], tf.int32)), **batch}
        begin, end = replica * shape[0] // num, (replica + 1) * shape[0] // num

        def rows(values: tf.Tensor) -> tf.Tensor:
            empty = tf.zeros(tf.concat([[tf.cast(begin == end, tf.int64)], tf.shape(values, tf.int64)[1:]], 0), values.dtype)
            return tf.ensure_shape(tf.concat([values[begin:end], empty], 0), [None, *values.shape[1:]])

        return {name: rows(values) for name, values in whole.items()}

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = num // context.num_input_pipelines
        mine = tf.range(local, dtype=tf.int64) + context.input_pipeline_id * local

        def parts(batch: dict[str, tf.Tensor]) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(mine).map(lambda replica: part(batch, replica))

        return batches.flat_map(parts).prefetch(2 * local)  # of unknown size: Keras would take the parts for batches

    return strategy.distribute_datasets_from_function(of_worker)
