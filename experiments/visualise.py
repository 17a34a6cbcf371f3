"""What a fine-tuned model looks at: the words of its input in shades of red, as in the paper's Figure 4.

python -m experiments.visualise, with

    --adapter A [--adapter B] --question TEXT --context TEXT --html page.html
    --adapter A [--adapter B] --id ID --data DIR     a question of the dev set
    --adapter A --text TEXT [TEXT]                    an adapter of train_glue.py
    --adapter A --faithfulness 200 --data DIR         whether red words matter

The paper says that a shade is the relation of the last layer's output to the input, and that red "indicates
the model's attention" (4.4.3), not how it is computed. Here are two such relations. --faithfulness measures
which of them says what a model's answer depends on.
"""

import argparse
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable
from html import escape
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from adapter import Predictor, best_spans, load
from arguments import Parser, file_to_write, run_as_script, whole
from data import UserError, glue, squad, table
from data.hub import MINI
from experiments.page import page, save
from experiments.tables import label
from metrics import squad_scores
from weights import read_adapter

MEASURES = {
    "attention": (
        "(a) Attention in the last layer",
        "How much the tokens of the answer (for GLUE those that the classifier reads: the first, or all with "
        "--pool mean) attend to each word, mean over heads and tokens. This is where one layer looks, not an "
        "attribution: the answer need not depend on it.",
    ),
    "gradient": (
        "(b) Gradient × input",
        "To first order, what each word adds to the logit of the answer (a span's start plus end, or the "
        "predicted class). This is an attribution. Words that lower the logit have no colour.",
    ),
}
MASKED = 0.05  # share of the words outside the answer that --faithfulness masks, one at least
DRAWS = 5  # how often as many random words are masked for comparison

# ---- models


class Word(NamedTuple):
    tokens: list[int]
    text: int  # it is texts[text][start:end]
    start: int
    end: int


class Reading(NamedTuple):
    """An input as a model reads it, and what comes out."""

    texts: tuple[str, ...]
    ids: torch.Tensor  # (1, L)
    words: list[Word]  # without what was not read
    answer: str
    looking: list[int]  # the tokens whose attention is drawn
    span: tuple[int, int, int] | None  # the answer's (text, start, end), None for a class
    outcome: Callable  # ids -> this answer's logit and log-probability (None for a score)


def load_subject(path, model_name=None):
    """An adapter's Predictor with a `name`, on `model_name` or the checkpoint that the file names."""
    if read_adapter(path, "train_glue.py", "train_squad.py")["method"] == "read":
        raise UserError(f"{path}: READ runs its backbone without gradients, so words have none")
    subject = load(path, model_name, dtype="float32")
    subject.name = f"{label(subject.args.method, subject.args.r)} ({path})"
    return subject


def read(subject, texts):
    return (read_glue if subject.task else read_squad)(subject, *texts)


def read_squad(subject, question, context):
    """The Reading of a question: its likeliest answer, in the window of the text that holds it."""
    model, texts, tokenizer = subject.model, (question.strip(), context), subject.tokenizer
    asked = [squad.Question("--question", *texts)]
    windows = squad.encode(tokenizer, asked, subject.args.max_len, subject.args.doc_stride)
    if not windows:
        raise UserError("--context: no text that the tokenizer knows")

    ((_, window, first, last),) = best_spans(model, windows, *subject.on).values()
    ids, _, of_text = squad.batch_of([window], model.config.pad_token_id, subject.on[0])

    def outcome(ids):
        logits = start, end = model(ids)
        start_log, end_log = (squad.log_probabilities(of_place, of_text)[0] for of_place in logits)
        return start[0, first] + end[0, last], (start_log[first] + end_log[last]).item()

    of_question = tokenizer.encode(texts[0], add_special_tokens=False).offsets
    places = [None, *((0, *offsets) for offsets in of_question)]
    places += [None] * (window.first - len(places)) + [(1, *offsets) for offsets in window.offsets.tolist()]
    span = trimmed(texts, 1, places[first][1], places[last][2])
    answer = squad.cut(context, window, first, last)
    return Reading(texts, ids, words_of(texts, places), answer, [*range(first, last + 1)], span, outcome)


