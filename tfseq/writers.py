"""Samples -> files, the format by the suffix: .mid, .wav to listen, .npz, .csv to compute with, .png to look at, .txt to read.

What models say of texts -> lines: of columns (CoNLL), or of JSON.

A file appears whole or not at all: it is written under another name in its folder and then moved into place.
"""

from __future__ import annotations

import csv
import json
import math
import re
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfseq import plots
from tfseq.data.images import STEP as PICTURE
from tfseq.data.music import LOWEST, NUM_KEYS, check_roll
from tfseq.data.strokes import COLUMNS as PEN
from tfseq.files import replace_file

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Those that a forecast is written with."""
PICTURES = (".png", ".svg", ".pdf")
MUSIC = (".mid", ".midi")
SUFFIXES = (*MUSIC, ".wav", ".npz", ".csv", *PICTURES)

_KINDS = {
    "scores": (*MUSIC, *PICTURES, ".npz", ".csv"),
    "pictures": (*PICTURES, ".npz", ".csv"),
    "strokes of a pen": (*PICTURES, ".npz", ".csv"),
    "recordings": (".wav", *PICTURES, ".npz", ".csv"),
    "series": (*PICTURES, ".npz", ".csv"),
}
"""Kind of data -> the suffixes of what can be made of it."""


def kind_of(
    step_name: str = "step",
    shape: Sequence[int] | None = None,
    columns: Sequence[str] = (),
    sampling_rate: int | None = None,
) -> str:
    """What data is, by what `Sequences` says of it: scores, pictures, strokes of a pen, recordings, or series."""
    if shape is not None or step_name == PICTURE:
        return "pictures"
    if sampling_rate is not None:
        return "recordings"
    if tuple(columns) == PEN:
        return "strokes of a pen"
    return "scores" if step_name.endswith(" note") else "series"


def check_suffix(name: str, path: str | Path, kind: str) -> None:
    """Raises ValueError where what is of a kind cannot be written to `path`, which an argument `name` says."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{name} must end in one of {', '.join(SUFFIXES)}; received {str(path)!r}.")
    if suffix not in _KINDS[kind]:
        others = [other for other, suffixes in _KINDS.items() if suffix in suffixes]
        raise ValueError(
            f"{name} must end in {_listed(_KINDS[kind])} for {kind}; received {str(path)!r}, which is for {' and '.join(others)}."
        )


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def write_samples(
    path: str | Path,
    x: np.ndarray | Sequence[np.ndarray],
    *,
    step_quarters: float = 1.0,
    tempo: float = 90.0,
    hold: bool = True,
    title: str = "",
    prefix_steps: int | None = None,
    step_name: str = "step",
    shape: tuple[int, int] | None = None,
    columns: Sequence[str] = (),
    sampling_rate: int | None = None,
) -> list[Path]:
    """Writes one or several sequences to `path`, by its suffix and by what they are.

    `.mid`: piano rolls; several sequences become `name-1.mid`, `name-2.mid`, ... `.wav`: recordings, of which several become as
    many files too. `.npz`: `x [N, T, ...]`, padded with zeros, and `lengths [N]`. `.csv`: a row per step: sequence, step, values,
    which `tfseq.data.series.load_series` reads. `.png`, `.svg`, `.pdf`: a figure of them all (`tfseq.plots`).

    What they are, `shape`, `step_name`, `columns` and `sampling_rate` say, which are those of `Sequences`: pictures where there
    is a `shape` or `step_name="picture"`; recordings where there is a `sampling_rate`; strokes of a pen where the columns are
    pen, dx and dy; scores where `step_name` is that of a note, or where all is `[T, 88]` in {0, 1}; else series.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        x: a sequence `[T, D]` (symbols: `[T]`), or a list of them, or an array `[N, T, D]`. Rolls are `[T, 88]` in {0, 1}.
        step_quarters: length of a step in quarter notes, for `.mid`.
        tempo: quarter notes per minute, for `.mid`.
        hold: whether a pitch in consecutive steps is one long note, for `.mid` (rolls do not tell); else it is struck again.
        title, prefix_steps: as in `tfseq.plots.piano_roll`, for figures.
        step_name: what a step is.
        shape: rows and columns of the picture that each step is, as in `tfseq.plots.image_grid`, for figures.
        columns: what the features are called, for `.csv` and figures; x0, x1, ... where empty.
        sampling_rate: samples a second, where `x` are frames of a recording. In `.wav` 1 is the loudest: a recording that goes
            beyond is made softer as a whole, until its largest sample is 1, and is not clipped.

    Returns:
        The paths written, in the order of the sequences.

    Raises:
        ValueError: the suffix is unknown, or does not suit what the sequences are.
        OSError: a file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    several = isinstance(x, (list, tuple)) or np.ndim(x) == 3
    sequences = [np.asarray(sequence) for sequence in x] if several else [np.asarray(x)]
    suffix = path.suffix.lower()
    if not sequences or any(
        sequence.ndim not in (1, 2) or sequence.shape[1:] != sequences[0].shape[1:] for sequence in sequences
    ):
        shapes = [list(sequence.shape) for sequence in sequences]
        raise ValueError(f"`x` must be one or more sequences [T, D] (or [T]) with the same D; received shapes {shapes}.")
    kind = kind_of(step_name, shape, columns, sampling_rate)
    if kind == "series" and (suffix in MUSIC or are_rolls(sequences)):  # a roll may come without what its steps are
        kind = "scores"
    check_suffix("`path`", path, kind)
    if columns and sequences[0].shape[1:] != (len(columns),):
        raise ValueError(
            f"`columns` must have a name for each feature of `x`; received {len(columns)} for shape {list(sequences[0].shape)}."
        )
    if suffix in PICTURES:
        _draw(kind, path, sequences, shape, columns, sampling_rate, title, step_name, prefix_steps)
        return [path]
    if suffix in (".npz", ".csv"):
        with replace_file(path) as temporary:
            if suffix == ".npz":
                _write_npz(temporary, sequences)
            else:
                _write_csv(temporary, sequences, columns)
        return [path]
    if not (step_quarters > 0 and tempo > 0):
        raise ValueError(f"`step_quarters` and `tempo` must be positive; received {step_quarters} and {tempo}.")
    paths = numbered(path, len(sequences))
    if sampling_rate is not None:
        samples = [_samples(sequence, i) for i, sequence in enumerate(sequences)]
        for file, each in zip(paths, samples, strict=True):
            with replace_file(file) as temporary:
                _write_wav(temporary, each, sampling_rate)
        return paths
    rolls = [check_roll(roll, "x") for roll in sequences]
    for file, roll in zip(paths, rolls, strict=True):
        with replace_file(file) as temporary:
            _write_midi(temporary, roll, step_quarters, tempo, hold)
    return paths


def numbered(path: Path, num: int) -> list[Path]:
    """`name.suffix`, or of several `name-1.suffix`, `name-2.suffix`, ..."""
    return [path] if num == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, num + 1)]


def are_rolls(sequences: Sequence[np.ndarray]) -> bool:
    """Whether all are piano rolls, `[T, 88]` in {0, 1}."""
    return all(a.ndim == 2 and a.shape[1] == NUM_KEYS and np.isin(a, (0, 1)).all() for a in sequences)


def _draw(
    kind: str,
    path: Path,
    sequences: list[np.ndarray],
    shape: tuple[int, int] | None,
    columns: Sequence[str],
    sampling_rate: int | None,
    title: str,
    step_name: str,
    prefix_steps: int | None,
) -> None:
    """The figure of a kind of data."""
    if kind == "pictures":
        plots.image_grid(np.concatenate(sequences), shape, path, title=title)
    elif kind == "recordings":
        plots.recordings(sequences, sampling_rate or 1, path, title=title)
    elif kind == "strokes of a pen":
        plots.strokes(sequences, path, title=title, prefix_steps=prefix_steps)
    elif kind == "scores":
        plots.piano_roll(sequences, path, title=title, prefix_steps=prefix_steps, step_name=step_name)
    else:
        plots.series(sequences, path, names=columns, title=title, prefix_steps=prefix_steps, step_name=step_name)


def write_quantiles(
    path: str | Path,
    samples: np.ndarray,
    *,
    starts: Sequence[int],
    names: Sequence[str] = (),
    columns: Sequence[str] = (),
    levels: Sequence[float] = QUANTILES,
) -> None:
    """Writes a forecast as CSV, a row for each sequence, step and feature: its mean, and its quantiles q05, q25, ...

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        samples: continuations `[B, S, H, D]` of B sequences.
        starts: the number of steps before each, `[B]`: its first row is that step, counted from 0.
        names: what the sequences are called; their numbers where empty.
        columns: what the features are called; x0, x1, ... where empty.
        levels: of the quantiles, in [0, 1]; as `numpy.quantile`.

    Raises:
        OSError: the file cannot be written; an older one is left as it was.
    """
    samples = np.asarray(samples)
    quantiles = np.quantile(samples, levels, axis=1).astype(np.float32)  # [Q, B, H, D]
    means = samples.mean(1, dtype=np.float64).astype(np.float32)
    columns = columns or [f"x{d}" for d in range(samples.shape[3])]
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sequence", "step", "feature", "mean", *(f"q{100 * level:02.3g}" for level in levels)])
        for b, h, d in np.ndindex(means.shape):
            name = names[b] if names else b
            writer.writerow([name, starts[b] + h, columns[d], means[b, h, d], *quantiles[:, b, h, d]])


def _write_midi(path: Path, roll: np.ndarray, step_quarters: float, tempo: float, hold: bool) -> None:
    try:
        from music21.note import Note
        from music21.stream import Part
        from music21.tempo import MetronomeMark
    except ImportError as error:
        raise ImportError('MIDI files need music21, which is not installed: pip install "tfseq[music]".') from error
    part = Part()
    part.insert(0.0, MetronomeMark(number=tempo))
    for start, length, key in plots.roll_notes(roll, hold):
        part.insert(start * step_quarters, Note(LOWEST + key, quarterLength=length * step_quarters))
    part.write("midi", fp=path)


def _write_npz(path: Path, sequences: list[np.ndarray]) -> None:
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    x = np.zeros((len(sequences), lengths.max(), *sequences[0].shape[1:]), np.result_type(*sequences))
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    np.savez_compressed(path, x=x, lengths=lengths)


def _write_csv(path: Path, sequences: list[np.ndarray], columns: Sequence[str]) -> None:
    if not columns:
        columns = ["symbol"] if sequences[0].ndim == 1 else [f"x{d}" for d in range(sequences[0].shape[1])]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sequence", "step", *columns])
        for i, sequence in enumerate(sequences):
            for t, row in enumerate(sequence):
                writer.writerow([i, t, *np.atleast_1d(row)])  # NumPy's own scalars: no more digits than they have


def _samples(sequence: np.ndarray, i: int) -> np.ndarray:
    """Frames `[T, F]` -> samples of 16 bits `[T F]`, softer as a whole where they would go beyond."""
    samples = np.asarray(sequence, np.float64).ravel()
    if not samples.size or not np.isfinite(samples).all():
        why = "some that are not finite. Did the training diverge?" if samples.size else "none."
        raise ValueError(f"`x` must have finite samples in each recording; recording {i} has {why}")
    loudest = max(1.0, float(np.abs(samples).max()))
    return np.rint(samples / loudest * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2")


def _write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setframerate(rate)
        file.setsampwidth(2)
        file.setnchannels(1)
        file.writeframes(samples.tobytes())


# Texts --------------------------------------------------------------------------------------------------------------

TEXTS = (".txt", ".json")


def write_texts(path: str | Path, texts: Sequence[Mapping[str, str]]) -> None:
    """Writes texts to `path`, by its suffix: `.txt`, with a line of dashes between them, or `.json`, a list of all.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        texts: each has `prompt` and `text`, all of it.

    Raises:
        ValueError: the suffix is another.
        OSError: the file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in TEXTS:
        raise ValueError(f"`path` must end in {' or '.join(TEXTS)} for texts; received {str(path)!r}.")
    as_json = path.suffix.lower() == ".json"
    content = json.dumps([*map(dict, texts)], ensure_ascii=False, indent=1) if as_json else join_texts([t["text"] for t in texts])
    with replace_file(path) as temporary:
        temporary.write_text(content if content.endswith("\n") else content + "\n", encoding="utf-8", newline="\n")


