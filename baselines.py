"""The methods HUT is compared with, each a screenful: what is trained, the formula, where it is from, how it starts.

`apply` puts one of them into a RobertaClassifier, a GPT2 or a T5, in place; `merge` takes it out into plain
weights, where that is possible. A model's trainable parameters are then the method, and all there is to save:
what is random and frozen (VeRA's A and B, FourierFT's places) is made again from `seed`.

`x` (…, d) is a layer's input and W_0 (d, k) its frozen weight, with the input on the left, as in hut.py.
Heads are the script's business.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "lin", "lora", "vera", "fourierft", "top2", "prefix")
T5_METHODS = ("full", "bitfit", "houlsby", "lora", "prompt")  # what READ is compared with on T5
TARGETED = (
    "lora",
    "vera",
    "fourierft",
)  # put over the layers that `targets` names; the others have places of their own
RANDOM = ("vera", "fourierft")  # part of what they add is random, frozen, and made again from a seed
UNMERGED = ("houlsby", "pfeiffer", "lin", "prefix", "prompt")  # no plain weights compute the same

# r is a method's size: the adapters' bottleneck, LoRA's and VeRA's rank, FourierFT's n, the prefix's m. Those
# of the tables that the paper quotes, for RoBERTa-large and GPT-2 medium; a method that is not here has no
# size.
ROBERTA_R = {"houlsby": 64, "pfeiffer": 64, "lin": 6, "lora": 8, "vera": 256, "fourierft": 1000, "prefix": 7}
GPT2_R = ROBERTA_R | {"houlsby": 112, "lora": 4, "vera": 1024}
T5_R = {"houlsby": 64, "lora": 32, "prompt": 20}  # the READ paper's

LORA_ALPHA = 16  # as LoRA's authors on RoBERTa-large, where r = 8
FOURIERFT_ALPHA = 100  # at d = k = 1024; its authors take 69 to 121 on RoBERTa-large
VERA_LAMBDA_D = 0.1
STD = 0.02  # of adapters and prefixes at their start


def apply(model, method, r=None, targets="qv", seed=0):
    """Freezes `model` and puts `method` into its body, in place; returns the model, whose head is frozen too.

    r        the method's size, see ROBERTA_R; None for the methods that have none
    targets  letters from "qkvoud", for the methods in TARGETED
    seed     of VeRA's A and B and FourierFT's places; what is trained starts from torch's own generator

    Raises ValueError, with the model unchanged, for a method, size or target that does not fit.
    """
    body = getattr(model, "roberta", model)
    methods = T5_METHODS if is_t5(body) else METHODS
    if method not in methods:
        raise ValueError(f"method '{method}': expected one of {' '.join(methods)}")
    if any(type(module).__module__ == __name__ for module in model.modules()):
        raise ValueError("the model is already adapted: apply takes a model once")
    if method in ROBERTA_R | T5_R and (isinstance(r, bool) or not isinstance(r, int) or r < 1):
        raise ValueError(f"r = {r!r}: expected a whole number of 1 or more")
    linears = find_linears(body, targets) if method in TARGETED else {}
    smallest = min((linear.weight.numel() for linear in linears.values()), default=0)
    if method == "fourierft" and r > smallest:
        raise ValueError(f"r = {r}: a layer has {smallest:,} coefficients")

    model.requires_grad_(False)
    match method:
        case "full":
            body.requires_grad_(True)
        case "bitfit":
            train_biases(body)
        case "top2":
            train_last_two_blocks(body)
        case "lora":
            add_lora(body, linears, r)
        case "vera":
            add_vera(body, linears, r, seed)
        case "fourierft":
            add_fourierft(body, linears, r, seed)
        case "houlsby":
            add_houlsby(body, r)
        case "pfeiffer":
            add_pfeiffer(body, r)
        case "lin":
            add_lin(body, r)
        case "prefix":
            add_prefix(body, r)
        case "prompt":
            add_prompt(body, r)
    return model


def merge(model):
    """A copy of `model` with plain layers; `model` itself stays as it is. ValueError where no plain layers compute it."""
    for module in model.modules():
        if isinstance(module, Bottleneck | Prefix | Prompt):
            raise ValueError("does not merge: no weights of the plain model compute the same")
    merged = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, Updated):
            merged.set_submodule(name, module.to_linear())
    return merged


def find_linears(body, targets):
    """{name: nn.Linear} of the layers that are named as one of the letters. ValueError for a letter that names none."""
    targets, found = list(targets), {}
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"target '{target}' is named twice in {targets}")
        layers = {name: m for name, m in body.named_modules() if f".{name}".endswith(f".{target}")}
        if not layers or not all(isinstance(layer, nn.Linear) for layer in layers.values()):
            raise ValueError(f"target '{target}' matches no layer of the model: expected letters from qkvoud")
        found |= layers
    if not found:
        raise ValueError("no target is named: expected at least one, such as 'qv'")
    return found


# ------------------------------------------------------------------------------------------------ parts of the model


def train_biases(body):
    """BitFit (Ben Zaken, Ravfogel & Goldberg, 2022, section 3): every bias is trained, layer norms' included.

    T5 has none; there the norms' scales are trained in their place: of T5-base 47,616 parameters, 0.019 %.
    The 0.06 % that the READ paper prints are not explained by anything T5 has.
    """
    kind = "norm.weight" if is_t5(body) else "bias"
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.endswith(kind))


def train_last_two_blocks(body):
    """FT-Top2 (Li & Liang, 2021): the last two blocks are trained; GPT-2's norm behind them is not."""
    body.blocks[-2:].requires_grad_(True)


