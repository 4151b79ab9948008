"""Every promise over every model: one short test a promise, one tiny instance a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq.data.batching import Sequences
from tfseq.exporting import litert, saved_model
from tfseq.models import MODELS
from tfseq.models.base import SequenceModel
from tfseq.models.reader import Reader

LENGTHS = np.array([6, 3, 0, 1])

# Besides its `tiny()`, a model keeps the promises in these shapes, which together use its parts that hold state, noise or masks;
# heads and emissions that are arithmetic alone have their own tests.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "dmm": {
        "everything": {
            "augment": True, "missing": True, "control_dim": 2, "num_flows": 2, "flow_dim": 3, "guide": "ST-LR", "cell": "gru",
            "embedding_dim": 3, "dropout": 0.3, "scale": "variance", "objective": "iwae", "train_samples": 2,
        },
        "symbols": {
            "head": "categorical", "augment": True, "missing": True, "guide": "MF-LR", "cell": "lstm", "transition": "mlp",
            "learned_start": False,
        },
    },
    "vrnn": {
        "filters": {"objective": "fivo", "train_samples": 3, "cell": "gru", "control_dim": 2, "head": "normal", "missing": True},
        "storn": {"variant": "storn", "free_bits": 0.05, "head": "mixture", "num_layers": 2},
    },
    "kalman": {
        "full": {
            "dtype": "float64", "transition_noise": "full", "observation_noise": "full", "mean": [0.5, 0.4, 0.6],
            "stddev": [0.5, 0.4, 2.0],
        },
    },
    "rnn-density": {
        "stack": {
            "head": "nade", "units": [4, 3], "cell": "gru", "control_dim": 2, "input_layers": 1, "output_layers": 1,
            "dropout": 0.2, "weight_drop": 0.2, "layer_norm": True,
        },
    },
    "hmm": {
        "full": {"emission": "normal", "covariance": "full", "sticky": 2.0, "initial": "stationary"},
        "regression": {"emission": "normal", "covariance": "tied", "num_lags": 2, "control_dim": 2, "controls": "both"},
        # data without noise make Gaussians so narrow that float32 gradients are no more than rounding
        "mixture": {
            "emission": "mixture", "covariance": "spherical", "tied_transition": [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
            "dtype": "float64",
        },
        "trials": {"emission": "multinomial", "control_dim": 1, "controls": "transition", "num_transitions": 2},
        "symbols": {"emission": "categorical", "transition": "left-right"},
        "neural": {"emission": "neural", "head": "bernoulli", "control_dim": 2, "hidden_dim": 8},
    },
    "rbm": {
        "reals": {
            "visible": "gaussian", "learned_scale": True, "sampler": "cd", "num_sweeps": 2, "sparsity_cost": 0.1, "l2": 1e-3,
        },
        "counts": {
            "visible": "binomial", "visible_count": 2, "hidden": "categorical", "hidden_count": 2, "sampler": "pt",
            "num_chains": 4, "max_sweeps": 2, "sweeps_growth": 5, "centred": False,
        },
    },
    "tagger": {
        "crf": {
            "head": "crf", "tags": ["B-X", "I-X", "O"], "units": [4], "backward_units": [3], "layer_norm": True,
            "recurrent_dropout": 0.2, "token_dropout": 0.2,
        },
        "transcription": {
            "head": "ctc", "vocabulary": [], "feature_dim": 2, "cell": "gru", "residual": True, "units": [4], "zoneout": 0.1,
        },
    },
    "lm": {
        "awd": {
            "units": [5], "tied": True, "cell": "gru", "weight_drop": 0.2, "embedding_dropout": 0.1, "activation_penalty": 0.1,
            "slowness_penalty": 0.1, "conditional": True, "classes": ["A", "B"],
        },
    },
    "seq2seq": {
        "bahdanau": {"attention": "bahdanau", "units": [4, 3], "cell": "lstm", "own_tokens": 0.3, "own_tokens_warmup": 2},
    },
    "dbm": {
        "reals": {"visible": "gaussian", "learned_scale": True, "hidden_units": [3, 4, 2], "sampler": "fpcd", "damping": 0.2},
    },
}  # fmt: skip
CASES = {name: (name, {}) for name in sorted(MODELS)}
CASES |= {f"{name}-{key}": (name, value) for name, shapes in VARIANTS.items() for key, value in shapes.items()}


def examples(model: SequenceModel, num_steps: int = 6, garbage: float = 0.0) -> dict[str, np.ndarray]:
    """Four sequences of 6, 3, 0 and 1 steps that alternate, so that something can be learned.

    `garbage` stands in the padding, and where a feature was not observed if the model takes missing features.
    """
    rng, specs = np.random.default_rng(0), model.batch_spec()
    shape = [4, 9, *specs["x"].shape[2:]]  # drawn at its longest, so that another num_steps is a part of it
    x = np.broadcast_to((np.arange(9) % 2).reshape(1, -1, *[1] * (len(shape) - 2)), shape)
    mask = np.arange(9) < LENGTHS[:, None]
    keep = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (len(shape) - 2)), shape)
    data = {"mask": mask}
    if getattr(model, "missing", False):
        data["observed"] = rng.random(shape) < 0.7
        keep = keep & data["observed"]
    data["x"] = np.where(keep, x, garbage).astype(specs["x"].dtype.as_numpy_dtype)
    if isinstance(model, Reader) and "y" in specs:  # what is to be found out can be: the token itself, the first of a row
        data["y"] = data["x"].astype(np.int32) if "y" not in model.unaligned else np.array([1, 0, 1, 0], np.int32)
        if data["y"].ndim == 3:
            data["y"] = data["y"][..., 0]
    if "target" in specs:
        data["target"] = np.array([[1, 0, 1, 1], [0, 1, 9, 9], [9, 9, 9, 9], [1, 9, 9, 9]], np.int32) % model.num_targets
        data["target_mask"] = np.arange(4) < np.array([4, 2, 0, 1])[:, None]
    if "u" in specs:
        u = rng.normal(size=[4, 9, *specs["u"].shape[2:]])
        data["u"] = np.where(mask[..., None], u, garbage).astype(np.float32)
    cut = {name: a if name in model.unaligned else a[:, :num_steps] for name, a in data.items()}
    return cut | {"row": np.arange(4, dtype=np.int32)}


def as_sequences(data: dict[str, np.ndarray]) -> Sequences:
    """The same as a data set; its augmentation turns half of the sequences around."""
    rows = {name: [a[:n] for a, n in zip(data[name], LENGTHS, strict=True)] for name in ("x", "observed", "u") if name in data}
    if "target" in data:
        rows["target"] = [a[m] for a, m in zip(data["target"], data["target_mask"], strict=True)]
    if "y" in data:
        rows["y"] = list(data["y"]) if data["y"].ndim == 1 else [a[:n] for a, n in zip(data["y"], LENGTHS, strict=True)]
    return Sequences(**rows, name="toy", split="train", augmentation=lambda x, rng: x[::-1].copy() if rng.random() < 0.5 else x)


@pytest.fixture(scope="module", params=CASES)
def make(request: pytest.FixtureRequest) -> Callable[..., SequenceModel]:
    """Makes a tiny model of every key of `MODELS`, and of every variant."""
    name, overrides = CASES[request.param]

    def tiny(**more: Any) -> SequenceModel:
        return MODELS[name].tiny(**{**overrides, **more})

    tiny.is_variant = bool(overrides)  # type: ignore[attr-defined]
    tiny.model_class = MODELS[name]  # type: ignore[attr-defined]
    tiny.is_first = not overrides and name in ("dmm", "hmm", "tagger", "rbm")  # type: ignore[attr-defined]
    return tiny


@pytest.fixture(scope="module")
def trained(make: Callable[..., SequenceModel]) -> SequenceModel:
    """A tiny model after a short `fit`, its bound before and after attached."""
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.Adam(0.02, global_clipnorm=5.0))
    data = examples(model)
    monitor = "nats_per_step" if isinstance(model, Reader) else model.monitor  # an accuracy may be best from the beginning
    before = model.evaluate(data, verbose=0, return_dict=True)[monitor]
    stream = tf.data.Dataset.from_tensors(model.as_batch(data)).repeat()
    model.fit(stream, steps_per_epoch=300, epochs=1, verbose=0)
    after = model.evaluate(data, verbose=0, return_dict=True)[monitor]
    model.bounds_before_and_after, model.is_variant = (before, after), make.is_variant
    return model


def scores(model: SequenceModel, data: dict[str, np.ndarray]) -> np.ndarray:
    """Score of each sequence, `[B]`."""
    if isinstance(model, Reader):  # whose `predict` answers step by step
        terms = model.terms(model.complete(model.as_batch(data)))
        return np.asarray(terms.per_sequence(terms.log_lik))
    return np.asarray(model.predict(data, verbose=0))


def test_training_beats_the_constant_baseline(trained: SequenceModel) -> None:
    before, after = trained.bounds_before_and_after
    assert after < before
    data = examples(trained)
    config = trained.get_config()
    if isinstance(trained, Reader):
        num = len(trained.labels) or trained.size
        assert after < 0.5 * np.log(num)  # half of what guessing costs
        return
    if next((config[n] for n in ("emission", "head", "visible") if n in config), "bernoulli") != "bernoulli":
        return  # the entropy below is that of binary features
    seen = data["mask"][..., None] & data.get("observed", True)
    share = np.where(seen, data["x"], 0.0).sum((0, 1)) / seen.sum((0, 1))
    entropy = -(share * np.log(share) + (1.0 - share) * np.log1p(-share))  # of the best constant Bernoulli, nats a feature
    assert after < float(np.sum(entropy * seen.sum((0, 1)))) / LENGTHS.sum()


def test_a_keras_file_gives_the_same_model_back(trained: SequenceModel, tmp_path: Path) -> None:
    data = examples(trained)
    trained.save(tmp_path / "model.keras")
    again = tfseq.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(scores(again, data), scores(trained, data))
    assert again.get_config() == trained.get_config()
    if trained.is_variant and not getattr(trained, "chains", None):
        return  # what a variant adds to a step are chains: one shape of each other model shows the rest
    for model in (trained, again):  # the next step of the optimiser is the same too
        model.make_train_function(force=True)  # a graph traced after other shapes would round otherwise
        model.fit(data, batch_size=4, epochs=1, verbose=0, shuffle=False)
    for a, b in zip(trained.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_garbage_in_the_padding_changes_nothing(trained: SequenceModel) -> None:
    clean, dirty = examples(trained), examples(trained, garbage=np.nan if trained.batch_spec()["x"].dtype.is_floating else 7)
    np.testing.assert_array_equal(scores(trained, dirty), scores(trained, clean))
    longer = examples(trained, num_steps=9)
    # another T changes the order of float32 sums at most
    # (a CRF's score is the difference of two numbers near 20, whose float32 rounding is 2e-6)
    np.testing.assert_allclose(scores(trained, longer), scores(trained, clean), rtol=1e-5, atol=5e-6)
    for gradients in zip(*(_gradients(trained, data) for data in (clean, dirty)), strict=True):
        np.testing.assert_array_equal(*gradients)


def _gradients(model: SequenceModel, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    batch = model.complete(model.as_batch(data))
    with tf.GradientTape() as tape:
        terms = model.terms(batch, training=False)
        loss = tf.reduce_sum(terms.per_sequence(terms.kl - terms.log_lik))
    return [g.numpy() for g in tape.gradient(loss, model.trainable_weights)]


def test_the_order_and_the_size_of_a_batch_change_nothing(trained: SequenceModel) -> None:
    data = examples(trained)
    whole = scores(trained, data)
    order = np.array([3, 0, 2, 1])
    shuffled, rows = {k: v[order] for k, v in data.items()}, [{k: v[i : i + 1] for k, v in data.items()} for i in range(4)]
    np.testing.assert_allclose(scores(trained, shuffled), whole[order], rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose([scores(trained, row)[0] for row in rows], whole, rtol=1e-5, atol=5e-6)
    wanted, by_row = _gradients(trained, data), [_gradients(trained, row) for row in rows]
    for a, b, *parts in zip(wanted, _gradients(trained, shuffled), *by_row, strict=True):
        # rows and steps cancel, so the rounding is that of the largest; a sum over the wrong rows would be off by percents
        close = {"rtol": 1e-5, "atol": 1e-4 * np.abs(parts).max() + 1e-6}
        np.testing.assert_allclose(b, a, **close)
        np.testing.assert_allclose(np.sum(parts, 0), a, **close)


def test_an_empty_sequence_scores_nothing(trained: SequenceModel) -> None:
    assert scores(trained, examples(trained))[2] == 0.0
    nothing = {name: a if name in trained.unaligned else a[:, :0] for name, a in examples(trained).items() if name != "row"}
    if "target" in nothing:
        nothing["target_mask"] &= False
    np.testing.assert_array_equal(scores(trained, nothing), np.zeros(4))
    stream = tf.data.Dataset.from_tensors({name: tf.constant(a) for name, a in nothing.items()})
    assert trained.evaluate(stream, verbose=0, return_dict=True)[trained.monitor] == 0.0


def test_the_same_seed_gives_the_same_result(make: Callable[..., SequenceModel]) -> None:
    model = make()  # untrained: the trained one may have learned the pattern by heart
    if not hasattr(model, "sample"):
        pytest.skip("the model does not sample")
    spec = model.batch_spec().get("u")
    u = None if spec is None else np.random.default_rng(0).normal(size=(3, 5, spec.shape[2])).astype(np.float32)

    def sample(num_steps: int, seed: list[int]) -> np.ndarray:
        return model.sample(3, num_steps, seed=seed, **({} if u is None else {"u": u[:, :num_steps]})).numpy()

    a = sample(5, [0, 1])
    np.testing.assert_array_equal(sample(5, [0, 1]), a)
    assert (sample(5, [0, 2]) != a).any()
    # the number of steps does not matter, but for the rounding of products of another number of rows
    np.testing.assert_allclose(sample(4, [0, 1]), a[:, :4], rtol=1e-5, atol=1e-6)


def test_nan_is_a_clear_error(trained: SequenceModel) -> None:
    data = examples(trained)
    if data["x"].dtype.kind != "f":
        pytest.skip("the observations are symbols")
    place = tuple(np.argwhere(data.get("observed", np.ones(data["x"].shape, bool)))[0])
    data["x"][place] = np.nan
    cure = "For missing values pass `observed`" if "observed" in trained.batch_spec() else "Leave such rows out"
    with pytest.raises(ValueError, match=f"`x` must be finite.*{cure}"):
        trained.fit(data, verbose=0)
    with pytest.raises(ValueError, match=f"`x` must be finite.*{cure}"):
        trained.fit(as_stream(data), verbose=0)
    if "u" in data:
        data = examples(trained)
        data["u"][0, 1] = np.inf
        with pytest.raises(ValueError, match="`u` must be finite"):
            trained.fit(as_stream(data), verbose=0)


def as_stream(data: dict[str, np.ndarray]) -> tf.data.Dataset:
    """One batch that nobody checks before the graph runs."""
    return tf.data.Dataset.from_tensors({k: tf.constant(v) for k, v in data.items()})


def test_values_out_of_range_are_a_clear_error(trained: SequenceModel) -> None:
    data = examples(trained)
    if trained.in_support(tf.constant(-1, trained.batch_spec()["x"].dtype)):
        pytest.skip("the model takes every number")
    place = tuple(np.argwhere(data.get("observed", np.ones(data["x"].shape, bool)))[0])
    data["x"][place] = -1
    with pytest.raises(ValueError, match="`x` must be .*received -1"):
        trained.fit(data, verbose=0)
    with pytest.raises(ValueError, match="`x` must lie in the range"):
        trained.fit(as_stream(data), verbose=0)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_two_replicas_make_the_step_of_one(
    make: Callable[..., SequenceModel], clip_norm: float | None, strategy: tf.distribute.Strategy
) -> None:
    if clip_norm is not None and not make.is_first:
        pytest.skip("clipping is the base class's: one model of each family shows it")
    if make.is_variant and make.model_class not in (MODELS["rbm"], MODELS["dbm"], MODELS["lm"]):
        pytest.skip("rows are summed alike in all shapes of a model, but for chains and weights dropped, which replicas share")
    # SGD: Adam would hide a wrong scale, and so does a clip that is always active, which has its own case
    weights, logs = [], []
    for scope in (tf.distribute.get_strategy().scope(), strategy.scope()):
        with scope:
            keras.utils.set_random_seed(0)
            model = make()
            model.compile(keras.optimizers.SGD(0.05, global_clipnorm=clip_norm))
        batch = model.as_batch(examples(model))
        history = model.fit(tf.data.Dataset.from_tensors(batch), epochs=2, verbose=0).history
        weights.append(model.get_weights())
        logs.append(history)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert set(logs[0]) == set(logs[1])
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("policy_name", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_likelihoods_in_float32(make: Callable[..., SequenceModel], policy_name: str) -> None:
    if policy_name == "mixed_bfloat16" and not make.is_first:
        pytest.skip("mixed_float16 is the harder one: one model of each family shows the other")
    if make.is_variant and not issubclass(make.model_class, Reader):
        pytest.skip("the first shape of each model shows it, and those of readers, whose layers differ")
    model = make(dtype=policy_name)
    model.compile(keras.optimizers.Adam(1e-3))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy_name == "mixed_float16")
    before = [w.numpy() for w in model.trainable_weights]
    history = model.fit(examples(model), epochs=8, verbose=0).history  # the loss scale halves until float16 holds the gradient
    assert any((a != b.numpy()).any() for a, b in zip(before, model.trainable_weights, strict=True))
    assert model.terms(model.complete(model.as_batch(examples(model)))).log_lik.dtype == tf.float32
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("policy_name", ["mixed_bfloat16", "float64"])
def test_a_model_has_its_own_dtype_policy_made_saved_and_loaded(
    make: Callable[..., SequenceModel], policy_name: str, tmp_path: Path
) -> None:
    if make.is_variant or (policy_name == "mixed_bfloat16" and not make.is_first):
        pytest.skip("float64 shows most: one model of each family shows the other, and one shape of each model both")
    model = make(dtype=policy_name)
    assert keras.config.dtype_policy().name == "float32"  # the global policy is as it was
    wanted = keras.dtype_policies.get(policy_name)
    layers = [layer for layer in model._flatten_layers() if layer.weights]
    assert {w.dtype for layer in layers for w in layer.trainable_weights} == {wanted.variable_dtype}
    assert {layer.compute_dtype for layer in layers} <= {wanted.compute_dtype, wanted.variable_dtype}  # heads: variable_dtype
    model.save(tmp_path / "model.keras")
    again = tfseq.load(tmp_path / "model.keras")
    np.testing.assert_array_equal(scores(again, examples(model)), scores(model, examples(model)))
    assert scores(again, examples(model)).dtype == wanted.variable_dtype


def test_a_resumed_run_is_the_uninterrupted_one(make: Callable[..., SequenceModel], tmp_path: Path) -> None:
    if make.is_variant and not getattr(make(), "chains", None):
        pytest.skip("what a variant adds to a checkpoint are chains: one shape of each other model shows it")
    sequences = as_sequences(examples(make()))
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 2,
        "weight_decay": 0.1,
        "average": 0.9,
        "kl_warmup": 3,
        "augmented_epochs": 1,
        "progress": False,
    }
    if getattr(make(), "window", None):  # texts are read by windows of lanes, which nothing varies
        settings["augmented_epochs"] = 0
    weights = []
    for folder, limits in (("whole", [float("inf")]), ("parts", [1e-9, float("inf")])):
        keras.utils.set_random_seed(0)
        model = make()
        for i, limit in enumerate(limits):  # a limit of no time stops after one epoch
            run = tfseq.train(model, sequences, sequences, out=tmp_path / folder, max_minutes=limit, resume=i > 0, **settings)
        assert len(run.history) == 2
        weights.append((tfseq.load(tmp_path / folder / "checkpoints" / "last.keras").get_weights(), run.model.get_weights()))
    for whole, parts in zip(*weights, strict=True):
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(a, b)


_SERVE = """
import sys
sys.modules["tfseq"] = None                                  # whoever imports it fails
import numpy as np, tensorflow as tf
for line in sys.stdin:                                       # the folder of a SavedModel, then files of inputs and answers
    folder, given, answered = line.rstrip("\\n").split("\\t")
    model = tf.saved_model.load(folder)
    answer = model.signatures["serving_default"](**{k: tf.constant(v) for k, v in np.load(given).items()})
    answer = {k: v.numpy() for k, v in answer.items()}
    np.savez(answered, **{k: v.astype("S") if v.dtype == object else v for k, v in answer.items()})
    print("done", flush=True)
