"""What the documentation shows runs as it stands there."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import tfseq

FILES = {path: path.relative_to(Path(tfseq.__path__[0]).parent) for path in Path(tfseq.__path__[0]).rglob("*.py")}
MODULES = sorted(".".join(name.with_suffix("").parts) for path, name in FILES.items() if ">>> " in path.read_text())


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # one of them exports into the folder it is in
    result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert not result.failed, capsys.readouterr().out
    assert result.attempted > 0


def test_public_classes_have_an_example() -> None:
    public = [getattr(tfseq, name) for name in tfseq.__all__]
    classes = [value for value in public if inspect.isclass(value)]
    assert classes
    assert [c.__name__ for c in classes if ">>> " not in (c.__doc__ or "")] == []
