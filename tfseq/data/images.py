"""Pictures as vectors of pixels, each a sequence of one step: scikit-learn's digits, MNIST, and the user's IDX and NPZ files."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfseq.checks import choice, nearest
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.data.series import check_size, files_of, npz_arrays
from tfseq.files import fetch_file

STEP = "picture"
"""What one step of pictures is, `Sequences.step`."""

_DIGITS = (1297, 200, 300)  # pictures of train, valid and test

_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
# SHA-256 of the published archive, and of what it unpacks to: copies of the archive differ in their time stamps
_MNIST = {
    ("train", "images"): (
        "train-images-idx3-ubyte",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    ("train", "labels"): (
        "train-labels-idx1-ubyte",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    ("test", "images"): (
        "t10k-images-idx3-ubyte",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    ("test", "labels"): (
        "t10k-labels-idx1-ubyte",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_MNIST_TRAIN = 55_000  # of 60,000; the others are the split valid

_IDX_NAME = re.compile("(train|valid|test|t10k)-(images|labels)", re.IGNORECASE)
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK = 2**20  # bytes unpacked at one time
_LARGEST = np.iinfo(np.int32).max


def load_digits(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Handwritten digits of 8 x 8 pixels from scikit-learn (the test set of UCI's optical recognition): no download.

    Split: 1297, 200 and 300 of the 1797 pictures for train, valid and test, in the order of NumPy's `RandomState(0).permutation`,
    whose numbers never change. The writers are not known; each may stand in all three.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: not used; the pictures come with scikit-learn.

    Returns:
        Greys `[N, 1, 64]` float32, k/16 with k from 0 (ground) to 16 (ink), and the digits `[N, 1]` int32.
    """
    choice("split", split, SPLITS)
    from sklearn.datasets import load_digits as bundled

    images, digits = bundled(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(images))
    rows = np.split(order, np.cumsum(_DIGITS)[:-1])[SPLITS.index(split)]
    return _sequences(
        (images[rows] / 16.0).astype(np.float32),
        digits[rows],
        (8, 8),
        name="digits",
        split=split,
        source="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; the copy in scikit-learn",
    )


def load_mnist(split: str, *, data_dir: Path | None = None) -> Sequences:
    """MNIST, handwritten digits of 28 x 28 pixels (LeCun, Bottou, Bengio & Haffner 1998).

    Split: the first 55,000 of the 60,000 training pictures are train, the last 5,000 valid; test has 10,000.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder that has, itself or in `mnist/`, the published IDX files, packed with gzip or not; downloaded where
            absent.

    Returns:
        Greys `[N, 1, 784]` float32, k/255 with k from 0 (ground) to 255 (ink), and the digits `[N, 1]` int32.

    Raises:
        ValueError: a file is not the published one.
        FileNotFoundError: a file is neither in `data_dir` nor could be downloaded.
    """
    choice("split", split, SPLITS)
    part = "test" if split == "test" else "train"
    images, digits = (_mnist_array(part, kind, data_dir) for kind in ("images", "labels"))
    rows = {"train": slice(_MNIST_TRAIN), "valid": slice(_MNIST_TRAIN, None), "test": slice(None)}[split]
    source = f"LeCun, Bottou, Bengio & Haffner 1998, MNIST; files of {_MNIST_URL}"
    return _sequences(_pixels("MNIST", images[rows]), digits[rows], (28, 28), name="mnist", split=split, source=source)


