"""Data sets as `from_data` takes them: fields whose sequences fit each other, or an error that says which do not."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseq import checks

_FIELDS = ("x", "observed", "u", "y", "target")
_MOST_IDS = 2**20  # models have parameters, or a string, for each


def as_dataset(data: Any, takes_strings: bool, takes_observed: bool) -> Any:
    """What `SequenceModel.as_dataset` says; `takes_strings`: x may be texts or tokens, `takes_observed`: values be missing."""
    if not hasattr(data, "x") and hasattr(data, "sample"):  # shards, whose whole may not fit into memory
        data = data.sample()
    is_whole = hasattr(data, "x")
    given = {n: getattr(data, n, None) for n in _FIELDS} if is_whole else dict(data) if isinstance(data, Mapping) else {"x": data}
    rows = {name: _rows(name, given[name]) for name in _FIELDS if given.get(name) is not None}
    if "x" not in rows:
        raise ValueError("`dataset` must hold sequences: an object or a dict with `x`, a list of [T, ...], or [B, T, ...].")
    for name, items in rows.items():
        if len(items) != len(rows["x"]):
            raise ValueError(f"`{name}` must have one item for each of the {len(rows['x'])} of `x`; received {len(items)}.")
    for name, fields in (("mask", _FIELDS[:4]), ("target_mask", _FIELDS[4:])):
        if given.get(name) is not None and fields[0] in rows:
            longest = max((len(a) for a in rows[fields[0]] if a.ndim), default=0)
            lengths = checked_mask(name, given[name], (len(rows["x"]), longest)).sum(1)
            for field in set(fields) & set(rows):
                rows[field] = [a[:n] if a.ndim else a for a, n in zip(rows[field], lengths, strict=True)]
    for name, items in rows.items():
        _check_kind(name, items, takes_strings)
        _check_shapes(name, items, rows["x"])
    for i, a in enumerate(rows["x"]):
        keep = rows["observed"][i] if takes_observed and "observed" in rows else True
        checks.finite("x", a, keep, (i,), takes_observed)
    for i, a in enumerate(rows.get("u", ())):
        checks.finite("u", a, True, (i,))
    for name in {"x", "target"} & set(rows):
        for i, a in enumerate(rows[name]):
            if a.ndim == 1 and a.dtype.kind in "iu":
                seen = a[rows["observed"][i]] if name == "x" and "observed" in rows else a
                check_ids(name, seen)
    if is_whole:
        return data
    found = {name: [a if a.ndim else a.item() for a in rows[name]] if name in rows else None for name in _FIELDS}
    return types.SimpleNamespace(**found)


def checked_mask(name: str, mask: Any, shape: Sequence[int]) -> np.ndarray:
    """A mask as an array; raises unless it is bool, of this shape and right-padded."""
    mask = checks.array(name, mask)
    if mask.dtype != bool or mask.shape != tuple(shape):
        raise ValueError(
            f"`{name}` must be bool of shape [B, T] = {list(shape)}, True for real steps; "
            f"received {mask.dtype} of shape {list(mask.shape)}."
        )
    if (~mask[:, :-1] & mask[:, 1:]).any():
        raise ValueError(
            f"`{name}` must be right-padded (no real step after a padded one). "
            "For steps that were not measured pass `observed` with False for their features."
        )
    return mask


def check_not_longer(name: str, mask: np.ndarray, lengths: np.ndarray, of: str) -> None:
    """Raises where a mask `[B, T]` has steps that a list of sequences of these lengths, the entry `of`, has not."""
    longer = (mask & (np.arange(mask.shape[1]) >= lengths[:, None])).any(1)
    if longer.any():
        i = int(longer.argmax())
        raise ValueError(
            f"`{name}` may shorten the sequences of a list `{of}`, not lengthen them; sequence {i} has {lengths[i]} steps, "
            f"and {mask[i].sum()} in `{name}`. Is the mask of other sequences, or in another order?"
        )


def check_ids(name: str, values: np.ndarray) -> None:
    """Raises unless whole numbers can be those of symbols or of classes, as many as a model can have."""
    if (wrong := values[(values < 0) | (values >= _MOST_IDS)]).size:
        raise ValueError(
            f"`{name}` must hold symbols from 0 to {_MOST_IDS - 1}; received {wrong[0]}. A model has parameters for every number "
            "up to the largest: number the symbols that occur."
        )


def _rows(name: str, value: Any) -> list[np.ndarray]:
    """The sequences of a field; a string is kept as the object that it is, which NumPy would copy without the NULs at its end."""
    value = [value] if isinstance(value, str | bytes) else value
    if not isinstance(value, Sequence) and not (isinstance(value, np.ndarray | tf.Tensor) and len(value.shape)):
        raise ValueError(f"`{name}` must be a list of sequences, or an array of them; received {value!r:.60}.")
    rows = [np.array(row, object) if isinstance(row, str | bytes) else checks.array(name, row) for row in value]
    kind = bool if name == "observed" else next((row.dtype for row in rows if row.size), None)
    return [row if row.size else row.astype(kind or row.dtype) for row in rows]  # an empty list is of no kind, but float to NumPy


def _check_kind(name: str, rows: list[np.ndarray], takes_strings: bool) -> None:
    kinds = {"U" if _is_text(a) else a.dtype.kind for a in rows}
    may_be_text = takes_strings if name == "x" else name in ("y", "target")
    if not (kinds <= set("b" if name == "observed" else "fiub") or (may_be_text and kinds == {"U"})):
        wanted = "bool" if name == "observed" else "numbers, or all strings" if may_be_text else "numbers"
        received = ", ".join(sorted({"strings" if _is_text(a) else str(a.dtype) for a in rows if a.size}))
        raise ValueError(f"`{name}` must be {wanted}; received {received}.")
    if name == "x" and kinds != {"U"} and any(not a.ndim for a in rows):
        raise ValueError("`x` must be sequences, each [T, ...]; received single values. Is it one sequence?")


def _check_shapes(name: str, rows: list[np.ndarray], x: list[np.ndarray]) -> None:
    if len({(a.ndim, *a.shape[1:]) for a in rows}) > 1:
        received = list(dict.fromkeys(a.shape for a in rows))[:5]
        raise ValueError(f"The sequences of `{name}` must agree in all axes but the first; received {received}.")
    for i, (a, b) in enumerate(zip(rows, x, strict=True)):
        fits = {
            "x": True,
            "observed": a.shape == b.shape,
            "u": a.ndim == 2 and a.shape[:1] == b.shape[:1],
            "y": a.ndim == 0 or (a.ndim == 1 and (b.ndim == 0 or len(a) in (1, len(b)))),
            "target": a.ndim < 2,
        }
        if not fits[name]:
            raise ValueError(f"`{name}` must fit `x`; of sequence {i} it has shape {list(a.shape)}, and `x` {list(b.shape)}.")


def _is_text(a: np.ndarray) -> bool:
    return a.dtype.kind in "US" or (a.dtype.kind == "O" and all(isinstance(item, str | bytes) for item in a.flat))
