"""READ: recurrent adaptation beside a frozen backbone (Nguyen, Wang, Li & Wu), for RoBERTa and GPT-2.

The backbone is run as it is, without autograd, and a recurrent network runs over the outputs of its layers, not over
the tokens: its steps are phi_1 … phi_N, the output of block 1 … N at one position. Its last state h_N, projected up,
corrects the last of them:

    h_i    = RNN(phi_i, h_{i-1}),  h_0 = 0,  i = 1 … N        (Algorithm 1, with the reductions of appendix B.1)
    phi_N' = phi_N + U h_N                                    (what the head reads, or GPT-2's last norm)

No block is differentiated: the backward pass goes through the head (and norm), U and the N steps of the RNN.
No position sees another one in the RNN. So a classifier, which reads the first token, needs it at that one alone; and
GPT-2 stays causal, and runs it on the new token alone when decoding.

Parameters, at width h beside a backbone of width d, N layers (`tests/test_read.py`):

    GRU       3 h (d + h) + 6 h, and U: h d       RoBERTa-large, h = 256: 983,040 + 1,536 + 262,144 = 1,246,720
    LSTM      4 h (d + h) + 8 h, and U: h d
    RNN         h (d + h) + 2 h, and U: h d
    untied    N times the GRU's
"""

import torch
from torch import nn
from torch.nn import functional as F

from model import GPT2, RobertaClassifier

RNNS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
CELLS = (*RNNS, "untied")
WIDTH = 256


class LayerRNN(nn.Module):
    """The last state of an RNN whose steps are the layers, projected up: U h_N. states (…, N, d) -> (…, d).

    The paper names no start. U starts at zero here, where the corrected model is the frozen one bit for bit and the
    first step moves U alone; with `zero_start=False` at the library's default. Each phi_i is divided by its root mean
    square first, with nothing learned: residual streams grow with depth, and would saturate the gates.
    """

    def __init__(self, d, width=WIDTH, cell="gru", zero_start=True, device=None):
        super().__init__()
        self.rnn = RNNS[cell](d, width, batch_first=True, device=device)
        self.up = nn.Linear(width, d, bias=False, device=device)
        if zero_start:
            nn.init.zeros_(self.up.weight)

    def forward(self, states):
        x = F.rms_norm(states, states.shape[-1:], eps=1e-6)
        output, _ = self.rnn(x.flatten(0, -3))  # (positions, N, d) -> (positions, N, width)
        return self.up(output[:, -1]).unflatten(0, states.shape[:-2])


class UntiedLayers(nn.Module):
    """The paper's ablation without recurrency (Table 2): a network of its own for each layer, their corrections summed.

    Each takes one step, from h = 0. states (…, N, d) -> (…, d).
    """

    def __init__(self, layers, d, *options):
        super().__init__()
        self.layers = nn.ModuleList(LayerRNN(d, *options) for _ in range(layers))

    def forward(self, states):
        return sum(layer(states[..., i : i + 1, :]) for i, layer in enumerate(self.layers))


class ReadClassifier(RobertaClassifier):
    """A RobertaClassifier whose layers it shares, frozen, and the network beside them. The head is not frozen by it.

    `states` and `from_states` are the two halves of `forward`: what never changes, and what is trained.
    """

    def __init__(self, model, network):
        nn.Module.__init__(self)  # RobertaClassifier's would make new weights
        self.config, self.num_labels = model.config, model.num_labels
        self.roberta, self.classifier, self.network = model.roberta, model.classifier, network

    @torch.no_grad()
    def states(self, input_ids, attention_mask=None):
        """The first token's phi_1 … phi_N: (B, N, d), without a graph."""
        first = [x[:, 0].clone() for x in self.roberta.outputs(input_ids, attention_mask)]  # a view would keep all of x
        return torch.stack(first, 1)

    def from_states(self, states):
        """states (B, N, d) -> logits (B, num_labels)."""
        return self.classifier(states[:, -1] + self.network(states))

    def forward(self, input_ids, attention_mask=None):
        return self.from_states(self.states(input_ids, attention_mask))

    def train(self, mode=True):
        """As nn.Module's, but that the backbone stays in eval mode: it is one function, whatever the epoch."""
        super().train(mode)
        self.roberta.eval()
        return self


class ReadGPT2(GPT2):
    """A GPT2 whose layers it shares, frozen, and the network beside them; called, trained and decoded as any GPT2.

    The network runs where logits are asked for, and nowhere else. `return_states` gives the backbone's own.
    """

    def __init__(self, model, network):
        nn.Module.__init__(self)  # GPT2's would make new weights
        self.config = model.config
        self.word, self.position, self.dropout = model.word, model.position, model.dropout
        self.blocks, self.norm, self.network = model.blocks, model.norm, network

    @torch.no_grad()
    def _states(self, *inputs):
        return super()._states(*inputs)

    def _last(self, states, where=None):
        states = torch.stack([x if where is None else x[where] for x in states], -2)  # (…, N, d)
        return states[..., -1, :] + self.network(states)

    def train(self, mode=True):
        """As nn.Module's, but that the backbone stays in eval mode."""
        super().train(mode)
        self.dropout.eval()
        self.blocks.eval()
        return self


def apply_read(model, width=WIDTH, cell="gru", zero_start=True):
    """`model`, a RobertaClassifier or a GPT2, frozen and with READ beside it: another object, with the same layers.

    width       of the RNN's state; the paper tries 128 and 256
    cell        gru, lstm, rnn; or untied, the paper's ablation: a GRU for each layer, without recurrency
    zero_start  whether U starts at zero, the frozen model

    Nothing merges: no weights of the plain model compute the same.
    Raises ValueError, with the model unchanged, for a width, cell or model that does not fit.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"r = {width!r}: expected a whole number of 1 or more")
    if cell not in CELLS:
        raise ValueError(f"cell '{cell}': expected one of {' '.join(CELLS)}")
    if isinstance(model, ReadClassifier | ReadGPT2):
        raise ValueError("the model is already adapted: apply_read takes a model once")
    if not isinstance(model, RobertaClassifier | GPT2):
        raise ValueError(f"a {type(model).__name__}: expected a RobertaClassifier or a GPT2")
    kind = ReadClassifier if isinstance(model, RobertaClassifier) else ReadGPT2
    blocks = getattr(model, "roberta", model).blocks
    last = blocks[-1].d  # gives the states their width and device
    sizes = (last.out_features, width, "gru" if cell == "untied" else cell, zero_start, last.weight.device)
    network = UntiedLayers(len(blocks), *sizes) if cell == "untied" else LayerRNN(*sizes)
    return kind(model.requires_grad_(False), network)
