"""One page about a folder of runs: python -m experiments.report RUNS -o report.html

RUNS holds what experiments/sweep.py and the training scripts have written, at any depth. The figures are
inline SVG. --picture FILE.svg writes a picture for a README instead.
"""

import json
import re
import statistics
from collections import Counter
from html import escape
from pathlib import Path
from typing import NamedTuple

from arguments import Parser, run_as_script
from data import UserError, read_text
from data.hub import MINI
from experiments.drawing import Curve, panels, scatter
from experiments.flops import ADAPTERS, BUILDING, adapters, building, training_step
from experiments.page import DRAWING, details, page, save, table
from experiments.tables import PAPER, TABLES, label, number, unit
from methods import ENCODER, methods_of
from model import ROBERTA_BASE, ROBERTA_LARGE, RobertaConfig, RobertaModel, read_config

RUN_FILES = ("args.json", "metrics.jsonl", "result.json")
TOKENS = 128  # length of the example that Figure 3 counts
AXES = {  # what scores are drawn against: {key of Entry.costs: its title}
    "parameters": "parameters without the head",
    "seconds": "seconds",
    "memory": "peak memory, MiB",
    "building": "FLOPs, as the paper counts",
    "step": "FLOPs of a training step",
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
    place: str
    content: dict  # of its table.json
    entries: list[Entry]
    runs: list[RunFolder]


def mean_and_std(values):
    """None for what they do not have."""
    if not values or None in values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def grouped(things, key):
    """{key of a thing: [things]}, in their order."""
    found = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return found


# ---- reading


def parse(content, where, *keys):
    """`content` as a JSON object with `keys`. Raises UserError if it is anything else."""
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, line {error.lineno}: not JSON: {error.msg}") from None
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise UserError(f"{where}: not a file of this program: no '{missing[0]}' in it")
    return found


def read(path, *keys):
    return parse(read_text(path, "expected a file of this program"), path, *keys)


def read_run(folder, root):
    args, metrics, result = (folder / name for name in RUN_FILES)
    environment = read(args, "args") if args.exists() else {"args": {}}
    rows = read_text(metrics, "expected rows of scores").splitlines() if metrics.exists() else []
    return RunFolder(
        folder.relative_to(root),
        environment.pop("args"),
        environment,
        [parse(row, f"{metrics}:{i}", "epoch", "train_loss") for i, row in enumerate(rows, 1)],
        read(result) if result.exists() else None,
    )


def find(root):
    """The [Section] of all tables, of those that compare the most methods first, and of the other runs."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: expected a folder of runs")
    folders = {path.parent for name in RUN_FILES for path in root.rglob(name)}
    runs = [read_run(folder, root) for folder in sorted(folders)]
    runs = [run for run in runs if "runs" not in (run.result or {})]  # without the summaries of --seeds
    tables = [section_of_table(path, root, runs) for path in sorted(root.rglob("table.json"))]
    tables.sort(key=lambda section: -len({entry.cell["method"] for entry in section.entries}))
    used = {run.path for section in tables for run in section.runs}
    others = [run for run in runs if run.path not in used]
    by_script = grouped(others, lambda run: (str(run.args.get("task")), script_of(run)))
    tables += [section_of_runs(" by ".join(key), those) for key, those in by_script.items()]
    if not tables:
        raise UserError(f"{root}: no table.json, {', '.join(RUN_FILES)} in it: expected a folder of runs")
    return tables


def script_of(run):
    return run.environment.get("command", "a script").split()[0]


def costs_of(runs):
    """{key of AXES: mean} over the finished runs."""
    found = []
    for result in (run.result for run in runs if run.result):
        timing = {"seconds": 0, "peak_memory_bytes": 0} | result.get("timing", {})
        memory = timing["peak_memory_bytes"] / 2**20
        adapter = result.get("parameters", {}).get("adapter", 0)
        found.append({"parameters": adapter, "seconds": timing["seconds"], "memory": memory})
    return {key: statistics.fmean(one[key] for one in found) for key in (found or [{}])[0]}


def floats(scores):
    return [name for name, value in (scores or {}).items() if isinstance(value, float)]


def label_of(found):
    return label(found.get("method", "?"), found.get("r"), found.get("targets"))


def section_of_table(path, root, runs):
    content, folder = read(path, "table", "cells", "tables"), path.parent.relative_to(root)
    here, entries = {run.path: run for run in runs if run.path.is_relative_to(folder)}, []
    for cell in content["cells"]:
        if "runs" not in cell:
            continue  # of Table 2
        paths = [folder / one["folder"] for one in cell["runs"] if "folder" in one]
        used, score = [here[path] for path in paths if path in here], next(iter(cell["mean"]), None)
        values = [
            one["scores"][score] for one in cell["runs"] if one.get("scores", {}).get(score) is not None
        ]
        costs = costs_of(used) | {"parameters": cell["parameters"]}
        entries.append(Entry(label_of(cell), cell, used, costs, score, values))
    return Section(content.get("title", content["table"]), str(folder), content, entries, [*here.values()])


def section_of_runs(title, runs):
    """Runs of one task and script as a table. Those that differ in the seed alone share a row, but the same
    seed again begins another.

    They are drawn by the score on the test set, or else by that of the last epoch.
    """
    times, entries, columns, rows = Counter(), [], {}, []

    def settings(run):
        key = json.dumps(run.args | {"seed": None}, sort_keys=True)
        times[key, run.args.get("seed")] += 1
        return key, times[key, run.args.get("seed")]

    for group in grouped(runs, settings).values():
        results = [run.result for run in group if run.result]
        for part, most in (("last", None), ("best", 1), ("test", None)):
            scores = [name for result in results for name in floats(result.get(part))[:most]]
            columns |= dict.fromkeys((part, score) for score in scores)
        scores = [result.get("test") or result.get("last") or {} for result in results]
        score = next((name for one in scores for name in floats(one)), None)
        values = [one[score] for one in scores if one.get(score) is not None]
        name, cell = f"{group[0].path}{' …' * (len(group) > 1)}", {"method": "?", "task": ""} | group[0].args
        entries.append(Entry(name, cell, group, costs_of(group), score, values))

    percent = ("last", "exact_match") in columns  # SQuAD's scores are in hundredths already
    for name, cell, group, costs, *_ in entries:
        done, row = [run.result for run in group if run.result], [name]
        for part, score in columns:
            values = [(result.get(part) or {}).get(score) for result in done]
            row.append(number("exact_match" if percent else score, *mean_and_std(values)))
        epochs = ", ".join(str(n) for n in sorted({len(run.epochs) for run in group}))
        row += [label_of(cell), f"{cell.get('lr') or '–'}", epochs, f"{len(done)} of {len(group)}"]
        rows.append(row + ([f"{cost:,.0f}" for cost in costs.values()] or ["–"] * 3))
    header = ["folder", *map(" ".join, columns), "method", "lr", "epochs", "finished"]
    notes = ["Runs that differ only in the seed share a row: mean ± standard deviation of those finished."]
    sheet = {"header": [*header, "parameters", "seconds", "MiB"], "rows": rows, "notes": notes}
    return Section(title, f"{len(runs)} runs", {"table": "", "tables": [sheet]}, entries, runs)


# ---- figures


def figure(drawings, caption):
    drawings = f'<div class="drawings">{"".join(drawings)}</div>'
    return f"<figure>{drawings}<figcaption>{caption}</figcaption></figure>"


def learning_curves(entries):
    """A panel for each of a task's entries. The score is the one that the scripts write first."""
    rows = (row for entry in entries for run in entry.runs for row in run.epochs)
    names = (name for row in rows for name in row if name not in ("epoch", "step", "train_loss"))
    score, curves = next(names, ""), []
    factor, digits = unit(score)
    for entry in entries:
        rows = [row for run in entry.runs for row in run.epochs if row.get(score) is not None]
        points = []
        for epoch, those in sorted(grouped(rows, lambda row: row["epoch"]).items()):
            values = [factor * row[score] for row in those]
            points.append((epoch, min(values), statistics.fmean(values), max(values)))
        if points:
            last = f"{points[-1][2]:.{digits}f} after epoch {points[-1][0]}"
            curves.append(entry.drawn(points, -1, last))
    caption = (
        f"<b>{escape(score)} on the development set after each epoch.</b> The line is the mean over seeds, "
        "the band their range. The other panels' lines are grey."
    )
    return figure(panels(curves), caption) if curves else ""


def config_of(model):
    """(name, config) to count FLOPs on: the model that was run, or the paper's if its config is gone."""
    published = {"roberta-base": ROBERTA_BASE, "roberta-large": ROBERTA_LARGE}
    directory = MINI / "roberta" if model == "mini" else model
    try:
        return model, published.get(model) or read_config(directory, RobertaConfig, *RobertaModel.TYPES)
    except (ValueError, OSError):
        return f"roberta-large ({model} has no config.json here)", ROBERTA_LARGE


def paper_count(method, r, config, examples, tokens):
    d, layers = config.hidden_size, config.num_hidden_layers
    if method in BUILDING:
        return 2 * layers * building(method, d, d, r)  # q's and v's weights
    return adapters(method, d, r, layers, examples * tokens) if method in ADAPTERS else None


def with_flops(entries, model):
    """(the entries with Figure 3's FLOPs among their costs, a sentence on what was counted)."""
    (name, config), found = config_of(model or "roberta-large"), []
    tokens = min(TOKENS, config.max_length)
    for entry in entries:
        method, r, counts = entry.cell["method"], entry.cell["r"], {}
        if method in methods_of(ENCODER):
            counts["building"] = paper_count(method, r, config, 1, tokens)
            counts["step"] = training_step(method, r, config, 1, tokens)
        found.append(entry._replace(costs=entry.costs | counts))
    return found, (
        f" FLOPs are those of {escape(name)}, {tokens} tokens. The paper counts building the adapted weights "
        "once for HUT and LoRA, whatever the tokens, and adapters' products (Figure 3). Torch counts the "
        "matrix products and attention of a step, not elementwise work such as HUT's scalings."
    )


def printed(name, task):
    """The points of the paper's Figure 3, as far as its Tables 1 and 2 print them."""
    costs, found = PAPER["table2"]["rows"], []
    for key, row in PAPER[name]["rows"].items() if name == "table1" else ():
        if key in costs and task in row:
            mean, *std = map(float, row[task].split(" ± "))
            low, high = mean - sum(std), mean + sum(std)
            point = (1e9 * float(costs[key]["gflops"]), low, mean, high)
            found.append(Curve(key.replace(":", " r"), [point], "paper"))
    return found


def against(entries, axis, **look):
    """The entries' scores against one of AXES, where two or more have a cost above 0."""
    known = [entry for entry in entries if entry.values and entry.costs.get(axis) is not None]
    if sum(entry.costs[axis] > 0 for entry in known) < 2:
        return []
    (factor, _), curves = unit(known[0].score), []
    for entry in known:
        mean, std = mean_and_std(entry.values)
        ends = mean - (std or 0), mean, mean + (std or 0)
        curves.append(entry.drawn([(entry.costs[axis], *(factor * end for end in ends))]))
    title = f"{known[0].cell['task']}: {known[0].score} ± standard deviation"
    return [scatter(title, AXES[axis], curves, True, **look)]


def fronts(task, entries, table="", note=""):
    """A task's scores against each of AXES with the Pareto front; the paper's points beside ours."""
    drawings = []
    for axis in AXES:
        drawings += (ours := against(entries, axis))
        if ours and axis == "building" and (paper := printed(table, task)):
            drawings.append(scatter(f"{task}, the paper's", AXES[axis], paper, pareto=True))
    caption = (
        "<b>Scores against what they cost.</b> Dotted: the Pareto front; nothing to the left of it scores as "
        f"high.{note}"
    )
    return figure(drawings, caption) if drawings else ""


def picture(sections):
    """The SVG of --picture: score against parameters, for the first task of the first section that has it."""
    style = f'<style>{DRAWING}</style><rect width="720" height="380" fill="var(--paper)"/>'
    for section in sections:
        first = [one for one in section.entries if one.cell["task"] == section.entries[0].cell["task"]]
        if drawn := against(first, "parameters", width=720, height=380, style=style):
            return drawn[0]
    raise UserError("--picture: expected the scores of two methods in RUNS")


def rate_curves(entries):
    """A panel for each of a task's entries whose rate was searched, with its tries."""
    curves = []
    for entry in entries:
        tries, chosen = sorted(entry.cell.get("tries", ()), key=lambda one: one["lr"]), entry.cell.get("lr")
        points = [(one["lr"], *3 * [one["score"]]) for one in tries if one.get("score") is not None]
        if points and chosen:
            note = f"{chosen:g}" + ", at the end of the list" * (chosen in (tries[0]["lr"], tries[-1]["lr"]))
            failed = [one["lr"] for one in tries if "failed" in one]
            curves.append(entry.drawn(points, [lr for lr, *_ in points].index(chosen), note, failed))
    caption = (
        "<b>All rates that were tried: score against rate (log scale).</b> The large dot is the chosen one, "
        "× one that failed. The other panels' lines are grey."
    )
    return figure(panels(curves, log=True), caption) if curves else ""


# ---- sections


def paragraph(words):
    """Plain words as HTML, in which `code` is marked."""
    return "<p>" + re.sub("`(.+?)`", r"<code>\1</code>", escape(words)) + "</p>"


def settings_table(runs, environment):
    """All values of each argument in the runs' args.json, without arguments that no run was given."""
    found = {}
    for arguments, made in [(run.args, run.environment) for run in runs] or [({}, environment)]:
        versions = made.get("versions", {}) | {key: made.get(key) for key in ("device", "threads", "git")}
        for key, value in (arguments | versions).items():
            if value is not None:
                found.setdefault(key.replace("_", "-"), []).append(str(value))
    rows = [[key, ", ".join(dict.fromkeys(values))] for key, values in found.items()]
    return table(["", "value, or all the values"], rows, words=2) if rows else ""


def draw(section, name):
    """A section: its table, figures and notes, and what it lacks."""
    title, place, content, entries, runs = section
    used, note = content["table"], ""
    if used in TABLES and TABLES[used].script.layout == ENCODER:
        entries, note = with_flops(entries, content.get("settings", {}).get("model"))
    state = [] if content.get("complete", True) else [f"incomplete: {len(entries)} cells"]
    parts = [one for entry in entries for one in (entry.cell, *entry.cell.get("runs", ())) if "failed" in one]
    state += [f"{len(parts)} failed"] * bool(parts)
    state += [
        f"{run.path}: stopped or running after epoch {len(run.epochs)}" for run in runs if not run.result
    ]
    badge = (
        f'<span class="{"bad" if state else "good"} badge">{escape("; ".join(state) or "complete")}</span>'
    )

    summary, *notes = [paragraph(note) for sheet in content["tables"] for note in sheet["notes"]] or [""]
    notes += [paragraph(f"`{content['command']}`")] if "command" in content else []
    by_task = grouped(entries, lambda entry: entry.cell["task"])
    settings = settings_table(
        [run for entry in entries for run in entry.runs], content.get("environment", {})
    )
    parts = [
        f'<section id="{name}"><h2>{escape(title)}</h2>',
        f'<p class="soft"><code>{escape(place)}</code> {badge}</p>',
        *(table(sheet["header"], sheet["rows"]) for sheet in content["tables"]),
        summary,
        *(fronts(task, those, used, note) for task, those in by_task.items()),
        details("Rates", "".join(map(rate_curves, by_task.values()))),
        details("Learning curves", "".join(map(learning_curves, by_task.values())), not used),
        details("The command, and notes", "".join(notes)),
        details("Settings and versions", settings),
        "</section>",
    ]
    return "".join(parts)


# ---- main


def report(sections, root):
    links = (f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    runs = [run for section in sections for run in section.runs]
    missing = sum(not run.result for run in runs)
    state = f'<span class="bad">{missing} incomplete</span>' if missing else "none incomplete"
    head = f"""<h1>HUT beside the methods it is compared with</h1>
<p><code>{escape(str(root))}</code> holds {len(runs)} runs, {state}. The columns “paper” and “paper’s” are
the paper’s numbers, on its own models. Everything else was run. In all figures, HUT is
<b class="hut">orange</b>, every other method <b class="other">blue</b>, what the papers print grey.</p>
<nav>{"".join(links)}</nav>
"""
    parts = (draw(section, f"s{i}") for i, section in enumerate(sections))
    return page("HUT beside other methods", head + "".join(parts))


def main():
    parser = Parser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", metavar="RUNS", type=Path, help="a folder of tables and runs, at any depth")
    add("-o", "--out", metavar="FILE", type=Path, default="report.html", help="(default: report.html)")
    add("--picture", metavar="FILE.svg", type=Path, help="write score against parameters as SVG instead")
    args = parser.parse_args()
    sections = find(args.runs)
    content = picture(sections) if args.picture else report(sections, args.runs)
    save("--picture" if args.picture else "-o", args.picture or args.out, content)


if __name__ == "__main__":
    run_as_script(main)
