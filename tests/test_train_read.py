"""train_read.py from its command line, and GLUE as text to text: forms, label words, the READ paper's
splits.
"""

import argparse
import json
import sys

import pytest
import torch
from conftest import LABELS, clip_keeps_hut_in_place, fails, without_timing

import train_read
from data import glue
from data.glue import Example, label_of, read_protocol, source_text, target_text
from data.hub import MINI, load_tokenizer
from methods import METHODS, methods_of
from read.t5 import T5
from run import Run
from weights import prepare, read_adapter, trainable


@pytest.fixture
def command(tiny_t5, tiny_glue, tmp_path):
    """The arguments of a small run: 3 epochs of 5 steps."""
    return ["--task", "cola", "--model", str(tiny_t5), "--data", str(tiny_glue),
            "--out", str(tmp_path / "out"),
            "--epochs", "3", "--batch-size", "8", "--lr", "0.01", "--r", "4"]  # fmt: skip


@pytest.fixture
def read(monkeypatch):
    """train_read.py in this process: read("--task", …)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_read.py", *map(str, arguments)])
        train_read.main()

    return call


# ---- text to text


def test_forms_are_t5s():
    """Would catch: texts in another order or under other names than T5 was trained with."""
    pair = Example("One .", "Two .", 1)
    for task, text in (
        ("cola", "cola sentence: One ."),
        ("mrpc", "mrpc sentence1: One . sentence2: Two ."),
        ("qqp", "qqp question1: One . question2: Two ."),
        ("mnli", "mnli hypothesis: Two . premise: One ."),
        ("qnli", "qnli question: One . sentence: Two ."),
    ):
        texts = 1 if task == "cola" else 2
        assert source_text(task, pair if texts == 2 else Example("One .", None, 1)) == text
        assert texts == len(glue.TASKS[task].texts) == len(glue.TEXT_TO_TEXT[task][0])


def test_labels_there_and_back():
    """Would catch: words in another order than the classes; STS-B's scores cut in place of rounded."""
    for task, spec in glue.TASKS.items():
        for label in range(len(spec.labels)) if task in glue.TEXT_TO_TEXT else ():
            assert label_of(task, target_text(task, label), label) == (label, True)
    words = {"cola": "acceptable", "sst2": "positive", "mrpc": "equivalent", "qqp": "duplicate"}
    assert {task: target_text(task, 1) for task in words} == words
    for task in ("mnli", "qnli"):  # whose files have T5's words
        assert glue.TEXT_TO_TEXT[task][1] == glue.TASKS[task].labels
    names = {
        "cola": "acceptable",
        "sst2": "positive",
        "mrpc": "paraphrase",
        "qqp": "duplicate",
        "wnli": "same",
    }
    assert {task: glue.TASKS[task].label_names[1] for task in names} == names
    assert [target_text("stsb", score) for score in (0.0, 2.57, 2.714, 4.95, 5.0)] == [
        "0.0",
        "2.6",
        "2.8",
        "5.0",
        "5.0",
    ]
    assert label_of("stsb", "2.6", 1.0) == (2.6, True)


def test_what_is_no_label_is_wrong():
    """Would catch: an output that is counted as right, or left out, because it is no label."""
    for label in range(3):
        found, valid = label_of("mnli", "entail", label)
        assert found != label and found in range(3) and not valid
    assert label_of("stsb", "2.5", 1.0) == (5.0, False) and label_of("stsb", "", 4.0) == (0.0, False)


def test_the_papers_splits():
    """Would catch: dev rows that are in both halves, the first rows of a sorted file as one half, training
    rows that are tested on, MNLI's sets the wrong way round.
    """
    small, large = list(range(100)), list(range(1000, 13_000))
    dev = list(range(-51, 0))
    halves = read_protocol("cola", {"train": small, "dev": dev})
    assert halves["train"] == small and len(halves["validation"]) == 25 and len(halves["test"]) == 26
    assert sorted(halves["validation"] + halves["test"]) == dev and halves["validation"] != dev[:25]
    for rows, test in ((9_999, 26), (10_000, 51)):  # a half of dev, or all of it
        assert len(read_protocol("sst2", {"train": list(range(rows)), "dev": dev})["test"]) == test
    held = read_protocol("sst2", {"train": large, "dev": dev})
    assert (
        len(held["validation"]) == 1000
        and sorted(held["train"] + held["validation"]) == large
        and held["test"] == dev
    )
    mnli = read_protocol("mnli", {"train": large, "dev_matched": small, "dev_mismatched": dev})
    assert mnli == {"train": large, "validation": dev, "test": small}


