"""read/lst.py: Ladder Side-Tuning's size, where it starts, what it leaves alone, decoding."""

from pathlib import Path

import torch
from torch.nn import functional as F

from read.lst import LSTT5
from read.t5 import T5, T5_BASE

REFERENCE = Path(__file__).parent / "reference" / "t5"
EXPECTED = torch.load(REFERENCE / "expected.pt", weights_only=True)
IDS, MASK, LABELS = (EXPECTED[key] for key in ("input_ids", "attention_mask", "labels"))
SOURCES = [[5, 6, 7, 2, 11], [8], [9, 12, 33, 40, 41, 2, 3], [7, 7]]


def adapted(reduction=2):
    torch.manual_seed(1)
    return LSTT5(T5.from_pretrained(REFERENCE), reduction).eval()


def test_size_is_that_of_the_formula():
    """Would catch: a projection, bias, norm or gate too many or too few. The paper prints 5.04M, for T5-base."""
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
    """Would catch: rows and columns that do not belong together. Of the same width, the side is the backbone."""
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
