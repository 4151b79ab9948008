"""A training step with and without XLA, in float32 and in mixed precision, for one model of each family.

The models and batches of `workloads.py`. Printed are milliseconds of the processor a step (the best epoch of each round, the
median over rounds; on one thread other work hardly counts), the seconds of it until the first step is done (tracing, and with
XLA compiling, which comes again for every new shape of a batch), and after how many steps of one shape XLA has paid for itself.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from typing import Any

from benchmarks.processes import errors, in_child
from benchmarks.rbm import use_threads
from benchmarks.workloads import WORKLOADS, batch_of

_EPOCHS = 4
CONTENDERS = {"plain": (False, None), "XLA": (True, None), "bfloat16": (False, "mixed_bfloat16")}


def measure(name: str, xla: bool, dtype: str | None, threads: int) -> dict[str, float]:
    """Seconds until the first step is done, and milliseconds of a later one."""
    use_threads(threads)
    import keras
    import tensorflow as tf

    from tfseq.models import MODELS
    from tfseq.training import make_optimizer

    workload = WORKLOADS[name]
    keras.utils.set_random_seed(0)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    model = MODELS[workload.model](**workload.hyperparameters, **options)
    model.compile(make_optimizer("adam", 1e-3, clip_norm=5.0), method=workload.method, jit_compile=xla)
    stream = tf.data.Dataset.from_tensors(batch_of(workload, model.batch_spec())).repeat()
    begun = time.process_time()
    model.fit(stream, steps_per_epoch=1, epochs=1, verbose=0)
    first, seconds = time.process_time() - begun, []
    for _ in range(_EPOCHS):
        begun = time.process_time()
        model.fit(stream, steps_per_epoch=workload.num_batches, epochs=1, verbose=0)
        seconds.append(time.process_time() - begun)
    return {"first": first, "milliseconds": 1e3 * min(seconds) / workload.num_batches}


def run(rounds: int = 2, threads: int = 1, workloads: str | None = None, **_: object) -> None:
    """Prints the table."""
    names = [name for name in WORKLOADS if workloads is None or WORKLOADS[name].model in workloads.split(",")]
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {threads} threads, {rounds} rounds"
    )
    found: dict[str, dict[str, list[dict]]] = {name: {c: [] for c in CONTENDERS} for name in names}
    for _round in range(rounds):
        for name in names:
            for contender, (xla, dtype) in CONTENDERS.items():
                found[name][contender].append(in_child("xla", name=name, xla=xla, dtype=dtype, threads=threads))
    print(f"{'':22}", *(f"{a:>18}" for a in [*(f"{c}: ms (first s)" for c in CONTENDERS), "XLA pays after"]))
    for name in names:
        cells, ms, first = [], {}, {}
        for contender, results in found[name].items():
            if wrong := errors(results):
                print(f"{name}, {contender}: {wrong[0]}")
                cells.append("-")
                continue
            ms[contender] = statistics.median(r["milliseconds"] for r in results)
            first[contender] = statistics.median(r["first"] for r in results)
            cells.append(f"{ms[contender]:.1f} ({first[contender]:.1f})")
        if {"plain", "XLA"} <= set(ms):
            gain = ms["plain"] - ms["XLA"]
            cells.append(f"{1e3 * (first['XLA'] - first['plain']) / gain:.0f} steps" if gain > 0 else "never")
        print(f"{name:22}", *(f"{cell:>18}" for cell in cells))
