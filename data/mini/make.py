"""Makes the bundled mini set: `python -m data.mini.make [cola] [roberta] [squad] [e2e] [gpt2] [--out DIR]`, all by default.

| part    | writes     | what it is                                                                                 |
|---------|------------|--------------------------------------------------------------------------------------------|
| cola    | `CoLA/`    | acceptability judgements in the official layout, from the grammar in `grammar.py`          |
| roberta | `roberta/` | an encoder pretrained by masked language modelling on acceptable sentences of that grammar |
| squad   | `squad/`   | questions on two sentences of that grammar each, in the layout of SQuAD v1.1               |
| e2e     | `e2e/`     | descriptions of restaurants in the official layout, from the tables in `domains.py`        |
| gpt2    | `gpt2/`    | a decoder pretrained on descriptions of all else in these tables, and of no restaurant     |

Every text and tokenizer comes out byte for byte the same on every run and machine. The weights do on one machine with
one version of torch; elsewhere sums are rounded in another order, and the weights differ a little.
"""

import argparse
import csv
import io
import itertools
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from data.batching import pad, shuffled_batches
from data.e2e import Example, encode
from data.mini import domains, grammar
from model import GPT2, GPT2Config, RobertaConfig, RobertaMaskedLM

HERE = Path(__file__).parent
THREADS = {"roberta": 2, "gpt2": 1}  # fixed, since their number decides how sums are rounded

# --- CoLA: acceptable or not -----------------------------------------------------------------------------------------

COLA_PAIRS = {"train": 1000, "dev": 250, "test": 100}  # two sentences each


def cola_pairs(seed=0):
    """{split: [(phenomenon, acceptable, unacceptable)]}; no sentence occurs twice, in one split or across them.

    Both sentences of a pair are in the same split: the classes are balanced in each, and a spoilt sentence of dev never
    has its twin in train.
    """
    rng, seen, pairs = random.Random(seed), set(), {}
    for split, count in COLA_PAIRS.items():
        pairs[split] = []
        while len(pairs[split]) < count:
            phenomenon = list(grammar.PHENOMENA)[len(pairs[split]) % len(grammar.PHENOMENA)]
            pair = grammar.draw(rng, phenomenon)
            if seen.isdisjoint(pair):
                seen.update(pair)
                pairs[split].append((phenomenon, *pair))
    return pairs


def cola_files(seed=0):
    """{file name: text} in the official layout: source, label, star, sentence; test without labels."""
    files = {}
    for split, pairs in cola_pairs(seed).items():
        rows = [(name, 1, "", good) for name, good, _ in pairs] + [(name, 0, "*", bad) for name, _, bad in pairs]
        random.Random(seed).shuffle(rows)
        if split == "test":
            rows = [("index", "sentence"), *((index, row[3]) for index, row in enumerate(rows))]
        files[f"{split}.tsv"] = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    return files


def make_cola(out):
    for name, text in cola_files().items():
        write(out / "CoLA" / name, text)


# --- the encoder -----------------------------------------------------------------------------------------------------

MLM_SENTENCES = 100_000
MLM_STEPS, MLM_BATCH, MLM_LR = 3000, 128, 2e-3
PAD = 1


def acceptable_sentences(count, seed=1):
    """`count` different acceptable sentences, none of which occurs in CoLA's train, dev or test."""
    splits = cola_pairs().values()
    spoilt = {bad for split in splits for _, _, bad in split}
    seen = {good for split in splits for _, good, _ in split}
    rng, sentences = random.Random(seed), []
    while len(sentences) < count:
        sentence, _ = grammar.draw(rng, rng.choice(list(grammar.PHENOMENA)))
        if sentence in spoilt:
            raise RuntimeError(f"the grammar calls this sentence both good and bad: {sentence}")
        if sentence not in seen:
            seen.add(sentence)
            sentences.append(sentence)
    return sentences


