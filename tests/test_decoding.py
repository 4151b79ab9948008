"""Sampling against exact probabilities and given uniform numbers; beam search against all sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfseq.ops import decoding, random
from tfseq.ops.decoding import Choice, Generated

V = 4
END = 3


class Chain:
    """A second-order chain over V tokens: scores depend on the two tokens before, those of each row on its own tables."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tables = 1.5 * rng.normal(size=(rows, V + 1, V + 1, V))
        self.rows = rows

    def scores(self, row: int, tokens: Any) -> np.ndarray:
        before = [V, V, *tokens][-2:]
        return self.tables[row, before[0], before[1]]

    @property
    def first(self) -> tf.Tensor:
        return tf.constant(self.tables[:, V, V])

    @property
    def state(self) -> dict[str, tf.Tensor]:
        """The token before the last, and the row's tables."""
        return {"before": tf.fill([self.rows], V), "tables": tf.constant(self.tables)}

    def step(self, token: tf.Tensor, state: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        place = tf.stack([state["before"], tf.maximum(token, 0)], 1)
        return tf.gather_nd(state["tables"], place, batch_dims=1), {"before": tf.maximum(token, 0), "tables": state["tables"]}


def choice(rows: int, temperature: Any = 1.0, top_k: Any = 0, top_p: Any = 1.0) -> Choice:
    kinds = ((temperature, tf.float64), (top_k, tf.int32), (top_p, tf.float64))
    return Choice(*(tf.constant(np.broadcast_to(value, rows), dtype) for value, dtype in kinds))


def graph(function: Callable) -> Callable:
    return tf.function(function, autograph=False, reduce_retracing=True)


# Restriction ---------------------------------------------------------------------------------------------------------


def left(scores: list[float], **settings: Any) -> list[int]:
    """The tokens that top-k and top-p leave."""
    found = decoding.restrict(tf.constant([scores], tf.float64), choice(1, **settings)).numpy()[0]
    kept = np.flatnonzero(found > -np.inf)
    np.testing.assert_array_equal(found[kept], np.array(scores)[kept])
    return kept.tolist()


def test_top_k_leaves_the_best_and_those_equal_to_the_last() -> None:
    scores = [0.0, 3.0, 1.0, 2.0]
    assert [left(scores, top_k=k) for k in (0, 1, 2, 3, 4, 9)] == [
        [0, 1, 2, 3],
        [1],
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert left([1.0, 2.0, 1.0, 0.0], top_k=2) == [0, 1, 2]  # nothing says which of the two is the second


def test_top_p_leaves_the_fewest_that_reach_p() -> None:
    probs = [0.1, 0.5, 0.15, 0.25]
    scores = np.log(probs).tolist()
    wanted = {
        0.0: [1],
        0.3: [1],
        0.499: [1],
        0.501: [1, 3],
        0.749: [1, 3],
        0.751: [1, 2, 3],
        0.91: [0, 1, 2, 3],
        1.0: [0, 1, 2, 3],
    }
    assert {p: left(scores, top_p=p) for p in wanted} == wanted
    assert left(np.log([0.25, 0.5, 0.25]).tolist(), top_p=0.6) == [0, 1, 2]  # of two that are equal both
    # with both, p is of the probability among the k best: 0.5 and 0.25 of 0.75
    assert left(scores, top_k=2, top_p=0.66) == [1]
    assert left(scores, top_k=2, top_p=0.67) == [1, 3]


def test_top_p_of_one_leaves_what_is_very_improbable() -> None:
    for dtype in (tf.float32, tf.float64):
        scores = tf.constant([[0.0, -60.0, -300.0]], dtype)
        of_row = Choice(tf.ones([1], dtype), tf.zeros([1], tf.int32), tf.ones([1], dtype))
        np.testing.assert_array_equal(decoding.restrict(scores, of_row), scores)


# Sampling ------------------------------------------------------------------------------------------------------------


def drawn(chain: Chain, seeds: np.ndarray, most: Any, settings: Choice, **more: Any) -> Generated:
    return decoding.sample(
        chain.step, chain.first, chain.state, tf.constant(seeds, tf.int32), tf.constant(most, tf.int32), settings, **more
    )


def by_hand(
    chain: Chain, row: int, seed: np.ndarray, most: int, temperature: float, keep: Callable, end: int | None
) -> list[int]:
    """The tokens of a row: of each step the first whose cumulative probability exceeds the row's own uniform number."""
    numbers = random.uniform(tf.constant(seed[None], tf.int32), tf.range(max(most, 1)), 1, decoding.SALT).numpy()[:, 0, 0]
    tokens: list[int] = []
    for t in range(most):
        scores = chain.scores(row, tokens)
        if temperature == 0.0:
            token = int(np.argmax(keep(scores, 1.0)))
        else:
            probs = scipy.special.softmax(keep(scores / temperature, temperature))
            token = int(np.searchsorted(np.cumsum(probs), numbers[t], side="right"))
        if token == end:
            break
        tokens.append(token)
    return tokens


def written(found: Generated, row: int) -> list[int]:
    tokens = found.tokens.numpy()[row]
    length = int(found.lengths[row])
    assert (tokens[length:] == -1).all()
    assert (tokens[:length] >= 0).all()
    return tokens[:length].tolist()


@pytest.mark.parametrize("end", [None, END])
def test_tokens_are_quantiles_of_the_row_s_own_numbers(end: int | None, rng: np.random.Generator) -> None:
    rows = 12
    chain, seeds = Chain(rows), rng.integers(0, 10**6, (rows, 2))
    most = np.array([6, 0, 1, 5] * 3)
    temperature = np.repeat([1.0, 0.5, 0.0], 4)
    run = graph(lambda: drawn(chain, seeds, most, choice(rows, temperature), end=end))
    found = run()
    for row in range(rows):
        wanted = by_hand(chain, row, seeds[row], most[row], temperature[row], lambda s, _: s, end)
        assert written(found, row) == wanted


def test_restricted_and_forbidden_tokens_are_never_drawn(rng: np.random.Generator) -> None:
    rows = 9
    chain, seeds = Chain(rows), rng.integers(0, 10**6, (rows, 2))
    top_k, top_p = np.array([0, 2, 1] * 3), np.repeat([1.0, 0.5, 0.8], 3)
    forbidden = np.array([True, False, False, False])
    found = drawn(chain, seeds, [7] * rows, choice(rows, 1.0, top_k, top_p), forbidden=tf.constant(forbidden))
    for row in range(rows):

        def keep(scores: np.ndarray, _: float, row: int = row) -> np.ndarray:
            scores = np.where(forbidden, -np.inf, scores)
            order = np.argsort(-scores)[: top_k[row] or V]
            probs = scipy.special.softmax(scores[order])
            order = order[: max(1, int(((np.cumsum(probs) - probs) < top_p[row]).sum()))]
            return np.where(np.isin(np.arange(V), order), scores, -np.inf)

        tokens = written(found, row)
        assert tokens == by_hand(chain, row, seeds[row], 7, 1.0, keep, None)
        assert 0 not in tokens
    best = drawn(chain, seeds, [7] * rows, choice(rows, 0.0), forbidden=tf.constant(forbidden))
    for row in range(rows):
        assert written(best, row) == by_hand(
            chain, row, seeds[row], 7, 0.0, lambda s, _: np.where(forbidden, -np.inf, s), None
        )  # fmt: skip


def test_shares_are_the_probabilities_of_the_first_token(rng: np.random.Generator) -> None:
    rows, temperature = 4000, 0.7
    scores = np.array([0.3, -1.0, 0.9, 0.0])
    seeds = random.row_seeds([3, 4], tf.range(rows))
    found = decoding.sample(
        lambda token, state: (tf.tile(tf.constant(scores)[None], [rows, 1]), state),
        tf.constant(np.tile(scores, (rows, 1))),
        (),
        seeds,
        tf.ones([rows], tf.int32),
        choice(rows, temperature),
    )
    share = np.bincount(found.tokens.numpy()[:, 0], minlength=V) / rows
    probs = scipy.special.softmax(scores / temperature)
    # five standard deviations of a share
    assert (np.abs(share - probs) < 5.0 * np.sqrt(probs * (1.0 - probs) / rows)).all()


def test_a_row_is_the_same_whatever_is_around_it(rng: np.random.Generator) -> None:
    rows = 4
    chain, seeds = Chain(rows), rng.integers(0, 10**6, (rows, 2))
    most, top_k, top_p = np.array([5, 3, 0, 8]), np.array([0, 2, 0, 0]), np.array([1.0, 1.0, 0.3, 0.6])
    together = drawn(chain, seeds, most, choice(rows, 0.8, top_k, top_p), end=END)
    for row in range(rows):
        alone = Chain(1)
        alone.tables = chain.tables[row : row + 1]
        own = slice(row, row + 1)
        found = drawn(alone, seeds[own], most[own], choice(1, 0.8, top_k[own], top_p[own]), end=END)
        assert written(found, 0) == written(together, row)


def test_nothing_is_asked_for() -> None:
    chain = Chain(2)
    found = drawn(chain, np.zeros((2, 2)), [0, 0], choice(2))
    assert found.tokens.shape == (2, 0)
    assert found.lengths.numpy().tolist() == [0, 0]
    found = decoding.beam_search(chain.step, chain.first, chain.state, 3, tf.constant([0, 0]), END)
    assert (found.tokens.shape, found.lengths.numpy().tolist(), found.log_prob.numpy().tolist()) == ((2, 0), [0, 0], [0.0, 0.0])


# Beam search ---------------------------------------------------------------------------------------------------------


def all_sequences(chain: Chain, row: int, most: int, end: int | None, forbidden: int | None) -> dict[tuple[int, ...], float]:
    """Every sequence that may come out -> its log-probability: ended ones, and those of `most` tokens."""
    found: dict[tuple[int, ...], float] = {}
    allowed = [k for k in range(V) if k != forbidden]
    for length in range(most + 1):
        for tokens in itertools.product([k for k in allowed if k != end], repeat=length):
            total = 0.0
            for t in range(length + (length < most)):
                scores = chain.scores(row, tokens[:t])
                log_p = scores - scipy.special.logsumexp(scores[allowed])
                if t < length:
                    total += log_p[tokens[t]]
                elif end is not None:
                    total += log_p[end]
                else:
                    total = -np.inf
            found[tokens] = total
    return found


def value(tokens: tuple[int, ...], total: float, penalty: float, is_ended: bool) -> float:
    """What sequences are compared by; an end token counts."""
    return total / ((5.0 + len(tokens) + is_ended) / 6.0) ** penalty


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("end", "forbidden"), [(END, None), (END, 0), (None, None)])
def test_a_beam_of_all_prefixes_finds_the_best_sequence(end: int | None, forbidden: int | None, penalty: float) -> None:
    rows = 6
    chain, most = Chain(rows, seed=2), np.array([4, 1, 3, 0, 4, 2])
    block = None if forbidden is None else tf.constant(np.arange(V) == forbidden)
    run = graph(
        lambda: decoding.beam_search(chain.step, chain.first, chain.state, 300, tf.constant(most, tf.int32), end, block, penalty)
    )
    found = run()
    for row in range(rows):
        every = all_sequences(chain, row, most[row], end, forbidden)
        best = max(every, key=lambda tokens: value(tokens, every[tokens], penalty, len(tokens) < most[row]))
        assert tuple(written(found, row)) == best
        np.testing.assert_allclose(found.log_prob[row], every[best], rtol=1e-10)


@pytest.mark.parametrize("penalty", [0.0, 2.0])
@pytest.mark.parametrize("end", [None, END])
def test_one_beam_is_greedy(end: int | None, penalty: float) -> None:
    rows = 8
    chain, most = Chain(rows, seed=5), np.array([6, 3, 0, 1] * 2)
    found = decoding.beam_search(chain.step, chain.first, chain.state, 1, tf.constant(most, tf.int32), end, None, penalty)
    best = drawn(chain, np.zeros((rows, 2)), most, choice(rows, 0.0), end=end)
    for row in range(rows):
        assert written(found, row) == written(best, row)
        total, tokens = 0.0, written(found, row)
        for t in range(len(tokens) + (len(tokens) < most[row])):
            log_p = scipy.special.log_softmax(chain.scores(row, tokens[:t]))
            total += log_p[tokens[t] if t < len(tokens) else END]
        np.testing.assert_allclose(found.log_prob[row], total, rtol=1e-10)


def beams_by_hand(chain: Chain, row: int, most: int, num_beams: int, penalty: float) -> tuple[int, ...]:
    """The search in plain Python: finished and unfinished sequences compete for the same places."""
    beams: list[tuple[tuple[int, ...], float, bool]] = [((), 0.0, False)]
    for _ in range(most):
        longer = [beam for beam in beams if beam[2]]
        for tokens, total, done in beams:
            if not done:
                log_p = scipy.special.log_softmax(chain.scores(row, tokens))
                longer += [(tokens if k == END else (*tokens, k), total + log_p[k], k == END) for k in range(V)]
        beams = sorted(longer, key=lambda beam: -value(*beam[:2], penalty, beam[2]))[:num_beams]
    return max(beams, key=lambda beam: value(*beam[:2], penalty, beam[2]))[0]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3])
def test_a_narrow_beam_is_the_search_in_plain_python(num_beams: int, penalty: float) -> None:
    rows = 40
    chain, most = Chain(rows, seed=7), np.resize([5, 2, 4, 1, 0], rows)
    found = decoding.beam_search(chain.step, chain.first, chain.state, num_beams, tf.constant(most, tf.int32), END, None, penalty)
    for row in range(rows):
        assert tuple(written(found, row)) == beams_by_hand(chain, row, most[row], num_beams, penalty), row


def test_beams_of_a_row_do_not_see_the_batch() -> None:
    rows = 5
    chain, most = Chain(rows, seed=3), np.array([5, 1, 0, 4, 3])
    together = decoding.beam_search(chain.step, chain.first, chain.state, 3, tf.constant(most, tf.int32), END, None, 1.0)
    for row in range(rows):
        alone = Chain(1)
        alone.tables = chain.tables[row : row + 1]
        found = decoding.beam_search(
            alone.step, alone.first, alone.state, 3, tf.constant(most[row : row + 1], tf.int32), END, None, 1.0
        )
        assert written(found, 0) == written(together, row)
        np.testing.assert_allclose(found.log_prob[0], together.log_prob[row], rtol=1e-12)
