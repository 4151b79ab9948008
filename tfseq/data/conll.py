"""Labelled tokens: CoNLL column files, CoNLL-U, and JSON with spans; UD English EWT, WNUT 2017 and a Japanese set of entities."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tfseq.checks import choice
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.data.reading import own_file, read_text, rows_of
from tfseq.files import fetch_file, replace_file
from tfseq.schemes import encode, repair, scheme_of, violations

SUFFIXES = (".conll", ".conllu", ".bio", ".iob", ".json")
STEP = "token"

_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_ILLEGAL = ("error", "repair", "keep")
Illegal = Literal["error", "repair", "keep"]

_EWT_URL = "https://raw.githubusercontent.com/UniversalDependencies/UD_English-EWT/4c89b5833a70aa5ed3a00bad2f23f57992cc7df8/"
_EWT = {
    "train": ("en_ewt-ud-train.conllu", "3fb78e2b55482c8ee00caa653af436c88c9e5bc9a73ce26e4ae3ddc79d2b7e7b"),
    "valid": ("en_ewt-ud-dev.conllu", "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6"),
    "test": ("en_ewt-ud-test.conllu", "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd"),
}
_WNUT_URL = "https://raw.githubusercontent.com/leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603/"
_WNUT = {
    "train": ("wnut17train.conll", "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5"),
    "valid": ("emerging.dev.conll", "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8"),
    "test": ("emerging.test.annotated", "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0"),
}
_NER_JA_URL = (
    "https://raw.githubusercontent.com/stockmarkteam/ner-wikipedia-dataset/5e525c2132c0e87cce890b8b92639a0cf357c1f3/ner.json"
)
_NER_JA_HASH = "5796effb85c473aec5b85784545349ed42e408bb0fecdb78f82bc107d53edbe3"


def load_ewt(split: str, *, label_column: str = "upos", data_dir: Path | None = None) -> Sequences:
    """Universal Dependencies' English Web Treebank, release 2.16, in its published split.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        label_column: `"upos"` (17 parts of speech), `"xpos"` (49, those of the Penn Treebank) or `"deprel"`.
        data_dir: folder with `ud_english_ewt/*.conllu`; downloaded where absent.

    Returns:
        Words `[T_i]` str and their labels `[T_i]` str, with the sentences' ids as names.
    """
    choice("split", split, SPLITS)
    file, sha256 = _EWT[split]
    path = fetch_file(f"ud_english_ewt/{file}", _EWT_URL + file, sha256, data_dir)
    fields = _fields(path, _read_conllu(path, label_column), "keep")
    return Sequences(
        **fields, name="ewt", split=split, step="word", source=f"UD English EWT 2.16 (CC BY-SA 4.0); {file} from {_EWT_URL}"
    )


def load_wnut17(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Emerging and rare entities of WNUT 2017 (Derczynski et al. 2017), six types in BIO, in the published split.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `wnut17/`; downloaded where absent.

    Returns:
        Tokens `[T_i]` str and their tags `[T_i]` str.
    """
    choice("split", split, SPLITS)
    file, sha256 = _WNUT[split]
    path = fetch_file(f"wnut17/{file}", _WNUT_URL + file, sha256, data_dir)
    fields = _fields(path, _read_columns(path, 0, -1), "error")
    return Sequences(
        **fields, name="wnut17", split=split, step=STEP, source=f"WNUT 2017 shared task (CC BY 4.0); {file} from {_WNUT_URL}"
    )


