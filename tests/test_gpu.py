"""What a GPU would wait for, seen without one."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.batching import places
from methods import METHODS, adapt
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
