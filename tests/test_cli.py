"""The command line, in this process; in one of its own where imports, file descriptors and pipes matter."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfseq import cli, plots, training
from tfseq.cli import main
from tfseq.data import Sequences
from tfseq.data.speech import frames, read_wav
from tfseq.files import locked
from tfseq.models.base import SequenceModel
from tfseq.models.classifier import SequenceClassifier
from tfseq.models.dmm import DeepMarkovModel
from tfseq.models.hmm import HiddenMarkovModel
from tfseq.models.language_model import LanguageModel
from tfseq.writers import write_samples

pytestmark = pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data

TINY = [f"--model.{size}" for size in ("latent_dim=2", "rnn_units=4", "emission-dim=4", "transition_dim=4")] + [
    "--schedule=constant"
]


def write_music(folder: Path) -> Path:
    """A folder of a few short MIDI files in three splits."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 3), ("valid", 2), ("test", 2)):
        for i in range(num):
            roll = np.zeros((5 + i, 88), np.float32)
            roll[np.arange(5 + i), rng.integers(30, 50, 5 + i)] = 1.0
            write_samples(folder / split / f"piece-{i}.mid", roll)
    return folder


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    """No graphs: tracing them takes most of the time of a run this small."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("music21", reason="data of the test are MIDI files: needs music21")
    return write_music(tmp_path_factory.mktemp("data") / "music")


@pytest.fixture(scope="module")
def trained(eager: None, music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, for tests that only read."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "dmm", "--data", str(music), "--out", str(out), "--epochs", "1", "--no-progress", *TINY]) == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`said(*arguments)` runs a command -> (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def in_a_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    root = str(Path(__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, timeout=300, **options)


# Help and tables ----------------------------------------------------------------------------------------------------


def test_help_tables_and_version_do_without_tensorflow():
    words = [["--help"], ["--version"], ["models"], ["datasets"], ["train", "--help"], ["sample", "--help"], ["trian"]]
    code = (
        f"import sys; from tfseq.cli import main; codes = [main(a) for a in {words}];"
        "print(codes, {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules))"
    )
    done = in_a_process("-c", code)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 2] set()", done.stderr
    for text in ("usage: tfseq COMMAND", "tfseq 0.", "Deep Markov model", "JSB Chorales"):
        assert text in done.stdout


def test_models_and_datasets_are_the_tables(said):
    for command, table in (("models", cli.MODELS), ("datasets", cli.DATASETS)):
        code, out, _ = said(command)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()] == list(table)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command(said, command):
    code, out, err = said(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: tfseq {command}")


def test_help_of_train_has_flags_types_defaults_and_texts_of_both_signatures(said):
    _, out, _ = said("train", "dmm", "--help")
    out = " ".join(out.split())
    assert "--learning_rate LEARNING_RATE rate at the start (type: float, default: 0.001)" in out
    assert "--schedule {constant,cosine}" in out
    assert "--model.rnn_units RNN_UNITS the guide's recurrent cell" in out and "(type: int, default: 600)" in out
    assert "observation_dim" not in out and "--model.mean" not in out  # from data


def test_texts_of_arguments_that_share_a_line():
    def documented() -> None:
        """Does.

        Args:
            a: first,
                over two lines.
            b, c: `second`.

        Returns:
            d: nothing.
        """

    assert cli.argument_texts(documented) == {"a": "first, over two lines", "b": "second", "c": "second"}


# Wrong usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "No command was given"),
        ("modles", "no command 'modles'. Did you mean 'models'?"),
        ("--versoin", "no flag '--versoin'. Did you mean '--version'?"),
        ("models --quick", "no flag --quick"),
        ("train", "The model comes first"),
        ("train --data jsb", "The model comes first"),
        ("train dnm --data jsb", "no model 'dnm'. Did you mean 'dmm'?"),
        ("train dmm", "Missing: --data"),
        ("train dmm --data jbs", "received 'jbs'. Did you mean 'jsb'?"),
        ("train dmm --data jsb --lerning-rate 3", "no flag --lerning-rate. Did you mean --learning_rate?"),
        ("train dmm --data jsb --latent_dim 3", "no flag --latent_dim. Did you mean --model.latent_dim?"),
        ("train dmm --data jsb --model.latent_dmi 3", "Did you mean --model.latent_dim?"),
        ("train dmm --data jsb --observation_dim 3", "no flag --observation_dim"),
        ("train dmm --data jsb --epochs many", "--epochs must be a whole number; received 'many'"),
        ("train dmm --data jsb --max-minutes long", "--max_minutes must be a number; received 'long'"),
        ("train dmm --data jsb --patience x", "--patience must be a whole number or null; received 'x'"),
        ("train dmm --data jsb --schedule cosin", "must be one of constant, cosine; received 'cosin'. Did you mean 'cosine'?"),
        ("train dmm --data jsb --progress perhaps", "--progress must be true or false"),
        (
            "train dmm --data jsb --preset krishna",
            "--preset must be one of krishnan, pyro; received 'krishna'. Did you mean 'krishnan'?",
        ),
        ("train dmm --data jsb --epochs", "expected one argument"),
        ("train dmm jsb --data jsb", "Unrecognized arguments: jsb"),
        ("train dmm --data jsb --resume", "--resume needs --out"),
        ("evaluate", "Missing: RUN"),
        ("evaluate run --split tset", "--split must be one of train, valid, test; received 'tset'. Did you mean 'test'?"),
        ("sample run --out song.mp3", "--out must end in one of"),
        ("export run", "Missing: --out"),
        ("predict", "Missing: RUN"),
        ("predict run jbs", "INPUT must be a data set, the path of a .csv or .npz file, or"),
        ("predict run jbs", "received 'jbs'. Did you mean 'jsb'?"),
        ("predict run earthquakes --out states.doc", "--out must end in .csv or .conll or"),
        ("predict run earthquakes --format xml", "--format must be one of conll, json; received 'xml'"),
        ("predict run - notes.pdf", "INPUT must be a data set, the path of a .csv or .npz file, or"),
        ("predict run earthquakes --plot states.csv", "--plot must end in .png or .svg or .pdf; received 'states.csv'"),
    ],
)
def test_wrong_usage_names_the_mistake_in_two_lines(said, arguments, message):
    code, out, err = said(*arguments.split())
    assert (code, out) == (2, "")
    usage, error = err.splitlines()
    assert usage.startswith("usage: tfseq ") and error.startswith("tfseq: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("model: {name: dmm}\nepohcs: 3\n", 2, "'epohcs', which does not exist. Did you mean 'epochs'?"),
        ("model: {name: dmm}\nepochs: many\n", 2, "--epochs must be a whole number; received 'many'"),
        ("model: {name: nosuch}\n", 2, "no model 'nosuch'"),
        ("model: {name: dmm}\npreset: pyro\n", 2, "only the flag --preset"),
        ("epochs: 3\n", 2, "The model comes first"),
        ("data: [jsb\n", 1, "no readable YAML"),
        ("jsb\n", 1, "must hold settings"),
        (None, 1, "no config file"),
    ],
)
def test_wrong_config_files(said, tmp_path, text, code, message):
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    got, _, err = said("train", "--data", "jsb", "--config", file)
    assert got == code
    assert message in err and "Traceback" not in err


# Training -----------------------------------------------------------------------------------------------------------


def test_train_writes_a_run(trained):
    assert {"model.keras", "config.yaml", "card.json", "history.csv"} <= {f.name for f in trained.iterdir()}
    config = cli.read_config(trained / "config.yaml")
    assert config["model"]["name"] == "dmm" and config["model"]["latent_dim"] == 2 and config["model"]["emission_dim"] == 4
    assert (
        config["epochs"] == 1 and config["patience"] is None and config["progress"] is False and config["learning_rate"] == 1e-3
    )
    assert not {"out", "resume", "config", "preset"} & set(config)


def test_a_config_file_repeats_the_run(trained, tmp_path, said):
    code, out, err = said("train", "--config", trained / "config.yaml", "--out", tmp_path / "again")
    assert code == 0, err
    assert re.search(r"best validation: \d+\.\d+, pooled bound, nats per step", out)
    assert f"run: {tmp_path / 'again'}\n" in out and "tfseq evaluate" in out
    assert (tmp_path / "again" / "config.yaml").read_text() == (trained / "config.yaml").read_text()
    first, second = (json.loads((run / "card.json").read_text()) for run in (trained, tmp_path / "again"))
    assert first["metrics"]["val_nats_per_step"] == pytest.approx(second["metrics"]["val_nats_per_step"], rel=1e-6)


def test_a_run_is_not_overwritten(run, music, said):
    before = contents(run)
    code, _, err = said("train", "dmm", "--data", music, "--out", run)
    assert code == 1
    assert "already holds model.keras" in err and "--resume" in err
    assert contents(run) == before


def test_a_config_file_of_others_is_not_overwritten(tmp_path, music, said):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    code, _, err = said("train", "dmm", "--data", music, "--out", tmp_path)
    assert code == 1 and "would be lost" in err
    assert contents(tmp_path)["config.yaml"] == b"mine: true\n"


def test_resume_goes_on_with_the_settings_of_the_run(run, music, said):
    code, _, err = said("train", "dmm", "--resume", "--out", run, "--data", music, "--epochs", 2, "--max_minutes", "inf")
    assert code == 0, err
    assert len((run / "history.csv").read_text().splitlines()) == 3
    config = cli.read_config(run / "config.yaml")
    assert config["epochs"] == 2 and config["model"]["latent_dim"] == 2


@pytest.mark.parametrize("flags", ["--learning_rate 0.5", "--model.latent_dim 3", "--preset krishnan", "--data jsb", "--seed 1"])
def test_resume_refuses_other_settings(run, said, flags):
    before = contents(run)
    code, _, err = said("train", "--resume", "--out", run, *flags.split())
    assert code == 2
    assert "cannot change" in err and (flags.split()[0] in err or "--model.cell" in err)
    assert contents(run) == before


def test_resume_with_the_cosine_schedule_keeps_the_epochs(run, said):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("schedule: constant", "schedule: cosine"))
    code, _, err = said("train", "--resume", "--out", run, "--epochs", 7)
    assert code == 2 and "--epochs" in err and "cosine" in err


def test_resume_from_elsewhere_reads_what_the_run_read(run, music, said, tmp_path, monkeypatch):
    moved = shutil.copytree(music, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    code, _, err = said("train", "--resume", "--out", run, "--data", "moved", "--epochs", 2)
    assert code == 0, err
    assert cli.read_config(run / "config.yaml")["data"] == str(moved)


def test_a_run_that_goes_on_keeps_its_settings(run, said):
    before = contents(run)
    with locked(run) as free:
        if free is None:
            pytest.skip("no locks of files here")
        code, _, err = said("train", "--resume", "--out", run, "--epochs", 2)
    assert code == 1 and "of one that goes on" in err
    assert contents(run) == before


@pytest.mark.parametrize("missing", ["folder", "checkpoints"])
def test_resume_of_nothing(run, said, missing):
    shutil.rmtree(run if missing == "folder" else run / "checkpoints")
    code, _, err = said("train", "--resume", "--out", run)
    assert code == 1
    assert ("no run to resume" if missing == "folder" else "no checkpoint") in err


def test_an_interrupted_training_leaves_what_was_there(run, said, monkeypatch):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = contents(run)
    monkeypatch.setattr(SequenceModel, "fit", interrupted)
    code, out, err = said("train", "--resume", "--out", run, "--epochs", 2)
    assert (code, out) == (130, "")
    assert "Interrupted. Saved:" in err and err.endswith("tfseq: interrupted.\n")
    after = contents(run)
    assert after.pop("config.yaml") and before.pop("config.yaml")
    assert after == before


@pytest.mark.parametrize("where", ["a-file", "a-file/run"])
def test_a_run_folder_that_cannot_be(music, tmp_path, said, where):
    (tmp_path / "a-file").write_text("mine")
    code, out, err = said("train", "dmm", "--data", music, "--out", tmp_path / where, *TINY)
    assert (code, out) == (1, "")
    assert str(tmp_path / "a-file") in err and "Traceback" not in err
    assert contents(tmp_path) == {"a-file": b"mine"}


def test_hyperparameters_are_checked_before_anything_is_written(music, tmp_path, said):
    code, _, err = said("train", "dmm", "--data", music, "--out", tmp_path / "run", "--model.latent_dim", -3)
    assert code == 1 and "`latent_dim` must be a whole number of at least 1; received -3" in err
    assert not (tmp_path / "run").exists()


def test_a_preset_is_a_set_of_flags_that_later_ones_replace():
    parser = cli.train_parser("dmm")
    flags = ["--data", "x", "--preset", "krishnan", "--model.dropout", "0.3"]
    chosen = cli.parse(parser, cli._with_preset(parser, "dmm", flags))
    assert (chosen.model.cell, chosen.model.learned_start, chosen.model.scale) == ("lstm", False, "variance")
    assert chosen.model.dropout == 0.3 and chosen.model.latent_dim == 100


def write_series(path: Path, *sequences: list[int]) -> Path:
    """A CSV file of sequences of one binary feature, and labels."""
    rows = [f"s{i},{t},{value},{value}" for i, sequence in enumerate(sequences) for t, value in enumerate(sequence)]
    path.write_text("\n".join(["sequence,step,note,y", *rows, ""]))
    return path


def test_a_file_is_trained_on_without_validation(tmp_path, said, monkeypatch):
    write_series(tmp_path / "mine.csv", [0, 1, 1, 0], [1, 0])
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "dmm", "--data", "mine.csv", "--out", "run", "--epochs", 2, "--no-progress", *TINY]
    code, out, err = said(*arguments, "--patience", 1)
    assert code == 1 and "`patience` needs `validation`" in err
    code, out, err = said(*arguments)
    assert code == 0, err
    assert re.search(r"^last training epoch: \d+\.\d+ nats per step \(epoch 2; all epochs done\)\nnothing was validated", out)
    assert "its likelihood on the train split" in out and "best validation" not in out and "tfseq predict" not in out
    assert cli.read_config(tmp_path / "run" / "config.yaml")["data"] == str(tmp_path / "mine.csv")
    assert json.loads((tmp_path / "run" / "card.json").read_text())["data"]["name"] == "mine"


def test_splits_that_are_not_there(tmp_path, said):
    (tmp_path / "data").mkdir()
    write_series(tmp_path / "data" / "valid.csv", [0, 1])
    code, _, err = said("train", "dmm", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY)
    assert code == 1 and "which are: valid; received 'train'" in err and not (tmp_path / "run").exists()
    (tmp_path / "notes.pdf").write_text("no data")
    code, _, err = said("train", "dmm", "--data", tmp_path / "notes.pdf", *TINY)
    assert code == 2 and "--data must be a data set, the path of a .csv or .npz file" in err


def test_a_new_folder_is_called_after_the_data(tmp_path):
    file = write_series(tmp_path / "mine.csv", [0])
    (tmp_path / "data.v2").mkdir()
    names = [cli._new_folder("dmm", str(data)).name for data in (file, tmp_path / "data.v2", "jsb")]
    assert [re.sub(r"-\d+-\d+$", "", name) for name in names] == ["dmm-mine", "dmm-data.v2", "dmm-jsb"]


# Evaluation ---------------------------------------------------------------------------------------------------------


def test_evaluate_shows_every_figure_with_its_convention(trained, said):
    code, out, _ = said("evaluate", trained, "--num-samples", 3)
    assert code == 0
    assert "2 sequences" in out and "3 samples" in out and "test split" in out and "lower is better" in out
    for text in (
        "bound_per_step",
        "(b) pooled bound",
        "importance_per_step",
        "(a)",
        "(c)",
        "train-mean Bernoulli",
        "per-note Markov",
    ):
        assert text in out


def test_evaluate_prints_one_json_object(trained, music, said):
    code, out, _ = said("evaluate", trained, "--num_samples", 3, "--json", "--data", music, "--split", "valid")
    assert code == 0
    found = json.loads(out)
    figures = {"bound_per_step", "importance_per_step", "bound_sequence_mean", "standard_error", "importance_standard_error"}
    assert set(found) == figures | {"num_samples", "num_sequences", "num_steps", "baselines", "data", "split"}
    assert (found["num_samples"], found["num_sequences"], found["num_steps"]) == (3, 2, 11)
    assert (found["data"], found["split"]) == ("music", "valid")


def test_evaluate_scores_forecasts_beside_their_baselines(trained, said):
    flags = ("evaluate", trained, "--num-samples", 3, "--forecast-steps", 2, "--forecast-samples", 10)
    code, out, _ = said(*flags)
    assert code == 0 and "Forecasts: the last 2 steps of each sequence given all steps before" in out
    for row in (
        "crps",
        "crps of climatology",
        "forecast_error of random walk",
        "coverage of 80%",
        "coverage of 95% of climatology",
    ):
        assert re.search(rf"{row} .* [01]\.\d{{2,}} ", out), row
    code, out, _ = said(*flags, "--json")
    found = json.loads(out)
    assert set(found["coverage"]) == {"0.5", "0.8", "0.95"} and 0.0 < found["crps"] < 1.0
    assert len(found["forecast_per_feature"]["crps"]) == 88
    assert set(found["forecast_baselines"]["random walk"]) == {k for k in found if re.match("crps|coverage|forecast", k)} - {
        "forecast_baselines", "forecast_protocol",
    }  # fmt: skip
    code, _, err = said("evaluate", trained, "--forecast-steps", 99)
    assert code == 1 and "below the length of some sequence" in err


def test_json_has_null_for_what_is_not_a_number():
    found = cli._finite({"a": float("nan"), "b": {"c": 1.0}, "d": [1.0, float("nan")]})
    assert found == {"a": None, "b": {"c": 1.0}, "d": [1.0, None]}


def test_evaluate_says_when_it_scores_the_training_data(trained, tmp_path, said, monkeypatch):
    seen = {}

    def scored(model: object, data: object, *, num_samples: int = 1, batch_size: int = 1, seed: int = 0, **rest: object) -> dict:
        seen.update(split=data.split, **rest)
        return {"log_prob_per_step": 1.5, "standard_error": 0.25, "num_sequences": 2, "num_steps": 6}

    monkeypatch.setattr("tfseq.evaluation.evaluate", scored)
    file = write_series(tmp_path / "mine.csv", [0, 1, 1, 0], [1, 0])
    code, out, err = said("evaluate", trained, "--data", file)
    assert code == 0 and seen["split"] == "train" and len(seen["baselines_from"]) == 2
    assert f"tfseq: {file} has no split test; this scores train" in err
    assert "2 sequences, 6 steps\n" in out and "samples" not in out  # an exact figure has none
    assert re.search(r"log_prob_per_step .*1\.500 .*0\.250 .*exact NLL", out)
    code, _, err = said("evaluate", trained, "--data", file, "--split", "train")
    assert (code, err) == (0, "")
    code, _, err = said("evaluate", trained, "--data", file, "--split", "valid")
    assert code == 1 and "which are: train; received 'valid'" in err


@pytest.mark.parametrize("command", ["evaluate {}", "predict {} earthquakes", "sample {}", "export {} --out served"])
def test_a_run_that_is_not_there(said, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(*command.format("nowhere").split())
    assert (code, out) == (1, "")
    assert re.fullmatch(r"tfseq: error: No model at nowhere.*\n", err)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("file", "message"), [("model.keras", "damaged"), ("card.json", "card.json is damaged")])
def test_damaged_files(run, said, file, message):
    (run / file).write_bytes((run / file).read_bytes()[:40])
    code, out, err = said("sample", run)
    assert (code, out) == (1, "")
    assert message in err and "Traceback" not in err and err.count("\n") == 1


# Prediction ---------------------------------------------------------------------------------------------------------


class Decoder:
    """A model that decodes: the state is whether the last feature is on, with known probabilities."""

    def decode(self, batch: dict) -> dict[str, np.ndarray]:
        assert set(batch) <= {"x", "mask", "row", "observed"}  # no labels
        state = (np.asarray(batch["x"])[..., -1] > 0.5).astype(np.int32)
        return {"state": state, "prob": np.where(state[..., None] == [0, 1], np.float32(0.9), np.float32(0.1))}


@pytest.fixture
def decoder(monkeypatch):
    model = Decoder()
    monkeypatch.setattr(cli, "_load", lambda run: model)
    return model


def test_predict_writes_a_row_per_step(decoder, tmp_path, said):
    file = write_series(tmp_path / "mine.csv", [0, 1, 1], [1], [0, 0])
    expected = [
        "sequence,step,state,prob0,prob1",
        *("s0,0,0,0.9,0.1", "s0,1,1,0.1,0.9", "s0,2,1,0.1,0.9", "s1,0,1,0.1,0.9", "s2,0,0,0.9,0.1", "s2,1,0,0.9,0.1"),
    ]
    for size in (1, 2, 20):  # rows are in the order of the file, whatever the batches were
        code, out, err = said("predict", "run", file, "--batch-size", size)
        assert (code, out.splitlines(), err) == (0, expected, "")
    code, out, _ = said("predict", "run", file, "--out", tmp_path / "new" / "states.csv")
    assert (code, out) == (0, f"{tmp_path / 'new' / 'states.csv'}\n")
    assert (tmp_path / "new" / "states.csv").read_text().splitlines() == expected


def test_predict_numbers_sequences_without_names(decoder, tmp_path, said, monkeypatch):
    data = cli.load_dataset(write_series(tmp_path / "mine.csv", [1], [0]))
    monkeypatch.setattr(cli, "load_dataset", lambda *_, **__: cli.replace(data, names=()))
    code, out, _ = said("predict", "run", tmp_path / "mine.csv")
    assert code == 0 and [line[:4] for line in out.splitlines()[1:]] == ["0,0,", "1,0,"]


def test_predict_draws_the_first_sequence(decoder, tmp_path, said, monkeypatch):
    drawn, draw = {}, plots.state_path

    def seen(x: np.ndarray, states: np.ndarray, probs: np.ndarray, *args: object, **options: str) -> object:
        drawn.update(x=x, states=states, probs=probs, **options)
        return draw(x, states, probs, *args, **options)

    monkeypatch.setattr(plots, "state_path", seen)
    (tmp_path / "mine.csv").write_text("sequence,a,b\none,1,1\none,,0\ntwo,0,0\n")
    code, out, err = said("predict", "run", tmp_path / "mine.csv", "--plot", tmp_path / "states.png")
    assert code == 0 and len(out.splitlines()) == 4 and err == f"{tmp_path / 'states.png'}\n"
    assert (tmp_path / "states.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(drawn["x"], [[1, 1], [np.nan, 0]])
    assert drawn["states"].tolist() == [1, 0] and drawn["probs"].shape == (2, 2)
    assert (drawn["title"], drawn["step_name"]) == ("Decoder on mine, one", "step")
    paths = [tmp_path / name for name in ("all.csv", "all.svg")]
    code, out, _ = said("predict", "run", "earthquakes", "--out", paths[0], "--plot", paths[1])
    assert (code, out.splitlines()) == (0, [str(path) for path in paths]) and drawn["step_name"] == "year"
    assert len(paths[0].read_text().splitlines()) == 108


def test_predict_takes_test_unless_asked(decoder, tmp_path, said):
    for split, value in (("train", 0), ("test", 1)):
        write_series(tmp_path / f"{split}.csv", [value])
    rows = [said("predict", "run", tmp_path, *flags)[1].splitlines()[1] for flags in ((), ("--split", "train"))]
    assert rows == ["s0,0,1,0.1,0.9", "s0,0,0,0.9,0.1"]
    code, _, err = said("predict", "run", tmp_path, "--split", "valid")
    assert code == 1 and "which are: train, test; received 'valid'" in err


def test_predict_of_what_cannot_be(decoder, tmp_path, said, monkeypatch):
    file = write_series(tmp_path / "mine.csv", [0, 1])
    for arguments, message in (
        ((), "Missing: INPUT. A Decoder takes one INPUT"),
        ((file, file), "takes one INPUT, a data set or a file; received 2"),
        ((file, "--format", "json"), "--format is for models that read texts"),
        ((file, "--out", "states.conll"), "--out must end in .csv for a Decoder"),
    ):
        code, out, err = said("predict", "run", *arguments)
        assert (code, out) == (2, "") and message in err
    code, _, err = said("predict", "run", file, "--batch_size", 0)
    assert code == 1 and "`batch_size` must be a whole number of at least 1" in err
    monkeypatch.setattr(decoder, "decode", lambda batch: {"level": np.asarray(batch["x"])[..., 0]}, raising=False)
    code, out, err = said("predict", "run", file, "--plot", tmp_path / "states.png")
    assert (code, out) == (1, "") and "--plot needs a sequence and its states; the decode of a Decoder has no states" in err
    assert said("predict", "run", file)[1] == "sequence,step,level\ns0,0,0.0\ns0,1,1.0\n"
    monkeypatch.setattr(cli, "_load", lambda run: DeepMarkovModel.tiny())
    code, out, err = said("predict", "run", file)
    assert (code, out) == (1, "") and "A DeepMarkovModel has no `decode`" in err


# Samples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mid", ".png", ".npz", ".csv"])
def test_sample_writes_the_format_of_the_suffix(trained, tmp_path, said, suffix):
    code, out, _ = said("sample", trained, "--length", 4, "--num", 2, "--out", tmp_path / f"new{suffix}")
    assert code == 0
    names = ["new-1.mid", "new-2.mid"] if suffix == ".mid" else [f"new{suffix}"]
    assert out.splitlines() == [str(tmp_path / name) for name in names]
    assert all((tmp_path / name).stat().st_size for name in names)


def test_sample_by_default_writes_an_npz_into_the_run(run, said):
    code, out, _ = said("sample", run, "--length", 4, "--seed", 3)
    assert (code, out) == (0, f"{run / 'sample.npz'}\n")
    first = np.load(run / "sample.npz")["x"]
    assert first.shape == (1, 4, 88)
    said("sample", run, "--length", 4, "--seed", 3)
    np.testing.assert_array_equal(np.load(run / "sample.npz")["x"], first)


class Painter:
    """A model whose sample is the numbers of its pixels."""

    def sample(self, num_sequences: int, num_steps: int, seed: list[int]) -> tf.Tensor:
        size = num_sequences * num_steps * 6
        return tf.reshape(tf.range(size, dtype=tf.float32) / size, [num_sequences, num_steps, 6])


@pytest.mark.parametrize("data", [{"step": "picture", "shape": [2, 3]}, {"step": "picture", "shape": None}])
def test_samples_of_pictures_are_a_grid(tmp_path, said, monkeypatch, data):
    (tmp_path / "card.json").write_text(json.dumps({"data": data}))
    loaded, drawn = [], []
    monkeypatch.setattr(cli, "_load", lambda run: loaded.append(run) or Painter())
    code, out, err = said("sample", tmp_path, "--out", tmp_path / "new.mid")
    assert (code, out, loaded) == (2, "", []) and "--out must end in .png, .svg, .pdf, .npz or .csv for pictures;" in err
    code, out, err = said("sample", tmp_path, "--num", 2, "--length", 5, "--seed", 4, "--out", tmp_path / "new.npz")
    assert (code, np.load(tmp_path / "new.npz")["x"].shape) == (0, (2, 5, 6)), err
    code, out, err = said("sample", tmp_path, "--out", tmp_path / "new.png")
    assert (code, out) == (0, f"{tmp_path / 'new.png'}\n"), err
    monkeypatch.setattr(plots, "image_grid", lambda x, shape, *_, **settings: drawn.append((x, shape, settings)))
    assert said("sample", tmp_path, "--num", 2, "--length", 5, "--seed", 4, "--out", tmp_path / "new.png")[0] == 0
    ((x, shape, settings),) = drawn
    np.testing.assert_array_equal(x, np.arange(60, dtype=np.float32).reshape(10, 6) / np.float32(60))
    assert shape == (data["shape"] and (2, 3)) and settings == {"title": "Painter, seed 4"}


@pytest.mark.parametrize("kind", ["mid", "npz"])
def test_sample_continues_a_prefix(trained, music, tmp_path, said, kind):
    rolls = [cli.load_dataset(music, "test").x[0]] if kind == "mid" else list(cli.load_dataset(music, "test").x)
    prefix = music / "test" / "piece-0.mid"
    if kind == "npz":
        (prefix,) = write_samples(tmp_path / "given.npz", rolls)
    code, _, err = said("sample", trained, "--prefix", prefix, "--length", 3, "--num", 2, "--out", tmp_path / "new.npz")
    assert code == 0, err
    with np.load(tmp_path / "new.npz") as found:
        x, lengths = found["x"], found["lengths"]
    assert lengths.tolist() == [len(roll) + 3 for roll in rolls for _ in range(2)]
    for i, roll in enumerate(rolls):
        np.testing.assert_array_equal(x[2 * i, : len(roll)], roll)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("none.npz", None, "there is no"),
        ("damaged.npz", b"PK nothing", "must be an .npz file"),
        ("other.npz", {"y": np.zeros(3)}, "must be an .npz file with an array x"),
        ("narrow.npz", {"x": np.zeros((4, 5), np.float32)}, "must have shape [B, T, 88]"),
        ("lengths.npz", {"x": np.zeros((2, 4, 88), np.float32), "lengths": np.array([4])}, "and lengths [N]"),
        ("damaged.mid", b"MThd", "no readable score"),
    ],
)
def test_a_prefix_that_does_not_suit(trained, tmp_path, said, name, arrays, message):
    if isinstance(arrays, dict):
        np.savez(tmp_path / name, **arrays)
    elif arrays is not None:
        (tmp_path / name).write_bytes(arrays)
    code, _, err = said("sample", trained, "--prefix", tmp_path / name, "--out", tmp_path / "new.npz")
    assert code == 1
    assert message in err and not (tmp_path / "new.npz").exists()


@pytest.fixture(scope="module")
def forecaster(eager: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on two real-valued features, whose file stands beside it."""
    folder = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    lines = [f"{year},{10 + a:.3f},{b:.3f}" for year, (a, b) in zip(range(2000, 2030), rng.normal(size=(30, 2)), strict=True)]
    (folder / "mine.csv").write_text("\n".join(["year,temp,wind", *lines, ""]))
    arguments = [
        "train",
        "dmm",
        "--data",
        str(folder / "mine.csv"),
        "--out",
        str(folder / "run"),
        "--epochs",
        "1",
        "--no-progress",
    ]
    assert main([*arguments, "--model.head", "normal", *TINY]) == 0
    return folder


