"""What READ and its rivals cost on a T5 of random weights: a training step, and a label in use.

    python -m experiments.bench t5

A label is decoded greedily, for one source at a time. LoRA and BitFit are as in training: merged, they are
the plain model.
"""

import statistics
import time
from dataclasses import replace
from math import ceil

import torch
from torch.nn import functional as F

import baselines
from energy import Meter, gpu_of
from experiments.measure import in_turn, machine, memory, print_memory, ratio, seconds
from experiments.tables import markdown
from hut import apply_hut
from read.lst import LSTT5
from read.network import apply_read
from read.t5 import T5, T5_BASE
from training import autocast

METHODS = ("full", "bitfit", "lora", "houlsby", "prompt", "lst", "hut", "read")
LABEL = 4  # tokens
METERED = 10  # seconds: the meter samples each
COLUMNS = ["", "ms a step", "of full", "peak memory, MiB", "after the imports", "J a step, by utilisation", "by power",
           "ms a label", "of full", "peak memory, MiB", "after the imports"]  # fmt: skip


def t5(args):
    """T5-base, made smaller where `args` says so."""
    shape = {
        "d_model": args.width,
        "d_ff": 4 * args.width,
        "num_heads": args.width // 64,
        "num_layers": args.layers,
    }
    return T5(
        replace(T5_BASE, eos_token_id=-1, **shape)
    )  # an end that is never written: all labels are of one length


def adapt(model, name):
    """`model` with one of METHODS in it, at the size that the READ paper has."""
    if name == "lst":
        return LSTT5(model)
    if name == "read":
        return apply_read(model)
    if name == "hut":
        return apply_hut(model, 8)
    return baselines.apply(model, name, baselines.T5_R.get(name))


class T5Step:
    """A training step of one method on one fixed batch: forward, backward, AdamW."""

    def __init__(self, args, name, device, dtype):
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.model = adapt(t5(args), name).to(device).train()
        torch.manual_seed(1)  # the same batch, whatever the method has drawn
        vocabulary = self.model.config.vocab_size
        self.ids = torch.randint(3, vocabulary, (args.batch_size, args.length)).to(device)
        self.target = torch.randint(3, vocabulary, (args.batch_size, LABEL)).to(device)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)

    def __call__(self):
        with autocast(self.device, self.dtype):
            logits = self.model(self.ids, None, self.model.shifted(self.target))
        F.cross_entropy(logits.float().flatten(0, 1), self.target.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, steps):
        return seconds(self, steps, self.device)

    def label(self):
        """What is written for the first source of the batch."""
        with autocast(self.device, self.dtype):
            return self.model.generate(self.ids[:1].tolist(), LABEL)


def joules(step, each):
    """{measure of energy.py: J of a training step that takes `each` seconds, or None}, from METERED seconds of them."""
    gpu = gpu_of(step.device)
    if gpu is None:
        return {"utilisation": None, "power": None}
    step.seconds(ceil(2 / each))  # the meter looks back
    started, meter = time.monotonic(), Meter(gpu)
    step.seconds(ceil(METERED / each))
    meter.stop()
    return {key: kwh and kwh * 3.6e6 * each / (meter.last - started) for key, kwh in meter.kwh.items()}


def t5_table(args, device, dtype):
    paper = (12, 768, 96, 128) if device.type == "cuda" else (4, 256, 16, 32)
    for name, value in zip(("layers", "width", "batch_size", "length"), paper, strict=True):
        setattr(args, name, getattr(args, name) or value)
    if args.memory_of:
        run = T5Step.label if args.in_use else lambda step: step.seconds(3)
        return print_memory(device, lambda: T5Step(args, args.memory_of, device, dtype), run)
    print(
        f"T5 of {args.layers} + {args.layers} layers × {args.width}. A training step: {args.batch_size} × {args.length} "
        f"tokens, {LABEL} of the target; a label: {LABEL} tokens of one source, greedily. {str(dtype)[6:]}, "
        f"{machine(device)}; median of {args.rounds} rounds\n"
    )
    steps = {name: T5Step(args, name, device, dtype) for name in METHODS}
    training = in_turn(
        {name: lambda step=step: step.seconds(args.steps) for name, step in steps.items()}, args.rounds
    )
    use = {name: lambda step=step: seconds(step.label, args.steps, device) for name, step in steps.items()}
    use, rows = in_turn(use, args.rounds), []
    for name in METHODS:
        each, label = statistics.median(training[name]), statistics.median(use[name])
        energy = ["not measured" if j is None else f"{j:.3g}" for j in joules(steps[name], each).values()]
        rows.append([
            name, f"{1000 * each:.1f}", f"{ratio(training, name, 'full'):.3f}",
            *memory("--memory-of", name).split(" | "), *energy,
            f"{1000 * label:.1f}", f"{ratio(use, name, 'full'):.3f}", *memory("--memory-of", name, "--in-use").split(" | "),
        ])  # fmt: skip
    print(markdown(COLUMNS, rows))
