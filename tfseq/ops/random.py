"""Counter-based random numbers: a row's numbers depend on its seed, its time step, a salt and an index, on nothing else.

So padding, the order of a batch and its size never change a sample or a bound, and the same code runs in a SavedModel and
on LiteRT: Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", sec. 4) in plain uint32
arithmetic, without a native seeded op. A rotation is written with products, since LiteRT has no left shift.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfseq import checks
from tfseq.ops.tracing import fused, is_single

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def _rotate(x: tf.Tensor, bits: int) -> tf.Tensor:
    """Rotates uint32 words left; the two halves share no bit, so their sum is their union."""
    return x * tf.constant(2**bits, tf.uint32) + tf.bitwise.right_shift(x, tf.constant(32 - bits, tf.uint32))


def threefry(key: Sequence[tf.Tensor], counter: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Threefry-2x32 with 20 rounds: two key words and two counter words (uint32, shapes that broadcast) -> two words."""
    k0, k1 = key
    keys = (k0, k1, tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(k0, k1), tf.constant(_PARITY, tf.uint32)))
    x0, x1 = counter[0] + k0, counter[1] + k1
    for block in range(5):
        for bits in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = tf.bitwise.bitwise_xor(_rotate(x1, bits), x0)
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + keys[(block + 2) % 3] + tf.constant(block + 1, tf.uint32)
    return x0, x1


def _words(x: tf.Tensor | int) -> tf.Tensor:
    return tf.bitcast(tf.cast(x, tf.int32), tf.uint32)


def fold_in(seed: tf.Tensor, data: tf.Tensor | int) -> tf.Tensor:
    """A new seed `[..., 2]` int32 from seed `[..., 2]` and `data` (int, or an int32 tensor that broadcasts with `[...]`)."""
    seed, data = _words(seed), _words(data)
    pair = threefry((seed[..., 0], seed[..., 1]), (data, tf.zeros_like(data)))
    return tf.bitcast(tf.stack(pair, -1), tf.int32)


def derive(seed: tf.Tensor, *data: tf.Tensor | int) -> tf.Tensor:
    """`fold_in` of one after the other, in graphs that train one kernel: a fold alone is 140 operations."""
    # a variable is read here, and not whenever the kernel runs
    return _derive(tf.convert_to_tensor(seed), tuple(tf.convert_to_tensor(item) for item in data))


@fused
def _derive(seed: tf.Tensor, data: tuple[tf.Tensor, ...]) -> tf.Tensor:
    for item in data:
        seed = fold_in(seed, item)
    return seed


def row_seeds(seed: Any, rows: tf.Tensor) -> tf.Tensor:
    """One seed for each row, `[B, 2]`: a seed `[2]` is folded with the row numbers `rows` `[B]`; `[B, 2]` stays as it is."""
    seed = as_seed(seed)
    if seed.shape.rank == 1:
        return derive(seed[None], rows)
    if not rows.shape.is_compatible_with(seed.shape[:1]):
        raise ValueError(f"`seed` must have shape [2], or [B, 2] with B = {rows.shape[0]} rows; received shape {seed.shape}.")
    return seed


def as_seed(seed: Any) -> tf.Tensor:
    """`seed`, whole numbers of shape `[2]` or `[B, 2]`, as int32.

    Raises:
        ValueError: another shape, numbers that are not whole, or that do not fit into 32 bits.
    """
    if tf.is_tensor(seed):
        if isinstance(seed, tf.RaggedTensor) or not seed.dtype.is_integer:
            raise ValueError(f"`seed` must hold whole numbers of 32 bits; received a {type(seed).__name__} of {seed.dtype.name}.")
    else:
        numbers = checks.array("seed", seed)
        if numbers.dtype.kind not in "iu" or (numbers.size and not -(2**31) <= int(numbers.min()) <= int(numbers.max()) < 2**31):
            raise ValueError(f"`seed` must hold whole numbers of 32 bits, -2^31 to 2^31 - 1; received {seed!r}.")
        seed = tf.constant(numbers, tf.int32)
    if seed.shape.rank not in (1, 2) or seed.shape[-1] not in (2, None):
        raise ValueError(f"`seed` must have shape [2], or [B, 2] for a seed per row; received shape {seed.shape}.")
    return tf.cast(seed, tf.int32)


