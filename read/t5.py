"""T5 v1.0 in one file: configuration, relative positions, attention, block, the model on both sides, decoding.

An encoder-decoder (Raffel et al., 2020) without biases. Blocks read normalised copies of what they add to
(pre-norm), by the root mean square alone; attention scores are not scaled, and get a learned bias by the
distance between two tokens, the same in all blocks of a side; the feed-forward layer is a ReLU; the output
layer is the word embeddings, scaled. As in model.py, the linear layers of a block are `q k v o u d`, and a
block of the decoder has a second attention, `cross`. Shapes: B batch, m tokens of the source, n of the
target, L either, d width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from model import Past, Pretrained, beam_search, greedy_search


@dataclass
class T5Config:
    """Sizes of a T5 (Raffel et al., 2020); the fields have the names that HuggingFace's config.json gives them."""

    vocab_size: int = 32128
    d_model: int = 768
    d_kv: int = 64  # of one head; heads × d_kv need not be d_model
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


T5_SMALL = T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8)
T5_BASE = T5Config()
T5_LARGE = T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16)
T5_3B = T5Config(d_model=1024, d_ff=16384, num_layers=24, num_heads=32, d_kv=128)

# Of a score that is not to count. Finite, so that where nothing may be seen attention is no not-a-number;
# beside any score that counts its exponential is exactly zero.
MASKED = -1e9


def buckets(distance, bidirectional, number, farthest):
    """Which bias belongs to each distance (…) int64, key's position − query's: bucket numbers (…), from 0 to `number` − 1.

    Half of the buckets hold one distance each, the others grow with its logarithm up to `farthest`; beyond it
    all share the last. A bidirectional side has half of all for keys behind the query; a decoder sees none of
    these.
    """
    behind = torch.zeros_like(distance)
    if bidirectional:
        number //= 2
        behind = (distance > 0) * number
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = number // 2
    growth = torch.log(distance.clamp(min=1) / exact) / math.log(farthest / exact) * (number - exact)
    return behind + torch.where(distance < exact, distance, (exact + growth.long()).clamp(max=number - 1))


class T5Attention(nn.Module):
    """Multi-head self-attention: x (B, L, d), bias (B or 1, n_head, L or 1, S), added to the scores -> (B, L, d).

    With a `past`, x sees S columns: those that are in it, and then its own, which are added to it.
    """

    def __init__(self, config):
        super().__init__()
        d, inner = config.d_model, config.num_heads * config.d_kv
        self.n_head = config.num_heads
        self.dropout = nn.Dropout(config.dropout_rate)
        self.q, self.k, self.v = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, d, bias=False)

    def heads(self, t):
        return t.unflatten(-1, (self.n_head, -1)).transpose(
            1, 2
        )  # (B, L, n_head d_kv) -> (B, n_head, L, d_kv)

    def keys_values(self, x):
        return self.heads(self.k(x)), self.heads(self.v(x))

    def forward(self, x, bias, past=None):
        k, v = self.keys_values(x)
        if past is not None:
            k, v = past.extend(k, v)
        p = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(self.heads(self.q(x)), k, v, bias, dropout_p=p, scale=1.0)
        return self.o(y.transpose(1, 2).flatten(2))


class T5CrossAttention(T5Attention):
    """The decoder's attention to the encoder's output: x (B, n, d), keys and values of all m tokens of that, mask
    (B, 1, 1, m) float or None -> (B, n, d), and the weights (B, n_head, n, m), which READ needs: so they are
    written out.
    """

    def forward(self, x, keys_values, mask):
        k, v = keys_values
        scores = self.heads(self.q(x)) @ k.mT
        weights = (scores if mask is None else scores + mask).softmax(-1)
        y = self.dropout(weights) @ v.to(weights.dtype)
        return self.o(y.transpose(1, 2).flatten(2)), weights


