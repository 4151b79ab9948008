"""Sequence models for Keras 3 on TensorFlow: train with `fit`, report an honest likelihood, ship as a SavedModel.

Names resolve when they are used, so that `import tfseq` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "DATASETS": "tfseq.data",
    "load_dataset": "tfseq.data",
    "Sequences": "tfseq.data.batching",
    "Shards": "tfseq.data.shards",
    "write_shards": "tfseq.data.shards",
    "MODELS": "tfseq.models",
    "SequenceTagger": "tfseq.models.tagger",
    "SequenceClassifier": "tfseq.models.classifier",
    "LanguageModel": "tfseq.models.language_model",
    "Seq2Seq": "tfseq.models.seq2seq",
    "DeepMarkovModel": "tfseq.models.dmm",
    "VariationalRNN": "tfseq.models.vrnn",
    "RecurrentDensity": "tfseq.models.recurrent_density",
    "VariationalAutoencoder": "tfseq.models.vae",
    "HiddenMarkovModel": "tfseq.models.hmm",
    "LinearGaussianModel": "tfseq.models.kalman",
    "BoltzmannMachine": "tfseq.models.boltzmann_machine",
    "RBM": "tfseq.models.rbm",
    "DeepBeliefNetwork": "tfseq.models.dbn",
    "DeepBoltzmannMachine": "tfseq.models.dbm",
    "evaluate": "tfseq.evaluation",
    "export": "tfseq.exporting.saved_model",
    "keep_memory": "tfseq.allocator",
    "load": "tfseq.training",
    "train": "tfseq.training",
}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from tfseq.allocator import keep_memory
    from tfseq.data import DATASETS, load_dataset
    from tfseq.data.batching import Sequences
    from tfseq.data.shards import Shards, write_shards
    from tfseq.evaluation import evaluate
    from tfseq.exporting.saved_model import export
    from tfseq.models import MODELS
    from tfseq.models.boltzmann_machine import BoltzmannMachine
    from tfseq.models.classifier import SequenceClassifier
    from tfseq.models.dbm import DeepBoltzmannMachine
    from tfseq.models.dbn import DeepBeliefNetwork
    from tfseq.models.dmm import DeepMarkovModel
    from tfseq.models.hmm import HiddenMarkovModel
    from tfseq.models.kalman import LinearGaussianModel
    from tfseq.models.language_model import LanguageModel
    from tfseq.models.rbm import RBM
    from tfseq.models.recurrent_density import RecurrentDensity
    from tfseq.models.seq2seq import Seq2Seq
    from tfseq.models.tagger import SequenceTagger
    from tfseq.models.vae import VariationalAutoencoder
    from tfseq.models.vrnn import VariationalRNN
    from tfseq.training import load, train


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tfseq' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
