"""Unit types of Boltzmann machines against enumeration and quadrature: normalisers, means, samples, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import scipy.special
import tensorflow as tf
from scipy import stats

from tfseq.ops import random
from tfseq.ops.units import Units, make_units

DISCRETE = [("bernoulli", 3, 1), ("binomial", 2, 3), ("binomial", 1, 1), ("categorical", 6, 3), ("categorical", 2, 2)]
WITH_STATES = [*DISCRETE, ("gaussian", 2, 1)]
EVERY = [*WITH_STATES, ("relu", 2, 1)]
# Tests of samples have one fixed seed each: a right sampler falls below this p-value for one seed in ten thousand.
P_VALUE = 1e-4


def units_of(layer: tuple[str, int, int]) -> Units:
    return make_units("hidden", *layer)


def draw(units: Units, a: np.ndarray, num: int, seed: int = 0, time: int = 3, salt: int = 5) -> np.ndarray:
    """`num` independent states of units with inputs a `[n]`."""
    seeds = random.row_seeds(tf.constant([seed, 1]), tf.range(num))
    return units.sample(tf.tile(tf.constant(a)[None], [num, 1]), seeds, time, salt).numpy()


# The exponential family --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", WITH_STATES, ids=str)
def test_the_log_normaliser_is_that_of_the_sum_over_all_states(layer: tuple, rng: np.random.Generator) -> None:
    units, a = units_of(layer), 2.0 * rng.normal(size=(7, layer[1]))
    states, log_base, log_volume = reference.unit_states(*layer)
    wanted = scipy.special.logsumexp(a @ states.T + log_base, -1) + log_volume
    np.testing.assert_allclose(tf.reduce_sum(units.log_normaliser(tf.constant(a)), -1), wanted, rtol=1e-12)
    # lgamma of integers is right to the last digits
    np.testing.assert_allclose(units.log_base(tf.constant(states)), log_base, atol=1e-12)
    weights = np.exp(a @ states.T + log_base + log_volume - wanted[:, None])
    np.testing.assert_allclose(units.mean(tf.constant(a)), weights @ states, atol=1e-12)


def test_the_log_normaliser_of_rectified_units_is_the_dilogarithm() -> None:
    a = np.linspace(-45.0, 60.0, 211)[:, None]
    found = units_of(("relu", 1, 1)).log_normaliser(tf.constant(a)).numpy()
    # the series of the code is said to have 13 digits; the reference, two series joined at -5, has as many
    np.testing.assert_allclose(found, reference.softplus_integral(a), rtol=1e-12)


def test_the_log_normaliser_of_rectified_units_stands_for_infinitely_many_binary_ones() -> None:
    a = np.linspace(-8.0, 12.0, 81)
    replicas = np.arange(1, 120) - 0.5  # those after the 120th add less than e^-107
    wanted = reference.softplus(a[:, None] - replicas).sum(-1)
    found = units_of(("relu", 1, 1)).log_normaliser(tf.constant(a[:, None])).numpy()[:, 0]
    # Euler and Maclaurin: an integral less its midpoint sum is f'(a) / 24 - 7 f'''(a) / 5760 + ..., f' the sigmoid
    p = reference.sigmoid(a)
    third = p * (1.0 - p) * (1.0 - 2.0 * p)
    # the next term is 31 f^(5) / 967680, and the fifth derivative of softplus stays below 0.13
    np.testing.assert_allclose(found - wanted, p / 24.0 - 7.0 * third / 5760.0, atol=5e-6)


@pytest.mark.parametrize("layer", EVERY, ids=str)
def test_the_mean_is_the_derivative_of_the_log_normaliser(layer: tuple, rng: np.random.Generator) -> None:
    units, a = units_of(layer), tf.constant(3.0 * rng.normal(size=(9, layer[1])))
    with tf.GradientTape() as tape:
        tape.watch(a)
        total = tf.reduce_sum(units.log_normaliser(a))
    np.testing.assert_allclose(tape.gradient(total, a), units.mean(a), rtol=1e-12, atol=1e-14)
    for i in range(layer[1]):
        step = 1e-5 * np.eye(layer[1])[i]
        above, below = (tf.reduce_sum(units.log_normaliser(a + sign * step), -1) for sign in (1.0, -1.0))
        # values of order 10 in float64 over 2e-5: 1e-10; the third derivative times 1e-10 / 6
        np.testing.assert_allclose((above - below) / 2e-5, units.mean(a)[:, i], atol=1e-9)


@pytest.mark.parametrize("layer", EVERY, ids=str)
def test_float32_neither_overflows_nor_loses_the_small(layer: tuple) -> None:
    units = units_of(layer)
    a = np.array([-1e4, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4])[:, None] * np.eye(layer[1])[0]
    single, double = tf.constant(a, tf.float32), tf.constant(a)
    # a float32 unit in the last place is 1.2e-7; exp(-90) is below its normal numbers
    np.testing.assert_allclose(units.mean(single), units.mean(double), rtol=2e-6, atol=1e-37)
    # a group's log-normaliser is a sum beside its largest input; that of a single unit is small on its own
    small = 2e-7 if layer[0] == "categorical" else 1e-37
    np.testing.assert_allclose(units.log_normaliser(single), units.log_normaliser(double), rtol=2e-6, atol=small)
    seeds = random.row_seeds(tf.constant([0, 0]), tf.range(len(a)))
    sampled = units.sample(single, seeds, 0, 0).numpy()
    assert sampled.dtype == np.float32 and np.isfinite(sampled).all()
    assert np.asarray(units.supports(sampled)).all()
    if layer[0] != "gaussian":
        np.testing.assert_allclose(sampled[[0, -1], 0], units.mean(single)[:: len(a) - 1, 0], rtol=1e-3)  # they are certain


@pytest.mark.parametrize("jit_compile", [False, True])
def test_float32_values_and_slopes_are_right_to_their_last_digits(jit_compile: bool) -> None:
    a = np.concatenate([np.linspace(-80.0, 80.0, 2001), [0.0, -1e-6, 1e-6]])

    @tf.function(autograph=False, jit_compile=jit_compile)
    def run(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
        found = []
        for layer in (("bernoulli", 1, 1), ("relu", 1, 1)):
            with tf.GradientTape() as tape:
                tape.watch(a)
                value = units_of(layer).log_normaliser(a)
            found += [value, tape.gradient(value, a)]
        return tuple(found)

    a = a.astype(np.float32).astype(float)
    found = [f.numpy()[:, 0] for f in run(tf.constant(a[:, None], tf.float32))]
    softplus = reference.softplus(a)
    wanted = [softplus, np.exp(-reference.softplus(-a)), reference.softplus_integral(a), softplus]
    for i, (value, exact) in enumerate(zip(found, wanted, strict=True)):
        # a few float32 units of 6e-8 and, of the exponential at -80, 80 of them; of the first slope two halves cancel in XLA
        np.testing.assert_allclose(value, exact, rtol=5e-6, atol=6e-8 if i == 1 else 1e-37)
        inner = np.abs(a) < 5.0
        np.testing.assert_allclose(value[inner], exact[inner], rtol=1e-6, atol=6e-8 if i == 1 else 0.0)


# Samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", DISCRETE, ids=str)
def test_samples_have_the_probabilities_of_their_joint_states(layer: tuple, dtype: str, rng: np.random.Generator) -> None:
    units, a, num = units_of(layer), rng.normal(size=layer[1]), 20_000
    states, log_base, _ = reference.unit_states(*layer)
    prob = scipy.special.softmax(states @ a + log_base)
    sampled = draw(units, a.astype(dtype), num)
    assert sampled.dtype == dtype
    assert reference.chi_square(reference.places(sampled, states), prob) > P_VALUE
    mean = prob @ states
    error = np.sqrt((prob @ states**2 - mean**2) / num)
    assert (np.abs(sampled.mean(0) - mean) < 5.0 * error).all()  # five standard errors
    # two times are independent: the joint states of both have the product of the probabilities
    other = reference.places(draw(units, a.astype(dtype), num, time=4), states)
    both = reference.places(sampled, states) * len(states) + other
    assert reference.chi_square(both, np.outer(prob, prob)) > P_VALUE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gaussian_samples_are_independent_and_of_variance_1(dtype: str) -> None:
    a = np.array([-1.5, 40.0])
    z = draw(units_of(("gaussian", 2, 1)), a.astype(dtype), 20_000) - a
    cells = np.floor(8.0 * stats.norm.cdf(z)).astype(int)  # eighths of the probability of each column
    assert reference.chi_square(8 * cells[:, 0] + cells[:, 1], np.ones(64)) > P_VALUE
    assert stats.kstest(z.ravel(), "norm").pvalue > P_VALUE


@pytest.mark.parametrize("a", [-0.8, 0.0, 0.7, 6.0])
def test_rectified_samples_are_rectified_normal_numbers(a: float) -> None:
    sampled = draw(units_of(("relu", 2, 1)), np.array([a, a], np.float32), 20_000).astype(np.float64)
    stddev = np.sqrt(reference.sigmoid(a))
    at_zero = stats.norm.cdf(-a / stddev)
    # the lowest cell is 0 itself, the others tenths of what is above it
    edges = np.where(sampled > 0.0, (stats.norm.cdf((sampled - a) / stddev) - at_zero) / (1.0 - at_zero), -1.0)
    cells = np.where(sampled > 0.0, 1 + np.clip(np.floor(10.0 * edges), 0, 9), 0).astype(int)
    prob = np.array([at_zero, *[(1.0 - at_zero) / 10.0] * 10])
    assert reference.chi_square(11 * cells[:, 0] + cells[:, 1], np.outer(prob, prob)) > P_VALUE


@pytest.mark.parametrize("layer", EVERY, ids=str)
def test_a_row_depends_on_its_seed_its_time_and_its_salt_alone(layer: tuple, rng: np.random.Generator) -> None:
    units, a = units_of(layer), tf.constant(rng.normal(size=(64, layer[1])), tf.float32)
    seeds = random.row_seeds(tf.constant([4, 2]), tf.range(64))

    def sample(rows: list[int] | slice, time: int = 2, salt: int = 7) -> np.ndarray:
        return units.sample(tf.constant(a.numpy()[rows]), tf.constant(seeds.numpy()[rows]), time, salt).numpy()

    whole = sample(slice(None))
    # one float32 unit: the ends of an array may take another kernel of the cosine and of the sigmoid
    close = {"rtol": 3e-7, "atol": 3e-7}
    np.testing.assert_array_equal(sample(slice(None)), whole)
    for rows in ([5], [63, 0, 7], list(range(40))):
        np.testing.assert_allclose(sample(rows), whole[rows], **close)
    assert (sample(slice(None), time=3) != whole).any()
    assert (sample(slice(None), salt=8) != whole).any()
    changed = a.numpy()
    changed[0] += 30.0  # inputs of one row change that row at most
    again = units.sample(tf.constant(changed), seeds, 2, 7).numpy()
    np.testing.assert_allclose(again[1:], whole[1:], **close)


# Ranges ------------------------------------------------------------------------------------------------------------


def means_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Means in the range in which `natural` inverts `mean`, `[20, n]`."""
    if kind == "categorical":
        p = rng.dirichlet(np.ones(3), size=(20, 2))
        return (0.985 * p + 0.005).reshape(20, 6)
    low, high = {"bernoulli": (0.005, 0.995), "binomial": (0.015, 2.985), "gaussian": (-9.0, 9.0), "relu": (0.01, 60.0)}[kind]
    return np.linspace(low, high, 40).reshape(20, 2)


