"""Raw texts, tables of them, Python's own sources, and word vectors: what is read, and what is wrong with its line."""

import keyword
import logging
from pathlib import Path

import numpy as np
import pytest

from tfseq.data import DATASETS, SPLITS, data_hash, load_dataset, splits_of
from tfseq.data.reading import rows_of
from tfseq.data.text import labelled_lines, load_multi30k, load_table, load_text
from tfseq.data.vectors import read_vectors


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Texts.


def test_one_text_is_cut_into_three(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(200))
    path = write(tmp_path / "novel.txt", text.replace("z", "\r\n"))
    assert splits_of(path) == SPLITS
    parts = [load_dataset(path, split) for split in SPLITS]
    assert [int(data.lengths.sum()) for data in parts] == [180, 10, 10]
    assert "".join(data.x[0] for data in parts) == text.replace("z", "\n")
    assert parts[1].is_text and (parts[1].name, parts[1].split, parts[1].step) == ("novel", "valid", "character")
    with pytest.raises(ValueError, match="novel.txt must have characters for train, valid and test.*valid has none"):
        load_text(write(path, "a"), "valid")


def test_a_folder_of_texts(tmp_path):
    write(tmp_path / "mine" / "train.txt", "\ufeffto train")
    write(tmp_path / "mine" / "valid.txt", "to select")
    assert splits_of(tmp_path / "mine") == ("train", "valid")
    assert [load_dataset(tmp_path / "mine", split).x for split in ("train", "valid")] == [["to train"], ["to select"]]
    with pytest.raises(ValueError, match="which are: train, valid; received 'test'"):
        load_dataset(tmp_path / "mine", "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold text; it is empty"),
        (b" \n", "it is empty"),
        (b"ab\nc\xe9d\n", "line 2: text must be UTF-8; byte 2 of the line"),
    ],
)
def test_texts_that_are_wrong(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"bad.txt.*{message}"):
        load_dataset(write(tmp_path / "bad.txt", content))


# Tables.


def test_a_table_to_classify(tmp_path):
    path = write(tmp_path / "mine.tsv", 'text\tlabel\r\na "fine" film \tpos\r\n\r\nno\tneg')
    data = load_dataset(path)
    assert (data.x, data.y, data.target, data.one_label) == (['a "fine" film', "no"], ["pos", "neg"], None, True)
    assert splits_of(path) == ("train",) and data.source == "the user's file mine.tsv"
    assert load_table(write(tmp_path / "third.tsv", "text\tlabel\n\nfine\tpos\n")).names == ["third.tsv, line 3"]
    swapped = load_table(write(tmp_path / "other.tsv", 'Label\tText\npos\ta "fine" film\nneg\tno\n'))
    assert data_hash(swapped) == data_hash(data)


def test_a_folder_of_tables_to_translate(tmp_path):
    for split in SPLITS:
        write(tmp_path / "mine" / f"{split}.tsv", f"source\ttarget\nja {split}\tyes {split}\n")
    for split in SPLITS:
        data = load_dataset(tmp_path / "mine", split)
        assert (data.x, data.y, data.target) == ([f"ja {split}"], None, [f"yes {split}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a fine film\tpos\n", "line 1: the header must name two columns.*text and label.*Is the header missing"),
        ("text\ttarget\na\tb\n", "line 1: the header"),
        ("text\tlabel\tid\na\tb\t1\n", "line 1: the header"),
        ("text,label\na,b\n", "line 1: the header"),
        ("text\tlabel\n", "must have a line for each text after its header"),
        ("text\tlabel\na\tb\n\na\tb\tc\n", "line 4: a line must have 2 columns, as the header; received 3"),
        ("text\tlabel\na\n", "line 2: a line must have 2 columns.*received 1"),
        ("text\tlabel\na\t\n", "line 2: label is missing"),
        ("source\ttarget\n\tb\n", "line 2: source is missing"),
        (b"text\tlabel\n\x80\tb\n", "line 2: text must be UTF-8; byte 1 of the line, 0x80"),
    ],
)  # fmt: skip
def test_tables_that_are_wrong(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"bad.tsv.*{message}"):
        load_dataset(write(tmp_path / "bad.tsv", content))


# Python's own.


def test_splits_by_hash_keep_copies_together():
    keys = [f"k{i % 100}" for i in range(250)]
    splits = {split: rows_of(keys, split, valid=0.2, test=0.05) for split in SPLITS}
    assert sorted(sum(splits.values(), [])) == list(range(250))  # noqa: RUF017
    assert {split: len({keys[row] for row in rows}) for split, rows in splits.items()} == {"train": 75, "valid": 20, "test": 5}
    assert rows_of(keys[:100], "test", valid=0.2, test=0.05) == [row for row in splits["test"] if row < 100]


