"""DNA: splice junctions and promoters to classify, yeast genes with introns to label, and the user's own FASTA files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tfseq.checks import choice
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.data.reading import own_file, read_text, rows_of
from tfseq.files import fetch_file

SUFFIXES = (".fasta", ".fa", ".fsa")
STEP = "base"

_LETTERS = re.compile(r"[A-Za-z*-]*")  # bases or amino acids, with their codes for what is not known

_SPLICE_URL = (
    "https://raw.githubusercontent.com/renatopp/arff-datasets/c59f172882592bb58982cc54d2d3c8a2b57e9b73/classification/splice.arff"
)
_SPLICE_HASH = "7e9b1b59c6731059f40bf16874fcac85af43fa65504b05cc6517b1a4c70fd99a"
_PROMOTERS_URL = (
    "https://raw.githubusercontent.com/farhan-137/dna-promoter-classifier/585478d4bcbeb8a6293f777d9d1abfae91c6db59/data/"
    "promoters.data"
)
_PROMOTERS_HASH = "9cba9e8661ab04760d69b857f62259233446f2dce5ec9b515efe0b23c315bb29"
_YEAST_URL = "https://raw.githubusercontent.com/kmccue/yeast_data/aa8223fd9038437dfa37ba556c04237996229911/"
_GENES = "GCF_000146045.2_R64_genes_with_introns.fsa"
_GENES_HASH = "e6e5a7bf1dcde2b3ebffbd62eae5573b0a50274163d16baf4e20fe195fb160ed"
_INTRONS = "GCF_000146045.2_R64_introns.txt"
_INTRONS_HASH = "f8791f2e94dac7460c405d33d08b142f84ded7be9f811801a7695cb2e2c41565"


def load_splice(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Primate splice junctions (UCI; Noordewier, Towell & Shavlik 1991): 3,190 windows of 60 bases around a junction, or none.

    Split: 80/10/10 % of the different windows by `reading.rows_of`, since none was published.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `dna/splice.arff`; downloaded where absent.

    Returns:
        Raw texts of 60 letters (A, C, G, T, and a few of N, D, R, S), each a `str`, and one label of each: `"EI"` (exon to
        intron), `"IE"` or `"N"` (neither).
    """
    choice("split", split, SPLITS)
    path = fetch_file("dna/splice.arff", _SPLICE_URL, _SPLICE_HASH, data_dir)
    lines = [line for line in read_text(path).split("\n") if line.strip() and line[0] not in "%@"]
    cells = [[cell.strip() for cell in line.split(",")] for line in lines]
    return _classes(
        split, ["".join(c[1:-1]) for c in cells], [c[-1] for c in cells], [c[0] for c in cells], "splice", _SPLICE_URL
    )


