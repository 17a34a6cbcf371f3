"""One page about a folder of runs: python -m experiments.report RUNS -o report.html

RUNS holds what experiments/sweep.py and the training scripts have written, at any depth. The figures are
inline SVG. --picture FILE.svg writes a picture for a README instead.
"""

import json
import math
import re
import statistics
from html import escape
from pathlib import Path
from typing import NamedTuple

from arguments import Parser, run_as_script
from data import UserError, glue, read_text
from data.hub import MINI
from experiments import flops
from experiments.page import DRAWING, details, page, save, table
from experiments.tables import label, number, unit
from model import ROBERTA_BASE, ROBERTA_LARGE, RobertaConfig, RobertaModel, read_config

MAIN_SCORES = {name: task.scores[0] for name, task in glue.TASKS.items()} | {"e2e": "BLEU"}
RUN_FILES = ("args.json", "metrics.jsonl", "result.json")
TOKENS = 128  # length of the example that Figure 3 counts
CHARACTER, LINE = 6.3, 14  # width and height of the figures' 11 px text, in pixels


class RunFolder(NamedTuple):
    path: Path  # under RUNS
    args: dict
    environment: dict  # the rest of args.json: versions, device, …
    epochs: list[dict]  # the rows of metrics.jsonl
    result: dict | None  # result.json; None if the run has not finished


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
    """The tables, [(folder, content of its table.json)], and the [RunFolder] under `root`.

    The tables that compare the most methods come first.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: expected a folder of runs")
    paths = sorted(root.rglob("table.json"))
    tables = [(path.parent.relative_to(root), read(path, "table", "cells", "tables")) for path in paths]
    tables.sort(key=lambda found: (-len(methods_of(found[1])), found[1]["table"]))
    for _, content in tables:
        content.setdefault("title", content["table"])
    folders = {path.parent for name in RUN_FILES for path in root.rglob(name)}
    runs = [read_run(folder, root) for folder in sorted(folders)]
    runs = [run for run in runs if "runs" not in (run.result or {})]  # without the summaries of --seeds
    if not tables and not runs:
        raise UserError(f"{root}: no table.json, {', '.join(RUN_FILES)} in it: expected a folder of runs")
    return tables, runs


def methods_of(content):
    return {cell["method"] for cell in content["cells"] if "runs" in cell}


def unfinished(runs):
    return [run for run in runs if run.result is None]


def counted(n, words):
    return [f"{n} {words}"] if n else []


def is_complete(content):
    return content.get("complete", True)


def scored_cells(content):
    """A table's cells that hold the main score of a task of GLUE, or of E2E."""
    return [c for c in content["cells"] if c.get("mean", {}).get(MAIN_SCORES.get(c.get("task"))) is not None]


# ---- drawing


class Axis:
    """Maps values to pixels from `start` to `end`, with some room on both sides."""

    def __init__(self, values, start, end, log=False):
        self.start, self.end, self.log = start, end, log
        low, high = self.scaled(min(values)), self.scaled(max(values))
        room = max(0.07 * (high - low), 0.2) if log else 0.07 * (high - low) or 0.05 * abs(high) or 1
        self.low, self.high = low - room, high + room

    def scaled(self, value):
        return math.log10(value) if self.log else value

    def __call__(self, value):
        share = (self.scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self):
        """Up to five round numbers, on a logarithmic axis 1, 2 and 5 times powers of ten, or these alone."""
        if self.log:
            powers = [10**i for i in range(math.floor(self.low), math.ceil(self.high))]
            found = [m * p for p in powers for m in (1, 2, 5) if self.low <= math.log10(m * p) <= self.high]
            return found if len(found) <= 5 else [value for value in found if value in powers]
        power = 10 ** math.floor(math.log10((self.high - self.low) / 5))
        step = next(m * power for m in (1, 2, 5, 10) if (self.high - self.low) / (m * power) <= 5)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points, kind, tag="polyline"):
    return f'<{tag} class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def dot(x, y, kind, radius=4):
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def svg(width, height, name, parts):
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(name)}"'
    return f"<svg {head}>{''.join(parts)}</svg>"


