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


PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [1.0, 0.0]])


def test_state_path_draws_series_bands_levels_and_probabilities(tmp_path):
    x, states = np.array([[1.0], [np.nan], [3.0], [2.0]]), np.array([0, 1, 1, 0])
    figure = plots.state_path(x, states, PROBS, tmp_path / "path.png", title="hmm", step_name="year", means=np.array([1.5, 4.0]))
    top, below = figure.axes
    series, level = top.lines
    np.testing.assert_array_equal(series.get_ydata(), x[:, 0])
    np.testing.assert_array_equal(level.get_ydata(), [1.5, 4.0, 4.0, 1.5, 1.5])
    np.testing.assert_array_equal(top.images[0].get_array(), states[None])
    assert list(top.images[0].get_extent()[:2]) == [-0.5, 3.5] and below.get_xlim() == (-0.5, 3.5)
    assert len(below.collections) == 2 and below.get_ylim() == (0, 1)
    assert below.get_xlabel() == "time in years" and below.get_ylabel() == "probability"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1"]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["series", "mean of the state"]
    assert (tmp_path / "path.png").read_bytes().startswith(b"\x89PNG")


def test_state_path_marks_steps_that_no_line_reaches():
    x = np.full(300, np.nan)
    x[[3, 7, 8]] = 1.0
    (series,) = plots.state_path(x, np.zeros(300, int)).axes[0].lines
    np.testing.assert_array_equal(np.flatnonzero(series.get_markevery()), [3])


@pytest.mark.parametrize(("num_states", "num_features"), [(1, 1), (8, 3), (20, 1), (40, 88)])
def test_state_path_has_a_colour_for_every_state(num_states, num_features, rng):
    states = rng.integers(num_states, size=60)
    probs = np.full([60, num_states], 1.0 / num_states)
    figure = plots.state_path(rng.normal(size=[60, num_features]), states, probs, means=np.zeros([num_states, num_features]))
    colours = [tuple(patch.get_facecolor()) for patch in figure.legends[0].get_patches()]
    assert len(set(colours)) == len(colours) == num_states
    assert [tuple(area.get_facecolor()[0]) for area in figure.axes[1].collections] == colours


@pytest.mark.parametrize("steps", [1, 2])
def test_state_path_of_few_steps_and_without_probabilities(steps, tmp_path):
    figure = plots.state_path(np.full(steps, np.nan), np.zeros(steps, np.int64), path=tmp_path / "path.svg")
    assert len(figure.axes) == 1 and b"<svg" in (tmp_path / "path.svg").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": np.zeros((0, 1))}, r"`x` must be a series .*received shape \[0, 1\]"),
        ({"x": np.zeros((4, 1, 1))}, "`x` must be a series"),
        ({"states": np.zeros(3, int)}, r"`states` must be whole numbers from 0, one for each of the 4 steps.*shape \[3\]"),
        ({"states": np.zeros(4)}, "`states` must be whole numbers.*received float64"),
        ({"states": np.array([0, -1, 0, 0])}, "`states`.*the least -1"),
        ({"states": np.array([0, 2, 0, 0])}, r"`probs` must be \[T, K\] = \[4, at least 3\].*received \[4, 2\]"),
        ({"probs": PROBS[:3]}, "`probs` must be"),
        ({"probs": np.log(PROBS + 1e-3)}, "`probs` must be at least 0 and sum to 1.*Are they logarithms"),
        ({"probs": PROBS * np.nan}, "`probs` must be at least 0"),
        ({"means": np.zeros(3)}, r"`means` must be \[K, D\] = \[2, 1\].*received \[3, 1\]"),
        ({"means": np.zeros(1), "probs": None}, r"`means` must be \[K, D\] = \[at least 2, 1\]"),
        ({"means": np.zeros((2, 3))}, "`means` must be"),
    ],
)
def test_state_path_errors(changed, message):
    given = {"x": np.zeros((4, 1)), "states": np.array([0, 1, 1, 0]), "probs": PROBS, **changed}
    with pytest.raises(ValueError, match=message):
        plots.state_path(**given)


def test_pyplot_is_not_imported():
    code = (
        "import sys, numpy as np; from tfseq import plots; plots.piano_roll(np.eye(4, 88)); plots.curves({'loss': [1.0]});"
        "plots.state_path(np.arange(3.0), np.arange(3));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
