"""What a run must not do to what is there: files of other models and runs, full disks, two processes at once;
and one line in the place of a traceback.
"""

import errno
import os
import sys
import tempfile

import pytest
from conftest import fails

import run as run_module
import train_glue


@pytest.fixture
def command(tiny_model, tiny_glue, tmp_path):
    """The arguments of a small run: an epoch of 5 steps."""
    return ["--task", "cola", "--model", str(tiny_model), "--data", str(tiny_glue),
            "--out", str(tmp_path / "out"),
            "--epochs", "1", "--batch-size", "8", "--lr", "0.01", "--r", "2"]  # fmt: skip


@pytest.fixture
def glue(monkeypatch):
    """train_glue.py in this process: glue("--task", …)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_glue.py", *map(str, arguments)])
        train_glue.main()

    return call


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
    assert f"holds {name}, which might be lost" in line
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
    monkeypatch.setattr(run_module, "TemporaryFile", refused)
    line = fails(capsys, glue, *command, option, tmp_path / "shut" / "new")
    assert f"new: {os.strerror(number)}: expected a folder that can be written" in line
    assert not any((tmp_path / "shut").iterdir()) and not (tmp_path / "out").exists()
