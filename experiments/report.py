"""One page about a folder of runs: python -m experiments.report RUNS -o report.html

RUNS holds what experiments/sweep.py and the training scripts have written, at any depth.
"""

import json
import statistics
from html import escape
from itertools import starmap, zip_longest
from pathlib import Path
from typing import NamedTuple

from arguments import Parser, file_to_write, run_as_script
from data import UserError, as_user_error, read_text
from data.hub import MINI
from experiments.drawing import Curve, panels, scatter
from experiments.flops import ADAPTERS, BUILDING, adapters, building, training_step
from experiments.page import details, marked, page, save, table
from experiments.search import spent
from experiments.sheet import at_the_end, joined
from experiments.tables import COSTS, PAPER, label, number, unit
from methods import ENCODER, methods_of
from model import ROBERTA_LARGE, RobertaConfig, RobertaModel, read_config
from run import mean_std

RUN_FILES = ("args.json", "metrics.jsonl", "result.json")
AXES = {  # what scores are drawn against: {key of Entry.costs: (unit, title, what joins tasks)}
    "parameters": (1, "parameters without the head", max),
    "step_ms": (1, "ms a step", max),
    "seconds": (1, "seconds to the best epoch", sum),
    "memory": (2**20, "peak memory, MiB", max),
    "utilisation": (1, "kWh, by utilisation", sum),
    "building": (1e9, "GFLOPs, as the paper counts", max),
    "step": (1e9, "GFLOPs of a training step", max),
}
JOINED = {one.key: one.seeds for one in COSTS}  # as in the tables
OF_A_RUN = ("parameters", "step_ms", "seconds", "memory")
PRINTED = {  # of the paper's Figure 3, and READ's Figure 1: {(table, key of AXES): (column, title, scores)}
    ("table1", "building"): ("gflops", "GFLOPs", ""),
    ("read", "seconds"): ("energy_kWh", "kWh, all tasks", "avg_as_printed"),
    ("read", "memory"): ("training_GB", "GB at the peak", "avg_as_printed"),
}


class RunFolder(NamedTuple):
    path: Path  # under RUNS
    args: dict
    environment: dict  # the rest of args.json: versions, device, …
    epochs: list[dict]  # the rows of metrics.jsonl
    result: dict | None  # result.json; None if the run has not finished


class Entry(NamedTuple):
    """What is drawn as one: a table's row on one task, or runs that differ in the seed alone."""

    name: str
    cell: dict  # what is in a table.json
    runs: list[RunFolder]
    costs: dict  # {key of AXES: mean over the runs}
    score: str | None  # what it is drawn by
    values: list[float]  # of each seed

    def drawn(self, points, *more):
        return Curve(self.name, points, "hut" if self.cell["method"] == "hut" else "other", *more)


class Section(NamedTuple):
    title: str
    content: dict  # of its table.json
    entries: list[Entry]
    runs: list[RunFolder]


def grouped(things, key):
    """{key of a thing: [things]}, in their order."""
    found = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return found


# ---- reading


def parse(content, where, *keys):
    """`content` as a JSON object with `keys`."""
    with as_user_error(f"{where}: not JSON: "):
        found = json.loads(content)
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(f"{where}: not a file of this program: no '{missing[0]}' in it")
    return found


def read(path, *keys):
    return parse(read_text(path, "expected a file of this program"), path, *keys)


def read_run(folder, root):
    args, metrics, result = (folder / name for name in RUN_FILES)
    result = read(result) if result.exists() else None
    environment = read(args, "args") if args.exists() else {"args": result or {}}
    rows = read_text(metrics, "expected rows of scores").splitlines() if metrics.exists() else []
    rows = [parse(row, f"{metrics}:{i}", "epoch", "timing") for i, row in enumerate(rows, 1)]
    return RunFolder(folder.relative_to(root), environment.pop("args"), environment, rows, result)


def find(root):
    """The [Section] of all tables, those with the most methods first, and of the other runs."""
    folders = {path.parent for name in RUN_FILES for path in root.rglob(name)}
    runs = [read_run(folder, root) for folder in sorted(folders)]
    runs = [run for run in runs if not run.result or {"best", "timing"} <= run.result.keys()]
    tables = [section_of_table(path, root, runs) for path in sorted(root.rglob("table.json"))]
    tables.sort(key=lambda section: -len({entry.cell["method"] for entry in section.entries}))
    used = {run.path for section in tables for run in section.runs}
    others = [run for run in runs if run.path not in used]
    tables += starmap(section_of_runs, grouped(others, title_of).items())
    if not tables:
        raise UserError(f"{root}: no table.json, {', '.join(RUN_FILES)} in it: expected a folder of runs")
    return tables


