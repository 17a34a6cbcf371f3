"""experiments/flops.py: the paper's two figures, and counts that can be done by hand."""

import pytest

from experiments import flops
from experiments.flops import adapters, break_even, building, per_token, training_step
from model import RobertaConfig


def test_papers_table_2():
    """Would catch: another formula than the paper's, whose printed figures are 0.20 and 0.86 GFLOPs."""
    assert 48 * building("hut", 1024, 1024, 8) == 202_113_024
    assert 48 * building("lora", 1024, 1024, 8) == 855_638_016
    assert (
        adapters("houlsby", 1024, 64, 24, 128) == 1_610_612_736
    )  # printed 1.61; the other rows follow otherwise


def test_the_tables_as_they_are_printed(monkeypatch):
    """Would catch: one of q and v alone, other blocks, a share of another method's step."""
    rows = {row[0]: row[2:] for row in flops.table_2().rows}
    assert rows["hut r8"] == ["0.2021", "0.0126", "2048"] and rows["lora r8"] == ["0.8556", "0.2013", "544"]
    assert rows["houlsby r64"] == ["–", "1.6106", "–"] and rows["pfeiffer r64"] == ["–", "0.8053", "–"]
    steps = {"full": 8e9, "houlsby": 1e10}
    monkeypatch.setattr(flops, "training_step", lambda method, *_: steps.get(method, 2e9))
    rows = {row[0]: row[1:] for row in flops.step_table().rows}
    assert rows["hut r8"] == ["2.00", "25.0%"] and rows["houlsby r64"] == ["10.00", "125.0%"]


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
