"""Trajectories of a pen: the digits of UCI's pendigits, and words in a made-up running hand.

A step is a point: whether the pen is lifted after it, and the way to it from the point before. The first way is from an origin,
with the pen up; what is drawn are the ways from points after which the pen stays down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfseq.checks import choice
from tfseq.data import SPLITS
from tfseq.data.batching import Sequences
from tfseq.files import fetch_file

COLUMNS = ("pen", "dx", "dy")
"""Features of a step: 1 where the pen is lifted after the point, else 0; the way to the point, to the right and upwards."""

_PENDIGITS_URL = "https://raw.githubusercontent.com/kgolofit/MOW-14Z/f2596d1bdc2eec1bdd546cf9da0bd3f47d438f6a/"
_PENDIGITS = {
    "pendigits.tra": "e2b9eb9f0d0467e2b64a4816a3420edf2b8043447576f4b84337aba44a9f97d3",
    "pendigits.tes": "8bd03229c5c5291fefe43e45465dd948d2645bf23328b9d993e0b777666b2015",
}
_PENDIGITS_TRAIN = 6500  # of 7,494; the others are the split valid

_WORDS = {"train": 1000, "valid": 200, "test": 200}
# A letter is some turns of a trochoid (height in that of an e, loop, width), and what is written when the word is done: a dot, a
# bar. The loop says how far the pen goes back at the top: above 1 it loops, at 1 it comes to a point, below 0 it draws an arch.
_LETTERS: dict[str, tuple[list[tuple[float, float, float]], str]] = {
    "e": ([(1.0, 2.6, 1.0)], ""),
    "l": ([(2.2, 3.0, 1.0)], ""),
    "u": ([(1.0, 1.0, 1.0), (1.0, 1.0, 1.0)], ""),
    "i": ([(1.0, 1.0, 1.0)], "dot"),
    "t": ([(1.8, 1.1, 0.9)], "bar"),
    "n": ([(1.0, -0.9, 1.0), (1.0, -0.9, 1.0)], ""),
    "m": ([(1.0, -0.9, 1.0), (1.0, -0.9, 1.0), (1.0, -0.9, 1.0)], ""),
    "j": ([(-1.4, 1.2, 0.9)], "dot"),
    "g": ([(1.0, 2.2, 0.9), (-1.4, 1.6, 0.9)], ""),
}
_MOST_TURNS = 8


def load_pendigits(split: str, *, data_dir: Path | None = None) -> Sequences:
    """UCI's pen-based digits (Alimoglu & Alpaydin 1996): eight points of each, equally far apart on the path of the pen.

    Split: the first 6,500 of the 7,494 digits of the training file are train, the last 994 valid; the test file, of other
    writers, has 3,498.

    Args:
        split: `"train"`, `"valid"` or `"test"`.
        data_dir: folder that has `pendigits/pendigits.tra` and `.tes`; downloaded where absent.

    Returns:
        Pen and ways `[N, 8, 3]` float32, the ways in hundredths of the width and height of the digit's box, the first from its
        centre. Where the pen was lifted in between is not known of these points: it is after the last. A label each, the digit
        as a `str`.

    Raises:
        ValueError: a file is not the published one.
        FileNotFoundError: a file is neither in `data_dir` nor could be downloaded.
    """
    choice("split", split, SPLITS)
    file = "pendigits.tes" if split == "test" else "pendigits.tra"
    path = fetch_file(f"pendigits/{file}", _PENDIGITS_URL + file, _PENDIGITS[file], data_dir)
    table = np.loadtxt(path, np.int32, delimiter=",")
    rows = {"train": slice(_PENDIGITS_TRAIN), "valid": slice(_PENDIGITS_TRAIN, None), "test": slice(None)}[split]
    points, digits = table[rows, :16].reshape(-1, 8, 2), table[rows, 16]
    x: Any = np.zeros((len(points), 8, 3), np.float32)
    x[:, -1, 0] = 1.0
    x[:, :, 1:] = np.diff(points, axis=1, prepend=50)
    return Sequences(
        x,
        y=[str(digit) for digit in digits],
        name="pendigits",
        split=split,
        step="point",
        columns=COLUMNS,
        source=f"Alimoglu & Alpaydin 1996, Pen-Based Recognition of Handwritten Digits, UCI; files of {_PENDIGITS_URL}",
    )


def load_strokes(split: str, *, data_dir: Path | None = None) -> Sequences:
    """Words in a running hand, made by an oscillation of the pen (Hollerbach 1981); synthetic, and made from a seed: no download.

    The pen swings up and down while it goes to the right, and swings to the right and left at the same rate: a trochoid, which
    loops, comes to a point or draws arches as the second swing is strong, equal or opposed. A letter is one to three turns. Dots
    and bars come when the word is done. Each sequence has a hand of its own: size, width, slant, speed, tremor.

    Args:
        split: `"train"` (1000 sequences), `"valid"` or `"test"` (200 each).
        data_dir: not used.

    Returns:
        Pen and ways `[T_i, 3]` float32, 40 <= T_i <= 150, where 1 is the height of a small letter and the first way is from the
        begin of the line; and as `target` the letters written, `[L_i]` str, of one or two words.
    """
    choice("split", split, SPLITS)
    rng = np.random.RandomState([1981, SPLITS.index(split)])  # whose numbers never change
    texts, x = zip(*(_written(rng) for _ in range(_WORDS[split])), strict=True)
    return Sequences(
        list(x),
        target=[np.array(list(text), np.str_) for text in texts],
        name="strokes",
        split=split,
        step="point",
        columns=COLUMNS,
        source="made by tfseq after Hollerbach 1981, An oscillation theory of handwriting, Biological Cybernetics 39",
    )


def _written(rng: np.random.RandomState) -> tuple[str, np.ndarray]:
    """A text of one or two words, and its points `[T, 3]`."""
    per_turn = rng.randint(10, 15)
    size, slant = np.exp(0.1 * rng.normal()), 0.35 + 0.15 * rng.normal()
    width = 0.75 * np.exp(0.12 * rng.normal())
    text = _text(rng)
    strokes: list[np.ndarray] = []
    x = 0.0
    for word in text.split(" "):
        path, marks = [np.array([[x, 0.0]])], []
        for letter in word:
            turns, mark = _LETTERS[letter]
            for height, loop, wide in turns:
                height, wide, loop = (v * np.exp(0.06 * rng.normal()) for v in (height, wide * width, loop))
                angle = 2.0 * np.pi * np.arange(1, per_turn + 1) / per_turn
                swing = wide / (2.0 * np.pi) * (angle + loop * np.sin(angle))
                path.append(np.stack([x + swing, 0.5 * height * (1.0 - np.cos(angle))], -1))
                x += wide
            top = x - 0.5 * wide
            if mark == "dot":
                marks.append(np.array([[top, 1.6]]) + 0.08 * rng.normal(size=(1, 2)))
            elif mark == "bar":
                marks.append(np.array([[-0.3, 1.25], [0.0, 1.27], [0.35, 1.3]]) + [top, 0.0] + 0.04 * rng.normal(size=(3, 2)))
        strokes += [np.concatenate(path), *marks]
        x += 0.8 * width
    points = size * (np.concatenate(strokes) + 0.012 * rng.normal(size=(sum(map(len, strokes)), 2)))
    points[:, 0] += slant * points[:, 1]
    lifted = np.zeros(len(points))
    lifted[np.cumsum([len(stroke) for stroke in strokes]) - 1] = 1.0
    ways = np.diff(points.round(3), axis=0, prepend=0.0)  # rounded: the last bits of a sine are the machine's
    return text, np.column_stack([lifted, ways.round(3)]).astype(np.float32)


def _text(rng: np.random.RandomState) -> str:
    """Letters of four to `_MOST_TURNS` turns together, in one word or two."""
    letters, wanted = sorted(_LETTERS), rng.randint(4, _MOST_TURNS + 1)
    word: list[str] = []
    while wanted:
        letter = letters[rng.randint(len(letters))]
        turns = len(_LETTERS[letter][0])
        if turns <= wanted:
            word.append(letter)
            wanted -= turns
    cut = rng.randint(len(word)) if len(word) > 3 else 0  # 0: one word
    return "".join(word[:cut]) + (" " if cut else "") + "".join(word[cut:])
