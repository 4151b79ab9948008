"""JSON and protos to arrays and back, by the rules of TF Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf
from grpc import StatusCode

from tfseq.serve.errors import ServingError, invalid
from tfseq.serve.signatures import Arrays, Signature, TensorInfo

_WORDS = {dict: "Object", list: "Array", str: "String", bool: "Bool", type(None): "Null", int: "Number", float: "Number"}


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; NaN, Infinity and -Infinity are numbers."""
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid UTF-8 at offset: {error.start}") from None
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid value. {error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Lists and objects are nested too deeply.") from None
    except ValueError:  # a whole number of thousands of digits
        raise invalid("JSON Parse error: Number too big to be stored.") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """`signature_name` of a request; the empty string where it has none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be a string value.")
    return name


def from_json(document: Mapping[str, Any], signature: Signature) -> tuple[Arrays, bool]:
    """The inputs of a request, and whether it is in row form (`instances`) rather than in columns (`inputs`)."""
    if not signature.inputs:
        raise invalid(f"Failed to get input map for signature: {signature.name}")
    if "instances" in document and "inputs" in document:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        return _from_rows(document["instances"], signature), True
    if "inputs" in document:
        return _from_columns(document["inputs"], signature), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_rows(rows: Any, signature: Signature) -> Arrays:
    if not isinstance(rows, list):
        raise invalid("Expecting 'instances' to be a list/array")
    if not rows:
        raise invalid("No values in 'instances' array")
    named = _is_object(rows[0])
    if not named and len(signature.inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required: "
            f"{','.join(signature.inputs)}"
        )
    for i, row in enumerate(rows):
        if _is_object(row) != named:
            kinds = ("object", "value/list") if named else ("value/list", "object")
            raise invalid(f"Expecting {kinds[0]} but got {kinds[1]} at item {i} of input list")
        if named and row.keys() != signature.inputs.keys():
            raise invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {_shown(row)} keys must be equal to: "
                f"{','.join(signature.inputs)}"
            )
    if not named:
        (info,) = signature.inputs.values()
        return {info.name: _dense(rows, info)}
    return {name: _dense([row[name] for row in rows], info) for name, info in signature.inputs.items()}


def _from_columns(columns: Any, signature: Signature) -> Arrays:
    if not _is_object(columns):
        if len(signature.inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required: "
                f"{','.join(signature.inputs)}"
            )
        (info,) = signature.inputs.values()
        return {info.name: _dense(columns, info)}
    for name in signature.inputs:
        if name not in columns:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _dense(columns[name], info) for name, info in signature.inputs.items()}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _dense(value: Any, info: TensorInfo) -> np.ndarray:
    """An array of nested lists, level by level, so that depth costs no stack."""
    shape: list[int] = []
    items = [value]
    while items and isinstance(items[0], list):
        size = len(items[0])
        for item in items:
            if not isinstance(item, list):
                raise invalid(f"Input {info.name!r}: JSON Value: {_shown(item)} found where a list is expected.")
            if len(item) != size:
                raise invalid(
                    f"Input {info.name!r}: Encountered list at unexpected size: {len(item)} at level: {len(shape)} "
                    f"expected size: {size}. Pad rows of different lengths."
                )
        shape.append(size)
        items = list(chain.from_iterable(items))
        if len(shape) > (len(info.shape) if info.shape is not None else 8):
            raise invalid(f"Input {info.name!r}: Encountered list at unexpected level: {len(shape) - 1}")
    return _leaves(items, info).reshape(shape)


def _leaves(values: list[Any], info: TensorInfo) -> np.ndarray:
    """A flat array of JSON values, which must be of the type of the tensor: nothing is rounded, cut or guessed."""
    dtype = info.dtype
    if dtype == tf.string:
        return _strings(values, info)
    if dtype.is_floating:
        allowed: tuple[type, ...] = (int, float)
    elif dtype.is_integer:
        allowed = (int,)
    elif dtype.is_bool:
        allowed = (bool,)
    else:
        raise ServingError(StatusCode.UNIMPLEMENTED, f"Input {info.name!r}: conversion of JSON to type: {dtype.name}")
    if not set(map(type, values)) <= set(allowed):
        raise _wrong_type(next(v for v in values if type(v) not in allowed), info)
    if dtype.is_floating:
        return _floats(values, info)
    if dtype.is_integer and values and not (dtype.min <= min(values) and max(values) <= dtype.max):
        raise _wrong_type(next(v for v in values if not dtype.min <= v <= dtype.max), info)
    return np.array(values, dtype.as_numpy_dtype)


def _floats(values: list[Any], info: TensorInfo) -> np.ndarray:
    try:
        wide = np.array(values, np.float64)
    except OverflowError:
        wide = np.array([np.inf])
        exact = False
    else:
        digits = 53 if info.dtype == tf.float64 else 24  # a larger whole number would be another one
        exact = all(abs(v) < 1 << digits for v in values if type(v) is int) if int in set(map(type, values)) else True
        exact = exact and not (np.abs(wide[np.isfinite(wide)]) > info.dtype.max).any()
    if not exact:
        raise invalid(f"Input {info.name!r}: Cannot convert JSON value to {info.dtype.name} without loss of precision.")
    return wide.astype(info.dtype.as_numpy_dtype)


def _strings(values: list[Any], info: TensorInfo) -> np.ndarray:
    out = np.empty(len(values), object)
    for i, value in enumerate(values):
        if isinstance(value, str):
            try:
                out[i] = value.encode()
            except UnicodeEncodeError:
                raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
        elif _is_base64(value):
            try:
                out[i] = base64.b64decode(value["b64"].rstrip("=") + "=" * (-len(value["b64"].rstrip("=")) % 4), validate=True)
            except (binascii.Error, ValueError):
                raise invalid(f"Input {info.name!r}: Unable to base64 decode") from None
        elif isinstance(value, dict):
            raise invalid(f"Input {info.name!r}: JSON Value: {_shown(value)} not formatted correctly for base64 data")
        else:
            raise _wrong_type(value, info)
    return out


def _wrong_type(value: Any, info: TensorInfo) -> ServingError:
    return invalid(
        f"Input {info.name!r}: JSON Value: {_shown(value)} Type: {_WORDS[type(value)]} is not of expected type: {info.dtype.name}"
    )


def _shown(value: Any) -> str:
    """The beginning of a value, found without walking through all of it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key[:40]!r}: ..." for key in list(value)[:10]) + "}"
    if isinstance(value, list):
        return f"[... {len(value)} values]"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of many digits"
    return json.dumps(value)[:100] if not isinstance(value, str) else repr(value[:100])


