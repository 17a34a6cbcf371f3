"""train_glue.py from its command line: what a run leaves behind, resuming, errors, and what an adapter is
used for.
"""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import clip_keeps_hut_in_place, fails, without_timing
from torch.nn import functional as F

import folder
import model as model_module
import run
import train_e2e
import train_glue
import train_read
import train_squad
from data import UserError, no_nan
from data.glue import TASKS
from hut import apply_hut, load_hut, merge_hut
from methods import METHODS, methods_of
from metrics import worth
from model import RobertaClassifier, RobertaConfig
from run import Run, mean_and_std, schedule
from weights import export, trainable

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(tiny_model, tiny_glue, tmp_path):
    """The arguments of a small run: 3 epochs of 5 steps."""
    return ["--task", "cola", "--model", str(tiny_model), "--data", str(tiny_glue),
            "--out", str(tmp_path / "out"),
            "--epochs", "3", "--batch-size", "8", "--lr", "0.01", "--r", "2"]  # fmt: skip


def test_a_run_and_what_it_leaves(glue, command, tmp_path, capsys):
    """Would catch: a missing file or key, a wrong count, a best epoch that is not the best."""
    glue(*command)
    out = tmp_path / "out"
    rows, result, _ = without_timing(out)
    assert [row["epoch"] for row in rows] == [1, 2, 3] and [row["step"] for row in rows] == [5, 10, 15]
    assert set(rows[0]) - {"single_class"} == {"epoch", "step", "train_loss", "matthews", "loss", "lr"}
    d = 24
    assert result["parameters"]["adapter"] == 2 * 2 * (2 * 2 * d + 2 * d)
    assert result["parameters"]["head"] == d * d + d + 2 * d + 2
    best = max(rows, key=lambda row: (row["matthews"], -row["epoch"]))
    assert result["best"]["epoch"] == best["epoch"] and result["best"]["matthews"] == best["matthews"]
    assert result["last"]["matthews"] == rows[-1]["matthews"]
    args = json.loads((out / "args.json").read_text())
    assert args["args"].items() >= {"warmup": 0.06, "targets": "qv", "dtype": "float32"}.items()
    assert args["versions"]["torch"] == torch.__version__
    adapter = torch.load(out / "adapter.pt", weights_only=True)
    assert (
        set(adapter) == {"method", "config", "task", "base", "adapter", "head"} and adapter["method"] == "hut"
    )
    assert {name.rpartition(".")[2] for name in adapter["adapter"]} == {"M_A", "M_B", "gamma", "beta"}
    assert args["device"].endswith("CPU")  # also where there is a GPU: the run's own device is named
    printed = capsys.readouterr().out
    assert "40 training examples" in printed and "576 adapter + 650 head" in printed


# HUT's paper, Table 6: learning rate, batch size and epochs
TABLE_6 = {
    "hut": {"sst2": (1e-4, 8, 20), "mrpc": (5e-3, 16, 20), "cola": (1e-3, 4, 40), "qnli": (2e-4, 8, 10),
            "rte": (2e-3, 16, 80), "stsb": (5e-3, 16, 40)},
    "lora": {"sst2": (4e-4, 4, 10), "mrpc": (3e-4, 4, 20), "cola": (2e-4, 4, 20), "qnli": (2e-4, 4, 10),
             "rte": (4e-4, 4, 20), "stsb": (2e-4, 4, 10)},
    "houlsby": {"sst2": (3e-4, 32, 5), "mrpc": (3e-4, 32, 10), "cola": (3e-4, 32, 10), "qnli": (3e-4, 32, 5),
                "rte": (3e-4, 32, 20), "stsb": (3e-4, 32, 10)},
    "pfeiffer": {"sst2": (3e-5, 32, 20), "mrpc": (3e-4, 32, 20), "cola": (3e-4, 32, 20),
                 "qnli": (3e-4, 32, 10), "rte": (3e-4, 32, 20), "stsb": (3e-4, 32, 20)},
}  # fmt: skip


def default_length(monkeypatch, script):
    """The --max-len of a script that is called as sys.argv says, with a model of 512 positions."""
    found, config = [], argparse.Namespace(max_length=512)

    def stop(args):
        found.append(args.max_len)
        raise UserError("stop")

    monkeypatch.setattr(script, "open_checkpoint", lambda *given: (None, None, config, None))
    monkeypatch.setattr(script, "run_folders", stop)
    with pytest.raises(UserError, match="stop"):
        script.main()
    return found[0]


@pytest.mark.parametrize("script", [train_squad, train_e2e])
def test_table_6s_lengths_are_for_glue_alone(monkeypatch, script):
    """Would catch: LoRA on SQuAD or E2E at GLUE's 128 tokens, where HUT reads 512."""
    monkeypatch.setattr(sys, "argv", [script.__name__, "--method", "lora"])
    assert default_length(monkeypatch, script) == 512


