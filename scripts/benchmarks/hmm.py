"""Hidden Markov models, four tasks on four workloads: tfseq, hmmlearn, dynamax and pomegranate, same parameters, same data.

- score: the log-likelihood of all sequences;
- smoother: p(z_t | x) of every step and state;
- Viterbi: the best paths and their scores;
- EM: one iteration, E and M step, always from the given parameters.

Emission log-probabilities are part of every task; parameters and data are in memory, in the type each library is fastest with.
All must return the numbers of `reference`, plain NumPy in float64, to 1e-4 of their size; who does not is said to disagree.
Printed: median milliseconds over all rounds (of `repeats` calls each; of three or more, where those take over five seconds), the
ratio to tfseq, and the time of the first call, which compiles what is compiled. A process has as many cores as threads.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import numpy as np

from benchmarks.processes import errors, in_child, in_turns

Tasks = dict[str, Callable[[], float]]


class Workload(NamedTuple):
    """Sizes; `num_symbols` 0 means Gaussian vectors of `dim`."""

    sequences: int
    steps: int
    states: int
    dim: int = 8
    num_symbols: int = 0

    def __str__(self) -> str:
        kind = f"{self.num_symbols} symbols" if self.num_symbols else f"{self.dim}-dim diagonal Gaussian"
        return f"{self.sequences} x {self.steps:,} steps, K = {self.states}, {kind}"


WORKLOADS = {
    "a": Workload(64, 500, 16),
    "b": Workload(64, 500, 32, num_symbols=50),
    "c": Workload(1, 100_000, 8),
    "d": Workload(1, 100_000, 8, num_symbols=50),
}
TASKS = ("score", "smoother", "Viterbi", "EM")
CONTENDERS = {
    "tfseq": ("tfseq", {"variant": "model"}),
    "tfseq functions": ("tfseq", {"variant": "functions"}),
    "hmmlearn log": ("hmmlearn", {"implementation": "log"}),
    "hmmlearn scaling": ("hmmlearn", {"implementation": "scaling"}),
    "dynamax model": ("dynamax", {"variant": "model"}),
    "dynamax functions": ("dynamax", {"variant": "functions"}),
    "pomegranate": ("pomegranate", {}),
}
_PACKAGES = ("tensorflow", "hmmlearn", "dynamax", "jax", "pomegranate", "torch", "numpy")
_TOLERANCE = 1e-4
_SECONDS = 5.0  # of one task in one round
_REFERENCE = "reference"  # no contender, but run like one


def example(workload: str) -> dict[str, np.ndarray]:
    """Parameters, and data drawn from them.

    States last five steps on average; means are about four standard deviations apart.

    Returns:
        "initial" [K] and "transition" [K, K] (from, to), float64; with Gaussians "means" and "variances" [K, D], and "x" float32
        [B, T, D]; with symbols "probs" [K, V], and "x" int32 [B, T].
    """
    size = WORKLOADS[workload]
    rng = np.random.default_rng(0)
    k = size.states
    data = {
        "initial": rng.dirichlet(np.full(k, 5.0)),
        "transition": np.stack([rng.dirichlet(2.0 + 8.0 * k * row) for row in np.eye(k)]),
    }
    cumulative = np.cumsum(data["transition"], -1)
    uniform = rng.random((size.steps, size.sequences, 1))
    states = np.empty((size.steps, size.sequences), np.int64)
    states[0] = (np.cumsum(data["initial"])[:-1] < uniform[0]).sum(-1)
    for t in range(1, size.steps):
        states[t] = (cumulative[states[t - 1], :-1] < uniform[t]).sum(-1)
    states = states.T
    if size.num_symbols:
        data["probs"] = rng.dirichlet(np.full(size.num_symbols, 0.5), k) * 0.95 + 0.05 / size.num_symbols
        data["x"] = (np.cumsum(data["probs"], -1)[states, :-1] < rng.random((*states.shape, 1))).sum(-1).astype(np.int32)
    else:
        data["means"] = rng.normal(size=(k, size.dim))
        data["variances"] = rng.uniform(0.5, 1.5, (k, size.dim))
        noise = rng.normal(size=(*states.shape, size.dim))
        data["x"] = (data["means"][states] + np.sqrt(data["variances"])[states] * noise).astype(np.float32)
    return data


def check_em(log_prob: float, transition: np.ndarray, x: np.ndarray) -> float:
    """What an EM task returns: the log-likelihood before the update, in nats per step, minus the trace of the new transition.

    Both count alike in the check so. Rows are normalised first, since pomegranate's also hold a probability to end.
    """
    transition = np.asarray(transition, np.float64)
    return float(log_prob) / (x.shape[0] * x.shape[1]) - float(np.trace(transition / transition.sum(-1, keepdims=True)))


def reference(data: dict[str, np.ndarray]) -> dict[str, float]:
    """What the tasks must return, in float64: scaled forward and backward recursions (Rabiner 1989), one step at a time."""
    x, transition = data["x"], data["transition"]
    if "probs" in data:
        log_emission = np.log(data["probs"]).T[x]  # [B, T, K]
    else:
        deviation = (x[:, :, None].astype(np.float64) - data["means"]) ** 2 / data["variances"]
        log_emission = -0.5 * (deviation + np.log(2 * np.pi * data["variances"])).sum(-1)
    log_emission = log_emission.transpose(1, 0, 2)
    top = log_emission.max(-1, keepdims=True)
    emission = np.exp(log_emission - top)
    forward, backward = np.empty_like(emission), np.ones_like(emission)
    norm = np.empty_like(top)
    predicted, best = data["initial"], np.log(data["initial"])
    log_transition = np.log(transition)
    for t in range(len(emission)):
        joint = predicted * emission[t]
        norm[t] = joint.sum(-1, keepdims=True)
        forward[t] = joint / norm[t]
        predicted = forward[t] @ transition
        score = best + log_emission[t]
        best = (score[:, :, None] + log_transition).max(1)
    for t in range(len(emission) - 1, 0, -1):
        backward[t - 1] = (emission[t] * backward[t] / norm[t]) @ transition.T
    log_prob = (np.log(norm) + top).sum()
    counts = transition * np.einsum("tbi,tbj->ij", forward[:-1], (emission * backward / norm)[1:])
    return {
        "score": float(log_prob),
        "smoother": float((forward * backward)[..., 0].sum()),
        "Viterbi": float(score.max(-1).sum()),
        "EM": check_em(log_prob, counts, x),
    }


def tfseq_tasks(data: dict[str, np.ndarray], threads: int, variant: str) -> Tasks:
    """The tasks in tfseq, compiled with XLA: of the model, as users call it, or of `tfseq.ops.chains` alone.

    Of the functions the log-probabilities of the emission come from one float32 product, as a user of them would write it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return (_tfseq_model if variant == "model" else _tfseq_functions)(data)