def load_images(path: str | Path, split: str = "train") -> Sequences:
    """The user's own pictures, from IDX files as those of MNIST or from an NPZ file.

    A folder of IDX files has `train-images*`, and may have `valid-images*` and `test-images*` (or `t10k-images*`), each with its
    `-labels*` or without; packed with gzip or not, and where both are there, the one without `.gz` is read.

    An NPZ file has `x_train`, and may have `x_valid` and `x_test`, each with its `y_...` or without; or one part only, `x` with
    `y` or without. Beside them may stand `shape`, the rows and columns of a picture.

    Pictures are `[N, H, W]` or `[N, V]`, row after row. Bytes (uint8) are greys and are divided by 255; floats are taken as they
    are, real values too. Labels are whole numbers `[N]`, -1 where one is not known. Without a part for `valid`, this is the last
    tenth of train, rounded up.

    Args:
        path: the folder, or the `.npz` file.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        Pixels `[N, 1, V]` float32 and labels `[N, 1]` int32, if there are any. The shape of pictures `[N, V]` is known where the
        file has `shape` or V is a square number, else it is None.

    Raises:
        ValueError: no pictures for the split, or a file that is not as above; the place is named.
    """
    path = Path(path)
    if path.is_dir():
        parts: Mapping[str, Any] = _idx_parts(path)
        hint = "train-images-idx3-ubyte (or .gz)"
    elif path.is_file() and path.suffix.lower() == ".npz":
        parts = _npz_parts(path, npz_arrays(path, ())[0])
        hint = "x_train, or x"
    else:
        raise ValueError(f"`path` must be an existing folder of IDX files, or an .npz file; received {str(path)!r}.")
    if not parts:
        raise ValueError(f"{path} must hold pictures, such as {hint}; found none.")
    choice("split", split, _splits(parts))
    part = split if split in parts else "train"
    images, labels, shape, where = (_read_idx_part if path.is_dir() else _read_npz_part)(path, parts[part])
    if not images.size or images.ndim not in (2, 3):
        hint = " Pictures in colour are not read; make them grey." if images.ndim == 4 else ""
        raise ValueError(f"{where} must be pictures [N, H, W] or [N, V]; received shape {list(images.shape)}.{hint}")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"Labels of {where} must be whole numbers, one for each of its {len(images)} pictures; "
            f"received {labels.dtype} of shape {list(labels.shape)}. Do the labels belong to other pictures?"
        )
    if labels is not None and not (labels.min() >= -1 and labels.max() <= _LARGEST):
        raise ValueError(
            f"Labels of {where} must lie from -1 (not known) to {_LARGEST}; received {labels.min()} to {labels.max()}."
        )
    rows = _rows(where, split, len(images), cut=part != "test" and "valid" not in parts)
    resolved = path.resolve()
    return _sequences(
        _pixels(where, images[rows]),
        None if labels is None else labels[rows],
        _shape(where, images.shape[1:], shape),
        name=resolved.name if path.is_dir() else resolved.stem,
        split=split,
        source=f"the user's file {(where if path.is_dir() else path).name}",
    )


def splits_in(path: Path) -> tuple[str, ...]:
    """The splits of the pictures at `path`; none where there is something else, which an NPZ file's names of arrays tell.

    An NPZ file is of pictures where it has an array `x_train`, `x_valid`, `x_test` or `shape`; every other is of series, one with
    a plain `x` too. A folder is of pictures where it has IDX files, and no `train.csv` or other file of series.
    """
    if path.is_dir():
        return () if files_of(path) else _splits(_idx_parts(path))
    if not path.is_file() or path.suffix.lower() != ".npz":
        return ()
    try:
        names, _ = npz_arrays(path, ())
    except ValueError:  # that it is damaged, its reader says
        return ()
    return _splits(_npz_parts(path, names)) if {"shape", *(f"x_{split}" for split in SPLITS)} & set(names) else ()


