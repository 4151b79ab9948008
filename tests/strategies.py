"""Hypothesis strategies for calls of models' public methods, legal, extreme and wrong; and what a method may do with them.

`test_fuzz.py` tries some calls of every model, `scripts/fuzz.py models` as many as there is time for.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfseq.checks import LARGEST
from tfseq.models.base import SequenceModel
from tfseq.models.reader import Reader

# Of numbers, those that a model's range has are used: the largest that models take, the smallest floats, and those between that
# anyone has.
_TYPICAL = (0.0, 1.0, 0.5, -0.0, -1.5, 2.0)
_EXTREME = (LARGEST, -LARGEST, 1e-45, 1e-38, 1e6, 255.0)
_TEXTS = (
    "", "on off", "a", " ", "\n\t", "日本語", "e\u0301", "\U0001f600\ufe0f", "off, on" * 20, "\0", "don't", "\ud800", "\ufeff",
)  # fmt: skip
OF_KERAS = ("predict", "evaluate", "fit")
FROM_DATA = ("from_data", "pretrain")
_TAKES_DATA = ("x", "data", "v", "prompts", "num_sequences")
# What is no question to a model: parts of one, and what trains for long.
_NOT_ASKED = {
    "as_batch", "as_dataset", "check_values", "cut", "encoded", "example_batch", "from_data", "given", "in_support", "initialise",
    "prepare", "pretrain", "protocol", "select_num_states", "tokenize", "tokenize_target", "xla_pays",
}  # fmt: skip


class Call(NamedTuple):
    """A call of a method.

    Attributes:
        method: its name.
        arguments: of the method, by name.
        num_rows: B of the answer, where the call is legal, else 0.
        typical: whether all numbers are ordinary ones.
    """

    method: str
    arguments: dict[str, Any]
    num_rows: int
    typical: bool


def methods(model: SequenceModel) -> list[str]:
    """What users ask of a model: its public methods that take data, and Keras's three."""
    found = [*OF_KERAS]
    for name, method in inspect.getmembers(type(model), inspect.isfunction):
        if name.startswith("_") or name in _NOT_ASKED or not method.__module__.startswith("tfseq."):
            continue
        first = [*inspect.signature(method).parameters][1:2]
        if name not in found and first and first[0] in _TAKES_DATA:
            found.append(name)
    return found


# Legal calls --------------------------------------------------------------------------------------------------------


def _numbers(model: SequenceModel, shape: tuple[int, ...], typical: bool) -> st.SearchStrategy[np.ndarray]:
    """x of a shape, of numbers in the model's range."""
    spec = model.batch_spec()["x"]
    dtype = spec.dtype.as_numpy_dtype
    if np.dtype(dtype).kind == "i":
        size = next(k for k in range(1, 99) if k == 98 or not np.all(model.in_support(tf.constant(k, spec.dtype))))
        return arrays.arrays(dtype, shape, elements=st.integers(0, size - 1))
    values = np.array(_TYPICAL if typical else _TYPICAL + _EXTREME, dtype)
    every = np.broadcast_to(values.reshape(-1, 1, *[1] * (len(shape) - 2)), (len(values), 1, *shape[2:])).astype(dtype)
    fits = np.asarray(model.in_support(tf.constant(every)))[:, 0]  # of each value, which features may have it
    first = values[fits.argmax(0)]

    def choose(index: np.ndarray) -> np.ndarray:
        allowed = np.take_along_axis(fits, index.reshape(-1, *shape[2:]), 0) if fits.ndim > 1 else fits[index.reshape(-1)]
        return np.where(allowed.reshape(shape), values[index], first)

    return arrays.arrays(np.int64, shape, elements=st.integers(0, len(values) - 1)).map(choose)


