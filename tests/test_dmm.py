"""The deep Markov model against exact Gaussian results, Kalman likelihoods and a NumPy twin in loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tests import reference
from tfseq.data.batching import Sequences
from tfseq.models.dmm import DeepMarkovModel
from tfseq.models.state_space import gaussian_kl, to_stddev
from tfseq.ops import bounds, random
from tfseq.ops.masking import pad

LINEAR = reference.LinearGaussian(  # the two latents do not mix, so the exact posterior of a step is diagonal
    transition=np.diag([0.8, -0.5]),
    bias=np.array([0.3, 0.0]),
    noise=np.array([0.6, 0.9]),
    emission=np.array([[1.5, 0.0], [0.0, -1.0]]),
    offset=np.array([0.2, -0.4]),
    emission_noise=np.array([0.7, 0.5]),
)
LENGTHS = [5, 2, 1]


def linear_model(**kwargs: Any) -> DeepMarkovModel:
    """A `DeepMarkovModel` with the transition and the emission of `LINEAR`."""
    settings = {"head": "normal", "transition": "linear", "emission_layers": 0, "learned_start": False, "rnn_units": 4}
    model = DeepMarkovModel(observation_dim=2, latent_dim=2, **{**settings, **kwargs})
    floor = reference.MIN_STDDEV
    model.transition.linear.kernel.assign(LINEAR.transition.T)
    model.transition.linear.bias.assign(LINEAR.bias)
    model.transition.raw_scale.assign(reference.softplus_inverse(LINEAR.noise - floor))
    model.head.kernel.assign(np.concatenate([LINEAR.emission.T, np.zeros((2, 2))], 1))
    model.head.bias.assign(np.concatenate([LINEAR.offset, reference.softplus_inverse(LINEAR.emission_noise - floor)]))
    return model


class ExactGuide:
    """q(z_t | z_{t-1}, observed x_{t:T}) of `LINEAR` in the place of a `StructuredGuide`; each row's own length counts."""

    is_structured, units = True, 6

    def encode(self, inputs: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor, training: bool) -> tuple[tf.Tensor]:
        def exact(inputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
            out = np.ones((*mask.shape, 6), np.float32)
            for row, length in enumerate(mask.sum(0)):
                if length:
                    x, seen = np.split(inputs[:length, row].astype(float), [2], -1)
                    out[:length, row] = np.concatenate(LINEAR.guide(x, seen > 0.5 if seen.size else None), -1)
            return out

        context = tf.numpy_function(exact, [inputs, mask], tf.float32)
        return (tf.ensure_shape(context, [None, None, 6]),)

    def combiner(self) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        def combine(context: tuple[tf.Tensor], z: tf.Tensor, multiply: Any) -> tuple[tf.Tensor, tf.Tensor]:
            slope, offset, stddev = tf.split(context[0], 3, -1)
            return slope * z + offset, stddev + tf.zeros_like(z)

        return combine


def kalman_log_prob(x: np.ndarray) -> float:
    """TFP's Kalman filter for `LINEAR`, the latent moved by its bias."""
    model = tfd.LinearGaussianStateSpaceModel(
        num_timesteps=len(x),
        transition_matrix=tf.constant(LINEAR.transition),
        transition_noise=tfd.MultivariateNormalDiag(LINEAR.bias, LINEAR.noise),
        observation_matrix=tf.constant(LINEAR.emission),
        observation_noise=tfd.MultivariateNormalDiag(LINEAR.offset, LINEAR.emission_noise),
        initial_state_prior=tfd.MultivariateNormalDiag(tf.zeros([2], tf.float64), tf.ones([2], tf.float64)),
    )
    return float(model.log_prob(tf.constant(x)))


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    """Three sequences of 5, 2 and 1 steps."""
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, 2)).astype(np.float32) for n in LENGTHS]


@pytest.fixture(scope="module")
def kalman(sequences: list[np.ndarray]) -> np.ndarray:
    """log p of each sequence, by TFP's Kalman filter; the joint Gaussian says the same."""
    found = [kalman_log_prob(x.astype(float)) for x in sequences]
    np.testing.assert_allclose(found, [LINEAR.log_prob(x.astype(float)) for x in sequences], rtol=1e-8)
    return np.array(found)


def with_exact_guide(**kwargs: Any) -> DeepMarkovModel:
    """The linear model with its exact posterior as guide."""
    model = linear_model(**kwargs)
    object.__setattr__(model, "guide", ExactGuide())
    return model