class T5Block(nn.Module):
    """Self-attention, in the decoder cross-attention, then feed-forward: x (B, L, d) -> (B, L, d), cross weights or None.

    A block of the decoder takes the encoder's output `memory` (B, m, d), or the keys and values that its
    cross-attention has made of it before, `crossed`.
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
    """The encoder or the decoder: its blocks, the biases that they share, and the last norm."""

    def __init__(self, config, is_decoder):
        super().__init__()
        self.scheme = (
            not is_decoder,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        self.position = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.dropout, self.last_dropout = nn.Dropout(config.dropout_rate), nn.Dropout(config.dropout_rate)
        layers = config.num_decoder_layers if is_decoder and config.num_decoder_layers else config.num_layers
        self.blocks = nn.ModuleList(T5Block(config, is_decoder) for _ in range(layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def bias(self, queries, keys, visible=None):
        """Positions (L,) and (S,), and which keys may be seen, (…, L, S) bool -> what is added to each head's scores:
        (…, n_head, L, S), with 1 for … where there is no `visible`.
        """
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
        """Of each block: room for the keys and values of `columns` tokens, and those of the memory (B, m, d)."""
        crossed = [block.cross.keys_values(memory) for block in self.blocks]
        return [Past((*k.shape[:2], columns, k.shape[3]), k) for k, _ in crossed], crossed


class Source(NamedTuple):
    """What the decoder reads of an encoded batch."""

    memory: torch.Tensor  # (B, m, d), the encoder's output, behind its last norm
    mask: torch.Tensor | None  # (B, 1, 1, m): 0, or MASKED for padding
    states: list[torch.Tensor]  # each block's output, (B, m, d)
    extra: torch.Tensor | list | None = None  # READ's, which follows the batch


class States(NamedTuple):
    """What `return_states` returns: each block's output, before the last norm, and the decoder's cross-attention."""

    encoder: list[torch.Tensor]  # (B, m, d) each
    decoder: list[torch.Tensor]  # (B, n, d) each
    cross: list[torch.Tensor]  # (B, n_head, n, m) each: behind the softmax, zero on padding


class T5(Pretrained):
    """model(input_ids (B, m) int64, attention_mask (B, m) or None, decoder_input_ids (B, n)) -> logits (B, n, V).

    The source may be padded on the right, the target too: no token of it sees what comes after it.
    With `return_states=True`: (logits, States).
    """

    CONFIG, MODEL_TYPE, ARCHITECTURE = T5Config, "t5", "T5ForConditionalGeneration"
    LAYOUT = "encoder-decoder"
    NAMES = {
        "word": "shared",
        "encoder.position": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder.blocks.{}.attention_norm": "encoder.block.{}.layer.0.layer_norm",
        "encoder.blocks.{}.attention.q": "encoder.block.{}.layer.0.SelfAttention.q",
        "encoder.blocks.{}.attention.k": "encoder.block.{}.layer.0.SelfAttention.k",
        "encoder.blocks.{}.attention.v": "encoder.block.{}.layer.0.SelfAttention.v",
        "encoder.blocks.{}.attention.o": "encoder.block.{}.layer.0.SelfAttention.o",
        "encoder.blocks.{}.ffn_norm": "encoder.block.{}.layer.1.layer_norm",
        "encoder.blocks.{}.u": "encoder.block.{}.layer.1.DenseReluDense.wi",
        "encoder.blocks.{}.d": "encoder.block.{}.layer.1.DenseReluDense.wo",
        "encoder.norm": "encoder.final_layer_norm",
        "decoder.position": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "decoder.blocks.{}.attention_norm": "decoder.block.{}.layer.0.layer_norm",
        "decoder.blocks.{}.attention.q": "decoder.block.{}.layer.0.SelfAttention.q",
        "decoder.blocks.{}.attention.k": "decoder.block.{}.layer.0.SelfAttention.k",
        "decoder.blocks.{}.attention.v": "decoder.block.{}.layer.0.SelfAttention.v",
        "decoder.blocks.{}.attention.o": "decoder.block.{}.layer.0.SelfAttention.o",
        "decoder.blocks.{}.cross_norm": "decoder.block.{}.layer.1.layer_norm",
        "decoder.blocks.{}.cross.q": "decoder.block.{}.layer.1.EncDecAttention.q",
        "decoder.blocks.{}.cross.k": "decoder.block.{}.layer.1.EncDecAttention.k",
        "decoder.blocks.{}.cross.v": "decoder.block.{}.layer.1.EncDecAttention.v",
        "decoder.blocks.{}.cross.o": "decoder.block.{}.layer.1.EncDecAttention.o",
        "decoder.blocks.{}.ffn_norm": "decoder.block.{}.layer.2.layer_norm",
        "decoder.blocks.{}.u": "decoder.block.{}.layer.2.DenseReluDense.wi",
        "decoder.blocks.{}.d": "decoder.block.{}.layer.2.DenseReluDense.wo",
        "decoder.norm": "decoder.final_layer_norm",
    }
    # the published files hold this one bias of cross-attention, which nothing reads
    DROPPED = ("decoder.block.{}.layer.1.EncDecAttention.relative_attention_bias",)
    TIED = {
        f"{name}.weight": "shared.weight"
        for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    }

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder, self.decoder = T5Side(config, is_decoder=False), T5Side(config, is_decoder=True)
        self._initialise()

    @property
    def blocks(self):
        """Of both sides, for the methods that go into every block."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def _initialise(self):
        """Normal, by T5's own rule: the queries take the factor 1 / sqrt(d_kv) that the scores are not scaled by."""
        config = self.config
        d, inner = config.d_model, config.num_heads * config.d_kv
        spread = {
            "word": 1.0,
            "position": d**-0.5,
            "q": (d * config.d_kv) ** -0.5,
            "k": d**-0.5,
            "v": d**-0.5,
        }
        spread |= {"o": inner**-0.5, "u": d**-0.5, "d": config.d_ff**-0.5}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(
                    module.weight, std=config.initializer_factor * spread[name.rpartition(".")[2]]
                )

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None, return_states=False):
        if decoder_input_ids is None:
            raise ValueError(
                "decoder_input_ids is missing: expected the target, one place behind (see shifted)"
            )
        source = self.encode(input_ids, attention_mask)
        positions = torch.arange(decoder_input_ids.shape[1], device=decoder_input_ids.device)
        places = positions, positions, positions <= positions[:, None]
        states, weights = self._decode(source, decoder_input_ids, places)
        logits = self._logits(self._last(source, states, weights))
        return (logits, States(source.states, states, weights)) if return_states else logits

    def encode(self, input_ids, attention_mask=None):
        """input_ids (B, m) int64, attention_mask (B, m) or None -> Source."""
        return self.encoder(self.word(input_ids), attention_mask)

    def _decode(self, source, tokens, places, past=None, crossed=None):
        """tokens (B, n) -> the output of each block (B, n, d), and the weights of each cross-attention (B, n_head, n, m).

        places  the tokens' positions, those of all that is in their past and themselves, and what is visible of these
        past, crossed  of each block; see T5Decoder
        """
        bias, x, states, cross = self.decoder.bias(*places), self.decoder.dropout(self.word(tokens)), [], []
        for i, block in enumerate(self.decoder.blocks):
            x, weights = block(x, bias, source.memory, source.mask, past and past[i], crossed and crossed[i])
            states.append(x)
            cross.append(weights)
        return states, cross

    def _caches(self, source, columns):
        return self.decoder.caches(source.memory, columns)

    def _last(self, source, states, weights):
        """What the decoder's last norm reads, (B, n, d)."""
        return states[-1]

    def _logits(self, x):
        return F.linear(self.decoder.finish(x) * self.config.d_model**-0.5, self.word.weight)

    def shifted(self, labels):
        """labels (B, n) -> decoder_input_ids (B, n), that predict them: the start token, and all labels but the last."""
        return F.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)

    def generate(
        self, sources, max_new_tokens, beam_size=1, length_penalty=1.0, no_repeat_ngram_size=0, batch_size=64
    ):
        """The most probable output for each source, as beam search finds it; beam_size = 1 is greedy.

        sources               lists of token ids, of any lengths; `batch_size` of them, alike in length, run at a time
        length_penalty        an output's score is its log probability / (its length in tokens ** length_penalty)
        no_repeat_ngram_size  no n-gram of this size may come twice in the output; 0: all may
        -> a list of outputs in the order of the sources: token ids, without the start and the end token.
        Merge adapters into the model first, for speed. Raises ValueError for what cannot be decoded.
        """
        self._check_generate(sources, max_new_tokens, beam_size, batch_size)
        training, device, config = self.training, self.word.weight.device, self.config
        outputs = [None] * len(sources)
        by_length = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        self.eval()
        with torch.inference_mode():
            for start in range(0, len(sources), batch_size):
                chosen = by_length[start : start + batch_size]
                history = torch.full((len(chosen), 1), config.decoder_start_token_id, device=device)
                decoder = T5Decoder(self, [sources[i] for i in chosen], beam_size, max_new_tokens)
                search = (decoder, history, max_new_tokens, config.eos_token_id, no_repeat_ngram_size)
                found = (
                    greedy_search(*search)
                    if beam_size == 1
                    else beam_search(*search, beam_size, length_penalty)
                )
                for i, output in zip(chosen, found, strict=True):
                    outputs[i] = output
        self.train(training)
        return outputs

    def _check_generate(self, sources, max_new_tokens, beam_size, batch_size):
        for name, value in (
            ("max_new_tokens", max_new_tokens),
            ("beam_size", beam_size),
            ("batch_size", batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")
        for i, source in enumerate(sources):
            if not source:
                raise ValueError(f"source {i} is empty: expected one token at least")
            wrong = [token for token in source if not 0 <= token < self.config.vocab_size]
            if wrong:
                raise ValueError(
                    f"source {i} holds token {wrong[0]}: the vocabulary has {self.config.vocab_size}"
                )


class T5Decoder:
    """A T5 as model.py's searches ask for it, see GPT2Decoder there, for B sources with K beams each.

    The sources are encoded once, and so are the keys and values that cross-attention makes of them. The cache
    has the start token's column, and then K for each step; `positions` (S,) says which step each column is
    of.
    """

    def __init__(self, model, sources, beam_size, max_new_tokens):
        self.model = model
        B, device = len(sources), model.word.weight.device
        sources = [torch.tensor(source, device=device) for source in sources]
        lengths = torch.tensor([len(source) for source in sources], device=device)
        ids = nn.utils.rnn.pad_sequence(sources, True, padding_value=model.config.pad_token_id)
        kept = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        self.source = model.encode(ids, None if kept.all() else kept)
        self.past, self.crossed = model._caches(self.source, 1 + (max_new_tokens - 1) * beam_size)
        self.positions = torch.zeros(1, dtype=torch.int64, device=device)
        self.visible = torch.ones(B, 1, 1, dtype=torch.bool, device=device)

    def start(self):
        B, token = len(self.visible), self.model.config.decoder_start_token_id
        return self._logits(torch.full((B, 1), token, device=self.positions.device))

    def step(self, tokens, parents):
        B, K = tokens.shape
        itself = torch.eye(K, dtype=torch.bool, device=tokens.device).expand(B, K, K)
        self.visible = torch.cat([torch.take_along_dim(self.visible, parents[..., None], 1), itself], 2)
        self.positions = torch.cat([self.positions, (self.positions[-1:] + 1).expand(K)])
        return self._logits(tokens)

    def _logits(self, tokens):
        places = self.positions[-1:], self.positions, self.visible
        states, weights = self.model._decode(self.source, tokens, places, self.past, self.crossed)
        return self.model._logits(self.model._last(self.source, states, weights))

    def keep(self, rows):
        self.visible = self.visible[rows]
        self.crossed = [(k[rows], v[rows]) for k, v in self.crossed]
        mask, extra = (None if t is None else t[rows] for t in (self.source.mask, self.source.extra))
        self.source = Source(self.source.memory[rows], mask, [x[rows] for x in self.source.states], extra)
        for past in self.past:
            past.keep(rows)
