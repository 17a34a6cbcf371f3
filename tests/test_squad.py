"""data/squad.py: official files, windows, what a target and an answer are in them, which logits count."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data import UserError, squad
from data.hub import MINI, load_tokenizer

TEXT = "the red dog sees a cat . the old girl hears a boy and runs ."
# two spaces, a no-break space, a quotation mark that is not ASCII
SPACES = "the  red\u00a0dog’s cat."


def question(context=TEXT, answers=((29, "old girl"),), text="a girl hears"):
    return squad.Question("q", text, context, tuple(answers))


def official(**changes):
    """A file's content with one article, paragraph and question; `changes` of the question's entries."""
    entry = {"id": "1", "question": "who?", "answers": [{"answer_start": 8, "text": "dog"}]} | changes
    return {"version": "1.1", "data": [{"title": "Pets", "paragraphs": [{"context": TEXT, "qas": [entry]}]}]}


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model, 120)


@pytest.fixture
def roberta_tokenizer():
    """The bundled tokenizer, which is byte-level: words have several tokens, and characters several bytes."""
    return load_tokenizer(MINI / "roberta", 1200)


# ---- reading


def test_official_files(tmp_path):
    """Would catch: questions out of order, answers but the first lost, a folder's files under other names."""
    several = [{"answer_start": 8, "text": "dog"}, {"answer_start": 0, "text": "the red dog"}]
    (tmp_path / "dev-v1.1.json").write_text(
        "\ufeff" + json.dumps(official(answers=several)), encoding="utf-8"
    )
    (tmp_path / "train-v1.1.json").write_text(json.dumps(official(question=" Où? ")), encoding="utf-8")
    found = squad.load(tmp_path)
    assert found["dev"] == [squad.Question("1", "who?", TEXT, ((8, "dog"), (0, "the red dog")))]
    assert found["train"] == [squad.Question("1", " Où? ", TEXT, ((8, "dog"),))]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(official(id="2")))
    assert squad.load(tmp_path, dev_file=other, splits=("dev",))["dev"][0].id == "2"


WHERE = r"x\.json: article 1 \(Pets\), paragraph 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (official(answers=[]), WHERE + r", question 1: no answer: .*v2\.0"),
        (
            official(answers=[{"answer_start": 9, "text": "dog"}]),
            WHERE + ", question 1: answer 'dog' is not at character 9",
        ),
        (
            official(answers=[{"answer_start": "8", "text": "dog"}]),
            WHERE + ", question 1: answer_start is '8'",
        ),
        (
            official(answers=[{"answer_start": -53, "text": "dog"}]),
            WHERE + ", question 1: answer_start is -53",
        ),
        (official(answers=[{"text": "dog"}]), WHERE + ", question 1: answer_start is None"),
        (official(answers=["dog"]), WHERE + ", question 1: no text 'text'"),
        (official(answers=[{"answer_start": 3, "text": " "}]), WHERE + ", question 1: no text 'text'"),
        (official(question=""), WHERE + ", question 1: no text 'question'"),
        (official(id=7), WHERE + ", question 1: no text 'id'"),
        ({"data": [{"title": "Pets", "paragraphs": [{"context": TEXT}]}]}, WHERE + ": no list 'qas'"),
        ({"data": [{"title": "Pets", "paragraphs": [{"qas": []}]}]}, WHERE + ": no text 'context'"),
        ({"data": [{"title": "Pets"}]}, r"x\.json: article 1 \(Pets\): no list 'paragraphs'"),
        ({"data": ["Pets"]}, r"x\.json: article 1: no list 'paragraphs'"),
        ({"data": []}, r"x\.json: no questions in it"),
        (
            {"data": official()["data"] * 2},
            r"article 2 \(Pets\), paragraph 1, question 1: id '1' occurs twice",
        ),
        ([], r"x\.json: no list 'data'"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, content, message):
    """Would catch: our own KeyError; a misplaced answer, which would train a wrong span."""
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        squad.read(tmp_path / "x.json")


