"""metrics.py against scores that other software computed; `reference/` holds them, and the scripts that made them."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import metrics

REFERENCE = Path(__file__).parent / "reference"
GLUE = json.loads((REFERENCE / "glue_scores.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GLUE["classes"] + GLUE["reals"], ids=lambda case: case["name"])
def test_glue_scores_equal_scikit_learn_and_scipy(case):
    """Catches a wrong formula, swapped arguments, ties ranked by order, a degenerate case that raises or warns."""
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


def test_glue_scores_names_each_tasks_scores_in_order():
    """The first score selects the best epoch: accuracy on MRPC and QQP, Pearson on STS-B."""
    assert sorted(metrics.GLUE_SCORES) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert metrics.glue_scores("mrpc", [1, 1, 0, 0], [1, 0, 0, 0]) == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    assert list(metrics.glue_scores("stsb", [1, 2, 3], [1, 2, 4])) == ["pearson", "spearman"]
    assert metrics.glue_scores("mnli", [0, 1, 2, 2], [0, 1, 2, 1]) == {"accuracy": 0.75}


def test_bad_glue_input_is_refused():
    """(N, 1) predictions would broadcast against (N,) labels and give a plausible number."""
    for score in (metrics.accuracy, metrics.f1, metrics.matthews, metrics.pearson, metrics.spearman):
        with pytest.raises(ValueError, match="shape"):
            score([1, 0, 1], [1, 0])
        with pytest.raises(ValueError, match="shape"):
            score(np.ones((3, 1)), np.ones(3))
        with pytest.raises(ValueError, match="no predictions"):
            score([], [])
    with pytest.raises(ValueError, match="class 2"):
        metrics.matthews([0, 2], [0, 1])
    with pytest.raises(ValueError, match="unknown GLUE task 'cloa'"):
        metrics.glue_scores("cloa", [1], [1])
