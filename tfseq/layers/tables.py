"""Rows of probabilities with fixed and tied entries and a Dirichlet prior: initial states, transitions, symbols, mixture weights.

One parameterisation serves the gradient, EM, MAP and variational Bayes, so fixed, tied and zero entries mean the same to all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def check_rows_sum_to_one(name: str, probs: np.ndarray) -> None:
    """Raises unless `probs` `[..., C]` are rows of probabilities; the error names the row."""
    probs = np.asarray(probs, float)
    if not np.isfinite(probs).all() or (probs < 0.0).any():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(probs) | (probs < 0.0))[0])
        raise ValueError(f"`{name}` must hold probabilities; received {probs[where]} at {where}. Did you pass logarithms?")
    sums = probs.sum(-1)
    if not np.allclose(sums, 1.0, atol=1e-4):
        row = int(np.abs(sums - 1.0).reshape(-1).argmax())
        raise ValueError(
            f"Rows of `{name}` must sum to 1; row {row} of shape {list(probs.shape)} sums to {sums.reshape(-1)[row]:.6g}. "
            "Did you pass logits or counts?"
        )


class ProbabilityTable(keras.layers.Layer):
    """R distributions over C outcomes, `[R, C]`, of which entries may be fixed or tied.

    Entries with one label share their value. Rows that share a label must share all of them equally often ("tied rows"), so that
    the likelihood has its maximum in closed form: counts of a label, over those of all labels of the row, over how often it
    stands in it. p(free entries of a row) ~ Dirichlet(concentration).

    Args:
        shape: (R, C).
        fixed: `[R, C]`, the values of entries that are not learned, NaN where an entry is free; None: all are free.
        tied: `[R, C]` whole numbers, equal where entries share their value; None: none does.
        concentration: of the Dirichlet prior, a number or `[R, C]`.
        start: `[R, C]` probabilities to start with; None: `1 / number of free entries`, a little disturbed.
    """

    def __init__(
        self,
        shape: Sequence[int],
        fixed: Any = None,
        tied: Any = None,
        concentration: Any = 1.0,
        start: Any = None,
        label: str = "table",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": keras.config.dtype_policy().variable_dtype, **kwargs})
        rows, columns = self.shape = (int(shape[0]), int(shape[1]))
        fixed = checked_entries(f"fixed_{label}", np.full(self.shape, np.nan) if fixed is None else fixed, self.shape, nan=True)
        tied = np.arange(rows * columns).reshape(self.shape) if tied is None else tied
        tied = checked_entries(f"tied_{label}", tied, self.shape)
        concentration = np.asarray(concentration, float)
        if concentration.shape not in ((), (columns,), self.shape):
            raise ValueError(
                f"`{label}_concentration` must be a number or have shape {list(self.shape)}; "
                f"received {list(concentration.shape)}."
            )
        concentration = np.broadcast_to(concentration, self.shape)
        if not (concentration > 0.0).all():
            raise ValueError(f"`{label}_concentration` must be above 0; received {concentration.min():g}.")
        free, mass = np.isnan(fixed), 1.0 - np.nansum(np.where(np.isnan(fixed), 0.0, fixed), 1)
        wrong = (fixed < 0.0).any(1) | (mass < -1e-4) | (~free.any(1) & (np.abs(mass) > 1e-4))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"Fixed entries of a row of `fixed_{label}` must be probabilities that leave room for the free ones, or sum to 1 "
                f"where none is free; row {row} is {fixed[row].tolist()}."
            )
        if (free.any(1) & (mass < 1e-6)).any():
            raise ValueError(
                f"Row {int(np.argmax(free.any(1) & (mass < 1e-6)))} of `fixed_{label}` leaves nothing for its free entries."
            )
        # a block is what rows with the same labels share: one distribution over these labels
        blocks: dict[tuple, int] = {}
        width = 1
        owner: dict[float, int] = {}
        self._block_of = np.zeros(rows, int)
        self._place = np.zeros(self.shape, np.int32)  # of each free entry among the labels of its block
        for r in range(rows):
            labels, often = np.unique(tied[r][free[r]], return_counts=True)
            key = (tuple(labels), tuple(often), round(float(mass[r]), 6)) if len(labels) else (r,)
            block = blocks.setdefault(key, len(blocks))
            for one in labels:
                if owner.setdefault(one, block) != block:
                    raise ValueError(
                        f"Rows of `tied_{label}` that share a label must have the same labels as often, and the same fixed sum; "
                        f"row {r} shares {int(one)} with a row that differs."
                    )
            self._block_of[r] = block
            self._place[r, free[r]] = np.searchsorted(labels, tied[r][free[r]])
            width = max(width, len(labels))
        num_blocks = len(blocks)
        self.fixed, self._free, self._num_blocks, self._width = fixed, free, num_blocks, width
        self._index = (self._block_of[:, None] * width + self._place).astype(np.int32)  # [R, C] into [blocks, width]
        flat = self._index[free]
        self._real = np.bincount(flat, minlength=num_blocks * width).reshape(num_blocks, width) > 0
        prior = np.bincount(flat, concentration[free], num_blocks * width).reshape(num_blocks, width)
        times = np.bincount(flat, minlength=num_blocks * width).reshape(num_blocks, width)
        self._concentration = np.where(self._real, prior / np.maximum(times, 1), 1.0)
        # p(entry) = p(label) * mass of the row's free entries / how often the label stands in the row
        shared = np.ones(self.shape)
        for r in range(rows):
            for c in np.flatnonzero(free[r]):
                shared[r, c] = (tied[r][free[r]] == tied[r, c]).sum()
        with np.errstate(divide="ignore"):
            self._log_share = np.where(free, np.log(np.maximum(mass, 1e-300))[:, None] - np.log(shared), 0.0)
            self._log_fixed = np.log(np.where(free, 1.0, fixed))
        given = None if start is None else checked_entries(f"start_{label}", start, self.shape)
        logits = np.zeros((num_blocks, width))
        if given is not None:
            sums = np.bincount(flat, (given / np.exp(self._log_share))[free], num_blocks * width).reshape(num_blocks, width)
            logits = np.log(np.maximum(sums / np.maximum(times, 1), 1e-12))
        self.logits = self.add_weight(
            autocast=False, shape=logits.shape, initializer=keras.initializers.Constant(logits), name="logits"
        )
        if given is None:  # states that are all alike stay alike under every method
            noise = keras.random.normal(logits.shape, stddev=0.1, dtype=self.logits.dtype)
            self.logits.assign(noise)
        self.built = True

    @property
    def num_parameters(self) -> int:
        """Free parameters: one less than labels in each block."""
        return int(np.maximum(self._real.sum(1) - 1, 0).sum())

    @property
    def statistics_shape(self) -> tuple[int, int]:
        """Of the counts."""
        return self.shape

    def _log_labels(self, logits: tf.Tensor | None = None) -> tf.Tensor:
        """log p(label) `[blocks, width]`."""
        logits = tf.convert_to_tensor(self.logits) if logits is None else logits
        logits = tf.where(self._real, logits, tf.constant(-math.inf, logits.dtype))
        return tf.nn.log_softmax(tf.where(self._real.any(1, keepdims=True), logits, tf.zeros_like(logits)), -1)

    def _spread(self, log_labels: tf.Tensor) -> tf.Tensor:
        """Values of labels -> log p of every entry `[R, C]`."""
        entries = tf.gather(tf.reshape(log_labels, [-1]), self._index)
        share, fixed = (tf.constant(a, log_labels.dtype) for a in (self._log_share, self._log_fixed))
        return tf.where(self._free, entries + share, fixed)

    def log_probs(self, logits: tf.Tensor | None = None) -> tf.Tensor:
        """log p `[R, C]`, -inf for entries fixed at zero; with `logits`, as if these were the weights."""
        return self._spread(self._log_labels(logits))

    def _label_counts(self, counts: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(tf.where(self._free, counts, tf.zeros_like(counts)), [-1])
        total = tf.math.unsorted_segment_sum(flat, self._index.reshape(-1), self._num_blocks * self._width)
        return tf.reshape(total, [self._num_blocks, self._width])

    def assign(self, probs: Any) -> None:
        """Makes `probs` `[R, C]` the probabilities, as far as fixed and tied entries let it."""
        self._set(self._label_counts(tf.constant(np.asarray(probs, np.float64))))

    def _set(self, labels: tf.Tensor) -> None:
        """Weights `[blocks, width]` of the labels -> logits. A block without any keeps what it has."""
        labels = tf.cast(labels, tf.float64)
        total = tf.reduce_sum(tf.where(self._real, labels, tf.zeros_like(labels)), -1, keepdims=True)
        tiny = np.finfo(self.logits.dtype).tiny  # a logit that a later gradient can work with
        logits = tf.math.log(tf.maximum(tf.math.divide_no_nan(labels, total), tiny))
        new = tf.where((total > 0.0) & self._real, logits, tf.cast(self.logits, labels.dtype))
        self.logits.assign(tf.cast(new, self.logits.dtype))

    # Learning from counts --------------------------------------------------------------------------------------------

    def maximise(self, counts: tf.Tensor, prior: bool = False) -> None:
        """The most probable table given expected counts `[R, C]`; with `prior`, of the posterior (Bishop 2006, eq. 13.18-19)."""
        labels = self._label_counts(counts)
        if prior:
            labels = tf.maximum(labels + (tf.constant(self._concentration, labels.dtype) - 1.0), 0.0)
        self._set(labels)

    def log_prior(self, logits: tf.Tensor | None = None) -> tf.Tensor:
        """log density of the Dirichlet prior at the table."""
        labels = self._log_labels(logits)
        concentration = tf.constant(self._concentration, labels.dtype)
        terms = tf.where(
            self._real, (concentration - 1.0) * tf.where(self._real, labels, tf.zeros_like(labels)), tf.zeros_like(labels)
        )
        return tf.reduce_sum(terms) - tf.cast(self._log_normaliser(tf.constant(self._concentration)), terms.dtype)

    def _log_normaliser(self, concentration: tf.Tensor) -> tf.Tensor:
        """Sum over the blocks of log B(concentration)."""
        concentration = tf.cast(concentration, tf.float64)
        total = tf.reduce_sum(tf.where(self._real, concentration, 0.0), -1)
        parts = tf.reduce_sum(tf.where(self._real, tf.math.lgamma(concentration), 0.0), -1) - tf.math.lgamma(
            tf.maximum(total, 1e-30)
        )
        return tf.reduce_sum(tf.where(self._real.any(1), parts, 0.0))

    def _posterior(self, counts: tf.Tensor) -> tf.Tensor:
        return self._label_counts(tf.cast(counts, tf.float64)) + self._concentration

    def expected_log_probs(self, counts: tf.Tensor) -> tf.Tensor:
        """E log p `[R, C]` under the Dirichlet that `counts` make of the prior (Beal 2003, eq. 3.70)."""
        posterior = self._posterior(counts)
        total = tf.reduce_sum(tf.where(self._real, posterior, 0.0), -1, keepdims=True)
        expected = tf.math.digamma(posterior) - tf.math.digamma(tf.maximum(total, 1e-30))
        return tf.cast(self._spread(expected), self.logits.dtype)

    def use_mean(self, counts: tf.Tensor) -> None:
        """The posterior mean becomes the table."""
        self._set(self._posterior(counts))

    def divergence(self, counts: tf.Tensor) -> tf.Tensor:
        """KL(posterior given `counts` || prior), nats, float64."""
        posterior, prior = self._posterior(counts), tf.constant(self._concentration)
        total = tf.reduce_sum(tf.where(self._real, posterior, 0.0), -1, keepdims=True)
        expected = tf.math.digamma(posterior) - tf.math.digamma(tf.maximum(total, 1e-30))
        change = tf.reduce_sum(tf.where(self._real, (posterior - prior) * expected, 0.0))
        return change - self._log_normaliser(posterior) + self._log_normaliser(prior)


def stationary(log_transition: tf.Tensor) -> tf.Tensor:
    """log of the stationary distribution of a transition matrix `[..., K, K]`, `[..., K]`: delta (I - A + U) = 1, U all ones.

    Zucchini and MacDonald 2009, "Hidden Markov Models for Time Series", sec. 1.3.2.
    """
    probs = tf.exp(log_transition)
    size = probs.shape[-1]
    system = tf.eye(size, dtype=probs.dtype) - probs + tf.ones_like(probs)
    solution = tf.linalg.solve(tf.linalg.matrix_transpose(system), tf.ones_like(probs[..., :1]))[..., 0]
    return tf.math.log(tf.maximum(solution, np.finfo(probs.dtype.as_numpy_dtype).tiny))


def closed_classes(may: np.ndarray) -> list[list[int]]:
    """The classes of states that lead to one another and to no others, where state i may go to j (`may` `[K, K]` bool)."""
    reach = may | np.eye(len(may), dtype=bool)
    for k in range(len(reach)):
        reach |= reach[:, k : k + 1] & reach[k]
    is_closed = (~reach | reach.T).all(1)  # all that is reached leads back
    return [np.flatnonzero(row).tolist() for row in np.unique(reach[is_closed], axis=0)[::-1]]


def checked_entries(name: str, value: Any, shape: tuple[int, ...], nan: bool = False) -> np.ndarray:
    """`value` as an array of this shape, with NaN for None where `nan` lets it; raises where it is no such array."""
    try:
        array = np.array(value, float)
    except (TypeError, ValueError):  # no numbers, or rows of several lengths
        raise ValueError(f"`{name}` must have shape {list(shape)}; received {value!r}.") from None
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {list(shape)}; received {list(array.shape)}.")
    if not nan and np.isnan(array).any():
        raise ValueError(f"`{name}` must hold a number everywhere; received {array.tolist()}.")
    return array
