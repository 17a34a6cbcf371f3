"""The paper's tables, from runs: python -m experiments.sweep TABLE [--model DIR --data DIR …]

Every run is a process of a training script, with its own folder under --out. Given again, the command skips
what is finished, goes on with what was interrupted, and retries what failed. Several such commands,
on machines that all see the folder, share its runs. For two methods and a verdict in ten minutes:
python -m experiments.sweep duel METHOD METHOD [--jobs N --minutes N …]
"""

import re
import shlex
import signal
import sys
import time
from pathlib import Path

from arguments import Parser, positive, run_as_script, whole
from data import UserError, listed, write_json, write_text
from experiments.search import SETTINGS, Sweep, bundled, by_method
from experiments.sheet import as_text, how, interval, scores_of, sheets
from experiments.significance import FEWEST, LEVEL, difference
from experiments.tables import TABLES
from folder import environment
from methods import METHODS

EACH_RUNS_OWN = "--task --method --r --targets --lr --head-lr --seed --seeds --hold-out --out"
CHOICES = {"methods": (str, "METHOD[:R]"), "targets": (str, "LETTERS"), "ranks": (whole, "R")}


# ---- arguments


def arguments():
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    more = "The training script gets what stands after --, as in: … table3 --model DIR -- --warmup 0.06"
    parser = Parser(prog="python -m experiments.sweep", description=__doc__.splitlines()[0], epilog=more)
    add = parser.add_argument
    add("table", choices=TABLES)
    add("two", nargs="*", default=[], metavar="METHOD[:R]", help="the two of a duel")
    add("--tasks", nargs="+", metavar="TASK", help="(default: the paper's; with mini: cola)")
    for name, (kind, metavar) in CHOICES.items():
        takers = " ".join(key for key, table in TABLES.items() if name in table.choices)
        takers += " (default: the paper's)"
        add(f"--{name}", nargs="+", type=kind, metavar=metavar, help=f"of {takers}")
    seeds = listed({key: table.seeds for key, table in TABLES.items() if key != "duel"})
    counts = f"seeds 0 … N−1, of all methods or of one (default: {seeds})"
    add("--seeds", nargs="+", metavar="[METHOD=]N", help=counts)
    rates = "rates to begin with, one means no search (default: the method's own, a third, three times it)"
    add("--lrs", nargs="+", metavar="[METHOD=]LR,LR…", help=rates)
    most = "while the best rate is at an end of the list, the list grows there, to N rates (default: 6)"
    add("--tries", type=whole, metavar="N", default=6, help=most)
    head = "of every method's head (default: the best of the head alone, by held-out loss; squad: F1)"
    add("--head-lr", type=positive, metavar="LR", help=head)
    add("--paper", action="store_true", help="no search: the paper's rates, or else ours")
    for name in SETTINGS:
        kind = whole if name in ("epochs", "batch-size", "limit-train", "max-len") else None
        add(f"--{name}", type=kind, help="as in the training script")
    jobs = "runs side by side, each with one thread (default: 1, with all threads)"
    add("--jobs", type=whole, metavar="N", default=1, help=jobs)
    commands = "print the commands of the runs that can begin; without --list the table then takes them in"
    add("--list", action="store_true", help=commands)
    minutes = "of a duel, with its search (default: 10)"
    add("--minutes", type=positive, default=10, help=minutes)
    add("--out", metavar="DIR", help="(default: runs/<table>)")
    args = parser.parse_intermixed_args(given[:end])  # duel --jobs 2 lora hut
    args.rest = given[end + 1 :]
    if wrong := {word.partition("=")[0] for word in args.rest} & {*EACH_RUNS_OWN.split()}:
        raise UserError(f"{min(wrong)}: each run of a sweep is given its own: leave it out after --")
    if (args.table == "duel") != (len(args.two) == 2):
        raise UserError(f"{args.table} {' '.join(args.two)}: expected two methods after duel, and only there")
    if args.table == "duel":
        args.model = args.model or "mini"
        if bundled(args):
            args.epochs = args.epochs or 10  # enough to tell methods apart
    args.out = Path(args.out or "-".join([f"runs/{args.table}", *args.two]).replace(":", ""))
    fill_in(args, TABLES[args.table])
    args.methods = args.two or args.methods
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
    against = {
        "--paper: mini has settings of its own: give --model and --data": args.paper and bundled(args),
        "--paper: its rates are fixed: leave --lrs out": args.paper and args.lrs,
        "--tasks: expected one for a duel": args.two and len(args.tasks) > 1,
        "--seeds, --list: a duel takes neither": args.two and (args.seeds or args.list),
        f"--head-lr: the models of {args.table} have no head": args.head_lr and not table.script.head,
    }
    for problem, holds in against.items():
        if holds:
            raise UserError(problem)
    args.seeds = {"": table.seeds} | by_method("--seeds", args.seeds, whole, METHODS)


