#!/usr/bin/env python
"""Kills training with `kill -9`, resumes it, and compares what it ends with, bit for bit, with a run that nobody killed.

    python scripts/kill_test.py [--models dmm,rbm,lm,hmm,hmm-online] [--kills 20] [--seed 0] [--folder DIR]

Each model trains and is exported once in peace, then again in processes that are killed: at any moment, while a checkpoint or the
best weights are being written (a temporary file appears), and while the model is exported. After every kill the files that are
there must be whole. In the end weights, state of the optimiser, history, and the exported weights must be those of the run in
peace, and no temporary file may be left. Prints a row a model; exit code 1 where one differs.

The processes are forks of one that has imported TensorFlow and used nothing of it: so it needs Linux, or another Unix, and about
two minutes a model on one core.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

# What a child does ----------------------------------------------------------------------------------------------------


def ragged(num: int, size: int, seed: int) -> Any:
    """Binary sequences of 3 to 12 steps, turned around at random in training."""
    import tfseq

    rng = np.random.default_rng(seed)
    x = [(rng.random((n, size)) < 0.4).astype(np.float32) for n in rng.integers(3, 13, num)]
    return tfseq.Sequences(x, name="made-up", augmentation=lambda a, rng: a[::-1].copy() if rng.random() < 0.5 else a)


def letters(num: int, seed: int) -> Any:
    """One text of random letters."""
    import tfseq

    return tfseq.Sequences(["".join(np.random.default_rng(seed).choice(list("abcde "), num))], name="letters")


def case(name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(model, training data, validation data, settings of `train`); epochs that end inside passes where the method allows it."""
    import keras

    import tfseq

    keras.utils.set_random_seed(0)
    train, valid, common = ragged(60, 6, 1), ragged(12, 6, 2), {"batch_size": 8, "checkpoint_minutes": 0.0, "progress": False}
    if name == "dmm":
        model = tfseq.DeepMarkovModel.from_data(train, latent_dim=4, rnn_units=8, transition_dim=8, emission_dim=8, dropout=0.1)
        return model, train, valid, {**common, "epochs": 30, "steps_per_epoch": 5, "average": 0.9, "augmented_epochs": 7}
    if name == "rbm":
        model = tfseq.RBM.from_data(train, num_hidden=8, sampler="pcd", num_chains=20)
        return model, train, valid, {**common, "epochs": 30, "steps_per_epoch": 5, "optimizer": "sgd", "momentum": 0.5}
    if name == "lm":
        texts = letters(4000, 1), letters(400, 2)
        model = tfseq.LanguageModel.from_data(texts[0], embedding_dim=8, units=[16], window=20, dropout=0.2, weight_drop=0.2)
        return model, *texts, {**common, "epochs": 30, "steps_per_epoch": 7, "average": 0.9, "monitors": True}
    if name in ("hmm", "hmm-online"):
        model = tfseq.HiddenMarkovModel.from_data(train, num_states=6)
        more = {"step_size": 0.7, "steps_per_epoch": 5} if name == "hmm-online" else {}
        return model, train, valid if more else None, {**common, "epochs": 30, "method": "em", **more}
    raise SystemExit(f"There is no case {name!r}.")


def child(name: str, folder: Path, say: Callable[[str], Any]) -> None:
    """Trains, or goes on where a killed one stopped, and exports."""
    import tfseq
    from tfseq.training import file_of_checkpoint

    model, train, valid, settings = case(name)
    run = tfseq.train(model, train, valid, out=folder, resume=file_of_checkpoint(folder).exists(), **settings)
    say("trained")
    tfseq.export(run.model, folder / "served", num_samples=2, num_particles=4, verify="reload")


# Killing --------------------------------------------------------------------------------------------------------------


