"""What the base class promises every model: exact metrics, seeds, streams, no retracing, a KL weight that is not reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfseq.data.batching import Sequences, epoch_batches, num_batches, stream
from tfseq.models.base import SequenceModel, Terms
from tfseq.models.dmm import DeepMarkovModel
from tfseq.models.hmm import HiddenMarkovModel

LENGTHS = [6, 1, 3, 2, 5]


@pytest.fixture(scope="module")
def data() -> Sequences:
    """Five binary sequences of unequal lengths."""
    rng = np.random.default_rng(0)
    return Sequences([(rng.random((n, 3)) < 0.4).astype(np.float32) for n in LENGTHS])


def tiny(seed: int = 0) -> DeepMarkovModel:
    """A compiled tiny model."""
    keras.utils.set_random_seed(seed)
    model = DeepMarkovModel.tiny()
    model.compile(keras.optimizers.SGD(0.1))
    return model


def test_nats_per_step_are_exact_over_unequal_batches_and_ignore_the_kl_weight(data: Sequences) -> None:
    model = tiny()
    model.kl_weight.assign(0.25)
    found = model.evaluate(stream(data, 2), verbose=0, return_dict=True)
    terms = model.terms(model.complete(model.as_batch(data)))
    mask = terms.mask.numpy()
    log_lik, kl = terms.log_lik.numpy()[mask].sum(), terms.kl.numpy()[mask].sum()
    # the batches pad to other lengths, so float32 sums differ in their order
    assert found["nats_per_step"] == pytest.approx((kl - log_lik) / sum(LENGTHS), rel=1e-5)
    assert found["kl"] == pytest.approx(kl / sum(LENGTHS), rel=1e-5)
    assert found["loss"] == pytest.approx((0.25 * kl - log_lik) / sum(LENGTHS), rel=1e-5)


def test_the_gradient_is_that_of_the_loss_per_real_step(data: Sequences) -> None:
    model, twin = tiny(), tiny()
    batch = model.as_batch(data)
    model.fit(tf.data.Dataset.from_tensors(batch), epochs=1, verbose=0)
    with tf.GradientTape() as tape:
        terms = twin.terms(twin.complete(batch, 0), training=True)  # the noise of step 0
        loss = tf.reduce_sum(tf.where(terms.mask, terms.kl - terms.log_lik, 0.0)) / sum(LENGTHS)
    for weight, before, gradient in zip(
        model.trainable_weights, twin.trainable_weights, tape.gradient(loss, twin.trainable_weights), strict=True
    ):
        np.testing.assert_allclose(weight, before - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_every_kind_of_data_is_the_same_batch(data: Sequences) -> None:
    model = tiny()
    wanted = model.predict(data.padded(), verbose=0)
    for given in (list(data.x), data, stream(Sequences(data.x), 5).map(lambda b: b)):
        got = model.predict(given, verbose=0)
        np.testing.assert_allclose(np.sort(got), np.sort(wanted), rtol=1e-5)
    x = np.stack([data.x[0], data.x[0]])
    np.testing.assert_allclose(model.predict(x, verbose=0)[0], wanted[0], rtol=1e-5)


def test_a_mask_shortens_the_sequences_of_a_list_and_does_not_lengthen_them() -> None:
    model, x = Stated(), [np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)]
    mask = np.array([[True, False, False], [True, True, True]])
    np.testing.assert_array_equal(model.as_batch({"x": x, "mask": mask})["mask"], mask)
    with pytest.raises(
        ValueError, match=r"`mask` may shorten .*; sequence 0 has 2 steps, and 3 in `mask`\. Is the mask of other"
    ):
        model.as_batch({"x": x, "mask": np.ones((2, 3), bool)})


@pytest.mark.filterwarnings("ignore:Even though the .*run_functions_eagerly:UserWarning")
def test_streams_are_packed_as_keras_packs_them(eager: None) -> None:
    model, x, y = HiddenMarkovModel.tiny(), np.ones((2, 3, 3), np.float32), np.array([[0, 1, 0], [-1, 2, 1]])
    model.compile(keras.optimizers.SGD(0.1))

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return {"x": x}, y

    def bound(*data: Any) -> float:
        return model.evaluate(*data, verbose=0, return_dict=True)["loss"]

    stream_of = tf.data.Dataset.from_tensors
    alone, known = bound(x), bound(x, y)
    assert alone != pytest.approx(known)
    assert bound(stream_of(x)) == bound(stream_of({"x": x})) == pytest.approx(alone)
    for data in (stream_of((x, y)), stream_of(({"x": x}, y)), stream_of({"x": x, "y": y}), Batches()):
        assert bound(data) == pytest.approx(known)
    np.testing.assert_allclose(model.predict(stream_of((x, y)), verbose=0), model.log_prob(x), rtol=1e-6)  # float32
    with pytest.raises(ValueError, match="`sample_weight` is not taken"):
        model.fit(stream_of((x, y, np.ones(2))), verbose=0)


def test_replicas_take_streams_of_x_and_y(strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        model = HiddenMarkovModel.tiny()
    x, y = np.ones((2, 3, 3), np.float32), np.zeros((2, 3), np.int32)
    data, _ = model._on_replicas(tf.data.Dataset.from_tensors((x, y)))
    assert {"x", "y"} < set(data.element_spec)


def test_another_length_does_not_trace_another_graph(data: Sequences) -> None:
    model = tiny()
    traces = []
    terms = model.terms

    def counted(batch: dict, training: bool = False) -> object:
        traces.append(1)
        return terms(batch, training)

    object.__setattr__(model, "terms", counted)
    model.fit(stream(data, 1, seed=0), steps_per_epoch=5, epochs=2, verbose=0)
    assert len(traces) == 1


def test_set_random_seed_decides_everything(data: Sequences) -> None:
    runs = []
    for seed in (0, 0, 1):
        model = tiny(seed)
        model.fit(stream(data, 2, seed=0), steps_per_epoch=3, epochs=1, verbose=0)
        runs.append(np.concatenate([w.ravel() for w in model.get_weights()[3:]]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@keras.saving.register_keras_serializable("tests")
class Wrapped(DeepMarkovModel):
    """A model with a layer among its hyper-parameters."""

    def __init__(self, *, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(observation_dim=3, latent_dim=2, rnn_units=2, transition_dim=2, emission_dim=2, **kwargs)
        self.layer = layer


def test_layers_among_the_hyperparameters_are_saved(tmp_path: Path) -> None:
    model = Wrapped(layer=keras.layers.Dense(2, activation="relu", name="mine"))
    model.save(tmp_path / "model.keras")
    layer = keras.saving.load_model(tmp_path / "model.keras").layer
    assert (layer.name, layer.units, layer.activation) == ("mine", 2, keras.activations.relu)


def test_an_epoch_holds_every_row_once_and_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(0, 50, 101)
    for epoch in range(3):
        batches = epoch_batches(lengths, 8, seed=4, epoch=epoch)
        assert sorted(np.concatenate(batches)) == list(range(101))
        for a, b in zip(batches, epoch_batches(lengths, 8, seed=4, epoch=epoch), strict=True):
            np.testing.assert_array_equal(a, b)
        padded = sum(lengths[b].max() * len(b) for b in batches)
        assert padded < 1.5 * lengths.sum()  # unsorted batches would pad to about twice the steps
    first, second = (np.concatenate(epoch_batches(lengths, 8, seed=4, epoch=e)) for e in (0, 1))
    assert (first != second).any()


def test_a_stream_from_a_later_epoch_is_the_tail_of_the_whole(data: Sequences) -> None:
    size = num_batches(data, 2)
    whole = [b["row"].numpy().tolist() for b in stream(data, 2, seed=3).take(3 * size)]
    assert [b["row"].numpy().tolist() for b in stream(data, 2, seed=3, first_epoch=1).take(2 * size)] == whole[size:]


def test_bad_data_sets_are_errors(data: Sequences) -> None:
    with pytest.raises(ValueError, match="no sequences"):
        stream(Sequences([]), 2)
    with pytest.raises(ValueError, match="`batch_size`"):
        stream(data, 0)
    with pytest.raises(ValueError, match="`observed` of sequence 1 has 2 steps"):
        Sequences(data.x[:2], observed=[np.ones((6, 3), bool), np.ones((2, 3), bool)])


# Monitors -----------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Stated(SequenceModel):
    """A likelihood w . x, and a divergence of each of four latent dimensions: |x_1| times 0, 0.014, 0.5 and v."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.latent_units = 4
        self.w = self.add_weight(shape=(3,), initializer="ones", name="w")
        self.v = self.add_weight(shape=(), initializer="zeros", name="v")
        self.create_weights()

    def batch_spec(self) -> dict[str, tf.TensorSpec]:
        return {"x": tf.TensorSpec([None, None, 3])}

    def terms(self, batch: dict[str, Any], training: bool = False) -> Terms:
        rates = tf.concat([[0.0, 0.014, 0.5], self.v.value[None]], 0)
        kl_units = tf.abs(batch["x"][..., :1]) * rates
        return Terms(tf.linalg.matvec(batch["x"], self.w), tf.reduce_sum(kl_units, -1), batch["mask"], kl_units=kl_units)


