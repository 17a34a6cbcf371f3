"""RoBERTa and GPT-2, their files on disk, and decoding by beam search.

Models are read from directories in HuggingFace's layout (`config.json`, and `model.safetensors` or
`pytorch_model.bin`), never from the network. A block's six linear layers have the names of papers on
adapters: `q k v o` (attention) and `u d` (feed-forward up, down). Shapes: B batch, L length, d width, V
vocabulary. Every attention_mask may be None.
"""

import contextlib
import json
import math
import os
import pickle
import re
import zipfile
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

# ---- RoBERTa


@dataclass
class RobertaConfig:
    """Sizes of a RoBERTa (Liu et al., 2019), named as in HuggingFace's config.json."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514  # for 512 tokens
    type_vocab_size: int = 1
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    initializer_range: float = 0.02
    model_type: str = "roberta"  # or one with another vocabulary, of RobertaModel.TYPES

    @property
    def max_length(self):
        """In tokens. Positions are numbered from pad_token_id + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1


ROBERTA_BASE = RobertaConfig()
ROBERTA_LARGE = RobertaConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
)


class RobertaEmbeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised: input_ids (B, L) -> (B, L, d)."""

    def __init__(self, config):
        super().__init__()
        self.pad, self.max_length = config.pad_token_id, config.max_length
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=self.pad)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=self.pad)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids):
        if input_ids.shape[1] > self.max_length:
            raise ValueError(f"{input_ids.shape[1]} input tokens: the position table holds {self.max_length}")
        not_pad = input_ids != self.pad
        positions = not_pad.cumsum(1) * not_pad + self.pad  # pad_token_id for padding, then from there up
        segment = self.token_type.weight[0]  # RoBERTa has only one
        return self.dropout(self.norm(self.word(input_ids) + self.position(positions) + segment))


class Attention(nn.Module):
    """Multi-head self-attention: x (B, L, d), mask (B, 1, 1 or L, S) bool or None -> (B, L, d).

    With a `past`, the L columns of x are appended to it, and x attends to all S columns that it then has.
    """

    def __init__(self, d, n_head, dropout, causal=False, inner=None, bias=True, scale=None):
        super().__init__()
        inner = inner or d  # the width of all heads together
        if inner % n_head:
            raise ValueError(f"width {inner} is not a multiple of {n_head} attention heads")
        self.n_head, self.causal, self.scale = n_head, causal, scale  # causal: what no mask means
        self.dropout = nn.Dropout(dropout)  # only holds p
        self.q, self.k, self.v = (nn.Linear(d, inner, bias) for _ in range(3))
        self.o = nn.Linear(inner, d, bias)

    def forward(self, x, mask, past=None):
        return self.attend(*self.heads(x, past), mask)

    def heads(self, x, past):
        """Queries (B, n_head, L, d / n_head), and keys and values (B, n_head, S, d / n_head)."""
        q, k, v = (split_heads(layer(x), self.n_head) for layer in (self.q, self.k, self.v))
        return q, *((k, v) if past is None else past.extend(k, v))

    def attend(self, q, k, v, mask):
        p, causal = self.dropout.p if self.training else 0.0, self.causal and mask is None
        y = F.scaled_dot_product_attention(q, k, v, mask, p, causal, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(2))


def split_heads(x, n_head):
    """(B, L, d) -> (B, n_head, L, d / n_head)"""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


class RobertaBlock(nn.Module):
    """Attention, then feed-forward. Each is added to its input, and the sum is normalised (post-norm)."""

    def __init__(self, config):
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(d, config.num_attention_heads, config.attention_probs_dropout_prob)
        self.attention_norm = nn.LayerNorm(d, eps=eps)
        self.u = nn.Linear(d, config.intermediate_size)
        self.d = nn.Linear(config.intermediate_size, d)
        self.ffn_norm = nn.LayerNorm(d, eps=eps)
        self.attention_dropout, self.ffn_dropout = (nn.Dropout(config.hidden_dropout_prob) for _ in range(2))

    def forward(self, x, mask):
        x = self.attention_norm(x + self.attention_dropout(self.attention(x, mask)))
        return self.ffn_norm(x + self.ffn_dropout(self.d(F.gelu(self.u(x)))))  # the exact (erf) GELU


class Roberta(nn.Module):
    """The encoder: input_ids (B, L) int64, attention_mask (B, L) -> last states (B, L, d)."""

    LAYOUT = "encoder"  # post-norm; a "decoder" is pre-norm and causal

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = RobertaEmbeddings(config)
        self.blocks = nn.ModuleList(RobertaBlock(config) for _ in range(config.num_hidden_layers))
        self.apply(self._initialise)

    def _initialise(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def forward(self, input_ids, attention_mask=None):
        return deque(self.outputs(input_ids, attention_mask), 1)[0]  # the last, alone in memory

    def outputs(self, input_ids, attention_mask=None):
        """Yields each block's output, (B, L, d), so that the caller can drop what it does not need."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids)
        for block in self.blocks:
            x = block(x, mask)
            yield x


