"""Loaders: rolls, the benchmark files, Bach's chorales, the user's own folders, and hashes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfseq import data
from tfseq.data import DATASETS, SPLITS, Sequences, data_hash, load_dataset, music
from tfseq.data.music import load_folder, load_piece, piano_roll, pitches

SHARED = Path(os.environ.get("TFSEQ_DATA") or Path(__file__).parents[2] / "shared" / "data")
MUSIC21_ABSENT = "music21 is not installed (pip install 'tfseq[music]')"


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "polymusic").is_dir():
        pytest.skip(f"needs the data files in {SHARED} (or TFSEQ_DATA)")
    return SHARED


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("TFSEQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """Every download fails at once, as without a network."""
    import pooch

    def retrieve(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", retrieve)


# Rolls.


def test_piano_roll_and_pitches_are_inverse():
    steps = [[21, 60, 64], [], [108]]
    roll = piano_roll(steps)
    assert roll.shape == (3, 88) and roll.dtype == np.float32 and roll.sum() == 4
    assert roll[0, 0] == 1 and roll[2, 87] == 1
    assert pitches(roll) == steps


@pytest.mark.parametrize("pitch", [20, 109, -1, 60.5])
def test_piano_roll_names_the_pitch_out_of_range(pitch):
    with pytest.raises(ValueError, match=rf"`steps`.*received {pitch} at step 1"):
        piano_roll([[60], [pitch]])


def test_pitches_rejects_probabilities_and_other_shapes():
    with pytest.raises(ValueError, match="probabilities"):
        pitches(np.full((2, 88), 0.5))
    with pytest.raises(ValueError, match=r"\[T, 88\].*\[2, 87\]"):
        pitches(np.zeros((2, 87)))


# The benchmark files. Counts are those of the data's own table.

COUNTS = {
    "jsb": ((229, 76, 77), (13807, 4602, 4725)),
    "piano-midi": ((87, 12, 25), (75911, 8540, 19036)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_benchmark_counts(name, shared):
    splits = [load_dataset(name, split, data_dir=shared) for split in SPLITS]
    assert tuple(len(each) for each in splits) == COUNTS[name][0]
    assert tuple(int(each.lengths.sum()) for each in splits) == COUNTS[name][1]
    assert [each.split for each in splits] == list(SPLITS) and splits[0].name == name
    assert all(roll.dtype == np.float32 and roll.shape[1] == 88 for each in splits for roll in each.x)


def test_jsb_equals_the_json_form_note_for_note(shared):
    published = json.loads((shared / "jsb_json" / "jsb-chorales-quarter.json").read_text())
    for split in SPLITS:
        got = [pitches(roll) for roll in load_dataset("jsb", split, data_dir=shared).x]
        assert got == [[sorted(set(step)) for step in piece] for piece in published[split]]


def test_train_mean_bernoulli_baseline_of_jsb(shared):
    """11.062 nats per step is the figure published for this baseline on the test split."""
    train, test = (np.concatenate(load_dataset("jsb", split, data_dir=shared).x).astype(float) for split in ("train", "test"))
    p = np.clip(train.mean(0), 1e-4, 1 - 1e-4)
    nats = -(test * np.log(p) + (1 - test) * np.log1p(-p)).sum(1).mean()
    assert nats == pytest.approx(11.062, abs=5e-4)


def test_damaged_file_in_data_dir(tmp_path):
    (tmp_path / "polymusic").mkdir()
    (tmp_path / "polymusic" / "JSB_Chorales.mat").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="JSB_Chorales.mat must have SHA-256 ac0e6.*11 bytes.*download it again"):
        load_dataset("jsb", data_dir=tmp_path)


def test_missing_file_says_what_to_do(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("musedata", data_dir=tmp_path)
    for words in ("polymusic/MuseData.mat", "https://raw.githubusercontent.com/", "--data-dir", "no network"):
        assert words in str(error.value)


def test_data_dir_that_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_dir` must be an existing folder"):
        load_dataset("jsb", data_dir=tmp_path / "typo")


def test_data_dir_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "polymusic").mkdir()
    (tmp_path / "polymusic" / "Nottingham.mat").write_bytes(b"")
    monkeypatch.setenv("TFSEQ_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="Nottingham.mat must have SHA-256"):
        load_dataset("nottingham")


# Names.


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'chorales'.*nottingham"):
        load_dataset("chorals")
    with pytest.raises(ValueError, match="path of an existing folder.*Did you mean 'jsb'"):
        load_dataset("JSB")


@pytest.mark.parametrize(("split", "nearest"), [("validation", "valid"), ("Test", "test")])
def test_unknown_split_suggests_the_nearest(split, nearest):
    with pytest.raises(ValueError, match=f"`split`.*{split}.*Did you mean '{nearest}'"):
        load_dataset("jsb", split)


def test_every_entry_names_a_loader():
    for name, entry in DATASETS.items():
        assert callable(entry.resolve()), name
        assert entry.summary and "\n" not in entry.summary


def test_the_table_answers_without_heavy_imports():
    code = "import sys, tfseq.data; sys.exit(bool({'tensorflow', 'music21', 'scipy', 'pooch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_data_hash_sees_content_shape_dtype_and_controls():
    x = np.arange(6, dtype=np.float32)
    base = Sequences([x.reshape(3, 2)])
    others = [
        Sequences([x.reshape(2, 3)]),
        Sequences([x.reshape(3, 2).astype(np.int32)]),
        Sequences([x.reshape(3, 2) + 1]),
        Sequences([x[:2].reshape(1, 2), x[2:].reshape(2, 2)]),
        Sequences([x.reshape(3, 2)], u=[x.reshape(3, 2)]),
        Sequences([x.reshape(3, 2)], observed=[x.reshape(3, 2) > 0]),
        Sequences([]),
    ]
    assert len({data_hash(each) for each in [base, *others]}) == len(others) + 1
    assert data_hash(base) == data_hash(Sequences([np.asfortranarray(x.reshape(3, 2)).astype(">f4")], names=["a"]))
    with pytest.raises(ValueError, match="numeric"):
        data_hash(Sequences([np.array(["a", None], object)]))


# Chorales.


def test_transposing_at_random_keeps_intervals_and_stays_on_the_keys(rng):
    low, high = (music.piano_roll([[21 + a, 25 + a, 28 + a], [23 + a]]) for a in (1, 80))
    for roll, shifts in ((low, range(-1, 4)), (high, range(-3, 1))):
        found = [music.transposed(roll, rng) for _ in range(300)]
        moved = [int(np.flatnonzero(x[0])[0] - np.flatnonzero(roll[0])[0]) for x in found]
        assert set(moved) == set(shifts)
        for x, shift in zip(found, moved, strict=True):
            assert music.pitches(x) == [[p + shift for p in step] for step in music.pitches(roll)]
        still = 0.5 + 0.5 / len(shifts)  # half are kept, and some move by nothing
        assert abs(np.mean(np.array(moved) == 0) - still) < 4.5 * np.sqrt(still * (1 - still) / 300)
    silence = np.zeros((3, 88), np.float32)
    np.testing.assert_array_equal(music.transposed(silence, rng), silence)


def test_the_nearest_transposition_to_c():
    assert [music.semitones_to_c(tonic) for tonic in range(12)] == [0, -1, -2, -3, -4, -5, 6, 5, 4, 3, 2, 1]


def test_split_depends_on_the_name_alone():
    names = [f"bwv{i}" for i in range(4000)]
    shares = [sum(music.split_of(name) == split for name in names) / len(names) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.02)  # three standard deviations
    assert music.split_of("bwv66.6") == "train" and music.split_of("bwv99.6") == "test"


def test_sampling_takes_what_sounds_at_the_instant():
    notes = np.array([[0, 1, 60], [0.5, 2, 64], [1, 1, 72], [2.25, 2.75, 67], [3, 4, 60]])
    assert pitches(music._sample(notes, 1.0)) == [[60], [64], [], [60]]
    assert pitches(music._sample(notes, 0.5)) == [[60], [60, 64], [64], [64], [], [67], [60], [60]]
    assert pitches(music._sample(notes, 1.0, start=0.5)) == [[60, 64], [64], [67], [60]]


def test_sampling_rejects_silence_and_damage():
    with pytest.raises(ValueError, match="no pitched notes"):
        music._sample(np.zeros((0, 3)), 1.0)
    with pytest.raises(ValueError, match="longer than"):
        music._sample(np.array([[1e7, 1e7 + 1, 60]]), 1.0)
    with pytest.raises(ValueError, match="span 12 to 60"):
        music._sample(np.array([[0, 1, 12], [0, 1, 60]]), 1.0)


@pytest.fixture
def four_files() -> list[Path]:
    """bwv66.6 (F sharp minor, pick-up of a quarter), a setting that occurs twice in the corpus, and a piano piece."""
    pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    files = {file.name: file for file in music._chorale_files()}
    return [files[f"bwv{number}.mxl"] for number in ("66.6", "197.7-a", "398", "846")]


def test_chorales_from_the_corpus(four_files, cache, monkeypatch, capsys):
    monkeypatch.setattr(music, "_chorale_files", lambda: four_files)
    splits = {split: load_dataset("chorales", split) for split in SPLITS}
    names = [name for each in splits.values() for name in each.names]
    assert sorted(names) == ["bwv197.7-a", "bwv66.6"]  # 398 is the same setting, 846 has no four voices

    each = splits["train"]
    roll = each.x[list(each.names).index("bwv66.6")]
    assert roll.shape == (36, 88) and each.step == "quarter note"
    # Its upbeat is A3 (tenor and bass), E4, C sharp 5; F sharp minor goes six semitones up.
    assert pitches(roll)[0] == [57 + 6, 64 + 6, 73 + 6]

    monkeypatch.setattr(music, "_build_chorales", lambda files: pytest.fail("must come from the cache"))
    fine = load_dataset("chorales-sixteenth", "train")
    assert fine.names == each.names and fine.step == "sixteenth note"
    for a, b, c in zip(each.x, fine.x, load_dataset("chorales-eighth", "train").x, strict=True):
        np.testing.assert_array_equal(a, b[::4])
        np.testing.assert_array_equal(c, b[::2])
    assert not list(cache.glob(".*"))  # no temporary file is left


@pytest.fixture
def two_rolls() -> tuple[list[str], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return ["a", "b"], [rng.random((8, 88)) < 0.1, rng.random((4, 88)) < 0.1]


@pytest.mark.parametrize("damage", [b"", b"PK nonsense", None])
def test_damaged_cache_is_built_again(damage, two_rolls, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(music, "_build_chorales", lambda files: two_rolls)
    monkeypatch.setattr(music, "_chorale_files", lambda: [])
    path = tmp_path / "chorales.npz"
    if damage is None:
        np.savez(path, names=np.array(["a"]), offsets=np.array([0, 9]), steps=np.zeros((8, 88), bool))
    else:
        path.write_bytes(damage)
    for _ in range(2):
        names, rolls = music._cached_chorales(path)
        assert names == two_rolls[0]
        for got, expected in zip(rolls, two_rolls[1], strict=True):
            np.testing.assert_array_equal(got, expected)
    assert capsys.readouterr().err.count("is damaged") == 1


def test_unwritable_cache_does_not_lose_the_result(two_rolls, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(music, "_build_chorales", lambda files: two_rolls)
    monkeypatch.setattr(music, "_chorale_files", lambda: [])
    (tmp_path / "file").write_text("")
    names, _ = music._cached_chorales(tmp_path / "file" / "chorales.npz")
    assert names == two_rolls[0]
    assert "built again next time" in capsys.readouterr().err


def test_music21_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(ImportError, match=r"pip install \"tfseq\[music\]\""):
        load_dataset("chorales")


# The user's own files.


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty pieces of one note, each of another pitch, in two subfolders."""
    music21 = pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    root = tmp_path / "pieces"
    for i in range(40):
        note = music21.note.Note(40 + i, quarterLength=2.0)
        file = root / ("ab"[i % 2]) / f"{i}.mid"
        file.parent.mkdir(parents=True, exist_ok=True)
        music21.stream.Part([note]).write("midi", fp=file)
    return root


