"""Data sets larger than memory: TFRecord shards, read in parallel, shuffled with a seed, batched by length or cut into windows.

A folder holds for each split `SPLIT-00000-of-00032.tfrecord` and so on, each record a `tf.train.Example`; `SPLIT-lengths.npy`,
the steps of all sequences; `SPLIT-sample.tfrecord` and `SPLIT-tokens.json`, what a model is made from; and `SPLIT.manifest.json`,
which is written last and names all of them with their sizes and SHA-256: without it there is no data set. Sequence n is record
n // S of shard n % S. Numbers are the bytes of their arrays, little-endian; strings are UTF-8.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfseq import checks
from tfseq.data.batching import _FIELDS, Sequences, _check_skip, _check_tokens, _cuts, _length_classes, _sized, num_windows
from tfseq.files import locked, replace_file

if TYPE_CHECKING:
    import tensorflow as tf

MANIFEST = ".manifest.json"

_VERSION = 1
_BESIDE = ("lengths.npy", "sample.tfrecord", "tokens.json")
_SPLITS = ("train", "valid", "test")
_SAMPLE_BYTES = 1 << 24  # of the sequences that a model is made from
_GROUP_BYTES = 1 << 25  # of the records that are shuffled together
_MOST_IN_GROUP = 1 << 17
_CHUNK_BYTES = 1 << 16  # of the records that a lane reads at once
_PARALLEL = 4  # shards, or batches, that are worked on at once
_OPEN_SHARDS = 16  # that one group of records comes from
_MOST_SHARDS = 500  # all are open while they are written
_MOST_LABELS, _MOST_TOKENS, _MOST_COPIES = 10_000, 1 << 20, 10
_TEXT_BYTES = 1 << 22  # of a text that are cut at once
_LINE_BYTES = 1 << 16  # longer lines are cut where a block or a split ends
_SHARES = {"train": (0.0, 0.9), "valid": (0.9, 0.95), "test": (0.95, 1.0)}
_MOST_READ = 1 << 30  # bytes that `read` takes into memory
_DAMAGED, _ADVICE = "Shards must be as they were written: ", "Copy this file again, or write the data set again."
_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool")
_DESCRIPTION = ("name", "split", "step", "source", "shape", "columns", "sampling_rate")


class _Field(NamedTuple):
    """An entry of the records: type, shape of one step, and whether there is one value a sequence and not one a step."""

    dtype: str
    shape: tuple[int, ...]
    whole: bool

    @property
    def is_text(self) -> bool:
        return self.dtype == "str"

    def array(self, name: str, row: int, value: Any) -> np.ndarray:
        """The array of a sequence as it is written; raises where it is another kind than those before."""
        found = np.asarray(value)
        kind = np.dtype("U" if self.is_text else self.dtype)
        if not found.size:
            return np.zeros((0, *self.shape), kind)
        if found.shape[found.ndim and 1 - self.whole :] != self.shape or not np.can_cast(found.dtype, kind, "same_kind"):
            wanted = f"{self.dtype} {[*([] if self.whole else ['T']), *self.shape]}"
            raise ValueError(
                f"`data.{name}` must be alike in all sequences, {wanted} as in the first; received {found.dtype} of shape "
                f"{list(found.shape)} in sequence {row}."
            )
        return found if self.is_text else np.ascontiguousarray(found, kind.newbyteorder("<"))


# Writing ------------------------------------------------------------------------------------------------------------


def write_shards(
    data: Sequences | Iterable[Sequences],
    folder: str | Path,
    *,
    split: str | None = None,
    num_shards: int = 32,
    unit: str = "",
    pieces: bool = False,
) -> Shards:
    """Writes one split of a data set as TFRecord shards, which `train` reads without taking them into memory.

    >>> import numpy as np, tempfile, tfseq
    >>> blocks = (tfseq.Sequences([np.full((t, 2), t, np.float32) for t in (1, 2, 3)], name="mine") for _ in range(4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = tfseq.write_shards(blocks, folder, num_shards=2)
    ...     len(shards), shards.num_batches(5), next(iter(shards.stream(5, seed=0)))["x"].shape.rank
    (12, 3, 3)

    Args:
        data: the sequences; or blocks of them, one after the other, where they do not fit into memory. All have the same entries.
            Texts must have been cut into tokens, by a model (`model.prepare(data)`) or by `tfseq data shard --unit`; a text too
            long for memory times the number of lanes, into pieces. `names` and `augmentation` are not kept.
        folder: where to write; splits of one data set go into one folder.
        split: `"train"`, `"valid"` or `"test"`; that of the data where not given.
        num_shards: files; sequences go to them in turns, so that each is like the whole.
        unit: what texts were cut into, `"words"` or `"characters"`.
        pieces: whether the sequences are pieces of one text, and not texts of their own, which a language model ends.

    Returns:
        The shards.

    Raises:
        ValueError: there are no sequences, they are raw texts, a value is not finite where it was observed, blocks have different
            entries, or the folder has this split already.
        OSError: a file cannot be written. Nothing is left of what was.
    """
    checks.at_least(1, num_shards=num_shards)
    if num_shards > _MOST_SHARDS:
        raise ValueError(f"`num_shards` must be at most {_MOST_SHARDS}, which are open at once; received {num_shards}.")
    blocks = (block for block in ([data] if isinstance(data, Sequences) else data) if len(block))
    first = next(blocks, None)
    if first is None:
        raise ValueError("`data` has no sequences; nothing can be written.")
    split = split or first.split or "train"
    checks.choice("split", split, _SPLITS)
    import tensorflow as tf

    writing = _Writing(Path(folder), split, first, num_shards)
    with writing.alone():
        try:
            writing.start()
            for block in itertools.chain([first], blocks):
                writing.add(block)
            found = writing.finish()
            with replace_file(writing.manifest) as path:  # from here on there is a data set
                path.write_text(json.dumps({**found, "unit": unit, "pieces": pieces}, indent=1) + "\n")
            writing.marker.unlink()
        except BaseException as error:
            writing.discard()
            if isinstance(error, tf.errors.OpError):  # a full disk, for one
                raise OSError(f"{folder} could not be written, and nothing is left of it ({error.message})") from error
            raise
    return Shards(folder, split)


class _Writing:
    """The files of one split while they are written."""

    def __init__(self, folder: Path, split: str, first: Sequences, num_shards: int) -> None:
        _check_tokens(first)
        self.folder, self.split = folder, split
        self.about = {name: getattr(first, name) for name in _DESCRIPTION} | {"split": split, "columns": list(first.columns)}
        self.fields = {name: _field_of(first, name) for name in (*_FIELDS, "target") if getattr(first, name) is not None}
        self.paths = [folder / f"{split}-{k:05d}-of-{num_shards:05d}.tfrecord" for k in range(num_shards)]
        self.manifest = folder / f"{split}{MANIFEST}"
        self.marker = folder / f".{split}-is-being-written"  # and its lock says whether by one that goes on
        self.writers: list[tf.io.TFRecordWriter] = []
        self.lengths = array("i")
        self.rng, self.share, self.kept_bytes = np.random.default_rng(0), 1.0, 0
        self.kept: list[tuple[float, bytes]] = []
        self.tokens: dict[str, Counter[str]] = {
            name: Counter() for name in ("x", "target") if name in self.fields and self.fields[name].is_text
        }
        self.labels: dict[str, set[Any]] = {}

    def paths_there(self) -> list[Path]:
        """Files of this split: shards, of any number, and what stands beside them."""
        beside = (self.folder / f"{self.split}-{name}" for name in _BESIDE)
        return [*sorted(self.folder.glob(f"{self.split}-?????-of-?????.tfrecord")), *(path for path in beside if path.exists())]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Marks the split as being written, by this process alone; raises where files are there that no interrupted one left."""
        self._check_new()
        if (there := self.paths_there()) and not self.marker.exists():
            left = "and not left by an interrupted write"
            raise ValueError(f"`folder` must be without files of split {self.split!r}; {there[0]} is there, {left}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.marker.touch()
        with locked(self.marker) as free:
            if free is False:
                raise ValueError(f"`folder` must be no other's now; another writes split {self.split!r} of {self.folder}.")
            try:
                self._check_new()
            except ValueError:  # finished just now
                self.marker.unlink(missing_ok=True)
                raise
            yield

    def _check_new(self) -> None:
        if self.manifest.exists():
            raise ValueError(
                f"`folder` must be without split {self.split!r}; {self.manifest} is there. Choose another, or delete it."
            )

    def start(self) -> None:
        """Opens the shards."""
        import tensorflow as tf

        for path in self.paths_there():  # what an interrupted run left
            path.unlink()
        for path in self.paths:
            self.writers.append(tf.io.TFRecordWriter(str(path)))

    def add(self, block: Sequences) -> None:
        """Writes the sequences of a block."""
        import tensorflow as tf

        there = {name for name in (*_FIELDS, "target") if getattr(block, name) is not None}
        if there != set(self.fields):
            raise ValueError(f"Blocks of `data` must have the same entries, {sorted(self.fields)}; received {sorted(there)}.")
        _check_tokens(block)
        for i in range(len(block)):
            row = len(self.lengths)
            arrays = {name: field.array(name, row, getattr(block, name)[i]) for name, field in self.fields.items()}
            for name in sorted({"x", "u"} & set(arrays)):
                keep = arrays.get("observed", True) if name == "x" else True
                checks.finite(f"data.{name}", arrays[name], keep, (row,), has_observed=name == "x")
            features = {}
            for name, values in arrays.items():
                is_text = self.fields[name].is_text
                content = [a.encode() for a in values.reshape(-1).tolist()] if is_text else [values.tobytes()]
                features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=content))
            record = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
            self.writers[row % len(self.writers)].write(record)
            self.lengths.append(len(arrays["x"]))
            self._sample(record, arrays)

    def _sample(self, record: bytes, arrays: dict[str, np.ndarray]) -> None:
        """Keeps a uniform sample of the sequences; and each that has the first of a label, or the largest symbol so far."""
        place, is_witness = self.rng.random(), not self.kept
        for name, counts in self.tokens.items():
            counts.update(arrays[name].tolist())
            if len(counts) > 2 * _MOST_TOKENS:
                self.tokens[name] = Counter(dict(counts.most_common(_MOST_TOKENS)))
        for name in {"x", "y", "target"} & set(arrays) - set(self.tokens):
            values = arrays[name]
            if values.dtype.kind not in "iuU" or not values.size or (name == "x" and values.ndim > 1):
                continue
            known = self.labels.setdefault(name, set())
            found = set(np.unique(values).tolist()) if values.dtype.kind == "U" else {int(values.max())}
            new = found - known if values.dtype.kind == "U" else {a for a in found if a > max(known, default=-1)}
            if new and len(known) < _MOST_LABELS:
                known |= new
                is_witness = True
        if is_witness or place < self.share:
            self.kept.append((-1.0 if is_witness else place, record))
            self.kept_bytes += 0 if is_witness else len(record)
        while self.kept_bytes > _SAMPLE_BYTES:  # halves the share of what is kept
            self.share /= 2.0
            self.kept = [(place, record) for place, record in self.kept if place < self.share]
            self.kept_bytes = sum(len(record) for place, record in self.kept if place >= 0.0)

    def finish(self) -> dict[str, Any]:
        """Writes what stands beside the shards; the content of the manifest."""
        import tensorflow as tf

        for writer in self.writers:
            writer.close()
        lengths, num = np.array(self.lengths, np.int32), len(self.paths)
        beside = {name: self.folder / f"{self.split}-{name}" for name in _BESIDE}
        np.save(beside["lengths.npy"], lengths)
        with tf.io.TFRecordWriter(str(beside["sample.tfrecord"])) as writer:
            for _, record in self.kept:
                writer.write(record)
        tokens = {name: dict(counts.most_common(_MOST_TOKENS)) for name, counts in self.tokens.items()}
        beside["tokens.json"].write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
        parts = [lengths[k::num] for k in range(num)]
        return {
            "version": _VERSION,
            **self.about,
            "sequences": len(lengths),
            "steps": int(lengths.sum(dtype=np.int64)),
            "fields": {name: field._asdict() for name, field in self.fields.items()},
            "beside": {name: _described(path) for name, path in beside.items()},
            "shards": [
                {**_described(path), "sequences": len(part), "steps": int(part.sum(dtype=np.int64))}
                for path, part in zip(self.paths, parts, strict=True)
            ],
        }

    def discard(self) -> None:
        """Removes the files of this split, which no manifest names."""
        for writer in self.writers:
            with suppress(Exception):  # what it still held cannot be written either
                writer.close()
        with suppress(OSError):  # the error that led here says more
            for path in (*self.paths_there(), self.marker):
                path.unlink(missing_ok=True)


def _field_of(data: Sequences, name: str) -> _Field:
    """What all sequences have in one entry, by those of the first block."""
    whole = name == "y" and data.one_label
    dtype = data._dtypes[name]
    if dtype.kind != "U" and dtype.name not in _DTYPES:
        raise ValueError(f"`data.{name}` must be str or one of {', '.join(_DTYPES)} to be written; received {dtype}.")
    return _Field("str" if dtype.kind == "U" else dtype.name, () if whole else np.shape(getattr(data, name)[0])[1:], whole)


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


# Reading ------------------------------------------------------------------------------------------------------------


def splits_in(folder: str | Path) -> tuple[str, ...]:
    """The splits that a folder has as shards; empty where it has none."""
    return tuple(split for split in _SPLITS if (Path(folder) / f"{split}{MANIFEST}").is_file())


def load_shards(folder: str | Path, split: str = "train") -> Sequences:
    """A split of a folder of shards, read into memory; raises where it is larger than that (see `Shards.read`)."""
    return Shards(folder, split).read()


def long_texts(path: str | Path, split: str) -> Iterator[Sequences] | None:
    """A `.txt` file of any size, or that of a folder, as blocks of raw text to model, which end with a line where they can.

    The splits of one file are 90, 5 and 5 % of its bytes, up to the ends of lines; None where there is no such file.
    """
    from tfseq.data.series import files_of

    path = Path(path)
    file = files_of(path, [".txt"]).get(split) if path.is_dir() else path
    if file is None or not file.is_file() or file.suffix.lower() != ".txt":
        return None
    size = file.stat().st_size
    begin, end = (0, size) if path.is_dir() else (int(size * share) for share in _SHARES[split])
    return _text_of(file, begin, end, path.resolve().stem, split)


def _rest_of_line(content: BufferedReader, before: bytes) -> bytes:
    """What follows `before` in its line; of a long line a part, which does not end inside a character."""
    rest = b"" if before.endswith(b"\n") else content.readline(_LINE_BYTES)
    while content.peek(1)[:1] and content.peek(1)[0] & 0xC0 == 0x80:
        rest += content.read(1)
    return rest


def _text_of(file: Path, begin: int, end: int, name: str, split: str) -> Iterator[Sequences]:
    """The lines of a file that begin between two places, in blocks."""
    with file.open("rb") as content:
        if begin:
            content.seek(begin - 1)
            _rest_of_line(content, content.read(1))
        while content.tell() < end:
            place = content.tell()
            block = content.read(min(_TEXT_BYTES, end - place))
            block += _rest_of_line(content, block)
            text = _decoded(file, block, place)
            yield Sequences([text], name=name, split=split, step="character", source=f"the user's file {file.name}")


def _decoded(file: Path, block: bytes, place: int) -> str:
    """A block of a file, which begins at a place, as text; errors name the line of the file."""
    from tfseq.data.reading import decoded

    with suppress(ValueError):
        return decoded(file, block)
    # It fails again, now with as many lines, and bytes of its line, before it as in the file; they are counted for errors alone.
    lines = column = 0
    with file.open("rb") as content:
        while before := content.read(min(_TEXT_BYTES, place - content.tell())):
            lines += before.count(b"\n")
            _, newline, rest = before.rpartition(b"\n")
            column = len(rest) + (0 if newline else column)
    return decoded(file, b"\n" * lines + b" " * column + block)


@contextmanager
def named_damage() -> Iterator[None]:
    """What a damaged shard raises inside a graph comes out as a ValueError that names the file."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        begin = str(error).find(_DAMAGED)
        if begin < 0:
            raise
        raise ValueError(str(error)[begin:].split("|")[0]) from None


class Shards:
    """One split of a data set on disk, which `train` and `evaluate` take in the place of `Sequences`.

    What is in memory does not grow with the data, but for the lengths of the sequences, 4 bytes each.

    >>> import numpy as np, tempfile, tfseq
    >>> data = tfseq.Sequences([np.eye(3, dtype=np.float32)[:t] for t in (1, 2, 3, 3)], name="mine")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = tfseq.write_shards(data, folder, num_shards=2)
    ...     again = tfseq.Shards(folder, "train")
    ...     model = tfseq.RBM.from_data(again.sample(), num_hidden=2)
    ...     len(again), again.lengths.tolist(), again.num_batches(3)  # and tfseq.train(model, again)
    (4, [1, 2, 3, 3], 2)

    Attributes:
        lengths: steps of each sequence, `[N]` int32.
        fields: the entries of the records.
        sha256: a digest of all shards, by the manifest.
        name, split, step, source, shape, columns, sampling_rate: as of `Sequences`.
        unit: what texts were cut into; empty where the data are no texts, or their maker did not say.
        pieces: whether the sequences are pieces of one text.

    Args:
        folder: what `write_shards` wrote.
        split: `"train"`, `"valid"` or `"test"`.

    Raises:
        FileNotFoundError: the folder does not have the split, or writing it was interrupted.
        ValueError: a file is missing, has another size than the manifest says, or is damaged; it is named. Content of shards is
            checked where it is read, and all at once by `check`.
    """

    augmentation = None

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        checks.choice("split", split, _SPLITS)
        self.folder = Path(folder)
        path = self.folder / f"{split}{MANIFEST}"
        if not path.is_file():
            there = ", ".join(splits_in(folder)) or "none"
            raise FileNotFoundError(
                f"{path} does not exist, so there are no shards of split {split!r} (splits there: {there}). Was writing them "
                "interrupted? Write them again: tfseq data shard."
            )
        try:
            found = json.loads(path.read_text())
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']}")
            self.fields = {n: _Field(f["dtype"], tuple(f["shape"]), f["whole"]) for n, f in found["fields"].items()}
            self.name, self.split, self.step, self.source = (str(found[n]) for n in _DESCRIPTION[:4])
            self.shape = None if found["shape"] is None else tuple(found["shape"])
            self.columns, self.sampling_rate, self.unit = list(found["columns"]), found["sampling_rate"], str(found["unit"])
            self.pieces = bool(found["pieces"])
            self._shards, self._beside, self._num = found["shards"], found["beside"], int(found["sequences"])
            self._files = {one["file"]: one for one in (*self._shards, *self._beside.values())}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged, or of another version ({type(error).__name__}: {error}).") from error
        for name, one in self._files.items():
            file = self.folder / name
            size = file.stat().st_size if file.is_file() else None
            if size != one["bytes"]:
                state = "it is missing" if size is None else f"it has {size} bytes and not {one['bytes']}"
                raise ValueError(f"{_DAMAGED}{file}: {state}. {_ADVICE}")
        self._suffix: dict[str, tuple[str, ...]] = {}  # tokens that a model appends: see `prepared`

    def __len__(self) -> int:
        return self._num

    @property
    def num_bytes(self) -> int:
        """Size of the shards."""
        return sum(one["bytes"] for one in self._shards)

    @cached_property
    def sha256(self) -> str:
        """A digest (hex) of the content, without reading it."""
        fields = {name: field._asdict() for name, field in self.fields.items()}
        content = json.dumps([fields, [one["sha256"] for one in self._shards]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def lengths(self) -> np.ndarray:
        path = self._beside_file("lengths.npy")
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        return found + np.int32(len(self._suffix["x"])) if self._suffix.get("x") else found

    @cached_property
    def _classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Length -> the longest of its class; the different classes, and how many sequences each has."""
        longest = int(self.lengths.max(initial=0))
        counts = np.zeros(longest + 1, np.int64)
        for begin in range(0, self._num, _MOST_IN_GROUP):
            counts += np.bincount(self.lengths[begin : begin + _MOST_IN_GROUP], minlength=longest + 1)
        there = np.flatnonzero(counts)
        classes = np.zeros(longest + 1, np.int64)
        classes[there] = _length_classes(there)
        values, places = np.unique(classes[there], return_inverse=True)
        return classes, values, np.bincount(places, counts[there]).astype(np.int64)

    def _beside_file(self, name: str) -> Path:
        """A file beside the shards, whose content is checked."""
        return self._checked(self._beside[name])

    def _checked(self, one: dict[str, Any]) -> Path:
        path = self.folder / one["file"]
        found = _described(path)["sha256"] if path.is_file() else "no file"
        if found != one["sha256"]:
            raise ValueError(f"{_DAMAGED}{path}: SHA-256 {one['sha256']} is written down, found {found}. {_ADVICE}")
        return path

    def check(self) -> None:
        """Reads all files; raises ValueError where one is not what was written, and names it."""
        for one in self._files.values():
            self._checked(one)

    def prepared(self, prepare: Callable[[Sequences], Sequences]) -> Shards:
        """The shards as a model reads them: with the token that it appends to each text, if any.

        Args:
            prepare: `model.prepare`.
        """
        some = self._sampled(8)
        after, found = prepare(some), copy.copy(self)
        for name in ("lengths", "_classes"):  # not those of before
            found.__dict__.pop(name, None)
        for name in ("x", "target"):
            if name not in self.fields or getattr(after, name) is getattr(some, name):
                continue
            ends = {
                tuple(b[len(a) :].tolist()) if len(b) >= len(a) and np.array_equal(a, b[: len(a)]) else None
                for a, b in zip(getattr(some, name), getattr(after, name), strict=True)
            }
            if None in ends or len(ends) > 1:
                raise ValueError(
                    f"`{name}` of shards must have been cut into tokens as the model cuts them; {self.folder} holds others. "
                    "Write what `model.prepare` makes of the data, or give the model the unit of the shards."
                )
            found._suffix = {**found._suffix, name: ends.pop() or ()}
        return found

    def sample(self) -> Sequences:
        """What a model is made from (`from_data`): some of the sequences, and all that it must know of the others.

        A uniform sample of the sequences, about 16 MB, whose means and deviations stand for those of all; the first sequence of
        each label, and those of the largest symbols; and made-up sequences without labels, so that each token stands there as
        often as in the data, or ten times (of more than a million different ones, the most frequent): vocabularies are those of
        the whole data, with `min_count` up to ten, and their order is that of the sample.
        """
        data = self._sampled()
        tokens = json.loads(self._beside_file("tokens.json").read_text(encoding="utf-8"))
        for name, counts in tokens.items():
            seen = Counter(token for items in getattr(data, name) for token in items.tolist())
            missing = {token: min(count, _MOST_COPIES) - seen[token] for token, count in counts.items()}
            by_length: dict[int, list[str]] = {}  # NumPy keeps all strings of an array as long as the longest
            for token, copies in missing.items():
                by_length.setdefault(len(token), []).extend([token] * copies)
            data = self._with_tokens(data, name, [np.array(group) for group in by_length.values() if group])
        return data

    def _with_tokens(self, data: Sequences, name: str, groups: list[np.ndarray]) -> Sequences:
        """The data, and sequences of these tokens, all else of them zero or unknown."""
        fields: dict[str, list[Any]] = {field: list(getattr(data, field)) for field in self.fields}
        for group in groups:
            num_steps = len(group) if name == "x" else 0
            for other, field in self.fields.items():
                empty: Any = "" if field.is_text else -1 if other == "y" else 0
                shape = () if field.whole else (0 if other == "target" else num_steps, *field.shape)
                made = np.full(shape, empty, "U1" if field.is_text else field.dtype)
                fields[other].append(group if other == name else made[()] if field.whole else made)
        return self._sequences(fields)

    def _sequences(self, fields: dict[str, list[Any]]) -> Sequences:
        about: dict[str, Any] = {name: getattr(self, name) for name in _DESCRIPTION}
        return Sequences(**about | fields)

    def _sampled(self, count: int = -1) -> Sequences:
        """Sequences of the sample file."""
        import tensorflow as tf

        bare = copy.copy(self)
        bare._suffix = {}
        records = tf.data.TFRecordDataset(str(self._beside_file("sample.tfrecord"))).take(count)
        numbered = tf.data.Dataset.zip((records, tf.data.Dataset.counter()))
        return self._collected(bare._parsed(*some) for some in numbered.batch(64))

    def read(self) -> Sequences:
        """The whole split in memory.

        Raises:
            ValueError: it is larger than 1 GiB, or a shard is damaged.
        """
        if self.num_bytes > _MOST_READ:
            raise ValueError(
                f"{self.folder} must fit into memory to be read as a whole; its split {self.split!r} has "
                f"{self.num_bytes / 1e9:.1f} GB, and {_MOST_READ / 1e9:.1f} are the most. `train` streams it; for all else write "
                "a smaller split."
            )
        with named_damage():
            return self._collected(self.stream(64))

    def _collected(self, batches: Iterable[dict[str, tf.Tensor]]) -> Sequences:
        """The sequences of batches, in the order of their rows."""
        found: dict[int, dict[str, Any]] = {}
        for tensors in batches:
            batch = {name: value.numpy() for name, value in tensors.items()}
            for i, row in enumerate(batch["row"].tolist()):
                num = {"target": batch["target_mask"][i].sum()} if "target" in batch else {}
                one = {}
                for name, field in self.fields.items():
                    values = batch[name][i] if field.whole else batch[name][i][: num.get(name, batch["mask"][i].sum())]
                    if field.is_text:
                        values = values.decode() if field.whole else np.array([a.decode() for a in values], str)
                    one[name] = values
                found[row] = one
        return self._sequences({name: [found[row][name] for row in sorted(found)] for name in self.fields})

    # Batches -------------------------------------------------------------------------------------------------------

    def _records(self, shard: tf.Tensor, buffer: int = 1 << 20) -> tf.data.Dataset:
        """(record, number of its sequence) of a shard, "" in the place of records that cannot be read."""
        import tensorflow as tf

        paths = tf.constant([str(self.folder / one["file"]) for one in self._shards])
        counts = tf.constant([one["sequences"] for one in self._shards], tf.int64)
        num = len(self._shards)
        rows = tf.data.Dataset.range(shard, shard + num * tf.gather(counts, shard), num)
        records = tf.data.TFRecordDataset(tf.gather(paths, shard), buffer_size=buffer).ignore_errors()
        return tf.data.Dataset.zip((records.concatenate(tf.data.Dataset.from_tensors("").repeat()), rows))

    def _whole(self, records: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Records `[K]` as they are; raises inside the graph where one could not be read."""
        import tensorflow as tf

        files = tf.constant([str(self.folder / one["file"]) for one in self._shards])
        place = tf.argmin(tf.cast(records != "", tf.int32))
        record = tf.strings.as_string(rows[place] // len(self._shards))
        file = tf.gather(files, rows[place] % len(self._shards))
        text = [_DAMAGED, file, ": record ", record, f" cannot be read. {_ADVICE}|"]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(records != ""), [tf.strings.join(text)])]):
            return tf.identity(records), rows

    def _ragged(self, records: tf.Tensor) -> dict[str, Any]:
        """Records `[K]` -> entries `[K, (T), ...]` ragged, `[K]` where there is one value each."""
        import tensorflow as tf

        one, many = tf.io.FixedLenFeature([], tf.string), tf.io.RaggedFeature(tf.string)
        raw = tf.io.parse_example(records, {n: many if f.is_text and not f.whole else one for n, f in self.fields.items()})
        found = {}
        for name, field in self.fields.items():
            values = raw[name]
            if not field.is_text:
                flat = tf.io.decode_raw(tf.strings.reduce_join(values), field.dtype)
                if not field.whole:
                    sizes = tf.strings.length(values) // (np.dtype(field.dtype).itemsize * math.prod(field.shape))
                    flat = tf.RaggedTensor.from_row_lengths(tf.reshape(flat, [-1, *field.shape]), sizes, validate=False)
                values = flat
            elif not field.whole:
                values = values.with_row_splits_dtype(tf.int32)
            if end := self._suffix.get(name):
                if not field.is_text:  # as in memory, where the id of an end is int32
                    values = tf.cast(values, np.result_type(field.dtype, np.int32))
                values = tf.concat([values, tf.repeat(tf.constant([end], values.dtype), tf.shape(records)[0], 0)], 1)
            found[name] = values
        return found

    def _parsed(self, records: tf.Tensor, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Records `[B]` as a batch."""
        import tensorflow as tf

        batch = {"row": tf.cast(rows, tf.int32)}
        found, num = self._ragged(records), tf.shape(records)[0]
        for name, mask in (("x", "mask"), ("target", "target_mask")):
            if name in found:
                lengths = found[name].row_lengths()
                batch[mask] = tf.sequence_mask(lengths, tf.maximum(1, tf.reduce_max(lengths)))
        for name, field in self.fields.items():
            if field.whole:
                batch[name] = found[name]
            else:
                num_steps = tf.shape(batch["target_mask" if name == "target" else "mask"])[1]
                dense = found[name].to_tensor(shape=tf.stack([num, num_steps, *field.shape]))
                batch[name] = tf.ensure_shape(dense, [None, None, *field.shape])
        return batch

    def stream(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        first_epoch: int = 0,
        skip: int = 0,
        augmented_epochs: int = 0,
        batch_steps: int | None = None,
    ) -> tf.data.Dataset:
        """Padded batches, as `tfseq.data.batching.stream` gives of data in memory: a function of (seed, epoch).

        Shards are read in a random order, several at a time; some megabytes of their records are shuffled, and each waits in the
        bucket of its class of lengths, which are about 10 % apart, until there are enough for a batch. What is left in the
        buckets at the end of an epoch is batched in the order of its lengths, so that all epochs have as many batches.

        Args:
            batch_size: sequences of a batch.
            seed: of the order; without one, a single pass in a fixed order.
            first_epoch: where to go on.
            skip: batches of this epoch to leave out.
            augmented_epochs: must be 0.
            batch_steps: padded steps of a batch at most, in the place of `batch_size`.

        Raises:
            ValueError: an option is out of range.
        """
        import tensorflow as tf

        if augmented_epochs:
            raise ValueError(f"`augmented_epochs` must be 0 for shards, which keep no augmentation; received {augmented_epochs}.")
        size = self.num_batches(batch_size, batch_steps=batch_steps)
        _check_skip(skip, size)
        classes, lengths = self._classes[0], self.lengths
        in_group = min(max(1, _GROUP_BYTES * self._num // max(self.num_bytes, 1)), _MOST_IN_GROUP)
        last, num_open = math.ceil(self._num / in_group) - 1, min(_OPEN_SHARDS, len(self._shards))

        def order(epoch: np.ndarray) -> np.ndarray:
            num = len(self._shards)
            return np.arange(num) if seed is None else np.random.default_rng([seed, int(epoch)]).permutation(num)

        def plan(epoch: np.ndarray, group: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rng = None if seed is None else np.random.default_rng([seed, int(epoch), 1 + int(group)])
            return _planned(classes[lengths[rows]], batch_size, batch_steps, bool(group == last), rng)

        def batches(epoch: tf.Tensor) -> tf.data.Dataset:
            shards = tf.ensure_shape(tf.numpy_function(order, [epoch], tf.int64, stateful=False), [len(self._shards)])
            records = tf.data.Dataset.from_tensor_slices(shards).interleave(
                self._records, num_open, num_parallel_calls=min(_PARALLEL, num_open), deterministic=True
            )

            def grouped(waiting: Any, found: Any) -> tuple[Any, Any]:
                group, (records, rows) = found
                records, rows = tf.concat([waiting[0], records], 0), tf.concat([waiting[1], rows], 0)
                plans = tf.numpy_function(plan, [epoch, group, rows], [tf.int64] * 3, stateful=False)
                places, cuts, left = (tf.ensure_shape(a, [None]) for a in plans)
                picked = tf.gather(records, places), tf.gather(rows, places), cuts
                return (tf.gather(records, left), tf.gather(rows, left)), picked

            def cut(records: tf.Tensor, rows: tf.Tensor, cuts: tf.Tensor) -> tf.data.Dataset:
                ends = tf.data.Dataset.from_tensor_slices((cuts[:-1], cuts[1:]))
                return ends.map(lambda begin, end: (records[begin:end], rows[begin:end]))

            nothing = (tf.zeros([0], tf.string), tf.zeros([0], tf.int64))
            return records.batch(in_group).map(self._whole).enumerate().scan(nothing, grouped).flat_map(cut)

        found = _epochs(seed, first_epoch).flat_map(batches).skip(skip)
        found = found.map(self._parsed, num_parallel_calls=_PARALLEL, deterministic=True)
        return _sized(found, size - skip if seed is None else None)

    def num_batches(self, batch_size: int, *, batch_steps: int | None = None) -> int:
        """Batches of an epoch of `stream`."""
        checks.at_least(1, batch_size=batch_size, **({} if batch_steps is None else {"batch_steps": batch_steps}))
        if batch_steps is None:
            return -(-self._num // batch_size)
        values, counts = self._classes[1:]
        sizes = np.maximum(1, batch_steps // values)
        return int((counts // sizes).sum()) + len(_cuts(np.repeat(values, counts % sizes), batch_steps)) - 1

    # Windows -------------------------------------------------------------------------------------------------------

    def windows(
        self, batch_size: int, num_steps: int, *, seed: int | None = None, first_epoch: int = 0, skip: int = 0
    ) -> tf.data.Dataset:
        """Windows of lanes, as `tfseq.data.batching.windows` gives of data in memory; each lane reads its own part of the shards.

        The order is that of the shards, random with a seed, and of the sequences in each of them. A lane begins by passing over
        what comes before it in its shard; it keeps some records in memory, and no shard.

        Args:
            batch_size: number of lanes, B.
            num_steps: steps of a window, T.
            seed: of the order of the shards.
            first_epoch, skip: where to go on: after `skip` windows of this epoch.
        """
        import tensorflow as tf

        checks.at_least(1, batch_size=batch_size, num_steps=num_steps)
        size = num_windows(self, batch_size, num_steps)
        _check_skip(skip, size)
        field, num = self.fields["x"], len(self._shards)
        if field.shape or field.dtype[:3] not in ("int", "uin", "str"):
            raise ValueError(f"`x` must be symbols or tokens, each [T], to be cut into windows; {self.folder} holds {field}.")
        extra = len(self._suffix.get("x", ()))
        steps = np.array([one["steps"] + extra * one["sequences"] for one in self._shards], np.int64)
        each, more = divmod(int(steps.sum()), batch_size)  # the first `more` lanes have one step more
        lanes = np.arange(batch_size)
        starts, ends = lanes * each + np.minimum(lanes, more), each + (lanes < more)
        in_chunk = min(max(1, _CHUNK_BYTES * self._num // max(self.num_bytes, 1)), 256)

        def begins(epoch: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Order of the shards; of each lane the place of its first shard in it, records and steps to pass over there."""
            order = np.arange(num) if seed is None else np.random.default_rng([seed, int(epoch)]).permutation(num)
            before = np.concatenate([[0], steps[order].cumsum()])
            found = np.zeros([batch_size, 3], np.int64)
            for lane, step in enumerate(np.minimum(starts + begin, starts + ends)):
                place = int(np.searchsorted(before, step, "right")) - 1
                found[lane, 0] = place
                if place < num:
                    until = self.lengths[order[place] :: num].cumsum(dtype=np.int64)
                    record = int(np.searchsorted(until, step - before[place], "right"))
                    found[lane, 1:] = record, step - before[place] - (until[record - 1] if record else 0)
            return order, found

        def epoch_of(epoch: tf.Tensor, begin: tf.Tensor) -> tf.data.Dataset:
            order, places = tf.numpy_function(begins, [epoch, begin * num_steps], [tf.int64] * 2, stateful=False)
            order, places = tf.ensure_shape(order, [num]), tf.ensure_shape(places, [batch_size, 3])
            windows = tf.data.Dataset.range(batch_size).interleave(
                lambda lane: lane_of(order, places[lane], tf.gather(ends, lane), begin),
                batch_size, num_parallel_calls=min(_PARALLEL, batch_size), deterministic=True,
            )  # fmt: skip
            return windows.batch(batch_size, drop_remainder=True)

        def lane_of(order: tf.Tensor, places: tf.Tensor, end: tf.Tensor, begin: tf.Tensor) -> tf.data.Dataset:
            shards = tf.data.Dataset.from_tensor_slices(order[places[0] :])
            records = shards.flat_map(lambda shard: self._records(shard, _CHUNK_BYTES)).skip(places[1])

            def steps_of(chunk: tf.Tensor, found: Any) -> tuple[tf.Tensor, tf.Tensor]:
                rows = self._ragged(self._whole(*found)[0])["x"]
                owners = rows.value_rowids()
                fresh = owners != tf.concat([tf.constant([-1], owners.dtype), owners], 0)[:-1]
                passed = tf.where(chunk == 0, places[2], 0)
                return rows.values[passed:], fresh[passed:]

            def window(index: tf.Tensor, found: Any) -> dict[str, tf.Tensor]:
                x, fresh = (tf.ensure_shape(tf.pad(a, [[0, num_steps - tf.shape(a)[0]]]), [num_steps]) for a in found)
                place = (begin + index) * num_steps + tf.range(num_steps, dtype=tf.int64)
                mask = place < end
                return {"x": tf.where(mask, x, tf.zeros_like(x)), "mask": mask, "fresh": mask & (fresh | (place == 0))}

            chunks = records.batch(in_chunk).enumerate().map(steps_of).filter(lambda x, _: tf.size(x) > 0)
            nothing = tf.zeros([0], chunks.element_spec[0].dtype), tf.zeros([0], tf.bool)
            parts = chunks.rebatch(num_steps).concatenate(tf.data.Dataset.from_tensors(nothing))  # a lane may end a window early
            return parts.enumerate().take(size - begin).map(window)

        row = tf.range(batch_size, dtype=tf.int32)
        epochs = _epochs(seed, first_epoch)
        begins_at = tf.data.Dataset.from_tensors(tf.constant(skip, tf.int64))
        begins_at = begins_at.concatenate(tf.data.Dataset.from_tensors(tf.constant(0, tf.int64)).repeat())
        found = tf.data.Dataset.zip((epochs, begins_at)).flat_map(epoch_of).map(lambda batch: {**batch, "row": row})
        return _sized(found, size - skip if seed is None else None)


def _planned(
    classes: np.ndarray, batch_size: int, batch_steps: int | None, last: bool, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The batches that can be made of records, whose classes of lengths are given, and which records wait for more.

    Returns:
        Places of the records in the order of batches, where batches begin (and the last ends), and places of those that wait.
    """
    shuffled = np.arange(len(classes)) if rng is None else rng.permutation(len(classes))
    ordered = shuffled[np.argsort(classes[shuffled], kind="stable")]
    values, begins = np.unique(classes[ordered], return_index=True)
    batches, waiting = [], []
    for value, members in zip(values, np.split(ordered, begins[1:]), strict=True):
        size = batch_size if batch_steps is None else max(1, batch_steps // int(value))
        full = len(members) // size * size
        batches += [members[i : i + size] for i in range(0, full, size)]
        waiting.append(members[full:])
    left = np.concatenate([np.zeros(0, np.int64), *waiting])
    if last:
        cuts = [*range(0, len(left), batch_size), len(left)] if batch_steps is None else _cuts(classes[left], batch_steps)
        batches += [left[begin:end] for begin, end in itertools.pairwise(cuts)]
        left = left[:0]
    batches = batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
    places = np.concatenate([np.zeros(0, np.int64), *batches])
    return places, np.cumsum([0, *map(len, batches)]).astype(np.int64), left


def _epochs(seed: int | None, first: int) -> tf.data.Dataset:
    """Numbers of epochs: all from `first` on with a seed, one without."""
    import tensorflow as tf

    return tf.data.Dataset.counter(first) if seed is not None else tf.data.Dataset.from_tensors(tf.constant(0, tf.int64))
