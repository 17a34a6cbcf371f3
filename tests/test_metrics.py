"""metrics.py compared with other software, whose scores and scripts are in `reference/`."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import metrics
import ptb
from data.glue import TASKS

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"
GLUE = json.loads((REFERENCE / "glue_scores.json").read_text(encoding="utf-8"))
SQUAD = json.loads((REFERENCE / "squad_scores.json").read_text(encoding="utf-8"))
E2E = json.loads((REFERENCE / "e2e_scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "case", GLUE["classes"] + GLUE["many"] + GLUE["reals"], ids=lambda case: case["name"]
)
def test_glue_scores_equal_scikit_learn_and_scipy(case):
    """Would catch: a wrong formula, swapped arguments, ties ranked by order, degenerate cases that raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, expected in case["scores"].items():
            score = getattr(metrics, name)(case["predictions"], case["labels"])
            assert type(score) is float
            assert score == pytest.approx(expected, abs=1e-12, nan_ok=True), name


def test_a_diverged_model_scores_nan_not_a_number_of_its_own():
    """Spearman's ranks would turn nan predictions into an ordinary correlation."""
    assert np.isnan(metrics.pearson([1.0, float("nan"), 3.0], [1, 2, 3]))
    assert np.isnan(metrics.spearman([1.0, float("nan"), 3.0], [1, 2, 3]))


def test_glue_scores_are_those_of_the_tasks_rows_in_order():
    """The first score selects the best epoch: accuracy on MRPC and QQP, Pearson on STS-B."""
    scores = {"cola": ("matthews",), "mrpc": ("accuracy", "f1"), "stsb": ("pearson", "spearman")}
    assert scores.items() <= {name: task.scores for name, task in TASKS.items()}.items()
    found = metrics.glue_scores(scores["mrpc"], [1, 1, 0, 0], [1, 0, 0, 0])
    assert found == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)} and list(found) == ["accuracy", "f1"]


@pytest.mark.parametrize("task", TASKS)
def test_every_tasks_scores_can_be_computed(task):
    """Would catch: a row that names a score that is not there, or that its labels do not have."""
    labels = list(range(TASKS[task].num_labels)) if TASKS[task].labels else [0.5, 1.0]
    found = metrics.glue_scores(TASKS[task].scores, labels, labels)
    assert all(score == pytest.approx(1) for score in found.values())


def test_bad_glue_input_is_refused():
    """(N, 1) predictions would broadcast against (N,) labels and give a plausible number."""
    for name in ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"):
        score = getattr(metrics, name)
        with pytest.raises(ValueError, match="shape"):
            score([1, 0, 1], [1, 0])
        with pytest.raises(ValueError, match="shape"):
            score(np.ones((3, 1)), np.ones(3))
        with pytest.raises(ValueError, match="no predictions"):
            score([], [])
    with pytest.raises(ValueError, match="class 2"):
        metrics.f1([0, 2], [0, 1])


def shares(percent):
    return {name: value / 100 for name, value in percent.items()}


@pytest.mark.parametrize("case", SQUAD["cases"], ids=lambda case: case["name"])
def test_squad_scores_equal_the_official_scripts(case):
    """Catches normalisation in another order, v2.0's rule for empty answers, F1 of the first reference."""
    assert metrics.squad_scores([case["answer"]], [case["references"]]) == pytest.approx(
        shares(case["scores"]), abs=1e-12
    )


def test_squad_scores_of_a_set():
    """Catches a mean over something other than questions; and a set that can't be scored."""
    answers, references = ([case[key] for case in SQUAD["cases"]] for key in ("answer", "references"))
    assert metrics.squad_scores(answers, references) == pytest.approx(shares(SQUAD["all"]), abs=1e-12)
    with pytest.raises(ValueError, match="no outputs"):
        metrics.squad_scores([], [])
    with pytest.raises(ValueError, match="2 outputs and 1"):
        metrics.squad_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="output 2 has no reference"):
        metrics.squad_scores(["a", "b"], [["a"], []])


@pytest.mark.parametrize(("sentence", "expected"), E2E["ptb"], ids=lambda text: text[:30])
def test_ptb_words_equal_corenlp(sentence, expected):
    """Each rule of ptb.py is in at least one of these sentences, so that losing or reordering it shows."""
    assert ptb.words(sentence) == expected


@pytest.mark.parametrize("corpus", E2E["corpora"], ids=lambda corpus: corpus["name"])
def test_e2e_scores_equal_the_official_scripts(corpus):
    """A wrong token, clip, length, idf or mean; outputs that are empty or very short; one output alone."""
    for name, score in (
        ("BLEU", metrics.bleu),
        ("NIST", metrics.nist),
        ("ROUGE-L", metrics.rouge_l),
        ("CIDEr", metrics.cider),
    ):
        value = score(corpus["outputs"], corpus["references"])
        assert type(value) is float
        assert value == pytest.approx(corpus["scores"][name], rel=1e-12, abs=1e-18), name


