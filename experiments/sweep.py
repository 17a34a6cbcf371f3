"""The paper's tables, run: python -m experiments.sweep table1|table2|table3|table4|table5|rank|read [--model … --data …]

`read` is the READ paper's Table 1: READ and what it is compared with, on T5. Every number comes from runs of
train_glue.py, train_e2e.py or train_read.py, each a process with a folder of its own under --out. Given
again, the command skips what is finished, goes on with what was interrupted, and tries again what has failed.
What stands after -- goes to the training script: python -m experiments.sweep table3 --model DIR -- --warmup
0.06
"""

import argparse
import fcntl
import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import baselines
from data import UserError, e2e, glue
from data.batching import subset
from data.hub import MINI
from experiments import flops
from experiments.tables import PAPER_NOTES, PAPER_PARAMETERS, PAPER_SCORES, markdown
from metrics import GLUE_SCORES
from read.network import WIDTH
from training import Parser, clock, environment, positive, run_as_script, whole, write_json, write_text

ROOT = Path(__file__).parent.parent

# Three rates a method, a fifth of the middle one and four or five times it, so that no method has the finer
# search.
LRS = {
    "hut": (1e-3, 5e-3, 2e-2),  # the paper's Table 6 has 1e-3 for CoLA, 5e-3 for MRPC and STS-B
    "read": (2e-4, 1e-3, 5e-3),
    "head": (1e-3, 5e-3, 2e-2),
    "full": (1e-5, 5e-5, 2e-4),
    "top2": (2e-5, 1e-4, 4e-4),
    "bitfit": (2e-4, 1e-3, 5e-3),
    "houlsby": (1e-4, 5e-4, 2e-3),
    "pfeiffer": (1e-4, 5e-4, 2e-3),
    "lin": (1e-4, 5e-4, 2e-3),
    "prefix": (1e-3, 5e-3, 2e-2),
    "lora": (1e-4, 5e-4, 2e-3),
    "prompt": (4e-3, 2e-2, 1e-1),
    "lst": (2e-4, 1e-3, 5e-3),
    "vera": (2e-3, 1e-2, 5e-2),
    "fourierft": (
        1e-2,
        5e-2,
        2e-1,
    ),  # its authors: 0.04 to 0.08 on RoBERTa-large, and a rate of its own for the head
}
MINI_FACTOR = 5  # the bundled models are small, and take larger rates
HEAD_LR = {"fourierft": 5e-3}  # its authors: 0.001 to 0.011; every other method's head has the method's rate

TASKS = {"table1": ("sst2", "mrpc", "cola", "qnli", "rte", "stsb"), "rank": ("cola",)}
TASKS |= {"table3": ("e2e",), "table4": ("cola", "mrpc"), "table5": ("cola", "mrpc")}
TASKS |= {
    "read": ("cola", "mnli", "mrpc", "qnli", "qqp", "sst2", "stsb")
}  # the READ paper's: GLUE without RTE and WNLI
SEEDS = {"table1": 5, "table3": 3, "table4": 5, "table5": 5, "rank": 5, "read": 3}
METHODS = {  # with their sizes; without one, the training script's default
    "table1": ["full", "head", "bitfit", "houlsby:64", "houlsby:8", "pfeiffer:64", "pfeiffer:16", "lin", "top2", "prefix",
               "lora", "vera", "fourierft", "hut"],
    "table3": ["frozen", "full", "top2", "bitfit", "houlsby", "pfeiffer", "lin:6", "lin:224", "prefix",
               "lora", "vera", "fourierft", "hut"],
    "read": ["full", "bitfit", "lora", "houlsby", "prompt", "lst", "hut", "read"],
}  # fmt: skip
KNOWN = {
    "table1": ("hut", "read", "head", *baselines.METHODS),
    "table3": ("hut", "read", "frozen", *baselines.METHODS),
}
KNOWN |= {"read": ("hut", "read", "lst", *baselines.T5_METHODS)}
TARGETS = {
    "table4": ["q", "k", "v", "o", "qk", "qv", "qkv", "qkvo"],
    "table5": ["v", "qv", "qkvo"],
    "rank": ["qv"],
}
RANKS = (1, 2, 4, 8, 64)
TABLE_4_R = {1: 16, 2: 8, 3: 4, 4: 2}  # by the number of targets
E2E_SCORES = ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")


