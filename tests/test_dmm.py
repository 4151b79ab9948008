"""The deep Markov model against exact Gaussians, a step-by-step NumPy twin, and the laws of padding and missing data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from tests import reference
from tfseq.layers.heads import MIN_STDDEV
from tfseq.models import dmm
from tfseq.models.dmm import DeepMarkovModel, gaussian_kl
from tfseq.ops import random

tfd = tfp.distributions
Array = np.ndarray

# Sampling tests compare with exact values at 4.5 standard errors: with fixed seeds nothing varies from run to run, and a
# wrong formula moves a statistic by tens of errors.
ERRORS = 4.5

SYSTEM = reference.LinearGaussian(  # two chains that do not mix, seen through three features: an exact diagonal guide exists
    transition=np.diag([0.8, -0.5]),
    bias=np.array([0.3, -0.2]),
    noise=np.array([0.6, 1.1]),
    emission=np.array([[1.0, 0.0], [-0.7, 0.0], [0.0, 1.5]]),
    offset=np.array([0.1, 0.4, -0.3]),
    emission_noise=np.array([0.5, 0.9, 0.7]),
)
LENGTHS = [6, 3, 1, 5]


class ExactGuide:
    """q(z_t | z_{t-1}, x_{t:T}) of a `LinearGaussian`: the guide for which every sampled bound is log p(x)."""

    is_structured = True

    def __init__(self, system: reference.LinearGaussian, missing: bool) -> None:
        self.system, self.missing, self.units = system, missing, system.sizes[0]
        self.from_latent = SimpleNamespace(kernel=np.eye(self.units))

    def encode(self, inputs: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor, training: bool) -> tuple[tf.Tensor, ...]:
        context = tf.numpy_function(self._exact, [inputs, mask], [inputs.dtype] * 3)
        return tuple(tf.ensure_shape(c, [None, None, self.units]) for c in context)

    def _exact(self, inputs: Array, mask: Array) -> list[Array]:
        out = np.zeros((3, *mask.shape, self.units))
        out[2] = 1.0
        for row in range(mask.shape[1]):
            steps = inputs[mask[:, row], row].astype(np.float64)
            if len(steps):
                x, observed = np.split(steps, 2, -1) if self.missing else (steps, None)
                out[:, : len(steps), row] = self.system.guide(x, None if observed is None else observed > 0)
        return list(out.astype(inputs.dtype))

    def combine(self, context: tuple[tf.Tensor, ...], from_latent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        slope, offset, stddev = context
        mean = slope * from_latent + offset
        return mean, stddev + tf.zeros_like(mean)


def linear_model(system: reference.LinearGaussian = SYSTEM, exact: bool = True, **kwargs: Any) -> DeepMarkovModel:
    """A `DeepMarkovModel` with the parameters of a linear-Gaussian system and, by default, its exact guide."""
    latent_dim, num_features = system.sizes
    model = DeepMarkovModel(
        observation_dim=num_features, latent_dim=latent_dim, head="normal", transition="linear", emission_layers=0,
        learned_start=False, rnn_units=4, **kwargs,
    )  # fmt: skip
    model.transition.linear.kernel.assign(system.transition.T)
    model.transition.linear.bias.assign(system.bias)
    model.transition.raw_scale.assign(reference.softplus_inverse(system.noise - MIN_STDDEV))
    model.head.kernel.assign(np.concatenate([system.emission.T, np.zeros((latent_dim, num_features))], 1))
    model.head.bias.assign(np.concatenate([system.offset, reference.softplus_inverse(system.emission_noise - MIN_STDDEV)]))
    if exact:
        model.guide = ExactGuide(system, model.missing)
    return model


def draw(rng: np.random.Generator, lengths: list[int] = LENGTHS) -> list[Array]:
    """One sequence of `SYSTEM` for each length, exactly representable in float32."""
    out = []
    for num_steps in lengths:
        mean, cov = SYSTEM.joint(num_steps)
        joint = rng.multivariate_normal(mean, cov)[num_steps * SYSTEM.sizes[0] :]
        out.append(joint.reshape(num_steps, -1).astype(np.float32))
    return out


def kalman(x: Array) -> float:
    """log p(x) by TensorFlow Probability's Kalman filter."""
    latent_dim, num_features = SYSTEM.sizes
    model = tfd.LinearGaussianStateSpaceModel(
        num_timesteps=len(x),
        transition_matrix=tf.linalg.LinearOperatorFullMatrix(SYSTEM.transition),
        transition_noise=tfd.MultivariateNormalDiag(SYSTEM.bias, SYSTEM.noise),
        observation_matrix=tf.linalg.LinearOperatorFullMatrix(SYSTEM.emission),
        observation_noise=tfd.MultivariateNormalDiag(SYSTEM.offset, SYSTEM.emission_noise),
        initial_state_prior=tfd.MultivariateNormalDiag(np.zeros(latent_dim), np.ones(latent_dim)),
    )
    assert model.event_shape[-1] == num_features
    return float(model.log_prob(x.astype(np.float64)))


