"""What the paper's Table 2 counts, and what it does not: python -m experiments.flops [--tokens 128]

The paper's figures for HUT and LoRA are those of building the adapted weight, once, whatever the number of
tokens. Beside them stand the same functions without building it, per token, and all matrix products of a
whole training step. A multiplication and an addition count as two.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from arguments import Parser, run_as_script, whole
from experiments.tables import PAPER, Sheet
from methods import ENCODER, METHODS, adapt, methods_of
from model import ROBERTA_LARGE, RobertaClassifier

BUILDING = {"hut": lambda d, k, r: 4 * d * k + r * d + r * k, "lora": lambda d, k, r: (2 * r + 1) * d * k}
PER_TOKEN = {"hut": lambda d, k, r: d + k, "lora": lambda d, k, r: 2 * r * (d + k)}
ADAPTERS = {"houlsby": 2, "pfeiffer": 1}  # a block


def building(method, d, k, r):
    """Operations that build the adapted weight (d, k), as the paper counts them (Table 2).

    LoRA (2r + 1)dk: the product A B and its sum with W_0. HUT 4dk + rd + rk, where eq. 10 needs 3dk + rd +
    rk: the outer product of the two means, and scaling by W_0 and by gamma.
    """
    return BUILDING[method](d, k, r)


def per_token(method, d, k, r):
    """Operations of a token without a built weight: HUT's scalings d + k, LoRA's products 2r(d + k)."""
    return PER_TOKEN[method](d, k, r)


def break_even(method, d, k, r):
    """The tokens from which building the weight is cheaper. HUT takes its means, rd + rk, either way."""
    both = r * (d + k) if method == "hut" else 0
    return (building(method, d, k, r) - both) / per_token(method, d, k, r)


def adapters(method, d, r, layers, tokens):
    """Operations of the adapters' two products, 4dr a token. The paper's rows follow from no one formula."""
    return ADAPTERS[method] * layers * tokens * 4 * d * r


def training_step(method, r, config, batch_size, length, device="meta"):
    """FLOPs of the matrix products and attention of a step, forward and backward, as torch counts them.

    Torch does not see elementwise work (norms, GELU, HUT's scalings, FourierFT's transform). On the `meta`
    device nothing is computed, and no memory is taken.
    """
    with torch.device(device):
        model = adapt(RobertaClassifier(config), method, {"r": r})
        ids = torch.full((batch_size, length), 5)
        with FlopCounterMode(display=False) as counter:
            model(ids).sum().backward()
    return counter.get_total_flops()


def table_2(tokens=128):
    """(rows, Sheet) of the paper's Table 2: RoBERTa-large, HUT and LoRA at q and v; FLOPs."""
    d, layers = ROBERTA_LARGE.hidden_size, ROBERTA_LARGE.num_hidden_layers
    found, lines = [], []
    for key, printed in PAPER["table2"]["rows"].items():
        method, r = key.split(":")[0], int(key.split(":")[1])
        row = {
            "method": method,
            "r": r,
            "paper": 1e9 * float(printed["gflops"]),
            "building": None,
            "tokens": None,
        }
        built = ["–", "–"]
        if method in BUILDING:
            row["building"] = 2 * layers * building(method, d, d, r)
            row["tokens"] = break_even(method, d, d, r)
            row["unbuilt"] = 2 * layers * tokens * per_token(method, d, d, r)
            built = [f"{row['building'] / 1e9:.4f}", f"{row['tokens']:.0f}"]
        else:
            row["unbuilt"] = adapters(method, d, r, layers, tokens)
        found.append(row)
        lines.append([f"{method} r{r}", printed["gflops"], built[0], f"{row['unbuilt'] / 1e9:.4f}", built[1]])
    unbuilt = f"{tokens} tokens, not built"
    header = ["RoBERTa-large, GFLOPs", "paper", "building the weights", unbuilt, "built is cheaper from"]
    note = (
        "The paper's figures for HUT and LoRA are those of building the adapted weights, once, whatever "
        "the number of tokens: HUT 4dk + rd + rk a matrix, LoRA (2r + 1)dk. Where nothing is built, a "
        "token costs HUT d + k and LoRA 2r(d + k); the last column is the number of tokens from which "
        "building costs less. The paper's four figures for adapters follow from no one formula; ours are "
        "4dr a token."
    )
    return found, Sheet(header, lines, [note])


def step_table(batch_size=1, tokens=128):
    """(rows, Sheet) of what a training step of RoBERTa-large takes with each method; FLOPs."""
    sizes = {method: METHODS[method].r.get(ENCODER) for method in methods_of(ENCODER)}
    steps = {m: training_step(m, r, ROBERTA_LARGE, batch_size, tokens) for m, r in sizes.items()}
    found = [{"method": method, "r": sizes[method], "step": step} for method, step in steps.items()]
    lines = []
    for method, step in steps.items():
        size = f" r{sizes[method]}" if sizes[method] else ""
        lines.append([method + size, f"{step / 1e9:.2f}", f"{step / steps['full']:.1%}"])
    note = (
        f"Forward and backward of {batch_size} × {tokens} tokens, as torch counts it: matrix products and "
        "attention. It does not see elementwise work: norms, GELU, HUT's scalings, FourierFT's transform."
    )
    return found, Sheet(["training step", "GFLOPs", "of full"], lines, [note])


def main():
    parser = Parser(prog="python -m experiments.flops", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=whole, default=128, help="of an example (default: 128)")
    parser.add_argument("--batch-size", type=whole, default=1, help="of the training step (default: 1)")
    args = parser.parse_args()
    print(f"{table_2(args.tokens)[1]}\n\n{step_table(args.batch_size, args.tokens)[1]}")


if __name__ == "__main__":
    run_as_script(main)
