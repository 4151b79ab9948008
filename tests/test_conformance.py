"""Every promise over every model: one short test a promise, one tiny instance a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq.data.batching import Sequences
from tfseq.exporting import saved_model
from tfseq.models import MODELS
from tfseq.models.base import SequenceModel

LENGTHS = np.array([6, 3, 0, 1])


def examples(model: SequenceModel, num_steps: int = 6, garbage: float = 0.0) -> dict[str, np.ndarray]:
    """Four sequences of 6, 3, 0 and 1 steps that alternate, so that something can be learned; `garbage` in the padding."""
    shape = [4, num_steps, *model.batch_spec()["x"].shape[2:]]
    x = np.broadcast_to((np.arange(num_steps) % 2).reshape(1, -1, *[1] * (len(shape) - 2)), shape)
    mask = np.arange(num_steps) < LENGTHS[:, None]
    keep = mask.reshape(*mask.shape, *[1] * (len(shape) - 2))
    x = np.where(keep, x, garbage).astype(model.batch_spec()["x"].dtype.as_numpy_dtype)
    return {"x": x, "mask": mask, "row": np.arange(4, dtype=np.int32)}


@pytest.fixture(scope="module", params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    """Every key of `MODELS`."""
    return request.param


@pytest.fixture(scope="module")
def trained(name: str) -> SequenceModel:
    """A tiny model after a short `fit`, its history attached."""
    keras.utils.set_random_seed(0)
    model = MODELS[name].tiny()
    model.compile(keras.optimizers.Adam(0.02, global_clipnorm=5.0))
    data = examples(model)
    before = model.evaluate(data, verbose=0, return_dict=True)["nats_per_step"]
    stream = tf.data.Dataset.from_tensors(model.as_batch(data)).repeat()
    model.fit(stream, steps_per_epoch=300, epochs=1, verbose=0)
    after = model.evaluate(data, verbose=0, return_dict=True)["nats_per_step"]
    model.bounds_before_and_after = (before, after)
    return model


def scores(model: SequenceModel, data: dict[str, np.ndarray]) -> np.ndarray:
    """Score of each sequence, `[B]`."""
    return np.asarray(model.predict(data, verbose=0))


def test_training_beats_the_constant_baseline(trained: SequenceModel) -> None:
    before, after = trained.bounds_before_and_after
    x = examples(trained)
    rows = x["x"][x["mask"]].reshape(-1, *x["x"].shape[2:])
    p = rows.mean(0)
    constant = float(np.sum(-(p * np.log(p) + (1 - p) * np.log(1 - p))))  # the best constant Bernoulli, nats per step
    assert after < before
    assert after < constant


def test_a_keras_file_gives_the_same_model_back(trained: SequenceModel, tmp_path: Path) -> None:
    data = examples(trained)
    trained.save(tmp_path / "model.keras")
    again = tfseq.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(scores(again, data), scores(trained, data))
    assert again.get_config() == trained.get_config()
    for model in (trained, again):  # the next step of the optimiser is the same too
        model.fit(data, batch_size=4, epochs=1, verbose=0, shuffle=False)
    for a, b in zip(trained.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_garbage_in_the_padding_changes_nothing(trained: SequenceModel) -> None:
    clean, dirty = examples(trained), examples(trained, garbage=np.nan if trained.batch_spec()["x"].dtype.is_floating else 7)
    np.testing.assert_array_equal(scores(trained, dirty), scores(trained, clean))
    longer = examples(trained, num_steps=9)
    # another T changes the order of float32 sums at most
    np.testing.assert_allclose(scores(trained, longer), scores(trained, clean), rtol=1e-5, atol=1e-6)
    for gradients in zip(*(_gradients(trained, data) for data in (clean, dirty)), strict=True):
        np.testing.assert_array_equal(*gradients)


def _gradients(model: SequenceModel, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    batch = model.complete(model.as_batch(data))
    with tf.GradientTape() as tape:
        terms = model.terms(batch, training=False)
        loss = tf.reduce_sum(tf.where(terms.mask, terms.kl - terms.log_lik, 0.0))
    return [g.numpy() for g in tape.gradient(loss, model.trainable_weights)]


def test_the_order_and_the_size_of_a_batch_change_nothing(trained: SequenceModel) -> None:
    data = examples(trained)
    whole = scores(trained, data)
    order = np.array([3, 0, 2, 1])
    np.testing.assert_allclose(scores(trained, {k: v[order] for k, v in data.items()}), whole[order], rtol=1e-5, atol=1e-6)
    alone = [scores(trained, {k: v[i : i + 1] for k, v in data.items()})[0] for i in range(4)]
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)


def test_an_empty_sequence_scores_nothing(trained: SequenceModel) -> None:
    assert scores(trained, examples(trained))[2] == 0.0
    x = examples(trained)["x"][:, :0]
    np.testing.assert_array_equal(scores(trained, {"x": x}), np.zeros(4))


def test_the_same_seed_gives_the_same_result(name: str) -> None:
    model = MODELS[name].tiny()  # untrained: the trained one may have learned the pattern by heart
    if not hasattr(model, "sample"):
        pytest.skip("the model does not sample")
    a, b, c = (model.sample(3, 5, seed=seed).numpy() for seed in ([0, 1], [0, 1], [0, 2]))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert np.array_equal(model.sample(3, 4, seed=[0, 1]).numpy(), a[:, :4])  # the number of steps does not matter


def test_nan_is_a_clear_error(trained: SequenceModel) -> None:
    data = examples(trained)
    if data["x"].dtype.kind != "f":
        pytest.skip("the observations are symbols")
    data["x"][0, 1] = np.nan
    with pytest.raises(ValueError, match=r"`x` must be finite.*observed"):
        trained.fit(data, verbose=0)
    with pytest.raises(ValueError, match=r"`x` must be finite.*observed"):
        trained.fit(tf.data.Dataset.from_tensors({k: tf.constant(v) for k, v in data.items()}), verbose=0)


def test_two_replicas_make_the_step_of_one(name: str) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    weights = []
    for scope in (tf.distribute.get_strategy().scope(), strategy.scope()):
        with scope:
            keras.utils.set_random_seed(0)
            model = MODELS[name].tiny()
            model.compile(keras.optimizers.SGD(0.1, global_clipnorm=0.05))  # Adam would hide a wrong scale; the clip is active
        batch = model.as_batch(examples(model))
        model.fit(tf.data.Dataset.from_tensors(batch), epochs=2, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy_name", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_likelihoods_in_float32(name: str, policy_name: str) -> None:
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy_name)
        model = MODELS[name].tiny()
        model.compile(keras.optimizers.Adam(1e-3))
        history = model.fit(examples(model), epochs=1, verbose=0).history
        assert model.terms(model.complete(model.as_batch(examples(model)))).log_lik.dtype == tf.float32
        assert np.isfinite(history["nats_per_step"]).all()
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy_name", ["mixed_bfloat16", "float64"])
def test_a_model_has_its_own_dtype_policy_made_saved_and_loaded(name: str, policy_name: str, tmp_path: Path) -> None:
    config = MODELS[name].tiny().get_config()
    model = MODELS[name].from_config({**config, "dtype": policy_name})
    assert keras.config.dtype_policy().name == "float32"  # the global policy is as it was
    wanted = keras.dtype_policies.get(policy_name)
    layers = [layer for layer in model._flatten_layers() if layer.weights]
    assert {w.dtype for layer in layers for w in layer.trainable_weights} == {wanted.variable_dtype}
    assert {layer.compute_dtype for layer in layers} <= {wanted.compute_dtype, wanted.variable_dtype}  # heads: variable_dtype
    model.save(tmp_path / "model.keras")
    again = tfseq.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(scores(again, examples(model)), scores(model, examples(model)))
    assert scores(again, examples(model)).dtype == wanted.variable_dtype


def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    data = examples(MODELS[name].tiny())
    sequences = Sequences([x[:n] for x, n in zip(data["x"], LENGTHS, strict=True)], name="toy", split="train")
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 2,
        "weight_decay": 0.1,
        "average": 0.9,
        "kl_warmup": 3,
        "progress": False,
    }
    weights = []
    for folder, limits in (("whole", [float("inf")]), ("parts", [1e-9, 1e-9, float("inf")])):
        keras.utils.set_random_seed(0)
        model = MODELS[name].tiny()
        for i, limit in enumerate(limits):  # a limit of no time stops after one epoch
            run = tfseq.train(model, sequences, sequences, out=tmp_path / folder, max_minutes=limit, resume=i > 0, **settings)
        assert len(run.history) == 3
        weights.append((tfseq.load(tmp_path / folder / "checkpoints" / "last.keras").get_weights(), run.model.get_weights()))
    for whole, parts in zip(*weights, strict=True):
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(a, b)


_SERVE = """
import json, sys
sys.modules["tfseq"] = None                                  # whoever imports it fails
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
inputs = {k: v for k, v in np.load(sys.argv[2]).items()}
answer = model.signatures["serving_default"](**{k: tf.constant(v) for k, v in inputs.items()})
np.savez(sys.argv[3], **{k: v.numpy() for k, v in answer.items()})
"""


def test_the_saved_model_answers_in_a_process_without_tfseq(trained: SequenceModel, tmp_path: Path) -> None:
    folder = tfseq.export(trained, tmp_path / "served", num_samples=2, num_particles=8)
    function, specs = trained.endpoints(2, 8)["serving_default"]
    data = examples(trained)
    given = {"x": data["x"], "lengths": LENGTHS.astype(np.int32), "seed": np.arange(8, dtype=np.int32).reshape(4, 2)}
    given = {spec.name: given[spec.name] for spec in specs}
    np.savez(tmp_path / "in.npz", **given)
    command = [sys.executable, "-c", _SERVE, folder, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    wanted = function(**{k: tf.constant(v) for k, v in given.items()})
    with np.load(tmp_path / "out.npz") as answer:
        assert set(answer) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_allclose(answer[key], value, rtol=1e-5, atol=1e-6)
    card = json.loads((folder / "card.json").read_text())
    assert set(card["signatures"]) == set(trained.endpoints())
    # garbage after the lengths, and rows alone, in the served graph
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    dirty = {**given, "x": examples(trained, garbage=7)["x"]}
    for key, value in served(**{k: tf.constant(v) for k, v in dirty.items()}).items():
        np.testing.assert_allclose(value, wanted[key], rtol=1e-5, atol=1e-6)
        alone = [served(**{k: tf.constant(v[i : i + 1]) for k, v in given.items()})[key][0] for i in range(4)]
        np.testing.assert_allclose(alone, wanted[key], rtol=1e-5, atol=1e-6)


def test_an_export_never_touches_an_older_version_and_leaves_nothing_half_written(
    trained: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served" / "1").mkdir(parents=True)
    (tmp_path / "served" / "1" / "mine").write_text("x")
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        tfseq.export(trained, tmp_path / "served", version=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_model, "_compare", full)  # the graph is written by then
    with pytest.raises(OSError, match="No space left on device"):
        tfseq.export(trained, tmp_path / "served", num_samples=1, num_particles=4)
    assert [p.name for p in (tmp_path / "served").iterdir()] == ["1"]
    assert (tmp_path / "served" / "1" / "mine").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="could not be written"):
        tfseq.export(trained, tmp_path / "file" / "name")


def test_the_constructor_takes_keyword_arguments_only_and_records_them(name: str) -> None:
    with pytest.raises(TypeError, match="keyword"):
        MODELS[name](3)
    model = MODELS[name].tiny()
    assert set(model.hyperparameters()) <= set(model.get_config())
