"""An export: what counts as the same answer, what a server could not run, whole folders or none; over all models: conformance."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq.data.batching import Sequences
from tfseq.exporting import documents, saved_model, servable, warmup
from tfseq.exporting.examples import Examples, example_inputs
from tfseq.exporting.saved_model import _TOLERANCE, answers_of, differences
from tfseq.models.base import SequenceModel
from tfseq.serve.repository import read_config

FLOATS = tf.TensorSpec([None, None, 2], tf.float32, "x")
LENGTHS = tf.TensorSpec([None], tf.int32, "lengths")


class Toy(SequenceModel):
    """Serves one function, and is no model otherwise."""

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Any]:
        return {"serving_default": (self.function, self.specs)}

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        return {"x": tf.TensorSpec([None, None, 2], tf.float32)}


def serving(function: Callable | None = None, *specs: tf.TensorSpec) -> Toy:
    """A model that serves a function; by default a weight times the sum of x, plus the length."""
    model = Toy()
    gain = model.add_weight(shape=(), initializer="ones", name="gain")
    model.built = True
    model.function = function or (lambda x, lengths: {"y": gain * tf.reduce_sum(x, [1, 2]) + tf.cast(lengths, tf.float32)})
    model.specs = list(specs) or [FLOATS, LENGTHS]
    return model


def export(model: SequenceModel, folder: Path, **settings: Any) -> Path:
    return tfseq.export(model, folder, **{"verify": "reload", **settings})


# The same answer ---------------------------------------------------------------------------------------------------


def test_rounding_is_that_of_the_largest_value_of_a_signature() -> None:
    wanted = {"log_prob": np.float32([-163.2]), "log_weights": np.float32([[-1e-3, -7.0, -np.inf]])}
    got = {"log_prob": wanted["log_prob"], "log_weights": wanted["log_weights"] + np.float32(1.2e-4)}
    gaps, scale = differences(got, wanted)
    assert gaps["log_prob"] == 0.0 and 1e-4 < gaps["log_weights"] <= _TOLERANCE * scale
    small, scale = differences({"p": np.float32([0.5003])}, {"p": np.float32([0.5])})
    assert small["p"] > _TOLERANCE * scale


def test_other_shapes_other_words_and_other_infinities_are_differences() -> None:
    for got, wanted in (([1.0, 2.0], [[1.0, 2.0]]), ([np.nan], [1.0]), ([np.inf], [-np.inf]), (["a"], ["b"])):
        assert differences({"y": np.array(got)}, {"y": np.array(wanted)})[0]["y"] == math.inf
    assert differences({"y": np.array([np.nan, "a"], object)}, {"y": np.array(["b", "a"], object)})[0]["y"] == math.inf
    assert differences({"y": np.array([np.nan, 1.0])}, {"y": np.array([np.nan, 1.0])})[0]["y"] == 0.0


def test_a_signature_that_answers_otherwise_after_reloading_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = warmup.answers
    for wrong, message in (
        (lambda y: y + 1e-2, "output 'y' by up to"),
        (lambda y: y[:-1], "output 'y' by up to inf"),
    ):
        monkeypatch.setattr(warmup, "answers", lambda f, wrong=wrong: ({"y": wrong(a["y"])} for a in answers(f)))
        with pytest.raises(ValueError, match=message):
            export(serving(), tmp_path / "served")
    monkeypatch.setattr(warmup, "answers", lambda f: list(answers(f))[:-1])  # a file that lost its end
    with pytest.raises(OSError, match="of .* warm-up requests were answered"):
        export(serving(), tmp_path / "served")
    assert not (tmp_path / "served").exists()


# What stands in a version ------------------------------------------------------------------------------------------


def test_a_version_holds_all_that_a_server_and_its_user_need(tmp_path: Path) -> None:
    data = Sequences([np.full((n, 2), n, np.float32) for n in (2, 20, 1, 3)], name="counts", split="test")
    card = {"data": {"name": "counts", "split": "train", "source": "here"}, "metrics": {"val_loss": 1.0, "val_kl": 2.0}}
    path = export(serving(), tmp_path / "base" / "sums", examples=data, card=card, version=3)
    assert {p.name for p in path.iterdir()} >= {
        "saved_model.pb", "variables", "assets.extra", "batching_params.pbtxt", "requests", "README.md", "card.json"
    }  # fmt: skip
    records = [warmup.parse_request(r)[1] for r in warmup.read_records(path / warmup.FILE)]
    assert [r["lengths"].tolist() for r in records] == [[10, 1, 0], [0], [1], [4], [8], [16], [20]]
    batch = records[0]["x"]
    assert batch.shape == (3, 10, 2) and (records[-1]["x"] == 20).all()  # the longest sequence is a real one
    assert (batch[1] == batch[1, 0]).all()  # padding repeats the first element, as a server's does
    body = json.loads((path / "requests" / "serving_default.json").read_text())
    assert body["signature_name"] == "serving_default" and body["inputs"]["lengths"] == [4]
    text = (path / "README.md").read_text()
    for line in (
        "# sums, version 3",
        "curl -d @requests/serving_default.json http://localhost:8501/v1/models/sums:predict",
        "| input | `x` | float32 [any, any, 2] |",
        "| output | `y` | float32 [any] |",
        "source: here",
        "not run on a GPU",
    ):
        assert line in text
    about = json.loads((path / "card.json").read_text())
    assert about["verified"] == {
        "process": False, "requests": 7, "examples": "sequences of counts (test)", "longest": 20, "tolerance": _TOLERANCE
    }  # fmt: skip
    assert '"/models/sums"' in (tmp_path / "base" / "models.config").read_text()


def test_examples_of_another_data_set_are_a_clear_error(tmp_path: Path) -> None:
    data = Sequences([np.zeros((4, 3), np.float32)])
    with pytest.raises(ValueError, match=r"`examples` must be .*\['T', 2\].*\[4, 3\]"):
        export(serving(), tmp_path / "served", examples=data)


def test_missing_values_of_real_examples_become_numbers() -> None:
    data = Sequences([np.array([[1.0, np.nan]], np.float32)], observed=[np.array([[True, False]])])
    assert Examples(serving(), data).inputs([FLOATS], [1])["x"].tolist() == [[[1.0, 0.0]]]


def test_made_up_inputs_have_rows_of_five_three_and_no_steps() -> None:
    x, lengths = example_inputs([FLOATS, LENGTHS])
    assert x.shape == (3, 5, 2) and lengths.numpy().tolist() == [5, 3, 0]


def test_an_export_never_touches_an_older_version_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tfseq.RBM.tiny()
    (tmp_path / "served" / "1").mkdir(parents=True)
    (tmp_path / "served" / "1" / "mine").write_text("x")
    with pytest.raises(ValueError, match="exists and is not overwritten"):
        tfseq.export(model, tmp_path / "served", version=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_model, "_compare", full)  # the graph is written by then
    with pytest.raises(OSError, match="No space left on device"):
        tfseq.export(model, tmp_path / "served")
    assert [p.name for p in (tmp_path / "served").iterdir()] == ["1"]
    assert (tmp_path / "served" / "1" / "mine").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="could not be written"):
        tfseq.export(model, tmp_path / "file" / "name")


def test_models_config_lists_every_model_and_spares_the_users_own(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "c/draft"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").touch()
    path = documents.write_models_config(tmp_path)
    assert path is not None and re.findall(r'name: "(\w+)"', path.read_text()) == ["a", "b"]
    (tmp_path / 'my "best" \\ 東' / "3").mkdir(parents=True)
    (tmp_path / 'my "best" \\ 東' / "3" / "saved_model.pb").touch()
    documents.write_models_config(tmp_path)
    assert set(read_config(path)) == {"a", "b", 'my "best" \\ 東'}
    path.write_text("model_config_list {}  # mine")
    assert documents.write_models_config(tmp_path) is None and path.read_text().endswith("# mine")


def test_texts_that_are_no_utf8_are_base64_in_json() -> None:
    assert documents.as_json(np.array([b"caf\xc3\xa9", b"\xff"], object)) == ["café", {"b64": "/w=="}]


# What TF Serving cannot run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, lengths: {"y": tf.reduce_sum(x)}, "outputs 'y' is a scalar"),
        (lambda x, lengths: {"y": tf.ones([3])}, "outputs 'y' has 3 rows"),
        (lambda x, lengths: {"y": tf.numpy_function(np.sum, [x, 2], tf.float32)}, "the operation PyFunc.*calls Python"),
        (lambda x, lengths: {"y": tf.function(tf.tanh, jit_compile=True)(x)}, "compiled with XLA"),
    ],
)
def test_what_a_server_cannot_run_is_refused_by_name(function: Callable, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"TF Serving cannot .*{message}"):
        export(serving(function, FLOATS, LENGTHS), tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_a_scalar_setting_is_refused(tmp_path: Path) -> None:
    model = serving(lambda x, gain: {"y": gain * x[:, 0, 0]}, FLOATS, tf.TensorSpec([], tf.float32, "gain"))
    with pytest.raises(ValueError, match="inputs 'gain' is a scalar.*one of each row"):
        export(model, tmp_path / "served")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "CudnnRNNV3"}, "CudnnRNNV3.*GPUs only"),
        ({"op": "WordpieceTokenizeWithOffsets"}, "WordpieceTokenizeWithOffsets.*not one of TensorFlow's own"),
        ({"op": "XlaLaunch"}, "XlaLaunch.*needs XLA"),
        ({"device": "/device:GPU:0"}, "bound to /device:GPU:0"),
    ],
)
def test_operations_of_other_machines_and_libraries_are_refused(changes: dict[str, str], message: str) -> None:
    graph = tf.function(lambda x: tf.tanh(x)).get_concrete_function(tf.TensorSpec([None])).graph.as_graph_def()
    servable.check_operations(graph)
    for key, value in changes.items():
        setattr(next(node for node in graph.node if node.op == "Tanh"), key, value)
    with pytest.raises(ValueError, match=message):
        servable.check_operations(graph)


# Another process ---------------------------------------------------------------------------------------------------


def test_a_process_without_tfseq_answers_every_request_as_this_one(tmp_path: Path) -> None:
    models = {"served": serving(), "lm": tfseq.LanguageModel.tiny(), "rbm": tfseq.RBM.tiny()}
    folders = [export(model, tmp_path / name) for name, model in models.items()]
    for here, there in zip(answers_of(folders, process=False), answers_of(folders), strict=True):
        assert here
        for wanted, got in zip(here, there, strict=True):
            gaps, scale = differences(got, wanted)
            assert set(got) == set(wanted) and max(gaps.values()) <= _TOLERANCE * scale
    (folders[1] / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="A process without tfseq cannot answer"):
        answers_of(folders[1:2])


def test_the_script_of_that_process_imports_nothing_of_tfseq() -> None:
    source = Path(warmup.__file__).read_text()
    assert not re.search(r"^\s*(from|import) tfseq", source, re.M) and 'sys.modules["tfseq"] = None' in source


# Whole or not at all -----------------------------------------------------------------------------------------------

_KILLED = """
import sys, time
from pathlib import Path
from test_saved_model import export, serving
from tfseq.exporting import documents, saved_model
moment, folder = sys.argv[1], Path(sys.argv[2])
def stop(*_, **__):
    print("here", flush=True)
    time.sleep(600)