@pytest.mark.parametrize("method", TABLE_6)
def test_what_a_run_takes_is_the_papers_table_6(monkeypatch, method):
    """Would catch: a digit of the paper's settings that is changed, where the command leaves them open."""
    for task, expected in TABLE_6[method].items():
        monkeypatch.setattr(sys, "argv", ["train_glue.py", "--task", task, "--method", method])
        args = train_glue.arguments()
        assert (args.lr, args.batch_size, args.epochs) == expected and args.head_lr == args.lr
        assert (args.warmup, args.weight_decay, args.clip, args.dropout) == (0.06, 0, None, None)
        longest = 512 if method == "hut" else 128  # LoRA's is its authors'; the paper has 16
        assert default_length(monkeypatch, train_glue) == longest


def test_a_size_of_the_papers_has_its_own_rate(monkeypatch):
    """Would catch: Pfeiffer's adapter of width 16 at the rate of width 64, a tenth of the printed one."""
    for r, lr in (("16", 3e-4), ("64", 3e-5)):
        given = ["train_glue.py", "--task", "sst2", "--method", "pfeiffer", "--r", r]
        monkeypatch.setattr(sys, "argv", given)
        assert train_glue.arguments().lr == lr


@pytest.mark.parametrize("method", ["vera", "fourierft"])
def test_a_dense_head_is_not_trained_at_the_rate_of_a_vector(monkeypatch, method):
    """Would catch: FourierFT's rate of .05 on RoBERTa-large's head, unless the command says so."""
    given = ["train_glue.py", "--task", "mrpc", "--method", method, "--lr", ".1"]
    for more, head in (([], 5e-3), (["--head-lr", "1"], 1), (["--model", "mini", "--task", "cola"], 0.1)):
        monkeypatch.setattr(sys, "argv", [*given, *more])
        assert train_glue.arguments().head_lr == head


def test_a_setting_of_0_is_not_one_that_was_left_out(tmp_path):
    """Would catch: a run without dropout that is resumed with the checkpoint's own; a switch that is off and
    one that an older version did not have, taken for a change.
    """
    cpu = torch.device("cpu")
    folder.open_folder(tmp_path, {"dropout": 0.0, "compile": False}, False, False, cpu)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(UserError, match="was started with dropout"):
        folder.open_folder(tmp_path, {"dropout": None}, True, False, cpu)
    assert folder.open_folder(tmp_path, {"dropout": 0.0, "compile": None, "new": False}, True, False, cpu)


def test_a_machine_without_git_trains_too(monkeypatch):
    """Would catch: "git: No such file" in a container that the repository was copied into."""
    monkeypatch.setenv("PATH", "")
    assert folder.environment()["git"] is None


@pytest.mark.parametrize("script", [train_e2e, train_read])
def test_a_rate_of_a_head_that_is_not_there_is_said_to_be_left_out(monkeypatch, capsys, script):
    """Would catch: --head-lr that a model without a head takes and drops without a word."""
    monkeypatch.setattr(
        sys, "argv", [script.__name__, "--head-lr", "1", *(["--task", "cola"] * (script is train_read))]
    )
    args = script.arguments()
    assert args.head_lr == args.lr and "left out" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["full", "head"])
def test_other_methods_learn_what_they_should(glue, command, tmp_path, method):
    """Would catch: head-only runs that train the encoder; full runs that leave some of it out."""
    glue(*command[:-2], "--method", method)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    body = 12_728  # the tiny encoder without its pooler
    assert result["parameters"]["adapter"] == (body if method == "full" else 0)
    assert result["parameters"]["frozen"] == (0 if method == "full" else body)
    assert result["parameters"]["head"] == 650


@pytest.mark.parametrize("method", methods_of("encoder"))
def test_life_of_a_baseline(glue, command, tmp_path, capsys, method):
    """Would catch: an adapter file that does not score again what its run reported (VeRA's A and B are not in
    it).
    """
    size = ["--r", 6] if METHODS[method].r else []
    export = [] if "encoder" not in METHODS[method].merges else ["--export", tmp_path / "merged"]
    glue(*command[:-2], *size, "--method", method, "--seed", 3, *export)
    assert (tmp_path / "merged" / "config.json").exists() == bool(export)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["method"], result["r"]) == (method, 6 if size else None)
    capsys.readouterr()
    glue(*command[:6], "--adapter", tmp_path / "out" / "adapter.pt", "--eval-only")
    assert json.loads(capsys.readouterr().out)["matthews"] == result["best"]["matthews"]
    again = tmp_path / "again"
    glue(*command[:-2], *size, "--method", method, "--epochs", 1, "--lr", 1e-30, "--seed", 4, "--out", again,
         "--init-adapter", tmp_path / "out" / "adapter.pt")  # fmt: skip
    first, second = (
        torch.load(p / "adapter.pt", weights_only=True)["adapter"] for p in (tmp_path / "out", again)
    )
    assert all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.mark.parametrize(
    ("method", "option", "other"),
    [("lora", "--pool=mean", "--pool=first"), ("read", "--drop-last=1", "--drop-last=0")],
)
def test_an_adapter_knows_the_form_of_its_model(glue, command, tmp_path, capsys, method, option, other):
    """Would catch: an option that the run takes and its adapter forgets, so that it scores something else."""
    glue(*command, "--method", method, "--r", 4)
    glue(*command, "--method", method, "--r", 4, option, "--out", tmp_path / "formed")
    plain, formed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("out", "formed"))
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("out", "formed")]
    losses = [[json.loads(line)["train_loss"] for line in row.splitlines()] for row in rows]
    assert all(a != b for a, b in zip(*losses, strict=True))
    assert (plain["parameters"] == formed["parameters"]) == (method == "lora")
    basics = [*command[:6], "--adapter", tmp_path / "formed" / "adapter.pt"]
    capsys.readouterr()
    glue(*basics, "--eval-only")
    assert json.loads(capsys.readouterr().out)["matthews"] == formed["best"]["matthews"]
    assert f"trained with {option[2:].replace('-', '_').replace('=', ' ')}, not" in fails(
        capsys, glue, *basics, "--eval-only", other
    )