def _tfseq_model(data: dict[str, np.ndarray]) -> Tasks:
    import tensorflow as tf

    from tfseq import HiddenMarkovModel
    from tfseq.ops.tracing import compiled

    num_states = len(data["initial"])
    is_symbol = "probs" in data
    sizes = {"num_states": num_states, "observation_dim": data["probs" if is_symbol else "means"].shape[1]}
    model = HiddenMarkovModel(**sizes, emission="categorical" if is_symbol else "normal", covariance="diag")
    model.initial.assign(data["initial"][None])
    model.transition.assign(data["transition"])
    if is_symbol:
        model.emission.table.assign(data["probs"])
    else:
        model.emission.assign(data["means"], np.stack([np.diag(v) for v in data["variances"]]))
    model.compile(method="em", jit_compile=True)
    batch = model.given(data["x"])
    given = [(w, w.numpy()) for w in model.trainable_weights]

    @tf.function(jit_compile=True, autograph=False)
    def iteration(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        with compiled():
            log_prob, statistics = model._expectation(batch, model._all, None)
        model._all.maximise(statistics)
        return tf.reduce_sum(log_prob), tf.exp(model.transition.log_probs())

    def em() -> float:
        for weight, value in given:
            weight.assign(value)
        log_prob, transition = iteration(batch)
        return check_em(float(log_prob), transition.numpy(), data["x"])

    def score() -> float:
        return float(np.sum(model._log_prob(batch)))

    def smoother() -> float:
        return float(tf.reduce_sum(model._smooth(batch)[..., 0]))

    def viterbi() -> float:
        return float(np.sum(model._viterbi(batch).score))

    return {"score": score, "smoother": smoother, "Viterbi": viterbi, "EM": em}


def _tfseq_functions(data: dict[str, np.ndarray]) -> Tasks:
    import tensorflow as tf

    from tfseq.ops import chains
    from tfseq.ops.tracing import compiled

    x = tf.constant(data["x"])
    log_initial = tf.constant(np.log(data["initial"]), tf.float32)
    log_transition = tf.constant(np.log(data["transition"]), tf.float32)
    if "probs" in data:
        weights = tf.constant(np.log(data["probs"]).T, tf.float32)  # [V, K]
    else:
        precision = 1.0 / data["variances"]
        constant = -0.5 * (data["means"] ** 2 * precision + np.log(2 * np.pi / precision)).sum(-1, keepdims=True)
        weights = tf.constant(np.concatenate([-0.5 * precision, data["means"] * precision, constant], -1).T, tf.float32)

    def log_emission(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """log p(x_t | z_t) `[B, T, K]`."""
        if x.dtype.is_integer:
            return tf.gather(weights, x)
        return tf.matmul(tf.concat([tf.square(x), x, tf.ones_like(x[..., :1])], -1), weights)

    def task(function: Callable[..., tuple[tf.Tensor, ...]]) -> Callable[[], float]:
        """`function` of the log-probabilities, compiled; what it returns first is read."""

        @tf.function(jit_compile=True, autograph=False)
        def run(x: tf.Tensor, log_initial: tf.Tensor, log_transition: tf.Tensor, weights: tf.Tensor) -> tuple:
            with compiled():
                return function(log_initial, log_transition, log_emission(x, weights))

        return lambda: float(run(x, log_initial, log_transition, weights)[0])

    def score(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (tf.reduce_sum(chains.log_prob(*arguments)),)

    def smoother(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        smoothed = chains.smooth(*arguments)
        return tf.reduce_sum(smoothed[..., 0]), smoothed

    def viterbi(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        states, scores = chains.viterbi(*arguments)
        return tf.reduce_sum(scores), states

    return {"score": task(score), "smoother": task(smoother), "Viterbi": task(viterbi)}


def make_tasks(name: str, data: dict[str, np.ndarray], threads: int) -> Tasks:
    """The tasks of a contender."""
    library, options = CONTENDERS[name]
    if library == "tfseq":
        return tfseq_tasks(data, threads, **options)
    if library == "hmmlearn":
        from peers import hmm_hmmlearn as peer
    elif library == "dynamax":
        from peers import hmm_dynamax as peer
    else:
        from peers import hmm_pomegranate as peer
    return peer.make_tasks(data, num_threads=threads, **options)


def measure(name: str, workload: str, threads: int = 1, repeats: int = 10) -> dict[str, object]:
    """What each task of a contender returns, the milliseconds of its first call and those of the others, in this process."""
    data = example(workload)
    if name == _REFERENCE:
        return reference(data)
    found = {}
    for task, function in make_tasks(name, data, threads).items():
        times, value = [], 0.0
        while len(times) <= repeats and (len(times) < 4 or sum(times[1:]) < 1e3 * _SECONDS):
            start = time.perf_counter()
            result = function()
            times.append(1e3 * (time.perf_counter() - start))
            value = value if len(times) > 1 else result
        found[task] = {"value": value, "first": times[0], "ms": times[1:]}
    return found


def run(threads: int, repeats: int = 10, rounds: int = 2, workloads: str = "".join(WORKLOADS)) -> None:
    """Prints the tables."""
    print(f"{platform.machine()}, {threads} thread(s), load {os.getloadavg()[0]:.1f}")
    print(", ".join(f"{package} {_version(package)}" for package in _PACKAGES))
    for workload in workloads:
        expected = in_child("hmm", name=_REFERENCE, workload=workload)
        found = in_turns("hmm", CONTENDERS, rounds, threads, workload=workload, threads=threads, repeats=repeats)
        print(f"\n({workload}) {WORKLOADS[workload]}")
        print(f"{'median ms, x tfseq':20s}" + "".join(f"{task:>18s}" for task in TASKS))
        notes, base = [], {}
        for name, results in found.items():
            if wrong := errors(results):
                print(f"{name:20s}left out: {wrong[0]}")
                continue
            median, first = {}, {}
            for task in results[0]:
                median[task] = float(np.median(np.concatenate([r[task]["ms"] for r in results])))
                first[task] = float(np.median([r[task]["first"] for r in results]))
                value = results[0][task]["value"]
                error = abs(value - expected[task]) / abs(expected[task])
                if not error <= _TOLERANCE:
                    notes.append(f"{name} disagrees, {task}: {value:.6g}, not {expected[task]:.6g} ({error:.1e})")
            base = base if base or name != "tfseq" else median
            ratios = {task: f"{median[task] / base[task]:9.2f}" if task in base else f"{'-':>9s}" for task in median}
            print(f"{name:20s}" + "".join(f"{median[t]:9.1f}{ratios[t]}" if t in median else f"{'-':>18s}" for t in TASKS))
            print(f"{'  first call':20s}" + "".join(f"{first[t]:9.0f}{'':9s}" if t in first else f"{'-':>18s}" for t in TASKS))
        print("\n".join(notes) if notes else f"all agree to {_TOLERANCE:g}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
