"""T5 compared with transformers (tests/reference/t5/): states, logits, decoding; its files; its methods."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import T5_3B, T5_LARGE, T5_SMALL, with_t5_states
from torch.nn import functional as F

from hut import apply_hut, merge_hut
from methods import METHODS, adapt, merge
from model import read_config
from read.t5 import T5, T5_BASE, T5Config, buckets

REFERENCE = Path(__file__).parent / "reference" / "t5"
EXPECTED = torch.load(REFERENCE / "expected.pt", weights_only=True)
STATE = torch.load(REFERENCE / "pytorch_model.bin", weights_only=True)
GENERATED = json.loads((REFERENCE / "generated.json").read_text())
IDS, MASK, LABELS = (EXPECTED[key] for key in ("input_ids", "attention_mask", "labels"))
SOURCES = GENERATED["sources"]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def model():
    return T5.from_pretrained(REFERENCE).requires_grad_(False)


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes another state dict beside a copy of config.json, and returns the directory."""

    def write(state):
        shutil.copy(REFERENCE / "config.json", tmp_path / "config.json")
        torch.save(state, tmp_path / "pytorch_model.bin")
        return tmp_path

    return write


# ---- forward


def test_logits_states_weights_and_loss_are_transformers(model):
    """Would catch: a wrong norm, bucket, bias, scale, mask or order; padding that is seen; a wrong shift."""
    logits, states = with_t5_states(model, IDS, MASK, model.shifted(LABELS))
    close(logits, EXPECTED["logits"])
    close(F.cross_entropy(logits.flatten(0, 1), LABELS.flatten()), EXPECTED["loss"])
    close(torch.stack(states.cross), EXPECTED["cross_attentions"])
    for side, ours in (("encoder", states.encoder), ("decoder", states.decoder)):
        theirs = EXPECTED[f"{side}_hidden_states"]
        assert len(ours) == len(theirs) - 1
        close(torch.stack(ours[:-1]), theirs[1:-1])
        # transformers' last state is after the last norm
        close(getattr(model, side).norm(ours[-1]), theirs[-1])


def test_padding_does_not_matter(model):
    """Would catch: a row that depends on the padding of its batch; NaN where all keys are masked."""
    n = int(MASK[1].sum())
    alone = model(IDS[1:2, :n], None, model.shifted(LABELS[1:2]))
    close(alone[0], EXPECTED["logits"][1])
    assert model(IDS, torch.zeros_like(MASK), model.shifted(LABELS)).isfinite().all()


def test_buckets_are_the_papers():
    """Would catch: a wrong direction, half or logarithm. Buckets hold one distance first, then ever more."""
    distance = torch.tensor([-1000, -128, -127, -16, -15, -9, -8, -7, -1, 0, 1, 7, 8, 11, 12, 127, 1000])
    two_sided = [15, 15, 15, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 24, 25, 31, 31]
    assert buckets(distance, True, 32, 128).tolist() == two_sided
    assert buckets(distance, False, 32, 128).tolist() == [
        31,
        31,
        31,
        16,
        15,
        9,
        8,
        7,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]


def test_dropout_is_everywhere_and_only_in_training(model):
    """Would catch: a model that comes in training mode, or has lost one of its kinds of dropout."""
    inputs = IDS, MASK, model.shifted(LABELS)
    assert not model.training and torch.equal(model(*inputs), model(*inputs))
    model.train()
    places = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)]
    assert len(places) == 2 * 2 + 2 * 4 + 3 * 6
    for place in ("encoder.dropout", "decoder.last_dropout", "encoder.blocks.1.attention.dropout",
                  "decoder.blocks.2.cross.dropout", "decoder.blocks.0.cross_dropout",
                  "encoder.blocks.0.inner_dropout", "encoder.blocks.0.attention_dropout",
                  "decoder.blocks.1.ffn_dropout"):  # fmt: skip
        for name in places:
            model.get_submodule(name).p = 0.0
        close(model(*inputs), model(*inputs))
        model.get_submodule(place).p = 0.5
        assert not torch.allclose(model(*inputs), model(*inputs)), place


