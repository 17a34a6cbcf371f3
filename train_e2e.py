"""Fine-tunes GPT-2 to describe restaurants (E2E NLG Challenge), generates, scores: python train_e2e.py --r 4

A row of a CSV file becomes a score by way of e2e.read, e2e.encode, Batches, batch_of, the model, generate,
metrics.e2e_scores.
"""

if __name__ == "__main__":
    import ctrl_c  # noqa: F401

import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from adapter import Predictor, generate
from arguments import (
    HOLD_OUT,
    Parser,
    add_arguments,
    check_adapter,
    check_max_len,
    fill_in,
    not_negative,
    probability,
    run_as_script,
    run_folders,
    whole,
    whole_or_zero,
)
from data import UserError, as_user_error, e2e, write_json, write_text
from data.batching import Batches, limited, pad, places, say_cut, send, sorted_batches
from data.hub import MINI, open_checkpoint
from device import autocast, pick_device
from folder import check_writable
from methods import DECODER
from metrics import e2e_report, e2e_scores
from processes import all_reduce, first, gathered, leave, mine, share
from run import Run, about, adamw, compiled, report, say_next
from weights import SEARCH, count, export, prepare, trained

# the paper's Table 7; it does not say where dropout is: here in all of GPT-2's own places
DEFAULTS = SEARCH | {
    "method": "hut", "model": "gpt2-medium", "epochs": 5, "batch_size": 4, "warmup": 500,
    "weight_decay": 0.01, "dropout": 0.1, "label_smoothing": 0.1, "seed": 0,
}  # fmt: skip
# for the bundled model and data
MINI_SETTINGS = {"epochs": 8, "batch_size": 16, "warmup": 0.06, "dropout": 0.0}
EVAL_BATCH = 32
EXAMPLES = 3  # outputs that are printed beside their inputs


def arguments():
    epilog = "The settings are the paper's Table 7; N-gram scope and new tokens are those of LoRA's decoder."
    parser = Parser(description=__doc__.splitlines()[0], epilog=epilog)
    add_arguments(parser, DECODER, DEFAULTS)
    parser.add_argument("--label-smoothing", type=probability, metavar="E", help="(default: 0.1)")
    says = 'the sentence for "name[…], food[…], …", by --adapter'
    parser.add_argument("--predict", nargs=1, metavar="MR", help=says)
    add = parser.add_argument_group("decoding").add_argument
    add("--beam-size", type=whole, metavar="K", help="1 is greedy (default: 10)")
    add("--length-penalty", type=not_negative, metavar="P", help="(default: 0.9)")
    no_ngram = "no N-gram may repeat; 0: all may (default: 4)"
    add("--no-repeat-ngram", type=whole_or_zero, metavar="N", help=no_ngram)
    add(
        "--ngram-scope",
        choices=("completion", "prompt"),
        help="where none may repeat: in the completion, as in LoRA's decoder (default), or in prompt and "
        "completion, as in transformers, which forbids 4-grams that most references share with their input",
    )
    add("--max-new-tokens", type=whole, metavar="N", help="(default: 64)")
    parser.add_argument("--hold-out", action="store_true", help=HOLD_OUT)
    args = parser.parse_args()
    args.task = "e2e"
    check_adapter(args, "train_e2e.py", DECODER)
    fill_in(args, DECODER, DEFAULTS, MINI_SETTINGS, MINI / "e2e")
    return args


# ---- scoring


def batch_of(pairs, device, lengths=()):
    """(prompt, completion) pairs -> ids (B, L), mask, places where the next token is learned, these tokens.

    The prompt's last token predicts the completion's first. Padding may be any token: nothing that counts
    sees it. With `lengths`, as for `pad`, places are None, for all, so that logits have one shape, and -100
    marks no token.
    """
    ids, mask = pad([prompt + completion for prompt, completion in pairs], 0, device, lengths)
    target = torch.full(ids.shape, -100)
    for row, (prompt, completion) in enumerate(pairs):
        target[row, len(prompt) - 1 : len(prompt) + len(completion) - 1] = torch.tensor(completion)
    if lengths:
        return ids, mask, None, send(target.flatten(), device)
    where = target >= 0
    return ids, mask, places(where, device), send(target[where], device)


@torch.no_grad()
def score(model, pairs, device, dtype):
    """{"loss", "perplexity"} per token of the references, without label smoothing."""
    model.eval()
    total = 0.0
    for batch in mine(sorted_batches(lengths_of(pairs), EVAL_BATCH)):
        ids, mask, where, target = batch_of([pairs[i] for i in batch], device)
        with autocast(device, dtype):
            logits = model(ids, mask, where=where)
        total += F.cross_entropy(logits.float(), target, reduction="sum").item()
    loss = sum(gathered(total)) / sum(len(completion) for _, completion in pairs)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


def lengths_of(pairs):
    return [len(prompt) + len(completion) for prompt, completion in pairs]


# ---- generation


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
    if first():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "outputs.txt", "".join(f"{output}\n" for output in outputs))
        write_text(folder / "references.txt", "\n\n".join("\n".join(block) for block in references) + "\n")
    for context, output in list(zip(groups, outputs, strict=True))[:EXAMPLES]:
        print(f"  {context}\n    {output}")
    kind = "tokenised" if e2e.is_tokenised(examples) else "raw"
    search = f"beam {args.beam_size}, length penalty {args.length_penalty:g}"
    repeats = f"no {args.no_repeat_ngram}-gram twice in the {args.ngram_scope}"
    print(f"{len(outputs)} test inputs in {seconds:.0f} s: {search}, {repeats}; {kind} references")
    with as_user_error():
        scores = e2e_scores(outputs, references)
    print(e2e_report(scores))
    return {**scores, "references": kind}, seconds