class Row(NamedTuple):
    """What is compared: a method, its size, where it is applied, and the seeds of its runs."""

    method: str
    r: int | None
    targets: str | None
    seeds: tuple[int, ...]

    def __str__(self):
        return self.method + (f"-r{self.r}" if self.r else "") + (f"-{self.targets}" if self.targets else "")

    def arguments(self):
        r, targets = ["--r", self.r] if self.r else [], ["--targets", self.targets] if self.targets else []
        return ["--method", self.method, *r, *targets]


FINISHED = ": finished before"


class Failed(Exception):
    """A run that ended with an error; the rest go on."""


# ------------------------------------------------------------------------------------------------ arguments


def arguments():
    own, _, rest = "\0".join(sys.argv[1:]).partition("\0--\0")
    more = "What stands after -- goes to the training script as it is: … table3 --model DIR -- --warmup 0.06"
    parser = Parser(
        prog="python -m experiments.sweep", description="The paper's tables, from runs.", epilog=more
    )
    parser.add_argument("table", choices=("table1", "table2", "table3", "table4", "table5", "rank", "read"))
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="(default: the paper's; with mini: cola)")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD[:R]", help="of table1, table3 and read (default: all)"
    )
    parser.add_argument(
        "--targets", nargs="+", metavar="LETTERS", help="of table4, table5 (qv v qkvo) and rank (one)"
    )
    parser.add_argument(
        "--ranks", nargs="+", type=whole, metavar="R", help="of table5 and rank (default: 1 2 4 8 64)"
    )
    parser.add_argument(
        "--seeds", type=whole, metavar="N", help="seeds 0 … N−1 (default: 5; table3 and read 3)"
    )
    parser.add_argument(
        "--lrs", nargs="+", metavar="[METHOD=]LR,LR…", help="rates to try (default: three a method)"
    )
    parser.add_argument(
        "--paper", action="store_true", help="fixed rates and the best epoch on dev, as in the paper"
    )
    for name in ("model", "data", "epochs", "batch-size", "limit-train", "max-len", "device", "dtype"):
        number = whole if name in ("epochs", "batch-size", "limit-train", "max-len") else None
        parser.add_argument(f"--{name}", type=number, help="as in the training script")
    parser.add_argument("--out", metavar="DIR", help="(default: runs/<table>)")
    args = parser.parse_args(own.split("\0") if own else [])
    args.rest = rest.split("\0") if rest else []
    args.out = Path(args.out or f"runs/{args.table}")
    if args.table == "table2":
        return args

    table, mini = args.table, args.model == "mini" and not args.data
    for name, where in (("methods", METHODS), ("targets", TARGETS), ("ranks", ("table5", "rank"))):
        if getattr(args, name) and table not in where:
            raise UserError(f"--{name}: {table} has none to choose")
    args.tasks = tuple(args.tasks or (("cola",) if mini and table != "table3" else TASKS[table]))
    known = TASKS[table] if table in ("table3", "read") else glue.TASKS
    for task in args.tasks:
        if task not in known:
            raise UserError(f"--tasks {task}: unknown: {table} takes {' '.join(known)}")
    if args.paper and table == "read":
        raise UserError("--paper: the READ paper searches its rates, as is done without it")
    if args.paper and mini:
        raise UserError(
            "--paper: the bundled model and data have settings of their own: give --model and --data"
        )
    if args.paper and args.lrs:
        raise UserError("--paper: its rates are fixed: leave --lrs out")
    if table == "rank" and len(args.targets or ["qv"]) > 1:
        raise UserError("--targets: rank looks at one choice of targets")
    args.seeds = args.seeds or SEEDS[table]
    args.rows = rows_of(args)
    args.lrs = learning_rates(args)
    return args


