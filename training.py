"""What the training scripts share: their arguments, the run folder, checkpoints and adapters on disk, the schedule.

The loop itself is not here: each script shows its own.
"""

import argparse
import contextlib
import hashlib
import json
import math
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy
import tokenizers
import torch
from torch import nn
from tqdm import tqdm

import baselines
from data import UserError
from energy import Meter, gpu_of
from hut import apply_hut, copy_tensors, merge_hut
from model import first_line, load_file, write_file
from read.network import CELLS, apply_read

FROZEN_SEED = (
    0  # of what a method holds that is random and not trained; one for all runs, as their adapters may meet
)
UNMERGED = ("read", *baselines.UNMERGED)
RUN_FILES = ("args.json", "metrics.jsonl", "result.json", "adapter.pt", "adapter-last.pt", "checkpoint.pt")

# ------------------------------------------------------------------------------------------------ command line


class Parser(argparse.ArgumentParser):
    """argparse, but that its errors are ours: one line."""

    def error(self, message):
        raise UserError(f"{message} (--help lists all arguments)")

    def parse_args(self, args=None, namespace=None):
        for text in sys.argv[1:] if args is None else args:
            try:
                text.encode()
            except UnicodeEncodeError:  # tokenizers would refuse it, from the depths
                self.error(f"{text!r}: not UTF-8")
        return super().parse_args(args, namespace)


def run_as_script(main):
    """main(), with an error that the user can mend as one line on standard error and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def mendable(where=""):
    """hut.py and model.py import torch alone and raise ValueError: around their calls it becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}{error}") from None