def _splits(parts: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits of data that has these parts: valid may be cut from train."""
    return tuple(split for split in SPLITS if split in parts or (split == "valid" and "train" in parts))


def _rows(where: Path, split: str, num: int, cut: bool) -> slice:
    """Which of the pictures of a part are those of a split, where `cut` says that valid is the last tenth of train."""
    if not cut:
        return slice(None)
    num_train = num - -(-num // 10)
    if not num_train:
        raise ValueError(f"{where} must have at least two pictures, since the last tenth is the split valid; received {num}.")
    return slice(num_train) if split == "train" else slice(num_train, None)


def _sequences(x: np.ndarray, y: np.ndarray | None, shape: tuple[int, int] | None, **words: Any) -> Sequences:
    """Pixels `[N, V]` and labels `[N]` as sequences of one step."""
    fields: dict[str, Any] = {"x": x[:, None], "y": None if y is None else y.astype(np.int32)[:, None]}
    return Sequences(**fields, step=STEP, shape=shape, **words)


def _pixels(where: object, images: np.ndarray) -> np.ndarray:
    """Pictures `[N, ...]` as `[N, V]` float32: bytes are greys from 0 to 255, everything else is what it is."""
    if images.dtype.kind not in "fb" and images.dtype != np.uint8:
        raise ValueError(
            f"{where} must be uint8 (greys from 0 to 255) or floats; received {images.dtype}. For greys save x.astype('uint8'), "
            "for what should be taken as it is x.astype('float32')."
        )
    with np.errstate(over="ignore"):
        x = np.asarray(images, np.float32)
    if images.dtype == np.uint8:
        x = x / np.float32(255.0)
    elif not np.isfinite(x).all():
        place = np.argwhere(~np.isfinite(x))[0].tolist()
        raise ValueError(f"{where} must hold finite numbers; received {images[tuple(place)]:g} at index {place} of the split.")
    return x.reshape(len(x), -1)


def _shape(where: Path, found: tuple[int, ...], stated: np.ndarray | None) -> tuple[int, int] | None:
    """Rows and columns of pictures `[H, W]` or `[V]`; None where nothing tells."""
    if stated is not None:
        whole = stated.dtype.kind in "iu" and stated.shape == (2,) and stated.min() > 0
        if not whole or (tuple(stated.tolist()) != found if len(found) == 2 else math.prod(stated.tolist()) != found[0]):
            raise ValueError(
                f"{where}: `shape` must be two whole numbers, the rows and columns of its pictures {list(found)}; "
                f"received {stated.tolist()}."
            )
        return int(stated[0]), int(stated[1])
    if len(found) == 2:
        return found
    side = math.isqrt(found[0])
    return (side, side) if side * side == found[0] else None


# NPZ ----------------------------------------------------------------------------------------------------------------


def _npz_parts(path: Path, names: list[str]) -> dict[str, str]:
    """Split -> the name of its pictures, among the arrays of an NPZ file."""
    parts = {"train": "x"} if "x" in names else {split: f"x_{split}" for split in SPLITS if f"x_{split}" in names}
    known = [*parts.values(), *(name.replace("x", "y", 1) for name in parts.values()), "shape"]
    other = [name for name in names if name not in known]
    if other:
        options = ["x", *(f"{kind}_{split}" for kind in "xy" for split in SPLITS), "shape"]
        raise ValueError(
            f"{path} must hold x and y, or x_train, y_train and those of valid and test, and nothing beside them but shape; "
            f"received {', '.join(names)}.{nearest(other[0], {*options} - {*other})}"
        )
    return parts


def _read_npz_part(path: Path, name: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, Path]:
    """Pictures, labels and shape of a part of an NPZ file, and where they are."""
    label = name.replace("x", "y", 1)
    _, arrays = npz_arrays(path, (name, label, "shape"))
    return arrays[name], arrays.get(label), arrays.get("shape"), path / name


# IDX ----------------------------------------------------------------------------------------------------------------


def _idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """(split, `"images"` or `"labels"`) -> its IDX file in a folder; ValueError where one of them has two."""
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _IDX_NAME.match(file.name)
        if match and file.is_file():
            split, kind = match[1].lower(), match[2].lower()
            found.setdefault(("test" if split == "t10k" else split, kind), []).append(file)
    for (split, kind), files in found.items():
        files[:] = [file for file in files if file.suffix.lower() != ".gz" or file.with_suffix("") not in files]
        if len(files) > 1:
            raise ValueError(f"{folder} must have one file of {split} {kind}; it has {' and '.join(f.name for f in files)}.")
    return {key: files[0] for key, files in found.items()}


def _idx_parts(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """Split -> its files of pictures and of labels in a folder."""
    files = _idx_files(folder)
    for split, kind in files:
        if (split, "images") not in files:
            raise ValueError(f"{folder} must have {split}-images beside {files[split, kind].name}. Is the file called otherwise?")
    return {split: (files[split, "images"], files.get((split, "labels"))) for split, kind in files if kind == "images"}


def _read_idx_part(_: Path, files: tuple[Path, Path | None]) -> tuple[np.ndarray, np.ndarray | None, None, Path]:
    """Pictures and labels of a part of a folder, no shape beside that of the pictures, and where they are."""
    images, labels = files
    return read_idx(images), None if labels is None else read_idx(labels), None, images


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of one to three axes, packed with gzip or not, in the machine's byte order.

    IDX: two zero bytes, a byte for the type, one for the number of axes, the sizes of the axes as big-endian uint32, then the
    values, big-endian, the last axis fastest (LeCun, The MNIST database, "File formats").

    Raises:
        ValueError: the file is empty, damaged, cut off, has more bytes than it says, or more than `series.MAX_BYTES`.
    """
    return _parsed(path, _content(path))


def _content(path: Path) -> bytearray:
    """The bytes of a file; unpacked where it is of gzip, which its first bytes tell."""
    content = bytearray()
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            reader = gzip.GzipFile(fileobj=file) if packed else file
            while block := reader.read1(_BLOCK):
                content += block
                check_size(path, len(content))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} must be a whole gzip file; it could be unpacked up to offset {len(content)} ({error}). "
            "It is damaged or cut off: download it again."
        ) from error
    return content


