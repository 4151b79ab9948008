"""Bounds and particles from their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from tfseq.ops import bounds, particles


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_chunks_give_the_mean_of_logs_and_the_log_of_the_mean(chunk: int, rng: np.random.Generator) -> None:
    log_weights = rng.normal(0.0, 30.0, size=(60, 4))  # exp would overflow float32
    elbo, importance = bounds.in_chunks(lambda k: tf.gather(log_weights, k), 7, chunk, tf.zeros([4], tf.float64))
    np.testing.assert_allclose(elbo, log_weights[:7].mean(0), rtol=1e-12)
    top = log_weights[:7].max(0)
    wanted = top + np.log(np.exp(log_weights[:7] - top).mean(0))
    np.testing.assert_allclose(importance, wanted, rtol=1e-12)
    np.testing.assert_allclose(bounds.iwae(tf.constant(log_weights[:7])), wanted, rtol=1e-12)
    assert (importance.numpy() > elbo.numpy()).all()


def test_the_elbo_counts_real_steps_only() -> None:
    log_lik, kl = tf.constant([[-1.0, np.nan]]), tf.constant([[0.5, 7.0]])
    assert bounds.elbo(log_lik, kl, tf.constant([[True, False]])).numpy() == [-1.5]


def test_effective_sample_size_is_between_one_and_all() -> None:
    log_weights = tf.constant([[0.0, 0.0, 0.0, 0.0], [0.0, -50.0, -50.0, -50.0], [3.0, 3.0, -90.0, -90.0]])
    np.testing.assert_allclose(particles.effective_sample_size(log_weights), [4.0, 1.0, 2.0], rtol=1e-5)


def test_systematic_resampling_is_within_one_of_the_expected_copies(rng: np.random.Generator) -> None:
    weights = rng.dirichlet(np.ones(20), size=5).astype(np.float32)
    ancestors = particles.systematic_ancestors(tf.math.log(weights), tf.constant(rng.random(5).astype(np.float32))).numpy()
    for row, p in zip(ancestors, weights, strict=True):
        assert (np.abs(np.bincount(row, minlength=20) - 20 * p) < 1.0 + 1e-4).all()
