"""read/network.py beside a T5: what READ computes beside a T5, how large it is, what it leaves alone,
decoding.
"""

from pathlib import Path

import pytest
import torch
from conftest import T5_3B, T5_LARGE, T5_SMALL, with_t5_states
from torch import nn
from torch.nn import functional as F

from read.network import CELLS, TwoSidedRNN, apply_read
from read.t5 import T5, T5_BASE, T5Config

REFERENCE = Path(__file__).parent / "reference" / "t5"
EXPECTED = torch.load(REFERENCE / "expected.pt", weights_only=True)
IDS, MASK, LABELS = (EXPECTED[key] for key in ("input_ids", "attention_mask", "labels"))
SOURCES = [[5, 6, 7, 2, 11], [8], [9, 12, 33, 40, 41, 2, 3], [7, 7]]
every_cell = pytest.mark.parametrize("cell", CELLS)


def plain(cell="gru"):
    """The reference model; for `untied` one whose sides have the same depth."""
    if cell != "untied":
        return T5.from_pretrained(REFERENCE)
    torch.manual_seed(0)
    return T5(T5Config(vocab_size=61, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3)).eval()


def adapted(cell="gru", start="random", unscaled=False):
    """READ beside `plain`; U is not zero, and large, so that it does something."""
    torch.manual_seed(1)
    model = apply_read(plain(cell), 8, cell, start, unscaled)
    if start == "random":
        for parameter in model.network.parameters():
            parameter.data *= 5
    return model


def loss_of(model):
    return F.cross_entropy(model(IDS, MASK, model.shifted(LABELS)).flatten(0, 1), LABELS.flatten())


@every_cell
def test_starts_as_the_frozen_model_bit_for_bit(cell):
    """Would catch: a start that is not the frozen model, in training mode too, where the backbone's
    dropout must be off.

    And a network that changes nothing at all.
    """
    frozen = plain(cell).requires_grad_(False)
    inputs = IDS, MASK, frozen.shifted(LABELS)
    model = adapted(cell, start="zero").train()
    assert torch.equal(model(*inputs), frozen(*inputs))
    assert (adapted(cell)(*inputs) - frozen(*inputs)).abs().max() > 1e-2


@pytest.mark.parametrize("unscaled", [True, False])
def test_it_is_the_formula(unscaled):
    """Would catch: another state, order or attention; padding that is read; an encoder's RNN that feeds
    the decoder.

    By hand, for one token of the target at a time, with the cell's own steps.
    """
    model, frozen = adapted(unscaled=unscaled), plain()
    with torch.no_grad():
        logits, states = with_t5_states(frozen, IDS, MASK, frozen.shifted(LABELS))
        theirs = model(IDS, MASK, frozen.shifted(LABELS))
    read, steps = model.network, {}
    for side in ("encoder", "decoder"):
        steps[side] = nn.GRUCell(24, 8)
        rnn = getattr(read, side).rnn
        steps[side].load_state_dict({name.removesuffix("_l0"): p for name, p in rnn.named_parameters()})

    def unit(x):
        return x / (x.square().mean() + 1e-6).sqrt()

    b, m = 1, int(MASK[1].sum())
    E = []
    for i in range(m):
        h = None
        for phi in states.encoder:
            h = steps["encoder"](unit(phi[b, i])[None], h)
        E.append(read.encoder.up.weight @ h[0])
    for t in (0, 5, 28):
        h = None
        for phi, sigma in zip(states.decoder, states.cross, strict=True):
            x = unit(phi[b, t]) + sum(sigma[b, :, t, i].mean() * E[i] for i in range(m))
            h = steps["decoder"](unit(x)[None], h)
        last = states.decoder[-1][b, t]
        correction = read.decoder.up.weight @ h[0] + read.shift
        corrected = last + (correction if unscaled else last.square().mean().sqrt() * correction)
        expected = frozen.word.weight @ (frozen.decoder.norm(corrected) * 24**-0.5)
        torch.testing.assert_close(theirs[b, t], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(theirs[b, t], logits[b, t], atol=1e-2)


def test_parameter_counts_are_the_papers():
    """Would catch: another design: with biases, an extra projection, one RNN for both. The paper's Figure 4,
    Table 2.
    """
    for config, count in (
        (T5_SMALL, 1_445_376),
        (T5_BASE, 1_969_920),
        (T5_LARGE, 2_494_464),
        (T5_3B, 2_494_464),
    ):
        with torch.device("meta"):
            model = apply_read(T5(config))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        assert trained == count
        if config is T5_BASE:  # the paper counts the output layer apart
            assert f"{trained / (frozen + 32128 * 768):.2%}" == "0.80%"
    with torch.device("meta"):
        untied = apply_read(T5(T5_BASE), cell="untied")
    assert sum(p.numel() for p in untied.network.parameters()) == 12 * 1_969_920 == 23_639_040


def test_read_large_is_t5_large_without_four_blocks_a_side():
    """Would catch: blocks that are dropped of one side alone, or of the first; a share of another size.

    The paper prints 0.32 % with recurrency and 6.4 % without: of the whole T5-large, output layer included.
    """
    with torch.device("meta"):
        whole = sum(p.numel() for p in T5(T5_LARGE).parameters()) + 32128 * 1024
        models = [apply_read(T5(T5_LARGE), cell=cell, drop_last=4) for cell in ("gru", "untied")]
    assert whole == 770_567_168
    for model, count, share in zip(models, (2_494_464, 20 * 2_494_464), ("0.32 %", "6.47 %"), strict=True):
        assert len(model.encoder.blocks) == len(model.decoder.blocks) == 20
        assert sum(p.numel() for p in model.network.parameters()) == count
        assert f"{100 * count / whole:.2f} %" == share
    frozen = sum(p.numel() for p in models[0].parameters() if not p.requires_grad)
    assert frozen + 32128 * 1024 == 653_106_176


def test_dropped_blocks_are_the_last_of_each_side():
    """Would catch: a READ that still runs them, or that corrects their output."""
    model = apply_read(plain(), 8, drop_last=1)
    kept = T5.from_pretrained(REFERENCE).requires_grad_(False)
    kept.encoder.blocks, kept.decoder.blocks = kept.encoder.blocks[:-1], kept.decoder.blocks[:-1]
    inputs = IDS, MASK, model.shifted(LABELS)
    assert torch.equal(model(*inputs), kept(*inputs))
    assert not torch.allclose(model(*inputs), plain()(*inputs), atol=1e-3)
    assert model.generate(SOURCES, 8) == kept.generate(SOURCES, 8)


@every_cell
def test_no_block_keeps_a_graph(cell):
    """Would catch: a backward pass that enters the backbone. Only what is behind the last block may be kept
    for it.
    """
    model = adapted(cell).train()
    kept = []
    inner = {
        t.data_ptr()
        for side in (model.encoder, model.decoder)
        for block in side.blocks
        for t in block.parameters()
    }

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    assert kept and not any(tensor.data_ptr() in inner for tensor in kept)
    wide = {40, 30}  # the feed-forward layer's width, and the heads' together: only blocks have these
    assert not any(wide & set(tensor.shape) for tensor in kept)
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("network.")}
    idle = {name for name, p in model.named_parameters() if name in trained and not p.grad.any()}
    assert all("weight_hh" in name for name in idle) and bool(idle) == (
        cell == "untied"
    )  # it meets h = 0 alone