def test_load_folder_splits_by_name(folder):
    splits = [load_dataset(folder, split) for split in SPLITS]
    names = [name for each in splits for name in each.names]
    assert len(set(names)) == len(names) == 40 and all(len(each) for each in splits)
    for each in splits:
        assert list(each.names) == sorted(each.names) and each.step == "quarter note"
        for name, roll in zip(each.names, each.x, strict=True):
            assert pitches(roll) == [[40 + int(Path(name).stem)]] * 2


def test_load_folder_with_split_subfolders(folder):
    for split, number in zip(SPLITS, (3, 4, 5), strict=True):
        (folder / split).mkdir()
        shutil.copy(folder / "ab"[number % 2] / f"{number}.mid", folder / split / "piece.mid")
    for split, number in zip(SPLITS, (3, 4, 5), strict=True):
        got = load_folder(folder, split, step="eighth")
        assert list(got.names) == ["piece.mid"] and pitches(got.x[0]) == [[40 + number]] * 4
    shutil.rmtree(folder / "valid")
    with pytest.raises(ValueError, match="valid must hold files"):
        load_folder(folder, "valid")


def test_load_folder_errors(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match="existing folder"):
        load_folder(tmp_path / "absent")
    with pytest.raises(ValueError, match="`step`.*'quarters'.*Did you mean 'quarter'"):
        load_folder(tmp_path, step="quarters")


