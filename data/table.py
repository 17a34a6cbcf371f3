"""Tables of your own, CSV, TSV or JSON lines -> a glue.Task made of their columns, and its examples."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np

from data import UserError, glue, read_text, write_text

OWN = glue.Task("", (), "", (), 16, 10, labels=())  # batch size and epochs are ours


def task_of(args):
    """The Task of a run: --task's row, or one made of its columns `text` and `label` and of its `labels`."""
    if args.task in glue.TASKS:
        return glue.TASKS[args.task]
    scores = ("accuracy", "macro_f1", "matthews") if args.labels else ("pearson", "spearman")
    return OWN._replace(texts=tuple(args.text), label=args.label, scores=scores, labels=tuple(args.labels))


def read(path, needed, new=()):
    """[(line, {column: value})] of a .csv, .tsv (without quoting rules, as GLUE's) or .jsonl file.

    Raises UserError, with file and line, for a broken row, one without a column of `needed`, or with one of
    `new`.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"{path}: expected a name that ends in .csv, .tsv or .jsonl")
    text = read_text(path, "expected a table with a header, or JSON lines")
    found = list(_objects(path, text) if kind == ".jsonl" else _below_header(path, text, kind == ".tsv"))
    if not found:
        raise UserError(f"{path}: no rows in it")
    for line, row in found:
        for name in (*needed, *new):
            if (name in row) != (name in needed):
                problem = (
                    f"no column '{name}': found {', '.join(row)}" if name in needed else f"rename '{name}'"
                )
                raise UserError(f"{path}:{line if kind == '.jsonl' else 1}: {problem}")
    return found


def _objects(path, text):
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                yield line, dict(json.loads(row).items())
            except (ValueError, AttributeError, RecursionError):
                raise UserError(f"{path}:{line}: expected a JSON object: column, value, …") from None


def _below_header(path, text, tabs):
    cells = enumerate(glue.read_tsv(path), 1) if tabs else _cells(path, text)
    cells = ((line, row) for line, row in cells if row not in ([], [""]))
    _, header = next(cells, (1, []))
    for line, row in cells:
        if len(row) != len(set(header)):
            expected = f"{len(set(header))} of different names, separated by {'tabs' if tabs else 'commas'}"
            raise UserError(f"{path}:{line}: {len(row)} columns: expected {expected}")
        yield line, dict(zip(header, row, strict=True))


def _cells(path, text):
    reader, line, header = csv.reader(io.StringIO(text, newline=""), strict=True), 1, []
    try:
        for row in reader:
            header = header or row
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        rest = "".join(io.StringIO(text, newline="").readlines()[line - 1 :])
        before = re.match(r'(?:(?:"(?:[^"]|"")*"|(?!")[^,\r\n]*),)*', rest)[0]  # the whole cells of this row
        place = len(next(csv.reader(io.StringIO(before, newline="")), [""])) - 1
        name = (header[place:] or [place + 1])[0]
        raise UserError(f"{path}:{line}: column '{name}': broken quote ({error})") from None


def cell(path, line, row, column):
    """A cell as text, and its place. Raises UserError if it is blank, or neither text nor number."""
    found, where = row[column], f"{path}:{line}: column '{column}'"
    text = found if isinstance(found, str) else json.dumps(found)
    if not text.strip() or not isinstance(found, str | int | float):
        raise UserError(f"{where}: empty: expected a text or a number")
    return text, where


def labels_of(path, text, label):
    """The classes of a training file, sorted. Raises UserError if there are fewer than two."""
    found = sorted({cell(path, line, row, label)[0] for line, row in read(path, (*text, label))})
    if len(found) < 2:
        raise UserError(f"{path}: column '{label}': '{found[0]}' in every row: expected two classes or more")
    print(f"{path}: {len(found)} classes: {', '.join(found[:9])}{', …' * (len(found) > 9)}")
    return found


def examples(task, path, rows, labelled=True):
    """The Examples of a file's rows; UserError, with file, line and column, for a cell that is not one's."""
    found = []
    for line, row in rows:
        texts = [cell(path, line, row, column)[0] for column in task.texts]
        label = _label(task, *cell(path, line, row, task.label)) if labelled else None
        found.append(glue.Example(*(*texts, None)[:2], label))
    return found


def _label(task, text, where):
    if task.labels:
        if text not in task.labels:
            raise UserError(f"{where}: label '{text}': the training file has {', '.join(task.labels)}")
        return task.labels.index(text)
    try:
        if math.isfinite(float(text)):
            return float(text)
    except ValueError:
        pass
    raise UserError(f"{where}: '{text}': expected a number")


def load(task, train_file, dev_file, splits):
    """{split: examples}. Without `dev_file`, dev is a tenth of the training file, the same for every seed."""

    def found(path):
        return examples(task, path, read(path, (*task.texts, task.label)))

    if dev_file:
        return {split: found(dev_file if split == "dev" else train_file) for split in splits}
    rows = found(train_file) if train_file else []
    if len(rows) < 2:
        raise UserError("--dev-file: left out, and --train-file has no two rows to hold one out of")
    order, held = np.random.default_rng(0).permutation(len(rows)), max(1, len(rows) // 10)
    print(f"no --dev-file: {held:,} of the {len(rows):,} rows of {train_file} are held out as dev")
    chosen = {"dev": order[:held], "train": order[held:]}
    return {split: [rows[i] for i in sorted(chosen[split])] for split in splits}


def write(path, rows):
    """Writes rows of {column: value} to a file, as `read` reads it."""
    kind, file = Path(path).suffix.lower(), io.StringIO(newline="")
    lines = [rows[0], *(row.values() for row in rows)]
    if kind == ".csv":
        csv.writer(file, lineterminator="\n").writerows(lines)
    elif kind == ".tsv":
        file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
    else:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, file.getvalue())
