"""Epochs of a restricted Boltzmann machine of MNIST's size, 784 visible and 500 hidden units: tfseq, PyTorch and scikit-learn.

60,000 binary pictures, batches of 100, CD-1 or PCD-1 with 100 chains, plain gradient steps, float32 unless said. The pictures are
draws from ten prototypes with MNIST's mean, or MNIST's own, cut at 0.5 (`--data-dir`). tfseq trains as its users do, by `fit` on
`stream`, 100 steps an execution; it checks each batch, and reports the difference of free energies, which the others do not.
Without more said it is as alike as can be: not centred, pixels taken as they are (`binarise="none"`).

- "XLA": with `compile(jit_compile=True)`, which leaves the checks out; "centred": the default; "defaults": PCD-1, centred, and
  pixels drawn anew at each presentation (of binary ones nothing changes, but the drawing is done).
- "torch oneDNN", "scikit-learn AVX-512": by themselves these two multiply with MKL and OpenBLAS, which may know less of the
  machine than oneDNN in TensorFlow does (the GEMM peak of each is printed); here they have the fastest kernels that were found
  for them, by an undocumented function and by the environment. See the peers' files.

Printed: median seconds of an epoch over all rounds, the first left out, with the fastest and the slowest; the median of the
processor's seconds, in which other work on the machine hardly counts; the first epoch, which compiles; the ratio to "tfseq CD-1";
the share of the GEMM peak (best of five 4096^3 float32 products in TensorFlow, same threads, the best of all rounds) that the
five products of a step make up, 10 x batch x V x H operations; the peak memory; and the mean squared error of 1,000 pictures
reconstructed after the last epoch, so that nobody is fast by not learning (scikit-learn starts anew each epoch, "defaults" from
the data's mean).

Then the time of annealed importance sampling, 14,500 temperatures and 100 chains, two products a temperature; and the peak memory
of training on streams of generated batches, a short and a long one. A process has as many cores as threads.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dmm import gemm_peak
from benchmarks.processes import errors, in_child, in_turns

_VISIBLE, _HIDDEN, _BATCH, _RATE = 784, 500, 100, 0.05
_IMAGES = 60_000
_MEAN = 0.1307  # of MNIST's pixels
_PER_EXECUTION = 100
_TEMPERATURES, _CHAINS = 14_500, 100
_STREAMS = 60, 1200  # batches

_ALIKE = {"centred": False, "binarise": "none"}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tfseq CD-1": ("tfseq", {"sampler": "cd", **_ALIKE}),
    "tfseq PCD-1": ("tfseq", {"sampler": "pcd", **_ALIKE}),
    "tfseq CD-1 XLA": ("tfseq", {"sampler": "cd", "jit_compile": True, **_ALIKE}),
    "tfseq PCD-1 XLA": ("tfseq", {"sampler": "pcd", "jit_compile": True, **_ALIKE}),
    "tfseq CD-1 centred": ("tfseq", {"sampler": "cd", "binarise": "none"}),
    "tfseq PCD-1 centred": ("tfseq", {"sampler": "pcd", "binarise": "none"}),
    "tfseq defaults": ("tfseq", {}),
    "torch CD-1": ("torch", {"sampler": "cd"}),
    "torch PCD-1": ("torch", {"sampler": "pcd"}),
    "torch oneDNN CD-1": ("torch", {"sampler": "cd", "variant": "onednn"}),
    "torch oneDNN PCD-1": ("torch", {"sampler": "pcd", "variant": "onednn"}),
    "scikit-learn float32": ("sklearn", {"dtype": "float32"}),
    "scikit-learn AVX-512": ("sklearn", {"dtype": "float32"}),
    "scikit-learn float64": ("sklearn", {"dtype": "float64"}),
}
_PEAKS = {"GEMM TensorFlow": "tfseq", "GEMM PyTorch": "torch", "GEMM NumPy": "sklearn", "GEMM NumPy AVX-512": "sklearn"}
_AVX512 = {"OPENBLAS_CORETYPE": "SkylakeX"}
_VARIABLES = {"scikit-learn AVX-512": _AVX512, "GEMM NumPy AVX-512": _AVX512}
_AIS, _MEMORY = "annealing", "memory"  # no contenders, but run like ones


def example(images: int, data_dir: str | None) -> np.ndarray:
    """Binary pictures, float32 [N, V]."""
    if data_dir is not None:
        from tfseq.data.images import load_mnist

        parts = [load_mnist(split, data_dir=Path(data_dir)).x for split in ("train", "valid")]
        return (np.concatenate(parts)[:images, 0] > 0.5).astype(np.float32)
    rng = np.random.default_rng(0)
    prototypes = rng.beta(0.2, 0.2 / _MEAN - 0.2, (10, _VISIBLE)).astype(np.float32)
    prototypes *= _MEAN / prototypes.mean()
    return (rng.random((images, _VISIBLE), np.float32) < prototypes[rng.integers(10, size=images)]).astype(np.float32)


def use_threads(threads: int) -> None:
    """TensorFlow's threads, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def now() -> tuple[float, float]:
    """Seconds on the clock, and of all threads of this process."""
    return time.perf_counter(), time.process_time()


