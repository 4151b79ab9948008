"""The documented REST and gRPC API, over sockets, with the official stubs; on the development server, or on a real TF Serving.

    python tests/serve/served.py FOLDER
    docker run --rm -p 8500:8500 -p 8501:8501 -v FOLDER:/models tensorflow/serving \
        --model_config_file=/models/models.config --allow_version_labels_for_unavailable_models=true
    TFSEQ_SERVING_URL=http://localhost:8501 pytest tests/serve/test_contract.py

gRPC is asked at port 8500 of the same machine, or at TFSEQ_SERVING_GRPC. Sources: https://www.tensorflow.org/tfx/serving/api_rest,
the protos of tensorflow_serving/apis, and what TF Serving's own tests of its REST handler require.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import served
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

MODEL = "/v1/models/contract"
Rest = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def addresses(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(URL of REST, target of gRPC)."""
    if url := os.environ.get("TFSEQ_SERVING_URL"):
        yield url, os.environ.get("TFSEQ_SERVING_GRPC") or f"{urlsplit(url).hostname}:8500"
        return
    folder: Path = request.getfixturevalue("contract_folder")
    with served.running(folder) as server:
        yield server.url, server.target


@pytest.fixture(scope="module")
def rest(addresses: tuple[str, str]) -> Rest:
    """`served.call` of the server."""
    return lambda path, body=None, method="": served.call(addresses[0], path, body, method)


@pytest.fixture(scope="module")
def channel(addresses: tuple[str, str]) -> Iterator[Any]:
    with grpc.insecure_channel(addresses[1]) as channel:
        yield channel


# REST ---------------------------------------------------------------------------------------------------------------


def test_status_tells_the_state_of_each_version(rest: Rest) -> None:
    available = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert rest(MODEL) == (200, {"model_version_status": [{"version": "2", **available}, {"version": "1", **available}]})
    assert rest(f"{MODEL}/versions/1") == (200, {"model_version_status": [{"version": "1", **available}]})
    assert rest(f"{MODEL}/labels/stable") == (200, {"model_version_status": [{"version": "1", **available}]})


def test_metadata_describes_the_signatures(rest: Rest) -> None:
    code, answer = rest(f"{MODEL}/metadata")
    assert code == 200
    assert (answer["model_spec"]["name"], answer["model_spec"]["version"]) == ("contract", "2")
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "pair", "types", "strings", "text", "positive"} <= set(signatures)
    assert signatures["pair"]["method_name"] == "tensorflow/serving/predict"
    a = signatures["pair"]["inputs"]["a"]
    assert (a["dtype"], [d["size"] for d in a["tensor_shape"]["dim"]]) == ("DT_FLOAT", ["-1", "2"])
    for path in ("versions/1", "labels/stable"):
        assert rest(f"{MODEL}/{path}/metadata")[1]["model_spec"]["version"] == "1"


@pytest.mark.parametrize(
    ("path", "offset"), [("", 3.0), ("/versions/1", 2.0), ("/versions/2", 3.0), ("/labels/stable", 2.0), ("/labels/canary", 3.0)]
)
def test_versions_and_labels_are_answered_by_their_own_model(rest: Rest, path: str, offset: float) -> None:
    assert rest(f"{MODEL}{path}:predict", {"instances": [1.0, 2.0, 5]}) == (
        200,
        {"predictions": [0.5 + offset, 1 + offset, 2.5 + offset]},
    )


def test_rows_and_columns_of_one_input_and_one_output(rest: Rest) -> None:
    for body in ({"instances": [1.0, 2.0]}, {"instances": [{"x": 1.0}, {"x": 2.0}]}):
        assert rest(f"{MODEL}:predict", body) == (200, {"predictions": [3.5, 4.0]})
    for body in ({"inputs": [1.0, 2.0]}, {"inputs": {"x": [1.0, 2.0]}}, {"inputs": [1, 2], "signature_name": "serving_default"}):
        assert rest(f"{MODEL}:predict", body) == (200, {"outputs": [3.5, 4.0]})


def test_rows_and_columns_of_several_inputs_and_outputs(rest: Rest) -> None:
    rows = [{"a": [1, 2.5], "b": 2}, {"a": [0.5, -1], "b": -1}]
    assert rest(f"{MODEL}:predict", {"signature_name": "pair", "instances": rows}) == (
        200,
        {"predictions": [{"scaled": [2.0, 5.0], "twice": 4}, {"scaled": [-0.5, 1.0], "twice": -2}]},
    )
    columns = {"a": [[1, 2.5], [0.5, -1]], "b": [2, -1]}
    assert rest(f"{MODEL}:predict", {"signature_name": "pair", "inputs": columns}) == (
        200,
        {"outputs": {"scaled": [[2.0, 5.0], [-0.5, 1.0]], "twice": [4, -2]}},
    )


def test_every_type_comes_back_as_it_was(rest: Rest) -> None:
    columns = {"bool": [True, False], "float64": [0.1, -1e300], "int64": [2**53 + 1, -(2**63)], "uint8": [0, 255]}
    assert rest(f"{MODEL}:predict", {"signature_name": "types", "inputs": columns}) == (200, {"outputs": columns})