@st.composite
def batches(draw: st.DrawFn, model: SequenceModel, shape: tuple[int, int] | None = None, typical: bool | None = None) -> dict:
    """A legal batch of some sequences, as a dict; NaN stands in the padding and where nothing was observed."""
    num_rows, num_steps = shape or (draw(st.integers(1, 3)), draw(st.integers(0, 4)))
    typical = draw(st.booleans()) if typical is None else typical
    specs = model.batch_spec()
    sizes = (num_rows, num_steps, *specs["x"].shape[2:])
    lengths = np.array(draw(st.lists(st.integers(0, num_steps), min_size=num_rows, max_size=num_rows)))
    mask = np.arange(num_steps) < lengths[:, None]
    keep = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (len(sizes) - 2)), sizes)
    batch: dict[str, Any] = {"mask": mask}
    if "observed" in specs and getattr(model, "num_lags", 0) == 0 and draw(st.booleans()):
        whole = not getattr(model, "missing", True) and len(sizes) > 2  # a step is missing as a whole, or not
        observed = draw(arrays.arrays(bool, (*sizes[:2], *[1] * (len(sizes) - 2)) if whole else sizes))
        batch["observed"] = np.broadcast_to(observed, sizes).copy()
        keep = keep & batch["observed"]
    x = draw(_numbers(model, sizes, typical))
    batch["x"] = np.where(keep, x, np.nan if x.dtype.kind == "f" else x).astype(x.dtype)
    if "u" in specs:
        values = st.sampled_from(_TYPICAL if typical else _TYPICAL + _EXTREME[2:])
        batch["u"] = draw(arrays.arrays(np.float32, (*sizes[:2], specs["u"].shape[2]), elements=values.map(np.float32)))
    num_labels = getattr(model, "num_states", 0) or len(getattr(model, "labels", ()))
    if "y" in specs and draw(st.booleans()):
        batch["y"] = draw(arrays.arrays(np.int32, num_rows if "y" in model.unaligned else sizes[:2],
                                        elements=st.integers(-1, num_labels - 1)))  # fmt: skip
    if "target" in specs:
        ends = np.array(draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows)))
        batch["target"] = draw(arrays.arrays(np.int32, (num_rows, 3), elements=st.integers(0, model.num_targets - 1)))
        batch["target_mask"] = np.arange(3) < ends[:, None]
    return batch


@st.composite
def texts(draw: st.DrawFn, model: Reader, num_rows: int) -> dict[str, Any]:
    """A legal batch of raw texts, or of lists of tokens."""
    of = st.lists(st.sampled_from(_TEXTS), min_size=num_rows, max_size=num_rows)
    found: dict[str, Any] = {"x": draw(of)}
    if draw(st.booleans()):
        found["x"] = [[token for token in text.split(" ") if token] for text in found["x"]]
    if "target" in model.batch_spec():
        found["target"] = draw(of)
    return found


@st.composite
def legal_calls(draw: st.DrawFn, model: SequenceModel, method: str, shape: tuple[int, int] | None = None) -> Call:
    """A call that a method must answer, or say of which argument it is that this model has none."""
    typical = draw(st.booleans())
    batch = draw(batches(model, shape, typical))
    num_rows = len(batch["mask"])
    parameters = inspect.signature(getattr(model, method)).parameters
    given: dict[str, Any] = {}
    first = next(iter(parameters))
    if first == "num_sequences":
        given["num_sequences"] = num_rows
    elif first == "prompts":
        given["prompts"] = draw(st.lists(st.sampled_from(_TEXTS), min_size=num_rows, max_size=num_rows))
    elif first == "v":
        width = model.batch_spec()["x"].shape[2]
        given["v"] = draw(_numbers(model, (num_rows, 1, width), typical))[:, 0]
    elif "state" in parameters:
        given = {name: draw(_numbers(model, (num_rows, 1, *batch["x"].shape[2:]), typical))[:, 0] for name in ("x",)}
        given |= {"u": np.ones((num_rows, batch["u"].shape[2]), np.float32)} if "u" in batch else {}
        given["state"] = {name: a.numpy() for name, a in model.init_state(num_rows).items()}
    elif isinstance(model, Reader) and model.text is not None and draw(st.booleans()):
        given[first] = draw(texts(model, num_rows))
    elif draw(st.booleans()) or not {"mask", *batch} - {first} <= {*parameters, "x"}:
        given[first] = batch
    else:
        given = {first if name == "x" else name: a for name, a in batch.items()}
    if "observed" in parameters and "observed" not in given and method in ("impute", "conditional"):
        like = given[first] if first == "v" else batch["x"]
        observed = np.asarray(draw(arrays.arrays(bool, np.shape(like)[:1])))
        observed = np.broadcast_to(observed.reshape(-1, *[1] * (np.ndim(like) - 1)), np.shape(like)).copy()
        if given[first] is batch:
            given[first] = {**batch, "observed": observed}
        else:
            given["observed"] = observed
    small = {"num_steps": 3, "num_samples": 2, "num_particles": 3, "num_sweeps": 2, "num_beams": 2, "max_tokens": 4, "num": 2}
    for name, most in small.items():
        if name in parameters:
            given[name] = draw(st.integers(2 if (name, method) == ("num_sweeps", "conditional") else 1, most))
    if "seed" in parameters and draw(st.booleans()):
        given["seed"] = draw(st.sampled_from([[0, 1], np.array([-(2**31), 2**31 - 1]), np.arange(2 * num_rows).reshape(-1, 2)]))
    control = model.batch_spec().get("u")
    if control is not None:
        for name in {"future_u"} & set(parameters) | ({"u"} & set(parameters) if first == "num_sequences" else set()):
            given[name] = np.ones((num_rows, given["num_steps"], control.shape[2]), np.float32)
    for name in ("h", "log_partition"):
        if name in parameters and parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL and draw(st.booleans()):
            given[name] = 1.0 if name == "log_partition" else np.zeros((num_rows, getattr(model, "num_hidden", 1)))
    if method == "fit":
        given |= {"epochs": 1}
    if method in ("predict", "evaluate", "fit"):
        given |= {"verbose": 0}
    return Call(method, given, num_rows, typical)


