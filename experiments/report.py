"""One page to look at: python -m experiments.report RUNS -o report.html

RUNS is a folder of what experiments/sweep.py and the training scripts have written, at any depth. The page needs nothing
else: figures are inline SVG. From top to bottom: reading, drawing, the figures, the sections of the page, main.
"""

import json
import math
import re
import statistics
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from data import UserError, read_text
from data.hub import MINI
from experiments import flops
from metrics import GLUE_SCORES
from model import ROBERTA_BASE, ROBERTA_LARGE, RobertaConfig, read_config
from training import Parser, run_as_script, write_text

TITLES = {
    "table1": "Table 1 and Figure 3: the methods on GLUE",
    "table2": "Table 2: what it costs to compute",
    "table3": "Table 3: the methods on E2E",
    "table4": "Table 4: where HUT is applied",
    "table5": "Table 5: r, and where",
    "rank": "What r does",
    "read": "READ and what it is compared with, on T5",
}
TOKENS = 128  # of the example that Figure 3 counts
FONT = (6.3, 13)  # width of a character and height of a line of the figures' 11 px text, or a little more


class Run(NamedTuple):
    """A run folder: its place under RUNS, args.json, metrics.jsonl's rows, and result.json, None if it is incomplete."""

    name: str
    args: dict
    environment: dict
    epochs: list
    result: dict | None


# ------------------------------------------------------------------------------------------------ reading


