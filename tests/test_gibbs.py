"""Block Gibbs sampling against the enumeration of all joint states: probabilities, sweeps, exchanges and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import reference
import scipy.special
import tensorflow as tf
from reference import Boltzmann

from tfseq.ops import gibbs, random
from tfseq.ops.gibbs import Coloured, Layered
from tfseq.ops.tracing import kernels
from tfseq.ops.units import make_units

# Unit types, columns, and trials or categories, layer by layer; the visible side first.
LAYERS = {
    "binary": [("bernoulli", 3, 1), ("bernoulli", 2, 1)],
    "mixed": [("binomial", 2, 2), ("categorical", 6, 3)],
    "gaussian": [("gaussian", 2, 1), ("bernoulli", 2, 1)],
    "gaussian hidden": [("categorical", 3, 3), ("gaussian", 1, 1)],
    "three": [("bernoulli", 2, 1), ("categorical", 3, 3), ("binomial", 1, 3)],
    "three gaussian": [("gaussian", 1, 1), ("bernoulli", 2, 1), ("binomial", 1, 2)],
    "four": [("categorical", 2, 2), ("bernoulli", 2, 1), ("binomial", 1, 2), ("bernoulli", 2, 1)],
}
# A right sampler falls below this p-value for one seed in ten thousand, and each test has one fixed seed.
P_VALUE = 1e-4
EXACT = {"rtol": 1e-11, "atol": 1e-11}  # float64, sums of some ten terms


def make(name: str, rng: np.random.Generator, dtype: str = "float64") -> tuple[Boltzmann, list[np.ndarray], Layered]:
    """(the machine by enumeration, its biases at inverse temperature 0, the machine)."""
    wanted = Boltzmann.random(LAYERS[name], rng)
    start = [0.5 * rng.normal(size=b.shape) for b in wanted.biases]
    units = tuple(make_units("layer", *layer) for layer in LAYERS[name])
    weights, biases, first = (tuple(tf.constant(a, dtype) for a in part) for part in (wanted.weights, wanted.biases, start))
    return wanted, start, Layered(units, weights, biases, first)


# Three colours of 2, 1 and 2 units; no two of a colour touch.
SIZES = (2, 1, 2)


def make_coloured(rng: np.random.Generator, dtype: str = "float64") -> tuple[np.ndarray, np.ndarray, np.ndarray, Coloured]:
    """(weights, biases, biases at inverse temperature 0, the machine)."""
    num, colour = sum(SIZES), np.repeat(np.arange(len(SIZES)), SIZES)
    weights = np.triu(rng.normal(size=(num, num))) * (colour[:, None] != colour)
    weights, biases, start = weights + weights.T, rng.normal(size=num), 0.5 * rng.normal(size=num)
    return weights, biases, start, Coloured(SIZES, *(tf.constant(a, dtype) for a in (weights, biases, start)))


def tempered_graph(weights: np.ndarray, biases: np.ndarray, start: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """States and log p* of the coloured machine at an inverse temperature."""
    return reference.graph_states(beta * weights, start + beta * (biases - start))


def joint(states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All combinations of the states of several layers, `[S_0 S_1 .., n_l]` each, the last varying fastest."""
    index = np.meshgrid(*(np.arange(len(s)) for s in states), indexing="ij")
    return [s[i.ravel()] for s, i in zip(states, index, strict=True)]


def tensors(arrays: Sequence[np.ndarray]) -> tuple[tf.Tensor, ...]:
    return tuple(tf.constant(a) for a in arrays)


def seeds(num: int, seed: int = 0) -> tf.Tensor:
    return random.row_seeds(tf.constant([seed, 11]), tf.range(num))


