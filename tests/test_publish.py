"""experiments/publish.py, and that RESULTS.md and the README's picture are what results/ gives."""

import json
import random
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest

from data import UserError
from experiments import publish, report
from experiments.sheet import interval, sheets
from experiments.significance import LEVEL, difference
from experiments.tables import number

TABLES = sorted(publish.RESULTS.glob("*/table.json"))
MACHINE = r"(?<![\w.])[/~][\w.-]+/|[A-Z]:\\|localhost"  # a path of somebody's, a host


def test_the_page_and_the_picture_are_what_results_give():
    """Would catch: a digit that is changed in RESULTS.md, in the picture or in results/."""
    page = publish.PAGE.read_text(encoding="utf-8")
    assert publish.filled(page) == page, "python -m experiments.publish writes it"
    assert publish.PICTURE.read_text(encoding="utf-8") == publish.picture(report.find(publish.RESULTS))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_what_is_stored(path):
    """Would catch: a mean that is not its runs'; a path of the machine of the runs; a large file."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(MACHINE, text) and len(text) < 200_000
    found = json.loads(text)
    if f"results/{path.parent.name} -->" in publish.PAGE.read_text(encoding="utf-8"):
        assert found["tables"] == [one._asdict() for one in sheets(found)]
    for cell in found["cells"]:
        for score, mean in cell["mean"].items():
            values = [one["scores"][score] for one in cell["runs"]]
            assert mean == pytest.approx(statistics.fmean(values), abs=1e-9)
            if len(values) > 1:
                assert cell["std"][score] == pytest.approx(statistics.stdev(values), abs=1e-9)


@pytest.mark.parametrize("method", ["hut", "lora"])
def test_one_in_twenty_duels_of_a_method_with_itself_is_called(method):
    """Would catch: a verdict on differences that are those of seeds: 20 are stored, for five against five."""
    cells = report.read(publish.RESULTS / "table1-mini" / "table.json")["cells"]
    (runs,) = (cell["runs"] for cell in cells if cell["method"] == method)
    scores, draw, called = [one["scores"]["matthews"] for one in runs], random.Random(0), 0
    for _ in range(1000):
        drawn = dict(enumerate(draw.sample(scores, 10)))
        found = difference({i: drawn[i] for i in range(5)}, {i: drawn[i + 5] for i in range(5)})
        called += found.p < LEVEL
    assert len(scores) == 20 and 30 < called < 70


def test_read_with_other_options_is_what_results_give():
    """Would catch: a digit that is changed in the lines of RESULTS.md that stand outside of the tables."""

    def cell(name):
        (found,) = (
            c for c in report.read(publish.RESULTS / name / "table.json")["cells"] if c["method"] == "read"
        )
        return found, {one["seed"]: one["scores"]["score"] for one in found["runs"]}

    lines = re.findall(r"(.*\(`results/(read-\S+)`\) \|)(.*)", publish.PAGE.read_text(encoding="utf-8"))
    for _, name, shown in lines:
        (found, scores), (_, plain) = cell(name), cell("read-mini")
        mean = number("score", found["mean"]["score"], found["std"]["score"])
        less = interval("score", difference(scores, plain))
        assert shown == f" {found['parameters']:,} | {found['lr']:g} | {mean} | {less} |"
    assert len(lines) == 3


def test_the_readmes_table_is_what_results_give():
    """Would catch: a digit that is changed in the README's table of scores."""
    text = (publish.ROOT / "README.md").read_text(encoding="utf-8")
    lines = (line.strip("| ").split(" | ") for line in text.partition("## Results")[2].splitlines())
    shown = {words[0]: words[1:] for words in lines if len(words) == 6}
    names = {"HUT": "hut", "LoRA": "lora", "BitFit": "bitfit", "full fine-tuning": "full"}
    for column, name in enumerate(("table1-mini", "cola", "stsb", "mrpc", "table3-mini")):
        cells = {c["method"]: c for c in report.read(publish.RESULTS / name / "table.json")["cells"]}
        score = next(iter(cells["hut"]["mean"]))
        of = {method: {one["seed"]: one["scores"][score] for one in c["runs"]} for method, c in cells.items()}
        for label, method in names.items():
            mean, std = (cells[method][key][score] for key in ("mean", "std"))
            assert shown[label][column] == number(score, mean, std), (name, label)
        less = interval(score, difference(of["hut"], of["lora"])).partition(", p")[0]
        assert shown["HUT − LoRA [95 %]"][column] == less, name


