"""train_squad.py from its command line: what a run leaves behind, resuming, errors, and what an adapter is
used for.
"""

import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import WORDS, clip_keeps_hut_in_place, fails, without_timing

import model as model_module
import train_squad
from data import squad
from data.hub import load_tokenizer
from methods import METHODS, methods_of
from model import RobertaSpan
from run import Run


def official(start, count):
    """A SQuAD file of `count` questions: the answer is the animal or child that is "small", and what follows
    it.
    """
    entries = []
    for i in range(start, start + count):
        before = f"the {WORDS[2 + i % 4]} {WORDS[6 + i % 4]} and " * (1 + i % 3)
        answer = f"small {WORDS[2 + i % 3]}"
        context = f"{before}a {answer} {WORDS[6 + i % 2]} ."
        answers = [{"answer_start": len(before) + 2, "text": answer}]
        entries.append(
            {"context": context, "qas": [{"id": str(i), "question": "a small", "answers": answers}]}
        )
    return json.dumps({"version": "1.1", "data": [{"title": "Pets", "paragraphs": entries}]})


@pytest.fixture
def tiny_squad(tmp_path):
    folder = tmp_path / "squad"
    folder.mkdir()
    (folder / "train-v1.1.json").write_text(official(0, 30))
    (folder / "dev-v1.1.json").write_text(official(30, 12))
    return folder


@pytest.fixture
def command(tiny_model, tiny_squad, tmp_path):
    """The arguments of a small run: 2 epochs; a third of the texts needs a second window."""
    return ["--model", str(tiny_model), "--data", str(tiny_squad), "--out", str(tmp_path / "out"),
            "--epochs", "2", "--batch-size", "10", "--lr", "0.01", "--r", "2", "--max-len", "20",
            "--doc-stride", "4"]  # fmt: skip