def grid(x, x_ticks, y, bottom):
    """The numbers of both axes, and a faint line at each of y's."""
    parts = [text(x(v), bottom + 14, f"{v:,.9g}", "mute", "middle") for v in x_ticks]
    for v in y.ticks():
        parts.append(line([(x.start, y(v)), (x.end, y(v))], "rule"))
        parts.append(text(x.start - 5, y(v) + 4, f"{v:g}", "mute", "end"))
    return parts


def scatter(title, x_title, points, width=480, height=290, log=False, style=""):
    """A dot for each (name, x, mean, std), with a bar of ± std; where x is None, a dashed line instead.

    The names stand in a column to the right, the best score on top. A line joins each to its dot.
    """
    column = width - CHARACTER * max(len(name) for name, *_ in points)
    left, top, right, bottom = 40, 28, column - 30, height - 34
    x = Axis([value for _, value, _, _ in points if value is not None], left, right, log)
    y = Axis([end for *_, mean, std in points for end in (mean - std, mean + std)], bottom, top)
    points = sorted(points, key=lambda point: -point[2])
    parts = [style, text(2, 12, title, "name"), *grid(x, x.ticks(), y, bottom)]
    parts.append(text((left + right) / 2, height - 4, x_title, "mute", "middle"))
    name_y, dots = 0, []
    for below, (name, value, mean, std) in zip(range(len(points))[::-1], points, strict=True):
        kind, at_x, at_y = kind_of(name), right if value is None else x(value), y(mean)
        name_y = min(max(at_y, name_y + LINE), bottom - LINE * below)  # with room for the names below
        parts.append(line([(at_x, at_y), (column - 4, name_y)], f"leader {kind}"))
        parts.append(text(column, name_y + 4, name, f"label {kind}"))
        if value is None:
            parts.append(line([(left, at_y), (right, at_y)], f"level {kind}"))
        else:
            parts.append(line([(at_x, y(mean - std)), (at_x, y(mean + std))], f"bar {kind}"))
            dots.append(dot(at_x, at_y, kind))
    return svg(width, height, f"{title}: {x_title}", parts + dots)


# ---- figures


def figure(drawings, caption):
    drawings = f'<div class="drawings">{"".join(drawings)}</div>'
    return f"<figure>{drawings}<figcaption>{caption}</figcaption></figure>"


def label_of(entry):
    return label(entry.get("method", "?"), entry.get("r"), entry.get("targets"))


def kind_of(name):
    return "hut" if name.split()[0] == "hut" else "other"


def score_of(run):
    """The score that a run is followed by, None before its first epoch. The scripts write it first."""
    names = run.epochs[0] if run.epochs else ()
    return next((name for name in names if name not in ("epoch", "step", "train_loss")), None)


def curve(runs, score):
    """[(epoch, lowest, mean, highest)] of a score over the runs, as it is shown."""
    values, (factor, _) = {}, unit(score)
    for row in (row for run in runs for row in run.epochs if row.get(score) is not None):
        values.setdefault(row["epoch"], []).append(factor * row[score])
    return [(epoch, min(v), statistics.fmean(v), max(v)) for epoch, v in sorted(values.items())]


def panel(name, curves, x, y, digits):
    """One curve with its band, and the others behind it in grey."""
    rows, kind = curves[name], kind_of(name)
    means = {key: [(x(e), y(mean)) for e, _, mean, _ in found] for key, found in curves.items()}
    band = [(x(e), y(high)) for e, _, _, high in rows] + [(x(e), y(low)) for e, low, _, _ in reversed(rows)]
    last = f"{rows[-1][2]:.{digits}f}"
    parts = grid(x, sorted({rows[0][0], rows[-1][0]}), y, y.start)
    parts += [line(points, "ghost") for key, points in means.items() if key != name]
    parts += [line(band, f"band {kind}", "polygon"), line(means[name], f"curve {kind}")]
    parts += [dot(*means[name][-1], kind, 3), text(2, 12, name, "name"), text(x.end, 12, last, "", "end")]
    return svg(232, 144, f"{name}: {last} after epoch {rows[-1][0]}", parts)


