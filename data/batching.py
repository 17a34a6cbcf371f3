"""Batches of token sequences, as lists of their indices: choosing and padding them."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import torch

from data import UserError

HELD_OUT = 500  # examples, where there are enough


def parted(examples, n):
    """[`n` random examples, the rest], both in their order, the same for every seed of a run."""
    order = np.random.default_rng(0).permutation(len(examples))
    return [[examples[i] for i in sorted(part)] for part in (order[:n], order[n:])]


def subset(examples, n):
    """`n` random examples, as `parted` has them; all if `n` is None."""
    return examples if n is None else parted(examples, n)[0]


def hold_out(examples, wanted=None, because="--hold-out", together=lambda example: example[:-1]):
    """(the rest, a part to choose by), always the same. The part has `wanted` examples, or if that is None a
    tenth, or HELD_OUT if more, up to a quarter.

    Examples with the same `together` stay on one side: the same text, for E2E the same meaning, for SQuAD the
    same paragraph. Raises UserError if all have the same.
    """
    groups, held = {}, set()
    for i, example in enumerate(examples):
        groups.setdefault(together(example), []).append(i)
    if len(groups) < 2:
        raise UserError(f"{because}: {len(examples)} training examples with one text: none can be held out")
    wanted = wanted or max(len(examples) // 10, min(HELD_OUT, len(examples) // 4))
    groups = list(groups.values())
    for g in np.random.default_rng(1).permutation(len(groups)):
        if len(held) + len(groups[g]) <= wanted:
            held.update(groups[g])
    held = held or {*min(groups, key=len)}
    print(f"{because}: {len(held):,} of {len(examples):,} training examples take the place of dev")
    return [[e for i, e in enumerate(examples) if (i in held) == side] for side in (False, True)]


def limited(splits, args, **how):
    """`splits` with the training set as --limit-train and --hold-out have it; `how` is for `hold_out`."""
    if "train" in splits:
        splits["train"] = subset(splits["train"], args.limit_train)
        if args.hold_out:
            splits["train"], splits["dev"] = hold_out(splits["train"], **how)
    return splits


def say_cut(cut, total, max_len):
    if cut:
        print(f"{cut:,} of {total:,} texts are longer than --max-len {max_len}: their ends are cut off")


def shuffled_batches(lengths, batch_size, seed):
    """An epoch's batches: every example once, in an order that `seed` decides; at most one batch is short.

    Shuffles the examples, sorts each group of 50 batches by length, cuts it into batches, and shuffles these.
    So there is hardly any padding, and every epoch has new batches.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    lengths = np.asarray(lengths)
    batches = []
    for start in range(0, len(order), 50 * batch_size):
        group = order[start : start + 50 * batch_size]
        group = group[np.argsort(lengths[group], kind="stable")]
        short = len(group) % batch_size  # the shortest examples of the last group are the short batch
        batches += [group[:short]] * (short > 0)
        batches += [group[i : i + batch_size] for i in range(short, len(group), batch_size)]
    return [batches[i].tolist() for i in rng.permutation(len(batches))]


def sorted_batches(lengths, batch_size):
    """Batches for scoring, longest first, so that memory runs out at once or never."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def pad(sequences, value, device="cpu", lengths=()):
    """Token lists -> input_ids (B, L) int64, padded with `value` on the right, and mask (B, L) bool.

    Where nothing is padded the mask is None: attention is faster without. L is the least of `lengths` that is
    enough, if there are any; then there is always a mask.
    """
    longest = max(map(len, sequences))
    longest = min((length for length in lengths if length >= longest), default=longest)
    ids = torch.tensor([tokens + [value] * (longest - len(tokens)) for tokens in sequences])
    if not lengths and all(len(tokens) == longest for tokens in sequences):
        return send(ids, device), None
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    return send(ids, device), send(torch.arange(longest) < lengths[:, None], device)


def send(tensor, device):
    """The tensor on `device`. To a GPU it goes from pinned memory, which torch keeps until it is there."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def places(where, device):
    """(rows, columns) of a CPU's mask (B, L), on `device`: x[places] is x[where] without a wait."""
    return send(where.nonzero().T, device).unbind()


def padding_share(lengths, batches):
    used = sum(lengths[i] for batch in batches for i in batch)
    return 1 - used / sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


class Batches:
    """The batches of each epoch, in groups of `accumulate` for one optimiser step."""

    def __init__(self, lengths, batch_size, accumulate, seed):
        self.lengths, self.batch_size, self.accumulate, self.seed = lengths, batch_size, accumulate, seed

    @property
    def steps(self):
        """Optimiser steps an epoch."""
        return math.ceil(len(self.lengths) / (self.batch_size * self.accumulate))

    def batches(self, number):
        """Those of epoch `number`, from 0."""
        return shuffled_batches(self.lengths, self.batch_size, [self.seed, number])

    def epoch(self, number):
        """The same in groups."""
        batches = self.batches(number)
        return [batches[i : i + self.accumulate] for i in range(0, len(batches), self.accumulate)]

    def padded_lengths(self):
        """A few lengths to pad batches to: they add padding up to 7 % of an epoch's tokens, or none."""
        rows = Counter()
        for batch in self.batches(0):
            rows[max(self.lengths[i] for i in batch)] += len(batch)
        left = sum(self.lengths) / (1 - 0.07) - sum(length * n for length, n in rows.items())
        while len(kept := sorted(rows)) > 1:
            added, short, longer = min((rows[a] * (b - a), a, b) for a, b in pairwise(kept))
            left -= added
            if left < 0:
                break
            rows[longer] += rows.pop(short)
        return kept

    def __str__(self):
        padding = padding_share(self.lengths, self.batches(0))
        return f"{sum(self.lengths):,} tokens, {padding:.1%} padding in their batches"


class Tokens:
    """Token lists, padded when they are asked for: tokens(indices) is what `pad` returns."""

    def __init__(self, tokens, pad_token, device):
        self.tokens, self.pad_token, self.device = tokens, pad_token, device
        self.lengths = [len(t) for t in tokens]

    def __call__(self, batch, lengths=()):
        return pad([self.tokens[i] for i in batch], self.pad_token, self.device, lengths)
