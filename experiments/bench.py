"""What HUT costs, measured side by side: python -m experiments.bench glue [--cola DIR --model DIR]

All variants train the same random weights on the same batches in one process, in turn, round after round, so that a
machine whose speed drifts slows them all; a figure is the median over the rounds. Peak memory is that of a process of
its own. Compare figures of one run only.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn
from torch.nn import functional as F

from data import glue
from data.batching import pad, padding_share, shuffled_batches
from data.hub import load_tokenizer
from hut import HUTLinear, apply_hut
from model import ROBERTA_LARGE, RobertaClassifier, RobertaConfig
from training import peak_memory, pick_device, run_as_script

# ------------------------------------------------------------------------------------------------ what is compared


class BetaLinear(nn.Module):
    """x W_0 + b + beta: the least that a method on these layers can train, and what each of them pays at least."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.beta = linear, nn.Parameter(torch.zeros_like(linear.bias))

    def forward(self, x):
        return F.linear(x, self.linear.weight, self.linear.bias + self.beta)


class LiteralHUT(HUTLinear):
    """Eqs. 8 and 9 as they stand, with the matrices of ones."""

    def forward(self, x):
        ones_A, ones_B = torch.ones_like(self.M_B), torch.ones_like(self.M_A)  # (r, k), (d, r)
        r = len(self.M_B)
        W_new = (self.M_A @ ones_A) / r * self.weight.T * (ones_B @ self.M_B) / r
        return self.gamma * (x @ W_new.to(x.dtype)) + self.bias + self.beta


class PlainLoRA(nn.Module):
    """x W_0 + b + (alpha / r) x A B (Hu et al., 2021), without dropout."""

    def __init__(self, linear, r=8, alpha=16):
        super().__init__()
        self.linear, self.scale = linear, alpha / r
        self.A = nn.Parameter(torch.randn(r, linear.in_features, device=linear.weight.device) / r)
        self.B = nn.Parameter(torch.zeros(linear.out_features, r, device=linear.weight.device))

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(x, self.A), self.B) * self.scale


def put_in(model, make, head):
    """Freezes `model`, puts make(linear) in place of every q and v, unfreezes the head."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith((".q", ".v")):
            model.set_submodule(name, make(module))
    model.get_submodule(head).requires_grad_(True)
    return model


def with_hut(model, head):
    apply_hut(model, r=8, targets="qv")
    model.get_submodule(head).requires_grad_(True)
    return model


VARIANTS = {
    "betas": ("(a) betas only, the floor", lambda m, head: put_in(m, BetaLinear, head)),
    "hut": ("(b) HUT r=8", with_hut),
    "literal": ("(c) HUT, eq. 8 literally", lambda m, head: put_in(m, lambda x: LiteralHUT.from_linear(x, 8), head)),
    "lora": ("(d) LoRA r=8, plain", lambda m, head: put_in(m, PlainLoRA, head)),
    "full": ("(e) full fine-tuning", lambda m, head: m.requires_grad_(True)),
}


def peft_lora(model):
    """(f): the same weights in transformers' RoBERTa, under peft's LoRA r = 8 on query and value."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        theirs = AutoModelForSequenceClassification.from_pretrained(directory)
    settings = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
    theirs = get_peft_model(theirs, settings)
    return theirs.to(next(model.parameters()).device)


# ------------------------------------------------------------------------------------------------ measuring