# ---- a duel


def duel(args):
    """Searches both methods' rates, runs pairs of seeds until the time is up, and prints a verdict.

    Only the time ends it, and scores are looked at once: else the 95 % would not hold.
    """
    table, (task,), cells, n, last, began = TABLES["duel"], args.tasks, {}, 0, 0, time.time()
    rows = table.rows(args)
    first = (0, 1000 if len(rows) == 1 else 0)  # a method against itself has other seeds
    sweep = Sweep(args, table, rows)
    while not n or time.time() + last < began + 60 * args.minutes:
        started, n = time.time(), n + 1
        pair = {
            i: sweep.cell(task, row._replace(seeds=tuple(range(start, start + n))))
            for i, (row, start) in enumerate(zip((rows[0], rows[-1]), first, strict=True))
        }
        sweep.execute(pair, cells.__setitem__)
        for i, name in enumerate(args.two):
            if "failed" in cells[i]:
                raise UserError(f"{name}: {cells[i]['failed']}")
        last = (time.time() - started) if n > 1 else 0
    (score,) = table.script.scores[task]
    lost = [n - len(scores_of(cells[i], score)) for i in (0, 1)]
    if any(lost):  # the other seeds would flatter it
        return print(f"no verdict: {lost[0]} and {lost[1]} of {n} runs have no score")
    pairs = [{seed - first[i]: s for seed, s in scores_of(cells[i], score).items()} for i in (0, 1)]
    print(f"{args.two[0]} − {args.two[1]}, {task} {score}: {verdict(args.two, score, *pairs)}")


def verdict(two, score, ours, others):
    """The verdict on {pair: score} of both: who is ahead, if that is beyond chance."""
    found = difference(ours, others)
    if not found:
        n = len(ours.keys() & others.keys())
        return f"no verdict: {n} pairs, expected {FEWEST}: give more --minutes"
    ahead = "neither" if found.p >= LEVEL else two[found.mean < 0]
    return f"{interval(score, found)} over {found.n} pairs: {ahead} is ahead"


# ---- tables


def run_table(args, table):
    """Saves table.json, and its sheets as table.md, after each row; -> its content, None with --list."""
    rows = table.rows(args)
    sweep, cells = Sweep(args, table, rows), {}
    plans = {(task, row): sweep.cell(task, row) for task in args.tasks for row in rows}
    settings = {k: value for k, value in vars(args).items() if k not in ("table", "out", "jobs", "list")}
    settings |= {k: settings[k] and without_path(settings[k]) for k in ("model", "data")}
    settings["rest"] = [re.sub("[^=]*/", "", word) for word in args.rest]
    settings["rows"] = [str(row) for row in rows]
    content = {"table": args.table, "title": table.title, "command": as_given(), "complete": False}
    content |= {"cells": [], "how": how(args, table.script, sweep.begun), "settings": settings}
    content["environment"] = environment()

    def ended(key, cell):
        cells[key] = cell
        content["complete"] = len(cells) == len(plans)
        content["cells"] = [cells[key] for key in plans if key in cells]
        content["tables"] = [one._asdict() for one in sheets(content)]
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "table.json", content)
        write_text(args.out / "table.md", f"{as_text(content)}\n\n{content['how']}\n")

    if args.list:
        for command in sweep.commands(plans):
            print(command)
        return None
    n = sum(len(row.seeds) for row in rows) * len(args.tasks)
    print(f"{args.table}: {n} runs, and those of the searches, in {args.out}", flush=True)
    sweep.execute(plans, ended)
    return content


def as_given():
    """The command without what is of this machine alone: paths, and how many runs stand side by side."""
    given = "\n".join(["python", "-m", "experiments.sweep", *sys.argv[1:]])  # a word a line
    given = re.sub(r"\n--(out|jobs)[=\n].*", "", given)
    return shlex.join(re.sub(r"(?<=[=\n])[^=\n]+", lambda word: without_path(word[0]), given).split("\n"))


def without_path(word):
    """The name of a file or folder; a model of the hub keeps its owner."""
    of_hub = re.fullmatch(r"[\w-]+/[\w.-]+", word) and not Path(word).exists()
    return word if of_hub else Path(word).name or word


def main():
    args = arguments()
    if args.table == "duel":
        return duel(args)
    content = run_table(args, TABLES[args.table])
    if content is None:
        return
    print(f"\n{as_text(content)}\n\n{content['how']}\n\n{args.out / 'table.json'}")
    sys.exit(any("failed" in one for cell in content["cells"] for one in (cell, *cell["runs"])))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    run_as_script(main, "stopped; the same command goes on from here")