def parse(text, where, *keys):
    """The JSON object `text`, which must have `keys`. Raises UserError, with the place, if it is something else."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, line {error.lineno}: not JSON: {error.msg}; mend it or take it away"
        ) from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{where}: not a file of this program: it has no '{missing[0]}'; take it away")
    return content


def read(path, *keys):
    return parse(read_text(path, "expected a file of this program"), path, *keys)


def read_run(folder, root):
    args = read(folder / "args.json", "args") if (folder / "args.json").exists() else {"args": {}}
    rows, metrics = [], folder / "metrics.jsonl"
    if metrics.exists():
        lines = enumerate(read_text(metrics, "expected a file of this program").splitlines(), 1)
        rows = [parse(line, f"{metrics}:{i}", "epoch", "train_loss") for i, line in lines]
    result = read(folder / "result.json") if (folder / "result.json").exists() else None
    settings = args.pop("args") or {
        key: (result or {}).get(key) for key in ("task", "method", "r", "targets", "seed")
    }
    return Run(folder.relative_to(root).as_posix(), settings, args, rows, result)


def find(root):
    """([(folder, table.json's content)], [Run]) under `root`. Raises UserError if there is nothing, or it is damaged."""
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder: expected one that experiments/sweep.py or a training script wrote into"
        )
    order = [*TITLES]
    tables = [
        (path.parent, read(path, "table", "cells", "markdown")) for path in sorted(root.rglob("table.json"))
    ]
    tables.sort(
        key=lambda found: order.index(found[1]["table"]) if found[1]["table"] in TITLES else len(order)
    )
    names = ("args.json", "metrics.jsonl", "result.json")
    runs = [
        read_run(folder, root)
        for folder in sorted({path.parent for name in names for path in root.rglob(name)})
    ]
    runs = [run for run in runs if "runs" not in (run.result or {})]  # the result.json above those of --seeds
    if not tables and not runs:
        raise UserError(
            f"{root}: no table.json, args.json, metrics.jsonl or result.json in it: expected a folder of runs"
        )
    return tables, runs


# ------------------------------------------------------------------------------------------------ drawing


def limits(values):
    """The least and the greatest of `values`, with some room."""
    low, high = min(values), max(values)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1
    return low - room, high + room


def scale(low, high, start, end):
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low, high, most):
    """Round numbers from `low` to `high`, `most` or fewer."""
    unit = 10 ** math.floor(math.log10((high - low) / most))
    step = next(m * unit for m in (1, 2, 5, 10) if (high - low) / (m * unit) <= most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points, kind):
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def dot(x, y, kind, radius=4):
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def svg(width, height, name, parts):
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px"'
    return f'<svg {size} role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def grid(x_ticks, x, y_ticks, y, box):
    """Axis numbers below and to the left of `box` (left, top, right, bottom), with a faint line at each of y's."""
    left, _, right, bottom = box
    parts = [
        line([(left, y(v)), (right, y(v))], "rule") + text(left - 5, y(v) + 4, f"{v:g}", "mute", "end")
        for v in y_ticks
    ]
    return [*parts, *(text(x(v), bottom + 14, f"{v:g}", "mute", "middle") for v in x_ticks)]


def apart(positions, gap):
    """`positions` moved as little as is simple, so that neighbours are `gap` apart; in the order given."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = [positions[i] for i in order]
    for _ in range(200):
        for i, (a, b) in enumerate(pairwise(moved)):
            if b - a < gap:
                moved[i], moved[i + 1] = (a + b - gap) / 2, (a + b + gap) / 2
    return [moved[order.index(i)] for i in range(len(order))]


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place(points, labels, box):
    """A rectangle (left, top, right, bottom) in `box` for each label: near its point, over no other label or point."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    found = []
    for (x, y), label in zip(points, labels, strict=True):
        w, h = FONT[0] * len(label) / 2, FONT[1] / 2
        angles = [math.pi * k / 8 for k in (0, 8, 12, 4, 15, 1, 9, 7, 14, 2, 10, 6, 13, 3, 11, 5)]
        middles = [
            (x + (reach + w) * math.cos(a), y + (reach + h) * math.sin(a))
            for reach in range(7, 400, 6)
            for a in angles
        ]
        boxes = [(mx - w, my - h, mx + w, my + h) for mx, my in middles]
        inside = [b for b in boxes if box[0] <= b[0] and box[1] <= b[1] and b[2] <= box[2] and b[3] <= box[3]]
        found.append(next((b for b in inside if not any(overlap(b, other) for other in taken)), boxes[0]))
        taken.append(found[-1])
    return found


# ------------------------------------------------------------------------------------------------ figures


def figure(drawings, caption):
    return (
        f'<figure><div class="drawings">{"".join(drawings)}</div><figcaption>{caption}</figcaption></figure>'
    )


def named(entry):
    """hut, 8, qv -> "hut r8 qv", as the tables have it."""
    return " ".join(
        [
            entry["method"],
            *([f"r{entry['r']}"] if entry.get("r") else []),
            *filter(None, [entry.get("targets")]),
        ]
    )


def kind_of(name):
    return "hut" if name.split()[0] == "hut" else "other"


def curve(runs, score, factor=1):
    """[(epoch, lowest, mean, highest)] of a score over the runs that have it."""
    values = {}
    for run in runs:
        for row in run.epochs:
            if row.get(score) is not None:
                values.setdefault(row["epoch"], []).append(factor * row[score])
    return [(epoch, min(v), statistics.fmean(v), max(v)) for epoch, v in sorted(values.items())]


def panel(name, curves, x_limits, y_limits, digits):
    """The curve `name` with its band, the others behind it in grey."""
    box = (36, 24, 226, 126)
    x, y = scale(*x_limits, box[0] + 4, box[2] - 6), scale(*y_limits, box[3], box[1])
    epochs = sorted({round(e) for e in ticks(*x_limits, 5) if e == round(e)} or {x_limits[1]})
    parts = grid(epochs, x, ticks(*y_limits, 4), y, box)
    for other, rows in curves.items():
        if other != name:
            parts.append(line([(x(e), y(mean)) for e, _, mean, _ in rows], "ghost"))
    rows, kind = curves[name], kind_of(name)
    edge = [(x(e), y(high)) for e, _, _, high in rows] + [(x(e), y(low)) for e, low, _, _ in reversed(rows)]
    parts.append(f'<polygon class="band {kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in edge)}"/>')
    parts.append(line([(x(e), y(mean)) for e, _, mean, _ in rows], f"curve {kind}"))
    parts.append(dot(x(rows[-1][0]), y(rows[-1][2]), kind, 3))
    parts += [text(2, 12, name, "name"), text(box[2], 12, f"{rows[-1][2]:.{digits}f}", "", "end")]
    return svg(232, 144, f"{name}: {rows[-1][2]:.{digits}f} after epoch {rows[-1][0]}", parts)


def learning_curves(groups):
    """Of {task: {name: [Run]}}, a figure a task: a panel a name."""
    figures = []
    for task, named_runs in groups.items():
        rows = [row for runs in named_runs.values() for run in runs for row in run.epochs]
        if not rows:
            continue
        score = next(
            key for key in rows[0] if key not in ("epoch", "step", "train_loss")
        )  # the scripts' main one
        factor, digits = (1, 3) if score == "loss" else (100, 1)
        curves = {name: found for name, runs in named_runs.items() if (found := curve(runs, score, factor))}
        if not curves:
            continue
        y_limits = limits([v for rows in curves.values() for row in rows for v in row[1:]])
        epochs = [row[0] for rows in curves.values() for row in rows]
        x_limits = (min(epochs), max(epochs)) if len(set(epochs)) > 1 else (epochs[0] - 1, epochs[0])
        best = (min if score == "loss" else max)(curves, key=lambda name: curves[name][-1][2])
        _, low, mean, high = curves[best][-1]
        many = (
            f" {escape(best)} ends {'lowest' if score == 'loss' else 'highest'}: {mean:.{digits}f}, its seeds from "
            f"{low:.{digits}f} to {high:.{digits}f}; a method whose band reaches into that is not clearly worse."
        )
        figures.append(
            figure(
                [panel(name, curves, x_limits, y_limits, digits) for name in curves],
                f"<b>{escape(task)}: {escape(score)} on the development set after each epoch"
                f"{'' if score == 'loss' else ', in hundredths'}.</b> The line is the mean over seeds, the band goes from "
                f"the lowest seed to the highest; in grey the other panels' lines.{many if len(curves) > 1 else ''}",
            )
        )
    return figures


def config_of(model):
    """(name, config) that GFLOPs are counted on: the model that was run, or the paper's if its config.json is not here."""
    published = {None: ROBERTA_LARGE, "roberta-large": ROBERTA_LARGE, "roberta-base": ROBERTA_BASE}
    if model in published:
        return model or "roberta-large", published[model]
    try:
        return model, read_config(MINI / "roberta" if model == "mini" else model, RobertaConfig, "roberta")
    except (ValueError, OSError):
        return f"roberta-large, as the config.json of {model} is not here", ROBERTA_LARGE


def analytic(method, r, config, tokens):
    """The paper's kind of count, in FLOPs: of building q's and v's weights, or of an adapter's products, or None."""
    d, layers = config.hidden_size, config.num_hidden_layers
    if method in flops.BUILDING:
        return 2 * layers * flops.building(method, d, d, r)
    return flops.adapters(method, d, r, layers, tokens) if method in flops.ADAPTERS else None


def scatter(task, cells, counts, what):
    """Score against GFLOPs: a labelled point a cell, with a bar of one standard deviation to both sides."""
    score, box = GLUE_SCORES[task][0], (40, 28, 452, 262)
    points = [
        (counts[named(c)] / 1e9, 100 * c["mean"][score], 100 * (c["std"][score] or 0), c) for c in cells
    ]
    x_limits = limits([x for x, *_ in points])
    y_limits = limits([v for _, mean, std, _ in points for v in (mean - std, mean + std)])
    x, y = scale(*x_limits, box[0] + 12, box[2] - 40), scale(*y_limits, box[3], box[1])
    names = [c["method"] + (f" r{c['r']}" if c["r"] else "") for *_, c in points]
    where = [(x(gflops), y(mean)) for gflops, mean, *_ in points]
    parts = [text(2, 12, task, "name"), text(box[2], 12, what, "mute", "end")]
    parts += grid(ticks(*x_limits, 6), x, ticks(*y_limits, 5), y, box)
    labels = [*zip(where, place(where, names, box), points, names, strict=True)]
    for (px, py), (left, top, right, bottom), (_, mean, std, _), name in labels:
        kind = kind_of(name)
        near = (min(max(px, left), right), min(max(py, top), bottom))
        parts += [
            line([(px, y(mean - std)), (px, y(mean + std))], f"bar {kind}"),
            line([(px, py), near], "leader"),
        ]
    for (px, py), (left, _, _, bottom), _, name in labels:
        parts += [dot(px, py, kind_of(name)), text(left + 1, bottom - 3, name, f"label {kind_of(name)}")]
    return svg(460, 282, f"{task}: score against {what}", parts)


def figure_3(content):
    """The paper's Figure 3 twice: with its own kind of count, and with that of a training step, which every method has."""
    model, config = config_of((content.get("settings") or {}).get("model"))
    tokens, figures = min(TOKENS, config.max_length), []
    scored = [c for c in content["cells"] if c["mean"].get(GLUE_SCORES[c["task"]][0]) is not None]
    sizes = {named(c): (c["method"], c["r"]) for c in scored}
    ways = (
        (
            {name: analytic(*size, config, tokens) for name, size in sizes.items()},
            "GFLOPs, as the paper counts",
            "Score against the paper's kind of count.</b> For HUT and LoRA that is building the adapted weights once, "
            f"whatever the number of tokens; for adapters their two products at {tokens} tokens; other methods have none. "
            "Higher is a better score, further left is cheaper by a count that leaves out the model itself.",
        ),
        (
            {name: flops.training_step(*size, config, 1, tokens) for name, size in sizes.items()},
            "GFLOPs of a training step",
            f"Score against a whole training step.</b> Matrix products and attention of 1 × {tokens} tokens, forward and "
            "backward, as torch counts them. Elementwise work, as HUT's scalings, it does not see. Left of full lies what "
            "is saved by leaving out the weights' own gradients; the differences among the rest are what each method adds.",
        ),
    )
    for counts, what, caption in ways:
        cells = [c for c in scored if counts[named(c)] is not None]
        tasks = dict.fromkeys(c["task"] for c in cells)
        drawings = [scatter(task, [c for c in cells if c["task"] == task], counts, what) for task in tasks]
        counted = (
            f" Counted on {escape(model)} by experiments/flops.py; bars: ± one standard deviation over seeds."
        )
        figures += [figure(drawings, f"<b>Figure 3. {caption}{counted}")] if drawings else []
    return figures


def strips(task, groups, fixed):
    """The scores over r and over seeds on one axis: a labelled dot a run, a bar from the lowest to the highest."""
    left, right, parts = 150, 590, [text(2, 12, task, "name")]
    x_limits = limits([100 * v for group in groups.values() for v in group["scores"].values()])
    x = scale(*x_limits, left + 20, right - 20)
    for (name, group), at, kind in zip(groups.items(), (62, 132), ("hut", "other"), strict=True):
        labels = {}
        for key, value in group["scores"].items():
            labels.setdefault(round(100 * value, 9), []).append(key)
        xs = [x(value) for value in labels]
        words = [", ".join(keys) for keys in labels.values()]
        parts += [text(2, at, f"over {name}", f"label {kind}"), text(2, at + 15, fixed[name], "mute")]
        parts += [line([(left, at), (right, at)], "rule")]
        if group["range"] is not None:
            parts.append(line([(min(xs), at), (max(xs), at)], f"range {kind}"))
            parts.append(text(right + 12, at + 4, f"{100 * group['range']:.1f}"))
        for px, label_x, word in zip(xs, apart(xs, FONT[0] * (max(map(len, words)) + 1)), words, strict=True):
            parts += [
                line([(px, at), (label_x, at - 15)], "leader"),
                dot(px, at, kind),
                text(label_x, at - 18, word, "", "middle"),
            ]
    parts += [text(right + 12, 12, "max − min", "mute")]
    parts += [text(x(v), 166, f"{v:g}", "mute", "middle") for v in ticks(*x_limits, 7)]
    return svg(660, 174, f"{task}: the spread over r and over seeds", parts)


def r_finding(content):
    """`rank`'s finding as a picture, a drawing a task."""
    fixed_r = next((f"r = {c['r']}" for c in content["cells"] if len(c["seeds"]) > 1), "one r")
    drawings, said = [], []
    for task, groups in content["spread"].items():
        if not all(group["scores"] for group in groups.values()):
            continue
        drawings.append(strips(task, groups, {"r": "at seed 0", "seeds": f"at {fixed_r}"}))
        over_r, over_seeds = groups["r"]["range"], groups["seeds"]["range"]
        if over_r is not None and over_seeds is not None:
            more, n_r, n_seeds = (
                "no more" if over_r <= over_seeds else "more",
                *(len(groups[k]["scores"]) for k in groups),
            )
            said.append(
                f"On {escape(task)}, r moves the score by {100 * over_r:.1f} ({n_r} values of r), the seed "
                f"by {100 * over_seeds:.1f} ({n_seeds} seeds): r moves it {more} than the seed does."
            )
    caption = (
        "<b>The same axis for both: a dot a run, the bar from the lowest to the highest.</b> "
        + " ".join(said)
    )
    return [figure(drawings, caption)] if drawings else []


# ------------------------------------------------------------------------------------------------ sections


def html_table(header, rows, left=1):
    """A table whose first `left` columns are words and the others numbers, of which mean and ± std are aligned each."""
    with_std = [any(" ± " in row[i] for row in rows) for i in range(len(header))]

    def cell(i, value):
        if i < left:
            return f"<td>{escape(value)}</td>"
        value, _, std = value.partition(" ± ")
        std = f"<span class=std>{escape(f'± {std}' if std else '')}</span>" if with_std[i] else ""
        return f'<td class="n{" bad" if value == "failed" else ""}">{escape(value)}{std}</td>'

    head = "".join(
        f'<th class="{"" if i < left else "n"}">{escape(name)}</th>' for i, name in enumerate(header)
    )
    body = "".join(f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table class="words{left}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def from_markdown(text):
    """(tables, paragraphs) of a sweep's Markdown, as HTML."""
    tables, paragraphs = [], []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            header, _, *rows = [
                [cell.strip() for cell in row.strip("|").split(" | ")] for row in block.splitlines()
            ]
            tables.append(html_table(header, rows))
        else:
            marked = re.sub("`(.+?)`", r"<code>\1</code>", escape(block))
            paragraphs.append(f"<p>{marked}</p>")
    return tables, paragraphs


def details(summary, content, is_open=False):
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{content}</details>"
        if content
        else ""
    )


def settings(runs, environment):
    """What the runs' args.json say: an argument a line, all its values; those that none was given are left out."""
    found = {}
    for arguments, made in [(run.args, run.environment) for run in runs] or [({}, environment)]:
        versions = made.get("versions", {}) | {key: made.get(key) for key in ("device", "threads", "git")}
        for key, value in (arguments | versions).items():
            if value is not None:
                found.setdefault(key.replace("_", "-"), []).append(str(value))
    rows = [[key, ", ".join(dict.fromkeys(values))] for key, values in found.items()]
    return html_table(["", "value, or all the values"], rows, left=2) if rows else ""


def progress(run):
    of = f" of {run.args['epochs']}" if run.args.get("epochs") else ""
    return f"stopped or running, {len(run.epochs)}{of} epochs done"


def title_of(content):
    tasks = (content.get("settings") or {}).get("tasks") or ()
    title = TITLES.get(content["table"], content["table"])
    return f"{title} ({', '.join(tasks)})" if tasks and tasks != ["e2e"] else title


def section(number, title, place_, state, *content):
    badge = f'<span class="{"bad" if state else "good"} badge">{escape(state or "complete")}</span>'
    head = f'<h2>{escape(title)}</h2><p class="place"><code>{escape(place_)}</code> {badge}</p>'
    return f'<section id="s{number}">{head}{"".join(content)}</section>'


def table_section(number, folder, content, runs, root):
    """A sweep's table, its figures, what is missing from it, notes and settings."""
    inside = folder.relative_to(root).as_posix()
    here = {run.name: run for run in runs if (root / run.name).is_relative_to(folder)}
    groups, failed = {}, 0
    for cell in content["cells"] if content["table"] != "table2" else []:
        folders = [
            (folder / one["folder"]).relative_to(root).as_posix() for one in cell["runs"] if "folder" in one
        ]
        groups.setdefault(cell["task"], {})[named(cell)] = [here[name] for name in folders if name in here]
        failed += max(sum("failed" in one for one in cell["runs"]), "failed" in cell)
    unfinished = [f"{run.name}: {progress(run)}" for run in here.values() if run.result is None]
    state = []
    if not content.get("complete", True):
        chosen = content.get("settings", {})
        whole = len(chosen.get("rows", ())) * len(chosen.get("tasks", ()))
        state.append(f"incomplete: {len(content['cells'])} of {whole} cells" if whole else "incomplete")
    state += [f"{failed} failed"] if failed else []
    state += [f"{len(unfinished)} incomplete run{'s' if len(unfinished) > 1 else ''}"] if unfinished else []

    tables, paragraphs = from_markdown(content["markdown"])
    first = content["table"] in ("table1", "table3")
    drawn = (
        figure_3(content)
        if content["table"] == "table1"
        else r_finding(content)
        if "spread" in content
        else []
    )
    told = sum(p.startswith(("<p>Failed", "<p>Predicts a single class")) for p in paragraphs)
    used = [run for named_runs in groups.values() for group in named_runs.values() for run in group]
    return section(
        number,
        title_of(content),
        inside,
        "; ".join(state),
        *(drawn + tables + paragraphs[:1] if "spread" in content else tables + paragraphs[:1] + drawn),
        "".join(f'<p class="bad">Incomplete: {escape(text)}</p>' for text in unfinished),
        details("Learning curves", "".join(learning_curves(groups)), first),
        details(f"The command, and notes{f' ({told} to mind)' if told else ''}", "".join(paragraphs[1:])),
        details("Settings and versions", settings(used, content.get("environment") or {})),
    )


def runs_section(number, runs):
    """Runs that belong to no table: a line for those that differ in the seed alone, and their curves."""
    alike = {}
    for run in runs:
        key = json.dumps({k: v for k, v in run.args.items() if k != "seed"}, sort_keys=True)
        alike.setdefault(key, []).append(run)
    rows, groups, unfinished = [], {}, [run for run in runs if run.result is None]
    for group in alike.values():
        first, done = group[0], [run for run in group if run.result is not None]
        task, name = str(first.args.get("task")), named({"method": "?", **first.args})
        again = sum(n == name or n.startswith(f"{name} (") for n in groups.setdefault(task, {}))
        groups[task][name + (f" ({again + 1})" if again else "")] = group
        scores = [key for key in ((first.epochs or [{}])[0]) if key not in ("epoch", "step", "train_loss")]
        places = first.name if len(group) == 1 else f"{first.name} … {group[-1].name.rpartition('/')[2]}"
        counts = [run.result["parameters"]["adapter"] for run in done if "parameters" in run.result]
        state = "finished" if len(done) == len(group) else f"incomplete: {len(done)} of {len(group)}"
        ends = [over_runs(done, part, scores[0]) if scores else "–" for part in ("best", "last")]
        ends.append(over_runs(done, "test", "BLEU"))
        label = f"{task} {scores[0]}" if scores else task
        rows.append(
            [
                places,
                name,
                label,
                state,
                f"{counts[0]:,}" if counts else "–",
                f"{first.args.get('lr') or '–'}",
                *ends,
            ]
        )
    header = [
        "folder",
        "method",
        "score",
        "state",
        "parameters",
        "lr",
        "best epoch",
        "last epoch",
        "test BLEU",
    ]
    state = f"{len(unfinished)} of {len(runs)} incomplete" if unfinished else ""
    return section(
        number,
        "Other runs",
        f"{len(runs)} run folder{'s' if len(runs) > 1 else ''} outside of tables",
        state,
        html_table(header, rows, left=4),
        "<p>Mean ± standard deviation over the finished runs that differ in the seed alone.</p>",
        "".join(f'<p class="bad">Incomplete: {escape(run.name)}: {progress(run)}</p>' for run in unfinished),
        details("Learning curves", "".join(learning_curves(groups)), True),
        details("Settings and versions", settings(runs, {})),
    )


def over_runs(runs, part, score):
    """ "mean ± std" of a score of result.json's `part`, – where a run has none."""
    values = [(run.result.get(part) or {}).get(score) for run in runs]
    if not values or None in values:
        return "–"
    show = "{:.3f}".format if score == "loss" else lambda value: f"{100 * value:.1f}"
    return show(statistics.fmean(values)) + (
        f" ± {show(statistics.stdev(values))}" if len(values) > 1 else ""
    )


STYLE = """
:root { --paper: #fdfdfb; --ink: #1d2226; --mute: #667078; --faint: #e4e5e2; --ghost: #c9cdce;
  --hut: #c4500a; --other: #0b69a3; --bad: #a8182d; --good: #1a6b45; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e6e6e1; --mute: #98a1a8; --faint: #2b3034;
  --ghost: #474e54; --hut: #f0954a; --other: #63b5e8; --bad: #ff8a94; --good: #6fcf9f } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 65rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.015em }
h2 { font-size: 1.3rem; margin: 0; letter-spacing: -.01em }
section { margin-top: 3.2rem; padding-top: 1.4rem; border-top: 1px solid var(--faint) }
nav { columns: 20rem; margin-top: 1.2rem } nav a { display: block } a { color: var(--other) }
p { margin: .5rem 0; max-width: 46rem } .place { color: var(--mute); font-size: .85rem; margin: .15rem 0 1rem }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere }
.badge { margin-left: .4rem; padding: .1rem .5rem; border: 1px solid; border-radius: 1rem; white-space: nowrap }
.bad { color: var(--bad) } .good { color: var(--good) }
.scroll { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: .9rem }
th { font-weight: 600; text-align: left; vertical-align: bottom; border-bottom: 1.5px solid var(--ink) }
th, td { padding: .3rem .9rem .3rem 0 } td { border-bottom: 1px solid var(--faint); vertical-align: top }
th + th, td + td { padding-left: .6rem } .words1 td { white-space: nowrap } .words2 td { overflow-wrap: anywhere }
 .n { text-align: right; white-space: nowrap }
.std { display: inline-block; min-width: 4.4em; color: var(--mute) }
figure { margin: 1.6rem 0 } figcaption { font-size: .9rem; color: var(--mute); max-width: 46rem; margin-top: .5rem }
figcaption b { color: var(--ink) } .drawings { display: flex; flex-wrap: wrap; gap: 1rem 1.25rem }
svg { display: block; width: 100%; height: auto; overflow: visible } svg text { font-size: 11px; fill: var(--ink) }
svg .mute { fill: var(--mute) } svg .name { font-weight: 600; font-size: 12px }
svg .label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round }
.hut { --own: var(--hut) } .other { --own: var(--other) } b { color: var(--own, inherit) }
text.hut { font-weight: 700 } svg text.label { fill: var(--own) }
polyline { fill: none } .rule { stroke: var(--faint) } .ghost { stroke: var(--ghost) } .leader { stroke: var(--ghost) }
.curve { stroke: var(--own); stroke-width: 2 } .bar { stroke: var(--own); opacity: .35; stroke-width: 1.5 }
.range { stroke: var(--own); stroke-width: 9; opacity: .22; stroke-linecap: round }
.band { fill: var(--own); stroke: var(--own); fill-opacity: .22; stroke-opacity: .22 }
circle { fill: var(--own); stroke: var(--paper) } details { margin: .9rem 0; font-size: .92rem }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0 }
"""


def page(root):
    """The report on what is under `root`, as HTML."""
    tables, runs = find(root)
    apart_from = [
        run for run in runs if not any((root / run.name).is_relative_to(folder) for folder, _ in tables)
    ]
    sections = [table_section(i, *table, runs, root) for i, table in enumerate(tables)]
    titles = [(title_of(content), folder.relative_to(root)) for folder, content in tables]
    if apart_from:
        sections.append(runs_section(len(tables), apart_from))
        titles.append(("Other runs", ""))
    links = "".join(f'<a href="#s{i}">{escape(title)}</a>' for i, (title, _) in enumerate(titles))
    incomplete = sum(run.result is None for run in runs) + sum(
        not content.get("complete", True) for _, content in tables
    )
    warning = f', <span class="bad">{incomplete} incomplete</span>' if incomplete else ", none incomplete"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>HUT beside other methods</title><style>{STYLE}</style></head><body>
<h1>HUT beside the methods it is compared with</h1>
<p>What <code>{escape(str(root))}</code> holds: tables {len(tables)}, runs {len(runs)}{warning}. The columns “paper” and
“paper’s” are the paper’s numbers, on its own models; everything else was run. In all figures, HUT is
<b class="hut">orange</b> and every other method <b class="other">blue</b>.</p>
<nav>{links}</nav>
{"".join(sections)}
</body></html>
"""


def main():
    parser = Parser(prog="python -m experiments.report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", metavar="RUNS", type=Path, help="a folder of tables and runs, at any depth, as runs/"
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", type=Path, default="report.html", help="(default: report.html)"
    )
    args = parser.parse_args()
    content = page(args.runs)
    try:
        write_text(args.out, content)
    except OSError as error:
        raise UserError(f"-o {args.out}: {error.strerror}") from None
    print(f"{args.out}: {len(content):,} bytes")


if __name__ == "__main__":
    run_as_script(main)
