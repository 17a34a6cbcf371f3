"""baselines.py and every row of methods.py: how a method starts, what it trains, what merges, what is saved,
decoding.
"""

import argparse
import copy
import re

import pytest
import torch
from torch.nn import functional as F

import baselines
import weights
from methods import METHODS, OPTIONS, adapt, merge, methods_of, settings, store
from model import GPT2, GPT2_MEDIUM, ROBERTA_LARGE, GPT2Config, RobertaClassifier, RobertaConfig, beam_search

ENCODER = RobertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=24,
                        max_position_embeddings=20, initializer_range=0.3)  # fmt: skip
DECODER = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
IDS = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 9, 2, 1]])
LAYER = r"(weight|bias)"
TRAINED = {  # names of a body's trained parameters, as regular expressions
    "head": "nothing",
    "frozen": "nothing",
    "hut": r"blocks\.\d\.attention\.[qv]\.(M_[AB]|gamma|beta)",
    "full": ".*",
    "bitfit": ".*bias",
    "top2": r"blocks\.[12]\..*",
    "houlsby": rf"blocks\.\d\.(attention|ffn)_dropout\.adapter\.(down|up)\.{LAYER}",
    "pfeiffer": rf"blocks\.\d\.(ffn_norm\.)?adapter\.(down|up)\.{LAYER}",
    "lin": rf"blocks\.\d\.(norm|adapter\.(down|up))\.{LAYER}",
    "lora": r"blocks\.\d\.attention\.[qv]\.[AB]",
    "vera": r"blocks\.\d\.attention\.[qv]\.lambda_[db]",
    "fourierft": r"blocks\.\d\.attention\.[qv]\.c",
    "prefix": r"blocks\.\d\.attention\.(keys|values)",
}
KINDS = ("encoder", "decoder")
both_models = pytest.mark.parametrize("kind", KINDS)
every_row = pytest.mark.parametrize(("kind", "method"), [(k, m) for k in KINDS for m in methods_of(k)])


def plain(kind):
    torch.manual_seed(0)
    model = RobertaClassifier(ENCODER) if kind == "encoder" else GPT2(DECODER)
    return model.eval()


def headless(model):
    """`model`, whose head is frozen too."""
    for name, parameter in model.named_parameters():
        if name.startswith(model.HEAD):
            parameter.requires_grad_(False)
    return model


def adapted(kind, method, seed=0):
    """A small model with the method in it, as the scripts put it in; `seed` is of what is trained."""
    model = plain(kind)
    torch.manual_seed(seed)
    return headless(adapt(model, method, {"r": 4})).eval()


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# ---- start


@both_models
def test_starts_as_the_frozen_model(kind):
    """Would catch: an initialisation that moves the function before the first step, of a new row too."""
    for method in {*methods_of(kind)} - {"houlsby", "pfeiffer", "lin", "fourierft", "prefix"}:
        close(adapted(kind, method)(IDS), plain(kind)(IDS), 1e-6)


@both_models
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "lin"])
def test_adapters_start_close_to_the_frozen_model(method, kind):
    """Would catch: a bottleneck that starts far off (0.05 of a logit; logits are about 1 here), or is not
    there at all.

    Two matrices of N(0, 0.02): x √d · 0.02 · √r · 0.02, some thousandths of x.
    """
    logits = plain(kind)(IDS)
    difference = (adapted(kind, method)(IDS) - logits).abs().max()
    assert 0 < difference < 0.05 and logits.std() > 0.3


@both_models
def test_pfeiffer_norms_twice_where_the_block_ends_in_a_norm(kind):
    """Would catch: a block that is not its own when the bottleneck gives nothing. RoBERTa's own must give
    LN(h + x).
    """
    model = adapted(kind, "pfeiffer")
    for name, parameter in model.named_parameters():
        if ".adapter.up." in name:
            parameter.data.zero_()
    close(model(IDS), plain(kind)(IDS), 1e-6)


