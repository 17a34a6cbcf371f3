"""Fine-tunes GPT-2 to say restaurant descriptions (E2E NLG Challenge), generates, scores: python train_e2e.py --r 4

From top to bottom: settings, arguments, scoring, generation, one run, main.
"""

import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import baselines
import training
from data import UserError, e2e
from data.batching import pad, padding_share, shuffled_batches, sorted_batches, subset
from data.hub import MINI, checkpoint, copy_tokenizer, load_tokenizer
from metrics import e2e_report, e2e_scores
from model import GPT2, GPT2Config, read_config
from read.network import WIDTH
from training import mendable

METHODS = ("hut", "read", "frozen", *baselines.METHODS)
R = {"hut": 4, "read": WIDTH, **baselines.GPT2_R}
DEFAULTS = {  # the paper's Table 7; it leaves open where dropout is: in all of GPT-2's own places here
    **{"method": "hut", "model": "gpt2-medium", "seed": 0},
    **{"epochs": 5, "batch_size": 4, "lr": 2e-3, "warmup": 500, "weight_decay": 0.01, "dropout": 0.1},
    **{"label_smoothing": 0.1, "beam_size": 10, "length_penalty": 0.9, "no_repeat_ngram": 4},
    **{
        "ngram_scope": "completion",
        "max_new_tokens": 64,
    },  # as LoRA's decoder, which the paper's settings are taken from
}
MINI_SETTINGS = {
    "epochs": 8,
    "batch_size": 16,
    "lr": 5e-2,
    "warmup": 0.06,
    "dropout": 0.0,
}  # for the bundled set
EVAL_BATCH = 32
LARGEST_EXPORT_DIFFERENCE = 1e-3  # of a logit, in float32
SHOWN = 3  # outputs that are printed beside their inputs


def arguments():
    parser = training.Parser(description=__doc__.splitlines()[0])
    table_7 = "{}, the paper's Table 7".format
    defaults = {
        "r": training.shown(R),
        "model": "gpt2-medium, the paper's",
        "settings": "the paper's Table 7: 5 epochs, batch 4, lr 0.002",
        "warmup": table_7("500 steps"),
        "weight_decay": table_7(0.01),
        "dropout": table_7(0.1),
    }
    training.add_arguments(parser, METHODS, defaults)
    parser.add_argument(
        "--label-smoothing", type=training.probability, metavar="E", help=f"(default: {table_7(0.1)})"
    )
    parser.add_argument(
        "--predict", metavar="MR", help='the sentence for "name[…], food[…], …", by --adapter'
    )
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--beam-size", type=training.whole, metavar="K", help=f"1 is greedy (default: {table_7(10)})"
    )
    group.add_argument(
        "--length-penalty", type=training.not_negative, metavar="P", help=f"(default: {table_7(0.9)})"
    )
    group.add_argument(
        "--no-repeat-ngram",
        type=training.whole_or_0,
        metavar="N",
        help=f"no N-gram twice; 0: all may (default: {table_7(4)})",
    )
    group.add_argument(
        "--ngram-scope",
        choices=("completion", "prompt"),
        help="where they may not repeat: in the completion, as in LoRA's decoder (default), or in prompt and completion, "
        "as in transformers: most references share a 4-gram with their own input, which that forbids",
    )
    group.add_argument(
        "--max-new-tokens", type=training.whole, metavar="N", help="(default: 64, as LoRA's decoder)"
    )
    args = parser.parse_args()
    args.task, args.submit = "e2e", None
    training.check_adapter(args, METHODS)
    settings = DEFAULTS
    if (args.model or settings["model"]) == "mini" and not args.data:
        args.data = str(MINI / "e2e")
        settings = settings | MINI_SETTINGS
        if not args.adapter:
            print(
                f"mini: the bundled model and data, with settings of their own: {training.shown(MINI_SETTINGS)}"
            )
    training.fill_in(args, settings, R)
    return args


# ------------------------------------------------------------------------------------------------ scoring


