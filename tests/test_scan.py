"""The scan against a plain loop with plain autodiff, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfseq.ops.linear import project
from tfseq.ops.scan import scan
from tfseq.ops.tracing import without_gradients


@pytest.mark.parametrize("num_products", [0, 1, 2])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_states_outputs_and_gradients_are_those_of_a_plain_loop(
    num_steps: int, num_products: int, rng: np.random.Generator
) -> None:
    shapes = {"h": (3, 2), "c": (3, 2), "u": (num_steps, 3, 5), "kernel": (2, 5), "weights": (5, 2)}
    values = [tf.constant(rng.normal(size=s)) for s in shapes.values()]
    use = [tf.constant(rng.normal(size=(num_steps, 3, 2))) for _ in range(3)]

    def step(state, u, multiply, weights, kernel):
        h, c = state
        first, second = [multiply] * num_products + [project] * (2 - num_products)  # what the scan keeps, and what it does not
        hidden = tf.tanh(first(h, kernel) + u)
        new = second(hidden, weights)
        return (tf.tanh(new) + 0.5 * c, c * tf.sigmoid(new)), (new * c,)

    def by_scan(h, c, u, kernel, weights):
        states, outputs = scan(lambda state, u, multiply: step(state, u, multiply, weights, kernel), (h, c), u)
        return [*states, *outputs]

    def by_loop(h, c, u, kernel, weights):
        found = []
        for t in range(num_steps):
            (h, c), (o,) = step((h, c), u[t], tf.matmul, weights, kernel)
            found.append((h, c, o))
        return [tf.stack(a) for a in zip(*found, strict=True)]

    def by_scan_alone(*values):
        with without_gradients():
            return by_scan(*values)

    results = []
    for run in (by_loop, tf.function(by_scan), tf.function(by_scan_alone)):
        with tf.GradientTape() as tape:
            tape.watch(values)
            found = run(*values)
            loss = tf.add_n([tf.reduce_sum(a**2 * b) for a, b in zip(found, use, strict=True)])
        results.append([*found, *tape.gradient(loss, values)])
    for wanted, *found in zip(*results, strict=True):
        for a in found:
            np.testing.assert_allclose(a, wanted, rtol=1e-12, atol=1e-13)  # float64 rounding
