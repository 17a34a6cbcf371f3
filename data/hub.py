"""A checkpoint's hub name or directory -> a local directory in HuggingFace's layout, its model's class, its tokenizer."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from data import UserError, as_user_error
from data.download import WAYS_OUT
from model import GPT2, RobertaClassifier, RobertaSpan, config_json, read_config
from read.t5 import T5

FILES = ("config.json", "tokenizer.json", "pytorch_model.bin")
MINI = Path(__file__).parent / "mini"
MODELS = {  # config.json's model_type: the classes that stand for it, by what a script does with them
    "roberta": {"classifier": RobertaClassifier, "span": RobertaSpan},
    "gpt2": {"generator": GPT2},
    "t5": {"text to text": T5},
}


def open_checkpoint(name_or_directory, use, mini):
    """(directory, the class for `use`, configuration, tokenizer) of a checkpoint; `mini` is the bundled one's place.

    Raises UserError as `checkpoint` and `load_tokenizer` do, and for a model that MODELS does not have for
    this use.
    """
    directory = checkpoint(mini if name_or_directory == "mini" else name_or_directory)
    classes = {kind: row[use] for kind, row in MODELS.items() if use in row}
    with as_user_error():
        kind = config_json(directory).get("model_type")
        if kind not in classes:
            expected = " or ".join(f"'{name}'" for name in classes)
            raise UserError(f"{directory / 'config.json'}: model_type is {kind!r}: expected {expected}")
        config = read_config(directory, classes[kind].CONFIG, kind)
    return directory, classes[kind], config, load_tokenizer(directory, config.vocab_size)


def checkpoint(name_or_directory):
    """The directory of a checkpoint; a hub name (`roberta-large`, `gpt2-medium`) is fetched by huggingface_hub.

    So the user's cache, mirror (HF_ENDPOINT), token and offline setting (HF_HUB_OFFLINE) are honoured. Raises
    UserError if there is neither such a directory nor such a name, the hub can't be reached, or it has no
    PyTorch weights.
    """
    if Path(name_or_directory).is_dir():
        return Path(name_or_directory)
    import huggingface_hub  # takes a second to import, and local directories do not need it
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries would come before our one line
    try:
        for file in FILES:
            path = huggingface_hub.hf_hub_download(name_or_directory, file)
    except HFValidationError:
        raise UserError(f"--model {name_or_directory}: no such directory, and not a hub name") from None
    except LocalEntryNotFoundError:
        where = huggingface_hub.constants.ENDPOINT
        raise UserError(f"--model {name_or_directory}: {where} could not be reached, or HF_HUB_OFFLINE is set and "
                        f"{file} is not in the cache: {WAYS_OUT}") from None  # fmt: skip
    except EntryNotFoundError:
        weights = file == "pytorch_model.bin"
        problem = "only weights in another format (safetensors is not read here)" if weights else f"no {file}"
        raise UserError(
            f"--model {name_or_directory}: this repository has {problem}: choose another checkpoint"
        ) from None
    except OSError as error:
        raise UserError(f"--model {name_or_directory}: {str(error).splitlines()[0]}") from None
    return Path(path).parent


def load_tokenizer(directory, vocab_size):
    """The tokenizer.json of a checkpoint. Raises UserError if there is none, or it has more tokens than `vocab_size`."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file: expected the checkpoint's tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this very class
        raise UserError(f"{path}: not a tokenizer ({error})") from None
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"{path}: {tokenizer.get_vocab_size()} tokens: the model's embedding has {vocab_size}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def copy_tokenizer(source, target):
    """Puts a checkpoint's tokenizer.json beside exported weights, and says that it is all there is of the tokenizer.

    Without the second file transformers guesses a class from the model's type, and may build another
    tokenizer.
    """
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    config = json.loads((target / "config.json").read_text())
    tokens = {name: config.get(f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    names = {name: tokenizer.id_to_token(token) for name, token in tokens.items() if token is not None}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (target / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
