"""The recurrent density against NumPy loops and enumeration, and what it samples."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from scipy import stats

from tests import reference
from tfseq.models.recurrent_density import RecurrentDensity
from tfseq.ops import random


def perturbed(**settings: Any) -> RecurrentDensity:
    """A small model, every weight away from its start."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    model = RecurrentDensity.tiny(**settings)
    for weight in model.trainable_weights:
        weight.assign(weight.numpy() + rng.normal(0.0, 0.3, weight.shape))
    return model


def hidden_states(model: RecurrentDensity, x: np.ndarray) -> np.ndarray:
    """h_{t-1} of each step of an encoded x `[T, D]`, `[T, H]`."""
    outputs, _ = reference.stack(model.stack, reference.mlp(model.extract_x, x))
    return np.concatenate([np.zeros((1, outputs.shape[1])), outputs[:-1]])


def test_an_rnn_gmm_is_that_of_a_loop_in_numpy(rng: np.random.Generator) -> None:
    """Mixture of Gaussians over the whole frame: the logarithm of a sum, not a sum of logarithms."""
    model = perturbed(head="mixture", units=[4, 3], cell="gru", input_layers=1, output_layers=1, hidden_dim=5)
    lengths = (5, 1, 3)
    xs = [rng.normal(size=(n, 3)).astype(np.float32) for n in lengths]
    found = model.log_prob(xs).numpy()
    for row, x in enumerate(xs):
        raw = reference.dense(model.head, reference.mlp(model.emission, hidden_states(model, x.astype(float))))
        total = 0.0
        for t in range(len(x)):
            logits, mean, scale = np.split(raw[t], [2, 8])
            stddev = np.logaddexp(0.0, scale) + reference.MIN_STDDEV
            each = stats.norm.logpdf(x[t].astype(float), mean.reshape(2, 3), stddev.reshape(2, 3)).sum(-1)
            total += scipy.special.logsumexp(each + scipy.special.log_softmax(logits))
        assert found[row] == pytest.approx(total, rel=1e-4)  # float32 through five steps


@pytest.mark.parametrize("head", ["nade", "rbm", "bernoulli"])
def test_the_probabilities_of_all_sequences_sum_to_one(head: str) -> None:
    """Two steps of three binary features: 64 sequences."""
    model = perturbed(head=head)
    x = np.array(list(itertools.product([0.0, 1.0], repeat=6)), np.float32).reshape(64, 2, 3)
    log_prob = model.log_prob(x).numpy().astype(float)
    assert scipy.special.logsumexp(log_prob) == pytest.approx(0.0, abs=1e-5)  # float32 sums of 64 terms
    assert log_prob.std() > 0.1
    # and the samples have them: a chi-square test
    drawn = model.sample(3000, 2, seed=[1, 2]).numpy()
    cells = (drawn.reshape(3000, 6) @ 2.0 ** np.arange(5, -1, -1)).astype(int)
    assert reference.chi_square(cells, np.exp(log_prob)) > 1e-4


def test_an_rnn_rbm_has_the_likelihood_of_enumeration(rng: np.random.Generator) -> None:
    model = perturbed(head="rbm", head_units=4)
    x = (rng.random((2, 4, 3)) < 0.5).astype(np.float32)
    visible = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    hidden = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
    weights = reference.value(model.head.coupling)
    for row in range(2):
        raw = reference.dense(model.head, hidden_states(model, x[row].astype(float)))
        total = 0.0
        for t in range(4):
            b, c = np.split(raw[t], [3])
            log_joint = (visible @ b)[:, None] + (hidden @ c)[None] + visible @ weights @ hidden.T
            place = int(np.flatnonzero((visible == x[row, t]).all(1))[0])
            total += scipy.special.logsumexp(log_joint[place]) - scipy.special.logsumexp(log_joint)
        assert float(model.log_prob(x[row : row + 1])[0]) == pytest.approx(total, rel=1e-4)