# ---- files


class Pretrained(nn.Module):
    """A model that reads and writes a directory in HuggingFace's layout, by these tables:

    TYPES    the model_types that it reads -> their architecture's name, up to ARCHITECTURE
    NAMES    our module names -> theirs where they differ, with `{}` for the layer
    PREFIX   the body's name, which files have in front of its tensors or leave out: both are read
    HEAD     prefixes of tensors that may all be absent from the file: a head that is not trained yet
    DROPPED  prefixes of tensors in the file that are not read, unless the model has them: buffers, heads
    TIED     tensors in the file that must equal another of its tensors
    """

    CONFIG, ARCHITECTURE, PREFIX = None, "", ""
    TYPES, NAMES, HEAD, DROPPED, TIED = {}, {}, (), (), {}

    @property
    def body(self):
        """The model without its head, where that has a name of its own."""
        return getattr(self, self.PREFIX.rstrip("."), self)

    @classmethod
    def from_pretrained(cls, directory, **options):
        """The model of a directory, in float32 and eval mode. Raises ValueError as the functions below do."""
        directory = Path(directory)
        model = cls(read_config(directory, cls.CONFIG, *cls.TYPES), **options)
        files = [directory / name for name in WEIGHTS]
        path = next((path for path in files if path.is_file()), files[0])
        model._load(read_state(path), path)
        return model.eval()

    def save_pretrained(self, directory, dtype=torch.float32, **config):
        """Writes the weights in `dtype`, and `config.json` with the entries of `config` added."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for first in (directory / name for name in WEIGHTS[:2]):
            if first.exists():
                raise ValueError(f"{first}: would be read, not what is written: name another folder")
        ours = self.state_dict()
        state = {self._their_name(name): tensor.detach().to("cpu", dtype) for name, tensor in ours.items()}
        write_file(directory / "pytorch_model.bin", lambda file: torch.save(self._to_file(state), file))
        described = {"architectures": [self.architecture]}
        text = json.dumps(described | asdict(self.config) | self._head_config() | config, indent=2) + "\n"
        write_file(directory / "config.json", lambda file: file.write(text.encode()))

    @property
    def architecture(self):
        return self.TYPES[self.config.model_type] + self.ARCHITECTURE

    def _head_config(self):
        return {}

    def _to_file(self, state):
        """From our layout to the file's; `_from_file` is the inverse."""
        return state

    def _from_file(self, state):
        return state

    def _their_name(self, ours):
        """roberta.blocks.3.attention.q.weight -> roberta.encoder.layer.3.attention.self.query.weight"""
        module, _, kind = ours.rpartition(".")
        module, layer = without_layer(module)
        theirs = self.NAMES.get(module.removeprefix(self.PREFIX))
        return ours if theirs is None else f"{self.PREFIX}{theirs.format(layer)}.{kind}"

    def _load(self, state, path):
        """Copies a file's tensors into the model, if it has them all, of these shapes, and no others."""

        def wrong(key, problem):
            return ValueError(f"{path}: tensor '{key}' {problem}")

        bare = {key.removeprefix(self.PREFIX): key for key in state}
        if twice := state.keys() - bare.values():
            raise wrong(min(twice), f"is there twice, with and without '{self.PREFIX}'")
        state = {short: state[key] for short, key in bare.items()}
        for copied, original in self.TIED.items():
            if copied in state and original in state and not torch.equal(state.pop(copied), state[original]):
                raise wrong(copied, f"differs from '{original}', to which it should be tied")
        ours = self.state_dict()
        names = {self._their_name(name).removeprefix(self.PREFIX): name for name in ours}
        expected = self._to_file({key: ours[name].to("meta") for key, name in names.items()})
        dropped = tuple(name for name in self.DROPPED if not any(key.startswith(name) for key in expected))
        head = [key for key in expected if key.startswith(self.HEAD)]
        if not any(key in state for key in head):
            expected = {key: tensor for key, tensor in expected.items() if key not in head}
        for key, tensor in expected.items():
            if key not in state:
                raise wrong(key, f"is missing: expected shape {tuple(tensor.shape)}")
            if (shape := tuple(state[key].shape)) != tensor.shape:
                raise wrong(bare[key], f"has shape {shape}: expected {tuple(tensor.shape)}")
        for key, tensor in state.items():
            if key not in expected and not without_layer(key)[0].startswith(dropped):
                shape = tuple(tensor.shape)
                raise wrong(bare[key], f"of shape {shape} is not expected in a {self.architecture}")
        state = self._from_file({key: state[key] for key in expected})
        self.load_state_dict({names[key]: tensor for key, tensor in state.items()}, strict=False)