@pytest.fixture(scope="module")
def exact_model() -> DeepMarkovModel:
    """The linear model with its exact posterior as guide, all features observed."""
    return with_exact_guide()


def assert_moments(drawn: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    """Samples `[S, ...]` have these moments, within 4.5 standard errors: one false alarm in 10^5 comparisons."""
    drawn, num = drawn.astype(float), len(drawn)  # float32 sums of thousands would cost digits
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * np.sqrt(variance / num) + 1e-6).all()
    np.testing.assert_allclose(drawn.var(0), variance, rtol=4.5 * np.sqrt(2 / num), atol=1e-6)


def test_with_the_exact_posterior_every_sample_gives_the_kalman_likelihood(
    exact_model: DeepMarkovModel, sequences: list[np.ndarray], kalman: np.ndarray
) -> None:
    for num_samples in (1, 7):
        elbo, importance = exact_model.bounds(sequences, num_samples)
        # every weight is p(x): the only gap is float32's, a few 1e-7 of terms of size 10
        np.testing.assert_allclose(elbo, kalman, rtol=2e-5)
        np.testing.assert_allclose(importance, kalman, rtol=2e-5)


def test_forecasts_have_the_exact_predictive_moments(exact_model: DeepMarkovModel, sequences: list[np.ndarray]) -> None:
    drawn = exact_model.forecast(sequences, num_steps=2, num_samples=4000, seed=[3, 4]).numpy()
    for row, x in enumerate(sequences):
        mean, cov = LINEAR.posterior(x.astype(float), num_future=2)
        assert_moments(drawn[row], mean[-4:].reshape(2, 2), np.diag(cov)[-4:].reshape(2, 2))


def test_new_sequences_have_the_exact_marginal_moments(exact_model: DeepMarkovModel) -> None:
    mean, cov = LINEAR.joint(3)
    assert_moments(exact_model.sample(4000, 3, seed=[5, 6]).numpy(), mean[6:].reshape(3, 2), np.diag(cov)[6:].reshape(3, 2))


def test_the_posterior_is_the_exact_smoother(exact_model: DeepMarkovModel, sequences: list[np.ndarray]) -> None:
    num_samples = 4000
    mean, stddev, paths = (a.numpy() for a in exact_model.posterior(sequences, num_samples=num_samples, seed=[1, 2]))
    for row, x in enumerate(sequences):
        n = len(x)
        exact, cov = LINEAR.posterior(x.astype(float))
        latents = slice(0, 2 * n)
        exact_mean, exact_cov = exact[latents].reshape(n, 2), cov[latents, latents]
        variance = np.diag(exact_cov).reshape(n, 2)
        assert_moments(paths[row, :, :n], exact_mean, variance)
        # the moments over the paths' Gaussians vary less than those of the paths
        assert (np.abs(mean[row, :n] - exact_mean) < 4.5 * np.sqrt(variance / num_samples)).all()
        np.testing.assert_allclose(stddev[row, :n] ** 2, variance, rtol=4.5 * np.sqrt(2 / num_samples))
        # steps belong together: covariances over time, error of a product of two unit normals
        found, scale = np.cov(paths[row, :, :n].reshape(num_samples, -1).T), np.sqrt(np.diag(exact_cov))
        np.testing.assert_array_less(np.abs(found - exact_cov) / np.outer(scale, scale), 4.5 * np.sqrt(2 / num_samples))
        assert not mean[row, n:].any() and not stddev[row, n:].any() and not paths[row, :, n:].any()


def test_missing_features_are_marginalised_and_imputed_as_exact_gaussians(sequences: list[np.ndarray]) -> None:
    model = with_exact_guide(missing=True)
    rng = np.random.default_rng(3)
    observed = [rng.random(x.shape) < 0.6 for x in sequences]
    observed[1][1] = False  # a step of which nothing was seen
    data = {
        "x": [np.where(o, x, np.nan).astype(np.float32) for x, o in zip(sequences, observed, strict=True)],
        "observed": observed,
    }
    exact = [LINEAR.log_prob(x.astype(float), o) for x, o in zip(sequences, observed, strict=True)]
    for found in model.bounds(data, 5):
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-5)  # float32, as above
    x = pad(data["x"])
    mask = np.arange(x.shape[1]) < np.array(LENGTHS)[:, None]
    drawn = model.impute(x, mask, pad(observed), num_samples=4000, seed=[4, 5]).numpy()
    for row, (values, seen) in enumerate(zip(sequences, observed, strict=True)):
        n = len(values)
        mean, cov = LINEAR.posterior(values.astype(float), seen)
        places = slice(2 * n, 4 * n)
        wanted = np.where(seen, values, mean[places].reshape(n, 2))
        assert_moments(drawn[row, :, :n], wanted, np.where(seen, 0.0, np.diag(cov)[places].reshape(n, 2)))
        np.testing.assert_array_equal(drawn[row, :, :n][:, seen], np.tile(values[seen], (4000, 1)))


