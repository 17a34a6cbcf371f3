"""What HUT costs, measured side by side.

    python -m experiments.bench glue [--cola DIR --model DIR]     a training step of RoBERTa; epochs of CoLA
    python -m experiments.bench methods                           every method: a training step, in use, merged, saved
    python -m experiments.bench e2e                               a training step of GPT-2
    python -m experiments.bench generate                          decoding, beside transformers.generate
    python -m experiments.bench t5                                READ and its rivals on T5: a step, its energy, a label

All variants train the same random weights on the same batch in one process, in turn, round after round, so
that a machine whose speed drifts slows them all; a figure is the median over the rounds. Compare figures of
one run only. Memory is that of a process of its own, which takes the same steps: its peak while training, and
what of it came after the imports, which is weights, gradients, AdamW's moments and activations, as a GPU's
allocator counts them.
"""

import argparse
import dataclasses
import importlib.util
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import baselines
from data import glue
from data.batching import pad, padding_share, shuffled_batches, sorted_batches
from data.hub import load_tokenizer
from experiments.generate_bench import generate_table
from experiments.measure import in_turn, machine, memory, print_memory, ratio, seconds, synchronise
from experiments.t5_bench import t5_table
from experiments.tables import markdown
from hut import HUTLinear, apply_hut, merge_hut
from model import GPT2, GPT2_MEDIUM, ROBERTA_LARGE, RobertaClassifier, RobertaConfig, read_config
from read.cache import read_states, write_states
from read.network import WIDTH, apply_read
from training import UNMERGED, autocast, pick_device, run_as_script

# -------- what is compared


class BetaLinear(nn.Module):
    """x W_0 + b + beta: the least that a method on these layers can train, and what each of them pays at least."""

    def __init__(self, linear, r):
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


def put_in(model, make, r):
    """Freezes `model` and puts make(linear, r) in place of every q and v."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith((".q", ".v")):
            model.set_submodule(name, make(module, r))
    return model


def baseline(method):
    """Puts a method of baselines.py in, at the size that the tables have; LoRA at HUT's r."""
    return lambda model, r: baselines.apply(
        model, method, r if method == "lora" else baselines.ROBERTA_R.get(method)
    )


VARIANTS = {
    "betas": ("(a) betas only, the floor", lambda model, r: put_in(model, BetaLinear, r)),
    "hut": ("(b) HUT", apply_hut),
    "literal": ("(c) HUT, eq. 8 literally", lambda model, r: put_in(model, LiteralHUT.from_linear, r)),
    "lora": ("(d) LoRA, plain", baseline("lora")),
    "full": ("(e) full fine-tuning", baseline("full")),
    "read": (f"(g) READ, GRU of {WIDTH}", lambda model, r: apply_read(model)),
}
METHODS = {
    "head": lambda model, r: model.requires_grad_(False),
    "hut": apply_hut,
    "read": lambda model, r: apply_read(model),
}
METHODS |= {method: baseline(method) for method in baselines.METHODS}
COLA = {"full": "full fine-tuning", "bitfit": "BitFit", "lora": "LoRA", "hut": "HUT", "read": f"READ, GRU of {WIDTH}",
        "kept": "the same, from states on disk"}  # fmt: skip


def peft_lora(model, r):
    """(f): the same weights in transformers' model, under peft's LoRA on query and value.

    transformers' GPT-2 has them in one layer with the keys, c_attn, which peft adapts as a whole.
    """
    import transformers
    from peft import LoraConfig, get_peft_model

    roberta = isinstance(model, RobertaClassifier)
    auto = transformers.AutoModelForSequenceClassification if roberta else transformers.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        theirs = auto.from_pretrained(directory)
    targets = ["query", "value"] if roberta else ["c_attn"]
    task = "SEQ_CLS" if roberta else "CAUSAL_LM"
    settings = LoraConfig(
        task_type=task, r=r, lora_alpha=2 * r, target_modules=targets, fan_in_fan_out=not roberta
    )
    return get_peft_model(theirs, settings).to(next(model.parameters()).device)


