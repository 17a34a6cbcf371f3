"""experiments/visualise.py: relations against their definitions, words, the page, the command line."""

import argparse
import html.parser
import math
import random
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import fails

from data import glue, squad
from data.hub import MINI
from experiments import visualise
from methods import methods_of
from model import RobertaClassifier, RobertaSpan
from weights import prepare, trainable, write_adapter

QUESTION = "Where did many waitresses praise a neighbour?"
CONTEXT = "Every waiter destroyed the coat in the garden. Many waitresses praised a neighbour in the station."


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """adapter(task, method, seed) -> the file of an adapter of the bundled encoder, moved from its start."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(task="squad", method="hut", seed=0, max_len=64, **table):
        path = folder / f"{task}-{method}-{seed}-{max_len}-{len(table.get('labels', ()))}.pt"
        if path.exists():
            return path
        config = {
            "r": 2,
            "targets": "qv",
            "frozen_seed": 0,
            "model": "mini",
            "max_len": max_len,
            "doc_stride": 4,
            **table,
        }
        args = argparse.Namespace(method=method, task=task, seed=seed, dropout=None, **config)
        kind = RobertaSpan if task == "squad" else RobertaClassifier
        labels = {"num_labels": len(table["labels"]) or 1} if table else {}
        model, base = prepare(args, kind, MINI / "roberta", torch.device("cpu"), **labels)
        in_body, head = trainable(model)
        with torch.no_grad():
            for tensor in (in_body | head).values():
                tensor.add_(torch.randn_like(tensor) * (0.3 if method != "full" else 0.001))
        write_adapter(path, args, model, base)
        return path

    return make


@pytest.fixture
def loaded(adapter):
    def load(*arguments, **options):
        return visualise.load_subject(adapter(*arguments, **options))

    return load


@pytest.fixture
def command(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualise.py", *map(str, arguments)])
        visualise.main()

    return call


# ---- relations


@pytest.mark.parametrize("method", [name for name in methods_of("encoder") if name != "read"])
def test_attention_is_what_the_model_attends_with(loaded, method):
    """Would catch: attention of another layer, of the frozen weights, without the scale or the prefix."""
    model = loaded(method=method).model
    ids = torch.randint(4, 1000, (1, 12))
    block, seen = model.roberta.blocks[-1], {}
    outer = getattr(block, "block", block).attention
    inner = getattr(outer, "attention", outer)
    inner.v.register_forward_hook(lambda m, i, output: seen.update(v=output[0]))
    inner.o.register_forward_hook(lambda m, i, output: seen.update(mixed=i[0][0]))
    weights = visualise.attention_of(model, ids)
    assert weights.shape == (4, 12, 12)
    v = seen["v"].unflatten(-1, (4, -1)).transpose(0, 1)
    if method == "prefix":
        assert weights.sum(-1).max() < 1 + 1e-6 and weights.sum(-1).mean() < 0.98  # the prefix takes the rest
        rest = seen["mixed"].unflatten(-1, (4, -1)).transpose(0, 1) - weights @ v
        values = outer.values.unflatten(-1, (4, -1)).transpose(0, 1)
        found = torch.linalg.lstsq(values.transpose(1, 2).detach(), rest.transpose(1, 2).detach()).solution
        torch.testing.assert_close(found.sum(1), 1 - weights.sum(-1), rtol=0, atol=1e-3)
    else:
        torch.testing.assert_close((weights @ v).transpose(0, 1).flatten(1), seen["mixed"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("task", "method"), [("squad", "hut"), ("squad", "full"), ("cola", "hut")])
def test_gradient_times_input_is_the_slope_of_the_logit(loaded, task, method):
    """Would catch: the gradient at another tensor, of another logit. Each embedding is stretched a little."""
    subject = loaded(task, method)
    subject.model.double()
    reading = (
        visualise.read_squad(subject, QUESTION, CONTEXT)
        if task == "squad"
        else visualise.read_glue(subject, CONTEXT)
    )
    found = visualise.gradient_times_input(subject.model, reading)
    stretch = torch.ones(reading.ids.shape[1], 1, dtype=torch.float64)
    subject.model.roberta.embeddings.word.register_forward_hook(
        lambda module, inputs, output: output * stretch
    )
    for token in (0, 3, 9, 15):
        logits = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            stretch[token] = factor
            with torch.no_grad():
                logits.append(reading.outcome(reading.ids)[0].item())
        stretch[token] = 1
        assert found[token].item() == pytest.approx((logits[0] - logits[1]) / 2e-5, rel=1e-3, abs=1e-6)


def test_the_gradient_leaves_no_trace(loaded):
    """Would catch: hooks that stay, frozen embeddings that are trained from then on."""
    model, reading = (subject := loaded()).model, visualise.read_squad(subject, QUESTION, CONTEXT)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    first, second = (visualise.relations(model, reading) for _ in range(2))
    assert first == second and before == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_relations_of_words_are_sums_over_their_tokens(loaded):
    """Would catch: attention from other tokens than the answer's, a mean over sub-words."""
    subject = loaded()
    reading = visualise.read_squad(subject, QUESTION, "The xylophonist praised Oscar in the garden.")
    words, related = reading.words, visualise.relations(subject.model, reading)
    long = next(
        i
        for i, word in enumerate(words)
        if reading.texts[1][word.start : word.end] == "xylophonist" and word.text
    )
    assert len(words[long].tokens) > 3
    weights = visualise.attention_of(subject.model, reading.ids)
    expected = weights[:, reading.looking][:, :, words[long].tokens].sum(-1).mean()
    assert related["attention"][long] == pytest.approx(expected.item(), rel=1e-4)
    gradient = visualise.gradient_times_input(subject.model, reading)[words[long].tokens]
    assert related["gradient"][long] == pytest.approx(gradient.sum().item(), rel=1e-4)


