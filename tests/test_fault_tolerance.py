"""Training that is killed, runs out of disk, meets NaN or finds its files damaged; `scripts/kill_test.py` is the long form."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq import cli, files, training
from tfseq.checks import NotFiniteError
from tfseq.data.batching import Sequences, num_batches, num_windows, stream, windows
from tfseq.models.base import Terms
from tfseq.models.rbm import RBM
from tfseq.models.vae import VariationalAutoencoder
from tfseq.workers import DIVERGED

eagerly = pytest.mark.usefixtures("eager")
pytestmark = pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data

RNG = np.random.default_rng(0)
DATA = Sequences(
    [(RNG.random((n, 3)) < 0.4).astype(np.float32) for n in (4, 2, 3, 1, 5, 2, 1, 3, 2)],
    name="toy",
    split="train",
    augmentation=lambda x, rng: x[::-1].copy() if rng.random() < 0.5 else x,
)
TEXT = Sequences([np.array(list("abbaabaaba"))], name="letters")
A_PASS = 5  # batches


def train(out: Path | None = None, **settings: Any) -> training.Run:
    """A run of a tiny machine with persistent chains, validated, averaged and augmented; passes end inside its epochs."""
    keras.utils.set_random_seed(0)
    given = {
        "batch_size": 2, "epochs": 2, "steps_per_epoch": 3, "average": 0.5, "augmented_epochs": 1, "kl_warmup": 5,
        "checkpoint_minutes": 0.0, "progress": False, "data": DATA, "validation": DATA.take([0, 1]),
        "make": lambda: RBM.tiny(num_visible=3, num_hidden=2, num_chains=4), **settings,
    }  # fmt: skip
    model = given.pop("make")()
    return tfseq.train(model, given.pop("data"), given.pop("validation"), out=out, **given)


def arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.keras` file, weights and optimiser."""
    import h5py

    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as inner, h5py.File(inner) as weights:
        weights.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def assert_same_run(a: Path, b: Path) -> None:
    """Two run folders hold the same, but for times; and nothing else."""
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (a, b)]
    assert names[0] == names[1] == ["card.json", "checkpoints/last.keras", "history.csv", "model.keras"]
    for name in ("checkpoints/last.keras", "model.keras"):
        one, other = arrays(a / name), arrays(b / name)
        assert set(one) == set(other) and any("optimizer" in key for key in one)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=f"{name}: {key}")
    histories = [json.loads(zipfile.ZipFile(f / "checkpoints" / "last.keras").read("training.json"))["history"] for f in (a, b)]
    assert [{**row, "seconds": 0} for row in histories[0]] == [{**row, "seconds": 0} for row in histories[1]]
    cards = [json.loads((f / "card.json").read_text()) for f in (a, b)]
    assert cards[0]["stopped"] == cards[1]["stopped"] and cards[0]["epochs_done"] == cards[1]["epochs_done"]


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ragged", "steps", "block", "windows"])
def test_skipping_batches_leaves_out_exactly_these(kind: str) -> None:
    block = Sequences(np.arange(10, dtype=np.float32).reshape(5, 2, 1))
    size = {"ragged": A_PASS, "steps": num_batches(DATA, 2, batch_steps=6), "block": 3, "windows": num_windows(TEXT, 2, 2)}[kind]

    def batches(**order: Any) -> Iterator[dict[str, np.ndarray]]:
        if kind == "windows":
            return windows(TEXT, 2, 2, **order).as_numpy_iterator()
        options = (
            {"batch_steps": 6} if kind == "steps" else {"augmented_epochs": 1} if kind == "ragged" and "seed" in order else {}
        )
        return stream(block if kind == "block" else DATA, 2, **options, **order).as_numpy_iterator()

    whole = list(itertools.islice(batches(seed=3), 2 * size))
    for skip in (1, size - 1):
        parts = itertools.islice(batches(seed=3, skip=skip), 2 * size - skip)
        for a, b in zip(parts, whole[skip:], strict=True):
            assert set(a) == set(b)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
    assert len(list(batches(skip=1))) == size - 1
    with pytest.raises(ValueError, match=f"`skip` must leave a batch of the {size} of an epoch; received {size}"):
        batches(seed=3, skip=size)