def assert_moments(samples: Array, mean: Array, cov: Array) -> None:
    """Samples `[N, K]` have the mean and the covariance of a Gaussian, each entry within `ERRORS` standard errors."""
    samples, num = samples.astype(np.float64), len(samples)
    variance = np.diag(cov)
    np.testing.assert_array_less(np.abs(samples.mean(0) - mean), ERRORS * np.sqrt(variance / num))
    error = np.sqrt((np.outer(variance, variance) + cov**2) / num)  # of an entry of a Gaussian's sample covariance
    np.testing.assert_array_less(np.abs(np.cov(samples.T, ddof=0) - cov), ERRORS * error)


# Exactness on linear-Gaussian models -------------------------------------------------------------------------------


def test_the_reference_and_the_kalman_filter_agree(rng):
    for x in draw(rng):
        np.testing.assert_allclose(SYSTEM.log_prob(x), kalman(x), rtol=1e-10)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-4)])  # float32: 100 terms of size 1, cancelling
def test_with_the_exact_posterior_as_guide_every_importance_weight_is_the_kalman_likelihood(dtype, rtol, rng, policy, eager):
    policy(dtype)
    model, x = linear_model(), draw(rng)
    exact = [kalman(a) for a in x]
    batch = model.complete({**model.as_batch(x), "seed": np.array([1, 2], np.int32)})
    inputs = model._inputs(batch)
    latents = model._infer(inputs, model._context(inputs), tf.range(5))
    log_lik, kl = model._terms(inputs, latents, analytic=False)
    log_weights = tf.reduce_sum(tf.where(inputs["mask"][..., None], log_lik - kl, 0.0), 0)
    assert float(tf.math.reduce_std(latents.z[0, 0, :, 0])) > 0.1  # the paths differ, their weights do not
    np.testing.assert_allclose(log_weights, np.repeat(np.array(exact)[:, None], 5, 1), rtol=rtol)
    for bound in model.bounds(x, num_samples=3):
        np.testing.assert_allclose(bound, exact, rtol=rtol)


def test_the_exact_guide_is_exact_in_a_graph_too(rng):
    x = draw(rng)
    np.testing.assert_allclose(linear_model().elbo(x, num_samples=2), [kalman(a) for a in x], rtol=1e-4)


def test_with_missing_features_every_weight_is_the_likelihood_of_what_was_observed(rng, float64, eager):
    model, x = linear_model(missing=True), draw(rng)
    observed = [rng.random(a.shape) < 0.6 for a in x]
    observed[0][2] = False  # a step of which nothing is known
    exact = [SYSTEM.log_prob(a, o) for a, o in zip(x, observed, strict=True)]
    assert np.abs(np.array(exact) - [kalman(a) for a in x]).min() > 0.1
    holes = [np.where(o, a, np.float32(np.nan)) for a, o in zip(x, observed, strict=True)]
    bound, log_prob = model.bounds({"x": holes, "observed": observed}, num_samples=4)
    np.testing.assert_allclose(bound, exact, rtol=1e-9)
    np.testing.assert_allclose(log_prob, exact, rtol=1e-9)


def test_importance_sampling_with_an_imperfect_guide_rises_to_the_kalman_likelihood(rng, float64, eager):
    model, x = linear_model(exact=False), draw(rng, [3])[0]
    rows, exact = 40, SYSTEM.log_prob(x)
    batch = np.repeat(x[None], rows, 0)
    bound, iwae_10 = (np.asarray(a) for a in model.bounds(batch, 10))
    iwae_1000 = np.asarray(model.importance_log_prob(batch, num_samples=1000))
    gap = exact - np.array([bound.mean(), iwae_10.mean(), iwae_1000.mean()])
    error = np.array([bound.std(), iwae_10.std(), iwae_1000.std()]) / np.sqrt(rows)
    assert gap[0] > gap[1] + 2 * error[1] > gap[1] > gap[2] + 2 * error[2]
    assert -ERRORS * error[2] < gap[2] < 0.1, (gap, error)
    # the weights' mean itself is unbiased at any number of samples
    ratio = np.exp(iwae_1000 - exact)
    assert abs(ratio.mean() - 1.0) < ERRORS * ratio.std() / np.sqrt(rows)


def test_the_posterior_is_the_exact_smoother_when_the_guide_is_exact(rng, float64, eager):
    model, x, num = linear_model(), draw(rng, [5, 3]), 4000
    mean, stddev, paths = (np.asarray(a) for a in model.posterior(x, num_samples=num))
    for row, a in enumerate(x):
        exact, cov = SYSTEM.posterior(a)
        size = len(a) * SYSTEM.sizes[0]
        exact, cov = exact[:size], cov[:size, :size]
        assert_moments(paths[row, :, : len(a)].reshape(num, -1), exact, cov)
        spread = np.sqrt(np.diag(cov))
        np.testing.assert_array_less(np.abs(mean[row, : len(a)].ravel() - exact), ERRORS * spread / np.sqrt(num))
        np.testing.assert_allclose(stddev[row, : len(a)].ravel(), spread, rtol=ERRORS / np.sqrt(2 * num))
        assert not mean[row, len(a) :].any() and not stddev[row, len(a) :].any() and not paths[row, :, len(a) :].any()


