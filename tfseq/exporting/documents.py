"""What stands beside a graph for people and servers: README.md, requests, batching_params.pbtxt, models.config."""

from __future__ import annotations

import base64
import json
import shlex
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_encoding

from tfseq.files import replace_file

BATCHING = """\
# Read with --enable_batching --enable_per_model_batching_parameters; num_batch_threads: the cores of the server.
# TF Serving refuses a request of more rows than max_batch_size.
# `tfseq serve` reads neither max_enqueued_batches nor num_batch_threads.
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: 4 }
# Padding never changes a real step: every signature is told its lengths. Answers of an open size come as long as the longest.
pad_variable_length_inputs: true
"""

_WRITTEN = "# Written by tfseq export from the folders beside it. Without this line it is yours, and never written again.\n"

PORTABLE = (
    "Plain TensorFlow operations, without XLA, cuDNN kernels and operations of other libraries: one graph for CPUs and GPUs. "
    "Its answers were compared on a CPU; it was not run on a GPU here."
)


def as_json(value: np.ndarray) -> Any:
    """An array as TF Serving's JSON: bytes that are no UTF-8 as base64."""
    if value.dtype == object:
        return [_text(item) for item in value]
    return value.tolist()


def _text(item: bytes) -> Any:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(item).decode()}


def write_requests(folder: Path, requests: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """`requests/SIGNATURE.json`: a body for `:predict` of each signature."""
    (folder / "requests").mkdir()
    for name, inputs in requests.items():
        body = {"signature_name": name, "inputs": {key: as_json(value) for key, value in inputs.items()}}
        (folder / "requests" / f"{name}.json").write_text(json.dumps(body, ensure_ascii=False) + "\n")


def readme(name: str, version: int, card: Mapping[str, Any]) -> str:
    """The page of a version: what the model is, how it was trained, its signatures, each with a line for the shell."""
    trained = card.get("trained", {})
    lines = [f"# {name}, version {version}", "", f"A `{card['class']}` of tfseq {card['versions']['tfseq']}. {PORTABLE}", ""]
    lines += _trained(trained)
    lines += [
        "## Signatures",
        "",
        f"Requests go to `POST /v1/models/{name}:predict`, or `/v1/models/{name}/versions/{version}:predict`. The first axis is",
        "the batch, `any` any number of rows or steps; `lengths` are the real steps of each row, and `seed` decides all that is",
        "random.",
        "",
    ]
    for signature, parts in card["signatures"].items():
        lines += [f"### {signature}", "", "| | name | type and axes |", "|---|---|---|"]
        lines += [f"| {part[:-1]} | `{key}` | {text} |" for part, tensors in parts.items() for key, text in tensors.items()]
        url = shlex.quote(f"http://localhost:8501/v1/models/{urllib.parse.quote(name)}:predict")
        lines += ["", "```", f"curl -d @requests/{signature}.json {url}", "```", ""]
    if "litert" in card:
        lines += ["## LiteRT", "", *_devices(card["litert"]), ""]
    lines += [
        "## Files",
        "",
        "- `saved_model.pb`, `variables/`, `assets/`: the graph, its weights and tables",
        "- `assets.extra/tf_serving_warmup_requests`: requests that a server answers before it takes others",
        "- `batching_params.pbtxt`: for servers that make batches of requests",
        "- `requests/`: the bodies of the lines above",
        "- `card.json`: all of this and the hyper-parameters, for programs",
        "",
        f"Before the folder got its name, {_checked(card['verified'])}",
        "",
    ]
    return "\n".join(lines)


def _trained(card: Mapping[str, Any]) -> list[str]:
    """Data, figures and licence, as far as the run's card knows them."""
    data, found = card.get("data") or {}, []
    if about := card.get("about"):
        found += [str(about), ""]
    if data:
        size = f"{data.get('sequences', '?')} sequences, {data.get('steps', '?')} steps"
        found += [f"- data: {data.get('name')}, {data.get('split')} split, {size}; SHA-256 {str(data.get('sha256'))[:16]}"]
        found += [f"- source: {data['source']}"] if data.get("source") else []
    if "parameters" in card:
        found += [f"- parameters: {card['parameters']:,}"]
    metrics = dict(card.get("metrics") or {})
    convention = metrics.pop("convention", None)
    shown = {k: v for k, v in metrics.items() if k.startswith("val_") and k != "val_loss"}
    if shown:
        text = ", ".join(f"{k.removeprefix('val_')} {v:.4g}" for k, v in shown.items())
        found += [f"- validation: {text}{f' ({convention})' if convention else ''}"]
    if "test" in card:
        found += [f"- test: {', '.join(f'{k} {v:.4g}' for k, v in card['test'].items())}"]
    return ["## Training", "", *found, ""] if found else []


def _checked(verified: Mapping[str, Any]) -> str:
    where = "by another process, which cannot import tfseq," if verified["process"] else "after loading it again"
    return (
        f"{verified['requests']} requests on {verified['examples']} (single, batched, padded; of lengths 0, 1 and up to "
        f"{verified['longest']}) were answered {where} as the model does, within {verified['tolerance']:g} of the largest value."
    )


def _devices(converted: Mapping[str, Any]) -> list[str]:
    weights = converted["weights"]
    lines = [
        f"`litert/SIGNATURE.tflite`: built-in operations alone, {weights} weights, batches of {converted['batch']}, sequences of "
        f"{converted['length']} steps.",
        "",
        "| signature | kB | ms | largest difference |",
        "|---|---|---|---|",
    ]
    for name, one in converted["signatures"].items():
        if "reason" in one:
            lines.append(f"| `{name}` | | | not converted: {one['reason']} |")
        else:
            lines.append(f"| `{name}` | {one['bytes'] / 1e3:.1f} | {one['milliseconds']:.2f} | {one['difference']:.2g} |")
    return lines


def write_models_config(base: Path) -> Path | None:
    """`models.config` of a base folder: every model in it, for `--model_config_file`; None where the file is the user's own."""
    path = base / "models.config"
    if path.exists() and not path.read_text().startswith(_WRITTEN):
        return None
    names = sorted({pb.parent.parent.name for pb in base.glob("*/*/saved_model.pb") if pb.parent.name.isdecimal()})
    entries = [
        f'  config {{\n    name: "{name}"\n    base_path: "/models/{name}"\n    model_platform: "tensorflow"\n  }}\n'
        for name in (text_encoding.CEscape(name, as_utf8=True) for name in names)
    ]
    with replace_file(path) as temporary:
        temporary.write_text(f"{_WRITTEN}model_config_list {{\n{''.join(entries)}}}\n")
    return path
