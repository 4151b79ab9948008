"""Heads against scipy's distributions."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tfseq.layers.heads import HEADS, head_class


def made(name: str, **kwargs: Any) -> Any:
    """A head of three features (classes) over two inputs, and its distribution of zero features."""
    head = HEADS[name](3, **kwargs)
    return head, head(tf.zeros([1, 2]))


def test_log_prob_is_scipy_s(rng: np.random.Generator) -> None:
    features = tf.constant(rng.normal(size=(4, 2)).astype(np.float32))
    for name in HEADS:
        head = HEADS[name](3)
        distribution = head(features)
        raw = np.split(features.numpy() @ head.kernel.numpy() + head.bias.numpy(), head.parameters_per_feature, -1)
        if name == "bernoulli":
            x = rng.integers(2, size=(4, 3))
            wanted = stats.bernoulli.logpmf(x, special.expit(raw[0])).sum(-1)
        elif name == "normal":
            x = rng.normal(size=(4, 3)).astype(np.float32)
            wanted = stats.norm.logpdf(x, raw[0], np.logaddexp(0, raw[1]) + 1e-4).sum(-1)
        elif name == "poisson":
            x = rng.poisson(1.0, size=(4, 3))
            wanted = stats.poisson.logpmf(x, np.exp(raw[0])).sum(-1)
        else:
            x = rng.integers(3, size=4)
            wanted = special.log_softmax(raw[0], -1)[np.arange(4), x]
        np.testing.assert_allclose(head.log_prob(distribution, tf.constant(x)), wanted, rtol=1e-5, atol=1e-6)


def test_a_missing_feature_is_left_out_of_the_likelihood(rng: np.random.Generator) -> None:
    head, distribution = made("normal")
    x = rng.normal(size=(1, 3)).astype(np.float32)
    each = distribution.log_prob(x).numpy()[0]
    got = head.log_prob(distribution, tf.constant(x), tf.constant([[True, False, True]]))
    np.testing.assert_allclose(got, [each[0] + each[2]], rtol=1e-6)


def test_quantiles_are_scipy_s() -> None:
    u = np.linspace(0.001, 0.999, 300, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    for name, mean, ppf in [
        ("poisson", [0.3, 4.0, 50.0], stats.poisson(np.array([0.3, 4.0, 50.0])).ppf),
        ("bernoulli", [0.2, 0.5, 0.9], lambda u: u < np.array([0.2, 0.5, 0.9])),
        ("normal", [-1.0, 0.0, 2.0], stats.norm([-1.0, 0.0, 2.0], np.log(2.0) + 1e-4).ppf),
    ]:
        head, distribution = made(name, mean=mean)
        got, wanted = head.sample(distribution, tf.constant(u)).numpy(), ppf(u.astype(np.float64))
        if name == "normal":
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        else:  # float32 may fall on the other side of a jump for a grid point on it
            assert np.mean(got != wanted) < 0.005
    head, distribution = made("categorical", mean=[0.2, 0.5, 0.3])
    drawn = head.sample(distribution, tf.constant(u[:, :1])).numpy()
    np.testing.assert_allclose(np.bincount(drawn) / 300, [0.2, 0.5, 0.3], atol=0.01)  # equally spaced points


def test_a_head_starts_at_the_mean_of_the_data() -> None:
    assert made("bernoulli", mean=[0.1, 0.5, 0.0])[1].probs_parameter().numpy()[0] == pytest.approx([0.1, 0.5, 1e-4], rel=1e-4)
    assert made("poisson", mean=[0.1, 5.0, 2.0])[1].rate_parameter().numpy()[0] == pytest.approx([0.1, 5.0, 2.0], rel=1e-5)
    assert head_class("bernoulli").mean_of([np.eye(2), np.ones((1, 2))]) == pytest.approx([2 / 3, 2 / 3])
    assert head_class("categorical").mean_of([np.array([0, 2]), np.array([2, 2])]) == [0.25, 0.0, 0.75]


@pytest.mark.parametrize(("name", "x", "message"), [
    ("bernoulli", [[0.0, 0.5, 1.0]], "0 or 1 everywhere"),
    ("poisson", [[0.0, 1.5, 1.0]], "a whole number"),
    ("categorical", [0, 3], "a symbol from 0 to 2"), ("categorical", [0.5, 1.0], "a symbol from 0 to 2 everywhere; received 0.5"),
])  # fmt: skip
def test_values_outside_the_family_are_an_error(name: str, x: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HEADS[name].check(np.array(x), 3)


def test_an_unknown_head_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'bernoulli'"):
        head_class("bernouli")
