"""The tagger against NumPy and enumeration: its likelihoods, what it reads, the entities and transcriptions it finds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import seqeval.metrics
import tensorflow as tf

import tfseq
from tests import reference
from tfseq import schemes
from tfseq.data.batching import Sequences, stream
from tfseq.models.tagger import SequenceTagger, edit_distance

pytestmark = [
    pytest.mark.usefixtures("eager"),
    pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning"),  # of tf.data
]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 against float64
SAME = {"rtol": 1e-9, "atol": 1e-10}  # float64 rounding
BIO = ["O", "B-x", "I-x", "B-y", "I-y"]
WORDS = ["on", "off", "Foo", "no"]
SENTENCES = [["on", "no", "off", "Foo"], ["Foo"], [], ["foo", "on", "zzz"]]  # with two words that are not known
GOLD = [["B-x", "I-x", "O", "B-y"], ["O"], [], ["B-y", "B-y", "I-y"]]

VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"characters": None},
    "crf": {"head": "crf", "characters": "lstm", "cell": "gru", "backward_units": [2]},
    "free": {"head": "crf", "constrained": False, "characters": None, "bidirectional": False},
    "deep": {
        "head": "crf", "characters": "cnn", "units": [3, 4], "residual": True, "layer_norm": True, "embedding_dim": 2,
        "character_units": 4,
    },
    "frames": {"feature_dim": 4, "head": "crf", "units": [2, 2], "residual": True, "layer_norm": True},
    "plain": {"characters": None, "scheme": "none", "tags": ["A", "B", "C"]},
}  # fmt: skip


@functools.cache
def made(name: str, dtype: str = "float64") -> SequenceTagger:
    """A tagger with weights that are not those it begins with."""
    settings = {
        "vocabulary": WORDS, "alphabet": list("fno"), "tags": BIO, "embedding_dim": 4, "character_dim": 3, "character_units": 4,
        "units": [3], "dropout": 0.0, "token_dropout": 0.0, "dtype": dtype,
    }  # fmt: skip
    model = SequenceTagger(**{**settings, **VARIANTS[name]})
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.9))
    model.compile("sgd")
    return model


def features(model: SequenceTagger, words: list[str]) -> np.ndarray:
    """What the stack reads of a sentence `[T, F]`; the characters' layer has tests of its own."""
    ids = [1 + WORDS.index(word) if word in WORDS else 0 for word in words]
    vectors = reference.value(model.embedding.table)[ids]
    if model.characters is None:
        return vectors
    return np.concatenate([vectors, model.characters(model.characters.split(tf.constant(words, tf.string))).numpy()], -1)


def scores(model: SequenceTagger, words: list[str]) -> np.ndarray:
    hidden, _ = reference.stack(model.stack, features(model, words))
    return reference.dense(model.output_layer, hidden)


