"""Fine-tunes T5 on a GLUE task as text to text, with READ or beside it: python train_read.py --task cola

From top to bottom: settings, arguments, scoring, one run, main. The tasks, splits and scores are the READ
paper's.
"""

import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import baselines
import training
from data import UserError, glue
from data.batching import pad, padding_share, shuffled_batches, subset
from data.hub import MINI, checkpoint, copy_tokenizer, load_tokenizer
from metrics import glue_scores
from model import read_config
from read.lst import LSTT5
from read.network import WIDTH
from read.t5 import T5, T5Config
from training import mendable, peak_memory

METHODS = ("read", "hut", "lst", *baselines.T5_METHODS)
R = {"read": WIDTH, "hut": 8, **baselines.T5_R}
DEFAULTS = {  # the READ paper's; it names no warm-up, weight decay, patience or length
    **{"method": "read", "model": "t5-base", "epochs": 30, "batch_size": 96, "patience": 3},
    **{"warmup": 0.06, "weight_decay": 0, "max_len": 512, "seed": 0},
}
# The paper searches 1e-6 to 3e-3 for each task and method, and prints some of what it found: these are ours.
LR = {
    "read": 1e-3,
    "lst": 1e-3,
    "hut": 1e-3,
    "full": 1e-4,
    "bitfit": 1e-3,
    "houlsby": 5e-4,
    "lora": 5e-4,
    "prompt": 3e-3,
}
MINI_SETTINGS = {"batch_size": 32, "patience": 10}  # for the bundled model and data, with rates of their own
MINI_LR = {  # of the three that `sweep read` tries the best on validation; read the second: at 0.025 one seed of three fails
    **{
        "read": 5e-3,
        "lst": 1e-3,
        "hut": 2.5e-2,
        "full": 1e-3,
        "bitfit": 2.5e-2,
        "houlsby": 2.5e-3,
        "lora": 2.5e-3,
    },
    **{"prompt": 1e-1},
}
SHORTEST = 5  # tokens of a source: the task's name and prefix are three, the end token is one
EVAL_BATCH = 64
IN_USE = 100  # examples that are timed one by one
LARGEST_EXPORT_DIFFERENCE = 1e-3  # of a logit, in float32


def arguments():
    parser = training.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--task", required=True, help=f"{' '.join(glue.TEXT_TO_TEXT)} (the paper leaves out RTE and WNLI)"
    )
    defaults = {
        "method": "read",
        "r": training.shown(R),
        "model": "t5-base, the paper's",
        "settings": f"30 epochs at most, batch 96, the paper's; lr by method, ours: {training.shown(LR)}",
        "warmup": "0.06; the paper names none",
        "weight_decay": "0; the paper names none",
        "dropout": "the checkpoint's own; READ's backbone has none",
        "max_len": "of a source, cut off behind it (default: 512; the paper names none)",
    }
    training.add_arguments(parser, METHODS, defaults)
    parser.add_argument(
        "--patience", type=training.whole, metavar="N", help="stop after N epochs that are not better (default: 3; the "
        "paper stops early, and does not say when)",
    )  # fmt: skip
    parser.add_argument(
        "--unscaled", action="store_true", default=None, help="READ: add the correction as it stands, like the paper's "
        "Algorithm 1 (default: in proportion to what it corrects)",
    )  # fmt: skip
    parser.add_argument(
        "--predict", nargs="+", metavar="TEXT", help="one sentence or a pair: the label by --adapter"
    )
    args = parser.parse_args()
    args.submit = None
    if args.task not in glue.TEXT_TO_TEXT:
        raise UserError(f"--task {args.task}: expected one of {' '.join(glue.TEXT_TO_TEXT)}")
    if args.dev_file and args.task == "mnli":
        raise UserError(
            "--dev-file: mnli validates on its mismatched and tests on its matched set: give --data"
        )
    texts = len(glue.TASKS[args.task].texts)
    if args.predict and len(args.predict) != texts:
        raise UserError(f"--predict: {args.task} takes {texts} text(s), each in quotes")
    training.check_adapter(args, METHODS)
    if args.max_len is not None and args.max_len < SHORTEST:
        raise UserError(
            f"--max-len {args.max_len}: expected {SHORTEST} or more: less holds nothing of a sentence"
        )
    settings, method = DEFAULTS | {"lr": LR[args.method or "read"]}, args.method or "read"
    if (args.model or settings["model"]) == "mini" and not args.data:
        if args.task != "cola":
            raise UserError("--model mini: its data holds cola only; give --data for another task")
        args.data = str(MINI)
        own = MINI_SETTINGS | {"lr": MINI_LR[method]}
        settings |= own
        if not args.adapter:
            print(f"mini: the bundled model and data, with settings of their own: {training.shown(own)}")
    if args.head_lr:
        print(f"--head-lr {args.head_lr:g}: a T5 has no head of its own; it is left out")
        args.head_lr = None
    training.fill_in(args, settings, R)
    if args.unscaled and method != "read":
        raise UserError(f"--unscaled: --method {method} has no such thing: leave it out")
    args.unscaled = bool(args.unscaled) if method == "read" else None
    why = {"hut": " into a T5, which has no place for beta", "lst": ""}
    if args.export and method in why:
        raise UserError(f"--method {method} does not merge{why[method]}: leave --export out")
    return args


