"""Tables of your own, CSV, TSV or JSON lines -> a glue.Task made of their columns, and its examples."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np

from data import UserError, glue, read_text, write_text

OWN = glue.Task("", (), "", (), 16, 10)  # batch size and epochs are ours


def task_of(args):
    """The Task of a run: --task's row, or one made of its columns `text` and `label` and of its `labels`."""
    if args.task in glue.TASKS:
        return glue.TASKS[args.task]
    scores = ("accuracy", "macro_f1", "matthews") if args.labels else ("pearson", "spearman")
    return OWN._replace(texts=tuple(args.text), label=args.label, scores=scores, labels=tuple(args.labels))


def read(path, needed):
    """[(line, {column: value})] of a .csv, .tsv (without quoting rules, as GLUE's) or .jsonl file.

    Raises UserError, with file and line, for a broken row, or one that lacks one of the columns `needed`.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"{path}: expected a name that ends in .csv, .tsv or .jsonl")
    text = read_text(path, "expected a table with a header, or JSON lines")
    found = list(_objects(path, text) if kind == ".jsonl" else _below_header(path, text, kind == ".tsv"))
    if not found:
        raise UserError(f"{path}: no rows in it")
    for line, row in found:
        for name in needed:
            if name not in row:
                where = f"{path}:{line if kind == '.jsonl' else 1}"
                raise UserError(f"{where}: no column '{name}': found {', '.join(row)}")
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
    found, needed = {}, (*task.texts, task.label)
    for split, path in (("train", train_file), ("dev", dev_file)):
        if path and (split in splits or not dev_file):
            found[split] = examples(task, path, read(path, needed))
    if not dev_file:
        rows = found.get("train", [])
        if len(rows) < 2:
            raise UserError("--dev-file: left out, and --train-file has no two rows to hold one out of")
        order, held = np.random.default_rng(0).permutation(len(rows)).tolist(), max(1, len(rows) // 10)
        print(f"no --dev-file: {held:,} of the {len(rows):,} rows of {train_file} are held out as dev")
        for split, chosen in (("dev", order[:held]), ("train", order[held:])):
            found[split] = [rows[i] for i in sorted(chosen)]
    return {split: found[split] for split in splits}


def write(path, rows, more):
    """Writes rows of {column: value}, each with its columns of `more`, to a file that `read` can read."""
    for name in more[0]:
        if any(name in row for row in rows):
            raise UserError(f"{path}: the rows have a column '{name}' already: rename it")
    rows, kind = [row | new for row, new in zip(rows, more, strict=True)], Path(path).suffix.lower()
    lines, file = [rows[0], *(row.values() for row in rows)], io.StringIO(newline="")
    if kind == ".csv":
        csv.writer(file, lineterminator="\n").writerows(lines)
    elif kind == ".tsv":
        file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
    else:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, file.getvalue())
