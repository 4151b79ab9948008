"""Independent references in NumPy, float64: plain and slow, one step of one sequence at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
from scipy import linalg, stats

Array = np.ndarray
MIN_STDDEV = 1e-4  # the floor of every standard deviation, stated in the documentation


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def softplus_inverse(y: Array) -> Array:
    return np.log(np.expm1(y))


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def value(weight: Any) -> Array:
    """A Keras weight as float64."""
    return np.asarray(weight, np.float64)


def slope(objective: Callable[[], Any], weight: Any, direction: Array, step: float = 1e-5) -> float:
    """Derivative of `objective()` as a float64 weight moves along a direction, by a central difference; it ends where it was."""
    start, ends = value(weight), []
    for sign in (1.0, -1.0):
        weight.assign(start + sign * step * direction)
        ends.append(float(objective()))
    weight.assign(start)
    return (ends[0] - ends[1]) / (2.0 * step)


def dense(layer: Any, x: Array) -> Array:
    """x W + b of a Keras layer; its activation is the caller's."""
    return x @ value(layer.kernel) + value(layer.bias)


# Linear-Gaussian state-space model ---------------------------------------------------------------------------------


def condition(mean: Array, cov: Array, target: Sequence[int], given: Sequence[int]) -> tuple[Array, Array, Array]:
    """Gaussian of `target` given y = values at `given`: mean = offset + gain y, covariance; as (offset, gain, covariance)."""
    target, given = list(target), list(given)
    cross = cov[np.ix_(target, given)]
    gain = np.linalg.solve(cov[np.ix_(given, given)], cross.T).T if given else np.zeros((len(target), 0))
    return mean[target] - gain @ mean[given], gain, cov[np.ix_(target, target)] - gain @ cross.T


