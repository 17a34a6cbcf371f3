"""The paper's tables, a record each: what is run for a table, and what it shows.

A new table is one entry of TABLES, which sweep.py runs. paper.json holds what the papers print.
"""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data import UserError, glue
from methods import DECODER, ENCODER, METHODS, T5, methods_of
from run import mean_std


class Sheet(NamedTuple):
    """A table as it is shown: column titles, rows of as many texts, and paragraphs that stand below it."""

    header: list
    rows: list
    notes: list

    def __str__(self):
        return "\n\n".join([markdown(self.header, self.rows), *self.notes])


def markdown(header, rows):
    """A Markdown table. Its first column is text, the others are numbers."""
    rule = "|".join("---" if i == 0 else "---:" for i in range(len(header)))
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def label(method, r=None, targets=None):
    """What a method is called in tables and figures: "hut r8 qv"."""
    return " ".join(filter(None, (method, r and f"r{r}", targets)))


def unit(score):
    """(factor, digits) that a score is shown with: mostly hundredths."""
    return {"NIST": (1, 2), "CIDEr": (1, 2), "loss": (1, 3), "perplexity": (1, 2)}.get(score, (100, 1))


def number(score, value, std=None):
    """A score as it is shown, with its standard deviation if there is one: "71.7 ± 1.2", or "–"."""
    factor, digits = unit(score)
    return " ± ".join(f"{factor * v:.{digits}f}" for v in (value, std) if v is not None) or "–"


# ---- the scripts


class Cost(NamedTuple):
    """A column: what the runs cost. `seeds` joins the runs of a task, `tasks` what comes of the tasks."""

    title: str
    key: str
    seeds: Callable
    tasks: Callable
    text: Callable


def mebibytes(value):
    return f"{value / 2**20:,.0f}"


def summed(pairs):  # over tasks, which vary independently
    means, stds = zip(*pairs, strict=True)
    return f"{sum(means):.3g} ± {math.hypot(*(std or 0 for std in stds)):.2g}"


# The least of the milliseconds, as other work on the machine only adds to them.
COSTS = (
    Cost("peak memory, MiB", "memory", statistics.median, max, mebibytes),
    Cost("ms a step", "step_ms", min, max, "{:.1f}".format),
    Cost("seconds to the best epoch", "seconds", statistics.median, sum, "{:,.0f}".format),
)


class Script(NamedTuple):
    """A training script, and how a sweep uses it."""

    path: str
    layout: str  # of its models
    scores: dict  # {task: the scores that get a column}; a script with a single task takes no --task
    worth: Callable  # (result, task) -> numbers; the rate is chosen whose try is worth the most
    counts: tuple  # the part of result.json that goes into the table, and what that is in words
    head: str | None = None  # the method whose search finds the rate of every method's head; None: no heads
    # Arguments of tries, which score on a held-out part of the training set. A script without them has a
    # validation set besides its test set: its tries are whole runs, and the chosen one is in the table.
    trial: tuple = ()
    costs: tuple = COSTS


def worth(scores, score, on_a_tie):
    """A run that predicts one class is worth less than any that does not, as its 0 may beat a noisy −.02."""
    return not scores.get("single_class"), scores[score], on_a_tie


GLUE = Script(
    "train_glue.py",
    ENCODER,
    scores={task: row.scores[:1] for task, row in glue.TASKS.items()},
    worth=lambda result, task: worth(result["last"], glue.TASKS[task].scores[0], -result["last"]["loss"]),
    counts=("last", "Dev is scored at the last epoch"),
    head="head",
    trial=("--hold-out",),
)
E2E = Script(
    "train_e2e.py",
    DECODER,
    scores={"e2e": ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")},
    worth=lambda result, task: (-result["last"]["loss"],),
    counts=("test", "The dev loss chooses the epoch, and the test set is scored with it"),
    trial=("--hold-out", "--beam-size", 1, "--max-new-tokens", 1),  # a try does not decode the test set
)
SQUAD = Script(
    "train_squad.py",
    ENCODER,
    scores={"squad": ("f1", "exact_match")},
    worth=lambda result, task: (result["last"]["f1"], result["last"]["exact_match"]),
    counts=("last", "Dev is scored at the last epoch"),
    head="head",
    trial=("--hold-out",),
)
READ = Script(
    "train_read.py",
    T5,
    scores=dict.fromkeys(glue.TEXT_TO_TEXT, ("score",)),
    worth=lambda result, task: worth(result["best"], "score", -result["best"]["epoch"]),
    counts=("test", "Validation chooses the epoch, and test is scored with it (the READ paper's splits)"),
    costs=(
        *COSTS,
        Cost("mean peak of the tasks, MiB", "memory", statistics.median, statistics.fmean, mebibytes),
        Cost("epochs to the best", "epochs", mean_std, summed, str),
        Cost("kWh, by utilisation", "utilisation", mean_std, summed, str),
        Cost("kWh, by power", "power", mean_std, summed, str),
        Cost("ms a label, batch 1", "label_ms", min, max, "{:.1f}".format),
        Cost("peak memory in use, MiB", "label_memory", max, max, mebibytes),
    ),
)


# ---- rows


PAPER = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))


