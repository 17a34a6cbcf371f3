"""What HUT costs, measured side by side.

    python -m experiments.bench glue [--cola DIR --model DIR]   every method in RoBERTa; epochs of CoLA
    python -m experiments.bench e2e [--only NAME …]             every method in GPT-2
    python -m experiments.bench t5                              every method in T5; in use it writes a label
    python -m experiments.bench sizes [--json FILE]             T5 small to 3B: READ's Figures 4, 5, Table 5
    python -m experiments.bench memory --model roberta-large --batch-size 4 --length 512   what fits on a GPU
    python -m experiments.bench many                            many adapters in one batch, beside peft's

All variants have the same random weights and batch, and run in one process, in turn, round after round, so
that a machine whose speed drifts slows them all. A figure is the median over the rounds; compare figures of
one run only. Memory is that of a process of its own: its peak during the calls, and how much of that came
after the imports.
"""

import io
import statistics
import tempfile
from argparse import Namespace, RawDescriptionHelpFormatter
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle, repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from arguments import Parser, file_to_write, run_as_script, whole
from data import UserError, as_user_error, glue, write_json
from data.batching import Tokens, padding_share, shuffled_batches
from data.hub import open_checkpoint
from data.states import FromStates, cached_states
from device import autocast, pick_device
from experiments.measure import MEMORY, alone, in_turn, machine, memory, peak_of_shapes, ratio, seconds
from experiments.tables import Sheet, markdown
from hut import HUTLinear, find_linears
from many import Many
from methods import DECODER, ENCODER, METHODS, adapt, merge, methods_of, store
from model import GPT2, GPT2_MEDIUM, GPT2_SMALL, ROBERTA_BASE, ROBERTA_LARGE, RobertaClassifier
from read.t5 import T5, T5Config
from weights import count, trainable

LABEL = 4  # tokens that a T5 writes
ADAPTERS = 1, 2, 8, 32  # in a batch of `many`


class Step:
    """A training step: the loss of the next of the endless `batches`, its gradients, and AdamW."""

    def __init__(self, model, batches, args):
        self.model, self.batches, self.precision = model.train(), batches, autocast(args.device, args.dtype)
        some = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(some, lr=1e-5, fused=True)

    def __call__(self):
        with self.precision:
            logits = self.model(*next(self.batches))
        logits = getattr(logits, "logits", logits).flatten(0, -2).float()  # transformers has an object
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        F.cross_entropy(logits, target).backward()  # which class is right does not change what a step costs
        self.optimizer.step()
        self.optimizer.zero_grad()

    def use(self):
        """The model in use: a forward pass, or the label that a T5 writes for one source."""
        ids, *more = next(self.batches)
        with torch.no_grad(), self.precision:
            if isinstance(self.model, T5):
                return self.model.generate(ids[:1].tolist(), LABEL)
            return self.model(ids, *more)


