"""Files: what is written reads back the same, and a failure leaves the old file."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tfseq.data.music import load_piece, piano_roll
from tfseq.data.series import load_series
from tfseq.data.speech import frames, read_wav
from tfseq.data.strokes import COLUMNS as PEN
from tfseq.data.strokes import load_strokes
from tfseq.writers import QUANTILES, answer_lines, kind_of, write_quantiles, write_samples, write_texts

MUSIC21_ABSENT = "music21 is not installed (pip install 'tfseq[music]')"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random_roll(rng: np.random.Generator, num_steps: int) -> np.ndarray:
    """Dense enough for long and repeated notes; the last step sounds, since a MIDI file cannot end in silence."""
    roll = (rng.random((num_steps, 88)) < 0.3).astype(np.float32)
    roll[0] = 0.0
    roll[-1, 40] = 1.0
    return roll


@pytest.mark.parametrize(("step", "step_quarters"), [("quarter", 1.0), ("eighth", 0.5), ("sixteenth", 0.25)])
@pytest.mark.parametrize("hold", [True, False])
def test_midi_round_trip_equals_the_roll(step, step_quarters, hold, rng, tmp_path):
    pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    roll = random_roll(rng, 40)
    (path,) = write_samples(tmp_path / "a.mid", roll, step_quarters=step_quarters, hold=hold)
    np.testing.assert_array_equal(load_piece(path, step), roll)


def test_hold_joins_consecutive_steps(tmp_path):
    music21 = pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    for hold, expected in ((True, 2), (False, 4)):
        (path,) = write_samples(tmp_path / "a.mid", piano_roll([[60], [60], [], [60], [60]]), hold=hold)
        file = music21.midi.MidiFile()
        file.readstr(path.read_bytes())
        assert sum(event.isNoteOn() for track in file.tracks for event in track.events) == expected


def test_several_sequences_become_numbered_files(rng, tmp_path):
    pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    rolls = [random_roll(rng, 5), random_roll(rng, 8)]
    paths = write_samples(tmp_path / "new" / "a.mid", rolls)
    assert [path.name for path in paths] == ["a-1.mid", "a-2.mid"]
    for path, roll in zip(paths, rolls, strict=True):
        np.testing.assert_array_equal(load_piece(path), roll)


def test_npz_pads_and_keeps_lengths(tmp_path):
    x = [np.ones((2, 3), np.float32), np.full((4, 3), 2, np.float32)]
    (path,) = write_samples(tmp_path / "a.npz", x)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["x"].shape == (2, 4, 3) and arrays["lengths"].tolist() == [2, 4]
        assert arrays["x"][0].sum() == 6 and arrays["x"][1].sum() == 24


@pytest.mark.parametrize("x", [np.array([[0.1, 2.0], [3.0, -4.5]], np.float32), np.array([3, 1, 2], np.int32)])
def test_csv_reads_back(x, tmp_path):
    (path,) = write_samples(tmp_path / "a.csv", [x, x])
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    width = 1 if x.ndim == 1 else x.shape[1]
    assert header == ["sequence", "step", *(["symbol"] if x.ndim == 1 else ["x0", "x1"])]
    assert rows[0][2] == ("3" if x.ndim == 1 else "0.1")  # as many digits as the number has
    assert [row[:2] for row in rows] == [[str(i), str(t)] for i in range(2) for t in range(len(x))]
    got = np.array([row[2:] for row in rows], float).astype(x.dtype)
    np.testing.assert_array_equal(got, np.concatenate([x, x]).reshape(-1, width))


def test_png_is_a_picture(rng, tmp_path):
    (path,) = write_samples(tmp_path / "a.png", [random_roll(rng, 5)] * 2, prefix_steps=2)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_all_steps_of_sequences_of_pictures_are_one_grid(rng, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("tfseq.plots.image_grid", lambda *given, **settings: drawn.append((given, settings)))
    x = rng.random((2, 5, 6)).astype(np.float32)
    for given, shape in ((x, (2, 3)), (list(x), None), (x[0], (3, 2))):
        assert write_samples(tmp_path / "a.png", given, shape=shape, step_name="picture", title="rbm") == [tmp_path / "a.png"]
        (pixels, found, path), settings = drawn.pop()
        np.testing.assert_array_equal(pixels, np.concatenate(given) if len(given) == 2 else given)
        assert (found, path, settings) == (shape, tmp_path / "a.png", {"title": "rbm"})
    monkeypatch.undo()
    assert write_samples(tmp_path / "b.png", x, shape=(2, 3))[0].read_bytes().startswith(b"\x89PNG")
    (path,) = write_samples(tmp_path / "b.npz", x, shape=(2, 3))
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["x"], x)


@pytest.mark.parametrize("pictures", [{"shape": (2, 3)}, {"step_name": "picture"}])
def test_pictures_are_no_music(pictures, tmp_path):
    with pytest.raises(
        ValueError, match=r"`path` must end in .png, .*\.npz or .csv for pictures; received .*a\.mid', which is for scores"
    ):
        write_samples(tmp_path / "a.mid", np.zeros((4, 6)), **pictures)
    with pytest.raises(ValueError, match=r"`shape` must be rows and columns.*received \(2, 2\)"):
        write_samples(tmp_path / "a.png", np.zeros((4, 6)), shape=(2, 2))
    assert not list(tmp_path.iterdir())


def test_unknown_suffix_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in one of .mid, .*\.pdf; received .*a\.mp3"):
        write_samples(tmp_path / "a.mp3", np.zeros((2, 88)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 10)), r"\[T, 88\].*\[4, 10\]"),
        (np.full((4, 88), 0.3), "probabilities"),
        ([np.zeros((4, 88)), np.zeros((4, 87))], "same D"),
        ([], "one or more sequences"),
        (np.float32(1.0), "one or more sequences"),
    ],
)
def test_midi_needs_rolls(x, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_samples(tmp_path / "a.mid", x)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", [{"tempo": 0.0}, {"step_quarters": -1.0}, {"tempo": float("nan")}])
def test_midi_settings_are_checked(setting, tmp_path):
    with pytest.raises(ValueError, match="must be positive"):
        write_samples(tmp_path / "a.mid", piano_roll([[60]]), **setting)


@pytest.mark.parametrize("suffix", [".mid", ".npz", ".csv", ".png"])
def test_unwritable_folder(suffix, tmp_path):
    if suffix == ".mid":
        pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    (tmp_path / "file").write_text("kept")
    path = tmp_path / "file" / f"a{suffix}"  # a folder's place is taken by a file: fails for root too
    with pytest.raises(OSError, match=r"a\.\w+ could not be written"):
        write_samples(path, piano_roll([[60]]))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".png"])
def test_failure_keeps_the_old_file(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_text("old")

    def disk_full(target: Path, *_, **__):
        Path(target).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tfseq.writers._write_npz", disk_full)
    monkeypatch.setattr("tfseq.writers._write_csv", disk_full)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, target, **_: disk_full(target))
    with pytest.raises(OSError, match="could not be written.*No space left"):
        write_samples(path, piano_roll([[60]]))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# Recordings, strokes, series ------------------------------------------------------------------------------------------


def test_recordings_are_read_back(rng, tmp_path):
    levels = rng.integers(-(2**15), 2**15, 1000).astype(np.int32)
    samples = (levels / 2**15).astype(np.float32)
    (path,) = write_samples(tmp_path / "a.wav", frames(samples, 200), sampling_rate=8000)
    np.testing.assert_array_equal(read_wav(path, 8000), samples)
    paths = write_samples(tmp_path / "b.wav", [frames(samples, 200), frames(samples[:30], 200)], sampling_rate=11025)
    assert [p.name for p in paths] == ["b-1.wav", "b-2.wav"]
    np.testing.assert_array_equal(read_wav(paths[1], 11025), np.pad(samples[:30], (0, 170)))


def test_what_is_too_loud_is_made_softer_and_not_clipped(tmp_path):
    x = np.array([[0.5, -4.0], [2.0, 1.0]], np.float32)
    (path,) = write_samples(tmp_path / "a.wav", x, sampling_rate=8000)
    np.testing.assert_array_equal(read_wav(path), [0.125, -1.0, 0.5, 0.25])
    (path,) = write_samples(tmp_path / "a.wav", np.ones((1, 2)), sampling_rate=8000)
    np.testing.assert_array_equal(read_wav(path), [1 - 2**-15] * 2)  # the largest there is
    for bad, why in (
        (np.array([[0.0, np.nan]]), "not finite. Did the training diverge"),
        (np.zeros((0, 200)), "recording 0 has none"),
    ):
        with pytest.raises(ValueError, match=why):
            write_samples(tmp_path / "b.wav", bad, sampling_rate=8000)
    assert not (tmp_path / "b.wav").exists()


KINDS = {
    "recordings": {"sampling_rate": 8000},
    "strokes of a pen": {"columns": PEN},
    "scores": {"step_name": "quarter note"},
    "pictures": {"step_name": "picture"},
    "series": {"columns": ["a", "b", "c"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_files_and_no_others(kind, tmp_path, monkeypatch):
    assert kind_of(**KINDS[kind]) == kind
    x = np.zeros((4, 88 if kind == "scores" else 3), np.float32)
    drawers = {"strokes of a pen": "strokes", "scores": "piano_roll", "pictures": "image_grid"}
    drawn = []
    monkeypatch.setattr(f"tfseq.plots.{drawers.get(kind, kind)}", lambda *given, **_: drawn.append(given))
    for suffix in (".png", ".svg", ".pdf"):
        write_samples(tmp_path / f"a{suffix}", x, **KINDS[kind])
    assert len(drawn) == 3
    np.testing.assert_array_equal(np.reshape(drawn[0][0], x.shape), x)
    for suffix, owner in ((".wav", "recordings"), (".mid", "scores")):
        if kind != owner and not (kind == "series" and suffix == ".mid"):  # that these are no rolls, their shape says
            with pytest.raises(ValueError, match=f"must end in .* for {kind}; received .*{suffix}', which is for {owner}"):
                write_samples(tmp_path / f"b{suffix}", x, **KINDS[kind])
    for suffix in (".npz", ".csv"):
        assert write_samples(tmp_path / f"a{suffix}", x, **KINDS[kind])[0].exists()
    with pytest.raises(ValueError, match="`columns` must have a name for each feature"):
        write_samples(tmp_path / "c.csv", np.zeros((4, 2)), columns=["a"])


def test_strokes_are_read_back(tmp_path):
    data = load_strokes("valid").take(range(3))
    for suffix in (".csv", ".npz"):
        (path,) = write_samples(tmp_path / f"a{suffix}", data.x, columns=data.columns)
        found = load_series(path)
        assert [x.tolist() for x in found.x] == [x.tolist() for x in data.x]
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        assert write_samples(tmp_path / f"a{suffix}", data.x, columns=data.columns)[0].read_bytes().startswith(start)


def test_quantiles_of_a_forecast(rng, tmp_path):
    samples = rng.normal(size=(2, 50, 3, 2)).astype(np.float32)
    write_quantiles(tmp_path / "q.csv", samples, starts=[7, 9], names=["a", "b,c"], columns=["temp", "wind"])
    with (tmp_path / "q.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sequence", "step", "feature", "mean", "q05", "q25", "q50", "q75", "q95"]
    assert [row[:3] for row in rows] == [
        [name, str(start + h), feature]
        for name, start in (("a", 7), ("b,c", 9))
        for h in range(3)
        for feature in ("temp", "wind")
    ]
    found = np.array([row[3:] for row in rows], np.float32).reshape(2, 3, 2, 6)
    np.testing.assert_array_equal(found[..., 1:], np.moveaxis(np.quantile(samples, QUANTILES, 1), 0, -1).astype(np.float32))
    np.testing.assert_allclose(found[..., 0], samples.astype(float).mean(1), rtol=1e-6)
    write_quantiles(tmp_path / "r.csv", samples, starts=[0, 0], levels=(0.025, 1.0))
    assert (tmp_path / "r.csv").read_text().splitlines()[:1] == ["sequence,step,feature,mean,q2.5,q100"]
    assert (tmp_path / "r.csv").read_text().splitlines()[1].startswith("0,0,x0,")


# Texts --------------------------------------------------------------------------------------------------------------


def test_texts_are_written_by_their_suffix(tmp_path):
    texts = [{"prompt": "a", "text": "ab\n"}, {"prompt": "a", "text": "a\u00e9"}]
    write_texts(tmp_path / "a.txt", texts)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == f"ab\n{'-' * 40}\na\u00e9\n"
    write_texts(tmp_path / "one.txt", texts[:1])
    assert (tmp_path / "one.txt").read_text() == "ab\n"
    write_texts(tmp_path / "a.json", texts)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == texts
    with pytest.raises(ValueError, match="must end in .txt or .json"):
        write_texts(tmp_path / "a.doc", texts)


def test_answers_are_lines():
    tagged = {"text": "a\tb", "tokens": ["a", "\t"], "tags": ["O", "B"], "scores": [0.5, np.float32(0.25)]}
    assert answer_lines(tagged) == "a\tO\t0.5000\n \tB\t0.2500\n\n"
    assert answer_lines({"name": "x", "tags": ["O"], "scores": [1.0]}) == "0\tO\t1.0000\n\n"
    assert answer_lines({"text": "a\u2028b", "label": "pos", "prob": 0.75}) == "pos\t0.7500\ta b\n"
    assert answer_lines({"tokens": ["a", "b"], "log_prob": -1.5, "num_tokens": 2}) == "-1.5000\t2\ta b\n"
    assert answer_lines({"text": "x", "translation": "y\nz", "log_prob": -1.0}) == "y z\n"
    assert json.loads(answer_lines({"a": float("nan"), "b": [np.float32(0.1), np.int32(3)]}, "json")) == {
        "a": None,
        "b": [0.1, 3],
    }