def whole(text):
    """An argument that counts something: 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number of 1 or more")
    return int(text)


def whole_or_0(text):
    return 0 if text == "0" else whole(text)


def positive(text):
    """An argument that is a size or a rate: above 0."""
    return _number(text, lambda x: 0 < x < float("inf"), "a number above 0")


def not_negative(text):
    return _number(text, lambda x: 0 <= x < float("inf"), "a number of 0 or more")


def probability(text):
    return _number(text, lambda x: 0 <= x < 1, "a number from 0 to below 1")


def _number(text, holds, expected):
    with contextlib.suppress(ValueError):
        if holds(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")


def add_arguments(parser, methods, defaults):
    """The arguments that all training scripts have. `defaults` says in words what those are that differ among them."""
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method", choices=methods, help=f"how to fine-tune (default: {defaults.get('method', 'hut')})"
    )
    group.add_argument(
        "--r",
        type=int,
        help="the method's size: rank (hut, lora, vera), width of an adapter (houlsby, pfeiffer, lin) or of "
        f"the network (read), number of coefficients (fourierft) or vectors (prefix) (default: {defaults['r']})",
    )
    group.add_argument(
        "--targets",
        help="layers to adapt, for hut, lora, vera and fourierft: letters of qkvoud (default: qv, the paper's)",
    )
    group.add_argument(
        "--cell", choices=CELLS, help="READ's; untied: a GRU for each layer, no recurrency (default: gru)"
    )
    group.add_argument(
        "--start", choices=("zero", "random"), help="READ's U at the start: zero, which is the frozen model, or the "
        "library's default (default: zero; the paper names none)",
    )  # fmt: skip
    parser.set_defaults(frozen_seed=None)  # no argument, but part of what an adapter file records
    group.add_argument("--init-adapter", metavar="FILE", help="start from this adapter, without its head")
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", help=f"hub name, directory, or mini (default: {defaults['model']})")
    group.add_argument(
        "--data", metavar="DIR", help="folder of the data set (default: fetched once into the cache)"
    )
    group.add_argument("--train-file", metavar="F", help="instead of the training file in --data")
    group.add_argument("--dev-file", metavar="F", help="instead of the development file in --data")
    group.add_argument(
        "--limit-train", type=whole, metavar="N", help="use N training examples, the same for every seed"
    )
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=whole, help=f"(default: {defaults['settings']})")
    group.add_argument("--batch-size", type=whole, help=f"examples a batch (default: {defaults['settings']})")
    group.add_argument("--accumulate", type=whole, default=1, help="batches an optimiser step (default: 1)")
    group.add_argument("--lr", type=positive, help=f"peak learning rate (default: {defaults['settings']})")
    group.add_argument(
        "--head-lr", type=positive, help="that of the head (default: --lr; the paper names one rate)"
    )
    group.add_argument(
        "--warmup",
        type=not_negative,
        help=f"below 1 a share of all steps, else steps (default: {defaults['warmup']})",
    )
    group.add_argument(
        "--weight-decay",
        type=not_negative,
        metavar="W",
        help=f"AdamW's; it pulls M_A, M_B and gamma to 0, not to the frozen model's 1 (default: {defaults['weight_decay']})",
    )
    group.add_argument(
        "--clip", type=positive, metavar="NORM", help="clip the gradient's norm (default: no clipping)"
    )
    group.add_argument(
        "--dropout",
        type=probability,
        metavar="P",
        help=f"everywhere; read: in the head (default: {defaults['dropout']})",
    )
    group.add_argument(
        "--max-len",
        type=whole,
        metavar="TOKENS",
        help=defaults.get(
            "max_len",
            "truncate to this (default: 512, the paper's, or the model's position table if that is shorter)",
        ),
    )
    seeds = group.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help="(default: 0)")
    seeds.add_argument("--seeds", type=whole, metavar="N", help="run seeds 0 … N−1 and report mean ± std")
    group.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda if there is one)")
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the frozen model's arithmetic; adapter, head and optimiser are float32 "
        "(default: bfloat16 on a GPU that has it, else float32)",
    )
    group = parser.add_argument_group("files")
    group.add_argument(
        "--out", metavar="DIR", help="run folder (default: runs/<task>-<method>-r<r>-seed<seed>)"
    )
    group.add_argument("--resume", action="store_true", help="go on with the run in --out where it stopped")
    group.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    group.add_argument("--adapter", metavar="FILE", help="a saved adapter, for --eval-only and --predict")
    group.add_argument(
        "--eval-only",
        action="store_true",
        help="score --adapter (E2E: into --out, or eval/ beside it); no training",
    )
    group.add_argument("--export", metavar="DIR", help="write the merged model in HuggingFace's layout")


# What does not change what a run computes, and may differ when it is resumed.
ASIDE = ("seed", "seeds", "out", "resume", "overwrite", "adapter", "eval_only", "predict", "submit", "export", "device",
         "cache_features")  # fmt: skip


def fill_in(args, settings, sizes):
    """Gives every argument that the user left out its value in `settings`, and --r the method's own in `sizes`."""
    method = args.method = args.method or settings["method"]
    own = {
        "r": sizes.get(method),
        "targets": "qv" if method in ("hut", *baselines.TARGETED) else None,
        "cell": "gru" if method == "read" else None,
        "start": "zero" if method == "read" else None,
        "frozen_seed": FROZEN_SEED if method in baselines.RANDOM else None,
    }
    for name, value in own.items():
        if value is None and getattr(args, name) is not None:
            print(f"--{name} {getattr(args, name)}: --method {method} has no such thing; it is left out")
            setattr(args, name, None)
    for name in ("submit", "export"):
        if (folder := getattr(args, name)) and Path(folder).is_file():
            raise UserError(f"--{name} {folder}: a file: expected a folder, or a name that is free")
    if args.export and method in UNMERGED:
        raise UserError(f"--method {method} does not merge: leave --export out")
    for name, value in (settings | own).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.head_lr = args.head_lr or args.lr


def check_adapter(args, methods):
    """--adapter goes with what needs it, and with nothing else; what its file knows of the run is set in `args`.

    That is its method and RECORDED. Another model, length or stride is the user's to choose (the fingerprint
    of the base guards the first); contradicting the others is an error.
    """
    if (args.eval_only or args.predict) and not args.adapter:
        raise UserError("--eval-only and --predict need --adapter FILE")
    if args.predict and (args.eval_only or args.submit or args.export):
        raise UserError("--predict: leave --eval-only, --submit and --export to a call of their own")
    if not args.adapter:
        return
    if not (args.eval_only or args.predict):
        raise UserError(
            "--adapter is for --eval-only and --predict; to start training from one, use --init-adapter"
        )
    found = read_adapter(args.adapter)
    if found["task"] != args.task:
        raise UserError(f"{args.adapter}: trained on {found['task']}, not {args.task}")
    if found["method"] not in methods:
        raise UserError(
            f"{args.adapter}: made with --method {found['method']}: this script has {' '.join(methods)}"
        )
    for key, value in {"method": found["method"], **found["config"]}.items():
        given = getattr(args, key, None)  # another script may not have it
        if given is None:
            setattr(args, key, value)
        elif value is not None and given != value and key not in ("model", "max_len", "doc_stride"):
            raise UserError(f"{args.adapter}: trained with {key} {value}, not {given}: leave --{key} out")


