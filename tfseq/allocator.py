"""The C library and its allocator: memory that a step frees stays with the process for the next one."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

# of <malloc.h> of the GNU C library
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = {
    _MMAP_THRESHOLD: 32 << 20,  # its largest: what is smaller comes from the heap
    _TOP_PAD: 64 << 20,  # a heap of a thread: one that is empty stays
    _TRIM_THRESHOLD: 2**31 - 1,
}


@functools.cache
def keep_memory() -> bool:
    """Lets the process keep the memory that it frees, up to 2 GiB, instead of giving it back to the system in every step.

    TensorFlow takes the results of operations from the C library on CPUs. The GNU C library gives large pieces back as soon as
    they are free, and the system clears every page anew when they are taken again: a third of the time of a step of a
    recurrent model. `fit` of every model and the command line call this; a script that does without them may. Settings of
    the environment (`MALLOC_..._`, `GLIBC_TUNABLES` of malloc) are left as they are, and so are other C libraries.

    Returns:
        whether the allocator was told so.

    Example:
        >>> import tfseq
        >>> told = tfseq.keep_memory()
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = c_function("mallopt")
    if mallopt is None:
        return False
    answers = [mallopt(name, value) for name, value in _SETTINGS.items()]  # 1 where it was taken
    return set(answers) == {1}


def c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of that name, or cannot be asked."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
