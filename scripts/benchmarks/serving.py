"""`tfseq serve` under load, and with many streams at once; every answer is held against the one to the same request alone.

Load: 200 clients, each with one request after the other on a connection of its own, ask a tagger (BiLSTM 2 x 200, sentences of
5 to 40 words) and a language model (LSTM 2 x 512, log-probability of texts of 20 to 100 characters), untrained; the server runs
with batching and, in the same run, without. Printed: requests a second, median and 99 % quantile of the latency, the server's
processor time a request, answers that are equal byte by byte, that are equal up to rounding (1e-5), and that are wrong.

Streams: `init_state` and `step` or `filter_step` of the language model, a hidden Markov model (16 states), a deep Markov model
and a variational RNN (particle filters), 1000 streams in turns over 200 connections, each beside the same stream alone.

An answer that is wrong or missing, and batching that answers no more requests a second than the server without, end it with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import in_child

_WORDS, _TAGS = 20_000, 17
_DISTINCT = 64  # requests that the clients choose from
_FULL: dict[str, dict[str, Any]] = {
    "tagger": {
        "vocabulary": [f"w{n}" for n in range(_WORDS)],
        "tags": [f"T{n}" for n in range(_TAGS)],
        "embedding_dim": 100,
        "units": [200, 200],
        "characters": None,
    },
    "lm": {"vocabulary": list("abcdefghijklmnopqrstuvwxyz,.;"), "unit": "characters", "embedding_dim": 64, "units": [512, 512]},
    "hmm": {"num_states": 16},
    "dmm": {"latent_dim": 16},
    "vrnn": {"latent_dim": 16, "rnn_units": 64, "hidden_dim": 64},
}
SIGNATURES = {"tagger": "tags and scores", "lm": "log-probability"}
STREAMS = {"lm": "step", "hmm": "filter_step", "dmm": "filter_step", "vrnn": "filter_step"}
_DRAWN = ("dmm", "vrnn")  # whose steps take a seed


def measure(name: str, folder: str) -> dict[str, str]:
    """Exports an untrained model, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    import tfseq

    keras.utils.set_random_seed(0)
    model = tfseq.MODELS[name].tiny(**_FULL[name])
    return {"path": str(tfseq.export(model, Path(folder) / name, num_samples=1, num_particles=32))}


@contextlib.contextmanager
def serving(folder: Path, threads: int, *flags: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """(URL, processor time so far in seconds) of a server in a process of its own, which is stopped as a user stops it."""
    command = [sys.executable, "-m", "tfseq", "serve", str(folder), "--port", "0", "--grpc-port", "0", *flags]
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(threads)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **output, env=environment) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"http://\S+", line)
            if found is None:
                raise RuntimeError(f"The server did not start; what does {' '.join(command[1:])} say?")
            yield found[0], partial(_processor_seconds, process.pid)
        finally:
            process.terminate()
            if process.wait(60):
                raise RuntimeError(f"The server ended with exit code {process.returncode}.")