def read_glue(subject, *texts):
    """The Reading of a sentence or a pair: the predicted class, or the score of a regression."""
    model, task = subject.model, subject.task
    subject.tokenizer.enable_truncation(subject.args.max_len, strategy="longest_first")
    encoding = subject.tokenizer.encode(*texts)
    ids = torch.tensor([encoding.ids], device=subject.on[0])
    tokens = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    places = [None if text is None else (text, *offsets) for text, offsets in tokens]
    with torch.no_grad():
        logits = model(ids)[0]
    predicted = int(logits.argmax())
    answer = task.label_names[predicted] if task.labels else f"{logits[0]:.2f}"

    def outcome(ids):
        logits = model(ids)[0]
        return logits[predicted], logits.log_softmax(0)[predicted].item() if task.labels else None

    looking = [0] if model.pool == "first" else [*range(len(places))]
    return Reading(texts, ids, words_of(texts, places), answer, looking, None, outcome)


def trimmed(texts, text, start, end):
    """The place without spaces around it, which some tokenizers count as part of a word."""
    characters = texts[text][start:end]
    start += len(characters) - len(characters.lstrip())
    return text, start, start + len(characters.strip())


def words_of(texts, places):
    """Words, from each token's place: the (text, start, end) of its characters, None for a special token.

    Tokens with letters or digits are joined where no space is between them. So are the tokens of one
    character, and a token of a space alone with the word behind it.
    """
    words, spelt = [], False
    for token, place in enumerate(places):
        if place is None:
            continue
        text, start, end = trimmed(texts, *place)
        last, before = words[-1] if words else Word([], -1, 0, 0), spelt
        spelt = any(map(str.isalnum, texts[text][start:end]))
        follows = start == last.end and ((before and spelt) or last.start == last.end)
        if text == last.text and (start < last.end or follows):
            words[-1] = last._replace(tokens=[*last.tokens, token], end=max(end, last.end))
        else:
            words.append(Word([token], text, start, end))
    return [word for word in words if word.start < word.end]


def in_answer(word, span):
    return span is not None and word.text == span[0] and word.start < span[2] and word.end > span[1]


# ---- relations


