"""SavedModel for TF Serving: written to a temporary folder, reloaded, compared, and only then given its name."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import SequenceModel
from tfseq.training import versions

# The reloaded graph runs the same kernels on the same numbers; constant folding may round differently. What a signature
# answers may be the difference of larger numbers (log-weights that of log-likelihoods), so the rounding is that of its largest.
_TOLERANCE = 1e-5


def export(
    model: SequenceModel,
    folder: str | Path,
    *,
    version: int | None = None,
    num_samples: int = 16,
    num_particles: int = 256,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `folder/<version>/` with one signature for each of `model.endpoints()`, and `card.json` beside the graph.

    Args:
        model: the model to serve.
        folder: base folder of this model, as TF Serving's `model_base_path`.
        version: a whole number that is not there yet; one more than the highest by default.
        num_samples, num_particles: fixed in the graph.
        card: what is known of the training, for example the run's `card.json`.

    Returns:
        the path of the new version folder.

    Raises:
        ValueError: the version exists, or a reloaded signature answers otherwise than the model.
        OSError: the folder cannot be written. Nothing is left behind, and what was there stays.

    >>> import tfseq
    >>> path = tfseq.export(tfseq.DeepMarkovModel.tiny(), "saved_models/tiny")
    """
    checks.at_least(1, num_samples=num_samples, num_particles=num_particles)
    folder = Path(folder)
    existing = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()] if folder.is_dir() else []
    version = 1 + max(existing, default=0) if version is None else version
    checks.at_least(0, version=version)
    if version in existing:
        raise ValueError(
            f"`version` must be new: {folder / str(version)} exists and is not overwritten. Leave it out for {1 + max(existing)}."
        )
    endpoints = {
        name: (_positional(function, specs), specs)
        for name, (function, specs) in model.endpoints(num_samples, num_particles).items()
    }
    with _appearing(folder / str(version)) as temporary:
        archive = keras.export.ExportArchive()
        archive.track(model)
        for name, (function, specs) in endpoints.items():
            archive.add_endpoint(name, function, input_signature=specs)
        archive.write_out(str(temporary), verbose=False)
        signatures = _compare(temporary, endpoints)
        about = {"signatures": signatures, "num_samples": num_samples, "num_particles": num_particles, "versions": versions()}
        about |= {"class": type(model).__name__, "trained": dict(card or {})}
        (temporary / "card.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder / str(version)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends without an error, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")  # TF Serving looks at whole numbers only
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, path)
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


def _positional(function: Callable[..., dict[str, tf.Tensor]], specs: list[tf.TensorSpec]) -> Callable[..., dict[str, tf.Tensor]]:
    """A function of arguments in the order of `specs`, for one that takes them by name."""
    return lambda *values: function(**{spec.name: value for spec, value in zip(specs, values, strict=True)})


def example_inputs(specs: list[tf.TensorSpec], seed: int = 0) -> list[tf.Tensor]:
    """Small inputs that every served signature accepts: three rows of 5, 3 and no steps."""
    rng = np.random.default_rng(seed)
    inputs = []
    for spec in specs:
        shape = [size or (3 if axis == 0 else 5) for axis, size in enumerate(spec.shape)]
        if spec.dtype == tf.string:
            value: Any = [b"on, off", b"", b"\xff caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac"]  # a text, none, and one in broken UTF-8
        elif spec.name in ("lengths", "num_steps", "max_tokens"):
            value = [5, 3, 0]
        elif spec.name == "step":
            value = [0, 1, 2]
        elif spec.name == "log_weights":
            value = np.full(shape, -np.log(shape[1]))
        elif spec.name in ("particles", "u", "future_u"):
            value = rng.normal(size=shape)
        else:  # 0 and 1 are in the range of every family
            value = rng.integers(2, size=shape)
        inputs.append(tf.constant(value, spec.dtype))
    return inputs


def _compare(folder: Path, endpoints: Mapping[str, tuple[Callable, list[tf.TensorSpec]]]) -> dict[str, Any]:
    """Runs every signature of the reloaded folder beside the model's function; describes inputs and outputs."""
    reloaded = tf.saved_model.load(str(folder))
    described = {}
    for name, (function, specs) in endpoints.items():
        inputs = example_inputs(specs)
        wanted = function(*inputs)
        signature = reloaded.signatures[name]
        got = signature(**{spec.name: value for spec, value in zip(specs, inputs, strict=True)})
        if set(got) != set(wanted):
            raise ValueError(f"The reloaded signature {name!r} has the outputs {sorted(got)}, the model {sorted(wanted)}.")
        gaps, scale = _gaps(got, wanted)
        if key := next((key for key, gap in gaps.items() if not gap <= _TOLERANCE * scale), None):
            raise ValueError(
                f"The reloaded signature {name!r} differs from the model: output {key!r} by up to {gaps[key]:.3g} "
                f"(values up to {scale:.3g}). Nothing was exported."
            )
        described[name] = {
            "inputs": {spec.name: f"{spec.dtype.name} {_axes(spec.shape)}" for spec in specs},
            "outputs": {k: f"{s.dtype.name} {_axes(s.shape)}" for k, s in signature.structured_outputs.items()},
        }
    return described


def _gaps(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, float], float]:
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


def _axes(shape: tf.TensorShape) -> str:
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