def rows_of(args):
    table, seeds = args.table, tuple(range(args.seeds))
    targets, ranks = args.targets or TARGETS.get(table), args.ranks or RANKS
    if table == "table4":
        for letters in targets:
            if len(letters) not in TABLE_4_R:
                raise UserError(f"--targets {letters}: table4 has 1 to 4 targets, at r {TABLE_4_R}")
        return [Row("hut", TABLE_4_R[len(letters)], letters, seeds) for letters in targets]
    if table == "table5":
        return [Row("hut", r, letters, seeds) for letters in targets for r in ranks]
    if table == "rank":
        return [Row("hut", r, targets[0], seeds if r == anchor(ranks) else (0,)) for r in ranks]
    known_r = {"table1": baselines.ROBERTA_R, "table3": baselines.GPT2_R, "read": baselines.T5_R}[table]
    rows, sizes = [], {"hut": 4 if table == "table3" else 8, "read": WIDTH} | known_r
    for text in args.methods or METHODS[table]:
        method, _, size = text.partition(":")
        if method not in KNOWN[table] or (
            size and (method not in sizes or not size.isdigit() or size == "0")
        ):
            raise UserError(f"--methods {text}: expected METHOD or METHOD:R, of {' '.join(KNOWN[table])}")
        r = int(size) if size else sizes.get(method)
        letters = "qv" if method in ("hut", *baselines.TARGETED) else None
        rows.append(Row(method, r, letters, seeds if method != "frozen" else (0,)))
    return [*dict.fromkeys(rows)]


def anchor(ranks):
    """The r that the rates are chosen at, and that `rank` runs with every seed: the paper's, 8."""
    return 8 if 8 in ranks else ranks[0]


def learning_rates(args):
    """{method: rates to try}. None stands for the training script's own rate, which is the paper's. The same number each."""
    methods = dict.fromkeys(row.method for row in args.rows if row.method != "frozen")
    if args.paper:
        return {method: (None if method == "hut" else LRS[method][1],) for method in methods}
    factor = MINI_FACTOR if args.model == "mini" else 1
    chosen = {method: tuple(factor * lr for lr in LRS[method]) for method in methods}
    for text in args.lrs or ():
        method, separator, rates = text.rpartition("=")
        try:
            rates = tuple(sorted({positive(rate) for rate in rates.split(",")}))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--lrs {text}: {error}") from None
        if separator and method not in methods:
            raise UserError(f"--lrs {text}: '{method}' is not among the methods: {' '.join(methods)}")
        chosen |= dict.fromkeys([method] if separator else methods, rates)
    if len({len(rates) for rates in chosen.values()}) > 1:
        counts = ", ".join(f"{method} {len(rates)}" for method, rates in chosen.items())
        raise UserError(f"--lrs: every method gets the same number of tries: {counts}")
    return chosen


# ------------------------------------------------------------------------------------------------ the held-out part


def hold_out(args, task):
    """Writes two files of the training examples, what to try rates on and what to score them on; -> their paths and sizes.

    A tenth is held out, or 200 examples if that is more, but never above a quarter; always the same ones, and
    all examples of one text (E2E: one meaning representation) on the same side.
    """
    mini = args.model == "mini" and not args.data
    if task == "e2e":
        examples = e2e.load(MINI / "e2e" if mini else args.data, splits=("train",))["train"]
    else:
        examples = glue.load(task, MINI if mini else args.data)["train"]
    examples = subset(examples, args.limit_train)
    groups = {}
    for i, example in enumerate(examples):
        groups.setdefault(example[:-1], []).append(i)
    wanted, held = max(len(examples) // 10, min(200, len(examples) // 4)), set()
    groups = list(groups.values())
    for g in np.random.default_rng(1).permutation(len(groups)):
        if len(held) + len(groups[g]) <= wanted or not held:
            held.update(groups[g])
    parts = [[e for i, e in enumerate(examples) if (i in held) == side] for side in (False, True)]
    if not all(parts):
        raise UserError(f"{task}: {len(examples)} training examples with one text: none can be held out")
    folder = args.out / task
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"{name}-of-{len(examples)}{'.txt' if task == 'e2e' else '.tsv'}"
        for name in ("part", "held-out")
    ]
    for path, part in zip(paths, parts, strict=True):
        write_text(path, "".join(f"{line}\n" for line in lines_of(task, part)))
    return *paths, *map(len, parts)


