"""SequenceModel: the objective, the train and the test step, metrics, configuration and replicas, once for all models."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, get_type_hints

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.allocator import keep_memory
from tfseq.checks import NotFiniteError
from tfseq.models import fields
from tfseq.models.replicas import (
    gradient_of_all,
    keras_reduces_numbers,
    num_replicas,
    rows_by_replica,
    spans_machines,
    sum_over_replicas,
)
from tfseq.ops import random
from tfseq.ops.masking import fill, masked_sum, pad, some_steps
from tfseq.ops.tracing import compiled, without_gradients

Batch = dict[str, Any]
Endpoint = tuple[Callable[..., dict[str, tf.Tensor]], list[tf.TensorSpec]]

FROM_DATA = "from data"
"""Marks a constructor argument that only data can tell (`Annotated[int, FROM_DATA]`): `from_data` fills it, no flag does."""

EVALUATION_STEP = -1  # the "training step" of evaluation noise, so that validation bounds of all epochs share their noise

# What the graph says of a batch of a stream, which nobody sees before it runs.
_FINITE_X = {
    takes: f"`x` must be finite{rule}, no larger than {checks.LARGEST:g}; a batch of the stream holds other values. {cure}"
    for takes in (False, True)
    for rule, cure in [checks.rule_and_cure(takes)]
}
_FINITE_U = f"`u` must be finite at every real step, no larger than {checks.LARGEST:g}; a batch of the stream holds other values."
_IN_SUPPORT = (
    "`x` must lie in the range of the model; a batch of the stream holds values outside it. "
    "`model.as_batch(batch)` names the first of them."
)
_NOT_FINITE = "The loss or a gradient is not finite"


class Terms(NamedTuple):
    """What a model states of a batch, nats.

    Attributes:
        log_lik: log-likelihood of the observations given what was inferred: of each step `[B, T]`, or of each sequence `[B]`.
        kl: divergence of what was inferred from the prior, of the same shape; zeros where there is none.
        mask: `[B, T]`, True where a step is real.
        objective: `[B]` or its sum, maximised instead of `log_lik - kl_weight * kl` where the gradient belongs to another
            quantity.
        ratios: name of `add_ratio` -> (sum, count) over the batch, where they are known; metrics of validation.
        kl_units: divergence of each latent dimension, `[B, T, Z]`, of models that set `latent_units`.
    """

    log_lik: tf.Tensor
    kl: tf.Tensor
    mask: tf.Tensor
    objective: tf.Tensor | None = None
    ratios: Mapping[str, tuple[tf.Tensor, tf.Tensor]] = {}
    kl_units: tf.Tensor | None = None

    def per_sequence(self, values: tf.Tensor) -> tf.Tensor:
        """`values`, which may be `[B, T]` or `[B]` as `log_lik`, summed over real steps: `[B]`."""
        return values if values.shape.rank == 1 else masked_sum(values, self.mask, axis=-1)


@keras.saving.register_keras_serializable("tfseq")
class PerStep(keras.metrics.Metric):
    """A sum divided by a count of steps: exact over batches of unequal lengths. Both come summed over replicas."""

    def __init__(self, name: str = "per_step", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        # float64: sums over a whole data set
        self.total = self.add_weight(shape=(), initializer="zeros", dtype="float64", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", dtype="float64", name="count")

    def update_state(self, total: tf.Tensor, count: tf.Tensor) -> None:
        self.total.assign(self.total + tf.cast(total, self.total.dtype))
        self.count.assign(self.count + tf.cast(count, self.count.dtype))

    def result(self) -> tf.Tensor:
        return tf.math.divide_no_nan(self.total.value, self.count.value)


@keras.saving.register_keras_serializable("tfseq")
class ActiveUnits(keras.metrics.Metric):
    """Number of latent dimensions that are used: those with a mean KL per real step above `threshold` nats.

    After Burda et al. 2016, section 5.2, with the KL in the place of the variance of the posterior mean: both are 0 where the
    posterior of a dimension is its prior.
    """

    def __init__(self, num_units: int, threshold: float = 0.01, name: str = "active_units", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.num_units, self.threshold = num_units, threshold
        self.total = self.add_weight(shape=(num_units,), initializer="zeros", dtype="float64", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", dtype="float64", name="count")

    def update_state(self, total: tf.Tensor, count: tf.Tensor) -> None:
        """Adds sums of KL `[Z]` over `count` steps, both summed over replicas."""
        self.total.assign(self.total + tf.cast(total, self.total.dtype))
        self.count.assign(self.count + tf.cast(count, self.count.dtype))

    def kl(self) -> tf.Tensor:
        """Mean KL of each dimension, nats per step, `[Z]` float64."""
        return tf.math.divide_no_nan(self.total.value, self.count.value)

    def result(self) -> tf.Tensor:
        return tf.math.count_nonzero(self.kl() > self.threshold, dtype=tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_units": self.num_units, "threshold": self.threshold}


def _constant(value: Any) -> Callable[..., tf.Tensor]:
    return lambda shape, dtype=None: tf.cast(value, dtype)


def checked(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """`value` as an array of the dtype of `spec`, or a ValueError about its shape, its dtype or numbers that do not fit it."""
    value = checks.array(name, value)
    wanted = spec.shape.as_list()
    axes = ", ".join(str(n) if n is not None else "BT?"[min(i, 2)] for i, n in enumerate(wanted))
    if value.ndim != len(wanted) or any(n is not None and n != m for n, m in zip(wanted, value.shape, strict=True)):
        hint = " Add the batch axis: `x[None]`." if value.ndim == len(wanted) - 1 else ""
        raise ValueError(f"`{name}` must have shape [{axes}]; received {list(value.shape)}.{hint}")
    _check_kind(name, value, spec)
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is no longer what it was
        cast = value.astype(spec.dtype.as_numpy_dtype)
    if cast.dtype.kind == "i" and (bad := cast != value).any():
        raise ValueError(f"`{name}` must hold whole numbers of {8 * cast.itemsize} bits; received {value[bad][0]}.")
    return cast


def _check_kind(name: str, value: np.ndarray, spec: tf.TensorSpec) -> None:
    allowed = {"f": "fiub", "i": "iu", "b": "b"}[np.dtype(spec.dtype.as_numpy_dtype).kind]
    if value.dtype.kind not in allowed:
        raise ValueError(f"`{name}` must be {spec.dtype.name}; received {value.dtype}.")


@contextlib.contextmanager
def _data_errors(model: SequenceModel) -> Iterator[None]:
    """A failed check inside the graph comes out as the ValueError that a check before it would have been."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        for message in (*_FINITE_X.values(), _FINITE_U, _IN_SUPPORT, *model.rules):
            if message in str(error):
                raise ValueError(message) from None
        if found := re.search(rf"{_NOT_FINITE}\W+(\d+)\W+(\d[\d ,.]*)", str(error)):  # and what the assertion was given
            raise NotFiniteError(
                f"{_NOT_FINITE} in training step {found[1]}, on the sequences (`row`) {found[2]}. The weights are those before "
                f"it. {model.if_not_finite()}"
            ) from None
        raise


