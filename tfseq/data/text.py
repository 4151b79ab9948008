"""Raw texts to model, to classify and to translate; Python's documentation and sources, Shakespeare, film reviews, Multi30k."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import keyword
import platform
import re
import sysconfig
import tokenize
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfseq.checks import choice
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.data.reading import decoded, own_file, read_text, rows_of
from tfseq.files import fetch_file

TEXT_SUFFIXES, TABLE_SUFFIXES = (".txt",), (".tsv",)
STEP = "character"

_SHARES = (0.90, 0.95)  # where valid and test of one text begin

_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
)
_SHAKESPEARE_HASH = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_POLARITY_URL = (
    "https://raw.githubusercontent.com/nltk/nltk_data/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora/"
    "sentence_polarity.zip"
)
_POLARITY_HASH = "6e1ed4405b65c7eabf1d199a7f7c437091ac21da0ea7467b410a74062574566b"
_MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
_MULTI30K = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
_MULTI30K_HASHES = {
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.fr": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.fr": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
    "test_2016_flickr.de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.fr": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
}
_LANGUAGES = ("de", "en", "fr")

_MODULE_BYTES = (2_000, 60_000)  # of a module in `python-source`
_SOURCE_BYTES = 1_900_000  # of all of them; about 200,000 tokens
_LONGEST_STRING = 30  # characters kept of a string token
_SKIPPED = {
    tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip


# To model -----------------------------------------------------------------------------------------------------------


def load_text(path: str | Path, split: str = "train") -> Sequences:
    """The user's own text for a language model: a `.txt` file, UTF-8, is one raw text.

    Args:
        path: the file, of whose characters the first 90 % are train, the next 5 % valid and the last 5 % test; or a folder
            with `train.txt` and, if there are any, `valid.txt` and `test.txt`.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        One text, a `str`.

    Raises:
        ValueError: no file for the split, it is empty, not UTF-8, or too short to be split.
    """
    file, name = own_file(path, split, TEXT_SUFFIXES, SPLITS)
    text = read_text(file)
    if not Path(path).is_dir():
        text = _part(text, split)
        if not text:
            raise ValueError(f"{file} must have characters for train, valid and test (90/5/5 %); {split} has none.")
    return Sequences([text], names=[name], name=name, split=split, step=STEP, source=f"the user's file {file.name}")


def _part(text: str, split: str) -> str:
    """The characters of a text that are a split's."""
    valid, test = (int(share * len(text)) for share in _SHARES)
    return {"train": text[:valid], "valid": text[valid:test], "test": text[test:]}[split]


