#!/usr/bin/env python
"""Long runs whose figures stand in the README: resumable, selected on validation only, the test split read once at the end.

    python scripts/reproduce.py dmm-jsb [--data-dir DIR] [--out runs/dmm-jsb] [--seed 0]

Called again with the same folder it goes on where it was stopped. It writes `result.json` (figures, command, wall time,
versions), `curves.png` and the run folder of `tfseq train`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Each recipe: data set, model, its hyper-parameters, settings of `train`, samples of the final evaluation.
_JSB: dict[str, Any] = {
    "data": "jsb",
    "model": "dmm",
    "hyperparameters": {},
    "training": {
        "learning_rate": 3e-3,
        "average": 0.995,
        "kl_start": 0.2,
        "kl_warmup": 1500,
        "validate_every": 10,
    },
    "num_samples": 2000,
}
RECIPES: dict[str, dict[str, Any]] = {
    # transposes the training pieces at random in the first three quarters of the epochs
    "dmm-jsb": {**_JSB, "training": {**_JSB["training"], "epochs": 2000, "weight_decay": 0.2, "augmented_epochs": 1500}},
    # the training pieces as they are, as in the papers
    "dmm-jsb-plain": {**_JSB, "training": {**_JSB["training"], "epochs": 600, "weight_decay": 0.3}},
}


def main() -> None:
    """Trains (or goes on with) a recipe, then scores the test split once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data-dir", help="folder of already downloaded files; else TFSEQ_DATA, else they are downloaded")
    parser.add_argument("--out", type=Path, help="run folder; runs/RECIPE by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="stop training in time; call again to go on")
    arguments = parser.parse_args()

    import keras

    import tfseq
    from tfseq.files import replace_file
    from tfseq.plots import curves
    from tfseq.training import versions

    recipe = RECIPES[arguments.recipe]
    folder = arguments.out or Path("runs") / arguments.recipe
    if (folder / "result.json").exists():
        sys.exit(f"{folder / 'result.json'} is there already: the test split is read once. Choose another --out for another run.")
    train, valid = (tfseq.load_dataset(recipe["data"], s, data_dir=arguments.data_dir) for s in ("train", "valid"))
    keras.utils.set_random_seed(arguments.seed)
    model = tfseq.MODELS[recipe["model"]].from_data(train, **recipe["hyperparameters"])
    resume = (folder / "checkpoints" / "last.keras").exists()
    settings = {**recipe["training"], "seed": arguments.seed, "max_minutes": arguments.max_minutes}
    run = tfseq.train(model, train, valid, out=folder, resume=resume, **settings)
    names = ("nats_per_step", "val_nats_per_step")
    curves({n: [row.get(n, float("nan")) for row in run.history] for n in names}, folder / "curves.png", title=arguments.recipe)
    if len(run.history) < recipe["training"]["epochs"]:
        sys.exit(
            f"Stopped after {len(run.history)} of {recipe['training']['epochs']} epochs ({run.stopped}). Nothing was read from "
            "the test split. Call again to go on, with more --max-minutes where they were used up."
        )

    test = tfseq.load_dataset(recipe["data"], "test", data_dir=arguments.data_dir)
    result = {
        "recipe": arguments.recipe,
        "test": tfseq.evaluate(run.model, test, num_samples=recipe["num_samples"], seed=arguments.seed, baselines_from=train),
        "validation_bound": min(row.get(names[1], float("inf")) for row in run.history),
        "training_minutes": run.history[-1]["seconds"] / 60,
        "epochs": len(run.history),
        "seed": arguments.seed,
        "cores": os.cpu_count(),
        "versions": versions(),
        "command": " ".join(sys.argv),
    }
    with replace_file(folder / "result.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
