"""Writes glue_scores.json: inputs, and their scores by scikit-learn and scipy.

usage: python tests/reference/make_glue_scores.py      needs scikit-learn and scipy
"""

import json
import warnings
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

warnings.simplefilter("ignore")  # the degenerate cases warn, and are here for their values
rng = np.random.default_rng(0)

labels = rng.integers(0, 2, 40)
mostly_right = np.where(rng.random(40) < 0.8, labels, 1 - labels)
classes = {
    "mostly right": (mostly_right, labels),
    "all right": (labels, labels),
    "all wrong": (1 - labels, labels),
    "only class 0 predicted": (np.zeros(40, int), labels),
    "only class 1 predicted": (np.ones(40, int), labels),
    "only class 0 true": (mostly_right, np.zeros(40, int)),
    "only class 1 true": (mostly_right, np.ones(40, int)),
    "class 0 everywhere": (np.zeros(5, int), np.zeros(5, int)),
    "class 1 everywhere": (np.ones(5, int), np.ones(5, int)),
}

x = rng.normal(size=30).round(3)
tied = rng.integers(0, 11, 30) / 2
reals = {
    "no ties": (x, (x + rng.normal(size=30)).round(3)),
    "ties on both sides": ((tied + rng.integers(-2, 3, 30) / 2).clip(0, 5), tied),
    "inverted": (-x, x),
    "far from zero": (x + 1e6, (x + rng.normal(size=30)).round(3)),
    "two points": (np.array([0.25, 1.5]), np.array([3.0, 2.0])),
    "constant prediction": (np.full(30, 0.1), tied),
    "constant label": (x, np.full(30, 5.0)),
}

of_four = rng.integers(0, 4, 40)
some_right = np.where(rng.random(40) < 0.6, of_four, rng.integers(0, 4, 40))
many = {
    "four classes": (some_right, of_four),
    "a class that is never predicted": (np.where(some_right == 2, 3, some_right), of_four),
    "a class that is never true": (some_right, np.where(of_four == 2, 3, of_four)),
    "one class predicted": (np.full(40, 3), of_four),
    "three of three wrong": (np.array([1, 2, 0]), np.array([0, 1, 2])),
}

out = {
    "versions": {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__},
    "classes": [],
    "many": [],
    "reals": [],
}
for name, (p, t) in classes.items():
    scores = {"accuracy": accuracy_score(t, p), "f1": f1_score(t, p, zero_division=0)}
    scores["matthews"] = matthews_corrcoef(t, p)
    out["classes"].append({"name": name, "predictions": p.tolist(), "labels": t.tolist(), "scores": scores})
for name, (p, t) in many.items():
    scores = {"accuracy": accuracy_score(t, p), "matthews": matthews_corrcoef(t, p)}
    scores["macro_f1"] = f1_score(t, p, average="macro", zero_division=0)
    out["many"].append({"name": name, "predictions": p.tolist(), "labels": t.tolist(), "scores": scores})
for name, (p, t) in reals.items():
    scores = {"pearson": pearsonr(p, t).statistic, "spearman": spearmanr(p, t).statistic}
    out["reals"].append({"name": name, "predictions": p.tolist(), "labels": t.tolist(), "scores": scores})

text = json.dumps(out).replace('{"name"', '\n{"name"') + "\n"  # a case a line
Path(__file__).with_name("glue_scores.json").write_text(text, encoding="utf-8")
