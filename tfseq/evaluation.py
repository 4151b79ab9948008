"""Likelihoods with their convention and a standard error, and honest baselines to hold them against."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfseq import checks
from tfseq.data.batching import Sequences, epoch_batches, stream
from tfseq.data.shards import Shards
from tfseq.layers.text import END, Text, as_texts
from tfseq.models.base import SequenceModel
from tfseq.models.energy import EnergyModel
from tfseq.models.language_model import LanguageModel
from tfseq.models.reader import Reader, is_raw, is_text
from tfseq.models.seq2seq import Seq2Seq
from tfseq.models.tagger import SequenceTagger
from tfseq.ops.scores import central_interval, crps

_ROWS_CHECKED = 100  # sequences that are looked at together before they are scored

LEVELS = (0.5, 0.8, 0.95)
"""Probabilities of the central intervals of forecasts whose coverage is reported."""

CONVENTIONS = {
    "accuracy": "share labelled right, higher is better",
    "entity_f1": "F1 of exact entities (type and both ends), micro average, higher is better",
    "error_rate": "edits per symbol of the transcription, lower is better",
    "bleu": "BLEU of the corpus, higher is better (see `protocol`)",
    "perplexity": "exp of the nats per token, lower is better",
    "bits_per_character": "exact -log2 p(x) / characters, lower is better",
    "nats_per_character": "sum of -log p / characters of the texts, unknown tokens scored as such, lower is better",
    "nats_per_token": "exact: sum of -log p / number of the tokens (tags, classes) predicted, lower is better",
    "dynamic_nats_per_token": "the same of weights that learn from each window once it is scored (dynamic evaluation)",
    "calibration_error": "expected |confidence - accuracy| over 15 bins of confidence, lower is better",
    "bound_per_step": "(b) pooled bound: sum of -ELBO / sum of steps",
    "importance_per_step": "(a) importance-sampled NLL: sum of -log mean weight / sum of steps",
    "bound_sequence_mean": "(c) mean over sequences of -ELBO / steps",
    "fivo_per_step": "(FIVO, N particles) bound: sum of -log p-hat / sum of steps",
    "log_prob_per_step": "exact NLL: sum of -log p(x) / sum of steps",
    "log_prob_per_sequence": "mean over sequences of log p(x), or of its bound (b); nats, higher is better",
    "crps": "continuous ranked probability score of forecasts, units of the data, lower is better",
    "forecast_error": "absolute error of the median of forecasts, units of the data, lower is better",
    "coverage": "share of the observations inside the central interval of forecasts; best is its level",
    "log_prob": "mean log p(v) of a vector, higher is better",
    "log_prob_reverse": "the same with log Z by reverse annealing, which errs the other way",
    "log_partition": "log Z",
    "log_partition_reverse": "log Z by reverse annealing",
    "reconstruction_error": "squared error of reconstructions, per visible unit",
}


def evaluate(
    model: SequenceModel,
    data: Sequences | Shards,
    *,
    num_samples: int = 100,
    num_particles: int = 0,
    forecast_steps: int = 0,
    forecast_samples: int = 200,
    forecast_origins: int = 1,
    batch_size: int = 20,
    num_chains: int = 100,
    num_temperatures: int = 14500,
    dynamic_rate: float = 0.0,
    dynamic_window: int = 40,
    seed: int = 0,
    baselines_from: Sequences | Shards | None = None,
) -> dict[str, Any]:
    """Likelihood of `data` under a model, in nats per step (lower is better): exact, or a bound in three conventions.

    Of Boltzmann machines it is the mean log p(v) of a vector (higher is better).

    Args:
        model: a model with `bounds`, or with an exact `log_prob`, or a Boltzmann machine.
        data: the sequences to score; empty ones contribute nothing. Shards are read into memory, where they fit.
        num_samples: samples of the guide for each sequence, for all figures; exact models need none.
        num_particles: particles of the filter behind `fivo_per_step`, of models with `filter_log_prob`; 0 for no such figure.
        forecast_steps: H, steps that are forecast and scored, of models with `forecast`; 0 for no forecasts.
        forecast_samples: continuations that make a forecast, at least 2.
        forecast_origins: forecasts of each sequence, of blocks of H steps that end 0, H, 2H, ... steps before its end.
        batch_size: sequences at once; it does not change the result beyond float32 rounding.
        num_chains: chains of the annealing that estimates log Z of a Boltzmann machine.
        num_temperatures: its inverse temperatures; small machines need neither.
        dynamic_rate: learning rate of a dynamic evaluation beside the exact one, of language models; 0 for none. To be chosen on
            validation data; see `LanguageModel.dynamic_log_prob`.
        dynamic_window: tokens between two of its steps.
        seed: decides the samples; each sequence has its own numbers.
        baselines_from: training data; the result then has `baselines` fitted to it: nats per step (binary data), nats per token
            (of a language model), or accuracy (of a tagger or a classifier); and `forecast_baselines`.

    Returns:
        `bound_per_step` (b), `importance_per_step` (a), `bound_sequence_mean` (c), `standard_error` (of (b), over sequences),
        `importance_standard_error` (of (a), over sequences), `num_samples`, `num_sequences`, `num_steps`, and `baselines`. Of
        exact models `log_prob_per_step`, `standard_error`, `num_sequences`, `num_steps`, and `baselines`. Of either, where the
        data are neither binary nor symbols, `log_prob_per_sequence` with its standard error; `fivo_per_step` with its; and
        what `score_forecasts` returns, and of its baselines the same in `forecast_baselines`: name -> figures. Of Boltzmann
        machines `log_prob`, `standard_error` (over vectors), `is_bound`, `protocol` (how grey values were presented),
        `log_partition`, and where it was annealed `log_partition_low`, `log_partition_high` (three standard errors of Z),
        `log_partition_reverse`, `log_prob_reverse`, `effective_sample_size`, `converged`; `reconstruction_error` alone where
        there is no likelihood. Of models of tokens or frames `nats_per_token` and what else applies of `CONVENTIONS`;
        `standard_error` is that of `accuracy`, and of a language model that of `nats_per_token`; with `dynamic_rate` there is
        `dynamic_nats_per_token`, of texts in their order by weights that go on learning. `nats_per_character`, of
        language models whose data are strings, is the same sum of -log p over the characters (code points, white space too) of
        the texts as they were given, the end of a text counted as one; of tokens, of what they are joined into. Unknown tokens
        are scored as such, so models of other units or vocabularies compare by it only where few tokens are unknown. `bleu` is
        that of a beam of four; its `protocol` says whether the references are the raw targets or joined from their tokens.
    """
    checks.at_least(1, num_samples=num_samples, batch_size=batch_size)
    data = data.read() if isinstance(data, Shards) else data
    baselines_from = baselines_from.read() if isinstance(baselines_from, Shards) else baselines_from
    if data.lengths.sum() == 0:
        raise ValueError(f"`data` has no steps (data set {data.name!r}, split {data.split!r}); there is nothing to score.")
    checks.at_least(0, num_particles=num_particles, forecast_steps=forecast_steps)
    if num_particles and not hasattr(model, "filter_log_prob"):
        raise ValueError(f"`num_particles` must be 0 for a {type(model).__name__}, which has no `filter_log_prob`.")
    if forecast_steps:  # before the work of the likelihoods
        _check_forecasts(model, data, forecast_steps, forecast_samples, forecast_origins)
    if dynamic_rate and not isinstance(model, LanguageModel):
        raise ValueError(f"`dynamic_rate` is for language models; received {dynamic_rate} with a {type(model).__name__}.")
    if not 0.0 <= dynamic_rate < math.inf:
        raise ValueError(f"`dynamic_rate` must be a number of at least 0; received {dynamic_rate}.")
    checks.at_least(1, dynamic_window=dynamic_window)
    if isinstance(model, Reader):
        return _reader_figures(model, data, batch_size, baselines_from, dynamic_rate, dynamic_window)
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
        result |= _per_sequence(log_prob, data)
    else:
        key = _key(seed)
        elbo, importance = np.zeros([2, len(data)])
        for batch in stream(data, batch_size):
            rows = batch["row"].numpy()
            elbo[rows], importance[rows] = (np.asarray(a) for a in model.bounds(batch, num_samples, key))
        result["bound_per_step"], result["standard_error"] = _per_step(-elbo, lengths)
        result["importance_per_step"], result["importance_standard_error"] = _per_step(-importance, lengths)
        result["bound_sequence_mean"] = float(np.mean(-elbo[lengths > 0] / lengths[lengths > 0]))
        result["num_samples"] = num_samples
        result |= _per_sequence(elbo, data)
    if num_particles:
        estimate = np.zeros(len(data))
        for batch in stream(replace(data, y=None), batch_size):
            estimate[batch["row"].numpy()] = np.asarray(
                model.filter_log_prob(batch, num_particles=num_particles, seed=_key(seed))
            )
        result["fivo_per_step"], result["fivo_standard_error"] = _per_step(-estimate, lengths)
        result["num_particles"] = num_particles
    if forecast_steps:
        scored = (model, data, forecast_steps, forecast_samples, forecast_origins, batch_size, seed)
        result |= score_forecasts(*scored)
        if baselines_from is not None:
            result["forecast_baselines"] = {}
            for name, baseline in (("climatology", Climatology), ("random walk", RandomWalk)):
                found = score_forecasts(baseline(baselines_from), *scored[1:])
                del found["forecast_protocol"]
                result["forecast_baselines"][name] = found
    result |= {"num_sequences": len(data), "num_steps": int(lengths.sum())}
    if baselines_from is not None and is_binary(data):
        result["baselines"] = baselines(baselines_from, data)
    return result


def _key(seed: int) -> tf.Tensor:
    """The seed of a model's methods, `[2]`."""
    return tf.constant(np.random.default_rng(seed).integers(0, 2**31 - 1, 2), tf.int32)


