"""experiments/sweep.py: what is run, what is chosen on what, and the table that comes of it."""

import json
import math
import multiprocessing
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import fails

from data import UserError
from experiments import search, sheet, sweep, tables
from folder import alone_in
from methods import DECODER, ENCODER, LAYOUTS, METHODS, T5, methods_of

TRY = "--hold-out"


@pytest.fixture
def command(tiny_model, tiny_glue, tmp_path):
    out = tmp_path / "out"
    return [
        "--model",
        f"{tiny_model}",
        "--data",
        f"{tiny_glue}",
        "--out",
        f"{out}",
        "--epochs",
        "1",
        "--tasks",
        "cola",
    ]


@pytest.fixture
def call(monkeypatch):
    """The command in this process: call("table1", …) -> its exit status."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, arguments)])
        try:
            sweep.main()
        except SystemExit as error:
            return error.code
        return 0

    return main


def value(arguments, name):
    return arguments[arguments.index(name) + 1] if name in arguments else None


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """In place of runs: pretend(score) lets each score score(arguments) -> (last, best); -> arguments."""

    def install(score):
        ran = []

        def run(script, folder, arguments, *_):
            ran.append(arguments)
            last, best = score(arguments)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "args.json").write_text('{"args": {"lr": 0.125}}')
            loss = abs(0.02 - float(value(arguments, "--lr") or 0))
            timing = {"seconds": 30, "step_ms": 12, "energy_kwh": {"utilisation": None, "power": 0.25}}
            (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "timing": timing}))
            names = {"matthews": last, "accuracy": last, "loss": last if "train_e2e" in str(script) else loss}
            if "train_squad" in str(script):
                names = {"f1": last, "exact_match": best}
            result = {"last": names, "best": {"matthews": best, "accuracy": best, "score": best, "epoch": 1}}
            result |= {
                "parameters": {"adapter": 7, "frozen": 693},
                "timing": {"peak_memory_bytes": 5 * 2**20, "seconds": 40},
            }
            result["test"] = {
                "BLEU": 0.5,
                "NIST": 3.25,
                "METEOR": None,
                "ROUGE-L": 0.75,
                "CIDEr": 1.5,
                "score": last,
            }
            return result

        monkeypatch.setattr(search, "run", run)
        monkeypatch.setattr(search, "in_use", lambda *_: {"label_ms": 2.25, "label_memory": 3 * 2**20})
        return ran

    return install


def test_table1_end_to_end(call, command, tmp_path, capsys):
    """Would catch: a finished run that is done again, a failure that ends all, a table that says other."""
    command = ["table1", *command, "--methods", "hut:2", "fourierft", "--seeds", 1, "--lrs", "hut=0.001,0.01"]
    command += ["fourierft=0.01,0.1", "--tries", 1, "--head-lr", "0.005"]
    assert call(*command) == 1
    out, printed = tmp_path / "out", capsys.readouterr().out
    content = json.loads((out / "table.json").read_text())
    hut, fourierft = content["cells"]
    runs = out / "cola" / "hut-r2-qv"
    tries = {
        lr: json.loads((runs / f"try-lr{lr:g}" / "result.json").read_text())["last"]["matthews"]
        for lr in (0.001, 0.01)
    }
    assert {one["lr"]: one["score"] for one in hut["tries"]} == tries and hut["lr"] == max(
        tries, key=tries.get
    )
    result = json.loads((runs / f"lr{hut['lr']:g}-seed0" / "result.json").read_text())
    assert "Each rate is the best of 2 on" in content["how"] and "to 2 at most" in content["how"]
    assert hut["mean"]["matthews"] == result["last"]["matthews"] and hut["parameters"] == 576
    assert (
        "576 coefficients" in fourierft["failed"] and not fourierft["runs"]
    )  # the default n = 1000 is more than there are
    assert content["complete"] and (out / "table.md").read_text() in printed and "| failed |" in printed
    assert "[1] cola" in printed
    # again, with the last run cut before its last write: it goes on, and nothing else is done
    before = {path: path.stat().st_mtime_ns for path in runs.glob("try-*/*.json*")}
    (runs / f"lr{hut['lr']:g}-seed0" / "result.json").unlink()
    again = [word for word in command if "fourierft" not in str(word)]
    assert call(*again) == 0
    assert before == {path: path.stat().st_mtime_ns for path in runs.glob("try-*/*.json*")}
    assert "goes on after epoch 1" in (runs / f"lr{hut['lr']:g}-seed0" / "log.txt").read_text()
    content = json.loads((out / "table.json").read_text())
    (cell,) = content["cells"]
    assert [one["scores"] for one in cell["runs"]] == [one["scores"] for one in hut["runs"]]
    assert "was run with --epochs 1, not as now" in fails(capsys, call, *again, "--epochs", 2)


def test_dev_chooses_nothing(call, command, pretend, tmp_path, tiny_glue):
    """Would catch: a rate chosen by dev scores or their best epoch; a held-out part that is trained on; a
    head's rate chosen by the scores of a head that has learned nothing, which are noise.
    """
    scores = {"0.001": (0.1, 0.9), "0.01": (0.3, 0.3), "0.1": (None, 1.0)}
    head = {"0.0017": (0.1, 0.9), "0.005": (0.1, 0.9), "0.015": (0.2, 0.3), "0.045": (0.3, 0.9)}
    own = scores | head
    ran = pretend(lambda a: own[value(a, "--lr")] if TRY in a else (0.5, 0.8))
    call(
        "table1",
        *command,
        "--methods",
        "hut",
        "full",
        "--lrs",
        "0.001,0.01,0.1",
        "--seeds",
        2,
        "--limit-train",
        30,
    )
    tries, finals = ([a for a in ran if (TRY in a) == tried] for tried in (True, False))
    heads, tries = ([a for a in tries if (value(a, "--method") == "head") == of] for of in (True, False))
    assert {value(a, "--head-lr") for a in (*tries, *finals)} == {"0.015"} and not any(
        "--head-lr" in a for a in heads
    )
    assert len(tries) == 6 and [value(a, "--lr") for a in finals] == ["0.01"] * 4
    assert [value(a, "--seed") for a in finals] == ["0", "1"] * 2 and {
        value(a, "--limit-train") for a in finals
    } == {"30"}
    entry = json.loads((tmp_path / "out" / "table.json").read_text())["cells"][0]
    assert entry["mean"] == {"matthews": 0.5} and entry["std"] == {"matthews": 0.0}


def test_a_tie_goes_to_the_lower_loss_and_one_class_to_none(call, command, pretend, tmp_path):
    """Would catch: of rates that score the same the one that has learned least; a single class at 0 chosen
    before rates that score a little below.
    """
    pretend(lambda a: (0.0, 0.0))
    once = ["--methods", "hut", "--head-lr", "1e-2", "--seeds", 1]
    call("table1", *command, *once, "--lrs", "0.001,0.015,0.1")
    assert json.loads((tmp_path / "out" / "table.json").read_text())["cells"][0]["lr"] == 0.015
    scores = {"matthews": -0.02, "loss": 0.7}, {"matthews": 0.0, "loss": 0.6, "single_class": True}
    learnt, one_class = (tables.GLUE.worth({"last": one}, "cola") for one in scores)
    assert learnt > one_class
    early, late = (tables.READ.worth({"best": {"score": 0.5, "epoch": n}}, "cola") for n in (2, 5))
    assert early > late


def test_the_list_grows_downwards_where_no_rate_has_learned(call, command, pretend, tmp_path, monkeypatch):
    """Would catch: a rate chosen by the noise of models that all predict one class, with tries left."""
    pretend(lambda a: (0.0, 0.0))
    learned = search.Sweep.tried
    monkeypatch.setattr(search.Sweep, "tried", lambda self, lr, *given: (
        (lr < 0.2, *(worth := learned(self, lr, *given))[0][1:]), worth[1]
    ))  # fmt: skip
    given = ["--methods", "hut", "--lrs", "0.5,1,2", "--tries", 6, "--head-lr", 1, "--seeds", 1]
    call("table1", *command, *given)
    (cell,) = json.loads((tmp_path / "out" / "table.json").read_text())["cells"]
    assert [one["lr"] for one in cell["tries"]] == [0.06, 0.12, 0.25, 0.5, 1, 2] and cell["lr"] == 0.06


@pytest.mark.parametrize(
    ("best", "tried"),
    [(5.0, [1.0, 2.0, 4.0, 8.0]), (0.3, [0.12, 0.25, 0.5, 1.0, 2.0]), (99, [1.0, 2.0, 4.0, 8.0, 16.0])],
)
def test_the_list_grows_where_the_best_is(call, command, pretend, tmp_path, best, tried):
    """Would catch: a search that ends at its edge with tries left; more tries than asked for; a best rate at
    the end of the list that is not marked.
    """
    pretend(lambda a: (-abs(math.log(float(value(a, "--lr")) / best)), 0))
    given = ["--methods", "hut", "--lrs", "1,2", "--tries", 5, "--head-lr", 1, "--seeds", 1]
    call("table1", *command, *given)
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [one["lr"] for one in content["cells"][0]["tries"]] == tried
    (shown,) = content["tables"]
    assert (
        dict(zip(shown["header"], shown["rows"][0], strict=True))["rate"]
        == {5.0: "4", 0.3: "0.25", 99: "16*"}[best]
    )


def test_the_head_alone_is_searched_by_its_own_rate(call, command, pretend):
    """Would catch: a row of tries that all have the same rate, that of every other method's head."""
    ran = pretend(lambda a: (0.5, 0.5))
    call("table1", *command, "--methods", "head", "--seeds", 1, "--tries", 3)
    assert len(ran) == 4 and not any("--head-lr" in a for a in ran)


