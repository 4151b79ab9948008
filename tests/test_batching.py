"""Data sets of sequences and their streams: nothing is lost, and epochs are functions of (seed, epoch) alone."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tfseq.data import data_hash
from tfseq.data.batching import Sequences, epoch_batches, num_batches, num_windows, stream, windows
from tfseq.data.shards import Shards, write_shards

LENGTHS = [3, 0, 5, 1, 2]


@pytest.fixture(scope="module")
def data() -> Sequences:
    """Five sequences with missing values, controls, labels and names."""
    rng = np.random.default_rng(0)
    return Sequences(
        x=[rng.normal(size=(n, 2)).astype(np.float32) for n in LENGTHS],
        observed=[rng.random((n, 2)) < 0.5 for n in LENGTHS],
        u=[rng.normal(size=(n, 1)).astype(np.float32) for n in LENGTHS],
        y=[rng.integers(-1, 4, n).astype(np.int32) for n in LENGTHS],
        names=list("abcde"),
        name="toy",
    )


def assert_rows(batch: dict[str, np.ndarray], data: Sequences) -> None:
    """Each row of a batch is the sequence that `row` names, zeros after its end."""
    for place, row in enumerate(batch["row"]):
        n = LENGTHS[row]
        np.testing.assert_array_equal(batch["mask"][place], np.arange(batch["mask"].shape[1]) < n)
        for name in ("x", "observed", "u", "y"):
            np.testing.assert_array_equal(batch[name][place, :n], getattr(data, name)[row])
            assert not batch[name][place, n:].any()


def test_a_stream_without_a_seed_is_one_pass_of_every_row_sorted_by_length(data: Sequences) -> None:
    batches = list(stream(data, 2).as_numpy_iterator())
    assert len(batches) == num_batches(data, 2) == int(stream(data, 2).cardinality()) == 3
    assert np.concatenate([b["row"] for b in batches]).tolist() == np.argsort(LENGTHS, kind="stable").tolist()
    for batch in batches:
        assert batch["x"].dtype == np.float32
        assert batch["mask"].dtype == batch["observed"].dtype == bool
        assert batch["mask"].shape[1] == max(1, *(LENGTHS[i] for i in batch["row"]))  # no step more than needed, one at least
        assert_rows(batch, data)


def test_no_stream_is_autotuned(data: Sequences, tmp_path: Path) -> None:
    """The autotuner's loop sleeps up to a minute, and now and then the end of a pass waits for it."""
    blocks = Sequences(np.zeros([4, 3, 2], np.float32))
    texts = Sequences([np.zeros(9, np.int32)])
    write_shards(blocks, tmp_path / "shards")
    streams = [
        stream(data, 2),
        stream(data, 2, seed=0),
        stream(blocks, 2),
        windows(texts, 2, 3),
        Shards(tmp_path / "shards").stream(2),
    ]
    for batches in streams:
        assert batches.options().autotune.enabled is False
        assert batches.cache().take(1).options().autotune.enabled is False  # what is made of it, as in `fit`


def test_a_stream_with_a_seed_has_every_row_once_an_epoch_without_end(data: Sequences) -> None:
    batches = stream(data, 2, seed=7)
    assert batches.cardinality() < 0  # infinite
    rows = [b["row"].tolist() for b in batches.take(12).as_numpy_iterator()]
    for epoch in range(4):
        ours = rows[3 * epoch : 3 * epoch + 3]
        assert sorted(np.concatenate(ours)) == [0, 1, 2, 3, 4]
        assert ours == [list(b) for b in epoch_batches(data.lengths, 2, seed=7, epoch=epoch)]
    assert len({str(rows[3 * e : 3 * e + 3]) for e in range(4)}) > 1
    for batch in batches.take(3).as_numpy_iterator():
        assert_rows(batch, data)


