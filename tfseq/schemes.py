"""Tagging schemes: how one tag a token says which spans are entities. BIO (IOB2), IOB1 and BIOES; plain Python and NumPy.

A tag is "O", outside, or a prefix and a type: "B-PER".

- `"bio"` (IOB2; Tjong Kim Sang and Veenstra 1999): B- begins every entity, I- continues one.
- `"iob1"` (Ramshaw and Marcus 1995): I- throughout; B- only where an entity follows another of its type without a gap.
- `"bioes"` (IOBES): B-, I- ..., E- for entities of two tokens or more, S- for those of one.

Illegal sequences mean what they do to conlleval (Tjong Kim Sang and Buchholz 2000) and to seqeval's default mode, in one rule for
all three: a token continues the entity of the token before where both have one type, the one before is B- or I-, and this one is
I- or E-; every other token that is not O begins an entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tfseq import checks

Scheme = Literal["bio", "iob1", "bioes"]
SCHEMES = ("bio", "iob1", "bioes")
_PREFIXES = {"bio": "BI", "iob1": "BI", "bioes": "BIES"}


class Tables(NamedTuple):
    """What K tags say of entities.

    Attributes:
        kinds: the type of each tag, a place in `names`, -1 outside, `[K]` int32.
        continues: whether the tag of the column goes on with the entity of the tag of the row, `[K, K]` bool.
        names: the types, sorted.
    """

    kinds: np.ndarray
    continues: np.ndarray
    names: tuple[str, ...]


def scheme_of(tags: Iterable[str], sequences: Iterable[Sequence[str]] = ()) -> Scheme | None:
    """The scheme that a set (or sequence) of tags belongs to; None where they are plain classes, such as parts of speech.

    Every tag must be "O" or of the form B-x, I-x, E-x, S-x, and one must be no "O". Then E- or S- says "bioes", and I- without
    any B- says "iob1", since in BIO every entity has a B-. A set with B- and I- may be either: "bio", unless `sequences`
    are all legal as IOB1 and not all as BIO.

    Args:
        tags: what occurs.
        sequences: tagged sentences, to tell BIO from IOB1.
    """
    prefixes = {_prefix(tag) for tag in tags}
    if None in prefixes or not prefixes - {"O"}:
        return None
    if prefixes & {"E", "S"}:
        return "bioes"
    if "B" not in prefixes:
        return "iob1"
    sequences = [list(sequence) for sequence in sequences]
    if any(violations(s, "bio") for s in sequences) and not any(violations(s, "iob1") for s in sequences):
        return "iob1"
    return "bio"


def _prefix(tag: str) -> str | None:
    """Of a tag "O" or "B-x": its first letter; None for what is no such tag."""
    if tag == "O":
        return "O"
    return tag[0] if len(tag) > 2 and tag[1] == "-" and tag[0] in "BIES" else None


def split(tag: str, scheme: str) -> tuple[str, str]:
    """(prefix, type) of a tag of the scheme; ("O", "") outside.

    Raises:
        ValueError: for an unknown scheme or a tag that is not of it.
    """
    checks.choice("scheme", scheme, SCHEMES)
    prefix = _prefix(tag)
    if prefix == "O":
        return "O", ""
    if prefix is None or prefix not in _PREFIXES[scheme]:
        forms = ", ".join(f"'{p}-type'" for p in _PREFIXES[scheme])
        raise ValueError(
            f"`tags` must be 'O' or of the form {forms} in the scheme {scheme!r}; received {tag!r}. "
            "Are they of another scheme (`scheme_of`), or plain classes?"
        )
    return prefix, tag[2:]


def may_begin(tag: str, scheme: str) -> bool:
    """Whether a legal sequence may begin with the tag."""
    prefix, _ = split(tag, scheme)
    return prefix in {"bio": "OB", "iob1": "OI", "bioes": "OBS"}[scheme]


def may_follow(before: str, tag: str, scheme: str) -> bool:
    """Whether in a legal sequence `tag` may stand right after `before`."""
    (first, kind), (second, other) = split(before, scheme), split(tag, scheme)
    if scheme == "bio":
        return second != "I" or (first in "BI" and kind == other)
    if scheme == "iob1":
        return second != "B" or (first in "BI" and kind == other)
    if first in "BI":
        return second in "IE" and kind == other
    return second in "OBS"


def may_end(tag: str, scheme: str) -> bool:
    """Whether a legal sequence may end with the tag."""
    prefix, _ = split(tag, scheme)
    return scheme != "bioes" or prefix in "OES"


def violations(tags: Sequence[str], scheme: str) -> list[int]:
    """Positions of tags that may not stand where they do: after the tag before, at the beginning, or at the end."""
    found = []
    for i, tag in enumerate(tags):
        legal = may_follow(tags[i - 1], tag, scheme) if i else may_begin(tag, scheme)
        if not legal or (i == len(tags) - 1 and not may_end(tag, scheme)):
            found.append(i)
    return found


def entities(tags: Sequence[str], scheme: str) -> list[tuple[str, int, int]]:
    """(type, start, stop) of each entity, stop exclusive, in the order of the text; illegal sequences as conlleval reads them."""
    found: list[tuple[str, int, int]] = []
    before = ("O", "")
    for i, tag in enumerate(tags):
        prefix, kind = split(tag, scheme)
        if prefix != "O":
            if _continues(before, (prefix, kind)):
                found[-1] = (kind, found[-1][1], i + 1)
            else:
                found.append((kind, i, i + 1))
        before = (prefix, kind)
    return found


def _continues(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Whether a token goes on with the entity of the token before (the rule of the module's docstring)."""
    return before[0] in "BI" and now[0] in "IE" and before[1] == now[1]


