"""A trained adapter in use: texts in; classes, numbers, answers or texts out."""

import argparse
import math
import threading
from operator import itemgetter

import torch
from tqdm import tqdm

from arguments import check_max_len
from data import UserError, as_user_error, e2e, glue, squad
from data.batching import Tokens, sorted_batches
from data.hub import open_checkpoint
from data.table import task_of
from device import autocast, pick_device
from methods import DECODER, METHODS, merge, store
from processes import gathered, in_shares, mine
from weights import SEARCH, read_adapter, trained

EVAL_BATCH, SPAN_BATCH = 64, 32
USES = {  # the model's use, and the fewest tokens that hold some of a text: <s>, one of its own, </s>
    "train_glue.py": ("classifier", 3), "train_squad.py": ("span", 3),
    "train_e2e.py": ("generator", 1), "train_read.py": ("text to text", 0),
}  # fmt: skip


class Predictor:
    """A trained adapter in its model: called with a list of texts or pairs, it answers each in order.

    It answers (label, probability), (number, None) for a regression, (answer, probability) for a question and
    its text, a sentence for "name[…], food[…]", and with a T5 just a label.
    """

    def __init__(self, args):
        """args: a script's, or those of `adapter.load`."""
        self.use, shortest = USES[read_adapter(args.adapter)["script"]]
        self.task = None if args.task in ("e2e", "squad") else task_of(args)
        self.args, self.texts = args, len(self.task.texts) if self.task else 1 + (self.use == "span")
        self.on = device, dtype = pick_device(args.device, args.dtype)
        with as_user_error(f"{args.adapter}: its base: "):
            directory, model_class, config, self.tokenizer = open_checkpoint(args.model, self.use)
        if shortest:
            check_max_len(args, config.max_length, shortest * self.texts)
        options = {"num_labels": self.task.num_labels} if self.use == "classifier" else {}
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            stored = torch.float32 if self.use == "generator" else dtype  # which `generate` merges
            self.model = trained(args, model_class, directory, device, stored, **options)
        self.lock = threading.Lock()  # as the tokenizer's truncation is a state of its own

    def __call__(self, texts, title=None):
        with self.lock:
            return self.answers(texts, title)

    def answers(self, texts, title):
        items = [tuple(item) if isinstance(item, tuple | list) else (item,) for item in texts]
        for item in items:
            if isinstance(texts, str) or [type(text) for text in item] != [str] * self.texts:
                raise UserError(f"{self.args.task}: expected {self.texts} text(s) an item, found {item}")
        if not items:
            return []
        args, model, tokenizer = given = self.args, self.model, self.tokenizer
        if self.use == "generator":
            with as_user_error():
                contexts = [e2e.linearise(text) for (text,) in items]
            return generate(*given, contexts, *self.on)
        if self.use == "text to text":
            return written(*given, sources_of(args, tokenizer, items), *self.on)
        if self.use == "span":
            questions = [squad.Question(str(i), *item) for i, item in enumerate(items)]
            windows = squad.encode(tokenizer, questions, args.max_len, args.doc_stride)
            return answers_of(model, questions, windows, *self.on)
        ids = glue.encode(tokenizer, [glue.Example(*item) for item in items], args.max_len)
        tokens = Tokens(ids, model.config.pad_token_id, self.on[0])
        logits = all_logits(model, tokens, *self.on, title)
        return named(self.task, logits)


# ---- classes and numbers


def all_logits(model, inputs, device, dtype, title=None):
    """(N, num_labels) float32, in the order of `inputs`; `title` is a progress bar's."""
    model.eval()
    logits = torch.empty(len(inputs.lengths), model.num_labels)
    with torch.no_grad(), autocast(device, dtype):
        batches = sorted_batches(inputs.lengths, EVAL_BATCH)

        def of(batches):
            shown = tqdm(batches, title, disable=None if title else True, leave=False)
            return [model(*inputs(batch)).float().cpu() for batch in shown]

        for batch, found in zip(batches, in_shares(of, batches), strict=True):
            logits[batch] = found
    return logits


