"""Batches of token sequences: which examples go together, and how they are padded."""

import math

import numpy as np
import torch


def subset(examples, n):
    """`n` examples, the same ones whatever the run's seed: files are often sorted, so not the first ones."""
    if n is None or n >= len(examples):
        return examples
    return [examples[i] for i in sorted(np.random.default_rng(0).permutation(len(examples))[:n])]


def shuffled_batches(lengths, batch_size, seed):
    """Index lists of an epoch's batches: every example once, in an order made from `seed`, neighbours of like length.

    Shuffles, sorts each run of 50 batches by length, cuts it into batches, and shuffles these: nearly no
    padding, and still another mixture each epoch. Only the last batch of all may be short.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    lengths = np.asarray(lengths)
    batches = []
    for start in range(0, len(order), 50 * batch_size):
        run = order[start : start + 50 * batch_size]
        run = run[np.argsort(lengths[run], kind="stable")]
        # a run that does not divide evenly leaves its shortest examples as the short batch
        first = len(run) % batch_size
        batches += [run[:first]] * (first > 0) + [
            run[i : i + batch_size] for i in range(first, len(run), batch_size)
        ]
    return [batches[i].tolist() for i in rng.permutation(len(batches))]


def sorted_batches(lengths, batch_size):
    """Index lists from the longest to the shortest, for scoring: a batch that is too large for memory fails first."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def pad(sequences, value, device="cpu"):
    """Token lists -> input_ids (B, L) int64, padded with `value` to the longest, and mask (B, L), None if all are equal.

    Without padding the mask says nothing, and attention without one is faster.
    """
    longest = max(map(len, sequences))
    ids = torch.tensor([tokens + [value] * (longest - len(tokens)) for tokens in sequences])
    if all(len(tokens) == longest for tokens in sequences):
        return ids.to(device), None
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    return ids.to(device), (torch.arange(longest) < lengths[:, None]).to(device)


def padding_share(lengths, batches):
    """The part of all positions in these batches that is padding, between 0 and 1."""
    used = sum(lengths[i] for batch in batches for i in batch)
    return 1 - used / sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


class Batches:
    """The batches of each epoch, as index lists, in groups of `accumulate` for one optimiser step."""

    def __init__(self, lengths, batch_size, accumulate, seed):
        self.lengths, self.batch_size, self.accumulate, self.seed = lengths, batch_size, accumulate, seed

    @property
    def steps(self):
        """Optimiser steps an epoch."""
        return math.ceil(math.ceil(len(self.lengths) / self.batch_size) / self.accumulate)

    def epoch(self, number):
        """The groups of epoch `number`, from 0: they depend on the seed and this number alone."""
        batches = shuffled_batches(self.lengths, self.batch_size, [self.seed, number])
        return [batches[i : i + self.accumulate] for i in range(0, len(batches), self.accumulate)]

    def __str__(self):
        batches = [batch for group in self.epoch(0) for batch in group]
        return f"{sum(self.lengths):,} tokens, {padding_share(self.lengths, batches):.1%} padding in their batches"


class Tokens:
    """Token lists, as a model takes them: tokens(indices) -> (input_ids (B, L), mask (B, L) or None) on `device`."""

    def __init__(self, tokens, pad_token, device):
        self.tokens, self.pad_token, self.device = tokens, pad_token, device
        self.lengths = [len(t) for t in tokens]

    def __call__(self, batch):
        return pad([self.tokens[i] for i in batch], self.pad_token, self.device)