@dataclass(frozen=True)
class LinearGaussian:
    """z_1 ~ N(0, I), z_t = A z_{t-1} + b + q e_t, x_t = C z_t + d + r e'_t, by its joint Gaussian of all z and x."""

    transition: Array  # A [Z, Z]
    bias: Array  # b [Z]
    noise: Array  # q [Z]
    emission: Array  # C [D, Z]
    offset: Array  # d [D]
    emission_noise: Array  # r [D]

    @property
    def sizes(self) -> tuple[int, int]:
        """(Z, D)."""
        return self.emission.shape[1], self.emission.shape[0]

    def joint(self, num_steps: int) -> tuple[Array, Array]:
        """Mean and covariance of (z_1, .., z_T, x_1, .., x_T)."""
        latent_dim, _ = self.sizes
        means, cov = [np.zeros(latent_dim)], np.zeros((num_steps * latent_dim,) * 2)
        block = [slice(t * latent_dim, (t + 1) * latent_dim) for t in range(num_steps)]
        cov[block[0], block[0]] = np.eye(latent_dim)
        for t in range(1, num_steps):
            means.append(self.transition @ means[-1] + self.bias)
            before = slice(0, t * latent_dim)
            cov[block[t], before] = self.transition @ cov[block[t - 1], before]
            cov[before, block[t]] = cov[block[t], before].T
            cov[block[t], block[t]] = self.transition @ cov[block[t - 1], block[t - 1]] @ self.transition.T + np.diag(
                self.noise**2
            )
        mean, emission = np.concatenate(means), linalg.block_diag(*[self.emission] * num_steps)
        noise = np.diag(np.tile(self.emission_noise**2, num_steps))
        mean = np.concatenate([mean, emission @ mean + np.tile(self.offset, num_steps)])
        return mean, np.block([[cov, cov @ emission.T], [emission @ cov, emission @ cov @ emission.T + noise]])

    def places(self, x: Array, observed: Array | None = None, first: int = 0) -> list[int]:
        """Where the observed entries of x_{first+1} .. x_T stand in the joint vector."""
        keep = np.ones(x.shape, bool) if observed is None else observed.copy()
        keep[:first] = False
        return list(len(x) * self.sizes[0] + np.flatnonzero(keep))

    def log_prob(self, x: Array, observed: Array | None = None) -> float:
        """log p of the observed entries of x `[T, D]`."""
        places = self.places(x, observed)
        if not places:
            return 0.0
        mean, cov = self.joint(len(x))
        values = x.reshape(-1)[np.array(places) - len(x) * self.sizes[0]]
        return float(stats.multivariate_normal(mean[places], cov[np.ix_(places, places)]).logpdf(values))

    def posterior(self, x: Array, observed: Array | None = None, num_future: int = 0) -> tuple[Array, Array]:
        """Mean and covariance of the joint vector of T + num_future steps, given the observed entries of x `[T, D]`."""
        padded = np.concatenate([x, np.zeros((num_future, x.shape[1]))])
        keep = np.concatenate(
            [np.ones(x.shape, bool) if observed is None else observed, np.zeros((num_future, x.shape[1]), bool)]
        )
        (mean, cov), places = self.joint(len(padded)), self.places(padded, keep)
        offset, gain, cov = condition(mean, cov, range(len(mean)), places)
        return offset + gain @ padded.reshape(-1)[np.array(places, int) - len(padded) * self.sizes[0]], cov

    def guide(self, x: Array, observed: Array | None = None) -> tuple[Array, Array, Array]:
        """q(z_t | z_{t-1}, x_{t:T}) = N(slope z_{t-1} + offset, diag stddev^2), each `[T, Z]`; the latents must not mix."""
        num_steps, (latent_dim, _) = len(x), self.sizes
        (mean, cov), out = self.joint(num_steps), np.zeros((3, num_steps, latent_dim))
        for t in range(num_steps):
            target = range(t * latent_dim, (t + 1) * latent_dim)
            before = [] if t == 0 else [i - latent_dim for i in target]
            places = self.places(x, observed, t)
            offset, gain, rest = condition(mean, cov, target, before + places)
            slope, gain = gain[:, : len(before)], gain[:, len(before) :]
            np.testing.assert_allclose(rest, np.diag(np.diag(rest)), atol=1e-10)
            if t:
                np.testing.assert_allclose(slope, np.diag(np.diag(slope)), atol=1e-10)
                out[0, t] = np.diag(slope)
            out[1, t] = offset + gain @ x.reshape(-1)[np.array(places, int) - num_steps * latent_dim]
            out[2, t] = np.sqrt(np.diag(rest))
        return out[0], out[1], out[2]


# Deep Markov model -------------------------------------------------------------------------------------------------


def to_stddev(raw: Array, scale: str) -> Array:
    return np.sqrt(softplus(raw) + MIN_STDDEV**2) if scale == "variance" else softplus(raw) + MIN_STDDEV


def mlp(layer: Any, x: Array) -> Array:
    """An `MLP`: ReLU layers, and a last one that is linear where it has an `out_dim`."""
    for i, one in enumerate(layer.layers):
        x = dense(one, x)
        x = x if layer.out_dim is not None and i == len(layer.layers) - 1 else relu(x)
    return x


def transition(layer: Any, inputs: Array) -> tuple[Array, Array]:
    """Krishnan et al. 2017, section 5: inputs are z_{t-1} and what else enters."""
    if layer.kind == "gated":
        gate, proposal = sigmoid(mlp(layer.gate, inputs)), mlp(layer.proposal, inputs)
        mean = (1.0 - gate) * dense(layer.linear, inputs) + gate * proposal
        return mean, to_stddev(dense(layer.raw_scale, relu(proposal)), layer.scale)
    if layer.kind == "mlp":
        hidden = relu(dense(layer.hidden, inputs))
        return dense(layer.mean, hidden), to_stddev(dense(layer.raw_scale, hidden), layer.scale)
    return dense(layer.linear, inputs), to_stddev(value(layer.raw_scale), layer.scale)