def batch_of(pairs, device):
    """(prompt, completion) pairs -> ids (B, L), mask, where (B, L) the next token is to be learned, and those tokens.

    The prompt's last token predicts the completion's first. Padding is any token: nothing that counts sees
    it.
    """
    ids, mask = pad([prompt + completion for prompt, completion in pairs], 0, device)
    where = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(pairs):
        where[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = True
    return (
        ids,
        mask,
        where.to(device),
        torch.tensor([t for _, completion in pairs for t in completion], device=device),
    )


@torch.no_grad()
def score(model, pairs, device, dtype):
    """{"loss", "perplexity"} of a token of the references, without label smoothing."""
    model.eval()
    total = 0.0
    for batch in sorted_batches([len(p) + len(c) for p, c in pairs], EVAL_BATCH):
        ids, mask, where, target = batch_of([pairs[i] for i in batch], device)
        with training.autocast(device, dtype):
            logits = model(ids, mask, where=where)
        total += F.cross_entropy(logits.float(), target, reduction="sum").item()
    loss = total / sum(len(completion) for _, completion in pairs)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


# ------------------------------------------------------------------------------------------------ generation


def generate(args, model, tokenizer, contexts, device, dtype):
    """One output for each context: a line of text."""
    end = model.config.eos_token_id
    prompts = [[*encoding.ids, end] for encoding in tokenizer.encode_batch(contexts)]
    search = (
        args.max_new_tokens,
        args.beam_size,
        args.length_penalty,
        args.no_repeat_ngram,
        end,
        args.ngram_scope,
    )
    if args.method not in training.UNMERGED:
        model = training.merged(model, args.method)
    with mendable(), training.autocast(device, dtype):
        found = model.generate(prompts, *search)
    return [" ".join(text.split()) for text in tokenizer.decode_batch(found)]


def generate_and_score(args, model, tokenizer, examples, folder, device, dtype):
    """Decodes the test set and scores it; -> ({"BLEU", …, "references"}, seconds of decoding).

    Writes outputs.txt, one output a line, and references.txt, a block for each, as the official script reads
    them.
    """
    groups = e2e.grouped(examples)
    references = list(groups.values())
    started = time.time()
    outputs = generate(args, model, tokenizer, list(groups), device, dtype)
    seconds = time.time() - started
    folder.mkdir(parents=True, exist_ok=True)
    training.write_text(folder / "outputs.txt", "".join(f"{output}\n" for output in outputs))
    training.write_text(
        folder / "references.txt", "\n\n".join("\n".join(block) for block in references) + "\n"
    )
    for context, output in list(zip(groups, outputs, strict=True))[:SHOWN]:
        print(f"  {context}\n    {output}")
    kind = "tokenised" if e2e.is_tokenised(examples) else "raw"
    print(
        f"{len(outputs)} test representations in {seconds:.0f} s: beam {args.beam_size}, length penalty "
        f"{args.length_penalty:g}, no {args.no_repeat_ngram}-gram twice in the {args.ngram_scope}; {kind} references"
    )
    with mendable():
        scores = e2e_scores(outputs, references)
    print(e2e_report(scores))
    return {**scores, "references": kind}, seconds


# ------------------------------------------------------------------------------------------------ one run


def prepare(args, directory, seed, device):
    """The model on `device`, made ready for args.method, and the fingerprint of its base."""
    torch.manual_seed(seed)
    with mendable():
        model = GPT2.from_pretrained(directory)
    training.set_dropout(model, args.dropout)
    base = training.fingerprint(model)
    model.to(device)
    return training.put_in(model, args), base


def train(args, seed, folder, directory, tokenizer, splits, device, dtype):
    """One run into `folder`, and its best epoch on the test set; -> what result.json says."""
    model, base = prepare(args, directory, seed, device)
    if args.init_adapter:
        training.load_adapter(args.init_adapter, model, base, args.method)
    end = model.config.eos_token_id
    pairs, dev = (e2e.encode(tokenizer, splits[name], end, args.max_len) for name in ("train", "dev"))
    lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
    steps = math.ceil(math.ceil(len(pairs) / args.batch_size) / args.accumulate)
    padding = padding_share(lengths, shuffled_batches(lengths, args.batch_size, [seed, 0]))
    run = training.Run(args, seed, folder, model, base, steps, device, "tokens")
    print(
        f"e2e: {len(pairs):,} training examples of {sum(lengths):,} tokens, {padding:.1%} padding in their batches; "
        f"dev {len(dev):,}; test {len(e2e.grouped(splits['test'])):,} representations"
    )
    run.describe(steps, dtype)

    while run.epoch < args.epochs:
        model.train()
        batches = shuffled_batches(lengths, args.batch_size, [seed, run.epoch])
        groups = [batches[i : i + args.accumulate] for i in range(0, len(batches), args.accumulate)]
        for group in run.steps(groups):
            tokens, mean_loss = sum(len(pairs[i][1]) for batch in group for i in batch), 0.0
            for batch in group:
                ids, mask, where, target = batch_of([pairs[i] for i in batch], device)
                with training.autocast(device, dtype):
                    logits = model(ids, mask, where=where)
                loss = (
                    F.cross_entropy(
                        logits.float(), target, reduction="sum", label_smoothing=args.label_smoothing
                    )
                    / tokens
                )
                loss.backward()
                mean_loss += loss.item()
            run.optimizer_step(mean_loss, tokens)
        scores = score(model, dev, device, dtype)
        run.end_epoch(scores, better=run.best is None or scores["loss"] < run.best["loss"])

    training.load_adapter(folder / "adapter.pt", model, base, args.method)
    scores, seconds = generate_and_score(args, model, tokenizer, splits["test"], folder, device, dtype)
    return run.finish(test=scores, timing={"decoding_seconds": seconds})


def evaluate(args, folder, directory, tokenizer, splits, device, dtype):
    """The scores of a model as it is, frozen or that of --adapter, without training; seeds make no difference."""
    model, base = prepare(args, directory, args.seed, device)
    if args.adapter:
        training.load_adapter(args.adapter, model, base, args.method)
        folder = Path(args.out or Path(args.adapter).parent / "eval")
    dev = score(
        model, e2e.encode(tokenizer, splits["dev"], model.config.eos_token_id, args.max_len), device, dtype
    )
    test, seconds = generate_and_score(args, model, tokenizer, splits["test"], folder, device, dtype)
    result = {"task": "e2e", "method": args.method, "r": args.r, "targets": args.targets, "seed": args.seed}
    result |= (
        {"parameters": {"adapter": 0, "head": 0, "frozen": training.count(model.parameters())}}
        if not args.adapter
        else {}
    )
    result |= {"best": {"epoch": 0, **dev}, "test": test, "timing": {"decoding_seconds": seconds}}
    training.write_json(folder / "result.json", result)
    return result


# ------------------------------------------------------------------------------------------------ main


def export(args, model, tokenizer, directory, examples, device):
    """Writes the merged model to --export in HuggingFace's layout, after comparing its logits with the unmerged one's."""
    merged = training.merged(model, args.method).eval()
    model.eval()
    pairs = e2e.encode(tokenizer, examples, model.config.eos_token_id, args.max_len)
    largest = 0.0
    with torch.no_grad():
        for batch in sorted_batches([len(p) + len(c) for p, c in pairs], EVAL_BATCH):
            ids, mask, where, _ = batch_of([pairs[i] for i in batch], device)
            difference = model(ids, mask, where=where) - merged(ids, mask, where=where)
            largest = max(largest, difference.abs().max().item())
    print(f"largest logit difference, merged − unmerged, on {len(pairs):,} dev examples: {largest:.2e}")
    if not largest <= LARGEST_EXPORT_DIFFERENCE:
        raise UserError(f"--export: above {LARGEST_EXPORT_DIFFERENCE:g}; nothing was written")
    merged.save_pretrained(args.export)
    copy_tokenizer(directory, Path(args.export))
    print(f"{args.export}: the merged model, in HuggingFace's layout")


def main():
    args = arguments()
    device, dtype = training.pick_device(args.device, args.dtype)
    out, folders = training.run_folders(args)
    directory = checkpoint(MINI / "gpt2" if args.model == "mini" else args.model)
    with mendable():
        config = read_config(directory, GPT2Config, "gpt2")
    args.max_len = training.check_max_len(args.max_len, config.max_length, shortest=args.max_new_tokens)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    if args.predict:
        with mendable("--predict: "):
            context = e2e.linearise(args.predict)
        model, base = prepare(args, directory, 0, device)
        training.load_adapter(args.adapter, model, base, args.method)
        return print(generate(args, model, tokenizer, [context], device, dtype)[0])

    untrained = args.eval_only or args.method == "frozen"
    wanted = ("dev", "test") if untrained else ("train", "dev", "test")
    splits = e2e.load(args.data, args.train_file, args.dev_file, wanted)
    if untrained:
        result = evaluate(args, out, directory, tokenizer, splits, device, dtype)
        training.report([result], out, None, ("best", "test"))
    else:
        splits["train"] = subset(splits["train"], args.limit_train)
        results = [train(args, s, f, directory, tokenizer, splits, device, dtype) for s, f in folders.items()]
        training.report(results, out, args.seeds, ("best", "last", "test"))
    if args.export:
        seed, folder = next(iter(folders.items()))
        model, base = prepare(args, directory, seed, device)
        if args.method != "frozen":
            training.load_adapter(args.adapter or folder / "adapter.pt", model, base, args.method)
        export(args, model, tokenizer, directory, splits["dev"], device)


if __name__ == "__main__":
    training.run_as_script(main)
