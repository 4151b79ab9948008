"""The hidden Markov model: a Markov chain of K states, each with its own distribution of observations.

    z_1 ~ Cat(pi),   z_t | z_{t-1} = i ~ Cat(A_i),   x_t | z_t = k ~ p(x | k)                                    (1)

All of its inference is exact (Rabiner 1989, "A tutorial on hidden Markov models"; equations are his) and lives in
`ops/chains.py`; what is known of the observations lives in `layers/emissions.py`. This file holds the parameters, their training
and what is served. The gradient of log p(x) is that of Fisher's identity, so gradient training, EM, MAP and variational Bayes
all rest on one pass forward and one pass back. Public arrays are `[B, T, ...]`: B sequences, T steps, K states, D features, S
samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfseq import checks
from tfseq.layers.emissions import EMISSIONS, Covariance, Emission
from tfseq.layers.tables import ProbabilityTable, checked_entries, closed_classes, stationary
from tfseq.models.base import FROM_DATA, Batch, Endpoint, Terms, counts, graph
from tfseq.models.closed_form import ClosedFormModel
from tfseq.ops import chains, random
from tfseq.ops.masking import fill, lengths_to_mask, mask_to_lengths, some_steps, until
from tfseq.ops.scan import loop

if TYPE_CHECKING:
    from tfseq.distributions import HiddenMarkovModel as Distribution

EmissionName = Literal["bernoulli", "categorical", "multinomial", "poisson", "normal", "mixture", "student-t", "neural"]

# What a random number is for; two uses never share their numbers.
_PATH, _STATE, _EMISSION, _FUTURE = range(4)
_NO_CLOSED_FORM = "a neural emission, or transitions driven by controls, has no closed form; train with an optimiser"
_WHOLE_STEPS = (  # TensorFlow cuts longer messages
    "`observed` must be in full or not at all at a step for this emission; a batch of the stream has a step observed in part. "
    "Mark it as missing."
)
_KNOWN_STATES = "`y` must hold states from 0 to K - 1, or -1 where unknown; a batch of the stream holds others."
_TYPICAL = 10.0  # observations of each state, as many as a posterior begins with
_START_ITERATIONS = 10  # of EM from each of several starts, before the best goes on


class LeaveOneOut(NamedTuple):
    """p(z_t | all x but x_t) `[B, T, K]`, and log p(x_t | all other x) `[B, T]`; zeros at padded steps."""

    probs: tf.Tensor
    log_prob: tf.Tensor


class Predictive(NamedTuple):
    """p(z | x) of the steps to come `[B, H, K]`, and the mean of the observations there `[B, H, D]`."""

    probs: tf.Tensor
    mean: tf.Tensor


class _Parameters:
    """The parts of R models at once, side by side: tables of R and R K rows, an emission of R K states."""

    def __init__(self, initial: ProbabilityTable, transition: ProbabilityTable, emission: Emission) -> None:
        self.initial, self.transition, self.emission = initial, transition, emission

    @property
    def parts(self) -> list[Any]:
        return [self.initial, self.transition, self.emission]

    def statistics_shapes(self) -> list[list[int]]:
        return [list(self.initial.shape), list(self.transition.shape), *self.emission.statistics_shapes]

    @staticmethod
    def split(statistics: Sequence[Any]) -> list[Any]:
        """Statistics -> those of each part."""
        return [statistics[0], statistics[1], list(statistics[2:])]

    def maximise(self, statistics: Sequence[Any], prior: bool = False) -> None:
        for part, own in zip(self.parts, self.split(statistics), strict=True):
            part.maximise(own, prior)


@keras.saving.register_keras_serializable("tfseq")
class HiddenMarkovModel(ClosedFormModel):
    """Hidden Markov model with exact inference, trained by gradient, EM, MAP or variational Bayes through `fit`.

    >>> import keras, numpy as np, tfseq
    >>> keras.utils.set_random_seed(0)
    >>> x = np.random.default_rng(0).poisson(np.repeat([[2.0], [9.0]], 20, 0))[None].astype("float32")  # [1, 40, 1]
    >>> model = tfseq.HiddenMarkovModel(num_states=2, observation_dim=1, emission="poisson", mean=[5.0])
    >>> model.compile(method="em")
    >>> history = model.fit(x, epochs=5, verbose=0)
    >>> model.posterior_mode(x).states.shape, model.leave_one_out(x).log_prob.shape
    (TensorShape([1, 40]), TensorShape([1, 40]))

    The Bayesian model with pi ~ Dirichlet, rows of A ~ Dirichlet and Bernoulli emissions with theta ~ Beta is
    `HiddenMarkovModel(num_states=K, observation_dim=D, emission="bernoulli", initial_concentration=1.0,
    transition_concentration=1.0, emission_prior=(1.0, 1.0))`, trained with `compile(method="vb")` or `"map"`.

    Args:
        observation_dim: D, features of an observation (number of symbols for `"categorical"`). From data.
        mean, stddev: of the data, `[D]`: emissions start there, and priors are centred there. From data.
        control_dim: U, size of the controls `u`. From data.
        num_states: K.
        emission: family of the observations given the state.
        covariance: of `"normal"`, `"mixture"` and `"student-t"`: `"full"`, `"diag"`, `"spherical"`, `"tied"`.
        num_components: Gaussians in each state of `"mixture"`.
        num_lags: earlier observations that a `"normal"` emission regresses on (autoregression).
        df: degrees of freedom at the start, of `"student-t"`.
        head, hidden_dim: of `"neural"`: the family (`"bernoulli"`, `"normal"`, `"poisson"`, `"categorical"`), and its units.
        controls: where `u` enters: the `"emission"` (a regression; `"normal"`, `"neural"`), the `"transition"`, or `"both"`.
        emission_prior: positive numbers of the prior that MAP and VB use; of `"bernoulli"` Beta(a, b); of `"categorical"` and
            `"multinomial"` a Dirichlet's concentration; of `"poisson"` Gamma(shape, rate); of Gaussians (kappa, dof), the
            weights of the data's mean and variance in a normal-inverse-Wishart. None for weak defaults.
        initial: p(z_1) is `"free"`, or the `"stationary"` distribution of the transitions.
        transition: `"free"`, or `"left-right"`: begin in state 0, stay or go to the next state.
        fixed_initial, fixed_transition: `[K]`, `[K, K]`: probabilities that are not learned, NaN or None where they are.
        tied_transition: `[K, K]` whole numbers: entries with one number are one probability, in rows that share all their
            numbers.
        num_transitions: matrices of the first steps, one after the other; all later steps have the last.
        initial_concentration, transition_concentration: of the Dirichlet priors (MAP, VB).
        sticky: what the prior adds to the concentration of staying in a state.
        start: where `from_data` begins: `"k-means"` clusters of single observations, or `"random"`.
        num_starts: different starts, run side by side for some steps of EM in `from_data`; training goes on from the best.
    """

    has_kl = False
    rules = (_WHOLE_STEPS, _KNOWN_STATES)
    optional = frozenset({"observed", "y"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        *,
        observation_dim: Annotated[int, FROM_DATA],
        mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        stddev: Annotated[Sequence[float] | None, FROM_DATA] = None,
        control_dim: Annotated[int, FROM_DATA] = 0,
        num_states: int = 3,
        emission: EmissionName = "normal",
        covariance: Covariance = "diag",
        num_components: int = 2,
        num_lags: int = 0,
        df: float = 4.0,
        head: Literal["bernoulli", "normal", "poisson", "categorical"] = "bernoulli",
        hidden_dim: int = 32,
        controls: Literal["emission", "transition", "both"] = "emission",
        emission_prior: Sequence[float] | None = None,
        initial: Literal["free", "stationary"] = "free",
        transition: Literal["free", "left-right"] = "free",
        fixed_initial: Sequence[float | None] | None = None,
        fixed_transition: Sequence[Sequence[float | None]] | None = None,
        tied_transition: Sequence[Sequence[int]] | None = None,
        num_transitions: int = 1,
        initial_concentration: float = 1.0,
        transition_concentration: float = 1.0,
        sticky: float = 0.0,
        start: Literal["k-means", "random"] = "k-means",
        num_starts: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, observation_dim=observation_dim, num_states=num_states, num_transitions=num_transitions)
        checks.at_least(1, num_starts=num_starts)
        checks.at_least(0, control_dim=control_dim, num_lags=num_lags)
        checks.choice("emission", emission, EMISSIONS)
        checks.choice("initial", initial, ("free", "stationary"))
        checks.choice("transition", transition, ("free", "left-right"))
        checks.choice("controls", controls, ("emission", "transition", "both"))
        checks.choice("start", start, ("k-means", "random"))
        if sticky < 0.0:
            raise ValueError(f"`sticky` must be at least 0; received {sticky!r}.")
        if num_lags and emission != "normal":
            raise ValueError(f"`num_lags` is for emission='normal'; received {num_lags} with emission={emission!r}.")
        takes_controls = emission in ("normal", "neural")
        if control_dim and controls != "transition" and not takes_controls:
            raise ValueError(
                f"`controls` must be 'transition' for emission={emission!r}, which regresses on nothing; received {controls!r}."
            )
        if transition == "left-right":
            if fixed_transition is not None or fixed_initial is not None or initial == "stationary":
                raise ValueError("`transition='left-right'` fixes the initial and transition entries itself; leave theirs out.")
            may = np.eye(num_states) + np.eye(num_states, k=1)
            rows = np.where(may > 0.0, np.nan, 0.0).tolist()
            fixed_transition = [*rows[:-1], [0.0] * (num_states - 1) + [1.0]]
            fixed_initial = [1.0] + [0.0] * (num_states - 1)
        if initial == "stationary" and fixed_initial is not None:
            raise ValueError("`fixed_initial` is for initial='free': a stationary distribution follows from the transitions.")
        self.num_states, self.control_dim, self.num_transitions = num_states, control_dim, num_transitions
        self.is_stationary, self.num_lags = initial == "stationary", num_lags
        self.moves_with_controls = bool(control_dim) and controls != "emission"
        options: dict[str, dict[str, Any]] = {
            "normal": {"covariance": covariance, "num_lags": num_lags},
            "mixture": {"covariance": covariance, "num_components": num_components},
            "student-t": {"covariance": covariance, "df": df},
            "neural": {"head": head, "hidden_dim": hidden_dim},
        }
        regresses = {"control_dim": control_dim} if takes_controls and controls != "transition" else {}
        self._make: dict[str, Any] = {
            "emission": (emission, observation_dim, mean, stddev, emission_prior),
            "options": options.get(emission, {}) | regresses,
            "fixed": (fixed_initial, fixed_transition, tied_transition),
            "concentration": (initial_concentration, transition_concentration, sticky),
        }
        made = self._parameters(1)
        self.initial, self.transition, self.emission = made.initial, made.transition, made.emission
        self._all = made
        if self.is_stationary and len(classes := closed_classes(self._first_matrix(made.transition.fixed) != 0.0)) > 1:
            raise ValueError(
                "`initial='stationary'` needs transitions with one stationary distribution; those of `fixed_transition` have "
                f"several, as the states {classes} lead to no others. Free an entry between them, or take initial='free'."
            )
        self.initial.trainable = not self.is_stationary
        if self.moves_with_controls:
            self.control_weights = self.add_weight(
                shape=(control_dim, num_states, num_states), initializer="zeros", autocast=False, name="control_weights"
            )
        self.missing = self.emission.takes_missing_features
        self.methods = self._methods_with_closed_forms()
        if num_starts > 1 and "em" not in self.methods:
            raise ValueError(f"`num_starts` must be 1 where there is no EM ({_NO_CLOSED_FORM}); received {num_starts}.")
        if "em" in self.methods:
            shapes = made.statistics_shapes()
            self.create_statistics(shapes)
            self.learned = [  # those that the posterior of variational Bayes rests on
                self.add_weight(
                    shape=shape, dtype="float64", initializer="zeros", trainable=False, autocast=False, name=f"learned_{i}"
                )
                for i, shape in enumerate(shapes)
            ]
            self._learn_from(_TYPICAL)
        self.create_weights()

    def _learn_from(self, num: float) -> None:
        """The posterior of variational Bayes begins as that of `num` observations of each state like the parameters say."""
        probs = [tf.cast(tf.exp(table.log_probs()), tf.float64) for table in (self.initial, self.transition)]
        found = [probs[0], num * probs[1], *(num * a for a in self.emission.typical_statistics())]
        for kept, new in zip(self.learned, found, strict=True):
            kept.assign(new)

    def _methods_with_closed_forms(self) -> tuple[str, ...]:
        if self.moves_with_controls:
            return ("gradient",)
        methods = self.emission.methods
        return tuple(m for m in methods if not (self.is_stationary and m == "vb"))

    def _parameters(self, num_copies: int) -> _Parameters:
        """New parameters of `num_copies` such models side by side."""
        size, steps = self.num_states, self.num_transitions
        fixed_initial, fixed_transition, tied = self._make["fixed"]
        initial_concentration, concentration, sticky = self._make["concentration"]

        def several(name: str, value: Any, times: int, *shape: int) -> Any:
            return None if value is None else np.tile(checked_entries(name, value, shape, nan=True), [times, 1])

        tied_all = None
        if tied is not None:
            one = checked_entries("tied_transition", tied, (size, size))
            tied_all = np.concatenate([one + i * (one.max() - one.min() + 1) for i in range(num_copies * steps)])
        stay = np.full([size, size], concentration) + sticky * np.eye(size)
        name, event_dim, mean, stddev, prior = self._make["emission"]
        dtype = self.variable_dtype  # whatever the global policy is when copies are made
        return _Parameters(
            ProbabilityTable(
                [num_copies, size],
                several("fixed_initial", fixed_initial, num_copies, size),
                None,
                initial_concentration,
                label="initial",
                dtype=dtype,
                name="initial",
            ),
            ProbabilityTable(
                [num_copies * steps * size, size],
                several("fixed_transition", fixed_transition, num_copies * steps, size, size),
                tied_all,
                np.tile(stay, [num_copies * steps, 1]),
                label="transition",
                name="transition",
                dtype=dtype,
            ),
            EMISSIONS[name](
                num_copies * size,
                event_dim,
                prior=prior,
                mean=mean,
                stddev=stddev,
                pooled_states=size,
                name="emission",
                dtype=dtype,
                **self._make["options"],
            ),
        )

    @classmethod
    def from_data(cls, dataset: Any, **hyperparameters: Any) -> Self:
        """A model for the observations `dataset.x` (and `.observed`, `.u`), started as `start` and `num_starts` say."""
        dataset = cls.as_dataset(dataset)
        if not len(dataset.x) or not sum(map(len, dataset.x)):
            raise ValueError("`dataset` has no steps; the size and the mean of its observations make the model.")
        observed, u = getattr(dataset, "observed", None), getattr(dataset, "u", None)
        name = hyperparameters.get("emission", "normal")
        checks.choice("emission", name, EMISSIONS)
        rows = np.concatenate([np.asarray(a) for a in dataset.x])
        seen = np.ones(rows.shape, bool) if observed is None else np.concatenate(observed)
        is_symbol = name == "categorical" or (name == "neural" and hyperparameters.get("head") == "categorical")
        if is_symbol:
            if rows.ndim != 1 or rows.dtype.kind not in "iu":
                raise ValueError(
                    f"`dataset.x` must hold symbols [T] of whole numbers for this emission; received {rows.dtype} of shape "
                    f"[T, {', '.join(map(str, rows.shape[1:]))}]. In a CSV file the column is called `symbol`."
                )
            frequencies = np.bincount(rows[seen]) / max(seen.sum(), 1)
            found: dict[str, Any] = {"observation_dim": len(frequencies), "mean": frequencies.tolist()}
        else:
            if rows.ndim != 2:
                raise ValueError(
                    f"`dataset.x` must hold vectors [T, D] for emission={name!r}; received shape {list(rows.shape)}. "
                    "Symbols have emission='categorical'."
                )
            count = np.maximum(seen.sum(0), 1)
            values = np.where(seen, rows, 0.0).astype(np.float64)
            mean = values.sum(0) / count
            deviation = np.sqrt(np.where(seen, (values - mean) ** 2, 0.0).sum(0) / count)
            found = {"observation_dim": rows.shape[1], "mean": mean.tolist(), "stddev": deviation.tolist()}
        found["control_dim"] = 0 if u is None else int(u[0].shape[-1])
        model = cls(**{**found, **hyperparameters})
        model.initialise(dataset)
        return model

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        return cls(**{"observation_dim": 3, "num_states": 3, "emission": "bernoulli", **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        x = self.emission.spec(None, None)
        specs = {"x": x, "observed": tf.TensorSpec(x.shape, tf.bool)}
        specs |= {"u": tf.TensorSpec([None, None, self.control_dim])} if self.control_dim else {}
        return specs | {"y": tf.TensorSpec([None, None], tf.int32)}

    def check_values(self, x: np.ndarray) -> None:
        self.emission.check(x)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        return self.emission.supports(x, self.emission.event_dim)

    def as_batch(self, data: Any) -> Batch:
        """As of every model; `y` are known states, `[B, T]` from 0 to K - 1, -1 where a state is unknown."""
        batch = super().as_batch(data)
        if "y" in batch:
            bad = batch["mask"] & ((batch["y"] < -1) | (batch["y"] >= self.num_states))
            if bad.any():
                place = tuple(int(i) for i in np.argwhere(bad)[0])
                raise ValueError(
                    f"`y` must hold states from 0 to {self.num_states - 1}, or -1 where unknown; "
                    f"received {batch['y'][place]} at index {place}."
                )
        if "observed" in batch and not self.missing and not self.emission.is_symbol:
            seen = batch["observed"]
            partly = batch["mask"] & (seen.any(-1) != seen.all(-1))
            if self.num_lags:
                partly = batch["mask"] & ~seen.all(-1)
            if partly.any():
                place = tuple(int(i) for i in np.argwhere(partly)[0])
                rule = "in full or not at all at a step for this emission"
                hint = "Mark the whole step as missing."
                if self.num_lags:
                    rule, hint = "in full at every step with `num_lags`", "Later steps regress on every feature of it."
                raise ValueError(f"`observed` must be {rule}; it is not at index {place}. {hint}")
        return batch

    def kept_rules(self, batch: Batch) -> list[tf.Tensor]:
        whole = known = tf.constant(True)
        if "observed" in batch and not self.missing and not self.emission.is_symbol:
            every, some = tf.reduce_all(batch["observed"], -1), tf.reduce_any(batch["observed"], -1)
            whole = every | ~batch["mask"] if self.num_lags else (every == some) | ~batch["mask"]
        if "y" in batch:
            known = (batch["y"] >= -1) & (batch["y"] < self.num_states) | ~batch["mask"]
        return [whole, known]

    def compile(self, optimizer: Any = "rmsprop", *, method: str = "gradient", **kwargs: Any) -> None:
        """As of every model. Variational Bayes begins with what the last update of all data learned, else with the parameters."""
        if method in ("em", "map", "vb") and method not in self.methods:
            why = _NO_CLOSED_FORM
            if "em" in self.methods:
                why = "neither a stationary start nor student-t emissions have a conjugate posterior"
            raise ValueError(f"`method` must be one of {list(self.methods)} for this model; received {method!r} ({why}).")
        before, was_online = getattr(self, "method", None), getattr(self, "step_size", None) is not None
        super().compile(optimizer, method=method, **kwargs)
        if "em" in self.methods:
            self.forget()
            self.num_updates.assign(0)
            if method == "vb" and (before == "gradient" or was_online):  # neither keeps what it learned
                self._learn_from(_TYPICAL)

    # The chain of a batch ------------------------------------------------------------------------------------------

    def _inputs(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
        """(x, finite everywhere; what was observed of it, or None; the emission's context)."""
        mask, observed = batch["mask"], batch.get("observed")
        x = fill(batch["x"], mask)
        if observed is not None:
            observed = observed & tf.reshape(mask, tf.concat([tf.shape(mask), [1] * (observed.shape.rank - 2)], 0))
            x = fill(x, observed)
        u = fill(batch["u"], mask) if self.control_dim else None
        return x, observed, self.emission.context(x, u)

    def _log_emission(self, batch: Batch) -> tf.Tensor:
        """log p(x_t | z_t = k), and -inf where a label says otherwise, `[B, T, K]`."""
        return self._under_labels(batch, self.emission.log_prob(*self._inputs(batch)))

    def _under_labels(self, batch: Batch, log_emission: tf.Tensor) -> tf.Tensor:
        """`[B, T, K]` (of R models `[B, T, R K]`) with -inf at the states that known labels rule out."""
        if "y" not in batch:
            return log_emission
        y, states = batch["y"][..., None], tf.range(log_emission.shape[-1]) % self.num_states
        return tf.where((y < 0) | (y == states), log_emission, tf.constant(-math.inf, log_emission.dtype))

    def _matrices(self, log_probs: tf.Tensor) -> tf.Tensor:
        """Rows of the table -> `[K, K]`, or with several matrices `[S, K, K]`."""
        if self.num_transitions == 1:
            return log_probs
        return tf.reshape(log_probs, [self.num_transitions, self.num_states, self.num_states])

    def _at_steps(self, matrices: tf.Tensor, first: tf.Tensor | int, num_steps: tf.Tensor) -> tf.Tensor:
        """The matrices of transitions `first`, `first + 1`, ... of `[S, K, K]`: `[num_steps, K, K]`."""
        return tf.gather(matrices, tf.minimum(first + tf.range(num_steps), self.num_transitions - 1))

    def _log_transition(self, u: tf.Tensor | None, num_steps: tf.Tensor, log_probs: tf.Tensor | None = None) -> tf.Tensor:
        """Of the transitions into steps 2 .. T as `ops.chains` takes them; u `[B, T, U]` are the controls of all steps."""
        if self.moves_with_controls:
            return self._controlled(u[:, 1:], num_steps)  # type: ignore[index]
        matrices = self._matrices(self.transition.log_probs() if log_probs is None else log_probs)
        return matrices if self.num_transitions == 1 else self._at_steps(matrices, 0, num_steps - 1)

    def _controlled(self, u: tf.Tensor, num_steps: tf.Tensor, first: tf.Tensor | int = 0) -> tf.Tensor:
        """A_ij(u) proportional to exp(a_ij + w_ij' u) over the free entries: u `[B, T-1, U]` -> `[B, T-1, K, K]`."""
        free = np.isnan(self.transition.fixed.reshape(self.num_transitions, self.num_states, self.num_states))
        logs = self._matrices(self.transition.log_probs())
        if self.num_transitions > 1:
            logs = self._at_steps(logs, first, num_steps - 1)
            free = tf.gather(free, tf.minimum(first + tf.range(num_steps - 1), self.num_transitions - 1))
        else:
            free = tf.constant(free[0])
        weights = tf.cast(self.control_weights, logs.dtype)
        change = tf.einsum("btu,uij->btij", tf.cast(u, logs.dtype), weights)
        scores = tf.where(free, logs + change, tf.constant(-1e30, logs.dtype))
        # the free entries of a row share what its fixed ones leave
        mass = tf.reduce_sum(tf.where(free, tf.exp(logs), tf.zeros_like(logs)), -1, keepdims=True)
        return tf.where(free, tf.nn.log_softmax(scores) + tf.math.log(tf.maximum(mass, 1e-30)), logs)

    def _log_initial(self) -> tf.Tensor:
        """log p(z_1), `[K]`."""
        return stationary(self._first_matrix(self.transition.log_probs())) if self.is_stationary else self.initial.log_probs()[0]

    def _first_matrix(self, log_probs: Any) -> Any:
        """Rows of the table -> the matrix of the first transition, `[K, K]`."""
        return log_probs[: self.num_states]

    def _chain(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """What every function of `ops.chains` takes."""
        u = fill(batch["u"], batch["mask"]) if self.control_dim else None
        transition = self._log_transition(u, tf.shape(batch["x"])[1])
        return self._log_initial(), transition, self._log_emission(batch), batch["mask"]

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        log_prob = chains.log_prob(*self._chain(batch))
        return Terms(log_prob, tf.zeros_like(log_prob), batch["mask"])

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """log p(x) of each sequence, `[B]`: what `predict` returns."""
        return self.terms(self.complete(batch), training).log_lik

    # EM, MAP and variational Bayes ---------------------------------------------------------------------------------

    def _expectation(
        self, batch: Batch, made: _Parameters, learned: Sequence[tf.Tensor] | None
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """E step: log p(x) `[B]` (R models: `[R B]`), and expected statistics in the order of `_Parameters`.

        `learned`: with variational Bayes the statistics behind the posterior, whose expected logarithms take the place of the
        parameters (Beal 2003, sec. 3.4.2).
        """
        copies = made.initial.shape[0]
        if learned is None:
            initial, transition, natural = made.initial.log_probs(), made.transition.log_probs(), None
            if self.is_stationary and copies == 1:
                initial = self._log_initial()[None]
        else:
            parts = made.split(learned)
            initial, transition = made.initial.expected_log_probs(parts[0]), made.transition.expected_log_probs(parts[1])
            natural = made.emission.expected_natural(parts[2])
        inputs, mask = self._inputs(batch), batch["mask"]
        num_rows, num_steps = tf.unstack(tf.shape(mask))
        log_emission = self._under_labels(batch, made.emission.log_prob(*inputs, natural))
        size = self.num_states
        if copies == 1:
            chain = (initial[0], self._log_transition(None, num_steps, transition), log_emission, mask)
        else:  # every model's sequences are rows of their own
            log_emission = tf.reshape(log_emission, [num_rows, num_steps, copies, size])
            log_emission = tf.reshape(tf.transpose(log_emission, [2, 0, 1, 3]), [copies * num_rows, num_steps, size])
            matrices = tf.reshape(transition, [copies, self.num_transitions, size, size])
            if self.num_transitions > 1:
                steps = tf.minimum(tf.range(num_steps - 1), self.num_transitions - 1)
                matrices = tf.gather(matrices, steps, axis=1)
            chain = (
                tf.repeat(initial, num_rows, 0),
                tf.repeat(matrices, num_rows, 0),
                log_emission,
                tf.tile(mask, [copies, 1]),
            )
        log_prob, probs, pairs = chains.smooth_and_count(*chain)
        first = tf.reduce_sum(tf.reshape(probs[:, 0], [copies, num_rows, size]), 1)
        if copies > 1:
            probs = tf.reshape(
                tf.transpose(tf.reshape(probs, [copies, num_rows, num_steps, size]), [1, 2, 0, 3]),
                [num_rows, num_steps, copies * size],
            )
            pairs = tf.reduce_sum(tf.reshape(pairs, [copies, num_rows, -1, size, size]), 1)
        if self.num_transitions > 1:
            step = tf.minimum(tf.range(tf.shape(pairs)[-3]), self.num_transitions - 1)
            order = [1, 0, 2, 3] if copies > 1 else [0, 1, 2]
            pairs = tf.math.unsorted_segment_sum(tf.transpose(pairs, order), step, self.num_transitions)
            pairs = tf.transpose(pairs, order)
        pairs = tf.reshape(pairs, [-1, size])
        statistics = [first, pairs, *made.emission.statistics(*inputs, probs, natural)]
        return log_prob, [tf.cast(a, tf.float64) for a in statistics]

    def if_not_finite(self) -> str:
        return f"{super().if_not_finite()} Known states (`y`) or zeros of the transitions may rule a sequence out."

    def penalty(self) -> tf.Tensor:
        """What the objective of MAP or variational Bayes takes from the log-likelihood, nats, once for all data."""
        if self.method == "map":
            parts = self._all.parts[1:] if self.is_stationary else self._all.parts
            return -tf.add_n([tf.cast(part.log_prior(), tf.float64) for part in parts])
        if self.method == "vb":
            learned = self._all.split([a.value for a in self.learned])
            return tf.add_n([part.divergence(own) for part, own in zip(self._all.parts, learned, strict=True)])
        return tf.constant(0.0, tf.float64)

    def xla_pays(self, num_sequences: int, num_steps: int, num_shapes: int) -> bool:
        work = num_sequences * num_steps * self.num_states**2
        # E steps of 64 x 500 steps of 16 states take 30 ms, with XLA 11, which compiles for 3.5 s (README). Gradients are left
        # alone, which need the check of a loss before every update; XLA refuses chains of one or two steps.
        alike = self.num_states <= 64 and num_steps > 9  # forms of the recursions as measured
        return self.method != "gradient" and self.step_size is None and alike and work >= 2e9 * num_shapes

    def expectation(self, batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return self._expectation(batch, self._all, [a.value for a in self.learned] if self.method == "vb" else None)

    def maximise(self, statistics: Sequence[tf.Tensor]) -> None:
        self._all.maximise(statistics)

    def end_pass(self) -> None:
        self._update(self.method)

    @tf.function(autograph=False)
    def _update(self, method: str) -> None:
        statistics = [a.value for a in self.statistics]
        for kept, new in zip(self.learned, statistics, strict=True):
            kept.assign(new)
        if method == "vb":
            for part, own in zip(self._all.parts, self._all.split(statistics), strict=True):
                part.use_mean(own)
        elif self.is_stationary:
            self._update_stationary(statistics, method == "map")
        else:
            self._all.maximise(statistics, method == "map")

    def _update_stationary(self, statistics: list[tf.Tensor], prior: bool) -> None:
        """The transitions enter p(z_1) too, so their part of the M step has no closed form: L-BFGS, never to a worse place."""
        first, pairs, *rest = statistics
        table = self.transition
        self.emission.maximise(rest, prior)
        old = tf.cast(table.logits, tf.float64)
        table.maximise(pairs, prior)
        start = tf.maximum(tf.cast(table.logits, tf.float64), -30.0)

        def loss(logits: tf.Tensor) -> tf.Tensor:
            logs = table.log_probs(logits)
            start_gain = tf.reduce_sum(stationary(self._first_matrix(logs)) * first[0])
            gain = tf.reduce_sum(tf.math.multiply_no_nan(logs, pairs)) + start_gain
            return -gain - (table.log_prior(logits) if prior else 0.0)

        found = tfp.optimizer.lbfgs_minimize(
            lambda flat: tfp.math.value_and_gradient(lambda a: loss(tf.reshape(a, start.shape)), flat),
            tf.reshape(start, [-1]),
            max_iterations=30,
        )
        new = tf.reshape(found.position, start.shape)
        table.logits.assign(tf.cast(tf.where(loss(new) <= loss(old), new, old), table.logits.dtype))

    # Starting ------------------------------------------------------------------------------------------------------

    def initialise(self, data: Any) -> None:
        """Starts from data as `start` and `num_starts` say: emissions from clusters, transitions from their succession.

        Of several starts, each has some steps of EM, all side by side, and the one of the highest likelihood is kept.
        """
        config = self.get_config()
        num_starts = config["num_starts"]
        if "em" not in self.emission.methods:
            return  # without closed forms the weights are as they were drawn
        batch = self.as_batch(data)
        rng = np.random.default_rng(np.asarray(self.seed).astype(np.uint32))
        made = self._all if num_starts == 1 else self._parameters(num_starts)
        probs = np.concatenate([self._guess(batch, config["start"], rng) for _ in range(num_starts)], -1)
        statistics = self._statistics_of(batch, made, probs)
        made.maximise(statistics)
        if num_starts == 1 and "em" in self.methods:
            for kept, new in zip(self.learned, statistics, strict=True):
                kept.assign(new)
        if num_starts > 1:
            self._keep_the_best(made, batch, num_starts)

    def _guess(self, batch: Batch, start: str, rng: np.random.Generator) -> np.ndarray:
        """p(z_t = k) `[B, T, K]` to start from."""
        mask, size = batch["mask"], self.num_states
        shape = (*mask.shape, size)
        if "y" in batch:
            known = batch["y"] >= 0
        if start == "random" or self.emission.is_symbol:
            probs = rng.dirichlet(np.ones(size), mask.shape)
        else:
            from sklearn.cluster import KMeans

            rows = np.where(mask[..., None] & batch.get("observed", True), batch["x"], self.emission.data_mean)
            rows = ((rows - self.emission.data_mean) / self.emission.data_stddev)[mask]
            distinct = len(np.unique(rows, axis=0))
            labels = rng.integers(size, size=len(rows))
            if distinct >= size:
                few = rows if len(rows) <= 100_000 else rows[rng.choice(len(rows), 100_000, replace=False)]
                found = KMeans(size, n_init=1, random_state=int(rng.integers(2**31))).fit(few)
                labels = found.predict(rows)
            probs = np.zeros(shape)
            probs[mask] = 0.9 * np.eye(size)[labels] + 0.1 / size
        if "y" in batch:
            probs = np.where(known[..., None], np.eye(size)[np.maximum(batch["y"], 0)], probs)
        return np.where(mask[..., None], probs, 0.0)

    def _statistics_of(self, batch: Batch, made: _Parameters, probs: np.ndarray) -> list[tf.Tensor]:
        """Statistics as an E step would give them, of marginals `[B, T, R K]` whose steps are independent."""
        batch = self.complete(batch)
        copies, size = made.initial.shape[0], self.num_states
        split = probs.reshape(*probs.shape[:2], copies, size)
        first = split[:, 0].sum(0)
        pairs = np.zeros([copies, self.num_transitions, size, size])
        for s in range(self.num_transitions):
            steps = slice(s, None) if s == self.num_transitions - 1 else slice(s, s + 1)
            before, after = split[:, :-1][:, steps], split[:, 1:][:, steps]
            pairs[:, s] = np.einsum("btri,btrj->rij", before, after) + 1.0
        statistics = made.emission.statistics(*self._inputs(batch), tf.constant(probs, self.emission.compute_dtype))
        return [tf.constant(first), tf.constant(pairs.reshape(-1, size)), *(tf.cast(a, tf.float64) for a in statistics)]

    def _keep_the_best(self, made: _Parameters, batch: Batch, num_starts: int) -> None:
        batch = self.complete({name: tf.constant(value) for name, value in batch.items()})

        @tf.function(autograph=False)
        def iterate() -> tuple[tf.Tensor, list[tf.Tensor]]:
            log_prob, statistics = self._expectation(batch, made, None)
            made.maximise(statistics)
            return tf.reduce_sum(tf.reshape(log_prob, [num_starts, -1]), 1), statistics

        for _ in range(_START_ITERATIONS):
            log_prob, statistics = iterate()
        best = int(np.nanargmax(np.asarray(log_prob)))
        for part, wide in zip(self._all.parts, made.parts, strict=True):
            for own, several in zip(part.weights, wide.weights, strict=True):
                share = several.shape[0] // num_starts
                own.assign(several[best * share : (best + 1) * share])
        for kept, new in zip(self.learned, statistics, strict=True):
            share = new.shape[0] // num_starts
            kept.assign(new[best * share : (best + 1) * share])

    # What users ask of it ------------------------------------------------------------------------------------------

    def log_prob(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None) -> tf.Tensor:
        """log p(x), exact, nats, `[B]`; -inf where the model rules x out.

        Args:
            x: `[B, T, D]` (symbols `[B, T]`), or anything that `as_batch` takes (a list of sequences, a dict, a data set).
            mask: `[B, T]` bool, right-padded; all real by default.
            observed: bool of the shape of x, False where a feature was not measured; it is summed or integrated out.
            u: controls `[B, T, U]`, where the model has them.
            y: known states `[B, T]`, -1 where unknown; then log p(x, y).
        """
        return self._log_prob(self.given(x, mask, observed=observed, u=u, y=y))

    def filter(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None) -> chains.Filtered:
        """log p(x_t | x_1 .. x_{t-1}), one-step predictions and filtered states; arguments as of `log_prob`."""
        return self._filter(self.given(x, mask, observed=observed, u=u, y=y))

    def posterior(
        self, x: Any, mask: Any = None, seed: Any = (0, 0), *, observed: Any = None, u: Any = None, y: Any = None
    ) -> chains.Posterior:
        """Predicted, filtered, smoothed and leave-one-out marginals; nothing is random. Arguments as of `log_prob`."""
        return self._posterior(self.given(x, mask, seed, observed=observed, u=u, y=y))

    def posterior_marginals(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None) -> tf.Tensor:
        """p(z_t | x), `[B, T, K]`; zeros at padded steps (27)."""
        return self._smooth(self.given(x, mask, observed=observed, u=u, y=y))

    def posterior_mode(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None) -> chains.Path:
        """The most probable path and log p(x, path) (Viterbi; 32-35): states `[B, T]`, -1 at padded steps, score `[B]`."""
        return self._viterbi(self.given(x, mask, observed=observed, u=u, y=y))

    def two_slice_marginals(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None) -> tf.Tensor:
        """p(z_t, z_{t+1} | x), `[B, T-1, K, K]` (37)."""
        return self._two_slice(self.given(x, mask, observed=observed, u=u, y=y))

    def leave_one_out(self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None) -> LeaveOneOut:
        """p(z_t | all x but x_t) and log p(x_t | all other x) for every t, from one pass forward and back.

        p(z_t | x_-t) is proportional to the one-step prediction times the backward message. With an autoregressive emission x_t
        also stands in the means of later steps, where it stays: there this is no leave-one-out, and raises.
        """
        if self.num_lags:
            raise ValueError(
                "`leave_one_out` needs an emission without `num_lags`: later steps regress on what would be left out."
            )
        return self._leave_one_out(self.given(x, mask, observed=observed, u=u, y=y))

    def posterior_sample(
        self,
        x: Any,
        mask: Any = None,
        num_samples: int = 1,
        seed: Any = (0, 0),
        *,
        observed: Any = None,
        u: Any = None,
        y: Any = None,
    ) -> tf.Tensor:
        """Paths from p(z | x), `[B, S, T]` int32, -1 at padded steps."""
        batch = self.given(x, mask, seed, observed=observed, u=u, y=y)
        return self._sample_paths(batch, *counts(num_samples=num_samples))

    def sample(
        self, num_sequences: int, num_steps: int, seed: Any = (0, 0), *, u: Any = None, return_states: bool = False
    ) -> Any:
        """New sequences `[num_sequences, num_steps, D]`, with `return_states` also their states `[num_sequences, num_steps]`.

        `u` `[num_sequences, num_steps, U]` where the model has controls. A multinomial emission draws one trial a step.
        """
        num_sequences, num_steps = counts(num_sequences=num_sequences, num_steps=num_steps)
        seed = random.row_seeds(seed, tf.range(num_sequences))
        x, states = self._sample(num_steps, seed, self.future_controls(u, num_sequences, num_steps, "u"))
        return (x, states) if return_states else x

    def forecast(
        self,
        x: Any,
        mask: Any = None,
        num_steps: int = 1,
        num_samples: int = 100,
        seed: Any = (0, 0),
        *,
        observed: Any = None,
        u: Any = None,
        future_u: Any = None,
    ) -> tf.Tensor:
        """Continuations of each sequence after its last real step: samples `[B, num_samples, num_steps, D]`.

        `future_u` `[B, num_steps, U]` are the controls to come. `predictive` gives their exact marginals.
        """
        batch = self.given(x, mask, seed, observed=observed, u=u)
        num_steps, num_samples = counts(num_steps=num_steps, num_samples=num_samples)
        future_u = self.future_controls(future_u, tf.shape(batch["x"])[0], num_steps, "future_u")
        return self._forecast(batch, num_steps, num_samples, future_u)

    def predictive(
        self, x: Any, mask: Any = None, num_steps: int = 1, *, observed: Any = None, u: Any = None, future_u: Any = None
    ) -> Predictive:
        """Exact distribution of the state at each of the next steps, and the mean of the observation there.

        The mean has no closed form where the emission regresses on earlier steps: with `num_lags` this raises; use `forecast`.
        """
        if self.num_lags:
            raise ValueError("`predictive` needs an emission without `num_lags`: its mean has no closed form. Use `forecast`.")
        batch = self.given(x, mask, observed=observed, u=u)
        (num_steps,) = counts(num_steps=num_steps)
        future_u = self.future_controls(future_u, tf.shape(batch["x"])[0], num_steps, "future_u")
        return Predictive(*self._predictive(batch, num_steps, future_u))

    def impute(
        self, x: Any, mask: Any = None, observed: Any = None, num_samples: int = 1, seed: Any = (0, 0), *, u: Any = None
    ) -> tf.Tensor:
        """Completions `[B, num_samples, T, D]`: x where `observed`, else a sample given all that was; zeros at padded steps."""
        batch = self.given(x, mask, seed, observed=observed, u=u)
        if "observed" not in batch:
            raise ValueError("`impute` needs `observed`, bool of the shape of `x`, False where a value is to be filled in.")
        return self._impute(batch, *counts(num_samples=num_samples))

    def decode(self, data: Any) -> dict[str, np.ndarray]:
        """Most probable path and marginals of a batch, for tables: `state` `[B, T]`, `prob` `[B, T, K]`."""
        batch = self.given(data)
        return {"state": self._viterbi(batch).states.numpy(), "prob": self._smooth(batch).numpy()}

    def distribution(self, num_steps: int) -> Distribution:
        """The `tfd.HiddenMarkovModel` with the present parameters, which answers by the same exact functions."""
        from tfseq.distributions import HiddenMarkovModel as Distribution

        if self.moves_with_controls:
            raise ValueError("`distribution` needs transitions without controls: a distribution has no place for them.")
        categorical = tfp.distributions.Categorical
        transition, varying = self._log_transition(None, tf.constant(num_steps)), self.num_transitions > 1
        return Distribution(
            categorical(logits=self._log_initial()),
            categorical(logits=transition),
            self.emission.distribution(),
            num_steps,
            time_varying_transition_distribution=varying,
        )

    @property
    def num_parameters(self) -> int:
        """Free parameters: fixed and tied entries are not counted, a row of K probabilities counts K - 1."""
        total = self.transition.num_parameters + self.emission.num_parameters
        total += 0 if self.is_stationary else self.initial.num_parameters
        if self.moves_with_controls:  # a constant added to a row changes nothing
            free = np.isnan(self.transition.fixed).sum(1).reshape(self.num_transitions, -1)[0]
            total += self.control_dim * int(np.maximum(free - 1, 0).sum())
        return total

    def information_criteria(
        self, x: Any, mask: Any = None, *, observed: Any = None, u: Any = None, y: Any = None
    ) -> dict[str, float]:
        """`log_prob` of all sequences, `num_parameters` p, `num_steps` n, AIC = -2 log L + 2 p and BIC = -2 log L + p log n.

        Steps of which nothing was observed do not count in n (Zucchini and MacDonald 2009, sec. 6.1).
        """
        batch = self.given(x, mask, observed=observed, u=u, y=y)
        total, p = float(np.sum(np.asarray(self._log_prob(batch), np.float64))), self.num_parameters
        seen = batch["mask"]
        if "observed" in batch:
            observed = batch["observed"]
            seen &= observed if self.emission.is_symbol else tf.reduce_any(observed, -1)
        n = int(tf.math.count_nonzero(seen))
        return {
            "log_prob": total,
            "num_parameters": p,
            "num_steps": n,
            "aic": -2.0 * total + 2.0 * p,
            "bic": -2.0 * total + p * math.log(max(n, 1)),
        }

    @classmethod
    def select_num_states(
        cls,
        data: Any,
        candidates: Iterable[int] = range(1, 7),
        *,
        criterion: Literal["bic", "aic"] = "bic",
        epochs: int = 200,
        min_delta: float = 1e-5,
        **hyperparameters: Any,
    ) -> tuple[Self, dict[int, dict[str, float]]]:
        """Trains a model by EM for every number of states.

        Args:
            data: as of `from_data`.
            candidates: numbers of states.
            criterion: what is least for the model that is returned.
            epochs: at most, of EM for each; it ends where an epoch gains less than `min_delta` nats a step.
            min_delta: see `epochs`.
            **hyperparameters: of the models.

        Returns:
            the best model, and number of states -> `information_criteria` of each.
        """
        checks.choice("criterion", criterion, ("bic", "aic"))
        data = cls.as_dataset(data)
        best, table = None, {}
        for num_states in candidates:
            model = cls.from_data(data, **{**hyperparameters, "num_states": num_states})
            model.compile(method="em")
            stop = keras.callbacks.EarlyStopping("loss", min_delta=min_delta, patience=3)
            model.fit(data, epochs=epochs, callbacks=[stop], verbose=0, batch_size=len(data.x))
            table[num_states] = model.information_criteria(data)
            if best is None or table[num_states][criterion] < table[best.num_states][criterion]:
                best = model
        if best is None:
            raise ValueError("`candidates` must hold at least one number of states.")
        return best, table

    def init_state(self, num_sequences: int) -> dict[str, tf.Tensor]:
        """What is known before the first observation; see `filter_step`."""
        checks.at_least(1, num_sequences=num_sequences)
        return self._init_state(tf.zeros([num_sequences, 2], tf.int32))

    def filter_step(self, x: Any, state: Mapping[str, Any], *, u: Any = None, observed: Any = None) -> dict[str, tf.Tensor]:
        """One step of the exact filter.

        Args:
            x: the next observation of each sequence, `[B, D]` (symbols `[B]`).
            state: `log_belief` `[B, K]`, log p(z_t | x_1 .. x_{t-1}) of the step that x belongs to. Where transitions depend on
                time or controls it is that of the step before, log p(z_{t-1} | x_1 .. x_{t-1}), and `step` `[B]` counts the
                steps. `earlier` `[B, L, D]` with an autoregressive emission, the latest first.
            u: controls `[B, U]`, where the model has them.
            observed: bool of the shape of x, False where a feature was not measured.

        Returns:
            the next state, `log_prob` `[B]` = log p(x_t | x_1 .. x_{t-1}), and `probs` `[B, K]` = p(z_t | x_1 .. x_t).
        """
        batch = self.one_step(x=x, u=u, observed=observed)
        state = self.checked_state(state, self._init_state(batch["seed"]))
        now = [batch[name][:, 0] if name in batch else None for name in ("u", "observed")]
        return self._filter_step(batch["x"][:, 0], state, *now)

    # Their graphs --------------------------------------------------------------------------------------------------

    @graph
    def _log_prob(self, batch: Batch) -> tf.Tensor:
        return chains.log_prob(*self._chain(batch))

    @graph
    def _filter(self, batch: Batch) -> chains.Filtered:
        return chains.filter(*self._chain(batch))

    @graph
    def _posterior(self, batch: Batch) -> chains.Posterior:
        return chains.posterior(*self._chain(batch))

    @graph
    def _smooth(self, batch: Batch) -> tf.Tensor:
        return chains.smooth(*self._chain(batch))

    @graph
    def _two_slice(self, batch: Batch) -> tf.Tensor:
        return chains.two_slice(*self._chain(batch))

    @graph
    def _viterbi(self, batch: Batch) -> chains.Path:
        return chains.viterbi(*self._chain(batch))

    @graph
    def _leave_one_out(self, batch: Batch) -> LeaveOneOut:
        initial, transition, log_emission, mask = self._chain(batch)
        probs = chains.posterior(initial, transition, log_emission, mask).leave_one_out
        return LeaveOneOut(probs, fill(chains.log_sum_exp(tf.math.log(probs) + log_emission), mask))

    @graph
    def _sample_paths(self, batch: Batch, num_samples: tf.Tensor) -> tf.Tensor:
        chain = self._chain(batch)
        uniform = random.uniform(batch["seed"], tf.range(tf.shape(batch["mask"])[1]), num_samples, _PATH)
        return chains.sample(*chain[:3], uniform, chain[3])

    @graph
    def _sample(self, num_steps: tf.Tensor, seed: tf.Tensor, u: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        num_rows = tf.shape(seed)[0]
        nowhere = tf.fill([num_rows], -1)
        earlier = tf.zeros([num_rows, self.num_lags, self.emission.event_dim]) + tf.constant(self.emission.data_mean, tf.float32)
        return self._generate(nowhere, earlier, tf.zeros_like(nowhere), num_steps, seed, u)

    def _generate(
        self,
        state: tf.Tensor,
        earlier: tf.Tensor,
        step: tf.Tensor,
        num_steps: tf.Tensor,
        seed: tf.Tensor,
        u: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """x `[N, H, D]` and states `[N, H]` after `state` `[N]` (-1: there was none yet), which was step number `step` `[N]`.

        `earlier` `[N, L, D]` are the observations before, the latest first, as the data has them.
        """
        times = tf.range(tf.maximum(num_steps, 1))
        uniform = random.uniform(seed, times, 1, _STATE)[..., 0]
        noise = random.uniform(seed, times, self.emission.noise_dim, _EMISSION)
        controls = () if u is None else (tf.transpose(some_steps(u), [1, 0, 2]),)
        log_initial = self._log_initial()
        shared = None if self.moves_with_controls else self._matrices(self.transition.log_probs())

        def advance(carried: tuple, inputs: tuple) -> tuple:
            (state, *lags), (uniform, noise, t, *u) = carried, inputs
            earlier = lags[0] if lags else None
            before = tf.maximum(state, 0)
            if self.moves_with_controls:
                rows = self._controlled_rows(u[0], step + t - 1)
                row = tf.gather(rows, before, batch_dims=1)
            elif self.num_transitions == 1:
                row = tf.gather(shared, before)
            else:
                at = tf.clip_by_value(step + t - 1, 0, self.num_transitions - 1)
                row = tf.gather_nd(shared, tf.stack([at, before], -1))
            row = tf.where((state < 0)[:, None], log_initial, row)
            state = random.categorical_quantile(tf.exp(row), uniform)
            context = self._context_now(earlier, u[0] if u else None)
            x = self.emission.draw(state, noise, context)
            return (state, *(tf.concat([x[:, None], a[:, :-1]], 1) for a in lags)), x

        like = tf.zeros(self.emission.spec().shape, self.emission.spec().dtype)
        like = tf.zeros(tf.concat([tf.shape(state), tf.shape(like)], 0), like.dtype)
        start = (state, earlier) if self.num_lags else (state,)  # nothing is carried that has no elements: LiteRT cannot
        (states, *_), x = loop(advance, start, (uniform, noise, times, *controls), like)
        x = tf.transpose(x, [1, 0, *range(2, x.shape.rank)])[:, :num_steps]
        return x, tf.transpose(states)[:, :num_steps]

    def _controlled_rows(self, u: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """Transitions `[N, K, K]` of controls u `[N, U]` for transition number `at` `[N]`."""
        if self.num_transitions == 1:
            return self._controlled(u[:, None], tf.constant(2))[:, 0]
        every = tf.stack([self._controlled(u[:, None], tf.constant(2), s)[:, 0] for s in range(self.num_transitions)], 1)
        return tf.gather(every, tf.clip_by_value(at, 0, self.num_transitions - 1), batch_dims=1)

    def _context_now(self, earlier: tf.Tensor | None, u: tf.Tensor | None) -> tf.Tensor | None:
        """The emission's context of one step, `[N, P]`: earlier `[N, L, D]`, the latest first."""
        if earlier is not None and self.num_lags:
            # as if it were a sequence that ends now
            x = tf.concat([earlier[:, ::-1], tf.zeros_like(earlier[:, :1])], 1)
            u = None if u is None else tf.repeat(u[:, None], tf.shape(x)[1], 1)
            context = self.emission.context(x, u)
            return None if context is None else context[:, -1]
        if u is None:
            return None
        context = self.emission.context(tf.zeros([tf.shape(u)[0], 1, self.emission.event_dim]), u[:, None])
        return None if context is None else context[:, 0]

    def _last(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Of the last real step: filtered states `[B, K]`, lengths `[B]`, the observations before what follows `[B, L, D]`."""
        lengths = mask_to_lengths(batch["mask"])
        filtered = chains.filter(*self._chain(batch)).filtered
        place = tf.stack([tf.range(tf.size(lengths)), tf.maximum(lengths - 1, 0)], -1)
        earlier = tf.zeros([tf.size(lengths), 0, self.emission.event_dim])
        if self.num_lags:
            x, _, _ = self._inputs(batch)
            at = lengths[:, None] - 1 - tf.range(self.num_lags)
            mean = tf.constant(self.emission.data_mean, x.dtype)
            earlier = tf.where((at >= 0)[..., None], tf.gather(x, tf.maximum(at, 0), batch_dims=1), mean)
        return tf.gather_nd(filtered, place), lengths, earlier

    @graph
    def _forecast(self, batch: Batch, num_steps: tf.Tensor, num_samples: tf.Tensor, u: tf.Tensor | None) -> tf.Tensor:
        filtered, lengths, earlier = self._last(batch)
        seed = random.fold_in(batch["seed"], _FUTURE)
        uniform = random.uniform(seed, tf.constant([0]), num_samples, _PATH)[0]  # [B, S]
        state = tf.where((lengths == 0)[:, None], -1, random.categorical_quantile(filtered[:, None], uniform))
        seeds = tf.reshape(random.fold_in(seed[:, None], tf.range(num_samples)), [-1, 2])
        several = [tf.repeat(a, num_samples, 0) for a in (earlier, lengths)]
        u = u if u is None else tf.repeat(u, num_samples, 0)
        x, _ = self._generate(tf.reshape(state, [-1]), several[0], several[1], num_steps, seeds, u)
        return tf.reshape(x, tf.concat([[tf.size(lengths), num_samples], tf.shape(x)[1:]], 0))

    @graph
    def _predictive(self, batch: Batch, num_steps: tf.Tensor, u: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        filtered, lengths, _ = self._last(batch)
        initial = tf.exp(self._log_initial())
        is_new = (lengths == 0)[:, None]
        matrices = None if self.moves_with_controls else tf.exp(self._matrices(self.transition.log_probs()))
        controls = () if u is None else (tf.transpose(some_steps(u), [1, 0, 2]),)

        def advance(belief: tf.Tensor, inputs: tuple) -> tuple:
            t, *now = inputs
            if self.moves_with_controls:
                moves = tf.exp(self._controlled_rows(now[0], lengths + t - 1))
            elif self.num_transitions == 1:
                moves = matrices
            else:
                moves = tf.gather(matrices, tf.clip_by_value(lengths + t - 1, 0, self.num_transitions - 1))
            new = tf.matmul(belief, moves) if moves.shape.rank == 2 else tf.linalg.matvec(moves, belief, transpose_a=True)
            return tf.where(is_new & (t == 0), initial, new), ()

        probs, _ = loop(advance, filtered, (tf.range(tf.maximum(num_steps, 1)), *controls))
        probs = tf.transpose(probs, [1, 0, 2])[:, :num_steps]
        empty = tf.zeros(tf.concat([tf.shape(probs)[:2], self.emission.spec().shape], 0), self.emission.spec().dtype)
        context = self.emission.context(empty, None if u is None else u[:, : tf.shape(probs)[1]])
        if context is None:
            return probs, tf.einsum("bhk,kd->bhd", probs, self.emission.means())
        return probs, tf.einsum("bhk,bhkd->bhd", probs, self.emission.means_given(context))

    @graph
    def _impute(self, batch: Batch, num_samples: tf.Tensor) -> tf.Tensor:
        x, observed, context = self._inputs(batch)
        paths = tf.maximum(self._sample_paths(batch, num_samples), 0)  # [B, S, T]
        num_rows, num_steps = tf.unstack(tf.shape(batch["mask"]))
        seed = tf.reshape(random.fold_in(batch["seed"][:, None], tf.range(num_samples)), [-1, 2])
        width = self.emission.noise_dim
        noise = tf.transpose(random.uniform(seed, tf.range(num_steps), width, _EMISSION), [1, 0, 2])
        noise = tf.reshape(noise, [num_rows, num_samples, num_steps, width])

        def several(a: tf.Tensor | None) -> tf.Tensor:
            return a if a is None else tf.repeat(a[:, None], num_samples, 1)

        found = self.emission.complete(several(x), several(observed), paths, noise, several(context))
        return fill(found, tf.repeat(batch["mask"][:, None], num_samples, 1))

    @property
    def _counts_steps(self) -> bool:
        return self.moves_with_controls or self.num_transitions > 1

    def _init_state(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.shape(seed)[0]
        state = {"log_belief": tf.repeat(self._log_initial()[None], rows, 0)}
        if self._counts_steps:
            state["step"] = tf.zeros([rows], tf.int32)
        if self.num_lags:
            mean = tf.constant(self.emission.data_mean, tf.float32)
            state["earlier"] = tf.zeros([rows, self.num_lags, self.emission.event_dim]) + mean
        return state

    @graph
    def _filter_step(
        self, x: tf.Tensor, state: dict[str, tf.Tensor], u: tf.Tensor | None, observed: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        belief, after = state["log_belief"], {}
        if self._counts_steps:
            step = state["step"]
            if self.moves_with_controls:
                moves = self._controlled_rows(u, step - 1)
            else:
                moves = tf.gather(
                    self._matrices(self.transition.log_probs()), tf.clip_by_value(step - 1, 0, self.num_transitions - 1)
                )
            moved = tf.reduce_logsumexp(belief[..., None] + moves, -2)
            belief = tf.where((step == 0)[:, None], self._log_initial(), moved)
            after["step"] = step + 1
        earlier = state.get("earlier", tf.zeros([tf.shape(belief)[0], 0, self.emission.event_dim]))
        context = self._context_now(earlier, u)
        context = context if context is None else context[:, None]
        if observed is not None:
            x, observed = fill(x, observed), observed[:, None]
        joint = belief + self.emission.log_prob(x[:, None], observed, context)[:, 0]
        log_prob = chains.log_sum_exp(joint)
        filtered = tf.where(tf.math.is_finite(log_prob)[:, None], joint - log_prob[:, None], joint)
        if self.num_lags:
            after["earlier"] = tf.concat([x[:, None], earlier[:, :-1]], 1)
        after["log_belief"] = filtered
        if not self._counts_steps:
            after["log_belief"] = chains.log_sum_exp(filtered[..., None] + self.transition.log_probs(), -2)
        return after | {"log_prob": log_prob, "probs": tf.exp(filtered)}

    # Served signatures ---------------------------------------------------------------------------------------------

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures; inference is exact, so only `sample` takes a seed, and `num_particles` is not used."""
        x = self.batch_spec()["x"]

        def named(name: str, *shape: int | None, dtype: tf.DType = tf.int32) -> tf.TensorSpec:
            return tf.TensorSpec(shape, dtype, name)

        sequence = [tf.TensorSpec(x.shape, x.dtype, "x"), named("lengths", None)]
        controls = [named("u", None, None, self.control_dim, dtype=tf.float32)] if self.control_dim else []
        future = [named("future_u", None, None, self.control_dim, dtype=tf.float32)] if self.control_dim else []
        steps, seed = named("num_steps", None), named("seed", None, 2)

        def batch(given: dict[str, tf.Tensor]) -> Batch:
            """Served inputs as a batch."""
            entries: Batch = {name: given[name] for name in ("x", "u", "seed") if name in given}
            entries.setdefault("seed", tf.zeros([tf.shape(given["x"])[0], 2], tf.int32))
            return self.complete({**entries, "mask": lengths_to_mask(given["lengths"], tf.shape(given["x"])[1])})

        def cut(given: dict[str, tf.Tensor], a: tf.Tensor) -> tf.Tensor:
            return a[:, : tf.shape(given["x"])[1]]

        def score(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"log_prob": self._log_prob(batch(given))}

        def smooth(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"probs": cut(given, self._smooth(batch(given)))}

        def viterbi(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            path = self._viterbi(batch(given))
            return {"states": cut(given, path.states), "score": path.score}

        def leave_one_out(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            found = self._leave_one_out(batch(given))
            return {"log_prob": cut(given, found.log_prob), "probs": cut(given, found.probs)}

        def forecast(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps = given["num_steps"]
            probs, mean = self._predictive(batch(given), tf.reduce_max(num_steps), given.get("future_u"))
            return {"probs": until(probs, num_steps), "mean": until(mean, num_steps)}

        def sample(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            num_steps = given["num_steps"]
            x, states = self._sample(tf.reduce_max(num_steps), given["seed"], given.get("u"))
            length = tf.identity(num_steps)
            return {"x": until(x, num_steps), "states": until(states, num_steps), "length": length}

        state = self._init_state(tf.zeros([1, 2], tf.int32))
        states = [tf.TensorSpec([None, *a.shape[1:]], a.dtype, name) for name, a in state.items()]
        now = self.emission.spec(None)
        step = [tf.TensorSpec(now.shape, now.dtype, "x")]
        step += [named("u", None, self.control_dim, dtype=tf.float32)] if self.control_dim else []

        def init_state(seed: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._init_state(seed)

        def filter_step(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._filter_step(given["x"], {name: given[name] for name in state}, given.get("u"))

        found: dict[str, Endpoint] = {
            "serving_default": (score, [*sequence, *controls]),
            "smooth": (smooth, [*sequence, *controls]),
            "viterbi": (viterbi, [*sequence, *controls]),
            "leave_one_out": (leave_one_out, [*sequence, *controls]),
            "forecast": (forecast, [*sequence, *controls, steps, *future]),
            "sample": (sample, [steps, seed, *controls]),
            "init_state": (init_state, [seed]),
            "filter_step": (filter_step, [*step, *states]),
        }
        if self.num_lags:  # what is left out, or still to come, stands in the means of later steps
            del found["leave_one_out"], found["forecast"]
        return found