def test_load_folder_with_an_empty_split(tmp_path):
    (tmp_path / "one.mid").write_bytes(b"")
    other = next(split for split in SPLITS if split != music.split_of("one"))
    with pytest.raises(ValueError, match="has 1 pieces, and none of them.*subfolders"):
        load_folder(tmp_path, other)


@pytest.mark.parametrize("suffix", [".mid", ".xml", ".mxl", ".musicxml"])
@pytest.mark.parametrize("content", [b"", b"MThd nonsense", b"<score-partwise><a></b>"])
def test_unreadable_file_is_named(suffix, content, tmp_path):
    pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged\{suffix}"):
        load_piece(path)


def test_pitches_beyond_the_piano_name_the_file(tmp_path):
    music21 = pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    music21.stream.Part([music21.note.Note(120)]).write("midi", fp=tmp_path / "high.mid")
    with pytest.raises(ValueError, match="high.mid.*span 120 to 120"):
        load_piece(tmp_path / "high.mid")


def test_percussion_is_left_out_and_times_are_rounded(tmp_path):
    """A MIDI file written byte by byte: a drum, a note played a little early and ended by a strike of velocity 0."""
    pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    events = b"\x00\x99\x24\x40\x81\x6e\x90\x3c\x40\x84\x30\x90\x3c\x00\x00\x89\x24\x40\x00\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + (240).to_bytes(2, "big")
    (tmp_path / "a.mid").write_bytes(header + b"MTrk" + len(events).to_bytes(4, "big") + events)
    # On at tick 238 of 240 to the quarter, which is beat 1; off at 798, beat 3.33.
    assert pitches(load_piece(tmp_path / "a.mid")) == [[], [60], [60], [60]]


def test_pickup_keeps_the_bars_on_the_grid(tmp_path):
    m21 = pytest.importorskip("music21", reason=MUSIC21_ABSENT)
    part = m21.stream.Part()
    upbeat = m21.stream.Measure([m21.meter.TimeSignature("2/4"), m21.note.Note(60, quarterLength=0.5)], number=0)
    upbeat.paddingLeft = 1.5
    part.append([upbeat, m21.stream.Measure([m21.note.Note(p, quarterLength=1.0) for p in (62, 64)], number=1)])
    path = tmp_path / "pickup.musicxml"
    part.write("musicxml", fp=path)
    assert pitches(load_piece(path)) == [[62], [64]]
    assert pitches(load_piece(path, "eighth")) == [[60], [62], [62], [64], [64]]


def test_public_names():
    assert set(data.__all__) <= set(dir(data))