def _per_sequence(log_prob: np.ndarray, data: Sequences) -> dict[str, float]:
    """Mean of `log_prob` `[N]` over the sequences that have steps, and its standard error; nothing of binary data and symbols."""
    if _is_symbols(data) or all(np.isin(a, (0, 1)).all() for a in data.x):
        return {}
    real = log_prob[data.lengths > 0]
    with np.errstate(invalid="ignore"):  # log 0, of what the model rules out
        error = float(real.std(ddof=1) / np.sqrt(len(real))) if len(real) > 1 else float("nan")
    return {"log_prob_per_sequence": float(real.mean()), "per_sequence_standard_error": error}


def _is_symbols(data: Sequences) -> bool:
    return np.ndim(data.x[0]) == 1


# Forecasts --------------------------------------------------------------------------------------------------------------


def _check_forecasts(model: Any, data: Sequences, num_steps: int, num_samples: int, num_origins: int) -> None:
    """Raises where forecasts cannot be made, or not be scored."""
    checks.at_least(2, forecast_samples=num_samples)
    checks.at_least(1, forecast_origins=num_origins)
    if isinstance(model, Reader) or not hasattr(model, "forecast"):
        raise ValueError(f"`forecast_steps` must be 0 for a {type(model).__name__}, which does not forecast.")
    if _is_symbols(data):
        raise ValueError(
            f"`forecast_steps` must be 0 for symbols (data set {data.name!r}): they have no order, so CRPS and intervals do not "
            "apply. `log_prob_per_step` scores their one-step forecasts."
        )
    if data.lengths.max() <= num_steps:
        raise ValueError(
            f"`forecast_steps` must be below the length of some sequence, which is then forecast from its first steps; received "
            f"{num_steps}, and the longest of data set {data.name!r} has {data.lengths.max()}."
        )