def test_attention_is_from_what_the_classifier_reads(loaded):
    """Would catch: the first token's attention where the head reads the mean over all."""
    subject = loaded("cola")
    assert visualise.read_glue(subject, CONTEXT).looking == [0]
    subject.model.pool = "mean"  # as an adapter that was trained with --pool mean has it
    reading = visualise.read_glue(subject, CONTEXT)
    assert reading.looking == [*range(reading.ids.shape[1])]


# ---- words, readings


def spelt(reading):
    return [[reading.texts[t][w.start : w.end] for w in reading.words if w.text == t] for t in (0, 1)]


def test_sub_words_are_joined(loaded):
    """Would catch: words in pieces, words glued to their full stop, a character in two words."""
    reading = visualise.read_squad(loaded(), "  Who praised  Beyoncé? ", "Levi's café (24–10) is 西藏 – £20.")
    assert reading.texts[0] == "Who praised  Beyoncé?"
    assert spelt(reading)[0] == ["Who", "praised", "Beyoncé", "?"]
    second = spelt(reading)[1]
    assert {"café", "24", "–", "10", "西藏"} <= set(second) and "".join(second) == reading.texts[1].replace(
        " ", ""
    )


@pytest.mark.parametrize("max_len", [64, 24])
def test_the_answer_is_that_of_the_likeliest_window(loaded, max_len):
    """Would catch: a span that is not the answer's, a place that is shifted by the window's beginning."""
    subject = loaded(max_len=max_len)
    reading = visualise.read_squad(subject, QUESTION, CONTEXT)
    text, start, end = reading.span
    assert text == 1 and CONTEXT[start:end] == reading.answer != ""
    words = reading.words
    marked = [i for word in words if visualise.in_answer(word, reading.span) for i in word.tokens]
    tokens = map(subject.tokenizer.id_to_token, reading.ids[0].tolist())
    spaces = {i for i, token in enumerate(tokens) if token == "Ġ"}
    assert set(marked) - spaces == set(reading.looking) - spaces
    windows = squad.encode(subject.tokenizer, [squad.Question("", QUESTION, CONTEXT)], max_len, 4)
    assert (len(windows) > 1) == (max_len == 24)
    likeliest = 0
    for window in windows:
        ids, _, of_text = squad.batch_of([window], 1, "cpu")
        start, end = (squad.log_probabilities(logits, of_text).detach() for logits in subject.model(ids))
        likeliest = max(likeliest, squad.best_spans(start, end, of_text)[2].exp().item())
    logit, log_probability = reading.outcome(reading.ids)
    assert math.exp(log_probability) == pytest.approx(likeliest, rel=1e-5)
    start, end = subject.model(reading.ids)
    assert logit == start[0, reading.looking[0]] + end[0, reading.looking[-1]]


