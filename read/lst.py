"""Ladder Side-Tuning (Sung, Cho & Bansal, 2022), which READ is compared with, for a T5.

Beside the frozen T5 runs one an eighth as wide. Each of its blocks reads a mixture of the block below it and
of the backbone's block at its height, projected down:

    s_0  = down_0 x                                       x: the embedded tokens
    s_i  = block_i(g_i s_{i-1} + (1 - g_i) down_i phi_i)  g_i = sigmoid(alpha_i / T), T = 0.1, alpha_i from 0
    out  = g norm(phi_N) + (1 - g) (up norm(s_N))         what the output layer reads

As in READ the backbone is not differentiated; but this is a whole small T5, whose decoder attends to its own
encoder's output. Its blocks start as parts of the backbone's, the largest (`prune`). Its authors prune by
Fisher information, and keep 9 of T5-base's 12 blocks a side; here all are kept. Its projections start at
the library's default: this does NOT start at the frozen model. T5-base: 5,097,241 parameters.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from read.network import Beside
from read.t5 import T5, T5Side

REDUCTION = 8  # the paper's width of 96 beside T5-base
TEMPERATURE = 0.1


class Ladder(nn.Module):
    """The small T5's encoder or decoder, and the projections and gates into it."""

    def __init__(self, backbone, config, thin, memory=None):
        super().__init__()
        self.side = T5Side(thin, is_decoder=memory is not None)
        layers = len(self.side.blocks)
        self.down = nn.ModuleList(nn.Linear(config.d_model, thin.d_model) for _ in range(layers + 1))
        self.alpha = nn.Parameter(torch.zeros(layers))
        self.stream = prune(backbone, self.side, memory)

    def forward(self, x, states, places, memory=None, mask=None, past=None, crossed=None):
        """x (B, L, d) embedded, the backbone's states -> norm(s_N), (B, L, d / 8). The rest is T5Block's."""
        bias = self.side.bias(*places)
        if memory is None and crossed is None and mask is not None:
            bias = bias + mask  # the encoder's padding
        s = self.down[0](x).to(x.dtype)  # the stream stays in float32 under autocast
        gates = torch.sigmoid(self.alpha / TEMPERATURE)
        for i, (block, down, phi) in enumerate(zip(self.side.blocks, self.down[1:], states, strict=True)):
            s = gates[i] * s + (1 - gates[i]) * down(phi)
            s, _ = block(s, bias, memory, mask, past and past[i], crossed and crossed[i])
        return self.side.finish(s)


@torch.no_grad()
def prune(backbone, side, memory=None):
    """Copies the rows and columns of the backbone's weights with the largest absolute sums into `side`.

    Every head and feed-forward layer keeps places of its own. Those of the stream, (d / 8,), are the same in
    all blocks, and are returned. `memory` are the encoder's, which a decoder's cross.k and cross.v read.
    """
    cross = () if memory is None else ("cross.q",)
    names = ("attention.q", "attention.k", "attention.v", *cross, "u")  # these read their own side's stream
    readers = [block.get_submodule(name) for block in backbone.blocks for name in names]
    stream = largest(sum(linear.weight.abs().sum(0) for linear in readers), side.norm.weight.numel())
    side.position.weight.copy_(backbone.position.weight)
    side.norm.weight.copy_(backbone.norm.weight[stream])
    for theirs, ours in zip(backbone.blocks, side.blocks, strict=True):
        for name, norm in ours.named_children():
            if isinstance(norm, nn.RMSNorm):
                norm.weight.copy_(theirs.get_submodule(name).weight[stream])
        for name in ("attention", "cross") if hasattr(ours, "cross") else ("attention",):
            a, b = theirs.get_submodule(name), ours.get_submodule(name)
            weight = sum(m.weight.abs().sum(1) for m in (a.q, a.k, a.v)).view(a.n_head, -1)
            size = b.q.out_features // b.n_head
            inner = torch.cat([largest(w, size) + i * weight.shape[1] for i, w in enumerate(weight)])
            for letter in "qkv":
                read = memory if name == "cross" and letter != "q" else stream
                b.get_submodule(letter).weight.copy_(a.get_submodule(letter).weight[inner][:, read])
            b.o.weight.copy_(a.o.weight[stream][:, inner])
        inner = largest(theirs.u.weight.abs().sum(1), ours.u.out_features)
        ours.u.weight.copy_(theirs.u.weight[inner][:, stream])
        ours.d.weight.copy_(theirs.d.weight[stream][:, inner])
    return stream


def largest(weight, size):
    """The places of the `size` largest numbers of weight (n,), in order."""
    return weight.topk(size).indices.sort().values


class LSTT5(Beside, T5):
    BACKBONE = ("encoder", "decoder")

    def __init__(self, model, reduction=REDUCTION):
        super().__init__(model.requires_grad_(False))
        sizes = {name: getattr(self.config, name) // reduction for name in ("d_model", "d_kv", "d_ff")}
        thin = replace(self.config, **sizes)
        self.encoder_ladder = Ladder(self.encoder, self.config, thin)
        self.decoder_ladder = Ladder(self.decoder, self.config, thin, memory=self.encoder_ladder.stream)
        self.up = nn.Linear(thin.d_model, self.config.d_model)
        self.alpha = nn.Parameter(torch.zeros(()))

    def encode(self, input_ids, attention_mask=None):
        with torch.no_grad():
            source, x = super().encode(input_ids, attention_mask), self.word(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return source._replace(
            extra=self.encoder_ladder(x, source.states, (positions, positions), mask=source.mask)
        )

    def _decode(self, source, tokens, places, past=None, crossed=None):
        N = len(self.decoder.blocks)
        with torch.no_grad():
            states, cross = super()._decode(source, tokens, places, past, crossed)
            x = self.word(tokens)
        past, crossed = past and past[N:], crossed and crossed[N:]
        small = self.decoder_ladder(x, states, places, source.extra, source.mask, past, crossed)
        return [*states, small], cross

    def _caches(self, source, columns):
        both = super()._caches(source, columns), self.decoder_ladder.side.caches(source.extra, columns)
        return tuple(a + b for a, b in zip(*both, strict=True))

    def _last(self, source, states, weights):
        g = torch.sigmoid(self.alpha / TEMPERATURE)
        return g * self.decoder.finish(states[-2]) + (1 - g) * self.up(states[-1])

    def _logits(self, x):
        return F.linear(x * self.config.d_model**-0.5, self.word.weight)


def apply_lst(model):
    """`model`, a T5, frozen and with the ladders beside it: another object, with the same layers."""
    if type(model) is not T5:
        raise ValueError(f"a {type(model).__name__}: expected a plain T5")
    with model.word.weight.device:
        return LSTT5(model)