# ---- one run


def train(args, model_class, directory, tokenizer, splits, device, dtype):
    """One run into args.out, and its best epoch on the test set; -> what result.json says."""
    model, base = prepare(args, model_class, directory, device, dtype)
    end = model.config.eos_token_id
    pairs, dev = (e2e.encode(tokenizer, splits[name], end, args.max_len) for name in ("train", "dev"))
    say_cut(sum(completion[-1:] != [end] for _, completion in pairs + dev), len(pairs + dev), args.max_len)
    batches = Batches(lengths_of(pairs), args.batch_size, args.accumulate, args.seed)
    optimizer = adamw(model, args)
    run = Run(args, model, base, optimizer, batches.steps, "tokens")
    held = f"dev {len(dev):,}; test {len(e2e.grouped(splits['test'])):,} representations"
    print(f"e2e: {len(pairs):,} training examples of {batches}; {held}")
    forward, lengths = compiled(model, args, batches)
    run.begin(dtype)

    while run.epoch < args.epochs:
        model.train()
        for group in run.remaining(batches.epoch(run.epoch)):
            tokens, losses = sum(len(pairs[i][1]) for batch in group for i in batch), []
            for batch in share(group):
                ids, mask, where, target = batch_of([pairs[i] for i in batch], device, lengths)
                with autocast(device, dtype):
                    logits = forward(ids, mask, where=where).float().flatten(0, -2)
                smoothing = args.label_smoothing
                loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing) / tokens
                loss.backward()
                losses.append(loss.detach())
            losses = all_reduce(optimizer, losses)
            run.set_rates()
            if args.clip:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.advance(losses, tokens)
        scores = score(model, dev, device, dtype)
        run.end_epoch(scores, better=run.best is None or scores["loss"] < run.best["loss"])

    run.memory = run.peak_memory()  # which loading a model resets on a GPU
    model = trained(args, model_class, directory, device)  # for merging, exact
    scores, seconds = generate_and_score(args, model, tokenizer, splits["test"], args.out, device, dtype)
    return run.finish({"decoding_seconds": seconds}, test=scores)


def evaluate(args, model, tokenizer, splits, folder, device, dtype):
    """The scores of a model as it is, frozen or with --adapter, without training."""
    if (folder / "args.json").exists() or (folder / "seed0").exists():
        raise UserError(f"--out {folder}: holds a training run's result: name another for these scores")
    check_writable("--out", folder)
    pairs = e2e.encode(tokenizer, splits["dev"], model.config.eos_token_id, args.max_len)
    dev = score(model, pairs, device, dtype)
    test, seconds = generate_and_score(args, model, tokenizer, splits["test"], folder, device, dtype)
    result = about(args)
    if not args.adapter:
        result["parameters"] = {"adapter": 0, "head": 0, "frozen": count(model.parameters())}
    result |= {"best": {"epoch": 0, **dev}, "test": test, "timing": {"decoding_seconds": seconds}}
    write_json(folder / "result.json", result)
    return result


# ---- main


def check_inputs(splits, tokenizer, max_new_tokens, positions):
    """Raises UserError unless every input leaves room for what follows: in the test set, what is decoded."""
    for name, examples in splits.items():
        longest = 1 + max(len(prompt.ids) for prompt in tokenizer.encode_batch([*e2e.grouped(examples)]))
        new = max_new_tokens if name == "test" else 1
        if longest + new > positions:
            found = f"a {name} input of {longest} tokens and {new} new: the position table holds {positions}"
            raise UserError(f"{found}: lower --max-new-tokens (for a test input), or shorten the input")


def main():
    args = arguments()
    if args.predict:
        return print(*Predictor(args)(args.predict))
    device, dtype = pick_device(args.device, args.dtype)
    directory, model_class, config, tokenizer = open_checkpoint(args.model, "generator")
    check_max_len(args, config.max_length, shortest=1)
    out, runs = run_folders(args)
    untrained = args.adapter or args.method == "frozen"
    wanted = ("train",) if args.hold_out else ("dev",) if untrained else ("train", "dev")
    splits = e2e.load(args.data, args.train_file, args.dev_file, (*wanted, "test"))
    check_inputs(splits, tokenizer, args.max_new_tokens, config.max_length)
    splits = limited(splits, args)
    if not untrained:
        results = [train(one, model_class, directory, tokenizer, splits, device, dtype) for one in runs]
        report(results, out, args.seeds, ("best", "last", "test"))
        say_next(runs[0], DECODER)
    if not leave() or not (untrained or args.export):
        return

    if args.method == "frozen":
        model, _ = prepare(runs[0], model_class, directory, device)
    else:
        model = trained(runs[0], model_class, directory, device)
    if args.eval_only or args.method == "frozen":
        folder = out
        if args.adapter and not args.out:
            name = f"eval-{Path(args.adapter).stem}".replace("eval-adapter", "eval")
            folder = Path(args.adapter).parent / name
        result = evaluate(args, model, tokenizer, splits, folder, device, dtype)
        report([result], folder, None, ("best", "test"))
    if args.export:
        pairs = e2e.encode(tokenizer, splits["dev"], config.eos_token_id, args.max_len)

        def dev_logits(model):
            for batch in sorted_batches(lengths_of(pairs), EVAL_BATCH):
                ids, mask, where, _ = batch_of([pairs[i] for i in batch], device)
                yield model(ids, mask, where=where)

        export(args, model, directory, dev_logits, f"{len(pairs):,} dev examples")


if __name__ == "__main__":
    run_as_script(main)
