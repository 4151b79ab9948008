"""Contenders in processes of their own, which take turns; shared by the benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

_SCRIPT = Path(__file__).parents[1] / "benchmark.py"


def in_child(what: str, cores: int | None = None, variables: Mapping[str, str] | None = None, **arguments: object) -> dict:
    """`measure(**arguments)` of benchmark `what` in a new process: its result, or its "error".

    Args:
        what: the name of the benchmark.
        cores: what the process may use, for libraries whose pools of threads have no other limit; None for all.
        variables: of the environment, for what a library reads when it is loaded.
        arguments: plain values for JSON.
    """
    environment = {**os.environ, **(variables or {})}
    before = None
    if cores is not None:
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment |= dict.fromkeys(limits, str(cores))
        if hasattr(os, "sched_setaffinity"):
            before = partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:cores])
    command = [sys.executable, str(_SCRIPT), "child", json.dumps([what, arguments])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=before)
    if done.returncode < 0:  # the last line of its log would say nothing of it
        return {"error": f"ended by signal {-done.returncode}"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turns(
    what: str,
    names: Iterable[str],
    rounds: int,
    cores: int | None = None,
    variables: Mapping[str, Mapping[str, str]] | None = None,
    **arguments: object,
) -> dict[str, list[dict]]:
    """What `in_child` found for each contender in each round, with its `variables`; a slow minute of the machine hits all."""
    names = list(names)
    found: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(in_child(what, cores, (variables or {}).get(name), name=name, **arguments))
    return found


def errors(results: list[dict]) -> list[str]:
    """What went wrong in any round."""
    return [str(result["error"]) for result in results if "error" in result]
