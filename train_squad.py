"""Fine-tunes RoBERTa to find the answer of a question in a text (SQuAD v1.1): python train_squad.py --r 8

A question of a JSON file becomes a score by way of squad.read, squad.encode, Batches, log_probabilities,
squad.best_spans, metrics.squad_scores.
"""

if __name__ == "__main__":
    import ctrl_c  # noqa: F401

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from adapter import SPAN_BATCH, Predictor, answers_of, log_probabilities
from arguments import (
    HOLD_OUT,
    Parser,
    add_arguments,
    check_adapter,
    check_max_len,
    fill_in,
    run_as_script,
    run_folders,
    whole,
    whole_or_zero,
)
from data import listed, squad, write_json
from data.batching import Batches, limited, send, sorted_batches
from data.hub import MINI, open_checkpoint
from device import pick_device
from methods import ENCODER
from metrics import squad_scores
from processes import all_reduce, leave, share
from run import Run, adamw, compiled, report, say_next
from weights import export, prepare, trained

DEFAULTS = {
    "method": "hut", "model": "roberta-large", "epochs": 10, "batch_size": 8, "warmup": 0.06,
    "weight_decay": 0, "seed": 0,
}  # fmt: skip
# for the bundled model and data
MINI_SETTINGS = {"epochs": 8, "batch_size": 32, "doc_stride": 32, "dropout": 0.0}


def arguments():
    epilog = "The paper has no settings for SQuAD: these are its Table 6's for QNLI, made from SQuAD."
    parser = Parser(description=__doc__.splitlines()[0], epilog=epilog)
    add_arguments(parser, ENCODER, DEFAULTS)
    add = parser.add_argument
    windows = "a text longer than --max-len is read in windows that overlap by this (default: ours, 128 or a "
    add("--doc-stride", type=whole_or_zero, metavar="TOKENS", help=f"{windows}third of --max-len)")
    add("--limit-dev", type=whole, metavar="N", help="score the first N questions of the dev set")
    add("--hold-out", action="store_true", help=HOLD_OUT)
    add("--predict", nargs=2, metavar=("QUESTION", "TEXT"), help="the answer in the text, by --adapter")
    add("--submit", metavar="DIR", help="write the dev set's answers as the official script reads them")
    args = parser.parse_args()
    args.task = "squad"
    check_adapter(args, "train_squad.py", ENCODER)
    fill_in(args, ENCODER, DEFAULTS, MINI_SETTINGS, MINI / "squad")
    return args


# ---- scoring


def score(model, questions, windows, device, dtype):
    """{"exact_match", "f1"}, a hundredth of what the official script prints."""
    answers = [answer for answer, _ in answers_of(model, questions, windows, device, dtype)]
    return squad_scores(answers, [[words for _, words in question.answers] for question in questions])


# ---- one run


def train(args, model_class, directory, sets, device, dtype):
    model, base = prepare(args, model_class, directory, device, dtype)
    (questions, windows), (dev_questions, dev_windows) = sets["train"], sets["dev"]
    targets = torch.tensor([squad.target(w, questions[w.question].answers[0]) for w in windows])
    batches = Batches([len(window.ids) for window in windows], args.batch_size, args.accumulate, args.seed)
    optimizer = adamw(model, args)
    run = Run(args, model, base, optimizer, batches.steps, "windows")
    held = f"dev {len(dev_questions):,} in {len(dev_windows):,}"
    print(f"squad: {len(questions):,} training questions in {len(windows):,} windows of {batches}; {held}")
    lost = {split: squad.unreachable(*content) for split, content in sets.items()}
    print(f"questions whose answer is no span of up to {squad.MAX_ANSWER} tokens: {listed(lost)}")
    forward, lengths = compiled(model, args, batches)
    run.begin(dtype)

    while run.epoch < args.epochs:
        model.train()
        for group in run.remaining(batches.epoch(run.epoch)):
            examples, losses = sum(map(len, group)), []
            for batch in share(group):
                target = send(targets[batch], device)
                some = [windows[i] for i in batch]
                start, end, _ = log_probabilities(forward, some, device, dtype, lengths)
                loss = loss_sum(start, end, target) / examples
                loss.backward()
                losses.append(loss.detach())
            losses = all_reduce(optimizer, losses)
            run.set_rates()
            if args.clip:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            optimizer.zero_grad()
            run.advance(losses, examples)
        scores = score(model, dev_questions, dev_windows, device, dtype)
        run.end_epoch(scores, better=run.best is None or scores["f1"] > run.best["f1"])
    return run.finish(unreachable=lost)


def loss_sum(start, end, target):
    """The mean of start's and end's cross entropy, summed, to be divided by the windows of the whole step."""
    return (
        F.nll_loss(start, target[:, 0], reduction="sum") + F.nll_loss(end, target[:, 1], reduction="sum")
    ) / 2


# ---- main


def main():
    args = arguments()
    if args.predict:
        answer, probability = Predictor(args)([args.predict])[0]
        return print(f"{answer} ({probability:.3f})")
    device, dtype = pick_device(args.device, args.dtype)
    directory, model_class, config, tokenizer = open_checkpoint(args.model, "span")
    check_max_len(args, config.max_length, shortest=6)  # <s> question </s></s> text </s>
    if args.doc_stride is None:
        args.doc_stride = min(128, args.max_len // 3)
    out, runs = run_folders(args)
    wanted = ("train",) if args.hold_out else ("dev",) if args.adapter else ("train", "dev")
    splits = squad.load(args.data, args.train_file, args.dev_file, wanted)
    splits, sets = limited(splits, args, together=lambda one: one.context), {}
    for split, questions in splits.items():
        some = questions[: args.limit_dev] if split == "dev" else questions
        sets[split] = some, squad.encode(tokenizer, some, args.max_len, args.doc_stride)
    if not args.adapter:
        results = [train(one, model_class, directory, sets, device, dtype) for one in runs]
        report(results, out, args.seeds, ("best", "last"))
        say_next(runs[0], ENCODER)
    if not leave() or not (args.eval_only or args.submit or args.export):
        return

    model = trained(runs[0], model_class, directory, device, dtype)
    if args.eval_only:
        print(json.dumps(score(model, *sets["dev"], device, dtype)))
    if args.submit:
        answers = answers_of(model, *sets["dev"], device, dtype)
        found = {question.id: answer for question, (answer, _) in zip(sets["dev"][0], answers, strict=True)}
        path = Path(args.submit) / "predictions.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        print(f"{path}: {len(found):,} answers")
    if args.export:
        windows = sets["dev"][1]

        def dev_logits(model):
            for batch in sorted_batches([len(window.ids) for window in windows], SPAN_BATCH):
                ids, mask, of_text = squad.batch_of([windows[i] for i in batch], config.pad_token_id, device)
                yield torch.stack(model(ids, mask), -1)[of_text]

        export(args, model, directory, dev_logits, f"{len(windows):,} dev windows")


if __name__ == "__main__":
    run_as_script(main)
