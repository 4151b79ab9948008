"""Replicas of one process: their rows, their gradients, and what a cluster is told."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq.models import replicas


def test_rows_are_shared_and_keep_their_numbers(strategy: tf.distribute.Strategy) -> None:
    batches = [{"x": np.arange(n * 2).reshape(n, 2)} for n in (5, 1, 2)]  # unequal parts, none at all, equal parts
    stream = tf.data.Dataset.from_generator(lambda: batches, output_signature={"x": tf.TensorSpec([None, 2], tf.int64)})
    for batch, shared in zip(batches, replicas.rows_by_replica(stream, strategy), strict=True):
        parts = [{k: v.numpy() for k, v in each.items()} for each in zip_replicas(strategy, shared)]
        real = np.concatenate([p["mask"].any(1) for p in parts])
        for name, whole in (("x", batch["x"]), ("row", np.arange(len(batch["x"])))):
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts])[real], whole)
        assert all(len(p["x"]) for p in parts)


def zip_replicas(strategy: tf.distribute.Strategy, shared: dict) -> list[dict[str, tf.Tensor]]:
    """Each replica's part of a distributed batch."""
    parts = {name: strategy.experimental_local_results(value) for name, value in shared.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(strategy.num_replicas_in_sync)]


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "{}",
        '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_wrong_cluster_is_a_clear_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must"):
        replicas.strategy_of_cluster()


def test_a_cluster_of_one_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}')
    assert not replicas.spans_machines(replicas.strategy_of_cluster())


@pytest.mark.parametrize("clipping", [{"clipnorm": 0.01}, {"clipvalue": 0.005}])
def test_every_way_to_clip_is_of_the_gradient_of_all_replicas(strategy: tf.distribute.Strategy, clipping: dict[str, Any]) -> None:
    weights = []
    for scope in (tf.distribute.get_strategy().scope(), strategy.scope()):
        with scope:
            keras.utils.set_random_seed(0)
            model = tfseq.DeepMarkovModel.tiny()
            model.compile(keras.optimizers.SGD(0.1, **clipping))
        x = np.arange(4 * 5 * 3).reshape(4, 5, 3) % 2
        model.fit(tf.data.Dataset.from_tensors(model.as_batch(x)), epochs=2, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_loss_scale_leaves_out_a_step_on_all_replicas_or_none(strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = tfseq.DeepMarkovModel.tiny(head="normal", dtype="mixed_float16")
        # the second replica's row alone has a gradient that float16 cannot hold; its loss is finite
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=1024.0))
    x = np.stack([np.ones([5, 3]), np.full([5, 3], 2e3)]).astype(np.float32)
    before = [w.numpy() for w in model.trainable_weights]
    model.fit(tf.data.Dataset.from_tensors(model.as_batch(x)), verbose=0)
    assert float(model.optimizer.dynamic_scale.numpy()) == 512.0
    for weight, value in zip(model.trainable_weights, before, strict=True):
        for replica in strategy.experimental_local_results(weight.value):
            np.testing.assert_array_equal(replica, value)
