"""The variational RNN in plain PyTorch: the peer of `tfseq.models.vrnn` in the speed benchmark.

The model (Chung et al. 2015), x [B, T, D] real, phi, prior, encoder and decoder each with two ReLU layers:

    z_t ~ N(prior(h_{t-1})),  x_t ~ N(decoder(phi_z(z_t), h_{t-1})),  h_t = cell(phi_x(x_t), phi_z(z_t), h_{t-1}),
    q(z_t | x_t, h_{t-1}) = N(encoder(phi_x(x_t), h_{t-1})),  standard deviations softplus(.) + 1e-4.

Time-major inside. One step is forward, backward, clipping of the global norm and `torch.optim.Adam`; the loss is minus the ELBO
with one sample and the closed form of the divergence, in nats per step, of sequences of full length.

Forms, all the same function of parameters and noise:
    "loop"    what is usually written: all networks, the divergence and the likelihood inside of the loop over time.
    "outside" phi_x, and what it gives to encoder and cell, before the loop; prior, decoder and both terms after it, on all
              steps at once. Only what z_t and h_t need is in the loop.
    "script"  "outside" with its loop under `torch.jit.script`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Form = Literal["loop", "outside", "script"]
Cell = Literal["lstm", "gru"]

_MIN_STDDEV = 1e-4


def network(in_dim: int, hidden_dim: int, out_dim: int | None = None) -> nn.Sequential:
    """Two ReLU layers, and a linear one where there is an `out_dim`."""
    hidden = [nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
    return nn.Sequential(*hidden, *([] if out_dim is None else [nn.Linear(hidden_dim, out_dim)]))


def gaussian(raw: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 2 N] -> mean and standard deviation [..., N]."""
    mean, scale = raw.chunk(2, dim=-1)
    return mean, F.softplus(scale) + _MIN_STDDEV