"""


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """What a process without tfseq answers: files in, file out; what it says meanwhile on standard error."""
    place = tmp_path_factory.mktemp("serve")
    with (place / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=place
        )

    def answer(*paths: Path) -> str:
        before = (place / "said").stat().st_size
        process.stdin.write("\t".join(map(str, paths)) + "\n")
        process.stdin.flush()
        done = process.stdout.readline()
        said = (place / "said").read_bytes()[before:].decode()
        assert done == "done\n", said
        return said

    with process:  # at its end the input ends, and is waited for
        yield answer


def assert_close(got: Any, wanted: Any, message: str = "") -> None:
    """Numbers up to float32 rounding, strings exactly (NumPy's files drop zero bytes at the end of one, and pad with them)."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if wanted.dtype.kind in "OSU":
        np.testing.assert_array_equal(got.astype("S"), wanted.astype("S"), err_msg=message)
    else:  # weights of particles are differences of logarithms, whose rounding is that of the largest
        atol = 1e-6 + 3e-6 * np.abs(wanted).max(initial=0.0, where=np.isfinite(wanted)) if wanted.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=atol, err_msg=message)


def test_the_saved_model_answers_in_a_process_without_tfseq(
    trained: SequenceModel, tmp_path: Path, serve: Callable[..., str]
) -> None:
    folder = tfseq.export(trained, tmp_path / "served", num_samples=2, num_particles=8, verify="reload")
    function, specs = trained.endpoints(2, 8)["serving_default"]
    data = examples(trained)
    given = {
        **data,
        "v": data["x"][:, 0],
        "lengths": LENGTHS.astype(np.int32),
        "seed": np.arange(8, dtype=np.int32).reshape(4, 2),
    }
    given["text"] = np.array([b"on off", b"", b"off, \xff on", b"a"], "S")
    given["label"] = np.array([b"A", b"", b"B", b"?"], "S")
    given = {spec.name: given[spec.name] for spec in specs}
    if trained.is_variant:  # the export has compared it; that a server needs no tfseq, one shape of each model shows
        return
    np.savez(tmp_path / "in.npz", **given)
    said = serve(folder, tmp_path / "in.npz", tmp_path / "out.npz")
    assert "WARNING:absl" not in said  # for example of custom gradients, which a served graph has no use for
    wanted = function(**{k: tf.constant(v) for k, v in given.items()})
    with np.load(tmp_path / "out.npz") as answer:
        assert set(answer) == set(wanted)
        for key, value in wanted.items():
            assert_close(answer[key], value)
    card = json.loads((folder / "card.json").read_text())
    assert set(card["signatures"]) == set(trained.endpoints())


