"""Local workers: processes of one machine that train one model together, watched and started again when one dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tfseq.allocator import c_function

DIVERGED = 3
"""Exit code of `tfseq train` where it stopped at a loss that is not finite, and kept the weights before it."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
_RESTARTS = 3
_DIVERGED_SECONDS = 120.0  # for a worker to find out too, and for the chief to write what it keeps
_GRACE_SECONDS = 10.0  # between asking a process to end and ending it
_POLL_SECONDS = 0.2


def run_workers(command: Callable[[], Sequence[str]], num_workers: int, logs: Path) -> int:
    """Runs a command in several processes that know of each other by `TF_CONFIG`.

    The first worker, the chief, has this process's output; what another one prints goes to `logs`/worker-K.log. When a worker was
    killed, all are ended, since none can train without it, and started again, three times at most.

    Args:
        command: makes the command, anew for every start, so that a later one can resume.
        num_workers: how many, at least 1.
        logs: folder of their logs, made where it is absent.

    Returns:
        the exit code of the first worker that failed, or 0; `DIVERGED` where training did, which all workers find.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # which ends the workers too
    for restarts in range(_RESTARTS + 1):
        code = _run_once(list(command()), num_workers, logs)
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        if restarts < _RESTARTS:
            print(f"tfseq: a worker was killed ({name}); all are started again.", file=sys.stderr, flush=True)
    print(f"tfseq: error: a worker was killed ({name}) for the {_RESTARTS + 1}th time. See {logs}.", file=sys.stderr, flush=True)
    return 1


def _run_once(command: list[str], num_workers: int, logs: Path) -> int:
    """Exit code of the first worker that failed, minus a signal's number where it was killed; 0 where all ended well."""
    logs.mkdir(parents=True, exist_ok=True)
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // num_workers))  # workers share the cores
    processes: list[subprocess.Popen] = []
    dying = _die_with_parent()
    with contextlib.ExitStack() as stack:
        try:
            for index in range(num_workers):
                config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                environment = {"TF_NUM_INTRAOP_THREADS": threads, **os.environ, "TF_CONFIG": json.dumps(config)}
                log = None if index == 0 else stack.enter_context((logs / f"worker-{index}.log").open("a"))
                errors = None if log is None else subprocess.STDOUT
                worker = subprocess.Popen(command, env=environment, stdout=log, stderr=errors, preexec_fn=dying)
                processes.append(worker)
            while True:
                codes = [process.poll() for process in processes]
                if DIVERGED in codes:  # which all find, each in its time; one that is gone may break another, which is no death
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        for process in processes:
                            process.wait(_DIVERGED_SECONDS)
                    return DIVERGED
                # a killed worker takes the others' calls with it: its signal says more than their errors
                failed = sorted(code for code in codes if code)
                if failed and failed[0] > 0 and None in codes:
                    time.sleep(1.0)  # perhaps only the echo of a worker that is dying
                    failed = sorted(code for process in processes if (code := process.poll()))
                if failed or None not in codes:
                    return failed[0] if failed else 0
                time.sleep(_POLL_SECONDS)
        finally:
            _end(processes)


def _die_with_parent() -> Callable[[], object] | None:
    """What a worker does first, so that it does not outlive a process that is killed with no time to end it; Linux has it."""
    prctl = c_function("prctl")
    return None if prctl is None else lambda: prctl(_DIE_WITH_PARENT, int(signal.SIGKILL))


def _free_ports(num: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ends what still runs, gently and then not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
