"""Recurrent taggers and language models: tfseq, plain Keras 3 and PyTorch.

(a) A tagger: batch 32 x 40 tokens, vocabulary 20,000, embedding 100, two layers of bidirectional LSTMs of 2 x 200 units, 17 tags;
softmax or CRF (PyTorch's is pytorch-crf; Keras 3 has none); all sequences of full length, and of 2 to 40 tokens, longest first,
which PyTorch packs. "train" is one step (zeroing, loss, backward, clipping to global norm 5, Adam); "infer" gives the best tags,
for a CRF by Viterbi's algorithm; "infer with probabilities", of tfseq alone, also how probable each is (its marginal).

(b) A language model of characters: vocabulary 65, embedding 128, two layers of 512 units, LSTM or GRU, batch 64 x 100 steps
whose state is carried from batch to batch, softmax at all steps; one training step as in (a).

(c) 1,000 characters at temperature 1 from the LSTM of (b), batch 1.

tfseq trains as in `fit`, by the function that `make_train_function` makes, with the optimiser of `tfseq.train`.
"keras" is what a user of Keras 3 writes today: `Bidirectional(LSTM)`, `Embedding(mask_zero=True)` for mixed lengths,
`stateful=True`, Keras's Adam, without XLA, which slows it down on CPUs; for (c) a compiled step in a loop of Python. The forms of
PyTorch are described in its peer's file. All keep the memory that they free (`tfseq.keep_memory`), which `fit` does by itself;
"torch, returning" is PyTorch as it comes, which returns it to the system and takes it again. Data are random, so nothing is to
be learned but the batch itself: the loss after the same number of steps is printed so that nobody is fast by not training (the
weights begin as each library's own do).

Printed: median milliseconds over all rounds with their 10 and 90 % quantiles; the median of the processor's milliseconds, in
which other work on the machine hardly counts; the first call, which traces; the ratios of both to tfseq; the share of the
machine's GEMM peak (best of five 4096^3 float32 products in TensorFlow, same threads, the best of all rounds) that the input,
recurrent and output products of real steps make up, three times for training; the loss, nats per step; and the peak memory of
the process. A process has as many cores as threads.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.processes import errors, in_turns
from benchmarks.rbm import library_peak, use_threads

_TAGGER: dict[str, Any] = {"vocabulary": 20_000, "num_tags": 17, "embedding_dim": 100, "units": [200, 200]}
_BATCH, _STEPS = 32, 40
_MODEL: dict[str, Any] = {"vocabulary": 65, "embedding_dim": 128, "units": [512, 512]}
_MODEL_BATCH, _MODEL_STEPS = 64, 100
_CHARACTERS = 1000
_CLIP, _RATE = 5.0, 1e-3
_SPECIAL = 4  # ids that a vocabulary may keep for itself; the data has none of them

# workload: (title, variants, contenders, repeats)
Contenders = Mapping[str, tuple[str, dict[str, Any]]]
_TAGGERS: Contenders = {
    "tfseq": ("tfseq", {}),
    "keras": ("keras", {}),
    "torch": ("torch", {"form": "bidirectional"}),
    "torch, returning": ("torch", {"form": "bidirectional"}),
    "torch directions": ("torch", {"form": "directions"}),
}
_MODELS: Contenders = {
    "tfseq": ("tfseq", {}),
    "keras": ("keras", {}),
    "torch": ("torch", {"form": "layers"}),
    "torch, returning": ("torch", {"form": "layers"}),
    "torch oneDNN": ("torch", {"form": "onednn"}),
}
_GENERATORS: Contenders = {
    "tfseq": ("tfseq", {}),
    "keras step": ("keras", {}),
    "torch nn.LSTM": ("torch", {"form": "lstm"}),
    "torch LSTMCell": ("torch", {"form": "cell"}),
    "torch by hand": ("torch", {"form": "manual"}),
}
WORKLOADS: dict[str, tuple[str, tuple[str, ...], Contenders, int]] = {
    "a": ("tagger", ("softmax", "crf"), _TAGGERS, 15),
    "b": ("language model", ("lstm", "gru"), _MODELS, 5),
    "c": (f"{_CHARACTERS:,} characters", ("lstm",), _GENERATORS, 3),
}
_PEAKS = {"GEMM TensorFlow": "tfseq", "GEMM PyTorch": "torch", "GEMM NumPy": "numpy"}  # no contenders, but run like ones

Task = Callable[[], Any]


def example(mixed: bool) -> dict[str, np.ndarray]:
    """A batch of random tokens and tags, "x" and "y" int32 [B, T], zeros where "mask" is False; the longest first."""
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(2, _STEPS + 1, _BATCH))[::-1] if mixed else np.full(_BATCH, _STEPS)
    mask = np.arange(_STEPS) < lengths[:, None]
    x = rng.integers(_SPECIAL, _TAGGER["vocabulary"], mask.shape)
    y = rng.integers(0, _TAGGER["num_tags"], mask.shape)
    return {"x": np.where(mask, x, 0).astype(np.int32), "y": np.where(mask, y, 0).astype(np.int32), "mask": mask}


def characters() -> np.ndarray:
    """Random characters, int32 [B, T + 1]."""
    return np.random.default_rng(0).integers(_SPECIAL, _MODEL["vocabulary"], (_MODEL_BATCH, _MODEL_STEPS + 1)).astype(np.int32)


def flops(workload: str, variant: str, task: str) -> float | None:
    """Floating-point operations of the products of one task; None for what has no such count."""
    if workload == "c":
        return None
    gates = {"lstm": 4, "gru": 3}.get(variant, 4)
    sizes, directions = (_TAGGER, 2) if workload == "a" else (_MODEL, 1)
    units = sizes["units"]
    inputs = [sizes["embedding_dim"], *(directions * n for n in units[:-1])]
    per_step = sum(directions * gates * n * (d + n) for d, n in zip(inputs, units, strict=True))
    per_step += directions * units[-1] * (_TAGGER["num_tags"] if workload == "a" else sizes["vocabulary"])
    steps = example("mixed" in task)["mask"].sum() if workload == "a" else _MODEL_BATCH * _MODEL_STEPS
    return 2.0 * steps * per_step * (3 if "train" in task else 1)


def _trained(model: Any, data: Any) -> tuple[Task, Task]:
    """One step of a compiled Keras model, forced by reading the loss; and one that returns the loss of its batch alone."""
    import tensorflow as tf

    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    iterator = iter(tf.data.Dataset.from_tensors(data).repeat())

    def step() -> float:
        return float(model.train_function(iterator)["loss"])

    def last() -> float:
        model.reset_metrics()  # else the mean of all steps
        return step()

    return step, last


def _inferred(model: Any, method: Callable, batch: Any) -> Task:
    """One call of a model's method on a batch, as a graph."""
    import tensorflow as tf

    infer = tf.function(lambda batch: method(model.complete(batch)), autograph=False)
    return lambda: _forced(infer(batch))


