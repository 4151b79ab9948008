"""The masking convention from its definition, gradients included."""

import numpy as np
import pytest
import tensorflow as tf

from tfseq.ops import masking

LENGTHS = np.array([3, 0, 5, 1])


def test_lengths_and_masks_are_inverse() -> None:
    mask = masking.lengths_to_mask(tf.constant(LENGTHS), 5).numpy()
    assert mask.tolist() == [[t < n for t in range(5)] for n in LENGTHS]
    np.testing.assert_array_equal(masking.mask_to_lengths(tf.constant(mask)), LENGTHS)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_what_is_not_kept_is_gone_from_values_and_gradients(garbage: float) -> None:
    keep = np.arange(5) < LENGTHS[:, None]
    values = np.random.default_rng(0).normal(size=(4, 5, 2))
    x = tf.constant(np.where(keep[..., None], values, garbage))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = masking.masked_sum(masking.fill(x, tf.constant(keep)) ** 2, tf.constant(keep))
    assert float(loss) == pytest.approx((values[keep] ** 2).sum(), rel=1e-12)
    np.testing.assert_allclose(tape.gradient(loss, x), np.where(keep[..., None], 2.0 * values, 0.0), rtol=1e-12)
    by_row = [values[i, :n].sum(0) for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(masking.masked_sum(x, tf.constant(keep), axis=1), by_row, rtol=1e-12)
    filled = masking.fill(x, tf.constant(keep), 7.0).numpy()
    assert (filled[~keep] == 7.0).all()
    np.testing.assert_array_equal(filled[keep], values[keep])


def test_reversal_by_length_is_a_python_slice_of_each_row_its_own_inverse_and_adjoint() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 5, 4, 2))
    wanted = x.copy()
    for row, n in enumerate(LENGTHS):
        wanted[:n, row] = x[:n, row][::-1]
    source, lengths = tf.constant(x), tf.constant(LENGTHS, tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(source)
        reversed_x = masking.reverse_by_length(source, lengths)
        loss = tf.reduce_sum(reversed_x * weights)
    np.testing.assert_array_equal(reversed_x, wanted)
    np.testing.assert_array_equal(masking.reverse_by_length(reversed_x, lengths), x)
    np.testing.assert_array_equal(tape.gradient(loss, source), masking.reverse_by_length(tf.constant(weights), lengths))


def test_padding_takes_a_dtype_that_holds_all() -> None:
    np.testing.assert_array_equal(masking.pad([np.array([1]), np.array([0.5])]), [[1.0], [0.5]])


def test_padding_puts_zeros_on_the_right_and_keeps_the_dtype() -> None:
    rows = [np.array([[1], [2]], np.int32), np.zeros((0, 1), np.int32)]
    for num_steps, width in ((None, 2), (1, 2), (4, 4)):
        padded = masking.pad(rows, num_steps)
        assert padded.dtype == np.int32
        np.testing.assert_array_equal(padded[..., 0], [[1, 2, *[0] * (width - 2)], [0] * width])
    assert masking.pad([rows[1]]).shape == (1, 1, 1)  # a batch has at least one step


def test_steps_beyond_a_row_s_own_are_zero_also_behind_a_sample_axis() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 2))
    keep = np.arange(5) < LENGTHS[:, None]
    found = masking.until(tf.constant(x), tf.constant(LENGTHS), 2)
    np.testing.assert_array_equal(found, np.where(keep[:, None, :, None], x, 0.0))
    np.testing.assert_array_equal(
        masking.until(tf.constant(x[:, 0, :, 0]), tf.constant(LENGTHS)), np.where(keep, x[:, 0, :, 0], 0.0)
    )
