"""Likelihoods with their convention and a standard error, and honest baselines to hold them against."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.data.batching import Sequences, stream
from tfseq.models.base import SequenceModel
from tfseq.models.energy import EnergyModel
from tfseq.models.language_model import LanguageModel
from tfseq.models.reader import Reader
from tfseq.models.seq2seq import Seq2Seq
from tfseq.models.tagger import SequenceTagger

CONVENTIONS = {
    "accuracy": "share labelled right, higher is better",
    "entity_f1": "F1 of exact entities (type and both ends), micro average, higher is better",
    "error_rate": "edits per symbol of the transcription, lower is better",
    "bleu": "BLEU of the corpus, higher is better (see `protocol`)",
    "perplexity": "exp of the nats per token, lower is better",
    "bits_per_character": "exact -log2 p(x) / characters, lower is better",
    "nats_per_token": "exact: sum of -log p / number of the tokens (tags, classes) predicted, lower is better",
    "calibration_error": "expected |confidence - accuracy| over 15 bins of confidence, lower is better",
    "bound_per_step": "(b) pooled bound: sum of -ELBO / sum of steps",
    "importance_per_step": "(a) importance-sampled NLL: sum of -log mean weight / sum of steps",
    "bound_sequence_mean": "(c) mean over sequences of -ELBO / steps",
    "log_prob_per_step": "exact NLL: sum of -log p(x) / sum of steps",
    "log_prob": "mean log p(v) of a vector, higher is better",
    "log_prob_reverse": "the same with log Z by reverse annealing, which errs the other way",
    "log_partition": "log Z",
    "log_partition_reverse": "log Z by reverse annealing",
    "reconstruction_error": "squared error of reconstructions, per visible unit",
}


def evaluate(
    model: SequenceModel,
    data: Sequences,
    *,
    num_samples: int = 100,
    batch_size: int = 20,
    num_chains: int = 100,
    num_temperatures: int = 14500,
    seed: int = 0,
    baselines_from: Sequences | None = None,
) -> dict[str, Any]:
    """Likelihood of `data` under a model, in nats per step (lower is better): exact, or a bound in three conventions.

    Of Boltzmann machines it is the mean log p(v) of a vector (higher is better).

    Args:
        model: a model with an exact `log_prob`, or with `bounds`, or a Boltzmann machine.
        data: the sequences to score; empty ones contribute nothing.
        num_samples: samples of the guide for each sequence, for all figures; exact models need none.
        batch_size: sequences at once; it does not change the result beyond float32 rounding.
        num_chains: chains of the annealing that estimates log Z of a Boltzmann machine.
        num_temperatures: its inverse temperatures; small machines need neither.
        seed: decides the samples; each sequence has its own numbers.
        baselines_from: training data; the result then has `baselines` fitted to it: nats per step (binary data), nats per token
            (of a language model), or accuracy (of a tagger or a classifier).

    Returns:
        `bound_per_step` (b), `importance_per_step` (a), `bound_sequence_mean` (c), `standard_error` (of (b), over sequences),
        `importance_standard_error` (of (a), over sequences), `num_samples`, `num_sequences`, `num_steps`, and `baselines`. Of
        exact models `log_prob_per_step`, `standard_error`, `num_sequences`, `num_steps`, and `baselines`. Of Boltzmann
        machines `log_prob`, `standard_error` (over vectors), `is_bound`, `protocol` (how grey values were presented),
        `log_partition`, and where it was annealed `log_partition_low`, `log_partition_high` (three standard errors of Z),
        `log_partition_reverse`, `log_prob_reverse`, `effective_sample_size`, `converged`; `reconstruction_error` alone where
        there is no likelihood. Of models of tokens or frames `nats_per_token` and what else applies of `CONVENTIONS`;
        `standard_error` is that of `accuracy`, and of a language model that of `nats_per_token`.
    """
    checks.at_least(1, num_samples=num_samples, batch_size=batch_size)
    if data.lengths.sum() == 0:
        raise ValueError(f"`data` has no steps (data set {data.name!r}, split {data.split!r}); there is nothing to score.")
    if isinstance(model, Reader):
        return _reader_figures(model, model.prepare(data), batch_size, baselines_from)
    lengths = data.lengths
    result: dict[str, Any] = {}
    if isinstance(model, EnergyModel):
        annealing = {"num_chains": num_chains, "num_temperatures": num_temperatures}
        result |= _energy_figures(model, data, batch_size, num_samples, annealing, seed)
    elif hasattr(model, "log_prob"):
        log_prob = np.zeros(len(data))
        for batch in stream(replace(data, y=None), batch_size):  # p(x), and not p(x, labels)
            log_prob[batch["row"].numpy()] = np.asarray(model.log_prob(batch))
        result["log_prob_per_step"], result["standard_error"] = _per_step(-log_prob, lengths)
    else:
        key = tf.constant(np.random.default_rng(seed).integers(0, 2**31 - 1, 2), tf.int32)
        elbo, importance = np.zeros([2, len(data)])
        for batch in stream(data, batch_size):
            rows = batch["row"].numpy()
            elbo[rows], importance[rows] = (np.asarray(a) for a in model.bounds(batch, num_samples, key))
        result["bound_per_step"], result["standard_error"] = _per_step(-elbo, lengths)
        result["importance_per_step"], result["importance_standard_error"] = _per_step(-importance, lengths)
        result["bound_sequence_mean"] = float(np.mean(-elbo[lengths > 0] / lengths[lengths > 0]))
        result["num_samples"] = num_samples
    result |= {"num_sequences": len(data), "num_steps": int(lengths.sum())}
    if baselines_from is not None:
        result["baselines"] = baselines(baselines_from, data)
    return result


def _reader_figures(model: Reader, data: Sequences, batch_size: int, train: Sequences | None) -> dict[str, Any]:
    """What is to be said of a model of tokens or frames; `data` is prepared."""
    result: dict[str, Any] = {}
    wanted = "target" if isinstance(model, Seq2Seq) or getattr(model, "head", "") == "ctc" else "y"
    if not isinstance(model, LanguageModel) and getattr(data, wanted) is None:
        raise ValueError(
            f"`data` must have `{wanted}`, what a {type(model).__name__} should have said, to be scored; the data set "
            f"{data.name!r} has none."
        )
    if isinstance(model, LanguageModel):
        log_prob, lengths = np.zeros(len(data)), data.lengths
        for batch in stream(data if model.conditional else replace(data, y=None), batch_size):
            log_prob[batch["row"].numpy()] = np.asarray(model.log_prob(batch))
        nats, error = _per_step(-log_prob, lengths)
        result |= {"nats_per_token": nats, "standard_error": error, "perplexity": float(np.exp(nats))}
        if model.text.unit == "characters":
            result["bits_per_character"] = nats / float(np.log(2.0))
        if train is not None:
            result["baselines"] = {"unigram": _unigram(model, model.prepare(train), data)}
        return result | {"num_sequences": len(data), "num_steps": int(lengths.sum())}
    if not getattr(model, "compiled", False):
        model.compile("sgd")
    found = model.evaluate(stream(data, batch_size), verbose=0, return_dict=True)
    result["nats_per_token"] = found.pop("nats_per_step")
    result |= {name: value for name, value in found.items() if name != "loss"}
    if isinstance(model, Seq2Seq):
        result["perplexity"] = float(np.exp(result["nats_per_token"]))
        result |= _bleu(model, data, batch_size)
    elif not isinstance(model, SequenceTagger) or model.head != "ctc":
        right, confidence, rows = _judged(model, data, batch_size)
        per_row = np.bincount(rows, minlength=len(data)).astype(float)
        wrong = np.bincount(rows, weights=1.0 - right, minlength=len(data))
        _, result["standard_error"] = _per_step(wrong, per_row)
        result["calibration_error"] = calibration_error(confidence, right)
        if train is not None:
            result["baselines"] = label_baselines(model.prepare(train), data)
    return result | {"num_sequences": len(data), "num_steps": int(data.lengths.sum())}


def _judged(model: Any, data: Sequences, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each label that is known: whether the model's is right, how sure it was of it, and its sequence."""
    right, confidence, rows = [], [], []
    for batch in stream(data, batch_size):
        checked = model.as_batch(batch)
        if isinstance(model, SequenceTagger):
            tags, score = (a.numpy() for a in model.predict_tags(batch))
            known = checked["mask"] & (checked["y"] >= 0)
            right.append((tags == checked["y"])[known])
            confidence.append(score[known])
            rows.append(np.broadcast_to(checked["row"][:, None], known.shape)[known])
        else:
            label, probs = (a.numpy() for a in model.classify(batch))
            known = checked["mask"].any(1) & (checked["y"] >= 0)
            right.append((label == checked["y"])[known])
            confidence.append(probs.max(-1)[known])
            rows.append(checked["row"][known])
    return np.concatenate(right).astype(float), np.concatenate(confidence), np.concatenate(rows)


