"""Language model: the next token, over and over, by a recurrent network.

p(x) = prod_t p(x_t | x_1 .. x_{t-1}), h_t = stack(embedding of x_{t-1}, h_{t-1}), p(x_t | .) = softmax(W h_t + b); before the
first token stands a boundary that only the network reads. With tied weights W is the embedding's table (Press and Wolf 2017).

Long texts train by truncated back-propagation: successive windows of parallel lanes, the state at the end of one being the one
before the next (Mikolov et al. 2010). Regularisation is that of AWD-LSTM (Merity et al. 2018): locked dropout, rows of the
embedding, entries of the recurrent kernels, large and quickly changing activations; averaged weights are a setting of `train`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.embedding import TokenEmbedding
from tfseq.layers.recurrent import Cell, RecurrentStack, State
from tfseq.layers.text import END, Unit, append_end, as_texts, with_end
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, graph
from tfseq.models.reader import Reader, classes_of, ended, is_text, with_end_id
from tfseq.ops import decoding, random
from tfseq.ops.decoding import Choice, Generated
from tfseq.ops.linear import project
from tfseq.ops.masking import fill, mask_to_lengths
from tfseq.ops.tracing import wide

_CHUNK = 1024  # steps of a long text that are scored at once
_DYNAMIC_NORM = 5.0  # largest norm of a gradient of dynamic evaluation


@keras.saving.register_keras_serializable("tfseq")
class LanguageModel(Reader):
    """log p(x) of texts by their characters, words or subwords; generates, continues and scores.

    >>> import tfseq
    >>> data = tfseq.Sequences(["to be, or not to be", "that is the question"])
    >>> model = tfseq.LanguageModel.from_data(data, embedding_dim=8, units=[16])
    >>> model.compile("adam")
    >>> history = model.fit(data, epochs=1, verbose=0)  # whole texts; `tfseq.train` reads long ones by windows
    >>> model.log_prob(["to be"]).shape, model.generate(["to "], max_tokens=5, seed=[0, 1]).shape
    (TensorShape([1]), TensorShape([1]))

    Args:
        vocabulary: the tokens that can be predicted; all others are one, the unknown.
        classes: names of classes that texts may be generated from.
        ends: whether a text ends with a token that says so, which the model predicts: where the data are several texts.
        unit: what a token is; `"words"` where the data are ids, which are written as numbers.
        lowercase: read and write lower case.
        min_count: how often a token must stand in the training data; read by `from_data`.
        max_vocabulary: number of tokens at most, the most frequent; read by `from_data`.
        embedding_dim: size of a token's vector.
        units: size of each recurrent layer.
        cell: `"rnn"`, `"gru"` or `"lstm"`.
        tied: use the embedding's table for the output too.
        conditional: learn p(x | class) of texts with a label each; `generate` then takes classes.
        class_dropout: share of the texts whose class is unknown in training: texts without one are scored and generated as these.
        dropout: share of each layer's input, and of the last output, dropped in training, at all steps alike.
        recurrent_dropout: the same of the state.
        weight_drop: share of the recurrent kernels' entries dropped in training.
        embedding_dropout: share of the embedding's rows dropped in training.
        zoneout: share of the state's units that stay as they were.
        activation_penalty: weight of the mean square of the last layer's output as dropped (alpha of Merity et al., sec. 4.6).
        slowness_penalty: weight of the mean square of its change from step to step, before it is dropped (beta).
        residual: add a layer's input to its output where they have one size.
        layer_norm: normalise each layer's input.
        window: steps of a window in `tfseq.train`, which then carries the state from window to window; None trains on whole
            texts, one a row. Inside a window the state goes on where another text begins, and the boundary alone says so. With
            `conditional` it is None whatever is given, since a class is that of a whole text.
    """

    def __init__(
        self,
        *,
        vocabulary: Annotated[list[str], FROM_DATA],
        classes: Annotated[list[str], FROM_DATA] = (),  # type: ignore[assignment]
        ends: Annotated[bool, FROM_DATA] = False,
        unit: Unit = "characters",
        lowercase: bool = False,
        min_count: int = 1,
        max_vocabulary: int | None = None,
        embedding_dim: int = 128,
        units: list[int] = (512, 512),  # type: ignore[assignment]
        cell: Cell = "lstm",
        tied: bool = False,
        conditional: bool = False,
        class_dropout: float = 0.1,
        dropout: float = 0.2,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        embedding_dropout: float = 0.0,
        zoneout: float = 0.0,
        activation_penalty: float = 0.0,
        slowness_penalty: float = 0.0,
        residual: bool = False,
        layer_norm: bool = False,
        window: int | None = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, min_count=min_count)
        checks.fraction(class_dropout=class_dropout, embedding_dropout=embedding_dropout)
        if window is not None:
            checks.at_least(1, window=window)
        for name, value in (("activation_penalty", activation_penalty), ("slowness_penalty", slowness_penalty)):
            if value < 0.0:
                raise ValueError(f"`{name}` must be at least 0; received {value}.")
        if conditional != bool(classes):
            raise ValueError(
                f"`classes` must be given with conditional=True, and only then; received {list(classes)[:5]} with {conditional}."
            )
        self.ends, self.conditional, self.tied = ends, conditional, tied
        self.activation_penalty, self.slowness_penalty = activation_penalty, slowness_penalty
        self.window = None if conditional else window
        self.read_input(vocabulary, unit, lowercase, embedding_dim, row_dropout=embedding_dropout, extra_ids=1)
        self.size, self.boundary = self.text.size, self.text.size  # the boundary is the id after the last
        self.end = 1 + list(vocabulary).index(END) if ends else None
        self.class_embedding = None
        if conditional:
            self.read_labels(classes, "classes")
            self.classes, self.unaligned = self.labels, frozenset({"y"})
            self.class_embedding = TokenEmbedding(1 + len(classes), embedding_dim, class_dropout, name="class_embedding")
        self.stack = RecurrentStack(
            units, cell, False, None, dropout, recurrent_dropout, weight_drop, zoneout, residual, layer_norm, name="stack"
        )
        self.float_dtype = keras.config.dtype_policy().variable_dtype
        if tied:
            self.to_embedding = None
            if units[-1] != embedding_dim:
                self.to_embedding = keras.layers.Dense(embedding_dim, dtype=self.float_dtype, name="to_embedding")
            self.bias = self.add_weight(shape=(self.size,), initializer="zeros", autocast=False, name="bias")
        else:
            self.output_layer = keras.layers.Dense(self.size, dtype=self.float_dtype, name="scores")
        self._lanes = _Lanes(units, 2 if cell == "lstm" else 1, self.boundary, self.stack.compute_dtype)
        self.create_weights()

    @property
    def convention(self) -> str:
        return f"nats per {self.text.unit.removesuffix('s')}, lower is better"

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A language model whose vocabulary is that of a data set of texts (or token arrays) x; with `conditional`, its y too.

        Of ids 1 .. K the vocabulary is their numbers, so that prompts and answers are numbers with blanks between, and the end,
        if any, is the id K + 1; each row gets one, as texts do.
        """
        data = cls.as_dataset(dataset)
        found = cls.text_arguments(data, hyperparameters)
        if "vocabulary" not in found:
            raise ValueError("`dataset` must hold texts, tokens or ids for a language model; received real-valued frames.")
        ends = hyperparameters.get("ends", len(data.x) > 1)
        of_ids = not is_text(data.x)
        if ends and END not in found["vocabulary"]:  # after ids, which are places in the vocabulary already
            found["vocabulary"] = [*found["vocabulary"], END] if of_ids else [END, *found["vocabulary"]]
        if hyperparameters.get("conditional"):
            if getattr(data, "y", None) is None:
                raise ValueError("`dataset` must have `y`, a label for each text, with conditional=True; received none.")
            found["classes"] = classes_of(data.y)
        return cls(**{**found, "ends": ends, **hyperparameters, **({"unit": "words"} if of_ids else {})})

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        settings = {"vocabulary": ["a", "b"], "embedding_dim": 4, "units": [5], "dropout": 0.1}
        return cls(**{**settings, **hyperparameters})

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "window": self.window}

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        spec = {**super().batch_spec(), "fresh": tf.TensorSpec([None, None], tf.bool)}
        return spec | ({"y": tf.TensorSpec([None], tf.int32)} if self.conditional else {})

    optional = Reader.optional | {"fresh"}

    def prepare(self, data: Any) -> Any:
        """As of `Reader`; rows of ids too get the end token, where the model has one."""
        if not self.conditional and data.y is not None:  # of no use, and labels of steps would be too few
            data = dataclasses.replace(data, y=None)
        data = super().prepare(data)
        return dataclasses.replace(data, x=with_end_id("x", data.x, self.end)) if self.ends else data

    def as_batch(self, data: Any) -> Batch:
        """As of `Reader`; a list of rows of ids gets the end token as texts do, an array `[B, T]` is taken as it is."""
        return super().as_batch(ended(data, "x", self.end))

    def cut(self, name: str, items: Any) -> list[np.ndarray]:
        """As of `Reader`; each text with the end token, where the model has one."""
        found = super().cut(name, items)
        return with_end(found) if self.ends else found

    def tokenize(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found = super().tokenize(text)
        return append_end(*found) if self.ends else found

    @property
    def carried(self) -> Sequence[tf.Variable]:
        return self._lanes.variables if self.window else ()

    # The network ---------------------------------------------------------------------------------------------------

    def _hidden(
        self, previous: tf.Tensor, mask: tf.Tensor, state: State | None, classes: tf.Tensor | None, training: bool, seed: Any
    ) -> tuple[tf.Tensor, State]:
        """From the token before each step `[B, T]`, the stack's outputs `[T, B, F]`, none dropped, and final state."""
        common = self.common_seed() if training else None
        seed = seed if training else None
        vectors = self.read({"x": previous}, seed, common)
        if self.class_embedding is not None:
            labels = tf.zeros_like(previous[:, 0]) if classes is None else classes + 1
            vectors += self.class_embedding(labels[None], seed=seed)
        return self.stack(vectors, tf.transpose(mask), state, seed=seed, common_seed=common, memory_gradient=False, raw=True)

    def scores(self, hidden: tf.Tensor) -> tf.Tensor:
        """Scores of the next token `[..., V]` from the stack's output `[..., F]`."""
        hidden = tf.cast(hidden, self.float_dtype)
        if not self.tied:
            return self.output_layer(hidden)
        hidden = hidden if self.to_embedding is None else self.to_embedding(hidden)
        return project(hidden, tf.transpose(self.embedding.table[: self.size])) + self.bias

    def _log_probs(self, hidden: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """log p(x_t | x_1 .. x_{t-1}) `[B, T]`."""
        found = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.transpose(x), self.scores(hidden))
        return -tf.transpose(found)

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        x, mask = tf.where(batch["mask"], batch["x"], 0), batch["mask"]
        before, state = tf.fill(tf.shape(x)[:1], self.boundary), None
        if "fresh" in batch and self.jit_compile:
            raise ValueError("`jit_compile` must be False where windows carry a state on: XLA fixes its shape.")
        if "fresh" in batch:
            before, state = self._lanes.read(batch["fresh"][:, 0] | ~mask[:, 0])  # a lane without steps carries nothing
        previous = tf.concat([before[:, None], x[:, :-1]], 1)
        if "fresh" in batch:
            previous = tf.where(batch["fresh"], self.boundary, previous)
        raw, final = self._hidden(previous, mask, state, batch.get("y"), training, batch["seed"])
        hidden = self.stack.dropped(raw, batch["seed"] if training else None)
        log_lik = fill(self._log_probs(hidden, x), mask)
        if "fresh" in batch:
            lengths = mask_to_lengths(mask)
            last = tf.gather(x, tf.maximum(lengths - 1, 0), batch_dims=1)
            with tf.control_dependencies([log_lik]):
                written = self._lanes.write(tf.where(lengths > 0, last, before), final)
            with tf.control_dependencies(written):
                log_lik = tf.identity(log_lik)
        objective = None
        if training and (self.activation_penalty or self.slowness_penalty):
            penalty = self.activation_penalty * tf.reduce_mean(tf.square(hidden), -1)
            change = tf.reduce_mean(tf.square(raw[1:] - raw[:-1]), -1)
            penalty += self.slowness_penalty * tf.pad(change, [[1, 0], [0, 0]])
            objective = tf.reduce_sum(log_lik - fill(tf.cast(tf.transpose(penalty), log_lik.dtype), mask), 1)
        return Terms(log_lik, tf.zeros_like(log_lik), mask, objective)

    # What users call -----------------------------------------------------------------------------------------------

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """log p(x) of a batch, `[B]`, nats: what `predict` returns."""
        return tf.cast(self._log_prob(self.complete(batch)), self.float_dtype)

    def log_prob(self, data: Any, mask: Any = None) -> tf.Tensor:
        """log p(x) `[B]`, nats, of texts, tokens or ids `[B, T]`, however long; with the end token where the model has one."""
        return self._log_prob(self.given(data, mask))

    @graph
    def _log_prob(self, batch: Batch) -> tf.Tensor:
        """Chunk after chunk, so that what a long text needs is the memory of one."""
        x, mask = tf.where(batch["mask"], batch["x"], 0), batch["mask"]
        num_rows, num_steps = tf.unstack(tf.shape(x))
        chunk = tf.minimum(num_steps, _CHUNK)
        previous = tf.concat([tf.fill([num_rows, 1], self.boundary), x[:, :-1]], 1)
        state = self.stack.initial_state(num_rows)

        def advance(begin: tf.Tensor, total: tf.Tensor, *flat: tf.Tensor) -> tuple:
            end = tf.minimum(begin + chunk, num_steps)
            part = mask[:, begin:end]
            state_now = tf.nest.pack_sequence_as(state, flat)
            hidden, final = self._hidden(previous[:, begin:end], part, state_now, batch.get("y"), False, None)
            found = fill(self._log_probs(hidden, x[:, begin:end]), part)
            return end, total + tf.reduce_sum(tf.cast(found, total.dtype), 1), *tf.nest.flatten(final)

        start = (0, tf.zeros([num_rows], wide(tf.as_dtype(self.float_dtype))), *tf.nest.flatten(state))
        shapes = (tf.TensorShape([]), *(tf.TensorShape([None, *a.shape[1:]]) for a in start[1:]))
        return tf.while_loop(lambda begin, *_: begin < num_steps, advance, start, shape_invariants=shapes)[1]

    def dynamic_log_prob(self, data: Any, mask: Any = None, *, learning_rate: float = 0.1, window: int = 40) -> np.ndarray:
        """log p(x) `[B]`, nats, of texts read one after another by weights that go on learning from them.

        Dynamic evaluation (Krause et al. 2018, section 3): a window is scored, then a step of gradient descent is made on its
        mean -log p, of norm 5 at most. Every token is scored before the weights learn of it, so this is the exact log-probability
        of the texts in their order under a model that adapts; that of fixed weights is `log_prob`. The weights are restored.

        Args:
            data: texts, tokens or ids `[B, T]`, however long; or a data set.
            mask: of ids, `[B, T]`.
            learning_rate: of the descent; 0 gives `log_prob`.
            window: tokens between two steps.

        Raises:
            ValueError: an argument is out of range, or the learning rate so high that a loss is not finite.
        """
        checks.at_least(1, window=window)
        if not 0.0 <= learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be a number of at least 0; received {learning_rate!r}.")
        if hasattr(data, "x") and hasattr(data, "take"):  # a data set, whose rows need not fit into memory as one batch
            rows = (self.given(data.take([i])) for i in range(len(data)))
        else:
            batch = self.given(data, mask)
            rows = ({name: value[i : i + 1] for name, value in batch.items()} for i in range(len(batch["x"])))
        found: list[float] = []
        kept = [w.numpy() for w in self.trainable_weights]
        rate = tf.constant(learning_rate, self.float_dtype)
        try:
            for row in rows:
                total, length = 0.0, int(mask_to_lengths(row["mask"])[0])
                before, state = tf.constant([self.boundary]), self.stack.initial_state(1)
                for begin in range(0, length, window):
                    ids = row["x"][:, begin : min(begin + window, length)]
                    log_prob, state = self._learned(before, ids, state, row.get("y"), rate)
                    total, before = total + float(log_prob), ids[:, -1]
                if learning_rate and not math.isfinite(total):
                    raise ValueError(
                        f"`learning_rate` must be smaller: with {learning_rate:g} log p of row {len(found)} is {total}."
                    )
                found.append(total)
        finally:
            for weight, value in zip(self.trainable_weights, kept, strict=True):
                weight.assign(value)
        return np.array(found)

    @functools.cached_property
    def _learned(self) -> Any:
        """Graph of a window: tokens before it `[1]`, its own `[1, T]`, state, class, rate -> log p, state; the weights learn."""

        def learn(before: tf.Tensor, ids: tf.Tensor, state: State, label: tf.Tensor | None, rate: tf.Tensor) -> tuple:
            with tf.GradientTape() as tape:
                previous = tf.concat([before[:, None], ids[:, :-1]], 1)
                hidden, final = self._hidden(previous, tf.ones_like(ids, tf.bool), state, label, False, None)
                log_prob = tf.reduce_sum(self._log_probs(hidden, ids))
                loss = -log_prob / tf.cast(tf.size(ids), log_prob.dtype)
            gradients = tape.gradient(loss, [w.value for w in self.trainable_weights], unconnected_gradients="zero")
            gradients, _ = tf.clip_by_global_norm([tf.convert_to_tensor(g) for g in gradients], _DYNAMIC_NORM)
            for weight, gradient in zip(self.trainable_weights, gradients, strict=True):
                weight.assign(weight - rate * tf.cast(gradient, weight.dtype))
            return log_prob, final

        return tf.function(learn, autograph=False, reduce_retracing=True)

    def generate(
        self,
        prompts: Any = ("",),
        max_tokens: Any = 200,
        *,
        temperature: Any = 1.0,
        top_k: Any = 0,
        top_p: Any = 1.0,
        num_beams: int = 1,
        length_penalty: float = 0.0,
        classes: Any = None,
        seed: Any = (0, 0),
    ) -> tf.Tensor:
        """Continues texts: the new part of each, `[B]` string.

        Args:
            prompts: texts, `""` to begin anew.
            max_tokens: new tokens at most; a number, or one a row.
            temperature: scores are divided by it; 0 takes the best token each time.
            top_k: draw among the k best tokens; 0 for all.
            top_p: draw among the best tokens whose probabilities reach p.
            num_beams: more than 1 searches for the most probable text with a beam, and draws nothing.
            length_penalty: of the beam, see `ops.decoding.beam_search`.
            classes: names of classes to generate from, one a row, where the model is conditional.
            seed: `[2]` or `[B, 2]`; the same seed gives the same text.
        """
        checks.at_least(1, num_beams=num_beams)
        texts = as_texts(prompts, "prompts")
        num = int(texts.shape[0])
        labels, most = self._classes_of(classes, num), _each("max_tokens", max_tokens, num, tf.int32)
        if num_beams > 1:
            found = self._search(texts, labels, most, int(num_beams), float(length_penalty))
        else:
            choice = Choice(
                _each("temperature", temperature, num, tf.float32),
                _each("top_k", top_k, num, tf.int32),
                _each("top_p", top_p, num, tf.float32, 1.0),
            )
            found = self._sample(texts, labels, most, choice, random.row_seeds(seed, tf.range(num)))
        return self.text.write(Generated(*found).tokens)

    def _classes_of(self, classes: Any, num: int) -> tf.Tensor:
        """Names of classes, one a prompt, as numbers `[B]`; -1 where none is given."""
        if classes is None:
            return tf.fill([num], -1)
        if not self.conditional:
            raise ValueError("`classes` is for a conditional model (conditional=True); this one is not.")
        names = [classes] * num if isinstance(classes, str) else list(classes)
        unknown = [name for name in names if name not in self.classes]
        if unknown or len(names) != num:
            known = list(self.classes)[:20]
            raise ValueError(f"`classes` must name one of {known} for each of {num} prompts; received {unknown or names}.")
        return tf.constant([self.classes.index(name) for name in names], tf.int32)

    def _begin(self, texts: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, State]:
        """Scores of the first new token `[B, V]`, and the state, after the prompts."""
        tokens, mask = self.text.tokenize(texts)
        ids = self.text.to_ids(tokens)
        previous = tf.concat([tf.fill([tf.shape(ids)[0], 1], self.boundary), ids], 1)
        keep = tf.concat([tf.ones_like(mask[:, :1]), mask], 1)
        hidden, state = self._hidden(previous, keep, None, labels if self.conditional else None, False, None)
        last = mask_to_lengths(mask)
        return self.scores(tf.gather(tf.transpose(hidden, [1, 0, 2]), last, batch_dims=1)), state

    def next_scores(
        self, token: tf.Tensor, state: State, labels: tf.Tensor | None = None, products: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, State]:
        """Token `[B]` and a state -> (scores of the next one `[B, V]`, next state); `products` of `_products` spare the first."""
        vectors = self.embedding(token)
        if self.class_embedding is not None:
            vectors += self.class_embedding(tf.zeros_like(token) if labels is None else labels + 1)
        hidden, new = self.stack.step(vectors, state, None if products is None else tf.gather(products, token))
        return self.scores(hidden), new

    def _products(self) -> tf.Tensor | None:
        """The first layer's products with the vectors of all tokens, where these are few: made once for all steps of a loop.

        They are as many as the characters of an alphabet then, and cost as much time as some ten steps of one row.
        """
        few = self.embedding.size <= 256 and not self.conditional
        return self.stack.project(self.embedding(tf.range(self.embedding.size))) if few else None

    def _forbidden(self) -> tf.Tensor:
        """The unknown token is never written."""
        return tf.range(self.size) == 0

    def _steps(self, texts: tf.Tensor, labels: tf.Tensor) -> tuple[decoding.Step, tf.Tensor, list[tf.Tensor]]:
        """(one step of the loop, scores of the first new token, flat state before it), after the prompts."""
        scores, state = self._begin(texts, labels)
        products = self._products()

        def step(token: tf.Tensor, flat: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            *rest, label = flat
            known = label if self.conditional else None, products
            new_scores, new = self.next_scores(token, tf.nest.pack_sequence_as(state, rest), *known)
            return new_scores, [*tf.nest.flatten(new), label]

        return step, scores, [*tf.nest.flatten(state), labels]

    @graph
    def _sample(
        self, texts: tf.Tensor, labels: tf.Tensor, max_tokens: tf.Tensor, choice: Choice, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        step, scores, state = self._steps(texts, labels)
        return tuple(decoding.sample(step, scores, state, seeds, max_tokens, choice, self.end, self._forbidden()))

    @graph
    def _search(
        self, texts: tf.Tensor, labels: tf.Tensor, max_tokens: tf.Tensor, num_beams: int, length_penalty: float
    ) -> tuple[tf.Tensor, ...]:
        step, scores, state = self._steps(texts, labels)
        found = decoding.beam_search(step, scores, state, num_beams, max_tokens, self.end, self._forbidden(), length_penalty)
        return tuple(found)

    # Serving -------------------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """`serving_default` scores texts; `generate`; `init_state` and `step` for a client that draws by itself."""

        def spec(name: str, dtype: Any, *rest: int | None) -> tf.TensorSpec:
            return tf.TensorSpec([None, *rest], dtype, name)

        row = {"max_tokens": tf.int32, "temperature": tf.float32, "top_k": tf.int32, "top_p": tf.float32}
        state = [spec(name, a.dtype, a.shape[1]) for name, a in self._named(self.stack.initial_state(1)).items()]
        labels = [spec("label", tf.string)] if self.conditional else []
        return {
            "serving_default": (self._serve_score, [spec("text", tf.string), *labels]),
            "generate": (
                self._serve_generate,
                [spec("prompt", tf.string), *(spec(n, d) for n, d in row.items()), spec("seed", tf.int32, 2), *labels],
            ),
            "init_state": (self._serve_start, [spec("seed", tf.int32, 2)]),
            "step": (self._serve_step, [spec("token_id", tf.int32), *state, *labels]),
        }

    @staticmethod
    def _named(state: State) -> dict[str, tf.Tensor]:
        """A state as served: `state_0_h`, `state_0_c`, ..."""
        return {f"state_{k}_{'hc'[i]}": a for k, (layer,) in enumerate(state) for i, a in enumerate(layer)}

    def _class_of(self, served: dict[str, tf.Tensor]) -> tf.Tensor | None:
        return tf.maximum(tf.cast(self._labels.lookup(served["label"]), tf.int32), -1) if self.conditional else None

    def _serve_score(self, text: tf.Tensor, **apart: tf.Tensor) -> dict[str, tf.Tensor]:
        seed = tf.zeros([tf.shape(text)[0], 2], tf.int32)
        labels = self._class_of(apart)
        batch = self.complete({"x": text, "seed": seed} | ({} if labels is None else {"y": labels}))
        num = mask_to_lengths(batch["mask"])
        return {"log_prob": tf.cast(self._log_prob(batch), tf.float32), "num_tokens": num}

    def _serve_generate(
        self, prompt: tf.Tensor, max_tokens: tf.Tensor, temperature: Any, top_k: Any, top_p: Any, seed: Any, **apart: Any
    ) -> Any:
        labels = self._class_of(apart)
        labels = tf.fill(tf.shape(max_tokens), -1) if labels is None else labels
        found = Generated(*self._sample(prompt, labels, max_tokens, Choice(temperature, top_k, top_p), seed))
        return {"text": self.text.write(found.tokens), "length": found.lengths}

    def _serve_start(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """The state before any token; the first `token_id` is then the number of tokens, the boundary."""
        state = self._named(self.stack.initial_state(tf.shape(seed)[0]))
        return {name: a + tf.zeros_like(a) for name, a in state.items()}

    def _serve_step(self, token_id: tf.Tensor, **apart: tf.Tensor) -> dict[str, tf.Tensor]:
        known = (token_id >= 0) & (token_id <= self.boundary)
        shape = self.stack.initial_state(1)
        state = tf.nest.pack_sequence_as(shape, [apart[name] for name in self._named(shape)])
        scores, new = self.next_scores(tf.where(known, token_id, 0), state, self._class_of(apart))
        return {"logits": scores, **self._named(new)}


class _Lanes:
    """The states at the ends of the lanes' last windows.

    Plain variables: no file of the model has them, and checkpoints keep them apart (`SequenceModel.carried`).
    """

    def __init__(self, units: Any, num_states: int, boundary: int, dtype: str) -> None:
        self.units, self.num_states, self.boundary, self.dtype = list(units), num_states, boundary, dtype
        with tf.init_scope():
            self.count, self.token = self._variable(None, tf.int32), self._variable([], tf.int32)
            self.state = [[self._variable([n], dtype) for _ in range(num_states)] for n in self.units]
        self.variables = [self.count, self.token, *(v for layer in self.state for v in layer)]

    @staticmethod
    def _variable(shape: list[int] | None, dtype: Any) -> tf.Variable:
        """One of `[lanes, *shape]`, or a single number; each replica has its own."""
        return tf.Variable(
            tf.zeros([] if shape is None else [0, *shape], dtype), trainable=False,
            shape=tf.TensorShape([] if shape is None else [None, *shape]),
            synchronization=tf.VariableSynchronization.ON_READ, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )  # fmt: skip

    def read(self, fresh: tf.Tensor) -> tuple[tf.Tensor, State]:
        """(last token `[B]`, state) of each lane; of those that are `fresh` `[B]` the boundary and zeros."""
        num_rows = tf.shape(fresh)[0]
        # other lanes than before, or none yet; from the variable's shape a graph of constant shapes would conclude otherwise
        begins = tf.reduce_all(fresh) | (self.count.read_value() != num_rows)

        def of(variable: tf.Variable, value: int) -> tf.Tensor:
            rest = variable.shape[1:]

            def carried() -> tf.Tensor:
                kept = variable.read_value()
                return tf.where(tf.reshape(fresh, [-1, *[1] * len(rest)]), tf.cast(value, kept.dtype), kept)

            found = tf.cond(begins, lambda: tf.cast(tf.fill([num_rows, *rest], value), variable.dtype), carried)
            return tf.ensure_shape(found, [None, *rest])

        state: State = [(tuple(of(v, 0) for v in layer),) for layer in self.state]
        return of(self.token, self.boundary), state

    def write(self, token: tf.Tensor, state: State) -> list[Any]:
        """Keeps the state at the end of a window."""
        values = [tf.shape(token)[0], token, *map(tf.stop_gradient, tf.nest.flatten(state))]
        return [variable.assign(value) for variable, value in zip(self.variables, values, strict=True)]


def _each(name: str, value: Any, num: int, dtype: tf.DType, most: float = math.inf) -> tf.Tensor:
    """A setting of `generate` as a number a row `[B]`."""
    values = checks.array(name, value)
    values = np.full(num, value) if not values.ndim else values
    is_number = values.dtype.kind in ("iu" if dtype.is_integer else "fiu") and values.shape == (num,)
    if not is_number or not ((values >= 0) & (values <= min(most, dtype.max))).all():
        bound = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"`{name}` must be a number {bound}, or one for each of the {num} prompts; received {value!r}.")
    return tf.constant(values, dtype)