# Probabilities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_log_prob_is_the_sum_over_the_other_layers(name: str, rng: np.random.Generator) -> None:
    wanted, start, machine = make(name, rng)
    for parity in (0, 1):
        kept = list(range(parity, len(wanted.layers), 2))
        states = tensors(joint([wanted.states[i] for i in kept]))
        inputs = machine.inputs(states, 1 - parity)
        values = {beta: wanted.tempered(beta, start).log_marginal(kept).ravel() for beta in (0.0, 0.3, 1.0)}
        np.testing.assert_allclose(machine.log_prob(states, inputs, parity), values[1.0], **EXACT)
        for beta, value in values.items():
            found = machine.log_prob(states, inputs, parity, tf.constant(beta, tf.float64))
            np.testing.assert_allclose(found, value, **EXACT)
        of_row = np.resize([0.0, 0.3, 1.0], (len(values[0.0]), 1))
        found = machine.log_prob(states, inputs, parity, tf.constant(of_row))
        np.testing.assert_allclose(found, [values[b[0]][i] for i, b in enumerate(of_row)], **EXACT)
        if parity == 1:
            np.testing.assert_allclose(machine.odd_log_prob(states), values[1.0], **EXACT)
            np.testing.assert_allclose(machine.odd_log_prob(states, tf.constant(of_row)), found, **EXACT)
    np.testing.assert_allclose(machine.start_log_z(), wanted.tempered(0.0, start).log_z, **EXACT)


@pytest.mark.parametrize("name", LAYERS)
def test_means_are_those_of_the_conditional_distributions(name: str, rng: np.random.Generator) -> None:
    wanted, _, machine = make(name, rng)
    layers = range(len(wanted.layers))
    for parity in (0, 1):
        given = [i for i in layers if i % 2 != parity]
        means = machine.means(machine.inputs(tensors(joint([wanted.states[i] for i in given])), parity), parity)
        for layer, found in zip(machine.layers(parity), means, strict=True):
            # p(layer | given) from the joint table, the axes of `given` first
            others = tuple(i for i in layers if i not in (layer, *given))
            table = np.moveaxis(wanted.prob, layer, -1).sum(tuple(i - (i > layer) for i in others))
            table = table.reshape(-1, table.shape[-1])
            # far out on a Gaussian's grid the probability underflows, and says nothing of what is given there
            rows = table.sum(-1) > 1e-200
            conditional = (table @ wanted.states[layer])[rows] / table.sum(-1, keepdims=True)[rows]
            np.testing.assert_allclose(found.numpy()[rows], conditional, rtol=1e-9, atol=1e-9)


def test_log_prob_of_a_coloured_machine_is_the_sum_over_its_first_colour(rng: np.random.Generator) -> None:
    weights, biases, start, machine = make_coloured(rng)
    for beta in (None, 0.0, 0.4):
        _, log_prob = tempered_graph(weights, biases, start, 1.0 if beta is None else beta)
        table = scipy.special.logsumexp(log_prob.reshape(2 ** SIZES[0], -1), 0)
        states = np.array(list(itertools.product([0.0, 1.0], repeat=sum(SIZES[1:]))))
        odd = tensors(np.split(states, np.cumsum(SIZES[1:])[:-1], axis=1))
        for given in [beta] if beta is None else [tf.constant(beta, tf.float64), tf.fill([len(states), 1], np.float64(beta))]:
            np.testing.assert_allclose(machine.odd_log_prob(odd, given), table, **EXACT)
            np.testing.assert_allclose(machine.log_prob(odd, machine.inputs(odd), 1, given), table, **EXACT)
    np.testing.assert_allclose(machine.start_log_z(), scipy.special.logsumexp(tempered_graph(weights, biases, start, 0.0)[1]))


@pytest.mark.parametrize("name", ["mixed", "three", "four", "coloured"])
def test_odd_states_enumerates_every_joint_state_once(name: str, rng: np.random.Generator) -> None:
    if name == "coloured":
        machine: gibbs.Machine = make_coloured(rng)[-1]
        wanted = np.array(list(itertools.product([0.0, 1.0], repeat=sum(SIZES[1:]))))
    else:
        by_enumeration, _, machine = make(name, rng)
        wanted = np.concatenate(joint(by_enumeration.states[1::2]), 1)
    assert machine.num_odd_states() == len(wanted)
    found = np.concatenate([a.numpy() for a in machine.odd_states(tf.range(len(wanted), dtype=tf.int64))], 1)
    assert sorted(reference.places(found, wanted)) == list(range(len(wanted)))