def test_an_adapter_is_scored_on_the_part_that_was_held_out(glue, command, tmp_path, capsys):
    """Would catch: --hold-out that is left out of --eval-only without a word: scores on dev; a held-out part
    that is trained on.
    """
    glue(*command, "--hold-out", "--epochs", 1)
    best = json.loads((tmp_path / "out" / "result.json").read_text())["best"]
    assert "30 training examples" in capsys.readouterr().out
    glue(*command[:6], "--adapter", tmp_path / "out" / "adapter.pt", "--eval-only", "--hold-out")
    held, scores = capsys.readouterr().out.splitlines()
    assert held.startswith("--hold-out: 10 of 40")
    assert json.loads(scores)["loss"] == pytest.approx(best["loss"], rel=1e-6)


def test_a_mean_is_not_exported(glue, command, tmp_path, capsys):
    """Would catch: hours of training before the line, or a merged model that transformers reads otherwise."""
    line = "--export: transformers' RoBERTa has no head that reads a mean"
    assert line in fails(capsys, glue, *command, "--pool", "mean", "--export", tmp_path / "merged")
    assert not (tmp_path / "out").exists()
    glue(*command, "--pool", "mean", "--epochs", 1)
    assert "--export" not in capsys.readouterr().out  # among what can be done next
    adapter = ["--adapter", tmp_path / "out" / "adapter.pt", "--export", tmp_path / "merged"]
    assert line in fails(capsys, glue, *command[:6], *adapter)


@pytest.mark.parametrize(("method", "lr", "left"), [("full", 5e-3, 0.1), ("hut", 2e-2, 0.8)])
def test_loss_falls(glue, command, tmp_path, method, lr, left):
    """Would catch: a loop that steps without learning. The rule of this set can be learned from its last
    word.
    """
    glue(*command[:-2], "--epochs", 20, "--method", method, "--lr", lr, "--dropout", 0)
    rows = without_timing(tmp_path / "out")[0]
    assert rows[-1]["train_loss"] < left * rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [
        (7, (5 / 8, 6 / 8, 1 / 8)),
        (1, (11 / 14, 6 / 14, 1 / 14)),
        (0.2, (11 / 12, 6 / 12, 1 / 12)),
        (15, (5 / 16, 10 / 16, 15 / 16)),
    ],
)
def test_rates_and_decay_are_what_was_asked_for(glue, command, tmp_path, warmup, rates):
    """Would catch: the head at the adapter's rate, a decay or a warm-up that is left out, a step of warm-up
    taken for a share, a schedule that is a step off. The rates are those of the 5th, 10th and 15th step.
    """
    glue(*command, "--warmup", warmup, "--head-lr", 0.5, "--weight-decay", 0.25)
    rows, _, _ = without_timing(tmp_path / "out")
    assert [row["lr"] for row in rows] == pytest.approx([0.01 * rate for rate in rates])
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [(len(part["params"]), part["weight_decay"]) for part in saved] == [(16, 0.25), (4, 0.25)]
    assert [part["lr"] for part in saved] == pytest.approx([0.01 * rates[-1], 0.5 * rates[-1]])


def test_dropout_is_on_in_training_alone(glue, command, tmp_path):
    """Would catch: a model that is never put into training mode, or that stays out of it after the first
    scoring. At this rate nothing moves.
    """
    found = []
    for p in (0, 0.5):
        glue(*command, "--lr", 1e-30, "--dropout", p, "--out", tmp_path / f"{p}")
        found.append([(row["train_loss"], row["loss"]) for row in without_timing(tmp_path / f"{p}")[0]])
    for (plain, dev), (dropped, same) in zip(*found, strict=True):
        assert abs(dropped / plain - 1) > 1e-3 and same == pytest.approx(dev)


def test_clip_limits_the_step(glue, command, tmp_path, monkeypatch):
    """Would catch: --clip that is left out, or is after the step; gradients that the next step gets too."""
    clip_keeps_hut_in_place(monkeypatch, glue, tmp_path / "out", *command)