class Row(NamedTuple):
    """What is compared: a method, its size, the layers it adapts, the seeds of its runs."""

    method: str
    r: int | None
    targets: str | None
    seeds: tuple[int, ...]

    def __str__(self):
        return label(*self[:3]).replace(" ", "-")

    def in_paper(self, table):
        """{column: text} of the paper's row, if it has one."""
        rows = PAPER.get(table, {}).get("rows", {})
        keys = [f"{self.method}:{self.r}:{self.targets}", f"{self.method}:{self.r}", self.method]
        return next((rows[key] for key in keys if key in rows), {})


def all_methods(layout, paper):
    """The paper's rows in its order, as METHOD or METHOD:R, then the methods that it does not have."""
    named = {text.partition(":")[0] for text in paper}
    return (*paper, *(method for method in methods_of(layout) if method not in named))


def seeds_of(args, method="hut"):
    return tuple(range(args.seeds.get(method, args.seeds[""])))


def rows_of_methods(args):
    layout = TABLES[args.table].script.layout
    known, rows = methods_of(layout), []
    for text in args.methods:
        method, _, size = text.partition(":")
        if method not in known or (size and not (METHODS[method].r and size.isdigit() and int(size))):
            raise UserError(f"--methods {text}: expected METHOD or METHOD:R, of {' '.join(known)}")
        spec = METHODS[method]
        r = int(size) if size else spec.r.get(layout)
        seeds = seeds_of(args, method) if spec.lr[layout] else (0,)  # without training all are the same
        rows.append(Row(method, r, spec.takes.get("targets"), seeds))
    return [*dict.fromkeys(rows)]


def rows_of_table_4(args):
    r_of = {1: 16, 2: 8, 3: 4, 4: 2}  # by the number of targets
    for letters in args.targets:
        if len(letters) not in r_of:
            raise UserError(f"--targets {letters}: table4 has 1 to 4 targets, at r {r_of}")
    return [Row("hut", r_of[len(letters)], letters, seeds_of(args)) for letters in args.targets]


def rows_of_table_5(args):
    return [Row("hut", r, letters, seeds_of(args)) for letters in args.targets for r in args.ranks]


def anchor(args):
    """The r that rates are chosen at: the paper's, 8, if it is run."""
    return 8 if 8 in args.ranks else args.ranks[0]


# ---- the tables


class Table(NamedTuple):
    """A table of the paper."""

    title: str  # on the report's page
    script: Script
    tasks: tuple  # the paper's; --tasks names others
    rows: Callable  # (the command's arguments) -> [Row]
    choices: dict  # {argument: default}, for those of --methods, --targets and --ranks that it takes
    seeds: int = 5
    one_search: bool = False  # rows that differ in r alone share the search at r = `anchor`
    notes: tuple = ()  # paragraphs below the table


RANKS = (1, 2, 4, 8, 64)

TABLES = {
    "table1": Table(
        "Table 1 and Figure 3: the methods on GLUE", GLUE, ("sst2", "mrpc", "cola", "qnli", "rte", "stsb"),
        rows_of_methods, {"methods": all_methods(ENCODER, (
            "full", "head", "bitfit", "houlsby:64", "houlsby:8", "pfeiffer:64", "pfeiffer:16", "lin", "top2",
            "prefix", "lora", "vera", "fourierft", "hut"))},
    ),
    "duel": Table("Two methods", GLUE, ("cola",), rows_of_methods, choices={}),
    "table3": Table(
        "Table 3: the methods on E2E", E2E, ("e2e",),
        rows_of_methods, {"methods": all_methods(DECODER, (
            "frozen", "full", "top2", "bitfit", "houlsby", "pfeiffer", "lin:6", "lin:224", "prefix", "lora",
            "vera", "fourierft", "hut"))},
        seeds=3,
    ),
    "squad": Table(
        "SQuAD v1.1, of which the paper has Figure 4 alone", SQUAD, ("squad",),
        rows_of_methods, {"methods": ("full", "head", "bitfit", "lora", "hut")},
    ),
    "table4": Table(
        "Table 4: where HUT is applied", GLUE, ("cola", "mrpc"),
        rows_of_table_4, {"targets": ("q", "k", "v", "o", "qk", "qv", "qkv", "qkvo")},
        notes=("The paper prints 0.8M parameters for each row, but its rows differ in size, as these do.",),
    ),
    "table5": Table(
        "Table 5: r, and where", GLUE, ("cola", "mrpc"),
        rows_of_table_5, {"targets": ("v", "qv", "qkvo"), "ranks": RANKS}, one_search=True,
    ),
    "rank": Table(
        "What r does", GLUE, ("cola",),
        rows_of_table_5, {"targets": ("qv",), "ranks": RANKS}, one_search=True,
    ),
    "read": Table(
        "READ and what it is compared with, on T5", READ,
        ("cola", "mnli", "mrpc", "qnli", "qqp", "sst2", "stsb"),  # GLUE without RTE and WNLI
        rows_of_methods, {"methods": all_methods(T5, ("full", "bitfit", "lora", "houlsby", "prompt", "lst"))},
        seeds=3,
        notes=(
            "A task's score is the mean of its metrics (MRPC, QQP: accuracy and F1; STS-B: Pearson and "
            "Spearman). Peak memory includes scoring, and is that of the task that needs most. Time and "
            "energy are sums over the tasks.",
        ),
    ),
}  # fmt: skip
