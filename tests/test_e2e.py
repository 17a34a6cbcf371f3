"""data/e2e.py and train_e2e.py: files, the loss on the completion, runs, decoding from the command line."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import WORDS, clip_keeps_hut_in_place, fails, without_timing
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F

import metrics
import run
import train_e2e
from arguments import run_as_script
from data import UserError, e2e
from data.hub import MINI, load_tokenizer
from methods import METHODS, methods_of
from model import GPT2
from run import Run
from weights import trainable

MR = (
    "name[The Eagle], eatType[pub], priceRange[£20-25], customer rating[5 out of 5], familyFriendly[no], "
    "near[Café Sol]"
)
LINEAR = (
    "name : The Eagle | Type : pub | price : £ 20 - 25 | customer rating : 5 out of 5 | "
    "family friendly : no | near : Café Sol"
)


# ---- data


def test_linearised_as_lora_has_it():
    """Would catch: a slot's official name, a price that is not tokenised, a value split at its comma."""
    assert e2e.linearise(MR) == LINEAR
    assert e2e.linearise("name[A, B], priceRange[less than £20]") == "name : A, B | price : less than £ 20"


@pytest.mark.parametrize(
    "bad", ["", "name", "name[A", "name[A]]", "name[A] area[B]", "name[A],area[B]", "name[]", "colour[red]"]
)
def test_malformed_representations(bad):
    """Would catch: a part of the representation that is passed over."""
    with pytest.raises(ValueError, match="meaning representation"):
        e2e.linearise(bad)


def test_official_and_linearised_files(tmp_path):
    """Would catch: a row that ends at a line break inside quotes, references out of order, merged groups."""
    (tmp_path / "devset.csv").write_text(
        'mr,ref\r\n"name[A], area[riverside]","One,\r\n""two""."\r\nname[B],Three.\r\n'
        '"name[A], area[riverside]",Four.\r\n',
        encoding="utf-8",
        newline="",
    )
    examples = e2e.load(tmp_path, splits=("dev",))["dev"]
    assert e2e.grouped(examples) == {
        "name : A | area : riverside": ['One, "two".', "Four."],
        "name : B": ["Three."],
    }
    assert not e2e.is_tokenised(examples)
    (tmp_path / "valid.txt").write_text("name : A||One , two . \nname : B||Three . \n")
    (tmp_path / "devset.csv").unlink()
    examples = e2e.load(tmp_path, splits=("dev",))["dev"]
    assert examples == [("name : A", "One , two ."), ("name : B", "Three .")] and e2e.is_tokenised(examples)
    assert not e2e.is_tokenised([examples[0], e2e.Example("name : B", "Three.")])  # a half is not most


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"mr,ref\nname[A],One\nname A,Two\n", r"x\.csv:3: meaning representation 'name A'"),
        (
            "x.csv",
            b'mr,ref\nname[A],"One\nmore"\nname[B]\n',
            r"x\.csv:4: expected a meaning representation and a reference",
        ),
        ("x.csv", b"a,b\n1,2\n", r"x\.csv:1: columns .*expected mr, ref"),
        ("x.csv", b'mr,ref\nname[A],"One\n', r"x\.csv:2: unexpected end of data"),
        ("x.csv", b"mr,ref\nname[A],caf\xe9\n", r"x\.csv:2: not UTF-8"),
        ("x.csv", b"mr,ref\n", "no examples"),
        ("x.txt", b"name : A||One\nname : A\n", r"x\.txt:2: expected 'slot : value"),
        ("x.txt", b"", "no examples"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, name, content, message):
    """Would catch: a bad row that is skipped, or reported at the wrong line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        e2e.read(tmp_path / name)


def test_download_once_and_checked(server, tmp_path, monkeypatch):
    """Would catch: official files that are fetched again, or used although they are others."""
    address, files = server
    content = b"mr,ref\nname[A],One\n"
    files.update({name: (content, len(content)) for name in e2e.SHA256})
    for name in e2e.SHA256:
        monkeypatch.setitem(e2e.SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(e2e, "RELEASE", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert [len(part) for part in e2e.load().values()] == [1, 1, 1]
    files.clear()
    assert len(e2e.load()) == 3
    monkeypatch.setitem(e2e.SHA256, "devset.csv", "0" * 64)
    (tmp_path / "hut" / "e2e" / "devset.csv").unlink()
    files["devset.csv"] = content, len(content)
    with pytest.raises(UserError, match=r"devset\.csv has sha256 .*expected 000"):
        e2e.load()


# ---- tiny model


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory):
    """tests/reference/gpt2 with a tokenizer.json of whole words; token 7 is <|endoftext|>."""
    directory = tmp_path_factory.mktemp("tiny") / "gpt2"
    shutil.copytree(Path(__file__).parent / "reference" / "gpt2", directory)
    words = [
        "name",
        ":",
        "|",
        "area",
        "Type",
        "pub",
        "riverside",
        "<|endoftext|>",
        "A",
        "B",
        "C",
        "is",
        *WORDS,
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="old"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def command(tiny_gpt2, tmp_path):
    """A small run: 2 epochs of 3 steps over 12 rows."""
    folder = tmp_path / "e2e"
    folder.mkdir()
    rows = [
        f'"name[{n}], area[riverside]",{n} is a {w} pub .\n'
        for n in "ABC"
        for w in ("small", "old", "red", "the")
    ]
    for name in e2e.OFFICIAL.values():
        (folder / name).write_text("mr,ref\n" + "".join(rows))
    return ["--model", str(tiny_gpt2), "--data", str(folder), "--out", str(tmp_path / "out"), "--epochs", "2",
            "--batch-size", "4", "--warmup", "1", "--lr", "0.01", "--max-new-tokens", "8",
            "--beam-size", "3"]  # fmt: skip


@pytest.fixture
def run_e2e(monkeypatch):
    """train_e2e.py in this process: run_e2e("--r", 4, …)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_e2e.py", *map(str, arguments)])
        train_e2e.main()

    return call


