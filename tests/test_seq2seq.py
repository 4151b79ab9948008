"""Encoder and decoder against loops in NumPy: likelihoods, attention, translations, and what they are counted by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import sacrebleu
import scipy.special
import tensorflow as tf

import tfseq
from tests import reference
from tfseq.data.batching import Sequences, stream
from tfseq.layers.recurrent import keep_mask
from tfseq.models import seq2seq
from tfseq.models.seq2seq import END, Seq2Seq
from tfseq.ops import random

pytestmark = [
    pytest.mark.usefixtures("eager"),
    pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning"),  # of tf.data
]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float64
SAME = {"rtol": 1e-9, "atol": 1e-10}  # float64 rounding
SOURCE, TARGET = ["ein", "Hund", "Katze"], ["a", "dog", END, "cat"]
X = ["ein Hund", "Katze ein Katze Maus", "", "Hund"]  # Maus is unknown
Y = ["a dog", "cat", "a", ""]

VARIANTS: dict[str, dict[str, Any]] = {
    f"{attention} {cell} {len(units)}": {"attention": attention, "cell": cell, "units": units}
    for attention in ("bahdanau", "luong", None)
    for cell, units in (("gru", [3]), ("lstm", [3, 2]))
} | {
    "luong rnn 2": {"attention": "luong", "cell": "rnn", "units": [2, 3]},
    "bahdanau gru 2": {"attention": "bahdanau", "units": [2, 3]},
}


def filled(model: Seq2Seq) -> Seq2Seq:
    """The model with weights that are not those it begins with."""
    rng = np.random.default_rng(3)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.9))
    model.compile("sgd")
    return model


@functools.cache
def made(name: str, dtype: str = "float64", **more: Any) -> Seq2Seq:
    settings = {"vocabulary": SOURCE, "target_vocabulary": TARGET, "embedding_dim": 4, "dropout": 0.0, "dtype": dtype}
    return filled(Seq2Seq(**{**settings, **VARIANTS[name], **more}))


def source_of(model: Seq2Seq, text: str) -> np.ndarray:
    """The vectors that the encoder reads, `[S, E]`."""
    ids = [1 + SOURCE.index(word) if word in SOURCE else 0 for word in text.split()]
    return reference.value(model.embedding.table)[np.array(ids, int)]


def target_of(text: str) -> list[int]:
    return [1 + TARGET.index(word) for word in [*text.split(), END]]


class Decoder:
    """The decoder of one sequence, a token at a time."""

    def __init__(self, model: Seq2Seq, vectors: np.ndarray) -> None:
        self.model = model
        self.memory, states = reference.stack(model.encoder, vectors)
        self.states = [
            tuple(
                np.tanh(reference.dense(bridge, np.concatenate([f, b])))
                for bridge, f, b in zip(bridges, forward, backward, strict=True)
            )
            for bridges, (forward, backward) in zip(model.bridges, states, strict=True)
        ]

    def look(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(context, weights) by the equations."""
        layer = self.model.attention
        if not len(self.memory):
            return np.zeros(self.memory.shape[1]), np.zeros(0)
        keys = self.memory @ reference.value(layer.memory_kernel)
        if self.model.attention_kind == "luong":
            scores = keys @ query
        else:
            scores = np.tanh(query @ reference.value(layer.query_kernel) + keys) @ reference.value(layer.vector)[:, 0]
        weights = reference.softmax(scores)
        return weights @ self.memory, weights

    def step(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """Token -> (log p of the next one `[V]`, attention `[S]`)."""
        model, kind = self.model, self.model.attention_kind
        vector = reference.value(model.target_embedding.table)[token]
        layers = [row[0] for row in model.decoder.layers] if model.decoder is not None else []
        x, context, weights = vector, np.zeros(0), np.zeros(0)
        if kind == "bahdanau":
            context, weights = self.look(self.states[0][0])
            layers, x = [model.first, *layers], np.concatenate([vector, context])
        for k, layer in enumerate(layers):
            self.states[k] = reference.recurrent_step(layer, x, self.states[k])
            x = self.states[k][0]
        if kind == "luong":
            context, weights = self.look(x)
            x = np.tanh(reference.dense(model.combine, np.concatenate([context, x])))
        elif kind == "bahdanau":
            x = np.tanh(reference.dense(model.combine, np.concatenate([x, context, vector])))
        return scipy.special.log_softmax(reference.dense(model.output_layer, x)), weights


def told(model: Seq2Seq, vectors: np.ndarray, previous: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """log p of the next token after each of `previous` `[L, V]`, and the attention `[L, S]`."""
    decoder = Decoder(model, vectors)
    found = [decoder.step(token) for token in previous]
    return np.array([a for a, _ in found]), np.array([b for _, b in found])


def log_prob(model: Seq2Seq, vectors: np.ndarray, target: list[int]) -> float:
    log_p, _ = told(model, vectors, [model.boundary, *target[:-1]])
    return float(log_p[np.arange(len(target)), target].sum())


# Likelihoods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_the_likelihood_and_the_attention_are_those_of_single_steps(name: str) -> None:
    model = made(name)
    wanted = [log_prob(model, source_of(model, x), target_of(y)) for x, y in zip(X, Y, strict=True)]
    np.testing.assert_allclose(model.log_prob(X, Y), wanted, **SAME)
    np.testing.assert_allclose(model.predict({"x": X, "target": Y}, verbose=0), wanted, **SAME)
    for row in range(4):
        np.testing.assert_allclose(model.log_prob(X[row : row + 1], Y[row : row + 1]), wanted[row : row + 1], **SAME)
    if model.attention is None:
        with pytest.raises(ValueError, match="attention=None"):
            model.attention_weights(X, Y)
        return
    weights = model.attention_weights(X, Y).numpy()
    for row, (x, y) in enumerate(zip(X, Y, strict=True)):
        target = target_of(y)
        rows, columns = len(target), len(x.split())
        of_row = told(model, source_of(model, x), [model.boundary, *target[:-1]])[1]
        np.testing.assert_allclose(weights[row, :rows, :columns], of_row, **SAME)
        assert not weights[row, rows:].any()
        assert not weights[row, :, columns:].any()
        np.testing.assert_allclose(weights[row, :rows].sum(-1), float(columns > 0), **SAME)


@pytest.mark.parametrize("name", VARIANTS)
def test_next_scores_are_those_of_the_likelihood(name: str) -> None:
    model = made(name)
    batch = model.complete(model.as_batch({"x": X}))
    memory, state = model.remember(batch)
    token, total = tf.fill([4], model.boundary), np.zeros(4)
    targets = np.array([[1, 2, 3], [4, 0, 3], [1, 1, 3], [2, 4, 3]])
    for t in range(3):
        scores, state = model.next_scores(token, state, memory)
        token = tf.constant(targets[:, t], tf.int32)
        total += scipy.special.log_softmax(scores, -1)[np.arange(4), token]
    np.testing.assert_allclose(model.log_prob({"x": X, "target": targets}), total, **SAME)


def test_texts_tokens_ids_and_frames_are_the_same() -> None:
    model = made("luong gru 1")
    wanted = model.log_prob(X, Y).numpy()
    np.testing.assert_allclose(model.log_prob([x.split() for x in X], [y.split() for y in Y]), wanted, **SAME)
    np.testing.assert_allclose(model.log_prob(Sequences(X, target=Y)), wanted, **SAME)
    np.testing.assert_allclose(model.log_prob([x.encode() for x in X], [f"{y} {END}".split() for y in Y]), wanted, **SAME)
    prepared = model.prepare(Sequences(X, target=Y))
    assert [a.tolist() for a in prepared.target] == [[*y.split(), END] for y in Y]
    np.testing.assert_allclose(model.log_prob(prepared.padded()), wanted, **SAME)
    raw = model.terms(model.complete({"x": tf.constant(X), "target": tf.constant(Y)}))  # as in a graph
    np.testing.assert_allclose(raw.per_sequence(raw.log_lik), wanted, **SAME)

    twin = filled(Seq2Seq(target_vocabulary=TARGET, feature_dim=4, embedding_dim=4, units=[3], dropout=0.0))
    shared = [w for w in model.trainable_weights if w is not model.embedding.table]
    for a, b in zip(twin.trainable_weights, shared, strict=True):
        a.assign(b)
    frames = [source_of(model, x).astype(np.float32) for x in X]
    np.testing.assert_allclose(twin.log_prob(frames, Y), wanted, **CLOSE)
    dirty = {"x": np.full((4, 6, 4), np.nan, np.float32), "mask": np.arange(6) < np.array([[len(f)] for f in frames])}
    dirty["x"][dirty["mask"]] = np.concatenate(frames)
    np.testing.assert_allclose(twin.log_prob({**dirty, "target": prepared.padded()["target"],
                                              "target_mask": prepared.padded()["target_mask"]}), wanted, **CLOSE)  # fmt: skip
    assert twin.translate(frames).numpy().tolist() == made("luong gru 1").translate(X).numpy().tolist()


@pytest.mark.parametrize("name", ["bahdanau gru 2", "luong gru 1", "None lstm 2"])
def test_what_stands_in_the_padding_of_either_sequence_changes_nothing(name: str) -> None:
    model = made(name)
    found = []
    for garbage in (0, 3):
        x, target = np.full((2, 5), garbage, np.int32), np.full((2, 4), garbage, np.int32)
        x[0, :2], x[1, :3], target[0, :3], target[1, :1] = [1, 2], [3, 1, 0], [1, 2, 3], [3]
        data = {"x": x, "mask": np.arange(5) < [[2], [3]], "target": target, "target_mask": np.arange(4) < [[3], [1]]}
        with tf.GradientTape() as tape:
            terms = model.terms(model.complete(model.as_batch(data)), training=True)
            loss = tf.reduce_sum(terms.log_lik)
        found.append([terms.log_lik, *tape.gradient(loss, model.trainable_weights, unconnected_gradients="zero")])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


@pytest.mark.parametrize("name", ["bahdanau lstm 2", "luong gru 1"])
def test_gradients_are_finite_differences(name: str, rng: np.random.Generator) -> None:
    model = made(name)
    batch = model.complete(model.as_batch({"x": X, "target": Y}))

    def loss() -> tf.Tensor:
        return tf.reduce_sum(model.terms(batch).log_lik)

    with tf.GradientTape() as tape:
        total = loss()
    gradients = tape.gradient(total, model.trainable_weights)
    before = [w.numpy() for w in model.trainable_weights]
    directions = [rng.normal(size=w.shape) for w in model.trainable_weights]
    step, ends = 1e-6, []
    try:
        for sign in (1.0, -1.0):
            for weight, value, direction in zip(model.trainable_weights, before, directions, strict=True):
                weight.assign(value + sign * step * direction)
            ends.append(float(loss()))
    finally:
        for weight, value in zip(model.trainable_weights, before, strict=True):
            weight.assign(value)
    found = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True))
    # central differences of a sum of about 20: rounding is 20 * 1e-16 / step
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2.0 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["bahdanau gru 1", "luong lstm 2"])
def test_own_tokens_are_guesses_in_the_place_of_the_target_s(name: str) -> None:
    model = made(name, own_tokens=1.0)
    batch = model.complete(model.as_batch({"x": X, "target": Y}))
    trained = model.terms(batch, training=True)
    found, plain = trained.per_sequence(trained.log_lik), model.log_prob(X, Y)
    for row, (x, y) in enumerate(zip(X, Y, strict=True)):
        target, vectors = target_of(y), source_of(model, x)
        log_p, _ = told(model, vectors, [model.boundary, *target[:-1]])
        guesses = log_p.argmax(-1).tolist()
        own, _ = told(model, vectors, [model.boundary, *guesses[:-1]])
        np.testing.assert_allclose(found[row], own[np.arange(len(target)), target].sum(), **SAME)
        np.testing.assert_allclose(plain[row], log_p[np.arange(len(target)), target].sum(), **SAME)


