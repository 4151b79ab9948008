"""The variational recurrent network and its variants against a NumPy twin in loops, and its training objectives."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfseq.models.vae import VariationalAutoencoder
from tfseq.models.vrnn import VariationalRNN
from tfseq.ops import bounds, random

pytestmark = [
    pytest.mark.usefixtures("eager"),  # graphs of every part are conformance tests
    pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning"),  # of tf.data
]

VARIANTS: dict[str, dict[str, Any]] = {
    "vrnn lstm": {},
    "vrnn gru controls": {"cell": "gru", "control_dim": 2, "num_layers": 2},
    "vrnn-i reals": {"variant": "vrnn-i", "head": "normal", "mean": [0.5, -1.0, 2.0], "stddev": [2.0, 0.5, 1.0]},
    "storn lstm missing": {"variant": "storn", "missing": True, "head": "normal"},
    "storn rnn": {"variant": "storn", "cell": "rnn", "control_dim": 2},
}


def perturbed(name: str, **more: Any) -> VariationalRNN:
    """A small model of a variant, every weight away from its start."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    model = VariationalRNN.tiny(**{**VARIANTS[name], **more})
    for weight in model.trainable_weights:
        weight.assign(weight.numpy() + rng.normal(0.0, 0.3, weight.shape))
    return model


def sequences(model: VariationalRNN, rng: np.random.Generator) -> dict[str, Any]:
    """Two sequences of four steps and one, with what the model takes beside x; a seed for each."""
    lengths = (4, 1)
    reals = type(model.head).__name__ == "Normal"
    data: dict[str, Any] = {
        "x": [(rng.normal(size=(n, 3)) if reals else rng.random((n, 3)) < 0.5).astype(np.float32) for n in lengths],
        "seed": np.array([[1, 2], [3, 4]], np.int32),
    }
    if model.missing:
        data["observed"] = [rng.random((n, 3)) < 0.6 for n in lengths]
    if model.control_dim:
        data["u"] = [rng.normal(size=(n, 2)).astype(np.float32) for n in lengths]
    return data


@pytest.mark.parametrize("name", VARIANTS)
def test_terms_are_those_of_a_loop_in_numpy(name: str, rng: np.random.Generator) -> None:
    model = perturbed(name)
    twin, data = reference.VariationalRecurrent(model), sequences(model, rng)
    batch = model.complete(model.as_batch(data))
    inputs = model._inputs(batch)
    latents = model._infer(inputs, model.read(inputs))
    noise = random.normal(data["seed"], tf.range(4), 2, 0).numpy()  # salt of the guide
    for analytic, which in ((True, 1), (False, 2)):
        log_lik, kl, units = model._terms(inputs, latents, analytic)
        for row, x in enumerate(data["x"]):
            n = len(x)
            observed, u = (data[key][row] if key in data else None for key in ("observed", "u"))
            wanted = twin.terms(x.astype(float), noise[:n, row].astype(float), observed, u)
            np.testing.assert_allclose(log_lik[:n, row], wanted[0], rtol=2e-4, atol=2e-5)  # float32 through four steps
            np.testing.assert_allclose(kl[:n, row], wanted[which], rtol=2e-4, atol=2e-5)
        assert (units is None) == (not analytic)
        if analytic:
            np.testing.assert_allclose(tf.reduce_sum(units, -1), kl, rtol=1e-6)
    # several paths: each is that of its own number, whatever their number
    many = model._terms(inputs, model._infer(inputs, model.read(inputs), tf.range(3)), False)[0]
    two = model._terms(inputs, model._infer(inputs, model.read(inputs), tf.range(2)), False)[0]
    np.testing.assert_allclose(many[..., :2], two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_new_sequences_are_those_of_a_loop_in_numpy(name: str, rng: np.random.Generator) -> None:
    model, seeds, times = perturbed(name), np.array([[1, 2], [3, 4], [5, 6]], np.int32), tf.range(4)
    u = rng.normal(size=(3, 4, 2)).astype(np.float32) if model.control_dim else None
    found = model.sample(3, 4, seed=seeds, u=u).numpy()
    noise, uniform = random.normal(seeds, times, 2, 1).numpy(), random.uniform(seeds, times, 3, 2).numpy()  # salts of prior, x
    twin = reference.VariationalRecurrent(model)
    for row in range(3):
        wanted = twin.sample(noise[:, row].astype(float), uniform[:, row].astype(float), None if u is None else u[row])
        np.testing.assert_allclose(found[row], wanted, rtol=2e-4, atol=2e-4)  # quantiles of float32 uniform numbers


@pytest.mark.parametrize("name", ["vrnn lstm", "storn rnn"])
def test_gradients_are_those_of_finite_differences(name: str, rng: np.random.Generator) -> None:
    model = perturbed(name, dtype="float64")
    data = model.complete(model.as_batch(sequences(model, rng)))

    def loss() -> tf.Tensor:
        return tf.reduce_sum(bounds.elbo(*model.terms(data)[:3]))

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, model.trainable_weights)
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        direction = rng.normal(size=weight.shape)
        # second order in the step; noise is drawn in float32, so it is the same at both ends
        wanted = reference.slope(loss, weight, direction)
        assert np.sum(gradient * direction) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_a_filter_of_one_particle_has_the_sampled_bound_and_of_one_step_the_importance_weighted_one() -> None:
    model = perturbed("vrnn lstm")
    x = (np.random.default_rng(2).random((3, 5, 3)) < 0.5).astype(np.float32)
    np.testing.assert_allclose(
        model.filter_log_prob(x, num_particles=1, seed=[1, 2]), model.elbo(x, num_samples=1, seed=[1, 2]), rtol=1e-5
    )
    np.testing.assert_allclose(
        model.filter_log_prob(x[:, :1], num_particles=9, seed=[1, 2]),
        model.importance_log_prob(x[:, :1], num_samples=9, seed=[1, 2]),
        rtol=1e-5,
    )