def _forced(result: Any) -> Any:
    import tensorflow as tf

    return [np.asarray(a) for a in tf.nest.flatten(result)]


def tfseq_tasks(workload: str, variant: str) -> dict[str, Task]:
    """The tasks of tfseq."""
    import tensorflow as tf

    from tfseq.training import make_optimizer

    if workload == "a":
        from tfseq import SequenceTagger

        tasks = {}
        for name, mixed in (("full", False), ("mixed", True)):
            model = SequenceTagger(
                vocabulary=[f"w{n}" for n in range(_TAGGER["vocabulary"])],
                tags=[f"T{n}" for n in range(_TAGGER["num_tags"])],
                embedding_dim=_TAGGER["embedding_dim"],
                units=_TAGGER["units"],
                cell="lstm",
                bidirectional=True,
                characters=None,
                head=variant,
                dropout=0.0,
                token_dropout=0.0,
            )
            model.compile(make_optimizer("adam", _RATE, 0.0, _CLIP))
            tensors = {key: tf.constant(value) for key, value in model.as_batch(example(mixed)).items()}
            tasks[f"train {name}"], tasks[f"loss {name}"] = _trained(model, tensors)
            for task, method in (("infer", model._best_tags), ("infer with probabilities", model._predict_tags)):
                tasks[f"{task} {name}"] = _inferred(model, method, tensors)
        return tasks

    from tfseq import LanguageModel

    printable = [chr(n) for n in range(0x21, 0x7F) if not chr(n).isupper()]
    model = LanguageModel(
        vocabulary=printable[: _MODEL["vocabulary"]],
        unit="characters",
        embedding_dim=_MODEL["embedding_dim"],
        units=_MODEL["units"],
        cell=variant,
        dropout=0.0,
    )
    if workload == "c":

        def generate() -> str:
            return model.generate([""], max_tokens=_CHARACTERS, temperature=1.0, seed=[0, 0]).numpy()[0].decode()

        return {"generate": generate}
    model.compile(make_optimizer("adam", _RATE, 0.0, _CLIP))
    x = characters()[:, 1:]  # a tfseq model predicts x itself, the first from the token before, which it carries
    batch = {"x": x, "mask": np.ones(x.shape, bool), "fresh": np.zeros(x.shape, bool)}
    step, last = _trained(model, {key: tf.constant(value) for key, value in model.as_batch(batch).items()})
    return {"train": step, "loss": last}


