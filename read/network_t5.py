"""READ for a T5: the recurrent networks of both sides, joined by the frozen cross-attention (Nguyen, Wang, Li & Wu).

    h^E_i  = RNN_E(phi^E_i, h^E_{i-1})                    i over the encoder's blocks, at each of its m tokens
    E      = Psi h^E_N                                    the encoder's last state, for all blocks of the decoder
    x_j    = phi^D_j + sigma_j E                          sigma_j (n, m): block j's cross-attention, its heads' mean
    h^D_j  = RNN_D(x_j, h^D_{j-1})                        j over the decoder's blocks, at each of its n tokens
    logits = lm_head(final norm(phi^D_N + |phi^D_N| (U h^D_N + b)))      |x|: the root mean square of x (d numbers)

|phi^D_N| is ours, the paper's sum has no such factor: it undoes the division of the RNNs' inputs by their size, so that
the correction is in proportion to the stream, however large that has grown.
What the frozen decoder reads of the encoder is not corrected. No token of the target sees a later one: sigma_j is that
of the token itself. So READ decodes step by step, with the backbone's cache and E.

Parameters at width h: two RNNs, Psi and U (h d each) and b (d). T5-base, GRU, h = 256: 1,969,920, 0.80 % of 247.58M.
"""

import torch
from torch import nn
from torch.nn import functional as F

from read.network import CELLS, WIDTH, LayerRNN
from read.t5 import T5


class TwoSidedRNN(nn.Module):
    """RNN_E and Psi (`encoder`), RNN_D and U (`decoder`), and b (`shift`), which the paper's count has.

    The states come as lists, an output a block. Both RNNs read states of unit root mean square (see LayerRNN); phi^D_j
    has it before sigma_j E is added too, which would be lost beside a residual stream of hundreds.
    """

    def __init__(self, d, width=WIDTH, cell="gru", zero_start=True, device=None):
        super().__init__()
        self.encoder = LayerRNN(d, width, cell, zero_start=False, device=device)
        self.decoder = LayerRNN(d, width, cell, zero_start, device=device)
        self.shift = nn.Parameter(torch.zeros(d, device=device))

    def encode(self, states):
        """phi^E_1 … phi^E_N, (B, m, d) each -> E (B, m, d)."""
        return self.encoder(torch.stack(states, -2))

    def decode(self, E, states, cross):
        """E, phi^D_1 … phi^D_N (B, n, d), cross-attention weights (B, n_head, n, m) of each -> U h^D_N + b (B, n, d)."""
        joined = [F.rms_norm(x, x.shape[-1:], eps=1e-6) + w.mean(1) @ E for x, w in zip(states, cross, strict=True)]
        return self.decoder(torch.stack(joined, -2)) + self.shift


class UntiedTwoSided(nn.Module):
    """The paper's ablation without recurrency (Table 2): networks of its own for each pair of blocks, their sum.

    Each takes one step, from h = 0, and so E is one for each. Raises ValueError where the sides differ in depth.
    """

    def __init__(self, encoder_blocks, decoder_blocks, *options):
        super().__init__()
        if encoder_blocks != decoder_blocks:
            raise ValueError(f"{encoder_blocks} blocks and {decoder_blocks} in the decoder: cell untied pairs them")
        self.layers = nn.ModuleList(TwoSidedRNN(*options) for _ in range(encoder_blocks))

    def encode(self, states):
        """As TwoSidedRNN's, but E (B, N, m, d)."""
        return torch.stack([layer.encode([x]) for layer, x in zip(self.layers, states, strict=True)], 1)

    def decode(self, E, states, cross):
        parts = zip(self.layers, E.unbind(1), states, cross, strict=True)
        return sum(layer.decode(e, [x], [w]) for layer, e, x, w in parts)


class ReadT5(T5):
    """A T5 whose layers it shares, frozen, and the network beside them; called, trained and decoded as any T5.

    `return_states` gives the backbone's own.
    """

    def __init__(self, model, network):
        nn.Module.__init__(self)  # T5's would make new weights
        self.config, self.prompt = model.config, None
        self.word, self.encoder, self.decoder, self.network = model.word, model.encoder, model.decoder, network

    def encode(self, input_ids, attention_mask=None):
        with torch.no_grad():
            source = super().encode(input_ids, attention_mask)
        return source._replace(extra=self.network.encode(source.states))

    @torch.no_grad()
    def _decode(self, *inputs):
        return super()._decode(*inputs)

    def _last(self, source, states, weights):
        last = states[-1]
        size = last.square().mean(-1, keepdim=True).sqrt()  # a stream of 100 would leave a correction of 1 without effect
        return last + size * self.network.decode(source.extra, states, weights)

    def train(self, mode=True):
        """As nn.Module's, but that the backbone stays in eval mode: it is one function, whatever the epoch."""
        super().train(mode)
        self.encoder.eval()
        self.decoder.eval()
        return self


def apply_read_t5(model, width=WIDTH, cell="gru", zero_start=True):
    """A T5, frozen, with READ beside it: another object, with the same layers. As read.network's apply_read.

    Raises ValueError, with the model unchanged, for a width, cell or model that does not fit.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"r = {width!r}: expected a whole number of 1 or more")
    if cell not in CELLS:
        raise ValueError(f"cell '{cell}': expected one of {' '.join(CELLS)}")
    if not isinstance(model, T5) or isinstance(model, ReadT5):
        raise ValueError(f"a {type(model).__name__}: expected a T5, once")
    options = (model.config.d_model, width, "gru" if cell == "untied" else cell, zero_start, model.word.weight.device)
    if cell == "untied":
        network = UntiedTwoSided(len(model.encoder.blocks), len(model.decoder.blocks), *options)
    else:
        network = TwoSidedRNN(*options)
    return ReadT5(model.requires_grad_(False), network)
