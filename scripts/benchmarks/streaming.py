"""Data sets larger than memory: one epoch of a language model and of an RBM on shards, with `tfseq.train`.

Generated data: sequences of 16,384 symbols (int32, four different ones, each more probable after itself), and binary vectors of
784 (float32). They are written block by block by a process of their own, and read by another. Printed of each: its peak resident
memory, the memory after imports and at every fifth of its time, MB/s of shards, and training steps a second.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.processes import in_child

LENGTH, SYMBOLS, VISIBLE = 16_384, 4, 784
LANES, WINDOW, VECTORS = 512, 256, 1000


def measure(name: str, writes: bool, folder: str, gigabytes: float, threads: int) -> dict[str, object]:
    """Writes the data of one model, or trains on them, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    import tfseq

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    model_class = {"lm": tfseq.LanguageModel, "rbm": tfseq.RBM}[name]
    imports, curve, done = _resident(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            curve.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        if writes:
            shards, steps = tfseq.write_shards(_blocks(name, gigabytes), folder, num_shards=64), 0
        else:
            shards = tfseq.Shards(folder, "train")
            small = {"embedding_dim": 2, "units": [2], "cell": "rnn", "dropout": 0.0, "window": WINDOW}
            model = model_class.from_data(shards.sample(), **small if name == "lm" else {"num_hidden": 16})
            run = tfseq.train(model, shards, epochs=1, batch_size=LANES if name == "lm" else VECTORS, progress=False)
            steps = int(run.model.step)
            if not all(np.isfinite(value) for value in run.history[0].values()):
                raise ValueError(f"training is not finite: {run.history[0]}")
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - start
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "imports": imports,
        "curve": [curve[k * (len(curve) - 1) // 5] for k in range(1, 6)] if curve else [],
        "bytes": shards.num_bytes,
        "seconds": seconds,
        "steps": steps,
    }


def _resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _blocks(name: str, gigabytes: float) -> Iterator:
    """Blocks of about 16 MB."""
    import tfseq

    rng = np.random.default_rng(0)
    size, num = (4 * LENGTH, 256) if name == "lm" else (4 * VISIBLE, 5000)
    probs = rng.uniform(0.1, 0.9, VISIBLE).astype(np.float32)
    for begin in range(0, max(1, round(gigabytes * 1e9 / size)), num):
        rows = min(num, round(gigabytes * 1e9 / size) - begin)
        if name == "lm":
            moves = rng.integers(0, 2 * SYMBOLS, [rows, LENGTH], np.int32)
            x = 1 + np.where(moves < SYMBOLS, moves, 0).cumsum(1, dtype=np.int32) % SYMBOLS
        else:
            x = (rng.random([rows, 1, VISIBLE], np.float32) < probs).astype(np.float32)
        yield tfseq.Sequences(x, name="generated", split="train")


def run(threads: int = 1, gigabytes: float = 5.0, folder: str | None = None, workloads: str = "lm,rbm", **_: object) -> None:
    """Prints the table; the data are deleted after."""
    print(f"{gigabytes:g} GB each, {threads} thread(s)")
    print(f"{'':12s}{'peak MiB':>10s}{'imports':>9s}{'MB/s':>8s}{'steps/s':>9s}{'seconds':>9s}  MiB at each fifth of the time")
    for name in workloads.split(","):
        place = Path(tempfile.mkdtemp(prefix="tfseq-shards-", dir=folder))
        try:
            for what in ("write", "train"):
                found = in_child(
                    "streaming", name=name, writes=what == "write", folder=str(place), gigabytes=gigabytes, threads=threads
                )
                if "error" in found:
                    print(f"{name} {what} failed: {found['error']}")
                    break
                rates = f"{found['bytes'] / 1e6 / found['seconds']:8.1f}{found['steps'] / found['seconds']:9.1f}"
                curve = " ".join(f"{value:.0f}" for value in found["curve"])
                memory = f"{found['peak']:10.0f}{found['imports']:9.0f}"
                print(f"{name + ' ' + what:12s}{memory}{rates}{found['seconds']:9.1f}  {curve}", flush=True)
        finally:
            shutil.rmtree(place, ignore_errors=True)