def test_gaussian_layers_have_no_number_of_states_and_large_ones_a_large_number(rng: np.random.Generator) -> None:
    assert make("gaussian hidden", rng)[-1].num_odd_states() == np.inf
    empty = tf.zeros([1, 0], tf.float64)
    for kinds in (("bernoulli", "bernoulli"), ("bernoulli", "bernoulli", "bernoulli", "gaussian")):
        units = tuple(make_units("layer", kind, 2000, 1) for kind in kinds)
        assert Layered(units, (empty,) * (len(units) - 1), (empty,) * len(units), (empty,) * len(units)).num_odd_states() > 1e300


@pytest.mark.parametrize("name", ["binary", "four"])
def test_a_flipped_machine_is_the_same_machine(name: str, rng: np.random.Generator) -> None:
    wanted, start, machine = make(name, rng)
    kept = list(range(len(wanted.layers) - 2, -1, -2))  # the odd layers of the flipped machine
    states = tensors(joint([wanted.states[i] for i in sorted(kept)])[::-1])
    value = wanted.tempered(0.3, start).log_marginal(sorted(kept)).ravel()
    np.testing.assert_allclose(machine.flipped().odd_log_prob(states, tf.constant(0.3, tf.float64)), value, **EXACT)


# Sweeps ------------------------------------------------------------------------------------------------------------


def check_moments(wanted: Boltzmann, found: list[np.ndarray]) -> None:
    """Means, squares and neighbours' products within five standard errors; discrete layers' joint states by chi-square."""
    discrete = [i for i, layer in enumerate(wanted.layers) if layer[0] != "gaussian"]
    prob = wanted.prob.sum(tuple(i for i in range(len(found)) if i not in discrete))
    places = [reference.places(found[i], wanted.states[i]) for i in discrete]
    assert reference.chi_square(np.ravel_multi_index(places, prob.shape), prob) > P_VALUE
    for i, s in enumerate(found):
        square = wanted.prob.sum(tuple(j for j in range(len(found)) if j != i)) @ wanted.states[i] ** 2
        checks = [(s, wanted.mean(i)), (s**2, square)]
        if i + 1 < len(found):
            checks.append((s[:, :, None] * found[i + 1][:, None], wanted.pair(i)))
        for values, mean in checks:
            error = values.std(0) / np.sqrt(len(values))
            assert (np.abs(values.mean(0) - mean) <= 5.0 * error + 1e-12).all()


@pytest.mark.parametrize("name", LAYERS)
def test_a_sweep_leaves_the_distribution_at_any_temperature_as_it_is(name: str, rng: np.random.Generator) -> None:
    wanted, start, machine = make(name, rng)
    num, betas = 8000, (0.35, 1.0)
    targets = [wanted.tempered(beta, start) for beta in betas]
    before = [target.sample(num, rng)[1::2] for target in targets]
    odd = tensors([np.concatenate(parts) for parts in zip(*before, strict=True)])
    phase = machine.sweep(odd, seeds(2 * num), 3, tf.constant(np.repeat(betas, num)[:, None]))
    for a, b in zip(phase.inputs, machine.inputs(phase.even, 1), strict=True):
        np.testing.assert_array_equal(a, b)  # at inverse temperature 1, whatever the chain's is
    for i, target in enumerate(targets):
        found: list[np.ndarray] = [np.empty(0)] * len(wanted.layers)
        found[0::2], found[1::2] = ([a.numpy()[i * num : (i + 1) * num] for a in part] for part in (phase.even, phase.odd))
        check_moments(target, found)


@pytest.mark.parametrize("name", ["mixed", "gaussian", "three gaussian", "four"])
def test_chains_from_one_state_come_to_the_distribution(name: str, rng: np.random.Generator) -> None:
    wanted, _, machine = make(name, rng)
    num = 6000
    # the first states are drawn without interactions, and then replaced by one state for all
    odd = tuple(tf.zeros_like(a) for a in machine.first(seeds(num)))
    odd = tuple(tf.one_hot(tf.zeros(num, tf.int32), a.shape[1], dtype=a.dtype) if a.shape[1] == 3 else a for a in odd)
    phase = gibbs.gibbs(machine, odd, 15, seeds(num))
    found: list[np.ndarray] = [np.empty(0)] * len(wanted.layers)
    found[0::2], found[1::2] = ([a.numpy() for a in part] for part in (phase.even, phase.odd))
    check_moments(wanted, found)