def test_bucketing_pads_far_less_than_a_random_order_and_still_shuffles() -> None:
    lengths = np.random.default_rng(1).geometric(0.02, 300)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(int(lengths[b].max()) * len(b) for b in batches)

    shuffled = np.random.default_rng(0).permutation(300)
    anyhow, best = padded(np.split(shuffled, 15)), padded(epoch_batches(lengths, 20))
    epochs = [epoch_batches(lengths, 20, seed=0, epoch=e) for e in range(2)]
    for batches in epochs:
        # half of what a random order wastes would already be a gain; the 10 % of jitter cost about as much
        assert padded(batches) - lengths.sum() < 0.5 * (anyhow - lengths.sum())
        assert padded(batches) >= best
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}  # other neighbours, not only another order
    assert [len(b) for b in epochs[0]].count(20) == 15


def test_an_augmentation_is_a_function_of_seed_epoch_and_row_in_the_first_epochs_only() -> None:
    plain = Sequences([np.full((n, 1), i, np.float32) for i, n in enumerate(LENGTHS)])
    varied = replace(plain, augmentation=lambda x, rng: x + rng.random())

    def epoch(number: int, batch_size: int = 2, seed: int = 0) -> list[float]:
        """What was added to each row in an epoch."""
        batches = stream(varied, batch_size, seed=seed, first_epoch=number, augmented_epochs=2)
        first = {}
        for batch in batches.take(num_batches(varied, batch_size)).as_numpy_iterator():
            first |= {int(row): float(x[0, 0]) - row for row, x in zip(batch["row"], batch["x"], strict=True)}
        return [first[row] for row, length in enumerate(LENGTHS) if length]

    drawn = [epoch(0), epoch(1), epoch(0, seed=1)]
    assert len({round(float(a), 6) for values in drawn for a in values}) == 12  # all different
    np.testing.assert_array_equal(epoch(1, batch_size=5), drawn[1])  # whatever stands beside it
    assert epoch(2) == [0.0] * 4
    for settings, cause in (({}, "`seed`"), ({"seed": 0}, "an augmentation of the data set")):
        with pytest.raises(ValueError, match=f"`augmented_epochs` must be 0 without {cause}"):
            stream(plain, 2, augmented_epochs=1, **settings)


def test_another_seed_is_another_order() -> None:
    lengths = np.random.default_rng(1).integers(1, 50, 40)
    first, again, other = (np.concatenate(epoch_batches(lengths, 8, seed=s, epoch=3)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_taking_rows_takes_all_that_belongs_to_them(data: Sequences) -> None:
    taken = data.take([4, 0])
    assert (taken.names, taken.name, taken.lengths.tolist(), len(taken)) == (["e", "a"], "toy", [2, 3], 2)
    for name in ("x", "observed", "u", "y"):
        for a, i in zip(getattr(taken, name), (4, 0), strict=True):
            np.testing.assert_array_equal(a, getattr(data, name)[i])
    bare = Sequences(data.x).take([2])
    assert bare.observed is None
    assert bare.u is None
    assert bare.y is None
    assert len(bare.names) == 0


def test_all_sequences_as_one_batch(data: Sequences) -> None:
    batch = data.padded()
    assert batch["x"].shape == (5, 5, 2)
    assert_rows(batch, data)


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_arrays_of_sequences_are_batched_as_lists_of_them_are(num_steps: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(7, num_steps, 3)).astype(">f4"),
        "observed": rng.random((7, num_steps, 3)) < 0.5,
        "u": rng.normal(size=(7, num_steps, 2)),
        "y": rng.integers(-1, 4, (7, num_steps)).astype(np.int32),
    }
    of_arrays = Sequences(**arrays, names=np.array(list("abcdefg")), augmentation=lambda x, rng: x + rng.random())
    of_lists = replace(of_arrays, **{name: list(array) for name, array in arrays.items()}, names=list("abcdefg"))
    assert of_arrays.lengths.dtype == of_lists.lengths.dtype == np.int32
    np.testing.assert_array_equal(of_arrays.lengths, of_lists.lengths)

    def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].dtype.isnative
            np.testing.assert_array_equal(one[name], other[name])

    assert_same(of_arrays.padded(), of_lists.padded())
    assert not np.shares_memory(of_arrays.padded()["y"], arrays["y"])  # a batch may be changed
    for settings in ({}, {"seed": 3}, {"seed": 3, "augmented_epochs": 1}):
        streams = [stream(data, 3, **settings).take(6).as_numpy_iterator() for data in (of_arrays, of_lists)]
        for one, other in zip(*streams, strict=True):
            assert_same(one, other)
    for rows in ([4, 0, -1, 4], []):
        taken = of_arrays.take(rows)
        assert all(isinstance(getattr(taken, name), np.ndarray) and len(getattr(taken, name)) == len(rows) for name in arrays)
        assert list(taken.names) == [list("abcdefg")[i] for i in rows]
        if rows:
            assert_same(taken.padded(), of_lists.take(rows).padded())


