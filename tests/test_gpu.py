"""What a GPU would wait for and what it would cast, seen without one."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.batching import places, send
from device import pick_device
from methods import LAYOUTS, METHODS, adapt, merge, methods_of, store
from model import GPT2, RobertaClassifier, RobertaSpan
from read.t5 import T5

REFERENCE = Path(__file__).parent / "reference"
IDS = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]])
MASK = IDS > 0


class Waits(TorchDispatchMode):
    """Collects the operations whose result has a size, or is a Python number, that only the GPU knows."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        masks = [t for t in tree_leaves(args[1:2]) if isinstance(t, torch.Tensor) and t.dtype == torch.bool]
        if name in ("nonzero", "_local_scalar_dense", "masked_select", "equal") or (
            "index" in name and masks
        ):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["hut", "read"])
@pytest.mark.parametrize("kind", [RobertaClassifier, RobertaSpan, GPT2, T5])
def test_no_layer_waits(kind, method):
    """Would catch: positions picked by a mask in a layer, whose number the program has to wait for."""
    folder = {GPT2: "gpt2", T5: "t5"}.get(kind, "roberta")
    model = kind.from_pretrained(REFERENCE / folder)
    model = adapt(model, method, {"r": METHODS[method].r[model.body.LAYOUT]}).train()
    last = MASK & ~F.pad(MASK[:, 1:], (0, 1))
    if kind is GPT2:
        inputs = {"where": places(last, "cpu")}
        assert torch.equal(model.eval()(IDS, MASK, **inputs), model(IDS, MASK, where=last))
        model.train()
    else:
        inputs = {"decoder_input_ids": IDS} if kind is T5 else {}
    with Waits() as waits:
        output = model(IDS, MASK, **inputs)
        sum(t.square().mean() for t in tree_leaves(output)).backward()
    assert not waits.found


KINDS = dict(zip(LAYOUTS, (RobertaClassifier, GPT2, T5), strict=True))


def made(kind, method):
    torch.manual_seed(0)
    model = kind.from_pretrained(REFERENCE / {GPT2: "gpt2", T5: "t5"}.get(kind, "roberta"))
    row = METHODS[method]
    r = row.r and min(row.r[model.body.LAYOUT], 16)
    model = adapt(model, method, {"r": r}).eval()
    for parameter in model.parameters():  # away from where it starts, which may be zero
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize(
    ("layout", "method"), [(layout, name) for layout in LAYOUTS for name in methods_of(layout)]
)
def test_a_stored_model_computes_the_same_bits(layout, method):
    """Would catch: a frozen tensor that is rounded though the arithmetic takes it in float32."""
    model, stored = made(KINDS[layout], method), store(made(KINDS[layout], method), torch.bfloat16)
    whole = ("full", "top2")  # the reference models have two blocks
    more = [IDS] if layout == T5.LAYOUT else []
    logits = []
    for one in (model, stored):
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(one(IDS, MASK, *more))
        if method != "frozen":
            logits[-1].float().square().sum().backward()
    assert torch.equal(*logits)
    for ours, theirs in zip(model.parameters(), stored.parameters(), strict=True):
        assert theirs.dtype == torch.float32 or not theirs.requires_grad
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
    matrices = [m.weight for m in stored.modules() if type(m) is torch.nn.Linear]
    frozen = [weight for weight in matrices if not weight.requires_grad]
    assert all(weight.dtype == torch.bfloat16 for weight in frozen) and (frozen or method in whole)
    if layout in METHODS[method].merges and method not in whole:
        with pytest.raises(ValueError, match="merging needs the frozen weights in float32"):
            merge(stored, method)


def test_only_pinned_memory_is_copied_without_a_wait(monkeypatch):
    """Would catch: a copy to Apple's GPU that reads memory which is free again."""
    seen = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *place, **options: seen.append((place, options)))
    send(torch.zeros(1), "mps")
    assert seen == [(("mps",), {})]


def test_float32_is_float32(monkeypatch):
    """Would catch: READ's RNN with ten bits of mantissa on a GPU, where --dtype float32 was asked for."""
    for dtype, allowed in (("float32", False), ("bfloat16", True)):
        pick_device("cpu", dtype)
        assert torch.backends.cudnn.allow_tf32 is allowed
