"""The scores: GLUE's, from arrays of predictions and labels; SQuAD's two and the E2E challenge's five, from text.

python metrics.py REFERENCES OUTPUTS    scores generated text as the challenge's official script does
"""

import argparse
import functools
import importlib.util
import itertools
import math
import re
import shutil
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ptb

METEOR_NOT_RUN = "METEOR: not run (needs java and pip install pycocoevalcap)"

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
    functions = {
        "accuracy": accuracy,
        "f1": f1,
        "matthews": matthews,
        "pearson": pearson,
        "spearman": spearman,
    }
    return {name: functions[name](predictions, labels) for name in GLUE_SCORES[task]}


def accuracy(predictions, labels) -> float:
    """The share of predictions (N,) that equal the labels (N,). Raises ValueError if empty or unequal in length."""
    predictions, labels = _pair(predictions, labels)
    return float(np.mean(predictions == labels))


def f1(predictions, labels) -> float:
    """F1 of class 1: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN) (van Rijsbergen, 1979).

    predictions, labels: (N,) of 0 and 1. Where class 1 is neither predicted nor true it is 0.0, as in
    scikit-learn. Raises ValueError if they are empty, differ in length or hold another class.
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
    # Asked for directly: the mean of equal numbers can miss them by a rounding, which would then be
    # correlated.
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
    """True and false positives, false and true negatives; Python's integers, as their product is large."""
    predictions, labels = _pair(predictions, labels)
    others = set(np.unique(predictions).tolist() + np.unique(labels).tolist()) - {0, 1}
    if others:
        raise ValueError(f"this score is for the classes 0 and 1, and there is a class {min(others)}")
    return tuple(int(np.sum((predictions == p) & (labels == t))) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0)))


# SQuAD v1.1. Both scores are those of the official evaluate-v1.1.py: of an answer, the best over its
# references; of a set, the mean in percent. (The script of v2.0 scores an answer of articles alone otherwise:
# here its F1 is 0.)


def squad_scores(answers: list[str], references: list[list[str]]) -> dict[str, float]:
    """{"exact_match", "f1"} of N answers, each with one reference or more, from 0 to 100 (Rajpurkar et al., 2016).

    An empty answer is an answer. Raises ValueError if there are none, the counts differ or one has no
    reference.
    """
    exact, overlap = [], []
    for answer, refs in _tokenised(squad_words, answers, references):
        exact.append(answer in refs)
        overlap.append(max(_overlap(answer, ref) for ref in refs))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def squad_words(text: str) -> list[str]:
    """Lower-cased words without ASCII punctuation, then without the English articles; '' and 'The' have none.

    Punctuation goes first and leaves no gap: "U.S." is "us", "24–10", whose dash is not ASCII, stays as it
    is.
    """
    return re.sub(r"\b(?:an?|the)\b", " ", text.lower().translate(ASCII_PUNCTUATION)).split()


ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _overlap(answer: list[str], ref: list[str]) -> float:
    """F1 of the words that two texts share, each as often as both have it; 0 where they share none, or have none."""
    shared = (Counter(answer) & Counter(ref)).total()
    return 2 * shared / (len(answer) + len(ref)) if shared else 0.0


# E2E. Outputs are a list of N sentences; references a list of N lists, each of one sentence or more. Every
# score is as the challenge's own script gives it (github.com/tuetschek/e2e-metrics), which knows two kinds of
# token: for BLEU and NIST those of the machine-translation script mteval-v13a, for the other three those of
# the Penn Treebank (`ptb.py`).


def e2e_scores(outputs: list[str], references: list[list[str]]) -> dict[str, float | None]:
    """The five E2E scores. BLEU, METEOR and ROUGE-L are from 0 to 1, CIDEr from 0 to 10, NIST from 0 up.

    METEOR is None where it cannot be run. Raises ValueError as each score does, and RuntimeError as `meteor`
    does.
    """
    return {
        "BLEU": bleu(outputs, references),
        "NIST": nist(outputs, references),
        "METEOR": meteor(outputs, references),
        "ROUGE-L": rouge_l(outputs, references),
        "CIDEr": cider(outputs, references),
    }


def e2e_report(scores: dict[str, float | None]) -> str:
    """The lines that show `e2e_scores`, each with the variant that it is."""
    variants = {
        "NIST": "  (as the official script's -p; its Perl variant can differ)",
        "CIDEr": "  (CIDEr-D)",
    }
    lines = [
        f"{name}: {score:.4f}{variants.get(name, '')}" if score is not None else METEOR_NOT_RUN
        for name, score in scores.items()
    ]
    return "\n".join(lines)


