"""Writes a GPT-2 with random weights, and a tokenizer of E2E's own words, to be trained from nothing where no pretrained
checkpoint is at hand:

    python -m experiments.random_gpt2 DIR --data E2E_FOLDER
    python train_e2e.py --model DIR --data E2E_FOLDER --method full --batch-size 32 --lr 1e-3 --epochs 4
"""

import argparse
from pathlib import Path

import torch

from data import e2e
from data.mini.make import byte_level_bpe
from model import GPT2, GPT2Config
from training import run_as_script


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", help="folder of E2E files (default: fetched once into the cache)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4000)
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
    print(
        f"{args.directory}: {sum(p.numel() for p in model.parameters()):,} random parameters, {config.vocab_size} tokens"
    )


if __name__ == "__main__":
    run_as_script(main)
