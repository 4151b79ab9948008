"""What a graph is traced for, where its operations depend on that: inference alone, a device without float64, XLA."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_WANTS_GRADIENTS = contextvars.ContextVar("wants_gradients", default=True)
_IS_SINGLE = contextvars.ContextVar("is_single", default=False)
_HAS_KERNELS = contextvars.ContextVar("has_kernels", default=False)
_IS_COMPILED = contextvars.ContextVar("is_compiled", default=False)


@contextlib.contextmanager
def _during(flag: contextvars.ContextVar[bool], value: bool) -> Iterator[None]:
    token = flag.set(value)
    try:
        yield
    finally:
        flag.reset(token)


def without_gradients() -> contextlib.AbstractContextManager[None]:
    """Recursions traced inside keep nothing for a gradient, and a SavedModel names no custom one: for graphs that only infer.

    A gradient through a scan is still right (it is that of `tf.while_loop`), and slow.
    """
    return _during(_WANTS_GRADIENTS, False)


def wants_gradients() -> bool:
    """Whether what is traced now may be asked for its gradient."""
    return _WANTS_GRADIENTS.get()


def single_precision() -> contextlib.AbstractContextManager[None]:
    """Graphs traced inside do without float64: for LiteRT, which has few operations of it."""
    return _during(_IS_SINGLE, True)


def is_single() -> bool:
    """Whether what is traced now must do without float64."""
    return _IS_SINGLE.get()


def wide(dtype: tf.DType) -> tf.DType:
    """The dtype that long sums of `dtype` and differences of squares are made in."""
    return dtype if is_single() else tf.float64


def compiled(by_xla: bool = True) -> contextlib.AbstractContextManager[None]:
    """Graphs traced inside are for XLA, where a step of a loop costs next to nothing and elementwise operations are one."""
    return _during(_IS_COMPILED, by_xla)


def is_compiled() -> bool:
    """Whether what is traced now is said to be for XLA."""
    return _IS_COMPILED.get()


def kernels(allowed: bool = True) -> contextlib.AbstractContextManager[None]:
    """Graphs traced inside run here and are not exported, so that `fused` functions may become kernels of XLA."""
    return _during(_HAS_KERNELS, allowed)


def fused(function: Callable) -> Callable:
    """Elementwise `function` of tensors and hashable settings, one kernel of XLA in graphs that have them (`kernels`).

    Random numbers, activation and comparison are one pass over memory then: measured on one CPU core, a Bernoulli draw of
    Threefry numbers costs 1.7 ns in such a kernel, 8 ns as a plain graph, 3.5 ns with TensorFlow's own generator.
    """
    kernel = tf.function(function, jit_compile=True, autograph=False, reduce_retracing=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        use = _HAS_KERNELS.get() and not is_compiled() and not tf.executing_eagerly()
        return (kernel if use else function)(*arguments)

    return call