@both_models
@pytest.mark.parametrize("method", ["fourierft", "prefix"])
def test_fourierft_and_prefix_do_not_start_there(method, kind):
    """FourierFT's coefficients start N(0, 1), and a prefix draws attention from the input: both by their
    definition.
    """
    assert (adapted(kind, method)(IDS) - plain(kind)(IDS)).abs().max() > 1e-4


def test_initial_values():
    """Would catch: two factors that start at zero, where nothing learns; another spread than the papers'.
    Width 256.
    """
    wide = RobertaConfig(
        vocab_size=50, hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )

    def values(method):
        torch.manual_seed(0)
        body = adapt(RobertaClassifier(wide), method, {"r": 64}).roberta
        return {
            name.rpartition("blocks.0.")[2]: t.detach()
            for name, t in [*body.named_parameters(), *body.named_buffers()]
        }

    def uniform(t, bound):
        return t.abs().max() <= bound and t.std() == pytest.approx(bound / 3**0.5, rel=0.03)

    torch.manual_seed(0)
    assert uniform(baselines.LoRA(torch.nn.Linear(400, 25), 16).A.detach(), 1 / 20)  # by d, not by k
    lora = values("lora")
    assert uniform(lora["attention.q.A"], 1 / 16) and not lora["attention.q.B"].any()
    vera = values("vera")
    assert uniform(vera["attention.q.A"], (6 / 256) ** 0.5) and uniform(
        vera["attention.q.B"], (6 / 64) ** 0.5
    )
    assert (vera["attention.q.lambda_d"] == 0.1).all() and not vera["attention.q.lambda_b"].any()
    c = values("fourierft")["attention.v.c"]
    assert c.mean().abs() < 0.3 and c.std() == pytest.approx(1, rel=0.2)
    places = {"houlsby": "attention_dropout.", "pfeiffer": "ffn_norm.", "lin": ""}
    for method, place in places.items():
        found = values(method)
        for layer in ("down", "up"):
            assert found[f"{place}adapter.{layer}.weight"].std() == pytest.approx(0.02, rel=0.03)
            assert not found[f"{place}adapter.{layer}.bias"].any()
    assert (found["norm.weight"] == 1).all() and not found["norm.bias"].any()
    prefix = values("prefix")
    assert all(
        prefix[f"attention.{name}"].std() == pytest.approx(0.02, rel=0.03) for name in ("keys", "values")
    )


# ---- formulas


