"""`train`: compile and `fit` with validation, best weights, checkpoints and exact resume, into a run folder."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import math
import platform
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

import tfseq
from tfseq import checks
from tfseq.data import data_hash
from tfseq.data.batching import Sequences, epoch_batches, num_batches, num_windows, stream, windows
from tfseq.files import replace_file
from tfseq.models import MODELS
from tfseq.models.base import SequenceModel
from tfseq.models.feedforward import NetworkClassifier

_STATE = "training.json"  # beside the model in a checkpoint
_CHECKPOINT_SECONDS = 60.0  # a killed run loses at most about this much
RUN_FILES = ("model.keras", "checkpoints", "history.csv", "card.json")
"""What a run writes into its folder; a new run never replaces one."""


@dataclass(frozen=True)
class Run:
    """A finished or stopped run: the model with its best weights, the history (one dict an epoch), why it stopped."""

    model: SequenceModel
    history: list[dict[str, float]]
    stopped: str


class KLWarmUp(keras.callbacks.Callback):
    """Raises the weight of the KL term from `start` to 1, linearly over `num_steps` training steps.

    The weight is a function of the model's saved step, so a resumed run goes on where it was. Krishnan et al. 2017 anneal over
    5000 updates from 0.01.
    """

    def __init__(self, num_steps: int, start: float = 0.01) -> None:
        super().__init__()
        checks.at_least(0, num_steps=num_steps)
        checks.share(start=start)
        self.num_steps, self.start = num_steps, start

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        share = min(1.0, int(self.model.step) / self.num_steps) if self.num_steps else 1.0
        self.model.kl_weight.assign(self.start + (1.0 - self.start) * share)


@contextlib.contextmanager
def averaged_weights(model: SequenceModel) -> Iterator[None]:
    """The optimiser's moving averages in place of the weights, where it keeps them (`use_ema`); exactly undone after."""
    optimizer: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    averages = optimizer._model_variables_moving_average if getattr(optimizer, "use_ema", False) and optimizer.built else []
    raw = [w.numpy() for w in model.trainable_weights] if averages else []
    for weight, average in zip(model.trainable_weights, averages, strict=bool(averages)):
        weight.assign(average)
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_weights, raw, strict=bool(averages)):
            weight.assign(value)


