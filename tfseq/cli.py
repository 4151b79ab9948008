"""The command line: `tfseq COMMAND`. Flags and config files derive from signatures; TensorFlow is imported when needed.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 training stopped at a loss that is not finite (what it had by then is in the run
folder), 130 interrupted. Results go to standard output, messages to standard error.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import difflib
import inspect
import itertools
import json
import logging
import math
import os
import re
import shlex
import sys
import traceback
import types
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TextIO, Union, get_args, get_origin, get_type_hints

import tfseq
from tfseq import checks
from tfseq.checks import NotFiniteError, nearest
from tfseq.data import DATASETS, FILES, SPLITS, load_dataset, splits_of
from tfseq.files import replace_file
from tfseq.models import MODELS
from tfseq.workers import DIVERGED, run_workers

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import ArgumentParser, Namespace

    from tfseq.data import Sequences
    from tfseq.data.shards import Shards
    from tfseq.models.base import SequenceModel
    from tfseq.models.language_model import LanguageModel
    from tfseq.models.reader import Reader
    from tfseq.training import Run

DEFAULT_LENGTH = 64  # steps of a sample: sixteen bars of chorale
DEFAULT_TOKENS = 500  # of a text
FORECAST_SAMPLES = 200  # continuations whose quantiles a forecast has
_OWN_DATA = (
    "a .csv or .npz file, a text (.txt), texts with labels or translations (.tsv), labelled tokens (.conll, .conllu, .json), DNA "
    "(.fasta), a recording (.wav), a folder with train.csv (valid.csv, test.csv) or files of another of these kinds, or one of "
    "IDX files of pictures (train-images..., train-labels..., t10k-...), or of WAV, MIDI or MusicXML files, or of shards"
)
_PIECE = 1 << 14  # tokens of a sequence of shards that is a piece of a long text
_LONGEST_LINE = 1 << 24  # bytes of a line of text to predict of
_HEADER = "# Written by tfseq. Repeat this run: tfseq train --config THIS_FILE\n"
_PICTURES = (".png", ".svg", ".pdf")
_NOT_OF_THE_RUN = {"out", "config", "preset", "data_dir", "vectors", "workers"}
"""Flags of `train` that say where things are; `--resume` may set them anew."""


class UsageError(Exception):
    """Wrong usage: exit code 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; `sys.argv[1:]` by default.

    Returns:
        the exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    tfseq.keep_memory()
    try:
        run(arguments)
        sys.stdout.flush()
        return 0
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        _debug()
        return _fail("interrupted.", 130)
    except BrokenPipeError:  # whoever read the output has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UsageError as error:
        _debug()
        command = COMMANDS.get(arguments[0]) if arguments else None
        print(f"usage: tfseq {command.usage if command else 'COMMAND ...'}", file=sys.stderr)
        return _fail(f"error: {error} More: tfseq {f'{arguments[0]} ' if command else ''}--help", 2)
    except (ValueError, OSError, ImportError) as error:
        _debug()
        return _fail(f"error: {_reason(error)}", DIVERGED if isinstance(error, NotFiniteError) else 1)
    except MemoryError:
        _debug()
        return _fail("error: out of memory. A smaller --batch_size or model may fit.", 1)
    except Exception as error:  # a defect of tfseq, or of what it stands on; still no stack trace for somebody at a shell
        _debug()
        reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
        return _fail(f"unexpected error, {type(error).__name__}: {reason} Set TFSEQ_DEBUG=1 to see where, and report it.", 1)


def run(arguments: list[str]) -> None:
    """Runs a command, and raises where it fails."""
    if not arguments:
        raise UsageError(f"No command was given. Commands: {', '.join(COMMANDS)}.")
    first, *rest = arguments
    if first in ("-h", "--help", "help"):
        print(_overview())
    elif first in ("-V", "--version"):
        print(f"tfseq {tfseq.__version__}")
    elif first in COMMANDS:
        COMMANDS[first].run(rest)
    else:
        kind = "flag" if first.startswith("-") else "command"
        options = ("--help", "--version") if kind == "flag" else COMMANDS
        raise UsageError(f"There is no {kind} {first!r}.{nearest(first, options)} Commands: {', '.join(COMMANDS)}.")


