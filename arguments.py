"""The command line that the training scripts share: its arguments, their defaults and their checks."""

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

from data import UserError, as_user_error, listed
from data.hub import MINI
from folder import check_export, check_out, check_writable
from methods import ENCODER, METHODS, OPTIONS, check_merges, methods_of, settings
from model import first_line
from processes import first, start
from weights import CHOSEN, read_adapter


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors, without abbreviations: the sweep looks for whole names."""

    def __init__(self, **given):
        super().__init__(allow_abbrev=False, **given)

    def error(self, message):
        raise UserError(f"{message} (--help lists all arguments)")

    def parse_known_args(self, *given):
        for text in sys.argv[1:]:
            try:
                text.encode()
            except UnicodeEncodeError:  # the tokenizers would raise it, from their depths
                self.error(f"{text!r}: not UTF-8")
        return super().parse_known_args(*given)


def run_as_script(main, stopped="stopped"):
    """Calls main(). What the user can fix becomes one line on standard error, and exit status 2.

    That is a UserError, a file's OSError, too little memory, or no compiler for --compile. Ctrl-C prints
    `stopped`: status 130. Where nobody reads on the status is 141, as a shell has it for SIGPIPE.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        start()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as in … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (UserError, OSError, RuntimeError, TypeError, MemoryError) as error:  # TypeError: --r beyond int64
        problem = first_line(error)
        if isinstance(error, UserError):
            problem = str(error)
        elif isinstance(error, OSError) and error.filename is not None:
            problem = f"{error.filename}: {error.strerror}"
        elif isinstance(error, MemoryError) or re.search("allocate memory|out of memory|verflow", problem):
            problem = f"not enough memory ({problem}): a smaller --r, --batch-size or model takes less"
        elif re.search("C.. compiler|[Tt]riton", problem):
            problem = f"--compile: {problem}: install it, or leave --compile out"
        else:
            raise
        if not first():  # the first prints it, then torchrun ends this one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(15)
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


# ---- numbers


def whole(text):
    if not text.isdigit() or not 1 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"'{text}': expected a whole number of 1 or more, below 1e9")
    return int(text)


def whole_or_zero(text):
    return 0 if text == "0" else whole(text)


def number(expected, holds):
    """The type of an argument that is a number for which `holds` is true; `expected` says so in words."""

    def parsed(text):
        with contextlib.suppress(ValueError):
            if holds(float(text)):
                return float(text)
        raise argparse.ArgumentTypeError(f"'{text}': expected {expected}")

    return parsed


positive = number("a number above 0", lambda x: 0 < x < math.inf)
not_negative = number("a number of 0 or more", lambda x: 0 <= x < math.inf)
probability = number("a number from 0 to below 1", lambda x: 0 <= x < 1)


def file_to_write(given):
    """An argparse type, which refuses a bad path before minutes of work."""
    if Path(given).is_dir() or not Path(given).parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{given}': expected the name of a file, in a folder that exists")
    return Path(given)


# ---- the arguments

HOLD_OUT = "score on a held-out part of the training set in place of dev, to choose settings by"


