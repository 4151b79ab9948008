"""Sequence tagger: a label for each token, or a transcription, by a recurrent network with a softmax, CRF or CTC head.

The network: e_t = [embedding of token t, features of its characters], h = stack(e) with each layer in both directions, scores
s_t = W h_t + b. The head makes of scores:

- softmax: p(y | x) = prod_t softmax(s_t)[y_t];
- CRF (Lafferty et al. 2001; Huang et al. 2015; Lample et al. 2016): p(y | x) of the whole sequence, see `layers/crf.py`;
- CTC (Graves et al. 2006): p(symbols | x) where nothing says which step a symbol belongs to, see `layers/ctc.py`.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks, schemes
from tfseq.layers import ctc
from tfseq.layers.crf import CRF, Ranking
from tfseq.layers.recurrent import Cell, RecurrentStack
from tfseq.layers.text import tokenize
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, graph
from tfseq.models.reader import UNKNOWN_LABEL, Reader, classes_of, is_text, tokens_of
from tfseq.ops import entities
from tfseq.ops.masking import fill, lengths_to_mask, mask_to_lengths


class Tags(NamedTuple):
    """The tags of each token `[B, T]` int32, -1 at padded steps, and the probability of each, `[B, T]`, 0 there."""

    tags: tf.Tensor
    score: tf.Tensor


class Entity(NamedTuple):
    """An entity: its type, its first token and the one after its last, and the probability of exactly it."""

    kind: str
    start: int
    stop: int
    prob: float


@keras.saving.register_keras_serializable("tfseq")
class SequenceTagger(Reader):
    """Tags `[B, T]` of tokens or frames: p(y | x) of a deep bidirectional network, trained on its log-likelihood.

    >>> import numpy as np, tfseq
    >>> sentences = [np.array(["Ann", "met", "Bo"]), np.array(["Bo", "left"])]
    >>> tags = [np.array(["B-PER", "O", "B-PER"]), np.array(["B-PER", "O"])]
    >>> data = tfseq.Sequences(sentences, y=tags)
    >>> model = tfseq.SequenceTagger.from_data(data, units=[16], embedding_dim=8, head="crf")
    >>> model.compile("adam")
    >>> history = model.fit(data, epochs=1, verbose=0)
    >>> model.predict_tags(["Bo met Ann."]).tags.shape  # text is cut into tokens in the graph
    TensorShape([1, 4])

    Args:
        vocabulary: tokens that have a vector of their own; all others share one.
        tags: names of the tags (of the symbols with `head="ctc"`).
        alphabet: characters that have a vector of their own.
        feature_dim: D of real-valued frames, which take the place of tokens.
        unit: what a token of a raw text is, and so what a label is of.
        lowercase: look tokens up in lower case; their characters keep their case.
        min_count: how often a token must stand in the training data to have a vector; read by `from_data`.
        max_vocabulary: number of tokens at most, the most frequent; read by `from_data`.
        embedding_dim: size of a token's vector.
        characters: features of a token's characters, by a convolution or an LSTM; None for none, as where
            `alphabet` is empty: ids have no characters.
        character_dim: size of a character's vector.
        character_units: number of these features.
        units: size of each recurrent layer, in each direction.
        cell: `"rnn"`, `"gru"` or `"lstm"`.
        bidirectional: read from both ends.
        backward_units: sizes of the backward direction; those of the forward one by default.
        dropout: share of each layer's input, and of the last output, dropped in training, at all steps alike.
        recurrent_dropout: the same of the state.
        zoneout: share of the state's units that stay as they were.
        token_dropout: share of tokens that are unknown in training.
        residual: add a layer's input to its output where they have one size.
        layer_norm: normalise each layer's input.
        head: `"softmax"`, `"crf"` or `"ctc"`.
        scheme: `"bio"`, `"iob1"` or `"bioes"` where tags mark entities, `"none"` where not; `"auto"` reads it off the tags, in
            `from_data` also off the sentences. With it, a CRF gives what the scheme forbids probability zero, and validation
            selects by entity F1.
        constrained: whether a CRF does so.
    """

    def __init__(
        self,
        *,
        tags: Annotated[list[str], FROM_DATA],
        vocabulary: Annotated[list[str], FROM_DATA] = (),  # type: ignore[assignment]
        alphabet: Annotated[list[str], FROM_DATA] = (),  # type: ignore[assignment]
        feature_dim: Annotated[int, FROM_DATA] = 0,
        unit: Literal["words", "characters"] = "words",
        lowercase: bool = False,
        min_count: int = 1,
        max_vocabulary: int | None = None,
        embedding_dim: int = 100,
        characters: Literal["cnn", "lstm"] | None = "cnn",
        character_dim: int = 25,
        character_units: int = 50,
        units: list[int] = (200, 200),  # type: ignore[assignment]
        cell: Cell = "lstm",
        bidirectional: bool = True,
        backward_units: list[int] | None = None,
        dropout: float = 0.3,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        token_dropout: float = 0.05,
        residual: bool = False,
        layer_norm: bool = False,
        head: Literal["softmax", "crf", "ctc"] = "softmax",
        scheme: Literal["auto", "bio", "iob1", "bioes", "none"] = "auto",
        constrained: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.choice("head", head, ("softmax", "crf", "ctc"))
        checks.choice("scheme", scheme, ("auto", *schemes.SCHEMES, "none"))
        checks.at_least(1, min_count=min_count)
        if unit == "subwords":
            raise ValueError("`unit` must be 'words' or 'characters', to which a tagger's labels belong; received 'subwords'.")
        self.read_labels(tags, "tags")
        self.tags, self.head, self.constrained = self.labels, head, constrained
        self.read_input(
            vocabulary, unit, lowercase, embedding_dim, feature_dim=feature_dim, token_dropout=token_dropout,
            characters=characters, alphabet=alphabet, character_dim=character_dim, character_units=character_units,
        )  # fmt: skip
        self.stack = RecurrentStack(
            units,
            cell,
            bidirectional,
            backward_units,
            dropout,
            recurrent_dropout,
            0.0,
            zoneout,
            residual,
            layer_norm,
            name="stack",
        )
        self.float_dtype = keras.config.dtype_policy().variable_dtype
        self.output_layer = keras.layers.Dense(len(tags) + (head == "ctc"), dtype=self.float_dtype, name="scores")
        self.scheme: Any = None
        self.tables: Any = None
        self.crf: Any = None
        if head == "ctc":
            self.unaligned = frozenset({"target", "target_mask"})
            self.num_targets = len(tags)
            self.add_ratio("error_rate")
            self.monitor = "error_rate"
        else:
            self.scheme = schemes.scheme_of(tags) if scheme == "auto" else None if scheme == "none" else scheme
            self.add_ratio("accuracy")
            self.monitor, self.higher_is_better = "accuracy", True
            if self.scheme is not None:
                self.tables = schemes.tables(tags, self.scheme)
                self.add_ratio("entity_f1")
                self.monitor = "entity_f1"
        if head == "crf":
            allowed = schemes.constraints(tags, self.scheme) if self.scheme is not None and constrained else None
            self.crf = CRF(len(tags), allowed, name="crf")
        self.create_weights()

    @property
    def convention(self) -> str:
        return {
            "accuracy": "share of tokens tagged right, higher is better",
            "entity_f1": "F1 of exact entities, micro average, higher is better",
            "error_rate": "edits per symbol of the transcription, lower is better",
        }[self.monitor]

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A tagger whose vocabulary, alphabet and tags are those of a data set with tokens or texts (or frames) x and labels y.

        Args:
            dataset: `Sequences`, or as `fit` takes it. With `head="ctc"` it has a `target`, whose symbols are the tags.
            **hyperparameters: those of the constructor.
        """
        data = cls.as_dataset(dataset)
        is_ctc = hyperparameters.get("head") == "ctc"
        labels = getattr(data, "target" if is_ctc else "y", None)
        if labels is None:
            name, what = ("target", "its transcription") if is_ctc else ("y", "a label for each step")
            raise ValueError(f"`dataset` must have `{name}`, {what}, for a tagger with this head; received none.")
        if is_ctc and is_text(labels):
            labels = tokens_of(labels, functools.partial(tokenize, unit="characters"))
        found = {**cls.text_arguments(data, hyperparameters), "tags": classes_of(labels)}
        if not is_ctc and "tags" not in hyperparameters and hyperparameters.get("scheme", "auto") == "auto":
            rows = (np.asarray(row).tolist() for row in labels)
            if schemes.scheme_of(found["tags"], (row for row in rows if "" not in row)) == "iob1":  # tags alone may not tell
                hyperparameters["scheme"] = "iob1"
        return cls(**{**found, **hyperparameters})

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        settings = {
            "vocabulary": ["on", "off"], "alphabet": list("fno"), "tags": ["A", "B", "C"], "embedding_dim": 4, "character_dim": 3,
            "character_units": 4, "units": [5], "dropout": 0.1,
        }  # fmt: skip
        return cls(**{**settings, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        labels = {"y": tf.TensorSpec([None, None], tf.int32)}
        if self.head == "ctc":
            labels = {"target": tf.TensorSpec([None, None], tf.int32), "target_mask": tf.TensorSpec([None, None], tf.bool)}
        return {**super().batch_spec(), **labels}

    @property
    def learned(self) -> str:  # type: ignore[override]
        return "target" if self.head == "ctc" else "y"

    def check_training(self, batch: Batch) -> None:
        """Raises where labels have probability zero whatever the weights are: a step on them would not be one."""
        super().check_training(batch)
        if self.head == "ctc":
            real, target, mask = batch["mask"].sum(1), batch["target"], batch["target_mask"]
            repeats = ((target[:, 1:] == target[:, :-1]) & mask[:, 1:]).sum(1)  # a blank must stand between
            short = (mask.sum(1) + repeats > real) & (real > 0)
            if short.any():
                row = int(np.flatnonzero(short)[0])
                raise ValueError(
                    f"`target` must fit into the steps of `x`: sequence {batch['row'][row]} has {real[row]} steps for "
                    f"{mask[row].sum()} symbols and {repeats[row]} blanks between equal ones. Is it another recording, or are "
                    "the frames too long?"
                )
        elif self.crf is not None and self.crf.allowed is not None:
            start, follow, end = (np.array(a) for a in self.crf.allowed)
            for row, tags, keep in zip(batch["row"], batch["y"], batch["mask"], strict=True):
                y = tags[keep]
                before, now = y[:-1], y[1:]
                wrong = (before >= 0) & (now >= 0) & ~follow[before, now]
                places = [*([0] if len(y) and y[0] >= 0 and not start[y[0]] else []), *(1 + np.flatnonzero(wrong))]
                places += [len(y) - 1] if len(y) and y[-1] >= 0 and not end[y[-1]] else []
                if places:
                    names = [self.tags[k] if k >= 0 else "?" for k in y]
                    some = names[max(0, places[0] - 1) : places[0] + 2]
                    hint = 'If they are IOB1, where I- begins entities, set scheme="iob1". ' if self.scheme == "bio" else ""
                    raise ValueError(
                        f"`y` must be legal in the scheme {self.scheme!r}, as to a constrained CRF all else is impossible; "
                        f"sequence {row} has {some} at step {places[0]}. {hint}Repair the tags "
                        '(`tfseq.schemes.repair`, or `illegal="repair"` of `load_conll`), or set constrained=False.'
                    )

    def tokenize_target(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tokenize(text, "characters")

    def target_ids(self, tokens: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._labels.lookup(tokens), tf.int32)

    # The network ---------------------------------------------------------------------------------------------------

    def scores(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Scores of the tags of a complete batch, `[B, T, K]` (K + 1 with the blank of CTC)."""
        seed = batch["seed"] if training else None
        hidden, _ = self.stack(self.read(batch, seed), mask=tf.transpose(batch["mask"]), seed=seed, memory_gradient=False)
        return tf.transpose(self.output_layer(tf.cast(hidden, self.float_dtype)), [1, 0, 2])

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        scores, mask = self.scores(batch, training), batch["mask"]
        if self.head == "ctc":
            return self._transcription_terms(scores, batch, training)
        y = batch.get("y")
        y = tf.fill(tf.shape(mask), UNKNOWN_LABEL) if y is None else fill(y, mask, UNKNOWN_LABEL)
        known = y >= 0
        if self.crf is not None:
            log_lik = self.crf.log_prob(scores, y, mask)
        else:
            chosen = tf.gather(tf.nn.log_softmax(scores), tf.maximum(y, 0), batch_dims=2)
            log_lik = fill(chosen, known)
        ratios = {} if training else self._ratios(self._best(scores, mask), y, known)
        return Terms(log_lik, tf.zeros_like(log_lik), known, ratios=ratios)

    def _ratios(self, best: tf.Tensor, y: tf.Tensor, known: tf.Tensor) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        right = tf.math.count_nonzero(known & (best == y), dtype=tf.int32)
        found = {"accuracy": (right, tf.math.count_nonzero(known, dtype=tf.int32))}
        if self.tables is not None:
            correct, predicted, gold = (tf.reduce_sum(a) for a in entities.counts(y, fill(best, known, -1), known, self.tables))
            found["entity_f1"] = (2 * correct, predicted + gold)  # 2 P R / (P + R)
        return found

    def _transcription_terms(self, scores: tf.Tensor, batch: Batch, training: bool) -> Terms:
        mask, given = batch["mask"], "target" in batch
        target = batch["target"] if given else tf.zeros_like(mask[:, :1], tf.int32)
        target_mask = batch["target_mask"] if given else tf.zeros_like(mask[:, :1])
        target_mask &= tf.reduce_any(mask, 1, keepdims=True)  # an empty sequence says nothing
        log_lik = ctc.log_prob(scores, mask, fill(target, target_mask), target_mask)
        ratios = {}
        if not training:
            found, found_mask, _ = ctc.greedy(scores, mask)
            edits = edit_distance(found, found_mask, target, target_mask)
            ratios["error_rate"] = (tf.reduce_sum(edits), tf.math.count_nonzero(target_mask, dtype=tf.int32))
        return Terms(log_lik, tf.zeros_like(log_lik), target_mask, ratios=ratios)

    def _best(self, scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """The most probable tags `[B, T]`, -1 at padded steps."""
        if self.crf is not None:
            return self.crf.decode(scores, mask).states
        return fill(tf.argmax(scores, -1, tf.int32), mask, -1)

    def _marginals(self, scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        if self.crf is not None:
            return self.crf.marginals(scores, mask)
        return fill(tf.nn.softmax(scores), mask)

    # What users call -----------------------------------------------------------------------------------------------

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """p(y_t | x) of a batch, `[B, T, K]`, zero at padded steps: what `predict` returns."""
        batch = self.complete(batch)
        return self._marginals(self.scores(batch), batch["mask"])

    def predict_tags(self, data: Any, mask: Any = None) -> Tags:
        """The most probable tags of texts, tokens, ids or frames, and the probability of each tag (its marginal).

        Args:
            data: a list of texts, lists of tokens, ids `[B, T]`, frames `[B, T, D]`, or a batch.
            mask: `[B, T]`, True where a step is real.
        """
        self._has_tags()
        return Tags(*self._predict_tags(self.given(data, mask)))

    def best_tags(self, data: Any, mask: Any = None) -> tf.Tensor:
        """The most probable tags alone, `[B, T]` int32, -1 at padded steps: a CRF's are found sooner without probabilities.

        Args:
            data, mask: as of `predict_tags`.
        """
        self._has_tags()
        return self._best_tags(self.given(data, mask))

    @graph
    def _best_tags(self, batch: Batch) -> tf.Tensor:
        return self._best(self.scores(batch), batch["mask"])

    @graph
    def _predict_tags(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        scores, mask = self.scores(batch), batch["mask"]
        best = self._best(scores, mask)
        probs = tf.gather(self._marginals(scores, mask), tf.maximum(best, 0), batch_dims=2)
        return best, fill(probs, mask)

    def marginals(self, data: Any, mask: Any = None) -> tf.Tensor:
        """p(y_t | x) `[B, T, K]`, exact; zero at padded steps."""
        self._has_tags()
        return self._graph_marginals(self.given(data, mask))

    @graph
    def _graph_marginals(self, batch: Batch) -> tf.Tensor:
        return self._marginals(self.scores(batch), batch["mask"])

    def n_best(self, data: Any, num: int = 5, mask: Any = None) -> Ranking:
        """The `num` most probable tag sequences of a CRF: tags `[B, num, T]`, scores and log-probabilities `[B, num]`."""
        if self.crf is None:
            raise ValueError(f"`n_best` is for head='crf'; this tagger has head={self.head!r}.")
        checks.at_least(1, num=num)
        batch = self.given(data, mask)
        return self.crf.n_best(self.scores(batch), batch["mask"], num)

    def entities(self, data: Any, mask: Any = None) -> list[list[Entity]]:
        """The entities of each row of the most probable tags, with the probability of each.

        With a CRF that is the probability of exactly this span and type under all tag sequences; with a softmax head, whose tags
        are independent given x, the product of the tags' probabilities.
        """
        if self.tables is None:
            raise ValueError(f"The `tags` {list(self.tags)[:10]} mark no entities, so there are none to find.")
        batch = self.given(data, mask)
        tags, score = (a.numpy() for a in self._predict_tags(batch))
        probs = None if self.crf is None else self._entity_probs(batch)[1].numpy()
        found: list[list[Entity]] = []
        for i, row in enumerate(tags):
            names = [self.tags[k] for k in row if k >= 0]
            found.append(
                [
                    Entity(kind, start, stop, float(score[i, start:stop].prod() if probs is None else probs[i, start]))
                    for kind, start, stop in schemes.entities(names, str(self.scheme))
                ]
            )
        return found

    def transcribe(self, data: Any, mask: Any = None) -> list[str]:
        """The symbols of each row by the best path of CTC, joined."""
        if self.head != "ctc":
            raise ValueError(f"`transcribe` is for head='ctc'; this tagger has head={self.head!r}.")
        text, _ = self._transcribe(self.given(data, mask))
        return [t.decode() for t in text.numpy()]

    @graph
    def _transcribe(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        symbols, found, score = ctc.greedy(self.scores(batch), batch["mask"])
        return tf.strings.reduce_join(tf.where(found, self.label_names(symbols), ""), 1), score

    def _has_tags(self) -> None:
        if self.head == "ctc":
            raise ValueError("A tagger with head='ctc' has no tags of steps; `transcribe` gives its symbols.")

    def decode(self, data: Any) -> dict[str, np.ndarray]:
        """What `tfseq predict` writes of a batch: the tag of each step, and its probability; or the transcription of each row."""
        batch = self.given(data)
        if self.head == "ctc":
            text, score = self._transcribe(batch)
            return {"text": np.array([t.decode() for t in text.numpy()]), "log_prob": score.numpy()}
        tags, score = self._predict_tags(batch)
        names = np.array([*self.tags, ""])
        return {"tag": names[tags.numpy()], "score": score.numpy()}

    # Serving -------------------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """`serving_default` of texts (or frames), `ids` of token ids; of a CRF also `n_best`, `entities`."""
        if self.text is None:
            specs = [tf.TensorSpec([None, None, self.feature_dim], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "lengths")]
            return {"serving_default": (self._serve_frames, specs)}
        of_text = [tf.TensorSpec([None], tf.string, "text")]
        of_ids = [tf.TensorSpec([None, None], tf.int32, "token_ids"), tf.TensorSpec([None], tf.int32, "lengths")]
        served: dict[str, Endpoint] = {"serving_default": (self._serve_text, of_text), "ids": (self._serve_ids, of_ids)}
        if self.crf is not None:
            served["n_best"] = (self._serve_n_best, of_text)
            if self.tables is not None:
                served["entities"] = (self._serve_entities, of_text)
        return served

    def _served(self, x: tf.Tensor, lengths: tf.Tensor) -> Batch:
        return self.complete(
            {"x": x, "mask": lengths_to_mask(lengths, tf.shape(x)[1]), "seed": tf.zeros([tf.shape(x)[0], 2], tf.int32)}
        )

    def _serve_frames(self, x: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = self._served(x, lengths)
        if self.head == "ctc":
            text, score = self._transcribe(batch)
            return {"text": text, "log_prob": score}
        tags, score = self._predict_tags(batch)
        return {"tag_ids": tags, "tags": self.label_names(tags), "score": score}

    def _serve_ids(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        tags, score = self._predict_tags(self._served(self.known_ids(token_ids), lengths))
        return {"tag_ids": tags, "score": score}

    def _of_text(self, text: tf.Tensor) -> tuple[Batch, dict[str, tf.Tensor]]:
        """A complete batch of texts, and what every answer says of them."""
        tokens, mask = self.text.tokenize(text)
        batch = self.complete({"x": tokens, "mask": mask, "seed": tf.zeros([tf.shape(tokens)[0], 2], tf.int32)})
        return batch, {"tokens": tokens, "length": mask_to_lengths(mask)}

    def _serve_text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, about = self._of_text(text)
        tags, score = self._predict_tags(batch)
        return {**about, "tags": self.label_names(tags), "score": score}

    def _serve_n_best(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The five most probable tag sequences: tags `[B, 5, T]`, log-probabilities `[B, 5]`, -inf where there are fewer."""
        batch, about = self._of_text(text)
        tags, log_prob = self._n_best(batch)
        return {**about, "tags": self.label_names(tags), "log_prob": log_prob}

    @graph
    def _n_best(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        found = self.crf.n_best(self.scores(batch), batch["mask"], 5)
        return found.tags, found.log_prob

    def _serve_entities(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The tags, and at the first token of each entity the probability of exactly that entity, `[B, T]`."""
        batch, about = self._of_text(text)
        tags, prob = self._entity_probs(batch)
        return {**about, "tags": self.label_names(tags), "entity_prob": prob}

    @graph
    def _entity_probs(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        scores, mask = self.scores(batch), batch["mask"]
        tags = self._best(scores, mask)
        return tags, self.crf.entity_probs(scores, tags, mask, tables=self.tables)


def edit_distance(a: tf.Tensor, a_mask: tf.Tensor, b: tf.Tensor, b_mask: tf.Tensor) -> tf.Tensor:
    """Insertions, deletions and substitutions from a `[B, L]` to b `[B, M]`, each int32 with its mask: `[B]` float32."""

    def sparse(values: tf.Tensor, mask: tf.Tensor) -> tf.SparseTensor:
        places = tf.where(mask)
        shape = tf.cast(tf.shape(values), tf.int64)
        return tf.SparseTensor(places, tf.gather_nd(values, places), tf.stack([shape[0], tf.maximum(shape[1], 1)]))

    return tf.edit_distance(sparse(a, a_mask), sparse(b, b_mask), normalize=False)