def calibration_error(confidence: np.ndarray, right: np.ndarray, num_bins: int = 15) -> float:
    """sum over bins of (share of the answers in it) |mean confidence - share that is right| (Guo et al. 2017, eq. 3).

    Args:
        confidence: probability that the model gives each of its answers, `[N]`.
        right: whether it is right, `[N]`.
        num_bins: bins of equal width.
    """
    if not len(confidence):
        return float("nan")
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _bleu(model: Seq2Seq, data: Sequences, batch_size: int) -> dict[str, Any]:
    """BLEU of the translations against the targets, both joined from tokens by the model's own rules."""
    try:
        import sacrebleu
    except ImportError:
        return {"protocol": 'no BLEU: it needs the package sacrebleu (pip install "tfseq[text]")'}
    said: list[str] = [""] * len(data)
    wanted = list(said)
    text = model.target_text
    for batch in stream(data, batch_size):
        checked = model.as_batch(batch)
        answers = model.translate({k: v for k, v in batch.items() if not k.startswith("target")}).numpy()
        target, mask = batch["target"], checked["target_mask"] & (checked["target"] != model.end)
        for row, answer, truth in zip(batch["row"].numpy(), answers, text.join(target, mask).numpy(), strict=True):
            said[row], wanted[row] = answer.decode(), truth.decode()
    metric = sacrebleu.BLEU(lowercase=text.lowercase)
    return {"bleu": metric.corpus_score(said, [wanted]).score, "protocol": f"beam of 4, {metric.get_signature()}"}


