"""What a fine-tuned model looks at: the words of its input in shades of red (the paper's Figure 4), on a page of HTML.

    python -m experiments.visualise --adapter A [--adapter B] --question TEXT --context TEXT --html page.html
    python -m experiments.visualise --adapter A [--adapter B] --id ID --data DIR     a question of the dev set
    python -m experiments.visualise --adapter A --text TEXT [TEXT]                    a GLUE adapter
    python -m experiments.visualise --adapter A --faithfulness 200 --data DIR         whether red words matter

The paper says only that a shade is the relation of the last layer's output to the input. Here are two such relations:
(a) the attention that the answer pays to each word in the last layer, and (b) gradient × input. Which of them says what
a model's answer depends on is measured by --faithfulness.
"""

import argparse
import html
import math
import random
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

import training
from data import UserError, glue, squad
from data.hub import MINI, checkpoint, load_tokenizer
from metrics import squad_scores
from model import RobertaClassifier, RobertaSpan
from training import mendable

MEASURES = {
    "attention": (
        "(a) Attention in the last layer",
        "The attention that the tokens of the answer (for a GLUE task: the first token, which the classifier reads) pay to "
        "each word in the last layer, mean of the heads and of those tokens. What goes to special tokens is not shown. This "
        "is where one layer looks, not an attribution: it need not be what the answer depends on.",
    ),
    "gradient": (
        "(b) Gradient × input",
        "The gradient of the answer's logit (of a span: start plus end; for a GLUE task: the predicted class) with respect "
        "to each word's embeddings, times these embeddings: to first order, what a word adds to the logit. This is an "
        "attribution. Words that take from the logit have no colour.",
    ),
}
MASKED = 0.2  # the share of the words outside the answer that --faithfulness masks
DRAWS = 5  # of as many random words, for comparison

# ------------------------------------------------------------------------------------------------ models


class Subject(NamedTuple):
    """A fine-tuned model, and how its input is made."""

    name: str
    task: str
    model: nn.Module
    tokenizer: Tokenizer
    max_len: int
    doc_stride: int | None


class Reading(NamedTuple):
    """One input as a model reads it, and what comes out.

    ids      (1, L)
    places   for each token the (text, start, end) of its characters in `texts`; None for special tokens
    looking  the tokens whose attention is shown
    span     the (text, start, end) of the answer; None for a class
    outcome  ids like these -> the logit of this very answer, and its probability (None for a score)
    """

    texts: tuple[str, ...]
    ids: torch.Tensor
    places: list[tuple[int, int, int] | None]
    answer: str
    looking: list[int]
    span: tuple[int, int, int] | None
    outcome: Callable


def load(path, model_name, device):
    """The model of an adapter file, on the checkpoint that the file names or on `model_name`."""
    found = training.read_adapter(path)
    task, config = found["task"], found["config"]
    if task not in (*glue.TASKS, "squad"):
        raise UserError(f"{path}: trained on {task}: expected an adapter of SQuAD or of a GLUE task")
    if found["method"] == "read":
        raise UserError(
            f"{path}: READ runs the backbone without gradients: there is none with respect to the words"
        )
    base_name = model_name or config["model"]
    directory = checkpoint(MINI / "roberta" if base_name == "mini" else base_name)
    with mendable():
        if task == "squad":
            model, head = RobertaSpan.from_pretrained(directory), "qa_outputs"
        else:
            model, head = (
                RobertaClassifier.from_pretrained(directory, num_labels=glue.TASKS[task].num_labels),
                "classifier",
            )
    base = training.fingerprint(model, head)
    model.to(device)
    model = training.put_in(
        model, argparse.Namespace(method=found["method"], **config), model.get_submodule(head)
    )
    training.load_adapter(path, model, base, found["method"], head)
    tokenizer = load_tokenizer(directory, model.config.vocab_size)
    size = f" r={config['r']}" if config["r"] else ""
    name = f"{found['method']}{size} ({path})"
    return Subject(name, task, model.eval(), tokenizer, config["max_len"], config.get("doc_stride"))


