"""read/lst.py: Ladder Side-Tuning's size, where it starts, what it leaves alone, decoding."""

from pathlib import Path

import torch
from conftest import with_t5_states
from torch.nn import functional as F

from read.lst import LSTT5
from read.t5 import T5, T5_BASE, T5Config

REFERENCE = Path(__file__).parent / "reference" / "t5"
EXPECTED = torch.load(REFERENCE / "expected.pt", weights_only=True)
IDS, MASK, LABELS = (EXPECTED[key] for key in ("input_ids", "attention_mask", "labels"))
SOURCES = [[5, 6, 7, 2, 11], [8], [9, 12, 33, 40, 41, 2, 3], [7, 7]]


def adapted(reduction=2):
    torch.manual_seed(1)
    return LSTT5(T5.from_pretrained(REFERENCE), reduction).eval()


def test_size_is_that_of_the_formula():
    """Would catch: a projection, bias, norm or gate too many or too few. The paper prints 5.04M, for
    T5-base.
    """
    with torch.device("meta"):
        model = LSTT5(T5(T5_BASE))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 5_097_241


def test_nothing_enters_the_backbone():
    """Would catch: a gradient of the backbone, or a part of the ladders that gets none."""
    model = adapted().train()
    F.cross_entropy(model(IDS, MASK, model.shifted(LABELS)).flatten(0, 1), LABELS.flatten()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("word.", "encoder.", "decoder."))
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.any(), name


def test_the_side_starts_as_parts_of_the_backbone():
    """Would catch: rows and columns that do not belong together. Of the same width, the side is the
    backbone.
    """
    model = adapted(reduction=1)
    for ladder, backbone in ((model.encoder_ladder, model.encoder), (model.decoder_ladder, model.decoder)):
        theirs = backbone.state_dict()
        for name, tensor in ladder.side.state_dict().items():
            assert torch.equal(tensor, theirs[name]), name
    half = adapted().decoder_ladder.side.blocks[0].cross.q.weight  # (15, 12): 5 of each head's 10
    whole = T5.from_pretrained(REFERENCE).decoder.blocks[0].cross.q.weight
    assert half.shape == (15, 12)
    for head in range(3):
        assert set(half[5 * head : 5 * head + 5].flatten().tolist()) <= set(
            whole[10 * head : 10 * head + 10].flatten().tolist()
        )


@torch.no_grad()
def test_it_is_the_formula():
    """Would catch: a gate the wrong way round or of another temperature; a projection, norm or scale left
    out; a decoder that reads the backbone's encoder.
    """
    model, frozen = adapted(), T5.from_pretrained(REFERENCE)
    for gate in (model.alpha, model.encoder_ladder.alpha, model.decoder_ladder.alpha):
        gate.copy_(0.1 * torch.randn(gate.shape))
    target, mask = model.shifted(LABELS), torch.where(MASK.bool(), 0.0, -1e9)[:, None, None]
    _, phi = with_t5_states(frozen, IDS, MASK, target)

    def ladder(part, tokens, states, visible, extra, *memory):
        positions = torch.arange(tokens.shape[1])
        bias = part.side.bias(positions, positions, visible and positions <= positions[:, None]) + extra
        s = part.down[0](frozen.word(tokens))
        for alpha, block, down, state in zip(
            part.alpha, part.side.blocks, part.down[1:], states, strict=True
        ):
            g = torch.sigmoid(alpha / 0.1)
            s, _ = block(g * s + (1 - g) * down(state), bias, *memory)
        return part.side.norm(s)

    small = ladder(model.encoder_ladder, IDS, phi.encoder, None, mask)
    small = ladder(model.decoder_ladder, target, phi.decoder, True, 0, small, mask)
    g = torch.sigmoid(model.alpha / 0.1)
    out = g * frozen.decoder.norm(phi.decoder[-1]) + (1 - g) * model.up(small)
    expected = out * 24**-0.5 @ frozen.word.weight.T
    torch.testing.assert_close(model(IDS, MASK, target), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_columns_that_weigh_most_are_taken():
    """Would catch: the smallest, those of the heads' space taken for the stream's, a decoder's that read
    the encoder.

    The stream is as wide as the heads are together, and the columns that weigh most are made so by hand.
    """
    torch.manual_seed(0)
    model = T5(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2))
    for side, heavy, light in (
        (model.encoder, [1, 2, 4, 7], [0, 3, 5, 6]),
        (model.decoder, [0, 3, 4, 5], [1, 2, 6, 7]),
    ):
        for block in side.blocks:
            for linear in (block.attention.q, block.attention.k, block.attention.v, block.u):
                linear.weight[:, heavy] += 9
            block.attention.v.weight[[1, 2, 4, 7]] *= 9  # two rows of each head
            for attention in (block.attention, *([block.cross] if side is model.decoder else [])):
                attention.o.weight[:, light] += 99  # which reads the heads
    ladders = LSTT5(model, reduction=2)
    encoder, decoder = (ladder.side.blocks[1] for ladder in (ladders.encoder_ladder, ladders.decoder_ladder))
    whole = model.decoder.blocks[1]

    def rows(part, of, columns):
        """Whether each row of `part` is one of `of`, at these columns."""
        return all(any(torch.equal(row, other) for other in of[:, columns]) for row in part)

    kept = model.encoder.blocks[1].attention.v.weight[[1, 2, 4, 7]][:, [1, 2, 4, 7]]
    assert torch.equal(encoder.attention.v.weight, kept)
    assert rows(encoder.u.weight, model.encoder.blocks[1].u.weight, [1, 2, 4, 7])
    assert rows(decoder.u.weight, whole.u.weight, [0, 3, 4, 5])
    assert rows(decoder.cross.q.weight, whole.cross.q.weight, [0, 3, 4, 5])
    for letter in "kv":
        assert rows(getattr(decoder.cross, letter).weight, getattr(whole.cross, letter).weight, [1, 2, 4, 7])


def test_decoding_step_by_step_is_the_full_pass():
    """Would catch: a ladder without a cache of its own, or padding that it sees."""
    model = adapted().requires_grad_(False)
    found = model.generate(SOURCES, 8, 3, no_repeat_ngram_size=2, batch_size=3)
    assert found == [model.generate([source], 8, 3, no_repeat_ngram_size=2)[0] for source in SOURCES]
    found = model.generate(SOURCES, 8, no_repeat_ngram_size=1)
    for source, tokens in zip(SOURCES, found, strict=True):
        logits = model(torch.tensor([source]), None, torch.tensor([[0, *tokens[:-1]]]))[0]
        for i, token in enumerate(tokens):
            logits[i, [0, *tokens[:i]]] = -torch.inf
            assert logits[i].argmax() == token