def learning_curves(groups):
    """The figures of {task: {label: [RunFolder]}}: one a task, with a panel a label."""
    figures = []
    for task, labelled in groups.items():
        score = next((score_of(run) for runs in labelled.values() for run in runs if run.epochs), None)
        curves = {name: rows for name, runs in labelled.items() if (rows := curve(runs, score))}
        if not curves:
            continue
        factor, digits = unit(score)
        rows = [row for rows in curves.values() for row in rows]
        x, y = Axis([row[0] for row in rows], 36, 226), Axis([v for row in rows for v in row[1:]], 126, 24)
        caption = (
            f"<b>{escape(task)}: {escape(score)} on the development set after each epoch"
            f"{', in hundredths' * (factor == 100)}.</b> The line is the mean over seeds, the band their "
            "range. The other panels' lines are grey."
        )
        if len(curves) > 1:
            choose, word = (min, "lowest") if score == "loss" else (max, "highest")
            best = choose(curves, key=lambda name: curves[name][-1][2])
            low, mean, high = (f"{value:.{digits}f}" for value in curves[best][-1][1:])
            caption += (
                f" {escape(best)} ends {word}: {mean}, with seeds from {low} to {high}. A method whose band "
                "reaches into that range is not clearly worse."
            )
        figures.append(figure([panel(name, curves, x, y, digits) for name in curves], caption))
    return figures


def config_of(model):
    """(name, config) to count GFLOPs on: the model that was run, or the paper's if its config is gone."""
    if published := {"roberta-base": ROBERTA_BASE, "roberta-large": ROBERTA_LARGE}.get(model):
        return model, published
    try:
        directory = MINI / "roberta" if model == "mini" else model
        return model, read_config(directory, RobertaConfig, *RobertaModel.TYPES)
    except (ValueError, OSError):
        return f"roberta-large ({model} has no config.json here)", ROBERTA_LARGE


def paper_count(method, r, config, examples, tokens):
    d, layers = config.hidden_size, config.num_hidden_layers
    if method in flops.BUILDING:
        return 2 * layers * flops.building(method, d, d, r)  # q's and v's weights
    return flops.adapters(method, d, r, layers, examples * tokens) if method in flops.ADAPTERS else None


COUNTS = {  # Figure 3's x axes: {title: (function, caption)}
    "GFLOPs, as the paper counts": (
        paper_count,
        "Score against the paper's count.</b> For HUT and LoRA that is building the adapted weights once, "
        "whatever the number of tokens. For adapters it is their products. Other methods have none.",
    ),
    "GFLOPs of a training step": (
        flops.training_step,
        "Score against a whole training step.</b> Torch counts matrix products and attention, forward and "
        "backward, but not elementwise work such as HUT's scalings. Methods left of full save the gradients "
        "of the weights themselves.",
    ),
}


def point(cell, x):
    """A cell as `scatter` draws it."""
    score = MAIN_SCORES[cell["task"]]
    return label_of(cell), x, 100 * cell["mean"][score], 100 * (cell["std"][score] or 0)


def figure_3(content):
    """The paper's Figure 3, score against FLOPs, if several methods are scored on GLUE."""
    cells = [cell for cell in scored_cells(content) if cell["task"] in glue.TASKS]
    sizes = {(cell["method"], cell["r"]) for cell in cells}
    if len({method for method, _ in sizes}) < 2:
        return []
    name, config = config_of(content.get("settings", {}).get("model") or "roberta-large")
    tokens, figures = min(TOKENS, config.max_length), []
    for x_title, (count, caption) in COUNTS.items():
        counts, points = {size: count(*size, config, 1, tokens) for size in sizes}, {}
        for cell in cells:
            if (counted := counts[cell["method"], cell["r"]]) is not None:
                points.setdefault(cell["task"], []).append(point(cell, counted / 1e9))
        drawings = [scatter(task, x_title, of_task) for task, of_task in points.items()]
        caption += f" Counted on {escape(name)}, {tokens} tokens. Bars: ± one standard deviation over seeds."
        figures += [figure(drawings, f"<b>Figure 3. {caption}")] if drawings else []
    return figures


