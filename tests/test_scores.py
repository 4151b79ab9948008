"""Scores of samples against their definitions and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tfseq.ops.scores import central_interval, crps


def test_crps_is_that_of_the_double_loop(rng: np.random.Generator) -> None:
    samples, x = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3))
    found = crps(samples, x, axis=1)
    for index in np.ndindex(2, 3):
        s = samples[index[0], :, index[1]]
        spread = sum(abs(a - b) for a in s for b in s) / (2 * 5 * 4)
        assert found[index] == pytest.approx(np.mean([abs(a - x[index]) for a in s]) - spread, rel=1e-12)


def test_crps_of_many_samples_is_that_of_the_gaussian(rng: np.random.Generator) -> None:
    mean, stddev, x = 0.5, 2.0, np.array([-3.0, 0.5, 1.0, 4.0])
    z = (x - mean) / stddev  # Gneiting and Raftery 2007, section 4.2
    wanted = stddev * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    samples = np.repeat(rng.normal(mean, stddev, 200_000)[:, None], 4, 1)
    np.testing.assert_allclose(crps(samples, x), wanted, atol=4 * stddev / np.sqrt(200_000))  # four standard errors


def test_crps_of_two_samples_is_unbiased(rng: np.random.Generator) -> None:
    samples, x = rng.normal(size=(2, 400_000)), 0.3
    wanted = x * (2 * stats.norm.cdf(x) - 1) + 2 * stats.norm.pdf(x) - 1 / np.sqrt(np.pi)
    found = crps(samples, np.full(400_000, x))
    error = found.std() / np.sqrt(400_000)
    assert found.mean() == pytest.approx(wanted, abs=4 * error)
    plain = np.abs(samples - x).mean(0) - np.abs(samples[0] - samples[1]) / 4  # with 1 / (2 S^2)
    assert plain.mean() - wanted > 100 * error  # what the fair one corrects


def test_crps_of_binary_values_is_briers_score() -> None:
    samples = np.array([1.0] * 300_000 + [0.0] * 700_000)
    np.testing.assert_allclose(crps(samples[:, None], np.array([1.0])), [0.49], atol=1e-6)  # (0.3 - 1)^2


@pytest.mark.parametrize("num", [39, 200])
def test_intervals_hold_an_observation_of_the_same_distribution_as_often_as_they_say(num: int, rng: np.random.Generator) -> None:
    samples, x = rng.gamma(2.0, size=(num, 20_000)), rng.gamma(2.0, size=20_000)
    for level in (0.5, 0.8, 0.95):
        low, high = central_interval(samples, level)
        error = np.sqrt(level * (1 - level) / 20_000)
        assert np.mean((low <= x) & (x <= high)) == pytest.approx(level, abs=4 * error)


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="`samples` must have at least 2"):
        crps(np.zeros((1, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="`level`"):
        central_interval(np.zeros((5, 3)), 95)
