"""JSON to arrays and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfseq.serve import convert
from tfseq.serve.errors import ServingError
from tfseq.serve.signatures import Signature, TensorInfo

_SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)


def signature(**dtypes: Any) -> Signature:
    inputs = {name: TensorInfo(name, tf.as_dtype(dtype), None) for name, dtype in dtypes.items()}
    return Signature("serving_default", "tensorflow/serving/predict", inputs, {})


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_floats_are_written_shortest_and_read_back_the_same(x: np.ndarray) -> None:
    answer = convert.shortest(x)
    np.testing.assert_array_equal(answer.astype(np.float32), x)
    for value, single in zip(answer, x, strict=True):
        if 1e-12 < abs(single) < 1e21:  # NumPy's own shortest digits
            assert float(value) == float(str(single))


def test_floats_of_few_digits_are_written_so() -> None:
    x = np.array([0.1, 2.5, 100.0, 1e-7, 3e20, 0.0, -0.3, 16777215, 1 / 3], np.float32)
    assert json.loads(convert.to_json({"y": x}, rows=True))["predictions"] == [
        0.1,
        2.5,
        100.0,
        1e-7,
        3e20,
        0.0,
        -0.3,
        16777215.0,
        0.33333334,
    ]


@given(st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool", "float16"]), st.data())
def test_columns_and_rows_round_trip(dtype: str, data: st.DataObject) -> None:
    x = data.draw(arrays.arrays(np.dtype(dtype), _SHAPES))
    if dtype in ("float32", "float16"):
        x = np.where(np.isnan(x), np.nan, x).astype(dtype)  # one NaN is as good as another
    sent = json.loads(convert.to_json({"x": x}, rows=False))["outputs"]
    for document in ({"inputs": {"x": sent}}, {"inputs": sent}, {"instances": sent}, {"instances": [{"x": row} for row in sent]}):
        text = json.dumps(document).encode()
        got, rows = convert.from_json(convert.parse(text), signature(x=dtype))
        assert rows == ("instances" in document)
        assert got["x"].dtype == x.dtype
        np.testing.assert_array_equal(got["x"], x)


@given(arrays.arrays(object, _SHAPES, elements=st.binary(max_size=6)))
def test_bytes_round_trip_as_base64(x: np.ndarray) -> None:
    answer = convert.to_json({"x_bytes": x}, rows=True)
    got, _ = convert.from_json({"instances": json.loads(answer)["predictions"]}, signature(x="string"))
    np.testing.assert_array_equal(got["x"], x)


def test_text_that_is_no_utf_8_is_marked() -> None:
    answer = convert.to_json({"x": np.array([b"caf\xc3\xa9", b"\xff"], object)}, rows=True)
    assert json.loads(answer) == {"predictions": ["caf\u00e9", "\ufffd"]}


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), lambda v: st.lists(v, max_size=3)))
def test_any_json_is_an_array_or_a_refusal(value: Any) -> None:
    for dtype in ("float32", "int32", "string", "bool"):
        for document in ({"inputs": value}, {"instances": value}):
            try:
                got, _ = convert.from_json(document, signature(x=dtype))
            except ServingError:
                continue
            assert got["x"].shape == np.shape(value)


@pytest.mark.parametrize("value", [128, -129, 1 << 70])
def test_a_whole_number_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(ServingError, match="not of expected type: int8"):
        convert.from_json({"inputs": [0, value]}, signature(x="int8"))


@pytest.mark.parametrize("value", [1e39, (1 << 24) + 1, 10**400])
def test_a_number_that_a_float_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ServingError, match="without loss of precision"):
        convert.from_json({"inputs": [0, value]}, signature(x="float32"))


def test_outputs_without_common_rows_are_for_columns() -> None:
    outputs = {"a": np.zeros(2), "b": np.zeros(3)}
    with pytest.raises(ServingError, match="inconsistent batch sizes"):
        convert.to_json(outputs, rows=True)
    assert json.loads(convert.to_json(outputs, rows=False)) == {"outputs": {"a": [0.0] * 2, "b": [0.0] * 3}}