def paths(model: SequenceTagger, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All tag sequences `[P, T]` and log p(. | x) `[P]`."""
    of_step, num = scores(model, words), len(model.tags)
    found = np.array(list(itertools.product(range(num), repeat=len(words))), int).reshape(num ** len(words), len(words))
    total = of_step[np.arange(len(words)), found].sum(-1)
    if model.crf is not None and len(words):
        start, transition, end = map(reference.value, (model.crf.start, model.crf.transition, model.crf.end))
        total = total + start[found[:, 0]] + end[found[:, -1]] + transition[found[:, :-1], found[:, 1:]].sum(-1)
        if model.constrained:
            legal = [not schemes.violations([model.tags[k] for k in path], "bio") for path in found]
            total = np.where(legal, total, -np.inf)
    return found, total - scipy.special.logsumexp(total)


def log_probs(model: SequenceTagger, data: Any) -> np.ndarray:
    terms = model.terms(model.complete(model.as_batch(data)))
    return terms.per_sequence(terms.log_lik).numpy()


# Likelihoods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "crf", "free", "deep"])
def test_the_likelihood_and_the_marginals_are_those_of_all_tag_sequences(name: str) -> None:
    model = made(name)
    found = log_probs(model, {"x": SENTENCES, "y": GOLD})
    partial = log_probs(model, {"x": SENTENCES, "y": [[tag if t % 2 else "" for t, tag in enumerate(row)] for row in GOLD]})
    marginals = model.marginals(SENTENCES).numpy()
    best, probs = (a.numpy() for a in model.predict_tags(SENTENCES))
    np.testing.assert_array_equal(model.best_tags(SENTENCES), best)
    for row, (words, tags) in enumerate(zip(SENTENCES, GOLD, strict=True)):
        sequences, log_prob = paths(model, words)
        gold = np.array([BIO.index(tag) for tag in tags], int)
        right = sequences == gold
        np.testing.assert_allclose(found[row], scipy.special.logsumexp(log_prob[right.all(-1)]), **SAME)
        agrees = right[:, 1::2].all(-1)
        np.testing.assert_allclose(partial[row], scipy.special.logsumexp(log_prob[agrees]), **SAME)
        wanted = [[np.exp(log_prob)[sequences[:, t] == k].sum() for k in range(5)] for t in range(len(words))]
        np.testing.assert_allclose(marginals[row, : len(words)], np.reshape(wanted, (len(words), 5)), **SAME)
        assert not marginals[row, len(words) :].any()
        assert best[row].tolist() == [*sequences[log_prob.argmax()], *[-1] * (4 - len(words))]
        np.testing.assert_allclose(
            probs[row, : len(words)], np.array([w[k] for w, k in zip(wanted, best[row], strict=False)]), **SAME
        )
        assert not probs[row, len(words) :].any()
    np.testing.assert_allclose(model.predict(SENTENCES, verbose=0), marginals, **SAME)


@pytest.mark.parametrize("name", ["crf", "deep"])
def test_constraints_hold_in_the_sum_and_in_what_is_found(name: str) -> None:
    model = made(name)
    ranking = model.n_best(SENTENCES[:2], 6)
    for row, words in enumerate(SENTENCES[:2]):
        sequences, log_prob = paths(model, words)
        order = np.argsort(-log_prob)[:6]
        for rank, place in enumerate(order):
            if log_prob[place] == -np.inf:
                assert ranking.log_prob[row, rank] == -np.inf
                continue
            assert ranking.tags[row, rank].numpy().tolist()[: len(words)] == sequences[place].tolist()
            np.testing.assert_allclose(ranking.log_prob[row, rank], log_prob[place], **SAME)
    for words in SENTENCES:
        assert not any(
            schemes.violations(row, "bio") for row in [[BIO[k] for k in model.predict_tags([words]).tags[0] if k >= 0]]
        )
    sequences, log_prob = paths(model, SENTENCES[0])
    few = np.flatnonzero(log_prob > -np.inf)[::9]
    found = log_probs(model, {"x": [SENTENCES[0]] * len(few), "y": [[BIO[k] for k in sequences[place]] for place in few]})
    np.testing.assert_allclose(found, log_prob[few], **SAME)


def test_entities_have_the_probability_of_exactly_them() -> None:
    for name in ("crf", "softmax"):
        model = made(name)
        found = model.entities(SENTENCES)
        assert found[2] == []
        assert sum(map(len, found)) > 0
        for row, words in enumerate(SENTENCES):
            sequences, log_prob = paths(model, words)
            best = [BIO[k] for k in sequences[log_prob.argmax()]]
            assert [(e.kind, e.start, e.stop) for e in found[row]] == schemes.entities(best, "bio")
            for entity in found[row]:
                if name == "crf":
                    wanted = sum(
                        np.exp(q)
                        for path, q in zip(sequences, log_prob, strict=True)
                        if entity[:3] in schemes.entities([BIO[k] for k in path], "bio")
                    )
                else:
                    wanted = np.prod([scipy.special.softmax(scores(model, words)[t]).max() for t in range(*entity[1:3])])
                np.testing.assert_allclose(entity.prob, wanted, rtol=1e-6)  # a Python float of float64


def test_what_the_scheme_forbids_has_no_probability_and_no_gradient() -> None:
    model = made("crf")
    legal, illegal = {"x": [["on", "no"]], "y": [["B-x", "I-x"]]}, {"x": [["on", "no"]], "y": [["O", "I-x"]]}
    assert log_probs(model, illegal)[0] == -np.inf
    assert np.isfinite(log_probs(made("free"), illegal)).all()
    found = []
    for data in (legal, {"x": legal["x"] + illegal["x"], "y": legal["y"] + illegal["y"]}):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.terms(model.complete(model.as_batch(data)), training=True).log_lik)
        found.append([tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_weights)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, **SAME)  # finite, and as if the illegal row were not there


# What it reads -------------------------------------------------------------------------------------------------------


def test_texts_tokens_ids_and_bytes_have_the_same_tags() -> None:
    for name in ("softmax", "crf"):
        model = made(name)
        words = [["on", "no", "off", "Foo"], ["Foo"], ["no", "on"]]
        wanted = model.marginals(words).numpy()
        texts = [" ".join(row) for row in words]
        ids = [[1 + WORDS.index(word) for word in row] for row in words]
        for same in (texts, np.array(texts), [t.encode() for t in texts], tf.constant(texts), ids, Sequences(texts)):
            np.testing.assert_allclose(model.marginals(same), wanted, **SAME)
        padded, mask = np.zeros((3, 6), np.int32), np.arange(6) < np.array([[4], [1], [2]])
        padded[mask] = np.concatenate(ids)
        padded[~mask] = 2
        np.testing.assert_allclose(model.marginals(padded, mask)[:, :4], wanted, **SAME)
        served = model._serve_text(tf.constant(texts))
        tags, score = model.predict_tags(words)
        names = np.array([*BIO, ""])[tags.numpy()]
        assert (served["tags"].numpy().astype(str) == names).all()
        np.testing.assert_allclose(served["score"], score, **SAME)
        assert served["length"].numpy().tolist() == [4, 1, 2]
        assert (model.decode(texts)["tag"] == names).all()
        of_ids = model._serve_ids(tf.constant(padded), tf.constant([4, 1, 2]))
        np.testing.assert_array_equal(of_ids["tag_ids"][:, :4], tags)
        assert not of_ids["score"][:, 4:].numpy().any()


def test_frames_that_are_the_embeddings_have_the_same_tags() -> None:
    model = made("softmax")
    twin = SequenceTagger(tags=BIO, feature_dim=4, units=[3], dtype="float64")
    twin.stack.set_weights(model.stack.get_weights())
    twin.output_layer.set_weights(model.output_layer.get_weights())
    frames = [features(model, words) for words in SENTENCES]
    np.testing.assert_allclose(twin.marginals([f.astype(np.float32) for f in frames]), model.marginals(SENTENCES), **CLOSE)


def test_unknown_words_differ_by_their_characters_alone() -> None:
    plain, spelling = made("softmax"), made("crf")
    for model, same in ((plain, True), (spelling, False)):
        found = model.marginals([["on", "foo"], ["on", "ffff"], ["on", "foo"]]).numpy()
        np.testing.assert_allclose(found[0], found[2], **SAME)
        assert np.allclose(found[0], found[1], **SAME) == same
    np.testing.assert_allclose(plain.marginals([["on", "foo"]]), plain.marginals(np.array([[1, 0]])), **SAME)
    served = plain._serve_ids(tf.constant([[1, 99], [1, -5]]), tf.constant([2, 2]))  # ids that do not exist are unknown
    np.testing.assert_allclose(served["score"], plain.predict_tags([["on", "foo"]] * 2).score, **SAME)
    with pytest.raises(ValueError, match="Is the vocabulary another one"):
        plain.marginals(np.array([[1, 99]]))


@pytest.mark.parametrize("name", ["softmax", "crf"])
def test_bytes_that_are_no_utf8_and_empty_texts(name: str) -> None:
    model = made(name)
    found = model.marginals([b"on \xff\xfe no", b"", "on \ufffd\ufffd no".encode(), b"  "]).numpy()
    np.testing.assert_allclose(found[0], found[2], **SAME)
    assert np.isfinite(found).all()
    assert not found[[1, 3]].any()
    np.testing.assert_allclose(model.marginals([b"on \xff\xfe no"]).numpy()[0], found[0], **SAME)
    for nothing in (["", ""], [[], []], ""):
        assert not model.marginals(nothing).numpy().any()
    np.testing.assert_allclose(model.marginals(["on", ""]).numpy()[:1], model.marginals(["on"]), **SAME)
    ids = model.marginals([[1, 2], []]).numpy()
    np.testing.assert_allclose(ids[0], model.marginals([["on", "off"]]).numpy()[0], **SAME)


def test_garbage_in_padded_frames_changes_neither_likelihood_nor_gradient(rng: np.random.Generator) -> None:
    model = made("frames", "float32")
    mask = np.arange(4) < np.array([[4], [2], [0]])
    x, y = rng.normal(size=(3, 4, 4)).astype(np.float32), np.zeros((3, 4), np.int32)
    found = []
    for garbage in (0.0, np.nan, np.inf, 1e30):
        batch = model.complete(model.as_batch({"x": np.where(mask[..., None], x, np.float32(garbage)), "y": y, "mask": mask}))
        with tf.GradientTape() as tape:
            log_lik = model.terms(batch, training=True).log_lik
            loss = tf.reduce_sum(log_lik)
        found.append([log_lik, *map(tf.convert_to_tensor, tape.gradient(loss, model.trainable_weights))])
    for clean, *dirty in zip(*found, strict=True):
        assert np.isfinite(clean).all()
        for a in dirty:
            np.testing.assert_array_equal(a, clean)
    alone = model.terms(model.complete(model.as_batch({"x": x[1:2, :2], "y": y[1:2, :2]}))).log_lik
    np.testing.assert_allclose(alone[0], found[0][0][1], **CLOSE)


# Labels --------------------------------------------------------------------------------------------------------------


def test_labels_that_were_not_seen_are_named() -> None:
    model = made("softmax", "float32")
    data = Sequences([np.array(row) for row in SENTENCES[:2]], y=[np.array(["O", "O", "B-z", "O"]), np.array(["O"])])
    for given in (data, {"x": SENTENCES[:2], "y": [["O", "O", "B-z", "O"], ["O"]]}, data.padded()):
        for run in (model.as_batch, lambda d: model.fit(d, verbose=0), lambda d: model.evaluate(d, verbose=0)):
            with pytest.raises(ValueError, match=r"seen in training.*received 'B-z' at index \(0, 2\)"):
                run(given)
    for run in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="`y` must hold labels that were seen in training"):
            run(stream(data, 2), verbose=0)
    with pytest.raises(ValueError, match="`y` must be from 0 to 4"):
        model.as_batch({"x": np.array([[1, 2]]), "y": np.array([[0, 5]])})
    padding = {"x": np.array([[1, 2]]), "y": np.array([[0, 99]]), "mask": np.array([[True, False]])}
    np.testing.assert_allclose(log_probs(model, padding), log_probs(model, {"x": np.array([[1]]), "y": np.array([[0]])}), **CLOSE)


def test_a_label_that_was_not_seen_is_named_with_its_sequence(listener: SequenceTagger, rng: np.random.Generator) -> None:
    model = made("softmax", "float32")
    train = Sequences([np.array(["on"])], y=[np.array(["O"])])
    names = ["dev.conll, line 1", "dev.conll, line 6", "dev.conll, line 8"]
    wrong = Sequences(
        [np.array(row) for row in (["on", "no", "off", "on"], ["Foo"], ["on", "no", "off"])],
        y=[np.array(["O"] * 4), np.array(["O"]), np.array(["O", "O", "B-z"])],
        names=names,
    )
    runs = (model.as_batch, model.evaluate, lambda data: tfseq.train(model, train, data, epochs=1, batch_size=2, progress=False))
    for run in runs:  # batches of the last are sorted by length
        with pytest.raises(ValueError, match="received 'B-z' at index 2 of 'dev.conll, line 8', for 'off'"):
            run(wrong)
    numbers = Sequences([np.array([1, 2]), np.array([1])], y=[np.array([0, 0]), np.array([7])], names=names[:2])
    with pytest.raises(ValueError, match="`y` must be from 0 to 4, or -1 .*received 7 at index 0 of 'dev.conll, line 6'"):
        model.as_batch(numbers)
    films = Sequences(["fine", "dull"], y=["pos", "so"], names=["films.tsv, line 2", "films.tsv, line 3"])
    with pytest.raises(ValueError, match="received 'so' of 'films.tsv, line 3'"):
        tfseq.SequenceClassifier.tiny(classes=["neg", "pos"]).as_batch(films)
    frames = Sequences([rng.normal(size=(4, 2)).astype(np.float32)], target=["az"], names=["7_ann_3"])
    with pytest.raises(ValueError, match="received 'z' at index 1 of '7_ann_3'"):
        listener.as_batch(frames)


def test_a_symbol_of_a_target_is_always_known(listener: SequenceTagger) -> None:
    x = np.zeros((1, 4, 2), np.float32)
    for target in (np.array([[0, -1]]), [["a", ""]]):
        with pytest.raises(ValueError, match=r"`target` must be from 0 to 2 .*labels alone\); received -1 at index \(0, 1\)"):
            listener.as_batch({"x": x, "target": target})
    batch = {"x": x, "mask": np.ones((1, 4), bool), "target": np.array([[0, -1]]), "target_mask": np.array([[True, True]])}
    stream_of = tf.data.Dataset.from_tensors
    with pytest.raises(ValueError, match="`target` must hold symbols that were seen in training"):
        listener.evaluate(stream_of({**batch, "row": np.zeros(1, np.int32)}), verbose=0)
    listener.as_batch({**batch, "target_mask": np.array([[True, False]])})  # padding
    with pytest.raises(ValueError, match="`target` must be from 0"):
        tfseq.Seq2Seq.tiny().as_batch({"x": [[1]], "target": np.array([[-1, 2]])})


def test_bad_arguments_name_themselves() -> None:
    for wrong, words in (
        ({"tags": ["O"]}, "`tags` must name at least 2"),
        ({"tags": ["O", "O"]}, "`tags` must be different"),
        ({"tags": "OB"}, "`tags` must be different"),
        ({"head": "crff"}, "`head`"),
        ({"scheme": "bioul"}, "`scheme`"),
        ({"unit": "subwords"}, "`unit` must be 'words' or 'characters', to which a tagger's labels belong"),
    ):
        with pytest.raises(ValueError, match=words):
            SequenceTagger.tiny(**wrong)
    model = made("plain")
    for call, words in ((model.entities, "mark no entities"), (model.n_best, "head='crf'"), (model.transcribe, "head='ctc'")):
        with pytest.raises(ValueError, match=words):
            call(["on"])
    with pytest.raises(ValueError, match="`dataset` must have `y`"):
        SequenceTagger.from_data(Sequences([np.array(["on"])]))
    with pytest.raises(ValueError, match="made for real-valued data"):
        made("frames").marginals(["on"])


def test_vocabulary_alphabet_and_tags_come_from_data() -> None:
    data = Sequences([np.array(["on", "On", "on"]), np.array(["off"])], y=[np.array(["B-x", "I-x", ""]), np.array(["O"])])
    model = SequenceTagger.from_data(data, lowercase=True, units=[2], embedding_dim=2, min_count=2, character_units=2)
    assert (model.text.vocabulary, model.tags, model.scheme) == (["on"], ("B-x", "I-x", "O"), "bio")
    assert model.characters.size == 2 + len(set("onOnoff"))
    numbers = SequenceTagger.from_data({"x": [[1, 2], [3]], "y": [[0, 2], [-1]]}, units=[2], embedding_dim=2, characters=None)
    assert (numbers.tags, numbers.text.size, numbers.scheme) == (("0", "1", "2"), 4, None)
    ids = SequenceTagger.from_data({"x": [[1, 2], [3]], "y": [[0, 2], [-1]]}, units=[2], embedding_dim=2)
    assert ids.characters is None and ids.marginals([[1, 2]]).shape == (1, 2, 3)  # ids have no characters
    pieces = Sequences(["on off", "on"])
    with pytest.raises(ValueError, match="`min_count` must be left out with unit=.subwords.*received 3"):
        tfseq.LanguageModel.from_data(pieces, unit="subwords", min_count=3)
    assert tfseq.LanguageModel.text_arguments(pieces, {"unit": "subwords", "min_count": 1})["vocabulary"]
    for settings in ({"unit": "subwords", "target_unit": "words", "min_count": 3}, {"unit": "subwords"}):
        assert tfseq.Seq2Seq.text_arguments(pieces, settings)["vocabulary"]  # of the target, and the default


def test_iob1_is_read_off_the_sentences() -> None:
    words = [np.array(["on", "off", "no"]), np.array(["on", "off"])]
    iob1 = Sequences(words, y=[np.array(["I-x", "B-x", "O"]), np.array(["O", "I-x"])])
    settings = {"units": [2], "embedding_dim": 2, "characters": None, "head": "crf"}
    model = SequenceTagger.from_data(iob1, **settings)
    assert (model.scheme, SequenceTagger.from_config(model.get_config()).scheme) == ("iob1", "iob1")
    model.check_training(model.as_batch(iob1))
    given = SequenceTagger.from_data(iob1, **settings, scheme="bio")
    with pytest.raises(ValueError, match="must be legal in the scheme 'bio'.*IOB1.*set scheme=.iob1.*Repair the tags"):
        given.check_training(given.as_batch(iob1))
    bio = Sequences(words, y=[np.array(["B-x", "I-x", ""]), np.array(["", "I-x"])])  # what follows an unknown tag may be legal
    assert SequenceTagger.from_data(bio, **settings).scheme == "bio"


def test_vectors_take_the_place_of_the_rows_that_were_found() -> None:
    model = SequenceTagger.tiny(vocabulary=["on", "off", "no"], characters=None)
    before = reference.value(model.embedding.table)
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert model.vectors_from(matrix, np.array([True, False, True])) is model
    after = reference.value(model.embedding.table)
    np.testing.assert_array_equal(after, [before[0], matrix[0], before[2], matrix[2]])
    for shape in ((3, 5), (4, 4)):
        with pytest.raises(ValueError, match="`matrix` must have a row for each of the 3 tokens .*`embedding_dim` = 4 columns"):
            model.vectors_from(np.zeros(shape, np.float32), np.ones(shape[0], bool))


# Entities and accuracy in `fit` --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "free", "crf"])
def test_entity_f1_of_all_batches_is_seqeval_s(name: str, rng: np.random.Generator) -> None:
    model = made(name, "float32")
    lengths = rng.integers(1, 6, 14)
    x = [rng.choice([*WORDS, "new"], n) for n in lengths]
    y = []
    for words in x:  # what the model says, with a fifth of it changed, and mended
        tags = [BIO[k] for k in model.predict_tags([list(words)]).tags.numpy()[0]]
        y.append(np.array(schemes.repair([str(rng.choice(BIO)) if rng.random() < 0.2 else tag for tag in tags], "bio")))
    data = Sequences(x, y=y)
    found = model.evaluate(stream(data, 4), verbose=0, return_dict=True)
    said = [[BIO[k] for k in row if k >= 0] for row in model.predict_tags(data).tags.numpy()]
    gold = [row.tolist() for row in y]
    assert 0.2 < found["entity_f1"] < 1.0
    np.testing.assert_allclose(found["entity_f1"], seqeval.metrics.f1_score(gold, said), rtol=1e-6)
    right = np.concatenate([np.array(a) == np.array(b) for a, b in zip(gold, said, strict=True)])
    np.testing.assert_allclose(found["accuracy"], right.mean(), rtol=1e-6)
    nats = -log_probs(model, data).sum() / lengths.sum()
    np.testing.assert_allclose(found["nats_per_step"], nats, **CLOSE)

    figures = tfseq.evaluate(model, data, batch_size=5)
    keys = {"nats_per_token", "accuracy", "entity_f1", "standard_error", "calibration_error", "num_sequences", "num_steps"}
    assert set(figures) == keys
    np.testing.assert_allclose([figures["nats_per_token"], figures["entity_f1"]], [nats, found["entity_f1"]], **CLOSE)
    confidence = np.concatenate([row[row > 0] for row in model.predict_tags(data).score.numpy()])
    wanted = 0.0
    for k in range(15):  # bins of Guo et al. 2017
        inside = (confidence >= k / 15) & ((confidence < (k + 1) / 15) | (k == 14))
        wanted += abs(confidence[inside].sum() - right[inside].sum()) / len(right)
    np.testing.assert_allclose(figures["calibration_error"], wanted, **CLOSE)


def test_an_unknown_label_is_outside_all_entities_and_counts_nowhere() -> None:
    model = made("softmax", "float32")
    tags = [BIO[k] for k in model.predict_tags([SENTENCES[0]]).tags.numpy()[0]]
    for hidden in range(4):
        y = [tag if t != hidden else "" for t, tag in enumerate(tags)]
        found = model.evaluate({"x": [SENTENCES[0]], "y": [y]}, verbose=0, return_dict=True)
        assert found["accuracy"] == 1.0
        assert found["entity_f1"] in (0.0, 1.0)  # the model's own tags, cut at the same place
        terms = model.terms(model.complete(model.as_batch({"x": [SENTENCES[0]], "y": [y]})))
        assert int(tf.math.count_nonzero(terms.mask)) == 3
    assert np.isfinite(list(model.evaluate({"x": [SENTENCES[0]]}, verbose=0, return_dict=True).values())).all()


# CTC -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listener() -> SequenceTagger:
    """A tagger of frames with a CTC head over three symbols."""
    model = SequenceTagger(tags=["a", "b", "c"], feature_dim=2, head="ctc", units=[3], dropout=0.0)
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape, scale=1.5))
    model.compile("sgd")
    return model


def collapsed(path: Any, blank: int = 3) -> str:
    return "".join("abc"[k] for k, _ in itertools.groupby(path) if k != blank)


def test_a_transcription_has_the_probability_of_all_its_paths(listener: SequenceTagger, rng: np.random.Generator) -> None:
    frames, targets = [rng.normal(size=(n, 2)).astype(np.float32) for n in (5, 3, 1, 4)], ["ab", "aa", "", "c"]
    found = log_probs(listener, {"x": frames, "target": targets})
    texts = listener.transcribe(frames)
    decoded = listener.decode({"x": frames})
    for row, (x, target) in enumerate(zip(frames, targets, strict=True)):
        hidden, _ = reference.stack(listener.stack, x.astype(float))
        log_p = scipy.special.log_softmax(reference.dense(listener.output_layer, hidden), -1)
        total = [
            sum(log_p[t, k] for t, k in enumerate(path))
            for path in itertools.product(range(4), repeat=len(x))
            if collapsed(path) == target
        ]
        np.testing.assert_allclose(found[row], scipy.special.logsumexp(total), **CLOSE)
        assert texts[row] == decoded["text"][row] == collapsed(log_p.argmax(-1))
        np.testing.assert_allclose(decoded["log_prob"][row], log_p.max(-1).sum(), **CLOSE)


def test_the_error_rate_is_edits_over_symbols(listener: SequenceTagger, rng: np.random.Generator) -> None:
    frames = [rng.normal(size=(n, 2)).astype(np.float32) for n in (6, 5, 7, 4, 0)]
    targets = ["ab", "c", "abca", "", "ab"]
    data = Sequences(frames, target=targets)

    def edits(a: str, b: str) -> int:
        """Levenshtein's recursion."""
        if not a or not b:
            return len(a) + len(b)
        return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))

    said = listener.transcribe(frames)
    wanted = sum(edits(a, b) for a, b in zip(said[:4], targets[:4], strict=True)) / 7  # the row without steps says nothing
    for size in (1, 3, 5):
        found = listener.evaluate(stream(listener.prepare(data), size), verbose=0, return_dict=True)
        np.testing.assert_allclose(found["error_rate"], wanted, rtol=1e-6)
        assert np.isfinite(found["nats_per_step"])
    figures = tfseq.evaluate(listener, data, batch_size=2)
    assert set(figures) == {"nats_per_token", "error_rate", "num_sequences", "num_steps"}
    np.testing.assert_allclose([figures["error_rate"], figures["nats_per_token"]], [wanted, found["nats_per_step"]], **CLOSE)


