"""Finds a checkpoint, by hub name or directory: its directory, its model's class, its tokenizer."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from data import UserError, as_user_error
from data.download import WAYS_OUT
from model import (
    GPT2,
    WEIGHTS,
    RobertaClassifier,
    RobertaModel,
    RobertaSpan,
    first_line,
    read_config,
    read_index,
    read_json,
    refuse_pointer,
)
from read.t5 import T5

MINI = Path(__file__).parent / "mini"
MODELS = {  # config.json's model_type: the classes that stand for it, by what a script does with them
    **{kind: {"classifier": RobertaClassifier, "span": RobertaSpan} for kind in RobertaModel.TYPES},
    "gpt2": {"generator": GPT2},
    "t5": {"text to text": T5},
}


def open_checkpoint(name_or_directory, use):
    """A checkpoint's (directory, class for `use`, configuration, tokenizer); "mini" is the bundled one.

    Raises UserError as the functions below do, and for a model that is not for this use.
    """
    classes = {kind: row[use] for kind, row in MODELS.items() if use in row}
    directory = checkpoint(MINI / next(iter(classes)) if name_or_directory == "mini" else name_or_directory)
    with as_user_error():
        found = classes.get(str(read_json(directory / "config.json").get("model_type")))
        config = read_config(directory, found and found.CONFIG, *classes)  # refuses all others
    return directory, found, config, load_tokenizer(directory, config.vocab_size)


def checkpoint(name_or_directory):
    """The directory of a checkpoint; huggingface_hub fetches a hub name (`roberta-large`, `gpt2-medium`).

    It respects the user's cache, mirror (HF_ENDPOINT), token and offline setting (HF_HUB_OFFLINE).
    Raises UserError if it can't be had.
    """
    if (directory := Path(name_or_directory)).is_dir():
        return directory
    if directory.exists():
        raise UserError(f"--model {name_or_directory}: a file: expected its directory, or a hub name")
    import huggingface_hub  # not at the top: this import takes a second
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # hides the lines about retries

    def fetch(name, *others):
        try:
            return Path(huggingface_hub.hf_hub_download(name_or_directory, name))
        except EntryNotFoundError:
            if not others:
                raise
        return fetch(*others)

    try:
        for files in (("config.json",), ("tokenizer.json",), WEIGHTS):  # of each, the first that is there
            path = fetch(*files)
        if path.suffix == ".json":
            for files in {(file,) for file in read_index(path).values()}:
                fetch(*files)
        return path.parent
    except HFValidationError:
        problem = "no such directory, and not a hub name"
    except LocalEntryNotFoundError:
        where = huggingface_hub.constants.ENDPOINT
        missing = f"HF_HUB_OFFLINE is set and {' or '.join(files)} is not in the cache"
        problem = f"{where} could not be reached, or {missing}: {WAYS_OUT}"
    except EntryNotFoundError:
        problem = f"no {' or '.join(files)}: choose another checkpoint"
    except (OSError, ValueError) as error:
        problem = first_line(error)
    raise UserError(f"--model {name_or_directory}: {problem}")


def load_tokenizer(directory, vocab_size):
    """A checkpoint's tokenizer of at most `vocab_size` tokens, or UserError."""
    path = Path(directory) / "tokenizer.json"
    try:
        refuse_pointer(path)
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise UserError(f"{path}: expected the checkpoint's tokenizer ({error})") from None
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise UserError(f"{path}: {size} tokens: the model's embedding has {vocab_size}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def copy_tokenizer(source, target):
    """Copies a checkpoint's tokenizer.json to exported weights, and writes a tokenizer_config.json.

    Without that, transformers picks a tokenizer by the model's type, which may split differently.
    """
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    config = json.loads((target / "config.json").read_text())
    tokens = {name: config.get(f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    names = {name: tokenizer.id_to_token(token) for name, token in tokens.items() if token is not None}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (target / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
