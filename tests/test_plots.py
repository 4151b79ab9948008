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


def tiles(figure, shape: tuple[int, int], scale: int, line: int = 2) -> np.ndarray:
    """The pictures `[rows, columns, H, W, 4]` that stand in the one array of a figure, unscaled, bytes."""
    (axes,) = figure.axes
    (image,) = axes.images
    dots = np.asarray(image.get_array())
    height, width = (n * scale + line for n in shape)
    rows, columns = (dots.shape[0] - line) // height, (dots.shape[1] - line) // width
    cells = dots[line:, line:][: rows * height, : columns * width].reshape(rows, height, columns, width, 4)
    return cells.transpose(0, 2, 1, 3, 4)[:, :, :-line:scale, :-line:scale]


def test_image_grid_holds_every_pixel_once(rng, tmp_path):
    x = rng.random((7, 6))
    figure = plots.image_grid(x, (2, 3), tmp_path / "a.png", columns=4, title="digits")
    found = tiles(figure, (2, 3), 53)  # a picture is at most 160 dots long
    assert found.shape == (2, 4, 2, 3, 4)
    np.testing.assert_array_equal(found.reshape(8, 6, 4)[:7, :, 0], np.rint(x * 255))
    np.testing.assert_array_equal(found.reshape(8, 6, 4)[..., 3], [[255] * 6] * 7 + [[0] * 6])  # no eighth picture
    assert figure.axes[0].get_title(loc="left") == "digits" and figure.axes[0].get_xlabel() == ""
    plain = plots.image_grid(x, (2, 3), tmp_path / "b.png", columns=4)
    from matplotlib.image import imread

    dots = np.asarray(plain.axes[0].images[0].get_array())
    file = np.rint(imread(tmp_path / "b.png") * 255)[18 : 18 + dots.shape[0], 18 : 18 + dots.shape[1]]  # within its margin
    np.testing.assert_array_equal(file[..., :3], np.where(dots[..., 3:] > 0, dots[..., :3], 255))  # dot by dot, nothing resampled


