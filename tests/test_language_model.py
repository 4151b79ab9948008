"""The language model against loops in NumPy: likelihoods whole, in chunks, by windows and step by step; what it generates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import tfseq
from tests import reference
from tfseq.data.batching import Sequences, num_windows, windows
from tfseq.layers import recurrent
from tfseq.models import language_model
from tfseq.models.language_model import END, LanguageModel

TEXTS = ["abcab", "b", "", "cazba"]  # z is unknown
SAME = {"rtol": 1e-9, "atol": 1e-10}  # float64 rounding
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of some ten terms of about 1

VARIANTS: dict[str, dict[str, Any]] = {
    "lstm": {"units": [4, 3]},
    "gru tied": {"cell": "gru", "units": [5, 3], "tied": True, "embedding_dim": 3},
    "tied by a layer": {"units": [4], "tied": True, "embedding_dim": 3},
    "ends": {"units": [3], "vocabulary": ["a", "b", "c", END], "ends": True},
    "conditional": {"units": [4], "conditional": True, "classes": ["x", "y"], "ends": True, "vocabulary": [END, *"abc"]},
    "all": {"cell": "rnn", "units": [3, 3], "residual": True, "layer_norm": True, "zoneout": 0.2, "embedding_dim": 3},
}  # fmt: skip


def made(name: str, seed: int = 0, **more: Any) -> LanguageModel:
    """A model of three letters with weights that are not those it begins with."""
    settings = {"vocabulary": list("abc"), "embedding_dim": 4, "window": 3, "dropout": 0.0, "dtype": "float64"}
    model = LanguageModel(**{**settings, **VARIANTS[name], **more})
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.8))
    return model


@pytest.fixture(scope="module")
def models() -> Callable[..., LanguageModel]:
    """One model of each variant, made once."""
    return functools.cache(made)


def ids_of(model: LanguageModel, text: str) -> list[int]:
    """The ids of a text's characters, with the end."""
    known = model.text.vocabulary
    ids = [1 + known.index(c) if c in known else 0 for c in text]
    return [*ids, 1 + known.index(END)] if model.ends else ids


def all_log_probs(model: LanguageModel, ids: list[int], label: int = -1) -> np.ndarray:
    """log p(. | x_1 .. x_{t-1}) of every next token `[T + 1, V]`, in NumPy."""
    table = reference.value(model.embedding.table)
    vectors = table[[model.boundary, *ids]]
    if model.conditional:
        vectors = vectors + reference.value(model.class_embedding.table)[label + 1]
    hidden, _ = reference.stack(model.stack, vectors)
    if not model.tied:
        scores = reference.dense(model.output_layer, hidden)
    else:
        hidden = hidden if model.to_embedding is None else reference.dense(model.to_embedding, hidden)
        scores = hidden @ table[: model.size].T + reference.value(model.bias)
    return scipy.special.log_softmax(scores, -1)


def log_prob(model: LanguageModel, ids: list[int], label: int = -1) -> float:
    return float(all_log_probs(model, ids, label)[np.arange(len(ids)), ids].sum())


# Likelihoods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_log_prob_is_the_sum_over_steps(name: str, models: Any) -> None:
    model = models(name)
    wanted = [log_prob(model, ids_of(model, text)) for text in TEXTS]
    np.testing.assert_allclose(model.log_prob(TEXTS), wanted, **SAME)
    batch = model.complete(model.as_batch(TEXTS))
    terms = model.terms(batch)
    np.testing.assert_allclose(terms.per_sequence(terms.log_lik), wanted, **SAME)
    for row, text in enumerate(TEXTS):  # whatever the batch around it
        np.testing.assert_allclose(model._log_prob(model.complete(model.as_batch([text]))), wanted[row : row + 1], **SAME)