def _unigram(model: LanguageModel, train: Sequences, test: Sequences) -> float:
    """Each token with its frequency in `train`, independent of all others: nats per token of `test`."""
    counts = np.ones(model.size)
    nats, num = 0.0, 0
    for data in (train, test):
        for tokens in data.x:
            ids = (
                model.text.to_ids(tf.constant(np.asarray(tokens, str))).numpy()
                if np.asarray(tokens).dtype.kind == "U"
                else tokens
            )
            if data is train:
                counts += np.bincount(ids, minlength=model.size)
            else:
                nats -= float(np.log(counts / counts.sum())[ids].sum())
                num += len(ids)
    return nats / num


def _energy_figures(
    model: EnergyModel, data: Sequences, batch_size: int, num_samples: int, annealing: dict[str, Any], seed: int
) -> dict[str, Any]:
    """What is to be said of a Boltzmann machine."""
    result: dict[str, Any] = {"protocol": model.protocol(data.x)}
    batches = stream(replace(data, y=None), batch_size)
    if not model.has_likelihood:
        if not getattr(model, "compiled", False):
            model.compile("sgd")
        return result | {model.monitor: model.evaluate(batches, verbose=0, return_dict=True)[model.monitor]}
    found = model.log_partition(seed=[seed, 0], **annealing)
    settings = {"num_samples": num_samples} if "num_samples" in inspect.signature(model.log_prob).parameters else {}
    log_prob, lengths = np.zeros(len(data)), data.lengths
    for batch in batches:
        log_prob[batch["row"].numpy()] = np.asarray(model.log_prob(batch, log_partition=found, **settings))
    mean, error = _per_step(log_prob, lengths)
    result |= {"log_prob": mean, "standard_error": error, "is_bound": model.is_bound, "log_partition": found.value}
    if found.method == "ais":
        result |= {
            "log_partition_low": found.low,
            "log_partition_high": found.high,
            "log_partition_reverse": found.reverse,
            "log_prob_reverse": mean + found.value - found.reverse,
            "effective_sample_size": found.ess,
            "converged": found.converged,
            **annealing,
        }
    return result | ({**settings} if settings else {})


