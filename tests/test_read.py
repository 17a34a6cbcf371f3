"""read/network.py, data/states.py, device.py: what READ computes, what it leaves alone, its states on disk,
its energy.
"""

import json
import os
import shutil
from collections import Counter

import pytest
import torch
from conftest import fails, with_states, without_timing
from torch import nn
from torch.nn import functional as F

import baselines
import device
import model as model_module
from data.states import HEADER, read_states, write_states
from methods import merge
from model import (
    GPT2,
    GPT2_MEDIUM,
    ROBERTA_LARGE,
    GPT2Config,
    GPT2Decoder,
    RobertaClassifier,
    RobertaConfig,
    RobertaSpan,
)
from read.network import CELLS, LayerRNN, UntiedLayers, apply_read
from run import Run

ENCODER = RobertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=24,
                        max_position_embeddings=20, initializer_range=0.3)  # fmt: skip
DECODER = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
IDS = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 9, 2, 1]])
MASK = IDS != 1
both_models = pytest.mark.parametrize("kind", ["encoder", "decoder"])
every_cell = pytest.mark.parametrize("cell", CELLS)


def plain(kind):
    torch.manual_seed(0)
    return (RobertaClassifier(ENCODER) if kind == "encoder" else GPT2(DECODER)).eval()


def adapted(kind, cell="gru", start="random", width=8):
    """READ beside `plain(kind)`, its head trainable as in the scripts; U is not zero, so that it does
    something.
    """
    model = apply_read(plain(kind), width, cell, start)
    if kind == "encoder":
        model.classifier.requires_grad_(True)
    return model


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ---- what it computes


@both_models
@every_cell
def test_starts_as_the_frozen_model_bit_for_bit(kind, cell):
    """Would catch: a start that is not the frozen model, in training mode too, where the backbone's
    dropout must be off.

    And a network that changes nothing at all: with another U the logits must differ.
    """
    model = adapted(kind, cell, start="zero").train()
    if kind == "encoder":
        model.classifier.eval()  # the head has dropout of its own, which stays
    assert torch.equal(model(IDS, MASK), plain(kind)(IDS, MASK))
    assert (adapted(kind, cell)(IDS, MASK) - plain(kind)(IDS, MASK)).abs().max() > 1e-3


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_the_rnn_runs_over_the_layers(cell):
    """Would catch: tokens or examples as the time axis, the wrong state, a cell that is another. Step by
    step, by hand.
    """
    torch.manual_seed(0)
    network, states = LayerRNN(6, 4, cell, zero_start=False), 50 * torch.randn(2, 5, 3, 6)  # (B, L, N, d)
    step = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}[cell](6, 4)
    step.load_state_dict({name.removesuffix("_l0"): p for name, p in network.rnn.named_parameters()})
    for b, t in ((0, 0), (1, 3)):
        h = None
        for phi in states[b, t]:
            x = phi / (phi.square().mean() + 1e-6).sqrt()
            h = step(x[None], h)
        h = h[0] if cell == "lstm" else h
        torch.testing.assert_close(network(states)[b, t], (h @ network.up.weight.T)[0])


def test_without_recurrency_a_layer_sees_no_other():
    """Would catch: an ablation that still passes a state on, or that leaves layers out."""
    torch.manual_seed(0)
    network, states = UntiedLayers(3, 6, 4, "gru", False), torch.randn(2, 3, 6)
    before = network(states)
    for layer in range(3):
        changed = states.clone()
        changed[:, layer] = torch.randn(2, 6)
        alone = [network.layers[layer](s[:, layer : layer + 1]) for s in (states, changed)]
        torch.testing.assert_close(network(changed) - before, alone[1] - alone[0])


def test_parameter_counts():
    """Would catch: a bias in U, a cell of another size, a count that depends on the depth (but for the
    ablation).
    """
    with torch.device("meta"):

        def count(model, *options):
            return sum(p.numel() for p in apply_read(model, *options).parameters() if p.requires_grad)

        assert (
            sum(p.numel() for p in LayerRNN(768).parameters()) == 787_968 + 196_608
        )  # T5-base has two, and b
        assert count(RobertaClassifier(ROBERTA_LARGE)) == count(GPT2(GPT2_MEDIUM)) == 1_246_720
        assert (
            count(RobertaClassifier(ROBERTA_LARGE), 256, "lstm")
            == 4 * 256 * (1024 + 256) + 8 * 256 + 256 * 1024
        )
        assert (
            count(RobertaClassifier(ROBERTA_LARGE), 128, "rnn") == 128 * (1024 + 128) + 2 * 128 + 128 * 1024
        )
        assert count(RobertaClassifier(ROBERTA_LARGE), 256, "untied") == 24 * 1_246_720


