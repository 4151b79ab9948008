"""Warm-up requests of TF Serving, written and answered; as a script, by a process that cannot import tfseq.

The file `assets.extra/tf_serving_warmup_requests` is a TFRecord of `tensorflow.serving.PredictionLog`: the server answers all of
them before a version takes its first request, and refuses the version where one fails. The same requests are how an export is
compared with its model. The few messages needed are written by hand, so that an export does not need `tensorflow-serving-api`:
all their fields are strings and messages, which protocol buffers write as tag, length and bytes
(tensorflow_serving/apis/prediction_log.proto, predict.proto, model.proto).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = Path("assets.extra", "tf_serving_warmup_requests")
MOST_REQUESTS = 1000  # a server refuses more

_PREDICT_LOG = 6  # of PredictionLog
_REQUEST, _RESPONSE = 1, 2  # of PredictLog
_SPEC, _INPUTS = 1, 2  # of PredictRequest
_OUTPUTS = 1  # of PredictResponse
_NAME, _SIGNATURE = 1, 3  # of ModelSpec
_KEY, _VALUE = 1, 2  # of an entry of a map

Tensors = Mapping[str, Any]


def _varint(number: int) -> bytes:
    """A whole number by seven bits a byte, the lowest first."""
    parts = [number & 127]
    while number := number >> 7:
        parts[-1] |= 128
        parts.append(number & 127)
    return bytes(parts)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content  # 2: a length and as many bytes


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message, all of which are strings, bytes or messages."""

    def varint(at: int) -> tuple[int, int]:
        number = shift = 0
        while True:
            byte = message[at]
            number |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return number, at

    at = 0
    while at < len(message):
        tag, at = varint(at)
        size, at = varint(at)
        yield tag >> 3, message[at : at + size]
        at += size


def _tensors(number: int, tensors: Tensors) -> bytes:
    """A field `map<string, TensorProto>`."""
    import tensorflow as tf

    def entry(name: str, value: Any) -> bytes:
        return _field(_KEY, name.encode()) + _field(_VALUE, tf.make_tensor_proto(value).SerializeToString())

    return b"".join(_field(number, entry(name, value)) for name, value in tensors.items())


def _parsed(number: int, message: bytes) -> dict[str, Any]:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    entries = [dict(_fields(content)) for field, content in _fields(message) if field == number]
    return {e[_KEY].decode(): tf.make_ndarray(tensor_pb2.TensorProto.FromString(e[_VALUE])) for e in entries}


def request(model: str, signature: str, inputs: Tensors) -> bytes:
    """A `PredictionLog` of one request, serialised."""
    spec = _field(_NAME, model.encode()) + _field(_SIGNATURE, signature.encode())
    content = _field(_SPEC, spec) + _tensors(_INPUTS, inputs)
    return _field(_PREDICT_LOG, _field(_REQUEST, content))


def parse_request(record: bytes) -> tuple[str, dict[str, Any]]:
    """Signature and inputs of a `PredictionLog`."""
    content = dict(_fields(dict(_fields(record))[_PREDICT_LOG]))[_REQUEST]
    spec = dict(_fields(dict(_fields(content))[_SPEC]))
    return spec[_SIGNATURE].decode(), _parsed(_INPUTS, content)


def response(outputs: Tensors) -> bytes:
    """A `PredictionLog` of one answer, serialised."""
    return _field(_PREDICT_LOG, _field(_RESPONSE, _tensors(_OUTPUTS, outputs)))


def parse_response(record: bytes) -> dict[str, Any]:
    """The outputs of a `PredictionLog`."""
    return _parsed(_OUTPUTS, dict(_fields(dict(_fields(record))[_PREDICT_LOG]))[_RESPONSE])


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """A TFRecord file."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file."""
    import tensorflow as tf

    for record in tf.data.TFRecordDataset(str(path)):
        yield record.numpy()


def answers(folder: Path) -> Iterator[dict[str, Any]]:
    """What a version folder answers to each of its warm-up requests."""
    import tensorflow as tf

    model = tf.saved_model.load(str(folder))
    for record in read_records(folder / FILE):
        signature, inputs = parse_request(record)
        found = model.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        yield {name: value.numpy() for name, value in found.items()}


if __name__ == "__main__":  # FOLDER FILE ...: answers of each version folder, into a file of `response` records
    sys.modules["tfseq"] = None  # type: ignore[assignment]  # whoever imports it fails
    for source, target in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        write_records(Path(target), map(response, answers(Path(source))))
