"""The general Boltzmann machine against enumeration of all its states."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq.models import boltzmann_machine
from tfseq.models.boltzmann_machine import BoltzmannMachine, colouring


def states(num: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=num)))


def machine(seed: int = 0, scale: float = 1.0, **hyperparameters: Any) -> BoltzmannMachine:
    """A small machine in float64 with large random weights."""
    model = BoltzmannMachine.tiny(dtype="float64", **hyperparameters)
    rng = np.random.default_rng(seed)
    for weight in (model.edge_weights, model.bias_vector):
        weight.assign(scale * rng.normal(size=weight.shape))
    return model


def joint(model: BoltzmannMachine) -> tuple[np.ndarray, np.ndarray]:
    """(all states of all units [2^U, U], their probabilities), edge by edge."""
    u, bias, weights = states(len(model.order)), np.asarray(model.bias_vector), np.asarray(model.edge_weights)
    score = u @ bias
    for (i, j), w in zip(model.pairs, weights, strict=True):
        score = score + w * u[:, i] * u[:, j]
    p = np.exp(score - score.max())
    return u, p / p.sum()


SHAPES: list[dict[str, Any]] = [
    {"num_visible": 4, "num_hidden": 0},
    {"num_visible": 3, "num_hidden": 3},
    {"num_visible": 3, "num_hidden": 3, "edges": "bipartite"},
    {"num_visible": 3, "num_hidden": 1, "mask": [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_are_those_of_enumeration(shape: dict[str, Any]) -> None:
    model = machine(**shape)
    u, p = joint(model)
    v, num = states(model.num_visible), model.num_visible
    wanted = np.array([p[(u[:, :num] == row).all(1)].sum() for row in v])
    np.testing.assert_allclose(np.exp(model.log_prob(v)), wanted, rtol=1e-10)
    log_z = model.log_partition("exact").value
    h = () if not model.num_hidden else (u[:, num:],)
    np.testing.assert_allclose(-np.asarray(model.energy(u[:, :num], *h)) - log_z, np.log(p), rtol=1e-10)
    np.testing.assert_allclose(-np.asarray(model.free_energy(v)) - log_z, np.log(wanted), rtol=1e-10)
    if model.num_hidden:
        mean = np.array([p[rows := (u[:, :num] == row).all(1)] @ u[rows, num:] for row in v]) / wanted[:, None]
        np.testing.assert_allclose(model.hidden_probs(v), mean, rtol=1e-10)


def test_the_exact_gradient_is_the_difference_of_expected_pairs() -> None:
    model = machine(num_visible=3, num_hidden=2, sampler="exact")
    u, p = joint(model)
    x = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    batch = model.complete(model.as_batch(x))
    with tf.GradientTape() as tape:
        objective = model.terms(batch, training=True).objective
    found = tape.gradient(objective, [model.edge_weights, model.bias_vector])
    data = np.zeros_like(p)
    for row in x:
        rows = (u[:, :3] == row).all(1)
        data[rows] += p[rows] / p[rows].sum()
    excess = data - len(x) * p
    pairs = np.stack([u[:, i] * u[:, j] for i, j in model.pairs], 1)
    np.testing.assert_allclose(found[0], excess @ pairs, atol=1e-10)
    np.testing.assert_allclose(found[1], excess @ u, atol=1e-10)


def test_a_fully_visible_machine_learns_the_pairs_of_the_data() -> None:
    x = np.float32([[0, 0, 1], [1, 1, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    model = BoltzmannMachine.from_data(x, sampler="exact")
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(tf.data.Dataset.from_tensors(model.as_batch(x)).repeat(), steps_per_epoch=300, verbose=0)
    u, p = joint(model)
    # the likelihood is at its peak where all first and second moments agree
    np.testing.assert_allclose((u * p[:, None]).T @ u, x.T @ x / len(x), atol=2e-3)


def test_persistent_chains_leave_the_expected_gradient_unbiased() -> None:
    """At the machine's own distribution the mean difference of data and chains is zero."""
    model = machine(scale=0.5, num_visible=3, num_hidden=2, num_chains=20000, num_sweeps=50)
    v = states(3)
    p = np.exp(np.asarray(model.log_prob(v)))
    batch = model.complete(model.as_batch(v))
    found = model.infer(tf.constant(v), tf.zeros([8, 2], tf.int32))
    with tf.GradientTape() as tape:
        phase, *_ = model._negative(model.machine(), found, batch["seed"])
        gap = tf.reduce_sum(p * model.infer(tf.constant(v), tf.zeros([8, 2], tf.int32)).log_prob)
        gap -= tf.reduce_mean(model._model_log_prob(model.machine(), phase))
    for gradient in tape.gradient(gap, [model.edge_weights, model.bias_vector]):
        np.testing.assert_allclose(gradient, 0.0, atol=5 * 0.5 / np.sqrt(20000))  # five standard errors of a frequency


