"""experiments/bench.py: that what it compares is what it says. The times are for people."""

import json
import os
import signal
from argparse import Namespace
from functools import partial

import pytest
import torch
from conftest import fails

from data import UserError
from experiments import bench, measure
from experiments.bench import COLA, LABEL, MEMORY, OWN, WORK, cola_step, names_of, random_step, random_use
from methods import METHODS, methods_of
from model import RobertaConfig
from read.t5 import T5Config

CPU = {"device": torch.device("cpu"), "dtype": torch.float32, "rounds": 1, "steps": 1, "cola": None,
       "only": None}  # fmt: skip
SIZES = {"batch_size": 2, "length": 8, "r": None}
VARIANTS = ("betas", "hut", "literal", "lora", "full", "peft", "read")
EVERY_METHOD = [(what, name) for what in ("glue", "t5") for name in methods_of(WORK[what].layout)]

READ = 3 * 256 * (64 + 256) + 6 * 256 + 256 * 64
TRAINED = {
    "betas": 2 * 64,
    "hut": 2 * (3 * 128 + 128),
    "literal": 2 * (3 * 128 + 128),
    "lora": 2 * 3 * 128,
    "read": READ,
}
TRAINED_T5 = {
    "bitfit": 7 * 64,
    "lora": 3 * 2 * 2 * 64 * 32,
    "houlsby": 2 * (2 * 64 * 64 + 2 * 64),
    "prompt": 20 * 64,
}
TRAINED_T5["read"] = 2 * READ + 64


def settings(what, layers=1, width=64, **more):
    return Namespace(**CPU | SIZES | {"what": what, "work": WORK[what].of(layers, width)} | more)


def takes_a_step(step):
    """The number of parameters that the step trains, without the head's."""
    step()
    trained = {name: p for name, p in step.model.named_parameters() if p.requires_grad}
    assert {id(p) for p in step.optimizer.state} == {id(p) for p in trained.values()}
    return sum(p.numel() for name, p in trained.items() if "classifier" not in name)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("what", ["glue", "e2e"])
def test_variants_start_as_the_same_function_and_take_a_step(what, name):
    """Would catch: a variant that trains something else than its name says, or does not fit the model."""
    if name == "peft":
        pytest.importorskip("peft")
    args = settings(what, r=3)
    base, step = (random_step(args, variant) for variant in ("full", name))
    found, expected = (s.model.eval()(*next(s.batches)) for s in (step, base))
    torch.testing.assert_close(getattr(found, "logits", found), expected, rtol=0, atol=1e-5)
    assert takes_a_step(step) == TRAINED.get(name, takes_a_step(step))


@pytest.mark.parametrize(("what", "name"), EVERY_METHOD)
def test_every_method_takes_a_step_and_is_used(what, name):
    """Would catch: a method that trains something else than its name says; labels of different lengths."""
    args = settings(what)
    trained = takes_a_step(random_step(args, name))
    assert what != "t5" or trained == TRAINED_T5.get(name, trained)
    found = random_use(args, name)()
    assert [len(label) for label in found] == ([LABEL] if what == "t5" else [2, 2])


@pytest.mark.parametrize("what", ["glue", "t5"])
def test_methods_table_has_a_row_for_every_method(what, capsys, monkeypatch):
    """Would catch: a method that is left out, timed under another's name, or merged where it does not merge.

    And a memory in the wrong column.
    """

    def memory(device, make, times):
        kind, (_, name) = make.func.__name__, make.args
        return [f"{kind} {name}", "after"]

    monkeypatch.setattr(bench, "memory", memory)
    bench.methods_table(settings(what))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    names = names_of(WORK[what].layout)
    assert {*names} >= {*methods_of(WORK[what].layout)}
    assert [row[0] for row in rows] == names and {len(row) for row in rows} == {len(header)}
    assert [i for i, title in enumerate(header) if title == MEMORY[0]] == [3, 7]
    assert [row[3:5] for row in rows] == [[f"random_step {n}", "after"] for n in names]
    assert [row[7:9] for row in rows] == [[f"random_use {n}", "after"] for n in names]
    merged = {row[0] for row in rows if row[header.index("merged, of full")] != "–"}
    assert merged == {
        name for name in methods_of(WORK[what].layout) if WORK[what].layout in METHODS[name].merges
    }
    assert all(row[2] == row[6] == "1.000" for row in rows if row[0] == "full")


@pytest.mark.parametrize(("method", "kind"), COLA)
def test_every_row_takes_steps_on_cola(method, kind, tiny_model, tiny_glue, tmp_path, monkeypatch):
    """Would catch: a method that does not train what it should; states that stand for other examples."""
    monkeypatch.setattr(bench, "LONGEST", 20)
    args = Namespace(**CPU | {"model": tiny_model, "cola": tiny_glue, "r": 2})
    step = cola_step(args, tmp_path / "states", method, kind)
    first, *_ = next(step.batches)
    assert takes_a_step(step) > 0 and takes_a_step(step) == takes_a_step(step)
    assert kind != "padded" or first.shape[1] == bench.LONGEST
    if kind == "states":
        live = cola_step(args, None, "read", "grouped")
        torch.testing.assert_close(live.model.eval().states(*next(live.batches)), first)


def test_variants_of_the_bench_have_no_name_of_a_method():
    """Would catch: a new method that the bench takes for a variant of its own."""
    assert not OWN.keys() & METHODS.keys()


# ---------------------------------------------------------------------------------------- measure.py