def _check_no_weights(arguments: Mapping[str, Any]) -> None:
    """Raises where Keras's arguments weigh samples or classes, which a likelihood does not."""
    if given := [name for name in ("sample_weight", "class_weight") if arguments.get(name) is not None]:
        raise ValueError(f"`{given[0]}` is not taken: every real step counts alike. Repeat sequences that are to count more.")


def graph(method: Callable) -> Callable:
    """`method`, which infers and does not train, as a graph, compiled with XLA where the model was (`compile(jit_compile=True)`).

    Called while another graph is traced, such as that of a served signature, it becomes a part of that.
    """

    def traced(by_xla: bool) -> Callable:
        @functools.wraps(method)
        def run(*arguments: Any) -> Any:
            with without_gradients(), compiled(by_xla):
                return method(*arguments)

        return run

    graphs = {
        by_xla: tf.function(traced(by_xla), jit_compile=by_xla or None, autograph=False, reduce_retracing=True)
        for by_xla in (False, True)
    }

    @functools.wraps(method)
    def call(model: Any, *arguments: Any) -> Any:
        run = graphs[bool(getattr(model, "jit_compile", False))] if tf.executing_eagerly() else traced(False)
        return run(model, *arguments)

    return call


def counts(**counts: int) -> list[tf.Tensor]:
    """Whole numbers of at least 1 as tensors, so that another number does not trace another graph."""
    checks.at_least(1, **counts)
    checks.at_most(2**31 - 1, **counts)
    return [tf.constant(int(n)) for n in counts.values()]  # `int`: one of NumPy may have 64 bits


def _under_its_dtype(constructor: Callable[..., None]) -> Callable[..., None]:
    """`constructor` with its argument `dtype` as the global dtype policy while it runs."""

    @functools.wraps(constructor)
    def construct(self: SequenceModel, **kwargs: Any) -> None:  # the name by which Keras takes it from the arguments
        outer = keras.config.dtype_policy()
        try:
            if kwargs.get("dtype") is not None:
                keras.config.set_dtype_policy(kwargs["dtype"])
            constructor(self, **kwargs)
        finally:
            keras.config.set_dtype_policy(outer)

    return construct