# ---- a run


@pytest.mark.parametrize("method", methods_of("encoder-decoder"))
def test_life_of_a_method(read, command, tmp_path, capsys, method):
    """Would catch: a method that does not train, an adapter file that does not score again what its run
    reported.
    """
    size = [] if method in ("full", "bitfit", "lst") else ["--r", 4]
    export = ["--export", tmp_path / "merged"] if "encoder-decoder" in METHODS[method].merges else []
    read(*command[:-2], *size, "--method", method, *export)
    printed = capsys.readouterr().out
    assert "validation 6, test 6" in printed and "40 training examples" in printed
    rows, result, _ = without_timing(tmp_path / "out")
    assert set(rows[0]) - {"single_class"} == {
        "epoch",
        "step",
        "train_loss",
        "matthews",
        "score",
        "invalid",
        "lr",
    }
    assert (result["method"], result["r"]) == (method, 4 if size else None)
    assert result["parameters"]["adapter"] > 0 and result["parameters"]["head"] == 0
    adapter = torch.load(tmp_path / "out" / "adapter.pt", weights_only=True)["adapter"]
    assert sum(t.numel() for t in adapter.values()) == result["parameters"]["adapter"]
    if method == "read":
        assert all(name.startswith("network.") for name in adapter)
    read(*command[:6], "--adapter", tmp_path / "out" / "adapter.pt", "--eval-only")
    used, validation, test = map(json.loads, capsys.readouterr().out.splitlines()[-3:])
    assert used["batch_size"] == 1 and used["ms_a_label"] > 0 and used["peak_memory_bytes"] > 50 * 2**20
    assert all(validation[name] == result["best"][name] for name in ("matthews", "score", "invalid"))
    assert all(test[name] == result["test"][name] for name in ("matthews", "score", "invalid"))
    if export:
        assert T5.from_pretrained(tmp_path / "merged").config.num_decoder_layers == 3


@pytest.mark.parametrize(("method", "lr", "left"), [("read", 3e-2, 0.5), ("full", 1e-2, 0.1)])
def test_it_learns(read, command, tmp_path, method, lr, left):
    """Would catch: a loop that steps without learning, a target that is not the label's word.

    READ can't make this model say a label: its embeddings, which are the output layer, are small and random,
    and frozen.
    """
    size = ["--r", 16] if method == "read" else []
    read(
        *command[:-2], *size, "--epochs", 20, "--patience", 20, "--lr", lr, "--method", method, "--dropout", 0
    )
    rows, result, _ = without_timing(tmp_path / "out")
    assert rows[-1]["train_loss"] < left * rows[0]["train_loss"]
    assert method == "read" or result["best"]["invalid"] == 0


def test_invalid_outputs_are_counted_and_wrong(read, command, tmp_path, capsys):
    """Would catch: what is no label taken for one. A random model that has not moved says none of the two
    words.
    """
    read(*command, "--epochs", 1, "--lr", 1e-30)
    rows, result, _ = without_timing(tmp_path / "out")
    assert rows[0]["invalid"] == 6 and rows[0]["matthews"] <= 0 and result["test"]["matthews"] <= 0
    assert "6 of 6 outputs are no label, and count as wrong" in capsys.readouterr().out


def test_the_unscaled_correction_is_another_and_is_remembered(read, command, tmp_path, capsys):
    """Would catch: a flag that does nothing, or an adapter that is put in as another was trained."""
    for name, more in (("out", []), ("unscaled", ["--unscaled"])):
        read(*command, "--epochs", 1, *more, "--out", tmp_path / name)
    losses = [without_timing(tmp_path / name)[0][0]["train_loss"] for name in ("out", "unscaled")]
    assert losses[0] != losses[1]
    adapter = tmp_path / "unscaled" / "adapter.pt"
    assert read_adapter(adapter)["config"]["unscaled"] is True
    remembered = argparse.Namespace(**read_adapter(adapter)["config"], method="read", dropout=None)
    assert prepare(remembered, T5, command[3], torch.device("cpu"))[0].unscaled is True
    message = fails(
        capsys, read, *command[:6], "--adapter", tmp_path / "out" / "adapter.pt", "--eval-only", "--unscaled"
    )
    assert "trained with unscaled False" in message
    read(*command, "--epochs", 1, "--method", "bitfit", "--unscaled", "--out", tmp_path / "bitfit")
    assert "--unscaled True: --method bitfit has no such thing; it is left out" in capsys.readouterr().out


