"""Which precision long sums and differences of squares take: float64, or on devices that have none the model's own."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

_IS_SINGLE = contextvars.ContextVar("is_single", default=False)


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """Graphs traced inside do without float64: for LiteRT, which has few operations of it."""
    token = _IS_SINGLE.set(True)
    try:
        yield
    finally:
        _IS_SINGLE.reset(token)


def is_single() -> bool:
    """Whether what is traced now must do without float64."""
    return _IS_SINGLE.get()


def wide(dtype: tf.DType) -> tf.DType:
    """The dtype that sums of `dtype` should be made in."""
    return dtype if is_single() else tf.float64