def test_the_share_of_own_tokens_rises_over_the_steps_of_its_warm_up() -> None:
    name, sources, targets = "luong gru 1", ["ein Hund", "Katze"] * 4, ["a dog cat cat a"] * 8
    model = made(name, own_tokens=0.8, own_tokens_warmup=10)

    def trained(model: Seq2Seq, step: int = 0) -> np.ndarray:
        model.step.assign(step)
        batch = model.complete(model.as_batch({"x": sources, "target": targets, "seed": [1, 2]}))
        return model.terms(batch, training=True).log_lik.numpy()

    wanted = {share: trained(made(name, own_tokens=share)) for share in (0.0, 0.4, 0.8)}
    for step, share in ((0, 0.0), (5, 0.4), (10, 0.8), (1000, 0.8)):
        np.testing.assert_array_equal(trained(model, step), wanted[share])
    assert min(np.abs(wanted[a] - wanted[b]).max() for a, b in ((0.0, 0.4), (0.4, 0.8))) > 1e-3
    model.step.assign(1000)
    plain = wanted[0.0].sum(1)
    np.testing.assert_allclose(model.log_prob(sources, targets), plain, **SAME)  # and none where nothing learns
    with pytest.raises(ValueError, match="`own_tokens_warmup`"):
        Seq2Seq.tiny(own_tokens_warmup=-1)