def run_folders(args):
    """(folder of all, {seed: folder of its run}); raises UserError if one holds a run that would be lost."""
    name = f"{args.task}-{args.method}" + (f"-r{args.r}" if args.r else "")
    out = Path(args.out or f"runs/{name}" + ("" if args.seeds else f"-seed{args.seed}"))
    folders = {seed: out / f"seed{seed}" for seed in range(args.seeds)} if args.seeds else {args.seed: out}
    if not args.adapter:
        for folder in folders.values():
            check_out(folder, args.resume, args.overwrite)
    return out, folders


def check_max_len(given, longest, shortest=1):
    """--max-len, or its default. Raises UserError if the model's position table is shorter."""
    if given and not shortest <= given <= longest:
        raise UserError(f"--max-len {given}: expected {shortest} to {longest}, what the position table holds")
    return given or min(512, longest)


def pick_device(name, dtype):
    """(torch.device, dtype of the arithmetic): what was asked for, or the defaults that --help names."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f"--device {name}: not available ({first_line(error)})") from None
    if dtype is None:
        dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return device, getattr(torch, dtype)


# ------------------------------------------------------------------------------------------------ method


def put_in(model, args, head=None):
    """`model` made ready for args.method, frozen and adapted; then `head`, a module of it, is unfrozen, if there is one.

    READ's is another object with the same layers; the others work in place.
    """
    with mendable():
        if args.method == "hut":
            apply_hut(model, args.r, args.targets)
        elif args.method == "read":
            scaled = not getattr(args, "unscaled", False)  # train_read.py's alone
            model = apply_read(model, args.r, args.cell, args.start != "random", scaled)
        elif args.method in ("head", "frozen"):
            model.requires_grad_(False)
        else:
            baselines.apply(model, args.method, args.r, args.targets, args.frozen_seed)
    if head is not None:
        head.requires_grad_(True)
    return model


def merged(model, method):
    """A copy of `model` with plain layers, to be used or exported as any checkpoint is."""
    with mendable(f"--method {method} "):
        if method == "read":
            raise ValueError("does not merge: no weights of the plain model compute the same")
        return merge_hut(model) if method == "hut" else baselines.merge(model)


def trainable(model, head=""):
    """(adapter, head): the trainable parameters by name; the head's are those whose names start with `head`."""
    tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    in_head = {name: p for name, p in tensors.items() if head and name.startswith(head)}
    return {name: p for name, p in tensors.items() if name not in in_head}, in_head


def set_dropout(model, p):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def autocast(device, dtype):
    """The frozen model's arithmetic in `dtype`; parameters keep theirs."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def count(tensors):
    return sum(t.numel() for t in tensors)


# ------------------------------------------------------------------------------------------------ files


def save(path, content):
    write_file(path, lambda file: torch.save(content, file))


def write_json(path, content):
    write_text(path, json.dumps(no_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path, text):
    write_file(path, lambda file: file.write(text.encode()))


def write_lines(path, rows):
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(no_nan(row), allow_nan=False) + "\n" for row in rows))


def no_nan(content):
    """A score that is not defined (the correlation of a constant) is null in JSON, which has no NaN."""
    if isinstance(content, dict):
        return {key: no_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [no_nan(value) for value in content]
    return None if isinstance(content, float) and content != content else content


def load(path, *keys):
    """The dict saved at `path`, which must have `keys`. Raises UserError, naming the file, if it is damaged."""
    try:
        with mendable():
            content = load_file(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path}: not a file of this program: it has no '{missing[0]}'")
    return content


def fingerprint(model, head=""):
    """sha256 over the names, shapes and bytes of the model's tensors, the head's aside, before anything is adapted."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not (head and name.startswith(head)):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ adapter files

ADAPTER_KEYS = ("method", "config", "task", "base", "adapter", "head")
RECORDED = (
    "r",
    "targets",
    "cell",
    "start",
    "unscaled",
    "frozen_seed",
    "model",
    "max_len",
    "doc_stride",
)  # "config": of these, what the script has


def read_adapter(path):
    return load(path, *ADAPTER_KEYS)