def picture(tables):
    """The SVG of --picture: score against trained parameters, for the first task of the first scored table.

    Methods that train at most a head are dashed lines.
    """
    scored = (scored_cells(content) for _, content in tables)
    cells = next((cells for cells in scored if any(cell["parameters"] for cell in cells)), None)
    if not cells:
        raise UserError("--picture: expected a table.json with scores of GLUE or E2E in RUNS")
    task = cells[0]["task"]
    points = [point(cell, cell["parameters"] or None) for cell in cells if cell["task"] == task]
    title = f"{task}: {MAIN_SCORES[task]} in hundredths, ± one standard deviation over seeds"
    x_title = "trained parameters, without the head (log scale)"
    style = f'<style>{DRAWING}</style><rect width="720" height="380" fill="var(--paper)"/>'
    return scatter(title, x_title, points, 720, 380, log=True, style=style)


def r_finding(content):
    """Figures of a table with `spread`: a drawing a task, with a dot for each r and each seed."""
    most_seeds = max(content["cells"], key=lambda cell: len(cell.get("seeds", ())), default={"r": None})
    drawings = []
    caption = f"<b>Score against r.</b> Orange: each r at seed 0. Blue: each seed at r = {most_seeds['r']}."
    for task, groups in content.get("spread", {}).items():
        of_r, of_seeds = groups["r"]["scores"], groups["seeds"]["scores"]
        points = [(f"hut r{r}", int(r), 100 * score, 0) for r, score in of_r.items()]
        points += [(f"seed {seed}", most_seeds["r"], 100 * score, 0) for seed, score in of_seeds.items()]
        if points:
            drawings.append(scatter(task, "r (log scale)", points, log=True))
        r_range, seed_range = groups["r"]["range"], groups["seeds"]["range"]
        if None not in (r_range, seed_range):
            more = "no more" if r_range <= seed_range else "more"
            caption += (
                f" On {escape(task)}, r moves the score by {100 * r_range:.1f} ({len(of_r)} values of r), "
                f"the seed by {100 * seed_range:.1f} ({len(of_seeds)} seeds): r moves it {more} than the "
                "seed does."
            )
    return [figure(drawings, caption)] if drawings else []


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


def section(number, title, place, state, *content):
    badge = f'<span class="{"bad" if state else "good"} badge">{escape(state or "complete")}</span>'
    head = f'<h2>{escape(title)}</h2><p class="soft"><code>{escape(place)}</code> {badge}</p>'
    return f'<section id="s{number}">{head}{"".join(content)}</section>'


def about_runs(runs, groups, environment, is_open):
    """A section's unfinished runs, the curves of `groups`, and the settings."""
    parts = []
    for run in unfinished(runs):
        of = f" of {run.args['epochs']}" if run.args.get("epochs") else ""
        state = f"Incomplete: {run.path}: stopped or running, {len(run.epochs)}{of} epochs done"
        parts.append(f'<p class="bad">{escape(state)}</p>')
    parts.append(details("Learning curves", "".join(learning_curves(groups)), is_open))
    used = [run for labelled in groups.values() for group in labelled.values() for run in group]
    parts.append(details("Settings and versions", settings_table(used, environment)))
    return "".join(parts)


def table_section(number, folder, content, runs):
    """A sweep's table, its figures and notes, and what it lacks."""
    here = {run.path: run for run in runs if run.path.is_relative_to(folder)}
    cells = [cell for cell in content["cells"] if "runs" in cell]
    groups, failed, single_class = {}, 0, 0
    for cell in cells:
        folders = [folder / one["folder"] for one in cell["runs"] if "folder" in one]
        groups.setdefault(cell["task"], {})[label_of(cell)] = [here[path] for path in folders if path in here]
        failed += max(sum("failed" in one for one in cell["runs"]), "failed" in cell)
        single_class += sum(bool(one.get("scores", {}).get("single_class")) for one in cell["runs"])
    state, missing = [], len(unfinished(here.values()))
    if not is_complete(content):
        settings = content.get("settings", {})
        whole = len(settings.get("rows", ())) * len(settings.get("tasks", ()))
        state.append(f"incomplete: {len(cells)} of {whole} cells" if whole else "incomplete")
    bad = counted(failed, "failed")
    state += bad + counted(missing, f"incomplete run{'s' * (missing > 1)}")
    bad += counted(single_class, "predicting a single class")

    tables = [table(found["header"], found["rows"]) for found in content["tables"]]
    summary, *notes = [paragraph(note) for found in content["tables"] for note in found["notes"]] or [""]
    notes += [paragraph(f"`{content['command']}`")] if "command" in content else []
    return section(
        number,
        content["title"],
        str(folder),
        "; ".join(state),
        *r_finding(content),
        *tables,
        summary,
        *figure_3(content),
        details("The command, and notes" + (f" ({', '.join(bad)})" if bad else ""), "".join(notes)),
        about_runs(here.values(), groups, content.get("environment", {}), len(methods_of(content)) > 1),
    )


