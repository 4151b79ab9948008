"""Recurrent taggers and language models in plain PyTorch: peers of `tfseq.SequenceTagger` and `tfseq.LanguageModel`.

Time-major inside, and eager. One step is zeroing, loss, backward, clipping of the global norm and `torch.optim.Adam(fused=True)`;
losses are in nats per real step. The CRF is pytorch-crf's.

Forms of the tagger:
    "bidirectional"  `nn.LSTM(bidirectional=True)`, as users write it; sequences of mixed lengths are packed, sorted as they are.
    "directions"     one `nn.LSTM` a layer and direction, the backward one over sequences reversed by their length. What it
                     computes is the same, and oneDNN does it, which packed sequences do without: on one core of an AMD processor
                     a step on mixed lengths takes three quarters of the time, though padding is computed too.

Forms of the language model:
    "layers"  `nn.LSTM` or `nn.GRU` of two layers. PyTorch gives LSTMs to oneDNN; a GRU multiplies with the BLAS of the wheel,
              MKL, which on an AMD processor with AVX-512 is slow.
    "onednn"  a GRU by hand for such processors, nothing that users write: oneDNN multiplies, by an undocumented function (see
              `rbm_torch.py`), input products are one of all steps, and so are the gradients of weights after the backward loop.

Forms of the generator, batch 1, all the same function of its noise:
    "lstm"    `nn.LSTM` called step by step.
    "cell"    a loop of `nn.LSTMCell`.
    "manual"  a loop of products into buffers made once: embedding and input products of the first layer are rows of a table,
              the second layer is one product, and noise is drawn beforehand (Gumbel-max).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Form = Literal["bidirectional", "directions"]
ModelForm = Literal["layers", "onednn"]
GeneratorForm = Literal["lstm", "cell", "manual"]

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}
_IGNORED = -100


class Bidirectional(nn.Module):
    """Layers of bidirectional LSTMs: x [T, B, D] -> [T, B, 2 H]."""

    def __init__(self, input_dim: int, units: list[int], form: Form) -> None:
        super().__init__()
        self.form = form
        if form == "bidirectional":
            if len(set(units)) > 1:
                raise ValueError(f"`units` must be the same in all layers of `nn.LSTM`; received {units}.")
            self.rnn = nn.LSTM(input_dim, units[0], len(units), bidirectional=True)
        else:
            sizes = [input_dim, *(2 * n for n in units)]
            self.forward_rnns = nn.ModuleList(nn.LSTM(d, n) for d, n in zip(sizes, units, strict=False))
            self.backward_rnns = nn.ModuleList(nn.LSTM(d, n) for d, n in zip(sizes, units, strict=False))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """`lengths` [B], decreasing, or None where all are T."""
        if self.form == "bidirectional":
            if lengths is None:
                return self.rnn(x)[0]
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], total_length=len(x))[0]
        num_steps, batch_size, _ = x.shape
        if lengths is not None:
            time = torch.arange(num_steps).unsqueeze(1)
            rows = torch.where(time < lengths, lengths - 1 - time, time) * batch_size + torch.arange(batch_size)
            rows = rows.flatten()

        def reverse(a: Tensor) -> Tensor:  # its own inverse
            return a.flip(0) if lengths is None else a.flatten(0, 1).index_select(0, rows).view_as(a)

        for forward_rnn, backward_rnn in zip(self.forward_rnns, self.backward_rnns, strict=True):
            x = torch.cat([forward_rnn(x)[0], reverse(backward_rnn(reverse(x))[0])], -1)
        return x


class Tagger(nn.Module):
    """Embedding, bidirectional LSTMs, a linear layer, and softmax or CRF."""

    def __init__(self, vocabulary: int, num_tags: int, embedding_dim: int, units: list[int], head: str, form: Form) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        self.rnn = Bidirectional(embedding_dim, units, form)
        self.output = nn.Linear(2 * units[-1], num_tags)
        self.crf = None
        if head == "crf":
            from torchcrf import CRF

            self.crf = CRF(num_tags)

    def scores(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x [T, B] -> [T, B, tags]."""
        return self.output(self.rnn(self.embedding(x), lengths))

    def loss(self, x: Tensor, y: Tensor, mask: Tensor, lengths: Tensor | None) -> Tensor:
        """Nats per real step; y [T, B], for softmax `_IGNORED` where padded."""
        scores = self.scores(x, lengths)
        if self.crf is not None:
            return -self.crf(scores, y, mask, reduction="token_mean")
        return F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=_IGNORED)

    def predict(self, x: Tensor, mask: Tensor, lengths: Tensor | None) -> Any:
        """The best tags: [T, B], or with a CRF pytorch-crf's lists."""
        scores = self.scores(x, lengths)
        return scores.argmax(-1) if self.crf is None else self.crf.decode(scores, mask)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, by oneDNN and without a gradient: x [M, K], weight [N, K]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`F.linear` by oneDNN, x [M, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _multiply(dy, weight.t()), _multiply(dy.t(), x.t()), dy.sum(0)


class _Recurrence(torch.autograd.Function):
    """The steps of a GRU as `nn.GRU` has them: products of the input [T, B, 3 H], state [B, H] -> states [T, B, H]."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        num_steps, batch_size, width = inputs.shape
        size = width // 3
        states = inputs.new_empty(num_steps + 1, batch_size, size)
        states[0] = h
        gates, news = inputs.new_empty(num_steps, batch_size, 2 * size), torch.empty_like(states[1:])
        products = []
        for t in range(num_steps):
            product = _multiply(states[t], weight, bias)
            torch.add(inputs[t, :, : 2 * size], product[:, : 2 * size], out=gates[t]).sigmoid_()
            reset, update = gates[t].chunk(2, -1)
            torch.addcmul(inputs[t, :, 2 * size :], reset, product[:, 2 * size :], out=news[t]).tanh_()
            torch.lerp(news[t], states[t], update, out=states[t + 1])
            products.append(product)
        ctx.save_for_backward(states, gates, news, weight, *products)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        states, gates, news, weight, *products = ctx.saved_tensors
        num_steps, batch_size, size = news.shape
        d_inputs, d_products = torch.empty(2, num_steps, batch_size, 3 * size).unbind()
        columns = weight.t().contiguous()
        d_h = torch.zeros(batch_size, size)
        for t in reversed(range(num_steps)):
            reset, update = gates[t].chunk(2, -1)
            d_h = d_h + d_states[t]
            kept = d_h * update
            d_new = (d_h - kept) * (1.0 - news[t].square())
            d_gates = torch.cat([d_new * products[t][:, 2 * size :], d_h * (states[t] - news[t])], -1)
            d_gates *= gates[t] * (1.0 - gates[t])
            torch.cat([d_gates, d_new], -1, out=d_inputs[t])
            torch.cat([d_gates, d_new * reset], -1, out=d_products[t])
            d_h = kept + _multiply(d_products[t], columns)
        rows = d_products.flatten(0, 1)
        return d_inputs, None, _multiply(rows.t(), states[:-1].flatten(0, 1).t()), rows.sum(0)


class GRU(nn.GRU):
    """`nn.GRU` in the form "onednn"; the state it is given has no gradient."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(self.num_layers, x.shape[1], self.hidden_size)
        last = []
        for k in range(self.num_layers):
            w_ih, w_hh, b_ih, b_hh = (getattr(self, f"{n}_l{k}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            inputs = _Linear.apply(x.flatten(0, 1), w_ih, b_ih).view(*x.shape[:2], -1)
            x = _Recurrence.apply(inputs, state[k], w_hh, b_hh)
            last.append(x[-1])
        return x, torch.stack(last)


class LanguageModel(nn.Module):
    """Embedding, recurrent layers, and a linear layer: x [T, B] -> scores [T, B, V], state."""

    def __init__(self, vocabulary: int, embedding_dim: int, units: list[int], cell: str, form: ModelForm = "layers") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        if form == "onednn" and cell != "gru":
            raise NotImplementedError("this form is for GRUs: PyTorch's LSTM is oneDNN's already")
        self.rnn = (GRU if form == "onednn" else _CELLS[cell])(embedding_dim, units[0], len(units))
        self.output = nn.Linear(units[-1], vocabulary)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, state = self.rnn(self.embedding(x), state)
        return self.output(h), state


def _prepare(num_threads: int, seed: int) -> None:
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)


def _trainer(model: nn.Module, loss_of: Callable[[], Tensor], clip_norm: float) -> Callable[[], float]:
    """One training step, which returns the loss before it."""
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return loss.item()

    return step


def make_tagger(
    batch: dict[str, np.ndarray],
    *,
    vocabulary: int,
    num_tags: int,
    embedding_dim: int,
    units: list[int],
    head: str,
    form: Form = "bidirectional",
    clip_norm: float = 5.0,
    seed: int = 0,
    num_threads: int = 1,
) -> dict[str, Callable[[], Any]]:
    """Functions "train", one step on `batch` that returns its loss, and "infer", which returns the best tags.

    Args:
        batch: "x" and "y" int32 [B, T], "mask" bool [B, T], right-padded, the rows in decreasing order of their lengths.
        vocabulary, num_tags, embedding_dim, units: sizes.
        head: "softmax" or "crf".
        form: see the module.
        clip_norm: the bound on the global norm of the gradients.
        seed: of the parameters.
        num_threads: of PyTorch, for the whole process.
    """
    if form not in get_args(Form):
        raise ValueError(f"`form` must be one of {get_args(Form)}; received {form!r}.")
    _prepare(num_threads, seed)
    model = Tagger(vocabulary, num_tags, embedding_dim, units, head, form)
    x, y = (torch.from_numpy(batch[name]).long().t().contiguous() for name in ("x", "y"))
    mask = torch.from_numpy(batch["mask"]).t().contiguous()
    lengths = None if mask.all() else mask.sum(0)
    if head == "softmax":
        y = torch.where(mask, y, _IGNORED)

    @torch.inference_mode()
    def infer() -> Any:
        return model.predict(x, mask, lengths)

    return {"train": _trainer(model, lambda: model.loss(x, y, mask, lengths), clip_norm), "infer": infer}


def make_language_model(
    tokens: np.ndarray,
    *,
    vocabulary: int,
    embedding_dim: int,
    units: list[int],
    cell: str,
    form: ModelForm = "layers",
    clip_norm: float = 5.0,
    seed: int = 0,
    num_threads: int = 1,
) -> dict[str, Callable[[], float]]:
    """A function "train": one step that predicts `tokens` [B, T + 1] after the first, from the state of the step before it."""
    if form not in get_args(ModelForm):
        raise ValueError(f"`form` must be one of {get_args(ModelForm)}; received {form!r}.")
    _prepare(num_threads, seed)
    model = LanguageModel(vocabulary, embedding_dim, units, cell, form)
    columns = torch.from_numpy(tokens).long().t().contiguous()
    x, y = columns[:-1], columns[1:].flatten()
    carried: list[Any] = [None]

    def loss() -> Tensor:
        scores, state = model(x, carried[0])
        carried[0] = tuple(a.detach() for a in state) if isinstance(state, tuple) else state.detach()
        return F.cross_entropy(scores.flatten(0, 1), y)

    return {"train": _trainer(model, loss, clip_norm)}


def make_generator(
    *,
    num_tokens: int,
    vocabulary: int,
    embedding_dim: int,
    units: list[int],
    form: GeneratorForm,
    temperature: float = 1.0,
    seed: int = 0,
    num_threads: int = 1,
) -> dict[str, Callable[[], np.ndarray]]:
    """A function "generate": `num_tokens` tokens of an LSTM language model of two layers, from token 0 and a state of zeros."""
    if form not in get_args(GeneratorForm):
        raise ValueError(f"`form` must be one of {get_args(GeneratorForm)}; received {form!r}.")
    _prepare(num_threads, seed)
    model = LanguageModel(vocabulary, embedding_dim, units, "lstm")
    generator = torch.Generator()

    def noise() -> Tensor:
        generator.manual_seed(seed)
        return torch.empty(num_tokens, vocabulary).exponential_(generator=generator).log_().neg_()  # Gumbel

    make = {"lstm": _by_lstm, "cell": _by_cells, "manual": _by_hand}[form]
    with torch.inference_mode():
        loop = make(model, temperature)

    @torch.inference_mode()
    def generate() -> np.ndarray:
        return loop(noise()).numpy()

    return {"generate": generate}


def _by_lstm(model: LanguageModel, temperature: float) -> Callable[[Tensor], Tensor]:
    def loop(noise: Tensor) -> Tensor:
        token, state, tokens = torch.zeros(1, 1, dtype=torch.long), None, []
        for gumbel in noise.unbind():
            scores, state = model(token, state)
            token = (scores[0] / temperature + gumbel).argmax(-1, keepdim=True)
            tokens.append(token)
        return torch.cat(tokens).flatten()

    return loop


def _by_cells(model: LanguageModel, temperature: float) -> Callable[[Tensor], Tensor]:
    rnn, cells = model.rnn, []
    for k in range(rnn.num_layers):
        cell = nn.LSTMCell(rnn.input_size if k == 0 else rnn.hidden_size, rnn.hidden_size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).copy_(getattr(rnn, f"{name}_l{k}"))
        cells.append(cell)

    def loop(noise: Tensor) -> Tensor:
        token, tokens = torch.zeros(1, dtype=torch.long), []
        states = [(torch.zeros(1, rnn.hidden_size), torch.zeros(1, rnn.hidden_size)) for _ in cells]
        for gumbel in noise.unbind():
            x = model.embedding(token)
            for k, cell in enumerate(cells):
                states[k] = cell(x, states[k])
                x = states[k][0]
            token = (model.output(x) / temperature + gumbel).argmax(-1)
            tokens.append(token)
        return torch.cat(tokens)

    return loop


def _by_hand(model: LanguageModel, temperature: float) -> Callable[[Tensor], Tensor]:
    rnn, size = model.rnn, model.rnn.hidden_size
    if rnn.num_layers != 2:
        raise ValueError(f"the loop by hand has two layers; received {rnn.num_layers}.")
    # the gates i, f, g, o as i, f, o, g: one sigmoid over three of them
    order = torch.cat([torch.arange(2 * size), torch.arange(3 * size, 4 * size), torch.arange(2 * size, 3 * size)])
    inputs = F.linear(model.embedding.weight, rnn.weight_ih_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0)[:, order].contiguous()
    first = rnn.weight_hh_l0[order].contiguous()
    second = torch.cat([rnn.weight_ih_l1, rnn.weight_hh_l1], 1)[order].contiguous()
    second_bias = (rnn.bias_ih_l1 + rnn.bias_hh_l1)[order].contiguous()
    output, output_bias = model.output.weight / temperature, model.output.bias / temperature

    gates = torch.empty(4 * size)
    sigmoids, inner = gates[: 3 * size], gates[3 * size :]
    i, f, o = sigmoids.split(size)
    h, c_1, c_2, squashed = torch.empty(2 * size), torch.empty(size), torch.empty(size), torch.empty(size)
    h_1, h_2 = h.split(size)
    scores = torch.empty(len(output))

    def update(c: Tensor, h: Tensor) -> None:
        sigmoids.sigmoid_()
        inner.tanh_()
        c.mul_(f).addcmul_(i, inner)
        torch.tanh(c, out=squashed)
        torch.mul(o, squashed, out=h)

    def loop(noise: Tensor) -> Tensor:
        for state in (h, c_1, c_2):
            state.zero_()
        tokens = torch.zeros(len(noise) + 1, dtype=torch.long)
        rows = tokens.unbind()
        for t, gumbel in enumerate(noise.unbind()):
            torch.addmv(inputs[int(rows[t])], first, h_1, out=gates)
            update(c_1, h_1)
            torch.addmv(second_bias, second, h, out=gates)
            update(c_2, h_2)
            torch.addmv(output_bias, output, h_2, out=scores).add_(gumbel)
            torch.argmax(scores, 0, out=rows[t + 1])
        return tokens[1:]

    return loop
