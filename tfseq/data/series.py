"""Series of numbers: the world's major earthquakes, and the user's own CSV and NPZ files."""

from __future__ import annotations

import csv
import datetime
import itertools
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfseq.checks import choice, nearest
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences

SUFFIXES = (".csv", ".npz")
MAX_BYTES = 2 * 2**30
"""The largest file that is read; of an NPZ, its size unpacked."""

_EARTHQUAKES = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22 26 21 23 24 27 41
31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15 8 15 6 11
8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""

TIMES = ("step", "timestamp", "datetime", "date", "year", "quarter", "month", "week", "day", "time", "hour", "minute", "second")
"""Columns, in any case, that say when a step is, the coarse before the fine; they are no features."""
_UNITS = TIMES[4:9] + TIMES[10:]  # of them, those that are the length of a step

_DELIMITERS = (",", ";", "\t")
_MISSING = ("", "na", "nan")
_BLOCK = 2**16  # rows that are text at one time: as Python's strings, numbers take ten times their place
_ARRAYS = ("x", "lengths", "observed", "u", "y")
_LARGEST = np.iinfo(np.int32).max
_RULES = {
    "x": "a finite number, or empty where it is missing",
    "symbol": f"a whole number from 0 to {_LARGEST}, or empty where it is missing",
    "u": "a finite number; controls cannot be missing",
    "y": f"a whole number from -1 to {_LARGEST}, where -1 (or empty) is not known",
}


def load_earthquakes(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Earthquakes of magnitude 7 or more in the world, a count a year, 1900-2006: one sequence of 107 years.

    Args:
        split: `"train"`; the published fits use all years, so there is no other.
        data_dir: not used; the numbers stand in this file.

    Returns:
        Counts `[107, 1]` float32, from 6 to 41.
    """
    choice("split", split, ("train",))
    return Sequences(
        x=[np.array(_EARTHQUAKES.split(), np.float32)[:, None]],
        names=["1900-2006"],
        name="earthquakes",
        split=split,
        step="year",
        columns=("count",),
        source="US Geological Survey; Zucchini, MacDonald & Langrock 2016, Hidden Markov Models for Time Series, table 1.1",
    )


def files_of(folder: Path, suffixes: Collection[str] = SUFFIXES) -> dict[str, Path]:
    """Split -> its file in a folder, such as `train.csv`, for the splits it has in files with one of the suffixes.

    Raises:
        ValueError: a split has two files.
    """
    found: dict[str, Path] = {}
    for split in SPLITS:
        files = sorted(file for file in folder.glob(f"{split}.*") if file.stem == split and file.suffix.lower() in suffixes)
        if len(files) > 1:
            raise ValueError(f"{folder} must have one file for each split; {split!r} has {' and '.join(f.name for f in files)}.")
        if files:
            found[split] = files[0]
    return found


def load_series(path: str | Path, split: str = "train") -> Sequences:
    """The user's own series, from a CSV or NPZ file: real or counted features, symbols, controls, labels.

    A CSV file (comma, semicolon or tab; UTF-8) has a header line, then a row per step. Its columns:

    - `sequence`: what the sequence of the step is called, any text; its rows stand together. Without it, all are one sequence.
    - `step`, `date`, `year`, `time` and others of `TIMES`: when the step is. They are no features. Numbers and ISO dates must
      increase within a sequence (`year` and `quarter` together); other text is not looked at.
    - `y`: the step's label, a whole number; empty or -1 where it is not known. A label of whole sequences, for a classifier,
      stands at every step, or at some, and does not change within a sequence.
    - `u_NAME`: a control, which is always there.
    - every other: a feature, in the order of the columns. Empty, `NA` or `NaN` is missing. A single feature called `symbol`
      is symbols, whole numbers from 0.

    An NPZ file has `x`: one sequence `[T, D]`, or symbols `[T]`; or several padded on the right, `[N, T, D]`, or symbols
    `[N, T]` with `lengths`. Beside it may stand `lengths [N]`, `observed` (bool, as `x`; NaN is missing too), `u [T, U]` or
    `[N, T, U]`, and `y [T]` or `[N, T]`, or `[N]`, a label of each whole sequence.

    Args:
        path: the file, which has only the split `"train"`; or a folder with `train.csv`, `valid.csv`, `test.csv` (or `.npz`).
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        Features `[T_i, D]` float32, or symbols `[T_i]` int32; `observed` (of the shape of `x`, where `x` is 0 if it is False)
        only where something is missing, `u` and `y` only where there are any. Names are those of `sequence`, or the file's;
        `columns` are those of the features of a CSV file, and `step` is the finest unit that a column of it is called.

    Raises:
        ValueError: no file for the split, or a file that is not as above; the line and column are named.
    """
    path = Path(path)
    files = files_of(path) if path.is_dir() else {"train": path}
    choice("split", split, files)
    file = files[split]
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"`path` must be an existing {' or '.join(SUFFIXES)} file, or a folder of them; received {str(path)!r}.")
    check_size(file, file.stat().st_size)
    fields = (_read_npz if file.suffix.lower() == ".npz" else _read_csv)(file)
    whole = path.resolve()
    name = whole.name if path.is_dir() else whole.stem
    return Sequences(**{"step": "step", **fields}, name=name, split=split, source=f"the user's file {file.name}")


def check_size(path: Path, size: int) -> None:
    """Raises ValueError where a file, or what it unpacks to, has more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES} bytes; received {size}. Split it, one file for each data set.")


