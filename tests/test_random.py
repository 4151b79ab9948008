"""Counter-based numbers: known answers, independence of everything but (seed, time), and their distributions."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfseq.ops import random
from tfseq.ops.tracing import single_precision

# Random123's published vectors for threefry2x32 with 20 rounds: counter, key, answer
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "answer"), VECTORS)
def test_threefry_gives_the_published_answers(counter, key, answer) -> None:
    words = random.threefry([tf.constant(k, tf.uint32) for k in key], [tf.constant(c, tf.uint32) for c in counter])
    assert tuple(int(w) for w in words) == answer


@pytest.mark.parametrize("draw", [random.uniform, random.normal])
def test_a_row_depends_on_its_seed_and_time_only(draw) -> None:
    seeds = tf.constant([[1, 2], [3, 4], [5, 6]])
    whole = draw(seeds, tf.range(6), 5, 0).numpy()
    same = partial(np.testing.assert_allclose, rtol=3e-7)  # the ends of an array take the unvectorised cosine: one unit off
    same(draw(seeds, tf.range(2), 5, 0), whole[:2])
    same(draw(tf.gather(seeds, [2, 0]), tf.range(6), 5, 0), whole[:, [2, 0]])
    same(draw(seeds, tf.constant([4]), 5, 0)[0], whole[4])
    same(draw(seeds, tf.constant([[4, 0, 2]]), 5, 0)[0], whole[[4, 0, 2], [0, 1, 2]])
    assert (draw(seeds, tf.range(6), 5, 1).numpy() != whole).all()


def test_uniform_and_normal_numbers_have_their_distributions() -> None:
    seeds = random.row_seeds(tf.constant([7, 8]), tf.range(40))
    u = random.uniform(seeds, tf.range(50), 11, 0).numpy()
    z = random.normal(seeds, tf.range(50), 11, 0).numpy()
    assert u.min() > 0.0
    assert u.max() < 1.0
    # 22,000 numbers of a fixed seed; a right generator falls below p = 1e-3 for one seed in a thousand
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    for a in (u, z):
        for other in (np.roll(a, 1, 0), np.roll(a, 1, 1), np.roll(a, 1, 2)):  # across times, rows and indices
            assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(a.size)  # four standard errors


def test_the_extreme_words_give_neither_0_nor_1() -> None:
    smallest, largest = random._unit(tf.constant([0, 0xFFFFFFFF], tf.uint32)).numpy()
    assert (smallest, largest) == (np.float32(2.0**-24), np.float32(1.0 - 2.0**-24))


def test_normal_quantiles_also_without_the_functions_of_devices() -> None:
    u = np.concatenate([np.linspace(1e-6, 1.0 - 1e-6, 20_001), 10.0 ** -np.arange(1.0, 30.0)]).astype(np.float32)
    wanted = stats.norm.ppf(u.astype(float))
    np.testing.assert_allclose(random.normal_quantile(tf.constant(u)), wanted, rtol=1e-5, atol=1e-6)
    with single_precision():
        np.testing.assert_allclose(random.normal_quantile(tf.constant(u)), wanted, rtol=2e-6, atol=1e-6)  # float32 polynomials


def test_a_wrong_seed_shape_is_an_error() -> None:
    for seed in (tf.zeros([], tf.int32), [1, 2, 3], [[1], [2]], np.zeros((1, 1, 2), int)):
        with pytest.raises(ValueError, match=r"`seed` must have shape \[2\]"):
            random.row_seeds(seed, tf.range(3))
    with pytest.raises(ValueError, match=r"B = 3 rows; received shape \(1, 2\)"):
        random.row_seeds([[0, 1]], tf.range(3))
    for seed in ([0.5, 1.0], [2**31, 0], [True, False]):
        with pytest.raises(ValueError, match="whole numbers of 32 bits"):
            random.row_seeds(seed, tf.range(3))
