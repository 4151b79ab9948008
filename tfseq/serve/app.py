"""The development server: both ports, the look at the folder, and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import tensorflow as tf
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tfseq.serve.rest import make_app
from tfseq.serve.rpc import make_server
from tfseq.serve.service import Limits, Service

_log = logging.getLogger(__name__)
_GRACE = 1  # seconds more than a request may take, for those that have begun when the server stops
_IDLE = 60  # seconds that a connection may be idle between two requests
_HEAD = 1 << 16  # bytes of a request before its body


class DevelopmentServer:
    """REST and gRPC of one folder.

    Args:
        service: what answers.
        host: address to bind to.
        port, grpc_port: 0 for any that is free; afterwards the ones that were taken.
        poll_seconds: between two looks at the folder.
    """

    def __init__(
        self, service: Service, *, host: str = "127.0.0.1", port: int = 8501, grpc_port: int = 8500, poll_seconds: float = 1.0
    ):
        self.service, self.host, self.port, self.grpc_port = service, host, port, grpc_port
        self._poll_seconds = poll_seconds
        self._grace = math.ceil(min(service.limits.seconds, 3600.0)) + _GRACE
        self._loader = ThreadPoolExecutor(1, "tfseq-load")
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Loads what is there, and then listens.

        Raises:
            OSError: a port is taken, or the address is not of this machine.
            ValueError: `models.config` is no such file.
        """
        listening = _listen(self.host, self.port)
        self.port = listening.getsockname()[1]
        await asyncio.get_running_loop().run_in_executor(self._loader, self.service.repository.refresh)
        self._rpc = make_server(self.service)
        try:
            bracketed = f"[{self.host}]" if ":" in self.host else self.host
            self.grpc_port = self._rpc.add_insecure_port(f"{bracketed}:{self.grpc_port}")
        except RuntimeError as error:
            listening.close()
            raise OSError(f"Port {self.grpc_port} of {self.host} cannot be used for gRPC; is it taken? ({error})") from error
        await self._rpc.start()
        config = uvicorn.Config(
            make_app(self.service),
            http=_protocol(self.service.limits.seconds),
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=self._grace,
        )
        self._http = _HTTP(config)
        self._tasks = [asyncio.create_task(self._http.serve([listening])), asyncio.create_task(self._poll())]
        while not self._http.started:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Takes no new requests, answers those that have begun, and ends."""
        if not self._tasks:  # it never came so far
            return
        serving, polling = self._tasks
        polling.cancel()
        self._http.should_exit = True
        await asyncio.gather(serving, self._rpc.stop(self._grace))
        with contextlib.suppress(asyncio.CancelledError):
            await polling
        self._loader.shutdown(wait=False, cancel_futures=True)
        self.service.close()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await loop.run_in_executor(self._loader, self.service.repository.refresh)
            except Exception:
                _log.exception("the folder was not read")


def _protocol(seconds: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 whose clients send the head of a request, or anything, within so many seconds, which uvicorn does not ask for."""

    class Protocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
        head: asyncio.TimerHandle | None = None  # while one is awaited: from the first byte on, at first from the connection on
        size = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.head = self.loop.call_later(seconds, self.refuse, 408, f"did not arrive within {seconds:.3g} seconds")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.size += len(data)
            if self.cycle is not None and not self.cycle.response_complete:  # a request has begun
                self.forget()
            elif self.size > _HEAD and not (self.cycle and self.cycle.more_body):  # else the rest of a body that was refused
                self.refuse(431, f"is larger than {_HEAD} bytes")
            elif self.head is None:
                self.head = self.loop.call_later(seconds, self.refuse, 408, f"did not arrive within {seconds:.3g} seconds")

        def connection_lost(self, exc: Exception | None) -> None:
            self.forget()
            super().connection_lost(exc)

        def forget(self) -> None:
            if self.head is not None:
                self.head.cancel()
            self.head, self.size = None, 0

        def refuse(self, status: int, why: str) -> None:
            self.forget()
            if self.transport.is_closing():
                return
            body = json.dumps({"error": f"The head of the request {why}."}).encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            self.transport.close()

    return Protocol