def _allowed(kind: str, values: np.ndarray) -> np.ndarray:
    """Which values, NaN where missing, a column of a kind may hold: `_RULES` as arithmetic."""
    if kind in ("x", "u"):
        fits = np.abs(values) <= np.finfo(np.float32).max
    else:
        fits = (values == np.floor(values)) & (values >= (0 if kind == "symbol" else -1)) & (values <= _LARGEST)
    return fits if kind == "u" else fits | np.isnan(values)


def _fields(x: list[np.ndarray], u: list[np.ndarray] | None, y: list[np.ndarray] | None, symbols: bool) -> dict[str, Any]:
    """Arguments of `Sequences` from arrays with NaN where a value is missing."""
    observed = [~np.isnan(a) for a in x]
    return {
        "x": [np.where(seen, a, 0.0).astype(np.int32 if symbols else np.float32) for a, seen in zip(x, observed, strict=True)],
        "observed": None if all(seen.all() for seen in observed) else observed,
        "u": None if u is None else [a.astype(np.float32) for a in u],
        "y": None if y is None else [np.where(np.isnan(a), -1, a).astype(np.int32)[()] for a in y],  # of a sequence a number
    }


# CSV ----------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> dict[str, Any]:
    """Arguments of `Sequences` from a CSV file."""
    names: dict[str, None] = {}  # of the sequences, in order
    starts: list[int] = []  # their first rows
    blocks: list[np.ndarray] = []
    num_rows = 0
    with _csv_errors(path), path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = max(_DELIMITERS, key=re.sub('"[^"]*"', "", file.readline()).count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = _header(path, next(reader, []))
        kinds = _kinds(path, header)
        clock = _Clock(path, header)
        rows = _rows(path, reader, len(header))
        last = None if "sequence" in header else path.stem
        if last is not None:
            names[last], starts = None, [0]
        while block := list(itertools.islice(rows, _BLOCK)):
            lines = [line for line, _ in block]
            columns = dict(zip(header, zip(*(cells for _, cells in block), strict=True), strict=True))
            first = len(starts)
            for i, name in enumerate(map(str.strip, columns.get("sequence", ()))):
                if name == last:
                    continue
                if not name or name in names:
                    why = f"{name!r} ended before" if name else "the cell is empty"
                    raise ValueError(
                        f"{path}, line {lines[i]}, column 'sequence': the rows of a sequence must stand together and name it; "
                        f"{why}. Sort the file by sequence."
                    )
                names[name], last = None, name
                starts.append(num_rows + i)
            clock.check(columns, lines, {start - num_rows for start in starts[first:]})
            blocks.append(np.stack([_numbers(path, name, kind, columns[name], lines) for name, kind in kinds.items()], 1))
            num_rows += len(block)
    if not blocks:
        raise ValueError(f"{path} must have a row per step after its header; it has none.")
    sequences = np.split(np.concatenate(blocks), starts[1:])
    of = {kind: [i for i, found in enumerate(kinds.values()) if found == kind] for kind in _RULES}
    u = [a[:, of["u"]] for a in sequences] if of["u"] else None
    y = [a[:, of["y"][0]] for a in sequences] if of["y"] else None
    x = [a[:, of["symbol"][0]] if of["symbol"] else a[:, of["x"]] for a in sequences]
    features = [name for name, kind in kinds.items() if kind == "x"]
    return {**_fields(x, u, y, bool(of["symbol"])), "names": list(names), "columns": features, "step": clock.step}


class _Clock:
    """Checks, block after block of rows, that the time stamps of a file increase within a sequence.

    Args:
        path: the file, for messages.
        header: its columns.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.names = sorted((name for name in header if name.lower() in TIMES), key=lambda name: TIMES.index(name.lower()))
        self.readers: dict[str, Callable[[str], float | None]] | None = None
        self.last: tuple[tuple[float, ...], tuple[str, ...]] | None = None

    @property
    def step(self) -> str:
        """The finest unit that a column is called."""
        return next((name.lower() for name in reversed(self.names) if name.lower() in _UNITS), "step")

    def check(self, columns: Mapping[str, Sequence[str]], lines: Sequence[int], starts: Collection[int]) -> None:
        """Raises ValueError where a row does not come after the one before; the rows at `starts` begin a sequence."""
        if self.readers is None:  # what the first row holds, all must; text is not looked at
            kinds = {name: [read for read in (_number, _moment) if _is_stamp(read(columns[name][0]))] for name in self.names}
            self.readers = {name: found[0] for name, found in kinds.items() if found}
        for i, cells in enumerate(zip(*(columns[name] for name in self.readers), strict=True)):
            stamp: list[float] = []
            for (name, read), cell in zip(self.readers.items(), cells, strict=True):
                value = read(cell)
                if value is None or not _is_stamp(value):
                    kind = "a number" if read is _number else "an ISO date or time"
                    raise ValueError(
                        f"{self.path}, line {lines[i]}, column {name!r}: a time stamp must be {kind}, as in the rows before; "
                        f"received {cell[:50]!r}."
                    )
                stamp.append(value)
            if self.last is not None and i not in starts and tuple(stamp) <= self.last[0]:
                before, after = (" ".join(map(str.strip, each)) for each in (self.last[1], cells))
                raise ValueError(
                    f"{self.path}, line {lines[i]}, column {' and '.join(map(repr, self.readers))}: time stamps must increase "
                    f"within a sequence; received {after!r} after {before!r}. Sort the rows, name several sequences in a column "
                    "sequence, or call the column otherwise if it is a feature."
                )
            self.last = tuple(stamp), cells


def _is_stamp(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _moment(text: str) -> float | None:
    """An ISO date or time in seconds, UTC where no zone is said; None where it is neither."""
    text = text.strip()
    for whole in () if not text else (text, f"{text}-01", f"1970-01-01T{text}"):  # a date, a month, a time of a day
        try:
            found = datetime.datetime.fromisoformat(whole)
        except ValueError:
            continue
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
    return None


@contextmanager
def _csv_errors(path: Path) -> Iterator[None]:
    """What the decoder and the parser raise at a file that is no CSV, as a ValueError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text; {error}. Save it as CSV UTF-8, or is it no text at all?") from error
    except csv.Error as error:
        raise ValueError(f"{path} is no readable CSV file: {error}. Is a quotation mark left open, or is it no text?") from error


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    """The names of the columns."""
    header = [cell.strip() for cell in cells]
    if not any(header):
        raise ValueError(f"{path} must begin with a header line, the names of the columns; its first line is empty.")
    if all(_number(name) is not None for name in header):
        raise ValueError(f"{path} must begin with a header line, the names of the columns; received numbers: {header[:5]}.")
    if "" in header:
        raise ValueError(
            f"{path}, line 1: every column must have a name; column {header.index('') + 1} has none. "
            "Row numbers, as pandas writes them, go into a column called step, or are left out (index=False)."
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}, line 1: the columns must have different names; these repeat: {', '.join(repeated)}.")
    return header


def _kinds(path: Path, header: Sequence[str]) -> dict[str, str]:
    """Column -> `"x"`, `"symbol"`, `"u"` or `"y"`, for those that are read as numbers."""
    kinds = {name: "u" if name.startswith("u_") else "y" if name == "y" else "x" for name in header}
    kinds = {name: kind for name, kind in kinds.items() if name != "sequence" and name.lower() not in TIMES}
    features = [name for name, kind in kinds.items() if kind == "x"]
    if not features:
        raise ValueError(
            f"{path}, line 1: there must be a column of a feature, or symbol; received only {', '.join(header)}. Columns of "
            f"time, {', '.join(TIMES)}, are no features."
        )
    return {**kinds, "symbol": "symbol"} if features == ["symbol"] else kinds


def _rows(path: Path, reader: Any, num_columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row; empty lines at the end are none."""
    empty: list[int] = []
    for cells in reader:
        if not cells:
            empty.append(reader.line_num)
            continue
        if empty and num_columns > 1:
            raise ValueError(f"{path}, line {empty[0]}: a row must have {num_columns} cells, as the header; the line is empty.")
        yield from ((line, [""]) for line in empty)  # in a file of one column, a missing value
        empty = []
        if len(cells) != num_columns:
            raise ValueError(
                f"{path}, line {reader.line_num}: a row must have {num_columns} cells, as the header; received {len(cells)}. "
                "Is a cell with the delimiter in it not quoted, or a decimal point a comma?"
            )
        yield reader.line_num, cells


def _number(text: str) -> float | None:
    """A cell as a number: NaN where it is missing, None where it is neither."""
    text = text.strip()
    if text.lower() in _MISSING:
        return np.nan
    try:
        return None if "_" in text else float(text)  # to Python, 1_0 is ten
    except ValueError:
        return None


def _numbers(path: Path, name: str, kind: str, cells: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    """A column as float64, NaN where a value is missing."""
    numbers = [_number(cell) for cell in cells]
    values = np.array([np.inf if number is None else number for number in numbers])  # no kind may hold infinity
    bad = np.flatnonzero(~_allowed(kind, values))
    if bad.size:
        i = int(bad[0])
        hint = ""
        if numbers[i] is None:
            comma = "," in cells[i] and _number(cells[i].replace(",", ".")) is not None
            hint = (
                " Decimals have a point." if comma else " Only sequence and columns of time, such as step or date, may hold text."
            )
        raise ValueError(
            f"{path}, line {lines[i]}, column {name!r}: a value must be {_RULES[kind]}; received {cells[i][:50]!r}.{hint}"
        )
    return values


# NPZ ----------------------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> dict[str, Any]:
    """Arguments of `Sequences` from an NPZ file."""
    arrays = _arrays(path)
    x, lengths = arrays["x"], arrays.get("lengths")
    several = _several(path, x, lengths)
    lead = x.shape[: 1 + several]
    observed, u, y = (arrays.get(name) for name in ("observed", "u", "y"))
    _check_array(path, "observed", observed, "b", x.shape, f"bool of the shape of `x`, {list(x.shape)}")
    controls = u.shape[-1] if u is not None and u.ndim else 0
    _check_array(path, "u", u, "fiub", (*lead, controls), f"numbers [{', '.join(map(str, lead))}, U]")
    of_sequences = several and y is not None and y.ndim == 1
    words = f"whole numbers {list(lead)}{f', or {list(lead[:1])}' if several else ''}"
    _check_array(path, "y", y, "fiu", lead[:1] if of_sequences else lead, words)
    _check_array(path, "lengths", lengths, "iu", x.shape[:1], f"whole numbers {list(x.shape[:1])}")
    if not several:
        x = x[None]
        observed, u, y = (None if a is None else a[None] for a in (observed, u, y))
    steps = x.shape[1]
    lengths = np.full(len(x), steps) if lengths is None else lengths
    if ((lengths < 0) | (lengths > steps)).any():
        raise ValueError(f"{path}: `lengths` must lie in [0, {steps}], the steps of `x`; received {lengths.tolist()[:10]}.")
    if not lengths.sum() or not x[0, 0].size:
        raise ValueError(f"{path}: `x` must have steps and features; received shape {list(arrays['x'].shape)}.")
    symbols = x.ndim == 2

    def cut(name: str, kind: str, values: np.ndarray | None) -> list[np.ndarray] | None:
        """Each sequence without its padding, float64, NaN where missing."""
        if values is None:
            return None
        out = [(a[:n] if a.ndim else a).astype(np.float64) for a, n in zip(values, lengths, strict=True)]
        for i, a in enumerate(out):
            if name == "x" and observed is not None:
                a[~observed[i, : len(a)]] = np.nan  # whatever stands there
            bad = np.argwhere(~_allowed(kind, a))
            if len(bad):
                where = tuple(bad[0].tolist())
                index = [i, *where] if several else list(where)
                raise ValueError(f"{path}: a value of `{name}` must be {_RULES[kind]}; received {a[where]:g} at index {index}.")
        return out

    fields = _fields(cut("x", "symbol" if symbols else "x", x) or [], cut("u", "u", u), cut("y", "y", y), symbols)
    return {**fields, "names": [path.stem] if len(x) == 1 else [f"{path.stem}-{i}" for i in range(1, len(x) + 1)]}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file, which are `x` and those that may stand beside it."""
    names, arrays = npz_arrays(path, _ARRAYS)
    other = [name for name in names if name not in _ARRAYS]
    if other or "x" not in arrays:
        hint = "".join(nearest(name, _ARRAYS) for name in other[:1])
        raise ValueError(f"{path} must hold x, and nothing beside {', '.join(_ARRAYS[1:])}; received {', '.join(names)}.{hint}")
    return arrays


def npz_arrays(path: Path, wanted: Collection[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays of an NPZ file, and those arrays that are wanted.

    Raises:
        ValueError: the file is damaged, unpacks to more than `MAX_BYTES`, or a wanted array is none of plain numbers.
    """
    with _npz_errors(path), zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    check_size(path, size)  # a small file may unpack into a huge one
    with _npz_errors(path), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        return list(members), {name: _array_in(archive, info) for name, info in members.items() if name in wanted}


def _array_in(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an NPZ file, which is as long as its header says: NumPy makes room for whatever that is."""
    with archive.open(info) as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0)(file)
        size, left = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if size != left and not dtype.hasobject:
            raise ValueError(f"{info.filename} must have {size} bytes for {dtype} of shape {list(shape)}; it has {left}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


@contextmanager
def _npz_errors(path: Path) -> Iterator[None]:
    """A damaged file shows as whatever zip, header or type is wrong; here as a ValueError that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path} is no readable .npz file of plain arrays ({type(error).__name__}: {error}). Is it damaged, or misnamed?"
        ) from error


def _several(path: Path, x: np.ndarray, lengths: np.ndarray | None) -> bool:
    """Whether the first axis of `x` is that of sequences; ValueError where `x` could be read in two ways, or in none."""
    whole = x.dtype.kind in "iu"
    received = f"received {x.dtype} of shape {list(x.shape)}{'' if lengths is None else ' with `lengths`'}"
    if x.dtype.kind not in "fiub" or x.ndim not in (1, 2, 3):
        raise ValueError(f"{path}: `x` must be numbers [T, D], [T], [N, T, D] or [N, T]; {received}.")
    if x.ndim == 2 and whole and lengths is None:
        raise ValueError(
            f"{path}: `x` of two axes must be floats [T, D], or whole numbers [N, T] with `lengths`; {received}, which could be "
            "either. For features or counts save x.astype('float32'), for symbols save `lengths` too."
        )
    if x.ndim < 3 and not whole and (x.ndim == 1 or lengths is not None):
        raise ValueError(f"{path}: symbols must be whole numbers; {received}. A single feature has an axis too: x[..., None].")
    if x.ndim == 1 and lengths is not None:
        raise ValueError(f"{path}: `lengths` must come with several sequences, [N, T, D] or [N, T]; {received}.")
    return x.ndim == 3 or (x.ndim == 2 and whole)


def _check_array(path: Path, name: str, array: np.ndarray | None, kinds: str, shape: tuple[int, ...], words: str) -> None:
    if array is not None and (array.dtype.kind not in kinds or array.shape != shape):
        raise ValueError(f"{path}: `{name}` must be {words}; received {array.dtype} of shape {list(array.shape)}.")
