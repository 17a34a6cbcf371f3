"""SQuAD v1.1 (Rajpurkar et al., 2016): files -> questions -> windows of tokens -> answers in the text."""

from typing import NamedTuple

import numpy as np
import torch

from data import UserError, parse_json, read_text
from data.batching import pad, send
from data.download import load_splits


class Question(NamedTuple):
    """Each answer is (its first character in the context, its words)."""

    id: str
    text: str
    context: str
    answers: tuple[tuple[int, str], ...] = ()


class Window(NamedTuple):
    """The token ids of a question and as much of its text as fits."""

    question: int  # the number of the question
    ids: list[int]
    first: int  # the place in `ids` of the text's first token
    offsets: np.ndarray  # (n, 2): the characters of the text that each of its n tokens covers, as a range


FILES = {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}
MAX_ANSWER = 30  # tokens, as in BERT's and transformers' scripts

# ---- reading


def read(path):
    """The questions of one file. Raises UserError, with the place, for one that is not as in SQuAD v1.1."""
    text = read_text(path, "name a folder of SQuAD v1.1 files with --data DIR")
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    questions, seen = [], set()
    for a, article in enumerate(_field(content, "data", list, path), 1):
        title = article.get("title") if isinstance(article, dict) else None
        where = f"{path}: article {a}" + (f" ({title})" if title else "")
        for p, paragraph in enumerate(_field(article, "paragraphs", list, where), 1):
            here = f"{where}, paragraph {p}"
            context = _field(paragraph, "context", str, here)
            for q, entry in enumerate(_field(paragraph, "qas", list, here), 1):
                question = _question(entry, context, f"{here}, question {q}")
                if question.id in seen:
                    raise UserError(f"{here}, question {q}: id '{question.id}' occurs twice in the file")
                seen.add(question.id)
                questions.append(question)
    if not questions:
        raise UserError(f"{path}: no questions in it")
    return questions


def _question(entry, context, where):
    id_, text = _field(entry, "id", str, where), _field(entry, "question", str, where)
    answers = []
    for answer in _field(entry, "answers", list, where):
        words, start = _field(answer, "text", str, where), answer.get("answer_start")
        if not isinstance(start, int) or start < 0:
            raise UserError(f"{where}: answer_start is {start!r}: expected the number of a character")
        if (found := context[start : start + len(words)]) != words:
            raise UserError(f"{where}: answer '{words}' is not at character {start}: found '{found}'")
        answers.append((start, words))
    if not answers:
        raise UserError(f"{where}: no answer: expected one or more, as in v1.1 (unlike v2.0)")
    return Question(id_, text, context, tuple(answers))