def without_layer(name):
    """blocks.3.u -> (blocks.{}.u, 3); a name without a layer -> (name, None)."""
    layer = re.search(r"\.(\d+)\.", name)
    return (name.replace(layer[0], ".{}.", 1), layer[1]) if layer else (name, None)


def read_json(path):
    """The JSON object of a file, or ValueError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: expected a checkpoint in HuggingFace's layout") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object: expected {{…}}")
    return found


def read_config(directory, config_class, *model_types):
    """config.json as `config_class`, which takes its fields' keys, or ValueError."""
    path = Path(directory) / "config.json"
    found = read_json(path)
    if found.get("model_type") not in model_types:
        expected = " or ".join(f"'{name}'" for name in model_types)
        raise ValueError(f"{path}: model_type is {found.get('model_type')!r}: expected {expected}")
    for key, only in SUPPORTED.items():
        if found.get(key, only) != only:
            raise ValueError(f"{path}: {key} is {found[key]!r}: expected {only!r}")
    types = config_class.__annotations__
    known = {key: found[key] for key in types if key in found}
    for key, value in known.items():
        least = int(types[key] in (int, int | None) and not key.endswith("_id"))  # 1 for sizes
        right = isinstance(value, types[key] | int) and not isinstance(value, bool)
        if not right or (isinstance(value, int | float) and not value >= least):
            kind = getattr(types[key], "__name__", types[key])
            raise ValueError(f"{path}: {key} is {value!r}: expected {kind}, {least} or more")
    return config_class(**known)


SUPPORTED = {  # keys of config.json that these models ignore: any other value is refused
    "hidden_act": "gelu",
    "activation_function": "gelu_new",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "feed_forward_proj": "relu",  # T5 v1.1 has a gated layer and an untied output layer
    "scale_decoder_outputs": True,
}

