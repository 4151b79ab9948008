"""Requests and clients that are wrong, slow or hostile: the right status, and the server goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import served
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc, regression_pb2

from tfseq.serve.servable import Servable
from tfseq.serve.service import Limits

PREDICT = "/v1/models/local:predict"
LIMITS = Limits(body=1 << 16, rows=8, length=20_000_000, row_steps=20_000_000, seconds=1.0)


def alive(url: str) -> bool:
    """Whether a good request is answered; where threads are still busy with a slow one, not always at once."""
    right = (200, {"predictions": [{"length": 2, "words": ["a", "b"]}]})
    return any(served.call(url, PREDICT, {"instances": ["a b"]}) == right for _ in range(5))


def raw(url: str, data: bytes) -> socket.socket:
    """A connection on which these bytes were sent."""
    where = urlsplit(url)
    connection = socket.create_connection((where.hostname, where.port), timeout=30)
    connection.sendall(data)
    return connection


@pytest.fixture(scope="module")
def limited(local_model: Path) -> Any:
    with served.running(local_model.parents[1], limits=LIMITS) as server:
        yield server


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"instances": ["\xff\xfe"]}', 400, "Invalid UTF-8"),
        (b'{"instances": ["\\ud800"]}', 400, "surrogate"),
        (b'{"instances": ' + b"[" * 30_000, 400, "nested too deeply"),
        (b'{"instances": ' + b'{"a":' * 10_000, 400, "nested too deeply"),
        (b'{"instances": ' + b"[" * 500 + b"]" * 500 + b"}", 400, "unexpected level"),
        (b'{"instances": [' + b"9" * 10_000 + b"]}", 400, "Number too big"),
        (b'{"signature_name": "count", "instances": [4294967296]}', 400, "type: int32"),
        (b'{"instances": ["' + b"a" * (1 << 16) + b'"]}', 413, "larger than 65536 bytes"),
        (b'{"instances": ' + json.dumps(["a"] * 9).encode() + b"}", 400, "9 rows; a request may have 8"),
        (b'{"signature_name": "slow", "instances": [20000001]}', 400, "20000000 is allowed"),
        (b'{"signature_name": "sweep", "inputs": {"v": [0], "num_sweeps": [20000001]}}', 400, "20000000 is allowed"),
        (b'{"signature_name": "count", "instances": [1, 10000001]}', 400, "2 rows of 10000001 steps, 20000002 in all"),
        (b'{"signature_name": "slow", "instances": [20000000]}', 504, "No answer within 1 seconds"),
    ],
)
def test_a_request_that_asks_for_too_much_is_refused(limited: Any, body: bytes, code: int, message: str) -> None:
    got, answer = served.call(limited.url, PREDICT, body)
    assert (got, message in answer["error"]) == (code, True), answer
    assert len(answer["error"]) <= 1000
    assert alive(limited.url)


def test_a_body_without_an_announced_length_is_cut_off_too(limited: Any) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with raw(limited.url, head + (b"1000\r\n" + b"[" * 0x1000 + b"\r\n") * 17) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert alive(limited.url)


def test_a_client_that_stalls_is_told_so_and_holds_up_nobody(limited: Any) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    with raw(limited.url, head + b'{"instances"') as connection:
        assert alive(limited.url)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_client_that_never_ends_its_headers_is_told_so(limited: Any, before: bytes) -> None:
    with raw(limited.url, before) as connection:
        first = b""
        while before and not first.endswith(b"}"):  # head and body may come apart
            first += connection.recv(1000)
        assert first.startswith(b"HTTP/1.1 200" * bool(before))
        for part in (b"GET /healthz HTTP/1.1\r\n", b"X: 1\r\n"):  # it is slow, not silent
            connection.sendall(part)
            time.sleep(0.3)
        assert alive(limited.url)
        answer = b"".join(iter(lambda: connection.recv(1000), b""))  # until the server closes
        assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 1 seconds" in answer


def test_a_connection_on_which_nothing_comes_is_closed(limited: Any) -> None:
    with raw(limited.url, b"") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408") and connection.recv(1) == b""


def test_headers_without_end_are_cut_off(limited: Any) -> None:
    with raw(limited.url, b"GET /healthz HTTP/1.1\r\n" + b"X: 1\r\n" * 12_000) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 431")
    assert alive(limited.url)


@pytest.mark.parametrize("part", [b"", b"POST /v1", b"\x16\x03\x01\x00\xff garbage \r\n\r\n"])
def test_a_client_that_goes_away_is_no_trouble(limited: Any, part: bytes) -> None:
    raw(limited.url, part).close()
    body = b'{"signature_name": "slow", "instances": [2000]}'
    raw(limited.url, f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body).close()
    assert alive(limited.url)


def test_a_request_whose_client_has_gone_is_dropped_before_it_runs(local_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], Servable.__call__
    busy, free = threading.Event(), threading.Event()

    def call(servable: Servable, signature: Any, inputs: Any, seconds: float) -> Any:
        seen.append(inputs["num_steps"].tolist())
        busy.set()
        free.wait(30)
        return original(servable, signature, inputs, seconds)

    def body(steps: int) -> bytes:
        return json.dumps({"signature_name": "count", "instances": [steps]}).encode()

    def until(condition: Any) -> bool:
        return any(condition() or time.sleep(0.01) for _ in range(1000))

    with served.running(local_model.parents[1], num_threads=1) as server, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Servable, "__call__", call)
        batcher = server.service._batcher
        first = pool.submit(served.call, server.url, PREDICT, body(1))
        try:
            assert busy.wait(30)  # the only thread
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body(2))}\r\n\r\n".encode()
            raw(server.url, head + body(2)[:5]).close()  # gone in the middle
            with raw(server.url, head + body(2)):
                assert until(lambda: batcher.waiting == 1)
            assert until(lambda: b'code="CANCELLED",model="local"' in server.service.metrics.page())
        finally:
            free.set()
        assert first.result()[0] == 200
        assert served.call(server.url, PREDICT, body(3))[0] == 200
        assert seen == [[1], [3]] and batcher.waiting == 0


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/page/../../app.py", "/card.json"]
)
def test_no_file_but_the_page_is_served(server: Any, path: str) -> None:
    assert served.call(server.url, path)[0] == 404


def test_the_page_and_the_list_of_models(server: Any) -> None:
    code, page = served.call(server.url, "/")
    assert code == 200 and page.startswith(b"<!doctype html>")
    assert served.call(server.url, "/models") == (200, {"models": [{"name": "local", "versions": [1], "labels": {}}]})
    assert served.call(server.url, "/readyz") == (200, {"ready": True, "models": {"local": [1]}})
    assert served.call(server.url, "/healthz")[0] == 200


def test_only_this_machine_can_ask(server: Any) -> None:
    sockets = [s.getsockname()[0] for listening in server._http.servers for s in listening.sockets]
    assert sockets == ["127.0.0.1"]


def test_a_port_that_is_taken_is_named(server: Any, local_model: Path) -> None:
    again = served.running(local_model.parents[1], port=server.port)
    with pytest.raises(OSError, match=f"Port {server.port} of 127.0.0.1 cannot be used"), again:
        pass


def bomb() -> predict_pb2.PredictRequest:
    """A value that says it fills a petabyte."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "local", "mean"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    request.inputs["x"].tensor_shape.dim[0].size = 1 << 48
    return request


