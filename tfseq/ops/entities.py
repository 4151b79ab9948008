"""Entities inside a graph: where those of tag sequences `[B, T]` begin and end, and how many two sequences share.

What continues an entity is read from `schemes.tables`, so illegal sequences mean here what they do there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from tfseq.ops.masking import fill
from tfseq.schemes import Tables


class Boundaries(NamedTuple):
    """Of each token, `[B, T]`: whether an entity begins (`first`) or ends (`last`) there, its `kind` int32, -1 outside."""

    first: tf.Tensor
    last: tf.Tensor
    kind: tf.Tensor


class Counts(NamedTuple):
    """Numbers of entities of each row, `[B]` int32: those in both sequences with the same type, start and stop; and in each."""

    correct: tf.Tensor
    predicted: tf.Tensor
    gold: tf.Tensor


def boundaries(tags: Any, mask: Any, tables: Tables) -> Boundaries:
    """Where the entities of tags `[B, T]` int32 begin and end; an unknown tag (-1) and a padded step are outside of all.

    Args:
        tags: places in the tag list that `tables` were made of.
        mask: `[B, T]` bool, padding on the right; None: every step is real.
        tables: `schemes.tables(tag list, scheme)`.
    """
    tags = tf.convert_to_tensor(tags, tf.int32)
    is_known = tags >= 0 if mask is None else (tags >= 0) & tf.convert_to_tensor(mask, tf.bool)
    tags = fill(tags, is_known)
    kind = tf.where(is_known, tf.gather(tf.constant(tables.kinds), tags), -1)
    pairs = tags[:, :-1] * len(tables.kinds) + tags[:, 1:]
    goes_on = tf.gather(tf.reshape(tf.constant(tables.continues), [-1]), pairs) & is_known[:, :-1] & is_known[:, 1:]
    nothing = tf.zeros_like(is_known[:, :1])
    is_entity = kind >= 0
    first = is_entity & ~tf.concat([nothing, goes_on], 1)
    last = is_entity & ~tf.concat([goes_on, nothing], 1)
    return Boundaries(first, last, kind)


def counts(gold: Any, predicted: Any, mask: Any, tables: Tables) -> Counts:
    """How many entities of tags `[B, T]` int32 agree exactly; precision, recall and F1 follow from the sums.

    Summed over rows they are what conlleval counts (Tjong Kim Sang and Buchholz 2000): precision is correct / predicted, recall
    correct / gold.

    Args:
        gold: the true tags, -1 where unknown.
        predicted: the tags to judge.
        mask: `[B, T]` bool, padding on the right; None: every step is real.
        tables: `schemes.tables(tag list, scheme)`.
    """
    one, other = boundaries(gold, mask, tables), boundaries(predicted, mask, tables)
    same = one.last & other.last & (one.kind == other.kind) & (_start(one) == _start(other))
    return Counts(*(tf.math.count_nonzero(a, -1, dtype=tf.int32) for a in (same, other.last, one.last)))


def to_first(values: tf.Tensor, found: Boundaries) -> tf.Tensor:
    """What `values` `[B, T]` say at the last token of each entity, moved to its first one; zero elsewhere."""
    number = _number(found)
    at_last = tf.reshape(fill(values, found.last), [-1])
    of_entity = tf.math.unsorted_segment_sum(at_last, number, tf.size(number) + 1)
    return fill(tf.reshape(tf.gather(of_entity, number), tf.shape(values)), found.first)


def _number(found: Boundaries) -> tf.Tensor:
    """How many entities of the flat batch have begun, `[B T]`: inside an entity, its number, counted from 1."""
    return tf.cumsum(tf.cast(tf.reshape(found.first, [-1]), tf.int32))


def _start(found: Boundaries) -> tf.Tensor:
    """The first token of the entity that each token is in, `[B, T]` as a place in the flat batch; any number outside."""
    number = _number(found)  # segments, since their number is known before those of entities are, which XLA asks for
    first = tf.math.unsorted_segment_min(tf.range(tf.size(number)), number, tf.size(number) + 1)
    return tf.reshape(tf.gather(first, number), tf.shape(found.first))