def test_a_pair_of_glue(loaded):
    """Would catch: the second sentence's places in the first, a class with another's logit."""
    subject = loaded("cola")
    subject.task = glue.TASKS["rte"]
    reading = visualise.read_glue(subject, CONTEXT, "A neighbour was praised.")
    assert spelt(reading)[1] == ["A", "neighbour", "was", "praised", "."] and spelt(reading)[0][-1] == "."
    logits = subject.model(reading.ids)[0]
    assert reading.answer == ("entailment", "not_entailment")[logits.argmax()]
    logit, log_probability = reading.outcome(reading.ids)
    assert logit == logits.max() and math.exp(log_probability) == pytest.approx(
        logits.softmax(0).max().item()
    )


# ---- faithfulness


def test_the_reddest_words_outside_the_answer_are_masked(loaded, monkeypatch):
    """Would catch: the palest words masked, the answer's own, another share of them, a part of a word; a
    wrong sign; random words of another text than the measure's.

    Twelve words of two tokens, the first four of them the question's.
    """
    subject = loaded()
    mask = subject.tokenizer.token_to_id("<mask>")
    asked = []

    def outcome(ids):
        asked.append((ids[0] == mask).nonzero()[:, 0].tolist())
        return None, 0.9 - 0.05 * len(asked[-1])

    words = [visualise.Word([2 * i + 1, 2 * i + 2], int(i > 3), 2 * i, 2 * i + 1) for i in range(12)]
    answer = (1, 8, 11)  # words 4 and 5
    reading = visualise.Reading(("", ""), torch.full((1, 26), 5), words, "", [], answer, outcome)
    reds = {"attention": [*range(12)], "gradient": [5, 4, 3, 2, 99, 99, -1, -1, -1, -1, -1, -1]}
    monkeypatch.setattr(visualise, "relations", lambda *arguments: reds)
    named, subject.tokenizer = subject.tokenizer, SimpleNamespace(token_to_id={"[MASK]": mask}.get)  # BERT's
    visualise.falls(subject, reading, random.Random(0))
    assert {len(chosen) for chosen in asked[1:]} == {2}  # a twentieth of ten words: one
    subject.tokenizer = named
    asked.clear()
    monkeypatch.setattr(visualise, "MASKED", 0.2)
    before, fall = visualise.falls(subject, reading, random.Random(0))
    names = ("attention", "like attention", "gradient", "like gradient", "random")
    assert before == 0.9 and fall == pytest.approx(dict.fromkeys(names, 0.2))
    n = visualise.DRAWS
    assert asked[:2] == [[], [21, 22, 23, 24]] and asked[2 + n] == [1, 2, 3, 4] and len(asked) == 3 + 3 * n
    random_ones = {"text": asked[2 : 2 + n], "question": asked[3 + n : 3 + 2 * n], "any": asked[3 + 2 * n :]}
    for which, draws in random_ones.items():
        assert len({tuple(chosen) for chosen in draws}) > 1
        for chosen in draws:
            assert len(chosen) == 4 and not {9, 10, 11, 12} & set(chosen)
            assert all(chosen[i] % 2 == 1 and chosen[i + 1] == chosen[i] + 1 for i in (0, 2))  # whole words
            assert which == "any" or all((token > 8) == (which == "text") for token in chosen)


