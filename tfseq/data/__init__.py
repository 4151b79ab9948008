"""Data sets: a table of names, and the hash of their content."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfseq.checks import choice, nearest
from tfseq.data.batching import Sequences

if TYPE_CHECKING:
    from tfseq.data.shards import Shards

__all__ = ["DATASETS", "FILES", "SPLITS", "Entry", "Sequences", "data_hash", "load_dataset", "splits_of"]

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
_EWT = "tfseq.data.conll:load_ewt"
_MULTI30K = "tfseq.data.text:load_multi30k"
_SPEECH = "tfseq.data.speech:load_digits"

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
    "ewt": Entry(_EWT, {}, "English sentences, parts of speech (UD EWT 2.16): 12544/2001/2077 sentences"),
    "ewt-xpos": Entry(_EWT, {"label_column": "xpos"}, "the same sentences with the Penn Treebank's parts of speech"),
    "wnut17": Entry(
        "tfseq.data.conll:load_wnut17", {}, "WNUT 2017, rare entities in English posts, BIO: 3394/1009/1287 sentences"
    ),
    "ner-ja": Entry(
        "tfseq.data.conll:load_ner_ja", {}, "entities in the Japanese Wikipedia, BIO of characters: 4269/535/539 sentences"
    ),
    "python-source": Entry(
        "tfseq.data.text:load_python_source",
        {},
        "lines of Python's own library, each token labelled with its role: about 200,000 tokens; no download",
    ),
    "python-docs": Entry(
        "tfseq.data.text:load_python_docs",
        {},
        "the topics of Python's help, raw texts to model; about 450,000 characters; no download",
    ),
    "shakespeare": Entry("tfseq.data.text:load_shakespeare", {}, "Tiny Shakespeare, raw text to model: 1,115,394 characters"),
    "polarity": Entry(
        "tfseq.data.text:load_polarity", {}, "sentences of film reviews, negative or positive: 8530/1066/1066 raw texts"
    ),
    "multi30k": Entry(_MULTI30K, {}, "Multi30k, German to English: 29000/1014/1000 raw texts with translations"),
    "multi30k-fr": Entry(_MULTI30K, {"source": "en", "target": "fr"}, "the same, English to French"),
    "splice": Entry("tfseq.data.dna:load_splice", {}, "primate splice junctions, windows of 60 bases: 2554/320/316, 3 classes"),
    "promoters": Entry("tfseq.data.dna:load_promoters", {}, "promoters of E. coli, windows of 57 bases: 64/21/21, 2 classes"),
    "yeast-genes": Entry(
        "tfseq.data.dna:load_yeast_genes", {}, "yeast genes, each base labelled exon or intron: 216/27/27 genes"
    ),
    "strokes": Entry(
        "tfseq.data.strokes:load_strokes",
        {},
        "handwriting, pen and ways of each point, synthetic: 1000/200/200 words or pairs; no download",
    ),
    "pendigits": Entry(
        "tfseq.data.strokes:load_pendigits",
        {},
        "handwritten digits as 8 points on the way of the pen (UCI), labelled: 6500/994/3498",
    ),
    "spoken-digits": Entry(
        _SPEECH, {}, "spoken digits, frames of 200 samples at 8 kHz, labels and words: 2400/300/300 recordings"
    ),
    "spoken-digits-mel": Entry(_SPEECH, {"features": "mel"}, "the same recordings as 40 log-mel features, a step 10 ms"),
}

_SERIES = Entry("tfseq.data.series:load_series", {}, "series of numbers", ("train",))
_COLUMNS = Entry("tfseq.data.conll:load_conll", {}, "labelled tokens", ("train",))
_FASTA = Entry("tfseq.data.dna:load_fasta", {}, "DNA or protein", ("train",))
_FOLDER = Entry("tfseq.data.music:load_folder", {}, "scores")
_IMAGES = Entry("tfseq.data.images:load_images", {}, "pictures")
_RECORDINGS = Entry("tfseq.data.speech:load_recordings", {}, "recordings", ("train",))
_SHARDS = Entry("tfseq.data.shards:load_shards", {}, "shards of `tfseq data shard`")

FILES: dict[str, Entry] = {
    **dict.fromkeys((".csv", ".npz"), _SERIES),
    **dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".json"), _COLUMNS),
    ".txt": Entry("tfseq.data.text:load_text", {}, "a text to model"),
    ".tsv": Entry("tfseq.data.text:load_table", {}, "texts with labels or translations", ("train",)),
    **dict.fromkeys((".fasta", ".fa", ".fsa"), _FASTA),
    ".wav": _RECORDINGS,
}
"""Suffix of the user's own files -> their loader, called as `loader(path, split, **options)`, and the splits one file has."""


def _own(name: str | Path) -> Entry | None:
    """The loader of a path, and the splits it has; None where there is none."""
    from tfseq.data import shards
    from tfseq.data.images import splits_in
    from tfseq.data.series import files_of
    from tfseq.data.speech import recordings_in

    path = Path(name)
    if whole := shards.splits_in(path):
        return _SHARDS._replace(splits=whole)
    files = files_of(path, set(FILES) - {".wav"}) if path.is_dir() else {}
    entries = {entry.target: entry for file in files.values() for entry in [FILES[file.suffix.lower()]]}
    if len(entries) > 1:
        raise ValueError(
            f"{path} must have files of one kind; it has {' and '.join(file.name for file in files.values())}. "
            "Which are the data? Put the others into another folder."
        )
    if entries:
        return next(iter(entries.values()))._replace(splits=tuple(files))
    pictures = splits_in(path)
    if pictures:
        return _IMAGES._replace(splits=pictures)
    if path.is_dir() and (recordings := recordings_in(path)):
        return _RECORDINGS._replace(splits=recordings)
    if path.is_dir():
        return _FOLDER._replace(splits=tuple(split for split in SPLITS if (path / split).is_dir()) or SPLITS)
    return FILES.get(path.suffix.lower()) if path.is_file() else None