def test_a_table_that_is_cut_short_says_so(call, command, pretend, tmp_path):
    """Would catch: half a table that is taken for a whole one, and published."""

    def score(a):
        if value(a, "--method") == "lora":
            raise KeyboardInterrupt
        return 0.5, 0.5

    pretend(score)
    given = [*command, "--methods", "hut", "lora", "--seeds", 1, "--lrs", 1, "--head-lr", 1]
    with pytest.raises(KeyboardInterrupt):
        call("table1", *given)
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content["complete"] is False and [cell["method"] for cell in content["cells"]] == ["hut"]


def test_a_methods_own_rates_go_before_those_of_all(call, command, pretend):
    """Would catch: --lrs of one method passed over; a list out of order, which grows at a wrong end."""
    ran = pretend(lambda a: (0.5, 0.5))
    rates = ["--lrs", "2,1", "hut=4,3", "--tries", 2]
    call("table1", *command, "--methods", "hut", "lora", *rates, "--seeds", 1, "--head-lr", 1)
    assert [value(a, "--lr") for a in ran if TRY in a] == ["3.0", "4.0", "1.0", "2.0"]


def test_paper_is_fixed_rates_and_the_last_epoch(call, command, pretend, tmp_path):
    """Would catch: a search or a rate of the sweep's under --paper; the best epoch as the score."""
    ran = pretend(lambda a: (0.5, 0.8))
    assert call("table1", *command, "--methods", "hut", "lora", "--seeds", 1, "--paper") == 0
    assert [value(a, "--lr") for a in ran] == [None, None] and not any(TRY in a for a in ran)
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [c["mean"]["matthews"] for c in content["cells"]] == [0.5, 0.5] and content["cells"][0][
        "lr"
    ] == 0.125
    assert "at the last epoch" in content["how"] and "the paper's, or the training" in content["how"]
    shown = content["tables"][0]
    row = dict(zip(shown["header"], shown["rows"][0], strict=True))
    assert row["cola matthews"] == "50.0" and row["paper"] == "70.5 ± 1.2" and row["best epoch"] == "80.0"