def read_squad(subject, question, context):
    """The Reading of a question: its likeliest answer, in the window of the text that holds it."""
    model, texts = subject.model, (question.strip(), context)
    windows = squad.encode(
        subject.tokenizer, [squad.Question("--question", *texts)], subject.max_len, subject.doc_stride
    )
    if not windows:
        raise UserError("--context: no text that the tokenizer knows")
    device = next(model.parameters()).device
    best = None
    for window in windows:
        ids, _, of_text = squad.batch_of([window], model.config.pad_token_id, device)
        with torch.no_grad():
            start, end = (squad.log_probabilities(logits, of_text) for logits in model(ids))
        first, last, score = (t.item() for t in squad.best_spans(start, end, of_text))
        if best is None or score > best[0]:
            best = (score, window, ids, of_text, first, last)
    _, window, ids, of_text, first, last = best

    def outcome(ids):
        start, end = (logits[0] for logits in model(ids))
        both = [squad.log_probabilities(logits[None], of_text)[0] for logits in (start, end)]
        return start[first] + end[last], (both[0][first] + both[1][last]).exp().item()

    subject.tokenizer.no_truncation()
    whole = subject.tokenizer.encode(*texts)  # its question stands where every window's does
    places = [
        (0, *offsets) if text == 0 else None
        for offsets, text in zip(whole.offsets, whole.sequence_ids, strict=True)
    ]
    places = places[: window.first] + [(1, *offsets) for offsets in window.offsets.tolist()]
    places = [place and trimmed(texts, *place) for place in [*places, *[None] * (ids.shape[1] - len(places))]]
    span = trimmed(
        texts, 1, *(int(window.offsets[i - window.first, side]) for i, side in ((first, 0), (last, 1)))
    )
    answer = squad.cut(context, window, first, last)
    return Reading(texts, ids, places, answer, list(range(first, last + 1)), span, outcome)


def read_glue(subject, *texts):
    """The Reading of a sentence or a pair: the predicted class, or the score for stsb."""
    model, spec = subject.model, glue.TASKS[subject.task]
    subject.tokenizer.enable_truncation(subject.max_len, strategy="longest_first")
    encoding = subject.tokenizer.encode(*texts)
    ids = torch.tensor([encoding.ids], device=next(model.parameters()).device)
    places = [
        None if text is None else trimmed(texts, text, *offsets)
        for offsets, text in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]
    with torch.no_grad():
        logits = model(ids)[0]
    predicted = int(logits.argmax())
    answer = spec.label_names[predicted] if spec.labels else f"{logits[0]:.2f} of 5"

    def outcome(ids):
        logits = model(ids)[0]
        return logits[predicted], logits.softmax(0)[predicted].item() if spec.labels else None

    return Reading(texts, ids, places, answer, [0], None, outcome)


def trimmed(texts, text, start, end):
    """The place without spaces around it: some tokenizers count the space before a word to it."""
    characters = texts[text][start:end]
    start += len(characters) - len(characters.lstrip())
    return text, start, start + len(characters.strip())


class Word(NamedTuple):
    tokens: list[int]
    text: int
    start: int
    end: int


def words_of(reading):
    """Sub-words joined: tokens with letters or digits that follow each other without a space, tokens of one character, and
    a token of a space alone with the word behind it.
    """
    words, spelt = [], False
    for token, place in enumerate(reading.places):
        if place is None:
            continue
        text, start, end = place
        last, before = words[-1] if words else Word([], -1, 0, 0), spelt
        spelt = any(map(str.isalnum, reading.texts[text][start:end]))
        follows = start == last.end and ((before and spelt) or last.start == last.end)
        if text == last.text and (start < last.end or follows):
            words[-1] = last._replace(tokens=[*last.tokens, token], end=max(end, last.end))
        else:
            words.append(Word([token], text, start, end))
    return [word for word in words if word.start < word.end]