def adapt(model, name, r):
    return VARIANTS[name][1](model, r) if name in VARIANTS else METHODS[name](model, r)


# -------- measuring


class Step:
    """A training step of one variant on one fixed batch: forward, backward, AdamW. The head, if any, trains too."""

    def __init__(self, args, name, sizes, device, dtype):
        torch.manual_seed(0)
        self.device, self.dtype, self.theirs, self.roberta = device, dtype, name == "peft", args.what != "e2e"
        model = (RobertaClassifier if self.roberta else GPT2)(sizes).to(device)
        self.model = peft_lora(model, args.r) if self.theirs else adapt(model, name, args.r)
        if self.roberta and not self.theirs:  # peft does so by itself
            self.model.classifier.requires_grad_(True)
        self.model.train()
        torch.manual_seed(1)  # the same batch, whatever the variant has drawn
        self.ids = torch.randint(3, sizes.vocab_size, (args.batch_size, args.length), device=device)
        self.target = (
            torch.randint(0, 2, (args.batch_size,), device=device)
            if self.roberta
            else self.ids[:, 1:].flatten()
        )
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)

    def __call__(self):
        with autocast(self.device, self.dtype):
            logits = self.model(input_ids=self.ids)
        logits = logits.logits if self.theirs else logits
        logits = logits if self.roberta else logits[:, :-1].flatten(0, 1)
        F.cross_entropy(logits.float(), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, steps):
        return seconds(self, steps, self.device)

    def use(self, model):
        """A forward pass of the same batch through `model`, as in use."""
        with torch.no_grad(), autocast(self.device, self.dtype):
            model(self.ids)


