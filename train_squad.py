"""Fine-tunes RoBERTa to find the answer of a question in a text (SQuAD v1.1): python train_squad.py --r 8

From top to bottom: settings, arguments, scoring, one run, what else a trained adapter is for, main.
"""

import json
import math
from pathlib import Path

import torch
from torch.nn import functional as F

import baselines
import training
from data import UserError, squad
from data.batching import padding_share, shuffled_batches, sorted_batches, subset
from data.hub import MINI, checkpoint, copy_tokenizer, load_tokenizer
from metrics import squad_scores
from model import RobertaConfig, RobertaSpan, read_config
from read.network import WIDTH
from training import mendable

METHODS = ("hut", "read", "head", *baselines.METHODS)
R = {"hut": 8, "read": WIDTH, **baselines.ROBERTA_R}
HEAD = "qa_outputs."
DEFAULTS = {  # the paper's settings for SQuAD are not known: those of QNLI in its Table 6, whose pairs are made from SQuAD
    **{"method": "hut", "model": "roberta-large", "seed": 0},
    **{"epochs": 10, "batch_size": 8, "lr": 2e-4, "warmup": 0.06, "weight_decay": 0},
}
MINI_SETTINGS = {
    "epochs": 8,
    "batch_size": 32,
    "lr": 4e-2,
    "doc_stride": 32,
    "dropout": 0.0,
}  # for the bundled model and data
EVAL_BATCH = 32
LARGEST_EXPORT_DIFFERENCE = 1e-3  # of a logit, in float32


def arguments():
    parser = training.Parser(description=__doc__.splitlines()[0])
    defaults = {
        "r": training.shown(R),
        "model": "roberta-large, the paper's",
        "settings": "ours, as the paper has them for QNLI: 10 epochs, batch 8, lr 0.0002",
        "warmup": "0.06, the paper's for GLUE",
        "weight_decay": "0; the paper names none",
        "dropout": "the checkpoint's own; the paper names none",
        "max_len": "of a window (default: 512, or the model's position table if that is shorter)",
    }
    training.add_arguments(parser, METHODS, defaults)
    parser.add_argument(
        "--doc-stride",
        type=training.whole_or_0,
        metavar="TOKENS",
        help="what is longer than --max-len is read in windows that overlap by this (default: ours, 128 or a third "
        "of --max-len)",
    )
    parser.add_argument(
        "--limit-dev", type=training.whole, metavar="N", help="score the first N questions of the dev file"
    )
    parser.add_argument(
        "--predict", nargs=2, metavar=("QUESTION", "TEXT"), help="the answer in the text, by --adapter"
    )
    parser.add_argument(
        "--submit", metavar="DIR", help="write the dev set's answers as the official script reads them"
    )
    args = parser.parse_args()
    if args.predict and not all(map(str.strip, args.predict)):
        raise UserError("--predict: expected a question and a text, each in quotes")
    args.task = "squad"
    training.check_adapter(args, METHODS)
    settings = DEFAULTS
    if (args.model or settings["model"]) == "mini" and not args.data:
        args.data = str(MINI / "squad")
        settings = settings | MINI_SETTINGS
        if not args.adapter:
            print(
                f"mini: the bundled model and data, with settings of their own: {training.shown(MINI_SETTINGS)}"
            )
    training.fill_in(args, settings, R)
    return args


# ------------------------------------------------------------------------------------------------ scoring


@torch.no_grad()
def answers_of(model, questions, windows, device, dtype):
    """[(answer, its probability)], one for each question: the likeliest span of all its windows."""
    model.eval()
    best = [("", -math.inf)] * len(questions)
    for batch in sorted_batches([len(window.ids) for window in windows], EVAL_BATCH):
        some = [windows[i] for i in batch]
        start, end, of_text = log_probabilities(model, some, device, dtype)
        for window, *span, score in zip(
            some, *(t.tolist() for t in squad.best_spans(start, end, of_text)), strict=True
        ):
            if score > best[window.question][1]:
                best[window.question] = (squad.cut(questions[window.question].context, window, *span), score)
    return [(answer, math.exp(score)) for answer, score in best]


def log_probabilities(model, windows, device, dtype):
    """Log-probabilities of start and end, each (B, L), and where (B, L) an answer can be."""
    ids, mask, of_text = squad.batch_of(windows, model.config.pad_token_id, device)
    with training.autocast(device, dtype):
        start, end = model(ids, mask)
    return squad.log_probabilities(start, of_text), squad.log_probabilities(end, of_text), of_text


def score(model, questions, windows, device, dtype):
    """{"exact_match", "f1"}, in percent, as the official script gives them."""
    answers = [answer for answer, _ in answers_of(model, questions, windows, device, dtype)]
    return squad_scores(answers, [[words for _, words in question.answers] for question in questions])


# ------------------------------------------------------------------------------------------------ one run