class _Keeper(keras.callbacks.Callback):
    """Validates, keeps the best weights, writes history and checkpoints, and stops in time."""

    def __init__(
        self,
        validation: tf.data.Dataset | None,
        validate_every: int,
        folder: Path | None,
        patience: int | None,
        max_seconds: float,
        state: dict[str, Any],
        echo: bool,
    ) -> None:
        super().__init__()
        self.validation, self.validate_every, self.folder = validation, validate_every, folder
        self.patience, self.max_seconds, self.state, self.echo = patience, max_seconds, state, echo
        self.best_weights: list[np.ndarray] | None = None
        self.stopped, self.diverged = "all epochs done", False
        self.started, self.checkpointed = time.monotonic(), -math.inf  # the first epoch is saved
        self.before = state["seconds"]

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its resumptions."""
        return self.before + time.monotonic() - self.started

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs if logs is not None else {}
        last = epoch + 1 == self.params["epochs"]
        out_of_time = self.seconds >= self.max_seconds
        if not math.isfinite(logs["loss"]):
            self._stop(f"the loss became {logs['loss']} in epoch {epoch + 1}; a smaller learning_rate or clip_norm may help")
            self.diverged = True
            return
        monitor = f"val_{self.model.monitor}"
        row = {"epoch": epoch + 1, "seconds": round(self.seconds, 2), **{k: float(v) for k, v in logs.items()}}
        if self.validation is not None and ((epoch + 1) % self.validate_every == 0 or last or out_of_time):
            with averaged_weights(self.model):
                found = self.model.evaluate(self.validation, verbose=0, return_dict=True)
                row |= {f"val_{k}": float(v) for k, v in found.items()}
                logs.update({k: v for k, v in row.items() if k.startswith("val_")})
                if self._is_better(row[monitor]):
                    self.state |= {"best": row[monitor], "best_epoch": epoch + 1}
                    self.keep_best()
        self.state["history"].append(row)
        self.state |= {"epoch": epoch + 1, "seconds": self.seconds}
        if self.echo:
            shown = " ".join(f"{k} {row[k]:.3f}" for k in ("nats_per_step", "kl", monitor) if k in row)
            best = f" best {self.state['best']:.3f}" if self.state["best_epoch"] else ""
            print(f"epoch {epoch + 1} {self.seconds:.0f} s {shown}{best}", file=sys.stderr, flush=True)
        if self.patience is not None and monitor in row and epoch + 1 - self.state["best_epoch"] >= self.patience:
            self._stop(f"no better validation bound in {self.patience} epochs")
        elif out_of_time and not last:
            self._stop(f"time limit of {self.max_seconds / 60:g} minutes")
        if self.model.stop_training or last or time.monotonic() - self.checkpointed > _CHECKPOINT_SECONDS:
            self.save()

    def _is_better(self, value: float) -> bool:
        """Whether a validation is the best so far; where none was, whether it is a number."""
        if not self.state["best_epoch"]:
            return math.isfinite(value)
        return value > self.state["best"] if self.model.higher_is_better else value < self.state["best"]

    def _stop(self, reason: str) -> None:
        self.stopped, self.model.stop_training = reason, True

    def keep_best(self) -> None:
        """Keeps the weights as they are now: as `model.keras`, or in memory where there is no folder."""
        if self.folder is None:
            self.best_weights = self.model.get_weights()
        else:
            with replace_file(self.folder / "model.keras") as path:
                self.model.save(path)

    def save(self) -> None:
        """A checkpoint of all that a resumed run needs, and the history."""
        if self.folder is None:
            return
        # one file, so that weights and state always belong together
        with replace_file(file_of_checkpoint(self.folder)) as path:
            self.model.save(path)
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(_STATE, json.dumps(self.state))
        write_history(self.folder / "history.csv", self.state["history"])
        self.checkpointed = time.monotonic()


class _Summaries(keras.callbacks.Callback):
    """Scalars of all that was logged, and a histogram of the KL of each latent dimension, for TensorBoard, every epoch.

    `tf.summary.scalar`, and with it Keras's own callback, needs the package tensorboard; what it calls, `write`, does not.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = logs or {}
        with self.writer.as_default(step=epoch + 1):
            for name, value in logs.items():
                tf.summary.write(name, tf.constant(float(value)), metadata=_summary_kind("scalars", 1))
            for metric in self.model.unit_metrics:  # of the data it last saw
                kl = metric.kl().numpy()
                name = "val_kl_units" if any(key.startswith("val_") for key in logs) else "kl_units"
                counts, edges = np.histogram(kl[np.isfinite(kl)], bins=min(30, metric.num_units))
                buckets = np.stack([edges[:-1], edges[1:], counts], 1)  # left edge, right edge, number
                tf.summary.write(name, tf.constant(buckets, tf.float64), metadata=_summary_kind("histograms", 2))
        self.writer.flush()  # a killed run keeps its epochs


