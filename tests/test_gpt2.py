"""GPT-2 and decoding compared with transformers (tests/reference/) and a slow search; files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import with_states
from torch.nn import functional as F

from hut import apply_hut, merge_hut
from model import GPT2, GPT2_MEDIUM, GPT2Config, ban_repeats, beam_search, read_config

REFERENCE = Path(__file__).parent / "reference" / "gpt2"
EXPECTED = torch.load(REFERENCE / "expected.pt", weights_only=True)
STATE = torch.load(REFERENCE / "pytorch_model.bin", weights_only=True)
GENERATED = json.loads((REFERENCE / "generated.json").read_text())
IDS, PROMPTS = EXPECTED["input_ids"], GENERATED["prompts"]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def model():
    return GPT2.from_pretrained(REFERENCE).requires_grad_(False)


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes another state dict beside a copy of config.json, and returns the directory."""

    def write(state, **options):
        shutil.copy(REFERENCE / "config.json", tmp_path / "config.json")
        torch.save(state, tmp_path / "pytorch_model.bin", **options)
        return tmp_path

    return write


# ---- forward


def test_logits_states_and_loss_are_transformers(model):
    """Would catch: a wrong norm, GELU, scale, mask, position, split of c_attn or transposition."""
    logits, states = with_states(model, IDS)
    close(logits, EXPECTED["logits"])
    close(torch.stack(states[:-1]), EXPECTED["hidden_states"][1:-1])
    # transformers' last state is after the last norm
    close(model.norm(states[-1]), EXPECTED["hidden_states"][-1])
    close(F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()), EXPECTED["loss"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_does_not_matter(model, side):
    """Would catch: positions that count padding, attention that sees it, NaN where all keys are masked."""
    kept = torch.arange(17) < torch.tensor([[17], [9], [1]])
    kept = kept.flip(1) if side == "left" else kept
    ids = torch.full_like(IDS, 3)
    for i in range(3):
        ids[i, kept[i]] = IDS[i, : kept[i].sum()]
    logits = model(ids, kept.long())
    assert logits.isfinite().all()
    for i in range(3):
        close(logits[i, kept[i]], EXPECTED["logits"][i, : kept[i].sum()])
    close(model(ids, kept.long(), where=kept), logits[kept])


def test_dropout_is_in_four_places_and_only_in_training(model):
    """Would catch: a model that comes in training mode, or has lost one of its kinds of dropout."""
    assert not model.training
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    block = "blocks.1"
    for place in (
        "dropout",
        f"{block}.attention.dropout",
        f"{block}.attention_dropout",
        f"{block}.ffn_dropout",
    ):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        close(model(IDS), model(IDS))
        model.get_submodule(place).p = 0.5
        assert not torch.allclose(model(IDS), model(IDS)), place


def test_initial_values():
    """Would catch: a stream that grows with depth. What adds to it starts smaller by sqrt(2 n_layer)."""
    torch.manual_seed(0)
    block = GPT2(GPT2Config(vocab_size=9, n_embd=128, n_layer=2, n_head=2)).blocks[0]
    for layer, scale in ((block.attention.q, 1), (block.u, 1), (block.attention.o, 0.5), (block.d, 0.5)):
        assert layer.weight.std().item() == pytest.approx(0.02 * scale, rel=0.03) and not layer.bias.any()


def test_published_sizes():
    """Would catch: a wrong width, depth or tie. The counts are those of the published checkpoints."""
    large, xl = (GPT2Config(n_embd=d, n_layer=n, n_head=d // 64) for d, n in ((1280, 36), (1600, 48)))
    sizes = {124439808: GPT2Config(), 354823168: GPT2_MEDIUM, 774030080: large, 1557611200: xl}
    for count, config in sizes.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in GPT2(config).parameters()) == count


def test_a_target_is_a_layer_of_its_own(model):
    """Would catch: q, k and v still fused, or layers that apply_hut does not find by their names."""
    assert model.blocks[1].attention.q.weight.shape == (24, 24)
    adapted = apply_hut(model, r=2, targets="qkvoud")
    close(adapted(IDS), EXPECTED["logits"])
    assert sum(name.endswith("M_A") for name, _ in adapted.named_parameters()) == 2 * 6
    assert merge_hut(adapted).generate(PROMPTS, 5) == GPT2.from_pretrained(REFERENCE).generate(PROMPTS, 5)


# ---- decoding


def slow_beam_search(model, prompt, new_tokens, beam_size, length_penalty, ngram, scope):
    """The definition in plain Python: one prompt -> its best completion. No step uses a cache."""
    end, beams, finished = model.config.eos_token_id, [(0.0, [])], []
    for n in range(1, new_tokens + 1):
        candidates = []
        for score, text in beams:
            logp = model(torch.tensor([prompt + text]))[0, -1].log_softmax(-1).tolist()
            seen = prompt + text if scope == "prompt" else text
            seen_ngrams = (
                {tuple(seen[i : i + ngram]) for i in range(len(seen) - ngram + 1)} if ngram else set()
            )
            for token, value in enumerate(logp):
                if tuple([*seen, token][-ngram:]) not in seen_ngrams or len(seen) < ngram - 1:
                    candidates.append((score + value, [*text, token]))
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size]
        for score, text in candidates[:beam_size]:
            if text[-1] == end or n == new_tokens:
                finished.append((score / n**length_penalty, text))
        finished = sorted(finished, reverse=True)[:beam_size]
        beams = [(score, text) for score, text in candidates if text[-1] != end][:beam_size]
        if len(finished) == beam_size and beams[0][0] / n**length_penalty <= finished[-1][0]:
            break
    best = finished[0][1]
    return best[:-1] if best[-1] == end else best


@pytest.mark.parametrize("decoding", GENERATED["decodings"], ids=lambda decoding: decoding["name"])
def test_generated_tokens_are_transformers(model, decoding):
    """Would catch: a wrong score, stop, ban or cache; prompts that see each other or lose their order."""
    wanted = decoding["completions"]
    settings = {key: decoding[key] for key in ("beam_size", "length_penalty", "no_repeat_ngram_size")}
    for batch_size in (1, 3, 8):
        assert model.generate(PROMPTS, GENERATED["new_tokens"], batch_size=batch_size, **settings) == wanted


@pytest.mark.parametrize("scope", ["prompt", "completion"])
@pytest.mark.parametrize("ngram", [0, 1, 2, 4])
def test_ngram_ban_and_cache_against_the_definition(model, scope, ngram):
    """Would catch: a cache that differs from reading every text again; a ban with a wrong scope."""
    prompts = [[13, 24, 13, 52, 13, 24], [52, 52], [13], PROMPTS[0]]  # they hold what the model likes to say
    found = model.generate(prompts, 12, beam_size=4, no_repeat_ngram_size=ngram, ngram_scope=scope)
    assert found == [slow_beam_search(model, prompt, 12, 4, 0.9, ngram, scope) for prompt in prompts]


def test_ngram_ban_on_prompts_of_unequal_length():
    """Would catch: the -1 that pads shorter prompts banned as if it were the vocabulary's last token."""
    history = torch.tensor([[[-1, -1, 2]], [[2, 1, 2]]])
    for size, banned in ((0, []), (1, [(0, 2), (1, 1), (1, 2)]), (2, [(1, 1)]), (3, []), (4, [])):
        scores = torch.zeros(2, 1, 4)
        ban_repeats(scores, history, size)
        assert [(row, token) for row, _, token in scores.isneginf().nonzero().tolist()] == banned


def test_scope_of_the_ngram_ban(model, monkeypatch):
    """Would catch: the two scopes being one."""
    monkeypatch.setattr(model.config, "eos_token_id", -1)  # no token ends
    found = {
        scope: model.generate([[13, 24, 13, 52]], 12, 4, 1.0, 1, scope)[0]
        for scope in ("prompt", "completion")
    }
    assert not {13, 24, 52} & set(found["prompt"]) and len(set(found["prompt"])) == 12
    assert {13, 24, 52} & set(found["completion"]) and len(set(found["completion"])) == 12


def test_search_knows_a_model_by_three_functions():
    """Would catch: a search that reaches into GPT-2. This decoder's best text is 1 1 2, then the end, 0."""

    class Table:
        # row: a token, column: the next token
        likes = torch.tensor([[9.0, 0, 0, 0], [0, 9, 8, 0], [9, 0, 0, 0], [0, 9, 0, 0]])

        def start(self):
            return self.likes[torch.tensor([[3], [3]])]

        def step(self, tokens, parents):
            assert tokens.shape == parents.shape
            return self.likes[tokens]

        def keep(self, rows):
            pass

    nothing = torch.empty(2, 0, dtype=torch.int64)
    assert beam_search(Table(), nothing, 9, 0, 2, beam_size=2, length_penalty=2.0) == [[1, 1, 2]] * 2


def test_more_beams_than_words(model):
    """Would catch: a crash where 2 × beam_size exceeds the vocabulary, or every continuation is banned."""
    config = GPT2Config(vocab_size=5, n_positions=20, n_embd=8, n_layer=1, n_head=2, eos_token_id=0)
    tiny = GPT2(config)
    for ngram in (0, 1):
        found = tiny.generate([[1], [2, 3]], 8, beam_size=7, no_repeat_ngram_size=ngram)
        assert all(len(set(text)) == len(text) or not ngram for text in found)
    assert tiny.generate([[0, 1, 2, 3, 4]], 8, no_repeat_ngram_size=1) == [[]]
    assert tiny.training  # generate decodes without dropout, and leaves the mode as it was


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1], []], 5), "prompt 1 is empty"),
        (([[1] * 40], 9), "prompt 0: 40 tokens and 9 new ones: the position table holds 48"),
        (([[1, 61]], 5), "prompt 0 holds token 61: the vocabulary has 61"),
        (([[1, -1]], 5), "prompt 0 holds token -1"),
        (([[1]], 5, 0), "beam_size is 0"),
        (([[1]], 0), "max_new_tokens is 0"),
        (([[1]], 5, 2, 1.0, 4, "text"), "ngram_scope is 'text'"),
    ],
)
def test_what_cannot_be_decoded(model, arguments, message):
    """Would catch: an index error from the depths, or a silent cut."""
    with pytest.raises(ValueError, match=message):
        model.generate(*arguments)


