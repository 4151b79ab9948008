"""The classifier against NumPy: every pooling, what it reads, and what it counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tests import reference
from tfseq.data.batching import Sequences, stream
from tfseq.models.classifier import POOLINGS, SequenceClassifier

pytestmark = [
    pytest.mark.usefixtures("eager"),
    pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning"),  # of tf.data
]

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 against float64
SAME = {"rtol": 1e-9, "atol": 1e-10}  # float64 rounding
WORDS = ["fine", "film", "no"]
TEXTS = ["fine film no fine", "no", "", "bad film"]  # bad is unknown

VARIANTS: dict[str, dict[str, Any]] = {
    **{pooling: {"pooling": pooling} for pooling in POOLINGS},
    "last lstm": {"pooling": "last", "cell": "lstm", "units": [3, 2]},
    "one direction": {"pooling": "last", "bidirectional": False},
    **{f"{pooling} past": {"pooling": pooling, "units": [2, 2], "residual": True, "layer_norm": True} for pooling in POOLINGS},
}  # fmt: skip


@functools.cache
def made(name: str, dtype: str = "float64", frames: bool = False) -> SequenceClassifier:
    """A classifier with weights that are not those it begins with."""
    reads = {"feature_dim": 4} if frames else {"vocabulary": WORDS, "embedding_dim": 4}
    model = SequenceClassifier(**{"classes": ["a", "b", "c"], "units": [3], "dtype": dtype, **reads, **VARIANTS[name]})
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    model.compile("sgd")
    return model


def probs_of(model: SequenceClassifier, x: np.ndarray) -> np.ndarray:
    """p(y | x) of what the stack reads, `[T, F]`, in NumPy."""
    hidden, final = reference.stack(model.stack, x)
    if model.pooling == "last":
        pooled = np.concatenate([state[0] for state in final[-1]])
    elif not len(x):
        pooled = np.zeros(model.stack.size)
    elif model.pooling == "attention":
        layer = model.attention
        scores = np.tanh(reference.dense(layer, hidden)) @ reference.value(layer.vector)
        pooled = reference.softmax(scores[:, 0]) @ hidden
    else:
        pooled = {"mean": np.mean, "max": np.max}[model.pooling](hidden, 0)
    return reference.softmax(reference.dense(model.output_layer, pooled))


def vectors_of(model: SequenceClassifier, text: str) -> np.ndarray:
    ids = [1 + WORDS.index(word) if word in WORDS else 0 for word in text.split()]
    return reference.value(model.embedding.table)[np.array(ids, int)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pooling_is_over_real_steps_alone(name: str) -> None:
    model = made(name)
    wanted = np.array([probs_of(model, vectors_of(model, text)) for text in TEXTS])
    label, probs = model.classify(TEXTS)
    np.testing.assert_allclose(probs, wanted, **SAME)
    np.testing.assert_array_equal(label, wanted.argmax(-1))
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(model.classify([text]).probs, wanted[row : row + 1], **SAME)
    ids = np.full((4, 6), 3)
    for row, text in enumerate(TEXTS):
        ids[row, : len(text.split())] = [1 + WORDS.index(w) if w in WORDS else 0 for w in text.split()]
    mask = np.arange(6) < np.array([[4], [1], [0], [2]])
    np.testing.assert_allclose(model.classify(ids, mask).probs, wanted, **SAME)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "past" in name] + list(POOLINGS))
def test_garbage_in_padded_frames_changes_neither_answers_nor_gradients(name: str, rng: np.random.Generator) -> None:
    model = made(name, "float32", True)
    mask = np.arange(4) < np.array([[4], [2], [0]])
    x = rng.normal(size=(3, 4, 4)).astype(np.float32)
    found = []
    for garbage in (0.0, np.nan, np.inf, -1e30):
        data = {"x": np.where(mask[..., None], x, np.float32(garbage)), "y": np.array([0, 2, 1]), "mask": mask}
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.terms(model.complete(model.as_batch(data)), training=True).log_lik)
        found.append([model.classify(data).probs, *tape.gradient(loss, model.trainable_weights)])
    for clean, *dirty in zip(*found, strict=True):
        assert np.isfinite(clean).all()
        for a in dirty:
            np.testing.assert_array_equal(a, clean)
    for row, length in enumerate((4, 2, 0)):
        np.testing.assert_allclose(found[0][0][row], probs_of(model, x[row, :length].astype(float)), **CLOSE)


def test_texts_tokens_ids_bytes_and_files_have_the_same_class(tmp_path: Path) -> None:
    model = made("max")
    wanted = model.classify(TEXTS).probs
    for same in ([text.split() for text in TEXTS], [t.encode() for t in TEXTS], np.array(TEXTS), Sequences(TEXTS)):
        np.testing.assert_allclose(model.classify(same).probs, wanted, **SAME)
    served = model._serve_text(tf.constant(TEXTS))
    np.testing.assert_allclose(served["probs"], wanted, **SAME)
    assert [label.decode() for label in served["label"].numpy()] == model.decode(TEXTS)["label"].tolist()
    np.testing.assert_allclose(model.decode(TEXTS)["prob"], wanted.numpy().max(-1), **SAME)
    broken = model.classify([b"fine \xff film", "fine \ufffd film", b""]).probs.numpy()
    np.testing.assert_allclose(broken[0], broken[1], **SAME)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(tfseq.load(tmp_path / "model.keras").classify(TEXTS).probs, wanted)


def test_likelihood_and_accuracy_count_known_labels_of_sequences_with_steps() -> None:
    model = made("mean", "float32")
    probs = model.classify(TEXTS).probs.numpy()
    labels = ["b", "", "a", "c"]  # of the second nothing is known, and the third is empty
    for given in (labels, np.array([1, -1, 0, 2]), np.array(labels)):
        found = model.evaluate({"x": TEXTS, "y": given}, verbose=0, return_dict=True)
        np.testing.assert_allclose(found["nats_per_step"], -(np.log(probs[0, 1]) + np.log(probs[3, 2])) / 2, **CLOSE)
        np.testing.assert_allclose(found["accuracy"], ((probs[0].argmax() == 1) + (probs[3].argmax() == 2)) / 2, **CLOSE)
    data = Sequences(TEXTS, y=labels)
    for size in (1, 3):
        again = model.evaluate(stream(model.prepare(data), size), verbose=0, return_dict=True)
        np.testing.assert_allclose([again[k] for k in sorted(again)], [found[k] for k in sorted(found)], **CLOSE)
    figures = tfseq.evaluate(model, data, batch_size=3)
    assert set(figures) == {"nats_per_token", "accuracy", "standard_error", "calibration_error", "num_sequences", "num_steps"}
    np.testing.assert_allclose(figures["nats_per_token"], found["nats_per_step"], **CLOSE)
    confidence, right = probs[[0, 3]].max(-1), probs[[0, 3]].argmax(-1) == [1, 2]
    bins = np.minimum((confidence * 15).astype(int), 14)
    wanted = sum(abs((confidence - right)[bins == k].sum()) for k in set(bins)) / 2
    np.testing.assert_allclose(figures["calibration_error"], wanted, **CLOSE)


def test_fit_takes_pairs_as_keras_does_and_no_weights() -> None:
    model = made("max", "float32")
    labels = ["a", "b", "b", "a"]
    pair = model.fit(TEXTS, labels, validation_data=(TEXTS, labels), verbose=0).history
    found = model.evaluate(TEXTS, labels, verbose=0, return_dict=True)
    assert pair["val_nats_per_step"][0] == pytest.approx(found["nats_per_step"]) and found["nats_per_step"] > 0.0
    for given in ({"sample_weight": np.ones(4)}, {"class_weight": {0: 2.0}}):
        with pytest.raises(ValueError, match=f"`{next(iter(given))}` is not taken: every real step counts alike"):
            model.fit(TEXTS, labels, **given)
    with pytest.raises(ValueError, match="without weights; received a tuple of 3"):
        model.fit(TEXTS, labels, validation_data=(TEXTS, labels, np.ones(4)))


def test_labels_that_were_not_seen_are_named() -> None:
    model = made("max", "float32")
    for given in ({"x": TEXTS, "y": ["a", "z", "b", "a"]}, Sequences(TEXTS, y=["a", "z", "b", "a"])):
        for run in (model.as_batch, lambda d: model.fit(d, verbose=0)):
            with pytest.raises(ValueError, match=r"seen in training.*received 'z' at index \(1,\)"):
                run(given)
    with pytest.raises(ValueError, match="`y` must hold labels that were seen in training"):
        model.fit(stream(model.prepare(Sequences(TEXTS, y=["a", "z", "b", "a"])), 4), verbose=0)
    with pytest.raises(ValueError, match="`y` must be from 0 to 2"):
        model.as_batch({"x": TEXTS, "y": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match="`dataset` must have `y`"):
        SequenceClassifier.from_data(Sequences(TEXTS))
    with pytest.raises(ValueError, match="`pooling`"):
        SequenceClassifier.tiny(pooling="median")
    with pytest.raises(ValueError, match="at least 2 classes"):
        SequenceClassifier.from_data(Sequences(TEXTS, y=["a"] * 4))


def test_classes_come_from_data() -> None:
    model = SequenceClassifier.from_data(Sequences(["a b", "b", "c"], y=["p", "", "n"]), units=[2], embedding_dim=2)
    assert (model.classes, model.text.vocabulary) == (("n", "p"), ["b", "a", "c"])
    frames = [np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32)]
    for data in (Sequences(frames, y=[0, 2]), {"x": frames, "y": [0, 2]}):
        assert SequenceClassifier.from_data(data, units=[2]).classes == ("0", "1", "2")


def test_labels_of_steps_that_agree_are_those_of_sequences(tmp_path: Path) -> None:
    """A CSV file has a label at each step; of the first sequence, one of them is not known."""
    rows = ["a,1,2", "a,2,", "b,3,0", "c,1,", "d,0,2", "d,0,2", "d,0,2"]
    (tmp_path / "mine.csv").write_text("\n".join(["sequence,v,y", *rows]))
    data = tfseq.load_dataset(tmp_path / "mine.csv")
    model = SequenceClassifier.from_data(data, units=[2], dropout=0.0)
    model.compile("sgd")
    assert model.classes == ("0", "1", "2")
    np.savez(tmp_path / "mine.npz", x=data.padded()["x"], lengths=data.lengths, y=np.array([2, 0, -1, 2]))
    one = tfseq.load_dataset(tmp_path / "mine.npz")
    assert model.prepare(data).padded()["y"].tolist() == model.as_batch(data)["y"].tolist() == one.y == [2, 0, -1, 2]
    wanted = model.evaluate(one, verbose=0, return_dict=True)
    for same in (stream(data, 2), stream(tfseq.write_shards(data, tmp_path / "shards", num_shards=1), 2)):  # not prepared
        found = model.evaluate(same, verbose=0, return_dict=True)
        np.testing.assert_allclose([found[k] for k in sorted(found)], [wanted[k] for k in sorted(wanted)], **CLOSE)
    assert tfseq.evaluate(model, data, baselines_from=data)["baselines"] == {"most frequent class": pytest.approx(2 / 3)}
    texts = Sequences(
        [np.array(["on", "off"]), np.array([], str), np.array(["on"])], y=[np.array(["p", "p"]), [], np.array(["n"])]
    )
    assert SequenceClassifier.from_data(texts, units=[2], embedding_dim=2).prepare(texts).y == ["p", "", "n"]
    (tmp_path / "mine.csv").write_text("\n".join(["sequence,v,y", *rows, "d,0,1"]))
    changed = tfseq.load_dataset(tmp_path / "mine.csv")
    for run in (SequenceClassifier.from_data, model.prepare, model.as_batch):
        with pytest.raises(
            ValueError, match="`y` must have one label.*sequence 'd' of the user's file mine.csv has 1 and 2.*tagger"
        ):
            run(changed)
    with pytest.raises(ValueError, match="`y` must hold labels that were seen in training, the same at all steps of a sequence"):
        model.evaluate(stream(changed, 4), verbose=0)
    with pytest.raises(ValueError, match=r"`y` must have one label.*sequence \d of the data has 1 and 2"):
        model.as_batch(next(iter(stream(changed, 4))))


def test_labels_of_steps_in_arrays_and_lists_agree_too() -> None:
    model = made("max")
    x, mask = np.ones((3, 2), int), np.array([[True, True], [True, False], [True, True]])
    for y in (np.array([[2, 2], [1, 7], [-1, 0]]), np.array([["c", "c"], ["b", "x"], ["", "a"]])):
        for same in (y, tf.constant(y), [row[:n] for row, n in zip(y.tolist(), mask.sum(1), strict=True)]):
            assert model.as_batch({"x": x, "mask": mask, "y": same})["y"].tolist() == [2, 1, 0]
        with pytest.raises(ValueError, match="`y` must have one label for each sequence, .*sequence 1 of the data has"):
            model.as_batch({"x": x, "y": y})
        with pytest.raises(ValueError, match=r"`mask` must be bool of shape \[B, T\] = \[3, 2\]"):
            model.as_batch({"x": x, "mask": mask[:, :1], "y": y})


def test_a_resumed_run_is_the_uninterrupted_one_and_the_best_is_kept(same_when_resumed: Callable[..., Any]) -> None:
    data = Sequences(["fine film", "no film", "fine", "no no", "bad"], y=["p", "n", "p", "n", "n"])
    settings = {"batch_steps": 4, "schedule": "constant", "learning_rate": 0.03, "progress": False, "seed": 3, "average": 0.5}

    def run(epochs: int, out: Path, **more: Any) -> Any:
        keras.utils.set_random_seed(0)
        model = SequenceClassifier.from_data(
            data, embedding_dim=3, units=[3], dropout=0.2, pooling="attention", characters="cnn", character_units=4, zoneout=0.1
        )
        return tfseq.train(model, data, data, out=out, epochs=epochs, **settings, **more)

    whole = same_when_resumed(run)
    found = whole.model.evaluate(data, verbose=0, return_dict=True)["accuracy"]
    np.testing.assert_allclose(found, max(row["val_accuracy"] for row in whole.history), rtol=1e-6)


def test_a_graph_learns_from_texts() -> None:
    tf.config.run_functions_eagerly(False)
    data = Sequences(["fine film", "no film", "fine", "no no"] * 5, y=["p", "n", "p", "n"] * 5)
    keras.utils.set_random_seed(0)
    model = SequenceClassifier.from_data(data, embedding_dim=4, units=[4], dropout=0.0)
    run = tfseq.train(model, data, data, epochs=4, batch_size=4, learning_rate=0.05, progress=False)
    assert run.history[-1]["val_accuracy"] == 1.0
    assert run.model.decode(["no", "fine film film"])["label"].tolist() == ["n", "p"]


def test_labels_and_targets_of_other_models_are_left_alone(rng: np.random.Generator) -> None:
    """Spoken digits have both a class and a transcription of each recording, whose frames have neither."""
    frames = [rng.normal(size=(n, 2)).astype(np.float32) for n in (6, 5)]
    data = Sequences(frames, y=["1", "2"], target=[np.array(list("one")), np.array(list("two"))])
    for model in (
        SequenceClassifier.from_data(data, units=[3]),
        tfseq.SequenceTagger.from_data(data, units=[3], head="ctc"),
        tfseq.Seq2Seq.from_data(data, units=[3], embedding_dim=2, min_count=1),
    ):
        run = tfseq.train(model, data, data, epochs=1, progress=False)
        assert np.isfinite(run.history[0]["loss"])
        assert np.isfinite(tfseq.evaluate(run.model, data)["nats_per_token"])
