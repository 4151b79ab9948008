"""Text in the graph: tokens by hand, the inverse of joining, and a graph that another process runs without this library."""

import json
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfseq.layers.text import Text, as_texts, count_tokens, learn_pieces, tokenize, vocabulary_of

WORDS = {
    "I don't like the U.S., Merkel's 3.5% e-mail.": "I do n't like the U.S. , Merkel 's 3.5 % e-mail .",
    "She isn\u2019t Europe\u2019s O'Neill; we'll see (maybe)!": "She is n\u2019t Europe \u2019s O'Neill ; we 'll see ( maybe ) !",
    'Mr. Smith: "Hi there." He left...': 'Mr. Smith : " Hi there . " He left ...',
    "Visit https://x.com/a?b=1. @bob's #tag a_b@c.org": "Visit https://x.com/a?b=1 . @bob 's #tag a_b@c.org",
    "$1,000.50 at 10:30 a.m. by AT&T--OK": "$ 1,000.50 at 10:30 a.m. by AT&T -- OK",
    "didn't've won't 1996-08-22 v3.5": "did n't 've wo n't 1996-08-22 v3.5",
    "東京は2020年に首都です。「コーヒー」": "東 京 は 2020 年 に 首 都 で す 。 「 コ ー ヒ ー 」",
    "Ünï übersät\u00a0z.B. caf\u0065\u0301 «oui»": "Ünï übersät z.B. cafe\u0301 « oui »",
    "ok❤️👍🏽🇩🇪🇯🇵 👩\u200d👧 €5": "ok ❤️ 👍🏽 🇩🇪 🇯🇵 👩\u200d👧 € 5",
    "में 한국어 \u0645\u06cc\u200c\u062e\u060c \u0645\u061f": "में 한국어 \u0645\u06cc\u200c\u062e \u060c \u0645 \u061f",
}
SENTENCES = [
    "I don't like the U.S., Merkel's 3.5% e-mail.",
    'He said: "It (the EU) isn\'t mine!" He left...',
    "東京は2020年に、日本の首都です。「コーヒー」を飲む…",
    "We'll pay $5 at O'Neill's; that's all.",
]
PIECES = ["un", "##aff", "##able", "##a", "a", "##ff", "東"]


def rows(tokens: tf.Tensor, mask: tf.Tensor) -> list[list[str]]:
    """Tokens as lists, after a look at the padding."""
    tokens, mask = tokens.numpy(), mask.numpy()
    assert (tokens[~mask] == b"").all() and (tokens[mask] != b"").all()
    assert (np.sort(~mask, 1) == ~mask).all()  # padding is on the right
    return [[token.decode() for token in row[keep]] for row, keep in zip(tokens, mask, strict=True)]


@pytest.mark.parametrize("text", WORDS, ids=range(len(WORDS)))
def test_words_are_those_of_the_treebank(text: str) -> None:
    assert rows(*tokenize(text)) == [WORDS[text].split(" ")]


@pytest.mark.parametrize("text", SENTENCES, ids=range(len(SENTENCES)))
def test_words_joined_are_the_sentence(text: str) -> None:
    layer = Text(["a"])
    assert layer.join(*layer.tokenize(text)).numpy()[0].decode() == text


@pytest.mark.parametrize("text", WORDS, ids=range(len(WORDS)))
def test_joined_words_have_the_same_words(text: str) -> None:
    layer = Text(["a"])
    tokens, mask = layer.tokenize(text)
    assert rows(*layer.tokenize(layer.join(tokens, mask))) == rows(tokens, mask)