def test_the_topics_of_help():
    splits = [load_dataset("python-docs", split) for split in SPLITS]
    names = [name for data in splits for name in data.names]
    assert len(names) == len(set(names)) > 60 and all(data.is_text and len(data) for data in splits)
    assert len(splits[0]) > 0.85 * len(names) and "lambda" in names
    assert {len(data.x[0]) > 100 for data in splits} == {True}


CODE = '''"""Doc
string."""
import os.path as p, sys
from a import (b,
    c as d)  # comment

@decorate.it(1, key=2)
class Thing(Base, metaclass=Meta):
    """A docstring."""
    size: int = 0x10
    @property
    async def f(self, x, *args, y=None, **kw) -> int:
        self.z.w = obj.method(x)[y] + g(é, k=h.i)
        for n in "é" "b": return [m for m in n]
'''
LINES = [
    [("import", "keyword"), ("os", "import"), (".", "operator"), ("path", "import"), ("as", "keyword"), ("p", "import"),
     (",", "operator"), ("sys", "import")],
    [("from", "keyword"), ("a", "import"), ("import", "keyword"), ("(", "operator"), ("b", "import"), (",", "operator"),
     ("c", "import"), ("as", "keyword"), ("d", "import"), (")", "operator")],
    [("@", "operator"), ("decorate", "decorator"), (".", "operator"), ("it", "decorator"), ("(", "operator"), ("1", "number"),
     (",", "operator"), ("key", "keyword-argument"), ("=", "operator"), ("2", "number"), (")", "operator")],
    [("class", "keyword"), ("Thing", "class"), ("(", "operator"), ("Base", "name"), (",", "operator"),
     ("metaclass", "keyword-argument"), ("=", "operator"), ("Meta", "name"), (")", "operator"), (":", "operator")],
    [("size", "assignment"), (":", "operator"), ("int", "name"), ("=", "operator"), ("0x10", "number")],
    [("@", "operator"), ("property", "decorator")],
    [("async", "keyword"), ("def", "keyword"), ("f", "function"), ("(", "operator"), ("self", "parameter"), (",", "operator"),
     ("x", "parameter"), (",", "operator"), ("*", "operator"), ("args", "parameter"), (",", "operator"), ("y", "parameter"),
     ("=", "operator"), ("None", "keyword"), (",", "operator"), ("**", "operator"), ("kw", "parameter"), (")", "operator"),
     ("->", "operator"), ("int", "name"), (":", "operator")],
    [("self", "name"), (".", "operator"), ("z", "attribute"), (".", "operator"), ("w", "attribute"), ("=", "operator"),
     ("obj", "name"), (".", "operator"), ("method", "call"), ("(", "operator"), ("x", "name"), (")", "operator"),
     ("[", "operator"), ("y", "name"), ("]", "operator"), ("+", "operator"), ("g", "call"), ("(", "operator"), ("é", "name"),
     (",", "operator"), ("k", "keyword-argument"), ("=", "operator"), ("h", "name"), (".", "operator"), ("i", "attribute"),
     (")", "operator")],
    [("for", "keyword"), ("n", "assignment"), ("in", "keyword"), ('"é"', "string"), ('"b"', "string"), (":", "operator"),
     ("return", "keyword"), ("[", "operator"), ("m", "name"), ("for", "keyword"), ("m", "assignment"), ("in", "keyword"),
     ("n", "name"), ("]", "operator")],
]  # fmt: skip


def test_the_roles_of_tokens():
    found = list(labelled_lines(CODE.encode()))
    assert [list(zip(tokens, labels, strict=True)) for _, tokens, labels in found] == LINES
    assert [number for number, *_ in found] == [3, 4, 7, 8, 10, 11, 12, 13, 14]
    assert next(labelled_lines(b"x = '" + b"y" * 99 + b"'\n"))[1] == ["x", "=", "'" + "y" * 29]
    with pytest.raises(SyntaxError):
        list(labelled_lines(b"print 'two'\n"))


