"""Emissions against scipy, closed forms and simulation; float64, K = 2 states, D = 3 features, data of another mean and unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tests import reference
from tfseq.layers.emissions import EMISSIONS, Emission

K, D, B, T = 2, 3, 3, 9
MEAN, STDDEV = np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.5, 1.5])
COUNT_MEAN = np.array([0.3, 2.0, 5.0])
PRIORS = {
    "bernoulli": (2.0, 3.0), "categorical": (1.5,), "multinomial": (1.5,), "poisson": (2.5, 0.7),
    "normal": (0.6, 4.0), "mixture": (0.6, 4.0), "student-t": (0.6, 4.0),
}  # fmt: skip
COVARIANCES = ("full", "diag", "spherical", "tied")
REGRESSIONS = ({}, {"num_lags": 2}, {"control_dim": 1}, {"num_lags": 1, "control_dim": 2})
DISCRETE = [(name, {}) for name in ("bernoulli", "categorical", "multinomial", "poisson")]
NORMAL = [("normal", {"covariance": c}) for c in COVARIANCES]
REGRESSION = [("normal", {"covariance": c, **r}) for c in COVARIANCES for r in REGRESSIONS[1:]]
MIXTURE = [("mixture", {"covariance": c}) for c in ("full", "diag", "tied")]
STUDENT = [("student-t", {"covariance": c}) for c in COVARIANCES]
CONJUGATE = [*DISCRETE, *NORMAL, *REGRESSION]


def families(*variants: tuple[str, dict[str, Any]]) -> Any:
    ids = ["-".join([name, *map(str, options.values())]) for name, options in variants]
    return pytest.mark.parametrize(("name", "options"), variants, ids=ids)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(3)
    yield
    keras.config.set_dtype_policy(before)


def made(name: str, options: dict[str, Any], rng: np.random.Generator, **kwargs: Any) -> Emission:
    """An emission whose weights were moved at random."""
    real = name in ("normal", "mixture", "student-t")
    scale = {"mean": MEAN, "stddev": STDDEV} if real else {"mean": COUNT_MEAN / 10.0 if name == "bernoulli" else COUNT_MEAN}
    emission = EMISSIONS[name](K, D, prior=PRIORS.get(name), **scale, **options, **kwargs)
    for weight in emission.trainable_weights:
        weight.assign(weight + 0.4 * rng.normal(size=weight.shape))
    return emission


def drawn(name: str, rng: np.random.Generator) -> np.ndarray:
    """Observations `[B, T, D]` (`[B, T]`) that no state would be ashamed of."""
    if name == "bernoulli":
        return rng.integers(2, size=(B, T, D)).astype(float)
    if name == "categorical":
        return rng.integers(D, size=(B, T)).astype(np.int32)
    if name in ("multinomial", "poisson"):
        return rng.poisson(COUNT_MEAN, (B, T, D)).astype(float)
    mixing = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.3, 0.2, 0.9]])
    return MEAN + STDDEV * (rng.normal(size=(B, T, D)) @ mixing.T + rng.integers(2, size=(B, T, 1)))


def weights_of(rng: np.random.Generator) -> np.ndarray:
    probs = rng.dirichlet(np.ones(K), (B, T))
    probs[0, -2:] = 0.0  # padded steps
    return probs


def context_of(emission: Emission, x: np.ndarray, rng: np.random.Generator) -> tuple[tf.Tensor | None, np.ndarray]:
    """What the layer makes of x and random controls; and the regressors `[B, T, 1 + P]` by hand."""
    num_lags, control_dim = getattr(emission, "num_lags", 0), getattr(emission, "control_dim", 0)
    u = rng.normal(size=(B, T, control_dim))
    regressors = np.ones((B, T, 1 + num_lags * D + control_dim))
    for t in range(T):
        for lag in range(1, num_lags + 1):
            place = slice(1 + (lag - 1) * D, 1 + lag * D)
            regressors[:, t, place] = (x[:, t - lag] - MEAN) / STDDEV if t >= lag else 0.0
    if control_dim:
        regressors[..., -control_dim:] = u
    return emission.context(tf.constant(x), tf.constant(u) if control_dim else None), regressors


def scaled_parameters(normal: Any) -> tuple[np.ndarray, np.ndarray]:
    """W `[K, P, D]` and Sigma `[K, D, D]` in units of the data's standard deviation, from the raw weights."""
    raw, num_states = normal.raw_precision.numpy(), normal.num_states
    if normal.covariance == "tied":
        raw = np.broadcast_to(raw.mean(0), raw.shape)
    sigma = np.zeros((num_states, D, D))
    for k in range(num_states):
        blocks = []
        for one in raw[k]:
            factor = np.tril(one, -1) + np.diag(np.exp(np.diag(one)))
            blocks.append(np.linalg.inv(factor @ factor.T))
        sigma[k] = blocks[0] if blocks[0].shape == (D, D) else np.diag(np.broadcast_to(np.ravel(blocks), D))
    return normal.weights_of_mean.numpy(), sigma


