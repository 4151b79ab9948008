"""Data sets of sequences and their streams: nothing is lost, and epochs are functions of (seed, epoch) alone."""

from dataclasses import replace

import numpy as np
import pytest

from tfseq.data.batching import Sequences, epoch_batches, num_batches, stream

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