def tfseq_epochs(x: np.ndarray, repeats: int, jit_compile: bool = False, **options: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Seconds and processor seconds of the first epoch and of `repeats` more in one `fit`; the parameters after them."""
    import keras

    from tfseq import RBM
    from tfseq.data.batching import Sequences, num_batches, stream

    class Clock(keras.callbacks.Callback):
        """When epochs end, and when the first begins."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[tuple[float, float]] = []

        def on_train_begin(self, logs: dict | None = None) -> None:
            self.times.append(now())

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            self.times.append(now())

    keras.utils.set_random_seed(0)
    data, clock = Sequences(x[:, None]), Clock()
    if options:  # biases begin at 0, as the peers' do
        model = RBM(num_visible=_VISIBLE, num_hidden=_HIDDEN, num_chains=_BATCH, **options)
    else:
        model = RBM.from_data(data, num_hidden=_HIDDEN)
    steps = num_batches(data, _BATCH)
    model.compile(keras.optimizers.SGD(_RATE), steps_per_execution=min(_PER_EXECUTION, steps), jit_compile=jit_compile)
    fit = {"steps_per_epoch": steps, "epochs": 1 + repeats, "verbose": 0, "callbacks": [clock]}
    model.fit(stream(data, _BATCH, seed=0), **fit)
    return np.diff(clock.times, axis=0), [np.asarray(w) for w in (*model.weight_matrices, *model.bias_vectors)]


def peer_epochs(x: np.ndarray, library: str, threads: int, repeats: int, **options: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same of a peer."""
    if library == "torch":
        from peers import rbm_torch as peer
    else:
        from peers import rbm_sklearn as peer
    sizes = {"num_hidden": _HIDDEN, "batch_size": _BATCH, "rate": _RATE}
    epoch, parameters = peer.make_epoch(x, num_threads=threads, **sizes, **options)
    times = [now()]
    for _ in range(1 + repeats):
        epoch()
        times.append(now())
    return np.diff(times, axis=0), parameters()


def reconstruction_error(x: np.ndarray, weights: np.ndarray, visible: np.ndarray, hidden: np.ndarray) -> float:
    """Mean squared error of pictures made anew of the hidden units' means."""

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.tanh(0.5 * a)

    return float(np.mean((sigmoid(sigmoid(x @ weights + hidden) @ weights.T + visible) - x) ** 2))


def library_peak(library: str, threads: int) -> float:
    """GFLOP/s of the best of five 4096^3 float32 products."""
    if library == "tfseq":
        return gemm_peak(threads)
    a: Any = np.random.default_rng(0).standard_normal((4096, 4096), np.float32)
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        a = torch.from_numpy(a)

    def once() -> float:
        start = time.perf_counter()
        a @ a
        return time.perf_counter() - start

    once()
    return 2 * 4096**3 / min(once() for _ in range(5)) / 1e9


def annealing() -> dict[str, float]:
    """Seconds of log Z of a machine with random weights, by annealing."""
    import keras

    from tfseq import RBM

    keras.utils.set_random_seed(0)
    data_mean = np.full(_VISIBLE, _MEAN).tolist()
    model = RBM(num_visible=_VISIBLE, num_hidden=_HIDDEN, data_mean=data_mean, initial_stddev=0.05)
    for num in (100, 200, _TEMPERATURES):  # traced for one length, then for any
        start = time.perf_counter()
        found = model.log_partition("ais", num_chains=_CHAINS, num_temperatures=num, reverse=False)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "log_z": found.value, "ess": found.ess}


def streamed(batches: int) -> None:
    """One epoch on a stream whose batches are made when they are asked for."""
    import keras
    import tensorflow as tf

    from tfseq import RBM

    def batch(i: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": tf.cast(tf.random.stateless_uniform([_BATCH, 1, _VISIBLE], tf.stack([i, i])) < _MEAN, tf.float32)}

    model = RBM(num_visible=_VISIBLE, num_hidden=_HIDDEN)
    model.compile(keras.optimizers.SGD(_RATE), steps_per_execution=min(_PER_EXECUTION, batches))
    model.fit(tf.data.Dataset.range(batches).map(batch).prefetch(2), verbose=0)


def measure(
    name: str,
    threads: int,
    images: int = _IMAGES,
    repeats: int = 3,
    data_dir: str | None = None,
    batches: int = 0,
) -> dict[str, object]:
    """What one contender found in this process."""
    if name in _PEAKS:
        return {"peak": library_peak(_PEAKS[name], threads)}
    if name not in CONTENDERS or CONTENDERS[name][0] == "tfseq":
        use_threads(threads)
    if name == _AIS:
        return annealing()
    if name == _MEMORY:
        streamed(batches)
        return {"memory": _peak_memory()}
    library, options = CONTENDERS[name]
    x = example(images, data_dir)
    if library == "tfseq":
        times, parameters = tfseq_epochs(x, repeats, **options)
    else:
        times, parameters = peer_epochs(x, library, threads, repeats, **options)
    memory = _peak_memory()
    error = reconstruction_error(x[:1000], *parameters)
    seconds, processor = times.T.tolist()
    return {
        "first": seconds[0],
        "seconds": seconds[1:],
        "processor": processor[1:],
        "memory": memory,
        "reconstruction": error,
    }


def _peak_memory() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(threads: int, repeats: int = 3, rounds: int = 2, images: int = _IMAGES, data_dir: str | None = None) -> None:
    """Prints a JSON line for each contender, and the tables."""
    data = f"{images:,} pictures of {'MNIST, cut at 0.5' if data_dir else 'generated pixels'}"
    print(f"{platform.machine()}, {threads} thread(s), load {os.getloadavg()[0]:.1f}; {data}")
    arguments = {"threads": threads, "images": images, "repeats": repeats, "data_dir": data_dir}
    found = in_turns("rbm", [*_PEAKS, *CONTENDERS, _AIS], rounds, threads, _VARIABLES, **arguments)
    memory = {n: in_child("rbm", threads, name=_MEMORY, threads=threads, batches=n) for n in _STREAMS}
    for name, results in [*found.items(), *((f"{_MEMORY} {n}", [result]) for n, result in memory.items())]:
        print(json.dumps({"name": name, "threads": threads, "rounds": results}))

    peaks = {name: max((r["peak"] for r in found[name] if "peak" in r), default=float("nan")) for name in _PEAKS}
    print("\nGEMM peak, GFLOP/s: " + ", ".join(f"{name.removeprefix('GEMM ')} {peak:.0f}" for name, peak in peaks.items()))
    peak = peaks["GEMM TensorFlow"]
    updates = -(-images // _BATCH)
    gflop = 10 * updates * _BATCH * _VISIBLE * _HIDDEN / 1e9
    print(f"\nan epoch, {updates} updates, {gflop:.0f} GFLOP of products")
    columns = (
        f"{'seconds':>8s}{'min':>7s}{'max':>7s}{'CPU':>7s}{'first':>7s}{'x tfseq':>9s}{'of peak':>9s}{'MiB':>7s}{'error':>8s}"
    )
    print(f"{'':22s}{columns}")
    base = None
    for name in CONTENDERS:
        results = found[name]
        if wrong := errors(results):
            print(f"{name:22s}left out: {wrong[0]}")
            continue
        seconds = np.concatenate([r["seconds"] for r in results])
        processor = np.median(np.concatenate([r["processor"] for r in results]))
        median, first = np.median(seconds), np.median([r["first"] for r in results])
        base = median if base is None else base
        memory_used = max(r["memory"] for r in results)
        print(
            f"{name:22s}{median:8.2f}{seconds.min():7.2f}{seconds.max():7.2f}{processor:7.2f}{first:7.2f}{median / base:9.2f}"
            f"{gflop / median / peak:9.0%}{memory_used:7.0f}{results[-1]['reconstruction']:8.4f}"
        )
    if wrong := errors(found[_AIS]):
        print(f"\nannealing failed: {wrong[0]}")
    else:
        seconds = np.median([r["seconds"] for r in found[_AIS]])
        share = 4 * _TEMPERATURES * _CHAINS * _VISIBLE * _HIDDEN / seconds / 1e9 / peak
        print(f"\nannealing, {_TEMPERATURES:,} temperatures x {_CHAINS} chains: {seconds:.1f} s, {share:.0%} of the peak")
    print("\ntraining on a stream of generated batches, peak memory of the process")
    for n, result in memory.items():
        size = n * _BATCH * _VISIBLE * 4 / 2**20
        print(f"  {n * _BATCH:8,} pictures ({size:.0f} MiB): {result.get('error') or format(result['memory'], '.0f') + ' MiB'}")
