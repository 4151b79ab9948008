"""Dynamic batching: requests that wait at the same time share a call of the graph."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from grpc import StatusCode

from tfseq.serve.errors import ServingError, internal, invalid
from tfseq.serve.servable import Servable
from tfseq.serve.signatures import Arrays, Signature

_log = logging.getLogger(__name__)
_MAX_ROWS = 64  # of a batch, where neither the server nor the version says
_SHORT = 16  # up to twice as many steps, all sizes are alike


@dataclass(eq=False)
class _Job:
    servable: Servable
    signature: Signature
    inputs: Arrays
    future: asyncio.Future[Arrays]
    since: float
    deadline: float
    rows: int = 1

    @cached_property
    def pads(self) -> bool:
        """Whether its inputs may be padded to the length of others."""
        return self.servable.batching.pad_variable_length_inputs and self.signature.pads

    @cached_property
    def size(self) -> int:
        """Steps, sweeps, or bytes of the longest text: roughly how long the loops of the graph run."""
        return max((info.steps(self.inputs[name]) for name, info in self.signature.inputs.items()), default=0)


@dataclass
class _Queue:
    jobs: list[_Job] = field(default_factory=list)
    rows: int = 0
    max_rows: int = 1
    wait: float = 0.0  # seconds for which the oldest job may wait for others

    @property
    def since(self) -> float:
        """When the oldest job came."""
        return self.jobs[0].since


class Batcher:
    """Runs requests in threads; those of the same servable, signature and shapes join along axis 0.

    A batch leaves when a thread is free, and under load batches grow by themselves. The first request waits for others though
    a thread is free as long as `batch_timeout` says, or where that is None the version's `batch_timeout_micros`, which tfseq's
    exports set to 2 ms; where neither says so, a lone request never waits. Each answer has the sizes it would have alone:
    requests join only if their `num_steps`, `num_sweeps` or `max_tokens` (and other numbers `[B]`, where the size of an output is
    open) have the same maximum, and answers to texts are cut to their own `length`. Where `batching_params.pbtxt` says
    `pad_variable_length_inputs`, inputs of different lengths join too, padded with their first element as TF Serving does, if
    the answer has no open size, seed or state; TF Serving pads the others as well, and gives their clients longer answers. Since
    a graph runs as long as its longest row, texts and padded inputs join only those of less than twice their size.

    An answer does not depend on its company, up to rounding. Where rounding can grow (samples, and states that a client
    sends back) the rows are filled up to a multiple of 16, the values of the widest vector register: kernels round the
    values that fill no register otherwise, and products of one row are summed in another order.

    Args:
        num_threads: calls at the same time.
        max_rows: of a batch; 1 for no batching; None for what the version says, or 64.
        row_multiple: what the rows are filled up to; 1 for none.
        batch_timeout: seconds; None for what the version says, or 0.
        max_row_steps: rows times steps of a batch, about; more than that only one request or the fillers make.
        max_waiting: requests that may wait; more are refused.
        on_batch: called with the number of rows, fillers not counted, of each call.
    """

    def __init__(
        self,
        num_threads: int = 2,
        max_rows: int | None = None,
        row_multiple: int = 16,
        batch_timeout: float | None = None,
        max_row_steps: int = 1 << 20,
        max_waiting: int = 10_000,
        on_batch: Callable[[int], None] = lambda _: None,
    ):
        self._pool = ThreadPoolExecutor(num_threads, "tfseq-serve")
        self._free, self._max_rows, self._multiple, self._timeout = num_threads, max_rows, row_multiple, batch_timeout
        self._max_row_steps, self._max_waiting, self._on_batch = max_row_steps, max_waiting, on_batch
        self._queues: dict[Any, _Queue] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.waiting = 0

    async def run(self, servable: Servable, signature: Signature, inputs: Arrays, seconds: float = 60.0) -> Arrays:
        """The outputs of one request, within so many seconds.

        A request that is cancelled or late is dropped if it still waits. A graph that runs goes on; it is stopped at the last
        deadline of its batch.

        Raises:
            ServingError: of this request, never of one that shared its batch.
        """
        if self.waiting >= self._max_waiting:
            raise ServingError(StatusCode.UNAVAILABLE, f"The queue is full: {self.waiting} requests wait.")
        loop = asyncio.get_running_loop()
        sizes = {value.shape[0] if value.ndim else None for value in inputs.values()}
        job = _Job(servable, signature, inputs, loop.create_future(), loop.time(), loop.time() + seconds)
        fitting = max(self._max_row_steps // max(job.size, 1), self._multiple)
        max_rows = min(self._max_rows or servable.batching.max_batch_size or _MAX_ROWS, fitting)
        joins = max_rows > 1 and signature.batches and signature.name not in servable.alone
        if joins and len(sizes) > 1:
            rows = {name: value.shape[0] for name, value in sorted(inputs.items())}
            raise invalid(f"Batching input tensors must have equal 0th-dimension sizes, the rows; received {rows}.")
        if joins and sizes != {0}:
            job.rows = next(iter(inputs.values())).shape[0]
            wait = (servable.batching.batch_timeout_micros or 0) / 1e6 if self._timeout is None else self._timeout
            queue = self._queues.setdefault(_key(job), _Queue(max_rows=max_rows, wait=wait))
        else:
            queue = self._queues.setdefault(job, _Queue())
        queue.jobs.append(job)
        queue.rows += job.rows
        self.waiting += 1
        self._dispatch()
        try:
            async with asyncio.timeout_at(job.deadline):
                return await job.future
        except TimeoutError:
            raise ServingError(StatusCode.DEADLINE_EXCEEDED, f"No answer within {seconds:.3g} seconds.") from None

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown()

    def _dispatch(self) -> None:
        """Gives free threads what is ready, the oldest first; sets a timer for what is not."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._queues:
            now = loop.time()
            ready = [(q.since, key) for key, q in self._queues.items() if q.rows >= q.max_rows or q.since + q.wait <= now]
            if not ready:
                soonest = min(q.since + q.wait for q in self._queues.values())
                self._timer = loop.call_at(soonest, self._dispatch)
                return
            jobs = self._take(min(ready, key=lambda pair: pair[0])[1])
            if jobs:
                self._free -= 1
                task = loop.create_task(self._answer(jobs))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _take(self, key: Any) -> list[_Job]:
        """The oldest job of a queue and those whose texts are nearest to its own in length, as many as a batch holds.

        A graph runs to its longest row, so that a batch of all lengths would do much for nothing. Jobs that nobody waits for any
        more are dropped.
        """
        queue = self._queues[key]
        waiting = [job for job in queue.jobs if not job.future.done()]
        taken: list[_Job] = []
        rows = 0
        for job in sorted(waiting, key=lambda job: (job is not waiting[0], abs(job.size - waiting[0].size))):
            if taken and rows + job.rows > queue.max_rows:
                break
            taken.append(job)
            rows += job.rows
        chosen = set(map(id, taken))
        left = [job for job in waiting if id(job) not in chosen]
        self.waiting -= len(queue.jobs) - len(left)
        queue.jobs, queue.rows = left, sum(job.rows for job in left)
        if not left:
            del self._queues[key]
        return taken

    async def _answer(self, jobs: Sequence[_Job]) -> None:
        loop = asyncio.get_running_loop()
        seconds = max(max(job.deadline for job in jobs) - loop.time(), 1e-3)
        try:
            multiple = 1 if self._max_rows == 1 else self._multiple
            answers = await loop.run_in_executor(self._pool, _execute, jobs, multiple, seconds)
        except Exception as error:  # the pool is closed
            answers = [internal(error)] * len(jobs)
        self._free += 1
        self._on_batch(sum(job.rows for job in jobs))
        for job, answer in zip(jobs, answers, strict=True):
            if job.future.done():  # its client has gone, or its time was up
                continue
            if isinstance(answer, ServingError):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)
        self._dispatch()


