"""Served signatures for devices: LiteRT with built-in operations alone, static shapes, compared with the model.

A device runs one signature a file. What a sequence carries goes in and out by name (`init_state` and `filter_step` or `step`),
and `seed` is an input, since the random numbers of `ops/random.py` are plain arithmetic: a device draws what the server draws.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfseq import checks
from tfseq.data.batching import Sequences
from tfseq.exporting.examples import Examples
from tfseq.exporting.saved_model import differences
from tfseq.models.base import Endpoint, SequenceModel
from tfseq.ops.tracing import single_precision, without_gradients

Weights = Literal["float32", "float16", "int8"]

# Share of the largest value by which an answer may differ: float32 kernels that add in another order, and without float64; of
# smaller weights what they round to, in layers one after the other.
_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "int8": 0.1}

# Steps of a sequence drawn that must be the server's; of longer ones the difference is reported: where a state grows, or
# particles are chosen anew in each step, the rounding of the first steps makes another sequence in the end.
_STEPS_DRAWN = 1

_REPEATS = 20
_NAMES = ("vocabulary", "target_vocabulary", "tags", "classes", "lowercase", "unit")


class NotConvertible(ValueError):
    """A signature that a device cannot run, and why."""

    def __init__(self, signature: str, reason: str) -> None:
        super().__init__(f"The signature {signature!r} cannot be converted to LiteRT: {reason}.")
        self.reason = reason


def convert(
    model: SequenceModel,
    folder: Path,
    endpoints: Mapping[str, Endpoint] | None = None,
    *,
    signatures: Sequence[str] | None = None,
    batch: int = 1,
    length: int = 64,
    weights: Weights = "float32",
    examples: Sequences | None = None,
) -> dict[str, Any]:
    """Writes `folder/<signature>.tflite`, and `names.json` where ids stand for tokens or tags.

    Args:
        model: the model; a policy of float32.
        folder: made where it is not there.
        endpoints: its served signatures, `model.endpoints()` by default.
        signatures: those to convert; by default all whose inputs are numbers, and which need built-in operations alone.
        batch, length: rows and steps of every input.
        weights: how matrices are stored; `"int8"` has a scale for each row.
        examples: sequences of the model's data to compare with; made-up ones without.

    Returns:
        what was converted: signature -> bytes, milliseconds (median of 20 calls, one thread), difference (largest, as a share of
        the largest value), inputs and outputs, or the reason why it was not.

    Raises:
        ValueError: a signature that was asked for needs an operation that is not built in, or strings; none can be converted; an
            answer differs from the model's.
        ImportError: `ai-edge-litert` is not installed.
    """
    checks.at_least(1, batch=batch, length=length)
    checks.choice("weights", weights, list(_TOLERANCE))
    if model.compute_dtype != "float32":
        raise ValueError(f"`model` must compute in float32 for LiteRT; its dtype policy is {model.dtype_policy.name}.")
    endpoints = model.endpoints() if endpoints is None else endpoints
    for name in signatures or ():
        checks.choice("signatures", name, list(endpoints))
    start = endpoints.get("init_state")
    maker = Examples(model, examples, None if start is None else start[0])
    found: dict[str, dict[str, Any]] = {}
    done: dict[Callable, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in signatures or endpoints:
        function, specs = endpoints[name]
        if (same := done.setdefault(function, name)) != name:  # `score`, which is also the default
            found[name] = {"reason": f"the same as `{same}`"}
            continue
        fixed = [tf.TensorSpec([batch, *(length if n is None else n for n in s.shape[1:])], s.dtype, s.name) for s in specs]
        try:
            content = to_litert(name, function, fixed, weights)
            found[name] = {"bytes": len(content), **_compare(name, content, (function, specs), maker, batch, length, weights)}
        except NotConvertible as error:
            if signatures is not None:
                raise
            found[name] = {"reason": error.reason}
            continue
        (folder / f"{name}.tflite").write_bytes(content)
    if not any("bytes" in one for one in found.values()):
        raise ValueError(
            f"No signature of this {type(model).__name__} can be converted to LiteRT: "
            + "; ".join(f"{name}: {one['reason']}" for name, one in found.items())
        )
    config = model.get_config()
    if names := {key: config[key] for key in _NAMES if config.get(key)}:
        (folder / "names.json").write_text(json.dumps(names, ensure_ascii=False) + "\n")
    return {"weights": weights, "batch": batch, "length": length, "signatures": found}


def to_litert(name: str, function: Callable, specs: Sequence[tf.TensorSpec], weights: Weights = "float32") -> bytes:
    """A function of named inputs of fixed shapes as a LiteRT model with one signature.

    Outputs that are strings are left out, and so is what has no elements, in and out: the interpreter takes none.

    Raises:
        NotConvertible: it takes strings, or needs operations that are not built in; the message names them.
    """
    if strings := [spec.name for spec in specs if spec.dtype == tf.string]:
        raise NotConvertible(name, f"{', '.join(strings)} takes strings")

    empty = {spec.name: spec for spec in specs if 0 in spec.shape}
    given = [spec for spec in specs if spec.name not in empty]

    def numbers(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        nothing = {key: tf.zeros(spec.shape, spec.dtype) for key, spec in empty.items()}
        return _numbers(function(**nothing, **{spec.name: value for spec, value in zip(given, values, strict=True)}))

    with single_precision(), without_gradients():
        traced = tf.function(numbers, autograph=False).get_concrete_function(*given)
    module = tf.Module()
    module.variables_of_it, module.call = list(traced.variables), traced
    with tempfile.TemporaryDirectory() as kept:
        tf.saved_model.save(module, kept, signatures={name: traced})
        _without_shape_checks(Path(kept, "saved_model.pb"))
        converter = tf.lite.TFLiteConverter.from_saved_model(kept, signature_keys=[name])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]  # no Flex
        if weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own modules
                return converter.convert()
        except Exception as error:  # ConverterError, which is private
            needed = sorted(set(re.findall(r"'(tf\.\w+)' op is", str(error))))
            said = re.sub(r"^.*\)\): ", "", str(error).strip().splitlines()[0])[:200]  # behind the place in the graph
            why = f"it needs {', '.join(needed)}, not built in (Flex)" if needed else said
            raise NotConvertible(name, why) from error


def _numbers(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs that a device gives."""
    return {key: value for key, value in outputs.items() if value.dtype != tf.string and 0 not in value.shape}