def test_loss_is_on_the_completion_alone(tiny_gpt2):
    """Would catch: a loss on the prompt, on padding, or one token early or late; a mean of means."""
    model = GPT2.from_pretrained(tiny_gpt2)
    pairs = [([5, 6, 7], [11, 12, 13, 7]), ([5, 7], [14, 7])]
    total, count = 0.0, 0
    for prompt, completion in pairs:
        text = torch.tensor([prompt + completion])
        logp = model(text)[0].log_softmax(-1)
        for i, token in enumerate(completion):
            total -= logp[len(prompt) + i - 1, token].item()
            count += 1
    found = train_e2e.score(model, pairs, torch.device("cpu"), torch.float32)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_label_smoothing_is_loras():
    """The loss is (1 − e) × negative log likelihood + e × the mean of −log p over the vocabulary."""
    logits, target = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    logp = logits.log_softmax(-1)
    expected = (0.9 * -logp[torch.arange(6), target] + 0.1 * -logp.mean(-1)).sum()
    torch.testing.assert_close(
        F.cross_entropy(logits, target, reduction="sum", label_smoothing=0.1), expected
    )


def test_tokens_of_an_example(tiny_gpt2):
    """Would catch: an end token that is missing between the two or at the end; a prompt that is cut."""
    tokenizer = load_tokenizer(tiny_gpt2, 61)
    example = e2e.Example("name : A", "A is red")
    assert e2e.encode(tokenizer, [example], 7, 99) == [([0, 1, 8, 7], [8, 11, 23, 7])]
    assert e2e.encode(tokenizer, [example], 7, 6) == [([0, 1, 8, 7], [8, 11])]
    assert e2e.encode(tokenizer, [example], 7, 3) == [([0, 1, 8, 7], [8])]  # the prompt alone is longer