def test_scores_of_two_sets_and_of_numbers(monkeypatch):
    """Would catch: a loss that is no mean, or not the one of training; one set's scores in the place of the
    other's; a single class that is not the first passed over.
    """
    monkeypatch.setattr(train_glue, "all_logits", lambda model, inputs, *_: torch.tensor(inputs))
    matched, mismatched = [[0.0, 2, 1], [0, 3, 0]], [[0.0, 2, 1], [1, 0, 0]]
    sets = {"dev_matched": (matched, [1, 0]), "dev_mismatched": (mismatched, [1, 0])}
    found = train_glue.score(TASKS["mnli"], None, sets, None, None)
    losses = [F.cross_entropy(torch.tensor(x), torch.tensor([1, 0])).item() for x in (matched, mismatched)]
    assert found.pop("single_class") is True
    expected = {"accuracy": 0.5, "loss": losses[0], "accuracy_mismatched": 1.0, "loss_mismatched": losses[1]}
    assert found == pytest.approx(expected)
    found = train_glue.score(
        TASKS["stsb"], None, {"dev": ([[1.0], [4.0], [5.0]], [3.0, 4.0, 4.5])}, None, None
    )
    assert found["loss"] == pytest.approx((4 + 0 + 0.25) / 3) and "single_class" not in found