def test_updates_are_the_papers_formulas():
    """Would catch: a transposed or forgotten factor, an alpha / r that is not, in what is merged and in what
    is run.
    """
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(6, 5).double(), torch.randn(3, 6, dtype=torch.float64)
    frozen = linear(x)
    A, B = torch.randn(6, 2, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    lora = baselines.LoRA(linear, 2, alpha=10).double()
    lora.A.data, lora.B.data = A, B
    close(lora(x), frozen + 10 / 2 * x @ A @ B, 1e-12)
    assert baselines.LoRA(linear, 8).scale == 2  # alpha is 16, its authors' on RoBERTa
    vera = randomise(baselines.VeRA(linear, A, B).double())
    close(vera(x), frozen + x @ A @ torch.diag(vera.lambda_d) @ B @ torch.diag(vera.lambda_b), 1e-12)

    places = torch.tensor([3, 10, 28])
    fourier = baselines.FourierFT(linear, places).double()
    update = torch.zeros(5, 6, dtype=torch.float64)  # the inverse transform, term by term
    for place, c in zip(places.tolist(), fourier.c, strict=True):
        j, i = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
        turns = (place // 6) * j.double() / 5 + (place % 6) * i.double() / 6
        update += fourier.alpha * c.item() * torch.cos(2 * torch.pi * turns) / 30
    close(fourier(x), frozen + x @ update.T, 1e-12)
    assert fourier.alpha == 100 * 30 / 1024**2

    for layer in (lora, vera, fourier):
        close(layer.to_linear()(x), layer(x), 1e-12)


def test_adapters_are_the_papers_formulas():
    """Would catch: an adapter on the wrong side of the residual or the norm. Each block is written out
    again.
    """
    x = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    causal = torch.ones(4, 4, dtype=torch.bool).tril()

    def run(bottleneck, h, act):
        return bottleneck.up(act(bottleneck.down(h)))

    for method in ("houlsby", "pfeiffer", "lin"):
        post, pre = (randomise(adapted(kind, method)) for kind in ("encoder", "decoder"))
        post, pre = post.roberta.blocks[0], pre.blocks[0]
        b = getattr(post, "block", post)  # RoBERTa's block
        h = b.attention(x, None)
        y = b.attention_norm(
            x + h + (run(b.attention_dropout.adapter, h, F.gelu) if method == "houlsby" else 0)
        )
        h = b.d(F.gelu(b.u(y)))
        if method == "houlsby":
            expected = b.ffn_norm(y + h + run(b.ffn_dropout.adapter, h, F.gelu))
        elif method == "pfeiffer":
            norm = b.ffn_norm.norm
            expected = norm(run(b.ffn_norm.adapter, norm(h + y), F.relu) + h + y)
        else:
            y = b.ffn_norm(y + h)
            expected = y + run(post.adapter, post.norm(y), F.relu)
        close(post(x, None), expected)

        b = getattr(pre, "block", pre)  # GPT-2's block
        h = b.attention(b.attention_norm(x), causal)
        y = x + h + (run(b.attention_dropout.adapter, h, F.gelu) if method == "houlsby" else 0)
        h = b.d(F.gelu(b.u(b.ffn_norm(y)), approximate="tanh"))
        if method == "houlsby":
            expected = y + h + run(b.ffn_dropout.adapter, h, F.gelu)
        else:
            norm = b.ffn_norm if method == "pfeiffer" else pre.norm
            expected = h + y + run(pre.adapter, norm(h + y), F.relu)
        close(pre(x, causal), expected)


def test_houlsbys_adapter_reads_what_dropout_left():
    """Would catch: dropout on the adapter's own output, or an adapter that reads what was dropped."""
    place = randomise(baselines.Behind(torch.nn.Dropout(0.5), torch.nn.Identity(), 16, 4, F.gelu, None))
    torch.manual_seed(0)
    found = place(torch.ones(9, 16))
    torch.manual_seed(0)
    h = place.block(torch.ones(9, 16))
    close(found, h + place.adapter(h))


def test_prefix_is_attention_to_m_more_columns():
    """Would catch: a prefix that some positions do not see, that takes part in the causal mask, or mixes up
    heads.
    """
    attention = randomise(adapted("decoder", "prefix")).blocks[0].attention
    x, inner = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)), attention.attention
    q, k, v = (
        inner.q(x)[0],
        torch.cat([attention.keys, inner.k(x)[0]]),
        torch.cat([attention.values, inner.v(x)[0]]),
    )
    out = torch.zeros(5, 16)
    for t in range(5):
        for head in (slice(0, 8), slice(8, 16)):
            seen = slice(0, 4 + t + 1)
            weights = (k[seen, head] @ q[t, head] / 8**0.5).softmax(0)
            out[t, head] = weights @ v[seen, head]
    close(attention(x, None)[0], inner.o(out))


# ---- what is trained


