"""The variational autoencoder against quadrature; that it is a one-step VRNN-I is in test_vrnn."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.special

from tests import reference
from tfseq.models.vae import VariationalAutoencoder


def test_importance_sampling_finds_the_likelihood_of_quadrature() -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    model = VariationalAutoencoder.tiny(latent_dim=1)
    for weight in [*model.emission.trainable_weights, *model.head.trainable_weights]:
        weight.assign(weight.numpy() + rng.normal(0.0, 0.5, weight.shape))
    model.guide.layers[-1].bias.assign([0.0, 1.5])  # wider than the posterior, so that weights are bounded
    x = (rng.random((4, 3, 3)) < 0.5).astype(np.float32)
    z = np.linspace(-9.0, 9.0, 4001)
    logits = reference.dense(model.head, reference.mlp(model.emission, z[:, None]))
    prior = -0.5 * z**2 - 0.5 * np.log(2.0 * np.pi) + np.log(z[1] - z[0])
    exact = np.zeros(4)
    for row in range(4):
        for t in range(3):
            log_lik = (x[row, t] * -np.logaddexp(0.0, -logits) + (1.0 - x[row, t]) * -np.logaddexp(0.0, logits)).sum(-1)
            exact[row] += scipy.special.logsumexp(log_lik + prior)
    # a filter estimates each step by itself, since none knows of another: it needs few particles
    np.testing.assert_allclose(model.filter_log_prob(x, num_particles=4000), exact, atol=0.03)
    np.testing.assert_allclose(model.importance_log_prob(x, num_samples=20_000), exact, atol=0.05)
    elbo = model.elbo(x, num_samples=4000).numpy()
    assert (elbo < exact).all()
    # all latent numbers of a step were drawn from the prior when sampling, so frequencies are those of the model
    drawn = model.sample(4000, 1, seed=[1, 2]).numpy()[:, 0]
    weight = np.exp(prior)[:, None]
    mean = (weight * scipy.special.expit(logits)).sum(0)
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * np.sqrt(mean * (1.0 - mean) / 4000)).all()


def test_a_bad_argument_is_named() -> None:
    with pytest.raises(ValueError, match="num_layers"):
        VariationalAutoencoder.tiny(num_layers=0)