def lines_of(task, examples):
    """The rows of a file that data/glue.py or data/e2e.py reads back as these examples."""
    if task == "e2e":
        return [f"{example.context}||{example.reference}" for example in examples]
    spec = glue.TASKS[task]
    labels = [spec.labels[e.label] if spec.labels else repr(e.label) for e in examples]
    if spec.columns:  # CoLA's, without header
        return [f"-\t{label}\t\t{e.first}" for e, label in zip(examples, labels, strict=True)]
    texts = [e[: len(spec.texts)] for e in examples]
    return [
        "\t".join([*spec.texts, spec.label]),
        *("\t".join([*t, y]) for t, y in zip(texts, labels, strict=True)),
    ]


# ------------------------------------------------------------------------------------------------ runs


class Runs:
    """Starts runs one after the other, and says how far they are."""

    def __init__(self, args):
        self.args, self.done, self.seconds, self.known = args, 0, [], {}
        self.script = ROOT / {"table3": "train_e2e.py", "read": "train_read.py"}.get(
            args.table, "train_glue.py"
        )
        tries = {
            (task, searched_as(args, row))
            for task in args.tasks
            for row in args.rows
            if row.method != "frozen"
        }
        kept = args.table == "read"  # the chosen try's run
        self.total = sum(n - kept for _, row in tries if (n := len(args.lrs[row.method])) > 1)
        self.total += len(args.tasks) * sum(len(row.seeds) for row in args.rows)

    def __call__(self, folder, arguments, what):
        """What result.json of the run in `folder` says, after running it if it has to be. Raises Failed with the reason."""
        if folder not in self.known:
            said, started = FINISHED if (folder / "result.json").exists() else "", time.time()
            try:
                self.known[folder] = run(self.script, folder, [str(a) for a in arguments])
            except Failed as error:
                self.known[folder], said = error, f": failed: {error}"
            spent = time.time() - started
            if said == FINISHED:
                spent = self.known[folder].get("timing", {}).get("seconds", 0)
            self.done, self.seconds = self.done + 1, [*self.seconds, spent]
            left = clock(statistics.fmean(self.seconds) * (self.total - self.done))
            print(f"[{self.done}/{self.total}] {what}{said}; {clock(spent)}, about {left} to go", flush=True)
        if isinstance(self.known[folder], Failed):
            raise self.known[folder]
        return self.known[folder]

    def leave_out(self, n):
        """`n` runs will not be: no rate could be chosen for them."""
        self.total -= n


def run(script, folder, arguments):
    """Runs `script` into `folder`, unless it has; -> what result.json says. Raises Failed, with the last line of its errors.

    Raises UserError if the folder's run was of other arguments. Ctrl-C is passed on, so that the run saves
    and ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorded, result = folder / "command.json", folder / "result.json"
    before = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else arguments
    if (
        before != arguments and (folder / "args.json").exists()
    ):  # which a run that failed before it began does not have
        i = next((i for i, (a, b) in enumerate(zip(before, arguments, strict=False)) if a != b), len(before))
        change = " ".join(before[max(i - 1, 0) : i + 1])
        raise UserError(
            f"{folder} was run with {change}, not as now: give the same arguments, or another --out"
        )
    if not result.exists():
        write_json(recorded, arguments)
        command = [sys.executable, str(script), *arguments, "--out", str(folder), "--resume"]
        with (
            (folder / "log.txt").open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command, stdout=log, stderr=subprocess.PIPE, text=True, start_new_session=True
            ) as process,
        ):
            try:
                _, errors = process.communicate()
            except KeyboardInterrupt:
                process.terminate()  # the script saves, and ends
                process.wait()
                raise
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            raise Failed(lines[-1].removeprefix("error: ") if lines else f"exit status {process.returncode}")
    return json.loads(result.read_text(encoding="utf-8"))


def searched_as(args, row):
    """The row whose search chooses `row`'s rate. Where rows differ in r alone they share one: r is no other function."""
    return row._replace(
        r=anchor(args.ranks or RANKS) if args.table in ("table5", "rank") else row.r, seeds=(0,)
    )


def common(args, names):
    given = [(f"--{name}", getattr(args, name.replace("-", "_"))) for name in names]
    return [part for name, value in given if value is not None for part in (name, value)] + args.rest


SEARCH = ("model", "data", "epochs", "batch-size", "max-len", "device", "dtype")


