"""One training step of the variational RNN of Chung et al. 2015: tfseq and plain PyTorch.

200 real features, z 64, h 256 (LSTM, and GRU), every network two ReLU layers of 256; batch 32 x 40 steps of full length; the ELBO
with one sample and the closed form of its divergence, clipping of the global norm, Adam. The forms of PyTorch are described in
its peer's file: "torch loop" is what is usually written, the others are written for speed.

First one bound is printed, and the norm of its gradient, for the same parameters and noise in all forms: they are one model.
Then: median milliseconds over all rounds with their 10 and 90 % quantiles; the median of the processor's milliseconds, in which
other work on the machine hardly counts; the ratios of both to tfseq; the share of the machine's GEMM peak (the best of five
2048^3 float32 products in TensorFlow) that the products of a step reach, both by the processor's time; and the peak memory.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.processes import errors, in_child, in_turns
from benchmarks.rbm import use_threads

_FEATURES, _LATENT, _UNITS, _HIDDEN = 200, 64, 256, 256
_BATCH, _STEPS = 32, 40
_CLIP, _RATE = 10.0, 3e-4
_SIZES = {"observation_dim": _FEATURES, "latent_dim": _LATENT, "units": _UNITS, "hidden_dim": _HIDDEN}
CONTENDERS = {
    "tfseq": None,
    "torch loop": "loop",
    "torch outside": "outside",
    "torch script": "script",
}
_PEAK, _SAME = "GEMM peak", "same model"  # no contenders, but run like ones


def flops(cell: str) -> float:
    """Floating-point operations of the matrix products of one training step: forward, and twice that backward."""
    extractors = _HIDDEN * (_FEATURES + _LATENT + 2 * _HIDDEN)
    prior = _HIDDEN * (_UNITS + _HIDDEN + 2 * _LATENT)
    guide = _HIDDEN * (_HIDDEN + _UNITS + _HIDDEN + 2 * _LATENT)
    emission = _HIDDEN * (_HIDDEN + _UNITS + _HIDDEN + 2 * _FEATURES)
    recurrent = {"lstm": 4, "gru": 3}[cell] * _UNITS * (2 * _HIDDEN + _UNITS)
    return 3.0 * 2 * _BATCH * _STEPS * (extractors + prior + guide + emission + recurrent)


def example() -> np.ndarray:
    """A batch of noise, float32 [B, T, D]."""
    return np.random.default_rng(0).standard_normal((_BATCH, _STEPS, _FEATURES), np.float32)


def tfseq_model(cell: str) -> tuple[Any, dict[str, Any]]:
    """The model of tfseq, and the batch as it takes it."""
    import keras
    import tensorflow as tf

    from tfseq import VariationalRNN

    keras.utils.set_random_seed(0)
    sizes = {"latent_dim": _LATENT, "rnn_units": _UNITS, "hidden_dim": _HIDDEN, "num_layers": 2}
    model = VariationalRNN(observation_dim=_FEATURES, head="normal", cell=cell, **sizes)
    batch = {"x": example(), "mask": np.ones((_BATCH, _STEPS), bool)}
    return model, {name: tf.constant(value) for name, value in model.as_batch(batch).items()}


def tfseq_step(cell: str) -> Callable[[], float]:
    """One `train_step`, compiled as `fit` compiles it, forced by reading the loss."""
    import tensorflow as tf

    from tfseq.training import make_optimizer

    model, batch = tfseq_model(cell)
    model.compile(make_optimizer("adam", _RATE, clip_norm=_CLIP))  # the optimiser of `tfseq.train`
    step = tf.function(model.train_step, autograph=False)
    return lambda: float(step(batch)["loss"])


def to_torch(model: Any, cell: str) -> dict[str, np.ndarray]:
    """The parameters of a model of tfseq by the names of the peer's, whose kernels are transposed."""
    networks = {
        "phi_x": model.extract_x.layers,
        "posterior.phi_z": model.extract_z.layers,
        "posterior.encoder": model.guide.layers,
        "prior": model.prior_network.layers,
        "decoder": [*model.emission.layers, model.head],
    }
    found = {}
    for name, layers in networks.items():
        for i, layer in enumerate(layers):  # ReLUs are modules of their own there
            found |= {f"{name}.{2 * i}.weight": layer.kernel.numpy().T, f"{name}.{2 * i}.bias": layer.bias.numpy()}
    recurrent = model.recurrent
    biases = [recurrent.bias.numpy(), recurrent.recurrent_bias.numpy() if cell == "gru" else np.zeros(4 * _UNITS, np.float32)]
    weights = [recurrent.kernel.numpy().T, recurrent.recurrent_kernel.numpy().T, *biases]
    for name, weight in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights, strict=True):
        gates = np.split(weight, 3 if cell == "gru" else 4)
        order = (1, 0, 2) if cell == "gru" else (0, 1, 2, 3)  # of a GRU: update and reset the other way round
        found[f"posterior.cell.{name}"] = np.concatenate([gates[i] for i in order])
    return found