def test_edit_distances(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 3, (40, 5)), rng.integers(0, 3, (40, 4))
    lengths = rng.integers(0, 6, 40), rng.integers(0, 5, 40)
    masks = np.arange(5) < lengths[0][:, None], np.arange(4) < lengths[1][:, None]
    found = edit_distance(tf.constant(a), tf.constant(masks[0]), tf.constant(b), tf.constant(masks[1]))
    for row in range(40):
        x, y = a[row][masks[0][row]], b[row][masks[1][row]]
        table = np.add.outer(np.arange(len(x) + 1), np.arange(len(y) + 1))
        for i, j in itertools.product(range(1, len(x) + 1), range(1, len(y) + 1)):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x[i - 1] != y[j - 1]))
        assert found[row] == table[-1, -1]


def test_a_transcription_that_is_too_long_does_not_destroy_the_weights(listener: SequenceTagger) -> None:
    model = SequenceTagger.from_config(listener.get_config())
    model.set_weights(listener.get_weights())
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=1.0))
    data = {"x": [np.ones((2, 2), np.float32), np.ones((4, 2), np.float32)], "target": ["aa", "ab"]}
    padded = model.prepare(Sequences(data["x"], target=data["target"]))
    with pytest.raises(ValueError, match=r"not finite in training step 0, on the sequences \(`row`\) 0, 1"):
        model.fit(stream(padded, 2), epochs=2, verbose=0)  # a stream, which nobody looks at before
    assert all(np.isfinite(w).all() for w in model.get_weights())
    with pytest.raises(ValueError, match="`target` must hold labels that were seen in training; received 'z'"):
        model.as_batch({"x": data["x"], "target": ["a", "z"]})
    with pytest.raises(ValueError, match="`target` must hold symbols that were seen in training"):
        model.fit(stream(model.prepare(Sequences(data["x"], target=["a", "z"])), 2), verbose=0)
    with pytest.raises(ValueError, match="no tags of steps"):
        model.predict_tags(data["x"])