class Work(NamedTuple):
    """The models of a command, and what it takes where the command line leaves it open.

    config  the whole model
    fields  its names for layers, width, heads, and the feed-forward layer's width
    on_cpu  layers and width; a GPU runs the whole model
    batch   examples and tokens
    """

    layout: str
    model_class: type
    config: object
    fields: tuple
    on_cpu: tuple
    batch: tuple

    def of(self, layers, width):
        """The same with another model."""
        sizes = zip(self.fields, (layers, width, width // 64, 4 * width), strict=False)
        return self._replace(config=replace(self.config, **dict(sizes)))


OF_ROBERTA = "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"
ROBERTA = Work(ENCODER, RobertaClassifier, ROBERTA_LARGE, OF_ROBERTA, (4, 768), (16, 32))
GPT = Work(DECODER, GPT2, GPT2_MEDIUM, ("n_layer", "n_embd", "n_head"), (4, 768), (4, 64))
ENDLESS = T5Config(eos_token_id=-1)  # so that all labels are of one length
TO_LABEL = Work(T5.LAYOUT, T5, ENDLESS, ("num_layers", "d_model", "num_heads", "d_ff"), (4, 256), (16, 32))
WORK = {
    "glue": ROBERTA, "e2e": GPT, "t5": TO_LABEL, "sizes": TO_LABEL,
    "many": ROBERTA._replace(on_cpu=(6, 384), batch=(32, 12)),
}  # fmt: skip
LARGE = TO_LABEL.of(24, 1024)
LARGER = LARGE._replace(config=replace(LARGE.config, d_ff=16384, num_heads=32, d_kv=128))
T5_SIZES = {"small": TO_LABEL.of(6, 512), "base": TO_LABEL, "large": LARGE, "3B": LARGER}
WHOLE = {  # what `memory` knows by name
    "roberta-base": ROBERTA._replace(config=ROBERTA_BASE), "roberta-large": ROBERTA,
    "gpt2": GPT._replace(config=GPT2_SMALL), "gpt2-medium": GPT,
    **{f"t5-{size.lower()}": work for size, work in T5_SIZES.items()},
}  # fmt: skip


def random_step(args, name, stored=True):
    """A step of a variant, on random weights and a batch of random tokens, the same for every variant."""
    layout, model_class, config, *_ = args.work
    torch.manual_seed(0)
    with args.device:
        model = model_class(config)
    ids = torch.randint(3, config.vocab_size, (args.batch_size, args.length), device=args.device)
    batch = (ids, None, ids.new_zeros(len(ids), LABEL)) if layout == T5.LAYOUT else (ids,)
    model = adapted(model, name, args.r)
    if stored and isinstance(model, model_class):  # as in training, where it is ours
        store(model, args.dtype)
    return Step(model, repeat(batch), args)


def random_use(args, name, merged=False):
    step = random_step(args, name, stored=not merged)
    if merged:
        step.model = store(merge(step.model, name), args.dtype)
    step.model.eval()
    return step.use


# ---- the variants

SIZED = ("hut", "literal", "lora", "peft")  # these are compared at one size, --r


def adapted(model, name, r):
    """`model` with a variant in it, and its head unfrozen."""
    if not r or name not in SIZED:
        r = METHODS.get(name, METHODS["hut"]).r.get(model.body.LAYOUT)
    if name in OWN:
        return OWN[name](adapt(model, "head" if model.HEAD else "frozen", {}), r)
    with as_user_error():
        return adapt(model, name, {"r": r})


def betas_only(model, r):
    """The least that a method on q and v can train: b of x W_0 + b, which takes the place of b + beta."""
    for linear in find_linears(model, "qv").values():
        linear.bias.requires_grad_(True)
    return model


class LiteralHUT(HUTLinear):
    """Eqs. 8 and 9 as they stand, with the matrices of ones."""

    def forward(self, x):
        ones_A, ones_B = torch.ones_like(self.M_B), torch.ones_like(self.M_A)  # (r, k), (d, r)
        r = len(self.M_B)
        W_new = (self.M_A @ ones_A) / r * self.weight.T * (ones_B @ self.M_B) / r
        return self.gamma * (x @ W_new.to(x.dtype)) + self.bias + self.beta


def literal_hut(model, r):
    for name, linear in find_linears(model, "qv").items():
        model.set_submodule(name, LiteralHUT.from_linear(linear, r))
    return model


def peft_lora(model, r, head=True):
    """The same weights in transformers' model, under peft's LoRA on query and value.

    transformers' GPT-2 has one layer for queries, keys and values, c_attn, which peft adapts as a whole.
    """
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if isinstance(model, RobertaClassifier):
        kind, options = "AutoModelForSequenceClassification", {"target_modules": ["query", "value"]}
        options["task_type"] = "SEQ_CLS" if head else None  # its mixed batches share a head
    else:
        kind, options = "AutoModelForCausalLM", {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        theirs = getattr(transformers, kind).from_pretrained(directory)
    theirs.to(next(model.parameters()).device)
    return get_peft_model(theirs, LoraConfig(r=r, lora_alpha=2 * r, **options))


OWN = {"betas": betas_only, "literal": literal_hut}
if find_spec("transformers") and find_spec("peft"):
    OWN["peft"] = peft_lora


def names_of(layout):
    """The bench's own variants and every method that trains something."""
    own = [] if layout == T5.LAYOUT else OWN
    return [*own, *(name for name in methods_of(layout) if METHODS[name].lr[layout])]


# ---- the tables


def measured(args, makers, base, times, unit=1000):
    """{name: cells} for in_turn's makers: a call's time in 1/`unit` s, its ratio to `base`'s, its MEMORY."""
    found = in_turn(makers, args.rounds, args.device, times)
    cells = {}
    for name, make in makers.items():
        each = f"{unit * statistics.median(found[name]):.1f}"
        cells[name] = [each, ratio(found, name, base), *memory(args.device, make, times)]
    return cells


def heading(args):
    layers, width = (getattr(args.work.config, field) for field in args.work.fields[:2])
    return (
        f"{layers} layers × {width}, {args.batch_size} × {args.length} tokens, r = {args.r or 'its own'}, "
        f"{str(args.dtype)[6:]}, {machine(args.device)}; {args.rounds} rounds\n"
    )


def methods_table(args):
    """What --only names, or all: in training, in use, merged. Ratios are to the first's, or full's."""
    layout = args.work.layout
    known, base = names_of(layout), args.only[0] if args.only else "full"
    names = args.only or known
    if not {*names} <= {*known}:
        raise UserError(f"--only {' '.join(names)}: expected some of {' '.join(known)}")
    training = measured(args, {n: partial(random_step, args, n) for n in names}, base, args.steps)
    use = {n: partial(random_use, args, n) for n in names}
    merges = [n for n in names if n in METHODS and layout in METHODS[n].merges]
    merged = {"": use[base]} | {n: partial(random_use, args, n, True) for n in merges}
    merged = in_turn(merged, args.rounds, args.device, args.steps)
    use, rows = measured(args, use, base, args.steps), []
    for name in names:
        in_merged = ratio(merged, name, "") if name in merges else "–"
        size = adapter_bytes(random_step(args, name).model) if name in METHODS else "–"
        rows.append([name, *training[name], *use[name], in_merged, size])
    print(heading(args))
    header = ["", "ms a step", f"of {base}", *MEMORY, "ms in use", f"of {base}", *MEMORY]
    header += [f"merged, of {base}", "adapter, bytes"]
    print(markdown(header, rows))
    if args.cola:
        cola_table(args)


def adapter_bytes(model):
    adapter, file = trainable(model)[0], io.BytesIO()
    torch.save({name: p.detach() for name, p in adapter.items()}, file)
    return f"{file.tell():,}" if adapter else "–"


def sizes_table(args):
    """Parameters are counted on the meta device; the rest is of random weights, each in its own process."""
    curves, texts = {"parameters": {}, "ms a label": {}, "peak memory in use, MiB": {}}, []
    for name in ("read", "lst", "houlsby", "lora", "prompt", "bitfit", "full"):  # Table 5's
        for size, work in T5_SIZES.items():
            with torch.device("meta"):
                model, backbone = adapted(T5(work.config), name, None), T5(work.config)
            ms, held, backbone = None, 4 * count(model.parameters()), count(backbone.parameters())
            if held < 10 * 2**30:
                one = Namespace(**vars(args) | {"work": work, "batch_size": 1, "dtype": torch.float32})
                each, held, _ = alone(args.device, partial(random_use, one, name), args.rounds)
                ms = 1000 * each
            row = count(trainable(model)[0].values()), ms, held / 2**20
            texts.append([name, size, f"{backbone:,}", *(f"{n:,.0f}" if n else "–" for n in row)])
            for curve, n in zip(curves.values(), row, strict=True):
                curve.setdefault(name, []).extend([[backbone, n]] if n else [])
    note = f"One source at a time: {args.length} tokens read, {LABEL} written; {machine(args.device)}. "
    note += "–: not run; the weights, above 10 GiB, stand for the memory."
    sheet = Sheet(["method", "T5", "backbone", *curves], texts, [note])
    print(sheet)
    if args.json:
        figure = {"title": "Figures 4, 5", "x": "backbone"}
        figures = [figure | {"y": y, "curves": found} for y, found in curves.items()]
        content = {"table": "sizes", "cells": [], "tables": [sheet._asdict()], "figures": figures}
        write_json(args.json, content)


# ---- what fits

GPUS, CUDAS_OWN = (8, 12, 24), 1  # GiB; the second allows for CUDA itself and what the allocator can't use


def memory_table(args):
    """Every method's peak in training on a GPU, from shapes alone."""
    rows = []
    for name in filter(METHODS.get, names_of(args.work.layout)):
        peak = peak_of_shapes(partial(random_step, args, name)) / 2**30
        rows.append([name, f"{peak:.2f}", *("no" if peak + CUDAS_OWN > size else "yes" for size in GPUS)])
    sizes = f"{args.batch_size} × {args.length} tokens, {str(args.dtype)[6:]}"
    print(f"{args.model}, {sizes}; from shapes alone. What fits leaves {CUDAS_OWN} GiB to CUDA.\n")
    print(markdown(["", "peak, GiB", *(f"in {size} GiB" for size in GPUS)], rows))


# ---- CoLA

LONGEST = 128  # tokens
COLA = [(method, "grouped") for method in ("full", "bitfit", "lora", "hut", "read")]
COLA += [("hut", "padded"), ("read", "states")]  # method, and what its batches are


def read_cola(args):
    """(the checkpoint's directory, CoLA's training set, an epoch's batches of 16 as index lists)"""
    directory, _, config, tokenizer = open_checkpoint(args.model, "classifier")
    examples = glue.encode(tokenizer, glue.load("cola", args.cola, splits=("train",))["train"], LONGEST)
    tokens = Tokens(examples, config.pad_token_id, args.device)
    return directory, tokens, shuffled_batches(tokens.lengths, 16, [0, 0])


def cola_step(args, folder, method, kind):
    """A step on CoLA: on batches "grouped" by length, "padded" to LONGEST, or of "states" in `folder`."""
    directory, tokens, batches = read_cola(args)
    torch.manual_seed(0)
    with as_user_error():
        model = RobertaClassifier.from_pretrained(directory).to(args.device)
    model = store(adapted(model, method, args.r), args.dtype)
    inputs = partial(tokens, lengths=(LONGEST,)) if kind == "padded" else tokens
    if kind == "states":
        inputs = cached_states(model, tokens, batches, folder, autocast(args.device, args.dtype))
        model = FromStates(model)
    return Step(model, map(inputs, cycle(batches)), args)


def cola_table(args):
    """Prints seconds an epoch of real CoLA. The time for the states includes reading the model."""
    _, tokens, batches = read_cola(args)
    twentieth = max(1, len(batches) // 20)
    with tempfile.TemporaryDirectory() as folder:
        makers = {row: partial(cola_step, args, Path(folder), *row) for row in COLA}
        writing = seconds(makers["read", "states"], 1, args.device)
        cells = measured(args, makers, ("lora", "grouped"), twentieth, unit=len(batches))
    padded = 1 - sum(tokens.lengths) / (LONGEST * len(tokens.lengths))
    print(
        f"\nAn epoch of CoLA: {len(batches)} batches of 16; a round takes {twentieth}. "
        f"{padding_share(tokens.lengths, batches):.1%} is padding, {padded:.1%} at {LONGEST} tokens. "
        f"Making the states took {writing:.1f} s, once.\n"
    )
    header = ["", "seconds an epoch", "of LoRA", *MEMORY]
    print(markdown(header, [[", ".join(row), *found] for row, found in cells.items()]))


# ---- many adapters


def many_use(args, name, n):
    """A forward pass of a batch with n adapters: Many's or peft's; that of the plain model."""
    step = random_step(args, "hut" if name == "many" else "head")
    model, (ids,) = step.model, next(step.batches)
    which, more = torch.arange(len(ids), device=args.device) * n // len(ids), {}
    if name == "many":
        file = dict(zip(("adapter", "head"), trainable(model), strict=True))
        model, more = Many(model, [file] * n), {"mask": None, "which": which}
    if name == "peft":
        model = peft_lora(model, args.r or METHODS["lora"].r[ENCODER], head=False)
        for i in range(n):
            model.add_adapter(str(i), model.peft_config["default"])
        more = {"adapter_names": [str(i) for i in which.tolist()]}
    model.eval()

    def use():
        with torch.no_grad(), step.precision:
            model(ids, **more)

    return use


def many_table(args):
    """Times of a batch with 1 to 32 adapters in it, as ratios to the plain model's."""
    sizes = [n for n in ADAPTERS if n <= args.batch_size]
    names = [("many", "HUT"), ("peft", "LoRA, peft's adapter_names")][: 1 + ("peft" in OWN)]
    makers = {(name, n): partial(many_use, args, name, n) for name, _ in names for n in sizes}
    makers["plain"] = partial(many_use, args, "head", 1)
    found = in_turn(makers, args.rounds, args.device, args.steps)
    rows = [[title, *(ratio(found, (name, n), "plain") for n in sizes)] for name, title in names]
    print(heading(args))
    print(markdown(["adapters in a batch", *map(str, sizes)], rows))


# ---- main

TABLES = dict.fromkeys(("glue", "e2e", "t5"), methods_table)
TABLES |= {"sizes": sizes_table, "memory": memory_table, "many": many_table}


def arguments():
    look = RawDescriptionHelpFormatter
    parser = Parser(prog="python -m experiments.bench", description=__doc__, formatter_class=look)
    add = parser.add_argument
    add("what", choices=TABLES)
    for name in ("layers", "width", "batch-size", "length"):
        add(f"--{name}", type=whole, help="(default: printed above the table)")
    add("--r", type=whole, help="of HUT and LoRA (default: each its own)")
    add("--rounds", type=whole, default=9, help="(default: 9)")
    add("--steps", type=whole, default=3, help="of each variant per round (default: 3)")
    add("--only", nargs="+", metavar="NAME", help="rows of glue, e2e, t5; ratios are to the first's")
    add("--cola", metavar="DIR", help="GLUE folder: adds a table of CoLA to glue's")
    names = f"the checkpoint of that table; for memory: {' '.join(WHOLE)} (default: roberta-large)"
    add("--model", metavar="DIR", help=names)
    add("--json", metavar="FILE", type=file_to_write, help="sizes: also a table.json for the page")
    add("--device", help="(default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16"), help="(default: as in training)")
    args = parser.parse_args()
    if args.what == "memory":
        args.model, args.device, args.dtype = args.model or "roberta-large", "cpu", args.dtype or "bfloat16"
        if args.model not in WHOLE:
            parser.error(f"--model {args.model}: expected one of {' '.join(WHOLE)}")
        if args.cola or args.width or args.layers:
            parser.error("memory takes the sizes of --model")
    elif args.width and args.width % 64:
        parser.error(f"--width {args.width}: expected a multiple of 64, the width of a head")
    elif bool(args.cola) != bool(args.model) or (args.cola and args.what != "glue"):
        parser.error("--cola and --model go together, with glue")
    return args


def main():
    args = arguments()
    args.device, args.dtype = pick_device(args.device, args.dtype)
    if args.cola:
        read_cola(args)  # what is wrong with its files shows before the first table
    whole_model = args.what == "memory"
    work = WHOLE[args.model] if whole_model else WORK[args.what]
    if not whole_model:
        own = [getattr(work.config, field) for field in work.fields[:2]]
        layers, width = own if args.device.type == "cuda" else work.on_cpu
        work = work.of(args.layers or layers, args.width or width)
    args.work, (examples, tokens) = work, work.batch
    args.batch_size, args.length = args.batch_size or examples, args.length or tokens
    longest = getattr(work.config, "max_length", args.length)
    if args.length > longest:
        raise UserError(f"--length {args.length}: the position table holds {longest}")
    TABLES[args.what](args)


if __name__ == "__main__":
    run_as_script(main)
