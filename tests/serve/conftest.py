"""Folders of small SavedModels, written once, and servers on free ports."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served

_MISSING = [
    name
    for name in ("grpc", "prometheus_client", "starlette", "tensorflow_serving", "uvicorn")
    if not importlib.util.find_spec(name)
]
collect_ignore_glob = ["test_*.py"] if _MISSING else []


def pytest_report_header() -> list[str]:
    return [f"tests/serve left out, {', '.join(_MISSING)} not installed: pip install 'tfseq[serve]'"] if _MISSING else []


@pytest.fixture(scope="session")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder of `served.Local`."""
    return served.write(tmp_path_factory.mktemp("local") / "local" / "1", served.Local(), "words")


@pytest.fixture(scope="session")
def contract_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with the models of the contract tests."""
    return served.write_contract(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
def server(local_model: Path) -> Iterator[Any]:
    """A development server of `served.Local`."""
    with served.running(local_model.parents[1]) as server:
        yield server