# ------------------------------------------------------------------------------------------------ updates of a weight


class Updated(nn.Module):
    """A frozen linear layer with a learned update of its weight: x (…, d) -> x × (W_0 + update) + b (…, k).

    `weight` (k, d) is W_0 transposed, as nn.Linear stores it, and `update()` returns the update so. Starts at
    `linear`, whose weight and bias it shares, untouched.
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
        self.A = nn.Parameter(
            torch.empty(self.d, r, device=self.weight.device).uniform_(-(self.d**-0.5), self.d**-0.5)
        )
        self.B = nn.Parameter(torch.zeros(r, self.k, device=self.weight.device))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + self.scale * (x @ self.A @ self.B)

    def update(self):
        return self.scale * (self.A @ self.B).T


def add_lora(body, linears, r):
    for name, linear in linears.items():
        body.set_submodule(name, LoRA(linear, r))


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


def add_vera(body, linears, r, seed):
    """A and B are Kaiming uniform: within ±√(6 / rows)."""
    shared = {}
    for name, linear in linears.items():
        k, d = linear.weight.shape
        if (d, k) not in shared:
            shapes, generator = ((d, r), (r, k)), torch.Generator("cpu").manual_seed(seed)
            A_B = (
                (2 * torch.rand(s, generator=generator, device="cpu") - 1) * (6 / s[0]) ** 0.5 for s in shapes
            )
            shared[d, k] = [t.to(linear.weight.device) for t in A_B]
        body.set_submodule(name, VeRA(linear, *shared[d, k]))


class FourierFT(Updated):
    """FourierFT (Gao et al., 2024, section 3.1): h = x (W_0 + alpha Re(ifft2(F))).

    F (d, k) is zero but for n coefficients c at `places`, which are random and the same in all layers of a
    shape. c starts N(0, 1): this does NOT start at the frozen layer. ifft2 divides by d k, so alpha is
    FOURIERFT_ALPHA · d k / 1024² here: the authors' range at their width, and an update of the same size in
    models of any.
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


def add_fourierft(body, linears, n, seed):
    shared = {}
    for name, linear in linears.items():
        shape = linear.weight.shape
        if shape not in shared:
            generator = torch.Generator("cpu").manual_seed(seed)
            places = torch.randperm(shape.numel(), generator=generator, device="cpu")[:n]
            shared[shape] = places.to(linear.weight.device)
        body.set_submodule(name, FourierFT(linear, shared[shape]))


# ------------------------------------------------------------------------------------------------ adapters


class Bottleneck(nn.Module):
    """up(act(down(x))), (…, d) -> (…, d), through r dimensions; weights start N(0, 0.02), biases 0: close to nothing."""

    def __init__(self, d, r, act, device):
        super().__init__()
        self.down, self.up, self.act = nn.Linear(d, r, device=device), nn.Linear(r, d, device=device), act
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.up(self.act(self.down(x)))


class Houlsby(nn.Module):
    """h + up(act(down(h))), on the output h of a sublayer, behind its dropout; see `add_houlsby`."""

    def __init__(self, dropout, *sizes):
        super().__init__()
        self.dropout, self.adapter = dropout, Bottleneck(*sizes)

    def forward(self, h):
        h = self.dropout(h)
        return h + self.adapter(h)


def add_houlsby(body, r):
    """Houlsby et al. (2019, section 2.1): an adapter after attention and one after the feed-forward layer, in every block.

    Each is behind the sublayer's dropout, before the residual is added (and, in RoBERTa, the sum normalised).
    act is GELU. The authors train the layer norms too; the tables that the paper quotes count the adapters
    alone, as here. In T5 there is one a block, after the feed-forward layer: so many the READ paper counts
    (T5-base: 24 × 99,136, 0.96 %), though its text says after every attention too.
    """
    for block in body.blocks:
        d, device = block.d.out_features, block.d.weight.device
        if not is_t5(body):
            block.attention_dropout = Houlsby(block.attention_dropout, d, r, F.gelu, device)
        block.ffn_dropout = Houlsby(block.ffn_dropout, d, r, F.gelu, device)


