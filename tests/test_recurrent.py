"""The recurrent layers against Keras's own, with the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfseq.layers.recurrent import Recurrent

LENGTHS = np.array([5, 2, 0, 1])


def keras_twin(layer: Recurrent) -> keras.layers.Layer:
    """Keras's layer of the same cell and weights."""
    kind = {"rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[layer.cell]
    twin = kind(layer.units, return_sequences=True)
    twin.build((None, None, layer.kernel.shape[0]))
    weights = [layer.kernel.numpy(), layer.recurrent_kernel.numpy(), layer.bias.numpy()]
    if layer.cell == "gru":
        weights[2] = np.stack([weights[2], layer.recurrent_bias.numpy()])
    twin.set_weights(weights)
    return twin


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_each_cell_is_keras_s_run_over_the_real_steps_of_each_row(cell: str, reverse: bool, rng: np.random.Generator) -> None:
    layer = Recurrent(3, cell, reverse=reverse)
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    mask = np.arange(5)[:, None] < LENGTHS
    layer(tf.constant(x), tf.constant(mask))
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    dirty = np.where(mask[..., None], x, np.nan)
    outputs, final = layer(tf.constant(dirty), tf.constant(mask))
    twin = keras_twin(layer)
    for row, length in enumerate(LENGTHS):
        assert not outputs[length:, row].numpy().any()
        if not length:
            assert not final[0][row].numpy().any()
            continue
        alone = x[:length, row][:: -1 if reverse else 1]
        wanted = twin(alone[None])[0].numpy()[:: -1 if reverse else 1]
        np.testing.assert_allclose(outputs[:length, row], wanted, rtol=1e-5, atol=1e-6)  # float32 rounding
        np.testing.assert_allclose(final[0][row], wanted[0 if reverse else -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_steps_from_a_learned_start_are_the_whole_run(cell: str, rng: np.random.Generator) -> None:
    layer = Recurrent(3, cell, learned_initial=True)
    x = tf.constant(rng.normal(size=(4, 2, 2)).astype(np.float32))
    layer(x)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    outputs, final = layer(x)
    state = layer.initial_state(2)
    for t in range(4):
        state = layer.step(x[t], state)
        np.testing.assert_allclose(outputs[t], state[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(final, state, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    again, _ = layer(x, initial_state=state)
    np.testing.assert_allclose(again[0], layer.step(x[0], state)[0], rtol=1e-5, atol=1e-6)


def test_bad_arguments_name_themselves() -> None:
    with pytest.raises(ValueError, match="`cell` must be one of"):
        Recurrent(3, "lstn")
    with pytest.raises(ValueError, match="`units`"):
        Recurrent(0)