def test_forecasts_have_the_exact_predictive_distribution(rng, eager):
    model, x, num, future = linear_model(), draw(rng, [4, 2]), 8000, 3
    samples = np.asarray(model.forecast(x, num_steps=future, num_samples=num, seed=[3, 1]))
    assert samples.shape == (2, num, future, 3)
    for row, a in enumerate(x):
        mean, cov = SYSTEM.posterior(a, num_future=future)
        last = slice(len(mean) - future * 3, None)
        assert_moments(samples[row].reshape(num, -1), mean[last], cov[last, last])


def test_imputed_values_have_the_exact_conditional_distribution(rng, eager):
    model, (x,), num = linear_model(missing=True), draw(rng, [4]), 8000
    observed = rng.random(x.shape) < 0.5
    samples = np.asarray(model.impute(x[None], observed=observed[None], num_samples=num))[0]
    np.testing.assert_array_equal(samples[:, observed], np.repeat(x[observed][None], num, 0))
    mean, cov = SYSTEM.posterior(x, observed)
    missing = len(x) * 2 + np.flatnonzero(~observed)
    assert_moments(samples[:, ~observed], mean[missing], cov[np.ix_(missing, missing)])


def test_samples_have_the_exact_joint_moments(eager):
    num, num_steps = 8000, 4
    samples = np.asarray(linear_model().sample(num, num_steps, seed=[5, 5])).reshape(num, -1)
    mean, cov = SYSTEM.joint(num_steps)
    assert_moments(samples, mean[num_steps * 2 :], cov[num_steps * 2 :, num_steps * 2 :])


def test_the_particle_filter_estimates_the_likelihood_without_bias(rng, eager):
    model, (x,), rows = linear_model(), draw(rng, [5]), 60
    exact, state = SYSTEM.log_prob(x), model.init_state(rows, num_particles=600)
    total = np.zeros(rows)
    for step in x:
        state = model.filter_step(np.repeat(step[None], rows, 0), state, seed=[2, 7])
        total += np.asarray(state.pop("log_prob"))
        np.testing.assert_allclose(tf.reduce_logsumexp(state["log_weights"], -1), 0.0, atol=1e-5)
    assert total.std() < 0.5 and len(np.unique(total.round(4))) > rows // 2  # close, and each row has numbers of its own
    ratio = np.exp(total - exact)
    assert abs(ratio.mean() - 1.0) < ERRORS * ratio.std() / np.sqrt(rows)
    np.testing.assert_array_equal(state["step"], 5)


def test_the_particle_filter_resamples_where_few_particles_carry_the_weight_and_only_there(eager):
    system = reference.LinearGaussian(np.eye(1), np.zeros(1), np.full(1, 2 * MIN_STDDEV), np.ones((1, 1)), np.zeros(1), np.ones(1))
    model, num = linear_model(system), 8
    places = np.tile(np.arange(num, dtype=np.float32)[:, None], (3, 1, 1))
    weights = np.log(np.full((3, num), 1.0 / num))
    weights[1] = np.log(np.where(np.arange(num) == 3, 1.0 - 7e-6, 1e-6))  # one particle carries all: effective number 1
    weights[2] = np.log(np.array([3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0]) / 16.0)  # effective number 6.4, above half
    state = {"particles": places, "log_weights": weights.astype(np.float32), "step": np.full(3, 4, np.int32)}
    after = model.filter_step(np.zeros((3, 1), np.float32), state)
    moved = np.asarray(after["particles"])[..., 0]
    np.testing.assert_allclose(moved[[0, 2]], places[[0, 2], :, 0], atol=1e-2)  # transition noise 2e-4
    np.testing.assert_allclose(moved[1], 3.0, atol=1e-2)
    log_lik = stats.norm.logpdf(0.0, moved, 1.0)
    expected = log_lik + np.where(np.arange(3)[:, None] == 1, np.log(1.0 / num), weights)
    np.testing.assert_allclose(after["log_prob"], np.log(np.exp(expected).sum(1)), rtol=1e-4)


# A step-by-step twin -----------------------------------------------------------------------------------------------

TWINS: dict[str, dict[str, Any]] = {
    "ST-R": {"guide": "ST-R"},
    "ST-R, everything": {
        "guide": "ST-R", "augment": True, "control_dim": 2, "missing": True, "mean": [0.3, 0.5, 0.2], "embedding_dim": 4, "scale": "variance",
    },
    "ST-L": {"guide": "ST-L", "learned_start": False, "scale": "variance", "transition": "mlp", "augment": True},
    "ST-LR": {"guide": "ST-LR", "num_flows": 2, "flow_dim": 6},
    "MF-LR": {"guide": "MF-LR", "emission_layers": 2, "transition": "linear", "control_dim": 1},
    "MF-LR with flows": {"guide": "MF-LR", "num_flows": 1, "flow_dim": 6, "learned_start": False, "scale": "variance"},
}  # fmt: skip


