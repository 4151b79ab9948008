"""Linear chains: filter, smoother, two-slice marginals, leave-one-out, Viterbi and path sampling. HMMs and CRFs share them.

A chain of K states has the score  s(z) = log_initial[z_1] + sum_t log_transition[z_{t-1}, z_t] + sum_t log_emission[t, z_t]  of a
path; p(z) is exp s(z) over its sum Z. With normalised transitions and log_emission = log p(x_t | z_t), log Z is log p(x).

Every function takes `(log_initial, log_transition, log_emission, mask=None)`:

- log_initial `[K]` or `[B, K]`;
- log_transition `[K, K]` (from, to), `[T-1, K, K]` (the first leads from step 1 to step 2), `[B, T-1, K, K]`, or `[B, 1, K, K]`
  for one matrix a row at all its steps;
- log_emission `[B, T, K]`, T >= 1, -inf where impossible. A step that was not measured has zeros: the chain moves on all the
  same;
- mask `[B, T]` bool, True = real step, padding on the right. What stands at padded steps, NaN included, changes nothing.

Messages are normalised at every step: a product with the K x K matrix, times the emission over its largest, over the sum (Rabiner
1989, sec. V.A), so nothing drifts however long the chain. Where an entry of the transition is (nearly) zero, a state that has
lost all its float32 probability may still win later. Such chains go through the same recursions in float64, where the pattern of
zeros bounds what a state can lose (the constraints of tagging schemes do), and else in log space. Impossible data has
log Z = -inf, and marginals and gradients of zero: no NaN.

Of a recursion there are three forms, equal but for rounding:

- `"sequential"`: T steps of O(B K^2);
- `"blocked"`: the chain cut into about sqrt(T) blocks, whose K x K transfer matrices are found side by side: O(sqrt(T)) steps of
  O(B sqrt(T) K^3), memory T K. For long chains and few of them;
- `"associative"`: `tfp.math.scan_associative` over all transfer matrices (Sarkka and Garcia-Fernandez 2021): O(log T) steps,
  memory T K^2. For accelerators; needs a number of steps that is known when the graph is made, and else is `"blocked"`;
- `"auto"` chooses by the sizes and the device.

Inside this file time comes first. A message is `[n, B, R, K]`: n blocks, R = 1 row, or R = K rows for a transfer matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfseq import checks
from tfseq.ops import random, scan
from tfseq.ops.linear import project
from tfseq.ops.masking import fill, mask_to_lengths
from tfseq.ops.tracing import is_compiled, wants_gradients, wide

Form = Literal["auto", "sequential", "blocked", "associative"]
FORMS = ("auto", "sequential", "blocked", "associative")
_LONG = 1024  # steps from which blocks pay


class Posterior(NamedTuple):
    """Marginals of a chain; all zero at padded steps.

    Attributes:
        log_prob: log Z, `[B]`.
        predicted: p(z_t | x_1 .. x_{t-1}), `[B, T, K]`.
        filtered: p(z_t | x_1 .. x_t), `[B, T, K]`.
        smoothed: p(z_t | x_1 .. x_T), `[B, T, K]`.
        leave_one_out: p(z_t | all x but x_t), `[B, T, K]`.
    """

    log_prob: tf.Tensor
    predicted: tf.Tensor
    filtered: tf.Tensor
    smoothed: tf.Tensor
    leave_one_out: tf.Tensor


class Filtered(NamedTuple):
    """log p(x_t | x_1 .. x_{t-1}) `[B, T]`, p(z_t | x_1 .. x_{t-1}), p(z_t | x_1 .. x_t) `[B, T, K]`; zeros at padded steps."""

    log_prob: tf.Tensor
    predicted: tf.Tensor
    filtered: tf.Tensor


class Path(NamedTuple):
    """The best path: states `[B, T]` int32, -1 at padded steps, and its score `[B]`, -inf where every path is impossible."""

    states: tf.Tensor
    score: tf.Tensor


class Paths(NamedTuple):
    """The best paths, best first: states `[B, N, T]` int32, -1 at padded steps and of paths that do not exist; score `[B, N]`.

    The score is -inf where there are fewer possible paths.
    """

    states: tf.Tensor
    score: tf.Tensor


# What a message is made of ------------------------------------------------------------------------------------------


class _Probabilities:
    """Messages are probabilities; a step is a product of matrices."""

    def take(self, log_values: tf.Tensor) -> tf.Tensor:
        return tf.exp(log_values)

    def advance(self, message: tf.Tensor, transition: tf.Tensor) -> tf.Tensor:
        """`[..., R, K]` with `[K, K]` or `[..., K, K]`: sum over the state before."""
        return project(message, transition) if transition.shape.rank == 2 else tf.matmul(message, transition)

    def weigh(self, message: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return message * factor

    def normalise(self, message: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The message over its sum, all rows together, and the logarithm of the sum `[..., 1, 1]`; zeros stay zeros."""
        total = tf.reduce_sum(message, [-2, -1], keepdims=True)
        return tf.math.divide_no_nan(message, total), tf.math.log(total)

    def to_probs(self, message: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(message, tf.reduce_sum(message, -1, keepdims=True))

    def to_logs(self, message: tf.Tensor) -> tf.Tensor:
        return tf.math.log(message)


class _Logs:
    """Messages are logarithms, summed by logsumexp: exact whatever the range, at K^2 exponentials a step."""

    def take(self, log_values: tf.Tensor) -> tf.Tensor:
        return log_values

    def reduce(self, values: tf.Tensor, axis: Any, keepdims: bool = False) -> tf.Tensor:
        """logsumexp that is -inf, without NaN, where all is impossible."""
        top = tf.reduce_max(values, axis, keepdims=True)
        top = tf.where(top > -math.inf, top, tf.zeros_like(top))
        total = tf.math.log(tf.reduce_sum(tf.exp(values - top), axis, keepdims=True)) + top
        return total if keepdims else tf.squeeze(total, axis)

    def advance(self, message: tf.Tensor, transition: tf.Tensor) -> tf.Tensor:
        # the unreduced [..., R, from, to]
        return self.reduce(message[..., None] + transition[..., None, :, :], -2)

    def weigh(self, message: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return message + factor

    def normalise(self, message: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        total = self.reduce(message, [-2, -1], keepdims=True)
        return tf.where(total > -math.inf, message - total, message), total

    def to_probs(self, message: tf.Tensor) -> tf.Tensor:
        top = tf.reduce_max(message, -1, keepdims=True)
        return _PROBABILITIES.to_probs(tf.exp(message - tf.where(top > -math.inf, top, tf.zeros_like(top))))

    def to_logs(self, message: tf.Tensor) -> tf.Tensor:
        return message


class _Maxima(_Logs):
    """The same with a maximum for the sum: Viterbi."""

    def reduce(self, values: tf.Tensor, axis: Any, keepdims: bool = False) -> tf.Tensor:
        return tf.reduce_max(values, axis, keepdims=keepdims)

    def advance(self, message: tf.Tensor, transition: tf.Tensor) -> tf.Tensor:
        num_states = message.shape[-1]
        if not is_compiled() or num_states > 64:
            return super().advance(message, transition)
        best = message[..., :1] + transition[..., 0, None, :]  # written out, XLA makes vector instructions of it
        for k in range(1, num_states):
            best = tf.maximum(best, message[..., k : k + 1] + transition[..., k, None, :])
        return best


_PROBABILITIES, _LOGS, _MAXIMA = _Probabilities(), _Logs(), _Maxima()


# A chain in one direction -------------------------------------------------------------------------------------------


class _Chain(NamedTuple):
    """What a recursion runs over: time first, in logarithms or as a ring takes them.

    Attributes:
        first: message before the first real step, `[B, 1, K]`.
        transition: `[K, K]`, or `[T-1, 1 or B, K, K]`, or `[1, B, K, K]` for all steps.
        emission: `[T, B, 1, K]`, of largest value 0 (as a logarithm) at each step.
        keep: `[T, B, 1, 1]` bool, or None where every step is real.
        starts: `[T, B, 1, 1]` bool where the message is `first` again, or None where that is step 1 alone.
    """

    first: tf.Tensor
    transition: tf.Tensor
    emission: tf.Tensor
    keep: tf.Tensor | None
    starts: tf.Tensor | None


class _Problem(NamedTuple):
    """The arguments of a public function, checked; the chain runs forward; `offset` `[T, B]` was taken from the emission."""

    chain: _Chain
    offset: tf.Tensor
    mask: tf.Tensor | None
    form: str


def _problem(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any, form: str) -> _Problem:
    checks.choice("form", form, FORMS)
    log_emission = tf.convert_to_tensor(log_emission)
    dtype = log_emission.dtype
    log_initial, log_transition = tf.convert_to_tensor(log_initial, dtype), tf.convert_to_tensor(log_transition, dtype)
    if log_emission.shape.rank != 3:
        raise ValueError(f"`log_emission` must have shape [B, T, K]; received {log_emission.shape}. Add the batch axis: x[None].")
    num_states = log_emission.shape[-1]
    if log_initial.shape[-1] != num_states or log_initial.shape.rank not in (1, 2):
        raise ValueError(f"`log_initial` must have shape [K] or [B, K] with K = {num_states}; received {log_initial.shape}.")
    if log_transition.shape.rank not in (2, 3, 4) or log_transition.shape[-2:] != [num_states, num_states]:
        raise ValueError(
            f"`log_transition` must have shape [K, K], [T-1, K, K] or [B, T-1, K, K] with K = {num_states}; "
            f"received {log_transition.shape}."
        )
    steps, matrices = log_emission.shape[1], log_transition.shape[-3] if log_transition.shape.rank > 2 else None
    is_constant = log_transition.shape.rank == 4 and matrices == 1
    if None not in (steps, matrices) and matrices != steps - 1 and not is_constant:
        raise ValueError(
            f"`log_transition` must have T - 1 = {steps - 1} matrices, one a pair of steps; received {log_transition.shape}."
        )
    keep = None
    if mask is not None:
        mask = tf.convert_to_tensor(mask, tf.bool)
        log_emission = fill(log_emission, mask)
        keep = tf.transpose(mask)[:, :, None, None]
    emission = tf.transpose(log_emission, [1, 0, 2])
    offset = tf.reduce_max(emission, -1)
    offset = tf.where(tf.math.is_finite(offset), offset, tf.zeros_like(offset))
    rank = log_transition.shape.rank
    transition = (
        log_transition if rank == 2 else log_transition[:, None] if rank == 3 else tf.einsum("btij->tbij", log_transition)
    )
    first = tf.broadcast_to(log_initial, tf.shape(emission)[1:])[:, None]
    chain = _Chain(first, transition, (emission - offset[..., None])[:, :, None], keep, None)
    if steps == 1:
        form = "sequential"
    elif form == "auto":
        form = _choose(emission)
    elif form == "associative" and steps is None:
        form = "blocked"
    return _Problem(chain, offset, mask, form)


def _choose(emission: tf.Tensor) -> str:
    """The form for emissions `[T, B, K]`; `"either"` where only the graph will know the number of steps.

    A block costs K times the products of the sequential form and saves it most of its steps. One step of a loop took as long
    as products of B K^3 = 130,000 where this was measured (one core, B K^3 the size of a block's step for each step saved);
    compiled by XLA for a CPU it costs next to nothing.
    """
    steps, rows, num_states = emission.shape
    if is_compiled() and not tf.config.list_physical_devices("GPU"):
        return "sequential"
    if tf.config.list_physical_devices("GPU") and num_states <= 16 and (steps or 0) >= 1000 and (rows or 2**20) <= 64:
        return "associative"
    if rows is not None and rows * num_states**3 > 130_000:
        return "sequential"
    if steps is None or rows is None:
        return "either"
    return "blocked" if steps > _LONG else "sequential"


def _take(ring: Any, chain: _Chain) -> _Chain:
    """A chain in logarithms as the ring's values."""
    first, transition, emission = (ring.take(a) for a in chain[:3])
    return chain._replace(first=first, transition=transition, emission=emission)


def _reversed(chain: _Chain, ring: Any) -> _Chain:
    """The same chain from its end: its message at a step is p(x from that step on | z), including the step's emission."""
    rank = chain.transition.shape.rank
    transition = chain.transition if rank == 2 else chain.transition[::-1]
    keep, starts = chain.keep, None
    if keep is not None:
        keep = keep[::-1]
        starts = keep & ~tf.concat([tf.zeros_like(keep[:1]), keep[:-1]], 0)
    ones = ring.take(tf.zeros_like(chain.first))
    flat = ring.normalise(ones)[0]
    return _Chain(flat, tf.linalg.matrix_transpose(transition), chain.emission[::-1], keep, starts)


class _Messages(NamedTuple):
    """Of every step: the message before its emission `[T, B, K]`, and the logarithm of its normaliser `[T, B]`."""

    predicted: tf.Tensor
    log_norm: tf.Tensor


def _advance(
    ring: Any, message: tf.Tensor, first: tf.Tensor, transition: tf.Tensor, emission: tf.Tensor, keep: Any, starts: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(message, message before the emission, log normaliser) of the next step."""
    predicted = ring.advance(message, transition)
    if starts is not None:
        predicted = tf.where(starts, first, predicted)
    new, log_norm = ring.normalise(ring.weigh(predicted, emission))
    if keep is not None:
        new, log_norm = tf.where(keep, new, message), tf.where(keep, log_norm, tf.zeros_like(log_norm))
    return new, predicted, log_norm


def _beginning(ring: Any, chain: _Chain) -> tuple[tf.Tensor, tf.Tensor]:
    """Message `[B, 1, K]` after step 1 and its log normaliser `[B, 1, 1]`."""
    new, log_norm = ring.normalise(ring.weigh(chain.first, chain.emission[0]))
    if chain.keep is not None:
        new = tf.where(chain.keep[0], new, chain.first)
        log_norm = tf.where(chain.keep[0], log_norm, tf.zeros_like(log_norm))
    return new, log_norm


class _Blocks(NamedTuple):
    """Steps 2 .. T in n blocks of C: transition `[K, K]` or `[C or 1, n or 1, 1 or B, K, K]`, others `[C, n, B, 1, ...]`."""

    transition: tf.Tensor
    emission: tf.Tensor
    keep: tf.Tensor | None
    starts: tf.Tensor | None

    def at(self, step: tf.Tensor) -> tuple:
        """What `_advance` takes of a step of all blocks."""
        transition = self.transition
        if transition.shape.rank > 2:
            transition = transition[0 if transition.shape[0] == 1 else step]
        return (
            transition,
            self.emission[step],
            None if self.keep is None else self.keep[step],
            None if self.starts is None else self.starts[step],
        )


def _cut(chain: _Chain, num_blocks: tf.Tensor | int) -> _Blocks:
    """Steps 2 .. T in blocks; the last one is filled up with steps that are not real."""
    emission, keep, starts = chain.emission[1:], chain.keep, chain.starts
    transition = chain.transition
    keep = None if keep is None else keep[1:]
    starts = None if starts is None else starts[1:]
    if isinstance(num_blocks, int) and num_blocks == 1:
        transition = transition if transition.shape.rank == 2 else transition[:, None]
        return _Blocks(transition, emission[:, None], *(None if a is None else a[:, None] for a in (keep, starts)))
    num_steps = tf.shape(emission)[0] if emission.shape[0] is None else emission.shape[0]
    size = -(-num_steps // num_blocks)
    if not isinstance(size, int):
        size = tf.maximum(1, size)  # no step at all: an array of TensorFlow must have one
    keep = tf.ones_like(emission[..., :1], tf.bool) if keep is None else keep

    def cut(a: tf.Tensor) -> tf.Tensor:
        a = tf.pad(a, [[0, num_blocks * size - tf.shape(a)[0]], *[[0, 0]] * (a.shape.rank - 1)])
        a = tf.reshape(a, tf.concat([[num_blocks, size], tf.shape(a)[1:]], 0))
        return tf.transpose(a, [1, 0, *range(2, a.shape.rank)])

    return _Blocks(
        transition if transition.shape.rank == 2 else transition[:, None] if transition.shape[0] == 1 else cut(transition),
        cut(emission),
        cut(keep),
        None if starts is None else cut(starts),
    )


def _block_count(steps: Any, form: str) -> Any:
    """About sqrt(steps) blocks, a Python number where the number of steps is one; of `"either"` one block where they are few."""
    if isinstance(steps, int):
        return max(1, math.isqrt(steps)) if form == "blocked" or steps >= _LONG else 1
    count = tf.maximum(1, tf.cast(tf.sqrt(tf.cast(steps, tf.float64)), tf.int32))
    return count if form == "blocked" else tf.where(steps >= _LONG, count, 1)


def _run(ring: Any, chain: _Chain, blocks: _Blocks, message: tf.Tensor, before: Sequence[tf.Tensor] = ()) -> _Messages:
    """From the messages `[n, B, 1, K]` before each block, those of all its steps `[C, n, B, 1, K]`; first come those `before`."""
    offset = 1 if before else 0
    size = blocks.emission.shape[0]
    size = (tf.shape(blocks.emission)[0] if size is None else size) + offset
    shape = message.shape
    predicted = tf.TensorArray(message.dtype, size, element_shape=shape)
    log_norm = tf.TensorArray(message.dtype, size, element_shape=[*shape[:2], 1, 1])
    if before:
        predicted, log_norm = predicted.write(0, before[0]), log_norm.write(0, before[1])

    def body(t: tf.Tensor, message: tf.Tensor, predicted: tf.TensorArray, log_norm: tf.TensorArray) -> tuple:
        message, now, norm = _advance(ring, message, chain.first, *blocks.at(t - offset))
        message, now = tf.ensure_shape(message, shape), tf.ensure_shape(now, shape)
        return t + 1, message, predicted.write(t, now), log_norm.write(t, norm)

    _, _, predicted, log_norm = tf.while_loop(lambda t, *_: t < size, body, (offset, message, predicted, log_norm))
    return _Messages(predicted.stack(), log_norm.stack())


def _transfer(ring: Any, chain: _Chain, blocks: _Blocks, even_one: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """Transfer matrix of each block `[n, B, K, K]` over its normaliser, and the logarithm of that `[n, B, 1, 1]`."""
    size, num_blocks, rows = tf.unstack(tf.shape(blocks.emission)[:3])
    num_states = chain.first.shape[-1]
    identity = ring.take(tf.math.log(tf.eye(num_states, dtype=chain.first.dtype)))
    matrix = tf.tile(identity[None, None], [num_blocks, rows, 1, 1])
    zeros = tf.zeros([num_blocks, rows, 1, 1], matrix.dtype)
    if not even_one:  # what is before a single block is known
        size = tf.where(num_blocks > 1, size, 0)

    def body(t: tf.Tensor, matrix: tf.Tensor, total: tf.Tensor) -> tuple:
        matrix, _, log_norm = _advance(ring, matrix, chain.first, *blocks.at(t))
        return t + 1, matrix, total + log_norm

    _, matrix, total = tf.while_loop(lambda t, *_: t < size, body, (0, matrix, zeros))
    return matrix, total


def _across(ring: Any, matrix: tf.Tensor, message: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """From the message `[1, B, 1, K]` before all blocks, those before each `[n, B, 1, K]`; log normaliser of all `[B, 1, 1]`."""
    num_blocks = tf.shape(matrix)[0]
    history = tf.TensorArray(message.dtype, num_blocks, element_shape=message.shape[1:])

    def body(i: tf.Tensor, message: tf.Tensor, total: tf.Tensor, history: tf.TensorArray) -> tuple:
        new, log_norm = ring.normalise(ring.advance(message, matrix[i][None]))
        total = tf.ensure_shape(total + log_norm, zeros.shape)  # a batch of one row may be known to be one
        return i + 1, tf.ensure_shape(new, message.shape), total, history.write(i, message[0])

    zeros = tf.zeros_like(message[..., :1])
    _, _, total, history = tf.while_loop(lambda i, *_: i < num_blocks, body, (0, message, zeros, history))
    return history.stack(), total[0]


def _messages(ring: Any, chain: _Chain, form: str) -> _Messages:
    """The recursion over all steps of a chain in the ring's values."""
    num_steps = chain.emission.shape[0]
    if form == "associative":
        return _associative(ring, chain)
    message, log_norm = _beginning(ring, chain)
    start = (chain.first[None], log_norm[None])
    if form == "sequential":
        found = _run(ring, chain, _cut(chain, 1), message[None], start)
        return _Messages(found.predicted[:, 0, :, 0], found.log_norm[:, 0, :, 0, 0])
    rest = num_steps - 1 if num_steps else tf.shape(chain.emission)[0] - 1
    blocks = _cut(chain, _block_count(rest, form))
    incoming, _ = _across(ring, _transfer(ring, chain, blocks)[0], message[None])
    later = _run(ring, chain, blocks, incoming)

    def joined(first: tf.Tensor, a: tf.Tensor) -> tf.Tensor:
        """`[C, n, B, 1, k]` -> `[T, B, k]`, `first` `[1, B, 1, k]` in front."""
        a = tf.transpose(a, [1, 0, 2, 3, 4])
        a = tf.reshape(a, tf.concat([[-1], tf.shape(a)[2:]], 0))[:rest]
        return tf.concat([first, a], 0)[:, :, 0]

    return _Messages(joined(start[0], later.predicted), joined(start[1], later.log_norm)[..., 0])


def _associative(ring: Any, chain: _Chain) -> _Messages:
    """All prefix products of the steps' transfer matrices by `scan_associative`."""
    message, log_norm = _beginning(ring, chain)
    num_states = message.shape[-1]
    identity = ring.take(tf.math.log(tf.eye(num_states, dtype=message.dtype)))
    # [T - 1, B, K, K]: one step from every state
    rows = tf.zeros_like(chain.emission[1:]) + identity
    transition = chain.transition
    predicted = ring.advance(rows, transition) if transition.shape.rank == 2 else tf.broadcast_to(transition, tf.shape(rows))
    if chain.starts is not None:
        predicted = tf.where(chain.starts[1:], chain.first, predicted)
    matrix, total = ring.normalise(ring.weigh(predicted, chain.emission[1:]))
    if chain.keep is not None:
        matrix, total = tf.where(chain.keep[1:], matrix, identity), tf.where(chain.keep[1:], total, tf.zeros_like(total))

    def compose(before: tuple, after: tuple) -> tuple:
        product, norm = ring.normalise(ring.advance(before[0], after[0]))
        return product, before[1] + after[1] + norm

    matrix, total = _scan_all(compose, (matrix, total))
    messages, last = ring.normalise(ring.advance(tf.broadcast_to(message, tf.shape(chain.emission[1:])), matrix))
    cumulative = tf.concat([log_norm[None], log_norm + total + last], 0)  # log normaliser of steps 1 .. t
    messages = tf.concat([message[None], messages], 0)
    norms = tf.concat([cumulative[:1], _difference(cumulative)], 0)
    later = ring.advance(messages[:-1], transition)
    if chain.starts is not None:
        later = tf.where(chain.starts[1:], chain.first, later)
    return _Messages(tf.concat([chain.first[None], later], 0)[:, :, 0], norms[..., 0, 0])


def _scan_all(compose: Callable, elements: Any) -> Any:
    """`scan_associative`, of no elements too."""
    return tfp.math.scan_associative(compose, elements) if tf.nest.flatten(elements)[0].shape[0] else elements


def _difference(cumulative: tf.Tensor) -> tf.Tensor:
    """Differences over time; after a step that is impossible all is, and -inf - -inf would be NaN."""
    before, after = cumulative[:-1], cumulative[1:]
    return tf.where(before > -math.inf, after - before, before)


def _total(values: tf.Tensor) -> tf.Tensor:
    """Sum over time of `[T, B]` -> `[B]`, in float64: a million float32 terms would round by more than a nat."""
    return tf.cast(tf.reduce_sum(tf.cast(values, wide(values.dtype)), 0), values.dtype)


def _log_total(problem: _Problem, log_norm: tf.Tensor) -> tf.Tensor:
    """log Z `[B]` from the normalisers' sum `[B]`; exactly 0 where no step is real."""
    total = log_norm + _total(problem.offset)
    return total if problem.mask is None else fill(total, problem.mask[:, 0])


def _exact(problem: _Problem, function: Callable[[Any, _Chain], Any]) -> Any:
    """`function(ring, chain)` with probabilities where none can be lost, if need be in float64, else with logarithms."""
    chain = problem.chain
    dtype = chain.first.dtype
    precise = wide(dtype)

    def with_ring(ring: Any) -> Callable[[], Any]:
        return lambda: function(ring, _take(ring, chain))

    def precisely() -> Any:
        found = function(_PROBABILITIES, _take(_PROBABILITIES, _cast(chain, precise)))
        return tf.nest.map_structure(lambda a: tf.cast(a, dtype), found)

    def otherwise() -> Any:
        if chain.transition.shape.rank != 2 or precise != tf.float64:
            return with_ring(_LOGS)()
        return _either(_is_bounded(chain, precise), precisely, with_ring(_LOGS))

    return _either(_is_plain(chain), with_ring(_PROBABILITIES), otherwise)


def _either(condition: tf.Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`tf.cond`, without a graph where there is none."""
    return (yes() if condition else no()) if tf.executing_eagerly() else tf.cond(condition, yes, no)


def _cast(chain: _Chain, dtype: tf.DType) -> _Chain:
    first, transition, emission = (tf.cast(a, dtype) for a in chain[:3])
    return chain._replace(first=first, transition=transition, emission=emission)


def _log_smallest(dtype: tf.DType) -> float:
    """Logarithm of a number of which three may be multiplied: smoothing multiplies two messages and an emission."""
    return math.log(np.finfo(dtype.as_numpy_dtype).tiny) / 3.0


def _is_plain(chain: _Chain) -> tf.Tensor:
    """Whether messages may be probabilities in the chain's own dtype, since no transition is too small for that.

    With all entries of the transition at least e (the largest is 1), a message has no entry below e times the largest, and a
    state of which less is left counts for nothing. What the first step alone makes impossible must leave it something too.
    """
    smallest = _log_smallest(chain.first.dtype)
    beginning = tf.reduce_max(chain.first + chain.emission[0], [-2, -1])
    return (tf.reduce_min(chain.transition) >= smallest) & tf.reduce_all((beginning >= smallest) | (beginning == -math.inf))


def _is_bounded(chain: _Chain, dtype: tf.DType) -> tf.Tensor:
    """Whether zeros of the transition `[K, K]` leave every state that is possible at a step enough of a probability in `dtype`.

    Where d transitions lead from every state (that leads anywhere) to every other (that can be reached), as d = 2 in BIO, a
    possible state has at least exp(d (e + r)) / K^d of the mass: e is the smallest possible transition, and r what a step's
    emissions differ by at most. For the mass is at most K^d times what the heaviest state of d steps before had, and from it a
    way leads here. Ways of fewer steps than d begin at the first step, or at a known state, the only one its emission lets in.
    An emission that forbids some states is neither; it is harmless at the last step alone.
    """
    num_states = chain.first.shape[-1]
    impossible = -math.inf

    def smallest(values: tf.Tensor, axis: Any = None) -> tf.Tensor:
        """Minimum of what is possible, at most 0."""
        return tf.minimum(tf.reduce_min(tf.where(values > impossible, values, tf.zeros_like(values)), axis), 0.0)

    leads = tf.cast(chain.transition > impossible, tf.float32)
    depth, ways = tf.constant(math.inf), leads
    for d in range(1, 5):  # BIOES needs 3
        is_way = ways > 0.0
        is_even = tf.reduce_all(is_way == (tf.reduce_any(is_way, 1, keepdims=True) & tf.reduce_any(is_way, 0, keepdims=True)))
        depth = tf.minimum(depth, tf.where(is_even, float(d), math.inf))
        ways = tf.matmul(ways, leads)
    possible = tf.math.count_nonzero(chain.emission > impossible, [-2, -1], dtype=tf.int32)[1:]
    is_harmless = (possible == num_states) | (possible <= 1)
    if chain.keep is None:
        is_last = tf.range(tf.shape(possible)[0])[:, None] == tf.shape(possible)[0] - 1
    else:
        keep = chain.keep[1:, :, 0, 0]
        is_last = ~tf.concat([keep[1:], tf.zeros_like(chain.keep[:1, :, 0, 0])], 0)[: tf.shape(possible)[0]]
    step = tf.minimum(smallest(chain.emission), smallest(chain.first + chain.emission[0]))
    step += smallest(chain.transition) - math.log(num_states)
    bound = depth * tf.cast(step, tf.float32)
    return tf.reduce_all(is_harmless | is_last) & (bound >= _log_smallest(dtype))


def _scaled(problem: _Problem, ring: Any = _LOGS) -> _Problem:
    """The problem with a first message of sum (of the ring) 1 and transitions of largest value 1; `offset` has what that took."""
    chain, mask = problem.chain, problem.chain.keep
    rank = chain.transition.shape.rank
    top = tf.reduce_max(chain.transition, None if rank == 2 else [-2, -1], keepdims=True)
    top = tf.where(tf.math.is_finite(top), top, tf.zeros_like(top))
    first, total = ring.normalise(chain.first)
    total = tf.where(tf.math.is_finite(total), total, tf.zeros_like(total))
    change = tf.broadcast_to(top[..., 0, 0], tf.shape(problem.offset[1:]))
    change = tf.concat([total[None, :, 0, 0], change], 0)
    change = change if mask is None else fill(change, mask[:, :, 0, 0])
    return problem._replace(chain=chain._replace(first=first, transition=chain.transition - top), offset=problem.offset + change)


def _batch_major(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """`[T, B, ...]` -> `[B, T, ...]`, zero at padded steps."""
    values = tf.transpose(values, [1, 0, *range(2, values.shape.rank)])
    return values if mask is None else fill(values, mask)


def log_sum_exp(values: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """logsumexp along an axis; -inf, without NaN, where every value is."""
    return _LOGS.reduce(values, axis)


# Public functions ---------------------------------------------------------------------------------------------------


def log_prob(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto") -> tf.Tensor:
    """log Z of each chain, `[B]`; with differentiable arguments, exactly and without a gradient through the recursion.

    d log Z / d log_emission[t, k] = p(z_t = k | x), and d log Z / d log_transition, d log_initial are the two-slice and the first
    marginals (Fisher's identity). The gradient has no gradient of its own.
    """
    if not wants_gradients():  # a served graph has no use for them
        return _log_prob(_scaled(_problem(log_initial, log_transition, log_emission, mask, form)))
    log_emission = tf.convert_to_tensor(log_emission)
    tensors = [tf.convert_to_tensor(a, log_emission.dtype) for a in (log_initial, log_transition)]

    @tf.custom_gradient
    def exact(log_initial: tf.Tensor, log_transition: tf.Tensor, log_emission: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            smoothed, counts = _smooth_and_count(problem, log_transition.shape.rank, weights=upstream)
            emission = smoothed * upstream[:, None, None]
            start = emission[:, 0]
            return [tf.reduce_sum(start, 0) if log_initial.shape.rank == 1 else start, counts, emission]

        return _log_prob(problem), gradient

    return exact(*tensors, log_emission)


def _log_prob(problem: _Problem) -> tf.Tensor:
    def of(ring: Any, chain: _Chain) -> tf.Tensor:
        if problem.form != "blocked":
            return _total(_messages(ring, chain, problem.form).log_norm)
        message, log_norm = _beginning(ring, chain)  # the blocks' transfer matrices say enough
        num_steps = chain.emission.shape[0]
        blocks = _cut(chain, _block_count(num_steps - 1 if num_steps else tf.shape(chain.emission)[0] - 1, "blocked"))
        matrix, total = _transfer(ring, chain, blocks, even_one=True)
        _, across = _across(ring, matrix, message[None])
        return _total(tf.concat([(log_norm + across)[None], total], 0)[..., 0, 0])

    return _log_total(problem, _exact(problem, of))


def filter(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto") -> Filtered:
    """Filter and one-step prediction; the log-probabilities sum to log Z over time."""
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))

    def of(ring: Any, chain: _Chain) -> tuple[tf.Tensor, ...]:
        predicted, log_norm = _messages(ring, chain, problem.form)
        return log_norm, ring.to_probs(predicted), ring.to_probs(ring.weigh(predicted, chain.emission[:, :, 0]))

    log_norm, predicted, filtered = _exact(problem, of)
    return Filtered(*(_batch_major(a, problem.mask) for a in (log_norm + problem.offset, predicted, filtered)))


def posterior(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto") -> Posterior:
    """All marginals of single steps from one pass forward and one pass back (see `Posterior`)."""
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))

    def of(ring: Any, chain: _Chain) -> tuple[tf.Tensor, ...]:
        (predicted, log_norm), future = _both(ring, chain, problem.form)
        emission = chain.emission[:, :, 0]
        others = ring.weigh(predicted, future)  # p(z_t | x_-t) is proportional to it
        all_of_it = (predicted, ring.weigh(predicted, emission), ring.weigh(others, emission), others)
        return log_norm, *(ring.to_probs(a) for a in all_of_it)

    log_norm, *marginals = _exact(problem, of)
    return Posterior(_log_total(problem, _total(log_norm)), *(_batch_major(a, problem.mask) for a in marginals))


def smooth(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto") -> tf.Tensor:
    """p(z_t | x) `[B, T, K]` alone."""
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))

    def of(ring: Any, chain: _Chain) -> tf.Tensor:
        forward, future = _both(ring, chain, problem.form)
        return ring.to_probs(ring.weigh(ring.weigh(forward.predicted, future), chain.emission[:, :, 0]))

    return _batch_major(_exact(problem, of), problem.mask)


def two_slice(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto") -> tf.Tensor:
    """p(z_t, z_{t+1} | x) of all neighbouring steps, `[B, T-1, K, K]`; zeros where the second is padded."""
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))
    pairs = _exact(problem, lambda ring, chain: _pairs(ring, chain, *_both(ring, chain, problem.form)))
    return _batch_major(pairs, None if problem.mask is None else problem.mask[:, 1:])


def smooth_and_count(
    log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """What an E step needs: (log Z `[B]`, p(z_t | x) `[B, T, K]`, two-slice marginals summed).

    The sum goes over the batch, and over time where log_transition is `[K, K]`: it has the shape of log_transition.
    """
    log_transition = tf.convert_to_tensor(log_transition)
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))
    smoothed, counts, log_norm = _smooth_and_count(problem, log_transition.shape.rank, want_norm=True)
    return log_norm, smoothed, counts


def _both(ring: Any, chain: _Chain, form: str) -> tuple[_Messages, tf.Tensor]:
    """Messages forward, and p(x after t | z_t) up to a factor, `[T, B, K]`."""
    return _messages(ring, chain, form), _messages(ring, _reversed(chain, ring), form).predicted[::-1]


def _pairs(ring: Any, chain: _Chain, forward: _Messages, future: tf.Tensor) -> tf.Tensor:
    """p(z_t, z_{t+1} | x), `[T - 1, B, K, K]`."""
    emission = chain.emission[:, :, 0]
    before = ring.weigh(forward.predicted, emission)[:-1]
    after = ring.weigh(emission, future)[1:]
    # each is scaled to its largest first: products of three small numbers would vanish
    before, after = (ring.normalise(a[:, :, None])[0][:, :, 0] for a in (before, after))
    joint = ring.weigh(ring.weigh(before[..., :, None], chain.transition), after[..., None, :])
    size = joint.shape[-1] or tf.shape(joint)[-1]  # the graph alone may know it
    flat = tf.reshape(joint, tf.concat([tf.shape(joint)[:2], [size * size]], 0))
    return tf.reshape(ring.to_probs(flat), tf.shape(joint))


def _smooth_and_count(problem: _Problem, rank: int, weights: tf.Tensor | None = None, want_norm: bool = False) -> tuple:
    """(p(z_t | x) `[B, T, K]`, two-slice marginals in the shape of a log_transition of `rank`; and log Z `[B]`).

    `weights` `[B]` multiply each chain's part of the sum over the batch.
    """

    def of(ring: Any, chain: _Chain) -> tuple[tf.Tensor, ...]:
        forward, future = _both(ring, chain, problem.form)
        emission = chain.emission[:, :, 0]
        joint = ring.weigh(ring.weigh(forward.predicted, emission), future)
        smoothed = ring.to_probs(joint)
        # a step counts where it is real; a pair where its second step is
        keep = tf.ones_like(forward.log_norm) if chain.keep is None else tf.cast(chain.keep[:, :, 0, 0], smoothed.dtype)
        if weights is not None:
            keep *= tf.cast(weights, keep.dtype)
        is_constant = rank == 4 and chain.transition.shape[0] == 1
        if ring is _PROBABILITIES and (rank == 2 or is_constant):
            # xi_t = alpha_{t-1} A (b_t beta_t / norm): one product over all pairs
            before = ring.to_probs(ring.weigh(forward.predicted, emission))[:-1]
            after = tf.math.divide_no_nan(emission * future, tf.reduce_sum(joint, -1, keepdims=True))[1:]
            # alpha A is `predicted` up to its scale, which is 1 in this ring
            after *= keep[1:, :, None]
            size = before.shape[-1]
            if is_constant:
                counts = (tf.einsum("tbi,tbj->bij", before, after) * chain.transition[0])[:, None]
            else:
                counts = tf.matmul(tf.reshape(before, [-1, size]), tf.reshape(after, [-1, size]), transpose_a=True)
                counts *= chain.transition
        elif rank == 2:
            counts = _counted(ring, chain, forward, future, keep)
        else:
            counts = _pairs(ring, chain, forward, future) * keep[1:, :, None, None]
            counts = tf.reduce_sum(counts, 1) if rank == 3 else tf.einsum("tbij->btij", counts)
            counts = tf.reduce_sum(counts, 1, keepdims=True) if is_constant else counts
        return smoothed, counts, forward.log_norm

    smoothed, counts, log_norm = _exact(problem, of)
    smoothed = _batch_major(smoothed, problem.mask)
    return (smoothed, counts, _log_total(problem, _total(log_norm))) if want_norm else (smoothed, counts)


def _counted(ring: Any, chain: _Chain, forward: _Messages, future: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Sum of `_pairs` over time and batch `[K, K]`, with the memory of some steps at a time."""
    num_steps, num_rows = tf.unstack(tf.shape(keep))
    num_states = chain.first.shape[-1]
    at_once = tf.maximum(1, 2**22 // (num_rows * num_states**2))

    def body(t: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        window = slice(t, tf.minimum(t + at_once, num_steps - 1) + 1)
        part = chain._replace(emission=chain.emission[window])
        pairs = _pairs(ring, part, _Messages(forward.predicted[window], forward.log_norm[window]), future[window])
        return t + at_once, total + tf.einsum("tbij,tb->ij", pairs, keep[window][1:])

    start = tf.zeros([num_states, num_states], chain.first.dtype)
    return tf.while_loop(lambda t, _: t < num_steps - 1, body, (0, start))[1]


def viterbi(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, form: Form = "auto") -> Path:
    """The path of the highest score, and that score: log_initial + transitions + emissions along it (Viterbi 1967)."""
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form), _MAXIMA)
    chain = problem.chain
    predicted, log_norm = _messages(_MAXIMA, chain, problem.form)
    scores = predicted + chain.emission[:, :, 0]

    def best(scores: tf.Tensor, _: Any) -> tf.Tensor:
        return tf.argmax(scores, -1, output_type=tf.int32)

    states = _trace_back(problem, scores, None, best)
    states = tf.transpose(states[:, :, 0])
    states = states if problem.mask is None else fill(states, problem.mask, -1)
    return Path(states, _log_total(problem, _total(log_norm)))


def n_best(log_initial: Any, log_transition: Any, log_emission: Any, mask: Any = None, *, num: int) -> Paths:
    """The `num` paths of the highest scores, by the parallel list Viterbi algorithm: O(T B K^2 num), in sequence.

    Each state keeps the best `num` ways to it, with the way each of them came (Seshadri and Sundberg 1994, sec. III).
    """
    checks.at_least(1, num=num)
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, "sequential"), _MAXIMA)
    chain = problem.chain
    num_steps, num_rows = tf.unstack(tf.shape(chain.emission)[:2])
    num_states = chain.first.shape[-1]
    keep = tf.ones([num_steps, num_rows, 1, 1], tf.bool) if chain.keep is None else chain.keep
    steps = tf.range(num_steps)
    absent = tf.fill([num_rows, num_states, num - 1], tf.constant(-math.inf, chain.first.dtype))
    first = tf.concat([tf.linalg.matrix_transpose(chain.first), absent], -1)  # [B, K, N]
    same = tf.reshape(tf.range(num_states * num), [num_states, num])
    columns = tf.linalg.matrix_transpose(chain.transition)  # [..., to, from]
    is_constant = columns.shape.rank == 2 or columns.shape[0] == 1
    if not is_constant:  # the first step takes none of them
        columns = tf.pad(columns, [[1, 0], [0, 0], [0, 0], [0, 0]])

    def advance(message: tf.Tensor, now: tuple) -> tuple:
        """Scores `[B, K, N]` of the ways to each state; their places `[B, K, N]` among the K N ways of the step before."""
        step, emission, keep = now
        matrix = columns if columns.shape.rank == 2 else columns[0 if is_constant else step]
        ways = matrix[..., None] + message[:, None]  # [B, to, from, N]
        new, came = tf.math.top_k(tf.reshape(ways, [num_rows, num_states, num_states * num]), num)
        new = tf.where(step == 0, first, new) + tf.linalg.matrix_transpose(emission)
        top = tf.reduce_max(new, [-2, -1], keepdims=True)
        new = tf.where(top > -math.inf, new - top, new)
        return (
            tf.where(keep, new, message),
            (tf.where(keep & (step > 0), came, same), tf.where(keep, top, tf.zeros_like(top))[:, 0, 0]),
        )

    outputs = (tf.broadcast_to(same, tf.shape(first)), first[:, 0, 0])
    messages, (came, log_norm) = scan.loop(advance, first, (steps, chain.emission, keep), outputs)
    score, way = tf.math.top_k(tf.reshape(messages[-1], [num_rows, num_states * num]), num)

    def back(way: tf.Tensor, came: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The way `[B, N]` of a step, as a place among K N, -> that of the step before; its state."""
        return tf.gather(tf.reshape(came, [num_rows, num_states * num]), way, batch_dims=1), way // num

    states = tf.transpose(scan.loop(back, way, came[::-1], way)[1][::-1], [1, 2, 0])  # [B, N, T]
    total = tf.where(tf.math.is_finite(score), score + _total(log_norm + problem.offset)[:, None], score)
    if problem.mask is not None:
        states = fill(states, tf.repeat(problem.mask[:, None], num, 1), -1)
        only = tf.where(tf.range(num) == 0, tf.zeros_like(total), tf.constant(-math.inf, total.dtype))
        total = tf.where(problem.mask[:, :1], total, only)  # an empty row has one path, of no steps
    return Paths(tf.where((total > -math.inf)[..., None], states, -1), total)


def sample(
    log_initial: Any, log_transition: Any, log_emission: Any, uniform: Any, mask: Any = None, *, form: Form = "auto"
) -> tf.Tensor:
    """Paths from p(z | x), by filtering forward and sampling back: uniform `[T, B, S]` in (0, 1) -> states `[B, S, T]` int32.

    -1 at padded steps. The number at step t alone decides z_t given z_{t+1} (Rabiner 1989; Scott 2002).
    """
    problem = _scaled(_problem(log_initial, log_transition, log_emission, mask, form))

    def of(ring: Any, chain: _Chain) -> tf.Tensor:
        return ring.to_logs(ring.weigh(_messages(ring, chain, problem.form).predicted, chain.emission[:, :, 0]))

    scores = _exact(problem, of)
    uniform = tf.cast(uniform, scores.dtype)

    def draw(scores: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
        """The smallest state whose cumulative probability exceeds `uniform`."""
        return random.categorical_quantile(_LOGS.to_probs(scores), uniform)

    states = tf.transpose(_trace_back(problem, scores, uniform, draw), [1, 2, 0])
    return states if problem.mask is None else fill(states, tf.repeat(problem.mask[:, None], tf.shape(states)[1], 1), -1)


def _trace_back(problem: _Problem, scores: tf.Tensor, noise: tf.Tensor | None, choose: Callable) -> tf.Tensor:
    """z_T = choose(scores_T), z_t = choose(scores_t + log_transition[:, z_{t+1}]): `[T, B, K]` -> states `[T, B, S]` int32.

    `noise` `[T, B, S]` goes to `choose` with the scores `[..., B, S, K]`. Blocks are traced back from all of their K last states
    at once, and then only those that the block after them begins with are taken. At padded steps the state does not change.
    """
    num_states = scores.shape[-1]
    num_steps = scores.shape[0] or tf.shape(scores)[0]
    columns = tf.linalg.matrix_transpose(problem.chain.transition)  # [to, from]
    keep = None if problem.chain.keep is None else problem.chain.keep[:, :, 0, 0]
    noise = tf.zeros_like(scores[..., :1]) if noise is None else noise

    def step(state: tf.Tensor, scores: tf.Tensor, columns: tf.Tensor, noise: tf.Tensor, moves: Any) -> tf.Tensor:
        """State `[n, B, S, R]` of the step after -> that of this step; noise `[n, B, S]`, moves `[n, B]`."""
        if columns.shape.rank == 2:
            arrival = tf.gather(columns, state)  # [n, B, S, R, K]
        else:
            arrival = tf.gather(
                tf.broadcast_to(columns, tf.concat([tf.shape(state)[:2], columns.shape[-2:]], 0)), state, batch_dims=2
            )
        new = choose(scores[:, :, None, None] + arrival, noise[..., None])
        return new if moves is None else tf.where(moves[:, :, None, None], new, state)

    form = problem.form
    if form == "either":
        long = tf.shape(scores)[0] > _LONG
        traces = [lambda f=f: _trace_back(problem._replace(form=f), scores, noise, choose) for f in ("blocked", "sequential")]
        return tf.cond(long, *traces)
    last = choose(scores[-1][:, None], noise[-1])  # [B, S]; of a padded last step below
    if keep is not None:  # the last real step of each row, whose scores decide
        lengths = mask_to_lengths(problem.mask)
        place = tf.stack([tf.maximum(lengths - 1, 0), tf.range(tf.size(lengths))], -1)
        last = choose(tf.gather_nd(scores, place)[:, None], tf.gather_nd(noise, place))
    sizes = tf.shape(noise)
    if form == "associative":
        every = tf.broadcast_to(tf.range(num_states), tf.concat([[sizes[0] - 1], sizes[1:], [num_states]], 0))
        moves = None if keep is None else keep[1:]
        maps = step(every, scores[:-1], columns, noise[:-1], moves)  # [T - 1, B, S, K]
        maps = _scan_all(lambda a, b: tf.gather(b, a, batch_dims=3), maps[::-1])[::-1]
        states = tf.gather(maps, tf.broadcast_to(last, tf.concat([[sizes[0] - 1], sizes[1:]], 0))[..., None], batch_dims=3)[
            ..., 0
        ]
        return tf.concat([states, last[None]], 0)
    rest = num_steps - 1
    num_blocks = _block_count(rest, form) if form == "blocked" else 1
    size = tf.maximum(1, -(-rest // num_blocks)) if form == "blocked" else rest
    filling = num_blocks * size - rest

    def cut(a: tf.Tensor) -> tf.Tensor:
        """Steps of a `[T - 1, ...]` in blocks of which the first is filled up in front: `[C, n, ...]`."""
        if form != "blocked":
            return a[:, None]
        a = tf.pad(a, [[filling, 0], *[[0, 0]] * (a.shape.rank - 1)])
        a = tf.reshape(a, tf.concat([[num_blocks, size], tf.shape(a)[1:]], 0))
        return tf.transpose(a, [1, 0, *range(2, a.shape.rank)])

    scores_cut, noise_cut = cut(scores[:-1]), cut(noise[:-1])
    is_constant = columns.shape.rank > 2 and columns.shape[0] == 1
    columns_cut = columns if columns.shape.rank == 2 else columns[:, None] if is_constant else cut(columns)
    moves_cut = None if keep is None else cut(keep[1:])
    start = last[None, ..., None]  # [1, B, S, 1]
    if form == "blocked":
        start = tf.broadcast_to(tf.range(num_states), tf.concat([[num_blocks], sizes[1:], [num_states]], 0))
    # one entry more than steps, since an array of TensorFlow must have one
    history = tf.TensorArray(tf.int32, size + 1, element_shape=start.shape).write(size, start)

    def body(t: tf.Tensor, state: tf.Tensor, history: tf.TensorArray) -> tuple:
        now = columns_cut if columns.shape.rank == 2 else columns_cut[0 if is_constant else t]
        new = step(state, scores_cut[t], now, noise_cut[t], None if moves_cut is None else moves_cut[t])
        new = tf.ensure_shape(new, start.shape)
        return t - 1, new, history.write(t, new)

    _, firsts, history = tf.while_loop(lambda t, *_: t >= 0, body, (size - 1, start, history))
    maps = history.stack()  # [C + 1, n, B, S, R]
    if form != "blocked":
        return maps[:, 0, :, :, 0]
    maps = maps[:-1]
    ends = tf.TensorArray(tf.int32, num_blocks, element_shape=last.shape)

    def resolve(i: tf.Tensor, state: tf.Tensor, ends: tf.TensorArray) -> tuple:
        """The state after block i decides that before it."""
        before = tf.gather(firsts[i], state[..., None], batch_dims=2)[..., 0]
        return i - 1, tf.ensure_shape(before, last.shape), ends.write(i, state)

    _, _, ends = tf.while_loop(lambda i, *_: i >= 0, resolve, (num_blocks - 1, last, ends))
    chosen = tf.broadcast_to(ends.stack(), tf.shape(maps)[:-1])
    states = tf.gather(maps, chosen[..., None], batch_dims=4)[..., 0]
    states = tf.reshape(tf.transpose(states, [1, 0, 2, 3]), tf.concat([[-1], sizes[1:]], 0))
    return tf.concat([states[filling:], last[None]], 0)