def test_accumulation_is_the_larger_batch(glue, command, tmp_path):
    """Would catch: a mean of means where batches differ in size. Without dropout the two must agree but for
    rounding.
    """
    for name, arguments in (("a", ["--batch-size", 16]), ("b", ["--batch-size", 4, "--accumulate", 4])):
        glue(
            *command, *arguments, "--dropout", 0, "--epochs", 1, "--limit-train", 16, "--out", tmp_path / name
        )
    whole, parts = (
        [*torch.load(tmp_path / n / "adapter.pt", weights_only=True)["adapter"].values()] for n in "ab"
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_time_left_of_short_epochs(glue, command, capsys, monkeypatch):
    """Would catch: the time of one epoch's 5 steps taken for that of the 20 before it is said."""
    loss_sum = train_glue.loss_sum

    def slow(*arguments):
        time.sleep(0.02)
        return loss_sum(*arguments)

    monkeypatch.setattr(train_glue, "loss_sum", slow)
    glue(*command, "--epochs", 4)
    said = re.search(r"about 0:00:00 to go at (\d+) ms a step", capsys.readouterr().out)
    assert int(said[1]) >= 20


def test_seeds(glue, command, tmp_path):
    """Would catch: a mean over the wrong runs, a standard deviation with n in place of n − 1, seeds that are
    all alike.
    """
    glue(*command, "--seeds", 2)
    out = tmp_path / "out"
    together = json.loads((out / "result.json").read_text())
    values = [json.loads((out / f"seed{s}" / "result.json").read_text())["best"]["matthews"] for s in (0, 1)]
    assert [run["best"]["matthews"] for run in together["runs"]] == values and together["seeds"] == [0, 1]
    assert together["mean"]["best"]["matthews"] == pytest.approx(sum(values) / 2)
    assert together["std"]["best"]["matthews"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    a, b = (without_timing(out / f"seed{s}")[2] for s in (0, 1))
    assert a != b
    glue(*command, "--seed", 1, "--out", tmp_path / "one")
    assert without_timing(tmp_path / "one")[2] == b


def test_one_seed_has_no_deviation(glue, command, capsys):
    """Would catch: ± 0.0000 where none is known."""
    glue(*command, "--epochs", 1, "--seeds", 1)
    assert re.search(r"best of 1 seeds: matthews -?\d\.\d{4}, loss \d\.\d{4}\n", capsys.readouterr().out)
    glue(*command, "--epochs", 1, "--seeds", 2, "--resume")
    assert re.search(r"best of 2 seeds: matthews -?\d\.\d{4} ± \d\.\d{4}, loss", capsys.readouterr().out)


def test_seeds_leave_a_single_runs_result(glue, command, tmp_path, capsys):
    """Would catch: its result.json, replaced by the mean of the seeds."""
    glue(*command)
    kept = (tmp_path / "out" / "result.json").read_bytes()
    assert "holds a run of one seed" in fails(capsys, glue, *command, "--seeds", 2)
    assert (tmp_path / "out" / "result.json").read_bytes() == kept


# ---- resuming


class Killed(BaseException):
    pass


def test_a_crash_at_any_write_then_resume_is_bit_identical(glue, command, tmp_path, monkeypatch):
    """Would catch: state that no file keeps. The run is cut before and after every file that it replaces."""
    monkeypatch.setattr(Run, "SAVE_EVERY", 0)  # a checkpoint after every step
    command = [*command, "--epochs", "2", "--batch-size", "20"]
    replace = os.replace
    moments = []
    monkeypatch.setattr(
        model_module.os, "replace", lambda a, b: moments.append(Path(b).name) or replace(a, b)
    )
    glue(*command, "--out", tmp_path / "whole")
    expected = without_timing(tmp_path / "whole")
    assert len(moments) > 12
    for i, name in enumerate(list(moments)):
        for after in (False, True) if name != "checkpoint.pt" or i % 3 == 0 else (True,):
            left = iter(range(i, -1, -1))

            def cut(source, target, left=left, after=after):
                last = next(left) == 0
                if last and not after:
                    raise Killed
                replace(source, target)
                if last:
                    raise Killed

            out = tmp_path / f"cut{i}{after}"
            monkeypatch.setattr(model_module.os, "replace", cut)
            with pytest.raises(Killed):
                glue(*command, "--out", out)
            monkeypatch.setattr(model_module.os, "replace", replace)
            glue(*command, "--out", out, "--resume")
            assert without_timing(out) == expected, (i, name, after)


def script(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "train_glue.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_kill_and_ctrl_c_then_resume(command, tmp_path):
    """Would catch: what only a real process shows: a kill -9 between epochs, Ctrl-C within one, the command
    it prints.
    """
    command = [*command, "--epochs", "12", "--batch-size", "1"]  # long enough to be met in the middle
    whole = script(*command, "--out", tmp_path / "whole")
    out = tmp_path / "cut"
    first = script(*command, "--out", out)
    wait_for(out / "checkpoint.pt", first)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = script(*command, "--out", out, "--resume")
    while "goes on after" not in second.stdout.readline():
        assert second.poll() is None
    time.sleep(0.2)
    second.send_signal(signal.SIGINT)
    printed, _ = second.communicate()
    assert second.returncode == 130
    said = re.search(
        r"stopped after step (\d+) of 480 and saved; go on with: python .*train_glue\.py .*--resume", printed
    )
    assert said and int(said[1]) < 480
    third = script(*command, "--out", out, "--resume")
    assert third.wait() == 0, third.communicate()
    assert whole.wait() == 0
    assert without_timing(out) == without_timing(tmp_path / "whole")


def test_out_that_holds_a_run(glue, command, tmp_path, capsys, monkeypatch):
    """Would catch: a run that is lost to the next one, or that goes on where it began alone; a peak memory of
    the process that resumed it alone.
    """

    def peak():
        return json.loads((tmp_path / "out" / "result.json").read_text())["timing"]["peak_memory_bytes"]

    glue(*command, "--epochs", 1)
    before, memory = without_timing(tmp_path / "out"), peak()
    assert "holds another run" in fails(capsys, glue, *command, "--epochs", 1)
    assert "started with lr 0.01, not 0.02" in fails(
        capsys, glue, *command, "--epochs", 1, "--lr", 0.02, "--resume"
    )
    args = json.loads((tmp_path / "out" / "args.json").read_text())
    del args["args"]["compile"]  # a switch that was not there when the run began
    (tmp_path / "out" / "args.json").write_text(json.dumps(args))
    with monkeypatch.context() as small:
        small.setattr("run.peak_memory", lambda device: 1)
        glue(*command, "--epochs", 1, "--resume", "--device", "cpu")  # finished: nothing is left to do
    assert without_timing(tmp_path / "out") == before and peak() == memory
    glue(*command, "--epochs", 1, "--overwrite", "--lr", 0.02)
    assert without_timing(tmp_path / "out") != before


def test_what_a_run_took_before_it_was_resumed_counts():
    """Would catch: the time and energy of a resumed run's last process given as those of the run."""
    meter = argparse.Namespace(started=time.time() + 1e4, kwh={"utilisation": 1.0, "power": None})
    run = argparse.Namespace(meter=meter, seconds=1e6, energy={"utilisation": 2.0, "power": 3.0})
    assert Run.spent(run) == {"utilisation": 3.0, "power": None} and Run.elapsed(run) > 9e5


def test_a_checkpoint_before_the_first_sample_keeps_the_energy(glue, command, tmp_path, monkeypatch):
    """Would catch: a run whose energy is lost, as it was killed before nvidia-smi had said anything."""
    monkeypatch.setattr(run.Meter, "__init__", lambda meter, gpu: vars(meter).update(silent))
    monkeypatch.setattr(run.Meter, "stop", lambda meter: None)
    for waiting, kept in ((True, 0.0), (False, None)):
        silent = {"kwh": dict.fromkeys(("utilisation", "power")), "waiting": waiting, "started": time.time()}
        glue(*command, "--overwrite")
        saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
        assert saved["energy"] == dict.fromkeys(("utilisation", "power"), kept)


def test_a_run_that_is_replaced_leaves_nothing_behind(glue, command, tmp_path, monkeypatch):
    """Would catch: an old result beside a new run that was killed in its first epoch."""
    glue(*command, "--epochs", 1)
    (tmp_path / "out" / "outputs.txt").write_text("train_e2e.py writes such files\n")

    def killed(*given):
        raise Killed

    monkeypatch.setattr(Run, "advance", killed)
    with pytest.raises(Killed):
        glue(*command, "--overwrite")
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"args.json", "checkpoint.pt", "lock"}


@pytest.mark.parametrize("content", [None, "{", '{"args": 3}'])
def test_a_run_whose_arguments_are_lost_is_left_as_it_is(glue, command, tmp_path, capsys, content):
    """Would catch: --resume that deletes a run, or goes on with other arguments, or a traceback."""
    glue(*command, "--epochs", 1)
    path, kept = tmp_path / "out" / "args.json", (tmp_path / "out" / "checkpoint.pt").read_bytes()
    path.unlink()
    if content:
        path.write_text(content)
    assert f"{path}: missing or damaged" in fails(capsys, glue, *command, "--epochs", 1, "--resume")
    assert (tmp_path / "out" / "checkpoint.pt").read_bytes() == kept
    glue(*command, "--epochs", 1, "--overwrite")


def test_an_adapter_of_another_scripts_method(glue, command, tmp_path, capsys):
    """Would catch: a traceback. train_read.py has methods, and records settings, that this script has not."""
    glue(*command, "--epochs", 1)
    found = torch.load(tmp_path / "out" / "adapter.pt", weights_only=True)
    for more, message in (
        ({"method": "lst"}, "made with --method lst: this script has hut"),
        ({"base": "0", "config": found["config"] | {"unscaled": None}}, "another base"),
    ):
        torch.save(found | more, tmp_path / "other.pt")
        assert message in fails(capsys, glue, *command[:6], "--adapter", tmp_path / "other.pt", "--eval-only")


def test_a_truncated_checkpoint_is_refused_by_name(glue, command, tmp_path, capsys):
    """Would catch: going on from half a file, or from the beginning."""
    glue(*command)
    path = tmp_path / "out" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    line = fails(capsys, glue, *command, "--resume")
    assert str(path) in line and "truncated" in line


def test_a_run_does_not_go_on_with_other_data_or_another_base(glue, command, capsys, monkeypatch):
    """Would catch: a step behind the last, with a rate below 0; an adapter of two bases."""

    def killed(*given):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "advance", killed)
        glue(*command)
    refused = "made on another base checkpoint, or other training data"
    with monkeypatch.context() as patch:
        patch.setattr("data.batching.subset", lambda examples, n: examples[:8])
        assert refused in fails(capsys, glue, *command, "--resume")
    with monkeypatch.context() as patch:
        patch.setattr("weights.fingerprint", lambda model: "another")
        assert refused in fails(capsys, glue, *command, "--resume")
    glue(*command, "--resume")


def test_the_best_adapter_is_not_written_over_by_one_that_is_not_finite(
    glue, command, tmp_path, capsys, monkeypatch
):
    """Would catch: an epoch whose last step broke the adapter, and whose scores are better all the same."""
    scored = []

    def score(task, model, *given):
        scored.append(None)
        if len(scored) == 2:
            next(iter(trainable(model)[0].values())).data[0] = float("nan")
        return {"matthews": 0.1 * len(scored), "loss": 1.0}

    monkeypatch.setattr(train_glue, "score", score)
    assert "not finite at step 10 of 15" in fails(capsys, glue, *command)
    adapter = torch.load(tmp_path / "out" / "adapter.pt", weights_only=True)["adapter"]
    assert all(tensor.isfinite().all() for tensor in adapter.values())


@pytest.mark.parametrize(("seconds", "kept"), [(600, 5), (-1, 7)])
def test_a_loss_that_is_not_finite_stops_the_run(glue, command, tmp_path, capsys, monkeypatch, seconds, kept):
    """Would catch: NaN written over the last good checkpoint, also by a save between two looks."""
    loss_sum, steps = train_glue.loss_sum, []
    monkeypatch.setattr(Run, "SAVE_EVERY", seconds)

    def spoiled(*arguments):
        steps.append(None)  # the sixth call scores the first epoch
        return loss_sum(*arguments) * (float("nan") if len(steps) == 9 else 1)

    monkeypatch.setattr(train_glue, "loss_sum", spoiled)
    line = fails(capsys, glue, *command)
    assert re.search(
        r"not finite at step 8 of 15, task cola, lr 0\.00.*checkpoint\.pt is the last good state", line
    )
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == kept and all(t.isfinite().all() for t in saved["tensors"].values())


# ---- a trained adapter


def test_eval_only_predict_submit_export(glue, command, tmp_path, capsys):
    """Would catch: an adapter that does not score again what its run reported, exported weights that
    differ.
    """
    glue(*command, "--export", tmp_path / "merged")
    assert re.search(r"largest logit difference.*12 dev examples: \d\.\d\de-0[5-9]", capsys.readouterr().out)
    best = json.loads((tmp_path / "out" / "result.json").read_text())["best"]
    basics = [*command[:6], "--adapter", tmp_path / "out" / "adapter.pt"]
    glue(*basics, "--eval-only", "--submit", tmp_path / "submission")
    assert json.loads(capsys.readouterr().out.splitlines()[0])["matthews"] == best["matthews"]
    answers = (tmp_path / "submission" / "CoLA.tsv").read_text().splitlines()
    assert (
        answers[0] == "index\tprediction"
        and len(answers) == 6
        and set("".join(a[2:] for a in answers[1:])) <= {"0", "1"}
    )
    glue(*basics, "--predict", "the small dog sleeps .")
    assert re.fullmatch(
        r"(un)?acceptable \(0\.\d{3}\)\n|(un)?acceptable \(1\.000\)\n", capsys.readouterr().out
    )
    merged = RobertaClassifier.from_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "unacceptable", "1": "acceptable"}
    assert sum(p.numel() for p in merged.parameters()) == 12_728 + 650
    glue(
        "--task",
        "cola",
        "--model",
        tmp_path / "merged",
        *command[4:6],
        "--method",
        "head",
        "--epochs",
        1,
        "--out",
        tmp_path / "next",
    )


