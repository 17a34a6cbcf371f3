"""Fine-tunes RoBERTa on a GLUE task, with HUT or beside it: python train_glue.py --task cola --r 8

From top to bottom: settings, arguments, the model, scoring, one run, what else a trained adapter is for, main.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import training
from data import UserError, glue
from data.batching import pad, padding_share, shuffled_batches, sorted_batches
from data.hub import MINI, checkpoint, load_tokenizer
from metrics import GLUE_SCORES, glue_scores
from model import RobertaClassifier, RobertaConfig, read_config
from training import mendable

METHODS = ("hut", "full", "head")
HEAD = "classifier."
SETTINGS = {  # the paper's Table 6; the last three rows are ours, where the paper gives none
    "sst2": {"batch_size": 8, "epochs": 20, "lr": 1e-4},
    "mrpc": {"batch_size": 16, "epochs": 20, "lr": 5e-3},
    "cola": {"batch_size": 4, "epochs": 40, "lr": 1e-3},
    "qnli": {"batch_size": 8, "epochs": 10, "lr": 2e-4},
    "rte": {"batch_size": 16, "epochs": 80, "lr": 2e-3},
    "stsb": {"batch_size": 16, "epochs": 40, "lr": 5e-3},
    "mnli": {"batch_size": 16, "epochs": 10, "lr": 2e-4},
    "qqp": {"batch_size": 16, "epochs": 10, "lr": 2e-4},
    "wnli": {"batch_size": 16, "epochs": 40, "lr": 2e-3},
}
MINI_SETTINGS = {"batch_size": 16, "epochs": 10, "lr": 1e-2}  # for the bundled model and data
DEFAULTS = {
    "method": "hut",
    "r": 8,
    "targets": "qv",
    "model": "roberta-large",
    "warmup": 0.06,
    "weight_decay": 0.0,
    "seed": 0,
}
EVAL_BATCH = 64
LARGEST_EXPORT_DIFFERENCE = 1e-3  # of a logit, in float32


def arguments():
    paper = "per task, the paper's Table 6; ours for mnli, qqp and wnli"
    parser = training.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, help=" ".join(glue.TASKS))
    training.add_arguments(parser, METHODS, paper, model="roberta-large", r=8, warmup="0.06, the paper's")
    parser.add_argument("--predict", nargs="+", metavar="TEXT", help="one sentence or a pair: the label by --adapter")
    parser.add_argument("--submit", metavar="DIR", help="write test.tsv's predictions in the GLUE leaderboard's format")
    args = parser.parse_args()

    if args.task not in glue.TASKS:
        raise UserError(f"--task {args.task}: unknown: expected one of {' '.join(glue.TASKS)}")
    if (args.eval_only or args.predict) and not args.adapter:
        raise UserError("--eval-only and --predict need --adapter FILE")
    if args.adapter and not (args.eval_only or args.predict):
        raise UserError("--adapter is for --eval-only and --predict; to start training from one, use --init-adapter")
    if args.predict and len(args.predict) != len(glue.TASKS[args.task].texts):
        raise UserError(f"--predict: {args.task} takes {len(glue.TASKS[args.task].texts)} text(s), each in quotes")
    if args.adapter:  # it knows how it was made
        training.follow_adapter(args)
    settings = DEFAULTS | SETTINGS[args.task]
    if (args.model or settings["model"]) == "mini" and not args.data:
        if args.task != "cola" and not args.predict:
            raise UserError("--model mini: its data holds cola only; give --data for another task")
        args.data = str(MINI)
        settings |= MINI_SETTINGS
        print(f"mini: the bundled model and data, with settings of their own: {MINI_SETTINGS}")
    for name, value in settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.head_lr = args.head_lr or args.lr
    return args


# ------------------------------------------------------------------------------------------------ scoring


def logits_of(model, tokens, device, dtype):
    """(N, num_labels) float32, in the order of `tokens`, in eval mode."""
    model.eval()
    logits = torch.empty(len(tokens), model.num_labels)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in sorted_batches([len(t) for t in tokens], EVAL_BATCH):
            ids, mask = pad([tokens[i] for i in batch], model.config.pad_token_id, device)
            logits[batch] = model(ids, mask).float().cpu()
    return logits


def predictions(task, logits):
    return logits[:, 0].numpy() if task == "stsb" else logits.argmax(1).numpy()


def score(task, model, sets, device, dtype):
    """Scores on every development set: {"matthews": …}, with _mismatched behind the name for MNLI's second set.

    With "single_class": True where all predictions are one and the same, a run that has not learned the task.
    """
    scores = {}
    for name, (tokens, labels) in sets.items():
        predicted = predictions(task, logits_of(model, tokens, device, dtype))
        suffix = "_mismatched" if name.endswith("_mismatched") else ""
        scores |= {key + suffix: float(value) for key, value in glue_scores(task, predicted, labels).items()}
        if len(np.unique(predicted)) == 1:
            scores["single_class"] = True
    return scores


# ------------------------------------------------------------------------------------------------ one run


def train(args, seed, folder, directory, sets, device, dtype):
    """One run into `folder`; -> what result.json says."""
    task, main_score = args.task, GLUE_SCORES[args.task][0]
    model, base = prepare(args, directory, seed, device)
    if args.init_adapter:
        training.load_adapter(args.init_adapter, model, base, args.method, HEAD, with_head=False)
    adapter, head = training.trainable(model, HEAD)
    frozen = training.count(p for p in model.parameters() if not p.requires_grad)
    parameters = {"adapter": training.count(adapter.values()), "head": training.count(head.values()), "frozen": frozen}
    settings = {key: value for key, value in vars(args).items() if key not in NOT_TRAINING} | {"seed": seed}
    saved = training.open_run(folder, settings, args.resume, args.overwrite)

    tokens, labels = sets["train"]
    dev = {name: content for name, content in sets.items() if name != "train"}
    labels = torch.tensor(labels, dtype=torch.float32 if task == "stsb" else torch.int64)
    lengths = [len(t) for t in tokens]
    steps = math.ceil(math.ceil(len(tokens) / args.batch_size) / args.accumulate)
    total = args.epochs * steps
    warmup = training.warmup_steps(args.warmup, total)
    optimizer = training.make_optimizer(adapter, head, args)
    config = {"r": args.r, "targets": args.targets, "model": args.model, "max_len": args.max_len}
    header = {"method": args.method, "config": config, "task": task, "base": base}
    run = training.Run(folder, header, adapter, head, optimizer, total, device)
    if saved:
        run.restore(saved)
        print(f"seed {seed}: goes on after epoch {run.epoch}, step {run.step} of {total}")
    else:
        padding = padding_share(lengths, shuffled_batches(lengths, args.batch_size, [seed, 0]))
        print(
            f"{task}: {len(tokens):,} training examples of {sum(lengths):,} tokens, {padding:.1%} padding in their batches; "
            f"dev {' + '.join(f'{len(t):,}' for t, _ in dev.values())}"
        )
        print(
            f"{args.method}: {parameters['adapter']:,} adapter + {parameters['head']:,} head parameters are trained, "
            f"{frozen:,} are frozen"
        )
        print(
            f"{args.epochs} epochs of {steps:,} steps of {args.batch_size * args.accumulate} examples; AdamW, lr "
            f"{args.lr:g} (head {args.head_lr:g}), {warmup} warm-up steps; {device}, {str(dtype)[6:]}, seed {seed}"
        )

    while run.epoch < args.epochs:
        model.train()
        batches = shuffled_batches(lengths, args.batch_size, [seed, run.epoch])
        groups = [batches[i : i + args.accumulate] for i in range(0, len(batches), args.accumulate)]
        for group in run.steps(groups):
            run.set_lr(warmup)
            examples, group_loss = sum(map(len, group)), 0.0
            for batch in group:
                ids, mask = pad([tokens[i] for i in batch], model.config.pad_token_id, device)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits = model(ids, mask)
                loss = loss_sum(task, logits.float(), labels[batch].to(device)) / examples
                loss.backward()
                group_loss += loss.item()
            if not math.isfinite(group_loss):
                raise run.not_finite()
            if args.clip:
                torch.nn.utils.clip_grad_norm_([*adapter.values(), *head.values()], args.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.took_step(group_loss, examples)
        scores = score(task, model, dev, device, dtype)
        run.end_epoch(scores, better=run.best is None or worth(scores[main_score]) > worth(run.best[main_score]))

    names = {"task": task, "method": args.method, "r": args.r, "targets": args.targets, "seed": seed}
    timing = {
        "seconds": run.seconds if saved and not run.steps_here else run.elapsed(),
        "peak_memory_bytes": training.peak_memory(device),
    }
    result = {**names, "parameters": parameters, "best": run.best, "last": run.last, "timing": timing}
    training.write_json(folder / "result.json", result)
    return result


def prepare(args, directory, seed, device):
    """The model on `device`, made ready for args.method, and the fingerprint of its base. The head is drawn from `seed`."""
    torch.manual_seed(seed)
    with mendable():
        model = RobertaClassifier.from_pretrained(directory, num_labels=glue.TASKS[args.task].num_labels)
    if args.dropout is not None:
        training.set_dropout(model, args.dropout)
    base = training.fingerprint(model, HEAD)
    model.to(device)
    training.put_in(model, args.method, args.r, args.targets, model.classifier)
    return model, base


def loss_sum(task, logits, target):
    """Squared error for scores, cross entropy for classes; summed, to be divided by the examples of the whole step."""
    if task == "stsb":
        return F.mse_loss(logits[:, 0], target, reduction="sum")
    return F.cross_entropy(logits, target, reduction="sum")


def worth(value):
    """A score that is not defined (a correlation with a constant) is below every other."""
    return -math.inf if math.isnan(value) else value


# ------------------------------------------------------------------------------------------------ a trained adapter


def predict(args, model, tokenizer, device, dtype):
    """Prints the label of --predict's text or pair, with its probability."""
    example = glue.Example(args.predict[0], args.predict[1] if len(args.predict) == 2 else None, None)
    logits = logits_of(model, glue.encode(tokenizer, [example], args.max_len), device, dtype)[0]
    if args.task == "stsb":
        print(f"score {logits[0]:.3f} (0 to 5)")
    else:
        best = int(logits.argmax())
        print(f"{glue.TASKS[args.task].label_names[best]} ({logits.softmax(0)[best]:.3f})")