def relu_rnn(layer: Any, inputs: Array) -> Array:
    """The vanilla recurrent layer with ReLU over inputs `[T, D]`; states in the order of time."""
    h = value(layer.initial[0]) if layer.learned_initial else np.zeros(layer.units)
    states = []
    for x in inputs[::-1] if layer.reverse else inputs:
        h = relu(x @ value(layer.kernel) + h @ value(layer.recurrent_kernel) + value(layer.bias))
        states.append(h)
    return np.array(states[::-1] if layer.reverse else states)


def flow(layer: Any, z: Array) -> tuple[Array, float]:
    """One inverse autoregressive flow, feature by feature from its two masked products."""
    hidden = relu(z @ (value(layer.hidden_kernel) * layer.hidden_mask) + value(layer.hidden_bias))
    shift, gate = np.split(hidden @ (value(layer.output_kernel) * layer.output_mask) + value(layer.output_bias), 2)
    return sigmoid(gate) * z + (1.0 - sigmoid(gate)) * shift, float(np.log(sigmoid(gate)).sum())


class DeepMarkov:
    """The deep Markov model (Bernoulli head, ReLU RNN guide) with the weights of a `DeepMarkovModel`, in loops."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, x: Array, observed: Array | None = None) -> Array:
        if not self.model.missing:
            return x
        return np.concatenate([x, np.ones_like(x) if observed is None else observed.astype(float)], -1)

    def prior(self, t: int, z: Array, previous: Array, u: Array | None) -> tuple[Array, Array]:
        """p(z_t | z_{t-1}, x_{t-1}, u_t); t counts from 0."""
        if t == 0 and not self.model.learned_start:
            return np.zeros(self.model.latent_dim), np.ones(self.model.latent_dim)
        parts = [value(self.model.prior_start) if t == 0 else z]
        parts += [previous] if self.model.augment else []
        parts += [] if u is None else [u]
        return transition(self.model.transition, np.concatenate(parts))

    def logits(self, z: Array, previous: Array) -> Array:
        hidden = np.concatenate([z, previous]) if self.model.augment else z
        for layer in self.model.emission.layers:
            hidden = relu(dense(layer, hidden))
        return dense(self.model.head, hidden)

    def guide(self, inputs: Array) -> list[Array]:
        """What the encoders say of each step: left, right, or both."""
        guide = self.model.guide
        inputs = inputs if guide.embedding is None else relu(dense(guide.embedding, inputs))
        return [relu_rnn(encoder, inputs) for encoder in guide.encoders]

    def combine(self, hidden: list[Array], z: Array) -> tuple[Array, Array]:
        """Table 1 of the paper for one step."""
        guide = self.model.guide
        if guide.kind == "MF-LR":
            (m_l, v_l), (m_r, v_r) = (np.split(dense(m, h), 2) for m, h in zip(guide.moments, hidden, strict=True))
            v_l, v_r = to_stddev(v_l, guide.scale) ** 2, to_stddev(v_r, guide.scale) ** 2
            return (m_l * v_r + m_r * v_l) / (v_l + v_r), np.sqrt(v_l * v_r / (v_l + v_r))
        share = {"ST-R": 1 / 2, "ST-L": 1 / 2, "ST-LR": 1 / 3}[guide.kind]
        combined = share * (np.tanh(dense(guide.from_latent, z)) + sum(hidden))
        mean, raw = np.split(dense(guide.moments[0], combined), 2)
        return mean, to_stddev(raw, guide.scale)

    def terms(self, x: Array, noise: Array, observed: Array | None = None, u: Array | None = None) -> tuple[Array, Array, Array]:
        """(log p(x_t | z_t), analytic KL of step t, sampled log q - log p of step t), each `[T]`, along the path of `noise`."""
        model = self.model
        z = value(model.guide_start) if model.learned_start else np.zeros(model.latent_dim)
        if observed is not None:
            x = np.where(observed, x, 0.0 if model.head.mean is None else np.array(model.head.mean))
        encoded = self.encode(x, observed)
        hidden = self.guide(encoded if u is None else np.concatenate([encoded, u], -1))
        previous, out = np.zeros_like(encoded[0]), []
        for t in range(len(x)):
            q_mean, q_std = self.combine([h[t] for h in hidden], z)
            p_mean, p_std = self.prior(t, z, previous, None if u is None else u[t])
            new, log_det = q_mean + q_std * noise[t], 0.0
            log_q = stats.norm(q_mean, q_std).logpdf(new).sum()
            for layer in model.flows:
                new, change = flow(layer, new)
                log_det += change
            logits = self.logits(new, previous)
            each = -softplus(np.where(x[t] == 1.0, -logits, logits))
            analytic = np.log(p_std / q_std) + (q_std**2 + (q_mean - p_mean) ** 2) / (2.0 * p_std**2) - 0.5
            sampled = log_q - log_det - stats.norm(p_mean, p_std).logpdf(new).sum()
            out.append((each.sum() if observed is None else each[observed[t]].sum(), analytic.sum(), sampled))
            z, previous = new, encoded[t]
        log_lik, analytic, sampled = np.array(out).T
        return log_lik, analytic, sampled

    def sample(self, noise: Array, uniform: Array, u: Array | None = None) -> Array:
        """A new sequence `[T, D]` from the numbers given."""
        z, xs = np.zeros(self.model.latent_dim), []
        previous = np.zeros_like(self.encode(np.zeros(uniform.shape[1])))
        for t in range(len(noise)):
            mean, stddev = self.prior(t, z, previous, None if u is None else u[t])
            z = mean + stddev * noise[t]
            xs.append((uniform[t] < sigmoid(self.logits(z, previous))).astype(float))
            previous = self.encode(xs[-1])
        return np.array(xs)


# Linear chains by enumeration of all K^T paths ----------------------------------------------------------------------


def chain_by_enumeration(log_initial: np.ndarray, log_transition: np.ndarray, log_emission: np.ndarray, length: int) -> dict:
    """Everything about chains of one length: log_initial `[K]`, log_transition `[T-1, K, K]`, log_emission `[B, T, K]`.

    Returns:
        `log_prob` `[B]`, `smoothed` `[B, L, K]`, `two_slice` `[B, L-1, K, K]`; `score` `[B]` and `path` `[B, L]` of the best.
        Marginals are zero where every path is impossible.
    """
    num_states = log_emission.shape[-1]
    paths = np.array(list(itertools.product(range(num_states), repeat=length)), int).reshape(num_states**length, length)  # [P, L]
    is_at = np.eye(num_states)[paths]  # [P, L, K]
    score = np.zeros((len(log_emission), len(paths)))
    for t in range(length):
        score += log_emission[:, t, paths[:, t]]
        score += log_initial[paths[:, 0]] if t == 0 else log_transition[t - 1, paths[:, t - 1], paths[:, t]]
    with np.errstate(invalid="ignore"):
        log_prob = scipy.special.logsumexp(score, 1) if length else np.zeros(len(log_emission))
        weight = np.where(np.isfinite(log_prob)[:, None], np.exp(score - log_prob[:, None]), 0.0)
    return {
        "log_prob": log_prob,
        "smoothed": np.einsum("bp,ptk->btk", weight, is_at),
        "two_slice": np.einsum("bp,pti,ptj->btij", weight, is_at[:, :-1], is_at[:, 1:]),
        "score": score.max(1),
        "path": paths[score.argmax(1)],
    }


# Boltzmann machines by enumeration of all joint states ---------------------------------------------------------------

Layer = tuple[str, int, int]  # unit type, columns, trials or categories

_GRID = np.arange(-30, 31) / 2.0


def unit_states(kind: str, columns: int, count: int = 1) -> tuple[Array, Array, float]:
    """Every joint state of units `[S, n]`, the log base measure of each `[S]`, and the log of the volume that each stands for.

    A Gaussian column is a grid of step 1/2 over [-15, 15]. The trapezoid rule on a Gaussian of variance 1 errs by
    2 exp(-2 pi^2 / 0.25) of its integral, below 1e-33; what lies outside the grid is below 1e-15 for means up to 7.
    """
    if kind == "categorical":
        one_hot = np.eye(count)
        groups = itertools.product(range(count), repeat=columns // count)
        states = np.array([np.concatenate([one_hot[k] for k in group]) for group in groups])
        return states, np.zeros(len(states)), 0.0
    values: Array = {"bernoulli": np.arange(2.0), "binomial": np.arange(count + 1.0), "gaussian": _GRID}[kind]
    states = np.array(list(itertools.product(values, repeat=columns)))
    if kind == "gaussian":
        return states, -0.5 * (states**2).sum(1), columns * np.log(0.5)
    return states, np.log(scipy.special.comb(count, states)).sum(1), 0.0  # comb(1, s) is 1: binary units have none


@dataclass(frozen=True)
class Boltzmann:
    """Layers of units, each of which touches its neighbours, by enumeration: log p*(s) = sum b.s + log base + s W s'.

    In `log_joint` the states of layer l are axis l.
    """

    layers: tuple[Layer, ...]
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    @classmethod
    def random(cls, layers: Sequence[Layer], rng: np.random.Generator, scale: float = 0.7) -> Boltzmann:
        """Normal weights and biases."""
        sizes = [columns for _, columns, _ in layers]
        weights = tuple(scale * rng.normal(size=pair) for pair in itertools.pairwise(sizes))
        return cls(tuple(layers), weights, tuple(scale * rng.normal(size=n) for n in sizes))

    def tempered(self, beta: float, start: Sequence[Array]) -> Boltzmann:
        """All parameters moved from `start`, where there are no interactions: at beta = 0 there, at 1 here."""
        biases = tuple(first + beta * (b - first) for b, first in zip(self.biases, start, strict=True))
        return Boltzmann(self.layers, tuple(beta * w for w in self.weights), biases)

    @functools.cached_property
    def states(self) -> list[Array]:
        """All states of each layer, `[S_l, n_l]`."""
        return [unit_states(*layer)[0] for layer in self.layers]

    @functools.cached_property
    def volumes(self) -> list[float]:
        """The log of the volume that a state of each layer stands for; 0 where units are discrete."""
        return [unit_states(*layer)[2] for layer in self.layers]

    @functools.cached_property
    def log_joint(self) -> Array:
        """log p* of every joint state, a density in Gaussian units, `[S_0, ..., S_L]`."""
        num, total = len(self.layers), np.zeros([len(s) for s in self.states])
        for i, (layer, bias) in enumerate(zip(self.layers, self.biases, strict=True)):
            states, log_base, _ = unit_states(*layer)
            total += (states @ bias + log_base).reshape([-1 if j == i else 1 for j in range(num)])
        for i, weights in enumerate(self.weights):
            pairs = self.states[i] @ weights @ self.states[i + 1].T
            total += pairs.reshape([*[1] * i, *pairs.shape, *[1] * (num - i - 2)])
        return total

    def log_marginal(self, keep: Sequence[int]) -> Array:
        """log p* of the states of layers `keep`, the others summed out."""
        others = tuple(i for i in range(len(self.layers)) if i not in keep)
        volume = sum(self.volumes[i] for i in others)
        return np.asarray(scipy.special.logsumexp(self.log_joint, axis=others) + volume if others else self.log_joint)

    @functools.cached_property
    def log_z(self) -> float:
        return float(self.log_marginal(()))

    @functools.cached_property
    def prob(self) -> Array:
        """Probability of every joint state (of its cell, for Gaussian units), `[S_0, ..., S_L]`."""
        return np.exp(self.log_joint + sum(self.volumes) - self.log_z)

    def mean(self, layer: int) -> Array:
        """Expected state of a layer, `[n_l]`."""
        others = tuple(i for i in range(len(self.layers)) if i != layer)
        return self.prob.sum(others) @ self.states[layer]

    def pair(self, layer: int) -> Array:
        """Expected products of a layer and the next, `[n_l, n_{l+1}]`."""
        others = tuple(i for i in range(len(self.layers)) if i not in (layer, layer + 1))
        return self.states[layer].T @ self.prob.sum(others) @ self.states[layer + 1]

    def sample(self, num: int, rng: np.random.Generator) -> list[Array]:
        """Independent states of all layers, `[num, n_l]` each."""
        picked = np.unravel_index(rng.choice(self.prob.size, num, p=self.prob.ravel() / self.prob.sum()), self.prob.shape)
        found = [s[i] for s, i in zip(self.states, picked, strict=True)]
        for i in [i for i, layer in enumerate(self.layers) if layer[0] == "gaussian"]:  # off the grid: N(total input, 1)
            mean = self.biases[i] + (found[i - 1] @ self.weights[i - 1] if i else 0.0)
            mean = mean + (found[i + 1] @ self.weights[i].T if i + 1 < len(self.layers) else 0.0)
            found[i] = mean + rng.normal(size=mean.shape)
        return found


def graph_states(weights: Array, biases: Array) -> tuple[Array, Array]:
    """All states u `[2^U, U]` of a machine of binary units, and log p*(u) = b.u + sum of w_ij u_i u_j over its edges, `[2^U]`."""
    num = len(biases)
    states = np.array(list(itertools.product([0.0, 1.0], repeat=num)))
    log_prob = np.zeros(len(states))
    for i in range(num):
        log_prob += biases[i] * states[:, i]
        for j in range(i):
            log_prob += weights[i, j] * states[:, i] * states[:, j]
    return states, log_prob


def places(found: Array, states: Array) -> Array:
    """The row of `states` `[S, n]` that each row of `found` `[N, n]` is; an error where it is none."""
    where = {tuple(state): i for i, state in enumerate(states.tolist())}
    return np.array([where[tuple(row)] for row in np.asarray(found, np.float64).tolist()])


def chi_square(found: Array, prob: Array) -> float:
    """p-value of Pearson's test that cells `found` `[N]` were drawn with `prob` `[cells]`; rare cells are one."""
    prob = prob.ravel() / prob.sum()
    counts, expected = np.bincount(found, minlength=len(prob)), prob * len(found)
    rare = expected < 5.0  # the usual rule for the chi-square approximation
    counts, expected = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5.0:  # not enough of them: they join the last of the others
        counts, expected = [np.append(a[:-2], a[-2:].sum()) for a in (counts, expected)]
    return float(stats.chisquare(counts, expected).pvalue)


