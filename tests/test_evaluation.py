"""Figures of `evaluate` from their definitions, and the baselines from theirs and from the published table."""

from pathlib import Path

import numpy as np
import pytest

import tfseq
from tfseq.data.batching import Sequences
from tfseq.evaluation import evaluate, per_feature_markov, train_mean_bernoulli
from tfseq.models.dmm import DeepMarkovModel


def test_the_three_conventions_follow_from_the_bounds_of_each_sequence(rng: np.random.Generator) -> None:
    data = Sequences([(rng.random((n, 3)) < 0.4).astype(np.float32) for n in (5, 1, 0, 3)])
    model = DeepMarkovModel.tiny()
    model.bounds = lambda batch, num, seed: (-(batch["row"].numpy() + 1.0), -(batch["row"].numpy() + 0.5))  # type: ignore[method-assign]
    found = evaluate(model, data, num_samples=3, batch_size=2)
    assert found["bound_per_step"] == pytest.approx((1 + 2 + 3 + 4) / 9)
    assert found["importance_per_step"] == pytest.approx((0.5 + 1.5 + 2.5 + 3.5) / 9)
    assert found["bound_sequence_mean"] == pytest.approx((1 / 5 + 2 / 1 + 4 / 3) / 3)
    residuals = np.array([1, 2, 3, 4]) - 10 / 9 * np.array([5, 1, 0, 3])
    assert found["standard_error"] == pytest.approx(np.sqrt(4 / 3 * np.sum(residuals**2)) / 9)
    assert (found["num_samples"], found["num_sequences"], found["num_steps"]) == (3, 4, 9)


def test_the_size_of_a_batch_does_not_change_the_figures(rng: np.random.Generator) -> None:
    data = Sequences([(rng.random((n, 3)) < 0.4).astype(np.float32) for n in (5, 1, 3)])
    model = DeepMarkovModel.tiny()
    one, all_at_once = (evaluate(model, data, num_samples=4, batch_size=n) for n in (1, 3))
    for name in ("bound_per_step", "importance_per_step"):
        assert one[name] == pytest.approx(all_at_once[name], rel=1e-5)


def test_baselines_of_a_small_example() -> None:
    train, test = [np.array([[1.0], [1.0], [0.0]])], [np.array([[1.0], [0.0]])]
    p = 2.5 / 4
    assert train_mean_bernoulli(train, test) == pytest.approx(-(np.log(p) + np.log(1 - p)) / 2)
    on_on = 1.5 / 3  # of the two steps after an on, one is on
    assert per_feature_markov(train, test) == pytest.approx(-(np.log(p) + np.log(1 - on_on)) / 2)


def test_baselines_are_the_published_ones(data_folder: Path) -> None:
    train, test = (tfseq.load_dataset("jsb", split, data_dir=data_folder).x for split in ("train", "test"))
    assert train_mean_bernoulli(train, test) == pytest.approx(11.062, abs=0.003)  # smoothing of a note never heard differs
    assert per_feature_markov(train, test) == pytest.approx(10.469, abs=0.001)


def test_no_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="no steps"):
        evaluate(DeepMarkovModel.tiny(), Sequences([np.zeros((0, 3), np.float32)]))