WEIGHTS = (  # the first that is there is read, as in transformers; an index names several files
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_state(path):
    """{name: tensor} of one of WEIGHTS. Raises ValueError if that is damaged or incomplete."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file: expected {WEIGHTS[0]} or {WEIGHTS[2]}, whole")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".bin":
        state = load_file(path)
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise ValueError(f"{path}: expected a state dict, names to tensors")
        return state
    names, state = read_index(path), {}
    for file in sorted(set(names.values())):
        part = read_state(path.with_name(file))
        for name in sorted(part.keys() ^ {name for name in names if names[name] == file}):
            problem = "is in" if name in part else "is missing from"
            raise ValueError(f"{path}: tensor '{name}' {problem} {file}: expected the opposite")
        state |= part
    return state


def read_index(path):
    """{tensor's name: name of the file beside this one that has it}"""
    names = read_json(path).get("weight_map")
    for file in names.values() if isinstance(names, dict) else [names]:
        if not re.fullmatch(r"[\w.-]+\.(bin|safetensors)", str(file)):
            raise ValueError(f"{path}: 'weight_map' holds {file!r}: expected names of .safetensors files")
    return names


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


def read_safetensors(path):
    """{name: tensor}, memory-mapped. Raises ValueError unless each byte of the file belongs to one tensor.

    The file is its header's length (8 bytes, little-endian), the header in JSON, {name: {dtype, shape,
    data_offsets: [begin, end]}}, and the tensors' bytes, from whose start the offsets count.
    """
    refuse_pointer(path)
    size, state, done = path.stat().st_size, {}, 0
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if start > size:
                raise ValueError(f"its header ends at byte {start:,} of {size:,}")
            header = json.loads(file.read(start - 8), object_pairs_hook=list)  # a list keeps a second `name`
        content = torch.from_file(str(path), size=size, dtype=torch.uint8)[start:]
        tensors = [(dict(about), name) for name, about in header if name != "__metadata__"]
        for about, name in sorted(tensors, key=lambda tensor: tensor[0]["data_offsets"]):
            (begin, end), shape, dtype = about["data_offsets"], about["shape"], DTYPES.get(about["dtype"])
            fits = dtype and min(shape, default=0) >= 0 and math.prod(shape) * dtype.itemsize == end - begin
            if not fits or begin != done or end > len(content) or name in state:
                expected = f"expected it once, from byte {done} on, of its shape in {' or '.join(DTYPES)}"
                raise ValueError(f"tensor '{name}' is {about} of {len(content)}: {expected}")
            part, done = content[begin:end], end
            aligned = part.clone() if part.storage_offset() % dtype.itemsize else part
            state[name] = aligned.view(dtype).view(shape)
        if done != len(content):
            raise ValueError(f"its last {len(content) - done:,} bytes belong to no tensor")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: can't be read as safetensors ({first_line(error)})") from None
    return state


def load_file(path):
    """What torch.save wrote, memory-mapped if a zip. Raises ValueError if it is damaged or holds code."""
    refuse_pointer(path)
    try:  # older files are plain pickles
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: refused: it is damaged or holds more than tensors") from None
    except Exception as error:  # damage raises a dozen classes
        raise ValueError(f"{path}: truncated or not a PyTorch file ({first_line(error)})") from None


def refuse_pointer(path):
    """Raises ValueError for the text that a git clone has in a large file's place before `git lfs pull`."""
    with Path(path).open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise ValueError(f"{path}: a git-LFS pointer, not the file: run 'git lfs pull' in its clone")


def first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def write_file(path, write):
    """Calls write(file) on a temporary file, then renames it: `path` never holds a part of a file."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    with writing(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path):
    """Makes any failure to write an OSError that names `path`, also torch.save's RuntimeErrors."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__
        if not cause:
            raise
        raise OSError(cause.errno, f"could not be written ({cause.strerror or cause})", str(path)) from None


# ---- heads


class RobertaModel(Pretrained):
    """RoBERTa for a head. Called with input_ids (B, L) and attention_mask (B, L), it returns logits."""

    CONFIG, PREFIX = RobertaConfig, "roberta."
    DROPPED = ("embeddings.position_ids", "pooler.", "lm_head.", "qa_outputs.", "classifier.")
    TYPES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
    NAMES = {
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.position": "embeddings.position_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "blocks.{}.attention.q": "encoder.layer.{}.attention.self.query",
        "blocks.{}.attention.k": "encoder.layer.{}.attention.self.key",
        "blocks.{}.attention.v": "encoder.layer.{}.attention.self.value",
        "blocks.{}.attention.o": "encoder.layer.{}.attention.output.dense",
        "blocks.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "blocks.{}.u": "encoder.layer.{}.intermediate.dense",
        "blocks.{}.d": "encoder.layer.{}.output.dense",
        "blocks.{}.ffn_norm": "encoder.layer.{}.output.LayerNorm",
    }

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.roberta = Roberta(config)


class ClassificationHead(nn.Module):
    """HuggingFace's head on the first token's state: (B, d) -> (B, num_labels)."""

    def __init__(self, config, num_labels):
        super().__init__()
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(p)
        self.out_proj = nn.Linear(config.hidden_size, num_labels)

    def forward(self, x):
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


class RobertaClassifier(RobertaModel):
    """Logits (B, num_labels), 1 for regression."""

    ARCHITECTURE = "ForSequenceClassification"
    HEAD = ("classifier.",)

    def __init__(self, config, num_labels=2, pool="first"):
        super().__init__(config)
        self.num_labels, self.pool = num_labels, pool
        self.classifier = ClassificationHead(config, num_labels)
        self.classifier.apply(self.roberta._initialise)

    def _head_config(self):
        names = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        head = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        return head | ({"problem_type": "regression"} if self.num_labels == 1 else {})

    def forward(self, input_ids, attention_mask=None):
        return self.classifier(self.pooled(self.roberta(input_ids, attention_mask), attention_mask))

    def pooled(self, x, attention_mask=None):
        """What the head reads of states (B, L, d): the first token's, or the mean of all; (B, d)."""
        if self.pool == "first":
            return x[:, 0]
        kept = x.new_ones(x.shape[:2]) if attention_mask is None else attention_mask.to(x.dtype)
        return (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)  # a product would be in bfloat16


class MaskedLMHead(nn.Module):
    """HuggingFace's head for masked words: (…, d), word embeddings (V, d) -> (…, V)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x, embedding):
        return F.linear(self.layer_norm(F.gelu(self.dense(x))), embedding, self.bias)


class RobertaMaskedLM(RobertaModel):
    """Logits (B, L, V); with `where` (B, L) bool, of these positions only, (number of them, V)."""

    ARCHITECTURE = "ForMaskedLM"
    TIED = {
        "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = MaskedLMHead(config)
        self.lm_head.apply(self.roberta._initialise)

    def forward(self, input_ids, attention_mask=None, where=None):
        states = self.roberta(input_ids, attention_mask)
        return self.lm_head(states if where is None else states[where], self.roberta.embeddings.word.weight)


class RobertaSpan(RobertaModel):
    """An answer's (start, end) logits, (B, L) each, also at positions that cannot be an answer."""

    ARCHITECTURE = "ForQuestionAnswering"
    HEAD = ("qa_outputs.",)

    def __init__(self, config):
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.qa_outputs.apply(self.roberta._initialise)

    def forward(self, input_ids, attention_mask=None):
        return self.qa_outputs(self.roberta(input_ids, attention_mask)).unbind(-1)


# ---- GPT-2


@dataclass
class GPT2Config:
    """Sizes of a GPT-2 (Radford et al., 2019), named as in HuggingFace's config.json."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the feed-forward layer; None: 4 × n_embd
    activation_function: str = "gelu_new"
    bos_token_id: int = 50256
    eos_token_id: int = 50256
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    model_type: str = "gpt2"

    @property
    def max_length(self):
        return self.n_positions


GPT2_SMALL = GPT2Config()
GPT2_MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)


class GPT2Block(nn.Module):
    """Attention, then feed-forward. Each reads its input normalised and is added to it (pre-norm)."""

    def __init__(self, config):
        super().__init__()
        d, eps = config.n_embd, config.layer_norm_epsilon
        inner = config.n_inner or 4 * d
        self.attention_norm = nn.LayerNorm(d, eps=eps)
        self.attention = Attention(d, config.n_head, config.attn_pdrop, causal=True)
        self.ffn_norm = nn.LayerNorm(d, eps=eps)
        self.u = nn.Linear(d, inner)
        self.d = nn.Linear(inner, d)
        self.attention_dropout, self.ffn_dropout = (nn.Dropout(config.resid_pdrop) for _ in range(2))

    def forward(self, x, mask, past=None):
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), mask, past))
        return x + self.ffn_dropout(self.d(F.gelu(self.u(self.ffn_norm(x)), approximate="tanh")))


class GPT2(Pretrained):
    """model(input_ids (B, L) int64, attention_mask (B, L)) -> logits (B, L, V) of each next token.

    Padding may be on either side, because positions are counted over the tokens that the mask keeps.
    With `where` (B, L) bool: logits of these positions only, (number of them, V).
    """

    CONFIG, TYPES, ARCHITECTURE, PREFIX = GPT2Config, {"gpt2": "GPT2"}, "LMHeadModel", "transformer."
    LAYOUT = "decoder"
    NAMES = {
        "word": "wte",
        "position": "wpe",
        "blocks.{}.attention_norm": "h.{}.ln_1",
        "blocks.{}.attention.q": "h.{}.attn.c_attn.q",  # q, k and v are one tensor in the file
        "blocks.{}.attention.k": "h.{}.attn.c_attn.k",
        "blocks.{}.attention.v": "h.{}.attn.c_attn.v",
        "blocks.{}.attention.o": "h.{}.attn.c_proj",
        "blocks.{}.ffn_norm": "h.{}.ln_2",
        "blocks.{}.u": "h.{}.mlp.c_fc",
        "blocks.{}.d": "h.{}.mlp.c_proj",
        "norm": "ln_f",
    }
    DROPPED = ("h.{}.attn.bias", "h.{}.attn.masked_bias")  # the causal mask
    TIED = {"lm_head.weight": "wte.weight"}

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = nn.Embedding(config.n_positions, config.n_embd)
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self._initialise()

    def _initialise(self):
        """Weights that add to the stream are scaled by 1 / sqrt(2 n_layer)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                into_stream = name.endswith((".attention.o.weight", ".d.weight"))
                scale = (2 * self.config.n_layer) ** -0.5 if into_stream else 1.0
                nn.init.normal_(parameter, std=scale * self.config.initializer_range)

    def forward(self, input_ids, attention_mask=None, where=None):
        length = input_ids.shape[1]
        if length > self.config.n_positions:
            raise ValueError(f"{length} input tokens: the position table holds {self.config.n_positions}")
        positions, mask = torch.arange(length, device=input_ids.device), None
        if attention_mask is not None:
            kept = attention_mask.bool()
            positions = (kept.cumsum(1) - 1).clamp(min=0)
            causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            mask = causal & kept[:, None, None, :]  # attention gives zeros where padding sees nothing
        return self._logits(self._last(self._states(input_ids, positions, mask), where))

    def _states(self, input_ids, positions, mask, past=None):
        """Yields the output of each block, (B, L, d), before the last norm."""
        x = self.dropout(self.word(input_ids) + self.position(positions))
        for i, block in enumerate(self.blocks):
            x = block(x, mask, past and past[i])
            yield x

    def _last(self, states, where=None):
        """The input of the last norm: (B, L, d), or (number of positions, d) with `where` (B, L) bool."""
        last = deque(states, 1)[0]  # alone in memory
        return last if where is None else last[where]

    def _logits(self, x):
        return F.linear(self.norm(x), self.word.weight)  # the word embeddings are also the output layer

    def generate(
        self,
        prompts,
        max_new_tokens,
        beam_size=10,
        length_penalty=0.9,
        no_repeat_ngram_size=4,
        ngram_scope="prompt",
        batch_size=16,
    ):
        """The most probable completion of each prompt that beam search finds; beam_size = 1 is greedy search.

        prompts               lists of token ids; `batch_size` of them, of similar length, run at a time
        length_penalty        a completion's score is its log probability / its length ** length_penalty
        no_repeat_ngram_size  n-grams of this size may not occur twice: in prompt and completion together
                              (`ngram_scope="prompt"`) or in the completion (`"completion"`); 0: no limit

        -> the completions in the order of the prompts: token ids without the prompt and the end token.
        Merged adapters are faster. Raises ValueError for prompts that cannot be decoded.
        """
        if ngram_scope not in ("prompt", "completion"):
            raise ValueError(f"ngram_scope is {ngram_scope!r}: expected 'prompt' or 'completion'")
        for i, prompt in enumerate(prompts):
            if len(prompt) + max_new_tokens > self.config.n_positions:
                total = f"{len(prompt)} tokens and {max_new_tokens} new ones"
                raise ValueError(f"prompt {i}: {total}: the position table holds {self.config.n_positions}")

        def begin(batch):
            batch = [torch.tensor(prompt) for prompt in batch]
            history = [prompt if ngram_scope == "prompt" else prompt[:0] for prompt in batch]
            history = nn.utils.rnn.pad_sequence(history, True, padding_value=-1, padding_side="left")
            decoder = GPT2Decoder(self, batch, beam_size, max_new_tokens)
            return decoder, history.to(self.word.weight.device)

        search = max_new_tokens, no_repeat_ngram_size, beam_size, length_penalty
        return decode_all(self, begin, prompts, batch_size, *search)

    def _to_file(self, state):
        """The file's weights are transposed, (d, k), with q, k and v side by side in c_attn."""
        state = {key: tensor.t().contiguous() if ".c_" in key else tensor for key, tensor in state.items()}
        for key in [key for key in state if ".c_attn.q." in key]:
            q_k_v = [state.pop(key.replace(".c_attn.q.", f".c_attn.{name}.")) for name in "qkv"]
            state[key.replace(".c_attn.q.", ".c_attn.")] = torch.cat(q_k_v, dim=-1)
        return state

    def _from_file(self, state):
        for key in [key for key in state if ".c_attn." in key]:
            for name, tensor in zip("qkv", state.pop(key).chunk(3, dim=-1), strict=True):
                state[key.replace(".c_attn.", f".c_attn.{name}.")] = tensor
        return {key: tensor.t() if ".c_" in key else tensor for key, tensor in state.items()}


# ---- decoding


def decode_all(model, begin, prompts, batch_size, max_new_tokens, ngram_size, beam_size, penalty):
    """The completions of `prompts`; begin(a batch of similar length) returns its decoder and history.

    Raises ValueError for a prompt that is empty or holds an unknown token, and for a size below 1.
    """
    sizes = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "beam_size": beam_size}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")
    V, end = model.config.vocab_size, model.config.eos_token_id
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        if wrong := [token for token in prompt if not 0 <= token < V]:
            raise ValueError(f"prompt {i} holds token {wrong[0]}: the vocabulary has {V}")
    completions = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(prompts), batch_size):
            chosen = by_length[start : start + batch_size]
            decoder, history = begin([prompts[i] for i in chosen])
            found = beam_search(decoder, history, max_new_tokens, end, ngram_size, beam_size, penalty)
            for i, completion in zip(chosen, found, strict=True):
                completions[i] = completion
    model.train(training)
    return completions


