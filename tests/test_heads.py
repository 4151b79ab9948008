"""Heads of independent features against scipy's distributions, and what holds for all heads."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tfseq.layers.heads import HEADS, RealHead, head_class, make_head, poisson_quantile
from tfseq.ops import tracing

REAL = ("normal", "mixture", "pen")


def one_of(name: str, rng: np.random.Generator, **kwargs: Any) -> tuple[Any, np.ndarray]:
    """A small head of three features over two inputs with arbitrary weights, and five observations."""
    head = make_head(name, 3, num_components=2, units=2, **kwargs)
    head(tf.zeros([1, 2]))
    head.set_weights([rng.normal(size=w.shape) for w in head.get_weights()])
    x = rng.normal(size=(5, 3)) if name in REAL else rng.integers(2, size=(5, 3))
    x[:, 0] = rng.integers(2, size=5) if name == "pen" else x[:, 0]
    return head, x[:, 0].astype(np.int32) if head.is_symbol else x.astype(np.float32)


def made(name: str, **kwargs: Any) -> Any:
    """A head of three features (classes) over two inputs, and its distribution of zero features."""
    head = HEADS[name](3, **kwargs)
    return head, head(tf.zeros([1, 2]))


def test_log_prob_is_scipy_s(rng: np.random.Generator) -> None:
    features = tf.constant(rng.normal(size=(4, 2)).astype(np.float32))
    for name in ("bernoulli", "normal", "poisson", "categorical"):
        head = HEADS[name](3)
        distribution = head(features)
        raw = np.split(features.numpy() @ head.kernel.numpy() + head.bias.numpy(), head.parameters_per_feature, -1)
        if name == "bernoulli":
            x = rng.integers(2, size=(4, 3))
            wanted = stats.bernoulli.logpmf(x, special.expit(raw[0])).sum(-1)
        elif name == "normal":
            x = rng.normal(size=(4, 3)).astype(np.float32)
            wanted = stats.norm.logpdf(x, raw[0], np.logaddexp(0, raw[1]) + 1e-4).sum(-1)
        elif name == "poisson":
            x = rng.poisson(1.0, size=(4, 3))
            wanted = stats.poisson.logpmf(x, np.exp(raw[0])).sum(-1)
        else:
            x = rng.integers(3, size=4)
            wanted = special.log_softmax(raw[0], -1)[np.arange(4), x]
        np.testing.assert_allclose(head.log_prob(distribution, tf.constant(x)), wanted, rtol=1e-5, atol=1e-6)


def test_a_missing_feature_is_left_out_of_the_likelihood(rng: np.random.Generator) -> None:
    head, distribution = made("normal")
    x = rng.normal(size=(1, 3)).astype(np.float32)
    each = distribution.log_prob(x).numpy()[0]
    got = head.log_prob(distribution, tf.constant(x), tf.constant([[True, False, True]]))
    np.testing.assert_allclose(got, [each[0] + each[2]], rtol=1e-6)


def test_quantiles_are_scipy_s() -> None:
    u = np.linspace(0.001, 0.999, 300, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    for name, mean, ppf in [
        ("poisson", [0.3, 4.0, 50.0], stats.poisson(np.array([0.3, 4.0, 50.0])).ppf),
        ("bernoulli", [0.2, 0.5, 0.9], lambda u: u < np.array([0.2, 0.5, 0.9])),
        ("normal", [-1.0, 0.0, 2.0], stats.norm([-1.0, 0.0, 2.0], np.log(2.0) + 1e-4).ppf),
    ]:
        head, distribution = made(name, mean=mean)
        got, wanted = head.sample(distribution, tf.constant(u)).numpy(), ppf(u.astype(np.float64))
        if name == "normal":
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        else:  # float32 may fall on the other side of a jump for a grid point on it
            assert np.mean(got != wanted) < 0.005
    head, distribution = made("categorical", mean=[0.2, 0.5, 0.3])
    drawn = head.sample(distribution, tf.constant(u[:, :1])).numpy()
    np.testing.assert_allclose(np.bincount(drawn) / 300, [0.2, 0.5, 0.3], atol=0.01)  # equally spaced points


def test_a_head_starts_at_the_mean_of_the_data() -> None:
    assert made("bernoulli", mean=[0.1, 0.5, 0.0])[1].probs_parameter().numpy()[0] == pytest.approx([0.1, 0.5, 1e-4], rel=1e-4)
    assert made("poisson", mean=[0.1, 5.0, 2.0])[1].rate_parameter().numpy()[0] == pytest.approx([0.1, 5.0, 2.0], rel=1e-5)
    assert head_class("bernoulli").mean_of([np.eye(2), np.ones((1, 2))]) == pytest.approx([2 / 3, 2 / 3])
    assert head_class("categorical").mean_of([np.array([0, 2]), np.array([2, 2])]) == [0.25, 0.0, 0.75]


def test_counts_are_drawn_also_without_the_functions_of_devices(rng: np.random.Generator) -> None:
    rate = np.array([0.3, 4.0, 50.0, 700.0], np.float32)
    uniform = rng.uniform(size=(300, 4)).astype(np.float32)
    wanted = stats.poisson(rate.astype(float)).ppf(uniform.astype(float))
    with tracing.single_precision():
        found = poisson_quantile(tf.constant(rate) + tf.zeros([300, 4]), tf.constant(uniform)).numpy()
    assert (found == wanted)[:, :3].mean() > 0.995  # where float32 rounds a cumulative probability past the number drawn
    assert np.abs(found - wanted).max() <= 1.0


@pytest.mark.parametrize("single", [False, True])
def test_counts_of_any_rate_have_the_mean_and_the_variance_of_the_quantiles(single: bool) -> None:
    rate, uniform = np.array([0.5, 50.0, 10_000.0, 1e6]), (np.arange(500)[:, None] + 0.5) / 500
    wanted = stats.poisson(rate).ppf(uniform)
    with tracing.single_precision() if single else contextlib.nullcontext():
        found = poisson_quantile(tf.constant(rate, tf.float32), tf.constant(uniform, tf.float32)).numpy().astype(float)
        last = poisson_quantile(tf.fill([500], 61.0), tf.fill([500], np.float32(1.0 - 2.0**-24))).numpy()
        most = poisson_quantile(tf.constant([1e12, np.inf]), tf.constant([0.5, 0.5])).numpy()
    assert np.abs(found - wanted).max() <= 1.0  # and one draw in twenty at most, of a deviation of 100 or more: hence the bounds
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=0.05)
    np.testing.assert_allclose(found.var(0), wanted.var(0), rtol=1e-3)
    assert (np.abs(last - stats.poisson(61.0).isf(2.0**-24)) < 10).all()  # rounding leaves the sum of all probabilities below 1
    assert HEADS["poisson"].supports(most, 1).all()


@pytest.mark.parametrize(("name", "x", "message"), [
    ("bernoulli", [[0.0, 0.5, 1.0]], "0 or 1 everywhere"),
    ("poisson", [[0.0, 1.5, 1.0]], "a whole number"),
    ("categorical", [0, 3], "a symbol from 0 to 2"), ("categorical", [0.5, 1.0], "a symbol from 0 to 2 everywhere; received 0.5"),
])  # fmt: skip
def test_values_outside_the_family_are_an_error(name: str, x: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HEADS[name].check(np.array(x), 3)


def test_an_unknown_head_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'bernoulli'"):
        head_class("bernouli")


def scored_and_drawn(head: Any) -> Callable:
    def both(features: tf.Tensor, x: tf.Tensor, uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        distribution = head(features)
        return head.log_prob(distribution, x), head.sample(distribution, uniform)

    return both


def test_any_leading_axes_give_the_same_in_a_saved_graph_without_random_operations(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    features = rng.normal(size=(2, 3, 5, 2)).astype(np.float32)
    module, made_heads, given = tf.Module(), {}, {}
    with tracing.without_gradients():
        for name in ("categorical", "mixture", "pen", "nade", "rbm", "annealed"):
            few = {"exact_units": 0, "num_chains": 2, "num_temperatures": 2} if name == "annealed" else {}
            head, x = one_of("rbm" if few else name, rng, **few)
            x = np.resize(x, (2, 3, 1, *x.shape[1:]))  # broadcasts over the last leading axis, of samples
            uniform = rng.random((2, 3, 5, head.num_uniforms)).astype(np.float32)
            specs = [tf.TensorSpec([None, None, None, a.shape[-1]]) for a in (features, uniform)]
            specs.insert(1, head.spec(None, None, None))
            function = tf.function(scored_and_drawn(head), input_signature=specs, autograph=False)
            definition = function.get_concrete_function().graph.as_graph_def()
            nodes = [*definition.node, *(node for f in definition.library.function for node in f.node_def)]
            assert not [node.op for node in nodes if "andom" in node.op or "_gradient_op_type" in node.attr]
            setattr(module, name, function)
            setattr(module, f"{name}_weights", [w.value for w in head.weights])  # tracked, so saved
            made_heads[name], given[name] = head, (x, uniform)
        tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for name, head in made_heads.items():
        x, uniform = given[name]
        log_prob, sample = getattr(loaded, name)(tf.constant(features), tf.constant(x), tf.constant(uniform))
        assert log_prob.shape == (2, 3, 5) and sample.shape == (2, 3, 5, *x.shape[3:])
        for t, b, s in ((0, 0, 0), (1, 2, 4), (0, 1, 3)):
            one = head(features[t, b, s][None])
            np.testing.assert_allclose(log_prob[t, b, s], head.log_prob(one, x[t, b])[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(sample[t, b, s], head.sample(one, uniform[t, b, s][None])[0], rtol=1e-4, atol=1e-5)


def test_log_probabilities_are_in_the_dtype_of_the_weights(rng: np.random.Generator) -> None:
    for name in HEADS:
        for policy, wanted in (("mixed_float16", tf.float32), ("float64", tf.float64)):
            head, x = one_of(name, rng, dtype=policy if policy == "float64" else "float32")
            distribution = head(tf.zeros([5, 2], tf.float16))
            assert head.log_prob(distribution, x).dtype == wanted
            assert head.sample(distribution, tf.fill([5, head.num_uniforms], 0.5)).dtype == head.spec().dtype


def test_completion_keeps_what_was_observed(rng: np.random.Generator) -> None:
    for name in HEADS:
        head, x = one_of(name, rng)
        distribution = head(tf.zeros([5, 2]))
        uniform = tf.constant(rng.random((5, head.num_uniforms)).astype(np.float32))
        if not head.supports_missing:
            with pytest.raises(ValueError, match="`observed` must be None"):
                head.complete(distribution, x, tf.ones(x.shape, tf.bool), uniform)
            with pytest.raises(ValueError, match="`observed` must be None"):
                head.log_prob(distribution, x, tf.ones(x.shape, tf.bool))
            continue
        observed = rng.random(x.shape) < 0.5
        hidden = np.where(observed, x, np.zeros_like(x) + (np.nan if x.dtype == np.float32 else -1))
        drawn = head.complete(distribution, tf.constant(hidden), tf.constant(observed), uniform).numpy()
        np.testing.assert_array_equal(drawn[observed], x[observed])
        assert np.isfinite(drawn).all()
        if not head.is_joint:
            np.testing.assert_array_equal(drawn[~observed], head.sample(distribution, uniform).numpy()[~observed])
        nothing = head.complete(distribution, tf.constant(hidden), tf.zeros(x.shape, tf.bool), uniform)
        np.testing.assert_allclose(nothing, head.sample(distribution, uniform), rtol=1e-5)


# Units of real data ------------------------------------------------------------------------------------------------


def test_a_scaled_head_is_the_head_of_standardised_data_in_other_units(rng: np.random.Generator) -> None:
    mean, scale = [0.4, -3.0, 50.0], [2.0, 0.1, 30.0]
    observed = rng.random((5, 3)) < 0.6
    for name in REAL:
        head, z = one_of(name, rng, mean=mean, scale=scale, dtype="float64")
        plain = make_head(name, 3, num_components=2, dtype="float64")
        features = tf.constant(rng.normal(size=(5, 2)))
        plain(features)
        plain.set_weights(head.get_weights())
        real = np.array([name != "pen", True, True])  # the pen has no units
        z = z.astype(np.float64)
        x = np.where(real, np.array(mean) + np.array(scale) * z, z)
        np.testing.assert_allclose(head.encode(tf.constant(x)), z, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(plain.encode(tf.constant(x)), x)
        for seen in (np.ones((5, 3), bool), observed):
            wanted = plain.log_prob(plain(features), z, tf.constant(seen)) - (np.log(scale) * (seen & real)).sum(-1)
            np.testing.assert_allclose(head.log_prob(head(features), x, tf.constant(seen)), wanted, rtol=1e-10)
        uniform = rng.random((5, head.num_uniforms))
        sample = plain.sample(plain(features), uniform).numpy()
        wanted = np.where(real, np.array(mean) + np.array(scale) * sample, sample)
        np.testing.assert_allclose(head.sample(head(features), uniform), wanted, rtol=1e-5)  # samples are float32


def test_a_density_in_the_units_of_the_data_integrates_to_one() -> None:
    grid = np.linspace(-400.0, 600.0, 20001)
    for name in ("normal", "mixture"):
        head = make_head(name, 1, [100.0], [30.0], num_components=3, dtype="float64")
        density = np.exp(head.log_prob(head(tf.zeros([1, 2])), grid[:, None]))
        assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-8)
        assert np.trapezoid(density * grid, grid) == pytest.approx(100.0, abs=1e-6)  # and the head starts at the mean


def test_the_floor_of_standard_deviations_is_in_standardised_units() -> None:
    for name in REAL:
        for scale in (None, [1.0, 20.0, 0.5]):
            head = make_head(name, 3, [0.0, 1.0, 2.0], scale, num_components=1, dtype="float64")
            head(tf.zeros([1, 2]))
            bias = head.bias.numpy()
            bias[4 if name == "pen" else -3 :] = -200.0  # raw standard deviations
            if name == "pen":
                bias[-1] = 0.0
            head.bias.assign(bias)
            log_prob = head.log_prob(head(tf.zeros([1, 2])), tf.constant([[0.0, 1.0, 2.0]]), tf.constant([[False, True, True]]))
            peak = -np.log(2 * np.pi) - 2 * np.log(1e-4) - (0.0 if scale is None else np.log(10.0))
            np.testing.assert_allclose(log_prob, [peak], rtol=1e-6)


def test_scales_are_standard_deviations_of_what_was_observed(rng: np.random.Generator) -> None:
    x = [rng.normal(size=(n, 3)) * [1.0, 2.0, 3.0] + 5.0 for n in (4, 7)]
    observed = [rng.random(a.shape) < 0.7 for a in x]
    rows, keep = np.concatenate(x), np.concatenate(observed)
    normal, pen = head_class("normal"), head_class("pen")
    np.testing.assert_allclose(normal.scale_of(x), rows.std(0))
    broken = [np.where(o, a, np.nan) for a, o in zip(x, observed, strict=True)]
    np.testing.assert_allclose(normal.scale_of(broken, observed), [rows[keep[:, d], d].std() for d in range(3)])
    np.testing.assert_allclose(normal.scale_of(broken, observed, "global"), [rows[keep].std()] * 3)
    np.testing.assert_allclose(normal.mean_of(broken, observed, "global"), [rows[keep].mean()] * 3)
    np.testing.assert_allclose(pen.scale_of(x), [1.0, *rows[:, 1:].std(0)])
    np.testing.assert_allclose(pen.scale_of(x, None, "global"), [1.0, *[rows[:, 1:].std()] * 2])
    np.testing.assert_allclose(pen.mean_of(x, None, "global"), [rows[:, 0].mean(), *[rows[:, 1:].mean()] * 2])
    assert all(issubclass(made, RealHead) or made.scale_of(x) is None for made in HEADS.values())
    bernoulli = head_class("bernoulli")
    assert bernoulli.mean_of(x, scaling="global") == bernoulli.mean_of(x)


def test_a_column_that_never_changes_cannot_be_scaled() -> None:
    x = [np.array([[0.1, 1.0, 5.0], [0.1, 2.0, 5.0], [0.1, 3.0, 5.0]])]
    with pytest.raises(ValueError, match=r"column\(s\) \[0, 2\]"):
        head_class("normal").scale_of(x)
    with pytest.raises(ValueError, match=r"column\(s\) \[2\]"):  # the pen may
        head_class("pen").scale_of(x)
    with pytest.raises(ValueError, match="column\\(s\\) \\[1\\]"):
        head_class("normal").scale_of([np.eye(2)], [np.array([[True, False]] * 2)])
    with pytest.raises(ValueError, match="all columns together"):
        head_class("normal").scale_of([np.ones((4, 2))], scaling="global")
    with pytest.raises(ValueError, match="`scaling` must be one of"):
        head_class("normal").scale_of(x, scaling="rows")


@pytest.mark.parametrize(("name", "kwargs", "message"), [
    ("normal", {"scale": [1.0]}, "`scale` must have one number"),
    ("mixture", {"scale": [1.0, 0.0, 1.0]}, r"`scale\[1\]` must be"),
    ("mixture", {"num_components": 0}, "`num_components`"), ("nade", {"units": 0}, "`units`"),
    ("rbm", {"units": 2, "num_sweeps": 0}, "`num_sweeps`"), ("rbm", {"exact_units": 21}, "`exact_units` must be at most 20"),
])  # fmt: skip
def test_wrong_arguments_are_an_error(name: str, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(name, 3, **kwargs)


def test_make_head_passes_what_a_head_takes() -> None:
    heads = {name: make_head(name, 3, [0.5] * 3, [2.0] * 3, num_components=5, units=7, name="head") for name in HEADS}
    assert {name for name, head in heads.items() if getattr(head, "scale", None)} == set(REAL)
    assert heads["mixture"].num_components == heads["pen"].num_components == 5
    assert heads["nade"].units == heads["rbm"].units == 7
    assert {n: h.num_uniforms for n, h in heads.items()} == {
        "bernoulli": 3, "normal": 3, "poisson": 3, "categorical": 1, "mixture": 4, "pen": 4, "nade": 3, "rbm": 15 * 10
    }  # fmt: skip
    assert {name for name, head in heads.items() if head.is_joint} == {"mixture", "pen", "nade", "rbm"}
    for name, head in heads.items():  # a layer is saved by its arguments
        again = type(head).from_config(head.get_config())
        assert again.get_config() == head.get_config() and again.mean == head.mean, name
