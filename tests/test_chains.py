"""Chains against the enumeration of all paths, forms against each other, and what must not happen in float32."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import reference
import scipy.special
import tensorflow as tf

from tfseq.ops import chains

FORMS = ("sequential", "blocked", "associative")
SIZES = [(2, 1), (3, 2), (2, 6), (3, 5)]  # states, steps


def normalised(a: np.ndarray) -> np.ndarray:
    return a - scipy.special.logsumexp(a, -1, keepdims=True)


def example(rng: np.random.Generator, num_states: int, num_steps: int, kind: str) -> tuple:
    """(initial, transition, transition of each step, emission, mask): a row for every length and pattern of missing steps."""
    patterns = np.array(list(itertools.product([False, True], repeat=num_steps)))
    lengths = np.repeat(np.arange(num_steps + 1), len(patterns))
    missing = np.tile(patterns, [num_steps + 1, 1])
    emission = np.where(missing[..., None], 0.0, 3.0 * rng.normal(size=(1, num_steps, num_states)))
    mask = np.arange(num_steps) < lengths[:, None]
    initial, shape = rng.normal(size=num_states), (num_states, num_states)
    transition = 2.0 * rng.normal(size=(num_steps - 1, *shape) if kind == "varying" else shape)
    if kind == "zeros":
        transition[0, -1] = -np.inf
    if kind != "scores":  # those of a CRF are no probabilities
        initial, transition = normalised(initial), normalised(transition)
    steps = np.broadcast_to(transition, (num_steps - 1, *shape))
    return initial, transition, steps, np.where(mask[..., None], emission, np.nan), mask


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["plain", "zeros", "varying", "scores"])
@pytest.mark.parametrize(("num_states", "num_steps"), SIZES)
def test_everything_is_what_the_enumeration_of_paths_says(
    form: str, kind: str, num_states: int, num_steps: int, rng: np.random.Generator
) -> None:
    initial, transition, steps, emission, mask = example(rng, num_states, num_steps, kind)
    weights = rng.normal(size=len(mask))

    chain = [*map(tf.constant, (initial, transition, emission)), mask]
    with tf.GradientTape() as tape:
        tape.watch(chain[:3])
        log_prob = chains.log_prob(*chain, form=form)
    gradient = tape.gradient(log_prob, chain[:3], tf.constant(weights))
    gradient, log_prob = [a.numpy() for a in gradient], log_prob.numpy()
    filtered, posterior, path = (
        type(found)(*(a.numpy() for a in found))
        for found in (f(*chain, form=form) for f in (chains.filter, chains.posterior, chains.viterbi))
    )
    alone, pairs = (f(*chain, form=form).numpy() for f in (chains.smooth, chains.two_slice))
    _, smoothed, counts = (a.numpy() for a in chains.smooth_and_count(*chain, form=form))
    clean = np.where(mask[..., None], emission, 0.0)
    wanted_counts, wanted_slopes = np.zeros_like(pairs), np.zeros_like(pairs)
    for length in range(num_steps + 1):
        rows = mask.sum(1) == length
        wanted = reference.chain_by_enumeration(initial, steps, clean[rows], length)
        close = {"atol": 1e-10}
        np.testing.assert_allclose(log_prob[rows], wanted["log_prob"], **close)
        np.testing.assert_allclose(posterior.log_prob[rows], wanted["log_prob"], **close)
        np.testing.assert_allclose(posterior.smoothed[rows][:, :length], wanted["smoothed"], **close)
        np.testing.assert_allclose(smoothed[rows][:, :length], wanted["smoothed"], **close)
        np.testing.assert_allclose(alone[rows][:, :length], wanted["smoothed"], **close)
        assert not np.any(posterior.smoothed[rows][:, length:])
        np.testing.assert_allclose(gradient[2][rows][:, :length], wanted["smoothed"] * weights[rows, None, None], **close)
        if length == 0:
            assert not np.any(log_prob[rows])
            continue
        np.testing.assert_allclose(path.score[rows], wanted["score"], **close)
        np.testing.assert_allclose(filtered.log_prob[rows].sum(1), wanted["log_prob"], **close)
        value = initial[path.states[rows, 0]] + clean[rows, 0, path.states[rows, 0]]
        for t in range(1, length):  # of a tie either path will do, so the path is held to its score
            before, now = path.states[rows, t - 1], path.states[rows, t]
            value = value + steps[t - 1, before, now] + clean[rows, t, now]
        np.testing.assert_allclose(value, wanted["score"], **close)
        assert (path.states[rows][:, length:] == -1).all()
        np.testing.assert_allclose(pairs[rows][:, : length - 1], wanted["two_slice"], **close)
        wanted_counts[rows, : length - 1] = wanted["two_slice"]
        wanted_slopes[rows, : length - 1] = wanted["two_slice"] * weights[rows, None, None, None]
        last = length - 1  # what the filter says of the last step is what the smoother says of a chain that ends there
        every = mask.sum(1) >= length
        cut = reference.chain_by_enumeration(initial, steps, clean[every], length)
        np.testing.assert_allclose(filtered.filtered[every][:, last], cut["smoothed"][:, last], **close)
        for t in range(length):
            without = clean[rows].copy()
            without[:, t] = 0.0
            others = reference.chain_by_enumeration(initial, steps, without, length)["smoothed"][:, t]
            np.testing.assert_allclose(posterior.leave_one_out[rows][:, t], others, **close)
            early = reference.chain_by_enumeration(initial, steps, without, t + 1)["smoothed"][:, t]
            np.testing.assert_allclose(posterior.predicted[rows][:, t], early, **close)
    over = (0,) if kind == "varying" else (0, 1)
    np.testing.assert_allclose(counts, wanted_counts.sum(over), atol=1e-8)
    np.testing.assert_allclose(gradient[1], wanted_slopes.sum(over), atol=1e-8)
    real = mask[:, 0]
    np.testing.assert_allclose(gradient[0], (posterior.smoothed[:, 0] * weights[:, None])[real].sum(0), atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_may_have_its_own_matrices(form: str, rng: np.random.Generator) -> None:
    rows, steps, states = 3, 7, 3
    initial, emission = normalised(rng.normal(size=(rows, states))), rng.normal(size=(rows, steps, states))
    transition = normalised(rng.normal(size=(rows, steps - 1, states, states)))
    constant = transition[:, :1]
    for matrices in (transition, constant):
        together = chains.smooth_and_count(initial, matrices, emission, form=form)
        path = chains.viterbi(initial, matrices, emission, form=form)
        for i in range(rows):
            own = np.broadcast_to(matrices[i], (steps - 1, states, states))
            alone = reference.chain_by_enumeration(initial[i], own, emission[i : i + 1], steps)
            np.testing.assert_allclose(together[0][i], alone["log_prob"][0], rtol=1e-12)
            wanted = alone["two_slice"][0]
            wanted = wanted.sum(0, keepdims=True) if matrices is constant else wanted
            np.testing.assert_allclose(together[2][i], wanted, atol=1e-12)
            np.testing.assert_array_equal(path.states[i], alone["path"][0])


@pytest.mark.parametrize(("dtype", "jit_compile"), [("float32", False), ("float32", True)])
def test_all_forms_agree_compiled_and_not(dtype: str, jit_compile: bool, rng: np.random.Generator) -> None:
    rows, steps, states = 3, 100, 4
    initial = normalised(rng.normal(size=states)).astype(dtype)
    transition = normalised(rng.normal(size=(states, states))).astype(dtype)
    emission = (2.0 * rng.normal(size=(rows, steps, states))).astype(dtype)
    mask = np.arange(steps) < np.array([100, 23, 1])[:, None]
    found = []
    for form in FORMS:

        def run(form: str = form) -> tuple:
            chain = (initial, transition, emission, mask)
            return chains.posterior(*chain, form=form), chains.viterbi(*chain, form=form), chains.two_slice(*chain, form=form)

        found.append(tf.nest.flatten(tf.function(run, autograph=False, jit_compile=jit_compile)()))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 60])
def test_a_graph_of_any_length_is_that_of_each(steps: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "_LONG", 20)  # where "auto" begins to work in blocks
    initial, transition = normalised(rng.normal(size=3)), normalised(rng.normal(size=(3, 3)))
    emission, mask = rng.normal(size=(2, steps, 3)), np.arange(steps) < np.array([steps, steps - 1])[:, None]
    for log_transition in (transition, np.broadcast_to(transition, (steps - 1, 3, 3))):
        wanted = tf.nest.flatten(_several(initial, log_transition, emission, mask, "sequential"))
        for form in _graphs(log_transition.ndim):
            found = _graphs(log_transition.ndim)[form](*map(tf.constant, (initial, log_transition, emission, mask)))
            for a, b in zip(wanted, tf.nest.flatten(found), strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


def _several(initial: tf.Tensor, transition: tf.Tensor, emission: tf.Tensor, mask: tf.Tensor, form: str) -> tuple:
    chain = (initial, transition, emission, mask)
    return tuple(f(*chain, form=form) for f in (chains.log_prob, chains.posterior, chains.viterbi, chains.smooth_and_count))


@functools.cache
def _graphs(rank: int) -> dict:
    """A graph for all lengths; where each step has its matrix also one of blocks, which "auto" does not make of short chains."""
    shapes = [[3], [None] * (rank - 2) + [3, 3], [None, None, 3]]
    signature = [*(tf.TensorSpec(shape, tf.float64) for shape in shapes), tf.TensorSpec([None, None], tf.bool)]
    return {
        form: tf.function(functools.partial(_several, form=form), autograph=False, input_signature=signature)
        for form in ("auto", "blocked")[: rank - 1]
    }


@pytest.mark.parametrize("kind", ["plain", "zeros", "varying"])
def test_the_gradient_is_that_of_finite_differences(kind: str, rng: np.random.Generator) -> None:
    initial, transition, _, emission, mask = example(rng, 3, 4, kind)
    emission = np.where(mask[..., None], emission, 0.0)[[-1, -9, -20]]
    mask = mask[[-1, -9, -20]]

    def total(initial: np.ndarray, transition: np.ndarray, emission: np.ndarray) -> float:
        return float(tf.reduce_sum(chains.log_prob(initial, transition, emission, mask)))

    arguments = [tf.constant(a) for a in (initial, transition, emission)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        value = tf.reduce_sum(chains.log_prob(*arguments, mask))
    for i, slope in enumerate(tape.gradient(value, arguments)):
        for place in np.ndindex(*slope.shape):
            point = [np.array(a) for a in arguments]
            if not np.isfinite(point[i][place]):
                assert slope.numpy()[place] == 0.0
                continue
            point[i][place] += 1e-6
            above = total(*point)
            point[i][place] -= 2e-6
            # central differences of step 1e-6 on values of order 10 in float64: an error of 1e-9
            np.testing.assert_allclose(slope.numpy()[place], (above - total(*point)) / 2e-6, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_impossible_data_has_probability_zero_and_no_nan(form: str) -> None:
    log = np.log([[0.5, 0.5], [1e-300, 1.0]]).astype(np.float32)
    log[1, 0] = -np.inf
    emission = np.zeros((3, 4, 2), np.float32)
    emission[0, 2] = -np.inf  # no state can give this
    emission[1, 1, 0], emission[1, 2, 1] = -np.inf, -np.inf  # state 1, and then state 0, which it cannot reach
    arguments = [tf.constant(a) for a in (np.log([0.5, 0.5]).astype(np.float32), log, emission)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        log_prob = chains.log_prob(*arguments, form=form)
    np.testing.assert_allclose(log_prob, [-np.inf, -np.inf, 0.0], atol=1e-6)
    for slope in tape.gradient(log_prob, arguments):
        assert np.isfinite(slope).all()
    posterior, path = chains.posterior(*arguments, form=form), chains.viterbi(*arguments, form=form)
    for marginals in posterior:
        assert not np.isnan(marginals).any()
    np.testing.assert_array_equal(posterior.smoothed[:2], 0.0)
    np.testing.assert_array_equal(path.score[:2], -np.inf)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_that_lost_all_float32_probability_may_still_win(form: str) -> None:
    """A mixture of two constant states: the first steps speak for one by far, the later ones for the other by farther."""
    transition = np.log(np.eye(2) + 1e-45).astype(np.float32)
    transition[~np.eye(2, dtype=bool)] = -np.inf
    emission = np.zeros((1, 30, 2), np.float32)
    emission[0, :10, 1], emission[0, 10:, 0] = -100.0, -100.0
    posterior = chains.posterior(np.log([0.5, 0.5]).astype(np.float32), transition, emission, form=form)
    np.testing.assert_allclose(posterior.log_prob, [np.log(0.5) - 1000.0], rtol=1e-6)
    np.testing.assert_array_equal(posterior.smoothed[0, :, 1], np.ones(30))
    counts = chains.smooth_and_count(np.log([0.5, 0.5]).astype(np.float32), transition, emission, form=form)[2]
    np.testing.assert_array_equal(counts, [[0.0, 0.0], [0.0, 29.0]])
    np.testing.assert_array_equal(chains.viterbi(np.zeros(2, np.float32), transition, emission, form=form).states, 1)


def test_a_long_chain_neither_overflows_nor_drifts(rng: np.random.Generator) -> None:
    states, steps = 8, 50_000  # `scripts/benchmark.py hmm-long` does a million
    chain = (
        normalised(rng.normal(size=states)),
        normalised(rng.normal(size=(states, states))),
        4.0 * rng.normal(size=(1, steps, states)) - 3.0,
    )
    precise, coarse = (chains.posterior(*(a.astype(t) for a in chain)) for t in (np.float64, np.float32))
    assert abs(float(precise.log_prob[0]) - float(coarse.log_prob[0])) < 1e-3 * steps / 1000
    np.testing.assert_allclose(coarse.smoothed, precise.smoothed, atol=1e-4)
    np.testing.assert_allclose(tf.reduce_sum(coarse.filtered, -1), 1.0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_sampled_paths_have_the_two_slice_marginals_of_the_posterior(form: str, rng: np.random.Generator) -> None:
    states, steps, num = 3, 5, 20_000
    chain = (
        normalised(rng.normal(size=states)),
        normalised(rng.normal(size=(states, states))),
        rng.normal(size=(2, steps, states)),
    )
    mask = np.arange(steps) < np.array([5, 3])[:, None]
    paths = chains.sample(*chain, rng.random((steps, 2, num)), mask, form=form).numpy()
    wanted = chains.two_slice(*chain, mask, form=form).numpy()
    assert (paths[1, :, 3:] == -1).all()
    for row, length in enumerate([5, 3]):
        for t in range(length - 1):
            found = np.histogram2d(paths[row, :, t], paths[row, :, t + 1], np.arange(states + 1) - 0.5)[0] / num
            np.testing.assert_allclose(found, wanted[row, t], atol=5.0 * 0.5 / np.sqrt(num))  # five standard errors


def test_one_number_decides_one_step_of_a_sampled_path_however_it_is_found(rng: np.random.Generator) -> None:
    states, steps = 4, 50
    chain = (
        normalised(rng.normal(size=states)),
        normalised(rng.normal(size=(states, states))),
        rng.normal(size=(2, steps, states)),
    )
    uniform = rng.random((steps, 2, 3))
    first, *others = (chains.sample(*chain, uniform, form=form).numpy() for form in FORMS)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("kind", ["plain", "zeros", "varying", "scores"])
@pytest.mark.parametrize(("num_states", "num_steps"), [(2, 1), (2, 4), (3, 3)])
def test_the_best_paths_are_the_first_of_all_paths(kind: str, num_states: int, num_steps: int, rng: np.random.Generator) -> None:
    initial, transition, steps, emission, mask = example(rng, num_states, num_steps, kind)
    num = 11  # more than there are of the shortest
    paths = chains.n_best(initial, transition, emission, mask, num=num)
    for row, length in enumerate(mask.sum(1)):
        every = np.array(list(itertools.product(range(num_states), repeat=length)), int).reshape(num_states**length, length)
        score = np.zeros(len(every))
        for t in range(length):
            score = score + emission[row, t, every[:, t]]
            score = score + (steps[t - 1, every[:, t - 1], every[:, t]] if t else initial[every[:, 0]])
        best = np.sort(score)[::-1][:num]
        best = best[best > -np.inf]
        np.testing.assert_allclose(paths.score[row, : len(best)], best, atol=1e-10)
        assert (paths.score[row, len(best) :].numpy() == -np.inf).all()
        found = paths.states[row].numpy()
        assert (found[len(best) :] == -1).all() and (found[:, length:] == -1).all()
        # of a tie either path may come first, so each is held to its score, and all to being different
        places = [np.flatnonzero((every == path).all(1))[0] for path in found[: len(best), :length]]
        np.testing.assert_allclose(score[places], best, atol=1e-10)
        assert len(set(places)) == len(places)


def test_the_best_paths_of_rows_with_matrices_of_their_own(rng: np.random.Generator) -> None:
    initial, emission = rng.normal(size=(2, 3)), rng.normal(size=(2, 4, 3))
    transition = rng.normal(size=(2, 3, 3, 3))
    for matrices in (transition, transition[:, :1]):
        together = chains.n_best(initial, matrices, emission, num=4)
        for i in range(2):
            own = matrices[i] if len(matrices[i]) > 1 else matrices[i, 0]
            alone = chains.n_best(initial[i], own, emission[i : i + 1], num=4)
            np.testing.assert_array_equal(together.states[i], alone.states[0])
            np.testing.assert_allclose(together.score[i], alone.score[0], atol=1e-12)


def bounded(transition: np.ndarray, emission: np.ndarray, mask: np.ndarray | None = None) -> bool:
    initial = np.zeros(len(transition), np.float32)
    arguments = initial, transition.astype(np.float32), emission.astype(np.float32), mask
    return bool(chains._is_bounded(chains._scaled(chains._problem(*arguments, "auto")).chain, tf.float64))


def test_which_zeros_leave_every_possible_state_enough_for_float64(rng: np.random.Generator) -> None:
    bio = np.array([[0, 0, -np.inf], [0, 0, 0], [0, 0, 0]])  # O, B, I
    emission = 5.0 * rng.normal(size=(2, 6, 3))
    assert bounded(bio, emission)
    assert not bounded(np.where(np.eye(3), 0.0, -np.inf), emission)  # states that never meet
    assert not bounded(np.where(np.tri(3), 0.0, -np.inf).T, emission)  # from left to right
    assert not bounded(bio, 60.0 * emission)
    known, forbids = emission.copy(), emission.copy()
    known[:, 2, 1:] = -np.inf
    assert bounded(bio, known)
    forbids[:, 2, 1] = -np.inf
    assert not bounded(bio, forbids)
    assert bounded(bio, forbids, np.arange(6) < np.array([[3], [2]]))  # at the last step, and at a padded one
    dead = np.array([[0, 0, -np.inf], [0, 0, -np.inf], [0, 0, -np.inf]])  # no way leads to the last state
    assert bounded(dead, emission) and bounded(dead.T, emission)


@pytest.mark.parametrize("scale", [1.0, 20.0, 60.0, 200.0])
def test_zeros_of_any_pattern_lose_nothing_in_float32(scale: float, rng: np.random.Generator) -> None:
    states, steps, rows = 4, 5, 6
    for _ in range(25):
        transition = np.where(rng.random((states, states)) < 0.3, -np.inf, rng.normal(size=(states, states)))
        initial = np.where(rng.random(states) < 0.3, -np.inf, rng.normal(size=states) * scale)
        emission = scale * rng.normal(size=(rows, steps, states))
        known = rng.random((rows, steps)) < 0.2
        only = rng.integers(states, size=(rows, steps, 1)) == np.arange(states)
        emission = np.where(known[..., None] & ~only, -np.inf, emission)
        emission[:, -1] = np.where(rng.random((rows, states)) < 0.3, -np.inf, emission[:, -1])
        chain = tuple(a.astype(np.float32) for a in (initial, transition, emission))
        every = np.broadcast_to(chain[1].astype(np.float64), (steps - 1, states, states))
        wanted = reference.chain_by_enumeration(chain[0].astype(np.float64), every, chain[2].astype(np.float64), steps)
        # float32 sums of five scores, whose error is relative to their size, and exp of such an error
        error = 1e-6 * steps * max(scale, 10.0)
        np.testing.assert_allclose(chains.log_prob(*chain), wanted["log_prob"], rtol=1e-6, atol=error)
        np.testing.assert_allclose(chains.smooth(*chain), wanted["smoothed"], atol=2.0 * error)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (3, 3), (5, 3)), "`log_emission` must have shape .*Add the batch axis"),
        (((2,), (3, 3), (1, 5, 3)), "`log_initial` must have shape .*K = 3"),
        (((3,), (3, 2), (1, 5, 3)), "`log_transition` must have shape .*K = 3"),
        (((3,), (5, 3, 3), (1, 5, 3)), "`log_transition` must have T - 1 = 4 matrices"),
    ],
)
def test_wrong_shapes_are_a_clear_error(shapes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chains.log_prob(*(np.zeros(shape) for shape in shapes))


def test_an_unknown_form_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="`form` must be one of .*Did you mean 'blocked'"):
        chains.log_prob(np.zeros(2), np.zeros((2, 2)), np.zeros((1, 3, 2)), form="block")  # type: ignore[arg-type]
