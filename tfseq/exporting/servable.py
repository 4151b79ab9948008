"""What TF Serving cannot run, named before anybody deploys it; signatures as a SavedModel states them."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


def check_servable(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The signatures of a SavedModel: name -> {"inputs": {name: dtype and axes}, "outputs": ...}.

    Raises:
        ValueError: TF Serving could not load it, would answer an error, or could not batch requests; the operation is named.
    """
    meta = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    check_operations(meta.graph_def)
    found = {}
    for name, signature in sorted(meta.signature_def.items()):
        if name.startswith("__"):  # how SavedModel initialises its tables
            continue
        parts = {"inputs": signature.inputs, "outputs": signature.outputs}
        found[name] = {part: {k: _described(name, part, k, t) for k, t in sorted(ts.items())} for part, ts in parts.items()}
    return found


def check_operations(graph: graph_pb2.GraphDef) -> None:
    """Raises ValueError for what a server without XLA, GPU, Python and operations of other libraries has not."""
    functions = {function.signature.name for function in graph.library.function}
    for function in graph.library.function:
        if function.attr["_XlaMustCompile"].b:
            raise ValueError(
                f"TF Serving cannot run the function {function.signature.name}: it is compiled with XLA, which servers have "
                "off. Trace endpoints without `jit_compile`."
            )
    inside = [("the graph", graph.node), *((f"the function {f.signature.name}", f.node_def) for f in graph.library.function)]
    for place, nodes in inside:
        for node in nodes:
            if reason := _why_not(node, functions):
                raise ValueError(f"TF Serving cannot run the operation {node.op} ({node.name} in {place}): {reason}.")


def _why_not(node: node_def_pb2.NodeDef, functions: set[str]) -> str:
    """Why a server may not run an operation; "" where it does."""
    if node.op in functions:
        return ""
    if node.op.startswith("Xla") or node.attr["_XlaMustCompile"].b:
        return "it needs XLA, which servers have off"
    if "cudnn" in node.op.lower():
        return "it exists on GPUs only; plain operations run on both"
    if node.op in _PYTHON:
        return "it calls Python, which a server has not"
    if not hasattr(tf.raw_ops, node.op):
        return "it is not one of TensorFlow's own operations"
    if "GPU" in node.device or "TPU" in node.device:
        return f"it is bound to {node.device}; a graph for all servers names no device but the CPU"
    return ""


def _described(signature: str, part: str, name: str, tensor: meta_graph_pb2.TensorInfo) -> str:
    """`int32 [any, 2]`; raises where the first axis is not that of a batch of any size."""
    shape = tensor.tensor_shape
    axes = [] if shape.unknown_rank else [dim.size for dim in shape.dim]
    if not axes or axes[0] != -1:
        what = "has no known axes" if shape.unknown_rank else "is a scalar" if not axes else f"has {axes[0]} rows"
        raise ValueError(
            f"TF Serving cannot batch the signature {signature!r}: of its {part} {name!r} {what}, where the first axis must be a "
            "batch of any size. A setting is [B], one of each row."
        )
    return f"{tf.as_dtype(tensor.dtype).name} [{', '.join('any' if n == -1 else str(n) for n in axes)}]"