def test_the_particle_filter_estimates_the_likelihood_without_bias(exact_model: DeepMarkovModel, kalman: np.ndarray) -> None:
    # each row is an independent filter of only 16 particles, which resamples; the mean of the estimates is p(x) itself
    x = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)  # the first of `sequences`
    num_rows, total, resampled = 4000, 0.0, 0
    state = exact_model.init_state(num_rows, num_particles=16)
    for step in x:
        log_weights = state["log_weights"].numpy()
        resampled += (1.0 / (np.exp(log_weights) ** 2).sum(1) < 8.0).sum()
        state = exact_model.filter_step(np.tile(step, (num_rows, 1)), state, seed=[9, 9])
        total = total + state.pop("log_prob").numpy().astype(float)
    ratio = np.exp(total - kalman[0])
    assert resampled > num_rows / 10
    assert abs(ratio.mean() - 1.0) < 4.5 * ratio.std() / np.sqrt(num_rows)
    assert ratio.std() / np.sqrt(num_rows) < 0.05  # else the test could not see a bias


def test_the_particle_filter_finds_the_kalman_likelihood(
    exact_model: DeepMarkovModel, sequences: list[np.ndarray], kalman: np.ndarray
) -> None:
    state, total, weights = exact_model.init_state(1, num_particles=4000), 0.0, []
    for x in sequences[0]:
        state = exact_model.filter_step(x[None], state, seed=[7, 8])
        total += float(state.pop("log_prob")[0])
        weights.append(state["log_weights"].numpy()[0])
    assert total == pytest.approx(kalman[0], abs=0.15)  # five standard deviations of the estimate over seeds, about 0.03
    assert np.exp(weights[-1]).sum() == pytest.approx(1.0, rel=1e-4)


def test_importance_sampling_rises_to_the_exact_likelihood(sequences: list[np.ndarray], kalman: np.ndarray) -> None:
    keras.utils.set_random_seed(1)
    model = linear_model()  # an untrained guide
    elbo = np.mean([model.elbo(sequences, num_samples=200, seed=[s, 0]) for s in range(3)], 0)
    few = np.mean([model.importance_log_prob(sequences, num_samples=10, seed=[s, 0]) for s in range(200)], 0)
    many = model.importance_log_prob(sequences, num_samples=50_000).numpy()
    assert (elbo < few).all()
    assert (few < many).all()
    # five standard deviations of the estimates over seeds: the weights of five steps vary more than those of one or two
    assert (np.abs(many - kalman) < [0.25, 0.03, 0.035]).all()


def test_the_closed_form_divergence_is_that_of_tfp(rng: np.random.Generator) -> None:
    mean, prior_mean = rng.normal(size=(2, 5, 3))
    stddev, prior_stddev = rng.uniform(0.3, 2.0, size=(2, 5, 3))
    wanted = tfd.MultivariateNormalDiag(mean, stddev).kl_divergence(tfd.MultivariateNormalDiag(prior_mean, prior_stddev))
    np.testing.assert_allclose(gaussian_kl(mean, stddev, prior_mean, prior_stddev).numpy().sum(-1), wanted, rtol=1e-10)


def test_a_standard_deviation_has_its_floor_in_every_dtype() -> None:
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        for scale in ("variance", "stddev"):
            found = tf.cast(to_stddev(tf.constant([-50.0, 0.0], dtype), scale), tf.float64)
            wanted = reference.to_stddev(np.array([-50.0, 0.0]), scale)
            np.testing.assert_allclose(found, wanted, rtol={"bfloat16": 1e-2, "float16": 1e-3}.get(dtype, 1e-6))