def test_read_runs_the_rates_that_its_paper_prints(call, command, pretend, tmp_path):
    """Would catch: Table 9's rates under another method or task; a method without a rate."""
    ran = pretend(lambda a: (0.5, 0.8))
    call("read", *command, "--paper", "--methods", "read", "read:128", "houlsby", "hut", "--seeds", 1)
    assert [value(a, "--lr") for a in ran] == ["0.000329", "0.000329", "0.00116", None]
    assert [value(a, "--r") for a in ran] == ["256", "128", "64", "8"]
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [cell["lr"] for cell in content["cells"]] == [0.000329, 0.000329, 0.00116, 0.125]


def test_table3_searches_by_loss_and_without_the_test_set(call, pretend, tmp_path):
    """Would catch: the largest loss chosen, a search that decodes the test set, one text on both sides."""
    folder = tmp_path / "e2e"
    folder.mkdir()
    rows = [f"name[{n}],{n} is {w} .\n" for n in "ABCDEFGH" for w in ("small", "old", "red")]
    (folder / "trainset.csv").write_text("mr,ref\n" + "".join(rows))
    ran = pretend(lambda a: (float(value(a, "--lr") or 0), 0))
    arguments = [
        "--data",
        folder,
        "--methods",
        "frozen",
        "hut",
        "--seeds",
        2,
        "--tries",
        8,
        "--out",
        tmp_path / "out",
    ]
    assert call("table3", *arguments, "--", "--warmup", "0.06") == 0
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(c["method"], c["lr"], len(c["runs"])) for c in content["cells"]] == [
        ("frozen", None, 1),
        ("hut", 2.8e-6, 2),
    ]
    (shown,) = content["tables"]
    scores = ["BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr"]
    assert shown["header"][3:13] == [title for score in scores for title in (score, "paper")]
    hut = shown["rows"][1][3:13]
    assert hut[::2] == ["50.0 ± 0.0", "3.25 ± 0.00", "–", "75.0 ± 0.0", "1.50 ± 0.00"]
    assert hut[1::2] == ["70.4 ± .1", "8.86 ± .02", "46.7 ± .2", "72.1 ± .1", "2.54 ± .01"]
    tries = [a for a in ran if TRY in a]
    assert len(tries) == 8 and all(value(a, "--max-new-tokens") == "1" for a in tries)
    assert all(value(a, "--warmup") == "0.06" for a in ran)


def test_read_end_to_end(call, command, tiny_t5, tmp_path, capsys):
    """Would catch: a score of validation in the table; a time, memory or size of another run or epoch."""
    command = [
        "read",
        *command,
        "--model",
        tiny_t5,
        "--methods",
        "read:4",
        "--seeds",
        1,
        "--lrs",
        "0.001,0.01",
        "--tries",
        2,
    ]
    assert call(*command, "--epochs", 2) == 0
    (cell,), out = json.loads((tmp_path / "out" / "table.json").read_text())["cells"], capsys.readouterr().out
    runs = {lr: tmp_path / "out" / "cola" / "read-r4" / f"lr{lr:g}-seed0" for lr in (0.001, 0.01)}
    results = {lr: json.loads((folder / "result.json").read_text()) for lr, folder in runs.items()}
    assert [one["score"] for one in cell["tries"]] == [r["best"]["score"] for r in results.values()]
    result, epochs = results[cell["lr"]], (runs[cell["lr"]] / "metrics.jsonl").read_text().splitlines()
    assert cell["mean"]["score"] == result["test"]["score"] and result["method"] == "read"
    seconds = json.loads(epochs[result["best"]["epoch"] - 1])["timing"]["seconds"]
    memory = result["timing"]["peak_memory_bytes"]
    cost = cell["runs"][0]["cost"]
    assert cost.pop("label_ms") > 0 and cost.pop("label_memory") > 50 * 2**20
    assert cost.pop("step_ms") > 0 and cost == {
        "memory": memory,
        "seconds": search.rounded(seconds, 4),
        "epochs": result["best"]["epoch"],
    }
    assert (runs[cell["lr"]] / "in-use.json").exists()
    counts = result["parameters"]
    assert f"| read r4 | {counts['adapter']:,} ({100 * counts['adapter'] / counts['frozen']:.2f} %) |" in out
    assert "kWh" not in out and "[2]" in out and "[3]" not in out
    assert "Outputs that are not a label, counted as wrong: cola read r4 (seed 0: 6)" in out


