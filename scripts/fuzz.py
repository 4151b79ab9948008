#!/usr/bin/env python
"""Fuzzing: what models do with any arguments, and readers with any files.

    python scripts/fuzz.py models [--minutes 15] [--model hmm] [--method from_data] [--seed 0] [--graphs]
    python scripts/fuzz.py parsers [--minutes 2] [--parser csv] [--seed 0] [--out DIR]

`models`: calls of all public methods of every model and of its variants, `from_data` and `pretrain` among them, from the
strategies of `tests/strategies.py`. A call has a defined answer, without NaN, or is a ValueError that names the argument. With
`--graphs` methods run as graphs, traced anew for new shapes; else op by op, which is the same mathematics and many more calls.

`parsers`: each reader of `tests/parsers.py` for `--minutes`, by Atheris (libFuzzer), which varies files that are read and keeps
those that reach new lines of tfseq. A file is data that models take, or a ValueError that names it and the place, in bounded time
and memory. Needs `pip install -e ".[fuzz]"`.

What is found is printed once, with how to make it again, and files go into `--out`; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SLOW = 10.0
"""Seconds that a call or a small file may take."""
_READERS = ["tfseq.data", "tfseq.schemes", "tfseq.serve.convert", "music21.midi"]  # whose lines guide the fuzzer


class Findings:
    """What went wrong, each place of the code once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, subject: str, error: BaseException, what: str) -> bool:
        """Prints an error at a place that had none before; whether it is new."""
        source = error.__context__ if isinstance(error, AssertionError) and error.__context__ else error
        frames = [f for f in traceback.extract_tb(source.__traceback__) if str(ROOT / "tfseq") in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else subject
        key = f"{place} {type(source).__name__} {str(error)[:40] if isinstance(error, AssertionError) else ''}"
        self.counts[key] += 1
        if self.counts[key] > 1:
            return False
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-4:]))
        print(f"\n== {subject}: {type(error).__name__}: {str(error)[:400]}\n   at {where}\n   {what}", flush=True)
        return True


# Readers ------------------------------------------------------------------------------------------------------------


def fuzz_parsers(names: list[str], minutes: float, seed: int, out: Path) -> int:
    """Every reader in a process of its own, which libFuzzer ends; how many have findings."""
    failed = []
    for name in names:
        command = [sys.executable, __file__, "parsers", "--parser", name, "--minutes", str(minutes), "--seed", str(seed)]
        if subprocess.run([*command, "--out", str(out), "--child"], check=False).returncode:
            failed.append(name)
    print(f"\n{len(names)} readers, findings in {len(failed)}: {', '.join(failed) or 'none'}.")
    return len(failed)


def fuzz_parser(name: str, minutes: float, seed: int, out: Path) -> None:
    """One reader; ends the process."""
    import atheris
    from parsers import PARSERS, check

    parser, findings = PARSERS[name], Findings()
    corpus, found = out / "corpus" / name, out / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with atheris.instrument_imports(include=_READERS):
        for i, example in enumerate(parser.examples):
            if not check(parser, example, scratch):
                raise SystemExit(f"{name}: example {i} is not accepted.")
            (corpus / f"example-{i}").write_bytes(example)
    tried = Counter[str]()
    end = time.monotonic() + 60 * minutes

    def attempt(content: bytes) -> None:
        start = time.monotonic()
        if start > end:  # libFuzzer's own limit does not end what is slow
            print(f"{name}: {sum(tried.values())} files, {dict(tried)}, {len(findings.counts)} findings.", flush=True)
            os._exit(bool(findings.counts))
        try:
            tried["accepted" if check(parser, content, scratch) else "refused"] += 1
            if (seconds := time.monotonic() - start) > SLOW:
                raise TimeoutError(f"{seconds:.0f} s for {len(content)} bytes")
        except Exception as error:
            tried["wrong"] += 1
            file = found / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"
            if findings.add(name, error, f"{file}: {content[:300]!r}"):
                file.write_bytes(content)

    options = ["-max_len=4096", "-timeout=120", "-rss_limit_mb=4000", "-verbosity=0", f"-seed={seed + 1}", "-reload=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={found}/", str(corpus)], attempt)
    atheris.Fuzz()


