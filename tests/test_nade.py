"""The NADE head against its definition, feature by feature, and enumeration of all binary vectors."""

import itertools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.reference import sigmoid, slope
from tfseq.layers.nade import NADE
from tfseq.ops import random


def nade(rng: np.random.Generator, dim: int, units: int, rows: int = 1) -> tuple[Any, tf.Tensor]:
    """A float64 head with arbitrary weights, and features."""
    head = NADE(dim, units=units, dtype="float64")
    head(tf.zeros([1, 2]))
    head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
    return head, tf.constant(rng.normal(size=(rows, 2)))


def test_log_prob_is_the_product_of_conditionals(rng: np.random.Generator) -> None:
    head, features = nade(rng, 5, 4, rows=3)
    w, v = head.input_kernel.numpy(), head.output_kernel.numpy()
    raw = features.numpy() @ head.kernel.numpy() + head.bias.numpy()
    x, wanted = rng.integers(2, size=(3, 5)), np.zeros(3)
    for n in range(3):
        for d in range(5):  # Larochelle and Murray 2011, eq. 8-9
            hidden = sigmoid(raw[n, 5:] + sum((w[k] * x[n, k] for k in range(d)), np.zeros(4)))
            p = sigmoid(raw[n, d] + v[d] @ hidden)
            wanted[n] += np.log(p if x[n, d] else 1 - p)
    np.testing.assert_allclose(head.log_prob(head(features), x), wanted, rtol=1e-10)


@pytest.mark.parametrize("dim", [1, 3, 10])
def test_probabilities_sum_to_one(dim: int, rng: np.random.Generator) -> None:
    head, features = nade(rng, dim, 6, rows=2)
    x = np.array(list(itertools.product([0, 1], repeat=dim)))[:, None]
    total = np.exp(head.log_prob(head(features), x)).sum(0)
    np.testing.assert_allclose(total, [1.0, 1.0], rtol=1e-12)


def test_gradient_is_that_of_finite_differences(rng: np.random.Generator) -> None:
    head, features = nade(rng, 5, 4, rows=3)
    x, weights = rng.integers(2, size=(3, 5)), rng.normal(size=3)

    def objective() -> tf.Tensor:
        return tf.reduce_sum(weights * head.log_prob(head(features), x))

    with tf.GradientTape() as tape:
        value = objective()
    variables = [w.value for w in head.trainable_weights]
    gradients = tape.gradient(value, variables)
    assert len(gradients) == 4
    for variable, gradient in zip(variables, gradients, strict=True):
        direction = rng.normal(size=variable.shape)
        np.testing.assert_allclose(np.sum(gradient * direction), slope(objective, variable, direction), rtol=1e-6)


def test_samples_have_their_probabilities(rng: np.random.Generator) -> None:
    head, features = nade(rng, 3, 4)
    distribution = head(features)
    uniform = random.uniform(random.row_seeds([3, 4], tf.range(4000)), tf.range(1), 3, 0)[0]
    drawn = head.sample(distribution, uniform).numpy()
    x = np.array(list(itertools.product([0, 1], repeat=3)))
    probs = np.exp(head.log_prob(distribution, x[:, None])).ravel()
    counts = np.bincount((drawn @ [4, 2, 1]).astype(int), minlength=8)
    assert stats.chisquare(counts, 4000 * probs).pvalue > 1e-3  # a right sampler fails for one seed in a thousand


def test_it_starts_near_the_mean_of_the_data() -> None:
    head = NADE(4, [0.1, 0.9, 0.5, 0.0], units=100)
    uniform = random.uniform(random.row_seeds([3, 4], tf.range(2000)), tf.range(1), 4, 0)[0]
    drawn = head.sample(head(tf.zeros([1, 2])), uniform).numpy()
    # V has standard deviation 0.01, so log-odds are off by about 0.05, a probability by 0.0125; sampling by 0.011
    np.testing.assert_allclose(drawn.mean(0), [0.1, 0.9, 0.5, 0.0], atol=0.06)
