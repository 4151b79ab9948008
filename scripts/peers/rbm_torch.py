"""The restricted Boltzmann machine in plain PyTorch: a peer of `tfseq.models.rbm` in the speed benchmark.

Bernoulli units, CD-1 or PCD-1, written for speed: no autograd and no modules; products with the bias inside (`addmm`), a draw is
uniform numbers and a comparison, the gradient is added to the weights by the product that makes it, and all else writes into
buffers made once. The order of the data is drawn anew each epoch. Nothing is checked, and no loss is computed.

Variants, which differ in what multiplies:
    "blas"    `torch.addmm`: the library's BLAS, in PyTorch's wheels MKL, which on an AMD processor with AVX-512 was measured at
              less than half of the speed of oneDNN.
    "onednn"  oneDNN, with which TensorFlow multiplies too, by `torch.ops.mkldnn._linear_pointwise`. It is undocumented, made for
              what `torch.compile` makes of inference, and nothing that users write; but on that processor it is the fastest.

`torch.compile` was tried on a step without buffers: half a minute of compilation, and slower than "blas" (PyTorch 2.14).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Sampler = Literal["cd", "pcd"]
Variant = Literal["blas", "onednn"]


def make_epoch(
    x: np.ndarray,
    *,
    num_hidden: int,
    batch_size: int,
    rate: float,
    sampler: Sampler = "cd",
    variant: Variant = "blas",
    seed: int = 0,
    num_threads: int = 1,
) -> tuple[Callable[[], None], Callable[[], list[np.ndarray]]]:
    """A function that trains one epoch, and one that gives the parameters: weights [V, H], visible and hidden biases.

    Args:
        x: float32 [N, V] in {0, 1}; a last batch that is not full is left out.
        num_hidden: H.
        batch_size: rows of a batch, and the number of chains.
        rate: of the gradient's mean over the batch.
        sampler: chains from the data, or persistent ones.
        variant: see the module.
        seed: of parameters, order and noise.
        num_threads: of PyTorch, for the whole process.
    """
    for name, value, kind in (("sampler", sampler, Sampler), ("variant", variant, Variant)):
        if value not in get_args(kind):
            raise ValueError(f"`{name}` must be one of {get_args(kind)}; received {value!r}.")
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    data = torch.from_numpy(x)
    num_visible, step_size = x.shape[1], rate / batch_size
    weights = 0.01 * torch.randn(num_visible, num_hidden)
    visible, hidden = torch.zeros(num_visible), torch.zeros(num_hidden)
    v, v_model, v_uniform = torch.empty(3, batch_size, num_visible).unbind()
    h, h_model, h_state, h_uniform = torch.zeros(4, batch_size, num_hidden).unbind()
    linear = torch.ops.mkldnn._linear_pointwise if variant == "onednn" else None
    both_v, both_h = torch.empty(2 * batch_size, num_visible), torch.empty(2 * batch_size, num_hidden)
    if linear is not None:  # one product makes the gradient, of rows side by side
        v, v_model = both_v.split(batch_size)
        h, h_model = both_h.split(batch_size)

    def upward(v: Tensor, out: Tensor) -> None:
        if linear is None:
            torch.addmm(hidden, v, weights, out=out).sigmoid_()
        else:
            torch.sigmoid(linear(v, weights.t(), hidden, "none", [], ""), out=out)

    def downward(h: Tensor, out: Tensor) -> None:
        if linear is None:
            torch.addmm(visible, h, weights.t(), out=out).sigmoid_()
        else:
            torch.sigmoid(linear(h, weights, visible, "none", [], ""), out=out)

    def step(rows: Tensor) -> None:
        torch.index_select(data, 0, rows, out=v)
        upward(v, h)
        if sampler == "cd":
            torch.lt(h_uniform.uniform_(), h, out=h_state)
        downward(h_state, v_model)
        torch.lt(v_uniform.uniform_(), v_model, out=v_model)
        upward(v_model, h_model)
        if sampler == "pcd":
            torch.lt(h_uniform.uniform_(), h_model, out=h_state)
        visible.add_(v.sum(0), alpha=step_size).sub_(v_model.sum(0), alpha=step_size)
        hidden.add_(h.sum(0), alpha=step_size).sub_(h_model.sum(0), alpha=step_size)
        if linear is None:
            weights.addmm_(v.t(), h, alpha=step_size).addmm_(v_model.t(), h_model, alpha=-step_size)
        else:
            h_model.neg_()
            weights.t().add_(linear(both_h.t(), both_v.t(), None, "none", [], ""), alpha=step_size)

    @torch.no_grad()
    def epoch() -> None:
        for rows in torch.randperm(len(data)).split(batch_size):
            if len(rows) == batch_size:
                step(rows)

    return epoch, lambda: [a.numpy() for a in (weights, visible, hidden)]