def test_read_chooses_on_validation_and_runs_nothing_twice(call, command, pretend, tmp_path, capsys):
    """Would catch: a rate chosen on test; the chosen rate's first seed run again; held-out examples."""
    scores = {"0.001": (0.9, 0.1), "0.01": (0.25, 0.8), "0.1": (1.0, None)}  # (test, validation)
    ran = pretend(lambda a: scores[value(a, "--lr")])
    call(
        "read",
        *command,
        "--methods",
        "full",
        "prompt",
        "--seeds",
        2,
        "--lrs",
        "0.001,0.01,0.1",
        "--limit-train",
        30,
    )
    each = [("0.001", "0"), ("0.01", "0"), ("0.1", "0"), ("0.01", "1")]
    assert [(value(a, "--lr"), value(a, "--seed")) for a in ran] == each * 2
    assert not any(TRY in a for a in ran) and {value(a, "--limit-train") for a in ran} == {"30"}
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(c["lr"], c["mean"]) for c in content["cells"]] == [(0.01, {"score": 0.25})] * 2
    full, prompt = content["tables"][0]["rows"]
    assert full[:8] == ["full", "7 (1.00 %)", "100 %", "25.0 ± 0.0", "53.97", "2", "0.01", "3, 120"]
    assert full[8:] == ["5", "12.0", "30", "5", "1 ± 0", "0.25 ± 0", "2.2", "3"]
    assert prompt[:2] == ["prompt r20", "7 (1.01 %)"]
    printed = capsys.readouterr().out
    assert "[8]" in printed and "[9]" not in printed


def test_what_is_said_over_tasks():
    """Would catch: a sum of memories, a mean time over tasks, a task that is missing counted as nothing."""
    keys = ("memory", "step_ms", "seconds", "epochs", "utilisation", "power", "label_ms", "label_memory")

    def task(*runs):
        return {
            "runs": [
                {"cost": {k: v for k, v in zip(keys, run, strict=True) if v is not None}} for run in runs
            ]
        }

    several = (
        (2**20, 7, 9, 3.8, 1, None, 7, 2**21),
        (2**20, 9, 11, 4.2, 1, None, 8, 2**21),
        (2**20, 8, 40, 4.0, 1, None, 9, 2**21),  # its seconds are another program's
    )
    cells = [task(*several), task((5 * 2**20, 5, 100, 7.5, 0.5, 1, 2, 2**20))]

    def shown(*more):
        return [sheet.over_tasks(column, [*cells, *more]) for column in tables.READ.costs]

    assert shown() == ["5", "7.0", "111", "3", "11.5 ± 0.2", "1.5 ± 0", "–", "7.0", "2"]
    assert shown(None) == ["…"] * 9 and shown({"runs": []}) == ["–"] * 9
    assert tables.summed([(1.0, 3.0), (2.0, 4.0), (3.0, None)]) == "6 ± 5"  # deviations add as squares
    assert (
        tables.number("loss", 0.12345) == "0.123" and tables.number("matthews", 0.7049, 0.012) == "70.5 ± 1.2"
    )


def test_the_mean_over_tasks():
    """Would catch: a sum that is divided by another number; a mean of what is there, before all is."""
    base = {"method": "hut", "r": 8, "targets": "qv", "lr": 1, "tries": [], "runs": []}
    scores = {"cola": ("matthews", 0.5), "mrpc": ("accuracy", 0.6), "rte": ("accuracy", 1.0)}
    base |= {"parameters": 7, "backbone": 70}
    cells = [base | {"task": task, "mean": dict([score]), "std": {}} for task, score in scores.items()]
    for some, mean in ((cells, "70.0"), (cells[:2], "–")):
        content = {"table": "table1", "settings": {"tasks": [*scores]}, "cells": some}
        shown = sheet.sheets(content)[0]
        assert dict(zip(shown.header, shown.rows[0], strict=True))["mean"] == mean


def test_a_score_that_is_not_defined_is_not_left_out():
    """Would catch: a row in bold, or ahead, as the seed in which it collapsed does not count."""
    cells = {
        name: {"stsb": {"runs": [{"seed": s, "scores": {"pearson": x}} for s, x in enumerate(scores)]}}
        for name, scores in (("hut", [0.5, 0.6, 0.7]), ("lora", [0.9, None, 0.9]))
    }
    cells["hut"]["stsb"]["runs"].append({"seed": 3, "failed": "no memory"})
    assert sheet.by_row(cells, "stsb", "pearson") == {"hut": {0: 0.5, 1: 0.6, 2: 0.7}, "lora": {}}


