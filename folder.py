"""A run's folder: whether it can be written, whether it holds a run, one process at a time; how it begins."""

import contextlib
import fcntl
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import numpy
import tokenizers
import torch

from data import UserError, write_json
from device import pick_device
from processes import size

FILES = ("args.json", "metrics.jsonl", "result.json", "adapter.pt", "adapter-last.pt", "checkpoint.pt")


def check_writable(option, folder):
    """Raises UserError if no file can be made in `folder`, or it can't be made itself; leaves none behind."""
    whole = folder.absolute()
    try:
        there = next(filter(os.path.lexists, [whole, *whole.parents]))
        for name in whole.relative_to(there).parts:
            with contextlib.suppress(FileNotFoundError):
                (there / name).lstat()  # finds a name that is too long
        TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(
            f"{option} {folder}: {error.strerror}: expected a folder that can be written"
        ) from None


def check_export(folder):
    """Raises UserError unless `folder` is new or empty: other files might be lost, or read with the model."""
    check_writable("--export", folder)
    if found := folder.exists() and sorted(folder.iterdir()):
        raise UserError(f"--export {folder}: holds {found[0].name}: name a new or empty folder")


def check_out(folder, resume, overwrite):
    """The names of a run's files in the folder. UserError if there are any and neither flag is given."""
    present = [name for name in FILES if (folder / name).exists()]
    if present and not (resume or overwrite):
        ways = "--resume goes on with it, --overwrite replaces it, --out names another place"
        raise UserError(f"{folder} holds another run: {ways}")
    return present


def alone_in(folder, name="lock"):
    """Makes `folder`, and locks it until what is returned is closed. UserError if another process has it."""
    check_writable("--out", folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / name).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder}: another process is at work there: give another --out") from None
    except OSError as error:  # a file system without locks
        print(f"{folder}: no lock ({error.strerror}): see to it that no other process writes there")
    if name == "lock":  # a run's own, so that no other is writing
        for pattern in (*(f"{file}.*.tmp" for file in FILES), "features/*.tmp"):
            for left in folder.glob(pattern):  # of a process that was killed while it wrote
                left.unlink()
    return lock


def open_folder(folder, settings, resume, overwrite, device):
    """Begins a run folder with args.json. True if there is training to --resume.

    Raises UserError as `check_out` does, and if the run had other settings.
    """
    present = check_out(folder, resume, overwrite)
    begun = present not in ([], ["args.json"])
    if resume and not begun:
        print(f"--resume: {folder} holds no training yet: starts from the beginning")
    if resume and present:
        path = folder / "args.json"
        try:
            recorded = dict(json.loads(path.read_text(encoding="utf-8"))["args"])
        except (OSError, ValueError, KeyError, TypeError):
            expected = "expected what the run was started with; --overwrite starts it anew"
            raise UserError(f"--resume: {path}: missing or damaged: {expected}") from None
        for key, value in settings.items():
            before = recorded.get(key)
            if off(before) != off(value):
                other = f"{folder} was started with {key} {before}, not {value}"
                raise UserError(f"--resume: {other}: give the same arguments, or another --out")
        return begun
    discard(folder)
    write_json(folder / "args.json", {"args": settings, **environment(device)})
    return False


def off(value):
    """None for a switch that is off, which may be False, [] or not there; the value of any other setting."""
    return None if value is False or value == [] else value


def discard(folder):
    """Deletes a run's files, if there are any, but not the folder, nor what others put there."""
    for name in (*FILES, "outputs.txt", "references.txt", "eval/result.json", "eval-last/result.json"):
        (folder / name).unlink(missing_ok=True)


def environment(device=None):
    """What a number may depend on besides the arguments. `device`: that of a run, else the default."""
    here = Path(__file__).parent

    def git(*command):
        done = subprocess.run(["git", "-C", here, *command], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD") if (here / ".git").exists() and shutil.which("git") else None
    if revision and git("status", "--porcelain", "--untracked-files=no"):
        revision += " with changes"
    versions = {module.__name__: module.__version__ for module in (torch, numpy, tokenizers)}
    device = device or pick_device(None, None)[0]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": gpu or f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "processes": size(),
        "git": revision,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