def load_promoters(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Promoters of E. coli (UCI; Towell, Shavlik & Noordewier 1990): 106 windows of 57 bases, half of them promoters.

    Split: 60/20/20 % by `reading.rows_of`, since none was published. Published figures leave out one window at a time.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `dna/promoters.data`; downloaded where absent.

    Returns:
        Raw texts of 57 letters, each a `str`, and one label of each, `"+"` or `"-"`.
    """
    choice("split", split, SPLITS)
    path = fetch_file("dna/promoters.data", _PROMOTERS_URL, _PROMOTERS_HASH, data_dir)
    cells = [[cell.strip() for cell in line.split(",")] for line in read_text(path).split("\n") if line.strip()]
    x, y, names = [c[2].upper() for c in cells], [c[0] for c in cells], [c[1] for c in cells]
    return _classes(split, x, y, names, "promoters", _PROMOTERS_URL, share=0.2)


def load_yeast_genes(split: str, *, data_dir: Path | None = None) -> Sequences:
    """The 270 genes of yeast with introns (NCBI RefSeq GCF_000146045.2), on their coding strand, each base labelled.

    Split: 80/10/10 % of the genes by `reading.rows_of`, since none was published. Related genes may stand in two splits.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder with `dna/`; downloaded where absent.

    Returns:
        Bases `[T_i]` str and their labels `[T_i]` str, `"exon"` or `"intron"`, with the genes' names.
    """
    choice("split", split, SPLITS)
    genes = fetch_file(f"dna/{_GENES}", _YEAST_URL + _GENES, _GENES_HASH, data_dir)
    introns = fetch_file(f"dna/{_INTRONS}", _YEAST_URL + _INTRONS, _INTRONS_HASH, data_dir)
    records = _records(genes)
    labels = {header.split()[0]: np.full(len(bases), "exon", "<U6") for _, header, bases in records}
    for line in read_text(introns).splitlines():
        _, name, begin, end = line.split("\t")
        labels[name][int(begin) - 1 : int(end)] = "intron"  # they count from 1 and include the end
    names = [header.split()[0] for _, header, _ in records]
    rows = rows_of(names, split)
    return Sequences(
        [np.array(list(records[row][2]), np.str_) for row in rows],
        y=[labels[names[row]] for row in rows],
        names=[names[row] for row in rows],
        name="yeast-genes",
        split=split,
        step=STEP,
        source=f"genes with introns of NCBI RefSeq GCF_000146045.2; {_YEAST_URL}",
    )


def load_fasta(path: str | Path, split: str = "train") -> Sequences:
    """The user's own sequences, DNA or protein, from a FASTA file, UTF-8: a line `>name label`, then lines of letters.

    Where every header has exactly two words, the second is the label of the sequence; where none has, there are no labels, and
    what follows the name is a description.

    Args:
        path: the file (`.fasta`, `.fa`, `.fsa`), which has only the split `"train"`; or a folder with `train.fasta` and others.
        split: `"train"`, `"valid"` or `"test"`.

    Returns:
        Raw texts of capital letters, each a `str`, with their names, and one label of each if there are any.

    Raises:
        ValueError: no file for the split, or a file that is not as above; the line is named.
    """
    file, name = own_file(path, split, SUFFIXES)
    records = _records(file)
    words = [header.split() for _, header, _ in records]
    labelled = [len(w) == 2 for w in words]
    if any(labelled) and not all(labelled):
        number, header, _ = records[labelled.index(not labelled[0])]
        raise ValueError(
            f"{file}, line {number}: all headers, or none, must be a name and one label (>name label); received "
            f"'>{header[:50]}', but line {records[0][0]} is '>{records[0][1][:50]}'."
        )
    return Sequences(
        [letters for *_, letters in records],
        y=[w[1] for w in words] if all(labelled) else None,
        names=[w[0] for w in words],
        name=name,
        split=split,
        step="letter",
        source=f"the user's file {file.name}",
    )


def _classes(split: str, x: list[str], y: list[str], names: list[str], name: str, source: str, share: float = 0.1) -> Sequences:
    """The rows of a split of windows with one label each."""
    data = Sequences(x, y=y, names=names, name=name, split=split, step=STEP, source=source)
    return data.take(rows_of(x, split, valid=share, test=share))


def _records(path: Path) -> list[tuple[int, str, str]]:
    """Line number, header without `>`, and capital letters of each sequence of a FASTA file."""
    found: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if line.startswith(">"):
            if not line[1:].strip():
                raise ValueError(f"{path}, line {number}: a header must have a name after '>'; it has none.")
            found.append((number, line[1:].strip(), []))
        elif line and not found:
            raise ValueError(f"{path}, line {number}: a FASTA file must begin with a header, '>name'; received {line[:50]!r}.")
        elif not _LETTERS.fullmatch(line):
            raise ValueError(f"{path}, line {number}: a sequence must be letters, * or -; received {line[:50]!r}.")
        elif line:
            found[-1][2].append(line.upper())
    for number, header, lines in found:
        if not lines:
            raise ValueError(f"{path}, line {number}: after a header there must be a sequence; '>{header[:50]}' has none.")
    return [(number, header, "".join(lines)) for number, header, lines in found]