def test_one_layer_that_attends_drops_its_output_as_a_stack_does() -> None:
    model = made("bahdanau gru 1", dropout=0.5, cell="lstm", units=(6,))
    model.encoder.dropout = 0.0  # which is a stack
    batch = model.complete(model.as_batch({"x": X[:2], "target": Y[:2], "seed": [1, 2]}))
    terms = model.terms(batch, training=True)
    seeds = random.derive(batch["seed"], 1)
    vector_masks, output_masks = (
        keep_mask(seeds, num, 0.5, seq2seq._SALT + k, tf.float64).numpy() for num, k in ((4, 0), (6, 2))
    )
    assert {0.0, 2.0} == set(output_masks.flat)
    for row in range(2):
        decoder, target = Decoder(model, source_of(model, X[row])), target_of(Y[row])
        for t, (before, wanted) in enumerate(zip([model.boundary, *target[:-1]], target, strict=True)):
            vector = reference.value(model.target_embedding.table)[before] * vector_masks[row]
            context, _ = decoder.look(decoder.states[0][0])
            decoder.states[0] = reference.recurrent_step(model.first, np.concatenate([vector, context]), decoder.states[0])
            features = np.concatenate([decoder.states[0][0] * output_masks[row], context, vector])
            scores = reference.dense(model.output_layer, np.tanh(reference.dense(model.combine, features)))
            np.testing.assert_allclose(terms.log_lik[row, t], scipy.special.log_softmax(scores)[wanted], **SAME)


