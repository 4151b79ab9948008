"""Samples -> files, the format by the suffix: .mid to listen, .npz and .csv to compute with, .png to look at, .txt to read.

What models say of texts -> lines: of columns (CoNLL), or of JSON.

A file appears whole or not at all: it is written under another name in its folder and then moved into place.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfseq import plots
from tfseq.data.images import STEP as PICTURE
from tfseq.data.music import LOWEST, check_roll
from tfseq.files import replace_file


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
) -> list[Path]:
    """Writes one or several sequences to `path`, by its suffix.

    `.mid`: piano rolls; several sequences become `name-1.mid`, `name-2.mid`, ... `.npz`: `x [N, T, ...]`, padded with
    zeros, and `lengths [N]`. `.csv`: a row per step: sequence, step, values. `.png`: piano rolls one above another;
    or, where each step is a picture (`step_name="picture"`, or a `shape`), all steps of all sequences as a grid.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        x: a sequence `[T, D]` (symbols: `[T]`), or a list of them, or an array `[N, T, D]`. Rolls are `[T, 88]` in {0, 1}.
        step_quarters: length of a step in quarter notes, for `.mid`.
        tempo: quarter notes per minute, for `.mid`.
        hold: whether a pitch in consecutive steps is one long note, for `.mid` (rolls do not tell); else it is struck again.
        title, prefix_steps, step_name: as in `tfseq.plots.piano_roll`, for `.png`.
        shape: rows and columns of the picture that each step is, as in `tfseq.plots.image_grid`, for `.png`.

    Returns:
        The paths written, in the order of the sequences.

    Raises:
        ValueError: the suffix is unknown, or the sequences do not suit it.
        OSError: a file cannot be written; an older one is left as it was.
    """
    path = Path(path)
    several = isinstance(x, (list, tuple)) or np.ndim(x) == 3
    sequences = [np.asarray(sequence) for sequence in x] if several else [np.asarray(x)]
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"`path` must end in one of {', '.join(SUFFIXES)}; received {str(path)!r}.")
    if not sequences or any(
        sequence.ndim not in (1, 2) or sequence.shape[1:] != sequences[0].shape[1:] for sequence in sequences
    ):
        shapes = [list(sequence.shape) for sequence in sequences]
        raise ValueError(f"`x` must be one or more sequences [T, D] (or [T]) with the same D; received shapes {shapes}.")
    pictures = shape is not None or step_name == PICTURE
    if pictures and suffix in MUSIC:
        raise ValueError(f"`path` must end in .png, .npz or .csv for pictures; received {str(path)!r}, which is for music.")
    if suffix == ".png" and pictures:
        plots.image_grid(np.concatenate(sequences), shape, path, title=title)
        return [path]
    if suffix == ".png":
        plots.piano_roll(sequences, path, title=title, prefix_steps=prefix_steps, step_name=step_name)
        return [path]
    if suffix in (".npz", ".csv"):
        write: Callable[[Path, list[np.ndarray]], None] = _write_npz if suffix == ".npz" else _write_csv
        with replace_file(path) as temporary:
            write(temporary, sequences)
        return [path]
    if not (step_quarters > 0 and tempo > 0):
        raise ValueError(f"`step_quarters` and `tempo` must be positive; received {step_quarters} and {tempo}.")
    rolls = [check_roll(roll, "x") for roll in sequences]
    paths = [path] if len(rolls) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, len(rolls) + 1)]
    for file, roll in zip(paths, rolls, strict=True):
        with replace_file(file) as temporary:
            _write_midi(temporary, roll, step_quarters, tempo, hold)
    return paths


MUSIC = (".mid", ".midi")
SUFFIXES = (*MUSIC, ".npz", ".csv", ".png")


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


def _write_csv(path: Path, sequences: list[np.ndarray]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "step", *(f"x{d}" for d in range(sequences[0].reshape(len(sequences[0]), -1).shape[1]))])
        for i, sequence in enumerate(sequences):
            for t, row in enumerate(sequence):
                writer.writerow([i, t, *np.atleast_1d(row).tolist()])


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
