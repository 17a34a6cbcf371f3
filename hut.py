"""HUT: Hadamard Updated Transformation (Zhang, Zhou & Chen), the method in one file.

A pretrained weight W_0 (d×k, input on the left) is frozen, and a transformation of it is learned:

    W_new = (M_A × 1_A)/r ⊙ W_0 ⊙ (1_B × M_B)/r            (eq. 8)   M_A (d×r), M_B (r×k), 1_A (r×k), 1_B (d×r)
    h     = gamma ⊙ (x × W_new) + beta                      (eq. 9)   gamma, beta (1×k)

Every column of (M_A × 1_A)/r is m_A, the mean of M_A over r (d×1); every row of (1_B × M_B)/r is m_B, the
mean of M_B over r (1×k). So W_new = m_A ⊙ W_0 ⊙ m_B = diag(m_A) W_0 diag(m_B), and

    h = x × (gamma ⊙ m_A m_B ⊙ W_0) + beta                  (eq. 10)
      = ((x ⊙ m_A) × W_0) ⊙ (gamma ⊙ m_B) + beta            (what `forward` computes)

The last line scales what goes into W_0 and what comes out of it, instead of W_0: the same function, no d×k
product for autograd to differentiate, and so no dense weight gradient. `to_linear` is eq. 10 as it stands.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F


class HUTLinear(nn.Module):
    """A frozen linear layer under a learned Hadamard transformation: x (…, d) -> h (…, k).

    Trains `M_A` (d, r), `M_B` (r, k), `gamma` (k,) and `beta` (k,), in float32. They start at ones, ones,
    ones and zeros, where the layer is the frozen one but for the last bit of rounding. `weight` (k, d) is W_0
    transposed, as nn.Linear stores it; it and the pretrained `bias` b (k,) are frozen. b is added after
    gamma: h = gamma ⊙ (x W_new) + b + beta.
    """

    def __init__(self, weight, bias, r):
        super().__init__()
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise ValueError(f"r = {r!r}: expected a whole number of 1 or more")
        k, d = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        options = {"dtype": torch.float32, "device": weight.device}
        self.M_A = nn.Parameter(torch.ones(d, r, **options))
        self.M_B = nn.Parameter(torch.ones(r, k, **options))
        self.gamma = nn.Parameter(torch.ones(k, **options))
        self.beta = nn.Parameter(torch.zeros(k, **options))

    @classmethod
    def from_linear(cls, linear, r):
        """The HUT layer over `linear`, whose weight and bias it shares, untouched. Raises ValueError for r < 1."""
        return cls(linear.weight, linear.bias, r)

    def _shift(self):
        return self.beta if self.bias is None else self.bias + self.beta

    def forward(self, x):
        m_A, m_B = self.M_A.mean(1), self.M_B.mean(0)
        h = F.linear((x * m_A).to(x.dtype), self.weight)  # (x ⊙ m_A) × W_0
        return torch.addcmul(self._shift(), h, self.gamma * m_B).to(h.dtype)  # … ⊙ (gamma ⊙ m_B) + b + beta

    @torch.no_grad()
    def to_linear(self):
        """A new nn.Linear that computes the same: eq. 10's weight, in float32 and cast once to the dtype of W_0."""
        m_A, m_B = self.M_A.mean(1), self.M_B.mean(0)
        k, d = self.weight.shape
        linear = nn.utils.skip_init(nn.Linear, d, k, device=self.weight.device, dtype=self.weight.dtype)
        linear.weight.copy_((self.gamma * m_B)[:, None] * m_A * self.weight)
        linear.bias.copy_(self._shift())
        return linear


def apply_hut(model, r=8, targets="qv"):
    """Freezes `model` and puts a HUTLinear in place of every target layer, in place; returns the model.

    `targets` is a string of letters from "qkvoud" for the models of this project, whose linear layers are
    named so, or a list of module-name endings for any other (["query", "value"] for a stock transformers
    RoBERTa). Raises ValueError, with the model unchanged, if a target is named twice, matches nothing, or
    matches a layer that is already adapted or is no nn.Linear; and for r < 1.
    """
    targets = list(targets)
    chosen = {}
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"target '{target}' is named twice in {targets}")
        found = {name: m for name, m in model.named_modules() if f".{name}".endswith(f".{target}")}
        if not found:
            raise ValueError(
                f"target '{target}' matches no layer of the model: expected the ending of a layer's name"
            )
        for name, module in found.items():
            if isinstance(module, HUTLinear):
                raise ValueError(f"{name} is already adapted: apply_hut takes a model once")
            if not isinstance(module, nn.Linear):
                raise ValueError(f"{name} is a {type(module).__name__}: expected nn.Linear")
        chosen |= found
    if not chosen:
        raise ValueError("no target is named: expected at least one, such as 'qv'")
    layers = {name: HUTLinear.from_linear(linear, r) for name, linear in chosen.items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model


def merge_hut(model):
    """A copy of `model` with each HUT layer merged into a plain nn.Linear. `model` itself stays as it is."""
    merged = copy.deepcopy(model)
    for name, layer in _hut_layers(merged).items():
        merged.set_submodule(name, layer.to_linear())
    return merged


def hut_state_dict(model):
    """The adapter's tensors alone, copied: {"….M_A": (d, r), "….M_B": (r, k), "….gamma": (k,), "….beta": (k,)}."""
    return {name: tensor.detach().clone() for name, tensor in _adapter_tensors(model).items()}


def load_hut(model, state):
    """Writes an adapter's tensors into `model`. Raises ValueError, with nothing written, if a name or shape differs."""
    copy_tensors(state, _adapter_tensors(model))


@torch.no_grad()
def copy_tensors(state, into):
    """Copies `state` over the tensors of `into`, strictly: ValueError, with nothing written, on any difference."""
    for name in sorted(into.keys() | state.keys()):
        if name not in state:
            raise ValueError(f"tensor '{name}' is missing: was this made with other targets?")
        if name not in into:
            raise ValueError(f"tensor '{name}' is not expected: was this made with other targets?")
        if state[name].shape != into[name].shape:
            found, expected = tuple(state[name].shape), tuple(into[name].shape)
            raise ValueError(f"tensor '{name}' has shape {found}: expected {expected}")
    for name, tensor in into.items():
        tensor.copy_(state[name])


def _hut_layers(model):
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HUTLinear)}
    if not layers:
        raise ValueError("the model holds no HUT layer: call apply_hut first")
    return layers


def _adapter_tensors(model):
    names = ("M_A", "M_B", "gamma", "beta")
    return {
        f"{layer}.{name}": getattr(module, name)
        for layer, module in _hut_layers(model).items()
        for name in names
    }
