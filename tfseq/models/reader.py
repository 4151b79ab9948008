"""What models that read tokens or frames share: text to ids in the graph, embeddings, labels, vocabularies from data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.characters import Characters, alphabet_of
from tfseq.layers.embedding import TokenEmbedding
from tfseq.layers.text import Text, Unit, as_texts, count_tokens, learn_pieces, static_table, tokenize, vocabulary_of
from tfseq.models.base import EVALUATION_STEP, Batch, SequenceModel
from tfseq.models.fields import check_ids, check_not_longer
from tfseq.ops import random
from tfseq.ops.masking import fill, pad

UNKNOWN_LABEL = -1  # of a label that is not given, "" as a string
NEVER_SEEN = -2

_LABELS_KNOWN = (
    "`y` must hold labels that were seen in training; a batch of the stream holds others. "
    "`model.as_batch(batch)` names the first."
)
_TARGETS_KNOWN = (
    "`target` must hold symbols that were seen in training; a batch of the stream holds others. "
    "`model.as_batch(batch)` names the first."
)


class Reader(SequenceModel):
    """A model whose x are tokens (strings or ids `[B, T]`, or raw texts `[B]`) or real-valued frames `[B, T, D]`.

    Strings become ids inside the graph, where it trains and where it is served, by the same operations. A subclass calls
    `read_input` in its constructor, and `read_labels` where it has labels.
    """

    has_kl = False
    takes_strings = True
    optional: ClassVar[frozenset[str]] = frozenset({"characters", "y", "target", "target_mask"})
    labels: tuple[str, ...] = ()
    rules = (_LABELS_KNOWN, _TARGETS_KNOWN)

    # Construction --------------------------------------------------------------------------------------------------

    def read_input(
        self,
        vocabulary: Sequence[str],
        unit: Unit,
        lowercase: bool,
        embedding_dim: int,
        *,
        feature_dim: int = 0,
        token_dropout: float = 0.0,
        row_dropout: float = 0.0,
        characters: Literal["cnn", "lstm"] | None = None,
        alphabet: Sequence[str] = (),
        character_dim: int = 25,
        character_units: int = 50,
        extra_ids: int = 0,
    ) -> None:
        """The layers that turn tokens into vectors; or none, for frames of `feature_dim` features, which are read as they are.

        The other arguments are those of the models; `extra_ids` are added after those of the vocabulary.
        """
        self.text: Any = None
        self.characters: Any = None
        self.feature_dim = feature_dim
        if feature_dim:
            checks.at_least(1, feature_dim=feature_dim)
            return
        self.text = Text(vocabulary, unit, lowercase, name="text")
        self.embedding = TokenEmbedding(self.text.size + extra_ids, embedding_dim, token_dropout, row_dropout, name="embedding")
        if characters is not None and len(alphabet):
            self.characters = Characters(alphabet, character_dim, character_units, characters, name="characters")
            self._spelling = self.characters.split(tf.constant(["", *vocabulary])).numpy()

    def read_labels(self, labels: Sequence[str], name: str) -> None:
        """The names of classes; `name` is that of the argument, for errors."""
        if isinstance(labels, str) or not all(isinstance(a, str) and a for a in labels) or len(set(labels)) < len(labels):
            raise ValueError(f"`{name}` must be different strings that are not empty; received {list(labels)[:10]}.")
        if len(labels) < 2:
            raise ValueError(f"`{name}` must name at least 2 classes; received {list(labels)}. Is this the column of labels?")
        self.labels = tuple(labels)
        keys, places = ["", *labels], np.arange(-1, len(labels))
        with tf.init_scope():
            self._labels = static_table(keys, places, NEVER_SEEN)
            self._label_names = tf.constant(list(labels))

    @classmethod
    def text_arguments(cls, data: Any, hyperparameters: Mapping[str, Any], field: str = "x") -> dict[str, Any]:
        """The vocabulary (and alphabet) of a data set's tokens, or `feature_dim` of its frames."""
        items = getattr(data, field)
        if not is_text(items):
            arrays = [np.asarray(a) for a in items]
            if arrays and arrays[0].ndim == 1 and all(a.dtype.kind in "iu" for a in arrays if a.size):  # 0: an unknown token
                return {"vocabulary": [str(k) for k in range(1, 1 + max((int(a.max()) for a in arrays if a.size), default=0))]}
            if field != "x" or not arrays or arrays[0].ndim != 2:
                raise ValueError(
                    f"`{field}` must be texts, tokens or ids [T]{', or frames [T, D]' * (field == 'x')}; received "
                    f"{f'{arrays[0].dtype} of shape {list(arrays[0].shape)}' if arrays else 'no sequences'}. "
                    "Are `x` and `target` exchanged, or ids kept as floats?"
                )
            return {"feature_dim": int(arrays[0].shape[-1])}
        unit, lowercase = (hyperparameters.get(name, cls.hyperparameters()[name].default) for name in ("unit", "lowercase"))
        most = hyperparameters.get("max_vocabulary", cls.hyperparameters()["max_vocabulary"].default)
        least = hyperparameters.get("min_count", cls.hyperparameters()["min_count"].default)
        if unit == "subwords":
            is_alone = field == "x" and hyperparameters.get("target_unit") in (None, unit)  # else it is for the other text
            if is_alone and least not in (1, cls.hyperparameters()["min_count"].default):
                raise ValueError(
                    f'`min_count` must be left out with unit="subwords", which learns `max_vocabulary` pieces; received {least}.'
                )
            words = count_tokens(tokens_of(items, tokenize), lowercase)
            return {"vocabulary": learn_pieces(words, most or 8000)}
        tokens = tokens_of(items, functools.partial(tokenize, unit=unit))
        found = {"vocabulary": vocabulary_of(tokens, max_size=most, min_count=least, lowercase=lowercase)}
        if not found["vocabulary"]:
            raise ValueError(f"`min_count` = {least} leaves no token of {sum(map(len, tokens))} in the vocabulary.")
        if "alphabet" in cls.hyperparameters():
            found["alphabet"] = alphabet_of(set().union(*(set(a.tolist()) for a in tokens)))
        return found

    def vectors_from(self, matrix: np.ndarray, found: np.ndarray) -> Self:
        """Starts the rows of the embedding that were `found` `[V - 1]` from `matrix` `[V - 1, E]`, in the vocabulary's order."""
        table = self.embedding.table.numpy()
        if matrix.shape != (self.text.size - 1, table.shape[1]):
            raise ValueError(
                f"`matrix` must have a row for each of the {self.text.size - 1} tokens of the vocabulary and `embedding_dim` = "
                f"{table.shape[1]} columns; received shape {list(matrix.shape)}. "
                "Do its vectors have another size? Set `embedding_dim` to it."
            )
        rows = 1 + np.flatnonzero(found)
        table[rows] = matrix[found]
        self.embedding.table.assign(table)
        return self

    # Batches -------------------------------------------------------------------------------------------------------

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        if self.text is None:
            return {"x": tf.TensorSpec([None, None, self.feature_dim], tf.float32)}
        spec = {"x": tf.TensorSpec([None, None], tf.int32)}
        if self.characters is not None:
            spec["characters"] = tf.TensorSpec([None, None, None], tf.int32)
        return spec

    def check_values(self, x: np.ndarray) -> None:
        if self.text is not None and ((x < 0) | (x >= self.text.size)).any():
            place = tuple(int(i) for i in np.argwhere((x < 0) | (x >= self.text.size))[0])
            raise ValueError(
                f"`x` must be ids from 0 to {self.text.size - 1} everywhere; received {x[place]} at index {place}. "
                "Is the vocabulary another one?"
            )

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        return (x >= 0) & (x < self.text.size) if self.text is not None else tf.ones_like(x, tf.bool)

    def kept_rules(self, batch: Batch) -> list[tf.Tensor]:
        rules = []
        for name, low, num in self._label_ranges():
            known = tf.constant(True)
            if name in batch:
                known = (batch[name] >= low) & (batch[name] < num)
                if name == "target":
                    known |= ~batch["target_mask"]
                elif name not in self.unaligned:
                    known |= ~batch["mask"]
            rules.append(known)
        return rules

    num_targets = 2**31 - 1
    """How many symbols a target may have."""

    def _label_ranges(self) -> list[tuple[str, int, int]]:
        """Entry, its lowest number, and the one after its highest: a label may be not known, a symbol of a target not."""
        return [("y", UNKNOWN_LABEL, len(self.labels)), ("target", 0, self.num_targets)]

    learned: str = ""
    """The entry that training needs, where there is one: `y` or `target`."""

    def check_training(self, batch: Batch) -> None:
        if self.learned and self.learned not in batch:
            raise ValueError(f"`{self.learned}` must be given to a {type(self).__name__} in training; the batch has none.")

    def prepare(self, data: Any) -> Any:
        """A data set with its texts cut into tokens."""
        names = {"x", "target"} & set(self.batch_spec())
        cut = {name: self.cut(name, getattr(data, name)) for name in names if is_text(getattr(data, name, None))}
        return dataclasses.replace(data, **cut) if cut else data

    def cut(self, name: str, items: Any) -> list[np.ndarray]:
        """Texts, or arrays of tokens, of x or target as arrays of tokens `[T_i]`."""
        if name == "x" and self.text is None:
            raise ValueError(
                f"`{name}` must be frames [B, T, {self.feature_dim}] for this {type(self).__name__}; received strings. "
                "It was made for real-valued data."
            )
        return tokens_of(items, self.tokenize if name == "x" else self.tokenize_target)

    def encode(self, batch: Batch) -> Batch:
        unread = {"y", "target", "target_mask"} - set(self.batch_spec())  # a data set may have labels for others too
        batch = {name: value for name, value in batch.items() if name not in unread}
        x = batch["x"]
        if x.dtype == tf.string:
            if x.shape.rank == 1:
                x, batch["mask"] = self.tokenize(x)
            batch["x"] = self.text.to_ids(x)
            if self.characters is not None:
                batch["characters"] = self.characters.split(x)
        if "y" in batch and batch["y"].dtype == tf.string:
            batch = {**batch, "y": tf.cast(self._labels.lookup(batch["y"]), tf.int32)}
        if "target" in batch and batch["target"].dtype == tf.string:
            batch = dict(batch)
            if batch["target"].shape.rank == 1:
                batch["target"], batch["target_mask"] = self.tokenize_target(batch["target"])
            batch["target"] = self.target_ids(batch["target"])
        return batch

    def complete(self, batch: Batch, step: Any = EVALUATION_STEP) -> Batch:
        batch = super().complete(batch, step)
        names = [name for name in ("x", "characters") if name in batch and batch[name].dtype.is_integer]
        return {**batch, **{name: fill(batch[name], batch["mask"]) for name in names}}  # ids at padded steps may be none

    def tokenize(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What `cut` does to x, inside a graph: text `[B]` -> tokens and mask `[B, T]`."""
        return self.text.tokenize(text)

    def tokenize_target(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same of a target, where the model reads one."""
        raise NotImplementedError

    def target_ids(self, tokens: tf.Tensor) -> tf.Tensor:
        """Tokens of a target as numbers, where the model reads one."""
        raise NotImplementedError

    def as_batch(self, data: Any) -> Batch:
        """As of `SequenceModel`; x may be a text, a list of texts, or (lists of) tokens, labels and targets strings too."""
        names: Sequence[str] = ()
        if hasattr(data, "x"):
            names = getattr(data, "names", ())
            data = {n: getattr(data, n, None) for n in ("x", "y", "target")}
        data = dict(data) if isinstance(data, Mapping) else {"x": data}
        data = {name: as_numpy(value) for name, value in data.items() if value is not None}
        data = {name: [value] if isinstance(value, str | bytes) else value for name, value in data.items()}
        if "x" not in data:
            return super().as_batch(data)  # which says so
        specs = self.batch_spec()
        for name in ("y", "target", "target_mask"):
            if name not in specs:
                data.pop(name, None)
        for name in {"x", "target"} & set(data):
            if (of_text := is_text(data[name])) and not (isinstance(data[name], np.ndarray) and data[name].ndim == 2):
                data[name] = self.cut(name, data[name])
            if name == "target" and not of_text:
                _check_rows(name, data[name])
            if name == "x" and "y" in data and "y" not in self.unaligned:
                _check_aligned(data["y"], data["x"], data.get("mask"), names)
            if name == "target" or of_text:  # texts that are all empty are strings, too
                data |= _padded(name, data[name], data.get("mask" if name == "x" else f"{name}_mask"))
        words = data["x"] if is_text(data["x"]) else None
        encoded = self.encode(
            {n: _tensor(data[n]) for n in ("x", "y", "target") if n in data and is_text(data[n])} | _any_x(data)
        )
        for name, value in encoded.items():
            if name in ("y", "target") and (value.numpy() == NEVER_SEEN).any():
                self._complain(name, data[name], value.numpy() == NEVER_SEEN, names, words)
            if name != "x" or is_text(data["x"]):
                data[name] = value.numpy()
        batch = super().as_batch(data)
        for name, low, num in self._label_ranges():
            if name in batch:
                if name == "target" and batch["target_mask"].shape != batch["target"].shape:
                    raise ValueError(
                        f"`target_mask` must have the shape of `target`, {list(batch['target'].shape)}; "
                        f"received {list(batch['target_mask'].shape)}."
                    )
                real = batch[f"{name}_mask"] if name == "target" else batch["mask"] if name not in self.unaligned else True
                wrong = real & ((batch[name] < low) | (batch[name] >= num))
                if wrong.any():
                    unknown = ", or -1 where not known" if low < 0 else " (-1, not known, is for labels alone)"
                    raise ValueError(
                        f"`{name}` must be from 0 to {num - 1}{unknown}; received {batch[name][wrong][0]} {_where(wrong, names)}."
                    )
        return batch

    def _complain(self, name: str, given: Any, wrong: np.ndarray, names: Sequence[str], words: Any) -> None:
        row, *step = (int(i) for i in np.argwhere(wrong)[0])
        label, word = given[row], ""
        for i in step:  # rows may have different lengths
            label = label[i]
            word = f", for {str(words[row, i])!r}" if name == "y" and np.shape(words) == wrong.shape else ""
        known = self.labels if name == "y" else ()
        raise ValueError(
            f"`{name}` must hold labels that were seen in training{f', {list(known)[:20]}' if known else ''}; received "
            f"{str(label)!r} {_where(wrong, names)}{word}. Is this another column or data set?"
        )

    # Networks ------------------------------------------------------------------------------------------------------

    def read(self, batch: Batch, seed: tf.Tensor | None = None, common_seed: tf.Tensor | None = None) -> tf.Tensor:
        """What a network is given of a batch: `[T, B, F]`, time first, in its compute dtype."""
        if self.text is None:
            return tf.cast(tf.transpose(batch["x"], [1, 0, 2]), self.compute_dtype)
        ids = tf.transpose(batch["x"])
        vectors = self.embedding(ids, seed=seed, common_seed=common_seed)
        if self.characters is None:
            return vectors
        spelt = batch.get("characters")
        spelt = tf.gather(tf.constant(self._spelling), ids) if spelt is None else tf.transpose(spelt, [1, 0, 2])
        return tf.concat([vectors, self.characters(spelt)], -1)

    def common_seed(self) -> tf.Tensor:
        """A seed `[1, 2]` of this training step, which all rows and replicas share."""
        return random.derive(self.seed.value[None], self.step.value)

    def known_ids(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids as they are, 0 in the place of those that do not exist."""
        return tf.where((ids >= 0) & (ids < self.text.size), ids, tf.zeros_like(ids))

    def label_names(self, labels: tf.Tensor) -> tf.Tensor:
        """Labels int32 -> their names, "" for -1."""
        names = tf.gather(self._label_names, tf.maximum(labels, 0))
        return tf.where(labels >= 0, names, "")


def _where(wrong: np.ndarray, names: Sequence[str]) -> str:
    """The first place that is wrong, `[B]` or `[B, T]`; in a sequence that has a name, by that."""
    row, *step = place = tuple(int(i) for i in np.argwhere(wrong)[0])
    if row >= len(names):
        return f"at index {place}"
    return f"at index {step[0]} of {names[row]!r}" if step else f"of {names[row]!r}"


def with_end_id(name: str, items: Any, end: int | None) -> Any:
    """Rows of ids `[T_i]`, each with the id `end` as its last, where it is not already; what are no such rows as they are."""
    if end is None:
        return items
    rows = [checks.array(name, row) for row in items]
    real = [row for row in rows if row.size or row.dtype.kind in "iu"]  # an empty list is of no kind
    if not real or any(row.ndim != 1 or row.dtype.kind not in "iu" for row in real):
        return items
    rows = [row if row.size else row.astype(np.int32) for row in rows]
    return [row if row.size and row[-1] == end else np.append(row, np.int32(end)) for row in rows]


def ended(data: Any, name: str, end: int | None) -> Any:
    """What `as_batch` takes, with `end` after each row of ids of the entry `name`, where that is a list without a mask."""
    fields: Mapping[str, Any] = data if isinstance(data, Mapping) else {"x": data}
    if hasattr(data, "x"):
        fields = {n: getattr(data, n, None) for n in ("x", "y", "target")}
    rows, mask = fields.get(name), fields.get("mask" if name == "x" else f"{name}_mask")
    if end is None or not isinstance(rows, Sequence) or mask is not None or is_text(rows):
        return data
    return {**fields, name: with_end_id(name, rows, end)}


def is_raw(value: Any) -> bool:
    """Whether these are raw texts, one string a sequence."""
    if isinstance(value, str | bytes):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "USO" and (not len(value) or isinstance(value[0], str | bytes))
    return isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], str | bytes)


def is_text(value: Any) -> bool:
    """Whether these are strings, raw or tokens."""
    if is_raw(value):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "US" or (value.dtype.kind == "O" and value.size > 0 and isinstance(value.flat[0], str | bytes))
    if not isinstance(value, Sequence):
        return False
    rows = [a for a in value if not isinstance(a, Sequence | np.ndarray) or len(a)]
    return bool(rows) and all(is_raw(as_numpy(a)) for a in rows)


def tokens_of(items: Any, cut: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]) -> list[np.ndarray]:
    """Raw texts, `cut` into tokens and mask, (or token arrays, as they are) as arrays of tokens `[T_i]`."""
    if not is_raw(items):
        return [_tokens(a) for a in items]
    if isinstance(items, str | bytes):
        items = [items]
    found: list[np.ndarray] = []
    for begin in range(0, len(items), 1000):  # some at a time: a padded table of all would be large
        tokens, mask = cut(as_texts(list(items[begin : begin + 1000]), "x"))
        for row, length in zip(tokens.numpy(), mask.numpy().sum(1), strict=True):
            found.append(np.array([token.decode() for token in row[:length]]) if length else np.zeros(0, "<U1"))
    return found


def _tokens(row: Any) -> np.ndarray:
    """Tokens of a sequence as an array `[T]` of str."""
    row = as_numpy(row)
    if isinstance(row, np.ndarray) and row.dtype.kind == "U":
        return row
    if wrong := [token for token in row if not isinstance(token, str | bytes)]:
        raise ValueError(f"`x` and `target` must hold strings in the place of tokens, or numbers; received {wrong[0]!r:.60}.")
    return np.array([t.decode("utf-8", "replace") if isinstance(t, bytes) else t for t in row] or np.zeros(0), str)


def _check_rows(name: str, value: Any) -> None:
    """Raises unless these are rows of numbers, in an array or in a list."""
    rows = value if isinstance(value, np.ndarray | Sequence) and np.iterable(value) else ()
    shapes = {(a.ndim, *a.shape[1:]) for a in (checks.array(name, row) for row in rows)}
    if len(shapes) != 1 or (0,) in shapes:
        raise ValueError(
            f"`{name}` must be texts, or a row of tokens or of numbers for each sequence, all alike; received {value!r:.60}."
        )


def _check_aligned(y: Any, x: Any, mask: Any, names: Sequence[str]) -> None:
    """Raises where rows of labels have other numbers of steps than their x: in lists, since arrays are padded."""
    is_padded = isinstance(y, np.ndarray) and y.ndim >= 2
    if is_padded or not all(np.iterable(row) and not isinstance(row, str | bytes) for row in y):
        return
    given = None if mask is None else checks.array("mask", mask)
    real = None if given is None or given.shape[:1] != (len(x),) or given.ndim != 2 else given.astype(bool).sum(1).tolist()
    for i, (labels, steps) in enumerate(zip(y, x, strict=False)):
        if len(labels) not in (len(steps), len(steps) if real is None else real[i]):
            raise ValueError(
                f"`y` must have a label for each step of `x`; received {len(labels)} labels for "
                f"{len(steps) if real is None else real[i]} steps in {repr(names[i]) if i < len(names) else f'row {i}'}. "
                "Is one of them cut, or in another order?"
            )


def _padded(name: str, value: Any, mask: Any) -> dict[str, Any]:
    """Lists of arrays as one right-padded array, and its mask: that of their lengths, where none is given."""
    key = "mask" if name == "x" else f"{name}_mask"
    if isinstance(value, np.ndarray) and value.ndim >= 2:
        return {name: value, key: np.ones(value.shape[:2], bool) if mask is None else checks.array(key, mask)}
    arrays = [np.asarray(a) for a in value]
    kind = next((a.dtype for a in arrays if a.size), np.dtype("<U1"))  # an empty list is of no kind
    arrays = [a if a.size else np.zeros(0, kind) for a in arrays]
    lengths = np.array([len(a) for a in arrays])
    padded = pad([a.astype(str) for a in arrays] if is_text(value) else arrays)
    if not padded.shape[1]:
        padded = np.zeros([len(arrays), 1], padded.dtype)
    if mask is None:
        return {name: padded, key: np.arange(padded.shape[1]) < lengths[:, None]}
    given = checks.array(key, mask)
    if given.shape == padded.shape[:2]:  # else who takes the batch names it
        check_not_longer(key, given.astype(bool), lengths, name)
    return {name: padded, key: given}


def _tensor(value: Any) -> tf.Tensor:
    """Strings as a tensor; labels of steps in lists are padded."""
    is_whole = isinstance(value, np.ndarray) or is_raw(value)
    texts = np.asarray(value, str) if is_whole else pad([_tokens(a) for a in value])
    return tf.constant(np.char.encode(texts, "utf-8", "surrogatepass"))  # half of a surrogate pair is no UTF-8, and unknown


def as_numpy(value: Any) -> Any:
    """Tensors as arrays, and arrays of bytes, which string tensors become, as arrays of str."""
    value = value.numpy() if tf.is_tensor(value) else value
    is_bytes = isinstance(value, np.ndarray) and value.dtype.kind in "OS" and value.size and isinstance(value.flat[0], bytes)
    if not is_bytes:
        return value
    return np.array([text.decode("utf-8", "replace") for text in value.flat]).reshape(value.shape)


def _any_x(data: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """x as it is, where it is no string: `encode` wants one."""
    return {} if is_text(data["x"]) else {"x": tf.zeros([])}


def classes_of(items: Iterable[Any]) -> list[str]:
    """The different labels of a data set, sorted; ints as their decimal digits, and "" and -1 left out."""
    found: set[Any] = set()
    for item in items:
        found.update(np.unique(np.asarray(item)).tolist())
    if wrong := [a for a in found if isinstance(a, float)]:
        raise ValueError(f"`y` must hold labels, strings or whole numbers; received {wrong[0]}.")
    numbers = {a for a in found if isinstance(a, int)}
    if numbers:
        check_ids("y", np.array([max(numbers | {0})]))
        return [str(k) for k in range(max(numbers) + 1)]
    return sorted(found - {""})
