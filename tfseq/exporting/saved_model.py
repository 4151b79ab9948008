"""SavedModel for TF Serving: written to a temporary folder, reloaded, compared, and only then given its name."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.data.batching import Sequences
from tfseq.exporting import documents, warmup
from tfseq.exporting.examples import SHORT, Examples, example_inputs
from tfseq.exporting.servable import check_servable
from tfseq.files import flush, locked
from tfseq.models.base import Endpoint, SequenceModel
from tfseq.training import versions

__all__ = ["example_inputs", "export"]

# The reloaded graph runs the same kernels on the same numbers; constant folding may round differently. What a signature
# answers may be the difference of larger numbers (log-weights that of log-likelihoods), so the rounding is that of its largest.
_TOLERANCE = 1e-5

_TEMPORARY = re.compile(r"\.\d+-[0-9a-f]{8}")


def export(
    model: SequenceModel,
    folder: str | Path,
    *,
    version: int | None = None,
    num_samples: int = 16,
    num_particles: int = 256,
    examples: Sequences | None = None,
    verify: Literal["process", "reload"] = "process",
    litert: bool = False,
    litert_signatures: list[str] | None = None,
    litert_batch: int = 1,
    litert_length: int = 64,
    litert_weights: Literal["float32", "float16", "int8"] = "float32",
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `folder/<version>/`: a graph with one signature for each of `model.endpoints()`, and what a server needs beside it.

    That is: warm-up requests of every signature and length, `batching_params.pbtxt`, a README with the signatures and a line
    for the shell for each, `requests/`, `card.json`; and `models.config` in the folder above, for all models there.

    Args:
        model: the model to serve.
        folder: base folder of this model, as TF Serving's `model_base_path`; its name is that of the served model.
        version: a whole number that is not there yet; one more than the highest by default.
        num_samples, num_particles: fixed in the graph.
        examples: sequences of the model's data, to compare and to warm up with; made-up ones without.
        verify: answers are compared from a new process that cannot import tfseq (`"process"`), or from this one
            (`"reload"`), which takes half of the time.
        litert: also converts signatures for devices, into `litert/`; see `tfseq.exporting.litert.convert`.
        litert_signatures: those to convert, an error where one cannot be; by default all that can.
        litert_batch, litert_length: rows and steps, which are fixed on devices.
        litert_weights: smaller weights answer less exactly.
        card: what is known of the training, for example the run's `card.json`.

    Returns:
        the path of the new version folder.

    Raises:
        ValueError: the version exists, TF Serving could not run a signature, or a reloaded one answers otherwise than the model.
        OSError: the folder cannot be written. Nothing is left behind, and what was there stays.

    >>> import tfseq
    >>> path = tfseq.export(tfseq.RBM.tiny(), "saved_models/tiny", verify="reload")
    """
    checks.at_least(
        1, num_samples=num_samples, num_particles=num_particles, litert_batch=litert_batch, litert_length=litert_length
    )
    checks.choice("verify", verify, ("process", "reload"))
    folder = Path(folder).absolute()
    existing = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()] if folder.is_dir() else []
    version = 1 + max(existing, default=0) if version is None else version
    checks.at_least(0, version=version)
    if version in existing:
        raise ValueError(
            f"`version` must be new: {folder / str(version)} exists and is not overwritten. Leave it out for {1 + max(existing)}."
        )
    endpoints = model.endpoints(num_samples, num_particles)
    with _appearing(folder / str(version)) as temporary:
        graphs = trace(endpoints)
        tf.saved_model.save(_holder(model, graphs), str(temporary), signatures=graphs)
        _drop_shapes(temporary / "saved_model.pb")
        signatures = check_servable(temporary)
        verified = _compare(temporary, endpoints, graphs, model, examples, folder.name, verify == "process")
        about = {"signatures": signatures, "num_samples": num_samples, "num_particles": num_particles, "versions": versions()}
        about |= {
            "class": type(model).__name__,
            "portable": documents.PORTABLE,
            "verified": verified,
            "trained": dict(card or {}),
        }
        if litert:
            from tfseq.exporting.litert import convert

            about["litert"] = convert(
                model,
                temporary / "litert",
                endpoints,
                signatures=litert_signatures,
                batch=litert_batch,
                length=litert_length,
                weights=litert_weights,
                examples=examples,
            )
        (temporary / "batching_params.pbtxt").write_text(documents.BATCHING)
        (temporary / "card.json").write_text(json.dumps(about, indent=1) + "\n")
        (temporary / "README.md").write_text(documents.readme(folder.name, version, about))
    try:
        documents.write_models_config(folder.parent)
    except OSError as error:  # the version is whole, and served where it is named otherwise
        warnings.warn(f"{folder / str(version)} was written, but models.config was not: {error}.", stacklevel=2)
    return folder / str(version)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends without an error, and vanishes otherwise.

    What killed processes left behind is removed first.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")  # TF Serving looks at whole numbers only
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    try:
        temporary.mkdir(parents=True)
        with locked(temporary):
            _remove_left_behind(path.parent)
            yield temporary
            for written in (*temporary.rglob("*"), temporary):
                flush(written)
            os.rename(temporary, path)
            flush(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if not isinstance(error, (OSError, tf.errors.OpError)):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OSError(
            f"{path} could not be written ({reason}); no version folder was made, and older ones are as they were."
        ) from error


def _remove_left_behind(folder: Path) -> None:
    """Removes temporary folders of exports that were killed: those that nobody locks."""
    if sys.platform == "win32":
        return
    for old in folder.iterdir():
        if _TEMPORARY.fullmatch(old.name) and old.is_dir():
            with contextlib.suppress(OSError), locked(old) as free:
                if free:
                    shutil.rmtree(old, ignore_errors=True)


def trace(endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """The graph of each signature; signatures of one function share it."""
    made: dict[Callable, Any] = {}
    for function, specs in endpoints.values():
        if function not in made:
            traced = tf.function(positional(function, specs), input_signature=specs, autograph=False)
            made[function] = traced.get_concrete_function()
    return {name: made[function] for name, (function, _) in endpoints.items()}


def _holder(model: SequenceModel, graphs: Mapping[str, Any]) -> tf.Module:
    """What a SavedModel of signatures alone must keep: the weights and the tables that they read.

    `keras.export.ExportArchive` would write every graph twice, as a signature and as a function.
    """
    holder = tf.Module()
    holder.weights = list({id(v): v for graph in graphs.values() for v in graph.variables}.values())
    layers = model._flatten_layers(include_self=True)
    holder.tables = [v for layer in layers for v in vars(layer).values() if isinstance(v, tf.lookup.StaticHashTable)]
    return holder


def _drop_shapes(path: Path) -> None:
    """Takes the output shapes of every operation out of a SavedModel: a quarter of its size, inferred again when it is loaded."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(path.read_bytes())
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        for node in (*graph.node, *(n for function in graph.library.function for n in function.node_def)):
            node.attr.pop("_output_shapes", None)
    path.write_bytes(saved.SerializeToString(deterministic=True))


def positional(function: Callable[..., dict[str, tf.Tensor]], specs: list[tf.TensorSpec]) -> Callable[..., dict[str, tf.Tensor]]:
    """A function of arguments in the order of `specs`, for one that takes them by name."""
    return lambda *values: function(**{spec.name: value for spec, value in zip(specs, values, strict=True)})


def _compare(
    folder: Path,
    endpoints: Mapping[str, Endpoint],
    graphs: Mapping[str, Callable[..., dict[str, tf.Tensor]]],
    model: SequenceModel,
    data: Sequences | None,
    name: str,
    process: bool,
) -> dict[str, Any]:
    """Writes the warm-up requests and `requests/`, and compares what the folder answers with what the model does.

    The model answers by the graphs of its endpoints; and, where another process is asked, to the first request of each signature,
    a batch, also without one.
    """
    start = endpoints.get("init_state")
    maker = Examples(model, data, None if start is None else start[0])
    inputs, shown = [], {}
    for signature, (_, specs) in endpoints.items():
        for lengths in maker.lengths(specs):
            inputs.append((signature, maker.inputs(specs, lengths)))
            if len(lengths) == 1 and lengths[0] <= SHORT:
                shown[signature] = inputs[-1][1]
    if len(inputs) > warmup.MOST_REQUESTS:
        raise ValueError(f"TF Serving takes {warmup.MOST_REQUESTS} warm-up requests; {len(inputs)} would be made.")
    warmup.write_records(folder / warmup.FILE, (warmup.request(name, signature, given) for signature, given in inputs))
    documents.write_requests(folder, shown)
    (found,) = answers_of([folder], process)
    if len(found) != len(inputs):
        raise OSError(f"{len(found)} of {len(inputs)} warm-up requests were answered: the file is incomplete")
    compared: set[str] = set()
    for (signature, values), got in zip(inputs, found, strict=True):
        given = {key: tf.constant(value) for key, value in values.items()}
        _check_same(signature, got, graphs[signature](*given.values()))
        if process and signature not in compared:
            _check_same(signature, got, endpoints[signature][0](**given))
            compared.add(signature)
    source = (
        "made-up sequences"
        if data is None
        else f"sequences of {data.name or 'the data'}{f' ({data.split})' if data.split else ''}"
    )
    about = {"requests": len(inputs), "examples": source, "longest": maker.longest}
    return {"process": process, **about, "tolerance": _TOLERANCE}


def answers_of(folders: Sequence[Path], process: bool = True) -> list[list[dict[str, Any]]]:
    """What version folders answer to their warm-up requests, in one new process without tfseq, without GPU, or in this one."""
    if not process:
        return [list(warmup.answers(folder)) for folder in folders]
    with tempfile.TemporaryDirectory() as kept:
        files = [Path(kept, str(i)) for i in range(len(folders))]
        pairs = [str(path) for pair in zip(folders, files, strict=True) for path in pair]
        # -P: the folder of the script, which is a part of tfseq, is no place to import from
        done = subprocess.run(
            [sys.executable, "-P", warmup.__file__, *pairs],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(f"A process without tfseq cannot answer from the SavedModel: {lines[-1]}")
        return [[warmup.parse_response(record) for record in warmup.read_records(file)] for file in files]


def _check_same(signature: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError where a reloaded signature answers otherwise than the model."""
    if set(got) != set(wanted):
        raise ValueError(f"The reloaded signature {signature!r} has the outputs {sorted(got)}, the model {sorted(wanted)}.")
    gaps, scale = differences(got, wanted)
    if key := next((key for key, gap in gaps.items() if not gap <= _TOLERANCE * scale), None):
        raise ValueError(
            f"The reloaded signature {signature!r} differs from the model: output {key!r} by up to {gaps[key]:.3g} "
            f"(values up to {scale:.3g}). Nothing was exported."
        )


def differences(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """(largest difference of each output, infinite where shapes or values that are not finite differ; 1 or the largest value)."""
    gaps, scale = {}, 1.0
    for key, value in wanted.items():
        a, b = np.asarray(got[key]), np.asarray(value)
        if a.dtype.kind not in "fiub" or a.shape != b.shape:
            gaps[key] = 0.0 if np.array_equal(a, b) else math.inf
            continue
        a, b = a.astype(float), b.astype(float)
        finite = np.isfinite(a) & np.isfinite(b)
        same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
        gaps[key] = float(np.abs(np.subtract(a, b, where=finite, out=np.zeros_like(a))).max(initial=0.0)) if same else math.inf
        scale = max(scale, float(np.abs(b[finite]).max(initial=0.0)))
    return gaps, scale
