"""Tables of one's own: reading, training on one, and predictions beside the rows of another."""

import csv
import io
import json
import sys

import pytest
import torch
from conftest import WORDS, fails

import train_glue
from data import UserError, glue, table
from weights import read_adapter

CLASSES = ["yes", "no", "it depends"]


def row(i):
    answer = f'small, "{WORDS[i % 9]}"'
    return {"question": f"the {WORDS[2 + i % 4]} {WORDS[6 + i % 3]}", "id": i, "answer": answer,
            "verdict": CLASSES[i % 3], "grade": f"{i % 7 / 2}"}  # fmt: skip


def written(path, rows):
    """`path`, with these rows in the format of its ending; written by other means than data/table.py."""
    file = io.StringIO()
    if path.suffix == ".csv":
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    elif path.suffix == ".tsv":
        file.write("".join("\t".join(map(str, line)) + "\n" for line in (rows[0], *map(dict.values, rows))))
    else:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(file.getvalue())
    return path


def rows_of(path):
    """The rows of a written file as {column: text}."""
    with path.open(newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        return list(csv.DictReader(file, **plain))


@pytest.fixture
def train(monkeypatch):
    """train_glue.py in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_glue.py", *map(str, arguments)])
        train_glue.main()

    return call


@pytest.fixture
def command(tiny_model, tmp_path):
    """The arguments of a small run without its columns."""
    train_file = written(tmp_path / "train.csv", [row(i) for i in range(40)])
    return ["--train-file", train_file, "--model", tiny_model, "--out", tmp_path / "out",
            "--epochs", 2, "--lr", "0.01", "--r", 2]  # fmt: skip


PAIR = ["--text", "question", "answer", "--label", "verdict"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_from_a_file_to_predictions_in_another(train, command, tmp_path, capsys, ending):
    """Would catch: a format that is read otherwise, classes that are lost, rows that change or move."""
    files = {
        name: written(tmp_path / f"{name}.{ending}", [row(i) for i in rows])
        for name, rows in (("train", range(40)), ("dev", range(40, 49)), ("new", range(60, 69)))
    }
    train(*command, "--train-file", files["train"], "--dev-file", files["dev"], *PAIR,
          "--export", tmp_path / "merged")  # fmt: skip
    said = capsys.readouterr().out
    assert "3 classes: it depends, no, yes" in said
    assert f"adapter {tmp_path / 'out' / 'adapter.pt'} --eval-only" in said and "--submit" not in said
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["task"] == "own"
    assert set(result["best"]) - {"single_class"} == {"epoch", "accuracy", "macro_f1", "matthews", "loss"}
    adapter = tmp_path / "out" / "adapter.pt"
    config = read_adapter(adapter)["config"]
    assert config["labels"] == sorted(CLASSES) and config["text"] == ["question", "answer"]
    names = json.loads((tmp_path / "merged" / "config.json").read_text())["id2label"]
    assert list(names.values()) == sorted(CLASSES)
    train("--adapter", adapter, "--eval-only", "--dev-file", files["dev"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["best"]["accuracy"]

    out = tmp_path / "new" / f"out.{ending}"
    train("--adapter", adapter, "--predict-file", files["new"], "--out-file", out)
    before, after = rows_of(files["new"]), rows_of(out)
    capsys.readouterr()
    for old, new in zip(before, after, strict=True):
        label, probability = new.pop("predicted"), float(new.pop("probability"))
        assert new == old and label in CLASSES
        train("--adapter", adapter, "--predict", old["question"], old["answer"])
        assert capsys.readouterr().out == f"{label} ({probability:.3f})\n"


def test_numbers(train, command, tmp_path, capsys):
    """Would catch: numbers taken for classes, a probability where there is none, a scale from 0 to 5."""
    train(*command, "--text", "question", "--label", "grade", "--regression")
    best = json.loads((tmp_path / "out" / "result.json").read_text())["best"]
    assert {"pearson", "spearman"} <= set(best)
    basics = ["--adapter", tmp_path / "out" / "adapter.pt"]
    new, out = written(tmp_path / "new.csv", [{"question": "the dog"}]), tmp_path / "out.csv"
    train(*basics, "--predict-file", new, "--out-file", out)
    capsys.readouterr()
    train(*basics, "--predict", "the dog")
    (found,) = rows_of(out)
    assert capsys.readouterr().out == f"score {float(found['predicted']):.3f}\n"
    assert set(found) == {"question", "predicted"}


def test_a_tenth_is_held_out(capsys, tmp_path):
    """Would catch: rows, or texts, that are trained and scored on, or another draw at each start."""
    path = written(tmp_path / "x.csv", [row(i) | {"answer": f"text {i}"} for i in range(40)])
    task = table.OWN._replace(texts=("answer",), label="verdict", labels=tuple(CLASSES))
    first, second = (table.load(task, path, None, ("train", "dev")) for _ in range(2))
    assert first == second and (len(first["train"]), len(first["dev"])) == (36, 4)
    assert len({example.first for split in first.values() for example in split}) == 40
    assert first["dev"] == table.load(task, path, None, ("dev",))["dev"]
    assert "no --dev-file: 4 of 40 training examples" in capsys.readouterr().out
    twice = written(tmp_path / "y.csv", [row(i) | {"answer": f"text {i // 2}"} for i in range(400)])
    found = table.load(task, twice, None, ("train", "dev"))
    assert not {e.first for e in found["train"]} & {e.first for e in found["dev"]}


def test_a_tab_has_no_place_in_tsv(tmp_path):
    """Would catch: a traceback, after all is predicted, for a text that only CSV or JSON lines can hold."""
    out = tmp_path / "out.tsv"
    for text in ("a\tb", "a\nb"):
        with pytest.raises(UserError, match="a text has a tab or a line break"):
            table.write(out, [{"text": text}])
    assert not out.exists()


def test_a_glue_tasks_file(train, tiny_model, tiny_glue, tmp_path):
    """Would catch: quoting rules in GLUE's files, where a lone quote is text; --task asked for."""
    out = tmp_path / "out"
    train("--task", "cola", "--model", tiny_model, "--data", tiny_glue, "--out", out, "--epochs", 1)
    new = tmp_path / "test.tsv"
    new.write_text('index\tsentence\n0\t"the dog\n1\tthe "cat" runs\n')
    train("--adapter", out / "adapter.pt", "--predict-file", new, "--out-file", tmp_path / "found.tsv")
    found = rows_of(tmp_path / "found.tsv")
    assert [row["sentence"] for row in found] == ['"the dog', 'the "cat" runs']
    assert all(row["predicted"] in ("acceptable", "unacceptable") for row in found)


def test_what_a_run_takes(monkeypatch, command):
    """Would catch: --help that says otherwise, a method's rate of another task, mini's data taken."""

    def given(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_glue.py", *map(str, arguments)])
        return train_glue.arguments()

    args = given(*command[:4], *PAIR)
    assert (args.task, args.batch_size, args.epochs, args.lr) == ("own", 16, 10, 5e-3)
    args = given(*command[:2], *PAIR, "--model", "mini")
    assert (args.task, args.batch_size, args.epochs, args.lr) == ("own", 32, 30, 1e-2)
    assert args.data is None
    files = ["--train-file", "a.tsv", "--dev-file", "b.tsv"]  # in place of mini's, which are CoLA's
    assert given("--model", "mini", "--task", "sst2", *files).task == "sst2"


def test_lines_are_those_of_the_file(tmp_path):
    """Would catch: rows counted in place of lines, where a quoted text has several."""
    path = tmp_path / "x.csv"
    path.write_text('﻿a,b\n"one\ntwo",1\n\n"say ""hi"", please",2\n', encoding="utf-8")
    assert table.read(path, ("a",)) == [
        (2, {"a": "one\ntwo", "b": "1"}),
        (5, {"a": 'say "hi", please', "b": "2"}),
    ]


BROKEN = {
    "a label of dev alone": ("x.csv", "t,l\na,yes\nb,maybe\n", ":3: column 'l': 'maybe': expected no or yes"),
    "a column": ("x.csv", "t,k\na,yes\n", ":1: no column 'l': found t, k"),
    "a column of an object": ("x.jsonl", '{"t": "a", "l": "no"}\n{"t": "b"}\n', ":2: no column 'l'"),
    "an open quote": ("x.csv", 't,l\n"a, b",no\n"c\nd",yes\n"e,no\nf,no\n', ":5: broken row"),
    "a quote within": ("x.csv", 't,l\n"a, b","no"t\n', ":2: broken row"),
    "a quote of the header": ("x.csv", 't,"l\na,no\n', ":1: broken row"),
    "an empty text": ("x.csv", "t,l\na,no\n  ,yes\n", ":3: column 't': empty"),
    "null": ("x.jsonl", '{"t": null, "l": "no"}\n', ":1: column 't': empty"),
    "a list": ("x.jsonl", '{"t": ["a"], "l": "no"}\n', ":1: column 't': empty: expected a text or a number"),
    "an empty label": ("x.tsv", "t\tl\na\t\n", ":2: column 'l': empty"),
    "a comma too many": ("x.csv", "t,l\na, b,no\n", ":2: 3 columns: expected 2"),
    "a tab too few": ("x.tsv", "t\tl\na\n", ":2: 1 columns: expected 2"),
    "a name twice": ("x.csv", "t,t,l\na,b,no\n", ":2: 3 columns: expected 2 of different names"),
    "no JSON": ("x.jsonl", "t,l\n", ":1: expected a JSON object"),
    "half a character": (
        "x.jsonl",
        '{"t": "a", "l": "no"}\n{"t": "\\ud83d"}\n',
        ":2: expected a JSON object",
    ),
    "no object": ("x.jsonl", "[1]\n", ":1: expected a JSON object"),
    "no rows": ("x.csv", "t,l\n", ": no rows in it"),
    "an ending": ("x.txt", "t,l\na,no\n", ": expected a name that ends in .csv, .tsv or .jsonl"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_by_its_place(tmp_path, fault):
    """Would catch: a traceback, a row that is skipped, a place that is not the fault's."""
    name, text, message = BROKEN[fault]
    (tmp_path / name).write_text(text)
    task = table.OWN._replace(texts=("t",), label="l", labels=("no", "yes"))
    with pytest.raises(UserError) as error:
        table.load(task, None, tmp_path / name, ("dev",))
    assert str(error.value).startswith(f"{tmp_path / name}{message}")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_any_text_is_read_as_it_was_written(tmp_path, kind):
    """Would catch: a lone carriage return that ends a row; a long text that is called broken."""
    rows = [{"t": "one\rtwo", "l": "a"}, {"t": "one\r\ntwo\n", "l": '"'}, {"t": "x" * 200_000, "l": "b, c"}]
    path = tmp_path / f"x.{kind}"
    table.write(path, rows)
    assert [row for _, row in table.read(path, ("t",))] == rows
    with pytest.raises(UserError, match="a text has a tab or a line break"):
        table.write(tmp_path / "x.tsv", rows[:1])


@pytest.mark.parametrize("text", ["two", "nan", "inf"])
def test_a_number_that_is_none(tmp_path, text):
    """Would catch: NaN as a label, of which every score is undefined."""
    path = written(tmp_path / "x.csv", [{"t": "a", "l": "1e3"}, {"t": "b", "l": text}])
    with pytest.raises(UserError, match=f":3: column 'l': '{text}': expected a number"):
        table.load(table.OWN._replace(texts=("t",), label="l"), None, path, ("dev",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "cola", *PAIR], "leave --task out"),
        (["--text", "question"], "a table needs --train-file, --text COLUMN [COLUMN] and --label COLUMN"),
        (["--label", "verdict"], "a table needs"),
        (["--text", "a", "b", "c", "--label", "d"], "a table needs"),
        ([], "--task (none given): unknown"),
        ([*PAIR, "--data", "glue"], "--data and --submit are for GLUE's tasks"),
        (["--text", "question", "--label", "no"], "train.csv:1: no column 'no': found question, id, answer"),
        (["--text", "answer", "--label", "verdict", "--regression"], ":2: column 'verdict': 'yes': expected"),
        ([*PAIR, "--predict-file", "a.csv"], "--predict-file and --out-file: expected both"),
        ([*PAIR, "--predict-file", "a.csv", "--out-file", "b.tsv"], "with the same ending"),
        ([*PAIR, "--predict-file", "a.csv", "--out-file", "./a.csv"], "expected both, two files"),
        ([*PAIR, "--predict-file", "a.csv", "--out-file", f"{__file__}/b.csv"], "--out-file"),
        ([*PAIR[:-1], "id", "--epochs", "9" * 20], "--epochs: '99999999999999999999': expected a whole"),
        ([*PAIR, "--model", __file__], "test_own_data.py: a file: expected its directory"),
        ([*PAIR, "--predict-file", "a.csv", "--out-file", "b.csv"], "need --adapter"),
    ],
)
def test_bad_arguments_end_in_one_line(train, command, tmp_path, capsys, arguments, message):
    """Would catch: a traceback, a run folder left behind."""
    assert message in fails(capsys, train, *command, *arguments)
    assert not (tmp_path / "out").exists()


def test_bad_uses_of_an_adapter(train, command, tmp_path, capsys):
    """Would catch: columns or classes of another table, a column that is written over, no dev set."""
    one_class = written(tmp_path / "one.csv", [row(3), row(6)])
    assert "'yes' in every row" in fails(capsys, train, *command, *PAIR, "--train-file", one_class)
    train(*command, *PAIR)
    basics = ["--adapter", tmp_path / "out" / "adapter.pt"]
    assert torch.load(basics[1], weights_only=True)["task"] == "own"
    assert "expected --dev-file, or two rows" in fails(capsys, train, *basics, "--eval-only")
    taken = written(tmp_path / "taken.csv", [row(1) | {"predicted": "x"}])
    both = ["--predict-file", taken, "--out-file", tmp_path / "out.csv"]
    folder = ["--predict-file", taken, "--out-file", tmp_path / "folder.csv"]
    folder[-1].mkdir()
    assert "folder.csv: is a folder" in fails(capsys, train, *basics, *folder)
    assert "taken.csv:1: rename 'predicted'" in fails(capsys, train, *basics, *both)
    assert "own: expected 2 text(s)" in fails(capsys, train, *basics, "--predict", "the dog")
    line = fails(capsys, train, *basics, "--predict", "a", "b", "--text", "answer")
    assert "trained with text ['question', 'answer'], not ['answer']" in line
    assert "leave --regression out" in fails(capsys, train, *basics, "--eval-only", "--regression")
    assert "own" not in glue.TASKS