class Step:
    """A training step of one variant on one fixed batch: forward, backward, AdamW."""

    def __init__(self, name, sizes, device, dtype, batch, length):
        torch.manual_seed(0)
        self.device, self.dtype, self.theirs = device, dtype, name == "peft"
        model = RobertaClassifier(sizes).to(device)
        self.model = peft_lora(model) if self.theirs else VARIANTS[name][1](model, "classifier")
        self.model.train()
        self.ids = torch.randint(3, sizes.vocab_size, (batch, length), device=device)
        self.labels = torch.randint(0, 2, (batch,), device=device)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)

    def __call__(self):
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(input_ids=self.ids)
        F.cross_entropy((logits.logits if self.theirs else logits).float(), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, steps):
        synchronise(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self()
        synchronise(self.device)
        return (time.perf_counter() - started) / steps


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(timers, rounds):
    """{name: seconds of each round}: every timer once a round, after a round that does not count."""
    found = {name: [] for name in timers}
    for count in range(rounds + 1):
        for name, timer in timers.items():
            seconds = timer()
            if count:
                found[name].append(seconds)
    return found


def ratio(found, name, base):
    """The median over the rounds of one variant's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))


def machine(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def step_table(args, sizes):
    device, dtype = pick_device(args.device, args.dtype)
    names = list(VARIANTS)
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("peft"):
        names.append("peft")
    shape = f"{sizes.num_hidden_layers} layers × {sizes.hidden_size}, batch {args.batch_size} × {args.length} tokens"
    print(f"A training step of RoBERTa: {shape}, {str(dtype)[6:]}, {machine(device)}, median of {args.rounds} rounds\n")
    steps = {name: Step(name, sizes, device, dtype, args.batch_size, args.length) for name in names}
    found = in_turn({name: lambda step=step: step.seconds(args.steps) for name, step in steps.items()}, args.rounds)
    del steps
    print("| | ms a step | ratio to (a) | ratio to (b) | peak memory, MiB |")
    print("|---|---:|---:|---:|---:|")
    for name in names:
        title = VARIANTS[name][0] if name in VARIANTS else "(f) peft's LoRA r=8 on transformers"
        ms = 1000 * statistics.median(found[name])
        to_floor, to_hut = ratio(found, name, "betas"), ratio(found, name, "hut")
        print(f"| {title} | {ms:.1f} | {to_floor:.3f} | {to_hut:.3f} | {memory(args, name)} |")
    if "peft" not in names:
        print("\n(f) peft's LoRA: not run (needs transformers and peft)")


def memory(args, name):
    """Peak memory of a process that makes this variant and takes 3 steps."""
    sizes = [f"--{key.replace('_', '-')}={getattr(args, key)}" for key in ("layers", "width", "batch_size", "length")]
    options = [f"--{key}={value}" for key in ("device", "dtype") if (value := getattr(args, key))]
    command = [sys.executable, "-m", "experiments.bench", "memory", "--variant", name, *sizes, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def cola_table(args):
    """Seconds an epoch of real CoLA: this project's batches against padding every example to 128 tokens."""
    device, dtype = pick_device(args.device, args.dtype)
    model = with_hut(RobertaClassifier.from_pretrained(args.model).to(device), "classifier").train()
    tokenizer = load_tokenizer(args.model, model.config.vocab_size)
    tokens = glue.encode(tokenizer, glue.load("cola", args.cola)["train"], 128)
    lengths = [len(t) for t in tokens]
    batches = shuffled_batches(lengths, 16, [0, 0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def epoch_seconds(longest, part):
        """`part` of an epoch's batches, times the number of such parts."""
        synchronise(device)
        started = time.perf_counter()
        for batch in part:
            rows = [tokens[i] for i in batch]
            ids, mask = pad(rows, model.config.pad_token_id, device)
            if longest:
                ids = F.pad(ids, (0, longest - ids.shape[1]), value=model.config.pad_token_id)
                mask = ids != model.config.pad_token_id
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(ids, mask)
            F.cross_entropy(logits.float(), torch.zeros(len(batch), dtype=torch.int64, device=device)).backward()
            optimizer.step()
            optimizer.zero_grad()
        synchronise(device)
        return (time.perf_counter() - started) * len(batches) / len(part)

    rounds = [batches[i::20] for i in range(args.rounds + 1)]
    ours, padded = iter(rounds), iter(rounds)
    timers = {"ours": lambda: epoch_seconds(None, next(ours)), "padded": lambda: epoch_seconds(128, next(padded))}
    found = in_turn(timers, args.rounds)
    share = 1 - sum(lengths) / (128 * len(lengths))
    print(
        f"\nAn epoch of CoLA ({len(tokens):,} examples, batch 16), HUT r=8, {machine(device)}; each of {args.rounds} rounds"
    )
    print("times a twentieth of the batches, and is multiplied by 20\n")
    print("| batches | padding | seconds an epoch | ratio |\n|---|---:|---:|---:|")
    print(f"| grouped by length, padded to the longest | {padding_share(lengths, batches):.1%} | "
          f"{statistics.median(found['ours']):.1f} | 1 |")  # fmt: skip
    print(
        f"| padded to 128 | {share:.1%} | {statistics.median(found['padded']):.1f} | {ratio(found, 'padded', 'ours'):.1f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=("glue", "memory"), help="a table; or one variant's peak memory, as the table asks it"
    )
    parser.add_argument("--layers", type=int, help="(default: 4; on a GPU those of RoBERTa-large)")
    parser.add_argument("--width", type=int, help="(default: 768; on a GPU that of RoBERTa-large)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: 16)")
    parser.add_argument("--length", type=int, default=32, help="tokens a row (default: 32)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant a round (default: 3)")
    parser.add_argument("--cola", metavar="DIR", help="GLUE folder: adds the table of an epoch of CoLA, with --model")
    parser.add_argument("--model", metavar="DIR", help="the checkpoint of that table")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    args = parser.parse_args()
    device, dtype = pick_device(args.device, args.dtype)
    large = device.type == "cuda"
    args.layers = args.layers or (ROBERTA_LARGE.num_hidden_layers if large else 4)
    args.width = args.width or (ROBERTA_LARGE.hidden_size if large else 768)
    sizes = RobertaConfig(num_hidden_layers=args.layers, hidden_size=args.width, num_attention_heads=args.width // 64,
                          intermediate_size=4 * args.width)  # fmt: skip
    if args.what == "memory":
        step = Step(args.variant, sizes, device, dtype, args.batch_size, args.length)
        step.seconds(3)
        print(round(peak_memory(device) / 2**20))
        return
    step_table(args, sizes)
    if args.cola:
        cola_table(args)


if __name__ == "__main__":
    run_as_script(main)
