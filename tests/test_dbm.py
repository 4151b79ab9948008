"""The deep Boltzmann machine against enumeration, its pre-training and its classifier."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfseq.models.dbm import DeepBoltzmannMachine
from tfseq.models.rbm import RBM


def states(num: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=num)))


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-a))


def machine(sizes: tuple[int, ...] = (3, 3, 2), scale: float = 0.8, **hyperparameters: Any) -> DeepBoltzmannMachine:
    """A small machine in float64 with random parameters; the mean field converges."""
    settings = {"num_visible": sizes[0], "hidden_units": sizes[1:], "mean_field_sweeps": 200, "dtype": "float64"}
    model = DeepBoltzmannMachine.tiny(**{**settings, **hyperparameters})
    rng = np.random.default_rng(1)
    for weight in (*model.weight_matrices, *model.bias_vectors):
        weight.assign(scale * rng.normal(size=weight.shape))
    return model


def joint(model: DeepBoltzmannMachine) -> tuple[list[np.ndarray], np.ndarray]:
    """(all joint states, a list of the layers', and their log p*)."""
    layers = [states(u.columns) for u in model.units]
    grid = np.array(list(itertools.product(*(range(len(a)) for a in layers))))
    found = [a[grid[:, i]] for i, a in enumerate(layers)]
    score = sum(a @ np.asarray(b) for a, b in zip(found, model.bias_vectors, strict=True))
    for (a, b), w in zip(itertools.pairwise(found), model.weight_matrices, strict=True):
        score = score + np.einsum("ni,ij,nj->n", a, np.asarray(w), b)
    return found, score


def log_sum(a: np.ndarray) -> float:
    return float(a.max() + np.log(np.exp(a - a.max()).sum()))


@pytest.mark.parametrize("sizes", [(3, 3, 2), (3, 2, 3, 2), (2, 2, 2, 2, 2)])
def test_log_z_and_energy_are_those_of_enumeration_and_log_prob_is_a_bound(sizes: tuple[int, ...]) -> None:
    model = machine(sizes)
    found, score = joint(model)
    np.testing.assert_allclose(model.log_partition("exact").value, log_sum(score), rtol=1e-12)
    np.testing.assert_allclose(-np.asarray(model.energy(*found)), score, rtol=1e-10)
    v = states(sizes[0])
    exact = np.array([log_sum(score[(found[0] == row).all(1)]) for row in v]) - log_sum(score)
    bound = np.asarray(model.log_prob(v))
    assert (bound <= exact + 1e-12).all()
    assert (exact - bound).max() < 1.0 and (exact - bound).min() > 1e-6  # close, and no identity
    model.weight_matrices[1].assign(np.zeros(sizes[1:3]))  # then the layers above are independent of v
    if len(sizes) == 3:
        _, score = joint(model)
        exact = np.array([log_sum(score[(found[0] == row).all(1)]) for row in v]) - log_sum(score)
        np.testing.assert_allclose(model.log_prob(v), exact, rtol=1e-8)


@pytest.mark.parametrize("sizes", [(3, 3, 2), (3, 2, 3, 2)])
def test_the_bound_never_falls_with_sweeps_and_the_means_are_a_fixed_point(sizes: tuple[int, ...]) -> None:
    model = machine(sizes, scale=1.5)
    v = states(3)
    bounds = []
    for sweeps in (1, 2, 3, 5, 200):
        model.mean_field_sweeps = sweeps
        bounds.append(np.asarray(model.infer(tf.constant(v), tf.zeros([8, 2], tf.int32)).log_prob))
    assert (np.diff(bounds, axis=0) >= -1e-12).all() and (bounds[-1] > bounds[0]).any()
    means = [v, *map(np.asarray, model.mean_field(v))]
    weights, biases = [np.asarray(w) for w in model.weight_matrices], [np.asarray(b) for b in model.bias_vectors]
    for layer in range(1, len(sizes)):
        a = means[layer - 1] @ weights[layer - 1] + biases[layer]
        a = a + means[layer + 1] @ weights[layer].T if layer + 1 < len(sizes) else a
        np.testing.assert_allclose(means[layer], sigmoid(a), atol=2e-4)  # sweeps stop where no mean moves by 1e-4


def test_a_hidden_layer_s_gradient_is_that_of_the_bound() -> None:
    """With exact log Z, the objective's gradient is that of the bound at fixed means (the envelope theorem)."""
    model = machine(sampler="exact", centred=False)
    batch = model.complete(model.as_batch(states(3)))
    with tf.GradientTape() as tape:
        objective = model.terms(batch, training=True).objective
    gradient = tape.gradient(objective, model.weight_matrices[1].value)

    def bound(step: float) -> float:
        w = np.asarray(model.weight_matrices[1]).copy()
        w[0, 1] += step
        old = np.asarray(model.weight_matrices[1])
        model.weight_matrices[1].assign(w)
        value = float(np.sum(model.log_prob(states(3))))
        model.weight_matrices[1].assign(old)
        return value

    # the mean field stops at 1e-4, where the bound is flat in the means
    assert float(gradient[0, 1]) == pytest.approx((bound(1e-3) - bound(-1e-3)) / 2e-3, rel=1e-3, abs=1e-4)


def test_pre_training_doubles_the_inputs_towards_the_missing_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfseq.models import dbm

    made = []
    original = dbm._GreedyRBM.__init__

    def spy(self: Any, **settings: Any) -> None:
        original(self, **settings)
        made.append(self)

    monkeypatch.setattr(dbm._GreedyRBM, "__init__", spy)
    x = np.random.default_rng(0).integers(2, size=(20, 3)).astype(np.float32)
    model = DeepBoltzmannMachine.from_data(x, hidden_units=[4, 3, 2], num_chains=4, l2=0.01)
    histories = model.pretrain(x, epochs=[2, 1, 1], batch_size=8)
    assert [len(h["loss"]) for h in histories] == [2, 1, 1] and made[0].l2 == 0.01
    v, w, c = x[:3], np.asarray(made[0].weight_matrices[0]), np.asarray(made[0].bias_vectors[1])
    np.testing.assert_allclose(made[0].hidden_probs(v), sigmoid(2.0 * (v @ w + c)), rtol=1e-5)
    h, b = np.float32([[0, 1, 1, 0]]), np.asarray(made[0].bias_vectors[0])
    np.testing.assert_allclose(made[0].visible_probs(h), sigmoid(h @ w.T + b), rtol=1e-5)  # the visible layer lacks nothing
    h, w = np.float32([[1, 0]]), np.asarray(made[2].weight_matrices[0])
    np.testing.assert_allclose(
        made[2].visible_probs(h), sigmoid(2.0 * (h @ w.T + np.asarray(made[2].bias_vectors[0]))), rtol=1e-5
    )
    shared = np.asarray(made[0].bias_vectors[1]) + np.asarray(made[1].bias_vectors[0])
    np.testing.assert_allclose(model.bias_vectors[1], shared, rtol=1e-6)
    for mine, greedy in zip(model.weight_matrices, made, strict=True):
        np.testing.assert_array_equal(mine, greedy.weight_matrices[0])


def test_only_binary_hidden_units_make_a_classifier() -> None:
    with pytest.raises(ValueError, match="goes on from binary hidden units; this machine's are noisyrelu"):
        RBM.tiny(hidden="relu").to_classifier(2)


@pytest.mark.parametrize("sizes", [(3, 3, 2), (3, 2, 3, 2)])
def test_the_classifier_begins_as_one_more_sweep_of_the_mean_field(sizes: tuple[int, ...]) -> None:
    model = machine(sizes)
    network = model.to_classifier(4)
    v = states(3).astype(np.float32)
    inputs = network.inputs_for(v)
    means = [np.asarray(a) for a in model.mean_field(v)]
    np.testing.assert_allclose(inputs["top"], np.concatenate(means[1:], 1), atol=2e-4)
    for found, mean in zip(network.features(inputs), means, strict=True):
        np.testing.assert_allclose(found, mean, atol=1e-3)  # at a fixed point (to 1e-4), a sweep changes nothing
    np.testing.assert_allclose(network(v), network(inputs), atol=1e-6)
    labels = v[:, 0].astype(int) + 2 * v[:, 1].astype(int)
    network.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(tf.data.Dataset.from_tensors((inputs, labels)).repeat(), steps_per_epoch=100, shuffle=False, verbose=0)
    assert network.evaluate(inputs, labels, verbose=0, return_dict=True)["accuracy"] > 0.8  # two units tell four classes apart
    np.testing.assert_allclose(network.predict(v, verbose=0), network.predict(inputs, verbose=0), atol=1e-6)


@pytest.mark.parametrize(("settings", "message"), [
    ({"hidden_units": [4]}, "sizes of at least 2 hidden layers"),
    ({"hidden_units": 4}, "sizes of at least 2 hidden layers"),
    ({"hidden_units": [4, 0]}, "`hidden_units` must be a whole number"),
    ({"sampler": "cd"}, "`sampler` must be one of"),
    ({"damping": 1.0}, "`damping` must lie in"),
])  # fmt: skip
def test_wrong_settings_are_clear_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepBoltzmannMachine.tiny(**settings)


def test_pre_training_from_a_stream_is_that_from_arrays() -> None:
    x = np.random.default_rng(0).integers(2, size=(16, 3)).astype(np.float32)
    means = []
    for data in (x, tf.data.Dataset.from_tensor_slices({"x": x}).batch(16)):
        keras.utils.set_random_seed(0)
        model = DeepBoltzmannMachine.tiny()
        model.pretrain(data, epochs=1, batch_size=16, optimizer=keras.optimizers.SGD(0.1))
        means.append(np.asarray(model.weight_matrices[1]))
    # one batch an epoch; its rows come in another order, and with them the noise
    np.testing.assert_allclose(*means, atol=0.1)
    with pytest.raises(ValueError, match="`epochs` must be a number, or one for each"):
        model.pretrain(x, epochs=[1, 2, 3])