@pytest.mark.parametrize(
    ("task", "logits", "files"),
    [
        (
            "mnli",
            {"test_matched": [[0.0, 1, 0], [0, 0, 1]], "test_mismatched": [[1.0, 0, 0]]},
            {"MNLI-m": ["neutral", "contradiction"], "MNLI-mm": ["entailment"]},
        ),
        ("mrpc", {"test": [[0.0, 1], [1, 0]]}, {"MRPC": ["1", "0"]}),
        ("stsb", {"test": [[7.0], [-1], [2.5]]}, {"STS-B": ["5.000", "0.000", "2.500"]}),
    ],
)
def test_submissions_are_as_the_leaderboard_takes_them(monkeypatch, tmp_path, task, logits, files):
    """Would catch: MNLI's files exchanged, names in place of labels, a score that is off the scale, rows that
    are counted from 1.
    """
    monkeypatch.setattr(train_glue, "all_logits", lambda model, inputs, *_: torch.tensor(inputs))
    train_glue.submit(argparse.Namespace(task=task, submit=tmp_path), None, logits, None, None)
    expected = {
        f"{name}.tsv": ["index\tprediction", *map("{}\t{}".format, range(9), rows)]
        for name, rows in files.items()
    }
    assert {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()} == expected


def test_bfloat16_resumes_in_the_same_bits_and_exports_the_exact_weights(
    glue, command, tmp_path, monkeypatch, tiny_model
):
    """Would catch: matrices that are rounded for training in what is exported, or that resuming changes."""
    command = [*command, "--dtype", "bfloat16"]
    advance = Run.advance

    def cut(run, *arguments):
        advance(run, *arguments)
        if run.step == 8:
            run.save()
            raise KeyboardInterrupt

    glue(*command, "--export", tmp_path / "merged")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "advance", cut)
        glue(*command, "--out", tmp_path / "cut")
    glue(*command, "--out", tmp_path / "cut", "--resume")
    assert without_timing(tmp_path / "cut") == without_timing(tmp_path / "out")

    tensors = torch.load(tmp_path / "out" / "adapter.pt", weights_only=True)["adapter"]
    plain, merged = (RobertaClassifier.from_pretrained(p) for p in (tiny_model, tmp_path / "merged"))
    load_hut(apply_hut(plain, 2), tensors)
    expected = merge_hut(plain).roberta.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in merged.roberta.state_dict().items())