def add_arguments(parser, layout, defaults):
    """Adds the arguments of all training scripts. `defaults`: {name: the script's own, where it has one}."""
    methods = methods_of(layout)
    sizes = listed({name: METHODS[name].r[layout] for name in methods if layout in METHODS[name].r})
    rates = listed({name: METHODS[name].lr[layout] for name in methods if METHODS[name].lr[layout]})

    add = parser.add_argument_group("method").add_argument
    add("--method", choices=methods, help=f"(default: {defaults['method']})")
    size = "the method's size: its rank, its width, its number of coefficients or of vectors"
    add("--r", type=int, help=f"{size} (default: {sizes})")
    for name, option in OPTIONS.items():
        takers = {m: METHODS[m].takes[name] for m in methods if name in METHODS[m].takes}
        if not takers:
            parser.set_defaults(**{name: None})
            continue
        values = ", ".join(dict.fromkeys("off" if v is False else str(v) for v in takers.values()))
        described = f"{option['help']}; for {' '.join(takers)} (default: {values})"
        add("--" + name.replace("_", "-"), **option | {"help": described})
    add("--init-adapter", metavar="FILE", help="start from this adapter, without its head")

    add = parser.add_argument_group("model and data").add_argument
    add("--model", help=f"hub name, directory, or mini (default: {defaults['model']})")
    add("--data", metavar="DIR", help="folder of the data set (default: fetched once; mini: bundled)")
    add("--train-file", metavar="F", help="instead of the training file in --data")
    add("--dev-file", metavar="F", help="instead of the development file in --data")
    add("--limit-train", type=whole, metavar="N", help="use N training examples, the same for every seed")

    group = parser.add_argument_group("training")
    add = group.add_argument
    epochs, size = (defaults.get(name, "the task's, see below") for name in ("epochs", "batch_size"))
    add("--epochs", type=whole, help=f"(default: {epochs})")
    add("--batch-size", type=whole, help=f"examples per batch (default: {size})")
    add("--accumulate", type=whole, default=1, help="batches per optimiser step (default: 1)")
    graphs = "torch.compile the training step; on a GPU, one CUDA graph for each of a few padded lengths"
    add("--compile", action="store_true", help=f"{graphs} (not measured on a GPU)")
    rate = "peak learning rate (default: that in methods.py for method and task, else:"
    add("--lr", type=positive, help=f"{rate} {rates})")
    head = "the head's (default: that in methods.py for the method, else --lr; the paper names one rate)"
    add("--head-lr", type=positive, help=head)
    warmup = f"steps, or below 1 a share of all steps (default: {defaults['warmup']})"
    add("--warmup", type=not_negative, help=warmup)
    decay = "AdamW's; it pulls M_A, M_B and gamma to 0, not to the frozen model's 1"
    decay += f" (default: {defaults['weight_decay']})"
    add("--weight-decay", type=not_negative, metavar="W", help=decay)
    add("--clip", type=positive, metavar="NORM", help="clip the gradient's norm (default: no clipping)")
    own = defaults.get("dropout", "the checkpoint's own")
    dropout = f"in dropout layers, but not in READ's or LST's backbone (default: {own})"
    add("--dropout", type=probability, metavar="P", help=dropout)
    longest = f"{defaults.get('max_len', 512)}, or what the model takes if that is less"
    add("--max-len", type=whole, metavar="TOKENS", help=f"truncate to this (default: {longest})")
    seeds = group.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help="(default: 0)")
    seeds.add_argument("--seeds", type=whole, metavar="N", help="run seeds 0 … N−1 and report mean ± std")
    add("--device", help="cpu, cuda, cuda:1, … (default: cuda if there is one)")
    dtype = "the model's arithmetic; trained parameters and optimiser are float32 (default: bfloat16 on "
    add("--dtype", choices=("float32", "bfloat16"), help=f"{dtype}a GPU that has it, else float32)")

    add = parser.add_argument_group("files").add_argument
    add("--out", metavar="DIR", help="run folder (default: runs/<task>-<method>-r<r>-seed<seed>)")
    add("--resume", action="store_true", help="continue the run in --out where it stopped")
    add("--overwrite", action="store_true", help="replace the run in --out")
    add("--adapter", metavar="FILE", help="a saved adapter to score, export or predict with")
    evaluate = "score --adapter (E2E: into --out, or eval…/ beside it); no training"
    add("--eval-only", action="store_true", help=evaluate)
    add("--export", metavar="DIR", help="write the merged model in HuggingFace's layout")
    parser.set_defaults(submit=None, predict_file=None)  # not every script has these


def fill_in(args, layout, shared, mini, mini_data):
    """Checks the arguments against each other, and gives each that was left out its default; see `settings`.

    shared     {setting: value} of the task and the script
    mini       those of the bundled model and data, which are meant by --model mini without --data
    mini_data  the folder of the bundled data, None for a run on other data
    """
    method = args.method = args.method or shared["method"]
    row, bundled = METHODS[method], (args.model or shared["model"]) == "mini" and not args.data
    others = args.adapter or (args.train_file and args.dev_file)
    if bundled and mini_data == MINI and args.task != "cola" and not others:
        raise UserError("--model mini: its data holds cola only; give --data for another task")
    takes = [*row.takes, "r"] if row.r else row.takes
    for name in ("r", *OPTIONS):
        if name not in takes and (given := getattr(args, name)) is not None:
            print(f"--{name.replace('_', '-')} {given}: --method {method} has no such thing; it is left out")
            setattr(args, name, None)
    for name in ("seed", "frozen_seed"):
        if not 0 <= (given := getattr(args, name) or 0) < 2**32:
            raise UserError(f"--{name.replace('_', '-')} {given}: expected 0 to {2**32 - 1}")
    if wrong := set(args.targets or "") - set("qkvoud"):
        problem = f"'{min(wrong)}' matches no layer: expected letters of qkvoud with nothing between them"
        raise UserError(f"--targets {args.targets}: {problem}")
    if vars(args).get("hold_out") and args.dev_file and args.task != "own":
        raise UserError("--dev-file: --hold-out takes its place: leave one of them out")
    if args.seeds and (args.export or args.submit):
        print(f"--seeds {args.seeds}: what --export or --submit writes is of seed 0")
    if args.submit:
        check_writable("--submit", Path(args.submit))
    if args.export:
        check_export(Path(args.export))
        with as_user_error():
            check_merges(method, layout)
    if bundled and mini_data:
        args.data = str(mini_data)
    defaults = settings(method, args.task, layout, shared, mini if bundled else None, args.r)
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.head_lr and layout != ENCODER:
        print(f"--head-lr {args.head_lr:g}: the model has no head of its own; it is left out")
        args.head_lr = None
    args.head_lr = args.head_lr or args.lr
    if bundled and not args.adapter:
        chosen = {name: getattr(args, name) for name in (*mini, "lr")}
        what = "model and data" if mini_data else "model"
        print(f"mini: the bundled {what}, with settings of their own: {listed(chosen)}")