def bits(seed: tf.Tensor, times: tf.Tensor, num: int, salt: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Two arrays of random words, each `[T, B, num]` uint32, for row seeds `[B, 2]` and time steps `[T]` or `[T, B]` int32."""
    key = _words(fold_in(seed, salt))
    times = times[:, None] if times.shape.rank == 1 else times
    return threefry((key[:, :1], key[:, 1:]), (_words(times)[..., None], _words(tf.range(num, dtype=tf.int32))))


def _unit(words: tf.Tensor) -> tf.Tensor:
    """Words -> floats in (0, 1), ends excluded: the middle of one of 2^23 cells; all of these are floats, so none rounds to 1."""
    cell = tf.cast(tf.bitwise.right_shift(words, tf.constant(9, tf.uint32)), tf.int32)
    return tf.cast(cell, tf.float32) * 2.0**-23 + 2.0**-24


def uniform(seed: tf.Tensor, times: tf.Tensor, num: int, salt: int) -> tf.Tensor:
    """Uniform numbers in (0, 1), `[T, B, num]` float32, for row seeds `[B, 2]` int32 and time steps `[T]` or `[T, B]` int32."""
    return _unit(tf.concat(bits(seed, times, -(-num // 2), salt), -1)[..., :num])


def normal(seed: tf.Tensor, times: tf.Tensor, num: int, salt: int) -> tf.Tensor:
    """Standard normal numbers by Box-Muller, `[T, B, num]` float32, for row seeds `[B, 2]` and time steps `[T]`."""
    first, second = bits(seed, times, -(-num // 2), salt)
    radius, angle = tf.sqrt(-2.0 * tf.math.log(_unit(first))), 2.0 * math.pi * _unit(second)
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], -1)[..., :num]


def categorical_quantile(weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """The first outcome whose cumulative weight exceeds `uniform` of the sum: `[..., K]`, `[...]` in (0, 1) -> int32 `[...]`."""
    total = tf.cumsum(weights, axis=-1)
    below = total <= tf.cast(uniform, total.dtype)[..., None] * total[..., -1:]
    return tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32), -1), weights.shape[-1] - 1)


# Wichura 1988, algorithm AS 241, PPND7: numerators and denominators in the middle, in the tails and far out
_QUANTILE = (
    ((3.3871327179, 50.434271938, 159.29113202, 59.109374720), (1.0, 17.895169469, 78.757757664, 67.187563600)),
    ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103), (1.0, 0.73700164250, 0.12021132975)),
    ((6.6579051150, 3.0812263860, 0.42868294337, 0.017337203997), (1.0, 0.24197894225, 0.012258202635)),
)


def normal_quantile(uniform: tf.Tensor) -> tf.Tensor:
    """z with P(N(0, 1) < z) = `uniform`, which lies in (0, 1); any shape.

    On devices, whose runtime has no such function, by rational functions that are right to 2e-7 (Wichura 1988, "Algorithm AS
    241: The percentage points of the normal distribution").
    """
    if not is_single():
        return tf.math.ndtri(uniform)

    def ratio(x: tf.Tensor, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> tf.Tensor:
        above, below = (functools.reduce(lambda total, c: total * x + c, reversed(part), 0.0) for part in coefficients)
        return above / below

    q = uniform - 0.5
    t = tf.sqrt(-tf.math.log(tf.minimum(uniform, 1.0 - uniform)))
    tail = tf.where(t <= 5.0, ratio(t - 1.6, _QUANTILE[1]), ratio(t - 5.0, _QUANTILE[2]))
    return tf.where(tf.abs(q) <= 0.425, q * ratio(0.180625 - q * q, _QUANTILE[0]), tail * tf.sign(q))
