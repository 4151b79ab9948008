"""Variable-length sequences -> padded batches, bucketed by length, or windows of one long text; streamed with `tf.data`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from tfseq.data.shards import Shards

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

    Sentences with a label for each token, or raw texts with one for each:

    >>> tfseq.Sequences([np.array(["we", "run"])], y=[np.array(["PRON", "VERB"])]).padded()["y"].tolist()
    [['PRON', 'VERB']]
    >>> tfseq.Sequences(["a fine film", "no"], y=["pos", "neg"]).lengths.tolist()
    [11, 2]

    Data of vectors, such as pictures, has sequences of one step. Where all sequences have one length, a field may be one array
    `[N, T, ...]`; it is then batched at once, and not row by row.

    Attributes:
        x: observations, one array per sequence: `[T_i, D]` float32, `[T_i]` int32 for symbols, or `[T_i]` str for tokens; or
            one `str` per sequence, a raw text, whose steps are its characters until a model has cut it into tokens.
        observed: which features were measured, each `[T_i, D]` bool; None where all were.
        u: controls, each `[T_i, U]` float32; None where there are none.
        y: labels, each `[T_i]` int32, -1 where a step's is not known, or `[T_i]` str, "" where it is not known; or one label
            of each whole sequence, an int or a str; None where there are none.
        target: another sequence for each, of a length of its own: `[L_i]` str or int32, or a raw `str`. A translation, a
            transcription. None where there are none.
        names: what each sequence is called (a piece, a file); empty where it has no name.
        name: the data set's name; split: `"train"`, `"valid"` or `"test"`.
        step: what one time step is, for example `"quarter note"`.
        source: where the data came from, for people.
        augmentation: how a training sequence may be varied and still be one: (x `[T, D]`, random numbers) -> x of the same
            shape; None where nothing is known. Only training asks for it.
        shape: rows and columns of a picture, where each x[t] is one, row after row; None where it is none, or they are not known.
        columns: what the D features are called; empty where they have no names.
        sampling_rate: samples a second, where the features of a step are successive samples of a recording; None where not.
    """

    x: Sequence[Any]
    observed: Sequence[np.ndarray] | None = None
    u: Sequence[np.ndarray] | None = None
    y: Sequence[Any] | None = None
    names: Sequence[str] = ()
    name: str = ""
    split: str = ""
    step: str = ""
    source: str = ""
    augmentation: Augmentation | None = None
    shape: tuple[int, int] | None = None
    target: Sequence[Any] | None = None
    columns: Sequence[str] = ()
    sampling_rate: int | None = None

    def __post_init__(self) -> None:
        if self.shape is not None and len(self.x):
            size = np.shape(self.x[0])[1:]
            if len(self.shape) != 2 or min(self.shape) < 1 or size != (math.prod(self.shape),):
                raise ValueError(
                    f"`shape` must be rows and columns of a picture, whose product is D of `x`; received {self.shape} for x[0] "
                    f"of shape {list(np.shape(self.x[0]))}."
                )
        if self.columns and len(self.x) and np.shape(self.x[0])[1:] != (len(self.columns),):
            raise ValueError(
                f"`columns` must have a name for each of the D features of `x`; received {len(self.columns)} for x[0] of shape "
                f"{list(np.shape(self.x[0]))}."
            )
        for field in ("observed", "u", "y", "target"):
            other = getattr(self, field)
            if other is not None and len(other) != len(self.x):
                words = "one item" if field in ("y", "target") else "one array"
                raise ValueError(f"`{field}` must have {words} per sequence: got {len(other)} for {len(self.x)} sequences.")
        _check_alike("x", self.x, lambda a: isinstance(a, str), "raw texts (str), or all arrays")
        if self.y is not None:
            _check_alike("y", self.y, lambda a: np.ndim(a) == 0, "one label of the whole sequence, or all labels of its steps")
        if self.target is not None:
            _check_alike("target", self.target, lambda a: isinstance(a, str), "raw texts (str), or all arrays")
            for i, a in enumerate(() if _is_block(self.target) and self.target.ndim == 2 else self.target):
                if not isinstance(a, str) and np.ndim(a) != 1:
                    raise ValueError(f"`target` of sequence {i} must be tokens [L] or a str; received shape {list(np.shape(a))}.")
        for field in ("observed", "u", "y"):
            other = getattr(self, field)
            if other is None or (field == "y" and self.one_label):
                continue
            if _is_block(self.x) and _is_block(other) and self.x.shape[1] == other.shape[1]:
                continue
            for i, (a, b) in enumerate(zip(self.x, other, strict=True)):
                if len(a) != len(b):
                    raise ValueError(f"`{field}` of sequence {i} has {len(b)} steps, but `x` has {len(a)}.")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each sequence, `[N]` int32; of raw texts, characters."""
        if _is_block(self.x):
            return np.full(len(self.x), self.x.shape[1], np.int32)
        return np.array([len(a) for a in self.x], np.int32)

    @property
    def is_text(self) -> bool:
        """Whether `x` are raw texts, each one `str`, which must be cut into tokens before they are batched."""
        return len(self.x) > 0 and isinstance(self.x[0], str)

    @property
    def one_label(self) -> bool:
        """Whether `y` has one label for each whole sequence, and not one for each step."""
        return self.y is not None and len(self.y) > 0 and np.ndim(self.y[0]) == 0

    def take(self, indices: Iterable[int]) -> Sequences:
        """The sequences at `indices`, in that order."""
        picked: dict[str, Any] = {}
        indices = list(indices)
        for name in (*_FIELDS, "target", "names"):
            items = getattr(self, name)
            if isinstance(items, np.ndarray):
                picked[name] = items[np.array(indices, int)]
            else:
                picked[name] = [items[i] for i in indices] if items else items
        return replace(self, **picked)

    def padded(self) -> Batch:
        """All as one batch: `x` `[N, T, ...]`, `mask` `[N, T]`, `row` `[N]`, and what else there is.

        `observed` and `u` are as `x`, `y` is `[N, T]`, or `[N]` where there is one label a sequence, `target` is `[N, L]`, with
        `target_mask` `[N, L]`.

        Raises:
            ValueError: `x` or `target` are raw texts, which have no tokens yet.
        """
        return _pad(self, range(len(self)))

    @cached_property
    def _dtypes(self) -> dict[str, np.dtype]:
        """Field -> the type that holds all its arrays; the arrays of a batch have it whatever its rows are."""
        found = {}
        for name in (*_FIELDS, "target"):
            items = getattr(self, name)
            if items is None:
                continue
            if name == "y" and self.one_label:
                dtype = np.asarray(list(items)).dtype
                found[name] = np.dtype(np.int32) if dtype.kind in "iu" else dtype
            else:
                found[name] = np.result_type(*([items] if _is_block(items) else items))
        return found


def _is_block(items: Any) -> TypeGuard[np.ndarray]:
    """Whether the arrays of sequences of one length stand in one array `[N, T, ...]`."""
    return isinstance(items, np.ndarray) and items.ndim >= 2


def _check_alike(field: str, items: Sequence[Any], test: Callable[[Any], bool], words: str) -> None:
    """Raises where `test` holds for some of the items of a field, and not for others."""
    if _is_block(items) or not len(items):
        return
    first = test(items[0])
    for i, item in enumerate(items):
        if test(item) != first:
            raise ValueError(f"`{field}` must be all {words}; item {i} is another kind than item 0.")


def _pad(data: Sequences, rows: Iterable[int], vary: Callable[[int, np.ndarray], np.ndarray] | None = None) -> Batch:
    """The given rows as a right-padded batch with at least one step; `row` is their place in the data set.

    `vary`: (row, its x) -> what stands in the place of its x.
    """
    _check_tokens(data)
    rows = np.array(list(rows), int)
    mask = _mask(data.x, rows)
    batch = {"mask": mask, "row": rows.astype(np.int32)}
    for name in _FIELDS:
        arrays = getattr(data, name)
        if arrays is None:
            continue
        if name == "y" and data.one_label:
            batch[name] = np.array([arrays[row] for row in rows], data._dtypes[name])
        else:
            batch[name] = _padded(arrays, rows, mask.shape[1], data._dtypes[name], vary if name == "x" else None)
    if data.target is not None:
        batch["target_mask"] = mask = _mask(data.target, rows)
        batch["target"] = _padded(data.target, rows, mask.shape[1], data._dtypes["target"])
    return batch


def _mask(items: Sequence[Any], rows: np.ndarray) -> np.ndarray:
    """Which steps the sequences at `rows` have, `[B, T]` bool, T >= 1."""
    lengths = np.array([len(items[row]) for row in rows], int)
    return np.arange(max(1, int(lengths.max(initial=0)))) < lengths[:, None]


def _padded(
    arrays: Sequence[Any],
    rows: np.ndarray,
    num_steps: int,
    dtype: np.dtype,
    vary: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """The arrays at `rows` as one `[B, num_steps, ...]`, with zeros (or empty strings) after their ends."""
    if _is_block(arrays) and arrays.shape[1] == num_steps and vary is None:
        return np.asarray(arrays[rows], dtype)
    out = np.zeros((len(rows), num_steps, *arrays[0].shape[1:]), dtype)
    for place, row in zip(out, rows, strict=True):
        array = arrays[row] if vary is None else vary(row, arrays[row])
        place[: len(array)] = array
    return out


def _check_tokens(data: Sequences) -> None:
    """Raises where `x` or `target` are raw texts, which have no steps yet."""
    for name in ("x", "target"):
        items = getattr(data, name)
        if items is not None and len(items) and isinstance(items[0], str):
            raise ValueError(
                f"`data.{name}` must be arrays to be batched; received raw texts (data set {data.name!r}), such as "
                f"{items[0][:30]!r}. A model cuts them into tokens before: is this one for data of another kind?"
            )


def epoch_batches(
    lengths: np.ndarray, batch_size: int, seed: int | None = None, epoch: int = 0, *, batch_steps: int | None = None
) -> list[np.ndarray]:
    """Rows of each batch of one epoch, bucketed by length: a function of (seed, epoch) alone.

    With a seed, the lengths are jittered by 10 % before sorting and the batches come in random order; without one,
    the rows are sorted by length and nothing is random.

    With `batch_steps` a batch has as many rows as fit into that many padded steps (rows times the longest), one at least, in
    place of `batch_size`. Lengths are then rounded up to the longest of a class of lengths of about 10 %, and rows are shuffled
    within their class: how many rows each batch has depends on the classes alone, so that all epochs have the same number of
    batches and none has more than `batch_steps` steps, unless it is of one sequence that is longer.
    """
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    if batch_steps is not None:
        classes = _length_classes(lengths)
        keys = lengths if rng is None else classes
        tie = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
        order = np.lexsort((tie, keys))
        cuts = _cuts(classes, batch_steps)
        batches = [order[begin:end] for begin, end in itertools.pairwise(cuts)]
    else:
        keys = lengths if rng is None else lengths * np.exp(rng.normal(0.0, _LENGTH_JITTER, len(lengths)))
        tie = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
        order = np.lexsort((tie, keys))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]


def _length_classes(lengths: np.ndarray) -> np.ndarray:
    """The longest length in the class of each, `[N]`: classes are intervals of a geometric grid whose ratio is 1 + jitter."""
    lengths = np.maximum(lengths, 1)
    grid = np.floor(np.log(lengths) / np.log1p(_LENGTH_JITTER)).astype(int)
    longest = np.zeros(grid.max(initial=0) + 1, int)
    np.maximum.at(longest, grid, lengths)
    return longest[grid]


def _cuts(classes: np.ndarray, batch_steps: int) -> list[int]:
    """Where the batches of rows sorted by length begin, and the end of the last; filled from the longest down."""
    ordered = np.sort(classes)
    cuts = [len(ordered)]
    while cuts[-1] > 0:
        cuts.append(max(0, cuts[-1] - max(1, batch_steps // int(ordered[cuts[-1] - 1]))))
    return cuts[::-1]


def stream(
    data: Sequences | Shards,
    batch_size: int,
    *,
    seed: int | None = None,
    first_epoch: int = 0,
    skip: int = 0,
    augmented_epochs: int = 0,
    batch_steps: int | None = None,
) -> tf.data.Dataset:
    """Padded batches as a `tf.data.Dataset` of dicts, for `fit`, `evaluate` and `predict`.

    With a seed it never ends, one epoch after the other from `first_epoch` on, without its first `skip` batches, so that
    training can resume where it stopped: pass `steps_per_epoch=num_batches(data, batch_size)` to `fit`. Epochs before
    `augmented_epochs` vary each sequence by `data.augmentation`, a function of (seed, epoch, row). Without a seed it is one pass,
    for evaluation.

    With `batch_steps`, batches have at most that many padded steps of `x`, whatever `batch_size` is (see `epoch_batches`).

    Raises:
        ValueError: there are no sequences, they are raw texts, or an option is out of range.
    """
    if not isinstance(data, Sequences):
        return data.stream(
            batch_size,
            seed=seed,
            first_epoch=first_epoch,
            skip=skip,
            augmented_epochs=augmented_epochs,
            batch_steps=batch_steps,
        )
    _check_stream(data, batch_size=batch_size, batch_steps=batch_steps)
    size = num_batches(data, batch_size, batch_steps=batch_steps)
    _check_skip(skip, size)
    augmentation = data.augmentation
    if augmented_epochs and (seed is None or augmentation is None):
        raise ValueError(
            f"`augmented_epochs` must be 0 without {'`seed`' if seed is None else 'an augmentation of the data set'}; "
            f"received {augmented_epochs} (data set {data.name!r})."
        )

    if not augmented_epochs and data.target is None and all(_is_block(a) for f in _FIELDS if (a := getattr(data, f)) is not None):
        if batch_steps is not None:  # all lengths are one
            batch_size = max(1, batch_steps // max(1, int(data.lengths[0])))
        return _array_stream(data, batch_size, seed, first_epoch, skip)

    def generate() -> Iterator[Batch]:
        for epoch, begin in _passes(seed, first_epoch, skip):

            def varied(row: int, x: np.ndarray, key: tuple = (seed, epoch)) -> np.ndarray:
                return augmentation(x, np.random.default_rng([*key, row]))  # type: ignore[misc]

            for rows in epoch_batches(data.lengths, batch_size, seed, epoch, batch_steps=batch_steps)[begin:]:
                yield _pad(data, rows, varied if epoch < augmented_epochs else None)

    return _generated(generate, _pad(data, [0]), size - skip if seed is None else None)


def _passes(seed: int | None, first_epoch: int, skip: int) -> Iterator[tuple[int, int]]:
    """(epoch, its first batch) of a stream: of all epochs with a seed, of one without."""
    yield first_epoch if seed is not None else 0, skip
    if seed is not None:
        yield from ((epoch, 0) for epoch in itertools.count(first_epoch + 1))


def _generated(generate: Callable[[], Iterator[Batch]], example: Batch, size: int | None) -> tf.data.Dataset:
    """A data set of `size` batches, infinite where None, of the types of an example and of any number of rows and steps."""
    import tensorflow as tf

    signature = {
        name: tf.TensorSpec(
            [None] * min(2, array.ndim) + list(array.shape[2:]), tf.string if array.dtype.kind == "U" else array.dtype
        )
        for name, array in example.items()
    }
    return _sized(tf.data.Dataset.from_generator(generate, output_signature=signature), size)


def _sized(batches: tf.data.Dataset, size: int | None) -> tf.data.Dataset:
    """Batches as every stream gives them: `size` of them, infinite where None, two made ahead."""
    import tensorflow as tf

    options = tf.data.Options()
    # its loop sleeps longer and longer, up to a minute, and the end of a pass may wait for it; nothing here is left to it
    options.autotune.enabled = False
    cardinality = tf.data.INFINITE_CARDINALITY if size is None else size
    return batches.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(2).with_options(options)


def _check_stream(data: Sequences, **sizes: int | None) -> None:
    """Raises where there is nothing to stream, or a size is not positive."""
    if not len(data):
        raise ValueError(f"`data` has no sequences (data set {data.name!r}, split {data.split!r}); nothing can be streamed.")
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"`{name}` must be at least 1; received {size}.")
    _check_tokens(data)


def _check_skip(skip: int, size: int) -> None:
    if not 0 <= skip < max(size, 1):
        raise ValueError(f"`skip` must leave a batch of the {size} of an epoch; received {skip}. Does `first_epoch` count on?")


def _array_stream(data: Sequences, batch_size: int, seed: int | None, first_epoch: int, skip: int) -> tf.data.Dataset:
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
    size = num_batches(data, batch_size) - skip if seed is None else None
    return _sized(epochs.flat_map(batches).skip(skip).map(gathered), size)


def num_batches(data: Sequences | Shards, batch_size: int, *, batch_steps: int | None = None) -> int:
    """Batches of an epoch: the same for all epochs, with a seed and without."""
    if not isinstance(data, Sequences):
        return data.num_batches(batch_size, batch_steps=batch_steps)
    if batch_steps is None:
        return -(-len(data) // batch_size)
    return len(_cuts(_length_classes(data.lengths), batch_steps)) - 1


# Windows ------------------------------------------------------------------------------------------------------------


def windows(
    data: Sequences | Shards, batch_size: int, num_steps: int, *, seed: int | None = None, first_epoch: int = 0, skip: int = 0
) -> tf.data.Dataset:
    """Successive windows of `num_steps` steps of `batch_size` lanes of one long text, for a state that is carried on.

    The sequences stand one after the other, and the whole is cut into `batch_size` lanes, consecutive parts whose lengths differ
    by one at most. Batch k has the steps from k * num_steps on of all lanes, so that row b of batch k + 1 continues row b of
    batch k: what truncated back-propagation through time needs.

    With a seed it never ends, one epoch after the other from `first_epoch` on, each a function of (seed, epoch): several
    sequences come in a random order; one alone begins anywhere, and its beginning follows its end, so that the lanes are cut at
    other places each time. Every step comes once an epoch: pass `steps_per_epoch=num_windows(...)` to `fit`. Without a seed it
    is one pass, in the order of the data.

    Args:
        data: sequences of symbols or tokens, each x `[T_i]` int or str; labels are not read.
        batch_size: number of lanes, B.
        num_steps: steps of a window, T.
        seed: of the order, or the place to begin at.
        first_epoch, skip: where to go on: after `skip` windows of this epoch.

    Returns:
        Batches with `x` `[B, T]`; `mask` `[B, T]`, False only where a lane has ended; `row` `[B]`, the lane; and `fresh` `[B, T]`
        bool, True where a sequence or an epoch of a lane begins: what came before does not belong to it, and the state starts
        anew.

    Raises:
        ValueError: there are no steps, or they are no symbols.
    """
    if not isinstance(data, Sequences):
        return data.windows(batch_size, num_steps, seed=seed, first_epoch=first_epoch, skip=skip)
    _check_stream(data, batch_size=batch_size, num_steps=num_steps)
    if any(np.ndim(a) != 1 for a in ([data.x[0]] if _is_block(data.x) else data.x)):
        shape = next(np.shape(a) for a in data.x if np.ndim(a) != 1)
        raise ValueError(f"`data.x` must be symbols or tokens, each [T], to be cut into windows; received shape {list(shape)}.")
    parts = [a for a in data.x if len(a)]
    if not parts:
        raise ValueError(f"`data` must have steps; all its {len(data)} sequences are empty (data set {data.name!r}).")

    size = num_windows(data, batch_size, num_steps)
    _check_skip(skip, size)

    def generate() -> Iterator[Batch]:
        for epoch, begin in _passes(seed, first_epoch, skip):
            rng = None if seed is None else np.random.default_rng([seed, epoch])
            yield from _lanes(*_joined(parts, rng), batch_size, num_steps, begin)

    dtype = np.result_type(*parts)
    example = {name: np.zeros((1, 1), kind) for name, kind in (("x", dtype), ("mask", bool), ("fresh", bool))}
    return _generated(generate, {**example, "row": np.zeros(1, np.int32)}, size - skip if seed is None else None)


def num_windows(data: Sequences | Shards, batch_size: int, num_steps: int) -> int:
    """Batches of an epoch of `windows`: the steps of the longest lane over those of a window, rounded up."""
    total = int(data.lengths.sum(dtype=np.int64))
    if not total:
        raise ValueError(f"`data` must have steps; all its {len(data)} sequences are empty (data set {data.name!r}).")
    return math.ceil(math.ceil(total / batch_size) / num_steps)


def _joined(parts: list[np.ndarray], rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """All steps of an epoch in their order `[S]`, and where sequences begin `[S]` bool."""
    if rng is not None and len(parts) == 1:
        start = int(rng.integers(len(parts[0])))
        parts = [part for part in (parts[0][start:], parts[0][:start]) if len(part)]
    elif rng is not None:
        parts = [parts[i] for i in rng.permutation(len(parts))]
    steps = np.concatenate(parts)
    begins = np.zeros(len(steps), bool)
    begins[np.cumsum([0, *(len(part) for part in parts[:-1])])] = True
    return steps, begins


def _lanes(steps: np.ndarray, begins: np.ndarray, batch_size: int, num_steps: int, skip: int) -> Iterator[Batch]:
    """The windows of one epoch, without its first `skip`."""
    each, more = divmod(len(steps), batch_size)  # the first `more` lanes have one step more
    lanes = np.arange(batch_size)
    first = (lanes * each + np.minimum(lanes, more))[:, None]
    ends = (each + (lanes < more))[:, None]
    for begin in range(skip * num_steps, each + bool(more), num_steps):
        place = begin + np.arange(num_steps)
        mask = place < ends
        index = np.where(mask, first + place, 0)
        x = steps[index]
        x[~mask] = np.zeros((), x.dtype)
        yield {"x": x, "mask": mask, "row": lanes.astype(np.int32), "fresh": mask & (begins[index] | (place == 0))}
