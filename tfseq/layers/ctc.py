"""Connectionist temporal classification: the likelihood of a sequence of symbols that is not aligned with the steps."""

from __future__ import annotations

import math

import tensorflow as tf

from tfseq.ops import chains
from tfseq.ops.masking import fill, lengths_to_mask, mask_to_lengths


def log_prob(scores: tf.Tensor, mask: tf.Tensor, symbols: tf.Tensor, symbol_mask: tf.Tensor) -> tf.Tensor:
    """log p(symbols | x) `[B]`: the sum over all paths that spell the symbols once repeats and blanks are taken out.

    A path is a chain over the symbols with a blank (the last class) before, between and after them, 2 L + 1 states; a step stays,
    moves on, or skips a blank between two different symbols (Graves et al. 2006, eq. 5-8). -inf where the steps are too few.

    Args:
        scores: of K symbols and the blank, `[B, T, K + 1]`.
        mask: `[B, T]`, True where a step is real.
        symbols: `[B, L]` int32 below K.
        symbol_mask: `[B, L]`.
    """
    blank = scores.shape[-1] - 1
    log_probs = tf.nn.log_softmax(fill(scores, mask))
    symbols = fill(symbols, symbol_mask, blank)
    rows, width = tf.unstack(tf.shape(symbols))
    blanks = tf.fill([rows, width], blank)
    states = tf.reshape(tf.stack([blanks, symbols], -1), [rows, 2 * width])
    states = tf.concat([states, blanks[:, :1]], 1)  # [B, S], blank y1 blank y2 ... blank
    num_states = 2 * width + 1
    lengths = mask_to_lengths(symbol_mask)
    place = tf.range(num_states)

    before = tf.concat([blanks[:, :1], blanks[:, :1], states[:, :-2]], 1)
    may_skip = (states != blank) & (states != before)  # [B, S]
    step = place[None, :] - place[:, None]  # [S, S], from row to column
    allowed = ((step == 0) | (step == 1))[None] | ((step == 2)[None] & may_skip[:, None, :])
    never = tf.constant(-math.inf, scores.dtype)
    transition = tf.where(allowed, tf.zeros([], scores.dtype), never)[:, None]  # [B, 1, S, S]
    initial = tf.fill([rows, num_states], tf.zeros([], scores.dtype))
    initial = tf.where(place < 2, initial, never)

    emission = tf.gather(log_probs, states, batch_dims=1, axis=2)  # [B, T, S]
    num_steps = tf.shape(scores)[1]
    is_last = tf.range(num_steps) == mask_to_lengths(mask)[:, None] - 1
    ends = (place == 2 * lengths[:, None]) | (place == 2 * lengths[:, None] - 1)
    emission = tf.where(is_last[..., None] & ~ends[:, None], never, emission)
    found = chains.log_prob(initial, transition, emission, mask, form="sequential")
    return tf.where(mask[:, 0] | (lengths == 0), found, never)  # of no steps, only no symbols


def greedy(scores: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The best class of each step, repeats and blanks taken out: (symbols `[B, T]`, mask `[B, T]`, log-probability of the path).

    The symbols of the best path, which are not always the best symbols (Graves et al. 2006, sec. 3.2).
    """
    log_probs = tf.nn.log_softmax(scores)
    path = tf.argmax(log_probs, -1, tf.int32)
    blank = scores.shape[-1] - 1
    starts = tf.concat([tf.ones_like(mask[:, :1]), path[:, 1:] != path[:, :-1]], 1)
    kept = mask & starts & (path != blank)
    order = tf.argsort(tf.cast(~kept, tf.int32), axis=1, stable=True)
    lengths = mask_to_lengths(kept)
    found = lengths_to_mask(lengths, tf.shape(path)[1])
    score = tf.reduce_sum(fill(tf.reduce_max(log_probs, -1), mask), 1)
    return fill(tf.gather(path, order, batch_dims=1), found, -1), found, score
