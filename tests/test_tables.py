"""Tables of probabilities against optimisers, scipy and TensorFlow Probability; every case states its own blocks by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize, special
from tensorflow_probability import distributions as tfd

from tfseq.layers.tables import ProbabilityTable, check_rows_sum_to_one, closed_classes, stationary

_ = None  # a free entry


class Block(NamedTuple):
    """One distribution over labels: the entries [row, column] of each label, how often it is in a row, what the row leaves."""

    entries: list[list[tuple[int, int]]]
    times: list[int]
    mass: float


class Case(NamedTuple):
    """Arguments of a table of 3 rows and 4 columns, and what they mean."""

    fixed: Any
    tied: Any
    blocks: list[Block]
    constants: dict[tuple[int, int], float]


def plain(row: int, columns: list[int], mass: float = 1.0) -> Block:
    return Block([[(row, c)] for c in columns], [1] * len(columns), mass)


CASES = {
    "free": Case(_, _, [plain(r, [0, 1, 2, 3]) for r in range(3)], {}),
    "fixed": Case(
        [[0.0, _, 0.3, _], [_, 0.0, _, _], [0.5, 0.0, 0.5, 0.0]],
        _,
        [plain(0, [1, 3], 0.7), plain(1, [0, 2, 3])],
        {(0, 0): 0.0, (0, 2): 0.3, (1, 1): 0.0, (2, 0): 0.5, (2, 1): 0.0, (2, 2): 0.5, (2, 3): 0.0},
    ),
    "tied": Case(
        _,
        [[7, 7, 1, 2], [2, 1, 7, 7], [3, 4, 5, 6]],
        [Block([[(0, 2), (1, 1)], [(0, 3), (1, 0)], [(0, 0), (0, 1), (1, 2), (1, 3)]], [1, 1, 2], 1.0), plain(2, [0, 1, 2, 3])],
        {},
    ),
    "fixed and tied": Case(
        [[_, 0.2, _, _], [0.2, _, _, _], [0.0, _, _, 0.0]],
        [[0, 9, 0, 1], [9, 1, 0, 0], [8, 5, 5, 8]],
        [Block([[(0, 0), (0, 2), (1, 2), (1, 3)], [(0, 3), (1, 1)]], [2, 1], 0.8), Block([[(2, 1), (2, 2)]], [2], 1.0)],
        {(0, 1): 0.2, (1, 0): 0.2, (2, 0): 0.0, (2, 3): 0.0},
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def made(case: Case, **options: Any) -> ProbabilityTable:
    keras.utils.set_random_seed(1)
    return ProbabilityTable((3, 4), case.fixed, case.tied, dtype="float64", **options)


def spread(case: Case, values: list[np.ndarray]) -> np.ndarray:
    """Probabilities `[3, 4]` of those of the labels of each block."""
    probs = np.full((3, 4), np.nan)
    for (entries, times, mass), value in zip(case.blocks, values, strict=True):
        for places, often, p in zip(entries, times, value, strict=True):
            for place in places:
                probs[place] = mass * p / often
    for place, p in case.constants.items():
        probs[place] = p
    assert not np.isnan(probs).any()
    return probs


def label_sums(case: Case, counts: np.ndarray) -> list[np.ndarray]:
    return [np.array([sum(counts[p] for p in places) for places in b.entries]) for b in case.blocks]


def concentrations(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers above 1 for labels, the same at all entries of a label: as `[3, 4]`, and for each block."""
    each = [rng.uniform(1.2, 4.0, len(b.entries)) for b in case.blocks]
    whole = np.ones((3, 4))
    for block, values in zip(case.blocks, each, strict=True):
        for places, value in zip(block.entries, values, strict=True):
            for place in places:
                whole[place] = value
    return whole, each


def probs_of(table: ProbabilityTable) -> np.ndarray:
    return np.exp(table.log_probs().numpy())