def shaken(model: DeepMarkovModel, rng: np.random.Generator, size: float = 0.4) -> DeepMarkovModel:
    """Every trainable weight moved, so that no term hides behind a zero or an identity."""
    for weight in model.trainable_weights:
        weight.assign_add(size * rng.normal(size=weight.shape))
    return model


def small_model(rng: np.random.Generator, **kwargs: Any) -> DeepMarkovModel:
    sizes = {"observation_dim": 3, "latent_dim": 2, "transition_dim": 4, "emission_dim": 4, "emission_layers": 1, "rnn_units": 5}
    return shaken(DeepMarkovModel(**{**sizes, **kwargs}), rng)


def example(model: DeepMarkovModel, rng: np.random.Generator, lengths: list[int]) -> dict[str, Any]:
    """Lists of binary sequences, and of what else the model takes."""
    data: dict[str, Any] = {"x": [(rng.random((n, 3)) < 0.5).astype(np.float32) for n in lengths]}
    if model.missing:
        data["observed"] = [rng.random((n, 3)) < 0.7 for n in lengths]
    if model.control_dim:
        data["u"] = [rng.normal(size=(n, model.control_dim)).astype(np.float32) for n in lengths]
    return data


@pytest.mark.parametrize("name", TWINS)
def test_every_step_equals_the_numpy_twin_given_the_same_noise(name, rng, float64, eager):
    model = small_model(rng, **TWINS[name])
    twin, lengths = reference.DeepMarkov(model), [5, 3]
    data = example(model, rng, lengths)
    batch = model.complete({**model.as_batch(data), "seed": np.array([4, 9], np.int32)})
    noise = np.asarray(random.normal(batch["seed"], tf.range(5), 2, dmm._GUIDE), np.float64)
    inputs = model._inputs(batch)
    latents = model._infer(inputs, model._context(inputs))
    log_lik, sampled = (np.asarray(a).T for a in model._terms(inputs, latents, analytic=False))
    analytic = np.asarray(model._terms(inputs, latents, analytic=True)[1]).T
    for row, n in enumerate(lengths):
        given = {k: v[row] for k, v in data.items() if k != "x"}
        expected = twin.terms(data["x"][row].astype(np.float64), noise[:n, row], **given)
        np.testing.assert_allclose(log_lik[row, :n], expected[0], rtol=1e-9)
        np.testing.assert_allclose(sampled[row, :n], expected[2], rtol=1e-8, atol=1e-9)  # a difference of logarithms
        if not model.flows:
            np.testing.assert_allclose(analytic[row, :n], expected[1], rtol=1e-9)
    terms = model.terms(batch)
    np.testing.assert_array_equal(terms.kl, sampled if model.flows else analytic)
    np.testing.assert_array_equal(terms.log_lik, log_lik)
    np.testing.assert_array_equal(terms.mask, [[True] * 5, [True] * 3 + [False] * 2])


@pytest.mark.parametrize("name", ["ST-R, everything", "ST-L"])
def test_samples_equal_the_numpy_twin_given_the_same_numbers(name, rng, float64, eager):
    model = small_model(rng, **TWINS[name])
    num, num_steps, seed = 20, 6, np.array([8, 1], np.int32)
    u = rng.normal(size=(num, num_steps, 2)).astype(np.float32) if model.control_dim else None
    seeds, times = random.row_seeds(tf.constant(seed), tf.range(num)), tf.range(num_steps)
    noise = np.asarray(random.normal(seeds, times, 2, dmm._PRIOR), np.float64)
    uniform = np.asarray(random.uniform(seeds, times, 3, dmm._EMISSION), np.float64)
    twin = reference.DeepMarkov(model)
    expected = [twin.sample(noise[:, i], uniform[:, i], None if u is None else u[i]) for i in range(num)]
    got = np.asarray(model.sample(num, num_steps, seed, u=u))
    np.testing.assert_array_equal(got, expected)
    assert set(np.unique(got)) == {0.0, 1.0}
    if u is not None:
        assert (np.asarray(model.sample(num, num_steps, seed, u=u + 3.0)) != got).any()
        with pytest.raises(ValueError, match="`u` must give the controls"):
            model.sample(num, num_steps, seed)


# Divergences -------------------------------------------------------------------------------------------------------


def test_the_analytic_kl_equals_quadrature(rng):
    mean, prior_mean = rng.normal(size=(2, 4, 2))
    stddev, prior_stddev = np.exp(rng.normal(size=(2, 4, 2)) / 2)
    grid = np.linspace(-12.0, 12.0, 40001)  # each term below 1e-9 at the ends
    q, p = (stats.norm(m[..., None], s[..., None]) for m, s in ((mean, stddev), (prior_mean, prior_stddev)))
    expected = np.trapezoid(q.pdf(grid) * (q.logpdf(grid) - p.logpdf(grid)), grid).sum(-1)
    np.testing.assert_allclose(gaussian_kl(*map(tf.constant, (mean, stddev, prior_mean, prior_stddev))), expected, rtol=1e-7)
    assert not gaussian_kl(*map(tf.constant, (mean, stddev, mean, stddev))).numpy().any()