@pytest.mark.parametrize("difference", [2e-3, math.nan])
def test_a_merged_model_that_differs_is_not_written(tmp_path, tiny_model, difference):
    """Would catch: an export that computes something else, or whose difference is not a number."""
    args, model = (
        argparse.Namespace(method="full", export=tmp_path / "merged"),
        RobertaClassifier(RobertaConfig(9, 8, 1, 2, 8, 9)),
    )
    logits = iter([[torch.zeros(2)], [torch.tensor([0.0, difference])]])
    with pytest.raises(UserError, match=r"above 0\.001; nothing was written"):
        export(args, model, tiny_model, lambda model: next(logits), "some examples")
    assert not (tmp_path / "merged").exists()


def test_a_record_says_that_the_source_was_changed(monkeypatch):
    """Would catch: a number that is traced to a revision which did not make it."""
    for changed, revision in (("", "abc"), (" M hut.py", "abc with changes")):
        said = {"rev-parse": "abc", "status": changed}

        def git(command, said=said, **given):
            return argparse.Namespace(returncode=0, stdout=f"{said[command[3]]}\n")

        monkeypatch.setattr(folder.subprocess, "run", git)
        monkeypatch.setattr(folder.Path, "exists", lambda path: True)
        assert folder.environment()["git"] == revision


def test_init_adapter_starts_from_the_adapter_but_not_its_head(glue, command, tmp_path):
    """Would catch: a start from ones, or a head that belongs to another task. At this rate nothing moves."""
    glue(*command, "--epochs", 1)
    adapter = tmp_path / "out" / "adapter-last.pt"
    glue(*command, "--epochs", 1, "--lr", 1e-30, "--out", tmp_path / "next", "--init-adapter", adapter)
    first, second = (torch.load(p, weights_only=True) for p in (adapter, tmp_path / "next" / "adapter.pt"))
    assert all(torch.equal(t, second["adapter"][name]) for name, t in first["adapter"].items())
    assert not all(torch.equal(t, second["head"][name]) for name, t in first["head"].items())


def test_init_adapter_has_the_frozen_matrices_of_its_run(glue, command, tmp_path, capsys):
    """Would catch: VeRA's lambdas beside other random matrices than those that they were trained with."""
    command += ["--method", "vera", "--epochs", 1, "--frozen-seed", 3]
    glue(*command)
    more = ["--init-adapter", tmp_path / "out" / "adapter.pt", "--out", tmp_path / "next"]
    line = fails(capsys, glue, *command, *more, "--frozen-seed", 4)
    assert "made with --frozen-seed 3, not 4: give the same" in line
    glue(*command, *more)


