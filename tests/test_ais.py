"""log Z of Boltzmann machines against enumeration: exact, and annealed in both directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import scipy.special
import tensorflow as tf
from reference import Boltzmann

from tfseq.ops import ais, random
from tfseq.ops.gibbs import Coloured, Layered, Machine
from tfseq.ops.units import make_units

LAYERS = {
    "binary": [("bernoulli", 4, 1), ("bernoulli", 3, 1)],
    "mixed": [("binomial", 2, 2), ("categorical", 6, 3)],
    "gaussian": [("gaussian", 2, 1), ("bernoulli", 3, 1)],
    "three": [("bernoulli", 2, 1), ("categorical", 3, 3), ("binomial", 1, 3)],
    "four": [("gaussian", 1, 1), ("bernoulli", 2, 1), ("binomial", 1, 2), ("bernoulli", 2, 1)],
}
SIZES = (2, 1, 2)  # of the colours
EVERY = [*LAYERS, "coloured"]


def as_machine(wanted: Boltzmann, start: list[np.ndarray], dtype: str = "float64") -> Layered:
    units = tuple(make_units("layer", *layer) for layer in wanted.layers)
    return Layered(units, *(tuple(tf.constant(a, dtype) for a in part) for part in (wanted.weights, wanted.biases, start)))


def make(name: str, rng: np.random.Generator) -> tuple[float, np.ndarray, Machine]:
    """(log Z, 400 exact samples of the odd units, the machine), float64."""
    if name == "coloured":
        num, colour = sum(SIZES), np.repeat(np.arange(3), SIZES)
        weights = np.triu(rng.normal(size=(num, num))) * (colour[:, None] != colour)
        weights, biases, start = weights + weights.T, rng.normal(size=num), 0.5 * rng.normal(size=num)
        states, log_prob = reference.graph_states(weights, biases)
        drawn = states[rng.choice(len(states), 400, p=scipy.special.softmax(log_prob))]
        machine = Coloured(SIZES, *map(tf.constant, (weights, biases, start)))
        return scipy.special.logsumexp(log_prob), drawn[:, SIZES[0] :], machine
    wanted = Boltzmann.random(LAYERS[name], rng)
    start = [0.5 * rng.normal(size=b.shape) for b in wanted.biases]
    return wanted.log_z, np.concatenate(wanted.sample(400, rng)[1::2], 1), as_machine(wanted, start)


def rows(num: int, seed: int = 0) -> tf.Tensor:
    return random.row_seeds(tf.constant([seed, 5]), tf.range(num))


# By enumeration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5, 7, 2**12])
@pytest.mark.parametrize("name", EVERY)
def test_exact_log_z_is_that_of_all_joint_states(
    name: str, chunk: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ais, "_CHUNK", chunk)  # 8 to 12 states: chunks that fit, that do not, and one larger than all
    log_z, _, machine = make(name, rng)
    found = ais.exact_log_z(machine)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, log_z, rtol=1e-12)
    if name == "binary":
        np.testing.assert_allclose(ais.exact_log_z(machine.flipped()), log_z, rtol=1e-12)


@pytest.mark.parametrize("chunk", [5, 2**12])
@pytest.mark.parametrize("name", ["mixed", "three"])
def test_the_gradient_of_exact_log_z_is_the_expected_statistics(
    name: str, chunk: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ais, "_CHUNK", chunk)
    wanted = Boltzmann.random(LAYERS[name], rng)
    machine = as_machine(wanted, [np.zeros_like(b) for b in wanted.biases])

    @tf.function(autograph=False)
    def gradient() -> list[tf.Tensor]:
        parameters = [*machine.weights, *machine.biases]
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            log_z = ais.exact_log_z(machine)
        return tape.gradient(log_z, parameters)

    num = len(wanted.layers)
    statistics = [wanted.pair(i) for i in range(num - 1)] + [wanted.mean(i) for i in range(num)]
    for found, mean in zip(gradient(), statistics, strict=True):
        np.testing.assert_allclose(found, mean, atol=1e-12)


def test_a_deep_machine_is_a_restricted_one_on_its_even_and_odd_layers(rng: np.random.Generator) -> None:
    """A deep Boltzmann machine v, h1, h2 is an RBM whose visible side is [v, h2] and whose hidden side is h1."""
    deep = Boltzmann.random([("bernoulli", 3, 1), ("bernoulli", 2, 1), ("bernoulli", 2, 1)], rng)
    stacked = Boltzmann(
        (("bernoulli", 5, 1), ("bernoulli", 2, 1)),
        (np.concatenate([deep.weights[0], deep.weights[1].T]),),
        (np.concatenate([deep.biases[0], deep.biases[2]]), deep.biases[1]),
    )
    machines = [as_machine(a, [np.zeros_like(b) for b in a.biases]) for a in (deep, stacked)]
    exact = [float(ais.exact_log_z(machine)) for machine in machines]
    np.testing.assert_allclose(exact, deep.log_z, rtol=1e-12)
    np.testing.assert_allclose(ais.exact_log_z(machines[1].flipped()), deep.log_z, rtol=1e-12)
    odd = tuple(tf.constant(a) for a in deep.states[1:2])
    np.testing.assert_allclose(machines[0].odd_log_prob(odd), machines[1].odd_log_prob(odd), rtol=1e-12)


@pytest.mark.parametrize("num", [21, 1500])
def test_too_many_states_are_a_clear_error(num: int) -> None:
    layers = [("bernoulli", 2, 1), ("bernoulli", num, 1)]
    units, biases = tuple(make_units("layer", *layer) for layer in layers), (tf.zeros(2), tf.zeros(num))
    machine = Layered(units, (tf.zeros([2, num]),), biases, biases)
    with pytest.raises(ValueError, match="log Z is enumerated for at most 1048576 joint states of one side"):
        ais.exact_log_z(machine)
    with pytest.raises(ValueError, match="at most 3 joint states of one side; there are 4"):
        ais.exact_log_z(machine.flipped(), max_states=3)


def test_gaussian_odd_units_cannot_be_enumerated(rng: np.random.Generator) -> None:
    machine = make("gaussian", rng)[-1]
    with pytest.raises(ValueError, match="log Z is enumerated for at most .* there are inf"):
        ais.exact_log_z(machine.flipped())  # type: ignore[union-attr]


# By annealing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binary", "mixed", "gaussian", "four"])
def test_without_interactions_the_estimate_is_exact_and_every_chain_says_the_same(name: str, rng: np.random.Generator) -> None:
    wanted = Boltzmann.random(LAYERS[name], rng)
    wanted = Boltzmann(wanted.layers, tuple(0.0 * w for w in wanted.weights), wanted.biases)
    # odd units, whose states are what a chain is, keep their biases; those that are summed out move
    start = [b if i % 2 else rng.normal(size=b.shape) for i, b in enumerate(wanted.biases)]
    machine, betas = as_machine(wanted, start), tf.constant(ais.temperatures(12))
    weights, _ = ais.annealed_weights(machine, machine.first(rows(20)), betas, rows(20))
    assert np.ptp(weights) == 0.0
    found = float(machine.start_log_z()) + np.array(ais.log_mean(weights)[:3])
    np.testing.assert_allclose(found, wanted.log_z, rtol=1e-12)
    back, _ = ais.annealed_weights(machine, machine.first(rows(20)), betas[::-1], rows(20))
    np.testing.assert_allclose(back, -weights, rtol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_forward_and_reverse_annealing_are_within_four_standard_errors(name: str, rng: np.random.Generator) -> None:
    log_z, samples, machine = make(name, rng)
    betas, start = tf.constant(ais.temperatures(20)), float(machine.start_log_z())
    first = machine.first(rows(400))
    samples = tf.split(tf.constant(samples), [a.shape[1] for a in first], axis=1)
    forward, states = ais.annealed_weights(machine, first, betas, rows(400))
    reverse, _ = ais.annealed_weights(machine, tuple(samples), betas[::-1], rows(400, 1))
    # the mean weight is Z / Z_0 forward, and Z_0 / Z in reverse, whatever the number of temperatures
    for log_weights, log_mean in ((forward.numpy(), log_z - start), (reverse.numpy(), start - log_z)):
        w = np.exp(log_weights - log_mean)
        assert w.std() > 0.0
        assert abs(w.mean() - 1.0) < 4.0 * w.std(ddof=1) / 20.0  # 20, the root of the number of chains
        value, low, high, _ = ais.log_mean(log_weights)
        np.testing.assert_allclose(value - log_mean, np.log(w.mean()), atol=1e-10)
        assert low < value < high
    # the chains end in states of the right kind
    for found, wanted in zip(states, first, strict=True):
        assert found.shape == wanted.shape


@pytest.mark.parametrize("name", ["mixed", "coloured"])
def test_few_temperatures_err_downwards_forward_and_upwards_in_reverse(name: str, rng: np.random.Generator) -> None:
    log_z, samples, machine = make(name, rng)
    betas, start = tf.constant([0.0, 0.5, 1.0], tf.float64), float(machine.start_log_z())
    first = machine.first(rows(400))
    samples = tf.split(tf.constant(samples), [a.shape[1] for a in first], axis=1)
    low = start + ais.annealed_weights(machine, first, betas, rows(400))[0].numpy()
    high = start - ais.annealed_weights(machine, tuple(samples), betas[::-1], rows(400, 1))[0].numpy()
    # Jensen: the mean of the log-weights is a lower bound in expectation; 400 chains see the gap by many standard errors
    assert low.mean() + 4.0 * low.std() / 20.0 < log_z < high.mean() - 4.0 * high.std() / 20.0


def test_weights_are_summed_in_float64(rng: np.random.Generator) -> None:
    """400 even units move by some 20 each, thousands of nats in 2,000 steps; float32 sums would lose thousandths of one."""
    biases, first = rng.uniform(8.0, 12.0, 400), -rng.uniform(8.0, 12.0, 400)
    wanted = Boltzmann((("bernoulli", 400, 1), ("bernoulli", 1, 1)), (np.zeros((400, 1)),), (biases, np.zeros(1)))
    betas = np.linspace(0.0, 1.0, 2001)
    graph = tf.function(ais.annealed_weights, autograph=False)
    found = []
    for dtype in ("float32", "float64"):
        machine = as_machine(wanted, [first, np.zeros(1)], dtype)
        weights, _ = graph(machine, machine.first(rows(1)), tf.constant(betas), rows(1))
        assert weights.dtype == tf.float64
        found.append(float(weights[0]))
    along = reference.softplus(first + betas[:, None] * (biases - first))
    exact = (along[-1] - along[0]).sum()
    np.testing.assert_allclose(found[1], exact, rtol=1e-12)
    # a unit's bias and softplus are rounded by 1e-6 at most, in no common direction: 1e-6 times the root of 400, and as much
    # again for the sums of the steps, which are of the size of 1
    np.testing.assert_allclose(found[0], exact, atol=4e-5)
    naive = np.cumsum(np.diff(along, axis=0).sum(1), dtype=np.float32)[-1]
    assert abs(float(naive) - exact) > 1e-3  # so that the test can tell


# What weights say --------------------------------------------------------------------------------------------------


def test_log_mean_is_that_of_numpy(rng: np.random.Generator) -> None:
    log_weights = rng.normal(size=50)
    w = np.exp(log_weights)
    error = 3.0 * w.std(ddof=1) / np.sqrt(50)
    wanted = [np.log(w.mean()), np.log(w.mean() - error), np.log(w.mean() + error), w.sum() ** 2 / (w**2).sum()]
    np.testing.assert_allclose(ais.log_mean(log_weights), wanted, rtol=1e-12)
    # far from where exp is finite; 1e4 leaves 12 digits of what is added
    far = ais.log_mean(log_weights + 1e4)
    np.testing.assert_allclose(far[:3], np.array(wanted[:3]) + 1e4, rtol=1e-12)
    np.testing.assert_allclose(far[3], wanted[3], rtol=1e-9)
    assert ais.log_mean(tf.constant(log_weights)) == ais.log_mean(log_weights)


def test_one_weight_that_has_all_makes_the_lower_end_infinite() -> None:
    value, low, high, ess = ais.log_mean([0.0] * 9 + [100.0])
    assert low == -math.inf and np.isfinite([value, high]).all()
    np.testing.assert_allclose(value, 100.0 - np.log(10.0))
    np.testing.assert_allclose(ess, 1.0)
    assert ais.log_mean([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3.0)
    value, low, high, ess = ais.log_mean([1.5])  # of one weight nobody knows the error
    assert (value, low, high, ess) == (1.5, -math.inf, math.inf, 1.0)


@pytest.mark.parametrize("num", [1, 2, 10, 100, 1000, 14500])
def test_temperatures_go_from_0_to_1_closer_together_near_1(num: int) -> None:
    betas = ais.temperatures(num)
    assert betas.dtype == np.float64 and betas[0] == 0.0 and betas[-1] == 1.0
    assert (np.diff(betas) > 0.0).all()
    assert abs(len(betas) - 1 - num) <= 2  # three pieces, of which each has a step at least
    if num == 14500:  # Salakhutdinov and Murray 2008, section 4.1
        counts = np.histogram(betas[:-1], [0.0, 0.5, 0.9, 1.0])[0]
        np.testing.assert_array_equal(counts, [500, 4000, 10000])
        np.testing.assert_allclose(np.diff(betas)[[0, 600, -1]], [1e-3, 1e-4, 1e-5], rtol=1e-6)
