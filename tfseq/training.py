"""`train`: compile and `fit` with validation, best weights, checkpoints and exact resume, into a run folder."""

from __future__ import annotations

import contextlib
import contextvars
import csv
import datetime
import functools
import json
import math
import platform
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import keras
import numpy as np
import tensorflow as tf

import tfseq
from tfseq import checks
from tfseq.checks import NotFiniteError
from tfseq.data import data_hash
from tfseq.data.batching import Sequences, epoch_batches, num_batches, num_windows, stream, windows
from tfseq.data.shards import Shards, named_damage
from tfseq.files import locked, remove_left_behind, replace_file
from tfseq.models import MODELS
from tfseq.models.base import Batch, SequenceModel
from tfseq.models.feedforward import NetworkClassifier
from tfseq.models.replicas import is_chief, spans_machines, word_of_chief

_STATE, _CARRIED = "training.json", "carried"  # beside the model in a checkpoint
_STEPS_CHECKED = 1 << 16  # padded steps of a sample of shards that are looked at together
RUN_FILES = ("model.keras", "checkpoints/last.keras", "history.csv", "card.json")
"""What a run writes into its folder; a new run never replaces one."""


@dataclass(frozen=True)
class Run:
    """A finished or stopped run: the model with its best weights, the history (one dict an epoch), why it stopped.

    `diverged` where that was a loss or a gradient that is not finite.
    """

    model: SequenceModel
    history: list[dict[str, float]]
    stopped: str
    diverged: bool = False


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
        share = min(1.0, int(self.model.step.numpy()) / self.num_steps) if self.num_steps else 1.0
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


def _carried(model: SequenceModel) -> list[tf.Variable]:
    """What `model.carried` is on this machine: of each variable the one of every replica."""
    return [part for variable in model.carried for part in model.distribute_strategy.experimental_local_results(variable)]