def encode(spans: Iterable[tuple[str, int, int]], num_tokens: int, scheme: str) -> list[str]:
    """The legal tags `[num_tokens]` of entities (type, start, stop) that do not overlap.

    Raises:
        ValueError: for an unknown scheme, or a span that is empty, outside the text, or overlaps the one before it.
    """
    checks.choice("scheme", scheme, SCHEMES)
    tags, end, last = ["O"] * num_tokens, 0, ""
    for kind, start, stop in sorted(spans, key=lambda span: span[1]):
        if not end <= start < stop <= num_tokens:
            raise ValueError(
                f"`spans` must not be empty, overlap, or leave the {num_tokens} tokens; received ({kind!r}, {start}, {stop}) "
                f"after one that stops at {end}. Is `stop` the last token in place of the one after it?"
            )
        first, inside, final = "B", "I", "I"
        if scheme == "iob1":
            first = "B" if kind == last and start == end else "I"
        elif scheme == "bioes":
            first, final = ("B", "E") if stop - start > 1 else ("S", "S")
        for i in range(start, stop):
            tags[i] = f"{first if i == start else final if i == stop - 1 else inside}-{kind}"
        end, last = stop, kind
    return tags


def convert(tags: Sequence[str], source: str, target: str) -> list[str]:
    """The legal tags of scheme `target` with the entities that `tags` have in scheme `source`."""
    return encode(entities(tags, source), len(tags), target)


def repair(tags: Sequence[str], scheme: str) -> list[str]:
    """The one legal sequence with the same entities: a legal one unchanged; in BIO an I-x that continues nothing becomes B-x."""
    return convert(tags, scheme, scheme)


def constraints(tags: Sequence[str], scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a legal sequence over K tags may do: begin with `[K]`, follow `[K, K]` (from, to), end with `[K]`, each bool."""
    start = np.array([may_begin(tag, scheme) for tag in tags], bool)
    transition = np.array([[may_follow(before, tag, scheme) for tag in tags] for before in tags], bool)
    end = np.array([may_end(tag, scheme) for tag in tags], bool)
    return start, transition.reshape(len(tags), len(tags)), end


def tables(tags: Sequence[str], scheme: str) -> Tables:
    """Entities of K tags for `ops/entities.py`, which reads them inside a graph (see `Tables`)."""
    parts = [split(tag, scheme) for tag in tags]
    names = tuple(sorted({kind for prefix, kind in parts if prefix != "O"}))
    kinds = np.array([names.index(kind) if prefix != "O" else -1 for prefix, kind in parts], np.int32)
    continues = np.array([[_continues(before, now) for now in parts] for before in parts], bool)
    return Tables(kinds, continues.reshape(len(tags), len(tags)), names)