def test_words_lose_nothing_but_what_separates_them(rng: np.random.Generator, capfd: pytest.CaptureFixture) -> None:
    ranges = [(32, 127), (32, 127), (0, 0x250), (0x370, 0x3100), (0x4E00, 0x4F00), (0xFF00, 0xFFF0), (0x1F1E6, 0x1FA00)]
    drawn = [rng.integers(*ranges[rng.integers(len(ranges))], 40) for _ in range(500)]
    texts = ["".join(map(chr, rng.permutation(np.concatenate([drawn[i], drawn[i - 1]])))) for i in range(500)]
    joiners = "\xad\u200c\u200d"  # stay within a word
    for text, tokens in zip(texts, rows(*tokenize(texts)), strict=True):
        category = unicodedata.category
        kept = [c for c in text if c in joiners or not (category(c)[0] == "Z" or category(c) in ("Cc", "Cf"))]
        assert "".join(tokens) == "".join(kept)
    assert "out of memory" not in capfd.readouterr().err  # of RE2, whose automaton would be a hundred times slower without room


@pytest.mark.parametrize("unit", ["words", "characters", "subwords"])
def test_a_text_has_the_same_tokens_alone_in_a_batch_and_in_a_graph(unit: str) -> None:
    layer = Text(PIECES, unit)
    texts = ["", *SENTENCES, "unaffable", "\n "]
    run = tf.function(lambda text: (*layer.tokenize(text), *layer(text)), input_signature=[tf.TensorSpec([None], tf.string)])
    tokens, mask, ids, ids_mask = run(tf.constant(texts))
    together = rows(tokens, mask)
    assert together == [rows(*layer.tokenize(text))[0] for text in texts]
    assert together[0] == [] and (together[-1] == ["\n", " "] if unit == "characters" else together[-1] == [])
    np.testing.assert_array_equal(mask, ids_mask)
    np.testing.assert_array_equal(ids, layer.to_ids(tokens))
    assert ids.dtype == tf.int32 and not ids.numpy()[~mask.numpy()].any()
    for some in ([], [""]):
        ids, mask = run(tf.constant(some, tf.string))[2:]
        assert ids.shape == mask.shape == (len(some), 1) and not mask.numpy().any()
        assert layer.join(layer.to_tokens(ids), mask).numpy().tolist() == [b""] * len(some)


def test_characters_are_code_points_and_joined_exactly() -> None:
    layer = Text(["a", "\n", "é", "👍"], "characters")
    text = "a\n é\t👍a  "
    tokens, mask = layer.tokenize(text)
    assert rows(tokens, mask) == [list(text)]
    assert layer.to_ids(tokens).numpy().tolist() == [[1, 2, 0, 3, 0, 4, 1, 0, 0]]
    assert layer.join(tokens, mask).numpy()[0].decode() == text


@pytest.mark.parametrize("unit", ["words", "characters", "subwords"])
def test_bytes_that_are_not_utf8_become_the_replacement_character(unit: str) -> None:
    layer = Text(PIECES, unit)
    joined = layer.join(*layer.tokenize([b"ab\xff", "\ud800", b"a\x00b"])).numpy()
    assert joined[0].decode().replace(" ", "") == "ab\ufffd"
    assert set(joined[1].decode().replace(" ", "")) == {"\ufffd"}


def test_ids_of_known_and_unknown_tokens() -> None:
    layer = Text(["the", "cat"])
    ids, _ = layer(["the cat The"])
    assert ids.numpy().tolist() == [[1, 2, 0]] and layer.size == 3 and layer.vocabulary == ["the", "cat"]
    tokens = layer.to_tokens([[1, 2, 0], [-1, 3, 2**31 - 1]])
    assert tokens.numpy().tolist() == [[b"the", b"cat", b"[UNK]"], [b"[UNK]"] * 3]
    every = tf.range(layer.size)
    np.testing.assert_array_equal(layer.to_ids(layer.to_tokens(every)), every)


def test_lower_case_is_for_looking_up() -> None:
    layer = Text(["über", "cat"], lowercase=True)
    tokens, _ = layer.tokenize("Über CAT")
    assert tokens.numpy()[0, 1] == b"CAT" and layer.to_ids(tokens).numpy().tolist() == [[1, 2]]
    assert Text(PIECES, "subwords", lowercase=True)("UNAFFable")[0].numpy().tolist() == [[1, 2, 3]]