def load_adapter(path, model, base, method, head="", with_head=True):
    """Copies the tensors of an adapter file into `model`, which is prepared for `method` and has fingerprint `base`."""
    found = read_adapter(path)
    if found["method"] != method:
        raise UserError(f"{path}: made with --method {found['method']}, not {method}")
    if found["base"] != base:
        raise UserError(
            f"{path}: made on another base checkpoint ({found['base'][:12]}…, this one is {base[:12]}…): "
            "name the one it was trained on with --model"
        )
    adapter, in_head = trainable(model, head)
    with mendable(f"{path}: "):
        copy_tensors(found["adapter"], adapter)
        if with_head:
            copy_tensors(found["head"], in_head)


# ------------------------------------------------------------------------------------------------ the run folder


def check_out(folder, resume, overwrite):
    """Raises UserError if the folder holds a run and neither flag says what should become of it."""
    present = [name for name in RUN_FILES if (folder / name).exists()]
    if present and not (resume or overwrite):
        raise UserError(
            f"{folder} holds another run: --resume goes on with it, --overwrite replaces it, --out names another place"
        )
    return present


def open_run(folder, settings, resume, overwrite):
    """Makes the run folder and its args.json, with versions, device and revision; -> what checkpoint.pt holds, or None.

    Raises UserError if the folder holds a run and neither flag is given, or one that was started with other
    settings.
    """
    present = check_out(folder, resume, overwrite)
    if resume and present:
        recorded = recorded_settings(folder / "args.json")
        for key, value in settings.items():
            if recorded.get(key) != value:
                raise UserError(
                    f"--resume: {folder} was started with {key} {recorded.get(key)}, not {value}: "
                    "give the same arguments, or another --out"
                )
        if "checkpoint.pt" in present:
            return load(folder / "checkpoint.pt", "tensors", "optimizer", "rng", *Run.STATE)
        return None
    for name in present:
        (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "args.json", {"args": settings, **environment()})
    return None


