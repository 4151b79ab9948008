"""The linear-Gaussian model: everything it answers is a conditional of one dense Gaussian, and TFP's filter agrees."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import condition, softplus, value

from tfseq.data.batching import Sequences
from tfseq.models.kalman import LinearGaussianModel
from tfseq.ops import kalman
from tfseq.ops.tracing import single_precision

LENGTHS = [5, 3, 0]
MEAN, STDDEV = [1.0, -20.0, 3.0], [0.5, 10.0, 2.0]
KINDS = ("diagonal", "full")


def tril(raw: np.ndarray, num: int) -> np.ndarray:
    """The packed weight of a full covariance as its lower triangle, softplus and 1e-3 on the diagonal."""
    lower = np.asarray(tf.linalg.band_part(tf.reshape(_unpacked(raw, num), [num, num]), -1, 0))
    return np.tril(lower, -1) + np.diag(softplus(np.diag(lower)) + 1e-3)


def _unpacked(raw: np.ndarray, num: int) -> np.ndarray:
    """Packed as TFP packs triangles: the numbers after the first `num`, then all of them backwards, row by row."""
    return np.concatenate([raw[num:], raw[::-1]])


def model_of(kind: Any, rng: np.random.Generator, latent_dim: int = 2, dtype: str = "float64") -> LinearGaussianModel:
    """A model of random parameters, none of them zero."""
    keras.utils.set_random_seed(0)
    model = LinearGaussianModel(
        observation_dim=3, mean=MEAN, stddev=STDDEV, latent_dim=latent_dim, transition_noise=kind, observation_noise=kind,
        dtype=dtype,
    )  # fmt: skip
    for weight in model.trainable_weights:
        weight.assign(weight + rng.normal(size=weight.shape) * 0.3)
    return model


class Dense:
    """The joint Gaussian of z_1 .. z_T and then x_1 .. x_T, x in the data's units, of the weights of a model."""

    def __init__(self, model: LinearGaussianModel, num_steps: int) -> None:
        z, d, full = model.latent_dim, model.observation_dim, model.noise_kinds[1] == "full"
        scale = np.asarray(model.data_stddev)
        q, r = value(model.transition_noise), value(model.emission_noise)
        q, r = (tril(q, z), tril(r, d)) if full else (np.diag(softplus(q) + 1e-3), np.diag(softplus(r) + 1e-3))
        p = tril(value(model.initial_noise), z)
        self.a, self.b, self.q = value(model.transition), value(model.transition_bias), q @ q.T
        self.c, self.r = scale[:, None] * value(model.emission), np.outer(scale, scale) * (r @ r.T)
        self.d = scale * value(model.emission_bias) + model.data_mean
        means, cov = [value(model.initial_mean)], np.zeros([num_steps * z] * 2)
        marginal = p @ p.T
        for t in range(num_steps):
            if t:
                means.append(self.a @ means[-1] + self.b)
                marginal = self.a @ marginal @ self.a.T + self.q
            block = marginal
            for s in range(t, num_steps):  # Cov(z_s, z_t) = A^(s - t) Var(z_t)
                cov[s * z : (s + 1) * z, t * z : (t + 1) * z] = block
                cov[t * z : (t + 1) * z, s * z : (s + 1) * z] = block.T
                block = self.a @ block
        see = np.kron(np.eye(num_steps), self.c)
        noise = np.kron(np.eye(num_steps), self.r)
        self.mean = np.concatenate([*means, *(self.c @ m + self.d for m in means)])
        self.cov = np.block([[cov, cov @ see.T], [see @ cov, see @ cov @ see.T + noise]])
        self.num_z, self.z, self.size = num_steps * z, z, d

    def at(self, seen: np.ndarray) -> np.ndarray:
        """Indices of the entries of x, `[T, D]` bool."""
        return self.num_z + np.flatnonzero(seen)

    def log_prob(self, x: np.ndarray, seen: np.ndarray) -> float:
        at = self.at(seen)
        error = x[seen] - self.mean[at]
        cov = self.cov[np.ix_(at, at)]
        return -0.5 * float(error @ np.linalg.solve(cov, error) + np.linalg.slogdet(2.0 * np.pi * cov)[1]) if len(at) else 0.0

    def given(self, target: np.ndarray, x: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of entries `target` given what was seen."""
        offset, gain, cov = condition(self.mean, self.cov, list(target), list(self.at(seen)))
        return offset + gain @ x[seen], cov


@pytest.fixture(params=["missing", "whole"])
def data(request: pytest.FixtureRequest, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three sequences of 5, 3 and no steps; of which single features, a whole step and a first step are missing, or nothing."""
    x = (rng.normal(size=[3, 5, 3]).cumsum(1) * STDDEV + MEAN).astype(np.float32)
    observed = rng.random(x.shape) < 0.6
    observed[0, 2] = observed[1, 0] = False
    mask = np.arange(5) < np.array(LENGTHS)[:, None]
    if request.param == "whole":
        return {"x": np.where(mask[..., None], x, np.nan), "mask": mask}
    return {"x": np.where(observed & mask[..., None], x, np.nan), "observed": observed, "mask": mask}


def seen_of(data: dict[str, np.ndarray]) -> np.ndarray:
    """What was observed of x, `[B, T, D]` bool."""
    return data.get("observed", np.ones(data["x"].shape, bool)) & data["mask"][..., None]


def rows(data: dict[str, np.ndarray]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(row, x `[T_i, D]`, what was observed of it) of the sequences that have steps."""
    return [(i, data["x"][i, :n].astype(float), seen_of(data)[i, :n]) for i, n in enumerate(LENGTHS) if n]


# Against the dense Gaussian -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_that_of_the_dense_gaussian_and_so_are_its_steps(
    kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None
) -> None:
    model, log_prob = model_of(kind, rng), np.zeros([3, 6])
    for i, x, seen in rows(data):
        log_prob[i, 1:] = [Dense(model, len(x)).log_prob(x[:t], seen[:t]) if t <= len(x) else np.nan for t in range(1, 6)]
        log_prob[i] = np.where(np.isnan(log_prob[i]), log_prob[i, len(x)], log_prob[i])
    np.testing.assert_allclose(model.log_prob(data), log_prob[:, -1], rtol=1e-9)
    np.testing.assert_allclose(model.filter(data).log_prob, np.diff(log_prob), rtol=1e-9, atol=1e-9)
    terms = model.terms(model.complete(model.as_batch(data)))
    np.testing.assert_allclose(terms.log_lik, np.diff(log_prob), rtol=1e-9, atol=1e-9)
    assert not model.has_kl
    assert not np.asarray(terms.kl).any()


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_is_that_of_tfp(kind: str, rng: np.random.Generator, eager: None) -> None:
    model, x = model_of(kind, rng, latent_dim=4), rng.normal(size=[2, 6, 3]).astype(np.float32)
    distribution = model.distribution(6)
    np.testing.assert_allclose(model.log_prob(x), distribution.log_prob(x.astype(np.float64)), rtol=1e-9)
    missing = rng.random([2, 6]) < 0.4  # TFP's masks are of whole steps, True where missing
    wanted = distribution.log_prob(x.astype(np.float64), mask=missing)
    observed = np.repeat(~missing[..., None], 3, -1)
    np.testing.assert_allclose(model.log_prob(x, observed=observed), wanted, rtol=1e-9)
    means, covs = distribution.posterior_marginals(x.astype(np.float64), mask=missing)
    posterior = model.posterior(x, observed=observed)
    np.testing.assert_allclose(posterior.mean, means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(posterior.covariance, covs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_filter_and_smoother_are_conditionals(
    kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None
) -> None:
    model = model_of(kind, rng)
    filtered, posterior = model.filter(data), model.posterior(data)
    close: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}
    for i, x, seen in rows(data):
        dense = Dense(model, len(x))
        mean, cov = dense.given(np.arange(dense.num_z), x, seen)
        blocks = cov.reshape(len(x), 2, len(x), 2)
        for t in range(len(x)):
            np.testing.assert_allclose(posterior.mean[i, t], mean[2 * t : 2 * t + 2], **close)
            np.testing.assert_allclose(posterior.covariance[i, t], blocks[t, :, t], **close)
            np.testing.assert_allclose(posterior.stddev[i, t] ** 2, np.diag(blocks[t, :, t]), **close)
            if t:
                np.testing.assert_allclose(posterior.cross_covariance[i, t - 1], blocks[t, :, t - 1], **close)
            for end, (got_mean, got_cov) in ((t, filtered[1:3]), (t + 1, filtered[3:5])):
                until = seen & (np.arange(len(x)) < end)[:, None]
                wanted = dense.given(np.arange(2 * t, 2 * t + 2), x, until)
                np.testing.assert_allclose(got_mean[i, t], wanted[0], **close)
                np.testing.assert_allclose(got_cov[i, t], wanted[1], **close)
    for found in (*posterior, *filtered):
        assert not np.asarray(found[2]).any()  # of the empty sequence
        assert not np.asarray(found[1, 3:]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_leave_one_out_is_a_conditional(kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None) -> None:
    model = model_of(kind, rng)
    wanted = np.zeros([3, 5])
    for i, x, seen in rows(data):
        dense = Dense(model, len(x))
        for t in range(len(x)):
            others = seen & (np.arange(len(x)) != t)[:, None]
            wanted[i, t] = dense.log_prob(x, seen) - dense.log_prob(x, others)
    np.testing.assert_allclose(model.leave_one_out(data), wanted, rtol=1e-8, atol=1e-8)


def assert_moments(samples: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
    """Samples `[S, N]` have these moments, up to five standard errors of each."""
    num, variance = len(samples), np.diag(cov)
    np.testing.assert_array_less(np.abs(samples.mean(0) - mean), 5.0 * np.sqrt(variance / num) + 1e-6)
    error = np.sqrt((np.outer(variance, variance) + cov**2) / num)
    np.testing.assert_array_less(np.abs(np.cov(samples.T) - cov), 5.0 * error + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_and_completions_are_drawn_from_their_conditionals(
    kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None
) -> None:
    model = model_of(kind, rng)
    paths = model.posterior_sample(data, num_samples=20_000, seed=[0, 1]).numpy()
    completed = model.impute({**data, "observed": seen_of(data)}, num_samples=20_000, seed=[0, 2]).numpy()
    for i, x, seen in rows(data):
        dense, steps = Dense(model, len(x)), len(x)
        assert_moments(paths[i, :, :steps].reshape(20_000, -1), *dense.given(np.arange(dense.num_z), x, seen))
        if not seen.all():
            assert_moments(completed[i, :, :steps][:, ~seen], *dense.given(dense.at(~seen), x, seen))
        np.testing.assert_array_equal(completed[i, :, :steps][:, seen], np.repeat(x[seen][None], 20_000, 0))
    assert not paths[1, :, 3:].any()
    assert not completed[1, :, 3:].any()
    assert not completed[2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_forecasts_and_samples_are_those_of_the_dense_gaussian(
    kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None
) -> None:
    model = model_of(kind, rng)
    moments = model.forecast_moments(data, num_steps=2)
    drawn = model.forecast(data, num_steps=2, num_samples=20_000, seed=[0, 1]).numpy()
    for i, n in enumerate(LENGTHS):
        dense = Dense(model, n + 2)
        seen = np.zeros([n + 2, 3], bool)
        seen[:n] = seen_of(data)[i, :n]
        x = np.where(seen, np.pad(data["x"][i, :n].astype(float), [(0, 2), (0, 0)]), 0.0)
        mean, cov = dense.given(dense.at(np.repeat(np.arange(n + 2)[:, None] >= n, 3, 1)), x, seen)
        np.testing.assert_allclose(np.reshape(moments.mean[i], -1), mean, rtol=1e-9)
        np.testing.assert_allclose(moments.covariance[i], [cov[:3, :3], cov[3:, 3:]], rtol=1e-9)
        assert_moments(drawn[i].reshape(20_000, -1), mean, cov)
    dense = Dense(model, 2)
    x = model.sample(20_000, 2, seed=[1, 1]).numpy().reshape(20_000, -1)
    assert_moments(x, dense.mean[dense.num_z :], dense.cov[dense.num_z :, dense.num_z :])


def test_steps_of_the_filter_are_the_filter(data: dict[str, np.ndarray], rng: np.random.Generator, eager: None) -> None:
    for kind in KINDS:
        model = model_of(kind, rng)
        state, filtered = model.init_state(3), model.filter(data)
        for t in range(5):
            state = model.filter_step(data["x"][:, t], state, observed=seen_of(data)[:, t])
            real = data["mask"][:, t]
            for found, name in ((filtered.log_prob, "log_prob"), (filtered.mean, "filtered_mean")):
                np.testing.assert_allclose(state[name][real], found[:, t][real], rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(state["filtered_covariance"][real], filtered.covariance[:, t][real], rtol=1e-8, atol=1e-10)
        assert state["step"].numpy().tolist() == [5, 5, 5]
        whole = model.filter_step(np.nan_to_num(data["x"][:, 0]), model.init_state(3))["log_prob"]
        wanted = [Dense(model, 1).log_prob(x[None], np.ones([1, 3], bool)) for x in np.nan_to_num(data["x"][:, 0].astype(float))]
        np.testing.assert_allclose(whole, wanted, rtol=1e-9)


def test_padding_and_the_batch_change_no_draw(data: dict[str, np.ndarray], rng: np.random.Generator, eager: None) -> None:
    model = model_of("full", rng)
    seeds = np.arange(6, dtype=np.int32).reshape(3, 2)
    longer = {name: np.pad(a, [(0, 0), (0, 2)] + [(0, 0)] * (a.ndim - 2)) for name, a in data.items()}
    for draw in (
        lambda given, seed: model.posterior_sample(given, num_samples=2, seed=seed)[:, :, :5],
        lambda given, seed: model.impute({**given, "observed": seen_of(given)}, num_samples=2, seed=seed)[:, :, :5],
        lambda given, seed: model.forecast(given, num_steps=3, num_samples=2, seed=seed),
    ):
        drawn = draw(data, seeds)
        np.testing.assert_allclose(draw(longer, seeds), drawn, rtol=1e-5, atol=1e-6)  # random numbers are float32
        alone = draw({name: a[1:2] for name, a in data.items()}, seeds[1:2])
        np.testing.assert_allclose(alone, drawn[1:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_devices_compute_the_same_without_factorisations(
    kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None
) -> None:
    model, seen, x = model_of(kind, rng, latent_dim=3), seen_of(data), np.nan_to_num(data["x"])

    def answers() -> list[tf.Tensor]:
        state = model.init_state(3)
        for t in range(2):
            state = model.filter_step(x[:, t], state, observed=seen[:, t])
        found = [*model.filter(data), *model.posterior(data), *model.forecast_moments(data, num_steps=2), *state.values()]
        completed = model.impute({**data, "observed": seen}, num_samples=2, seed=[0, 1])
        return [*found, completed, model.forecast(data, num_steps=2, num_samples=2, seed=[0, 1])]

    wanted = answers()
    with single_precision():
        found = answers()
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None) -> None:
    model = model_of(kind, rng)
    batch = model.complete(model.as_batch(data))
    weights = rng.normal(size=[3, 5])  # of each step: the gradient of every one is right, not only that of their sum

    def loss() -> tf.Tensor:
        return tf.reduce_sum(weights * model.terms(batch).log_lik)

    with tf.GradientTape() as tape:
        found = loss()
    for weight, gradient in zip(model.trainable_weights, tape.gradient(found, model.trainable_weights), strict=True):
        direction, old = rng.normal(size=weight.shape), weight.numpy()
        sides = []
        for step in (1e-6, -1e-6):
            weight.assign(old + step * direction)
            sides.append(float(loss()))
        weight.assign(old)
        np.testing.assert_allclose(np.sum(gradient * direction), (sides[0] - sides[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", [contextlib.nullcontext, single_precision])  # the latter on devices
def test_float32_keeps_likelihoods_where_noise_is_a_thousandth_of_the_signal(
    context: Any, rng: np.random.Generator, eager: None
) -> None:
    """Three features of two states with noise 1e-3: S = C P C' + R has a condition of 1e6, and its float32 inverse no digits."""
    p = kalman.Parameters(
        *(np.zeros(2), np.eye(2), 0.7 * np.eye(2) + 0.1, np.zeros(2), 0.4 * np.eye(2)),
        *(rng.normal(size=[3, 2]), np.zeros(3), np.full(3, 1e-3)),
    )  # fmt: skip
    z, x = rng.normal(size=[4, 2]), []
    for _ in range(60):
        z = z @ p.transition.T + 0.4 * rng.normal(size=z.shape)
        x.append(z @ p.emission.T + 1e-3 * rng.normal(size=[4, 3]))
    mask, x32 = tf.ones([60, 4], tf.bool), np.asarray(x, np.float32)

    def filtered(dtype: str) -> kalman.Filtered:
        return kalman.filter(kalman.Parameters(*(tf.constant(a, dtype) for a in p)), tf.constant(x32, dtype), mask)

    wide = filtered("float64")
    with context():
        single = filtered("float32")
    # the data themselves, rounded to float32 where noise is 1e-3, carry an error of 1e-4 of the noise
    np.testing.assert_allclose(tf.reduce_mean(single.log_prob, 0), tf.reduce_mean(wide.log_prob, 0), atol=2e-5)
    np.testing.assert_allclose(single.filtered.mean, wide.filtered.mean, atol=5e-6)
    covariances = [np.asarray(kalman.square(found.filtered.root)) for found in (single, wide)]
    assert (np.linalg.eigvalsh(covariances[0].astype(np.float64)) > 0.0).all()
    np.testing.assert_allclose(*covariances, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_plain_factorisations_are_as_exact_as_float32_is(scale: float, rng: np.random.Generator) -> None:
    a = np.concatenate([scale * rng.normal(size=[5, 4]), np.eye(4)]).astype(np.float32)
    b = rng.normal(size=[2, 4, 3]).astype(np.float32)
    with single_precision():
        q, r = (np.asarray(part) for part in kalman._qr(tf.constant(a)))
        solved = [np.asarray(kalman._solve(tf.constant(r), tf.constant(b), transposed)) for transposed in (False, True)]
    right = np.linalg.qr(a.astype(np.float64)).R
    right *= np.sign(np.diag(right))[:, None]
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(r, right, atol=1e-6 * np.abs(right).max())
    for x, of in zip(solved, (r, r.T), strict=True):
        np.testing.assert_allclose(of.astype(np.float64) @ x, b, rtol=1e-5, atol=1e-5)
    tied = a[:2].T @ a[:2]  # of rank 2: two of its eigenvalues are rounding, of any sign
    for covariance in (tied, tied - 1e-8 * scale**2 * np.eye(4, dtype=np.float32), np.zeros([4, 4], np.float32)):
        with single_precision():
            root = kalman.root_of(tf.constant(covariance))
        np.testing.assert_allclose(kalman.square(root), covariance, atol=2e-6 * scale**2 * np.abs(a[:2]).max())


def test_long_padding_of_an_unstable_system_is_harmless(rng: np.random.Generator, eager: None) -> None:
    model = model_of("diagonal", rng, dtype="float32")
    model.transition.assign(30.0 * np.eye(2))
    x = np.zeros([1, 30, 3], np.float32)  # 30^30 is beyond float32
    batch = model.complete(model.as_batch({"x": x, "mask": np.arange(30)[None] < 4}))
    with tf.GradientTape() as tape:
        log_lik = tf.reduce_sum(model.terms(batch).log_lik)
    np.testing.assert_allclose(log_lik, model.log_prob(x[:, :4])[0], rtol=1e-6)
    assert all(np.isfinite(g).all() for g in tape.gradient(log_lik, model.trainable_weights))


# EM -------------------------------------------------------------------------------------------------------------------


def em_step(model: LinearGaussianModel, batches: list[dict[str, np.ndarray]]) -> None:
    """What `fit` does of an epoch, where functions run eagerly."""
    for batch in batches:
        model.train_step(model.as_batch(batch))
    model.pass_is_done.assign(1)
    model.update()


def expected_grams(model: LinearGaussianModel, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Sums of E[(y, 1)(y, 1)'] of z_1, of (z_t, z_{t-1}), and of (x_t, z_t), standardised x, from dense posteriors."""
    z = model.latent_dim
    grams = [np.zeros([n + 1, n + 1]) for n in (z, 2 * z, 3 + z)]

    def add(gram: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
        mean = np.append(mean, 1.0)
        gram += np.outer(mean, mean) + np.pad(cov, [(0, 1), (0, 1)])

    for _, x, seen in rows(data):
        dense = Dense(model, len(x))
        full = np.zeros([len(dense.mean)]), np.zeros(dense.cov.shape)
        hidden = np.concatenate([np.arange(dense.num_z), dense.at(~seen)])
        full[0][dense.at(seen)] = x[seen]
        full[0][hidden], full[1][np.ix_(hidden, hidden)] = dense.given(hidden, x, seen)
        for t in range(len(x)):
            now = np.arange(t * z, (t + 1) * z)
            if t == 0:
                add(grams[0], full[0][now], full[1][np.ix_(now, now)])
            else:
                pair = np.concatenate([now, now - z])
                add(grams[1], full[0][pair], full[1][np.ix_(pair, pair)])
            if seen[t].any():
                at = np.concatenate([dense.num_z + 3 * t + np.arange(3), now])
                scale = np.concatenate([model.data_stddev, np.ones(z)])
                mean = (full[0][at] - np.concatenate([model.data_mean, np.zeros(z)])) / scale
                add(grams[2], mean, full[1][np.ix_(at, at)] / np.outer(scale, scale))
    return grams


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_em_is_the_closed_form(kind: str, data: dict[str, np.ndarray], rng: np.random.Generator, eager: None) -> None:
    model = model_of(kind, rng)
    found = []
    for gram, size in zip(expected_grams(model, data), (2, 2, 3), strict=True):
        weights = np.linalg.solve(gram[size:, size:], gram[size:, :size]).T
        cov = (gram[:size, :size] - weights @ gram[size:, :size]) / gram[-1, -1]
        found.append((weights, cov if kind == "full" or len(weights.T) == 1 else np.diag(np.diag(cov))))
    before = float(tf.reduce_sum(model.log_prob(data)))
    model.compile(method="em")
    em_step(model, [{name: a[i : i + 1] for name, a in data.items()} for i in range(3)])  # statistics add up over batches
    np.testing.assert_allclose(model.loss_metric.result(), -before / sum(LENGTHS), rtol=1e-9)
    dense, scale = Dense(model, 1), np.asarray(STDDEV)
    (first, p), (moves, q), (sees, r) = found
    close: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(dense.mean[:2], first[:, 0], **close)
    np.testing.assert_allclose(dense.cov[:2, :2], p, **close)
    np.testing.assert_allclose(np.column_stack([dense.a, dense.b]), moves, **close)
    np.testing.assert_allclose(dense.q, q, **close)
    np.testing.assert_allclose(dense.c, scale[:, None] * sees[:, :2], **close)
    np.testing.assert_allclose(dense.d, scale * sees[:, 2] + MEAN, **close)
    np.testing.assert_allclose(dense.r, np.outer(scale, scale) * r, **close)


def test_em_never_falls_and_reaches_what_made_the_data(rng: np.random.Generator) -> None:
    truth = LinearGaussianModel(observation_dim=3, mean=MEAN, stddev=STDDEV, latent_dim=2)
    truth.transition.assign([[0.9, 0.3], [-0.3, 0.9]])  # a rotation, where the model begins with none
    x = truth.sample(60, 40, seed=[0, 1]).numpy()
    observed = rng.random(x.shape) < 0.9
    train, test = ({"x": x[i], "observed": observed[i]} for i in (slice(40), slice(40, 60)))
    keras.utils.set_random_seed(1)
    model = LinearGaussianModel.from_data(train, latent_dim=2, observation_noise="full")
    model.compile(method="em")
    loss = np.array(model.fit(train, epochs=40, batch_size=40, verbose=0).history["loss"])
    assert (np.diff(loss) < 1e-6).all()  # weights are float32
    gap = (truth.log_prob(test) - model.log_prob(test)).numpy() / 40.0
    assert abs(float(gap.mean())) < 0.05  # 40 sequences tell some twenty numbers up to 1/80 nat each


def test_stepwise_em_improves(data: dict[str, np.ndarray], rng: np.random.Generator, eager: None) -> None:
    model = model_of("diagonal", rng)
    before = float(tf.reduce_sum(model.log_prob(data)))
    model.compile(method="em", step_size=0.7)
    for _ in range(10):
        model.train_step(model.as_batch(data))
    assert float(tf.reduce_sum(model.log_prob(data))) > before + 5.0


def test_em_keeps_what_no_data_speak_of(rng: np.random.Generator, eager: None) -> None:
    model = model_of("diagonal", rng)
    old = [a.numpy() for a in (model.transition, model.transition_noise, model.emission)]
    model.compile(method="em")
    x = np.zeros([2, 1, 3], np.float32)
    em_step(model, [{"x": x, "observed": np.zeros(x.shape, bool)}])
    for weight, value_before in zip((model.transition, model.transition_noise, model.emission), old, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value_before)


# Construction ---------------------------------------------------------------------------------------------------------


def test_from_data_reads_moments_of_what_was_observed(rng: np.random.Generator) -> None:
    x = [rng.normal(size=[n, 2]) for n in (4, 0, 6)]
    seen = [rng.random(a.shape) < 0.7 for a in x]
    model = LinearGaussianModel.from_data(Sequences(x=x, observed=seen), latent_dim=1)
    for d in range(2):
        values = np.concatenate(x)[np.concatenate(seen)[:, d], d]
        np.testing.assert_allclose([model.data_mean[d], model.data_stddev[d]], [values.mean(), values.std()])
    assert model.decode({"x": x[0][None]})["mean"].shape == (1, 4, 1)


def test_errors_name_what_is_wrong(rng: np.random.Generator) -> None:
    x = rng.normal(size=[1, 6, 2]).astype(np.float32)
    x[..., 1] = 0.1
    with pytest.raises(ValueError, match=r"feature 1 \(from 0\) is 0.1 at all of its 6"):
        LinearGaussianModel.from_data({"x": x})
    with pytest.raises(ValueError, match="feature 'level' is"):
        LinearGaussianModel.from_data(Sequences(x=list(x), columns=["flow", "level"]))
    with pytest.raises(ValueError, match="no steps"):
        LinearGaussianModel.from_data({"x": x[:, :0]})
    with pytest.raises(ValueError, match=r"vectors \[T, D\]"):
        LinearGaussianModel.from_data({"x": [np.array([0, 1, 2])]})
    with pytest.raises(ValueError, match="`stddev` must be above 0"):
        LinearGaussianModel(observation_dim=2, stddev=[1.0, 0.0])
    with pytest.raises(ValueError, match="`mean` must be 2 finite numbers"):
        LinearGaussianModel(observation_dim=2, mean=[1.0])
    with pytest.raises(ValueError, match="`transition_noise` must be one of.*Did you mean 'diagonal'"):
        LinearGaussianModel(observation_dim=2, transition_noise="diag")
    with pytest.raises(ValueError, match="`impute` needs `observed`"):
        LinearGaussianModel.tiny().impute(np.zeros([1, 2, 3], np.float32))