@pytest.mark.parametrize("kind", ["bernoulli", "binomial", "categorical", "gaussian", "relu"])
def test_natural_parameters_give_the_mean_back(kind: str, rng: np.random.Generator) -> None:
    means = means_of(kind, rng)
    units = make_units("visible", kind, means.shape[1], {"binomial": 3, "categorical": 3}.get(kind, 1))
    found = np.stack([units.natural(mean) for mean in means])
    np.testing.assert_allclose(units.mean(tf.constant(found)), means, rtol=1e-10)


@pytest.mark.parametrize(("kind", "count", "extreme"), [
    ("bernoulli", 1, [0.0, 1.0]), ("binomial", 4, [0.0, 4.0]), ("categorical", 2, [0.0, 1.0]), ("relu", 1, [0.0, 1e4]),
])  # fmt: skip
def test_natural_parameters_of_extreme_means_are_finite(kind: str, count: int, extreme: list[float]) -> None:
    units = make_units("visible", kind, 2, count)
    natural = units.natural(np.array(extreme))
    assert np.isfinite(natural).all() and natural[0] < natural[1]
    found = units.mean(tf.constant(natural[None])).numpy()[0]
    # what was never seen stays possible, with at most a hundredth of the range
    np.testing.assert_allclose(found, extreme, atol=0.01 * max(count, 1) + 1e-6)
    assert found[0] > 0.0


