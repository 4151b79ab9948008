"""Requests that share a call answer as they would alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfseq.serve.batching import Batcher
from tfseq.serve.errors import ServingError
from tfseq.serve.servable import BatchingParameters, Servable


@pytest.fixture(scope="module")
def local(local_model: Path) -> Servable:
    return Servable(local_model)


@pytest.fixture(scope="module")
def contract(contract_folder: Path) -> Servable:
    return Servable(contract_folder / "contract" / "1")


def together(servable: Servable, signature: str, requests: list[dict[str, Any]], **options: Any) -> tuple[list[Any], list[int]]:
    """(answers or errors, rows of each call) of requests that come at the same time."""
    calls: list[int] = []

    async def run() -> list[Any]:
        batcher = Batcher(1, on_batch=calls.append, **options)
        asked = servable.signature(signature)
        inputs = [
            {name: np.asarray(v, asked.inputs[name].dtype.as_numpy_dtype) for name, v in request.items()} for request in requests
        ]
        found = await asyncio.gather(*(batcher.run(servable, asked, i) for i in inputs), return_exceptions=True)
        assert (batcher.waiting, batcher._free, batcher._queues) == (0, 1, {})
        batcher.close()
        return found

    return asyncio.run(run()), calls


def alone(servable: Servable, signature: str, requests: list[dict[str, Any]]) -> list[Any]:
    return together(servable, signature, requests, max_rows=1)[0]


def assert_same(answers: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(answers, wanted, strict=True):
        assert list(a) == list(b)
        for name in b:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


def test_requests_that_wait_share_a_call_up_to_the_largest_batch(contract: Servable, rng: np.random.Generator) -> None:
    requests = [{"x": rng.normal(size=n)} for n in (1, 3, 2, 1, 4, 5, 1)]
    answers, calls = together(contract, "", requests, max_rows=8)
    assert_same(answers, alone(contract, "", requests))
    assert calls == [1, 6, 4, 6]  # the first goes at once; then as many as fit, in their order


def test_the_answers_to_texts_have_the_lengths_they_have_alone(local: Servable) -> None:
    requests = [{"text": t} for t in ([b"a"], [b"b c d", b"e"], [b""], [b"f g"], [b"", b"h"])]
    answers, calls = together(local, "", requests)
    assert len(calls) == 2
    for answer, request in zip(answers, requests, strict=True):
        words = [text.split() for text in request["text"]]
        longest = max(1, *map(len, words))
        assert answer["words"].tolist() == [row + [b""] * (longest - len(row)) for row in words]


def test_texts_of_like_length_share_a_call_and_the_oldest_goes_first(local: Servable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    original = Servable.__call__

    def spy(servable: Servable, signature: Any, inputs: Any, seconds: float) -> Any:
        seen.append([len(text) for text in inputs["text"]])
        return original(servable, signature, inputs, seconds)

    monkeypatch.setattr(Servable, "__call__", spy)
    requests = [{"text": [b"a" * n]} for n in (1, 9, 2, 8, 3, 90)]
    answers, _ = together(local, "", requests, max_rows=2)
    assert seen == [[1], [9, 8], [2, 3], [90]]
    assert [a["words"].item() for a in answers] == [r["text"][0] for r in requests]


def test_texts_whose_answers_have_other_sizes_than_their_lengths_are_run_one_by_one(local_model: Path) -> None:
    local = Servable(local_model)
    requests = [{"text": [text]} for text in (b"a bb", b"cc dd e", b"ff g", b"h ii jj kk")]
    answers, calls = together(local, "long_words", requests)
    assert_same(answers, alone(local, "long_words", requests))
    assert local.alone == {"long_words"} and calls == [1, 3]
    assert together(local, "long_words", requests)[1] == [1, 1, 1, 1]  # it is known by now


def test_requests_whose_numbers_decide_the_size_of_the_answer_join_by_the_largest(local: Servable) -> None:
    requests = [{"num_steps": n} for n in ([3], [2], [2], [3], [1, 2], [2])]
    answers, calls = together(local, "count", requests)
    assert_same(answers, alone(local, "count", requests))
    assert calls == [1, 5, 1]  # the first at once, those of 2 steps, the other of 3


def test_shapes_that_differ_do_not_join(contract: Servable) -> None:
    requests = [{"a": np.ones([2, 2]), "b": [1, 2]}, {"a": np.ones([1, 2]), "b": [3]}]
    assert_same(together(contract, "pair", requests)[0], alone(contract, "pair", requests))
    (error,), calls = together(contract, "pair", [{"a": np.ones([2, 2]), "b": [1]}])
    assert isinstance(error, ServingError) and "equal 0th-dimension" in str(error) and calls == []


def test_sequences_are_padded_with_their_first_element_where_the_version_says_so(local_model: Path) -> None:
    local = Servable(local_model)
    rows = ([[1.0, 2.0]], [[3.0]], [[4.0, 5.0, 6.0]], [[7.0, 8.0], [9.0, 1.0]], [[2.0]])
    requests = [{"x": x, "weight": np.full_like(x, 2.0), "lengths": [len(row) for row in x]} for x in rows]
    assert together(local, "total", requests)[1] == [1, 2, 1, 2]  # only what has the same length
    local.batching = BatchingParameters(pad_variable_length_inputs=True)
    answers, calls = together(local, "total", requests)
    assert calls == [1, 5]
    assert [a["total"].tolist() for a in answers] == [[6.0], [6.0], [30.0], [30.0, 20.0], [4.0]]
    assert [a["last"].tolist() for a in answers] == [[2.0], [3.0], [6.0], [7.0, 7.0], [2.0]]  # what TF Serving pads with
    bad = {"x": [[1.0, 2.0]], "weight": [[1.0, 2.0, 3.0]], "lengths": [2]}  # would be as long as the others, once padded
    answers, _ = together(local, "total", [*requests, bad])
    assert isinstance(answers.pop(), ServingError) and [a["total"][0] for a in answers] == [6.0, 6.0, 30.0, 30.0, 4.0]


def test_sequences_of_like_length_are_padded_together(local_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, seen = Servable(local_model), []
    local.batching = BatchingParameters(max_batch_size=2, pad_variable_length_inputs=True)
    original = Servable.__call__
    monkeypatch.setattr(Servable, "__call__", lambda s, g, inputs, t: seen.append(inputs["x"].shape) or original(s, g, inputs, t))
    rows = [np.ones([1, n]) for n in (3, 9, 2, 1, 8)]
    together(local, "total", [{"x": x, "weight": x, "lengths": [x.shape[1]]} for x in rows])
    assert seen == [(1, 3), (2, 9), (2, 2)]


def test_a_long_request_holds_up_no_short_ones(local_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, seen = Servable(local_model), []
    local.batching = BatchingParameters(pad_variable_length_inputs=True)
    original = Servable.__call__

    def spy(servable: Servable, signature: Any, inputs: Any, seconds: float) -> Any:
        seen.append(next(inputs[name].shape for name in ("x", "text", "v") if name in inputs))
        return original(servable, signature, inputs, seconds)

    monkeypatch.setattr(Servable, "__call__", spy)
    rows = [np.ones([1, n]) for n in (10, 5000, 31, 40, 20, 4100, 63)]  # the first goes at once
    together(local, "total", [{"x": x, "weight": x, "lengths": [x.shape[1]]} for x in rows])
    assert seen == [(1, 10), (2, 5000), (2, 31), (2, 63)]
    seen.clear()
    sweeps = [{"v": [1.0], "num_sweeps": [n]} for n in (5, 5, 60_000, 5)]
    answers, _ = together(local, "sweep", sweeps, row_multiple=1)
    assert seen == [(1,), (2,), (1,)] and [a["most"].item() for a in answers] == [5, 5, 60_000, 5]
    seen.clear()
    together(local, "", [{"text": [b"a" * n]} for n in (10, 10, 60_000, 10)])
    assert seen == [(1,), (2,), (1,)]


def test_a_batch_has_no_more_rows_than_their_steps_allow(local: Servable) -> None:
    requests = [{"num_steps": [n]} for n in (50, 50, 50, 50, 1)]
    assert together(local, "count", requests, max_row_steps=100, row_multiple=1)[1] == [1, 2, 1, 1]
    assert together(local, "count", requests, max_row_steps=100)[1] == [1, 3, 1]  # the fillers of 16 rows take it anyhow


def test_an_error_meets_only_who_caused_it(contract: Servable) -> None:
    requests = [{"x": [n]} for n in (1.0, 4.0, -1.0, 9.0)]
    answers, _ = together(contract, "positive", requests)
    assert [a["root"].item() for a in (answers[0], answers[1], answers[3])] == [1.0, 2.0, 3.0]
    assert isinstance(answers[2], ServingError) and answers[2].http == 400 and "only positive numbers" in str(answers[2])


def test_a_signature_without_rows_is_run_request_by_request(local: Servable) -> None:
    requests = [{"x": [n, n + 2.0]} for n in range(5)]
    answers, _ = together(local, "mean", requests)
    assert [a["mean"].item() for a in answers] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_first_waits_for_others_where_it_is_told_to(contract: Servable) -> None:
    requests = [{"x": [n]} for n in (1.0, 2.0, 3.0)]
    assert together(contract, "", requests, batch_timeout=0.05)[1] == [3]
    assert together(contract, "", requests, batch_timeout=60.0, max_rows=3)[1] == [3]  # full before its time


def test_a_version_sets_its_own_sizes(contract_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servable = Servable(contract_folder / "contract" / "1")
    servable.batching = BatchingParameters(max_batch_size=2, batch_timeout_micros=50_000, allowed_batch_sizes=(4,))
    seen = []
    original = Servable.__call__
    monkeypatch.setattr(Servable, "__call__", lambda s, g, inputs, t: seen.append(len(inputs["x"])) or original(s, g, inputs, t))
    answers, calls = together(servable, "", [{"x": [n]} for n in (1.0, 2.0, 3.0, 4.0)])
    assert (calls, seen) == ([2, 2], [4, 4])
    assert [a["y"].item() for a in answers] == [2.5, 3.0, 3.5, 4.0]
    requests = [{"x": [n]} for n in (1.0, 2.0, 3.0, 4.0)]
    assert together(servable, "", requests, batch_timeout=0.0)[1] == [1, 2, 1]  # what the server is told goes first
    assert together(servable, "", requests, max_rows=3)[1] == [3, 1]


def test_requests_that_nobody_waits_for_are_dropped_and_a_full_queue_says_so(contract: Servable) -> None:
    async def run(ask: Callable[[Batcher], Awaitable[None]]) -> None:
        batcher = Batcher(1, batch_timeout=0.05, max_waiting=2)
        await ask(batcher)
        batcher.close()

    async def ask(batcher: Batcher) -> None:
        inputs = {"x": np.ones(1, np.float32)}
        first, second = (asyncio.create_task(batcher.run(contract, contract.signature(), inputs)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(ServingError, match="queue is full"):
            await batcher.run(contract, contract.signature(), inputs)
        first.cancel()
        assert (await second)["y"].shape == (1,)
        assert batcher.waiting == 0

    asyncio.run(run(ask))


def test_rows_are_filled_only_where_rounding_can_grow(
    local: Servable, contract: Servable, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = Servable.__call__

    def spy(servable: Servable, signature: Any, inputs: Any, seconds: float) -> Any:
        seen.append(len(next(iter(inputs.values()))))
        return original(servable, signature, inputs, seconds)

    monkeypatch.setattr(Servable, "__call__", spy)
    together(contract, "", [{"x": [1.0]}])
    answers, calls = together(local, "draw", [{"seed": [[1, 2]]}, {"seed": [[3, 4], [5, 6]]}, {"seed": [[7, 8]]}])
    assert (calls, seen) == ([1, 3], [1, 16, 16])  # fillers are nobody's rows
    assert [a["u"].shape for a in answers] == [(1,), (2,), (1,)]
    together(local, "draw", [{"seed": [[1, 2]]}], row_multiple=1)
    assert seen[-1] == 1
