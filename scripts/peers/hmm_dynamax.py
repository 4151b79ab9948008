"""Hidden Markov models in dynamax: a peer of `tfseq.models.hmm` in the speed benchmark.

float32, `vmap` over the sequences and one `jit` for a whole task. The associative scans of `parallel_inference` are left out: on
a CPU they take 10 to 60 times as long for 100,000 steps of 8 states, and half a minute to compile.

Variants:
    "model"      `CategoricalHMM` and `DiagonalGaussianHMM`, with their emissions and M step: how dynamax's users write it. Most
                 of the time goes into the emission log-probabilities, the `log_prob` of a distribution for each step and state.
    "functions"  dynamax's inference functions on emission log-probabilities of one matrix product, or looked up, and an M step
                 in closed form. The fastest.

Paths have no score in dynamax; it is added up along them here. `fit_em` compiles anew at every call, so one iteration is `e_step`
and `m_step` in one `jit`. Priors are flat, but for the Gaussians' (they have no such setting), which do not enter the check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.hmm import check_em
from jax._src import core
from jax.interpreters import xla


def _mend() -> None:
    """Lets tensorflow-probability 0.25 run on newer versions of JAX and NumPy.

    dynamax asks for tfp-nightly, which has the same folder; where tfseq's tensorflow-probability was installed last, it is that.
    """
    if not hasattr(xla, "pytype_aval_mappings"):
        xla.pytype_aval_mappings = core.pytype_aval_mappings
    from tensorflow_probability.substrates.jax.bijectors import pad

    pad.np = SimpleNamespace(**vars(np) | {"reshape": lambda a, newshape: np.reshape(a, newshape)})


_mend()

from dynamax.hidden_markov_model import (  # noqa: E402
    CategoricalHMM,
    DiagonalGaussianHMM,
    hmm_filter,
    hmm_posterior_mode,
    hmm_smoother,
    hmm_two_filter_smoother,
)

Variant = Literal["model", "functions"]
Parameters = Any  # a tree of arrays


def model_parts(data: dict[str, np.ndarray], parameters: dict[str, jax.Array]) -> tuple[Parameters, Callable, Callable]:
    """Parameters, the inference functions' arguments, and one iteration of EM, by dynamax's model classes."""
    flat = {"initial_probs_concentration": 1.0, "transition_matrix_concentration": 1.0}
    given = {"initial_probs": parameters["initial"], "transition_matrix": parameters["transition"]}
    num_states = len(data["initial"])
    if "probs" in data:
        model = CategoricalHMM(num_states, 1, data["probs"].shape[-1], emission_prior_concentration=1.0, **flat)
        params, props = model.initialize(**given, emission_probs=parameters["probs"][:, None])
    else:
        model = DiagonalGaussianHMM(num_states, data["x"].shape[-1], **flat)
        moments = {"emission_means": parameters["means"], "emission_scale_diags": jnp.sqrt(parameters["variances"])}
        params, props = model.initialize(**given, **moments)

    def em(params: Parameters, x: jax.Array) -> tuple[jax.Array, jax.Array, Parameters]:
        statistics, log_probs = jax.vmap(functools.partial(model.e_step, params))(x)
        params, _ = model.m_step(params, props, statistics, model.initialize_m_step_state(params, props))
        return log_probs.sum(), params.transitions.transition_matrix, params

    return params, lambda params, x: model._inference_args(params, x, None), em


def function_parts(parameters: dict[str, jax.Array]) -> tuple[Parameters, Callable, Callable]:
    """The same, of dynamax's inference functions alone."""

    def arguments(params: Parameters, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if "probs" in params:
            log_emission = jnp.log(params["probs"]).T[x[:, 0]]
        else:
            means, precision = params["means"], 1.0 / params["variances"]
            constant = -0.5 * (means**2 * precision + jnp.log(2.0 * jnp.pi / precision)).sum(-1, keepdims=True)
            weights = jnp.concatenate([-0.5 * precision, means * precision, constant], -1)
            log_emission = jnp.concatenate([x**2, x, jnp.ones_like(x[:, :1])], -1) @ weights.T
        return params["initial"], params["transition"], log_emission

    def em(params: Parameters, x: jax.Array) -> tuple[jax.Array, jax.Array, Parameters]:
        found = jax.vmap(lambda x: hmm_two_filter_smoother(*arguments(params, x)))(x)
        counts, smoothed = found.trans_probs.sum(0), found.smoothed_probs.reshape(-1, len(params["initial"]))
        new = {"initial": found.initial_probs.mean(0), "transition": counts / counts.sum(-1, keepdims=True)}
        total = smoothed.sum(0)[:, None]
        rows = x.reshape(-1, x.shape[-1])
        if "probs" in params:
            new["probs"] = jnp.zeros_like(params["probs"].T).at[rows[:, 0]].add(smoothed).T / total
        else:
            new["means"] = smoothed.T @ rows / total
            new["variances"] = smoothed.T @ rows**2 / total - new["means"] ** 2
        return found.marginal_loglik.sum(), new["transition"], new

    return parameters, arguments, em


def make_tasks(
    data: dict[str, np.ndarray], num_threads: int = 1, *, variant: Variant = "functions"
) -> dict[str, Callable[[], float]]:
    """The tasks of `benchmarks.hmm`.

    Args:
        data: see `benchmarks.hmm.example`.
        num_threads: JAX has no setting for it; it uses the cores that the process may run on.
        variant: how the model is written, see the module.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"`variant` must be one of {get_args(Variant)}; received {variant!r}.")
    given = {name: jnp.asarray(value, jnp.float32) for name, value in data.items() if name != "x"}
    params, arguments, em = model_parts(data, given) if variant == "model" else function_parts(given)
    x = jnp.asarray(data["x"])
    x = x[..., None] if "probs" in data else x

    def score(params: Parameters, x: jax.Array) -> tuple[jax.Array, ...]:
        return (jax.vmap(lambda x: hmm_filter(*arguments(params, x)).marginal_loglik)(x).sum(),)

    def smoother(params: Parameters, x: jax.Array) -> tuple[jax.Array, ...]:
        smoothed = jax.vmap(lambda x: hmm_smoother(*arguments(params, x)).smoothed_probs)(x)
        return smoothed[..., 0].sum(), smoothed

    def viterbi(params: Parameters, x: jax.Array) -> tuple[jax.Array, ...]:
        def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            initial, transition, log_emission = arguments(params, x)
            states = hmm_posterior_mode(initial, transition, log_emission)
            moves = jnp.log(transition)[states[:-1], states[1:]].sum() + jnp.log(initial)[states[0]]
            return moves + jnp.take_along_axis(log_emission, states[:, None], -1).sum(), states

        scores, states = jax.vmap(one)(x)
        return scores.sum(), states

    def compiled(function: Callable[..., tuple]) -> Callable[[], tuple]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(params, x))

    one_em = compiled(em)
    tasks = {"score": compiled(score), "smoother": compiled(smoother), "Viterbi": compiled(viterbi)}
    return {
        **{name: lambda task=task: float(task()[0]) for name, task in tasks.items()},
        "EM": lambda: check_em(*map(np.asarray, one_em()[:2]), data["x"]),
    }