def _field(entry, key, kind, where):
    """entry[key], if it is a list or a text that is not blank."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or (kind is str and not value.strip()):
        name = "text" if kind is str else "list"
        raise UserError(f"{where}: no {name} '{key}': expected the layout of SQuAD v1.1")
    return value


def load(data=None, train_file=None, dev_file=None, splits=("train", "dev")):
    """{split: questions} from a folder of official files, fetched if `data` is None."""
    return load_splits(read, (FILES,), ("squad", RELEASE, SHA256), data, train_file, dev_file, splits)


RELEASE = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
}


# ---- tokens


def encode(tokenizer, questions, max_len, doc_stride):
    """The windows of all questions: <s> question </s></s> text </s>, at most `max_len` tokens each.

    A text that does not fit has several windows, each of which repeats `doc_stride` tokens of the one before.
    Raises UserError for a question that leaves no room for more.
    """
    texts = [question.text.strip() for question in questions]  # one official question has thousands of spaces
    added = tokenizer.num_special_tokens_to_add(is_pair=True)
    windows = []
    for start in range(0, len(questions), 1000):  # the tokenizer's objects are large
        some = range(start, min(start + 1000, len(questions)))
        tokenizer.no_truncation()
        alone = tokenizer.encode_batch([texts[i] for i in some], add_special_tokens=False)
        for i, encoding in zip(some, alone, strict=True):
            room = max_len - added - len(encoding.ids)
            if room <= doc_stride:
                left = f"its {len(encoding.ids)} tokens leave {max(room, 0)} of {max_len} for the text"
                expected = f"expected more than --doc-stride {doc_stride}: raise --max-len or lower it"
                raise UserError(f"question {questions[i].id}: {left}: {expected}")
        tokenizer.enable_truncation(max_len, stride=doc_stride, strategy="only_second")
        pairs = [(texts[i], questions[i].context) for i in some]
        for i, encoding in zip(some, tokenizer.encode_batch(pairs), strict=True):
            for part in (encoding, *encoding.overflowing):
                of_text = [place for place, sequence in enumerate(part.sequence_ids) if sequence == 1]
                if of_text:  # the tokenizer may drop all characters of a text
                    offsets = np.array(part.offsets[of_text[0] : of_text[-1] + 1], np.int32)
                    windows.append(Window(i, part.ids, of_text[0], offsets))
    return windows


def target(window, answer):
    """(first, last) place in `window.ids` of the shortest span that covers the answer, or (0, 0), the <s>."""
    start, words = answer
    start, end = start + len(words) - len(words.lstrip()), start + len(words.rstrip())
    touched = np.flatnonzero((window.offsets[:, 0] < end) & (window.offsets[:, 1] > start))
    if not len(touched) or window.offsets[touched[0], 0] > start or window.offsets[touched[-1], 1] < end:
        return 0, 0
    return window.first + int(touched[0]), window.first + int(touched[-1])


def cut(context, window, first, last):
    """The text of the window's tokens from `first` to `last`, both included."""
    start, end = window.offsets[first - window.first, 0], window.offsets[last - window.first, 1]
    return context[start:end].strip()  # in some tokenizers a word's token covers the space before it


def unreachable(questions, windows):
    """The number of questions without an answer that is exactly a span of up to MAX_ANSWER tokens."""
    reached = set()
    for window in windows:
        context, answers = questions[window.question].context, questions[window.question].answers
        for answer in answers:
            first, last = target(window, answer)
            if first and last - first < MAX_ANSWER and cut(context, window, first, last) == answer[1].strip():
                reached.add(window.question)
    return len(questions) - len(reached)


# ---- answers


def batch_of(windows, pad_token, device, lengths=()):
    """input_ids (B, L), mask (B, L) or None, and which tokens are the text's, (B, L) bool."""
    ids, mask = pad([window.ids for window in windows], pad_token, device, lengths)
    place = torch.arange(ids.shape[1])
    first = torch.tensor([window.first for window in windows])[:, None]
    count = torch.tensor([len(window.offsets) for window in windows])[:, None]
    return ids, mask, send((place >= first) & (place < first + count), device)


def log_probabilities(logits, of_text):
    """Logits (B, L) of a start or an end -> log-probabilities, -inf outside the text and <s>.

    <s>, "not in this window", makes the probabilities of a question's windows comparable.
    """
    allowed = of_text.clone()
    allowed[:, 0] = True
    return logits.float().masked_fill(~allowed, -torch.inf).log_softmax(1)


def best_spans(start, end, of_text):
    """Each window's likeliest span of up to MAX_ANSWER tokens: first, last, log-probability, (B,) each.

    start, end: (B, L) log-probabilities. All pairs of start and end are compared.
    """
    length = start.shape[1]
    start, end = (t.masked_fill(~of_text, -torch.inf) for t in (start, end))
    scores = start[:, :, None] + end[:, None, :]
    in_order = torch.ones(length, length, dtype=torch.bool, device=start.device).triu().tril(MAX_ANSWER - 1)
    best, place = scores.masked_fill(~in_order, -torch.inf).flatten(1).max(1)
    return place // length, place % length, best