# Translation ---------------------------------------------------------------------------------------------------------


def greedy(model: Seq2Seq, vectors: np.ndarray, most: int) -> tuple[str, float]:
    decoder, token, total = Decoder(model, vectors), model.boundary, 0.0
    said: list[str] = []
    for _ in range(most):
        log_p, _ = decoder.step(token)
        token = 1 + int(log_p[1:].argmax())  # the unknown is never written
        total += log_p[token] - scipy.special.logsumexp(log_p[1:])
        if token == model.end:
            break
        said.append(TARGET[token - 1])
    return " ".join(said), total


@pytest.mark.parametrize("name", ["bahdanau gru 2", "luong lstm 2", "None gru 1"])
def test_one_beam_takes_the_best_token_and_no_row_sees_another(name: str) -> None:
    model = made(name)
    sources = ["ein Hund", "Katze", "", "ein ein Hund Katze", "Hund ein"]
    for most in (None, 3):
        found = model.translate(sources, num_beams=1, max_tokens=most).numpy().astype(str)
        wide = model.translate(sources, num_beams=3, max_tokens=most).numpy()
        for row, source in enumerate(sources):
            num = len(source.split())
            assert found[row] == (greedy(model, source_of(model, source), most or 2 * num + 10)[0] if num else "")
            assert model.translate([source], num_beams=3, max_tokens=most).numpy()[0] == wide[row]


@pytest.mark.parametrize("name", ["bahdanau gru 1", "luong lstm 2"])
def test_a_wide_beam_is_never_worse_than_all_short_translations(name: str) -> None:
    model = made(name)
    source = source_of(model, "ein Katze")
    found: dict[str, float] = {}
    prefixes: list[list[int]] = [[]]
    for length in range(4):
        longer = []
        for prefix in prefixes:
            log_p, _ = told(model, source, [model.boundary, *prefix])
            log_p = log_p - scipy.special.logsumexp(log_p[:, 1:], -1, keepdims=True)
            total = float(sum(log_p[t, k] for t, k in enumerate(prefix)))
            text = " ".join(TARGET[k - 1] for k in prefix)
            found[text] = total + (log_p[-1, model.end] if length < 3 else 0.0)
            longer += [[*prefix, k] for k in (1, 2, 4)]
        prefixes = longer
    for penalty in (0.0, 1.0):
        best = max(found, key=lambda text: found[text] / ((5.0 + min(len(text.split()) + 1, 3)) / 6.0) ** penalty)
        answer = model.translate(["ein Katze"], num_beams=50, max_tokens=3, length_penalty=penalty)
        assert answer.numpy()[0].decode() == best


