"""Restricted Boltzmann machines against enumeration: probabilities, gradients, training steps, samples, log Z and errors."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import reference
import scipy.special
import tensorflow as tf
from reference import Boltzmann

import tfseq
from tfseq.exporting import litert
from tfseq.models import energy
from tfseq.models.energy import LogPartition
from tfseq.models.rbm import RBM

pytestmark = pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
op_by_op = pytest.mark.usefixtures("eager")

# A right sampler falls below this p-value for one seed in ten thousand, and each test has one fixed seed.
P_VALUE = 1e-4
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, sums of some ten terms

PAIRS: dict[str, dict[str, Any]] = {
    "binary": {"num_visible": 4, "num_hidden": 3},
    "counts": {"num_visible": 3, "visible": "binomial", "visible_count": 2, "num_hidden": 2, "hidden": "categorical",
               "hidden_count": 3},
    "symbols": {"num_visible": 6, "visible": "categorical", "visible_count": 3, "num_hidden": 2, "hidden": "binomial",
                "hidden_count": 2},
    "reals": {"num_visible": 2, "visible": "gaussian", "data_scale": [0.5, 3.0], "num_hidden": 3},
    "learned scale": {"num_visible": 1, "visible": "gaussian", "learned_scale": True, "num_hidden": 2, "hidden": "categorical",
                      "hidden_count": 2},
    "gaussian hidden": {"num_visible": 3, "num_hidden": 2, "hidden": "gaussian"},
    "rectified": {"num_visible": 2, "visible": "gaussian", "num_hidden": 2, "hidden": "relu"},
    "rectified visible": {"num_visible": 3, "visible": "relu", "num_hidden": 2},
}  # fmt: skip
LIKELIHOOD = [name for name in PAIRS if not name.startswith("rectified")]


def make(name: str, rng: np.random.Generator, scale: float = 0.7, **settings: Any) -> RBM:
    """A float64 model with normal parameters."""
    keras.utils.set_random_seed(0)
    model = RBM(**{"dtype": "float64", "num_chains": 8, "centred": False, **PAIRS[name], **settings})
    for weight in model.trainable_weights:
        weight.assign(scale * rng.normal(size=weight.shape))
    return model


def parameters(model: RBM) -> list[np.ndarray]:
    """[W, b, c] as float64."""
    return [reference.value(w) for w in (model.weight_matrices[0], *model.bias_vectors)]


def enumerated(model: RBM) -> Boltzmann:
    """The machine of the visible units in their own scale, s = v / scale."""
    config = model.get_config()
    layers = tuple(
        (config[side], int(bias.shape[0]), config[f"{side}_count"])
        for side, bias in zip(("visible", "hidden"), model.bias_vectors, strict=True)
    )
    weights, *biases = parameters(model)
    return Boltzmann(layers, (weights,), tuple(biases))


def scale_of(model: RBM) -> np.ndarray:
    """What observations are divided by, `[V]`."""
    return np.ones(model.get_config()["num_visible"]) if model.log_scale is None else np.exp(reference.value(model.log_scale))


def observations(model: RBM, num: int, rng: np.random.Generator) -> np.ndarray:
    """Random observations in the model's range, `[num, V]`."""
    config = model.get_config()
    kind, columns, count = config["visible"], config["num_visible"], config["visible_count"]
    if kind == "gaussian":
        return 2.0 * rng.normal(size=(num, columns))
    if kind == "relu":
        return np.maximum(0.0, 2.0 * rng.normal(size=(num, columns)))
    states, *_ = reference.unit_states(kind, columns, count)
    return states[rng.integers(len(states), size=num)]


def log_base(kind: str, s: np.ndarray, count: int) -> float:
    if kind == "binomial":
        return float(sum(np.log(scipy.special.comb(count, k)) for k in s))
    return float(-0.5 * np.sum(s**2)) if kind == "gaussian" else 0.0


def gradient(model: RBM, data: Any, step: int = 0) -> list[np.ndarray]:
    """What a training step ascends, by real step: of `trainable_weights`."""
    batch = model.complete(model.as_batch(data), step)
    with tf.GradientTape() as tape:
        terms = model.terms(batch, training=True)
        total = tf.reduce_sum(terms.objective)
    return [a.numpy() / np.asarray(terms.mask).sum() for a in tape.gradient(total, model.trainable_weights)]


def exact_gradient(model: RBM, v: np.ndarray) -> list[np.ndarray]:
    """Of the mean of log p(v), with respect to [W, b, c]: statistics of the data less those of the model."""
    machine, s = enumerated(model), v / scale_of(model)
    hidden = hidden_means(model, s)
    return [s.T @ hidden / len(s) - machine.pair(0), s.mean(0) - machine.mean(0), hidden.mean(0) - machine.mean(1)]


def hidden_means(model: RBM, s: np.ndarray) -> np.ndarray:
    """Expected hidden states by enumeration of those, `[N, H]`."""
    config, (weights, _, c) = model.get_config(), parameters(model)
    if config["hidden"] == "relu":
        return reference.softplus(c + s @ weights)
    states, base, _ = reference.unit_states(config["hidden"], len(c), config["hidden_count"])
    return scipy.special.softmax((c + s @ weights) @ states.T + base, -1) @ states


# The machine's quantities ------------------------------------------------------------------------------------------


@op_by_op
@pytest.mark.parametrize("name", PAIRS)
def test_the_energy_is_the_sum_over_units_and_pairs(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    config, (weights, b, c) = model.get_config(), parameters(model)
    v = observations(model, 5, rng)
    h = rng.integers(2, size=(5, len(c))).astype(float)  # of categorical units not one-hot; the energy is a sum all the same
    wanted = np.zeros(5)
    for row in range(5):
        s = v[row] / scale_of(model)
        for i, j in itertools.product(range(len(b)), range(len(c))):
            wanted[row] -= s[i] * weights[i, j] * h[row, j]
        wanted[row] -= s @ b + h[row] @ c + log_base(config["visible"], s, config["visible_count"])
        wanted[row] -= log_base(config["hidden"], h[row], config["hidden_count"])
    found = model.energy(v, h).numpy()
    # but for a constant, of which the free energy has a say below
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], **EXACT)


