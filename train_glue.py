"""Fine-tunes RoBERTa on a GLUE task, or on a table of yours: python train_glue.py --task cola --r 8

A line of a TSV file becomes a score by way of glue.read_split, glue.encode, Batches, Tokens, the model,
loss_sum, predictions, metrics.py's functions.
"""

if __name__ == "__main__":
    import ctrl_c  # noqa: F401

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from adapter import EVAL_BATCH, Predictor, all_logits, predictions
from arguments import (
    HOLD_OUT,
    Parser,
    add_arguments,
    check_adapter,
    check_max_len,
    check_out_file,
    fill_in,
    run_as_script,
    run_folders,
)
from data import UserError, as_user_error, glue, no_nan, table, write_text
from data.batching import Batches, Tokens, limited, send, sorted_batches
from data.hub import MINI, open_checkpoint
from data.states import FromStates, cached_states
from device import autocast, pick_device
from methods import ENCODER, METHODS
from metrics import glue_scores, worth
from processes import all_reduce, first_then_others, leave, share
from run import Run, adamw, compiled, report, say_next
from weights import export, prepare, trained

DEFAULTS = {
    "method": "hut", "model": "roberta-large", "pool": "first", "warmup": 0.06, "weight_decay": 0, "seed": 0
}  # fmt: skip
MINI_SETTINGS = {"batch_size": 32, "epochs": 30}  # for the bundled model and data


def arguments():
    rows = (glue.TASKS | {"your own data": table.OWN}).items()
    sizes = "; ".join(f"{name} {task.batch_size} × {task.epochs} epochs" for name, task in rows)
    mini = "{batch_size} × {epochs}".format(**MINI_SETTINGS)
    others = f"lora, houlsby and pfeiffer have Table 6's own; with --model mini all have {mini}"
    epilog = f"Batch size and epochs, the paper's or else ours: {sizes}; {others}."
    parser = Parser(description=__doc__.splitlines()[0], epilog=epilog)
    parser.add_argument("--task", help=f"{' '.join(glue.TASKS)} (default: that of --adapter)")
    add_arguments(parser, ENCODER, DEFAULTS | {"max_len": "512, but 128 for lora, houlsby and pfeiffer"})
    add = parser.add_argument_group("a .csv, .tsv or .jsonl of your own, in place of --task").add_argument
    columns = "one or two columns of text; without --dev-file a tenth of --train-file is held out"
    add("--text", nargs="+", metavar="COLUMN", help=columns)
    add("--label", metavar="COLUMN", help="the classes")
    number = {"action": "store_const", "const": [], "dest": "labels"}
    add("--regression", **number, help="the label is a number")
    group = parser.add_argument_group("predictions of --adapter")
    some = group.add_mutually_exclusive_group()
    some.add_argument("--predict", nargs="+", metavar="TEXT", help="the label of one sentence or a pair")
    some.add_argument("--predict-file", metavar="F", help="a label for each row of this table")
    group.add_argument("--out-file", metavar="F", help="the same rows, with columns: predicted, probability")
    features = (
        "for --method read: keep what the frozen model computes, for all epochs (without DIR, in features/ "
        "of the run folder), and for all runs that name DIR, of any task with these texts; "
        "4 bytes × width × layers an example, 0.9 GB for the paper's CoLA"
    )
    add = parser.add_argument
    add("--cache-features", metavar="DIR", nargs="?", const="", help=features)
    pool = "what the head reads: the first token's state, as in the paper (default), or the mean over tokens"
    add("--pool", choices=("first", "mean"), help=pool)
    add("--hold-out", action="store_true", help=HOLD_OUT)
    add("--submit", metavar="DIR", help="write test.tsv's predictions in the leaderboard's format")
    args = parser.parse_args()
    check_out_file(args)
    check_adapter(args, "train_glue.py", ENCODER)
    check_table(args)
    if args.task not in (*glue.TASKS, "own"):
        expected = f"expected one of {' '.join(glue.TASKS)}, or --text and --label"
        raise UserError(f"--task {args.task or '(none given)'}: unknown: {expected}")
    task = glue.TASKS.get(args.task, table.OWN)
    shared = DEFAULTS | {"batch_size": task.batch_size, "epochs": task.epochs}
    fill_in(args, ENCODER, shared, MINI_SETTINGS, MINI if task != table.OWN else None)
    if args.export and args.pool == "mean":
        raise UserError("--export: transformers' RoBERTa has no head that reads a mean, as --pool mean does")
    if args.cache_features is not None and (args.method != "read" or args.adapter):
        raise UserError("--cache-features is for training with --method read: the others change the states")
    return args