def test_the_sampled_kl_has_the_mean_of_the_analytic_kl(rng, float64, eager):
    model, num = small_model(rng, guide="ST-LR"), 4000
    inputs = model._inputs(model.complete(model.as_batch(example(model, rng, [4]))))
    latents = model._infer(inputs, model._context(inputs), tf.range(num))
    sampled, analytic = (np.asarray(model._terms(inputs, latents, analytic=a)[1])[:, 0] for a in (False, True))
    difference = sampled - analytic  # given z_{t-1}, each step's has mean zero
    assert difference.std() > 0.1
    np.testing.assert_array_less(np.abs(difference.mean(1)), ERRORS * difference.std(1) / np.sqrt(num))


@pytest.mark.parametrize("scale", ["stddev", "variance"])
@pytest.mark.parametrize("kind", ["gated", "mlp", "linear"])
def test_transitions_follow_their_equations(kind, scale, rng, float64):
    layer = dmm.Transition(2, 5, kind, scale)
    z, extra = rng.normal(size=(2, 7, 3, 2))
    mean, stddev = layer(z, extra)
    if kind != "mlp":  # the identity at the start, controls without effect
        linear = layer.linear(np.concatenate([z, extra], -1))
        np.testing.assert_allclose(linear, z, atol=1e-12)
    if kind == "linear":
        np.testing.assert_allclose(mean, z, atol=1e-12)
    for weight in layer.trainable_weights:
        weight.assign_add(0.5 * rng.normal(size=weight.shape))
    mean, stddev = layer(z, extra)
    for t in range(7):
        for row in range(3):
            expected = reference.transition(layer, np.concatenate([z[t, row], extra[t, row]]))
            np.testing.assert_allclose(mean[t, row], expected[0], rtol=1e-10)
            np.testing.assert_allclose(stddev[t, row], expected[1], rtol=1e-10)


def test_a_stddev_has_a_floor_under_either_scale():
    raw = tf.constant([-200.0, 0.0])
    np.testing.assert_allclose(dmm.to_stddev(raw, "stddev"), [1e-4, np.log(2.0) + 1e-4], rtol=1e-6)
    np.testing.assert_allclose(dmm.to_stddev(raw, "variance"), [1e-4, np.sqrt(np.log(2.0))], rtol=1e-6)


# Padding, order, missing data --------------------------------------------------------------------------------------

SAME = {"rtol": 1e-5, "atol": 1e-6}  # the order of float32 sums differs with the size of a batch
EVERYTHING: dict[str, Any] = {"guide": "ST-LR", "cell": "gru", "augment": True, "control_dim": 1, "missing": True, "kl": "sampled", "dropout": 0.3}


