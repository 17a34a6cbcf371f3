"""A table's runs: for each row the search for its rate, then its seeds; several at a time, each run once.

A row is a plan: a generator that asks for runs, [(folder, arguments)], and is sent their results.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from arguments import positive
from data import UserError, listed, write_json
from experiments.tables import PAPER, Row, anchor
from folder import alone_in, check_writable
from methods import METHODS
from run import clock, mean_and_std

ROOT = Path(__file__).parent.parent
SETTINGS = ("model", "data", "limit-train", "epochs", "batch-size", "max-len", "device", "dtype")
STEP = 3  # from one rate to the next


class Failed(Exception):
    """A run that ended with an error; the rest go on."""


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def bundled(args):
    return args.model == "mini" and not args.data


def rates_of(args, layout, rows):
    """{(task, method): the rates to begin with}, without methods that are not trained.

    With --paper there is one: what paper.json prints, else None, which stands for the training script's.
    """
    methods = [m for m in dict.fromkeys(row.method for row in rows) if METHODS[m].lr[layout]]
    asked = {"": (None,)} if args.paper else by_method("--lrs", args.lrs, rates, methods)
    pairs = [(task, method) for task in args.tasks for method in methods]
    found = {(t, m): asked.get(m, asked.get("")) or around_own(args, layout, t, m) for t, m in pairs}
    if args.paper:
        printed = PAPER.get(args.table, {}).get("rates", {})
        found |= {(t, m): (printed[m][t],) for t, m in found if t in printed.get(m, {})}
    tries = {method: len(rates) for (_, method), rates in found.items()}
    if len({*tries.values()}) > 1:
        raise UserError(f"--lrs: every method begins with the same number of tries: {listed(tries)}")
    return found


def rates(text):
    return tuple(sorted({positive(rate) for rate in text.split(",")}))


def by_method(flag, texts, kind, methods):
    """{method: value} of [METHOD=]VALUE …; what is given for all methods is under ""."""
    found = {}
    for text in texts or ():
        method, _, value = text.rpartition("=")
        if method not in ("", *methods):
            raise UserError(f"{flag} {text}: '{method}' is not among the methods: {' '.join(methods)}")
        try:
            found[method] = kind(value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{flag} {text}: {error}") from None
    return found


def around_own(args, layout, task, method):
    row = METHODS[method]
    own = row.mini.get(task, row.mini[layout]) if args.model == "mini" else row.lr[layout]
    return rounded(own / STEP), own, rounded(own * STEP)


def rounded(value, digits=2):
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


# ---- one run


def record(folder, arguments):
    """Writes down what a run is given. Raises UserError if the folder's run had other arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    recorded = folder / "command.json"
    before = read_json(recorded) if recorded.exists() else None
    began = (folder / "args.json").exists()  # a run that failed before that may be given other arguments
    if before not in (None, arguments) and began:
        i = next((i for i, (a, b) in enumerate(zip(before, arguments, strict=False)) if a != b), len(before))
        change = " ".join(before[max(i - 1, 0) : i + 1])
        raise UserError(f"{folder} was run with {change}, not as now: give the same, or another --out")
    if before != arguments:
        write_json(recorded, arguments)