def in_answer(word, span):
    return span is not None and word.text == span[0] and word.start < span[2] and word.end > span[1]


# ------------------------------------------------------------------------------------------------ relations


@torch.no_grad()
def attention_of(model, ids):
    """Attention of the last layer, (n_head, L, L) from each token to each; a method's prefix takes what is missing to 1."""
    block, found = model.roberta.blocks[-1], {}
    outer = getattr(block, "block", block).attention  # in an adapter on the block's output is the model's own
    inner = getattr(outer, "attention", outer)  # in a Prefix is the model's own

    def keep(name):
        return getattr(inner, name).register_forward_hook(
            lambda module, inputs, output: found.update({name: output[0]})
        )

    hooks = [keep("q"), keep("k")]
    model.roberta(ids)
    for hook in hooks:
        hook.remove()
    keys = found["k"] if inner is outer else torch.cat([outer.keys, found["k"]])
    q, k = (
        t.unflatten(-1, (inner.n_head, -1)).transpose(0, 1) for t in (found["q"], keys)
    )  # (n_head, L, d / n_head)
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)[:, :, -ids.shape[1] :]


def gradient_times_input(model, reading):
    """(L,): the gradient of the answer's logit with respect to each token's word embedding, times that embedding."""
    found = []

    def keep(module, inputs, output):
        found.append(output if output.requires_grad else output.requires_grad_())
        return found[0]

    hook = model.roberta.embeddings.word.register_forward_hook(keep)
    logit, _ = reading.outcome(reading.ids)
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, found[0])
    return (gradient * found[0]).detach().sum(-1)[0]


def relations(model, reading, words):
    """{measure: how strongly the answer is related to each word}, as MEASURES say; a word is the sum of its tokens."""
    attention = attention_of(model, reading.ids).mean(0)[reading.looking].mean(0)
    each = {"attention": attention, "gradient": gradient_times_input(model, reading)}
    return {
        name: [sum(tokens[i].item() for i in word.tokens) for word in words] for name, tokens in each.items()
    }


# ------------------------------------------------------------------------------------------------ faithfulness


def mask_token(tokenizer):
    for name in ("<mask>", "[MASK]"):
        if tokenizer.token_to_id(name) is not None:
            return tokenizer.token_to_id(name)
    raise UserError("--faithfulness: the tokenizer has no <mask>")


def falls(subject, reading, rng):
    """How far the answer's probability falls when words outside the answer are masked: {"attention", "gradient",
    "random", "like attention", "like gradient": fall}, and the probability before. None if there is no word outside it.

    MASKED of the words are masked, the reddest ones or random ones; for these the mean of DRAWS choices. Those "like"
    a measure's are as many of each text, of the question and of the context: a measure that does no more than prefer the
    question, which is short and which all depends on, is no better than they are.
    """
    words = words_of(reading)
    related = relations(subject.model, reading, words)
    outside = [i for i, word in enumerate(words) if not in_answer(word, reading.span)]
    if not outside:
        return None
    count, mask = max(1, round(MASKED * len(outside))), mask_token(subject.tokenizer)

    @torch.no_grad()
    def probability(chosen):
        ids = reading.ids.clone()
        ids[0, [token for i in chosen for token in words[i].tokens]] = mask
        return reading.outcome(ids)[1]

    def at_random(counts):
        """The mean fall when as many words of each text are masked as `counts` says: {text: number}."""
        of_text = {text: [i for i in outside if words[i].text == text] for text in counts}
        draws = (
            [i for text, n in counts.items() for i in rng.sample(of_text[text], n)] for _ in range(DRAWS)
        )
        return before - statistics.fmean(map(probability, draws))

    before, fall = probability([]), {}
    for name, value in related.items():
        reddest = sorted(outside, key=lambda i: -value[i])[:count]
        fall[name] = before - probability(reddest)
        fall[f"like {name}"] = at_random(Counter(words[i].text for i in reddest))
    fall["random"] = before - statistics.fmean(probability(rng.sample(outside, count)) for _ in range(DRAWS))
    return before, fall