def test_what_is_served_is_translate() -> None:
    model = made("luong lstm 2")
    served = model._serve_text(tf.constant(X))
    assert served["text"].numpy().tolist() == model.translate(X).numpy().tolist()
    decoded = model.decode({"x": X})
    assert [t.encode() for t in decoded["text"]] == served["text"].numpy().tolist()
    np.testing.assert_allclose(decoded["log_prob"], served["score"], **SAME)
    assert served["length"].numpy().tolist() == [len(t.split()) for t in decoded["text"]]
    broken = model.translate([b"ein \xff", "ein \ufffd"]).numpy()
    assert broken[0] == broken[1]
    with pytest.raises(ValueError, match="`num_beams`"):
        model.translate(X, num_beams=0)


# Data, training, evaluation ------------------------------------------------------------------------------------------


def test_vocabularies_come_from_data() -> None:
    data = Sequences(["b a", "b"], target=["x y", "y"])
    model = Seq2Seq.from_data(data, min_count=2, units=[2], embedding_dim=2)
    assert model.text.vocabulary == ["b"]
    assert model.target_text.vocabulary == [END, "y"]
    letters = Seq2Seq.from_data(data, min_count=1, units=[2], embedding_dim=2, target_unit="characters")
    assert letters.target_text.vocabulary == [END, "y", " ", "x"]
    with pytest.raises(ValueError, match="`dataset` must have `target`"):
        Seq2Seq.from_data(Sequences(["a"]))
    with pytest.raises(ValueError, match=r"`target` must be texts.*received float32 of shape \[3\]"):
        Seq2Seq.from_data(Sequences(["a"], target=[np.zeros(3, np.float32)]), min_count=1)
    frames = {"x": [np.zeros((1, 2), np.float32)], "target": [np.array([1, 2, 5])]}  # a target is of its own length
    assert Seq2Seq.from_data(frames, units=[2], embedding_dim=2).target_text.vocabulary == [*"12345", END]
    with pytest.raises(ValueError, match="`dataset` must have `target`.*Is it for a tagger"):
        Seq2Seq.from_data({**frames, "target": None})
    with pytest.raises(ValueError, match="`target_vocabulary` must have"):
        Seq2Seq(vocabulary=["a"], target_vocabulary=["b"])


def test_ids_are_numbers_and_the_end_of_targets_comes_after_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    sources, targets = [np.array([2, 1]), np.array([3])], [np.array([1, 2, 3, 12, 1]), np.array([12, 2])]
    data = Sequences(sources, target=targets)
    model = filled(Seq2Seq.from_data(data, units=[3], embedding_dim=2, dropout=0.0, unit="characters"))
    assert (model.text.vocabulary, model.text.unit) == (["1", "2", "3"], "words")
    assert (model.target_text.vocabulary, model.target_text.unit) == ([*(str(k) for k in range(1, 13)), END], "words")
    assert model.end == 13
    assert [a.tolist() for a in model.prepare(data).target] == [[1, 2, 3, 12, 1, 13], [12, 2, 13]]
    assert [a.tolist() for a in model.prepare(data).x] == [[2, 1], [3]]
    wanted = model.log_prob(["2 1", "3"], ["1 2 3 12 1", "12 2"])
    for given in (data, model.prepare(data).padded(), {"x": [[2, 1], [3]], "target": [[1, 2, 3, 12, 1], [12, 2]]}):
        np.testing.assert_allclose(model.log_prob(given), wanted, **CLOSE)
    assert model.translate(sources).numpy().tolist() == model.translate(["2 1", "3"]).numpy().tolist()
    assert len(set(model.translate(sources, max_tokens=3).numpy()[0].decode().split()) - set(model.target_text.vocabulary)) == 0
    texts = Seq2Seq.from_data(Sequences(sources, target=["ab", "b"]), min_count=1, units=[2], embedding_dim=2, unit="characters")
    assert (texts.text.unit, texts.target_text.unit, texts.target_text.vocabulary) == ("words", "characters", [END, "b", "a"])
    found = model.fit(data, verbose=0).history["nats_per_step"]
    np.testing.assert_allclose(found, -wanted.numpy().sum() / 9, **CLOSE)
    monkeypatch.setattr(Seq2Seq, "translate", lambda self, data: tf.gather(["1 2 3 12 1", "12 2 5"], data["row"]))
    score = sacrebleu.corpus_bleu(["1 2 3 12 1", "12 2 5"], [["1 2 3 12 1", "12 2"]]).score
    assert tfseq.evaluate(model, data)["bleu"] == pytest.approx(score) != 0.0


