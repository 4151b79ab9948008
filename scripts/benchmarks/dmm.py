"""One training step of the deep Markov model of Krishnan et al. 2017 in Pyro's sizes: tfseq, plain PyTorch and Pyro.

z 100, transition 200, emission 100, encoder 600; batch 20, 88 binary features, 60 and 129 steps. Printed: median milliseconds
over all rounds with their 10 and 90 % quantiles, the ratio to tfseq, the share of the machine's GEMM peak (the best of five
4096^3 float32 products, same threads) and the peak memory.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable

import numpy as np

from benchmarks.processes import errors, in_child, in_turns

_FEATURES, _LATENT, _TRANSITION, _EMISSION, _ENCODER = 88, 100, 200, 100, 600
_BATCH = 20
CONTENDERS = {
    "tfseq": ("tfseq", {}),
    "torch eager": ("torch", {"variant": "eager"}),
    "torch script": ("torch", {"variant": "script"}),
    "pyro loop": ("pyro", {"variant": "loop"}),
    "pyro vectorized": ("pyro", {"variant": "vectorized"}),
}
_PEAK = "GEMM peak"  # no contender, but measured like one


def flops(num_steps: int) -> float:
    """Floating-point operations of the matrix products of one training step: forward, and twice that backward."""
    encoder = _ENCODER * (_FEATURES + _ENCODER)
    combiner = _LATENT * _ENCODER + 2 * _ENCODER * _LATENT
    transition = 2 * 2 * _LATENT * _TRANSITION + 2 * _LATENT**2
    emission = _LATENT * _EMISSION + _EMISSION**2 + _EMISSION * _FEATURES
    return 3 * 2 * _BATCH * num_steps * (encoder + combiner + transition + emission)


def example(num_steps: int) -> dict[str, np.ndarray]:
    """A batch of random rolls with the density of the chorales."""
    x = (np.random.default_rng(0).random((_BATCH, num_steps, _FEATURES)) < 0.045).astype(np.float32)
    return {"x": x, "mask": np.ones((_BATCH, num_steps), bool)}


def tfseq_step(batch: dict[str, np.ndarray], num_threads: int) -> Callable[[], float]:
    """One `train_step`, compiled as `fit` compiles it, forced by reading the loss."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    from tfseq import DeepMarkovModel
    from tfseq.training import make_optimizer

    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    keras.utils.set_random_seed(0)
    sizes = {"latent_dim": _LATENT, "transition_dim": _TRANSITION, "emission_dim": _EMISSION, "rnn_units": _ENCODER}
    model = DeepMarkovModel(observation_dim=_FEATURES, **sizes)
    model.compile(make_optimizer("adam", 3e-4, clip_norm=10.0))  # the optimiser of `tfseq.train`
    tensors = {name: tf.constant(value) for name, value in model.as_batch(batch).items()}
    step = tf.function(model.train_step, autograph=False)
    return lambda: float(step(tensors)["loss"])


def measure(name: str, threads: int, num_steps: int = 0, repeats: int = 0) -> dict[str, object]:
    """Times of one contender in this process, milliseconds, and its peak memory, MiB."""
    if name == _PEAK:
        return {"peak": gemm_peak(threads)}
    library, options = CONTENDERS[name]
    batch = example(num_steps)
    if library == "tfseq":
        step = tfseq_step(batch, threads)
    elif library == "torch":
        from peers import dmm_torch

        step = dmm_torch.make_step(batch, num_threads=threads, **options)
    else:
        from peers import dmm_pyro

        step = dmm_pyro.make_step(batch, num_threads=threads, **options)
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms": times, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def gemm_peak(threads: int) -> float:
    """GFLOP/s of the best of five 4096^3 float32 products."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    a = tf.random.normal([4096, 4096])

    def once() -> float:
        start = time.perf_counter()
        tf.matmul(a, a).numpy()
        return time.perf_counter() - start

    once()
    return 2 * 4096**3 / min(once() for _ in range(5)) / 1e9


def run(threads: int, repeats: int = 15, rounds: int = 2) -> None:
    """Prints the tables."""
    peak = in_child("dmm", name=_PEAK, threads=threads)["peak"]
    print(f"{platform.machine()}, {threads} thread(s), GEMM peak {peak:.0f} GFLOP/s, load {os.getloadavg()[0]:.1f}")
    for num_steps in (60, 129):
        found = in_turns("dmm", CONTENDERS, rounds, threads=threads, num_steps=num_steps, repeats=repeats)
        print(f"\ntraining step, batch {_BATCH}, {num_steps} steps, {flops(num_steps) / 1e9:.1f} GFLOP of products")
        print(f"{'':18s}{'median ms':>10s}{'10 %':>8s}{'90 %':>8s}{'x tfseq':>9s}{'of peak':>9s}{'MiB':>7s}")
        base = None
        for name, results in found.items():
            if wrong := errors(results):
                print(f"{name:18s}left out: {wrong[0]}")
                continue
            low, median, high = np.quantile(np.concatenate([r["ms"] for r in results]), [0.1, 0.5, 0.9])
            base = median if base is None else base
            share = flops(num_steps) / (median / 1e3) / 1e9 / peak
            memory = max(r["memory"] for r in results)
            print(f"{name:18s}{median:10.1f}{low:8.1f}{high:8.1f}{median / base:9.2f}{share:9.0%}{memory:7.0f}")