def test_whom_the_rows_are_compared_with():
    """Would catch: a rival's column that does not say which of its rows; one of several rows as the rival,
    where none is the method's own; failed runs that n counts.
    """

    def shown(*rows):
        cells = []
        for r, failed in rows:
            runs = [{"seed": s, "scores": {"matthews": 0.1 * r + 0.01 * s}} for s in range(6)]
            runs[:failed] = [{"seed": s, "failed": "lr too high"} for s in range(failed)]
            base = {"task": "cola", "method": "hut", "targets": "qv", "lr": 1, "tries": []}
            base |= {"parameters": 7, "backbone": 70}
            cells.append(base | {"r": r, "runs": runs, "mean": {}, "std": {}})
        (table,) = sheet.sheets({"table": "table5", "settings": {"tasks": ["cola"]}, "cells": cells})
        lines = [dict(zip(table.header, row, strict=True)) for row in table.rows]
        (title,) = [name for name in table.header if "95 %" in name] or [None]
        return title, [(line["n"], line.get(title, "")[:5]) for line in lines]

    assert shown((2, 0), (8, 1)) == ("− hut r8 qv [95 %]", [("6", "−60.0"), ("5", "–")])
    assert shown((8, 0)) == (None, [("6", "")])
    assert shown((2, 0), (4, 0)) == (None, [("6", ""), ("6", "")])


def test_rows_of_tables_4_and_5(call, command, pretend, tmp_path):
    """Would catch: other ranks than the paper's; a search for every r, which does not change the rate."""
    ran = pretend(lambda a: (0.5, 0.5))
    command += ["--head-lr", "1e-2", "--tries", 3, "--seeds", 1]
    call("table4", *command)
    assert [(value(a, "--targets"), value(a, "--r")) for a in ran if TRY not in a] == [
        ("q", "16"), ("k", "16"), ("v", "16"), ("o", "16"),
        ("qk", "8"), ("qv", "8"), ("qkv", "4"), ("qkvo", "2"),
    ]  # fmt: skip
    ran.clear()
    call("table5", *command, "--out", tmp_path / "table5")
    assert [value(a, "--r") for a in ran if TRY not in a] == ["1", "2", "4", "8", "64"] * 3
    assert [(value(a, "--targets"), value(a, "--r")) for a in ran if TRY in a] == [
        (letters, "8") for letters in ("v", "qv", "qkvo") for _ in range(3)
    ]


def test_rank_sets_every_r_against_the_papers(call, command, pretend, tmp_path, capsys):
    """Would catch: differences of runs of other seeds; a rate searched for every r; a claim of 4 seeds."""
    pretend(lambda a: (0.01 * int(value(a, "--seed")) + 0.1 * (value(a, "--r") == "64"), 0))
    given = ["rank", *command, "--ranks", 1, 8, 64, "--head-lr", "1e-2", "--tries", 3]
    call(*given)
    (shown,) = json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    differences = [row[shown["header"].index("− hut r8 qv [95 %]")] for row in shown["rows"]]
    assert differences == ["+0.0 [+0.0, +0.0], p 1.000", "–", "+10.0 [+10.0, +10.0], p <.001"]
    assert [row[2].count("**") for row in shown["rows"]] == [0, 0, 2]
    printed = capsys.readouterr().out
    assert "[18]" in printed and "[19]" not in printed  # 3 tries, r = 1, 8 and 64 with five seeds
    call(*given, "--seeds", 4)
    assert "[95 %]" not in "".join(
        json.loads((tmp_path / "out" / "table.json").read_text())["tables"][0]["header"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: table ("),
        (["table9"], "invalid choice: 'table9'"),
        (["table1", "--tasks", "colo"], "--tasks colo: unknown: table1 takes cola sst2"),
        (["table3", "--tasks", "cola"], "--tasks cola: unknown: table3 takes e2e"),
        (["table1", "--methods", "magic"], "--methods magic: expected METHOD or METHOD:R"),
        (["table1", "--methods", "full:8"], "--methods full:8: expected"),
        (["table1", "--methods", "hut:0"], "--methods hut:0: expected"),
        (["table1", "--lrs", "x"], "--lrs x: 'x': expected a number above 0"),
        (["table1", "--lrs", "hut=1e-3"], "same number of tries: full 3"),
        (["table4", "--lrs", "lora=1e-3"], "'lora' is not among the methods: hut"),
        (["table4", "--targets", "qkvou"], "--targets qkvou: table4 has 1 to 4 targets"),
        (["table4", "--ranks", "1"], "--ranks: table4 has none to choose"),
        (["table1", "--paper", "--lrs", "1e-3"], "leave --lrs out"),
        (["table1", "--paper", "--model", "mini"], "--paper: mini has settings of its own"),
        (["read", "--tasks", "rte"], "--tasks rte: unknown: read takes cola sst2 mrpc"),
        (
            ["read", "--methods", "vera"],
            "--methods vera: expected METHOD or METHOD:R, of hut read full bitfit",
        ),
        (["read", "--head-lr", "1e-3"], "--head-lr: the models of read have no head"),
        (["table1", "--seeds", "hat=3"], "--seeds hat=3: 'hat' is not among the methods: hut"),
        (["table1", "--seeds", "0"], "--seeds 0: '0': expected a whole number"),
    ],
)
def test_bad_arguments_end_in_one_line(call, tmp_path, capsys, arguments, message):
    """Would catch: a traceback, or hours of runs before the mistake is met."""
    assert message in fails(capsys, call, *arguments, "--out", tmp_path / "out")


def test_what_a_run_is_given_is_not_given_twice(call, capsys):
    """Would catch: a row that is called q and v at the rate of its folder, and was run with other ones."""
    line = fails(capsys, call, "table1", "--model", "mini", "--", "--dropout", 0, "--targets=qkvo")
    assert "--targets: each run of a sweep is given its own" in line


STAND_IN = """
import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with (out / "began").open("a") as file:
    file.write(os.environ.get("OMP_NUM_THREADS", "") + " ")
time.sleep(0.5)
(out / "args.json").write_text("{}")
timing = {"seconds": 1, "step_ms": 2, "energy_kwh": {}, "peak_memory_bytes": 3}
(out / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "timing": timing}))
score = {"matthews": 0.5, "loss": 0.1, "epoch": 1}
counts = {"adapter": 7, "head": 1, "frozen": 70}
result = {"last": score, "best": score, "timing": timing, "parameters": counts}
(out / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A script in the place of train_glue.py, which notes in its folder that it began."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    script = tables.GLUE._replace(path=str(tmp_path / "stand_in.py"))
    monkeypatch.setitem(tables.TABLES, "table1", tables.TABLES["table1"]._replace(script=script))


def test_sweeps_on_one_folder_take_a_run_once(call, command, stand_in, tmp_path, monkeypatch):
    """Would catch: two at work on the same run; one that ends before the other's runs are in its table; runs
    side by side that take each other's cores.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    given = ["table1", *command, "--methods", "hut", "lora", "--seeds", 3, "--jobs", 2, "--tries", 3]
    other = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(call(*given)))
    other.start()
    assert call(*given) == 0
    other.join()
    assert other.exitcode == 0
    began = [path.read_text() for path in (tmp_path / "out").rglob("began")]
    assert began == ["1 "] * (3 + 3 + 3 + 6)  # once each, with one thread: tries of the head and both, seeds
    cells = json.loads((tmp_path / "out" / "table.json").read_text())["cells"]
    assert [len(cell["runs"]) for cell in cells] == [3, 3]