def test_gradients_are_those_of_stored_states():
    """Would catch: a gradient that comes from anything but the network, the last norm and the output
    layer.
    """
    model = adapted()
    loss_of(model).backward()
    live = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    frozen = plain().requires_grad_(False)
    _, states = with_t5_states(frozen, IDS, MASK, frozen.shifted(LABELS))
    E = model.network.encode(states.encoder)
    last = states.decoder[-1]
    correction = model.network.decode(E, states.decoder, states.cross)
    corrected = last + last.square().mean(-1, keepdim=True).sqrt() * correction
    F.cross_entropy(frozen._logits(corrected).flatten(0, 1), LABELS.flatten()).backward()
    assert live.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if name in live:
            torch.testing.assert_close(parameter.grad, live[name], rtol=1e-5, atol=1e-7)


@every_cell
@pytest.mark.parametrize("beam_size", [1, 3])
def test_decoding_step_by_step_is_the_full_pass(cell, beam_size):
    """Would catch: a network that runs on the backbone's cache instead of the new token, E of another row or
    batch.
    """
    model = adapted(cell)
    found = model.generate(SOURCES, 8, beam_size, no_repeat_ngram_size=2, batch_size=3)
    assert found == [model.generate([source], 8, beam_size, no_repeat_ngram_size=2)[0] for source in SOURCES]
    assert found != plain(cell).generate(SOURCES, 8, beam_size, no_repeat_ngram_size=2)
    if beam_size == 1:
        found = model.generate(SOURCES, 8, no_repeat_ngram_size=1)
        for source, tokens in zip(SOURCES, found, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([source]), None, torch.tensor([[0, *tokens[:-1]]]))[0]
            for i, token in enumerate(tokens):
                logits[i, [0, *tokens[:i]]] = -torch.inf
                assert logits[i].argmax() == token


def test_no_token_sees_a_later_one():
    """Would catch: a decoder's RNN that mixes tokens, or weights of the wrong token."""
    model = adapted().requires_grad_(False)
    target = model.shifted(LABELS)
    changed = target.clone()
    changed[:, 10:] = 3
    a, b = model(IDS, MASK, target), model(IDS, MASK, changed)
    torch.testing.assert_close(a[:, :10], b[:, :10])
    assert not torch.allclose(a[:, 10:], b[:, 10:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "r = 0: expected"),
        ((8, "gro"), "cell 'gro': expected one of gru"),
        ((8, "untied"), "2 blocks and 3"),
        ((8, "gru", "zero", False, 2), "drop_last = 2: expected 0 to 1"),
        ((8, "gru", "zero", False, -1), "drop_last = -1: expected 0 to 1"),
    ],
)
def test_what_does_not_fit(arguments, message):
    """Would catch: a crash from the depths, in another file's words."""
    with pytest.raises(ValueError, match=message):
        apply_read(plain(), *arguments)
    with pytest.raises(ValueError, match="a ReadT5: expected one of RobertaClassifier"):
        apply_read(adapted())


def test_psi_is_not_zero_at_the_start():
    """Would catch: a start where the encoder's network has to wait, for U and then for Psi."""
    network = TwoSidedRNN(6, 4)
    assert not network.decoder.up.weight.any() and network.encoder.up.weight.any()
