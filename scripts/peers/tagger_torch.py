#!/usr/bin/env python
"""The network of `tfseq.SequenceTagger` in plain PyTorch, trained the same way: peer of the recipes `tagger-*` of reproduce.py.

    python scripts/reproduce.py tagger-wnut17 --seeds 5 --peer
    python scripts/peers/tagger_torch.py --check

The CRF is pytorch-crf's, which knows no constraints. tfseq reads the data (ids of words, characters and tags) and says which rows
are in which batch; everything else is PyTorch. So that both train one network in one way, some defaults of PyTorch are set aside:

- initial weights are drawn as tfseq draws them, those of the CRF are zero;
- the second bias of `nn.LSTM`, which would double the step of the first, is zero and stays so;
- Adam's epsilon is 1e-7 and not divided by the correction of the second moment, as in Keras.

Random numbers are PyTorch's own. `--check` compares scores, likelihood, tags and figures of one set of weights on padded rows,
and the same of the averaged weights after some steps of training without dropout.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchcrf import CRF

# the first optimiser imports it, for long, and by it triton, which crashes beside TensorFlow and is no use on a CPU
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
importlib.import_module("torch._dynamo")
if __package__:
    from .recurrent_torch import Bidirectional
else:
    from recurrent_torch import Bidirectional

_IGNORED = -100
_ONLY = {
    "feature_dim": 0, "characters": "cnn", "cell": "lstm", "bidirectional": True, "backward_units": None,
    "recurrent_dropout": 0.0, "zoneout": 0.0, "residual": False, "layer_norm": False,
}  # fmt: skip
"""Hyper-parameters that must have these values here."""


class Split(NamedTuple):
    """Sentences: words [N, T], characters [N, T, W] and tags y [N, T], 0 where padded; lengths [N]."""

    words: Tensor
    characters: Tensor
    y: Tensor
    lengths: Tensor


class Batch(NamedTuple):
    """The same of some rows, time first and no longer than they are: [T, B], [T, B, W], [T, B], [B]; and the mask [T, B]."""

    words: Tensor
    characters: Tensor
    y: Tensor
    lengths: Tensor
    mask: Tensor


def split_of(reader: Any, data: Any) -> Split:
    """A data set by the ids of a `SequenceTagger`."""
    batch = reader.as_batch(data)
    mask = batch["mask"]
    if (batch["y"][mask] < 0).any() or not mask[:, 0].all():
        raise ValueError("the peer is for sentences of at least one token, each with a tag")
    arrays = (batch["x"] * mask, batch["characters"] * mask[..., None], batch["y"] * mask, mask.sum(1))
    return Split(*(torch.from_numpy(a).long() for a in arrays))


def take(split: Split, rows: np.ndarray) -> Batch:
    """A batch of these rows."""
    words, characters, y, lengths = (a[torch.from_numpy(rows)] for a in split)
    longest = int(lengths.max())
    width = max(1, int((characters > 0).sum(-1).max()))
    mask = torch.arange(longest)[:, None] < lengths
    return Batch(
        words[:, :longest].t().contiguous(),
        characters[:, :longest, :width].transpose(0, 1).contiguous(),
        y[:, :longest].t().contiguous(),
        lengths,
        mask,
    )


class Tagger(nn.Module):
    """Words and a convolution over their characters, a bidirectional LSTM between two locked dropouts, scores, softmax or CRF."""

    def __init__(
        self,
        vocabulary: int,
        alphabet: int,
        num_tags: int,
        *,
        embedding_dim: int,
        character_dim: int,
        character_units: int,
        units: list[int],
        dropout: float,
        token_dropout: float,
        head: str,
    ) -> None:
        super().__init__()
        self.dropout, self.token_dropout = dropout, token_dropout
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        self.letters = nn.Embedding(alphabet, character_dim, padding_idx=0)
        self.convolution = nn.Conv1d(character_dim, character_units, 3, padding=1)
        self.rnn = Bidirectional(embedding_dim + character_units, units, "directions")
        self.output = nn.Linear(2 * units[-1], num_tags)
        self.crf = CRF(num_tags) if head == "crf" else None
        with torch.no_grad():
            self._initialise()

    def _initialise(self) -> None:
        for table in (self.embedding.weight, self.letters.weight):
            spread = math.sqrt(3.0 / table.shape[1])
            nn.init.uniform_(table, -spread, spread)
        self.letters.weight[0] = 0.0
        for layer in (self.convolution, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for lstm in (*self.rnn.forward_rnns, *self.rnn.backward_rnns):
            nn.init.xavier_uniform_(lstm.weight_ih_l0)
            for gate in lstm.weight_hh_l0.chunk(4):
                nn.init.orthogonal_(gate)
            nn.init.zeros_(lstm.bias_ih_l0)
            lstm.bias_ih_l0.chunk(4)[1].fill_(1.0)  # of the forget gate
            nn.init.zeros_(lstm.bias_hh_l0)
            lstm.bias_hh_l0.requires_grad_(False)
        for weight in () if self.crf is None else self.crf.parameters():
            nn.init.zeros_(weight)

    def scores(self, batch: Batch) -> Tensor:
        """[T, B, tags]."""
        words = batch.words
        if self.training:
            words = words.masked_fill(torch.rand(words.shape) < self.token_dropout, 0)
        x = self._locked(torch.cat([self.embedding(words), self._spelling(batch.characters)], -1))
        return self.output(self._locked(self.rnn(x, None if batch.mask.all() else batch.lengths)))

    def _locked(self, x: Tensor) -> Tensor:
        """Dropout that is the same at all steps: x [T, B, D]."""
        return x * F.dropout(x.new_ones(x.shape[1:]), self.dropout) if self.training else x

    def _spelling(self, characters: Tensor) -> Tensor:
        """[T, B, W] -> [T, B, units]: the largest of each filter over real characters, zeros of a word without any."""
        ids = characters.flatten(0, 1)
        found = self.convolution(self.letters(ids).transpose(1, 2))  # [T B, units, W]
        found = found.masked_fill((ids == 0).unsqueeze(1), -math.inf).amax(-1)
        return found.masked_fill((ids[:, :1] == 0), 0.0).unflatten(0, characters.shape[:2])

    def loss(self, batch: Batch) -> Tensor:
        """Nats per real step."""
        scores = self.scores(batch)
        if self.crf is not None:
            return -self.crf(scores, batch.y, batch.mask, reduction="token_mean")
        y = torch.where(batch.mask, batch.y, _IGNORED)
        return F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=_IGNORED)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[list[int]]:
        """The best tags of each row."""
        scores = self.scores(batch)
        if self.crf is not None:
            return self.crf.decode(scores, batch.mask)
        return [row[:length] for row, length in zip(scores.argmax(-1).t().tolist(), batch.lengths.tolist(), strict=True)]


def network_for(reader: Any) -> Tagger:
    """The network of a `SequenceTagger`, with weights of its own."""
    config = reader.get_config()
    others = [name for name, value in _ONLY.items() if config[name] != value]
    if others or config["head"] not in ("softmax", "crf") or len(config["units"]) != 1:
        raise ValueError(
            f"the peer has one bidirectional LSTM, and softmax or CRF; received other {others or ['head', 'units']}."
        )
    names = ("embedding_dim", "character_dim", "character_units", "units", "dropout", "token_dropout", "head")
    return Tagger(reader.embedding.size, reader.characters.size, len(reader.tags), **{name: config[name] for name in names})


def epochs_of(
    network: Tagger,
    split: Split,
    seed: int,
    *,
    epochs: int = 100,
    batch_size: int = 20,
    batch_steps: int | None = None,
    learning_rate: float = 1e-3,
    clip_norm: float = 5.0,
    average: float = 0.0,
) -> Iterator[tuple[float, Tagger]]:
    """Trains; after each epoch its loss, nats per step, and the network with averaged weights. Settings as of `tfseq.train`."""
    from tfseq.data.batching import epoch_batches

    lengths = split.lengths.numpy()
    order = functools.partial(epoch_batches, lengths, batch_size, seed, batch_steps=batch_steps)
    num_steps = epochs * len(order(0))
    parameters = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(parameters, learning_rate, fused=True)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(average))  # the first update copies, as Keras's does
    averaged.eval()
    step = 0
    for epoch in range(epochs):
        network.train()
        total = 0.0
        for rows in order(epoch):
            batch = take(split, rows)
            optimizer.zero_grad(set_to_none=True)
            loss = network.loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, clip_norm)
            share = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (0.99 * share + 0.01)
                group["eps"] = 1e-7 / math.sqrt(1.0 - 0.999**step)
            optimizer.step()
            averaged.update_parameters(network)
            total += loss.item() * int(batch.lengths.sum())
        yield total / lengths.sum(), averaged.module


def evaluate(network: Tagger, split: Split, tags: list[str], scheme: str | None) -> dict[str, float]:
    """Share of tokens tagged right, and where tags mark entities F1 of exact entities, over all of them."""
    from tfseq.data.batching import epoch_batches
    from tfseq.schemes import entities

    right = correct = found = 0
    for rows in epoch_batches(split.lengths.numpy(), 50):
        batch = take(split, rows)
        for best, y, length in zip(network.predict(batch), batch.y.t().tolist(), batch.lengths.tolist(), strict=True):
            gold = y[:length]
            right += sum(a == b for a, b in zip(best, gold, strict=True))
            if scheme is not None:
                mine, true = (set(entities([tags[k] for k in row], scheme)) for row in (best, gold))
                correct += len(mine & true)
                found += len(mine) + len(true)
    scores = {"accuracy": right / int(split.lengths.sum())}
    return scores if scheme is None else {"entity_f1": 2 * correct / max(1, found), **scores}


_log = functools.partial(print, file=sys.stderr, flush=True)


def train_tagger(
    data_dir: Any,
    seed: int,
    *,
    hyperparameters: Mapping[str, Any],
    training: Mapping[str, Any],
    data: str = "wnut17",
    log: Callable[[str], None] = _log,
) -> dict[str, Any]:
    """Trains, chooses the epoch by the validation split, and reads the test split once.

    Args:
        data_dir: folder of already downloaded files, as of `tfseq.load_dataset`.
        seed: of the weights, of dropout, and of the order of the batches, which is tfseq's of the same seed.
        hyperparameters: of `tfseq.SequenceTagger`; constraints of a CRF are left out.
        training: settings of `tfseq.train`, of those that `epochs_of` has.
        data: the data set, with train, valid and test.
        log: is given one line an epoch.

    Returns:
        `entity_f1` (where tags mark entities) and `accuracy` of the test split, `validation` (the best, by entity F1, else by
        accuracy), `epochs`, `minutes` of training with its validations, and `versions`.
    """
    import tfseq

    train, valid = (tfseq.load_dataset(data, split, data_dir=data_dir) for split in ("train", "valid"))
    reader = tfseq.SequenceTagger.from_data(train, **hyperparameters)
    torch.set_num_threads(1)  # beside TensorFlow on two busy cores, two threads wait for each other for most of the time
    torch.manual_seed(seed)
    network = network_for(reader)
    score = functools.partial(evaluate, tags=list(reader.tags), scheme=reader.scheme)
    train, valid = split_of(reader, train), split_of(reader, valid)
    best, best_weights, epoch = -1.0, network.state_dict(), 0
    began = time.monotonic()
    for epoch, (loss, averaged) in enumerate(epochs_of(network, train, seed, **training), 1):
        value = score(averaged, valid)[reader.monitor]
        if value > best:
            best, best_weights = value, {name: weight.clone() for name, weight in averaged.state_dict().items()}
        seconds = time.monotonic() - began
        log(f"peer epoch {epoch} {seconds:.0f} s nats_per_step {loss:.3f} val_{reader.monitor} {value:.3f} best {best:.3f}")
    minutes = (time.monotonic() - began) / 60
    network.load_state_dict(best_weights)
    test = split_of(reader, tfseq.load_dataset(data, "test", data_dir=data_dir))
    return {
        **score(network.eval(), test),
        "validation": best,
        "epochs": epoch,
        "minutes": round(minutes, 2),
        "versions": {name: metadata.version(name) for name in ("torch", "pytorch-crf")},
    }


# The check ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def copy_weights(reader: Any, network: Tagger) -> None:
    """Those of a `SequenceTagger` into its peer."""
    import keras

    def copy(weight: Tensor, value: Any, *axes: int) -> None:
        weight.copy_(torch.from_numpy(keras.ops.convert_to_numpy(value).transpose(axes or None)))

    copy(network.embedding.weight, reader.embedding.table, 0, 1)
    copy(network.letters.weight, reader.characters.embedding, 0, 1)
    network.letters.weight[0] = 0.0
    copy(network.convolution.weight, reader.characters.kernel, 2, 1, 0)
    copy(network.convolution.bias, reader.characters.bias)
    for lstm, layer in zip((network.rnn.forward_rnns[0], network.rnn.backward_rnns[0]), reader.stack.layers[0], strict=True):
        copy(lstm.weight_ih_l0, layer.kernel, 1, 0)
        copy(lstm.weight_hh_l0, layer.recurrent_kernel, 1, 0)
        copy(lstm.bias_ih_l0, layer.bias)
    copy(network.output.weight, reader.output_layer.kernel, 1, 0)
    copy(network.output.bias, reader.output_layer.bias)
    if network.crf is not None:
        copy(network.crf.start_transitions, reader.crf.start)
        copy(network.crf.transitions, reader.crf.transition, 0, 1)
        copy(network.crf.end_transitions, reader.crf.end)


def check(tolerance: float = 1e-4) -> dict[str, float]:
    """The largest differences from tfseq, by head.

    Raises:
        ValueError: one is larger than `tolerance`, or the best tags are others.
    """
    import keras

    import tfseq

    rng = np.random.default_rng(0)
    words = np.array(["Ann", "Bo", "aaaa", "co-op", "ünïcödé", "a-very-long-word-of-letters", ".", "unseen", "Zürich"])
    tags = np.array(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    lengths = [7, 1, 4, 12, 2, 5, 9, 3]
    x, y = ([rng.choice(names, n) for n in lengths] for names in (words, tags))
    data = tfseq.Sequences(x, y=y)
    settings = {"epochs": 4, "batch_size": 3, "learning_rate": 0.01, "average": 0.8, "clip_norm": 0.5}
    differences: dict[str, float] = {}
    for head in ("crf", "softmax"):
        keras.utils.set_random_seed(0)
        known = {"vocabulary": words[:-2].tolist(), "alphabet": sorted(set("".join(words[:-1]))), "tags": sorted(set(tags))}
        shared = {"head": head, "constrained": False, "embedding_dim": 8, "character_units": 12, "units": [16]}
        reader = tfseq.SequenceTagger(**known, **shared, dropout=0.0, token_dropout=0.0)
        for weight in (reader.crf.weights if head == "crf" else []) + [reader.output_layer.bias, reader.characters.bias]:
            weight.assign(rng.normal(size=weight.shape))
        network, split = network_for(reader), split_of(reader, data)
        copy_weights(reader, network)
        for stage in ("copied", "trained"):
            if stage == "trained":  # the order of batches, the schedule, clipping, Adam and the average
                reader = tfseq.train(reader, data, seed=3, progress=False, **settings).model
                *_, (_, network) = epochs_of(network, split, 3, **settings)
            differences |= {f"{head}, {stage}, {name}": d for name, d in _differences(reader, network, data, split).items()}
    for name, difference in differences.items():
        _log(f"{name:36} {difference:.1e}")
    wrong = [name for name, difference in differences.items() if not difference <= tolerance]
    if wrong:
        raise ValueError(f"the peer is another network: {', '.join(wrong)}")
    return differences


def _differences(reader: Any, network: Tagger, data: Any, split: Split) -> dict[str, float]:
    """Of scores at real steps, of the log-likelihood of each row, of figures; and the share of best tags that are others."""
    import tfseq

    network.eval()
    complete = reader.complete(reader.as_batch(data))
    batch = take(split, np.arange(len(data)))
    mask = batch.mask.numpy()
    expected = reader.scores(complete).numpy().transpose(1, 0, 2)
    log_lik = reader.terms(complete).log_lik.numpy()
    best = reader.predict_tags(data).tags.numpy()[mask.T]
    with torch.no_grad():
        scores = network.scores(batch)
        if network.crf is not None:
            found = network.crf(scores, batch.y, batch.mask, reduction="none").numpy()
        else:
            found = scores.log_softmax(-1).gather(-1, batch.y[..., None])[..., 0].numpy().T * mask.T
        mine = np.array(list(itertools.chain(*network.predict(batch))))
    figures = tfseq.evaluate(reader, data)
    own = evaluate(network, split, list(reader.tags), reader.scheme)
    return {
        "scores": float(np.abs(scores.numpy() - expected)[mask].max()),
        "log-likelihood": float(np.abs(found - log_lik).max()),
        "best tags": float(np.mean(mine != best)),
        **{name: abs(value - figures[name]) for name, value in own.items()},
    }


def main() -> None:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="compare network and training with tfseq's")
    parser.parse_args()
    check()


if __name__ == "__main__":
    main()