def keras_tasks(workload: str, variant: str) -> dict[str, Task]:
    """The same in layers of Keras."""
    import keras
    import tensorflow as tf
    from keras import layers

    options = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "jit_compile": False}

    def compiled(model: Any) -> Any:
        model.compile(keras.optimizers.Adam(_RATE, global_clipnorm=_CLIP), **options)
        return model

    if workload == "a":
        if variant == "crf":
            raise NotImplementedError("Keras 3 has no CRF")
        tasks = {}
        for name, mixed in (("full", False), ("mixed", True)):
            stack = [layers.Embedding(_TAGGER["vocabulary"], _TAGGER["embedding_dim"], mask_zero=mixed)]
            stack += [layers.Bidirectional(layers.LSTM(n, return_sequences=True)) for n in _TAGGER["units"]]
            inputs = keras.Input([None], dtype="int32")
            model = compiled(keras.Sequential([inputs, *stack, layers.Dense(_TAGGER["num_tags"])]))
            batch = {key: tf.constant(value) for key, value in example(mixed).items()}
            tasks[f"train {name}"], tasks[f"loss {name}"] = _trained(model, (batch["x"], batch["y"]))
            infer = tf.function(lambda x, model=model: tf.argmax(model(x, training=False), -1))
            tasks[f"infer {name}"] = lambda infer=infer, x=batch["x"]: _forced(infer(x))
        return tasks

    layer = {"lstm": layers.LSTM, "gru": layers.GRU}[variant]
    sizes = (1, 1) if workload == "c" else (_MODEL_BATCH, _MODEL_STEPS)
    stack = [layers.Embedding(_MODEL["vocabulary"], _MODEL["embedding_dim"])]
    stack += [layer(n, return_sequences=True, stateful=True) for n in _MODEL["units"]]
    model = keras.Sequential([keras.Input(batch_shape=sizes, dtype="int32"), *stack, layers.Dense(_MODEL["vocabulary"])])
    if workload == "b":
        tokens = tf.constant(characters())
        step, last = _trained(compiled(model), (tokens[:, :-1], tokens[:, 1:]))
        return {"train": step, "loss": last}

    @tf.function
    def draw(token: tf.Tensor) -> tf.Tensor:
        return tf.random.categorical(model(token, training=False)[:, 0], 1, dtype=tf.int32)

    def generate() -> np.ndarray:
        for recurrent in model.layers:
            if hasattr(recurrent, "reset_states"):
                recurrent.reset_states()
        token, tokens = tf.zeros([1, 1], tf.int32), []
        for _ in range(_CHARACTERS):
            token = draw(token)
            tokens.append(token)
        return tf.concat(tokens, 1)[0].numpy()

    return {"generate": generate}


def torch_tasks(workload: str, variant: str, threads: int, **options: Any) -> dict[str, Task]:
    """The same in PyTorch."""
    from peers import recurrent_torch as peer

    if workload == "c":
        return peer.make_generator(num_tokens=_CHARACTERS, **_MODEL, num_threads=threads, **options)
    if workload == "b":
        shared = {"cell": variant, "clip_norm": _CLIP, "num_threads": threads, **options}
        tasks = peer.make_language_model(characters(), **_MODEL, **shared)
        return {**tasks, "loss": tasks["train"]}
    tasks = {}
    for name, mixed in (("full", False), ("mixed", True)):
        shared = {"head": variant, "clip_norm": _CLIP, "num_threads": threads, **options}
        made = peer.make_tagger(example(mixed), **_TAGGER, **shared)
        tasks |= {f"train {name}": made["train"], f"loss {name}": made["train"], f"infer {name}": made["infer"]}
    return tasks