@pytest.mark.parametrize(
    ("written", "meant"),
    [("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("x<skipped>", "x"), ("x-\nx", "xx")],
)
def test_bleu_reads_markup_as_mteval_does(written, meant):
    """Would catch: an entity, a mark or a hyphen at a line's end that counts as text."""
    assert metrics.bleu([f"a b {written} c d"], [[f"a b {meant} c d"]]) == pytest.approx(1)


def test_bleu_takes_the_shorter_of_two_references_that_are_equally_near():
    """Would catch: a brevity penalty for an output that is as near to a shorter reference."""
    assert metrics.bleu(["a b c d"], [["a b c", "a b c d e"]]) == pytest.approx(1)


@pytest.mark.parametrize("corpus", E2E["corpora"][1:2], ids=lambda corpus: corpus["name"])
def test_meteor_equals_the_official_scripts(corpus):
    """Would catch: other options, untokenised text, the mean of the segments' scores."""
    score = metrics.meteor(corpus["outputs"], corpus["references"])
    if score is None:
        pytest.skip(metrics.METEOR_NOT_RUN)
    assert score == pytest.approx(corpus["scores"]["METEOR"], abs=1e-12)


def test_nothing_else_is_called_meteor(monkeypatch):
    """Would catch: another number in the place of METEOR when its program cannot be run."""
    monkeypatch.setattr(metrics.shutil, "which", lambda name: None)
    scores = metrics.e2e_scores(["A pub."], [["A pub."]])
    assert scores["METEOR"] is None
    assert list(scores) == ["BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr"]
    assert "METEOR: not run (needs java and pip install pycocoevalcap)" in metrics.e2e_report(scores).split(
        "\n"
    )
    assert "-p" in metrics.e2e_report(scores).split("\n")[1]


def test_a_meteor_that_fails_says_why(monkeypatch, tmp_path):
    """Would catch: a traceback, without Java's reason, when all the training and decoding is done."""
    (tmp_path / "meteor").mkdir()
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\n[ "$1" = -version ] || { echo "Error: too small a heap"; exit 1; }\n')
    java.chmod(0o755)
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(metrics.shutil, "which", lambda name: str(java))
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(ValueError, match="METEOR's program failed: Error: too small a heap"):
        metrics.meteor(["A pub."], [["A pub."]])


def test_e2e_scores_of_what_cannot_be_scored_are_errors():
    """Fewer references than outputs would otherwise score the outputs that happen to have one."""
    for score in (metrics.bleu, metrics.nist, metrics.meteor, metrics.rouge_l, metrics.cider):
        with pytest.raises(ValueError, match="2 outputs and 1 list"):
            score(["A pub.", "A bar."], [["A pub."]])
        with pytest.raises(ValueError, match="no outputs"):
            score([], [])
        with pytest.raises(ValueError, match="output 2 has no reference"):
            score(["A pub.", "A bar."], [["A pub."], []])


def score_files(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "metrics.py", *arguments], capture_output=True, encoding="utf-8"
    )


def test_files_are_read_as_the_official_script_reads_them(tmp_path):
    """Files may have blocks of any size, spaces at line ends, Windows line ends, a BOM and empty outputs."""
    references, outputs = tmp_path / "references.txt", tmp_path / "outputs.txt"
    references.write_bytes("\ufeffA pub. \r\nThe pub.\r\n\r\nA café.\n  \n\nA bar.".encode())
    outputs.write_bytes(b"A pub.\r\n\nA bar. \n")
    assert metrics.read_references(references) == [["A pub.", "The pub."], ["A café."], ["A bar."]]
    assert metrics.read_outputs(outputs) == ["A pub.", "", "A bar."]


def test_the_command_scores_two_files(tmp_path):
    references, outputs = tmp_path / "references.txt", tmp_path / "outputs.txt"
    corpus = E2E["corpora"][0]
    references.write_text(
        "\n\n".join("\n".join(refs) for refs in corpus["references"]) + "\n", encoding="utf-8"
    )
    outputs.write_text("\n".join(corpus["outputs"]) + "\n", encoding="utf-8")
    done = score_files(references, outputs)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.split("\n")
    assert lines[0] == "BLEU: 0.4524"
    assert lines[1] == "NIST: 5.2046  (as the official script's -p; its Perl variant can differ)"
    assert lines[2] in ("METEOR: 0.4358", metrics.METEOR_NOT_RUN)
    assert lines[3:] == ["ROUGE-L: 0.6521", "CIDEr: 3.3063  (CIDEr-D)", ""]


@pytest.mark.parametrize(
    ("references", "outputs", "message"),
    [
        (b"A pub.\n\nA bar.\n", b"A pub.\n", "has 2 blocks of references, but"),
        (b"A pub.\n", b"A pub.\nA caf\xe9.\n", "outputs.txt, line 2: this is not UTF-8"),
        (b"\n\n", b"A pub.\n", "references.txt: the file is empty"),
        (b"A pub.\n", b"", "outputs.txt: the file is empty"),
        (b"A pub.\n", None, "outputs.txt: No such file"),
    ],
    ids=["counts differ", "not UTF-8", "no references", "no outputs", "no file"],
)
def test_bad_files_get_one_line_and_exit_status_2(tmp_path, references, outputs, message):
    """A traceback, or scores of the outputs up to where the two files part."""
    (tmp_path / "references.txt").write_bytes(references)
    if outputs is not None:
        (tmp_path / "outputs.txt").write_bytes(outputs)
    done = score_files(tmp_path / "references.txt", tmp_path / "outputs.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