def test_files_that_are_no_json(tmp_path):
    """Would catch: a traceback for a file that is cut off, missing or in another encoding."""
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json: No such file.*--data DIR"):
        squad.read(path)
    path.write_text(json.dumps(official())[:100])
    with pytest.raises(UserError, match=r"x\.json: not JSON \(.*line 1"):
        squad.read(path)
    path.write_bytes(b'{"data": "caf\xe9"}')
    with pytest.raises(UserError, match=r"x\.json:1: not UTF-8"):
        squad.read(path)
    path.write_text('{"data": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"x\.json: not JSON"):
        squad.read(path)


def test_download_once_and_checked(server, tmp_path, monkeypatch):
    """Would catch: official files that are fetched again, or used although they are others."""
    address, files = server
    content = json.dumps(official()).encode()
    files.update({name: (content, len(content)) for name in squad.SHA256})
    for name in squad.SHA256:
        monkeypatch.setitem(squad.SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(squad, "RELEASE", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "hut" / "squad"
    assert len(squad.load(splits=("dev",))["dev"]) == 1
    assert [path.name for path in folder.iterdir()] == ["dev-v1.1.json"]
    assert [len(part) for part in squad.load().values()] == [1, 1]
    files.clear()
    assert [len(part) for part in squad.load().values()] == [1, 1]
    monkeypatch.setitem(squad.SHA256, "dev-v1.1.json", "0" * 64)
    (folder / "dev-v1.1.json").unlink()
    files["dev-v1.1.json"] = content, len(content)
    with pytest.raises(UserError, match=r"dev-v1\.1\.json has sha256 .*expected 000"):
        squad.load()


# ---- windows


def test_windows_overlap_and_cover_the_text(tokenizer):
    """Would catch: a stride used as a step, the end of a text in no window, a question that is cut off."""
    text = tokenizer.encode(TEXT, add_special_tokens=False).ids  # 16 tokens
    windows = squad.encode(tokenizer, [question(), question("the dog .", ((4, "dog"),))], 14, 3)
    of_first = [window for window in windows if window.question == 0]
    assert [len(window.ids) for window in windows] == [14, 14, 14, 11, 10] and windows[-1].question == 1
    parts = []
    for window in of_first:
        assert window.ids[:6] == [0, 5, 8, 13, 2, 2] and window.ids[-1] == 2 and window.first == 6
        parts.append(window.ids[6:-1])
    assert all(a[-3:] == b[:3] for a, b in itertools.pairwise(parts))
    assert parts[0] + [token for part in parts[1:] for token in part[3:]] == text
    assert len(squad.encode(tokenizer, [question()], 32, 3)) == 1


def test_windows_are_those_of_encoding_one_question_alone(tokenizer):
    """Would catch: questions that are mixed up where they are encoded a thousand at a time."""
    questions = [question(text="a girl hears " * (i % 3 + 1)) for i in range(1003)]
    windows = squad.encode(tokenizer, questions, 24, 2)
    for i in (0, 999, 1000, 1002):
        alone = squad.encode(tokenizer, [questions[i]], 24, 2)
        assert [window.ids for window in windows if window.question == i] == [window.ids for window in alone]


def test_a_question_that_leaves_no_room_is_an_error(tokenizer):
    """Would catch: the tokenizer's own panic, which no except clause catches; windows that never move on."""
    assert len(squad.encode(tokenizer, [question()], 11, 3)) == 13  # room for 4 tokens, of which 3 repeat
    for max_len, left in ((10, 3), (7, 0), (5, 0)):
        with pytest.raises(
            UserError, match=rf"question q: its 3 tokens leave {left} of {max_len} .*--doc-stride 3"
        ):
            squad.encode(tokenizer, [question()], max_len, 3)


def test_spaces_around_a_question_do_not_count(tokenizer):
    """Would catch: the official training question that begins with 25 thousand spaces."""
    spaced = squad.encode(tokenizer, [question(text=" " * 30_000 + "a girl hears\n")], 32, 0)
    assert spaced[0].ids == squad.encode(tokenizer, [question()], 32, 0)[0].ids


def test_target_and_cut_go_there_and_back(tokenizer):
    """Would catch: an end that is one token off; a target in a window that holds half of the answer."""
    long = question(answers=((TEXT.index("girl"), "girl hears a boy and"),))
    found = []
    for window in squad.encode(tokenizer, [long], 14, 5):
        span = squad.target(window, long.answers[0])
        found.append(squad.cut(TEXT, window, *span) if span != (0, 0) else None)
    assert found.count("girl hears a boy and") >= 1 and set(found) == {None, "girl hears a boy and"}
    spaced = question(answers=((TEXT.index(" girl"), " girl "),))
    window = squad.encode(tokenizer, [spaced], 32, 0)[0]
    assert squad.cut(TEXT, window, *squad.target(window, spaced.answers[0])) == "girl"


@pytest.mark.parametrize("trimmed", [True, False])
def test_answers_are_cut_from_the_original_text(roberta_tokenizer, trimmed):
    """Would catch: answers joined from tokens, which lose spaces; offsets in bytes; a leading space.

    The tokenizer can be set to count the space before a word as a part of it, or not.
    """
    roberta_tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trimmed
    )
    for words in ("red\u00a0dog’s", "the  red", "cat", "dog’s cat.", SPACES):
        asked = question(SPACES, [(SPACES.index(words), words)])
        window = squad.encode(roberta_tokenizer, [asked], 100, 0)[0]
        assert squad.cut(SPACES, window, *squad.target(window, asked.answers[0])) == words
        assert squad.unreachable([asked], [window]) == 0


def test_unreachable_answers_are_counted(tokenizer):
    """Would catch: an answer counted as reachable that is part of a token or too long; one taken for all."""
    windows = squad.encode(tokenizer, [question()], 32, 0)
    assert squad.unreachable([question(answers=((30, "ld girl"),))], windows) == 1
    assert squad.unreachable([question(answers=((30, "ld girl"), (29, "old girl")))], windows) == 0
    shortest = squad.target(windows[0], (29, "old girl"))
    assert squad.target(windows[0], (30, "ld girl")) == shortest
    narrow = squad.encode(tokenizer, [question()], 14, 1)  # 7 tokens of the text a window
    assert squad.unreachable([question(answers=((0, TEXT[:24]),))], narrow) == 0
    assert squad.unreachable([question(answers=((0, TEXT[:28]),))], narrow) == 1
    many = question("dog " * 40, ((0, ("dog " * 31).strip()),))
    assert squad.unreachable([many], squad.encode(tokenizer, [many], 100, 0)) == 1


def test_a_tokenizer_that_drops_characters_is_no_error():
    """Would catch: a text without tokens, or an answer of dropped characters, that ends in a traceback."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 2, "?": 3, "dog": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\u200b")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    dropped = question("\u200b\u200b", ((0, "\u200b"),))
    assert squad.encode(tokenizer, [dropped], 20, 0) == [] and squad.unreachable([dropped], []) == 1
    between = question("dog\u200bdog", ((3, "\u200b"),))
    assert squad.target(squad.encode(tokenizer, [between], 20, 0)[0], between.answers[0]) == (0, 0)


# ---- answers


def test_only_the_text_and_the_first_token_have_a_probability(tokenizer):
    """Would catch: an answer in the question or the padding; probabilities that do not sum to 1."""
    windows = squad.encode(tokenizer, [question(), question("the dog .", ((4, "dog"),))], 32, 0)
    ids, mask, of_text = squad.batch_of(windows, 1, torch.device("cpu"))
    assert ids.shape == (2, 23) and mask.sum(1).tolist() == [23, 10]
    assert of_text.nonzero().tolist() == [[0, i] for i in range(6, 22)] + [[1, i] for i in range(6, 9)]
    logits = torch.randn(2, 23).masked_fill(~of_text, 9.0).requires_grad_()
    probabilities = squad.log_probabilities(logits, of_text).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    allowed = of_text.clone()
    allowed[:, 0] = True
    assert torch.equal(probabilities > 0, allowed)
    probabilities[:, 8].log().sum().backward()
    assert logits.grad.isfinite().all() and torch.equal(logits.grad != 0, allowed)


def test_best_span_is_that_of_a_plain_search(monkeypatch):
    """Would catch: an end before its start, a span too long or outside the text, both ends swapped."""
    monkeypatch.setattr(squad, "MAX_ANSWER", 4)
    rng = np.random.default_rng(0)
    start, end = (torch.tensor(rng.normal(size=(50, 12)), dtype=torch.float32) for _ in range(2))
    of_text = torch.zeros(50, 12, dtype=torch.bool)
    of_text[:, 3:11] = True
    found = squad.best_spans(start, end, of_text)
    for row in range(50):
        pairs = [(i, j) for i in range(3, 11) for j in range(i, min(i + 4, 11))]
        expected = max(pairs, key=lambda pair: start[row, pair[0]] + end[row, pair[1]])
        assert (int(found[0][row]), int(found[1][row])) == expected
        assert found[2][row] == start[row, expected[0]] + end[row, expected[1]]
