"""Tables of your own, CSV, TSV or JSON lines -> a glue.Task of their columns, and its examples."""

import contextlib
import csv
import io
import json
import math
from pathlib import Path

from data import UserError, as_user_error, glue, parse_json, read_text, write_text
from data.batching import hold_out

TABLES = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}}  # as GLUE's
csv.field_size_limit(2**31 - 1)  # a text may be longer than 131,072 characters
OWN = glue.Task("", (), "", (), 16, 10, labels=())  # batch size and epochs are ours


def task_of(args):
    """--task's row, or one made of args.text, args.label and the classes args.labels."""
    if args.task in glue.TASKS:
        return glue.TASKS[args.task]
    scores = ("accuracy", "macro_f1", "matthews") if args.labels else ("pearson", "spearman")
    return OWN._replace(texts=tuple(args.text), label=args.label, scores=scores, labels=tuple(args.labels))


# ---- files


def read(path, needed, new=()):
    """[(line, {column: value})]; UserError for a broken row, for columns without `needed` or with `new`."""
    kind = Path(path).suffix.lower()
    if kind not in (*TABLES, ".jsonl"):
        raise UserError(f"{path}: expected a name that ends in .csv, .tsv or .jsonl")
    text = read_text(path, "expected a table with a header, or JSON lines")
    found = list(_objects(path, text) if kind == ".jsonl" else _below_header(path, text, TABLES[kind]))
    if not found:
        raise UserError(f"{path}: no rows in it")
    for line, row in found:
        wrong = [f"no column '{name}': found {', '.join(row)}" for name in needed if name not in row]
        wrong += [f"rename '{name}'" for name in new if name in row]
        if wrong:
            raise UserError(f"{path}:{line if kind == '.jsonl' else 1}: {wrong[0]}")
    return found


def _objects(path, text):
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                yield line, {**parse_json(row)}
            except (ValueError, TypeError, RecursionError):
                raise UserError(f"{path}:{line}: expected a JSON object: column, value, …") from None


def _below_header(path, text, rules):
    reader = csv.reader(io.StringIO(text, newline="\n" if rules else ""), strict=True, **rules)
    header, line = [], 1
    try:
        for row in reader:
            if header and row:
                if len(row) != (expected := len(set(header))):
                    found = f"{len(row)} columns: expected {expected} of different names"
                    raise UserError(f"{path}:{line}: {found}")
                yield line, dict(zip(header, row, strict=True))
            header, line = header or row, reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: broken row ({error})") from None


def write(path, rows):
    """Writes rows of {column: value} to a file, as `read` reads it."""
    path, lines = Path(path), []
    if (kind := path.suffix.lower()) in TABLES:
        try:
            for row in [rows[0], *map(dict.values, rows)]:
                file = io.StringIO(newline="")
                csv.writer(file, **TABLES[kind]).writerow(row)  # ends in \r\n, so that it quotes a lone \r
                lines.append(file.getvalue()[:-2])
        except csv.Error:
            raise UserError(f"{path}: a text has a tab or a line break: expected a .csv or .jsonl") from None
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))


# ---- examples


def cell(path, line, row, column, value=str):
    """`value` of a cell's text. UserError, with its place, if that raises ValueError or there is no text."""
    with as_user_error(f"{path}:{line}: column '{column}': "):
        text = row[column] if isinstance(row[column], str) else json.dumps(row[column])
        if not text.strip() or not isinstance(row[column], str | int | float):
            raise ValueError("empty: expected a text or a number")
        return value(text)


def labels_of(path, text, label):
    """The classes of a training file, sorted. Raises UserError if there are fewer than two."""
    found = sorted({cell(path, line, row, label) for line, row in read(path, (*text, label))})
    if len(found) < 2:
        raise UserError(f"{path}: column '{label}': '{found[0]}' in every row: expected two classes or more")
    print(f"{path}: {len(found)} classes: {', '.join(found[:9])}{', …' * (len(found) > 9)}")
    return found


def place_in(names):
    """The `value` of a cell with one of `names`: its place among them; where there are none, a number."""

    def value(text):
        if text in names:
            return names.index(text)
        with contextlib.suppress(ValueError):
            if not names and math.isfinite(float(text)):
                return float(text)
        raise ValueError(f"'{text}': expected {' or '.join(names) or 'a number'}")

    return value


def examples(task, path):
    """A file's Examples, with the labels that `task` has."""
    found, value = [], place_in(task.labels)
    for line, row in read(path, (*task.texts, task.label)):
        example = glue.Example(*(cell(path, line, row, column) for column in task.texts))
        found.append(example._replace(label=cell(path, line, row, task.label, value)))
    return found


def load(task, train_file, dev_file, splits):
    """{split: examples}. Without `dev_file`, dev is a tenth of the training file, the same for every seed."""
    if dev_file:
        return {split: examples(task, dev_file if split == "dev" else train_file) for split in splits}
    rows = examples(task, train_file) if train_file else []
    if len(rows) < 2:
        raise UserError("expected --dev-file, or two rows or more in --train-file, to hold some out")
    parts = hold_out(rows, max(1, len(rows) // 10), "no --dev-file")
    both = dict(zip(("train", "dev"), parts, strict=True))
    return {split: both[split] for split in splits}
