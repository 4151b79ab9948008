"""SavedModels made by hand for tests of serving, a server in a thread, and a plain HTTP client.

    python tests/serve/served.py FOLDER

writes the models of the contract tests, for a TF Serving whose address is then in TFSEQ_SERVING_URL (see test_contract.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tensorflow as tf

CONFIG = """
model_config_list {
  config {
    name: "contract"
    base_path: "/models/contract"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: "canary" value: 2 }
  }
}
"""


def write_endpoints(path: Path, model: Any, endpoints: Mapping[str, Any], signatures: Iterable[str]) -> None:
    """A version folder of some of a tfseq model's endpoints, without the checks of an export."""
    import keras

    archive = keras.export.ExportArchive()
    archive.track(model)
    for name in signatures:
        function, specs = endpoints[name]
        archive.add_endpoint(name, _positional(function, [spec.name for spec in specs]), input_signature=specs)
    archive.write_out(str(path), verbose=False)


def _positional(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    return lambda *values: function(**dict(zip(names, values, strict=True)))


class Contract(tf.Module):
    """y = x / 2 + offset, and an echo of every type that JSON has."""

    def __init__(self, offset: float):
        super().__init__()
        self.offset = tf.Variable(offset)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def half_plus(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2 + self.offset}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")])
    def pair(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scaled": a * tf.cast(b, tf.float32)[:, None], "twice": 2 * b}

    @tf.function(input_signature=[tf.TensorSpec([None], t, t.name) for t in (tf.bool, tf.float64, tf.int64, tf.uint8)])
    def types(self, bool: tf.Tensor, float64: tf.Tensor, int64: tf.Tensor, uint8: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"bool": bool, "float64": float64, "int64": int64, "uint8": uint8}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "s")])
    def strings(self, s: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"s_bytes": s, "size": tf.strings.length(s)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "s")])
    def text(self, s: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text": s}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def positive(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_positive(x, "only positive numbers")]):
            return {"root": tf.sqrt(x)}


class Local(tf.Module):
    """What only tests of the development server need."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def words(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Words of each text, padded to the longest of the batch."""
        words = tf.strings.split(text)
        return {"words": words.to_tensor(""), "length": tf.cast(words.row_lengths(), tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def long_words(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Words of more than one letter, fewer than `length`."""
        words = tf.strings.split(text)
        long = tf.ragged.boolean_mask(words, tf.strings.length(words) > 1)
        return {"long": long.to_tensor(""), "length": tf.cast(words.row_lengths(), tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "num_steps")])
    def count(self, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """0, 1, ... up to the largest `num_steps` of the batch."""
        return {"steps": tf.tile(tf.range(tf.reduce_max(num_steps))[None], [tf.size(num_steps), 1])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def mean(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """No row by itself."""
        return {"mean": tf.reduce_mean(x, keepdims=True)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.float32, "x"),
            tf.TensorSpec([None, None], tf.float32, "weight"),
            tf.TensorSpec([None], tf.int32, "lengths"),
        ]
    )
    def total(self, x: tf.Tensor, weight: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """The weighted sum of each row, and its last number, which may be padding."""
        keep = tf.sequence_mask(lengths, tf.shape(x)[1], tf.float32)
        return {"total": tf.reduce_sum(keep * weight * x, 1), "last": x[:, -1]}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int32, "seed")])
    def draw(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """A number of each seed."""
        return {"u": tf.map_fn(lambda s: tf.random.stateless_uniform([], s), seed, fn_output_signature=tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "v"), tf.TensorSpec([None], tf.int32, "num_sweeps")])
    def sweep(self, v: tf.Tensor, num_sweeps: tf.Tensor) -> dict[str, tf.Tensor]:
        """v + 1, as often as each row says, and the most of the batch, which the others wait for."""
        most = tf.reduce_max(num_sweeps)
        return {"v": v + tf.cast(num_sweeps, tf.float32), "most": tf.fill(tf.shape(v), most)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "num_steps")])
    def slow(self, num_steps: tf.Tensor) -> dict[str, tf.Tensor]:
        """A loop of ten microseconds or so a step."""
        total = tf.while_loop(lambda i, _: i < tf.reduce_max(num_steps), lambda i, a: (i + 1, tf.sin(a)), [0, 1.0])[1]
        return {"total": tf.fill(tf.shape(num_steps), total)}


def write(folder: Path, module: tf.Module, default: str) -> Path:
    """A SavedModel with a signature for each function of a module; `default` is also the default one."""
    functions = {name: getattr(module, name) for name, f in vars(type(module)).items() if hasattr(f, "get_concrete_function")}
    tf.saved_model.save(module, str(folder), {"serving_default": functions.pop(default), **functions})
    return folder


def write_contract(folder: Path) -> Path:
    """The models of the contract tests, and `models.config`."""
    for version, offset in ((1, 2.0), (2, 3.0)):
        write(folder / "contract" / str(version), Contract(offset), "half_plus")
    (folder / "models.config").write_text(CONFIG)
    return folder


@contextlib.contextmanager
def running(folder: Path, *, port: int = 0, poll_seconds: float = 0.05, limits: Any = None, **options: Any) -> Iterator[Any]:
    """A development server on free ports, in a thread; stopped, gracefully, when the block ends."""
    from tfseq.serve.app import DevelopmentServer
    from tfseq.serve.service import Service

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = DevelopmentServer(Service(folder, limits, **options), port=port, grpc_port=0, poll_seconds=poll_seconds)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
        server.url = f"http://127.0.0.1:{server.port}"
        server.target = f"127.0.0.1:{server.grpc_port}"
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def call(url: str, path: str, body: Any = None, method: str = "") -> tuple[int, Any]:
    """(status, answer) of one HTTP request; JSON is read, a body that is no bytes is sent as JSON."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, data)
        response = connection.getresponse()
        answer = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(answer) if is_json else answer
    finally:
        connection.close()


if __name__ == "__main__":
    print(write_contract(Path(sys.argv[1])))