def faithfulness(subject, inputs):
    """Prints the mean fall of each measure over `inputs`, each the texts of one example."""
    read, rng = (read_squad if subject.task == "squad" else read_glue), random.Random(0)
    found = [falls(subject, read(subject, *texts), rng) for texts in tqdm(inputs, leave=False, disable=None)]
    found = [pair for pair in found if pair]
    before = statistics.fmean(pair[0] for pair in found)
    print(f"\n{subject.name}: {len(found)} dev examples, mean probability of the answer {before:.3f}")
    print(f"when {MASKED:.0%} of the words outside the answer are masked it falls by (mean ± standard error)")
    titles = {}
    for name, (title, _) in MEASURES.items():
        titles |= {name: title, f"like {name}": "    random words, as many of each text"}
    for name, title in (titles | {"random": "random words"}).items():
        values = [pair[1][name] for pair in found]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        mean = statistics.fmean(values)
        print(f"  {title:40} {mean:.3f} ± {error:.3f}, {mean / before:.0%} of it")


# ------------------------------------------------------------------------------------------------ the page

STYLE = """
:root { color-scheme: light dark; --red: 255 75 75; --ink: #161616; --paper: #fff; --soft: #5c5c5c; --line: #ccc }
@media (prefers-color-scheme: dark) {
  :root { --red: 190 15 15; --ink: #f2f2f2; --paper: #161616; --soft: #a8a8a8; --line: #444 } }
body { font: 16px/1.7 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem }
h3 { font-size: 1rem; margin-bottom: 0; overflow-wrap: anywhere } .soft { color: var(--soft); font-size: .9rem }
.strip { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; margin: .4rem 0;
  overflow-wrap: anywhere; white-space: pre-wrap }
.strip .unread { color: var(--soft); opacity: .6 }
.strip [style] { background: rgb(var(--red) / var(--a)); border-radius: .15rem; padding: .1rem 0 }
.answer { text-decoration: underline 2px; font-weight: 600 }
.legend { display: flex; gap: .6rem; align-items: center }
.legend i { width: 12rem; height: 1rem; border: 1px solid var(--line);
  background: linear-gradient(90deg, transparent, rgb(var(--red))) }
"""


def page(title, shown, right):
    """The whole HTML page. `shown`: [(subject, reading, words, relations)], one or two; `right`: the right answers."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if right:
        parts.append(f"<p>Right: <b>{html.escape(' / '.join(right))}</b></p>")
    if any(reading.span for _, reading, _, _ in shown):
        parts.append(
            '<p class="soft">Each model\'s own answer is <span class="answer">underlined</span>.</p>'
        )
    if any(unread(reading, words) for _, reading, words, _ in shown):
        parts.append(
            '<p class="soft">Grey text was not read: it lies outside what the model takes at a time.</p>'
        )
    for name, (heading, explanation) in MEASURES.items():
        top = scale(shown, name)
        parts.append(f"<h2>{html.escape(heading)}</h2><p>{html.escape(explanation)}</p>")
        parts.append(f'<p class="legend soft">0 <i></i> {top:.3g} &nbsp; the same scale for every model</p>')
        for subject, reading, words, related in shown:
            parts.append(f"<h3>{html.escape(subject.name)}</h3>")
            parts.append(f'<p class="soft">{html.escape(conclusion(reading, right))}</p>')
            parts += [
                f'<p class="strip">{strip(reading, words, related[name], top, t)}</p>'
                for t in range(len(reading.texts))
            ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en">\n{head}\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</html>\n"
    )


def pieces(reading, words, values, text):
    """One text cut in pieces: (characters, the word that they are, its value). Between words: (…, None, 0), and before the
    first word that was read and behind the last: (…, None, None).
    """
    whole, at, between = reading.texts[text], 0, None
    for word, value in zip(words, values, strict=True):
        if word.text == text:
            yield whole[at : word.start], None, between
            yield whole[word.start : word.end], word, value
            at, between = word.end, 0.0
    yield whole[at:], None, None


def unread(reading, words):
    """Whether there is text that the model did not read, beyond --max-len or outside the answer's window."""
    texts = (pieces(reading, words, [0.0] * len(words), text) for text in range(len(reading.texts)))
    return any(value is None and characters.strip() for text in texts for characters, _, value in text)