def test_an_adapter_on_another_base_is_refused(glue, command, tmp_path, tiny_model, capsys):
    """Would catch: scores of an adapter over weights that it was not trained on."""
    glue(*command, "--epochs", 1)
    other = tmp_path / "other"
    changed = RobertaClassifier.from_pretrained(tiny_model)
    changed.roberta.blocks[0].u.weight.data[0, 0] += 1e-3
    changed.save_pretrained(other)
    (other / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    adapter = tmp_path / "out" / "adapter.pt"
    line = fails(
        capsys, glue, *command[:2], "--model", other, *command[4:6], "--adapter", adapter, "--eval-only"
    )
    assert "another base checkpoint" in line
    line = fails(capsys, glue, *command[:6], "--adapter", adapter, "--eval-only", "--r", 3)
    assert "trained with r 2, not 3" in line
    adapter.write_bytes(adapter.read_bytes()[:1000])
    assert "adapter.pt: truncated" in fails(capsys, glue, *command[:6], "--adapter", adapter, "--eval-only")


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "colo"], "--task colo: unknown: expected one of cola sst2"),
        (["--targets", "qz"], "'z' matches no layer"),
        (["--targets", "qq"], "'q' is named twice"),
        (["--r", "0"], "r = 0: expected"),
        (["--r", "x"], "invalid int value: 'x'"),
        (["--epochs", "0"], "--epochs: '0': expected a whole number"),
        (["--lr", "-1"], "--lr: '-1': expected a number above 0"),
        (["--lr", "nan"], "--lr: 'nan'"),
        (["--max-len", "64"], "--max-len 64: expected 3 to 32"),
        (["--task", "rte", "--max-len", "5"], "--max-len 5: expected 6 to 32"),  # 3 would cut no pair at all
        (["--device", "tpu9"], "--device tpu9: not available"),
        (["--method", "magic"], "invalid choice: 'magic'"),
        (["--method", "frozen"], "invalid choice: 'frozen'"),
        (["--method", "houlsby", "--export", "merged"], "--method houlsby does not merge"),
        (["--method", "fourierft", "--r", "577"], "r = 577: a layer has 576 coefficients"),
        (["--wat"], "unrecognized arguments: --wat"),
        (["--seed", "0", "--seeds", "2"], "not allowed with"),
        (["--eval-only"], "need --adapter"),
        (["--adapter", "none.pt"], "--adapter is for"),
        (["--adapter", "none.pt", "--eval-only", "--seeds", "2"], "--seeds: --adapter is one run's"),
        (["--hold-out", "--dev-file", "none.tsv"], "--dev-file: --hold-out takes its place"),
        (["--adapter", "none.pt", "--eval-only"], "none.pt: No such file"),
        (["--init-adapter", "none.pt"], "none.pt: No such file"),
        (["--model", "no/such/directory"], "no such directory, and not a hub name"),
        (["--data", "nowhere"], "CoLA/train.tsv: No such file"),
        (["--train-file", "nowhere.tsv"], "nowhere.tsv: No such file"),
        (["--model", "mini", "--data", "", "--task", "rte"], "its data holds cola only"),
    ],
)
def test_bad_arguments_end_in_one_line(glue, command, tmp_path, capsys, arguments, message):
    """Would catch: a traceback, a default taken in place of what was asked for, a run folder left behind."""
    assert message in fails(capsys, glue, *command, *arguments)
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_end_in_one_line(glue, command, tiny_model, tmp_path, capsys):
    """Would catch: model.py's errors that reach the user as tracebacks."""
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    command[3] = str(broken)
    (broken / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and no more")
    assert "pytorch_model.bin: truncated" in fails(capsys, glue, *command)
    (broken / "config.json").write_text('{"model_type": "bert"}')
    assert "model_type is 'bert'" in fails(capsys, glue, *command)


def test_what_a_method_does_not_have_is_said_and_left_out(glue, command, tmp_path, capsys):
    """Would catch: a rank that is recorded for a method without one, as if it had been used."""
    glue(*command, "--method", "head", "--targets", "qv", "--drop-last", 1, "--epochs", 1)
    printed = capsys.readouterr().out
    for flag in ("--r 2", "--targets qv", "--drop-last 1"):
        assert f"{flag}: --method head has no such thing" in printed
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["r"] is None and result["targets"] is None


def test_schedule():
    """Would catch: a peak that is missed, a last step at or below 0."""
    factors = [schedule(step, 100, 10) for step in range(100)]
    assert factors[10] == max(factors) == 1 and factors[0] > 0 and factors[-1] == pytest.approx(1 / 90)
    assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert schedule(0, 5, 0) == 1


def test_undefined_scores_are_null_and_worth_least():
    """Would catch: NaN in a JSON file, or as the best epoch."""
    assert no_nan({"a": [float("nan"), float("-inf"), 1.0]}) == {"a": [None, None, 1.0]}
    assert worth(float("nan")) < worth(-1.0)
    results = [{"best": {"epoch": 1, "pearson": 0.5}}, {"best": {"epoch": 2, "pearson": float("nan")}}]
    assert mean_and_std(results, "best") == ({"pearson": None}, {"pearson": None})


def test_compiled_runs_have_the_same_losses(glue, command, tmp_path, monkeypatch):
    """Would catch: a graph of another model; padding that counts. Traced alone: code takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    command = [*command, "--epochs", "1", "--dropout", "0"]
    glue(*command)
    glue(*command, "--compile", "--out", tmp_path / "compiled")
    (plain, *_), (graphs, *_) = (without_timing(tmp_path / name)[0] for name in ("out", "compiled"))
    assert graphs["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    assert graphs["matthews"] == plain["matthews"]
