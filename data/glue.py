"""GLUE (Wang et al., 2019): the nine tasks' official files -> examples -> token sequences."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from data import UserError, read_text
from data.batching import parted, say_cut
from data.download import cache, fetch, unpack


class Example(NamedTuple):
    """A sentence or a pair, and a class index, a score (STS-B), or None (a test row)."""

    first: str
    second: str | None = None
    label: int | float | None = None


class Task(NamedTuple):
    """A row: where a task's texts and labels stand in its files, what its labels mean, what a run takes.

    `batch_size` and `epochs` are the paper's Table 6, HUT's row; ours for mnli, qqp and wnli, which it lacks.
    """

    folder: str
    texts: tuple[str, ...]  # the columns of its one or two texts
    label: str  # and of the label
    scores: tuple[str, ...]  # functions of metrics.py; the first chooses the best epoch
    batch_size: int
    epochs: int
    labels: tuple[str, ...] = ("0", "1")  # as in the files, a class each; none: a score from 0 to 5
    names: tuple[str, ...] = ()  # what the labels mean
    columns: tuple[str, ...] = ()  # of a file without header: CoLA's
    dev: tuple[str, ...] = ("dev",)  # the names of its files, without .tsv
    test: tuple[str, ...] = ("test",)

    @property
    def num_labels(self):
        return len(self.labels) or 1

    @property
    def label_names(self):
        return self.names or self.labels


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task("CoLA", ("sentence",), "label", ("matthews",), 4, 40, names=("unacceptable", "acceptable"),
                 columns=("source", "label", "star", "sentence")),
    "sst2": Task("SST-2", ("sentence",), "label", ("accuracy",), 8, 20, names=("negative", "positive")),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", ("accuracy", "f1"), 16, 20,
                 names=("different", "paraphrase")),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", ("accuracy", "f1"), 16, 10,
                names=("different", "duplicate")),
    "stsb": Task("STS-B", ("sentence1", "sentence2"), "score", ("pearson", "spearman"), 16, 40, labels=()),
    "mnli": Task("MNLI", ("sentence1", "sentence2"), "gold_label", ("accuracy",), 16, 10,
                 labels=("entailment", "neutral", "contradiction"),
                 dev=("dev_matched", "dev_mismatched"), test=("test_matched", "test_mismatched")),
    "qnli": Task("QNLI", ("question", "sentence"), "label", ("accuracy",), 8, 10, labels=ENTAILMENT),
    "rte": Task("RTE", ("sentence1", "sentence2"), "label", ("accuracy",), 16, 80, labels=ENTAILMENT),
    "wnli": Task("WNLI", ("sentence1", "sentence2"), "label", ("accuracy",), 16, 40,
                 names=("different", "same")),
}  # fmt: skip


# ---- reading


def read_split(task, path, labelled=True):
    """(the examples of one file, the number of rows skipped: 0 but for QQP).

    Raises UserError, with file and line, if there are no rows, or a row has too few columns or a bad label.
    """
    spec = TASKS[task]
    examples, skipped = [], 0
    rows = read_tsv(path)
    if spec.columns and labelled:
        columns, first = list(spec.columns), 0
    else:
        columns, first = (rows[0] if rows else []), 1
    needed = (*spec.texts, spec.label) if labelled else spec.texts
    for name in needed:
        if name not in columns:
            raise UserError(f"{path}:1: no column '{name}' in the header: expected {', '.join(needed)}")
    where = [columns.index(name) for name in needed]
    for line, row in enumerate(rows[first:], first + 1):
        if len(row) <= max(where):
            if task == "qqp" and labelled:  # the official training file has a few such rows
                skipped += 1
                continue
            raise UserError(f"{path}:{line}: {len(row)} columns: expected {len(columns)}, separated by tabs")
        texts = [row[i] for i in where[: len(spec.texts)]]
        label = _label(spec, row[where[-1]], f"{path}:{line}") if labelled else None
        examples.append(Example(*texts)._replace(label=label))
    if not examples:
        raise UserError(f"{path}: no examples in it: expected rows of {', '.join(needed)}, separated by tabs")
    return examples, skipped


def _label(spec, text, where):
    if spec.labels:
        if text not in spec.labels:
            raise UserError(f"{where}: unknown label '{text}': expected {' or '.join(spec.labels)}")
        return spec.labels.index(text)
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 5:
            return float(text)
    raise UserError(f"{where}: score '{text}': expected a number from 0 to 5")


def read_tsv(path):
    """Rows of columns, with no quoting rules: a lone " is text."""
    text = read_text(path, "name the folder that holds CoLA/, SST-2/ … with --data DIR")
    # str.splitlines would end a row at other characters too, which a sentence may hold
    return [line.rstrip("\r").split("\t") for line in text.removesuffix("\n").split("\n")] if text else []


def read_mrpc_raw(folder):
    """MRPC from Microsoft's files: {"train": …, "dev": …, "test": …}; GLUE's authors chose the dev rows."""
    ids = folder / "dev_ids.tsv"
    ids = {tuple(row[:2]) for row in read_tsv(ids if ids.exists() else folder / "mrpc_dev_ids.tsv")}
    train, test = (folder / f"msr_paraphrase_{name}.txt" for name in ("train", "test"))
    splits = {"train": [], "dev": [], "test": read_split("mrpc", test, labelled=False)[0]}
    for row, example in zip(read_tsv(train)[1:], read_split("mrpc", train)[0], strict=True):
        splits["dev" if tuple(row[1:3]) in ids else "train"].append(example)
    return splits


