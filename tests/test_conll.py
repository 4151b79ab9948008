"""Labelled tokens: what the files say is what is read, and what is wrong with them is named with its line."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tfseq
from tfseq.data import DATASETS, SPLITS, data_hash, load_dataset, splits_of
from tfseq.data.conll import load_conll, load_ewt, write_conll


@pytest.fixture
def file_of(tmp_path):
    """`file_of(name, content)` -> the path of a file with this text, or these bytes."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def pairs(data) -> list[list[tuple[str, str]]]:
    """Each sentence as (token, label)."""
    return [list(zip(x.tolist(), y.tolist(), strict=True)) for x, y in zip(data.x, data.y, strict=True)]


TWO = [[("Ann", "B-PER"), ("ran", "O")], [("日本", "B-LOC"), ("へ", "O"), ("!", "O")]]


@pytest.mark.parametrize("suffix", ["conll", "bio", "iob"])
@pytest.mark.parametrize(
    "content",
    [
        "Ann\tB-PER\nran\tO\n\n日本\tB-LOC\nへ\tO\n!\tO\n",
        "Ann B-PER\nran O\n\n\n日本  B-LOC\nへ O\n! O",
        "\ufeff-DOCSTART- -X-\r\n\r\nAnn\tB-PER\r\nran\tO\r\n\t\r\n日本\tB-LOC \r\nへ\tO\r\n!\tO\r\n\r\n",
        "\n-DOCSTART- O\n\nAnn B-PER\nran O\n \n-DOCSTART- O\n日本 B-LOC\nへ O\n! O\n",
    ],
)
def test_columns(file_of, suffix, content):
    path = file_of(f"mine.{suffix}", content)
    data = load_dataset(path)
    assert pairs(data) == TWO
    assert (data.name, data.split, data.step, data.source) == ("mine", "train", "token", f"the user's file mine.{suffix}")
    assert splits_of(path) == ("train",) and data.padded()["y"].shape == (2, 3)