def join_texts(texts: Sequence[str]) -> str:
    """Several texts as one, a line of dashes between."""
    return f"\n{'-' * 40}\n".join(text.removesuffix("\n") for text in texts) if len(texts) > 1 else "".join(texts)


def answer_lines(answer: Mapping[str, Any], form: str = "conll") -> str:
    """What a model says of one sequence, as lines that end with a line end.

    `"conll"`: of tags a line for each token, TOKEN TAG PROBABILITY between tabs, and an empty line; of a class one line, CLASS
    PROBABILITY TEXT; of a score LOG-PROBABILITY TOKENS TEXT; a translation or a transcription as it is. `"json"`: one object
    in a line.

    Args:
        answer: with `tags`, `scores` and `tokens`; or `label` and `prob`; or `translation`, or `transcription`; or `log_prob` and
            `num_tokens`; and `text`, or `tokens`, or `name`: what was read.
        form: `"conll"` or `"json"`.
    """
    if form == "json":
        return json.dumps(_plain(answer), ensure_ascii=False, allow_nan=False) + "\n"
    if "tags" in answer:
        tokens = answer.get("tokens") or range(len(answer["tags"]))
        rows = zip(tokens, answer["tags"], answer["scores"], strict=True)
        return "".join(f"{_cell(token)}\t{tag}\t{score:.4f}\n" for token, tag, score in rows) + "\n"
    for name in ("translation", "transcription"):
        if name in answer:
            return _cell(answer[name]) + "\n"
    read = _cell(answer["text"] if "text" in answer else " ".join(map(str, answer.get("tokens", [answer.get("name", "")]))))
    if "label" in answer:
        return f"{_cell(answer['label'])}\t{answer['prob']:.4f}\t{read}\n"
    return f"{answer['log_prob']:.4f}\t{answer['num_tokens']}\t{read}\n"


def _cell(value: Any) -> str:
    """A text without what ends a cell or a line."""
    return re.sub(r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", " ", str(value))


def _plain(value: Any) -> Any:
    """What JSON can hold: floats of six digits, null for those that are not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else str(value) if isinstance(value, np.str_) else value
