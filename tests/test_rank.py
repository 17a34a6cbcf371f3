"""W_new depends on M_A and M_B only through their means, which AdamW moves in the same way for every r."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hut import HUTLinear

EPS = 1e-8


def trained(r, optimizer, clip=None, steps=200):
    """Merged weight and bias after `steps` of regression in float64, and at the start, as flat vectors."""
    generator = torch.Generator().manual_seed(0)
    d, k = 16, 12
    x, y = (torch.randn(64, width, generator=generator, dtype=torch.float64) for width in (d, k))
    linear = nn.Linear(d, k).double()
    linear.weight.data = torch.randn(k, d, generator=generator, dtype=torch.float64) / d**0.5
    linear.bias.data.zero_()
    layer = HUTLinear.from_linear(linear, r).double()
    optimizer = optimizer(layer, r)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(layer(x), y).backward()
        if clip:
            nn.utils.clip_grad_norm_(layer.parameters(), clip)
        optimizer.step()
    modules = layer.to_linear(), linear  # both are float64
    return [torch.cat([module.weight.flatten(), module.bias]).detach() for module in modules]


def adamw(layer, r):
    """dL/dM_A = (1/r) dL/dm_A in every column, so Adam's step is the same if epsilon is scaled alike."""
    factors = {"params": [layer.M_A, layer.M_B], "eps": EPS / r}
    return torch.optim.AdamW(
        [factors, {"params": [layer.gamma, layer.beta]}], lr=5e-3, weight_decay=0.01, eps=EPS
    )


def adamw_of_one_epsilon(layer, r):
    return torch.optim.AdamW(layer.parameters(), lr=5e-3, weight_decay=0.01, eps=EPS)


def sgd(layer, r):
    return torch.optim.SGD(layer.parameters(), lr=0.1)


def difference(r, *how):
    (one, start), (other, _) = trained(1, *how), trained(r, *how)
    assert (one - start).abs().max() > 0.1  # it has moved
    return (one - other).abs().max().item()


@pytest.mark.parametrize("r", [2, 8, 64])
def test_under_adamw_r_is_epsilon_and_nothing_else(r):
    """Would catch: a forward that treats columns of M_A differently; a claim about r that does not hold."""
    assert difference(r, adamw) < 1e-12
    assert 1e-12 < difference(r, adamw_of_one_epsilon) < 1e-4


@pytest.mark.parametrize("how", [(adamw, 0.1), (sgd,)], ids=["clipping", "SGD"])
def test_with_clipping_or_sgd_r_is_a_learning_rate(how):
    """The claim fails with clipping, which sees sqrt(r) times the norm; and with SGD, which moves the means
    of M_A and M_B by lr / r, but gamma and beta by lr.
    """
    assert difference(8, *how) > 1e-3