@pytest.mark.parametrize(("num", "shape", "columns"), [(1, (8, 8), 1), (6, (8, 8), 6), (64, (8, 8), 8), (300, (28, 28), 18)])
def test_image_grid_is_about_square(num, shape, columns):
    figure = plots.image_grid(np.zeros((num, shape[0] * shape[1]), bool), shape)
    scale = {1: 20, 6: 20, 64: 18, 300: 2}[num]
    assert tiles(figure, shape, scale).shape[:2] == (-(-num // columns), columns)


def test_image_grid_of_real_values_says_its_scale(rng):
    x = rng.normal(size=(3, 4))
    x[0, 0], x[2, 3] = -5.0, 7.25
    figure = plots.image_grid(x, (2, 2))
    assert figure.axes[0].get_xlabel() == "black is -5, white 7.25"
    np.testing.assert_array_equal(tiles(figure, (2, 2), 80)[..., 0].reshape(3, 4), np.rint((x + 5.0) / 12.25 * 255))
    assert not tiles(plots.image_grid(np.full((1, 4), 3.0), (2, 2)), (2, 2), 80)[..., 0].any()


def test_receptive_fields_have_a_scale_each_and_grey_for_zero(tmp_path):
    weights = np.array([[1.0, -0.01, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.01, 0.0], [0.5, 0.005, 0.0]])  # [V, H]
    figure = plots.receptive_fields(weights, (2, 2), tmp_path / "a.png", title="rbm")
    one, two, none = tiles(figure, (2, 2), 80)[0, ..., :3].reshape(3, 4, 3).astype(int)
    assert np.ptp(one[2]) == 0 and (none == one[2]).all() and 200 < one[2, 0] < 230  # grey
    np.testing.assert_array_equal(one[[1, 2, 0, 3]], two)
    assert one[1, 2] > one[1, 0] and one[0, 0] > one[0, 2]  # negative is blue, positive orange
    assert "each on its own scale" in figure.axes[0].get_xlabel()


def test_reconstructions_stand_below_what_was_given(rng):
    x, x_hat = rng.random((2, 8, 9))
    figure = plots.reconstructions(x, x_hat, (3, 3), columns=5)
    dots = np.asarray(figure.axes[0].images[0].get_array())
    step = 3 * 53 + 2
    tops = [2, 2 + step, 2 + 2 * step + 6, 2 + 3 * step + 6]  # a wider line between pairs
    for top, rows in zip(tops, (x[:5], x_hat[:5], x[5:], x_hat[5:]), strict=True):
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(
                dots[top : top + 159 : 53, 2 + i * step : 161 + i * step : 53, 0], np.rint(row * 255).reshape(3, 3)
            )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["given", "reconstructed"] * 2


def test_chains_are_rows_and_sweeps_columns(rng):
    states = rng.random((3, 4, 6)) < 0.5
    figure = plots.chains(states, (2, 3), sweeps=[0, 1, 10, 100], title="chains")
    np.testing.assert_array_equal(tiles(figure, (2, 3), 53)[..., 0].reshape(3, 4, 6), states * 255)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "10", "100"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["chain 1", "chain 2", "chain 3"]
    assert axes.get_xlabel() == "sweeps"
    (axes,) = plots.chains(rng.random((100, 100, 4)), (2, 2)).axes
    assert 10 < len(axes.get_xticks()) < 60 and 10 < len(axes.get_yticks()) < 80  # what has room


def test_without_a_shape_pictures_are_a_strip(rng, tmp_path):
    x = rng.normal(size=(5, 7))
    for figure, lines in (
        (plots.image_grid(x, None, tmp_path / "a.png", title="strip"), x),
        (plots.receptive_fields(x.T, None), x / np.abs(x).max(axis=1, keepdims=True)),
        (plots.reconstructions(x, x + 1, None), np.concatenate([x, x + 1])),
        (plots.chains(np.stack([x, x - 1]), None), np.concatenate([x, x - 1])),
    ):
        axes, bar = figure.axes
        np.testing.assert_array_equal(axes.images[0].get_array(), lines)
        assert axes.get_xlabel() == "pixel"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["chain 1", "chain 2"]
    assert axes.get_ylabel() == "sweeps 0 to 4, downwards"
    np.testing.assert_allclose(bar.get_ylim(), (x.min() - 1, x.max()))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda x: plots.image_grid(x[0], (2, 3)), r"`x` must be numbers \[N, V\].*received float64 of shape \[6\]"),
        (lambda x: plots.image_grid(x[:0], (2, 3)), r"`x` must be numbers.*shape \[0, 6\]"),
        (lambda x: plots.image_grid(x * 1j, (2, 3)), "`x` must be numbers.*complex"),
        (lambda x: plots.image_grid(x / 0.0, (2, 3)), r"`x` must be finite; received nan at index \[0, 0\]. Did the training"),
        (lambda x: plots.image_grid(x, (2, 2)), r"`shape` must be .* product is V of `x`, 6; received \(2, 2\)"),
        (lambda x: plots.image_grid(x, (6,)), "`shape` must be"),
        (lambda x: plots.image_grid(x, (-2, -3)), "`shape` must be"),
        (lambda x: plots.image_grid(x, (2, 3), columns=0), "`columns` must be a whole number of at least 1; received 0"),
        (lambda x: plots.receptive_fields(x[0], (2, 3)), r"`weights` must be numbers \[V, H\]"),
        (lambda x: plots.receptive_fields(x, (2, 3)), "`shape` must be .* V of `weights`, 4"),
        (lambda x: plots.reconstructions(x, x[:2], (2, 3)), r"`x_hat` must have the shape of `x`, \[4, 6\].*received \[2, 6\]"),
        (lambda x: plots.chains(x, (2, 3)), r"`states` must be numbers \[C, S, V\]"),
        (lambda x: plots.chains(x[None], (2, 3), sweeps=[1]), "`sweeps` must have a number for each of the 4 times.*received 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # 0/0 makes the NaN of one of them
def test_pictures_that_cannot_be_drawn(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(np.zeros((4, 6)))


def test_pyplot_is_not_imported():
    code = (
        "import sys, numpy as np; from tfseq import plots; plots.piano_roll(np.eye(4, 88)); plots.curves({'loss': [1.0]});"
        "plots.state_path(np.arange(3.0), np.arange(3)); plots.image_grid(np.zeros((2, 4)), (2, 2));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# Tokens -------------------------------------------------------------------------------------------------------------


def test_attention_is_drawn_with_its_tokens_whatever_they_are(tmp_path):
    weights = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0], [0.0, 0.0, 0.0, 1.0]])
    source = ["$x$", "東京", "a\nb", " "]  # no formula, letters that the font may lack, and white space
    figure = plots.attention(weights, source, ["the", "$", "</s>"], tmp_path / "a.png", title="Seq2Seq")
    axes, _ = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[0] == "$x$" and len(labels[1]) == 2 and labels[2:] == ["a\\nb", "\u2423"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["the", "$", "</s>"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("source", "target")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_tag_probs_leave_out_tags_that_are_nowhere():
    figure = plots.tag_probs(np.array([[0.9, 0.001, 0.099], [0.2, 0.002, 0.798]]), ["Ann", "met"], ["B", "I", "O"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["B", "O"]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), [[0.9, 0.2], [0.099, 0.798]])


def test_maps_of_tokens_that_cannot_be():
    with pytest.raises(ValueError, match="`weights` must have a number for each pair of 2 and 3 tokens"):
        plots.attention(np.zeros((2, 2)), ["a", "b", "c"], ["d", "e"])
    with pytest.raises(ValueError, match="`probs` must lie in \\[0, 1\\]"):
        plots.tag_probs(np.array([[-1.0, 3.0]]), ["a"], ["A", "B"])


# Series, trajectories, recordings.


def bands(axes) -> list[np.ndarray]:
    """The edges of the bands of a panel, widest first: `[2, points]`, low and high."""
    found = []
    for band in axes.collections:
        vertices = band.get_paths()[0].vertices
        num = (len(vertices) - 3) // 2  # fill_between goes along one edge, back along the other, and closes
        found.append(np.stack([vertices[1 : num + 1, 1], vertices[num + 2 : -1, 1][::-1]]))
    return found


@pytest.mark.parametrize("known", [True, False])
def test_bands_of_a_forecast_are_quantiles_of_the_samples(rng, tmp_path, known):
    history, samples = rng.normal(size=(30, 2)), rng.normal(size=(50, 4, 2))
    history[3, 0] = np.nan
    if not known:
        history[-1] = np.nan
    figure = plots.forecast(
        history, samples, tmp_path / "a.svg", names=["temp", "$wind_"], levels=(0.5, 0.9), title="dmm", step_name="day"
    )
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert [axes.get_ylabel() for axes in figure.axes] == ["temp", "$wind_"]
    assert figure.axes[-1].get_xlabel() == "time in days"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["given", "90 %", "50 %", "median"]
    for d, axes in enumerate(figure.axes):
        given, median, _ = axes.lines
        np.testing.assert_array_equal(given.get_xdata(), np.arange(30))
        np.testing.assert_array_equal(given.get_ydata(), history[:, d])
        start = int(known)  # bands and median begin at the last value that is known
        np.testing.assert_array_equal(median.get_xdata(), np.arange(30 - start, 34))
        np.testing.assert_allclose(median.get_ydata()[start:], np.quantile(samples[..., d], 0.5, axis=0))
        wide, narrow = bands(axes)
        np.testing.assert_allclose(wide[:, start:], np.quantile(samples[..., d], (0.05, 0.95), axis=0))
        np.testing.assert_allclose(narrow[:, start:], np.quantile(samples[..., d], (0.25, 0.75), axis=0))
        if known:
            assert wide[:, 0].tolist() == narrow[:, 0].tolist() == [history[-1, d]] * 2 == [median.get_ydata()[0]] * 2


def test_a_forecast_shows_the_last_steps_and_the_first_features(rng):
    figure = plots.forecast(rng.normal(size=(500, 12)), rng.normal(size=(3, 10, 12)))
    assert len(figure.axes) == 8 and figure.axes[0].get_title(loc="right") == "the first 8 of 12 features"
    assert figure.axes[0].lines[0].get_xdata()[[0, -1]].tolist() == [400, 499] and figure.axes[7].get_ylabel() == "x7"
    figure = plots.forecast(np.zeros(500), rng.normal(size=(3, 40)), history_steps=7)
    assert figure.axes[0].lines[0].get_xdata()[0] == 493 and figure.axes[0].get_ylabel() == "value"
    assert len(plots.forecast(np.zeros((0, 1)), np.zeros((1, 1, 1))).axes) == 1  # no history


@pytest.mark.parametrize(
    ("history", "samples", "settings", "message"),
    [
        (np.zeros((3, 2)), np.zeros((4, 5, 3)), {}, r"received shapes \[3, 2\] and \[4, 5, 3\]"),
        (np.zeros((3, 2)), np.zeros((0, 5, 2)), {}, "at least one sample"),
        (np.zeros(3), np.full((4, 5), np.nan), {}, r"must be finite; received nan at index \[0, 0, 0\]. Did the training"),
        (np.zeros(3), np.zeros((4, 5)), {"levels": (0.5, 95)}, "`levels` must be numbers between 0 and 1"),
        (np.zeros(3), np.zeros((4, 5)), {"levels": ()}, "`levels`"),
        (np.zeros(3), np.zeros((4, 5)), {"names": ["a", "b"]}, "`names` must have one for each of the 1 features; received 2"),
    ],
)
def test_forecast_errors(history, samples, settings, message):
    with pytest.raises(ValueError, match=message):
        plots.forecast(history, samples, **settings)


def test_series_over_each_other(rng):
    x = [rng.normal(size=(9, 2)), rng.normal(size=(5, 2))]
    figure = plots.series(x, names=["a", "b"], step_name="year", prefix_steps=3)
    for d, axes in enumerate(figure.axes):
        lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
        assert lines["1"] == x[0][:, d].tolist() and lines["2"] == x[1][:, d].tolist() and lines["given"] == x[0][:3, d].tolist()
    assert plots.series(np.array([1.0, np.nan, 3.0])).axes[0].lines[0].get_marker() == "."  # alone between gaps
    assert not plots.series(rng.normal(size=(9, 5, 1))).legends and len(plots.series(rng.normal(size=(4, 5, 1))).legends) == 1
    for bad in ([], [np.zeros((3, 2)), np.zeros((3, 1))], np.zeros((0, 2))):
        with pytest.raises(ValueError, match="`x` must be series"):
            plots.series(bad)


def test_strokes_are_lines_where_the_pen_is_down():
    #   at (1, 1), to (2, 1) and up; at (2, 3) alone; at (0, 0), to (0, 1) and on without an end
    x = np.array([[0, 1, 1], [1, 1, 0], [0.6, 0, 2], [0.4, -2, -3], [0, 0, 1]])
    figure = plots.strokes([x, x[:2]], prefix_steps=1, title="two")
    first, second = figure.axes
    lines, dots = first.collections
    assert [s.tolist() for s in lines.get_segments()] == [[[1, 1], [2, 1]], [[0, 0], [0, 1]]]
    assert dots.get_offsets().tolist() == [[2, 3]]
    assert [s.tolist() for s in second.collections[0].get_segments()] == [[[1, 1], [2, 1]]]
    assert first.get_aspect() == 1.0
    whole = plots.strokes(x, prefix_steps=2)
    colours = whole.axes[0].collections[0].get_colors()
    assert colours[0].tolist() != colours[1].tolist()  # given, and not
    assert len(plots.strokes(np.zeros((7, 4, 3)), columns=3).axes) == 9
    for bad, message in (
        (np.zeros((3, 2)), "pen, dx, dy"),
        (np.full((3, 3), np.inf), "must be finite"),
        ([np.zeros((0, 3))], "at least one trajectory"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.strokes(bad)


def test_recordings_over_seconds(tmp_path):
    x = [np.arange(12.0).reshape(3, 4), np.arange(4.0)]
    figure = plots.recordings(x, 4, tmp_path / "a.png")
    for axes, each in zip(figure.axes, x, strict=True):
        assert axes.lines[0].get_ydata().tolist() == each.ravel().tolist()
    assert figure.axes[0].lines[0].get_xdata()[-1] == 11 / 4
    with pytest.raises(ValueError, match="at least one recording"):
        plots.recordings([], 8000)
