"""The methods HUT is compared with, each with its formula, its source, what it trains and how it starts.

`apply_…(model, …)` freezes a RobertaClassifier, RobertaSpan, GPT2 or T5, head and all, puts a method into
its body, in place, and returns it. The trainable parameters are then all there is to save: what is random
and frozen (VeRA's A and B, FourierFT's places) is made again from `frozen_seed`. `x` (…, d) is a layer's
input and W_0 (d, k) its frozen weight, with the input on the left, as in hut.py.
"""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from hut import find_linears
from model import split_heads

LORA_ALPHA = 16  # LoRA's authors' on RoBERTa-large, r = 8; here for every model (on GPT-2 they take 32)
FOURIERFT_ALPHA = 100  # at d = k = 1024; its authors take 69 to 121 on RoBERTa-large
VERA_LAMBDA_D = 0.1
STD = 0.02  # of adapters and prefixes at their start


def freeze(model, r=1):
    """Freezes `model` and returns its body. Raises ValueError, with the model unchanged, if r < 1."""
    if type(r) is not int or r < 1:
        raise ValueError(f"r = {r!r}: expected a whole number of 1 or more")
    model.requires_grad_(False)
    return model.body


def apply_nothing(model):
    """The frozen model. With its head trained it is the floor that every method has to beat."""
    freeze(model)
    return model


# ---- parts of the model


def apply_full(model):
    freeze(model).requires_grad_(True)
    return model


def apply_bitfit(model):
    """BitFit (Ben Zaken, Ravfogel & Goldberg, 2022, section 3): every bias is trained, layer norms' included.

    A T5 has none, so its norms' scales are trained: 47,616 parameters of T5-base, 0.019 %. Nothing in a T5
    explains the 0.06 % that the READ paper prints.
    """
    parameters = dict(freeze(model).named_parameters())
    kind = "bias" if any(name.endswith("bias") for name in parameters) else "norm.weight"
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.endswith(kind))
    return model


def apply_top2(model):
    """FT-Top2 (Li & Liang, 2021): the last two blocks are trained; GPT-2's norm behind them is not."""
    freeze(model).blocks[-2:].requires_grad_(True)
    return model


# ---- updates of a weight


