"""Data sets: a table of names, and the hash of their content."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfseq.checks import choice, nearest
from tfseq.data.batching import Sequences

__all__ = ["DATASETS", "SPLITS", "Entry", "Sequences", "data_hash", "load_dataset", "splits_of"]

SPLITS = ("train", "valid", "test")


class Entry(NamedTuple):
    """One row of `DATASETS`: where the loader is, what it is called with, one line for people, and the splits it has.

    A loader is called as `loader(split, data_dir=..., **options)` and returns `Sequences`; it is imported only then.
    """

    target: str
    options: dict[str, Any]
    summary: str
    splits: tuple[str, ...] = SPLITS

    def resolve(self) -> Callable[..., Sequences]:
        """The loader itself; imports its module."""
        module, function = self.target.split(":")
        return getattr(importlib.import_module(module), function)


_CHORALES = "tfseq.data.music:load_chorales"
_POLYMUSIC = "tfseq.data.music:load_polymusic"

DATASETS: dict[str, Entry] = {
    "chorales": Entry(
        _CHORALES, {"step": "quarter"}, "Bach's four-part chorales from music21's corpus, a step a quarter note; no download"
    ),
    "chorales-eighth": Entry(_CHORALES, {"step": "eighth"}, "the same chorales, a step an eighth note"),
    "chorales-sixteenth": Entry(_CHORALES, {"step": "sixteenth"}, "the same chorales, a step a sixteenth note"),
    "jsb": Entry(
        _POLYMUSIC, {"piece_set": "jsb"}, "JSB Chorales, the benchmark of Boulanger-Lewandowski et al. 2012: 229/76/77 pieces"
    ),
    "nottingham": Entry(_POLYMUSIC, {"piece_set": "nottingham"}, "Nottingham folk tunes, same benchmark: 694/173/170 pieces"),
    "piano-midi": Entry(_POLYMUSIC, {"piece_set": "piano-midi"}, "Piano-midi.de, same benchmark: 87/12/25 long pieces"),
    "musedata": Entry(_POLYMUSIC, {"piece_set": "musedata"}, "MuseData, same benchmark: 524/135/124 pieces"),
    "earthquakes": Entry(
        "tfseq.data.series:load_earthquakes",
        {},
        "major earthquakes in the world, a count a year, 1900-2006; one series, split train only; no download",
        ("train",),
    ),
    "digits": Entry(
        "tfseq.data.images:load_digits", {}, "handwritten digits, 8 x 8 greys, labelled: 1297/200/300 pictures; no download"
    ),
    "mnist": Entry(
        "tfseq.data.images:load_mnist", {}, "MNIST, handwritten digits, 28 x 28 greys, labelled: 55000/5000/10000 pictures"
    ),
}


def splits_of(name: str | Path) -> tuple[str, ...]:
    """The splits that a data set, a file or a folder has, without reading its data.

    Args:
        name: as in `load_dataset`.

    Raises:
        ValueError: there is no such data set, file or folder; or it is not clear which of its files is which.
    """
    entry = DATASETS.get(str(name))
    if entry is not None:
        return entry.splits
    from tfseq.data.images import splits_in
    from tfseq.data.series import SUFFIXES, files_of

    path = Path(name)
    if path.is_dir():
        folders = tuple(split for split in SPLITS if (path / split).is_dir())
        return tuple(files_of(path)) or splits_in(path) or folders or SPLITS
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return splits_in(path) or ("train",)
    raise ValueError(
        f"`name` must be a data set, the path of a {' or '.join(SUFFIXES)} file, or the path of an existing folder with "
        f"train{SUFFIXES[0]}, with IDX files, or with MIDI or MusicXML files; received {str(name)!r}."
        f"{nearest(str(name).lower(), DATASETS)} "
        f"Data sets: {', '.join(DATASETS)}."
    )


def load_dataset(name: str | Path, split: str = "train", *, data_dir: str | Path | None = None) -> Sequences:
    """One split of a data set, as plain arrays.

    Args:
        name: a key of `DATASETS`; or a path, read as the first of these that it is: an `.npz` file with an array `x_train`,
            `x_valid`, `x_test` or `shape`, which is of pictures (see `tfseq.data.images.load_images`); any other `.csv` or
            `.npz` file, or a folder with `train.csv` (or `.npz`) and others, which are series (see
            `tfseq.data.series.load_series`); a folder with IDX files of pictures, `train-images*` and others; a folder with
            MIDI or MusicXML files (see `tfseq.data.music.load_folder`).
        split: `"train"`, `"valid"` or `"test"`; not all data has all of them (see `splits_of`).
        data_dir: folder of already downloaded files; the environment variable `TFSEQ_DATA` where not given. Files not
            found there are downloaded into the cache folder and checked.

    Returns:
        The sequences, with `name` and `split` filled in.

    Raises:
        ValueError: the name or the split is unknown, or a file is not the one expected.
        FileNotFoundError: a file is neither in `data_dir` nor could be downloaded.
    """
    choice("split", split, SPLITS)
    splits = splits_of(name)
    if split not in splits:
        raise ValueError(f"`split` must be one that {name} has, which are: {', '.join(splits)}; received {split!r}.")
    if data_dir is None:
        data_dir = os.environ.get("TFSEQ_DATA") or None
    entry = DATASETS.get(str(name))
    if entry is not None:
        sequences = entry.resolve()(split, data_dir=None if data_dir is None else Path(data_dir), **entry.options)
        return replace(sequences, name=str(name), split=split)
    from tfseq.data.images import load_images, splits_in
    from tfseq.data.music import load_folder
    from tfseq.data.series import files_of, load_series

    path = Path(name)
    if splits_in(path):
        return load_images(path, split)
    return load_series(path, split) if path.is_file() or files_of(path) else load_folder(path, split)


def data_hash(sequences: Sequences) -> str:
    """SHA-256 (hex) over the content of `x`, `observed`, `u` and `y`: number, dtype, shape and bytes of every array, in order.

    Names do not count, nor does the machine's byte order.
    """
    digest = hashlib.sha256()
    for field in ("x", "observed", "u", "y"):
        arrays = getattr(sequences, field)
        if field == "y" and arrays is None:
            continue  # data without labels keeps the hash it had before there were any
        digest.update(f"{field} {None if arrays is None else len(arrays)}\n".encode())
        for array in () if arrays is None else map(np.asarray, arrays):
            if array.dtype.hasobject:
                raise ValueError(f"`{field}` must hold numeric arrays; received dtype {array.dtype}, which has no fixed bytes.")
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
