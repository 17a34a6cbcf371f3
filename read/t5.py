"""T5 v1.0 (Raffel et al., 2020): an encoder-decoder whose linear and normalisation layers have no biases.

Each layer reads its input normalised by the root mean square alone and is added to it (pre-norm). Attention
scores are not scaled. They get a learned bias for the distance between the two tokens, which all blocks of
the encoder share, and all blocks of the decoder. The feed-forward layer uses ReLU. The output layer is the
word embeddings, scaled. Names are as in model.py; a decoder block has a second attention, `cross`. Shapes: B
batch, m source tokens, n target tokens, L either, d width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from model import Attention, Past, Pretrained, decode_all, extend_visible, split_heads


@dataclass
class T5Config:
    """Named as in HuggingFace's config.json."""

    vocab_size: int = 32128
    d_model: int = 768
    d_kv: int = 64  # the width of a head; num_heads × d_kv may differ from d_model
    d_ff: int = 3072
    num_layers: int = 12
    num_decoder_layers: int | None = None  # None: num_layers
    num_heads: int = 12
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    model_type: str = "t5"


T5_BASE = T5Config()

# The attention score of a masked key. Its softmax is exactly 0 beside any other score, and because it is
# finite, a query all of whose keys are masked gives no NaN.
MASKED = -1e9


def buckets(distance, bidirectional, number, farthest):
    """The bucket, from 0 to `number` − 1, of each distance (…) int64: the key's position − the query's.

    The first half of the buckets hold one distance each. The others grow logarithmically up to `farthest`,
    and the last one also holds all distances beyond. If `bidirectional`, half of all buckets are for keys
    after the query; otherwise no such keys are seen.
    """
    if bidirectional:
        number //= 2
        offset, distance = (distance > 0) * number, distance.abs()
    else:
        offset, distance = 0, (-distance).clamp(min=0)
    exact = number // 2
    growth = torch.log(distance.clamp(min=1) / exact) / math.log(farthest / exact) * (number - exact)
    return offset + torch.where(distance < exact, distance, (exact + growth.long()).clamp(max=number - 1))


class T5Attention(Attention):
    """Attention with a bias of the scores, (B or 1, n_head, L or 1, S), in place of the mask."""

    def __init__(self, config):
        sizes = {"inner": config.num_heads * config.d_kv, "bias": False, "scale": 1.0}
        super().__init__(config.d_model, config.num_heads, config.dropout_rate, **sizes)

    def keys_values(self, x):
        return [split_heads(layer(x), self.n_head) for layer in (self.k, self.v)]  # (B, n_head, L, d_kv)


class T5CrossAttention(T5Attention):
    """The decoder's attention to the encoder's output, written out because READ needs the weights.

    x (B, n, d), the source's keys and values, (B, n_head, m, d_kv) each, and mask (B, 1, 1, m) float or None
    -> (B, n, d), and the weights (B, n_head, n, m).
    """

    def forward(self, x, keys_values, mask):
        k, v = keys_values
        scores = split_heads(self.q(x), self.n_head) @ k.mT
        weights = (scores if mask is None else scores + mask).softmax(-1)
        y = self.dropout(weights) @ v.to(weights.dtype)
        return self.o(y.transpose(1, 2).flatten(2)), weights


class T5Block(nn.Module):
    """x (B, L, d) -> (B, L, d), and the weights of cross-attention or None.

    A decoder block takes the encoder's output `memory` (B, m, d), or its keys and values, `crossed`.
    """

    def __init__(self, config, is_decoder):
        super().__init__()
        d, eps, p = config.d_model, config.layer_norm_epsilon, config.dropout_rate
        self.attention_norm = nn.RMSNorm(d, eps=eps)
        self.attention = T5Attention(config)
        self.attention_dropout = nn.Dropout(p)
        if is_decoder:
            self.cross_norm = nn.RMSNorm(d, eps=eps)
            self.cross = T5CrossAttention(config)
            self.cross_dropout = nn.Dropout(p)
        self.ffn_norm = nn.RMSNorm(d, eps=eps)
        self.u = nn.Linear(d, config.d_ff, bias=False)
        self.d = nn.Linear(config.d_ff, d, bias=False)
        self.inner_dropout, self.ffn_dropout = nn.Dropout(p), nn.Dropout(p)

    def forward(self, x, bias, memory=None, mask=None, past=None, crossed=None):
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), bias, past))
        weights = None
        if memory is not None or crossed is not None:
            keys_values = self.cross.keys_values(memory) if crossed is None else crossed
            y, weights = self.cross(self.cross_norm(x), keys_values, mask)
            x = x + self.cross_dropout(y)
        return x + self.ffn_dropout(self.d(self.inner_dropout(F.relu(self.u(self.ffn_norm(x)))))), weights