@contextlib.contextmanager
def _carried_on(model: SequenceModel) -> Iterator[None]:
    """Whatever the block runs through the model, what is carried from batch to batch is as before it."""
    variables = _carried(model)
    values = [variable.numpy() for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


class _Keeper(keras.callbacks.Callback):
    """Validates, keeps the best weights, writes history and checkpoints, and stops in time.

    Of several workers the chief alone has the clock, prints, and writes into the run folder. The others write the same to files
    that are thrown away: reading a model takes all of them.
    """

    def __init__(
        self,
        validation: tf.data.Dataset | None,
        validate_every: int,
        folder: Path | None,
        patience: int | None,
        max_seconds: float,
        checkpoint_seconds: float,
        state: dict[str, Any],
        echo: bool,
    ) -> None:
        super().__init__()
        self.validation, self.validate_every, self.folder = validation, validate_every, folder
        self.patience, self.max_seconds, self.checkpoint_seconds = patience, max_seconds, checkpoint_seconds
        self.state, self.echo = state, echo
        self.best_weights: list[np.ndarray] | None = None
        self.stopped, self.diverged = "all epochs done", False
        self.started, self.before = time.monotonic(), state["seconds"]
        self.checkpointed = self.before

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its resumptions, by the chief's clock."""
        return word_of_chief(self.model.distribute_strategy, self.before + time.monotonic() - self.started)

    @property
    def _is_chief(self) -> bool:
        return is_chief(self.model.distribute_strategy)

    @property
    def _monitor(self) -> str:
        return f"val_{self.model.monitor}"

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self.first_step, self.epochs_before = int(self.model.step.numpy()), self.state["epoch"]
        if not self.state["epoch"]:
            self.save()  # what is killed from here on can be resumed

    def batch_now(self, steps: int) -> int:
        """Number of the batch that comes next, from the first of the run on, with `steps` batches an epoch."""
        return self.epochs_before * steps + int(self.model.step.numpy()) - self.first_step

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs if logs is not None else {}
        last = epoch + 1 == self.params["epochs"]
        out_of_time = self.seconds >= self.max_seconds
        if not math.isfinite(logs["loss"]):  # the step itself says so, but not where XLA compiles it, which leaves checks out
            self.diverge(f"the loss became {logs['loss']} in epoch {epoch + 1}")
            return
        monitor = self._monitor
        row = {"epoch": epoch + 1, "seconds": round(self.seconds, 2), **{k: float(v) for k, v in logs.items()}}
        if self.validation is not None and ((epoch + 1) % self.validate_every == 0 or last or out_of_time):
            with averaged_weights(self.model), _carried_on(self.model):
                found = self.model.evaluate(self.validation, verbose=0, return_dict=True)
                row |= {f"val_{k}": float(v) for k, v in found.items()}
                logs.update({k: v for k, v in row.items() if k.startswith("val_")})
                if self._is_better(row[monitor]):
                    self.state |= {"best": row[monitor], "best_epoch": epoch + 1}
                    self.keep_best()
        self.state["history"].append(row)
        self.state |= {"epoch": epoch + 1, "seconds": (now := self.seconds)}
        if self.echo and self._is_chief:
            shown = " ".join(f"{k} {row[k]:.3f}" for k in ("nats_per_step", "kl", monitor) if k in row)
            best = f" best {self.state['best']:.3f}" if self.state["best_epoch"] else ""
            print(f"epoch {epoch + 1} {now:.0f} s {shown}{best}", file=sys.stderr, flush=True)
        if self.is_out_of_patience():
            self.model.stop_training = True
        elif out_of_time and not last:
            self.stopped, self.model.stop_training = f"time limit of {self.max_seconds / 60:g} minutes", True
        if self.model.stop_training or last or now - self.checkpointed >= self.checkpoint_seconds:
            self.save()

    def diverge(self, what: str) -> None:
        """Stops because of `what`."""
        self.stopped = what + ("; a smaller learning_rate or clip_norm may help" if self.model.method == "gradient" else "")
        self.diverged = self.model.stop_training = True

    def is_out_of_patience(self) -> bool:
        """Whether no validation was better for long, at the last one."""
        state = self.state
        if (
            self.patience is None
            or not state["history"]
            or self._monitor not in state["history"][-1]
            or state["epoch"] - state["best_epoch"] < self.patience
        ):
            return False
        self.stopped = f"no better validation bound in {self.patience} epochs"
        return True

    def _is_better(self, value: float) -> bool:
        """Whether a validation is the best so far; where none was, whether it is a number."""
        if not self.state["best_epoch"]:
            return math.isfinite(value)
        return value > self.state["best"] if self.model.higher_is_better else value < self.state["best"]

    @contextlib.contextmanager
    def _written(self, path: Path) -> Iterator[Path]:
        """A file that takes the place of `path` once it is whole; of a worker that is not the chief one that is thrown away."""
        if self._is_chief:
            with replace_file(path) as new:
                yield new
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / path.name

    def keep_best(self) -> None:
        """Keeps the weights as they are now: as `model.keras`, or in memory where there is no folder."""
        if self.folder is None:
            self.best_weights = self.model.get_weights()
        else:
            with self._written(self.folder / "model.keras") as path:
                self.model.save(path)

    def save(self) -> None:
        """A checkpoint of all that a resumed run needs, and the history."""
        if self.folder is None:
            return
        # one file, so that weights and state always belong together
        with self._written(file_of_checkpoint(self.folder)) as path:
            self.model.save(path)
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(_STATE, json.dumps(self.state))
                for i, variable in enumerate(_carried(self.model)):
                    archive.writestr(f"{_CARRIED}/{i}", tf.io.serialize_tensor(variable).numpy())
        if self.state["history"] and self._is_chief:
            write_history(self.folder / "history.csv", self.state["history"])
        self.checkpointed = self.state["seconds"]


class _Summaries(keras.callbacks.Callback):
    """Scalars of all that was logged, and a histogram of the KL of each latent dimension, for TensorBoard, every epoch.

    `tf.summary.scalar`, and with it Keras's own callback, needs the package tensorboard; what it calls, `write`, does not.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        with self._written():
            self.writer = tf.summary.create_file_writer(str(folder))

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Where TensorFlow cannot write, the error is that of other files."""
        try:
            yield
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0].rpartition("; ")[2]
            raise OSError(f"{self.folder} could not be written ({reason})") from error

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = logs or {}
        with self._written(), self.writer.as_default(step=epoch + 1):
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


