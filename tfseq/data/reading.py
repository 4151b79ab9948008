"""Text files: found by split and suffix, decoded as UTF-8 with the place of what is wrong; splits that a hash makes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from tfseq.checks import choice
from tfseq.data import SPLITS
from tfseq.data.series import check_size, files_of


def own_file(path: str | Path, split: str, suffixes: Collection[str], single: Sequence[str] = ("train",)) -> tuple[Path, str]:
    """The user's file that has a split, and the name of the data set.

    Args:
        path: a file, which has the splits `single`; or a folder with `train`, `valid`, `test` and one of the suffixes.
        split: the split.
        suffixes: of the files, with their dots, in lower case.
        single: the splits that one file has.

    Raises:
        ValueError: there is no such file, or not this split.
    """
    path = Path(path)
    files = files_of(path, suffixes) if path.is_dir() else dict.fromkeys(single, path)
    file = files.get(split, path)
    if not files or not file.is_file() or file.suffix.lower() not in suffixes:
        raise ValueError(f"`path` must be an existing {' or '.join(suffixes)} file, or a folder of them; received {str(path)!r}.")
    choice("split", split, files)
    check_size(file, file.stat().st_size)
    whole = path.resolve()
    return file, whole.name if path.is_dir() else whole.stem


def decoded(path: object, content: bytes) -> str:
    r"""Bytes of a file as text, without a byte order mark; `\r\n` becomes `\n`.

    Raises:
        ValueError: they are not UTF-8, or hold NUL; the line is named.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: text must be UTF-8; byte {column} of the line, {content[error.start]:#04x}, is not. "
            "Is it of another encoding (Latin-1, UTF-16)? Save it as UTF-8."
        ) from error
    if (place := text.find("\0")) >= 0:  # which NumPy's strings drop at their end
        line = text.count("\n", 0, place) + 1
        raise ValueError(f"{path}, line {line}: text must hold no NUL. Is it of another encoding (UTF-16), or no text at all?")
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def read_text(path: Path) -> str:
    """A whole file as text, which must not be empty.

    Raises:
        ValueError: it is empty or blank, or not UTF-8.
    """
    text = decoded(path, path.read_bytes())
    if not text.strip():
        raise ValueError(f"{path} must hold text; it is empty.")
    return text


def rows_of(keys: Sequence[str], split: str, *, valid: float = 0.1, test: float = 0.1) -> list[int]:
    """Rows of a split where the publisher made none: the different keys, in the order of their SHA-256, are cut by shares.

    The first keys are test, then come valid and train. Rows with one key, such as copies of a sentence, are in one split.

    Args:
        keys: of each row, for example its text.
        split: `"train"`, `"valid"` or `"test"`.
        valid: share of the keys, rounded.
        test: share of the keys, rounded.
    """
    choice("split", split, SPLITS)
    ordered = sorted(set(keys), key=lambda key: hashlib.sha256(key.encode()).digest())
    cut, end = round(len(ordered) * test), round(len(ordered) * (test + valid))
    chosen = set({"test": ordered[:cut], "valid": ordered[cut:end], "train": ordered[end:]}[split])
    return [row for row, key in enumerate(keys) if key in chosen]