def test_rows_of_labels_are_as_long_as_their_rows_of_x() -> None:
    model = made("softmax")
    words = [["on", "foo", "no"], ["off"]]
    for x in (words, [np.array([1, 0, 2]), np.array([3])]):
        for y, message in (
            ([["O", "O"], ["O"]], "received 2 labels for 3 steps in row 0"),
            ([["O", "O", "O"], ["O", "O", "O"]], "received 3 labels for 1 steps in row 1"),
            ([[1, 1, 1], [1, 1]], "received 2 labels for 1 steps in row 1"),
        ):
            with pytest.raises(ValueError, match=f"`y` must have a label for each step of `x`; {message}"):
                model.as_batch({"x": x, "y": y})
        assert model.as_batch({"x": x, "y": [["O", "O", "O"], ["O"]]})["y"].shape == (2, 3)
    # padded rows in lists, with their mask
    padded, mask = [["on", "foo"], ["off", ""]], [[True, True], [True, False]]
    batch = model.as_batch({"x": padded, "y": [["O", "O"], ["O"]], "mask": mask})
    np.testing.assert_array_equal(batch["mask"], mask)
    with pytest.raises(
        ValueError, match="`mask` may shorten the sequences of a list `x`, not lengthen them; sequence 1 has 1 steps"
    ):
        model.predict_tags([["on", "foo"], ["off"]], mask=[[True, True], [True, True]])
    np.testing.assert_array_equal(model.predict_tags(padded, mask=mask).tags, model.predict_tags([["on", "foo"], ["off"]]).tags)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["crf", "ctc"])
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: str, same_when_resumed: Callable[..., Any], rng: np.random.Generator
) -> None:
    if kind == "crf":
        data = Sequences([np.array(row) for row in SENTENCES], y=[np.array(row, "<U3") for row in GOLD])
    else:
        data = Sequences([rng.normal(size=(n, 2)).astype(np.float32) for n in (4, 3, 5)], target=["ab", "b", "ba"])
    settings = {"batch_size": 2, "schedule": "constant", "learning_rate": 0.02, "progress": False, "seed": 3}

    def run(epochs: int, out: Path, **more: Any) -> Any:
        keras.utils.set_random_seed(0)
        model = SequenceTagger.from_data(
            data, embedding_dim=3, units=[3], dropout=0.2, head=kind, character_units=4, recurrent_dropout=0.1
        )
        return tfseq.train(model, data, data, out=out, epochs=epochs, **settings, **more)

    whole = same_when_resumed(run)
    monitor = f"val_{whole.model.monitor}"
    values = [row[monitor] for row in whole.history]
    best = max(values) if kind == "crf" else min(values)
    found = whole.model.evaluate(data, verbose=0, return_dict=True)
    np.testing.assert_allclose(found[whole.model.monitor], best, rtol=1e-6)


