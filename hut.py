"""HUT: Hadamard Updated Transformation (Zhang, Zhou & Chen, 2024), the method in one file.

A pretrained weight W_0 (d×k; h = x W_0) is frozen, and a transformation of it is learned:

    W_new = (M_A × 1_A)/r ⊙ W_0 ⊙ (1_B × M_B)/r     (eq. 8)   M_A (d×r), M_B (r×k), 1_A (r×k), 1_B (d×r)
    h     = gamma ⊙ (x × W_new) + beta               (eq. 9)   gamma, beta (1×k)

Multiplying by ones and dividing by r averages: every column of (M_A × 1_A)/r is m_A (d×1), the mean of M_A
over r, and every row of (1_B × M_B)/r is m_B (1×k), the mean of M_B over r. So W_new = m_A ⊙ W_0 ⊙ m_B, and

    h = x × (gamma ⊙ m_A m_B ⊙ W_0) + beta           (eq. 10; `to_linear` computes this weight)
      = ((x ⊙ m_A) × W_0) ⊙ (gamma ⊙ m_B) + beta     (`forward` computes this)

The last line scales the input and the output of W_0 instead of W_0 itself. It is the same function, without a
d×k product for autograd to differentiate, and so without a dense weight gradient. r does not change which
functions can be reached: the README has the argument.
"""

import copy
import warnings

import torch
from torch import nn


class HUTLinear(nn.Module):
    """A frozen linear layer under a learned Hadamard transformation: x (…, d) -> h (…, k).

    `M_A` (d, r), `M_B` (r, k), `gamma` (k,) and `beta` (k,) are trained, in float32. M_A, M_B and gamma start
    at one and beta at zero (our choice), so the layer starts as the frozen one, up to rounding. `weight` (k,
    d) is W_0 transposed, as nn.Linear stores it, and is frozen. So is the pretrained `bias` b (k,), which is
    added after gamma (our choice): h = gamma ⊙ (x W_new) + b + beta.
    """

    def __init__(self, weight, bias, r):
        super().__init__()
        if type(r) is not int or r < 1:
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
        """The HUT layer over `linear`, which shares its weight and bias. Raises ValueError for r < 1."""
        return cls(linear.weight, linear.bias, r)

    def vectors(self):
        """m_A (d,), gamma ⊙ m_B (k,) and b + beta (k,): h = ((x ⊙ m_A) × W_0) ⊙ scale + shift."""
        shift = self.beta if self.bias is None else self.bias + self.beta
        return self.M_A.mean(1), self.gamma * self.M_B.mean(0), shift

    def forward(self, x):
        m_A, scale, shift = self.vectors()
        h = nn.functional.linear((x * m_A).to(x.dtype), self.weight)  # (x ⊙ m_A) × W_0, in the dtype of x
        return torch.addcmul(shift, h, scale).to(h.dtype)  # h ⊙ scale + shift

    @torch.no_grad()
    def to_linear(self):
        """A new nn.Linear that computes the same. Its weight is made in float32, then cast to W_0's dtype."""
        m_A, scale, shift = self.vectors()
        k, d = self.weight.shape
        linear = nn.utils.skip_init(nn.Linear, d, k, device=self.weight.device, dtype=self.weight.dtype)
        linear.weight.copy_(scale[:, None] * m_A * self.weight)  # (k, d): eq. 10 transposed
        linear.bias.copy_(shift)
        return linear


def apply_hut(model, r=8, targets="qv"):
    """Freezes `model` and puts a HUTLinear in place of every target layer, in place; returns the model.

    `targets` is a string of letters from "qkvoud" for this project's models, whose linear layers have these
    names, or a list of module-name endings for any other (["query", "value"] for transformers' RoBERTa).
    Raises ValueError, with the model unchanged, for r < 1 and as `find_linears` does.
    """
    # every layer is made before any is put in, so that an error leaves the model unchanged
    layers = {name: HUTLinear.from_linear(linear, r) for name, linear in find_linears(model, targets).items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model


def find_linears(model, targets):
    """{name: layer} of the nn.Linear layers whose names end in one of `targets`.

    Raises ValueError if no target is named, and for a target that is named twice, matches no layer, or
    matches one that is no plain nn.Linear (a Conv1D, a subclass, a layer that is adapted already) or that
    torch bypasses: the fast path of nn.TransformerEncoderLayer reads its weight and never calls it.
    """
    targets, found = list(targets), {}
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"target '{target}' is named twice in {targets}")
        layers = {name: m for name, m in model.named_modules() if f".{name}".endswith(f".{target}")}
        if not layers:
            raise ValueError(f"target '{target}' matches no layer: expected a list of endings of their names")
        for name, layer in layers.items():
            parent = model.get_submodule(name.rpartition(".")[0])
            if isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
                raise ValueError(f"{name} is skipped in eval: torch.backends.mha.set_fastpath_enabled(False)")
            if (kind := type(layer)) is not nn.Linear:  # a subclass may never be called: attention's out_proj
                hint = "; model.GPT2 reads its files" if "Conv1D" in str(kind) else ", not adapted yet"
                raise ValueError(f"{name} is a {kind.__name__}: expected a plain nn.Linear{hint}")
        found |= layers
    if not found:
        raise ValueError("no target is named: expected at least one, such as 'qv'")
    return found


def merge_hut(model):
    """A copy of `model` with each HUT layer merged into a plain nn.Linear. `model` itself stays as it is.

    The new layers have a bias, beta, also where the old ones had none. A model that is saved with a
    configuration must say so there (Llama: attention_bias=True), or loading it drops beta.
    """
    merged = copy.deepcopy(model)
    for name, layer in _hut_layers(merged).items():
        if layer.bias is None:
            warnings.warn("a bias is added: say so in a saved config (Llama: attention_bias)", stacklevel=2)
        merged.set_submodule(name, layer.to_linear())
    return merged


def hut_state_dict(model):
    """A copy of the adapter: {"….M_A": (d, r), "….M_B": (r, k), "….gamma": (k,), "….beta": (k,)}."""
    return {name: tensor.detach().clone() for name, tensor in _adapter_tensors(model).items()}


def load_hut(model, state):
    """Writes an adapter into `model`. Raises ValueError, with nothing written, if a name or shape differs."""
    copy_tensors(state, _adapter_tensors(model))


def copy_tensors(state, into):
    """Copies `state` over `into`. Raises ValueError, with nothing written, if a name or shape differs."""
    for name in sorted(into.keys() | state.keys()):
        if name not in state or name not in into:
            problem = "missing" if name not in state else "not expected"
            raise ValueError(f"tensor '{name}' is {problem}: was this made with other targets?")
        if (found := tuple(state[name].shape)) != (expected := tuple(into[name].shape)):
            raise ValueError(f"tensor '{name}' has shape {found}: expected {expected}")
    for name, tensor in into.items():
        tensor.data.copy_(state[name])


def _hut_layers(model):
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HUTLinear)}
    if not layers:
        raise ValueError("the model holds no HUT layer: call apply_hut first")
    return layers


def _adapter_tensors(model):
    names = ("M_A", "M_B", "gamma", "beta")
    return {f"{path}.{n}": getattr(layer, n) for path, layer in _hut_layers(model).items() for n in names}
