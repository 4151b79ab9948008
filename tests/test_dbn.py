"""The deep belief network against enumeration, its pre-training and what is made from it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import tfseq
from tfseq.models.dbn import DeepBeliefNetwork


def states(num: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=num)))


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-a))


def log_bernoulli(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    return (s * a - np.logaddexp(0.0, a)).sum(-1)


@pytest.fixture(scope="module")
def model() -> DeepBeliefNetwork:
    """Three visible units, hidden layers of 2, 3 and 2, in float64 with random parameters."""
    network = DeepBeliefNetwork.tiny(num_visible=3, hidden_units=[2, 3, 2], dtype="float64")
    rng = np.random.default_rng(0)
    for weight in network.trainable_weights:
        weight.assign(0.8 * rng.normal(size=weight.shape))
    return network


def generative(model: DeepBeliefNetwork) -> tuple[np.ndarray, ...]:
    """log p(v, h1, h2) [8, 4, 8] with the top layer summed out, and log q(h1, h2 | v) of the same shape."""
    g, gb, r, rb = (
        [np.asarray(a) for a in part]
        for part in (model.generative, model.generative_biases, model.recognition, model.recognition_biases)
    )
    w, (b, c) = np.asarray(model.weight_matrices[0]), (np.asarray(a) for a in model.bias_vectors)
    v, h1, h2 = states(3), states(2), states(3)
    top = h2 @ b + np.logaddexp(0.0, h2 @ w + c).sum(1)
    top -= np.log(np.exp(top).sum())
    h1_h2 = log_bernoulli(h1[:, None], (h2 @ g[1].T + gb[1])[None])
    v_h1 = log_bernoulli(v[:, None], (h1 @ g[0].T + gb[0])[None])
    log_p = v_h1[:, :, None] + h1_h2[None] + top
    log_q = log_bernoulli(h1[None], (v @ r[0] + rb[0])[:, None])[:, :, None]
    return log_p, log_q + log_bernoulli(h2[None], (h1 @ r[1] + rb[1])[:, None])[None]


def test_log_prob_estimates_the_bound_of_the_recognition_network(model: DeepBeliefNetwork) -> None:
    log_p, log_q = generative(model)
    q = np.exp(log_q)
    np.testing.assert_allclose(q.sum((1, 2)), 1.0)
    bound = (q * (log_p - log_q)).sum((1, 2))
    spread = np.sqrt((q * (log_p - log_q) ** 2).sum((1, 2)) - bound**2)
    exact = np.log(np.exp(log_p).sum((1, 2)))
    assert np.exp(exact).sum() == pytest.approx(1.0) and (bound < exact).all()
    found = np.mean([np.asarray(model.log_prob(states(3), seed=[i, 0])) for i in range(40)], 0)
    np.testing.assert_allclose(found, bound, atol=4.5 * spread.max() / np.sqrt(40 * 16))  # 4.5 standard errors


def test_samples_have_the_network_s_distribution(model: DeepBeliefNetwork) -> None:
    log_p, _ = generative(model)
    wanted = np.exp(log_p).sum((1, 2))
    v = model.sample(4000, seed=[1, 2], num_sweeps=60).numpy()[:, 0]
    counts = np.array([(v == row).all(1).sum() for row in states(3)])
    # chi-square with 7 degrees of freedom exceeds 29.9 once in 10,000
    assert ((counts - 4000 * wanted) ** 2 / (4000 * wanted)).sum() < 29.9


def test_activities_reconstruction_and_what_is_made_from_the_network_agree(model: DeepBeliefNetwork) -> None:
    v = states(3).astype(np.float32)
    h = v
    for w, b in zip(
        [*model.recognition, model.weight_matrices[0]], [*model.recognition_biases, model.bias_vectors[1]], strict=True
    ):
        h = sigmoid(h @ np.asarray(w) + np.asarray(b))
    np.testing.assert_allclose(model.hidden_probs(v), h, rtol=1e-6)
    np.testing.assert_allclose(model.to_classifier(2).features(v)[-1], h, rtol=1e-5)
    np.testing.assert_allclose(model.to_autoencoder()(v), model.reconstruct(v), rtol=1e-5)


def test_gibbs_holds_rows_without_sweeps_and_repeats(model: DeepBeliefNetwork) -> None:
    v = states(3)[:4]
    after, mean = model.gibbs(v, [0, 1, 5, 0], seed=[1, 1])
    np.testing.assert_array_equal(after.numpy()[[0, 3]], v[[0, 3]])
    np.testing.assert_array_equal(mean.numpy()[[0, 3]], v[[0, 3]])
    np.testing.assert_array_equal(model.gibbs(v, [0, 1, 5, 0], seed=[1, 1])[0], after)
    many, _ = model.gibbs(np.repeat(v[:1], 3000, 0), 40, seed=[2, 2])
    wanted = np.exp(generative(model)[0]).sum((1, 2)) @ states(3)
    np.testing.assert_allclose(many.numpy().mean(0), wanted, atol=4.5 * 0.5 / np.sqrt(3000))  # 4.5 standard errors


def test_pre_training_stacks_machines_and_ties_both_directions() -> None:
    x = np.random.default_rng(0).integers(2, size=(400, 1)).repeat(6, 1).astype(np.float32)
    network = DeepBeliefNetwork.from_data(x, hidden_units=[4, 3], num_chains=8)
    before = network.log_prob(x[:40]).numpy().mean()
    histories = network.pretrain(x, epochs=6, batch_size=10, hyperparameters={"sampler": "pcd", "num_chains": 20})
    assert [len(h["loss"]) for h in histories] == [6, 6]
    np.testing.assert_array_equal(network.generative[0], network.recognition[0])
    assert network.log_prob(x[:40]).numpy().mean() > before + 0.5


@pytest.mark.parametrize(("settings", "message"), [
    ({"hidden_units": [4]}, "sizes of at least 2 hidden layers"),
    ({"sampler": "exact"}, "`sampler` must be one of"),
    ({"visible": "relu"}, "`visible` must have a density"),
    ({"data_mean": [0.5]}, "`data_mean` must have one value a visible unit"),
])  # fmt: skip
def test_wrong_settings_are_clear_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepBeliefNetwork.tiny(**settings)


def test_there_is_no_joint_energy(model: DeepBeliefNetwork) -> None:
    with pytest.raises(ValueError, match="no joint energy"):
        model.energy(states(3))


def test_a_served_classifier_answers_as_the_network(model: DeepBeliefNetwork, tmp_path: Any) -> None:
    import tensorflow as tf

    network = model.to_classifier(3)
    folder = tfseq.export(network, tmp_path / "classifier", verify="reload")
    v = states(3).astype(np.float32)
    served = tf.saved_model.load(str(folder)).signatures["classify"](v=tf.constant(v))
    np.testing.assert_allclose(served["probs"], network(v), rtol=1e-5)
    np.testing.assert_array_equal(served["label"], np.asarray(network(v)).argmax(1))
    network.save(tmp_path / "network.keras")
    np.testing.assert_array_equal(tfseq.load(tmp_path / "network.keras")(v), network(v))