def splits_of(name: str | Path) -> tuple[str, ...]:
    """The splits that a data set, a file or a folder has, without reading its data.

    Args:
        name: as in `load_dataset`.

    Raises:
        ValueError: there is no such data set, file or folder; or it is not clear which of its files is which.
    """
    entry = DATASETS.get(str(name)) or _own(name)
    if entry is not None:
        return entry.splits
    raise ValueError(
        f"`name` must be a data set, the path of a .csv or .npz file, or of one of {', '.join(list(FILES)[2:])}, or the path "
        "of an existing folder with train.csv (or another of these), with IDX files, or with WAV, MIDI or MusicXML files; "
        f"received {str(name)!r}.{nearest(str(name).lower(), DATASETS)} "
        f"Data sets: {', '.join(DATASETS)}."
    )


def load_dataset(name: str | Path, split: str = "train", *, data_dir: str | Path | None = None, **options: Any) -> Sequences:
    """One split of a data set, as plain arrays.

    Args:
        name: a key of `DATASETS`; or a path, read as the first of these that it is: a folder of shards, which is read into memory
            where it fits (see `tfseq.data.shards`); a folder with files of one kind for the
            splits (`train.csv`, `train.conll`, `train.txt`, ...); a folder with IDX files of pictures, `train-images*` and
            others; an `.npz` file with an array `x_train`, `x_valid`, `x_test` or `shape`, which is of pictures (see
            `tfseq.data.images.load_images`); a folder with WAV files (see `tfseq.data.speech.load_recordings`), or with MIDI or
            MusicXML files (see `tfseq.data.music.load_folder`); a file whose suffix says what it is: `.csv`, other `.npz` (see
            `tfseq.data.series.load_series`), `.conll`, `.conllu`,
            `.bio`, `.iob`, `.json` (see `tfseq.data.conll.load_conll`), `.txt`, `.tsv` (see `tfseq.data.text.load_text` and
            `load_table`), `.fasta`, `.fa`, `.fsa` (see `tfseq.data.dna.load_fasta`), `.wav`.
        split: `"train"`, `"valid"` or `"test"`; not all data has all of them (see `splits_of`).
        data_dir: folder of already downloaded files; the environment variable `TFSEQ_DATA` where not given. Files not
            found there are downloaded into the cache folder and checked.
        **options: keyword-only arguments of the loader, such as `illegal="repair"` of `tfseq.data.conll.load_conll`.

    Returns:
        The sequences, with `name` and `split` filled in.

    Raises:
        ValueError: the name, the split or an option is unknown, or a file is not the one expected.
        FileNotFoundError: a file is neither in `data_dir` nor could be downloaded.
    """
    choice("split", split, SPLITS)
    splits = splits_of(name)
    if split not in splits:
        raise ValueError(f"`split` must be one that {name} has, which are: {', '.join(splits)}; received {split!r}.")
    if data_dir is None:
        data_dir = os.environ.get("TFSEQ_DATA") or None
    entry = DATASETS.get(str(name)) or _own(name) or _FOLDER  # there is one, or `splits_of` had raised
    loader = entry.resolve()
    _check_options(name, loader, entry.options, options)
    if str(name) not in DATASETS:
        return loader(Path(name), split, **options)
    sequences = loader(split, data_dir=None if data_dir is None else Path(data_dir), **entry.options, **options)
    return replace(sequences, name=str(name), split=split)


def _check_options(name: str | Path, loader: Callable[..., Sequences], fixed: Collection[str], options: Collection[str]) -> None:
    """Raises where a loader has no such option, or the data set's name says it already."""
    parameters = inspect.signature(loader).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "data_dir" and p.name not in fixed]
    for option in options:
        if option not in known:
            raise ValueError(
                f"`{option}` (--data_{option}) must be an option of how {name} is read, of which there are: "
                f"{', '.join(known) or 'none'}.{nearest(option, known)} Is this data of another kind?"
            )


def data_hash(sequences: Sequences | Shards) -> str:
    """SHA-256 (hex) over `x`, `observed`, `u`, `y` and `target`: number, dtype, shape and content of every array, in order.

    Names do not count, nor does the machine's byte order, nor how many bytes NumPy keeps for a string. Of shards it is that of
    their manifest, another one.
    """
    if not isinstance(sequences, Sequences):
        return sequences.sha256
    digest = hashlib.sha256()
    for field in ("x", "observed", "u", "y", "target"):
        arrays = getattr(sequences, field)
        if field in ("y", "target") and arrays is None:
            continue  # data without labels keeps the hash it had before there were any
        digest.update(f"{field} {None if arrays is None else len(arrays)}\n".encode())
        for array in () if arrays is None else arrays:
            if isinstance(array, str):
                _hash_texts(digest, [array], ())
                continue
            array = np.asarray(array)
            if array.dtype.kind == "U":
                _hash_texts(digest, array.ravel().tolist(), array.shape)
                continue
            if array.dtype.hasobject:
                raise ValueError(
                    f"`{field}` must hold numeric arrays, or str; received dtype {array.dtype}, which has no fixed bytes."
                )
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _hash_texts(digest: hashlib._Hash, texts: Sequence[str], shape: tuple[int, ...]) -> None:
    """Adds strings to a hash: shape, lengths in bytes of UTF-8, and the bytes."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    digest.update(f"str {shape}\n".encode())
    digest.update(np.array([len(text) for text in encoded], "<i8").tobytes())
    digest.update(b"".join(encoded))