class Updated(nn.Module):
    """A frozen linear layer with a learned update of its weight: x (…, d) -> x × (W_0 + update) + b (…, k).

    It shares the weight and bias of `linear`. `weight` (k, d) and `update()` are transposed, as in nn.Linear.
    """

    def __init__(self, linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.k, self.d = self.weight.shape

    @torch.no_grad()
    def to_linear(self):
        """A new nn.Linear that computes the same."""
        options = {"bias": self.bias is not None, "device": self.weight.device, "dtype": self.weight.dtype}
        linear = nn.utils.skip_init(nn.Linear, self.d, self.k, **options)
        linear.weight.copy_(self.weight + self.update())
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear


class LoRA(Updated):
    """LoRA (Hu et al., 2022, equation 3): h = x W_0 + (alpha / r) x A B, with A (d, r) and B (r, k).

    A starts Kaiming uniform with a = √5, which is uniform within ±1/√d, and B at zero: the frozen layer.
    """

    def __init__(self, linear, r, alpha=LORA_ALPHA):
        super().__init__(linear)
        self.scale = alpha / r
        bound = self.d**-0.5
        self.A = nn.Parameter(torch.empty(self.d, r, device=self.weight.device).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(r, self.k, device=self.weight.device))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + self.scale * (x @ self.A @ self.B)

    def update(self):
        return self.scale * (self.A @ self.B).T


def replace(model, targets, make, r=1):
    """Freezes `model`, puts make(linear) in the place of every target layer, and returns it."""
    linears = find_linears(model, targets)
    freeze(model, r)
    for name, linear in linears.items():
        model.set_submodule(name, make(linear))
    return model


def apply_lora(model, r=8, targets="qv"):
    return replace(model, targets, lambda linear: LoRA(linear, r), r)


class VeRA(Updated):
    """VeRA (Kopiczko, Blankevoort & Asano, 2024, equation 2): h = x W_0 + ((x A) ⊙ lambda_d) B ⊙ lambda_b.

    A (d, r) and B (r, k) are random, frozen and shared by all layers of a shape; lambda_d (r,) starts at 0.1
    and lambda_b (k,) at zero: the frozen layer.
    """

    def __init__(self, linear, A, B):
        super().__init__(linear)
        self.register_buffer("A", A, persistent=False)
        self.register_buffer("B", B, persistent=False)
        self.lambda_d = nn.Parameter(torch.full((A.shape[1],), VERA_LAMBDA_D, device=self.weight.device))
        self.lambda_b = nn.Parameter(torch.zeros(self.k, device=self.weight.device))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + (x @ self.A * self.lambda_d) @ self.B * self.lambda_b

    def update(self):
        return (self.A * self.lambda_d @ self.B * self.lambda_b).T


def apply_vera(model, r=256, targets="qv", frozen_seed=0):
    """A and B are Kaiming uniform: within ±√(6 / rows)."""

    @functools.cache
    def shared(shape, device):
        (k, d), generator = shape, torch.Generator("cpu").manual_seed(frozen_seed)
        A, B = (2 * torch.rand(s, generator=generator, device="cpu") - 1 for s in ((d, r), (r, k)))
        return (A * (6 / d) ** 0.5).to(device), (B * (6 / r) ** 0.5).to(device)

    return replace(model, targets, lambda x: VeRA(x, *shared(x.weight.shape, x.weight.device)), r)


class FourierFT(Updated):
    """FourierFT (Gao et al., 2024, section 3.1): h = x (W_0 + alpha Re(ifft2(F))).

    F (d, k) is zero but for n coefficients c at `places`, which are random and the same in all layers of a
    shape. c starts N(0, 1): this does NOT start at the frozen layer. ifft2 divides by d k, so alpha is
    FOURIERFT_ALPHA · d k / 1024² here, which gives updates of the same size at any width.
    """

    def __init__(self, linear, places):
        super().__init__(linear)
        self.alpha = FOURIERFT_ALPHA * self.d * self.k / 1024**2
        self.register_buffer("places", places, persistent=False)  # (n,), in F transposed and flattened
        self.c = nn.Parameter(torch.randn(len(places), device=self.weight.device))

    def forward(self, x):
        return F.linear(x, self.weight + self.update(), self.bias)

    def update(self):
        spectrum = self.c.new_zeros(self.k * self.d).scatter(0, self.places, self.c)
        return self.alpha * torch.fft.ifft2(spectrum.view(self.k, self.d)).real


def apply_fourierft(model, r=1000, targets="qv", frozen_seed=0):
    """r is the authors' n. Raises ValueError if a layer has fewer coefficients."""
    smallest = min(linear.weight.numel() for linear in find_linears(model, targets).values())
    if r > smallest:
        raise ValueError(f"r = {r}: a layer has {smallest:,} coefficients")

    @functools.cache
    def shared(size, device):
        generator = torch.Generator("cpu").manual_seed(frozen_seed)
        return torch.randperm(size, generator=generator, device="cpu")[:r].to(device)

    return replace(model, targets, lambda x: FourierFT(x, shared(x.weight.numel(), x.weight.device)), r)


# ---- adapters


class Bottleneck(nn.Module):
    """up(act(down(x))), (…, d) -> (…, d), through r dimensions; its biases start at 0."""

    def __init__(self, d, r, act, device):
        super().__init__()
        self.down, self.up, self.act = nn.Linear(d, r, device=device), nn.Linear(r, d, device=device), act
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.up(self.act(self.down(x)))


class Behind(nn.Module):
    """y + up(act(down(norm(y)))), on the output y of a block or of a sublayer's dropout."""

    def __init__(self, block, norm, *sizes):
        super().__init__()
        self.block, self.norm, self.adapter = block, norm, Bottleneck(*sizes)

    def forward(self, *inputs):
        y = self.block(*inputs)
        return y + self.adapter(self.norm(y))


def apply_houlsby(model, r=64):
    """Houlsby et al. (2019, section 2.1): an adapter after attention and one after the feed-forward layer.

    Both stand before the residual is added. act is GELU. The authors train the layer norms too; the tables
    that the paper quotes count the adapters alone, and so does this. A T5's blocks have the second one only:
    the READ paper counts so many (T5-base: 24 × 99,136, 0.96 %), though its text says after every attention
    too.
    """
    body = freeze(model, r)
    for block in body.blocks:
        sizes = block.d.out_features, r, F.gelu, block.d.weight.device
        if body.LAYOUT != "encoder-decoder":
            block.attention_dropout = Behind(block.attention_dropout, nn.Identity(), *sizes)
        block.ffn_dropout = Behind(block.ffn_dropout, nn.Identity(), *sizes)
    return model


class PfeifferNorm(nn.Module):
    """LN(up(relu(down(LN(y)))) + y), in place of a post-norm block's LN(y)."""

    def __init__(self, norm, *sizes):
        super().__init__()
        self.norm, self.adapter = norm, Bottleneck(*sizes)

    def forward(self, y):
        return self.norm(self.adapter(self.norm(y)) + y)


def apply_pfeiffer(model, r=64):
    """Pfeiffer et al. (2020; 2021, AdapterFusion): LN(up(relu(down(LN(y)))) + y), y = h + x.

    h is the output of the feed-forward layer, x what it is added to; LN is the layer's own, frozen, used
    twice. GPT-2, pre-norm, does not normalise y, so the outer LN is left out there.
    """
    body = freeze(model, r)
    for i, block in enumerate(body.blocks):
        sizes = block.d.out_features, r, F.relu, block.d.weight.device
        if body.LAYOUT == "decoder":
            body.blocks[i] = Behind(block, block.ffn_norm, *sizes)
        else:
            block.ffn_norm = PfeifferNorm(block.ffn_norm, *sizes)
    return model


def apply_lin(model, r=6):
    """Lin, Madotto & Fung (2020): y + up(relu(down(LN(y)))) on each block's output y, with a new LN."""
    body = freeze(model, r)
    for i, block in enumerate(body.blocks):
        d, device = block.d.out_features, block.d.weight.device
        norm = nn.LayerNorm(d, eps=block.ffn_norm.eps, device=device)
        body.blocks[i] = Behind(block, norm, d, r, F.relu, device)
    return model


# ---- prefix


class Prefix(nn.Module):
    """Attention with m learned `keys` and `values` (m, d) in front of its input's; all positions see them.

    The prefix is no token: it has no position and is not in the cache.
    """

    def __init__(self, attention, m):
        super().__init__()
        d, device = attention.q.in_features, attention.q.weight.device
        self.attention = attention
        self.keys = nn.Parameter(STD * torch.randn(m, d, device=device))
        self.values = nn.Parameter(STD * torch.randn(m, d, device=device))

    def forward(self, x, mask, past=None):
        inner, (B, L, _) = self.attention, x.shape
        q, k, v = inner.heads(x, past)
        k, v = (
            torch.cat([split_heads(prefix.to(own.dtype).expand(B, -1, -1), inner.n_head), own], 2)
            for prefix, own in ((self.keys, k), (self.values, v))
        )
        if mask is None and inner.causal:
            mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            mask = F.pad(mask, (len(self.keys), 0), value=True)  # (B, 1, L or 1, m + S)
        return inner.attend(q, k, v, mask)


def apply_prefix(model, r=7):
    """Prefix-tuning (Li & Liang, 2021) with vectors that are learned directly: the paper's PreLayer.

    They start close to zero, but draw attention from the input: this does NOT start at the frozen model.
    """
    for block in freeze(model, r).blocks:
        block.attention = Prefix(block.attention, r)
    return model


class Prompt(nn.Module):
    """m vectors, at first random words' embeddings, in front of the embedded x (B, L, d) and its mask.

    It is the encoder's hook itself, so that a copy of the model has its own.
    """

    def __init__(self, words, m):
        super().__init__()
        chosen = torch.randint(len(words), (m,), device="cpu").to(words.device)
        self.vectors = nn.Parameter(words[chosen].detach().clone())

    def forward(self, encoder, source):
        x, mask = source
        x = torch.cat([self.vectors.expand(len(x), -1, -1), x], 1)
        return x, None if mask is None else F.pad(mask, (len(self.vectors), 0), value=True)


def apply_prompt(model, r=20):
    """Prompt tuning (Lester, Al-Rfou & Constant, 2021) of a T5. This does NOT start at the frozen model."""
    freeze(model, r)
    model.prompt = Prompt(model.word.weight, r)
    model.encoder.register_forward_pre_hook(model.prompt)
    return model
