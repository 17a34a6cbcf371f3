"""hut.py against the paper's equations written out, and the promises of its docstrings."""

import copy
import hashlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hut import HUTLinear, apply_hut, hut_state_dict, load_hut, merge_hut
from model import ROBERTA_LARGE, RobertaClassifier, RobertaConfig

TINY = RobertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=24, max_position_embeddings=20)  # fmt: skip
IDS = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 9, 2, 1]])


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def digest(model):
    """Of the base model's tensors: the names and bytes that are not an adapter's."""
    state = {
        n: t
        for n, t in model.state_dict().items()
        if n.rpartition(".")[2] not in ("M_A", "M_B", "gamma", "beta")
    }
    return hashlib.sha256(
        b"".join(n.encode() + t.numpy().tobytes() for n, t in sorted(state.items()))
    ).hexdigest()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_forward_and_gradients_are_equations_8_and_9(r, bias):
    """Would catch: any wrong step from eq. 8 to `forward`, in the outputs or in a gradient."""
    torch.manual_seed(r)
    d, k = 7, 5
    linear = nn.Linear(d, k, bias=bias).double()
    layer = HUTLinear.from_linear(linear, r).double()
    randomise(layer)
    x = torch.randn(4, 6, d, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 6, k, dtype=torch.float64)  # of a loss that sees every output differently
    learned = [layer.M_A, layer.M_B, layer.gamma, layer.beta, x]

    W_0, b = linear.weight.detach().T, linear.bias.detach() if bias else 0
    ones_A, ones_B = torch.ones(r, k, dtype=torch.float64), torch.ones(d, r, dtype=torch.float64)
    W_new = (layer.M_A @ ones_A) / r * W_0 * (ones_B @ layer.M_B) / r
    expected = layer.gamma * (x @ W_new) + b + layer.beta

    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
    ours = torch.autograd.grad((layer(x) * weights).sum(), learned)
    theirs = torch.autograd.grad((expected * weights).sum(), learned)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-10)


def test_backward_keeps_no_dense_product():
    """Would catch: a forward that builds a d×k weight for autograd, besides W_0 itself, (k, d)."""
    layer = HUTLinear.from_linear(nn.Linear(40, 30), r=2)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 40, requires_grad=True))
    dense = [t for t in kept if t.numel() >= 40 * 30 and t.data_ptr() != layer.weight.data_ptr()]
    assert dense == []
    assert layer.weight.grad is None


def test_starts_as_the_frozen_model():
    """Would catch: an initialisation that is not the identity."""
    base = RobertaClassifier(TINY).eval()
    adapted = apply_hut(copy.deepcopy(base), targets="qkvoud")
    torch.testing.assert_close(adapted(IDS), base(IDS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merged_equals_unmerged(dtype):
    """Would catch: a factor missing in eq. 10, a bias scaled by gamma, merging in W_0's low precision."""
    torch.manual_seed(0)
    layer = HUTLinear.from_linear(nn.Linear(32, 24).to(dtype), r=4)
    randomise(layer)
    linear = layer.to_linear()
    assert type(linear) is nn.Linear and linear.weight.dtype == linear.bias.dtype == dtype
    x = torch.randn(5, 32, dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(linear(x), layer(x), rtol=tolerance, atol=tolerance)
    scale = layer.gamma * layer.M_B.mean(0)
    exact = scale[:, None].double() * layer.M_A.mean(1).double() * layer.weight.double()
    torch.testing.assert_close(
        linear.weight, exact.to(dtype), rtol=1e-6 if dtype != torch.bfloat16 else 2**-8, atol=1e-7
    )


def test_training_and_merging_leave_the_base_bit_for_bit():
    """Would catch: any write to W_0 or b. Dropping the adapters is therefore exact unmerging."""
    torch.manual_seed(0)
    model = RobertaClassifier(TINY)
    before = digest(model)
    apply_hut(model, r=2, targets="qv")
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(3):
        F.cross_entropy(model(IDS), torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    merged = merge_hut(model)
    assert digest(model) == before
    torch.testing.assert_close(merged.eval()(IDS), model.eval()(IDS), rtol=0, atol=1e-5)
    assert not any(isinstance(module, HUTLinear) for module in merged.modules())


def test_only_the_adapters_train():
    """Would catch: a base tensor left trainable, or an adapter tensor that no gradient reaches."""
    model = apply_hut(RobertaClassifier(TINY), r=2, targets="qvu")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(hut_state_dict(model)) and len(trained) == 4 * 3 * TINY.num_hidden_layers
    model(IDS).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained


def test_parameter_count_is_the_papers():
    """Table 1 of the paper has 0.9M: 48 × (8 × 2,048 + 2,048). Would catch: other shapes or layers."""
    with torch.device("meta"):
        model = apply_hut(RobertaClassifier(ROBERTA_LARGE), r=8, targets="qv")
    assert sum(t.numel() for t in hut_state_dict(model).values()) == 884_736


def test_loading_a_then_b_then_a_gives_a_bit_for_bit():
    """Would catch: a load that leaves something of the adapter before."""
    model = apply_hut(RobertaClassifier(TINY).eval(), r=2)
    states = []
    for seed in (1, 2):
        randomise(model, seed)
        states.append((hut_state_dict(model), model(IDS)))
    for state, expected in (states[0], states[1], states[0]):
        load_hut(model, state)
        assert torch.equal(model(IDS), expected)


def test_load_is_strict_both_ways_and_writes_nothing_on_an_error():
    """Would catch: missing, extra or misshapen tensors that are passed over."""
    model = apply_hut(RobertaClassifier(TINY), r=2)
    good = hut_state_dict(model)
    name = next(iter(good))
    changed = {key: value + 1 for key, value in good.items()}
    for bad, message in (
        ({k: v for k, v in changed.items() if k != name}, "is missing"),
        (changed | {"other.M_A": torch.ones(1)}, "not expected"),
        (changed | {name: torch.ones(3, 3)}, r"shape \(3, 3\): expected"),
    ):
        with pytest.raises(ValueError, match=message):
            load_hut(model, bad)
        assert all(torch.equal(value, good[key]) for key, value in hut_state_dict(model).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "qx"}, "'x' matches no layer"),
        ({"targets": "qvq"}, "'q' is named twice"),
        ({"targets": ""}, "no target"),
        ({"targets": ["attention"]}, "expected a plain nn.Linear"),
        ({"r": 0}, "r = 0"),
        ({"r": -1}, "r = -1"),
        ({"r": 2.0}, "r = 2.0"),
    ],
)
def test_bad_arguments_raise_and_change_nothing(arguments, message):
    """Would catch: a target that is silently skipped, or a model left half adapted and frozen."""
    model = RobertaClassifier(TINY)
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        apply_hut(model, **arguments)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_that_torch_would_pass_by_in_eval_is_refused():
    """Would catch: HUT that trains in nn.TransformerEncoder and is scored as the frozen model."""
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="linear1 is skipped in eval"):
        apply_hut(model, 2, ["linear1"])
    plain = model(x)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        apply_hut(model, 2, ["linear1"]).linear1.gamma.data.fill_(2)
        assert (model(x) - plain).abs().max() > 0.01
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_adapting_twice_and_merging_nothing_raise():
    """Would catch: a transformation of a transformation, which to_linear would merge only in part."""
    model = apply_hut(RobertaClassifier(TINY), targets="q")
    with pytest.raises(ValueError, match=r"a HUTLinear: expected a plain .*, not adapted yet"):
        apply_hut(model, targets="vq")
    with pytest.raises(ValueError, match="no HUT layer"):
        merge_hut(RobertaClassifier(TINY))


