"""Writes a GPT-2 with random weights and a tokenizer made from E2E, to train without a pretrained checkpoint:

python -m experiments.random_gpt2 DIR --data E2E_FOLDER
python train_e2e.py --model DIR --data E2E_FOLDER --method full --batch-size 32 --lr 1e-3 --epochs 4
"""

import argparse
from pathlib import Path

import torch

from arguments import Parser, run_as_script, whole
from data import e2e
from data.mini.make import byte_level_bpe
from model import GPT2, GPT2Config
from weights import count


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", help="folder of E2E files (default: fetched once into the cache)")
    parser.add_argument("--layers", type=whole, default=4)
    parser.add_argument("--width", type=whole, default=256)
    parser.add_argument("--vocabulary", type=whole, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    examples = e2e.load(args.data, splits=("train",))["train"]
    texts = [*e2e.grouped(examples)] + [f" {example.reference}" for example in examples]
    tokenizer = byte_level_bpe(texts, args.vocabulary, ["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=256,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.width // 64,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2(config)
    model.save_pretrained(args.directory)
    tokenizer.save(str(args.directory / "tokenizer.json"))
    size = f"{count(model.parameters()):,} random parameters, {config.vocab_size} tokens"
    print(f"{args.directory}: {size}")


if __name__ == "__main__":
    run_as_script(main)