def check_table(args):
    """Checks the arguments on a table; sets args.task, to `own`, and args.labels: [] for numbers."""
    if args.text or args.label or args.labels is not None:
        if args.task not in (None, "own"):
            problem = f"--text, --label and --regression are for a table of your own, not for {args.task}"
            raise UserError(f"{problem}: leave --task out")
        args.task = "own"
    if args.task == "own" and (args.data or args.submit):
        raise UserError("--data and --submit are for GLUE's tasks: name a table by --train-file, --dev-file")
    if args.task == "own" and not args.adapter:
        if not (args.train_file and args.text and len(args.text) < 3 and args.label):
            raise UserError("a table needs --train-file, --text COLUMN [COLUMN] and --label COLUMN")
        if args.labels is None:
            args.labels = table.labels_of(args.train_file, args.text, args.label)


# ---- scoring


def score(task, model, sets, device, dtype):
    """Scores on every development set: {"matthews": …, "loss": …}; MNLI's second set's end in _mismatched.

    "loss" is the mean of what training minimises. With "single_class": True where all predictions are one and
    the same: a run that has not learned the task.
    """
    scores = {}
    for name, (inputs, labels) in sets.items():
        logits = all_logits(model, inputs, device, dtype)
        predicted, suffix = predictions(logits), "_mismatched" if name.endswith("_mismatched") else ""
        found = glue_scores(task.scores, predicted, labels)
        found["loss"] = float(loss_sum(logits, torch.tensor(labels))) / len(labels)
        scores |= {key + suffix: x for key, x in found.items()}
        if predicted.min() == predicted.max():
            scores["single_class"] = True
    return scores


# ---- one run


def train(args, model_class, directory, sets, device, dtype):
    """One run into args.out; -> what result.json says."""
    task = table.task_of(args)
    model, base = prepare(args, model_class, directory, device, dtype, num_labels=task.num_labels)
    optimizer, labels = adamw(model, args), torch.tensor(sets["train"][1])
    batches = Batches(sets["train"][0].lengths, args.batch_size, args.accumulate, args.seed)
    run = Run(args, model, base, optimizer, batches.steps, "examples")
    if args.cache_features is not None:
        sets, model = cached(args, model, base, sets, device, dtype), FromStates(model)
    inputs, dev = sets["train"][0], {name: content for name, content in sets.items() if name != "train"}
    dev_sizes = " + ".join(f"{len(answers):,}" for _, answers in dev.values())
    print(f"{args.task}: {len(labels):,} training examples of {batches}; dev {dev_sizes}")
    forward, lengths = compiled(model, args, batches)
    run.begin(dtype)

    while run.epoch < args.epochs:
        model.train()
        for group in run.remaining(batches.epoch(run.epoch)):
            examples, losses = sum(map(len, group)), []
            for batch in share(group):
                target = send(labels[batch], device)
                with autocast(device, dtype):
                    logits = forward(*inputs(batch, lengths))
                loss = loss_sum(logits.float(), target) / examples
                loss.backward()
                losses.append(loss.detach())
            losses = all_reduce(optimizer, losses)
            run.set_rates()
            if args.clip:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.advance(losses, examples)
        scores, main_score = score(task, model, dev, device, dtype), task.scores[0]
        better = run.best is None or worth(scores[main_score]) > worth(run.best[main_score])
        run.end_epoch(scores, better)
    return run.finish()


def cached(args, model, base, sets, device, dtype):
    """`sets` with READ's states in the place of tokens, from the files that --cache-features keeps."""
    root = args.out.parent if args.seeds else args.out  # the states are the same for every seed
    folder, found = Path(args.cache_features or root / "features"), {}
    about = {"checkpoint": base[:16], "pool": args.pool, "dtype": str(dtype)[6:]}
    for name, (tokens, labels) in sets.items():
        with as_user_error(), first_then_others():
            batches = sorted_batches(tokens.lengths, EVAL_BATCH)
            states = cached_states(model, tokens, batches, folder, autocast(device, dtype), **about)
        found[name] = states, labels
    return found


