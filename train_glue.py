"""Fine-tunes RoBERTa on a GLUE task, with HUT or beside it: python train_glue.py --task cola --r 8

From top to bottom: settings, arguments, the model, scoring, one run, what else a trained adapter is for,
main.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import baselines
import training
from data import UserError, glue
from data.batching import pad, padding_share, shuffled_batches, sorted_batches, subset
from data.hub import MINI, checkpoint, copy_tokenizer, load_tokenizer
from energy import Meter, gpu_of
from metrics import GLUE_SCORES, glue_scores
from model import RobertaClassifier, RobertaConfig, read_config
from read.cache import read_states, write_states
from read.network import WIDTH
from training import mendable

METHODS = ("hut", "read", "head", *baselines.METHODS)
R = {"hut": 8, "read": WIDTH, **baselines.ROBERTA_R}
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
MINI_SETTINGS = {"batch_size": 32, "epochs": 30, "lr": 1e-2}  # for the bundled model and data
DEFAULTS = {"method": "hut", "model": "roberta-large", "warmup": 0.06, "weight_decay": 0, "seed": 0}
EVAL_BATCH = 64
LARGEST_EXPORT_DIFFERENCE = 1e-3  # of a logit, in float32


def arguments():
    table = "; ".join(
        f"{task} {s['batch_size']} × {s['epochs']} epochs, lr {s['lr']:g}" for task, s in SETTINGS.items()
    )
    parser = training.Parser(
        description=__doc__.splitlines()[0], epilog=f"Batch size, epochs and lr a task: {table}."
    )
    parser.add_argument("--task", required=True, help=" ".join(glue.TASKS))
    defaults = {
        "r": training.shown(R),
        "model": "roberta-large, the paper's",
        "settings": "per task, see below: the paper's Table 6, but ours for mnli, qqp and wnli",
        "warmup": "0.06, the paper's",
        "weight_decay": "0; the paper names none",
        "dropout": "the checkpoint's own; the paper names none",
    }
    training.add_arguments(parser, METHODS, defaults)
    parser.add_argument(
        "--predict", nargs="+", metavar="TEXT", help="one sentence or a pair: the label by --adapter"
    )
    parser.add_argument(
        "--cache-features",
        metavar="DIR",
        nargs="?",
        const="",
        help="for --method read: keep what the frozen model computes, and read it from there in every epoch (without DIR: "
        "features/ in the run folder). 4 bytes × width × layers an example: CoLA with roberta-large 0.8 GB",
    )
    parser.add_argument(
        "--submit", metavar="DIR", help="write test.tsv's predictions in the GLUE leaderboard's format"
    )
    args = parser.parse_args()
    if args.task not in glue.TASKS:
        raise UserError(f"--task {args.task}: unknown: expected one of {' '.join(glue.TASKS)}")
    texts = len(glue.TASKS[args.task].texts)
    if args.predict and len(args.predict) != texts:
        raise UserError(f"--predict: {args.task} takes {texts} text(s), each in quotes")
    training.check_adapter(args, METHODS)
    settings = DEFAULTS | SETTINGS[args.task]
    if (args.model or settings["model"]) == "mini" and not args.data:
        if args.task != "cola":
            raise UserError("--model mini: its data holds cola only; give --data for another task")
        args.data = str(MINI)
        settings |= MINI_SETTINGS
        if not args.adapter:
            print(
                f"mini: the bundled model and data, with settings of their own: {training.shown(MINI_SETTINGS)}"
            )
    training.fill_in(args, settings, R)
    if args.cache_features is not None and (args.method != "read" or args.adapter):
        raise UserError(
            "--cache-features is for training with --method read, which alone leaves the backbone as it is"
        )
    return args


# ------------------------------------------------------------------------------------------------ scoring


def logits_of(model, tokens, device, dtype):
    """(N, num_labels) float32, in the order of `tokens`, in eval mode."""
    model.eval()
    logits = torch.empty(len(tokens), model.num_labels)
    with torch.no_grad(), training.autocast(device, dtype):
        for batch in sorted_batches([len(t) for t in tokens], EVAL_BATCH):
            logits[batch] = logits_at(model, tokens, batch, device).float().cpu()
    return logits


def logits_at(model, tokens, batch, device):
    """(B, num_labels) of the examples `batch`: of their tokens, or of states (N, layers, d) that stand in for these."""
    if isinstance(tokens, torch.Tensor):
        return model.from_states(tokens[batch].to(device))
    ids, mask = pad([tokens[i] for i in batch], model.config.pad_token_id, device)
    return model(ids, mask)


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
    tokens, labels = sets["train"]
    labels = torch.tensor(labels, dtype=torch.float32 if task == "stsb" else torch.int64)
    lengths, meter = [len(t) for t in tokens], Meter(gpu_of(device))
    if args.cache_features is not None:
        sets = {name: (cached(args, model, base, name, t, device, dtype), y) for name, (t, y) in sets.items()}
    inputs = sets["train"][0]
    dev = {name: content for name, content in sets.items() if name != "train"}
    steps = math.ceil(math.ceil(len(tokens) / args.batch_size) / args.accumulate)
    padding = padding_share(lengths, shuffled_batches(lengths, args.batch_size, [seed, 0]))
    run = training.Run(args, seed, folder, model, base, steps, device, "examples", HEAD, meter)
    print(
        f"{task}: {len(tokens):,} training examples of {sum(lengths):,} tokens, {padding:.1%} padding in their batches; "
        f"dev {' + '.join(f'{len(labels):,}' for _, labels in dev.values())}"
    )
    run.describe(steps, dtype)

    while run.epoch < args.epochs:
        model.train()
        batches = shuffled_batches(lengths, args.batch_size, [seed, run.epoch])
        groups = [batches[i : i + args.accumulate] for i in range(0, len(batches), args.accumulate)]
        for group in run.steps(groups):
            examples, mean_loss = sum(map(len, group)), 0.0
            for batch in group:
                with training.autocast(device, dtype):
                    logits = logits_at(model, inputs, batch, device)
                loss = loss_sum(task, logits.float(), labels[batch].to(device)) / examples
                loss.backward()
                mean_loss += loss.item()
            run.optimizer_step(mean_loss, examples)
        scores = score(task, model, dev, device, dtype)
        run.end_epoch(
            scores, better=run.best is None or worth(scores[main_score]) > worth(run.best[main_score])
        )
    return run.finish()


def prepare(args, directory, seed, device):
    """The model on `device`, made ready for args.method, and the fingerprint of its base. The head is drawn from `seed`."""
    torch.manual_seed(seed)
    with mendable():
        model = RobertaClassifier.from_pretrained(directory, num_labels=glue.TASKS[args.task].num_labels)
    if args.dropout is not None:
        training.set_dropout(model, args.dropout)
    base = training.fingerprint(model, HEAD)
    model.to(device)
    return training.put_in(model, args, model.classifier), base


def cached(args, model, base, split, tokens, device, dtype):
    """READ's states (N, layers, d) of a split, from the file that --cache-features keeps; it is written if there is none."""
    path = Path(args.cache_features) / f"{args.task}-{split}.states"
    shape = [len(tokens), len(model.roberta.blocks), model.config.hidden_size]
    about = {"checkpoint": base[:16], "max_len": args.max_len, "dtype": str(dtype)[6:], "shape": shape}
    about["examples"] = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]

    def parts():
        for batch in tqdm(
            sorted_batches([len(t) for t in tokens], EVAL_BATCH), path.name, disable=None, leave=False
        ):
            ids, mask = pad([tokens[i] for i in batch], model.config.pad_token_id, device)
            with training.autocast(device, dtype):
                states = model.states(ids, mask)
            yield batch, states

    model.eval()
    with mendable():
        if not path.exists():
            write_states(path, about, parts())
            print(f"{path}: {path.stat().st_size / 2**20:,.1f} MiB of states, for all epochs")
        return read_states(path, about)


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
    for name, examples in glue.load(args.task, args.data, splits=("test",)).items():
        logits = logits_of(model, glue.encode(tokenizer, examples, args.max_len), device, dtype)
        predicted = predictions(args.task, logits)
        answers = [f"{min(max(p, 0), 5):.3f}" if args.task == "stsb" else spec.labels[p] for p in predicted]
        suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(name, "")
        path = folder / f"{spec.folder}{suffix}.tsv"
        text = "index\tprediction\n" + "".join(f"{i}\t{answer}\n" for i, answer in enumerate(answers))
        training.write_text(path, text)
        print(f"{path}: {len(answers):,} predictions")