def same_model(cell: str) -> dict[str, list[float]]:
    """Minus the bound, nats per step, and the norm of its gradient by all matrices, for the same parameters and noise."""
    import tensorflow as tf
    import torch
    from peers import vrnn_torch

    model, batch = tfseq_model(cell)
    batch = model.complete(batch)
    with tf.GradientTape() as tape:
        terms = model.terms(batch)
        loss = tf.reduce_mean(terms.kl - terms.log_lik)
    matrices = [weight for weight in model.trainable_weights if len(weight.shape) == 2]
    found = {"tfseq": [float(loss), float(tf.linalg.global_norm(tape.gradient(loss, matrices)))]}
    x, noise = (torch.from_numpy(np.array(a)) for a in (example().transpose(1, 0, 2), model._noise(batch["seed"], _STEPS)))
    parameters = {name: torch.from_numpy(np.array(value)) for name, value in to_torch(model, cell).items()}
    for name, form in CONTENDERS.items():
        if form is not None:
            network = vrnn_torch.VariationalRNN(**_SIZES, cell=cell, form=form)
            network.load_state_dict(parameters)
            minus_bound = network(x, noise)
            gradients = torch.autograd.grad(minus_bound, [p for p in network.parameters() if p.ndim == 2])
            norm = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
            found[name] = [minus_bound.item(), norm]
            if not np.allclose(found[name], found["tfseq"], rtol=1e-4):  # float32 through forty steps
                raise ArithmeticError(f"{name} is not the model of tfseq: {found[name]} for {found['tfseq']}")
    return found


def measure(name: str, threads: int, cell: str = "", repeats: int = 0) -> dict[str, object]:
    """Times of one contender in this process, milliseconds, on the clock and of the processor, and its peak memory, MiB."""
    if name == _PEAK:
        return {"peak": gemm_peak(threads)}
    if name == "tfseq" or name == _SAME:
        use_threads(threads)
    if name == _SAME:
        return same_model(cell)
    if (form := CONTENDERS[name]) is None:
        step = tfseq_step(cell)
    else:
        from peers import vrnn_torch

        step = vrnn_torch.make_step(
            example(), _SIZES, cell=cell, num_threads=threads, form=form, learning_rate=_RATE, clip_norm=_CLIP
        )
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter(), time.process_time()
        step()
        times.append([1e3 * (time.perf_counter() - begun[0]), 1e3 * (time.process_time() - begun[1])])
    milliseconds, processor = np.transpose(times).tolist()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": milliseconds, "processor": processor, "memory": memory}


def gemm_peak(threads: int) -> float:
    """GFLOP/s of the best of five 2048^3 float32 products, per processor second of a thread."""
    use_threads(threads)
    import tensorflow as tf

    a = tf.random.normal([2048, 2048])
    times = []
    for _ in range(6):
        begun = time.process_time()
        tf.matmul(a, a).numpy()
        times.append(time.process_time() - begun)
    return 2 * 2048**3 / min(times) / 1e9


def run(threads: int, repeats: int = 15, rounds: int = 2) -> None:
    """Prints the tables."""
    peak = in_child("vrnn", name=_PEAK, threads=threads)["peak"]
    print(f"{platform.machine()}, {threads} thread(s), GEMM peak {peak:.0f} GFLOP/s of a thread, load {os.getloadavg()[0]:.1f}")
    for cell in ("lstm", "gru"):
        print(f"\ntraining step, {cell}, batch {_BATCH}, {_STEPS} steps, {flops(cell) / 1e9:.1f} GFLOP of products")
        same = in_child("vrnn", name=_SAME, threads=threads, cell=cell)
        print("bound and norm of gradient: ", end="")
        print(same.get("error") or ", ".join(f"{name} {-loss:.4f} {norm:.4f}" for name, (loss, norm) in same.items()))
        found = in_turns("vrnn", CONTENDERS, rounds, threads=threads, cell=cell, repeats=repeats)
        print(
            f"{'':18s}{'median ms':>10s}{'10 %':>8s}{'90 %':>8s}{'CPU':>8s}{'x tfseq':>9s}{'CPU x':>7s}{'of peak':>9s}{'MiB':>7s}"
        )
        base = None
        for name, results in found.items():
            if wrong := errors(results):
                print(f"{name:18s}left out: {wrong[0]}")
                continue
            low, median, high = np.quantile(np.concatenate([r["ms"] for r in results]), [0.1, 0.5, 0.9])
            processor = np.median(np.concatenate([r["processor"] for r in results]))
            base = (median, processor) if base is None else base
            share = flops(cell) / (processor / 1e3) / 1e9 / peak
            memory = max(r["memory"] for r in results)
            print(
                f"{name:18s}{median:10.1f}{low:8.1f}{high:8.1f}{processor:8.1f}{median / base[0]:9.2f}"
                f"{processor / base[1]:7.2f}{share:9.0%}{memory:7.0f}"
            )