def _parsed(path: Path, content: bytearray) -> np.ndarray:
    """The array that the bytes of an IDX file are."""
    cut = "It is cut off: download it again."
    if len(content) < 4:
        raise ValueError(f"{path} must begin with the 4 bytes of an IDX file; it has {len(content) or 'none'}. {cut}")
    kind, num_axes = content[2:4]
    if content[:2] != b"\0\0" or kind not in _IDX_TYPES or not 1 <= num_axes <= 3:
        raise ValueError(
            f"{path}, offset 0: an IDX file must begin with two zeros, a type ({', '.join(f'{k:02x}' for k in _IDX_TYPES)}), and "
            f"its number of axes (1 to 3); received {content[:4].hex(' ')}. Is it a file of another kind?"
        )
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise ValueError(f"{path} must have a header of {start} bytes; it ends at offset {len(content)}. {cut}")
    shape = struct.unpack(f">{num_axes}I", content[4:start])
    if 0 in shape:
        raise ValueError(f"{path}, offset 4: the sizes of the axes must be positive; received {list(shape)}. Is the file empty?")
    dtype = np.dtype(_IDX_TYPES[kind])
    end = start + math.prod(shape) * dtype.itemsize
    if len(content) != end:
        extra = len(content) - end
        found = f"it ends at offset {len(content)}. {cut}" if extra < 0 else f"{extra} more come after it. Is the header damaged?"
        raise ValueError(f"{path} must have {end} bytes for {dtype.name} of shape {list(shape)}; {found}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _mnist_array(part: str, kind: str, data_dir: Path | None) -> np.ndarray:
    """The array of a file of MNIST, from `data_dir/mnist`, `data_dir`, or downloaded; its bytes are checked in any case."""
    name, packed, unpacked = _MNIST[part, kind]
    path = None
    for folder in () if data_dir is None else (data_dir / "mnist", data_dir):
        if path is None and folder.is_dir():
            path = _idx_files(folder).get((part, kind))
    if path is None:
        path = fetch_file(f"mnist/{name}.gz", f"{_MNIST_URL}{name}.gz", packed, data_dir)
    content = _content(path)
    found = hashlib.sha256(content).hexdigest()
    if found != unpacked:
        raise ValueError(
            f"{path} must be MNIST's {name}, with SHA-256 {unpacked} unpacked; found {found} in {len(content)} bytes. "
            "It is damaged, or has other pictures: Fashion-MNIST has the same names, and its folder is a data set of its own."
        )
    return _parsed(path, content)
