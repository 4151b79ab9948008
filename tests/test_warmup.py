"""Warm-up requests and configuration files, held against TensorFlow Serving's own messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfseq.exporting import documents, warmup

INPUTS = {
    "x": np.arange(600, dtype=np.float32).reshape(2, 3, 100),  # longer than the 127 bytes of a length of one byte
    "observed": np.array([[True, False]]),
    "text": np.array([b"caf\xc3\xa9", b"", b"\xff\x00"], object),
    "nothing": np.zeros((1, 0, 2), np.int32),
}


def test_requests_and_responses_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "assets.extra" / "file"
    warmup.write_records(path, [warmup.request("name", "sample", INPUTS), warmup.response(INPUTS)])
    first, second = warmup.read_records(path)
    signature, inputs = warmup.parse_request(first)
    assert signature == "sample"
    for found in (inputs, warmup.parse_response(second)):
        assert set(found) == set(INPUTS)
        for name, value in INPUTS.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


def test_a_server_reads_the_same_requests() -> None:
    messages = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason="needs tensorflow-serving-api")
    log = messages.PredictionLog.FromString(warmup.request("name", "sample", INPUTS))
    assert log.WhichOneof("log_type") == "predict_log"
    request = log.predict_log.request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("name", "sample")
    assert set(request.inputs) == set(INPUTS)
    for name, value in INPUTS.items():
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs[name]), value)
    parsed = warmup.parse_request(log.SerializeToString(deterministic=True))  # and the other way round
    np.testing.assert_array_equal(parsed[1]["x"], INPUTS["x"])
    answer = messages.PredictionLog.FromString(warmup.response({"y": np.ones(2)})).predict_log.response
    np.testing.assert_array_equal(tf.make_ndarray(answer.outputs["y"]), [1.0, 1.0])


def test_a_server_reads_models_config(tmp_path: Path) -> None:
    messages = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2", reason="needs tensorflow-serving-api")
    from google.protobuf import text_format

    for name in ("pos", "chorales-dmm"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "saved_model.pb").touch()
    path = documents.write_models_config(tmp_path)
    assert path is not None
    config = text_format.Parse(path.read_text(), messages.ModelServerConfig())
    found = [(c.name, c.base_path, c.model_platform) for c in config.model_config_list.config]
    assert found == [(name, f"/models/{name}", "tensorflow") for name in ("chorales-dmm", "pos")]


def test_batching_parameters_are_those_of_a_server() -> None:
    """Names and kinds of `BatchingParameters` in tensorflow_serving/servables/tensorflow/session_bundle_config.proto."""
    lines = [line for line in documents.BATCHING.splitlines() if not line.startswith("#")]
    wrapped = {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
    assert {line.split()[0] for line in lines[:-1]} == wrapped
    assert all(line.split()[1:3] == ["{", "value:"] and int(line.split()[3]) > 0 for line in lines[:-1])
    assert lines[-1] == "pad_variable_length_inputs: true"
