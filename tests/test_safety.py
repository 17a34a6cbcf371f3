"""What a run must not do to what is there: files of other models and runs, full disks, two processes at once;
and one line in the place of a traceback.
"""

import argparse
import errno
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import fails, without_timing
from torch._inductor import exc

import folder
import model as model_module
import run as run_module
import train_glue
import weights
from arguments import run_as_script
from data import download
from data.hub import MINI

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(tiny_model, tiny_glue, tmp_path):
    """The arguments of a small run: an epoch of 5 steps."""
    return ["--task", "cola", "--model", str(tiny_model), "--data", str(tiny_glue),
            "--out", str(tmp_path / "out"),
            "--epochs", "1", "--batch-size", "8", "--lr", "0.01", "--r", "2"]  # fmt: skip


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- before the first step


@pytest.mark.parametrize("way", ["{model}", "{model}/", "{model}/../roberta", "{link}", "{parent}"])
def test_an_export_never_lands_on_the_checkpoint(glue, command, tiny_model, tmp_path, capsys, way):
    """Would catch: a base checkpoint that is overwritten by the model that was trained from it."""
    (tmp_path / "link").symlink_to(tiny_model)
    kept = bytes_of(tiny_model)
    target = way.format(model=tiny_model, link=tmp_path / "link", parent=tiny_model.parent)
    assert "name a new or empty folder" in fails(capsys, glue, *command, "--export", target)
    assert bytes_of(tiny_model) == kept and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_an_export_never_joins_another_models_files(glue, command, tmp_path, capsys, name):
    """Would catch: weights that transformers would read in the place of the exported ones."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("another model's")
    line = fails(capsys, glue, *command, "--export", tmp_path / "other")
    assert f"holds {name}: name a new or empty folder" in line
    assert bytes_of(tmp_path / "other") == {name: b"another model's"} and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--out", "--export", "--submit"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "Not a directory"),
        ("file/under/it", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("new/" + "x" * 300, "File name too long"),
        ("dangling", "No such file or directory"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_before_training(
    glue, command, tmp_path, capsys, option, place, reason
):
    """Would catch: a traceback, or an export that fails when all the training is done."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    line = fails(capsys, glue, *command, option, tmp_path / place)
    assert line.startswith(f"error: {option} ") and f"{reason}: expected a folder that can be" in line
    assert (tmp_path / "file").read_text() == "kept" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--out", "--export", "--submit"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_takes_no_file_is_refused_before_training(
    glue, command, tmp_path, capsys, monkeypatch, option, number
):
    """Would catch: a read-only disk that is met after the training. The stand-in is for root, who may all."""

    def refused(dir):
        if dir == tmp_path / "shut":
            raise OSError(number, os.strerror(number), str(dir))
        return tempfile.TemporaryFile(dir=dir)

    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(folder, "TemporaryFile", refused)
    line = fails(capsys, glue, *command, option, tmp_path / "shut" / "new")
    assert f"new: {os.strerror(number)}: expected a folder that can be written" in line
    assert not any((tmp_path / "shut").iterdir()) and not (tmp_path / "out").exists()


# ---- a folder and its run


def test_resuming_without_the_checkpoint_stops(glue, command, tmp_path, capsys):
    """Would catch: a new run over the adapter and the metrics of one whose largest file was deleted."""
    glue(*command)
    out = tmp_path / "out"
    (out / "checkpoint.pt").unlink()
    kept = bytes_of(out)
    line = fails(capsys, glue, *command, "--resume")
    problem = "no state to go on from (No such file or directory): --overwrite starts the run anew"
    assert line == f"error: {out / 'checkpoint.pt'}: {problem}\n"
    assert bytes_of(out) == kept


def test_resuming_what_had_not_begun_starts_from_the_beginning_and_says_so(glue, command, tmp_path, capsys):
    """Would catch: a run that is refused because it was killed too early, or begun again without a word."""
    out = tmp_path / "out"
    glue(*command, "--resume")
    assert f"{out} holds no training yet: starts from the beginning" in capsys.readouterr().out
    expected = without_timing(out)
    for path in out.iterdir():
        if path.name != "args.json":
            path.unlink()
    glue(*command, "--resume")
    assert "holds no training yet" in capsys.readouterr().out and without_timing(out) == expected
    glue(*command, "--resume")
    assert "goes on after epoch 1, step 5 of 5" in capsys.readouterr().out
    assert without_timing(out) == expected