def rows_of(data: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {name: [value[i] for i in rows] for name, value in data.items()}


def outputs(model: DeepMarkovModel, batch: dict[str, Any], future_u: Array) -> dict[str, Array]:
    """Everything that a user asks of a model, row by row, zeros at padded steps where steps are."""
    given = {k: batch[k] for k in ("x", "mask", "observed", "u", "seed")}
    terms = model.terms(model.complete(batch), training=True)  # with dropout, which is by row and step too
    elbo, log_prob = model.bounds(given, 3)
    mean, stddev, path = model.posterior(given, num_samples=2)
    return {
        "log_lik": np.where(batch["mask"], terms.log_lik, 0.0),
        "kl": np.where(batch["mask"], terms.kl, 0.0),
        "elbo": elbo,
        "log_prob": log_prob,
        "mean": mean,
        "stddev": stddev,
        "path": np.swapaxes(path, 1, 2),
        "forecast": model.forecast(given, num_steps=2, num_samples=2, future_u=future_u),
        "impute": np.swapaxes(model.impute(given, num_samples=2), 1, 2),
    }


def gradients(model: DeepMarkovModel, batch: dict[str, Any]) -> list[Array]:
    with tf.GradientTape() as tape:
        terms = model.terms(model.complete(batch), training=True)
        loss = tf.reduce_sum(tf.where(terms.mask, terms.log_lik - terms.kl, 0.0))
    return [np.asarray(g) for g in tape.gradient(loss, model.trainable_weights)]


def test_padding_its_content_and_the_other_rows_of_a_batch_change_nothing(rng, eager):
    model, lengths = small_model(rng, **EVERYTHING), [4, 2, 0, 3]
    data = example(model, rng, lengths)
    seeds, future_u = rng.integers(0, 2**31 - 1, (4, 2)).astype(np.int32), rng.normal(size=(4, 2, 1)).astype(np.float32)
    alone = []
    for i in range(4):
        batch = {**model.as_batch(rows_of(data, [i])), "seed": seeds[[i]]}
        alone.append((outputs(model, batch, future_u[[i]]), gradients(model, batch)))
    assert all(np.ptp(alone[0][0][name]) > 0 for name in ("log_lik", "kl", "path", "forecast"))
    total = [sum(g) for g in zip(*(gradient for _, gradient in alone), strict=True)]
    for garbage in (np.nan, 1e30):
        order = [3, 0, 2, 1]
        batch = {**model.as_batch(rows_of(data, order)), "seed": seeds[order]}
        wide = {k: np.pad(batch[k], [(0, 0), (0, 2)] + [(0, 0)] * (batch[k].ndim - 2)) for k in ("x", "mask", "observed", "u")}
        padded = ~wide["mask"]
        wide["x"][padded], wide["u"][padded], wide["observed"][padded] = garbage, garbage, True
        wide["x"][~wide["observed"]] = garbage  # an unmeasured value is as meaningless as padding
        wide = {**wide, "row": batch["row"], "seed": batch["seed"]}
        got = outputs(model, wide, future_u[order])
        for place, i in enumerate(order):
            for name, expected in alone[i][0].items():
                value, expected = np.asarray(got[name])[place], np.asarray(expected)[0]
                if expected.ndim and name not in ("forecast",):
                    assert not value[len(expected) :].any(), name
                    value = value[: len(expected)]
                if name == "impute":  # the value given here is finite, there garbage, and returned as it came
                    keep = data["observed"][i][: lengths[i]]
                    value, expected = value[: lengths[i]], expected[: lengths[i]]
                    np.testing.assert_array_equal(value[keep.nonzero()[0], :, keep.nonzero()[1]], expected[keep.nonzero()[0], :, keep.nonzero()[1]])
                np.testing.assert_allclose(value, expected, err_msg=f"{name} of row {i}", **SAME)
        for weight, a, b in zip(model.trainable_weights, gradients(model, wide), total, strict=True):
            scale = np.abs(b).max() + 1e-3
            np.testing.assert_allclose(a / scale, b / scale, atol=1e-5, err_msg=weight.path)


def test_padding_changes_nothing_in_a_graph_of_the_default_model(rng):
    model = small_model(rng)
    data = example(model, rng, [3, 5])
    seeds = np.array([[1, 2], [3, 4]], np.int32)
    both = model.elbo({"x": data["x"], "seed": seeds})
    for i in range(2):
        np.testing.assert_allclose(model.elbo({"x": data["x"][i][None], "seed": seeds[[i]]}), both[i][None], **SAME)
    wide = {k: np.pad(v, [(0, 0), (0, 3)] + [(0, 0)] * (v.ndim - 2)) for k, v in model.as_batch(data).items() if k != "row"}
    wide["x"][~wide["mask"]] = np.nan
    np.testing.assert_allclose(model.elbo({**wide, "seed": seeds}), both, **SAME)


def test_a_seed_for_the_batch_gives_each_row_number_its_own_numbers(rng, eager):
    model = small_model(rng)
    x = np.repeat(example(model, rng, [4])["x"], 3, 0)
    same, other = model.elbo(x, seed=[1, 2]), model.elbo(x, seed=[1, 3])
    assert len(np.unique(same)) == 3 and not np.isin(same, other).any()
    np.testing.assert_array_equal(model.elbo(x, seed=[1, 2]), same)
    by_row = model.elbo({"x": x[[2, 0]], "row": np.array([2, 0]), "seed": np.array([1, 2], np.int32)})
    np.testing.assert_allclose(by_row, tf.gather(same, [2, 0]), rtol=1e-5)


def test_nan_where_nothing_was_observed_leaves_gradients_finite(rng, eager):
    model = small_model(rng, missing=True, mean=[0.2, 0.4, 0.6])
    data = example(model, rng, [3, 4])
    clean = gradients(model, model.as_batch(data))
    data["x"] = [np.where(o, a, np.float32(np.nan)) for a, o in zip(data["x"], data["observed"], strict=True)]
    for a, b in zip(gradients(model, model.as_batch(data)), clean, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(g).max() > 1e-2 for g in clean)


def test_without_its_likelihood_term_a_feature_is_marginalised(rng, float64, eager):
    model = small_model(rng, missing=True)
    data = example(model, rng, [4])
    data["observed"][0][:, 1], data["observed"][0][:, [0, 2]] = False, True
    inputs = model._inputs(model.complete(model.as_batch(data)))
    latents = model._infer(inputs, model._context(inputs))
    log_lik = model._terms(inputs, latents, analytic=True)[0]
    each = model.emit(latents.z, None).log_prob(tf.cast(inputs["x"], tf.float64))
    np.testing.assert_allclose(log_lik, each[..., 0] + each[..., 2], rtol=1e-12)


def test_an_empty_sequence_has_bound_zero_and_forecasts_from_the_start(rng, eager):
    model = small_model(rng, augment=True)
    empty = [np.zeros((0, 3), np.float32)]
    for bound in model.bounds(empty, 5):
        np.testing.assert_array_equal(bound, [0.0])
    num = 4000
    future = np.asarray(model.forecast(empty, num_steps=2, num_samples=num))[0].reshape(num, -1)
    fresh = np.asarray(model.sample(num, 2)).reshape(num, -1)
    error = np.sqrt((future.var(0) + fresh.var(0)) / num)
    np.testing.assert_array_less(np.abs(future.mean(0) - fresh.mean(0)), ERRORS * error)


# "Aug" edges and controls ------------------------------------------------------------------------------------------


def test_with_aug_edges_an_observation_reaches_the_next_step_and_not_its_own_parameters(rng, float64, eager):
    model = small_model(rng, augment=True)
    x = example(model, rng, [5])["x"][0]
    inputs = model._inputs(model.complete(model.as_batch(x[None])))
    latents = model._infer(inputs, model._context(inputs))
    changed = x.copy()
    changed[2] = 1.0 - changed[2]
    other = model._inputs(model.complete(model.as_batch(changed[None])))

    def logits(inputs: dict[str, tf.Tensor]) -> Array:
        return np.asarray(model.emit(latents.z, inputs["previous"]).logits_parameter())[:, 0]

    def kl(inputs: dict[str, tf.Tensor]) -> Array:
        return np.asarray(model._terms(inputs, latents, analytic=True)[1])[:, 0]

    moved = np.abs(logits(other) - logits(inputs)).max(-1) > 1e-6
    np.testing.assert_array_equal(moved, [False, False, False, True, False])
    np.testing.assert_array_equal(np.abs(kl(other) - kl(inputs)) > 1e-6, [False, False, False, True, False])
    assert not inputs["previous"][0].numpy().any()


def test_controls_move_the_exact_forecast_by_their_effect(rng, float64, eager):
    model, (x,) = linear_model(exact=False, control_dim=1), draw(rng, [3])
    effect = np.array([[2.0, -1.0]])
    model.transition.linear.kernel.assign(np.concatenate([SYSTEM.transition.T, effect]))
    quiet = {"u": np.zeros((1, 3, 1)), "future_u": np.zeros((1, 2, 1)), "num_steps": 2, "num_samples": 3}
    loud = {**quiet, "future_u": np.array([[[1.0], [0.0]]])}
    difference = np.asarray(model.forecast(x[None], **loud) - model.forecast(x[None], **quiet))[0]
    first = SYSTEM.emission @ effect[0]  # do(u): the same noise, so the difference is exact
    second = SYSTEM.emission @ SYSTEM.transition @ effect[0]
    np.testing.assert_allclose(difference, np.tile([first, second], (3, 1, 1)), atol=1e-5)  # samples are float32
    with pytest.raises(ValueError, match=r"`future_u` must give the controls .* shape \[1, 2, 1\]"):
        model.forecast(x[None], u=quiet["u"], num_steps=2)


# Construction and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["krishnan", "pyro"])
def test_presets_construct_with_the_settings_of_their_source(name):
    model = DeepMarkovModel(**DeepMarkovModel.preset(name, observation_dim=4))
    assert (model.latent_dim, model.guide.units, model.transition.hidden_dim) == (100, 600, 200)
    assert (model.learned_start, model.analytic_kl, model.transition.scale) == {
        "krishnan": (False, True, "variance"), "pyro": (True, False, "stddev"),
    }[name]  # fmt: skip
    assert model.guide.encoders[0].cell == {"krishnan": "lstm", "pyro": "rnn"}[name]


def test_an_unknown_preset_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"`preset` must be one of .* Did you mean 'krishnan'"):
        DeepMarkovModel.preset("krishnam")


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        *((name, 0) for name in ("observation_dim", "latent_dim", "transition_dim", "emission_dim", "rnn_units", "flow_dim")),
        *((name, -1) for name in ("control_dim", "emission_layers", "embedding_dim", "num_flows")),
        ("latent_dim", 2.5), ("latent_dim", True), ("mean", [0.5]),
        ("head", "bernouli"), ("transition", "gate"), ("guide", "ST"), ("cell", "grru"), ("scale", "std"), ("kl", "analytical"),
        ("dropout", 1.0), ("dropout", -0.1),
    ],
)  # fmt: skip
def test_a_bad_constructor_argument_is_an_error_that_names_it(argument, bad):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        DeepMarkovModel(**{"observation_dim": 3, "latent_dim": 2, "rnn_units": 3, "transition_dim": 3, "emission_dim": 3, argument: bad})


