"""Word vectors from text files: GloVe, word2vec's text format, and fastText's `.vec`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_LONGEST_LINE = 2**20  # bytes; vectors of 300 numbers have 3,000


class Vectors(NamedTuple):
    """Vectors of a vocabulary.

    Attributes:
        matrix: the vectors, zeros where none was found, `[V, E]` float32.
        found: which words have one, `[V]` bool.
    """

    matrix: np.ndarray
    found: np.ndarray

    @property
    def coverage(self) -> float:
        """Share of the words that have a vector."""
        return float(self.found.mean()) if len(self.found) else 0.0


def read_vectors(path: str | Path, vocabulary: Sequence[str]) -> Vectors:
    """The vectors of the words of a vocabulary, from a text file of words and numbers between blanks.

    The file is read line by line, and only the numbers of wanted words are parsed and kept. It may begin with a line of two
    numbers, how many vectors of how many numbers (word2vec, fastText). A word that the file does not have gets the vector of the
    first word in it that is the same but for capitals. The coverage is logged.

    Args:
        path: the file, UTF-8, as `glove.6B.100d.txt` or `wiki.en.vec`.
        vocabulary: different words, V of them.

    Returns:
        `matrix` `[V, E]` float32 and `found` `[V]` bool.

    Raises:
        ValueError: the file is empty, or a line has another number of columns, or something that is no finite number.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be an existing file of word vectors; received {str(path)!r}.")
    exact = {word: i for i, word in enumerate(vocabulary)}
    if len(exact) != len(vocabulary):
        raise ValueError(f"`vocabulary` must have different words; received {len(vocabulary)}, of which {len(exact)} differ.")
    folded: dict[str, list[int]] = {}
    for word, i in exact.items():
        folded.setdefault(word.lower(), []).append(i)
    matrix: np.ndarray | None = None
    rank = np.zeros(len(vocabulary), int)  # 2: the word itself was found, 1: one with other capitals
    for number, word, numbers in _lines(path):
        if matrix is None:
            matrix = np.zeros((len(vocabulary), len(numbers)), np.float32)
        ours = exact.get(word, -1)
        wanted = [i for i in folded.get(word.lower(), ()) if not rank[i] or (i == ours and rank[i] < 2)]
        if wanted:
            matrix[wanted] = _vector(path, number, word, numbers)
            rank[wanted] = [2 if i == ours else 1 for i in wanted]
    if matrix is None:
        raise ValueError(f"{path} must have a line for each word, WORD NUMBER NUMBER ...; it has none.")
    vectors = Vectors(matrix, rank > 0)
    logging.getLogger(__name__).info("%s: %d of %d words have a vector (%.1f %%).", path, vectors.found.sum(), len(vocabulary),
                                     100 * vectors.coverage)  # fmt: skip
    return vectors


def _lines(path: Path) -> Iterator[tuple[int, str, list[bytes]]]:
    """Line number, word and its E numbers, not parsed yet, for every line but a header."""
    size = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise ValueError(f"{path}, line {number}: a line must be shorter than {_LONGEST_LINE} bytes. Is it no text file?")
            cells = line.strip(b" \r\n").replace(b"\t", b" ").split(b" ")
            if cells == [b""]:
                continue
            if number == 1 and len(cells) == 2 and all(cell.isdigit() for cell in cells):
                size = int(cells[1])
                continue
            size = size or len(cells) - 1
            words = cells[: max(0, len(cells) - size)]  # a few of GloVe's words have blanks in them
            if not size or not words or (len(words) > 1 and _is_number(words[-1])):
                raise ValueError(
                    f"{path}, line {number}: a line must be a word and {max(1, size)} numbers, as the first; received "
                    f"{len(cells)} columns: {line[:50].decode(errors='replace')!r}. Is the file cut off, or no file of vectors?"
                )
            yield number, b" ".join(words).decode(errors="replace"), cells[len(cells) - size :]


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _vector(path: Path, number: int, word: str, cells: list[bytes]) -> np.ndarray:
    """The numbers of a line, `[E]` float32."""
    for column, cell in enumerate(cells, 2):
        value = float(cell) if _is_number(cell) else np.nan
        if not abs(value) <= float(np.finfo(np.float32).max):
            raise ValueError(
                f"{path}, line {number}, column {column}: a vector must be finite numbers; received "
                f"{cell[:30].decode(errors='replace')!r} for the word {word!r}."
            )
    return np.array([float(cell) for cell in cells], np.float32)