def measure(name: str, threads: int, workload: str = "", variant: str = "", repeats: int = 0) -> dict[str, object]:
    """Of each task of one contender in this process, milliseconds, those of the processor, and those of the first call."""
    if name in _PEAKS:
        return {"peak": library_peak(_PEAKS[name], threads)}
    library, options = WORKLOADS[workload][2][name]
    if library == "torch":
        tasks = torch_tasks(workload, variant, threads, **options)
    else:
        use_threads(threads)
        import keras

        keras.utils.set_random_seed(0)
        tasks = (tfseq_tasks if library == "tfseq" else keras_tasks)(workload, variant)
    found: dict[str, Any] = {}
    for task, function in tasks.items():
        if task.startswith("loss"):
            continue
        times, warm_up = [], 1 if task == "generate" else 2
        for _ in range(warm_up + repeats):
            begun = time.perf_counter(), time.process_time()
            result = function()
            times.append([1e3 * (time.perf_counter() - begun[0]), 1e3 * (time.process_time() - begun[1])])
        milliseconds = np.asarray(times)
        found[task] = {"first": milliseconds[0, 0]}
        if task == "generate":  # a model may end its text before
            found[task]["length"] = len(result)
            milliseconds *= _CHARACTERS / max(1, len(result))
        found[task]["ms"], found[task]["processor"] = milliseconds[warm_up:].T.tolist()
        if loss := tasks.get(task.replace("train", "loss") if "train" in task else ""):
            found[task]["loss"] = loss()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tasks": found, "memory": memory}


def run(threads: int, repeats: int | None = None, rounds: int = 2, workloads: str = "".join(WORKLOADS)) -> None:
    """Prints the tables."""
    if unknown := set(workloads) - set(WORKLOADS):
        raise ValueError(f"`workloads` must be some of {''.join(WORKLOADS)}; received also {''.join(sorted(unknown))}.")
    print(f"{platform.machine()}, {threads} thread(s), load {os.getloadavg()[0]:.1f}")
    found = in_turns("recurrent", _PEAKS, rounds, threads, threads=threads)
    peaks = {name: max((r["peak"] for r in found[name] if "peak" in r), default=float("nan")) for name in _PEAKS}
    print("GEMM peak, GFLOP/s: " + ", ".join(f"{name.removeprefix('GEMM ')} {peak:.0f}" for name, peak in peaks.items()))
    for workload in workloads:
        title, variants, contenders, usual = WORKLOADS[workload]
        for variant in variants:
            arguments = {"workload": workload, "variant": variant, "threads": threads, "repeats": repeats or usual}
            # a setting of the allocator, of its usual value, and `keep_memory` leaves it alone
            variables = {name: {"MALLOC_ARENA_TEST": "8"} for name in contenders if name.endswith("returning")}
            found = in_turns("recurrent", contenders, rounds, threads, variables, **arguments)
            print(f"\n({workload}) {title}, {variant}", flush=True)
            for name, results in found.items():
                if wrong := errors(results):
                    print(f"  {name} left out: {wrong[0]}")
            found = {name: results for name, results in found.items() if not errors(results)}
            for task in dict.fromkeys(task for results in found.values() for task in results[0]["tasks"]):
                able = {name: results for name, results in found.items() if task in results[0]["tasks"]}
                _print_task(task, flops(workload, variant, task), able, peaks["GEMM TensorFlow"])


def _print_task(task: str, operations: float | None, found: dict[str, list[dict]], peak: float) -> None:
    """The table of one task."""
    products = "" if operations is None else f", {operations / 1e9:.1f} GFLOP of products"
    print(f"{task}{products}")
    columns = f"{'median ms':>11s}{'10 %':>8s}{'90 %':>8s}{'CPU':>8s}{'first':>8s}"
    print(f"{'':18s}{columns}{'x tfseq':>9s}{'CPU x':>7s}{'of peak':>9s}{'loss':>8s}{'MiB':>7s}")
    base = None
    for name, results in found.items():
        rows = [r["tasks"][task] for r in results]
        low, median, high = np.quantile(np.concatenate([row["ms"] for row in rows]), [0.1, 0.5, 0.9])
        processor = np.median(np.concatenate([row["processor"] for row in rows]))
        first = np.median([row["first"] for row in rows])
        base = (median, processor) if name == "tfseq" else base
        ratios = ("-", "-") if base is None else (f"{median / base[0]:.2f}", f"{processor / base[1]:.2f}")
        share = "-" if operations is None else f"{operations / (median / 1e3) / 1e9 / peak:.0%}"
        loss = f"{rows[-1]['loss']:.4f}" if "loss" in rows[-1] else "-"
        memory = max(r["memory"] for r in results)
        print(
            f"{name:18s}{median:11.1f}{low:8.1f}{high:8.1f}{processor:8.1f}{first:8.0f}"
            f"{ratios[0]:>9s}{ratios[1]:>7s}{share:>9s}{loss:>8s}{memory:7.0f}"
        )
        if (length := rows[-1].get("length", _CHARACTERS)) < _CHARACTERS:
            factor = _CHARACTERS / max(1, length)
            print(f"  {name} ended its text after {length} characters; its times are those times {factor:.1f}")
