"""Attention and pooling against NumPy, a row and a query at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfseq.layers.attention import Attention, AttentionPooling, masked_softmax

LENGTHS = np.array([4, 2, 0, 1])
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 against float64


def memory(rng: np.random.Generator, dim: int = 3, garbage: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """m `[4, 4, M]` with garbage where padded, and its mask."""
    mask = np.arange(4) < LENGTHS[:, None]
    values = rng.normal(size=(4, 4, dim)).astype(np.float32)
    return np.where(mask[..., None], values, np.float32(garbage)), mask


def test_a_softmax_over_real_places_alone(rng: np.random.Generator) -> None:
    scores = 50.0 * rng.normal(size=(4, 4))
    mask = np.arange(4) < LENGTHS[:, None]
    for garbage in (0.0, 1e9, np.nan, np.inf):
        found = masked_softmax(tf.constant(np.where(mask, scores, garbage)), tf.constant(mask)).numpy()
        for row, n in enumerate(LENGTHS):
            if n:
                np.testing.assert_allclose(found[row, :n], reference.softmax(scores[row, :n]), rtol=1e-12)
            assert not found[row, n:].any()


def made(kind: str, rng: np.random.Generator, query_dim: int = 2) -> Attention:
    attention = Attention(kind, units=5)
    attention.create(query_dim, 3)
    for weight in attention.weights:
        weight.assign(rng.normal(size=weight.shape))
    return attention


def looked(attention: Attention, query: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One query `[Q]` on a memory `[S, M]` -> (context, weights)."""
    kernel = reference.value(attention.memory_kernel)
    if attention.kind == "luong":
        scores = [query @ (m @ kernel) for m in values]
    else:
        hidden = [np.tanh(query @ reference.value(attention.query_kernel) + m @ kernel) for m in values]
        scores = [(h @ reference.value(attention.vector))[0] for h in hidden]
    weights = reference.softmax(np.array(scores)) if len(values) else np.zeros(0)
    return weights @ values if len(values) else np.zeros(3), weights


@pytest.mark.parametrize("kind", ["bahdanau", "luong"])
def test_both_kinds_are_their_equations_for_one_and_for_many_queries(kind: str, rng: np.random.Generator) -> None:
    attention = made(kind, rng)
    values, mask = memory(rng)
    queries = rng.normal(size=(3, 4, 2)).astype(np.float32)
    context, weights = attention.look(
        tf.constant(queries), tf.constant(values), attention.keys(tf.constant(values)), tf.constant(mask)
    )
    assert (context.shape, weights.shape) == ((3, 4, 3), (3, 4, 4))
    for t in range(3):
        one = attention.look(tf.constant(queries[t]), tf.constant(values), attention.keys(tf.constant(values)), tf.constant(mask))
        np.testing.assert_allclose(one[0], context[t], **CLOSE)
        np.testing.assert_allclose(one[1], weights[t], **CLOSE)
        for row, n in enumerate(LENGTHS):
            wanted = looked(attention, queries[t, row].astype(float), values[row, :n].astype(float))
            np.testing.assert_allclose(context[t, row], wanted[0], **CLOSE)
            np.testing.assert_allclose(weights[t, row, :n], wanted[1], **CLOSE)
            assert not weights[t, row, n:].numpy().any()
    np.testing.assert_allclose(np.sum(weights, -1), np.broadcast_to(LENGTHS > 0, (3, 4)), **CLOSE)


@pytest.mark.parametrize("kind", ["bahdanau", "luong"])
def test_what_stands_in_padded_memory_changes_nothing(kind: str, rng: np.random.Generator) -> None:
    attention = made(kind, rng)
    values, mask = memory(rng)
    query = tf.constant(rng.normal(size=(4, 2)).astype(np.float32))
    found = []
    for garbage in (0.0, 7.0, -1e6):  # an encoder's padded outputs are finite
        dirty = tf.constant(np.where(mask[..., None], values, np.float32(garbage)))
        with tf.GradientTape() as tape:
            tape.watch([query, dirty])
            context, weights = attention.look(query, dirty, attention.keys(dirty), tf.constant(mask))
            loss = tf.reduce_sum(context**2)
        found.append([context, weights, *tape.gradient(loss, [*attention.trainable_weights, query, dirty])])
    for clean, *dirty in zip(*found, strict=True):
        assert np.isfinite(clean).all()
        for a in dirty:
            np.testing.assert_array_equal(a, clean)


def test_bad_arguments_name_themselves() -> None:
    with pytest.raises(ValueError, match="`kind`"):
        Attention("dot")
    for make in (Attention, AttentionPooling):
        with pytest.raises(ValueError, match="`units`"):
            make(units=0)


@pytest.fixture
def pooling(rng: np.random.Generator) -> AttentionPooling:
    layer = AttentionPooling(5)
    layer.build((None, None, 3))
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer


def test_pooling_is_a_weighted_mean_over_real_steps(pooling: Any, rng: np.random.Generator) -> None:
    values, mask = memory(rng)
    kernel, bias, vector = map(reference.value, (pooling.kernel, pooling.bias, pooling.vector))
    clean = None
    for garbage in (0.0, np.nan, np.inf):
        hidden = tf.constant(np.where(mask[..., None], values, np.float32(garbage)).transpose(1, 0, 2))
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            found = pooling(hidden, mask=tf.constant(mask.T))
            loss = tf.reduce_sum(found**2)
        gradients = tape.gradient(loss, [*pooling.trainable_weights, hidden])
        assert all(np.isfinite(g).all() for g in gradients)
        clean = clean or gradients
        for a, b in zip(gradients, clean, strict=True):
            np.testing.assert_array_equal(a, b)
        weights = pooling.weights_of(hidden, tf.constant(mask.T))
        for row, n in enumerate(LENGTHS):
            real = values[row, :n].astype(float)
            wanted = reference.softmax((np.tanh(real @ kernel + bias) @ vector)[:, 0]) if n else np.zeros(0)
            np.testing.assert_allclose(weights[:n, row], wanted, **CLOSE)
            np.testing.assert_allclose(found[row], wanted @ real if n else np.zeros(3), **CLOSE)
            assert not weights[n:, row].numpy().any()
    np.testing.assert_allclose(pooling(tf.constant(values[:1].transpose(1, 0, 2)))[0], found[0], **CLOSE)
