"""The deep Markov model in Pyro: a peer of `tfseq.models.dmm` in the speed benchmark.

The network, its start and its encoder are those of `dmm_torch`, so the parameters are the same ones. Model, guide and inference
are Pyro's: `SVI` with one sample, the KL of that sample (log q - log p, not the closed form), and `ClippedAdam` with the settings
of Pyro's own deep Markov model: rate 3e-4 x 0.99996 per step, betas (0.96, 0.999), every gradient clamped to 10, coupled L2 of
2.0 on the loss summed over the batch. Validation of arguments and of traces is off. KL weight 1, no autoregressive flows. The
loss is returned as minus the ELBO in nats per real step.

Variants:
    "loop"        one latent and one observed site per time step, masked by `poutine.mask`: how Pyro's users write it.
    "vectorized"  one site z [T, B, Z]: the guide draws it in a loop over plain tensors and scores it at once, the prior is a
                  distribution over whole paths whose `log_prob` evaluates the transition at all steps at once, and so is the
                  emission. The fastest.
    "loop-jit", "vectorized-jit"  the same under `JitTrace_ELBO`, traced once for every number of steps (the mask stays an
                  argument, so lengths may vary). Hardly faster once warm, if at all; the second call, in which TorchScript
                  optimises the unrolled graph, takes minutes at T = 60 and did not end in ten at T = 129 (PyTorch 2.13).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from .dmm_torch import LATENT_DIM, DeepMarkovNetwork, GatedTransition, num_parameters

__all__ = ["make_step", "num_parameters"]

Variant = Literal["loop", "vectorized", "loop-jit", "vectorized-jit"]
Program = Callable[..., None]

_NO_SHAPE = torch.Size()


def loop_programs(network: DeepMarkovNetwork) -> tuple[Program, Program]:
    """Model and guide with sites z_t and x_t; x [T, B, D], mask [T, B]."""

    def model(x: Tensor, mask: Tensor, num_steps: int) -> None:
        pyro.module("network", network)
        z = network.z_0.expand(x.shape[1], LATENT_DIM)
        with pyro.plate("sequences", x.shape[1]):
            for t in range(num_steps):
                mean, scale = network.transition(z)
                with poutine.mask(mask=mask[t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(mean, scale).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=network.emission(z)).to_event(1), obs=x[t])

    def guide(x: Tensor, mask: Tensor, num_steps: int) -> None:
        pyro.module("network", network)
        half_h = (0.5 * network.encode(x, mask)).unbind(0)
        z = network.posterior.z_0.expand(x.shape[1], LATENT_DIM)
        with pyro.plate("sequences", x.shape[1]):
            for t in range(num_steps):
                mean, scale = network.posterior.moments_after(z, half_h[t])
                with poutine.mask(mask=mask[t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(mean, scale).to_event(1))

    return model, guide


class PathPrior(dist.TorchDistribution):
    """p(z_t | z_{t-1}) of whole paths z [T, B, Z], all steps at once; `log_prob` is [T, B]."""

    arg_constraints: ClassVar[dict] = {}
    support = dist.constraints.real_vector

    def __init__(self, transition: GatedTransition, z_0: Tensor, num_steps: int, num_sequences: int) -> None:
        self.transition = transition
        self.z_0 = z_0.expand(num_sequences, LATENT_DIM)
        super().__init__(torch.Size([num_steps, num_sequences]), torch.Size([LATENT_DIM]), validate_args=False)

    def sample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        z = self.z_0.expand(sample_shape + self.z_0.shape)
        path = []
        for _ in range(self.batch_shape[0]):
            z = torch.normal(*self.transition(z))
            path.append(z)
        return torch.stack(path, dim=-3)

    def log_prob(self, z: Tensor) -> Tensor:
        mean, scale = self.transition(torch.cat([self.z_0.unsqueeze(0), z[:-1]]))
        return dist.Normal(mean, scale).log_prob(z).sum(-1)


def vectorized_programs(network: DeepMarkovNetwork) -> tuple[Program, Program]:
    """Model and guide with the sites z and x for all steps; x [T, B, D], mask [T, B]."""

    def model(x: Tensor, mask: Tensor, num_steps: int) -> None:
        pyro.module("network", network)
        num_sequences = x.shape[1]
        with pyro.plate("steps", num_steps, dim=-2), pyro.plate("sequences", num_sequences, dim=-1), poutine.mask(mask=mask):
            z = pyro.sample("z", PathPrior(network.transition, network.z_0, num_steps, num_sequences))
            pyro.sample("x", dist.Bernoulli(logits=network.emission(z)).to_event(1), obs=x)

    def guide(x: Tensor, mask: Tensor, num_steps: int) -> None:
        pyro.module("network", network)
        z, mean, scale = network.posterior(network.encode(x, mask), torch.randn(num_steps, x.shape[1], LATENT_DIM))
        log_q = dist.Normal(mean, scale).log_prob(z).sum(-1)
        with pyro.plate("steps", num_steps, dim=-2), pyro.plate("sequences", x.shape[1], dim=-1), poutine.mask(mask=mask):
            pyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))

    return model, guide


def make_step(
    batch: dict[str, np.ndarray], *, seed: int = 0, num_threads: int = 1, variant: Variant = "vectorized"
) -> Callable[[], float]:
    """A function that does one training step on `batch` and returns its loss in nats per real step.

    Args:
        batch: "x" float32 [B, T, 88], right-padded, and "mask" bool [B, T], True at real steps.
        seed: of the parameters and of the noise.
        num_threads: of PyTorch, for the whole process.
        variant: how the model is written and run, see the module.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"`variant` must be one of {get_args(Variant)}; received {variant!r}.")
    torch.set_num_threads(num_threads)
    pyro.enable_validation(False)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    network = DeepMarkovNetwork()
    programs = loop_programs if variant.startswith("loop") else vectorized_programs
    elbo = JitTrace_ELBO(ignore_jit_warnings=True) if variant.endswith("jit") else Trace_ELBO()
    optimizer = ClippedAdam({"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0})
    svi = SVI(*programs(network), optimizer, loss=elbo)
    x = torch.from_numpy(batch["x"]).transpose(0, 1).contiguous()
    mask = torch.from_numpy(batch["mask"]).transpose(0, 1).contiguous()
    num_real = max(int(mask.sum()), 1)

    def step() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of the tracing that JitTrace_ELBO is built on
            return float(svi.step(x, mask, num_steps=len(x))) / num_real

    return step
