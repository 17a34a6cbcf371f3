"""Makes the bundled mini set: `python -m data.mini.make [PART …] [--out DIR]`, all parts by default.

CoLA       acceptability judgements in the official layout, from `grammar.py`
roberta    an encoder pretrained by masked language modelling on acceptable sentences
squad      questions about two sentences of the grammar each, in the layout of SQuAD v1.1
e2e        descriptions of restaurants in the official layout, from `domains.py`
gpt2       a decoder pretrained on descriptions from the other tables of `domains.py`
t5         an encoder-decoder pretrained by span corruption on the encoder's sentences
t5-larger  the same with 6 + 6 blocks × 384, if asked for: two hours

Texts and tokenizers are the same, byte for byte, on every run and machine. Weights are the same on one
machine with one version of torch. Elsewhere they differ a little, because sums are rounded in another order.
"""

import argparse
import csv
import io
import itertools
import json
import random
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from data.batching import pad, shuffled_batches
from data.e2e import Example, encode
from data.glue import source_text, target_text
from data.mini import domains, grammar
from model import GPT2, GPT2Config, RobertaConfig, RobertaMaskedLM
from read.t5 import T5, T5Config

HERE = Path(__file__).parent

# ---- CoLA

COLA_PAIRS = {"train": 1000, "dev": 250, "test": 100}  # two sentences each


def cola_pairs():
    """{split: [(phenomenon, acceptable, unacceptable)]}. No sentence occurs twice.

    Because pairs stay together, each split is balanced, and no sentence of dev has its counterpart in train.
    """
    rng, seen, pairs = random.Random(0), set(), {}
    for split, count in COLA_PAIRS.items():
        pairs[split], phenomena = [], itertools.cycle(grammar.PHENOMENA)
        for phenomenon in itertools.islice(phenomena, count):
            while not seen.isdisjoint(pair := grammar.draw(rng, phenomenon)):
                pass
            seen.update(pair)
            pairs[split].append((phenomenon, *pair))
    return pairs


def cola_files():
    """{file name: text}: source, label, star, sentence; test without labels."""
    files = {}
    for split, pairs in cola_pairs().items():
        rows = [(name, 1, "", good) for name, good, _ in pairs]
        rows += [(name, 0, "*", bad) for name, _, bad in pairs]
        random.Random(0).shuffle(rows)
        if split == "test":
            rows = [("index", "sentence"), *((index, row[3]) for index, row in enumerate(rows))]
        files[f"{split}.tsv"] = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    return files


# ---- the encoder

MLM_SENTENCES = 100_000
PAD = 1


def acceptable_sentences():
    """Different acceptable sentences, none of which occurs in CoLA."""
    seen = {sentence for pairs in cola_pairs().values() for pair in pairs for sentence in pair[1:]}
    rng, sentences = random.Random(1), []
    while len(sentences) < MLM_SENTENCES:
        sentence, _ = grammar.draw(rng, rng.choice(list(grammar.PHENOMENA)))
        if sentence not in seen:
            seen.add(sentence)
            sentences.append(sentence)
    return sentences


def byte_level_bpe(texts, vocab_size, special_tokens):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"vocab_size": vocab_size, "special_tokens": special_tokens, "show_progress": False}
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def roberta_tokenizer(sentences):
    """Texts become <s> A </s>, pairs <s> A </s></s> B </s>. The special ids are RoBERTa's."""
    tokenizer = byte_level_bpe(sentences, 1199, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def masked(ids, vocab_size, mask_id, rng):
    """BERT's corruption of token ids (B, L), and which tokens to predict, (B, L) bool: 15 %.

    80 % of these become <mask>, 10 % a random token, and 10 % stay.
    """
    chosen = (torch.rand(ids.shape, generator=rng) < 0.15) & (ids > 3)
    how = torch.rand(ids.shape, generator=rng)
    corrupted = torch.where(chosen & (how < 0.8), mask_id, ids)
    swapped = torch.randint(4, vocab_size, ids.shape, generator=rng)
    return torch.where(chosen & (how >= 0.9), swapped, corrupted), chosen


def pretrain(model, sequences, steps, batch_size, lr, loss_of, relative=False):
    """Trains `model` on token lists; loss_of(ids (B, L), mask (B, L) or None) is the loss of a batch.

    If `relative`, each tensor's learning rate is `lr` times its root mean square at the start.
    """
    params = list(model.parameters())
    if relative:
        params = [{"params": [p], "lr": lr * p.detach().square().mean().sqrt().item()} for p in params]
    optimizer = torch.optim.AdamW(params, lr, betas=(0.9, 0.98), weight_decay=0.01)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, steps, pct_start=0.06, anneal_strategy="linear", cycle_momentum=False
    )
    lengths = [len(sequence) for sequence in sequences]
    epochs = (shuffled_batches(lengths, batch_size, [0, epoch]) for epoch in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
    bar = tqdm(batches, total=steps, unit="step", mininterval=1)
    model.train()
    for batch in bar:
        loss = loss_of(*pad([sequences[i] for i in batch], PAD))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


def make_roberta():
    torch.manual_seed(0)
    sentences = acceptable_sentences()
    tokenizer = roberta_tokenizer(sentences)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    config = RobertaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=130, **sizes)
    model = RobertaMaskedLM(config)
    rng = torch.Generator().manual_seed(0)

    def loss_of(ids, mask):
        corrupted, chosen = masked(ids, config.vocab_size, tokenizer.token_to_id("<mask>"), rng)
        return F.cross_entropy(model(corrupted, mask, where=chosen), ids[chosen])

    sequences = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    pretrain(model, sequences, steps=3000, batch_size=128, lr=2e-3, loss_of=loss_of)
    return model, tokenizer