def _summary_kind(plugin: str, data_class: int) -> Any:
    """What tells TensorBoard how to show a tensor: the plugin, and the DataClass (1 a scalar, 2 a tensor)."""
    metadata = tf.compat.v1.SummaryMetadata(data_class=data_class)
    metadata.plugin_data.plugin_name = plugin
    return metadata


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """One row an epoch; columns are all keys that occur."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with replace_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)


def train(
    model: SequenceModel,
    data: Sequences,
    validation: Sequences | None = None,
    *,
    out: str | Path | None = None,
    epochs: int = 100,
    max_minutes: float = math.inf,
    batch_size: int = 20,
    batch_steps: int | None = None,
    method: Literal["gradient", "em", "map", "vb"] = "gradient",
    step_size: float | None = None,
    optimizer: Literal["adam", "sgd"] = "adam",
    learning_rate: float = 1e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float = 5.0,
    average: float = 0.0,
    kl_start: float = 0.2,
    kl_warmup: int = 1000,
    augmented_epochs: int = 0,
    validate_every: int = 1,
    patience: int | None = None,
    seed: int = 0,
    monitors: bool = False,
    tensorboard: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a model with `fit` and keeps the weights with the best validation bound.

    Args:
        model: the model to train; with `resume`, the same class and hyper-parameters as those of the run.
        data: training sequences.
        validation: sequences to select by; without them the last weights are kept.
        out: run folder: `model.keras` (best), `card.json`, `history.csv`, `checkpoints/`. None keeps all in memory.
        epochs: passes over the data.
        max_minutes: stops at the end of the epoch in which this time is reached, all resumptions counted.
        batch_size: sequences per step (lanes, of a model that reads long texts by windows).
        batch_steps: padded steps per step in its place: as many sequences of about one length as fit.
        method: how the model is trained: `"gradient"`, or where it has closed forms `"em"`, `"map"` or `"vb"` (expectation
            maximisation, the same under its priors, variational Bayes), which use none of the settings of the optimiser.
        step_size: with `"em"`: update after every batch, in (0.5, 1]; see `SequenceModel.compile`.
        optimizer: `"adam"` (with decoupled weight decay) or `"sgd"`.
        learning_rate: rate at the start.
        schedule: `"cosine"` lowers the rate to a hundredth over all epochs, `"constant"` does not.
        momentum: of `"sgd"`.
        weight_decay: decoupled decay, of matrices only with Adam.
        clip_norm: largest global norm of the gradient.
        average: momentum of the moving average of the weights that is validated and kept; 0 for none.
        kl_start: weight of the KL at the start of the warm-up.
        kl_warmup: training steps until it is 1; 0 for no warm-up.
        augmented_epochs: the first epochs, in which the training sequences are varied as their data set says (music: transposed
            at random).
        validate_every: epochs between validations.
        patience: stops when the validation bound has not improved for this many epochs.
        seed: decides the order of the data and all noise in training.
        monitors: log the norms of the gradient and of the weights of every epoch (`monitor_norms` of `SequenceModel.compile`).
        tensorboard: write all that is logged to `out`/logs, for TensorBoard; a resumed run writes lost epochs again.
        resume: go on from the checkpoint in `out`; the result is that of an uninterrupted run. Model, data and settings must be
            those of the run, but for `max_minutes`, `validate_every`, `patience`, `tensorboard` and, with a constant rate,
            `epochs`.
        progress: one line an epoch on standard error.

    Returns:
        the run, its model with the best weights.

    Raises:
        ValueError: on bad arguments, where `out` holds a run (or files that a run would replace) and `resume` is False, where
            a resumed run would be another one, and where the loss is not finite before anything was worth keeping.
        KeyboardInterrupt: passed on after a message that names what was saved.
    """
    settings = {name: value for name, value in locals().items() if name not in ("model", "data", "validation", "out", "progress")}
    checks.at_least(1, epochs=epochs, batch_size=batch_size, validate_every=validate_every)
    checks.at_least(0, kl_warmup=kl_warmup, augmented_epochs=augmented_epochs)
    checks.fraction(average=average, momentum=momentum)
    checks.positive(learning_rate=learning_rate, clip_norm=clip_norm)
    checks.share(kl_start=kl_start)
    if weight_decay < 0.0:
        raise ValueError(f"`weight_decay` must be at least 0; received {weight_decay!r}.")
    if patience is not None:
        checks.at_least(1, patience=patience)
    checks.choice("optimizer", optimizer, ("adam", "sgd"))
    checks.choice("schedule", schedule, ("constant", "cosine"))
    if patience is not None and validation is None:
        raise ValueError("`patience` needs `validation`: without it there is no bound to improve.")
    if tensorboard and out is None:
        raise ValueError("`tensorboard` needs `out`, the run folder that the logs are written to.")
    folder = None if out is None else Path(out)
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0, "seconds": 0.0, "history": []}
    state["run"] = {**settings, "data": data_hash(data), "hyperparameters": _without_name(model)}
    if batch_steps is not None:
        checks.at_least(1, batch_steps=batch_steps)
    given, data = data, model.prepare(data)
    validation = None if validation is None else model.prepare(validation)
    window = getattr(model, "window", None)
    if window is not None and (batch_steps is not None or augmented_epochs):
        raise ValueError(
            "`batch_steps` and `augmented_epochs` are for whole sequences; this model reads windows (its `window` is "
            f"{window}). Set the model's window to null, or leave them out."
        )
    steps = num_batches(data, batch_size, batch_steps=batch_steps) if window is None else num_windows(data, batch_size, window)
    if resume:
        if folder is None:
            raise ValueError("`resume` needs `out`, the folder of the run to go on with.")
        wanted = state["run"]
        model, state = _last_checkpoint(folder)
        _check_same_run(folder, state["run"], wanted)
    else:
        if folder is not None and (
            there := [name for name in (*RUN_FILES, *(["logs"] if tensorboard else [])) if (folder / name).exists()]
        ):
            raise ValueError(
                f"`out` must be a new run folder; {folder} already holds {there[0]}. "
                "Resume its run (resume=True, --resume), or choose another."
            )
        rate = (
            keras.optimizers.schedules.CosineDecay(learning_rate, steps * epochs, 0.01) if schedule == "cosine" else learning_rate
        )
        model.compile(
            make_optimizer(optimizer, rate, weight_decay, clip_norm, average, momentum),
            method=method,
            step_size=step_size,
            monitor_norms=monitors,
        )
        model.seed.assign(np.random.default_rng(seed).integers(0, 2**31 - 1, 2))
    for sequences in (data, validation):
        if sequences is not None:  # all values are checked before any work
            for rows in epoch_batches(sequences.lengths, batch_size, batch_steps=batch_steps):
                batch = model.as_batch(sequences.take(rows))
                if sequences is data:
                    model.check_training(batch)

    def batches_of(sequences: Sequences, augmented: int = 0, **order: Any) -> tf.data.Dataset:
        if window is not None:
            return windows(sequences, batch_size, window, **order)
        return stream(sequences, batch_size, augmented_epochs=augmented, batch_steps=batch_steps, **order)

    keeper = _Keeper(
        None if validation is None else batches_of(validation).cache(),
        validate_every,
        folder,
        patience,
        60.0 * max_minutes,
        state,
        progress,
    )
    callbacks = [KLWarmUp(kl_warmup, kl_start if kl_warmup else 1.0), keeper]
    if tensorboard and folder is not None:
        callbacks.append(_Summaries(folder / "logs"))  # after the validation
    if state["epoch"] < epochs:
        try:
            batches = batches_of(data, augmented_epochs, seed=seed, first_epoch=state["epoch"])
            model.fit(batches, steps_per_epoch=steps, epochs=epochs, initial_epoch=state["epoch"], callbacks=callbacks, verbose=0)
        except KeyboardInterrupt:
            if folder is not None:
                print(f"Interrupted. {_what_is_saved(folder)}", file=sys.stderr)
            raise
    if keeper.diverged and not state["best_epoch"]:
        kept = "" if folder is None else f" {_what_is_saved(folder)}"
        raise ValueError(f"Training stopped with nothing to keep: {keeper.stopped}.{kept}")
    if validation is None:
        with averaged_weights(model):
            keeper.keep_best()
    if folder is not None:
        model = load(folder)
        write_card(folder, model, given, settings, state, keeper.stopped)
    elif keeper.best_weights is not None:
        model.set_weights(keeper.best_weights)
    return Run(model, state["history"], keeper.stopped)


