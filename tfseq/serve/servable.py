"""One version folder: loaded, warmed up, and called. The only place where TensorFlow reads a SavedModel.

A graph runs in a session, as in TF Serving: the tensors that the signature names are fed and fetched, and a call that takes too
long is cancelled, which a `tf.function` cannot be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from grpc import StatusCode
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from tfseq.serve.convert import from_protos
from tfseq.serve.errors import ServingError, not_found, of_tensorflow
from tfseq.serve.signatures import Arrays, Signature

_MOST_WARMUP = 1000  # records, as in TF Serving
_MOST_BYTES = 1 << 30  # of a warm-up tensor


@dataclass(frozen=True)
class BatchingParameters:
    """What `batching_params.pbtxt` of a version folder sets, as with TF Serving's `--enable_per_model_batching_parameters`."""

    max_batch_size: int | None = None
    batch_timeout_micros: int | None = None
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    @classmethod
    def read(cls, path: Path) -> BatchingParameters:
        """From a text proto, which TF Serving's Python package does not bring; its other fields are not used here."""
        if not path.is_file():
            return cls()
        text = re.sub(r"#.*", "", path.read_text())
        numbers = {name: int(value) for name, value in re.findall(r"(\w+)\s*:?\s*\{\s*value\s*:\s*(\d+)\s*\}", text)}
        allowed = re.findall(r"allowed_batch_sizes\s*:\s*(\d+)", text)
        listed = re.findall(r"allowed_batch_sizes\s*:\s*\[([\d,\s]*)\]", text)
        sizes = sorted({int(n) for n in [*allowed, *re.findall(r"\d+", " ".join(listed))]})
        pads = re.search(r"pad_variable_length_inputs\s*:\s*(\w+)", text)
        padded = pads is not None and pads[1] in ("true", "True", "t", "1")
        return cls(numbers.get("max_batch_size"), numbers.get("batch_timeout_micros"), tuple(sizes), padded)


class Servable:
    """A loaded version folder.

    Args:
        folder: `<base>/<version>`, with `saved_model.pb`.

    Raises:
        ServingError: what is wrong with the folder.
    """

    def __init__(self, folder: Path):
        self.definitions = _signature_definitions(folder)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(folder))
            self.batching = BatchingParameters.read(folder / "batching_params.pbtxt")
        except tf.errors.OpError as error:
            raise of_tensorflow(error) from error
        except OSError as error:
            raise not_found(str(error)) from error
        self.alone: set[str] = set()  # signatures of which a run has shown that their requests cannot share one
        found = self.definitions.signature_def
        self.signatures = {name: Signature.of(name, found[name]) for name in found if name != "__saved_model_init_op"}

    def signature(self, name: str = "") -> Signature:
        """A signature by its name, `serving_default` where that is empty."""
        name = name or "serving_default"
        if name not in self.signatures:
            known = ", ".join(sorted(self.signatures))
            message = f'Serving signature name: "{name[:100]}" not found in signature def. It has {known}.'
            raise ServingError(StatusCode.FAILED_PRECONDITION, message)
        return self.signatures[name]

    def __call__(self, signature: Signature, inputs: Mapping[str, np.ndarray], seconds: float = 0.0) -> Arrays:
        """The outputs of a signature, in the order of their names.

        Args:
            signature: which one.
            inputs: arrays that fit it.
            seconds: after which the graph is stopped; 0 for never.

        Raises:
            ServingError: what the graph says; DEADLINE_EXCEEDED where it was stopped.
        """
        feeds = {signature.inputs[name].tensor: value for name, value in inputs.items()}
        fetches = {name: info.tensor for name, info in signature.outputs.items()}
        options = tf.compat.v1.RunOptions(timeout_in_ms=math.ceil(1e3 * seconds))
        try:
            outputs = self._session.run(fetches, feeds, options)
        except tf.errors.OpError as error:
            raise of_tensorflow(error) from error
        return {name: _array(outputs[name], info.dtype) for name, info in signature.outputs.items()}

    def warm_up(self, folder: Path) -> int:
        """Replays `assets.extra/tf_serving_warmup_requests` of the folder, a TFRecord of `PredictionLog`; how many there were."""
        path = folder / "assets.extra" / "tf_serving_warmup_requests"
        if not path.is_file():
            return 0
        count = 0
        try:
            for count, record in enumerate(tf.data.TFRecordDataset(str(path)), 1):
                if count > _MOST_WARMUP:
                    raise ServingError(StatusCode.INVALID_ARGUMENT, f"More than {_MOST_WARMUP} warm-up records.")
                log = PredictionLog.FromString(record.numpy())
                if log.WhichOneof("log_type") != "predict_log":
                    raise ServingError(StatusCode.UNIMPLEMENTED, f"Warm-up record {count} is no predict_log.")
                request = log.predict_log.request
                signature = self.signature(request.model_spec.signature_name)
                inputs = from_protos(request.inputs, signature, _MOST_BYTES)
                signature.check(inputs)
                self(signature, inputs)
        except tf.errors.OpError as error:
            raise of_tensorflow(error) from error
        except DecodeError as error:
            raise ServingError(StatusCode.DATA_LOSS, f"Warm-up record {count} is no PredictionLog: {error}") from error
        return count


def _array(value: Any, dtype: tf.DType) -> np.ndarray:
    """What a session gives, where a scalar string is bytes."""
    return np.asarray(value, object if dtype == tf.string else None)


def _signature_definitions(folder: Path) -> SignatureDefMap:
    """The signatures in `saved_model.pb`, of the graph tagged "serve"."""
    path = folder / "saved_model.pb"
    try:
        graphs = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except FileNotFoundError as error:
        raise not_found(f"Could not find SavedModel .pb at supplied export directory path: {folder}") from error
    except OSError as error:
        raise ServingError(StatusCode.UNAVAILABLE, f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ServingError(StatusCode.DATA_LOSS, f"Can't parse {path} as binary proto; is it still being copied?") from error
    found: Any = next((graph for graph in graphs if "serve" in graph.meta_info_def.tags), None)
    if found is None:
        raise not_found(f"Could not find meta graph def matching supplied tags: {{ serve }} in {path}")
    return SignatureDefMap(signature_def=found.signature_def)