_Function = TypeVar("_Function", bound=Callable[..., Any])


_HELD: contextvars.ContextVar[frozenset[Path]] = contextvars.ContextVar("held", default=frozenset())


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the lock of a run folder, which it makes: two runs that write one would ruin it. Inside, it is held already."""
    held = _HELD.get()
    if folder.resolve() in held:
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder) as free:
            if free is False:
                raise ValueError(f"`out` must be a folder that no other run writes to now; {folder} is of one that goes on.")
            token = _HELD.set(held | {folder.resolve()})
            try:
                yield
            finally:
                _HELD.reset(token)
    finally:
        if made:
            with contextlib.suppress(OSError):  # it has files now
                folder.rmdir()


def _alone_in_its_folder(function: _Function) -> _Function:
    """`train`, which holds the lock of its run folder."""

    @functools.wraps(function)
    def run(model: SequenceModel, *data: Any, out: str | Path | None = None, **options: Any) -> Any:
        folder = None if out is None else Path(out)
        if folder is None or (folder.exists() and not folder.is_dir()) or not is_chief(model.distribute_strategy):
            return function(model, *data, out=out, **options)
        with alone_in(folder):
            return function(model, *data, out=out, **options)

    return cast(_Function, run)


@_alone_in_its_folder
def train(
    model: SequenceModel,
    data: Sequences | Shards,
    validation: Sequences | Shards | None = None,
    *,
    out: str | Path | None = None,
    epochs: int = 100,
    steps_per_epoch: int | None = None,
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
    checkpoint_minutes: float = 1.0,
    jit_compile: bool | Literal["auto"] = "auto",
    seed: int = 0,
    monitors: bool = False,
    tensorboard: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a model with `fit` and keeps the weights with the best validation bound.

    Args:
        model: the model to train; with `resume`, the same class and hyper-parameters as those of the run.
        data: training sequences; or shards, which need not fit into memory: before any work a sample of them is checked, and the
            rest when it comes.
        validation: sequences to select by; without them the last weights are kept.
        out: run folder: `model.keras` (best), `card.json`, `history.csv`, `checkpoints/`. None keeps all in memory.
        epochs: passes over the data, or stretches of `steps_per_epoch` batches.
        steps_per_epoch: batches of an epoch in the place of a pass: where a pass is long, it is then validated and saved in
            between. Passes follow each other as they would.
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
        augmented_epochs: the first passes, in which the training sequences are varied as their data set says (music: transposed
            at random).
        validate_every: epochs between validations.
        patience: stops when the validation bound has not improved for this many epochs.
        checkpoint_minutes: least time between checkpoints, which come at the ends of epochs; 0 for one after each. A run that is
            killed loses what it did since the last.
        jit_compile: compile steps with XLA, which leaves out the check of a loss before its update. `"auto"` does so where it was
            measured to be faster (README) and no update depends on that check: passes of closed-form methods of hidden Markov
            models, on CPUs, where all sequences have one length and the work pays for compiling.
        seed: decides the order of the data and all noise in training.
        monitors: log the norms of the gradient and of the weights of every epoch (`monitor_norms` of `SequenceModel.compile`).
        tensorboard: write all that is logged to `out`/logs, for TensorBoard; a resumed run writes lost epochs again.
        resume: go on from the checkpoint in `out`; the result is that of an uninterrupted run. Model, data and settings must be
            those of the run, but for `max_minutes`, `validate_every`, `patience`, `checkpoint_minutes`, `tensorboard` and, with a
            constant rate, `epochs`.
        progress: one line an epoch on standard error.

    A run that is killed at any moment, or whose disk is full, keeps its last checkpoint and the best weights so far, whole. It
    stops at the first batch whose loss or gradient is not finite, says which, and keeps the best weights, or where nothing was
    validated those before this batch.

    Returns:
        the run, its model with the best weights.

    Raises:
        ValueError: on bad arguments, where `out` holds a run (or files that a run would replace) and `resume` is False, where
            a resumed run would be another one, where its checkpoint is damaged, and where the loss is not finite before the end
            of the first epoch (`tfseq.checks.NotFiniteError`).
        OSError: a file could not be written; the message names what was saved.
        KeyboardInterrupt: passed on after a message that names what was saved.
    """
    settings = {name: value for name, value in locals().items() if name not in ("model", "data", "validation", "out", "progress")}
    checks.at_least(1, epochs=epochs, batch_size=batch_size, validate_every=validate_every)
    checks.at_least(0, kl_warmup=kl_warmup, augmented_epochs=augmented_epochs)
    if steps_per_epoch is not None:
        checks.at_least(1, steps_per_epoch=steps_per_epoch)
        if method != "gradient" and step_size is None:
            raise ValueError(
                f"`steps_per_epoch` must be left out with method={method!r}, which updates after a whole pass over the data; "
                f"received {steps_per_epoch}. With `step_size`, 'em' updates after every batch."
            )
    if not checkpoint_minutes >= 0.0:
        raise ValueError(f"`checkpoint_minutes` must be at least 0; received {checkpoint_minutes!r}.")
    checks.fraction(average=average, momentum=momentum)
    checks.positive(learning_rate=learning_rate, clip_norm=clip_norm)
    checks.share(kl_start=kl_start)
    if weight_decay < 0.0:
        raise ValueError(f"`weight_decay` must be at least 0; received {weight_decay!r}.")
    if patience is not None:
        checks.at_least(1, patience=patience)
    checks.choice("optimizer", optimizer, ("adam", "sgd"))
    checks.choice("schedule", schedule, ("constant", "cosine"))
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f'`jit_compile` must be True, False or "auto"; received {jit_compile!r}.')
    if patience is not None and validation is None:
        raise ValueError("`patience` needs `validation`: without it there is no bound to improve.")
    if tensorboard and out is None:
        raise ValueError("`tensorboard` needs `out`, the run folder that the logs are written to.")
    folder = None if out is None else Path(out)
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0, "seconds": 0.0, "history": []}
    state["run"] = {**settings, "data": data_hash(data), "hyperparameters": _without_name(model)}
    state["run"]["validation"] = None if validation is None else data_hash(validation)
    if batch_steps is not None:
        checks.at_least(1, batch_steps=batch_steps)
    strategy = model.distribute_strategy
    given, data = data, _prepared(model, data)
    validation = None if validation is None else _prepared(model, validation)
    window = getattr(model, "window", None)
    if window is not None and (batch_steps is not None or augmented_epochs):
        raise ValueError(
            "`batch_steps` and `augmented_epochs` are for whole sequences; this model reads windows (its `window` is "
            f"{window}). Set the model's window to null, or leave them out."
        )
    if window is not None and steps_per_epoch is not None and spans_machines(strategy):
        raise ValueError(
            "`steps_per_epoch` must be left out where several machines read windows: a checkpoint has the state of one."
        )
    a_pass = num_batches(data, batch_size, batch_steps=batch_steps) if window is None else num_windows(data, batch_size, window)
    steps = steps_per_epoch or a_pass
    if folder is not None:
        for name in (*RUN_FILES, "config.yaml") if is_chief(strategy) else ():
            remove_left_behind(folder / name)
    if resume:
        if folder is None:
            raise ValueError("`resume` needs `out`, the folder of the run to go on with.")
        wanted = state["run"]
        with strategy.scope():
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
            jit_compile=jit_compile,
        )
        model.seed.assign(np.random.default_rng(seed).integers(0, 2**31 - 1, 2))
    chooses = jit_compile == "auto" and not resume  # decided once: a resumed run is to make the same numbers
    by_xla = state.setdefault("xla", chooses and _xla_pays(model, data, epochs, batch_size, batch_steps)) and _xla_may(model)
    for sequences in (data, validation):
        if sequences is not None:  # all values are checked before any work, those of shards inside the graph
            is_sample = isinstance(sequences, Shards)
            some = model.prepare(sequences.sample()) if isinstance(sequences, Shards) else sequences
            for rows in epoch_batches(some.lengths, batch_size, batch_steps=_STEPS_CHECKED if is_sample else batch_steps):
                batch = model.as_batch(some.take(rows))
                if sequences is data:
                    model.check_training({**batch, "row": rows})

    def batches_of(sequences: Sequences | Shards, augmented: int = 0, **order: Any) -> tf.data.Dataset:
        if window is not None:
            return windows(sequences, batch_size, window, **order)
        return stream(sequences, batch_size, augmented_epochs=augmented, batch_steps=batch_steps, **order)

    passes, skip = divmod(state["epoch"] * steps, a_pass)
    if skip and folder is not None:
        _carry_on(file_of_checkpoint(folder), model)
    validated = None if validation is None else batches_of(validation)
    keeper = _Keeper(
        validated if validated is None or isinstance(validation, Shards) else validated.cache(),
        validate_every,
        folder,
        patience,
        60.0 * max_minutes,
        60.0 * checkpoint_minutes,
        state,
        progress,
    )
    callbacks = [KLWarmUp(kl_warmup, kl_start if kl_warmup else 1.0), keeper]
    keeper.set_model(model)
    done = state["epoch"]
    parted = False
    last = done if keeper.is_out_of_patience() else epochs  # `fit` without an epoch still ends what a killed one began
    with _saying_what_is_saved(folder), named_damage(), _steps_by_xla(model, by_xla):
        word_of_chief(strategy, 0.0)  # all have read what is in the folder before the chief writes
        if tensorboard and folder is not None and is_chief(strategy):
            callbacks.append(_Summaries(folder / "logs"))  # after the validation
        try:
            batches = batches_of(data, augmented_epochs, seed=seed, first_epoch=passes, skip=skip)
            model.fit(batches, steps_per_epoch=steps, epochs=last, initial_epoch=done, callbacks=callbacks, verbose=0)
            if by_xla and keeper.diverged:  # the check that names the batch was left out; the parameters are those it had
                model.jit_compile = False
                order = {"augmented": augmented_epochs, "seed": seed, "first_epoch": state["epoch"]}
                for number, batch in zip(range(a_pass), batches_of(data, **order), strict=False):
                    if not np.isfinite(model.log_prob(batch)).all():
                        keeper.diverge(_of_batch(model, batch, state["epoch"], number))
                        break
        except NotFiniteError:
            parted = spans_machines(strategy)  # a step that failed ends all that workers say to each other
            passes, skip = divmod(keeper.batch_now(steps), a_pass)
            batch = next(iter(batches_of(data, augmented_epochs, seed=seed, first_epoch=passes, skip=skip)))
            epoch, number = divmod(keeper.batch_now(steps), steps)
            keeper.diverge(_of_batch(model, batch, epoch, number))
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            if not spans_machines(strategy):
                raise
            raise ConnectionError("Another worker of this run was lost, and none can train without it") from error
        if keeper.diverged and is_chief(strategy):
            print(f"Stopped: {keeper.stopped}.", file=sys.stderr, flush=True)
        if not state["best_epoch"]:  # nothing was validated: the last weights, which are those before a bad batch
            if any(np.isnan(w).any() for w in model.trainable_weights):
                raise NotFiniteError(f"Training stopped with nothing to keep: {keeper.stopped}. {_what_is_saved(folder)}")
            with averaged_weights(model):
                keeper.keep_best()
        if folder is not None:
            if not parted:
                word_of_chief(strategy, 0.0)  # it has written the best weights
                if not (folder / "model.keras").is_file():
                    raise ValueError(
                        f"`out` must lie on a file system that all workers see; {folder} is without model.keras here."
                    )
                with strategy.scope():
                    model = load(folder)
            if is_chief(strategy):
                if state["history"]:  # of a run that was killed after its last checkpoint, rows may be missing
                    write_history(folder / "history.csv", state["history"])
                write_card(folder, model, given, settings, state, keeper.stopped)
        elif keeper.best_weights is not None:
            model.set_weights(keeper.best_weights)
    if not state["history"]:
        raise NotFiniteError(f"Training stopped in its first epoch: {keeper.stopped}. {_what_is_saved(folder)}")
    return Run(model, state["history"], keeper.stopped, keeper.diverged)


