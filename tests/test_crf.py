"""The CRF against the enumeration of all tag sequences, with and without constraints, and against pytorch-crf."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfseq import schemes
from tfseq.layers.crf import CRF
from tfseq.ops import chains, tracing

STEPS = 5
TAGS = {
    "bio": ["O", "B-x", "I-x", "B-y", "I-y"],
    "iob1": ["O", "I-x", "B-x", "I-y"],
    "bioes": ["O", "B-x", "I-x", "E-x", "S-x"],
}
KINDS = ["free", "bio", "iob1", "bioes"]


def example(kind: str, rng: np.random.Generator, dtype: str = "float64") -> tuple[CRF, np.ndarray, np.ndarray, list[str], str]:
    """(layer, scores [B, T, K] with NaN where padded, mask, tags, scheme): two rows of every length from 0 to 5."""
    scheme = "bio" if kind == "free" else kind  # a CRF without constraints may well have tags that are read as entities
    tags = TAGS[scheme]
    allowed = None if kind == "free" else schemes.constraints(tags, scheme)
    crf = CRF(len(tags), allowed, dtype=dtype)
    for weight in crf.weights:
        weight.assign(rng.normal(size=weight.shape))
    mask = np.arange(STEPS) < np.repeat(np.arange(STEPS + 1), 2)[:, None]
    scores = 2.0 * rng.normal(size=(*mask.shape, len(tags)))
    return crf, np.where(mask[..., None], scores, np.nan).astype(dtype), mask, tags, scheme


@functools.cache
def all_paths(num_tags: int, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(num_tags), repeat=length)), int).reshape(num_tags**length, length)


def enumerate_row(crf: CRF, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All sequences `[P, L]` for the real scores `[L, K]`, and the score of each `[P]`, -inf where it is forbidden."""
    start, transition, end = (w.numpy().astype(np.float64) for w in (crf.start, crf.transition, crf.end))
    if crf.allowed is not None:
        start, transition, end = (np.where(may, w, -np.inf) for may, w in zip(crf.allowed, (start, transition, end), strict=True))
    paths = all_paths(crf.num_tags, len(scores))
    total = np.zeros(len(paths))
    if len(scores):
        total = total + start[paths[:, 0]] + end[paths[:, -1]]
    for t in range(len(scores)):
        total = total + scores[t, paths[:, t]] + (transition[paths[:, t - 1], paths[:, t]] if t else 0.0)
    return paths, total


