"""The masking convention, stated once: True = real step, sequences padded on the right.

Padding never changes a result. Padded inputs are made finite *before* any mathematics (`fill`), because a `tf.where` after
a NaN does not stop its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


def pad(arrays: Sequence[np.ndarray], num_steps: int | None = None) -> np.ndarray:
    """Arrays `[T_i, ...]` of equal rank -> one array `[N, T, ...]` of a dtype that holds all, zeros on the right; T at least 1.

    Args:
        arrays: the sequences; an empty one is legal.
        num_steps: T; the longest length by default.
    """
    first = arrays[0]
    longest = max(1, num_steps or 0, *(len(a) for a in arrays))
    out = np.zeros((len(arrays), longest, *first.shape[1:]), np.result_type(*arrays))
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


def lengths_to_mask(lengths: tf.Tensor, num_steps: tf.Tensor | int) -> tf.Tensor:
    """Lengths `[B]` int -> mask `[B, T]` bool, True for the first `lengths` steps."""
    return tf.range(num_steps, dtype=lengths.dtype) < lengths[:, None]


def mask_to_lengths(mask: tf.Tensor) -> tf.Tensor:
    """Mask `[B, T]` bool -> number of real steps `[B]` int32."""
    return tf.reduce_sum(tf.cast(mask, tf.int32), axis=-1)


def fill(x: tf.Tensor, keep: tf.Tensor, value: tf.Tensor | float = 0.0) -> tf.Tensor:
    """`x` where `keep` (of shape x.shape or of its leading axes), else `value`; NaN that is not kept is gone."""
    keep = tf.reshape(keep, tf.concat([tf.shape(keep), tf.ones([x.shape.rank - keep.shape.rank], tf.int32)], 0))
    return tf.where(keep, x, tf.cast(value, x.dtype))


def until(x: tf.Tensor, num_steps: tf.Tensor, axis: int = 1) -> tf.Tensor:
    """x with zeros after each row's own number of steps `[B]`; time is axis 1, or 2 behind a sample axis."""
    keep = lengths_to_mask(num_steps, tf.shape(x)[axis])
    return fill(x, keep if axis == 1 else keep[:, None])


def some_steps(x: tf.Tensor) -> tf.Tensor:
    """x `[B, T, ...]`, with a step of zeros where it has none: a loop over time makes one at least."""
    return tf.pad(x, [[0, 0], [0, tf.maximum(0, 1 - tf.shape(x)[1])], *[[0, 0]] * (x.shape.rank - 2)])


def masked_sum(values: tf.Tensor, mask: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """Sum of `values` `[...]` over its real entries: all of them, or along `axis`."""
    return tf.reduce_sum(fill(values, mask), axis)


@tf.custom_gradient
def reverse_by_length(x: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """x `[T, B, ...]` with the first `lengths` `[B]` steps of each row reversed, padding left in place.

    Rows of memory are moved whole, which `tf.reverse_sequence` does not; the operation is its own inverse and adjoint.
    """
    num_steps, num_rows = tf.unstack(tf.shape(x)[:2])
    times = tf.range(num_steps)[:, None]
    source = tf.where(times < lengths, lengths - 1 - times, times) * num_rows + tf.range(num_rows)

    def reverse(a: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(a, tf.concat([[-1], tf.shape(a)[2:]], 0))
        return tf.reshape(tf.gather(rows, tf.reshape(source, [-1])), tf.shape(a))

    return reverse(x), lambda upstream: (reverse(upstream), None)
