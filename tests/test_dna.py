"""DNA: windows with classes, genes with introns, and the user's own FASTA files."""

from collections import Counter
from pathlib import Path

import pytest

from tfseq.data import SPLITS, load_dataset, splits_of
from tfseq.data.dna import load_fasta


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize("suffix", ["fasta", "fa", "fsa"])
def test_fasta_with_labels(tmp_path, suffix):
    path = write(tmp_path / f"mine.{suffix}", "\n>one  exon\nacgt\nNNrt\n\n> two intron\r\nMK*-\n")
    data = load_dataset(path)
    assert (data.x, data.y, data.names) == (["ACGTNNRT", "MK*-"], ["exon", "intron"], ["one", "two"])
    assert splits_of(path) == ("train",) and (data.name, data.step) == ("mine", "letter")


def test_fasta_with_descriptions_or_names_alone(tmp_path):
    data = load_dataset(write(tmp_path / "a.fa", ">YAL001C GeneID:851262 Strand:-\nAC\n>b\nGT\n"))
    assert (data.y, data.names, data.x) == (None, ["YAL001C", "b"], ["AC", "GT"])


def test_a_folder_of_fasta(tmp_path):
    for split in SPLITS:
        write(tmp_path / "mine" / f"{split}.fasta", f">{split} x\nAC\n")
    assert splits_of(tmp_path / "mine") == SPLITS
    assert [load_dataset(tmp_path / "mine", split).names for split in SPLITS] == [[split] for split in SPLITS]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold text"),
        ("ACGT\n", "line 1: a FASTA file must begin with a header"),
        (">a\nAC\n>\nGT\n", "line 3: a header must have a name"),
        (">a\nAC\n>b\n>c\nA\n", "line 3: after a header there must be a sequence; '>b' has none"),
        (">a\nAC\nA1\n", "line 3: a sequence must be letters, . or -; received 'A1'"),
        (">a x\nAC\n>b\nGT\n", "line 3: all headers, or none, must be a name and one label.*received '>b', but line 1 is '>a x'"),
    ],
)
def test_fasta_that_is_wrong(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"bad.fa.*{message}"):
        load_fasta(write(tmp_path / "bad.fa", content))


@pytest.mark.parametrize(
    ("name", "length", "sizes", "classes"),
    [
        # counts of classes: the README of the data
        ("splice", 60, [2554, 320, 316], {"EI": 767, "IE": 768, "N": 1655}),
        ("promoters", 57, [64, 21, 21], {"+": 53, "-": 53}),
    ],
)
def test_windows_with_classes(name, length, sizes, classes, data_folder):
    splits = [load_dataset(name, split, data_dir=data_folder) for split in SPLITS]
    assert [len(data) for data in splits] == sizes
    assert Counter(label for data in splits for label in data.y) == classes
    assert all(data.is_text and set(data.lengths.tolist()) == {length} for data in splits)
    assert set("".join(splits[0].x)) <= set("ACGTNDRS")
    assert not set(splits[0].x) & set(splits[2].x) and not set(splits[1].x) & set(splits[2].x)


def test_yeast_genes(data_folder):
    splits = [load_dataset("yeast-genes", split, data_dir=data_folder) for split in SPLITS]
    assert [len(data) for data in splits] == [216, 27, 27]
    introns = []
    for data in splits:
        for x, y in zip(data.x, data.y, strict=True):
            assert y[0] == y[-1] == "exon"
            inside = "".join(base if label == "intron" else " " for base, label in zip(x.tolist(), y.tolist(), strict=True))
            introns += inside.split()
    assert (sum(map(int, (data.lengths.sum() for data in splits))), sum(map(len, introns))) == (302_978, 65_861)
    # almost all introns are GT...AG, which says that the places are not off by one
    assert len(introns) == 280 and sum(intron[:2] + intron[-2:] == "GTAG" for intron in introns) == 270