def load(task, data=None, train_file=None, dev_file=None, splits=("train", "dev")):
    """{file's name: its examples} of the `splits` "train", "dev", "test"; MNLI has two dev and test files.

    `data` is the folder that holds CoLA/, SST-2/ …, fetched if it is None. `train_file` and `dev_file` stand
    in for its files; one dev file is then all there is of dev.
    """
    spec = TASKS[task]
    given = {"train": train_file, spec.dev[0]: dev_file}
    files = {"train": ("train",), "dev": spec.dev[: 1 if dev_file else None], "test": spec.test}
    names = [name for split in splits for name in files[split]]
    folder = None
    if not all(given.get(name) for name in names):
        folder = (Path(data) if data else download(task)) / spec.folder
    found, raw = {}, {}
    if folder and (folder / "msr_paraphrase_train.txt").exists() and not (folder / "train.tsv").exists():
        raw = read_mrpc_raw(folder)  # MRPC as it is downloaded
    for name in names:
        if name in raw and not given.get(name):
            found[name] = raw[name]
            continue
        path = Path(given.get(name) or folder / f"{name}.tsv")
        found[name], skipped = read_split(task, path, labelled=name not in spec.test)
        if skipped:
            print(f"{path}: {skipped} rows with too few columns skipped")
    return found


# ---- fetching

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
SHA256 = {
    "CoLA.zip": "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
    "SST-2.zip": "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
    "STS-B.zip": "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
    "QQP.zip": "67cb8f5fe66c90a0bc1bf5792e3924f63008b064ab7a473736c919d20bb140ad",
    "MNLI.zip": "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
    "QNLIv2.zip": "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
    "RTE.zip": "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
    "WNLI.zip": "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
    "msr_paraphrase_train.txt": "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
    "msr_paraphrase_test.txt": "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
    "mrpc_dev_ids.tsv": "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
}


def download(task):
    """Fetches the official files that the cache lacks. Returns their folder."""
    folder = cache() / "glue"
    target = folder / TASKS[task].folder
    if task == "mrpc":  # Microsoft's files, and GLUE's choice of dev rows
        for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"):
            place = SENTEVAL if name.startswith("msr") else GLUE
            fetch(place + name, target / name, SHA256[name])
    elif not target.is_dir():
        name = {"qnli": "QNLIv2.zip"}.get(task, f"{TASKS[task].folder}.zip")
        if name not in SHA256:
            raise UserError(f"{task}: no place to fetch it from is known: name its folder with --data DIR")
        fetch(GLUE + name, folder / name, SHA256[name])
        unpack(folder / name, target)
    return folder


# ---- text to text

# As T5 reads and writes the tasks (Raffel et al., 2020, appendix D): the names of the texts, and the labels.
TEXT_TO_TEXT = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": (("sentence1", "sentence2"), tuple(f"{i / 5:.1f}" for i in range(26))),  # rounded to 0.2
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ENTAILMENT),
}


def source_text(task, example):
    """What T5 reads: "mrpc sentence1: … sentence2: …"; T5's authors put MNLI's hypothesis first."""
    texts = [f"{name}: {text}" for name, text in zip(TEXT_TO_TEXT[task][0], example, strict=False)]
    return " ".join([task, *(texts[::-1] if task == "mnli" else texts)])


def target_text(task, label):
    words = TEXT_TO_TEXT[task][1]
    return words[round(5 * label) if task == "stsb" else label]


def label_of(task, text, label):
    """What T5 wrote -> (a class or score, whether it is one).

    Other text counts as wrong: it becomes a class that is not `label`, or the farther end of the scale.
    """
    words = TEXT_TO_TEXT[task][1]
    if text in words:
        return (words.index(text) / 5 if task == "stsb" else words.index(text)), True
    return (5.0 * (label < 2.5) if task == "stsb" else (label + 1) % len(words)), False


def read_protocol(task, splits):
    """The READ paper's {"train", "validation", "test"}, from a task's train and dev files, for all seeds.

    Below 10,000 training rows dev is cut in two halves; else 1,000 training rows are held out, and dev is the
    test set. MNLI validates on the mismatched dev set and tests on the matched one.
    """
    train = splits["train"]
    if task == "mnli" and "dev_mismatched" in splits:
        return {"train": train, "validation": splits["dev_mismatched"], "test": splits["dev_matched"]}
    dev = splits[TASKS[task].dev[0]]
    if len(dev) < 2:
        raise UserError(f"{task}: {len(dev)} dev rows: expected 2 or more, for validation and test")
    if len(train) < 10_000:
        validation, test = parted(dev, len(dev) // 2)
    else:
        (validation, train), test = parted(train, 1000), dev
    return {"train": train, "validation": validation, "test": test}


# ---- tokens


def encode(tokenizer, examples, max_len):
    """Token ids of each example, special tokens included, at most `max_len`: a pair's longer text is cut.

    Prints how many are cut.
    """
    tokenizer.enable_truncation(max_len, strategy="longest_first")
    found = tokenizer.encode_batch([e.first if e.second is None else (e.first, e.second) for e in examples])
    tokenizer.no_truncation()
    say_cut(sum(bool(encoding.overflowing) for encoding in found), len(found), max_len)
    return [encoding.ids for encoding in found]
