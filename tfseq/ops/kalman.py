"""Exact inference in linear-Gaussian state-space models: filter, smoother, paths, what EM needs of them.

    z_1 ~ N(m, P),   z_t = A z_{t-1} + b + w_t,  w_t ~ N(0, Q),   x_t = C z_t + d + v_t,  v_t ~ N(0, R)           (1)

A covariance P is carried as a root, any matrix S with P = S' S, and every sum of covariances is a QR decomposition of stacked
roots: S' S + U' U = T' T where T is the triangular factor of [S; U] (Paige and Saunders 1977, "Least squares estimation of
discrete linear dynamic systems using orthogonal transformations"). No covariance is ever subtracted from another, so none
loses its sign, and the error of float32 grows with the condition of a root and not with its square, as that of the
Joseph form does: where noise is a thousandth of the signal, 1e3 and not 1e6 roundings.

What was not observed has an infinite noise: its rows of C, in units of the noise, are zero. Devices (LiteRT) know no
factorisations, so there these are written out, column by column of a root. Inside this file time comes first:
T steps, B rows, S samples, Z latent, D features, N any leading axes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from tfseq.ops.linear import project
from tfseq.ops.masking import fill
from tfseq.ops.scan import Multiply, loop, scan
from tfseq.ops.tracing import is_single


class Parameters(NamedTuple):
    """The model (1): m, root of P, A, b, root of Q, C, d, root of R (`[D]`, standard deviations, where R is diagonal)."""

    initial_mean: tf.Tensor
    initial_root: tf.Tensor
    transition: tf.Tensor
    transition_bias: tf.Tensor
    transition_root: tf.Tensor
    emission: tf.Tensor
    emission_bias: tf.Tensor
    emission_root: tf.Tensor


class Belief(NamedTuple):
    """A Gaussian of the state: mean `[N, Z]` and root `[N, Z, Z]` of its covariance."""

    mean: tf.Tensor
    root: tf.Tensor


class Filtered(NamedTuple):
    """log p(x_t | x_1 .. x_{t-1}) `[T, B]`, 0 where padded; z_t given x_1 .. x_{t-1}; given x_1 .. x_t; z_{T+1} given all."""

    log_prob: tf.Tensor
    predicted: Belief
    filtered: Belief
    next: Belief


class Smoothed(NamedTuple):
    """z_t given all of x: mean `[T, B, Z]`, covariance `[T, B, Z, Z]`, and Cov(z_{t+1}, z_t) `[T, B, Z, Z]`, zero at the last."""

    mean: tf.Tensor
    covariance: tf.Tensor
    cross: tf.Tensor


class _Seen(NamedTuple):
    """x - d `[T, B, D]` and C `[T, B, D, Z]` in units of the noise, zero where unseen; the density's constant `[T, B]`.

    Where all features are seen at every step, C is `[T, 1, D, Z]`, and the last a number.
    """

    x: tf.Tensor
    emission: tf.Tensor
    log_scale: tf.Tensor


def square(root: tf.Tensor) -> tf.Tensor:
    """Root `[N, K, Z]` -> covariance `[N, Z, Z]`; standard deviations `[D]` -> diagonal matrix."""
    return tf.linalg.diag(root**2) if root.shape.rank == 1 else tf.matmul(root, root, transpose_a=True)


def diagonal(matrix: tf.Tensor) -> tf.Tensor:
    """`[N, Z, Z]` -> `[N, Z]`."""
    if is_single():
        return tf.reduce_sum(matrix * tf.eye(matrix.shape[-1], dtype=matrix.dtype), -1)
    return tf.linalg.diag_part(matrix)


def root_of(covariance: tf.Tensor) -> tf.Tensor:
    """A root of a covariance `[N, Z, Z]` that float32 may have left a little indefinite; not for gradients.

    On devices the rows of Cholesky's, without those that are nothing but rounding.
    """
    if is_single():
        rows, least = [], 1e-6 * diagonal(covariance)
        for j in range(covariance.shape[-1]):
            variance = covariance[..., j : j + 1, j : j + 1]
            row = covariance[..., j : j + 1, :] / tf.sqrt(tf.where(variance > least[..., j, None, None], variance, math.inf))
            covariance -= tf.linalg.matrix_transpose(row) * row
            rows.append(row)
        return tf.concat(rows, -2)
    values, vectors = tf.linalg.eigh(0.5 * (covariance + tf.linalg.matrix_transpose(covariance)))
    return tf.sqrt(tf.maximum(values, 0.0))[..., None] * tf.linalg.matrix_transpose(vectors)


def coloured(root: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Standard normal noise `[N, Z]` -> noise with the covariance of `root`, which has the leading axes of noise, or none."""
    if root.shape.rank == 1:
        return root * noise
    return project(noise, root) if root.shape.rank == 2 else tf.linalg.matvec(root, noise, transpose_a=True)


