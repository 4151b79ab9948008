"""Models of tfseq under load and in streams, as `scripts/benchmark.py serving` does it for a minute; and `tfseq serve` itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import served

import tfseq
from tfseq.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIGNATURES = {
    "tagger": ["serving_default"],
    "lm": ["serving_default", "init_state", "step"],
    "hmm": ["init_state", "filter_step"],
    "dmm": ["init_state", "filter_step"],
    "vrnn": ["init_state", "filter_step"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained tiny models; what `tfseq.export` does beyond that is not asked for here, and takes most of the time."""
    keras.utils.set_random_seed(0)
    base = tmp_path_factory.mktemp("models")
    for name, signatures in SIGNATURES.items():
        model = tfseq.MODELS[name].tiny()
        served.write_endpoints(base / name / "1", model, model.endpoints(1, 8), signatures)
    return base


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Any]:
    with served.running(folder) as server:
        yield server


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    from benchmarks import serving

    return serving


@pytest.mark.parametrize("model", ["tagger", "lm"])
def test_many_clients_each_get_the_answer_to_their_own_request(benchmark: Any, server: Any, model: str) -> None:
    bodies = benchmark.requests_of(model, small=True)
    tally = asyncio.run(benchmark.load(server.url, model, bodies, num_clients=50, seconds=1.0))
    assert tally.wrong == [] and tally.exact + tally.rounded == len(tally.seconds) >= 50
    metrics = served.call(server.url, "/metrics")[1].decode()
    calls = float(re.search(r"^tfseq_batch_rows_count (\S+)", metrics, re.M)[1])
    rows = float(re.search(r"^tfseq_batch_rows_sum (\S+)", metrics, re.M)[1])
    assert rows > 2 * calls  # they did share calls


@pytest.mark.parametrize("model", ["lm", "hmm", "dmm", "vrnn"])
def test_streams_in_turns_are_the_streams_alone(benchmark: Any, server: Any, model: str) -> None:
    tally = asyncio.run(benchmark.streams(server.url, model, num_streams=40, num_steps=4, num_connections=20))
    assert tally.wrong == []
    assert (tally.exact, tally.rounded) == (40 * 5, 0)  # every byte


def test_the_tally_sees_a_wrong_answer(benchmark: Any) -> None:
    tally = benchmark.Tally()
    tally.add(0.1, 200, b'{"predictions": [0.5]}', b'{"predictions": [0.5]}')
    tally.add(0.1, 200, b'{"predictions": [0.5000001]}', b'{"predictions": [0.5]}')
    tally.add(0.1, 200, b'{"predictions": [0.6]}', b'{"predictions": [0.5]}')
    tally.add(0.1, 500, b"", b"")
    assert (tally.exact, tally.rounded, len(tally.wrong)) == (1, 1, 2)


def test_wrong_and_missing_answers_and_batching_that_does_not_pay_are_problems(benchmark: Any) -> None:
    fast, slow = (benchmark.Tally(seconds=[0.1] * n, exact=n, elapsed=1.0) for n in (20, 10))
    assert benchmark.problems({"lm, batched": fast, "lm, unbatched": slow, "lm, step": slow}) == []
    wrong, none = benchmark.Tally(seconds=[0.1], wrong=["500 b''"], elapsed=1.0), benchmark.Tally(elapsed=1.0)
    found = benchmark.problems({"lm, batched": slow, "lm, unbatched": fast, "lm, step": wrong, "hmm, step": none})
    assert found == [
        "lm, step: 1 wrong answers, first 500 b''",
        "hmm, step: no answers",
        "lm, batched: batching does not pay, 10 requests a second instead of 20",
    ]


def test_a_benchmark_with_problems_ends_with_an_error(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in benchmark._FULL:
        (tmp_path / name).mkdir()  # nothing to export

    async def answered(*_: Any) -> Any:
        return benchmark.Tally(seconds=[0.1], wrong=["500 b''"], elapsed=1.0)

    monkeypatch.setattr(benchmark, "serving", lambda *_: contextlib.nullcontext(("", lambda: 0.0)))
    monkeypatch.setattr(benchmark, "load", answered)
    monkeypatch.setattr(benchmark, "streams", answered)
    with pytest.raises(SystemExit) as caught:
        benchmark.run(1, rounds=1, folder=str(tmp_path))
    assert "tagger, round 1, batched: 1 wrong answers" in str(caught.value) and "does not pay" in str(caught.value)
    assert "tagger, tags and scores, batched" in capsys.readouterr().out


def test_the_command_serves_until_it_is_told_to_stop(local_model: Path) -> None:
    command = [sys.executable, "-m", "tfseq", "serve", str(local_model.parents[1]), "--port", "0", "--grpc-port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        assert served.call(url, "/v1/models/local:predict", {"instances": ["a b"]})[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == "tfseq: local version 1 is served\n"  # and nothing of TensorFlow


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{}/none"], 1, "`folder` must be a folder of SavedModels"),
        (["{}", "--host", "192.0.2.1"], 1, "cannot be used"),  # an address kept for documentation
        (["{}", "--port", "many"], 2, "--port must be a whole number"),
        (["{}", "--grpc-port", "65536"], 1, "`grpc_port` must be 0 to 65535"),
        (["{}", "--threads", "0"], 1, "`threads` must be at least 1"),
        (["{}", "--timeout", "inf"], 1, "`timeout` must be a positive number"),
        (["{}", "--batch-timeout-ms", "-1"], 1, "`batch_timeout_ms` must not be negative"),
        ([], 2, "Missing: FOLDER"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], code: int, message: str, local_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *(a.format(local_model.parents[1]) for a in arguments)]) == code
    assert message in capsys.readouterr().err


def test_the_command_explains_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "For development; production is tensorflow/serving, with the same folder and the same requests." in text
    assert "--max_batch_size" in text and "127.0.0.1" in text and "on_ready" not in text