@pytest.mark.parametrize("name", ["mixed", "three", "four", "gaussian hidden"])
def test_the_first_states_are_those_without_interactions(name: str, rng: np.random.Generator) -> None:
    wanted, start, machine = make(name, rng)
    alone = wanted.tempered(0.0, start)
    found = [a.numpy() for a in machine.first(seeds(8000))]
    for layer, s in zip(machine.layers(1), found, strict=True):
        if alone.layers[layer][0] == "gaussian":
            # variance 1, so five standard errors are 5 / sqrt(8000)
            np.testing.assert_allclose(s.mean(0), start[layer], atol=0.056)
            continue
        prob = alone.prob.sum(tuple(j for j in range(len(wanted.layers)) if j != layer))
        assert reference.chi_square(reference.places(s, alone.states[layer]), prob) > P_VALUE


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_a_sweep_of_a_coloured_machine_leaves_its_distribution_as_it_is(beta: float, rng: np.random.Generator) -> None:
    weights, biases, start, machine = make_coloured(rng)
    states, log_prob = tempered_graph(weights, biases, start, beta)
    prob, num = scipy.special.softmax(log_prob), 20_000
    drawn = states[rng.choice(len(states), num, p=prob)]
    cuts = np.cumsum(SIZES)[:-1]
    odd = tensors(np.split(drawn, cuts, axis=1)[1:])
    given = None if beta == 1.0 else tf.constant(beta, tf.float64)
    after = gibbs.gibbs(machine, odd, 1, seeds(num), 2, given)
    found = np.concatenate([*after.even, *after.odd], 1)
    assert reference.chi_square(reference.places(found, states), prob) > P_VALUE
    # and from one state for all it comes there
    fixed = tuple(tf.zeros_like(a) for a in odd)
    after = gibbs.gibbs(machine, fixed, 20, seeds(num, 1), 0, given)
    found = np.concatenate([*after.even, *after.odd], 1)
    assert reference.chi_square(reference.places(found, states), prob) > P_VALUE
    # the odd states to begin with have no interactions
    first = np.concatenate(machine.first(seeds(num, 2)), 1)
    alone = scipy.special.softmax(tempered_graph(weights, biases, start, 0.0)[1]).reshape(2 ** SIZES[0], -1).sum(0)
    assert reference.chi_square(reference.places(first, states[: len(alone), SIZES[0] :]), alone) > P_VALUE