def test_a_checkpoint_is_there_before_the_first_step(glue, command, tmp_path, monkeypatch):
    """Would catch: an adapter without a checkpoint in a run that is killed at the end of its first epoch."""

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_glue, "loss_sum", killed)
    with pytest.raises(KeyboardInterrupt):
        glue(*command)
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] == 0


def test_overwritten_seeds_that_are_stopped_go_on(glue, command, tmp_path, monkeypatch):
    """Would catch: --overwrite --seeds, stopped in its first seed, whose --resume finds older seeds."""
    fresh, command[command.index("--out") + 1] = tmp_path / "fresh", str(tmp_path / "out")
    glue(*command, "--seeds", "2")
    again = [*command, "--seeds", "2", "--lr", "0.02", "--overwrite"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Run, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        glue(*again)
    assert not (tmp_path / "out" / "result.json").exists()
    glue(*again, "--resume")
    glue(*again, "--out", fresh)
    for seed in ("seed0", "seed1"):
        assert without_timing(tmp_path / "out" / seed) == without_timing(fresh / seed)


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
@pytest.mark.parametrize("seeds", [[], ["--seeds", 1]])
def test_two_processes_in_one_folder(glue, command, tmp_path, capsys, flag, seeds):
    """Would catch: the adapter of one run beside the result of another. A lock is of an open file, so that
    one in this process stands for another process's.
    """
    glue(*command, *seeds)
    kept = bytes_of(tmp_path / "out")
    for lock in run_module.Run.locks:
        lock.close()
    with folder.alone_in(tmp_path / "out"):
        line = fails(capsys, glue, *command, *seeds, flag)
    assert line == f"error: {tmp_path / 'out'}: another process is at work there: give another --out\n"
    assert bytes_of(tmp_path / "out") == kept
    glue(*command, *seeds, flag)  # the lock goes with its process


# ---- writes that fail


def test_a_disk_that_is_full_at_any_write_then_resume_is_bit_identical(
    glue, command, tmp_path, capsys, monkeypatch
):
    """Would catch: a traceback, a part of a file in the place of a whole one, a run that can't go on."""
    command, sync, done = [*command, "--epochs", "2"], os.fsync, []
    monkeypatch.setattr(model_module.os, "fsync", done.append)
    glue(*command, "--out", tmp_path / "whole")
    writes, expected = len(done), without_timing(tmp_path / "whole")
    for i in range(writes):
        left = iter(range(i, -1, -1))

        def full(file, left=left):
            if next(left, 0) == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        out = tmp_path / f"full{i}"
        monkeypatch.setattr(model_module.os, "fsync", full)
        line = fails(capsys, glue, *command, "--out", out)
        assert line.startswith(f"error: {out}/") and line.endswith(
            "could not be written (No space left on device)\n"
        )
        assert {path.name for path in out.iterdir()} <= {*folder.FILES, "lock"}
        monkeypatch.setattr(model_module.os, "fsync", sync)
        glue(*command, "--out", out, "--resume")
        assert without_timing(out) == expected, i


def test_torch_save_on_a_full_disk_names_the_file(tmp_path):
    """Would catch: PyTorch's "unexpected pos". The limit on a file's size stands for that of the disk."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written .*File too large") as error:
            weights.save(path, {"a": torch.ones(9999), "b": torch.ones(9999)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(path) and bytes_of(tmp_path) == {path.name: b"whole"}


def test_a_folder_that_vanishes_ends_the_run_in_one_line(glue, command, tmp_path, capsys, monkeypatch):
    """Would catch: a traceback. The folder is renamed at the first step."""
    loss_sum, out = train_glue.loss_sum, tmp_path / "out"

    def renaming(*arguments):
        if out.exists():
            out.rename(tmp_path / "elsewhere")
        return loss_sum(*arguments)

    monkeypatch.setattr(train_glue, "loss_sum", renaming)
    line = fails(capsys, glue, *command)
    assert line == f"error: {out / 'adapter-last.pt'}: could not be written (No such file or directory)\n"
    (tmp_path / "elsewhere").rename(out)
    monkeypatch.setattr(train_glue, "loss_sum", loss_sum)
    glue(*command, "--resume")


def test_a_full_disk_in_export_and_in_a_download(glue, command, tmp_path, capsys, monkeypatch, server):
    """Would catch: a traceback, or a line that names the source of a copy that failed at its target."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "source")

    monkeypatch.setattr(weights, "copy_tokenizer", full)
    line = fails(capsys, glue, *command, "--export", tmp_path / "merged")
    assert line == f"error: {tmp_path / 'merged'}: could not be written (No space left on device)\n"
    address, files = server
    files["x.zip"] = b"content", 7
    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(OSError, match="could not be written") as error:
        download.fetch(address + "x.zip", tmp_path / "x.zip", hashlib.sha256(b"content").hexdigest())
    assert error.value.filename == str(tmp_path / "x.zip")
    assert not [*tmp_path.glob("x.zip*")]


# ---- one line in the place of a traceback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed=-1"], "--seed -1: expected 0 to 4294967295"),
        (["--seed", 2**70], f"--seed {2**70}: expected 0 to 4294967295"),
        (["--method", "vera", "--frozen-seed", 2**70], "--frozen-seed 1180591620717411303424: expected 0 to"),
        (["--r", 10**11], "not enough memory ("),
        (["--r", 10**18], "not enough memory ("),
        (["--r", 10**30], "not enough memory ("),
        (["--device", "meta"], "--device meta: not available"),
        (["--warmup", "1e9"], "--warmup 1e+09: expected at most 5, the run's steps"),
        (["--targets", "q,v"], "--targets q,v: ',' matches no layer: expected letters of qkvoud"),
    ],
)
def test_bad_arguments_end_in_one_line(glue, command, tmp_path, capsys, arguments, message):
    """Would catch: a traceback, or a run that trains nothing without a word."""
    assert message in fails(capsys, glue, *command, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([1], "config.json: not a JSON object"),
        ({"hidden_size": "big"}, "config.json: hidden_size is 'big': expected int, 1 or more"),
        ({"hidden_size": -24}, "hidden_size is -24: expected int, 1 or more"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0: expected int, 1 or more"),
        ({"num_attention_heads": True}, "num_attention_heads is True: expected"),
        ({"num_attention_heads": 7}, "width 24 is not a multiple of 7 attention heads"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob is None: expected float, 0 or more"),
        ({"pad_token_id": -1}, "pad_token_id is -1: expected int, 0 or more"),
        ({"vocab_size": 10**13}, "not enough memory ("),
    ],
)
def test_a_bad_config_ends_in_one_line(glue, command, tiny_model, tmp_path, capsys, change, message):
    """Would catch: a traceback from the depths of PyTorch."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change if isinstance(change, dict) else change))
    assert message in fails(capsys, glue, *command, "--model", broken)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "content"),
    [("optimizer", {}), ("optimizer", None), ("optimizer", {"state": {}, "param_groups": []}), ("rng", {}),
     ("rng", {"cpu": torch.zeros(3)}), ("tensors", []), ("tensors", {})],
)  # fmt: skip
def test_a_checkpoint_with_parts_missing_is_refused(glue, command, tmp_path, capsys, key, content):
    """Would catch: a traceback, or training that goes on without the optimiser's state."""
    glue(*command)
    path = tmp_path / "out" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    changes = [{key: content}]
    if key == "optimizer":
        changes.append({key: saved[key] | {"state": {}}})
    for change in changes:
        torch.save(saved | change, path)
        line = fails(capsys, glue, *command, "--resume")
        assert f"{path}: no state to go on from (" in line and "--overwrite starts the run anew" in line


def test_what_a_killed_process_left_is_swept_up(glue, command, tmp_path):
    """Would catch: parts of files that stay for ever; a file of the user's that goes."""
    out = tmp_path / "out"
    (out / "features").mkdir(parents=True)
    left = [out / f"{name}.123.tmp" for name in folder.FILES] + [out / "features" / "cola-train.1.tmp"]
    for path in [*left, out / "notes.tmp"]:
        path.write_text("a part")
    glue(*command)
    assert (out / "notes.tmp").exists() and not any(path.exists() for path in left)


@pytest.mark.parametrize("script", [["train_glue.py"], ["-m", "experiments.flops"]])
def test_ctrl_c_while_torch_is_imported_is_quiet(script, tmp_path):
    """Would catch: a traceback from the depths of an import. The stand-in's import waits to be stopped."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, *script], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "") and process.returncode == -signal.SIGINT


def test_ctrl_c_before_the_run_is_quiet(capsys):
    """Would catch: a traceback for Ctrl-C while data are read."""

    def script():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run_as_script(script)
    assert exit_.value.code == 130 and capsys.readouterr().err == "\nstopped\n"


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_gone_is_quiet(tmp_path, buffered):
    """Would catch: a traceback from … --list | head, in a print or when the program ends."""
    read, write = os.pipe()
    os.close(read)
    command = ["-m", "experiments.sweep", "table1", "--model", "mini", "--list", "--out", tmp_path]
    environment = os.environ | {"PYTHONUNBUFFERED": buffered}
    pipes = {"stdout": write, "stderr": subprocess.PIPE}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, **pipes, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("missing", [lambda: exc.InvalidCxxCompiler(), lambda: exc.TritonMissing(None)])
def test_without_a_compiler_compile_is_one_line(missing, capsys):
    """Would catch: torch's traceback, where the machine has no compiler for --compile."""

    def script():
        raise missing()

    with pytest.raises(SystemExit) as exit_:
        run_as_script(script)
    line = capsys.readouterr().err
    assert exit_.value.code == 2 and line.count("\n") == 1
    assert line.startswith("error: --compile: ") and line.endswith("install it, or leave --compile out\n")


def test_texts_that_are_cut_are_counted(glue, command, tiny_glue, capsys):
    """Would catch: a text that is cut without a word, or one that just fits and is called cut."""
    dev = tiny_glue / "CoLA" / "dev.tsv"
    rows = [f"made\t1\t\t{'the ' * words}\n" for words in (29, 30, 31, 50_000)]  # and <s> and </s>
    dev.write_text("".join(rows))
    glue(*command, "--max-len", 32)
    printed = capsys.readouterr().out
    assert printed.count("longer than") == 1
    assert "2 of 4 texts are longer than --max-len 32: their ends are cut off" in printed


def test_a_missing_test_file_is_found_before_training(glue, command, tiny_glue, tmp_path, capsys):
    """Would catch: hours of training that end in an error, where --submit has no test.tsv to predict."""
    (tiny_glue / "CoLA" / "test.tsv").unlink()
    assert "test.tsv" in fails(capsys, glue, *command, "--submit", tmp_path / "answers")
    assert not (tmp_path / "out" / "args.json").exists()


# ---- after a run


def test_a_finished_run_says_what_to_do_and_its_commands_work(glue, command, tmp_path, capsys):
    """Would catch: a command that lacks an argument; --export and --submit that need --eval-only."""
    glue(*command)
    lines = capsys.readouterr().out.splitlines()[-5:]
    out, made = tmp_path / "out", tmp_path / "made"
    assert lines[0].startswith(f"{out}: the run")
    uses = [shlex.split(line)[2:] for line in lines[1:]]
    assert [use[-2:] for use in uses] == [
        [str(out / "adapter.pt"), "--eval-only"],
        ["--predict", "…"],
        ["--export", "DIR"],
        ["--submit", "DIR"],
    ]
    glue(*uses[0])
    best = json.loads((out / "result.json").read_text())["best"]
    assert json.loads(capsys.readouterr().out)["matthews"] == best["matthews"]
    glue(*uses[1][:-1], "the dog sleeps .")
    assert "acceptable" in capsys.readouterr().out
    glue(*uses[2][:-1], made / "merged")
    glue(*uses[3][:-1], made / "answers")
    assert (made / "merged" / "config.json").exists() and (made / "answers" / "CoLA.tsv").exists()


@pytest.mark.parametrize("model", ["mini", "base"])
def test_the_commands_name_the_data_that_they_need(model, capsys):
    """Would catch: GLUE that is fetched to score a run on the bundled data, where its model is another."""
    files = {"data": str(MINI), "train_file": None, "dev_file": "dev.tsv"}
    args = argparse.Namespace(model=model, method="hut", task="cola", out=Path("out"), **files)
    run_module.say_next(args, "encoder")
    printed = capsys.readouterr().out
    assert (f"--data {MINI} " in printed) == (model != "mini") and printed.count("--dev-file dev.tsv") == 4