def test_numbers_that_are_not_finite_are_tokens(rest: Rest) -> None:
    body = b'{"instances": [NaN, Infinity, -Infinity, 1e-3]}'
    code, answer = rest(f"{MODEL}/versions/1:predict", body)
    assert code == 200
    np.testing.assert_array_equal(answer["predictions"], [np.nan, np.inf, -np.inf, 2.0005])


def test_strings_are_utf_8_and_bytes_are_base64(rest: Rest) -> None:
    texts = ["caf\u00e9 \u65e5\u672c", "", 'a "quote"\n\\']
    assert rest(f"{MODEL}:predict", {"signature_name": "text", "instances": texts}) == (200, {"predictions": texts})
    sent = {"b64": base64.b64encode(b"\x00\xff").decode()}
    code, answer = rest(f"{MODEL}:predict", {"signature_name": "strings", "instances": [sent, "abc"]})
    assert code == 200  # outputs whose names end in _bytes are base64, whatever came in
    assert answer["predictions"] == [{"s_bytes": sent, "size": 2}, {"s_bytes": {"b64": "YWJj"}, "size": 3}]
    assert rest(f"{MODEL}:predict", {"signature_name": "strings", "inputs": {"s": [sent]}}) == (
        200,
        {"outputs": {"s_bytes": [sent], "size": [2]}},
    )


BAD_BODIES = {
    "empty": (b"", 400, "JSON Parse error: The document is empty"),
    "no JSON": (b"instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
    "no object": (b"[1]", 400, "Is not object"),
    "no inputs": ({"signature_name": "pair"}, 400, "Missing 'inputs' or 'instances' key"),
    "both": ({"instances": [1], "inputs": [1]}, 400, "one of 'inputs' or 'instances'"),
    "no list": ({"instances": 1}, 400, "'instances' to be a"),
    "no rows": ({"instances": []}, 400, "No values in 'instances'"),
    "text for a number": ({"instances": ["x"]}, 400, "is not of expected type: float"),
    "null": ({"instances": [None]}, 400, "is not of expected type: float"),
    "a fraction for a whole number": ({"signature_name": "pair", "inputs": {"a": [[1, 2]], "b": [1.5]}}, 400, "type: int32"),
    "rounded": ({"instances": [(1 << 24) + 1]}, 400, "without loss of precision"),
    "wrong signature type": ({"signature_name": 100, "instances": [1]}, 400, "'signature_name' key must be a string value"),
    "unknown signature": ({"signature_name": "nope", "instances": [1]}, 400, 'Serving signature name: "nope" not found'),
    "missing input": ({"signature_name": "pair", "inputs": {"a": [[1, 2]]}}, 400, "Missing named input: b"),
    "missing in a row": ({"signature_name": "pair", "instances": [{"a": [1, 2]}]}, 400, "keys must be equal to: a,b"),
    "plain rows of two inputs": ({"signature_name": "pair", "instances": [1]}, 400, "expecting list of objects"),
    "plain column of two inputs": ({"signature_name": "pair", "inputs": [1]}, 400, "expecting an object"),
    "mixed rows": ({"instances": [{"x": 1}, 2]}, 400, "Expecting object but got"),
    "ragged": ({"signature_name": "pair", "inputs": {"a": [[1, 2], [3]], "b": [1, 2]}}, 400, "list at unexpected size: 1"),
    "wrong shape": ({"signature_name": "pair", "inputs": {"a": [[1, 2, 3]], "b": [1]}}, 400, ""),
    "wrong rank": ({"instances": [[1, 2]], "signature_name": "text"}, 400, ""),
    "bad base64": ({"signature_name": "strings", "instances": [{"b64": "!"}]}, 400, "Unable to base64 decode"),
    "refused by the graph": ({"signature_name": "positive", "instances": [-1]}, 400, "only positive numbers"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_request_is_an_error_object(rest: Rest, name: str) -> None:
    body, wanted, message = BAD_BODIES[name]
    code, answer = rest(f"{MODEL}:predict", body, "POST")
    assert (code, list(answer)) == (wanted, ["error"])
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "code", "message"),
    [
        ("POST", "/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
        ("POST", "/v1/models/nope/versions/50:predict", 404, "Servable not found for request: Specific(nope, 50)"),
        ("POST", f"{MODEL}/versions/99:predict", 404, "Servable not found for request: Specific(contract, 99)"),
        ("POST", f"{MODEL}/labels/nope:predict", 400, "Unrecognized servable version label: nope"),
        ("POST", f"{MODEL}/versions/{2**64 - 1}:predict", 400, "Failed to convert version"),
        ("GET", f"{MODEL}/versions/{'9' * 5000}", 400, "Failed to convert version"),
        ("POST", f"{MODEL}/versions/one:predict", 400, "Malformed request"),
        ("POST", f"{MODEL}/versions/1/labels/stable:predict", 400, "Malformed request"),
        ("POST", "/v1/models", 400, "Malformed request"),
        ("POST", f"{MODEL}/metadata", 400, "Malformed request"),
        ("POST", "/v1/foo", 400, "Malformed request"),
        ("GET", f"{MODEL}:predict", 400, "Malformed request"),
        ("GET", "/v1/foo", 400, "Malformed request"),
        ("GET", "/v1/models", 400, "Missing model name"),
        ("GET", "/v1/models/nope", 404, "Could not find any versions of model nope"),
        ("GET", f"{MODEL}/versions/99", 404, "Could not find version 99 of model contract"),
        ("GET", "/v1/models/nope/metadata", 404, "Servable not found"),
    ],
)
def test_a_wrong_address_is_an_error_object(rest: Rest, method: str, path: str, code: int, message: str) -> None:
    body = b'{"instances": [1.0]}' if method == "POST" else None
    got, answer = rest(path, body, method)
    assert (got, list(answer)) == (code, ["error"])
    assert message in answer["error"]


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_classify_and_regress_need_signatures_of_their_own(rest: Rest, method: str) -> None:
    code, answer = rest(f"{MODEL}:{method}", {"examples": [{"x": 1.0}]})
    assert code == 400
    assert "Expected" in answer["error"] and "tensorflow/serving/predict" in answer["error"]


# gRPC ---------------------------------------------------------------------------------------------------------------


def predict(channel: Any, inputs: dict[str, Any], signature: str = "", outputs: tuple[str, ...] = (), **spec: Any) -> Any:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = spec.get("name", "contract")
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


X = np.array([1, 2, 5], np.float32)
PAIR = {"a": np.array([[1, 2.5]], np.float32), "b": np.array([2], np.int32)}


@pytest.mark.parametrize(("spec", "version"), [({}, 2), ({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)])
def test_predict_answers_with_what_it_used(channel: Any, spec: dict[str, Any], version: int) -> None:
    response = predict(channel, {"x": X}, **spec)
    assert (response.model_spec.name, response.model_spec.version.value) == ("contract", version)
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs) == ["y"]
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), X / 2 + 1 + version)


