"""CTC against the enumeration of all paths, and against TensorFlow's own loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tests import reference
from tfseq.layers import ctc
from tfseq.ops.tracing import without_gradients

K = 2  # symbols; the blank is the class after them
STEPS = np.array([5, 5, 4, 3, 2, 5, 1, 1, 0, 0, 3, 4])
TARGETS = [[0, 1], [0, 0], [1, 0, 0], [0, 0], [1, 1], [], [0], [], [], [1], [0, 1, 0, 1], [1, 1]]
IMPOSSIBLE = [4, 9, 10]  # two steps for a repeated symbol, none for one, three for four


def example(rng: np.random.Generator, dtype: str = "float64") -> tuple[np.ndarray, ...]:
    """(scores with NaN where padded, mask, symbols with garbage where padded, their mask)."""
    mask = np.arange(5) < STEPS[:, None]
    scores = np.where(mask[..., None], 2.0 * rng.normal(size=(*mask.shape, K + 1)), np.nan).astype(dtype)
    lengths = np.array([len(target) for target in TARGETS])
    symbol_mask = np.arange(5) < lengths[:, None]
    symbols = rng.integers(-3, 9, symbol_mask.shape).astype(np.int32)
    symbols[symbol_mask] = np.concatenate([np.array(target, int) for target in TARGETS])
    return scores, mask, symbols, symbol_mask


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Repeats, then blanks, taken out."""
    return [k for k, _ in itertools.groupby(path) if k != K]


def enumerated(scores: np.ndarray, target: list[int]) -> float:
    log_p = scipy.special.log_softmax(scores, -1)
    paths = [path for path in itertools.product(range(K + 1), repeat=len(scores)) if collapsed(path) == target]
    totals = [sum(log_p[t, k] for t, k in enumerate(path)) for path in paths]
    return float(scipy.special.logsumexp(totals)) if totals else -np.inf


def log_prob(scores: np.ndarray, mask: np.ndarray, symbols: np.ndarray, symbol_mask: np.ndarray) -> tf.Tensor:
    return ctc.log_prob(*map(tf.convert_to_tensor, (scores, mask, symbols, symbol_mask)))


def test_the_likelihood_is_that_of_all_paths(rng: np.random.Generator) -> None:
    scores, *rest = example(rng)
    wanted = [enumerated(row[:n].astype(float), target) for row, n, target in zip(scores, STEPS, TARGETS, strict=True)]
    assert np.flatnonzero(np.isneginf(wanted)).tolist() == IMPOSSIBLE

    def infers(*arguments: np.ndarray) -> tf.Tensor:
        with without_gradients():
            return log_prob(*arguments)

    for found in (log_prob(scores, *rest), tf.function(infers, autograph=False)(scores, *rest)):
        np.testing.assert_allclose(found, wanted, rtol=1e-10)  # float64 rounding
    short, mask, symbols, symbol_mask = example(np.random.default_rng(0), "float32")
    np.testing.assert_allclose(log_prob(short, mask, symbols, symbol_mask), wanted, rtol=1e-5)  # float32
    for row, (n, target) in enumerate(zip(STEPS, TARGETS, strict=True)):  # alone, without padding where there are steps
        alone = scores[row : row + 1, : max(n, 1)], mask[row : row + 1, : max(n, 1)]
        width = max(len(target), 1)
        found = log_prob(*alone, np.array([[*target, 0][:width]], np.int32), np.arange(width)[None] < len(target))
        np.testing.assert_allclose(found, wanted[row : row + 1], rtol=1e-10)


def test_all_transcriptions_of_a_sequence_sum_to_one(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(4, K + 1))
    targets = [list(t) for n in range(5) for t in itertools.product(range(K), repeat=n)]
    symbols = np.array([[*t, *[0] * 4][:4] for t in targets], np.int32)
    symbol_mask = np.arange(4) < np.array([len(t) for t in targets])[:, None]
    num = len(targets)
    found = log_prob(np.repeat(scores[None], num, 0), np.ones((num, 4), bool), symbols, symbol_mask)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-12)