def train(args, seed, folder, directory, sets, device, dtype):
    """One run into `folder`; -> what result.json says."""
    model, base = prepare(args, directory, seed, device)
    if args.init_adapter:
        training.load_adapter(args.init_adapter, model, base, args.method, HEAD, with_head=False)
    questions, windows = sets["train"]
    targets = torch.tensor(
        [squad.target(window, questions[window.question].answers[0]) for window in windows]
    )
    lengths = [len(window.ids) for window in windows]
    steps = math.ceil(math.ceil(len(windows) / args.batch_size) / args.accumulate)
    padding = padding_share(lengths, shuffled_batches(lengths, args.batch_size, [seed, 0]))
    run = training.Run(args, seed, folder, model, base, steps, device, "windows", HEAD)
    print(
        f"squad: {len(questions):,} training questions in {len(windows):,} windows of {sum(lengths):,} tokens, "
        f"{padding:.1%} padding in their batches; dev {len(sets['dev'][0]):,} in {len(sets['dev'][1]):,}"
    )
    lost = {split: squad.unreachable(*content) for split, content in sets.items()}
    print(f"questions whose answer is no span of up to {squad.MAX_ANSWER} tokens: {training.shown(lost)}")
    run.describe(steps, dtype)

    while run.epoch < args.epochs:
        model.train()
        batches = shuffled_batches(lengths, args.batch_size, [seed, run.epoch])
        groups = [batches[i : i + args.accumulate] for i in range(0, len(batches), args.accumulate)]
        for group in run.steps(groups):
            examples, mean_loss = sum(map(len, group)), 0.0
            for batch in group:
                start, end, _ = log_probabilities(model, [windows[i] for i in batch], device, dtype)
                loss = loss_sum(start, end, targets[batch].to(device)) / examples
                loss.backward()
                mean_loss += loss.item()
            run.optimizer_step(mean_loss, examples)
        scores = score(model, *sets["dev"], device, dtype)
        run.end_epoch(scores, better=run.best is None or scores["f1"] > run.best["f1"])
    return run.finish(unreachable=lost)


def prepare(args, directory, seed, device):
    """The model on `device`, made ready for args.method, and the fingerprint of its base. The head is drawn from `seed`."""
    torch.manual_seed(seed)
    with mendable():
        model = RobertaSpan.from_pretrained(directory)
    if args.dropout is not None:
        training.set_dropout(model, args.dropout)
    base = training.fingerprint(model, HEAD)
    model.to(device)
    return training.put_in(model, args, model.qa_outputs), base


def loss_sum(start, end, target):
    """Cross entropy of the answer's start and end, their mean; summed, to be divided by the windows of the whole step."""
    return (
        F.nll_loss(start, target[:, 0], reduction="sum") + F.nll_loss(end, target[:, 1], reduction="sum")
    ) / 2


# ------------------------------------------------------------------------------------------------ a trained adapter


def predict(args, model, tokenizer, device, dtype):
    """Prints the answer to --predict's question, with its probability."""
    questions = [squad.Question("--predict", *args.predict)]
    windows = squad.encode(tokenizer, questions, args.max_len, args.doc_stride)
    answer, probability = answers_of(model, questions, windows, device, dtype)[0]
    print(f"{answer} ({probability:.3f})")


def submit(args, model, dev, device, dtype):
    """Writes {id: answer} of the dev set to predictions.json in --submit, for the official script to score."""
    answers = answers_of(model, *dev, device, dtype)
    found = {question.id: answer for question, (answer, _) in zip(dev[0], answers, strict=True)}
    folder = Path(args.submit)
    folder.mkdir(parents=True, exist_ok=True)
    training.write_json(folder / "predictions.json", found)
    print(f"{folder / 'predictions.json'}: {len(found):,} answers")


def export(args, model, directory, windows, device):
    """Writes the merged model to --export in HuggingFace's layout, after comparing its logits with the unmerged one's."""
    merged = training.merged(model, args.method).eval()
    model.eval()
    largest = 0.0
    with torch.no_grad():
        for batch in sorted_batches([len(window.ids) for window in windows], EVAL_BATCH):
            ids, mask, of_text = squad.batch_of(
                [windows[i] for i in batch], model.config.pad_token_id, device
            )
            for ours, theirs in zip(model(ids, mask), merged(ids, mask), strict=True):
                largest = max(largest, (ours - theirs)[of_text].abs().max().item())
    print(f"largest logit difference, merged − unmerged, on {len(windows):,} dev windows: {largest:.2e}")
    if not largest <= LARGEST_EXPORT_DIFFERENCE:
        raise UserError(f"--export: above {LARGEST_EXPORT_DIFFERENCE:g}; nothing was written")
    merged.save_pretrained(args.export)
    copy_tokenizer(directory, Path(args.export))
    print(f"{args.export}: the merged model, in HuggingFace's layout")


# ------------------------------------------------------------------------------------------------ main


def main():
    args = arguments()
    device, dtype = training.pick_device(args.device, args.dtype)
    out, folders = training.run_folders(args)
    directory = checkpoint(MINI / "roberta" if args.model == "mini" else args.model)
    with mendable():
        config = read_config(directory, RobertaConfig, "roberta")
    args.max_len = training.check_max_len(args.max_len, config.max_length, shortest=5)
    if args.doc_stride is None:
        args.doc_stride = min(128, args.max_len // 3)
    tokenizer = load_tokenizer(directory, config.vocab_size)
    if args.predict:
        model, base = prepare(args, directory, 0, device)
        training.load_adapter(args.adapter, model, base, args.method, HEAD)
        return predict(args, model, tokenizer, device, dtype)

    splits = squad.load(
        args.data, args.train_file, args.dev_file, ("dev",) if args.adapter else ("train", "dev")
    )
    if "train" in splits:
        splits["train"] = subset(splits["train"], args.limit_train)
    splits["dev"] = splits["dev"][: args.limit_dev]
    sets = {
        split: (questions, squad.encode(tokenizer, questions, args.max_len, args.doc_stride))
        for split, questions in splits.items()
    }

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
            print(json.dumps(score(model, *sets["dev"], device, dtype)))
        if args.submit:
            submit(args, model, sets["dev"], device, dtype)
        if args.export:
            export(args, model, directory, sets["dev"][1], device)


if __name__ == "__main__":
    training.run_as_script(main)