def test_fivo_training_maximises_the_bound_that_is_reported() -> None:
    model = perturbed("vrnn gru controls", objective="fivo", train_samples=4, control_dim=0)
    x = (np.random.default_rng(2).random((3, 5, 3)) < 0.5).astype(np.float32)
    data = model.complete(model.as_batch({"x": x, "seed": np.array([[1, 2], [3, 4], [5, 6]], np.int32)}))
    terms = model.terms(data, training=True)
    wanted = model.filter_log_prob({"x": x, "seed": data["seed"].numpy()}, num_particles=4)
    np.testing.assert_allclose(terms.objective, wanted, rtol=1e-5)
    np.testing.assert_allclose(bounds.elbo(*terms[:3]), wanted, rtol=1e-5)
    assert "FIVO" in model.convention
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(tf.data.Dataset.from_tensors(model.as_batch({"x": x})).repeat(), steps_per_epoch=8, verbose=0)
    trained = model.filter_log_prob({"x": x, "seed": data["seed"].numpy()}, num_particles=4)
    assert (trained.numpy() - wanted.numpy()).mean() > 0.5  # 0.1 nats a step
    # the weight of the divergence reaches the objective
    model.kl_weight.assign(0.0)
    assert (model.terms(data, training=True).objective.numpy() > model.terms(data).log_lik.numpy().sum(1) - 1e9).all()


def test_free_bits_cost_nothing_below_their_floor() -> None:
    model = perturbed("vrnn lstm", free_bits=100.0)
    data = model.complete(model.as_batch(sequences(model, np.random.default_rng(0))))
    terms = model.terms(data, training=True)
    steps = np.array([4.0, 1.0])
    log_lik = terms.per_sequence(terms.log_lik).numpy()
    np.testing.assert_allclose(terms.objective, log_lik - 100.0 * 2 * steps, rtol=1e-5)  # Z = 2, all at the floor
    low = perturbed("vrnn lstm", free_bits=1e-9)
    found = low.terms(data, training=True)
    np.testing.assert_allclose(found.objective, bounds.elbo(*found[:3]), rtol=1e-5)
    assert low.terms(data).objective is None
    one = perturbed("vrnn lstm", free_bits=0.05)
    found = one.terms(data, training=True)
    units = (found.kl_units.numpy() * found.mask.numpy()[..., None]).sum(1)
    wanted = found.per_sequence(found.log_lik).numpy() - np.maximum(units, 0.05 * steps[:, None]).sum(1)
    np.testing.assert_allclose(found.objective, wanted, rtol=1e-5)


def test_a_vrnn_i_of_one_step_is_a_variational_autoencoder() -> None:
    model = perturbed("vrnn-i reals")
    moments = {"mean": [0.5, -1.0, 2.0], "stddev": [2.0, 0.5, 1.0]}
    vae = VariationalAutoencoder.tiny(head="normal", num_layers=2, hidden_dim=5, latent_dim=2, **moments)
    # its guide is phi_x and the VRNN's guide, its emission phi_z and the VRNN's emission, where the state is zero
    first, second = model.extract_x.layers[0], model.guide.layers[0]
    for layer, (kernel, bias) in zip(
        [*vae.guide.layers, *vae.emission.layers],
        [
            (first.kernel, first.bias),
            (second.kernel[:5], second.bias),
            (model.guide.layers[1].kernel, model.guide.layers[1].bias),
            (model.extract_z.layers[0].kernel, model.extract_z.layers[0].bias),
            (model.emission.layers[0].kernel[:5], model.emission.layers[0].bias),
        ],
        strict=True,
    ):
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)
    vae.head.kernel.assign(model.head.kernel)
    vae.head.bias.assign(model.head.bias)
    x = np.random.default_rng(0).normal(size=(6, 1, 3)).astype(np.float32)
    for method in ("elbo", "importance_log_prob"):
        found, wanted = (getattr(a, method)(x, num_samples=7, seed=[1, 2]) for a in (vae, model))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(vae.sample(4, 1, seed=[3, 4]), model.sample(4, 1, seed=[3, 4]), rtol=1e-4, atol=1e-5)


