"""Bounds on log p(x) from per-step terms, and estimates of it by importance sampling. All in nats."""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from tfseq.ops.masking import masked_sum
from tfseq.ops.tracing import is_single


def elbo(log_lik: tf.Tensor, kl: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Evidence lower bound of each sequence: sum over real steps of log-likelihood minus KL; `[..., T]` -> `[...]`."""
    return masked_sum(log_lik - kl, mask, axis=-1)


def iwae(log_weights: tf.Tensor) -> tf.Tensor:
    """log 1/K sum_k w_k: log weights `[K, ...]` -> `[...]` (Burda et al. 2016, "Importance weighted autoencoders", eq. 8).

    Its expectation rises with K towards log p(x); the mean of the log weights would be the ELBO.
    """
    return tf.reduce_logsumexp(log_weights, 0) - tf.math.log(tf.cast(tf.shape(log_weights)[0], log_weights.dtype))


def in_chunks(
    log_weights: Callable[[tf.Tensor], tf.Tensor], num_samples: tf.Tensor | int, chunk: tf.Tensor | int, like: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean of the log weights and `iwae` of them, with the memory of one chunk of samples.

    Args:
        log_weights: sample numbers `[k]` int32 -> log weights `[k, B]`. It is called with `chunk` numbers at a time; numbers
            from `num_samples` on are asked for where the last chunk is not full, and not counted.
        num_samples: K.
        chunk: how many samples are held at once.
        like: a tensor `[B]` of the dtype of the weights.

    Returns:
        1/K sum_k log w_k, an estimate of the ELBO, and log 1/K sum_k w_k, the importance-sampled log-likelihood; `[B]` each.
    """
    if is_single():  # LiteRT has one sequence, not many, and wants shapes that are known
        weights = log_weights(tf.range(num_samples))
        return tf.reduce_mean(weights, 0), iwae(weights)
    chunk = tf.minimum(chunk, num_samples)

    def body(first: tf.Tensor, total: tf.Tensor, log_total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        numbers = first + tf.range(chunk)
        weights, counts = tf.ensure_shape(log_weights(numbers), [None, *like.shape]), (numbers < num_samples)[:, None]
        log_sum = tf.reduce_logsumexp(tf.where(counts, weights, -math.inf), 0)
        return (
            first + chunk,
            total + tf.reduce_sum(tf.where(counts, weights, 0.0), 0),
            tf.experimental.numpy.logaddexp(log_total, log_sum),
        )

    start = (0, tf.zeros_like(like), tf.fill(tf.shape(like), tf.constant(-math.inf, like.dtype)))
    _, total, log_total = tf.while_loop(lambda first, *_: first < num_samples, body, start, parallel_iterations=1)
    num = tf.cast(num_samples, like.dtype)
    return total / num, log_total - tf.math.log(num)