# ---- SQuAD

SQUAD_ARTICLES = {"train": 50, "dev": 10}


def squad_paragraph(rng, most):
    """A text of two sentences, and [(question, `most` answers)]: unambiguous, as no form occurs twice."""
    text, questions, nouns = "", [], []
    for verb in rng.sample(grammar.WITH_PERSON + grammar.WITH_THING, 2):
        what = grammar.who_or_what(verb)
        while True:
            subject = grammar.person(rng)
            object_ = grammar.person(rng) if what == "who" else grammar.thing(rng)
            place = ["the", rng.choice(grammar.PLACES)]
            heads = [*nouns, subject[-1], object_[-1], place[-1]]
            if len({*heads}) == len(heads):
                break
        nouns = heads
        done = [*subject, grammar.form(verb, "past")]
        object_at = len(text) + len(" ".join(done)) + 1
        in_place_at = object_at + len(" ".join(object_)) + 1
        text += grammar.spell([*done, *object_, "in", *place]) + " "
        if rng.random() < 0.5:
            question, answers = [what, "did", *subject, verb, "?"], [(object_at, object_)]
        else:  # annotators may include "in" or not
            question = ["where", "did", *subject, verb, *object_, "?"]
            answers = [(in_place_at + len("in "), place), (in_place_at, ["in", *place])]
        answers = [{"answer_start": at, "text": " ".join(words)} for at, words in answers[:most]]
        questions.append((grammar.spell(question), answers))
    return text.strip(), questions


def squad_files():
    """{file name: text}. No text occurs twice; training questions have one answer."""
    rng, seen, files = random.Random(5), set(), {}
    for split, count in SQUAD_ARTICLES.items():
        articles, ids = [], itertools.count(1)
        for number in range(1, count + 1):
            paragraphs = []
            while len(paragraphs) < 20:
                text, questions = squad_paragraph(rng, most=1 if split == "train" else 2)
                if text in seen:
                    continue
                seen.add(text)
                paragraphs.append({"context": text, "qas": []})
                for question, answers in questions:
                    entry = {"id": f"mini-{split}-{next(ids)}", "question": question, "answers": answers}
                    paragraphs[-1]["qas"].append(entry)
            articles.append({"title": f"mini_{split}_{number}", "paragraphs": paragraphs})
        rows = ",\n".join(json.dumps(article) for article in articles)  # an article a line
        files[f"{split}-v1.1.json"] = f'{{"version": "1.1", "data": [\n{rows}\n]}}\n'
    return files


# ---- E2E

E2E_FILES = {  # the number of representations, and the possible numbers of references
    "trainset.csv": (500, [4]),
    "devset.csv": (60, range(3, 9)),
    "testset_w_refs.csv": (60, range(3, 9)),
}


def e2e_files():
    """{file name: text}. No representation occurs twice."""
    rng, seen, files = random.Random(2), set(), {}
    for name, (count, references) in E2E_FILES.items():
        rows = {}
        while len(rows) < count:
            facts = domains.represent(rng, domains.RESTAURANT)
            if (representation := domains.bracketed(facts)) in seen:
                continue
            seen.add(representation)
            wanted, found = rng.choice(references), {}  # a dict, because a set does not keep the order
            for _ in range(50):
                if len(found) < wanted:
                    found[domains.describe(rng, domains.RESTAURANT, facts)] = None
            if len(found) == wanted:
                rows[representation] = found
        text = io.StringIO()
        pairs = [(representation, ref) for representation, refs in rows.items() for ref in refs]
        csv.writer(text, lineterminator="\n").writerows([("mr", "ref"), *pairs])
        files[name] = text.getvalue()
    return files


# ---- the decoder

LM_EXAMPLES = 96_000
END = "<|endoftext|>"


def other_examples():
    """Different examples of OTHERS. Coined words teach the decoder to copy what it has never seen."""
    rng, examples = random.Random(3), {}  # a dict, because a set does not keep the order
    while len(examples) < LM_EXAMPLES:
        domain = rng.choice(domains.OTHERS)
        facts = domains.represent(rng, domain, coined=0.3)
        examples[Example(domains.linearised(facts), domains.describe(rng, domain, facts))] = None
    return list(examples)