def title_of(run):
    return f"{run.args.get('task')} by {run.environment.get('command', '?').split()[0]}"


def costs_of(runs):
    """{key of OF_A_RUN: mean over the finished runs, None if not measured}"""
    done = [(run.epochs, run.result) for run in runs if run.result]
    found = [spent(*run) | {"parameters": run[1].get("parameters", {}).get("adapter")} for run in done]
    return {key: mean_std([one[key] for one in found])[0] for key in OF_A_RUN}


def label_of(cell):
    return label(cell["method"], cell.get("r"), cell.get("targets"))


def section_of_table(path, root, runs):
    content, folder = read(path, "table", "cells", "tables"), path.parent.relative_to(root)
    here, entries = {run.path: run for run in runs if run.path.is_relative_to(folder)}, []
    for cell in content["cells"]:
        used = [here[at] for one in cell["runs"] if (at := folder / one.get("folder", "")) in here]
        score = next(iter(cell["mean"]), None)
        values = joined(cell, "scores", score, list) or []  # as in the tables
        costs = {key: joined(cell, "cost", key, JOINED.get(key, statistics.fmean)) for key in AXES}
        costs["parameters"] = cell["parameters"]
        entries.append(Entry(label_of(cell), cell, used, costs, score, values))
    title = f"{content.get('title', content['table'])} ({path.parent.name})"
    return Section(title, content, entries, [*here.values()])


def section_of_runs(title, runs):
    """Runs of one task and script as a table. Those that differ in the seed alone share a row, but the same
    seed again begins another. They are drawn by the first score on the test set, or else of the last epoch.
    """
    entries, rows, columns, groups = [], [], {}, []
    for part, most in (("last", None), ("best", 1), ("test", None)):
        for scores in (run.result.get(part) or {} for run in runs if run.result):
            names = [name for name, value in scores.items() if isinstance(value, float)]
            columns |= dict.fromkeys((part, name) for name in names[:most])
    first = next((one for one in columns if one[0] == "test"), next(iter(columns), (None, None)))
    for alike in grouped(runs, lambda run: str(run.args | {"seed": None})).values():
        by_seed = grouped(alike, lambda run: run.args.get("seed"))
        groups += [[run for run in group if run] for group in zip_longest(*by_seed.values())]
    for group in groups:
        done, costs = [run.result for run in group if run.result], costs_of(group)
        values = {one: [(result.get(one[0]) or {}).get(one[1]) for result in done] for one in columns}
        name, cell = f"{group[0].path}{' …' * (len(group) > 1)}", {"method": "?", "task": "?"} | group[0].args
        drawn = [value for value in values.get(first, ()) if value is not None]
        entries.append(Entry(name, cell, group, costs, first[1], drawn))
        scores = ((one[1], *mean_std(values[one])) for one in columns)
        epochs = ", ".join(map(str, sorted({len(run.epochs) for run in group})))
        row = [name, *starmap(number, scores), label_of(cell), str(cell.get("lr") or "–"), epochs]
        row.append(f"{len(done)} of {len(group)}")
        for key, value in costs.items():
            row.append("–" if value is None else f"{value / AXES[key][0]:,.1f}".removesuffix(".0"))
        rows.append(row)
    header = ["folder", *map(" ".join, columns), "method", "lr", "epochs", "finished"]
    notes = ["Runs that differ only in the seed share a row: mean ± standard deviation."]
    sheet = {"header": header + [AXES[key][1] for key in OF_A_RUN], "rows": rows, "notes": notes}
    return Section(title, {"table": "", "tables": [sheet]}, entries, runs)


# ---- figures


def figure(drawings, title, caption=""):
    caption = f"<figcaption><b>{escape(title)}.</b> {caption}</figcaption>"
    return f'<figure><div class="drawings">{"".join(drawings)}</div>{caption}</figure>' if drawings else ""


def learning_curves(task, entries):
    """A panel for each of a task's entries. The score is the one that the scripts write first."""
    names = (name for entry in entries for run in entry.runs for row in run.epochs for name in row)
    score, curves = next((name for name in names if name not in ("epoch", "step", "train_loss")), ""), []
    factor, digits = unit(score)
    for entry in entries:
        rows, points = [row for run in entry.runs for row in run.epochs if row.get(score) is not None], []
        for epoch, those in sorted(grouped(rows, lambda row: row["epoch"]).items()):
            values = [factor * row[score] for row in those]
            points.append((epoch, min(values), statistics.fmean(values), max(values)))
        if points:
            epoch, _, last, _ = points[-1]
            curves.append(entry.drawn(points, -1, f"{last:.{digits}f} after epoch {epoch}"))
    title = f"{task}: {score} on the development set after each epoch"
    return figure(panels(curves), title, "The line is the mean over seeds, the band their range.")


