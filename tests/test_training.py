"""`train`: what it keeps, when it stops, what it refuses; that a resumed run is the uninterrupted one is a conformance test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfseq
from tfseq import training
from tfseq.data.batching import Sequences
from tfseq.models.base import Terms
from tfseq.models.vae import VariationalAutoencoder
from tfseq.training import KernelDecayAdam, KLWarmUp, averaged_weights, make_optimizer

pytestmark = [
    pytest.mark.usefixtures("eager"),
    pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning"),  # of tf.data
]


@pytest.fixture(scope="module")
def data() -> Sequences:
    """Four binary sequences."""
    rng = np.random.default_rng(0)
    return Sequences([(rng.random((n, 3)) < 0.4).astype(np.float32) for n in (4, 2, 3, 1)], name="toy", split="train")


def tiny() -> VariationalAutoencoder:
    keras.utils.set_random_seed(0)
    return VariationalAutoencoder.tiny()


def train(data: Sequences, validation: Sequences | None = None, **settings: Any) -> training.Run:
    return tfseq.train(tiny(), data, validation, **{"batch_size": 2, "epochs": 2, "progress": False, **settings})


def validations(monkeypatch: pytest.MonkeyPatch, bounds: list[float]) -> list[list[np.ndarray]]:
    """Makes validation find these bounds one after the other; returns the weights that it saw."""
    left, seen = iter(bounds), []

    def evaluate(model: VariationalAutoencoder, *_: Any, **__: Any) -> dict[str, float]:
        seen.append(model.get_weights())
        return {"nats_per_step": next(left)}

    monkeypatch.setattr(VariationalAutoencoder, "evaluate", evaluate)
    return seen


@pytest.mark.parametrize(("start", "num_steps", "wanted"), [
    (0.2, 4, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]), (0.01, 1, [0.01, 1.0, 1.0]), (1.0, 0, [1.0, 1.0]),
])  # fmt: skip
def test_the_weight_of_the_kl_rises_to_one_and_stays(start: float, num_steps: int, wanted: list[float]) -> None:
    model, warm_up = tiny(), KLWarmUp(num_steps, start)
    warm_up.set_model(model)
    found = []
    for step in range(len(wanted)):
        model.step.assign(step)  # the weight is a function of the saved step
        warm_up.on_train_batch_begin(0)
        found.append(float(model.kl_weight.numpy()))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_weights_of_the_best_validation_are_kept(data: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in (None, tmp_path / "run"):
        seen = validations(monkeypatch, [3.0, 1.0, 2.0])
        run = train(data, data, epochs=6, validate_every=2, out=out)
        assert [row.get("val_nats_per_step") for row in run.history] == [None, 3.0, None, 1.0, None, 2.0]
        for kept, best in zip(run.model.get_weights(), seen[1], strict=True):
            np.testing.assert_array_equal(kept, best)
        assert any((a != b).any() for a, b in zip(seen[1], seen[2], strict=True))
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert (card["metrics"]["epoch"], card["metrics"]["val_nats_per_step"], card["epochs_done"]) == (4, 1.0, 6)


def test_training_stops_when_the_bound_does_not_improve(data: Sequences, monkeypatch: pytest.MonkeyPatch) -> None:
    validations(monkeypatch, [3.0, 2.0, 2.5, 2.5, 2.5])
    run = train(data, data, epochs=20, validate_every=2, patience=3)
    assert len(run.history) == 8  # the best was epoch 4; epoch 6 is too early, and 7 is not validated
    assert "3 epochs" in run.stopped


def test_averages_stand_in_for_the_weights_only_inside(data: Sequences) -> None:
    model, values, averages = tiny(), [], []
    model.compile(make_optimizer("sgd", 0.5, average=0.5))

    def look(*_: Any) -> None:  # inside `fit`, which at its end overwrites the weights by their averages
        values.append(model.head.kernel.numpy())
        with averaged_weights(model):
            averages.append(model.head.kernel.numpy())
        np.testing.assert_array_equal(model.head.kernel, values[-1])

    model.fit(data, batch_size=4, epochs=3, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=look)])
    wanted = [values[0], (values[0] + values[1]) / 2, (values[0] + values[1] + 2 * values[2]) / 4]
    np.testing.assert_allclose(averages, wanted, rtol=1e-5, atol=1e-7)  # two additions in float32


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_step_in_one_kernel_is_that_of_keras(replicas: int, strategy: tf.distribute.Strategy) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(3, 2, 2)).astype(np.float32)
    twin, wanted = keras.optimizers.AdamW(0.1, weight_decay=0.5, epsilon=0.01), keras.Variable(np.ones((2, 2), np.float32))
    place = strategy if replicas == 2 else tf.distribute.get_strategy()
    with place.scope():
        found = keras.Variable(np.ones((2, 2), np.float32))
        optimizer = KernelDecayAdam(0.1, weight_decay=0.5, epsilon=0.01)
        optimizer.build([found])
    for gradient in gradients:
        twin.apply([replicas * gradient], [wanted])  # gradients of replicas are added
        place.run(lambda g=gradient: optimizer.apply([tf.constant(g)], [found]))
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-5)  # float32, the same sums in another order


def test_decay_shrinks_matrices_and_nothing_else() -> None:
    kernel, bias = keras.Variable(np.ones((2, 2), np.float32)), keras.Variable(np.ones(2, np.float32))
    optimizer = KernelDecayAdam(0.1, weight_decay=0.5)
    optimizer.apply([tf.zeros([2, 2]), tf.zeros([2])], [kernel, bias])
    np.testing.assert_allclose(kernel, np.full((2, 2), 1.0 - 0.1 * 0.5), rtol=1e-6)  # 1 - rate * decay
    np.testing.assert_array_equal(bias, np.ones(2))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(
    data: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, good = VariationalAutoencoder.train_step, 4  # two epochs of two steps

    def diverging(model: VariationalAutoencoder, batch: Any) -> dict[str, Any]:
        logs = fit(model, batch)
        if int(model.step) == good + 2:  # as where XLA, which leaves checks out, compiles the step
            model.head.kernel.assign(model.head.kernel * math.nan)
            model.loss_metric.total.assign(math.nan)
        return logs

    monkeypatch.setattr(VariationalAutoencoder, "train_step", diverging)
    run = train(data, data, epochs=9, out=tmp_path / "kept")
    assert "the loss became nan in epoch 3" in run.stopped
    assert len(run.history) == 2
    assert all(np.isfinite(w).all() for w in run.model.get_weights())
    for settings in ({"validation": data, "validate_every": 5}, {"validation": None}):
        with pytest.raises(ValueError, match=r"nothing to keep: the loss became nan in epoch 3.*last.keras"):
            train(data, epochs=9, out=tmp_path / str(settings["validation"] is None), **settings)
        with pytest.raises(ValueError, match="nothing to keep: the loss became nan in epoch 3"):
            train(data, epochs=9, **settings)


def test_a_full_disk_keeps_the_last_good_checkpoint(data: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = VariationalAutoencoder.save, []

    def full(model: VariationalAutoencoder, path: Path) -> None:
        calls.append(path)
        if len(calls) > 4:  # checkpoint of the start, best, checkpoint, best; then no room
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(model, path)

    monkeypatch.setattr(VariationalAutoencoder, "save", full)
    validations(monkeypatch, [3.0, 2.0, 1.0])
    settings = {"epochs": 3, "checkpoint_minutes": 0.0, "out": tmp_path}
    wanted = (
        r"last.keras could not be written \(No space left on device\); what was there before .* Saved: .*last.keras. Go on with"
    )
    with pytest.raises(OSError, match=wanted):
        train(data, data, **settings)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["history.csv", "last.keras", "model.keras"]
    model, state = training._last_checkpoint(tmp_path)
    assert (state["epoch"], int(model.step)) == (1, 2)
    monkeypatch.undo()
    assert len(train(data, data, **settings, resume=True).history) == 3


@pytest.mark.parametrize("name", training.RUN_FILES)
def test_what_lies_in_the_folder_is_not_replaced(name: str, data: Sequences, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"`out` must be a new run folder; .* already holds {name}"):
        train(data, out=tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert [(str(p.relative_to(tmp_path)), p.read_text()) for p in files] == [(name, "mine")]


def test_a_resumed_run_must_be_the_same_run(data: Sequences, tmp_path: Path) -> None:
    train(data, data, out=tmp_path)
    before = (tmp_path / "card.json").read_bytes()
    for changed, name in (({"learning_rate": 0.5}, "learning_rate"), ({"seed": 9}, "seed"), ({"epochs": 5}, "epochs")):
        with pytest.raises(ValueError, match=f"`{name}` was"):
            train(data, data, out=tmp_path, resume=True, **changed)
    with pytest.raises(ValueError, match="`data` was"):
        train(data.take([0, 1]), data, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="`model.latent_dim` was 2, received 3"):
        tfseq.train(VariationalAutoencoder.tiny(latent_dim=3), data, data, out=tmp_path, resume=True, batch_size=2, epochs=2)
    assert (tmp_path / "card.json").read_bytes() == before
    train(data, data, out=tmp_path, resume=True, max_minutes=5.0, patience=7)  # these may change


def test_a_checkpoint_that_does_not_say_its_run_is_an_error(
    data: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_STATE", "other.json")
    train(data, out=tmp_path / "model")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"is a model and no checkpoint \(it has no training.json\)"):
        train(data, out=tmp_path / "model", resume=True)
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **k: dumps({n: v for n, v in value.items() if n != "run"}, **k))
    train(data, out=tmp_path / "old")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="earlier version"):
        train(data, out=tmp_path / "old", resume=True)


@keras.saving.register_keras_serializable("tests")
class WithUnits(VariationalAutoencoder):
    """A model that states the divergence of each of its two latent dimensions."""

    def create_weights(self) -> None:
        self.latent_units = 2
        super().create_weights()

    def terms(self, batch: dict[str, Any], training: bool = False) -> Terms:
        found = super().terms(batch, training)
        return found._replace(kl_units=found.kl[..., None] * [0.25, 0.75])


def events(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Tag -> (step, value) of all event files of a folder."""
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for file in sorted(folder.glob("events.*"), key=lambda f: f.stat().st_mtime_ns):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


