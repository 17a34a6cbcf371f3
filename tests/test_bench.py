"""experiments/bench.py: that what it compares is what it says. The times are for people."""

from argparse import Namespace

import pytest
import torch

from experiments import t5_bench
from experiments.bench import COLA, METHODS, VARIANTS, ColaSteps, Step, methods_table
from model import GPT2Config, RobertaConfig

SIZES = {
    "glue": RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    ),
    "e2e": GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2),
}
TRAINED = {"betas": 2 * 16, "hut": 2 * (3 * 32 + 32), "literal": 2 * (3 * 32 + 32), "lora": 2 * 3 * 32}
TRAINED["read"] = 3 * 256 * (16 + 256) + 6 * 256 + 256 * 16


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("what", SIZES)
def test_variants_start_as_the_same_function_and_take_a_step(what, name):
    """Would catch: a variant that trains something else than its name says, or that no longer fits the
    model.
    """
    args = Namespace(what=what, r=3, batch_size=2, length=8)
    device = torch.device("cpu")
    base, step = (Step(args, variant, SIZES[what], device, torch.float32) for variant in ("full", name))
    torch.testing.assert_close(step.model.eval()(step.ids), base.model.eval()(base.ids), rtol=0, atol=1e-5)
    assert step.seconds(1) > 0
    if name != "full":
        trained = sum(
            p.numel() for n, p in step.model.named_parameters() if p.requires_grad and "classifier" not in n
        )
        assert trained == TRAINED[name]


def test_methods_table_has_a_row_for_every_method(capsys, monkeypatch):
    """Would catch: a method that is left out, timed under another's name, or called merged where it does not
    merge.
    """
    monkeypatch.setattr("experiments.bench.memory", lambda _, name: f"memory of {name} | 0")
    sizes = RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    args = Namespace(what="methods", r=3, batch_size=2, length=8, layers=2, width=32, rounds=1, steps=1)
    methods_table(args, sizes, torch.device("cpu"), torch.float32)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "memory of" in line]
    assert [row[0].strip() for row in rows] == list(METHODS)
    assert [row[3].strip() for row in rows] == [f"memory of {name}" for name in METHODS]
    assert {row[0].strip() for row in rows if row[6].strip() == "–"} == {
        "head",
        "read",
        "houlsby",
        "pfeiffer",
        "lin",
        "prefix",
    }


@pytest.mark.parametrize("name", COLA)
def test_every_method_takes_steps_on_cola(name, tiny_model, tmp_path):
    """Would catch: a method that does not train what it should; states on disk that stand for other
    examples.
    """
    args, examples = Namespace(model=tiny_model, r=2), [[0, 5, 6, 2], [0, 7, 2], [0, 8, 9, 10, 2]]
    steps = ColaSteps(args, name, examples, tmp_path, torch.device("cpu"), torch.float32)
    assert steps.seconds([[2, 0], [1]]) > 0 and steps.seconds([[0]], longest=9) > 0
    moments = {id(p) for p in steps.optimizer.state}
    assert moments == {id(p) for p in steps.model.parameters() if p.requires_grad} and len(moments) > 4
    if name == "kept":
        live = ColaSteps(args, "read", examples, tmp_path, torch.device("cpu"), torch.float32).model.eval()
        torch.testing.assert_close(live.states(torch.tensor([examples[1]])), steps.states[[1]])


# -------- T5

T5_SIZES = {
    "layers": 1,
    "width": 64,
    "batch_size": 2,
    "length": 5,
    "rounds": 1,
    "steps": 1,
    "memory_of": None,
}
T5_TRAINED = {
    "bitfit": 7 * 64,
    "lora": 3 * 2 * 2 * 64 * 32,
    "houlsby": 2 * (2 * 64 * 64 + 2 * 64),
    "prompt": 20 * 64,
}
T5_TRAINED["read"] = 2 * (3 * 256 * (64 + 256) + 6 * 256 + 256 * 64) + 64


@pytest.mark.parametrize("name", t5_bench.METHODS)
def test_t5_methods_take_a_step_and_write_a_label(name):
    """Would catch: a method that trains something else than its name says; labels of other lengths, timed as
    one.
    """
    step = t5_bench.T5Step(Namespace(**T5_SIZES), name, torch.device("cpu"), torch.float32)
    assert step.seconds(1) > 0 and [len(label) for label in step.label()] == [t5_bench.LABEL]
    trained = [p for p in step.model.parameters() if p.requires_grad]
    assert {id(p) for p in step.optimizer.state} == {id(p) for p in trained}
    assert name not in T5_TRAINED or sum(p.numel() for p in trained) == T5_TRAINED[name]


def test_t5_table_has_a_row_for_every_method(capsys, monkeypatch):
    """Would catch: a memory in the wrong column, an energy that nobody has measured."""
    monkeypatch.setattr(t5_bench, "memory", lambda _, name, *use: f"{name} {len(use)} | after")
    t5_bench.t5_table(Namespace(**T5_SIZES), torch.device("cpu"), torch.float32)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "after |" in line
    ]
    assert [row[0] for row in rows] == list(t5_bench.METHODS)
    assert all(row[3:7] == [f"{row[0]} 0", "after", "not measured", "not measured"] for row in rows)
    assert all(row[9:] == [f"{row[0]} 1", "after"] for row in rows) and rows[0][2] == rows[0][8] == "1.000"


def test_energy_of_a_step(monkeypatch):
    """Would catch: the meter's total in place of a step's share, kWh in place of J."""

    class Meter:
        def __init__(self, gpu):
            self.kwh, self.last = {"utilisation": None, "power": 0.001}, 9.0

        def stop(self):
            pass

    monkeypatch.setattr(t5_bench, "gpu_of", lambda device: "GPU-0")
    monkeypatch.setattr(t5_bench, "Meter", Meter)
    monkeypatch.setattr(t5_bench.time, "monotonic", lambda: 0.0)
    steps, step = [], Namespace(device=None, seconds=lambda n: steps.append(n))
    assert t5_bench.joules(step, 0.5) == {
        "utilisation": None,
        "power": pytest.approx(0.001 * 3.6e6 * 0.5 / 9),
    }
    assert steps == [4, 20]