def test_a_span_is_corrected_at_every_position():
    """Would catch: a network at the first token alone, a start that is not the frozen model, a backbone that
    trains.
    """
    torch.manual_seed(0)
    frozen = RobertaSpan(ENCODER).eval()
    model = apply_read(frozen, 8).train()
    for ours, theirs in zip(model(IDS, MASK), frozen.eval()(IDS, MASK), strict=True):
        assert torch.equal(ours, theirs)
    nn.init.normal_(model.network.up.weight)
    start, end = model(IDS, MASK)
    assert ((start - frozen(IDS, MASK)[0]).abs() > 1e-3).all()
    (start.sum() + end.sum()).backward()
    assert {name.partition(".")[0] for name in gradients(model)} == {"network"}


@pytest.mark.parametrize(
    ("options", "message"),
    [((0,), "r = 0: expected a whole"), ((True,), "r = True"), ((8, "sru"), "cell 'sru': expected one")],
)
def test_what_does_not_fit_is_refused(options, message):
    """Would catch: a traceback from inside torch, a model that is left half frozen."""
    model = plain("encoder")
    with pytest.raises(ValueError, match=message):
        apply_read(model, *options)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="a ReadClassifier: expected one of RobertaClassifier"):
        apply_read(apply_read(model))
    with pytest.raises(ValueError, match="a Linear: expected one of RobertaClassifier"):
        apply_read(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="--method read does not merge"):
        merge(adapted("encoder"), "read")


# ---- what it leaves alone


def tensors_kept(model, kind):
    """A forward and a backward pass; -> Counter of the tensors that autograd saved {in, outside} blocks and
    embeddings.
    """
    where, kept, body = ["outside"], Counter(), getattr(model, "roberta", model)
    embeddings = [body.embeddings] if kind == "encoder" else [body.word, body.position]
    for module in (*body.blocks, *embeddings):
        module.register_forward_pre_hook(lambda *_: where.append("in"))
        module.register_forward_hook(lambda *_: where.pop() and None)
    weights = {p.untyped_storage().data_ptr() for block in body.blocks for p in block.parameters()}

    def pack(tensor):
        kept["in" if tensor.untyped_storage().data_ptr() in weights else where[-1]] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(IDS, MASK).square().sum().backward()
    return kept


@both_models
@every_cell
def test_nothing_in_the_backbone_is_differentiated(kind, cell):
    """Would catch: a graph through a block or an embedding, a gradient in one; a method that seems to
    train and does not.

    GPT-2's last norm and its tied head are crossed, and frozen too.
    """
    model = adapted(kind, cell)
    kept = tensors_kept(model, kind)
    assert kept["in"] == 0 and kept["outside"] > 5
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() == trained
    assert all(name.startswith(("network.", "classifier.")) for name in trained)
    assert all(
        g.abs().max() > 0
        for name, g in gradients(model).items()
        if "weight_hh" not in name or cell != "untied"
    )


@both_models
def test_what_counts_saved_tensors_can_count(kind):
    """The test above would pass with hooks that see nothing: BitFit must keep tensors in every block."""
    assert tensors_kept(baselines.apply_bitfit(plain(kind)), kind)["in"] > 3 * 3


def test_states_are_the_backbones_own():
    """Would catch: another position than the first, a layer too many or too few, states that hold on to a
    graph.
    """
    model = adapted("encoder").train()
    states = model.states(IDS, MASK)
    _, expected = with_states(plain("encoder"), IDS, MASK)
    assert torch.equal(states, torch.stack([x[:, 0] for x in expected], 1)) and not states.requires_grad


def test_states_of_a_mean_are_the_means_of_states():
    """Would catch: padding in the mean, states of the first token, a head that reads something else."""
    torch.manual_seed(0)
    frozen = RobertaClassifier(ENCODER, pool="mean").eval()
    model = apply_read(frozen, 8).train()
    model.classifier.eval()
    _, expected = with_states(frozen, IDS, MASK)
    states = model.states(IDS, MASK)
    for row, length in enumerate(MASK.sum(1)):
        means = torch.stack([x[row, :length].mean(0) for x in expected])
        torch.testing.assert_close(states[row], means)
    assert torch.equal(model(IDS, MASK), frozen(IDS, MASK))  # READ starts as the frozen model
    torch.testing.assert_close(frozen(IDS[:1]), frozen(IDS[:1], MASK[:1]))


# ---- GPT-2


