"""What HUT costs, measured side by side.

    python -m experiments.bench glue [--cola DIR --model DIR]   a training step of RoBERTa; epochs of CoLA
    python -m experiments.bench e2e                             a training step of GPT-2
    python -m experiments.bench methods                         every method on RoBERTa: trained, used, merged
    python -m experiments.bench many                            many adapters in one batch, beside peft's
    python -m experiments.bench t5                              every method on T5; in use it writes a label
    python -m experiments.bench sizes [--json FILE]             T5 small to 3B: READ's Figures 4, 5, Table 5
    python -m experiments.bench memory --model roberta-large --batch-size 4 --length 512   what fits on a GPU
    python -m experiments.bench generate                        decoding, beside transformers, if it is there

All variants train the same random weights on the same batch in one process, in turn, round after round, so
that a machine whose speed drifts slows them all. A figure is the median over the rounds; compare figures of
one run only. Memory is that of a process of its own: its peak during the steps, and how much of that came
after the imports, which is weights, gradients, AdamW's moments and activations.
"""

import argparse
import io
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle, repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from arguments import Parser, run_as_script, whole
from data import UserError, as_user_error, glue, write_json
from data.batching import Tokens, padding_share, shuffled_batches
from data.hub import MINI, open_checkpoint
from device import autocast, pick_device
from experiments.measure import (
    MEMORY,
    alone,
    in_transformers,
    in_turn,
    joules,
    machine,
    memory,
    peak_of_shapes,
    ratio,
)
from experiments.tables import Sheet, markdown
from hut import HUTLinear, find_linears
from many import Many
from methods import DECODER, ENCODER, METHODS, adapt, merge, methods_of, store
from model import GPT2, GPT2_MEDIUM, ROBERTA_LARGE, GPT2Config, RobertaClassifier, RobertaConfig
from read.cache import FromStates, cached_states
from read.t5 import T5, T5_BASE, T5Config
from weights import count, trainable

HAVE_PEFT = bool(find_spec("transformers") and find_spec("peft"))
LABEL = 4  # tokens that a T5 writes
ADAPTERS = 1, 2, 8, 32  # in a batch of `many`
T5_SIZES = {
    "small": T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8), "base": T5_BASE,
    "large": T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16),
    "3B": T5Config(d_model=1024, d_ff=16384, num_layers=24, num_heads=32, d_kv=128),
}  # fmt: skip


class Step:
    """A training step: the loss of the next batch, its gradients, and AdamW over all that is trained.

    model    called with a batch, it gives logits (…, classes)
    batches  an iterator without an end
    """

    def __init__(self, model, batches, args):
        self.model, self.batches, self.precision = model.train(), batches, autocast(args.device, args.dtype)
        some = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(some, lr=1e-5, fused=True)

    def __call__(self):
        with self.precision:
            logits = self.model(*next(self.batches))
        logits = getattr(logits, "logits", logits)  # transformers puts them into an object
        logits = logits.flatten(0, -2).float()
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
    """The models that a command trains, and what it takes where the command line leaves it open.

    fields  the configuration's names for layers, width, heads, and the feed-forward layer's width
    on_cpu, on_gpu  of SIZES
    r       the size of the methods in AT_R; None: their own
    """

    layout: str
    model_class: type
    config: object
    fields: tuple
    on_cpu: tuple
    on_gpu: tuple
    r: int | None