def test_a_prefix_of_a_series_is_forecast_as_quantiles(forecaster, tmp_path, said):
    command = ["sample", forecaster / "run", "--prefix", forecaster / "mine.csv", "--length", 3, "--seed", 5]
    code, out, err = said(*command, "--out", tmp_path / "f.csv")
    assert (code, out) == (0, f"{tmp_path / 'f.csv'}\n"), err
    header, *rows = [line.split(",") for line in (tmp_path / "f.csv").read_text().splitlines()]
    assert header[:4] == ["sequence", "step", "feature", "mean"]
    assert [row[:3] for row in rows] == [["mine", str(t), name] for t in (30, 31, 32) for name in ("temp", "wind")]
    model = cli._load(str(forecaster / "run"))
    (x,) = cli.load_dataset(forecaster / "mine.csv").x
    samples = model.forecast(x[None], num_steps=3, num_samples=cli.FORECAST_SAMPLES, seed=[5, 1]).numpy()[0]
    found = np.array([row[4:] for row in rows], np.float32).reshape(3, 2, 5)
    wanted = np.quantile(samples, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    np.testing.assert_allclose(found, np.moveaxis(wanted, 0, -1), rtol=1e-5)
    said(*command, "--num", 7, "--out", tmp_path / "g.csv")
    assert (tmp_path / "g.csv").read_text() != (tmp_path / "f.csv").read_text()
    code, _, err = said(*command, "--out", tmp_path / "c.npz")  # the continuation itself
    with np.load(tmp_path / "c.npz") as arrays:
        assert arrays["x"].shape == (1, 33, 2) and arrays["lengths"].tolist() == [33]
        np.testing.assert_array_equal(arrays["x"][0, :30], x)


def test_a_forecast_is_drawn_for_each_sequence(forecaster, tmp_path, said, monkeypatch):
    given = tmp_path / "given.csv"
    given.write_text("sequence,temp,wind\na,10,0\na,11,\nb,9,1\n")
    drawn = []
    monkeypatch.setattr(plots, "forecast", lambda *found, **settings: drawn.append((found, settings)))
    command = ["sample", forecaster / "run", "--prefix", given, "--length", 2, "--num", 4, "--out", tmp_path / "f.png"]
    code, out, err = said(*command)
    assert (code, out.split()) == (0, [str(tmp_path / f"f-{i}.png") for i in (1, 2)]), err
    ((x, samples, path), settings), ((last, *_), _) = drawn
    np.testing.assert_array_equal(x, [[10, 0], [11, np.nan]])
    assert last.tolist() == [[9, 1]] and samples.shape == (4, 2, 2) and path == tmp_path / "f-1.png"
    title = "DeepMarkovModel, seed 0, a"
    assert settings == {"names": ["temp", "wind"], "title": title, "step_name": "year"}
    monkeypatch.undo()
    code, _, err = said(*command)
    assert code == 0 and (tmp_path / "f-2.png").read_bytes().startswith(b"\x89PNG"), err
    np.savez(tmp_path / "gap.npz", x=np.array([[10, 0], [np.nan, 1]], np.float32))
    code, _, err = said(
        "sample", forecaster / "run", "--prefix", tmp_path / "gap.npz", "--length", 1, "--out", tmp_path / "c.npz"
    )
    assert code == 0, err
    np.testing.assert_array_equal(np.load(tmp_path / "c.npz")["x"][0, :2], [[10, 0], [np.nan, 1]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("order.csv", "wind,temp\n1,2\n", "the features of the run's data, in their order: temp, wind; received wind, temp"),
        ("empty.csv", "temp,wind\n", "must have a row per step"),
        ("digit.wav", "RIFF", "--prefix may be a .wav file for a run on frames of recordings"),
    ],
)
def test_prefixes_of_other_data(forecaster, tmp_path, said, name, content, message):
    run = Path(shutil.copytree(forecaster / "run", tmp_path / "run"))
    card = json.loads((run / "card.json").read_text())
    card["data"]["columns"] = ["temp", "wind"]
    (run / "card.json").write_text(json.dumps(card))
    (tmp_path / name).write_text(content)
    code, _, err = said("sample", run, "--prefix", tmp_path / name, "--out", tmp_path / "f.png")
    assert code == 1 and message in err and not (tmp_path / "f.png").exists()


def test_a_run_without_a_card_continues_scores_as_scores(trained, music, tmp_path, said):
    shutil.copy(trained / "model.keras", tmp_path)
    command = ["sample", tmp_path / "model.keras", "--prefix", music / "test" / "piece-0.mid", "--length", 2]
    assert said(*command, "--out", tmp_path / "a.png")[0] == 0
    code, _, err = said(*command, "--out", tmp_path / "a.csv")
    assert code == 0 and (tmp_path / "a.csv").read_text().startswith("sequence,step,x0,x1,"), err


class Speaker:
    """A model whose sample are frames of two samples, and whose forecast is silence."""

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        return {"x": tf.TensorSpec([None, None, 2])}

    def sample(self, num_sequences: int, num_steps: int, seed: list[int]) -> tf.Tensor:
        return tf.fill([num_sequences, num_steps, 2], 0.5)

    def forecast(self, x: list[np.ndarray], num_steps: int, num_samples: int, seed: list[int]) -> tf.Tensor:
        return tf.zeros([len(x), num_samples, num_steps, 2])


def test_samples_of_recordings_are_heard(tmp_path, said, monkeypatch):
    (tmp_path / "card.json").write_text(json.dumps({"data": {"step": "0.25 ms", "shape": None, "sampling_rate": 8000}}))
    monkeypatch.setattr(cli, "_load", lambda run: Speaker())
    code, out, err = said("sample", tmp_path, "--num", 2, "--length", 3, "--out", tmp_path / "a.wav")
    assert (code, out.split()) == (0, [str(tmp_path / f"a-{i}.wav") for i in (1, 2)]), err
    np.testing.assert_array_equal(read_wav(tmp_path / "a-2.wav", 8000), [0.5] * 6)
    monkeypatch.setattr("tfseq.data.speech.FRAME", 2)
    monkeypatch.setattr("tfseq.data.speech.frames", lambda samples: samples.reshape(-1, 2))
    code, out, err = said("sample", tmp_path, "--prefix", tmp_path / "a-1.wav", "--length", 1, "--out", tmp_path / "b.wav")
    assert code == 0, err
    np.testing.assert_array_equal(read_wav(tmp_path / "b.wav", 8000), [0.5] * 6 + [0.0] * 2)
    code, _, err = said("sample", tmp_path, "--out", tmp_path / "a.mid")
    assert code == 2 and "--out must end in .wav, .png, .svg, .pdf, .npz or .csv for recordings; received" in err


def test_samples_of_a_pen_are_drawn_and_have_its_columns(tmp_path, said, monkeypatch):
    card = {"data": {"step": "point", "columns": ["pen", "dx"]}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    monkeypatch.setattr(cli, "_load", lambda run: Speaker())
    assert said("sample", tmp_path, "--length", 1, "--out", tmp_path / "a.csv")[0] == 0
    assert (tmp_path / "a.csv").read_text() == "sequence,step,pen,dx\n0,0,0.5,0.5\n"
    for suffix in (".png", ".svg"):
        assert said("sample", tmp_path, "--length", 5, "--out", tmp_path / f"a{suffix}")[0] == 0  # of other columns, series
    code, _, err = said("sample", tmp_path, "--out", tmp_path / "a.wav")
    assert code == 2 and "for series; received" in err
    card["data"]["columns"] = ["pen", "dx", "dy"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    monkeypatch.setattr(Speaker, "sample", lambda self, num, steps, seed: tf.ones([num, steps, 3]))
    drawn = []
    monkeypatch.setattr(plots, "strokes", lambda x, path, **_: drawn.append(x))
    assert said("sample", tmp_path, "--length", 5, "--num", 2, "--out", tmp_path / "b.svg")[0] == 0
    np.testing.assert_array_equal(drawn, np.ones((1, 2, 5, 3)))


def test_samples_have_a_positive_number_and_length(trained, said):
    for flag in ("num", "length"):
        code, _, err = said("sample", trained, f"--{flag}", 0)
        assert code == 1 and f"`{flag}` must be a whole number of at least 1; received 0" in err


# Texts --------------------------------------------------------------------------------------------------------------

SMALL = ["--no-progress", "--epochs", "2", "--schedule=constant", "--model.units", "[6]", "--model.embedding_dim", "4"]
COLUMNS = "Ann\tB-PER\nmet\tO\nBo\tB-PER\n\nBo\tB-PER\nLee\tI-PER\nleft\tO\n"


def write_texts_of_all_kinds(folder: Path) -> dict[str, Path]:
    """Data of a tagger, a classifier, a language model and an encoder with a decoder; of the second in three splits."""
    (folder / "films").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (folder / "films" / f"{split}.tsv").write_text("text\tlabel\na fine film\tpos\nno plot\tneg\nfine\tpos\n")
    (folder / "people.conll").write_text(COLUMNS)
    (folder / "play.txt").write_text("to be, or not to be\n" * 12)
    (folder / "dogs.tsv").write_text("source\ttarget\nein Hund\ta dog\neine Katze\ta cat\n")
    names = {"tagger": "people.conll", "classifier": "films", "lm": "play.txt", "seq2seq": "dogs.tsv"}
    return {model: folder / name for model, name in names.items()}


@pytest.fixture(scope="module")
def readers(eager: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each model that reads texts, and what training said of it."""
    folder = tmp_path_factory.mktemp("readers")
    flags = {
        "tagger": ["--model.characters", "null", "--model.head", "crf", "--batch_steps", "20"],
        "lm": ["--model.window", "10"],
        "seq2seq": ["--model.min_count", "1"],
    }
    runs = {}
    for model, data in write_texts_of_all_kinds(folder / "data").items():
        runs[model] = folder / model
        with (folder / f"{model}.said").open("w") as file, contextlib.redirect_stdout(file):
            arguments = ["train", model, "--data", data, "--out", runs[model], *SMALL, *flags.get(model, [])]
            assert main([str(a) for a in arguments]) == 0
    return runs


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """`typed(content)` is what standard input then has."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_training_of_readers_names_the_figure_and_what_fits(readers):
    said = {model: run.with_suffix(".said").read_text() for model, run in readers.items()}
    assert re.search(r"best validation: [01]\.\d+, share of sequences classified right, higher is better", said["classifier"])
    assert re.search(r"best validation: \d\.\d+, nats per character, lower is better", said["lm"])
    assert re.search(rf"echo 'Ann met Bo' \| tfseq predict {readers['tagger']} +tags of texts", said["tagger"])
    assert "echo 'ein Hund' | tfseq predict" in said["seq2seq"] and "its scores on the train split" in said["seq2seq"]
    assert {model for model, text in said.items() if "tfseq sample" in text} == {"lm"}
    for model, run in readers.items():
        config = cli.read_config(run / "config.yaml")
        assert config["model"]["units"] == [6] and not {"vocabulary", "tags", "classes"} & set(config["model"])
        assert json.loads((run / "card.json").read_text())["model"] == model
    assert cli.read_config(readers["tagger"] / "config.yaml")["model"]["characters"] is None


def test_models_and_data_that_do_not_suit(tmp_path, said):
    files = write_texts_of_all_kinds(tmp_path)
    (tmp_path / "letters.fasta").write_text(">a\nACGT\n")
    for model, data, message in (
        ("dmm", files["lm"], "must be numbers for the model dmm; play holds texts. Models that read these: tagger, classifier"),
        ("hmm", files["tagger"], "people holds tokens"),
        ("classifier", files["tagger"], "of the user's file people.conll has 'B-PER' and 'O'. The model tagger learns labels of"),
        ("tagger", files["classifier"], "films has one for each sequence. The model classifier learns these"),
        ("classifier", tmp_path / "letters.fasta", "must have `y`, a label for each sequence"),
        ("seq2seq", files["lm"], "must have `target`"),
        ("lm", "earthquakes", "must hold texts, tokens or ids"),
    ):
        code, out, err = said("train", model, "--data", data, "--out", tmp_path / "run")
        assert (code, out) == (1, "") and message in err, err
    assert not (tmp_path / "run").exists()


def test_a_note_where_letters_would_be_read_as_words(said, capsys):
    letters = Sequences([np.array(list("ACGT"))], y=[np.array(list("eeii"))], name="genes", step="base")
    for data, unit, noted in (
        (letters, "words", True),
        (letters, "characters", False),
        (Sequences(["ACGT"], y=["e"], step="letter"), "words", True),
        (Sequences(["a film"], y=["e"], step="character"), "words", False),
        (Sequences([np.array(["a", "film"])]), "words", False),
    ):
        cli._advise_unit(cli.parse(cli.train_parser("lm"), ["--data", "x", "--model.unit", unit]).model, data)
        assert ("--model.unit characters" in capsys.readouterr().err) is noted


def test_predict_answers_lines_of_standard_input(readers, typed, said):
    typed(b"\xef\xbb\xbfAnn met Bo\r\n\nBo \xff")
    code, out, err = said("predict", readers["tagger"])
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.split("\n")]
    assert [line[0] for line in lines] == ["Ann", "met", "Bo", "", "", "Bo", "\ufffd", "", ""]
    assert {line[1] for line in lines if len(line) > 1} <= {"B-PER", "I-PER", "O"}
    assert all(re.fullmatch(r"[01]\.\d{4}", line[2]) for line in lines if len(line) > 1)
    typed(b"a fine film\n\nno\tplot\n")
    code, out, _ = said("predict", readers["classifier"], "-")
    assert code == 0 and re.fullmatch(r"(pos|neg)\t0\.\d{4}\ta fine film\n(pos|neg)\t0\.\d{4}\t\n\w+\t\S+\tno plot\n", out)
    typed(b"to be\n\n")
    code, out, _ = said("predict", readers["lm"])
    assert code == 0 and re.fullmatch(r"-\d+\.\d{4}\t5\tto be\n-?0\.0000\t0\t\n", out)
    typed(b"\nein Hund\n")
    code, out, _ = said("predict", readers["seq2seq"])
    assert code == 0 and out.count("\n") == 2 and out.startswith("\n")
    typed(b"")
    assert said("predict", readers["tagger"])[:2] == (0, "")


def test_predict_writes_json_with_entities_and_the_best_tags(readers, tmp_path, said):
    (tmp_path / "lines.txt").write_text("Ann met Bo\n")
    out = tmp_path / "said.jsonl"
    data = readers["tagger"].parent / "data" / "people.conll"
    code, printed, _ = said("predict", readers["tagger"], tmp_path / "lines.txt", data, "--out", out, "--n_best", 2)
    assert (code, printed) == (0, f"{out}\n")
    first, second, third = map(json.loads, out.read_text().splitlines())
    assert first["text"] == "Ann met Bo" and first["tokens"] == ["Ann", "met", "Bo"] == second["tokens"]
    assert len(first["tags"]) == len(first["scores"]) == 3 and "text" not in third
    assert first["n_best"][0]["tags"] == first["tags"] and len(first["n_best"]) == 2
    assert all(set(e) == {"type", "start", "stop", "prob"} for e in first["entities"])
    (tmp_path / "tokens.conll").write_text("Ann\nmet\nBo\n")  # what is to be tagged needs no tags
    code, printed, err = said("predict", readers["tagger"], tmp_path / "tokens.conll", "--format", "json")
    assert code == 0 and json.loads(printed)["tags"] == first["tags"], err
    code, printed, _ = said("predict", readers["classifier"], tmp_path / "lines.txt", "--format", "json")
    found = json.loads(printed)
    assert code == 0 and found["prob"] == found["probs"][found["label"]]


def test_the_answers_do_not_depend_on_batches_nor_on_chunks(readers, tmp_path, said):
    texts = ["Ann met Bo", "", "Bo", "Lee left Ann and Bo"]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    answers = [said("predict", readers["tagger"], tmp_path / "lines.txt", "--batch_size", size)[1] for size in (1, 20)]
    assert answers[0] == answers[1] and answers[0].split("\n").count("") == 5

    class Slowly(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read1(3)

    lines = list(cli._lines(Slowly("a\né\n\nlong line".encode())))
    assert lines == [["a"], ["é", ""], ["long line"]]
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        list(cli._lines(io.BytesIO(b"x" * (cli._LONGEST_LINE + 1))))


def test_predict_of_texts_that_cannot_be(readers, typed, said):
    for model, flags, message in (
        ("tagger", ["--n_best", 2], "--n_best is for taggers with head=crf and --format json"),
        ("classifier", ["--n_best", 2, "--format", "json"], "--n_best is for taggers"),
        ("classifier", ["--plot", "a.png"], "--plot is for taggers and translators"),
        ("tagger", ["--out", "a.csv"], "--out must end in .conll or"),
        ("tagger", ["earthquakes"], "INPUT must hold texts or tokens for this run"),
    ):
        typed(b"Ann\n")
        code, out, err = said("predict", readers[model], *flags)
        assert (code, out) == (2, "") and message in err


def test_predict_draws_tags_and_attention(readers, typed, tmp_path, said):
    for model, text in (("tagger", "\n  \nAnn $met 東京\n"), ("seq2seq", "\nein Hund\n")):
        typed(text.encode())
        code, _, err = said("predict", readers[model], "--plot", tmp_path / f"{model}.png")
        assert (code, err) == (0, f"{tmp_path / model}.png\n")
        assert (tmp_path / f"{model}.png").read_bytes().startswith(b"\x89PNG")


def test_predict_reads_recordings_as_the_data_of_the_run(tmp_path, said, monkeypatch):
    with wave.open(str(tmp_path / "one.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(900, dtype="<i2").tobytes())
    model = SequenceClassifier(classes=["0", "1"], feature_dim=200, units=[3])
    monkeypatch.setattr(cli, "_load", lambda run: model)
    (tmp_path / "card.json").write_text(json.dumps({"data": {"name": "spoken-digits", "sampling_rate": 8000}}))
    code, out, err = said("predict", tmp_path, tmp_path / "one.wav", tmp_path / "one.wav")
    assert code == 0 and re.fullmatch(r"([01]\t[01]\.\d{4}\tone\n){2}", out), err
    (tmp_path / "sounds" / "test").mkdir(parents=True)
    (tmp_path / "one.wav").rename(tmp_path / "sounds" / "test" / "one.wav")
    (tmp_path / "card.json").write_text(json.dumps({"data": {"name": "mine", "sampling_rate": 16000}}))
    for other in (model, HiddenMarkovModel.tiny(observation_dim=200)):
        monkeypatch.setattr(cli, "_load", lambda run, other=other: other)
        code, out, err = said("predict", tmp_path, tmp_path / "sounds")
        assert (code, out) == (2, "") and "INPUT must have 16000 samples a second" in err and "sounds has 8000." in err
    monkeypatch.setattr(cli, "_load", lambda run: model)
    (tmp_path / "card.json").write_text(json.dumps({"data": {"name": "mine"}}))
    code, _, err = said("predict", tmp_path, tmp_path / "sounds" / "test" / "one.wav")
    assert code == 2 and "this one was trained on mine" in err
    code, _, err = said("predict", tmp_path)
    assert code == 2 and "INPUT must hold frames of 200 numbers for this run" in err and "standard input holds texts" in err


def test_predict_reads_recordings_at_the_rate_of_the_users_own(tmp_path, said):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 1200).astype(np.float32)
    for label in ("yes", "no"):
        write_samples(tmp_path / "sounds" / "train" / label / "1.wav", samples.reshape(-1, 200)[:4], sampling_rate=11025)
    write_samples(tmp_path / "8k.wav", samples.reshape(-1, 300), sampling_rate=8000)
    run = tmp_path / "run"
    code, _, err = said("train", "classifier", "--data", tmp_path / "sounds", "--out", run, "--epochs", 1, "--model.units", "[3]")
    assert code == 0, err
    one = tmp_path / "sounds" / "train" / "no" / "1.wav"
    code, out, err = said("predict", run, one, "--format", "json")
    assert code == 0, err
    x = frames(read_wav(one, 11025))
    wanted = training.load(run).classify({"x": x[None]}).probs.numpy()[0]
    assert json.loads(out)["probs"] == pytest.approx({"no": wanted[0], "yes": wanted[1]}, rel=1e-5)
    code, _, err = said("predict", run, tmp_path / "8k.wav")
    assert code == 1 and "8k.wav must have 11025 samples a second" in err


def test_sample_writes_texts(readers, tmp_path, said):
    run = readers["lm"]
    code, first, err = said("sample", run, "--length", 12, "--prompt", "to be", "--seed", 3)
    assert code == 0 and first.startswith("to be") and len(first.rstrip("\n")) <= 17, err
    (tmp_path / "prefix.txt").write_text("to be")
    arguments = ["sample", run, "--length", 12, "--prefix", tmp_path / "prefix.txt", "--seed", 3]
    assert said(*arguments)[1] == first
    code, out, _ = said(*arguments, "--num", 2, "--out", tmp_path / "two.txt", "--top_k", 3, "--temperature", 0.5)
    assert (code, out) == (0, f"{tmp_path / 'two.txt'}\n")
    assert (tmp_path / "two.txt").read_text().count("\n" + "-" * 40 + "\nto be") == 1
    said(*arguments, "--num_beams", 2, "--out", tmp_path / "one.json")
    (found,) = json.loads((tmp_path / "one.json").read_text())
    assert found["prompt"] == "to be" and found["text"].startswith("to be")
    for flags, message in (
        (["--prompt", "a"], "give one of them"),
        (["--num_beams", 2, "--num", 2], "--num must be 1 with --num_beams"),
        (["--out", "a.mid"], "--out must end in .txt or .json for a language model"),
    ):
        code, out, err = said(*arguments, *flags)
        assert (code, out) == (2, "") and message in err
    code, _, err = said("sample", run, "--class", "pos")
    assert code == 1 and "`classes` is for a conditional model" in err


def test_flags_of_texts_are_not_for_other_models(trained, readers, said):
    for flags, message in (
        (["--prompt", "a"], "--prompt: only for a language model"),
        (["--out", "a.txt"], "--out may end in .txt"),
    ):
        code, _, err = said("sample", trained, *flags)
        assert code == 2 and message in err and "DeepMarkovModel" in err
    code, _, err = said("sample", readers["tagger"])
    assert code == 1 and "A SequenceTagger has no `sample`" in err


def test_continuations_of_words_have_a_space_where_they_need_one():
    words, letters = (LanguageModel.tiny(unit=unit) for unit in ("words", "characters"))
    assert cli._continued(letters, "on", "off") == "onoff"
    for prompt, new, expected in (
        ("on", "off", "on off"),
        ("on", ", off", "on, off"),
        ("on ", "off", "on off"),
        ("", "off", "off"),
    ):
        assert cli._continued(words, prompt, new) == expected
    assert cli._continued(LanguageModel.tiny(unit="subwords"), "sail", "##ing on") == "sailing on"


def test_evaluate_shows_the_figures_of_readers(readers, said):
    figures = {
        "tagger": (r"accuracy .*[01]\.\d{4} ", "entity_f1", "most frequent tag of each token"),
        "classifier": (r"accuracy .*[01]\.\d{4} .*[01]\.\d{4} ", "calibration_error", "most frequent class"),
        "lm": ("perplexity", "bits_per_character", "unigram", "nats_per_token of a baseline"),
        "seq2seq": ("nats_per_token", "perplexity"),
    }
    for model, words in figures.items():
        code, out, err = said("evaluate", readers[model])
        assert code == 0, err
        for word in ("value", "what it is", *words):
            assert re.search(word, out), (model, word)
        assert "nan" not in out
    code, out, _ = said("evaluate", readers["classifier"], "--json")
    found = json.loads(out)
    assert code == 0 and {"accuracy", "nats_per_token", "standard_error", "baselines"} <= set(found)
    data = readers["tagger"].parent / "data"
    code, _, err = said("evaluate", readers["tagger"], "--data", data / "play.txt")
    assert code == 1 and "`data` must have `y`" in err


def test_a_label_that_was_not_seen_is_named_with_file_and_line(readers, tmp_path, said):
    unseen = COLUMNS + "\nBo\tB-PER\nsaw\tO\nRome\tB-LOC\n"
    for split, text in (("train", COLUMNS), ("valid", unseen), ("test", unseen)):
        (tmp_path / f"{split}.conll").write_text(text)
    code, out, err = said("train", "tagger", "--data", tmp_path, "--out", tmp_path / "run", *SMALL, "--model.characters", "null")
    assert (code, out) == (1, "") and "received 'B-LOC' at index 2 of 'valid.conll, line 9', for 'Rome'" in err, err
    code, out, err = said("evaluate", readers["tagger"], "--data", tmp_path)
    assert (code, out) == (1, "") and "received 'B-LOC' at index 2 of 'test.conll, line 9', for 'Rome'" in err, err


def test_how_labelled_tokens_are_read_is_said_once(readers, typed, tmp_path, said, monkeypatch):
    file = tmp_path / "own.bio"
    file.write_text("B-PER x Ann\nO x met\n\nO x Bo\nI-PER x Lee\n")
    flags = ("--data_illegal", "repair", "--data-label-column", "0", "--data_token_column=-1")
    seen, train = [], training.train

    @functools.wraps(train)
    def stopped(model: SequenceModel, data: Sequences, *_: object, **__: object) -> None:
        seen.append([y.tolist() for y in data.y])
        raise ValueError("seen")

    monkeypatch.setattr(training, "train", stopped)
    out = tmp_path / "run"
    code, _, err = said("train", "tagger", "--data", file, "--out", out, "--data_token_column", 2, "--data_label_column", 0)
    assert code == 1 and "own.bio, line 5: in the scheme 'bio', 'I-PER' may not" in err and "--data_illegal repair" in err
    code, _, err = said("train", "tagger", "--data", file, "--out", out, *flags, *SMALL, "--model.characters", "null")
    assert (code, err) == (1, "tfseq: error: seen\n") and seen == [[["B-PER", "O"], ["O", "B-PER"]]]
    config = cli.read_config(out / "config.yaml")
    assert (config["data_illegal"], config["data_label_column"], config["data_token_column"]) == ("repair", 0, -1)
    shutil.copytree(readers["tagger"], tmp_path / "done")
    shutil.copy(out / "config.yaml", tmp_path / "done")
    code, printed, err = said("evaluate", tmp_path / "done", "--json")
    assert code == 0 and json.loads(printed)["num_steps"] == 4, err
    code, _, err = said("evaluate", tmp_path / "done", "--data_illegal", "error")
    assert code == 1 and "own.bio, line 5" in err
    code, _, err = said("evaluate", tmp_path / "done", "--data", file)  # other data, of which the run says nothing
    assert code == 1 and "received 'Ann'" in err
    code, _, err = said("train", "--resume", "--out", tmp_path / "done", "--data_illegal", "keep")
    assert code == 2 and "cannot change: --data_illegal (the run has repair, received keep)" in err
    code, printed, _ = said("predict", tmp_path / "done", file, *flags)
    assert code == 0 and [line.split("\t")[0] for line in printed.splitlines()] == ["Ann", "met", "", "Bo", "Lee", ""]
    code, printed, err = said("data", "shard", "--data", file, "--out", tmp_path / "shards", "--num_shards", 1, *flags)
    assert code == 0 and "train: 2 sequences, 4 steps" in printed, err
    typed(b"Ann")
    for command, code, message in (
        (("predict", tmp_path / "done", "--data_illegal", "keep"), 2, "--data_illegal is for files of labelled tokens; INPUT"),
        (("data", "shard", "--data", tmp_path / "shards", "--out", tmp_path / "b", *flags), 1, "`token_column` (--data_token"),
        (("train", "tagger", "--data", tmp_path / "shards", "--data_illegal", "keep"), 1, "`illegal` (--data_illegal) must be"),
        (("train", "dmm", "--data", "earthquakes", "--data_illegal", "keep"), 1, "of how earthquakes is read, of which there"),
        (("train", "tagger", "--data", file, "--data_illegal", "fix"), 2, "--data_illegal must be one of error, repair, keep"),
    ):
        got, printed, err = said(*command)
        assert (got, printed) == (code, "") and message in err, err


def test_vectors_of_another_size_are_named_with_their_file(readers, tmp_path, said):
    data = readers["tagger"].parent / "data" / "people.conll"
    (tmp_path / "mine.vec").write_text("2 3\nAnn 1 2 3\nBo 4 5 6\n")
    arguments = ("train", "tagger", "--data", data, "--out", tmp_path / "run", *SMALL, "--model.characters", "null")
    code, out, err = said(*arguments, "--vectors", tmp_path / "mine.vec")
    assert (code, out) == (1, "") and f"{tmp_path / 'mine.vec'}, line 1: vectors must have --model.embedding_dim = 4" in err
    assert "received 3. Set --model.embedding_dim 3" in err and not (tmp_path / "run").exists()
    (tmp_path / "mine.vec").write_text("2 4\nAnn 1 2 3 4\nBo 4 5 6 7\n")
    code, _, err = said(*arguments, "--vectors", tmp_path / "mine.vec", "--epochs", 1)
    assert code == 0 and "mine.vec has vectors of" in err
    (tmp_path / "mine.vec").unlink()  # the run has them
    code, _, err = said("train", "tagger", "--resume", "--out", tmp_path / "run", "--epochs", 2)
    assert code == 0, err


# Export -------------------------------------------------------------------------------------------------------------


def test_export_prints_the_new_version_and_passes_on_the_card(trained, tmp_path, said, monkeypatch):
    endpoints = DeepMarkovModel.endpoints
    monkeypatch.setattr(DeepMarkovModel, "endpoints", lambda self, *numbers: {"sample": endpoints(self, *numbers)["sample"]})
    tf.config.run_functions_eagerly(False)
    arguments = ["export", trained, "--out", tmp_path / "served", "--num-samples", 2, "--num-particles", 3]
    code, out, err = said(*arguments, "--version", 7)
    assert (code, out) == (0, f"{tmp_path / 'served' / '7'}\n"), err
    assert (tmp_path / "served" / "7" / "saved_model.pb").is_file()
    assert json.loads((tmp_path / "served" / "7" / "card.json").read_text())["trained"]["data"]["name"] == "music"
    code, out, err = said(*arguments, "--version", 7)
    assert (code, out) == (1, "") and "exists and is not overwritten" in err
    tf.config.run_functions_eagerly(True)


def test_what_a_run_folder_should_not_hold_is_named(run, music, tmp_path, said):
    card = run / "card.json"
    card.write_text(json.dumps({"data": None}))
    for command in ("evaluate", "sample"):
        (run / "config.yaml").unlink(missing_ok=True)
        code, _, err = said(command, run)
        assert code == 1 and "card.json is damaged" in err
    config = tmp_path / "config.yaml"
    config.write_text("data: 3\nmodel:\n  name: dmm\n")
    code, _, err = said("train", "--config", config)
    assert code == 2 and "received '3'" in err
    foreign = tmp_path / "foreign.keras"
    keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)]).save(foreign)
    code, _, err = said("export", foreign, "--out", tmp_path / "served")
    assert code == 1 and "a Keras model of another library (Sequential)" in err
    assert not (tmp_path / "served").exists()
    for name in ("history.csv", "card.json"):
        own = tmp_path / f"own-{name}"
        own.mkdir()
        (own / name).write_text("mine")
        code, _, err = said("train", "dmm", "--data", music, "--out", own, "--epochs", "1", *TINY)
        assert code == 1 and f"already holds {name}" in err
        assert [(p.name, p.read_text()) for p in own.iterdir()] == [(name, "mine")]


def test_a_seed_must_fit_into_32_bits(run, music, said):
    prefix = next((music / "test").iterdir())
    for arguments in ((), ("--prefix", prefix)):
        code, _, err = said("sample", run, "--seed", 3_000_000_000, *arguments)
        assert code == 1 and "`seed` must hold whole numbers of 32 bits" in err


# The process --------------------------------------------------------------------------------------------------------


def test_start_up_noise_is_silent_and_errors_are_not(tmp_path):
    done = in_a_process("-m", "tfseq", "evaluate", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"tfseq: error: No model at nowhere.*\n", done.stderr)


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        command = [sys.executable, "-m", "tfseq", "datasets"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1], timeout=300)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_stack_trace_is_shown_on_request(said, monkeypatch):
    assert "Traceback" not in said("train", "dmm", "--config", "nowhere.yaml")[2]
    monkeypatch.setenv("TFSEQ_DEBUG", "1")
    _, _, err = said("train", "dmm", "--config", "nowhere.yaml")
    assert "Traceback" in err and err.splitlines()[-1] == "tfseq: error: There is no config file nowhere.yaml."


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PermissionError(13, "Permission denied", "runs"), 1, "tfseq: error: runs: Permission denied\n"),
        (OSError(28, "x.keras could not be written"), 1, "tfseq: error: x.keras could not be written\n"),
        (ImportError('pip install "tfseq[music]"'), 1, 'tfseq: error: pip install "tfseq[music]"\n'),
        (ValueError("two\n  lines"), 1, "tfseq: error: two lines\n"),
        (MemoryError(), 1, "tfseq: error: out of memory. A smaller --batch_size or model may fit.\n"),
        (
            KeyError("x"),
            1,
            "tfseq: unexpected error, KeyError: 'x' Set TFSEQ_DEBUG=1 to see where, and report it.\n",
        ),
        (KeyboardInterrupt(), 130, "tfseq: interrupted.\n"),
    ],
)
def test_errors_are_one_paragraph(said, monkeypatch, error, code, text):
    def fails(arguments: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "models", cli.COMMANDS["models"]._replace(run=fails))
    assert said("models") == (code, "", text)