def test_lists_and_arrays_may_stand_side_by_side() -> None:
    x = np.arange(12.0).reshape(2, 3, 2)
    data = Sequences(x, y=[np.zeros(3, int), np.ones(3, int)], u=[x[0], x[1]])
    np.testing.assert_array_equal(data.padded()["y"], [[0, 0, 0], [1, 1, 1]])
    for y in (np.zeros((2, 4), int), [np.zeros(4, int)] * 2):
        with pytest.raises(ValueError, match="`y` of sequence 0 has 4 steps, but `x` has 3"):
            Sequences(x, y=y)
    ragged = np.array([np.zeros((1, 2)), np.zeros((3, 2))], dtype=object)  # one array, but of arrays
    assert Sequences(ragged).lengths.tolist() == [1, 3] and Sequences(ragged).padded()["x"].shape == (2, 3, 2)


def test_the_shape_of_pictures_has_as_many_pixels_as_x() -> None:
    data = Sequences(np.zeros((5, 1, 6), np.float32), shape=(2, 3))
    assert data.take([1]).shape == (2, 3) and Sequences([], shape=(2, 3)).shape == (2, 3)
    for shape in ((2, 2), (6,), (-2, -3), (3, 2, 1)):
        with pytest.raises(ValueError, match=r"`shape` must be rows and columns.*received .* for x\[0\] of shape \[1, 6\]"):
            replace(data, shape=shape)
    with pytest.raises(ValueError, match="`shape`"):
        Sequences([np.zeros(4, np.int32)], shape=(2, 2))


def test_what_does_not_fit_together_is_an_error(data: Sequences) -> None:
    with pytest.raises(ValueError, match="`u` must have one array per sequence: got 4 for 5"):
        Sequences(data.x, u=data.u[:4])
    with pytest.raises(ValueError, match="`u` of sequence 2 has 3 steps, but `x` has 5"):
        Sequences(data.x, u=[data.u[0], data.u[1], data.u[2][:3], *data.u[3:]])
    with pytest.raises(ValueError, match="`y` of sequence 0 has 2 steps, but `x` has 3"):
        Sequences(data.x, y=[data.y[0][:2], *data.y[1:]])
    with pytest.raises(ValueError, match="no sequences .*'toy'"):
        stream(data.take([]), 2)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1; received -1"):
        stream(data, -1)


# Tokens, labels of whole sequences, targets.

WORDS = [np.array(["we", "run"]), np.array([], "<U1"), np.array(["ça", "日本語", "!"])]


def test_tokens_are_padded_with_empty_strings_and_streamed_as_utf8() -> None:
    data = Sequences(WORDS, y=[np.array([f"T{len(w)}" for w in words], "<U3") for words in WORDS], names=list("abc"))
    batch = data.padded()
    assert batch["x"].tolist() == [["we", "run", ""], ["", "", ""], ["ça", "日本語", "!"]]
    assert batch["y"].tolist() == [["T2", "T3", ""], ["", "", ""], ["T2", "T3", "T1"]]
    assert batch["mask"].tolist() == [[True, True, False], [False] * 3, [True] * 3]
    for found in stream(data, 3).as_numpy_iterator():
        assert [[cell.decode() for cell in row] for row in found["x"]] == batch["x"][found["row"]].tolist()
        np.testing.assert_array_equal(found["mask"], batch["mask"][found["row"]])
    assert data.take([2]).padded()["x"].tolist() == [["ça", "日本語", "!"]] and not data.is_text and not data.one_label


