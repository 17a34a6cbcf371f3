"""The paper's tables, from runs: python -m experiments.sweep TABLE [--model DIR --data DIR …]

Every run is a process of a training script, with its own folder under --out. Given again, the command skips
what is finished, goes on with what was interrupted, and tries again what has failed.
"""

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from arguments import Parser, listed, positive, run_as_script, whole
from data import UserError, write_json, write_text
from data.batching import subset
from experiments import flops
from experiments.tables import TABLES, Sheet, anchor, label, number
from methods import METHODS
from run import alone_in, clock, environment

ROOT = Path(__file__).parent.parent
CHOICES = {"methods": (str, "METHOD[:R]"), "targets": (str, "LETTERS"), "ranks": (whole, "R")}
SETTINGS = ("model", "data", "epochs", "batch-size", "max-len", "device", "dtype")  # of the scripts


class Failed(Exception):
    """A run that ended with an error; the rest go on."""


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


# ---- arguments


def arguments():
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    more = "The training script gets what stands after --, as in: … table3 --model DIR -- --warmup 0.06"
    parser = Parser(prog="python -m experiments.sweep", description=__doc__.splitlines()[0], epilog=more)
    parser.add_argument("table", choices=(*TABLES, "table2"))
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="(default: the paper's; with mini: cola)")
    for name, (kind, metavar) in CHOICES.items():
        takers = " ".join(key for key, table in TABLES.items() if name in table.choices)
        takers += " (default: the paper's)"
        parser.add_argument(f"--{name}", nargs="+", type=kind, metavar=metavar, help=f"of {takers}")
    seeds = listed({key: table.seeds for key, table in TABLES.items()})
    parser.add_argument("--seeds", type=whole, metavar="N", help=f"seeds 0 … N−1 (default: {seeds})")
    rates = "rates to try (default: the method's own, a quarter of it, and four times it)"
    parser.add_argument("--lrs", nargs="+", metavar="[METHOD=]LR,LR…", help=rates)
    paper = "no search: the training script's rates and the best epoch on dev"
    parser.add_argument("--paper", action="store_true", help=paper)
    for name in (*SETTINGS, "limit-train"):
        kind = whole if name in ("epochs", "batch-size", "limit-train", "max-len") else None
        parser.add_argument(f"--{name}", type=kind, help="as in the training script")
    parser.add_argument("--out", metavar="DIR", help="(default: runs/<table>)")
    args = parser.parse_args(given[:end])
    args.rest = given[end + 1 :]
    args.out = Path(args.out or f"runs/{args.table}")
    if args.table in TABLES:
        fill_in(args, TABLES[args.table])
    return args


def fill_in(args, table):
    """Checks the arguments and fills in the table's defaults."""
    known = table.script.scores
    for name in CHOICES:
        if getattr(args, name) and name not in table.choices:
            raise UserError(f"--{name}: {args.table} has none to choose")
        setattr(args, name, getattr(args, name) or table.choices.get(name))
    args.tasks = tuple(args.tasks or (("cola",) if bundled(args) and "cola" in known else table.tasks))
    for task in args.tasks:
        if task not in known:
            raise UserError(f"--tasks {task}: unknown: {args.table} takes {' '.join(known)}")
    against_paper = {
        f"the paper of {args.table} searches its rates": not table.script.paper,
        "mini has settings of its own: give --model and --data": bundled(args),
        "its rates are fixed: leave --lrs out": args.lrs,
    }
    for reason, holds in against_paper.items():
        if args.paper and holds:
            raise UserError(f"--paper: {reason}")
    args.seeds = args.seeds or table.seeds


def bundled(args):
    return args.model == "mini" and not args.data


def rates_of(args, layout, rows):
    """{(task, method): the rates to try}, without methods that are not trained.

    With --paper the rate is None, which stands for the training script's.
    """
    methods = [m for m in dict.fromkeys(row.method for row in rows) if METHODS[m].lr[layout]]
    asked = dict.fromkeys(methods, (None,)) if args.paper else {}
    for text in args.lrs or ():
        method, separator, numbers = text.rpartition("=")
        if separator and method not in methods:
            raise UserError(f"--lrs {text}: '{method}' is not among the methods: {' '.join(methods)}")
        try:
            rates = tuple(sorted({positive(rate) for rate in numbers.split(",")}))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--lrs {text}: {error}") from None
        asked |= dict.fromkeys([method] if separator else methods, rates)
    found = {}
    for task in args.tasks:
        for method in methods:
            row = METHODS[method]
            own = row.mini.get(task, row.mini[layout]) if args.model == "mini" else row.lr[layout]
            found[task, method] = asked.get(method, (own / 4, own, 4 * own))
    tries = {method: len(rates) for (_, method), rates in found.items()}
    if len({*tries.values()}) > 1:
        raise UserError(f"--lrs: every method gets the same number of tries: {listed(tries)}")
    return found