def test_list_prints_what_can_begin_and_runs_nothing(call, command, stand_in, tmp_path, capsys):
    """Would catch: a command that starts a run, or is not the run's; a finished run that is listed again; a
    rate that was chosen by tries of other settings.
    """
    given = ["table1", *command, "--methods", "hut", "--seeds", 2, "--head-lr", "1e-2", "--tries", 3]

    def listed():
        assert call(*given, "--list") == 0
        return capsys.readouterr().out.splitlines()

    tries = listed()
    assert len(tries) == 3 and not list((tmp_path / "out").rglob("began"))
    for line in tries:
        subprocess.run(shlex.split(line), check=True)
    seeds = listed()
    assert [value(line.split(), "--seed") for line in seeds] == ["0", "1"]
    for line in seeds:
        subprocess.run(shlex.split(line), check=True)
    assert "was run with" in fails(capsys, call, *given, "--limit-train", 9, "--list")
    assert listed() == [] and call(*given) == 0
    assert {path.read_text().count(" ") for path in (tmp_path / "out").rglob("began")} == {1}


def test_a_run_that_failed_before_it_began_may_be_given_other_arguments(tmp_path):
    """Would catch: a mistyped --model that only another --out mends; a reason that is not the script's."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\nprint('first', file=sys.stderr)\nsys.exit('error: no such ' + sys.argv[1])\n"
    )
    for name in ("a", "b"):
        with pytest.raises(search.Failed, match=f"^no such {name}$"):
            search.run(script, tmp_path / "out", [name], None, set())
    (tmp_path / "out" / "args.json").write_text("{}")
    with pytest.raises(UserError, match="was run with b, not as now"):
        search.run(script, tmp_path / "out", ["c"], None, set())


def test_a_run_that_another_process_is_at_is_left_to_it(monkeypatch, tmp_path):
    """Would catch: a run that outlived its sweep (kill -9, a terminal that was closed) taken for a failed try
    of its rate, or robbed of the file that it is writing; another sweep's run taken as this one's, although
    it has other arguments; a wait without end, and without a word, for a folder that can't be written.
    """
    written = tmp_path / "checkpoint.pt.1.tmp"
    for name in ("sweep.lock", "lock"):
        with alone_in(tmp_path, name):
            written.write_text("")
            assert search.run(tmp_path / "none.py", tmp_path, ["b"], None, set()) is None
            assert name == "sweep.lock" or written.exists()
    assert not (tmp_path / "command.json").exists()

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("folder.TemporaryFile", full)
    with pytest.raises(UserError, match="No space left on device"):
        search.run(tmp_path / "none.py", tmp_path, ["b"], None, set())


@pytest.mark.parametrize("name", ["table1", "table3", "squad", "read"])
def test_a_method_is_known_by_its_row_alone(monkeypatch, name):
    """Would catch: a list of methods, sizes, targets or rates beside methods.py's."""
    layout = tables.TABLES[name].script.layout
    monkeypatch.setitem(METHODS, "new", METHODS["lora"]._replace(lr={layout: 0.25}, mini={layout: 1.0}))
    for model, middle in ((None, 0.25), ("mini", 1.0)):
        more = ["--model", model] if model else []
        monkeypatch.setattr(sys, "argv", ["sweep.py", name, *more, "--methods", *methods_of(layout)])
        args = sweep.arguments()
        rows = {row.method: row for row in tables.TABLES[name].rows(args)}
        assert list(rows) == methods_of(layout) and rows["new"][:3] == (
            "new",
            METHODS["lora"].r[layout],
            "qv",
        )
        rates = search.rates_of(args, layout, rows.values())
        assert rates[args.tasks[0], "new"] == (search.rounded(middle / 3), middle, 3 * middle)
        assert (args.tasks[0], "frozen") not in rates and {len(tried) for tried in rates.values()} == {3}