def byte_level_bpe(texts, vocab_size, special_tokens):
    """A tokenizer of the kind that RoBERTa and GPT-2 have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def roberta_tokenizer(sentences):
    """<s> A </s>, and <s> A </s></s> B </s> for a pair; ids as in the published checkpoints, <mask> last."""
    tokenizer = byte_level_bpe(sentences, 1199, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def masked(ids, vocab_size, mask_id, rng):
    """BERT's corruption of (B, L) token ids: 15 % of the words are to be predicted, of which 80 % read <mask>, 10 % a
    random token, and 10 % stay: so a state has to tell, at every place, whether the word there fits.
    """
    chosen = (torch.rand(ids.shape, generator=rng) < 0.15) & (ids > 3)
    how = torch.rand(ids.shape, generator=rng)
    corrupted = torch.where(chosen & (how < 0.8), mask_id, ids)
    swapped = torch.randint(4, vocab_size, ids.shape, generator=rng)
    return torch.where(chosen & (how >= 0.9), swapped, corrupted), chosen


def pretrain(model, sequences, steps, batch_size, lr, loss_of):
    """Trains all of `model` on token lists; loss_of(ids (B, L), mask (B, L) or None) is the loss of a batch."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, pct_start=0.06, anneal_strategy="linear", cycle_momentum=False
    )
    lengths = [len(sequence) for sequence in sequences]
    endless = (batch for epoch in itertools.count() for batch in shuffled_batches(lengths, batch_size, [0, epoch]))
    bar = tqdm(itertools.islice(endless, steps), total=steps, unit="step", mininterval=1)
    model.train()
    for batch in bar:
        loss = loss_of(*pad([sequences[i] for i in batch], PAD))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


def make_roberta(out):
    torch.manual_seed(0)
    sentences = acceptable_sentences(MLM_SENTENCES)
    tokenizer = roberta_tokenizer(sentences)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
    )
    model = RobertaMaskedLM(config)
    rng = torch.Generator().manual_seed(0)

    def loss_of(ids, mask):
        corrupted, chosen = masked(ids, config.vocab_size, tokenizer.token_to_id("<mask>"), rng)
        return F.cross_entropy(model(corrupted, mask, where=chosen), ids[chosen])

    sequences = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    pretrain(model, sequences, MLM_STEPS, MLM_BATCH, MLM_LR, loss_of)
    model.save_pretrained(out / "roberta", dtype=torch.float16)
    tokenizer.save(str(out / "roberta" / "tokenizer.json"))


# --- SQuAD: questions, and where their answers stand -----------------------------------------------------------------

SQUAD_ARTICLES = {"train": 50, "dev": 10}
SQUAD_PARAGRAPHS = 20  # an article; of two sentences each, with a question on either


def squad_paragraph(rng):
    """A text, and [(question, [(start, answer), …])]. No verb and no noun occurs twice: each question has one answer."""
    text, questions, nouns = "", [], []
    for verb in rng.sample(grammar.WITH_PERSON + grammar.WITH_THING, 2):
        what = "who" if verb in grammar.WITH_PERSON else "what"
        while True:
            subject = grammar.person(rng)
            object_ = grammar.person(rng) if what == "who" else grammar.thing(rng)
            place = ["the", rng.choice(grammar.PLACES)]
            heads = [subject[-1], object_[-1], place[-1]]
            if len({*nouns, *heads}) == len(nouns) + len(heads):
                break
        nouns += heads
        done = [*subject, grammar.form(verb, "past")]
        object_at = len(text) + len(" ".join(done)) + 1
        in_place_at = object_at + len(" ".join(object_)) + 1
        text += grammar.spell([*done, *object_, "in", *place]) + " "
        if rng.random() < 0.5:
            question, answers = [what, "did", *subject, verb, "?"], [(object_at, object_)]
        else:  # with or without "in": both are right, as annotators differ
            question = ["where", "did", *subject, verb, *object_, "?"]
            answers = [(in_place_at + len("in "), place), (in_place_at, ["in", *place])]
        questions.append((grammar.spell(question), [(at, " ".join(words)) for at, words in answers]))
    return text.strip(), questions


def squad_files(seed=5):
    """{file name: text} in the official layout; no text is in both. A training question has one answer, as there."""
    rng, seen, files = random.Random(seed), set(), {}
    for split, count in SQUAD_ARTICLES.items():
        articles, ids = [], itertools.count(1)
        for number in range(1, count + 1):
            paragraphs = []
            while len(paragraphs) < SQUAD_PARAGRAPHS:
                text, questions = squad_paragraph(rng)
                if text in seen:
                    continue
                seen.add(text)
                entries = []
                for question, answers in questions:
                    kept = answers[:1] if split == "train" else answers
                    entry = {"id": f"mini-{split}-{next(ids)}", "question": question}
                    entries.append(entry | {"answers": [{"answer_start": at, "text": words} for at, words in kept]})
                paragraphs.append({"context": text, "qas": entries})
            articles.append({"title": f"mini_{split}_{number}", "paragraphs": paragraphs})
        rows = ",\n".join(json.dumps(article) for article in articles)  # an article a line
        files[f"{split}-v1.1.json"] = f'{{"version": "1.1", "data": [\n{rows}\n]}}\n'
    return files