def longest_match(word: str, vocabulary: list[str]) -> list[str]:
    """Greedy pieces of one word, slowly."""
    pieces, start = [], 0
    while start < len(word):
        candidates = [("##" if start else "") + word[start:end] for end in range(len(word), start, -1)]
        pieces.append(next((c for c in candidates if c in vocabulary), candidates[-1]))
        start += len(pieces[-1]) - 2 * (start > 0)
    return pieces


def test_pieces_are_the_longest_of_the_vocabulary(rng: np.random.Generator) -> None:
    layer = Text(PIECES, "subwords")
    words = ["unaffable", "unaffaz", "zu", "東京"] + ["".join(rng.choice(list("unafble"), 6)) for _ in range(20)]
    wanted = [
        piece for word in words for whole in ("東京" if word == "東京" else [word]) for piece in longest_match(whole, PIECES)
    ]
    tokens, mask = layer.tokenize(" ".join(words))
    assert rows(tokens, mask) == [wanted]
    assert layer.to_ids(tokens).numpy()[0].tolist() == [1 + PIECES.index(p) if p in PIECES else 0 for p in wanted]
    assert layer.join(tokens, mask).numpy()[0].decode() == " ".join(words)


def test_learned_pieces_join_to_the_text_and_are_merged_by_frequency() -> None:
    assert learn_pieces({"low": 5, "lowest": 2, "newer": 6, "wider": 3}, 12)[-1] == "##er"  # 9 times; "lo" stands 7 times
    # every merge counted anew, as the paper states it
    counts = {"low": 5, "lowest": 2, "newer": 6, "wider": 3, "banana": 4, "nana": 3}
    words = {word: [("##" if i else "") + c for i, c in enumerate(word)] for word in counts}
    letters = Counter(piece for word, n in counts.items() for piece in words[word] * n)
    learned = dict.fromkeys(sorted(letters, key=lambda p: (-letters[p], p)))
    while True:
        pairs: Counter = Counter()
        for word, n in counts.items():
            for pair in zip(words[word], words[word][1:], strict=False):
                pairs[pair] += n
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned[best[0] + best[1][2:]] = None
        for pieces in words.values():
            for i in range(len(pieces) - 1, 0, -1):
                if (pieces[i - 1], pieces[i]) == best:
                    pieces[i - 1 : i + 1] = [best[0] + best[1][2:]]
    assert learn_pieces(counts, 1000) == list(learned)
    assert learn_pieces(counts, 20) == list(learned)[:20]
    layer = Text(learn_pieces(count_tokens([tokenize(SENTENCES)[0].numpy()]), 80), "subwords")
    joined = layer.join(*layer.tokenize(SENTENCES))
    assert [text.decode() for text in joined.numpy()] == SENTENCES


def test_the_vocabulary_is_ordered_by_frequency_then_alphabet() -> None:
    sequences = [np.array(["b", "a", "c", ""]), np.array([b"c", b"B", b"d"]), np.array(["c"], object)]
    assert vocabulary_of(sequences) == ["c", "B", "a", "b", "d"]
    assert vocabulary_of(sequences, lowercase=True, min_count=2) == ["c", "b"]
    assert vocabulary_of(sequences, max_size=2) == ["c", "B"]


@pytest.mark.parametrize(
    "value", ["ab", b"ab", np.str_("ab"), ["ab"], np.array("ab"), np.array(["ab"]), np.array([b"ab"], object)]
)
def test_what_is_taken_for_texts(value: object) -> None:
    for given in (value, tf.constant(value)):
        assert as_texts(given, "text").numpy().tolist() == [b"ab"]
    assert Text(["ab"])(value)[0].numpy().tolist() == [[1]]