def softplus_integral(a: Array) -> Array:
    """Integral of softplus from minus infinity to a, -Li2(-e^a) (SciPy's `spence` is Li2(1 - z)); its series far below 0."""
    series = sum((-1.0) ** (k + 1) * np.exp(k * np.minimum(a, -5.0)) / k**2 for k in range(1, 9))  # e^-45 is left out
    return np.where(a < -5.0, series, -scipy.special.spence(1.0 + np.exp(np.maximum(a, -5.0))))


# Recurrent networks --------------------------------------------------------------------------------------------------


def recurrent_step(
    layer: Any, x: Array, state: tuple[Array, ...], recurrent_mask: Array | float = 1.0, kernel_mask: Array | float = 1.0
) -> tuple[Array, ...]:
    """The next state of one row, gate by gate: x `[D]`, state `[H]`; the GRU resets after the product, z weighs the old state."""
    units, h = layer.units, state[0]
    before = h * recurrent_mask

    def gate(k: int) -> tuple[Array, Array]:
        """What gate k has of the input and of the state."""
        columns = slice(k * units, (k + 1) * units)
        kernel = (value(layer.recurrent_kernel) * kernel_mask)[:, columns]
        own = value(layer.recurrent_bias)[columns] if layer.cell == "gru" else 0.0
        return x @ value(layer.kernel)[:, columns] + value(layer.bias)[columns], before @ kernel + own

    if layer.cell == "rnn":
        return (np.tanh(sum(gate(0))),)
    if layer.cell == "gru":
        z, r, (of_input, of_state) = sigmoid(sum(gate(0))), sigmoid(sum(gate(1))), gate(2)
        return (z * h + (1.0 - z) * np.tanh(of_input + r * of_state),)
    i, f, g, o = sigmoid(sum(gate(0))), sigmoid(sum(gate(1))), np.tanh(sum(gate(2))), sigmoid(sum(gate(3)))
    c = f * state[1] + i * g
    return o * np.tanh(c), c


