"""The hidden Markov model: published figures, TFP as oracle, four trainings that never fall, and everything users ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfseq
from tfseq import training
from tfseq.checks import NotFiniteError
from tfseq.data.batching import Sequences
from tfseq.data.series import load_earthquakes
from tfseq.distributions import HiddenMarkovModel as Distribution
from tfseq.exporting import litert
from tfseq.models.hmm import HiddenMarkovModel
from tfseq.ops.tracing import is_compiled

pytestmark = pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
op_by_op = pytest.mark.usefixtures("eager")

EARTHQUAKES = load_earthquakes("train")
UMBRELLA = {"initial": [0.5, 0.5], "transition": [[0.7, 0.3], [0.3, 0.7]], "on": [0.9, 0.2]}
WEATHER: dict[str, Any] = {
    "initial_distribution": tfd.Categorical(probs=[0.8, 0.2]),
    "transition_distribution": tfd.Categorical(probs=[[0.7, 0.3], [0.2, 0.8]]),
    "observation_distribution": tfd.Normal(loc=[0.0, 15.0], scale=[5.0, 10.0]),
    "num_steps": 7,
}
FIXED = [[None, 0.25, None], [None, None, None], [0.0, 0.5, 0.5]]
# Families with data drawn for them: name -> hyper-parameters, and a draw of x.
FAMILIES: dict[str, dict[str, Any]] = {
    "bernoulli": {"emission": "bernoulli"},
    "categorical": {"emission": "categorical"},
    "multinomial": {"emission": "multinomial"},
    "poisson": {"emission": "poisson"},
    "full": {"emission": "normal", "covariance": "full"},
    "diag": {"emission": "normal", "covariance": "diag"},
    "spherical": {"emission": "normal", "covariance": "spherical"},
    "tied": {"emission": "normal", "covariance": "tied"},
    "autoregressive": {"emission": "normal", "covariance": "full", "num_lags": 1},
    "mixture": {"emission": "mixture"},
    "student-t": {"emission": "student-t"},
    "left-right": {"emission": "bernoulli", "transition": "left-right"},
    "tied-rows": {"emission": "poisson", "tied_transition": [[0, 1], [1, 0]]},
    "fixed": {
        "emission": "poisson",
        "fixed_transition": [[None, 0.25, None], [None, None, None], [0.0, 0.5, 0.5]],
        "num_states": 3,
    },
    "varying": {"emission": "poisson", "num_transitions": 2},
    "stationary": {"emission": "poisson", "initial": "stationary"},
}


def umbrella() -> HiddenMarkovModel:
    model = HiddenMarkovModel(observation_dim=1, num_states=2, emission="bernoulli", dtype="float64")
    model.initial.assign([UMBRELLA["initial"]])
    model.transition.assign(UMBRELLA["transition"])
    model.emission.table.assign([[p, 1.0 - p] for p in UMBRELLA["on"]])
    return model


def data_for(hyperparameters: dict[str, Any], rng: np.random.Generator) -> Sequences:
    """Five sequences of 12 to 3 steps whose level changes now and then."""
    lengths, emission = [12, 9, 8, 5, 3], hyperparameters["emission"]
    level = [np.cumsum(rng.random((n, 1)) < 0.3, 0) % 2 for n in lengths]
    if emission == "categorical":
        x = [
            np.where(rng.random(n) < 0.7, 2 * a[:, 0], rng.integers(4, size=n)).astype(np.int32)
            for n, a in zip(lengths, level, strict=True)
        ]
    elif emission == "bernoulli":
        x = [(rng.random((len(a), 2)) < 0.2 + 0.6 * a).astype(np.float32) for a in level]
    elif emission in ("poisson", "multinomial"):
        x = [rng.poisson(1.0 + 6.0 * a, (len(a), 2)).astype(np.float32) for a in level]
    else:
        x = [(10.0 + 3.0 * a + rng.normal(size=(len(a), 2))).astype(np.float32) for a in level]
    return Sequences(x, name="drawn")


def model_for(name: str, rng: np.random.Generator, **more: Any) -> tuple[HiddenMarkovModel, Sequences]:
    keras.utils.set_random_seed(0)
    hyperparameters = {"num_states": 2, "dtype": "float64", **FAMILIES[name], **more}
    data = data_for(hyperparameters, rng)
    return HiddenMarkovModel.from_data(data, **hyperparameters), data


# Published figures ---------------------------------------------------------------------------------------------------


@op_by_op
def test_the_umbrella_world_has_its_published_figures() -> None:
    model, x = umbrella(), np.array([[[1], [1], [0], [1], [1]]], np.float32)
    np.testing.assert_allclose(model.log_prob(x), [-3.3725020443], rtol=1e-10)
    path = model.posterior_mode(x)
    np.testing.assert_array_equal(path.states, [[0, 0, 1, 0, 0]])
    np.testing.assert_allclose(path.score, [-4.4590], atol=5e-5)
    np.testing.assert_allclose(model.posterior_marginals(x)[0, :, 0], [0.8673, 0.8204, 0.3075, 0.8204, 0.8673], atol=5e-5)


def test_the_weather_of_the_tfp_docstring() -> None:
    weather = Distribution(**WEATHER)
    np.testing.assert_allclose(weather.log_prob(tf.zeros([7])), -19.855635495548, rtol=1e-6)
    np.testing.assert_allclose(weather.mean(), [3, 6, 7.5, 8.25, 8.625, 8.8125, 8.90625], rtol=1e-6)
    temperatures = np.arange(-2.0, 12.0, 2.0, np.float32)
    np.testing.assert_array_equal(weather.posterior_mode(temperatures), [0, 0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(weather.log_prob(temperatures), -22.357755642, rtol=1e-6)


# Zucchini and MacDonald 2009, "Hidden Markov Models for Time Series", the fits of its chapter 3
@pytest.mark.parametrize(
    ("num_states", "initial", "log_prob", "rates", "criteria"),
    [
        (1, "free", -391.9189, None, None),
        (2, "free", -341.8787, [15.421, 26.018], None),
        (3, "free", -328.5275, [13.134, 19.713, 29.710], None),
        (2, "stationary", -342.3183, None, (692.64, 703.33)),
        (3, "stationary", -329.4603, None, (676.92, 700.98)),
    ],
)
def test_em_finds_the_published_fits_of_the_earthquakes(
    num_states: int, initial: str, log_prob: float, rates: list[float] | None, criteria: tuple[float, float] | None
) -> None:
    keras.utils.set_random_seed(0)
    model = HiddenMarkovModel.from_data(
        EARTHQUAKES, num_states=num_states, emission="poisson", initial=initial, dtype="float64", num_starts=4
    )
    model.compile(method="em")
    # the starts side by side have come near: after twenty more, the rates change by less than 1e-3
    history = model.fit(EARTHQUAKES, epochs=5 if num_states == 1 else 20, verbose=0).history["loss"]
    assert np.diff(history).max(initial=0.0) * 107 < 1e-8
    found = model.information_criteria(EARTHQUAKES)
    np.testing.assert_allclose(found["log_prob"], log_prob, atol=5e-4)
    if rates is not None:
        np.testing.assert_allclose(np.sort(model.emission.means()[:, 0]), rates, atol=2e-3)
    if criteria is not None:
        np.testing.assert_allclose((found["aic"], found["bic"]), criteria, atol=6e-3)


def test_the_gradient_finds_them_too() -> None:
    keras.utils.set_random_seed(0)
    model = HiddenMarkovModel.from_data(EARTHQUAKES, num_states=2, emission="poisson", dtype="float64", num_starts=4)
    model.compile(keras.optimizers.Adam(0.05))
    stream = tf.data.Dataset.from_tensors(model.as_batch(EARTHQUAKES)).repeat()
    model.fit(stream, steps_per_epoch=400, epochs=1, verbose=0)
    np.testing.assert_allclose(model.information_criteria(EARTHQUAKES)["log_prob"], -341.8787, atol=1e-2)


# TFP as oracle -------------------------------------------------------------------------------------------------------


@op_by_op
@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson", "full", "diag", "mixture", "student-t", "varying"])
def test_the_distribution_and_tfps_give_the_models_answers(name: str, rng: np.random.Generator) -> None:
    model, data = model_for(name, rng)
    x = np.asarray(data.x[0])[None]
    ours = model.distribution(x.shape[1])
    theirs = tfd.HiddenMarkovModel(
        ours.initial_distribution,
        ours.transition_distribution,
        ours.observation_distribution,
        x.shape[1],
        time_varying_transition_distribution=name == "varying",
    )
    x_typed = tf.cast(x, ours.dtype)
    for distribution in (ours, theirs):
        np.testing.assert_allclose(distribution.log_prob(x_typed), model.log_prob(x), rtol=1e-8)
        probs = distribution.posterior_marginals(x_typed).probs_parameter()
        np.testing.assert_allclose(probs, model.posterior_marginals(x), atol=1e-8)
        np.testing.assert_array_equal(distribution.posterior_mode(x_typed), model.posterior_mode(x).states)
    np.testing.assert_allclose(ours.two_slice_marginals(x_typed), model.two_slice_marginals(x), atol=1e-8)
    np.testing.assert_allclose(ours.leave_one_out(x_typed).log_prob(x_typed), model.leave_one_out(x).log_prob, rtol=1e-6)


def test_the_distribution_keeps_tfps_batches_masks_and_composition(rng: np.random.Generator) -> None:
    x = rng.normal(5.0, 8.0, (4, 3, 7)).astype(np.float32)
    missing = rng.random((3, 7)) < 0.3
    batched = {
        **WEATHER,
        "initial_distribution": tfd.Categorical(probs=rng.dirichlet([1, 1], 3).astype(np.float32)),
        "transition_distribution": tfd.Categorical(probs=rng.dirichlet([1, 1], (3, 2)).astype(np.float32)),
    }
    for arguments in (WEATHER, batched):
        ours, theirs = Distribution(**arguments), tfd.HiddenMarkovModel(**arguments)
        np.testing.assert_allclose(ours.log_prob(x, mask=missing), theirs.log_prob(x, mask=missing), rtol=1e-5)
        np.testing.assert_array_equal(ours.posterior_mode(x, missing), theirs.posterior_mode(x, missing))
        marginals = [d.posterior_marginals(x, mask=missing).probs_parameter() for d in (ours, theirs)]
        np.testing.assert_allclose(*marginals, atol=1e-5)
        assert ours.sample(2, seed=1).shape == theirs.sample(2, seed=1).shape
        assert ours.posterior_sample(x, [5], mask=missing, seed=1).shape == (5, 4, 3, 7)
    joint = tfd.JointDistributionSequential(
        [
            tfd.Normal(0.0, 1.0),
            lambda a: Distribution(**{**WEATHER, "observation_distribution": tfd.Normal([0.0, 15.0] + a[..., None], 5.0)}),
        ]
    )
    assert np.isfinite(joint.log_prob(joint.sample(seed=1)))


def test_nan_at_a_missing_step_of_the_distribution_has_no_gradient() -> None:
    loc = tf.Variable([0.0, 15.0])
    x, missing = np.array([1.0, np.nan, 3.0, 4.0, 5.0, 6.0, 7.0], np.float32), np.arange(7) == 1
    with tf.GradientTape() as tape:
        value = Distribution(**{**WEATHER, "observation_distribution": tfd.Normal(loc, 5.0)}).log_prob(x, mask=missing)
    assert np.isfinite(tape.gradient(value, loc)).all()


def test_a_sequence_of_another_length_than_num_steps_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="must have 7 steps"):
        Distribution(**WEATHER).log_prob(tf.zeros([6]))


# Training ------------------------------------------------------------------------------------------------------------


# M steps with a prior are tests of each family (`test_emissions.py`); here MAP is that of every kind of chain
PENALISED = ("full", "mixture", "left-right", "tied-rows", "fixed", "varying", "stationary")


@op_by_op
@pytest.mark.parametrize(("name", "method"), [
    (name, method) for name in FAMILIES for method in ("em", "map", "vb") if method != "map" or name in PENALISED
])  # fmt: skip
def test_the_objective_never_falls(name: str, method: str, rng: np.random.Generator) -> None:
    prior = {} if method == "em" else {"transition_concentration": 1.5, "initial_concentration": 2.0, "sticky": 0.5}
    model, data = model_for(name, rng, **prior)
    if method not in model.methods:
        pytest.skip(f"{name} has no closed form for {method}")
    model.compile(method=method)
    batch = tf.data.Dataset.from_tensors(model.as_batch(data)).repeat()
    history = np.array(model.fit(batch, steps_per_epoch=1, epochs=12, verbose=0).history["loss"])
    steps = int(data.lengths.sum())
    assert np.isfinite(history).all()
    assert np.diff(history).max() * steps < 1e-8  # nats
    assert history[-1] < history[0]


@op_by_op
@pytest.mark.parametrize("method", ["gradient", "em", "map", "vb"])
def test_batches_padding_and_order_do_not_change_what_is_learned(method: str, rng: np.random.Generator) -> None:
    weights = []
    for kind in ("whole", "batches", "padded"):
        model, data = model_for("diag", np.random.default_rng(3))
        model.compile(keras.optimizers.SGD(0.05), method=method)
        batch = model.as_batch(data)
        if kind == "padded":
            batch = {k: np.pad(v, [[0, 0], [0, 4], *[[0, 0]] * (v.ndim - 2)]) if k != "row" else v for k, v in batch.items()}
            batch["x"] = np.where(batch["mask"][..., None], batch["x"], np.nan)
        stream = tf.data.Dataset.from_tensors(batch)
        if kind == "batches" and method != "gradient":
            order = np.array([4, 0, 3, 1, 2])
            parts = [{k: v[order[i : i + 2]] for k, v in batch.items()} for i in (0, 2, 4)]
            spec = {k: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for k, v in batch.items()}
            stream = tf.data.Dataset.from_generator(lambda parts=parts: iter(parts), output_signature=spec)
            stream = stream.apply(tf.data.experimental.assert_cardinality(3))
        model.fit(stream, epochs=4, verbose=0)
        weights.append([w.numpy() for w in model.trainable_weights])
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)


@op_by_op
def test_stochastic_em_comes_near_to_em(rng: np.random.Generator) -> None:
    likelihoods = []
    for step_size in (None, 0.6):
        model, data = model_for("poisson", np.random.default_rng(1))
        model.compile(method="em", step_size=step_size)
        model.fit(data, epochs=10, batch_size=2, verbose=0, shuffle=True)
        likelihoods.append(float(tf.reduce_sum(model.log_prob(data))))
    assert likelihoods[1] > likelihoods[0] - 0.05 * abs(likelihoods[0])


def test_map_ends_where_the_penalised_likelihood_is_flat(rng: np.random.Generator) -> None:
    model, data = model_for("bernoulli", rng, transition_concentration=3.0, initial_concentration=2.0, emission_prior=(2.0, 3.0))
    model.compile(method="map")
    batch = model.complete(model.as_batch(data))
    model.fit(data, epochs=100, batch_size=5, verbose=0)

    def objective() -> float:
        return float(tf.reduce_sum(model.terms(batch).log_lik) - model.penalty())

    best = objective()
    # the mode of a density of probabilities: along it the density of logits is not flat, but that of probabilities is
    for table in (model.transition, model.emission.table):
        kept, probs = table.logits.numpy(), np.exp(table.log_probs().numpy())
        others = probs.shape[1] - 1
        for row in range(len(probs)):
            for step in (-1e-3, 1e-3):  # of the first probability, which the others share
                moved = kept.copy()
                moved[row] = np.log(probs[row] + step * np.array([1.0] + [-1.0 / others] * others))
                table.logits.assign(moved)
                assert objective() < best
        table.logits.assign(kept)


@op_by_op
def test_vb_bounds_the_evidence_of_the_bayesian_model() -> None:
    """One state, where the evidence is known: of Beta-Bernoulli, B(a + on, b + off) / B(a, b)."""
    x = np.array([[[1], [0], [0], [1], [1], [1]]], np.float32)
    model = HiddenMarkovModel(observation_dim=1, num_states=1, emission="bernoulli", emission_prior=(2.0, 3.0), dtype="float64")
    model.compile(method="vb")
    history = model.fit(x, epochs=3, verbose=0).history["loss"]
    evidence = tfd.BetaBinomial(6.0, 2.0, 3.0).log_prob(4.0) - np.log(15.0)
    np.testing.assert_allclose(-history[-1] * 6, evidence, rtol=1e-6)


@op_by_op
def test_known_states_are_honoured_by_every_method(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 30, 1)).astype(np.float32)
    y = np.where(x[..., 0] > 0.0, 1, 0)
    y[:, ::3] = -1  # a third is unknown
    for method in ("gradient", "em", "map", "vb"):
        keras.utils.set_random_seed(1)
        model = HiddenMarkovModel(observation_dim=1, num_states=2, dtype="float64", mean=[0.0], stddev=[1.0])
        model.compile(keras.optimizers.Adam(0.3), method=method)
        model.fit(x, y, epochs=10, verbose=0)
        assert np.diff(model.emission.means()[:, 0]) > 1.0  # state 1 is above state 0, as labelled
    marginals = model.posterior_marginals(x, y=y).numpy()
    np.testing.assert_allclose(marginals[y >= 0], np.eye(2)[y[y >= 0]], atol=1e-12)


@op_by_op
def test_fixed_and_tied_entries_stay_so_under_every_method(rng: np.random.Generator) -> None:
    for method in ("gradient", "em", "map", "vb"):
        for name in ("fixed", "tied-rows", "left-right"):
            model, data = model_for(name, rng)
            model.compile(keras.optimizers.Adam(0.1), method=method)
            model.fit(data, epochs=5, batch_size=5, verbose=0)
            probs = np.exp(model.transition.log_probs())
            np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-9)
            if name == "fixed":
                np.testing.assert_allclose(probs[0, 1], 0.25, rtol=1e-6)
                np.testing.assert_allclose(probs[2], [0.0, 0.5, 0.5], rtol=1e-6)
            if name == "tied-rows":
                np.testing.assert_allclose(probs[0, 0], probs[1, 1], rtol=1e-9)
            if name == "left-right":
                assert probs[1, 0] == 0.0
    assert model_for("fixed", rng)[0].transition.num_parameters == 3
    assert model_for("tied-rows", rng)[0].transition.num_parameters == 1


def test_em_under_two_replicas_sums_their_statistics(strategy: tf.distribute.Strategy) -> None:
    weights = []
    for scope in (tf.distribute.get_strategy().scope(), strategy.scope()):
        with scope:
            model, data = model_for("poisson", np.random.default_rng(0))
            model.compile(method="em")
        model.fit(tf.data.Dataset.from_tensors(model.as_batch(data)).unbatch().batch(4), epochs=3, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-8)


@op_by_op
@pytest.mark.parametrize("method", ["em", "vb"])
def test_a_resumed_run_of_closed_form_updates_is_the_uninterrupted_one(method: str, tmp_path: Any) -> None:
    found = []
    for folder, limits in (("whole", [np.inf]), ("parts", [1e-9, 1e-9, np.inf])):
        for i, limit in enumerate(limits):
            model, data = model_for("poisson", np.random.default_rng(0))
            run = tfseq.train(
                model,
                data,
                out=tmp_path / folder,
                epochs=4,
                batch_size=2,
                method=method,
                max_minutes=limit,
                resume=i > 0,
                progress=False,
            )
        found.append(run.model.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@op_by_op
def test_several_starts_side_by_side_are_what_each_would_be_alone(rng: np.random.Generator) -> None:
    """The wide E step of R models has the statistics of R E steps."""
    model, data = model_for("diag", rng)
    batch = model.complete(model.as_batch(data))
    wide = model._parameters(3)
    log_prob, statistics = model._expectation(batch, wide, None)
    for i in range(3):
        for own, several in zip(model._all.parts, wide.parts, strict=True):
            for a, b in zip(own.weights, several.weights, strict=True):
                share = b.shape[0] // 3
                a.assign(b[i * share : (i + 1) * share])
        alone, wanted = model._expectation(batch, model._all, None)
        np.testing.assert_allclose(tf.reshape(log_prob, [3, -1])[i], alone, rtol=1e-10)
        for a, b in zip(wanted, statistics, strict=True):
            share = b.shape[0] // 3
            np.testing.assert_allclose(b[i * share : (i + 1) * share], a, rtol=1e-8, atol=1e-10)


@op_by_op
@pytest.mark.parametrize("method", ["gradient", "em", "vb"])
def test_sequences_of_one_step_train(method: str) -> None:
    for num_states in (1, 2):
        x = np.arange(8.0, dtype=np.float32).reshape(8, 1, 1)
        model = HiddenMarkovModel.from_data(x, num_states=num_states)
        model.compile(keras.optimizers.SGD(0.01), method=method)
        assert np.isfinite(model.fit(x, epochs=2, verbose=0).history["loss"]).all()
        model.train_on_batch({"x": x})


@op_by_op
def test_a_pass_that_was_interrupted_teaches_nothing(rng: np.random.Generator) -> None:
    found = []
    for interrupted in (False, True):
        model, data = model_for("diag", np.random.default_rng(0))
        model.compile(method="em")
        if interrupted:

            def stop(batch: int, logs: Any) -> None:
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                model.fit(data, batch_size=1, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)])
        model.fit(data, epochs=2, batch_size=5, verbose=0)
        found.append(model.emission.means().numpy())
    np.testing.assert_allclose(*found, rtol=1e-9)


@op_by_op
def test_variational_bayes_begins_where_another_method_ended(rng: np.random.Generator) -> None:
    for method in ("em", "gradient"):
        model, data = model_for("diag", rng)
        model.compile(keras.optimizers.Adam(0.3), method=method)
        model.fit(data, epochs=15, batch_size=5, verbose=0)
        before = model.emission.means().numpy()
        model.compile(method="vb")
        model.fit(data, epochs=1, batch_size=5, verbose=0)
        np.testing.assert_allclose(model.emission.means(), before, atol=1.0)  # of data whose levels are 3 apart


@op_by_op
def test_variational_bayes_begins_with_the_parameters_of_online_em(rng: np.random.Generator) -> None:
    model, data = model_for("diag", rng)
    model.compile(method="em", step_size=0.7)
    model.fit(data, epochs=2, batch_size=5, verbose=0)
    model.compile(method="vb")
    transition = model._all.split([a.numpy() for a in model.learned])[1]
    np.testing.assert_allclose(transition / transition.sum(1, keepdims=True), np.exp(model.transition.log_probs()), rtol=1e-6)


@op_by_op
def test_streams_are_held_to_the_rules_of_arrays() -> None:
    x = np.zeros((2, 3, 2), np.float32)
    tails = HiddenMarkovModel(observation_dim=2, num_states=2, emission="student-t")
    tails.compile(method="em")
    observed = np.ones(x.shape, bool)
    observed[0, 1, 0] = False
    with pytest.raises(ValueError, match="`observed` must be in full or not at all"):
        tails.fit(tf.data.Dataset.from_tensors({"x": x, "observed": observed}), verbose=0)
    with pytest.raises(ValueError, match="`y` must hold states"):
        tails.fit(tf.data.Dataset.from_tensors({"x": x, "y": np.full((2, 3), 7, np.int32)}), verbose=0)


# Inference -----------------------------------------------------------------------------------------------------------


@op_by_op
@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson", "full", "mixture"])
def test_what_was_not_observed_is_summed_out(name: str, rng: np.random.Generator) -> None:
    """A missing step: p(x_-t) = sum or integral over x_t, so log p(x_t | x_-t) = log p(x) - log p(x_-t)."""
    model, data = model_for(name, rng)
    x = np.asarray(data.x[0])[None]
    one_out = model.leave_one_out(x)
    for t in range(x.shape[1]):
        observed = np.ones(x.shape, bool)
        observed[:, t] = False
        hidden = np.array(x)
        hidden[:, t] = 0 if x.dtype.kind == "i" else np.nan
        without = model.log_prob(hidden, observed=observed)
        np.testing.assert_allclose(one_out.log_prob[:, t], model.log_prob(x) - without, rtol=1e-6)
        marginals = model.posterior_marginals(hidden, observed=observed)
        np.testing.assert_allclose(one_out.probs[:, t], marginals[:, t], atol=1e-9)


@op_by_op
def test_imputed_values_have_the_conditional_distribution(rng: np.random.Generator) -> None:
    model, _ = model_for("full", rng)
    model.emission.assign([[0.0, 0.0], [4.0, 4.0]], [[[1.0, 0.8], [0.8, 1.0]]] * 2)
    x = np.array([[[0.0, 0.5], [np.nan, 1.5], [np.nan, np.nan], [4.0, 3.0]]], np.float32)
    drawn = model.impute(x, observed=np.isfinite(x), num_samples=20_000, seed=[0, 1]).numpy()[0]
    np.testing.assert_array_equal(drawn[:, 0], np.broadcast_to(x[0, 0], [20_000, 2]))
    probs = model.posterior_marginals(x, observed=np.isfinite(x)).numpy()[0]
    conditional = np.array([0.0, 4.0]) + 0.8 * (1.5 - np.array([0.0, 4.0]))
    np.testing.assert_allclose(drawn[:, 1, 0].mean(), probs[1] @ conditional, atol=0.06)  # five standard errors
    np.testing.assert_allclose(drawn[:, 2].mean(0), [probs[2] @ [0.0, 4.0]] * 2, atol=0.1)


@op_by_op
@pytest.mark.parametrize("name", ["poisson", "varying", "diag", "autoregressive"])
def test_forecasts_have_the_predictive_distribution(name: str, rng: np.random.Generator) -> None:
    model, data = model_for(name, rng)
    num = 20_000
    drawn = model.forecast(data, num_steps=3, num_samples=num, seed=[0, 1]).numpy()
    if name == "autoregressive":
        with pytest.raises(ValueError, match="`predictive` needs an emission without `num_lags`"):
            model.predictive(data)
        # one step ahead: the state's regression on the last observation
        last = np.stack([a[-1] for a in data.x])
        weights = model.emission.weights_of_mean.numpy()
        scaled = (last - model.emission.data_mean) / model.emission.data_stddev
        means = (
            weights[:, 0] + np.einsum("bd,kde->bke", scaled, weights[:, 1:])
        ) * model.emission.data_stddev + model.emission.data_mean
        now = np.stack([a[n - 1] for a, n in zip(model.filter(data).filtered.numpy(), data.lengths, strict=True)])
        probs = now @ np.exp(model.transition.log_probs())
        wanted, found = np.einsum("bk,bkd->bd", probs, means), drawn[:, :, 0].mean(1)
    else:
        predictive = model.predictive(data, num_steps=3)
        np.testing.assert_allclose(tf.reduce_sum(predictive.probs, -1), 1.0, atol=1e-9)
        wanted, found = predictive.mean, drawn.mean(1)
    np.testing.assert_allclose(found, wanted, atol=6.0 * drawn.std() / np.sqrt(num))


@op_by_op
def test_prior_samples_have_the_prior_marginals(rng: np.random.Generator) -> None:
    model, _ = model_for("categorical", rng)
    x, states = model.sample(20_000, 5, seed=[0, 1], return_states=True)
    marginal = np.exp(model.initial.log_probs()[0])
    probs = np.exp(model.transition.log_probs())
    for t in range(5):
        np.testing.assert_allclose(np.bincount(states[:, t], minlength=2) / 20_000, marginal, atol=0.02)
        wanted = marginal @ model.emission.means().numpy()
        np.testing.assert_allclose(np.bincount(x[:, t], minlength=len(wanted)) / 20_000, wanted, atol=0.02)
        marginal = marginal @ probs


@op_by_op
def test_the_filter_step_takes_missing_features(rng: np.random.Generator) -> None:
    model, data = model_for("full", rng)
    x = np.asarray(data.x[0])[None]
    observed = rng.random(x.shape) < 0.6
    filtered, state = model.filter(x, observed=observed), model.init_state(1)
    for t in range(x.shape[1]):
        state = model.filter_step(x[:, t], state, observed=observed[:, t])
        np.testing.assert_allclose(state["probs"], filtered.filtered[:, t], atol=1e-9)  # float64 rounding
        np.testing.assert_allclose(state["log_prob"], filtered.log_prob[:, t], atol=1e-9)


@op_by_op
@pytest.mark.parametrize("name", ["bernoulli", "categorical", "autoregressive", "varying"])
def test_the_filter_step_by_step_is_the_filter(name: str, rng: np.random.Generator) -> None:
    model, data = model_for(name, rng)
    x = np.asarray(data.x[0])[None]
    filtered, state = model.filter(x), model.init_state(1)
    for t in range(x.shape[1]):
        state = model.filter_step(x[:, t], state)
        np.testing.assert_allclose(state["log_prob"], filtered.log_prob[:, t], rtol=1e-7)
        np.testing.assert_allclose(state["probs"], filtered.filtered[:, t], atol=1e-9)
    with pytest.raises(ValueError, match=r"`state` must be a dict of .*; received \['probs'\]"):
        model.filter_step(x[:, 0], {"probs": state["probs"]})


def test_controls_move_the_chain_and_the_emission() -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(1, 100, 1)).astype(np.float32)
    states = (u[..., 0] > 0.0).astype(int)
    x = (3.0 * states[..., None] + 2.0 * u + 0.1 * rng.normal(size=(1, 100, 1))).astype(np.float32)
    keras.utils.set_random_seed(0)
    data = Sequences([x[0]], u=[u[0]])
    model = HiddenMarkovModel.from_data(data, num_states=2, controls="both")
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(tf.data.Dataset.from_tensors(model.as_batch(data)).repeat(), steps_per_epoch=200, verbose=0)
    with_u = float(model.log_prob(x, u=u)[0])
    assert with_u > float(model.log_prob(x, u=np.zeros_like(u))[0]) + 100.0  # a nat a step
    future = np.full((1, 2, 1), 2.0, np.float32)
    high, low = (model.predictive(x, num_steps=2, u=u, future_u=sign * future).probs.numpy() for sign in (1.0, -1.0))
    assert np.abs(high - low).max() > 0.8
    drawn = model.forecast(x, num_steps=2, num_samples=4000, u=u, future_u=future).numpy()[0]
    mean = model.predictive(x, num_steps=2, u=u, future_u=future).mean
    np.testing.assert_allclose(drawn.mean(0), mean[0], atol=5.0 * drawn.std() / np.sqrt(4000))
    state = model.init_state(1)
    filtered = model.filter(x, u=u)
    for t in range(3):
        state = model.filter_step(x[:, t], state, u=u[:, t])
        np.testing.assert_allclose(state["probs"], filtered.filtered[:, t], atol=1e-4)  # float32, in which both recur


def test_controls_move_free_entries_alone(rng: np.random.Generator) -> None:
    model = HiddenMarkovModel.tiny(fixed_transition=FIXED, control_dim=2, controls="transition", dtype="float64")
    u = tf.constant(rng.normal(size=(1, 4, 2)))
    table = np.exp(model.transition.log_probs())
    np.testing.assert_allclose(np.exp(model._controlled(u, tf.constant(5))), np.broadcast_to(table, (1, 4, 3, 3)), atol=1e-12)
    weights = rng.normal(size=(2, 3, 3))
    model.control_weights.assign(weights)
    with tf.GradientTape() as tape:
        logs = model._controlled(u, tf.constant(5))
        total = tf.reduce_sum(tf.where(tf.math.is_finite(logs), logs, 0.0))
    probs = np.exp(logs)
    np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(probs[..., 0, 1], 0.25, rtol=1e-6)
    np.testing.assert_allclose(probs[..., 2, :], np.broadcast_to([0.0, 0.5, 0.5], (1, 4, 3)), rtol=1e-6)
    odds = np.exp(np.einsum("btu,uj->btj", u, weights[:, 1])) * table[1]
    np.testing.assert_allclose(probs[..., 1, :], odds / odds.sum(-1, keepdims=True), rtol=1e-9)
    assert np.isfinite(tape.gradient(total, model.control_weights.value)).all()


def test_compiled_with_xla_nothing_changes(rng: np.random.Generator) -> None:
    found = []
    for jit_compile in (False, True):
        model, data = model_for("full", np.random.default_rng(0), dtype="float32")
        model.compile(method="em", jit_compile=jit_compile)
        model.fit(data, epochs=3, batch_size=5, verbose=0)
        found.append([*model.posterior(data), *model.posterior_mode(data), model.log_prob(data)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_xla_is_chosen_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HiddenMarkovModel.tiny()
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(HiddenMarkovModel, "xla_pays", lambda model, *numbers: not asked.append(numbers))
    x = list(np.zeros([5, 6, 3], np.float32))
    assert training._xla_pays(model, Sequences(x), 10, 2, None)  # batches of 2, and of 1
    assert training._xla_pays(model, Sequences(x), 10, 20, None)
    assert asked == [(50, 6, 2), (50, 6, 1)]
    assert not training._xla_pays(model, Sequences([x[0], x[1][:3]]), 10, 2, None)  # a batch by lengths has its own shape
    monkeypatch.undo()
    for method, step_size, work in (("em", None, True), ("em", 0.9, False), ("gradient", None, False)):
        model.compile("sgd", method=method, step_size=step_size)
        enough = int(2e9 / (10 * model.num_states**2)) + 1
        assert (model.xla_pays(enough, 10, 1), model.xla_pays(enough, 10, 2)) == (work, False)


def test_training_by_xla_is_the_same_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = Sequences(list((np.random.default_rng(0).random((5, 6, 3)) < 0.4).astype(np.float32)))
    ways, found = [], []
    expectation = HiddenMarkovModel.expectation

    def seen(model: HiddenMarkovModel, batch: Any) -> Any:
        ways.append(is_compiled())
        return expectation(model, batch)

    monkeypatch.setattr(HiddenMarkovModel, "expectation", seen)
    monkeypatch.setattr(HiddenMarkovModel, "xla_pays", lambda *_: True)

    def train(out: Path | None, **options: Any) -> HiddenMarkovModel:
        keras.utils.set_random_seed(0)
        model = HiddenMarkovModel.tiny()
        settings = {"method": "em", "batch_size": 5, "schedule": "constant", "progress": False, "checkpoint_minutes": 0.0}
        run = tfseq.train(model, data, data, out=out, **{**settings, "epochs": 3, **options})
        assert not run.model.jit_compile
        found.append(run.model.get_weights())
        return model

    train(None, jit_compile=False)
    model = train(tmp_path, epochs=2)
    monkeypatch.setattr(HiddenMarkovModel, "xla_pays", lambda *_: False)  # what was decided stays, else numbers would change
    train(tmp_path, epochs=3, resume=True)
    assert ways == [False, True, True]  # each was traced once
    for a, b in zip(found[0], found[2], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)  # float32 sums in another order, three passes
    wrong = {"x": np.full([1, 2, 3], np.nan, np.float32), "mask": np.ones([1, 2], bool)}
    assert not model.jit_compile
    with pytest.raises(ValueError, match="`x` must be finite"):  # checked again
        model.evaluate(tf.data.Dataset.from_tensors(wrong), verbose=0)


def test_training_by_xla_names_what_it_cannot_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HiddenMarkovModel, "xla_pays", lambda *_: True)
    model = HiddenMarkovModel.tiny(num_states=2, fixed_transition=[[0.0, 1.0], [None, None]])
    before = [w.numpy() for w in model.trainable_weights]
    labels = [np.array(y, np.int32) for y in ([0, 1, 1], [0, 0, 1], [1, 1, 1])]
    data = Sequences(list(np.zeros([3, 3, 3], np.float32)), y=labels)
    with pytest.raises(NotFiniteError, match=r"not finite at batch 1 of epoch 1: log_lik of 1 \(the batch has"):
        tfseq.train(model, data, method="em", epochs=2, progress=False)
    for weight, value in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_information_criteria_choose_the_number_of_states() -> None:
    keras.utils.set_random_seed(0)
    model, table = HiddenMarkovModel.select_num_states(EARTHQUAKES, [1, 2, 3], emission="poisson", epochs=5, num_starts=2)
    assert model.num_states == min(table, key=lambda k: table[k]["bic"])
    assert [table[k]["num_parameters"] for k in (1, 2, 3)] == [1, 5, 11]


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_states": 0}, "`num_states` must be a whole number of at least 1"),
        ({"emission": "gauss"}, "`emission` must be one of"),
        ({"emission": "poisson", "num_lags": 1}, "`num_lags` is for emission='normal'"),
        ({"emission": "poisson", "control_dim": 1}, "`controls` must be 'transition'"),
        ({"emission_prior": (1.0,)}, r"`emission_prior` must be positive numbers \(kappa, dof\)"),
        ({"emission_prior": (-1.0, 1.0)}, "`emission_prior` must be positive"),
        (
            {"fixed_transition": [[0.5, 0.6], [None, None]], "num_states": 2},
            "`fixed_transition` must be probabilities that leave",
        ),
        ({"fixed_transition": [[0.5, 0.5]], "num_states": 2}, "`fixed_transition` must have shape"),
        ({"tied_transition": [[0, 1], [0, 2]], "num_states": 2}, "`tied_transition` that share a label"),
        ({"sticky": -1.0}, "`sticky` must be at least 0"),
        ({"transition": "left-right", "initial": "stationary"}, "leave theirs out"),
        ({"transition_concentration": 0.0}, "`transition_concentration` must be above 0"),
        ({"fixed_transition": [0.5, 0.5]}, r"`fixed_transition` must have shape \[3, 3\]; received \[2\]"),
        ({"fixed_transition": [[0.5, 0.5], [None]]}, r"`fixed_transition` must have shape \[3, 3\]"),
        ({"fixed_initial": 0.5}, r"`fixed_initial` must have shape \[3\]; received \[\]"),
        ({"tied_transition": [[0, None], [1, 0]], "num_states": 2}, "`tied_transition` must hold a number everywhere"),
        ({"tied_transition": [[0, 1], [0]]}, r"`tied_transition` must have shape \[3, 3\]"),
        (
            {"initial": "stationary", "fixed_transition": [[None, None, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]]},
            r"`initial='stationary'` needs .* have several, as the states \[\[0, 1\], \[2\]\] lead to no others",
        ),
    ],
)
def test_wrong_arguments_are_a_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiddenMarkovModel(**{"observation_dim": 2, **arguments})


def test_closed_forms_that_do_not_exist_are_a_clear_error() -> None:
    neural = HiddenMarkovModel.tiny(emission="neural", hidden_dim=2)
    with pytest.raises(ValueError, match=r"`method` must be one of \['gradient'\] for this model; .*neural emission"):
        neural.compile(method="em")
    with pytest.raises(ValueError, match="`step_size` must lie in"):
        HiddenMarkovModel.tiny().compile(method="em", step_size=0.3)


@op_by_op
@pytest.mark.parametrize("emission", ["bernoulli", "categorical", "multinomial", "mixture"])
def test_several_starts_have_the_models_dtype(emission: str) -> None:
    """They are made when the constructor, and with it its dtype policy, is over."""
    x = [np.array([0, 1, 2, 1])] if emission == "categorical" else [np.array([[0.0], [1.0], [0.0], [1.0]])]
    model = HiddenMarkovModel.from_data({"x": x}, emission=emission, num_states=2, num_starts=2, dtype="float64")
    assert {w.dtype for w in model._parameters(2).emission.weights} == {"float64"}


@op_by_op
def test_values_a_family_cannot_produce_are_a_clear_error() -> None:
    counts = HiddenMarkovModel(observation_dim=1, emission="poisson")
    with pytest.raises(ValueError, match="whole number of at least 0 .*received -1"):
        counts.log_prob(np.full((1, 3, 1), -1.0, np.float32))
    symbols = HiddenMarkovModel(observation_dim=3, emission="categorical")
    with pytest.raises(ValueError, match="a symbol from 0 to 2 everywhere; received 3"):
        symbols.log_prob(np.full((1, 3), 3))
    with pytest.raises(ValueError, match="`y` must hold states from 0 to 2"):
        symbols.log_prob(np.zeros((1, 3), int), y=np.full((1, 3), 3))
    lags = HiddenMarkovModel(observation_dim=1, num_lags=1)
    with pytest.raises(ValueError, match="`observed` must be in full at every step"):
        lags.log_prob(np.zeros((1, 3, 1), np.float32), observed=np.array([[[True], [False], [True]]]))
    with pytest.raises(ValueError, match="`leave_one_out` needs an emission without `num_lags`"):
        lags.leave_one_out(np.zeros((1, 3, 1), np.float32))


@op_by_op
def test_data_of_which_little_is_known_has_a_defined_result() -> None:
    keras.utils.set_random_seed(0)
    x = np.zeros((2, 4, 2), np.float32)
    for covariance in ("full", "diag", "spherical", "tied"):
        # constant features, and more states than observations
        model = HiddenMarkovModel.from_data(Sequences(list(x)), num_states=12, covariance=covariance)
        model.compile(method="em")
        model.fit(x, epochs=3, verbose=0)
        assert np.isfinite(model.log_prob(x)).all()
    nothing = np.zeros(x.shape, bool)
    np.testing.assert_allclose(model.log_prob(x, observed=nothing), 0.0, atol=1e-5)  # nothing observed, nothing said
    np.testing.assert_allclose(tf.reduce_sum(model.posterior_marginals(x, observed=nothing), -1), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="`dataset` has no steps"):
        HiddenMarkovModel.from_data(Sequences([np.zeros((0, 2), np.float32)]))


@op_by_op
def test_impossible_observations_have_log_probability_minus_infinity() -> None:
    model = HiddenMarkovModel(observation_dim=1, num_states=2, emission="poisson", transition="left-right")
    y = np.array([[1, 0, 0]])  # begins in the second state, which left-right models do not
    assert model.log_prob(np.ones((1, 3, 1), np.float32), y=y)[0] == -np.inf
    assert not np.isnan(model.posterior_marginals(np.ones((1, 3, 1), np.float32), y=y)).any()
    for method, said in (
        ("gradient", "learning rate.* Known states"),
        ("em", r"\. Some .* impossible .*`y`"),
        ("vb", "impossible"),
    ):
        model.compile(keras.optimizers.SGD(0.1), method=method)
        with pytest.raises(NotFiniteError, match=rf"\(`row`\) 0\. The weights are those before it.*{said}") as error:
            model.fit(np.ones((1, 3, 1), np.float32), y, verbose=0)
        assert ("learning rate" in str(error.value)) == (method == "gradient")


# Devices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "signature"), [
    ("categorical", "viterbi"), ("poisson", "viterbi"), ("full", "viterbi"), ("diag", "viterbi"), ("mixture", "viterbi"),
    ("student-t", "viterbi"), ("autoregressive", "viterbi"), ("varying", "viterbi"),
    ("categorical", "filter_step"), ("autoregressive", "filter_step"), ("varying", "filter_step"),  # each carries another state
])  # fmt: skip
def test_litert_runs_with_built_in_operations(name: str, signature: str, rng: np.random.Generator) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'tfseq[litert]'")
    model, data = model_for(name, rng, dtype="float32")
    function, specs = model.endpoints()[signature]
    fixed = [tf.TensorSpec([1, *(n or 12 for n in spec.shape[1:])], spec.dtype, spec.name) for spec in specs]
    run = litert.interpreter(litert.to_litert(signature, function, fixed)).get_signature_runner(signature)
    x = np.asarray(data.x[0])[None]
    state = {key: value.numpy() for key, value in model.init_state(1).items()}
    given = {"x": x, "lengths": np.array([9], np.int32)} if signature == "viterbi" else {"x": x[:, 0], **state}
    wanted = function(**{spec.name: tf.constant(given[spec.name]) for spec in specs})
    found = run(**{spec.name: given[spec.name] for spec in specs})
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5)