def test_a_completion_begins_with_a_space():
    """Would catch: a first word in another form than within a text, which GPT-2's tokenizer tells apart."""
    tokenizer = load_tokenizer(MINI / "gpt2", 10**9)
    ((_, completion),) = e2e.encode(tokenizer, [e2e.Example("name : A", "A is red")], 0, 99)
    assert tokenizer.decode(completion[:-1]) == " A is red"


# ---- runs


def test_what_a_run_takes_is_the_papers_table_7(monkeypatch):
    """Would catch: a setting that is not the paper's, where the command leaves it open."""
    monkeypatch.setattr(sys, "argv", ["train_e2e.py"])
    expected = {"epochs": 5, "batch_size": 4, "warmup": 500, "lr": 2e-3, "r": 4, "weight_decay": 0.01}
    expected |= {"dropout": 0.1, "label_smoothing": 0.1, "beam_size": 10, "length_penalty": 0.9}
    assert vars(train_e2e.arguments()).items() >= (expected | {"no_repeat_ngram": 4}).items()


def test_training_is_smoothed_and_drops_out_and_scoring_does_neither(run_e2e, command, tmp_path):
    """Would catch: label smoothing, or in a later epoch dropout, that is left out of training, or is in the
    dev loss. All files have the same rows, and at this rate nothing moves.
    """
    found = []
    for e, p in ((0, 0), (0.5, 0), (0, 0.5)):
        out = tmp_path / f"{e} {p}"
        run_e2e(*command, "--lr", 1e-30, "--label-smoothing", e, "--dropout", p, "--out", out)
        found.append([(row["train_loss"], row["loss"]) for row in without_timing(out)[0]])
    for (plain, dev), *others in zip(*found, strict=True):
        assert plain == pytest.approx(dev, rel=1e-5)
        assert all(same == pytest.approx(dev) and abs(loss / dev - 1) > 1e-3 for loss, same in others)


def test_the_best_epoch_is_decoded(run_e2e, command, tmp_path, monkeypatch):
    """Would catch: the test set decoded by the last epoch's adapter."""
    losses, decoded = iter([1.0, 2.0]), []
    monkeypatch.setattr(train_e2e, "score", lambda *given: {"loss": next(losses)})

    def decode(args, model, *given):
        decoded.append({name: p.detach().clone() for name, p in trainable(model)[0].items()})
        return {}, 0

    monkeypatch.setattr(train_e2e, "generate_and_score", decode)
    run_e2e(*command)
    (found,) = decoded
    best, last = (
        torch.load(tmp_path / "out" / f"{name}.pt")["adapter"] for name in ("adapter", "adapter-last")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in best.items())
    assert not any(torch.equal(found[name], tensor) for name, tensor in last.items())


def test_peak_memory_is_that_of_training_too(run_e2e, command, tmp_path, monkeypatch):
    """Would catch: a GPU's peak of decoding in the place of training's, as loading a model resets it."""
    peak, trained = [9_000], train_e2e.trained

    def loaded(*given):
        peak[0] = 2_000
        return trained(*given)

    monkeypatch.setattr(train_e2e, "trained", loaded)
    monkeypatch.setattr(run, "peak_memory", lambda device: peak[0])
    run_e2e(*command)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["timing"]["peak_memory_bytes"] == 9_000


def test_clip_limits_the_step(run_e2e, command, tmp_path, monkeypatch):
    """Would catch: --clip that is left out, or is after the step; a rate that is not set; gradients that the
    next step gets too.
    """
    out = tmp_path / "out"
    clip_keeps_hut_in_place(monkeypatch, run_e2e, out, *command, "--weight-decay", 0, "--limit-train", 4)
    assert [(row["step"], row["lr"]) for row in without_timing(out)[0]] == [(1, 0.005), (2, 0.01)]


