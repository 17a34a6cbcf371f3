"""Fine-tunes T5 on a GLUE task as text to text, with READ or another method: python train_read.py --task cola

The tasks, splits and scores are the READ paper's. A line of a TSV file becomes a score by way of
glue.read_split, glue.read_protocol, encode, Batches, the model, written, glue.label_of, metrics.py's
functions.
"""

if __name__ == "__main__":
    import ctrl_c  # noqa: F401

import json
import statistics
import time

from torch import nn
from torch.nn import functional as F

from adapter import EVAL_BATCH, Predictor, sources_of, written
from arguments import Parser, add_arguments, check_adapter, fill_in, run_as_script, run_folders, whole
from data import UserError, glue, no_nan
from data.batching import Batches, pad, places, send, subset
from data.hub import MINI, open_checkpoint
from device import autocast, peak_memory, pick_device
from methods import T5
from metrics import glue_scores, worth
from processes import all_reduce, leave, share
from run import Run, adamw, compiled, report, say_next
from weights import export, load_adapter, prepare, trained

DEFAULTS = {
    "method": "read", "model": "t5-base", "epochs": 30, "batch_size": 96, "seed": 0,
    "warmup": 0.06, "weight_decay": 0, "patience": 3, "max_len": 512,  # the paper names none of these
}  # fmt: skip
# for the bundled model and data
MINI_SETTINGS = {"batch_size": 32, "patience": 10}
SHORTEST = 5  # tokens of a source: the task's name and prefix are three, the end token is one
IN_USE = 100  # examples that are timed one by one


def arguments():
    epilog = "Model, epochs and batch size are the READ paper's; `sweep read --paper` runs its rates."
    parser, tasks = Parser(description=__doc__.splitlines()[0], epilog=epilog), " ".join(glue.TEXT_TO_TEXT)
    parser.add_argument("--task", help=f"{tasks} (the paper leaves out RTE and WNLI; default: --adapter's)")
    add_arguments(parser, T5, DEFAULTS)
    add = parser.add_argument
    stop = "stop after this many without a better one (default: 3)"
    add("--patience", type=whole, metavar="EPOCHS", help=stop)
    add("--predict", nargs="+", metavar="TEXT", help="the label of one sentence or a pair, by --adapter")
    args = parser.parse_args()
    check_adapter(args, "train_read.py", T5)
    if args.task not in glue.TEXT_TO_TEXT:
        raise UserError(f"--task {args.task or '(none given)'}: expected one of {tasks}")
    if args.dev_file and args.task == "mnli":
        raise UserError(
            "--dev-file: mnli validates on its mismatched and tests on its matched set: give --data"
        )
    if args.max_len is not None and args.max_len < SHORTEST:
        raise UserError(
            f"--max-len {args.max_len}: expected {SHORTEST} or more: less holds nothing of a sentence"
        )
    fill_in(args, T5, DEFAULTS, MINI_SETTINGS, MINI)
    return args


# ---- scoring


def encode(args, tokenizer, examples):
    """(sources, targets) as token ids, each closed by the end token; sources of --max-len tokens at most."""
    words = [glue.target_text(args.task, example.label) for example in examples]
    ids = {word: tokenizer.encode(word).ids for word in set(words)}
    return sources_of(args, tokenizer, examples), [ids[word] for word in words]


def held_out(args, tokenizer, examples):
    return sources_of(args, tokenizer, examples), [example.label for example in examples]


def score(args, model, tokenizer, sources, labels, device, dtype):
    """The task's scores, their mean as "score", and "invalid": how many outputs are no label, and wrong."""
    texts = written(args, model, tokenizer, sources, device, dtype)
    found = [glue.label_of(args.task, text, label) for text, label in zip(texts, labels, strict=True)]
    predicted = [value for value, _ in found]
    scores = glue_scores(glue.TASKS[args.task].scores, predicted, labels)
    scores["score"] = sum(scores.values()) / len(scores)
    scores["invalid"] = sum(not valid for _, valid in found)
    if len(set(predicted)) == 1:
        scores["single_class"] = True
    return scores