def submit(args, model, tokenizer, device, dtype):
    """Predicts the test files, and writes them to the folder --submit as gluebenchmark.com takes them."""
    spec, folder = glue.TASKS[args.task], Path(args.submit)
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in glue.load(args.task, args.data, test=True).items():
        logits = logits_of(model, glue.encode(tokenizer, examples, args.max_len), device, dtype)
        predicted = predictions(args.task, logits)
        answers = [f"{min(max(p, 0), 5):.3f}" if args.task == "stsb" else spec.labels[p] for p in predicted]
        suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(name, "")
        path = folder / f"{spec.folder}{suffix}.tsv"
        text = "index\tprediction\n" + "".join(f"{i}\t{answer}\n" for i, answer in enumerate(answers))
        training.write_file(path, lambda file, text=text: file.write(text.encode()))
        print(f"{path}: {len(answers):,} predictions")


def export(args, model, directory, dev, device):
    """Writes the merged model to --export in HuggingFace's layout, after comparing its logits with the unmerged one's."""
    merged = training.merged(model, args.method)
    tokens = [t for part, _ in dev.values() for t in part]
    difference = (logits_of(model, tokens, device, torch.float32) - logits_of(merged, tokens, device, torch.float32)).abs()
    print(f"largest logit difference, merged − unmerged, on {len(tokens):,} dev examples: {difference.max():.2e}")
    if not difference.max() <= LARGEST_EXPORT_DIFFERENCE:
        raise UserError(f"--export: above {LARGEST_EXPORT_DIFFERENCE:g}; nothing was written")
    labels = dict(enumerate(glue.TASKS[args.task].label_names)) if args.task != "stsb" else {0: "score"}
    names = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
    merged.save_pretrained(args.export, **names)
    shutil.copyfile(directory / "tokenizer.json", Path(args.export) / "tokenizer.json")
    print(f"{args.export}: the merged model, in HuggingFace's layout")