def _fail(message: str, code: int) -> int:
    print(f"tfseq: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _debug() -> None:
    if os.environ.get("TFSEQ_DEBUG"):
        traceback.print_exc()


def _reason(error: Exception) -> str:
    """What an error says, without error numbers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _overview() -> str:
    return "\n".join(
        [
            "usage: tfseq COMMAND ...",
            "",
            "Sequence models for Keras 3 on TensorFlow: train, score, sample, export.",
            "",
            *_columns((name, command.summary) for name, command in COMMANDS.items()),
            "",
            "tfseq COMMAND --help tells more. Flags may be written with dashes or underscores.",
            "TFSEQ_DATA: folder of downloaded data files. TFSEQ_DEBUG=1: errors with their stack trace.",
        ]
    )


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {text}" for name, text in rows]


def import_tensorflow(in_cluster: bool = False) -> None:
    """Imports TensorFlow without its start-up notes on standard error, unless the user set TF_CPP_MIN_LOG_LEVEL.

    TensorFlow 2.21 prints some of them before it reads that variable, so the file descriptor is pointed elsewhere.

    Args:
        in_cluster: whether all that follows happens on every worker of `TF_CONFIG`.
    """
    if "tensorflow" in sys.modules:
        return
    with contextlib.ExitStack() as stack:
        if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
            stack.enter_context(_silent_descriptor(2))
        import tensorflow as tf

        if in_cluster:
            from tfseq.models.replicas import strategy_of_cluster

            tf.distribute.experimental_set_strategy(strategy_of_cluster())
        tf.config.list_logical_devices()  # looks for GPUs, and says so


@contextlib.contextmanager
def _silent_descriptor(descriptor: int) -> Iterator[None]:
    """Nothing written to a file descriptor comes out while the block runs."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # closed by the user: silent already
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


# Parsers from signatures --------------------------------------------------------------------------------------------


def make_parser(command: str, epilog: str = "") -> ArgumentParser:
    """An empty parser with the short usage line of a command."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"tfseq {command}",
        usage=f"tfseq {COMMANDS[command].usage}",
        description=f"{COMMANDS[command].summary[:1].upper()}{COMMANDS[command].summary[1:]}.",
        epilog=f"{epilog} Flags may be written with dashes or underscores.".strip(),
        exit_on_error=False,
        print_config=None,
    )


def add_signature(
    parser: Any, function: Callable, documented: Any, *, skip: Collection[str] = (), prefix: str = "", optional: bool = False
) -> None:
    """A flag for every keyword-only argument of `function`: type and default from its signature, help from a docstring.

    `optional`: whatever the default is, the flag's is None, which says that it was not given.
    """
    hints, texts = get_type_hints(function), argument_texts(documented)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name in skip:
            continue
        options: dict[str, Any] = {"nargs": "?", "const": True} if hints[name] is bool else {}
        if optional:
            hints[name] = hints[name] | None
        elif parameter.default is inspect.Parameter.empty:
            options["required"] = True
        else:
            options["default"] = parameter.default
        parser.add_argument(f"--{prefix}{name}", type=hints[name], help=texts.get(name), **options)


def argument_texts(documented: Any) -> dict[str, str]:
    """Argument name -> its text in the `Args:` section of a docstring, where several may share one: `a, b: text`."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(documented) or "", re.M | re.S)
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    texts = {names: " ".join(text.replace("`", "").split()).rstrip(".") for names, text in entries}
    return {name.strip(): text for names, text in texts.items() for name in names.split(",")}


def parse(parser: ArgumentParser, arguments: Iterable[str]) -> Namespace:
    """Parses what the user typed; every complaint is a UsageError that names the flag, the rule and what came."""
    arguments = list(_spelled(parser, arguments))
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise UsageError(_complaint(parser, str(error))) from error


def _spelled(parser: ArgumentParser, arguments: Iterable[str]) -> Iterator[str]:
    """The arguments with their flags as the parser spells them: --max-minutes, --no-progress; unknown flags raise."""
    flags = {flag.replace("-", "_"): flag for flag in parser._option_string_actions}
    previous = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        key = name.replace("-", "_")
        positive = flags.get(key.replace("__no_", "__", 1), "")
        if not name.startswith("--"):
            yield f".{argument}" if argument == "inf" and _takes_number(parser, previous) else argument  # YAML's spelling
        elif key in flags:
            value = f".{value}" if value == "inf" and _takes_number(parser, flags[key]) else value
            argument = flags[key] + equals + value
            yield argument
        elif positive and not equals and parser._option_string_actions[positive].nargs == "?":
            yield f"{positive}=false"
        else:
            raise UsageError(f"There is no flag {name}.{_nearest_flag(key, flags)}")
        previous = argument


def _takes_number(parser: ArgumentParser, flag: str) -> bool:
    return flag in parser._option_string_actions and _kind(parser._option_string_actions[flag]) is float


def _nearest_flag(key: str, spellings: Mapping[str, str]) -> str:
    """` Did you mean --flag?`, also where a model's flag lacks its prefix or the name is cut short."""
    short = {k.rpartition(".")[2] if "." in k else k[2:]: spelling for k, spelling in spellings.items()}
    name = key[2:].rpartition(".")[2]
    for options, wanted in ((short, name), (spellings, key)):
        close = [wanted] if wanted in options else difflib.get_close_matches(wanted, options, n=1)
        if close:
            return f" Did you mean {options[close[0]]}?"
    return ""


def _complaint(parser: ArgumentParser, message: str) -> str:
    """A message of jsonargparse in words for people."""
    actions = {action.dest: action for action in parser._actions}
    found = re.search(r'^Parser key "([^"]+)":.*(?:Got|Given) value: (.*)$', message, re.S)
    if found and found[1] in actions:
        kind, value = _kind(actions[found[1]]), found[2].strip()
        return f"--{found[1]} must be {_words(kind)}; received {value!r}.{nearest(value, map(str, get_args(kind)))}"
    found = re.search(r"^argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)$", message, re.S)
    if found:
        options = [option.strip(" '") for option in found[3].split(",")]
        return f"{found[1]} must be one of {', '.join(options)}; received {found[2]!r}.{nearest(found[2], options)}"
    found = re.search(r"^Option '([^']+)' is not accepted", message)
    if found:
        return f"The config file sets {found[1]!r}, which does not exist.{nearest(found[1], actions)}"
    found = re.search(r"^the following arguments are required: (.*)", message)
    if found:
        names = [("--" if actions[name].option_strings else "") + name for name in found[1].split(", ") if name in actions]
        return f"Missing: {', '.join(name if name.startswith('--') else name.upper() for name in names)}."
    return f"{message[:1].upper()}{message[1:].rstrip('.')}."


def _kind(action: Any) -> Any:
    """The type that a flag was declared with."""
    return getattr(action, "_typehint", None) or action.type


def _words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(kind)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(kind) or f"of type {getattr(kind, '__name__', kind)}"


def _add_data(parser: Any, text: str, *, required: bool = False) -> None:
    parser.add_argument("--data", type=str, required=required, help=text)
    _add_reading(parser)


def _add_reading(parser: Any) -> None:
    """Flags `--data_X` that say how data is read, see `_reading`: the options of labelled tokens, of which files differ most."""
    from tfseq.data.conll import load_conll

    parser.add_argument("--data_dir", type=str, help="folder of already downloaded data files; TFSEQ_DATA where not given")
    group = parser.add_argument_group("files of labelled tokens (.conll, .bio, .iob, .conllu, .json)")
    add_signature(group, load_conll, load_conll, skip=("labelled",), prefix="data_", optional=True)


def _reading(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of flags, or of a config file, those that say how data is read, where they were given: arguments of `load_dataset`."""
    given = {str(name): value for name, value in settings.items() if value is not None}
    found = {name.removeprefix("data_"): value for name, value in given.items() if name.startswith("data_")}
    return {"data_dir" if name == "dir" else name: value for name, value in found.items()}


def _check_data(name: str, argument: str = "--data") -> str:
    """`name` of a data set, or the absolute path of a file or folder; UsageError otherwise."""
    name = str(name)  # in a config file anything may stand there
    if name in DATASETS:
        return name
    try:
        splits_of(name)
    except ValueError as error:
        raise UsageError(str(error).replace("`name`", argument)) from error
    return str(Path(name).resolve())


def _add_split(parser: Any, verb: str) -> None:
    parser.add_argument("--split", choices=SPLITS, help=f"part of the data to {verb} (default: test; train where there is none)")


def _split(data: str, split: str | None) -> str:
    """The split asked for, else `"test"` where the data has it."""
    return split or ("test" if "test" in splits_of(data) else "train")


# Tables -------------------------------------------------------------------------------------------------------------


def list_models(arguments: list[str]) -> None:
    """`tfseq models`."""
    parse(make_parser("models"), arguments)
    print("\n".join(_columns((name, entry.summary) for name, entry in MODELS.entries.items())))


def list_datasets(arguments: list[str]) -> None:
    """`tfseq datasets`."""
    parse(make_parser("datasets"), arguments)
    print("\n".join(_columns((name, entry.summary) for name, entry in DATASETS.items())))


# Shards -------------------------------------------------------------------------------------------------------------


def data(arguments: list[str]) -> None:
    """`tfseq data`."""
    import_tensorflow()
    from tfseq.data.shards import Shards, splits_in, write_shards

    parser = make_parser("data")
    parser.add_argument(
        "action", choices=["shard", "check"], help="write shards, or read all shards of a folder and compare them"
    )
    parser.add_argument(
        "--data",
        type=str,
        nargs="+",
        required=True,
        help=f"data set, or {_OWN_DATA}; several follow each other, so that each fits into memory, where a .txt file need not",
    )
    _add_reading(parser)
    parser.add_argument("--split", choices=SPLITS, help="the only part to write (default: all that the data have)")
    parser.add_argument("--out", type=str, help="folder to write, for `tfseq train MODEL --data`")
    parser.add_argument("--unit", choices=["words", "characters"], help="what to cut texts into (default: characters; words, "
                        "where they have labels or translations)")  # fmt: skip
    parser.add_argument("--num_shards", type=int, default=32, help="files of a split")
    chosen = parse(parser, arguments)
    names = [_check_data(name) for name in chosen.data]
    splits = [split for split in SPLITS if split == (chosen.split or split) and split in splits_of(names[0])]
    if not splits:
        raise UsageError(f"--split must be one that {names[0]} has: {', '.join(splits_of(names[0]))}; received {chosen.split}.")
    if chosen.action == "check":
        for split in splits:
            Shards(names[0], split).check()
        print(f"{names[0]} is as it was written")
        return
    if chosen.out is None:
        raise UsageError("Missing: --out.")
    if there := sorted(set(splits) & set(splits_in(chosen.out))):
        raise ValueError(f"--out must be without these splits; {chosen.out} has shards of {', '.join(there)} already.")
    contents = {}
    for split in splits:  # all begin before one is written
        parts = [name for name in names if split in splits_of(name)]
        contents[split] = _in_tokens(parts, split, _reading(vars(chosen)), chosen.unit)
    for split, (about, blocks) in contents.items():
        with _working(f"Writing {split}"):
            shards = write_shards(blocks, chosen.out, split=split, num_shards=chosen.num_shards, **about)
        words = f" of {shards.unit}" if shards.unit else ""
        print(f"{split}: {len(shards)} sequences{words}, {int(shards.lengths.sum())} steps, {shards.num_bytes / 1e6:.1f} MB")
    print("next:", *_columns([(f"tfseq train MODEL --data {shlex.quote(chosen.out)}", "read them as they are needed")]), sep="\n")


def _in_tokens(
    names: Sequence[str], split: str, reading: Mapping[str, Any], unit: str | None
) -> tuple[dict[str, Any], Iterator[Sequences]]:
    """What `write_shards` is told of texts; and the data sets one after the other, texts cut into tokens."""
    from tfseq.data.shards import long_texts
    from tfseq.layers.text import tokenize
    from tfseq.models.reader import is_raw, tokens_of

    def uncut() -> Iterator[Sequences]:
        for name in names:
            yield from (set(reading) <= {"data_dir"} and long_texts(name, split)) or [load_dataset(name, split, **reading)]

    def cut(block: Sequences) -> Sequences:
        fields = [name for name in ("x", "target") if is_raw(getattr(block, name))]
        found: dict[str, Any] = {name: tokens_of(getattr(block, name), lambda text: tokenize(text, kind)) for name in fields}
        if pieces:  # of which each lane of a language model keeps some in memory
            found["x"] = [x[i : i + _PIECE] for x in found["x"] for i in range(0, len(x), _PIECE)]
        return replace(block, names=(), **found) if found else block

    blocks = uncut()
    first = next(blocks, None)
    if first is None:
        raise ValueError(
            f"{names[0]} must have lines for each of train, valid and test, 90, 5 and 5 % of its bytes; {split} has none. Give a "
            "folder with train.txt, or --split train."
        )
    if not (is_raw(first.x) or is_raw(first.target)):
        return {}, itertools.chain([first], blocks)
    has_labels = first.y is not None or first.target is not None
    kind: Literal["words", "characters"] = "words" if unit == "words" or (unit is None and has_labels) else "characters"
    pieces = len(first) == 1 and not has_labels  # one text
    return {"unit": kind, "pieces": pieces}, map(cut, itertools.chain([first], blocks))


# Training -----------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """`tfseq train`."""
    has_name = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if has_name else (None, arguments)
    if name is None and {"-h", "--help"} & set(rest):
        print(_train_overview())
        return
    resume = "--resume" in rest
    if resume:  # the settings of the run come first, so that flags come after them
        rest = ["--config", str(_resumable(rest)), *rest]
    file = _value_of(rest, "--config")
    settings = {} if file is None else read_config(Path(file))
    name = name or _model_in(settings)
    if name not in MODELS.entries:
        raise UsageError(f"There is no model {name!r}.{nearest(name, MODELS)} Models: {', '.join(MODELS)}.")
    if "preset" in settings:
        raise UsageError(f"{file} names a preset, which only the flag --preset can do.")
    data = _value_of(rest, "--data") or settings.get("data")
    num_workers, in_cluster = _num_workers(rest, settings), bool(os.environ.get("TF_CONFIG", "").strip())
    if in_cluster and _value_of(rest, "--out") is None and settings.get("out") is None:
        raise UsageError("--out must be given where TF_CONFIG lists the workers: a folder that all of them see.")
    if num_workers > 1 and data and not in_cluster:
        out = Path(_value_of(rest, "--out") or settings.get("out") or _new_folder(name, data))
        sys.exit(_launch(["train", *arguments, "--out", str(out)], num_workers, out, resume))
    import_tensorflow(in_cluster)
    parser = train_parser(name)
    chosen = parse(parser, _with_preset(parser, name, rest))
    if chosen.model.name != name:
        raise UsageError(f"The config file is for the model {chosen.model.name!r}; received {name!r}.")
    chosen.data = _check_data(chosen.data)
    for flag in ("data_dir", "vectors"):
        if chosen.get(flag) is not None:
            chosen[flag] = str(Path(chosen[flag]).resolve())  # a run may be resumed from another folder
    if resume:
        _check_unchanged(parse(parser, rest[:2]), chosen)
    out = Path(chosen.out or _new_folder(name, chosen.data))
    _check_folder(out, resume)
    run, seen = _train(chosen, out)
    if _is_chief():
        _report(run, seen, out, splits_of(chosen.data))
    if run.diverged:
        sys.exit(DIVERGED)


def train_parser(name: str) -> ArgumentParser:
    """Flags of `tfseq train NAME`: those of `tfseq.train` and, as `--model.X`, those of the model's constructor."""
    from tfseq.training import train

    model = MODELS[name]
    parser = make_parser("train", "Of several values the last one counts.")
    parser.add_argument("--config", action="config", help="YAML file of settings, such as the config.yaml of a run")
    _add_data(parser, f"data set, or {_OWN_DATA}", required=True)
    parser.add_argument("--out", type=str, help="run folder (default: runs/MODEL-DATA-DATE-TIME)")
    presets = ", ".join(f"{k}: {' '.join(f'{n}={v}' for n, v in p.items())}" for k, p in model.presets.items())
    parser.add_argument("--preset", choices=[*model.presets], help=f"named settings of the model; {presets or 'it has none'}")
    if hasattr(model, "vectors_from"):
        parser.add_argument("--vectors", type=str, help="text file of word vectors (GloVe, word2vec, fastText) to start from")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its settings")
    parser.add_argument("--workers", type=int, default=1, help="processes of this machine that share the rows of every batch")
    add_signature(parser.add_argument_group("training"), train, train, skip=("out", "resume"))
    group = parser.add_argument_group(f"the model {name}")
    group.add_argument("--model.name", choices=[*MODELS], default=name, help="for config files: the model")
    add_signature(group, model.__init__, model, skip=model.from_data_arguments(), prefix="model.")
    precision = "of weights and computation; likelihoods stay float32 in mixed ones (default: float32)"
    group.add_argument("--model.dtype", choices=("float32", "float64", "mixed_bfloat16", "mixed_float16"), help=precision)
    return parser


def _train_overview() -> str:
    return "\n".join(
        [
            f"usage: tfseq {COMMANDS['train'].usage}",
            "",
            "tfseq train MODEL --help lists all flags of training and of the model, with their defaults.",
            "",
            "models:",
            *_columns((name, entry.summary) for name, entry in MODELS.entries.items()),
            "",
            f"data sets (or {_OWN_DATA}):",
            *_columns((name, entry.summary) for name, entry in DATASETS.items()),
        ]
    )


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The last value given to `flag`, before anything is parsed."""
    found = None
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def _is_chief() -> bool:
    """Whether this process prints and writes, of the workers that train together."""
    import tensorflow as tf

    from tfseq.models.replicas import is_chief

    return is_chief(tf.distribute.get_strategy())


def _num_workers(arguments: Sequence[str], settings: Mapping[str, Any]) -> int:
    """`--workers`, or what the config file says."""
    text = _value_of(arguments, "--workers") or str(settings.get("workers", 1))
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--workers must be a whole number of at least 1; received {text!r}.")
    return int(text)


def _launch(command: Sequence[str], num_workers: int, out: Path, resume: bool) -> int:
    """Trains in several processes; the exit code. They go on from the last checkpoint where they have to begin again."""
    starts = itertools.count()

    def command_now() -> list[str]:
        again = ["--resume"] if next(starts) and not resume and _checkpoint(out).is_file() else []
        return [sys.executable, "-m", "tfseq", *command, *again]

    return run_workers(command_now, num_workers, out / "workers")


def _resumable(arguments: Sequence[str]) -> Path:
    """`config.yaml` of the run in `--out`."""
    out = _value_of(arguments, "--out")
    if out is None:
        raise UsageError("--resume needs --out RUN, the folder of the run to go on with.")
    config = Path(out) / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"There is no run to resume in {out} (no config.yaml there). Start it without --resume.")
    if not _checkpoint(Path(out)).is_file():
        raise FileNotFoundError(f"The run in {out} has no checkpoint to go on from. Start anew: tfseq train --config {config}")
    return config


def _checkpoint(out: Path) -> Path:
    """What `--resume` goes on from."""
    return out / "checkpoints" / "last.keras"


def _model_in(settings: Mapping[str, Any]) -> str:
    """The model's name in the settings of a config file."""
    model = settings.get("model")
    if not isinstance(model, Mapping) or "name" not in model:
        raise UsageError(f"The model comes first (or as name below model in --config FILE). Models: {', '.join(MODELS)}.")
    return str(model["name"])


def read_config(path: Path) -> dict[str, Any]:
    """A YAML file of settings.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no YAML, or no table of settings.
    """
    import yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise FileNotFoundError(f"There is no config file {path}.")
    try:
        found = yaml.safe_load(path.read_text())
    except Exception as error:  # PyYAML raises whatever a wrong date, number or depth of nesting leads to
        raise ValueError(f"{path} is no readable YAML file ({type(error).__name__}: {error}).") from error
    if not isinstance(found, dict):
        received = found[:50] if isinstance(found, str) else type(found).__name__
        raise ValueError(f"{path} must hold settings, NAME: VALUE; received {received!r}.")
    return found


def _with_preset(parser: ArgumentParser, name: str, arguments: Iterable[str]) -> Iterator[str]:
    """The arguments with `--preset NAME` followed by the flags it stands for."""
    arguments = list(_spelled(parser, arguments))
    previous = ""
    for argument in arguments:
        yield argument
        preset = argument if previous == "--preset" else argument.removeprefix("--preset=")
        if preset != argument or previous == "--preset":
            values = MODELS[name].presets.get(preset, {}).items()
            yield from (f"--model.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values)
        previous = argument


def _check_unchanged(saved: Namespace, chosen: Namespace) -> None:
    """UsageError where flags beside `--resume` contradict the run: its rate, optimiser and order of data are part of it."""
    before, after = vars(saved.as_flat()), vars(chosen.as_flat())
    from tfseq.training import may_change

    free = _NOT_OF_THE_RUN | may_change(saved.schedule)
    if not {saved.data, chosen.data} & set(DATASETS):  # files may have moved; whether they are the same, their content decides
        free |= {"data"}
    changed = [name for name, value in after.items() if name not in free and value != before[name]]
    if changed:
        received = ", ".join(f"--{name} (the run has {before[name]}, received {after[name]})" for name in changed)
        why = " The cosine schedule spans all epochs of a run." if "epochs" in changed else ""
        raise UsageError(f"--resume goes on with the settings of the run, which cannot change: {received}.{why}")


def _new_folder(name: str, data: str) -> Path:
    path = Path(data)
    return Path("runs") / f"{name}-{path.stem if path.is_file() else path.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _check_folder(out: Path, resume: bool) -> None:
    """Raises where `out` cannot be the run's folder, before any work."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder; {out} is a file.")
    if resume:
        return
    from tfseq.training import RUN_FILES

    if there := [name for name in RUN_FILES if (out / name).exists()]:
        hint = "Add --resume, or choose another" if _checkpoint(out).is_file() else "Choose another"
        raise ValueError(f"--out must be a new run folder; {out} already holds {there[0]}. {hint}.")
    config = out / "config.yaml"
    if config.is_file() and not config.read_text(errors="replace").startswith(_HEADER[:20]):
        raise ValueError(f"--out must be a new run folder; {config} is not of a run and would be lost.")


def _train(chosen: Namespace, out: Path) -> tuple[Run, Sequences]:
    """Data, model, config.yaml, training: the run, and what it was trained on."""
    import keras

    from tfseq.data import Sequences
    from tfseq.training import alone_in, train

    reading = _reading(vars(chosen))
    data: Any = _streamed(chosen.data, "train", reading)
    validation = _streamed(chosen.data, "valid", reading) if "valid" in splits_of(chosen.data) else None
    if (unit := getattr(data, "unit", "")) and chosen.model.get("unit", unit) != unit:
        raise ValueError(
            f"--model.unit must be {unit}, into which the texts of {data.name} were cut; received {chosen.model.unit}."
        )
    seen = data if isinstance(data, Sequences) else data.sample()
    _check_suits(chosen.model, seen)
    _advise_unit(chosen.model, seen)
    checks.at_least(0, seed=chosen.seed)
    checks.at_most(2**32 - 1, seed=chosen.seed)
    keras.utils.set_random_seed(chosen.seed)
    model_class = MODELS[chosen.model.name]
    hyperparameters = {name: value for name, value in chosen.model.as_dict().items() if name != "name"}
    if hyperparameters["dtype"] is None:
        del hyperparameters["dtype"]
    if getattr(data, "pieces", False) and "ends" in model_class.from_data_arguments():
        hyperparameters["ends"] = False
    model = model_class.from_data(seen, **hyperparameters)
    if chosen.get("vectors") is not None and not (chosen.resume and _checkpoint(out).is_file()):  # which has them
        _start_from_vectors(model, Path(chosen.vectors))
    settings = {
        name: chosen[name] for name in inspect.signature(train).parameters if name not in ("model", "data", "validation", "out")
    }
    with contextlib.ExitStack() as stack:
        if _is_chief():
            stack.enter_context(alone_in(out))
            _write_config(chosen, out)
        return train(model, data, validation, out=out, **settings), seen


def _streamed(name: str, split: str, reading: Mapping[str, Any]) -> Sequences | Shards:
    """A split of a data set; of a folder of shards, without taking it into memory."""
    from tfseq.data.shards import Shards, splits_in

    is_streamed = splits_in(name) and set(reading) <= {"data_dir"}  # of shards, all else is an error
    return Shards(name, split) if is_streamed else load_dataset(name, split, **reading)


def _start_from_vectors(model: Any, path: Path) -> None:
    """The embedding's rows of the words that a file has."""
    from tfseq.data.vectors import read_vectors

    if model.text is None:
        raise UsageError("--vectors is for data of words; this data has numbers.")
    found = read_vectors(path, model.text.vocabulary)
    size, wanted = found.matrix.shape[1], model.embedding.dim
    if size != wanted:
        raise ValueError(
            f"{path}, line 1: vectors must have --model.embedding_dim = {wanted} numbers; received {size}. "
            f"Set --model.embedding_dim {size}, or give another file."
        )
    model.vectors_from(found.matrix, found.found)
    print(f"tfseq: {path} has vectors of {found.coverage:.1%} of the vocabulary.", file=sys.stderr)


def _is_text(data: Sequences) -> bool:
    """Whether x are texts, or tokens."""
    return data.is_text or (len(data) > 0 and getattr(data.x[0], "dtype", None) is not None and data.x[0].dtype.kind == "U")


def _check_suits(settings: Namespace, data: Sequences) -> None:
    """ValueError where a model reads data of another kind."""
    name = settings.name
    from tfseq.models.reader import Reader

    readers = [model for model in MODELS if issubclass(MODELS[model], Reader)]
    if name not in readers and _is_text(data):
        raise ValueError(
            f"--data must be numbers for the model {name}; {data.name} holds {'texts' if data.is_text else 'tokens'}. Models "
            f"that read these: {', '.join(readers)}."
        )
    if name == "tagger" and settings.head != "ctc" and data.one_label:
        raise ValueError(
            f"--data must have a label for each step for the model tagger; {data.name} has one for each sequence. The model "
            "classifier learns these" + ("." if data.target is None else ", and --model.head ctc a transcription.")
        )


def _advise_unit(settings: Namespace, data: Sequences) -> None:
    """A note where texts would be cut into words, but data is of letters."""
    if settings.as_dict().get("unit") != "words" or not _is_text(data):
        return
    some = [] if data.is_text else [str(token) for x in data.x[:20] for token in x]
    if data.step in ("base", "letter") or (some and max(map(len, some)) == 1):
        print(
            f"tfseq: a step of {data.name} is one {data.step}, but this model cuts texts into words. --model.unit characters "
            "cuts them as the data.",
            file=sys.stderr,
        )


def _write_config(chosen: Namespace, out: Path) -> None:
    """`config.yaml`: the whole configuration, except where the run lies."""
    import yaml

    kept = {
        name: value for name, value in chosen.as_dict().items() if name not in ("config", "out", "preset", "resume", "workers")
    }
    with replace_file(out / "config.yaml") as path:
        path.write_text(_HEADER + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def _report(run: Run, data: Sequences, out: Path, splits: Collection[str]) -> None:
    """The result of training, and what to do next."""
    monitor = f"val_{run.model.monitor}"
    validated = [row for row in run.history if monitor in row]
    if validated:
        best = (max if run.model.higher_is_better else min)(validated, key=lambda row: row[monitor])
        when = f"epoch {best['epoch']} of {len(run.history)}; {run.stopped}"
        print(f"best validation: {best[monitor]:.3f}, {run.model.convention} ({when})")
    else:
        last = run.history[-1]
        found = f"{last['nats_per_step']:.3f} nats per step" if "nats_per_step" in last else f"loss {last['loss']:.3f}"
        print(f"last training epoch: {found} (epoch {len(run.history)}; {run.stopped})")
        print("nothing was validated: the data has no split valid, so these are the last weights")
    steps = _next_steps(run.model, data, out, "test" if "test" in splits else "train")
    print(f"run: {out}", "next:", *_columns(steps), sep="\n")


def _next_steps(model: SequenceModel, data: Sequences, out: Path, split: str) -> Iterator[tuple[str, str]]:
    """Commands that fit a model, and what they do."""
    from tfseq.models.language_model import LanguageModel
    from tfseq.models.reader import Reader

    run, is_reader = shlex.quote(str(out)), isinstance(model, Reader)
    scores = is_reader and not isinstance(model, LanguageModel)
    yield f"tfseq evaluate {run}", f"its {'scores' if scores else 'likelihood'} on the {split} split"
    if is_reader and model.text is not None:
        what = {"classes": "classes", "tags": "tags", "target_text": "translations"}
        word = "log-probabilities" if not scores else next(words for name, words in what.items() if hasattr(model, name))
        yield f"echo {shlex.quote(_example(data))} | tfseq predict {run}", f"{word} of texts, a line each"
    elif is_reader or hasattr(model, "decode"):
        yield f"tfseq predict {run} INPUT", "what it says of other sequences" if is_reader else "what it infers, step by step"
    if hasattr(model, "sample") or isinstance(model, LanguageModel):
        yield f"tfseq sample {run}", "a new text" if is_reader else "new sequences"
    yield f"tfseq export {run} --out {shlex.quote(f'saved_models/{out.name}')}", "a SavedModel for TF Serving"


def _example(data: Sequences) -> str:
    """The beginning of a text of a data set, or of its tokens."""
    for x in data.x:
        if isinstance(x, str):
            line = next((line for line in x.splitlines() if line.strip()), "")
            text = line if len(line) <= 60 else line[:60].rpartition(" ")[0] or line[:60]
        else:
            tokens = [str(token) for token in x[:30]]
            text = "".join(tokens) if max(map(len, tokens), default=0) == 1 else " ".join(tokens[:8])
        if text.strip():
            return text.strip()
    return "..."


# Runs ---------------------------------------------------------------------------------------------------------------


def _load(run: str) -> SequenceModel:
    """The model of a run folder or a .keras file."""
    from tfseq.training import load

    return load(run)


def _run_file(run: str, name: str) -> Path:
    """A file of a run folder, or beside a `.keras` file."""
    path = Path(run)
    return (path if path.is_dir() else path.parent) / name


def read_card(run: str) -> dict[str, Any]:
    """`card.json` of a run; empty where training did not end.

    Raises:
        ValueError: the file is damaged.
    """
    path = _run_file(run, "card.json")
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it to go on without.") from error
    if not isinstance(card, dict) or not isinstance(card.get("data", {}), dict):
        raise ValueError(f"{path} is damaged (it is not the card of a run). Delete it to go on without.")
    return card


def _data_of(chosen: Namespace) -> tuple[str, dict[str, Any]]:
    """The data to score, as asked for, else what the run was trained on; and how to read it, as arguments of `load_dataset`."""
    config = read_config(path) if (path := _run_file(chosen.run, "config.yaml")).is_file() else {}
    reading = ({} if chosen.data else _reading(config)) | _reading(vars(chosen))
    data = chosen.data or config.get("data") or read_card(chosen.run).get("data", {}).get("name")
    if data is None:
        raise UsageError(f"{chosen.run} does not say what it was trained on; give --data NAME.")
    return _check_data(data), reading


def evaluate(arguments: list[str]) -> None:
    """`tfseq evaluate`."""
    import_tensorflow()
    from tfseq.evaluation import evaluate, is_binary
    from tfseq.models.reader import Reader

    parser = make_parser("evaluate")
    parser.add_argument("run", type=str, help="run folder, or .keras file")
    _add_data(parser, f"data set, or {_OWN_DATA} (default: what the run was trained on)")
    _add_split(parser, "score")
    add_signature(parser, evaluate, evaluate, skip=("baselines_from",))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    chosen = parse(parser, arguments)
    model = _load(chosen.run)
    name, reading = _data_of(chosen)
    split = _split(name, chosen.split)
    if split != (chosen.split or "test"):
        print(f"tfseq: {name} has no split test; this scores train, which the model may have been fitted to.", file=sys.stderr)
    data = load_dataset(name, split, **reading)
    _check_rate("--data", data, name, chosen.run)
    has_baselines = "train" in splits_of(name) and (
        isinstance(model, Reader)
        or bool(chosen.get("forecast_steps"))
        or (not hasattr(model, "log_partition") and is_binary(data))
    )
    baselines_from = load_dataset(name, "train", **reading) if has_baselines else None
    names = inspect.signature(evaluate).parameters
    settings = {k: chosen[k] for k in names if k in chosen and k not in ("model", "data", "baselines_from")}
    with _working(f"Scoring {len(data)} sequences"), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        result = evaluate(model, data, baselines_from=baselines_from, **settings)
    for note in {str(note.message) for note in notes if issubclass(note.category, UserWarning)}:
        print(f"tfseq: {note}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(_finite({"data": data.name, "split": data.split, **result}), allow_nan=False))
    else:
        _print_table(result, f"{type(model).__name__} on {data.name}, {data.split} split")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _working(text: str) -> Iterator[None]:
    """A sign of life on standard error while the block runs, where that is a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(f"{text} ..."):
        yield


_DIGITS = {"accuracy": 4, "entity_f1": 4, "error_rate": 4, "calibration_error": 4, "bleu": 2}
"""Digits after the point that a figure is shown with, where these are not 3."""


def _print_table(result: Mapping[str, Any], title: str) -> None:
    """Every figure with its standard error and its convention, and the baselines."""
    from rich.console import Console
    from rich.table import Table

    from tfseq.evaluation import CONVENTIONS

    errors = {"importance_per_step": "importance_standard_error"}  # `standard_error` is that of the bound, or exact figure
    errors |= dict.fromkeys(("bound_per_step", "log_prob_per_step", "log_prob"), "standard_error")
    errors |= {"fivo_per_step": "fivo_standard_error", "log_prob_per_sequence": "per_sequence_standard_error"}
    of_reader = "nats_per_token" in result
    main = ("accuracy" if "accuracy" in result else "nats_per_token") if of_reader else ""
    errors |= {main: "standard_error"}
    per_step = "protocol" not in result and not of_reader  # else of a Boltzmann machine
    header = ("nats per step", "convention (lower is better)") if per_step else ("nats", "what it is")
    if per_step and {"crps", "log_prob_per_sequence"} & set(result):
        header = ("value", "convention (nats per step, lower is better, unless stated)")
    table = Table("figure", "value" if of_reader else header[0], "std. error", header[1])
    for column in table.columns[1:3]:
        column.justify = "right"
    for key, convention in CONVENTIONS.items():
        if key in result and key not in _OF_FORECASTS:
            digits, error = _DIGITS.get(key, 3), result.get(errors.get(key, ""))
            table.add_row(
                key, f"{result[key]:.{digits}f}", "" if error is None or math.isnan(error) else f"{error:.{digits}f}", convention
            )
    for i, (name, value) in enumerate(result.get("baselines", {}).items()):
        if i == 0:
            table.add_section()
        what = f"{main} of a baseline" if of_reader else "baseline"
        table.add_row(name, f"{value:.{_DIGITS.get(main, 3)}f}", "", f"{what}, fitted to the train split")
    _add_forecasts(table, result)
    counts = {
        "num_sequences": "sequences",
        "num_steps": "steps",
        "num_samples": "samples each",
        "num_particles": "particles each",
        "dynamic_rate": "rate",
        "dynamic_window": "tokens a step of dynamic evaluation",
    }
    if of_reader and "protocol" in result:
        title += f" ({result['protocol']})"
    elif not of_reader and not per_step:
        title += f" (values: {result['protocol']}{'; log_prob is a lower bound' if result.get('is_bound') else ''})"
        counts |= {"num_chains": "chains", "num_temperatures": "temperatures of annealing"}
    print(f"{title}: {', '.join(f'{result[key]} {words}' for key, words in counts.items() if key in result)}")
    if "forecast_protocol" in result:
        print(f"Forecasts: {result['forecast_protocol']}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


_OF_FORECASTS = ("crps", "forecast_error", "coverage")


def _add_forecasts(table: Any, result: Mapping[str, Any]) -> None:
    """Rows of the scores of forecasts: those of the model, then those of each baseline."""
    from tfseq.evaluation import CONVENTIONS

    def shown(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"  # in units of the data

    for name, found in {"": result, **result.get("forecast_baselines", {})}.items():
        if "crps" not in found:
            continue
        table.add_section()
        of = f" of {name}" if name else ""
        for key, error in (("crps", "crps_standard_error"), ("forecast_error", "forecast_standard_error")):
            what = "baseline, fitted to the train split" if name else CONVENTIONS[key]
            table.add_row(f"{key}{of}", shown(found[key]), shown(found[error]), what)
        for i, (level, share) in enumerate(found["coverage"].items()):
            what = CONVENTIONS["coverage"] if not name and i == 0 else ""
            table.add_row(f"coverage of {level:.0%}{of}", shown(share), shown(found["coverage_standard_error"][level]), what)


def predict(arguments: list[str]) -> None:
    """`tfseq predict`."""
    parser = make_parser(
        "predict",
        "Taggers, classifiers, language models and translators answer each text, in its order. Of other models there is one "
        "INPUT and a row for each of its steps: sequence, step, and what the model infers there.",
    )
    parser.add_argument("run", type=str, help="run folder, or .keras file")
    parser.add_argument(
        "input",
        type=str,
        nargs="*",
        help=f"data set, or {_OWN_DATA}; of models that read texts, also a file with a text a line (.txt), or - for such lines "
        "on standard input (default); of those trained on recordings also .wav",
    )
    _add_reading(parser)
    _add_split(parser, "decode")
    parser.add_argument("--batch_size", type=int, default=20, help="sequences at once; it does not change the result")
    forms = "columns, or one JSON object a line (default: conll; json where --out ends in .json)"
    parser.add_argument("--format", choices=("conll", "json"), help=f"what texts are answered with: {forms}")
    parser.add_argument("--n_best", type=int, default=0, help="as many of the best tag sequences of a CRF, for --format json")
    files = "FILE.csv; of models that read texts .conll, .tsv, .txt, .json or .jsonl"
    parser.add_argument("--out", type=str, help=f"file to write, {files} (default: standard output)")
    parser.add_argument("--plot", type=str, help=f"picture of the first sequence, its suffix {', '.join(_PICTURES)}")
    chosen = parse(parser, arguments)
    checks.at_least(1, batch_size=chosen.batch_size)
    checks.at_least(0, n_best=chosen.n_best)
    for flag, suffixes in (("out", (".csv", *_ANSWERS)), ("plot", _PICTURES)):
        if chosen[flag] is not None and Path(chosen[flag]).suffix.lower() not in suffixes:
            raise UsageError(f"--{flag} must end in {' or '.join(suffixes)}; received {chosen[flag]!r}.")
    for name in chosen.input:
        if name != "-" and (Path(name).is_dir() or not Path(name).exists()):
            _check_data(name, "INPUT")
    import_tensorflow()
    from tfseq.models.reader import Reader

    model = _load(chosen.run)
    if isinstance(model, Reader):
        _answer(model, chosen)
    else:
        _decode_steps(model, chosen)


_ANSWERS = (".conll", ".tsv", ".txt", ".json", ".jsonl")


def _decode_steps(model: SequenceModel, chosen: Namespace) -> None:
    """What `decode` of a model says of the sequences of INPUT, a row a step."""
    _method(model, "decode")  # before the data is read
    if len(chosen.input) != 1:
        rule = f"takes one INPUT, a data set or a file; received {len(chosen.input)}"
        raise UsageError(f"Missing: INPUT. A {type(model).__name__} {rule}." if not chosen.input else f"This run {rule}.")
    for flag in ("format", "n_best"):
        if chosen[flag]:
            raise UsageError(f"--{flag} is for models that read texts; this is a {type(model).__name__}.")
    if chosen.out is not None and Path(chosen.out).suffix.lower() != ".csv":
        raise UsageError(f"--out must end in .csv for a {type(model).__name__}; received {chosen.out!r}.")
    data = _input_data(chosen.input[0], chosen)
    with _working(f"Decoding {len(data)} sequences"):
        found = _decode(model, data, chosen.batch_size)
    if chosen.plot is not None:
        _plot_states(model, data, found, chosen.plot)
    if chosen.out is None:
        _write_steps(sys.stdout, data, found)
    else:
        with replace_file(chosen.out) as path, path.open("w", newline="", encoding="utf-8") as file:
            _write_steps(file, data, found)
        print(chosen.out)
    if chosen.plot is not None:
        print(chosen.plot, file=sys.stderr if chosen.out is None else sys.stdout)


def _input_data(name: str, chosen: Namespace, **options: Any) -> Sequences:
    """The data set that INPUT names, read with `options` of its loader."""
    name = _check_data(name, "INPUT")
    data = load_dataset(name, _split(name, chosen.split), **_reading(vars(chosen)), **options)
    _check_rate("INPUT", data, name, chosen.run)
    return data


def _check_rate(flag: str, data: Sequences, name: str, run: str) -> None:
    """UsageError where data and that of a run are recordings at different sampling rates."""
    rate = _about(run)["sampling_rate"]
    if None not in (rate, data.sampling_rate) and data.sampling_rate != rate:
        raise UsageError(
            f"{flag} must have {rate} samples a second, as what this run was trained on; {name} has {data.sampling_rate}. "
            f"Convert it: ffmpeg -i IN -ar {rate} OUT.wav."
        )


def _answer(model: Reader, chosen: Namespace) -> None:
    """What a model of tokens or frames says of the sequences of INPUT, in their order, as they come."""
    from tfseq.writers import answer_lines

    form = chosen.format or ("json" if chosen.out and Path(chosen.out).suffix.lower() in (".json", ".jsonl") else "conll")
    if chosen.out is not None and Path(chosen.out).suffix.lower() not in _ANSWERS:
        raise UsageError(f"--out must end in {' or '.join(_ANSWERS)} for a {type(model).__name__}; received {chosen.out!r}.")
    if chosen.n_best and (form != "json" or getattr(model, "crf", None) is None):
        raise UsageError("--n_best is for taggers with head=crf and --format json.")
    if chosen.plot is not None and not (hasattr(model, "attention_weights") or getattr(model, "head", "ctc") != "ctc"):
        raise UsageError(f"--plot is for taggers and translators; this is a {type(model).__name__}.")
    plotted = chosen.plot is None
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if chosen.out is not None:
            path = stack.enter_context(replace_file(chosen.out))
            file = stack.enter_context(path.open("w", newline="\n", encoding="utf-8"))
        for data in _blocks(model, chosen):
            for answer in _answers(model, data, chosen.batch_size, chosen.n_best, form == "json"):
                file.write(answer_lines(answer, form))
            file.flush()
            lengths = () if plotted else model.prepare(data).lengths  # a text of blanks has characters and no tokens
            if (row := next((row for row, n in enumerate(lengths) if n), None)) is not None:
                _plot_answer(model, data.take([row]), chosen.plot)
                plotted = True
    if chosen.out is not None:
        print(chosen.out)
    if not plotted:
        raise ValueError("--plot needs a sequence that is not empty; INPUT has none.")
    if chosen.plot is not None:
        print(chosen.plot, file=sys.stderr if chosen.out is None else sys.stdout)


def _blocks(model: Reader, chosen: Namespace) -> Iterator[Sequences]:
    """The sequences of INPUT in their order, some at a time: of standard input those that are there."""
    from tfseq.data import Sequences

    reading = _reading(vars(chosen))

    def is_recording(name: str) -> bool:
        return name not in DATASETS and Path(name).suffix.lower() == ".wav"

    def check_no_options(words: str) -> None:
        if options := set(reading) - {"data_dir"}:
            raise UsageError(f"--data_{min(options)} is for files of labelled tokens; INPUT has {words}.")

    for recorded, names in itertools.groupby(chosen.input or ["-"], is_recording):
        if recorded:
            check_no_options("recordings")
            yield _recordings(list(names), model, chosen.run)
            continue
        for name in names:
            is_data = name in DATASETS or Path(name).is_dir() or Path(name).suffix.lower() in set(FILES) - {".txt"}
            if name != "-" and is_data:
                is_own = name not in DATASETS and Path(name).is_file()
                has_tokens = is_own and FILES.get(Path(name).suffix.lower()) == FILES[".conll"]
                options = {"labelled": False} if has_tokens else {}
                data = replace(_input_data(name, chosen, **options), y=None, target=None)
                _check_read(model, name, data.x)
                for begin in range(0, len(data), 1000):
                    yield data.take(range(begin, min(begin + 1000, len(data))))
                continue
            check_no_options("lines of text")
            _check_read(model, "standard input" if name == "-" else name, ["text"])
            with contextlib.nullcontext(_standard_input()) if name == "-" else open(name, "rb") as file:
                for lines in _lines(file):
                    yield Sequences(lines)


def _check_read(model: Reader, name: str, x: Sequence[Any]) -> None:
    """UsageError where a model of frames is given texts, or one of texts real numbers, or frames of another size."""
    import numpy as np

    if not len(x):
        return
    first = np.asarray(x[0])
    size = first.shape[1] if first.ndim == 2 else 0
    if size == (0 if model.text is not None else model.feature_dim):
        return
    wanted = "texts or tokens" if model.text is not None else f"frames of {model.feature_dim} numbers"
    received = "texts or tokens" if first.dtype.kind == "U" else f"frames of {size} numbers" if size else "whole numbers"
    raise UsageError(f"INPUT must hold {wanted} for this run, as what it was trained on does; {name} holds {received}.")


def _standard_input() -> BinaryIO:
    """Standard input as bytes."""
    if sys.stdin is None:
        raise UsageError("Missing: INPUT. Standard input is closed.")
    if sys.stdin.isatty():
        print("tfseq: reading standard input, a text a line; Ctrl-D ends it.", file=sys.stderr)
    return sys.stdin.buffer


def _lines(file: BinaryIO) -> Iterator[list[str]]:
    """The lines of a file that are there, over and over, not waiting for more of them; U+FFFD for bytes that are not UTF-8."""
    rest, first = b"", True
    read = getattr(file, "read1", file.read)
    while chunk := read(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError(f"A line of INPUT must have at most {_LONGEST_LINE} bytes; one has more. Are these texts?")
        if lines:
            yield _texts(lines, first)
            first = False
    if rest:
        yield _texts([rest], first)


def _texts(lines: list[bytes], first: bool) -> list[str]:
    found = [line.decode("utf-8", "replace").removesuffix("\r") for line in lines]
    return [found[0].removeprefix("\ufeff"), *found[1:]] if first else found


def _recordings(names: list[str], model: Reader, run: str) -> Sequences:
    """Recordings, as the data that a run was trained on has them: frames of its size, or log-mel features, at its rate."""
    from tfseq.data import Sequences
    from tfseq.data.speech import RATE, frames, log_mel, read_wav

    trained_on, rate = read_card(run).get("data", {}).get("name"), _about(run)["sampling_rate"]
    if of_mel := trained_on == "spoken-digits-mel":  # features have no rate in the card: there is no way back to samples
        rate = RATE
    if rate is None:
        raise UsageError(
            "INPUT may be .wav for runs on recordings, whose sampling rate is in card.json; this one was trained on "
            f"{trained_on}."
        )
    samples = [read_wav(name, rate) for name in names]
    x = [log_mel(a, rate) if of_mel else frames(a, model.feature_dim) for a in samples]
    return Sequences(x, names=[Path(name).stem for name in names])


def _answers(model: Reader, data: Sequences, batch_size: int, num_best: int, has_all: bool) -> list[dict[str, Any]]:
    """What a model says of each sequence, in their order; `has_all`: with entities, and the probabilities of all classes."""
    import numpy as np

    cut = model.prepare(data)
    found: list[dict[str, Any]] = [{} for _ in data.x]
    order = np.argsort(cut.lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        padded = cut.take(rows).padded()
        batch = model.as_batch({"x": padded["x"], "mask": padded["mask"]})
        for row, answer in zip(rows, _said(model, batch, num_best, has_all), strict=True):
            read: dict[str, Any] = {"name": data.names[row]} if data.names else {}
            if isinstance(data.x[row], str):
                read["text"] = data.x[row]
            if np.ndim(cut.x[row]) == 1 and ("tags" in answer or "text" not in read):
                read["tokens"] = [str(token) for token in cut.x[row]]
            found[row] = read | answer
    return found


def _said(model: Any, batch: dict[str, np.ndarray], num_best: int, has_all: bool) -> Iterator[dict[str, Any]]:
    """What a model says of each row of a batch."""
    lengths = batch["mask"].sum(1)
    if hasattr(model, "classify"):
        for label, probs in zip(*(a.numpy() for a in model.classify(batch)), strict=True):
            answer = {"label": model.classes[label], "prob": float(probs[label])}
            yield answer | ({"probs": dict(zip(model.classes, probs.tolist(), strict=True))} if has_all else {})
    elif hasattr(model, "translate") or getattr(model, "head", "") == "ctc":
        name = "translation" if hasattr(model, "translate") else "transcription"
        said = model.decode(batch)
        for text, log_prob in zip(said["text"], said["log_prob"], strict=True):
            yield {name: str(text), "log_prob": float(log_prob)}
    elif hasattr(model, "predict_tags"):
        tags, scores = (a.numpy() for a in model.predict_tags(batch))
        entities = model.entities(batch) if has_all and model.tables is not None else None
        best = model.n_best(batch, num_best) if num_best else None
        for i, n in enumerate(lengths):
            answer = {"tags": [model.tags[k] for k in tags[i, :n]], "scores": scores[i, :n].tolist()}
            if entities is not None:
                answer["entities"] = [{"type": e.kind, "start": e.start, "stop": e.stop, "prob": e.prob} for e in entities[i]]
            if best is not None:
                ranked = zip(best.tags.numpy()[i, :, :n], best.log_prob.numpy()[i], strict=True)
                answer["n_best"] = [
                    {"tags": [model.tags[k] for k in path], "log_prob": float(p)} for path, p in ranked if math.isfinite(p)
                ]
            yield answer
    else:
        for log_prob, n in zip(model.log_prob(batch).numpy(), lengths, strict=True):
            yield {"log_prob": float(log_prob), "num_tokens": int(n)}


def _plot_answer(model: Any, data: Sequences, path: str) -> None:
    """The first sequence: the probabilities of its tags, or where its translation looked."""
    import numpy as np

    from tfseq import plots

    (x,) = model.prepare(data).x
    tokens = [str(token) for token in x] if np.ndim(x) == 1 else [str(t) for t in range(len(x))]
    if not hasattr(model, "attention_weights"):
        plots.tag_probs(model.marginals({"x": x[None]}).numpy()[0], tokens, model.tags, path, title=type(model).__name__)
        return
    said = model.decode({"x": x[None]})["text"][0]
    (target,) = model.cut("target", [str(said)])
    weights = model.attention_weights({"x": x[None], "target": target[None]}).numpy()[0]
    plots.attention(weights, tokens, target.tolist(), path, title=type(model).__name__)


def _decode(model: SequenceModel, data: Sequences, batch_size: int) -> list[dict[str, np.ndarray]]:
    """What `decode` says of each sequence: name -> `[T_i]` or `[T_i, K]`, without padding."""
    from tfseq.data.batching import stream

    found: list[dict[str, np.ndarray]] = [{} for _ in data.x]
    lengths = data.lengths
    for batch in stream(replace(data, y=None), batch_size):  # labels are not for a model that decodes
        rows = batch["row"].numpy()
        for name, values in _method(model, "decode")(batch).items():
            for row, each in zip(rows, values, strict=True):
                found[row][name] = each[: lengths[row]]
    return found


def _write_steps(file: TextIO, data: Sequences, found: list[dict[str, np.ndarray]]) -> None:
    """A row per step: sequence, step, and its values; several of one name are numbered, prob0, prob1, ..."""
    writer = csv.writer(file, lineterminator="\n")
    columns = [[n] if v.ndim == 1 else [f"{n}{k}" for k in range(v.shape[1])] for n, v in found[0].items()]
    writer.writerow(["sequence", "step", *itertools.chain(*columns)])
    for i, values in enumerate(found):
        name = data.names[i] if data.names else i
        for t, parts in enumerate(zip(*values.values(), strict=True)):
            # NumPy's own scalars, which are written with no more digits than they have
            writer.writerow([name, t, *itertools.chain(*(part if part.ndim else [part] for part in parts))])


def _plot_states(model: SequenceModel, data: Sequences, found: list[dict[str, np.ndarray]], path: str) -> None:
    """The first sequence that has steps, over its states."""
    import numpy as np

    from tfseq import plots

    first = next((i for i, n in enumerate(data.lengths) if n), None)
    if first is None or "state" not in found[first]:
        why = "INPUT has no steps" if first is None else f"the decode of a {type(model).__name__} has no states"
        raise ValueError(f"--plot needs a sequence and its states; {why}.")
    x = data.x[first]
    name = f", {data.names[first]}" if data.names and data.names[first] != data.name else ""
    plots.state_path(
        x if data.observed is None else np.where(data.observed[first], x, np.nan),
        found[first]["state"],
        found[first].get("prob"),
        path,
        title=f"{type(model).__name__} on {data.name}{name}",
        step_name=data.step or "step",
    )


def sample(arguments: list[str]) -> None:
    """`tfseq sample`."""
    from tfseq.writers import MUSIC, SUFFIXES, TEXTS, check_suffix, kind_of, write_samples

    parser = make_parser(
        "sample",
        "What may be written depends on the data of the run: scores .mid, recordings .wav, all .npz, .csv and figures (.png, "
        ".svg, .pdf). Of series, --prefix with .csv or a figure is a forecast: quantiles of many continuations.",
    )
    parser.add_argument("run", type=str, help="run folder, or .keras file")
    default = f"(default: 1, of a forecast {FORECAST_SAMPLES})"
    parser.add_argument("--num", type=int, help=f"how many sequences (with --prefix: continuations of each) {default}")
    default = f"(default: {DEFAULT_LENGTH}, of texts {DEFAULT_TOKENS} tokens)"
    parser.add_argument("--length", type=int, help=f"their steps; with --prefix or --prompt those after it {default}")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same sequences")
    files = "a score (.mid, .musicxml, ...; not transposed), a series (.csv), a recording (.wav), .npz with x [T, D] or [N, T, D]"
    parser.add_argument("--prefix", type=str, help=f"file of what to continue: {files}, or of a language model a text")
    default = "RUN/sample.npz; a text goes to standard output"
    parser.add_argument("--out", type=str, help=f"file, by its suffix {', '.join([*SUFFIXES, *TEXTS])} (default: {default})")
    group = parser.add_argument_group("of a language model")
    group.add_argument("--prompt", type=str, help="text to continue")
    group.add_argument("--class", type=str, help="class to write of, where the model is conditional")
    group.add_argument("--temperature", type=float, default=1.0, help="below 1 more likely texts; 0 the best token each time")
    group.add_argument("--top_k", type=int, default=0, help="draw among the k best tokens; 0 for all")
    group.add_argument("--top_p", type=float, default=1.0, help="draw among the best tokens whose probabilities reach p")
    group.add_argument("--num_beams", type=int, default=1, help="above 1 a beam searches for the most probable text")
    chosen = parse(parser, arguments)
    checks.at_least(1, **{name: chosen[name] for name in ("num", "length") if chosen[name] is not None})
    out = Path(chosen.out) if chosen.out else _run_file(chosen.run, "sample.npz")
    if out.suffix.lower() not in (*SUFFIXES, *TEXTS):
        raise UsageError(f"--out must end in one of {', '.join([*SUFFIXES, *TEXTS])}; received {str(out)!r}.")
    about = _about(chosen.run)
    kind = kind_of(**about)

    def check_kind() -> None:
        try:
            check_suffix("--out", out, kind)
        except ValueError as error:
            raise UsageError(str(error)) from error

    if kind != "series" and out.suffix.lower() not in TEXTS:  # before the model is loaded; of texts only that tells
        check_kind()
    import_tensorflow()
    from tfseq.models.language_model import LanguageModel

    model = _load(chosen.run)
    if isinstance(model, LanguageModel):
        chosen.num = chosen.num or 1
        _write(model, chosen)
        return
    _check_no_text(model, chosen, parser)
    if out.suffix.lower() not in MUSIC:  # a series may be one of piano rolls, which their values tell
        check_kind()
    chosen.length = DEFAULT_LENGTH if chosen.length is None else chosen.length
    given = None if chosen.prefix is None else _read_prefix(Path(chosen.prefix), model, about)
    title = f"{type(model).__name__}, seed {chosen.seed}"
    if given is not None and given.columns:
        about["columns"] = tuple(given.columns)
    if given is not None and kind_of(**about) == "series" and _is_forecast(given, out):
        print("\n".join(map(str, _write_forecast(model, given, out, chosen, title))))
        return
    chosen.num = chosen.num or 1
    with _working("Sampling"):
        sequences = list(_draw(model, chosen)) if given is None else _continue(model, given, chosen)
    lengths = set() if given is None else set(given.lengths.tolist())
    paths = write_samples(
        out,
        sequences,
        step_quarters=_step_quarters(about["step_name"]),
        title=title,
        prefix_steps=lengths.pop() if len(lengths) == 1 else None,
        **about,
    )
    print("\n".join(map(str, paths)))


def _about(run: str) -> dict[str, Any]:
    """What the card of a run says of the steps of its data, as arguments of `kind_of`."""
    data = read_card(run).get("data", {})
    shape, columns, rate = (data.get(name) for name in ("shape", "columns", "sampling_rate"))
    return {
        "step_name": data.get("step") or "step",
        "shape": tuple(shape) if isinstance(shape, list) else None,
        "columns": tuple(map(str, columns)) if isinstance(columns, list) else (),
        "sampling_rate": rate if isinstance(rate, int) else None,
    }


_OF_TEXTS = ("prompt", "class", "temperature", "top_k", "top_p", "num_beams")


def _check_no_text(model: SequenceModel, chosen: Namespace, parser: ArgumentParser) -> None:
    """UsageError where flags of a language model are given to another."""
    from tfseq.writers import TEXTS

    given = [f"--{name}" for name in _OF_TEXTS if chosen[name] != parser.get_default(name)]
    if given:
        raise UsageError(f"{', '.join(given)}: only for a language model; this is a {type(model).__name__}.")
    if chosen.out and Path(chosen.out).suffix.lower() in TEXTS:
        raise UsageError(f"--out may end in {' or '.join(TEXTS)} for a language model; this is a {type(model).__name__}.")
    _method(model, "sample")


def _write(model: LanguageModel, chosen: Namespace) -> None:
    """Texts of a language model: to standard output, or into a file."""
    from tfseq.writers import TEXTS, join_texts, write_texts

    if chosen.out and Path(chosen.out).suffix.lower() not in TEXTS:
        raise UsageError(f"--out must end in {' or '.join(TEXTS)} for a language model; received {chosen.out!r}.")
    if chosen.prompt is not None and chosen.prefix is not None:
        raise UsageError("--prompt and --prefix both say what to continue; give one of them.")
    if chosen.num_beams > 1 and chosen.num > 1:
        raise UsageError("--num must be 1 with --num_beams: a beam finds one text, and draws nothing.")
    prompt = chosen.prompt or ""
    if chosen.prefix is not None:
        from tfseq.data.reading import decoded

        if not Path(chosen.prefix).is_file():
            raise FileNotFoundError(f"--prefix must be a file; there is no {chosen.prefix}.")
        prompt = decoded(chosen.prefix, Path(chosen.prefix).read_bytes())
    settings = {name: chosen[name] for name in ("temperature", "top_k", "top_p", "num_beams")}
    wanted = chosen["class"]
    with _working("Writing"):
        found = model.generate(
            [prompt] * chosen.num,
            DEFAULT_TOKENS if chosen.length is None else chosen.length,
            classes=None if wanted is None else [wanted] * chosen.num,
            seed=[chosen.seed, 0],
            **settings,
        )
    texts = [_continued(model, prompt, new.decode("utf-8", "replace")) for new in found.numpy()]
    if chosen.out:
        about = {"prompt": prompt} | ({} if wanted is None else {"class": wanted})
        write_texts(chosen.out, [about | {"text": text} for text in texts])
        print(chosen.out)
    else:
        print(join_texts(texts).removesuffix("\n"))


def _continued(model: LanguageModel, prompt: str, new: str) -> str:
    """A prompt and what comes after it as one text, with a space between where words need one."""
    if model.text.unit == "characters" or not prompt or not new or prompt[-1].isspace():
        return prompt + new
    import tensorflow as tf

    from tfseq.layers.text import tokenize

    if new.startswith("##"):  # of subwords: goes on with a word
        return prompt + new[2:]
    (before, after), mask = tokenize([prompt, new])
    before, after = before.numpy(), after.numpy()
    pair = [before[int(mask.numpy()[0].sum()) - 1], after[0]]
    joined = model.text.join([pair], tf.constant([[True, True]])).numpy()[0]
    return prompt + ("" if joined == pair[0] + pair[1] else " ") + new


def _method(model: SequenceModel, name: str) -> Callable[..., Any]:
    if not hasattr(model, name):
        raise ValueError(f"A {type(model).__name__} has no `{name}`.")
    return getattr(model, name)


def _draw(model: SequenceModel, chosen: Namespace) -> np.ndarray:
    """New sequences `[num, length, ...]`."""
    return _method(model, "sample")(chosen.num, chosen.length, [chosen.seed, 0]).numpy()


def _future(model: SequenceModel, given: Sequences, chosen: Namespace) -> np.ndarray:
    """Continuations of each given sequence `[B, num, length, ...]`."""
    forecast = _method(model, "forecast")
    if "u" in model.batch_spec():
        raise ValueError(
            "--prefix needs the controls to come for this run, which only Python can give: model.forecast(future_u=...)."
        )
    apart = {} if given.observed is None else {"observed": given.observed}
    return forecast(given.x, num_steps=chosen.length, num_samples=chosen.num, seed=[chosen.seed, 1], **apart).numpy()


def _past(given: Sequences) -> list[np.ndarray]:
    """The given sequences, with NaN where a number is missing."""
    import numpy as np

    if given.observed is None or given.x[0].dtype.kind != "f":
        return list(given.x)
    return [np.where(seen, x, np.float32(np.nan)) for x, seen in zip(given.x, given.observed, strict=True)]


def _continue(model: SequenceModel, given: Sequences, chosen: Namespace) -> list[np.ndarray]:
    """Each given sequence with each of its `num` continuations after it."""
    import numpy as np

    future = _future(model, given, chosen)
    return [np.concatenate([x, y.astype(x.dtype)]) for x, several in zip(_past(given), future, strict=True) for y in several]


def _is_forecast(given: Sequences, out: Path) -> bool:
    """Whether a file is to hold quantiles of the continuations of series, and not these themselves."""
    from tfseq.writers import are_rolls

    return out.suffix.lower() in (".csv", *_PICTURES) and given.x[0].ndim == 2 and not are_rolls(given.x)


def _write_forecast(model: SequenceModel, given: Sequences, out: Path, chosen: Namespace, title: str) -> list[Path]:
    """Quantiles of what may come after each given series: a table of all, or a figure for each."""
    from tfseq import plots
    from tfseq.writers import numbered, write_quantiles

    chosen.num = chosen.num or FORECAST_SAMPLES
    with _working("Sampling"):
        future = _future(model, given, chosen)
    if out.suffix.lower() == ".csv":
        write_quantiles(out, future, starts=given.lengths.tolist(), names=given.names, columns=given.columns)
        return [out]
    paths = numbered(out, len(given))
    for i, (path, x, samples) in enumerate(zip(paths, _past(given), future, strict=True)):
        name = f", {given.names[i]}" if given.names else ""
        plots.forecast(x, samples, path, names=given.columns, title=f"{title}{name}", step_name=given.step or "step")
    return paths


def _step_quarters(step: str) -> float:
    """Length in quarter notes of a data set's step, `"eighth note"`; 1 where it does not say."""
    from tfseq.data.music import STEPS

    return STEPS.get(step.removesuffix(" note"), 1.0)


def _read_prefix(path: Path, model: SequenceModel, about: Mapping[str, Any]) -> Sequences:
    """The sequences to continue: those of a .csv file, one of a score or a recording, or of an .npz file `x` (and `lengths`)."""
    from tfseq.data import Sequences

    if not path.is_file():
        raise FileNotFoundError(f"--prefix must be a file; there is no {path}.")
    suffix, step, columns = path.suffix.lower(), about["step_name"], about["columns"]
    if suffix == ".csv":
        from tfseq.data.series import load_series

        found = load_series(path)
        if columns and found.columns and tuple(found.columns) != columns:
            raise ValueError(
                f"{path} must have the features of the run's data, in their order: {', '.join(columns)}; received "
                f"{', '.join(found.columns)}."
            )
        return replace(found, step=found.step if step == "step" else step)
    if suffix == ".wav":
        from tfseq.data.speech import frames, read_wav

        if about["sampling_rate"] is None:
            raise ValueError(
                f"--prefix may be a .wav file for a run on frames of recordings, which this is not; received {path}."
            )
        return Sequences([frames(read_wav(path, about["sampling_rate"]))], names=[path.stem], step=step)
    if suffix != ".npz":
        from tfseq.data.music import STEPS, load_piece

        name = step.removesuffix(" note")
        return Sequences([load_piece(path, name if name in STEPS else "quarter")], names=[path.stem], step=step)
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            x = arrays["x"]
            lengths = arrays.get("lengths")
    except Exception as error:  # a damaged file shows as whatever zip, header or name is wrong
        raise ValueError(f"{path} must be an .npz file with an array x ({type(error).__name__}: {error}).") from error
    if x.ndim == len(model.batch_spec()["x"].shape) - 1:
        x = x[None]
    if x.ndim < 2 or not len(x) or (lengths is not None and lengths.shape != (len(x),)):
        raise ValueError(f"{path} must hold x [T, D] or [N, T, D], and lengths [N]; received x of shape {list(x.shape)}.")
    if lengths is not None and not (lengths.dtype.kind in "iu" and ((lengths >= 0) & (lengths <= x.shape[1])).all()):
        raise ValueError(
            f"{path} must hold lengths that are whole numbers from 0 to {x.shape[1]}; received {lengths.tolist()[:9]}."
        )
    rows = [row if lengths is None else row[:n] for row, n in zip(x, x[:, 0] if lengths is None else lengths, strict=True)]
    missing = x.dtype.kind == "f" and any(np.isnan(row).any() for row in rows)
    return Sequences(
        [np.where(np.isnan(row), row.dtype.type(0), row) for row in rows] if missing else rows,
        observed=[~np.isnan(row) for row in rows] if missing else None,
        step=step,
        columns=columns if x.shape[2:] == (len(columns),) else (),
    )


def export(arguments: list[str]) -> None:
    """`tfseq export`."""
    import_tensorflow()
    from tfseq.exporting.documents import PORTABLE
    from tfseq.exporting.saved_model import export

    if any(argument.partition("=")[0] == "--device" for argument in arguments):
        raise UsageError(f"There is no flag --device, since there is nothing to choose. {PORTABLE}")
    parser = make_parser("export")
    parser.add_argument("run", type=str, help="run folder, or .keras file")
    parser.add_argument("--out", type=str, required=True, help="base folder of the served model, saved_models/NAME")
    _add_data(parser, f"data to compare and to warm up with: a data set, or {_OWN_DATA} (default: what the run was trained on)")
    add_signature(parser, export, export, skip=("card", "examples"))
    chosen = parse(parser, arguments)
    settings = {name: chosen[name] for name in inspect.signature(export).parameters if name in chosen and name != "out"}
    model, card = _load(chosen.run), read_card(chosen.run)
    examples = _examples(chosen)
    with _working("Writing, reloading and comparing"):
        path = export(model, chosen.out, card=card, examples=examples, **settings)
    if chosen.litert:
        _print_converted(json.loads((path / "card.json").read_text())["litert"])
    print(path)


def _examples(chosen: Namespace) -> Sequences | None:
    """Data to compare an export with; None, with a message, where that of the run is not at hand."""
    try:
        name, reading = _data_of(chosen)
        return load_dataset(name, _split(name, None), **reading)
    except (UsageError, ValueError, OSError, ImportError) as error:
        if chosen.data is not None:
            raise
        print(f"tfseq: compared on made-up sequences, since the run's data is not at hand. {_reason(error)}", file=sys.stderr)
        return None


def _print_converted(found: Mapping[str, Any]) -> None:
    """What was converted for devices, on standard error."""
    for name, one in found["signatures"].items():
        if "reason" in one:
            text = f"not converted: {one['reason']}"
        else:
            text = f"{one['bytes'] / 1e3:.1f} kB, {one['milliseconds']:.3f} ms a call, differs by {one['difference']:.1g} at most"
        print(f"litert {name}: {text}", file=sys.stderr)


def serve(arguments: list[str]) -> None:
    """`tfseq serve`."""
    import_tensorflow()
    try:
        from tfseq.serve.app import DevelopmentServer, serve
    except ImportError as error:
        raise ImportError(
            f"`tfseq serve` needs packages that are not installed ({error.name}): pip install 'tfseq[serve]'"
        ) from error

    parser = make_parser(
        "serve", "For development; production is tensorflow/serving, with the same folder and the same requests."
    )
    parser.add_argument("folder", type=str, help="base folder of SavedModels, NAME/VERSION/saved_model.pb")
    add_signature(parser, serve, serve, skip=("on_ready",))
    chosen = parse(parser, arguments)

    def ready(server: DevelopmentServer) -> None:
        if not server.service.repository.models():
            print(f"tfseq: no models in {chosen.folder} yet", file=sys.stderr)
        host = f"[{server.host}]" if ":" in server.host else server.host
        print(f"REST and page: http://{host}:{server.port}  gRPC: {host}:{server.grpc_port}", flush=True)

    logging.basicConfig(format="tfseq: %(message)s")
    logging.getLogger("tfseq.serve").setLevel(logging.INFO)  # which versions are loaded, and which are not
    serve(chosen.folder, on_ready=ready, **{name: chosen[name] for name in vars(chosen) if name not in ("folder", "config")})


class Command(NamedTuple):
    """A row of the table of commands."""

    run: Callable[[list[str]], None]
    usage: str
    summary: str


COMMANDS = {
    "models": Command(list_models, "models", "list the models"),
    "datasets": Command(list_datasets, "datasets", "list the data sets"),
    "data": Command(
        data,
        "data shard --data NAME|FILE|FOLDER ... --out DIR [--num_shards N] [--unit words] | data check --data DIR",
        "write data sets as shards, for `train` on what is larger than memory",
    ),
    "train": Command(
        train,
        "train MODEL --data NAME|FILE|FOLDER [--out RUN] [--epochs N] [--model.X VALUE] [--resume] ...",
        "train a model into a run folder",
    ),
    "evaluate": Command(
        evaluate,
        "evaluate RUN [--data NAME|FILE|FOLDER] [--split test] [--json] ...",
        "likelihood of a data set under a trained model; accuracy, F1, BLEU",
    ),
    "predict": Command(
        predict,
        "predict RUN [INPUT ...] [--format conll|json] [--split test] [--out FILE] [--plot FILE.png] ...",
        "tags, classes, translations of texts; hidden states of sequences",
    ),
    "sample": Command(
        sample,
        "sample RUN [--num N] [--length T] [--prefix FILE | --prompt TEXT] [--out FILE] ...",
        "new sequences or texts, or continuations of given ones",
    ),
    "export": Command(
        export,
        "export RUN --out saved_models/NAME [--version N] [--litert] ...",
        "write a SavedModel for TF Serving, and LiteRT models for devices",
    ),
    "serve": Command(
        serve,
        "serve saved_models [--port 8501] [--grpc-port 8500] [--host ADDRESS] ...",
        "answer REST and gRPC requests as TF Serving does, for development",
    ),
}