def test_what_faithfulness_prints(loaded, monkeypatch, capsys):
    """Would catch: a row with another's numbers, another mean, a share of something else."""
    names = ("attention", "like attention", "gradient", "like gradient", "random")
    found = iter([(math.log(0.4), dict(zip(names, (0.25, 0.25, 0.5, 0.5, 0.0), strict=True))), None,
                  (math.log(0.6), dict(zip(names, (0.75, 0.25, 1.0, 0.0, 0.0), strict=True)))])  # fmt: skip
    monkeypatch.setattr(visualise, "falls", lambda *arguments: next(found))
    visualise.faithfulness(loaded(), [(QUESTION, CONTEXT)] * 3)
    printed = capsys.readouterr().out
    assert "2 dev examples, mean probability of the answer 0.500" in printed
    rows = re.findall(r"^  +(.*?)  +(\S+ ± \S+)$", printed, re.MULTILINE)
    like, more = "random words, as many of each text", "more than those"
    assert rows == [
        ("(a) Attention in the last layer", "0.500 ± 0.250"),
        (like, "0.250 ± 0.000"), (more, "0.250 ± 0.250"),
        ("(b) Gradient × input", "0.750 ± 0.250"),
        (like, "0.250 ± 0.250"), (more, "0.500 ± 0.500"),
        ("random words", "0.000 ± 0.000"),
    ]  # fmt: skip


def test_faithfulness_from_the_command_line(command, adapter, capsys):
    """Would catch: another number of examples, a model that is left out."""
    command("--adapter", adapter(), "--adapter", adapter(seed=1), "--faithfulness", 3)
    printed = capsys.readouterr().out
    assert printed.count("3 dev examples") == 2 and "5% of the words outside the answer" in printed
    assert len(re.findall(r"(Attention|Gradient|random|more).* -?\d\.\d{3} ± \d\.\d{3}", printed)) == 14


# ---- the page


class Page(html.parser.HTMLParser):
    """What a reader sees: the text of each strip, its words with their depth, and which are the answer."""

    def __init__(self, text):
        super().__init__()
        self.strips, self.words, self.tags, self.open = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.open.append((tag, attributes))
        if attributes.get("class") == "strip":
            self.strips.append("")
            self.words.append([])
        if "style" in attributes:
            depth = float(attributes["style"].removeprefix("--depth:"))
            self.words[-1].append(["", depth, attributes["class"] == "answer"])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, text):
        if any(attributes.get("class") == "strip" for _, attributes in self.open):
            self.strips[-1] += text
            if "style" in self.open[-1][1]:
                self.words[-1][-1][0] += text