@pytest.mark.parametrize(("layer", "values", "wanted"), [
    (("bernoulli", 4, 1), [0.0, 1.0, 0.5, -0.1], [True, True, True, False]),
    (("bernoulli", 3, 1), [1.001, np.nan, 255.0], [False, False, False]),
    (("binomial", 4, 3), [0.0, 3.0, 3.5, -1.0], [True, True, False, False]),
    (("categorical", 6, 3), [0.0, 1.0, 0.0, 0.2, 0.3, 0.5], [True] * 6),
    (("categorical", 6, 3), [1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [False] * 3 + [True] * 3),
    (("categorical", 6, 3), [0.0, 0.0, 0.0, 0.7, -0.2, 0.5], [False] * 3 + [True, False, True]),
    (("gaussian", 3, 1), [-1e30, 0.0, np.nan], [True, True, False]),
    (("relu", 4, 1), [0.0, 7.5, -1e-3, np.nan], [True, True, False, False]),
])  # fmt: skip
def test_supports_says_which_values_are_in_the_range(layer: tuple, values: list[float], wanted: list[bool]) -> None:
    units = units_of(layer)
    x = np.broadcast_to(np.array(values, np.float32), (2, 3, layer[1]))  # steps of sequences, and as rows
    for found in (units.supports(x), units.supports(tf.constant(x)), units.supports(x[0])):
        found = np.asarray(found)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, np.broadcast_to(wanted, (*found.shape[:-1], layer[1])))