def _xla_pays(model: SequenceModel, data: Any, epochs: int, batch_size: int, batch_steps: int | None) -> bool:
    """Whether all epochs are done sooner with XLA."""
    if isinstance(data, Shards) or len(set(data.lengths)) > 1:
        return False
    num_shapes = len({len(rows) for rows in epoch_batches(data.lengths, batch_size, batch_steps=batch_steps)})
    return _xla_may(model) and model.xla_pays(epochs * len(data), int(data.lengths[0]), num_shapes)


def _xla_may(model: SequenceModel) -> bool:
    """Whether training is where XLA was measured: one replica, on CPUs."""
    return model.distribute_strategy.num_replicas_in_sync == 1 and not tf.config.list_physical_devices("GPU")


@contextlib.contextmanager
def _steps_by_xla(model: SequenceModel, wanted: bool) -> Iterator[None]:
    """Inside, training steps are compiled with XLA, and nothing else of the model: it validates and infers as before."""
    if not wanted:
        yield
        return
    model.make_test_function(force=True)
    model.jit_compile = True
    try:
        yield
    finally:
        model.jit_compile, model.train_function = False, None


def _prepared(model: SequenceModel, data: Sequences | Shards) -> Any:
    """A data set as the model reads it."""
    return data.prepared(model.prepare) if isinstance(data, Shards) else model.prepare(data)