def recurrent(
    layer: Any,
    x: Array,
    state: tuple[Array, ...] | None = None,
    moves: tuple[Array, ...] | None = None,
    recurrent_mask: Array | float = 1.0,
    kernel_mask: Array | float = 1.0,
) -> tuple[Array, tuple[Array, ...]]:
    """A `Recurrent` over one row x `[T, D]` -> (outputs `[T, H]`, final state); `moves` `[T, H]` come in the order of running."""
    state = tuple(np.zeros(layer.units) for _ in range(layer.num_states)) if state is None else state
    outputs = np.zeros((len(x), layer.units))
    for k, t in enumerate(range(len(x))[:: -1 if layer.reverse else 1]):
        new = recurrent_step(layer, x[t], state, recurrent_mask, kernel_mask)
        if layer.zoneout:
            shares = [1.0 - layer.zoneout] * len(state) if moves is None else [m[k] for m in moves]
            new = tuple(m * a + (1.0 - m) * b for m, a, b in zip(shares, new, state, strict=True))
        state, outputs[t] = new, new[0]
    return outputs, state


def stack(model: Any, x: Array, state: Any = None) -> tuple[Array, list[tuple[tuple[Array, ...], ...]]]:
    """A `RecurrentStack` over one row x `[T, D]`, nothing dropped -> (outputs `[T, F]`, final state)."""
    final = []
    for k, row in enumerate(model.layers):
        taken = x
        if model.norms:
            norm = model.norms[k]
            centred = x - x.mean(-1, keepdims=True)
            taken = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.epsilon) * value(norm.gamma) + value(norm.beta)
        found = [recurrent(layer, taken, None if state is None else state[k][d]) for d, layer in enumerate(row)]
        y = np.concatenate([outputs for outputs, _ in found], -1)
        x = x + y if model.residual and x.shape[-1] == y.shape[-1] else y
        final.append(tuple(last for _, last in found))
    return x, final