class Life:
    """A child process, what it said when (seconds), and its end."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder, self.started, self.said = folder, time.monotonic(), dict[str, float]()
        self.code: int | None = None
        self.output, its = os.pipe()
        os.set_blocking(self.output, False)
        self.process = os.fork()
        if self.process == 0:
            self._live(name, folder, its)
        os.close(its)

    @staticmethod
    def _live(name: str, folder: Path, output: int) -> None:
        """All that the child does."""
        code = 1
        try:
            log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            child(name, folder, lambda word: os.write(output, f"{word} ".encode()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)  # nothing of the parent's

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started

    def goes_on(self) -> bool:
        """Whether it lives; waits half a millisecond."""
        time.sleep(0.0005)
        with contextlib.suppress(BlockingIOError):  # it said nothing
            self.said |= dict.fromkeys(os.read(self.output, 99).decode().split(), self.age)
        if self.code is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is None

    def until(self, happened: Callable[[], bool]) -> bool:
        """Waits until something happened; False where the process ended before."""
        while self.goes_on():
            if happened():
                return True
        return False

    def temporary_files(self, *places: str) -> set[str]:
        """Names of temporary files, such as `.last` or `served/.`."""
        return {str(p) for place in places for p in self.folder.glob(f"{place}*")}

    def end(self) -> int:
        """Kills the process where it lives; its exit code."""
        if self.code is None:
            os.kill(self.process, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.output)
        return self.code


PLACES = {"checkpoint": "checkpoints/.last-", "best weights": ".model-", "export": "served/."}


def kill(life: Life, kind: str, spans: dict[str, float], kills: int, rng: random.Random) -> bool:
    """Waits for a moment of a kind and kills the process then; whether it came before the end."""
    if kind == "any":
        moment = rng.uniform(0.0, spans["first epoch"] + 3.0 * spans["training"] / kills)
        came = life.until(lambda: life.age >= moment)
    else:
        before = life.temporary_files(PLACES[kind])  # of other lives
        came = life.until(lambda: bool(life.temporary_files(PLACES[kind]) - before))
        moment = life.age + rng.uniform(0.0, spans["export"] if kind == "export" else 0.03)
        came = came and life.until(lambda: life.age >= moment)
    life.end()
    return came


def kinds_of(kills: int, rng: random.Random) -> list[str]:
    """When to kill: those in an export come last, since none happens before."""
    exports = max(1, kills // 7)
    kinds = [*["checkpoint"] * (kills // 5), *["best weights"] * (kills // 7)][: kills - exports]
    kinds += ["any"] * (kills - exports - len(kinds))
    rng.shuffle(kinds)
    return [*kinds, *["export"] * exports]


def in_peace(name: str, folder: Path) -> dict[str, float]:
    """A run that nobody kills; how long its parts take."""
    life = Life(name, folder)
    life.until(lambda: (folder / "history.csv").exists())
    first = life.age
    life.until(lambda: False)
    if code := life.end():
        raise SystemExit(f"The run of {name} failed (exit code {code}): {folder}.log")
    trained = life.said["trained"]
    return {"first epoch": first, "training": trained - first, "export": life.age - trained}


def check_whole(folder: Path, reference: Path) -> Iterator[str]:
    """What is half written in the folder of a killed run."""
    for file in folder.rglob("[!.]*.keras"):
        try:
            bad = zipfile.ZipFile(file).testzip()
        except (zipfile.BadZipFile, OSError) as error:
            bad = str(error)
        if bad:
            yield f"{file}: {bad}"
    for version in folder.glob("served/[0-9]*"):
        names = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (version, reference / "served" / "1")]
        if names[0] != names[1]:
            yield f"{version}: {sorted(names[0] ^ names[1])}"


def arrays(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """All arrays of a `.keras` file, of the model and of the optimiser."""
    import h5py

    found: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
        weights.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def contents(folder: Path) -> dict[str, Any]:
    """All that two equal runs have in common: name -> array or value."""
    from tensorflow.python.training import checkpoint_utils  # it only reads: no operation of TensorFlow runs

    found: dict[str, Any] = {"files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())}
    for file in (folder / "model.keras", folder / "checkpoints" / "last.keras"):
        with zipfile.ZipFile(file) as archive:
            found |= {f"{file.name}: {name}": value for name, value in arrays(archive).items()}
            found |= {f"{file.name}: {n}": archive.read(n) for n in archive.namelist() if n.startswith("carried/")}
            if "training.json" in archive.namelist():
                state = json.loads(archive.read("training.json"))
                found |= {f"epoch {row['epoch']}": {**row, "seconds": 0} for row in state["history"]}
                found["state"] = {name: state[name] for name in ("epoch", "best", "best_epoch", "run")}
    with (folder / "history.csv").open(newline="") as rows:
        found["history.csv"] = [{**row, "seconds": ""} for row in csv.DictReader(rows)]
    card = json.loads((folder / "card.json").read_text())
    found["card"] = {name: card[name] for name in ("stopped", "epochs_done", "parameters", "data", "training")}
    found["card"]["training"].pop("resume", None)
    found["state"]["run"].pop("resume", None)
    for version in folder.glob("served/*/variables"):
        reader = checkpoint_utils.load_checkpoint(str(version / "variables"))
        names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}  # which has numbered names of layers
        found["served"] = sorted(reader.get_tensor(name).tobytes() for name in names)  # in no order
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what is not the same, bit for bit."""
    return [n for n in sorted({*a, *b}) if n not in a or n not in b or not np.array_equal(np.asarray(a[n]), np.asarray(b[n]))]


