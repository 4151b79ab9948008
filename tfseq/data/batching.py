"""Variable-length sequences -> padded batches: bucketed by length, shuffled by (seed, epoch), streamed with `tf.data`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

# How far a sequence may move from its place in the order of lengths, as a share of its length: batches then
# differ from epoch to epoch, and still waste few padded steps.
_LENGTH_JITTER = 0.1

Batch = dict[str, np.ndarray]
Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Sequences:
    """A data set of sequences of different lengths, as plain arrays.

    >>> import numpy as np, tfseq
    >>> data = tfseq.Sequences([np.zeros((3, 2), np.float32), np.ones((1, 2), np.float32)], name="mine")
    >>> len(data), data.lengths.tolist(), data.padded()["x"].shape
    (2, [3, 1], (2, 3, 2))

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

    def __post_init__(self) -> None:
        for field in ("observed", "u", "y"):
            other = getattr(self, field)
            if other is None:
                continue
            if len(other) != len(self.x):
                raise ValueError(f"`{field}` must have one array per sequence: got {len(other)} for {len(self.x)} sequences.")
            for i, (a, b) in enumerate(zip(self.x, other, strict=True)):
                if len(a) != len(b):
                    raise ValueError(f"`{field}` of sequence {i} has {len(b)} steps, but `x` has {len(a)}.")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each sequence, `[N]` int32."""
        return np.array([len(a) for a in self.x], np.int32)

    def take(self, indices: Iterable[int]) -> Sequences:
        """The sequences at `indices`, in that order."""
        picked: dict[str, Any] = {}
        indices = list(indices)
        for name in ("x", "observed", "u", "y", "names"):
            items = getattr(self, name)
            picked[name] = [items[i] for i in indices] if items else items
        return replace(self, **picked)

    def padded(self) -> Batch:
        """All as one batch: `x` `[N, T, ...]`, `mask` `[N, T]`, `row` `[N]`, and `observed`, `u`, `y` if there are any."""
        return _pad(self, range(len(self)))


def _pad(data: Sequences, rows: Iterable[int], vary: Callable[[int, np.ndarray], np.ndarray] | None = None) -> Batch:
    """The given rows as a right-padded batch with at least one step; `row` is their place in the data set.

    `vary`: (row, its x) -> what stands in the place of its x.
    """
    rows = list(rows)
    lengths = data.lengths[rows]
    num_steps = max(1, int(lengths.max(initial=0)))
    batch = {"mask": np.arange(num_steps) < lengths[:, None], "row": np.asarray(rows, np.int32)}
    for name in ("x", "observed", "u", "y"):
        arrays = getattr(data, name)
        if arrays is None:
            continue
        out = np.zeros((len(rows), num_steps, *arrays[0].shape[1:]), np.result_type(*arrays))  # a dtype that holds all
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


def num_batches(data: Sequences, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-len(data) // batch_size)