def final_run(args, task, row, lr, seed):
    """(folder, arguments, what it is in words) of a run that is scored."""
    name, more = f"lr{lr:g}" if lr else "default-lr", ["--task", task] if task != "e2e" else []
    settings = [
        *row.arguments(),
        *common(args, (*SEARCH, "limit-train")),
        *rate(task, row, lr),
        *more,
        "--seed",
        seed,
    ]
    return args.out / task / str(row) / f"{name}-seed{seed}", settings, f"{task} {row} {name} seed {seed}"


def trial(args, task, row, lr, parts):
    """The same of a run that a rate is tried with."""
    more = (
        ["--task", task] if task != "e2e" else ["--beam-size", 1, "--max-new-tokens", 1]
    )  # the test set is not decoded
    more += ["--seed", 0, "--train-file", parts[0], "--dev-file", parts[1]]
    settings = [*row.arguments(), *common(args, SEARCH), *rate(task, row, lr), *more]
    return args.out / task / str(row) / f"try-lr{lr:g}", settings, f"{task} {row} lr {lr:g}, held-out part"


def choose(args, runs, task, row, parts):
    """(rate, tries): the rate that is best on the held-out part after the last epoch, at seed 0.

    On a tie, as between runs that predict a single class, the one with the lower training loss. In `read` it
    is the best epoch on validation, which is apart from test: the run is seed 0's of those that are scored,
    too.
    """
    rates = args.lrs.get(row.method, (None,))
    if len(rates) == 1:
        return rates[0], []
    row, tries = searched_as(args, row), []
    for lr in rates:
        final = args.table == "read"
        folder, settings, what = (
            final_run(args, task, row, lr, 0) if final else trial(args, task, row, lr, parts)
        )
        try:
            scores = runs(folder, settings, what)["best" if final else "last"]
            score = -scores["loss"] if task == "e2e" else scores[scores_of(args, task)[0]]
            tries.append({"lr": lr, "score": score, "train_loss": epochs(folder)[-1]["train_loss"]})
        except Failed as error:
            tries.append({"lr": lr, "failed": str(error)})
    scored = [one for one in tries if one.get("score") is not None]
    return (max(scored, key=lambda one: (one["score"], -one["train_loss"]))["lr"] if scored else None), tries