def test_lines_of_the_library():
    splits = [load_dataset("python-source", split) for split in SPLITS]
    modules = [{name.split(":")[0] for name in data.names} for data in splits]
    assert all(modules) and not modules[0] & modules[1] and not modules[0] & modules[2] and not modules[1] & modules[2]
    assert 100_000 < sum(data.lengths.sum() for data in splits) < 300_000
    labels = {label for data in splits for y in data.y for label in y.tolist()}
    assert labels == {
        "keyword", "operator", "number", "string", "function", "class", "parameter", "keyword-argument", "decorator", "import",
        "call", "attribute", "assignment", "name",
    }  # fmt: skip
    test = splits[2]
    assert all(
        keyword.iskeyword(a) == (b == "keyword") for x, y in zip(test.x, test.y, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert max(len(token) for x in test.x for token in x.tolist()) < 100


# Files of the data folder.


def test_shakespeare(data_folder):
    splits = [load_dataset("shakespeare", split, data_dir=data_folder) for split in ("valid", "train", "test")]
    text = (data_folder / "tinyshakespeare" / "input.txt").read_text()
    assert "".join(data.x[0] for data in splits) == text
    assert [len(data.x[0]) for data in splits] == [50_192, 953_662, 111_540] and all(len(data) == 1 for data in splits)


def test_polarity(data_folder):
    splits = [load_dataset("polarity", split, data_dir=data_folder) for split in SPLITS]
    assert [len(data) for data in splits] == [8530, 1066, 1066]
    labels = [label for data in splits for label in data.y]
    assert labels.count("neg") == labels.count("pos") == 5331
    assert not set(splits[0].x) & set(splits[2].x) and not set(splits[1].x) & set(splits[2].x)
    assert 500 < splits[2].y.count("pos") < 566  # 533 in expectation, with a deviation of 15


def test_multi30k(data_folder):
    for split, num in zip(SPLITS, (29_000, 1014, 1000), strict=True):
        german, french = (load_dataset(name, split, data_dir=data_folder) for name in ("multi30k", "multi30k-fr"))
        assert len(german) == len(german.target) == len(french) == len(french.target) == num
        assert german.target == french.x and all(german.x) and all(german.target) and all(french.target)
    assert (german.x[0], german.target[0]) == (
        "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
        "A man in an orange hat starring at something.",
    )
    with pytest.raises(ValueError, match="`target` must be one of .*received 'cs'"):
        load_multi30k("test", target="cs", data_dir=data_folder)


def test_a_file_that_is_not_the_published_one(tmp_path):
    write(tmp_path / "tinyshakespeare" / "input.txt", "To be")
    with pytest.raises(ValueError, match="input.txt must have SHA-256 86c4e6aa.*in 5 bytes"):
        load_dataset("shakespeare", data_dir=tmp_path)


def test_the_table_of_data_sets_has_them_all():
    for name in ("ewt", "wnut17", "ner-ja", "python-docs", "python-source", "shakespeare", "polarity", "multi30k", "splice",
                 "promoters", "yeast-genes", "spoken-digits", "spoken-digits-mel"):  # fmt: skip
        assert callable(DATASETS[name].resolve()) and splits_of(name) == SPLITS


# Word vectors.


@pytest.mark.parametrize("header", ["", "5 3\n"])
def test_word_vectors(tmp_path, header, caplog):
    path = write(tmp_path / "v.vec", header + "The 1 2 3\nthe 4 5 6\nPARIS 7 8 9\n. . 1 1 1\nbroken x y z \n\n")
    with caplog.at_level(logging.INFO, "tfseq"):
        vectors = read_vectors(path, ["the", "Paris", "absent", "THE", ". ."])
    matrix, found = vectors
    assert matrix.tolist() == [[4, 5, 6], [7, 8, 9], [0, 0, 0], [1, 2, 3], [1, 1, 1]] and matrix.dtype == np.float32
    assert found.tolist() == [True, True, False, True, True] and vectors.coverage == 0.8
    assert "4 of 5 words" in caplog.text
    assert read_vectors(path, []).matrix.shape == (0, 3) and read_vectors(path, []).coverage == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have a line for each word"),
        ("2 3\n", "must have a line for each word"),
        ("a\n", "line 1: a line must be a word and 1 numbers"),
        ("a 1 2\nb 1\n", "line 2: a line must be a word and 2 numbers, as the first; received 2 columns"),
        ("a 1 2\nb 1 2 3\n", "line 2: a line must be a word and 2 numbers.*received 4"),
        ("2 5\na 1 2\n", "line 2: a line must be a word and 5 numbers"),
        ("a 1 2\nb 1 nan\n", "line 2, column 3: a vector must be finite numbers; received 'nan' for the word 'b'"),
        ("a 1 x\n", "line 1, column 3: .*received 'x'"),
        ("a 1 1e39\n", "line 1, column 3: .*received '1e39'"),
        ("a " + "1" * 2**20, "line 1: a line must be shorter than"),
    ],
)
def test_word_vectors_that_are_wrong(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"v.txt.*{message}"):
        read_vectors(write(tmp_path / "v.txt", content), ["a", "b"])


def test_arguments_of_word_vectors(tmp_path):
    with pytest.raises(ValueError, match="`path` must be an existing file of word vectors"):
        read_vectors(tmp_path / "absent.vec", ["a"])
    with pytest.raises(ValueError, match="`vocabulary` must have different words; received 2, of which 1"):
        read_vectors(write(tmp_path / "v.vec", "a 1\n"), ["a", "a"])
