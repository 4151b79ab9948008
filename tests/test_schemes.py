"""Schemes against a definition of legality by enumeration, and against seqeval on illegal sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tfseq import schemes

TYPES = ("x", "y")
TAGS = {scheme: ["O", *(f"{p}-{t}" for t in TYPES for p in schemes._PREFIXES[scheme])] for scheme in schemes.SCHEMES}


def every_set_of_entities(num_tokens: int) -> list[list[tuple[str, int, int]]]:
    """All sets of entities of the types that do not overlap."""
    if num_tokens == 0:
        return [[]]
    found = list(every_set_of_entities(num_tokens - 1))  # the last token is outside
    for start in range(num_tokens):
        found += [[*rest, (kind, start, num_tokens)] for rest in every_set_of_entities(start) for kind in TYPES]
    return found


def written(spans: list[tuple[str, int, int]], num_tokens: int, scheme: str) -> tuple[str, ...]:
    """The tags of entities, token by token, from what each paper says of its scheme."""
    tags = []
    for i in range(num_tokens):
        inside = [s for s in spans if s[1] <= i < s[2]]
        if not inside:
            tags.append("O")
            continue
        kind, start, stop = inside[0]
        if scheme == "bio":
            prefix = "B" if i == start else "I"
        elif scheme == "iob1":
            prefix = "B" if i == start and any(other == kind and end == start for other, _, end in spans) else "I"
        else:
            prefix = "S" if stop - start == 1 else "B" if i == start else "E" if i == stop - 1 else "I"
        tags.append(f"{prefix}-{kind}")
    return tuple(tags)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("num_tokens", range(5))
def test_what_is_legal_is_what_some_set_of_entities_is_written_as(scheme: str, num_tokens: int) -> None:
    legal = {written(spans, num_tokens, scheme): sorted(spans, key=lambda s: s[1]) for spans in every_set_of_entities(num_tokens)}
    start, transition, end = schemes.constraints(TAGS[scheme], scheme)
    for path in itertools.product(range(len(TAGS[scheme])), repeat=num_tokens):
        tags = [TAGS[scheme][k] for k in path]
        allowed = all(transition[i, j] for i, j in itertools.pairwise(path))
        allowed = allowed and (not path or bool(start[path[0]] and end[path[-1]]))
        assert allowed == (tuple(tags) in legal) == (not schemes.violations(tags, scheme))
        mended = schemes.repair(tags, scheme)
        assert tuple(mended) in legal and schemes.entities(mended, scheme) == schemes.entities(tags, scheme)
        if allowed:
            assert mended == tags and schemes.entities(tags, scheme) == legal[tuple(tags)]
            for target in schemes.SCHEMES:
                assert tuple(schemes.convert(tags, scheme, target)) == written(legal[tuple(tags)], num_tokens, target)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_entities_are_those_of_seqeval_illegal_sequences_included(scheme: str, rng: np.random.Generator) -> None:
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling", reason="seqeval is not installed")
    sequences = [list(rng.choice(TAGS[scheme], n)) for n in rng.integers(0, 9, 500)]
    for tags in [[str(t) for t in s] for s in sequences]:
        wanted = [(kind, start, stop + 1) for kind, start, stop in labeling.get_entities(tags)]
        assert schemes.entities(tags, scheme) == wanted


@pytest.mark.parametrize(
    ("tags", "scheme", "mended", "places"),
    [
        ("O I-x I-x I-y", "bio", "O B-x I-x B-y", [1, 3]),
        ("B-x I-y B-y B-y", "iob1", "I-x I-y B-y B-y", [0]),
        ("B-x O I-y E-y B-x", "bioes", "S-x O B-y E-y S-x", [1, 2, 4]),
        ("", "bio", "", []),
    ],
)
def test_violations_are_named_and_mended(tags: str, scheme: str, mended: str, places: list[int]) -> None:
    assert schemes.violations(tags.split(), scheme) == places
    assert schemes.repair(tags.split(), scheme) == mended.split()


@pytest.mark.parametrize(
    ("tags", "sequences", "scheme"),
    [
        ("O B-x I-x", [], "bio"),
        ("O B-x", [], "bio"),
        ("O I-x", [], "iob1"),
        ("O B-x I-x", ["O I-x B-x"], "iob1"),
        ("O B-x I-x", ["O B-x I-x"], "bio"),
        ("O B-x I-x", ["I-x O", "B-x O"], "bio"),  # legal as neither
        ("O B-x I-x E-x S-x", [], "bioes"),
        ("O S-x", [], "bioes"),
        ("NOUN VERB X", [], None),
        ("O B-x NOUN", [], None),
        ("B- O", [], None),
        ("O", [], None),
        ("", [], None),
    ],
)
def test_the_scheme_of_a_tag_set(tags: str, sequences: list[str], scheme: str | None) -> None:
    assert schemes.scheme_of(tags.split(), [s.split() for s in sequences]) == scheme


def test_a_type_may_hold_hyphens() -> None:
    assert schemes.entities(["B-geo-loc", "I-geo-loc", "I-loc"], "bio") == [("geo-loc", 0, 2), ("loc", 2, 3)]


def test_tables_of_a_tag_list() -> None:
    found = schemes.tables(["O", "B-y", "I-y", "I-x"], "bio")
    assert found.names == ("x", "y") and found.kinds.tolist() == [-1, 1, 1, 0]
    assert np.argwhere(found.continues).tolist() == [[1, 2], [2, 2], [3, 3]]


def test_errors_are_clear() -> None:
    with pytest.raises(ValueError, match="`scheme` must be one of .*Did you mean 'bioes'"):
        schemes.entities(["O"], "bioe")
    with pytest.raises(ValueError, match="`scheme` must be one of"):
        schemes.encode([], 0, "iob")
    with pytest.raises(ValueError, match="`tags` must be 'O' or of the form 'B-type', 'I-type' .*received 'E-x'. Are they"):
        schemes.constraints(["O", "E-x"], "bio")
    for spans in ([("x", 0, 2), ("y", 1, 3)], [("x", 2, 2)], [("x", 3, 5)]):
        with pytest.raises(ValueError, match="`spans` must not be empty, overlap, or leave the 4 tokens"):
            schemes.encode(spans, 4, "bio")
