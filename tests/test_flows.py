"""The inverse autoregressive flow against the determinant of its Jacobian."""

import numpy as np
import pytest
import tensorflow as tf

from tfseq.layers.flows import InverseAutoregressiveFlow


@pytest.mark.parametrize("reverse", [False, True])
def test_log_det_is_that_of_a_triangular_jacobian(reverse: bool, rng: np.random.Generator) -> None:
    flow = InverseAutoregressiveFlow(7, reverse=reverse, dtype="float64")
    z = tf.constant(rng.normal(size=(1, 4)))
    flow(z)
    for weight in flow.weights:
        weight.assign(rng.normal(size=weight.shape))
    with tf.GradientTape() as tape:
        tape.watch(z)
        new, log_det = flow(z)
    jacobian = tape.jacobian(new, z)[0, :, 0].numpy()
    np.testing.assert_allclose(log_det[0], np.linalg.slogdet(jacobian)[1], rtol=1e-10)
    zero = np.triu(jacobian, 1) if not reverse else np.tril(jacobian, -1)
    assert not zero.any()
    below = np.tril(jacobian, -1) if not reverse else np.triu(jacobian, 1)
    assert (below[np.nonzero(np.tril(np.ones((4, 4)), -1) if not reverse else np.triu(np.ones((4, 4)), 1))] != 0).all()


def test_it_starts_near_the_identity(rng: np.random.Generator) -> None:
    z = rng.normal(size=(3, 4)).astype(np.float32)
    share = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(InverseAutoregressiveFlow(7)(tf.constant(z))[0], share * z, atol=0.1)  # output kernel 0.01
