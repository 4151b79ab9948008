"""log Z of Boltzmann machines: by enumeration, and by annealed importance sampling in both directions.

Neal 2001, "Annealed importance sampling"; Salakhutdinov and Murray 2008, "On the quantitative analysis of deep belief networks";
Burda, Grosse and Salakhutdinov 2015, "Accurate and conservative estimates of MRF log-likelihood using reverse annealing".
Weights are made on the odd units' states, the even ones summed out (see `gibbs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfseq.ops.gibbs import Machine, States

MAX_STATES = 2**20
"""Largest number of joint states that `exact_log_z` enumerates unless told otherwise."""
_CHUNK = 2**12


def exact_log_z(machine: Machine, max_states: float = MAX_STATES) -> tf.Tensor:
    """log Z by enumerating the odd units' states, float64; the gradient is exact too.

    Raises:
        ValueError: there are more than `max_states` of them.
    """
    num = machine.num_odd_states()
    if num > max_states:
        raise ValueError(f"log Z is enumerated for at most {max_states:.0f} joint states of one side; there are {num:.3g}.")
    chunk = min(int(num), _CHUNK)

    def more(first: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = first + tf.range(chunk, dtype=tf.int64)
        log_prob = tf.cast(machine.odd_log_prob(machine.odd_states(index % int(num))), tf.float64)
        log_prob = tf.where(index < int(num), log_prob, tf.constant(-math.inf, tf.float64))
        return first + chunk, tf.reduce_logsumexp(tf.concat([log_prob, total[None]], 0))

    first, total = more(tf.constant(0, tf.int64), tf.constant(-math.inf, tf.float64))
    if num <= chunk:
        return total
    return tf.while_loop(lambda i, _: i < int(num), more, (first, total))[1]


def temperatures(num: int) -> np.ndarray:
    """About `num` inverse temperatures from 0 to 1, float64, closer together near 1.

    In the shares of Salakhutdinov and Murray 2008: of 14,500, 500 are spread over [0, 0.5], 4,000 over [0.5, 0.9] and 10,000
    over [0.9, 1].
    """
    parts = [(0.0, 0.5, 500), (0.5, 0.9, 4000), (0.9, 1.0, 10000)]
    counts = [max(1, round(num * count / 14500)) for *_, count in parts]
    pieces = [np.linspace(low, high, n, endpoint=False) for (low, high, _), n in zip(parts, counts, strict=True)]
    return np.concatenate([*pieces, [1.0]])


def annealed_weights(machine: Machine, odd: States, betas: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, States]:
    """Log-weights `[N]` float64 of chains that are led along `betas` `[K + 1]`, and where they end.

    With betas from 0 to 1 and odd states drawn at 0, the mean weight estimates Z / Z_0; with betas from 1 to 0 and states drawn
    from the machine, its inverse, Z_0 / Z.

    Args:
        machine: the machine.
        odd: the chains' odd states, `[N, n]` each.
        betas: inverse temperatures, float64; step k goes from betas[k] to betas[k + 1].
        seed: row seeds `[N, 2]`.
    """
    dtype = odd[0].dtype

    def step(k: tf.Tensor, total: tf.Tensor, states: States) -> tuple[tf.Tensor, tf.Tensor, States]:
        before, after = tf.cast(betas[k], dtype), tf.cast(betas[k + 1], dtype)
        states, ratio = machine.anneal(states, before, after, seed, k)
        return k + 1, total + tf.cast(ratio, tf.float64), states

    start = (tf.constant(0), tf.zeros([tf.shape(odd[0])[0]], tf.float64), odd)
    return tf.while_loop(lambda k, *_: k + 1 < tf.shape(betas)[0], step, start, parallel_iterations=1)[1:]


def log_mean(log_weights: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    """What log-weights `[N]` say of the mean weight.

    Returns:
        its log; the log of the mean less and plus three standard errors (of the mean itself, not of its log; the lower may be
        minus infinity); the effective sample size, (sum w)^2 / sum w^2.
    """
    log_weights = np.asarray(log_weights, np.float64)
    top = log_weights.max()
    w = np.exp(log_weights - top)
    mean, error = w.mean(), w.std(ddof=1) / math.sqrt(len(w)) if len(w) > 1 else math.inf
    with np.errstate(divide="ignore"):
        low, high = np.log(np.maximum(mean - 3.0 * error, 0.0)), np.log(mean + 3.0 * error)
    return float(top + np.log(mean)), float(top + low), float(top + high), float(w.sum() ** 2 / (w**2).sum())