class VariationalRecurrent:
    """A `VariationalRNN` with a Bernoulli or normal head, one row and one step at a time (Chung et al. 2015, eqs. 5-11)."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, x: Array, observed: Array | None = None) -> Array:
        """What networks see of x `[D]`."""
        head = self.model.head
        seen = np.ones(x.shape) if observed is None else observed.astype(float)
        if getattr(head, "scale", None) is not None:
            x = (x - np.asarray(head.mean)) / np.asarray(head.scale)
        return np.concatenate([x, seen]) if self.model.missing else x

    def start(self) -> tuple[Array, ...]:
        return tuple(np.zeros(self.model.recurrent.units) for _ in range(self.model.recurrent.num_states))

    def prior(self, hidden: Array, u: Array) -> tuple[Array, Array]:
        if self.model.variant != "vrnn":
            return np.zeros(self.model.latent_dim), np.ones(self.model.latent_dim)
        mean, raw = np.split(mlp(self.model.prior_network, np.concatenate([u, hidden])), 2)
        return mean, to_stddev(raw, "stddev")

    def emission(self, z: Array, state: tuple[Array, ...], before: Array, u: Array) -> tuple[tuple[Array, ...], Array]:
        """(what follows of the state once z is known, raw parameters of x); `before` is phi_x of the observation before."""
        model, extracted = self.model, mlp(self.model.extract_z, z)
        if model.variant == "storn":
            state = recurrent_step(model.recurrent, np.concatenate([before, extracted]), state)
            hidden = state[0]
        else:
            hidden = np.concatenate([extracted, state[0]])
        return state, dense(model.head, mlp(model.emission, np.concatenate([u, hidden])))

    def advance(self, x: Array, observed: Array | None, z: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        model, seen = self.model, mlp(self.model.extract_x, self.encode(x, observed))
        if model.variant == "storn":
            return state, seen
        return recurrent_step(model.recurrent, np.concatenate([seen, mlp(model.extract_z, z)]), state), seen

    def log_lik(self, raw: Array, x: Array, observed: Array | None) -> float:
        head = self.model.head
        if type(head).__name__ == "Bernoulli":
            each = x * -np.logaddexp(0.0, -raw) + (1.0 - x) * -np.logaddexp(0.0, raw)
        else:
            mean, scale = np.split(raw, 2)
            mean_x = np.zeros(len(x)) if head.scale is None else np.asarray(head.mean)
            unit = np.ones(len(x)) if head.scale is None else np.asarray(head.scale)
            each = stats.norm.logpdf((x - mean_x) / unit, mean, np.logaddexp(0.0, scale) + MIN_STDDEV) - np.log(unit)
        return float((each if observed is None else each[observed]).sum())

    def terms(self, x: Array, noise: Array, observed: Array | None = None, u: Array | None = None) -> tuple[Array, Array, Array]:
        """x `[T, D]`, noise `[T, Z]` -> log p(x_t | .), the analytic and the sampled divergence, `[T]` each."""
        model, found = self.model, []
        u = np.zeros((len(x), 0)) if u is None else u
        state, before = self.start(), np.zeros(model.hidden_dim)
        guide_state, seen_by = tuple(np.zeros(model.recurrent.units) for _ in state), None
        for t in range(len(x)):
            seen_now = None if observed is None else observed[t]
            filled = x[t] if seen_now is None else np.where(seen_now, x[t], self.filling())
            extracted = mlp(model.extract_x, self.encode(filled, seen_now))
            if model.variant == "storn":
                guide_state = recurrent_step(model.guide_rnn, np.concatenate([u[t], extracted]), guide_state)
                seen_by = guide_state[0]
            else:
                seen_by = np.concatenate([u[t], extracted, state[0]])
            mean, raw = np.split(mlp(model.guide, seen_by), 2)
            stddev = to_stddev(raw, "stddev")
            z = mean + stddev * noise[t]
            prior_mean, prior_stddev = self.prior(state[0], u[t])
            kl = np.log(prior_stddev / stddev) + (stddev**2 + (mean - prior_mean) ** 2) / (2.0 * prior_stddev**2) - 0.5
            ratio = stats.norm.logpdf(z, mean, stddev) - stats.norm.logpdf(z, prior_mean, prior_stddev)
            state, parameters = self.emission(z, state, before, u[t])
            found.append((self.log_lik(parameters, filled, seen_now), kl.sum(), ratio.sum()))
            state, before = self.advance(filled, seen_now, z, state)
        log_lik, analytic, sampled = np.transpose(found)
        return log_lik, analytic, sampled

    def filling(self) -> Array:
        return np.zeros(self.model.head.event_dim) if self.model.head.mean is None else np.asarray(self.model.head.mean)

    def sample(self, noise: Array, uniform: Array, u: Array | None = None) -> Array:
        """New x `[T, D]` from noise `[T, Z]` and uniform numbers `[T, D]`."""
        u = np.zeros((len(noise), 0)) if u is None else u
        state, before, found = self.start(), np.zeros(self.model.hidden_dim), []
        for t in range(len(noise)):
            mean, stddev = self.prior(state[0], u[t])
            z = mean + stddev * noise[t]
            state, raw = self.emission(z, state, before, u[t])
            if type(self.model.head).__name__ == "Bernoulli":
                x = (uniform[t] < sigmoid(raw)).astype(float)
            else:
                mean, scale = np.split(raw, 2)
                x = stats.norm.ppf(uniform[t], mean, np.logaddexp(0.0, scale) + MIN_STDDEV)
                if self.model.head.scale is not None:
                    x = np.asarray(self.model.head.mean) + np.asarray(self.model.head.scale) * x
            state, before = self.advance(x, None, z, state)
            found.append(x)
        return np.array(found)


def softmax(x: Array) -> Array:
    return scipy.special.softmax(x, -1)