@pytest.mark.parametrize("name", ["three gaussian", "four", "coloured"])
def test_sweeps_are_one_after_the_other_and_may_be_resumed(name: str, rng: np.random.Generator) -> None:
    machine = make_coloured(rng)[-1] if name == "coloured" else make(name, rng)[-1]
    num, beta = 20, tf.constant(0.8, tf.float64)
    odd = machine.first(seeds(num))
    whole = gibbs.gibbs(machine, odd, 5, seeds(num), 7, beta)
    phase = machine.sweep(odd, seeds(num), 7, beta)
    for time in range(8, 12):
        phase = machine.sweep(phase.odd, seeds(num), time, beta)
    half = gibbs.gibbs(machine, odd, 2, seeds(num), 7, beta)
    for other in (phase, gibbs.gibbs(machine, half.odd, tf.constant(3), seeds(num), 9, beta)):
        for a, b in zip(tf.nest.flatten(whole), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(b, a)
    again = gibbs.gibbs(machine, half.odd, 3, seeds(num), 0, beta)
    assert any((a.numpy() != b.numpy()).any() for a, b in zip(whole.odd, again.odd, strict=True))  # other times, other numbers
    few = gibbs.gibbs(machine, tuple(a[3:5] for a in odd), 5, seeds(num)[3:5], 7, beta)  # a row does not depend on the others
    for a, b in zip(tf.nest.flatten(whole), tf.nest.flatten(few), strict=True):
        np.testing.assert_allclose(b, a[3:5], rtol=1e-6)  # the ends of an array may take another float32 cosine


@pytest.mark.parametrize("name", ["mixed", "four", "coloured"])
def test_annealing_leads_a_chain_by_one_sweep_and_weighs_its_states_before_it(name: str, rng: np.random.Generator) -> None:
    machine = make_coloured(rng)[-1] if name == "coloured" else make(name, rng)[-1]
    num, before, after = 50, tf.constant(0.3, tf.float64), tf.constant(0.45, tf.float64)
    odd = machine.first(seeds(num))
    states, ratio = machine.anneal(odd, before, after, seeds(num), tf.constant(4))
    np.testing.assert_allclose(ratio, machine.odd_log_prob(odd, after) - machine.odd_log_prob(odd, before), **EXACT)
    for a, b in zip(states, machine.sweep(odd, seeds(num), 4, after).odd, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["layered", "coloured"])
def test_fused_kernels_give_what_the_plain_graph_gives(kind: str, rng: np.random.Generator) -> None:
    machine = make_coloured(rng, "float32")[-1] if kind == "coloured" else make("gaussian", rng, "float32")[-1]
    odd, betas = machine.first(seeds(16)), tf.constant([0.3, 0.5])

    def run() -> tuple:
        phase = machine.sweep(odd, seeds(16), 1, betas[1])
        return phase, machine.anneal(phase.odd, betas[0], betas[1], seeds(16), tf.constant(9)), machine.odd_log_prob(phase.odd)

    def run_fused() -> tuple:
        with kernels():
            return run()

    found = []
    for function, has_kernels in ((run, False), (run_fused, True)):
        traced = tf.function(function, autograph=False).get_concrete_function()
        assert any("_XlaMustCompile" in f.attr for f in traced.graph.as_graph_def().library.function) == has_kernels
        found.append(tf.nest.flatten(traced()))
    for a, b in zip(*found, strict=True):
        # XLA rounds float32 otherwise, by some units in the last place; a discrete state that differed would be off by 1
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


# Exchange ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("kind", ["layered", "coloured"])
def test_an_exchange_leaves_the_product_of_the_tempered_distributions_as_it_is(
    kind: str, time: int, rng: np.random.Generator
) -> None:
    betas, num = np.array([0.1, 0.5, 1.0]), 20_000
    if kind == "coloured":
        weights, biases, start, machine = make_coloured(rng)
        tables = [scipy.special.softmax(tempered_graph(weights, biases, start, b)[1]).reshape(4, 8).sum(0) for b in betas]
        states = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
        cuts = [SIZES[1]]
    else:
        wanted, start, machine = make("binary", rng)
        tables = [wanted.tempered(beta, start).prob.sum(0) for beta in betas]
        states, cuts = wanted.states[1], []
    before = np.stack([rng.choice(len(states), num, p=p) for p in tables])  # [M, C]
    odd = tensors(np.split(states[before.ravel()], cuts, axis=1))
    after, share = gibbs.exchange(machine, odd, tf.constant(betas), seeds(3 * num), time)
    after = reference.places(np.concatenate(after, 1), states).reshape(3, num)
    prob = np.einsum("i,j,k->ijk", *tables)
    assert reference.chi_square(np.ravel_multi_index(tuple(after), prob.shape), prob) > P_VALUE
    np.testing.assert_array_equal(np.sort(after, 0), np.sort(before, 0))  # each chain has its three states still
    low = time  # of three temperatures one pair is up: (0, 1) at even times, (1, 2) at odd ones
    np.testing.assert_array_equal(after[2 - 2 * time], before[2 - 2 * time])
    # Metropolis: the expected acceptance by enumeration, within five standard errors
    p, q = tables[low], tables[low + 1]
    accepted = np.minimum(np.outer(p, q), np.outer(q, p)).sum()
    assert abs(float(share) - accepted) < 5.0 * np.sqrt(accepted * (1.0 - accepted) / num)
    differs = before[low] != before[low + 1]
    swapped = after[low] != before[low]
    wanted_share = np.minimum(np.outer(p, q), np.outer(q, p))[~np.eye(len(p), dtype=bool)].sum()
    assert abs((swapped & differs).mean() - wanted_share) < 5.0 * 0.5 / np.sqrt(num)


def test_an_even_number_of_temperatures_pairs_all_of_them(rng: np.random.Generator) -> None:
    machine = make("binary", rng)[-1]
    odd = tuple(tf.repeat(a, 2, 0) for a in machine.first(seeds(4)))  # two chains at each of four temperatures
    equal = tf.ones(4, tf.float64)  # of one temperature every exchange is accepted
    after, share = gibbs.exchange(machine, odd, equal, seeds(8), 0)
    np.testing.assert_array_equal(after[0], tf.gather(odd[0], [2, 3, 0, 1, 6, 7, 4, 5]))
    assert float(share) == 1.0
    after, share = gibbs.exchange(machine, odd, equal, seeds(8), tf.constant(1))
    np.testing.assert_array_equal(after[0], tf.gather(odd[0], [0, 1, 4, 5, 2, 3, 6, 7]))
    assert float(share) == 1.0


# Gradients ---------------------------------------------------------------------------------------------------------


def score_and_gradient(
    machine: Layered, states: list[np.ndarray], row_weights: np.ndarray, offsets: list[np.ndarray] | None = None
) -> tuple[float, list[np.ndarray]]:
    parameters = [*machine.weights, *machine.biases]
    even, odd = tensors(states[0::2]), tensors(states[1::2])
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        inputs = machine.inputs(even, 1)
        value = machine.score(even, inputs, odd, tf.constant(row_weights), None if offsets is None else tensors(offsets))
    return float(value), [a.numpy() for a in tape.gradient(value, parameters)]


@pytest.mark.parametrize("name", LAYERS)
def test_the_score_is_the_weighted_sum_of_minus_energies_and_so_is_its_gradient(name: str, rng: np.random.Generator) -> None:
    _, _, machine = make(name, rng)
    states = [rng.normal(size=(6, int(b.shape[0]))) for b in machine.biases]  # means may be anything
    row_weights = rng.normal(size=6)
    value, gradient = score_and_gradient(machine, states, row_weights)
    parameters = [*machine.weights, *machine.biases]
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        wanted = tf.constant(0.0, tf.float64)
        for row in range(6):
            for s, bias in zip(states, machine.biases, strict=True):
                wanted += row_weights[row] * tf.tensordot(tf.constant(s[row]), bias, 1)
            for (left, right), w in zip(itertools.pairwise(states), machine.weights, strict=True):
                wanted += row_weights[row] * tf.reduce_sum(left[row][:, None] * w * right[row][None])
    np.testing.assert_allclose(value, wanted, **EXACT)
    for a, b in zip(gradient, tape.gradient(wanted, parameters), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


@pytest.mark.parametrize("name", ["mixed", "three", "four"])
def test_the_centred_gradient_is_a_step_of_the_centred_machine_mapped_back(name: str, rng: np.random.Generator) -> None:
    wanted, _, machine = make(name, rng)
    num, rate = len(wanted.layers), 0.3
    states = [rng.normal(size=(8, len(b))) for b in wanted.biases]
    offsets = [rng.normal(size=len(b)) for b in wanted.biases]
    row_weights = rng.normal(size=8)
    row_weights -= row_weights.mean()  # data and samples weigh the same
    _, gradient = score_and_gradient(machine, states, row_weights, offsets)

    def shift(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What a centred bias has beside the plain one: b' = b + W offset of the neighbours."""
        found = [np.zeros(len(b)) for b in wanted.biases]
        for i, w in enumerate(weights):
            found[i] += w @ offsets[i + 1]
            found[i + 1] += offsets[i] @ w
        return found

    # E = -sum b'.(s - o) - sum (s - o) W (s' - o'): one step of gradient ascent on the weighted sum of -E
    centred = [s - o for s, o in zip(states, offsets, strict=True)]
    biases = [b + a for b, a in zip(wanted.biases, shift(wanted.weights), strict=True)]
    new_weights = [
        w + rate * np.einsum("r,ri,rj->ij", row_weights, centred[i], centred[i + 1]) for i, w in enumerate(wanted.weights)
    ]
    new_biases = [b + rate * row_weights @ s for b, s in zip(biases, centred, strict=True)]
    new_biases = [b - a for b, a in zip(new_biases, shift(new_weights), strict=True)]
    steps = [(new - old) / rate for new, old in zip([*new_weights, *new_biases], [*wanted.weights, *wanted.biases], strict=True)]
    for found, step in zip(gradient, steps, strict=True):
        np.testing.assert_allclose(found, step, rtol=1e-10, atol=1e-10)
    assert len(gradient) == 2 * num - 1