@pytest.mark.parametrize("y", [["neg", "pos", "neg"], np.array([4, -1, 2]), [np.int64(4), np.int64(-1), np.int64(2)]])
def test_one_label_of_each_whole_sequence(y) -> None:
    data = Sequences(WORDS, y=y)
    assert data.one_label
    expected = np.asarray(list(y))
    batch = data.padded()
    np.testing.assert_array_equal(batch["y"], expected)
    assert batch["y"].shape == (3,) and (batch["y"].dtype == np.int32 or batch["y"].dtype.kind == "U")
    np.testing.assert_array_equal(data.take([2, 0]).padded()["y"], expected[[2, 0]])
    for found in stream(data, 2, seed=0).take(4).as_numpy_iterator():
        values = [v.decode() if isinstance(v, bytes) else v for v in found["y"]]
        assert values == expected[found["row"]].tolist()


def test_labels_of_pictures_stay_one_a_step() -> None:
    data = Sequences(np.zeros((4, 1, 9), np.float32), y=np.arange(4)[:, None])
    assert not data.one_label and data.padded()["y"].shape == (4, 1)
    assert next(stream(data, 2).as_numpy_iterator())["y"].shape == (2, 1)


@pytest.mark.parametrize("kind", [np.str_, np.int32])
def test_targets_have_lengths_of_their_own(kind) -> None:
    target = [np.arange(n).astype(kind) for n in (1, 4, 0)]
    data = Sequences(WORDS, target=target)
    batch = data.padded()
    assert batch["target"].shape == (3, 4) and batch["target_mask"].sum(1).tolist() == [1, 4, 0]
    for place, array in enumerate(target):
        np.testing.assert_array_equal(batch["target"][place, : len(array)], array)
        assert not batch["target"][place, len(array) :].astype(bool).any()
    alone = data.take([2]).padded()
    assert alone["target"].shape == alone["target_mask"].shape == (1, 1) and not alone["target_mask"].any()
    for found in stream(data, 2).as_numpy_iterator():
        width = found["target"].shape[1]
        np.testing.assert_array_equal(found["target_mask"], batch["target_mask"][found["row"]][:, :width])
    block = Sequences(np.zeros((2, 3), np.int32), target=np.ones((2, 5), np.int32))  # arrays of one length, too
    assert next(stream(block, 2).as_numpy_iterator())["target_mask"].shape == (2, 5)


def test_raw_texts_are_kept_but_not_batched() -> None:
    data = Sequences(["a fine film", "", "no"], y=["pos", "neg", "neg"], target=["x", "yy", ""])
    assert data.is_text and data.lengths.tolist() == [11, 0, 2]
    taken = data.take([2, 0])
    assert (taken.x, taken.y, taken.target) == (["no", "a fine film"], ["neg", "pos"], ["", "x"])
    for do in (data.padded, lambda: stream(data, 2), lambda: windows(data, 2, 2)):
        with pytest.raises(ValueError, match="`data.x` must be arrays.*raw texts.*'a fine film'"):
            do()
    with pytest.raises(ValueError, match="`data.target` must be arrays"):
        Sequences(WORDS, target=data.target).padded()


def test_fields_of_two_kinds_are_errors() -> None:
    with pytest.raises(ValueError, match="`x` must be all raw texts.*item 1"):
        Sequences(["abc", np.array(["a"])])
    with pytest.raises(ValueError, match="`y` must be all one label of the whole sequence.*item 2"):
        Sequences(WORDS, y=["a", "b", np.array(["c"] * 3)])
    with pytest.raises(ValueError, match="`target` must be all raw texts.*item 1"):
        Sequences(WORDS, target=["a", np.array(["c"]), "c"])
    with pytest.raises(ValueError, match="`target` must have one item per sequence: got 1 for 3"):
        Sequences(WORDS, target=["a"])
    with pytest.raises(ValueError, match=r"`target` of sequence 0 must be tokens \[L\] or a str; received shape \[2, 2\]"):
        Sequences(WORDS[:1], target=[np.zeros((2, 2))])
    with pytest.raises(ValueError, match="`y` of sequence 2 has 1 steps, but `x` has 3"):
        Sequences(WORDS, y=[np.array(["a", "b"]), np.array([], str), np.array(["c"])])