class T5Side(nn.Module):
    """The encoder or the decoder: its blocks, the position bias that they share, and the last norm."""

    def __init__(self, config, is_decoder):
        super().__init__()
        number = config.relative_attention_num_buckets
        self.scheme = not is_decoder, number, config.relative_attention_max_distance  # arguments of `buckets`
        self.position = nn.Embedding(number, config.num_heads)
        self.dropout, self.last_dropout = nn.Dropout(config.dropout_rate), nn.Dropout(config.dropout_rate)
        layers = (is_decoder and config.num_decoder_layers) or config.num_layers
        self.blocks = nn.ModuleList(T5Block(config, is_decoder) for _ in range(layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def bias(self, queries, keys, visible=None):
        """Positions (L,) and (S,), `visible` (…, L, S) bool or None -> (… or 1, n_head, L, S)."""
        bias = self.position(buckets(keys - queries[:, None], *self.scheme)).permute(2, 0, 1)[None]
        return bias if visible is None else bias.masked_fill(~visible[..., None, :, :], MASKED)

    def forward(self, x, attention_mask=None):
        """The encoder: x (B, m, d) embedded, attention_mask (B, m) or None -> Source."""
        positions = torch.arange(x.shape[1], device=x.device)
        bias, mask = self.bias(positions, positions), None
        if attention_mask is not None:
            mask = torch.where(attention_mask.bool(), 0.0, MASKED)[:, None, None]  # (B, 1, 1, m)
            bias = bias + mask
        x, states = self.dropout(x), []
        for block in self.blocks:
            x, _ = block(x, bias)
            states.append(x)
        return Source(self.finish(x), mask, states)

    def finish(self, x):
        return self.last_dropout(self.norm(x))

    def caches(self, memory, columns):
        """An empty Past of `columns` columns, and the keys and values of memory (B, m, d), for each block."""
        crossed = [block.cross.keys_values(memory) for block in self.blocks]
        return [Past(columns) for _ in crossed], crossed


class Source(NamedTuple):
    """An encoded batch, as the decoder reads it."""

    memory: torch.Tensor  # (B, m, d), the encoder's output after its last norm
    mask: torch.Tensor | None  # (B, 1, 1, m): 0, or MASKED for padding
    states: list[torch.Tensor]  # each block's output, (B, m, d)
    extra: torch.Tensor | None = None  # the adapter's own, with a row for each source


class T5(Pretrained):
    """model(input_ids (B, m), attention_mask (B, m) or None, decoder_input_ids (B, n)) -> logits (B, n, V).

    Both sides may be padded on the right. The target needs no mask: no token sees what comes after it.
    """

    CONFIG, TYPES, ARCHITECTURE = T5Config, {"t5": "T5"}, "ForConditionalGeneration"
    LAYOUT = "encoder-decoder"
    NAMES = {
        "word": "shared",
        "encoder.position": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder.blocks.{}.attention_norm": "encoder.block.{}.layer.0.layer_norm",
        "encoder.blocks.{}.ffn_norm": "encoder.block.{}.layer.1.layer_norm",
        "encoder.blocks.{}.u": "encoder.block.{}.layer.1.DenseReluDense.wi",
        "encoder.blocks.{}.d": "encoder.block.{}.layer.1.DenseReluDense.wo",
        "encoder.norm": "encoder.final_layer_norm",
        "decoder.position": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.blocks.{}.attention_norm": "decoder.block.{}.layer.0.layer_norm",
        "decoder.blocks.{}.cross_norm": "decoder.block.{}.layer.1.layer_norm",
        "decoder.blocks.{}.ffn_norm": "decoder.block.{}.layer.2.layer_norm",
        "decoder.blocks.{}.u": "decoder.block.{}.layer.2.DenseReluDense.wi",
        "decoder.blocks.{}.d": "decoder.block.{}.layer.2.DenseReluDense.wo",
        "decoder.norm": "decoder.final_layer_norm",
    } | {
        f"{ours}.{linear}": f"{theirs}.{linear}"
        for ours, theirs in (
            ("encoder.blocks.{}.attention", "encoder.block.{}.layer.0.SelfAttention"),
            ("decoder.blocks.{}.attention", "decoder.block.{}.layer.0.SelfAttention"),
            ("decoder.blocks.{}.cross", "decoder.block.{}.layer.1.EncDecAttention"),
        )
        for linear in "qkvo"
    }
    # the published files hold a bias for cross-attention that no implementation reads
    DROPPED = ("decoder.block.{}.layer.1.EncDecAttention.relative_attention_bias",)
    TIED = dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    )

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder, self.decoder = T5Side(config, is_decoder=False), T5Side(config, is_decoder=True)
        self._initialise()

    @property
    def blocks(self):
        """Both sides', for methods that adapt every block."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def _initialise(self):
        """T5's start: the queries' weights are scaled by 1 / sqrt(d_kv), because the scores are not."""
        config = self.config
        spread = {"word": 1.0, "q": (config.d_model * config.d_kv) ** -0.5, "d": config.d_ff**-0.5}
        spread["o"] = (config.num_heads * config.d_kv) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = spread.get(name.rpartition(".")[2], config.d_model**-0.5)
                nn.init.normal_(module.weight, std=config.initializer_factor * std)

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None):
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids is missing: expected shifted(labels)")
        source = self.encode(input_ids, attention_mask)
        positions = torch.arange(decoder_input_ids.shape[1], device=decoder_input_ids.device)
        places = positions, positions, positions <= positions[:, None]
        return self._logits(self._last(source, *self._decode(source, decoder_input_ids, places)))

    def encode(self, input_ids, attention_mask=None):
        return self.encoder(self.word(input_ids), attention_mask)

    def _decode(self, source, tokens, places, past=None, crossed=None):
        """tokens (B, n) -> each block's output, (B, n, d), and weights of cross-attention, (B, n_head, n, m).

        places         the arguments of `T5Side.bias`
        past, crossed  what `_caches` returns, in decoding
        """
        bias, x = self.decoder.bias(*places), self.decoder.dropout(self.word(tokens))
        states, cross = [], []
        for i, block in enumerate(self.decoder.blocks):
            x, weights = block(x, bias, source.memory, source.mask, past and past[i], crossed and crossed[i])
            states.append(x)
            cross.append(weights)
        return states, cross

    def _caches(self, source, columns):
        return self.decoder.caches(source.memory, columns)

    def _last(self, source, states, weights):
        """The input of the decoder's last norm, (B, n, d)."""
        return states[-1]

    def _logits(self, x):
        return F.linear(self.decoder.finish(x) * self.config.d_model**-0.5, self.word.weight)

    def shifted(self, labels):
        """Labels (B, n) -> decoder_input_ids (B, n): the start token, then all labels but the last."""
        return F.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)

    def generate(
        self, sources, max_new_tokens, beam_size=1, length_penalty=1.0, no_repeat_ngram_size=0, batch_size=64
    ):
        """As GPT2.generate, without `ngram_scope`: n-grams are counted in the output and its start token."""

        def begin(batch):
            decoder = T5Decoder(self, batch, beam_size, max_new_tokens)
            return decoder, decoder.first

        search = max_new_tokens, no_repeat_ngram_size, beam_size, length_penalty
        return decode_all(self, begin, sources, batch_size, *search)