def over_runs(runs, part, score):
    """The text "mean ± std" of a score in `part` of the runs' result.json, – where a run lacks it."""
    values = [(run.result.get(part) or {}).get(score) for run in runs]
    if not values or None in values:
        return "–"
    return number(score, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def runs_section(number, runs):
    """Runs that belong to no table. Those that differ only in the seed share a line."""
    alike, rows, groups = {}, [], {}
    for run in runs:
        key = json.dumps({k: v for k, v in run.args.items() if k != "seed"}, sort_keys=True)
        alike.setdefault(key, []).append(run)
    for i, group in enumerate(alike.values(), 1):
        first, done = group[0], [run for run in group if run.result is not None]
        task, score = str(first.args.get("task")), score_of(first)
        name = f"{label_of(first.args)} ({i})"
        groups.setdefault(task, {})[name] = group
        folders = str(first.path) + (f" … {group[-1].path.name}" if len(group) > 1 else "")
        state = "finished" if len(done) == len(group) else f"incomplete: {len(done)} of {len(group)}"
        counts = (f"{run.result['parameters']['adapter']:,}" for run in done if "parameters" in run.result)
        row = [folders, name, f"{task} {score or ''}", state, next(counts, "–")]
        row.append(str(first.args.get("lr") or "–"))
        ends = (("best", score), ("last", score), ("test", "BLEU"))
        rows.append(row + [over_runs(done, part, of_part) for part, of_part in ends])
    header = ["folder", "method", "score", "state", "parameters", "lr", "best", "last epoch", "test BLEU"]
    missing = len(unfinished(runs))
    return section(
        number,
        "Other runs",
        f"{len(runs)} run folder{'s' if len(runs) > 1 else ''} outside of tables",
        f"{missing} of {len(runs)} incomplete" if missing else "",
        table(header, rows, words=4),
        "<p>Mean ± standard deviation over the finished runs that differ only in the seed.</p>",
        about_runs(runs, groups, {}, is_open=True),
    )


# ---- main


def report(tables, runs, root):
    sections = [table_section(i, *found, runs) for i, found in enumerate(tables)]
    titles = [content["title"] for _, content in tables]
    others = [run for run in runs if not any(run.path.is_relative_to(folder) for folder, _ in tables)]
    if others:
        sections.append(runs_section(len(tables), others))
        titles.append("Other runs")
    links = "".join(f'<a href="#s{i}">{escape(title)}</a>' for i, title in enumerate(titles))
    missing = len(unfinished(runs)) + sum(not is_complete(content) for _, content in tables)
    state = f'<span class="bad">{missing} incomplete</span>' if missing else "none incomplete"
    head = f"""<h1>HUT beside the methods it is compared with</h1>
<p><code>{escape(str(root))}</code> holds {len(tables)} tables and {len(runs)} runs, {state}. The columns
“paper” and “paper’s” are the paper’s numbers, on its own models. Everything else was run. In all figures, HUT
is <b class="hut">orange</b> and every other method <b class="other">blue</b>.</p>
<nav>{links}</nav>
"""
    return page("HUT beside other methods", head + "".join(sections))


def main():
    parser = Parser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", metavar="RUNS", type=Path, help="a folder of tables and runs, at any depth")
    add("-o", "--out", metavar="FILE", type=Path, default="report.html", help="(default: report.html)")
    add("--picture", metavar="FILE.svg", type=Path, help="write score against parameters as SVG instead")
    args = parser.parse_args()
    tables, runs = find(args.runs)
    content = picture(tables) if args.picture else report(tables, runs, args.runs)
    save("--picture" if args.picture else "-o", args.picture or args.out, content)


if __name__ == "__main__":
    run_as_script(main)