def _processor_seconds(process: int) -> float:
    """Of a running process, where the system says so."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Connection:
    """One HTTP connection that is kept."""

    def __init__(self, url: str):
        self._host, self._port = url.removeprefix("http://").split(":")

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """(status, answer)."""
        self._writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
        return int(head.split(b" ", 2)[1]), await self._reader.readexactly(size)


@dataclass
class Tally:
    """What came of many requests."""

    seconds: list[float] = field(default_factory=list)
    exact: int = 0
    rounded: int = 0
    wrong: list[str] = field(default_factory=list)
    elapsed: float = 0.0
    processor: float = float("nan")  # seconds of the server

    def add(self, seconds: float, status: int, answer: bytes, wanted: bytes) -> None:
        """Counts an answer by what it should have been."""
        self.seconds.append(seconds)
        if status != 200:
            self.wrong.append(f"{status} {answer[:200]!r}")
        elif answer == wanted:
            self.exact += 1
        elif close(json.loads(answer), json.loads(wanted)):
            self.rounded += 1
        else:
            self.wrong.append(f"{answer[:200]!r} instead of {wanted[:200]!r}")

    def quantile(self, share: float) -> float:
        """Of the latencies, seconds."""
        return sorted(self.seconds)[min(int(share * len(self.seconds)), len(self.seconds) - 1)] if self.seconds else float("nan")

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.seconds) / self.elapsed

    def __str__(self) -> str:
        each = 1e3 * self.processor / max(len(self.seconds), 1)
        times = f"{1e3 * self.quantile(0.5):9.1f}{1e3 * self.quantile(0.99):9.1f}" + (
            f"{each:9.2f}" if each == each else f"{'':9s}"
        )
        return f"{len(self.seconds):9d}{self.rate:9.0f}{times}{self.exact:9d}{self.rounded:9d}{len(self.wrong):7d}"


HEADER = f"{'requests':>9s}{'/s':>9s}{'p50 ms':>9s}{'p99 ms':>9s}{'CPU ms':>9s}{'equal':>9s}{'rounded':>9s}{'wrong':>7s}"


def close(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same, numbers up to 1e-5 of the larger (and 1e-6)."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b) or abs(a - b) <= 1e-6 + 1e-5 * max(abs(a), abs(b))
    return type(a) is type(b) and a == b


def requests_of(model: str, small: bool = False) -> list[bytes]:
    """Distinct bodies of requests."""
    rng = random.Random(0)
    if model == "tagger":
        words = ["on", "off", "fin"] if small else _FULL["tagger"]["vocabulary"]
        texts = [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(_DISTINCT)]
    else:
        letters = "ab" if small else _FULL["lm"]["vocabulary"]
        texts = [" ".join("".join(rng.choices(letters, k=4)) for _ in range(rng.randint(4, 20))) for _ in range(_DISTINCT)]
    return [json.dumps({"instances": [text]}).encode() for text in texts]


async def load(url: str, model: str, bodies: Sequence[bytes], num_clients: int, seconds: float) -> Tally:
    """Asks for so long, with so many clients at once."""
    path, tally = f"/v1/models/{model}:predict", Tally()
    async with Connection(url) as connection:
        wanted = [(await connection.post(path, body))[1] for body in bodies]  # alone
    stop = time.perf_counter() + seconds

    async def client(number: int) -> None:
        rng = random.Random(number)
        async with Connection(url) as connection:
            while time.perf_counter() < stop:
                i = rng.randrange(len(bodies))
                start = time.perf_counter()
                status, answer = await connection.post(path, bodies[i])
                tally.add(time.perf_counter() - start, status, answer, wanted[i])

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(num_clients)))
    tally.elapsed = time.perf_counter() - start
    return tally


async def _stream(connections: asyncio.Queue, model: str, number: int, num_steps: int) -> tuple[list[bytes], list[float]]:
    """(the answers to one stream, seconds of each step); a connection is taken for a step only."""
    rng, path = random.Random(number), f"/v1/models/{model}:predict"
    seed = [[number, 1]]
    answers, times = [], []

    async def ask(signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        connection = await connections.get()
        start = time.perf_counter()
        try:
            status, answer = await connection.post(path, body)
        finally:
            times.append(time.perf_counter() - start)
            connections.put_nowait(connection)
        if status != 200:
            raise RuntimeError(f"{model}: {status} {answer[:200]!r}")
        answers.append(answer)
        return json.loads(answer)["outputs"]

    found = await ask("init_state", {"seed": seed})
    state = dict(found) if isinstance(found, dict) else {"log_belief": found}  # the name of a single output is left out
    for _ in range(num_steps):
        if model == "lm":
            given: dict[str, Any] = {"token_id": [rng.randrange(3)]}
        else:
            given = {"x": [[float(rng.randrange(2)) for _ in range(3)]]}
        out = await ask(STREAMS[model], {**state, **given, **({"seed": seed} if model in _DRAWN else {})})
        state = {name: out[name] for name in state}
    return answers, times


async def streams(url: str, model: str, num_streams: int, num_steps: int, num_connections: int = 200) -> Tally:
    """Many streams in turns, each beside the same stream alone."""
    tally = Tally()
    async with contextlib.AsyncExitStack() as stack:
        alone: asyncio.Queue = asyncio.Queue()
        alone.put_nowait(await stack.enter_async_context(Connection(url)))
        wanted = [(await _stream(alone, model, number, num_steps))[0] for number in range(num_streams)]
        pool: asyncio.Queue = asyncio.Queue()
        for _ in range(min(num_connections, num_streams)):
            pool.put_nowait(await stack.enter_async_context(Connection(url)))
        start = time.perf_counter()
        found = await asyncio.gather(*(_stream(pool, model, number, num_steps) for number in range(num_streams)))
        tally.elapsed = time.perf_counter() - start
    for (answers, times), right in zip(found, wanted, strict=True):
        for seconds, answer, alone_answer in zip(times, answers, right, strict=True):
            tally.add(seconds, 200, answer, alone_answer)
    return tally


def run(
    threads: int,
    rounds: int = 1,
    seconds: float = 60.0,
    clients: int = 200,
    num_streams: int = 1000,
    steps: int = 10,
    folder: str | None = None,
) -> None:
    """Prints the tables.

    Raises:
        SystemExit: an answer was wrong or missing, or batching does not pay.
    """
    tallies: dict[str, Tally] = {}
    with contextlib.ExitStack() as stack:
        kept = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        for model in _FULL:
            found = {} if (kept / model).exists() else in_child("serving", name=model, folder=str(kept))
            if "error" in found:
                raise RuntimeError(f"{model}: {found['error']}")
        print(
            f"{clients} clients for {seconds:g} s, {threads} thread(s) a graph of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}"
        )
        print(f"{'':40s}{HEADER}")
        for number in range(1, rounds + 1):
            for kind, flags in (("batched", ()), ("unbatched", ("--max-batch-size", "1"))):
                with serving(kept, threads, *flags) as (url, used):
                    for model, what in SIGNATURES.items():
                        before = used()
                        tally = asyncio.run(load(url, model, requests_of(model), clients, seconds))
                        tally.processor = used() - before
                        tallies[f"{model}, round {number}, {kind}"] = tally
                        print(f"{model + ', ' + what + ', ' + kind:40s}{tally}", *tally.wrong[:1], flush=True)
        print(f"\n{num_streams} streams of {steps} steps in turns")
        with serving(kept, threads) as (url, used):
            for model, signature in STREAMS.items():
                tallies[f"{model}, {signature}"] = tally = asyncio.run(streams(url, model, num_streams, steps))
                print(f"{model + ', ' + signature:40s}{tally}", *tally.wrong[:1], flush=True)
    if found := problems(tallies):
        raise SystemExit("\n".join(["", *found]))


def problems(tallies: Mapping[str, Tally]) -> list[str]:
    """What is wrong with loads and streams, by their names; `..., batched` is compared with `..., unbatched`."""
    found = [f"{name}: {len(t.wrong)} wrong answers, first {t.wrong[0]}" for name, t in tallies.items() if t.wrong]
    found += [f"{name}: no answers" for name, t in tallies.items() if not t.seconds]
    for name, tally in tallies.items():
        other = tallies.get(name.removesuffix(", batched") + ", unbatched")
        if other is not None and not tally.rate > other.rate:
            found.append(f"{name}: batching does not pay, {tally.rate:.0f} requests a second instead of {other.rate:.0f}")
    return found