def loss_sum(logits, target):
    """Squared error for scores, cross entropy for classes; summed, to be divided by the step's examples."""
    if logits.shape[1] == 1:
        return F.mse_loss(logits[:, 0], target, reduction="sum")
    return F.cross_entropy(logits, target, reduction="sum")


# ---- a trained adapter


def predict(args):
    """Answers --predict, or each row of --predict-file."""
    predictor = Predictor(args)
    if args.predict:
        answer, probability = predictor([args.predict])[0]
        if probability is not None:
            return print(f"{answer} ({probability:.3f})")
        return print(f"score {answer:.3f}" + " (0 to 5)" * (args.task == "stsb"))
    task, path = predictor.task, args.predict_file
    names = ("predicted", "probability")[: 2 if task.labels else 1]
    rows = table.read(path, task.texts, names)
    items = [[table.cell(path, line, row, name) for name in task.texts] for line, row in rows]
    found = zip(rows, predictor(items, path), strict=True)
    table.write(args.out_file, [row | dict(zip(names, one, strict=False)) for (_, row), one in found])
    print(f"{args.out_file}: {len(rows):,} rows")


def submit(args, model, tests, device, dtype):
    """Predicts {name: Tokens} of test files, into the folder --submit as gluebenchmark.com takes them."""
    task, folder = glue.TASKS[args.task], Path(args.submit)
    folder.mkdir(parents=True, exist_ok=True)
    for name, inputs in tests.items():
        predicted = predictions(all_logits(model, inputs, device, dtype))
        answers = [task.labels[p] if task.labels else f"{min(max(p, 0), 5):.3f}" for p in predicted]
        suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(name, "")
        path = folder / f"{task.folder}{suffix}.tsv"
        rows = (f"{i}\t{answer}\n" for i, answer in enumerate(answers))
        write_text(path, "index\tprediction\n" + "".join(rows))
        print(f"{path}: {len(answers):,} predictions")


# ---- main


def main():
    args = arguments()
    if args.predict or args.predict_file:
        return predict(args)
    device, dtype = pick_device(args.device, args.dtype)
    directory, model_class, config, tokenizer = open_checkpoint(args.model, "classifier")
    task = table.task_of(args)
    shortest, longest = 3 * len(task.texts), METHODS[args.method].max_len or 512  # <s>, a token, </s>
    check_max_len(args, config.max_length, shortest, default=longest)
    out, runs = run_folders(args)

    def tokens(examples):
        return Tokens(glue.encode(tokenizer, examples, args.max_len), config.pad_token_id, device)

    sets, wanted = {}, ("train",) if args.hold_out else ("dev",) if args.adapter else ("train", "dev")
    files = args.train_file, args.dev_file, wanted
    splits = table.load(task, *files) if args.task == "own" else glue.load(args.task, args.data, *files)
    for name, examples in limited(splits, args).items():
        sets[name] = tokens(examples), [example.label for example in examples]
    tests = glue.load(args.task, args.data, splits=("test",)) if args.submit else {}
    tests = {name: tokens(examples) for name, examples in tests.items()}  # before hours of training
    if not args.adapter:
        results = [train(one, model_class, directory, sets, device, dtype) for one in runs]
        report(results, out, args.seeds, ("best", "last"))
        say_next(runs[0], ENCODER)
    if not leave() or not (args.eval_only or args.submit or args.export):
        return

    model = trained(runs[0], model_class, directory, device, dtype, num_labels=task.num_labels)
    dev = {name: content for name, content in sets.items() if name != "train"}
    if args.eval_only:
        print(json.dumps(no_nan(score(task, model, dev, device, dtype))))
    if args.submit:
        submit(args, model, tests, device, dtype)
    if args.export:

        def dev_logits(model):
            return (all_logits(model, inputs, device, torch.float32) for inputs, _ in dev.values())

        examples = f"{sum(len(labels) for _, labels in dev.values()):,} dev examples"
        names = dict(enumerate(task.label_names or ("score",)))
        called = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        export(args, model, directory, dev_logits, examples, **called)


if __name__ == "__main__":
    run_as_script(main)
