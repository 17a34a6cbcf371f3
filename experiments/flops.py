"""What the paper's Table 2 counts, and what it does not: python -m experiments.flops [--tokens 128] [--batch-size 1]

The paper's figures for HUT and LoRA are those of building the adapted weight, once, whatever the number of tokens.
Beside them: the same functions without building it, per token; and all matrix products of a whole training step.
A multiplication and an addition count as two.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

import baselines
from hut import apply_hut
from model import ROBERTA_LARGE, RobertaClassifier
from training import whole

BUILDING = {"hut": lambda d, k, r: 4 * d * k + r * d + r * k, "lora": lambda d, k, r: (2 * r + 1) * d * k}
PER_TOKEN = {"hut": lambda d, k, r: d + k, "lora": lambda d, k, r: 2 * r * (d + k)}
ADAPTERS = {"houlsby": 2, "pfeiffer": 1}  # a block


def building(method, d, k, r):
    """Operations that build the adapted weight (d, k), as the paper counts them (Table 2).

    LoRA (2r + 1)dk: the product A B and its sum with W_0. HUT 4dk + rd + rk, where eq. 10 needs 3dk + rd + rk: the
    outer product of the two means, and scaling by W_0 and by gamma.
    """
    return BUILDING[method](d, k, r)


def per_token(method, d, k, r):
    """Operations that a token costs where no weight is built: HUT's two scalings d + k, LoRA's two products 2r(d + k)."""
    return PER_TOKEN[method](d, k, r)


def break_even(method, d, k, r):
    """The number of tokens from which building the weight is the cheaper. HUT's means, rd + rk, are taken either way."""
    both = r * (d + k) if method == "hut" else 0
    return (building(method, d, k, r) - both) / per_token(method, d, k, r)


def adapters(method, d, r, layers, tokens):
    """Of the adapters' two products, 4dr a token. The paper's rows follow from no one formula and number of tokens."""
    return ADAPTERS[method] * layers * tokens * 4 * d * r


def training_step(method, r, config, batch_size, length, device="meta"):
    """FLOPs of the matrix products and attention of a step, forward and backward, as torch counts them.

    Elementwise work (norms, GELU, HUT's scalings, FourierFT's transform) it does not see. On the `meta` device
    nothing is computed, and no memory is taken.
    """
    with torch.device(device):
        model = RobertaClassifier(config)
        apply_hut(model, r) if method == "hut" else baselines.apply(model, method, r)
        model.classifier.requires_grad_(True)
        ids = torch.full((batch_size, length), 5)
        with FlopCounterMode(display=False) as counter:
            model(ids).sum().backward()
    return counter.get_total_flops()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=whole, default=128, help="of an example (default: 128)")
    parser.add_argument("--batch-size", type=whole, default=1, help="examples of the training step (default: 1)")
    args = parser.parse_args()
    d, layers = ROBERTA_LARGE.hidden_size, ROBERTA_LARGE.num_hidden_layers
    matrices = 2 * layers  # W_q and W_v

    print("RoBERTa-large, GFLOPs: building the adapted weights once, whatever the number of tokens, or never")
    print(f"{'':14}{'paper':>8}{'building':>10}{f'{args.tokens} tokens':>12}   building is cheaper from")
    for method, paper in (("hut", 0.20), ("lora", 0.86)):
        size = (method, d, d, 8)
        built, run = matrices * building(*size), matrices * args.tokens * per_token(*size)
        print(f"{method + ' r=8':14}{paper:8.2f}{built / 1e9:10.4f}{run / 1e9:12.4f}   {break_even(*size):.0f} tokens")
    for method, r, paper in (("houlsby", 64, 1.61), ("houlsby", 8, 0.41), ("pfeiffer", 64, 2.40), ("pfeiffer", 16, 1.80)):
        run = adapters(method, d, r, layers, args.tokens)
        print(f"{f'{method} r={r}':14}{paper:8.2f}{'–':>10}{run / 1e9:12.4f}   (no one formula gives the paper's four)")

    print(f"\nA training step of {args.batch_size} × {args.tokens} tokens, matrix products and attention only")
    full = training_step("full", None, ROBERTA_LARGE, args.batch_size, args.tokens)
    for method in ("hut", *baselines.METHODS):
        r = 8 if method == "hut" else baselines.ROBERTA_R.get(method)
        flops = training_step(method, r, ROBERTA_LARGE, args.batch_size, args.tokens)
        print(f"{method + (f' r={r}' if r else ''):18}{flops / 1e9:10.2f} GFLOPs  {flops / full:6.1%} of full")


if __name__ == "__main__":
    main()