def divergence(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
    """KL(N(mean, scale^2) || N(prior_mean, prior_scale^2)), summed."""
    ratio = scale / prior_scale
    return (0.5 * (ratio.square() + ((mean - prior_mean) / prior_scale).square() - 1.0) - ratio.log()).sum()


def minus_log_lik(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """-log N(x; mean, scale^2), summed."""
    return (0.5 * ((x - mean) / scale).square() + scale.log()).sum() + 0.5 * np.log(2.0 * np.pi) * x.numel()


class Posterior(nn.Module):
    """The loop of the forms that have all else outside of it."""

    def __init__(self, latent_dim: int, units: int, hidden_dim: int, cell: Cell) -> None:
        super().__init__()
        self.phi_z = network(latent_dim, hidden_dim)
        self.encoder = network(hidden_dim + units, hidden_dim, 2 * latent_dim)
        self.cell = (nn.LSTMCell if cell == "lstm" else nn.GRUCell)(2 * hidden_dim, units)
        self.units, self.hidden_dim, self.is_lstm = units, hidden_dim, cell == "lstm"

    def forward(self, phi_x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """phi_x [T, B, H], noise [T, B, Z] -> mean and scale of q, phi_z(z_t), h_{t-1}."""
        hidden_dim = self.hidden_dim
        first, second, third = self.encoder[0], self.encoder[2], self.encoder[4]
        to_z, to_phi = self.phi_z[0], self.phi_z[2]
        w_ih, w_hh, b_hh = self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_hh
        # all steps in one product: what phi_x gives to the encoder and to the cell
        into_encoder = F.linear(phi_x, first.weight[:, :hidden_dim], first.bias).unbind(0)
        into_cell = F.linear(phi_x, w_ih[:, :hidden_dim], self.cell.bias_ih).unbind(0)
        from_h, from_z = first.weight[:, hidden_dim:], w_ih[:, hidden_dim:]
        eps = noise.unbind(0)
        h = torch.zeros(noise.shape[1], self.units)
        c = torch.zeros_like(h)
        means: list[Tensor] = []
        scales: list[Tensor] = []
        extracted: list[Tensor] = []
        before: list[Tensor] = []
        for t in range(len(eps)):
            hidden = torch.relu(into_encoder[t] + F.linear(h, from_h))
            raw = F.linear(torch.relu(F.linear(hidden, second.weight, second.bias)), third.weight, third.bias)
            mean, raw_scale = raw.chunk(2, dim=-1)
            scale = F.softplus(raw_scale) + 1e-4
            z = torch.addcmul(mean, scale, eps[t])
            phi = torch.relu(F.linear(torch.relu(F.linear(z, to_z.weight, to_z.bias)), to_phi.weight, to_phi.bias))
            means.append(mean)
            scales.append(scale)
            extracted.append(phi)
            before.append(h)
            x_gates = into_cell[t] + F.linear(phi, from_z)
            h_gates = F.linear(h, w_hh, b_hh)
            if self.is_lstm:
                i, f, g, o = (x_gates + h_gates).chunk(4, dim=-1)
                c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                x_r, x_u, x_n = x_gates.chunk(3, dim=-1)
                h_r, h_u, h_n = h_gates.chunk(3, dim=-1)
                new = torch.tanh(torch.addcmul(x_n, torch.sigmoid(x_r + h_r), h_n))
                h = torch.lerp(new, h, torch.sigmoid(x_u + h_u))
        return torch.stack(means), torch.stack(scales), torch.stack(extracted), torch.stack(before)


class VariationalRNN(nn.Module):
    """All the parameters, and the loss of the form."""

    def __init__(self, observation_dim: int, latent_dim: int, units: int, hidden_dim: int, cell: Cell, form: Form) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"`form` must be one of {get_args(Form)}; received {form!r}.")
        self.phi_x = network(observation_dim, hidden_dim)
        self.posterior = Posterior(latent_dim, units, hidden_dim, cell)
        self.prior = network(units, hidden_dim, 2 * latent_dim)
        self.decoder = network(hidden_dim + units, hidden_dim, 2 * observation_dim)
        self.form, infer = form, self.posterior
        if form == "script":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is deprecated, in favour of `torch.compile`
                infer = torch.jit.script(self.posterior)
        self.infer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]] = infer.__call__  # no module once more

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x [T, B, D], standard normal noise [T, B, Z] -> minus the ELBO in nats per step."""
        num_steps = x.shape[0] * x.shape[1]
        return (self._in_loop(x, noise) if self.form == "loop" else self._outside(x, noise)) / num_steps

    def _in_loop(self, x: Tensor, noise: Tensor) -> Tensor:
        q = self.posterior
        h = torch.zeros(x.shape[1], q.units)
        state = (h, torch.zeros_like(h))
        loss = torch.zeros([])
        for t in range(len(x)):
            phi_x = self.phi_x(x[t])
            mean, scale = gaussian(q.encoder(torch.cat([phi_x, h], -1)))
            prior_mean, prior_scale = gaussian(self.prior(h))
            phi_z = q.phi_z(torch.addcmul(mean, scale, noise[t]))
            x_mean, x_scale = gaussian(self.decoder(torch.cat([phi_z, h], -1)))
            loss = loss + divergence(mean, scale, prior_mean, prior_scale) + minus_log_lik(x[t], x_mean, x_scale)
            inputs = torch.cat([phi_x, phi_z], -1)
            if q.is_lstm:
                state = q.cell(inputs, state)
                h = state[0]
            else:
                h = q.cell(inputs, h)
        return loss

    def _outside(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, scale, phi_z, before = self.infer(self.phi_x(x), noise)
        x_mean, x_scale = gaussian(self.decoder(torch.cat([phi_z, before], -1)))
        return divergence(mean, scale, *gaussian(self.prior(before))) + minus_log_lik(x, x_mean, x_scale)


def make_step(
    x: np.ndarray,
    sizes: dict[str, int],
    *,
    cell: Cell = "lstm",
    seed: int = 0,
    num_threads: int = 1,
    form: Form = "loop",
    learning_rate: float = 3e-4,
    clip_norm: float = 10.0,
) -> Callable[[], float]:
    """A function that does one training step on x `[B, T, D]` and returns its loss in nats per step.

    Args:
        x: float32 sequences, all of full length.
        sizes: `observation_dim`, `latent_dim`, `units`, `hidden_dim`.
        cell: the recurrent cell.
        seed: of the parameters and of the noise.
        num_threads: of PyTorch, for the whole process.
        form: see the module.
        learning_rate: of `torch.optim.Adam`, in its fused form; that by lists of tensors ("foreach") is slower by 1 to 5 %.
        clip_norm: the bound on the global norm of the gradients.
    """
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    model = VariationalRNN(**sizes, cell=cell, form=form)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    data = torch.from_numpy(x).transpose(0, 1).contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(data, torch.randn(*data.shape[:2], sizes["latent_dim"]))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return loss.item()

    return step