class LastAttention(TorchFunctionMode):
    """Keeps the queries and keys of the last attention that is computed, (1, n_head, L, d / n_head)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.q, self.k, *_ = args
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def attention_of(model, ids):
    """Attention of the last layer, (n_head, L, L), from each token to each.

    The keys of prefix-tuning, which come first, take a part of it, so that a row sums to less than 1.
    """
    with LastAttention() as last:
        model.roberta(ids)
    scores = last.q[0] @ last.k[0].mT / math.sqrt(last.q.shape[-1])
    return scores.softmax(-1)[:, :, -ids.shape[1] :]


def gradient_times_input(model, reading):
    """(L,): the gradient of the answer's logit with respect to each token's embedding, times that."""
    found, embedding = [], model.roberta.embeddings.word
    hook = embedding.register_forward_hook(lambda m, i, output: found.append(output.requires_grad_()))
    logit, _ = reading.outcome(reading.ids)
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, found[0])
    return (gradient * found[0]).detach().sum(-1)[0]


def relations(model, reading):
    """{measure: how strongly the answer is related to each word}, which is the sum over its tokens."""
    attention = attention_of(model, reading.ids).mean(0)[reading.looking].mean(0)
    each = {"attention": attention, "gradient": gradient_times_input(model, reading)}
    words = [word.tokens for word in reading.words]
    return {name: [values[tokens].sum().item() for tokens in words] for name, values in each.items()}


# ---- faithfulness


def falls(subject, reading, rng):
    """(the answer's log-probability, {name: its fall in nats when words outside the answer are masked}).

    A measure's name stands for its reddest words, "random" for as many random words, the mean of DRAWS
    choices, and "like" a measure for random words of which as many are in each text: answers depend on the
    question, which is short, and a measure should do more than prefer it. None without words to mask.
    """
    words, tokenizer = reading.words, subject.tokenizer
    known = [token for token in map(tokenizer.token_to_id, ("<mask>", "[MASK]")) if token is not None]
    if not known:
        raise UserError("--faithfulness: the tokenizer has no <mask> or [MASK]")
    mask = known[0]
    outside = [i for i, word in enumerate(words) if not in_answer(word, reading.span)]
    if not outside:
        return None
    count = max(1, round(MASKED * len(outside)))

    @torch.no_grad()
    def log_probability(chosen):
        ids = reading.ids.clone()
        ids[0, [token for i in chosen for token in words[i].tokens]] = mask
        return reading.outcome(ids)[1]

    def random_fall(groups):
        """For n words of each of `groups`, [(words, n)]."""
        draws = ([i for group, n in groups for i in rng.sample(group, n)] for _ in range(DRAWS))
        return before - statistics.fmean(map(log_probability, draws))

    before, fall = log_probability([]), {}
    for name, value in relations(subject.model, reading).items():
        reddest = sorted(outside, key=lambda i: -value[i])[:count]
        fall[name] = before - log_probability(reddest)
        counts = Counter(words[i].text for i in reddest)
        groups = [([i for i in outside if words[i].text == text], n) for text, n in counts.items()]
        fall[f"like {name}"] = random_fall(groups)
    fall["random"] = random_fall([(outside, count)])
    return before, fall


def faithfulness(subject, inputs):
    """Prints the mean fall of each measure over `inputs`, each the texts of one example."""
    rng, bar = random.Random(0), tqdm(inputs, leave=False, disable=None)
    found = [pair for texts in bar if (pair := falls(subject, read(subject, texts), rng))]
    mean_before = statistics.fmean(math.exp(before) for before, _ in found)
    print(f"\n{subject.name}: {len(found)} dev examples, mean probability of the answer {mean_before:.3f}")
    masked = f"when {MASKED:.0%} of the words outside the answer (one at least) are masked"
    print(f"{masked}, its logarithm falls by (mean ± standard error)")
    falls_of = {name: [fall[name] for _, fall in found] for name in found[0][1]}
    for name, (title, _) in MEASURES.items():
        print_mean(title, reddest := falls_of[name])
        print_mean("    random words, as many of each text", others := falls_of[f"like {name}"])
        print_mean("    more than those", [a - b for a, b in zip(reddest, others, strict=True)])
    print_mean("random words", falls_of["random"])


def print_mean(title, values):
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    print(f"  {title:40} {statistics.fmean(values):6.3f} ± {error:.3f}")


# ---- drawing


class Explanation(NamedTuple):
    subject: Predictor
    reading: Reading
    related: dict[str, list[float]]  # what `relations` returns


def pieces(reading):
    """Yields each text as [(characters, kind, which word)].

    A piece is a "word", a word in the "answer", what stands "between" words, or "unread": before the first
    or after the last word that was read.
    """
    for text, full in enumerate(reading.texts):
        found, at, between = [], 0, "unread"
        for i, word in enumerate(reading.words):
            if word.text == text:
                kind = "answer" if in_answer(word, reading.span) else "word"
                found += [(full[at : word.start], between, None), (full[word.start : word.end], kind, i)]
                at, between = word.end, "between"
        yield [*found, (full[at:], "unread", None)]


def has_unread(reading):
    """Whether some text is beyond --max-len, or outside the answer's window."""
    return any(kind == "unread" and part.strip() for text in pieces(reading) for part, kind, _ in text)


def deepest(explanations, measure):
    """The value of the deepest red: the largest of all models'."""
    return max([0, *(value for one in explanations for value in one.related[measure])]) or 1.0


def conclusion(reading, right):
    with torch.no_grad():
        log_probability = reading.outcome(reading.ids)[1]
    said = f"answer: {reading.answer or '(none)'}"
    said += "" if log_probability is None else f" (probability {math.exp(log_probability):.3f})"
    if right and reading.span:
        said += ", right" if squad_scores([reading.answer], [right])["exact_match"] else ", wrong"
    return said


def html_page(title, explanations, right):
    """The page for explanations of the same texts; `right`: the right answers."""
    readings = [one.reading for one in explanations]
    notes = {
        f"Right: <b>{escape(' / '.join(right))}</b>": right,
        'Each model\'s answer is <span class="answer">underlined</span>.': any(one.span for one in readings),
        "Grey text was not read: the model takes no more at a time.": any(map(has_unread, readings)),
    }
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += (f'<p class="soft">{note}</p>' for note, holds in notes.items() if holds)
    for measure, (heading, explained) in MEASURES.items():
        top = deepest(explanations, measure)
        parts.append(f"""<section><h2>{heading}</h2><p>{explained}</p>
<p class="legend soft">0 <i></i> {top:.3g} &nbsp; the same scale for every model</p>""")
        for subject, reading, related in explanations:
            shades = [f' style="--depth:{max(v, 0) / top:.3f}" title="{v:.4g}"' for v in related[measure]]
            said = escape(conclusion(reading, right))
            parts.append(f'<h3>{escape(subject.name)}</h3><p class="soft">{said}</p>')
            for text in pieces(reading):
                spans = (
                    f'<span class="{kind}"{"" if i is None else shades[i]}>{escape(characters)}</span>'
                    for characters, kind, i in text
                    if characters
                )
                parts.append(f'<p class="strip">{"".join(spans)}</p>')
        parts.append("</section>")
    return page(title, "\n".join(parts))


def print_all(explanations, right):
    """The same in the terminal: the reddest words and their numbers."""
    for measure, (heading, _) in MEASURES.items():
        top = deepest(explanations, measure)
        print(f"\n{heading}; deepest red: {top:.3g}")
        for subject, reading, related in explanations:
            print(f"{subject.name}: {conclusion(reading, right)}{'; not all was read' * has_unread(reading)}")
            order = sorted(zip(related[measure], reading.words, strict=True), key=lambda pair: -pair[0])
            reddest = [f"{reading.texts[w.text][w.start : w.end]} {value:.3f}" for value, w in order[:8]]
            print("  " + ", ".join(reddest))


# ---- main


def some_text(given):
    if not given.strip():
        raise argparse.ArgumentTypeError("expected a text, in quotes")
    return given


def arguments():
    look = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m experiments.visualise", description=__doc__, formatter_class=look)
    add, add_input = parser.add_argument, parser.add_mutually_exclusive_group(required=True).add_argument
    add("--adapter", action="append", required=True, metavar="FILE", help="an adapter.pt, or two of a task")
    add("--model", help="the checkpoint the adapters were trained on (default: as they name it)")
    add_input("--question", type=some_text, metavar="TEXT", help="for a SQuAD adapter, with --context")
    add("--context", type=some_text, metavar="TEXT", help="the text that holds the answer")
    add_input("--text", type=some_text, nargs="+", metavar="TEXT", help="for a classifier: one or a pair")
    add_input("--id", help="a dev example: SQuAD's id, else its number in the file, from 1")
    add_input("--faithfulness", type=whole, metavar="N", help="measure it on the first N dev examples")
    add("--data", metavar="DIR", help="folder of the data set (default: fetched once into the cache)")
    add("--dev-file", metavar="F", help="instead of the development file in --data")
    add("--html", type=file_to_write, metavar="FILE", help="write the page; it needs no other file")
    args = parser.parse_args()
    if len(args.adapter) > 2:
        raise UserError(f"--adapter: {len(args.adapter)} given: expected one or two")
    if bool(args.question) != bool(args.context):
        raise UserError("--question and --context go together")
    if args.html and args.faithfulness:
        raise UserError("--html: --faithfulness has no page")
    return args


def dev_examples(args, subject):
    """{id: (texts, right answers)}"""
    task, name, files = subject.task, subject.args.task, (None, args.dev_file, ("dev",))
    data = args.data or (MINI / ("" if task else "squad") if subject.args.model == "mini" else None)
    if not task:
        questions = squad.load(data, *files)["dev"]
        return {q.id: ((q.text, q.context), [*dict.fromkeys(a for _, a in q.answers)]) for q in questions}
    found = table.load(task, *files) if name == "own" else glue.load(name, data, *files)
    return {
        str(i): (e[: len(task.texts)], [task.label_names[e.label] if task.labels else f"{e.label:g}"])
        for i, e in enumerate(next(iter(found.values())), 1)
    }


def main():
    args = arguments()
    subjects = [load_subject(path, args.model) for path in args.adapter]
    task, (name, other) = subjects[0].task, (subjects[i].args.task for i in (0, -1))
    if subjects[-1].task != task:
        raise UserError(f"--adapter: one is of {name}, the other of {other}: expected one task")
    if args.faithfulness and task and not task.labels:
        raise UserError(f"--faithfulness: {name} predicts a score, which has no probability")
    count = len(task.texts) if task else None
    if (args.question and count) or (args.text and len(args.text) != count):
        wanted = f"--text and {count} text(s), each in quotes" if count else "--question and --context"
        raise UserError(f"{args.adapter[0]}: trained on {name}: expected {wanted}")
    texts, right = tuple(args.text or (args.question, args.context)), []
    examples = dev_examples(args, subjects[0]) if args.id or args.faithfulness else {}
    if args.faithfulness:
        for subject in subjects:
            faithfulness(subject, [texts for texts, _ in examples.values()][: args.faithfulness])
        return
    if args.id:
        if args.id not in examples:
            ids = f"{next(iter(examples))}, … {[*examples][-1]}"
            raise UserError(f"--id {args.id}: not in the development set, whose ids are {ids}")
        texts, right = examples[args.id]
        print(f"right: {' / '.join(right)}")

    readings = [read(subject, texts) for subject in subjects]
    explanations = [Explanation(s, r, relations(s.model, r)) for s, r in zip(subjects, readings, strict=True)]
    print_all(explanations, right)
    if args.html:
        save(args.html, html_page(" ".join(texts[0].split()), explanations, right))


if __name__ == "__main__":
    run_as_script(main)