def bleu(outputs: list[str], references: list[list[str]]) -> float:
    """BLEU of a corpus, up to 4-grams, without smoothing (Papineni et al., 2002), from 0 to 1.

    Where several references are equally near to an output in length, the shortest counts, as in mteval-v13a.
    As in the official script an output of m tokens counts m - n + 1 n-grams, even below 0: where most outputs
    have fewer than four tokens, the number is no BLEU any more, and can exceed 1. Raises ValueError if there
    is nothing to score, if the counts differ or if an output has no reference.
    """
    hits, totals, output_length, reference_length = [0] * 4, [0] * 4, 0, 0
    for output, refs in _tokenised(_mteval_tokens, outputs, references):
        for n in range(1, 5):
            hits[n - 1] += _hits(output, refs, n).total()
            totals[n - 1] += len(output) - n + 1
        output_length += len(output)
        reference_length += min((abs(len(ref) - len(output)), len(ref)) for ref in refs)[1]
    # The floors stand in for log(0): a corpus without a 4-gram in common scores near 0, and is no error.
    precisions = [max(hit, 1e-15) / max(total, 1e-9) for hit, total in zip(hits, totals, strict=True)]
    log_precision = sum(math.log(precision) for precision in precisions) / 4
    return math.exp(min(0, 1 - reference_length / output_length) + log_precision)


def nist(outputs: list[str], references: list[list[str]]) -> float:
    """NIST of a corpus, up to 5-grams: each hit counts the bits of information it gives (Doddington, 2002).

    The information of an n-gram, log2(count of its first n - 1 tokens / its own count), is taken over all
    references of all outputs, and the output's length is compared with the mean length of its references.
    This is what the official script computes when run with -p; its Perl variant differs where the number of
    references varies. Raises ValueError as `bleu` does.
    """
    counts, hits, totals, output_length, reference_length = (
        Counter(),
        [Counter() for _ in range(5)],
        [0] * 5,
        0,
        0,
    )
    for output, refs in _tokenised(_mteval_tokens, outputs, references):
        for n in range(1, 6):
            hits[n - 1] += _hits(output, refs, n)
            totals[n - 1] += len(output) - n + 1
            for ref in refs:
                counts.update(_ngrams(ref, n))
        length = sum(len(ref) for ref in refs)
        counts[()] += length  # what a single token is looked up against
        output_length += len(output)
        reference_length += length / len(refs)

    def information(ngram):
        return math.log2(counts[ngram[:-1]] / counts[ngram])

    score = 0.0
    for hit, total in zip(hits, totals, strict=True):
        if total:
            score += sum(information(ngram) * count for ngram, count in hit.items()) / total
    # The penalty is 1/2 for an output two thirds as long as its references.
    beta = math.log(2) / math.log(1.5) ** 2
    return score * math.exp(-beta * math.log(min(1, output_length / reference_length)) ** 2)


def rouge_l(outputs: list[str], references: list[list[str]]) -> float:
    """ROUGE-L: F (beta = 1.2) of the longest common subsequence's share of output and reference (Lin, 2004), 0 to 1.

    As in the official script, the best precision and the best recall are taken each from whichever reference
    gives it. The mean over outputs. Raises ValueError as `bleu` does.
    """
    scores = []
    for output, refs in _tokenised(lambda text: ptb.words(text).split(" "), outputs, references):
        common = [_longest_common_subsequence(output, ref) for ref in refs]
        precision = max(common) / len(output)
        recall = max(length / len(ref) for length, ref in zip(common, refs, strict=True))
        both = precision and recall
        scores.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if both else 0.0)
    return float(np.mean(scores))


def cider(outputs: list[str], references: list[list[str]]) -> float:
    """CIDEr, in the form called CIDEr-D: similarity of tf-idf vectors, n = 1 … 4 (Vedantam et al., 2015), 0 to 10.

    With g(s) the tf-idf vector of a sentence's n-grams (the idf's documents are each output's references
    together):

        CIDEr_n(s, ref) = min(g(s), g(ref)) · g(ref) / (|g(s)| |g(ref)|) · exp(-(l(s) - l(ref))² / (2 · 6²))

    averaged over n, references and outputs, times 10. As in the official script, a length l is a number of
    bigrams. Raises ValueError as `bleu` does.
    """
    pairs = list(_tokenised(lambda text: ptb.words(text).split(), outputs, references))
    documents = Counter()
    for _, refs in pairs:
        documents.update({ngram for ref in refs for n in range(1, 5) for ngram in _ngrams(ref, n)})

    unseen = math.log(len(pairs))  # the idf of an n-gram that no reference has, taken as in one
    idf = {ngram: unseen - math.log(count) for ngram, count in documents.items()}

    def vector(tokens, n):
        weights = {
            ngram: count * idf.get(ngram, unseen) for ngram, count in Counter(_ngrams(tokens, n)).items()
        }
        return weights, math.sqrt(sum(weight**2 for weight in weights.values()))

    def similarity(a, b):
        (a, norm_a), (b, norm_b) = a, b
        dot = sum(min(weight, b[ngram]) * b[ngram] for ngram, weight in a.items() if ngram in b)
        return dot / (norm_a * norm_b) if norm_a and norm_b else 0.0

    scores = []
    for output, refs in pairs:
        output_vectors = [vector(output, n) for n in range(1, 5)]
        score = 0.0
        for ref in refs:
            difference = max(len(output) - 1, 0) - max(len(ref) - 1, 0)
            similarities = [similarity(v, vector(ref, n)) for n, v in enumerate(output_vectors, start=1)]
            score += sum(similarities) * math.exp(-(difference**2) / (2 * 6**2))
        scores.append(10 * score / 4 / len(refs))
    return float(np.mean(scores))