def test_an_analytic_kl_with_flows_is_an_error():
    with pytest.raises(ValueError, match="`kl` must be 'sampled' or 'auto' with flows"):
        DeepMarkovModel(observation_dim=3, kl="analytic", num_flows=1)


def test_positional_arguments_are_an_error():
    with pytest.raises(TypeError, match="keyword arguments only"):
        DeepMarkovModel(3)


@pytest.fixture(scope="module")
def model() -> DeepMarkovModel:
    return DeepMarkovModel.tiny()


@pytest.fixture(scope="module")
def controlled() -> DeepMarkovModel:
    return DeepMarkovModel(observation_dim=3, latent_dim=2, rnn_units=3, transition_dim=3, emission_dim=3, control_dim=2)


X = np.array([[[0, 1, 1], [1, 0, 0]], [[1, 1, 1], [0, 0, 1]]], np.float32)
NAN = np.where(np.arange(12).reshape(2, 2, 3) == 7, np.float32(np.nan), X)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[0], r"`x` must have shape \[B, T, 3\]; received \[2, 3\]\. Add the batch axis: `x\[None\]`"),
        (X[None], r"`x` must have shape \[B, T, 3\]; received \[1, 2, 2, 3\]"),
        (X[..., :2], r"`x` must have shape \[B, T, 3\]; received \[2, 2, 2\]"),
        (NAN, r"`x` must be finite wherever it is real and observed; received nan at index \(1, 0, 1\)"),
        (X * np.inf, "`x` must be finite"),
        (127 * X, r"`x` must be 0 or 1 everywhere for a Bernoulli head; received 127 .*Binarise"),
        (X.astype(complex), "`x` must be float32; received complex"),
        ({"x": X, "mask": np.array([[False, True], [True, True]])}, "`mask` must be right-padded"),
        ({"x": X, "mask": np.ones((2, 2))}, r"`mask` must be bool of shape .* received float64"),
        ({"x": X, "mask": np.ones((2, 3), bool)}, r"`mask` must be bool of shape \[B, T\] = \[2, 2\]"),
        ({"x": X, "observed": np.ones((2, 2, 3))}, "`observed` must be bool; received float64"),
        ({"x": X, "observed": np.ones((2, 3, 3), bool)}, r"`observed` must be \[B, T, \.\.\.\]"),
        ({"x": X, "labels": X}, r"takes .*\['mask', 'observed', 'x'\].*; received also \['labels'\]"),
        ({"mask": np.ones((2, 2), bool)}, "The batch has no `x`"),
        ([], "`x` has no sequences"),
        ([X[0], X[0, :, :2]], "The sequences of `x` must agree in all axes but the first"),
    ],
)
def test_a_bad_batch_is_an_error_that_says_what_came(model, data, message):
    with pytest.raises(ValueError, match=message):
        model.as_batch(data)