def test_a_sentinel_beside_a_label_is_no_label(read, command, tiny_t5, monkeypatch, tmp_path):
    """Would catch: special tokens that vanish from what was written. `<unk>` is id 2 of the tiny
    tokenizer.
    """
    tokenizer = load_tokenizer(tiny_t5, 10**9)
    word = tokenizer.encode("acceptable").ids[:-1]
    for more, invalid in (([], 0), ([tokenizer.token_to_id("<unk>")], 6)):
        monkeypatch.setattr(
            T5, "generate", lambda self, sources, *a, more=more, **k: [more + word for _ in sources]
        )
        read(*command[:-2], "--method", "full", "--epochs", 1, "--overwrite")
        assert without_timing(tmp_path / "out")[0][0]["invalid"] == invalid


def test_early_stopping(read, command, tmp_path):
    """Would catch: a run that goes on for ever, that counts from the last epoch in place of the best, or is
    cut at once.
    """
    read(*command[:-6], "--epochs", 9, "--lr", 1e-30, "--patience", 2)
    rows, result, _ = without_timing(tmp_path / "out")
    assert (
        [row["epoch"] for row in rows] == [1, 2, 3]
        and result["best"]["epoch"] == 1
        and result["last"]["epoch"] == 3
    )


def test_what_a_run_takes_is_the_papers(monkeypatch):
    """Would catch: a default that is not what --help and the paper say."""
    monkeypatch.setattr(sys, "argv", ["train_read.py", "--task", "cola"])
    expected = {"model": "t5-base", "epochs": 30, "batch_size": 96, "patience": 3, "max_len": 512, "r": 256}
    assert vars(train_read.arguments()).items() >= (expected | {"warmup": 0.06, "weight_decay": 0}).items()


def test_dropout_is_on_in_every_epoch(read, command, tmp_path):
    """Would catch: a model that is never put into training mode, or that stays out of it after the first
    scoring. At this rate nothing moves; READ's backbone has no dropout.
    """
    found = []
    for p in (0, 0.5):
        read(*command[:-2], "--method", "full", "--lr", 1e-30, "--dropout", p, "--out", tmp_path / f"{p}")
        found.append([row["train_loss"] for row in without_timing(tmp_path / f"{p}")[0]])
    assert all(abs(dropped / plain - 1) > 1e-3 for plain, dropped in zip(*found, strict=True))


def test_validation_chooses_the_epoch_that_is_tested(read, command, tiny_glue, tmp_path, monkeypatch):
    """Would catch: an epoch chosen on the test set, or the last one tested in place of the best."""
    dev = tiny_glue / "CoLA" / "dev.tsv"
    dev.write_text("".join(dev.read_text().splitlines(keepends=True)[:11]))  # 5 for validation, 6 for test
    values, found = iter([0.2, 0.1, 0.3]), []

    def score(args, model, tokenizer, sources, *given):
        found.append((len(sources), {name: p.detach().clone() for name, p in trainable(model)[0].items()}))
        return {"score": next(values), "invalid": 0}

    monkeypatch.setattr(train_read, "score", score)
    read(*command, "--epochs", 2)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["best"]["epoch"] == 1 and result["test"]["score"] == 0.3
    (n, first), (same, _), (of_test, tested) = found
    assert (n, same, of_test) == (5, 5, 6)
    assert all(torch.equal(tensor, first[name]) for name, tensor in tested.items())


def test_a_tasks_score_is_the_mean_of_its_metrics(monkeypatch):
    """Would catch: F1 left out of MRPC's score."""
    says = ["equivalent", "equivalent", "not_equivalent", "equivalent"]
    monkeypatch.setattr(train_read, "written", lambda *given: says)
    args = argparse.Namespace(task="mrpc")
    found = train_read.score(args, None, None, says, [1, 0, 0, 1], None, None)
    assert found == {"accuracy": 0.75, "f1": 0.8, "score": pytest.approx(0.775), "invalid": 0}


def test_what_is_written_is_as_long_as_the_longest_label(monkeypatch):
    """Would catch: a label that is cut off, and so counted as wrong; seconds given as milliseconds."""
    tokenizer, asked = load_tokenizer(MINI / "t5", 10**9), []

    class Model(torch.nn.Module):
        def generate(self, sources, longest, batch_size):
            asked.append(longest)
            return [[] for _ in sources]

    clock = iter(range(9))
    monkeypatch.setattr(train_read.time, "perf_counter", lambda: next(clock) / 4)
    args = argparse.Namespace(task="qnli")
    used = train_read.in_use(args, Model(), tokenizer, [[5], [6]], torch.device("cpu"), torch.float32)
    lengths = [len(tokenizer.encode(label).ids) for label in ("entailment", "not_entailment")]
    assert lengths[0] < lengths[1] and asked == [lengths[1]] * 2 and used["ms_a_label"] == 250