def load_shakespeare(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Tiny Shakespeare (Karpathy 2015), 1,115,394 characters of plays: one raw text a split.

    Split: the last 10 % of the characters are test, as is usual; of the others the first 5 % are valid, and not the last, which
    have the beginning of the play that the test goes on with.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `tinyshakespeare/input.txt`; downloaded where absent.
    """
    choice("split", split, SPLITS)
    text = read_text(fetch_file("tinyshakespeare/input.txt", _SHAKESPEARE_URL, _SHAKESPEARE_HASH, data_dir))
    test = int(0.9 * len(text))
    valid = int(0.05 * test)
    part = {"train": text[valid:test], "valid": text[:valid], "test": text[test:]}[split]
    return Sequences([part], names=[split], name="shakespeare", split=split, step=STEP, source=_SHAKESPEARE_URL)


def load_python_docs(split: str, *, data_dir: Path | None = None) -> Sequences:
    """The topics of Python's own `help`, as the running Python has them, each one raw text: no download.

    Split: 90/5/5 % of the topics by `reading.rows_of`. Another version of Python has other texts.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: not used; the texts come with Python.
    """
    choice("split", split, SPLITS)
    from pydoc_data.topics import topics

    names = sorted(topics)
    names = [names[row] for row in rows_of(names, split, valid=0.05, test=0.05)]
    source = f"pydoc_data.topics of Python {platform.python_version()}"
    return Sequences([topics[name] for name in names], names=names, name="python-docs", split=split, step=STEP, source=source)


# To classify and to translate ---------------------------------------------------------------------------------------


def load_table(path: str | Path, split: str = "train") -> Sequences:
    """The user's own texts, from a `.tsv` file: UTF-8, two columns with a tab between, no quotation marks.

    The first line names the columns, in either order: `text` and `label`, to classify; or `source` and `target`, to translate.
    Empty lines are left out.

    Args:
        path: the file, which has only the split `"train"`; or a folder with `train.tsv`, `valid.tsv`, `test.tsv`.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        Raw texts, each a `str`, and their labels or targets, each a `str`.

    Raises:
        ValueError: no file for the split, or a file that is not as above; the line is named.
    """
    file, name = own_file(path, split, TABLE_SUFFIXES)
    header, *lines = read_text(file).split("\n")
    columns = [cell.strip().lower() for cell in header.split("\t")]
    kinds: dict[tuple[str, ...], tuple[str, str, str]] = {
        ("label", "text"): ("text", "label", "y"),
        ("source", "target"): ("source", "target", "target"),
    }
    if tuple(sorted(columns)) not in kinds:
        raise ValueError(
            f"{file}, line 1: the header must name two columns with a tab between, text and label, or source and target; "
            f"received {header[:50]!r}. Is the header missing?"
        )
    first, second, field = kinds[tuple(sorted(columns))]
    x, other, names = [], [], []
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 2:
            raise ValueError(
                f"{file}, line {number}: a line must have 2 columns, as the header; received {len(cells)}: {line[:50]!r}. "
                "Is a tab in a text, or a label missing?"
            )
        if not all(cells):
            raise ValueError(f"{file}, line {number}: {columns[cells.index('')]} is missing; received {line[:50]!r}.")
        x.append(cells[columns.index(first)])
        other.append(cells[columns.index(second)])
        names.append(f"{file.name}, line {number}")
    if not x:
        raise ValueError(f"{file} must have a line for each text after its header; it has none.")
    fields: dict[str, Any] = {field: other, "names": names}
    return Sequences(x, **fields, name=name, split=split, step=STEP, source=f"the user's file {file.name}")


def load_polarity(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Sentences of film reviews, negative or positive (Pang & Lee 2005): 5,331 of each, in lower case, cut into words.

    Split: 80/10/10 % of the different sentences by `reading.rows_of`; the publisher made none.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `sentence_polarity/sentence_polarity.zip`; downloaded where absent.

    Returns:
        Raw texts, each a `str`, and one label of each, `"neg"` or `"pos"`.
    """
    choice("split", split, SPLITS)
    path = fetch_file("sentence_polarity/sentence_polarity.zip", _POLARITY_URL, _POLARITY_HASH, data_dir)
    texts, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for label in ("neg", "pos"):
            member = f"sentence_polarity/rt-polarity.{label}"
            lines = [line.strip() for line in decoded(path / member, archive.read(member)).split("\n") if line.strip()]
            texts += lines
            labels += [label] * len(lines)
    rows = rows_of(texts, split)
    return Sequences(
        [texts[row] for row in rows],
        y=[labels[row] for row in rows],
        name="polarity",
        split=split,
        step=STEP,
        source=f"Pang & Lee 2005, sentence polarity 1.0 (CC BY 4.0); {_POLARITY_URL}",
    )


def load_multi30k(split: str, *, source: str = "de", target: str = "en", data_dir: Path | None = None) -> Sequences:
    """Multi30k, task 1 (Elliott et al. 2016): descriptions of pictures in two languages, in the published split.

    Args:
        split: `"train"`, `"valid"`, or `"test"`, that of 2016.
        source: the language to translate from, `"de"`, `"en"` or `"fr"`.
        target: the language to translate to.
        data_dir: folder with `multi30k/*.gz`; downloaded where absent.

    Returns:
        Raw texts and targets, each a `str`, not cut into words.
    """
    choice("split", split, SPLITS)
    texts = []
    for argument, language in (("source", source), ("target", target)):
        choice(argument, language, _LANGUAGES)
        file = f"{_MULTI30K[split]}.{language}"
        path = fetch_file(f"multi30k/{file}.gz", f"{_MULTI30K_URL}{file}.gz", _MULTI30K_HASHES[file], data_dir)
        with gzip.open(path) as content:
            texts.append([line.strip() for line in decoded(path, content.read()).removesuffix("\n").split("\n")])
    return Sequences(
        texts[0],
        target=texts[1],
        name="multi30k",
        split=split,
        step=STEP,
        source=f"Elliott et al. 2016, Multi30k task 1, {source} to {target}; {_MULTI30K_URL}",
    )


# To label -----------------------------------------------------------------------------------------------------------


def load_python_source(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Lines of the running Python's own library, each token labelled with what it is there: no download.

    Modules: those at the top of the library, of 2 to 60 kB, in the order of the SHA-256 of their names, up to 1.9 MB. Split:
    80/10/10 % of the modules by `reading.rows_of`. Another version of Python has other lines.

    A sequence is a logical line, without comments; lines that are one string, such as docstrings, are left out. Labels:
    keyword, operator, number, string, and of names: function and class where they are defined, parameter where it is declared,
    keyword-argument, decorator, import, call (what is called, attribute or not), attribute, assignment (a name that is bound),
    and name, every other.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: not used; the sources come with Python.

    Returns:
        Tokens `[T_i]` str, strings cut to 30 characters, and their labels `[T_i]` str, with MODULE:LINE as names.

    Raises:
        FileNotFoundError: this Python has no sources of its library.
    """
    choice("split", split, SPLITS)
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in folder.glob("*.py") if _MODULE_BYTES[0] <= file.stat().st_size <= _MODULE_BYTES[1]]
    if not files:
        raise FileNotFoundError(f"{folder} must have the sources of Python's library (.py); this Python comes without them.")
    files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
    sizes = np.cumsum([file.stat().st_size for file in files])
    files = [file for file, size in zip(files, sizes, strict=True) if size <= _SOURCE_BYTES]
    x, y, names = [], [], []
    for row in rows_of([file.name for file in files], split):
        try:
            lines = list(labelled_lines(files[row].read_bytes()))
        except (SyntaxError, ValueError, tokenize.TokenError):  # a module for another Python; the others will do
            continue
        for number, tokens, labels in lines:
            x.append(np.array(tokens, np.str_))
            y.append(np.array(labels, np.str_))
            names.append(f"{files[row].stem}:{number}")
    source = f"the standard library of Python {platform.python_version()}"
    return Sequences(x, y=y, names=names, name="python-source", split=split, step="token", source=source)


def labelled_lines(code: bytes) -> Iterator[tuple[int, list[str], list[str]]]:
    """The logical lines of a Python module: number of the first physical line, tokens `[T]`, labels `[T]`.

    Raises:
        SyntaxError, ValueError, tokenize.TokenError: it is no Python, or not of this version.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(code).readline)
    roles = _Roles(re.split(r"\r\n?|\n", code.decode(encoding)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings, which are not ours
        tree = ast.parse(code)
    roles.visit(tree)
    line: list[tuple[int, str, str]] = []
    before = ""
    for token in tokenize.tokenize(io.BytesIO(code).readline):
        if token.type == tokenize.NEWLINE:
            if len(line) > 1 or (line and line[0][2] != "string"):
                yield line[0][0], [text for _, text, _ in line], [label for *_, label in line]
            line, before = [], ""
        elif token.type not in _SKIPPED and token.string.strip():
            label = _label(token, before, roles)
            text = re.sub(r"\s+", " ", token.string)[:_LONGEST_STRING] if label == "string" else token.string
            line.append((token.start[0], text, label))
            before = token.string


def _label(token: tokenize.TokenInfo, before: str, roles: _Roles) -> str:
    """What a token is; `before` is the one before it in its line."""
    if token.type == tokenize.NUMBER:
        return "number"
    if token.type == tokenize.OP:
        return "operator"
    if token.type != tokenize.NAME:  # STRING, and since 3.12 the parts of an f-string
        return "string"
    if keyword.iskeyword(token.string):
        return "keyword"
    if before in ("def", "class"):
        return "function" if before == "def" else "class"
    for label, begin, end in roles.within:
        if begin <= token.start < end:
            return label
    if token.start in roles.at:
        return roles.at[token.start]
    return "attribute" if before == "." else "name"


class _Roles(ast.NodeVisitor):
    """What the syntax tree says of names: `at` a place (line, column), or `within` two."""

    def __init__(self, physical: list[str]) -> None:
        self.physical = physical
        self.at: dict[tuple[int, int], str] = {}
        self.within: list[tuple[str, tuple[int, int], tuple[int, int]]] = []

    def place(self, line: int, offset: int) -> tuple[int, int]:
        """The tree counts bytes of UTF-8, tokens count characters."""
        text = self.physical[line - 1]
        return line, offset if text.isascii() else len(text.encode()[:offset].decode(errors="replace"))

    def span(self, label: str, node: Any) -> None:
        begin, end = self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)
        self.within.append((label, begin, end))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                self.span("decorator", decorator.func if isinstance(decorator, ast.Call) else decorator)
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.span("import", node)
        elif isinstance(node, ast.arg):
            self.at[self.place(node.lineno, node.col_offset)] = "parameter"
        elif isinstance(node, ast.keyword) and node.arg is not None:
            self.at[self.place(node.lineno, node.col_offset)] = "keyword-argument"
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.at[self.place(node.lineno, node.col_offset)] = "assignment"
        elif isinstance(node, ast.Call):
            called: Any = node.func
            if isinstance(called, ast.Name):
                self.at[self.place(called.lineno, called.col_offset)] = "call"
            elif isinstance(called, ast.Attribute):
                self.at[self.place(called.end_lineno or 0, (called.end_col_offset or 0) - len(called.attr.encode()))] = "call"
        self.generic_visit(node)