# Wrong calls --------------------------------------------------------------------------------------------------------

_WRONG = (
    None, "", "a", b"\xff", 0, -1, 1.5, True, float("nan"), 1j, object(), range(3), iter(()), "x" * 99,
    [], {}, [[]], [None], [[1, 2], [3]], [[[1.0], [2.0, 3.0]]], [1, 2, 3], [["a", 1]], [b"a", "b", 3],
    {"x": None}, {"x": []}, {"mask": [[True]]}, [np.zeros((2, 2)), np.zeros(3)],
    np.zeros(0), np.zeros((0, 2, 2)), np.zeros((1, 2, 3, 4, 5)), np.array(None), np.array([1, None]), np.array([[{}]]),
    np.array("2001-01-01", "M8[D]"), tf.constant([[1.0]]), tf.constant("a"), tf.ragged.constant([[1], [2, 3]]),
)  # fmt: skip


def _spoilt(value: Any) -> st.SearchStrategy[Any]:
    """Something that is nearly `value`."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return st.sampled_from(_WRONG)
    if isinstance(value, int):
        return st.sampled_from([0, -1, 1.5, True, "2", None, [1], np.array([1, 2]), float("nan"), np.int64(2), 2.0, -(2**40), 1j])
    if not isinstance(value, np.ndarray):
        return st.sampled_from(_WRONG)
    changes: list[Callable[[np.ndarray], Any]] = [
        lambda a: a[0] if len(a) else a,
        lambda a: a[..., None],
        lambda a: a[None],
        lambda a: a[:0],
        lambda a: a[:, :0] if a.ndim > 1 else a,
        lambda a: a[..., :-1],
        lambda a: np.concatenate([a, a]),
        lambda a: np.concatenate([a, a], -1),
        lambda a: a.T,
        lambda a: a[:, ::-1] if a.ndim > 1 else a[::-1],  # a mask with holes
        lambda a: a.astype(str),
        lambda a: a.astype(object),
        lambda a: a.astype(complex),
        lambda a: a.astype(bool),
        lambda a: np.nan_to_num(a).astype(np.int64) if a.dtype.kind == "f" else a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: np.full(a.shape, np.nan),
        lambda a: np.full(a.shape, -np.inf),
        lambda a: np.full(a.shape, 3.4e38),
        lambda a: np.full(a.shape, -1),
        lambda a: np.full(a.shape, 2**31 - 1),
        lambda a: np.full(a.shape, 2**40),
        lambda a: np.full(a.shape, 0.3),
        lambda a: a.tolist(),
        lambda a: [row[: i % (len(row) + 1)] for i, row in enumerate(a)] if a.ndim > 1 else a.tolist(),
        lambda a: [*a, None],
        lambda a: [None, *a[1:]],
        lambda a: tf.constant(a),
        lambda a: ~a if a.dtype == bool else -a,
    ]

    def changed(change: Callable[[np.ndarray], Any]) -> Any:
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError, IndexError):  # strings have no NaN
            return change(value)
        return None

    return st.sampled_from(changes).map(changed) | st.sampled_from(_WRONG)


@st.composite
def wrong_calls(draw: st.DrawFn, model: SequenceModel, method: str, shape: tuple[int, int] | None = None) -> Call:
    """A legal call of which an argument, or an entry of a batch, has been spoilt; some are legal all the same."""
    call = draw(legal_calls(model, method, shape))
    arguments = dict(call.arguments)
    name = draw(st.sampled_from(sorted(set(arguments) - {"verbose", "epochs"})))
    value = arguments[name]
    if isinstance(value, Mapping) and draw(st.integers(0, 9)):
        value = dict(value)
        entry = draw(st.sampled_from([*sorted(value), "row", "seed", "wrong"]))
        if draw(st.integers(0, 4)):
            value[entry] = draw(_spoilt(value.get(entry, np.arange(call.num_rows))))
        else:
            value.pop(entry, None)
        arguments[name] = value
    else:
        arguments[name] = draw(_spoilt(value))
    return Call(method, arguments, 0, False)


# Data that a model is made from, or begins with ----------------------------------------------------------------------


@st.composite
def data_calls(draw: st.DrawFn, model: SequenceModel, method: str) -> Call:
    """A call of one of `FROM_DATA`, on data of which most have been spoilt; a model made from them is as small as this one."""
    data = draw(batches(model))
    if isinstance(model, Reader) and model.text is not None and draw(st.booleans()):
        data = {**data, **draw(texts(model, len(data["mask"])))}
    mask = data.pop("mask")
    if draw(st.booleans()):
        lengths = mask.sum(1).tolist()
        is_cut = {name: isinstance(a, np.ndarray) and a.ndim > 1 for name, a in data.items()}
        data = {n: [row[:k] for row, k in zip(a, lengths, strict=True)] if is_cut[n] else a for n, a in data.items()}
    else:
        data["mask"] = mask
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(data)))
        if isinstance(data[name], list) and data[name] and draw(st.booleans()):  # one sequence
            place = draw(st.integers(0, len(data[name]) - 1))
            data[name] = [draw(_spoilt(a)) if i == place else a for i, a in enumerate(data[name])]
        else:
            data[name] = draw(_spoilt(data[name]))
    if method == "pretrain":
        settings = {"epochs": 1, "batch_size": 2}
    else:
        settings = {n: a for n, a in model._hyperparameters.items() if n not in model.from_data_arguments()}
    first = next(iter(inspect.signature(getattr(model, method)).parameters))
    form = draw(st.sampled_from(["dict", "object", "x"]))
    fields = {name: data.get(name) for name in ("x", "observed", "u", "y", "target")}
    given = data if form == "dict" else data["x"] if form == "x" else types.SimpleNamespace(**fields)
    return Call(method, {first: given, **settings}, 0, False)


# What may become of a call ------------------------------------------------------------------------------------------


def outcome(model: SequenceModel, call: Call) -> str:
    """`"answered"` or `"refused"`; AssertionError where the answer is not defined, or the refusal names no argument.

    Whatever else is raised comes out as it is: it is no answer either.
    """
    try:
        answer = getattr(model, call.method)(**call.arguments)
    except ValueError as error:
        message = str(error)
        if len(message) > 2000 or not re.search(r"`\w+|received also", message):
            raise AssertionError(f"the error names no argument, or is long: {type(error).__name__}: {message[:500]}") from error
        return "refused"
    for array in arrays_of(answer):
        if array.dtype.kind in "fc":
            assert not np.isnan(array).any(), f"NaN in an answer of shape {array.shape}"
            assert not call.typical or np.isfinite(array[array != -np.inf]).all(), "infinity in an answer about ordinary numbers"
        if call.num_rows and call.method not in ("evaluate", "fit", "information_criteria"):
            assert array.shape[:1] == (call.num_rows,), f"an answer of shape {array.shape} for {call.num_rows} rows"
    return "answered"


def arrays_of(answer: Any) -> Iterator[np.ndarray]:
    """The arrays of an answer."""
    if hasattr(answer, "history"):
        answer = answer.history
    if isinstance(answer, SequenceModel):
        answer = answer.get_weights()
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):  # histories
        answer = tuple(answer)
    if isinstance(answer, tuple):
        for part in answer:
            yield from arrays_of(part)
    elif isinstance(answer, list) and answer and hasattr(answer[0], "shape"):
        yield from arrays_of(tuple(answer))
    elif isinstance(answer, list):
        numbers = [a for a in answer if isinstance(a, float)]
        yield np.array(numbers) if numbers else np.empty(len(answer), object)
    elif answer is not None:
        yield np.asarray(answer)