@every_row
def test_gradients_reach_what_is_trained_and_nothing_else(kind, method):
    """Would catch: a frozen tensor that trains, one that no gradient reaches, a head that is not left
    alone.
    """
    model = randomise(adapted(kind, method))
    trained = {name.removeprefix("roberta.") for name, p in model.named_parameters() if p.requires_grad}
    names = {
        name.removeprefix("roberta.")
        for name, _ in model.named_parameters()
        if not name.startswith("classifier.")
    }
    assert trained <= names
    if method in TRAINED:
        assert trained == {name for name in names if re.fullmatch(TRAINED[method], name)}
    if not trained:
        return
    model(IDS).square().sum().backward()
    reached = {
        n.removeprefix("roberta.") for n, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    no_effect = {
        name for name in trained if name.endswith(".k.bias")
    }  # it adds the same to all of a row's scores
    assert reached | no_effect == trained


COUNTS = [
    ("roberta", "full", None, 354_310_144), ("gpt2", "full", None, 354_823_168),
    ("roberta", "bitfit", None, 271_360), ("gpt2", "bitfit", None, 271_360),
    ("roberta", "houlsby", 64, 6_343_680), ("roberta", "houlsby", 8, 835_968),
    ("gpt2", "houlsby", 112, 11_064_576),
    ("roberta", "pfeiffer", 64, 3_171_840), ("roberta", "pfeiffer", 16, 811_392),
    ("gpt2", "lin", 6, 368_784), ("gpt2", "lin", 224, 11_089_152),
    ("roberta", "lora", 8, 786_432), ("gpt2", "lora", 4, 393_216),
    ("roberta", "vera", 256, 61_440), ("gpt2", "vera", 1024, 98_304),
    ("roberta", "fourierft", 1000, 48_000),
    ("roberta", "top2", None, 25_192_448), ("gpt2", "top2", None, 25_192_448),
    ("roberta", "prefix", 7, 344_064), ("gpt2", "prefix", 7, 344_064),
    ("roberta", "hut", 8, 884_736), ("gpt2", "hut", 4, 491_520),
    ("roberta", "head", None, 0), ("gpt2", "frozen", None, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "r", "count"), COUNTS)
def test_trained_parameters_of_the_published_sizes(name, method, r, count):
    """Would catch: tensors of other shapes, in other places, or a head that is counted."""
    with torch.device("meta"):
        model = RobertaClassifier(ROBERTA_LARGE) if name == "roberta" else GPT2(GPT2_MEDIUM)
        headless(adapt(model, method, {"r": r}))
    trained, head = weights.trainable(model)
    assert weights.count(trained.values()) == count and head == {}


def test_default_sizes_are_those_of_the_counts():
    """Would catch: a default that is not the one whose count is known."""
    for model, method, r, _ in reversed(COUNTS):  # the first row of a method is its default
        layout = {"roberta": "encoder", "gpt2": "decoder"}[model]
        known = {m: size for name, m, size, _ in reversed(COUNTS) if name == model}
        assert METHODS[method].r.get(layout) == known[method], (model, method, r)


def test_what_a_run_takes_is_the_papers_where_it_prints_it():
    """Would catch: a rival at HUT's rate; an entry of Table 6 that another setting overrides; mini's over the
    paper's.
    """
    shared = {"batch_size": 1, "epochs": 2, "warmup": 3}
    found = settings("lora", "cola", "encoder", shared)
    assert found == {"batch_size": 4, "epochs": 20, "warmup": 3, "lr": 2e-4, "r": 8, "targets": "qv"}
    found = settings("hut", "cola", "encoder", shared)
    assert (found["lr"], found["batch_size"], found["epochs"]) == (
        1e-3,
        1,
        2,
    )  # the task's row has the last two
    found = settings("lora", "cola", "encoder", shared, mini={"epochs": 5})
    assert (found["lr"], found["batch_size"], found["epochs"]) == (METHODS["lora"].mini["encoder"], 1, 5)
    assert settings("hut", "squad", "encoder", shared, mini={})["lr"] == METHODS["hut"].mini["squad"]
    assert settings("bitfit", "cola", "encoder", shared)["lr"] == METHODS["bitfit"].lr["encoder"]
    found = settings("lora", "cola", "encoder-decoder", shared)  # Tables 6 and 7 are of RoBERTa and GPT-2
    assert (found["lr"], found["batch_size"]) == (METHODS["lora"].lr["encoder-decoder"], shared["batch_size"])


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_whole(name):
    """Would catch: a method without a rate on the bundled models, a size or a merge in a layout that it does
    not go into, an argument that no script has.
    """
    row = METHODS[name]
    assert row.source and row.lr and set(row.lr) <= set(row.mini)
    assert not row.r or set(row.r) == set(row.lr)
    assert set(row.merges) <= set(row.lr) and set(row.takes) <= set(OPTIONS)


# ---- merging, files


@every_row
def test_merged_equals_unmerged_or_says_that_it_does_not_merge(kind, method):
    """Would catch: an update that is merged otherwise than it is run, a scaled bias too; a layer left over; a
    model changed by merging.
    """
    model = randomise(adapted(kind, method))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    before = copy.deepcopy(model.state_dict())
    if kind not in METHODS[method].merges:
        with pytest.raises(ValueError, match=f"^--method {method} does not merge"):
            merge(model, method)
    else:
        merged = merge(model, method)
        assert list(merged.state_dict()) == list(plain(kind).state_dict())
        assert all(type(m) is type(n) for m, n in zip(merged.modules(), plain(kind).modules(), strict=True))
        assert method in ("head", "frozen") or (merged(IDS) - plain(kind)(IDS)).abs().max() > 1e-3
        close(merged(IDS), model(IDS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_row
def test_only_what_is_trained_is_saved_and_it_is_enough(kind, method, tmp_path):
    """Would catch: random frozen tensors (A, B, places) that are saved, or are not the same when they are
    made again.
    """
    model = randomise(adapted(kind, method), seed=1)
    args, path = argparse.Namespace(method=method, task="cola", r=4), tmp_path / "adapter.pt"
    weights.write_adapter(path, args, model, "same")
    other = adapted(kind, method, seed=99)
    weights.load_adapter(path, args, other, "same")
    assert torch.equal(other(IDS), model(IDS))
    saved = torch.load(path, weights_only=True)
    assert set(saved["adapter"]) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert saved["config"] == {"r": 4} and saved["head"] == {}


def test_layers_share_what_is_random():
    """Would catch: A and B or places that differ between layers, ignore the seed, or depend on torch's own
    generator.
    """
    for method, names in (("vera", "AB"), ("fourierft", ["places"])):
        drawn = []
        for seed, torch_seed in ((0, 0), (0, 1), (1, 0)):
            torch.manual_seed(torch_seed)
            layers = adapt(plain("decoder"), method, {"r": 4, "frozen_seed": seed}).blocks
            tensors = [
                getattr(layers[i].attention.get_submodule(t), n) for n in names for i in (0, 2) for t in "qv"
            ]
            assert all(t is tensors[0] for t in tensors[:4])
            drawn.append(tensors[0])
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "method",
    [m for m in methods_of("encoder") if "encoder" in METHODS[m].merges and "targets" in METHODS[m].takes],
)
def test_layers_of_other_shapes(method):
    """Would catch: a random part of q's shape put over u or d."""
    model = randomise(headless(adapt(plain("encoder"), method, {"r": 4, "targets": "qkvoud"})))
    adapted_layers = [m for m in model.modules() if hasattr(m, "to_linear")]
    assert len(adapted_layers) == 3 * 6
    close(merge(model, method)(IDS), model(IDS))


# ---- decoding


class Rereading:
    """A decoder for one prompt that reads every beam's text from its start, without a cache or a mask."""

    def __init__(self, model, prompt):
        self.model, self.texts = model, torch.tensor([prompt])

    def start(self):
        return self.model(self.texts)[None, :, -1]

    def step(self, tokens, parents):
        self.texts = torch.cat([self.texts[parents[0]], tokens[0, :, None]], 1)
        return self.start()


@pytest.mark.parametrize("method", methods_of("decoder"))
def test_generates_what_rereading_gives(method):
    """Would catch: a prefix that comes twice, is hidden by the mask or stored in the cache; an adapter that
    is left out.
    """
    model = randomise(adapted("decoder", method)).requires_grad_(False)
    prompts = [[3, 4, 5, 6, 7, 8], [9, 10], [11, 12, 13]]
    for prompt, greedy in zip(
        prompts, model.generate(prompts, 8, beam_size=1, no_repeat_ngram_size=0), strict=True
    ):
        text = list(prompt)
        for token in greedy:
            assert token == model(torch.tensor([text]))[0, -1].argmax()
            text.append(token)
        assert len(greedy) == 8
    wanted = [beam_search(Rereading(model, p), torch.tensor([p]), 8, 50256, 2, 3, 0.9)[0] for p in prompts]
    assert model.generate(prompts, 8, beam_size=3, no_repeat_ngram_size=2) == wanted
    if "decoder" in METHODS[method].merges:
        merged = merge(model, method)
        assert merged.generate(prompts, 8, beam_size=3, no_repeat_ngram_size=2) == wanted


@every_row
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_matter(kind, method, side):
    """Would catch: a prefix's columns on the wrong side of the mask."""
    if (kind, side) == ("encoder", "left"):
        return  # a classifier reads the first token
    model = randomise(adapted(kind, method))
    text, pad = torch.tensor([[0, 5, 6, 2]]), torch.ones(1, 3, dtype=torch.long)
    mask = [torch.ones_like(text), torch.zeros_like(pad)]
    ids, mask = (torch.cat(t if side == "right" else t[::-1], 1) for t in ([text, pad], mask))
    logits = model(ids, mask)
    logits = logits if kind == "encoder" else logits[mask.bool()][None]
    close(logits, model(text))


# ---- errors, precision


@pytest.mark.parametrize(
    ("method", "r", "targets", "message"),
    [
        ("lora", 0, "qv", "r = 0: expected a whole number"),
        ("houlsby", None, "qv", "r = None: expected a whole number"),
        ("vera", 2.0, "qv", "r = 2.0: expected a whole number"),
        ("fourierft", 257, "qv", "r = 257: a layer has 256 coefficients"),
        ("lora", 2, "qx", "target 'x' matches no layer"),
        ("lora", 2, "qq", "target 'q' is named twice"),
        ("lora", 2, "", "no target is named"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(method, r, targets, message):
    """Would catch: a size or target that is silently replaced; a model left frozen or half adapted."""
    model = plain("encoder")
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        adapt(model, method, {"r": r, "targets": targets})
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())


@every_row
def test_a_model_is_adapted_once(kind, method):
    """Would catch: an adapter in an adapter. What leaves the layers plain (full, bitfit) may be followed by
    another.
    """
    model = adapted(kind, method)
    if type(model) is type(plain(kind)) and {type(m) for m in model.modules()} == {
        type(m) for m in plain(kind).modules()
    }:
        adapt(model, method, {"r": 4})
    else:
        with pytest.raises(ValueError, match="adapted once"):
            adapt(model, method, {"r": 4})


@every_row
def test_storing_in_bfloat16_changes_what_is_frozen_alone(kind, method):
    """Would catch: a head or an adapter that is stored, and so frozen; a tensor that is no factor, whose
    rounding shows; rounded weights that are merged.
    """
    plain_one, stored = (adapt(plain(kind), method, {"r": 4}).eval() for _ in range(2))
    torch.manual_seed(1)
    for a, b in zip(plain_one.parameters(), stored.parameters(), strict=True):
        a.data += 0.1 * torch.randn(a.shape)  # biases start at 0, which no rounding changes
        b.data.copy_(a)
    store(stored, torch.bfloat16)
    trained = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in (plain_one, stored)]
    assert all(torch.equal(p, trained[1].pop(name)) for name, p in trained[0].items()) and not trained[1]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stored(IDS), plain_one(IDS))
    if kind in METHODS[method].merges and any(p.dtype == torch.bfloat16 for p in stored.parameters()):
        with pytest.raises(ValueError, match="needs the frozen weights in float32"):
            merge(stored, method)


@every_row
def test_works_under_bfloat16_autocast_and_trains_float32(kind, method):
    """Would catch: an operation whose operands autocast leaves in different dtypes; parameters cast down."""
    model = adapted(kind, method).train()
    if not weights.trainable(model)[0]:
        return
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IDS, torch.ones_like(IDS))
    logits.float().square().sum().backward()
    assert all(p.dtype == torch.float32 for p in model.parameters())
