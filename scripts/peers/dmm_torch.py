"""The deep Markov model in plain PyTorch: the peer of `tfseq.models.dmm` in the speed benchmark.

The model (Krishnan, Shalit and Sontag 2017, with the sizes and the learned start of Pyro's version), x [B, T, 88] in {0, 1}:

    p(z_t | z_{t-1}) = N(mu, sigma^2), z_0 learned, with  g = sigmoid(W2 relu(W1 z)),  h = W4 relu(W3 z),
                       mu = (1 - g) * (Wp z + bp) + g * h,  sigma = softplus(Ws relu(h) + bs),  Wp = I and bp = 0 at the start;
    p(x_t | z_t)     = Bernoulli(logits = emission(z_t)), two ReLU layers of 100;
    q(z_t | z_{t-1}, x_{t:T}) = N(Wm c + bm, softplus(Wv c + bv)^2),  c = (tanh(Wc z_{t-1} + bc) + h_t) / 2,  z_0 of q learned,
                       h_t of a ReLU recurrent network of 600 units, backward from the last real step (DKS = ST-R).

Written for speed: time-major inside; the encoder is one `nn.RNN` over sequences reversed by their length, so that it starts at
the last real step; only the sampling of q is a loop over time (its mean and scale are one product); transition, analytic KL and
emission run on [T, B, .] at once. One step is forward, backward, clipping of the global norm and `torch.optim.Adam`; the loss
is minus the ELBO with one sample, in nats per real step.

Variants: "eager"; "script": the loop over time under `torch.jit.script`; "compile": transition, KL and emission under
`torch.compile` (inductor; one compilation for every number of steps), encoder and loop eager. Compiling the loop too, unrolled
for a fixed T or as one compiled step, makes it slower still on a CPU, and unrolling takes minutes to compile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Variant = Literal["eager", "script", "compile"]

OBSERVED_DIM, LATENT_DIM, EMISSION_UNITS, TRANSITION_UNITS, RNN_UNITS = 88, 100, 100, 200, 600


class GatedTransition(nn.Module):
    """p(z_t | z_{t-1}): z [..., Z] -> mean, standard deviation [..., Z]."""

    def __init__(self) -> None:
        super().__init__()
        latent, hidden = LATENT_DIM, TRANSITION_UNITS
        self.gate = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent), nn.Sigmoid())
        self.proposal = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent))
        self.linear = nn.Linear(latent, latent)
        self.scale = nn.Linear(latent, latent)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        proposal = self.proposal(z)
        mean = torch.lerp(self.linear(z), proposal, self.gate(z))  # (1 - g) * linear + g * proposal
        return mean, F.softplus(self.scale(F.relu(proposal)))


class Posterior(nn.Module):
    """q(z_t | z_{t-1}, x_{t:T}), the DKS combiner; `forward` samples it over time, the only loop of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Linear(LATENT_DIM, RNN_UNITS)
        self.moments = nn.Linear(RNN_UNITS, 2 * LATENT_DIM)
        self.z_0 = nn.Parameter(torch.zeros(LATENT_DIM))

    def moments_after(self, z: Tensor, half_h: Tensor) -> tuple[Tensor, Tensor]:
        """z_{t-1} [B, Z], h_t / 2 [B, H] -> mean and standard deviation of z_t, [B, Z]."""
        combined = torch.add(half_h, torch.tanh(self.latent(z)), alpha=0.5)
        mean, raw_scale = self.moments(combined).chunk(2, dim=-1)
        return mean, F.softplus(raw_scale)

    def forward(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [T, B, H], standard normal noise [T, B, Z] -> sample, mean, standard deviation, each [T, B, Z]."""
        half_h = (0.5 * h).unbind(0)
        eps = noise.unbind(0)
        z = self.z_0.expand(noise.shape[1], noise.shape[2])
        samples: list[Tensor] = []
        means: list[Tensor] = []
        scales: list[Tensor] = []
        for t in range(len(half_h)):
            mean, scale = self.moments_after(z, half_h[t])
            z = torch.addcmul(mean, scale, eps[t])
            samples.append(z)
            means.append(mean)
            scales.append(scale)
        return torch.stack(samples), torch.stack(means), torch.stack(scales)


class DeepMarkovNetwork(nn.Module):
    """All the parameters, and the encoder; shared with the Pyro version."""

    def __init__(self) -> None:
        super().__init__()
        self.transition = GatedTransition()
        self.emission = nn.Sequential(
            nn.Linear(LATENT_DIM, EMISSION_UNITS),
            nn.ReLU(),
            nn.Linear(EMISSION_UNITS, EMISSION_UNITS),
            nn.ReLU(),
            nn.Linear(EMISSION_UNITS, OBSERVED_DIM),
        )
        self.posterior = Posterior()
        self.rnn = nn.RNN(OBSERVED_DIM, RNN_UNITS, nonlinearity="relu")
        self.z_0 = nn.Parameter(torch.zeros(LATENT_DIM))
        self.h_0 = nn.Parameter(torch.zeros(RNN_UNITS))

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [T, B, D], mask [T, B] -> h [T, B, H]: h_t has seen x from the last real step back to t."""
        num_steps, batch_size, _ = x.shape
        lengths = mask.sum(0)  # [B]
        time = torch.arange(num_steps).unsqueeze(1)
        rows = torch.where(mask, lengths - 1 - time, time) * batch_size + torch.arange(batch_size)  # its own inverse
        rows = rows.flatten()
        backward_x = x.flatten(0, 1).index_select(0, rows).view_as(x)
        h, _ = self.rnn(backward_x, self.h_0.expand(1, batch_size, RNN_UNITS).contiguous())
        return h.flatten(0, 1).index_select(0, rows).view_as(h)


def decode_terms(network: DeepMarkovNetwork, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Minus the ELBO summed over real steps: x [T, B, D], weight [T, B], z, mean and scale of q [T, B, Z] -> scalar."""
    z_before = torch.cat([network.z_0.expand(1, z.shape[1], LATENT_DIM), z[:-1]])
    prior_mean, prior_scale = network.transition(z_before)
    ratio = scale / prior_scale
    kl = 0.5 * (ratio.square() + ((mean - prior_mean) / prior_scale).square() - 1.0) - ratio.log()  # [T, B, Z]
    weight = weight.unsqueeze(-1)
    minus_log_lik = F.binary_cross_entropy_with_logits(network.emission(z), x, weight=weight, reduction="sum")
    return minus_log_lik + (kl * weight).sum()


def make_loss(network: DeepMarkovNetwork, variant: Variant = "eager") -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss x [T, B, D], mask [T, B], noise [T, B, Z] -> minus the ELBO in nats per real step."""
    if variant not in get_args(Variant):
        raise ValueError(f"`variant` must be one of {get_args(Variant)}; received {variant!r}.")
    posterior: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = network.posterior
    terms = decode_terms
    if variant == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            posterior = torch.jit.script(network.posterior)
    elif variant == "compile":
        terms = torch.compile(decode_terms, fullgraph=True, dynamic=False)

    def loss(x: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
        z, mean, scale = posterior(network.encode(x, mask), noise)
        return terms(network, x, mask.to(x.dtype), z, mean, scale) / mask.sum().clamp(min=1)

    return loss


def num_parameters() -> int:
    """The number of trained values, all of them float32."""
    return sum(p.numel() for p in DeepMarkovNetwork().parameters())


def make_step(
    batch: dict[str, np.ndarray],
    *,
    seed: int = 0,
    num_threads: int = 1,
    variant: Variant = "eager",
    adam: Literal["fused", "foreach"] = "fused",
    clip_norm: float = 10.0,
) -> Callable[[], float]:
    """A function that does one training step on `batch` and returns its loss in nats per real step.

    Args:
        batch: "x" float32 [B, T, 88], right-padded, and "mask" bool [B, T], True at real steps.
        seed: of the parameters and of the noise.
        num_threads: of PyTorch, for the whole process.
        variant: what is compiled, see the module.
        adam: the implementation of `torch.optim.Adam`.
        clip_norm: the bound on the global norm of the gradients.
    """
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    network = DeepMarkovNetwork()
    parameters = list(network.parameters())
    loss_fn = make_loss(network, variant)
    optimizer = torch.optim.Adam(parameters, lr=3e-4, betas=(0.96, 0.999), **{adam: True})
    x = torch.from_numpy(batch["x"]).transpose(0, 1).contiguous()
    mask = torch.from_numpy(batch["mask"]).transpose(0, 1).contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(x, mask, torch.randn(*mask.shape, LATENT_DIM))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return loss.item()

    return step
