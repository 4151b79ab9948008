"""TensorFlow once, quiet, on two virtual CPUs, so that any worker can run a test of replicas."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN compiles a kernel for every shape, and tests have many

import numpy as np
import pytest
import tensorflow as tf

tf.get_logger().setLevel("ERROR")
tf.config.threading.set_intra_op_parallelism_threads(1)  # tests are tiny, and workers share the cores
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process waits for it at the end."""
    items.sort(key=lambda item: "test_workers_make" not in item.nodeid)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def data_folder() -> Path:
    """The folder of downloaded data sets: `TFSEQ_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("TFSEQ_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the data files in {folder} (or TFSEQ_DATA)")
    return folder


@pytest.fixture
def eager() -> Iterator[None]:
    """Graph functions run op by op: the same mathematics, without seconds of tracing."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def strategy() -> tf.distribute.Strategy:
    """Two replicas on virtual CPUs; a second strategy of a process would number its collectives as this one does."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def same_when_resumed(tmp_path: Path) -> Callable[[Callable[..., Any]], Any]:
    """Of `run(epochs, folder, resume=...)`: checks that one epoch and a resumption are two epochs; the uninterrupted run."""

    def check(run: Callable[..., Any]) -> Any:
        whole = run(2, tmp_path / "whole")
        run(1, tmp_path / "parts")
        parts = run(2, tmp_path / "parts", resume=True)
        for a, b in zip(parts.history, whole.history, strict=True):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}
        for a, b in zip(parts.model.get_weights(), whole.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        return whole

    return check
