"""Inputs of served signatures: real sequences where there are some, else small made-up ones that every model accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfseq.data.batching import Sequences
from tfseq.models.base import SequenceModel

LONGEST = 512  # steps of an example at most: it is answered several times at export, and whenever a server starts
SHORT = 4  # steps of the request that is written down for people
_MADE_UP = 12  # steps of the longest made-up sequence
_STEPS = ("num_steps", "max_tokens")
_TEXTS = (b"on, off", b"on", b"", b"\xff caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac")  # the last one in broken UTF-8


def example_inputs(specs: Sequence[tf.TensorSpec], seed: int = 0) -> list[tf.Tensor]:
    """Small inputs that every served signature accepts: three rows of 5, 3 and no steps."""
    found = Examples(seed=seed).inputs(specs, [5, 3, 0])
    return [tf.constant(found[spec.name]) for spec in specs]


def has_steps(specs: Sequence[tf.TensorSpec]) -> bool:
    """Whether a signature takes sequences, texts or their lengths, and not one step or one vector a row."""
    named = (*_STEPS, "text", "prompt")
    return any(spec.name in named or (spec.shape.rank > 1 and spec.shape[1] is None) for spec in specs)


class Examples:
    """Makes inputs of signatures.

    Args:
        model: the model that is served.
        data: sequences of its data; None for made-up ones.
        start: the function of the signature `init_state`, which says what a state is.
        seed: of what is made up.
    """

    def __init__(
        self,
        model: SequenceModel | None = None,
        data: Sequences | None = None,
        start: Callable[..., dict[str, tf.Tensor]] | None = None,
        seed: int = 0,
    ) -> None:
        self.start, self.rng, self.labels = start, np.random.default_rng(seed), getattr(model, "labels", ())
        self.text: Any = getattr(model, "text", None)
        self.rows: list[Any] = []
        self.raw: list[Any] = []
        self.controls: list[np.ndarray] = []
        if data is not None and model is not None and len(data):
            order = np.argsort(-data.lengths, kind="stable")
            picked = data.take([order[0], *order[len(order) // 2 :][:3]])  # the longest, and three of middle length
            self.raw = list(picked.x)
            prepared = model.prepare(picked)
            self.rows, self.controls = list(prepared.x), list(prepared.u or [])
            _check_fit(model, self.rows)
        self.longest = min(LONGEST, max((len(x) for x in self.rows), default=0) or _MADE_UP)

    def lengths(self, specs: Sequence[tf.TensorSpec]) -> list[list[int]]:
        """Lengths of the rows of every example of a signature: a batch, and single rows up to the longest."""
        if not has_steps(specs):
            return [[0] * 3, [0]]
        powers = [2**k for k in range(3, self.longest.bit_length()) if 2**k < self.longest]
        single = sorted({0, 1, SHORT, *powers, self.longest})
        return [[-(-self.longest // 2), 1, 0], *([n] for n in single)]

    def inputs(
        self, specs: Sequence[tf.TensorSpec], lengths: Sequence[int], num_steps: int | None = None
    ) -> dict[str, np.ndarray]:
        """An example whose rows have these lengths, padded to the longest, or to `num_steps`: name -> array.

        Padding repeats the first element, as a server's does.
        """
        num_rows, num_steps = len(lengths), max(lengths) if num_steps is None else num_steps
        seed = self.rng.integers(2**31 - 1, size=(num_rows, 2)).astype(np.int32)
        state = self._state(seed, {spec.name for spec in specs})
        given = {}
        for spec in specs:
            if spec.name in state:
                given[spec.name] = state[spec.name]
                continue
            shape = [num_rows, *(n if n is not None else num_steps for n in spec.shape[1:])]
            value = self._value(spec, shape, lengths, seed)
            given[spec.name] = np.asarray(value, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
        return given

    def _state(self, seed: np.ndarray, names: set[str]) -> dict[str, np.ndarray]:
        """What `init_state` answers, where the signature takes it."""
        if self.start is None or names <= {"seed"}:
            return {}
        found = self.start(seed=tf.constant(seed))
        return {k: v.numpy() for k, v in found.items()} if set(found) <= names else {}

    def _value(self, spec: tf.TensorSpec, shape: list[int], lengths: Sequence[int], seed: np.ndarray) -> Any:
        num_rows, name = len(lengths), spec.name
        if name == "label":
            return [(self.labels[row % len(self.labels)] if self.labels else "A").encode() for row in range(num_rows)]
        if spec.dtype == tf.string:
            return [self._text(row, n) for row, n in enumerate(lengths)]
        settings = {
            "temperature": (1.0, 0.8, 0.0),
            "top_k": (0, 3),
            "top_p": (1.0, 0.9),
            "num_sweeps": (2, 1, 0),
            "step": (0, 1, 2),
        }
        if name in settings:
            return np.resize(settings[name], num_rows)
        if name == "lengths" or name in _STEPS:
            return lengths
        if name == "seed":
            return seed
        if name == "log_weights":
            return np.full(shape, -np.log(shape[1]))
        if name == "observed":
            return self.rng.random(shape) < 0.7
        if name in ("u", "future_u", "particles") and not (name == "u" and self.controls):
            return self.rng.normal(size=shape)
        rows = self.controls if name == "u" else self.rows
        if not rows or name not in ("x", "v", "u", "token_ids"):
            return self.rng.integers(2, size=shape)  # 0 and 1 are in the range of every family
        return self._real(rows, spec, shape, lengths)

    def _real(self, rows: list[Any], spec: tf.TensorSpec, shape: list[int], lengths: Sequence[int]) -> np.ndarray:
        """Rows of the data: beginnings of sequences, or single steps where the signature takes one."""
        dtype = spec.dtype.as_numpy_dtype
        if not has_steps([spec]):
            return np.stack([self._numbers(rows[i % len(rows)])[:1].reshape(shape[1:]) for i in range(len(lengths))]).astype(
                dtype
            )
        found = np.zeros(shape, dtype)
        for i, n in enumerate(lengths):
            x = self._numbers(self._sequence(rows, i, n))
            found[i, :n] = x[:n]
            found[i, n:] = x[:1] if len(x) else 0
        return found

    def _sequence(self, rows: list[Any], i: int, length: int) -> Any:
        """Row i of the data where it is long enough, else the longest."""
        row = rows[i % len(rows)]
        return row if len(row) >= length else rows[0]

    def _numbers(self, x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.dtype.kind in "US":
            return self.text.to_ids(tf.constant(x)).numpy()
        return np.nan_to_num(x) if x.dtype.kind == "f" else x  # a missing value is any number

    def _text(self, i: int, length: int) -> bytes:
        """A text of so many tokens."""
        if not self.raw:
            return _TEXTS[0 if length == self.longest else 3 if length >= SHORT else 1 if length else 2]
        row = self._sequence(self.raw, i, length)
        between = "" if self.text is not None and self.text.unit == "characters" else " "
        tokens = (
            list(row) if isinstance(row, str) and not between else row.split() if isinstance(row, str) else list(map(str, row))
        )
        return between.join(tokens[:length]).encode()


def _check_fit(model: SequenceModel, rows: list[Any]) -> None:
    """Raises ValueError where sequences are not of a model's kind."""
    wanted = model.batch_spec()["x"].shape[2:]
    for x in rows:
        if not wanted.is_compatible_with(np.shape(x)[1:]):
            raise ValueError(
                f"`examples` must be sequences of this model, each of shape {['T', *wanted.as_list()]}; received one of shape "
                f"{list(np.shape(x))}. Is this another data set?"
            )
