"""Reads the files of the E2E NLG Challenge (Novikova et al., 2017) and encodes their examples."""

import csv
import io
import re
from typing import NamedTuple

from data import UserError, read_text
from data.download import load_splits


class Example(NamedTuple):
    """A meaning representation in linearised form, and a text that expresses it."""

    context: str
    reference: str


OFFICIAL = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
LINEARISED = {"train": "train.txt", "dev": "valid.txt", "test": "test.txt"}
SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def linearise(representation):
    """'name[Alimentum], priceRange[£20-25]' -> 'name : Alimentum | price : £ 20 - 25', as in LoRA's files.

    Raises ValueError if the representation is not a list of slot[value].
    """
    slots = re.findall(r"(?:^|, )([\w ]+)\[([^\[\]]+)\]", representation)
    if not slots or ", ".join(f"{slot}[{value}]" for slot, value in slots) != representation.strip():
        raise ValueError(f"meaning representation '{representation}': expected slot[value], slot[value], …")
    if unknown := [slot for slot, _ in slots if slot not in SLOTS]:
        raise ValueError(f"meaning representation: no slot '{unknown[0]}': expected {', '.join(SLOTS)}")
    return " | ".join(f"{RENAMED.get(slot, slot)} : {tokenised(value)}" for slot, value in slots)


def tokenised(value):
    """As in LoRA's files, where this changes only prices in pounds."""
    return re.sub(r"(\d)-(\d)", r"\1 - \2", re.sub(r"£\s*", "£ ", value.strip()))


def read(path):
    """The examples of one file, official (.csv) or linearised. Raises UserError naming the file and line."""
    text = read_text(path, "name a folder of E2E files, official or linearised, with --data DIR")
    examples = list(_read_csv(path, text) if str(path).endswith(".csv") else _read_linearised(path, text))
    if not examples:
        raise UserError(f"{path}: no examples in it")
    return examples


def _read_csv(path, text):
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        if not {"mr", "ref"} <= set(header):
            raise ValueError(f"columns {header}: expected mr, ref")
        mr, ref = header.index("mr"), header.index("ref")
        line = reader.line_num + 1
        for row in reader:
            if len(row) <= max(mr, ref) or not row[ref].strip():
                raise ValueError("expected a meaning representation and a reference")
            # two of the official references hold line breaks inside their quotes
            yield Example(linearise(row[mr]), re.sub(r"\s*[\r\n]+\s*", " ", row[ref].strip()))
            line = reader.line_num + 1
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}:{line}: {error}") from None


def _read_linearised(path, text):
    for line, row in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        context, separator, reference = row.strip().partition("||")
        if not separator or not context or not reference:
            raise UserError(f"{path}:{line}: expected 'slot : value | …||sentence'")
        yield Example(context, reference.strip())


def load(data=None, train_file=None, dev_file=None, splits=("train", "dev", "test")):
    """{split: examples} from a folder of official or linearised files, fetched if `data` is None."""
    layouts, source = (OFFICIAL, LINEARISED), ("e2e", RELEASE, SHA256)
    return load_splits(read, layouts, source, data, train_file, dev_file, splits)


def grouped(examples):
    """{context: [reference, …]}"""
    groups = {}
    for example in examples:
        groups.setdefault(example.context, []).append(example.reference)
    return groups


def is_tokenised(examples):
    """Whether most references have a space before the full stop, as in the linearised files.

    The same output has BLEU .66 against raw references and .67 against tokenised ones.
    """
    return sum(example.reference.endswith(" .") for example in examples) > len(examples) / 2


def encode(tokenizer, examples, end_token, max_len):
    """[(prompt, completion)] token ids: context and end token; a space, reference and end token.

    A pair longer than `max_len` loses the end of its completion, at most all but the first token.
    """
    prompts = tokenizer.encode_batch([example.context for example in examples])
    completions = tokenizer.encode_batch([" " + example.reference for example in examples])
    pairs = zip(prompts, completions, strict=True)
    return [([*p.ids, end_token], [*c.ids, end_token][: max(max_len - len(p.ids) - 1, 1)]) for p, c in pairs]


RELEASE = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/"
SHA256 = {
    "trainset.csv": "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6",
    "devset.csv": "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9",
    "testset_w_refs.csv": "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
}
