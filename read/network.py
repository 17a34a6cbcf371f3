"""READ: recurrent adaptation beside a frozen backbone (Nguyen, Wang, Li & Wu), for RoBERTa, GPT-2 and T5.

The backbone is run as it is, without autograd, and a recurrent network runs over the outputs of its layers,
not over the tokens: its steps are phi_1 … phi_N, the output of block 1 … N at one position. Its last state
h_N, projected up, corrects the last of them:

    h_i    = RNN(phi_i, h_{i-1}),  h_0 = 0,  i = 1 … N        (Algorithm 1, reduced as in appendix B.1)
    phi_N' = phi_N + U h_N                                    (what the head reads, or GPT-2's last norm)

The backward pass goes through the head (and norm), U and the N steps of the RNN alone. No position sees
another one in the RNN. So a classifier needs it at the first token only (or on all tokens' means, where it
reads a mean), an answer's span at all; GPT-2 stays causal, and runs it on the new token alone when decoding.

At width h beside a backbone of width d, a GRU has 3 h (d + h) + 6 h parameters, and U h d.

A T5 has a recurrent network on each side, joined by the frozen cross-attention:

    h^E_i  = RNN_E(phi^E_i, h^E_{i-1})              i over the encoder's blocks, at each of its m tokens
    E      = Psi h^E_N                              the encoder's last state, for all blocks of the decoder
    x_j    = phi^D_j + sigma_j E                    sigma_j (n, m): block j's cross-attention, its heads' mean
    h^D_j  = RNN_D(x_j, h^D_{j-1})                  j over the decoder's blocks, at each of its n tokens
    logits = lm_head(final norm(phi^D_N + |phi^D_N| (U h^D_N + b)))    |x|: the root mean square over d

|phi^D_N| is ours: the paper's sum has no such factor (`unscaled`). It undoes the division of the inputs by
their size, so that the correction is in proportion to the stream, however large that has grown. What the
frozen decoder reads of the encoder is not corrected. No token of the target sees a later one, so READ decodes
step by step, with the backbone's cache and E.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from model import GPT2, RobertaClassifier, RobertaSpan
from read.t5 import T5

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN, "untied": nn.GRU}
WIDTH = 256


class LayerRNN(nn.Module):
    """U h_N: states (…, N, d) -> (…, d).

    The paper names no start. With U at zero the corrected model is the frozen one bit for bit, and the first
    step moves U alone; `zero_start=False` leaves the library's default. Each phi_i is divided by its root
    mean square first: residual streams grow with depth, and would saturate the gates.
    """

    def __init__(self, d, width=WIDTH, cell="gru", zero_start=True):
        super().__init__()
        self.rnn = CELLS[cell](d, width, batch_first=True)
        self.up = nn.Linear(width, d, bias=False)
        if zero_start:
            nn.init.zeros_(self.up.weight)

    def forward(self, states):
        x = F.rms_norm(states, states.shape[-1:], eps=1e-6)
        device = "cpu" if x.is_meta else x.device.type  # meta has no autocast
        with torch.autocast(device, enabled=False):  # CUDA's would run cuDNN's RNNs in float16
            output, _ = self.rnn(x.float().flatten(0, -3))  # (positions, N, d) -> (positions, N, width)
        return self.up(output[:, -1]).unflatten(0, states.shape[:-2])


class UntiedLayers(nn.Module):
    """The paper's ablation without recurrency (Table 2): the sum of a network for each layer, of one step."""

    def __init__(self, layers, d, *options):
        super().__init__()
        self.layers = nn.ModuleList(LayerRNN(d, *options) for _ in range(layers))

    def forward(self, states):
        return sum(layer(states[..., i : i + 1, :]) for i, layer in enumerate(self.layers))


class Beside(nn.Module):
    """Turns a model into one that shares its layers, with a network beside them.

    It stands before the model's class in a list of bases. BACKBONE names the modules that stay in eval mode:
    a backbone's output is the same in every epoch.
    """

    BACKBONE = ("roberta",)

    def __init__(self, model, network=None):
        nn.Module.__init__(self)  # the __init__ of the model's class would make new weights
        for name, value in vars(model).items():
            vars(self)[name] = copy.copy(value)  # dicts of our own that hold the same layers
        if network is not None:
            self.network = network

    def train(self, mode=True):
        super().train(mode)
        for name in self.BACKBONE:
            self.get_submodule(name).eval()
        return self


class ReadClassifier(Beside, RobertaClassifier):
    """READ at what the head reads. `states` never changes; `from_states` is what is trained."""

    @torch.no_grad()
    def states(self, input_ids, attention_mask=None):
        """The first token's phi_1 … phi_N, or all tokens' mean: (B, N, d)."""
        outputs = self.roberta.outputs(input_ids, attention_mask)
        # a view would keep all of x in memory
        return torch.stack([self.pooled(x, attention_mask).clone() for x in outputs], 1)

    def from_states(self, states):
        return self.classifier(states[:, -1] + self.network(states))

    def forward(self, input_ids, attention_mask=None):
        return self.from_states(self.states(input_ids, attention_mask))


class ReadSpan(Beside, RobertaSpan):
    """READ at every position."""

    def forward(self, input_ids, attention_mask=None):
        with torch.no_grad():
            states = torch.stack([*self.roberta.outputs(input_ids, attention_mask)], -2)  # (B, L, N, d)
        return self.qa_outputs(states[..., -1, :] + self.network(states)).unbind(-1)


