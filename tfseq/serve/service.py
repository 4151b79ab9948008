"""What REST and gRPC share: a request is checked against the limits, batched, run and counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tfseq.serve.batching import Batcher
from tfseq.serve.errors import ServingError, invalid
from tfseq.serve.repository import Repository
from tfseq.serve.servable import Servable
from tfseq.serve.signatures import Arrays, Signature

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


_LARGE = 1 << 16  # bytes


async def in_thread_if_large(size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives; for many bytes in a thread, so that other requests are not held up."""
    return function(*arguments) if size < _LARGE else await asyncio.to_thread(function, *arguments)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        body: bytes of the request.
        rows: of its batch.
        length: steps of a row, bytes of a text, `num_steps`, `num_sweeps` and `max_tokens`.
        row_steps: rows times the longest of them: what decides the memory of an answer.
        seconds: until the answer.
    """

    body: int = 16 << 20
    rows: int = 1024
    length: int = 65_536
    row_steps: int = 1 << 20
    seconds: float = 60.0

    def check(self, signature: Signature, inputs: Arrays) -> None:
        """Raises where the inputs are larger than allowed."""
        for name, value in inputs.items():
            rows = value.shape[0] if value.ndim else 1
            if rows > self.rows:
                raise invalid(f"Input {name!r} has {rows} rows; a request may have {self.rows}.")
            longest = signature.inputs[name].steps(value)
            if longest > self.length:
                raise invalid(
                    f"Input {name!r} of signature {signature.name!r} has a length of {longest}; {self.length} is allowed."
                )
            if rows * longest > self.row_steps:
                raise invalid(
                    f"Input {name!r} of signature {signature.name!r} asks for {rows} rows of {longest} steps, "
                    f"{rows * longest} in all; {self.row_steps} are allowed. Send fewer rows at a time."
                )


class Metrics:
    """Prometheus metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("api", "model", "signature")
        self._requests = Counter("tfseq_requests", "Requests by their answer.", (*labels, "code"), registry=self._registry)
        self._seconds = Histogram(
            "tfseq_request_seconds", "From request to answer.", labels, buckets=_SECONDS, registry=self._registry
        )
        self._rows = Histogram("tfseq_batch_rows", "Rows of a call of a graph.", buckets=_ROWS, registry=self._registry)
        self._loads = Counter("tfseq_loads", "Versions loaded or failed.", ("model", "result"), registry=self._registry)
        self._load = Gauge("tfseq_load_seconds", "Time of the last load.", ("model",), registry=self._registry)
        self._version = Gauge("tfseq_newest_version", "Highest version served.", ("model",), registry=self._registry)
        self._waiting = Gauge("tfseq_waiting_requests", "Requests in queues.", registry=self._registry)

    def watch(self, batcher: Batcher) -> None:
        """Reports the queues of a batcher from now on."""
        self._waiting.set_function(lambda: batcher.waiting)

    def batch(self, rows: int) -> None:
        """Counts a call."""
        self._rows.observe(rows)

    def load(self, model: str, version: int, result: str, seconds: float) -> None:
        """Counts a load."""
        self._loads.labels(model, result).inc()
        self._load.labels(model).set(seconds)
        if result == "loaded":
            self._version.labels(model).set(version)

    @contextlib.contextmanager
    def request(self, api: str) -> Iterator[list[str]]:
        """Counts a request; the block puts model and signature into the list once it knows that they exist."""
        start, named, code = time.perf_counter(), ["", ""], "OK"
        try:
            yield named
        except ServingError as error:
            code = error.code.name
            raise
        except BaseException:
            code = "CANCELLED"
            raise
        finally:
            self._requests.labels(api, *named, code).inc()
            self._seconds.labels(api, *named).observe(time.perf_counter() - start)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class Service:
    """The models of a folder, ready to answer.

    Args:
        folder: see `Repository`.
        limits: of a request.
        num_threads, max_batch_size, row_multiple, batch_timeout: see `Batcher`.
    """

    def __init__(
        self,
        folder: str | Path,
        limits: Limits | None = None,
        *,
        num_threads: int = 2,
        max_batch_size: int | None = None,
        row_multiple: int = 16,
        batch_timeout: float | None = None,
    ):
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.repository = Repository(folder, on_load=self.metrics.load)
        self._batcher = Batcher(
            num_threads,
            max_batch_size,
            row_multiple,
            batch_timeout,
            max_row_steps=self.limits.row_steps,
            on_batch=self.metrics.batch,
        )
        self.metrics.watch(self._batcher)

    async def predict(self, servable: Servable, signature: Signature, inputs: Arrays, seconds: float | None = None) -> Arrays:
        """The outputs of a signature, within the time that is left or the limit."""
        signature.check(inputs)
        self.limits.check(signature, inputs)
        seconds = self.limits.seconds if seconds is None else min(seconds, self.limits.seconds)
        return await self._batcher.run(servable, signature, inputs, seconds)

    def ready(self) -> bool:
        """Whether every model has a version that is served."""
        models = self.repository.models()
        return bool(models) and all(models.values())

    def close(self) -> None:
        """Ends the threads, after what they do."""
        self._batcher.close()