def _key(job: _Job) -> Any:
    """What requests that may join have in common."""
    signature, sizes = job.signature, dict[int, int]()
    shapes = []
    for name, value in sorted(job.inputs.items()):
        padded = signature.inputs[name].open_axes if job.pads and value.size else []
        # of what is padded only which sizes are the same: a request whose sizes contradict each other joins no good one
        shape = [-1 - sizes.setdefault(n, len(sizes)) if axis in padded else n for axis, n in enumerate(value.shape)]
        shapes.append((name, *shape[1:]))
    largest = tuple(int(job.inputs[name].max()) for name in signature.drivers)
    alike = max(job.size, _SHORT).bit_length()
    return id(job.servable), signature.name, tuple(shapes), largest, alike  # a queue holds its servables: no id is used again


def _execute(jobs: Sequence[_Job], multiple: int, seconds: float) -> list[Arrays | ServingError]:
    """Answers of jobs that share a batch; where it fails each job runs alone, so that an error meets only who caused it."""
    try:
        return list(_together(jobs, multiple, seconds))
    except Exception as error:
        refused = error if isinstance(error, ServingError) else internal(error)
        if len(jobs) > 1 and refused.code != StatusCode.DEADLINE_EXCEEDED:
            return [answer for job in jobs for answer in _execute([job], multiple, seconds)]
        if refused is not error:
            _log.exception("unexpected error in %s", jobs[0].signature.name)
        return [refused] * len(jobs)