def _of_batch(model: SequenceModel, batch: Batch, epoch: int, number: int) -> str:
    """What happened in a training step on a batch, both counted from 0."""
    return f"the loss or a gradient is not finite at batch {number + 1} of epoch {epoch + 1}: {_suspects(model, batch)}"


def _suspects(model: SequenceModel, batch: Batch) -> str:
    """What is not finite in a training step on a batch, found by making it again piece by piece; gradients, of one replica."""
    batch = model.complete(batch, model.step.value)
    rows = batch["row"].numpy()
    with tf.GradientTape() as tape:
        terms = model.terms(batch, training=True)
        loss, _ = model._loss(terms)
    found = []
    for name in ("log_lik", "kl"):
        bad = ~np.isfinite(terms.per_sequence(getattr(terms, name)))
        if bad.any():
            found.append(f"{name} of {_listed(rows[bad])}")
    if terms.objective is not None and not np.isfinite(terms.objective).all():
        found.append("the objective")
    if model.method == "gradient" and model.distribute_strategy.num_replicas_in_sync == 1:
        gradients = zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True)
        bad = [w.path for w, g in gradients if g is not None and not np.isfinite(tf.convert_to_tensor(g)).all()]
        if bad:
            found.append(f"the gradient of {_listed(bad)}")
    return f"{'; '.join(found) or 'computed again it is'} (the batch has the sequences {_listed(rows)})"