def test_hashes_of_text_do_not_depend_on_its_width_and_those_of_numbers_are_what_they_were() -> None:
    one = Sequences(WORDS, y=["a", "b", "c"], target=["x", "y", "z"])
    wide = Sequences([w.astype("<U30") for w in WORDS], y=np.array(["a", "b", "c"], "<U7"), target=["x", "y", "z"])
    assert data_hash(one) == data_hash(wide)
    others = [
        replace(one, y=["a", "b", "d"]),
        replace(one, target=["x", "y", "zz"]),
        replace(one, target=None),
        replace(one, x=[np.array(["w", "erun"]), *WORDS[1:]]),
        replace(one, x=[np.array([["we", "run"]]), *WORDS[1:]], y=None),
    ]
    assert len({data_hash(data) for data in [one, *others]}) == 6
    # git show 5d4650d:tfseq/data/__init__.py, its data_hash of the same
    numbers = Sequences([np.arange(6, dtype=np.float32).reshape(3, 2)], y=[np.array([1, -1, 2], np.int32)])
    assert data_hash(numbers) == "b3c68e4c39281f4b4a1e15e92f302b60e11e419fe7eaaad2ee49c524c2fb1f33"
    with pytest.raises(ValueError, match="`x` must hold numeric arrays, or str; received dtype object"):
        data_hash(Sequences([np.array(["a", None])]))


# Batches of so many padded steps.


@pytest.mark.parametrize("batch_steps", [1, 60, 500, 10**6])
def test_batches_by_steps_hold_no_more_than_they_may_in_equally_many_batches_an_epoch(batch_steps: int) -> None:
    lengths = np.random.default_rng(1).geometric(0.05, 300) - 1
    data = Sequences([np.zeros(n, np.int32) for n in lengths])
    epochs = [epoch_batches(lengths, 1, seed=3, epoch=e, batch_steps=batch_steps) for e in range(5)]
    sorted_once = epoch_batches(lengths, 1, batch_steps=batch_steps)
    assert {len(batches) for batches in [*epochs, sorted_once]} == {num_batches(data, 1, batch_steps=batch_steps)}
    for batches in [*epochs, sorted_once]:
        assert sorted(np.concatenate(batches)) == list(range(300))
        assert all(len(b) == 1 or len(b) * max(1, lengths[b].max()) <= batch_steps for b in batches)
    assert (np.diff([lengths[i] for b in sorted_once for i in b]) >= 0).all()
    again = epoch_batches(lengths, 1, seed=3, epoch=2, batch_steps=batch_steps)
    assert all((a == b).all() for a, b in zip(again, epochs[2], strict=True))
    if batch_steps == 500:
        assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}
        # a batch is full but for the rounding of lengths, about 10 %, and its last row
        assert np.mean([len(b) * lengths[b].max() for b in epochs[0]]) > 0.75 * batch_steps


def test_streams_by_steps(data: Sequences) -> None:
    found = list(stream(data, 99, batch_steps=6).as_numpy_iterator())
    assert len(found) == num_batches(data, 99, batch_steps=6) == int(stream(data, 99, batch_steps=6).cardinality())
    assert sorted(np.concatenate([b["row"] for b in found])) == [0, 1, 2, 3, 4]
    for batch in found:
        assert batch["mask"].size <= 6
        assert_rows(batch, data)
    block = Sequences(np.zeros((7, 3, 2), np.float32))
    assert [len(b["row"]) for b in stream(block, 99, batch_steps=7).as_numpy_iterator()] == [2, 2, 2, 1]
    assert num_batches(block, 99, batch_steps=7) == 4
    with pytest.raises(ValueError, match="`batch_steps` must be at least 1; received 0"):
        stream(data, 2, batch_steps=0)


# Windows.


def lanes_of(batches: list[dict[str, np.ndarray]], name: str = "x") -> list[list]:
    """What each lane of an epoch has, one window after the other."""
    return [[v for b in batches for v in b[name][lane][b["mask"][lane]].tolist()] for lane in range(len(batches[0]["row"]))]