def step_table(args, sizes, device, dtype):
    names = list(VARIANTS)
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("peft"):
        import transformers

        transformers.logging.disable_progress_bar()
        names.insert(names.index("read"), "peft")
    print(
        f"A training step of {'GPT-2' if args.what == 'e2e' else 'RoBERTa'}, {args.layers} layers × {args.width}, batch "
        f"{args.batch_size} × {args.length} tokens, r = {args.r}, {str(dtype)[6:]}, {machine(device)}; "
        f"median of {args.rounds} rounds\n"
    )
    steps = {name: Step(args, name, sizes, device, dtype) for name in names}
    found = in_turn(
        {name: lambda step=step: step.seconds(args.steps) for name, step in steps.items()}, args.rounds
    )
    del steps
    print("| | ms a step | ratio to (a) | ratio to (b) | peak memory, MiB | after the imports |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in names:
        title = VARIANTS[name][0] if name in VARIANTS else "(f) peft's LoRA on transformers"
        ms = 1000 * statistics.median(found[name])
        to_floor, to_hut = ratio(found, name, "betas"), ratio(found, name, "hut")
        print(f"| {title} | {ms:.1f} | {to_floor:.3f} | {to_hut:.3f} | {memory('--memory-of', name)} |")
    if "peft" not in names:
        print("\n(f) peft's LoRA: not run (needs transformers and peft)")


def methods_table(args, sizes, device, dtype):
    """Every method that an encoder takes: training, use before and after merging, and what is saved."""
    print(
        f"RoBERTa, {args.layers} layers × {args.width}, batch {args.batch_size} × {args.length} tokens, {str(dtype)[6:]}, "
        f"{machine(device)}; median of {args.rounds} rounds. In use: ratio to the untouched model\n"
    )
    steps = {name: Step(args, name, sizes, device, dtype) for name in METHODS}
    training = in_turn(
        {name: lambda step=step: step.seconds(args.steps) for name, step in steps.items()}, args.rounds
    )
    header = [
        "",
        "ms a step",
        "of full",
        "peak memory, MiB | after the imports",
        "in use",
        "merged, in use",
        "adapter, bytes",
    ]
    rows = []
    for name in METHODS:
        step = steps.pop(name)
        models = {"base": Step(args, "head", sizes, device, dtype).model.eval(), "adapted": step.model.eval()}
        if name not in ("head", *UNMERGED):
            models["merged"] = (merge_hut if name == "hut" else baselines.merge)(step.model).eval()
        timers = {
            key: lambda model=model, step=step: seconds(lambda: step.use(model), args.steps, device)
            for key, model in models.items()
        }
        use = in_turn(timers, args.rounds)
        file = io.BytesIO()
        torch.save(
            {
                n: p.data
                for n, p in step.model.named_parameters()
                if p.requires_grad and "classifier" not in n
            },
            file,
        )
        rows.append([
            name, f"{1000 * statistics.median(training[name]):.1f}", f"{ratio(training, name, 'full'):.3f}",
            *memory("--memory-of", name).split(" | "), f"{ratio(use, 'adapted', 'base'):.3f}",
            f"{ratio(use, 'merged', 'base'):.3f}" if "merged" in use else "–", f"{file.tell():,}" if name != "head" else "–",
        ])  # fmt: skip
    print(markdown(header, rows))


# -------- CoLA


class ColaSteps:
    """Training steps of one of COLA on real CoLA: forward, backward, AdamW."""

    def __init__(self, args, name, examples, folder, device, dtype):
        torch.manual_seed(0)
        self.examples, self.device, self.dtype = examples, device, dtype
        plain = RobertaClassifier.from_pretrained(args.model).to(device)
        self.model = METHODS["read" if name == "kept" else name](plain, args.r)
        self.model.classifier.requires_grad_(True)
        self.states = self._keep(Path(folder) / "states") if name == "kept" else None
        self.model.train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)

    def _keep(self, path):
        shape = [len(self.examples), len(self.model.roberta.blocks), self.model.config.hidden_size]
        batches, started = sorted_batches([len(t) for t in self.examples], 16), time.perf_counter()
        with autocast(self.device, self.dtype):
            write_states(
                path,
                {"shape": shape},
                ((batch, self.model.states(*self._padded(batch))) for batch in batches),
            )
        self.keeping = time.perf_counter() - started
        return read_states(path, {"shape": shape})

    def _padded(self, batch, longest=None):
        ids, mask = pad([self.examples[i] for i in batch], self.model.config.pad_token_id, self.device)
        if longest:
            ids = F.pad(ids, (0, longest - ids.shape[1]), value=self.model.config.pad_token_id)
            mask = ids != self.model.config.pad_token_id
        return ids, mask

    def seconds(self, batches, longest=None):
        """Of a step on each of these batches, padded to `longest` tokens if it is given."""
        synchronise(self.device)
        started = time.perf_counter()
        for batch in batches:
            with autocast(self.device, self.dtype):
                if self.states is None:
                    logits = self.model(*self._padded(batch, longest))
                else:
                    logits = self.model.from_states(self.states[batch].to(self.device))
            target = torch.zeros(len(batch), dtype=torch.int64, device=self.device)
            F.cross_entropy(logits.float(), target).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        synchronise(self.device)
        return time.perf_counter() - started


def cola_examples(args):
    """(token lists of real CoLA, the batches of 16 of an epoch)"""
    tokenizer = load_tokenizer(args.model, read_config(args.model, RobertaConfig, "roberta").vocab_size)
    examples = glue.encode(tokenizer, glue.load("cola", args.cola)["train"], 128)
    return examples, shuffled_batches([len(t) for t in examples], 16, [0, 0])