def test_more_is_better_of_the_metric_that_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, seen = iter([0.2, 0.7, 0.7, 0.5]), []

    def evaluate(model: SequenceTagger, *_: Any, **__: Any) -> dict[str, float]:
        seen.append(model.get_weights())
        return {"entity_f1": next(scores), "nats_per_step": float(-len(seen))}

    monkeypatch.setattr(SequenceTagger, "evaluate", evaluate)
    data = Sequences([np.array(["on", "no"])], y=[np.array(["B-x", "O"])])
    model = SequenceTagger.from_data(data, units=[2], embedding_dim=2, characters=None, tags=BIO)
    assert (model.monitor, model.higher_is_better) == ("entity_f1", True)
    run = tfseq.train(model, data, data, epochs=9, progress=False, patience=2)
    assert "2 epochs" in run.stopped
    assert len(run.history) == 4
    for kept, best in zip(run.model.get_weights(), seen[1], strict=True):
        np.testing.assert_array_equal(kept, best)


def test_a_graph_trains_on_tokens_and_a_file_gives_the_same_back(tmp_path: Path) -> None:
    tf.config.run_functions_eagerly(False)
    data = Sequences([np.array(["on", "no", "off"]), np.array(["off"])], y=[np.array(["B-x", "I-x", "O"]), np.array(["O"])])
    keras.utils.set_random_seed(0)
    model = SequenceTagger.from_data(data, units=[4], embedding_dim=4, head="crf", character_units=4)
    run = tfseq.train(model, data, epochs=20, learning_rate=0.05, progress=False, out=tmp_path / "run", batch_size=2)
    assert run.history[-1]["nats_per_step"] < 0.5 * run.history[0]["nats_per_step"]
    again = tfseq.load(tmp_path / "run")
    np.testing.assert_array_equal(again.marginals(["on off", "x"]), run.model.marginals(["on off", "x"]))
    one = again.predict_tags(["on no off"])  # of one row, as the graph knows
    np.testing.assert_array_equal(one.tags, [[again.tags.index(tag) for tag in ("B-x", "I-x", "O")]])
    assert (again.tags, again.text.vocabulary) == (model.tags, model.text.vocabulary)