def with_flops(entries, model):
    """(the entries with Figure 3's FLOPs among their costs, a sentence on them)"""
    config, found = ROBERTA_LARGE, []
    if model == "mini":
        config = read_config(MINI / "roberta", RobertaConfig, *RobertaModel.TYPES)
    tokens, d, layers = min(128, config.max_length), config.hidden_size, config.num_hidden_layers
    for entry in entries:
        method, r, costs = entry.cell["method"], entry.cell["r"], {**entry.costs}
        if method in methods_of(ENCODER):
            costs["step"] = training_step(method, r, config, 1, tokens)
        if method in BUILDING:
            costs["building"] = 2 * layers * building(method, d, d, r)  # q's and v's weights
        if method in ADAPTERS:
            costs["building"] = adapters(method, d, r, layers, tokens)
        found.append(entry._replace(costs=costs))
    name = "mini" if model == "mini" else "roberta-large"
    return found, (
        f" FLOPs: {name}, {tokens} tokens. The paper counts building the adapted weights once, or adapters' "
        "products (Figure 3); torch a step's matrix products and attention."
    )


def printed(table, task, axis, last):
    """The drawing of the paper's points, if PRINTED has them; its averages only beside the `last` task."""
    (column, x_title, scores), found = PRINTED.get((table, axis), ("", "", "")), []
    for key, row in PAPER[table]["rows"].items() if column and (last or not scores) else ():
        row = row | PAPER["table2"]["rows"].get(key, {})
        if column in row and (scores or task) in row:
            mean, *std = map(float, row[scores or task].split(" ± "))
            point = float(row[column]), mean - sum(std), mean, mean + sum(std)
            found.append(Curve(key.replace(":", " r"), [point], "paper"))
    return [scatter(f"The paper's {'average' if scores else task}", x_title, found, True)] if found else []


def against(entries, axis, **look):
    """The entries' scores against one of AXES, if two or more have a cost above 0."""
    known = [entry for entry in entries if entry.values and entry.costs.get(axis) is not None]
    if sum(entry.costs[axis] > 0 for entry in known) < 2:
        return []
    (factor, _), (divisor, x_title, _), curves = unit(known[0].score), AXES[axis], []
    for entry in known:
        mean, std = mean_std([factor * value for value in entry.values])
        ends = mean - (std or 0), mean, mean + (std or 0)
        curves.append(entry.drawn([(entry.costs[axis] / divisor, *ends)]))
    title = f"{known[0].cell['task']}: {known[0].score} ± standard deviation"
    return [scatter(title, x_title, curves, True, **look)]


def over_tasks(entries):
    """The Entries of the means over several tasks."""
    found, n = [], len({entry.cell["task"] for entry in entries})
    groups = grouped(entries, lambda entry: entry.name).values()
    for those in (group for group in groups if 1 < n == len(group)):
        costs = {key: [entry.costs.get(key) for entry in those] for key in AXES}
        costs = {key: AXES[key][2](values) for key, values in costs.items() if None not in values}
        cell = those[0].cell | {"task": f"mean of {n} tasks", "tries": ()}
        values = [*map(statistics.fmean, zip(*(entry.values for entry in those), strict=False))]
        found.append(those[0]._replace(cell=cell, runs=[], costs=costs, values=values))
    return found


def fronts(task, entries, table, last, note):
    """A task's scores against each of AXES, the paper's beside ours."""
    drawings = []
    for axis in AXES:
        drawings += (ours := against(entries, axis))
        drawings += printed(table, task, axis, last) if ours else []
    caption = f"Dotted: the Pareto front, with nothing better to its left.{note}"
    return figure(drawings, f"{task}: scores against what they cost", caption)