# ---- hold out


def hold_out(args, files, task):
    """Writes two files of training examples, to train tries on and to score them on; -> (paths, sizes).

    A tenth is held out, or 200 examples if that is more, but never above a quarter. All examples of one text
    (E2E: one meaning representation) are in the same file.
    """
    examples = subset(files.read(task, files.mini if bundled(args) else args.data), args.limit_train)
    groups = {}
    for i, example in enumerate(examples):
        groups.setdefault(example[:-1], []).append(i)
    wanted, held = max(len(examples) // 10, min(200, len(examples) // 4)), set()
    groups = list(groups.values())
    for g in np.random.default_rng(1).permutation(len(groups)):  # the same choice every time
        if len(held) + len(groups[g]) <= wanted or not held:
            held.update(groups[g])
    parts = [[e for i, e in enumerate(examples) if (i in held) == side] for side in (False, True)]
    if not all(parts):
        raise UserError(f"{task}: {len(examples)} training examples with one text: none can be held out")
    folder = args.out / task
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-of-{len(examples)}{files.ending}" for name in ("part", "held-out")]
    for path, part in zip(paths, parts, strict=True):
        write_text(path, "".join(f"{line}\n" for line in files.lines(task, part)))
    return paths, [len(part) for part in parts]


# ---- runs


def run(script, folder, arguments):
    """Runs `script` into `folder`, unless it has; -> what result.json says.

    Raises Failed with the last line of its errors, and UserError if the folder's run had other arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorded, result = folder / "command.json", folder / "result.json"
    before = read_json(recorded) if recorded.exists() else arguments
    began = (folder / "args.json").exists()  # a run that failed before that may be given other arguments
    if before != arguments and began:
        i = next((i for i, (a, b) in enumerate(zip(before, arguments, strict=False)) if a != b), len(before))
        change = " ".join(before[max(i - 1, 0) : i + 1])
        raise UserError(f"{folder} was run with {change}, not as now: give the same, or another --out")
    if not result.exists():
        write_json(recorded, arguments)
        command = [sys.executable, str(script), *arguments, "--out", str(folder), "--resume"]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            pipes = {"stdout": log, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
            with subprocess.Popen(command, **pipes) as process:
                try:
                    _, errors = process.communicate()
                except KeyboardInterrupt:
                    process.terminate()  # the run saves and ends
                    process.wait()
                    raise
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            raise Failed(lines[-1].removeprefix("error: ") if lines else f"exit status {process.returncode}")
    return read_json(result)


def flags(**values):
    """The arguments of a command line, without those that are None."""
    given = {name: value for name, value in values.items() if value is not None}
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]


def passed_on(args, names):
    """The arguments of these names, and those after --, as the training script takes them."""
    return [*flags(**{name: getattr(args, name.replace("-", "_")) for name in names}), *args.rest]


class Sweep:
    """The runs of a table, one after the other."""

    def __init__(self, args, table, rows):
        self.args, self.table, self.rows, self.script = args, table, rows, table.script
        self.rates = rates_of(args, self.script.layout, rows)
        self.tries = max(map(len, self.rates.values()), default=1)  # the same number for every method
        self.chosen_is_scored = not self.script.files
        self.held_out = {}  # {task: (paths, sizes)}, as `hold_out` gives them
        self.results, self.seconds = {}, []
        pairs = [(task, row) for task in args.tasks for row in rows]
        searches = {(task, self.searched_as(row)) for task, row in pairs if (task, row.method) in self.rates}
        self.total = sum(len(row.seeds) for _, row in pairs)
        if self.tries > 1:
            self.total += (self.tries - self.chosen_is_scored) * len(searches)

    def hold_out(self):
        if self.tries > 1 and self.script.files:
            self.held_out = {t: hold_out(self.args, self.script.files, t) for t in self.args.tasks}

    def searched_as(self, row):
        """The row whose search chooses `row`'s rate."""
        return row._replace(r=anchor(self.args) if self.table.one_search else row.r, seeds=(0,))

    def arguments(self, task, row, lr, *names):
        which = flags(method=row.method, r=row.r, targets=row.targets)
        settings = passed_on(self.args, (*SETTINGS, *names))
        return [*which, *settings, *flags(lr=lr, task=task if len(self.script.scores) > 1 else None)]

    def scored_run(self, task, row, lr, seed):
        """(folder, arguments) of a run that goes into the table."""
        rate = f"lr{lr:g}" if lr else "default-lr"
        folder = self.args.out / task / str(row) / f"{rate}-seed{seed}"
        return folder, [*self.arguments(task, row, lr, "limit-train"), "--seed", seed]

    def trial(self, task, row, lr):
        """(folder, arguments) of a run that tries a rate."""
        if self.chosen_is_scored:
            return self.scored_run(task, row, lr, 0)
        (train, dev), _ = self.held_out[task]
        more = [*self.script.trial, *flags(seed=0, train_file=train, dev_file=dev)]
        folder = self.args.out / task / str(row) / f"try-lr{lr:g}"
        return folder, [*self.arguments(task, row, lr), *more]

    def result(self, folder, arguments):
        """What a run's result.json says, after the run. May raise Failed."""
        if folder not in self.results:
            before, started = (folder / "result.json").exists(), time.time()
            note = ": finished before" if before else ""
            try:
                found = run(ROOT / self.script.path, folder, [str(a) for a in arguments])
            except Failed as error:
                found, note = error, f": failed: {error}"
            spent = found.get("timing", {}).get("seconds", 0) if before else time.time() - started
            self.results[folder], self.seconds = found, [*self.seconds, spent]
            done = len(self.results)
            left = clock(statistics.fmean(self.seconds) * (self.total - done))
            what = f"[{done}/{self.total}] {folder.relative_to(self.args.out)}{note}"
            print(f"{what}; {clock(spent)}, about {left} to go", flush=True)
        found = self.results[folder]
        if isinstance(found, Failed):
            raise found
        return found

    def choose(self, task, row):
        """(the rate whose try is worth the most, or on a tie has the lower training loss; the tries)."""
        rates = self.rates.get((task, row.method), (None,))
        if len(rates) == 1:
            return rates[0], []
        tries = []
        for lr in rates:
            folder, arguments = self.trial(task, self.searched_as(row), lr)
            try:
                score = self.script.worth(self.result(folder, arguments), task)
                tries.append({"lr": lr, "score": score, "train_loss": epochs(folder)[-1]["train_loss"]})
            except Failed as error:
                tries.append({"lr": lr, "failed": str(error)})
        scored = [one for one in tries if one.get("score") is not None]
        best = max(scored, key=lambda one: (one["score"], -one["train_loss"]), default={"lr": None})
        return best["lr"], tries

    def cell(self, task, row):
        """Chooses the rate and runs every seed; -> what table.json says, with "failed" if no run worked."""
        lr, tries = self.choose(task, row)
        cell = {"task": task, **row._asdict(), "lr": lr, "tries": tries}
        cell |= {"parameters": None, "runs": [], "mean": {}, "std": {}}
        if tries and lr is None:
            self.total -= len(row.seeds) - self.chosen_is_scored
            return cell | {"failed": f"no rate worked: {tries[0].get('failed', 'its score is not defined')}"}
        part, _ = self.script.paper if self.args.paper else self.script.counts
        for seed in row.seeds:
            folder, arguments = self.scored_run(task, row, lr, seed)
            try:
                result = self.result(folder, arguments)
            except Failed as error:
                cell["runs"].append({"seed": seed, "failed": str(error)})
                continue
            one = {"seed": seed, "scores": result[part], "folder": str(folder.relative_to(self.args.out))}
            if self.script.costs:
                one["cost"] = cost(folder, result) | in_use(self.args, self.script, task, folder)
                cell["backbone"] = backbone(row.method, self.script.layout, result["parameters"])
            if cell["lr"] is None and (task, row.method) in self.rates:
                cell["lr"] = read_json(folder / "args.json")["args"]["lr"]
            cell["parameters"] = result.get("parameters", {}).get("adapter", 0)
            cell["runs"].append(one)
        for score in self.script.scores[task]:
            values = [one["scores"].get(score) for one in cell["runs"] if "scores" in one]
            if values and None not in values:
                cell["mean"][score] = statistics.fmean(values)
                cell["std"][score] = statistics.stdev(values) if len(values) > 1 else None
        if all("failed" in one for one in cell["runs"]):
            cell["failed"] = cell["runs"][0]["failed"]
        return cell


def epochs(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def cost(folder, result):
    """A run's peak memory in bytes; its seconds and kWh until its best epoch, None where not measured."""
    timing = epochs(folder)[result["best"]["epoch"] - 1]["timing"]
    memory = result["timing"]["peak_memory_bytes"]
    return {"memory": memory, "seconds": timing["seconds"], **timing["energy_kwh"]}


def in_use(args, script, task, folder):
    """What a label costs, one source at a time, with the adapter in `folder`; None where that fails.

    A process of its own measures it, once.
    """
    path, found = folder / "in-use.json", {}
    if path.exists():
        found = read_json(path)
    else:
        given = passed_on(args, ("model", "data", "max-len", "device", "dtype"))
        adapter = [*flags(task=task, adapter=folder / "adapter.pt"), "--eval-only"]
        command = [str(part) for part in (sys.executable, ROOT / script.path, *given, *adapter)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if lines := [line for line in done.stdout.splitlines() if "ms_a_label" in line]:
            found = json.loads(lines[0])
            write_json(path, found)
        else:
            reason = (done.stderr.splitlines() or ["no output"])[-1]
            print(f"{folder}: not measured in use: {reason}", flush=True)
    return {"label_ms": found.get("ms_a_label"), "label_memory": found.get("peak_memory_bytes")}


def backbone(method, layout, parameters):
    """The size of the model without its method. One that merges and has no size trains the model's own."""
    adds_none = layout in METHODS[method].merges and not METHODS[method].r
    return parameters["frozen"] + parameters["adapter"] * adds_none


# ---- the table


def sheet(sweep, cells):
    """The Sheet of {(task, row): cell}, complete or not."""
    args, script = sweep.args, sweep.script
    printed = {row: row.in_paper(args.table) for row in sweep.rows}
    known = {name for texts in printed.values() for name in texts}
    lines = []  # of (title, text)
    for row, paper in printed.items():
        found = {task: cells.get((task, row)) for task in args.tasks}
        line = [("method", label(*row[:3])), ("parameters", size_text(found.values()))]
        line += [("paper's", paper.get(n, "–")) for n in ("parameters", "trainable_percent") if n in known]
        for task in args.tasks:
            for score in script.scores[task]:
                title, name = (f"{task} {score}", task) if len(script.scores) > 1 else (score, score)
                line.append((title, mean_text(found[task], score)))
                line += [("paper", paper.get(name, "–"))] if name in known else []
        lines.append(line + [(column.title, over_tasks(column, found.values())) for column in script.costs])
    header = [title for title, _ in lines[0]]
    notes = [how(sweep), *sweep.table.notes, *notes_on(cells)]
    return Sheet(header, [[text for _, text in line] for line in lines], notes)


def size_text(cells):
    """The number of trained parameters, with its share of the backbone where that is known."""
    for cell in cells:
        if cell and cell["parameters"] is not None:
            share = f" ({100 * cell['parameters'] / cell['backbone']:.2f} %)" if "backbone" in cell else ""
            return f"{cell['parameters']:,}{share}"
    return "–"


def mean_text(cell, score):
    """The mean ± standard deviation of a score, and of how many seeds if some have failed."""
    if cell is None:
        return "…"
    if "failed" in cell:
        return "failed"
    if score not in cell["mean"]:
        return "–"
    text = number(score, cell["mean"][score], cell["std"][score])
    finished = sum("scores" in one for one in cell["runs"])
    return text if finished == len(cell["runs"]) else f"{text} ({finished} of {len(cell['runs'])})"


def over_tasks(column, cells):
    """The text of a tables.Cost, from a row's cells; None is a cell that is not there yet."""
    if None in cells:
        return "…"
    tasks = [[(one["scores"] | one["cost"])[column.key] for one in c["runs"] if "cost" in one] for c in cells]
    if not all(tasks):
        return "–"
    if any(None in values for values in tasks):
        return column.unknown
    return column.text(column.over([statistics.fmean(values) for values in tasks]))


def how(sweep):
    """What the numbers are, in words."""
    args, script = sweep.args, sweep.script
    rates = "One rate a method, not chosen"
    if args.paper:
        rates = "--paper: each rate is the training script's, which is the paper's where that prints one"
    elif sweep.held_out:
        held = [f"{task}: {out:,} of {rest + out:,}" for task, (_, (rest, out)) in sweep.held_out.items()]
        rates = (
            f"Each rate is the best of {sweep.tries} on a held-out part of the training set "
            f"({', '.join(held)}), at seed 0 and the last epoch; then all of the set is trained on"
        )
    elif sweep.tries > 1:
        rates = f"Each rate is the best of {sweep.tries} on validation, at seed 0"
    _, counts = script.paper if args.paper else script.counts
    over = f"mean ± standard deviation (n − 1) over {args.seeds} seeds" if args.seeds > 1 else "one seed"
    return f"{rates}; {counts}; {over}."


def notes_on(cells):
    """Paragraphs on what a reader should know of the runs."""
    rates, flags, failed = [], {"single_class": [], "invalid": []}, []
    for (task, row), cell in cells.items():
        name = f"{task} {row}"
        rates += [f"{name} {cell['lr']:g}{'*' * at_the_end(cell)}"] if cell["lr"] else []
        for flag, those in flags.items():
            values = {one["seed"]: one.get("scores", {}).get(flag) for one in cell["runs"]}
            seeds = [f"{seed}" if n is True else f"{seed}: {n:,}" for seed, n in values.items() if n]
            those += [f"{name} (seed {', '.join(seeds)})"] if seeds else []
        runs = [(name, cell), *((f"{name}, seed {one['seed']}", one) for one in cell["runs"])]
        runs += [(f"{name}, try of lr {one['lr']:g}", one) for one in cell["tries"]]
        failed += [f"Failed: {what}: {one['failed']}" for what, one in runs if "failed" in one]
    paragraphs = {
        "Rates (*: at the end of the list of those tried)": rates,
        "Predicts a single class": flags["single_class"],
        "Outputs that are no label, and wrong": flags["invalid"],
    }
    return [f"{title}: {'; '.join(those)}." for title, those in paragraphs.items() if those] + failed


def at_the_end(cell):
    """Whether a better rate may lie beyond those that were tried."""
    return len(cell["tries"]) > 2 and cell["lr"] in (cell["tries"][0]["lr"], cell["tries"][-1]["lr"])


# ---- main


def run_table(args, table):
    """Saves the table after each cell; -> table.json's content."""
    sweep, cells = Sweep(args, table, table.rows(args)), {}
    with alone_in(args.out):
        sweep.hold_out()
        print(f"{args.table}: {sweep.total} runs in {args.out}", flush=True)
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "table")}
        settings["rows"] = [str(row) for row in sweep.rows]
        fixed = {"how": how(sweep), "settings": settings, "environment": environment()}
        for task in args.tasks:
            for row in sweep.rows:
                cells[task, row] = sweep.cell(task, row)
                content = {"complete": len(cells) == len(args.tasks) * len(sweep.rows)}
                content |= {"cells": [*cells.values()], **fixed}
                sheets = [sheet(sweep, cells)]
                if table.spread:
                    content["spread"], spread_sheet = table.spread(args, content["cells"])
                    sheets.insert(0, spread_sheet)
                content = save(args, table.title, sheets, content)
    return content


def count_operations(args):
    """Table 2, which needs no runs; -> table.json's content."""
    (cells, building), (steps, training) = flops.table_2(), flops.step_table()
    content = {"cells": cells, "steps": steps, "environment": environment()}
    with alone_in(args.out):
        return save(args, "Table 2: what it costs to compute", [building, training], content)


def save(args, title, sheets, content):
    """Writes table.json, and the same sheets as table.md; -> table.json's content."""
    command = f"python -m experiments.sweep {shlex.join(sys.argv[1:])}"
    content = {"table": args.table, "title": title, "command": command, **content}
    content["tables"] = [one._asdict() for one in sheets]
    write_json(args.out / "table.json", content)
    write_text(args.out / "table.md", as_text(content) + "\n")
    return content


def as_text(content):
    return "\n\n".join([*(str(Sheet(**one)) for one in content["tables"]), f"`{content['command']}`"])


def main():
    args = arguments()
    content = run_table(args, TABLES[args.table]) if args.table in TABLES else count_operations(args)
    print(f"\n{as_text(content)}\n\n{args.out / 'table.json'}")
    failed = [one for cell in content["cells"] for one in (cell, *cell.get("runs", ())) if "failed" in one]
    sys.exit(1 if failed else 0)


def stop(signal_number, frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    run_as_script(main, "stopped; the same command goes on from here")