def test_a_table_is_one_record(call, command, pretend, monkeypatch, tmp_path):
    """Would catch: a table that has to be named anywhere but in TABLES."""
    new = tables.TABLES["table4"]._replace(
        title="Another", choices={"targets": ("ud",)}, rows=tables.rows_of_table_4
    )
    monkeypatch.setitem(tables.TABLES, "table9", new)
    ran = pretend(lambda a: (0.5, 0.5))
    assert call("table9", *command, "--seeds", 1, "--head-lr", 1) == 0 and {
        value(a, "--targets") for a in ran
    } == {"ud"}
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content["table"] == "table9" and content["title"] == "Another"
    assert content["command"].startswith("python -m experiments.sweep table9 --model")


def test_squads_rates_are_chosen_by_f1(call, pretend, tmp_path):
    """Would catch: a traceback as SQuAD has no loss on dev, a rate by exact match, scores of 8550.0."""
    best = {name: METHODS[name].lr[ENCODER] for name in ("head", "hut")}

    def score(arguments):
        near = abs(float(value(arguments, "--lr")) - best[value(arguments, "--method")]) < 1e-6
        return (0.855 if near else 0.5), (0.25 if near else 0.75)

    ran = pretend(score)
    more = ["--methods", "hut", "--seeds", 1, "--", "--train-file", "/a/b.json"]
    assert call("squad", "--model", "m", "--out", tmp_path, *more) == 0
    assert {value(a, "--head-lr") for a in ran if "hut" in a} == {str(best["head"])} and "--task" not in ran[
        -1
    ]
    content = json.loads((tmp_path / "table.json").read_text())
    (sheet,) = content["tables"]
    assert content["settings"]["rest"] == ["--train-file", "b.json"]  # no path of the machine
    assert sheet["rows"][0][2:4] == ["85.5", "25.0"] and str(best["hut"]) in sheet["rows"][0]


def test_the_command_names_no_folder_of_the_machine(monkeypatch):
    """Would catch: a private path in what is published, or a command that is cut in the middle of one."""
    given = ["table1", "--model", "/home/my models/x", "--data=~/a b/y", "--out", "/tmp/a b", "--jobs=2"]
    more = ["--lrs", "hut=1e-3,1", "--", "--train-file", "a/b/c"]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *given, *more])
    command = "python -m experiments.sweep table1 --model x --data=y --lrs hut=1e-3,1 -- --train-file c"
    assert sweep.as_given() == command


def test_the_command_names_a_model_of_the_hub_whole(monkeypatch, tmp_path):
    """Would catch: a printed command that asks for another model, as its owner is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "table1", "--model", "owner/some.model-2"])
    assert sweep.as_given().endswith("--model owner/some.model-2")
    (tmp_path / "owner" / "some.model-2").mkdir(parents=True)
    assert sweep.as_given().endswith("--model some.model-2")


def test_the_papers_rows_are_known_methods():
    """Would catch: a record that names a method or size that its models do not have."""
    layouts = set()
    for table in tables.TABLES.values():
        layouts.add(table.script.layout)
        for text in table.choices.get("methods", ()):
            method, _, size = text.partition(":")
            assert method in methods_of(table.script.layout) and (not size or METHODS[method].r), text
    assert layouts == {ENCODER, DECODER, T5} == set(LAYOUTS)


def test_cost_of_a_run_that_was_resumed():
    """Would catch: an error, or 0 ms, where an epoch was resumed after its last step; what another epoch than
    the best took, or the slowest.
    """
    timings = [{"seconds": 9, "step_ms": 5, "energy_kwh": {"power": 1}}, {"seconds": 17, "step_ms": None}]
    timings += [{"seconds": 30, "step_ms": 7, "energy_kwh": {"power": None}}]
    rows = [{"epoch": i, "timing": timing} for i, timing in enumerate(timings, 1)]
    wanted = {"memory": 3, "step_ms": 5, "epochs": 3, "seconds": 30, "power": None}
    assert search.spent(rows, {"best": {"epoch": 3}, "timing": {"peak_memory_bytes": 3}}) == wanted
    assert search.spent([], {"best": {"epoch": 0}, "timing": {}})["seconds"] is None


def test_the_backbone_is_the_model_without_its_method():
    """Would catch: LST's ladders, which have no size but do not merge, counted to the T5 beside them."""
    counts = {"adapter": 5, "frozen": 100}
    found = [search.backbone(method, T5, counts) for method in ("full", "bitfit", "lst", "read", "lora")]
    assert found == [105, 105, 100, 100, 100]