class ReadGPT2(Beside, GPT2):
    """READ where logits are asked for."""

    BACKBONE = ("dropout", "blocks")

    def _last(self, states, where=None):
        with torch.no_grad():  # runs the backbone
            states = torch.stack([x if where is None else x[where] for x in states], -2)  # (…, N, d)
        return states[..., -1, :] + self.network(states)


# ---- T5


class TwoSidedRNN(nn.Module):
    """RNN_E and Psi (`encoder`), RNN_D and U (`decoder`), and b (`shift`), which the paper's count has.

    phi^D_j is divided by its root mean square before sigma_j E is added too, which would be lost beside a
    residual stream of hundreds.
    """

    def __init__(self, d, width=WIDTH, cell="gru", zero_start=True):
        super().__init__()
        self.encoder = LayerRNN(d, width, cell, zero_start=False)
        self.decoder = LayerRNN(d, width, cell, zero_start)
        self.shift = nn.Parameter(torch.zeros(d))

    def encode(self, states):
        """phi^E_1 … phi^E_N, (B, m, d) each -> E (B, m, d)."""
        return self.encoder(torch.stack(states, -2))

    def decode(self, E, states, cross):
        """E, phi^D_1 … phi^D_N (B, n, d), cross-attention (B, n_head, n, m) -> U h^D_N + b (B, n, d)."""
        joined = [
            F.rms_norm(x, x.shape[-1:], eps=1e-6) + w.mean(1) @ E for x, w in zip(states, cross, strict=True)
        ]
        return self.decoder(torch.stack(joined, -2)) + self.shift


class UntiedTwoSided(nn.Module):
    """UntiedLayers of both sides: a pair of networks for each pair of blocks, with an E for each."""

    def __init__(self, encoder_blocks, decoder_blocks, *options):
        super().__init__()
        if encoder_blocks != decoder_blocks:
            raise ValueError(
                f"{encoder_blocks} blocks and {decoder_blocks} in the decoder: cell untied pairs them"
            )
        self.layers = nn.ModuleList(TwoSidedRNN(*options) for _ in range(encoder_blocks))

    def encode(self, states):
        """As TwoSidedRNN's, but E (B, N, m, d)."""
        return torch.stack([layer.encode([x]) for layer, x in zip(self.layers, states, strict=True)], 1)

    def decode(self, E, states, cross):
        parts = zip(self.layers, E.unbind(1), states, cross, strict=True)
        return sum(layer.decode(e, [x], [w]) for layer, e, x, w in parts)


class ReadT5(Beside, T5):
    """READ on both sides."""

    BACKBONE = ("encoder", "decoder")
    unscaled = False

    def encode(self, input_ids, attention_mask=None):
        with torch.no_grad():
            source = super().encode(input_ids, attention_mask)
        return source._replace(extra=self.network.encode(source.states))

    @torch.no_grad()
    def _decode(self, *inputs):
        return super()._decode(*inputs)

    def _last(self, source, states, weights):
        last, correction = states[-1], self.network.decode(source.extra, states, weights)
        if not self.unscaled:
            correction = last.square().mean(-1, keepdim=True).sqrt() * correction
        return last + correction


# ---- put in


KINDS = {RobertaClassifier: ReadClassifier, RobertaSpan: ReadSpan, GPT2: ReadGPT2, T5: ReadT5}


def apply_read(model, r=WIDTH, cell="gru", start="zero", unscaled=False, drop_last=0):
    """`model`, frozen and with READ beside it: another object, with the same layers.

    r          the width of the RNN's state; the paper tries 128 and 256
    drop_last  blocks that `model` loses, the last of each side: READ-large is T5-large without four

    methods.OPTIONS describes the others.

    Raises ValueError, with the model unchanged, for a size, cell or model that does not fit.
    """
    if type(r) is not int or r < 1:
        raise ValueError(f"r = {r!r}: expected a whole number of 1 or more")
    if cell not in CELLS:
        raise ValueError(f"cell '{cell}': expected one of {' '.join(CELLS)}")
    if type(model) not in KINDS:
        raise ValueError(
            f"a {type(model).__name__}: expected one of {', '.join(kind.__name__ for kind in KINDS)}"
        )
    if unscaled and not isinstance(model, T5):
        raise ValueError("unscaled: only the correction of a T5 is scaled")
    sides = (model.encoder, model.decoder) if isinstance(model, T5) else (model.body,)
    most = min(len(side.blocks) for side in sides) - 1
    if not 0 <= drop_last <= most:
        raise ValueError(f"drop_last = {drop_last}: expected 0 to {most}")
    depths = [len(side.blocks) - drop_last for side in sides]
    plain, untied = (TwoSidedRNN, UntiedTwoSided) if isinstance(model, T5) else (LayerRNN, UntiedLayers)
    last = model.body.blocks[-1].d  # its output has the width and the device of the states
    options = last.out_features, r, cell, start == "zero"
    with last.weight.device:
        network = untied(*depths, *options) if cell == "untied" else plain(*options)
    for side, depth in zip(sides, depths, strict=True):
        side.blocks = side.blocks[:depth]
    adapted = KINDS[type(model)](model.requires_grad_(False), network)
    adapted.unscaled = unscaled
    return adapted