def broken() -> predict_pb2.PredictRequest:
    """Bytes that are no float32."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "local", "mean"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    request.inputs["x"].tensor_content = b"abc"
    return request


def large() -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0] * (1 << 15)))
    return request


@pytest.mark.parametrize(
    ("make", "code"), [(bomb, "RESOURCE_EXHAUSTED"), (broken, "INVALID_ARGUMENT"), (large, "RESOURCE_EXHAUSTED")]
)
def test_a_hostile_proto_is_refused(limited: Any, make: Any, code: str) -> None:
    with grpc.insecure_channel(limited.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(make(), timeout=30)
        assert caught.value.code().name == code
    assert alive(limited.url)


def test_the_deadline_of_a_grpc_client_counts(server: Any) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "local", "slow"
    request.inputs["num_steps"].CopyFrom(tf.make_tensor_proto([60_000]))  # as long as allowed
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request, timeout=0.001)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.RpcError) as caught:
            stub.Regress(regression_pb2.RegressionRequest(), timeout=30)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_stop_answers_what_has_begun(local_model: Path) -> None:
    body = {"signature_name": "slow", "instances": [20_000]}
    with ThreadPoolExecutor(1) as pool:
        with served.running(local_model.parents[1], limits=Limits(length=1 << 30)) as server:
            served.call(server.url, PREDICT, {"signature_name": "slow", "instances": [1]})  # traced
            answer = pool.submit(served.call, server.url, PREDICT, body)
            while server.service._batcher._free == 2:
                time.sleep(0.001)
        assert answer.result()[0] == 200
    with pytest.raises(ConnectionRefusedError):
        served.call(server.url, "/healthz")


def test_metrics_count_requests_by_their_answer(local_model: Path) -> None:
    with served.running(local_model.parents[1]) as server:
        assert alive(server.url)
        served.call(server.url, PREDICT, {"instances": [1]})
        served.call(server.url, "/v1/models/anything:predict", {"instances": [1]})
        for path in ("/metrics", "/monitoring/prometheus/metrics"):
            lines = served.call(server.url, path)[1].decode().splitlines()
            of_model = 'api="REST",code="{}",model="local",signature="serving_default"'
            assert f"tfseq_requests_total{{{of_model.format('OK')}}} 1.0" in lines
            assert f"tfseq_requests_total{{{of_model.format('INVALID_ARGUMENT')}}} 1.0" in lines
            assert 'tfseq_requests_total{api="REST",code="NOT_FOUND",model="",signature=""} 1.0' in lines  # no label from outside
            assert "tfseq_batch_rows_count 1.0" in lines and "tfseq_waiting_requests 0.0" in lines
            assert 'tfseq_newest_version{model="local"} 1.0' in lines


def test_the_server_does_not_wait_for_a_slow_graph_to_answer_others(server: Any) -> None:
    slow = threading.Thread(target=served.call, args=(server.url, PREDICT, {"signature_name": "slow", "instances": [60_000]}))
    slow.start()
    assert alive(server.url)
    slow.join()