def test_bad_controls_are_an_error(controlled):
    with pytest.raises(ValueError, match="The batch has no `u`"):
        controlled.as_batch(X)
    with pytest.raises(ValueError, match=r"`u` must have shape \[B, T, 2\]"):
        controlled.as_batch({"x": X, "u": X})
    with pytest.raises(ValueError, match="`u` must be finite"):
        controlled.as_batch({"x": X, "u": np.full((2, 2, 2), np.nan)})
    with pytest.raises(ValueError, match="`u`"):  # the lengths of the rows are swapped
        controlled.as_batch({"x": [X[0], X[0, :1]], "u": [np.ones((1, 2)), np.ones((2, 2))]})


def test_what_is_masked_or_unobserved_may_be_anything(model):
    batch = model.as_batch({"x": NAN, "observed": np.isfinite(NAN)})
    np.testing.assert_array_equal(batch["mask"], True)
    batch = model.as_batch({"x": NAN, "mask": np.array([[True, True], [False, False]])})
    assert sorted(batch) == ["mask", "row", "x"]


def test_methods_check_their_arguments(model):
    with pytest.raises(ValueError, match="`num_samples` must be a whole number of at least 1; received 0"):
        model.elbo(X, num_samples=0)
    with pytest.raises(ValueError, match="`num_steps` must be a whole number of at least 1"):
        model.sample(2, 0)
    with pytest.raises(ValueError, match="`impute` needs `observed`"):
        model.impute(X)
    with pytest.raises(ValueError, match=r"`seed` must have shape \[2\], or \[B, 2\]"):
        model.elbo(X, seed=3)


def test_categorical_observations_go_through_every_method(rng, eager):
    model = DeepMarkovModel(observation_dim=4, latent_dim=2, head="categorical", augment=True, missing=True, rnn_units=3, transition_dim=3, emission_dim=3)
    x, observed = rng.integers(0, 4, (2, 3)).astype(np.int32), np.array([[True, False, True], [True, True, True]])
    batch = {"x": x, "observed": observed}
    assert np.isfinite(model.importance_log_prob(batch, num_samples=2)).all()
    for symbols, shape in (
        (model.sample(3, 5), (3, 5)), (model.forecast(batch, num_steps=4, num_samples=3), (2, 3, 4)), (model.impute(batch, num_samples=3), (2, 3, 3)),
    ):  # fmt: skip
        assert symbols.shape == shape and symbols.dtype == tf.int32
        assert set(np.unique(symbols)) <= set(range(4))
    np.testing.assert_array_equal(np.asarray(model.impute(batch))[:, 0][observed], x[observed])
    state = model.filter_step(x[:, 0], model.init_state(2, num_particles=5))
    assert np.isfinite(model.filter_step(x[:, 1], state | {})["log_prob"]).all()
