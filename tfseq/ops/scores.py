"""Scores of forecasts that are given as samples: NumPy, elementwise over all axes but that of the samples."""

from __future__ import annotations

import numpy as np


def crps(samples: np.ndarray, x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Continuous ranked probability score of samples of a forecast, lower is better; in the units of x.

    CRPS(F, x) = E|X - x| - 1/2 E|X - X'| with X, X' ~ F independent (Gneiting and Raftery 2007, eq. 21, with the sign of an
    error), here by its fair estimator

        1/S sum_i |x_i - x| - 1/(2 S (S - 1)) sum_ij |x_i - x_j|,

    whose expectation does not depend on S (Ferro 2014; Zamo and Naveau 2018, section 3), so that forecasts of different numbers
    of samples can be compared; that of few samples may be negative. Of a value that is 0 or 1 it is (p - x)^2, Brier's score.

    Args:
        samples: `[S, ...]`, S at least 2, with S at `axis`; independent draws of the forecast.
        x: what came, `[...]`.
        axis: where the samples are.

    Returns:
        the score of each value, `[...]` float64.
    """
    ordered = _ordered(samples, axis)
    num = len(ordered)
    if num < 2:
        raise ValueError(f"`samples` must have at least 2 samples along axis {axis}, for their spread; received {num}.")
    # of sorted samples: sum_ij |x_i - x_j| = 2 sum_i (2 i - S - 1) x_i, i = 1 .. S
    weights = 2.0 * np.arange(1, num + 1) - num - 1.0
    spread = np.tensordot(weights, ordered, 1) / (num * (num - 1.0))
    return np.abs(ordered - x).mean(0) - spread


def central_interval(samples: np.ndarray, level: float, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval that leaves (1 - level) / 2 of the forecast on either side, `[...]` each.

    The quantile p is the p (S + 1)-th smallest sample, between two samples by interpolation: an observation from the same
    distribution lies below the k-th of S samples with probability k / (S + 1), so that the interval holds it with probability
    `level` whatever S is, as long as (1 - level) / 2 is at least 1 / (S + 1).

    Args:
        samples: as of `crps`.
        level: probability of the interval, in (0, 1).
        axis: where the samples are.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must lie in (0, 1); received {level!r}.")
    ends = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    low, high = np.quantile(_ordered(samples, axis), ends, axis=0, method="weibull")
    return low, high


def _ordered(samples: np.ndarray, axis: int) -> np.ndarray:
    """Samples in ascending order, along the first axis, float64."""
    return np.sort(np.moveaxis(np.asarray(samples, np.float64), axis, 0), axis=0)
