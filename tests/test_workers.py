"""Workers: they make the steps of one, and are started again when one is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import fit_on_workers
import numpy as np
import pytest

from tfseq import cli
from tfseq.workers import DIVERGED, run_workers


def test_workers_make_the_steps_of_one(tmp_path: Path) -> None:
    alone = fit_on_workers.fit(["dmm", "hmm", "rbm", "tagger"])
    for num_workers, families in ((2, ["dmm", "hmm", "rbm", "tagger"]), (4, ["rbm", "tagger"])):
        out = tmp_path / str(num_workers)
        command = [sys.executable, fit_on_workers.__file__, out, *families]
        command += ["overflow"] * (num_workers == 2)  # the last: what a failed step leaves undone between workers is not defined
        code = run_workers(lambda command=command: list(map(str, command)), num_workers, out)
        assert code == 0, "".join(log.read_text() for log in out.glob("*.log"))[-2000:]
        with np.load(out / "found.npz") as file:
            together = dict(file)
        if num_workers == 2:  # the loss of the other worker's row alone is not finite: all stop, with the weights as they were
            assert "not finite at batch 1 of epoch 1: log_lik of 1" in str(together.pop("overflow error"))
            assert (out / "overflow" / "model.keras").is_file()
            assert not together.pop("overflow changed")
            assert "\nstopped" in "\n" + (out / "worker-1.log").read_text()
        wanted = {name: value for name, value in alone.items() if name.split()[0] in families}
        assert set(together) == set(wanted)
        for name, value in wanted.items():
            if not name.endswith("log_z_of"):  # a hash of the weights' last bits
                np.testing.assert_allclose(together[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{name}, {num_workers} workers")


# each of these processes is one worker; no TensorFlow in them
_ECHO = "import json, os, sys; print(json.loads(os.environ['TF_CONFIG'])['task']['index'], os.environ['TF_NUM_INTRAOP_THREADS'])"
_DIE_ONCE = """
import json, os, pathlib, signal, sys, time
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
    time.sleep(0 if len(sys.argv) > 2 else 60)             # waits for the other, as all workers do
elif len(sys.argv) < 3:
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path(sys.argv[1]).write_text("done")
"""


def test_the_chief_prints_and_the_others_have_logs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_workers(lambda: [sys.executable, "-c", _ECHO], 3, tmp_path / "logs") == 0
    assert capfd.readouterr().out.split()[0] == "0"
    assert [(tmp_path / "logs" / f"worker-{i}.log").read_text().split()[0] for i in (1, 2)] == ["1", "2"]


def test_a_killed_worker_brings_all_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    starts: list[int] = []

    def command() -> list[str]:
        starts.append(0)
        return [sys.executable, "-c", _DIE_ONCE, str(tmp_path / "done"), *(["--resume"] if len(starts) > 1 else [])]

    assert run_workers(command, 2, tmp_path) == 0
    assert len(starts) == 2
    assert (tmp_path / "done").read_text() == "done"
    assert "a worker was killed (SIGKILL); all are started again" in capfd.readouterr().err


def test_an_error_of_a_worker_ends_all_with_its_code(tmp_path: Path) -> None:
    code = "import json, os, sys, time; json.loads(os.environ['TF_CONFIG'])['task']['index'] and sys.exit(4); time.sleep(60)"
    begun = time.monotonic()
    assert run_workers(lambda: [sys.executable, "-c", code], 2, tmp_path) == 4
    assert time.monotonic() - begun < 30  # the one that sleeps was ended


_DIVERGE = """
import json, os, pathlib, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
time.sleep((1.5, 0.0, 0.5)[index])                         # the chief still writes what it has
if index == 2:
    os.kill(os.getpid(), signal.SIGABRT)                   # as TensorFlow does where another worker is gone
with pathlib.Path(sys.argv[1]).open("a") as file:
    file.write(str(index))
sys.exit(int(sys.argv[2]))
"""


def test_workers_that_diverge_all_end_by_themselves_and_are_not_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_workers(lambda: [sys.executable, "-c", _DIVERGE, str(tmp_path / "ended"), str(DIVERGED)], 3, tmp_path) == DIVERGED
    assert (tmp_path / "ended").read_text() == "10"
    assert "started again" not in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_who_started_them(how: signal.Signals, tmp_path: Path) -> None:
    if how == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    sleeper = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(60)"
    parent = (
        "import sys; from pathlib import Path; from tfseq.workers import run_workers; "
        f"run_workers(lambda: [sys.executable, '-c', {sleeper!r}, sys.argv[1]], 2, Path(sys.argv[1], 'logs'))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, tmp_path])
    while len(pids := [int(p.name) for p in tmp_path.iterdir() if p.name.isdecimal()]) < 2:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) == (128 + how if how == signal.SIGTERM else -how)
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    """Whether a process is there and is no zombie, whose parent is gone and nobody has asked for its exit code."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_workers_are_told_is_checked_before_they_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "rbm", "--data", "digits"]
    assert cli.main([*command, "--workers", "0"]) == 2
    assert "--workers must be a whole number of at least 1; received '0'" in capsys.readouterr().err
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    assert cli.main(command) == 2
    assert "--out must be given where TF_CONFIG lists the workers" in capsys.readouterr().err