def test_mean_field_is_a_bound_that_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    model = machine(scale=0.7, num_visible=2, num_hidden=4)
    v = states(2)
    exact = np.asarray(model.infer(tf.constant(v), tf.zeros([4, 2], tf.int32)).log_prob)
    monkeypatch.setattr(boltzmann_machine, "MAX_EXACT_HIDDEN", 0)
    assert model.is_bound
    bounds = []
    for sweeps in (0, 1, 2, 5, 50):
        monkeypatch.setattr(boltzmann_machine, "_MEAN_FIELD_SWEEPS", sweeps)
        bounds.append(np.asarray(model.infer(tf.constant(v), tf.zeros([4, 2], tf.int32)).log_prob))
    assert (np.diff(bounds, axis=0) >= -1e-12).all()
    assert (bounds[-1] <= exact).all() and (exact - bounds[-1]).max() < 0.5


def test_conditionals_are_those_of_enumeration() -> None:
    model = machine(num_visible=4, num_hidden=2)
    u, p = joint(model)
    v = np.array([[1.0, 0.0, 9.0, 9.0], [0.0, 1.0, 1.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    observed = v < 2
    wanted = v.copy()
    for row, seen, out in zip(v, observed, wanted, strict=True):
        weight = p * (u[:, :4][:, seen] == row[seen]).all(1)
        out[~seen] = (weight @ u[:, :4] / weight.sum())[~seen]
    np.testing.assert_allclose(model.conditional(v, observed), wanted, atol=1e-10)
    sampled = np.mean([model.conditional(v, observed, method="gibbs", num_sweeps=4000, seed=[i, 0]) for i in range(4)], 0)
    np.testing.assert_allclose(sampled, wanted, atol=0.05)  # 8000 sweeps that mix within tens
    np.testing.assert_array_equal(np.asarray(sampled)[observed], v[observed])


def test_units_of_one_colour_have_no_edge() -> None:
    rng = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.8):
        mask = np.triu(rng.random((12, 12)) < share, 1)
        mask |= mask.T
        colours = colouring(mask)
        assert not (mask & (colours[:, None] == colours)).any()
        counts = np.bincount(colours)
        assert (counts > 0).all() and counts[0] == counts.max()
    side = np.arange(9) < 4
    assert colouring(side[:, None] != side).max() == 1  # a bipartite graph has two


def test_samples_have_the_machine_s_distribution() -> None:
    model = machine(scale=0.7, num_visible=3, num_hidden=2)
    v = model.sample(4000, seed=[3, 4], num_sweeps=100).numpy()[:, 0]
    u, p = joint(model)
    wanted = np.array([p[(u[:, :3] == row).all(1)].sum() for row in states(3)])
    counts = np.array([(v == row).all(1).sum() for row in states(3)])
    # chi-square with 7 degrees of freedom exceeds 29.9 once in 10,000
    assert ((counts - 4000 * wanted) ** 2 / (4000 * wanted)).sum() < 29.9


@pytest.mark.parametrize(("settings", "message"), [
    ({"mask": np.ones((5, 5), int).tolist()}, "`mask` must have no self-edges; unit 0"),
    ({"mask": [[0, 1, 0], [1, 0, 0], [0, 0, 0]]}, "`mask` must be 0 and 1 of shape"),
    ({"mask": np.triu(np.ones((5, 5), int), 1).tolist()}, "`mask` must be symmetric"),
    ({"mask": np.zeros((5, 5), int).tolist()}, "A machine needs edges"),
    ({"num_hidden": 0, "edges": "bipartite"}, "A machine needs edges"),
    ({"sampler": "cd"}, "`sampler` must be one of"),
    ({"num_hidden": -1}, "`num_hidden` must be a whole number"),
    ({"data_mean": [0.5]}, "`data_mean` must have shape"),
])  # fmt: skip
def test_wrong_settings_are_clear_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoltzmannMachine.tiny(**settings)


def test_wrong_conditionals_are_clear_errors() -> None:
    model = machine()
    with pytest.raises(ValueError, match="`observed` must be bool of shape"):
        model.conditional([[1, 0, 0]], [[1, 0, 0]])
    for value in (np.nan, 0.5):
        with pytest.raises(ValueError, match="`v` must be 0 or 1 where it is observed"):
            model.conditional([[value, 0, 0]], [[True, True, False]])
    with pytest.raises(ValueError, match="`h` must be given"):
        model.energy([[1, 0, 0]])
    big = tfseq.BoltzmannMachine(num_visible=15, num_chains=2)
    with pytest.raises(ValueError, match="enumerate up to 14 visible units; there are 15"):
        big.conditional(np.zeros((1, 15)), np.ones((1, 15), bool), method="exact")