def recorded_settings(path):
    """What a run was started with. Raises UserError if its args.json is missing or damaged: the run is left as it is."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["args"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--resume: {path}: missing or damaged: expected what the run was started with; --overwrite starts it anew"
        ) from None


def environment():
    """What a number may depend on besides the arguments."""
    here = Path(__file__).parent

    def git(*command):
        done = subprocess.run(["git", "-C", here, *command], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD") if (here / ".git").exists() else None
    if revision and git("status", "--porcelain", "--untracked-files=no"):
        revision += " with changes"
    gpu = torch.cuda.is_available()
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "git": revision,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


class Run:
    """Where a training run stands, and the files that say so. The loop is the script's; this counts, saves, restores.

    `epoch` and `position` (optimiser steps of this epoch) are what is done; `step` counts from the start. The
    optimiser is AdamW, with a learning rate each for the adapter and the head (parameters whose names start
    with `head`).
    """

    STATE = ("epoch", "position", "step", "seen", "loss_sum", "seconds", "energy", "log", "best", "last")
    SAVE_EVERY = 600  # seconds between checkpoints within an epoch

    def __init__(self, args, seed, folder, model, base, steps, device, unit, head="", meter=None):
        self.unit = unit  # what a step's loss is a mean over, and speed is counted in
        self.args, self.seed, self.folder, self.device = args, seed, folder, device
        self.adapter, self.head = trainable(model, head)
        frozen = count(p for p in model.parameters() if not p.requires_grad)
        self.parameters = {
            "adapter": count(self.adapter.values()),
            "head": count(self.head.values()),
            "frozen": frozen,
        }
        config = {key: value for key, value in vars(args).items() if key in RECORDED}
        self.header = {"method": args.method, "config": config, "task": args.task, "base": base}
        self.total = args.epochs * steps
        self.warmup = int(args.warmup if args.warmup >= 1 else args.warmup * self.total)
        groups = [{"params": [*self.adapter.values()], "peak": args.lr}]
        groups += [{"params": [*self.head.values()], "peak": args.head_lr}]
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
        self.epoch = self.position = self.step = self.seen = 0
        self.loss_sum, self.seconds, self.log, self.best, self.last = 0.0, 0.0, [], None, None
        self.energy = {"utilisation": 0.0, "power": 0.0}  # kWh, before a resumption
        self.steps_here = self.seen_here = 0
        self.stopping = False
        settings = {key: value for key, value in vars(args).items() if key not in ASIDE} | {"seed": seed}
        saved = open_run(folder, settings, args.resume, args.overwrite)
        self.meter, self.saved_at = (
            meter or Meter(gpu_of(device)),
            time.time(),
        )  # one given has been running already
        self.started = self.meter.started
        if saved:
            self._restore(saved)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def describe(self, steps, dtype):
        """Prints what will be done, before the first step."""
        args, counts = self.args, self.parameters
        head = f" + {counts['head']:,} head" if self.head else ""
        print(
            f"{args.method}: {counts['adapter']:,} adapter{head} parameters are trained, {counts['frozen']:,} are frozen"
        )
        rates = f"lr {args.lr:g}" + (f" (head {args.head_lr:g})" if self.head else "")
        print(
            f"{args.epochs} epochs of {steps:,} steps of {args.batch_size * args.accumulate} examples; AdamW, {rates}, "
            f"{self.warmup} warm-up steps; {self.device}, {str(dtype)[6:]}, seed {self.seed}"
        )
        if self.step:
            print(f"goes on after epoch {self.epoch}, step {self.step} of {self.total}")

    def steps(self, groups):
        """The groups of this epoch that are still to do, behind a progress bar."""
        left, done = groups[self.position :], self.position
        self.seen_here = 0
        self.epoch_started = self.steps_until = time.time()
        self.bar = tqdm(
            left, f"epoch {self.epoch + 1}", initial=done, total=len(groups), disable=None, leave=False
        )
        return self.bar

    def optimizer_step(self, loss, weight):
        """AdamW with the gradients that are there, of mean `loss` over `weight` examples or tokens.

        Raises UserError if the loss is not finite. Saves now and then, and when the user has asked to stop.
        """
        factor = schedule(self.step, self.total, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        if not math.isfinite(loss):
            raise self._not_finite()
        if self.args.clip:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.args.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_until = time.time()

        self.step, self.position, self.seen = self.step + 1, self.position + 1, self.seen + weight
        self.loss_sum += loss * weight
        self.steps_here, self.seen_here = self.steps_here + 1, self.seen_here + weight
        shown = f"loss {loss:.3f}, lr {self.lr():.1e}, {self.speed():,.0f} {self.unit}/s"
        self.bar.set_postfix_str(shown, refresh=False)
        if self.steps_here == 20:
            each = (time.time() - self.epoch_started) / 20
            left = clock(each * (self.total - self.step))
            tqdm.write(f"about {left} to go at {1000 * each:.0f} ms a step, scoring aside")
        if self.stopping:
            self._save_and_exit()
        if time.time() - self.saved_at > self.SAVE_EVERY:
            self.save()

    def end_epoch(self, scores, better):
        """Logs the epoch and writes adapter-last.pt, metrics.jsonl, checkpoint.pt, and adapter.pt where it is better."""
        train_loss = self.loss_sum / self.seen
        row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "train_loss": train_loss,
            **scores,
            "lr": self.lr(),
        }
        timing = {
            "seconds": self.elapsed(),
            "energy_kwh": self.spent(),
            f"{self.unit}_per_second": self.speed(),
        }
        self.log.append(row | {"timing": timing})
        self.epoch, self.position, self.seen, self.loss_sum = self.epoch + 1, 0, 0, 0.0
        self.last = {"epoch": self.epoch, **scores}
        parts = {"adapter": self.adapter, "head": self.head}
        tensors = {key: {name: p.detach().cpu() for name, p in part.items()} for key, part in parts.items()}
        save(self.folder / "adapter-last.pt", self.header | tensors)
        if better:
            self.best = self.last
            save(self.folder / "adapter.pt", self.header | tensors)
        write_lines(self.folder / "metrics.jsonl", self.log)
        self.save()
        numbers = "  ".join(f"{key} {value:.4f}" for key, value in scores.items() if isinstance(value, float))
        flag = "  predicts a single class" if scores.get("single_class") else ""
        print(f"epoch {self.epoch}  {clock(self.elapsed())}  train_loss {train_loss:.4f}  {numbers}{flag}")
        if self.stopping:
            self._save_and_exit()

    def finish(self, **more):
        """Writes result.json, with the entries of `more` added, and returns what it says."""
        args = self.args
        result = {
            "task": args.task,
            "method": args.method,
            "r": args.r,
            "targets": args.targets,
            "seed": self.seed,
        }
        result |= {"parameters": self.parameters, "best": self.best, "last": self.last, **more}
        self.meter.stop()
        timing = {key: self.log[-1]["timing"][key] for key in ("seconds", "energy_kwh")}
        timing |= {"peak_memory_bytes": peak_memory(self.device), **more.get("timing", {})}
        write_json(self.folder / "result.json", result | {"timing": timing})
        return result | {"timing": timing}

    def save(self):
        """checkpoint.pt: all that resuming needs. Batches are drawn from (seed, epoch) and need no state of their own."""
        tensors = {name: p.detach() for name, p in (self.adapter | self.head).items()}
        if not all(p.isfinite().all() for p in tensors.values()):
            raise self._not_finite()
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        state = {key: getattr(self, key) for key in self.STATE} | {
            "seconds": self.elapsed(),
            "energy": self.spent(),
        }
        rng = {"cpu": torch.get_rng_state(), "cuda": cuda}
        optimizer = self.optimizer.state_dict()
        save(self.folder / "checkpoint.pt", {**state, "tensors": tensors, "optimizer": optimizer, "rng": rng})
        self.saved_at = time.time()

    def elapsed(self):
        """Seconds, those before a resumption included."""
        return self.seconds + time.time() - self.started

    def spent(self):
        """kWh by the two measures of energy.py, those before a resumption included; None where not measured."""
        now = self.meter.kwh
        return {key: None if None in (kwh, now[key]) else kwh + now[key] for key, kwh in self.energy.items()}

    def speed(self):
        """Examples or tokens a second in this epoch's training, 0 if none was left to do."""
        return self.seen_here and self.seen_here / (self.steps_until - self.epoch_started)

    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    def _restore(self, saved):
        with mendable(f"{self.folder / 'checkpoint.pt'}: "):
            copy_tensors(saved["tensors"], self.adapter | self.head)
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type == "cuda" and saved["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(saved["rng"]["cuda"], self.device)
        for key in self.STATE:
            setattr(self, key, saved[key])

    def _not_finite(self):
        good = self.folder / "checkpoint.pt"
        kept = f"; {good} is the last good state" if good.exists() else ""
        return UserError(
            f"the loss is not finite at step {self.step + 1} of {self.total}, task {self.args.task}, lr {self.lr():g}: "
            f"lower --lr{kept}"
        )

    def _stop(self, number, frame):
        """Ctrl-C is noted, so that the step can end and be saved; a second one ends the program at once."""
        if self.stopping:
            sys.exit(130)
        self.stopping = True

    def _save_and_exit(self):
        self.bar.close()
        self.save()
        again = sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"]
        print(
            f"\nstopped after step {self.step} of {self.total} and saved; go on with: python {shlex.join(again)}"
        )
        sys.exit(130)


def schedule(step, total, warmup):
    """The learning rate's factor for optimiser step `step`, from 0: linear up over `warmup` steps, then linear to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(total - warmup, 1)


def peak_memory(device):
    """Bytes: of the GPU's allocator, or the most this process has held."""
    status = Path("/proc/self/status")
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if status.exists():  # Linux; its ru_maxrss would count the process that started this one
        return (
            int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
            * 1024
        )
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def clock(seconds):
    """95 -> 1:35, 7265 -> 2:01:05"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def mean_and_std(results, key):
    """(mean, std with n − 1) of each score of the results' `key`: {score: number}; None where a run has none."""
    mean, std = {}, {}
    for name in results[0][key]:
        values = [no_nan(result[key].get(name)) for result in results]
        if name == "epoch" or not any(isinstance(value, float) for value in values):
            continue
        known = None not in values
        mean[name] = statistics.fmean(values) if known else None
        std[name] = statistics.stdev(values) if known and len(values) > 1 else None
    return mean, std


def report(results, out, seeds, keys):
    """Prints each seed's results and, for --seeds, mean ± std of each score, which go into `out`/result.json."""
    for result in results:
        print(f"seed {result['seed']}: " + "; ".join(f"{key}: {shown(result[key])}" for key in keys))
    if not seeds:
        return
    both = {key: mean_and_std(results, key) for key in keys}
    together = {name: results[0][name] for name in ("task", "method", "r", "targets", "parameters")}
    together |= {
        "mean": {key: mean for key, (mean, _) in both.items()},
        "std": {key: std for key, (_, std) in both.items()},
    }
    write_json(out / "result.json", {**together, "seeds": list(range(seeds)), "runs": results})
    for key, (mean, std) in both.items():
        means = (
            f"{name} {value:.4f} ± {std[name] or 0:.4f}" for name, value in mean.items() if value is not None
        )
        print(f"{key} of {len(results)} seeds: {', '.join(means)}")


def shown(scores):
    return ", ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in scores.items()
    )