# Resuming -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What nothing catches."""


@eagerly
def test_a_run_killed_again_and_again_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at a batch, before and after a file was written, and before and after it took its place."""
    train(tmp_path / "whole")
    moments, left = [], [0]

    def moment(name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            moments.append(name)
            raise Killed

    step, replace = RBM.train_step, os.replace

    def killed_step(model: RBM, batch: Any) -> Any:
        moment("batch")
        return step(model, batch)

    def killed_replace(source: Any, target: Any) -> None:
        if tmp_path not in Path(target).parents:
            return replace(source, target)
        moment(f"before {Path(target).name}")
        replace(source, target)
        moment(f"after {Path(target).name}")

    monkeypatch.setattr(RBM, "train_step", killed_step)
    monkeypatch.setattr(os, "replace", killed_replace)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # who is killed cleans nothing up
    for life in (1, 5, 7, 9, 6):
        left[0] = life
        with pytest.raises(Killed):
            train(tmp_path / "parts", resume=(tmp_path / "parts" / "checkpoints" / "last.keras").exists())
        for file in (tmp_path / "parts").rglob("[!.]*.keras"):
            assert zipfile.ZipFile(file).testzip() is None
    assert len({m.split()[0] for m in moments}) == 3 and len(set(moments)) == 4
    monkeypatch.undo()
    assert any(p.name.startswith(".") for p in (tmp_path / "parts").rglob("*"))
    train(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


_CHILD = """
import sys
from pathlib import Path
import tensorflow as tf
from tests import conftest, test_fault_tolerance
tf.config.run_functions_eagerly(True)
test_fault_tolerance.train(Path(sys.argv[1]), epochs=int(sys.argv[2]), schedule="constant")
"""


@eagerly
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_process_killed_with_kill_9_is_resumed(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _CHILD, tmp_path / "parts", "1000000"], cwd=root)
    try:
        while not (tmp_path / "parts" / "history.csv").exists():
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    epochs = 1 + training._last_checkpoint(tmp_path / "parts")[1]["epoch"]
    train(tmp_path / "parts", epochs=epochs, schedule="constant", resume=True)
    train(tmp_path / "whole", epochs=epochs, schedule="constant")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@eagerly
def test_a_text_is_resumed_inside_a_pass_and_validation_does_not_disturb_it(tmp_path: Path) -> None:
    """Three windows a pass, two batches an epoch: the state has to outlast what validation reads, and the process."""

    def run(out: Path | None = None, **more: Any) -> training.Run:
        def model() -> Any:
            return tfseq.LanguageModel.tiny(window=2, cell="rnn", units=[3], dropout=0.0)

        settings = {"data": TEXT, "validation": TEXT, "augmented_epochs": 0, "epochs": 3, "steps_per_epoch": 2, **more}
        return train(out, make=model, **settings)

    run(tmp_path, max_minutes=1e-9)  # no time: stops after an epoch
    run(tmp_path, resume=True)
    passes = run(epochs=2, steps_per_epoch=None, validation=None)
    model, _ = training._last_checkpoint(tmp_path)
    with training.averaged_weights(model):
        for a, b in zip(model.get_weights(), passes.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@eagerly
def test_a_run_out_of_patience_stays_so_and_other_validation_data_is_another_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "out": tmp_path,
        "epochs": 9,
        "steps_per_epoch": 1,
        "patience": 1,
        "learning_rate": 1e-9,
        "schedule": "constant",
    }
    run = train(**settings)
    assert len(run.history) < 9 and "1 epochs" in run.stopped and not run.diverged
    (tmp_path / "card.json").unlink()  # killed between the last checkpoint and the card
    again = train(**settings, resume=True)
    assert again.history == run.history and again.stopped == run.stopped and (tmp_path / "card.json").exists()
    with pytest.raises(ValueError, match="`validation` was"):
        train(**settings, resume=True, validation=DATA.take([0]))


@eagerly
def test_em_updates_by_passes_or_by_batches(tmp_path: Path) -> None:
    def model() -> Any:
        return tfseq.HiddenMarkovModel.tiny(observation_dim=3)

    with pytest.raises(ValueError, match="`steps_per_epoch` must be left out with method='em', which updates after a whole pass"):
        train(make=model, method="em", average=0.0)
    # the update of the last pass comes after the last checkpoint
    settings = {"method": "em", "validation": None, "steps_per_epoch": None, "epochs": 1, "out": tmp_path}
    whole = train(make=model, **settings)
    for file in ("model.keras", "card.json"):
        (tmp_path / file).unlink()
    parts = train(make=model, **settings, resume=True)
    # statistics of batches go on over the ends of epochs, wherever these are
    settings |= {"step_size": 0.7, "out": None}
    once = train(make=model, **settings)
    often = train(make=model, **{**settings, "steps_per_epoch": 1, "epochs": A_PASS})
    for a, b in ((whole, parts), (once, often)):
        for weight, other in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, other)
    assert float(often.model.num_updates) == A_PASS


# NaN ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def op_by_op(eager: bool) -> Iterator[None]:
    """Graph functions as the fixture `eager` has them, or not, inside the block."""
    tf.config.run_functions_eagerly(eager)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@keras.saving.register_keras_serializable("tests")
class Spoilt(VariationalAutoencoder):
    """Its loss, or where `only_gradient` the gradient alone, is NaN from step 4 on in batches with sequence 3."""

    only_gradient = False

    def terms(self, batch: dict[str, Any], training: bool = False) -> Terms:
        found = super().terms(batch, training)
        bad = (batch["row"] == 3) & (self.step.value >= 4) & training
        if self.only_gradient:
            nothing = tf.sqrt(0.0 * tf.reduce_sum(self.head.kernel))  # whose gradient is 0 times infinity
            return found._replace(log_lik=found.log_lik + tf.where(bad, nothing, 0.0)[:, None])
        return found._replace(log_lik=tf.where(bad[:, None], np.nan, found.log_lik))


def first_bad_batch(seed: int = 0) -> tuple[int, list[int]]:
    """Number of the first batch of `train` that is bad, from 0 on, and its rows."""
    for i, batch in enumerate(stream(DATA, 2, seed=seed)):
        if i >= 4 and 3 in batch["row"]:
            return i, batch["row"].numpy().tolist()
    raise AssertionError


ALIKE: dict[str, Any] = {"schedule": "constant", "average": 0.0, "augmented_epochs": 0, "validation": None}


@pytest.fixture(scope="module")
def weights_before() -> list[np.ndarray]:
    """Those of a sound model after the batches before the bad one."""
    with op_by_op(True):
        run = train(make=VariationalAutoencoder.tiny, epochs=first_bad_batch()[0], steps_per_epoch=1, **ALIKE)
    return run.model.get_weights()


@pytest.mark.parametrize("only_gradient", [False, True])
def test_training_stops_at_the_first_bad_batch_with_the_weights_before_it(
    only_gradient: bool,
    weights_before: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Spoilt, "only_gradient", only_gradient)
    number, rows = first_bad_batch()
    with op_by_op(only_gradient):  # and in a graph
        run = train(tmp_path / "run", make=Spoilt.tiny, epochs=9, **ALIKE)
    where = f"at batch {number % 3 + 1} of epoch {number // 3 + 1}: "
    what = "the gradient of head/kernel (" if only_gradient else "log_lik of 3 ("
    assert run.diverged and where + what in run.stopped and f"the batch has the sequences {rows[0]}, {rows[1]})" in run.stopped
    assert run.stopped in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "card.json").read_text())["stopped"] == run.stopped
    assert len(run.history) == number // 3
    for a, b in zip(run.model.get_weights(), weights_before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # of a graph


@eagerly
def test_the_best_weights_are_kept_and_a_first_epoch_that_fails_is_an_error(tmp_path: Path) -> None:
    number, _ = first_bad_batch()
    settings: dict[str, Any] = {"augmented_epochs": 0, "epochs": 9, "schedule": "constant"}
    run = train(tmp_path / "run", make=Spoilt.tiny, **settings)
    best = min(run.history, key=lambda row: row["val_nats_per_step"])
    assert int(run.model.step) == 3 * best["epoch"] <= number
    with pytest.raises(
        ValueError, match=r"in its first epoch: the loss or a gradient is not finite at batch .*Saved: .*model.keras"
    ):
        train(tmp_path / "first", make=Spoilt.tiny, **{**settings, "steps_per_epoch": 100})
    assert int(tfseq.load(tmp_path / "first").step) == number


@eagerly
def test_the_command_says_by_its_exit_code_that_training_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = VariationalAutoencoder.terms

    def spoilt(self: Any, batch: dict[str, Any], training: bool = False) -> Terms:
        found = terms(self, batch, training)
        return found._replace(log_lik=tf.where((self.step.value >= 4) & training, np.nan, found.log_lik))

    monkeypatch.setattr(VariationalAutoencoder, "terms", spoilt)
    np.savez(tmp_path / "data.npz", x=np.eye(3, dtype=np.float32)[:, None])
    out, sizes = tmp_path / "run", ("--model.latent_dim=2", "--model.hidden_dim=2", "--batch_size=1", "--checkpoint_minutes=0")
    for command in (["vae", "--data", str(tmp_path / "data.npz"), "--no-progress", *sizes], ["--resume"]):
        assert cli.main(["train", *command, "--out", str(out)]) == DIVERGED == 3
        said = capsys.readouterr()
        assert "(epoch 1; the loss or a gradient is not finite at batch 2 of epoch 2" in said.out and f"run: {out}" in said.out
        assert "Stopped: the loss or a gradient is not finite" in said.err
    assert int(tfseq.load(out).step) == 4


@pytest.mark.parametrize("replicas", [1, 2])
def test_plain_fit_says_which_step_and_leaves_the_weights_before_it(
    replicas: int, strategy: tf.distribute.Strategy, request: pytest.FixtureRequest
) -> None:
    tf.config.run_functions_eagerly(replicas == 1)
    request.addfinalizer(lambda: tf.config.run_functions_eagerly(False))
    with strategy.scope() if replicas == 2 else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        model = Spoilt.tiny()
        model.compile(keras.optimizers.Adam(0.01, global_clipnorm=1.0))
    model.step.assign(3)
    data = stream(DATA, 9, seed=0)  # two replicas see one half each, one of them the bad sequence
    model.fit(data, steps_per_epoch=1, verbose=0)
    before = model.get_weights()
    with pytest.raises(
        NotFiniteError, match=r"The loss or a gradient is not finite in training step 4, on the sequences \(`row`\) \d"
    ):
        model.fit(data, steps_per_epoch=1, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.step.assign(0)
    model.fit(data, steps_per_epoch=1, verbose=0)  # and it can go on


@eagerly
def test_em_stops_before_it_learns_from_a_bad_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, expectation = tfseq.HiddenMarkovModel.tiny(observation_dim=3), tfseq.HiddenMarkovModel.expectation
    monkeypatch.setattr(tfseq.HiddenMarkovModel, "expectation", lambda *a: (lambda p, s: (p + np.nan, s))(*expectation(*a)))
    before = model.get_weights()
    model.compile(method="em")
    with pytest.raises(NotFiniteError, match="in training step 0"):
        model.fit(stream(DATA, 2), verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


# Disks and files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@eagerly
def test_a_full_disk_keeps_what_was_saved_and_says_how_to_go_on(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ballast, write = small_disk / "run", small_disk / "ballast", training.write_history

    def then_full(path: Path, history: list[dict[str, float]]) -> None:
        write(path, history)
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(512)):
                pass

    monkeypatch.setattr(training, "write_history", then_full)
    wanted = r"could not be written \(No space left on device\).*Saved: .*model.keras, .*last.keras. Go on with --resume"
    with pytest.raises(OSError, match=wanted):
        train(run)
    assert sorted(p.name for p in run.rglob("*") if p.is_file()) == ["history.csv", "last.keras", "model.keras"]
    assert training._last_checkpoint(run)[1]["epoch"] == 1
    with pytest.raises(OSError, match=r"logs could not be written \(No space left on device\).*Saved: .*last.keras"):
        train(run, resume=True, tensorboard=True)
    ballast.unlink()
    monkeypatch.undo()
    assert len(train(run, resume=True).history) == 2


@eagerly
def test_every_damage_to_a_checkpoint_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, epochs=1)
    file = tmp_path / "checkpoints" / "last.keras"
    whole, rng = file.read_bytes(), np.random.default_rng(1)

    def damaged(content: bytes) -> str:
        file.write_bytes(content)
        try:
            training._last_checkpoint(tmp_path)
        except ValueError as error:
            return str(error)
        for key, value in wanted.items():  # a byte that says nothing, such as one of a date
            np.testing.assert_array_equal(arrays(file)[key], value)
        return ""

    wanted = arrays(file)
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        assert f"{file} is no readable checkpoint" in damaged(whole[:size])
    found = []
    for place in rng.integers(len(whole), size=8):
        found.append(damaged(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :]))
    assert sum("model.keras, the best weights so far, is another file" in message for message in found) > 5
    monkeypatch.setattr(keras.optimizers.Optimizer, "save_own_variables", lambda *_: None)
    tfseq.load(tmp_path).save(file)
    assert "Skipping variable loading for optimizer" in damaged(file.read_bytes())


def test_temporary_files_of_killed_writers_are_told_from_others(tmp_path: Path) -> None:
    kept = [".a-0123abcd.json", ".a-0123abc.txt", "a-0123abcd.txt", ".aa-0123abcd.txt", "a.txt"]
    for name in (*kept, ".a-0123abcd.txt"):
        (tmp_path / name).write_text("x")
    files.remove_left_behind(tmp_path / "a.txt")
    files.remove_left_behind(tmp_path / "none" / "a.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a whole number"),
    ({"checkpoint_minutes": -1.0}, "`checkpoint_minutes` must"),
    ({"checkpoint_minutes": float("nan")}, "`checkpoint_minutes` must"),
])  # fmt: skip
def test_a_bad_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(**settings)


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with files.locked(tmp_path) as free:
        if free is None:
            pytest.skip("no locks of files here")
        with pytest.raises(ValueError, match="`out` must be a folder that no other run writes to now"):
            train(tmp_path)
    assert not any(tmp_path.iterdir())
    with files.locked(tmp_path) as free:
        assert free  # the lock ended


def test_a_run_that_never_began_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        train(tmp_path / "new", batch_size=0)
    assert not (tmp_path / "new").exists()


def test_plain_fit_goes_on_after_keras_backup_and_restore(tmp_path: Path) -> None:
    class Interrupted(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    def run(*callbacks: keras.callbacks.Callback) -> tfseq.SequenceTagger:
        keras.utils.set_random_seed(0)
        model = tfseq.SequenceTagger.tiny(vocabulary=["a", "b"], dropout=0.5)
        model.compile(keras.optimizers.Adam(0.05, global_clipnorm=1.0))
        batch = model.as_batch({"x": np.array([[1, 2, 1], [2, 2, 1]]), "y": np.array([[0, 1, 0], [1, 1, 0]])})
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(tf.data.Dataset.from_tensors(batch), epochs=4, verbose=0, callbacks=[*callbacks])
        return model

    backup = functools.partial(keras.callbacks.BackupAndRestore, tmp_path / "backup", delete_checkpoint=False)
    whole, parted = run(), run(backup(), Interrupted())
    assert any((a != b).any() for a, b in zip(whole.get_weights(), parted.get_weights(), strict=True))
    for a, b in zip(whole.get_weights(), run(backup()).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
