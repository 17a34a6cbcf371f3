"""One run of 1, 2 and 3 processes, over gloo on a CPU, as torchrun starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# argument lists and what to do at a step, from JSON; the scripts' processes go through all of them
DRIVER = """
import importlib, json, os, signal, sys
from arguments import run_as_script
import processes, run
import torch; torch.set_num_threads(1)

commands, event = json.loads(sys.argv[1])
advance = run.Run.advance

def eventful(self, *given):
    with open("seeds", "a") as file:
        file.write(f"{torch.initial_seed()} ")
    if self.step == 1 and processes.rank() == processes.size() - 1:
        if event == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        if event == "fail":
            raise KeyError("a bug in one process")
    return advance(self, *given)

run.Run.advance = eventful
for script, *arguments in commands:
    sys.argv = [script + ".py", *arguments]
    script = importlib.import_module(script)
    script.leave = processes.first  # they stay together for the next command
    run_as_script(script.main)
"""
SHORT = ["--model", "mini", "--epochs", "1", "--batch-size", "8", "--limit-train", "17"]  # 8 + 8 + 1
GLUE = ["train_glue", "--task", "cola", *SHORT, "--dropout", "0"]
COMMANDS = {
    "glue": [*GLUE, "--clip", "1"],
    "accumulated": [*GLUE, "--accumulate", "2", "--method", "full"],
    "features": [*GLUE, "--method", "read", "--cache-features"],
    "seeds": [*GLUE, "--seeds", "2"],
    "e2e": ["train_e2e", *SHORT, "--beam-size", "2", "--max-new-tokens", "4", "--limit-train", "7"],
    "squad": ["train_squad", *SHORT, "--limit-dev", "20"],
    "read": ["train_read", "--task", "cola", *SHORT],
}


def launched(tmp_path, n, commands, event=None):
    """The commands run by n processes; n = 1: without torchrun."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--"] if n > 1 else []
    given = json.dumps([commands, event])
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, *torchrun, str(driver), given],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def found(folder):
    """A run's numbers, without its times: losses and scores of its epochs, and of its test set."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows.append(json.loads((folder / "result.json").read_text()).get("test") or {})
    return [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in rows]


def all_by(n, folder):
    done = launched(folder, n, [[*command, "--out", f"{name}-{n}"] for name, command in COMMANDS.items()])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cola: 17 training examples") == 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    all_by(1, folder)
    return folder


@pytest.mark.parametrize("n", [2, 3])
def test_every_script_computes_the_same_in_n_processes(folder, n):
    """Would catch: means over shares instead of sums over batches, a share left out, scores of one share, two
    processes that write, a batch smaller than n.
    """
    all_by(n, folder)
    for name in COMMANDS:
        ours, theirs = (folder / f"{name}-{i}" for i in (n, 1))
        for run in ["seed0", "seed1"] if name == "seeds" else ["."]:
            assert found(ours / run) == [pytest.approx(row, rel=1e-4) for row in found(theirs / run)]
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


def test_a_stopped_run_goes_on_with_another_number_of_processes(tmp_path):
    """Would catch: processes that stop at different steps, or wait for each other; a state of one n; dropout
    that is the same in two processes, or after a resumption what it was before.
    """
    command = [*GLUE, "--epochs", "2"]
    stopped = launched(tmp_path, 3, [[*command, "--out", "x"]], "signal")
    assert stopped.returncode
    assert "stopped after step 2 of 6 and saved; go on with: torchrun" in stopped.stdout, stopped.stderr
    assert len(set((tmp_path / "seeds").read_text().split())) == 3
    resumed = launched(tmp_path, 2, [[*command, "--out", "x", "--resume"]])
    assert "goes on after epoch 0, step 2 of 6" in resumed.stdout, resumed.stderr
    assert len(set((tmp_path / "seeds").read_text().split())) == 3 + 1  # the first's is in its state
    launched(tmp_path, 1, [[*command, "--out", "y"]])
    assert found(tmp_path / "x") == [pytest.approx(row, rel=1e-4) for row in found(tmp_path / "y")]


def test_a_process_that_fails_ends_all(tmp_path):
    """Would catch: processes that wait for ever; a batch that some would have no share of, said n times."""
    failed = launched(tmp_path, 2, [GLUE], "fail")
    assert failed.returncode and "KeyError: 'a bug in one process'" in failed.stderr
    small = launched(tmp_path, 2, [[*GLUE, "--out", "z", "--batch-size", "1"]])
    assert small.returncode
    assert small.stderr.count("error: --batch-size 1: expected 2 or more, one a process") == 1
