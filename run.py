"""A training run: its optimiser and schedule, what it counts, logs and saves, how it resumes.

The loop itself is not here: each script shows its own.
"""

import math
import shlex
import signal
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from tqdm import tqdm

from data import UserError, listed, no_nan, write_json, write_json_lines
from data.hub import MINI
from device import Meter, gpu_of, peak_memory
from folder import alone_in, discard, open_folder
from hut import copy_tensors
from methods import ENCODER, METHODS
from model import first_line
from processes import any_of, first, gathered, rank, size
from weights import count, read_dict, save, trainable, write_adapter

# What a resumed run may change: where it is, what is done with it, its device. `begin` adds the seed.
FREE = ("seed", "seeds", "out", "resume", "overwrite", "adapter", "eval_only", "predict", "submit", "export",
        "device", "cache_features")  # fmt: skip


def adamw(model, args):
    """AdamW over the trainable parameters: the adapter's peak rate is args.lr, the head's args.head_lr."""
    parts = zip(trainable(model), (args.lr, args.head_lr), strict=True)
    groups = [{"params": [*part.values()], "peak": lr} for part, lr in parts if part]
    return torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=True)


def compiled(model, args, batches):
    """(`model` in training, the lengths to pad to); with --compile a graph for each length."""
    if not args.compile:
        return model, ()
    gpu = next(model.parameters()).is_cuda
    if gpu and args.accumulate > 1:
        raise UserError("--compile: a CUDA graph overwrites the gradients of the one before: no --accumulate")
    torch._dynamo.config.recompile_limit = 256  # above it torch goes on without compiling
    graph = torch.compile(model, mode="reduce-overhead" if gpu else None, dynamic=False)
    return graph, batches.padded_lengths()


