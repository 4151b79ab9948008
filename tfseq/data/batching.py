"""Variable-length sequences -> padded batches: bucketed by length, shuffled by (seed, epoch), streamed with `tf.data`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# How far a sequence may move from its place in the order of lengths, as a share of its length: batches then
# differ from epoch to epoch, and still waste few padded steps.
_LENGTH_JITTER = 0.1

_FIELDS = ("x", "observed", "u", "y")

Batch = dict[str, np.ndarray]
Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Sequences:
    """A data set of sequences of different lengths, as plain arrays.

    >>> import numpy as np, tfseq
    >>> data = tfseq.Sequences([np.zeros((3, 2), np.float32), np.ones((1, 2), np.float32)], name="mine")
    >>> len(data), data.lengths.tolist(), data.padded()["x"].shape
    (2, [3, 1], (2, 3, 2))

    Data of vectors, such as pictures, has sequences of one step. Where all sequences have one length, a field may be one array
    `[N, T, ...]`; it is then batched at once, and not row by row.

    Attributes:
        x: observations, one array per sequence: `[T_i, D]` float32, or `[T_i]` int32 for symbols.
        observed: which features were measured, each `[T_i, D]` bool; None where all were.
        u: controls, each `[T_i, U]` float32; None where there are none.
        y: labels, each `[T_i]` int32, -1 where a step's is not known; None where there are none.
        names: what each sequence is called (a piece, a file); empty where it has no name.
        name: the data set's name; split: `"train"`, `"valid"` or `"test"`.
        step: what one time step is, for example `"quarter note"`.
        source: where the data came from, for people.
        augmentation: how a training sequence may be varied and still be one: (x `[T, D]`, random numbers) -> x of the same
            shape; None where nothing is known. Only training asks for it.
        shape: rows and columns of a picture, where each x[t] is one, row after row; None where it is none, or they are not known.
    """

    x: Sequence[np.ndarray]
    observed: Sequence[np.ndarray] | None = None
    u: Sequence[np.ndarray] | None = None
    y: Sequence[np.ndarray] | None = None
    names: Sequence[str] = ()
    name: str = ""
    split: str = ""
    step: str = ""
    source: str = ""
    augmentation: Augmentation | None = None
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.shape is not None and len(self.x):
            size = np.shape(self.x[0])[1:]
            if len(self.shape) != 2 or min(self.shape) < 1 or size != (math.prod(self.shape),):
                raise ValueError(
                    f"`shape` must be rows and columns of a picture, whose product is D of `x`; received {self.shape} for x[0] "
                    f"of shape {list(np.shape(self.x[0]))}."
                )
        for field in ("observed", "u", "y"):
            other = getattr(self, field)
            if other is None:
                continue
            if len(other) != len(self.x):
                raise ValueError(f"`{field}` must have one array per sequence: got {len(other)} for {len(self.x)} sequences.")
            if _is_block(self.x) and _is_block(other) and self.x.shape[1] == other.shape[1]:
                continue
            for i, (a, b) in enumerate(zip(self.x, other, strict=True)):
                if len(a) != len(b):
                    raise ValueError(f"`{field}` of sequence {i} has {len(b)} steps, but `x` has {len(a)}.")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each sequence, `[N]` int32."""
        if _is_block(self.x):
            return np.full(len(self.x), self.x.shape[1], np.int32)
        return np.array([len(a) for a in self.x], np.int32)

    def take(self, indices: Iterable[int]) -> Sequences:
        """The sequences at `indices`, in that order."""
        picked: dict[str, Any] = {}
        indices = list(indices)
        for name in (*_FIELDS, "names"):
            items = getattr(self, name)
            if isinstance(items, np.ndarray):
                picked[name] = items[np.array(indices, int)]
            else:
                picked[name] = [items[i] for i in indices] if items else items
        return replace(self, **picked)

    def padded(self) -> Batch:
        """All as one batch: `x` `[N, T, ...]`, `mask` `[N, T]`, `row` `[N]`, and `observed`, `u`, `y` if there are any."""
        return _pad(self, range(len(self)))


def _is_block(items: Any) -> TypeGuard[np.ndarray]:
    """Whether the arrays of sequences of one length stand in one array `[N, T, ...]`."""
    return isinstance(items, np.ndarray) and items.ndim >= 2


