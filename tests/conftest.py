"""A tiny checkpoint with a tokenizer, and a tiny CoLA, that every test of data and scripts can use."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

torch.set_num_threads(1)  # the models of these tests are too small for two, which would wait for each other

WORDS = ["the", "a", "dog", "cat", "girl", "boy", "sees", "sleeps", "runs", "hears", ".", "red", "small", "old", "and"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tests/reference/roberta, as a directory with a tokenizer.json of whole words."""
    directory = tmp_path_factory.mktemp("tiny") / "roberta"
    shutil.copytree(Path(__file__).parent / "reference" / "roberta", directory)
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def tiny_glue(tmp_path):
    """A folder with CoLA/train.tsv (40 rows), dev.tsv (12) and test.tsv: a sentence is right if it ends in a full stop."""
    folder = tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)

    def sentence(i):
        return f"the {WORDS[7 + i % 2]} {WORDS[2 + i % 4]} {WORDS[6 + i % 4]} {'small ' * (i % 5)}{'.' if i % 3 else 'and'}"

    rows = [f"made\t{int(i % 3 > 0)}\t{'' if i % 3 else '*'}\t{sentence(i)}\n" for i in range(52)]
    (folder / "train.tsv").write_text("".join(rows[:40]))
    (folder / "dev.tsv").write_text("".join(rows[40:]))
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(f"{i}\t{sentence(i)}\n" for i in range(5)))
    return folder.parent