class _HTTP(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop both servers, so they are not uvicorn's."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"`host` must be an address of this machine; {host!r} is not: {error.strerror}") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise OSError(f"Port {port} of {host} cannot be used: {error.strerror}.") from error
    return listening


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    grpc_port: int = 8500,
    max_batch_size: int | None = None,
    row_multiple: int = 16,
    batch_timeout_ms: float | None = None,
    threads: int = 2,
    poll_seconds: float = 1.0,
    max_body_mb: float = 16.0,
    max_rows: int = 1024,
    max_length: int = 65_536,
    max_row_steps: int = 1 << 20,
    timeout: float = 60.0,
    on_ready: Callable[[DevelopmentServer], None] = lambda _: None,
) -> None:
    """Serves a folder of SavedModels until SIGINT or SIGTERM: for development; production is `tensorflow/serving`.

    Args:
        folder: NAME/VERSION/saved_model.pb, with `models.config` where there is one; or the folder of one model.
        host: address to bind to; 0.0.0.0 lets other machines in, and there is no password.
        port: of REST, metrics and the page; 0 for any that is free.
        grpc_port: of gRPC.
        max_batch_size: rows of requests that share a call of a graph; 1 for SavedModels whose rows are not independent. By
            default what `batching_params.pbtxt` of a version says (32 in tfseq's exports), or 64.
        row_multiple: rows of a call are filled up to a multiple of it where a seed or a state would let rounding grow, so that
            samples and streams are the same in any company; 1 for none.
        batch_timeout_ms: how long the first request of a batch waits for others though a thread is free. By default what
            `batching_params.pbtxt` of a version says (2 ms in tfseq's exports), or 0.
        threads: calls of graphs at the same time.
        poll_seconds: between two looks at the folder for new versions.
        max_body_mb: size of a request, MiB.
        max_rows: rows of a request.
        max_length: steps of a row, bytes of a text, num_steps, num_sweeps and max_tokens.
        max_row_steps: rows of a request times the longest of these.
        timeout: seconds until a request is answered or refused.
        on_ready: called when requests can come.

    Raises:
        ValueError: the folder does not exist, `models.config` is no such file, or an argument is out of its range.
        OSError: a port is taken.
    """
    counts = {"max_batch_size": max_batch_size, "row_multiple": row_multiple, "threads": threads}
    for name, count in {**counts, "max_rows": max_rows, "max_length": max_length, "max_row_steps": max_row_steps}.items():
        if count is not None and count < 1:
            raise ValueError(f"`{name}` must be at least 1; received {count}.")
    for name, value in {"poll_seconds": poll_seconds, "max_body_mb": max_body_mb, "timeout": timeout}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a positive number; received {value}.")
    if batch_timeout_ms is not None and not 0 <= batch_timeout_ms < math.inf:
        raise ValueError(f"`batch_timeout_ms` must not be negative; received {batch_timeout_ms}.")
    for name, number in {"port": port, "grpc_port": grpc_port}.items():
        if not 0 <= number < 1 << 16:
            raise ValueError(f"`{name}` must be 0 to 65535; received {number}.")
    tf.get_logger().setLevel("ERROR")  # else every load says that sessions are old
    limits = Limits(int(max_body_mb * (1 << 20)), max_rows, max_length, max_row_steps, timeout)
    service = Service(
        folder,
        limits,
        num_threads=threads,
        max_batch_size=max_batch_size,
        row_multiple=row_multiple,
        batch_timeout=None if batch_timeout_ms is None else batch_timeout_ms / 1e3,
    )
    server = DevelopmentServer(service, host=host, port=port, grpc_port=grpc_port, poll_seconds=poll_seconds)
    asyncio.run(_until_stopped(server, on_ready))


async def _until_stopped(server: DevelopmentServer, on_ready: Callable[[DevelopmentServer], None]) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C interrupts
            loop.add_signal_handler(number, stopped.set)
    await server.start()
    on_ready(server)
    await stopped.wait()
    for number in (signal.SIGINT, signal.SIGTERM):  # the second one does not wait for requests
        loop.remove_signal_handler(number)
    await server.stop()