def predictions(logits):
    """Classes (N,), or scores (N,) of a model with one output."""
    return logits[:, 0].numpy() if logits.shape[1] == 1 else logits.argmax(1).numpy()


def named(task, logits):
    """[(label, probability)], or (number, None) of a regression, from logits (N, num_labels)."""
    if not task.labels:
        return [(number, None) for number in logits[:, 0].tolist()]
    rows = zip(predictions(logits), logits.softmax(1).tolist(), strict=True)
    return [(task.label_names[best], row[best]) for best, row in rows]


# ---- answers


def answers_of(model, questions, windows, device, dtype):
    """[(answer, its probability)], a question; ("", 0) where the tokenizer dropped all of the text."""
    found = [("", 0.0)] * len(questions)
    for number, (score, *span) in best_spans(model, windows, device, dtype).items():
        found[number] = squad.cut(questions[number].context, *span), math.exp(score)
    return found


@torch.no_grad()
def best_spans(model, windows, device, dtype):
    """{question: (log-probability, window, first, last)}: the likeliest span of all its windows."""
    model.eval()
    best = {}
    for batch in mine(sorted_batches([len(window.ids) for window in windows], SPAN_BATCH)):
        some = [windows[i] for i in batch]
        start, end, of_text = log_probabilities(model, some, device, dtype)
        spans = (t.tolist() for t in squad.best_spans(start, end, of_text))
        for window, first, last, score in zip(some, *spans, strict=True):
            if window.question not in best or score > best[window.question][0]:
                best[window.question] = score, window, first, last
    parts = gathered(best)
    return {i: max((part[i] for part in parts if i in part), key=itemgetter(0)) for i in set().union(*parts)}


def log_probabilities(model, windows, device, dtype, lengths=()):
    """Log-probabilities of start and end, each (B, L), and where (B, L) an answer can be."""
    ids, mask, of_text = squad.batch_of(windows, model.config.pad_token_id, device, lengths)
    with autocast(device, dtype):
        start, end = model(ids, mask)
    return squad.log_probabilities(start, of_text), squad.log_probabilities(end, of_text), of_text


# ---- texts


def generate(args, model, tokenizer, contexts, device, dtype):
    end = model.config.eos_token_id
    prompts = [[*encoding.ids, end] for encoding in tokenizer.encode_batch(contexts)]
    search = args.max_new_tokens, args.beam_size, args.length_penalty, args.no_repeat_ngram, args.ngram_scope
    if DECODER in METHODS[args.method].merges:
        model = merge(model, args.method)  # a step of which computes less
    store(model, dtype)
    with as_user_error(), autocast(device, dtype):
        found = in_shares(lambda own: model.generate(own, *search), prompts)
    return [" ".join(text.split()) for text in tokenizer.decode_batch(found)]


def sources_of(args, tokenizer, examples):
    """What T5 reads, as token ids closed by the end token."""
    texts = [glue.Example(glue.source_text(args.task, example)) for example in examples]
    return glue.encode(tokenizer, texts, args.max_len)


def written(args, model, tokenizer, sources, device, dtype, batch_size=EVAL_BATCH):
    """What the model writes for each source, greedily: as many tokens as the longest label has."""
    longest = max(len(tokenizer.encode(word).ids) for word in glue.TEXT_TO_TEXT[args.task][1])
    model.eval()
    with as_user_error(), autocast(device, dtype):
        found = in_shares(lambda own: model.generate(own, longest, batch_size=batch_size), sources)
    # a sentinel or an unknown token is a part of what was written, and makes it no label
    return [text.strip() for text in tokenizer.decode_batch(found, skip_special_tokens=False)]


def load(path, model=None, device=None, dtype=None):
    """A trained adapter as a Predictor; `model` says where its base is, if that has moved."""
    found = read_adapter(path)
    given = {key: found[key] for key in ("method", "task")} | ({"model": str(model)} if model else {})
    given |= {"adapter": path, "device": device, "dtype": dtype, "seed": 0, "dropout": None}
    return Predictor(argparse.Namespace(**SEARCH | found["config"] | given))