def log_density(name: str, emission: Any, x: np.ndarray, regressors: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """log p(seen part of x | k) `[B, T, K]`, step by step with scipy."""
    out = np.zeros((B, T, K))
    if name == "mixture":
        parts = gaussian(emission.components, x, regressors, seen).reshape(B, T, K, -1)
        weight = special.softmax(emission.table.logits.numpy(), -1)
        return special.logsumexp(parts, -1, b=weight) * seen.any(-1, keepdims=True)
    if name == "normal":
        return gaussian(emission, x, regressors, seen)
    if name == "student-t":
        weights, sigma = scaled_parameters(emission)
        for k in range(K):
            t = stats.multivariate_t(
                MEAN + STDDEV * weights[k, 0], STDDEV[:, None] * STDDEV * sigma[k], np.exp(emission.log_df[k])
            )
            out[..., k] = t.logpdf(x) * seen.all(-1)
        return out
    for k in range(K):
        if name == "bernoulli":
            p = special.softmax(emission.table.logits.numpy(), -1)[k * D : (k + 1) * D, 0]
            out[..., k] = (stats.bernoulli.logpmf(x, p) * seen).sum(-1)
        elif name == "poisson":
            out[..., k] = (stats.poisson.logpmf(x, np.exp(emission.log_rate[k].numpy())) * seen).sum(-1)
        else:
            p = special.softmax(emission.table.logits[k].numpy())
            if name == "categorical":
                out[..., k] = np.log(p)[x] * seen
            else:
                out[..., k] = stats.multinomial.logpmf(x.astype(int), x.sum(-1).astype(int), p) * seen.all(-1)
    return out


def gaussian(normal: Any, x: np.ndarray, regressors: np.ndarray, seen: np.ndarray) -> np.ndarray:
    weights, sigma = scaled_parameters(normal)
    out = np.zeros((B, T, len(weights)))
    for b, t, k in np.ndindex(*out.shape):
        o = np.flatnonzero(seen[b, t])
        if len(o):
            mean, cov = MEAN + STDDEV * (regressors[b, t] @ weights[k]), STDDEV[:, None] * STDDEV * sigma[k]
            out[b, t, k] = stats.multivariate_normal(mean[o], cov[np.ix_(o, o)]).logpdf(x[b, t, o])
    return out


def all_seen(x: np.ndarray) -> np.ndarray:
    return np.ones(x.shape, bool)


def total(emission: Emission, x: Any, observed: Any, context: Any, probs: np.ndarray) -> float:
    return float(tf.reduce_sum(probs * emission.log_prob(x, observed, context)))


def slopes(emission: Emission, function: Any) -> np.ndarray:
    """Gradient in all trainable weights."""
    with tf.GradientTape() as tape:
        value = function()
    found = tape.gradient(value, emission.trainable_weights)
    return np.concatenate([np.reshape(g, -1) for g in found if g is not None])


# Likelihoods --------------------------------------------------------------------------------------------------------


@families(*CONJUGATE, *MIXTURE, *STUDENT)
def test_log_prob_is_scipy_s(name: str, options: dict, rng: np.random.Generator) -> None:
    emission, x = made(name, options, rng), drawn(name, rng)
    context, regressors = context_of(emission, x, rng)
    wanted = log_density(name, emission, x, regressors, all_seen(x))
    np.testing.assert_allclose(emission.log_prob(tf.constant(x), None, context), wanted, rtol=1e-9, atol=1e-9)
    assert np.ptp(wanted[..., 0] - wanted[..., 1]) > 0.1  # the states differ


@families(*CONJUGATE, *MIXTURE, *STUDENT)
def test_what_was_not_observed_is_integrated_out(name: str, options: dict, rng: np.random.Generator) -> None:
    emission, x = made(name, options, rng), drawn(name, rng)
    context, regressors = context_of(emission, x, rng)
    if emission.is_symbol:
        seen = rng.random((B, T)) < 0.6
    else:
        seen = rng.random((B, T, D)) < 0.6
        seen[:, 2], seen[:, 3] = False, True
        if not emission.takes_missing_features:  # a step is seen as a whole
            seen = np.repeat(seen[..., :1], D, -1)
    wanted = log_density(name, emission, x, regressors, seen)
    for value in (0.0, 7.0):  # whatever stands there
        filled = np.where(seen, x, value).astype(x.dtype) if not emission.is_symbol else np.where(seen, x, 0).astype(np.int32)
        got = emission.log_prob(tf.constant(filled), tf.constant(seen), context)
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
    probs = weights_of(rng)
    whole = np.where(seen if emission.is_symbol else seen.any(-1), 1.0, 0.0)[..., None] * probs
    if not emission.is_symbol and not emission.takes_missing_features:  # as if the steps were not there
        got = emission.statistics(tf.constant(filled), tf.constant(seen), context, tf.constant(probs))
        for a, b in zip(got, emission.statistics(tf.constant(filled), None, context, tf.constant(whole)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head", ["bernoulli", "normal", "poisson", "categorical"])
@pytest.mark.parametrize("control_dim", [0, 2])
def test_a_neural_emission_is_its_head_over_its_network(head: str, control_dim: int, rng: np.random.Generator) -> None:
    emission: Any = EMISSIONS["neural"](K, D, head=head, hidden_dim=4, control_dim=control_dim)
    for weight in emission.trainable_weights:
        weight.assign(weight + 0.5 * rng.normal(size=weight.shape))
    x = drawn(head if head != "normal" else "normal", rng)
    seen, u = rng.random(x.shape) < 0.7, rng.normal(size=(B, T, control_dim))
    inputs = [np.broadcast_to(emission.states.numpy(), (B, T, K, 4)), np.repeat(u[:, :, None], K, 2)]
    hidden = reference.relu(reference.dense(emission.network.layers[0], np.concatenate(inputs, -1)))
    raw = np.split(reference.dense(emission.head, hidden), emission.head.parameters_per_feature, -1)
    if head == "categorical":
        wanted = np.take_along_axis(special.log_softmax(raw[0], -1), x[:, :, None, None], -1)[..., 0] * seen[..., None]
    else:
        y = x[:, :, None]
        each = {
            "bernoulli": lambda: stats.bernoulli.logpmf(y, special.expit(raw[0])),
            "normal": lambda: stats.norm.logpdf(y, raw[0], reference.softplus(raw[1]) + reference.MIN_STDDEV),
            "poisson": lambda: stats.poisson.logpmf(y, np.exp(raw[0])),
        }[head]()
        wanted = (each * seen[:, :, None]).sum(-1)
    context = emission.context(tf.constant(x), tf.constant(u))
    got = emission.log_prob(tf.constant(x), tf.constant(seen), context)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
    assert emission.num_parameters == sum(w.numpy().size for w in emission.trainable_weights)
    states = rng.integers(K, size=20000)
    uniform = rng.random((20000, emission.noise_dim))
    picked = tf.constant(np.tile(u[0, 0], (20000, 1)))
    got = emission.draw(tf.constant(states), tf.constant(uniform), picked).numpy()
    got = np.eye(D)[got] if head == "categorical" else got
    for k in range(K):
        mean = {
            "categorical": special.softmax(raw[0], -1), "bernoulli": special.expit(raw[0]), "normal": raw[0],
            "poisson": np.exp(raw[0]),
        }[head][0, 0, k]  # fmt: skip
        error = got[states == k].std(0) / np.sqrt((states == k).sum()) + 1e-6
        assert (np.abs(got[states == k].mean(0) - mean) < 4.5 * error).all()
        if not control_dim:
            np.testing.assert_allclose(emission.means()[k], mean, rtol=1e-6)


@families(*DISCRETE, *NORMAL, *MIXTURE, *STUDENT)
def test_the_distribution_gives_the_same_log_prob(name: str, options: dict, rng: np.random.Generator) -> None:
    emission, x = made(name, options, rng), drawn(name, rng)
    if name == "multinomial":
        with pytest.raises(ValueError, match="`distribution` has no form for a MultinomialEmission"):
            emission.distribution()
        return
    each = tf.constant(x)[:, :, None] if name == "categorical" else tf.constant(x)[:, :, None, :]
    got = emission.distribution().log_prob(each)
    np.testing.assert_allclose(got, emission.log_prob(tf.constant(x), None, None), rtol=1e-8, atol=1e-8)


# Learning -----------------------------------------------------------------------------------------------------------


@families(*CONJUGATE)
@pytest.mark.parametrize("prior", [False, True], ids=["likelihood", "posterior"])
@pytest.mark.parametrize("dead", [False, True], ids=["", "dead"])
def test_maximise_is_the_maximum(name: str, options: dict, prior: bool, dead: bool, rng: np.random.Generator) -> None:
    emission, x, probs = made(name, options, rng), drawn(name, rng), weights_of(rng)
    if dead:
        probs[..., 1] = 0.0
    context, _ = context_of(emission, x, rng)
    tied, before = options.get("covariance") == "tied", emission.log_prob(tf.constant(x), None, context)[..., 1]
    own = emission.weights_of_mean[1].numpy() if tied else None
    emission.maximise(emission.statistics(tf.constant(x), None, context, tf.constant(probs)), prior)

    def value() -> tf.Tensor:
        found = tf.reduce_sum(probs * emission.log_prob(tf.constant(x), None, context))
        return found + tf.cast(emission.log_prior(), tf.float64) if prior else found

    np.testing.assert_allclose(slopes(emission, value), 0.0, atol=1e-6)
    best, found = float(value()), [w.numpy() for w in emission.trainable_weights]
    if dead and not prior:  # a state without data keeps what is its own
        after = emission.log_prob(tf.constant(x), None, context)[..., 1]
        np.testing.assert_allclose(*((emission.weights_of_mean[1], own) if tied else (after, before)), rtol=1e-9)
    for scale in (0.003, 0.1, 0.1):
        for weight, new in zip(emission.trainable_weights, found, strict=True):
            weight.assign(new + scale * rng.normal(size=new.shape))
        assert float(value()) < best


@families(*DISCRETE, *NORMAL)
def test_maximise_is_the_weighted_moment(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x, probs = drawn(name, rng), weights_of(rng)
    emission.maximise(emission.statistics(tf.constant(x), None, None, tf.constant(probs)))
    rows = (np.eye(D)[x] if name == "categorical" else x).reshape(-1, D)
    weights = probs.reshape(-1, K)
    means = weights.T @ rows / weights.sum(0)[:, None]
    wanted = means / means.sum(1, keepdims=True) if name == "multinomial" else means
    np.testing.assert_allclose(emission.means(), wanted, rtol=1e-7)
    if name != "normal":
        return
    each = np.array([np.cov(rows.T, aweights=w, ddof=0) for w in weights.T])
    pooled = np.einsum("k,kij->ij", weights.sum(0), each) / weights.sum()
    wanted = {
        "full": lambda: each, "tied": lambda: np.array([pooled] * K),
        "diag": lambda: np.array([np.diag(np.diag(c)) for c in each]),
        "spherical": lambda: np.array([np.mean(np.diag(c) / STDDEV**2) * np.diag(STDDEV**2) for c in each]),
    }[options["covariance"]]()  # fmt: skip
    np.testing.assert_allclose(emission.covariances(), wanted, rtol=1e-6, atol=1e-8)


def test_regressions_are_weighted_least_squares(rng: np.random.Generator) -> None:
    for covariance in COVARIANCES:
        emission: Any = made("normal", {"covariance": covariance, "num_lags": 1, "control_dim": 1}, rng)
        x, probs = drawn("normal", rng), weights_of(rng)
        context, regressors = context_of(emission, x, rng)
        emission.maximise(emission.statistics(tf.constant(x), None, context, tf.constant(probs)))
        y = ((x - MEAN) / STDDEV).reshape(-1, D)
        for k in range(K):
            root = np.sqrt(probs[..., k].reshape(-1, 1))
            wanted = np.linalg.lstsq(root * regressors.reshape(len(y), -1), root * y, rcond=None)[0]
            np.testing.assert_allclose(emission.weights_of_mean[k], wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("num_groups", [1, 2])
def test_tied_covariances_are_one_in_every_pool_of_states(num_groups: int, rng: np.random.Generator) -> None:
    emission: Any = EMISSIONS["normal"](4, D, covariance="tied", mean=MEAN, stddev=STDDEV, pooled_states=4 // num_groups)
    x, probs = drawn("normal", rng), rng.dirichlet(np.ones(4), (B, T))
    probs[..., 3] = 0.0
    emission.maximise(emission.statistics(tf.constant(x), None, None, tf.constant(probs)))
    covariances, rows = emission.covariances().numpy(), x.reshape(-1, D)
    for states in np.split(np.arange(4), num_groups):
        scatter = sum(np.cov(rows.T, aweights=w, ddof=0) * w.sum() for w in probs.reshape(-1, 4).T[states] if w.sum())
        for k in states:
            np.testing.assert_allclose(covariances[k], scatter / probs[..., states].sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["normal", "student-t"])
def test_tied_covariances_without_any_data_stay(name: str, rng: np.random.Generator) -> None:
    emission: Any = made(name, {"covariance": "tied"}, rng)
    before = emission.covariances().numpy()
    emission.maximise([tf.zeros(shape, tf.float64) for shape in emission.statistics_shapes])
    np.testing.assert_allclose(emission.covariances(), before, rtol=1e-7)


@families(*NORMAL, *STUDENT)
def test_a_dead_state_leaves_no_trace_in_what_the_others_learn(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x, probs = drawn("normal", rng), weights_of(rng)
    probs[..., 1] = 0.0
    statistics = emission.statistics(tf.constant(x), None, None, tf.constant(probs))
    found = []
    for _ in range(2):
        emission.maximise(statistics)
        found.append(emission.log_prob(tf.constant(x), None, None).numpy()[..., 0])
        emission.raw_precision.assign_add(0.3 * tf.ones_like(emission.raw_precision))
    np.testing.assert_allclose(*found, rtol=1e-9)


@families(*STUDENT)
@pytest.mark.parametrize(("prior", "dead"), [(False, False), (True, True)], ids=["likelihood", "posterior, dead"])
def test_em_of_student_t_rises_to_a_maximum(name: str, options: dict, prior: bool, dead: bool, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x = MEAN + STDDEV * rng.standard_t(3.0, (B, 40, D))
    probs = rng.dirichlet(np.ones(K), (B, 40))
    probs[..., 1] *= 0.0 if dead else 1.0

    def value() -> tf.Tensor:
        found = tf.reduce_sum(probs * emission.log_prob(tf.constant(x), None, None))
        return found + tf.cast(emission.log_prior(), tf.float64) if prior else found

    values = [float(value())]
    for _ in range(60):
        emission.maximise(emission.statistics(tf.constant(x), None, None, tf.constant(probs)), prior)
        values.append(float(value()))
    assert np.diff(values).min() > -1e-8 and values[-1] > values[0] + 1.0
    np.testing.assert_allclose(slopes(emission, value), 0.0, atol=2e-2)  # of 120 steps; EM converges linearly
    assert 1.0 < np.exp(emission.log_df[0]) < 20.0  # within its bounds, so its slope is zero too


@families(*NORMAL, *MIXTURE)
@pytest.mark.parametrize("prior", [False, True], ids=["likelihood", "posterior"])
def test_em_with_missing_features_rises_to_a_maximum(name: str, options: dict, prior: bool, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x = np.concatenate([drawn("normal", rng) for _ in range(3)], 1)
    seen, labels = rng.random(x.shape) < 0.75, rng.integers(K, size=x.shape[:2])
    seen[0, :2] = False
    x, probs = np.where(seen, x, 99.0), np.eye(K)[labels]

    def value() -> tf.Tensor:
        found = tf.reduce_sum(probs * emission.log_prob(tf.constant(x), tf.constant(seen), None))
        return found + tf.cast(emission.log_prior(), tf.float64) if prior else found

    values = [float(value())]
    for _ in range(60 if name == "normal" else 20):
        emission.maximise(emission.statistics(tf.constant(x), tf.constant(seen), None, tf.constant(probs)), prior)
        values.append(float(value()))
    assert np.diff(values).min() > -1e-8 and values[-1] > values[0] + 1.0
    if name == "normal":
        np.testing.assert_allclose(slopes(emission, value), 0.0, atol=1e-3)


def test_the_e_step_of_a_mixture_counts_its_components(rng: np.random.Generator) -> None:
    emission: Any = made("mixture", {"covariance": "diag", "num_components": 3}, rng)
    x, probs = drawn("normal", rng), weights_of(rng)
    each = gaussian(emission.components, x, np.ones((B, T, 1)), all_seen(x)).reshape(B, T, K, 3)
    each += special.log_softmax(emission.table.logits.numpy(), -1)
    parts = special.softmax(each, -1) * probs[..., None]
    weights, moments = emission.statistics(tf.constant(x), None, None, tf.constant(probs))
    np.testing.assert_allclose(weights, parts.sum((0, 1)), rtol=1e-9)
    y = (x - MEAN) / STDDEV
    wanted = np.einsum("btn,btf->nf", parts.reshape(B, T, -1), np.concatenate([y**2, y, np.ones((B, T, 1))], -1))
    np.testing.assert_allclose(moments, wanted, rtol=1e-9, atol=1e-9)


@families(*NORMAL, *STUDENT, ("normal", {"covariance": "full", "num_lags": 1}))
def test_constant_features_keep_a_variance(name: str, options: dict, rng: np.random.Generator) -> None:
    x = drawn("normal", rng)
    x[..., 1] = 4.0
    emission: Any = EMISSIONS[name](K, D, mean=[1.0, 4.0, 0.5], stddev=[2.0, 0.0, 1.5], **options)
    probs = tf.constant(weights_of(rng))
    for _ in range(3):
        context = emission.context(tf.constant(x), None)
        emission.maximise(emission.statistics(tf.constant(x), None, context, probs))
        value = slopes(emission, lambda c=context: tf.reduce_sum(probs * emission.log_prob(tf.constant(x), None, c)))
        assert np.isfinite(value).all()
    assert emission.covariances().numpy()[:, 1, 1].min() >= 0.99e-6 and np.isfinite(emission.covariances()).all()


@families(*CONJUGATE, *MIXTURE, *STUDENT)
def test_typical_statistics_give_the_parameters_back(name: str, options: dict, rng: np.random.Generator) -> None:
    emission = made(name, options, rng)
    found = emission.typical_statistics()
    assert [list(a.shape) for a in found] == [list(shape) for shape in emission.statistics_shapes]
    x = drawn(name, rng)
    context, _ = context_of(emission, x, rng)
    before = emission.log_prob(tf.constant(x), None, context).numpy()
    emission.maximise(found)
    np.testing.assert_allclose(emission.log_prob(tf.constant(x), None, context), before, rtol=1e-6, atol=1e-6)


# Priors and posteriors ----------------------------------------------------------------------------------------------


def test_log_prior_of_discrete_families_is_scipy_s(rng: np.random.Generator) -> None:
    for name, _ in DISCRETE:
        emission: Any = made(name, {}, rng)
        means = emission.means().numpy()
        wanted = {
            "bernoulli": lambda p: stats.beta.logpdf(p, 2.0, 3.0).sum(),
            "poisson": lambda r: stats.gamma.logpdf(r, 2.5, scale=1.0 / 0.7).sum(),
        }.get(name, lambda p: sum(stats.dirichlet.logpdf(row / row.sum(), [1.5] * D) for row in p))(means)
        assert float(emission.log_prior()) == pytest.approx(wanted, rel=1e-9)


class Posterior:
    """Of (W, Sigma) for weighted regression data, and with no data the prior, in scaled units: plain linear algebra.

    W | Sigma ~ MN(M, K^-1, Sigma), kappa = 0.6 a priori about 0; Sigma ~ IW(nu, S), dof = 4, of prior mean 1.
    """

    def __init__(self, covariance: str, regressors: np.ndarray, y: np.ndarray, probs: np.ndarray) -> None:
        self.covariance, size = covariance, D if covariance in ("full", "tied") else 1
        c, y, r = regressors.reshape(-1, regressors.shape[-1]), y.reshape(-1, D), probs.reshape(-1, K).T
        self.precision = [0.6 * np.eye(c.shape[1]) + (c.T * w) @ c for w in r]
        self.mean = [np.linalg.inv(k) @ (c.T * w) @ y for k, w in zip(self.precision, r, strict=True)]
        # sum r (y - W'c)(y - W'c)' + kappa W'W at the posterior mean
        rest = [(y - c @ m).T @ np.diag(w) @ (y - c @ m) + 0.6 * m.T @ m for m, w in zip(self.mean, r, strict=True)]
        nu, scale, counts = 4.0 + size, 3.0 * np.eye(size), r.sum(1)
        self.scales: list[tuple[float, np.ndarray]] = {
            "full": lambda: [(nu + n, scale + s) for n, s in zip(counts, rest, strict=True)],
            "tied": lambda: [(nu + counts.sum(), scale + sum(rest))],
            "diag": lambda: [(nu + n, scale + s[d, d]) for n, s in zip(counts, rest, strict=True) for d in range(D)],
            "spherical": lambda: [(nu + D * n, scale + np.trace(s)) for n, s in zip(counts, rest, strict=True)],
        }[covariance]()

    def blocks(self, sigma: np.ndarray) -> list[np.ndarray]:
        """Sigma `[K, D, D]` -> what each inverse Wishart is of."""
        return {
            "full": lambda: list(sigma), "tied": lambda: [sigma[0]], "spherical": lambda: [s[:1, :1] for s in sigma],
            "diag": lambda: [s[d : d + 1, d : d + 1] for s in sigma for d in range(D)],
        }[self.covariance]()  # fmt: skip

    def log_density(self, weights: np.ndarray, sigma: np.ndarray) -> float:
        normal = sum(
            stats.matrix_normal(self.mean[k], np.linalg.inv(self.precision[k]), sigma[k]).logpdf(weights[k]) for k in range(K)
        )
        blocks = zip(self.blocks(sigma), self.scales, strict=True)
        return float(normal + sum(stats.invwishart(nu, scale).logpdf(block) for block, (nu, scale) in blocks))

    def draw(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """W `[num, K, P, D]`, Sigma `[num, K, D, D]`."""
        found = [np.reshape(stats.invwishart(nu, s).rvs(num, rng), (num, *s.shape)) for nu, s in self.scales]
        if self.covariance == "tied":
            found = found * K
        if self.covariance == "spherical":
            found = [a * np.eye(D) for a in found]
        if self.covariance == "diag":
            found = [np.concatenate(found[k * D : (k + 1) * D], -1) * np.eye(D) for k in range(K)]
        weights = []
        for k in range(K):
            rows, columns = np.linalg.cholesky(np.linalg.inv(self.precision[k])), np.linalg.cholesky(found[k])
            noise = rng.normal(size=(num, len(rows), D))
            weights.append(self.mean[k] + rows @ noise @ np.swapaxes(columns, -1, -2))
        return np.stack(weights, 1), np.stack(found, 1)


@families(*NORMAL, *REGRESSION)
def test_log_prior_of_a_normal_is_scipy_s(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    weights, sigma = scaled_parameters(emission)
    prior = Posterior(options["covariance"], np.zeros((B, T, weights.shape[1])), np.zeros((B, T, D)), np.zeros((B, T, K)))
    assert float(emission.log_prior()) == pytest.approx(prior.log_density(weights, sigma), rel=1e-9)


@families(*NORMAL, *REGRESSION)
def test_the_bound_of_a_normal_is_its_evidence(name: str, options: dict, rng: np.random.Generator) -> None:
    """E log p(x) - KL at the exact posterior is log p(x) = log prior + log likelihood - log posterior, anywhere."""
    emission: Any = made(name, options, rng)
    x, probs = drawn("normal", rng), weights_of(rng)
    context, regressors = context_of(emission, x, rng)
    weights, sigma = scaled_parameters(emission)
    y = (x - MEAN) / STDDEV
    prior = Posterior(options["covariance"], regressors, y, 0.0 * probs)
    after = Posterior(options["covariance"], regressors, y, probs)
    likelihood = (probs * gaussian(emission, x, regressors, all_seen(x))).sum()
    wanted = prior.log_density(weights, sigma) + likelihood - after.log_density(weights, sigma)
    statistics = emission.statistics(tf.constant(x), None, context, tf.constant(probs))
    expected = tf.reduce_sum(probs * emission.log_prob(tf.constant(x), None, context, emission.expected_natural(statistics)))
    assert float(expected) - float(emission.divergence(statistics)) == pytest.approx(wanted, rel=1e-7)
    nothing = [tf.zeros_like(a) for a in statistics]
    assert abs(float(emission.divergence(nothing))) < 1e-9 < float(emission.divergence(statistics))


@families(*NORMAL, ("normal", {"covariance": "full", "num_lags": 1}), ("normal", {"covariance": "diag", "control_dim": 1}))
def test_expected_log_probs_of_a_normal_are_means_over_its_posterior(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x, probs = drawn("normal", rng), weights_of(rng)
    context, regressors = context_of(emission, x, rng)
    statistics = emission.statistics(tf.constant(x), None, context, tf.constant(probs))
    got = emission.log_prob(tf.constant(x), None, context, emission.expected_natural(statistics)).numpy()
    num, y = 4000, (x - MEAN) / STDDEV
    posterior = Posterior(options["covariance"], regressors, y, probs)
    weights, sigma = posterior.draw(num, rng)
    gap = y[0, :, None] - np.einsum("tp,nkpd->ntkd", regressors[0], weights)
    form = np.einsum("ntkd,nkde,ntke->ntk", gap, np.linalg.inv(sigma), gap)
    each = -0.5 * (form + np.linalg.slogdet(2.0 * np.pi * sigma)[1][:, None]) - np.log(STDDEV).sum()
    assert (np.abs(got[0] - each.mean(0)) < 4.5 * each.std(0) / np.sqrt(num)).all()
    emission.use_mean(statistics)
    precision = np.linalg.inv(scaled_parameters(emission)[1])
    error = np.linalg.inv(sigma).std(0) / np.sqrt(num) + 1e-9
    assert (np.abs(precision - np.linalg.inv(sigma).mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(emission.weights_of_mean, posterior.mean, rtol=1e-9)


@families(*DISCRETE)
def test_expectations_and_divergence_of_discrete_families(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x, probs = drawn(name, rng), weights_of(rng)
    statistics = emission.statistics(tf.constant(x), None, None, tf.constant(probs))
    got = emission.log_prob(tf.constant(x), None, None, emission.expected_natural(statistics)).numpy()
    rows = (np.eye(D)[x] if name == "categorical" else x).reshape(-1, D)
    weights = probs.reshape(-1, K)
    on, count = weights.T @ rows, weights.sum(0)[:, None] + np.zeros(D)
    num = 20000
    if name == "bernoulli":
        prior, after = (2.0, 3.0), (2.0 + on, 3.0 + count - on)
        p = rng.beta(*after, (num, K, D))
        logs = np.einsum("td,nkd->ntk", rows, np.log(p)) + np.einsum("td,nkd->ntk", 1.0 - rows, np.log1p(-p))
        kl, mean = (stats.beta.logpdf(p, *after) - stats.beta.logpdf(p, *prior)).sum((1, 2)), after[0] / (after[0] + after[1])
    elif name == "poisson":
        shape, rate = 2.5 + on, 0.7 + count
        p = rng.gamma(shape, 1.0 / rate, (num, K, D))
        logs = stats.poisson.logpmf(rows[None, :, None], p[:, None]).sum(-1)
        kl = (stats.gamma.logpdf(p, shape, scale=1.0 / rate) - stats.gamma.logpdf(p, 2.5, scale=1.0 / 0.7)).sum((1, 2))
        mean = shape / rate
    else:
        p = np.stack([rng.dirichlet(1.5 + row, num) for row in on], 1)
        logs = np.einsum("td,nkd->ntk", rows, np.log(p))
        if name == "multinomial":
            logs += (special.gammaln(rows.sum(-1) + 1.0) - special.gammaln(rows + 1.0).sum(-1))[:, None]
        kl = sum(stats.dirichlet.logpdf(p[:, k].T, 1.5 + on[k]) - stats.dirichlet.logpdf(p[:, k].T, [1.5] * D) for k in range(K))
        mean = (1.5 + on) / (1.5 + on).sum(1, keepdims=True)
    assert (np.abs(got.reshape(-1, K) - logs.mean(0)) < 4.5 * logs.std(0) / np.sqrt(num)).all()
    assert abs(float(emission.divergence(statistics)) - kl.mean()) < 4.5 * kl.std() / np.sqrt(num)
    emission.use_mean(statistics)
    np.testing.assert_allclose(emission.means(), mean, rtol=1e-9)


@families(*MIXTURE)
def test_the_prior_of_a_mixture_is_that_of_its_parts(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    x, probs = drawn("normal", rng), weights_of(rng)
    statistics = emission.statistics(tf.constant(x), None, None, tf.constant(probs))
    counts = statistics[0].numpy()
    p = np.array([rng.dirichlet(1.0 + row, 20000) for row in counts])
    kl = sum(
        stats.dirichlet.logpdf(a.T, 1.0 + row) - stats.dirichlet.logpdf(a.T, [1.0, 1.0]) for a, row in zip(p, counts, strict=True)
    )
    own = float(emission.divergence(statistics)) - float(emission.components.divergence(statistics[1:]))
    assert abs(own - kl.mean()) < 4.5 * kl.std() / np.sqrt(20000)
    assert float(emission.log_prior()) == pytest.approx(float(emission.components.log_prior()), abs=1e-9)  # Dirichlet(1, 1) is 0
    natural = emission.expected_natural(statistics)
    parts = emission.components.log_prob(tf.constant(x), None, None, natural[1]).numpy().reshape(B, T, K, -1)
    wanted = special.logsumexp(parts + np.log(p).mean(1), -1)
    np.testing.assert_allclose(emission.log_prob(tf.constant(x), None, None, natural), wanted, atol=0.1)


@families(*NORMAL, *MIXTURE)
def test_expected_parameters_see_missing_features_too(name: str, options: dict, rng: np.random.Generator) -> None:
    """exp(E log p(x)) integrated over a feature by quadrature is what is said of the others alone."""
    emission: Any = made(name, options, rng)
    x, probs = drawn("normal", rng), weights_of(rng)
    natural = emission.expected_natural(emission.statistics(tf.constant(x), None, None, tf.constant(probs)))
    seen = np.ones((B, T, D), bool)
    seen[..., 1] = False
    got = emission.log_prob(tf.constant(x), tf.constant(seen), None, natural).numpy()
    grid = np.linspace(MEAN[1] - 14.0 * STDDEV[1], MEAN[1] + 14.0 * STDDEV[1], 400)
    along = np.repeat(x[0, 0][None, None], len(grid), 1)
    along[..., 1] = grid
    each = emission.log_prob(tf.constant(along), None, None, natural).numpy()[0]
    wanted = special.logsumexp(each, 0) + np.log(grid[1] - grid[0])
    np.testing.assert_allclose(got[0, 0], wanted, rtol=1e-6)


# Drawing ------------------------------------------------------------------------------------------------------------

NUM = 8000


def draws(emission: Emission, k: int, rng: np.random.Generator) -> np.ndarray:
    uniform = rng.random((NUM, emission.noise_dim))
    return emission.draw(tf.fill([NUM], k), tf.constant(uniform)).numpy()


@families(*DISCRETE)
def test_draws_have_the_frequencies_of_scipy(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    for k in range(K):
        x, means = draws(emission, k, rng), emission.means()[k].numpy()
        if name == "categorical":
            x = np.eye(D)[x]
        for d in range(D):
            pmf = stats.poisson(means[d]).pmf if name == "poisson" else stats.bernoulli(means[d]).pmf
            values = np.arange(int(x.max()) + 1)
            wanted, got = pmf(values), np.array([(x[:, d] == v).mean() for v in values])
            assert (np.abs(got - wanted) < 4.5 * np.sqrt(wanted * (1.0 - wanted) / NUM) + 1.0 / NUM).all()
        if name in ("categorical", "multinomial"):
            np.testing.assert_array_equal(x.sum(1), 1.0)


@families(*NORMAL, *STUDENT, *MIXTURE)
def test_draws_pass_a_kolmogorov_smirnov_test(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    for k in range(K):
        x = draws(emission, k, rng)
        assert (np.abs(x.mean(0) - emission.means()[k]) < 4.5 * x.std(0) / np.sqrt(NUM)).all()
        if name == "mixture":
            weights, sigma = scaled_parameters(emission.components)
            share = special.softmax(emission.table.logits[k].numpy())
            direction = np.array([0.5, -1.0, 0.7])  # of a projection
            means = (MEAN + STDDEV * weights[2 * k : 2 * k + 2, 0]) @ direction
            scales = [np.sqrt((STDDEV * direction) @ s @ (STDDEV * direction)) for s in sigma[2 * k : 2 * k + 2]]
            cdf = lambda v, m=means, s=scales, w=share: sum(w[i] * stats.norm.cdf(v, m[i], s[i]) for i in range(2))  # noqa: E731
            assert stats.kstest(x @ direction, cdf).pvalue > 1e-3
            continue
        weights, sigma = scaled_parameters(emission)
        gap = (x - MEAN) / STDDEV - weights[k, 0]
        white = np.linalg.solve(np.linalg.cholesky(sigma[k]), gap.T).T
        square = (white**2).sum(1)
        if name == "student-t":
            df = np.exp(emission.log_df[k].numpy())
            tests = [stats.kstest(square / D, stats.f(D, df).cdf), *(stats.kstest(w, stats.t(df).cdf) for w in white.T)]
        else:
            tests = [stats.kstest(square, stats.chi2(D).cdf), *(stats.kstest(w, stats.norm.cdf) for w in white.T)]
        assert min(test.pvalue for test in tests) > 1e-3
        assert stats.kstest(np.arctan2(white[:, 0], white[:, 1]) / np.pi, stats.uniform(-1.0, 2.0).cdf).pvalue > 1e-3  # round


@families(*DISCRETE, *NORMAL, *MIXTURE)
def test_typical_statistics_are_means_of_features(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    found = emission.typical_statistics()
    for k in range(K):
        parts = np.split(draws(emission, k, rng), 20)
        probs = tf.one_hot(tf.fill([1, NUM // 20], k), K, dtype=tf.float64)
        several = [emission.statistics(tf.constant(x[None]), None, None, probs) for x in parts]
        for wanted, *got in zip(found, *several, strict=True):
            rows = slice(k * len(wanted) // K, (k + 1) * len(wanted) // K)
            means = np.array([a.numpy()[rows] for a in got]) * 20.0 / NUM
            assert (
                np.abs(means.mean(0) - wanted[rows]) <= 6.0 * means.std(0) / np.sqrt(20) + 1e-9
            ).all()  # 19 degrees of freedom


def correlate(normal: Any, rng: np.random.Generator) -> None:
    """Covariances with correlations of about 0.8, the sign of which differs."""
    root = STDDEV[:, None] * np.array([[1.0, 0.0, 0.0], [-0.8, 0.6, 0.0], [0.7, -0.3, 0.6]])
    normal.assign(MEAN + STDDEV * rng.normal(size=(normal.num_states, D)), np.array([root @ root.T] * normal.num_states))


def completions(emission: Emission, k: int, x: np.ndarray, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    uniform = tf.constant(rng.random((1, NUM, emission.noise_dim)))
    several = [tf.constant(np.tile(a, (1, NUM, 1))) for a in (x.astype(np.float32), seen)]
    return emission.complete(*several, tf.fill([1, NUM], k), uniform).numpy()[0]


@families(*NORMAL)
@pytest.mark.parametrize("seen", [[True, False, True], [False, True, False], [False] * 3, [True] * 3])
def test_completions_have_the_conditional_distribution(name: str, options: dict, seen: list, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    correlate(emission, rng)
    weights, sigma = scaled_parameters(emission)
    x = MEAN + STDDEV * np.array([1.5, -1.0, 1.5])
    target, given = np.flatnonzero(~np.array(seen)), np.flatnonzero(seen)
    offset, gain, cov = reference.condition(MEAN + STDDEV * weights[1, 0], STDDEV[:, None] * STDDEV * sigma[1], target, given)
    found = completions(emission, 1, x, np.array(seen), rng)
    np.testing.assert_allclose(found[:, given], np.tile(x[given], (NUM, 1)), rtol=1e-6)
    if len(target):
        white = np.linalg.solve(np.linalg.cholesky(cov), (found[:, target] - offset - gain @ x[given]).T)
        assert stats.kstest((white**2).sum(0), stats.chi2(len(target)).cdf).pvalue > 1e-3
        assert min(stats.kstest(w, stats.norm.cdf).pvalue for w in white) > 1e-3


@families(*MIXTURE)
def test_a_mixture_completes_by_the_component_of_what_was_observed(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    correlate(emission.components, rng)
    weights, sigma = scaled_parameters(emission.components)
    x, seen, share = drawn("normal", rng)[0, 0], np.array([True, False, True]), special.softmax(emission.table.logits[1].numpy())
    found = completions(emission, 1, x, seen, rng)
    parts = []
    for m in (2, 3):
        mean, cov = MEAN + STDDEV * weights[m, 0], STDDEV[:, None] * STDDEV * sigma[m]
        offset, gain, rest = reference.condition(mean, cov, [1], [0, 2])
        density = stats.multivariate_normal(mean[[0, 2]], cov[np.ix_([0, 2], [0, 2])]).pdf(x[[0, 2]])
        parts.append((share[m - 2] * density, (offset + gain @ x[[0, 2]])[0], np.sqrt(rest[0, 0])))
    norm = sum(p for p, _, _ in parts)
    assert stats.kstest(found[:, 1], lambda v: sum(p / norm * stats.norm.cdf(v, m, s) for p, m, s in parts)).pvalue > 1e-3
    np.testing.assert_allclose(found[:, [0, 2]], np.tile(x[[0, 2]], (NUM, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "categorical", "neural"])
def test_independent_features_are_completed_by_draws(name: str, rng: np.random.Generator) -> None:
    emission = made(name, {}, rng)
    x, states = drawn("bernoulli" if name == "neural" else name, rng), rng.integers(K, size=(B, T))
    x = x.astype(np.int32 if name == "categorical" else np.float32)
    seen, uniform = rng.random(x.shape) < 0.5, tf.constant(rng.random((B, T, emission.noise_dim)))
    got = emission.complete(tf.constant(x), tf.constant(seen), tf.constant(states), uniform).numpy()
    np.testing.assert_array_equal(got, np.where(seen, x, emission.draw(tf.constant(states), uniform)))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_draws_of_a_regression_are_about_its_line(covariance: str, rng: np.random.Generator) -> None:
    emission: Any = made("normal", {"covariance": covariance, "num_lags": 1, "control_dim": 1}, rng)
    weights, sigma = scaled_parameters(emission)
    context = rng.normal(size=(NUM, D + 1))
    x = emission.draw(tf.fill([NUM], 1), tf.constant(rng.random((NUM, D))), tf.constant(context)).numpy()
    gap = (x - MEAN) / STDDEV - np.concatenate([np.ones((NUM, 1)), context], 1) @ weights[1]
    white = np.linalg.solve(np.linalg.cholesky(sigma[1]), gap.T)
    assert min(stats.kstest(w, stats.norm.cdf).pvalue for w in white) > 1e-3


# Arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "wanted"), [
    ("bernoulli", {}, 2 * 3), ("categorical", {}, 2 * 2), ("multinomial", {}, 2 * 2), ("poisson", {}, 2 * 3),
    ("normal", {"covariance": "full"}, 2 * (3 + 6)), ("normal", {"covariance": "diag"}, 2 * (3 + 3)),
    ("normal", {"covariance": "spherical"}, 2 * (3 + 1)), ("normal", {"covariance": "tied"}, 2 * 3 + 6),
    ("normal", {"covariance": "full", "num_lags": 2, "control_dim": 1}, 2 * (3 * (1 + 6 + 1) + 6)),
    ("student-t", {"covariance": "diag"}, 2 * (3 + 3 + 1)), ("student-t", {"covariance": "tied"}, 2 * (3 + 1) + 6),
    ("mixture", {"covariance": "diag", "num_components": 4}, 2 * (3 + 4 * 6)),
    ("mixture", {"covariance": "tied", "num_components": 4}, 2 * (3 + 4 * 3) + 6),
])  # fmt: skip
def test_number_of_parameters(name: str, options: dict, wanted: int) -> None:
    assert EMISSIONS[name](K, D, **options).num_parameters == wanted


@families(*NORMAL)
def test_given_means_and_covariances_are_kept(name: str, options: dict, rng: np.random.Generator) -> None:
    emission: Any = made(name, options, rng)
    means, root = rng.normal(size=(K, D)), rng.normal(size=(D, D))
    covariance = root @ root.T + np.eye(D)
    covariance = {"diag": np.diag(np.diag(covariance)), "spherical": 0.7 * np.diag(STDDEV**2)}.get(
        options["covariance"], covariance
    )
    emission.assign(means, np.array([covariance] * K))
    np.testing.assert_allclose(emission.means(), means, rtol=1e-9)
    np.testing.assert_allclose(emission.covariances(), [covariance] * K, rtol=1e-7, atol=1e-9)


@families(*CONJUGATE, *MIXTURE, *STUDENT)
def test_float32_gives_the_same_to_its_precision(name: str, options: dict, rng: np.random.Generator) -> None:
    emission, x, probs = made(name, options, rng), drawn(name, rng), weights_of(rng)
    keras.config.set_dtype_policy("float32")
    single = made(name, options, rng)
    for a, b in zip(single.trainable_weights, emission.trainable_weights, strict=True):
        a.assign(b.numpy())
    x = x if emission.is_symbol else x.astype(np.float32)
    seed = np.random.default_rng(5)
    context, _ = context_of(emission, x, seed)
    inputs = [(tf.constant(x), None, context), (tf.constant(x), tf.ones(x.shape, tf.bool), context)]
    for given in inputs:
        got = single.log_prob(*given)
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, emission.log_prob(*given), rtol=1e-4, atol=1e-4)
        found = [one.statistics(*given, tf.constant(probs, one.compute_dtype)) for one in (single, emission)]
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    statistics = [tf.cast(a, tf.float64) for a in found[1]]
    for prior in (False, True):
        for one in (single, emission):
            one.maximise(statistics, prior)
        np.testing.assert_allclose(single.log_prob(*given), emission.log_prob(*given), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(single.log_prior(), emission.log_prior(), rtol=1e-3, atol=1e-2)
    if "vb" in emission.methods:
        natural = [one.expected_natural(statistics) for one in (single, emission)]
        got, wanted = (one.log_prob(*given, n) for one, n in zip((single, emission), natural, strict=True))
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(single.divergence(statistics), emission.divergence(statistics), rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in EMISSIONS if n != "neural"])
@pytest.mark.parametrize("bad", [(-1.0, 1.0), (1.0, 0.0), (1.0, 2.0, 3.0), (), (np.nan, 1.0), (np.inf, 1.0)])
def test_a_prior_of_other_numbers_is_an_error(name: str, bad: tuple, rng: np.random.Generator) -> None:
    names = ", ".join(EMISSIONS[name].prior_names)
    with pytest.raises(ValueError, match=rf"`emission_prior` must be positive numbers \({names}\) for this emission; received"):
        EMISSIONS[name](K, D, prior=bad)


def test_a_network_has_no_prior() -> None:
    with pytest.raises(ValueError, match=r"`emission_prior` must be positive numbers \(nothing\)"):
        EMISSIONS["neural"](K, D, prior=(1.0,))


@pytest.mark.parametrize(("name", "options", "message"), [
    ("normal", {"covariance": "banded"}, "`covariance` must be one of"), ("normal", {"num_lags": -1}, "`num_lags` must be"),
    ("mixture", {"num_components": 0}, "`num_components` must be"), ("student-t", {"df": 0.0}, "`df` must be a number above 0"),
    ("poisson", {"mean": [1.0, 2.0]}, "`mean` must have one number for each of the 3 features; received 2"),
    ("normal", {"stddev": [1.0]}, "`stddev` must have one number for each of the 3 features; received 1"),
    ("mixture", {"covariance": "banded"}, "`covariance` must be one of"), ("neural", {"head": "gamma"}, "`head` must be one of"),
])  # fmt: skip
def test_options_that_mean_nothing_are_an_error(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMISSIONS[name](K, D, **options)


@pytest.mark.parametrize(("name", "x", "message"), [
    ("bernoulli", [[0.0, 0.5, 1.0]], "0 or 1 everywhere"), ("poisson", [[0.0, 1.5, 1.0]], "a whole number of at least 0"),
    ("multinomial", [[0.0, -1.0, 1.0]], "a whole number of at least 0"), ("categorical", [0, 3], "a symbol from 0 to 2"),
    ("categorical", [0.5, 1.0], "a symbol from 0 to 2 everywhere; received 0.5"),
    ("neural", [[2.0, 1.0, 0.0]], "0 or 1 everywhere"),
])  # fmt: skip
def test_values_outside_the_family_are_an_error(name: str, x: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMISSIONS[name](K, D).check(np.array(x))