# ------------------------------------------------------------------------------------------------ scoring


def encode(args, tokenizer, examples):
    """(sources, targets) as token ids, each closed by the end token; sources of --max-len tokens at most."""
    tokenizer.enable_truncation(args.max_len)
    sources = tokenizer.encode_batch([glue.source_text(args.task, example) for example in examples])
    tokenizer.no_truncation()  # a label's word is never cut
    words = [
        None if example.label is None else glue.target_text(args.task, example.label) for example in examples
    ]
    ids = {word: tokenizer.encode(word).ids for word in set(words) - {None}}
    return [encoding.ids for encoding in sources], [ids.get(word) for word in words]


def written(args, model, tokenizer, sources, device, dtype, batch_size=EVAL_BATCH):
    """What the model writes for each source, greedily: as many tokens as the longest label has."""
    longest = max(len(tokenizer.encode(word).ids) for word in glue.TEXT_TO_TEXT[args.task][1])
    model.eval()
    with mendable(), training.autocast(device, dtype):
        found = model.generate(sources, longest, batch_size=batch_size)
    # a sentinel or an unknown token is a part of what was written, and makes it no label
    return [text.strip() for text in tokenizer.decode_batch(found, skip_special_tokens=False)]


def score(args, model, tokenizer, sources, labels, device, dtype):
    """The task's scores, their mean as "score", and how many outputs are no label, "invalid": these count as wrong."""
    texts = written(args, model, tokenizer, sources, device, dtype)
    found = [glue.label_of(args.task, text, label) for text, label in zip(texts, labels, strict=True)]
    predicted = [value for value, _ in found]
    scores = {name: float(value) for name, value in glue_scores(args.task, predicted, labels).items()}
    scores["score"] = sum(scores.values()) / len(scores)
    scores["invalid"] = sum(not valid for _, valid in found)
    if len(set(predicted)) == 1:
        scores["single_class"] = True
    return scores


def in_use(args, model, tokenizer, sources, device, dtype):
    """What a label costs when sources come one by one: ms each, the median, and peak memory, of a process so far idle."""
    times = []
    for source in sources[:IN_USE]:
        started = time.perf_counter()
        written(args, model, tokenizer, [source], device, dtype, batch_size=1)
        times.append(time.perf_counter() - started)
    return {
        "batch_size": 1,
        "ms_a_label": 1000 * statistics.median(times),
        "peak_memory_bytes": peak_memory(device),
    }


def worth(scores):
    """A score that is not defined (a correlation with a constant) is below every other."""
    return -math.inf if math.isnan(scores["score"]) else scores["score"]


# ------------------------------------------------------------------------------------------------ one run


def train(args, seed, folder, directory, tokenizer, splits, device, dtype):
    """One run into `folder`, and its best epoch on the test set; -> what result.json says."""
    model, base = prepare(args, directory, seed, device)
    if args.init_adapter:
        training.load_adapter(args.init_adapter, model, base, args.method)
    sources, targets = encode(args, tokenizer, splits["train"])
    held = {
        name: (encode(args, tokenizer, splits[name])[0], [example.label for example in splits[name]])
        for name in ("validation", "test")
    }
    lengths, fill = [len(source) for source in sources], model.config.pad_token_id
    steps = math.ceil(math.ceil(len(sources) / args.batch_size) / args.accumulate)
    padding = padding_share(lengths, shuffled_batches(lengths, args.batch_size, [seed, 0]))
    run = training.Run(args, seed, folder, model, base, steps, device, "tokens")
    print(
        f"{args.task}: {len(sources):,} training examples of {sum(lengths):,} tokens, {padding:.1%} padding in their "
        f"batches; validation {len(splits['validation']):,}, test {len(splits['test']):,}"
    )
    run.describe(steps, dtype)

    while run.epoch < args.epochs and not (run.best and run.epoch - run.best["epoch"] >= args.patience):
        model.train()
        batches = shuffled_batches(lengths, args.batch_size, [seed, run.epoch])
        groups = [batches[i : i + args.accumulate] for i in range(0, len(batches), args.accumulate)]
        for group in run.steps(groups):
            tokens, mean_loss = sum(len(targets[i]) for batch in group for i in batch), 0.0
            for batch in group:
                ids, mask = pad([sources[i] for i in batch], fill, device)
                target, said = pad([targets[i] for i in batch], fill, device)
                with training.autocast(device, dtype):
                    logits = model(ids, mask, model.shifted(target))
                if said is not None:
                    logits, target = logits[said], target[said]
                loss = (
                    F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="sum") / tokens
                )
                loss.backward()
                mean_loss += loss.item()
            run.optimizer_step(mean_loss, tokens)
        scores = score(args, model, tokenizer, *held["validation"], device, dtype)
        run.end_epoch(scores, better=run.best is None or worth(scores) > worth(run.best))
        if scores["invalid"]:
            print(
                f"  {scores['invalid']} of {len(splits['validation'])} outputs are no label, and count as wrong"
            )

    training.load_adapter(folder / "adapter.pt", model, base, args.method)
    return run.finish(test=score(args, model, tokenizer, *held["test"], device, dtype))