def _together(jobs: Sequence[_Job], multiple: int, seconds: float) -> list[Arrays]:
    servable, signature = jobs[0].servable, jobs[0].signature
    rows = sum(job.rows for job in jobs)
    has_rows = signature.batches and all(v.shape[:1] == (jobs[0].rows,) for v in jobs[0].inputs.values())
    fitting = (n for n in servable.batching.allowed_batch_sizes if n >= rows)
    target = next(fitting, rows + -rows % multiple if signature.is_sensitive else rows)
    if len(jobs) == 1 and (not has_rows or target == rows):
        return [servable(signature, jobs[0].inputs, seconds)]
    parts = {name: [job.inputs[name] for job in jobs] for name in signature.inputs}
    inputs = {name: _join(values, target - rows) for name, values in parts.items()}
    outputs = servable(signature, inputs, seconds)
    longest = _longest(outputs) if signature.cuts else 0
    if not _has_sizes(outputs, signature, target, longest):  # what only a run can tell: this is no batch of rows
        servable.alone.add(signature.name)
        return [servable(signature, job.inputs, seconds) for job in jobs]
    answers, start = [], 0
    for job in jobs:
        answer = {name: value[start : start + job.rows] for name, value in outputs.items()}
        answers.append(_cut(answer, signature, longest) if longest else answer)
        start += job.rows
    return answers


def _join(parts: Sequence[np.ndarray], fillers: int) -> np.ndarray:
    """Arrays joined along axis 0, then the last row so many times more; shorter ones padded with their first element."""
    if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        wanted = np.max([part.shape for part in parts], 0)
        more = [[(0, 0), *((0, n) for n in (wanted - part.shape)[1:])] for part in parts]
        parts = [np.pad(part, n, constant_values=part.flat[0]) for part, n in zip(parts, more, strict=True)]
    last = parts[-1][-1:]
    return np.concatenate([*parts, *[last] * fillers]) if len(parts) > 1 or fillers else parts[0]


def _longest(outputs: Arrays) -> int:
    """Steps of the longest row; one where there are none, as graphs pad to at least one step."""
    return max(1, int(outputs["length"].max()))


def _has_sizes(outputs: Arrays, signature: Signature, rows: int, longest: int) -> bool:
    """Whether outputs have the rows of the inputs and, where they are to be cut, open axes as long as the longest row."""
    for name, value in outputs.items():
        if value.shape[:1] != (rows,):
            return False
        if longest and any(value.shape[axis] != longest for axis in signature.outputs[name].open_axes):
            return False
    return True


def _cut(answer: Arrays, signature: Signature, longest: int) -> Arrays:
    """An answer without the padding that longer companions brought."""
    own = _longest(answer)
    if own == longest:
        return answer
    cuts = {name: signature.outputs[name].open_axes for name in answer}
    return {
        name: value[tuple(slice(own) if axis in cuts[name] else slice(None) for axis in range(value.ndim))]
        for name, value in answer.items()
    }
