"""The scores of GLUE, from arrays, and those of SQuAD and the E2E challenge, from text.

`python metrics.py REFERENCES OUTPUTS` scores generated text as the E2E challenge's official script does.
All scores raise ValueError if there is nothing to score or if their arguments differ in length.
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
from pathlib import Path

import numpy as np

import ptb

METEOR_NOT_RUN = "METEOR: not run (needs java and pip install pycocoevalcap)"


def glue_scores(names, predictions, labels):
    """{name: score} of a task's scores, which data/glue.py names in the task's row."""
    functions = {f.__name__: f for f in (accuracy, f1, macro_f1, matthews, pearson, spearman)}
    return {name: functions[name](predictions, labels) for name in names}


def worth(score):
    """A score for comparing epochs: one that is undefined is below all others."""
    return -math.inf if math.isnan(score) else score


def accuracy(predictions, labels):
    """The share of predictions (N,) that equal the labels (N,)."""
    predictions, labels = _pair(predictions, labels)
    return float(np.mean(predictions == labels))


def f1(predictions, labels):
    """F1 of class 1, from 0 to 1: 2 TP / (2 TP + FP + FN) (van Rijsbergen, 1979).

    predictions, labels: (N,) of 0 and 1; ValueError for another class. As in scikit-learn, F1 is 0.0 if class
    1 is neither predicted nor true.
    """
    predictions, labels = _pair(predictions, labels)
    if others := {*predictions.tolist(), *labels.tolist()} - {0, 1}:
        raise ValueError(f"class {min(others)}: expected 0 or 1")
    tp = int(np.sum((predictions == 1) & (labels == 1)))
    return 2 * tp / int(np.sum(predictions == 1) + np.sum(labels == 1)) if tp else 0.0


def macro_f1(predictions, labels):
    """The mean of the F1 of every class that is predicted or true, as in scikit-learn."""
    true, predicted, right, _ = _class_counts(predictions, labels)
    return float(np.mean([2 * r / (t + p) for t, p, r in zip(true, predicted, right, strict=True)]))


def matthews(predictions, labels):
    """Matthews correlation, from -1 to 1: Pearson's, of two binary variables (Matthews, 1975).

    Of more classes it is Gorodkin's R_K (2004). As in scikit-learn, it is 0.0 if one of the two is constant.
    """
    true, predicted, right, n = _class_counts(predictions, labels)
    covariance = sum(right) * n - sum(t * p for t, p in zip(true, predicted, strict=True))
    variance = (n * n - sum(p * p for p in predicted)) * (n * n - sum(t * t for t in true))
    return covariance / 2 / (variance / 4) ** 0.5 if variance else 0.0  # / 2: the bits of the binary formula


def pearson(x, y):
    """Pearson correlation of two real (N,) arrays. As in scipy, nan if one is constant or holds a nan."""
    x, y = (a.astype(np.float64) for a in _pair(x, y))
    # the mean of equal numbers can differ from them by rounding
    if np.all(x == x[0]) or np.all(y == y[0]):
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    r = (x / np.linalg.norm(x)) @ (y / np.linalg.norm(y))
    return float(np.clip(r, -1, 1))


def spearman(x, y):
    """Spearman correlation: `pearson` of the ranks, where ties share their mean rank (Spearman, 1904)."""
    x, y = (a.astype(np.float64) for a in _pair(x, y))
    if np.isnan([x, y]).any():
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(x):
    """Ranks from 1 of (N,) values. Those that tie at ranks a … b all get (a + b) / 2."""
    _, group, size = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (last - (size - 1) / 2)[group]


def _pair(predictions, labels):
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    # (N, 1) against (N,) would broadcast to (N, N) and give a number that looks like a score
    if predictions.ndim != 1 or predictions.shape != labels.shape:
        raise ValueError(f"shapes {predictions.shape} and {labels.shape}: expected (N,) twice")
    if len(labels) == 0:
        raise ValueError("there are no predictions to score")
    return predictions, labels


def _class_counts(predictions, labels):
    """How often each class is true, predicted, and both, and N: Python's integers, as their products grow."""
    predictions, labels = _pair(predictions, labels)
    classes = np.union1d(predictions, labels)[:, None]
    true, predicted = labels == classes, predictions == classes
    return *(c.sum(1).tolist() for c in (true, predicted, true & predicted)), len(labels)


# SQuAD v1.1, as in the official evaluate-v1.1.py. An answer's score is the best over its references. An
# answer that consists of articles has F1 0, unlike in the script of v2.0.