SIZES = ("layers", "width", "batch_size", "length")
ROBERTA = Work(
    ENCODER, RobertaClassifier, ROBERTA_LARGE,
    ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    (4, 768, 16, 32), (24, 1024, 16, 32), METHODS["hut"].r[ENCODER],
)  # fmt: skip
WORK = {
    "glue": ROBERTA,
    "methods": ROBERTA,
    "many": ROBERTA._replace(on_cpu=(6, 384, 32, 12), on_gpu=(24, 1024, 32, 32)),
    "e2e": Work(
        DECODER, GPT2, GPT2_MEDIUM, ("n_layer", "n_embd", "n_head"),
        (4, 768, 4, 64), (24, 1024, 4, 64), METHODS["hut"].r[DECODER],
    ),
    "t5": Work(  # no token ends a text, so that all labels are of one length
        T5.LAYOUT, T5, replace(T5_BASE, eos_token_id=-1), ("num_layers", "d_model", "num_heads", "d_ff"),
        (4, 256, 16, 32), (12, 768, 96, 128), None,
    ),
}  # fmt: skip
WORK["sizes"] = WORK["t5"]


def random_step(args, name, stored=True):
    """A step of a variant, on random weights and a batch of random tokens, the same for every variant."""
    work = WORK[args.what]
    sizes = (args.layers, args.width, args.width // 64, 4 * args.width)
    torch.manual_seed(0)
    config = args.config or replace(work.config, **dict(zip(work.fields, sizes, strict=False)))
    with args.device:
        model = work.model_class(config)
    ids = torch.randint(3, config.vocab_size, (args.batch_size, args.length), device=args.device)
    batch = (ids, None, ids.new_zeros(len(ids), LABEL)) if work.layout == T5.LAYOUT else (ids,)
    model = adapted(model, work.layout, name, args.r)
    if stored and isinstance(model, work.model_class):  # as in training, where it is ours
        store(model, args.dtype)
    return Step(model, repeat(batch), args)


def random_use(args, name, merged=False):
    step = random_step(args, name, stored=not merged)
    step.model = (store(merge(step.model, name), args.dtype) if merged else step.model).eval()
    return step.use


# ---- the variants

VARIANTS = {  # of glue and e2e
    "betas": "(a) betas only, the floor",
    "hut": "(b) HUT",
    "literal": "(c) HUT, eq. 8 literally",
    "lora": "(d) LoRA, plain",
    "full": "(e) full fine-tuning",
    "peft": "(f) peft's LoRA on transformers",
    "read": "(g) READ",
}
AT_R = ("hut", "lora")  # these are compared at one size


def adapted(model, layout, name, r):
    """`model` with a variant in it, and its head unfrozen. The variants in AT_R have size r."""
    if name in OWN:
        return OWN[name](model, r)
    with as_user_error():
        return adapt(model, name, {"r": r if r and name in AT_R else METHODS[name].r.get(layout)})


def betas_only(model, r):
    """The least that a method on q and v can train: b of x W_0 + b, which takes the place of b + beta."""
    adapt(model, "head" if model.HEAD else "frozen", {})
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
    adapt(model, "head" if model.HEAD else "frozen", {})
    for name, linear in find_linears(model, "qv").items():
        model.set_submodule(name, LiteralHUT.from_linear(linear, r))
    return model


def peft_lora(model, r, head=True):
    """The same weights in transformers' model, under peft's LoRA on query and value.

    transformers' GPT-2 has one layer for queries, keys and values, c_attn, which peft adapts as a whole.
    """
    from peft import LoraConfig, get_peft_model

    if isinstance(model, RobertaClassifier):
        kind, options = "AutoModelForSequenceClassification", {"target_modules": ["query", "value"]}
        options["task_type"] = "SEQ_CLS" if head else None  # its mixed batches share a head
    else:
        kind, options = "AutoModelForCausalLM", {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    return get_peft_model(in_transformers(model, kind), LoraConfig(r=r, lora_alpha=2 * r, **options))


OWN = {"betas": betas_only, "literal": literal_hut, "peft": peft_lora}

# ---- the tables


def measured(args, makers, bases, times, unit=1000):
    """{name: cells}: the time of a call in 1/`unit` seconds, its ratio to each of `bases`, its MEMORY.

    makers  {name: a function that makes the call}
    """
    found = in_turn(makers, args.rounds, args.device, times)
    cells = {}
    for name, make in makers.items():
        ratios = [ratio(found, name, base) for base in bases]
        each = f"{unit * statistics.median(found[name]):.1f}"
        cells[name] = [each, *ratios, *memory(args.device, make, times)]
    return cells


def heading(args):
    return (
        f"{args.layers} layers × {args.width}, {args.batch_size} × {args.length} tokens, "
        f"r = {args.r or 'its own'}, {str(args.dtype)[6:]}, {machine(args.device)}; {args.rounds} rounds\n"
    )


def step_table(args):
    names = [name for name in VARIANTS if name != "peft" or HAVE_PEFT]
    makers = {name: partial(random_step, args, name) for name in names}
    cells = measured(args, makers, ["betas", "hut"], args.steps)
    print(heading(args))
    header = ["", "ms a step", "ratio to (a)", "ratio to (b)", *MEMORY]
    print(markdown(header, [[VARIANTS[name], *cells[name]] for name in names]))
    if not HAVE_PEFT:
        print("\n(f) peft's LoRA: not run (needs transformers and peft)")
    if args.cola:
        cola_table(args)


def methods_table(args):
    layout = WORK[args.what].layout
    names = methods_of(layout)
    training = measured(args, {n: partial(random_step, args, n) for n in names}, ["full"], args.steps)
    use = measured(args, {n: partial(random_use, args, n) for n in names}, ["full"], args.steps)
    merged = {n: partial(random_use, args, n, True) for n in names if layout in METHODS[n].merges}
    merged = in_turn(merged, args.rounds, args.device, args.steps)
    rows = []
    for name in names:
        step = random_step(args, name)
        energy = ["not measured" if j is None else f"{j:.3g}" for j in joules(step, args.device).values()]
        in_merged = ratio(merged, name, "full") if name in merged else "–"
        rows.append([name, *training[name], *energy, *use[name], in_merged, adapter_bytes(step.model)])
    print(heading(args))
    header = ["", "ms a step", "of full", *MEMORY, "J a step, by utilisation", "by power"]
    header += ["ms in use", "of full", *MEMORY, "merged, of full", "adapter, bytes"]
    print(markdown(header, rows))


def adapter_bytes(model):
    adapter, _ = trainable(model)
    file = io.BytesIO()
    torch.save({name: p.detach() for name, p in adapter.items()}, file)
    return f"{file.tell():,}" if adapter else "–"


def sizes_table(args):
    """Parameters are counted on the meta device; the rest is of random weights, each in its own process."""
    columns, curves, texts = ("parameters", "ms a label", "peak memory in use, MiB"), [{}, {}, {}], []
    for name in ("read", "lst", "houlsby", "lora", "prompt", "bitfit", "full"):  # Table 5's
        for size, config in T5_SIZES.items():
            with torch.device("meta"):
                model, backbone = adapted(T5(config), T5.LAYOUT, name, None), T5(config)
            ms, held, backbone = None, 4 * count(model.parameters()), count(backbone.parameters())
            if held < 10 * 2**30:
                each, held, _ = alone(args.device, partial(label_of, args, config, name), args.rounds)
                ms = 1000 * each
            row = count(trainable(model)[0].values()), ms, held / 2**20
            texts.append([name, size, f"{backbone:,}", *(f"{n:,.0f}" if n else "–" for n in row)])
            for curve, n in zip(curves, row, strict=True):
                curve.setdefault(name, []).extend([[backbone, n]] if n else [])
    note = f"One source at a time: {args.length} tokens read, {LABEL} written; {machine(args.device)}. "
    note += "–: not run; the weights, above 10 GiB, stand for the memory."
    sheet = Sheet(["method", "T5", "backbone", *columns], texts, [note])
    print(sheet)
    if args.json:
        axes = zip(columns, curves, strict=True)
        figures = [{"title": "Figures 4, 5", "x": "backbone", "y": y, "curves": found} for y, found in axes]
        content = {"table": "sizes", "cells": [], "tables": [sheet._asdict()], "figures": figures}
        write_json(args.json, content)


def label_of(args, config, name):
    model = adapted(T5(replace(config, eos_token_id=-1)), T5.LAYOUT, name, None).to(args.device).eval()
    return partial(model.generate, [[3] * args.length], LABEL)


# ---- what fits

GPUS, CUDAS_OWN = (8, 12, 24), 1  # GiB; CUDA's own, and what the allocator can't use, are reckoned as one
WHOLE = {  # models by name: the command that has their kind, and their sizes
    "roberta-base": ("methods", RobertaConfig()), "roberta-large": ("methods", ROBERTA_LARGE),
    "gpt2": ("e2e", GPT2Config()), "gpt2-medium": ("e2e", GPT2_MEDIUM),
    **{f"t5-{size.lower()}": ("t5", config) for size, config in T5_SIZES.items()},
}  # fmt: skip


def memory_table(args):
    """Every method's peak in training on a GPU, from shapes alone."""
    rows = []
    for name in methods_of(WORK[args.what].layout):
        if name != "frozen":
            peak = peak_of_shapes(partial(random_step, args, name)) / 2**30
            fits = ["yes" if peak + CUDAS_OWN <= size else "no" for size in GPUS]
            rows.append([name, f"{peak:.2f}", *fits])
    sizes = f"{args.batch_size} × {args.length} tokens, {str(args.dtype)[6:]}"
    print(f"{args.model}, {sizes}; from shapes alone. What fits leaves {CUDAS_OWN} GiB to CUDA.\n")
    print(markdown(["", "peak, GiB", *(f"in {size} GiB" for size in GPUS)], rows))


# ---- CoLA

LONGEST = 128  # tokens
COLA = {  # title: (method, what its batches are)
    "full fine-tuning": ("full", "grouped"),
    "BitFit": ("bitfit", "grouped"),
    "LoRA": ("lora", "grouped"),
    "HUT": ("hut", "grouped"),
    f"HUT, padded to {LONGEST} tokens": ("hut", "padded"),
    "READ": ("read", "grouped"),
    "READ, from states on disk": ("read", "states"),
}


def read_cola(args):
    """(the checkpoint's directory, CoLA's training set, an epoch's batches of 16 as index lists)"""
    directory, _, config, tokenizer = open_checkpoint(args.model, "classifier", MINI / "roberta")
    examples = glue.encode(tokenizer, glue.load("cola", args.cola, splits=("train",))["train"], LONGEST)
    tokens = Tokens(examples, config.pad_token_id, args.device)
    return directory, tokens, shuffled_batches(tokens.lengths, 16, [0, 0])


def cola_step(args, folder, method, kind):
    """A step on CoLA: on batches "grouped" by length, "padded" to LONGEST, or of "states" in `folder`."""
    directory, tokens, batches = read_cola(args)
    torch.manual_seed(0)
    with as_user_error():
        model = RobertaClassifier.from_pretrained(directory).to(args.device)
    model = adapted(model, ENCODER, method, args.r)

    def padded(batch):
        ids, _ = tokens(batch)
        ids = F.pad(ids, (0, LONGEST - ids.shape[1]), value=tokens.pad_token)
        return ids, ids != tokens.pad_token

    inputs = padded if kind == "padded" else tokens
    if kind == "states":
        inputs = cached_states(model, tokens, batches, folder, autocast(args.device, args.dtype))
        model = FromStates(model)
    return Step(model, map(inputs, cycle(batches)), args)


def cola_table(args):
    """Prints seconds an epoch of real CoLA. The reading of the model is a part of the time for the states."""
    _, tokens, batches = read_cola(args)
    twentieth = max(1, len(batches) // 20)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cola_step(args, Path(folder), "read", "states")
        writing = time.perf_counter() - started
        makers = {title: partial(cola_step, args, Path(folder), *row) for title, row in COLA.items()}
        cells = measured(args, makers, ["LoRA"], twentieth, unit=len(batches))
    grouped = padding_share(tokens.lengths, batches)
    padded = 1 - sum(tokens.lengths) / (LONGEST * len(tokens.lengths))
    print(
        f"\nAn epoch of CoLA: {len(batches)} batches of 16; a round takes {twentieth}. {grouped:.1%} is "
        f"padding, {padded:.1%} at {LONGEST} tokens. Making the states took {writing:.1f} s, once.\n"
    )
    header = ["", "seconds an epoch", "ratio to LoRA", *MEMORY]
    print(markdown(header, [[title, *cells[title]] for title in COLA]))


# ---- decoding

LAYERS, WIDTH, PROMPTS, PROMPT_TOKENS, NEW_TOKENS, BEAMS = 8, 512, 16, 40, 40, 10
SEARCH = {"length_penalty": 0.9, "no_repeat_ngram_size": 4}


def with_transformers(reference, prompts):
    """Completions of prompts (B, P), as model.generate has them: without the prompt and the end token."""
    end, mask = reference.config.eos_token_id, torch.ones_like(prompts)
    options = SEARCH | {"num_beams": BEAMS, "do_sample": False, "max_new_tokens": NEW_TOKENS}
    found = reference.generate(prompts, attention_mask=mask, pad_token_id=end, **options)
    texts = [[*text, end] for text in found[:, PROMPT_TOKENS:].tolist()]
    return [text[: text.index(end)] for text in texts]


def generate_table(args):
    """Decodes with random weights, ten times as large as usual: so the beams differ and are reordered."""
    torch.manual_seed(0)
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": WIDTH // 64, "n_positions": 128}
    model = GPT2(GPT2Config(**sizes, initializer_range=0.2)).to(args.device).eval()
    prompts = torch.randint(model.config.vocab_size, (PROMPTS, PROMPT_TOKENS), device=args.device)
    ways = {"model.py": partial(model.generate, prompts.tolist(), NEW_TOKENS, beam_size=BEAMS, **SEARCH)}
    if find_spec("transformers"):
        reference = in_transformers(model, "AutoModelForCausalLM").eval()
        ways["transformers"] = partial(with_transformers, reference, prompts)
    found, rows = in_turn({n: lambda way=way: way for n, way in ways.items()}, args.rounds, args.device), []
    for way, times in found.items():
        seconds = statistics.median(times)
        rows.append([way, f"{seconds:.2f}", f"{PROMPTS / seconds:.2f}", ratio(found, [*ways][-1], way)])
    print(
        f"GPT-2 of {LAYERS} layers × {WIDTH}, {PROMPTS} prompts × {PROMPT_TOKENS} tokens, {NEW_TOKENS} new, "
        f"{BEAMS} beams, {machine(args.device)}; median of {args.rounds} rounds\n"
    )
    print(markdown(["", "seconds", "sequences/s", "times as fast"], rows))
    ours, *others = (way() for way in ways.values())
    for theirs in others:
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        print(f"\ncompletions that are equal, token for token: {equal} of {PROMPTS}")


# ---- main


def many_use(args, name, n):
    """A forward pass of a batch with n adapters: Many's or peft's; that of the plain model."""
    step = random_step(args, "hut" if name == "many" else "head")
    model, (ids, *_) = step.model.eval(), next(step.batches)
    which, more = torch.arange(len(ids), device=args.device) * n // len(ids), {}
    if name == "many":
        file = dict(zip(("adapter", "head"), trainable(model), strict=True))
        model, more = Many(model, [file] * n).eval(), {"mask": None, "which": which}
    if name == "peft":
        model = peft_lora(model, args.r, head=False).eval()
        for i in range(n):
            model.add_adapter(str(i), model.peft_config["default"])
        more = {"adapter_names": [str(i) for i in which.tolist()]}

    def use():
        with torch.no_grad(), step.precision:
            model(ids, **more)

    return use


def many_table(args):
    """Prints the time of a batch with 1 to 32 adapters in it, of that of the plain model."""
    names = [("many", "HUT"), ("peft", "LoRA, peft's adapter_names")][: 1 + HAVE_PEFT]
    makers = {(name, n): partial(many_use, args, name, n) for name, _ in names for n in ADAPTERS}
    makers["plain"] = partial(many_use, args, "head", 1)
    found = in_turn(makers, args.rounds, args.device, args.steps)
    rows = [[title, *(ratio(found, (name, n), "plain") for n in ADAPTERS)] for name, title in names]
    print(heading(args))
    print(markdown(["adapters in a batch", *map(str, ADAPTERS)], rows))


TABLES = {"glue": step_table, "e2e": step_table, "methods": methods_table, "t5": methods_table}
TABLES |= {"sizes": sizes_table, "many": many_table}


def arguments():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=(*TABLES, "generate", "memory"))
    for i, name in enumerate(SIZES):
        sizes = ", ".join(f"{what} {work.on_cpu[i]} or {work.on_gpu[i]}" for what, work in WORK.items())
        add("--" + name.replace("_", "-"), type=whole, help=f"(default, on a CPU or a GPU: {sizes})")
    add("--r", type=whole, help="of HUT and LoRA (default: the paper's; t5: each its own)")
    add("--rounds", type=whole, default=9, help="(default: 9)")
    add("--steps", type=whole, default=3, help="of each variant a round (default: 3)")
    add("--cola", metavar="DIR", help="GLUE folder: adds a table of CoLA to glue's")
    names = f"the checkpoint of that table; for memory: {' '.join(WHOLE)} (default: roberta-large)"
    add("--model", metavar="DIR", help=names)
    variants = {"choices": [*VARIANTS, *METHODS], "metavar": "NAME"}
    add("--memory-of", **variants, help="print the memory of a variant and no table")
    add("--json", metavar="FILE", type=Path, help="sizes: a table.json for the page too")
    add("--device", help="(default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16"), help="(default: as in training)")
    parser.set_defaults(config=None)
    args = parser.parse_args()
    if args.what == "memory":
        args.model, args.device, args.dtype = args.model or "roberta-large", "cpu", args.dtype or "bfloat16"
        if args.model not in WHOLE:
            parser.error(f"--model {args.model}: expected one of {' '.join(WHOLE)}")
        if args.cola or args.width or args.layers:
            parser.error("memory takes the sizes of --model")
        return args
    if args.width and args.width % 64:
        parser.error(f"--width {args.width}: expected a multiple of 64, the width of a head")
    if bool(args.cola) != bool(args.model) or (args.cola and args.what != "glue"):
        parser.error("--cola and --model go together, with glue")
    return args


def main():
    args = arguments()
    args.device, args.dtype = pick_device(args.device, args.dtype)
    if args.cola:
        read_cola(args)  # what is wrong with its files shows before the first table
    if args.what == "generate":
        return generate_table(args)
    table = TABLES.get(args.what, memory_table)
    if table is memory_table:
        args.what, args.config = WHOLE[args.model]
    work = WORK[args.what]
    args.r = args.r or work.r
    sizes = work.on_gpu if args.device.type == "cuda" or args.config else work.on_cpu
    for name, size in zip(SIZES, sizes, strict=True):
        setattr(args, name, getattr(args, name) or size)
    longest = getattr(args.config or work.config, "max_length", args.length)
    if args.length > longest:
        raise UserError(f"--length {args.length}: the position table holds {longest}")
    if args.memory_of:
        return print(*memory(args.device, partial(random_step, args, args.memory_of), args.steps))
    table(args)


if __name__ == "__main__":
    run_as_script(main)
