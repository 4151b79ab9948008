#!/usr/bin/env python
"""Trains the small reference models of saved_models/ and exports each with its model card: about 15 minutes on two cores.

    python scripts/build_saved_models.py [NAME ...] [--out saved_models] [--data-dir DIR] [--litert] [--quick]

A recipe is a data set, a model, its hyper-parameters and the settings of `train`; the weights of the best validation are kept,
the test split is read once, and its figures go into the card. Each call writes a new version, and no older one is touched. A
model larger than 2 MB is an error. A data set that is not at hand is left out, and said. `--quick` makes one epoch of a few
sequences, into a folder that is deleted: does everything run?
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MOST_BYTES = 2_000_000
QUICK_SEQUENCES = 20

RECIPES: dict[str, dict[str, Any]] = {
    "chorales-dmm": {
        "about": "Composes, continues, completes and scores four-part chorales in the style of Bach; a step is a quarter note, "
        "column 0 of x is MIDI pitch 21. Trained on the chorales of music21's corpus, whose music is in the public domain.",
        "data": "chorales",
        "model": "dmm",
        "hyperparameters": {"latent_dim": 32, "cell": "gru", "rnn_units": 56, "transition_dim": 56, "emission_dim": 64},
        "training": {"batch_size": 10, "learning_rate": 3e-3, "kl_start": 0.1, "kl_warmup": 500, "epochs": 60},
        "export": {"num_samples": 8, "num_particles": 32},
    },
    "pos-en": {
        "about": "Parts of speech (17 UPOS) of English sentences. Trained on the Universal Dependencies English Web Treebank, "
        "CC BY-SA 4.0 (Silveira et al. 2014).",
        "data": "ewt",
        "model": "tagger",
        "hyperparameters": {
            "max_vocabulary": 3000, "embedding_dim": 32, "character_units": 48, "units": [64], "dropout": 0.3,
        },
        "training": {"batch_steps": 1000, "learning_rate": 3e-3, "average": 0.99, "epochs": 8},
    },
    "docs-lm": {
        "about": "Continues and scores text, character by character, in the style of Python's documentation; it knows no facts. "
        "Trained on the help topics of Python, Python Software Foundation License 2.",
        "data": "python-docs",
        "model": "lm",
        "hyperparameters": {"unit": "characters", "embedding_dim": 32, "units": [256], "dropout": 0.2},
        "training": {"batch_size": 32, "learning_rate": 3e-3, "average": 0.99, "epochs": 20},
    },
    "earthquakes-hmm": {
        "about": "States of seismic activity behind yearly counts of strong earthquakes (magnitude 7 and above), 1900 to 2006: a "
        "Poisson HMM of three states, fitted by EM (Zucchini and MacDonald 2009). The counts are of the US Geological Survey, in "
        "the public domain. Figures are of the data it was fitted to.",
        "data": "earthquakes",
        "model": "hmm",
        "hyperparameters": {"num_states": 3, "emission": "poisson"},
        "training": {"method": "em", "epochs": 200},
    },
    "digits-rbm": {
        "about": "Handwritten digits, 8 x 8 greys in [0, 1], row after row: hidden features, reconstructions, free energies, new "
        "digits. Trained on scikit-learn's copy of the UCI data set, CC BY 4.0 (Alpaydin and Kaynak 1998).",
        "data": "digits",
        "model": "rbm",
        "hyperparameters": {"num_hidden": 128, "num_sweeps": 5},
        "training": {
            "optimizer": "sgd", "batch_size": 50, "learning_rate": 0.05, "clip_norm": 1e3, "epochs": 200, "validate_every": 10,
        },
    },
}  # fmt: skip


def build(name: str, out: Path, data_dir: Path | None, *, litert: bool = False, quick: bool = False) -> Path:
    """Trains, evaluates and exports a recipe; the path of the new version.

    Raises:
        FileNotFoundError, ImportError: its data set is not at hand.
        ValueError: the version is too large.
    """
    import keras

    import tfseq
    from tfseq.data import splits_of

    recipe = RECIPES[name]
    splits = splits_of(recipe["data"])
    data = {split: tfseq.load_dataset(recipe["data"], split, data_dir=data_dir) for split in splits}
    if quick:
        few = data["train"].take(range(min(len(data["train"]), QUICK_SEQUENCES)))  # as all splits: others have other labels
        data = dict.fromkeys(data, few)
    keras.utils.set_random_seed(0)
    model = tfseq.MODELS[recipe["model"]].from_data(data["train"], **recipe["hyperparameters"])
    settings = recipe["training"] | ({"epochs": 1, "validate_every": 1} if quick else {})
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as kept:
        run = tfseq.train(model, data["train"], data.get("valid"), out=Path(kept, "run"), progress=not quick, **settings)
        card = json.loads(Path(kept, "run", "card.json").read_text())
    split = "test" if "test" in data else "train"
    found = tfseq.evaluate(run.model, data[split])
    card |= {"about": recipe["about"], "command": f"scripts/build_saved_models.py {name}"}
    card["test"] = {key: value for key, value in found.items() if isinstance(value, float) and math.isfinite(value)}
    path = tfseq.export(run.model, out / name, examples=data[split], card=card, litert=litert, **recipe.get("export", {}))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"{path}: {size / 1e6:.2f} MB, {time.monotonic() - began:.0f} s, {split} split: {card['test']}", flush=True)
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size} bytes; a reference model has {MOST_BYTES} at most. Delete it, and make it smaller.")
    return path


def main() -> int:
    """0 where all was built, 1 where a recipe failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "saved_models", help="base folder")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("TFSEQ_DATA"), help="folder of downloaded data")
    parser.add_argument("--litert", action="store_true", help="also converts for devices")
    parser.add_argument("--quick", action="store_true", help="one epoch of a few sequences, and nothing is kept")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in RECIPES]:
        parser.error(f"there is no recipe {unknown[0]!r}; recipes: {', '.join(RECIPES)}")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    failed = 0
    with tempfile.TemporaryDirectory() as nowhere:
        out = Path(nowhere) if chosen.quick else chosen.out
        for name in chosen.names or RECIPES:
            try:
                build(name, out, chosen.data_dir, litert=chosen.litert, quick=chosen.quick)
            except (FileNotFoundError, ImportError) as error:
                print(f"{name}: left out, its data is not at hand. {error}", file=sys.stderr)
            except ValueError as error:
                failed = 1
                print(f"{name}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