def test_works_on_any_model_by_module_name_endings():
    """Would catch: endings that match inside a name ("query" must not match "subquery")."""
    inner = nn.ModuleDict({"query": nn.Linear(3, 3)})
    model = nn.ModuleDict({"query": nn.Linear(3, 3), "subquery": nn.Linear(3, 3), "a": inner})
    apply_hut(model, r=1, targets=["query"])
    assert [name for name, m in model.named_modules() if isinstance(m, HUTLinear)] == ["query", "a.query"]


def test_adapter_stays_float32_under_bfloat16_autocast():
    """Would catch: adapters cast down, whose small updates bfloat16 would round away."""
    layer = HUTLinear.from_linear(nn.Linear(8, 8), r=2)
    with torch.autocast("cpu", torch.bfloat16):
        h = layer(torch.randn(2, 8))
    assert h.dtype == torch.bfloat16
    h.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in layer.parameters() if p.requires_grad)


def test_half_precision_weights_without_autocast():
    """Would catch: float32 adapters that meet a bfloat16 weight in one matrix product."""
    layer = HUTLinear.from_linear(nn.Linear(8, 8).bfloat16(), r=2)
    assert layer(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16
    assert layer.M_A.dtype == torch.float32


def test_a_conv1d_is_refused_with_the_way_out():
    """Would catch: transformers' GPT-2 as a dead end. Its Conv1D keeps the weight transposed: a merged
    nn.Linear in its place would be saved the wrong way round.
    """
    conv = type("Conv1D", (nn.Module,), {})()
    with pytest.raises(ValueError, match=r"c_attn is a Conv1D: .*; model\.GPT2 reads its files"):
        apply_hut(nn.ModuleDict({"c_attn": conv}), 2, ["c_attn"])


@pytest.mark.parametrize("bias", [True, False])
def test_merging_says_that_a_bias_is_added(bias):
    """Would catch: a Llama that loses beta when it is saved, because its configuration has no biases."""
    model = apply_hut(nn.ModuleDict({"q_proj": nn.Linear(3, 4, bias=bias)}), 2, ["q_proj"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        merged = merge_hut(model)
    assert [str(one.message) for one in said] == [] if bias else "attention_bias" in str(said[0].message)
    assert merged["q_proj"].bias is not None


def test_a_subclass_of_linear_is_refused():
    """Would catch: MultiheadAttention's out_proj, whose forward is never called: an adapter that trains
    nothing.
    """
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="out_proj is a NonDynamicallyQuantizableLinear: expected a plain"):
        apply_hut(model, 2, ["out_proj"])
