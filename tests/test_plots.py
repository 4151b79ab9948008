"""Pictures: what is drawn is what was given, and no global state is touched."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfseq import plots
from tfseq.data.music import piano_roll

STEPS = [[60, 64], [60], [], [60], [67]]


def test_roll_notes():
    roll = piano_roll(STEPS)
    assert plots.roll_notes(roll) == [(0, 2, 39), (3, 1, 39), (0, 1, 43), (4, 1, 46)]
    assert plots.roll_notes(roll, hold=False) == [(0, 1, 39), (1, 1, 39), (3, 1, 39), (0, 1, 43), (4, 1, 46)]
    assert plots.roll_notes(np.zeros((0, 88))) == []


def test_piano_roll_draws_each_part_once_and_crops(tmp_path):
    figure = plots.piano_roll(piano_roll(STEPS), tmp_path / "a.png", title="A tune", prefix_steps=1, step_name="quarter note")
    (axes,) = figure.axes
    given, composed = (collection.get_paths() for collection in axes.collections if "Patch" in type(collection).__name__)
    assert len(given) == 2 and len(composed) == 3
    assert axes.get_xlabel() == "time in quarter notes" and axes.get_ylim() == (36.5, 48.5)
    assert "C4" in [label.get_text() for label in axes.get_yticklabels()]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["given", "composed"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_several_rolls_and_a_silent_one():
    figure = plots.piano_roll([piano_roll(STEPS), np.zeros((3, 88))])
    assert len(figure.axes) == 2 and figure.axes[1].get_legend() is None
    assert len(plots.piano_roll(np.zeros((2, 88))).axes) == 1


@pytest.mark.parametrize(
    ("roll", "prefix", "message"),
    [
        (np.zeros((3, 5)), None, r"\[T, 88\]"),
        ([], None, "at least one"),
        (np.zeros((0, 88)), None, "at least one"),
        (np.zeros((3, 88)), 4, "`prefix_steps`"),
    ],
)
def test_piano_roll_errors(roll, prefix, message):
    with pytest.raises(ValueError, match=message):
        plots.piano_roll(roll, prefix_steps=prefix)


def test_curves(tmp_path):
    history = {"loss": [9.0, 8.0, 7.5], "val_loss": [9.5, 8.25, float("nan")], "kl": [0.1, 0.2, 0.3]}
    figure = plots.curves(history, tmp_path / "curves.svg", title="dmm")
    (axes,) = figure.axes
    assert axes.get_ylabel() == "nats per step"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["loss, training", "loss, validation", "kl"]
    assert [text.get_text() for text in axes.texts] == ["8.250"]
    assert b"<svg" in (tmp_path / "curves.svg").read_bytes()
    with pytest.raises(ValueError, match="`history`"):
        plots.curves({})


def test_pyplot_is_not_imported():
    code = (
        "import sys, numpy as np; from tfseq import plots; plots.piano_roll(np.eye(4, 88)); plots.curves({'loss': [1.0]});"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