@every_case
def test_rows_sum_to_one_and_fixed_and_tied_entries_hold(case: Case, rng: np.random.Generator) -> None:
    table = made(case)
    for _i in range(3):
        probs = probs_of(table)
        np.testing.assert_allclose(probs.sum(1), 1.0, rtol=1e-12)
        for place, value in case.constants.items():
            assert probs[place] == pytest.approx(value, abs=1e-15)
        for block in case.blocks:
            for places in block.entries:
                np.testing.assert_allclose([probs[p] for p in places], probs[places[0]], rtol=1e-12)
        table.logits.assign(rng.normal(size=table.logits.shape) * 3.0)


@every_case
def test_number_of_parameters_is_that_of_free_directions(case: Case, rng: np.random.Generator) -> None:
    table = made(case)
    assert table.num_parameters == sum(len(b.entries) - 1 for b in case.blocks)
    start, columns = table.logits.numpy(), []
    for i in range(start.size):
        moved = start.copy()
        moved.flat[i] += 1e-5
        columns.append((np.exp(table.log_probs(tf.constant(moved))) - probs_of(table)).reshape(-1) / 1e-5)
    assert np.linalg.matrix_rank(np.array(columns), tol=1e-4) == table.num_parameters


@every_case
@pytest.mark.parametrize("prior", [False, True])
def test_maximise_finds_what_an_optimiser_finds(case: Case, prior: bool, rng: np.random.Generator) -> None:
    counts = rng.uniform(0.5, 5.0, (3, 4))
    whole, each = concentrations(case, rng)
    sizes = np.cumsum([len(b.entries) for b in case.blocks])[:-1]

    def worth(raw: np.ndarray) -> float:
        labels = [special.softmax(part) for part in np.split(raw, sizes)]
        probs = spread(case, labels)
        found = (counts * np.where(probs > 0.0, np.log(np.maximum(probs, 1e-300)), 0.0)).sum()
        return found + (sum((a - 1.0) @ np.log(p) for a, p in zip(each, labels, strict=True)) if prior else 0.0)

    best = optimize.minimize(lambda raw: -worth(raw), np.zeros(sum(len(b.entries) for b in case.blocks)), tol=1e-12)
    wanted = spread(case, [special.softmax(part) for part in np.split(best.x, sizes)])
    table = made(case, concentration=whole)
    table.maximise(tf.constant(counts), prior)
    np.testing.assert_allclose(probs_of(table), wanted, atol=2e-6)  # the optimiser's differences
    raw = np.log(
        np.concatenate([[probs_of(table)[p[0]] * t for p, t in zip(b.entries, b.times, strict=True)] for b in case.blocks])
    )
    for _i in range(20):
        assert worth(raw + 0.01 * rng.normal(size=raw.shape)) <= worth(raw) + 1e-12


@every_case
def test_expectations_and_divergence_are_those_of_dirichlets(case: Case, rng: np.random.Generator) -> None:
    counts = rng.uniform(0.0, 5.0, (3, 4))
    whole, each = concentrations(case, rng)
    table = made(case, concentration=whole)
    after = [a + n for a, n in zip(each, label_sums(case, counts), strict=True)]
    with np.errstate(divide="ignore"):
        logs = np.log(spread(case, [np.exp(special.digamma(a) - special.digamma(a.sum())) for a in after]))
    np.testing.assert_allclose(table.expected_log_probs(tf.constant(counts)), logs, rtol=1e-9)
    pairs = [(tfd.Dirichlet(a), tfd.Dirichlet(b)) for a, b in zip(after, each, strict=True) if len(a) > 1]
    wanted = sum(p.kl_divergence(q).numpy() for p, q in pairs)
    assert float(table.divergence(tf.constant(counts))) == pytest.approx(wanted, rel=1e-9)
    assert float(table.divergence(tf.zeros((3, 4)))) == pytest.approx(0.0, abs=1e-12)
    table.use_mean(tf.constant(counts))
    np.testing.assert_allclose(probs_of(table), spread(case, [a / a.sum() for a in after]), rtol=1e-9)