def test_gpt2_is_asked_where_logits_are_wanted():
    """Would catch: positions that are mixed up where the network runs on some of them alone; a RNN that sees
    the future.
    """
    model, where = adapted("decoder"), torch.zeros(IDS.shape, dtype=torch.bool)
    where[0, 1:4] = where[1, 2] = True
    everywhere = model(IDS, MASK)
    torch.testing.assert_close(model(IDS, MASK, where=where), everywhere[where])
    torch.testing.assert_close(model(IDS[:, :3], MASK[:, :3]), everywhere[:, :3])
    logits, states = with_states(model, IDS, MASK)
    _, frozen = with_states(plain("decoder"), IDS, MASK)
    assert torch.equal(logits, everywhere) and all(
        torch.equal(a, b) for a, b in zip(states, frozen, strict=True)
    )


@every_cell
@torch.no_grad()
def test_gpt2_decodes_step_by_step_as_in_one_pass(cell):
    """Would catch: a correction that is missing, late or doubled with the key/value cache; beams that are
    mixed up.
    """
    model = adapted("decoder", cell)
    prompts = [torch.tensor([3, 4, 5]), torch.tensor([6])]
    decoder = GPT2Decoder(model, prompts, beam_size=2, max_new_tokens=4)
    found, texts = decoder.start(), [[p, p] for p in prompts]
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(found[row, 0], model(prompt[None])[0, -1], rtol=1e-4, atol=1e-5)
    for n, parents in enumerate(([[0, 0], [0, 0]], [[1, 0], [1, 1]], [[0, 0], [1, 0]])):
        tokens = torch.tensor([[7 + n, 17 + n], [27 + n, 37 + n]])
        found = decoder.step(tokens, torch.tensor(parents))
        texts = [
            [torch.cat([texts[b][p], tokens[b, k][None]]) for k, p in enumerate(parents[b])] for b in range(2)
        ]
        for b in range(2):
            for k in range(2):
                torch.testing.assert_close(found[b, k], model(texts[b][k][None])[0, -1], rtol=1e-4, atol=1e-5)


# ---- states on disk


def test_gradients_from_stored_states_are_those_of_a_live_pass(tmp_path):
    """Would catch: rows stored in another order than they are read in, a lower precision, an offset; states
    that change.
    """
    model, path = adapted("encoder").train(), tmp_path / "f" / "cola.states"
    model.classifier.eval()  # its dropout would differ
    about = {"checkpoint": "x", "shape": [2, 3, 16]}
    write_states(path, about, ((i, model.states(IDS[i], MASK[i])) for i in ([1], [0])))
    stored = read_states(path, about)
    torch.testing.assert_close(stored, model.states(IDS, MASK))
    target = torch.tensor([0, 1])
    F.cross_entropy(model(IDS, MASK), target).backward()
    live = gradients(model)
    model.zero_grad()
    F.cross_entropy(model.from_states(stored[[0, 1]]), target).backward()
    assert live.keys() == gradients(model).keys() and len(live) > 6
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, live[name])


def test_a_file_of_states_is_whole_or_not_there(tmp_path):
    """Would catch: half a file that is taken for a whole one; states of something else; a file that is no
    file of states.
    """
    path, about = tmp_path / "a.states", {"checkpoint": "x", "max_len": 8, "shape": [3, 1, 2]}

    def interrupted():
        yield [2], torch.ones(1, 1, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_states(path, about, interrupted())
    assert not path.exists()
    write_states(
        path, about, [([2, 0], torch.tensor([[[5.0, 6]], [[1, 2]]])), ([1], torch.tensor([[[3.0, 4]]]))]
    )
    assert read_states(path, about).tolist() == [[[1, 2]], [[3, 4]], [[5, 6]]]
    for change in ({"checkpoint": "y"}, {"pool": "mean"}):
        with pytest.raises(ValueError, match=r"a\.states: not 4,120 bytes of these states: delete it"):
            read_states(path, about | change)
    content = path.read_bytes()
    assert len(content) == HEADER + 4 * 6
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="not 4,120 bytes of these states"):
        read_states(path, about)
    path.write_bytes(b"\x80 no states")
    with pytest.raises(ValueError, match="not 4,120 bytes of these"):
        read_states(path, about)


# ---- train_glue.py


@pytest.fixture
def command(tiny_model, tiny_glue, tmp_path):
    """A small run: 3 epochs of 5 steps. (Life of an adapter file, and E2E: test_train_glue.py,
    test_e2e.py.)
    """
    return ["--task", "cola", "--model", str(tiny_model), "--data", str(tiny_glue),
            "--method", "read", "--r", "8",
            "--epochs", "3", "--batch-size", "8", "--lr", "0.01", "--out", str(tmp_path / "out")]  # fmt: skip