# ------------------------------------------------------------------------------------------------ main

NOT_TRAINING = (
    "seed",
    "seeds",
    "out",
    "resume",
    "overwrite",
    "adapter",
    "eval_only",
    "predict",
    "submit",
    "export",
    "device",
)


def main():
    args = arguments()
    device, dtype = training.pick_device(args.device, args.dtype)
    name = f"{args.task}-{args.method}-r{args.r}"
    out = Path(args.out or f"runs/{name}" + ("" if args.seeds else f"-seed{args.seed}"))
    folders = {seed: out / f"seed{seed}" for seed in range(args.seeds)} if args.seeds else {args.seed: out}
    if not args.adapter:
        for folder in folders.values():
            training.check_out(folder, args.resume, args.overwrite)

    directory = checkpoint(MINI / "roberta" if args.model == "mini" else args.model)
    with mendable():
        config = read_config(directory, RobertaConfig, "roberta")
    if args.max_len and not 3 <= args.max_len <= config.max_length:
        raise UserError(f"--max-len {args.max_len}: expected 3 to {config.max_length}, what the position table holds")
    args.max_len = args.max_len or min(512, config.max_length)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    if args.predict:
        model, base = prepare(args, directory, 0, device)
        training.load_adapter(args.adapter, model, base, args.method, HEAD)
        return predict(args, model, tokenizer, device, dtype)

    splits = glue.load(args.task, args.data, args.train_file, args.dev_file)
    splits["train"] = glue.subset(splits["train"], args.limit_train)
    sets = {
        split: (glue.encode(tokenizer, examples, args.max_len), [example.label for example in examples])
        for split, examples in splits.items()
    }
    dev = {split: content for split, content in sets.items() if split != "train"}

    if not args.adapter:
        results = [train(args, seed, folder, directory, sets, device, dtype) for seed, folder in folders.items()]
        for result in results:
            print(f"seed {result['seed']}: best {shown(result['best'])}; last {shown(result['last'])}")
        if args.seeds:
            summary = {key: training.mean_and_std(results, key) for key in ("best", "last")}
            together = {**results[0], "seed": list(folders), **summary, "runs": results}
            training.write_json(out / "result.json", together)
            for key, scores in summary.items():
                print(
                    f"{key}: "
                    + "  ".join(
                        f"{k} {s['mean']:.4f} ± {s['std'] or 0:.4f}" for k, s in scores.items() if s["mean"] is not None
                    )
                )
    if args.eval_only or args.submit or args.export:
        seed = next(iter(folders))
        model, base = prepare(args, directory, seed, device)
        training.load_adapter(args.adapter or folders[seed] / "adapter.pt", model, base, args.method, HEAD)
        if args.eval_only:
            print(json.dumps(training.no_nan(score(args.task, model, dev, device, dtype))))
        if args.submit:
            submit(args, model, tokenizer, device, dtype)
        if args.export:
            export(args, model, directory, dev, device)


def shown(scores):
    return ", ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in scores.items())


if __name__ == "__main__":
    training.run_as_script(main)