@every_case
def test_log_prior_is_the_density_of_dirichlets(case: Case, rng: np.random.Generator) -> None:
    whole, each = concentrations(case, rng)
    table = made(case, concentration=whole)
    probs, wanted = probs_of(table), 0.0
    for block, a in zip(case.blocks, each, strict=True):
        theta = np.array([probs[p[0]] * t / block.mass for p, t in zip(block.entries, block.times, strict=True)])
        wanted += tfd.Dirichlet(a).log_prob(theta / theta.sum()).numpy() if len(a) > 1 else 0.0
    assert float(table.log_prior()) == pytest.approx(wanted, rel=1e-9)


@every_case
def test_gradients_are_finite_differences(case: Case, rng: np.random.Generator) -> None:
    table = made(case, concentration=concentrations(case, rng)[0])
    weights, start = tf.constant(rng.uniform(size=(3, 4))), table.logits.numpy()

    def value(logits: tf.Tensor) -> tf.Tensor:  # as a forward pass uses them: -inf enters a log-sum-exp
        mixed = tf.reduce_logsumexp(table.log_probs(logits) + tf.math.log(weights), 0)
        return tf.reduce_sum(tf.where(tf.math.is_finite(mixed), mixed, 0.0)) + table.log_prior(logits)

    with tf.GradientTape() as tape:
        total = value(tf.convert_to_tensor(table.logits))
    got = tape.gradient(total, table.logits).numpy()
    wanted = optimize.approx_fprime(start.reshape(-1), lambda a: float(value(tf.constant(a.reshape(start.shape)))), 1e-6)
    np.testing.assert_allclose(got.reshape(-1), wanted, atol=1e-4)
    assert np.abs(wanted).max() > 0.01


@every_case
def test_probabilities_can_be_given(case: Case, rng: np.random.Generator) -> None:
    probs = spread(case, [rng.dirichlet(np.ones(len(b.entries))) for b in case.blocks])
    np.testing.assert_allclose(probs_of(made(case, start=probs)), probs, rtol=1e-9)
    table = made(case)
    table.assign(probs)
    np.testing.assert_allclose(probs_of(table), probs, rtol=1e-9)


def test_rows_without_counts_keep_what_they_have(rng: np.random.Generator) -> None:
    table, counts = made(CASES["free"]), rng.uniform(size=(3, 4))
    counts[1], before = 0.0, probs_of(table)
    table.maximise(tf.constant(counts))
    np.testing.assert_allclose(probs_of(table)[1], before[1], rtol=1e-12)
    np.testing.assert_allclose(probs_of(table)[0], counts[0] / counts[0].sum(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mode_on_the_boundary_is_zero_and_its_gradient_finite(dtype: str) -> None:
    table = made(CASES["free"], concentration=0.5)
    table.maximise(tf.constant([[3.5, 0.0, 0.0, 1.5]] * 3, dtype), prior=True)
    np.testing.assert_allclose(probs_of(table), [[0.75, 0.0, 0.0, 0.25]] * 3, atol=1e-12)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.exp(table.log_probs())[:, 0]) + table.log_prior()
    assert np.isfinite(tape.gradient(total, table.logits)).all() and np.isfinite(total)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4)])