def test_a_run_and_what_it_leaves(run_e2e, command, tmp_path, capsys):
    """Would catch: a missing file or key, test scores not of the best epoch, outputs out of order."""
    run_e2e(*command, "--r", 2)
    out = tmp_path / "out"
    rows, result, _ = without_timing(out)
    assert [row["step"] for row in rows] == [3, 6] and {"loss", "perplexity"} <= set(rows[0])
    assert result["best"]["loss"] == min(row["loss"] for row in rows)
    assert (
        result["parameters"]["adapter"] == 2 * 2 * (2 * 2 * 24 + 2 * 24) and result["parameters"]["head"] == 0
    )
    outputs = (out / "outputs.txt").read_text().splitlines()
    references = metrics.read_references(out / "references.txt")
    assert len(outputs) == len(references) == 3 and [len(refs) for refs in references] == [4, 4, 4]
    assert (
        result["test"]["BLEU"] == metrics.bleu(outputs, references)
        and result["test"]["references"] == "tokenised"
    )
    printed = capsys.readouterr().out
    assert "12 training examples" in printed and "test 3 representations" in printed
    assert "no 4-gram twice in the completion; tokenised references" in printed and "METEOR" in printed


def test_loss_falls_and_methods(run_e2e, command, tmp_path, tiny_gpt2):
    """Would catch: a loop that steps without learning; frozen runs that train, or count what is frozen as
    trained.
    """
    run_e2e(*command, "--method", "full", "--epochs", 12, "--dropout", 0)
    rows = without_timing(tmp_path / "out")[0]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    run_e2e(*command, "--method", "frozen", "--out", tmp_path / "frozen")
    frozen = json.loads((tmp_path / "frozen" / "result.json").read_text())
    weights = sum(weight.numel() for weight in GPT2.from_pretrained(tiny_gpt2).parameters())
    assert frozen["test"]["BLEU"] < 0.5
    assert frozen["parameters"] == {"adapter": 0, "head": 0, "frozen": weights}


@pytest.mark.parametrize("method", [name for name in methods_of("decoder") if name != "frozen"])
def test_life_of_a_baseline(run_e2e, command, tmp_path, capsys, method):
    """Would catch: a method that decodes otherwise from its file, or merged, than it did in its run."""
    merges = "decoder" in METHODS[method].merges
    size = ["--r", 4] if METHODS[method].r else []
    run_e2e(*command, *size, "--method", method, *(["--export", tmp_path / "merged"] if merges else []))
    outputs = (tmp_path / "out" / "outputs.txt").read_text()
    capsys.readouterr()
    basics = [*command[:4], *command[-4:]]
    run_e2e(*basics, "--adapter", tmp_path / "out" / "adapter.pt", "--predict", "name[A], area[riverside]")
    assert capsys.readouterr().out == outputs.splitlines(keepends=True)[0]
    if merges:
        basics[1] = tmp_path / "merged"
        run_e2e(*basics, "--method", "frozen", "--out", tmp_path / "again")
        assert (tmp_path / "again" / "outputs.txt").read_text() == outputs
    else:
        line = fails(
            capsys, run_e2e, *command, "--method", method, "--overwrite", "--export", tmp_path / "merged"
        )
        assert f"--method {method} does not merge" in line and (tmp_path / "out" / "outputs.txt").exists()