def squad_scores(answers, references):
    """{"exact_match", "f1"} of N answers and N lists of references (Rajpurkar et al., 2016), as shares."""
    exact, overlap = [], []
    for answer, refs in _tokenised(squad_words, answers, references):
        exact.append(answer in refs)
        overlap.append(max(_overlap(answer, ref) for ref in refs))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def squad_words(text):
    """Lower-cased words without articles and ASCII punctuation, which leaves no gap: "U.S." becomes "us"."""
    return re.sub(r"\b(?:an?|the)\b", " ", text.lower().translate(ASCII_PUNCTUATION)).split()


ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _overlap(answer, ref):
    shared = (Counter(answer) & Counter(ref)).total()
    return 2 * shared / (len(answer) + len(ref)) if shared else 0.0


# E2E: N sentences and N lists of references, none empty (else ValueError). Every score equals that of the
# challenge's own script (github.com/tuetschek/e2e-metrics). It splits text in two ways: for BLEU and NIST as
# mteval-v13a does, for the others as the Penn Treebank does (`ptb.py`).


def e2e_scores(outputs, references):
    """{name: score}: NIST from 0 up, CIDEr to 10, the others to 1 (but see `bleu`). METEOR may be None."""
    scores = {"BLEU": bleu, "NIST": nist, "METEOR": meteor, "ROUGE-L": rouge_l, "CIDEr": cider}
    return {name: score(outputs, references) for name, score in scores.items()}


def e2e_report(scores):
    notes = {"NIST": "  (as the official script's -p; its Perl variant can differ)", "CIDEr": "  (CIDEr-D)"}
    return "\n".join(
        METEOR_NOT_RUN if score is None else f"{name}: {score:.4f}{notes.get(name, '')}"
        for name, score in scores.items()
    )


def bleu(outputs, references):
    """BLEU of a corpus, up to 4-grams, without smoothing (Papineni et al., 2002).

    The reference nearest in length to the output sets the brevity penalty, the shorter of two equally near
    ones. An output of m tokens counts m - n + 1 n-grams, even if that is negative: where most outputs have
    fewer than four tokens the result can exceed 1.
    """
    hits, totals, output_length, reference_length = [0] * 4, [0] * 4, 0, 0
    for output, refs in _tokenised(_mteval_tokens, outputs, references):
        for n in range(1, 5):
            hits[n - 1] += _hits(output, refs, n).total()
            totals[n - 1] += len(output) - n + 1
        output_length += len(output)
        reference_length += min((abs(len(ref) - len(output)), len(ref)) for ref in refs)[1]
    # the floors avoid log(0): a corpus without a common 4-gram scores near 0
    precisions = [max(hit, 1e-15) / max(total, 1e-9) for hit, total in zip(hits, totals, strict=True)]
    log_precision = sum(math.log(precision) for precision in precisions) / 4
    return math.exp(min(0, 1 - reference_length / output_length) + log_precision)


def nist(outputs, references):
    """NIST of a corpus, up to 5-grams: each hit counts the bits of information it gives (Doddington, 2002).

    The information of an n-gram is log2(count of its first n - 1 tokens / its own count) in all references.
    An output's length is compared with its references' mean. This is the script's score with -p; its Perl
    variant differs where the number of references varies.
    """
    counts, hits, totals = Counter(), [Counter() for _ in range(5)], [0] * 5
    output_length = reference_length = 0
    for output, refs in _tokenised(_mteval_tokens, outputs, references):
        for n in range(1, 6):
            hits[n - 1] += _hits(output, refs, n)
            totals[n - 1] += len(output) - n + 1
            for ref in refs:
                counts.update(_ngrams(ref, n))
        length = sum(len(ref) for ref in refs)
        counts[()] += length  # the first n - 1 tokens of a 1-gram
        output_length += len(output)
        reference_length += length / len(refs)

    def information(ngram):
        return math.log2(counts[ngram[:-1]] / counts[ngram])

    score = 0.0
    for hit, total in zip(hits, totals, strict=True):
        if total:
            score += sum(information(ngram) * count for ngram, count in hit.items()) / total
    beta = math.log(2) / math.log(1.5) ** 2  # penalty 1/2 for two thirds of the references' length
    return score * math.exp(-beta * math.log(min(1, output_length / reference_length)) ** 2)


def rouge_l(outputs, references):
    """ROUGE-L (Lin, 2004): the mean over outputs of F (beta = 1.2).

    Precision and recall are the longest common subsequence's share of output and reference. The best of each
    may come from different references.
    """
    scores = []
    for output, refs in _tokenised(lambda text: ptb.words(text).split(" "), outputs, references):
        common = [_longest_common_subsequence(output, ref) for ref in refs]
        precision = max(common) / len(output)
        recall = max(length / len(ref) for length, ref in zip(common, refs, strict=True))
        both = precision and recall
        scores.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if both else 0.0)
    return float(np.mean(scores))