def strip(reading, words, values, top, text):
    """One text as HTML: its characters as they are, each word over its shade."""
    parts = []
    for characters, word, value in pieces(reading, words, values, text):
        spelt = html.escape(characters)
        if word:
            marked = ' class="answer"' if in_answer(word, reading.span) else ""
            spelt = f'<span{marked} style="--a:{max(value, 0) / top:.3f}" title="{value:.4g}">{spelt}</span>'
        elif value is None and characters.strip():
            spelt = f'<span class="unread">{spelt}</span>'
        parts.append(spelt)
    return "".join(parts)


def scale(shown, name):
    """The value of the deepest red: the largest of all models'."""
    return max([value for _, _, _, related in shown for value in related[name] if value > 0], default=1.0)


def conclusion(reading, right):
    with torch.no_grad():
        probability = reading.outcome(reading.ids)[1]
    said = f"answer: {reading.answer or '(none)'}" + (
        "" if probability is None else f" (probability {probability:.3f})"
    )
    if right and reading.span:
        said += ", right" if squad_scores([reading.answer], [right])["exact_match"] else ", wrong"
    return said


def show(shown, right):
    """The same in the terminal: shades where it has colours, and the reddest words with their numbers everywhere."""
    for name, (heading, _) in MEASURES.items():
        top = scale(shown, name)
        print(f"\n{heading}; deepest red: {top:.3g}")
        for subject, reading, words, related in shown:
            print(
                f"{subject.name}: {conclusion(reading, right)}"
                + "; not all was read" * unread(reading, words)
            )
            if sys.stdout.isatty():
                for text in range(len(reading.texts)):
                    print("  " + coloured(reading, words, related[name], top, text))
            order = sorted(range(len(words)), key=lambda i: -related[name][i])[:8]
            spelt = (reading.texts[words[i].text][words[i].start : words[i].end] for i in order)
            print(
                "  "
                + ", ".join(f"{word} {related[name][i]:.3f}" for word, i in zip(spelt, order, strict=True))
            )


def coloured(reading, words, values, top, text):
    """One text with ANSI's 24-bit backgrounds from white to red, in black."""
    parts = []
    for characters, word, value in pieces(reading, words, values, text):
        pale = round(255 - 180 * max(value or 0, 0) / top)
        colour = f"30;48;2;255;{pale};{pale}" if word else "2" if value is None else "0"  # 2: dim, not read
        parts.append(f"\033[{colour}m{characters}\033[0m")
    return "".join(parts)


# ------------------------------------------------------------------------------------------------ main