VARIANTS: dict[str, dict[str, Any]] = {
    "ST-R": {},
    "ST-L variance": {"guide": "ST-L", "scale": "variance", "transition": "mlp"},
    "ST-LR embedding": {"guide": "ST-LR", "embedding_dim": 3, "learned_start": False},
    "MF-LR": {"guide": "MF-LR", "learned_start": False},
    "everything": {"augment": True, "missing": True, "control_dim": 2, "num_flows": 2, "flow_dim": 5},
}


def perturbed(name: str, rng: np.random.Generator, **more: Any) -> DeepMarkovModel:
    """A small model of a variant, every weight away from its start."""
    keras.utils.set_random_seed(0)
    settings = {"latent_dim": 2, "transition_dim": 4, "emission_dim": 4, "rnn_units": 5, "mean": [0.2, 0.5, 0.7]}
    model = DeepMarkovModel(observation_dim=3, **{**settings, **VARIANTS[name], **more})
    for weight in model.trainable_weights:
        weight.assign(weight.numpy() + rng.normal(0.0, 0.3, weight.shape))
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_new_sequences_are_those_of_a_loop_in_numpy(name: str, rng: np.random.Generator) -> None:
    model, seeds, times = perturbed(name, rng), np.array([[1, 2], [3, 4], [5, 6]], np.int32), tf.range(4)
    u = rng.normal(size=(3, 4, 2)).astype(np.float32) if model.control_dim else None
    found = model.sample(3, 4, seed=seeds, u=u).numpy()
    noise, uniform = (
        random.normal(seeds, times, 2, 1).numpy(),
        random.uniform(seeds, times, 3, 2).numpy(),
    )  # salts of the prior, of x
    twin = reference.DeepMarkov(model)
    for row in range(3):
        wanted = twin.sample(noise[:, row].astype(float), uniform[:, row], None if u is None else u[row])
        np.testing.assert_array_equal(found[row], wanted)


@pytest.mark.parametrize("name", VARIANTS)
def test_terms_are_those_of_a_loop_in_numpy(name: str, rng: np.random.Generator) -> None:
    model = perturbed(name, rng)
    twin, lengths = reference.DeepMarkov(model), [4, 1]
    xs = [(rng.random((n, 3)) < 0.5).astype(np.float32) for n in lengths]
    seeds = np.array([[1, 2], [3, 4]], np.int32)
    data: dict[str, Any] = {"x": xs, "seed": seeds}
    observed = [rng.random((n, 3)) < 0.6 for n in lengths] if model.missing else [None, None]
    controls = [rng.normal(size=(n, 2)).astype(np.float32) for n in lengths] if model.control_dim else [None, None]
    data |= {"observed": observed} if model.missing else {}
    data |= {"u": controls} if model.control_dim else {}
    batch = model.complete(model.as_batch(data))
    inputs = model._inputs(batch)
    latents = model._infer(inputs, model.read(inputs))
    noise = random.normal(seeds, tf.range(4), 2, 0).numpy()
    for analytic, which in ((True, 1), (False, 2)):
        if analytic and model.flows:
            continue
        log_lik, kl, _ = model._terms(inputs, latents, analytic)
        for row, n in enumerate(lengths):
            wanted = twin.terms(xs[row].astype(float), noise[:n, row].astype(float), observed[row], controls[row])
            np.testing.assert_allclose(log_lik[:n, row], wanted[0], rtol=2e-4, atol=2e-5)  # float32 through four steps
            np.testing.assert_allclose(kl[:n, row], wanted[which], rtol=2e-4, atol=2e-5)


def test_a_filter_with_the_exact_guide_gives_the_kalman_likelihood(
    exact_model: DeepMarkovModel, sequences: list[np.ndarray], kalman: np.ndarray
) -> None:
    for num_particles in (1, 5):  # every weight is p(x_t | z_{t-1}, ...) of a particle; of one particle their product is p(x)
        found = exact_model.filter_log_prob(sequences, num_particles=num_particles)
        if num_particles == 1:
            np.testing.assert_allclose(found, kalman, rtol=2e-5)  # float32, as above