@keras.saving.register_keras_serializable("tfseq")
class KernelDecayAdam(keras.optimizers.AdamW):
    """AdamW that decays matrices only, its step one kernel a variable.

    Keras's own list of exceptions to the decay is not saved, so a resumed run would decay all; its step is a dozen operations.
    """

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) >= 2

    def _apply_weight_decay(self, variables: Any) -> None:
        if self.weight_decay:
            super()._apply_weight_decay(variables)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: Any) -> None:
        """Kingma and Ba 2015, algorithm 1, in the efficient form of section 2."""
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, variable.dtype)
        rate, beta_1, beta_2, epsilon = (
            tf.cast(a, variable.dtype) for a in (learning_rate, self.beta_1, self.beta_2, self.epsilon)
        )
        states = (variable, self._momentums[index], self._velocities[index])
        var, m, v = (a.value if isinstance(a, keras.Variable) else a for a in states)
        tf.raw_ops.ResourceApplyAdam(
            var=var.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )


def make_optimizer(
    name: str,
    rate: Any,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    average: float = 0.0,
    momentum: float = 0.0,
) -> keras.optimizers.Optimizer:
    """The optimiser of `train`."""
    shared = {"global_clipnorm": clip_norm, "use_ema": average > 0.0, "ema_momentum": average or 0.99}
    if name == "sgd":
        return keras.optimizers.SGD(rate, momentum, weight_decay=weight_decay or None, **shared)
    return KernelDecayAdam(rate, weight_decay=weight_decay, **shared)


def file_of_checkpoint(folder: Path) -> Path:
    """Where a run folder keeps its last checkpoint."""
    return folder / "checkpoints" / "last.keras"


def _last_checkpoint(folder: Path) -> tuple[SequenceModel, dict[str, Any]]:
    """The model and the state of the last checkpoint of a run folder."""
    file = file_of_checkpoint(folder)
    model = load(file)
    with zipfile.ZipFile(file) as archive:
        if _STATE not in archive.namelist():
            raise ValueError(f"{file} is a model and no checkpoint (it has no {_STATE}); it cannot be resumed.")
        state = json.loads(archive.read(_STATE))
    if "run" not in state:
        raise ValueError(
            f"{file} is a checkpoint of an earlier version, which does not say what its run was; it cannot be resumed."
        )
    return model, state