def prepare(args, directory, seed, device):
    """The model on `device`, made ready for args.method, and the fingerprint of its base."""
    torch.manual_seed(seed)
    with mendable():
        model = T5.from_pretrained(directory)
    base = training.fingerprint(model)
    model.to(device)
    model = LSTT5(model).to(device) if args.method == "lst" else training.put_in(model, args)
    if args.dropout is not None:
        training.set_dropout(model, args.dropout)
    return model, base


# ------------------------------------------------------------------------------------------------ main


def export(args, model, tokenizer, directory, examples, device):
    """Writes the merged model to --export in HuggingFace's layout, after comparing its logits with the unmerged one's."""
    merged = training.merged(model, args.method).eval()
    model.eval()
    sources, targets = encode(args, tokenizer, examples)
    largest, fill = 0.0, model.config.pad_token_id
    with torch.no_grad():
        for start in range(0, len(sources), EVAL_BATCH):
            batch = slice(start, start + EVAL_BATCH)
            ids, mask = pad(sources[batch], fill, device)
            shifted = model.shifted(pad(targets[batch], fill, device)[0])
            largest = max(
                largest, (model(ids, mask, shifted) - merged(ids, mask, shifted)).abs().max().item()
            )
    print(f"largest logit difference, merged − unmerged, on {len(sources):,} examples: {largest:.2e}")
    if not largest <= LARGEST_EXPORT_DIFFERENCE:
        raise UserError(f"--export: above {LARGEST_EXPORT_DIFFERENCE:g}; nothing was written")
    merged.save_pretrained(args.export)
    copy_tokenizer(directory, Path(args.export))
    print(f"{args.export}: the merged model, in HuggingFace's layout")


def main():
    args = arguments()
    device, dtype = training.pick_device(args.device, args.dtype)
    out, folders = training.run_folders(args)
    directory = checkpoint(MINI / "t5" if args.model == "mini" else args.model)
    with mendable():
        config = read_config(directory, T5Config, "t5")
    tokenizer = load_tokenizer(directory, config.vocab_size)
    if args.predict:
        model, base = prepare(args, directory, 0, device)
        training.load_adapter(args.adapter, model, base, args.method)
        example = glue.Example(args.predict[0], args.predict[1] if len(args.predict) == 2 else None, None)
        return print(*written(args, model, tokenizer, encode(args, tokenizer, [example])[0], device, dtype))

    splits = glue.read_protocol(args.task, glue.load(args.task, args.data, args.train_file, args.dev_file))
    splits["train"] = subset(splits["train"], args.limit_train)
    if not args.adapter:
        results = [
            train(args, seed, f, directory, tokenizer, splits, device, dtype) for seed, f in folders.items()
        ]
        training.report(results, out, args.seeds, ("best", "last", "test"))
    if args.eval_only or args.export:
        seed, folder = next(iter(folders.items()))
        model, base = prepare(args, directory, seed, device)
        training.load_adapter(args.adapter or folder / "adapter.pt", model, base, args.method)
        if args.eval_only:
            sources, _ = encode(args, tokenizer, splits["test"])
            print(json.dumps(in_use(args, model, tokenizer, sources, device, dtype)))
            for name in ("validation", "test"):
                sources, labels = encode(args, tokenizer, splits[name])[0], [e.label for e in splits[name]]
                scores = score(args, model, tokenizer, sources, labels, device, dtype)
                print(json.dumps({"split": name, **training.no_nan(scores)}))
        if args.export:
            export(args, model, tokenizer, directory, splits["validation"], device)


if __name__ == "__main__":
    training.run_as_script(main)