def test_the_particle_filter_gives_the_bound_of_its_own_path_step_by_step() -> None:
    """One particle is never resampled: the chain of `filter_step` is a path of the guide, whose weights add up to a bound."""
    model = perturbed("vrnn lstm")
    x = (np.random.default_rng(2).random((2000, 3, 3)) < 0.5).astype(np.float32)
    x[:] = x[0]
    state, total = model.init_state(2000, num_particles=1), 0.0
    for t in range(3):
        state = model.filter_step(x[:, t], state, seed=[5, 6])
        total = total + state.pop("log_prob").numpy().astype(float)
    elbo = model.elbo(x, num_samples=1, seed=[7, 8]).numpy().astype(float)
    error = np.sqrt((total.var() + elbo.var()) / 2000)
    assert abs(total.mean() - elbo.mean()) < 4.5 * error
    # estimates of p(x) by many particles, and by importance sampling, have one mean
    state, total = model.init_state(300, num_particles=200), 0.0
    for t in range(3):
        state = model.filter_step(x[:300, t], state, seed=[5, 6])
        total = total + state.pop("log_prob").numpy().astype(float)
    importance = model.importance_log_prob(x[:300], num_samples=200).numpy().astype(float)
    filtered, weighted = np.exp(total - importance.max()), np.exp(importance - importance.max())
    error = np.sqrt((filtered.var() + weighted.var()) / 300)
    assert error < 0.1 * filtered.mean()
    assert abs(filtered.mean() - weighted.mean()) < 4.5 * error


@pytest.mark.parametrize("made", [VariationalRNN, VariationalAutoencoder])
def test_the_particle_filter_takes_controls_in_any_dtype(made: Any) -> None:
    x, u = np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    for dtype in ("mixed_bfloat16", "float64"):
        model = made.tiny(control_dim=2, head="normal", dtype=dtype)
        found = model.filter_step(x, model.init_state(2, num_particles=3), u=u)
        assert np.isfinite(found["log_prob"]).all()


def test_the_size_of_a_chunk_of_samples_does_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, in_chunks = [], bounds.in_chunks

    def recorded(log_weights: Any, num_samples: Any, chunk: Any, like: Any) -> Any:
        chunks.append(int(chunk))
        return in_chunks(log_weights, num_samples, chunk, like)

    monkeypatch.setattr(bounds, "in_chunks", recorded)
    monkeypatch.setattr(VariationalRNN, "widest", 2**30)
    VariationalRNN.tiny().elbo(np.zeros((2, 2, 3), np.float32))  # 2^32 numbers a sample, which is 0 in int32
    assert chunks == [1]


def test_forecasts_go_on_where_the_sequence_ends() -> None:
    """Of a model whose emission copies its state, the first forecast depends on the last observation and on no padding."""
    model = perturbed("vrnn-i reals")
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    mask = np.array([[True] * 5, [True] * 2 + [False] * 3])
    seed = np.array([[1, 2], [3, 4]], np.int32)
    found = model.forecast({"x": x, "mask": mask, "seed": seed}, num_steps=3, num_samples=4).numpy()
    alone = model.forecast({"x": x[1:, :2], "seed": seed[1:]}, num_steps=3, num_samples=4).numpy()
    np.testing.assert_allclose(found[1], alone[0], rtol=1e-4, atol=1e-5)
    other = x.copy()
    other[1, 1] += 3.0
    assert np.abs(model.forecast({"x": other, "mask": mask, "seed": seed}, num_steps=3, num_samples=4)[1] - found[1]).max() > 1e-3


@pytest.mark.parametrize(("arguments", "message"), [
    ({"variant": "vrn"}, "`variant` must be"), ({"num_layers": 0}, "num_layers"), ({"scaling": "all"}, "`scaling` must be"),
    ({"objective": "fivo"}, "`train_samples` must be"), ({"free_bits": -1.0}, "`free_bits`"), ({"latent_dim": 0}, "latent_dim"),
    ({"free_bits": 0.1, "objective": "iwae", "train_samples": 2}, "`free_bits` must be"),
    ({"head": "nade", "missing": True}, "`missing` must be False"), ({"stddev": [1.0], "head": "normal"}, "stddev|scale"),
])  # fmt: skip
def test_a_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VariationalRNN(observation_dim=3, **arguments)


def test_a_constant_column_is_named() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    x[:, :, 1] = 2.0
    with pytest.raises(ValueError, match=re.escape("1")) as raised:
        VariationalRNN.from_data(x, head="normal", latent_dim=2, rnn_units=2, hidden_dim=2)
    assert "constant" in str(raised.value)