class PfeifferNorm(nn.Module):
    """LN(up(relu(down(LN(y)))) + y), in place of a post-norm block's LN(y), y = h + x; see `add_pfeiffer`."""

    def __init__(self, norm, *sizes):
        super().__init__()
        self.norm, self.adapter = norm, Bottleneck(*sizes)

    def forward(self, y):
        return self.norm(self.adapter(self.norm(y)) + y)


class BlockAdapter(nn.Module):
    """y + up(relu(down(LN(y)))), on the output y of a block."""

    def __init__(self, block, norm, *sizes):
        super().__init__()
        self.block, self.norm, self.adapter = block, norm, Bottleneck(*sizes)

    def forward(self, *inputs):
        y = self.block(*inputs)
        return y + self.adapter(self.norm(y))


def add_pfeiffer(body, r):
    """Pfeiffer et al. (2020, MAD-X; 2021, AdapterFusion): LN(up(relu(down(LN(h + x)))) + h + x), after the FFN only.

    h is the output of the feed-forward layer, x what it is added to; LN is the layer's own, frozen, used
    twice. That is RoBERTa's order, post-norm. GPT-2, pre-norm, does not normalise the sum h + x: there it
    stays so, and the adapter reads it through the layer's own norm: up(relu(down(LN(h + x)))) + h + x.
    """
    for i, block in enumerate(body.blocks):
        sizes = block.d.out_features, r, F.relu, block.d.weight.device
        if is_gpt2(body):
            body.blocks[i] = BlockAdapter(block, block.ffn_norm, *sizes)
        else:
            block.ffn_norm = PfeifferNorm(block.ffn_norm, *sizes)


def add_lin(body, r):
    """Lin, Madotto & Fung (2020): x + up(relu(down(LN(x)))) on each block's output x, LN trained with it."""
    for i, block in enumerate(body.blocks):
        d, device = block.d.out_features, block.d.weight.device
        norm = nn.LayerNorm(d, eps=block.ffn_norm.eps, device=device)
        body.blocks[i] = BlockAdapter(block, norm, d, r, F.relu, device)


# ------------------------------------------------------------------------------------------------ prefix


class Prefix(nn.Module):
    """Attention with m learned `keys` and `values` (m, d) in front of those of its input; all positions see them.

    Forward as the attention's own, but that the mask has m more columns. The prefix is no token: it has no
    position, and is not in the cache.
    """

    def __init__(self, attention, m, causal):
        super().__init__()
        d, device = attention.q.in_features, attention.q.weight.device
        self.attention, self.causal = attention, causal
        self.keys = nn.Parameter(STD * torch.randn(m, d, device=device))
        self.values = nn.Parameter(STD * torch.randn(m, d, device=device))

    def forward(self, x, mask, past=None):
        inner, (B, L, _) = self.attention, x.shape

        def heads(t):
            return t.unflatten(-1, (inner.n_head, -1)).transpose(
                1, 2
            )  # (B, L, d) -> (B, n_head, L, d / n_head)

        q, k, v = heads(inner.q(x)), heads(inner.k(x)), heads(inner.v(x))
        if past is not None:
            k, v = past.extend(k, v)
        k, v = (
            torch.cat([heads(t.to(k.dtype).expand(B, -1, -1)), own], 2)
            for t, own in ((self.keys, k), (self.values, v))
        )
        if mask is None and self.causal:
            mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            mask = F.pad(mask, (len(self.keys), 0), value=True)  # (B, 1, L or 1, m + S)
        p = inner.dropout.p if inner.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p)
        return inner.o(y.transpose(1, 2).flatten(2))


def add_prefix(body, m):
    """Prefix-tuning (Li & Liang, 2021), the vectors learned as they are, without a network that makes them; PreLayer.

    m key and m value vectors in front of every layer's, N(0, 0.02): close to zero, but they draw attention
    from the input, and so this does NOT start at the frozen model.
    """
    for block in body.blocks:
        block.attention = Prefix(block.attention, m, causal=is_gpt2(body))


class Prompt(nn.Module):
    """m learned vectors (m, d) in front of the embedded input: x (B, L, d), mask (B, L) or None -> both, longer by m."""

    def __init__(self, words, m):
        super().__init__()
        chosen = torch.randint(len(words), (m,), device="cpu").to(words.device)
        self.vectors = nn.Parameter(words[chosen].detach().clone())

    def forward(self, x, mask):
        x = torch.cat([self.vectors.expand(len(x), -1, -1), x], 1)
        return x, None if mask is None else F.pad(mask, (len(self.vectors), 0), value=True)


def add_prompt(body, m):
    """Prompt tuning (Lester, Al-Rfou & Constant, 2021) of a T5: m vectors in front of the source, which start as the
    embeddings of words drawn from the vocabulary. This does NOT start at the frozen model.
    """
    body.prompt = Prompt(body.word.weight, m)


def is_gpt2(body):
    """Pre-norm and causal, where RoBERTa is neither."""
    return hasattr(body, "generate")


def is_t5(body):
    """An encoder-decoder, without biases."""
    return hasattr(body, "encoder")