class SequenceModel(keras.Model):
    """A `keras.Model` that states its objective (`terms`), what it serves (`endpoints`) and a small instance of itself (`tiny`).

    A model's hyper-parameters are the keyword-only arguments of its constructor, which ends with `self.create_weights()`.
    """

    has_kl: ClassVar[bool] = True
    """Whether training balances a likelihood and a divergence, which are then logged."""

    monitor: str = "nats_per_step"
    """The metric that validation selects by."""

    higher_is_better: bool = False
    """Whether more of the monitored metric is better."""

    @property
    def convention(self) -> str:
        """What the monitored metric is, for people."""
        return "pooled bound, nats per step (b)" if self.has_kl else "exact, nats per step"

    methods: tuple[str, ...] = ("gradient",)
    """Ways of training, chosen at `compile`; all but `"gradient"` are closed-form updates and need no optimiser."""

    rules: ClassVar[tuple[str, ...]] = ()
    """What a model says of batches of a stream that break its own rules (`kept_rules`)."""

    optional: ClassVar[frozenset[str]] = frozenset({"observed"})
    """Entries of a batch that may be absent."""

    takes_strings: ClassVar[bool] = False
    """Whether x may be texts or tokens."""

    unaligned: frozenset[str] = frozenset()
    """Entries of a batch whose axes after the first are their own: a label of the whole sequence, another sequence."""

    latent_units: int = 0
    """Z, where `terms` states the divergence of each latent dimension (`kl_units`); set before `create_weights`."""

    # Kept from Keras's tracking: they begin anew with every epoch, so no file holds them.
    unit_metrics: Sequence[ActiveUnits] = ()
    norm_metrics: Sequence[PerStep] = ()

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named sets of hyper-parameters, for example those of a paper."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Layers made in a constructor take the model's `dtype`, given or saved, and not whatever is the global one by then."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _under_its_dtype(cls.__init__)  # type: ignore[method-assign]

    def __new__(cls, *args: Any, **hyperparameters: Any) -> Self:
        if args:
            raise TypeError(f"{cls.__name__} takes keyword arguments only; received {len(args)} positional.")
        model = super().__new__(cls, **hyperparameters)
        object.__setattr__(model, "_hyperparameters", hyperparameters)
        return model

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.jit_compile = False  # Keras would choose XLA on GPUs until `compile` is called
        self.autocast = False  # observations keep their precision; networks cast what they take
        self.step = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="step")
        # drawn as Keras draws its seeds, so `keras.utils.set_random_seed` decides it; saved for resumed runs
        drawn = keras.random.randint((2,), 0, 2**31 - 1, dtype="int32")
        self.seed = self.add_weight(shape=(2,), dtype="int32", initializer=_constant(drawn), trainable=False, name="seed")
        self.kl_weight = self.add_weight(shape=(), initializer="ones", trainable=False, name="kl_weight")
        self.loss_metric, self.bound_metric = PerStep("loss"), PerStep("nats_per_step")
        self.parts_metrics = [PerStep("reconstruction"), PerStep("kl")] if self.has_kl else []
        self.ratio_metrics: dict[str, PerStep] = {}

    # What a model defines ------------------------------------------------------------------------------------------

    def terms(self, batch: Batch, training: bool = False) -> Terms:
        """Log-likelihood and KL of a batch; `batch["seed"]` `[B, 2]` decides everything random."""
        raise NotImplementedError

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        """Served signatures: name -> (function of named inputs, input specs); the first is the default."""
        raise NotImplementedError

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        """An instance that trains and exports in about a second, for tests; with some hyper-parameters replaced."""
        raise NotImplementedError

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        """Entries of a batch that this model reads: name -> spec `[None, None, ...]`."""
        raise NotImplementedError

    def check_values(self, x: np.ndarray) -> None:
        """Raises ValueError where an observed value of x is outside the model's range."""

    def in_support(self, x: tf.Tensor) -> tf.Tensor:
        """Where x is in the model's range, bool of the shape of x: what `check_values` says, inside a graph."""
        return tf.ones_like(x, tf.bool)

    def kept_rules(self, batch: Batch) -> list[tf.Tensor]:
        """Whether a batch keeps each of `rules`, bool of any shape; what `as_batch` says of arrays, inside a graph."""
        return []

    def check_training(self, batch: Batch) -> None:
        """Raises ValueError where a checked batch of arrays can be scored, but not learned from."""

    def if_not_finite(self) -> str:
        """What to say to a user whose training met a loss or a gradient that is not finite."""
        return "A smaller learning rate, or clipping (`global_clipnorm`), may help."

    @property
    def carried(self) -> Sequence[tf.Variable]:
        """What goes on from batch to batch beside the weights, such as the state inside a text; no file of the model has it."""
        return ()

    # Construction and configuration --------------------------------------------------------------------------------

    def create_weights(self) -> None:
        """Runs `terms` once on an example, so that every weight exists: an unbuilt model would be saved without weights."""
        if self.latent_units:
            object.__setattr__(self, "unit_metrics", (ActiveUnits(self.latent_units),))
        self.terms(self.complete(self.example_batch()), training=False)
        for layer in self._flatten_layers():
            layer.built = True

    def example_batch(self, num_sequences: int = 2, num_steps: int = 2) -> Batch:
        """A batch of zeros of the right shapes and dtypes."""
        specs = self.batch_spec()
        return {
            name: np.zeros(
                [n or size for n, size in zip(spec.shape, (num_sequences, num_steps, *[1] * 9), strict=False)],
                spec.dtype.as_numpy_dtype,
            )
            for name, spec in specs.items()
            if name not in self.optional
        }

    @classmethod
    def hyperparameters(cls) -> dict[str, inspect.Parameter]:
        """The constructor's keyword-only arguments, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @classmethod
    def from_data_arguments(cls) -> set[str]:
        """Names of the constructor arguments that `from_data` fills."""
        hints = get_type_hints(cls.__init__, include_extras=True)
        return {name for name, hint in hints.items() if FROM_DATA in getattr(hint, "__metadata__", ())}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> dict[str, Any]:
        """The hyper-parameters of a named preset, with some of them replaced."""
        checks.choice("preset", name, cls.presets)
        return {**cls.presets[name], **overrides}

    def get_config(self) -> dict[str, Any]:
        defaults = {name: p.default for name, p in self.hyperparameters().items() if p.default is not inspect.Parameter.empty}
        given = {"name": self.name, "dtype": self.dtype_policy, **defaults, **self._hyperparameters}
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}  # as read from JSON
        return {name: keras.saving.serialize_keras_object(value) for name, value in given.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> Self:
        values = {name: keras.saving.deserialize_keras_object(value, custom_objects) for name, value in config.items()}
        return cls(**values)

    # Batches -------------------------------------------------------------------------------------------------------

    def prepare(self, data: Any) -> Any:
        """A data set as this model reads it: texts cut into tokens, where it reads texts. `train` and `evaluate` call it once."""
        return data

    def encode(self, batch: Batch) -> Batch:
        """The tensors of a batch with strings as numbers, where the model reads strings; also inside a graph."""
        return batch

    def as_batch(self, data: Any) -> Batch:
        """Arrays -> a checked batch.

        Args:
            data: x `[B, T, ...]`; or a list of sequences `[T_i, ...]`, which a mask may only shorten; or an object with these
                as `x` (and `observed`, `u`); or a dict of `x`, `mask`, `observed`, `u`.

        Returns:
            a dict of NumPy arrays: the entries given, `mask` `[B, T]` and `row` `[B]` (the number of each sequence).

        Raises:
            ValueError: on wrong names, ranks, shapes, dtypes or lengths, on a mask that is not right-padded, on NaN
                where data counts as observed, and on values outside the model's range.
        """
        specs = self.batch_spec()
        if not isinstance(data, Mapping):
            entries = [n for n in ("x", "observed", "u") if getattr(data, n, None) is not None] if hasattr(data, "x") else []
            entries += ["y"] if getattr(data, "y", None) is not None else []
            data = {name: getattr(data, name) for name in entries} if entries else {"x": data}
        data = {name: value for name, value in data.items() if value is not None}
        of_others = {"y", "target", "target_mask"}  # labels and targets are of no use to some models
        unknown = sorted(set(data) - set(specs) - {"mask", "row", "seed"} - of_others)
        if unknown:
            raise ValueError(f"A batch of {type(self).__name__} takes {sorted({*specs, 'mask'})}; received also {unknown}.")
        lengths = None
        batch: Batch = {}
        for name, spec in specs.items():
            value = data.get(name)
            if value is None:
                if name in self.optional:
                    continue
                raise ValueError(
                    f"The batch has no `{name}`; {type(self).__name__} needs {spec.dtype.name} of shape {spec.shape}."
                )
            if isinstance(value, Sequence) and name not in self.unaligned:
                value = [checks.array(name, v) for v in value]
                value = [v if v.size else v.astype(spec.dtype.as_numpy_dtype) for v in value]
                if not value:
                    raise ValueError(f"`{name}` has no sequences.")
                if any(not v.ndim for v in value):
                    raise ValueError(f"`{name}` must be sequences, each [T, ...]; received single values. Is it one sequence?")
                for v in value:
                    _check_kind(name, v, spec)
                shapes = {v.shape[1:] for v in value}
                if len(shapes) > 1:
                    raise ValueError(
                        f"The sequences of `{name}` must agree in all axes but the first; received {sorted(shapes)}."
                    )
                rows = np.array([len(v) for v in value], np.int32)
                if name == "x":
                    lengths = rows
                elif lengths is not None and rows.tolist() != lengths.tolist():
                    raise ValueError(
                        f"The sequences of `{name}` must be as long as those of `x`; received {rows.tolist()} steps "
                        f"for {lengths.tolist()}. Is one of them cut, or in another order?"
                    )
                value = pad(value)
            batch[name] = checked(name, value, spec)
            if not len(batch[name]):
                raise ValueError(f"`{name}` has no sequences.")
        if not batch["x"].shape[1]:  # no steps at all: one padded step, which contributes nothing
            batch = {
                name: value if name in self.unaligned else np.zeros([len(value), 1, *value.shape[2:]], value.dtype)
                for name, value in batch.items()
            }
            data, lengths = {k: v for k, v in data.items() if k != "mask"}, np.zeros(len(batch["x"]), np.int32)
        x = batch["x"]
        if "mask" in data:
            mask = fields.checked_mask("mask", data["mask"], x.shape[:2])
            if lengths is not None:
                fields.check_not_longer("mask", mask, lengths, "x")
        else:
            lengths = np.full(len(x), x.shape[1], np.int32) if lengths is None else lengths
            mask = np.arange(x.shape[1]) < lengths[:, None]
        batch["mask"] = mask
        for name in set(batch) - {"mask"}:
            if name in self.unaligned and len(batch[name]) != len(mask):
                raise ValueError(f"`{name}` must have a row for each of the {len(mask)} of `x`; received {len(batch[name])}.")
            if name not in self.unaligned and batch[name].shape[:2] != mask.shape:
                raise ValueError(
                    f"`{name}` must be [B, T, ...] with [B, T] = {list(mask.shape)} as `x`; received {list(batch[name].shape)}."
                )
        keep = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x.shape)
        if "observed" in batch:
            keep = keep & batch["observed"]
        checks.finite("x", x, keep, has_observed="observed" in specs)
        if "u" in batch:
            checks.finite("u", batch["u"], np.broadcast_to(mask[..., None], batch["u"].shape))
        self.check_values(np.where(keep, x, np.zeros([], x.dtype)))
        batch["row"] = checked("row", data.get("row", np.arange(len(x))), tf.TensorSpec([len(x)], tf.int32))
        if "seed" in data:
            batch["seed"] = np.asarray(random.row_seeds(data["seed"], tf.constant(batch["row"])))
        return batch

    def entries(self, batch: Any) -> Batch:
        """A batch as Keras packs it, (x, y) or one of both, as a dict; y is left out where the model reads none."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        _check_no_weights({"sample_weight": weights})
        found = dict(x) if isinstance(x, Mapping) else {"x": x}
        return found if y is None or "y" not in self.batch_spec() else {**found, "y": y}

    def complete(self, batch: Batch, step: tf.Tensor | int = EVALUATION_STEP) -> Batch:
        """A batch of at least one step with `mask`, `row` and `seed` `[B, 2]` filled in where they are absent, as tensors."""
        specs = self.batch_spec()
        batch = self.encode({name: tf.convert_to_tensor(value) for name, value in self.entries(batch).items()})
        batch = {name: tf.cast(value, specs[name].dtype) if name in specs else value for name, value in batch.items()}
        shape = tf.shape(batch["x"])
        batch.setdefault("mask", tf.ones(shape[:2], tf.bool))
        batch.setdefault("row", tf.range(shape[0]))
        if not batch["x"].shape[1]:  # unknown, or no steps at all: loops need one, which the mask leaves out
            for name in ({"mask", *specs} & set(batch)) - self.unaligned:
                batch[name] = some_steps(batch[name])
        seed = batch.get("seed")
        if seed is None:
            batch["seed"] = random.derive(self.seed.value[None], step, batch["row"])
        else:
            batch["seed"] = random.row_seeds(seed, batch["row"])
        return batch

    @classmethod
    def as_dataset(cls, data: Any) -> Any:
        """Data as `from_data` takes it: an object with lists of sequences as `x` (and `observed`, `u`, `y`, `target`), checked.

        Args:
            data: such an object; or `Shards`, of which it takes a sample; or x as a list of sequences or an array
                `[B, T, ...]`; or a dict of these, and of `mask` and `target_mask`.

        Raises:
            ValueError: a field is no list of sequences of one kind, does not fit x, or holds NaN where it was observed.
        """
        return fields.as_dataset(data, cls.takes_strings, "observed" in cls.optional)

    def given(self, x: Any, mask: Any = None, seed: Any = (0, 0), **apart: Any) -> Batch:
        """The arguments of a method as a complete batch: x alone, or a whole batch (then `mask` and `apart` belong into it)."""
        apart = {"mask": mask, **apart}
        if not (isinstance(x, Mapping) or hasattr(x, "x")):
            batch = self.as_batch({"x": x, **apart})
        elif twice := [name for name, value in apart.items() if value is not None]:
            raise ValueError(f"`x` is a whole batch, so `{twice[0]}` belongs into it; it was given beside it.")
        else:
            batch = self.as_batch(x)
        batch.setdefault("seed", random.as_seed(seed))
        return self.complete(batch)

    def future_controls(self, u: Any, num_rows: Any, num_steps: Any, name: str) -> tf.Tensor | None:
        """Controls of the steps to come as a tensor `[num_rows, num_steps, U]`; None where the model has none."""
        spec = self.batch_spec().get("u")
        if spec is None:
            return None
        wanted = tf.TensorSpec([int(num_rows), int(num_steps), spec.shape[2]])
        if u is None:
            raise ValueError(f"`{name}` must give the controls of the steps to come, shape {wanted.shape}; received None.")
        values = checked(name, u, wanted)
        checks.finite(name, values)
        return tf.constant(values)

    def one_step(self, **entries: Any) -> Batch:
        """The next observation of each sequence `[B, ...]`, and what stands beside it, as a complete batch of one step."""
        found = {name: checks.array(name, value) for name, value in entries.items() if value is not None}
        for name, value in found.items():
            if not value.ndim:
                raise ValueError(f"`{name}` must have a row for each sequence, [B, ...]; received a single value.")
        return self.complete(self.as_batch({name: value[:, None] for name, value in found.items()}))

    @staticmethod
    def checked_state(state: Any, like: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """A filter's state that has the entries, shapes and dtypes of `like`."""
        if not isinstance(state, Mapping) or not set(like) <= set(state):  # an answer has more beside the state
            received = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"`state` must be a dict of {sorted(like)}, from `init_state` or from the last step; received {received}."
            )
        specs = {name: tf.TensorSpec(a.shape, a.dtype) for name, a in like.items()}
        return {name: tf.constant(checked(f"state[{name!r}]", state[name], spec)) for name, spec in specs.items()}

    # Training ------------------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        *,
        method: str = "gradient",
        step_size: float | None = None,
        monitor_norms: bool = False,
        **kwargs: Any,
    ) -> None:
        """Keras's `compile`, and the way of training.

        Args:
            optimizer: any of Keras's, for `method="gradient"`.
            method: one of `methods`.
            step_size: of closed-form updates after every batch (`"em"`): after batch n the statistics are those before times
                1 - r, plus r times the batch's, r = (n + 1)^-step_size with step_size in (0.5, 1] (Cappe and Moulines 2009).
                None: one update after every pass over the data.
            monitor_norms: log `gradient_norm` and `weight_norm`, means over the training steps of an epoch of the global norms
                before the step: of the gradient of all replicas before it is clipped, and of the trainable weights.
            **kwargs: as of Keras; but `jit_compile="auto"` is False. XLA compiles anew for every shape of a batch, and leaves out
                the checks that values are in range and that the loss is finite. Measured on a CPU (README), it pays for hidden
                Markov models whose batches have one shape, three times as fast after 180 steps, and for hardly any other;
                `train`, which knows the shapes and has checked the data, chooses.
        """
        checks.choice("method", method, self.methods)
        if step_size is not None and (method != "em" or not 0.5 < step_size <= 1.0):
            raise ValueError(
                f"`step_size` must lie in (0.5, 1] and is for method='em'; received {step_size} with method={method!r}."
            )
        if monitor_norms and method != "gradient":
            raise ValueError(f"`monitor_norms` is for method='gradient'; {method!r} has no gradient.")
        if kwargs.get("jit_compile", "auto") == "auto":  # XLA leaves the checks of a step out
            kwargs["jit_compile"] = False
        super().compile(optimizer if method == "gradient" else None, **kwargs)
        self.method, self.step_size = method, step_size
        with self.distribute_strategy.scope():
            norms = (PerStep("gradient_norm"), PerStep("weight_norm")) if monitor_norms else ()
        object.__setattr__(self, "norm_metrics", norms)

    def xla_pays(self, num_sequences: int, num_steps: int, num_shapes: int) -> bool:
        """Whether training, as compiled, is done sooner with XLA, compiling included: as was measured, on a CPU.

        Args:
            num_sequences: how many are seen in all epochs.
            num_steps: their common length.
            num_shapes: of batches.
        """
        return False

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        norms = bool(self.norm_metrics)
        return config and {**config, "method": self.method, "step_size": self.step_size, "monitor_norms": norms}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As Keras's own, which would refuse a `compile` that is not."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        parts = (*self.parts_metrics, *self.unit_metrics, *self.norm_metrics)
        return [self.loss_metric, self.bound_metric, *parts, *self.ratio_metrics.values()]

    def add_ratio(self, name: str) -> None:
        """Adds a metric that is a ratio of sums over the data, such as accuracy; `terms` gives both where it does not train."""
        self.ratio_metrics[name] = PerStep(name)

    def _training_logs(self) -> dict[str, tf.Tensor]:
        """Metrics of a training step; ratios are those of validation."""
        return {m.name: m.result() for m in self.metrics if m not in self.ratio_metrics.values()}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """The model is built at birth; Keras's symbolic build averages a batch over replicas, which fails for bool."""
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _loss(self, terms: Terms) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's part of the loss, in nats per real step of all replicas, and the loss itself; metrics are updated."""
        log_lik, kl = (tf.reduce_sum(terms.per_sequence(a)) for a in (terms.log_lik, terms.kl))
        count = tf.math.count_nonzero(terms.mask, dtype=log_lik.dtype)
        weight = tf.cast(self.kl_weight, kl.dtype)
        objective = log_lik - weight * kl if terms.objective is None else tf.reduce_sum(terms.objective)
        # the sums of all replicas: each replica's own count would weigh its rows by their lengths
        own = [tf.cast(tf.stop_gradient(a), log_lik.dtype) for a in (log_lik, kl, objective)]
        total_lik, total_kl, total, steps = sum_over_replicas([*own, count])
        loss, total = (tf.math.divide_no_nan(-a, tf.cast(steps, a.dtype)) for a in (objective, total))
        self.loss_metric.update_state(weight * total_kl - total_lik, steps)
        self.bound_metric.update_state(total_kl - total_lik, steps)
        for metric, value in zip(self.parts_metrics, (-total_lik, total_kl), strict=False):
            metric.update_state(value, steps)
        for units in self.unit_metrics:
            of_units = tf.reduce_sum(fill(terms.kl_units, terms.mask), [0, 1])
            units.update_state(sum_over_replicas(tf.stop_gradient(of_units)), steps)
        for name, pair in terms.ratios.items():
            self.ratio_metrics[name].update_state(*sum_over_replicas([tf.cast(a, tf.float32) for a in pair]))
        return loss, total

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One step on minus the bound, nats per real step."""
        batch = self._checked(self.complete(batch, self.step.value))
        # nothing of a step happens before its batch is there: the end of a stream would leave half of one
        with tf.control_dependencies([batch["x"]]), tf.GradientTape() as tape:
            loss, total = self._loss(self.terms(batch, training=True))
            if self.losses:  # of weights, the same on all replicas
                extra = tf.add_n([tf.cast(a, loss.dtype) for a in self.losses])
                loss, total = loss + extra / num_replicas(), total + extra
            scaled = self.optimizer.scale_loss(loss)
        gradients = gradient_of_all(self.optimizer, tape.gradient(scaled, self.trainable_weights))
        # a loss scale is found by gradients that are not finite: its optimiser leaves them out
        is_scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        with tf.control_dependencies([self.assert_finite(batch, total, () if is_scaled else gradients)]):
            gradients = self.adjust(gradients)
            if self.norm_metrics:
                self._measure_norms(gradients)
            self.optimizer.apply(gradients, self.trainable_weights)
            self.step.assign(self.step + 1)
        return self._training_logs()

    def assert_finite(self, batch: Batch, loss: tf.Tensor, gradients: Sequence[tf.Tensor] = ()) -> Any:
        """What a training step waits for before it changes weights: loss and gradients, of all replicas, are finite.

        So all replicas stop at once, or none.
        """
        gradients = [g for g in gradients if g is not None]
        total = loss + tf.cast(tf.linalg.global_norm(gradients), loss.dtype) if gradients else loss
        return tf.debugging.Assert(tf.math.is_finite(total), [_NOT_FINITE, self.step.value, batch["row"]], summarize=10)

    def adjust(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """The gradients of the (scaled) loss of all replicas, in the order of `trainable_weights`, as they are applied."""
        return gradients

    def _measure_norms(self, gradients: list[tf.Tensor]) -> None:
        """The global norms of a training step, before it."""
        scale = self.optimizer.scale_loss(1.0)  # of the loss scale of mixed precision
        gradient_norm, weight_norm = self.norm_metrics
        gradient_norm.update_state(tf.linalg.global_norm([g for g in gradients if g is not None]) / scale, 1.0)
        weight_norm.update_state(tf.linalg.global_norm([w.value for w in self.trainable_weights]), 1.0)

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The bound itself (KL weight 1 in `nats_per_step`, the metric to select by)."""
        with without_gradients():
            self._loss(self.terms(self._checked(self.complete(batch)), training=False))
        return {m.name: m.result() for m in self.metrics if m not in self.norm_metrics}

    def predict_step(self, batch: Batch) -> Any:
        """What the model answers for a batch."""
        with without_gradients(), compiled(bool(self.jit_compile)):
            return super().predict_step(batch)

    def _checked(self, batch: Batch) -> Batch:
        """Stops at real, observed values that are not finite or out of range; streams are not seen before the graph runs."""
        x, mask = batch["x"], batch["mask"]
        padded = ~tf.reshape(mask, tf.concat([tf.shape(mask), tf.ones([x.shape.rank - 2], tf.int32)], 0))
        unseen = padded | ~batch["observed"] if "observed" in batch else padded
        finite = tf.abs(x) <= checks.LARGEST if x.dtype.is_floating else tf.ones_like(x, tf.bool)
        rules = [
            (finite | unseen, _FINITE_X["observed" in self.batch_spec()]),
            (self.in_support(x) | unseen | ~finite, _IN_SUPPORT),
        ]
        if "u" in batch:
            rules.append(((tf.abs(batch["u"]) <= checks.LARGEST) | ~mask[..., None], _FINITE_U))
        rules += list(zip(self.kept_rules(batch), self.rules, strict=True))
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(holds), [text]) for holds, text in rules]):
            return {**batch, "x": tf.identity(x)}

    def _prepare(self, x: Any, y: Any = None) -> Any:
        """What `fit`, `evaluate` and `predict` pass on: streams as they are, arrays as a checked batch."""
        if isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)) or inspect.isgenerator(x):
            return x
        return self.as_batch(x if y is None else {**(x if isinstance(x, Mapping) else {"x": x}), "y": y})

    def _on_replicas(self, data: Any, batch_size: int | None = None, shuffle: bool = False) -> tuple[Any, int | None]:
        """What `_prepare` gave, where several replicas train: each one's rows of every batch; and how many batches, where known.

        Keras would count each replica's part of a batch. Of a stream whose end is known, batches come again and again.
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync == 1 or isinstance(data, tf.distribute.DistributedDataset):
            return data, None
        if isinstance(data, dict):
            rows = tf.data.Dataset.from_tensor_slices(data)
            if shuffle:  # in one order on all workers
                rows = rows.shuffle(len(data["x"]), seed=int(self.seed[0]))
            data = rows.batch(batch_size or 32)
        if not isinstance(data, tf.data.Dataset):
            raise ValueError(
                f"Data for several replicas must be arrays or a tf.data.Dataset of batches, which all workers read "
                f"alike; received {type(data).__name__}."
            )
        if not isinstance(data.element_spec, dict):
            data = data.map(lambda *batch: self.entries(batch))
        size = int(data.cardinality())
        return (rows_by_replica(data.repeat(), strategy), size) if size >= 0 else (rows_by_replica(data, strategy), None)

    def _make_function(self, step_function: Callable) -> Callable:
        """Keras's: a train or test step on every replica, and what it logs as the mean over them."""
        strategy, by_xla = self.distribute_strategy, bool(self.jit_compile)

        def step(batch: Batch) -> dict[str, tf.Tensor]:
            with compiled(by_xla):
                return step_function(batch)

        if not spans_machines(strategy) or keras_reduces_numbers(strategy):
            return super()._make_function(step)
        names: list[str] = []

        def packed(batch: Batch) -> dict[str, tf.Tensor]:  # Keras sends each entry by itself
            logs = step(batch)
            names[:] = logs
            return {"all": tf.stack([tf.cast(value, tf.float64) for value in logs.values()])[None]}

        function = super()._make_function(packed)
        return lambda iterator: dict(zip(names, tf.unstack(function(iterator)["all"]), strict=True))

    def fit(self, x: Any = None, y: Any = None, *, validation_data: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Keras's `fit`; x may be `[B, T, ...]`, a list of sequences, a dict, or a stream of batches.

        A batch of a stream is a dict, or x, or (x, y). `validation_data` is of the same kinds, or a tuple (x, y). There are no
        weights of samples or classes: a loss is nats per step.

        Under a `tf.distribute` strategy, of one machine or of many, batches are those of all replicas: each takes its rows, and
        together they make the step that one would.
        """
        keep_memory()
        _check_no_weights(kwargs)
        if validation_data is not None:
            size = kwargs.get("validation_batch_size") or kwargs.get("batch_size")
            pair = validation_data if isinstance(validation_data, tuple) else (validation_data,)  # a tuple is (x, y), as of Keras
            if len(pair) > 2:
                raise ValueError(f"`validation_data` must be data, or (x, y), without weights; received a tuple of {len(pair)}.")
            validation_data, size = self._on_replicas(self._prepare(*pair), size)
            kwargs["validation_steps"] = kwargs.get("validation_steps") or size
        prepared = self._prepare(x, y)
        if isinstance(prepared, dict):
            self.check_training(prepared)
        shuffle = kwargs.setdefault("shuffle", prepared is not x)  # a stream is shuffled by who made it
        prepared, size = self._on_replicas(prepared, kwargs.get("batch_size"), shuffle)
        kwargs["steps_per_epoch"] = kwargs.get("steps_per_epoch") or size
        with _data_errors(self):
            return super().fit(prepared, validation_data=validation_data, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Keras's `evaluate`, on the same kinds of data as `fit`."""
        _check_no_weights(kwargs)
        if not kwargs.get("_use_cached_eval_dataset"):  # called by Keras's fit, with what ours prepared
            x, size = self._on_replicas(self._prepare(x, y), kwargs.get("batch_size"))
            y, kwargs["steps"] = None, kwargs.get("steps") or size
        with _data_errors(self):
            return super().evaluate(x, y, **kwargs)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """Keras's `predict`, on the same kinds of data as `fit`."""
        with _data_errors(self):
            return super().predict(self._prepare(x), **kwargs)