def meteor(outputs: list[str], references: list[list[str]]) -> float | None:
    """METEOR 1.5 of a corpus (Denkowski & Lavie, 2014), 0 to 1, by its authors' program; None where that cannot be run.

    It needs `java`, and the package pycocoevalcap, which carries the program and its paraphrase table. Called
    as the official script calls it: -l en -norm, on Penn Treebank tokens; the corpus score is not the mean of
    the segments'. Raises ValueError as `bleu` does, and RuntimeError with the program's own words if it
    fails.
    """
    pairs = list(_tokenised(lambda text: ptb.words(text).replace("|||", ""), outputs, references))
    package, java = importlib.util.find_spec("pycocoevalcap"), shutil.which("java")
    # A Mac without Java has a `java` that only says so.
    if not package or not java or subprocess.run([java, "-version"], capture_output=True).returncode:
        return None
    process = subprocess.Popen(
        [
            java,
            "-Dfile.encoding=UTF-8",
            "-Xmx2G",
            "-jar",
            "meteor-1.5.jar",
            "-",
            "-",
            "-stdio",
            "-l",
            "en",
            "-norm",
        ],
        cwd=Path(package.submodule_search_locations[0]) / "meteor",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )

    def ask(*fields):
        process.stdin.write(" ||| ".join(fields) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    answer = ""
    try:
        statistics = [answer := ask("SCORE", *refs, output) for output, refs in pairs]
        answer = ask("EVAL", *statistics)  # each segment's score, a line each, and then the corpus's
        for _ in pairs:
            answer = process.stdout.readline().strip()
        return float(answer)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"METEOR's program failed: {answer or 'it stopped without a word'}") from error
    finally:
        process.kill()
        process.communicate()


def _tokenised(tokens, outputs, references):
    """Pairs of an output's tokens and the list of its references' tokens, after checking that they can be scored."""
    if len(outputs) != len(references):
        raise ValueError(f"there are {len(outputs)} outputs and {len(references)} lists of references")
    if not outputs:
        raise ValueError("there are no outputs to score")
    for i, refs in enumerate(references, start=1):
        if not refs:
            raise ValueError(f"output {i} has no reference")
    return (
        (tokens(output), [tokens(ref) for ref in refs])
        for output, refs in zip(outputs, references, strict=True)
    )


@functools.cache
def _mteval_tokens(text: str) -> list[str]:
    """Lower-cased tokens as mteval-v13a splits them: hyphens and apostrophes stay in words. '' is one token, ''."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"):
        text = text.replace(entity, character)
    text = re.sub(r"([!-&(-+:-@\[-`{-~/])", r" \1 ", f" {text} ")  # ASCII punctuation but ' , - and .
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)  # full stops and commas stay only between digits
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])-", r"\1 - ", text)
    return re.sub(r"\s+", " ", text).strip().lower().split(" ")


def _ngrams(tokens: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def _hits(output: list[str], refs: list[list[str]], n: int) -> Counter:
    """The output's n-grams, each counted at most as often as in the reference that has it most often."""
    ngrams, hits = Counter(_ngrams(output, n)), Counter()
    for ref in refs:
        hits |= ngrams & Counter(_ngrams(ref, n))
    return hits


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)  # row[j]: the longest of a[:i] and b[:j]
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def read_outputs(path: str | Path) -> list[str]:
    """One output a line; an empty line is an empty output. Raises ValueError, with the line, for what is not UTF-8."""
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8") from None
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}: the file is empty")
    return [line.strip() for line in lines]


def read_references(path: str | Path) -> list[list[str]]:
    """One reference a line, those of one output in a block, blank lines between blocks. Raises as `read_outputs`."""
    return [list(block) for filled, block in itertools.groupby(read_outputs(path), key=bool) if filled]


def main():
    parser = argparse.ArgumentParser(
        description="Scores generated text as the E2E challenge's official script does."
    )
    parser.add_argument(
        "references", help="one reference a line, those of one output in a block, blank lines between"
    )
    parser.add_argument("outputs", help="one output a line, in the blocks' order")
    args = parser.parse_args()
    try:
        references, outputs = read_references(args.references), read_outputs(args.outputs)
        if len(outputs) != len(references):
            raise ValueError(
                f"{args.references} has {len(references)} blocks of references, but {args.outputs} has {len(outputs)} "
                "outputs (lines); one output for each block is expected"
            )
        print(e2e_report(e2e_scores(outputs, references)))
    except OSError as error:
        sys.exit(_complain(f"{error.filename}: {error.strerror}"))
    except (ValueError, RuntimeError) as error:
        sys.exit(_complain(error))


def _complain(message) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