def to_json(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """`{"predictions": [...]}` in row form, else `{"outputs": ...}`; the name of a single output is left out."""
    values = {name: _values(name, array) for name, array in outputs.items()}
    if not rows:
        answer: Any = {"outputs": next(iter(values.values())) if len(values) == 1 else values}
    else:
        sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
        if None in sizes.values() or len(set(sizes.values())) > 1:
            raise invalid(f"Outputs have inconsistent batch sizes, so that there are no rows: {sizes}. Use 'inputs' for columns.")
        if len(values) == 1:
            answer = {"predictions": next(iter(values.values()))}
        else:
            answer = {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def _values(name: str, array: np.ndarray) -> Any:
    """Nested lists; bytes are base64 where the name ends in `_bytes`, else text, with U+FFFD for what is no UTF-8."""
    if array.dtype == object:
        convert = _as_base64 if name.endswith("_bytes") else _as_text
        flat = np.empty(array.size, object)
        flat[:] = [convert(value) for value in array.ravel()]
        array = flat.reshape(array.shape)
    elif array.dtype.kind == "c":
        raise ServingError(StatusCode.INVALID_ARGUMENT, f"Output {name!r} has a type that JSON does not know: {array.dtype}.")
    elif array.dtype.kind not in "biu" and array.dtype != np.float64:
        array = shortest(array.astype(np.float32))
    return array.tolist()


def _as_text(value: bytes) -> str:
    return value.decode(errors="replace")


def _as_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def shortest(array: np.ndarray) -> np.ndarray:
    """float32 as the float64 of the fewest decimal digits (6 to 9) that give back the same float32: 0.1, not 0.10000000149."""
    wide = out = array.astype(np.float64)
    with np.errstate(all="ignore"):  # zeros and numbers that are not finite stay as they are
        exponent = np.floor(np.log10(np.abs(wide)))
        for digits in (9, 8, 7, 6):
            power = 10.0 ** np.abs(digits - 1 - exponent)  # exact up to 10^22, and then the quotient is the nearest float64
            rounded = np.where(exponent < digits, np.rint(wide * power) / power, np.rint(wide / power) * power)
            same = (rounded.astype(np.float32) == array) & (power <= 1e22)
            out = np.where(same, rounded, out)
    return out


def from_protos(protos: Mapping[str, Any], signature: Signature, max_bytes: int) -> Arrays:
    """The inputs of a gRPC request.

    Args:
        protos: name -> `TensorProto`.
        signature: what they are for.
        max_bytes: of one array: a proto may say of a single value that it fills a large tensor.
    """
    arrays = {}
    for name, proto in protos.items():
        info = signature.inputs.get(name)
        if info is not None and proto.dtype != info.dtype.as_datatype_enum:
            sent = tf.as_dtype(proto.dtype).name if proto.dtype in _KNOWN_TYPES else proto.dtype
            raise invalid(f"Input {name!r} must be of type {info.dtype.name}; received {sent}.")
        sizes = [d.size for d in proto.tensor_shape.dim]
        if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
            raise invalid(f"Input {name!r} must have a shape that is fully known.")
        num_values = int(np.prod(sizes, dtype=object))
        if num_values * (info.dtype.size if info is not None and info.dtype != tf.string else 8) > max_bytes:
            raise ServingError(
                StatusCode.RESOURCE_EXHAUSTED, f"Input {name!r} of shape {sizes} is larger than {max_bytes} bytes."
            )
        if info is None:
            arrays[name] = np.empty(0)  # its name is what is wrong, and the signature says so
            continue
        try:
            arrays[name] = tf.make_ndarray(proto)
        except (TypeError, ValueError) as error:
            raise invalid(f"Input {name!r} is no valid TensorProto: {error}") from None
    return arrays


_KNOWN_TYPES = {member.as_datatype_enum for member in vars(tf.dtypes).values() if isinstance(member, tf.DType)}