def _qr(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Q `[N, K, Z]`, R `[N, Z, Z]` of `[N, K, Z]`, K >= Z.

    On devices by Gram and Schmidt's method, each column twice, after which Q is orthogonal up to rounding (Giraud et al. 2005,
    "Rounding error analysis of the classical Gram-Schmidt orthogonalization process").
    """
    if not is_single():
        return tf.linalg.qr(matrix)
    size, q, r = matrix.shape[-1], list[tf.Tensor](), list[tf.Tensor]()
    for j in range(size):
        column, found = matrix[..., j : j + 1], list[tf.Tensor]()
        if j:
            before = tf.concat(q, -1)
            for _ in range(2):
                found.append(tf.matmul(before, column, transpose_a=True))
                column -= tf.matmul(before, found[-1])
            found = [tf.add_n(found)]
        norm = tf.sqrt(tf.reduce_sum(column**2, -2, keepdims=True))
        q.append(tf.math.divide_no_nan(column, norm))
        r.append(tf.pad(tf.concat([*found, norm], -2), [*[[0, 0]] * (norm.shape.rank - 2), [0, size - j - 1], [0, 0]]))
    return tf.concat(q, -1), tf.concat(r, -1)


def _solve(r: tf.Tensor, right: tf.Tensor, transposed: bool = False) -> tf.Tensor:
    """R x = b, or R' x = b, of upper triangular R `[N, Z, Z]`: b, x `[N, Z, M]`."""
    if not is_single():
        return tf.linalg.triangular_solve(r, right, lower=False, adjoint=transposed)
    r, size, rows = tf.linalg.matrix_transpose(r) if transposed else r, r.shape[-1], {}
    for j in range(size) if transposed else reversed(range(size)):
        rows[j] = right[..., j : j + 1, :] / r[..., j : j + 1, j : j + 1]
        right -= r[..., j : j + 1] * rows[j]
    return tf.concat([rows[j] for j in range(size)], -2)


def _triangular(*roots: tf.Tensor) -> tf.Tensor:
    """The upper triangular root of a sum of covariances, `[N, Z, Z]`, of roots `[N, K, Z]`; a diagonal may be negative."""
    return _qr(tf.concat(roots, -2))[1]


def unique(root: tf.Tensor) -> tf.Tensor:
    """Its upper triangular root with a positive diagonal, of a root `[N, K, Z]`: draws do not depend on how a root was found."""
    root = _triangular(root)
    return tf.where(diagonal(root)[..., None] < 0.0, -root, root)