def check_adapter(args, script, layout):
    """Checks that --adapter is given exactly when it is needed, and fills in what its file knows of the run.

    That is its task, its method and RECORDED. Of these, CHOSEN may be given other values: the base's
    fingerprint guards --model. Contradicting the rest is an error, and so is another script's adapter.
    """
    predict, others = args.predict or args.predict_file, args.eval_only or args.submit or args.export
    if not all(map(str.strip, args.predict or ())):
        raise UserError("--predict: expected text, in quotes, found none")
    if (args.eval_only or predict) and not args.adapter:
        raise UserError("--eval-only and --predict need --adapter FILE")
    if predict and others:
        raise UserError("--predict: leave --eval-only, --submit and --export to a call of their own")
    if not args.adapter:
        return
    if args.seeds:
        raise UserError("--seeds: --adapter is one run's: leave --seeds out")
    if not (predict or others):
        uses = "--eval-only, --predict, --export and GLUE's --submit"
        raise UserError(f"--adapter is for {uses}; to start training from one, use --init-adapter")
    found, methods = read_adapter(args.adapter, script), methods_of(layout)
    if found["method"] not in methods:
        expected = f"this script has {' '.join(methods)}"
        raise UserError(f"{args.adapter}: made with --method {found['method']}: {expected}")
    for key, value in ({key: found[key] for key in ("task", "method")} | found["config"]).items():
        given = vars(args).get(key)
        if given is None:
            setattr(args, key, value)
        elif value is not None and given != value and key not in CHOSEN:
            flag = {"labels": "regression"}.get(key, key.replace("_", "-"))
            raise UserError(f"{args.adapter}: trained with {key} {value}, not {given}: leave --{flag} out")


def check_out_file(args):
    files = [Path(file) for file in (args.predict_file, args.out_file) if file]
    if len({file.resolve() for file in files}) == 1 or len({file.suffix.lower() for file in files}) > 1:
        raise UserError("--predict-file and --out-file: expected both, two files with the same ending")
    if files:
        check_writable("--out-file", files[1].parent)
        if files[1].is_dir():
            raise UserError(f"--out-file {files[1]}: is a folder: expected the name of a file")


def run_folders(args):
    """(folder of all, the arguments of each run: those of `args` with its seed and its folder as `out`).

    Raises UserError if one of the folders can't be written, or holds a run that would be lost.
    """
    name = f"{args.task}-{args.method}" + (f"-r{args.r}" if args.r else "")
    out = Path(args.out or f"runs/{name}" + ("" if args.seeds else f"-seed{args.seed}"))
    runs = []
    if args.seeds and (out / "args.json").exists():  # its result.json would be the seeds'
        raise UserError(f"{out} holds a run of one seed: --out names another place")
    for seed in range(args.seeds) if args.seeds else [args.seed]:
        folder = out / f"seed{seed}" if args.seeds else out
        if args.out or not args.adapter:
            check_writable("--out", folder)
        if not args.adapter:
            check_out(folder, args.resume, args.overwrite)
        runs.append(argparse.Namespace(**vars(args) | {"seed": seed, "out": folder}))
    return out, runs


def check_max_len(args, longest, shortest, default=512):
    """Sets --max-len if it was left out. UserError for less than `shortest`, or more than the model takes."""
    if args.max_len and not shortest <= args.max_len <= longest:
        expected = f"expected {shortest} to {longest}, what the position table holds"
        raise UserError(f"--max-len {args.max_len}: {expected}")
    args.max_len = args.max_len or min(default, longest)
