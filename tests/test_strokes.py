"""Trajectories of a pen: what the columns say, the made-up hand, the published digits."""

import numpy as np
import pytest

from tfseq.data import DATASETS, SPLITS, data_hash, load_dataset, strokes
from tfseq.data.strokes import COLUMNS, load_pendigits, load_strokes


def test_strokes_are_words_of_several_strokes():
    data = load_dataset("strokes", "valid")
    assert (len(data), data.name, data.split, data.step, tuple(data.columns)) == (200, "strokes", "valid", "point", COLUMNS)
    assert data.lengths.min() >= 40 and data.lengths.max() <= 150
    for x, text in zip(data.x, data.target, strict=True):
        assert x.dtype == np.float32 and x.shape[1] == 3 and np.isin(x[:, 0], (0, 1)).all() and x[-1, 0] == 1
        word = "".join(text)
        # a stroke for each word, and for each dot and bar
        assert x[:, 0].sum() == len(word.split(" ")) + sum(word.count(letter) for letter in "ijt")
    points = np.concatenate([x[:, 1:].cumsum(0) for x in data.x])
    assert (
        -2.5 < points[:, 1].min() < -1 and 2 < points[:, 1].max() < 4
    )  # a small letter is 1 high, with what goes below and above
    assert np.mean([x[:, 1].sum() > 1 for x in data.x]) > 0.95  # to the right


class Still:
    """Random numbers without any: the mean hand, ten points a turn."""

    def randint(self, low: int, high: int) -> int:
        return low

    def normal(self, size: tuple[int, ...] | None = None) -> float | np.ndarray:
        return 0.0 if size is None else np.zeros(size)


def test_an_e_loops_an_n_arches_and_a_dot_comes_last(monkeypatch):
    monkeypatch.setattr(strokes, "_text", lambda rng: "eni")
    text, x = strokes._written(Still())
    points = x[:, 1:].astype(float).cumsum(0)
    points[:, 0] -= 0.35 * points[:, 1]  # upright
    assert text == "eni" and x[:, 0].nonzero()[0].tolist() == [40, 41] and len(x) == 1 + 4 * 10 + 1
    np.testing.assert_allclose(points[:41:10], [[0.75 * k, 0] for k in range(5)], atol=0.03)  # rounded to 0.001 forty times
    np.testing.assert_allclose(points[5:41:10, 1], 1, atol=0.03)
    back, on = (points[top + 1, 0] - points[top - 1, 0] for top in (5, 15))
    assert back < -0.1 < 0.1 < on  # at the top of the e, and of the n
    np.testing.assert_allclose(points[41], [3.5 * 0.75, 1.6], atol=0.03)  # over the i
    ways = x[:, 1:]
    np.testing.assert_array_equal(ways[0], 0)


def test_strokes_are_the_same_each_time_and_differ_between_splits():
    first, again = (load_strokes("test") for _ in range(2))
    assert data_hash(first) == data_hash(again)
    assert len({data_hash(load_strokes(split).take(range(5))) for split in SPLITS}) == 3
    x = first.x[0]
    np.testing.assert_array_equal(
        x[:, 1:], x[:, 1:].astype(float).round(3).astype(np.float32)
    )  # no last bits of a machine's sine
    with pytest.raises(ValueError, match="`split` must be one of"):
        load_strokes("dev")


def test_pendigits_are_ways_between_points(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    points, digits = rng.integers(0, 101, (5, 16)), [3, 0, 9, 1, 3]
    lines = [", ".join(f"{v:3d}" for v in row) + f", {digit}" for row, digit in zip(points, digits, strict=True)]
    for name, content in (("pendigits.tra", lines), ("pendigits.tes", lines[:2])):
        (tmp_path / "pendigits").mkdir(exist_ok=True)
        (tmp_path / "pendigits" / name).write_text("\n".join(content) + "\n")
    with pytest.raises(ValueError, match="pendigits.tra must have SHA-256"):
        load_pendigits("train", data_dir=tmp_path)
    monkeypatch.setattr("tfseq.files.check_sha256", lambda *_: None)
    monkeypatch.setattr(strokes, "_PENDIGITS_TRAIN", 3)
    rows = {"train": [0, 1, 2], "valid": [3, 4], "test": [0, 1]}
    for split, chosen in rows.items():
        data = load_dataset("pendigits", split, data_dir=tmp_path)
        assert data.y == [str(digits[i]) for i in chosen] and data.one_label
        assert data.x.dtype == np.float32 and data.x.shape == (len(chosen), 8, 3)
        assert data.x[:, :, 0].tolist() == [[0] * 7 + [1]] * len(chosen)
        np.testing.assert_array_equal(50 + data.x[:, :, 1:].cumsum(1), points[chosen].reshape(-1, 8, 2))
        assert data.padded()["x"].shape == data.x.shape


def test_the_published_pendigits(data_folder):
    sizes = {"train": 6500, "valid": 994, "test": 3498}  # `wc -l`: 7494 and 3498
    for split, size in sizes.items():
        data = load_dataset("pendigits", split, data_dir=data_folder)
        assert len(data) == size and sorted(set(data.y)) == list("0123456789")
        points = 50 + data.x[:, :, 1:].cumsum(1)
        assert points.min() == 0 and points.max() == 100
    assert DATASETS["pendigits"].splits == SPLITS