def epochs(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def scores_of(args, task):
    """The names of a task's scores, the first of which chooses."""
    return E2E_SCORES if task == "e2e" else ("score",) if args.table == "read" else GLUE_SCORES[task]


def rate(task, row, lr):
    head = ["--head-lr", HEAD_LR[row.method]] if row.method in HEAD_LR and task != "e2e" else []
    return ["--lr", lr, *head] if lr else []


def cell(args, runs, task, row, parts):
    """Chooses the rate and runs every seed; -> {"task", "method", …, "lr", "tries", "runs", "mean", "std"} or "failed"."""
    entry = {
        "task": task,
        **row._asdict(),
        "lr": None,
        "tries": [],
        "parameters": None,
        "runs": [],
        "mean": {},
        "std": {},
    }
    entry["lr"], entry["tries"] = choose(args, runs, task, row, parts)
    if entry["tries"] and entry["lr"] is None:
        runs.leave_out(len(row.seeds) - (args.table == "read"))
        return entry | {
            "failed": f"no rate worked: {entry['tries'][0].get('failed', 'its score is not defined')}"
        }
    lr = entry["lr"]
    for seed in row.seeds:
        folder, settings, what = final_run(args, task, row, lr, seed)
        try:
            result = runs(folder, settings, what)
        except Failed as error:
            entry["runs"].append({"seed": seed, "failed": str(error)})
            continue
        scores = result["test" if args.table in ("table3", "read") else "best" if args.paper else "last"]
        entry["runs"].append({"seed": seed, "scores": scores, "folder": str(folder.relative_to(args.out))})
        if args.table == "read":
            entry["runs"][-1]["cost"] = cost(folder, result) | in_use(args, runs.script, task, folder)
            inside = row.method in ("full", "bitfit")  # what they train is the backbone's own
            entry["backbone"] = result["parameters"]["frozen"] + inside * result["parameters"]["adapter"]
        if entry["lr"] is None and row.method != "frozen":
            entry["lr"] = json.loads((folder / "args.json").read_text(encoding="utf-8"))["args"]["lr"]
        entry["parameters"] = result.get("parameters", {}).get("adapter", 0)
    for score in scores_of(args, task):
        values = [one["scores"].get(score) for one in entry["runs"] if "scores" in one]
        if values and None not in values:
            entry["mean"][score] = statistics.fmean(values)
            entry["std"][score] = statistics.stdev(values) if len(values) > 1 else None
    if all("failed" in one for one in entry["runs"]):
        entry["failed"] = entry["runs"][0]["failed"]
    return entry


def cost(folder, result):
    """What a run took: peak memory in bytes, seconds and kWh until the end of its best epoch; None where not measured."""
    timing = epochs(folder)[result["best"]["epoch"] - 1]["timing"]
    return {
        "memory": result["timing"]["peak_memory_bytes"],
        "seconds": timing["seconds"],
        **timing["energy_kwh"],
    }


def in_use(args, script, task, folder):
    """What a label costs with the adapter of the run in `folder`, one source at a time: {"label_ms", "label_memory"}.

    Measured once, by a process that does nothing else before. None where that fails, which is said: the run
    is there.
    """
    path = folder / "in-use.json"
    if not path.exists():
        given = [str(a) for a in common(args, ("model", "data", "max-len", "device", "dtype"))]
        adapter = ["--task", task, "--adapter", str(folder / "adapter.pt"), "--eval-only"]
        done = subprocess.run(
            [sys.executable, str(script), *given, *adapter], capture_output=True, text=True, check=False
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if "ms_a_label" in line]
        if not found:
            print(
                f"{folder}: not measured in use: {(done.stderr.splitlines() or ['no output'])[-1]}",
                flush=True,
            )
            return {"label_ms": None, "label_memory": None}
        write_json(path, found[0])
    found = json.loads(path.read_text(encoding="utf-8"))
    return {"label_ms": found["ms_a_label"], "label_memory": found["peak_memory_bytes"]}


# ------------------------------------------------------------------------------------------------ tables


def number(score, value):
    """NIST and CIDEr as they are, the others in hundredths."""
    return f"{value:.2f}" if score in ("NIST", "CIDEr") else f"{100 * value:.1f}"


def shown(entry, score):
    if entry is None:
        return "…"
    if "failed" in entry:
        return "failed"
    if score not in entry["mean"]:
        return "–"
    std, finished = entry["std"][score], sum("scores" in one for one in entry["runs"])
    part = f" ({finished} of {len(entry['runs'])})" if finished < len(entry["runs"]) else ""
    return (
        number(score, entry["mean"][score]) + (f" ± {number(score, std)}" if std is not None else "") + part
    )


def how(args, parts):
    """What the numbers are, in words."""
    if args.table == "read" and any(len(rates) > 1 for rates in args.lrs.values()):
        rates = f"Each rate is the best of {len(next(iter(args.lrs.values())))} on validation, at seed 0"
    elif args.paper:
        rates = (
            "--paper: fixed rates: HUT's are the paper's, the others' are ours, as the paper only quotes them"
        )
    elif parts:
        sizes = ", ".join(f"{task}: {held:,} of {rest + held:,}" for task, (*_, rest, held) in parts.items())
        tries = len(next(iter(args.lrs.values())))
        rates = f"Each rate is the best of {tries} on a held-out part of the training set ({sizes}), at seed 0 and the last "
        rates += "epoch; then all of the training set is trained on"
    else:
        rates = "One rate a method, not chosen"
    end = (
        "the best epoch on dev, the set that it is scored on"
        if args.paper
        else "dev is scored at the last epoch"
    )
    if args.table == "table3":
        end = "dev loss chooses the epoch, and the test set is scored with that"
    if args.table == "read":
        end = "validation chooses the epoch, and test is scored with that (the READ paper's splits)"
    over = f"mean ± standard deviation (n − 1) over {args.seeds} seeds" if args.seeds > 1 else "one seed"
    return f"{rates}; {end}; {over}.\n\n`python -m experiments.sweep {shlex.join(sys.argv[1:])}`"


def table(args, cells, parts):
    """The Markdown of the cells that there are."""
    scores = [(t, s) for t in args.tasks for s in (scores_of(args, t)[:1] if t != "e2e" else E2E_SCORES)]
    numbers, parameters = (
        {key[1:]: text for key, text in PAPER_SCORES.items() if key[0] == args.table},
        PAPER_PARAMETERS,
    )
    with_paper = {t for t in args.tasks if any((*row[:3], t) in numbers for row in args.rows)}
    header = ["method", "parameters", *(["paper's"] if args.table in parameters else [])]
    header += [
        h
        for t, s in scores
        for h in (f"{t} {s}" if t != "e2e" else s, *(["paper"] if t in with_paper else []))
    ]
    header += OVER_TASKS if args.table == "read" else []
    rows = []
    for row in args.rows:
        entries = {t: cells.get((t, row)) for t in args.tasks}
        counts = [e["parameters"] for e in entries.values() if e and e["parameters"] is not None]
        line = [str(row).replace("-", " "), f"{counts[0]:,}" if counts else "–"]
        backbone = next((e["backbone"] for e in entries.values() if e and "backbone" in e), None)
        line[1] += f" ({100 * counts[0] / backbone:.2f} %)" if backbone else ""
        if args.table in parameters:
            line.append(parameters[args.table].get(row.method + (f":{row.r}" if row.r else ""), "–"))
        for t, s in scores:
            line += [shown(entries[t], s), *([numbers.get((*row[:3], t), "–")] if t in with_paper else [])]
        rows.append(line + (over_tasks(entries) if args.table == "read" else []))
    text = [markdown(header, rows), how(args, parts), *notes(args, cells, with_paper)]
    return "\n\n".join(text)


OVER_TASKS = ["mean", "peak memory, MiB", "seconds to the best epoch", "kWh, by utilisation", "kWh, by power",
              "ms a label, batch 1", "peak memory in use, MiB"]  # fmt: skip


def over_tasks(entries):
    """The cells of OVER_TASKS, from means over the seeds: the tasks' mean score, the largest memory and time of a label,
    and the sums of the rest.
    """
    found = []
    for key in ("score", "memory", "seconds", "utilisation", "power", "label_ms", "label_memory"):
        tasks = [[one for one in e["runs"] if "cost" in one] if e else [] for e in entries.values()]
        values = [[(one["scores"] | one["cost"])[key] for one in runs] for runs in tasks]
        if not all(values):
            found.append("…" if None in entries.values() else "–")
        elif any(None in task for task in values):
            found.append("–" if key == "score" else "not measured")
        else:
            means = [statistics.fmean(task) for task in values]
            texts = {"score": number(key, statistics.fmean(means)), "label_ms": f"{max(means):.1f}"}
            texts |= dict.fromkeys(("memory", "label_memory"), f"{max(means) / 2**20:,.0f}")
            texts["seconds"] = f"{sum(means):,.0f}"
            found.append(texts.get(key, f"{sum(means):.3g}"))
    return found


def notes(args, cells, with_paper):
    """What a reader of the table should know of it; a string a paragraph."""
    found = [PAPER_NOTES[args.table]] if args.table in PAPER_NOTES else []
    if args.table != "rank" and not set(args.tasks) <= with_paper:
        without = ", ".join(t for t in args.tasks if t not in with_paper)
        found.append(f"No column for the paper on {without}: its scores of these rows were not at hand.")
    rates = [
        f"{task} {row} {entry['lr']:g}{'*' * at_the_end(entry)}"
        for (task, row), entry in cells.items()
        if entry["lr"]
    ]
    found += [f"Rates (*: at the end of the list of those tried): {'; '.join(rates)}."] if rates else []
    for key, title in (
        ("single_class", "Predicts a single class"),
        ("invalid", "Outputs that are no label, and wrong"),
    ):
        those = []
        for (task, row), entry in cells.items():
            values = {
                one["seed"]: value for one in entry["runs"] if (value := one.get("scores", {}).get(key))
            }
            seeds = ", ".join(
                f"{seed}" if value is True else f"{seed}: {value:,}" for seed, value in values.items()
            )
            those += [f"{task} {row} (seed {seeds})"] if values else []
        found += [f"{title}: {'; '.join(those)}."] if those else []
    for (task, row), entry in cells.items():
        where = f"{task}, {row}"
        found += [f"Failed: {where}: {entry['failed']}"] if "failed" in entry else []
        found += [
            f"Failed: {where}, seed {one['seed']}: {one['failed']}"
            for one in entry["runs"]
            if "failed" in one
        ]
        found += [
            f"Failed: {where}, try of lr {one['lr']:g}: {one['failed']}"
            for one in entry["tries"]
            if "failed" in one
        ]
    return found


def at_the_end(entry):
    """Whether a better rate may lie beyond those that were tried."""
    return len(entry["tries"]) > 2 and entry["lr"] in (entry["tries"][0]["lr"], entry["tries"][-1]["lr"])


def spread(args, cells):
    """`rank`'s finding: {task: {"r": … at seed 0, "seeds": … at one r}}, each {"scores", "std", "range"}."""
    found = {}
    for task in args.tasks:
        score, groups = GLUE_SCORES[task][0], {"r": {}, "seeds": {}}
        ran = [(row.r, one) for row in args.rows if (task, row) in cells for one in cells[task, row]["runs"]]
        for r, one in ran:
            if (value := one.get("scores", {}).get(score)) is None:
                continue
            if one["seed"] == 0:
                groups["r"][r] = value
            if r == anchor(args.ranks or RANKS):
                groups["seeds"][one["seed"]] = value
        found[task] = {
            name: {"scores": values, "std": None, "range": None} for name, values in groups.items()
        }
        for group in found[task].values():
            if len(values := group["scores"].values()) > 1:
                group |= {"std": statistics.stdev(values), "range": max(values) - min(values)}
    return found


def spread_table(args, found):
    rows = []
    for task, groups in found.items():
        score = GLUE_SCORES[task][0]
        for name, fixed in (("r", "seed 0"), ("seeds", f"r = {anchor(args.ranks or RANKS)}")):
            values = ", ".join(
                f"{key}: {number(score, value)}" for key, value in groups[name]["scores"].items()
            )
            widths = [
                number(score, groups[name][key]) if groups[name][key] is not None else "–"
                for key in ("std", "range")
            ]
            rows.append([f"{task} over {name}, {fixed}", values, *widths])
    return markdown(["spread of the score", "scores", "std", "max − min"], rows)


# ------------------------------------------------------------------------------------------------ main


def save_table(args, text, **content):
    write_json(args.out / "table.json", {"table": args.table, **content, "markdown": text})
    write_text(args.out / "table.md", text + "\n")


def alone_in(folder):
    """A lock on `folder`, until what is returned is closed. Raises UserError if another has it, or it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}: expected a folder that can be written") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(
            f"{folder}: another sweep is at work there: wait for its end, or give another --out"
        ) from None
    return lock


def main():
    args = arguments()
    with alone_in(args.out):
        if args.table == "table2":
            cells, text = flops.table_2()
            steps, step_text = flops.step_table()
            text, failed = f"{text}\n\n{step_text}", False
            save_table(args, text, cells=cells, steps=steps, environment=environment())
        else:
            text, failed = fill(args)
    print(f"\n{text}\n\n{args.out / 'table.json'}")
    sys.exit(1 if failed else 0)


def fill(args):
    """Runs what is to be run, and saves the table after each cell; -> its Markdown, and whether anything failed."""
    settings = {key: value for key, value in vars(args).items() if key not in ("rows", "out", "table")}
    fixed = {"settings": settings | {"rows": [str(row) for row in args.rows]}, "environment": environment()}
    searching = any(len(rates) > 1 for rates in args.lrs.values())
    parts = {task: hold_out(args, task) for task in args.tasks} if searching and args.table != "read" else {}
    runs, cells = Runs(args), {}
    print(f"{args.table}: {runs.total} runs in {args.out}", flush=True)
    for task in args.tasks:
        for row in args.rows:
            cells[task, row] = cell(args, runs, task, row, parts.get(task))
            text, found = table(args, cells, parts), {"how": how(args, parts)}
            if args.table == "rank":
                found["spread"] = spread(args, cells)
                text = f"{spread_table(args, found['spread'])}\n\n{text}"
            complete = len(cells) == len(args.tasks) * len(args.rows)
            save_table(args, text, complete=complete, cells=[*cells.values()], **found, **fixed)
    return text, any("failed" in one for entry in cells.values() for one in (entry, *entry["runs"]))


def stop(number, frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        run_as_script(main)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