@op_by_op
@pytest.mark.parametrize("name", PAIRS)
def test_the_free_energy_is_that_of_the_sum_over_hidden_states(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    config, (weights, b, c) = model.get_config(), parameters(model)
    v = observations(model, 6, rng)
    s = v / scale_of(model)
    own = s @ b + np.array([log_base(config["visible"], row, config["visible_count"]) for row in s])
    if config["hidden"] == "relu":
        summed = reference.softplus_integral(c + s @ weights).sum(-1)
    else:
        states, base, volume = reference.unit_states(config["hidden"], len(c), config["hidden_count"])
        summed = scipy.special.logsumexp((c + s @ weights) @ states.T + base, -1) + volume
    wanted = np.log(scale_of(model)).sum() - own - summed
    np.testing.assert_allclose(model.free_energy(v), wanted, **EXACT)
    if config["hidden"] not in ("relu", "gaussian"):  # and it is that of the model's own energies
        each = np.stack([model.energy(v, np.tile(h, (len(v), 1))) for h in states], -1)
        np.testing.assert_allclose(model.free_energy(v), -scipy.special.logsumexp(-each, -1), **EXACT)


@op_by_op
@pytest.mark.parametrize("name", PAIRS)
def test_means_of_either_side_are_conditional_expectations(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    config, (weights, b, _) = model.get_config(), parameters(model)
    v = observations(model, 6, rng)
    hidden = hidden_means(model, v / scale_of(model))
    np.testing.assert_allclose(model.hidden_probs(v), hidden, **EXACT)
    a = b + hidden @ weights.T
    if config["visible"] in ("gaussian", "relu"):
        visible = a * scale_of(model) if config["visible"] == "gaussian" else reference.softplus(a)
    else:
        states, base, _ = reference.unit_states(config["visible"], len(b), config["visible_count"])
        visible = scipy.special.softmax(a @ states.T + base, -1) @ states
    np.testing.assert_allclose(model.visible_probs(hidden), visible, **EXACT)
    np.testing.assert_allclose(model.reconstruct(v), visible, **EXACT)


@op_by_op
@pytest.mark.parametrize("name", LIKELIHOOD)
def test_probabilities_are_those_of_the_enumeration_and_sum_to_one(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    machine, scale = enumerated(model), scale_of(model)
    v = machine.states[0] * scale  # the grid of Gaussian units stands for an integral over v
    wanted = machine.log_marginal([0]) - machine.log_z - np.log(scale).sum()
    found = model.log_prob(v).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(np.exp(found + machine.volumes[0] + np.log(scale).sum()).sum(), 1.0, rtol=1e-10)
    assert model.has_likelihood and model.monitor == "nats_per_step"


@op_by_op
def test_float32_probabilities_of_twelve_units_sum_to_one(rng: np.random.Generator) -> None:
    model = make("binary", rng, num_visible=12, num_hidden=5, dtype="float32")
    v = np.array(list(itertools.product([0.0, 1.0], repeat=12)))
    found = model.log_prob(v)
    assert found.dtype == tf.float32
    # logarithms of size 20 in float32: 2e-6 of each probability
    np.testing.assert_allclose(np.exp(found.numpy().astype(float)).sum(), 1.0, rtol=1e-5)


@op_by_op
def test_the_probability_of_a_sequence_is_the_product_over_its_real_steps(rng: np.random.Generator) -> None:
    model = make("binary", rng)
    x, lengths = rng.integers(2, size=(4, 3, 4)).astype(float), np.array([3, 0, 2, 1])
    each = model.log_prob(x.reshape(-1, 4)).numpy().reshape(4, 3)
    mask = np.arange(3) < lengths[:, None]
    wanted = np.where(mask, each, 0.0).sum(1)
    np.testing.assert_allclose(model.log_prob(np.where(mask[..., None], x, np.nan), mask), wanted, **EXACT)
    np.testing.assert_allclose(model.log_prob([row[:n] for row, n in zip(x, lengths, strict=True)]), wanted, **EXACT)
    np.testing.assert_allclose(model.predict({"x": x, "mask": mask}, verbose=0), wanted, **EXACT)
    shifted = model.log_prob({"x": x, "mask": mask}, log_partition=float(model.log_z) + 2.0)
    np.testing.assert_allclose(shifted, wanted - 2.0 * lengths, **EXACT)


@op_by_op
def test_rectified_units_have_no_likelihood(rng: np.random.Generator) -> None:
    for name in ("rectified", "rectified visible"):
        model = make(name, rng)
        v = observations(model, 6, rng)
        assert not model.has_likelihood and model.monitor == "reconstruction_error"
        for call in (model.log_partition, lambda model=model, v=v: model.log_prob(v)):
            with pytest.raises(ValueError, match="log Z is not defined for noisy ReLU units"):
                call()
        model.compile(keras.optimizers.SGD(0.1))
        found = model.evaluate(v, verbose=0, return_dict=True, batch_size=4)
        wanted = np.mean((v - model.reconstruct(v).numpy()) ** 2)
        assert set(found) == {"reconstruction_error"}
        np.testing.assert_allclose(found["reconstruction_error"], wanted, rtol=1e-6)
        with pytest.raises(ValueError, match="noisy ReLU"):  # a squared error is no log-probability
            model.log_prob(v, log_partition=0.0)


# Gradients ---------------------------------------------------------------------------------------------------------


@op_by_op
@pytest.mark.parametrize("name", LIKELIHOOD)
def test_the_exact_sampler_ascends_the_mean_log_likelihood(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng, sampler="exact")
    v = observations(model, 7, rng)
    found = gradient(model, v)
    for a, b in zip(found, exact_gradient(model, v), strict=False):
        np.testing.assert_allclose(a, b, **EXACT)
    assert len(found) == (4 if model.learned_scale else 3)


@op_by_op
def test_the_exact_sampler_is_centred_where_the_model_is(rng: np.random.Generator) -> None:
    model = make("binary", rng, sampler="exact", centred=True)
    offsets = [rng.uniform(0.2, 0.8, size=a.shape) for a in model.offsets]
    for offset, value in zip(model.offsets, offsets, strict=True):
        offset.assign(value)
    v = observations(model, 7, rng)
    for a, b in zip(gradient(model, v), centre(exact_gradient(model, v), offsets), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@op_by_op
@pytest.mark.parametrize("sampler", ["exact", "cd", "pcd"])
def test_the_gradient_of_a_learned_scale_is_that_of_finite_differences(sampler: str, rng: np.random.Generator) -> None:
    """Z is that of the scaled units and has no scale in it, so all samplers have this gradient exactly."""
    model = make("learned scale", rng, num_visible=3, sampler=sampler, centred=sampler != "exact")
    v = observations(model, 7, rng)
    found, at = gradient(model, v)[3], reference.value(model.log_scale)
    for i in range(3):
        values = []
        for sign in (1.0, -1.0):
            model.log_scale.assign(at + sign * 1e-5 * np.eye(3)[i])
            values.append(-model.free_energy(v).numpy().mean())
        # central differences of step 1e-5 on values of order 10 in float64: 1e-10 of rounding, 1e-9 of the third derivative
        np.testing.assert_allclose(found[i], (values[0] - values[1]) / 2e-5, atol=1e-7)
        model.log_scale.assign(at)


def centre(gradients: list[np.ndarray], offsets: list[np.ndarray], sign: float = -1.0) -> list[np.ndarray]:
    """[dW, db, dc] of a machine written in s - offset, as changes of the plain parameters; sign = 1 for bounds of errors."""
    weights, visible, hidden = gradients
    weights = weights + sign * (np.outer(visible, offsets[1]) + np.outer(offsets[0], hidden))
    return [weights, visible + sign * weights @ offsets[1], hidden + sign * offsets[0] @ weights]


def standard_errors(machine: Boltzmann, num: int) -> list[np.ndarray]:
    """Of the mean statistics of `num` independent samples; hidden means, which training takes, only lower them."""
    left, right = machine.states
    pairs = np.einsum("ab,ai,bj->ij", machine.prob, left**2, right**2) - machine.pair(0) ** 2
    alone = [machine.prob.sum(1 - i) @ machine.states[i] ** 2 - machine.mean(i) ** 2 for i in (0, 1)]
    return [np.sqrt(np.maximum(a, 0.0) / num) for a in (pairs, *alone)]


@op_by_op
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("name", "sampler"), [
    ("binary", "cd"), ("counts", "cd"), ("reals", "cd"), ("gaussian hidden", "cd"), ("symbols", "pcd"), ("binary", "pcd"),
    ("binary", "fpcd"), ("binary", "pt"),
])  # fmt: skip
def test_the_samplers_gradient_is_the_exact_one_on_average(
    name: str, sampler: str, centred: bool, rng: np.random.Generator
) -> None:
    """CD with many sweeps; persistent chains, which are in equilibrium, with one; 10,000 chains average within one step."""
    num = 10_000 if sampler != "pt" else 4_000
    sweeps = 12 if sampler == "cd" else 1
    scale = 0.5 if sampler == "cd" else 1.5  # a chain that mixes at once would hide where it comes from
    model = make(name, rng, scale=scale, sampler=sampler, num_sweeps=sweeps, num_chains=num, centred=centred)
    machine = enumerated(model)
    offsets = [rng.uniform(0.2, 0.8, size=a.shape) for a in model.offsets]
    for offset, value in zip(model.offsets, offsets, strict=True):
        offset.assign(value)
    if sampler != "cd":
        start = [reference.value(model.base), np.zeros(len(machine.biases[1]))]
        levels = energy._TEMPERATURES if sampler == "pt" else [1.0]
        states = np.concatenate([machine.tempered(beta, start).sample(num, rng)[1] for beta in levels])
        model.chains[0].assign(states)
    v = observations(model, 5, rng)
    found = gradient(model, np.tile(v, (num // 5, 1)))
    wanted, errors = exact_gradient(model, v), standard_errors(machine, num)
    if centred:
        wanted, errors = centre(wanted, offsets), centre(errors, offsets, 1.0)
    for a, b, error in zip(found, wanted, errors, strict=True):
        assert (np.abs(a - b) < 5.0 * error + 1e-12).all()  # five standard errors
    if sampler != "cd":  # the chains went on, and are in equilibrium still
        after = model.chains[0].numpy()[-num:]
        assert (after != states[-num:]).any()
        assert reference.chi_square(reference.places(after, machine.states[1]), machine.prob.sum(0)) > P_VALUE


@op_by_op
def test_fast_weights_move_the_chains_and_not_what_is_measured(rng: np.random.Generator) -> None:
    """FPCD: visible states of the machine with the fast weights added, and hidden means of the machine itself."""
    num = 10_000
    model = make("binary", rng, sampler="fpcd", num_chains=num)
    fast = [rng.normal(size=a.shape) for a in model.fast]
    for weight, value in zip(model.fast, fast, strict=True):
        weight.assign(value)
    machine = enumerated(model)
    weights, *biases = [a + b for a, b in zip(parameters(model), fast, strict=True)]
    moved = Boltzmann(machine.layers, (weights,), tuple(biases))
    model.chains[0].assign(moved.sample(num, rng)[1])
    v, visible = observations(model, 5, rng), machine.states[0]
    data, means, prob = hidden_means(model, v), hidden_means(model, visible), moved.prob.sum(1)
    wanted = [
        v.T @ data / 5.0 - visible.T @ (prob[:, None] * means), v.mean(0) - prob @ visible, data.mean(0) - prob @ means,
    ]  # fmt: skip
    for a, value in zip(gradient(model, v), wanted, strict=True):
        # statistics in [0, 1] have a deviation of at most 1/2
        np.testing.assert_allclose(a, value, atol=5.0 * 0.5 / np.sqrt(num))


@op_by_op
def test_contrastive_divergence_of_one_sweep_is_that_of_its_own_chain(rng: np.random.Generator) -> None:
    """CD-1 is biased; its expectation is that of one sweep from the data, by enumeration of h and of v after it."""
    num = 10_000
    model = make("binary", rng, scale=2.5, sampler="cd")
    weights, b, c = parameters(model)
    v = np.tile(observations(model, 1, rng), (num, 1))
    visible, hidden = (reference.unit_states("bernoulli", n)[0] for n in (4, 3))
    given_v = scipy.special.softmax((c + v[0] @ weights) @ hidden.T)
    given_h = scipy.special.softmax((b + hidden @ weights.T) @ visible.T, -1)
    after = given_v @ given_h  # the probability of each v after a sweep
    means, first = reference.sigmoid(c + visible @ weights), reference.sigmoid(c + v[0] @ weights)
    wanted = [
        np.outer(v[0], first) - visible.T @ (after[:, None] * means), v[0] - after @ visible, first - after @ means,
    ]  # fmt: skip
    for a, value in zip(gradient(model, v), wanted, strict=True):
        # statistics in [0, 1] have a deviation of at most 1/2
        np.testing.assert_allclose(a, value, atol=5.0 * 0.5 / np.sqrt(num))
    # and this is not the likelihood's gradient, by two such tolerances
    assert np.abs(wanted[0] - exact_gradient(model, v)[0]).max() > 2.0 * 5.0 * 0.5 / np.sqrt(num)


@op_by_op
def test_sparsity_descends_the_cross_entropy_of_the_mean_activity(rng: np.random.Generator) -> None:
    v, cost, target = rng.integers(2, size=(9, 4)).astype(float), 0.7, 0.2
    found = []
    for weight in (0.0, cost):
        model = make("binary", np.random.default_rng(5), sampler="cd", sparsity_cost=weight, sparsity_target=target)
        found.append(gradient(model, v))
    at = parameters(model)

    def value(weights: np.ndarray, c: np.ndarray) -> float:
        q = reference.sigmoid(c + v @ weights).mean(0)
        return float((target * np.log(q) + (1.0 - target) * np.log(1.0 - q)).sum())

    for i, place in [(k, p) for k in (0, 2) for p in np.ndindex(*at[k].shape)]:
        changed = []
        for sign in (1.0, -1.0):
            point = [a.copy() for a in at]
            point[i][place] += sign * 1e-5
            changed.append(value(point[0], point[2]))
        # central differences in float64: 1e-10 of rounding
        np.testing.assert_allclose((found[1][i] - found[0][i])[place], cost * (changed[0] - changed[1]) / 2e-5, atol=1e-8)
    np.testing.assert_array_equal(found[1][1], found[0][1])  # visible biases have no part in it


@op_by_op
def test_sparsity_holds_with_the_exact_sampler_too(rng: np.random.Generator) -> None:
    v = rng.integers(2, size=(9, 4)).astype(float)
    found = []
    for sampler in ("cd", "exact"):
        of_cost = [
            gradient(make("binary", np.random.default_rng(5), sampler=sampler, sparsity_cost=cost), v) for cost in (0.0, 0.7)
        ]
        found.append([b - a for a, b in zip(*of_cost, strict=True)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, **EXACT)


@op_by_op
def test_sparsity_of_counts_is_that_of_their_trials(rng: np.random.Generator) -> None:
    """Two trials a unit: a mean of 0.4 is a share of 0.2, where the cross-entropy with a target of 0.2 has its minimum."""
    found = []
    for cost in (0.0, 0.7):
        model = make("symbols", np.random.default_rng(5), sampler="cd", sparsity_cost=cost, sparsity_target=0.2)
        model.weight_matrices[0].assign(np.zeros((6, 2)))
        model.bias_vectors[1].assign(np.full(2, np.log(0.2 / 0.8)))
        found.append(gradient(model, observations(model, 9, np.random.default_rng(0))))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, **EXACT)


# Training steps ----------------------------------------------------------------------------------------------------

_PATTERN = np.array([1.0, 0.0, 0.0, 1.0])


def saturated(rng: np.random.Generator, **settings: Any) -> RBM:
    """Visible biases so large that every sample of the visible side is one pattern: every sampler is then without noise."""
    model = make("binary", rng, scale=0.5, **settings)
    model.bias_vectors[0].assign(60.0 * (2.0 * _PATTERN - 1.0))
    return model


class Trainer:
    """The contrastive steps of a saturated model in NumPy, plain stochastic gradient ascent."""

    def __init__(self, model: RBM, rate: float, l2: float = 0.0) -> None:
        self.parameters, self.rate, self.l2, self.centred = parameters(model), rate, l2, model.centred
        self.offsets = [reference.value(a) for a in model.offsets]
        self.fast = [np.zeros_like(a) for a in self.parameters]

    def gradient(self, x: np.ndarray) -> list[np.ndarray]:
        """Mean over the rows given, less what the pattern says."""
        weights, _, c = self.parameters
        data, model = reference.sigmoid(c + x @ weights), reference.sigmoid(c + _PATTERN @ weights)
        found = [x.T @ data / len(x) - np.outer(_PATTERN, model), x.mean(0) - _PATTERN, data.mean(0) - model]
        return centre(found, self.offsets) if self.centred else found

    def step(self, x: np.ndarray) -> None:
        hidden = reference.sigmoid(self.parameters[2] + x @ self.parameters[0])
        found = self.gradient(x)
        self.fast = [0.95 * a + 0.01 * g for a, g in zip(self.fast, found, strict=True)]
        found[0] = found[0] - self.l2 * self.parameters[0]
        self.parameters = [a + self.rate * g for a, g in zip(self.parameters, found, strict=True)]
        if self.centred:  # running means, a hundredth of each batch's
            self.offsets = [o + 0.01 * (a.mean(0) - o) for o, a in zip(self.offsets, (x, hidden), strict=True)]


@op_by_op
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("sampler", ["cd", "pcd", "fpcd", "pt"])
def test_fit_averages_each_batch_over_its_own_rows(sampler: str, centred: bool, rng: np.random.Generator) -> None:
    model = saturated(rng, sampler=sampler, centred=centred, l2=0.0625, num_chains=3)
    trainer = Trainer(model, 0.25, 0.0625)  # rates that float32 has exactly
    x = rng.integers(2, size=(10, 4)).astype(float)
    model.compile(keras.optimizers.SGD(0.25))
    history = model.fit(x, batch_size=4, epochs=1, shuffle=False, verbose=0).history
    assert set(history) == {"loss"} and int(model.step) == 3
    for rows in (x[:4], x[4:8], x[8:]):  # the last has two rows
        trainer.step(rows)
    for found, wanted in zip(parameters(model), trainer.parameters, strict=True):
        np.testing.assert_allclose(found, wanted, **EXACT)
    if centred:
        for found, wanted in zip(model.offsets, trainer.offsets, strict=True):
            np.testing.assert_allclose(found, wanted, **EXACT)
    for found, wanted in zip(model.fast, trainer.fast, strict=False):
        np.testing.assert_allclose(found, wanted, **EXACT)
    assert len(model.fast) == (3 if sampler == "fpcd" else 0)


@op_by_op
def test_fit_with_the_exact_sampler_makes_the_steps_of_the_likelihood(rng: np.random.Generator) -> None:
    model = make("symbols", rng, sampler="exact")
    x = observations(model, 7, rng)
    wanted = make("symbols", np.random.default_rng(0), sampler="exact")
    for rows in (x[:3], x[3:6], x[6:]):
        for weight, step in zip(wanted.trainable_weights, exact_gradient(wanted, rows), strict=True):
            weight.assign(weight.value + 0.25 * step)
    model.compile(keras.optimizers.SGD(0.25))
    model.fit(x, batch_size=3, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(parameters(model), parameters(wanted), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@op_by_op
@pytest.mark.parametrize("sampler", ["cd", "pcd"])
def test_padded_steps_have_no_part_in_a_training_step(sampler: str, rng: np.random.Generator) -> None:
    model = saturated(rng, sampler=sampler, centred=True, num_chains=3)
    trainer = Trainer(model, 1.0)
    lengths = np.array([3, 0, 1, 2])
    x, mask = rng.integers(2, size=(4, 3, 4)).astype(float), np.arange(3) < lengths[:, None]
    wanted = trainer.gradient(x[mask])
    trainer.step(x[mask])
    found = gradient(model, {"x": np.where(mask[..., None], x, np.nan), "mask": mask})
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)
    for a, b in zip(model.offsets, trainer.offsets, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@op_by_op
@pytest.mark.parametrize("sampler", ["cd", "pcd", "exact"])
def test_a_batch_without_a_real_step_changes_no_parameter_and_no_running_mean(sampler: str, rng: np.random.Generator) -> None:
    model = make("binary", rng, sampler=sampler, centred=True, l2=0.0, sparsity_cost=0.1)
    model.compile(keras.optimizers.SGD(0.3))
    before = parameters(model) + [reference.value(a) for a in model.offsets]
    model.fit({"x": np.zeros((2, 3, 4)), "mask": np.zeros((2, 3), bool)}, epochs=1, verbose=0)
    for a, b in zip(before, parameters(model) + [reference.value(a) for a in model.offsets], strict=True):
        np.testing.assert_array_equal(b, a)


@op_by_op
def test_decay_touches_weights_alone(rng: np.random.Generator) -> None:
    v, found = rng.normal(size=(5, 1)), []
    for l2 in (0.0, 0.25):
        model = make("learned scale", np.random.default_rng(3), sampler="cd", l2=l2)
        at = reference.value(model.weight_matrices[0])
        model.compile(keras.optimizers.SGD(0.5))
        model.fit(v, batch_size=5, epochs=1, shuffle=False, verbose=0)
        found.append([reference.value(w) for w in model.trainable_weights])
    difference = [b - a for a, b in zip(*found, strict=True)]
    assert len(difference) == 4
    np.testing.assert_allclose(difference[0], -0.5 * 0.25 * at, **EXACT)
    for other in difference[1:]:
        np.testing.assert_array_equal(other, 0.0)


@pytest.mark.parametrize(("settings", "wanted"), [
    ({"num_sweeps": 3}, {0: 3, 1000: 3}),
    ({"num_sweeps": 2, "max_sweeps": 4, "sweeps_growth": 5}, {0: 2, 4: 2, 5: 3, 9: 3, 10: 4, 99: 4}),
    ({"num_sweeps": 2, "max_sweeps": 4}, {0: 2, 99: 2}),
    (RBM.preset("salakhutdinov", num_hidden=3), {0: 1, 5999: 1, 6000: 2, 143_999: 24, 144_000: 25, 10**6: 25}),
])  # fmt: skip
def test_sweeps_grow_with_the_training_steps(settings: dict, wanted: dict[int, int]) -> None:
    model = RBM(**{"num_visible": 4, "num_hidden": 3, "num_chains": 2, **settings})
    for step, sweeps in wanted.items():
        model.step.assign(step)
        assert int(model.current_sweeps()) == sweeps


@op_by_op
@pytest.mark.parametrize("sampler", ["cd", "pcd"])
def test_the_sweeps_of_a_step_are_those_of_the_schedule(sampler: str, rng: np.random.Generator) -> None:
    x, found = rng.integers(2, size=(6, 4)).astype(float), []
    for settings in ({"num_sweeps": 1, "max_sweeps": 5, "sweeps_growth": 10}, {"num_sweeps": 3}, {"num_sweeps": 1}):
        model = make("binary", np.random.default_rng(1), sampler=sampler, **settings)
        model.step.assign(25)
        found.append(gradient(model, x, 25))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert (found[0][0] != found[2][0]).any()


@op_by_op
@pytest.mark.parametrize("sampler", ["pcd", "pt"])
def test_chains_are_saved_and_go_on_where_they_were(sampler: str, rng: np.random.Generator, tmp_path: Path) -> None:
    model = make("binary", rng, sampler=sampler, dtype="float32")
    first = reference.value(model.chains[0])
    assert first.shape == (10 * 8 if sampler == "pt" else 8, 3)
    model.compile(keras.optimizers.SGD(0.1))
    x = rng.integers(2, size=(6, 4)).astype(np.float32)
    model.fit(x, epochs=2, verbose=0)
    assert (reference.value(model.chains[0]) != first).any()
    model.save(tmp_path / "model.keras")
    again = tfseq.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.chains[0], model.chains[0])
    for one in (model, again):
        one.fit(x, shuffle=False, verbose=0)
    for a, b in zip((model.chains[0], *parameters(model)), (again.chains[0], *parameters(again)), strict=True):
        np.testing.assert_array_equal(a, b)


# Grey values -------------------------------------------------------------------------------------------------------


def as_bits(model: RBM, log_prob: np.ndarray) -> np.ndarray:
    """Which of the four binary vectors has this log-probability, for a machine of two visible units."""
    each = model.log_prob(np.array(list(itertools.product([0.0, 1.0], repeat=2)))).numpy()
    assert np.ptp(np.sort(each)[1:] - np.sort(each)[:-1]) > 0.0
    distance = np.abs(log_prob[:, None] - each)
    assert (distance.min(1) < 1e-9).all()
    return distance.argmin(1)


@op_by_op
def test_grey_values_are_sampled_cut_or_taken_as_they_are(rng: np.random.Generator) -> None:
    num, grey = 4000, np.array([0.3, 0.8])
    x = np.tile(grey, (num, 1))
    model = make("binary", rng, num_visible=2)  # "sample" is the default
    prob = np.outer([0.7, 0.3], [0.2, 0.8])
    assert reference.chi_square(as_bits(model, model.log_prob(x).numpy()), prob) > P_VALUE
    np.testing.assert_array_equal(model.log_prob(x), model.log_prob(x))  # the pixels are those of the seed
    steps = []
    for step in (0, 0, 1):  # in training they are drawn anew at each presentation
        batch = model.complete(model.as_batch(x), step)
        steps.append(as_bits(model, model.terms(batch).log_lik.numpy()[:, 0]))
    np.testing.assert_array_equal(steps[0], steps[1])
    assert reference.chi_square(4 * steps[0] + steps[2], np.outer(prob, prob)) > P_VALUE
    model = make("binary", np.random.default_rng(0), num_visible=2, binarise="threshold")
    cut = np.array([[0.3, 0.8], [0.5, 0.500001], [0.0, 1.0]])
    np.testing.assert_array_equal(as_bits(model, model.log_prob(cut).numpy()), [1, 1, 1])
    model = make("binary", np.random.default_rng(0), num_visible=2, binarise="none")
    machine = enumerated(model)
    weights, b, c = parameters(model)
    wanted = cut @ b + reference.softplus(c + cut @ weights).sum(1) - machine.log_z
    np.testing.assert_allclose(model.log_prob(cut), wanted, **EXACT)


@op_by_op
@pytest.mark.parametrize("binarise", ["sample", "threshold", "none"])
def test_binary_values_are_never_changed(binarise: str, rng: np.random.Generator) -> None:
    model = make("binary", rng, binarise=binarise)
    machine = enumerated(model)
    np.testing.assert_allclose(model.log_prob(machine.states[0]), machine.log_marginal([0]) - machine.log_z, **EXACT)


def test_the_protocol_names_what_likelihoods_are_of(rng: np.random.Generator) -> None:
    binary, grey = [np.array([[0.0, 1.0]]), np.ones((3, 2))], [np.array([[0.0, 1.0]]), np.array([[0.0, 0.5]])]
    for binarise, name in (("sample", "sampled"), ("threshold", "threshold at 0.5"), ("none", "grey")):
        model = make("binary", rng, num_visible=2, binarise=binarise)
        assert model.protocol(binary) == "binary"
        assert model.protocol(grey) == name
    for name in ("counts", "symbols", "reals", "rectified visible"):
        assert make(name, rng).protocol(grey) == "as given"


# Sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binary", "symbols"])
def test_samples_have_the_probabilities_of_the_enumeration(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    machine = enumerated(model)
    found = model.sample(1500, 2, num_sweeps=40).numpy()
    assert found.shape == (1500, 2, machine.layers[0][1])
    places = reference.places(found.reshape(3000, -1), machine.states[0]).reshape(1500, 2)
    prob = machine.prob.sum(1)
    assert reference.chi_square(places.ravel(), prob) > P_VALUE
    error = 5.0 * 0.5 / np.sqrt(1500)  # the two steps of a row are independent: five standard errors of a correlation's terms
    first, second = (machine.states[0][places[:, i]] - prob @ machine.states[0] for i in (0, 1))
    np.testing.assert_allclose((first * second).mean(0), 0.0, atol=error)
    np.testing.assert_array_equal(model.sample(1500, 2, num_sweeps=40), found)
    assert (model.sample(1500, 2, seed=[0, 1], num_sweeps=40).numpy() != found).any()


def test_samples_of_reals_are_in_the_scale_of_the_data(rng: np.random.Generator) -> None:
    model = make("reals", rng)
    machine, scale, num = enumerated(model), scale_of(model), 3000
    found = model.sample(num, num_sweeps=30).numpy()[:, 0] / scale
    square = machine.prob.sum(1) @ machine.states[0] ** 2
    np.testing.assert_allclose(found.mean(0), machine.mean(0), atol=5.0 * found.std(0).max() / np.sqrt(num))
    np.testing.assert_allclose((found**2).mean(0), square, atol=5.0 * (found**2).std(0).max() / np.sqrt(num))


@op_by_op
def test_gibbs_is_a_chain_from_the_data_with_sweeps_of_its_own_for_each_row(rng: np.random.Generator) -> None:
    model = make("binary", rng)
    machine, (weights, b, c), num = enumerated(model), parameters(model), 4000
    visible, hidden = machine.states
    v = np.tile(visible[5], (num, 1))
    sweeps = np.repeat([0, 1, 2, 15], num // 4)
    found, mean = (a.numpy() for a in model.gibbs(v, sweeps))
    np.testing.assert_array_equal(found[sweeps == 0], v[sweeps == 0])
    np.testing.assert_array_equal(mean[sweeps == 0], v[sweeps == 0])
    given_v = scipy.special.softmax((c + v[0] @ weights) @ hidden.T)
    given_h = scipy.special.softmax((b + hidden @ weights.T) @ visible.T, -1)
    once = reference.places(found[sweeps == 1], visible)
    assert reference.chi_square(once, given_v @ given_h) > P_VALUE
    given_any_v = scipy.special.softmax((c + visible @ weights) @ hidden.T, -1)
    twice = given_v @ given_h @ given_any_v @ given_h
    assert reference.chi_square(reference.places(found[sweeps == 2], visible), twice) > P_VALUE
    assert reference.chi_square(reference.places(found[sweeps == 15], visible), machine.prob.sum(1)) > P_VALUE
    # the expected value is that given a hidden state, from which the visible one was drawn
    means = reference.sigmoid(b + hidden @ weights.T)
    distance = np.abs(mean[sweeps == 1][:, None] - means).max(-1)
    assert (distance.min(1) < 1e-12).all()
    drawn = distance.argmin(1) * len(visible) + once
    assert reference.chi_square(drawn, given_v[:, None] * given_h) > P_VALUE
    for a, again in zip((found, mean), model.gibbs(v, sweeps), strict=True):
        np.testing.assert_array_equal(again, a)
    rows = np.array([3999, 4, 1500])
    seeds = tfseq.ops.random.row_seeds([0, 0], tf.range(num)).numpy()[rows]
    np.testing.assert_array_equal(model.gibbs(v[rows], sweeps[rows], seeds)[0], found[rows])
    np.testing.assert_array_equal(model.gibbs(v[:9], 15, [0, 0])[0], model.gibbs(v[:9], np.full(9, 15), [0, 0])[0])
    assert (model.gibbs(v, sweeps, [0, 1])[0].numpy() != found).any()


@op_by_op
def test_no_noise_of_a_gibbs_chain_is_used_twice(rng: np.random.Generator) -> None:
    """One unit on either side that copies the other: the first hidden state's number, used again, would keep the second."""
    model, num = make("binary", rng, num_visible=1, num_hidden=1, binarise="none"), 8000
    for weight, value in zip((model.weight_matrices[0], *model.bias_vectors), ([[4.0]], [-2.0], [-2.0]), strict=True):
        weight.assign(value)
    v = np.full((num, 1), 0.5)  # the first hidden state is a fair coin
    path = [model.gibbs(v, sweeps)[0].numpy()[:, 0].astype(int) for sweeps in (1, 2)]
    copy = reference.sigmoid(np.array([[2.0, -2.0], [-2.0, 2.0]]))  # of a state 0, 1 into a state 0, 1
    first = np.array([0.5, 0.5]) @ copy
    assert reference.chi_square(2 * path[0] + path[1], first[:, None] * (copy @ copy)) > P_VALUE


# log Z -------------------------------------------------------------------------------------------------------------


@op_by_op
@pytest.mark.parametrize("name", LIKELIHOOD)
def test_log_partition_of_small_machines_is_exact(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    for method in ("auto", "exact"):
        found = model.log_partition(method)
        assert found.method == "exact" and found.converged and found.ess == math.inf and found.num_chains == 0
        np.testing.assert_allclose([found.value, found.low, found.high, found.reverse], enumerated(model).log_z, rtol=1e-12)


@op_by_op
def test_log_partition_of_large_machines_is_annealed() -> None:
    model = RBM(num_visible=17, num_hidden=18, num_chains=2)
    model.weight_matrices[0].assign(np.zeros((17, 18)))
    found = model.log_partition(num_chains=5, num_temperatures=3)
    assert found.method == "ais" and found.num_chains == 5
    np.testing.assert_allclose([found.value, found.reverse], 35.0 * np.log(2.0), rtol=1e-6)  # no weight has any variance


def test_annealing_is_within_its_error_of_the_enumeration(rng: np.random.Generator) -> None:
    model = make("binary", rng)
    log_z = enumerated(model).log_z
    found = model.log_partition("ais", num_chains=200, num_temperatures=300)  # a warning would be an error
    assert found.method == "ais" and found.converged and (found.num_chains, found.num_temperatures) == (200, 300)
    error = (np.exp(found.high - log_z) - np.exp(found.value - log_z)) / 3.0  # of the estimate of Z
    assert abs(np.exp(found.value - log_z) - 1.0) < 4.0 * error
    assert 20.0 < found.ess <= 200.0
    np.testing.assert_allclose(found.reverse, log_z, atol=0.3)
    assert model.log_partition("ais", num_chains=200, num_temperatures=300).value == found.value  # the same seed
    other = model.log_partition("ais", num_chains=200, num_temperatures=300, seed=[3, 3], reverse=False)
    assert other.method == "ais" and other.value != found.value and math.isnan(other.reverse)


@op_by_op
def test_annealing_that_has_not_converged_warns(rng: np.random.Generator) -> None:
    model = make("binary", rng, num_visible=16, num_hidden=16, dtype="float32")
    model.weight_matrices[0].assign(np.full((16, 16), 2.0))  # all on or all off: two modes, far apart
    for bias in model.bias_vectors:
        bias.assign(np.full(16, -16.0))
    with pytest.warns(
        UserWarning, match="Annealing has not converged: log Z is .* forward and .* in reverse, effective sample size"
    ):
        found = model.log_partition("ais", num_chains=20, num_temperatures=2)
    assert not found.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.log_partition("ais", num_chains=20, num_temperatures=2, reverse=False).method == "ais"
        assert model.log_partition().method == "exact"


def test_convergence_is_agreement_within_a_nat_or_the_error_and_many_chains() -> None:
    good = LogPartition(100.0, 99.9, 100.1, 80.0, 100.5, "ais", 100, 1000)
    assert good.converged
    assert not good._replace(reverse=101.5).converged and not good._replace(reverse=98.5).converged
    assert good._replace(reverse=101.5, high=102.0).converged
    assert not good._replace(ess=5.0).converged
    assert good._replace(reverse=math.nan).converged  # nobody looked
    assert LogPartition(1.0, 1.0, 1.0, math.inf, 1.0, "exact").converged


@op_by_op
def test_too_large_machines_and_wrong_settings_of_log_partition_are_clear_errors() -> None:
    model = RBM(num_visible=22, num_hidden=21, num_chains=2)
    with pytest.raises(ValueError, match="log Z is enumerated for at most 1048576 joint states of one side; there are 2.1e\\+06"):
        model.log_partition("exact")
    with pytest.raises(ValueError, match="`method` must be one of .*received 'exat'. Did you mean 'exact'"):
        model.log_partition("exat")  # type: ignore[arg-type]
    for setting in ({"num_chains": 1}, {"num_temperatures": 1}, {"num_temperatures": 10.5}):
        with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be a whole number of at least 2"):
            model.log_partition("ais", **setting)  # type: ignore[arg-type]


@op_by_op
def test_the_number_of_states_may_be_larger_than_any_float() -> None:
    model = RBM(num_visible=1100, num_hidden=1200, num_chains=2)
    with pytest.raises(ValueError, match="log Z is enumerated for at most 1048576 joint states of one side"):
        model.log_partition("exact")


@op_by_op
def test_log_z_follows_the_parameters(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("binary", rng)
    calls: list[int] = []
    whole = model.log_partition
    monkeypatch.setattr(model, "log_partition", lambda *a, **k: calls.append(1) or whole(*a, **k))
    v = enumerated(model).states[0]

    def check() -> None:
        machine = enumerated(model)
        np.testing.assert_allclose(model.log_prob(v), machine.log_marginal([0]) - machine.log_z, **EXACT)
        np.testing.assert_allclose(model.log_z, machine.log_z, **EXACT)

    check()
    check()
    assert len(calls) == 1  # nothing changed
    for weight in model.trainable_weights:
        weight.assign(weight.value * 1.3)
        check()
    assert len(calls) == 4
    model.refresh_log_z()
    assert len(calls) == 4


@op_by_op
def test_log_z_follows_parameters_that_change_places(rng: np.random.Generator) -> None:
    """Sums over the parameters do not change here, and log Z does."""
    model = make("binary", rng)
    weights, biases = np.zeros((4, 3)), np.array([1.0, 0.0, 0.0, 0.0])
    weights[0, 0] = 2.0
    v = enumerated(model).states[0]
    for place in (0, 1):  # on the unit that has a weight, and on one that has none
        model.weight_matrices[0].assign(weights)
        model.bias_vectors[0].assign(np.roll(biases, place))
        model.bias_vectors[1].assign(np.zeros(3))
        machine = enumerated(model)
        np.testing.assert_allclose(model.log_prob(v), machine.log_marginal([0]) - machine.log_z, **EXACT)


@op_by_op
def test_log_z_of_a_new_model_whose_parameters_are_all_zero(rng: np.random.Generator) -> None:
    model = make("binary", rng, scale=0.0)
    np.testing.assert_allclose(model.log_prob(enumerated(model).states[0]), -4.0 * np.log(2.0), **EXACT)


@op_by_op
@pytest.mark.parametrize("name", ["binary", "learned scale"])
def test_evaluate_and_validation_report_nats_per_step(name: str, rng: np.random.Generator) -> None:
    model = make(name, rng, sampler="cd")
    x, y = observations(model, 7, rng), observations(model, 5, rng)
    model.compile(keras.optimizers.SGD(0.05))

    def evaluate(data: Any) -> float:
        return model.evaluate(data, batch_size=2, verbose=0, return_dict=True)["nats_per_step"]

    history = model.fit(x, batch_size=4, epochs=2, validation_data=y, verbose=0).history
    assert set(history) == {"loss", "val_loss", "val_nats_per_step"}
    each = -model.log_prob(y).numpy()
    np.testing.assert_allclose(each, model.free_energy(y).numpy() + enumerated(model).log_z, **EXACT)
    np.testing.assert_allclose(history["val_nats_per_step"][-1], each.mean(), rtol=1e-6)  # Keras logs float32
    np.testing.assert_allclose(evaluate(y), each.mean(), rtol=1e-6)  # the last batch is of one row
    masked = {"x": np.stack([y, y], 1), "mask": np.array([[True, False]] * 4 + [[True, True]])}
    np.testing.assert_allclose(evaluate(masked), (each.sum() + each[4]) / 6.0, rtol=1e-6)  # pooled over real steps
    for weight in model.trainable_weights:  # log Z is that of the parameters as they are now
        weight.assign(weight.value * 1.1)
    np.testing.assert_allclose(evaluate(y), model.free_energy(y).numpy().mean() + enumerated(model).log_z, rtol=1e-6)


# Where a model starts ----------------------------------------------------------------------------------------------


def test_a_model_from_data_starts_at_its_mean_and_scale(rng: np.random.Generator) -> None:
    x = (rng.random((50, 4)) < [0.2, 0.5, 0.8, 0.0]).astype(np.float32)
    model = RBM.from_data(x, num_hidden=3, num_chains=2)
    mean = np.clip(x.astype(float).mean(0), 0.005, 0.995)  # what was never seen is still possible
    np.testing.assert_allclose(model.bias_vectors[0], np.log(mean / (1.0 - mean)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.visible_probs(np.zeros((1, 3)))[0], mean, rtol=1e-5)
    np.testing.assert_allclose(model.offsets[0], x.mean(0), atol=1e-6)
    reals = 3.0 * rng.normal(size=(50, 2)) + [5.0, -40.0]
    model = RBM.from_data(reals, visible="gaussian", num_hidden=3, num_chains=2)
    np.testing.assert_allclose(np.exp(model.log_scale), reals.std(0), rtol=1e-5)
    np.testing.assert_allclose(model.visible_probs(np.zeros((1, 3)))[0], reals.mean(0), rtol=1e-5)
    # independent units of the data's mean and scale, up to small weights
    wanted = -0.5 * ((reals - reals.mean(0)) / reals.std(0)) ** 2 - np.log(reals.std(0)) - 0.5 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(model.log_prob(reals), wanted.sum(1), atol=0.2)


# What is refused ---------------------------------------------------------------------------------------------------


@op_by_op
@pytest.mark.parametrize(("name", "value", "message"), [
    ("binary", 255.0, r"`x` must be in \[0, 1\]; received 255 at index \(1, 0, 2\). Scale the data .*visible='gaussian'"),
    ("binary", -0.5, r"`x` must be in \[0, 1\]; received -0.5 at index \(1, 0, 2\)"),
    ("binary", np.nan, r"`x` must be finite.*received nan at index \(1, 0, 2\)"),
    ("counts", 3.0, r"`x` must be a whole number in \[0, K\].*received 3 at index \(1, 0, 2\).*visible_count"),
    ("symbols", 2.0, r"`x` must be one-hot in every group of K columns.*at index \(1, 0, 0\).*visible_count"),
    ("rectified visible", -1.0, r"`x` must be at least 0; received -1 at index \(1, 0, 2\). Shift the data.*visible='gaussian'"),
])  # fmt: skip
def test_values_outside_the_range_are_a_clear_error(name: str, value: float, message: str, rng: np.random.Generator) -> None:
    model = make(name, rng)
    x = observations(model, 3, rng)
    x[1, 2] = value
    model.compile(keras.optimizers.SGD(0.1))
    calls = [lambda: model.fit(x, verbose=0), lambda: model.evaluate(x, verbose=0), lambda: model.predict(x, verbose=0)]
    calls += [lambda: model.log_prob(x)] if model.has_likelihood else []
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_counts_that_are_not_whole_are_a_clear_error(rng: np.random.Generator) -> None:
    model = make("counts", rng)
    with pytest.raises(ValueError, match="`x` must be "):  # half a success has no probability
        model.log_prob(np.array([[0.5, 1.0, 2.0]]))


@pytest.mark.parametrize(("settings", "message"), [
    ({"visible": "gaussian", "hidden": "gaussian"}, "Only one side may be Gaussian.*Choose hidden='bernoulli'"),
    ({"visible": "bernouli"}, "`visible` must be one of .*Did you mean 'bernoulli'"),
    ({"hidden": "softmax"}, "`hidden` must be one of .*received 'softmax'"),
    ({"visible_count": 3}, "`visible_count` is for binomial and categorical units"),
    ({"visible": "categorical", "visible_count": 4}, "`visible_count` must be the number of categories.*divide the 6 columns"),
    ({"hidden": "categorical"}, "`hidden_count` must be the number of categories, at least 2"),
    ({"num_visible": 0}, "`num_visible` must be a whole number of at least 1; received 0"),
    ({"num_hidden": 2.5}, "`num_hidden` must be a whole number of at least 1; received 2.5"),
    ({"data_mean": [0.5, 0.5]}, r"`data_mean` must have one value a visible unit, shape \[6\]; received \[2\]"),
    ({"data_mean": np.full((1, 6), 0.5)}, r"`data_mean` must have one value a visible unit, shape \[6\]; received \[1, 6\]"),
    ({"data_mean": 0.5}, r"`data_mean` must have one value a visible unit, shape \[6\]; received \[\]"),
    ({"data_mean": [0.5, 0.5, np.nan, 0.5, 0.5, 0.5]}, "`data_mean` must "),
    ({"visible": "gaussian", "data_scale": [1.0] * 5}, r"`data_scale` must have one value a visible unit.*received \[5\]"),
    ({"visible": "gaussian", "data_scale": [1.0] * 5 + [0.0]}, "above 0 and finite: a feature of zero variance"),
    ({"visible": "gaussian", "data_scale": [1.0] * 5 + [np.nan]}, "`data_scale` must be above 0 and finite"),
    ({"visible": "gaussian", "data_scale": [1.0] * 5 + [np.inf]}, "`data_scale` must be "),
    ({"data_scale": [1.0] * 6}, "`learned_scale` and `data_scale` are for visible='gaussian'"),
    ({"learned_scale": True}, "`learned_scale` and `data_scale` are for visible='gaussian'"),
    ({"sampler": "cd1"}, "`sampler` must be one of .*Did you mean 'cd'"),
    ({"binarise": "round"}, "`binarise` must be one of .*received 'round'"),
    ({"num_chains": 0}, "`num_chains` must be a whole number of at least 1; received 0"),
    ({"num_sweeps": 0}, "`num_sweeps` must be a whole number of at least 1; received 0"),
    ({"num_sweeps": 3, "max_sweeps": 2}, "`max_sweeps` must be a whole number of at least 3; received 2"),
    ({"sweeps_growth": -1}, "`sweeps_growth` must be a whole number of at least 0; received -1"),
    ({"l2": -1e-4}, "`l2` must be a number of at least 0; received -0.0001"),
    ({"l2": math.nan}, "`l2` must be a number of at least 0; received nan"),
    ({"sparsity_target": 1.5}, r"`sparsity_target` must lie in \[0, 1\]; received 1.5"),
    ({"sparsity_cost": -1.0}, "`sparsity_cost` must be a number of at least 0; received -1.0"),
    ({"initial_stddev": 0.0}, "`initial_stddev` must be a number above 0; received 0.0"),
    ({"num_temperatures": 1}, "`num_temperatures` must be a whole number of at least 2; received 1"),  # as `log_partition` says
])  # fmt: skip
def test_wrong_hyperparameters_are_a_clear_error(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(**{"num_visible": 6, "num_hidden": 3, **settings})


@pytest.mark.parametrize(("rows", "value", "settings", "message"), [
    ([2], np.nan, {}, r"`x` must be finite, .*received nan at index \(\d, 0, 1\)"),
    ([2], np.inf, {"visible": "gaussian"}, r"`x` must be finite, .*received inf at index"),
    (range(10), 0.7, {"visible": "gaussian"}, "feature 1 is constant. Leave it out"),
])  # fmt: skip
def test_wrong_data_are_a_clear_error(rows: Any, value: float, settings: dict, message: str, rng: np.random.Generator) -> None:
    x = rng.random((10, 4))
    x[rows, 1] = value
    with pytest.raises(ValueError, match=message):
        RBM.from_data(x, num_hidden=3, **settings)


@pytest.mark.parametrize("data", [np.zeros((0, 4)), [np.zeros((3, 2, 2))]], ids=["no rows", "matrices"])
def test_data_without_vectors_are_a_clear_error(data: Any) -> None:
    with pytest.raises(ValueError, match="`dataset` must hold "):
        RBM.from_data(data, num_hidden=3)


@op_by_op
def test_wrong_shapes_are_a_clear_error(rng: np.random.Generator) -> None:
    model = make("binary", rng)
    for call in (model.free_energy, model.hidden_probs, model.reconstruct, model.gibbs):
        for wrong in (np.zeros((2, 5)), np.zeros(4), np.zeros((2, 1, 4))):
            with pytest.raises(ValueError, match=r"`v` must have shape \[N, 4\]; received "):
                call(wrong)
    with pytest.raises(ValueError, match=r"`h` must have shape \[N, 3\]; received \[2, 4\]"):
        model.visible_probs(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"`h0` must have shape \[N, 3\]; received \[2, 2\]"):
        model.energy(np.zeros((2, 4)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="`energy` takes the states of 1 hidden layers; received 0"):
        model.energy(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"`x` must have shape \[B, T, 4\]; received \[2, 1, 5\]"):
        model.log_prob(np.zeros((2, 5)))
    for counts in ({"num_sequences": 0}, {"num_sequences": 2, "num_steps": 0}, {"num_sequences": 2, "num_sweeps": 0}):
        with pytest.raises(ValueError, match=f"`{list(counts)[-1]}` must be a whole number of at least 1; received 0"):
            model.sample(**counts)


@op_by_op
@pytest.mark.parametrize("num_sweeps", [-1, 1.5, [1, 2, 3]])
def test_wrong_numbers_of_sweeps_are_a_clear_error(num_sweeps: Any, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="`num_sweeps` must "):
        make("binary", rng).gibbs(np.zeros((2, 4)), num_sweeps)


# Served ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binary", "counts", "reals"])
def test_litert_infers_hidden_units_with_built_in_operations(name: str, rng: np.random.Generator) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'tfseq[litert]'")
    model = make(name, rng, dtype="float32")
    function, (spec,) = model.endpoints()["hidden"]
    content = litert.to_litert("hidden", function, [tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, spec.name)])
    run = litert.interpreter(content).get_signature_runner("hidden")
    for v in observations(model, 3, rng).astype(np.float32):
        found = run(v=v[None])["probs"]
        np.testing.assert_allclose(found, hidden_means(model, v[None] / scale_of(model)), rtol=1e-5, atol=1e-6)
