"""Products with a weight matrix."""

from __future__ import annotations

import tensorflow as tf


def project(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """x `[..., N]` times kernel `[N, M]` (plus bias `[M]`) -> `[..., M]`, as one product of matrices.

    `tf.matmul` would take x as a batch of matrices, and its gradient would hold one kernel-sized matrix for each.
    """
    kernel = tf.cast(kernel, x.dtype)
    leading = x.shape.rank - 1
    rows = x if leading == 1 else tf.reshape(x, [-1, kernel.shape[0]])
    product = tf.matmul(rows, kernel)
    if bias is not None:
        product = tf.nn.bias_add(product, tf.cast(bias, x.dtype))
    return product if leading == 1 else tf.reshape(product, tf.concat([tf.shape(x)[:leading], [kernel.shape[1]]], 0))
