"""The RBM head against enumeration of all visible and hidden states, its gradient against finite differences."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tests.reference import slope, softplus
from tfseq.layers import rbm_head
from tfseq.layers.rbm_head import RBMHead
from tfseq.ops import random, tracing


def binary(num: int) -> np.ndarray:
    return np.array(list(itertools.product([0, 1], repeat=num)))


def rbm(rng: np.random.Generator, dim: int, units: int, rows: int = 1, **kwargs: Any) -> tuple[Any, tf.Tensor]:
    """A float64 head with arbitrary weights, and features."""
    head = RBMHead(dim, units=units, dtype="float64", **kwargs)
    head(tf.zeros([1, 2]))
    head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
    return head, tf.constant(rng.normal(size=(rows, 2)))


def joint_log_z(b: np.ndarray, c: np.ndarray, w: np.ndarray) -> float:
    """log Z as the sum over all states of both sides."""
    v, h = binary(len(b)), binary(len(c))
    return special.logsumexp((v @ b)[:, None] + h @ c + v @ w @ h.T)


@pytest.mark.parametrize(("dim", "units"), [(4, 3), (3, 5)])  # the hidden side is the smaller one, and the larger
def test_log_prob_is_that_of_enumeration(dim: int, units: int, rng: np.random.Generator, monkeypatch: Any) -> None:
    head, features = rbm(rng, dim, units, rows=3)
    distribution = head(features)
    b, c, w = (a.numpy() for a in (distribution.visible, distribution.hidden, head.coupling))
    x, h = binary(dim), binary(units)
    for blocks in (2**20, 2**5):  # in one chunk, in several
        monkeypatch.setattr(rbm_head, "_BLOCK_FLOATS", blocks)
        got = head.log_prob(distribution, x[:, None]).numpy()
        for n in range(3):
            joint = (x @ b[n])[:, None] + h @ c[n] + x @ w @ h.T
            np.testing.assert_allclose(got[:, n], special.logsumexp(joint, 1) - special.logsumexp(joint), rtol=1e-10)
    np.testing.assert_allclose(np.exp(got).sum(0), 1.0, rtol=1e-10)


@pytest.mark.parametrize(("dim", "units"), [(4, 3), (3, 4)])
def test_the_exact_gradient_is_that_of_finite_differences(
    dim: int, units: int, rng: np.random.Generator, monkeypatch: Any
) -> None:
    monkeypatch.setattr(rbm_head, "_BLOCK_FLOATS", 2**5)
    head, features = rbm(rng, dim, units, rows=3)
    x, weights = rng.integers(2, size=(3, dim)), rng.normal(size=3)

    def objective() -> tf.Tensor:
        return tf.reduce_sum(weights * head.log_prob(head(features), x))

    with tf.GradientTape() as tape:
        value = objective()
    variables = [w.value for w in head.trainable_weights]
    gradients = tape.gradient(value, variables)
    assert len(gradients) == 3
    for variable, gradient in zip(variables, gradients, strict=True):
        direction = rng.normal(size=variable.shape)
        np.testing.assert_allclose(np.sum(gradient * direction), slope(objective, variable, direction), rtol=1e-6)


def test_annealed_log_z_is_near_the_exact_one(rng: np.random.Generator) -> None:
    for units in (13, 16):
        head, features = rbm(rng, 5, units, rows=4, exact_units=0, num_chains=256, num_temperatures=40)
        head.coupling.assign(0.5 * rng.normal(size=(5, units)))
        distribution = head(features)
        assert not distribution.is_exact
        b, c, w = (a.numpy() for a in (distribution.visible, distribution.hidden, head.coupling))
        v = binary(5)
        exact = [special.logsumexp(v @ b[n] + softplus(c[n] + v @ w).sum(-1)) for n in range(4)]
        log_z = tf.function(lambda features, head=head: head(features).log_z(), autograph=False)
        got = log_z(features).numpy()
        # log-weights have a standard deviation of about 0.2 here, so the log of their mean one of 0.2 / 16; four of these
        np.testing.assert_allclose(got, exact, atol=0.05)
        # without interactions there is nothing to estimate
        head.coupling.assign(tf.zeros_like(head.coupling))
        np.testing.assert_allclose(log_z(features), softplus(b).sum(-1) + softplus(c).sum(-1), rtol=1e-10)


def test_an_estimate_depends_on_its_row_alone(rng: np.random.Generator, monkeypatch: Any) -> None:
    head, features = rbm(rng, 5, 4, rows=4, exact_units=0, num_chains=3, num_temperatures=3)
    together = head(features).log_z()
    np.testing.assert_allclose(head(features[2:3]).log_z(), together[2:3], rtol=1e-12)
    monkeypatch.setattr(rbm_head, "_CHAIN_FLOATS", 1)  # a block for each row
    np.testing.assert_allclose(head(features).log_z(), together, rtol=1e-12)
    assert head(features[:0]).log_z().shape == (0,)


def test_the_estimated_gradient_is_the_exact_one_in_expectation(rng: np.random.Generator) -> None:
    dim, units = 10, 13
    exact, features = rbm(rng, dim, units)
    exact.coupling.assign(0.5 * rng.normal(size=(dim, units)))
    sampled, _ = rbm(rng, dim, units, exact_units=0, num_chains=2, num_temperatures=2)
    sampled.set_weights(exact.get_weights())
    x = tf.constant(binary(dim), tf.float64)  # each starts a chain with numbers of its own

    def gradient_of_log_z(head: Any) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            distribution = head(features)
            tape.watch([distribution.visible, distribution.hidden])
            free = -tf.reduce_mean(rbm_head.free_energy(x, distribution.visible, distribution.hidden, distribution.w))
            log_z = free - tf.reduce_mean(head.log_prob(distribution, x))
        return [g.numpy() for g in tape.gradient(log_z, [distribution.visible, distribution.hidden, head.coupling.value])]

    for got, wanted in zip(gradient_of_log_z(sampled), gradient_of_log_z(exact), strict=True):
        # 1,024 chains: a standard error of at most 0.5 / 32; five of them, and what 15 sweeps leave of where a chain began
        np.testing.assert_allclose(got, wanted, atol=0.08)
        assert np.abs(wanted - 0.5).max() > 0.25  # where every state is as likely, an average over x would do


def test_the_value_is_the_same_with_and_without_a_gradient(rng: np.random.Generator) -> None:
    head, features = rbm(rng, 3, 13, rows=2, exact_units=0, num_chains=2, num_temperatures=3, num_sweeps=2)
    x = np.array([[0, 1, 1], [1, 0, 0]])
    with tracing.without_gradients():
        plain = head.log_prob(head(features), x)
    np.testing.assert_allclose(head.log_prob(head(features), x), plain, rtol=1e-12)


def test_samples_have_their_probabilities(rng: np.random.Generator) -> None:
    head, features = rbm(rng, 3, 2)
    distribution = head(features)
    uniform = random.uniform(random.row_seeds([3, 4], tf.range(4000)), tf.range(1), head.num_uniforms, 0)[0]
    drawn = head.sample(distribution, uniform).numpy()
    probs = np.exp(head.log_prob(distribution, binary(3)[:, None])).ravel()
    counts = np.bincount((drawn @ [4, 2, 1]).astype(int), minlength=8)
    assert stats.chisquare(counts, 4000 * probs).pvalue > 1e-3  # a right sampler fails for one seed in a thousand
