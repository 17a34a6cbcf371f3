"""experiments/report.py: the page holds the runs' numbers where they belong, and nothing from elsewhere."""

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from conftest import fails

from experiments import report

VOID = {"meta"}


def run_folder(folder, seed, scores, finished=True, method="hut"):
    """A run with the given dev scores, an epoch each."""
    folder.mkdir(parents=True)
    args = {"task": "cola", "method": method, "r": 8, "targets": "qv", "lr": 0.25, "epochs": 2, "seed": seed}
    versions = {"versions": {"torch": "9.8.7"}, "device": "abacus", "threads": 1, "git": None}
    (folder / "args.json").write_text(json.dumps({"args": args, **versions}))
    rows = [
        {"epoch": i, "step": i, "train_loss": 0.5, "matthews": s, "lr": 0.1} for i, s in enumerate(scores, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        last = {"epoch": len(scores), "matthews": scores[-1]}
        result = {"task": "cola", "best": last, "last": last, "parameters": {"adapter": 4321}}
        (folder / "result.json").write_text(json.dumps(result))


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
            {"seed": s, "scores": {"matthews": 0.2 + 0.1 * s}, "folder": f"cola/{method}-{r}/{s}"}
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
    groups = {
        "r": {"scores": {"1": 0.5, "8": 0.51}, "range": 0.01},
        "seeds": {"scores": {"0": 0.51, "1": 0.6}, "range": 0.09},
    }
    sweep_folder(runs / "rank", "rank", [("hut", 8)], spread={"cola": groups})
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
        "All of table1",
        "sweep <table>",
        "<b>one</b>",
        "75.0",
        "4,321",
        "9.8.7",
        "abacus",
        "complete",
    ):
        assert wanted in words, wanted
    assert (
        "r moves the score by 1.0 (2 values of r), the seed by 9.0 (2 seeds): r moves it no more than"
        in words
    )
    assert "Counted on mini" in words and words.count("GFLOPs of a training step") == 1
    assert words.index("All of table1") < words.index("All of rank"), "tables that compare methods come first"
    assert page.references and all(reference.startswith("#s") for reference in page.references)
    assert not re.search(
        r"<script|<link|@import|url\(|https?://(?!www.w3.org/2000/svg)|incomplete: |nan", text
    )


def test_incomplete_shows(call, tmp_path):
    """Would catch: a run that was killed, or a table that is not done, passed off as whole."""
    runs, out = tmp_path / "runs", tmp_path / "report.html"
    more = {"complete": False, "settings": {"tasks": ["cola"], "rows": ["a", "b", "c"]}}
    sweep_folder(runs / "table4", "table4", [("hut", 8)], **more)
    content = json.loads((runs / "table4" / "table.json").read_text())
    content["cells"][0]["runs"][0]["scores"]["single_class"] = True
    content["cells"][0]["runs"][1] = {"seed": 1, "failed": "no memory"}
    (runs / "table4" / "table.json").write_text(json.dumps(content))
    run_folder(runs / "table4" / "cola" / "cut", 2, [0.1], finished=False)
    run_folder(runs / "alone", 0, [0.3], finished=False)
    call(runs, "-o", out)
    words = " ".join(Page(out.read_text()).words)
    assert "incomplete: 1 of 3 cells; 1 failed; 1 incomplete run" in words
    assert "Incomplete: table4/cola/cut: stopped or running, 1 of 2 epochs done" in words
    assert "The command, and notes (1 failed, 1 predicting a single class)" in words
    assert "incomplete: 0 of 1" in words and "1 of 1 incomplete" in words and "3 incomplete" in words


def test_curve_and_band(tmp_path):
    """Would catch: a band that is not from lowest to highest, a mean of other epochs, y upside down."""
    for seed, scores in enumerate(([0.1, 0.4], [0.3, 0.8], [0.2])):
        run_folder(tmp_path / str(seed), seed, scores)
    rows = report.curve([report.read_run(tmp_path / str(s), tmp_path) for s in range(3)], "matthews")
    assert [[round(v, 9) for v in row] for row in rows] == [[1, 10, 20, 30], [2, 40, 60, 80]]
    x, y = report.Axis([1, 2], 40, 220), report.Axis([0, 100], 126, 24)
    drawn = report.panel("hut r8", {"hut r8": rows}, x, y, 1)
    corners = [(x(1), y(30)), (x(2), y(80)), (x(2), y(40)), (x(1), y(10))]
    assert f'points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"' in drawn
    assert f'points="{x(1):.1f},{y(20):.1f} {x(2):.1f},{y(60):.1f}"' in drawn
    assert y(80) < y(10) and ">60.0<" in drawn


@pytest.mark.parametrize("means", [[50] * 13 + [90], [50] + [90] * 13, [*range(0, 140, 10)]])
def test_labels_do_not_overlap(means):
    """Would catch: two labels in one place, a label outside of the figure, one that moved without need."""
    drawn = report.scatter("t", "x", [(f"m{i}", i, mean, 1) for i, mean in enumerate(means)])
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" class="label', drawn)]
    dots = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert len(heights) == 14 and min(b - a for a, b in pairwise(heights)) > 11
    assert heights[0] >= 28 and heights[-1] <= 262
    assert heights[0] == dots[0] + 4, "the best has room beside its dot"


METHODS = [("full", None), ("head", None), ("bitfit", None), ("houlsby", 64), ("houlsby", 8),
           ("pfeiffer", 64), ("pfeiffer", 16), ("lin", 8), ("top2", None), ("prefix", 8), ("lora", 8),
           ("vera", 256), ("fourierft", 1000), ("hut", 8)]  # fmt: skip


def test_picture(call, tmp_path):
    """Would catch: a method left out, labels over each other or a dot, a file that does not stand alone."""
    runs, out = tmp_path / "runs", tmp_path / "picture.svg"
    sweep_folder(runs / "table1", "table1", METHODS)
    call(runs, "--picture", out)
    root = ElementTree.fromstring(out.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and {"viewBox", "width", "height"} <= {*root.keys()}
    assert "prefers-color-scheme: dark" in out.read_text() and "system-ui" in out.read_text()
    assert not re.search(r"<script|@import|url\(|href|nan", out.read_text())
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
    assert left + report.CHARACTER * len("fourierft r1000 qv") <= float(root.get("width"))
    x_of = {
        kind: [float(one.get("cx")) for one in dots if one.get("class") == kind] for kind in ("hut", "other")
    }
    assert x_of["hut"][0] == min(*x_of["hut"], *x_of["other"]), "hut has the fewest parameters here"
    assert len({one.get("cy") for one in dots}) == 1


def test_a_picture_needs_scores(call, tmp_path, capsys):
    """Would catch: a traceback, or an empty picture."""
    run_folder(tmp_path / "runs", 0, [0.5])
    out = tmp_path / "picture.svg"
    assert "expected a table.json with scores" in fails(capsys, call, tmp_path / "runs", "--picture", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ({}, "no table.json, args.json"),
        ({"a/args.json": '{"args":\n {]}'}, "args.json, line 2: not JSON"),
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


def test_out_that_cannot_be_written(call, tmp_path, capsys):
    """Would catch: a traceback after all the work."""
    run_folder(tmp_path / "runs", 0, [0.5])
    assert "No such file or directory" in fails(
        capsys, call, tmp_path / "runs", "-o", tmp_path / "no" / "report.html"
    )
