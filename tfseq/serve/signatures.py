"""Served signatures as a SavedModel states them: names, types and shapes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from tfseq.serve.errors import invalid

Arrays = dict[str, np.ndarray]
COUNTS = ("num_steps", "num_sweeps", "max_tokens")
"""Inputs `[B]` that say how many steps a graph makes."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a signature; of `shape`, None is any size, and no shape any number of axes."""

    name: str
    dtype: tf.DType
    shape: tuple[int | None, ...] | None
    tensor: str = ""  # its name in the graph

    @classmethod
    def of(cls, name: str, info: Any) -> TensorInfo:
        """From a `TensorInfo` proto."""
        shape = info.tensor_shape
        sizes = None if shape.unknown_rank else tuple(None if d.size < 0 else int(d.size) for d in shape.dim)
        return cls(name, tf.as_dtype(info.dtype), sizes, info.name)

    @property
    def open_axes(self) -> list[int]:
        """Axes after the batch whose size only the values of inputs decide."""
        return [axis for axis, size in enumerate(self.shape or ()) if axis and size is None]

    def steps(self, value: np.ndarray) -> int:
        """Roughly how long an array lets the loops of a graph run: its open axes, bytes of a text, or what a count says."""
        axes = range(1, value.ndim) if self.shape is None else self.open_axes
        texts = map(len, value.flat) if value.dtype == object else ()
        count = int(value.max(initial=0)) if self.name in COUNTS and value.dtype.kind in "iu" else 0
        return max(count, *(value.shape[axis] for axis in axes), max(texts, default=0))

    def check(self, value: np.ndarray) -> None:
        """Raises where an array has another number of axes or another size than the signature says."""
        if self.shape is None:
            return
        fits = len(self.shape) == value.ndim and all(n is None or n == m for n, m in zip(self.shape, value.shape, strict=True))
        if not fits:
            wanted = ", ".join("?" if n is None else str(n) for n in self.shape)
            raise invalid(f"Input {self.name!r} must have the shape [{wanted}]; received {list(value.shape)}.")


@dataclass(frozen=True)
class Signature:
    """A signature of a SavedModel."""

    name: str
    method: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, name: str, definition: Any) -> Signature:
        """From a `SignatureDef` proto."""
        inputs = {key: TensorInfo.of(key, info) for key, info in sorted(definition.inputs.items())}
        outputs = {key: TensorInfo.of(key, info) for key, info in sorted(definition.outputs.items())}
        return cls(name, definition.method_name, inputs, outputs)

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raises where names or shapes are not those of the signature."""
        if set(inputs) != set(self.inputs):
            extra, missing = (",".join(sorted(a.keys() - b.keys())) for a, b in ((inputs, self.inputs), (self.inputs, inputs)))
            raise invalid(
                f"input size does not match signature: {len(inputs)}!={len(self.inputs)} len({{{','.join(sorted(inputs))}}}) != "
                f"len({{{','.join(self.inputs)}}}). Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
            )
        for name, value in inputs.items():
            self.inputs[name].check(value)

    def chosen(self, names: Sequence[str]) -> Sequence[str]:
        """The outputs that a request asks for: all where it names none; raises where it names others, or one twice."""
        for i, name in enumerate(names):
            if name not in self.outputs:
                known = ",".join(self.outputs)
                raise invalid(
                    f"output tensor alias not found in signature: {name[:100]} Outputs expected to be in the set {{{known}}}."
                )
            if name in names[:i]:
                raise invalid(f"duplicate output tensor alias: {name}")
        return names or list(self.outputs)

    @cached_property
    def has_open_outputs(self) -> bool:
        """Whether any output has, beside the batch, a size that only the values of inputs decide."""
        return any(info.shape is None or info.open_axes for info in self.outputs.values())

    @cached_property
    def cuts(self) -> bool:
        """Whether texts decide the size of an answer, so that each request's part of a batch is cut to its own `length [B]`."""
        return self.has_open_outputs and any(info.dtype == tf.string for info in self.inputs.values())

    @cached_property
    def batches(self) -> bool:
        """Whether requests may share a call: all tensors have the batch first, and each answer can get its own sizes."""
        tensors = [*self.inputs.values(), *self.outputs.values()]
        length = self.outputs.get("length")
        has_length = length is not None and length.dtype.is_integer and length.shape == (None,)
        return bool(self.inputs) and all(t.shape and t.shape[0] is None for t in tensors) and (has_length or not self.cuts)

    @cached_property
    def pads(self) -> bool:
        """Whether inputs may be padded to the length of others to share a call: there is no open output, no seed and no state."""
        return not self.has_open_outputs and not self.is_sensitive

    @cached_property
    def drivers(self) -> list[str]:
        """Inputs `[B]` whose largest value says how long a loop runs, or may say how large an output is."""
        whole = [name for name, info in self.inputs.items() if info.dtype.is_integer and info.shape == (None,)]
        return whole if self.has_open_outputs else [name for name in whole if name in COUNTS]

    @cached_property
    def is_sensitive(self) -> bool:
        """Whether rounding can grow: a seed decides by thresholds, and a state comes back at the next step."""
        return "seed" in self.inputs or bool(self.inputs.keys() & self.outputs.keys())