# Models -------------------------------------------------------------------------------------------------------------


def fuzz_models(chosen: str | None, minutes: float, seed: int, graphs: bool, method: str | None = None) -> int:
    """Calls of all models in turn until the time is over; how many findings."""
    import keras
    import strategies
    import tensorflow as tf
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st
    from test_conformance import CASES

    from tfseq.models import MODELS

    tf.config.run_functions_eagerly(not graphs)
    cases = {case: entry for case, entry in CASES.items() if chosen in (None, case, entry[0])}
    if not cases:
        raise SystemExit(f"There is no model or variant {chosen!r}. There are {', '.join(CASES)}.")
    findings, tried, end = Findings(), Counter[str](), time.monotonic() + 60 * minutes
    models: dict[str, Any] = {}
    rng = random.Random(seed)

    def some_calls(case: str, model: Any) -> None:
        weights = model.get_weights()
        of_data = [name for name in strategies.FROM_DATA if hasattr(model, name)]
        every = [name for name in (*of_data, *strategies.methods(model)) if method in (None, name)]
        fast = [name for name in every if name not in (*of_data, *strategies.OF_KERAS)]
        slow = [name for name in every if name not in fast]

        @seeded(rng.getrandbits(32))
        @settings(max_examples=60, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(st.data())
        def attempt(data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(slow if slow and not data.draw(st.integers(0, 3)) else fast or slow))
            kinds = [strategies.data_calls] if name in of_data else [strategies.legal_calls, strategies.wrong_calls]
            call = data.draw(data.draw(st.sampled_from(kinds))(model, name))
            start = time.monotonic()
            try:
                tried[strategies.outcome(model, call)] += 1
                if (seconds := time.monotonic() - start) > SLOW and not graphs:
                    raise TimeoutError(f"{seconds:.0f} s")
            except Exception as error:
                tried["wrong"] += 1
                findings.add(f"{case} {name}", error, f"{name}({_shown(call.arguments)})")
            if name in ("fit", "pretrain"):
                model.set_weights(weights)

        if every:
            attempt()

    while time.monotonic() < end:
        for case, (name, overrides) in cases.items():
            if case not in models:
                keras.utils.set_random_seed(0)
                models[case] = MODELS[name].tiny(**overrides)
                models[case].compile("sgd")
            if time.monotonic() < end:
                some_calls(case, models[case])
    print(f"\n{sum(tried.values())} calls, {dict(tried)}, {len(findings.counts)} findings.")
    for key, count in findings.counts.most_common():
        print(f"{count:6d} {key}")
    return len(findings.counts)


def _shown(arguments: dict[str, Any]) -> str:
    """Arguments for people."""
    import numpy as np

    with np.printoptions(threshold=40):
        return ", ".join(f"{name}={value!r}" for name, value in arguments.items())[:1500].replace("\n", "")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["models", "parsers"])
    parser.add_argument("--minutes", type=float, help="of all models, 15; of each reader, 2")
    parser.add_argument("--model", help="a model, or a variant of tests/test_conformance.py such as dmm-symbols")
    parser.add_argument("--method", help="models: this one alone")
    parser.add_argument("--parser", help="a reader of tests/parsers.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--graphs", action="store_true", help="models: run methods as graphs")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "tfseq-fuzz", help="parsers: files found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.what == "models":
        raise SystemExit(bool(fuzz_models(chosen.model, chosen.minutes or 15.0, chosen.seed, chosen.graphs, chosen.method)))
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("The readers are fuzzed by Atheris, which is not installed: pip install -e '.[fuzz]' (Linux and macOS).")
    minutes = chosen.minutes or 2.0
    if chosen.child:
        fuzz_parser(chosen.parser, minutes, chosen.seed, chosen.out)
    from parsers import PARSERS

    names = [chosen.parser] if chosen.parser else list(PARSERS)
    raise SystemExit(bool(fuzz_parsers(names, minutes, chosen.seed, chosen.out)))


if __name__ == "__main__":
    main()