@pytest.mark.parametrize(
    "value", [3, None, [1, 2], np.zeros(2), [["a"]], np.array([["a"]]), tf.constant([1]), tf.constant([["a"]]), ["a", None]]
)
def test_what_is_no_text_is_named(value: object) -> None:
    with pytest.raises(ValueError, match="`prompt` must be a text or a list of texts.*received"):
        as_texts(value, "prompt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": ["a", "b", "a"]}, r"once; received \['a'\]"),
        ({"vocabulary": ["a", ""]}, "not empty; received ''"),
        ({"vocabulary": ["a", 3]}, "received 3"),
        ({"vocabulary": []}, "at least one"),
        ({"vocabulary": "abc"}, "single string 'abc'"),
        ({"vocabulary": ["A"], "lowercase": True}, r"lower case; received \['A'\]"),
        ({"vocabulary": ["a"], "unit": "word"}, "`unit` must be one of.*Did you mean 'words'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text(**arguments)


@keras.saving.register_keras_serializable("tfseq_tests")
class Counts(keras.Model):
    """A model with text inside: how often each id stands in a text."""

    def __init__(self, text: Text, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.text = text
        self.scale = self.add_weight(shape=(text.size,), initializer="ones", name="scale")
        self.built = True

    def call(self, text: tf.Tensor) -> tf.Tensor:
        ids, mask = self.text(text)
        return tf.einsum("bt,btv->bv", tf.cast(mask, tf.float32), tf.one_hot(ids, self.text.size)) * self.scale

    def get_config(self) -> dict:
        return {"text": keras.saving.serialize_keras_object(self.text)}

    @classmethod
    def from_config(cls, config: dict) -> "Counts":
        return cls(keras.saving.deserialize_keras_object(config["text"]))


@pytest.mark.parametrize("unit", ["words", "characters", "subwords"])
def test_a_model_with_text_is_saved_with_its_vocabulary(unit: str, tmp_path: Path) -> None:
    model = Counts(Text([*PIECES, "I", "do"], unit))
    model.scale.assign(np.arange(model.text.size))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.text.vocabulary == model.text.vocabulary and again.text.unit == unit
    texts = tf.constant(SENTENCES)
    np.testing.assert_array_equal(again(texts), model(texts))


RELOAD = """
import json, sys
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
text = tf.constant(json.loads(sys.argv[2]))
out = {}
for unit in ("words", "characters", "subwords"):
    one = model.signatures[unit](text=text)
    joined = [text.decode() for text in one["joined"].numpy()]
    known = [[token.decode() for token in row] for row in one["known"].numpy()]
    out[unit] = {"ids": one["ids"].numpy().tolist(), "joined": joined, "known": known}
print(json.dumps(out))
"""


def served(layer: Text) -> Callable[[tf.Tensor], dict]:
    """What is exported of a layer: every direction."""

    def run(text: tf.Tensor) -> dict:
        tokens, mask = layer.tokenize(text)
        return {"ids": layer.to_ids(tokens), "joined": layer.join(tokens, mask), "known": layer.to_tokens(layer(text)[0])}

    return run


def test_another_process_runs_the_exported_graph_without_this_library(tmp_path: Path) -> None:
    layers = {unit: Text(PIECES, unit) for unit in ("words", "characters", "subwords")}
    archive = keras.export.ExportArchive()
    for unit, layer in layers.items():
        archive.track(layer)
        archive.add_endpoint(unit, served(layer), [tf.TensorSpec([None], tf.string, name="text")])
    archive.write_out(tmp_path / "export", verbose=False)
    texts = [*SENTENCES, "", "unaffable a"]
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "export"), json.dumps(texts)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for unit, layer in layers.items():
        wanted = served(layer)(tf.constant(texts))
        assert out[unit]["ids"] == wanted["ids"].numpy().tolist()
        assert out[unit]["joined"] == [text.decode() for text in wanted["joined"].numpy()]
        assert out[unit]["known"] == [[token.decode() for token in row] for row in wanted["known"].numpy()]
