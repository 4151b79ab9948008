"""The general Boltzmann machine: binary units with edges between any two of them, visible or hidden.

    E(u) = -b.u - sum over edges of w_ij u_i u_j,   u = (v, h)

Ackley, Hinton and Sejnowski 1985, "A learning algorithm for Boltzmann machines". Units that share no edge get one colour, and are
drawn at once. With no edge within a side this is a restricted Boltzmann machine, and `RBM` is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import keras
import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.models.base import FROM_DATA, Endpoint, graph
from tfseq.models.energy import START_SWEEP, Binarise, EnergyModel, Inferred, Sampler
from tfseq.ops import random
from tfseq.ops.gibbs import Coloured, States
from tfseq.ops.units import Bernoulli

MAX_EXACT_HIDDEN = 10
"""Hidden units that are summed out by enumeration; more are by their mean field, unless they have no edges among them."""
_MAX_EXACT_STATES = 2**14  # of the visible units, for exact conditionals
_MEAN_FIELD_SWEEPS = 30
_HIDDEN_SALT, _CONDITIONAL_SALT = 400, 401


def colouring(mask: np.ndarray) -> np.ndarray:
    """A colour for each unit, whole numbers from 0 `[U]`, so that units with an edge differ: `mask` `[U, U]` bool.

    Greedy, breadth first from the unit with most edges, so that a bipartite mask gets two colours; the most frequent colour is 0.
    """
    num = len(mask)
    colours = np.full(num, -1)
    for root in np.argsort(-mask.sum(1), kind="stable"):
        queue = [int(root)] if colours[root] < 0 else []
        for unit in queue:
            if colours[unit] >= 0:
                continue
            taken = set(colours[mask[unit]].tolist())
            colours[unit] = next(c for c in range(num) if c not in taken)
            queue += [int(i) for i in np.flatnonzero(mask[unit] & (colours < 0))]
    order = np.argsort(-np.bincount(colours), kind="stable")
    return np.argsort(order)[colours]


@keras.saving.register_keras_serializable("tfseq")
class BoltzmannMachine(EnergyModel):
    """General Boltzmann machine of binary units, with or without hidden ones.

    >>> import numpy as np, keras, tfseq
    >>> x = np.float32([[0, 0, 1], [1, 1, 0]] * 20)
    >>> model = tfseq.BoltzmannMachine.from_data(x, sampler="exact")
    >>> model.compile(keras.optimizers.SGD(0.5))
    >>> _ = model.fit(x, epochs=10, batch_size=4, verbose=0)
    >>> p = model.conditional([[1, 0, 0]], [[True, False, False]])  # the first unit is on: what of the others?
    >>> bool(p[0, 1] > 0.9), bool(p[0, 2] < 0.1)
    (True, True)

    Args:
        num_visible: V.
        data_mean: mean of the data, `[V]`, where the visible biases start. None: of unbiased units.
        num_hidden: H; 0 for a fully visible machine.
        edges: without `mask`: `"all"` pairs of units, or `"bipartite"`, visible with hidden ones.
        mask: `[U, U]` of 0 and 1, symmetric, which units have an edge, the V visible ones first, U = V + H. None: as `edges`.
        binarise, sampler, num_chains, num_sweeps, max_sweeps, sweeps_growth, l2, num_temperatures: as of `RBM`; the sampler is
            `"pcd"`, `"pt"` or `"exact"`.
        initial_stddev: standard deviation of the edges' weights at the start.
    """

    def __init__(
        self,
        *,
        num_visible: Annotated[int, FROM_DATA],
        data_mean: Annotated[Sequence[float] | None, FROM_DATA] = None,
        num_hidden: int = 0,
        edges: Literal["all", "bipartite"] = "all",
        mask: Sequence[Sequence[int]] | None = None,
        binarise: Binarise = "sample",
        sampler: Sampler = "pcd",
        num_chains: int = 100,
        num_sweeps: int = 1,
        max_sweeps: int | None = None,
        sweeps_growth: int = 0,
        l2: float = 0.0,
        initial_stddev: float = 0.01,
        num_temperatures: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        checks.at_least(1, num_visible=num_visible)
        checks.at_least(0, num_hidden=num_hidden)
        checks.choice("edges", edges, ("all", "bipartite"))
        checks.positive(initial_stddev=initial_stddev)
        if data_mean is not None and np.shape(data_mean) != (num_visible,):
            raise ValueError(f"`data_mean` must have shape [{num_visible}]; received {list(np.shape(data_mean))}.")
        self.num_visible, self.num_hidden = num_visible, num_hidden
        self.visible_units = Bernoulli(num_visible)
        allowed = self._mask(edges, mask)
        if not allowed.any():
            raise ValueError(
                "A machine needs edges; `mask` (or `edges` with so few units) has none. Its units would be independent."
            )
        colours = colouring(allowed)
        self.order = np.argsort(colours, kind="stable")  # the units by colour
        self.position = np.argsort(self.order)  # of each unit in that order
        self.sizes = tuple(np.bincount(colours).tolist())
        # colour by colour, which hidden units are updated at once
        self.hidden_colours = [c for i in range(len(self.sizes)) if (c := (colours == i)[num_visible:]).any()]
        self.pairs = np.argwhere(np.triu(allowed))
        self.has_hidden_edges = bool(allowed[num_visible:, num_visible:].any())
        base = np.zeros(num_visible) if data_mean is None else self.visible_units.natural(np.asarray(data_mean))
        first = keras.initializers.Constant(np.concatenate([base, np.zeros(num_hidden)]))
        normal = keras.initializers.RandomNormal(stddev=initial_stddev)
        self.edge_weights = self._parameter((len(self.pairs),), normal, "edge_weights")
        self.bias_vector = self._parameter((num_visible + num_hidden,), first, "bias")
        self.base = self._state((num_visible + num_hidden,), first, "base")
        self._set_training(
            sampler=sampler,
            num_chains=num_chains,
            num_sweeps=num_sweeps,
            max_sweeps=max_sweeps,
            sweeps_growth=sweeps_growth,
            binarise=binarise,
            l2=l2,
            num_temperatures=num_temperatures,
            samplers=("pcd", "pt", "exact"),
        )
        self.create_weights()

    def _mask(self, edges: str, mask: Sequence[Sequence[int]] | None) -> np.ndarray:
        """Which units have an edge, bool `[U, U]`."""
        num = self.num_visible + self.num_hidden
        if mask is None:
            side = np.arange(num) < self.num_visible
            return ~np.eye(num, dtype=bool) if edges == "all" else side[:, None] != side
        given = np.asarray(mask)
        if given.shape != (num, num) or not np.isin(given, (0, 1)).all():
            raise ValueError(
                f"`mask` must be 0 and 1 of shape [U, U] with U = {self.num_visible} visible + {self.num_hidden} hidden units; "
                f"received shape {list(given.shape)}."
            )
        allowed = given.astype(bool)
        if allowed.diagonal().any():
            unit = int(np.flatnonzero(allowed.diagonal())[0])
            raise ValueError(f"`mask` must have no self-edges; unit {unit} has one. A bias does what a self-edge would.")
        if (allowed != allowed.T).any():
            i, j = np.argwhere(allowed != allowed.T)[0].tolist()
            raise ValueError(f"`mask` must be symmetric: an edge has no direction; mask[{i}][{j}] and mask[{j}][{i}] differ.")
        return allowed

    @classmethod
    def tiny(cls, **hyperparameters: Any) -> Self:
        return cls(**{"num_visible": 3, "num_hidden": 2, "num_chains": 16, "initial_stddev": 0.1, **hyperparameters})

    def couplings(self) -> tf.Tensor:
        """The weights of all edges as a symmetric matrix `[U, U]`, visible units first."""
        return self._matrix(np.arange(len(self.order)))

    def _matrix(self, position: np.ndarray) -> tf.Tensor:
        rows, columns = position[self.pairs[:, 0]], position[self.pairs[:, 1]]
        places = np.concatenate([np.stack([rows, columns], 1), np.stack([columns, rows], 1)])
        weights = tf.convert_to_tensor(self.edge_weights)
        return tf.scatter_nd(places.astype(np.int32), tf.concat([weights, weights], 0), [len(position)] * 2)

    def machine(self) -> Coloured:
        biases, start = (tf.gather(tf.convert_to_tensor(a), self.order) for a in (self.bias_vector, self.base))
        return Coloured(self.sizes, self._matrix(self.position), biases, start)

    def _in_order(self, u: tf.Tensor) -> list[tf.Tensor]:
        """Units `[N, U]`, visible ones first, as the states of the colours."""
        return tf.split(tf.gather(u, self.order, axis=1), self.sizes, axis=1)

    def _units(self, states: Sequence[tf.Tensor]) -> tf.Tensor:
        """The states of the colours as units `[N, U]`, visible ones first."""
        return tf.gather(tf.concat(states, 1), self.position, axis=1)

    def visible_of(self, even: States, odd: States, seed: tf.Tensor) -> tf.Tensor:
        return self._units([*even, *odd])[:, : self.num_visible]

    # Inference -----------------------------------------------------------------------------------------------------

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether hidden units are too many to be summed out."""
        return self.has_hidden_edges and self.num_hidden > MAX_EXACT_HIDDEN

    def infer(self, s: tf.Tensor, seed: tf.Tensor) -> Inferred:
        num, couplings, bias = self.num_visible, self.couplings(), tf.convert_to_tensor(self.bias_vector)
        log_prob = tf.reduce_sum(s * (bias[:num] + 0.5 * s @ couplings[:num, :num]), -1)
        if not self.num_hidden:
            return Inferred((s,), (), (tf.zeros([tf.shape(s)[0], 0], s.dtype),), log_prob)
        a, among = s @ couplings[:num, num:] + bias[num:], couplings[num:, num:]
        if not self.has_hidden_edges:
            mean, found = tf.sigmoid(a), tf.reduce_sum(tf.nn.softplus(a), -1)
        elif self.num_hidden <= MAX_EXACT_HIDDEN:
            h = Bernoulli(self.num_hidden).states(tf.range(2**self.num_hidden, dtype=tf.int64), s.dtype)  # [2^H, H]
            scores = tf.matmul(a, h, transpose_b=True) + 0.5 * tf.reduce_sum(h @ among * h, -1)  # [N, 2^H]
            mean, found = tf.nn.softmax(scores) @ h, tf.reduce_logsumexp(scores, -1)
        else:
            mean = self._mean_field(a, among)
            entropy = -tf.math.xlogy(mean, mean) - tf.math.xlog1py(1.0 - mean, -mean)
            found = tf.reduce_sum(mean * (a + 0.5 * mean @ among) + entropy, -1)
        return Inferred((s,), (), (mean,), log_prob + found)

    def _mean_field(self, a: tf.Tensor, among: tf.Tensor) -> tf.Tensor:
        """Means of hidden units with inputs a `[N, H]` and edges among them, updated colour by colour: the bound never falls."""

        def sweep(t: tf.Tensor, mean: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            for colour in self.hidden_colours:
                mean = tf.where(colour, tf.sigmoid(a + mean @ among), mean)
            return t + 1, mean

        start = (tf.constant(0), tf.sigmoid(a))
        return tf.stop_gradient(tf.while_loop(lambda t, _: t < _MEAN_FIELD_SWEEPS, sweep, start)[1])

    def _given_others(self, v: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
        """Mean of each visible unit given all other units, `[N, V]`."""
        u = tf.concat([v, h], 1)
        return tf.sigmoid((u @ self.couplings() + self.bias_vector)[:, : self.num_visible])

    def _reconstruct(self, found: Inferred) -> tf.Tensor:
        """Mean of each visible unit given the others and the hidden units' means."""
        return self._given_others(found.even[0], found.odd[0])

    def energy(self, v: Any, h: Any = None) -> tf.Tensor:
        """E(v, h), nats, `[N]`, of v `[N, V]` and, where there are hidden units, h `[N, H]`."""
        u = self._visible(v)
        if self.num_hidden:
            if h is None:
                raise ValueError(f"`h` must be given, the states of {self.num_hidden} hidden units; received None.")
            u = tf.concat([u, self._rows("h", h, self.num_hidden, like=u)], 1)
        return -tf.reduce_sum(u * (0.5 * u @ self.couplings() + self.bias_vector), -1)

    # Sampling ------------------------------------------------------------------------------------------------------

    def _start(self, s: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        """States of the colours for visible states s, hidden ones drawn by their means."""
        mean = self.infer(s, seed).odd[0]
        if self.num_hidden:
            uniform = random.uniform(seed, tf.zeros([1], tf.int32), self.num_hidden, _HIDDEN_SALT)[0]
            mean = tf.cast(tf.cast(uniform, mean.dtype) < mean, mean.dtype)
        return self._in_order(tf.concat([s, mean], 1))

    @graph
    def _gibbs(self, v: tf.Tensor, num_sweeps: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        machine = self.machine()

        def sweep(t: tf.Tensor, *states: tf.Tensor) -> tuple:
            phase, keep = machine.sweep(states[1:], seed, t), (t < num_sweeps)[:, None]
            return t + 1, *(tf.where(keep, a, b) for a, b in zip((*phase.even, *phase.odd), states, strict=True))

        start = (tf.constant(0), *self._start(v, seed))
        u = self._units(tf.while_loop(lambda t, *_: t < tf.reduce_max(num_sweeps), sweep, start)[1:])
        after, h = u[:, : self.num_visible], u[:, self.num_visible :]
        return after, tf.where((num_sweeps > 0)[:, None], self._given_others(after, h), after)

    def conditional(
        self,
        v: Any,
        observed: Any,
        *,
        method: Literal["auto", "exact", "gibbs"] = "auto",
        num_sweeps: int = 1000,
        seed: Any = (0, 0),
    ) -> tf.Tensor:
        """p(v_i = 1 | observed units), `[N, V]`; observed units as they are.

        Args:
            v: `[N, V]`; values that are not observed do not matter.
            observed: `[N, V]` bool.
            method: `"exact"` enumerates the visible states (up to 14 units), `"gibbs"` averages a clamped chain's conditional
                means over the second half of its sweeps; `"auto"` is exact where it can be.
            num_sweeps: of the chain.
            seed: whole numbers `[2]` or `[N, 2]`.
        """
        checks.choice("method", method, ("auto", "exact", "gibbs"))
        checks.at_least(2, num_sweeps=num_sweeps)
        v = self._rows("v", v, self.visible_units.columns, check=False)
        observed = tf.convert_to_tensor(checks.array("observed", observed))
        if observed.dtype != tf.bool or observed.shape.as_list() != v.shape.as_list():
            raise ValueError(
                f"`observed` must be bool of shape {v.shape.as_list()}; received {observed.dtype.name} of shape "
                f"{observed.shape.as_list()}."
            )
        clean = tf.where(observed, v, tf.zeros_like(v))
        if not bool(tf.reduce_all((clean == 0.0) | (clean == 1.0))):
            raise ValueError("`v` must be 0 or 1 where it is observed. Is a missing value marked as observed?")
        is_small = 2**self.num_visible <= _MAX_EXACT_STATES and not self.is_bound
        if method == "exact" and not is_small:
            raise ValueError(f"Exact conditionals enumerate up to 14 visible units; there are {self.num_visible}. Use 'gibbs'.")
        if is_small and method != "gibbs":
            return self._exact_conditional(clean, observed)
        rows = random.row_seeds(seed, tf.range(tf.shape(v)[0]))
        return self._sampled_conditional(clean, observed, tf.constant(num_sweeps), rows)

    @graph
    def _exact_conditional(self, v: tf.Tensor, observed: tf.Tensor) -> tf.Tensor:
        states = self.visible_units.states(tf.range(2**self.num_visible, dtype=tf.int64), v.dtype)
        log_prob = self.infer(states, tf.zeros([tf.shape(states)[0], 2], tf.int32)).log_prob
        # mismatches of each row with each state; v is 0 where it was not observed
        wrong = tf.cast(observed, v.dtype) @ tf.transpose(states) + tf.reduce_sum(v, -1)[:, None]
        wrong -= 2.0 * v @ tf.transpose(states)
        scores = tf.where(wrong < 0.5, log_prob, tf.constant(-np.inf, v.dtype))
        return tf.where(observed, v, tf.nn.softmax(scores) @ states)

    @graph
    def _sampled_conditional(self, v: tf.Tensor, observed: tf.Tensor, num_sweeps: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        machine, extra = self.machine(), [[0, 0], [0, self.num_hidden]]
        clamp = tuple(tf.gather(tf.pad(a, extra), self.order, axis=1) for a in (v, observed))
        first = random.uniform(seed, tf.zeros([1], tf.int32), self.num_visible, _CONDITIONAL_SALT)[0]
        filled = tf.where(observed, v, tf.cast(tf.cast(first, v.dtype) < 0.5, v.dtype))

        def sweep(t: tf.Tensor, total: tf.Tensor, *odd: tf.Tensor) -> tuple:
            phase = machine.sweep(odd, seed, t, clamp=clamp)
            u = self._units([*phase.even, *phase.odd])
            mean = self._given_others(u[:, : self.num_visible], u[:, self.num_visible :])
            return t + 1, total + tf.where(t >= num_sweeps // 2, mean, tf.zeros_like(mean)), *phase.odd

        start = (tf.constant(0), tf.zeros_like(v), *self._start(filled, random.fold_in(seed, START_SWEEP))[1:])
        total = tf.while_loop(lambda t, *_: t < num_sweeps, sweep, start)[1]
        return tf.where(observed, v, total / tf.cast(num_sweeps - num_sweeps // 2, v.dtype))

    def endpoints(self, num_samples: int = 16, num_particles: int = 256) -> dict[str, Endpoint]:
        served = super().endpoints(num_samples, num_particles)
        if self.num_hidden:
            return served
        return {
            "serving_default": served["reconstruct"],
            **{n: e for n, e in served.items() if n not in ("serving_default", "hidden")},
        }
