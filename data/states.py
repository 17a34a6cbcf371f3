"""READ: what a frozen backbone computes, on disk: a header in JSON that describes it, then float32 states.

A file is named by its header, so that every task with these texts finds it, and nothing else does.
"""

import json
import math
from hashlib import sha256

import torch
from torch import nn
from tqdm import tqdm

from data.batching import send
from model import first_line, write_file, writing
from read.network import ReadClassifier

HEADER = 4096  # bytes; a page, so that the numbers are aligned


def header(about):
    return json.dumps(about).encode().ljust(HEADER)


def write_states(path, about, parts):
    """Writes states to `path`, all or nothing.

    about  what the states are of; about["shape"] is theirs, with one example a row
    parts  (indices, states of these examples), in any order
    """
    size = 4 * math.prod(about["shape"][1:])  # bytes a row

    def write(file):
        file.write(header(about))
        for indices, states in parts:
            for i, row in zip(indices, states.float().cpu().numpy(), strict=True):
                file.seek(HEADER + i * size)
                file.write(row.tobytes())

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)


def read_states(path, about):
    """The states as a memory-mapped tensor. ValueError if the file is not whole, or of something else."""
    try:
        with path.open("rb") as file:
            found = file.read(HEADER)
    except OSError as error:
        raise ValueError(f"{path}: could not be read ({first_line(error)})") from None
    size = HEADER + 4 * math.prod(about["shape"])
    if (found, path.stat().st_size) != (header(about), size):
        raise ValueError(f"{path}: not {size:,} bytes of these states: delete it, or name another folder")
    content = torch.from_file(str(path), size=size, dtype=torch.uint8)
    return content[HEADER:].view(torch.float32).view(about["shape"])


class States:
    """Cached states in the place of Tokens: states(indices) -> (states (B, N, d),)."""

    def __init__(self, states, tokens):
        self.states, self.lengths, self.device = states, tokens.lengths, tokens.device

    def __call__(self, batch, lengths=()):
        return (send(self.states[batch], self.device),)


class FromStates(nn.Module):
    """The trained part of a ReadClassifier, by the same names."""

    def __init__(self, model):
        super().__init__()
        self.num_labels, self.classifier, self.network = model.num_labels, model.classifier, model.network

    forward = ReadClassifier.from_states


def cached_states(model, tokens, batches, folder, autocast, **about):
    """The States of `tokens` by a ReadClassifier, from `folder`, where they are written if they are missing.

    batches  index lists in which they are computed
    about    what else they depend on: the checkpoint, what the head reads, the dtype
    """
    about["shape"] = [len(tokens.tokens), len(model.body.blocks), model.config.hidden_size]
    about["examples"] = sha256(json.dumps(tokens.tokens).encode()).hexdigest()
    path = folder / f"{sha256(header(about)).hexdigest()[:16]}.states"

    def parts():
        for batch in tqdm(batches, path.name, disable=None, leave=False):
            with autocast:
                states = model.states(*tokens(batch))
            yield batch, states

    model.eval()
    if not path.exists():
        write_states(path, about, parts())
        print(f"{path}: {path.stat().st_size / 2**20:,.1f} MiB of states, for all epochs")
    return States(read_states(path, about), tokens)
