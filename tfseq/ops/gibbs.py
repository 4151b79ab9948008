"""Block Gibbs sampling in Boltzmann machines, along a path of inverse temperatures.

A machine's units are of two parts, `even` and `odd`. Given the odd ones, the even ones are independent, so they can be drawn at
once and summed out of the probability; the same holds the other way round for a layered machine, whose layers 0, 2, ... are
even and 1, 3, ... odd (in a restricted Boltzmann machine: visible and hidden units). A chain is its odd states alone.

At inverse temperature beta all parameters theta are start + beta (theta - start), where `start` has no interactions. Rows N.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from tfseq.ops import random
from tfseq.ops.tracing import fused
from tfseq.ops.units import Bernoulli, Units

States: TypeAlias = tuple[tf.Tensor, ...]
Beta: TypeAlias = tf.Tensor | None
Clamp: TypeAlias = tuple[tf.Tensor, tf.Tensor] | None

# Salts of random numbers: that of layer l is l above this one.
SALT = 100


class Phase(NamedTuple):
    """States of a machine after a sweep.

    Attributes:
        even: the even states.
        inputs: the total inputs of the odd units, given `even`.
        odd: the odd states, drawn last.
    """

    even: States
    inputs: States
    odd: States


@fused
def _sample(units: Units, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor, salt: int) -> tf.Tensor:
    return units.sample(a, seed, time, salt)


@fused
def mean(units: Units, a: tf.Tensor) -> tf.Tensor:
    """Expected states `[N, n]` of units with inputs a `[N, n]`."""
    return units.mean(a)


@fused
def log_normaliser(units: Units, a: tf.Tensor) -> tf.Tensor:
    """Sum over units of their log-normalisers, `[N]` of `[N, n]`."""
    return tf.reduce_sum(units.log_normaliser(a), -1)


@fused
def _ratio_and_sample(
    units: Units, a: tf.Tensor, start: tf.Tensor, before: tf.Tensor, after: tf.Tensor, seed: tf.Tensor, time: tf.Tensor, salt: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """(log-normaliser at `after` less that at `before`, `[N]`; states drawn at `after`)."""
    # unit by unit, since the difference of two sums would lose what the annealing is about
    a_before, a_after = (_tempered(a, start, beta) for beta in (before, after))
    ratio = units.log_normaliser(a_after) - units.log_normaliser(a_before)
    return tf.reduce_sum(ratio, -1), units.sample(a_after, seed, time, salt)


def _tempered(a: tf.Tensor, start: tf.Tensor, beta: Beta) -> tf.Tensor:
    return a if beta is None else start + beta * (a - start)


class Layered(NamedTuple):
    """Layers of which each touches only its neighbours: log p*(s) = sum_l b_l.s_l + log_base(s_l) + sum_l s_l W_l s_{l+1}.

    Attributes:
        units: unit types of the L + 1 layers.
        weights: W_l `[n_l, n_{l+1}]`, L of them.
        biases: b_l `[n_l]`.
        start: biases at inverse temperature 0.
        gains: factors of each layer's total inputs, for the greedy pre-training of deep Boltzmann machines, in which a layer
            stands for the one that is missing as well; `log_prob` means nothing then. Empty for 1.
    """

    units: tuple[Units, ...]
    weights: tuple[tf.Tensor, ...]
    biases: tuple[tf.Tensor, ...]
    start: tuple[tf.Tensor, ...]
    gains: tuple[float, ...] = ()

    def layers(self, parity: int) -> range:
        """Numbers of the even (0) or odd (1) layers."""
        return range(parity, len(self.units), 2)

    def inputs(self, others: States, parity: int) -> States:
        """Total inputs of the even (0) or odd (1) layers, given the states of all others."""
        found = []
        for layer in self.layers(parity):
            a = self.biases[layer]
            if layer > 0:
                a += others[(layer - 1) // 2] @ self.weights[layer - 1]
            if layer + 1 < len(self.units):
                a += tf.matmul(others[(layer + 1) // 2], self.weights[layer], transpose_b=True)
            found.append(a * self.gains[layer] if self.gains else a)
        return tuple(found)

    def means(self, inputs: States, parity: int) -> States:
        """Expected states of the even (0) or odd (1) layers with these inputs."""
        return tuple(mean(self.units[layer], a) for layer, a in zip(self.layers(parity), inputs, strict=True))

    def sample(self, inputs: States, parity: int, seed: tf.Tensor, time: tf.Tensor | int, beta: Beta = None) -> States:
        """States of the even (0) or odd (1) layers with these inputs; seeds `[N, 2]` and a time decide them."""
        return tuple(
            _sample(self.units[layer], _tempered(a, self.start[layer], beta), seed, tf.convert_to_tensor(time), SALT + layer)
            for layer, a in zip(self.layers(parity), inputs, strict=True)
        )

    def own_terms(self, states: States, parity: int, beta: Beta = None) -> tf.Tensor:
        """Biases and base measures of the given states of one parity, `[N]`."""
        parts = []
        for layer, s in zip(self.layers(parity), states, strict=True):
            bias = _tempered(self.biases[layer], self.start[layer], beta)
            parts += [tf.reduce_sum(s * bias, -1), self.units[layer].log_base(s)]
        return tf.add_n(parts)

    def log_prob(self, states: States, inputs: States, parity: int = 1, beta: Beta = None) -> tf.Tensor:
        """Unnormalised log-probability of states of one parity, the others summed out, `[N]`.

        Args:
            states: of the layers of `parity`.
            inputs: of the other layers, given `states`.
            parity: 0 or 1.
            beta: inverse temperature, a scalar or `[N, 1]`; None for 1.
        """
        others = zip(self.layers(1 - parity), inputs, strict=True)
        summed = [log_normaliser(self.units[i], _tempered(a, self.start[i], beta)) for i, a in others]
        return tf.add_n([self.own_terms(states, parity, beta), *summed])

    # What chains and annealing need --------------------------------------------------------------------------------

    def sweep(self, odd: States, seed: tf.Tensor, time: tf.Tensor | int, beta: Beta = None) -> Phase:
        """One sweep from the odd states: the even ones, then the odd ones anew."""
        even = self.sample(self.inputs(odd, 0), 0, seed, time, beta)
        inputs = self.inputs(even, 1)
        return Phase(even, inputs, self.sample(inputs, 1, seed, time, beta))

    def anneal(
        self, odd: States, before: tf.Tensor, after: tf.Tensor, seed: tf.Tensor, time: tf.Tensor
    ) -> tuple[States, tf.Tensor]:
        """(odd states after a sweep at `after`, log p*_after - log p*_before of those before it `[N]`), two products."""
        ratios, even = [], []
        for layer, a in zip(self.layers(0), self.inputs(odd, 0), strict=True):
            ratio, s = _ratio_and_sample(self.units[layer], a, self.start[layer], before, after, seed, time, SALT + layer)
            ratios.append(ratio)
            even.append(s)
        for layer, s in zip(self.layers(1), odd, strict=True):
            ratios.append((after - before) * tf.linalg.matvec(s, self.biases[layer] - self.start[layer]))
        return self.sample(self.inputs(tuple(even), 1), 1, seed, time, after), tf.add_n(ratios)

    def first(self, seed: tf.Tensor) -> States:
        """Odd states at inverse temperature 0, for row seeds `[N, 2]`."""
        rows = tf.zeros([tf.shape(seed)[0], 1], self.biases[0].dtype)
        return self.sample(tuple(rows + self.start[layer] for layer in self.layers(1)), 1, seed, -1)

    def start_log_z(self) -> tf.Tensor:
        """log Z at inverse temperature 0, float64."""
        return tf.add_n(
            [
                tf.reduce_sum(units.log_normaliser(tf.cast(start, tf.float64)[None]))
                for units, start in zip(self.units, self.start, strict=True)
            ]
        )

    def flipped(self) -> Layered:
        """The same machine with its layers counted from the other end; odd layers were even ones if L is odd."""
        return Layered(self.units[::-1], tuple(tf.transpose(w) for w in self.weights[::-1]), self.biases[::-1], self.start[::-1])

    def num_odd_states(self) -> float:
        """In how many joint states the odd layers can be; infinite where they are not discrete."""
        numbers = [self.units[layer].num_values for layer in self.layers(1)]
        # past 2^1000 a float could not hold it
        if None in numbers or sum(n.bit_length() for n in numbers if n) > 1000:
            return math.inf
        return math.prod(n for n in numbers if n)

    def odd_states(self, index: tf.Tensor) -> States:
        """The joint odd states of numbers `index` `[N]` int64."""
        found = []
        for layer in self.layers(1):
            units = self.units[layer]
            found.append(units.states(index % units.num_values, self.biases[0].dtype))
            index = index // units.num_values
        return tuple(found)

    def odd_log_prob(self, odd: States, beta: Beta = None) -> tf.Tensor:
        """Unnormalised log-probability of odd states, the even ones summed out, `[N]`."""
        return self.log_prob(odd, self.inputs(odd, 0), 1, beta)

    def score(
        self, even: States, inputs: States, odd: States, weights: tf.Tensor, offsets: Sequence[tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Sum over rows of `weights` `[N]` times -E(even, odd), base measures left out; states are not differentiated.

        Its gradient is what contrastive learning needs, the weighted sum of the sufficient statistics, in one product a weight
        matrix; the value comes from the odd units' known `inputs` and costs none.

        Args:
            even: states or means of the even layers.
            inputs: of the odd layers, given `even`.
            odd: states or means of the odd layers.
            weights: of the rows, `[N]`; they sum to 0 where there are offsets.
            offsets: one `[n_l]` a layer: the gradient is then that of the parameters of the same machine written in s - offset,
                as changes of these parameters (the enhanced gradient; Melchior, Fischer and Wiskott 2016, "How to center deep
                Boltzmann machines", eq. 14-16).
        """
        states: list[Any] = [None] * len(self.units)
        states[0::2], states[1::2] = even, odd
        num = len(self.weights)

        @tf.custom_gradient
        def total(*parameters: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            biases = parameters[num:]
            value = [tf.linalg.matvec(s, b) for s, b in zip(even, biases[0::2], strict=True)]
            value += [tf.reduce_sum(s * a, -1) for s, a in zip(odd, inputs, strict=True)]
            return tf.reduce_sum(weights * tf.add_n(value)), lambda upstream: _statistics(states, upstream * weights, offsets)

        return total(*self.weights, *self.biases)


@fused
def _weighed(
    states: Sequence[tf.Tensor], weights: tf.Tensor, offsets: Sequence[tf.Tensor] | None, narrows: tuple[bool, ...]
) -> tuple[list, list]:
    """(Weighted sums of states, neighbours less their offsets, the right one weighed where the layers narrow): no products."""
    weights = weights[:, None]
    biases = [tf.reduce_sum(s * weights, 0) for s in states]
    centred = [s - offset for s, offset in zip(states, offsets, strict=True)] if offsets else states
    pairs = [
        (left, right * weights) if narrow else (left * weights, right)
        for narrow, (left, right) in zip(narrows, itertools.pairwise(centred), strict=True)
    ]
    return biases, pairs


def centred_parameters(machine: Layered, offsets: Sequence[tf.Tensor]) -> Layered:
    """The machine itself, with the gradients of its parameters centred (see `Layered.score`)."""
    num = len(machine.weights)

    @tf.custom_gradient
    def same(*parameters: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            weights, biases = list(upstream[:num]), list(upstream[num:])
            for i in range(num):
                weights[i] = (
                    weights[i] - offsets[i][:, None] * upstream[num + i + 1] - upstream[num + i][:, None] * offsets[i + 1]
                )
            return [*weights, *_centred_biases(weights, biases, offsets)]

        return [tf.identity(a) for a in parameters], gradient

    found = same(*machine.weights, *machine.biases)
    return machine._replace(weights=tuple(found[:num]), biases=tuple(found[num:]))


def _statistics(states: Sequence[tf.Tensor], weights: tf.Tensor, offsets: Sequence[tf.Tensor] | None) -> list[tf.Tensor]:
    """Weighted sums of neighbours' products, then of states; see `Layered.score`."""
    narrows = tuple(bool(b.shape[1] <= a.shape[1]) for a, b in itertools.pairwise(states))
    biases, pairs = _weighed(states, weights, offsets, narrows)
    matrices = [tf.matmul(left, right, transpose_a=True) for left, right in pairs]
    return [*matrices, *(_centred_biases(matrices, biases, offsets) if offsets else biases)]


def _centred_biases(matrices: Sequence[tf.Tensor], biases: Sequence[tf.Tensor], offsets: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients of biases for those of centred weights."""
    biases = list(biases)
    for i, matrix in enumerate(matrices):
        biases[i] -= tf.linalg.matvec(matrix, offsets[i + 1])
        biases[i + 1] -= tf.linalg.matvec(matrix, offsets[i], transpose_a=True)
    return biases


class Coloured(NamedTuple):
    """Bernoulli units with any interactions, ordered by colour: log p*(u) = b.u + u W u / 2.

    Units of one colour do not interact, so a sweep draws them at once, colour by colour. The first colour is the even part.

    Attributes:
        sizes: number of units of each colour.
        weights: W `[U, U]`, symmetric, zero within a colour.
        biases: b `[U]`.
        start: biases at inverse temperature 0, `[U]`.
    """

    sizes: tuple[int, ...]
    weights: tf.Tensor
    biases: tf.Tensor
    start: tf.Tensor

    def _part(self, colour: int) -> slice:
        before = sum(self.sizes[:colour])
        return slice(before, before + self.sizes[colour])

    def _input(self, colour: int, states: Sequence[tf.Tensor | None]) -> tf.Tensor:
        """Total inputs of a colour, given the states of all others."""
        part = self._part(colour)
        others = [(i, s) for i, s in enumerate(states) if i != colour and s is not None]
        products = [tf.matmul(s, self.weights[self._part(i), part]) for i, s in others]
        return tf.add_n(products) + self.biases[part] if products else self.biases[part] + tf.zeros([1, 1], self.biases.dtype)

    def inputs(self, odd: States, parity: int = 0) -> States:
        """Total inputs of the even units, given all others."""
        return (self._input(0, (None, *odd)),)

    def log_prob(self, odd: States, inputs: States, parity: int = 1, beta: Beta = None) -> tf.Tensor:
        """Unnormalised log-probability of the odd states, the even ones summed out, `[N]`; as `Layered.log_prob`."""
        num, own = self.sizes[0], tf.concat(odd, -1)
        pairs = 0.5 * tf.reduce_sum(own * (own @ self.weights[num:, num:]), -1)
        if beta is not None:
            pairs *= tf.reshape(beta, [-1])
        bias = _tempered(self.biases[num:], self.start[num:], beta)
        even = log_normaliser(Bernoulli(num), _tempered(inputs[0], self.start[:num], beta))
        return pairs + tf.reduce_sum(own * bias, -1) + even

    def _draw(self, colour: int, a: tf.Tensor, seed: tf.Tensor, time: tf.Tensor, beta: Beta) -> tf.Tensor:
        a = _tempered(a, self.start[self._part(colour)], beta)
        return _sample(Bernoulli(self.sizes[colour]), a, seed, tf.convert_to_tensor(time), SALT + colour)

    def _draw_from(
        self, colour: int, states: list[tf.Tensor], seed: tf.Tensor, time: Any, beta: Beta, clamp: Clamp = None
    ) -> States:
        """The states with this colour and those after it drawn anew, one after the other."""
        for i in range(colour, len(self.sizes)):
            states[i] = self._draw(i, self._input(i, states), seed, time, beta)
            if clamp is not None:
                values, observed = (a[:, self._part(i)] for a in clamp)
                states[i] = tf.where(observed, values, states[i])
        return tuple(states)

    def sweep(self, odd: States, seed: tf.Tensor, time: tf.Tensor | int, beta: Beta = None, clamp: Clamp = None) -> Phase:
        """One sweep from the odd states: the even ones, then the odd colours anew, one after the other.

        `clamp`: (values, where they are held), `[N, U]` both.
        """
        rows = tf.shape(odd[0])[0] if odd else tf.shape(seed)[0]
        states = [tf.zeros([rows, self.sizes[0]], self.biases.dtype), *odd]
        even, *odd_states = self._draw_from(0, states, seed, time, beta, clamp)
        return Phase((even,), (), tuple(odd_states))

    def anneal(
        self, odd: States, before: tf.Tensor, after: tf.Tensor, seed: tf.Tensor, time: tf.Tensor
    ) -> tuple[States, tf.Tensor]:
        """As `Layered.anneal`."""
        num, own, a = self.sizes[0], tf.concat(odd, -1), self.inputs(odd)[0]
        even_ratio, even = _ratio_and_sample(Bernoulli(num), a, self.start[:num], before, after, seed, time, SALT)
        energy = 0.5 * own @ self.weights[num:, num:] + self.biases[num:] - self.start[num:]
        ratio = (after - before) * tf.reduce_sum(own * energy, -1)
        return self._draw_from(1, [even, *odd], seed, time, after)[1:], even_ratio + ratio

    def first(self, seed: tf.Tensor) -> States:
        """Odd states at inverse temperature 0, for row seeds `[N, 2]`."""
        rows = tf.zeros([tf.shape(seed)[0], 1], self.biases.dtype)
        start = [rows + self.start[self._part(colour)] for colour in range(len(self.sizes))]
        return tuple(
            _sample(Bernoulli(self.sizes[c]), start[c], seed, tf.constant(-1), SALT + c) for c in range(1, len(self.sizes))
        )

    def start_log_z(self) -> tf.Tensor:
        """log Z at inverse temperature 0, float64."""
        return tf.reduce_sum(tf.nn.softplus(tf.cast(self.start, tf.float64)))

    def num_odd_states(self) -> float:
        """In how many joint states the odd units can be."""
        num = sum(self.sizes[1:])
        return 2**num if num < 1000 else math.inf

    def odd_states(self, index: tf.Tensor) -> States:
        """The joint odd states of numbers `index` `[N]` int64."""
        joint = Bernoulli(sum(self.sizes[1:])).states(index, self.biases.dtype)
        return tuple(tf.split(joint, self.sizes[1:], axis=-1))

    def odd_log_prob(self, odd: States, beta: Beta = None) -> tf.Tensor:
        """Unnormalised log-probability of odd states, the even ones summed out, `[N]`."""
        return self.log_prob(odd, self.inputs(odd), 1, beta)


Machine: TypeAlias = Layered | Coloured


def gibbs(
    machine: Machine, odd: States, num_sweeps: tf.Tensor | int, seed: tf.Tensor, first: tf.Tensor | int = 0, beta: Beta = None
) -> Phase:
    """The states after `num_sweeps` (at least 1) sweeps from the odd states.

    Args:
        machine: a `Layered` or a `Coloured` machine.
        odd: odd states, `[N, n]` each.
        num_sweeps: a whole number; sweeps are one loop of the graph.
        seed: row seeds `[N, 2]`.
        first: the time of the first sweep; with `first` moved on, two short runs are one long one.
        beta: inverse temperature, a scalar or `[N, 1]`; None for 1.
    """
    phase = machine.sweep(odd, seed, first, beta)
    if isinstance(num_sweeps, int) and num_sweeps == 1:
        return phase
    end = tf.convert_to_tensor(first) + num_sweeps
    return tf.while_loop(
        lambda t, phase: t < end,
        lambda t, phase: (t + 1, machine.sweep(phase.odd, seed, t, beta)),
        (tf.convert_to_tensor(first) + 1, phase),
    )[1]


def mean_field(machine: Layered, num_sweeps: int, damping: float, tolerance: float = 1e-4) -> States:
    """Means of all layers of a machine of binary units, from a bottom-up pass with doubled inputs.

    Each update is of all even or all odd layers, which are independent given the others, so the bound of mean-field theory never
    falls (without damping). A row stops after `num_sweeps`, or where none of its means moves by more than `tolerance`: what it
    gets does not depend on the rows around it.

    Args:
        machine: biases may be `[N, n]`, with what is observed in them.
        num_sweeps: at most.
        damping: share of the old mean that an update keeps.
        tolerance: as above.
    """
    means, below = [], machine.biases[0]
    for layer, units in enumerate(machine.units):
        a = below if layer == 0 else below @ machine.weights[layer - 1] + machine.biases[layer]
        below = units.mean(a if layer + 1 == len(machine.units) else 2.0 * a)
        means.append(below)

    def sweep(t: tf.Tensor, moving: tf.Tensor, *means: tf.Tensor) -> tuple:
        new = list(means)
        for parity in (0, 1):
            updated = machine.means(machine.inputs(tuple(new[1 - parity :: 2]), parity), parity)
            for layer, mean in zip(machine.layers(parity), updated, strict=True):
                new[layer] = mean + damping * (new[layer] - mean) if damping else mean
        moved = [tf.reduce_max(tf.abs(a - b), -1, keepdims=True) for a, b in zip(new, means, strict=True)]
        new = [tf.where(moving, a, b) for a, b in zip(new, means, strict=True)]
        return t + 1, moving & (tf.add_n(moved) > tolerance), *new

    def unfinished(t: tf.Tensor, moving: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return (t < num_sweeps) & tf.reduce_any(moving)

    start = (tf.constant(0), tf.fill([tf.shape(means[0])[0], 1], True), *means)
    return tuple(tf.while_loop(unfinished, sweep, start)[2:])


def exchange(machine: Machine, odd: States, betas: tf.Tensor, seed: tf.Tensor, time: tf.Tensor | int) -> tuple[States, tf.Tensor]:
    """Parallel tempering's exchange of states between neighbouring temperatures (Geyer 1991; Desjardins et al. 2010).

    Pairs (0, 1), (2, 3), ... at even times, (1, 2), (3, 4), ... at odd ones; accepted by Metropolis's rule on the odd states.

    Args:
        machine: a `Layered` or a `Coloured` machine.
        odd: odd states of M temperatures times C chains, `[M * C, n]` each, temperature by temperature.
        betas: the inverse temperatures `[M]`, in order.
        seed: row seeds `[M * C, 2]`.
        time: number of the exchange.

    Returns:
        (odd states after it, the share of pairs that were exchanged).
    """
    num = betas.shape[0]
    num_chains = tf.shape(odd[0])[0] // num
    level = tf.repeat(tf.range(num), num_chains)
    time = tf.convert_to_tensor(time)
    up = (level + time) % 2 == 0
    partner = tf.where(up, level + 1, level - 1)
    paired = (partner >= 0) & (partner < num)
    other = tf.where(paired, partner, level) * num_chains + tf.tile(tf.range(num_chains), [num])
    inputs = machine.inputs(odd, 0)
    own = machine.log_prob(odd, inputs, 1, tf.gather(betas, level)[:, None])
    away = machine.log_prob(odd, inputs, 1, tf.gather(betas, tf.where(paired, partner, level))[:, None])
    gain = away - own  # of this row's state in its partner's place; the pair's is the sum of both
    both = gain + tf.gather(gain, other)
    low = tf.minimum(tf.range(num * num_chains), other)  # both rows of a pair decide by the same number
    uniform = tf.cast(random.uniform(seed, tf.reshape(time, [1]), 1, SALT - 1)[0, :, 0], both.dtype)
    swap = paired & (tf.math.log(tf.gather(uniform, low)) < both)
    source = tf.where(swap, other, tf.range(num * num_chains))
    share = tf.math.divide_no_nan(tf.reduce_sum(tf.cast(swap, tf.float32)), tf.reduce_sum(tf.cast(paired, tf.float32)))
    return tuple(tf.gather(s, source) for s in odd), share