def test_references_of_bleu_are_the_targets_as_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model, raw = made("luong gru 1", "float32"), "犬 猫 鳥 魚 cat"
    monkeypatch.setattr(Seq2Seq, "translate", lambda self, data: tf.constant([raw]))
    found = tfseq.evaluate(model, Sequences(["ein"], target=[raw]))
    assert found["bleu"] == pytest.approx(100.0)  # though a text is written with no blanks between Kanji
    assert "references: raw targets, nrefs:1" in found["protocol"]
    tokens = Sequences(["ein"], target=[np.array(["a", "cat", ",", "a", "dog", END])])
    found = tfseq.evaluate(model, tokens)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu([raw], [["a cat, a dog"]]).score)
    assert "references: targets joined from tokens, nrefs:1" in found["protocol"]
    monkeypatch.setattr(Seq2Seq, "translate", lambda self, data: tf.constant(["a cat, a dog"]))
    assert tfseq.evaluate(model, tokens)["bleu"] == pytest.approx(100.0)


def test_evaluation_pools_over_tokens_and_bleu_is_sacrebleu_s() -> None:
    model = made("luong gru 1", "float32")
    data = Sequences([*X, "Katze"], target=["a dog cat", "cat a a dog", "a", "dog", "cat cat cat cat"])
    targets = [target_of(y) for y in data.target]
    total = sum(log_prob(model, source_of(model, x), y) for x, y in zip(data.x, targets, strict=True))
    num = sum(map(len, targets))
    said = [text.decode() for text in model.translate(data.x).numpy()]
    for size in (1, 4):
        found = tfseq.evaluate(model, data, batch_size=size)
        assert set(found) == {"nats_per_token", "perplexity", "bleu", "protocol", "num_sequences", "num_steps"}
        np.testing.assert_allclose(found["nats_per_token"], -total / num, **CLOSE)
        np.testing.assert_allclose(found["perplexity"], np.exp(-total / num), **CLOSE)
        np.testing.assert_allclose(found["bleu"], sacrebleu.corpus_bleu(said, [list(data.target)]).score, rtol=1e-6)
    batches = stream(model.prepare(data), 2)
    np.testing.assert_allclose(model.evaluate(batches, verbose=0, return_dict=True)["nats_per_step"], -total / num, **CLOSE)


def test_a_resumed_run_is_the_uninterrupted_one(same_when_resumed: Callable[..., Any]) -> None:
    data = Sequences(["ein Hund", "eine Katze", "Hund", ""], target=["a dog", "a cat", "dog", "a"])
    settings = {"batch_size": 2, "schedule": "constant", "learning_rate": 0.02, "progress": False, "seed": 3}

    def run(epochs: int, out: Path, **more: Any) -> Any:
        keras.utils.set_random_seed(0)
        model = Seq2Seq.from_data(
            data, embedding_dim=3, units=[3], dropout=0.2, min_count=1, attention="bahdanau", own_tokens=0.8, own_tokens_warmup=4,
            token_dropout=0.1,
        )  # fmt: skip
        return tfseq.train(model, data, data, out=out, epochs=epochs, **settings, **more)

    same_when_resumed(run)


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_a_graph_learns_a_few_translations(attention: str) -> None:
    tf.config.run_functions_eagerly(False)
    data = Sequences(["ein Hund", "eine Katze"] * 20, target=["a dog", "a cat"] * 20)
    keras.utils.set_random_seed(0)
    model = Seq2Seq.from_data(data, min_count=1, embedding_dim=8, units=[8], dropout=0.0, attention=attention)
    run = tfseq.train(model, data, epochs=3, batch_size=2, learning_rate=0.03, progress=False)
    assert run.model.translate(data.x[:2]).numpy().astype(str).tolist() == data.target[:2]