def _without_name(model: SequenceModel) -> dict[str, Any]:
    """The configuration of a model; its name is only a label. Through JSON, as a checkpoint holds it."""
    return json.loads(json.dumps({name: value for name, value in model.get_config().items() if name != "name"}))


def may_change(schedule: str) -> set[str]:
    """Settings of `train` that a resumed run may set anew; the cosine schedule spans all epochs of a run."""
    free = {"max_minutes", "validate_every", "patience", "progress", "resume", "tensorboard"}
    return free | ({"epochs"} if schedule == "constant" else set())


def _check_same_run(folder: Path, run: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises where a resumed run would not be the run that was begun."""

    def flat(run: Mapping[str, Any]) -> dict[str, Any]:
        return {**run, **{f"model.{name}": value for name, value in run["hyperparameters"].items()}, "hyperparameters": None}

    before, after, free = flat(run), flat(wanted), may_change(run["schedule"])
    for name in dict.fromkeys((*after, *before)):
        if name not in free and before.get(name) != after.get(name):
            raise ValueError(
                f"`resume` goes on with the run in {folder}, whose model, data and settings cannot change: `{name}` was "
                f"{before.get(name)!r}, received {after.get(name)!r}."
            )


def _what_is_saved(folder: Path) -> str:
    saved = [str(f) for f in (folder / "model.keras", file_of_checkpoint(folder)) if f.exists()]
    if not saved:
        return "Nothing was saved yet."
    return f"Saved: {', '.join(saved)}.{' Go on with --resume.' if file_of_checkpoint(folder).exists() else ''}"


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    found = {name: metadata.version(name) for name in ("tensorflow", "keras", "tensorflow-probability", "numpy")}
    return {"tfseq": tfseq.__version__, "python": platform.python_version(), **found}


def _shortened(value: Any, most: int = 20) -> Any:
    """A long list, such as a vocabulary, by its first items and their number, for people; `model.keras` has all of it."""
    if not isinstance(value, (list, tuple)) or len(value) <= 5 * most:
        return value
    return [*value[:most], f"... {len(value)} in all"]


def write_card(
    folder: Path, model: SequenceModel, data: Sequences, settings: Mapping[str, Any], state: Mapping[str, Any], stopped: str
) -> None:
    """`card.json`: what was trained, on which data, how, and how well."""
    best = next((row for row in state["history"] if row["epoch"] == state["best_epoch"]), state["history"][-1])
    card = {
        "model": next((name for name in MODELS if isinstance(model, MODELS[name])), type(model).__name__),
        "class": type(model).__name__,
        "hyperparameters": {name: _shortened(value) for name, value in model.get_config().items()},
        "parameters": model.count_params(),
        "data": {
            "name": data.name,
            "split": data.split,
            "sequences": len(data),
            "steps": int(data.lengths.sum()),
            "step": data.step,
            "shape": data.shape,
            "columns": list(data.columns),
            "sampling_rate": data.sampling_rate,
            "source": data.source,
            "sha256": data_hash(data),
        },
        "training": {name: value for name, value in settings.items() if value is not None and value != math.inf},
        "epochs_done": state["epoch"],
        "stopped": stopped,
        "seconds": round(state["seconds"], 1),
        "metrics": {"convention": model.convention, **best},
        "versions": versions(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }
    with replace_file(folder / "card.json") as path:
        path.write_text(json.dumps(card, indent=1) + "\n")


def load(path: str | Path) -> SequenceModel:
    """The model of a run folder (its best weights) or of a `.keras` file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged.
    """
    path = Path(path)
    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        known = "" if path.exists() else f"; {path} does not exist"
        raise FileNotFoundError(f"No model at {file}{known}. Give a run folder of `tfseq train`, or a .keras file.")
    for name in MODELS:
        MODELS[name]  # registers the classes that the file names
    try:
        model = keras.saving.load_model(file)
    except Exception as error:  # Keras raises whatever its parts raise
        raise ValueError(
            f"{file} cannot be read as a model ({type(error).__name__}: {str(error)[:200]}). "
            "The file is damaged, or of another version."
        ) from error
    if not isinstance(model, (SequenceModel, NetworkClassifier)):
        raise ValueError(f"{file} holds a Keras model of another library ({type(model).__name__}), not one of tfseq.")
    return model