def test_accumulation_averages_over_tokens(run_e2e, command, tmp_path):
    """Would catch: a mean of the batches' means, where batches differ in tokens."""
    for name, arguments in (("a", ["--batch-size", 12]), ("b", ["--batch-size", 5, "--accumulate", 3])):
        run_e2e(*command, *arguments, "--dropout", 0, "--epochs", 1, "--out", tmp_path / name)
    a, b = (torch.load(tmp_path / n / "adapter.pt", weights_only=True)["adapter"] for n in "ab")
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["hut", "read"])
def test_a_cut_run_goes_on_bit_identically(run_e2e, command, tmp_path, monkeypatch, method):
    """Would catch: state of the E2E loop that no file keeps. (test_train_glue.py cuts at every write.)"""
    command = [*command, "--method", method]
    run_e2e(*command, "--out", tmp_path / "whole")
    save, saves = Run.save, []

    def cut(run):
        save(run)
        saves.append(run.step)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "SAVE_EVERY", 0)
    monkeypatch.setattr(Run, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        run_e2e(*command, "--out", tmp_path / "cut")
    assert saves == [0, 1, 2]
    run_e2e(*command, "--out", tmp_path / "cut", "--resume")
    assert without_timing(tmp_path / "cut") == without_timing(tmp_path / "whole")
    assert (tmp_path / "cut" / "outputs.txt").read_text() == (tmp_path / "whole" / "outputs.txt").read_text()


def test_seeds_eval_only_predict_export(run_e2e, command, tmp_path, capsys, monkeypatch):
    """Would catch: an adapter whose scores differ from its run's, an export that decodes differently."""
    run_e2e(*command, "--seeds", 2, "--export", tmp_path / "merged")
    out = tmp_path / "out"
    assert re.search(r"largest logit difference.*12 dev examples: \d\.\d\de-0[5-9]", capsys.readouterr().out)
    together = json.loads((out / "result.json").read_text())
    values = [json.loads((out / f"seed{s}" / "result.json").read_text())["test"]["BLEU"] for s in (0, 1)]
    assert together["mean"]["test"]["BLEU"] == pytest.approx(sum(values) / 2)
    basics = [*command[:4], *command[-4:], "--adapter", out / "seed0" / "adapter.pt"]
    run_e2e(*basics, "--eval-only")
    again = json.loads((out / "seed0" / "eval" / "result.json").read_text())
    assert again["test"]["BLEU"] == values[0]
    best = json.loads((out / "seed0" / "result.json").read_text())["best"]
    assert again["best"]["loss"] == pytest.approx(best["loss"], rel=1e-6)
    for folder in (out / "seed0", out):  # one run's result, and the mean of both
        kept = (folder / "result.json").read_bytes()
        line = fails(capsys, run_e2e, *basics, "--eval-only", "--out", folder)
        assert "holds a training run's result" in line and kept == (folder / "result.json").read_bytes()
    run_e2e(*basics[:-1], out / "seed1" / "adapter-last.pt", "--eval-only")
    assert json.loads((out / "seed1" / "eval-last" / "result.json").read_text())["seed"] == 1
    shutil.copy(out / "seed1" / "adapter.pt", out / "seed1" / "mine.pt")
    run_e2e(*basics[:-1], out / "seed1" / "mine.pt", "--eval-only")
    assert (out / "seed1" / "eval-mine" / "result.json").exists()
    shutil.rmtree(out / "seed0" / "eval")
    (out / "seed0" / "eval").write_text("in the way")
    with monkeypatch.context() as patch:
        patch.setattr(train_e2e, "generate", lambda *arguments: pytest.fail("decoded before it was refused"))
        assert "eval: Not a directory: expected" in fails(capsys, run_e2e, *basics, "--eval-only")
    run_e2e(*basics, "--predict", "name[A], area[riverside]")
    said = capsys.readouterr().out
    assert said == (out / "seed0" / "outputs.txt").read_text().splitlines(keepends=True)[0]
    run_e2e(*basics, "--export", tmp_path / "again merged")
    assert "training" not in capsys.readouterr().out
    assert (tmp_path / "again merged" / "config.json").exists()
    run_e2e(
        "--model",
        tmp_path / "merged",
        *command[2:4],
        *command[-4:],
        "--method",
        "frozen",
        "--out",
        tmp_path / "again",
    )
    assert (tmp_path / "again" / "outputs.txt").read_text() == (out / "seed0" / "outputs.txt").read_text()


def test_max_len_cuts_what_training_reads_and_scoring(run_e2e, command, tmp_path, capsys):
    """Would catch: --max-len that training, scoring or the count leaves out; a pair that just fits, and is
    called cut.
    """
    for name, count in (("trainset.csv", 1), ("devset.csv", 2)):  # of 16 tokens, the others 15
        with (tmp_path / "e2e" / name).open("a") as file:
            file.write('"name[A], area[riverside]",A is a small old pub .\n' * count)
    losses = []
    for max_len in (15, 16):
        out = tmp_path / f"{max_len}"
        run_e2e(*command, "--dropout", 0, "--lr", 1e-30, "--max-len", max_len, "--out", out)
        ((row, _), result, _), printed = without_timing(out), capsys.readouterr().out
        said = "3 of 27 texts are longer than --max-len 15: their ends are cut off"
        assert printed.count("longer than") == printed.count(said) == (max_len == 15)
        run_e2e(*command[:4], "--adapter", out / "adapter.pt", "--eval-only")
        again = json.loads((out / "eval" / "result.json").read_text())
        assert again["best"]["loss"] == pytest.approx(result["best"]["loss"], rel=1e-6)
        losses.append((row["train_loss"], row["loss"]))
    assert all(abs(whole / cut - 1) > 1e-4 for cut, whole in zip(*losses, strict=True))


def test_an_adapter_is_scored_on_the_part_that_was_held_out(run_e2e, command, tmp_path, capsys):
    """Would catch: --hold-out that is left out of --eval-only without a word: scores on dev; a held-out part
    that is trained on.
    """
    run_e2e(*command, "--hold-out")
    assert "8 training examples" in capsys.readouterr().out
    out = tmp_path / "out"
    run_e2e(*command[:4], "--adapter", out / "adapter.pt", "--eval-only", "--hold-out")
    trained, scored = (json.loads((folder / "result.json").read_text()) for folder in (out, out / "eval"))
    assert scored["best"]["loss"] == pytest.approx(trained["best"]["loss"], rel=1e-6)


def test_ctrl_c_while_the_test_set_is_decoded(run_e2e, command, tmp_path, monkeypatch, capsys):
    """Would catch: one that is noted for a step that never comes, and lost."""
    decode = train_e2e.generate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return decode(*arguments)

    monkeypatch.setattr(train_e2e, "generate", interrupted)
    with pytest.raises(SystemExit) as exit_:
        run_as_script(lambda: run_e2e(*command))
    assert exit_.value.code == 130 and not (tmp_path / "out" / "result.json").exists()
    monkeypatch.setattr(train_e2e, "generate", decode)
    run_e2e(*command, "--resume")
    assert "goes on after epoch 2, step 6 of 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere/trainset.csv: No such file"),
        (["--beam-size", "0"], "--beam-size: '0': expected a whole number"),
        (["--max-len", "49"], "--max-len 49: expected 1 to 48"),
        (["--ngram-scope", "all"], "invalid choice: 'all'"),
        (["--targets", "x"], "'x' matches no layer"),
        (["--predict", "name[A]"], "need --adapter"),
        (["--max-new-tokens", "47"], "the position table holds 48"),
    ],
)
def test_bad_arguments_end_in_one_line(run_e2e, command, capsys, tmp_path, arguments, message):
    """Would catch: a traceback for what the user can mend, and training before the user learns of it."""
    assert message in fails(capsys, run_e2e, *command, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("trainset.csv", 46), ("devset.csv", 46), ("testset_w_refs.csv", 36)]
)
def test_an_input_without_positions_is_refused_before_training(
    run_e2e, command, capsys, tmp_path, name, words
):
    """Would catch: a traceback from the depths of GPT-2, when its batch comes, or its eight new tokens."""
    with (tmp_path / "e2e" / name).open("a") as file:
        file.write(f'"name[{"A " * words}], area[riverside]",A is a pub .\n')
    assert "the position table holds 48: lower" in fails(capsys, run_e2e, *command)
    assert not (tmp_path / "out").exists()


def test_a_roberta_is_no_gpt2(run_e2e, command, tiny_model, capsys):
    """Would catch: loading whatever the directory holds."""
    command[1] = str(tiny_model)
    assert "model_type is 'roberta': expected 'gpt2'" in fails(capsys, run_e2e, *command)