@pytest.mark.filterwarnings("ignore:.*tf_record_iterator:DeprecationWarning")
def test_logs_of_tensorboard_are_the_history_and_resuming_goes_on_with_them(
    data: Sequences, same_when_resumed: Callable[[Callable[..., Any]], Any], tmp_path: Path
) -> None:
    settings = {"batch_size": 2, "progress": False, "schedule": "constant", "monitors": True, "tensorboard": True}

    def run(epochs: int, out: Path, **rest: Any) -> training.Run:
        keras.utils.set_random_seed(0)
        return tfseq.train(WithUnits.tiny(), data, data, out=out, epochs=epochs, **settings, **rest)

    whole = same_when_resumed(run)
    wanted = {"loss", "nats_per_step", "reconstruction", "kl", "active_units"}
    names = wanted | {"gradient_norm", "weight_norm"} | {f"val_{name}" for name in wanted}
    assert set(whole.history[0]) == names | {"epoch", "seconds"}
    for folder in ("whole", "parts"):
        found = events(tmp_path / folder / "logs")
        assert set(found) == names | {"val_kl_units"}
        for name in names:
            assert [step for step, _ in found[name]] == [1, 2]
            np.testing.assert_allclose([v for _, v in found[name]], [row[name] for row in whole.history], rtol=1e-6)
        for (_, buckets), row in zip(found["val_kl_units"], whole.history, strict=True):
            left, right, counts = buckets.T
            assert counts.tolist() == [1.0, 1.0]
            np.testing.assert_allclose([left[0], right[-1]], np.array([0.25, 0.75]) * row["val_kl"], rtol=1e-5)
    file = next((tmp_path / "whole" / "logs").iterdir())
    plugins = {
        value.tag: value.metadata.plugin_data.plugin_name
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert plugins == dict.fromkeys(names, "scalars") | {"val_kl_units": "histograms"}


def test_logs_are_written_only_where_they_are_asked_for(data: Sequences, tmp_path: Path) -> None:
    train(data, epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "logs").exists()
    (tmp_path / "other" / "logs").mkdir(parents=True)
    with pytest.raises(ValueError, match="already holds logs"):
        train(data, out=tmp_path / "other", tensorboard=True)


@pytest.mark.parametrize(("settings", "message"), [
    ({"epochs": 0}, "`epochs`"), ({"batch_size": 2.5}, "`batch_size`"), ({"learning_rate": -1.0}, "`learning_rate` must be"),
    ({"clip_norm": 0.0}, "`clip_norm`"), ({"kl_start": 2.0}, "`kl_start` must lie"), ({"weight_decay": -0.1}, "`weight_decay`"),
    ({"average": 1.0}, "`average`"), ({"patience": 0}, "`patience`"), ({"patience": 3}, "`patience` needs `validation`"),
    ({"optimizer": "adan"}, "Did you mean 'adam'"), ({"schedule": "cosin"}, "Did you mean 'cosine'"),
    ({"resume": True}, "`resume` needs `out`"), ({"tensorboard": True}, "`tensorboard` needs `out`"),
])  # fmt: skip
def test_a_bad_setting_is_named(settings: dict[str, Any], message: str, data: Sequences) -> None:
    with pytest.raises(ValueError, match=message):
        train(data, **settings)