def test_active_units_are_exact_over_unequal_batches_and_replicas(strategy: tf.distribute.Strategy) -> None:
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 3)).astype(np.float32) for n in LENGTHS]
    for i, a in enumerate(x):
        a[:, 0] = np.sign(a[:, 0]) * (i > 0)  # the longest has no divergence
    data = Sequences(x)
    mean = np.abs(np.concatenate(x)[:, 0]).mean()
    of_batches = np.mean([np.abs(a[:, 0]).mean() for a in x])
    assert 0.014 * mean < 0.01 < 0.014 * of_batches  # a mean of the means of batches would count the second dimension
    for place in (tf.distribute.get_strategy(), strategy):
        with place.scope():
            model = Stated()
            model.compile(keras.optimizers.SGD(0.0))
        batches = stream(data, 2 if place is strategy else 1)
        found = model.evaluate(batches, verbose=0, return_dict=True)
        [metric] = model.unit_metrics
        np.testing.assert_allclose(metric.kl(), mean * np.array([0, 0.014, 0.5, 0]), rtol=1e-6)
        assert found["active_units"] == 1
        assert found["kl"] == pytest.approx(metric.kl().numpy().sum(), rel=1e-6)
        history = model.fit(batches, epochs=2, verbose=0, validation_data=batches).history
        assert history["active_units"] == history["val_active_units"] == [1.0, 1.0]  # each epoch begins anew


