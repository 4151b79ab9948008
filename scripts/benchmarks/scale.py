"""Training with one, two and four workers on one machine: the loss curve, and the speed.

The models and batches of `workloads.py`, which are the same for all. Workers are processes that talk by loopback; each has one
thread, so that two of them have two cores. "2 threads" is one process with both cores: what one machine does without workers.

First the largest relative difference of the losses of every epoch from those of one worker; then milliseconds a step (the best
epoch of each round, the median over rounds) and the ratio to one worker. More workers than cores only show that the curve holds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import errors, in_child
from benchmarks.workloads import WORKLOADS, batch_of

_SCRIPT = Path(__file__).parents[1] / "benchmark.py"
_EPOCHS = 4
# contender -> (workers, threads of each)
CONTENDERS = {"1 worker": (1, 1), "2 workers": (2, 1), "4 workers": (4, 1), "2 threads": (1, 2)}


def worker(name: str, out: str) -> dict[str, Any]:
    """Trains as one of the workers of `TF_CONFIG`; the chief writes losses and milliseconds a step of every epoch to `out`."""
    import keras
    import tensorflow as tf

    from tfseq.models import MODELS
    from tfseq.models.replicas import is_chief, strategy_of_cluster
    from tfseq.training import make_optimizer

    workload = WORKLOADS[name]
    num = workload.num_batches
    strategy = strategy_of_cluster()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = MODELS[workload.model](**workload.hyperparameters)
        model.compile(make_optimizer("adam", 1e-3, clip_norm=5.0), method=workload.method)
    batch = batch_of(workload, model.batch_spec())
    seconds = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: seconds.append(-time.perf_counter()),
        on_epoch_end=lambda *_: seconds.append(seconds.pop() + time.perf_counter()),
    )
    stream = tf.data.Dataset.from_tensors(batch).repeat()
    history = model.fit(stream, steps_per_epoch=num, epochs=_EPOCHS, verbose=0, callbacks=[clock]).history
    found = {"loss": [float(a) for a in history["loss"]], "milliseconds": [1e3 * s / num for s in seconds]}
    if is_chief(strategy):
        Path(out).write_text(json.dumps(found))
    return found


def measure(name: str, num_workers: int = 1, threads: int = 1, out: str | None = None) -> dict[str, Any]:
    """What the chief of so many workers found; with `out`, the work of one of them."""
    if out is not None:
        return worker(name, out)
    from tfseq.workers import run_workers

    os.environ |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, str(_SCRIPT), "child", json.dumps(["scale", {"name": name, "out": str(file)}])]
        if code := run_workers(lambda: command, num_workers, Path(folder)):
            logs = "".join(log.read_text() for log in Path(folder).glob("*.log"))
            return {"error": f"exit code {code}. {logs[-300:]}"}
        return json.loads(file.read_text())


def run(rounds: int = 2, workloads: str | None = None, **_: object) -> None:
    """Prints both tables."""
    names = [name for name in WORKLOADS if workloads is None or WORKLOADS[name].model in workloads.split(",")]
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {rounds} rounds of {_EPOCHS} epochs"
    )

    def row(first: str, *rest: str) -> None:
        print(f"{first:22}", *(f"{a:>12}" for a in rest))

    found: dict[str, dict[str, list[dict]]] = {name: {c: [] for c in CONTENDERS} for name in names}
    for _round in range(rounds):
        for name in names:
            for contender, (num, threads) in CONTENDERS.items():
                found[name][contender].append(in_child("scale", name=name, num_workers=num, threads=threads))
    for name in names:
        for contender, results in found[name].items():
            for text in errors(results):
                print(f"{name}, {contender}: {text}")
    names = [name for name in names if not any(errors(results) for results in found[name].values())]
    print("largest relative difference of an epoch's loss from that of one worker")
    row("", *list(CONTENDERS)[1:])
    for name in names:
        one = np.array(found[name]["1 worker"][0]["loss"])
        row(name, *(f"{np.abs(np.array(found[name][c][0]['loss']) / one - 1).max():.1e}" for c in list(CONTENDERS)[1:]))
    print("milliseconds a step, and how many times as fast as one worker")
    row("", *CONTENDERS)
    for name in names:
        best = {c: statistics.median(min(r["milliseconds"][1:]) for r in rs) for c, rs in found[name].items()}
        row(name, *(f"{ms:.1f} {best['1 worker'] / ms:.2f}x" for ms in best.values()))