@pytest.mark.parametrize("layer", DISCRETE, ids=str)
def test_states_enumerates_each_joint_state_once(layer: tuple) -> None:
    units, wanted = units_of(layer), reference.unit_states(*layer)[0]
    assert units.num_values == len(wanted)
    found = units.states(tf.range(units.num_values, dtype=tf.int64), tf.float64)
    assert found.dtype == tf.float64
    assert sorted(reference.places(found, wanted)) == list(range(len(wanted)))


def test_units_that_are_not_discrete_have_no_number_of_states() -> None:
    assert units_of(("gaussian", 2, 1)).num_values is None
    assert units_of(("relu", 2, 1)).num_values is None
    assert [units_of(layer).normalised for layer in EVERY] == [True] * len(WITH_STATES) + [False]


@pytest.mark.parametrize(("arguments", "message"), [
    (("bernouli", 3, 1), "`hidden` must be one of .*received 'bernouli'. Did you mean 'bernoulli'"),
    (("binomial", 3, 0), "`hidden_count` must be a whole number of at least 1; received 0"),
    (("binomial", 3, 2.0), "`hidden_count` must be a whole number of at least 1; received 2.0"),
    (("binomial", 3, True), "`hidden_count` must be a whole number of at least 1; received True"),
    (("categorical", 3, 1), "`hidden_count` must be the number of categories, at least 2.*received 1"),
    (("categorical", 6, 4), "`hidden_count` must .* divide the 6 columns of hidden='categorical'; received 4"),
    (("bernoulli", 3, 2), "`hidden_count` is for binomial and categorical units; received 2 with 'bernoulli'"),
    (("gaussian", 3, 2), "`hidden_count` is for binomial and categorical units; received 2 with 'gaussian'"),
    (("relu", 3, 5), "`hidden_count` is for binomial and categorical units; received 5 with 'relu'"),
])  # fmt: skip
def test_wrong_units_are_a_clear_error(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_units("hidden", *arguments)