def rate_curves(task, entries):
    """A panel of tries for each of a task's entries whose rate was searched."""
    curves = []
    for entry in entries:
        tries, chosen = entry.cell.get("tries", ()), entry.cell.get("lr")
        known = {one["lr"]: one for one in tries if "failed" not in one}
        if known and chosen:
            note = f"{chosen:g}" + ", at the end of the list" * at_the_end(entry.cell)
            note += f", {len(tries) - len(known)} failed" * (len(known) < len(tries))
            points = []
            for lr, one in known.items():
                score = one.get("score")  # E2E's tries have none
                points.append((lr, *3 * [one["loss"] if score is None else unit(entry.score)[0] * score]))
            curves.append(entry.drawn(points, [*known].index(chosen), note))
    title = f"{task}: score (E2E: loss) of all rates that were tried (log scale)"
    return figure(panels(curves, log=True), title, "Large: the chosen one.")


def line_charts(content):
    """The drawings of a table.json's "figures": {"title", "x", "y", "curves": {name: [[x, y], …]}}."""
    drawings = []
    for chart in content.get("figures", ()):
        lines = ((name, [(x, y, y, y) for x, y in points]) for name, points in chart["curves"].items())
        curves = [Curve(*line) for line in lines if line[1]]
        drawings.append(scatter(f"{chart['title']}: {chart['y']}", chart["x"], curves, log_y=True))
    return figure(drawings, content.get("title", ""))


# ---- sections


def paragraphs(texts):
    return "".join(f"<p>{marked(text)}</p>" for text in texts)


def settings(runs, environment):
    """A paragraph for each argument: the values of all runs, if any was given."""
    found = {}
    for arguments, made in [(run.args, run.environment) for run in runs] or [({}, environment)]:
        for key, value in {**arguments, **made.get("versions", {}), **made}.items():
            if value is not None and key not in ("versions", "command"):
                found.setdefault(key.replace("_", "-"), {})[str(value)] = None
    return paragraphs(f"`{key}` {', '.join(values)}" for key, values in found.items())


def draw(section, name):
    """A section: its tables, figures, notes, and what it lacks."""
    title, content, entries, runs = section
    used, flops = content["table"], ""
    if used == "table1":  # whose methods adapt q and v
        entries, flops = with_flops(entries, content.get("settings", {}).get("model"))
    state = [] if content.get("complete", True) else [f"incomplete: {len(entries)} cells"]
    failed = sum("failed" in one for entry in entries for one in (entry.cell, *entry.cell.get("runs", ())))
    state += [f"{failed} failed"] * bool(failed)
    state += [
        f"{run.path}: stopped or running after epoch {len(run.epochs)}" for run in runs if not run.result
    ]
    kind, state = "bad" if state else "good", escape("; ".join(state) or "complete")
    notes = [content["how"]] if "how" in content else []
    summary, *notes = [*notes, *(note for sheet in content["tables"] for note in sheet["notes"])] or [""]
    notes += [f"`{content['command']}`"] if "command" in content else []
    by_task = grouped([*entries, *(over_tasks(entries) if used else ())], lambda entry: entry.cell["task"])
    used_runs = [run for entry in entries for run in entry.runs]
    parts = [
        f'<section id="{name}"><h2>{escape(title)}</h2><p><span class="{kind} badge soft">{state}</span></p>',
        *(table(sheet["header"], sheet["rows"]) for sheet in content["tables"]),
        paragraphs([summary]),
        line_charts(content),
        *(fronts(task, those, used, task == [*by_task][-1], flops) for task, those in by_task.items()),
        details("Rates", "".join(starmap(rate_curves, by_task.items()))),
        details("Learning curves", "".join(starmap(learning_curves, by_task.items())), not used),
        details("The command, and notes", paragraphs(notes)),
        details("Settings and versions", settings(used_runs, content.get("environment", {}))),
        "</section>",
    ]
    return "".join(parts)


# ---- main


def report(sections, root):
    links = (f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    runs = [run for section in sections for run in section.runs]
    missing = sum(not run.result for run in runs)
    head = f"""<h1>HUT beside the methods it is compared with</h1>
<p><code>{escape(str(root))}</code> holds {len(runs)} runs, {missing} incomplete. The columns “paper” and
“paper’s” are the paper’s numbers, on its own models. In all figures, HUT is <b class="hut">orange</b>,
every other method <b class="other">blue</b>, what the papers print grey.</p>
<nav>{"".join(links)}</nav>
"""
    parts = (draw(section, f"s{i}") for i, section in enumerate(sections))
    return page("HUT beside other methods", head + "".join(parts))


def main():
    parser = Parser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", metavar="RUNS", type=Path, help="a folder of tables and runs, at any depth")
    out = "(default: report.html)"
    add("-o", "--out", type=file_to_write, metavar="FILE", default="report.html", help=out)
    args = parser.parse_args()
    save(args.out, report(find(args.runs), args.runs))


if __name__ == "__main__":
    run_as_script(main)