@pytest.mark.parametrize(("batch_size", "num_steps"), [(1, 4), (3, 4), (4, 3), (5, 100), (30, 2)])
def test_one_pass_of_windows_is_the_text_in_lanes(batch_size: int, num_steps: int) -> None:
    parts = [np.arange(0, 7), np.arange(7, 7), np.arange(7, 20), np.arange(20, 23)]
    data = Sequences([part.astype(np.int32) for part in parts])
    found = windows(data, batch_size, num_steps)
    batches = list(found.as_numpy_iterator())
    assert len(batches) == num_windows(data, batch_size, num_steps) == int(found.cardinality())
    lanes = lanes_of(batches)
    assert list(chain(*lanes)) == list(range(23))  # each symbol once, and lanes are consecutive
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
    begins = {0, 7, 20} | {lane[0] for lane in lanes if lane}
    assert {x for x, new in zip(list(chain(*lanes)), list(chain(*lanes_of(batches, "fresh"))), strict=True) if new} == begins
    for batch in batches:
        assert batch["x"].shape == batch["mask"].shape == batch["fresh"].shape == (batch_size, num_steps)
        assert batch["row"].tolist() == list(range(batch_size)) and batch["x"].dtype == np.int32
        assert not batch["fresh"][~batch["mask"]].any() and not batch["x"][~batch["mask"]].any()
        assert (np.diff(batch["mask"].astype(int), axis=1) <= 0).all()  # padding is on the right
    for batch in batches[:-2]:  # before the last columns
        assert batch["mask"].all()


def test_epochs_of_windows_rotate_one_text() -> None:
    data = Sequences([np.arange(50)])
    per_epoch = num_windows(data, 4, 5)
    every = list(windows(data, 4, 5, seed=1).take(3 * per_epoch).as_numpy_iterator())
    assert windows(data, 4, 5, seed=1).cardinality() < 0
    starts = set()
    for epoch in range(3):
        batches = every[epoch * per_epoch : (epoch + 1) * per_epoch]
        text = list(chain(*lanes_of(batches)))
        assert text == np.roll(np.arange(50), -text[0]).tolist()  # cyclic, every symbol once
        fresh = {x for x, new in zip(text, list(chain(*lanes_of(batches, "fresh"))), strict=True) if new}
        assert fresh == {lane[0] for lane in lanes_of(batches)} | {0}
        starts.add(text[0])
    assert len(starts) == 3
    resumed = windows(data, 4, 5, seed=1, first_epoch=2).take(per_epoch).as_numpy_iterator()
    for one, other in zip(every[2 * per_epoch :], resumed, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])


def test_epochs_of_windows_shuffle_several_sequences_of_tokens() -> None:
    data = Sequences([np.array([f"{name}{i}" for i in range(6)]) for name in "abcdefgh"])
    per_epoch = num_windows(data, 2, 7)
    orders = set()
    every = list(windows(data, 2, 7, seed=0).take(4 * per_epoch).as_numpy_iterator())
    for epoch in range(4):
        text = [x.decode() for x in list(chain(*lanes_of(every[epoch * per_epoch : (epoch + 1) * per_epoch])))]
        names = [x[0] for x in text[::6]]
        assert sorted(names) == list("abcdefgh") and text == [f"{name}{i}" for name in names for i in range(6)]
        orders.add(tuple(names))
    assert len(orders) == 4


def test_windows_of_what_has_no_symbols_are_errors(data: Sequences) -> None:
    with pytest.raises(ValueError, match=r"`data.x` must be symbols or tokens.*received shape \[3, 2\]"):
        windows(data, 2, 3)
    with pytest.raises(ValueError, match="must have steps; all its 1 sequences are empty"):
        windows(Sequences([np.zeros(0, int)]), 2, 3)
    with pytest.raises(ValueError, match="no sequences"):
        windows(Sequences([]), 2, 3)
    with pytest.raises(ValueError, match="`num_steps` must be at least 1; received 0"):
        windows(Sequences([np.zeros(3, int)]), 2, 0)