class Past:
    """The keys and values of one attention layer, in columns that never move."""

    def __init__(self, columns):
        self.columns, self.length = columns, 0

    def extend(self, k, v):
        """Appends columns (B, n_head, L, d / n_head) and returns all columns so far."""
        start, self.length = self.length, self.length + k.shape[2]
        if not start:  # in the dtype of the arithmetic
            shape = (*k.shape[:2], self.columns, k.shape[3])
            self.k, self.v = k.new_empty(shape), k.new_empty(shape)
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]

    def keep(self, rows):
        self.k, self.v = self.k[rows], self.v[rows]


class GPT2Decoder:
    """Runs a GPT-2 for the searches below, on B prompts with K beams each, as every decoder does:

    start()                the prompts' next-token logits, (B, 1, V): one beam each
    step(tokens, parents)  appends tokens (B, K) to beams `parents` (B, K) and returns their logits (B, K, V)
    keep(rows)             drops all other prompts

    The cache holds the prompt once. Each step appends the columns of its K tokens, and `visible` (B, K, S)
    says which columns belong to each beam. So reordering beams leaves the keys and values, about a thousand
    times as large, in place.
    """

    def __init__(self, model, prompts, beam_size, max_new_tokens):
        self.model = model
        device = model.word.weight.device
        self.lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        # padding on the right needs no mask: no token sees what comes after it
        self.prompts = nn.utils.rnn.pad_sequence(prompts, True).to(device)
        columns = self.prompts.shape[1] + (max_new_tokens - 1) * beam_size
        self.past = [Past(columns) for _ in model.blocks]

    def start(self):
        columns = torch.arange(self.prompts.shape[1], device=self.prompts.device)
        self.visible = (columns < self.lengths)[:, None]  # (B, 1, P)
        states = self.model._states(self.prompts, columns, None, self.past)
        last = torch.arange(len(self.lengths), device=columns.device), self.lengths[:, 0] - 1
        return self._logits(self.model._last(states, last)[:, None])

    def step(self, tokens, parents):
        self.visible = extend_visible(self.visible, parents)
        states = self.model._states(tokens, self.lengths, self.visible[:, None], self.past)
        self.lengths = self.lengths + 1
        return self._logits(self.model._last(states))

    def _logits(self, x):
        """The model's logits, by slices of the vocabulary: a third faster than one product on a CPU."""
        x = self.model.norm(x)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round a logit of −60 to a quarter
            return torch.cat([F.linear(x, words) for words in self.model.word.weight.split(4096)], -1)

    def keep(self, rows):
        self.lengths, self.visible = self.lengths[rows], self.visible[rows]
        for past in self.past:
            past.keep(rows)