def test_filters_with_an_untrained_guide_estimate_the_likelihood_without_bias_and_rise_to_it(
    sequences: list[np.ndarray], kalman: np.ndarray
) -> None:
    keras.utils.set_random_seed(1)
    model = linear_model()
    x = np.repeat(sequences[0][None], 4000, 0)  # every row a filter of its own
    bounds = {num: model.filter_log_prob(x, num_particles=num, seed=[2, 3]).numpy().astype(float) for num in (4, 16, 64)}
    means = [bound.mean() for bound in bounds.values()]
    assert means[0] < means[1] < means[2] < kalman[0] + 0.02  # its standard error is below 0.01
    assert kalman[0] - means[2] < 0.5 * (kalman[0] - means[1])  # the gap falls as 1 / N
    ratio = np.exp(bounds[64] - kalman[0])
    assert abs(ratio.mean() - 1.0) < 4.5 * ratio.std() / np.sqrt(len(ratio))
    assert ratio.std() / np.sqrt(len(ratio)) < 0.02  # else the test could not see a bias
    # a filter resamples what importance sampling carries to the end
    importance = np.mean([model.importance_log_prob(sequences[0][None], num_samples=16, seed=[s, 0]) for s in range(50)])
    assert means[1] > importance


@pytest.mark.parametrize("name", ["ST-R", "everything"])
def test_training_with_several_paths_maximises_the_bounds_that_are_reported(name: str, rng: np.random.Generator) -> None:
    seeds, x = np.array([[1, 2], [3, 4]], np.int32), (rng.random((2, 4, 3)) < 0.5).astype(np.float32)
    u = {"u": rng.normal(size=(2, 4, 2)).astype(np.float32)} if name == "everything" else {}
    data = {"x": x, "mask": np.array([[True] * 4, [True, False, False, False]]), "seed": seeds, **u}
    elbo, importance = (a.numpy() for a in perturbed(name, np.random.default_rng(5)).bounds(data, 3))
    for objective in ("elbo", "iwae"):
        model = perturbed(name, np.random.default_rng(5), objective=objective, train_samples=3, kl="sampled")
        terms = model.terms(model.complete(model.as_batch(data)), training=True)
        # the same three paths, summed in another order
        np.testing.assert_allclose(bounds.elbo(*terms[:3]), elbo, rtol=1e-5)
        if objective == "elbo":
            assert terms.objective is None
        else:
            np.testing.assert_allclose(terms.objective, importance, rtol=1e-5)
            model.kl_weight.assign(0.0)  # the warm-up reaches the objective
            warm = model.terms(model.complete(model.as_batch(data)), training=True)
            assert (warm.objective.numpy() > terms.objective.numpy()).all()
        assert model.terms(model.complete(model.as_batch(data)), training=False).objective is None


def test_a_nan_that_is_not_observed_is_harmless_and_marginalised(rng: np.random.Generator) -> None:
    model = linear_model(missing=True)
    x = rng.normal(size=(2, 4, 2)).astype(np.float32)
    observed = rng.random((2, 4, 2)) < 0.6
    found = []
    for hidden in (np.nan, 1e30, 0.0):
        batch = model.complete(model.as_batch({"x": np.where(observed, x, hidden).astype(np.float32), "observed": observed}))
        with tf.GradientTape() as tape:
            terms = model.terms(batch)
            loss = tf.reduce_sum(terms.kl - terms.log_lik)
        found.append([terms.log_lik, *tape.gradient(loss, model.trainable_weights)])
    for a, b, c in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert np.isfinite(a).all()
    nothing = model.complete(model.as_batch({"x": x, "observed": np.zeros_like(observed)}))
    assert not model.terms(nothing).log_lik.numpy().any()
    filled = model.impute(x, None, observed, num_samples=3).numpy()
    np.testing.assert_array_equal(np.where(observed[:, None], filled, 0.0), np.where(observed, x, 0.0)[:, None].repeat(3, 1))
    assert (filled[:, 0] != filled[:, 1])[~observed].all()


@pytest.mark.parametrize(("argument", "value"), [
    ("latent_dim", 0), ("rnn_units", 2.5), ("dropout", 1.0), ("guide", "ST-X"), ("transition", "gatd"), ("head", "gauss"),
    ("scale", "std"), ("kl", "exact"), ("cell", "lstn"), ("num_flows", -1), ("mean", [0.1]),
])  # fmt: skip
def test_a_bad_argument_is_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`{argument}`") if argument != "rnn_units" else "rnn_units"):
        DeepMarkovModel(observation_dim=3, **{argument: value})
    with pytest.raises(ValueError, match="`kl` must be"):
        DeepMarkovModel(observation_dim=3, kl="analytic", num_flows=1)