def test_which_columns_are_read(file_of):
    path = file_of("mine.conll", "1 # X B-A z\n2 b Y I-A z\n")
    assert pairs(load_conll(path)) == [[("1", "z"), ("2", "z")]]
    assert pairs(load_conll(path, token_column=1, label_column=-2)) == [[("#", "B-A"), ("b", "I-A")]]  # "#" is a token here
    for settings, words in (({"token_column": 5}, "`token_column` must be a column .* has 5; received 5"),
                            ({"label_column": -6}, "`label_column` must be a column"),
                            ({"token_column": 4}, "`token_column` and `label_column` must be two .*received 4 and -1, the same"),
                            ({"token_column": -3, "label_column": 2}, "`token_column` and `label_column`.*received -3 and 2"),
                            ({"label_column": "upos"}, "`label_column` must be a number"),
                            ({"illegal": "fix"}, "`illegal` must be one of")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            load_conll(path, **settings)


def test_blanks_that_are_tokens_survive_writing_and_reading(tmp_path):
    tokens = [["a", " ", "\u3000", "\u2028"], ["b c"], ["#", "-"]]
    labels = [["O"] * 4, ["B-X"], ["O", "O"]]
    write_conll(tmp_path / "new" / "own.conll", tokens, labels)
    assert pairs(load_conll(tmp_path / "new" / "own.conll")) == [
        list(zip(*both, strict=True)) for both in zip(tokens, labels, strict=True)
    ]
    assert (tmp_path / "new" / "own.conll").read_bytes().startswith(b"a\tO\n \tO\n")
    for bad, words in (([["a\tb"]], "received 'a\\\\tb' in sentence 0"), ([[""]], "no empty cell")):
        with pytest.raises(ValueError, match=words):
            write_conll(tmp_path / "x.conll", bad, [["O"]])
    with pytest.raises(ValueError, match=r"`columns` of sentence 0 must have a cell for each token; received lengths \[1, 2\]"):
        write_conll(tmp_path / "x.conll", [["a"]], [["O", "O"]])
    assert not (tmp_path / "x.conll").exists()


CONLLU = """# sent_id = one
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
2.1\tx\tx\tX\tX\t_\t_\t_\t_\t_
3\tal mar\tmar\t_\tN\t_\t1\tobl\t_\t_

# a comment

# sent_id = two
1\t#\t#\tSYM\tS\t_\t0\troot\t_\t_
"""


def test_conllu(file_of):
    path = file_of("mine.conllu", CONLLU)
    data = load_dataset(path)
    assert pairs(data) == [[("vamos", "VERB"), ("nos", "PRON"), ("al mar", "")], [("#", "SYM")]] and data.names == ["one", "two"]
    assert pairs(load_conll(path, label_column="deprel"))[0] == [("vamos", "root"), ("nos", "obj"), ("al mar", "obl")]
    assert [label for _, label in pairs(load_conll(path, label_column="xpos"))[0]] == ["V", "P", "N"]


SPANS = [
    {"text": "アンはNYへ", "entities": [{"name": "NY", "span": [3, 5], "type": "地名"}, {"span": [0, 2], "type": "人名"}]},
    {"text": "a b", "entities": []},
]


def test_json_with_spans(file_of):
    path = file_of("mine.json", json.dumps(SPANS))
    data = load_dataset(path)
    tags = ["B-人名", "I-人名", "O", "B-地名", "I-地名", "O"]
    assert pairs(data) == [list(zip("アンはNYへ", tags, strict=True)), [("a", "O"), (" ", "O"), ("b", "O")]]
    assert data.step == "character"


def test_a_folder_of_splits(file_of, tmp_path):
    for split in SPLITS:
        file_of(f"corpus/{split}.conll", f"{split} O\n")
    file_of("corpus/README.md", "words")
    folder = tmp_path / "corpus"
    assert splits_of(folder) == SPLITS
    for split in SPLITS:
        data = load_dataset(folder, split)
        assert pairs(data) == [[(split, "O")]] and (data.name, data.split) == ("corpus", split)
    file_of("corpus/test.txt", "text")
    with pytest.raises(ValueError, match="must have one file for each split; 'test' has test.conll and test.txt"):
        splits_of(folder)
    (folder / "test.conll").unlink()
    with pytest.raises(ValueError, match="must have files of one kind; it has train.conll and valid.conll and test.txt"):
        load_dataset(folder)
    (folder / "test.txt").unlink()
    with pytest.raises(ValueError, match="which are: train, valid; received 'test'"):
        load_dataset(folder, "test")


def test_illegal_sequences_of_tags(file_of):
    path = file_of("mine.bio", "a O\nb B-X\n\nc O\nd I-X\ne B-Y\nf I-X\n\ng B-X\nh B-X\n")
    with pytest.raises(ValueError, match="mine.bio, line 5: in the scheme 'bio', 'I-X' may not stand after 'O'.*illegal=.repair"):
        load_conll(path)
    assert load_conll(path, illegal="keep").y[1].tolist() == ["O", "I-X", "B-Y", "I-X"]
    assert load_conll(path, illegal="repair").y[1].tolist() == ["O", "B-X", "B-Y", "B-X"]
    with pytest.raises(ValueError, match="line 1: in the scheme 'bio', 'I-X' may not stand at the beginning of a sentence"):
        load_conll(file_of("a.bio", "d I-X\n\na B-X\nb B-X\n"))
    with pytest.raises(ValueError, match="line 2: in the scheme 'bioes'"):
        load_conll(file_of("a.bio", "a S-X\nd B-X\n"))
    assert load_conll(file_of("a.bio", "a I-X\nd B-X\n")).y[0].tolist() == ["I-X", "B-X"]  # IOB1, legal
    assert load_conll(file_of("a.bio", "a I-X\nd NOUN\n")).y[0].tolist() == ["I-X", "NOUN"]  # classes of no scheme


def test_sentences_are_called_by_where_they_stand(file_of):
    data = load_dataset(file_of("mine.conll", "-DOCSTART- O\n\nAnn B-PER\nran O\n\n\nBo B-PER\n"))
    assert data.names == ["mine.conll, line 3", "mine.conll, line 7"]
    assert data_hash(data) == data_hash(replace(data, names=()))
    assert load_dataset(file_of("mine.conllu", CONLLU.replace("# sent_id = one\n", ""))).names == ["mine.conllu, line 3", "two"]
    assert load_dataset(file_of("mine.json", json.dumps(SPANS))).names == ["mine.json, item 0", "mine.json, item 1"]


def test_messages_say_where_a_sentence_with_an_id_stands(file_of):
    data = load_dataset(file_of("mine.conllu", CONLLU)).take([1, 0])
    model = tfseq.SequenceTagger.tiny(vocabulary=["nos"], tags=["VERB", "SYM"])
    for read in (model.as_batch, model.evaluate):
        with pytest.raises(ValueError, match=r"received 'PRON' at index 1 of 'one \(mine.conllu, line 4\)', for 'nos'"):
            read(data)
    assert json.dumps(data.names) == '["two", "one"]' and f"{data.names[0]}" == "two"
    assert repr(copy.deepcopy(data.names)) == "['two (mine.conllu, line 12)', 'one (mine.conllu, line 4)']"


@pytest.mark.parametrize(
    ("name", "content", "options", "tokens"),
    [
        ("a.conll", "-DOCSTART-\n\nAnn\nran\n\n日本\n", {}, [["Ann", "ran"], ["日本"]]),
        ("a.bio", "O Ann\nI-X ran\n", {"token_column": 1}, [["Ann", "ran"]]),
        ("a.bio", "Ann\t\nran\tI-X\n", {"label_column": 7}, [["Ann", "ran"]]),
        ("a.conllu", CONLLU.replace("SYM", ""), {"label_column": "pos"}, [["vamos", "nos", "al mar"], ["#"]]),
        ("a.json", '[{"text": "ab", "entities": [{"span": [0, 9]}]}, {"text": "c"}]', {}, [["a", "b"], ["c"]]),
    ],
)  # fmt: skip
def test_tokens_are_read_without_labels(file_of, name, content, options, tokens):
    path = file_of(name, content)
    with pytest.raises(ValueError, match=name):
        load_dataset(path, **options | {"label_column": None})
    data = load_dataset(path, labelled=False, **options)
    assert [x.tolist() for x in data.x] == tokens and data.y is None and len(data.names) == len(tokens)


def test_tokens_without_labels_that_are_wrong(file_of):
    for name, content, message in (
        ("a.conll", "a\nb c\n", "line 2: a line must have 1 column, as line 1 has; received 2"),
        ("a.conll", "\tO\n", "line 1: the token is missing"),
        ("a.conllu", CONLLU.replace("2\tnos", "2\t"), "line 5: a word must have a number and a form; received"),
        ("a.json", "[{}]", "item 0: an item must have"),
    ):
        with pytest.raises(ValueError, match=f"{name}, {message}"):
            load_conll(file_of(name, content), labelled=False)


def test_options_of_the_loader(file_of):
    path = file_of("mine.bio", "x I-X a\ny O b\n\nz B-X c\n\nw O d\nv I-X e\nu B-X f\n")
    with pytest.raises(ValueError, match="line 1: in the scheme 'bio', .*--data_illegal repair"):
        load_dataset(path, label_column=1)
    data = load_dataset(path, label_column=1, token_column=-1, illegal="repair")
    assert pairs(data)[0] == [("a", "B-X"), ("b", "O")]
    for name, option, known in (
        (path, "ilegal", "token_column, label_column, illegal, labelled. Did you mean 'illegal'"),
        ("earthquakes", "illegal", "none"),
        ("ewt-xpos", "label_column", "none"),  # its name says it
        ("ewt", "illegal", "label_column"),
        ("jsb", "data_dir_", "none"),
    ):
        with pytest.raises(ValueError, match=rf"`{option}` \(--data_{option}\) must be an option .*there are: {known}"):
            load_dataset(name, **{option: "x"})
    for name, content, option in (
        ("a.conllu", CONLLU, {"token_column": 1}),
        ("a.json", json.dumps(SPANS), {"token_column": 1}),
        ("a.json", json.dumps(SPANS), {"label_column": 1}),
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}` must be left out for a .*{name}"):
            load_dataset(file_of(name, content), **option)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "", "must hold text; it is empty"),
        ("a.conll", " \n\t\n", "must hold text; it is empty"),
        ("a.conll", "-DOCSTART- O\n", "must hold sentences; it has none"),
        ("a.conll", "\nalone\n", "line 2: a line must have a token and a label"),
        ("a.conll", "a\tO\n\nb\n", "line 3: a line must have 2 columns, as line 1 has; received 1: 'b'. Is the label missing"),
        ("a.conll", "a\tO\nb\t\n", "line 2: the label is missing"),
        ("a.conll", "a\tO\n\tO\n", "line 2: the token is missing"),
        ("a.conll", "a O\nb c O\n", "line 2: a line must have 2 columns.*received 3.*blank in a token"),
        ("a.conll", b"a O\nb\xff O\n", "line 2: text must be UTF-8; byte 2 of the line, 0xff"),
        ("a.conll", b"\xff\xfea\0", "line 1: text must be UTF-8; byte 1 of the line.*UTF-16"),
        ("a.conllu", "1\ta\tO\n", "line 1: a line must have the 10 columns of CoNLL-U.*received 3"),
        ("a.conllu", CONLLU.replace("2\tnos", "b\tnos"), "line 5: a word must have a number"),
        ("a.conllu", CONLLU.replace("SYM", ""), "line 12: a word must have a number, a form and a label in column 'upos'"),
        ("a.conllu", "# only\n# comments\n", "must hold sentences"),
        ("a.json", '[{"text": "a",\n]', "line 2: no readable JSON"),
        ("a.json", "[" * 100_000, "JSON"),
        ("a.json", '{"text": "a"}', "must be a list of"),
        ("a.json", "[]", "must be a list of"),
        ("a.json", '[{"text": "a"}, {"entities": []}]', "item 1: an item must have a .text."),
        ("a.json", '[{"text": "a", "entities": [{"span": [0, 2], "type": "X"}]}]', r"item 0: a span must lie .*0, 2"),
        ("a.json", '[{"text": "a", "entities": [{"span": [0, 0], "type": "X"}]}]', "item 0: a span must lie within"),
        ("a.json", '[{"text": "a", "entities": [{"span": [0, true], "type": "X"}]}]', "item 0: an entity must have a .span."),
        ("a.json", '[{"text": "a", "entities": [{"span": [0, 1]}]}]', "item 0: an entity must have"),
        ("a.json", '[{"text": "ab", "entities": [{"span": [0, 1], "type": "X", "name": "b"}]}]', "item 0: the span .* is 'a'"),
        (
            "a.json",
            '[{"text": "abc", "entities": [{"span": [0, 2], "type": "X"}, {"span": [1, 3], "type": "Y"}]}]',
            "item 0: `spans` must not .*overlap",
        ),
    ],
)  # fmt: skip
def test_files_that_are_wrong(file_of, name, content, message):
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        load_dataset(file_of(name, content))


def test_paths_and_columns_that_are_wrong(file_of, tmp_path):
    with pytest.raises(ValueError, match="`path` must be an existing .conll or .* file, or a folder of them"):
        load_conll(tmp_path / "absent.conll")
    with pytest.raises(ValueError, match="`path` must be"):
        load_conll(tmp_path)
    with pytest.raises(ValueError, match="`label_column` must be one of .*Did you mean 'xpos'"):
        load_conll(file_of("a.conllu", CONLLU), label_column="pos")
    with pytest.raises(ValueError, match=r"`split` must be one of \['train'\]"):
        load_conll(file_of("a.conll", "a O\n"), "test")


@pytest.mark.parametrize(
    ("name", "sizes", "num_labels"),
    [
        # counts of the README of the data, and wc of the files
        ("ewt", {"train": (12544, 204577), "valid": (2001, 25147), "test": (2077, 25094)}, 17),
        ("wnut17", {"train": (3394, 62730), "valid": (1009, 15733), "test": (1287, 23394)}, 13),
    ],
)
def test_published_splits(name, sizes, num_labels, data_folder):
    for split, (num, steps) in sizes.items():
        data = load_dataset(name, split, data_dir=data_folder)
        assert (len(data), data.lengths.sum()) == (num, steps) and (data.name, data.split) == (name, split)
        assert len({label for y in data.y for label in y.tolist()}) == num_labels
    assert splits_of(name) == SPLITS and name in DATASETS


def test_ewt_with_other_labels(data_folder):
    data = load_dataset("ewt-xpos", "test", data_dir=data_folder)
    assert data.name == "ewt-xpos" and "NNP" in data.y[0]
    assert "root" in load_ewt("test", label_column="deprel", data_dir=data_folder).y[0]


def test_japanese_entities(data_folder):
    splits = [load_dataset("ner-ja", split, data_dir=data_folder) for split in SPLITS]
    assert [len(data) for data in splits] == [4269, 535, 539]  # 80/10/10 of the articles
    assert sum(data.lengths.sum() for data in splits) == 308_374  # the README of the data
    texts = [{"".join(x.tolist()) for x in data.x} for data in splits]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    tags = np.concatenate([y for data in splits for y in data.y])
    assert sum(str(tag).startswith("B-") for tag in tags) == 13_185 and len(set(tags.tolist())) == 17