def test_predict_keeps_types_and_filters_outputs(channel: Any) -> None:
    inputs = {
        "bool": np.array([True, False]),
        "float64": np.array([0.1, np.nan]),
        "int64": np.array([2**53 + 1, -(2**63)]),
        "uint8": np.array([0, 255], np.uint8),
    }
    outputs = {name: tf.make_ndarray(t) for name, t in predict(channel, inputs, "types").outputs.items()}
    assert set(outputs) == set(inputs)
    for name, value in inputs.items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_array_equal(outputs[name], value)
    answer = predict(channel, {"s": np.array([b"\x00\xff", b""], object)}, "strings").outputs
    assert tf.make_ndarray(answer["s_bytes"]).tolist() == [b"\x00\xff", b""]
    assert list(predict(channel, PAIR, "pair", ("twice",)).outputs) == ["twice"]


@pytest.mark.parametrize(
    ("inputs", "options", "code", "message"),
    [
        ({"x": X}, {"name": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        ({"x": X}, {"version": 9}, "NOT_FOUND", "Servable not found for request: Specific(contract, 9)"),
        ({"x": X}, {"label": "nope"}, "INVALID_ARGUMENT", "Unrecognized servable version label: nope"),
        ({"x": X}, {"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified"),
        ({"x": X}, {"signature": "nope"}, "FAILED_PRECONDITION", "not found"),
        ({}, {}, "INVALID_ARGUMENT", "input size does not match signature"),
        ({"x": X, "z": X}, {}, "INVALID_ARGUMENT", "input size does not match signature"),
        ({"x": X.astype(np.int32)}, {}, "INVALID_ARGUMENT", ""),
        ({"a": np.zeros([1, 3], np.float32), "b": PAIR["b"]}, {"signature": "pair"}, "INVALID_ARGUMENT", ""),
        ({"x": X}, {"outputs": ("nope",)}, "INVALID_ARGUMENT", "output tensor alias not found in signature: nope"),
        (PAIR, {"signature": "pair", "outputs": ("twice", "twice")}, "INVALID_ARGUMENT", "duplicate output tensor alias"),
        ({"x": -X}, {"signature": "positive"}, "INVALID_ARGUMENT", "only positive numbers"),
    ],
)
def test_predict_refuses_with_a_status(
    channel: Any, inputs: dict[str, Any], options: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, inputs, **options)
    assert caught.value.code().name == code
    assert message in caught.value.details()


def test_get_model_metadata(channel: Any) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "contract"
    response = stub.GetModelMetadata(request)
    assert response.model_spec.version.value == 2
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["pair"].inputs["a"].dtype == tf.float32.as_datatype_enum
    for fields in ([], ["weights"]):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelMetadata(
                get_model_metadata_pb2.GetModelMetadataRequest(model_spec=request.model_spec, metadata_field=fields)
            )
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_get_model_status(channel: Any) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "contract"
    found = stub.GetModelStatus(request).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(v.version, v.state, v.status.error_code) for v in found] == [(2, available, 0), (1, available, 0)]
    request.model_spec.name = "nope"
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModelStatus(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