def schedule(step, total, warmup):
    """The learning rate's factor at step `step`, from 0: linear up over `warmup` steps, then linear to 0.

    It starts at 1 / (warmup + 1), where transformers starts at 0, so that the first step does something.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(total - warmup, 1)


class Run:
    """Where a training run stands, and its files. The loop is the script's: this counts, saves and restores.

    epoch     epochs completed
    position  optimiser steps completed in this epoch
    step      optimiser steps completed in all, of `total`
    unit      what a step's loss is a mean over and speed is counted in, such as "examples"
    """

    STATE = ("epoch", "position", "step", "seen", "loss_sum", "seconds", "energy", "memory",
             "log", "best", "last", "base", "steps")  # fmt: skip
    LOOK_EVERY = 20  # steps: only then does the program wait for a GPU
    SAVE_EVERY = 600  # seconds between checkpoints within an epoch
    locks = []  # on the folders of this process's last run

    def __init__(self, args, model, base, optimizer, steps, unit):
        self.args, self.model, self.base, self.optimizer, self.unit = args, model, base, optimizer, unit
        self.steps, self.total = steps, args.epochs * steps
        self.warmup = int(args.warmup if args.warmup >= 1 else args.warmup * self.total)
        if self.warmup > self.total:
            expected = f"expected at most {self.total}, the run's steps, or a share below 1"
            raise UserError(f"--warmup {args.warmup:g}: {expected}")
        if args.batch_size < size():
            raise UserError(f"--batch-size {args.batch_size}: expected {size()} or more, one a process")
        self.epoch = self.position = self.step = self.seen = 0
        self.loss_sum, self.seconds, self.log, self.best, self.last = 0.0, 0.0, [], None, None
        self.energy = {"utilisation": 0.0, "power": 0.0}  # kWh, before a resumption
        self.memory = 0  # bytes, likewise
        self.steps_here = self.seen_here = 0
        self.unseen = []  # (losses, weight) of the steps since `look`
        self.stopping = False
        self.device = next(model.parameters()).device
        self.meter = Meter(gpu_of(self.device) if size() == 1 else None)

    def begin(self, dtype):
        """Opens the run folder, goes on from its checkpoint with --resume, and prints what will be done."""
        args, (adapter, head) = self.args, trainable(self.model)
        settings = {key: value for key, value in vars(args).items() if key not in FREE}
        settings |= {"seed": args.seed, "dtype": str(dtype)[6:]}
        any_of(False)  # all processes have checked --out when the first begins to write there
        resumed = None
        if first():
            for lock in Run.locks:
                lock.close()
            Run.locks = [alone_in(folder) for folder in [args.out.parent] * bool(args.seeds) + [args.out]]
            resumed = open_folder(args.out, settings, args.resume, args.overwrite, self.device)
            if args.seeds and args.overwrite and not args.resume:  # or --resume would take old seeds for new
                later = (args.out.with_name(f"seed{n}") for n in range(args.seed + 1, args.seeds))
                for folder in (args.out.parent, *later):
                    discard(folder)
        if resumed := gathered(resumed)[0]:
            self._restore(args.out / "checkpoint.pt")
        else:
            self.save()  # so that a run that is killed at any moment has a checkpoint
        if not first():
            torch.manual_seed(torch.initial_seed() + 2**32 * rank() + self.step)  # dropout of its own
        self.saved_at = time.time()

        counts = {"adapter": count(adapter.values()), "head": count(head.values())}
        frozen = count(p for p in self.model.parameters() if not p.requires_grad)
        self.parameters = counts | {"frozen": frozen}
        and_head, head_lr = (f" + {counts['head']:,} head", f" (head {args.head_lr:g})") if head else ("", "")
        trained = f"{counts['adapter']:,} adapter{and_head} parameters are trained"
        print(f"{args.method}: {trained}, {frozen:,} are frozen")
        print(
            f"{args.epochs} epochs of {self.steps:,} steps of {args.batch_size * args.accumulate} examples; "
            f"AdamW, lr {args.lr:g}{head_lr}, {self.warmup} warm-up steps; "
            f"{self.device}, {str(dtype)[6:]}, seed {args.seed}"
        )
        if resumed:
            print(f"goes on after epoch {self.epoch}, step {self.step} of {self.total}")

    def remaining(self, groups):
        """What is still to do of this epoch's groups of batches, behind a progress bar."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        left, done = groups[self.position :], self.position
        self.seen_here, self.begun_at = 0, self.position
        self.epoch_started = self.stepped_at = time.time()
        title = f"epoch {self.epoch + 1}"
        self.bar = tqdm(
            left, title, initial=done, total=len(groups), disable=None if first() else True, leave=False
        )
        return self.bar

    def set_rates(self):
        """Sets the rates of the step to come, the adapter's and the head's."""
        for part in self.optimizer.param_groups:
            part["lr"] = part["peak"] * schedule(self.step, self.total, self.warmup)

    def advance(self, losses, weight):
        """Counts an optimiser step over `weight` examples or tokens; looks and saves now and then.

        `losses` are its batches', tensors () on the device, whose sum is the step's mean. Raises UserError as
        `look` does. Ends the program, saved, if the user has asked for that.
        """
        self.step, self.position, self.seen = self.step + 1, self.position + 1, self.seen + weight
        self.steps_here += 1
        self.unseen.append((losses, weight))
        if self.steps_here % self.LOOK_EVERY == 0 or self.position == self.steps:
            self.look()
        if self.steps_here == self.LOOK_EVERY:
            each = (time.time() - self.epoch_started) / (self.position - self.begun_at)
            left = clock(each * (self.total - self.step))
            tqdm.write(f"about {left} to go at {1000 * each:.0f} ms a step, scoring not counted")
        if any_of(self.stopping):
            self._save_and_exit()
        if time.time() - self.saved_at > self.SAVE_EVERY:
            self.save()

    def look(self):
        """Waits for the losses of the steps since the last look. UserError if one is not finite."""
        if not self.unseen:
            return
        found = iter(torch.stack([loss for losses, _ in self.unseen for loss in losses]).tolist())
        self.stepped_at = time.time()
        for step, (losses, weight) in enumerate(self.unseen, self.step - len(self.unseen) + 1):
            loss = sum(next(found) for _ in losses)
            if not math.isfinite(loss):
                raise self._not_finite(step)
            self.loss_sum += loss * weight
            self.seen_here += weight
        self.unseen = []
        shown = f"loss {loss:.3f}, lr {self.lr():.1e}, {self.speed():,.0f} {self.unit}/s"
        self.bar.set_postfix_str(shown, refresh=False)

    def end_epoch(self, scores, better):
        """Logs the epoch and writes the folder's files; adapter.pt is this epoch's where it is `better`."""
        self.tensors()  # before adapter.pt is written over
        train_loss, self.epoch = self.loss_sum / self.seen, self.epoch + 1
        row = {"epoch": self.epoch, "step": self.step, "train_loss": train_loss, **scores, "lr": self.lr()}
        timing = {"seconds": self.elapsed(), "energy_kwh": self.spent()}
        timing[f"{self.unit}_per_second"] = self.speed()
        steps, seconds = self.position - self.begun_at, self.stepped_at - self.epoch_started
        timing["step_ms"] = 1000 * seconds / steps if steps else None
        self.log.append(row | {"timing": timing})
        self.position, self.seen, self.loss_sum = 0, 0, 0.0
        self.last = {"epoch": self.epoch, **scores}
        if better:
            self.best = self.last
        if first():
            for name in ("adapter-last.pt", "adapter.pt")[: 1 + better]:
                write_adapter(self.args.out / name, self.args, self.model, self.base)
            write_json_lines(self.args.out / "metrics.jsonl", self.log)
        self.save()
        numbers = listed({key: value for key, value in scores.items() if isinstance(value, float)}, ".4f")
        flag = ", predicts a single class" if scores.get("single_class") else ""
        print(f"epoch {self.epoch}  {clock(self.elapsed())}  train_loss {train_loss:.4f}  {numbers}{flag}")
        if any_of(self.stopping):
            self._save_and_exit()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what comes after the loop has no state
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def finish(self, timing=None, **more):
        """Writes result.json, with the entries of `timing` and `more` added, and returns what it says."""
        args = self.args
        self.meter.stop()
        result = about(args) | {"parameters": self.parameters, "best": self.best, "last": self.last, **more}
        spent = {key: self.log[-1]["timing"][key] for key in ("seconds", "energy_kwh")}
        result["timing"] = spent | {"peak_memory_bytes": self.peak_memory(), **(timing or {})}
        if first():
            write_json(args.out / "result.json", result)
        return result

    def save(self):
        """checkpoint.pt: all that resuming needs. Batches come from (seed, epoch), and have no state."""
        tensors, self.saved_at = self.tensors(), time.time()
        if not first():
            return
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        state = {key: getattr(self, key) for key in self.STATE}
        energy = self.energy if self.meter.waiting else self.spent()
        state |= {"seconds": self.elapsed(), "energy": energy, "memory": self.peak_memory()}
        state |= {"tensors": tensors, "optimizer": self.optimizer.state_dict()}
        save(self.args.out / "checkpoint.pt", state | {"rng": {"cpu": torch.get_rng_state(), "cuda": cuda}})

    def tensors(self):
        """{name: what is trained}. Raises UserError if a loss, or one of these, is not finite."""
        adapter, head = trainable(self.model)
        self.look()
        if not all(p.isfinite().all() for p in (adapter | head).values()):
            raise self._not_finite(self.step)
        return {name: p.detach() for name, p in (adapter | head).items()}

    def elapsed(self):
        """Seconds, those before a resumption included."""
        return self.seconds + time.time() - self.meter.started

    def spent(self):
        """kWh by device.py's two measures, those before a resumption included; None where not measured."""
        now = self.meter.kwh
        return {key: None if None in (kwh, now[key]) else kwh + now[key] for key, kwh in self.energy.items()}

    def peak_memory(self):
        """Bytes, those before a resumption included."""
        return max(self.memory, peak_memory(self.device))

    def speed(self):
        """Examples or tokens a second in this epoch's training, 0 if none was left to do."""
        return self.seen_here and self.seen_here / (self.stepped_at - self.epoch_started)

    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    def _restore(self, path):
        adapter, head = trainable(self.model)
        try:
            saved = read_dict(path, "tensors", "optimizer", "rng", *Run.STATE)
            if (saved["base"], saved["steps"]) != (self.base, self.steps):
                raise ValueError("made on another base checkpoint, or other training data")
            copy_tensors(saved["tensors"], adapter | head)
            self.optimizer.load_state_dict(saved["optimizer"])
            if saved["step"] and not self.optimizer.state:
                raise ValueError("the optimiser's state is empty")
            torch.set_rng_state(saved["rng"]["cpu"])
            if self.device.type == "cuda" and saved["rng"]["cuda"] is not None:
                torch.cuda.set_rng_state(saved["rng"]["cuda"], self.device)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = first_line(error).removeprefix(f"{path}: ")
            problem = f"{path}: no state to go on from ({reason})"
            raise UserError(f"{problem}: --overwrite starts the run anew") from None
        for key in self.STATE:
            setattr(self, key, saved[key])

    def _not_finite(self, step):
        good = self.args.out / "checkpoint.pt"
        where = f"step {step} of {self.total}, task {self.args.task}, lr {self.lr():g}"
        kept = f"; {good} is the last good state" if good.exists() else ""
        return UserError(f"the loss is not finite at {where}: lower --lr{kept}")

    def _stop(self, number, frame):
        """Notes Ctrl-C, so that the step can end and be saved; a second one ends the program at once."""
        if self.stopping and size() == 1:  # torchrun passes Ctrl-C on, so that it comes twice
            sys.exit(130)
        self.stopping = True

    def _save_and_exit(self):
        self.bar.close()
        self.save()
        again = shlex.join(sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"])
        by = "python" if size() == 1 else f"torchrun --nproc-per-node {size()} --"
        print(f"\nstopped after step {self.step} of {self.total} and saved; go on with: {by} {again}")
        sys.exit(130)


def about(args):
    return {name: getattr(args, name) for name in ("task", "method", "r", "targets", "seed")}


def clock(seconds):
    """95 -> 0:01:35"""
    return str(timedelta(seconds=round(seconds)))


# ---- after it


def say_next(args, layout):
    """Prints the commands that score, use and hand on a finished run's adapter."""
    command = ["python", sys.argv[0]]
    for name in ("data", "train_file", "dev_file"):
        value = getattr(args, name)
        if value and not (args.model == "mini" and Path(value).is_relative_to(MINI)):
            command += [f"--{name.replace('_', '-')}", value]
    command = shlex.join([*command, "--adapter", str(args.out / "adapter.pt")])
    print(f"{args.out}: the run; what to do with it:\n  {command} --eval-only\n  {command} --predict …")
    if layout in METHODS[args.method].merges and vars(args).get("pool") != "mean":
        print(f"  {command} --export DIR")
    if layout == ENCODER and args.task != "own":
        print(f"  {command} --submit DIR")


# ---- over seeds


def mean_std(values):
    """(mean, standard deviation), None if unknown: both for no values or a None, the second for one value."""
    if not values or None in values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_and_std(results, key):
    """(means, standard deviations) of the scores in the results' `key`; None where a run has none."""
    mean, std = {}, {}
    for name in results[0][key]:
        values = [no_nan(result[key].get(name)) for result in results]
        if name != "epoch" and any(isinstance(value, float) for value in values):
            mean[name], std[name] = mean_std(values)
    return mean, std


def report(results, out, seeds, keys):
    """Prints each seed's results and, for --seeds, mean ± std, which go into `out`/result.json."""
    for result in results:
        print(f"seed {result['seed']}: " + "; ".join(f"{key}: {listed(result[key], '.4f')}" for key in keys))
    if not seeds:
        return
    both = {key: mean_and_std(results, key) for key in keys}
    together = {name: results[0][name] for name in ("task", "method", "r", "targets", "parameters")}
    for i, name in enumerate(("mean", "std")):
        together[name] = {key: pair[i] for key, pair in both.items()}
    if first():
        write_json(out / "result.json", {**together, "seeds": list(range(seeds)), "runs": results})
    for key, (mean, std) in both.items():
        known = {name: f"{mean[name]:.4f}" for name in mean if mean[name] is not None}
        for name in known:
            known[name] += "" if std[name] is None else f" ± {std[name]:.4f}"
        print(f"{key} of {len(results)} seeds: {listed(known)}")
