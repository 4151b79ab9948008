"""The scan against a plain loop with plain autodiff, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfseq.ops.scan import scan


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_states_outputs_and_gradients_are_those_of_a_plain_loop(
    num_steps: int, with_kernel: bool, rng: np.random.Generator
) -> None:
    shapes = {"h": (3, 2), "c": (3, 2), "u": (num_steps, 3, 5), "kernel": (2, 5), "weights": (5, 2)}
    values = [tf.constant(rng.normal(size=s)) for s in shapes.values()]
    use = [tf.constant(rng.normal(size=(num_steps, 3, 2))) for _ in range(3)]

    def step(state, product, u, weights, kernel):
        h, c = state
        product = tf.matmul(tf.reshape(h, [-1, 2]), kernel) if product is None else product
        hidden = tf.tanh(tf.reshape(product, tf.shape(u)) + u)
        new = tf.reshape(tf.matmul(tf.reshape(hidden, [-1, 5]), weights), tf.shape(h))
        return (tf.tanh(new) + 0.5 * c, c * tf.sigmoid(new)), (new * c,)

    def by_scan(h, c, u, kernel, weights):
        run = lambda state, product, u: step(state, product, u, weights, kernel)  # noqa: E731
        states, outputs = scan(run, (h, c), u, kernel if with_kernel else None)
        return [*states, *outputs]

    def by_loop(h, c, u, kernel, weights):
        found = []
        for t in range(num_steps):
            (h, c), (o,) = step((h, c), None, u[t], weights, kernel)
            found.append((h, c, o))
        return [tf.stack(a) for a in zip(*found, strict=True)]

    results = []
    for run in (tf.function(by_scan), by_loop):
        with tf.GradientTape() as tape:
            tape.watch(values)
            found = run(*values)
            loss = tf.add_n([tf.reduce_sum(a**2 * b) for a, b in zip(found, use, strict=True)])
        results.append([*found, *tape.gradient(loss, values)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)  # float64 rounding