def extend_visible(visible, parents):
    """(B, ., S) -> (B, K, S + K): each beam sees what its parent saw, and its own new column."""
    B, K = parents.shape
    own = torch.eye(K, dtype=torch.bool, device=parents.device).expand(B, K, K)
    return torch.cat([torch.take_along_dim(visible, parents[..., None], 1), own], 2)


def beam_search(decoder, history, max_new_tokens, end_token, no_repeat_ngram_size, beam_size, length_penalty):
    """The best completion of each prompt that K = `beam_size` beams find: B lists of token ids.

    history (B, P) holds the tokens whose n-grams may not be repeated, padded with -1. Each step takes the 2 K
    most probable continuations of a prompt's K beams. Those that end, among the first K, are finished with
    the score log probability / length ** length_penalty, where the length includes the end token. The first K
    that do not end are the next beams. A prompt is done when its best beam, scored at the present length, is
    no better than the K-th best finished completion, as in transformers.generate with early_stopping=False.
    If every continuation is banned before one has ended, the completion is empty.
    """
    (B, P), K, device = history.shape, beam_size, history.device
    completions = [[] for _ in range(B)]
    rows = list(range(B))  # the prompts that are not done: the rows of the tensors below
    history = history[:, None]  # (B, 1, P), then (B, K, P + n)
    beams = torch.zeros(B, 1, device=device)  # log probabilities, (B, 1), then (B, K)
    finished = torch.full((B, K), -torch.inf, device=device)  # the K best scores
    logits = decoder.start()
    for n in range(1, max_new_tokens + 1):
        logp = logits.float().log_softmax(-1)
        ban_repeats(logp, history, no_repeat_ngram_size)
        logp, tokens = logp.topk(min(2 * K, logp.shape[-1]))  # per beam, (B, K, 2 K)
        logp, i = (beams[..., None] + logp).flatten(1).topk(tokens.shape[-1])  # per prompt, (B, 2 K)
        parents, tokens = i // tokens.shape[-1], tokens.flatten(1).gather(1, i)
        ends = (tokens == end_token) | (n == max_new_tokens)

        scores = (logp / n**length_penalty).masked_fill(~ends, -torch.inf)[:, :K]
        best, i = scores.max(1, keepdim=True)
        better = best > finished[:, :1]
        ended = torch.take_along_dim(history, parents.gather(1, i)[..., None], 1)[:, 0, P:]
        ended = torch.cat([ended, tokens.gather(1, i)], 1)  # (B, n)
        finished = torch.cat([finished, scores], 1).topk(K).values

        beams, i = logp.masked_fill(ends, -torch.inf).topk(min(K, logp.shape[1]))
        parents, tokens = parents.gather(1, i), tokens.gather(1, i)
        history = torch.cat([torch.take_along_dim(history, parents[..., None], 1), tokens[..., None]], 2)
        undone = beams[:, :1] / n**length_penalty > finished[:, -1:]

        known = torch.cat([better, undone, ended], 1).tolist()  # a step's only wait for a GPU
        for row, (is_better, _, *completion) in zip(rows, known, strict=True):
            if is_better:
                completions[row] = completion[:-1] if completion[-1] == end_token else completion
        going = [i for i, (_, more, *_) in enumerate(known) if more]
        if not going:
            break
        if len(going) < len(rows):
            rows, kept = [rows[i] for i in going], torch.tensor(going, device=device)
            beams, finished, history, parents, tokens = (
                t[kept] for t in (beams, finished, history, parents, tokens)
            )
            decoder.keep(kept)
        logits = decoder.step(tokens, parents)
    return completions


def ban_repeats(scores, history, size):
    """Sets scores (B, K, V) to -inf, in place, where an n-gram of the history (B, K, T) would be repeated."""
    T = history.shape[2]
    if not 0 < size <= T:
        return
    ngrams = history.unfold(2, size, 1)  # (B, K, T - size + 1, size)
    recent = history[:, :, None, T - size + 1 :]  # the last size - 1 tokens
    begun = (ngrams[..., :-1] == recent).all(-1) & (ngrams[..., -1] >= 0)
    limits = torch.where(begun, -torch.inf, torch.inf)
    scores.scatter_reduce_(2, ngrams[..., -1].clamp(min=0), limits, "amin")
