"""Likelihoods with their convention and a standard error, and honest baselines to hold them against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.data.batching import Sequences, stream
from tfseq.models.base import SequenceModel

CONVENTIONS = {
    "bound_per_step": "(b) pooled bound: sum of -ELBO / sum of steps",
    "importance_per_step": "(a) importance-sampled NLL: sum of -log mean weight / sum of steps",
    "bound_sequence_mean": "(c) mean over sequences of -ELBO / steps",
    "log_prob_per_step": "exact NLL: sum of -log p(x) / sum of steps",
}


def evaluate(
    model: SequenceModel,
    data: Sequences,
    *,
    num_samples: int = 100,
    batch_size: int = 20,
    seed: int = 0,
    baselines_from: Sequences | None = None,
) -> dict[str, Any]:
    """Likelihood of `data` under a model, in nats per step (lower is better): exact, or a bound in three conventions.

    Args:
        model: a model with an exact `log_prob`, or with `bounds`.
        data: the sequences to score; empty ones contribute nothing.
        num_samples: samples of the guide for each sequence, for all figures; exact models need none.
        batch_size: sequences at once; it does not change the result beyond float32 rounding.
        seed: decides the samples; each sequence has its own numbers.
        baselines_from: training data; the result then has `baselines` fitted to it (binary data only).

    Returns:
        `bound_per_step` (b), `importance_per_step` (a), `bound_sequence_mean` (c), `standard_error` (of (b), over sequences),
        `importance_standard_error` (of (a), over sequences), `num_samples`, `num_sequences`, `num_steps`, and `baselines`. Of
        exact models `log_prob_per_step`, `standard_error`, `num_sequences`, `num_steps`, and `baselines`.
    """
    checks.at_least(1, num_samples=num_samples, batch_size=batch_size)
    if data.lengths.sum() == 0:
        raise ValueError(f"`data` has no steps (data set {data.name!r}, split {data.split!r}); there is nothing to score.")
    lengths = data.lengths
    result: dict[str, Any] = {}
    if hasattr(model, "log_prob"):
        log_prob = np.zeros(len(data))
        for batch in stream(replace(data, y=None), batch_size):  # p(x), and not p(x, labels)
            log_prob[batch["row"].numpy()] = np.asarray(model.log_prob(batch))
        result["log_prob_per_step"], result["standard_error"] = _per_step(-log_prob, lengths)
    else:
        key = tf.constant(np.random.default_rng(seed).integers(0, 2**31 - 1, 2), tf.int32)
        elbo, importance = np.zeros([2, len(data)])
        for batch in stream(data, batch_size):
            rows = batch["row"].numpy()
            elbo[rows], importance[rows] = (np.asarray(a) for a in model.bounds(batch, num_samples, key))
        result["bound_per_step"], result["standard_error"] = _per_step(-elbo, lengths)
        result["importance_per_step"], result["importance_standard_error"] = _per_step(-importance, lengths)
        result["bound_sequence_mean"] = float(np.mean(-elbo[lengths > 0] / lengths[lengths > 0]))
        result["num_samples"] = num_samples
    result |= {"num_sequences": len(data), "num_steps": int(lengths.sum())}
    if baselines_from is not None:
        result["baselines"] = baselines(baselines_from, data)
    return result


def _per_step(nats: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """Pooled nats per step and its standard error over sequences (that of a ratio of means)."""
    ratio = nats.sum() / lengths.sum()
    residuals = nats - ratio * lengths
    num = len(nats)
    error = np.sqrt(num / max(num - 1, 1) * np.sum(residuals**2)) / lengths.sum()
    return float(ratio), float(error) if num > 1 else float("nan")


def is_binary(data: Sequences) -> bool:
    """Whether every observation is 0 or 1, so that the baselines apply."""
    return all(a.ndim == 2 and np.isin(a, (0, 1)).all() for a in data.x) and data.observed is None


def baselines(train: Sequences, test: Sequences) -> dict[str, float]:
    """Pooled nats per step of `test` under `train_mean_bernoulli` and `per_feature_markov` fitted to `train`."""
    return {
        "train-mean Bernoulli": train_mean_bernoulli(train.x, test.x),
        "per-note Markov": per_feature_markov(train.x, test.x),
    }


def _nats(x: np.ndarray, p: np.ndarray) -> float:
    return float(-np.sum(x * np.log(p) + (1.0 - x) * np.log1p(-p)))


def train_mean_bernoulli(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> float:
    """Each feature on with its frequency in `train`, independent of everything: nats per step of `test`.

    The frequency is that of the steps and one more step that is half on.
    """
    rows = np.concatenate(train).astype(np.float64)
    p = (rows.sum(0) + 0.5) / (len(rows) + 1.0)
    steps = np.concatenate(test).astype(np.float64)
    return _nats(steps, p) / len(steps)


def per_feature_markov(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> float:
    """Each feature a Markov chain of its own, fitted to `train`: nats per step of `test`.

    The first step has the frequencies of `train_mean_bernoulli`; those after it are smoothed in the same way.
    """
    before, now = (np.concatenate([a[part] for a in train]).astype(np.float64) for part in (np.s_[:-1], np.s_[1:]))
    off_on, on_on = (((w * now).sum(0) + 0.5) / (w.sum(0) + 1.0) for w in (1.0 - before, before))
    steps = np.concatenate(train).astype(np.float64)
    first = (steps.sum(0) + 0.5) / (len(steps) + 1.0)
    nats = 0.0
    for x in test:
        nats += _nats(x[:1], first) + _nats(x[1:], np.where(x[:-1] > 0.5, on_on, off_on))
    return nats / sum(len(x) for x in test)
