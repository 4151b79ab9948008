"""The reference models of saved_models/: small, described, loaded by the server, and named as the documentation names them."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tfseq.serve import convert
from tfseq.serve.servable import Servable, _signature_definitions
from tfseq.serve.signatures import COUNTS, Signature

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "saved_models"
SHIPPED = ("chorales-dmm", "digits-rbm", "docs-lm", "earthquakes-hmm", "pos-en")
MOST_BYTES = 12_000_000
LICENCE = re.compile(r"CC BY(-SA)? \d|CC0|public domain|Licen[cs]e")


def version(name: str) -> Path:
    """The newest version folder of a model that its recipe made: `scripts/demo` exports others beside it."""
    cards = {path.parent: json.loads(path.read_text()) for path in (MODELS / name).glob("*/card.json")}
    return max((p for p, card in cards.items() if "about" in card["trained"]), key=lambda p: int(p.name))


def recipes() -> Any:
    """The script that makes them."""
    spec = importlib.util.spec_from_file_location("build_saved_models", ROOT / "scripts" / "build_saved_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_are_those_of_the_recipes_and_small() -> None:
    script = recipes()
    assert sorted(script.RECIPES) == list(SHIPPED)
    sizes = {name: sum(p.stat().st_size for p in version(name).rglob("*") if p.is_file()) for name in SHIPPED}
    assert {name: size for name, size in sizes.items() if size > script.MOST_BYTES} == {}
    assert sum(sizes.values()) <= MOST_BYTES
    config = (MODELS / "models.config").read_text()
    assert [name for name in SHIPPED if f'base_path: "/models/{name}"' not in config] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_names_data_licence_and_what_was_verified(name: str) -> None:
    card = json.loads((version(name) / "card.json").read_text())
    trained, found = card["trained"], _signature_definitions(version(name)).signature_def
    assert LICENCE.search(trained["about"]), trained["about"]
    assert trained["data"]["name"] and trained["data"]["source"] and re.fullmatch("[0-9a-f]{64}", trained["data"]["sha256"])
    assert set(card["signatures"]) == set(found) - {"__saved_model_init_op"}
    inputs = {name for signature in card["signatures"].values() for name in signature["inputs"]}
    assert {name for name in inputs if name.startswith(("num_", "max_"))} <= set(COUNTS)  # else the server has no limit for it
    assert card["verified"]["process"] and card["verified"]["requests"] >= len(card["signatures"])


def test_the_server_loads_and_warms_up_the_smallest() -> None:
    folder = version("digits-rbm")
    signatures = json.loads((folder / "card.json").read_text())["signatures"]
    servable = Servable(folder)
    assert servable.warm_up(folder) >= len(signatures)
    assert servable.batching.pad_variable_length_inputs and servable.batching.max_batch_size == 32


def curls(path: Path) -> Iterator[tuple[str, str]]:
    """(URL, body, "" where there is none) of each curl line in the code blocks of a page."""
    for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.M | re.S):
        words = shlex.split(block, comments=True) if re.search(r"^curl ", block, re.M) else []
        starts = [i for i, word in enumerate(words) if word == "curl"]
        for start, stop in pairwise([*starts, len(words)]):
            line = words[start:stop]
            yield next(w for w in line if w.startswith("http://")), line[line.index("-d") + 1] if "-d" in line else ""


PAGES = [ROOT / "README.md", MODELS / "README.md", *(version(name) / "README.md" for name in SHIPPED)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_curl_line_asks_a_shipped_model_for_what_it_has(page: Path) -> None:
    lines = list(curls(page))
    assert lines
    for url, body in lines:
        name, method = re.search(r"/v1/models/([^/:]+)(?:/versions/\d+)?(:predict)?$", url).groups()
        assert name in SHIPPED, url
        assert bool(method) == bool(body), url
        if not body:
            continue
        if body.startswith("@"):  # from where the page says the line is to be run
            body = ((ROOT if page.parent in (ROOT, MODELS) else page.parent) / body[1:]).read_text()
        document = convert.parse(body.encode())
        asked, found = convert.signature_name(document) or "serving_default", _signature_definitions(version(name)).signature_def
        assert asked in found, f"{name} has no signature {asked}"
        signature = Signature.of(asked, found[asked])
        inputs, _ = convert.from_json(document, signature)
        signature.check(inputs)  # names, types and shapes
        assert set(document.get("inputs", inputs)) == set(inputs)
