"""Trains tiny models, one of each family, alone or as one of several workers, and writes what came out: for test_workers.py.

Run as `fit_on_workers.py FOLDER NAME...`; with `TF_CONFIG`, as one worker of those it lists.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
from tfseq.models.replicas import is_chief, strategy_of_cluster

STRATEGY = strategy_of_cluster()  # before anything runs

import keras  # noqa: E402
import numpy as np  # noqa: E402

from tfseq.data.batching import Sequences, stream, windows  # noqa: E402
from tfseq.models import MODELS  # noqa: E402
from tfseq.models.base import SequenceModel  # noqa: E402
from tfseq.training import train  # noqa: E402

# a model of each family, the shapes in which it trains, and the method
CASES = {
    "dmm": ({"missing": True}, "gradient"),
    "hmm": ({}, "em"),
    "rbm": ({}, "gradient"),
    "tagger": ({}, "gradient"),
    "lm": ({}, "gradient"),
    "seq2seq": ({}, "gradient"),
    "vrnn": ({}, "gradient"),
}


def data_of(model: SequenceModel) -> Sequences:
    """Five sequences of different lengths, one of them empty; batches of three leave workers with unequal parts, and without."""
    rng, spec = np.random.default_rng(0), model.batch_spec()
    lengths = [5, 2, 0, 4, 3]

    def draw(n: int, spec: tf.TensorSpec) -> np.ndarray:
        return rng.integers(0, 2, [n, *spec.shape[2:]]).astype(spec.dtype.as_numpy_dtype)

    fields = {"x": [draw(n, spec["x"]) for n in lengths]}
    if "y" in spec:
        fields["y"] = [draw(n, spec["y"]) for n in lengths]
    if "observed" in spec:
        fields["observed"] = [rng.random([n, *spec["x"].shape[2:]]) < 0.7 for n in lengths]
    if "target" in spec:
        fields["target"] = [draw(n, spec["target"]) for n in lengths[::-1]]
    return Sequences(**fields, name="toy")


def fit(names: list[str]) -> dict[str, np.ndarray]:
    """Trains; every loss and metric of every epoch, and all weights."""
    found = {}
    for name in names:
        options, method = CASES[name]
        keras.utils.set_random_seed(0)
        with STRATEGY.scope():
            model = MODELS[name].tiny(**options)
            # SGD: Adam would hide a gradient of another scale; clipped, so that the norm must be that of all workers
            model.compile(keras.optimizers.SGD(0.05, global_clipnorm=0.5), method=method)
        data = data_of(model)
        batches = windows(data, 3, 2) if getattr(model, "window", None) else stream(data, 3)
        validation = batches if name == "hmm" else None  # one model shows it, tracing takes seconds in every worker
        history = model.fit(batches, validation_data=validation, epochs=2, verbose=0).history
        found |= {f"{name} {key}": np.array(values) for key, values in history.items()}
        found |= {f"{name} {i} {w.name}": w.numpy() for i, w in enumerate(model.weights)}
    return found


def overflow(folder: Path) -> dict[str, np.ndarray]:
    """Trains on two rows, the last worker's with a loss that is not finite; how that ends, and what it does to weights."""
    with STRATEGY.scope():
        model = MODELS["dmm"].tiny(head="normal")
    fine, large = (np.full([3, *model.batch_spec()["x"].shape[2:]], value, np.float32) for value in (1.0, 1e30))
    before = [w.numpy() for w in model.trainable_weights]
    try:
        train(model, Sequences([fine, large]), out=folder / "overflow", batch_size=2, epochs=1, optimizer="sgd", progress=False)
    except ValueError as error:
        changed = any((a != b).any() for a, b in zip(before, (w.numpy() for w in model.trainable_weights), strict=True))
        return {"overflow error": np.array(str(error)), "overflow changed": np.array(changed)}
    return {}


if __name__ == "__main__":
    names = sys.argv[2:] or [*CASES]
    found = fit([name for name in names if name in CASES])
    if "overflow" in names:
        found |= overflow(Path(sys.argv[1]))
        # of every worker, so that each is seen to have stopped by itself
        print("stopped" if found.get("overflow changed", True) == np.array(False) else "did not stop", flush=True)
    if is_chief(STRATEGY):
        np.savez(Path(sys.argv[1]) / "found.npz", **found)