def _per_step(nats: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """Pooled nats per step and its standard error over sequences (that of a ratio of means)."""
    ratio = nats.sum() / lengths.sum()
    residuals = nats - ratio * lengths
    num = len(nats)
    error = np.sqrt(num / max(num - 1, 1) * np.sum(residuals**2)) / lengths.sum()
    return float(ratio), float(error) if num > 1 else float("nan")


def is_binary(data: Sequences) -> bool:
    """Whether every observation is 0 or 1, so that the baselines apply."""
    return all(a.ndim == 2 and np.isin(a, (0, 1)).all() for a in data.x) and data.observed is None


def baselines(train: Sequences, test: Sequences) -> dict[str, float]:
    """Pooled nats per step of `test` under `train_mean_bernoulli` and `per_feature_markov` fitted to `train`."""
    return {
        "train-mean Bernoulli": train_mean_bernoulli(train.x, test.x),
        "per-note Markov": per_feature_markov(train.x, test.x),
    }


def _nats(x: np.ndarray, p: np.ndarray) -> float:
    return float(-np.sum(x * np.log(p) + (1.0 - x) * np.log1p(-p)))


def train_mean_bernoulli(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> float:
    """Each feature on with its frequency in `train`, independent of everything: nats per step of `test`.

    The frequency is that of the steps and one more step that is half on.
    """
    rows = np.concatenate(train).astype(np.float64)
    p = (rows.sum(0) + 0.5) / (len(rows) + 1.0)
    steps = np.concatenate(test).astype(np.float64)
    return _nats(steps, p) / len(steps)


def per_feature_markov(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> float:
    """Each feature a Markov chain of its own, fitted to `train`: nats per step of `test`.

    The first step has the frequencies of `train_mean_bernoulli`; those after it are smoothed in the same way.
    """
    before, now = (np.concatenate([a[part] for a in train]).astype(np.float64) for part in (np.s_[:-1], np.s_[1:]))
    off_on, on_on = (((w * now).sum(0) + 0.5) / (w.sum(0) + 1.0) for w in (1.0 - before, before))
    steps = np.concatenate(train).astype(np.float64)
    first = (steps.sum(0) + 0.5) / (len(steps) + 1.0)
    nats = 0.0
    for x in test:
        nats += _nats(x[:1], first) + _nats(x[1:], np.where(x[:-1] > 0.5, on_on, off_on))
    return nats / sum(len(x) for x in test)


def label_baselines(train: Sequences, test: Sequences) -> dict[str, float]:
    """Accuracy on `test` of the most frequent label in `train`; of labels of tokens, of the most frequent one of each token.

    A token that `train` does not have gets the most frequent label of all. Labels that are not known do not count.
    """
    if train.y is None or test.y is None:
        return {}
    pairs: Counter[tuple[Any, Any]] = Counter(_labelled(train))
    overall: Counter[Any] = Counter()
    for (_, label), count in pairs.items():
        overall[label] += count
    if not overall:
        return {}
    best = overall.most_common(1)[0][0]
    of_token = {token: label for (token, label), _ in reversed(pairs.most_common())}
    answers = [(of_token.get(token, best), label) for token, label in _labelled(test)]
    name = "most frequent class" if None in of_token else "most frequent tag of each token"
    return {name: sum(answer == label for answer, label in answers) / max(1, len(answers))}


def _labelled(data: Sequences) -> Iterator[tuple[Any, Any]]:
    """Each label that is known, and its token: None where it is of a whole sequence, or of a frame."""
    for x, y in zip(data.x, () if data.y is None else data.y, strict=True):
        labels = np.reshape(y, -1).tolist()
        tokens = np.asarray(x).tolist() if np.ndim(x) == 1 and np.ndim(y) == 1 else [None] * len(labels)
        yield from ((token, label) for token, label in zip(tokens, labels, strict=True) if label not in ("", -1))