def cola_tables(args, device, dtype):
    """Seconds an epoch of real CoLA: of every method; and of HUT with every example padded to 128 tokens."""
    examples, batches = cola_examples(args)
    parts = [batches[i::20] for i in range(args.rounds + 1)]
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: ColaSteps(args, name, examples, folder, device, dtype) for name in COLA}

        def timer(name, longest=None):
            left = iter(parts)

            def epoch():
                part = next(left)
                return steps[name].seconds(part, longest) * len(batches) / len(part)

            return epoch

        timers = {name: timer(name) for name in COLA} | {"padded": timer("hut", 128)}
        found = in_turn(timers, args.rounds)
        keeping = steps["kept"].keeping
        steps.clear()
    print(
        f"\nAn epoch of CoLA ({len(examples):,} examples, batch 16), r = {args.r}, {machine(device)}; each of {args.rounds}"
    )
    print("rounds times a twentieth of the batches, and is multiplied by 20\n")
    print(
        "| method | seconds an epoch | ratio to LoRA | peak memory, MiB | after the imports |\n|---|---:|---:|---:|---:|"
    )
    for name, title in COLA.items():
        seconds, to_lora = statistics.median(found[name]), ratio(found, name, "lora")
        print(f"| {title} | {seconds:.1f} | {to_lora:.3f} | {memory('--cola-memory-of', name)} |")
    print(f"\nPutting the states on disk took {keeping:.1f} seconds, once.\n")
    lengths = [len(t) for t in examples]
    share = 1 - sum(lengths) / (128 * len(lengths))
    print("| batches of HUT | padding | seconds an epoch | ratio |\n|---|---:|---:|---:|")
    print(f"| grouped by length, padded to the longest | {padding_share(lengths, batches):.1%} | "
          f"{statistics.median(found['hut']):.1f} | 1 |")  # fmt: skip
    print(
        f"| padded to 128 | {share:.1%} | {statistics.median(found['padded']):.1f} | {ratio(found, 'padded', 'hut'):.1f} |"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("glue", "methods", "e2e", "generate", "t5"))
    parser.add_argument(
        "--layers", type=int, help="on each side, for t5 (default: 4; on a GPU the paper's model's)"
    )
    parser.add_argument("--width", type=int, help="(default: 768, for t5 256; on a GPU the paper's model's)")
    parser.add_argument("--r", type=int, help="(default: the paper's, 8, for e2e 4; t5: each its own)")
    parser.add_argument(
        "--batch-size", type=int, help="(default: 16, for e2e 4; t5 on a GPU: the READ paper's 96)"
    )
    parser.add_argument("--length", type=int, help="tokens a row (default: 32, for e2e 64; t5 on a GPU: 128)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each variant a round (default: 3)")
    parser.add_argument(
        "--cola", metavar="DIR", help="GLUE folder: adds the table of an epoch of CoLA, with --model"
    )
    parser.add_argument("--model", metavar="DIR", help="the checkpoint of that table")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--cola-memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--in-use", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    args = parser.parse_args()
    if args.width is not None and (args.width < 64 or args.width % 64):
        parser.error(f"--width {args.width}: expected a multiple of 64, the width of a head")
    device, dtype = pick_device(args.device, args.dtype)
    if args.what == "generate":
        generate_table(args.rounds, device)
        return
    if args.what == "t5":
        t5_table(args, device, dtype)
        return
    glue_step = args.what != "e2e"
    for name, value in zip(
        ("r", "batch_size", "length"), (8, 16, 32) if glue_step else (4, 4, 64), strict=True
    ):
        setattr(args, name, getattr(args, name) or value)
    paper = (24, 1024) if device.type == "cuda" else (4, 768)
    args.layers, args.width = args.layers or paper[0], args.width or paper[1]
    if glue_step:
        shape = {
            "num_hidden_layers": args.layers,
            "hidden_size": args.width,
            "intermediate_size": 4 * args.width,
        }
        sizes = dataclasses.replace(ROBERTA_LARGE, num_attention_heads=args.width // 64, **shape)
    else:
        sizes = dataclasses.replace(
            GPT2_MEDIUM, n_layer=args.layers, n_embd=args.width, n_head=args.width // 64
        )
    if args.memory_of:
        return print_memory(
            device, lambda: Step(args, args.memory_of, sizes, device, dtype), lambda step: step.seconds(3)
        )
    if args.cola_memory_of:
        examples, batches = cola_examples(args)
        with tempfile.TemporaryDirectory() as folder:
            which = (args, args.cola_memory_of, examples, folder, device, dtype)
            return print_memory(device, lambda: ColaSteps(*which), lambda steps: steps.seconds(batches[::20]))
    if args.what == "methods":
        methods_table(args, sizes, device, dtype)
        return
    step_table(args, sizes, device, dtype)
    if args.cola:
        cola_tables(args, device, dtype)


if __name__ == "__main__":
    run_as_script(main)