def test_no_prompts(model):
    assert model.generate([], 5) == []


# ---- files


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_layouts_of_published_files(checkpoint, prefix, zipped, head):
    """Would catch: refusing a prefix, a tied head, the mask's buffers or a plain pickle."""
    state = {prefix + key: tensor for key, tensor in STATE.items()}
    state |= {"lm_head.weight": STATE["wte.weight"]} if head else {}
    model = GPT2.from_pretrained(checkpoint(state, _use_new_zipfile_serialization=zipped))
    close(model(IDS), EXPECTED["logits"])


def test_save_and_load(model, tmp_path):
    """Would catch: a name map that is not one to one; weights written and read in different layouts."""
    model.save_pretrained(tmp_path)
    saved = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    theirs = {
        f"transformer.{key}": tensor
        for key, tensor in STATE.items()
        if not key.endswith((".attn.bias", ".masked_bias"))
    }
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(saved[key], theirs[key]) for key in theirs)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["n_inner"] == 40
    assert torch.equal(GPT2.from_pretrained(tmp_path)(IDS), model(IDS))


FUSED, UP = "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {FUSED: None},
            r"'(transformer\.)?h\.0\.attn\.c_attn\.weight' is missing: expected shape \(24, 72\)",
        ),
        (
            {FUSED: torch.ones(72, 24)},
            r"'{}h\.0\.attn\.c_attn\.weight' has shape \(72, 24\): expected \(24, 72\)",
        ),
        (
            {"h.0.attn.c_attn.bias": torch.ones(71)},
            r"'{}h\.0\.attn\.c_attn\.bias' has shape \(71,\): expected \(72,\)",
        ),
        ({UP: torch.ones(40, 24)}, r"'{}h\.1\.mlp\.c_fc\.weight' has shape \(40, 24\): expected \(24, 40\)"),
        ({"h.2.ln_1.bias": torch.ones(24)}, r"'{}h\.2\.ln_1\.bias' of shape \(24,\) is not expected"),
        ({"h.0.attn.c_attn.q.weight": torch.ones(24, 24)}, r"c_attn\.q\.weight' of shape .* is not expected"),
    ],
)
def test_every_name_and_shape_is_checked(checkpoint, prefix, change, message):
    """Would catch: a tensor left at its random start, a transposed one, an error with our own names."""
    state = {prefix + key: tensor for key, tensor in (STATE | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message.replace("{}", prefix.replace(".", r"\."))) as error:
        GPT2.from_pretrained(checkpoint(state))
    assert "pytorch_model.bin" in str(error.value)


def test_a_head_that_is_not_the_embeddings_is_refused(checkpoint):
    """Would catch: dropping an output layer that is not tied, which would change every logit."""
    with pytest.raises(ValueError, match=r"'lm_head\.weight' differs from 'wte\.weight'"):
        GPT2.from_pretrained(checkpoint(STATE | {"lm_head.weight": STATE["wte.weight"] + 1}))


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
        {"scale_attn_weights": False},
        {"model_type": "roberta"},
    ],
)
def test_what_the_configuration_may_not_ask_for(tmp_path, change):
    """Would catch: loading weights into another function than they were trained in."""
    config = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"config.json: {next(iter(change))} is"):
        read_config(tmp_path, GPT2Config, "gpt2")
