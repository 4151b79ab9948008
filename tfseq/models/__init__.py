"""MODELS: name -> where the class is and a one-line summary; resolved when used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from tfseq import checks

if TYPE_CHECKING:
    from tfseq.models.base import SequenceModel


class Entry(NamedTuple):
    """A row of the table."""

    target: str
    summary: str


class Models(Mapping[str, type["SequenceModel"]]):
    """Name -> model class; the class is imported when it is asked for."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> type[SequenceModel]:
        checks.choice("model", name, self.entries)
        module, _, attribute = self.entries[name].target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


MODELS = Models(
    {
        "tagger": Entry(
            "tfseq.models.tagger:SequenceTagger",
            "Tagger: bidirectional LSTM or GRU with softmax, CRF or CTC head (Lample et al. 2016, Graves et al. 2006)",
        ),
        "classifier": Entry(
            "tfseq.models.classifier:SequenceClassifier",
            "Classifier of whole sequences: recurrent network, pooling by last state, mean, max or attention (Yang et al. 2016)",
        ),
        "lm": Entry(
            "tfseq.models.language_model:LanguageModel",
            "Language model of characters, words or subwords: LSTM or GRU, AWD regularisers, beams (Merity et al. 2018)",
        ),
        "seq2seq": Entry(
            "tfseq.models.seq2seq:Seq2Seq",
            "Encoder and decoder for translation: Bahdanau or Luong attention, beam search (Bahdanau et al. 2015)",
        ),
        "hmm": Entry(
            "tfseq.models.hmm:HiddenMarkovModel",
            "Hidden Markov model: exact inference; gradient, EM, MAP or variational Bayes (Rabiner 1989, Beal 2003)",
        ),
        "kalman": Entry(
            "tfseq.models.kalman:LinearGaussianModel",
            "Linear-Gaussian state-space model: exact Kalman filter and smoother; gradient or EM (Shumway and Stoffer 1982)",
        ),
        "dmm": Entry(
            "tfseq.models.dmm:DeepMarkovModel",
            "Deep Markov model: neural state-space model trained on its ELBO (Krishnan et al. 2017)",
        ),
        "vrnn": Entry(
            "tfseq.models.vrnn:VariationalRNN",
            "Variational recurrent network, VRNN-I and STORN: a latent variable at every step (Chung et al. 2015)",
        ),
        "rnn-density": Entry(
            "tfseq.models.recurrent_density:RecurrentDensity",
            "Recurrent density: RNN-Gauss, RNN-GMM, RNN-NADE, RNN-RBM (Boulanger-Lewandowski et al. 2012, Chung et al. 2015)",
        ),
        "vae": Entry(
            "tfseq.models.vae:VariationalAutoencoder",
            "Variational autoencoder of vectors, or of the steps of sequences (Kingma and Welling 2014)",
        ),
        "bm": Entry(
            "tfseq.models.boltzmann_machine:BoltzmannMachine",
            "Boltzmann machine with any edges: exact or sampled gradients, conditionals (Ackley et al. 1985)",
        ),
        "rbm": Entry(
            "tfseq.models.rbm:RBM",
            "Restricted Boltzmann machine: CD, PCD, tempering; any unit types; likelihood by AIS or exact (Hinton 2002)",
        ),
        "dbn": Entry(
            "tfseq.models.dbn:DeepBeliefNetwork",
            "Deep belief network: greedy pre-training, up-down tuning, classifier and autoencoder (Hinton et al. 2006)",
        ),
        "dbm": Entry(
            "tfseq.models.dbm:DeepBoltzmannMachine",
            "Deep Boltzmann machine: mean field and persistent chains, classifier (Salakhutdinov and Hinton 2009)",
        ),
    }
)