def arguments():
    parser = training.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="FILE", help="an adapter.pt, or two of a task"
    )
    parser.add_argument(
        "--model", help="the checkpoint the adapters were trained on (default: as they name it)"
    )
    parser.add_argument("--question", metavar="TEXT", help="of a SQuAD adapter, with --context")
    parser.add_argument("--context", metavar="TEXT", help="where the answer is looked for")
    parser.add_argument("--text", nargs="+", metavar="TEXT", help="of a GLUE adapter: a sentence or a pair")
    parser.add_argument("--id", help="a dev example: SQuAD's id, GLUE's number in the file, from 1")
    parser.add_argument(
        "--faithfulness", type=training.whole, metavar="N", help="measure it on the first N dev examples"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="folder of the data set (default: fetched once into the cache)"
    )
    parser.add_argument("--dev-file", metavar="F", help="instead of the development file in --data")
    parser.add_argument("--html", metavar="FILE", help="write the page; it needs no other file")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")
    args = parser.parse_args()
    if len(args.adapter) > 2:
        raise UserError(f"--adapter: {len(args.adapter)} given: expected one or two")
    if (args.question is None) != (args.context is None):
        raise UserError("--question and --context go together")
    given = [text for text in (args.question, args.context, *(args.text or ())) if text is not None]
    if not all(text.strip() for text in given):
        raise UserError("--question, --context and --text: expected a text, in quotes")
    if sum(map(bool, (args.question, args.text, args.id, args.faithfulness))) != 1:
        raise UserError("expected one of --question and --context, --text, --id, --faithfulness")
    if args.html is not None and args.faithfulness:
        raise UserError("--html: --faithfulness has no page")
    if args.html is not None and (Path(args.html).is_dir() or not Path(args.html).parent.is_dir()):
        raise UserError(f"--html {args.html}: expected the name of a file, in a folder that there is")
    return args


def dev_examples(args, task, mini):
    """[(id, texts, right answers)] of the development set."""
    if task == "squad":
        questions = squad.load(
            args.data or (MINI / "squad" if mini else None), dev_file=args.dev_file, splits=("dev",)
        )["dev"]
        return [
            (q.id, (q.text, q.context), list(dict.fromkeys(words for _, words in q.answers)))
            for q in questions
        ]
    spec = glue.TASKS[task]
    examples = next(
        iter(glue.load(task, args.data or (MINI if mini else None), None, args.dev_file, ("dev",)).values())
    )
    return [
        (str(i), tuple(text for text in (e.first, e.second) if text is not None),
         [spec.label_names[e.label] if spec.labels else f"{e.label:g} of 5"])
        for i, e in enumerate(examples, 1)
    ]  # fmt: skip


def main():
    args = arguments()
    device, _ = training.pick_device(args.device, "float32")
    subjects = [load(path, args.model, device) for path in args.adapter]
    task = subjects[0].task
    if subjects[-1].task != task:
        raise UserError(f"--adapter: one is of {task}, the other of {subjects[-1].task}: expected one task")
    if args.faithfulness and task == "stsb":
        raise UserError("--faithfulness: stsb predicts a score, which has no probability")
    if (args.question and task != "squad") or (args.text and task == "squad"):
        wanted = "--question and --context" if task == "squad" else "--text"
        raise UserError(f"{args.adapter[0]}: trained on {task}: expected {wanted}")
    texts, right = tuple(args.text or (args.question, args.context)), []
    if args.text and len(texts) != len(glue.TASKS[task].texts):
        raise UserError(f"--text: {task} takes {len(glue.TASKS[task].texts)} text(s), each in quotes")
    if args.id or args.faithfulness:
        mini = (args.model or training.read_adapter(args.adapter[0])["config"]["model"]) == "mini"
        examples = dev_examples(args, task, mini)
        if args.faithfulness:
            for subject in subjects:
                faithfulness(subject, [texts for _, texts, _ in examples[: args.faithfulness]])
            return
        found = [example for example in examples if example[0] == args.id]
        if not found:
            raise UserError(
                f"--id {args.id}: not in the development set, whose ids are {examples[0][0]}, … {examples[-1][0]}"
            )
        _, texts, right = found[0]

    shown = []
    for subject in subjects:
        reading = (read_squad if task == "squad" else read_glue)(subject, *texts)
        words = words_of(reading)
        shown.append((subject, reading, words, relations(subject.model, reading, words)))
    if right:
        print(f"right: {' / '.join(right)}")
    show(shown, right)
    if args.html:
        title = re.sub(r"\s+", " ", texts[0]).strip()
        try:
            training.write_text(Path(args.html), page(title, shown, right))
        except OSError as error:
            raise UserError(f"--html {args.html}: could not be written ({error.strerror})") from None
        print(f"\n{args.html}: the page")


if __name__ == "__main__":
    training.run_as_script(main)
