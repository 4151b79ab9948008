"""Strings and ids inside the graph: what tokenises training data is what a served model runs, so the two cannot differ.

Core operations of TensorFlow only (regular expressions of RE2, static tables, UTF-8), so any server can load the graph.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.ops.masking import lengths_to_mask, mask_to_lengths

Unit = Literal["words", "characters", "subwords"]

UNKNOWN = "[UNK]"
END = "</s>"  # ends a text, where a model learns where texts end
CONTINUED = "##"  # begins a piece that goes on with a word

# Two passes, since RE2 compiles a class of letters of all scripts into thousands of states. The first sets apart what is written
# without spaces, and all punctuation outside ASCII but for what may stand inside a word; to the second the rest are letters.
_INSIDE = r"\x{B7}\x{2010}\x{2011}\x{2019}"  # a middle dot, hyphens, an apostrophe
_KANJI_KANA = r"\p{Han}\p{Hiragana}\p{Katakana}\x{3006}\x{30FC}\x{FF70}\x{FF9E}\x{FF9F}"
_SYMBOL = r"[^\PS\x00-\x7F][\pM\x{1F3FB}-\x{1F3FF}]*"  # S outside ASCII, with skin tones and variants
_APART = (
    rf"([\x{{1F1E6}}-\x{{1F1FF}}]{{2}}|{_SYMBOL}(?:\x{{200D}}{_SYMBOL})*|[{_KANJI_KANA}]\pM*|[^\PP\x00-\x7F{_INSIDE}]\pM*)|"
    r"[\pZ\p{Cc}]|[^\P{Cf}\xAD\x{200C}\x{200D}]"
)
_LETTER = rf"[^\x00-/:-@\[-^`{{-\x7F{_INSIDE}]"
_PART = rf"(?:{_LETTER}*\d(?:[.,:/]\d+)+{_LETTER}*|{_LETTER}+)"  # 3.5kg, 10:30, word
_WORD = rf"{_PART}(?:[-'&{_INSIDE}]{_PART})*"  # e-mail, O'Neill, AT&T
_CLITIC = r"(?i:n['\x{2019}]t|['\x{2019}](?:s|m|d|re|ve|ll))"
_ABBREVIATION = r"(?:[A-Za-z\x{C0}-\x{24F}\x{370}-\x{52F}]\.){2,}"  # U.S., z.B.
_SHORTENED = (
    r"(?:[A-HJ-Z]|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Gen|Gov|Sen|Rep|Lt|Col|Capt|Sgt|Rev|Inc|Corp|Ltd|Co|Bros|vs|etc|"
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\."
)
_ADDRESS = (
    r"(?:(?:https?|ftp)://|www\.)[!-~]*[A-Za-z0-9/=&#_~-]|[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|"
    r"(?:[A-Za-z0-9-]+\.)+(?:com|org|net|edu|gov)\b"
)
# the first alternative that matches is taken: a word and its clitic, or one token
_TOKENS = (
    rf"((?U:{_WORD})|{_ABBREVIATION})({_CLITIC})\b|"
    rf"({_ADDRESS}|{_ABBREVIATION}|{_SHORTENED}|[@#]{_LETTER}+|{_WORD}|{_CLITIC}\b|\.\.+|--+|``|''|\S)"
)
_CJK = (
    rf"[{_KANJI_KANA}\x{{3001}}-\x{{303F}}\x{{30FB}}\x{{FF01}}-\x{{FF0F}}\x{{FF1A}}-\x{{FF20}}\x{{FF3B}}-\x{{FF40}}\x{{FF5B}}-\x{{FF65}}]"
    r"\pM*"
)
_CLOSES = rf"[,.;:!?%\)\]}}»”…]|\.\.+|''|{_CLITIC}"
_OPENS = r"[(\[{«“\x{2018}¿¡$£€¥]|``"


@keras.saving.register_keras_serializable("tfseq")
class Text(keras.layers.Layer):
    """Text `[B]` string -> ids `[B, T]` int32 and mask `[B, T]`, in the graph; id 0 is unknown, 1 .. V - 1 the vocabulary.

    - `"words"`: much as in the Penn treebank (MacIntyre 1995, tokenizer.sed): punctuation apart, `do` `n't`, `Merkel` `'s`;
      numbers, abbreviations, addresses, @user and #tag whole; each Kanji and Kana is a token.
    - `"characters"`: code points, white space too.
    - `"subwords"`: each word by the longest piece of the vocabulary, from its left (WordPiece; Wu et al. 2016, sec. 4.1);
      pieces that go on with a word begin with `##`. A character without a piece is a token of its own, and unknown.

    Args:
        vocabulary: distinct tokens, see `vocabulary_of` and `learn_pieces`.
        unit: what a token is.
        lowercase: look tokens up in lower case. Words and characters keep theirs for `tokenize`, pieces do not.

    Raises:
        ValueError: a vocabulary that repeats a token, holds an empty one or, with `lowercase`, one that is not in lower case.
    """

    def __init__(self, vocabulary: Sequence[str], unit: Unit = "words", lowercase: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.choice("unit", unit, ["words", "characters", "subwords"])
        words = check_distinct("vocabulary", vocabulary)
        if lowercase and (upper := [word for word in words if word != word.lower()]):
            raise ValueError(
                f"With `lowercase`, `vocabulary` must be in lower case; received {upper[:5]}, which no text could match. "
                "Was it made with `vocabulary_of(..., lowercase=True)`?"
            )
        self.unit, self.lowercase, self.size = unit, lowercase, 1 + len(words)
        self._allow_non_tensor_positional_args, self._convert_input_args = True, False  # of Keras: `call` takes strings
        self._longest = max((len(word.removeprefix(CONTINUED)) for word in words), default=1)
        with tf.init_scope():
            self._table = static_table(words, np.arange(1, self.size))
            self._tokens = tf.constant([UNKNOWN, *words])
        self.built = True

    @property
    def vocabulary(self) -> list[str]:
        """Tokens of the ids 1 .. V - 1."""
        return [token.decode() for token in self._tokens.numpy()[1:]]

    def call(self, text: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Text `[B]` -> ids `[B, T]` int32, 0 where padded or unknown, and mask `[B, T]` bool."""
        tokens, mask = self.tokenize(text)
        return self.to_ids(tokens), mask

    def tokenize(self, text: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Text `[B]` -> tokens `[B, T]` string, "" where padded, and mask `[B, T]` bool; T at least 1."""
        if self.unit != "subwords":
            return tokenize(text, self.unit)
        text = _valid(text)
        words = _words(tf.strings.lower(text, "utf-8") if self.lowercase else text)
        different, index = tf.unique(words.flat_values)
        pieces = words.with_flat_values(tf.gather(self._pieces(different), index))
        return _dense(tf.strings.split(tf.strings.reduce_join(pieces, -1, separator=" ")))

    def to_ids(self, tokens: tf.Tensor) -> tf.Tensor:
        """Tokens `[...]` string -> ids `[...]` int32."""
        tokens = tf.convert_to_tensor(tokens, tf.string)
        return tf.cast(self._table.lookup(tf.strings.lower(tokens, "utf-8") if self.lowercase else tokens), tf.int32)

    def to_tokens(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids `[...]` int -> tokens `[...]` string, `[UNK]` for 0 and for what is no id."""
        ids = tf.convert_to_tensor(ids)
        return tf.gather(self._tokens, tf.where((ids >= 0) & (ids < self.size), ids, tf.zeros_like(ids)))

    def join(self, tokens: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Tokens and mask `[B, T]` -> text `[B]`: the inverse of `tokenize` up to white space, for characters exact.

        A first piece that goes on with a word keeps its mark, "##": the word stands before.
        """
        tokens = tf.where(mask, tokens, "")
        if self.unit == "characters":
            return tf.strings.reduce_join(tokens, 1)
        if self.unit == "subwords":
            pieces = tf.strings.reduce_join(tokens, 1, separator=" ")
            tokens, mask = _dense(tf.strings.split(tf.strings.regex_replace(pieces, " " + CONTINUED, "")))
        quote = tf.equal(tokens, '"')
        opening = tf.cumsum(tf.cast(quote, tf.int32), 1) % 2 == 1  # straight quotes come in pairs
        closes = tf.strings.regex_full_match(tokens, _CLOSES) | (quote & ~opening)
        opens = tf.strings.regex_full_match(tokens, _OPENS) | (quote & opening)
        cjk = tf.strings.regex_full_match(tokens, _CJK)
        dense = cjk | tf.strings.regex_full_match(tokens, r"\d[\d.,:/]*")  # numbers stand between Kanji without spaces, too
        written_on = (cjk[:, 1:] & dense[:, :-1]) | (dense[:, 1:] & cjk[:, :-1])
        glued = closes[:, 1:] | opens[:, :-1] | written_on | ~mask[:, 1:]
        gaps = tf.pad(tf.where(glued, "", " "), [[0, 0], [1, 0]], constant_values="")
        return tf.strings.reduce_join(gaps + tokens, 1)

    def write(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids `[B, T]`, negative after the end of a row -> text `[B]`."""
        return self.join(self.to_tokens(ids), ids >= 0)

    def _pieces(self, words: tf.Tensor) -> tf.Tensor:
        """Words `[N]` -> their pieces `[N]`, with spaces between; all words advance by a piece at a time."""
        lengths = tf.strings.length(words, "UTF8_CHAR")
        sizes = tf.range(1, self._longest + 1)

        def advance(start: tf.Tensor, done: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            left = lengths - start
            begin = tf.repeat(tf.maximum(tf.minimum(start, lengths - 1), 0)[:, None], self._longest, 1)
            size = tf.repeat(sizes[None], tf.shape(words)[0], 0)
            candidates = tf.strings.substr(tf.repeat(words[:, None], self._longest, 1), begin, size, "UTF8_CHAR")
            candidates = tf.where(start > 0, CONTINUED, "")[:, None] + candidates
            known = (self._table.lookup(candidates) > 0) & (sizes <= left[:, None])
            best = tf.reduce_max(tf.where(known, sizes, 1), 1)
            piece = tf.gather(candidates, best - 1, batch_dims=1)
            return tf.minimum(start + best, lengths), done + tf.where(left > 0, " " + piece, "")

        start, done = tf.zeros_like(lengths), tf.zeros_like(words)
        return tf.while_loop(lambda start, done: tf.reduce_any(start < lengths), advance, (start, done))[1]


def static_table(keys: Sequence[Any], values: np.ndarray, default: int = 0) -> tf.lookup.StaticHashTable:
    """A table keys -> values int64 that a SavedModel carries; `default` for other keys."""
    try:
        keys = tf.constant(keys, tf.string if isinstance(keys[0], str) else tf.int64)
    except ValueError as error:
        raise ValueError("`vocabulary` and classes must be Unicode; a string of them has half of a surrogate pair.") from error
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, tf.constant(values, tf.int64)), default)


def tokenize(text: Any, unit: Unit = "words") -> tuple[tf.Tensor, tf.Tensor]:
    """Text `[B]` -> tokens `[B, T]` and mask, as `Text.tokenize` for units that need no vocabulary: words and characters."""
    checks.choice("unit", unit, ["words", "characters"])
    return _dense(_words(_valid(text)) if unit == "words" else tf.strings.unicode_split(_valid(text), "UTF-8"))


def append_end(tokens: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens and mask `[B, T]` -> the same of T + 1 steps, each row with `END` after its last token."""
    lengths = mask_to_lengths(mask)
    tokens = tf.pad(tokens, [[0, 0], [0, 1]])
    num_steps = tf.shape(tokens)[1]
    return tf.where(tf.range(num_steps) == lengths[:, None], END, tokens), lengths_to_mask(lengths + 1, num_steps)


def with_end(rows: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Arrays of tokens `[T_i]`, each with `END` as its last, where it is not already."""
    return [row if len(row) and row[-1] == END else np.append(row, END) for row in rows]


def _valid(text: Any) -> tf.Tensor:
    """Text `[B]` in UTF-8, U+FFFD for bytes that are not."""
    return tf.strings.unicode_transcode(as_texts(text, "text"), "UTF-8", "UTF-8", errors="replace")


def _words(text: tf.Tensor) -> tf.RaggedTensor:
    """Text `[B]` in UTF-8 -> words `[B, (T)]`: tokens are set apart, then spaces split."""
    return tf.strings.split(tf.strings.regex_replace(tf.strings.regex_replace(text, _APART, r" \1 "), _TOKENS, r" \1 \2\3 "))


def _dense(tokens: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens `[B, (T)]` -> `[B, T]` padded with "", and their mask; T at least 1."""
    lengths = tf.cast(tokens.row_lengths(), tf.int32)
    num_steps = tf.maximum(tf.reduce_max(lengths), 1)
    dense = tokens.to_tensor("", shape=tf.stack([tf.size(lengths), num_steps]))
    return tf.ensure_shape(dense, [None, None]), tf.sequence_mask(lengths, num_steps)


def check_distinct(name: str, values: Sequence[str]) -> list[str]:
    """`values` as a list of distinct strings, at least one and none empty; raises ValueError otherwise."""
    if isinstance(values, str | bytes):
        raise ValueError(f"`{name}` must be a sequence of strings; received the single string {values!r:.60}.")
    values = list(values)
    if not values:
        raise ValueError(f"`{name}` must hold at least one string; received none. Was the data empty?")
    if wrong := [value for value in values if not isinstance(value, str) or not value]:
        raise ValueError(f"`{name}` must hold strings that are not empty; received {wrong[0]!r}. Padding needs no entry.")
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"`{name}` must hold each token once; received {repeated[:5]} more than once.")
    return [str(value) for value in values]


def as_texts(value: Any, name: str) -> tf.Tensor:
    """What users pass as texts (a str, bytes, a list or an array of these, a string tensor) -> tensor `[B]` string.

    Raises:
        ValueError: numbers, None, or more than one axis.
    """
    rule = f"`{name}` must be a text or a list of texts, one string a row"
    if tf.is_tensor(value):
        if value.dtype != tf.string or isinstance(value, tf.RaggedTensor):
            raise ValueError(f"{rule}; received a {type(value).__name__} of {value.dtype.name}. Are these ids?")
        if value.shape.rank not in (0, 1, None):
            raise ValueError(f"{rule}; received shape {value.shape}. Are these tokens?")
        return tf.reshape(value, [-1])
    if isinstance(value, str | bytes):
        value = [value]
    try:
        rows = list(value.reshape(-1) if isinstance(value, np.ndarray) and not value.ndim else value)
    except TypeError:
        raise ValueError(f"{rule}; received {value!r:.60}.") from None
    for index, row in enumerate(rows):
        if not isinstance(row, str | bytes):
            kind = type(row).__name__
            raise ValueError(f"{rule}; received {row!r:.60} ({kind}) at index {index}. Are these ids, or tokens of sentences?")
    return tf.constant([row.encode("utf-8", "surrogatepass") if isinstance(row, str) else row for row in rows], tf.string)


def _decoded(token: Any) -> str:
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)


def count_tokens(sequences: Iterable[Any], lowercase: bool = False) -> Counter[str]:
    """How often each token stands in sequences `[T_i]` of strings; "" is padding and does not count."""
    counts: Counter[str] = Counter()
    for sequence in sequences:
        counts.update(np.asarray(sequence).reshape(-1).tolist())
    out: Counter[str] = Counter()
    for token, count in counts.items():
        word = _decoded(token)
        out[word.lower() if lowercase else word] += count
    out.pop("", None)
    return out


def vocabulary_of(
    sequences: Iterable[Any], *, max_size: int | None = None, min_count: int = 1, lowercase: bool = False
) -> list[str]:
    """Tokens of sequences `[T_i]` of strings, the most frequent first, then by the alphabet.

    Args:
        sequences: arrays of tokens.
        max_size: keep this many; all by default.
        min_count: keep tokens that stand there as often.
        lowercase: count them in lower case.
    """
    checks.at_least(1, min_count=min_count)
    if max_size is not None:
        checks.at_least(1, max_size=max_size)
    counts = count_tokens(sequences, lowercase)
    kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word))
    return kept[:max_size]


def learn_pieces(words_with_counts: Mapping[str, int] | Iterable[tuple[str, int]], size: int) -> list[str]:
    """The pieces for `unit="subwords"`: characters, then of the most frequent pair one, and so on; Sennrich et al. 2016, alg. 1.

    Args:
        words_with_counts: words and how often each stands in the data, as `count_tokens` gives.
        size: number of pieces at most; the rarest characters are left out where there are more. A pair seen once is not merged.
    """
    checks.at_least(1, size=size)
    counts = dict(words_with_counts)
    words = [[CONTINUED * (i > 0) + character for i, character in enumerate(word)] for word in counts]
    weights = list(counts.values())
    letters: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # the words that have, or had, a pair
    for index, (pieces, weight) in enumerate(zip(words, weights, strict=True)):
        for piece in pieces:
            letters[piece] += weight
        for pair in pairwise(pieces):
            pairs[pair] += weight
            places[pair].add(index)
    learned = dict.fromkeys(sorted(letters, key=lambda piece: (-letters[piece], piece))[:size])
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(learned) < size:
        count, best = heapq.heappop(heap)
        if pairs[best] != -count:  # the heap holds older counts of a pair, too
            continue
        if count > -2:
            break
        new = best[0] + best[1].removeprefix(CONTINUED)
        learned[new] = None
        changed = set()
        for index in places.pop(best):
            for pair in pairwise(words[index]):
                pairs[pair] -= weights[index]
                changed.add(pair)
            words[index] = _merged(words[index], best, new)
            for pair in pairwise(words[index]):
                pairs[pair] += weights[index]
                places[pair].add(index)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(heap, (-pairs[pair], pair))
    return list(learned)


def _merged(pieces: list[str], pair: tuple[str, str], new: str) -> list[str]:
    """`pieces` with `new` where the pair stood, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] = new
        else:
            out.append(piece)
    return out