@pytest.fixture
def results(monkeypatch, tmp_path):
    for name in ("RESULTS", "PAGE", "PICTURE"):
        monkeypatch.setattr(publish, name, tmp_path / getattr(publish, name).relative_to(publish.ROOT))


def content(**more):
    runs = [{"seed": s, "scores": {"matthews": 0.5 + 0.01 * s}, "best": {"matthews": 0.6}} for s in range(5)]
    cell = {"task": "cola", "method": "hut", "r": 8, "targets": "qv", "lr": 0.01, "tries": [], "runs": runs}
    cell |= {"parameters": 7, "backbone": 100, "mean": {"matthews": 0.52}, "std": {"matthews": 0.0158}}
    about = {
        "table": "table1",
        "title": "T",
        "command": "sweep",
        "how": "So.",
        "settings": {"tasks": ["cola"]},
    }
    environment = {"git": "abc", "command": "sweep.py --out /home/me/x"}
    return {**about, "environment": environment, "cells": [cell], "tables": [], **more}


def test_a_table_is_taken_and_written_into_its_place(results, monkeypatch, tmp_path):
    """Would catch: words around a table that are lost; a table that is written twice; another's place, or
    none in results/, where the folder is given as "."
    """
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.json").write_text(json.dumps(content()))
    monkeypatch.chdir(tmp_path / "mine")
    stored, text = publish.take(Path("."))
    assert stored == publish.RESULTS / "mine" / "table.json"
    assert json.loads(text)["cells"] == content()["cells"] and "/home" not in text
    assert len(text.splitlines()) < 80
    stored.parent.mkdir(parents=True)
    stored.write_text(text)
    page = "before\n\n<!-- results/mine -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    filled = publish.filled(page)
    assert filled.startswith("before\n\n<!-- results/mine -->\n| method |") and "| 52.0 ± 1.6 |" in filled
    assert (
        filled.endswith("\n`sweep`\n<!-- end -->\nafter <!-- end -->\n") and publish.filled(filled) == filled
    )


def test_a_table_without_a_place_is_said_to_have_none(results, monkeypatch, tmp_path, capsys):
    """Would catch: a table that is stored and never shown, or replaced by its namesake, without a word."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.json").write_text(json.dumps(content()))
    publish.PAGE.write_text("no place\n")
    monkeypatch.setattr(publish, "picture", lambda sections: "")
    monkeypatch.setattr(sys, "argv", ["publish", str(tmp_path / "mine")])
    publish.main()
    assert "a line <!-- results/mine -->" in capsys.readouterr().out
    stored = publish.RESULTS / "mine" / "table.json"
    stored.write_text("kept")
    (tmp_path / "other" / "mine").mkdir(parents=True)
    shutil.copy(tmp_path / "mine" / "table.json", tmp_path / "other" / "mine")
    monkeypatch.setattr(sys, "argv", ["publish", str(tmp_path / "mine"), str(tmp_path / "other" / "mine")])
    with pytest.raises(UserError, match="two folders have one name"):
        publish.main()
    assert stored.read_text() == "kept"


def test_an_unfinished_table_is_not_taken(results, tmp_path):
    """Would catch: half a table that is published."""
    (tmp_path / "table.json").write_text(json.dumps(content(complete=False)))
    with pytest.raises(UserError, match="not finished"):
        publish.take(tmp_path)


def test_a_varied_method_is_not_set_beside_the_papers():
    """Would catch: the paper's READ in the row of --cell untied, whose figures it has not."""
    found = report.read(publish.RESULTS / "read-mini" / "table.json")
    assert "paper" in sheets(found)[0].header
    found["settings"]["rest"] = ["--warmup", "0"]
    assert "paper" in sheets(found)[0].header
    found["settings"]["rest"] = ["--cell=untied"]
    assert "paper" not in sheets(found)[0].header