def test_calls_are_timed_in_turn():
    """Would catch: a variant timed all rounds in a row; a first round that counts."""
    order, device = [], torch.device("cpu")
    makers = {name: partial(partial, order.append, name) for name in "ab"}
    found = measure.in_turn(makers, 2, device, times=2)
    assert "".join(order) == 3 * "aabb"
    assert {name: len(times) for name, times in found.items()} == {"a": 2, "b": 2}


def holds_300_mib():
    """A function that makes a call, as `memory` takes it; the making holds twice as much for a moment."""
    bytearray(600 * 2**20)
    return partial(bytearray, 300 * 2**20)


def test_memory_is_that_of_the_calls_in_another_process():
    """Would catch: the memory of this process; what the making holds for a moment; cells in another order."""
    peak, after = map(int, measure.memory(torch.device("cpu"), holds_300_mib, 1))
    assert peak > after and 300 <= after < 400


def is_ended_by_the_system():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_takes_too_much_memory_ends_in_one_line(capsys):
    """Would catch: a traceback of the process pool's where the system ends a process for want of memory."""
    line = fails(capsys, measure.memory, torch.device("cpu"), is_ended_by_the_system, 1)
    assert line.startswith("error: not enough memory (the system ended the process): ")


def as_on_a_gpu(args, name):
    step = random_step(args, name)

    def call():
        with measure.OnGPU():
            step()

    return call


@pytest.mark.parametrize("name", ["hut", "full"])
def test_memory_from_shapes_is_what_a_process_takes(name, monkeypatch):
    """Would catch: a kind of tensor that is not counted, or not freed; the steps' peak is 100 to 200 MiB."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back at once
    make = partial(as_on_a_gpu, settings("glue", layers=4, width=256, batch_size=16, length=64), name)
    assert 0.8 < measure.peak_of_shapes(make) / measure.alone(CPU["device"], make, 2)[2] < 1.05


def test_memory_has_a_row_for_every_method(monkeypatch, capsys):
    """Would catch: a method whose shapes can't be run, or a size that it does not fit and is said to."""
    config = RobertaConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3)
    monkeypatch.setitem(bench.WHOLE, "tiny", bench.ROBERTA._replace(config=config))
    command = "bench.py memory --model tiny --batch-size 2 --length 8"
    monkeypatch.setattr("sys.argv", command.split())
    peaks = iter([7 * 2**30, 8 * 2**30])
    counted = bench.peak_of_shapes
    monkeypatch.setattr(bench, "peak_of_shapes", lambda make: counted(make) and next(peaks, 2**30))
    bench.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0][2:] for row in rows] == methods_of("encoder")
    assert rows[0][1:3] == ["7.00", "yes"] and rows[1][1:4] == ["8.00", "no", "yes"]


def test_a_file_that_could_not_be_written_is_refused_at_the_start(monkeypatch):
    """Would catch: minutes of measurement whose table is lost, as its folder is not there."""
    monkeypatch.setattr("sys.argv", ["bench", "sizes", "--json", "nowhere/table.json"])
    with pytest.raises(UserError, match="expected the name of a file, in a folder that exists"):
        bench.arguments()


def test_sizes_are_counted_exactly_and_run_where_they_fit(monkeypatch, capsys, tmp_path):
    """Would catch: a size that is run although its weights are too large; a curve that lacks one; the
    paper's sizes of READ (Figure 4).
    """
    run = []

    def alone(device, make, times):
        run.append((make.args[0].work, make.args[1]))
        return 0.25, 3 * 2**20, 2**20

    monkeypatch.setattr(bench, "alone", alone)
    bench.sizes_table(settings("sizes", json=tmp_path / "table.json"))
    found = json.loads((tmp_path / "table.json").read_text())
    counts, times, memory = (figure["curves"] for figure in found["figures"])
    backbones = [60_506_624, 222_903_552, 737_668_096, 2_851_598_336]
    assert counts["full"] == [[size, size] for size in backbones]
    assert [n for _, n in counts["read"]] == [1_445_376, 1_969_920, 2_494_464, 2_494_464]
    assert len(counts) == 7 and {len(curve) for curve in counts.values()} == {4}
    assert times["lora"] == [[size, 250] for size in backbones[:3]]
    assert [round(n) for _, n in memory["full"]] == [3, 3, 3, 10_878]
    assert {name for work, name in run if work is bench.T5_SIZES["large"]} == set(counts)
    assert "| read | 3B | 2,851,598,336 | 2,494,464 | – |" in capsys.readouterr().out


def test_a_label_of_a_size_is_written():
    """Would catch: a call that does nothing, or that ends before the label does."""
    config = T5Config(vocab_size=61, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, eos_token_id=-1)
    args = settings("sizes", work=WORK["sizes"]._replace(config=config))
    for name in ("read", "full"):
        assert [len(tokens) for tokens in random_use(args, name)()] == [LABEL]


def test_many_table_has_every_number_of_adapters(capsys):
    """Would catch: a batch with fewer adapters than its column says; a variant that does not run."""
    args = settings("many", r=2)
    args.batch_size = 32
    bench.many_table(args)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| HUT")]
    assert len(rows) == 1 and rows[0].count("|") == 2 + len(bench.ADAPTERS)
    use = bench.many_use(args, "many", 32).__closure__
    given = next(cell.cell_contents for cell in use if isinstance(cell.cell_contents, dict))
    assert given["which"].tolist() == list(range(32))
    args.batch_size = 8
    bench.many_table(args)
    assert "| adapters in a batch | 1 | 2 | 8 |\n" in capsys.readouterr().out