def _times(matrix: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A matrix for each row, or one for all, `[..., B or 1, M, N]`, times x `[..., B, N]`: `[..., B, M]`."""
    if matrix.shape[-3] == 1:  # a product of matrices, and not one of a broadcast matrix for each row
        return tf.matmul(x, matrix[..., 0, :, :], transpose_b=True)
    return tf.linalg.matvec(matrix, x)


def _each(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """x `[..., B, S, N]` times a matrix for each row, or one for all, `[..., B or 1, N, M]`: `[..., B, S, M]`.

    No product here broadcasts a matrix over rows: with oneDNN, TensorFlow 2.21's own broadcasting one spoils memory.
    """
    if matrix.shape[-3] != 1:
        return tf.matmul(x, matrix)
    shape = tf.shape(x)
    flat = tf.reshape(x, tf.concat([shape[:-3], [1, shape[-3] * shape[-2]], shape[-1:]], 0))
    return tf.reshape(tf.matmul(flat, matrix), tf.concat([shape[:-1], tf.shape(matrix)[-1:]], 0))


def _spread(matrix: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """A matrix `[K, Z]` once for each place of `like` `[N, ., .]`."""
    return tf.broadcast_to(matrix, tf.concat([tf.shape(like)[:-2], tf.shape(matrix)], 0))


def _restricted(root: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """A root of M R M + I - M, `[N, D, D]`, of a root of R `[D, D]`; M has `keep` `[N, D]` (0 or 1) on its diagonal."""
    return _triangular(root * keep[..., None, :], tf.linalg.diag(1.0 - keep))


def _whiten(p: Parameters, x: tf.Tensor, observed: tf.Tensor | None) -> _Seen:
    """x `[N, D]`, finite everywhere, and what was observed of it, bool of its shape or None for all, in units of the noise."""
    root, dim = p.emission_root, x.shape[-1]
    if observed is None:
        root = tf.linalg.diag(root) if root.shape.rank == 1 else root
        whitening = _solve(root, tf.eye(dim, dtype=x.dtype), transposed=True)
        log_scale = -0.5 * dim * math.log(2.0 * math.pi) - tf.reduce_sum(tf.math.log(tf.abs(diagonal(root))))
        emission = tf.reshape(tf.matmul(whitening, p.emission), [1] * (x.shape.rank - 1) + [dim, -1])
        return _Seen(project(x - p.emission_bias, tf.transpose(whitening)), emission, log_scale)
    weight = tf.cast(observed, x.dtype)
    x = (x - p.emission_bias) * weight
    log_scale = -0.5 * math.log(2.0 * math.pi) * tf.reduce_sum(weight, -1)
    if root.shape.rank == 1:
        log_scale -= tf.reduce_sum(weight * tf.math.log(root), -1)
        return _Seen(x / root, weight[..., None] * (p.emission / root[:, None]), log_scale)
    root, emission = _restricted(root, weight), weight[..., None] * p.emission
    both = _solve(root, tf.concat([emission, x[..., None]], -1), transposed=True)
    log_scale -= tf.reduce_sum(tf.math.log(tf.abs(diagonal(root))), -1)
    return _Seen(both[..., -1], both[..., :-1], log_scale)


def _update(belief: Belief, x: tf.Tensor, emission: tf.Tensor) -> tuple[Belief, tf.Tensor]:
    """z given an observation in units of its noise, x `[N, D]`, C `[N, D, Z]`; and its log density but for `log_scale`, `[N]`.

    Root and C may be one for all rows, `[..., 1, ., Z]`.

    With z = mean + S' s, s is the least-squares solution of [C S'; I] s = [x - C mean; 0], and what is left of it is the
    quadratic form of the density.
    """
    mean, root = belief
    seen = tf.linalg.matrix_transpose(_each(root, tf.linalg.matrix_transpose(emission)))
    size = root.shape[-1]
    q, r = _qr(tf.concat([seen, _spread(tf.eye(size, dtype=root.dtype), root)], -2))
    innovation = x - _times(emission, mean)
    gain = tf.linalg.matrix_transpose(q[..., : emission.shape[-2], :])
    found = _times(_solve(r, gain), innovation)
    left = innovation - _times(seen, found)
    quadratic = tf.reduce_sum(left**2, -1) + tf.reduce_sum(found**2, -1)
    log_prob = -0.5 * quadratic - tf.reduce_sum(tf.math.log(tf.abs(diagonal(r))), -1)
    mean += _times(tf.linalg.matrix_transpose(root), found)
    return Belief(mean, _solve(r, root, transposed=True)), log_prob


def _predict(p: Parameters, belief: Belief) -> Belief:
    """z_t -> z_{t+1}."""
    moved = project(belief.root, tf.transpose(p.transition))
    mean = project(belief.mean, tf.transpose(p.transition)) + p.transition_bias
    return Belief(mean, _triangular(moved, _spread(p.transition_root, moved)))


def initial(p: Parameters, num_rows: tf.Tensor | int) -> Belief:
    """z_1 of `num_rows` sequences."""
    return Belief(*(tf.repeat(a[None], num_rows, 0) for a in (p.initial_mean, p.initial_root)))


def filter_step(
    p: Parameters, belief: Belief, x: tf.Tensor, observed: tf.Tensor | None = None
) -> tuple[Belief, Belief, tf.Tensor]:
    """Belief of z_t before x_t `[B, D]` -> that of z_{t+1}, that of z_t, both after it, and log p(x_t | x_1 .. x_{t-1}) `[B]`."""
    seen = _whiten(p, x, observed)
    emission = tf.broadcast_to(seen.emission, tf.concat([tf.shape(x), tf.shape(p.emission)[1:]], 0))
    filtered, log_prob = _update(belief, seen.x, emission)
    return _predict(p, filtered), filtered, log_prob + seen.log_scale


def filter(p: Parameters, x: tf.Tensor, mask: tf.Tensor, observed: tf.Tensor | None = None) -> Filtered:
    """The Kalman filter.

    At padded steps the belief is held: what follows the last real step does not depend on the padding.

    Args:
        p: the model.
        x: `[T, B, D]`, finite everywhere.
        mask: `[T, B]` bool, right-padded.
        observed: `[T, B, D]` bool, what is known of x; None for all of it. Then covariances do not depend on the data: they
            are found once for all rows, and the roots of `predicted` and `filtered` are `[T, 1, Z, Z]`.
    """
    start, real = initial(p, tf.shape(x)[1]), mask
    if observed is None:
        start, real = Belief(start.mean, p.initial_root[None]), tf.reduce_any(mask, 1, keepdims=True)
    seen = _whiten(p, x, None if observed is None else observed & mask[..., None])
    emission = tf.where(real[..., None, None], seen.emission, tf.zeros([], x.dtype))

    def step(state: tuple, inputs: tuple, _: Multiply) -> tuple[tuple, tuple]:
        (mean, root), (x, emission, mean_goes_on, root_goes_on) = state, inputs
        filtered, log_prob = _update(Belief(mean, root), x, emission)
        after = _predict(p, filtered)
        return (_where(mean_goes_on, after.mean, mean), _where(root_goes_on, after.root, root)), (log_prob, *filtered)

    (mean, root), (log_prob, *filtered) = scan(step, tuple(start), (seen.x, emission, mask, real))
    every = Belief(*(tf.concat([a[None], b], 0) for a, b in zip(start, (mean, root), strict=True)))
    after = root[-1] if observed is not None else tf.gather(every.root[:, 0], tf.reduce_sum(tf.cast(mask, tf.int32), 0))
    log_prob = fill(log_prob + seen.log_scale, mask)
    return Filtered(log_prob, Belief(*(a[:-1] for a in every)), Belief(*filtered), Belief(mean[-1], after))


def _where(keep: tf.Tensor, new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """`new` `[N, ...]` where `keep` `[N]`, else `old`."""
    return tf.where(tf.reshape(keep, tf.concat([tf.shape(keep), [1] * (new.shape.rank - keep.shape.rank)], 0)), new, old)


def _backward(p: Parameters, filtered: Belief, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """z_t given z_{t+1} and x_1 .. x_t: J and a root of V `[T, B, Z, Z]` of N(mean_t + J (z_{t+1} - A mean_t - b), V).

    At the last real step and after it nothing comes from later: J = 0 and V is the filtered covariance.
    """
    size, root = p.transition.shape[0], filtered.root
    moved = project(root, tf.transpose(p.transition))
    noise = _spread(tf.pad(p.transition_root, [[0, 0], [0, size]]), moved)
    joint = _triangular(tf.concat([moved, root], -1), noise)  # of (z_{t+1}, z_t)
    gain = _solve(joint[..., :size, :size], joint[..., :size, size:])
    goes_on = tf.concat([mask[1:], tf.zeros_like(mask[:1])], 0)
    return fill(tf.linalg.matrix_transpose(gain), goes_on), _where(goes_on, joint[..., size:, size:], root)


def _means_ahead(p: Parameters, filtered: Belief) -> tf.Tensor:
    return project(filtered.mean, tf.transpose(p.transition)) + p.transition_bias


def smooth(p: Parameters, filtered: Belief, mask: tf.Tensor) -> Smoothed:
    """z_t given all of x, of what `filter` found (Rauch, Tung and Striebel 1965); not for gradients."""
    gain, root = _backward(p, filtered, mask)
    inputs = [a[::-1] for a in (gain, square(root), filtered.mean, _means_ahead(p, filtered))]

    def advance(later: tuple, inputs: list) -> tuple[tuple, tf.Tensor]:
        gain, covariance, mean, ahead = inputs
        cross = tf.matmul(later[1], gain, transpose_b=True)
        mean += _times(gain, later[0] - ahead)
        return (mean, covariance + tf.matmul(gain, cross)), cross

    start = (tf.zeros_like(filtered.mean[0]), tf.zeros_like(root[0]))
    (mean, covariance), cross = loop(advance, start, inputs, root[0])
    return Smoothed(mean[::-1], covariance[::-1], cross[::-1])


def sample_paths(p: Parameters, filtered: Belief, mask: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Paths from p(z | x), `[T, B, S, Z]`, of what `filter` found and standard normal noise of that shape."""
    gain, root = _backward(p, filtered, mask)
    noise = _each(noise, unique(root)) + filtered.mean[:, :, None]
    inputs = [a[::-1] for a in (gain, noise, _means_ahead(p, filtered)[:, :, None])]

    def advance(later: tf.Tensor, inputs: list) -> tuple[tf.Tensor, tuple]:
        gain, alone, ahead = inputs
        return alone + _each(later - ahead, tf.linalg.matrix_transpose(gain)), ()

    return loop(advance, tf.zeros_like(noise[0]), inputs)[0][::-1]