def load_ner_ja(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Entities in sentences of the Japanese Wikipedia (Stockmark, version 2.0): eight types, BIO tags of characters.

    Split: 80/10/10 of the articles by `reading.rows_of`, since none was published; all sentences of an article are in one.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `ner_wikipedia_ja/ner.json`; downloaded where absent.

    Returns:
        Characters `[T_i]` str and their tags `[T_i]` str.
    """
    choice("split", split, SPLITS)
    path = fetch_file("ner_wikipedia_ja/ner.json", _NER_JA_URL, _NER_JA_HASH, data_dir)
    items = _json_items(path)
    kept = [(i, items[i]) for i in rows_of([str(item["curid"]) for item in items], split)]
    return Sequences(
        **_fields(path, _read_spans(path, kept), "error"),
        name="ner-ja",
        split=split,
        step="character",
        source=f"Stockmark, Wikipedia NER 2.0 (CC BY-SA 3.0); {_NER_JA_URL}",
    )


def load_conll(
    path: str | Path,
    split: str = "train",
    *,
    token_column: int = 0,
    label_column: int | str | None = None,
    illegal: Illegal = "error",
    labelled: bool = True,
) -> Sequences:
    """The user's own labelled tokens, from a file of columns, CoNLL-U, or JSON with spans; UTF-8.

    - `.conll`, `.bio`, `.iob`: a token a line, columns between tabs, or between blanks; an empty line ends a sentence, lines that
      begin with `-DOCSTART-` are left out. Every line has as many columns as the first.
    - `.conllu`: ten columns between tabs, `#` begins a comment; ranges of words (`1-2`) and empty nodes (`8.1`) are left out.
      A label `_` is not known.
    - `.json`: a list of `{"text": ..., "entities": [{"span": [begin, end], "type": ...}, ...]}`, where spans count characters
      from 0 and leave out their end. Tokens are characters, labels are BIO.

    Args:
        path: the file, which has only the split `"train"`; or a folder with `train`, `valid`, `test` and a suffix above.
        split: `"train"`, `"valid"` or `"test"`.
        token_column: the tokens' place in a line, 0, the first, where not given; -1 is the last. Not for `.conllu` and `.json`.
        label_column: the labels' place, the last where not given; in `.conllu` a name, `"upos"` where not given. Not for `.json`.
        illegal: of labels that are spans in BIO, IOB1 or BIOES, what becomes of a sequence that is illegal (I- after O in BIO):
            an error, where not given; or it is repaired, as conlleval reads it; or kept.
        labelled: whether labels are read. Without them one column is enough, and nothing is said of labels that are wrong.

    Returns:
        Tokens `[T_i]` str and labels `[T_i]` str, "" where not known; `y` is None without labels. A sentence is called by its
        `sent_id`, or by the file and the line of its first token; messages name file and line of both.

    Raises:
        ValueError: no file for the split, or a file that is not as above; the line is named.
    """
    file, name = own_file(path, split, SUFFIXES)
    choice("illegal", illegal, _ILLEGAL)
    suffix = file.suffix.lower()
    not_read = {"token_column": token_column != 0, "label_column": suffix == ".json" and label_column is not None}
    if suffix in (".conllu", ".json") and (given := [argument for argument, is_given in not_read.items() if is_given]):
        raise ValueError(f"`{given[0]}` must be left out for a {suffix} file, which has its own places; received it for {file}.")
    if suffix == ".json":
        sentences = _read_spans(file, list(enumerate(_json_items(file))), labelled=labelled)
    elif suffix == ".conllu":
        column = "upos" if label_column is None else label_column
        sentences = _read_conllu(file, column if labelled else None)
    else:
        column = -1 if label_column is None else label_column
        sentences = _read_columns(file, token_column, column if labelled else None)
    fields = _fields(file, sentences, illegal if labelled else "keep")
    return Sequences(
        **(fields if labelled else {**fields, "y": None}),
        name=name,
        split=split,
        step="character" if suffix == ".json" else STEP,
        source=f"the user's file {file.name}",
    )


def write_conll(path: str | Path, tokens: Iterable[Sequence[str]], *columns: Iterable[Sequence[str]]) -> None:
    """Writes sentences as a CoNLL file that `load_conll` reads: a token a line, columns between tabs, an empty line after each.

    Args:
        path: the file; it is written whole or not at all.
        tokens: of each sentence `[T_i]` str.
        *columns: further columns, labels or predictions: of each sentence `[T_i]` str.

    Raises:
        ValueError: columns have other lengths than tokens, or a cell is empty or has a tab or a line end.
    """
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for i, sentence in enumerate(zip(tokens, *columns, strict=True)):
            if len({len(column) for column in sentence}) != 1:
                lengths = [len(column) for column in sentence]
                raise ValueError(f"`columns` of sentence {i} must have a cell for each token; received lengths {lengths}.")
            for cells in zip(*sentence, strict=True):
                bad = [cell for cell in map(str, cells) if not cell or re.search(r"[\t\r\n]", cell)]
                if bad:
                    raise ValueError(
                        f"`tokens` and `columns` must hold no empty cell, tab or line end; received {bad[0]!r} in sentence {i}."
                    )
                file.write("\t".join(cells) + "\n")
            file.write("\n")


class _Name(str):
    """A `sent_id`. Answers carry it as it is; its repr, by which messages name a sequence, adds where the sentence stands."""

    __slots__ = ("place",)
    place: str

    def __new__(cls, name: str, place: str = "") -> _Name:  # copies set `place` later
        self = super().__new__(cls, name)
        self.place = place
        return self

    def __repr__(self) -> str:
        return repr(f"{self} ({self.place})")


class _Sentence(NamedTuple):
    """What a reader makes of one: tokens, labels ("" where they are not read), where each token stands, and a name or none."""

    tokens: list[str]
    labels: list[str]
    places: list[str]
    name: str = ""


def _fields(path: Path, sentences: list[_Sentence], illegal: str) -> dict[str, Any]:
    """Arguments of `Sequences`, with tags that are spans checked or repaired."""
    choice("illegal", illegal, _ILLEGAL)
    labels = [sentence.labels for sentence in sentences]
    scheme = None if illegal == "keep" else scheme_of({tag for tags in labels for tag in tags}, labels)
    for i, tags in enumerate(labels):
        bad = [] if scheme is None else violations(tags, scheme)
        if bad and illegal == "repair":
            labels[i] = repair(tags, str(scheme))
        elif bad:
            before = f"after {tags[bad[0] - 1]!r}" if bad[0] else "at the beginning of a sentence"
            raise ValueError(
                f"{path}, {sentences[i].places[bad[0]]}: in the scheme {scheme!r}, {tags[bad[0]]!r} may not stand {before}"
                f"{', or not at the end' if bad[0] == len(tags) - 1 and scheme == 'bioes' else ''}. "
                'Is an empty line missing, or a tag wrong? illegal="repair" (--data_illegal repair) reads it as conlleval does.'
            )
    places = [f"{path.name}, {sentence.places[0]}" for sentence in sentences]
    return {
        "x": [np.array(sentence.tokens, np.str_) for sentence in sentences],
        "y": [np.array(tags, np.str_) for tags in labels],
        "names": [_Name(one.name, place) if one.name else place for one, place in zip(sentences, places, strict=True)],
    }


# Columns ------------------------------------------------------------------------------------------------------------


def _read_columns(path: Path, token_column: int, label_column: int | str | None) -> list[_Sentence]:
    """The sentences of a file of columns; without a column of labels, their tokens."""
    if isinstance(label_column, str):
        raise ValueError(f"`label_column` must be a number in a file without names of columns; received {label_column!r}.")
    sentences, sentence = [], _Sentence([], [], [])
    num_columns, first = 0, 0
    for number, line in enumerate(read_text(path).split("\n"), 1):
        blank = not line.strip(" \t\r")
        if blank or line.startswith("-DOCSTART-"):
            if sentence.tokens:
                sentences.append(sentence)
                sentence = _Sentence([], [], [])
            continue
        # A cell of blanks alone is a token; blanks around one are not.
        cells = [cell.strip(" \r") or cell for cell in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" \r"))
        if not num_columns:
            num_columns, first = len(cells), number
            if num_columns < 2 and label_column is not None:
                raise ValueError(
                    f"{path}, line {number}: a line must have a token and a label, with a tab or blank between; "
                    f"received {line[:50]!r}."
                )
            for argument, column in (("token_column", token_column), ("label_column", label_column)):
                if column is not None and not -num_columns <= column < num_columns:
                    raise ValueError(f"`{argument}` must be a column of {path}, which has {num_columns}; received {column}.")
            if label_column is not None and token_column % num_columns == label_column % num_columns:
                raise ValueError(
                    f"`token_column` and `label_column` must be two columns of {path}, which has {num_columns}, numbered from 0; "
                    f"received {token_column} and {label_column}, the same one. `label_column` (--data_label_column) is -1, the "
                    "last, where it is not given: is it missing?"
                )
        if len(cells) != num_columns:
            cause = (
                "Is the label missing?" if len(cells) < num_columns else "Is there a blank in a token? Put tabs between columns."
            )
            raise ValueError(
                f"{path}, line {number}: a line must have {num_columns} column{'s' * (num_columns > 1)}, as line {first} has; "
                f"received {len(cells)}: {line[:50]!r}. {cause}"
            )
        token, label = cells[token_column], "" if label_column is None else cells[label_column]
        if not token or (not label and label_column is not None):
            raise ValueError(f"{path}, line {number}: the {'label' if token else 'token'} is missing; received {line[:50]!r}.")
        _add(sentence, token, label, number)
    if sentence.tokens:
        sentences.append(sentence)
    return _some(path, sentences)


def _add(sentence: _Sentence, token: str, label: str, number: int) -> None:
    sentence.tokens.append(token)
    sentence.labels.append(label)
    sentence.places.append(f"line {number}")


def _some(path: Path, sentences: list[_Sentence]) -> list[_Sentence]:
    if not sentences:
        raise ValueError(f"{path} must hold sentences; it has none.")
    return sentences


def _read_conllu(path: Path, label_column: int | str | None) -> list[_Sentence]:
    """The sentences of a CoNLL-U file; without a column of labels, their words."""
    if label_column is not None:
        choice("label_column", label_column, _CONLLU[2:])
    column = None if label_column is None else _CONLLU.index(str(label_column))
    sentences, sentence = [], _Sentence([], [], [])
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        if not line.strip(" \t\r"):
            if sentence.tokens:
                sentences.append(sentence)
                sentence = _Sentence([], [], [])
            continue
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if key.strip() == "sent_id":
                sentence = sentence._replace(name=value.strip())
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(_CONLLU):
            raise ValueError(
                f"{path}, line {number}: a line must have the {len(_CONLLU)} columns of CoNLL-U, between tabs; received "
                f"{len(cells)}: {line[:50]!r}. Files of other columns are called .conll."
            )
        if re.fullmatch(r"\d+-\d+|\d+\.\d+", cells[0]):
            continue
        label = "_" if column is None else cells[column]
        if not cells[0].isdecimal() or not cells[1] or not label:
            rule = "a number and a form" if column is None else f"a number, a form and a label in column {label_column!r}"
            raise ValueError(f"{path}, line {number}: a word must have {rule}; received {line[:50]!r}.")
        _add(sentence, cells[1], "" if label == "_" else label, number)
    return _some(path, sentences)


# Spans --------------------------------------------------------------------------------------------------------------


def _json_items(path: Path) -> list[Any]:
    """The items of a JSON file that is a list."""
    text = read_text(path)
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: no readable JSON ({error.msg}). Is it cut off?") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a whole number of thousands of digits
        raise ValueError(f"{path} must be readable JSON; {error}.") from error
    if not isinstance(items, list) or not items:
        raise ValueError(f'{path} must be a list of {{"text": ..., "entities": [...]}}; received {text[:50]!r}.')
    return items


def _read_spans(path: Path, items: list[tuple[int, Any]], *, labelled: bool = True) -> list[_Sentence]:
    """The sentences of (number, item): characters, and BIO tags from spans where they are read."""
    sentences = []
    for number, item in items:
        where = f"item {number}"
        text = item.get("text") if isinstance(item, dict) else None
        entities = [] if not labelled else item.get("entities", []) if isinstance(item, dict) else None
        if not isinstance(text, str) or not _is_text(text) or not isinstance(entities, list):
            raise ValueError(f'{path}, {where}: an item must have a "text" and "entities"; received {str(item)[:50]!r}.')
        spans = [_span(f"{path}, {where}", text, entity) for entity in entities]
        try:
            tags = encode(spans, len(text), "bio")
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
        sentences.append(_Sentence(list(text), tags, [where] * len(text)))
    return _some(path, sentences)


def _is_text(value: str) -> bool:
    """Whether an array can hold this string: not empty, without NUL and halves of surrogate pairs."""
    return bool(re.fullmatch(r"[^\0\ud800-\udfff]+", value))


def _span(where: str, text: str, entity: Any) -> tuple[str, int, int]:
    """(type, begin, end) of an entity in JSON."""
    kind = entity.get("type") if isinstance(entity, dict) else None
    span = entity.get("span") if isinstance(entity, dict) else None
    whole = isinstance(span, list) and len(span) == 2 and all(type(i) is int for i in span)
    if not isinstance(kind, str) or not _is_text(kind) or not whole:
        raise ValueError(f'{where}: an entity must have a "span" [begin, end] and a "type"; received {str(entity)[:80]!r}.')
    begin, end = span  # type: ignore[misc]
    if not 0 <= begin < end <= len(text):
        raise ValueError(
            f"{where}: a span must lie within the {len(text)} characters of its text; received {span}. "
            "Are these bytes, or tokens?"
        )
    if entity.get("name", text[begin:end]) != text[begin:end]:
        raise ValueError(
            f"{where}: the span {span} is {text[begin:end]!r}, but the entity's name is {entity['name']!r}. Are spans bytes?"
        )
    return kind, begin, end
