"""experiments/report.py: the page holds the runs' numbers where they belong, and nothing from elsewhere."""

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from conftest import fails

from data import UserError
from experiments import drawing, publish, report

VOID = {"meta"}


def run_folder(folder, seed, scores, finished=True, method="hut", task="cola", **more):
    """A run with the given dev scores, an epoch each; `more` goes into its result.json."""
    folder.mkdir(parents=True)
    args = {"task": task, "method": method, "r": 8, "targets": "qv", "lr": 0.25, "epochs": 2, "seed": seed}
    versions = {"versions": {"torch": "9.8.7"}, "device": "abacus", "threads": 1, "git": None}
    (folder / "args.json").write_text(json.dumps({"args": args, **versions}))
    score = "exact_match" if task == "squad" else "matthews"
    rows = [{"epoch": i, "step": i, "train_loss": 0.5, score: s, "lr": 0.1} for i, s in enumerate(scores, 1)]
    rows = [row | {"timing": {"seconds": 40 * row["epoch"], "step_ms": 12.5}} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        last = {"epoch": len(scores), score: scores[-1]}
        timing = {"seconds": 76.5, "peak_memory_bytes": 5 * 2**20}
        result = {"task": task, "best": last, "last": last, "parameters": {"adapter": 4321}, "timing": timing}
        (folder / "result.json").write_text(json.dumps(result | more))


def sweep_folder(folder, table, methods, **more):
    """A sweep of two seeds, .20 and .30 at the end."""
    cells = []
    for method, r in methods:
        entry = {
            "task": "cola",
            "method": method,
            "r": r,
            "targets": "qv",
            "seeds": [0, 1],
            "lr": 0.25,
            "tries": [],
        }
        runs = [
            {
                "seed": s,
                "scores": {"matthews": 0.2 + 0.1 * s},
                "folder": f"cola/{method}-{r}/{s}",
                "cost": {"memory": 5 * 2**20, "step_ms": 12.5, "seconds": 80},
            }
            for s in (0, 1)
        ]
        for one in runs:
            run_folder(folder / one["folder"], one["seed"], [0.1, one["scores"]["matthews"]], method=method)
        scores = {"mean": {"matthews": 0.25}, "std": {"matthews": 0.0707}}
        parameters = 0 if method == "head" else 1000 * len(method)
        cells.append({**entry, "runs": runs, "parameters": parameters, **scores})
    settings = {"model": "mini", "tasks": ["cola"], "rows": [f"{m}-{r}" for m, r in methods]}
    header, rows = ["method", "cola matthews", "paper"], [["hut r8 qv", "25.0 ± 7.1", "70.5 ± 1.2"]]
    content = {
        "table": table,
        "title": f"All of {table}",
        "command": "sweep <table>",
        "complete": True,
        "cells": cells,
        "tables": [{"header": header, "rows": rows, "notes": ["How <it> was.", "See `that <file>`."]}],
        "settings": settings,
        "environment": {},
    }
    (folder / "table.json").write_text(json.dumps(content | more))


class Page(HTMLParser):
    """Fails on a tag that is closed in the wrong place; keeps the words and what is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.references = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.references += [
            value for name, value in attributes if name in ("href", "src", "xlink:href", "srcset")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def call(monkeypatch):
    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        report.main()

    return main


def test_page(call, tmp_path):
    """Would catch: a number left out, text taken for markup, a tag left open, anything that is fetched."""
    runs, out = tmp_path / "runs", tmp_path / "report.html"
    sweep_folder(runs / "table1", "table1", [("hut", 8), ("lora", 8), ("head", None)])
    sweep_folder(runs / "rank", "rank", [("hut", 8), ("hut", 1)], spread={"cola": {}})
    run_folder(runs / "<b>one</b>", 0, [0.5, 0.75])
    call(runs, "-o", out)
    text = out.read_text()
    page = Page(text)
    words = " ".join(page.words)
    for wanted in (
        "± 7.1",
        "70.5",
        "± 1.2",
        "How <it> was.",
        "that <file>",
        "All of table1 (table1)",
        "sweep <table>",
        "<b>one</b>",
        "75.0",
        "4,321",
        "9.8.7",
        "abacus",
        "complete",
    ):
        assert wanted in words, wanted
    assert words.count("FLOPs: mini, 128 tokens") == 1, "of table 1 alone: others have other targets"
    assert "The paper's cola" in words
    assert words.index("All of table1") < words.index("All of rank"), "tables that compare methods come first"
    assert page.references and all(reference.startswith("#s") for reference in page.references)
    assert not re.search(
        r"<script|<link|@import|url\(|https?://(?!www.w3.org/2000/svg)|incomplete: |nan", text
    )


def test_a_row_with_an_undefined_score_is_not_drawn(call, tmp_path):
    """Would catch: a page that one constant prediction's Pearson ends in a traceback; a mean of the rest."""
    sweep_folder(tmp_path / "t", "table1", [("hut", 8), ("lora", 8), ("full", None)])
    path = tmp_path / "t" / "table.json"
    content = json.loads(path.read_text())
    content["cells"][0]["runs"][0]["scores"]["matthews"] = None
    path.write_text(json.dumps(content))
    call(tmp_path, "-o", tmp_path / "page.html")
    (section,) = report.find(tmp_path)
    assert [len(entry.values) for entry in section.entries] == [0, 2, 2]


def test_incomplete_shows(call, tmp_path):
    """Would catch: a run that was killed, or a table that is not done, passed off as whole."""
    runs, out = tmp_path / "runs", tmp_path / "report.html"
    more = {"complete": False, "settings": {"tasks": ["cola"], "rows": ["a", "b", "c"]}}
    sweep_folder(runs / "table4", "table4", [("hut", 8)], **more)
    content = json.loads((runs / "table4" / "table.json").read_text())
    content["cells"][0]["runs"][1] = {"seed": 1, "failed": "no memory"}
    (runs / "table4" / "table.json").write_text(json.dumps(content))
    run_folder(runs / "table4" / "cola" / "cut", 2, [0.1], finished=False)
    run_folder(runs / "alone", 0, [0.3], finished=False)
    call(runs, "-o", out)
    words = " ".join(Page(out.read_text()).words)
    assert "incomplete: 1 cells; 1 failed; table4/cola/cut: stopped or running after epoch 1" in words
    assert (
        "alone: stopped or running after epoch 1" in words and "0 of 1" in words and "2 incomplete" in words
    )


def test_curve_and_band(tmp_path):
    """Would catch: a band that is not from lowest to highest, a mean of other epochs, y upside down."""
    for seed, scores in enumerate(([0.1, 0.4], [0.3, 0.8], [0.2])):
        run_folder(tmp_path / str(seed), seed, scores)
    (section,) = report.find(tmp_path)
    drawn = report.learning_curves("cola", section.entries)
    x, y = drawing.Axis([1, 2], 36, 160), drawing.Axis([10, 80], 122, 36)
    corners = [(x(1), y(30)), (x(2), y(80)), (x(2), y(40)), (x(1), y(10))]
    assert f'points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"' in drawn
    assert f'points="{x(1):.1f},{y(20):.1f} {x(2):.1f},{y(60):.1f}"' in drawn
    assert y(80) < y(10) and ">60.0 after epoch 2<" in drawn


@pytest.mark.parametrize("means", [[50] * 13 + [90], [50] + [90] * 13, [*range(0, 140, 10)]])
def test_labels_do_not_overlap(means):
    """Would catch: two labels in one place, a label outside of the figure, one that moved without need."""
    curves = [drawing.Curve(f"m{i}", [(i + 1, mean - 1, mean, mean + 1)]) for i, mean in enumerate(means)]
    drawn = drawing.scatter("t", "x", curves)
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" class="label', drawn)]
    dots = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert len(heights) == 14 and min(b - a for a, b in pairwise(heights)) > 11
    assert heights[0] >= 28 and heights[-1] <= 80 + 14 * 14
    assert heights[0] == dots[0] + 4, "the best has room beside its dot"


METHODS = [("full", None), ("head", None), ("bitfit", None), ("houlsby", 64), ("houlsby", 8),
           ("pfeiffer", 64), ("pfeiffer", 16), ("lin", 8), ("top2", None), ("prefix", 8), ("lora", 8),
           ("vera", 256), ("fourierft", 1000), ("hut", 8)]  # fmt: skip


def test_picture(tmp_path):
    """Would catch: a method left out, labels over each other or a dot, a file that does not stand alone."""
    sweep_folder(tmp_path / "table1", "table1", METHODS)
    text = publish.picture(report.find(tmp_path))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and {"viewBox", "width", "height"} <= {*root.keys()}
    assert "prefers-color-scheme: dark" in text and "system-ui" in text
    assert not re.search(r"<script|@import|url\(|href|nan", text)
    found = [
        [one for one in root if kind in one.get("class", "").split()] for kind in ("label", "bar", "level")
    ]
    labels, bars, levels = found
    dots = [one for one in root if one.tag.endswith("circle")]
    assert len(labels) == 14 and len(dots) == len(bars) == 13 and len(levels) == 1
    assert {"hut r8 qv", "head qv", "houlsby r64 qv", "fourierft r1000 qv"} <= {one.text for one in labels}
    assert [one.get("class") for one in dots].count("hut") == 1
    heights = sorted(float(one.get("y")) for one in labels)
    assert min(b - a for a, b in pairwise(heights)) >= 11 and heights[0] > 0 and heights[-1] < 380
    left = min(float(one.get("x")) for one in labels)
    assert max(float(one.get("cx")) + float(one.get("r")) for one in dots) < left
    path = tmp_path / "table1" / "table.json"
    content = json.loads(path.read_text())
    content["cells"] += [cell | {"task": "sst2"} for cell in content["cells"]]
    path.write_text(json.dumps(content))
    assert publish.picture(report.find(tmp_path)) == text, "it is of one task"
    assert left + drawing.CHARACTER * len("fourierft r1000 qv") <= float(root.get("width"))
    x_of = {
        kind: [float(one.get("cx")) for one in dots if one.get("class") == kind] for kind in ("hut", "other")
    }
    assert x_of["hut"][0] == min(*x_of["hut"], *x_of["other"]), "hut has the fewest parameters here"
    assert len({one.get("cy") for one in dots}) == 1


def test_a_picture_needs_scores(tmp_path):
    """Would catch: a traceback, or an empty picture."""
    run_folder(tmp_path / "runs", 0, [0.5])
    with pytest.raises(UserError, match="expected the scores of two methods"):
        publish.picture(report.find(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no table.json, args.json"),
        ({}, "no table.json, args.json"),
        (
            {"a/args.json": '{"args":\n {]}'},
            "args.json: not JSON: Expecting property name enclosed in double quotes: line 2",
        ),
        ({"a/table.json": "[]"}, "table.json: not a file of this program: no 'table' in it"),
        (
            {"a/args.json": '{"args": {}}', "a/metrics.jsonl": "{}\n"},
            "metrics.jsonl:1: not a file of this program",
        ),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_the_report(call, tmp_path, capsys, files, message):
    """Would catch: a traceback, or a good report replaced by half of one."""
    out = tmp_path / "report.html"
    out.write_text("the one before")
    for name, content in (files or {}).items():
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name).write_text(content)
    if files == {}:
        (tmp_path / "runs").mkdir()
    assert message in fails(capsys, call, tmp_path / "runs", "-o", out)
    assert out.read_text() == "the one before"


def rows_of(path):
    """The texts of every table's rows, by the first cell."""
    rows = re.findall(r"<tr>(.*?)</tr>", path.read_text(encoding="utf-8"))
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    return {row[0]: row[1:] for row in cells}


def test_runs_are_named_by_folder_and_a_seed_counts_once(call, tmp_path):
    """Would catch: runs that can't be told apart, a seed that was run twice as a spread of two, no epochs."""
    runs, out = tmp_path / "runs", tmp_path / "report.html"
    for name, seed, end in (("a", 0, 0.5), ("again", 0, 0.7), ("b/seed0", 1, 0.6), ("z", 0, 0.9)):
        run_folder(runs / name, seed, [0.1, end], method="lora" if name == "z" else "hut")
    call(runs, "-o", out)
    rows = rows_of(out)
    assert rows["folder"] == [
        "last matthews", "best matthews", "method", "lr", "epochs", "finished", "parameters without the head",
        "ms a step", "seconds to the best epoch", "peak memory, MiB",
    ]  # fmt: skip
    assert rows["a …"] == ["55.0 ± 7.1"] * 2 + [
        "hut r8 qv",
        "0.25",
        "2",
        "2 of 2",
        "4,321",
        "12.5",
        "80",
        "5",
    ]
    assert rows["again"][0] == "70.0" and rows["z"][:3] == ["90.0", "90.0", "lora r8 qv"]
    text = out.read_text()
    assert all(
        f'class="label {kind}" text-anchor="start">{name}<' in text
        for name, kind in (("a …", "hut"), ("z", "other"))
    )
    assert 'title="last matthews">55.0' in text, "what a phone shows above a number"


def test_squad_is_shown_in_hundredths(call, tmp_path):
    """Would catch: 8325.0 or 0.8 for .8325, in the table, the curves or the figures."""
    last = {"epoch": 1, "exact_match": 0.8325, "f1": 0.865}
    run_folder(tmp_path / "runs" / "s", 0, [0.8325], task="squad", last=last)
    run_folder(tmp_path / "runs" / "t", 0, [0.8], task="squad", method="lora", last=last)
    out = tmp_path / "report.html"
    call(tmp_path / "runs", "-o", out)
    assert rows_of(out)["s"][:3] == ["83.2", "86.5", "83.2"] and "83.2 after epoch 1" in out.read_text()
    assert not re.search(r"\d{4}\.\d<", out.read_text())


def test_methods_that_the_paper_does_not_count(call, tmp_path):
    """Would catch: a traceback for READ, or for a method of someone's own branch, in table 1."""
    sweep_folder(tmp_path / "runs", "table1", [("hut", 8), ("read", 256), ("mine", 8)])
    call(tmp_path / "runs", "-o", tmp_path / "report.html")
    words = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "mine r8 qv" in words and "FLOPs of a training step" in words


def test_costs_of_runs_are_their_mean(tmp_path):
    """Would catch: the first seed's memory given as that of all; a run that has not finished counted."""
    for seed, mebibytes in enumerate((2, 4)):
        timing = {"seconds": 1, "peak_memory_bytes": mebibytes * 2**20}
        run_folder(tmp_path / f"{seed}", seed, [0.5], timing=timing)
    run_folder(tmp_path / "2", 2, [0.5], finished=False)
    (section,) = report.find(tmp_path)
    assert report.costs_of(section.runs)["memory"] == 3 * 2**20


def test_costs_that_are_drawn(tmp_path, monkeypatch):
    """Would catch: no cost (the head alone has no parameters) on a log scale; FLOPs of one matrix a layer, or
    of other tokens than it says; one method's runs drawn as another's.
    """
    sweep_folder(tmp_path, "table1", [("hut", 8), ("head", None)])
    (section,) = report.find(tmp_path)
    assert not report.against(section.entries, "parameters") and report.against(section.entries, "seconds")
    monkeypatch.setattr(report, "training_step", lambda *given: 1)
    (hut, head), said = report.with_flops(section.entries, None)
    assert "roberta-large, 128 tokens" in said and [run.args["method"] for run in hut.runs] == ["hut"] * 2
    assert hut.costs["building"] == 202_113_024 and head.costs["building"] is None  # the paper's 0.20 GFLOPs


def test_front():
    """Would catch: a front through a point that another beats at less, or without the first."""
    points = [(x, y, y, y) for x, y in ((0, 1), (3, 5), (2, 2), (2, 4), (4, 5), (9, 8))]
    assert drawing.front(points) == [(0, 1), (2, 1), (2, 4), (3, 4), (3, 5), (9, 5), (9, 8)]


def test_rates_are_drawn(call, tmp_path):
    """Would catch: a try left out, a failed one drawn as a score, the end of the list not marked."""
    runs, out = tmp_path / "runs", tmp_path / "report.html"
    sweep_folder(runs, "table4", [("hut", 8)])
    content = json.loads((runs / "table.json").read_text())
    scores = (
        (0.0625, {"loss": 9.9, "failed": "its score is not defined"}),
        (0.25, {"score": 0.7}),
        (1.0, {"score": 0.5}),
    )
    content["cells"][0]["tries"] = [{"lr": lr, **found} for lr, found in scores]
    (runs / "table.json").write_text(json.dumps(content))
    call(runs, "-o", out)
    drawn = re.search(r'<svg[^>]*aria-label="hut r8 qv: 0.25, 1 failed".*?</svg>', out.read_text())[0]
    assert len(re.findall(r'<circle[^>]*r="2"', drawn)) == 2 and "70" in drawn
    content["cells"][0]["lr"] = 1.0
    (runs / "table.json").write_text(json.dumps(content))
    call(runs, "-o", out)
    assert "1, at the end of the list, 1 failed" in out.read_text()


def test_means_over_tasks_and_the_paper_beside_them(call, tmp_path):
    """Would catch: READ's Figure 1 without the paper's points, memory that is summed, a mean of what is there
    before all is.
    """
    sweep_folder(tmp_path / "runs", "read", [("read", 256), ("lora", 32), ("full", None)])
    path = tmp_path / "runs" / "table.json"
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        for one in cell["runs"]:
            one["cost"] = {"memory": 3 * 2**20 * len(cell["method"]), "seconds": 70.0}
    content["cells"] += [cell | {"task": "sst2"} for cell in content["cells"][:2]]  # full's is to come
    path.write_text(json.dumps(content))
    call(tmp_path / "runs", "-o", tmp_path / "report.html")
    (section,) = report.find(tmp_path / "runs")
    first, _ = report.over_tasks(section.entries)
    assert (
        first.costs == {"memory": 12 * 2**20, "seconds": 140.0, "parameters": 4000}
        and first.cell["task"] == "mean of 2 tasks"
    )
    assert [round(value, 9) for value in first.values] == [0.2, 0.3]
    text = (tmp_path / "report.html").read_text()
    drawn = re.search(r'<svg[^>]*aria-label="The paper.{0,9}s average: kWh, all.*?</svg>', text)[0]
    assert len(re.findall('class="paper"', drawn)) == 8 and ">read r256<" in drawn and ">read-large<" in drawn


def test_lines_of_a_table(call, tmp_path):
    """Would catch: a figure of lines (READ's 4 and 5) left out, or bold as stars."""
    lines = {"read": [[1e6, 10.0], [1e8, 20.0]], "none": []}
    figure = {"title": "Figure 4", "x": "backbone", "y": "parameters", "curves": lines}
    sheet = {"header": ["a"], "rows": [["**7 < 8**"]], "notes": []}
    content = {"table": "scaling", "cells": [], "tables": [sheet], "figures": [figure]}
    (tmp_path / "table.json").write_text(json.dumps(content))
    call(tmp_path, "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    drawn = re.search(r'<svg[^>]*aria-label="Figure 4: parameters: backbone.*?</svg>', text)[0]
    assert drawn.count("<circle") == 2 and ">read<" in drawn and "none" not in drawn
    assert "<b>7 &lt; 8</b>" in text


def test_out_that_cannot_be_written(call, tmp_path, capsys):
    """Would catch: a traceback after all the work."""
    line = fails(capsys, call, tmp_path / "runs", "-o", tmp_path / "no" / "report.html")
    assert "expected the name of a file, in a folder that exists" in line
