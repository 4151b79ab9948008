"""What the documentation shows runs as it stands there."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import tfseq

MODULES = ["tfseq", *(m.name for m in pkgutil.walk_packages(tfseq.__path__, "tfseq.") if m.name != "tfseq.__main__")]


def test_examples_in_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)  # one of them exports into the folder it is in
    results = [doctest.testmod(importlib.import_module(name)) for name in MODULES]
    assert not sum(r.failed for r in results), capsys.readouterr().out
    assert sum(r.attempted for r in results) > 0


def test_public_classes_have_an_example() -> None:
    public = [getattr(tfseq, name) for name in tfseq.__all__]
    classes = [value for value in public if inspect.isclass(value)]
    assert classes
    assert [c.__name__ for c in classes if ">>> " not in (c.__doc__ or "")] == []