def generate(p: Parameters, belief: Belief, noise: tf.Tensor, emission_noise: tf.Tensor) -> tf.Tensor:
    """x `[H, B, D]` of steps of which the first has the state `belief`; standard normal noise `[H, B, Z]` and `[H, B, D]`.

    The root of `belief` is `unique`.
    """
    first = belief.mean + coloured(belief.root, noise[0])

    def advance(z: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tuple]:
        return project(z, tf.transpose(p.transition)) + p.transition_bias + coloured(p.transition_root, noise), ()

    later, _ = loop(advance, first, tf.concat([noise[1:], noise[:1]], 0))  # a loop has a step at least; the last is not used
    z = tf.concat([first[None], later[:-1]], 0)
    return emit(p, z) + coloured(p.emission_root, emission_noise)


def emit(p: Parameters, z: tf.Tensor) -> tf.Tensor:
    """C z + d: `[N, Z]` -> `[N, D]`."""
    return project(z, tf.transpose(p.emission)) + p.emission_bias


def moments_ahead(p: Parameters, belief: Belief, num_steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean `[H, B, D]` and covariance `[H, B, D, D]` of x at each of H steps of which the first has the state `belief`."""

    def advance(state: tuple, _: tf.Tensor) -> tuple[tuple, tuple]:
        return tuple(_predict(p, Belief(*state))), state

    _, (mean, root) = loop(advance, tuple(belief), tf.range(num_steps), tuple(belief))
    covariance = square(project(root, tf.transpose(p.emission)))
    return emit(p, mean), covariance + square(p.emission_root)


def regression_of_missing(p: Parameters, keep: tf.Tensor) -> tf.Tensor:
    """G `[N, D, D]` with E[v | v where kept] = v + G v there, v ~ N(0, R): rows of what is missing, columns of what is kept."""
    weight = tf.cast(keep, p.emission.dtype)
    if p.emission_root.shape.rank == 1:
        return tf.zeros(tf.concat([tf.shape(weight), tf.shape(weight)[-1:]], 0), weight.dtype)
    root, between = _restricted(p.emission_root, weight), weight[..., None] * square(p.emission_root)
    between = _solve(root, between, transposed=True)
    gain = tf.linalg.matrix_transpose(_solve(root, between))
    return gain * (1.0 - weight)[..., None]


def complete(p: Parameters, x: tf.Tensor, keep: tf.Tensor, z: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """x where kept, else a draw given that and z: `[T, B, S, D]`, of x `[T, B, D]`, z `[T, B, S, Z]`, noise as the result."""
    drawn = emit(p, z) + coloured(p.emission_root, noise)
    error = fill(x[:, :, None] - drawn, tf.repeat(keep[:, :, None], tf.shape(z)[2], 2))
    drawn += _each(error, tf.linalg.matrix_transpose(regression_of_missing(p, keep)))
    return tf.where(keep[:, :, None], x[:, :, None], drawn)


def leave_one_out(p: Parameters, x: tf.Tensor, mask: tf.Tensor, observed: tf.Tensor | None = None) -> tf.Tensor:
    """log p(x_t | all other steps), `[T, B]`: the smoothed state with x_t taken out again.

    In units of the noise, e = x - C mean and H = I - C P C' of the smoothed state, it is log N(H^-1 e; 0, H^-1).
    """
    seen = _whiten(p, x, None if observed is None else observed & mask[..., None])
    smoothed = smooth(p, filter(p, x, mask, observed).filtered, mask)
    emission = tf.broadcast_to(seen.emission, tf.concat([tf.shape(mask), tf.shape(p.emission)], 0))
    error = seen.x - _times(seen.emission, smoothed.mean)
    shared = tf.matmul(emission, tf.matmul(smoothed.covariance, emission, transpose_b=True))
    root = tf.linalg.cholesky(tf.eye(x.shape[-1], dtype=x.dtype) - shared)
    error = tf.linalg.triangular_solve(root, error[..., None])[..., 0]
    half_log_det = tf.reduce_sum(tf.math.log(diagonal(root)), -1)
    return fill(half_log_det - 0.5 * tf.reduce_sum(error**2, -1) + seen.log_scale, mask)


# EM -----------------------------------------------------------------------------------------------------------------


def _total(a: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Matrices `[T, B, ., .]` summed where `keep` `[T, B]`."""
    return tf.reduce_sum(fill(a, keep), [0, 1])


def _gram(parts: list[tf.Tensor], covariance: list[list[tf.Tensor]], keep: tf.Tensor) -> tf.Tensor:
    """Sum of E[(y, 1) (y, 1)'] where `keep` `[T, B]`: the means of y in parts `[T, B, .]`, and their covariances, summed."""
    y = fill(tf.concat([*parts, tf.ones_like(parts[0][..., :1])], -1), keep)
    y = tf.reshape(y, [-1, sum(part.shape[-1] for part in parts) + 1])
    spread = tf.concat([tf.concat(row, -1) for row in covariance], -2)
    return tf.matmul(y, y, transpose_a=True) + tf.pad(spread, [[0, 1], [0, 1]])


def statistics(
    p: Parameters, x: tf.Tensor, mask: tf.Tensor, observed: tf.Tensor | None = None
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """E step (Shumway and Stoffer 1982): log p(x) `[B]`, and sums of E[(y, 1) (y, 1)'] for y = z_1, (z_t, z_{t-1}), (x_t, z_t).

    Features that are missing at a step where others are not are latent as z is; steps without observations are not in the last.
    """
    found = filter(p, x, mask, observed)
    smoothed = smooth(p, found.filtered, mask)
    mean, covariance = smoothed.mean, smoothed.covariance
    first = _gram([mean[:1]], [[_total(covariance[:1], mask[:1])]], mask[:1])
    cross = _total(smoothed.cross[:-1], mask[1:])
    spread = [[_total(covariance[1:], mask[1:]), cross], [tf.transpose(cross), _total(covariance[:-1], mask[1:])]]
    pairs = _gram([mean[1:], mean[:-1]], spread, mask[1:])
    size, dim = mean.shape[-1], x.shape[-1]
    of_x, seen, cross = tf.zeros([dim, dim], x.dtype), mask, tf.zeros([dim, size], x.dtype)
    if observed is not None:
        seen, weight = mask & tf.reduce_any(observed, -1), tf.cast(observed, x.dtype)
        gain, noise, missing = regression_of_missing(p, observed), square(p.emission_root), 1.0 - weight
        # E[x | z, what was observed] = a + B z, and its covariance
        a = weight * x + missing * p.emission_bias + tf.linalg.matvec(gain, weight * (x - p.emission_bias))
        b = missing[..., None] * p.emission - tf.matmul(gain, weight[..., None] * p.emission)
        rest = missing[..., None] * (noise - tf.matmul(gain, weight[..., None] * noise)) * missing[..., None, :]
        x, with_z = a + tf.linalg.matvec(b, mean), tf.matmul(b, covariance)
        cross, of_x = _total(with_z, seen), _total(rest + tf.matmul(with_z, b, transpose_b=True), seen)
    spread = [[of_x, cross], [tf.transpose(cross), _total(covariance, seen)]]
    return tf.reduce_sum(found.log_prob, 0), [first, pairs, _gram([x, mean], spread, seen)]


def regress(gram: tf.Tensor, num_targets: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of E[(y, r, 1) (y, r, 1)'] summed over n steps: W `[Y, R + 1]` that makes y = W (r, 1) + e, the covariance of e, and n."""
    count = gram[-1, -1]
    own, shared, others = gram[:num_targets, :num_targets], gram[:num_targets, num_targets:], gram[num_targets:, num_targets:]
    others += tf.cast(count == 0.0, gram.dtype) * tf.eye(tf.shape(others)[0], dtype=gram.dtype)  # of nothing comes zero
    weights = tf.transpose(tf.linalg.solve(others, tf.transpose(shared)))
    covariance = tf.math.divide_no_nan(own - tf.matmul(weights, shared, transpose_b=True), count)
    return weights, 0.5 * (covariance + tf.transpose(covariance)), count
