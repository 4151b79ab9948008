"""One chain of a million steps and 8 states: drift of float32 against float64, time, and memory that grows as T K.

Filter and smoother of `tfseq.ops.chains`, in blocks as a graph and sequentially with XLA, each in a process of its own. Printed:
the difference of the log-likelihoods in nats per 1000 steps, the largest difference of a marginal, seconds of the second call,
and the peak memory beyond that of the imports, for T and for T / 4 steps.
"""

from __future__ import annotations

import os
import resource
import time

import numpy as np

from benchmarks.processes import in_child

STEPS, STATES = 1_000_000, 8


def measure(steps: int, dtype: str, jit_compile: bool, threads: int) -> dict[str, object]:
    """Filter and smoother of one kind in this process; marginals are kept at 1000 places."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from tfseq.ops import chains
    from tfseq.ops.tracing import compiled

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    rng = np.random.default_rng(0)
    initial = tf.constant(np.log(rng.dirichlet(np.ones(STATES))), dtype)
    transition = tf.constant(np.log(rng.dirichlet(np.ones(STATES), STATES)), dtype)
    # in float32 first, so that both have the same numbers
    emission = tf.constant((4.0 * rng.normal(size=(1, steps, STATES)) - 3.0).astype(np.float32), dtype)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(*chain: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with compiled(jit_compile):
            found = chains.posterior(*chain)
        return found.log_prob, found.filtered, found.smoothed

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(initial, transition, emission)
    start = time.perf_counter()
    log_prob, filtered, smoothed = (a.numpy() for a in run(initial, transition, emission))
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    places = slice(None, None, steps // 1000)
    return {
        "log_prob": float(log_prob[0]),
        "marginals": np.concatenate([filtered[0, places], smoothed[0, places]]).tolist(),
        "finite": bool(np.isfinite(filtered).all() and np.isfinite(smoothed).all()),
        "seconds": seconds,
        "memory": memory,
    }


def run(threads: int = 1, **_: object) -> None:
    """Prints the table."""
    print(f"{STEPS:,} steps, K = {STATES}, filter and smoother, {threads} thread(s)")
    print(f"{'':28s}{'nats/1000 steps':>16s}{'marginals':>11s}{'seconds':>9s}{'MiB':>7s}{'MiB at T/4':>12s}")
    for jit_compile in (False, True):
        found = {}
        for dtype in ("float64", "float32"):
            one, quarter = (
                in_child("hmm-long", steps=steps, dtype=dtype, jit_compile=jit_compile, threads=threads)
                for steps in (STEPS, STEPS // 4)
            )
            if "error" in one or "error" in quarter:
                print(f"failed: {one.get('error') or quarter.get('error')}")
                return
            found[dtype] = one
            exact = found["float64"]
            drift = 1000.0 * abs(one["log_prob"] - exact["log_prob"]) / STEPS
            gap = np.abs(np.array(one["marginals"]) - exact["marginals"]).max()
            name = f"{dtype}, {'sequential, XLA' if jit_compile else 'in blocks'}"
            print(f"{name:28s}{drift:16.1e}{gap:11.1e}{one['seconds']:9.2f}{one['memory']:7.0f}{quarter['memory']:12.0f}")
            if not one["finite"]:
                print("  holds values that are not finite")
