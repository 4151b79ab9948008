"""Checks of arguments: each error names the argument, the rule, what came and the likely cause."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

LARGEST = 1e30
"""Of a number that models take: float32 leaves no room above it for sums and products, whose overflow would end as NaN."""


class NotFiniteError(ValueError):
    """The loss or a gradient of a training step is not finite; the weights are those before it."""


def nearest(name: str, options: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the option closest to `name`, or nothing."""
    close = difflib.get_close_matches(str(name), list(options), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def choice(argument: str, value: Any, options: Iterable[str]) -> None:
    """Raises unless `value` is one of `options`."""
    options = list(options)
    if value not in options:
        raise ValueError(f"`{argument}` must be one of {options}; received {value!r}.{nearest(value, options)}")


def at_least(low: int, **arguments: Any) -> None:
    """Raises unless every argument is a whole number of at least `low`."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
            raise ValueError(f"`{name}` must be a whole number of at least {low}; received {value!r}.")


def at_most(high: int, **arguments: Any) -> None:
    """Raises where an argument is more than `high`."""
    for name, value in arguments.items():
        if value > high:
            raise ValueError(f"`{name}` must be at most {high}; received {value}.")


def array(argument: str, value: Any) -> np.ndarray:
    """`value` as an array of whatever it holds; raises where it is none, such as rows of different lengths."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{argument}` must be an array, or rows of one length; NumPy says: {error}.") from error


def finite(argument: str, values: np.ndarray, keep: Any = True, place: tuple[int, ...] = (), has_observed: bool = False) -> None:
    """Raises where `values`, which are at `place`, are not finite or too large for float32, but count (`keep`).

    `has_observed`: whether the caller takes `observed`, which the error then advises.
    """
    if values.dtype.kind != "f":
        return
    fits = (np.abs(values) <= min(LARGEST, float(np.finfo(values.dtype).max))) | ~np.asarray(keep)
    if fits.all():
        return
    where = tuple(int(i) for i in np.argwhere(~fits)[0])
    more = int((~fits).sum()) - 1
    rule, cure = rule_and_cure(has_observed)
    raise ValueError(
        f"`{argument}` must be finite{rule}, no larger than {LARGEST:g}; received {values[where]} at index {(*place, *where)}"
        f"{f' and {more} other places' if more else ''}. {cure}"
    )


def rule_and_cure(has_observed: bool) -> tuple[str, str]:
    """Where values must be finite, and what to do about others, for who takes `observed` and who does not."""
    if has_observed:
        return " wherever it is real and observed", "For missing values pass `observed` with False at these entries."
    return "", "Leave such rows out, or fill them in."


def positive(**arguments: Any) -> None:
    """Raises unless every argument is a finite number above 0."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0.0 < float(value) < math.inf:
            raise ValueError(f"`{name}` must be a number above 0; received {value!r}.")


def share(**arguments: Any) -> None:
    """Raises unless every argument lies in [0, 1]."""
    for name, value in arguments.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` must lie in [0, 1]; received {value!r}.")


def fraction(**arguments: Any) -> None:
    """Raises unless every argument lies in [0, 1)."""
    for name, value in arguments.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"`{name}` must lie in [0, 1); received {value!r}.")
