"""Writes a GPT-2 with random weights and a tokenizer made from E2E, to train without a pretrained checkpoint:

python -m experiments.random_gpt2 DIR --data E2E_FOLDER
python train_e2e.py --model DIR --data E2E_FOLDER --method full --batch-size 32 --lr 1e-3 --epochs 4
"""

from pathlib import Path

import torch

from arguments import Parser, run_as_script
from data import e2e
from data.mini.make import byte_level_bpe
from model import GPT2, GPT2Config
from weights import count


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", help="folder of E2E files (default: fetched once into the cache)")
    args = parser.parse_args()
    examples = e2e.load(args.data, splits=("train",))["train"]
    texts = [*e2e.grouped(examples)] + [f" {example.reference}" for example in examples]
    tokenizer = byte_level_bpe(texts, 4000, ["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(0)
    sizes = {"n_positions": 256, "n_embd": 256, "n_layer": 4, "n_head": 4}
    model = GPT2(GPT2Config(tokenizer.get_vocab_size(), bos_token_id=end, eos_token_id=end, **sizes))
    model.save_pretrained(args.directory)
    tokenizer.save(str(args.directory / "tokenizer.json"))
    size = count(model.parameters())
    print(f"{args.directory}: {size:,} random parameters, {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    run_as_script(main)