def test_a_model_that_states_no_units_has_no_such_metric() -> None:
    assert "active_units" not in [m.name for m in HiddenMarkovModel.tiny().metrics]


@pytest.mark.parametrize("replicas", [1, 2])
def test_norms_are_those_of_the_whole_gradient_and_of_the_weights(replicas: int, strategy: tf.distribute.Strategy) -> None:
    rng = np.random.default_rng(0)
    data = Sequences([rng.normal(size=(n, 3)).astype(np.float32) for n in (5, 1)])  # a row for each replica
    with strategy.scope() if replicas == 2 else tf.distribute.get_strategy().scope():
        model = Stated()
        model.compile(keras.optimizers.SGD(0.5, global_clipnorm=0.1), monitor_norms=True)
    steps = np.concatenate(data.x).astype(float)
    gradient = np.append(-steps.mean(0), np.abs(steps[:, 0]).mean())  # of kl - log_lik per step, by w and v
    weights = np.array([1.0, 1.0, 1.0, 0.0])
    after = weights - 0.5 * gradient * 0.1 / np.linalg.norm(gradient)  # clipped, while the norm that is logged is not
    assert np.linalg.norm(gradient) > 0.1
    history = model.fit(stream(data, 2, seed=0), steps_per_epoch=2, epochs=1, verbose=0).history
    assert history["gradient_norm"] == [pytest.approx(np.linalg.norm(gradient), rel=1e-5)]  # that of both steps
    wanted = (np.linalg.norm(weights) + np.linalg.norm(after)) / 2
    assert history["weight_norm"] == [pytest.approx(wanted, rel=1e-6)]
    found = model.evaluate(stream(data, 2), verbose=0, return_dict=True)
    assert not {"gradient_norm", "weight_norm"} & set(found)


def test_norms_do_not_change_the_run_and_are_off_by_default(data: Sequences) -> None:
    weights, names = [], []
    for settings in ({}, {"monitor_norms": True}):
        keras.utils.set_random_seed(0)
        model = Stated()
        model.compile(keras.optimizers.SGD(0.1), **settings)
        names.append(set(model.fit(stream(data, 2, seed=0), steps_per_epoch=3, verbose=0).history))
        weights.append(np.append(model.w, model.v))
    np.testing.assert_array_equal(*weights)
    assert names[1] - names[0] == {"gradient_norm", "weight_norm"}


def test_norms_are_of_gradients_and_survive_saving(tmp_path: Path, data: Sequences) -> None:
    model = Stated()
    with pytest.raises(ValueError, match="`monitor_norms` is for method='gradient'"):
        HiddenMarkovModel.tiny().compile(method="em", monitor_norms=True)
    model.compile(keras.optimizers.SGD(0.1), monitor_norms=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert [m.name for m in again.metrics] == [m.name for m in model.metrics]
    again.compile(keras.optimizers.SGD(0.1))
    assert "gradient_norm" not in [m.name for m in again.metrics]


def test_the_norm_is_without_the_loss_scale() -> None:
    found = []
    for policy in ("float32", "mixed_float16"):
        model = Stated(dtype=policy)
        model.compile(keras.optimizers.SGD(0.0), monitor_norms=True)
        found.append(model.fit(np.ones((1, 2, 3), np.float32), verbose=0).history["gradient_norm"][0])
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert found == [pytest.approx(2.0), pytest.approx(2.0)]  # four partial derivatives of size 1
