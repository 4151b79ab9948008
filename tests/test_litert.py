"""LiteRT: built-in operations alone, the same answers in its own interpreter, the operation in the way by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq.exporting import litert

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'tfseq[litert]'")


def run(folder: Path, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What a file answers in the stand-alone interpreter."""
    return litert.interpreter((folder / f"{signature}.tflite").read_bytes()).get_signature_runner(signature)(**inputs)


def test_a_machine_draws_on_a_device_what_it_draws_here(tmp_path: Path) -> None:
    model = tfseq.RBM.tiny()
    found = litert.convert(model, tmp_path, batch=2)["signatures"]
    assert found["hidden"] == {"reason": "the same as `serving_default`"}
    assert {p.stem for p in tmp_path.glob("*.tflite")} == {"serving_default", "reconstruct", "free_energy", "gibbs"}
    for one in (one for one in found.values() if "reason" not in one):
        assert one["difference"] <= 1e-5 and one["milliseconds"] > 0 and one["bytes"] > 500
    v, seed = np.array([[0, 1, 0], [1, 1, 0]], np.float32), np.array([[3, 4], [5, 6]], np.int32)
    answer = run(tmp_path, "gibbs", v=v, seed=seed, num_sweeps=np.array([3, 1], np.int32))
    after, probs = model.gibbs(v, np.array([3, 1], np.int32), seed)
    np.testing.assert_array_equal(answer["v"], after)
    np.testing.assert_allclose(answer["probs"], probs, rtol=1e-5)
    np.testing.assert_allclose(run(tmp_path, "serving_default", v=v)["probs"], model.hidden_probs(v), rtol=1e-5)


def test_a_language_model_steps_on_a_device(tmp_path: Path) -> None:
    model = tfseq.LanguageModel.tiny()
    found = litert.convert(model, tmp_path)
    assert found["signatures"]["generate"] == {"reason": "prompt takes strings"}
    assert json.loads((tmp_path / "names.json").read_text())["vocabulary"] == ["a", "b"]
    state = run(tmp_path, "init_state", seed=np.zeros((1, 2), np.int32))
    log_prob, token = 0.0, model.boundary
    for new in (1, 2, 2):  # "a", "b", "b"
        answer = run(tmp_path, "step", token_id=np.array([token], np.int32), **state)
        state = {k: v for k, v in answer.items() if k.startswith("state_")}
        log_prob += float(tf.nn.log_softmax(answer["logits"])[0, new])
        token = new
    served = model.endpoints()["serving_default"][0]
    np.testing.assert_allclose(log_prob, served(text=tf.constant(["abb"]))["log_prob"][0], rtol=1e-4)


def test_labels_are_left_out_and_named_beside(tmp_path: Path) -> None:
    model = tfseq.SequenceClassifier.tiny()
    litert.convert(model, tmp_path, signatures=["ids"], length=5)
    answer = run(tmp_path, "ids", token_ids=np.array([[1, 2, 1, 0, 0]], np.int32), lengths=np.array([3], np.int32))
    wanted = model.endpoints()["ids"][0](token_ids=tf.constant([[1, 2, 1]]), lengths=tf.constant([3]))
    assert set(answer) == {"probs"}
    np.testing.assert_allclose(answer["probs"], wanted["probs"], rtol=1e-5)
    assert json.loads((tmp_path / "names.json").read_text())["classes"] == ["A", "B"]