def test_a_duel_begins_no_pair_that_its_time_does_not_hold(call, pretend, capsys, monkeypatch, tmp_path):
    """Would catch: a duel of twelve minutes in place of ten, or of other epochs than --help says."""
    now = [0.0]

    def score(a):
        now[0] += 120
        return 0.5, 0

    ran = pretend(score)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(time=lambda: now[0]))
    assert call("duel", "hut", "lora", "--lrs", 1, "--head-lr", 1, "--out", tmp_path / "duel") == 0
    # a pair takes four minutes, so that a third would end at twelve
    assert "no verdict: 2 pairs" in capsys.readouterr().out
    assert {value(a, "--epochs") for a in ran} == {"10"}


def test_a_duel_ends_in_a_verdict(call, command, pretend, capsys):
    """Would catch: another search for one of the two, pairs of other seeds, the wrong one ahead, a duel that
    does not end; a method against itself with the same seeds.
    """
    better = {"lora": 0.2, "hut": 0.0, "full": 0.0}

    def score(a):
        noise = 0.01 * (int(value(a, "--seed")) * 7919 % 11)
        return 0.5 + better.get(value(a, "--method"), 0) + noise, 0

    ran = pretend(score)
    given = [*command, "--tries", 3, "--head-lr", 1]

    def verdict(*two, minutes="0.03"):
        ran.clear()
        assert call("duel", *two, *given, "--minutes", minutes, "--out", f"{command[5]}-{'-'.join(two)}") == 0
        return capsys.readouterr().out.splitlines()[-1]

    line = verdict("lora", "hut")
    assert line.startswith("lora − hut, cola matthews: +20.0 [+20.0, +20.0], p <.001 over ")
    assert line.endswith(" pairs: lora is ahead")
    seeds = {
        m: [value(a, "--seed") for a in ran if TRY not in a and value(a, "--method") == m] for m in better
    }
    assert len(seeds["hut"]) >= 5 and seeds["hut"] == seeds["lora"] == [
        str(i) for i in range(len(seeds["hut"]))
    ]
    assert [value(a, "--method") for a in ran if TRY in a] == ["lora"] * 3 + ["hut"] * 3
    assert verdict("hut", "lora").endswith("lora is ahead")
    assert verdict("hut", "hut").endswith("neither is ahead")
    assert {int(value(a, "--seed")) >= 1000 for a in ran if TRY not in a} == {True, False}
    assert verdict("hut", "full", minutes="0.00001").endswith(
        "no verdict: 1 pairs, expected 5: give more --minutes"
    )


@pytest.mark.parametrize(
    ("lrs", "line"), [((), "full: no rate worked: a bug"), (("--lrs", 1), "full: a bug")]
)
def test_a_duel_with_a_method_that_fails_ends(call, command, pretend, capsys, lrs, line):
    """Would catch: ten minutes of the other's runs, without a verdict, where a new method has a bug."""

    def score(a):
        if value(a, "--method") == "full":
            raise search.Failed("a bug")
        return 0.5, 0

    pretend(score)
    given = ["duel", "hut", "full", *command, "--tries", 3, "--head-lr", 1, "--minutes", 0.1, *lrs]
    assert f"error: {line}" in fails(capsys, call, *given)


def test_a_duel_has_no_verdict_where_a_score_is_not_defined(call, command, pretend, capsys):
    """Would catch: a traceback after ten minutes where a run predicts a constant, whose Pearson is not
    defined; a method that is ahead by the seeds that worked; one's runs counted as pairs.
    """

    def score(a):
        of, seed = value(a, "--method"), int(value(a, "--seed"))
        return (None if (of, seed % 6) in (("hut", 0), ("lora", 1)) else 0.5 + 0.1 * (of == "hut")), 0

    pretend(score)
    given = ["duel", "--minutes", 0.03, "hut", "lora", *command, "--lrs", 1, "--head-lr", 1]  # in any order
    assert call(*given) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"no verdict: [1-9]\d* and \d+ of \d+ runs have no score", line)
    itself = ["duel", "--minutes", 0.03, "hut", "hut", *command[:5], f"{command[5]}-2", *command[6:]]
    assert call(*itself, "--lrs", 1, "--head-lr", 1) == 0  # both have one name
    assert "runs have no score" in capsys.readouterr().out.splitlines()[-1]
    runs = ({i: 0.5 for i in range(6) if i != left_out} for left_out in (0, 1))
    assert sweep.verdict(("a", "b"), "matthews", *runs).startswith("no verdict: 4 pairs, expected 5")


@pytest.mark.parametrize("arguments", [["duel", "hut"], ["table1", "hut", "lora"]])
def test_a_duel_is_of_two(call, capsys, arguments):
    assert "expected two methods after duel, and only there" in fails(capsys, call, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "cola", "rte"], "--tasks: expected one for a duel"),
        (["--list"], "--seeds, --list: a duel takes neither"),
        (["vera"], "duel hut lora vera: expected two methods"),
        (["--seeds", "5"], "--seeds, --list: a duel takes neither"),
        (["--methods", "bitfit"], "--methods: duel has none to choose"),
    ],
)
def test_a_duel_refuses_what_it_does_not_do(call, pretend, tmp_path, capsys, arguments, message):
    """Would catch: ten minutes of runs where --list asked for none, or with other seeds or methods."""
    pretend(lambda a: (0.5, 0))
    given = ["duel", "hut", "lora", "--model", "x", "--data", "y", "--lrs", 1, "--minutes", 0.001]
    assert message in fails(capsys, call, *given, "--out", tmp_path, *arguments)