def _pad(data: Sequences, rows: Iterable[int], vary: Callable[[int, np.ndarray], np.ndarray] | None = None) -> Batch:
    """The given rows as a right-padded batch with at least one step; `row` is their place in the data set.

    `vary`: (row, its x) -> what stands in the place of its x.
    """
    rows = np.array(list(rows), int)
    lengths = data.lengths[rows]
    num_steps = max(1, int(lengths.max(initial=0)))
    batch = {"mask": np.arange(num_steps) < lengths[:, None], "row": rows.astype(np.int32)}
    for name in _FIELDS:
        arrays = getattr(data, name)
        if arrays is None:
            continue
        dtype = np.result_type(*([arrays] if _is_block(arrays) else arrays))  # one that holds all
        if _is_block(arrays) and arrays.shape[1] == num_steps and (vary is None or name != "x"):
            batch[name] = np.asarray(arrays[rows], dtype)
            continue
        out = np.zeros((len(rows), num_steps, *arrays[0].shape[1:]), dtype)
        for target, row in zip(out, rows, strict=True):
            array = arrays[row] if vary is None or name != "x" else vary(row, arrays[row])
            target[: len(array)] = array
        batch[name] = out
    return batch


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int | None = None, epoch: int = 0) -> list[np.ndarray]:
    """Rows of each batch of one epoch, bucketed by length: a function of (seed, epoch) alone.

    With a seed, the lengths are jittered by 10 % before sorting and the batches come in random order; without one,
    the rows are sorted by length and nothing is random.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    keys = lengths if rng is None else lengths * np.exp(rng.normal(0.0, _LENGTH_JITTER, len(lengths)))
    tie = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = np.lexsort((tie, keys))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def stream(
    data: Sequences, batch_size: int, *, seed: int | None = None, first_epoch: int = 0, augmented_epochs: int = 0
) -> tf.data.Dataset:
    """Padded batches as a `tf.data.Dataset` of dicts, for `fit`, `evaluate` and `predict`.

    With a seed it never ends, one epoch after the other from `first_epoch` on, so that training can resume where it
    stopped: pass `steps_per_epoch=num_batches(data, batch_size)` to `fit`. Epochs before `augmented_epochs` vary each
    sequence by `data.augmentation`, a function of (seed, epoch, row). Without a seed it is one pass, for evaluation.
    """
    import tensorflow as tf

    if not len(data):
        raise ValueError(f"`data` has no sequences (data set {data.name!r}, split {data.split!r}); nothing can be streamed.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; received {batch_size}.")
    augmentation = data.augmentation
    if augmented_epochs and (seed is None or augmentation is None):
        raise ValueError(
            f"`augmented_epochs` must be 0 without {'`seed`' if seed is None else 'an augmentation of the data set'}; "
            f"received {augmented_epochs} (data set {data.name!r})."
        )

    if not augmented_epochs and all(_is_block(a) for f in _FIELDS if (a := getattr(data, f)) is not None):
        return _array_stream(data, batch_size, seed, first_epoch)

    def generate() -> Iterator[Batch]:
        for epoch in itertools.count(first_epoch) if seed is not None else [0]:

            def varied(row: int, x: np.ndarray, key: tuple = (seed, epoch)) -> np.ndarray:
                return augmentation(x, np.random.default_rng([*key, row]))  # type: ignore[misc]

            for rows in epoch_batches(data.lengths, batch_size, seed, epoch):
                yield _pad(data, rows, varied if epoch < augmented_epochs else None)

    signature = {
        name: tf.TensorSpec([None] if name == "row" else [None, None, *array.shape[2:]], array.dtype)
        for name, array in _pad(data, [0]).items()
    }
    size = num_batches(data, batch_size) if seed is None else tf.data.INFINITE_CARDINALITY
    batches = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return batches.apply(tf.data.experimental.assert_cardinality(size)).prefetch(2)


def _array_stream(data: Sequences, batch_size: int, seed: int | None, first_epoch: int) -> tf.data.Dataset:
    """The batches of `stream` for data that are arrays `[N, T, ...]`: Python makes one order an epoch, TensorFlow the batches.

    A batch out of a Python generator costs about 5 ms, more than a step of a small model.
    """
    import tensorflow as tf

    arrays = {name: tf.convert_to_tensor(a) for name in _FIELDS if (a := getattr(data, name)) is not None}
    num_steps = data.x.shape[1]  # type: ignore[attr-defined]
    if not num_steps:  # a step at least, which the mask leaves out
        arrays = {name: tf.pad(a, [[0, 0], [0, 1], *[[0, 0]] * (a.shape.rank - 2)]) for name, a in arrays.items()}

    def order(epoch: np.ndarray) -> np.ndarray:
        rows = np.full([num_batches(data, batch_size), batch_size], -1, np.int32)  # a short batch ends with -1
        for target, batch in zip(rows, epoch_batches(data.lengths, batch_size, seed, int(epoch)), strict=True):
            target[: len(batch)] = batch
        return rows

    def batches(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.ensure_shape(tf.numpy_function(order, [epoch], tf.int32, stateful=False), [None, batch_size])
        return tf.data.Dataset.from_tensor_slices(rows)

    def gathered(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = rows[: tf.math.count_nonzero(rows >= 0, dtype=tf.int32)]
        mask = tf.fill([tf.shape(rows)[0], max(1, num_steps)], num_steps > 0)
        return {"mask": mask, "row": rows, **{name: tf.gather(a, rows) for name, a in arrays.items()}}

    epochs = tf.data.Dataset.counter(first_epoch) if seed is not None else tf.data.Dataset.from_tensors(tf.constant(0, tf.int64))
    size = num_batches(data, batch_size) if seed is None else tf.data.INFINITE_CARDINALITY
    found = epochs.flat_map(batches).map(gathered)
    return found.apply(tf.data.experimental.assert_cardinality(size)).prefetch(2)


def num_batches(data: Sequences, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-len(data) // batch_size)
