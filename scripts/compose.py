"""Composes with a served music model, without tfseq: a new chorale, and the continuation of a given one.

    python scripts/compose.py saved_models/chorales-dmm --out composed [--steps 64] [--seed 0] [--prefix FILE]

Needs tensorflow, numpy, music21 and matplotlib only: it calls the SavedModel's signatures `sample` and `forecast`, as
any program may. The models know chorales in C, a step a quarter note, so the given piece is transposed to C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import music21
import numpy as np
from matplotlib.figure import Figure


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps TensorFlow's start-up notes off standard error, unless the user set a log level.

    TensorFlow 2.21 prints some before it reads TF_CPP_MIN_LOG_LEVEL, so the file descriptor is pointed elsewhere.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    standard_error = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


with quiet():
    import tensorflow as tf

    tf.config.list_logical_devices()  # looks for GPUs, and says so

LOWEST = 21  # MIDI pitch of column 0 of a roll [T, 88] in {0, 1}
DEFAULT_PREFIX = "bach/bwv99.6"  # of the test split: no model was trained on it


def main() -> int:
    """Writes two pieces, each as MIDI and as a picture; prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a served model: MODEL/VERSION/saved_model.pb")
    parser.add_argument("--version", type=int, help="default: the highest")
    parser.add_argument("--out", type=Path, required=True, help="folder for the four files")
    parser.add_argument("--steps", type=int, default=64, help="quarter notes to compose (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same music (default 0)")
    parser.add_argument("--prefix", type=Path, help="MIDI or MusicXML file to continue (default: a chorale by Bach)")
    parser.add_argument("--prefix-steps", type=int, default=16, help="how many of its quarter notes are given (default 16)")
    args = parser.parse_args()
    if args.steps < 1 or args.prefix_steps < 1:
        parser.error("--steps and --prefix-steps must be at least 1")
    try:
        model = tf.saved_model.load(str(version_folder(args.model, args.version)))
        given = read_roll(args.prefix)[: args.prefix_steps]
        args.out.mkdir(parents=True, exist_ok=True)
        new = sample(model, args.steps, args.seed)
        continued = np.concatenate([given, forecast(model, given, args.steps, args.seed)])
        for name, roll, prefix in (("new-chorale", new, 0), ("continued-chorale", continued, len(given))):
            for path, write in ((args.out / f"{name}.mid", write_midi), (args.out / f"{name}.png", draw)):
                write(path, roll, prefix)
                print(path)
    except (OSError, ValueError) as error:
        print(f"compose: {error}", file=sys.stderr)
        return 1
    if "tfseq" in sys.modules:
        print("compose: tfseq was imported, though a served model must do without it", file=sys.stderr)
        return 1
    return 0


def version_folder(model: Path, version: int | None) -> Path:
    """The folder of one version: the highest where `version` is None."""
    found = sorted(int(path.parent.name) for path in model.glob("*/saved_model.pb") if path.parent.name.isdigit())
    if not found or (version is not None and version not in found):
        raise ValueError(
            f"{model} must hold MODEL/VERSION/saved_model.pb; versions found: {found or 'none'}, asked for: {version or 'any'}"
        )
    return model / str(found[-1] if version is None else version)


def sample(model: tf.Module, num_steps: int, seed: int) -> np.ndarray:
    """A new piece, roll [T, 88]."""
    out = signature(model, "sample")(num_steps=tf.constant([num_steps]), seed=tf.constant([[seed, 0]]))
    return out["x"][0, : int(out["length"][0])].numpy()


def forecast(model: tf.Module, given: np.ndarray, num_steps: int, seed: int) -> np.ndarray:
    """The first of the model's continuations of `given` [T, 88], roll [num_steps, 88]."""
    out = signature(model, "forecast")(
        x=tf.constant(given[None]),
        lengths=tf.constant([len(given)]),
        num_steps=tf.constant([num_steps]),
        seed=tf.constant([[seed, 1]]),
    )
    return out["x"][0, 0, : int(out["length"][0])].numpy()


def signature(model: tf.Module, name: str) -> tf.types.experimental.ConcreteFunction:
    """The signature `name` of a loaded SavedModel."""
    if name not in model.signatures:
        raise ValueError(f"the model has no signature {name!r}; it has {', '.join(model.signatures)}. Is it a music model?")
    return model.signatures[name]