def test_initial_values_and_the_start_token():
    """Would catch: attention that is saturated at the start, as its scores are not scaled; padding taken for
    the start token, where a configuration has another.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "d_model": 128, "d_kv": 16, "d_ff": 512, "num_layers": 1, "num_heads": 8}
    model = T5(T5Config(**sizes, decoder_start_token_id=3))
    attention, spread = model.encoder.blocks[0].attention, {"q": (128 * 16) ** -0.5, "k": 128**-0.5}
    for letter, std in spread.items():
        assert attention.get_submodule(letter).weight.std().item() == pytest.approx(std, rel=0.03)
    assert model.shifted(torch.tensor([[5, 6, 1]])).tolist() == [[3, 5, 6]]


def test_published_sizes():
    """Would catch: a wrong width, depth or tie. The READ paper also counts the tied output layer."""
    for config, tied, counted in (
        (T5_SMALL, 60_506_624, 76_956_160),
        (T5_BASE, 222_903_552, 247_577_856),
        (T5_LARGE, 737_668_096, 770_567_168),
        (T5_3B, 2_851_598_336, 2_884_497_408),
    ):
        with torch.device("meta"):
            assert sum(p.numel() for p in T5(config).parameters()) == tied
        assert tied + config.vocab_size * config.d_model == counted


# ---- decoding


@pytest.mark.parametrize("decoding", GENERATED["decodings"], ids=lambda decoding: decoding["name"])
def test_generated_tokens_are_transformers(model, decoding):
    """Would catch: a wrong score, stop, ban or cache; sources that see each other or lose their order."""
    settings = {key: decoding[key] for key in ("beam_size", "length_penalty", "no_repeat_ngram_size")}
    for batch_size in (1, 3, 8):
        assert (
            model.generate(SOURCES, GENERATED["new_tokens"], batch_size=batch_size, **settings)
            == decoding["outputs"]
        )


def test_the_cache_is_the_full_pass(model):
    """Would catch: positions or columns mixed up in the cache, which repetitive text may not show."""
    model.decoder.position.weight.mul_(3)
    for source in SOURCES[:4]:
        found, text = model.generate([source], 12, no_repeat_ngram_size=1)[0], [0]
        for token in found:
            logits = model(torch.tensor([source]), None, torch.tensor([text]))[0, -1]
            logits[text] = -torch.inf
            assert logits.argmax() == token
            text.append(token)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1], []], 5), "prompt 1 is empty"),
        (([[1, 61]], 5), "prompt 0 holds token 61: the vocabulary has 61"),
        (([[1]], 5, 0), "beam_size is 0"),
        (([[1]], 0), "max_new_tokens is 0"),
    ],
)
def test_what_cannot_be_decoded(model, arguments, message):
    """Would catch: an index error from the depths."""
    with pytest.raises(ValueError, match=message):
        model.generate(*arguments)
    with pytest.raises(ValueError, match="decoder_input_ids is missing"):
        model(IDS)
    assert model.generate([], 5) == []


# ---- files


def test_save_and_load(model, tmp_path):
    """Would catch: a name map that is not one to one, a repeated tensor that is written again."""
    model.save_pretrained(tmp_path)
    saved = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    left_out = re.compile(r".*embed_tokens.*|lm_head.*|.*EncDecAttention\.relative.*")
    theirs = {key: tensor for key, tensor in STATE.items() if not left_out.match(key)}
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(saved[key], theirs[key]) for key in theirs)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["T5ForConditionalGeneration"] and config["num_decoder_layers"] == 3
    again = T5.from_pretrained(tmp_path).requires_grad_(False)
    assert torch.equal(again(IDS, MASK, LABELS), model(IDS, MASK, LABELS))


WI, BIAS = "encoder.block.1.layer.1.DenseReluDense.wi.weight", "relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({WI: None}, rf"'{re.escape(WI)}' is missing: expected shape \(40, 24\)"),
        ({WI: torch.ones(24, 40)}, rf"'{re.escape(WI)}' has shape \(24, 40\): expected \(40, 24\)"),
        (
            {"decoder.block.3.layer.0.layer_norm.weight": torch.ones(24)},
            "of shape .24,. is not expected in a T5",
        ),
        ({f"encoder.block.1.layer.0.SelfAttention.{BIAS}": torch.ones(12, 3)}, "is not expected"),
        ({"lm_head.weight": torch.ones(61, 24)}, "'lm_head.weight' differs from 'shared.weight'"),
        ({"decoder.embed_tokens.weight": torch.ones(61, 24)}, "'decoder.embed_tokens.weight' differs"),
    ],
)
def test_every_name_and_shape_is_checked(checkpoint, change, message):
    """Would catch: a tensor left at its random start, or a head of its own that is silently dropped."""
    state = {key: tensor for key, tensor in (STATE | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        T5.from_pretrained(checkpoint(state))


@pytest.mark.parametrize("change", [{"feed_forward_proj": "gated-gelu"}, {"scale_decoder_outputs": False}])
def test_what_the_configuration_may_not_ask_for(tmp_path, change):
    """Would catch: a T5 v1.1 loaded as a v1.0."""
    config = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"config.json: {next(iter(change))} is"):
        read_config(tmp_path, T5Config, "t5")


# ---- methods

TRAINED = {  # names of the trained parameters, as regular expressions, and their number in T5-base
    "full": (".*", 222_903_552),
    "bitfit": (r".*norm\.weight", 47_616),
    "lora": (r".*\.(attention|cross)\.[qv]\.[AB]", 72 * 2 * 768 * 32),
    "houlsby": (r".*\.ffn_dropout\.adapter\.(down|up)\.(weight|bias)", 2_379_264),
    "prompt": (r"prompt\.vectors", 15_360),
}


@pytest.mark.parametrize("method", TRAINED)
def test_what_a_method_trains(method):
    """Would catch: a side, a block or a place left out; BitFit that trains nothing, as T5 has no bias."""
    pattern, count = TRAINED[method]
    with torch.device("meta"):
        model = adapt(T5(T5_BASE), method, {"r": METHODS[method].r.get("encoder-decoder")})
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == count
    assert all(re.fullmatch(pattern, name) for name in trained)
    blocks = {re.match(r"(en|de)coder\.blocks\.\d+", name)[0] for name in trained if ".blocks." in name}
    assert len(blocks) == (0 if method == "prompt" else 24)


@pytest.mark.parametrize("method", TRAINED)
def test_methods_start_decode_and_merge(model, method):
    """Would catch: a wrong start, a cached step without the method, a merged model that differs, a copy that
    is trained with its original.
    """
    plain = copy.deepcopy(model)
    torch.manual_seed(0)
    adapt(model, method, {"r": 3})
    inputs = IDS, MASK, model.shifted(LABELS)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        started = model(*inputs)
        near = torch.allclose(started, plain(*inputs), atol=0.1 if method == "houlsby" else 1e-5)
        assert near == (method != "prompt")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
        assert not torch.allclose(model(*inputs), plain(*inputs), atol=1e-3)
        assert torch.equal(copied(*inputs), started)
    found = model.generate(SOURCES, 6, no_repeat_ngram_size=1, batch_size=3)
    for source, tokens in zip(SOURCES, found, strict=True):
        logits = model(torch.tensor([source]), None, torch.tensor([[0, *tokens[:-1]]]))[0]
        for i, token in enumerate(tokens):
            logits[i, [0, *tokens[:i]]] = -torch.inf
            assert logits[i].argmax() == token
    if "encoder-decoder" in METHODS[method].merges:
        close(merge(model, method)(*inputs), model(*inputs))
    else:
        with pytest.raises(ValueError, match="does not merge"):
            merge(model, method)


def test_hut_in_layers_without_bias(model):
    """Would catch: a HUT layer that needs a bias, in a model that has none."""
    inputs = IDS, MASK, model.shifted(LABELS)
    before = model(*inputs)
    apply_hut(model, r=2, targets="qkvoud")
    close(model(*inputs), before)
    assert sum(name.endswith("M_A") for name, _ in model.named_parameters()) == 2 * 6 + 3 * 10
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    close(merge_hut(model)(*inputs), model(*inputs))


def test_methods_of_the_other_models_are_refused(model):
    """Would catch: a prefix in front of keys that have relative positions, an adapter built for one stack."""
    with pytest.raises(ValueError, match="method 'prefix': expected one of hut read full"):
        adapt(model, "prefix", {"r": 7})