def make_squad(out):
    for name, text in squad_files().items():
        write(out / "squad" / name, text)


# --- E2E: restaurants ------------------------------------------------------------------------------------------------

E2E_FILES = {  # representations, and how many references each has
    "trainset.csv": (500, [4]),
    "devset.csv": (60, [3, 4, 5, 6, 7, 8]),
    "testset_w_refs.csv": (60, [3, 4, 5, 6, 7, 8]),
}


def e2e_files(seed=2):
    """{file name: text} in the official layout, columns mr and ref; no representation is in two files."""
    rng, seen, files = random.Random(seed), set(), {}
    for name, (count, references) in E2E_FILES.items():
        rows = {}
        while len(rows) < count:
            facts = domains.represent(rng, domains.RESTAURANT)
            representation = domains.bracketed(facts)
            if representation in seen:
                continue
            seen.add(representation)
            wanted, found = rng.choice(references), {}  # a dict keeps the order, a set would not
            for _ in range(50):
                if len(found) < wanted:
                    found[domains.describe(rng, domains.RESTAURANT, facts)] = None
            if len(found) == wanted:
                rows[representation] = found
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [("mr", "ref"), *((representation, ref) for representation, refs in rows.items() for ref in refs)]
        )
        files[name] = text.getvalue()
    return files


def make_e2e(out):
    for name, text in e2e_files().items():
        write(out / "e2e" / name, text)


# --- the decoder -----------------------------------------------------------------------------------------------------

LM_EXAMPLES = 96_000
LM_COINED = 0.3
LM_STEPS, LM_BATCH, LM_LR = 3000, 32, 3e-3
END = "<|endoftext|>"


def other_examples(count, seed=3):
    """`count` different examples about anything but restaurants, in the form of the E2E files.

    Some values are coined words: so the decoder learns to say a word that it reads for the first time, as one that has
    read widely can.
    """
    rng, examples = random.Random(seed), {}  # a dict keeps the order, a set would not
    while len(examples) < count:
        domain = rng.choice(list(domains.OTHERS.values()))
        facts = domains.represent(rng, domain, coined=LM_COINED)
        examples[Example(domains.linearised(facts), domains.describe(rng, domain, facts))] = None
    return list(examples)


def gpt2_tokenizer(examples):
    """Byte-level, so that it can write restaurants, whose words it was not trained on, too; <|endoftext|> is 0."""
    return byte_level_bpe((f"{context}{END} {text}" for context, text in examples), 1200, [END])


def make_gpt2(out):
    torch.manual_seed(0)
    examples = other_examples(LM_EXAMPLES)
    tokenizer = gpt2_tokenizer(examples)
    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=256,
        n_embd=144,
        n_layer=4,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = GPT2(config)

    def loss_of(ids, mask):
        """Of the sentences and their end token alone: the names in a context can't be foretold."""
        kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        where = ((ids == end).cumsum(1) > 0)[:, :-1] & kept[:, 1:]
        return F.cross_entropy(model(ids[:, :-1], where=where), ids[:, 1:][where])

    sequences = [prompt + completion for prompt, completion in encode(tokenizer, examples, end, config.n_positions)]
    pretrain(model, sequences, LM_STEPS, LM_BATCH, LM_LR, loss_of)
    model.save_pretrained(out / "gpt2", dtype=torch.float16)
    tokenizer.save(str(out / "gpt2" / "tokenizer.json"))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


PARTS = {"cola": make_cola, "roberta": make_roberta, "squad": make_squad, "e2e": make_e2e, "gpt2": make_gpt2}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help="what to make (default: everything)")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write it (default: data/mini)")
    args = parser.parse_args()
    for part in args.parts or PARTS:
        start = time.time()
        torch.set_num_threads(THREADS.get(part, 1))
        print(f"{part}: …", flush=True)
        PARTS[part](args.out)
        print(f"{part}: {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