def score_forecasts(
    model: Any,
    data: Sequences,
    num_steps: int,
    num_samples: int = 200,
    num_origins: int = 1,
    batch_size: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """How good a model's forecasts of the last `num_steps` steps of each sequence are, given all steps before.

    With several origins also of the blocks of H steps before these, each given what comes before it and scored alike; a sequence
    has as many as leave a step to begin with. Controls of the steps to come are given, since the caller sets them. Only values
    that were observed are scored, and each counts the same.

    Args:
        model: what has `forecast(batch, num_steps=, num_samples=, seed=)` -> samples `[B, S, H, D]`.
        data: sequences `[T_i, D]` of numbers; those of at most H steps are left out.
        num_steps: H.
        num_samples: S.
        num_origins: forecasts of each sequence, at most.
        batch_size: forecasts at once.
        seed: decides the samples.

    Returns:
        `crps` and `forecast_error` (of the median) in units of the data; `coverage`, level -> share, of the central intervals (of
        discrete values, such as binary ones, it may well be above its level); of these `crps_standard_error`,
        `forecast_standard_error` and `coverage_standard_error`, over sequences; `forecast_per_feature`, the three of each
        feature, `[D]`, NaN where it was never observed; `forecast_protocol`, for people.
    """
    origins = [
        (row, end) for row, length in enumerate(data.lengths) for end in range(int(length), num_steps, -num_steps)[:num_origins]
    ]
    rows = np.array([row for row, _ in origins])
    fields = [name for name in ("x", "observed", "u") if getattr(data, name) is not None]
    before: dict[str, Any] = {name: [getattr(data, name)[row][: end - num_steps] for row, end in origins] for name in fields}
    after = {name: np.stack([getattr(data, name)[row][end - num_steps : end] for row, end in origins]) for name in fields}
    seen = after.get("observed", np.ones(after["x"].shape, bool))
    if not seen.any():
        raise ValueError(f"`data` has no observed value in the steps to forecast (data set {data.name!r}); nothing to score.")
    sums = np.zeros([2 + len(LEVELS), len(rows), seen.shape[-1]])
    for batch in stream(Sequences(**before, name=data.name), batch_size):
        now = batch["row"].numpy()
        future = {"future_u": after["u"][now]} if "u" in fields else {}
        samples = np.asarray(model.forecast(batch, num_steps=num_steps, num_samples=num_samples, seed=_key(seed), **future))
        x = np.where(seen[now], after["x"][now], 0.0)
        found = [crps(samples, x, axis=1), np.abs(np.median(samples, 1) - x)]
        for level in LEVELS:
            low, high = central_interval(samples, level, axis=1)
            found.append((low <= x) & (x <= high))
        sums[:, now] = np.where(seen[now], found, 0.0).sum(2)
    counts = seen.sum(1).astype(np.float64)  # [N, D]
    # of each sequence, since its forecasts are not independent
    num, *per_row = (np.bincount(rows, values, len(data)) for values in (counts.sum(1), *sums.sum(2)))
    (score, error, *shares), (score_error, error_error, *share_errors) = zip(
        *(_per_step(values[num > 0], num[num > 0]) for values in per_row), strict=True
    )
    with np.errstate(invalid="ignore"):  # a feature that is never observed has no score
        score_of, error_of, *shares_of = (sums.sum(1) / counts.sum(0)).tolist()
    which = f"the last {num_steps} steps" if num_origins == 1 else f"up to {num_origins} blocks of {num_steps} steps from the end"
    controls = ", their controls given" if "u" in fields else ""
    return {
        "crps": score,
        "crps_standard_error": score_error,
        "forecast_error": error,
        "forecast_standard_error": error_error,
        "coverage": dict(zip(LEVELS, shares, strict=True)),
        "coverage_standard_error": dict(zip(LEVELS, share_errors, strict=True)),
        "forecast_per_feature": {
            "crps": score_of,
            "forecast_error": error_of,
            "coverage": dict(zip(LEVELS, shares_of, strict=True)),
        },
        "forecast_protocol": f"{which} of each sequence given all steps before{controls}: {len(rows)} forecasts of "
        f"{len(set(rows.tolist()))} of {len(data)} sequences, {num_samples} samples each",
    }


class Climatology:
    """Forecasts every value by draws from the training values of its feature, whatever came before."""

    def __init__(self, train: Sequences) -> None:
        self.values = _observed_of_each_feature(train)

    def forecast(self, batch: Any, num_steps: int, num_samples: int, seed: Any) -> np.ndarray:
        """Samples `[B, S, H, D]`; those of a row depend only on the seed and the row."""
        shape, keys = (num_samples, num_steps), np.asarray(seed).tolist()
        rngs = [np.random.default_rng([*keys, row]) for row in np.asarray(batch["row"]).tolist()]
        return np.stack([np.stack([_draws(a, shape, rng) for a in self.values], -1) for rng in rngs])


class RandomWalk:
    """Forecasts persistence: the last observed value, plus for each step since a draw from the feature's training differences.

    A feature that was not observed before starts from a draw of `Climatology`. Walks of binary data are cut to [0, 1].
    """

    def __init__(self, train: Sequences) -> None:
        self.values = _observed_of_each_feature(train)
        found = _observed_of_each_feature(train, differences=True)
        self.differences = [a if len(a) else np.zeros(1) for a in found]  # where nothing is known of them, the value stays
        self.is_binary = is_binary(replace(train, observed=None))

    def forecast(self, batch: Any, num_steps: int, num_samples: int, seed: Any) -> np.ndarray:
        """Samples `[B, S, H, D]`; those of a row depend only on the seed and the row."""
        x, mask, keys = np.asarray(batch["x"], np.float64), np.asarray(batch["mask"]), np.asarray(seed).tolist()
        seen = mask[..., None] & (np.asarray(batch["observed"]) if "observed" in batch else np.ones(x.shape, bool))
        walks = np.zeros([len(x), num_samples, num_steps, x.shape[2]])
        for i, row in enumerate(np.asarray(batch["row"]).tolist()):
            rng = np.random.default_rng([*keys, row])
            for d, (values, differences) in enumerate(zip(self.values, self.differences, strict=True)):
                [times] = np.nonzero(seen[i, :, d])
                start = x[i, times[-1], d] if len(times) else _draws(values, (num_samples, 1), rng)
                gap = mask[i].sum() - 1 - times[-1] if len(times) else 0  # steps since that were not observed
                walk = _draws(differences, (num_samples, gap + num_steps), rng).cumsum(1)[:, gap:]
                walks[i, :, :, d] = start + walk
        return walks.clip(0.0, 1.0) if self.is_binary else walks


def _observed_of_each_feature(data: Sequences, differences: bool = False) -> list[np.ndarray]:
    """The observed values of each feature over all sequences; or the differences of consecutive steps, both observed."""
    found = []
    for i, x in enumerate(data.x):
        seen = np.ones(x.shape, bool) if data.observed is None else np.asarray(data.observed[i])
        a = np.where(seen, np.asarray(x, np.float64), np.nan)
        found.append(np.diff(a, axis=0) if differences else a)
    return [a[~np.isnan(a)] for a in np.concatenate(found).T]


def _draws(values: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws with replacement; NaN where there is nothing to draw from."""
    return rng.choice(values, shape) if len(values) else np.full(shape, np.nan)


def _reader_figures(
    model: Reader, data: Sequences, batch_size: int, train: Sequences | None, dynamic_rate: float, dynamic_window: int
) -> dict[str, Any]:
    """What is to be said of a model of tokens or frames."""
    result: dict[str, Any] = {}
    given, data = data, model.prepare(data)
    if data.y is not None or data.target is not None:
        for rows in epoch_batches(data.lengths, _ROWS_CHECKED):  # a stream could not say which sequence has an unknown label
            model.as_batch(data.take(rows))
    wanted = "target" if isinstance(model, Seq2Seq) or getattr(model, "head", "") == "ctc" else "y"
    if not isinstance(model, LanguageModel) and getattr(data, wanted) is None:
        raise ValueError(
            f"`data` must have `{wanted}`, what a {type(model).__name__} should have said, to be scored; the data set "
            f"{data.name!r} has none."
        )
    if isinstance(model, LanguageModel):
        log_prob, lengths, of_text, num_characters = np.zeros(len(data)), data.lengths, is_text(given.x), 0
        for batch in stream(data if model.conditional else replace(data, y=None), batch_size):
            log_prob[batch["row"].numpy()] = np.asarray(model.log_prob(batch))
            if of_text:
                num_characters += int(tf.reduce_sum(tf.strings.length(_texts(model.text, given.x, batch, "x"), "UTF8_CHAR")))
                num_characters += int(tf.math.count_nonzero(batch["mask"] & (batch["x"] == END)))
        nats, error = _per_step(-log_prob, lengths)
        result |= {"nats_per_token": nats, "standard_error": error, "perplexity": float(np.exp(nats))}
        if model.text.unit == "characters":
            result["bits_per_character"] = nats / float(np.log(2.0))
        if of_text:
            result["nats_per_character"] = float(-log_prob.sum() / num_characters)
        if dynamic_rate:
            in_order = data if model.conditional else replace(data, y=None)
            found = model.dynamic_log_prob(in_order, learning_rate=dynamic_rate, window=dynamic_window)
            result |= {"dynamic_nats_per_token": float(-found.sum() / lengths.sum()), "dynamic_rate": dynamic_rate}
            result["dynamic_window"] = dynamic_window
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
        result |= _bleu(model, data, given.target, batch_size)
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


def _texts(text: Text, given: Any, batch: dict[str, tf.Tensor], name: str) -> tf.Tensor:
    """The texts `[B]` of a batch's entry: of raw ones `given` they are these, of tokens or ids what they are joined into."""
    if is_raw(given):
        return as_texts([given[row] for row in batch["row"].numpy()], name)
    tokens = batch[name] if batch[name].dtype == tf.string else text.to_tokens(batch[name])
    return text.join(tokens, batch["mask" if name == "x" else f"{name}_mask"] & (tokens != END))


def _bleu(model: Seq2Seq, data: Sequences, given: Any, batch_size: int) -> dict[str, Any]:
    """BLEU of the translations, joined by the model's own rules, against the raw targets `given`, or these joined alike."""
    try:
        import sacrebleu
    except ImportError:
        return {"protocol": 'no BLEU: it needs the package sacrebleu (pip install "tfseq[text]")'}
    said: list[str] = [""] * len(data)
    wanted = list(said)
    text = model.target_text
    for batch in stream(data, batch_size):
        answers = model.translate({k: v for k, v in batch.items() if not k.startswith("target")}).numpy()
        truths = _texts(text, given, batch, "target").numpy()
        for row, answer, truth in zip(batch["row"].numpy(), answers, truths, strict=True):
            said[row], wanted[row] = answer.decode(), truth.decode("utf-8", "replace")
    metric = sacrebleu.BLEU(lowercase=text.lowercase)
    score = metric.corpus_score(said, [wanted]).score  # before the signature, which counts the references
    references = "raw targets" if is_raw(given) else "targets joined from tokens"
    return {"bleu": score, "protocol": f"beam of 4, references: {references}, {metric.get_signature()}"}


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
