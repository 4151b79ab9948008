"""Any arguments, any files: a defined answer, or a ValueError that says what is wrong. `scripts/fuzz.py` looks for more."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import parsers
import pytest
import strategies
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_conformance import CASES

from tfseq.models import MODELS
from tfseq.models.base import SequenceModel

SHAPE = (2, 3)
settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@functools.lru_cache(maxsize=1)
def tiny(name: str) -> SequenceModel:
    """A model that the tests of its name share."""
    model, overrides = CASES[name]
    return MODELS[model].tiny(**overrides)


# Models -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("calls", "num"), [(strategies.legal_calls, 4), (strategies.wrong_calls, 15)], ids=["legal", "wrong"])
def test_a_call_is_answered_or_refused_by_the_name_of_an_argument(
    name: str, calls: Callable[..., st.SearchStrategy[strategies.Call]], num: int, eager: None
) -> None:
    model, seen = tiny(name), set()
    methods = [method for method in strategies.methods(model) if method not in strategies.OF_KERAS]

    @settings(settings.get_profile("same"), max_examples=num)
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        seen.add(strategies.outcome(model, data.draw(calls(model, data.draw(st.sampled_from(methods)), SHAPE))))

    attempt()
    assert ("answered" if calls is strategies.legal_calls else "refused") in seen


# models whose `from_data` have code of their own, and one that is pre-trained
@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
@pytest.mark.parametrize("name", ["dmm", "hmm", "kalman", "lm", "rbm", "tagger", "dbm"])
def test_data_make_a_model_or_are_refused_by_name(name: str, eager: None) -> None:
    model, seen = tiny(name), set()
    method = "pretrain" if hasattr(model, "pretrain") else "from_data"

    @settings(settings.get_profile("same"), max_examples=4 if method == "pretrain" else 8)
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        seen.add(strategies.outcome(model, data.draw(strategies.data_calls(model, method))))

    attempt()
    assert "refused" in seen


X = np.ones((2, 3, 3), np.float32)
TOKENS = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("name", "method", "arguments", "message"),
    [
        ("dmm", "elbo", {"x": "a"}, "`x` must be sequences"),
        ("dmm", "elbo", {"x": [[[1.0], [2.0, 3.0]]]}, "`x` must be an array, or rows of one length"),
        ("dmm", "elbo", {"x": X[:0]}, "`x` has no sequences"),
        ("dmm", "elbo", {"x": X, "mask": [[True], [True, False]]}, "`mask` must be an array, or rows of one length"),
        ("dmm", "elbo", {"x": {"x": X, "row": [0, None]}}, "`row` must be int32"),
        ("dmm", "elbo", {"x": {"x": X, "row": [0]}}, r"`row` must have shape \[2\]"),
        ("dmm", "elbo", {"x": {"x": X, "seed": [0.5, 1.0]}}, "`seed` must hold whole numbers"),
        ("dmm", "elbo", {"x": X, "seed": [[0, 1], [2]]}, "`seed` must be an array, or rows of one length"),
        ("dmm", "elbo", {"x": X, "num_samples": 2**31}, "`num_samples` must be at most 2147483647"),
        ("dmm", "init_state", {"num_sequences": 2.0}, "`num_sequences` must be a whole number"),
        ("dmm", "filter_step", {"x": 1.0, "state": {}}, "`x` must have a row for each sequence"),
        ("dmm", "filter_step", {"x": X[:, 0], "state": None}, "`state` must be a dict of .*'log_weights'.*received NoneType"),
        ("dmm", "filter_step", {"x": X[:, 0], "state": {"log_weights": np.zeros((2, 4))}}, "`state` must be a dict of"),
        (
            "hmm-trials",
            "log_prob",
            {"x": np.full((2, 3, 3), 1e30), "u": X[..., :1]},
            "`x` must be a whole number .* below 2\\^31",
        ),
        (
            "hmm",
            "filter_step",
            {"x": X[:, 0], "state": {"log_belief": np.zeros((3, 3))}},
            r"`state\['log_belief'\]` must have shape",
        ),
        (
            "rbm",
            "free_energy",
            {"v": np.full((2, 3), np.nan)},
            "`v` must be finite, .*received nan at index .* Leave such rows out",
        ),
        ("rbm", "free_energy", {"v": np.full((2, 3), 3e38)}, r"`v` must be finite, .*no larger than 1e\+30"),
        ("rbm", "gibbs", {"v": [["a", "b", "c"]]}, "`v` must be numbers"),
        ("rbm", "log_prob", {"x": X, "log_partition": [1.0]}, "`log_partition` must be log Z, a finite number"),
        ("lm", "log_prob", {"data": TOKENS + 3}, "`x` must be ids from 0 to 2"),  # the number of the boundary, which is no token
        ("lm", "log_prob", {"data": None}, "The batch has no `x`"),
        ("lm", "generate", {"prompts": ["a"], "top_k": "2"}, "`top_k` must be a number"),
        ("tagger", "marginals", {"data": {"x": TOKENS, "y": np.full((2, 3), 2**40)}}, "`y` must hold whole numbers of 32 bits"),
        ("tagger", "marginals", {"data": [["a", None]]}, "must hold strings in the place of tokens.*None"),
        (
            "classifier",
            "classify",
            {"data": {"x": TOKENS, "y": np.zeros(3, int)}},
            "`y` must have a row for each of the 2 of `x`",
        ),
        ("classifier", "classify", {"data": {"x": TOKENS, "y": "never"}}, r"`y` must hold labels .*'never' at index \(0,\)"),
        ("classifier", "fit", {"x": TOKENS}, "`y` must be given to a SequenceClassifier in training"),
        ("seq2seq", "log_prob", {"data": {"x": TOKENS}}, "`target` must be given"),
        ("seq2seq", "log_prob", {"data": {"x": TOKENS, "target": 1.0}}, "`target` must be texts, or a row"),
        ("seq2seq", "log_prob", {"data": {"x": TOKENS, "target": np.array(None)}}, "`target` must be texts, or a row"),
        (
            "seq2seq",
            "log_prob",
            {"data": {"x": TOKENS, "target": TOKENS, "target_mask": np.ones((2, 4), bool)}},
            "`target_mask` must",
        ),
        ("seq2seq", "translate", {"data": TOKENS, "max_tokens": -1}, "`max_tokens` must be a whole number"),
    ],
)
def test_what_once_came_out_of_numpy_or_tensorflow_names_its_argument(
    name: str, method: str, arguments: dict[str, Any], message: str
) -> None:
    model = tiny(name)
    if method == "fit":
        model.compile("sgd")
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**arguments)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rbm", {}, "`dataset` must hold sequences"),
        ("rbm", np.float32(1.0), "`x` must be a list of sequences"),
        ("rbm", {"x": {"x": None}}, "`x` must be a list of sequences"),
        ("rbm", np.array("2001-01-01", "M8[D]"), "`x` must be a list of sequences"),
        ("rbm", [[1, 2, 3], np.nan], "`x` must be sequences, each .* received single values"),
        ("rbm", [[[1, 2]], [1, 2]], "The sequences of `x` must agree"),
        ("rbm", [[[1.0], [2.0, 3.0]]], "`x` must be an array, or rows of one length"),
        ("rbm", tf.ragged.constant([[1], [2, 3]]), "`x` must be"),
        ("rbm", {"x": X, "mask": [[True, False, True]] * 2}, "`mask` must be right-padded"),
        ("rbm", {"x": X, "mask": np.ones((2, 1), bool)}, r"`mask` must be bool of shape .* = \[2, 3\]"),
        ("kalman", X.astype(str), "`x` must be numbers; received strings"),
        ("kalman", ["a"], "`x` must be numbers; received strings"),
        ("kalman", {"x": X, "observed": {"x": None}}, "`observed` must be a list of sequences"),
        ("kalman", {"x": X, "observed": np.ones((2, 3, 1), bool)}, "`observed` must fit `x`; of sequence 0"),
        ("kalman", {"x": X, "observed": np.ones(X.shape, object)}, "`observed` must be bool; received object"),
        ("dmm", X * np.nan, r"`x` must be finite wherever .* at index \(0, 0, 0\) and 8 other places. For missing values pass"),
        ("dmm", {"x": X, "u": X * np.inf}, "`u` must be finite, .* Leave such rows out"),
        ("rbm", {"x": X * np.nan, "observed": np.zeros(X.shape, bool)}, "`x` must be finite, .* Leave such rows out"),
        ("dmm", X[:1, :, :1] * np.float32(3.4e38), r"`x` must be finite .*no larger than 1e\+30; received 3.39"),
        ("dmm", {"x": X, "u": X[:, :2]}, "`u` must fit `x`"),
        ("dmm", X[0], r"`x` must be vectors \[T, D\] for this head"),
        ("dmm-symbols", X, r"`x` must be symbols \[T\]"),
        ("hmm-symbols", np.full((1, 2), 2**31 - 1), "`x` must hold symbols from 0 to 1048575; received 2147483647"),
        ("lm", [[1, 2**40]], "`x` must hold symbols from 0 to"),
        ("lm", [["\ud800"]], "`vocabulary` and classes must be Unicode"),
        ("lm", [], "`x` must be texts, tokens or ids"),
        (
            "classifier",
            {"x": [["a"], []], "y": [0, 1], "mask": np.zeros((2, 1), bool)},
            "`vocabulary` must hold .*Was the data empty",
        ),
        (
            "lm",
            X[0],
            r"`x` must be texts.*received float32 of shape \[3\]. Are `x` and `target` exchanged, or ids kept as floats",
        ),
        ("tagger", {"x": ["a"], "y": np.zeros((1, 1, 0))}, "`y` must fit `x`; of sequence 0"),
        ("tagger", {"x": [["a", "b"]], "y": [[0]] * 2}, "`y` must have one item for each of the 1 of `x`"),
        ("tagger", {"x": [["a", "b"]], "y": [[0, 2**40]]}, "`y` must hold symbols from 0 to"),
        ("tagger", {"x": [["a", "b"]], "y": [[0.5, 1.0]]}, "`y` must hold labels, strings or whole numbers; received"),
        ("tagger", {"x": X, "y": np.array([[1, None, 2]] * 2)}, "`y` must be numbers, or all strings; received object"),
        ("seq2seq", {"x": [["a"]], "target": X[:1]}, "`target` must fit `x`"),
    ],
)
def test_data_that_no_model_is_made_from_are_refused_by_name(name: str, data: Any, message: str) -> None:
    model, overrides = CASES[name]
    symbols = {key: value for key, value in overrides.items() if value == "categorical"}  # the head, or the emission
    with pytest.raises(ValueError, match=message):
        MODELS[model].from_data(data, **symbols)


def test_what_is_padded_is_no_data_and_targets_have_lengths_of_their_own(eager: None) -> None:
    data = {"x": [[1, 2, 9]], "mask": [[True, True, False]], "target": [[3, 4, 5, 9]], "target_mask": [[True] * 3 + [False]]}
    data = {name: np.array(a) for name, a in data.items()}
    model = MODELS["seq2seq"].from_data(data, embedding_dim=2, units=[2])
    assert (model.text.size, model.num_targets) == (3, 7)  # 0, 1, 2; 0, 1, ... 5 and the end
    labelled = {"x": data["x"], "mask": data["mask"], "y": [1]}
    assert MODELS["classifier"].from_data(labelled, embedding_dim=2, units=[2]).text.size == 3


def test_texts_are_not_copied_and_an_empty_list_is_of_any_kind() -> None:
    text = "a\0"
    assert MODELS["lm"].as_dataset({"x": [text], "y": [b"b\0"]}).x[0] is text
    data = {"x": [[], [1, 2]], "observed": [[], [True, True]]}
    assert MODELS["hmm"].from_data(data, emission="categorical").emission.event_dim == 3
    with pytest.raises(ValueError, match="`observed` must be bool; received int64"):
        MODELS["hmm"].from_data({**data, "observed": [[], [1, 1]]}, emission="categorical")


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((0, 2, 3)), [np.zeros((0, 3))], [np.zeros((1, 2))], np.zeros(3)])
def test_pretraining_refuses_what_is_no_data(x: Any) -> None:
    with pytest.raises(ValueError, match="`x` (has no sequences|must)"):
        tiny("dbm").pretrain(x)


@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")  # of tf.data
def test_numbers_whose_sums_overflow_float32_are_refused_everywhere(eager: None) -> None:
    """Near its largest number a filter said NaN; up to the bound it has an answer."""
    model = tiny("kalman")
    model.compile()
    for x, is_taken in ((1e30, True), (1.1e30, False), (3.4e38, False), (-3.4e38, False)):
        batch = {"x": np.full((1, 2, 3), x, np.float32)}
        stream = tf.data.Dataset.from_tensors(batch)
        calls: list[Callable[[], Any]] = [lambda b=batch: model.filter(b), lambda s=stream: model.evaluate(s, verbose=0)]
        for call in calls:
            if is_taken:
                assert not any(np.isnan(a).any() for a in strategies.arrays_of(call()))
            else:
                with pytest.raises(ValueError, match=r"`x` must be finite wherever .*no larger than 1e\+30"):
                    call()
        hidden = {**batch, "observed": np.zeros((1, 2, 3), bool)}
        np.testing.assert_array_equal(model.log_prob(hidden), [0.0])


def test_a_count_may_be_a_number_of_numpy(eager: None) -> None:
    model = tiny("dmm")
    np.testing.assert_array_equal(model.elbo(X, num_samples=np.int64(2)), model.elbo(X, num_samples=2))


def test_half_of_a_surrogate_pair_is_an_unknown_token(eager: None) -> None:
    model = tiny("classifier")  # which does not look at the characters of a token
    np.testing.assert_array_equal(model.classify([["\ud800"]]).probs, model.classify([["never seen"]]).probs)


# Readers ------------------------------------------------------------------------------------------------------------

_NPY = parsers._npy(np.zeros((2, 2), np.float32))
_WAV = parsers._wav([1, 2])


@pytest.mark.parametrize("name", sorted(set(parsers.PARSERS) - {"midi", "musicxml", "humdrum"}))
def test_what_the_fuzzer_begins_with_is_read(name: str, tmp_path: Path) -> None:
    assert all(parsers.check(parsers.PARSERS[name], content, tmp_path) for content in parsers.PARSERS[name].examples)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("conll", b"a\0 NN O\n\0 NN O\n"),  # NumPy's strings lose what they end in
        ("npz", b"\n--member--\n".join([b"x", b"\x93NUMP"])),  # no array: NumPy gives bytes
        ("npz", b"\n--member--\n".join([b"x", _NPY.replace(b"(2, 2)", b"(9999, 9999)").replace(b" " * 6, b"", 1)])),
        ("wav", _WAV[:40] + struct.pack("<I", 2**32 - 2) + _WAV[44:]),  # 4 GB of samples, as it says
        ("wav", _WAV[:24] + bytes(8) + _WAV[32:]),  # no sample a second
        ("config", b"data: 2001-99-99\n"),
        ("config", b"data: !!bool a\n"),
        ("config", b"[" * 500),
        ("config", b"- &0 [a, a]\n" + b"".join(b"- &%d [%s]\n" % (i + 1, b", ".join([b"*%d" % i] * 9)) for i in range(9))),
        ("midi", parsers.PARSERS["midi"].examples[0].replace(b"\0\x60MTrk", b"\0\0MTrk")),  # no ticks to a quarter note
        ("spans", b"[" + b"1" * 5000 + b"]"),
        ("spans", b'[{"text": "\\ud800"}]'),
        ("spans", json.dumps([{"text": "a", "entities": [{"span": [0, 1], "type": "\0"}]}]).encode()),
    ],
)
def test_what_once_was_read_wrongly_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    if name == "midi":
        pytest.importorskip("music21", reason="reads scores")
    assert not parsers.check(parsers.PARSERS[name], content, tmp_path)