def run(script, folder, arguments, threads, processes):
    """Runs `script` into `folder`, unless it has; -> what result.json says, None if another process is there.

    It has `threads`, or all if None; the set `processes` holds it while it runs. Raises Failed with the last
    line of its errors, and UserError if the folder's run had other arguments.
    """
    check_writable("--out", folder)
    result = folder / "result.json"
    try:
        lock = alone_in(folder, "sweep.lock")
        alone_in(folder).close()  # a run may have outlived its sweep
    except UserError:
        return None
    with lock:
        record(folder, arguments)
        if not result.exists():
            env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
            with (folder / "log.txt").open("a", encoding="utf-8") as log:
                pipes = {"stdout": log, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
                with subprocess.Popen(as_command(script, folder, arguments), env=env, **pipes) as process:
                    processes.add(process)
                    if None in processes:  # the sweep has been stopped meanwhile
                        process.terminate()
                    errors = process.communicate()[1].split("\n")
                    processes.discard(process)
            if process.returncode:
                said = [line for line in errors if line.strip()] or [f"exit status {process.returncode}"]
                raise Failed(said[-1].removeprefix("error: "))
        return read_json(result)


def as_command(script, folder, arguments):
    return [sys.executable, str(script), *arguments, "--out", str(folder), "--resume"]


def flags(**values):
    """The arguments of a command line, without those that are None."""
    given = [(f"--{name.replace('_', '-')}", value) for name, value in values.items() if value is not None]
    return [part for pair in given for part in pair]


def passed_on(args, names):
    """The arguments of these names, and those after --, as the training script takes them."""
    return [*flags(**{name: getattr(args, name.replace("-", "_")) for name in names}), *args.rest]


def spent(rows, result):
    """The costs in a run's metrics.jsonl and result.json: the peak memory in bytes, ms a step in the fastest
    epoch; epochs, seconds and kWh to the best one. None for what is not measured.
    """
    best, memory = result["best"]["epoch"], result["timing"].get("peak_memory_bytes")
    steps = [row["timing"].get("step_ms") for row in rows]  # None where an epoch was resumed at its end
    until = next((row["timing"] for row in rows if row["epoch"] == best), {"seconds": None})
    found = {"memory": memory, "step_ms": min(filter(None, steps), default=None), "epochs": best}
    return found | {"seconds": until["seconds"], **until.get("energy_kwh", {})}


def cost(args, script, task, folder, result):
    """What a run took; for a script with such a column also what a label costs, one source at a time."""
    if not result["best"]["epoch"]:
        return {}  # scored as it is
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = spent([json.loads(line) for line in lines], result)
    if any(column.key == "label_ms" for column in script.costs):
        found |= in_use(args, script, task, folder)
    return {key: rounded(value, 4) for key, value in found.items() if value is not None}


def in_use(args, script, task, folder):
    """What a label costs with the adapter in `folder`; its own process measures it once. {} if that fails."""
    path = folder / "in-use.json"
    if not path.exists():
        given = passed_on(args, ("model", "data", "max-len", "device", "dtype"))
        adapter = [*flags(task=task, adapter=folder / "adapter.pt"), "--eval-only"]
        command = [str(part) for part in (sys.executable, ROOT / script.path, *given, *adapter)]
        env = os.environ | ({"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {})
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if "ms_a_label" in line]
        if not lines:
            reason = (done.stderr.splitlines() or ["no output"])[-1]
            print(f"{folder}: not measured in use: {reason}", file=sys.stderr, flush=True)
            return {}
        write_json(path, json.loads(lines[0]))
    found = read_json(path)
    return {"label_ms": found["ms_a_label"], "label_memory": found["peak_memory_bytes"]}


def backbone(method, layout, parameters):
    """The model's size without its method. A method that merges and has no size trains the model's own."""
    adds_none = layout in METHODS[method].merges and not METHODS[method].r
    return parameters["frozen"] + parameters["adapter"] * adds_none


# ---- all runs


class Sweep:
    """The runs of a table. Another on the same folder shares them: each run is taken once."""

    def __init__(self, args, table, rows):
        self.args, self.table, self.rows, self.script = args, table, rows, table.script
        self.rates, head = rates_of(args, self.script.layout, rows), self.script.head
        self.begun = len(next(iter(self.rates.values()), ()))  # tries of a row, at first
        self.finds_head = head and self.begun > 1 and not args.head_lr
        if self.finds_head:
            own = {(task, head): around_own(args, self.script.layout, task, head) for task in args.tasks}
            self.rates = own | self.rates
        self.outcomes = {}

    # ---- what is run

    def ask(self, task, row, lr, head_lr, seed=None):
        """(folder, arguments) of a run that goes into the table; without a seed, of one that tries a rate."""
        tries = seed is None and self.script.trial
        name = f"try-lr{lr:g}" if tries else f"{f'lr{lr:g}' if lr else 'default-lr'}-seed{seed or 0}"
        of = task if len(self.script.scores) > 1 else None
        which = flags(method=row.method, r=row.r, targets=row.targets, lr=lr, head_lr=head_lr, task=of)
        arguments = [*which, *passed_on(self.args, SETTINGS), *(tries or ()), "--seed", seed or 0]
        return self.args.out / task / str(row) / name, arguments

    def head_rate(self, task, row):
        """A plan: -> the rate of every method's head, which is the best of the head alone; None: its own."""
        if row.method == self.script.head:
            return None  # its rate is the head's
        if not self.finds_head:
            return self.args.head_lr
        lr, tries = yield from self.search(task, Row(self.script.head, None, None, ()), None)
        if lr is None:
            raise UserError(f"{task}: the head alone can't be trained: {tries[0]['failed']}")
        return lr

    def search(self, task, row, head_lr):
        """A plan: -> (the rate whose try is worth the most, the tries).

        While the best rate is at an end of the list and tries are left, the list grows there.
        """
        rates = list(self.rates.get((task, row.method), (None,)))
        if len(rates) == 1:
            return rates[0], []
        row = row._replace(r=anchor(self.args) if self.table.one_search else row.r)
        found, below, above = {}, rates[0] / rates[1], rates[-1] / rates[-2]
        while True:
            new = [lr for lr in rates if lr not in found]
            outcomes = yield [self.ask(task, row, lr, head_lr) for lr in new]
            found |= {
                lr: self.tried(lr, one, task, row.method) for lr, one in zip(new, outcomes, strict=True)
            }
            known = {lr: worth for lr, (worth, _) in found.items() if worth is not None}
            best = max(known, key=known.get, default=rates[0])
            if known and not known[best][0]:  # each predicts one class: a lower rate may not
                best = min(known)
            if best not in (rates[0], rates[-1]) or len(rates) >= self.args.tries:
                return best if known else None, [found[lr][1] for lr in rates]
            rates = sorted([*rates, rounded(best * (below if best == rates[0] else above))])

    def tried(self, lr, outcome, task, method):
        """(what a try is worth, None if it failed or has no score; what table.json says of it)."""
        if isinstance(outcome, Failed):
            return None, {"lr": lr, "failed": str(outcome)}
        part, (score, *_) = outcome["last" if self.script.trial else "best"], self.script.scores[task]
        worth = self.script.worth(outcome, task)
        if method == self.script.head and "loss" in part:  # where it learns nothing, its scores are noise
            worth = (-part["loss"],)
        about = {"lr": lr, "score": rounded(part.get(score), 6), "loss": rounded(part.get("loss"), 6)}
        about["seconds"] = rounded(outcome["timing"]["seconds"], 4)
        return (None, about | {"failed": "its score is not defined"}) if None in worth else (worth, about)

    def cell(self, task, row):
        """A plan of a rate's choice and every seed; -> what table.json says, "failed" if no run worked."""
        head_lr = yield from self.head_rate(task, row)
        lr, tries = yield from self.search(task, row, head_lr)
        cell = {"task": task, **row._asdict(), "lr": lr, "head_lr": head_lr, "tries": tries}
        cell |= {"parameters": None, "runs": [], "mean": {}, "std": {}}
        if tries and lr is None:
            return cell | {"failed": f"no rate worked: {tries[0]['failed']}"}
        asked = [self.ask(task, row, lr, head_lr, seed) for seed in row.seeds]
        outcomes = yield asked
        for seed, (folder, _), outcome in zip(row.seeds, asked, outcomes, strict=True):
            if isinstance(outcome, Failed):
                cell["runs"].append({"seed": seed, "failed": str(outcome)})
                continue
            parts = (("scores", self.script.counts[0]), ("best", "best"))
            one = {name: {k: rounded(v, 6) for k, v in outcome[part].items()} for name, part in parts}
            one |= {"seed": seed, "folder": str(folder.relative_to(self.args.out))}
            one["cost"] = cost(self.args, self.script, task, folder, outcome)
            cell["runs"].append(one)
            cell["parameters"] = outcome["parameters"]["adapter"]
            cell["backbone"] = backbone(row.method, self.script.layout, outcome["parameters"])
            if lr is None and (task, row.method) in self.rates:
                cell["lr"] = read_json(folder / "args.json")["args"]["lr"]
        done = [one for one in cell["runs"] if "scores" in one]
        if not done:
            return cell | {"failed": cell["runs"][0]["failed"]}
        for name, of in zip(("mean", "std"), mean_and_std(done, "scores"), strict=True):
            cell[name] = {score: of[score] for score in self.script.scores[task] if score in of}
        return cell

    # ---- running

    def due(self):
        """{folder: arguments} of the runs that plans wait for, the first plan's first. Ends plans."""
        for key, plan in list(self.plans.items()):
            while all(folder in self.outcomes for folder, _ in self.asked.get(key) or ()):
                asked = self.asked.get(key)
                try:
                    self.asked[key] = plan.send(asked and [self.outcomes[folder] for folder, _ in asked])
                except StopIteration as end:
                    del self.plans[key]
                    self.ended(key, end.value)
                    break
        asked = [one for key in self.plans for one in self.asked[key]]
        return {folder: [str(a) for a in given] for folder, given in asked if folder not in self.outcomes}

    def execute(self, plans, ended):
        """Runs what {key: plan} ask for, --jobs at a time; calls ended(key, value) as each plan ends."""
        self.plans, self.asked, self.ended = dict(plans), {}, ended
        running, later, processes = {}, {}, set()
        script, threads = ROOT / self.script.path, 1 if self.args.jobs > 1 else None
        with ThreadPoolExecutor(self.args.jobs) as pool:
            try:
                while waiting := self.due():
                    free = (f for f in waiting if f not in running.values() and later.get(f, 0) < time.time())
                    for folder in list(free)[: self.args.jobs - len(running)]:
                        started = pool.submit(run, script, folder, waiting[folder], threads, processes)
                        running[started] = folder
                    done, _ = wait(running, timeout=5, return_when=FIRST_COMPLETED)
                    if not running:
                        time.sleep(1)  # other sweeps have them all
                    for future in done:
                        self.note(running.pop(future), future, later)
            except BaseException:
                processes.add(None)
                for process in processes - {None}:
                    process.terminate()  # the runs save and end
                raise

    def note(self, folder, future, later):
        """Notes and prints what came of a run."""
        try:
            found = future.result()
            what = clock(found["timing"].get("seconds", 0)) if found else ""
        except Failed as error:
            found, what = error, f"failed: {error}"
        if not found:
            later[folder] = time.time() + 5
            return
        self.outcomes[folder] = found
        print(f"[{len(self.outcomes)}] {folder.relative_to(self.args.out)}: {what}", flush=True)

    def commands(self, plans):
        """The command lines of the runs that can begin now, which are written down as this sweep's."""
        self.plans, self.asked, self.ended = dict(plans), {}, lambda *_: None
        while finished := {f: given for f, given in self.due().items() if (f / "result.json").exists()}:
            for folder, arguments in finished.items():
                record(folder, arguments)
                self.outcomes[folder] = read_json(folder / "result.json")
        script = ROOT / self.script.path
        for folder, arguments in self.due().items():
            record(folder, arguments)
            yield shlex.join(as_command(script, folder, arguments))
