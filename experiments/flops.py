"""What the paper's Table 2 counts, and what it does not: python -m experiments.flops

A multiplication and an addition count as two.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from arguments import Parser, run_as_script
from experiments.tables import PAPER, Sheet, label
from methods import ENCODER, METHODS, adapt, methods_of
from model import ROBERTA_LARGE, RobertaClassifier

BUILDING = ("hut", "lora")  # the methods that the paper counts by building their weights
ADAPTERS = {"houlsby": 2, "pfeiffer": 1}  # a block


def building(method, d, k, r):
    """Operations that build the adapted weight (d, k), as the paper counts them (Table 2).

    LoRA: the product A B and its sum with W_0. HUT: 3dk would do for eq. 10, the outer product of the two
    means, and scaling by W_0 and by gamma.
    """
    return 4 * d * k + r * (d + k) if method == "hut" else (2 * r + 1) * d * k


def per_token(method, d, k, r):
    """Operations of a token without a built weight: HUT's scalings, LoRA's products."""
    return d + k if method == "hut" else 2 * r * (d + k)


def break_even(method, d, k, r):
    """The tokens from which building the weight is cheaper. HUT takes its means, rd + rk, either way."""
    both = r * (d + k) if method == "hut" else 0
    return (building(method, d, k, r) - both) / per_token(method, d, k, r)


def adapters(method, d, r, layers, tokens):
    """Operations of the adapters' two products, 4dr a token."""
    return ADAPTERS[method] * layers * tokens * 4 * d * r


def training_step(method, r, config, batch_size, length):
    """FLOPs of a step, forward and backward, as torch counts them. Nothing is computed."""
    with torch.device("meta"):
        model = adapt(RobertaClassifier(config), method, {"r": r})
        ids = torch.full((batch_size, length), 5)
        with FlopCounterMode(display=False) as counter:
            model(ids).sum().backward()
    return counter.get_total_flops()


def table_2(tokens=128):
    """The paper's Table 2: RoBERTa-large, HUT and LoRA at q and v."""
    d, layers = ROBERTA_LARGE.hidden_size, ROBERTA_LARGE.num_hidden_layers
    rows = []
    for key, printed in PAPER["table2"]["rows"].items():
        method, r = key.split(":")[0], int(key.split(":")[1])
        if method in BUILDING:
            built = f"{2 * layers * building(method, d, d, r) / 1e9:.4f}"
            unbuilt = 2 * layers * tokens * per_token(method, d, d, r)
            cheaper = f"{break_even(method, d, d, r):.0f}"
        else:
            built, unbuilt, cheaper = "–", adapters(method, d, r, layers, tokens), "–"
        rows.append([label(method, r), printed["gflops"], built, f"{unbuilt / 1e9:.4f}", cheaper])
    header = ["RoBERTa-large, GFLOPs", "paper", "building the weights", f"{tokens} tokens, not built"]
    note = (
        "The paper counts building the adapted weights once, whatever the number of tokens: HUT 4dk + rd + "
        "rk a matrix, LoRA (2r + 1)dk. Without building, a token costs HUT d + k and LoRA 2r(d + k). The "
        "last column is the number of tokens from which building costs less. The paper's four figures for "
        "adapters follow from no one formula; ours are 4dr a token."
    )
    return Sheet([*header, "built is cheaper from"], rows, [note])


def step_table():
    """What a training step of RoBERTa-large takes with each method."""
    sizes = {method: METHODS[method].r.get(ENCODER) for method in ("full", *methods_of(ENCODER))}
    steps = {method: training_step(method, r, ROBERTA_LARGE, 1, 128) for method, r in sizes.items()}
    rows = [
        [label(method, sizes[method]), f"{step / 1e9:.2f}", f"{step / steps['full']:.1%}"]
        for method, step in steps.items()
    ]
    note = (
        "Forward and backward of 1 × 128 tokens, as torch counts it: matrix products and attention. It does "
        "not see elementwise work: norms, GELU, HUT's scalings, FourierFT's transform."
    )
    return Sheet(["training step", "GFLOPs", "of full"], rows, [note])


def main():
    Parser(prog="python -m experiments.flops", description=__doc__.splitlines()[0]).parse_args()
    print(f"{table_2()}\n\n{step_table()}")


if __name__ == "__main__":
    run_as_script(main)
