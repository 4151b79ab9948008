"""Models of the sizes that their users train, and a batch for each; shared by the benchmarks that go over all families."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Workload(NamedTuple):
    """A model and what it trains on.

    Attributes:
        model: its key in `MODELS`.
        hyperparameters: of its constructor.
        rows, steps: B and T; lengths are between half of T and T.
        values: `"symbols"`, `"binary"` or `"reals"`.
        method: of `compile`.
        num_batches: training steps of an epoch, which then takes about a second.
    """

    model: str
    hyperparameters: dict[str, Any]
    rows: int
    steps: int
    values: str
    method: str
    num_batches: int


_WORDS = {"vocabulary": [f"w{i}" for i in range(2000)]}
WORKLOADS = {
    "tagger": Workload(
        "tagger",
        {**_WORDS, "tags": [f"t{i}" for i in range(17)], "head": "crf", "units": [200], "characters": None},
        32,
        40,
        "symbols",
        "gradient",
        10,
    ),
    "language model": Workload(
        "lm", {"vocabulary": [chr(97 + i) for i in range(60)], "units": [512, 512]}, 64, 100, "symbols", "gradient", 3
    ),
    "deep Markov model": Workload("dmm", {"observation_dim": 88}, 20, 60, "binary", "gradient", 5),
    "variational RNN": Workload("vrnn", {"observation_dim": 88}, 20, 60, "binary", "gradient", 5),
    "hidden Markov model": Workload(
        "hmm", {"num_states": 16, "emission": "normal", "observation_dim": 8}, 64, 500, "reals", "gradient", 10
    ),
    "the same by EM": Workload("hmm", {"num_states": 16, "emission": "normal", "observation_dim": 8}, 64, 500, "reals", "em", 10),
    "Boltzmann machine": Workload("rbm", {"num_visible": 784, "num_hidden": 500}, 128, 1, "binary", "gradient", 100),
}


def batch_of(workload: Workload, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """A batch of noise with the entries of `spec`, the `batch_spec()` of the model."""
    rng, rows, steps = np.random.default_rng(0), workload.rows, workload.steps
    lengths = rng.integers(steps // 2, steps + 1, rows).clip(1)
    draw = {
        "symbols": lambda shape: rng.integers(0, 17, shape),
        "binary": lambda shape: rng.random(shape) < 0.2,
        "reals": lambda shape: rng.normal(size=shape),
    }
    x = draw[workload.values]([rows, steps, *spec["x"].shape[2:]])
    batch = {"x": x.astype(spec["x"].dtype.as_numpy_dtype), "mask": np.arange(steps) < lengths[:, None]}
    if workload.values == "symbols" and "y" in spec:
        batch["y"] = batch["x"].astype(np.int32)
    if "fresh" in spec:
        batch["fresh"] = np.zeros([rows, steps], bool)
    return batch | {"row": np.arange(rows, dtype=np.int32)}