def _listed(items: Sequence[Any], most: int = 10) -> str:
    """The first of them, and how many there are."""
    shown = ", ".join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown}, ... ({len(items)} in all)"


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
    with warnings.catch_warnings(), _damage_is_named(file):
        warnings.filterwarnings("error", "Skipping variable loading for optimizer")  # of which the file has none, or other ones
        model = load(file)
        with zipfile.ZipFile(file) as archive:
            has_state = _STATE in archive.namelist()
            state = json.loads(archive.read(_STATE)) if has_state else {}
    if not has_state:
        raise ValueError(f"{file} is a model and no checkpoint (it has no {_STATE}); it cannot be resumed.")
    if "run" not in state:
        raise ValueError(
            f"{file} is a checkpoint of an earlier version, which does not say what its run was; it cannot be resumed."
        )
    return model, state


@contextlib.contextmanager
def _damage_is_named(file: Path) -> Iterator[None]:
    """Whatever the block, which reads a checkpoint, raises is a ValueError that says what to do."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # Keras and the ZIP format raise whatever their parts raise; every part has a checksum
        best = file.parents[1] / "model.keras"
        rest = f" {best}, the best weights so far, is another file, and may be whole." if best.is_file() else ""
        raise ValueError(
            f"{file} is no readable checkpoint ({str(error)[:600]}) and cannot be resumed. Put a copy in its place, or start "
            f"anew with another `out`.{rest}"
        ) from error


def _carry_on(file: Path, model: SequenceModel) -> None:
    """What was carried from batch to batch when a checkpoint was made."""
    variables = _carried(model)
    with _damage_is_named(file), zipfile.ZipFile(file) as archive:
        kept = [name for name in archive.namelist() if name.startswith(f"{_CARRIED}/")]
        if len(kept) != len(variables):
            raise ValueError(f"it has the state of {len(kept)} variables, for {len(variables)}: was it of as many replicas?")
        for i, variable in enumerate(variables):
            variable.assign(tf.io.parse_tensor(archive.read(f"{_CARRIED}/{i}"), variable.dtype))


def _without_name(model: SequenceModel) -> dict[str, Any]:
    """The configuration of a model; its name is only a label. Through JSON, as a checkpoint holds it."""
    return json.loads(json.dumps({name: value for name, value in model.get_config().items() if name != "name"}))


def may_change(schedule: str) -> set[str]:
    """Settings of `train` that a resumed run may set anew; the cosine schedule spans all epochs of a run."""
    free = {"max_minutes", "validate_every", "patience", "checkpoint_minutes", "progress", "resume", "tensorboard"}
    return free | ({"epochs"} if schedule == "constant" else set())


def _check_same_run(folder: Path, run: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises where a resumed run would not be the run that was begun."""

    def flat(run: Mapping[str, Any]) -> dict[str, Any]:
        return {**run, **{f"model.{name}": value for name, value in run["hyperparameters"].items()}, "hyperparameters": None}

    before, after, free = flat(run), flat(wanted), may_change(run["schedule"])
    free |= {"validation", "jit_compile"} - set(before)  # of an earlier version
    for name in dict.fromkeys((*after, *before)):
        if name not in free and before.get(name) != after.get(name):
            raise ValueError(
                f"`resume` goes on with the run in {folder}, whose model, data and settings cannot change: `{name}` was "
                f"{before.get(name)!r}, received {after.get(name)!r}."
            )


