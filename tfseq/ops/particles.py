"""Weighted particles: their normalisation, effective sample size and systematic resampling, for streaming filters."""

from __future__ import annotations

import math

import tensorflow as tf

from tfseq.ops.tracing import is_single


def effective_sample_size(log_weights: tf.Tensor) -> tf.Tensor:
    """1 / sum of squared normalised weights: log weights `[B, N]` -> `[B]`, between 1 and N."""
    log_weights = tf.nn.log_softmax(log_weights)
    return tf.exp(-tf.reduce_logsumexp(2.0 * log_weights, -1))


def normalised(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Log weights `[..., N]` -> those that sum to one, and the log of their sum `[...]`; equal ones where all weights are 0."""
    total = tf.reduce_logsumexp(log_weights, -1)
    lost = tf.equal(total, -math.inf)[..., None]  # of observations that are impossible, to float32, for all particles
    equal = -tf.math.log(tf.cast(tf.shape(log_weights)[-1], log_weights.dtype))
    return tf.where(lost, equal, log_weights - tf.where(lost, tf.zeros_like(total)[..., None], total[..., None])), total


def systematic_ancestors(log_weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Ancestor of each new particle, `[B, N]` int32: N equally spaced points, moved by one `uniform` `[B]` in (0, 1)."""
    num = tf.shape(log_weights)[1]
    cumulative = tf.cumsum(tf.nn.softmax(log_weights), axis=-1)
    points = (tf.cast(tf.range(num), uniform.dtype) + uniform[:, None]) / tf.cast(num, uniform.dtype)
    if is_single():  # LiteRT has no search: how many lie below is counted
        below = tf.reduce_sum(tf.cast(cumulative[:, None] <= points[..., None], tf.int32), -1)
    else:
        below = tf.searchsorted(cumulative, points, side="right")
    return tf.minimum(below, num - 1)