def test_likelihood_and_gradient_are_those_of_tensorflow_s_loss(rng: np.random.Generator) -> None:
    scores, mask, symbols, symbol_mask = (
        a[[i for i in range(len(STEPS)) if i not in (4, 8, 9, 10)]] for a in example(rng, "float32")
    )
    scores = np.where(mask[..., None], scores, 0.0).astype(np.float32)
    results = []
    for run in (
        lambda x: -log_prob_of(x),
        lambda x: tf.nn.ctc_loss(
            np.where(symbol_mask, symbols, 0), x, *(a.sum(1).astype(np.int32) for a in (symbol_mask, mask)),
            logits_time_major=False, blank_index=K,
        ),
    ):  # fmt: skip

        def log_prob_of(x: tf.Tensor) -> tf.Tensor:
            return ctc.log_prob(x, tf.constant(mask), tf.constant(symbols), tf.constant(symbol_mask))

        x = tf.constant(scores)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = run(x)
        results.append((loss, tape.gradient(loss, x)))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)  # both in float32


def test_an_impossible_transcription_has_no_gradient_and_spoils_no_other(rng: np.random.Generator) -> None:
    scores, mask, symbols, symbol_mask = example(rng)
    x = tf.constant(scores)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = ctc.log_prob(x, tf.constant(mask), tf.constant(symbols), tf.constant(symbol_mask))
        loss = tf.reduce_sum(found)
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(gradient[mask]).all()
    assert not gradient[IMPOSSIBLE][mask[IMPOSSIBLE]].any()
    step = 1e-6
    for row in (0, 2, 5):
        direction = rng.normal(size=(STEPS[row], K + 1))
        ends = [enumerated(scores[row, : STEPS[row]] + s * step * direction, TARGETS[row]) for s in (1.0, -1.0)]
        # central differences, whose rounding error is about 1e-16 / step
        np.testing.assert_allclose((gradient[row, : STEPS[row]] * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_padded_steps_get_a_gradient_of_zero(rng: np.random.Generator) -> None:
    scores, mask, symbols, symbol_mask = example(rng)
    for garbage in (0.0, np.inf, np.nan):
        x = tf.constant(np.where(mask[..., None], scores, garbage))
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(ctc.log_prob(x, tf.constant(mask), tf.constant(symbols), tf.constant(symbol_mask))[:4])
        np.testing.assert_array_equal(tape.gradient(loss, x).numpy()[~mask], 0.0)


def test_the_greedy_path_without_repeats_and_blanks(rng: np.random.Generator) -> None:
    scores, mask, *_ = example(rng)
    scores = np.where(mask[..., None], scores, rng.normal(size=scores.shape))  # garbage that would be chosen
    symbols, found, score = (a.numpy() for a in ctc.greedy(tf.constant(scores), tf.constant(mask)))
    for row, n in enumerate(STEPS):
        best = scores[row, :n].argmax(-1)
        wanted = collapsed(tuple(best))
        assert symbols[row][found[row]].tolist() == wanted
        assert (symbols[row][~found[row]] == -1).all()
        assert found[row].tolist() == [True] * len(wanted) + [False] * (5 - len(wanted))
        log_p = np.log(reference.softmax(scores[row, :n]))
        np.testing.assert_allclose(score[row], log_p[np.arange(n), best].sum(), rtol=1e-10)


@pytest.mark.parametrize(("path", "wanted"), [
    ([0, 0, 2, 0, 1], [0, 0, 1]), ([2, 2, 2, 2, 2], []), ([0, 1, 0, 1, 1], [0, 1, 0, 1]), ([2, 0, 2, 2, 0], [0, 0]),
])  # fmt: skip
def test_a_blank_parts_what_is_repeated(path: list[int], wanted: list[int]) -> None:
    scores = tf.constant(np.eye(3)[path][None] * 5.0)
    symbols, found, _ = ctc.greedy(scores, tf.ones([1, 5], tf.bool))
    assert symbols.numpy()[found.numpy()].tolist() == wanted