def in_use(args, model, tokenizer, sources, device, dtype):
    """What a label costs when sources come one by one: median ms, and the peak memory of this process."""
    times = []
    for source in sources[:IN_USE]:
        started = time.perf_counter()
        written(args, model, tokenizer, [source], device, dtype, batch_size=1)
        times.append(time.perf_counter() - started)
    median = 1000 * statistics.median(times)
    return {"batch_size": 1, "ms_a_label": median, "peak_memory_bytes": peak_memory(device)}


# ---- one run


def train(args, model_class, directory, tokenizer, splits, device, dtype):
    model, base = prepare(args, model_class, directory, device, dtype)
    sources, targets = encode(args, tokenizer, splits["train"])
    held = {name: held_out(args, tokenizer, splits[name]) for name in ("validation", "test")}
    fill = model.config.pad_token_id
    batches = Batches([len(source) for source in sources], args.batch_size, args.accumulate, args.seed)
    optimizer = adamw(model, args)
    run = Run(args, model, base, optimizer, batches.steps, "tokens")
    sizes = f"validation {len(splits['validation']):,}, test {len(splits['test']):,}"
    print(f"{args.task}: {len(sources):,} training examples of {batches}; {sizes}")
    forward, lengths = compiled(model, args, batches)
    run.begin(dtype)

    while run.epoch < args.epochs and not (run.best and run.epoch - run.best["epoch"] >= args.patience):
        model.train()
        for group in run.remaining(batches.epoch(run.epoch)):
            tokens, losses = sum(len(targets[i]) for batch in group for i in batch), []
            for batch in share(group):
                ids, mask = pad([sources[i] for i in batch], fill, device, lengths)
                target, _ = pad([targets[i] for i in batch], fill)
                where, said = places(target != fill, device), send(target[target != fill], device)
                with autocast(device, dtype):
                    logits = forward(ids, mask, model.shifted(send(target, device))).float()
                loss = F.cross_entropy(logits[where], said, reduction="sum") / tokens
                loss.backward()
                losses.append(loss.detach())
            losses = all_reduce(optimizer, losses)
            run.set_rates()
            if args.clip:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.advance(losses, tokens)
        scores = score(args, model, tokenizer, *held["validation"], device, dtype)
        run.end_epoch(scores, better=run.best is None or worth(scores["score"]) > worth(run.best["score"]))
        if scores["invalid"]:
            outputs = f"{scores['invalid']} of {len(splits['validation'])} outputs"
            print(f"  {outputs} are no label, and count as wrong")

    load_adapter(args.out / "adapter.pt", args, model, base)
    return run.finish(test=score(args, model, tokenizer, *held["test"], device, dtype))


# ---- main


def main():
    args = arguments()
    if args.predict:
        return print(*Predictor(args)([args.predict]))
    device, dtype = pick_device(args.device, args.dtype)
    directory, model_class, config, tokenizer = open_checkpoint(args.model, "text to text")
    out, runs = run_folders(args)
    splits = glue.load(args.task, args.data, args.train_file, args.dev_file)
    splits = glue.read_protocol(args.task, splits)
    splits["train"] = subset(splits["train"], args.limit_train)
    if not args.adapter:
        results = [train(one, model_class, directory, tokenizer, splits, device, dtype) for one in runs]
        report(results, out, args.seeds, ("best", "last", "test"))
        say_next(runs[0], T5)
    if not leave() or not (args.eval_only or args.export):
        return

    model = trained(runs[0], model_class, directory, device, dtype)
    if args.eval_only:
        held = {name: held_out(args, tokenizer, splits[name]) for name in ("validation", "test")}
        print(json.dumps(in_use(args, model, tokenizer, held["test"][0], device, dtype)))
        for name, pair in held.items():
            scores = score(args, model, tokenizer, *pair, device, dtype)
            print(json.dumps({"split": name, **no_nan(scores)}))
    if args.export:
        sources, targets = encode(args, tokenizer, splits["validation"])

        def validation_logits(model):
            for start in range(0, len(sources), EVAL_BATCH):
                batch = slice(start, start + EVAL_BATCH)
                ids, mask = pad(sources[batch], config.pad_token_id, device)
                yield model(ids, mask, model.shifted(pad(targets[batch], config.pad_token_id, device)[0]))

        export(args, model, directory, validation_logits, f"{len(sources):,} validation examples")


if __name__ == "__main__":
    run_as_script(main)