def test_clip_limits_the_step(read, command, tmp_path, monkeypatch):
    """Would catch: --clip that is left out, or is after the step; a rate that is not set; gradients that the
    next step gets too.
    """
    out = tmp_path / "out"
    clip_keeps_hut_in_place(monkeypatch, read, out, *command, "--method", "hut")
    assert without_timing(out)[0][-1]["lr"] == pytest.approx(0.01 / 15)


def test_accumulation_is_the_larger_batch(read, command, tmp_path):
    """Would catch: a mean of means where batches differ in tokens, a loss that is not the step's."""
    for name, arguments in (("a", ["--batch-size", 16]), ("b", ["--batch-size", 4, "--accumulate", 4])):
        read(*command, *arguments, "--epochs", 1, "--limit-train", 16, "--out", tmp_path / name)
    a, b = (without_timing(tmp_path / name)[0][0] for name in "ab")
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4) and a["step"] == b["step"] == 1
    whole, parts = (
        [*torch.load(tmp_path / n / "adapter.pt", weights_only=True)["adapter"].values()] for n in "ab"
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_run_cut_short_ends_in_the_same_bits(read, command, tmp_path, monkeypatch):
    """Would catch: state that no file keeps: where the run stopped, what was best, what patience is left."""
    read(*command)
    expected = without_timing(tmp_path / "out")

    class Killed(BaseException):
        pass

    steps = Run.advance

    def cut(run, *arguments):
        steps(run, *arguments)
        if run.step == 8:
            run.save()
            raise Killed

    monkeypatch.setattr(Run, "advance", cut)
    with pytest.raises(Killed):
        read(*command, "--out", tmp_path / "cut")
    monkeypatch.setattr(Run, "advance", steps)
    read(*command, "--out", tmp_path / "cut", "--resume")
    assert without_timing(tmp_path / "cut") == expected


def test_predict(read, command, tmp_path, capsys):
    """Would catch: a text that is read in another form than in training."""
    read(*command[:-2], "--method", "full", "--epochs", 12, "--dropout", 0)
    capsys.readouterr()
    read(*command[:6], "--adapter", tmp_path / "out" / "adapter.pt", "--predict", "the small dog sleeps .")
    assert capsys.readouterr().out.strip() in LABELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "rte"], "--task rte: expected one of cola sst2 mrpc qqp stsb mnli qnli"),
        (["--method", "vera"], "invalid choice: 'vera'"),
        (["--method", "hut", "--export", "merged"], "--method hut does not merge"),
        (["--export", "merged"], "--method read does not merge"),
        (["--method", "lst", "--export", "merged"], "--method lst does not merge"),
        (["--r", "0"], "r = 0: expected"),
        (["--cell", "untied"], "2 blocks and 3 in the decoder"),
        (["--task", "mnli", "--dev-file", "dev.tsv"], "--dev-file: mnli validates on its mismatched"),
        (["--max-len", "4"], "--max-len 4: expected 5 or more"),
        (["--patience", "0"], "--patience: '0': expected a whole number"),
        (["--eval-only"], "need --adapter"),
        (["--model", "mini", "--data", "", "--task", "sst2"], "its data holds cola only"),
    ],
)
def test_bad_arguments_end_in_one_line(read, command, tmp_path, capsys, arguments, message):
    """Would catch: a traceback, a default taken in place of what was asked for, a run folder left behind."""
    assert message in fails(capsys, read, *command, *arguments)
    assert not (tmp_path / "out").exists()


def test_another_kind_of_model_is_refused(read, command, tiny_model, capsys):
    """Would catch: a RoBERTa read as a T5."""
    assert "model_type is 'roberta': expected 't5'" in fails(capsys, read, *command, "--model", tiny_model)


def test_the_default_method_is_read(read, command, tmp_path):
    """Would catch: the other scripts' default."""
    read(*command, "--epochs", 1)
    assert json.loads((tmp_path / "out" / "args.json").read_text())["args"]["cell"] == "gru"
    assert read_adapter(tmp_path / "out" / "adapter.pt")["method"] == "read"