def cider(outputs, references):
    """CIDEr-D (Vedantam et al., 2015): 10 times the mean over outputs, references and n = 1 … 4 of

        CIDEr_n(s, ref) = min(g(s), g(ref)) · g(ref) / (|g(s)| |g(ref)|) · exp(-(l(s) - l(ref))² / (2 · 6²))

    g(s) is the tf-idf vector of the n-grams of s; all references of an output are one document of the idf.
    The length l is a number of bigrams.
    """
    pairs = list(_tokenised(lambda text: ptb.words(text).split(), outputs, references))
    documents = Counter()
    for _, refs in pairs:
        documents.update({ngram for ref in refs for n in range(1, 5) for ngram in _ngrams(ref, n)})

    unseen = math.log(len(pairs))  # the idf of an n-gram in no document, as if in one
    idf = {ngram: unseen - math.log(count) for ngram, count in documents.items()}

    def vector(tokens, n):
        counts = Counter(_ngrams(tokens, n))
        weights = {ngram: count * idf.get(ngram, unseen) for ngram, count in counts.items()}
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


def meteor(outputs, references):
    """METEOR 1.5 of a corpus (Denkowski & Lavie, 2014); None without `java` and the package pycocoevalcap.

    The corpus score is not the mean of the segments' scores. Raises ValueError if the program fails.
    """
    pairs = list(_tokenised(lambda text: ptb.words(text).replace("|||", ""), outputs, references))
    package, java = importlib.util.find_spec("pycocoevalcap"), shutil.which("java")
    # without Java, a Mac's `java` only fails
    if not package or not java or subprocess.run([java, "-version"], capture_output=True).returncode:
        return None
    options = "-Dfile.encoding=UTF-8 -Xmx2G -jar meteor-1.5.jar - - -stdio -l en -norm"
    process = subprocess.Popen(
        [java, *options.split()],
        cwd=Path(package.submodule_search_locations[0]) / "meteor",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )

    said = []

    def hear():
        said.append(process.stdout.readline().strip())
        return said[-1]

    def ask(*fields):
        process.stdin.write(" ||| ".join(fields) + "\n")
        process.stdin.flush()
        return hear()

    try:
        statistics = [ask("SCORE", *refs, output) for output, refs in pairs]
        ask("EVAL", *statistics)  # a line for each segment's score, then one for the corpus
        return float([hear() for _ in pairs][-1])
    except (OSError, ValueError):
        process.kill()  # or there may be nothing to hear
        hear()
        reason = next(filter(None, reversed(said)), "it said nothing")
        raise ValueError(f"METEOR's program failed: {reason}") from None
    finally:
        process.kill()
        process.communicate()


def _tokenised(tokens, outputs, references):
    """Pairs of an output's tokens and the list of its references' tokens."""
    if len(outputs) != len(references):
        raise ValueError(f"there are {len(outputs)} outputs and {len(references)} lists of references")
    if not outputs:
        raise ValueError("there are no outputs to score")
    for i, refs in enumerate(references, start=1):
        if not refs:
            raise ValueError(f"output {i} has no reference")
    pairs = zip(outputs, references, strict=True)
    return ((tokens(output), [tokens(ref) for ref in refs]) for output, refs in pairs)


@functools.cache
def _mteval_tokens(text):
    """As in mteval-v13a: hyphens and apostrophes stay in words, '' is one token."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"):
        text = text.replace(entity, character)
    text = re.sub(r"([!-&(-+:-@\[-`{-~/])", r" \1 ", f" {text} ")  # ASCII punctuation except ' , - .
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)  # full stops and commas stay only between digits
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])-", r"\1 - ", text)
    return re.sub(r"\s+", " ", text).strip().lower().split(" ")


def _ngrams(tokens, n):
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def _hits(output, refs, n):
    """The output's n-grams, each counted at most as often as in the reference that has it most often."""
    ngrams, hits = Counter(_ngrams(output, n)), Counter()
    for ref in refs:
        hits |= ngrams & Counter(_ngrams(ref, n))
    return hits


def _longest_common_subsequence(a, b):
    row = [0] * (len(b) + 1)  # row[j] is the length for a[:i] and b[:j]
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def read_outputs(path):
    """The outputs in a file, one a line. Raises ValueError if the file is empty or not UTF-8."""
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: this is not UTF-8") from None
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}: the file is empty")
    return [line.strip() for line in lines]


def read_references(path):
    """The lists of references in a file: one reference a line, and blank lines between the lists."""
    return [list(block) for filled, block in itertools.groupby(read_outputs(path), key=bool) if filled]


def main():
    parser = argparse.ArgumentParser(description="Scores text as the E2E challenge's official script does.")
    parser.add_argument("references", help="one reference a line, a blank line after those of an output")
    parser.add_argument("outputs", help="one output a line")
    args = parser.parse_args()
    try:
        references, outputs = read_references(args.references), read_outputs(args.outputs)
        if len(outputs) != len(references):
            blocks = f"{args.references} has {len(references)} blocks of references"
            raise ValueError(f"{blocks}, but {args.outputs} has {len(outputs)} outputs (lines)")
        print(e2e_report(e2e_scores(outputs, references)))
    except (OSError, ValueError) as error:
        print(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
