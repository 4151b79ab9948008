"""Features of words from their characters, against slow loops."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfseq.layers.characters import Characters, alphabet_of
from tfseq.ops.tracing import without_gradients

ALPHABET = list("abcdé東")
WORDS = ["abba", "", "é", "zabcd", "東a", "dcba"]


def filled(rng: np.random.Generator, **arguments: object) -> Characters:
    """A layer whose weights are random numbers."""
    layer = Characters(ALPHABET, embedding_dim=3, units=4, **arguments)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer


def convolved(layer: Characters, ids: np.ndarray) -> np.ndarray:
    """Features `[units]` of one word `[W]`, padding cut off; Ma and Hovy 2016, figure 1."""
    embedding, kernel, bias = (np.asarray(w, np.float64) for w in (layer.embedding, layer.kernel, layer.bias))
    ids, left = ids[ids > 0], (layer.width - 1) // 2
    if not len(ids):
        return np.zeros(layer.units)
    at = []
    for t in range(len(ids)):
        near = [(k, t + k - left) for k in range(layer.width) if 0 <= t + k - left < len(ids)]
        at.append(bias + sum(embedding[ids[place]] @ kernel[k] for k, place in near))
    return np.max(at, 0)


def test_words_are_split_into_ids_of_their_characters() -> None:
    layer = Characters(ALPHABET)
    ids = layer.split([["ab", "", "zé"], ["東a東", "a", ""]])
    assert ids.numpy().tolist() == [[[2, 3, 0], [0, 0, 0], [1, 6, 0]], [[7, 2, 7], [2, 0, 0], [0, 0, 0]]]
    assert layer.split(b"\xffa").numpy().tolist() == [1, 2]


@pytest.mark.parametrize("max_length", [2, 3, 4, 5])
def test_long_words_keep_both_ends(max_length: int) -> None:
    layer = Characters(ALPHABET, max_length=max_length)
    word = "abcdabdcba"
    wanted = word[: (max_length + 1) // 2] + word[len(word) - max_length // 2 :]
    assert layer.split([word, "ab"]).numpy()[0].tolist() == [2 + ALPHABET.index(c) for c in wanted]
    assert layer.split([word[:max_length]]).numpy()[0].tolist() == [2 + ALPHABET.index(c) for c in word[:max_length]]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_cnn_is_the_largest_of_a_convolution_over_the_word(width: int, rng: np.random.Generator) -> None:
    layer = filled(rng, width=width)
    ids = layer.split(tf.constant(WORDS))
    wanted = [convolved(layer, row) for row in ids.numpy()]
    np.testing.assert_allclose(layer(ids), wanted, rtol=1e-5, atol=1e-5)  # float32 rounding


def test_lstm_is_the_last_state_of_keras_s_in_each_direction(rng: np.random.Generator) -> None:
    layer = filled(rng, kind="lstm")
    ids = layer.split(tf.constant(WORDS))
    got = layer(ids).numpy()
    for row, features in zip(ids.numpy(), got, strict=True):
        x = np.asarray(layer.embedding)[row[row > 0]]
        wanted = []
        for direction, order in zip(layer.directions, (x, x[::-1]), strict=True):
            twin = keras.layers.LSTM(layer.units // 2)
            twin.build((None, None, 3))
            twin.set_weights([np.asarray(w) for w in (direction.kernel, direction.recurrent_kernel, direction.bias)])
            wanted.append(twin(order[None])[0] if len(x) else np.zeros(layer.units // 2))
        np.testing.assert_allclose(features, np.concatenate(wanted), rtol=1e-5, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize("kind", ["cnn", "lstm"])
def test_neither_padding_nor_neighbours_change_a_word(kind: str, rng: np.random.Generator) -> None:
    layer = filled(rng, kind=kind)
    run = tf.function(layer.__call__, input_signature=[tf.TensorSpec([None, None], tf.int32)])
    ids = layer.split(tf.constant(WORDS))
    features = layer(ids).numpy()
    np.testing.assert_allclose(run(tf.pad(ids, [[0, 2], [0, 3]]))[:-2], features, rtol=1e-5, atol=1e-6)  # order of sums
    assert not features[WORDS.index("")].any() and not run(tf.zeros([3, 2], tf.int32)).numpy().any()
    for word, row in zip(WORDS, features, strict=True):
        np.testing.assert_allclose(layer(layer.split([[word, ""]]))[0, 0], row, rtol=1e-5, atol=1e-6)
    assert run(tf.zeros([0, 1], tf.int32)).shape == (0, 4)
    assert layer(layer.split(tf.zeros([2, 0], tf.string))).shape == (2, 0, 4)


@pytest.mark.parametrize("kind", ["cnn", "lstm"])
def test_the_gradient_is_that_of_finite_differences(kind: str, rng: np.random.Generator) -> None:
    layer = filled(rng, kind=kind, dtype="float64")
    ids = layer.split(tf.constant(WORDS))
    weights = tf.constant(rng.normal(size=(len(WORDS), 4)))

    @tf.function
    def loss() -> tf.Tensor:
        return tf.reduce_sum(tf.sin(layer(ids)) * weights)

    @tf.function
    def gradients() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            value = loss()
        return [tf.convert_to_tensor(g) for g in tape.gradient(value, layer.trainable_weights)]

    for weight, gradient in zip(layer.trainable_weights, gradients(), strict=True):
        direction, start = rng.normal(size=weight.shape), weight.numpy()
        values = []
        for step in (1e-6, -1e-6):
            weight.assign(start + step * direction)
            values.append(float(loss()))
        weight.assign(start)
        np.testing.assert_allclose((values[0] - values[1]) / 2e-6, np.sum(gradient * direction), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["cnn", "lstm"])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float64"])
def test_features_are_of_the_compute_dtype(kind: str, dtype: str, rng: np.random.Generator) -> None:
    layer = filled(rng, kind=kind, dtype=dtype)
    features = layer(layer.split(tf.constant(WORDS)))
    assert features.dtype == layer.compute_dtype
    single = Characters(ALPHABET, embedding_dim=3, units=4, kind=kind)
    single.set_weights([np.asarray(w) for w in layer.weights])
    wanted = single(single.split(tf.constant(WORDS))).numpy()
    np.testing.assert_allclose(
        np.asarray(tf.cast(features, tf.float32)), wanted, atol=0.1
    )  # bfloat16 has 8 bits, sums of 9 terms


@pytest.mark.parametrize("kind", ["cnn", "lstm"])
def test_saved_and_loaded_and_exported(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    layer = filled(rng, kind=kind, max_length=5)
    wanted = layer(layer.split(tf.constant(WORDS))).numpy()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(again.split(tf.constant(WORDS))), wanted)

    archive = keras.export.ExportArchive()
    archive.track(layer)
    spec = tf.TensorSpec([None, None], tf.string, name="tokens")
    with without_gradients():
        archive.add_endpoint("features", lambda tokens: {"features": layer(layer.split(tokens))}, [spec])
        archive.write_out(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(tmp_path / "export").signatures["features"](tokens=tf.constant([WORDS]))
    np.testing.assert_allclose(served["features"][0], wanted, rtol=1e-6, atol=1e-6)


def test_alphabet_of_words() -> None:
    assert alphabet_of(["abc", "cb", "cé"]) == ["c", "b", "a", "é"]
    assert alphabet_of(np.array(["ab", "b"]), min_count=2) == ["b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alphabet": ["a", "bc"]}, "single characters; received 'bc'"),
        ({"alphabet": ["a", "a"]}, "once"),
        ({"kind": "gru"}, "`kind` must be one of"),
        ({"kind": "lstm", "units": 3}, "`units` must be even"),
        ({"max_length": 1}, "`max_length` must be"),
        ({"width": 0}, "`width` must be"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Characters(**{"alphabet": ALPHABET, **arguments})