def test(name: str, kills: int, seed: int, folder: Path) -> bool:
    """Prints a row; whether nothing differed."""
    begin, rng = time.monotonic(), random.Random(f"{seed} {name}")
    folder.mkdir(parents=True)
    spans = in_peace(name, folder / "whole")
    wanted, kinds = contents(folder / "whole"), kinds_of(kills, rng)
    done: collections.Counter[str] = collections.Counter()
    wrong, round_number, bytes_compared = [], 0, 0
    while kinds:  # a run that ended before its last kill is compared, and another one gets the rest
        round_number += 1
        run = folder / f"killed-{round_number}"
        ended = False
        while kinds and not ended:
            life = Life(name, run)
            if kill(life, kinds[0], spans, kills, rng):
                done[kinds.pop(0)] += 1
            elif life.code:
                wrong.append(f"exit code {life.code}, see {run}.log")
                break
            else:
                ended = (run / "card.json").exists() and any(run.glob("served/[0-9]*"))
            wrong += check_whole(run, folder / "whole")
        if wrong:
            break
        if not ended:
            last = Life(name, run)
            last.until(lambda: False)
            if code := last.end():
                wrong.append(f"exit code {code}, see {run}.log")
                break
        found = contents(run)
        bytes_compared = sum(np.asarray(v).nbytes for v in found.values())
        wrong += differences(found, wanted)
    moments = ", ".join(f"{number} {kind}" for kind, number in done.items())
    result = f"identical ({len(wanted)} items, {bytes_compared} bytes)" if not wrong else f"DIFFERENT: {'; '.join(wrong[:5])}"
    print(f"{name:12} {sum(done.values()):5} {round_number:5} {time.monotonic() - begin:8.0f}  {result}; {moments}", flush=True)
    return not wrong


def main() -> int:
    """Runs the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dmm,rbm,lm,hmm,hmm-online")
    parser.add_argument("--kills", type=int, default=20, help="of each model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="a new folder for the runs and logs of the children; else a temporary one")
    chosen = parser.parse_args()
    if chosen.kills < 1:
        parser.error("--kills must be at least 1")
    import sklearn.cluster  # noqa: F401  all that children need, once

    import tfseq.exporting.saved_model
    import tfseq.models

    for name in tfseq.models.MODELS:
        tfseq.models.MODELS[name]
    print(f"{'model':12} {'kills':>5} {'runs':>5} {'seconds':>8}  result; moments", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        passed = [test(name, chosen.kills, chosen.seed, folder / name) for name in chosen.models.split(",")]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