def _without_shape_checks(path: Path) -> None:
    """Takes tf.EnsureShape out of a SavedModel: LiteRT has it only where the shape is known, where it does nothing."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = saved.meta_graphs[0].graph_def
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            if node.op == "EnsureShape":
                node.op = "Identity"
                del node.attr["shape"]
    path.write_bytes(saved.SerializeToString())


def _compare(
    name: str,
    content: bytes,
    endpoint: Endpoint,
    maker: Examples,
    batch: int,
    length: int,
    weights: Weights,
) -> dict[str, Any]:
    """Answers of the interpreter beside the model's, on full, short and empty rows; its time."""
    runner = interpreter(content).get_signature_runner(name)
    (function, specs), worst = endpoint, 0.0
    draws = any(spec.name == "seed" for spec in specs)
    for num_steps in (length, _STEPS_DRAWN, 0):
        given = maker.inputs(specs, [num_steps] * batch, length)
        wanted = _numbers(function(**{key: tf.constant(value) for key, value in given.items()}))
        given = {key: value for key, value in given.items() if value.size}
        try:
            got = runner(**given)
        except (RuntimeError, ValueError) as error:
            raise NotConvertible(name, f"its interpreter fails ({str(error).strip().splitlines()[0][:120]})") from error
        gaps, scale = differences(got, wanted)
        share = max(gaps.values(), default=0.0) / scale  # a forecast of no steps has no values
        if not draws or (weights == "float32" and num_steps <= _STEPS_DRAWN):  # a number near a threshold draws another sample
            _check(name, gaps, scale, _TOLERANCE[weights], wanted, exact=weights == "float32")
        worst = max(worst, share)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        runner(**given)
        times.append(1e3 * (time.perf_counter() - began))
    described = {
        "inputs": {key: f"{value.dtype.name} {list(value.shape)}" for key, value in given.items()},
        "outputs": {key: f"{value.dtype.name} {list(value.shape)}" for key, value in got.items()},
    }
    return {"milliseconds": round(float(np.median(times)), 4), "difference": worst, **described}


def _check(
    name: str, gaps: Mapping[str, float], scale: float, tolerance: float, wanted: Mapping[str, tf.Tensor], exact: bool
) -> None:
    for key, gap in gaps.items():
        # which state or tag is best may turn on rounding where the weights are rounded
        if (exact or wanted[key].dtype.is_floating) and not gap <= tolerance * scale:
            raise ValueError(
                f"The signature {name!r} answers otherwise on LiteRT: output {key!r} differs by up to {gap:.3g} (values up to "
                f"{scale:.3g}; at most a share of {tolerance:g} is rounding)."
            )


def interpreter(content: bytes) -> Any:
    """The stand-alone interpreter of a model, one thread."""
    try:
        module = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise ImportError("LiteRT needs the package ai-edge-litert: pip install 'tfseq[litert]'.") from error
    return module.Interpreter(model_content=content, num_threads=1)