def graph(function: Any) -> Any:
    return tf.function(function, autograph=False)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_what_the_enumeration_of_sequences_says(kind: str, rng: np.random.Generator) -> None:
    crf, scores, mask, tags, _ = example(kind, rng)
    num = 7  # more than there are of the shortest
    marginals, path, ranking = (f(scores, mask) for f in (crf.marginals, crf.decode, functools.partial(crf.n_best, num=num)))
    in_graph = graph(lambda: crf.n_best(scores, mask, num))()
    for a, b in zip(ranking, in_graph, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-10)
    for i, length in enumerate(mask.sum(1)):
        paths, total = enumerate_row(crf, scores[i, :length])
        log_prob = total - scipy.special.logsumexp(total)
        # every sequence at once, in the padded batch, with garbage at padded steps
        labels = np.concatenate([paths, rng.integers(-1, 9, (len(paths), STEPS - length))], 1).astype(np.int32)
        same = np.repeat(scores[i : i + 1], len(paths), 0), labels, np.repeat(mask[i : i + 1], len(paths), 0)
        np.testing.assert_allclose(crf.log_prob(*same), log_prob, atol=1e-10)
        wanted = np.einsum("p,ptk->tk", np.exp(log_prob), np.eye(len(tags))[paths])
        np.testing.assert_allclose(marginals[i, :length], wanted, atol=1e-12)
        np.testing.assert_array_equal(marginals[i, :length].numpy()[wanted == 0.0], 0.0)  # what is forbidden, exactly
        assert not np.any(marginals[i, length:])
        np.testing.assert_allclose(path.score[i], total.max(), atol=1e-10)
        np.testing.assert_array_equal(path.states[i, :length], paths[total.argmax()])
        assert (path.states[i, length:].numpy() == -1).all()
        order = np.argsort(-total, kind="stable")[:num]
        order = order[np.isfinite(total[order])]
        np.testing.assert_array_equal(ranking.tags[i, : len(order), :length], paths[order])  # scores are normal: no ties
        np.testing.assert_allclose(ranking.score[i, : len(order)], total[order], atol=1e-10)
        np.testing.assert_allclose(ranking.log_prob[i, : len(order)], log_prob[order], atol=1e-10)
        for absent in (ranking.score[i, len(order) :], ranking.log_prob[i, len(order) :]):
            assert (absent.numpy() == -np.inf).all()
        assert (ranking.tags[i, len(order) :].numpy() == -1).all() and (ranking.tags[i, :, length:].numpy() == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_tags_are_summed_over(kind: str, rng: np.random.Generator) -> None:
    crf, scores, mask, _, _ = example(kind, rng)
    legal = crf.n_best(scores, mask, 3).tags.numpy()  # rows of three legal sequences, most of them
    run = graph(lambda labels: crf.log_prob(scores, labels, mask))
    for labels in (legal[:, 0], legal[:, 2], rng.integers(crf.num_tags, size=mask.shape)):
        labels = np.where(rng.random(mask.shape) < 0.5, -1, labels).astype(np.int32)
        wanted = []
        for i, length in enumerate(mask.sum(1)):
            paths, total = enumerate_row(crf, scores[i, :length])
            agrees = ((labels[i, :length] == -1) | (paths == labels[i, :length])).all(1)
            wanted.append(scipy.special.logsumexp(total[agrees]) - scipy.special.logsumexp(total))
        for found in (crf.log_prob(scores, labels, mask), run(tf.constant(labels))):
            np.testing.assert_allclose(found, wanted, atol=1e-10)
    np.testing.assert_allclose(crf.log_prob(scores, -np.ones_like(labels), mask), 0.0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_probability_of_an_entity_is_that_of_all_sequences_that_have_it(kind: str, rng: np.random.Generator) -> None:
    crf, scores, mask, tags, scheme = example(kind, rng)
    tables = schemes.tables(tags, scheme)
    decoded = crf.decode(scores, mask).states.numpy()
    run = graph(lambda labels: crf.entity_probs(scores, labels, mask, tables=tables))
    for labels in (decoded, *rng.integers(crf.num_tags, size=(3, *mask.shape))):  # any tags, legal or not
        found = run(tf.constant(labels, tf.int32)).numpy()
        wanted = np.zeros(mask.shape)
        for i, length in enumerate(mask.sum(1)):
            paths, total = enumerate_row(crf, scores[i, :length])
            probs = np.exp(total - scipy.special.logsumexp(total))
            spans = [set(schemes.entities([tags[k] for k in path], scheme)) for path in paths]
            for entity in schemes.entities([tags[k] for k in labels[i, :length]], scheme):
                wanted[i, entity[1]] = sum(p for p, has in zip(probs, spans, strict=True) if entity in has)
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_plain_classes_have_no_entities() -> None:
    crf = CRF(1)
    probs = crf.entity_probs(np.zeros((2, 3, 1)), np.zeros((2, 3), np.int32), tables=schemes.tables(["O"], "bio"))
    np.testing.assert_array_equal(probs, np.zeros((2, 3)))


@pytest.mark.parametrize("kind", ["bio", "iob1", "bioes"])
def test_what_is_forbidden_has_probability_zero(kind: str, rng: np.random.Generator) -> None:
    crf, scores, mask, _, _ = example(kind, rng, "float32")
    start, transition, end = (np.array(a) for a in crf.allowed)
    crf.transition.assign(np.where(transition, 0.0, 50.0))  # what the weights say of it does not matter
    crf.start.assign(np.where(start, 0.0, 50.0))
    pairs = chains.two_slice(*crf._chain(np.where(mask[..., None], scores, 0.0), tf.constant(mask)), mask).numpy()
    marginals = crf.marginals(scores, mask).numpy()
    np.testing.assert_array_equal(pairs[:, :, ~transition], 0.0)
    np.testing.assert_array_equal(marginals[:, 0, ~start], 0.0)
    np.testing.assert_array_equal(marginals[np.arange(len(mask)), mask.sum(1) - 1][2:, ~end], 0.0)
    np.testing.assert_allclose(marginals.sum(-1), mask, atol=1e-6)
    for sequences in (crf.decode(scores, mask).states[:, None], crf.n_best(scores, mask, 5).tags):
        for row, keep in zip(np.array(sequences), mask, strict=True):
            for path in row[:, keep]:
                if len(path) and path[0] >= 0:
                    assert start[path[0]] and end[path[-1]] and all(transition[i, j] for i, j in itertools.pairwise(path))


@pytest.mark.parametrize(("kind", "is_partial"), [("free", False), ("bio", True), ("bioes", False), ("bioes", True)])
def test_the_gradient_is_that_of_finite_differences(kind: str, is_partial: bool, rng: np.random.Generator) -> None:
    crf, scores, mask, _, _ = example(kind, rng)
    rows = [1, 3, 6, 10]  # lengths 0, 1, 3, 5
    scores, mask = scores[rows], mask[rows]
    labels = np.array(crf.decode(scores, mask).states)
    labels[3, 2] = -1 if is_partial else labels[3, 2]
    weight = tf.constant(rng.normal(size=len(rows)))
    variables = [w.value for w in crf.trainable_weights]

    @graph
    def value(scores: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(weight * crf.log_prob(scores, labels, mask))

    def gradient(scores: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(scores)
            total = tf.reduce_sum(weight * crf.log_prob(scores, labels, mask))
        return [tf.convert_to_tensor(g) for g in tape.gradient(total, [scores, *variables])]

    slopes, again = gradient(tf.constant(scores)), graph(gradient)(tf.constant(scores))
    for a, b in zip(slopes, again, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-12)
    for place in np.argwhere(np.repeat(mask[..., None], crf.num_tags, -1)):
        moved = np.zeros_like(scores)
        moved[tuple(place)] = 1e-6
        wanted = (value(tf.constant(scores + moved)) - value(tf.constant(scores - moved))) / 2e-6
        # central differences of step 1e-6 on values of order 10 in float64: an error of 1e-9
        np.testing.assert_allclose(slopes[0].numpy()[tuple(place)], wanted, atol=1e-7)
    assert not np.any(slopes[0].numpy()[~mask])
    for variable, slope in zip(variables, slopes[1:], strict=True):
        start = variable.numpy()
        for place in np.ndindex(*slope.shape):
            moved = np.zeros_like(start)
            moved[place] = 1e-6
            ends = []
            for sign in (1.0, -1.0):
                variable.assign(start + sign * moved)
                ends.append(float(value(tf.constant(scores))))
            variable.assign(start)
            np.testing.assert_allclose(slope.numpy()[place], (ends[0] - ends[1]) / 2e-6, atol=1e-7)


@pytest.mark.parametrize("is_partial", [False, True])
def test_a_forbidden_labelling_has_probability_zero_and_gradients_of_zero(is_partial: bool, rng: np.random.Generator) -> None:
    crf, _, _, tags, _ = example("bio", rng, "float32")
    labels = np.array([[tags.index(t) for t in row.split()] for row in ("O I-x O", "I-x I-x O", "O B-x I-x", "O B-x I-y")])
    labels[2, 0] = -1 if is_partial else labels[2, 0]
    scores = tf.constant(rng.normal(size=(4, 3, len(tags))), tf.float32)

    @graph
    def run(scores: tf.Tensor, weight: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(scores)
            log_prob = crf.log_prob(scores, tf.constant(labels, tf.int32))
        sources = [scores, *(w.value for w in crf.trainable_weights)]
        return log_prob, [tf.convert_to_tensor(g) for g in tape.gradient(log_prob, sources, weight)]

    log_prob, slopes = run(scores, tf.ones(4))
    _, of_legal = run(scores, tf.constant([0.0, 0.0, 1.0, 0.0]))
    assert np.isfinite(log_prob[2]) and (log_prob.numpy()[[0, 1, 3]] == -np.inf).all()
    for slope, wanted in zip(slopes, of_legal, strict=True):
        assert np.isfinite(slope).all() and np.any(slope)
        np.testing.assert_allclose(slope, wanted, atol=1e-6)  # the others add nothing


def test_where_no_sequence_is_allowed_nothing_is_nan() -> None:
    allowed = ([True, False], [[True, True], [True, True]], [False, True])  # no sequence of one token
    crf = CRF(2, allowed)
    scores, mask = tf.zeros([2, 2, 2]), np.array([[True, False], [True, True]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        log_prob = crf.log_prob(scores, [[0, 0], [0, 1]], mask)
    np.testing.assert_allclose(log_prob, [-np.inf, 0.0], atol=1e-6)
    assert np.isfinite(tape.gradient(log_prob, scores)).all()
    np.testing.assert_array_equal(crf.marginals(scores, mask), [[[0, 0], [0, 0]], [[1, 0], [0, 1]]])
    np.testing.assert_array_equal(crf.decode(scores, mask).score, [-np.inf, 0.0])
    ranking = crf.n_best(scores, mask, 2)
    np.testing.assert_array_equal(ranking.score, [[-np.inf, -np.inf], [0.0, -np.inf]])
    np.testing.assert_array_equal(ranking.tags[1, 0], [0, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_scores_of_any_size_keep_float32_precision(kind: str, scale: float, rng: np.random.Generator) -> None:
    crf, scores, mask, _, _ = example(kind, rng, "float32")
    precise = CRF(crf.num_tags, crf.allowed, dtype="float64")
    precise.set_weights(crf.get_weights())
    scores = scores * np.float32(scale)
    labels = np.array(crf.decode(scores, mask).states)
    labels[:, 1] = -1
    for y in (np.array(crf.n_best(scores, mask, 4).tags[:, 1]), labels):
        y = np.where(y.max(1, keepdims=True) < 0, labels, y)
        found, wanted = crf.log_prob(scores, y, mask), precise.log_prob(scores.astype(np.float64), y, mask)
        # a difference of two sums of five scores
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(crf.marginals(scores, mask), precise.marginals(scores, mask), atol=1e-4 if scale < 99 else 1e-2)
    for i, length in enumerate(mask.sum(1)):
        total = enumerate_row(crf, scores[i, :length].astype(np.float64))[1]
        log_norm = precise.decode(scores, mask).score[i] - precise.n_best(scores, mask, 1).log_prob[i, 0]
        np.testing.assert_allclose(log_norm, scipy.special.logsumexp(total), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_partial", [False, True])
def test_the_layer_is_that_of_pytorch_crf(is_partial: bool, rng: np.random.Generator) -> None:
    torchcrf = pytest.importorskip("torchcrf", reason="pytorch-crf is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    crf, scores, mask, tags, _ = example("free", rng, "float32")
    scores, mask = np.where(mask[..., None], scores, 0.0)[2:].astype(np.float32), mask[2:]  # it takes no empty row
    peer = torchcrf.CRF(len(tags), batch_first=True)
    with torch.no_grad():
        for theirs, ours in (
            (peer.start_transitions, crf.start),
            (peer.transitions, crf.transition),
            (peer.end_transitions, crf.end),
        ):
            theirs.copy_(torch.tensor(ours.numpy()))
        labels = rng.integers(len(tags), size=mask.shape).astype(np.int32)
        arguments = torch.tensor(scores), torch.tensor(labels.astype(np.int64)), torch.tensor(mask)
        wanted = peer(*arguments, reduction="none").numpy()
        best = peer.decode(arguments[0], arguments[2])
    given = labels.copy()
    if is_partial:  # the other branch of the graph: a row of its own with an unknown tag
        given[-1, 0] = -1
    found = crf.log_prob(scores, given, mask).numpy()
    last = len(found) - is_partial
    np.testing.assert_allclose(found[:last], wanted[:last], rtol=1e-4, atol=1e-4)  # float32, values up to 50
    assert [row[keep].tolist() for row, keep in zip(crf.decode(scores, mask).states.numpy(), mask, strict=True)] == best


def test_the_layer_is_the_same_in_xla_and_where_there_is_no_float64(rng: np.random.Generator) -> None:
    crf, scores, mask, tags, scheme = example("bioes", rng, "float32")
    tables = schemes.tables(tags, scheme)

    def everything(scores: tf.Tensor) -> list[tf.Tensor]:
        path, ranking = crf.decode(scores, mask), crf.n_best(scores, mask, 3)
        probs = crf.entity_probs(scores, path.states, mask, tables=tables)
        return [crf.log_prob(scores, path.states, mask), crf.marginals(scores, mask), probs, *path, *ranking]

    def without_float64(scores: tf.Tensor) -> list[tf.Tensor]:
        with tracing.single_precision(), tracing.without_gradients():
            return everything(scores)

    served = graph(without_float64).get_concrete_function(tf.TensorSpec(scores.shape, tf.float32))
    operations = served.graph.as_graph_def()
    every = [*operations.node, *(node for function in operations.library.function for node in function.node_def)]
    assert not any(a.type == tf.float64.as_datatype_enum for node in every for a in node.attr.values())
    wanted = everything(tf.constant(scores))
    compiled = tf.function(everything, autograph=False, jit_compile=True)
    for found in (compiled(tf.constant(scores)), served(tf.constant(scores))):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_crf_is_saved_with_its_constraints(rng: np.random.Generator, tmp_path: Any) -> None:
    crf, scores, mask, _, _ = example("bioes", rng, "float32")
    inputs = keras.Input([None, crf.num_tags])
    model = keras.Model(inputs, crf(inputs))
    model.save(tmp_path / "crf.keras")
    again = keras.models.load_model(tmp_path / "crf.keras")
    scores = np.where(mask[..., None], scores, 0.0)
    assert again.layers[-1].allowed == crf.allowed and len(again.trainable_weights) == 3
    np.testing.assert_array_equal(again(scores), model(scores))


def test_weights_are_float32_under_mixed_precision() -> None:
    crf = CRF(3, dtype=None)
    assert {w.dtype for w in crf.weights} == {"float32"}
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        crf = CRF(3)
        assert {w.dtype for w in crf.weights} == {"float32"}
        assert crf.log_prob(tf.zeros([1, 2, 3], tf.bfloat16), [[0, 1]]).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_errors_are_clear() -> None:
    with pytest.raises(ValueError, match="`num_tags` must be a whole number of at least 1"):
        CRF(0)
    with pytest.raises(ValueError, match="`allowed` must be .* K = 3; .*another tag list"):
        CRF(3, schemes.constraints(["O", "B-x"], "bio"))
    with pytest.raises(ValueError, match="`scores` must have shape .* K = 3"):
        CRF(3).marginals(np.zeros((1, 2, 4)))
    with pytest.raises(ValueError, match="`num` must be a whole number of at least 1"):
        CRF(3).n_best(np.zeros((1, 2, 3)), None, 0)