def test_stationary_is_the_eigenvector(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    matrices = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    got = np.exp(stationary(tf.constant(np.log(matrices))).numpy()).reshape(-1, shape[-1])
    for row, matrix in zip(got, matrices.reshape(-1, *shape[-2:]), strict=True):
        values, vectors = np.linalg.eig(matrix.T)
        vector = vectors[:, np.argmax(values.real)].real
        np.testing.assert_allclose(row, vector / vector.sum(), rtol=1e-9)


def test_the_stationary_distribution_of_a_cycle_is_even() -> None:
    with np.errstate(divide="ignore"):
        log_cycle = np.log(np.roll(np.eye(4), 1, 1))
    np.testing.assert_allclose(stationary(tf.constant(log_cycle)), np.log(np.full(4, 0.25)), rtol=1e-12)


@pytest.mark.parametrize(("may", "wanted"), [
    ([[1, 1], [1, 1]], [[0, 1]]),
    ([[1, 0], [0, 1]], [[0], [1]]),
    ([[1, 1], [0, 1]], [[1]]),
    ([[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]], [[0, 1], [3]]),
    ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], [[0, 1, 2]]),
])  # fmt: skip
def test_closed_classes_are_what_a_chain_does_not_leave(may: list, wanted: list) -> None:
    assert closed_classes(np.array(may, bool)) == wanted


@pytest.mark.parametrize(("options", "message"), [
    ({"fixed": [[_, _]]}, r"`fixed_table` must have shape \[2, 2\]; received \[1, 2\]"),
    ({"fixed": [[_, _], [_]]}, r"`fixed_table` must have shape \[2, 2\]"),
    ({"fixed": [0.5, 0.5]}, r"`fixed_table` must have shape \[2, 2\]"),
    ({"tied": [[0, 1, 2]] * 2}, r"`tied_table` must have shape \[2, 2\]; received \[2, 3\]"),
    ({"tied": [[0, _], [1, 2]]}, r"`tied_table` must hold a number everywhere"),
    ({"start": [[0.5, 0.5]]}, r"`start_table` must have shape \[2, 2\]"),
    ({"concentration": [1.0, 1.0, 1.0]}, r"`table_concentration` must be a number or have shape \[2, 2\]; received \[3\]"),
    ({"concentration": 0.0}, "`table_concentration` must be above 0; received 0"),
    ({"concentration": [[1.0, 1.0], [1.0, -2.0]]}, "`table_concentration` must be above 0; received -2"),
    ({"concentration": np.nan}, "`table_concentration` must be above 0; received nan"),
    ({"fixed": [[_, _], [0.7, 0.7]]}, r"row 1 is \[0.7, 0.7\]"),
    ({"fixed": [[0.7, 0.2], [_, _]]}, r"`fixed_table` .* sum to 1 where none is free; row 0 is \[0.7, 0.2\]"),
    ({"fixed": [[0.9, _], [-0.1, _]]}, r"must be probabilities .* row 1 is \[-0.1, nan\]"),
    ({"fixed": [[0.9, _], [1.2, _]]}, r"leave room for the free ones.* row 1 is"),
    ({"fixed": [[_, _], [1.0, _]]}, "Row 1 of `fixed_table` leaves nothing"),
    ({"tied": [[0, 1], [1, 2]]}, "`tied_table` .* row 1 shares 1 with a row that differs"),
    ({"tied": [[0, 1], [1, 1]]}, "`tied_table` .* row 1 shares 1"),
    ({"tied": [[0, 1], [0, 1]], "fixed": [[_, 0.5], [_, 0.4]]}, "the same fixed sum; row 1 shares 0"),
])  # fmt: skip
def test_what_is_no_table_is_an_error_that_names_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbabilityTable((2, 2), **options)


@pytest.mark.parametrize(("probs", "message"), [
    ([[0.5, 0.5], [0.5, 0.6]], r"Rows of `p` must sum to 1; row 1 of shape \[2, 2\] sums to 1.1"),
    ([[1.5, -0.5]], r"`p` must hold probabilities; received -0.5 at \(0, 1\). Did you pass logarithms"),
    ([0.5, np.nan], r"`p` must hold probabilities; received nan at \(1,\)"),
])  # fmt: skip
def test_rows_that_are_no_probabilities_are_named(probs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rows_sum_to_one("p", np.array(probs))


def test_rows_of_probabilities_pass() -> None:
    check_rows_sum_to_one("p", np.array([[[0.25, 0.75], [1.0, 0.0]]]))
