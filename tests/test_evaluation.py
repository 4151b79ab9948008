"""Figures of `evaluate` from their definitions, and the baselines from theirs and from the published table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfseq
from tfseq.data.batching import Sequences
from tfseq.evaluation import (
    LEVELS,
    Climatology,
    RandomWalk,
    evaluate,
    per_feature_markov,
    score_forecasts,
    train_mean_bernoulli,
)
from tfseq.models.dmm import DeepMarkovModel
from tfseq.models.hmm import HiddenMarkovModel
from tfseq.models.vae import VariationalAutoencoder


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


class Gaussian:
    """Forecasts independent N(mean, stddev^2), whatever came before; keeps what it was given."""

    def __init__(self, mean: float = 0.0, stddev: float = 1.0) -> None:
        self.mean, self.stddev, self.given = mean, stddev, {}

    def forecast(self, batch: Any, num_steps: int, num_samples: int, seed: Any, **controls: np.ndarray) -> np.ndarray:
        for i, row in enumerate(batch["row"].numpy()):
            self.given[int(row)] = (batch["x"].numpy()[i, batch["mask"].numpy()[i]], {k: a[i] for k, a in controls.items()})
        rng = np.random.default_rng([*np.asarray(seed).tolist(), *batch["row"].numpy().tolist()])
        return rng.normal(self.mean, self.stddev, (len(batch["row"]), num_samples, num_steps, batch["x"].shape[-1]))


def test_scores_of_forecasts_follow_from_their_definitions(rng: np.random.Generator) -> None:
    data = Sequences([rng.normal(size=(n, 2)).astype(np.float32) for n in (5, 2, 3, 9)])
    forecaster = Gaussian()
    drawn = np.random.default_rng(1).normal(size=(3, 19, 2, 2))
    draw = forecaster.forecast
    forecaster.forecast = lambda batch, **k: (draw(batch, **k), drawn[batch["row"].numpy()])[1]  # type: ignore[method-assign]
    found = score_forecasts(forecaster, data, num_steps=2, num_samples=19, batch_size=10)
    rows = (0, 2, 3)  # the sequence of two steps has none to begin with
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(forecaster.given[i][0], data.x[row][:-2])
    crps_of, error_of, inside = np.zeros([3, 3, 2, 2])
    for i, t, d in np.ndindex(3, 2, 2):
        samples, x = drawn[i, :, t, d], data.x[rows[i]][-2 + t, d]
        spread = np.abs(samples[:, None] - samples).sum() / (2 * 19 * 18)
        crps_of[i, t, d] = np.abs(samples - x).mean() - spread
        error_of[i, t, d] = abs(np.sort(samples)[9] - x)
        inside[i, t, d] = np.sort(samples)[1] <= x <= np.sort(samples)[17]  # 2nd to 18th of 19: 80 %
    assert found["crps"] == pytest.approx(crps_of.mean())
    assert found["crps_standard_error"] == pytest.approx(crps_of.mean((1, 2)).std(ddof=1) / np.sqrt(3))
    assert found["forecast_error"] == pytest.approx(error_of.mean())
    assert found["coverage"][0.8] == pytest.approx(inside.mean())
    np.testing.assert_allclose(found["forecast_per_feature"]["crps"], crps_of.mean((0, 1)))
    np.testing.assert_allclose(found["forecast_per_feature"]["coverage"][0.8], inside.mean((0, 1)))
    assert found["forecast_protocol"] == (
        "the last 2 steps of each sequence given all steps before: 3 forecasts of 3 of 4 sequences, 19 samples each"
    )


def test_several_origins_are_blocks_from_the_end() -> None:
    data = Sequences([np.arange(n, dtype=np.float32)[:, None] for n in (7, 3)])
    forecaster = Gaussian()
    found = score_forecasts(forecaster, data, num_steps=2, num_samples=3, num_origins=9)
    assert [len(forecaster.given[i][0]) for i in range(4)] == [5, 3, 1, 1]
    assert "4 forecasts of 2 of 2 sequences" in found["forecast_protocol"]


def test_good_forecasts_cover_and_bad_ones_do_not(rng: np.random.Generator) -> None:
    data = Sequences(list(rng.normal(size=(300, 11, 2)).astype(np.float32)))
    good, narrow = (score_forecasts(Gaussian(0.0, scale), data, 10, 100, batch_size=300) for scale in (1.0, 0.5))
    for level in LEVELS:
        assert good["coverage"][level] == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 6000))
        inside = 2 * stats.norm.cdf(0.5 * stats.norm.ppf((1 + level) / 2)) - 1
        assert narrow["coverage"][level] == pytest.approx(inside, abs=0.03)
    assert good["crps"] == pytest.approx(1 / np.sqrt(np.pi), abs=4 * good["crps_standard_error"])  # E|X - X'| / 2
    assert narrow["crps"] > good["crps"]


def test_what_was_not_observed_is_not_scored(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 6, 2)).astype(np.float32)
    observed = rng.random(x.shape) < 0.7
    observed[:, -2:, 1] = False
    spoilt = np.where(observed, x, 1e9).astype(np.float32)
    found, wanted = (
        score_forecasts(Gaussian(), Sequences(list(values), observed=list(observed)), 2, 10)
        for values in (spoilt, np.where(observed, x, 0))
    )
    assert found["crps"] == wanted["crps"] < 10.0
    assert found["crps"] == pytest.approx(found["forecast_per_feature"]["crps"][0])
    assert np.isnan(found["forecast_per_feature"]["crps"][1])  # never observed
    with pytest.raises(ValueError, match="no observed value"):
        score_forecasts(Gaussian(), Sequences(list(x), observed=list(np.zeros_like(observed))), 2, 10)


def test_controls_of_the_steps_to_come_are_given(rng: np.random.Generator) -> None:
    data = Sequences(list(np.zeros((2, 5, 1), np.float32)), u=list(rng.normal(size=(2, 5, 3)).astype(np.float32)))
    forecaster = Gaussian()
    assert "controls given" in score_forecasts(forecaster, data, 2, 10)["forecast_protocol"]
    np.testing.assert_array_equal(forecaster.given[1][1]["future_u"], data.u[1][3:])  # type: ignore[index]


def as_batch(data: Sequences) -> dict[str, Any]:
    return {name: tf.constant(a) for name, a in data.padded().items()}


def test_climatology_draws_the_training_values_of_each_feature() -> None:
    train = Sequences(
        [np.array([[0, 5], [1, 6]], np.float32), np.array([[3, 9]], np.float32)],
        observed=[np.array([[True, True], [True, False]]), np.array([[True, True]])],
    )
    drawn = Climatology(train).forecast(as_batch(Sequences(list(np.zeros((2, 1, 2), np.float32)))), 3, 2000, [0, 1])
    assert drawn.shape == (2, 2000, 3, 2)
    for d, values in enumerate(([0, 1, 3], [5, 9])):  # 6 was not observed
        found, counts = np.unique(drawn[..., d], return_counts=True)
        assert found.tolist() == values
        np.testing.assert_allclose(counts / 12000, 1 / len(values), atol=0.02)  # four standard errors


def test_the_random_walk_adds_training_differences_to_the_last_observed_value() -> None:
    train = Sequences([np.array([[0.0], [1.0], [11.0]], np.float32)])  # differences 1 and 10
    data = Sequences(
        [np.array([[3.0], [7.0]], np.float32), np.array([[7.0], [0.0], [0.0]], np.float32)],
        observed=[np.ones((2, 1), bool), np.array([[True], [False], [False]])],
    )
    drawn = RandomWalk(train).forecast(as_batch(data), 2, 4000, [0, 1])[..., 0]
    for row, steps in ((0, (1, 2)), (1, (3, 4))):  # steps since the last observed value
        for h, num in enumerate(steps):
            found, counts = np.unique(drawn[row, :, h], return_counts=True)
            assert found.tolist() == [7 + num + 9 * k for k in range(num + 1)]
            np.testing.assert_allclose(counts / 4000, stats.binom.pmf(range(num + 1), num, 0.5), atol=0.032)
    assert set(np.unique(drawn[0, :, 1] - drawn[0, :, 0])) == {1.0, 10.0}


def test_baselines_depend_on_the_seed_and_the_row_alone(rng: np.random.Generator) -> None:
    data = Sequences([(rng.random((n, 2)) < 0.5).astype(np.float32) for n in (4, 3, 6)])
    for baseline in (Climatology(data), RandomWalk(data)):
        one, all_at_once, other = (score_forecasts(baseline, data, 2, 8, 2, n, seed) for n, seed in ((1, 0), (9, 0), (9, 1)))
        assert one["crps"] == pytest.approx(all_at_once["crps"], rel=1e-12)
        assert one["crps"] != other["crps"]
        drawn = baseline.forecast(as_batch(data), 5, 50, [0, 1])
        assert set(np.unique(drawn)) == {0.0, 1.0}


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
def test_evaluate_scores_forecasts_beside_their_baselines(rng: np.random.Generator) -> None:
    data = Sequences([rng.normal(size=(n, 2)).astype(np.float32) for n in (5, 6, 4)])
    model = HiddenMarkovModel.tiny(emission="normal", observation_dim=2)
    found = evaluate(model, data, forecast_steps=2, forecast_samples=10, baselines_from=data)
    again = evaluate(model, data, forecast_steps=2, forecast_samples=10, batch_size=1)
    assert found["crps"] == pytest.approx(again["crps"], rel=1e-5)
    assert set(found["forecast_baselines"]) == {"climatology", "random walk"}
    assert found["forecast_baselines"]["climatology"] == {
        k: v for k, v in score_forecasts(Climatology(data), data, 2, 10).items() if k != "forecast_protocol"
    }
    assert "baselines" not in found  # which are those of binary data
    log_prob = model.log_prob(data).numpy()
    assert found["log_prob_per_sequence"] == pytest.approx(log_prob.mean(), rel=1e-5)
    assert found["per_sequence_standard_error"] == pytest.approx(log_prob.std(ddof=1) / np.sqrt(3), rel=1e-4)
    assert found["log_prob_per_step"] == pytest.approx(-log_prob.sum() / 15, rel=1e-5)


class Bounded:
    """A model with bounds and a particle filter."""

    def bounds(self, batch: Any, num_samples: int, seed: Any) -> tuple[np.ndarray, np.ndarray]:
        row = batch["row"].numpy().astype(float)
        return -(row + 2.0), -(row + 1.0)

    def filter_log_prob(self, batch: Any, num_particles: int, seed: Any) -> np.ndarray:
        assert num_particles == 7 and np.shape(seed) == (2,)
        return -(batch["row"].numpy() + 0.5)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
def test_the_particle_filter_of_a_model_is_asked_by_its_own_signature(rng: np.random.Generator) -> None:
    model, data = VariationalAutoencoder.tiny(), Sequences([(rng.random((n, 3)) < 0.5).astype(np.float32) for n in (2, 1)])
    found = evaluate(model, data, num_samples=2, num_particles=3)
    again = evaluate(model, data, num_samples=2, num_particles=3, batch_size=1)
    assert found["fivo_per_step"] == pytest.approx(again["fivo_per_step"], rel=1e-5)
    assert found["num_particles"] == 3


def test_bounds_of_real_values_also_per_sequence_and_by_a_particle_filter() -> None:
    data = Sequences([np.full((n, 1), 0.5, np.float32) for n in (4, 2)])
    found = evaluate(Bounded(), data, num_samples=3, num_particles=7)  # type: ignore[arg-type]
    assert found["bound_per_step"] == pytest.approx((2 + 3) / 6)
    assert found["log_prob_per_sequence"] == pytest.approx(-2.5)
    assert found["per_sequence_standard_error"] == pytest.approx(np.std([2, 3], ddof=1) / np.sqrt(2))
    assert (found["fivo_per_step"], found["num_particles"]) == (pytest.approx((0.5 + 1.5) / 6), 7)
    residuals = np.array([0.5, 1.5]) - 2 / 6 * np.array([4, 2])
    assert found["fivo_standard_error"] == pytest.approx(np.sqrt(2 * np.sum(residuals**2)) / 6)
    assert "fivo_per_step" not in evaluate(Bounded(), data, num_samples=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "message"), [
    ({"forecast_steps": 3}, "below the length of some sequence"), ({"forecast_steps": -1}, "`forecast_steps`"),
    ({"forecast_steps": 1, "forecast_samples": 1}, "`forecast_samples`"),
    ({"forecast_steps": 1, "forecast_origins": 0}, "`forecast_origins`"), ({"num_particles": 5}, "no `filter_log_prob`"),
])  # fmt: skip
def test_a_forecast_that_cannot_be_is_an_error(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(HiddenMarkovModel.tiny(), Sequences([np.ones((3, 3), np.float32)]), **settings)


def test_symbols_and_models_that_do_not_forecast_have_no_crps() -> None:
    symbols = Sequences([np.array([0, 1, 2, 1], np.int32)])
    with pytest.raises(ValueError, match="0 for symbols .*no order"):
        evaluate(HiddenMarkovModel.tiny(emission="categorical"), symbols, forecast_steps=1)
    with pytest.raises(ValueError, match="0 for a Bounded, which does not forecast"):
        evaluate(Bounded(), Sequences([np.ones((3, 1), np.float32)]), forecast_steps=1)  # type: ignore[arg-type]