def test_a_kalman_filter_runs_on_a_device_as_here(rng: np.random.Generator, eager: None, tmp_path: Path) -> None:
    model = tfseq.LinearGaussianModel.tiny(transition_noise="full", observation_noise="full")
    for weight in model.trainable_weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    litert.convert(model, tmp_path, signatures=["init_state", "filter_step", "impute"], length=6)
    x, step = rng.normal(size=[1, 30, 3]).astype(np.float32), {}
    state = run(tmp_path, "init_state", seed=np.zeros((1, 2), np.int32))
    wanted = model.filter(x)
    device = litert.interpreter((tmp_path / "filter_step.tflite").read_bytes()).get_signature_runner("filter_step")
    for t in range(30):
        step = device(x=x[:, t], **state)
        state = {key: step[key] for key in state}
        np.testing.assert_allclose(step["log_prob"], wanted.log_prob[:, t], rtol=1e-4)
    np.testing.assert_allclose(step["filtered_mean"], wanted.mean[:, -1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step["filtered_covariance"], wanted.covariance[:, -1], rtol=1e-4, atol=1e-6)


def test_a_nade_scores_on_a_device_as_here(rng: np.random.Generator, tmp_path: Path) -> None:
    model = tfseq.RecurrentDensity.tiny(head="nade", control_dim=0)
    litert.convert(model, tmp_path, signatures=["score"], batch=2, length=6)
    x, lengths = rng.integers(0, 2, [2, 6, 3]).astype(np.float32), np.array([6, 4], np.int32)
    answer = run(tmp_path, "score", x=x, lengths=lengths)
    np.testing.assert_allclose(answer["log_prob"], model.endpoints()["score"][0](x=x, lengths=lengths)["log_prob"], rtol=1e-5)


def test_a_sequence_drawn_from_a_state_that_grows_converts(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    model = tfseq.DeepMarkovModel.tiny()
    for weight in model.trainable_weights:
        weight.assign(2.0 * weight)
    found = litert.convert(model, tmp_path, signatures=["forecast"])["signatures"]["forecast"]
    assert found["difference"] > 0.0  # 64 steps make another sequence of the rounding of the first; those it must draw agree


def test_what_has_no_elements_is_left_out(tmp_path: Path) -> None:
    model = tfseq.VariationalAutoencoder.tiny()  # its particles remember nothing
    found = litert.convert(model, tmp_path, model.endpoints(1, 4), signatures=["init_state", "filter_step"])["signatures"]
    assert set(found["init_state"]["outputs"]) == {"log_weights", "step"}
    assert set(found["filter_step"]["inputs"]) == {"x", "log_weights", "step", "seed"}


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_smaller_weights_are_smaller_files(weights: Any, tmp_path: Path) -> None:
    model = tfseq.RBM.tiny(num_visible=64, num_hidden=48)
    sizes, gaps = {}, {}
    for kind in ("float32", weights):
        (found,) = litert.convert(model, tmp_path / kind, signatures=["hidden"], weights=kind)["signatures"].values()
        sizes[kind], gaps[kind] = found["bytes"], found["difference"]
    assert sizes[weights] < {"float16": 0.7, "int8": 0.5}[weights] * sizes["float32"]
    assert gaps["float32"] < 1e-6 < gaps[weights] < 0.01


@pytest.mark.parametrize(
    ("function", "spec", "message"),
    [
        (
            lambda x: {"y": tf.raw_ops.UniqueV2(x=x, axis=[0])[0]},
            tf.TensorSpec([4], tf.int32, "x"),
            r"it needs tf\.UniqueV2.*Flex",
        ),
        (lambda x: {"y": tf.math.erfinv(x)}, tf.TensorSpec([4], tf.float32, "x"), r"it needs tf\.Erfinv"),
        (
            lambda x: {"y": tf.map_fn(lambda n: tf.boolean_mask(x, x > n), x)},
            tf.TensorSpec([4], tf.float32, "x"),
            r"'tf\.TensorListReserve' op requires element_shape to be",
        ),
        (lambda x: {"y": tf.strings.length(x)}, tf.TensorSpec([1], tf.string, "x"), "x takes strings"),
    ],
)
def test_what_is_in_the_way_is_named(function: Callable, spec: tf.TensorSpec, message: str) -> None:
    with pytest.raises(ValueError, match=f"The signature 'f' cannot be converted to LiteRT: {message}"):
        litert.to_litert("f", function, [spec])


def test_a_shape_that_is_checked_converts(tmp_path: Path) -> None:
    content = litert.to_litert(
        "f", lambda x: {"y": tf.ensure_shape(tf.boolean_mask(x, x > 0), [2])}, [tf.TensorSpec([3], name="x")]
    )
    answer = litert.interpreter(content).get_signature_runner("f")(x=np.array([1, -1, 2], np.float32))
    np.testing.assert_array_equal(answer["y"], [1.0, 2.0])


def test_another_answer_on_the_device_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_litert = litert.to_litert
    monkeypatch.setattr(
        litert, "to_litert", lambda n, f, *a: to_litert(n, lambda **x: {k: v + 1e-3 for k, v in f(**x).items()}, *a)
    )
    with pytest.raises(ValueError, match="'hidden' answers otherwise on LiteRT: output 'probs' differs by up to 0.001"):
        litert.convert(tfseq.RBM.tiny(), tmp_path, signatures=["hidden"])


def test_wrong_arguments_are_clear_errors(tmp_path: Path) -> None:
    model = tfseq.RBM.tiny()
    for settings, message in (
        ({"batch": 0}, "`batch`"),
        ({"weights": "int4"}, "`weights`"),
        ({"signatures": ["hiden"]}, "`signatures`.*hidden"),
    ):
        with pytest.raises(ValueError, match=message):
            litert.convert(model, tmp_path, **settings)
    with pytest.raises(ValueError, match="must compute in float32"):
        litert.convert(tfseq.RBM.tiny(dtype="float64"), tmp_path)


def test_an_export_with_litert_says_what_was_converted(tmp_path: Path) -> None:
    path = tfseq.export(tfseq.RBM.tiny(), tmp_path / "rbm", verify="reload", litert=True, litert_signatures=["free_energy"])
    assert (path / "litert" / "free_energy.tflite").is_file()
    about = json.loads((path / "card.json").read_text())["litert"]
    assert about["weights"] == "float32" and set(about["signatures"]) == {"free_energy"}
    assert "| `free_energy` |" in (path / "README.md").read_text()