def test_labels_that_nothing_can_learn_are_an_error_before_training(listener: SequenceTagger) -> None:
    model = made("crf")
    illegal = Sequences([np.array(["no"]), np.array(["on", "off"])], y=[np.array(["O"]), np.array(["O", "I-x"])])
    message = r"`y` must be legal in the scheme 'bio'.*sequence 1 has \['O', 'I-x'\] at step 1.*repair"
    with pytest.raises(ValueError, match=message):
        model.fit(illegal, verbose=0)
    with pytest.raises(ValueError, match=message):
        tfseq.train(model, illegal, epochs=1, progress=False, batch_size=1)
    assert np.isneginf(model.evaluate(illegal, verbose=0, return_dict=True)["nats_per_step"] * -1)  # but it can be scored
    made("free").check_training(made("free").as_batch(illegal))
    size = listener.feature_dim
    short = {"x": np.zeros((1, 2, size), np.float32), "target": np.array([[0, 0]]), "target_mask": np.ones((1, 2), bool)}
    with pytest.raises(ValueError, match="sequence 7 has 2 steps for 2 symbols and 1 blanks"):
        listener.check_training(listener.as_batch({**short, "row": np.array([7])}))


def test_served_n_best_and_entities_are_those_of_the_methods() -> None:
    model = made("crf")
    texts = ["on no Foo", "", "off"]
    served = {name: function(text=tf.constant(texts)) for name, (function, specs) in model.endpoints().items() if name != "ids"}
    best = served["n_best"]
    assert best["tags"].shape == (3, 5, 3) and best["tokens"].shape == (3, 3) and best["length"].numpy().tolist() == [3, 0, 1]
    np.testing.assert_array_equal(best["tags"][:, 0], served["serving_default"]["tags"])
    np.testing.assert_allclose(best["log_prob"], model.n_best(texts, 5).log_prob, **SAME)
    wanted = np.zeros((3, 3))
    for row, found in enumerate(model.entities(texts)):
        for entity in found:
            wanted[row, entity.start] = entity.prob
    np.testing.assert_allclose(served["entities"]["entity_prob"], wanted, **SAME)
