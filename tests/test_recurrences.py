"""Recurrences written out and stacks of layers against loops in NumPy, plain autodiff and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfseq.layers.recurrent import Recurrent, RecurrentStack, keep_mask
from tfseq.ops import recurrences
from tfseq.ops.scan import scan
from tfseq.ops.tracing import without_gradients

LENGTHS = np.array([5, 2, 0, 1])
CLOSE = {"rtol": 1e-5, "atol": 2e-6}  # float32 against float64, sums of some ten numbers of about 1
SAME = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding

VARIANTS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn", "units": [3, 4]},
    "gru": {"cell": "gru", "units": [4, 3, 2]},
    "lstm": {"cell": "lstm", "units": [3, 4]},
    "gru both": {"cell": "gru", "units": [3, 2], "bidirectional": True, "backward_units": [2, 4]},
    "lstm both": {"cell": "lstm", "units": [3, 2], "bidirectional": True, "backward_units": [1, 4]},
    "rnn both": {"cell": "rnn", "units": [2], "bidirectional": True},
    "zoneout": {"cell": "lstm", "units": [3, 2], "zoneout": 0.3, "bidirectional": True},
    "gru zoneout": {"cell": "gru", "units": [3], "zoneout": 0.3},
    "residual": {"cell": "lstm", "units": [2, 2, 3], "residual": True},
    "norm": {"cell": "gru", "units": [3, 3], "layer_norm": True, "residual": True, "bidirectional": True},
}  # fmt: skip


def filled(layer: Any, rng: np.random.Generator) -> Any:
    """The layer with other weights than those it begins with, which have zeros."""
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.7))
    return layer


def example(rng: np.random.Generator, dim: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """x `[5, 4, D]` with NaN at padded steps, and its mask `[5, 4]`."""
    mask = np.arange(5)[:, None] < LENGTHS
    x = rng.normal(size=(5, 4, dim)).astype(np.float32)
    return np.where(mask[..., None], x, np.float32(np.nan)), mask


def made(settings: dict[str, Any], rng: np.random.Generator, **more: Any) -> RecurrentStack:
    """A stack for x of two features."""
    stack = RecurrentStack(**{**settings, **more})
    stack(tf.zeros([1, 1, 2], stack.compute_dtype))
    return filled(stack, rng)


def state_of(stack: RecurrentStack, rng: np.random.Generator) -> list[tuple[tuple[np.ndarray, ...], ...]]:
    """A random state of four rows."""
    return [
        tuple(tuple(rng.normal(size=(4, layer.units)).astype(np.float32) for _ in range(layer.num_states)) for layer in row)
        for row in stack.layers
    ]


@pytest.mark.parametrize("begins", [False, True], ids=["zeros", "given state"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_stack_is_its_equations_run_row_by_row(name: str, begins: bool, rng: np.random.Generator) -> None:
    stack = made(VARIANTS[name], rng)
    x, mask = example(rng)
    state = state_of(stack, rng) if begins else None

    def infers(x: tf.Tensor) -> Any:
        with without_gradients():
            return stack(x, tf.constant(mask), state)

    for outputs, final in (stack(tf.constant(x), tf.constant(mask), state), tf.function(infers)(tf.constant(x))):
        for row, length in enumerate(LENGTHS):
            own = None if state is None else tf.nest.map_structure(lambda a, row=row: a[row].astype(float), state)
            wanted, last = reference.stack(stack, x[:length, row].astype(float), own)
            np.testing.assert_allclose(outputs[:length, row], wanted, **CLOSE)
            assert not outputs[length:, row].numpy().any()
            for a, b in zip(tf.nest.flatten(final), tf.nest.flatten(last), strict=True):
                np.testing.assert_allclose(a[row], b, **CLOSE)


@pytest.mark.parametrize("name", [name for name, settings in VARIANTS.items() if not settings.get("bidirectional")])
def test_steps_are_the_whole_run(name: str, rng: np.random.Generator) -> None:
    stack = made(VARIANTS[name], rng)
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    state = tf.nest.map_structure(tf.constant, state_of(stack, rng))
    outputs, final = stack(x, initial_state=state)
    for t in range(5):
        found, state = stack.step(tf.constant(x[t]), state)
        np.testing.assert_allclose(found, outputs[t], **CLOSE)
    for a, b in zip(tf.nest.flatten(state), tf.nest.flatten(final), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.parametrize("name", ["gru", "lstm both"])
def test_two_parts_with_the_state_carried_are_the_whole(name: str, rng: np.random.Generator) -> None:
    stack = made({**VARIANTS[name], "bidirectional": False, "backward_units": None}, rng)
    x = rng.normal(size=(6, 4, 2)).astype(np.float32)
    outputs, final = stack(x)
    first, state = stack(x[:2])
    second, last = stack(x[2:], initial_state=state)
    np.testing.assert_allclose(tf.concat([first, second], 0), outputs, **CLOSE)
    for a, b in zip(tf.nest.flatten(last), tf.nest.flatten(final), strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_stands_in_the_padding_reaches_no_gradient(name: str, rng: np.random.Generator) -> None:
    stack = made(VARIANTS[name], rng)
    dirty, mask = example(rng)
    found = []
    for x in (dirty, np.where(mask[..., None], dirty, 0.0), np.concatenate([dirty, dirty[:2] * np.nan])):
        keep = np.arange(len(x))[:, None] < LENGTHS
        with tf.GradientTape() as tape:
            outputs, final = stack(tf.constant(x), tf.constant(keep))
            loss = tf.reduce_sum(tf.where(keep[..., None], outputs, 0.0) ** 2)
            loss += tf.add_n([tf.reduce_sum(a**3) for a in tf.nest.flatten(final)])
        found.append([g.numpy() for g in tape.gradient(loss, stack.trainable_weights)])
    for clean, dirty_one, longer in zip(*found, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, dirty_one)
        np.testing.assert_allclose(longer, clean, rtol=1e-4, atol=1e-5)  # sums of float32 in another order


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_masks_of_state_and_kernel_multiply_the_product_alone(cell: str, reverse: bool, rng: np.random.Generator) -> None:
    layer = Recurrent(3, cell, reverse=reverse)
    x, mask = example(rng)
    layer(x, mask)
    filled(layer, rng)
    drop, kernel = rng.random((4, 3)).astype(np.float32), (rng.random(layer.recurrent_kernel.shape) < 0.6).astype(np.float32)
    initial = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(layer.num_states)]
    runs = [
        layer(x, mask, tuple(initial), recurrent_mask=tf.constant(drop), kernel_mask=tf.constant(kernel)),
    ]
    with without_gradients():
        runs.append(layer(x, mask, tuple(initial), recurrent_mask=tf.constant(drop), kernel_mask=tf.constant(kernel)))
    for outputs, final in runs:
        for row, length in enumerate(LENGTHS):
            own = tuple(a[row].astype(float) for a in initial)
            alone = x[:length, row].astype(float)
            wanted, last = reference.recurrent(layer, alone, own, recurrent_mask=drop[row], kernel_mask=kernel)
            np.testing.assert_allclose(outputs[:length, row], wanted, **CLOSE)
            for a, b in zip(final, last, strict=True):
                np.testing.assert_allclose(a[row], b, **CLOSE)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_zoneout_keeps_units_of_each_tensor_of_the_state(cell: str, reverse: bool, rng: np.random.Generator) -> None:
    layer = Recurrent(3, cell, reverse=reverse, zoneout=0.4)
    x, mask = example(rng)
    layer(x, mask)
    filled(layer, rng)
    moves = tuple((rng.random((5, 4, 3)) < 0.6).astype(np.float32) for _ in range(layer.num_states))
    outputs, final = layer(x, mask, moves=tuple(map(tf.constant, moves)))
    for row, length in enumerate(LENGTHS):
        wanted, last = reference.recurrent(layer, x[:length, row].astype(float), moves=tuple(m[:, row] for m in moves))
        np.testing.assert_allclose(outputs[:length, row], wanted, **CLOSE)
        for a, b in zip(final, last, strict=True):
            np.testing.assert_allclose(a[row], b, **CLOSE)


def test_a_row_alone_is_the_row_in_a_padded_batch(rng: np.random.Generator) -> None:
    stack = made(VARIANTS["gru both"], rng)
    x, mask = example(rng)
    outputs, _ = stack(x, mask)
    alone, _ = stack(x[:2, 1:2])
    np.testing.assert_allclose(outputs[:2, 1:2], alone, **CLOSE)


# The operations ------------------------------------------------------------------------------------------------------


def operands(cell: str, num_steps: int, rng: np.random.Generator) -> list[tf.Tensor]:
    """(x, kernel, [bias,] initial, mask) in float64, three rows of two units."""
    gates = {"gru": 3, "lstm": 4}[cell]
    shapes = [(num_steps, 3, 2 * gates), (2, 2 * gates)]
    shapes += [(2 * gates,), (3, 2)] if cell == "gru" else [(3, 2), (3, 2)]
    return [*(tf.constant(rng.normal(size=shape)) for shape in shapes), tf.constant(rng.uniform(0.5, 2.0, size=(3, 2)))]


def written_out(cell: str, masked: bool) -> Callable[..., tuple[tf.Tensor, ...]]:
    """All states of the operation under test."""
    if cell == "lstm":
        double = recurrences.doubled_memory_columns(2)
        return lambda x, kernel, h, c, mask: recurrences.lstm(x * double, kernel * double, (h, c), mask if masked else None)
    return lambda x, kernel, bias, h, mask: (recurrences.gru(x, kernel, bias, h, mask if masked else None),)


def by_the_equations(cell: str, masked: bool, by_scan: bool) -> Callable[..., tuple[tf.Tensor, ...]]:
    """The same in a few lines, with the gradient of `scan` or of plain autodiff."""

    def lstm(state: tuple, x: tf.Tensor, product: tf.Tensor) -> tuple[tf.Tensor, ...]:
        i, f, g, o = tf.split(x + product, 4, -1)
        c = tf.sigmoid(f) * state[1] + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(c), c

    def gru(state: tuple, x: tf.Tensor, product: tf.Tensor) -> tuple[tf.Tensor, ...]:
        (xz, xr, xn), (hz, hr, hn) = tf.split(x, 3, -1), tf.split(product, 3, -1)
        z = tf.sigmoid(xz + hz)
        return (z * state[0] + (1.0 - z) * tf.tanh(xn + tf.sigmoid(xr + hr) * hn),)

    def run(x: tf.Tensor, kernel: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        bias, state, mask = (rest[0], rest[1:2], rest[2]) if cell == "gru" else (0.0, rest[:2], rest[2])
        factor = mask if masked else 1.0
        cells = gru if cell == "gru" else lstm
        if by_scan:
            return scan(lambda s, u, multiply: (cells(s, u, multiply(s[0] * factor, kernel) + bias), ()), tuple(state), x)[0]
        found = []
        for t in range(len(x)):
            state = cells(state, x[t], tf.matmul(state[0] * factor, kernel) + bias)
            found.append(state)
        return tuple(tf.stack(a) for a in zip(*found, strict=True))

    return run


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_states_and_gradients_are_those_of_plain_loops(cell: str, num_steps: int, masked: bool, rng: np.random.Generator) -> None:
    values = operands(cell, num_steps, rng)
    use = [tf.constant(rng.normal(size=(num_steps, 3, 2))) for _ in range(2 if cell == "lstm" else 1)]
    results = []
    for run in (
        by_the_equations(cell, masked, False),
        by_the_equations(cell, masked, True),
        written_out(cell, masked),
        tf.function(written_out(cell, masked)),
    ):
        with tf.GradientTape() as tape:
            tape.watch(values[:-1])  # the mask is not learned
            states = run(*values)
            loss = tf.add_n([tf.reduce_sum(a**2 * b) for a, b in zip(states, use, strict=True)])
        results.append([*states, *tape.gradient(loss, values[:-1])])
    for wanted, *found in zip(*results, strict=True):
        for a in found:
            np.testing.assert_allclose(a, wanted, **SAME)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_are_finite_differences(cell: str, rng: np.random.Generator) -> None:
    values = operands(cell, 3, rng)
    run = tf.function(written_out(cell, True))
    use = rng.normal(size=(2, 3, 3, 2))

    def loss(*values: tf.Tensor) -> tf.Tensor:
        return tf.add_n([tf.reduce_sum(tf.sin(a) * b) for a, b in zip(run(*values), use, strict=False)])

    with tf.GradientTape() as tape:
        tape.watch(values[:-1])
        total = loss(*values)
    step = 1e-5  # the error of central differences is about step^2
    for k, gradient in enumerate(tape.gradient(total, values[:-1])):
        direction = rng.normal(size=gradient.shape)
        ends = [loss(*(v + s * step * direction if i == k else v for i, v in enumerate(values))) for s in (1.0, -1.0)]
        found = float(ends[0] - ends[1]) / (2.0 * step)
        np.testing.assert_allclose(float(tf.reduce_sum(gradient * direction)), found, rtol=1e-7, atol=1e-8)


def test_without_the_gradient_of_the_memory_that_of_the_output_is_the_same(rng: np.random.Generator) -> None:
    x, kernel, h, c, _ = operands("lstm", 4, rng)
    found = []
    for memory_gradient in (True, False):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel, h, c])
            hidden, memory = recurrences.lstm(x, kernel, (h, c), memory_gradient=memory_gradient)
            loss = tf.reduce_sum(hidden**2) + (tf.reduce_sum(memory**2) if not memory_gradient else 0.0)
        found.append(tape.gradient(loss, [x, kernel, h, c]))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, **SAME)


# Precision, dropout, arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_low_precision_is_close_and_trains_float32_weights(cell: str, policy: str, rng: np.random.Generator) -> None:
    low = RecurrentStack([3, 2], cell, True, zoneout=0.2 if cell == "rnn" else 0.0, dtype=policy)
    x, mask = example(rng)
    low_x = tf.cast(x, low.compute_dtype)
    low(low_x, mask)
    high = made({"units": [3, 2], "cell": cell, "bidirectional": True, "zoneout": low.zoneout}, rng)
    for a, b in zip(low.weights, high.weights, strict=True):
        a.assign(b)
    with tf.GradientTape() as tape:
        outputs, final = low(low_x, mask)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
    assert {outputs.dtype, *(a.dtype for a in tf.nest.flatten(final))} == {tf.as_dtype(low.compute_dtype)}
    # eight bits of bfloat16 are two digits; a handful of steps and layers add up
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), high(x, mask)[0], atol=0.06)
    for gradient, weight in zip(tape.gradient(loss, low.trainable_weights), low.trainable_weights, strict=True):
        assert gradient.dtype == weight.dtype == "float32"
        assert np.isfinite(gradient).all()


def test_one_step_and_empty_batches(rng: np.random.Generator) -> None:
    for name in ("gru both", "lstm both", "zoneout"):
        stack = made(VARIANTS[name], rng)
        x = rng.normal(size=(1, 4, 2)).astype(np.float32)
        outputs, final = stack(x)
        for row in range(4):
            np.testing.assert_allclose(outputs[:, row], reference.stack(stack, x[:, row].astype(float))[0], **CLOSE)
        empty, last = stack(x, tf.zeros([1, 4], tf.bool))
        assert not np.any(empty)
        assert not any(np.any(a) for a in tf.nest.flatten(last))
        assert len(tf.nest.flatten(final)) == len(tf.nest.flatten(stack.initial_state(4)))


def test_dropout_is_the_same_at_all_steps_and_a_row_s_own(rng: np.random.Generator) -> None:
    seeds = tf.constant(rng.integers(0, 1000, (3, 2)), tf.int32)
    mask = keep_mask(seeds, 4000, 0.3, 1)
    assert set(np.unique(mask)) == {0.0, np.float32(1.0) / np.float32(0.7)}
    # 12,000 draws: a standard deviation of 0.0042, and five of them
    assert abs(float(np.mean(mask == 0.0)) - 0.3) < 0.021
    np.testing.assert_array_equal(keep_mask(seeds[1:2], 4000, 0.3, 1)[0], mask[1])
    stack = made({"units": [4], "cell": "rnn", "dropout": 0.5}, rng)
    for weight, value in zip(stack.weights, (1.0, 0.0, 0.0), strict=True):
        weight.assign(np.full(weight.shape, value))
    x = np.ones((4, 3, 2), np.float32)
    outputs, _ = stack(x, seed=seeds)
    np.testing.assert_array_equal(outputs, np.broadcast_to(outputs[:1], outputs.shape))
    one, _ = stack(x[:, 1:2], seed=seeds[1:2])
    np.testing.assert_array_equal(one[:, 0], outputs[:, 1])
    wanted = np.tanh(keep_mask(seeds, 2, 0.5, 40).numpy().sum(-1, keepdims=True)) * keep_mask(seeds, 4, 0.5, 48).numpy()
    np.testing.assert_allclose(outputs[0], wanted, rtol=1e-6)  # tanh in float32


def test_noise_of_layers_and_directions_is_not_the_same(rng: np.random.Generator) -> None:
    stack = made(
        {"units": [8, 8], "cell": "lstm", "bidirectional": True, "recurrent_dropout": 0.5, "weight_drop": 0.5, "zoneout": 0.5},
        rng,
    )
    seed = tf.constant([[1, 2], [3, 4]])
    found = [
        stack._noise(layer, seed, seed[:1], tf.constant(6), 40 + 8 * k + 4 * d)
        for k, row in enumerate(stack.layers)
        for d, layer in enumerate(row)
    ]
    for name in ("recurrent_mask", "kernel_mask"):
        assert len({noise[name].numpy().tobytes() for noise in found}) == 4
    moves = [m.numpy() for noise in found for m in noise["moves"]]
    assert len({m.tobytes() for m in moves}) == 8  # h and c, of four layers
    assert {m.shape for m in moves} == {(6, 2, 8)}
    # one mask of the kernels for all rows, dropped entries as often as they should: 256 x 4 draws, five deviations
    share = np.mean([np.mean(noise["kernel_mask"] == 0.0) for noise in found])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(1024)


def test_training_noise_is_the_recurrence_with_what_was_drawn(rng: np.random.Generator) -> None:
    settings = {"units": [3], "cell": "lstm", "recurrent_dropout": 0.4, "weight_drop": 0.4, "zoneout": 0.3}
    stack = made(settings, rng)
    x = rng.normal(size=(5, 2, 2)).astype(np.float32)
    seed, common = tf.constant([[1, 2], [3, 4]]), tf.constant([[5, 6]])
    outputs, _ = stack(x, seed=seed, common_seed=common)
    noise = stack._noise(stack.layers[0][0], seed, common, tf.constant(5), 40)
    for row in range(2):
        wanted, _ = reference.recurrent(
            stack.layers[0][0],
            x[:, row].astype(float),
            moves=tuple(m.numpy()[:, row] for m in noise["moves"]),
            recurrent_mask=noise["recurrent_mask"].numpy()[row],
            kernel_mask=noise["kernel_mask"].numpy(),
        )
        np.testing.assert_allclose(outputs[:, row], wanted, **CLOSE)


def test_bad_arguments_name_themselves(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="`units` must name"):
        RecurrentStack([])
    with pytest.raises(ValueError, match="`backward_units`"):
        RecurrentStack([3], backward_units=[2])
    with pytest.raises(ValueError, match="`backward_units`"):
        RecurrentStack([3], bidirectional=True, backward_units=[2, 2])
    with pytest.raises(ValueError, match="`dropout`"):
        RecurrentStack([3], dropout=1.0)
    stack = made(VARIANTS["gru both"], rng)
    with pytest.raises(ValueError, match="cannot go step by step"):
        stack.step(tf.zeros([1, 2]), stack.initial_state(1))