def gpt2_tokenizer(examples):
    """Bytes also cover the words of restaurants. <|endoftext|> is 0."""
    return byte_level_bpe((f"{context}{END} {text}" for context, text in examples), 1200, [END])


def make_gpt2():
    torch.manual_seed(0)
    examples = other_examples()
    tokenizer = gpt2_tokenizer(examples)
    end = tokenizer.token_to_id(END)
    sizes = {"n_positions": 256, "n_embd": 144, "n_layer": 4, "n_head": 4}
    config = GPT2Config(tokenizer.get_vocab_size(), bos_token_id=end, eos_token_id=end, **sizes)
    config.embd_pdrop = config.attn_pdrop = config.resid_pdrop = 0.0
    model = GPT2(config)

    def loss_of(ids, mask):
        """On sentences and end tokens only, because the names in a context can't be predicted."""
        where = ((ids == end).cumsum(1) > 0)[:, :-1] & (mask is None or mask[:, 1:])
        return F.cross_entropy(model(ids[:, :-1], where=where), ids[:, 1:][where])

    pairs = encode(tokenizer, examples, end, config.n_positions)
    sequences = [prompt + completion for prompt, completion in pairs]
    pretrain(model, sequences, steps=3000, batch_size=32, lr=3e-3, loss_of=loss_of)
    return model, tokenizer


# ---- the encoder-decoder

HOLE = "<extra_id_0>"  # the first of T5's sentinels; these short sentences have one hole


def t5_tokenizer(sentences):
    """Texts become A </s>. The vocabulary also has the words of CoLA's prefix and labels."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    spaces = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), spaces])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<pad>", "</s>", "<unk>", HOLE],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    labels = [source_text("cola", ("",)), *(target_text("cola", label) for label in (0, 1))]
    tokenizer.train_from_iterator(itertools.chain(sentences, labels * 1000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def holed(tokens, hole, rng):
    """T5's span corruption: 1 to 3 tokens are removed.

    -> (the sentence with `hole` in their place; `hole`, these tokens and the end token)
    """
    width = rng.choice([1, 1, 2, 3])
    stop = (start := rng.randrange(len(tokens) - width)) + width
    return [*tokens[:start], hole, *tokens[stop:]], [hole, *tokens[start:stop], tokens[-1]]


def make_t5(width=128, blocks=4, steps=6000, dtype=torch.float32):
    """Trains with relative rates, like those of Adafactor (Shazeer & Stern, 2018, section 8), T5's optimiser.

    The sizes of T5's tensors differ 60-fold. With one rate for all, the queries, whose scores are not scaled
    by 1 / sqrt(d), grow until attention sees one token, before the word embeddings have changed noticeably.
    """
    torch.manual_seed(0)
    sentences = acceptable_sentences()
    tokenizer = t5_tokenizer(sentences)
    sizes = {"d_model": width, "d_kv": 32, "d_ff": 4 * width, "num_layers": blocks, "num_heads": width // 32}
    config = T5Config(tokenizer.get_vocab_size(), dropout_rate=0.0, **sizes)
    model = T5(config)
    hole, rng = tokenizer.token_to_id(HOLE), random.Random(0)

    def loss_of(ids, mask):
        """Not on the hole, because every target starts with it."""
        rows = ids if mask is None else map(torch.masked_select, ids, mask)
        holes = [holed(row.tolist(), hole, rng) for row in rows]
        (source, seen), (target, _) = (pad(side, config.pad_token_id) for side in zip(*holes, strict=True))
        asked = (target != config.pad_token_id) & (target != hole)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(source, seen, model.shifted(target))[asked]
        return F.cross_entropy(logits.float(), target[asked])

    sequences = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    pretrain(model, sequences, steps, batch_size=64, lr=1e-2, loss_of=loss_of, relative=True)
    return model, tokenizer


PARTS = {  # {folder: what makes it}: {file name: text}, or a model and its tokenizer
    "CoLA": cola_files,
    "roberta": make_roberta,
    "squad": squad_files,
    "e2e": e2e_files,
    "gpt2": make_gpt2,
    "t5": make_t5,
}
LARGER = {"t5-larger": partial(make_t5, 384, 6, 1500, torch.bfloat16)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*PARTS, *LARGER, []]
    parser.add_argument("parts", nargs="*", metavar="PART", choices=names, help="default: all bundled ones")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder to write to (default: data/mini)")
    args = parser.parse_args()
    for part in args.parts or PARTS:
        start, folder = time.time(), args.out / part
        torch.set_num_threads(2 if part == "roberta" else 1)  # they decide how sums are rounded
        print(f"{part}: …", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        made = (PARTS | LARGER)[part]()
        if isinstance(made, dict):
            for name, text in made.items():
                (folder / name).write_text(text, encoding="utf-8", newline="")
        else:
            model, tokenizer = made
            model.save_pretrained(folder, dtype=torch.float16)
            tokenizer.save(str(folder / "tokenizer.json"))
        print(f"{part}: {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
