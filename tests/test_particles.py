"""Particles in the mean: resampling is unbiased and keeps the order of ancestors."""

import numpy as np
import tensorflow as tf

from tfseq.ops import particles


def test_resampling_copies_each_particle_in_proportion_to_its_weight_on_average(rng: np.random.Generator) -> None:
    num, weights = 10_000, rng.dirichlet(np.ones(6))
    uniform = (np.arange(num) + 0.5) / num  # every shift of the points once, so the mean is exact to 1 / num
    log_weights = tf.constant(np.tile(np.log(weights) + 3.0, (num, 1)))  # unnormalised
    ancestors = particles.systematic_ancestors(log_weights, tf.constant(uniform)).numpy()
    copies = np.stack([(ancestors == i).sum(1).mean() for i in range(6)])
    np.testing.assert_allclose(copies, 6 * weights, atol=6 / num)
    assert (np.diff(ancestors, axis=1) >= 0).all()


def test_equal_weights_keep_every_particle_and_the_extremes_stay_in_range() -> None:
    for uniform in (2.0**-25, 0.01, 0.99, 1.0 - 2.0**-24):
        shift = tf.constant([uniform], tf.float32)
        equal = particles.systematic_ancestors(tf.zeros([1, 8]), shift).numpy()
        assert 0 <= equal.min() <= equal.max() <= 7
        if 0.001 < uniform < 0.999:  # nearer to an end, a point may round to its neighbour's cell
            np.testing.assert_array_equal(equal, [range(8)])
        last = tf.constant([[-np.inf, -np.inf, 0.0]])
        np.testing.assert_array_equal(particles.systematic_ancestors(last, shift), [[2, 2, 2]])