def read_roll(path: Path | None) -> np.ndarray:
    """Score -> roll [T, 88] float32 in C: what sounds at each quarter note."""
    try:
        score = (
            music21.corpus.parse(DEFAULT_PREFIX, forceSource=True)
            if path is None
            else music21.converter.parse(path, forceSource=True, storePickle=False)
        )
    except OSError:
        raise
    except Exception as error:  # parsers of foreign files raise whatever the damage leads to
        raise ValueError(f"{path} is no readable score ({type(error).__name__}: {error})") from error
    if path is not None and path.suffix.lower() in (".mid", ".midi"):
        notes, start = midi_notes(path), 0.0
    else:
        notes = [(float(n.offset), float(n.offset + n.quarterLength), p.midi) for n in score.flatten().notes for p in n.pitches]
        bar = score.recurse().getElementsByClass("Measure").first()
        start = (
            float(bar.duration.quarterLength % 1) if bar is not None and bar.paddingLeft else 0.0
        )  # the grid is that of the bars
    if not notes:
        raise ValueError(f"{path or DEFAULT_PREFIX} has no notes")
    to_c = (5 - score.analyze("key").tonic.pitchClass) % 12 - 5
    roll = np.zeros((int(np.ceil(max(end for _, end, _ in notes))), 88), np.float32)
    quarters = start + np.arange(len(roll))
    for begin, end, pitch in notes:
        column = pitch + to_c - LOWEST
        if not 0 <= column < 88:
            raise ValueError(f"{path or DEFAULT_PREFIX}: pitch {pitch} is beyond the piano's keys after transposition to C")
        roll[(quarters >= begin - 1e-6) & (quarters < end - 1e-6), column] = 1.0
    return roll[: np.flatnonzero(roll.any(axis=1))[-1] + 1]


def midi_notes(path: Path) -> list[tuple[float, float, int]]:
    """Begin, end (quarter notes) and pitch of each note of a MIDI file; music21's scores of MIDI files may shift notes."""
    file, translate = music21.midi.MidiFile(), music21.midi.translate
    file.readstr(path.read_bytes())
    notes = [
        n
        for track in file.tracks
        for n in translate.getNotesFromEvents(translate.getTimeForEvents(track))
        if n.event.channel != 10
    ]
    grid = 12 / file.ticksPerQuarterNote
    return [(round(n.onTime * grid) / 12, round(n.offTime * grid) / 12, int(n.event.pitch or 0)) for n in notes]


def held_notes(roll: np.ndarray) -> list[tuple[int, int, int]]:
    """(first step, number of steps, column) of every run of consecutive steps."""
    change = np.diff(np.pad(roll > 0, ((1, 1), (0, 0))).astype(int), axis=0).T
    return [
        (int(t), int(end - t), int(key))
        for (key, t), (_, end) in zip(np.argwhere(change == 1), np.argwhere(change == -1), strict=True)
    ]


def write_midi(path: Path, roll: np.ndarray, prefix: int) -> None:
    """Roll -> MIDI file, 90 quarter notes a minute."""
    part = music21.stream.Part()
    part.insert(0.0, music21.tempo.MetronomeMark(number=90))
    for t, length, key in held_notes(roll):
        part.insert(float(t), music21.note.Note(LOWEST + key, quarterLength=float(length)))
    part.write("midi", fp=path)


def draw(path: Path, roll: np.ndarray, prefix: int) -> None:
    """Roll -> picture, its first `prefix` steps (the given ones) in grey."""
    figure = Figure(figsize=(4 + 0.1 * len(roll), 4), layout="constrained")
    axes = figure.subplots()
    for first, last, colour, label in ((0, prefix, "#8a8f98", "given"), (prefix, len(roll), "#1f5fa8", "composed")):
        notes = held_notes(roll[first:last])
        axes.barh(
            [key for *_, key in notes],
            [n - 0.12 for _, n, _ in notes],
            0.8,
            [first + t + 0.06 for t, *_ in notes],
            color=colour,
            label=label,
        )
    if prefix:
        axes.axvspan(0, prefix, color="#f6e7b8", alpha=0.45, lw=0, zorder=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    octaves = np.arange(3, 88, 12)
    used = np.flatnonzero(roll.any(axis=0))
    axes.set_yticks(octaves, [f"C{i}" for i in range(1, 9)])
    axes.grid(axis="y", color="#c9ccd1", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="time in quarter notes", xlim=(0, len(roll)), ylim=(used.min(initial=87) - 2, used.max(initial=0) + 2))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
