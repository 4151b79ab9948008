"""The C library keeps what a step frees, unless the environment says how it shall be."""

import os
import platform
import subprocess
import sys

import pytest

from tfseq import allocator

# three results of 16 MiB, made and freed twenty times: faults of pages after the first time
_STEPS = """
import resource, sys
from tfseq.allocator import keep_memory
told = keep_memory()
def step():
    return [bytes([k]) * (16 << 20) for k in range(1, 4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_PAGES_OF_A_STEP = 3 * (16 << 20) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
@pytest.mark.parametrize("setting", [{}, {"MALLOC_ARENA_TEST": "8"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_test=8"}])
def test_pages_are_taken_from_the_system_once_unless_the_environment_has_settings(setting: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_TEST", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", _STEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**environment, **setting})
    told, faults = done.stdout.split()
    assert told == str(not setting)
    if setting:
        assert int(faults) > 10 * _PAGES_OF_A_STEP  # else there would be nothing to gain here
    else:
        assert int(faults) < _PAGES_OF_A_STEP


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        pass

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Library())
    for name in list(os.environ):
        if name.startswith(("MALLOC_", "GLIBC_TUNABLES")):
            monkeypatch.delenv(name)
    assert not allocator.keep_memory.__wrapped__()
