#!/usr/bin/env python
"""Long runs whose figures stand in the README: resumable, selected on validation only, the test split read once at the end.

    python scripts/reproduce.py dmm-jsb [--data-dir DIR] [--out runs/dmm-jsb] [--seed 0 | --seeds 3] [--short]

Called again with the same folder it goes on where it was stopped. It writes `result.json` (figures, command, wall time,
versions), `curves.png`, pictures of Boltzmann machines, and the run folder of `tfseq train`. With `--seeds N` it makes those of
seeds 0 to N - 1, in folders of their own, and gives the mean of their test figures and its standard deviation over seeds.
With `--peer` a tagger's network is trained in PyTorch too, on the same batches (`peers/tagger_torch.py`; `peer.json`).
`--short` makes a twentieth of the epochs and a tenth of the temperatures: does everything run, and which way do the figures go?
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Each recipe: data set, model, its hyper-parameters, greedy pre-training where the model has it, settings of `train`, of the
# final evaluation, and of the classifiers that start from the model: number of labels (None for all) -> settings of `classify`.
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
    "evaluation": {"num_samples": 2000},
}
_DENSITY_JSB: dict[str, Any] = {
    "data": "jsb",
    "model": "rnn-density",
    "hyperparameters": {"units": [200], "dropout": 0.3, "weight_drop": 0.2},
    "training": {
        "learning_rate": 2e-3,
        "average": 0.99,
        "epochs": 1000,
        "augmented_epochs": 800,
        "weight_decay": 0.1,
        "validate_every": 10,
    },
    "evaluation": {},
}
_SPEECH: dict[str, Any] = {
    "data": "spoken-digits",
    "model": "rnn-density",
    "training": {"batch_size": 32, "learning_rate": 1e-3, "average": 0.99, "epochs": 200, "validate_every": 2},
    "evaluation": {"num_samples": 20},
}
_SPEECH_RNN: dict[str, Any] = {"units": [256], "hidden_dim": 256, "input_layers": 2, "output_layers": 2, "scaling": "global"}
_MNIST: dict[str, Any] = {"data": "mnist", "evaluation": {"batch_size": 500}}
_SGD: dict[str, Any] = {"optimizer": "sgd", "batch_size": 100, "clip_norm": 1e3}
# Melchior, Fischer and Wiskott 2016: PCD-1 with 100 chains, rate 0.01, no momentum, no decay, 50 epochs
_RBM16: dict[str, Any] = {
    **_MNIST,
    "model": "rbm",
    "hyperparameters": {"num_hidden": 16, "binarise": "threshold"},
    "training": {**_SGD, "learning_rate": 0.01, "schedule": "constant", "epochs": 50, "validate_every": 5},
}
_WNUT: dict[str, Any] = {
    "data": "wnut17",
    "model": "tagger",
    "hyperparameters": {"units": [200], "dropout": 0.5, "token_dropout": 0.1},
    "training": {"batch_size": 16, "learning_rate": 2e-3, "average": 0.99, "epochs": 30},
    "evaluation": {},
}
_MULTI30K: dict[str, Any] = {
    "data": "multi30k",
    "model": "seq2seq",
    "hyperparameters": {"lowercase": True, "embedding_dim": 256, "units": [256], "dropout": 0.4},
    "training": {"batch_size": 80, "learning_rate": 1e-3, "average": 0.99, "epochs": 15},
    "evaluation": {"batch_size": 50},
}
RECIPES: dict[str, dict[str, Any]] = {
    # transposes the training pieces at random in the first three quarters of the epochs
    "dmm-jsb": {**_JSB, "training": {**_JSB["training"], "epochs": 2000, "weight_decay": 0.2, "augmented_epochs": 1500}},
    # the training pieces as they are, as in the papers
    "dmm-jsb-plain": {**_JSB, "training": {**_JSB["training"], "epochs": 600, "weight_decay": 0.3}},
    # two inverse autoregressive flows after the guide's Gaussians
    "dmm-jsb-iaf": {
        **_JSB,
        "hyperparameters": {"num_flows": 2},
        "training": {**_JSB["training"], "epochs": 2000, "weight_decay": 0.2, "augmented_epochs": 1500},
    },
    # the observation before enters transition and emission
    "dmm-jsb-aug": {
        **_JSB,
        "hyperparameters": {"augment": True},
        "training": {**_JSB["training"], "epochs": 2000, "weight_decay": 0.3, "augmented_epochs": 1500},
    },
    "vrnn-jsb-fivo": {
        **_JSB,
        "model": "vrnn",
        "hyperparameters": {"objective": "fivo", "train_samples": 4, "latent_dim": 32, "rnn_units": 256, "num_layers": 1},
        "training": {**_JSB["training"], "kl_warmup": 500, "epochs": 100, "weight_decay": 0.2, "augmented_epochs": 80},
        "evaluation": {"num_samples": 128, "num_particles": 4},
    },
    "rnn-nade-jsb": {
        **_DENSITY_JSB,
        "hyperparameters": {**_DENSITY_JSB["hyperparameters"], "head": "nade", "head_units": 100},
    },
    "rnn-rbm-jsb": {
        **_DENSITY_JSB,
        "hyperparameters": {**_DENSITY_JSB["hyperparameters"], "head": "rbm", "head_units": 12},
    },
    # spoken digits as raw frames of 200 samples: log-likelihood per sequence, as in Chung et al. 2015
    "speech-rnn-gauss": {**_SPEECH, "hyperparameters": {**_SPEECH_RNN, "head": "normal"}},
    "speech-rnn-gmm": {**_SPEECH, "hyperparameters": {**_SPEECH_RNN, "head": "mixture"}},
    "speech-vrnn-gauss": {
        **_SPEECH,
        "model": "vrnn",
        "hyperparameters": {"head": "normal", "latent_dim": 64, "rnn_units": 256, "hidden_dim": 256, "scaling": "global"},
        "training": {**_SPEECH["training"], "kl_start": 0.2, "kl_warmup": 500},
    },
    "rbm16-mnist": _RBM16,
    "rbm16-mnist-plain": {**_RBM16, "hyperparameters": {**_RBM16["hyperparameters"], "centred": False}},
    "rbm-mnist": {
        **_MNIST,
        "model": "rbm",
        "hyperparameters": {"num_hidden": 500, "num_sweeps": 5, "l2": 1e-4},
        "training": {**_SGD, "learning_rate": 0.05, "epochs": 100, "validate_every": 10},
        "classifiers": {None: {"epochs": 30}},
    },
    "dbn-mnist": {
        **_MNIST,
        "model": "dbn",
        "hyperparameters": {"hidden_units": [1000, 1000, 1000], "l2": 2e-4},
        "pretraining": {"epochs": 20, "learning_rate": 0.05, "momentum": 0.5},
        "training": {**_SGD, "learning_rate": 0.003, "epochs": 10, "validate_every": 5},
        "classifiers": {None: {"epochs": 40}, 10000: {"epochs": 100}, 1000: {"epochs": 200}, 100: {"epochs": 200}},
        "classify": "pretrained",
    },
    "dbm-mnist": {
        **_MNIST,
        "model": "dbm",
        "hyperparameters": {"hidden_units": [500, 1000], "num_sweeps": 5, "mean_field_sweeps": 10, "l2": 2e-4},
        "pretraining": {"epochs": 20, "learning_rate": 0.05, "momentum": 0.5},
        "training": {**_SGD, "learning_rate": 0.01, "epochs": 240, "validate_every": 20},
        "classifiers": {None: {"epochs": 40}, 10000: {"epochs": 100}, 1000: {"epochs": 200}, 100: {"epochs": 200}},
    },
    # parts of speech on gold tokens; one LSTM layer in each direction reads words and their characters
    "tagger-ewt": {
        "data": "ewt",
        "model": "tagger",
        "hyperparameters": {"units": [256], "dropout": 0.5, "token_dropout": 0.1, "character_units": 100},
        "training": {"batch_steps": 1000, "learning_rate": 2e-3, "average": 0.99, "epochs": 30},
        "evaluation": {},
    },
    "lm-shakespeare": {
        "data": "shakespeare",
        "model": "lm",
        "hyperparameters": {
            "embedding_dim": 384, "units": [384, 384, 384], "residual": True, "layer_norm": True, "dropout": 0.4,
            "weight_drop": 0.2,
        },
        "training": {"batch_size": 64, "learning_rate": 3e-3, "average": 0.99, "epochs": 24},
        "evaluation": {"dynamic_rate": 0.1},  # on validation within 0.003 nats of the best of 0.05 to 0.3, windows of 20 to 100
    },
    # entities of noisy text: the head is the only difference
    "tagger-wnut17": {**_WNUT, "hyperparameters": {**_WNUT["hyperparameters"], "head": "crf"}},
    "tagger-wnut17-free": {**_WNUT, "hyperparameters": {**_WNUT["hyperparameters"], "head": "crf", "constrained": False}},
    "tagger-wnut17-softmax": {**_WNUT, "hyperparameters": {**_WNUT["hyperparameters"], "head": "softmax"}},
    "seq2seq-multi30k": {**_MULTI30K, "hyperparameters": {**_MULTI30K["hyperparameters"], "attention": "luong"}},
    "seq2seq-multi30k-bahdanau": {**_MULTI30K, "hyperparameters": {**_MULTI30K["hyperparameters"], "attention": "bahdanau"}},
    "seq2seq-multi30k-plain": {**_MULTI30K, "hyperparameters": {**_MULTI30K["hyperparameters"], "attention": None}},
    "classifier-splice": {
        "data": "splice",
        "model": "classifier",
        "hyperparameters": {"unit": "characters", "embedding_dim": 16, "units": [64], "dropout": 0.3, "token_dropout": 0.1},
        "training": {"batch_size": 50, "learning_rate": 3e-3, "average": 0.99, "epochs": 60},
        "evaluation": {},
    },
    "classifier-digits": {
        "data": "spoken-digits-mel",
        "model": "classifier",
        "hyperparameters": {"units": [128], "dropout": 0.4},
        "training": {"batch_size": 32, "learning_rate": 2e-3, "average": 0.99, "epochs": 40},
        "evaluation": {},
    },
    "ctc-digits": {
        "data": "spoken-digits-mel",
        "model": "tagger",
        "hyperparameters": {"head": "ctc", "units": [128], "dropout": 0.4},
        "training": {"batch_size": 32, "learning_rate": 2e-3, "average": 0.99, "epochs": 40},
        "evaluation": {},
    },
}  # fmt: skip


def main() -> None:
    """Trains (or goes on with) a recipe, then scores the test split once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data-dir", help="folder of already downloaded files; else TFSEQ_DATA, else they are downloaded")
    parser.add_argument("--out", type=Path, help="run folder; runs/RECIPE by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, help="make the runs of seeds 0 to N - 1 and average their figures")
    parser.add_argument("--short", action="store_true", help="a twentieth of the epochs, a tenth of the temperatures")
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="stop training in time; call again to go on")
    parser.add_argument("--peer", action="store_true", help="of a recipe tagger-*: train the same network in PyTorch too")
    arguments = parser.parse_args()
    if arguments.peer and not arguments.recipe.startswith("tagger-"):
        parser.error(f"--peer is for the recipes tagger-*; received {arguments.recipe}")
    run = with_peer if arguments.peer else reproduce
    folder = arguments.out or Path("runs") / (arguments.recipe + ("-short" if arguments.short else ""))
    if arguments.seeds is None:
        print(json.dumps(run(arguments, folder, arguments.seed), indent=1))
        return
    results = [run(arguments, folder / f"seed-{seed}", seed, anew=False) for seed in range(arguments.seeds)]
    print(json.dumps(average(arguments, folder, results), indent=1))


