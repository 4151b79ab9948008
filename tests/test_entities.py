"""Entities in a graph against the plain Python of `schemes`, and against seqeval."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfseq import schemes
from tfseq.ops import entities

TAGS = {scheme: ["O", *(f"{p}-{t}" for t in ("x", "y") for p in schemes._PREFIXES[scheme])] for scheme in schemes.SCHEMES}


def example(scheme: str, rng: np.random.Generator, num_rows: int = 300, num_steps: int = 7) -> tuple:
    """(tags, gold, predicted, mask): random tags, mostly illegal, with garbage where padded; rows of every length."""
    tags = TAGS[scheme]
    lengths = rng.integers(0, num_steps + 1, num_rows)
    mask = np.arange(num_steps) < lengths[:, None]
    gold = rng.integers(len(tags), size=mask.shape)
    predicted = np.where(rng.random(mask.shape) < 0.7, gold, rng.integers(len(tags), size=mask.shape))
    return tags, *(np.where(mask, a, rng.integers(-1, len(tags), mask.shape)).astype(np.int32) for a in (gold, predicted)), mask


def names(tags: list[str], ids: np.ndarray, mask: np.ndarray) -> list[list[str]]:
    return [[tags[k] for k in row[keep]] for row, keep in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_boundaries_and_counts_are_those_of_plain_python(scheme: str, rng: np.random.Generator) -> None:
    tags, gold, predicted, mask = example(scheme, rng)
    tables = schemes.tables(tags, scheme)
    found = entities.boundaries(gold, mask, tables)
    counts = tf.function(lambda *a: entities.counts(*a, tables), autograph=False)(gold, predicted, mask)
    for i, (true, guess) in enumerate(zip(names(tags, gold, mask), names(tags, predicted, mask), strict=True)):
        spans, others = (schemes.entities(sequence, scheme) for sequence in (true, guess))
        assert np.flatnonzero(found.first[i]).tolist() == [start for _, start, _ in spans]
        assert np.flatnonzero(found.last[i]).tolist() == [stop - 1 for _, _, stop in spans]
        kinds = {t: tables.names.index(kind) for kind, start, stop in spans for t in range(start, stop)}
        assert found.kind[i].numpy().tolist() == [kinds.get(t, -1) for t in range(mask.shape[1])]
        assert [int(n[i]) for n in counts] == [len(set(spans) & set(others)), len(others), len(spans)]


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_precision_recall_and_f1_are_those_of_seqeval(scheme: str, rng: np.random.Generator) -> None:
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    tags, gold, predicted, mask = example(scheme, rng)
    counts = entities.counts(gold, predicted, mask, schemes.tables(tags, scheme))
    correct, found, true = (int(tf.reduce_sum(n)) for n in counts)
    arguments = names(tags, gold, mask), names(tags, predicted, mask)
    np.testing.assert_allclose(correct / found, metrics.precision_score(*arguments), rtol=1e-12)
    np.testing.assert_allclose(correct / true, metrics.recall_score(*arguments), rtol=1e-12)
    np.testing.assert_allclose(2 * correct / (found + true), metrics.f1_score(*arguments), rtol=1e-12)


def test_counts_are_the_same_in_xla(rng: np.random.Generator) -> None:
    tags, gold, predicted, mask = example("bioes", rng, num_rows=20)
    tables = schemes.tables(tags, "bioes")
    compiled = tf.function(lambda *a: entities.counts(*a, tables), autograph=False, jit_compile=True)
    for a, b in zip(compiled(gold, predicted, mask), entities.counts(gold, predicted, mask, tables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_unknown_tags_are_outside_and_nothing_is_counted_of_nothing() -> None:
    tables = schemes.tables(["O", "B-x", "I-x"], "bio")
    counts = entities.counts([[1, -1, 2, 2], [0, 0, 0, 0]], [[1, 0, 2, 2], [-1, -1, -1, -1]], None, tables)
    assert [n.numpy().tolist() for n in counts] == [[2, 0], [2, 0], [2, 0]]
    empty = entities.counts(np.zeros((0, 3), np.int32), np.zeros((0, 3), np.int32), np.zeros((0, 3), bool), tables)
    assert all(n.shape == (0,) for n in empty)
    only_outside = entities.counts([[0, 0]], [[0, 0]], None, schemes.tables(["O"], "bio"))
    assert [n.numpy().tolist() for n in only_outside] == [[0], [0], [0]]