def test_every_signature_of_numbers_runs_on_a_device(make: Callable[..., SequenceModel], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'tfseq[litert]'")
    if make.is_variant:  # type: ignore[attr-defined]
        pytest.skip("a variant: a conversion takes seconds; what they add to graphs is converted in test_litert.py")
    model = make()
    endpoints = model.endpoints(4, 8)
    if "filter_step" in endpoints and not make.is_first:  # type: ignore[attr-defined]
        # what state_space.py makes of them: all of one model, of the others the score and the step
        endpoints = {name: endpoints[name] for name in ("serving_default", "init_state", "filter_step")}
    found = litert.convert(model, tmp_path, endpoints, batch=2, length=5)["signatures"]
    assert any("bytes" in one for one in found.values())
    for one in found.values():  # what is compared on the way differs by rounding, or it were an error
        assert "bytes" in one or one["reason"].endswith("takes strings") or one["reason"].startswith("the same as")


def test_a_served_row_depends_on_neither_its_padding_nor_its_batch(trained: SequenceModel) -> None:
    """Of every signature's function; the export compares the graphs with these."""
    timed = ("x", "observed", "u", "token_ids")
    for name, (function, specs) in trained.endpoints(2, 8).items():
        given = {spec.name: a.numpy() for spec, a in zip(specs, saved_model.example_inputs(specs), strict=True)}
        whole = {key: a.numpy() for key, a in function(**{k: tf.constant(v) for k, v in given.items()}).items()}
        dirty = {k: v.copy() for k, v in given.items()}
        if "lengths" in given:
            for key in timed:
                for row, length in zip(dirty.get(key, ()), given["lengths"], strict=False):
                    row[length:] = True if row.dtype == bool else 1
        same = function(**{k: tf.constant(v) for k, v in dirty.items()})
        for key, value in whole.items():
            assert_close(same[key], value, f"{name}: {key}")
        for i in range(len(whole[key])):
            alone = function(**{k: tf.constant(v[i : i + 1]) for k, v in given.items()})
            for key, value in whole.items():
                part = np.asarray(alone[key][0].numpy())  # as many steps as this row asked for; the batch runs to its longest
                inside = tuple(slice(n) for n in part.shape)
                rest = np.array(value[i])
                assert_close(rest[inside], part, f"{name}: {key}")
                rest[inside] = 0 if rest.dtype.kind in "fiub" else ""
                assert not rest.any()


def test_the_constructor_takes_keyword_arguments_only_and_records_them(make: Callable[..., SequenceModel]) -> None:
    model = make()
    with pytest.raises(TypeError, match="keyword"):
        type(model)(3)
    assert set(model.hyperparameters()) <= set(model.get_config())
