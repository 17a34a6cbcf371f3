"""experiments/flops.py: the paper's two figures, and counts that can be done by hand."""

import pytest

from experiments.flops import adapters, break_even, building, per_token, training_step
from model import RobertaConfig


def test_papers_table_2():
    """Would catch: another formula than the paper's, whose printed figures are 0.20 and 0.86 GFLOPs."""
    assert 48 * building("hut", 1024, 1024, 8) == 202_113_024
    assert 48 * building("lora", 1024, 1024, 8) == 855_638_016
    assert (
        adapters("houlsby", 1024, 64, 24, 128) == 1_610_612_736
    )  # printed 1.61; the other rows follow otherwise


@pytest.mark.parametrize("method", ["hut", "lora"])
def test_break_even_is_where_the_two_forms_cost_the_same(method):
    """Would catch: a threshold for another pair of counts."""
    d, k, r = 1024, 1024, 8
    tokens = break_even(method, d, k, r)
    assert tokens == {"hut": 2048, "lora": 544}[method]
    means = r * (d + k) if method == "hut" else 0
    assert building(method, d, k, r) == tokens * per_token(method, d, k, r) + means


def test_training_step_by_hand():
    """Would catch: a step that is counted without its backward pass, its attention, or its head."""
    d, inner, layers, B, L = 16, 24, 2, 3, 5
    config = RobertaConfig(50, d, layers, 2, inner, 20)
    forward = layers * (B * L * 2 * (4 * d * d + 2 * d * inner) + 2 * B * 2 * L * L * d) + B * 2 * (
        d * d + 2 * d
    )
    assert training_step("full", None, config, B, L) == 3 * forward
    head = B * 2 * (d * d + 2 * d)
    assert (
        training_step("head", None, config, B, L) == forward + 2 * head - B * 2 * d * d
    )  # no gradient into the body
    assert forward < training_step("top2", None, config, B, L) < 3 * forward
    lora, doubled = (training_step("lora", r, config, B, L) for r in (1, 2))
    # one more column of A and row of B: three products each, but no gradient into the first block's input
    assert doubled - lora == layers * 2 * B * L * 2 * (2 * d) * 3 - 2 * B * L * 2 * d
