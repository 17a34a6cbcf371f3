"""Many adapters in one batch: what each computes alone."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import fails

import many as many_module
from adapter import load
from data import table
from data.batching import pad
from hut import HUTLinear

BASICS = ["--epochs", "1", "--limit-train", "16", "--batch-size", "8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model):
    """Three adapters of one base: CoLA, three classes with r = 2, a regression; and one made with LoRA."""
    import train_glue

    folder = tmp_path_factory.mktemp("many")
    rows = [
        {"t": f"the dog sees the cat {'red ' * (i % 4)}", "c": "abc"[i % 3], "n": str(i)} for i in range(24)
    ]
    table.write(folder / "own.csv", rows)
    own = ["--train-file", folder / "own.csv", "--text", "t"]
    for name, given in {
        "classes": ["--r", 2, *own, "--label", "c"],
        "numbers": [*own, "--label", "n", "--regression"],
        "two": ["--r", 3, *own, "--label", "c"],
        "lora": ["--method", "lora", *own, "--label", "c"],
        "wide": ["--targets", "qkv", *own, "--label", "c"],
    }.items():
        command = ["x", *BASICS, "--model", tiny_model, "--lr", "0.2", *given, "--out", folder / name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*map(str, command)])
            train_glue.main()
    return folder


def paths_of(runs, *names):
    return [str(runs / name / "adapter.pt") for name in names]


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_outputs_and_gradients_are_those_of_each_alone(runs, pool):
    """Would catch: another example's adapter or head, a mean taken twice, a bias left out, another --pool.

    The vectors are float32, so gradients of about 20 agree to 3e-7.
    """
    paths = paths_of(runs, "classes", "numbers", "two")
    many, first, _ = many_module.opened(paths)
    many, many.model.pool = many.double(), pool
    many.heads = [{n: t.double().requires_grad_() for n, t in head.items()} for head in many.heads]
    texts = ["the dog runs .", "a cat", "the old girl sees", "red", "the small boy hears a cat ."]
    ids = [encoding.ids for encoding in first.tokenizer.encode_batch(texts)]
    batch, which = pad(ids, 1), torch.tensor([2, 0, 1, 0, 2])
    found = many(*batch, which)
    assert [len(logits) for logits in found] == [3, 3, 1, 3, 3]
    sum(logits.square().sum() for logits in found).backward()
    for i, path in enumerate(paths):
        alone, rows = load(path).model.double(), which == i
        alone.pool = pool
        logits = alone(batch[0][rows], batch[1][rows])
        assert torch.allclose(torch.stack([found[j] for j in rows.nonzero()]), logits, atol=1e-6)
        logits.square().sum().backward()
        for name, head in alone.classifier.named_parameters():
            assert torch.allclose(many.heads[i][name].grad, head.grad, atol=1e-6)
        layers = [layer for layer in alone.modules() if isinstance(layer, HUTLinear)]
        assert len(layers) == len(many.layers)
        for ours, theirs in zip(many.layers, layers, strict=True):  # M_A's columns share m_A's gradient
            assert torch.allclose(ours.m_A.grad[i], theirs.M_A.grad.sum(1), atol=1e-6)
            assert torch.allclose(ours.scale.grad[i] * theirs.M_B.mean(0), theirs.gamma.grad, atol=1e-6)
            assert torch.allclose(ours.shift.grad[i], theirs.beta.grad, atol=1e-6)
            assert ours.m_A.grad[i].abs().max() > 0


@pytest.fixture
def command(runs, tmp_path, monkeypatch):
    rows = [
        {"t": f"the cat {'runs ' * i}", "who": name}
        for i, name in enumerate(["two", "classes", "numbers"] * 5)
    ]
    table.write(tmp_path / "in.csv", rows)

    def call(*names, which="who", text=("t",), path=tmp_path / "in.csv"):
        given = ["--adapters", *paths_of(runs, *names), "--predict-file", path, "--text", *text]
        monkeypatch.setattr(
            sys, "argv", ["many.py", *map(str, given), "--which", which, "--out-file", str(out)]
        )
        many_module.main()

    out = tmp_path / "out.csv"
    return call


def test_a_file_is_answered_row_by_row(command, runs, tmp_path, capsys):
    """Would catch: rows out of order, another adapter's labels, a probability of other classes."""
    command("classes", "numbers", "two")
    assert "15 rows by 3 adapters" in capsys.readouterr().out
    alone = {name: load(runs / name / "adapter.pt") for name in ("classes", "numbers", "two")}
    for _, row in table.read(tmp_path / "out.csv", ("t", "who")):
        label, probability = alone[row["who"]]([row["t"]])[0]
        if probability is None:
            assert float(row["predicted"]) == pytest.approx(label, abs=1e-5) and row["probability"] == ""
        else:
            assert row["predicted"] == label and float(row["probability"]) == pytest.approx(
                probability, abs=1e-5
            )


def test_what_does_not_fit_is_one_line(command, runs, tmp_path, capsys):
    """Would catch: adapters of another method, base or place taken for each other's; a traceback."""
    assert "lora/adapter.pt: lora on base" in fails(capsys, lambda: command("classes", "lora"))
    assert "wide/adapter.pt: hut on base" in fails(capsys, lambda: command("classes", "wide"))
    different = "--adapters: files in two two: expected folders of different names"
    assert different in fails(capsys, lambda: command("two", "two"))
    assert "in.csv:1: no column 'whose'" in fails(capsys, lambda: command("two", which="whose"))
    assert "in.csv:3: column 'who': 'classes': expected two or numbers" in fails(
        capsys, lambda: command("two", "numbers")
    )
    assert "two files with the same ending" in fails(
        capsys, lambda: command("two", path=tmp_path / "out.csv")
    )
    assert "--text: 2 column(s)" in fails(capsys, lambda: command("two", text=("t", "who")))
    other = tmp_path / "other" / "adapter.pt"
    other.parent.mkdir()
    content = torch.load(runs / "two" / "adapter.pt", weights_only=True)
    torch.save(content | {"base": "0" * 64}, other)
    assert f"{other}: hut on base 0000" in fails(capsys, lambda: command("classes", Path(other).parent))
    moved = {name.replace(".q.", ".k."): tensor for name, tensor in content["adapter"].items()}
    for change in (
        {"config": content["config"] | {"max_len": 5}},  # it has seen shorter texts
        {"config": content["config"] | {"pool": "mean"}},
        {"adapter": moved},
    ):
        torch.save(content | change, other)
        line = fails(capsys, lambda: command("classes", Path(other).parent))
        assert "expected hut, and base, --targets, --pool and --max-len as of" in line