module, name = {
    "graph": (saved_model, "check_servable"), "page": (saved_model, "flush"), "named": (documents, "write_models_config")
}[moment]
setattr(module, name, stop)
export(serving(), folder)
"""


def test_a_killed_export_leaves_no_version_and_the_next_one_works(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])}
    killed = {}
    for moment in ("graph", "page", "named"):  # the graph is written; all is written; the version has its name
        folder = tmp_path / moment / "served"
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "mine").write_text("x")
        command = [sys.executable, "-c", _KILLED, moment, folder]
        killed[folder] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        for folder, child in killed.items():
            assert child.stdout is not None and child.stdout.readline() == "here\n"
            half = [p for p in folder.iterdir() if not p.name.isdecimal()]
            named = folder.parent.name == "named"
            assert len(half) == (not named) and all((p / "saved_model.pb").is_file() for p in half)
            if folder.parent.name == "graph":  # that process is alive, so its folder is not touched
                assert export(serving(), folder).name == "2" and half[0].is_dir()
    finally:
        for child in killed.values():
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    for folder, versions in zip(killed, (["1", "2", "3"], ["1", "2"], ["1", "2", "3"]), strict=True):
        path = export(serving(), folder)
        assert sorted(p.name for p in folder.iterdir()) == versions == sorted([*versions[:-1], path.name])
        assert (folder / "1" / "mine").read_text() == "x" and (path / "README.md").is_file()
        assert 'name: "served"' in (folder.parent / "models.config").read_text()


@pytest.mark.parametrize("limit", [100, 3000])  # bytes that a file may have: the graph does not fit; a page does not
def test_a_full_disk_leaves_no_version_and_the_next_export_works(limit: int, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of the size of files")
    folder = tmp_path / "served"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "mine").write_text("x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="could not be written .*; no version folder was made"):
            export(serving(), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in folder.iterdir()] == ["1"] and (folder / "1" / "mine").read_text() == "x"
    assert export(serving(), folder).name == "2"


def test_models_config_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(documents, "write_models_config", full)
    with pytest.warns(UserWarning, match="was written, but models.config was not"):
        path = export(serving(), tmp_path / "served")
    assert (path / "saved_model.pb").is_file()