@pytest.mark.parametrize(("name", "wanted"), [
    # of the papers' code: encoder, embedding, dropout, what softplus gives, p(z_1), KL
    ("krishnan", ("lstm", True, 0.1, "variance", False, True)),
    ("pyro", ("rnn", False, 0.0, "stddev", True, False)),
])  # fmt: skip
def test_presets_are_those_of_the_papers(name: str, wanted: tuple) -> None:
    small = {"latent_dim": 2, "rnn_units": 3, "transition_dim": 2, "emission_dim": 2}
    settings = DeepMarkovModel.preset(name, **small)
    model = DeepMarkovModel(observation_dim=2, **{**settings, "embedding_dim": min(settings["embedding_dim"], 3)})
    guide = model.guide
    found = (guide.encoders[0].cell, guide.embedding is not None, guide.dropout, guide.scale, model.learned_start)
    assert (*found, model.analytic_kl) == wanted
    assert model.transition.scale == guide.scale
    with pytest.raises(ValueError, match="Did you mean 'krishnan'"):
        DeepMarkovModel.preset("krishna")


X = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(("data", "message"), [
    ({"x": X[0]}, "`x` must have shape.*Add the batch axis"),
    ({"x": X[..., :2]}, r"`x` must have shape \[B, T, 4\]"),
    ({"x": X + 0.5}, "0 or 1 everywhere"),
    ({"x": X.astype(str)}, "`x` must be float32"),
    ({"x": X, "mask": np.ones((2, 3))}, "`mask` must be bool"),
    ({"x": X, "mask": np.array([[True, False, True]] * 2)}, "right-padded"),
    ({"x": X, "observed": np.ones((2, 3, 4))}, "`observed` must be bool"),
    ({"x": X, "observed": np.ones((2, 2, 4), bool)}, "`observed` must be .* as `x`"),
    ({"x": X, "u": X}, "received also .'u'."),
    ({"x": []}, "`x` has no sequences"),
    ({"mask": np.ones((2, 3), bool)}, "The batch has no `x`"),
    ({"x": [X[0], X[1, :, :2]]}, "must agree in all axes but the first"),
    ({"x": [X[0], X[1, :2]], "observed": [X[0, :2] == 0, X[1] == 0]}, r"`observed` must be as long .*\[2, 3\] steps"),
])  # fmt: skip
def test_a_bad_batch_is_a_clear_error(data: dict[str, Any], message: str) -> None:
    model = DeepMarkovModel(observation_dim=4, latent_dim=2, rnn_units=2, transition_dim=2, emission_dim=2)
    with pytest.raises(ValueError, match=message):
        model.as_batch(data)


def test_what_is_given_twice_or_wrong_is_a_clear_error() -> None:
    model = DeepMarkovModel(observation_dim=4, latent_dim=2, rnn_units=2, transition_dim=2, emission_dim=2)
    with pytest.raises(ValueError, match="`observed` belongs into it"):
        model.elbo({"x": X}, observed=np.ones(X.shape, bool))
    with pytest.raises(ValueError, match="`num_samples` must be"):
        model.elbo(X, num_samples=0)
    with pytest.raises(ValueError, match="`num_particles` must be"):
        model.init_state(2, num_particles=0)
    state = model.init_state(2, num_particles=3)
    for x, message in ((X[:, 0, :2], "`x` must have shape"), (X[:, 0] * np.nan, "`x` must be finite"), (X[:, 0] + 5, "0 or 1")):
        with pytest.raises(ValueError, match=message):
            model.filter_step(x, state)
    with pytest.raises(ValueError, match="`dataset` has no sequences"):
        DeepMarkovModel.from_data(Sequences([]))


def test_no_rows_are_a_clear_error() -> None:
    model = DeepMarkovModel(observation_dim=4, latent_dim=2, rnn_units=2, transition_dim=2, emission_dim=2)
    with pytest.raises(ValueError, match="`x` has no sequences"):
        model.elbo(X[:0], num_samples=2)


def test_what_stands_in_the_place_of_a_missing_symbol_is_no_symbol() -> None:
    x, observed = [np.array([0, 99, 1], np.int32)], [np.array([True, False, True])]
    model = DeepMarkovModel.from_data(
        Sequences(x, observed=observed), head="categorical", latent_dim=2, rnn_units=2, transition_dim=2, emission_dim=2
    )
    assert (model.head.event_dim, model.head.mean, model.missing) == (2, [0.5, 0.5], True)