def export(args, model, directory, dev, device):
    """Writes the merged model to --export in HuggingFace's layout, after comparing its logits with the unmerged one's."""
    merged = training.merged(model, args.method)
    tokens = [t for part, _ in dev.values() for t in part]
    difference = (
        logits_of(model, tokens, device, torch.float32) - logits_of(merged, tokens, device, torch.float32)
    ).abs()
    print(
        f"largest logit difference, merged − unmerged, on {len(tokens):,} dev examples: {difference.max():.2e}"
    )
    if not difference.max() <= LARGEST_EXPORT_DIFFERENCE:
        raise UserError(f"--export: above {LARGEST_EXPORT_DIFFERENCE:g}; nothing was written")
    labels = dict(enumerate(glue.TASKS[args.task].label_names)) if args.task != "stsb" else {0: "score"}
    names = {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
    merged.save_pretrained(args.export, **names)
    copy_tokenizer(directory, Path(args.export))
    print(f"{args.export}: the merged model, in HuggingFace's layout")


# ------------------------------------------------------------------------------------------------ main


def main():
    args = arguments()
    device, dtype = training.pick_device(args.device, args.dtype)
    out, folders = training.run_folders(args)
    if args.cache_features == "":
        args.cache_features = out / "features"
    directory = checkpoint(MINI / "roberta" if args.model == "mini" else args.model)
    with mendable():
        config = read_config(directory, RobertaConfig, "roberta")
    args.max_len = training.check_max_len(args.max_len, config.max_length, shortest=3)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    if args.predict:
        model, base = prepare(args, directory, 0, device)
        training.load_adapter(args.adapter, model, base, args.method, HEAD)
        return predict(args, model, tokenizer, device, dtype)

    wanted = ("dev",) if args.adapter else ("train", "dev")
    splits = glue.load(args.task, args.data, args.train_file, args.dev_file, wanted)
    if "train" in splits:
        splits["train"] = subset(splits["train"], args.limit_train)
    sets = {
        split: (glue.encode(tokenizer, examples, args.max_len), [example.label for example in examples])
        for split, examples in splits.items()
    }
    dev = {split: content for split, content in sets.items() if split != "train"}

    if not args.adapter:
        results = [
            train(args, seed, folder, directory, sets, device, dtype) for seed, folder in folders.items()
        ]
        training.report(results, out, args.seeds, ("best", "last"))
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


if __name__ == "__main__":
    training.run_as_script(main)
