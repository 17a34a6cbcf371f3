"""The scores: GLUE's, from arrays of predictions and labels."""

import numpy as np

# What each GLUE task reports; the first score named is the one that selects the best epoch.
GLUE_SCORES = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}


def glue_scores(task: str, predictions, labels) -> dict[str, float]:
    """The scores that GLUE names for a task, as {score: value}, in the order of `GLUE_SCORES`.

    predictions, labels: (N,) class numbers; for stsb (N,) real scores.
    Raises ValueError for an unknown task, and where the scores do.
    """
    if task not in GLUE_SCORES:
        raise ValueError(f"unknown GLUE task {task!r}; one of {' '.join(GLUE_SCORES)} is expected")
    functions = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
    return {name: functions[name](predictions, labels) for name in GLUE_SCORES[task]}


def accuracy(predictions, labels) -> float:
    """The share of predictions (N,) that equal the labels (N,). Raises ValueError if empty or unequal in length."""
    predictions, labels = _pair(predictions, labels)
    return float(np.mean(predictions == labels))


def f1(predictions, labels) -> float:
    """F1 of class 1: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN) (van Rijsbergen, 1979).

    predictions, labels: (N,) of 0 and 1. Where class 1 is neither predicted nor true it is 0.0, as in scikit-learn.
    Raises ValueError if they are empty, differ in length or hold another class.
    """
    tp, fp, fn, _ = _binary_counts(predictions, labels)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def matthews(predictions, labels) -> float:
    """Matthews correlation: the Pearson correlation of two binary variables (Matthews, 1975), from -1 to 1.

    predictions, labels: (N,) of 0 and 1. With one class only, on either side, it is 0.0, as in scikit-learn.
    Raises ValueError if they are empty, differ in length or hold another class.
    """
    tp, fp, fn, tn = _binary_counts(predictions, labels)
    variance = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / variance**0.5 if variance else 0.0


def pearson(x, y) -> float:
    """Pearson correlation of two real (N,) arrays; nan where one of them is constant or holds a nan, as in scipy.

    Raises ValueError if they are empty or differ in length.
    """
    x, y = (a.astype(np.float64) for a in _pair(x, y))
    # Asked for directly: the mean of equal numbers can miss them by a rounding, which would then be correlated.
    if np.all(x == x[0]) or np.all(y == y[0]):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    r = (x / np.linalg.norm(x)) @ (y / np.linalg.norm(y))
    return float(np.clip(r, -1, 1))


def spearman(x, y) -> float:
    """Spearman correlation: Pearson's of the ranks, ties sharing their average rank (Spearman, 1904); see `pearson`."""
    x, y = (a.astype(np.float64) for a in _pair(x, y))
    if np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks 1 … N of (N,) values. Values that tie at ranks a … b all get (a + b) / 2."""
    _, group, size = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (last - (size - 1) / 2)[group]


def _pair(predictions, labels) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    # (N, 1) against (N,) would broadcast to (N, N) and give a number that looks like a score.
    if predictions.ndim != 1 or labels.ndim != 1 or len(predictions) != len(labels):
        raise ValueError(
            f"predictions have shape {predictions.shape} and labels {labels.shape}; both should be (N,), with one N"
        )
    if len(labels) == 0:
        raise ValueError("there are no predictions to score")
    return predictions, labels


def _binary_counts(predictions, labels) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives; Python's integers, as their product is large."""
    predictions, labels = _pair(predictions, labels)
    others = set(np.unique(predictions).tolist() + np.unique(labels).tolist()) - {0, 1}
    if others:
        raise ValueError(f"this score is for the classes 0 and 1, and there is a class {min(others)}")
    return tuple(int(np.sum((predictions == p) & (labels == t))) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0)))
