"""Mixture heads against sums over components, numerical integrals and conditional distributions."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tests import reference
from tfseq.layers.mixtures import BivariatePen, GaussianMixture
from tfseq.ops import random

NUM = 4000  # draws; a right sampler falls below p = 1e-3 for one seed in a thousand


def uniforms(num: int) -> tf.Tensor:
    """`[NUM, num]` of a fixed seed."""
    return random.uniform(random.row_seeds([1, 2], tf.range(NUM)), tf.range(1), num, 0)[0]


def with_bias(head: Any, bias: np.ndarray) -> Any:
    """The distribution `[1, ...]` of these raw parameters."""
    head(tf.zeros([1, 1]))
    head.bias.assign(bias)
    return head(tf.zeros([1, 1]))


def mixture(rng: np.random.Generator, num: int = 3, dim: int = 2) -> tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray]:
    """Head, distribution, and by NumPy weights `[K]`, means and standard deviations `[K, D]`."""
    raw = rng.normal(size=num + 2 * num * dim)
    head = GaussianMixture(dim, num_components=num, dtype="float64")
    logits, mean, stddev = raw[:num], *raw[num:].reshape(2, num, dim)
    return head, with_bias(head, raw), special.softmax(logits), mean, reference.softplus(stddev) + reference.MIN_STDDEV


def test_mixture_is_the_logarithm_of_a_sum_of_densities(rng: np.random.Generator) -> None:
    head, distribution, weights, mean, stddev = mixture(rng)
    x = rng.normal(size=(6, 2)) * 2
    wanted = np.log([(weights * stats.norm.pdf(row, mean, stddev).prod(-1)).sum() for row in x])
    np.testing.assert_allclose(head.log_prob(distribution, x), wanted, rtol=1e-10)
    np.testing.assert_allclose(distribution.log_prob(x), wanted, rtol=1e-10)
    np.testing.assert_allclose(distribution.mean(), [weights @ mean])
    # far from all components the density is 0 in floating point and its logarithm is not
    far = head.log_prob(distribution, np.full((1, 2), 1e3)).numpy()
    assert np.isfinite(far).all() and far < -1e4


def test_mixture_sums_missing_features_out_of_each_component(rng: np.random.Generator) -> None:
    head, distribution, *_ = mixture(rng)
    grid = np.linspace(-15.0, 15.0, 6001)
    x = np.stack([np.full_like(grid, 0.3), grid], -1)
    wanted = np.trapezoid(np.exp(head.log_prob(distribution, x)), grid)
    got = head.log_prob(distribution, np.array([[0.3, 7.0]]), np.array([[True, False]]))
    np.testing.assert_allclose(np.exp(got), [wanted], rtol=1e-7)
    np.testing.assert_allclose(head.log_prob(distribution, x[:1], np.zeros((1, 2), bool)), [0.0], atol=1e-12)


def test_mixture_samples_and_completions_have_their_distributions(rng: np.random.Generator) -> None:
    head, distribution, weights, mean, stddev = mixture(rng)
    u = uniforms(head.num_uniforms)
    x = head.sample(distribution, u).numpy()
    for direction in np.array([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]]):  # a projection is a mixture of one dimension
        centre, width = mean @ direction, stddev**2 @ direction**2

        def cdf(a: np.ndarray, centre: np.ndarray = centre, width: np.ndarray = width) -> np.ndarray:
            return stats.norm.cdf(a[:, None], centre, np.sqrt(width)) @ weights

        assert stats.kstest(x @ direction, cdf).pvalue > 1e-3
    # x_0 given x_1
    given = np.tile([[np.nan, mean[1, 1]]], (NUM, 1)).astype(np.float32)
    drawn = head.complete(distribution, tf.constant(given), tf.constant([[False, True]]), u).numpy()
    posterior = weights * stats.norm.pdf(mean[1, 1], mean[:, 1], stddev[:, 1])
    posterior /= posterior.sum()
    assert np.abs(posterior - weights).max() > 0.1  # so that the prior's component would be found out
    assert stats.kstest(drawn[:, 0], lambda a: stats.norm.cdf(a[:, None], mean[:, 0], stddev[:, 0]) @ posterior).pvalue > 1e-3


def test_components_start_apart_and_around_the_mean_of_the_data() -> None:
    for head in (GaussianMixture(3, [1.0, 2.0, 3.0], num_components=20), BivariatePen(3, [0.2, 2.0, 3.0])):
        distribution = head(tf.zeros([1, 2]))
        is_pen = isinstance(head, BivariatePen)
        means = (distribution.mean if is_pen else distribution.components_distribution.distribution.loc).numpy()[0]
        np.testing.assert_allclose(means.mean(0), [1.0, 2.0, 3.0][is_pen:], atol=1e-5)
        distance = np.linalg.norm(means[:, None] - means, axis=-1) + np.eye(20)
        assert distance.min() > 0.01
        np.testing.assert_allclose(means.var(0), 0.49, atol=0.05)
    np.testing.assert_allclose(tf.sigmoid(distribution.pen), [0.2], rtol=1e-6)


# The pen -----------------------------------------------------------------------------------------------------------


def pen(rng: np.random.Generator) -> tuple[Any, Any, float, np.ndarray, np.ndarray, np.ndarray]:
    """Head, distribution, and by NumPy p(pen = 1), weights `[K]`, means `[K, 2]` and covariances `[K, 2, 2]`."""
    num = 2
    raw = rng.normal(size=1 + 6 * num)
    raw[-2:] = [1.2, -0.7]  # correlations of both signs
    head = BivariatePen(num_components=num, dtype="float64")
    distribution = with_bias(head, raw)
    _, logits, mean, stddev, rho = np.split(raw, np.cumsum([1, num, 2 * num, 2 * num]))
    stddev, rho = reference.softplus(stddev.reshape(num, 2)) + reference.MIN_STDDEV, np.sqrt(1 - 1e-4) * np.tanh(rho)
    cov = np.array([[[s[0] ** 2, r * s[0] * s[1]], [r * s[0] * s[1], s[1] ** 2]] for s, r in zip(stddev, rho, strict=True)])
    return head, distribution, float(special.expit(raw[0])), special.softmax(logits), mean.reshape(num, 2), cov


def test_pen_is_bernoulli_times_a_mixture_of_bivariate_gaussians(rng: np.random.Generator) -> None:
    head, distribution, p, weights, mean, cov = pen(rng)
    x = np.concatenate([rng.integers(2, size=(6, 1)), rng.normal(size=(6, 2))], -1)
    density = [sum(w * stats.multivariate_normal.pdf(row[1:], m, c) for w, m, c in zip(weights, mean, cov, strict=True))
               * (p if row[0] else 1 - p) for row in x]  # fmt: skip
    np.testing.assert_allclose(head.log_prob(distribution, x), np.log(density), rtol=1e-9)


def test_pen_sums_missing_features_out(rng: np.random.Generator) -> None:
    head, distribution, p, *_ = pen(rng)
    grid = np.linspace(-15.0, 15.0, 6001)
    for column in (1, 2):  # what is missing
        x = np.tile([1.0, 0.4, 0.4], (len(grid), 1))
        x[:, column] = grid
        observed = np.arange(3) != column
        wanted = np.trapezoid(np.exp(head.log_prob(distribution, x)), grid)
        np.testing.assert_allclose(np.exp(head.log_prob(distribution, x[:1], observed[None])), [wanted], rtol=1e-6)
        observed = observed & [False, True, True]
        np.testing.assert_allclose(np.exp(head.log_prob(distribution, x[:1], observed[None])), [wanted / p], rtol=1e-6)
    np.testing.assert_allclose(head.log_prob(distribution, x[:1], np.array([[True, False, False]])), [np.log(p)])


def test_pen_samples_and_completions_have_their_distributions(rng: np.random.Generator) -> None:
    head, distribution, p, weights, mean, cov = pen(rng)
    u = uniforms(4)
    x = head.sample(distribution, u).numpy()
    assert stats.binomtest(int(x[:, 0].sum()), NUM, p).pvalue > 1e-3
    for direction in np.array([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8], [0.6, 0.8]]):
        centre, width = mean @ direction, np.einsum("kij,i,j->k", cov, direction, direction)

        def cdf(a: np.ndarray, centre: np.ndarray = centre, width: np.ndarray = width) -> np.ndarray:
            return stats.norm.cdf(a[:, None], centre, np.sqrt(width)) @ weights

        assert stats.kstest(x[:, 1:] @ direction, cdf).pvalue > 1e-3
    for seen, hidden in ((0, 1), (1, 0)):
        value = mean[0, seen] + 0.5
        given = np.full((NUM, 3), np.nan, np.float32)
        given[:, 1 + seen] = value
        observed = np.arange(3) == 1 + seen
        drawn = head.complete(distribution, tf.constant(given), tf.constant(observed[None]), u).numpy()
        posterior = weights * stats.norm.pdf(value, mean[:, seen], np.sqrt(cov[:, seen, seen]))
        posterior /= posterior.sum()
        gain = cov[:, 0, 1] / cov[:, seen, seen]
        centre = mean[:, hidden] + gain * (value - mean[:, seen])
        width = np.sqrt(cov[:, hidden, hidden] - gain * cov[:, 0, 1])
        test = stats.kstest(drawn[:, 1 + hidden], lambda a, p=posterior, c=centre, w=width: stats.norm.cdf(a[:, None], c, w) @ p)
        assert test.pvalue > 1e-3
        assert stats.binomtest(int(drawn[:, 0].sum()), NUM, p).pvalue > 1e-3


def test_the_correlation_has_a_floor_under_one_minus_its_square() -> None:
    head = BivariatePen(num_components=3)
    raw = np.zeros(19, np.float32)
    raw[-3:] = [-80.0, 0.5, 80.0]
    with tf.GradientTape() as tape:
        distribution = with_bias(head, raw)
        log_prob = head.log_prob(distribution, tf.constant([[1.0, 0.3, -2.0]]))
    np.testing.assert_allclose(distribution.tail[0], [1e-4, 1.0 - (1.0 - 1e-4) * np.tanh(0.5) ** 2, 1e-4], rtol=1e-6)
    np.testing.assert_allclose(distribution.rho[0] ** 2 + distribution.tail[0], 1.0, rtol=1e-6)
    assert np.isfinite(log_prob).all() and np.isfinite(tape.gradient(log_prob, head.bias)).all()


def test_pen_checks_its_columns() -> None:
    with pytest.raises(ValueError, match="`event_dim` must be 3"):
        BivariatePen(4)
    BivariatePen.check(np.array([[1.0, 0.5, -2.0], [0.0, 3.0, 1.0]]), 3)
    with pytest.raises(ValueError, match=r"the pen, for a pen head; received 0.5 at index \(1, 0\)"):
        BivariatePen.check(np.array([[1.0, 0.5, -2.0], [0.5, 3.0, 1.0]]), 3)
    assert BivariatePen.supports(tf.constant([[0.5, 0.5, 0.5]]), 3).numpy().tolist() == [[False, True, True]]