def test_samples_are_those_of_a_loop_in_numpy() -> None:
    model = perturbed(head="normal", stddev=[2.0, 0.5, 1.0], mean=[0.0, 1.0, -1.0], units=[4, 4], residual=True)
    seeds, steps = np.array([[1, 2], [3, 4]], np.int32), 4
    found = model.sample(2, steps, seed=seeds).numpy()
    uniform = random.uniform(seeds, tf.range(steps), 3, 2).numpy().astype(float)  # salt of the emission
    mean_x, scale_x = np.array([0.0, 1.0, -1.0]), np.array([2.0, 0.5, 1.0])
    for row in range(2):
        standard = np.zeros((0, 3))
        for t in range(steps):
            hidden = hidden_states(model, np.concatenate([standard, np.zeros((1, 3))]))[t]
            mean, scale = np.split(reference.dense(model.head, hidden), 2)
            new = stats.norm.ppf(uniform[t, row], mean, np.logaddexp(0.0, scale) + reference.MIN_STDDEV)
            standard = np.concatenate([standard, new[None]])
        np.testing.assert_allclose(found[row], mean_x + scale_x * standard, rtol=1e-3, atol=1e-4)  # a draw feeds the next


def test_steps_of_the_filter_add_up_to_the_likelihood_and_forecasts_follow_its_state(rng: np.random.Generator) -> None:
    model = perturbed(head="normal", units=[4, 3], layer_norm=True, control_dim=2)
    x, u = rng.normal(size=(3, 5, 3)).astype(np.float32), rng.normal(size=(3, 5, 2)).astype(np.float32)
    state, total = model.init_state(3), 0.0
    for t in range(5):
        state = model.filter_step(x[:, t], state, u=u[:, t])
        total = total + state.pop("log_prob").numpy()
    np.testing.assert_allclose(total, model.log_prob(x, u=u), rtol=1e-5)
    assert state["particles"].shape[1] == 1  # nothing is hidden
    seed, future = np.array([[1, 2]] * 3, np.int32), np.zeros((3, 2, 2), np.float32)
    whole = model.forecast({"x": x, "u": u, "seed": seed}, num_steps=2, num_samples=2, future_u=future).numpy()
    alone = model.forecast({"x": x[1:2], "u": u[1:2], "seed": seed[1:2]}, num_steps=2, num_samples=2, future_u=future[1:2])
    np.testing.assert_allclose(whole[1], alone[0], rtol=1e-4, atol=1e-5)


def test_missing_features_leave_the_likelihood_of_the_others(rng: np.random.Generator) -> None:
    """At the last step nothing follows, so leaving a feature out integrates over it."""
    model = perturbed(head="mixture", missing=True, observation_dim=2)
    x = rng.normal(size=(1, 3, 2)).astype(np.float32)
    observed = np.ones(x.shape, bool)
    observed[0, 2, 1] = False
    found = float(model.log_prob(x, observed=observed)[0])
    grid = np.linspace(-15.0, 15.0, 3001, dtype=np.float32)
    many = np.repeat(x, len(grid), 0)
    many[:, 2, 1] = grid
    whole = model.log_prob(many, observed=np.ones(many.shape, bool)).numpy().astype(float)
    integral = scipy.special.logsumexp(whole) + np.log(grid[1] - grid[0])
    assert found == pytest.approx(integral, abs=1e-3)  # tails and the grid


@pytest.mark.parametrize(("arguments", "message"), [
    ({"units": []}, "`units`"), ({"units": [4, 0]}, "units"), ({"head": "gmm"}, "`head`"), ({"dropout": 1.0}, "dropout"),
    ({"head": "pen", "observation_dim": 4}, "3"), ({"hidden_dim": 0}, "hidden_dim"),
])  # fmt: skip
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentDensity.tiny(**arguments)


def test_imputing_needs_a_head_with_marginals() -> None:
    model = perturbed(head="nade")
    with pytest.raises(ValueError, match="`head` must have marginals"):
        model.impute(np.zeros((1, 2, 3), np.float32), observed=np.zeros((1, 2, 3), bool))