def average(arguments: argparse.Namespace, folder: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every test figure over the runs, and its standard deviation; written to `result.json`."""
    import numpy as np

    from tfseq.files import replace_file

    def over_seeds(key: str) -> dict[str, Any]:
        figures = {name: [r[key][name] for r in results] for name, v in results[0][key].items() if isinstance(v, float)}
        return {
            "mean": {name: float(np.mean(values)) for name, values in figures.items()},
            "standard_deviation": {name: float(np.std(values, ddof=1)) for name, values in figures.items() if len(values) > 1},
            "of_each_seed": figures,
        }

    found = {
        "recipe": arguments.recipe,
        "short": arguments.short,
        "seeds": len(results),
        **over_seeds("test"),
        "minutes": [r["minutes"] for r in results],
        **({"peer": over_seeds("peer")} if arguments.peer else {}),
        "command": " ".join(sys.argv),
    }
    with replace_file(folder / "result.json") as path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def with_peer(arguments: argparse.Namespace, folder: Path, seed: int, anew: bool = False) -> dict[str, Any]:
    """The run of one seed and under "peer" that of PyTorch, kept in `peer.json`; each is made once, `anew` or not."""
    from peers.tagger_torch import train_tagger

    from tfseq.files import replace_file

    result, recipe = reproduce(arguments, folder, seed, anew=False), RECIPES[arguments.recipe]
    if not (folder / "peer.json").exists():
        epochs = recipe["training"]["epochs"]
        training = {**recipe["training"], "epochs": max(1, epochs // 20) if arguments.short else epochs}
        settings = {"hyperparameters": recipe["hyperparameters"], "training": training, "data": recipe["data"]}
        with replace_file(folder / "peer.json") as path:
            path.write_text(json.dumps(train_tagger(arguments.data_dir, seed, **settings), indent=1) + "\n")
    return {**result, "peer": json.loads((folder / "peer.json").read_text())}


def reproduce(arguments: argparse.Namespace, folder: Path, seed: int, anew: bool = True) -> dict[str, Any]:
    """The run of one seed; its result, which is read where it is there already and need not be made `anew`."""
    import keras

    import tfseq
    from tfseq.files import replace_file
    from tfseq.plots import curves
    from tfseq.training import versions

    recipe = RECIPES[arguments.recipe]
    if (folder / "result.json").exists() and not anew:
        return json.loads((folder / "result.json").read_text())
    if (folder / "result.json").exists():
        sys.exit(f"{folder / 'result.json'} is there already: the test split is read once. Choose another --out for another run.")
    train, valid = (tfseq.load_dataset(recipe["data"], s, data_dir=arguments.data_dir) for s in ("train", "valid"))
    keras.utils.set_random_seed(seed)
    settings = {**recipe["training"], "seed": seed, "max_minutes": arguments.max_minutes}
    evaluation = dict(recipe["evaluation"])
    if arguments.short:
        settings["epochs"] = max(1, settings["epochs"] // 20)
        evaluation["num_temperatures"] = 1450
    minutes: dict[str, float] = {}
    model = make_model(recipe, train, folder, arguments.short, minutes)
    resume = (folder / "checkpoints" / "last.keras").exists()
    run = tfseq.train(model, train, valid, out=folder, resume=resume, **settings)
    names = ("loss", "nats_per_step", f"val_{model.monitor}")
    rows = {n: [row.get(n, float("nan")) for row in run.history] for n in names if any(n in row for row in run.history)}
    curves(rows, folder / "curves.png", title=arguments.recipe)
    if len(run.history) < settings["epochs"]:
        sys.exit(
            f"Stopped after {len(run.history)} of {settings['epochs']} epochs ({run.stopped}). Nothing was read from "
            "the test split. Call again to go on, with more --max-minutes where they were used up."
        )
    minutes["training"] = run.history[-1]["seconds"] / 60

    test = tfseq.load_dataset(recipe["data"], "test", data_dir=arguments.data_dir)
    classifiers = {}
    if "classifiers" in recipe:
        start = tfseq.load(folder / "pretrained.keras") if recipe.get("classify") == "pretrained" else run.model
        classifiers = classify(start, recipe["classifiers"], train, valid, test, arguments.short, minutes)
    began = time.monotonic()
    baselines = {} if recipe["model"] in BOLTZMANN else {"baselines_from": train}
    result = {
        "recipe": arguments.recipe,
        "short": arguments.short,
        "test": tfseq.evaluate(run.model, test, seed=seed, **evaluation, **baselines),
        "validation": (max if run.model.higher_is_better else min)(row[names[2]] for row in run.history if names[2] in row),
        "test_error_percent": classifiers,
        "epochs": len(run.history),
        "seed": seed,
    }
    if recipe["model"] in BOLTZMANN:
        draw_pictures(run.model, test, folder)
    minutes["evaluation"] = (time.monotonic() - began) / 60
    result |= {
        "minutes": {name: round(value, 2) for name, value in minutes.items()},
        "cores": os.cpu_count(),
        "versions": versions(),
        "command": " ".join(sys.argv),
    }
    with replace_file(folder / "result.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


BOLTZMANN = ("rbm", "dbn", "dbm")


def make_model(recipe: dict[str, Any], train: Any, folder: Path, short: bool, minutes: dict[str, float]) -> Any:
    """The model as training begins: pre-trained where the recipe says so, once."""
    import keras

    import tfseq
    from tfseq.files import replace_file

    model = tfseq.MODELS[recipe["model"]].from_data(train, **recipe["hyperparameters"])
    if "pretraining" not in recipe:
        return model
    path = folder / "pretrained.keras"
    if path.exists():
        return tfseq.load(path)
    settings = dict(recipe["pretraining"])
    epochs = max(1, settings["epochs"] // 20) if short else settings["epochs"]
    optimizer = keras.optimizers.SGD(settings["learning_rate"], momentum=settings["momentum"])
    began = time.monotonic()
    model.pretrain(train, epochs=epochs, batch_size=100, optimizer=optimizer, verbose=2)
    minutes["pretraining"] = (time.monotonic() - began) / 60
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        model.save(temporary)
    return model


def classify(
    model: Any,
    settings: dict[int | None, dict[str, Any]],
    train: Any,
    valid: Any,
    test: Any,
    short: bool,
    minutes: dict[str, float],
) -> dict[str, dict[str, float]]:
    """Test error in percent of the network that starts from the model, and of the same with random weights, by number of labels.

    The first labels of the training split are used, in equal numbers of each class where they are few; the epoch is chosen by
    the validation error.
    """
    import keras
    import numpy as np

    found: dict[str, dict[str, float]] = {}
    x, y = train.x[:, 0], train.y[:, 0]
    for num, options in settings.items():
        began = time.monotonic()
        rows = np.arange(len(y)) if num is None else np.concatenate([np.flatnonzero(y == c)[: num // 10] for c in range(10)])
        epochs = max(1, options["epochs"] // 20) if short else options["epochs"]
        errors = {}
        for start in ("pre-trained", "random"):
            keras.utils.set_random_seed(0)
            network = model.to_classifier(10)
            if start == "random":
                network = type(network)(**{**network.settings, "mean_field_sweeps": 0})
            inputs, held_out = network.inputs_for(x[rows]), network.inputs_for(valid.x[:, 0])
            best = _fit(network, inputs, y[rows], held_out, valid.y[:, 0], epochs, freeze=start == "pre-trained")
            network.set_weights(best)
            wrong = network.predict(network.inputs_for(test.x[:, 0]), verbose=0, batch_size=500).argmax(-1) != test.y[:, 0]
            errors[start] = round(100.0 * float(wrong.mean()), 3)
        found[str(num or len(y))] = errors
        print(num or len(y), errors, file=sys.stderr, flush=True)
        minutes[f"classifier, {num or len(y)} labels"] = (time.monotonic() - began) / 60
    return found


def _fit(network: Any, x: Any, y: Any, x_valid: Any, y_valid: Any, epochs: int, freeze: bool) -> list[Any]:
    """Fine-tuning, the new top layer alone first; the weights of the best validation accuracy (its loss where equal)."""
    import keras

    steps = -(-len(y) // 100)
    y, y_valid = (keras.utils.to_categorical(labels, 10) for labels in (y, y_valid))
    parts = [(min(3, epochs), True), (epochs, False)] if freeze else [(epochs, False)]
    best: list[Any] = [(-1.0, 0.0), network.get_weights()]

    def keep(epoch: int, logs: dict[str, float]) -> None:
        score = (logs["val_accuracy"], -logs["val_loss"])
        if score > best[0]:
            best[:] = [score, network.get_weights()]

    for num, frozen in parts:
        for layer in (*network.hidden_layers, *network.top_down):
            layer.trainable = not frozen
        rate = keras.optimizers.schedules.CosineDecay(1e-3, num * steps)
        # smoothed labels: without them the training error is zero after ten epochs, and the rest is for nothing
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
        network.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        network.fit(
            x, y, batch_size=100, epochs=num, verbose=0, validation_data=(x_valid, y_valid), validation_batch_size=500,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)],
        )  # fmt: skip
    return best[1]


def draw_pictures(model: Any, test: Any, folder: Path) -> None:
    """Receptive fields, samples, reconstructions, and chains over time."""
    import numpy as np

    from tfseq import plots

    v = test.x[:20, 0]
    weights = model.generative[0] if hasattr(model, "generative") else model.weight_matrices[0]
    plots.receptive_fields(np.asarray(weights)[:, :100], test.shape, folder / "receptive_fields.png")
    plots.image_grid(model.sample(100).numpy()[:, 0], test.shape, folder / "samples.png")
    plots.reconstructions(v, model.reconstruct(v).numpy(), test.shape, folder / "reconstructions.png")
    sweeps = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    states = np.stack([model.gibbs(v[:8], n)[1].numpy() for n in sweeps], 1)
    plots.chains(states, test.shape, folder / "chains.png", sweeps=sweeps)


if __name__ == "__main__":
    main()