def test_with_and_without_stored_states(glue, command, tmp_path, monkeypatch):
    """Would catch: a run that learns something else from stored states; a backbone that runs again in later
    epochs.
    """
    glue(*command, "--dropout", 0)
    seen, outputs = [], model_module.Roberta.outputs
    monkeypatch.setattr(model_module.Roberta, "outputs", lambda *a: seen.append(len(a[1])) or outputs(*a))
    glue(*command, "--dropout", 0, "--cache-features", "--out", tmp_path / "kept")
    assert sum(seen) == 40 + 12  # every example once, in three epochs and their scoring
    live, stored = without_timing(tmp_path / "out"), without_timing(tmp_path / "kept")
    for a, b in zip(live[0], stored[0], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert live[1]["parameters"] == stored[1]["parameters"]
    files = [path.suffix for path in (tmp_path / "kept" / "features").iterdir()]
    assert files == [".states", ".states"]  # train and dev
    timing = json.loads((tmp_path / "kept" / "result.json").read_text())["timing"]
    assert timing["energy_kwh"] == {"utilisation": None, "power": None}  # on a CPU
    several, out = [*command, "--seeds", 2, "--cache-features"], tmp_path / "more"
    seen.clear()
    glue(*several, tmp_path / "kept" / "features", "--out", out)
    assert not seen
    glue(*several, "--out", out, "--overwrite")
    assert sum(seen) == 40 + 12 and (out / "features").is_dir()  # which both seeds read


def test_states_are_found_by_what_they_are_of(
    glue, command, tmp_path, tiny_glue, tiny_model, capsys, monkeypatch
):
    """Would catch: states of other texts, another length, checkpoint, dtype or pooling that are trained on; a
    backbone that runs again for another task with the same texts.
    """
    seen, outputs = [], model_module.Roberta.outputs
    monkeypatch.setattr(model_module.Roberta, "outputs", lambda *a: seen.append(len(a[1])) or outputs(*a))
    folder = tmp_path / "features"

    def passed(*more):
        """How many examples the backbone reads in a run with `more`, and how many files there are then."""
        seen.clear()
        glue(*command, "--cache-features", folder, "--epochs", 1, "--overwrite", *more)
        return sum(seen), len([*folder.iterdir()])

    assert passed() == (52, 2)
    assert passed("--cell", "lstm", "--max-len", 20) == (0, 2)  # no text has so many tokens
    assert passed("--max-len", 6) == (52, 4)
    assert passed("--limit-train", 20) == (20, 5)
    assert passed("--pool", "mean") == (52, 7)
    assert passed("--drop-last", 1) == (52, 9)
    assert passed("--dtype", "bfloat16") == (52, 11)
    other = RobertaClassifier.from_pretrained(tiny_model)
    other.roberta.blocks[0].u.weight.data[0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tiny_model / "tokenizer.json", tmp_path / "other")
    assert passed("--model", tmp_path / "other") == (52, 13)
    rows = [line.split("\t") for line in (tiny_glue / "CoLA" / "train.tsv").read_text().splitlines()]
    dev = [line.split("\t") for line in (tiny_glue / "CoLA" / "dev.tsv").read_text().splitlines()]
    for name, part in (("a", rows), ("b", dev)):  # another task, with the texts of this one
        lines = ["words,long", *(f"{row[3]},{len(row[3]) > 20}" for row in part)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    own = ["--train-file", tmp_path / "a.csv", "--dev-file", tmp_path / "b.csv"]
    command[4:6], command[:2] = ["--text", "words", "--label", "long"], own  # for --data and --task
    assert passed() == (0, 13)
    out = tmp_path / "again"
    assert "--cache-features is for training with --method read" in fails(
        capsys, glue, *command, "--out", out, "--cache-features", folder, "--method", "hut"
    )
    assert "--method read does not merge" in fails(capsys, glue, *command, "--out", out, "--export", out)


def test_folders_that_states_cannot_be_kept_in(glue, command, tmp_path, capsys):
    """Would catch: a traceback."""
    (tmp_path / "file").write_text("")
    folder, command = tmp_path / "folder", [*command, "--epochs", 1, "--cache-features"]
    assert "could not be written" in fails(capsys, glue, *command, tmp_path / "file")
    glue(*command, folder)
    for path in folder.iterdir():
        path.unlink()
        path.mkdir()
    assert "could not be read" in fails(capsys, glue, *command, folder, "--overwrite")


def test_two_processes_may_write_the_same_states(tmp_path, monkeypatch):
    """Would catch: a file that one of them truncates while the other writes it."""
    processes = iter(range(2))
    monkeypatch.setattr(model_module.os, "getpid", lambda: next(processes))
    about = {"shape": [4, 1, 2]}
    rows = torch.arange(8.0).view(4, 1, 2)

    def parts():
        yield [0, 1], rows[:2]
        write_states(tmp_path / "x.states", about, [([0, 1, 2, 3], rows)])  # another's, which ends first
        yield [2, 3], rows[2:]

    write_states(tmp_path / "x.states", about, parts())
    assert torch.equal(read_states(tmp_path / "x.states", about), rows)
    assert [path.name for path in tmp_path.iterdir()] == ["x.states"]


@pytest.mark.parametrize("start", ["zero", "random"])
def test_the_start_is_what_was_asked_for(glue, command, tmp_path, start):
    """Would catch: a flag that does nothing. With a rate of next to nothing the adapter stays at its
    start.
    """
    glue(*command, "--epochs", 1, "--lr", 1e-30, "--start", start)
    adapter = torch.load(tmp_path / "out" / "adapter.pt", weights_only=True)["adapter"]
    assert (adapter["network.up.weight"].abs().max() > 1e-6) == (start == "random")


@pytest.mark.parametrize("kept", [[], ["--cache-features"]], ids=["live", "kept"])
def test_a_cut_run_goes_on_bit_identically(glue, command, tmp_path, monkeypatch, kept):
    """Would catch: state of READ that no file keeps. (test_train_glue.py cuts at every write.)"""
    command = [*command, "--cell", "lstm", *kept]
    glue(*command, "--out", tmp_path / "whole")
    save, saves = Run.save, []

    def cut(run):
        save(run)
        saves.append(run.step)
        if len(saves) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "SAVE_EVERY", 0)
    monkeypatch.setattr(Run, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        glue(*command, "--out", tmp_path / "cut")
    glue(*command, "--out", tmp_path / "cut", "--resume")
    assert without_timing(tmp_path / "cut") == without_timing(tmp_path / "whole")
    line = "started with cell lstm, not gru"
    with pytest.raises(ValueError, match=line):
        glue(*command, "--cell", "gru", "--out", tmp_path / "cut", "--resume")


# ---- energy and memory


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program on PATH that prints `lines` as nvidia-smi would; each look at the clock is a minute
    after the last.
    """

    def put(*lines):
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        path.chmod(0o755)
        minutes = iter(range(1000))
        monkeypatch.setattr(device.time, "monotonic", lambda: 60.0 * next(minutes))
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        meter = device.Meter("GPU-0")
        meter.thread.join()
        return meter.kwh

    return put


def test_energy_of_the_paper_and_of_the_meter(nvidia_smi):
    """Would catch: hours for minutes, watts for kilowatts, percent for shares. Three samples, a minute
    each.
    """
    kwh = nvidia_smi("50, 300.00", "100, 600.50", "0, 70.25")
    assert kwh["utilisation"] == pytest.approx((50 + 100 + 0) * 0.25 / 6000)
    assert kwh["power"] == pytest.approx((300 + 600.5 + 70.25) / 1000 / 60)


def test_energy_that_is_not_measured_is_null(nvidia_smi, tmp_path, monkeypatch):
    """Would catch: zeros where there is no meter, no nvidia-smi, or a GPU that does not tell."""
    nothing = {"utilisation": None, "power": None}
    assert nvidia_smi() == nothing
    assert device.Meter(None).waiting is False
    assert nvidia_smi("Failed to initialize NVML: Driver/library version mismatch") == nothing
    assert nvidia_smi("50, 300.00", "[N/A], 300.00", "50, 300.00") == {
        "utilisation": None,
        "power": pytest.approx(0.015),
    }
    monkeypatch.setenv("PATH", str(tmp_path))
    for meter in (device.Meter("GPU-0"), device.Meter(device.gpu_of(torch.device("cpu")))):
        assert meter.kwh == nothing
        meter.stop()


def test_peak_memory_where_linux_does_not_tell_it(tmp_path, monkeypatch):
    """Would catch: a trained run without its result, for want of a line in gVisor's /proc; kB for bytes."""
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t100 kB\n")
    monkeypatch.setattr(device, "Path", lambda _: tmp_path / "status")
    assert 50 * 2**20 < device.peak_memory(torch.device("cpu")) < 50 * 2**30