def test_dynamic_evaluation_descends_after_every_window(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences of `log_prob`, and single steps of the network from the state that the old weights left."""
    model, rate = models("gru tied"), 0.2
    texts, window, small = ["abca", "cb"], 2, 1e-5  # two windows, and one
    kept = model.get_weights()

    def gradient(text: str) -> list[np.ndarray]:
        found = []
        for weight in model.trainable_weights:
            value, slopes = weight.numpy(), np.zeros(weight.shape)
            for place in np.ndindex(value.shape):
                ends = []
                for step in (small, -small):
                    moved = value.copy()
                    moved[place] += step
                    weight.assign(moved)
                    ends.append(float(model.log_prob([text])[0]))
                slopes[place] = (ends[0] - ends[1]) / (2.0 * small)
            weight.assign(value)
            found.append(slopes)
        return found

    def window_of(ids: list[int], before: int, state: Any) -> tuple[float, Any]:
        total = 0.0
        for token in ids:
            scores, state = model.next_scores(tf.constant([before]), state)
            total, before = total + float(tf.nn.log_softmax(scores)[0, token]), token
        return total, state

    ids = ids_of(model, texts[0])
    first, state = window_of(ids[:2], model.boundary, model.stack.initial_state(1))
    slopes = [slope / 2.0 for slope in gradient(texts[0][:2])]
    norm = np.sqrt(sum(np.sum(slope**2) for slope in slopes))
    for most in (0.1, 5.0):
        for weight, slope in zip(model.trainable_weights, slopes, strict=True):
            weight.assign(weight + rate * min(1.0, most / norm) * slope)
        second, _ = window_of(ids[2:], ids[1], state)
        model.set_weights(kept)
        monkeypatch.setattr(language_model, "_DYNAMIC_NORM", most)
        model.__dict__.pop("_learned", None)  # traced with another norm
        found = model.dynamic_log_prob(texts, learning_rate=rate, window=window)
        np.testing.assert_allclose(found[0], first + second, rtol=1e-7)  # the error of central differences
    assert 0.1 < norm < 5.0
    assert abs(found[1] - float(model.log_prob(texts)[1])) > 1e-3  # the weights go on from text to text,
    np.testing.assert_allclose(model.dynamic_log_prob(texts, learning_rate=0.0, window=3), model.log_prob(texts), **SAME)
    for weight, value in zip(model.get_weights(), kept, strict=True):  # and are what they were
        np.testing.assert_array_equal(weight, value)


def test_windows_are_not_compiled_with_xla() -> None:
    model = LanguageModel.tiny()
    model.compile("adam", jit_compile=True)
    with pytest.raises(ValueError, match="`jit_compile` must be False where windows carry a state on"):
        model.fit(windows(model.prepare(Sequences([np.ones(6, np.int32)])), 1, 3), verbose=0)


@pytest.mark.parametrize("name", ["ends", "conditional"])
def test_dynamic_evaluation_without_learning_is_exact(name: str, models: Any) -> None:
    model, texts = models(name), ["abcab", "", "cab"]
    data = Sequences(texts, y=["x", "y", "x"]) if model.conditional else Sequences(texts)
    found = tfseq.evaluate(model, data, dynamic_rate=1e-13, dynamic_window=2)
    assert found["dynamic_nats_per_token"] == pytest.approx(found["nats_per_token"], rel=1e-9)
    for name, value in (("dynamic_rate", -1.0), ("dynamic_window", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            tfseq.evaluate(model, data, **{"dynamic_rate": 0.1, name: value})


def test_dynamic_evaluation_says_what_is_wrong(models: Any) -> None:
    model = models("lstm")
    kept = model.get_weights()
    for options, message in (
        ({"window": 0}, "`window` must"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a number of at least 0"),
        ({"learning_rate": 1e300, "window": 1}, "`learning_rate` must be smaller"),
    ):
        with pytest.raises(ValueError, match=message):
            model.dynamic_log_prob(["abcabc"], **options)
    for weight, value in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_texts_tokens_and_ids_are_the_same(models: Any) -> None:
    for name in ("lstm", "ends"):
        model = models(name)
        wanted = model.log_prob(TEXTS)
        np.testing.assert_allclose(model.log_prob([list(text) for text in TEXTS]), wanted, **SAME)
        ids = [np.array(ids_of(model, text), np.int32) for text in TEXTS]
        np.testing.assert_allclose(model.log_prob(ids), wanted, **SAME)
        np.testing.assert_allclose(model.log_prob([text.encode() for text in TEXTS]), wanted, **SAME)
        np.testing.assert_allclose(model.log_prob(Sequences(TEXTS)), wanted, **SAME)
        served = model._serve_score(tf.constant(TEXTS))
        np.testing.assert_allclose(served["log_prob"], wanted, rtol=1e-6, atol=1e-6)  # served in float32
        np.testing.assert_array_equal(served["num_tokens"], [len(i) for i in ids])


def test_probabilities_of_all_texts_sum_to_one(models: Any) -> None:
    model = models("ends")  # texts over three letters and the unknown, of two tokens at most, and all longer ones
    ended = [[i, 4] for i in range(4)] + [[4]]
    begun = [[i, j] for i in range(4) for j in range(4)]
    ids = np.array([[*a, 0][:2] for a in ended + begun])
    mask = np.arange(2) < np.array([len(a) for a in ended + begun])[:, None]
    np.testing.assert_allclose(np.exp(model.log_prob(ids, mask)).sum(), 1.0, rtol=1e-9)


def test_classes_are_read_at_every_step(models: Any) -> None:
    model = models("conditional")
    labels = ["x", "y", ""]
    found = model.log_prob({"x": ["abc", "abc", "abc"], "y": labels})
    wanted = [log_prob(model, ids_of(model, "abc"), label) for label in (0, 1, -1)]
    np.testing.assert_allclose(found, wanted, **SAME)
    np.testing.assert_allclose(model.log_prob(["abc"]), wanted[2:], **SAME)
    served = model._serve_score(tf.constant(["abc"] * 4), **{"label": tf.constant([*labels, "never seen"])})
    np.testing.assert_allclose(served["log_prob"], [*wanted, wanted[2]], rtol=1e-6)
    with pytest.raises(ValueError, match="seen in training"):
        model.log_prob({"x": ["a"], "y": ["z"]})


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7])
def test_chunks_of_a_long_text_are_the_whole(chunk: int, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models("lstm")
    monkeypatch.setattr(language_model, "_CHUNK", chunk)
    batch = model.complete(model.as_batch(TEXTS))
    wanted = [log_prob(model, ids_of(model, text)) for text in TEXTS]
    np.testing.assert_allclose(model._log_prob(batch), wanted, **SAME)


def test_tied_weights_are_one_table(models: Any) -> None:
    model = models("gru tied")
    shapes = [tuple(w.shape) for w in model.trainable_weights]
    assert shapes.count((5, 3)) == 1  # three letters, the unknown and the boundary
    assert not any(shape[-1] == 4 and len(shape) == 2 for shape in shapes)  # no second matrix of the scores
    with tf.GradientTape() as tape:
        terms = model.terms(model.complete(model.as_batch(["ab"])))
        loss = tf.reduce_sum(terms.log_lik)
    gradient = tape.gradient(loss, model.embedding.table.value)
    assert np.abs(gradient[3]).sum() > 0.0  # c is not read, but it is a row of the output


# Windows -------------------------------------------------------------------------------------------------------------


def by_windows(model: LanguageModel, data: Sequences, lanes: int, num_steps: int) -> np.ndarray:
    """log p of the steps of each lane, `[lanes]`, the state carried by the model."""
    total = np.zeros(lanes)
    for batch in windows(data, lanes, num_steps):
        terms = model.terms(model.complete(model.as_batch({name: a.numpy() for name, a in batch.items()})))
        total += terms.per_sequence(terms.log_lik).numpy()
    return total


@pytest.mark.parametrize("name", ["lstm", "gru tied", "all"])
def test_windows_with_the_state_carried_are_the_whole_text(name: str, models: Any) -> None:
    model, text = models(name), "abcabbcazabcc"
    data = Sequences([np.array(list(text))])
    wanted = log_prob(model, ids_of(model, text))
    for num_steps in (1, 3, 5, 20):
        np.testing.assert_allclose(by_windows(model, data, 1, num_steps), [wanted], **SAME)


def test_lanes_are_texts_of_their_own(models: Any) -> None:
    model, text = models("lstm"), "abcabbcazabcc"
    data = Sequences([np.array(list(text))])
    for lanes, parts in ((3, [5, 4, 4]), (5, [3, 3, 3, 2, 2]), (15, [1] * 13 + [0, 0])):
        ends = np.cumsum(parts)
        wanted = [log_prob(model, ids_of(model, text[e - n : e])) for n, e in zip(parts, ends, strict=True)]
        for num_steps in (2, 4):
            np.testing.assert_allclose(by_windows(model, data, lanes, num_steps), wanted, **SAME)


def test_evaluation_of_windows_begins_anew_each_time() -> None:
    model, text = made("lstm", dtype="float32"), "abcabbcazabcc"
    model.compile("sgd")
    stream = windows(Sequences([np.array(list(text))]), 1, 4)
    model.evaluate(stream.take(2), verbose=0)  # leaves a state behind
    found = model.evaluate(stream, verbose=0, return_dict=True)["nats_per_step"]
    np.testing.assert_allclose(found, -log_prob(model, ids_of(model, text)) / len(text), **CLOSE)
    assert found == model.evaluate(stream, verbose=0, return_dict=True)["nats_per_step"]


def test_sequences_that_begin_at_windows_begin_without_a_past(models: Any) -> None:
    model = models("lstm")
    data = Sequences([np.array(list("abca")), np.array(list("cb"))])
    wanted = sum(log_prob(model, ids_of(model, text)) for text in ("abca", "cb"))
    np.testing.assert_allclose(by_windows(model, data, 1, 2), [wanted], **SAME)


def test_gradients_stop_at_the_beginning_of_a_window(models: Any) -> None:
    model = models("lstm")
    first, second = windows(Sequences([np.array(list("abcabc"))]), 1, 3)

    def gradients(batches: list[Any], learned: int) -> list[np.ndarray]:
        found = []
        for k, batch in enumerate(batches):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model.terms(model.complete(batch)).log_lik)
            if k == learned:
                found = [g.numpy() for g in tape.gradient(loss, model.trainable_weights)]
        return found

    wanted = gradients([first, second], 1)
    ids = np.array([ids_of(model, "abc")])
    state = model.stack(model.embedding(np.array([[model.boundary], *ids.T[:-1]])))[1]
    with tf.GradientTape() as tape:
        hidden, _ = model.stack(model.embedding(tf.constant([[ids[0, 2]], *ids.T[:-1]])), initial_state=state)
        loss = tf.reduce_sum(model._log_probs(hidden, tf.constant(ids)))
    for a, b in zip(wanted, tape.gradient(loss, model.trainable_weights), strict=True):
        np.testing.assert_allclose(a, b, **SAME)


# Training noise ------------------------------------------------------------------------------------------------------


def test_penalties_are_mean_squares_of_outputs_and_of_their_changes() -> None:
    model = made("lstm", activation_penalty=0.3, slowness_penalty=0.7)
    batch = model.complete(model.as_batch(TEXTS))
    terms = model.terms(batch, training=True)
    for row, text in enumerate(TEXTS):
        ids = ids_of(model, text)
        vectors = reference.value(model.embedding.table)[[model.boundary, *ids][: len(ids)]]
        hidden, _ = reference.stack(model.stack, vectors)
        penalty = 0.3 * (hidden**2).mean(-1).sum() + 0.7 * (np.diff(hidden, axis=0) ** 2).mean(-1).sum()
        np.testing.assert_allclose(terms.objective[row], log_prob(model, ids) - penalty, **SAME)
    assert model.terms(batch).objective is None


def test_slowness_is_that_of_outputs_before_they_are_dropped() -> None:
    objectives = {}
    for alpha, beta in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        model = made("lstm", units=[40], dropout=0.5, activation_penalty=alpha, slowness_penalty=beta)
        batch = model.complete(model.as_batch({"x": ["abca"] * 2, "seed": [1, 2]}))
        terms = model.terms(batch, training=True)
        objectives[alpha, beta] = terms.per_sequence(terms.log_lik) if terms.objective is None else terms.objective
    vectors = tf.transpose(tf.gather(model.embedding.table, [[model.boundary, 1, 2, 3]] * 2), [1, 0, 2])
    taken = recurrent.locked_dropout(vectors, 0.5, batch["seed"], recurrent.SALT)
    raw = model.stack(taken)[0].numpy()  # the input dropped, the output not
    kept = raw * recurrent.keep_mask(batch["seed"], 40, 0.5, recurrent.SALT + 8, tf.float64).numpy()
    for wanted, key in (((kept**2).mean(-1), (1.0, 0.0)), ((np.diff(raw, axis=0) ** 2).mean(-1), (0.0, 1.0))):
        np.testing.assert_allclose(objectives[0.0, 0.0] - objectives[key], wanted.sum(0), **SAME)


def test_weight_drop_and_dropped_rows_are_those_of_the_batch_and_of_the_step() -> None:
    model = made("lstm", weight_drop=0.4, embedding_dropout=0.3)
    batch = model.complete(model.as_batch(["abcab"] * 3 + ["ca"]))
    found = []
    for step in (0, 1, 0):
        model.step.assign(step)
        found.append(model.terms(batch, training=True).log_lik.numpy())
        np.testing.assert_allclose(found[-1][:3], np.repeat(found[-1][:1], 3, 0), **SAME)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_array_equal(found[0], found[2])
    alone = model.terms({name: a[3:] for name, a in batch.items()}, training=True).log_lik.numpy()
    np.testing.assert_allclose(alone, found[2][3:], **SAME)
    assert np.abs(found[0] - model.terms(batch).log_lik.numpy()).max() > 1e-3  # and none of it where nothing is trained


# Generation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer() -> LanguageModel:
    """A float32 model that ends its texts."""
    return made("ends", dtype="float32")


def test_generated_rows_depend_on_their_own_prompt_and_seed(writer: LanguageModel) -> None:
    prompts, seeds = ["ab", "c", "", "abcab"], np.array([[1, 2], [3, 4], [5, 6], [1, 2]])
    settings = {
        "max_tokens": np.array([6, 9, 0, 4]), "temperature": np.array([1.0, 0.7, 1.0, 0.0]),
        "top_k": np.array([0, 2, 0, 0]), "top_p": np.array([1.0, 1.0, 0.5, 0.8]),
    }  # fmt: skip
    together = writer.generate(prompts, **settings, seed=seeds).numpy()
    assert (together == writer.generate(prompts, **settings, seed=seeds).numpy()).all()
    for row in range(4):
        alone = writer.generate(prompts[row], **{k: v[row : row + 1] for k, v in settings.items()}, seed=seeds[row : row + 1])
        assert alone.numpy()[0] == together[row]
    assert together[2] == b""
    assert all(len(text) <= most for text, most in zip(together, settings["max_tokens"], strict=True))
    many = writer.generate(["a"] * 30, 8, seed=[7, 8]).numpy()
    assert len(set(many)) > 5  # rows of one seed draw numbers of their own
    assert not any(b"UNK" in text or b"/" in text for text in many)


def test_temperature_zero_and_one_beam_take_the_best_token(writer: LanguageModel) -> None:
    found = writer.generate(["ab", "", "cc"], 5, temperature=0.0).numpy()
    for prompt, text in zip(["ab", "", "cc"], found, strict=True):
        ids = ids_of(writer, prompt)[:-1]
        said = ""
        for _ in range(5):
            scores = all_log_probs(writer, ids)[-1]
            best = 1 + int(scores[1:].argmax())  # the unknown is never written
            if best == writer.end:
                break
            said, ids = said + writer.text.vocabulary[best - 1], [*ids, best]
        assert text.decode() == said


def test_a_wide_beam_finds_the_most_probable_text(writer: LanguageModel) -> None:
    prompt = ids_of(writer, "b")[:-1]
    begun: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    for _ in range(3):
        longer = []
        for ids, total in begun:
            scores = all_log_probs(writer, [*prompt, *ids])[-1]
            scores = scores - scipy.special.logsumexp(scores[1:])  # among the tokens that may be written
            done.append((ids, total + scores[writer.end]))
            longer += [([*ids, k], total + scores[k]) for k in (1, 2, 3)]
        begun = longer
    for penalty in (0.0, 1.0):
        best, _ = max(
            done + begun, key=lambda pair: pair[1] / ((5.0 + min(len(pair[0]) + 1, 3)) / 6.0) ** penalty
        )  # with the end
        found = writer.generate("b", 3, num_beams=30, length_penalty=penalty)
        assert found.numpy()[0].decode() == "".join(writer.text.vocabulary[k - 1] for k in best)


def test_classes_decide_what_is_generated() -> None:
    model = made("conditional", dtype="float32")
    model.class_embedding.table.assign(np.array([[0.0] * 4, [3.0] * 4, [-3.0] * 4]))
    texts = model.generate([""] * 8, 6, classes=["x", "y"] * 4, temperature=0.0).numpy()
    assert len(set(texts[::2])) == len(set(texts[1::2])) == 1
    assert texts[0] != texts[1]
    assert (model.generate([""] * 2, 6, classes="y", temperature=0.0).numpy() == texts[1]).all()
    with pytest.raises(ValueError, match="`classes` must name one of"):
        model.generate([""], 3, classes=["z"])
    with pytest.raises(ValueError, match="`classes` is for a conditional model"):
        made("lstm").generate([""], 3, classes=["x"])


def test_texts_without_a_class_are_learned_from_a_share_of_all() -> None:
    for share, learns in ((1.0, True), (0.0, False)):  # no other text says what a text without a class is
        model = made("conditional", class_dropout=min(share, 0.999), dtype="float32")
        before = model.class_embedding.table.numpy()
        model.compile("sgd")
        model.fit({"x": ["abc", "ca", "b"], "y": ["x", "y", "x"]}, verbose=0)
        assert (model.class_embedding.table.numpy()[0] != before[0]).any() == learns


@pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
def test_generation_has_the_dtype_of_its_scores(dtype: str) -> None:
    model = made("ends", dtype=dtype)
    for settings in ({}, {"top_k": 2, "top_p": 0.9, "temperature": 0.5}, {"num_beams": 2}):
        assert model.generate(["a", ""], 3, **settings).shape == (2,)


def test_a_word_that_goes_on_keeps_its_mark() -> None:
    model = LanguageModel.tiny(unit="subwords", vocabulary=["sail", "##ing", "on"], ends=False)
    one = np.full(model.size, -100.0, np.float32)
    one[1 + model.text.vocabulary.index("##ing")] = 100.0
    model.output_layer.bias.assign(one)
    assert model.generate(["sail"], 2).numpy()[0] == b"##inging"  # `tfseq sample` makes it one word with the prompt


def test_bad_settings_of_generate_name_themselves(writer: LanguageModel) -> None:
    for settings in ({"temperature": -1.0}, {"top_p": 1.5}, {"max_tokens": [1, 2]}, {"top_k": -1}, {"temperature": np.nan}):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
            writer.generate(["a"], **settings)
    with pytest.raises(ValueError, match="`num_beams`"):
        writer.generate(["a"], num_beams=0)


@pytest.mark.parametrize("name", ["lstm", "ends", "conditional"])
def test_served_steps_score_as_log_prob_does(name: str, models: Any) -> None:
    model = models(name)
    ids = [ids_of(model, text) for text in ("abca", "cbza")]
    state = model._serve_start(tf.zeros([2, 2], tf.int32))
    specs = {spec.name: spec for spec in model.endpoints()["step"][1]}
    assert set(state) | {"token_id"} | ({"label"} if model.conditional else set()) == set(specs)
    apart = {"label": tf.constant(["x", "y"])} if model.conditional else {}
    token, total = tf.constant([model.boundary] * 2), np.zeros(2)
    for t in range(len(ids[0])):
        out = model._serve_step(token, **state, **apart)
        scores, state = scipy.special.log_softmax(out["logits"], -1), {k: v for k, v in out.items() if k != "logits"}
        token = tf.constant([row[t] for row in ids])
        total += scores[np.arange(2), token]
    wanted = [log_prob(model, row, label if model.conditional else -1) for label, row in enumerate(ids)]
    np.testing.assert_allclose(total, wanted, **SAME)


def test_clients_that_step_in_turn_share_no_state(models: Any) -> None:
    model = models("gru tied")
    texts = [ids_of(model, text) for text in ("abca", "ccb")]
    states, totals, tokens = [model._serve_start(tf.zeros([1, 2], tf.int32)) for _ in texts], [0.0, 0.0], [model.boundary] * 2
    for t in range(4):
        for client, ids in enumerate(texts):
            if t < len(ids):
                out = model._serve_step(tf.constant([tokens[client]]), **states[client])
                states[client] = {name: a for name, a in out.items() if name != "logits"}
                totals[client] += scipy.special.log_softmax(out["logits"][0])[ids[t]]
                tokens[client] = ids[t]
    np.testing.assert_allclose(totals, [log_prob(model, ids) for ids in texts], **SAME)


# Data, training, evaluation ------------------------------------------------------------------------------------------


def test_vocabularies_come_from_data() -> None:
    one = LanguageModel.from_data(Sequences(["abba"]), units=[3], embedding_dim=2)
    assert (one.text.vocabulary, one.ends, one.end) == (["a", "b"], False, None)
    many = LanguageModel.from_data(Sequences(["the cat sat", "the end"]), units=[3], embedding_dim=2, unit="words", min_count=2)
    assert (many.text.vocabulary, many.ends, many.end) == ([END, "the"], True, 1)
    assert [a.tolist() for a in many.prepare(Sequences(["the cat", ""])).x] == [["the", "cat", END], [END]]
    with pytest.raises(ValueError, match="frames"):
        LanguageModel.from_data(Sequences([np.zeros((2, 3), np.float32)]))
    with pytest.raises(ValueError, match="`classes` must be given with"):
        LanguageModel(vocabulary=["a"], conditional=True)
    with pytest.raises(ValueError, match="`y`"):
        LanguageModel.from_data(Sequences(["a", "b"]), conditional=True)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
def test_ids_are_numbers_and_the_end_comes_after_the_largest() -> None:
    data = Sequences([np.array(row, np.int32) for row in ([3, 12, 1], [12], [])], y=[np.zeros(n, np.int32) for n in (3, 1, 0)])
    one = LanguageModel.from_data(Sequences(data.x[:1]), units=[3], embedding_dim=2)
    assert (one.text.vocabulary, one.ends, one.end) == ([str(k) for k in range(1, 13)], False, None)
    model = LanguageModel.from_data(data, units=[3], embedding_dim=2, unit="characters")
    assert (model.text.vocabulary, model.ends, model.end, model.text.unit) == ([*one.text.vocabulary, END], True, 13, "words")
    assert [row.tolist() for row in model.prepare(data).x] == [[3, 12, 1, 13], [12, 13], [13]]
    assert [row.tolist() for row in model.prepare(model.prepare(data)).x] == [[3, 12, 1, 13], [12, 13], [13]]
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    wanted = [log_prob(model, ids) for ids in ([3, 12, 1, 13], [12, 13], [13])]
    for given in (data, [[3, 12, 1], [12], []], model.prepare(data).padded(), ["3 12 1", "12", ""]):
        np.testing.assert_allclose(model.log_prob(given), wanted, **CLOSE)
    found = tfseq.evaluate(model, data, batch_size=2, baselines_from=data)
    np.testing.assert_allclose(found["nats_per_token"], -sum(wanted) / 7, **CLOSE)
    assert found["num_steps"] == 7 and "nats_per_character" not in found
    said: list[int] = []
    while len(said) < 4 and (best := 1 + int(all_log_probs(model, [3, 12, *said])[-1, 1:].argmax())) != model.end:
        said.append(best)
    assert len(said) > 1
    assert model.generate(["3 12"], 4, temperature=0.0).numpy()[0].decode() == " ".join(map(str, said))
    model.compile("sgd")
    fitted = model.fit(data, epochs=1, verbose=0).history["nats_per_step"]
    assert fitted == [pytest.approx(-sum(wanted) / 7, abs=1.0)]  # that of what was dropped
    run = tfseq.train(model, data, data, epochs=1, batch_size=2, progress=False)  # by windows
    assert np.isfinite(run.history[0]["val_nats_per_step"])


def test_a_class_is_that_of_a_whole_text_and_the_configuration_says_so() -> None:
    model = LanguageModel.tiny(conditional=True, classes=["x", "y"], window=7)
    assert model.window is model.get_config()["window"] is LanguageModel.from_config(model.get_config()).window is None
    assert LanguageModel.tiny(window=7).get_config()["window"] == 7


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
@pytest.mark.parametrize("unit", ["words", "subwords"])
def test_nats_per_character_are_over_those_of_the_texts_as_they_are_given(unit: str) -> None:
    texts = ["the  cat sat.", "", "日本 the dog"]
    model = LanguageModel.from_data(Sequences(texts), units=[3], embedding_dim=2, unit=unit, min_count=1)
    total = float(tf.reduce_sum(model.log_prob(texts)))
    found = tfseq.evaluate(model, Sequences(texts), batch_size=2)
    np.testing.assert_allclose(found["nats_per_character"], -total / (13 + 10 + 3), **CLOSE)  # and three ends
    assert "bits_per_character" not in found
    cut = tfseq.evaluate(model, model.prepare(Sequences(texts)))
    np.testing.assert_allclose(cut["nats_per_character"], -total / (12 + 10 + 3), **CLOSE)  # joined with one blank


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
def test_a_model_learns_and_writes_japanese() -> None:
    texts = ["東京は日本の首都です。", "京都は古い都です。"]
    keras.utils.set_random_seed(0)
    model = LanguageModel.from_data(texts, units=[24], embedding_dim=8, dropout=0.0, cell="gru")
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(texts, epochs=25, verbose=0)
    best = model.generate(["東京は", "京都"], 12, temperature=0.0).numpy()
    assert [text.decode() for text in best] == ["日本の首都です。", "は古い都です。"]
    drawn = model.generate([""] * 20, 12, temperature=3.0, seed=[1, 2]).numpy()
    assert len(set(drawn)) > 5
    assert set("".join(text.decode() for text in drawn)) <= set("".join(texts))


def test_evaluation_pools_over_tokens_whatever_the_batches(writer: LanguageModel) -> None:
    data = Sequences([*TEXTS, "bbbbccca"])
    total = sum(log_prob(writer, ids_of(writer, text)) for text in data.x)
    num = sum(len(text) + 1 for text in data.x)
    found = [tfseq.evaluate(writer, data, batch_size=size, baselines_from=data) for size in (1, 5)]
    for figures in found:
        np.testing.assert_allclose(figures["nats_per_token"], -total / num, **CLOSE)
        np.testing.assert_allclose(figures["perplexity"], np.exp(-total / num), **CLOSE)
        np.testing.assert_allclose(figures["bits_per_character"], -total / num / np.log(2.0), **CLOSE)
        assert figures["nats_per_character"] == pytest.approx(figures["nats_per_token"], rel=1e-9)
        assert figures["num_steps"] == num
    keys = {"nats_per_token", "standard_error", "perplexity", "bits_per_character", "nats_per_character"}
    assert set(found[0]) == keys | {"num_sequences", "num_steps", "baselines"}
    counts = np.ones(writer.size)  # each token once before anything is seen
    for text in data.x:
        np.add.at(counts, ids_of(writer, text), 1)
    wanted = -sum(np.log(counts / counts.sum())[ids_of(writer, text)].sum() for text in data.x) / num
    np.testing.assert_allclose(found[0]["baselines"]["unigram"], wanted, rtol=1e-9)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
@pytest.mark.parametrize("window", [3, None])
def test_a_resumed_run_is_the_uninterrupted_one(window: int | None, same_when_resumed: Callable[..., Any]) -> None:
    data, held_out = Sequences(["abcab", "cab", "bbcaab"]), Sequences(["abc", "ca"])
    settings = {"batch_size": 2, "schedule": "constant", "learning_rate": 0.02, "progress": False, "seed": 3}

    def run(epochs: int, out: Path, **more: Any) -> Any:
        keras.utils.set_random_seed(0)
        model = LanguageModel.from_data(
            data, embedding_dim=3, units=[4], dropout=0.2, weight_drop=0.2, slowness_penalty=0.1, window=window
        )
        return tfseq.train(model, data, held_out, out=out, epochs=epochs, **settings, **more)

    whole = same_when_resumed(run)
    assert all(np.isfinite(list(row.values())).all() for row in whole.history)


def test_windows_train_in_a_graph_with_more_lanes_than_steps() -> None:
    model = made("lstm", dtype="float32")
    data = Sequences(["abc"])
    assert num_windows(model.prepare(data), 5, 2) == 1
    run = tfseq.train(model, data, Sequences(["ab"]), epochs=2, batch_size=5, progress=False, learning_rate=0.05)
    assert run.history[1]["nats_per_step"] < run.history[0]["nats_per_step"]


def test_windows_refuse_what_is_for_whole_texts() -> None:
    with pytest.raises(ValueError, match="reads windows"):
        tfseq.train(made("lstm"), Sequences(["abc"]), batch_steps=10, progress=False)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_lanes_of_a_known_shape_are_carried_and_other_lanes_start_anew(cell: str, rng: np.random.Generator) -> None:
    """A graph that knows all shapes may not conclude from them what a variable holds; what never began starts as if fresh."""
    tf.config.run_functions_eagerly(False)
    model = LanguageModel.tiny(cell=cell, units=[4, 3])
    model.compile("sgd")
    x = rng.integers(0, 3, (2, 5)).astype(np.int32)
    batch = {"x": x, "mask": np.ones((2, 5), bool), "fresh": np.zeros((2, 5), bool)}

    @tf.function
    def score(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(model.terms(model.complete(batch)).log_lik, 1)

    tensors = {name: tf.constant(value) for name, value in batch.items()}
    first = score(tensors)
    np.testing.assert_allclose(first, model.log_prob(x), rtol=1e-5)
    both = model.log_prob(np.concatenate([x, x], 1))
    np.testing.assert_allclose(first + score(tensors), both, rtol=1e-5)  # the second window goes on where the first ended
    fewer = {name: value[:1] for name, value in tensors.items()}
    np.testing.assert_allclose(score(fewer), model.log_prob(x[:1]), rtol=1e-5)
    model.train_on_batch(tensors)
