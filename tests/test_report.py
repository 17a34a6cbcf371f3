"""experiments/report.py: the page holds the numbers of the runs, drawn where they belong, and nothing from elsewhere."""

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

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
        cells.append({**entry, "runs": runs, "mean": {"matthews": 0.25}, "std": {"matthews": 0.0707}})
    settings = {"model": "mini", "tasks": ["cola"], "rows": [f"{m}-{r}" for m, r in methods]}
    markdown = "| method | cola matthews | paper |\n|---|---:|---:|\n| hut r8 qv | 25.0 ± 7.1 | 70.5 ± 1.2 |\n\nHow <it> was."
    content = {
        "table": table,
        "complete": True,
        "cells": cells,
        "markdown": markdown,
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
    """Would catch: a number left out, text that is taken for markup, a tag left open, anything fetched from elsewhere."""
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
        "<b>one</b>",
        "75.0",
        "4,321",
        "9.8.7",
        "abacus",
        "complete",
    ):
        assert wanted in words, wanted
    assert (
        "r moves the score by 1.0 (2 values of r), the seed by 9.0 (2 seeds): r moves it no more than the seed"
        in words
    )
    assert "Counted on mini" in words and words.count("GFLOPs of a training step") == 1
    assert page.references and all(reference.startswith("#s") for reference in page.references)
    assert not re.search(r"<script|<link|@import|url\(|https?://|incomplete: |nan", text)


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
    assert "incomplete: 1 of 3 cells; 1 failed; 1 incomplete run" in words
    assert "Incomplete: table4/cola/cut: stopped or running, 1 of 2 epochs done"
    assert "incomplete: 0 of 1" in words and "1 of 1 incomplete" in words and "3 incomplete" in words


def test_curve_and_band(tmp_path):
    """Would catch: a band that is not from the lowest to the highest seed, a mean of other epochs, y upside down."""
    for seed, scores in enumerate(([0.1, 0.4], [0.3, 0.8], [0.2])):
        run_folder(tmp_path / str(seed), seed, scores)
    rows = report.curve([report.read_run(tmp_path / str(s), tmp_path) for s in range(3)], "matthews", 100)
    assert [[round(v, 9) for v in row] for row in rows] == [[1, 10, 20, 30], [2, 40, 60, 80]]
    drawn = report.panel("hut r8", {"hut r8": rows}, (1, 2), (0, 100), 1)
    x, y = report.scale(1, 2, 40, 220), report.scale(0, 100, 126, 24)
    corners = [(x(1), y(30)), (x(2), y(80)), (x(2), y(40)), (x(1), y(10))]
    assert f'points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"' in drawn
    assert (
        f'points="{x(1):.1f},{y(20):.1f} {x(2):.1f},{y(60):.1f}"' in drawn
        and y(80) < y(10)
        and ">60.0<" in drawn
    )


def test_labels_do_not_overlap():
    """Would catch: two labels, or a label and a point, in one place; a label outside of the figure."""
    box = (40, 28, 452, 262)
    points = [(200 + i % 3, 100 + 2 * i) for i in range(14)] + [(450, 30), (41, 260)]
    found = report.place(points, ["fourierft r1000"] * 16, box)
    assert not any(report.overlap(a, b) for i, a in enumerate(found) for b in found[:i])
    assert not any(report.overlap(a, (px, py, px, py)) for a in found for px, py in points)
    assert all(a[0] >= box[0] and a[1] >= box[1] and a[2] <= box[2] and a[3] <= box[3] for a in found)
    moved = report.apart([5.0, 5.0, 5.0, 40.0], 10)
    assert moved[3] == 40 and min(b - a for a, b in pairwise(moved)) > 9.9


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ({}, "no table.json, args.json"),
        ({"a/args.json": '{"args":\n {]}'}, "args.json, line 2: not JSON"),
        ({"a/table.json": "[]"}, "table.json: not a file of this program: it has no 'table'"),
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