@pytest.fixture
def run_squad(monkeypatch):
    """train_squad.py in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_squad.py", *map(str, arguments)])
        train_squad.main()

    return call


def test_a_run_and_what_it_leaves(run_squad, command, tmp_path, capsys):
    """Would catch: a missing file or key, a wrong count, windows taken for questions, a best epoch that is
    not the best.
    """
    run_squad(*command)
    out = tmp_path / "out"
    rows, result, _ = without_timing(out)
    assert [row["epoch"] for row in rows] == [1, 2] and [row["step"] for row in rows] == [4, 8]
    assert set(rows[0]) == {"epoch", "step", "train_loss", "exact_match", "f1", "lr"}
    best = max(rows, key=lambda row: (row["f1"], -row["epoch"]))
    assert result["best"] == {key: best[key] for key in ("epoch", "exact_match", "f1")}
    d = 24
    assert result["parameters"] == {
        "adapter": 2 * 2 * (2 * 2 * d + 2 * d),
        "head": 2 * d + 2,
        "frozen": 12_728,
    }
    assert result["task"] == "squad" and result["unreachable"] == {"train": 0, "dev": 0}
    assert json.loads((out / "args.json").read_text())["args"]["doc_stride"] == 4
    adapter = torch.load(out / "adapter.pt", weights_only=True)
    assert adapter["config"]["doc_stride"] == 4 and set(adapter["head"]) == {
        "qa_outputs.weight",
        "qa_outputs.bias",
    }
    printed = capsys.readouterr().out
    assert "30 training questions in 40 windows" in printed and "dev 12 in 16" in printed
    assert "no span of up to 30 tokens: train 0, dev 0" in printed


def test_the_best_epoch_is_the_earliest_of_the_highest_f1(run_squad, command, tmp_path, monkeypatch):
    """Would catch: the best by exact match, the last of those that tie, the lowest."""
    scores = iter([(0.2, 0.4), (0.3, 0.5), (0.1, 0.5), (0.4, 0.45)])
    monkeypatch.setattr(
        train_squad, "score", lambda *a: dict(zip(("exact_match", "f1"), next(scores), strict=True))
    )
    run_squad(*command, "--epochs", 4)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["best"] == {"epoch": 2, "exact_match": 0.3, "f1": 0.5} and result["last"]["epoch"] == 4


def test_the_set_can_be_learned(run_squad, command, tmp_path, capsys):
    """Would catch: targets or answers that are a token off, start and end swapped, windows that get each
    other's targets.
    """
    run_squad(
        *command[:-6],
        *command[-4:],
        "--method",
        "full",
        "--epochs",
        30,
        "--lr",
        3e-3,
        "--dropout",
        0,
        "--max-len",
        32,
    )
    rows, result, _ = without_timing(tmp_path / "out")
    assert rows[-1]["train_loss"] < 0.2 * rows[0]["train_loss"] and result["last"]["exact_match"] == 1


@pytest.mark.parametrize("method", methods_of("encoder"))
def test_life_of_a_method(run_squad, command, tmp_path, capsys, method):
    """Would catch: an adapter file that does not score again what its run reported; a stride that is not its
    own.
    """
    size = ["--r", 4] if METHODS[method].r else []
    basics = [*command[:10], *command[12:], *size]  # without --r
    export = [] if "encoder" not in METHODS[method].merges else ["--export", tmp_path / "merged"]
    run_squad(*basics, "--method", method, "--epochs", 1, *export)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (tmp_path / "merged" / "config.json").exists() == bool(export)
    capsys.readouterr()
    run_squad(*command[:4], "--adapter", tmp_path / "out" / "adapter.pt", "--eval-only")
    assert json.loads(capsys.readouterr().out) == {key: result["best"][key] for key in ("exact_match", "f1")}


def test_dropout_is_on_in_every_epoch(run_squad, command, tmp_path):
    """Would catch: a model that is never put into training mode, or that stays out of it after the first
    scoring. At this rate nothing moves.
    """
    found = []
    for p in (0, 0.5):
        run_squad(*command, "--lr", 1e-30, "--dropout", p, "--out", tmp_path / f"{p}")
        found.append([row["train_loss"] for row in without_timing(tmp_path / f"{p}")[0]])
    assert all(abs(dropped / plain - 1) > 1e-3 for plain, dropped in zip(*found, strict=True))


def test_clip_limits_the_step(run_squad, command, tmp_path, monkeypatch):
    """Would catch: --clip that is left out, or is after the step; a rate that is not set; gradients that the
    next step gets too.
    """
    out = tmp_path / "out"
    clip_keeps_hut_in_place(monkeypatch, run_squad, out, *command)
    assert without_timing(out)[0][-1]["lr"] == pytest.approx(0.01 / 8)


def test_accumulation_is_the_larger_batch(run_squad, command, tmp_path):
    """Would catch: a mean of means where batches differ in size. Without dropout the two must agree but for
    rounding.
    """
    for name, arguments in (("a", ["--batch-size", 20]), ("b", ["--batch-size", 5, "--accumulate", 4])):
        run_squad(
            *command, *arguments, "--dropout", 0, "--epochs", 1, "--limit-train", 10, "--out", tmp_path / name
        )
    steps = [without_timing(tmp_path / name)[0][0]["step"] for name in "ab"]
    assert steps == [1, 1]  # of the 40 windows not more than ten questions have
    whole, parts = (
        [*torch.load(tmp_path / n / "adapter.pt", weights_only=True)["adapter"].values()] for n in "ab"
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # AdamW makes much of the smallest gradients


def test_the_answer_is_the_best_over_all_windows(tiny_model, tiny_squad):
    """Would catch: the last window's answer, a window's answer given to another question, another order of
    batches.
    """
    torch.manual_seed(0)
    model = RobertaSpan.from_pretrained(tiny_model)
    model.qa_outputs.weight.data.mul_(50)
    questions = squad.read(tiny_squad / "dev-v1.1.json")
    windows = squad.encode(load_tokenizer(tiny_model, 120), questions, 14, 3)
    cpu = torch.device("cpu")
    together = train_squad.answers_of(model, questions, windows, cpu, torch.float32)
    differ = 0
    for i, question in enumerate(questions):
        some = [window._replace(question=0) for window in windows if window.question == i]
        each = [train_squad.answers_of(model, [question], [window], cpu, torch.float32)[0] for window in some]
        answer, probability = max(each, key=lambda pair: pair[1])
        assert together[i][0] == answer and together[i][1] == pytest.approx(probability, rel=1e-4)
        differ += answer != each[-1][0]
    assert differ > 0


# ---- resuming


class Killed(BaseException):
    pass


def test_a_run_that_is_cut_and_resumed_is_bit_identical(run_squad, command, tmp_path, monkeypatch):
    """Would catch: state that no file keeps. The run is cut at its 3rd, 7th and 12th file."""
    monkeypatch.setattr(Run, "SAVE_EVERY", 0)  # a checkpoint after every step
    run_squad(*command, "--out", tmp_path / "whole")
    expected = without_timing(tmp_path / "whole")
    replace = os.replace
    for i in (3, 7, 12):
        left = iter(range(i, -1, -1))

        def cut(source, target, left=left):
            replace(source, target)
            if next(left) == 0:
                raise Killed

        monkeypatch.setattr(model_module.os, "replace", cut)
        with pytest.raises(Killed):
            run_squad(*command, "--out", tmp_path / f"cut{i}")
        monkeypatch.setattr(model_module.os, "replace", replace)
        run_squad(*command, "--out", tmp_path / f"cut{i}", "--resume")
        assert without_timing(tmp_path / f"cut{i}") == expected, i


def test_hold_out_keeps_a_paragraph_on_one_side(run_squad, command, tiny_squad, monkeypatch, capsys):
    """Would catch: a paragraph whose other questions were trained on; dev read, or scored, all the same."""
    seen = {}
    monkeypatch.setattr(train_squad, "train", lambda args, *given: seen.update(given[2]) or {})
    monkeypatch.setattr(train_squad, "report", lambda *_: None)
    (tiny_squad / "dev-v1.1.json").unlink()
    run_squad(*command, "--hold-out")
    part, held = ({question.context for question in seen[split][0]} for split in ("train", "dev"))
    assert part and held and not part & held
    assert len(seen["train"][0]) + len(seen["dev"][0]) == 30 and len(seen["dev"][0]) > len(held)
    assert f"{len(seen['dev'][0])} of 30 training examples take the place of dev" in capsys.readouterr().out


def test_another_stride_is_another_run(run_squad, command, capsys):
    """Would catch: a run that is resumed with other windows than it was begun with."""
    run_squad(*command, "--epochs", 1)
    assert "started with doc_stride 4, not 5" in fails(
        capsys, run_squad, *command, "--epochs", 1, "--doc-stride", 5, "--resume"
    )


# ---- a trained adapter


def test_the_loss_is_the_mean_of_start_and_end_for_the_first_answer(
    run_squad, command, tiny_squad, monkeypatch
):
    """Would catch: a loss twice as large as it says, or another answer trained on where annotators differ."""
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    found = train_squad.loss_sum(scores, scores.flip(1), torch.tensor([[0, 2], [1, 1]]))
    assert found.item() == pytest.approx(-(2 * math.log(0.5) + 2 * math.log(0.8)) / 2)
    path, targets = tiny_squad / "train-v1.1.json", []
    content = json.loads(path.read_text())
    for entry in content["data"][0]["paragraphs"]:
        entry["qas"][0]["answers"].append({"answer_start": 0, "text": "the"})
    path.write_text(json.dumps(content))
    target = squad.target
    monkeypatch.setattr(
        squad, "target", lambda window, answer: targets.append(answer[1]) or target(window, answer)
    )
    run_squad(*command, "--epochs", 1)
    assert all(
        words.startswith("small") for words in targets[:40]
    )  # of 40 windows; then unreachable asks for all


def test_the_default_stride_fits_a_short_window(run_squad, command, tmp_path):
    """Would catch: --max-len 20 with an overlap of 128."""
    run_squad(*command[:-2], "--epochs", 1)
    assert json.loads((tmp_path / "out" / "args.json").read_text())["args"]["doc_stride"] == 6


def test_eval_only_predict_submit_export(run_squad, command, tmp_path, capsys, tiny_squad):
    """Would catch: an exported model that differs, answers under other ids, --limit-dev that takes others
    than the first.
    """
    run_squad(*command, "--export", tmp_path / "merged", "--limit-dev", 5)
    assert re.search(r"largest logit difference.* 6 dev windows: \d\.\d\de-0[5-9]", capsys.readouterr().out)
    best = json.loads((tmp_path / "out" / "result.json").read_text())["best"]
    basics = [*command[:4], "--adapter", tmp_path / "out" / "adapter.pt"]
    run_squad(*basics, "--eval-only", "--limit-dev", 5, "--submit", tmp_path / "submission")
    assert json.loads(capsys.readouterr().out.splitlines()[0])["f1"] == best["f1"]
    answers = json.loads((tmp_path / "submission" / "predictions.json").read_text())
    questions = squad.read(tiny_squad / "dev-v1.1.json")[:5]
    assert [*answers] == [question.id for question in questions]
    assert all(answers[question.id] in question.context for question in questions)
    run_squad(*basics, "--predict", questions[0].text, questions[0].context)
    printed = re.fullmatch(r"(.*) \(\d\.\d{3}\)\n", capsys.readouterr().out)
    assert printed[1] == answers[questions[0].id]
    merged = RobertaSpan.from_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    assert sum(p.numel() for p in merged.parameters()) == 12_728 + 50


def test_an_adapter_of_another_task_or_base_is_refused(run_squad, command, tmp_path, tiny_model, capsys):
    """Would catch: a classifier's adapter read as a span's; scores over weights that it was not trained
    on.
    """
    run_squad(*command, "--epochs", 1)
    adapter = tmp_path / "out" / "adapter.pt"
    changed = RobertaSpan.from_pretrained(tiny_model)
    changed.roberta.blocks[0].u.weight.data[0, 0] += 1e-3
    changed.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    line = fails(
        capsys, run_squad, "--model", tmp_path / "other", *command[2:4], "--adapter", adapter, "--eval-only"
    )
    assert "another base checkpoint" in line
    content = torch.load(adapter, weights_only=True)
    torch.save(content | {"task": "cola"}, adapter)
    assert "made by train_glue.py for cola: expected an adapter of train_squad.py" in fails(
        capsys, run_squad, *command[:4], "--adapter", adapter, "--eval-only"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--doc-stride", "-1"], "--doc-stride: '-1': expected a whole number"),
        (
            ["--doc-stride", "14"],
            "question 0: its 2 tokens leave 14 of 20 for the text: expected more than --doc-stride 14",
        ),
        (["--limit-dev", "0"], "--limit-dev: '0': expected"),
        (["--limit-de", "5"], "unrecognized arguments: --limit-de 5"),  # a sweep looks for whole names
        (["--max-len", "5"], "--max-len 5: expected 6 to 32"),
        (["--predict", "who?", "text"], "need --adapter"),
        (
            ["--adapter", "none.pt", "--predict", "who?", "text", "--submit", "x"],
            "--predict: leave --eval-only, --submit",
        ),
        (["--export", __file__], "test_train_squad.py: Not a directory: expected a folder"),
        (["--predict", "who?"], "expected 2 arguments"),
        (["--adapter", "none.pt", "--predict", "who?", " "], "--predict: expected text, in quotes"),
        (["--method", "frozen"], "invalid choice: 'frozen'"),
        (["--method", "prefix", "--export", "merged"], "--method prefix does not merge"),
        (["--data", "nowhere"], "nowhere/train-v1.1.json: No such file"),
        (["--dev-file", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_bad_arguments_end_in_one_line(run_squad, command, tmp_path, capsys, arguments, message):
    """Would catch: a traceback, a run folder left behind."""
    assert message in fails(capsys, run_squad, *command, *arguments)
    assert not (tmp_path / "out").exists()


def test_mini_is_chosen_without_data(run_squad, capsys, tmp_path):
    """Would catch: mini's model on another set, its settings not said."""
    run_squad("--model", "mini", "--method", "head", "--epochs", 1, "--limit-train", 32, "--limit-dev", 8,
              "--out", Path(tmp_path / "mini"))  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        printed.startswith("mini: the bundled model and data")
        and "32 training questions in 32 windows" in printed
    )