@contextlib.contextmanager
def _saying_what_is_saved(folder: Path | None) -> Iterator[None]:
    """Where the user interrupts the block, or a file cannot be written, what is saved, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None:
            print(f"Interrupted. {_what_is_saved(folder)}", file=sys.stderr)
        raise
    except OSError as error:
        place = "" if error.filename is None else f": {error.filename}"
        raise OSError(error.errno, f"{error.strerror or error}{place}. {_what_is_saved(folder)}") from error


def _what_is_saved(folder: Path | None) -> str:
    if folder is None:
        return "Nothing was saved: `out` is None."
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
    folder: Path,
    model: SequenceModel,
    data: Sequences | Shards,
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    stopped: str,
) -> None:
    """`card.json`: what was trained, on which data, how, and how well."""
    best = next((row for row in state["history"] if row["epoch"] == state["best_epoch"]), (state["history"] or [{}])[-1])
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
    """The model of a run folder (its best weights) or of a `.keras` file, of whatever class.

    Keras's own `load_model` reads these `.keras` files too, once the model's class was imported: `from tfseq import
    LanguageModel`. `import tfseq` alone imports no class.

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
            f"{file} cannot be read as a model ({type(error).__name__}: {str(error)[:400]}). "
            "The file is damaged, or of another version."
        ) from error
    if not isinstance(model, (SequenceModel, NetworkClassifier)):
        raise ValueError(f"{file} holds a Keras model of another library ({type(model).__name__}), not one of tfseq.")
    return model