def test_the_page(command, adapter, tmp_path, capsys):
    """Would catch: changed text, markup in it that runs, a scale for each model, a file from elsewhere."""
    path = tmp_path / "page.html"
    question, context = "Who did <b>Alice</b> praise & why?", CONTEXT + " <script>alert(1)</script>"
    both = ["--adapter", adapter(), "--adapter", adapter(seed=1)]
    command(*both, "--question", question, "--context", context, "--html", path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.strips == [question, context] * 4  # two measures, two models
    assert "script" not in page.tags and "link" not in page.tags and "http" not in text and "url(" not in text
    assert "&lt;</span>" in text and "&amp;</span>" in text
    assert (
        "not an attribution" in text
        and "This is an attribution" in text
        and text.count("the same scale") == 2
    )
    assert "user-select" not in text and "prefers-color-scheme: dark" in text
    for measure in (page.words[:4], page.words[4:]):
        depths = [depth for words in measure for _, depth, _ in words]
        assert max(depths) == 1 and min(depths) >= 0 and depths.count(1) == 1
        for of_text, strip in zip(measure, page.strips, strict=False):
            assert "".join(word for word, _, _ in of_text) == strip.replace(" ", "")
    answers = re.findall(r"answer: (.*) \(probability", capsys.readouterr().out)
    for i, answer in enumerate(answers):
        marked = [word for word, _, in_answer in page.words[2 * i + 1] if in_answer]
        assert "".join(marked).startswith(answer.replace(" ", "")), (answer, marked)


def test_text_that_was_not_read_is_grey(command, adapter, tmp_path, capsys):
    """Would catch: text outside the window, or cut off, that looks as if it was read and had no relation."""
    path, short = tmp_path / "page.html", adapter(max_len=24)
    command(
        "--adapter",
        short,
        "--adapter",
        adapter(),
        "--question",
        QUESTION,
        "--context",
        CONTEXT,
        "--html",
        path,
    )
    text = path.read_text(encoding="utf-8")
    assert Page(text).strips == [QUESTION, CONTEXT] * 4
    subject = visualise.load_subject(short)
    reading = visualise.read_squad(subject, QUESTION, CONTEXT)
    words = [word for word in reading.words if word.text == 1]
    outside = CONTEXT[: words[0].start], CONTEXT[words[-1].end :]
    grey = re.findall(r'<span class="unread">(.*?)</span>', text)
    assert grey == [part for part in outside if part.strip()] * 2 != []
    assert "Grey text was not read" in text and "white-space: pre-wrap" in text
    assert capsys.readouterr().out.count("not all was read") == 2
    command("--adapter", adapter("cola", max_len=8), "--text", CONTEXT, "--html", path)
    assert "Grey text was not read" in path.read_text(encoding="utf-8")
    command("--adapter", adapter(), "--question", QUESTION, "--context", CONTEXT, "--html", path)
    assert "Grey" not in path.read_text(encoding="utf-8")


def test_markup_in_a_path_and_in_an_answer_does_not_run(loaded):
    """Would catch: a name, a title or an answer that is not escaped; ", wrong" whatever the answer is."""
    subject = loaded()
    subject.name = "hut (<script>.pt)"
    reading = visualise.read_squad(subject, QUESTION, CONTEXT)._replace(answer="<script>x</script>")
    explanation = visualise.Explanation(subject, reading, visualise.relations(subject.model, reading))
    text = visualise.html_page("<script>", [explanation], ["<script>x</script>"])
    assert "script" not in Page(text).tags and text.count("&lt;script&gt;") > 4 and ", right" in text


def test_the_reddest_words_come_first(loaded, capsys):
    """Would catch: the palest ones, the numbers of other words, no scale where no word adds to the logit."""
    subject = loaded()
    reading = visualise.read_squad(subject, QUESTION, CONTEXT)
    words = reading.words
    values = [-float(i) for i in range(len(words))]
    explanation = visualise.Explanation(subject, reading, dict.fromkeys(visualise.MEASURES, values))
    visualise.print_all([explanation], [])
    assert "  Where -0.000, did -1.000, many -2.000" in capsys.readouterr().out
    assert visualise.deepest([explanation._replace(related={"gradient": [-2.0, 0.0]})], "gradient") == 1


def test_a_dev_question_and_a_glue_sentence(command, adapter, tmp_path, capsys):
    """Would catch: another example than the one named, a right answer that is taken for wrong."""
    asked = squad.load(MINI / "squad", splits=("dev",))["dev"][1]
    command("--adapter", adapter(), "--id", asked.id, "--html", tmp_path / "a.html")
    printed = capsys.readouterr().out
    assert f"right: {asked.answers[0][1]} / {asked.answers[1][1]}" in printed
    said = re.search(r"answer: (.*) \(probability \d\.\d{3}\), (right|wrong)", printed)
    assert (said[2] == "right") == (said[1] in [words for _, words in asked.answers])
    assert Page((tmp_path / "a.html").read_text(encoding="utf-8")).strips[:2] == [asked.text, asked.context]

    row = (MINI / "CoLA" / "dev.tsv").read_text(encoding="utf-8").splitlines()[2].split("\t")
    command("--adapter", adapter("cola"), "--id", 3, "--html", tmp_path / "b.html")
    assert f"right: {('unacceptable', 'acceptable')[int(row[1])]}" in capsys.readouterr().out
    assert Page((tmp_path / "b.html").read_text(encoding="utf-8")).strips == [row[3]] * 2
    command("--adapter", adapter("cola"), "--text", "The boys laughs.")
    assert re.search(r"answer: (un)?acceptable \(probability", capsys.readouterr().out)


def test_a_table_of_ones_own(command, adapter, tmp_path, capsys):
    """Would catch: an adapter that only GLUE's tasks have, classes by another's names, no way to its rows."""
    path, dev = adapter("own", text=["a", "b"], label="c", labels=["no", "so", "yes"]), tmp_path / "dev.csv"
    dev.write_text("c,a,b\nno,One boy laughs.,Two.\nso,Two boys laugh.,One.\n")
    command("--adapter", path, "--id", 2, "--dev-file", dev, "--html", tmp_path / "a.html")
    printed = capsys.readouterr().out
    assert "right: so\n" in printed and re.search(r"answer: (no|so|yes) \(probability", printed)
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.strips[:2] == ["Two boys laugh.", "One."]
    command("--adapter", path, "--faithfulness", 2, "--dev-file", dev)
    assert "2 dev examples" in capsys.readouterr().out
    assert "expected --dev-file, or two rows" in fails(capsys, command, "--adapter", path, "--id", 2)
    numbers = adapter("own", text=["a"], label="c", labels=[])
    command("--adapter", numbers, "--text", "Two boys laugh.")
    assert re.search(r"answer: -?\d+\.\d\d\n", capsys.readouterr().out)
    line = fails(capsys, command, "--adapter", numbers, "--faithfulness", 2, "--dev-file", dev)
    assert "--faithfulness: own predicts a score" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["squad"], "one of the arguments --question --text --id --faithfulness is required"),
        (["squad", "--question", "Who?"], "--question and --context go together"),
        (["squad", "--question", "Who?", "--context", " "], "argument --context: expected a text"),
        (["cola", "--text", ""], "argument --text: expected a text"),
        (["cola", "--text", "caf\udce9"], "not UTF-8"),
        (["squad", "--id", "x", "--html", "nowhere/x.html"], "'nowhere/x.html': expected the name of a file"),
        (["squad", "--id", "x", "--html", ""], "expected the name of a file"),
        (["squad", "--text", "The boys laugh."], "trained on squad: expected --question and --context"),
        (["cola", "--question", "Who?", "--context", "Me"], "trained on cola: expected --text"),
        (["cola", "--text", "One", "Two"], "trained on cola: expected --text and 1 text"),
        (
            ["squad", "--id", "none"],
            "--id none: not in the development set, whose ids are mini-dev-1, … mini-dev-400",
        ),
        (["squad", "--faithfulness", "0"], "--faithfulness: '0': expected a whole number"),
        (["squad", "--faithfulness", "2", "--html", "x.html"], "--faithfulness has no page"),
        (["squad", "--id", "x", "--data", "nowhere"], "nowhere/dev-v1.1.json: No such file"),
    ],
)
def test_bad_arguments_end_in_one_line(command, adapter, capsys, arguments, message):
    """Would catch: a traceback; a model of one task that reads the other's input."""
    assert message in fails(capsys, command, "--adapter", adapter(arguments[0]), *arguments[1:])


def test_adapters_that_do_not_go_together(command, adapter, tmp_path, capsys):
    """Would catch: two tasks on one page, a decoder's adapter read into an encoder."""
    both = ["--adapter", adapter(), "--adapter", adapter("cola"), "--id", 1]
    assert "one is of squad, the other of cola" in fails(capsys, command, *both)
    assert "3 given: expected one or two" in fails(capsys, command, *both, "--adapter", adapter())
    content = torch.load(adapter(), weights_only=True)
    torch.save(content | {"task": "e2e"}, tmp_path / "e2e.pt")
    assert "e2e.pt: made by train_e2e.py for e2e: expected an adapter of train_glue.py or" in fails(
        capsys, command, "--adapter", tmp_path / "e2e.pt", "--id", 1
    )
