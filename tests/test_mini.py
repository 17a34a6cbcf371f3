"""The bundled mini set: it has the official layouts, disjoint splits, and the files that make.py writes."""

import csv
import io
import random
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer

from data import e2e, squad
from data.mini import domains, grammar, make
from model import GPT2, RobertaClassifier, RobertaMaskedLM
from read.t5 import T5

MINI = make.HERE
SHOP = domains.OTHERS[-1]


def cola_rows(split):
    return [line.split("\t") for line in (MINI / "CoLA" / f"{split}.tsv").read_text().splitlines()]


def e2e_rows(name):
    return list(csv.reader(io.StringIO((MINI / "e2e" / name).read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def sample():
    """What the encoder was pretrained on."""
    return make.acceptable_sentences()


@pytest.fixture(scope="module")
def others():
    """What the decoder was pretrained on."""
    return make.other_examples()


# --- CoLA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("dev", 500)])
def test_cola_has_the_official_layout_and_is_balanced(split, count):
    rows = cola_rows(split)
    assert len(rows) == count
    assert {len(row) for row in rows} == {4}
    assert Counter((label, star) for _, label, star, _ in rows) == {
        ("1", ""): count // 2,
        ("0", "*"): count // 2,
    }
    per_phenomenon = Counter((source, label) for source, label, _, _ in rows)
    assert len(per_phenomenon) == 2 * len(grammar.PHENOMENA)
    assert set(per_phenomenon.values()) == {count // 2 // len(grammar.PHENOMENA)}


def test_cola_test_file_has_the_leaderboards_layout():
    header, *rows = cola_rows("test")
    assert header == ["index", "sentence"]
    assert [row[0] for row in rows] == [str(i) for i in range(200)]


def test_cola_splits_share_no_sentence():
    sentences = [row[3] for split in ("train", "dev") for row in cola_rows(split)]
    sentences += [row[1] for row in cola_rows("test")[1:]]
    assert len(set(sentences)) == len(sentences)


def test_unacceptable_sentences_are_minimal_changes_of_acceptable_ones():
    def words(sentence):
        return sentence[0].lower() + sentence[1:-1], sentence[-1]

    for split, pairs in make.cola_pairs().items():
        column = 1 if split == "test" else 3
        assert {row[column] for row in cola_rows(split)} - {"sentence"} == {
            s for pair in pairs for s in pair[1:]
        }
        for _, good, bad in pairs:
            (good, end), (bad, bad_end) = words(good), words(bad)
            good, bad = good.split(), bad.split()
            changed = sum(a != b for a, b in zip(good, bad, strict=True))
            moved = Counter(w.lower() for w in good) == Counter(w.lower() for w in bad)
            assert end == bad_end
            assert changed == 1 or (changed > 1 and moved), (good, bad)


def test_cola_files_are_what_the_script_makes():
    for name, text in make.cola_files().items():
        assert (MINI / "CoLA" / name).read_bytes() == text.encode()


# ---- the encoder


def test_the_encoder_saw_acceptable_sentences_only_and_none_of_the_splits(sample):
    assert len(set(sample)) == make.MLM_SENTENCES
    splits = {sentence for pairs in make.cola_pairs().values() for pair in pairs for sentence in pair[1:]}
    assert splits.isdisjoint(sample)


def test_the_grammar_does_not_call_a_sentence_good_and_bad(sample):
    rng, sample = random.Random(3), set(sample)
    for phenomenon in grammar.PHENOMENA:
        for _ in range(500):
            assert grammar.draw(rng, phenomenon)[1] not in sample


def test_the_tokenizer_is_what_the_script_makes(sample):
    saved = (MINI / "roberta" / "tokenizer.json").read_text(encoding="utf-8")
    assert make.roberta_tokenizer(sample).to_str(pretty=True) == saved


def test_the_encoder_has_a_real_checkpoints_layout_and_loads():
    directory = MINI / "roberta"
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 6e6
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.encode("A", "b").tokens == ["<s>", "A", "</s>", "</s>", "b", "</s>"]
    assert tokenizer.decode(tokenizer.encode("Olive ate a £20 café.").ids) == "Olive ate a £20 café."
    model = RobertaClassifier.from_pretrained(directory)
    assert model.config.vocab_size == tokenizer.get_vocab_size()
    assert (
        torch.load(directory / "pytorch_model.bin", weights_only=True)["lm_head.bias"].dtype == torch.float16
    )


@torch.no_grad()
def test_the_encoder_knows_the_grammar():
    """The right form of a masked verb is likelier, although a noun of the other number precedes it."""
    model = RobertaMaskedLM.from_pretrained(MINI / "roberta").eval()
    tokenizer = Tokenizer.from_file(str(MINI / "roberta" / "tokenizer.json"))
    for sentence, number in [
        ("The boys near this king<mask> asleep.", True),
        ("A boy near two kings<mask> asleep.", False),
    ]:
        encoding = tokenizer.encode(sentence)
        logits = model(torch.tensor([encoding.ids]))[0, encoding.tokens.index("<mask>")]
        singular, plural = (logits[tokenizer.token_to_id(f"Ġ{word}")] for word in ("is", "are"))
        assert (plural > singular) == number


# --- E2E ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("trainset.csv", 500), ("devset.csv", 60), ("testset_w_refs.csv", 60)]
)
def test_e2e_has_the_official_layout(name, count):
    header, *rows = e2e_rows(name)
    assert header == ["mr", "ref"]
    references = Counter(mr for mr, _ in rows)
    assert len(references) == count
    assert all(3 <= n <= 8 for n in references.values())
    assert len({tuple(row) for row in rows}) == len(rows)
    for mr, ref in rows:
        slots = dict(part.removesuffix("]").split("[") for part in mr.split(", "))
        assert set(slots) <= set(domains.RESTAURANT.slots)
        assert slots["name"].lower() in ref.lower()
        assert "{" not in ref and ref[0].isupper() and ref.endswith(".")


def test_e2e_files_share_no_representation():
    files = [{mr for mr, _ in e2e_rows(name)[1:]} for name in make.E2E_FILES]
    assert len(set().union(*files)) == sum(map(len, files))


def test_e2e_files_are_what_the_script_makes():
    for name, text in make.e2e_files().items():
        assert (MINI / "e2e" / name).read_bytes() == text.encode()


def test_a_representation_is_written_in_both_forms():
    facts = {"name": "The Mill", "eatType": "pub", "priceRange": "£20-25", "familyFriendly": "yes"}
    assert domains.bracketed(facts) == "name[The Mill], eatType[pub], priceRange[£20-25], familyFriendly[yes]"
    assert (
        domains.linearised(facts)
        == "name : The Mill | Type : pub | price : £ 20 - 25 | family friendly : yes"
    )
    assert domains.linearised(facts) == e2e.linearise(domains.bracketed(facts))


# ---- the decoder


def test_the_decoder_saw_no_restaurant_and_no_sentence_of_the_splits(others):
    kinds = {kind for row in domains.RESTAURANT.slots["eatType"] for kind in row.values}
    slots = {e2e.RENAMED.get(slot, slot) for slot in domains.RESTAURANT.slots}
    sentences = {ref for name in make.E2E_FILES for _, ref in e2e_rows(name)[1:]}
    assert len(set(others)) == make.LM_EXAMPLES
    for context, text in others:
        facts = dict(part.split(" : ") for part in context.split(" | "))
        assert not set(facts) <= slots and kinds.isdisjoint(facts.values()), context
        assert text not in sentences


def test_coined_words_are_said_as_they_stand():
    rng = random.Random(4)
    known = {value for rows in SHOP.slots.values() for row in rows for value in row.values}
    coined = 0
    for _ in range(500):
        facts = domains.represent(rng, SHOP, coined=0.5)
        for value in {facts.get("trade"), facts.get("goods")} - known - {None}:
            coined += 1
            assert value in domains.describe(rng, SHOP, facts)
        assert {facts.get(slot) for slot in ("prices", "open", "service")} <= known | {
            None
        }  # said in other words
    assert coined > 100


def test_the_decoders_tokenizer_is_what_the_script_makes(others):
    saved = (MINI / "gpt2" / "tokenizer.json").read_text(encoding="utf-8")
    assert make.gpt2_tokenizer(others).to_str(pretty=True) == saved


def test_the_decoder_has_a_real_checkpoints_layout_and_loads():
    directory = MINI / "gpt2"
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 6e6
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = GPT2.from_pretrained(directory)
    assert model.config.vocab_size == tokenizer.get_vocab_size()
    assert model.config.eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode(" Olive ate a £20 café.").ids) == " Olive ate a £20 café."
    weights = torch.load(directory / "pytorch_model.bin", weights_only=True)
    assert weights["transformer.wte.weight"].dtype == torch.float16


def test_the_decoder_describes_what_it_was_pretrained_on():
    model = GPT2.from_pretrained(MINI / "gpt2")
    tokenizer = Tokenizer.from_file(str(MINI / "gpt2" / "tokenizer.json"))
    context = "name : The Golden Otter | Type : museum | theme : Roman | entry : £ 5"
    prompt = [*tokenizer.encode(context).ids, model.config.eos_token_id]
    said = tokenizer.decode(model.generate([prompt], 64, beam_size=4)[0])
    assert all(word in said for word in ("The Golden Otter", "museum", "Roman", "£5")), said


# ---- the encoder-decoder


def test_the_encoder_decoders_tokenizer_is_what_the_script_makes(sample):
    saved = (MINI / "t5" / "tokenizer.json").read_text(encoding="utf-8")
    assert make.t5_tokenizer(sample).to_str(pretty=True) == saved


def test_a_hole_and_what_was_in_it_make_the_sentence_again():
    """And every token but the end token can be in one."""
    tokens, rng, seen = [*range(10, 15), 1], random.Random(0), set()
    for _ in range(200):
        source, target = make.holed(tokens, 3, rng)
        at = source.index(3)
        assert source[:at] + target[1:-1] + source[at + 1 :] == tokens
        assert target[0] == 3 and target[-1] == 1
        seen |= {*target[1:-1]}
    assert seen == {*tokens[:-1]}


def test_the_encoder_decoder_has_a_real_checkpoints_layout_and_loads():
    directory = MINI / "t5"
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 6e6
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    encoded = tokenizer.encode("cola sentence: Olive doesn't sleep.")
    assert encoded.tokens[:3] == ["▁cola", "▁sentence", ":"] and encoded.tokens[-1] == "</s>"
    assert tokenizer.decode(encoded.ids) == "cola sentence: Olive doesn't sleep."
    assert [len(tokenizer.encode(label).ids) for label in ("acceptable", "unacceptable")] == [2, 2]
    model = T5.from_pretrained(directory)
    assert model.config.vocab_size == tokenizer.get_vocab_size()
    assert (
        torch.load(directory / "pytorch_model.bin", weights_only=True)["shared.weight"].dtype == torch.float16
    )


@torch.no_grad()
def test_the_encoder_decoder_knows_the_grammar():
    """What fills the hole is the right form of the verb, with a noun of the other number between."""
    model = T5.from_pretrained(MINI / "t5")
    tokenizer = Tokenizer.from_file(str(MINI / "t5" / "tokenizer.json"))
    hole = tokenizer.token_to_id(make.HOLE)
    for sentence, number in [
        ("The boys near this king <extra_id_0> asleep.", True),
        ("A boy near two kings <extra_id_0> asleep.", False),
    ]:
        source = torch.tensor([tokenizer.encode(sentence).ids])
        logits = model(source, None, torch.tensor([[model.config.decoder_start_token_id, hole]]))[0, -1]
        singular, plural = (logits[tokenizer.token_to_id(f"▁{word}")] for word in ("is", "are"))
        assert (plural > singular) == number


# --- SQuAD ----------------------------------------------------------------------------------------------


def test_squad_files_are_what_the_script_makes():
    for name, text in make.squad_files().items():
        assert (MINI / "squad" / name).read_bytes() == text.encode()


def test_squad_has_the_official_layout_and_its_splits_share_no_text():
    """Reading checks that every answer stands where it is said to."""
    splits = squad.load(MINI / "squad")
    assert {split: len(questions) for split, questions in splits.items()} == {"train": 2000, "dev": 400}
    assert not {q.context for q in splits["train"]} & {q.context for q in splits["dev"]}
    assert {len(q.answers) for q in splits["train"]} == {1}
    assert {len(q.answers) for q in splits["dev"]} == {1, 2}
    asked = Counter(q.text.split()[0] for q in splits["dev"])
    assert set(asked) == {"Where", "Who", "What"} and min(asked.values()) > 50


def test_squad_questions_have_one_answer_and_fit_the_encoder():
    """Would catch: a verb or noun that occurs twice in a text, which would allow two answers; rare words."""
    questions = squad.load(MINI / "squad", splits=("dev",))["dev"]
    for context in {q.context for q in questions}:
        first, second = (sentence.split() for sentence in context.rstrip(".").split(". "))
        common = {word.lower() for word in first} & {word.lower() for word in second}
        determiners = {*grammar.SINGULAR_DETERMINERS, *grammar.PLURAL_DETERMINERS, "an"}
        assert common <= {"in", *determiners, *grammar.ADJECTIVES, *grammar.THING_ADJECTIVES}, context
    tokenizer = Tokenizer.from_file(str(MINI / "roberta" / "tokenizer.json"))
    windows = squad.encode(tokenizer, questions, 128, 32)
    assert len(windows) == len(questions) and squad.unreachable(questions, windows) == 0
