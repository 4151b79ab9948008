"""Versions while serving: new, half copied, corrupt, removed; `models.config`; warm-up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import served
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfseq.serve.errors import ServingError
from tfseq.serve.repository import Repository, read_config
from tfseq.serve.servable import BatchingParameters, Servable


@pytest.fixture
def base(contract_folder: Path, tmp_path: Path) -> Path:
    """A base folder with version 1 of `contract`; version 2 is to come."""
    shutil.copytree(contract_folder / "contract" / "1", tmp_path / "contract" / "1")
    return tmp_path


def until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened within 30 seconds")


def states(repository: Repository, model: str = "contract") -> dict[int, str]:
    return {v.number: v.state for v in repository.status(model)}


def test_a_new_version_takes_over_without_a_lost_request(base: Path, contract_folder: Path) -> None:
    with served.running(base) as server:

        def ask() -> float:
            code, answer = served.call(server.url, "/v1/models/contract:predict", {"instances": [0.0]})
            assert code == 200, answer
            return answer["predictions"][0]

        assert ask() == 2.0
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(lambda: [ask() for _ in range(100)]) for _ in range(4)]
            shutil.copytree(contract_folder / "contract" / "2", base / "contract" / "2")
            until(lambda: ask() == 3.0)
            assert all(sorted(future.result()) == future.result() for future in asked)  # the old one, then the new one
        _, answer = served.call(server.url, "/v1/models/contract")
        assert [(v["version"], v["state"]) for v in answer["model_version_status"]] == [("2", "AVAILABLE"), ("1", "END")]
        shutil.rmtree(base / "contract" / "2")  # back to the one before
        until(lambda: ask() == 2.0)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda v: (v / "saved_model.pb").unlink(), "NOT_FOUND"),
        (lambda v: (v / "saved_model.pb").write_bytes((v / "saved_model.pb").read_bytes()[:5000]), "DATA_LOSS"),
        (lambda v: (v / "saved_model.pb").write_bytes(b"\x80\x04no pickle is read\x94."), "DATA_LOSS"),
        (lambda v: (v / "variables" / "variables.index").unlink(), ""),
        (lambda v: (v / "variables" / "variables.data-00000-of-00001").write_bytes(b"\0"), ""),
    ],
)
def test_a_broken_version_is_reported_and_the_old_one_stays(
    base: Path, contract_folder: Path, damage: Callable[[Path], Any], code: str
) -> None:
    repository = Repository(base)
    repository.refresh()
    new = base / "contract" / "2"
    shutil.copytree(contract_folder / "contract" / "2", new)
    damage(new)
    for _ in range(3):
        repository.refresh()
    assert states(repository) == {2: "END", 1: "AVAILABLE"}
    error = repository.status("contract", 2)[0].error
    assert isinstance(error, ServingError) and str(error)
    assert not code or error.code.name == code
    assert repository.find("contract")[0] == 1
    shutil.rmtree(new)
    shutil.copytree(contract_folder / "contract" / "2", new)  # repaired: its files have changed
    for _ in range(2):
        repository.refresh()
    assert states(repository) == {2: "AVAILABLE", 1: "END"}


def test_a_version_is_not_loaded_while_its_files_change(base: Path, contract_folder: Path) -> None:
    loads: list[tuple[int, str]] = []
    repository = Repository(base, on_load=lambda _, version, result, __: loads.append((version, result)))
    repository.refresh()
    new = base / "contract" / "2"
    for path in sorted((contract_folder / "contract" / "2").rglob("*")):  # file by file, as `cp` does it
        target = new / path.relative_to(contract_folder / "contract" / "2")
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            repository.refresh()
            assert states(repository) == {2: "START", 1: "AVAILABLE"}
    repository.refresh()
    assert states(repository) == {2: "AVAILABLE", 1: "END"}
    assert loads == [(1, "loaded"), (2, "loaded")]


def test_at_the_start_the_highest_version_that_can_be_loaded_is_served(base: Path) -> None:
    (base / "contract" / "7").mkdir()
    (base / "contract" / "not-a-version").mkdir()
    (base / ".hidden" / "1").mkdir(parents=True)
    repository = Repository(base)
    repository.refresh()
    assert repository.models() == {"contract": [1]}
    assert states(repository) == {7: "END", 1: "AVAILABLE"}


def test_a_folder_of_versions_is_one_model(base: Path) -> None:
    repository = Repository(base / "contract")
    repository.refresh()
    assert repository.models() == {"contract": [1]}


def test_a_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`folder` must be a folder of SavedModels"):
        Repository(tmp_path / "none")


def test_models_config_names_versions_and_labels(contract_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(contract_folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "models.config"
    repository = Repository(tmp_path)
    repository.refresh()
    assert repository.models() == {"contract": [2, 1]}
    assert repository.labels("contract") == {"stable": 1, "canary": 2}
    config.write_text('model_config_list { config { name: "other" base_path: "contract" model_version_policy { all {} } } }')
    for _ in range(2):
        repository.refresh()
    assert repository.models() == {"other": [2, 1]}
    with pytest.raises(ServingError, match="Servable not found"):
        repository.find("contract")
    config.write_text('model_config_list { config { name: "other" base_path: "contract" } }')  # the latest
    repository.refresh()
    assert repository.models() == {"other": [2]}
    config.write_text("no such proto")  # what it said before stays
    repository.refresh()
    assert repository.models() == {"other": [2]}
    with pytest.raises(ValueError, match="no text proto of ModelServerConfig"):
        Repository(tmp_path).refresh()
    config.write_text('model_config_list { config { base_path: "contract" } }')
    with pytest.raises(ValueError, match="every model needs a name"):
        read_config(config)


def warm_up(folder: Path, *values: Any) -> None:
    """Writes warm-up records of the default signature."""
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for value in values:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


def test_warm_up_requests_are_replayed_before_a_version_is_served(base: Path) -> None:
    folder = base / "contract" / "1"
    assert Servable(folder).warm_up(folder) == 0
    warm_up(folder, [1.0, 2.0], [3.0])
    assert Servable(folder).warm_up(folder) == 2
    shutil.rmtree(folder / "assets.extra")
    warm_up(folder, [[1.0]])  # of a wrong shape: nothing that this version could have answered
    repository = Repository(base)
    repository.refresh()
    assert states(repository) == {1: "END"}
    assert "shape" in str(repository.status("contract")[0].error)
    shutil.rmtree(folder / "assets.extra")
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(100 * b"no record")
    for _ in range(2):
        repository.refresh()
    assert states(repository) == {1: "END"}


def test_batching_params_of_a_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "batching_params.pbtxt"
    assert BatchingParameters.read(path) == BatchingParameters()
    path.write_text(
        "max_batch_size { value: 32 }  # rows\nbatch_timeout_micros: { value: 500 }\nnum_batch_threads { value: 4 }\n"
        "allowed_batch_sizes: 32\nallowed_batch_sizes : 8\npad_variable_length_inputs: true\n"
    )
    assert BatchingParameters.read(path) == BatchingParameters(32, 500, (8, 32), True)
    path.write_text("pad_variable_length_inputs: false  # true")
    assert BatchingParameters.read(path) == BatchingParameters()
    path.write_text("allowed_batch_sizes: [1, 4]")
    assert BatchingParameters.read(path) == BatchingParameters(None, None, (1, 4))