class T5Decoder:
    """Runs a T5 for the searches, on B sources with K beams each, as GPT2Decoder runs a GPT-2.

    The cache has a column for the start token, then K columns a step; `positions` (S,) holds each one's step.
    """

    def __init__(self, model, sources, beam_size, max_new_tokens):
        self.model = model
        B, device = len(sources), model.word.weight.device
        lengths = torch.tensor([[len(source)] for source in sources])
        sources = [torch.tensor(source) for source in sources]
        ids = nn.utils.rnn.pad_sequence(sources, True, padding_value=model.config.pad_token_id)
        kept = torch.arange(ids.shape[1]) < lengths
        self.source = model.encode(ids.to(device), None if kept.all() else kept.to(device))
        self.past, self.crossed = model._caches(self.source, 1 + (max_new_tokens - 1) * beam_size)
        self.source = self.source._replace(memory=None, states=[])  # the caches hold what was needed of them
        self.first = torch.full((B, 1), model.config.decoder_start_token_id, device=device)
        self.positions = torch.zeros(1, dtype=torch.int64, device=device)
        self.visible = torch.ones(B, 1, 1, dtype=torch.bool, device=device)

    def start(self):
        return self._logits(self.first)

    def step(self, tokens, parents):
        self.visible = extend_visible(self.visible, parents)
        self.positions = torch.cat([self.positions, (self.positions[-1:] + 1).expand(tokens.shape[1])])
        return self._logits(tokens)

    def _logits(self, tokens):
        places = self.positions[-1:], self.positions, self.visible
        states, weights = self.model._decode(self.source, tokens, places, self.past, self.crossed)
        return self.model._logits(self.model._last(self.source, states, weights))

    def keep(self, rows):
        self.visible = self.visible[rows]
        self.crossed = [(k[rows], v[rows]) for k, v in self.crossed]
        mask, extra = (None if t is None else t[rows] for t in (self.source.mask, self.source.extra))
        self.source = self.source._replace(mask=mask, extra=extra)
        for past in self.past:
            past.keep(rows)
