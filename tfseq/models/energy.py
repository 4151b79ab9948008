"""What Boltzmann machines share: contrastive training with chains, log Z, likelihoods, Gibbs sampling, served signatures.

    p(v, h) = exp(-E(v, h)) / Z,     grad log p(v) = <-grad E>_{h | v} - <-grad E>_{v, h}

The second mean is over the model, and is what the samplers estimate. Each step of a sequence is a vector of its own; a data set
of vectors is one of sequences of one step. N rows (vectors), C chains, V visible units, n units of a layer.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.layers.heads import check_support
from tfseq.models.base import Batch, Endpoint, SequenceModel, Terms, counts, graph
from tfseq.ops import ais, random
from tfseq.ops.gibbs import Layered, Machine, Phase, States, exchange, gibbs
from tfseq.ops.masking import fill
from tfseq.ops.tracing import fused, kernels
from tfseq.ops.units import Units

Sampler = Literal["cd", "pcd", "fpcd", "pt", "exact"]
Binarise = Literal["sample", "threshold", "none"]

_FAST_DECAY, _FAST_RATE = 0.95, 0.01  # of fast weights: Tieleman and Hinton 2009, "Using fast weights to improve PCD", sec. 4
_TEMPERATURES = np.linspace(0.1, 1.0, 10)  # of parallel tempering
_DATA_NOISE, _CHAIN_NOISE = 1, 2
START_SWEEP = 2**20
"""The time of states drawn before the first sweep."""


class LogPartition(NamedTuple):
    """log Z of a machine, nats.

    Attributes:
        value: log Z, exact or estimated.
        low, high: log of (the estimate of Z -+ 3 standard errors); `value` itself where exact.
        ess: effective sample size of the weights, of `num_chains`; infinite where exact.
        reverse: the estimate by annealing from samples of the model back to the start, which errs upwards as the forward one errs
            downwards; `value` where exact, NaN where it was not made.
        method: `"exact"` or `"ais"`.
        num_chains, num_temperatures: of the annealing; 0 where exact.
    """

    value: float
    low: float
    high: float
    ess: float
    reverse: float
    method: str
    num_chains: int = 0
    num_temperatures: int = 0

    @property
    def converged(self) -> bool:
        """Whether forward and reverse annealing agree within a nat, or three standard errors, and no few chains decide."""
        if self.method == "exact":
            return True
        gap = abs(self.reverse - self.value)
        return self.ess >= 0.1 * self.num_chains and not gap > max(1.0, self.high - self.value)


def smaller(machine: Any) -> Any:
    """The machine with the side of fewer joint states as its odd one."""
    if not isinstance(machine, Layered) or len(machine.units) % 2:
        return machine
    return min(machine, machine.flipped(), key=lambda a: a.num_odd_states())


class Inferred(NamedTuple):
    """What a model infers of rows of observations.

    Attributes:
        even, odd: states or posterior means of all units.
        inputs: of the odd units, given `even`; of layered machines.
        log_prob: log of the unnormalised probability of each row, or a lower bound, `[N]`.
        directed: the part of it that directed layers make, `[N]`; None where there are none.
    """

    even: States
    inputs: States
    odd: States
    log_prob: tf.Tensor
    directed: tf.Tensor | None = None


@fused
def _drawn(x: tf.Tensor, seed: tf.Tensor, num: int) -> tf.Tensor:
    """Grey values x `[N, num]` as black and white, row seeds `[N, 2]`."""
    uniform = random.uniform(random.fold_in(seed, _DATA_NOISE), tf.zeros([1], tf.int32), num, 0)[0]
    return tf.cast(tf.cast(uniform, x.dtype) < x, x.dtype)


class EnergyModel(SequenceModel):
    """A Boltzmann machine that trains on vectors with `fit`, `[N, V]` or `[B, T, V]`.

    A model defines `machine`, `infer` and its constructor, which calls `_set_training` and ends with `create_weights`.
    """

    has_kl = False
    optional: ClassVar[frozenset[str]] = frozenset()
    is_bound: ClassVar[bool] = False
    """Whether `log_prob` is a lower bound, the posterior being approximate."""
    visible_units: Units
    log_scale: Any = None

    # What a model defines ------------------------------------------------------------------------------------------

    def machine(self) -> Machine:
        """The machine with the current parameters."""
        raise NotImplementedError

    def infer(self, s: tf.Tensor, seed: tf.Tensor) -> Inferred:
        """The hidden units given visible states s `[N, V]` in the units' own scale; row seeds `[N, 2]` where it samples."""
        raise NotImplementedError

    def visible_of(self, even: States, odd: States, seed: tf.Tensor) -> tf.Tensor:
        """Visible states `[N, V]` for those of the machine's units."""
        return even[0]

    # Construction --------------------------------------------------------------------------------------------------

    def _set_training(
        self,
        *,
        sampler: Sampler,
        num_chains: int,
        num_sweeps: int,
        max_sweeps: int | None,
        sweeps_growth: int,
        binarise: Binarise,
        l2: float,
        num_temperatures: int,
        samplers: Iterable[str] = ("cd", "pcd", "fpcd", "pt", "exact"),
    ) -> None:
        """Checks and keeps the settings that all machines share; see `RBM`."""
        checks.choice("sampler", sampler, samplers)
        checks.choice("binarise", binarise, ("sample", "threshold", "none"))
        checks.at_least(1, num_chains=num_chains, num_sweeps=num_sweeps)
        checks.at_least(2, num_temperatures=num_temperatures)
        checks.at_least(0, sweeps_growth=sweeps_growth)
        if max_sweeps is not None:
            checks.at_least(num_sweeps, max_sweeps=max_sweeps)
        if not 0.0 <= l2 < math.inf:
            raise ValueError(f"`l2` must be a number of at least 0; received {l2!r}.")
        self.sampler, self.num_chains, self.l2, self.binarise = sampler, num_chains, l2, binarise
        self.num_sweeps, self.max_sweeps, self.sweeps_growth = num_sweeps, max_sweeps or num_sweeps, sweeps_growth
        self.num_temperatures = num_temperatures
        self.log_z = self.add_weight(shape=(), dtype="float64", initializer="zeros", trainable=False, name="log_z")
        # of the parameters that `log_z` belongs to
        self.log_z_of = self.add_weight(shape=(2,), dtype="float64", initializer="zeros", trainable=False, name="log_z_of")

    def create_weights(self) -> None:
        num = self.num_chains * (len(_TEMPERATURES) if self.sampler == "pt" else 1)
        start = self.machine().first(tf.zeros([num, 2], tf.int32)) if self.sampler in ("pcd", "fpcd", "pt") else ()
        self.chains = [self._state(a.shape, "zeros", f"chains_{i}") for i, a in enumerate(start)]
        self.restart_chains()
        fast = self.trainable_weights if self.sampler == "fpcd" else ()
        self.fast = [self._state(w.shape, "zeros", f"fast_{w.name}") for w in fast]
        super().create_weights()

    def restart_chains(self) -> None:
        """Draws the persistent chains anew, from independent units; for parameters that were not reached by training."""
        if self.chains:
            rows = tf.range(self.chains[0].shape[0])
            start = self.machine().first(random.row_seeds(random.fold_in(self.seed.value, _CHAIN_NOISE), rows))
            for weight, value in zip(self.chains, start, strict=True):
                weight.assign(value)

    def _state(self, shape: Any, initializer: Any, name: str) -> Any:
        """A weight that training carries along; its dtype is that of the parameters, under mixed precision too."""
        return self.add_weight(
            shape=tuple(shape), initializer=initializer, trainable=False, dtype=self.variable_dtype, autocast=False, name=name
        )

    def _parameter(self, shape: Sequence[int], initializer: Any, name: str) -> Any:
        return self.add_weight(shape=tuple(shape), initializer=initializer, dtype=self.variable_dtype, autocast=False, name=name)

    @classmethod
    def from_data(cls, data: Any, **hyperparameters: Any) -> Self:
        """A model of the shape of a data set, which starts at its mean (and scale, with visible='gaussian').

        Raises:
            ValueError: a feature that never varies, with visible='gaussian'.
        """
        data = cls.as_dataset(data)
        rows = np.concatenate([np.asarray(a, np.float64) for a in data.x]) if len(data.x) else np.zeros((0, 0))
        if rows.ndim != 2 or not rows.size:
            raise ValueError(f"`dataset` must hold vectors, or sequences of them; received x of shape {list(rows.shape)}.")
        found: dict[str, Any] = {"num_visible": rows.shape[1], "data_mean": rows.mean(0).tolist()}
        if hyperparameters.get("visible") == "gaussian":
            constant = np.flatnonzero(np.ptp(rows, axis=0) == 0.0)
            if len(constant):
                raise ValueError(
                    f"`x` must vary in every feature with visible='gaussian'; feature {constant[0]} is constant. Leave it out."
                )
            found["data_scale"] = rows.std(0).tolist()
        return cls(**{**found, **hyperparameters})

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        return {"x": tf.TensorSpec([None, None, self.visible_units.columns], self.variable_dtype)}

    def as_batch(self, data: Any) -> Batch:
        """As `SequenceModel.as_batch`; x may also be vectors `[N, V]`, which are sequences of one step."""
        if not hasattr(data, "x"):
            data = dict(data) if isinstance(data, Mapping) else {"x": data}
            for name, rank in (("x", 2), ("y", 1)):
                if hasattr(data.get(name), "shape") and (value := checks.array(name, data[name])).ndim == rank:
                    data[name] = value[:, None]
        return super().as_batch(data)

    @classmethod
    def as_dataset(cls, data: Any) -> Any:
        if not (hasattr(data, "x") or hasattr(data, "sample")) and len(getattr(data, "shape", ())) == 2:
            data = checks.array("x", data)
            data = data[:, None] if data.ndim == 2 else data
        return super().as_dataset(data)

    def complete(self, batch: Batch, step: tf.Tensor | int = -1) -> Batch:
        batch = self.entries(batch)
        if len(batch["x"].shape) == 2:  # vectors of a stream
            batch["x"] = tf.convert_to_tensor(batch["x"])[:, None]
        return super().complete(batch, step)

    def check_values(self, x: np.ndarray) -> None:
        units = self.visible_units
        check_support(x, np.asarray(units.supports(self._scaled(x))), units.rule, units.hint)

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        return tf.broadcast_to(self.visible_units.supports(x), tf.shape(x))

    # Observations as states ----------------------------------------------------------------------------------------

    def _scaled(self, v: Any) -> Any:
        """Observations as states of the units' own scale."""
        return v if self.log_scale is None else v * tf.exp(-self.log_scale.value)

    def _unscaled(self, s: tf.Tensor) -> tf.Tensor:
        return s if self.log_scale is None else s * tf.exp(self.log_scale.value)

    def _presented(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Grey values as they are trained on and scored: binarised or not, x `[N, V]`, row seeds `[N, 2]`."""
        if self.visible_units.rule != "in [0, 1]" or self.binarise == "none":
            return x
        if self.binarise == "threshold":
            return tf.cast(x > 0.5, x.dtype)
        return _drawn(x, seed, self.visible_units.columns)

    def protocol(self, x: Iterable[np.ndarray]) -> str:
        """What likelihoods of x are of: `"binary"` (as it is), `"sampled"`, `"threshold at 0.5"`, `"grey"` or `"as given"`."""
        if self.visible_units.rule != "in [0, 1]":
            return "as given"
        if all(np.isin(a, (0.0, 1.0)).all() for a in x):
            return "binary"
        return {"sample": "sampled", "threshold": "threshold at 0.5", "none": "grey"}[self.binarise]

    @property
    def monitor(self) -> str:  # type: ignore[override]
        """Selected by: the likelihood, or the squared error of reconstructions where there is none."""
        return "nats_per_step" if self.has_likelihood else "reconstruction_error"

    @property
    def convention(self) -> str:
        if not self.has_likelihood:
            return "squared error of reconstructions, per visible unit"
        return "nats per vector; log Z exact for small machines, else by annealing, which errs downwards: see `tfseq evaluate`"

    @property
    def has_likelihood(self) -> bool:
        """Whether all units are sampled exactly (noisy ReLU are not)."""
        machine = self.machine()
        return not isinstance(machine, Layered) or all(units.normalised for units in machine.units)

    # The objective -------------------------------------------------------------------------------------------------

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        mask = batch["mask"]
        shape, num = tf.shape(mask), self.visible_units.columns
        x = tf.reshape(fill(tf.cast(batch["x"], self.variable_dtype), mask), [-1, num])
        weights = tf.cast(tf.reshape(mask, [-1]), x.dtype)
        with kernels(training):
            seed = tf.reshape(random.derive(batch["seed"][:, None], tf.range(shape[1])), [-1, 2])
            v = self._presented(x, seed)
            s = self._scaled(v)
            found = self.infer(s, seed)
            log_lik = found.log_prob - self._log_scale_sum()
            objective: Any = None
            if training:
                objective, model_side = self._contrast(s, found, weights, seed)
                log_lik = tf.stop_gradient(log_lik + self._log_scale_sum() - model_side)
            elif self.has_likelihood:
                log_lik -= tf.cast(self.log_z.value, log_lik.dtype)
            else:
                log_lik = -tf.reduce_mean(tf.square(self._reconstruct(found) - v), -1)
        log_lik = fill(tf.reshape(log_lik, shape), mask)
        return Terms(log_lik, tf.zeros_like(log_lik), mask, objective)

    def _log_scale_sum(self) -> Any:
        return 0.0 if self.log_scale is None else tf.reduce_sum(self.log_scale.value)

    def _reconstruct(self, found: Inferred) -> tf.Tensor:
        """Visible means given the hidden ones, in the scale of the data."""
        raise NotImplementedError

    def current_sweeps(self) -> tf.Tensor | int:
        """Gibbs sweeps of this training step."""
        if self.max_sweeps == self.num_sweeps or not self.sweeps_growth:
            return self.num_sweeps
        return tf.minimum(self.num_sweeps + self.step.value // self.sweeps_growth, self.max_sweeps)

    def _contrast(self, s: tf.Tensor, found: Inferred, weights: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(what is maximised; mean of log p* over the samples of the model, for the reported difference)."""
        machine, total = self.machine(), tf.reduce_sum(weights)
        if self.sampler == "exact":
            log_z = tf.cast(ais.exact_log_z(smaller(machine)), weights.dtype)
            return self._score(machine, s, found, weights, None, total, log_z, seed), log_z
        phase, negative, seed = self._negative(machine, found, seed)
        if negative is None:  # as many as rows of data, each against its own
            negative, share = weights, weights / tf.maximum(total, 1.0)
        else:
            share = tf.ones_like(negative) / tf.cast(tf.shape(negative)[0], negative.dtype)
            negative = total * share
        model_log_prob = self._model_log_prob(machine, phase)
        objective = self._score(machine, s, found, weights, phase, negative, model_log_prob, seed)
        return objective, tf.reduce_sum(share * model_log_prob)

    def _model_log_prob(self, machine: Machine, phase: Phase) -> tf.Tensor:
        """Unnormalised log-probability of a part of the sampled states, the others summed out, `[C]`."""
        return machine.odd_log_prob(phase.odd)

    def _negative(self, machine: Machine, found: Inferred, seed: tf.Tensor) -> tuple[Phase, tf.Tensor | None, tf.Tensor]:
        """States of the model, and their seeds; with a value for each, or None where they are one to a row of the data."""
        sweeps = self.current_sweeps()
        if self.sampler == "cd":
            odd = machine.sample(found.inputs, 1, seed, START_SWEEP)  # type: ignore[union-attr]
            return gibbs(machine, odd, sweeps, seed), None, seed
        odd = tuple(tf.convert_to_tensor(w) for w in self.chains)
        rows = random.derive(self.seed.value[None], _CHAIN_NOISE, self.step.value, tf.range(odd[0].shape[0]))
        if self.sampler == "pt":
            betas = tf.constant(_TEMPERATURES, odd[0].dtype)
            phase = gibbs(machine, odd, sweeps, rows, 0, tf.repeat(betas, self.num_chains)[:, None])
            odd, _ = exchange(machine, phase.odd, betas, rows, self.step.value)
            cold = tuple(a[-self.num_chains :] for a in odd)
            phase = machine.sweep(cold, rows[-self.num_chains :], START_SWEEP)
            odd = tuple(tf.concat([a[: -self.num_chains], b], 0) for a, b in zip(odd, phase.odd, strict=True))
        elif self.sampler == "fpcd":
            phase = gibbs(self._fast_machine(), odd, sweeps, rows)
            odd = phase.odd
            phase = phase._replace(inputs=machine.inputs(phase.even, 1))
        else:
            phase = gibbs(machine, odd, sweeps, rows)
            odd = phase.odd
        for weight, value in zip(self.chains, odd, strict=True):
            weight.assign(value)
        return phase, tf.zeros([self.num_chains], odd[0].dtype), rows[-self.num_chains :]

    def _fast_machine(self) -> Machine:
        raise NotImplementedError

    def _score(
        self,
        machine: Machine,
        s: tf.Tensor,
        found: Inferred,
        weights: tf.Tensor,
        phase: Phase | None,
        negative: tf.Tensor,
        model_log_prob: tf.Tensor,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """What has the contrastive gradient: data s with `weights` `[N]` against samples with `negative` `[C]`.

        `seed`: of each sample, `[C, 2]`.
        Without samples (`phase` None) `negative` is the sum of the weights, and `model_log_prob` log Z itself.
        """
        return tf.reduce_sum(weights * found.log_prob) - tf.reduce_sum(negative * model_log_prob)

    def adjust(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Adds the decay of weight matrices (biases have none), and moves the fast weights."""
        scale = self.optimizer.scale_loss(1.0)
        if self.fast:
            for fast, gradient in zip(self.fast, gradients, strict=True):
                fast.assign(_FAST_DECAY * fast - _FAST_RATE * gradient / scale)
        if not self.l2:
            return gradients
        rate = self.l2 * scale
        pairs = zip(gradients, self.trainable_weights, strict=True)
        return [g if "bias" in w.name or w is self.log_scale else g + tf.cast(rate, g.dtype) * w.value for g, w in pairs]

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """A contrastive step; its `loss` is the difference of free energies of data and samples, which is no likelihood."""
        with kernels():
            logs = super().train_step(batch)
        return {name: logs[name] for name in ("loss", "gradient_norm", "weight_norm") if name in logs}

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Nats per step under the last `log_z`; the squared error of reconstructions where there is no likelihood."""
        logs = super().test_step(batch)
        return logs if self.has_likelihood else {self.monitor: logs["nats_per_step"]}

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Keras's `evaluate`, with log Z of the current parameters: exact where that is quick, else by annealing."""
        if self.has_likelihood:
            self.refresh_log_z()
        return super().evaluate(x, y, **kwargs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """Keras's `predict`: log-probabilities (`call`) with log Z of the current parameters, as of `evaluate`."""
        if self.has_likelihood:
            self.refresh_log_z()
        return super().predict(x, **kwargs)

    def call(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Log-probability of each sequence (the sum over its steps) under the last `log_z`, `[B]`."""
        terms = self.terms(self._checked(self.complete(batch)), training=False)
        return terms.per_sequence(terms.log_lik)

    # log Z and likelihoods -----------------------------------------------------------------------------------------

    def _fingerprint(self) -> np.ndarray:
        """Two numbers that change when a parameter does."""
        digest = hashlib.blake2b(b"".join(np.asarray(w).tobytes() for w in self.trainable_weights), digest_size=12).digest()
        return np.array([int.from_bytes(part, "little") for part in (digest[:6], digest[6:])], np.float64)  # below 2^53

    def refresh_log_z(self) -> float:
        """log Z of the current parameters for validation and `log_prob`; estimated anew only where they changed."""
        now = self._fingerprint()
        if not np.array_equal(now, np.asarray(self.log_z_of)):
            self.log_z.assign(self.log_partition(num_temperatures=self.num_temperatures, reverse=False).value)
            self.log_z_of.assign(now)
        return float(self.log_z.numpy())

    def log_partition(
        self,
        method: Literal["auto", "exact", "ais"] = "auto",
        *,
        num_chains: int = 100,
        num_temperatures: int = 14500,
        seed: Any = (0, 0),
        reverse: bool = True,
    ) -> LogPartition:
        """log Z, exact by enumeration or by annealed importance sampling from independent units.

        Args:
            method: `"exact"` enumerates the smaller side, `"ais"` anneals; `"auto"` enumerates up to 2^16 joint states.
            num_chains: chains of the annealing.
            num_temperatures: its inverse temperatures (`ops.ais.temperatures`), a sweep each.
            seed: whole numbers `[2]`.
            reverse: also anneal back from samples of the model (the ends of the forward chains after a tenth as many sweeps).

        Raises:
            ValueError: units that are not sampled exactly; too many states for `"exact"`.

        Warns:
            UserWarning: annealing did not converge: forward and reverse estimates disagree, or few chains have all the weight.
        """
        checks.choice("method", method, ("auto", "exact", "ais"))
        if not self.has_likelihood:
            raise ValueError("log Z is not defined for noisy ReLU units: they are sampled approximately.")
        machine = self.machine()
        if method == "exact" or (method == "auto" and smaller(machine).num_odd_states() <= 2**16):
            value = float(self._exact_log_z())
            return LogPartition(value, value, value, math.inf, value, "exact")
        checks.at_least(2, num_chains=num_chains, num_temperatures=num_temperatures)
        betas = tf.constant(ais.temperatures(num_temperatures))
        forward, states, start = self._annealed(random.as_seed(seed), tf.constant(num_chains), betas)
        value, low, high, ess = (float(start) + a if i < 3 else a for i, a in enumerate(ais.log_mean(forward)))
        back = math.nan
        if reverse:
            weights = self._annealed_back(states, random.as_seed(seed), betas[::-1], tf.constant(max(num_temperatures // 10, 1)))
            back = float(start) - ais.log_mean(weights)[0]
        found = LogPartition(value, low, high, ess, back, "ais", num_chains, num_temperatures)
        if reverse and not found.converged:
            warnings.warn(
                f"Annealing has not converged: log Z is {value:.2f} forward and {back:.2f} in reverse, effective sample size "
                f"{ess:.1f} of {num_chains}. More temperatures, or a longer equilibration, may help; quote both.",
                stacklevel=2,
            )
        return found

    @graph
    def _exact_log_z(self) -> tf.Tensor:
        return ais.exact_log_z(smaller(self.machine()))

    @graph
    def _annealed(self, seed: tf.Tensor, num_chains: tf.Tensor, betas: tf.Tensor) -> tuple[tf.Tensor, States, tf.Tensor]:
        machine, rows = self.machine(), random.row_seeds(seed, tf.range(num_chains))
        with kernels():
            return *ais.annealed_weights(machine, machine.first(rows), betas, rows), machine.start_log_z()

    @graph
    def _annealed_back(self, odd: States, seed: tf.Tensor, betas: tf.Tensor, num_sweeps: tf.Tensor) -> tf.Tensor:
        machine, rows = self.machine(), random.row_seeds(random.fold_in(seed, 1), tf.range(tf.shape(odd[0])[0]))
        with kernels():
            odd = gibbs(machine, odd, num_sweeps, rows, tf.shape(betas)[0]).odd
            return ais.annealed_weights(machine, odd, betas, rows)[0]

    def log_prob(self, x: Any, mask: Any = None, *, log_partition: LogPartition | float | None = None) -> tf.Tensor:
        """log p(x) of each sequence, nats, `[B]` (the sum over its steps); a lower bound where the posterior is approximate.

        Args:
            x: vectors `[N, V]`, sequences, or a whole batch. Grey values are presented as `binarise` says.
            mask: `[B, T]`.
            log_partition: log Z; where it is not given it is that of the current parameters, exact or a quick estimate.
        """
        if not self.has_likelihood:
            raise ValueError("log Z is not defined for noisy ReLU units: they are sampled approximately.")
        batch = self.given(x, mask)
        if log_partition is None:
            log_z = self.refresh_log_z()
        else:
            log_z = log_partition.value if isinstance(log_partition, LogPartition) else log_partition
            if not isinstance(log_z, numbers.Real) or not math.isfinite(log_z):
                raise ValueError(f"`log_partition` must be log Z, a finite number; received {log_partition!r}.")
        return self._log_prob(batch, tf.constant(log_z, tf.float64))

    @graph
    def _log_prob(self, batch: Batch, log_z: tf.Tensor) -> tf.Tensor:
        terms = self.terms(batch)
        count = tf.math.count_nonzero(terms.mask, axis=-1, dtype=tf.float64)
        shift = (self.log_z.value - log_z) * count
        return terms.per_sequence(terms.log_lik) + tf.cast(shift, terms.log_lik.dtype)

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample(self, num_sequences: int, num_steps: int = 1, seed: Any = (0, 0), num_sweeps: int = 1000) -> tf.Tensor:
        """Independent vectors `[num_sequences, num_steps, V]`, each the end of a chain of its own.

        A chain starts from independent units, is heated down to temperature 1 over half of its sweeps, and goes on there.

        Args:
            num_sequences, num_steps: how many.
            seed: whole numbers `[2]`, or one for each sequence.
            num_sweeps: of each chain.
        """
        rows, steps, sweeps = counts(num_sequences=num_sequences, num_steps=num_steps, num_sweeps=num_sweeps)
        seeds = random.row_seeds(seed, tf.range(rows))
        return self._sample(steps, seeds, sweeps)

    @graph
    def _sample(self, num_steps: tf.Tensor, seeds: tf.Tensor, num_sweeps: tf.Tensor) -> tf.Tensor:
        machine = self.machine()
        each = tf.reshape(random.fold_in(seeds[:, None], tf.range(num_steps)), [-1, 2])
        half = num_sweeps // 2

        def sweep(t: tf.Tensor, phase: Phase) -> tuple[tf.Tensor, Phase]:
            beta = tf.minimum(tf.cast(t + 1, x_dtype) / tf.cast(half + 1, x_dtype), 1.0)
            return t + 1, machine.sweep(phase.odd, each, t, beta)

        x_dtype = self.variable_dtype
        with kernels():
            first = machine.sweep(machine.first(each), each, START_SWEEP, tf.constant(0.0, x_dtype))
            phase = tf.while_loop(lambda t, _: t < num_sweeps, sweep, (tf.constant(0), first))[1]
        s = self._unscaled(self.visible_of(phase.even, phase.odd, each))
        return tf.reshape(s, [-1, num_steps, s.shape[-1]])

    # The machine's quantities, and what is served ------------------------------------------------------------------

    def _rows(self, name: str, value: Any, width: int, check: bool = True, like: tf.Tensor | None = None) -> tf.Tensor:
        """Vectors `[N, width]`, as many as of `like`; finite, where they are not of a graph and this is to be checked."""
        if tf.executing_eagerly():
            value = checks.array(name, value)
            if value.dtype.kind not in "fiub":
                raise ValueError(f"`{name}` must be numbers; received {value.dtype}.")
            if check:
                checks.finite(name, value)
        value = tf.convert_to_tensor(value)
        if value.shape.rank != 2 or value.shape[1] not in (width, None):
            raise ValueError(f"`{name}` must have shape [N, {width}]; received {value.shape.as_list()}.")
        if like is not None and not value.shape[:1].is_compatible_with(like.shape[:1]):
            raise ValueError(f"`{name}` must have a row for each of the {like.shape[0]} of `v`; received {value.shape[0]}.")
        return tf.cast(value, self.variable_dtype)

    @staticmethod
    def _sweeps(num_sweeps: Any, v: tf.Tensor) -> tf.Tensor:
        """Numbers of sweeps as one for each row of v, `[N]` int32."""
        if not tf.is_tensor(num_sweeps):
            numbers = checks.array("num_sweeps", num_sweeps)
            if numbers.dtype.kind not in "iu" or numbers.shape not in ((), (v.shape[0],)) or (numbers < 0).any():
                raise ValueError(
                    f"`num_sweeps` must be a whole number of at least 0, or one for each of {v.shape[0]} rows; "
                    f"received {num_sweeps!r}."
                )
        return tf.broadcast_to(tf.cast(num_sweeps, tf.int32), tf.shape(v)[:1])

    def _observations(self, v: Any) -> tf.Tensor:
        """v `[N, V]`, in the range of the units where it is not of a graph."""
        v, units = self._rows("v", v, self.visible_units.columns), self.visible_units
        if tf.executing_eagerly():
            check_support(v.numpy(), np.asarray(units.supports(self._scaled(v))), units.rule, units.hint, "v")
        return v

    def _visible(self, v: Any) -> tf.Tensor:
        return self._scaled(self._observations(v))

    def _inferred(self, v: Any) -> Inferred:
        """Of observations v `[N, V]`, without noise of the rows."""
        s = self._visible(v)
        return self.infer(s, tf.zeros([tf.shape(s)[0], 2], tf.int32))

    def hidden_probs(self, v: Any) -> tf.Tensor:
        """Means of the first hidden layer given observations v `[N, V]`, `[N, H]`: exact in an RBM, else of the mean field."""
        return self._inferred(v).odd[0]

    def reconstruct(self, v: Any) -> tf.Tensor:
        """Means of the visible units given the hidden units' means given v `[N, V]`, in the scale of the data."""
        return self._reconstruct(self._inferred(v))

    def free_energy(self, v: Any) -> tf.Tensor:
        """-log of the unnormalised p(v), v `[N, V]`, hidden units summed out, `[N]`; a bound where they are approximate."""
        return self._log_scale_sum() - self._inferred(v).log_prob

    def gibbs(self, v: Any, num_sweeps: Any = 1, seed: Any = (0, 0)) -> tuple[tf.Tensor, tf.Tensor]:
        """Gibbs sampling from observations on: (v after the sweeps, its mean given the other units), `[N, V]` both.

        Args:
            v: observations `[N, V]`.
            num_sweeps: a whole number, or one for each row, `[N]`; after 0 sweeps a row is as it was.
            seed: whole numbers `[2]` or `[N, 2]`.
        """
        v = self._observations(v)
        sweeps = self._sweeps(num_sweeps, v)
        return self._gibbs(v, sweeps, random.row_seeds(seed, tf.range(tf.shape(v)[0])))

    def _gibbs(self, v: tf.Tensor, num_sweeps: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The graph of `gibbs`: v `[N, V]`, sweeps `[N]`, row seeds `[N, 2]`."""
        raise NotImplementedError

    def decode(self, data: Any) -> dict[str, np.ndarray]:
        """What `tfseq predict` writes of sequences: `free_energy` `[B, T]` and means of the hidden units, `prob` `[B, T, H]`."""
        batch = self.given(data)
        free_energy, probs = self._decode(batch)
        return {"free_energy": free_energy.numpy(), "prob": probs.numpy()}

    @graph
    def _decode(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        shape = tf.shape(batch["mask"])
        v = tf.reshape(fill(batch["x"], batch["mask"]), [-1, self.visible_units.columns])
        probs = self.hidden_probs(v)
        return tf.reshape(self.free_energy(v), shape), tf.reshape(probs, [*tf.unstack(shape), probs.shape[-1]])

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures: `hidden`, the default, `reconstruct`, `free_energy` and `gibbs`; both arguments are unused."""
        v = tf.TensorSpec([None, self.visible_units.columns], tf.float32, "v")

        def served(a: tf.Tensor) -> tf.Tensor:
            return tf.cast(a, tf.float32)

        def hidden(v: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"probs": served(self.hidden_probs(v))}

        def reconstruct(v: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"v": served(self.reconstruct(v))}

        def free_energy(v: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"free_energy": served(self.free_energy(v))}

        def gibbs_sweeps(v: tf.Tensor, num_sweeps: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
            after, probs = self.gibbs(v, num_sweeps, seed)
            return {"v": served(after), "probs": served(probs)}

        sweeps, seed = tf.TensorSpec([None], tf.int32, "num_sweeps"), tf.TensorSpec([None, 2], tf.int32, "seed")
        return {
            "serving_default": (hidden, [v]),
            "hidden": (hidden, [v]),
            "reconstruct": (reconstruct, [v]),
            "free_energy": (free_energy, [v]),
            "gibbs": (gibbs_sweeps, [v, sweeps, seed]),
        }
