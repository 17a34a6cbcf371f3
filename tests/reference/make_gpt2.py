"""Makes tests/reference/gpt2/: a tiny random GPT-2, and what transformers computes with it, in float32.

usage: python tests/reference/make_gpt2.py      needs transformers (5.23 was used)

The weights have the layout of the published gpt2: no prefix, fused and transposed layers, buffers with the
causal mask.
"""

import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

OUT = Path(__file__).parent / "gpt2"
SIZES = {
    "vocab_size": 61,
    "n_positions": 48,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 40,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 7,
    "eos_token_id": 7,
    "initializer_range": 0.4,  # large, so that a wrong detail shows
}
NEW_TOKENS = 20
DECODINGS = {  # of beam_size, length_penalty, no_repeat_ngram_size
    "greedy": (1, 1.0, 0),
    "greedy, no bigram twice": (1, 1.0, 2),
    "4 beams": (4, 1.0, 0),
    "10 beams, no 4-gram twice": (10, 0.9, 4),
    "5 beams, no bigram twice, long": (5, 2.0, 2),
    "3 beams, no token twice, short": (3, 0.5, 1),
}


def main():
    torch.manual_seed(1)
    config = GPT2Config(**SIZES)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or ".ln_" in name:
            # transformers starts them at 0 and 1, which would hide a swap
            torch.nn.init.normal_(parameter, std=0.5)
    input_ids = torch.randint(config.vocab_size, (3, 17))
    prompts = [torch.randint(config.vocab_size, (n,)).tolist() for n in (11, 3, 24, 1, 11, 6, 17, 2)]
    with torch.no_grad():
        found = model(input_ids, labels=input_ids, output_hidden_states=True)
        expected = {
            "input_ids": input_ids,
            "logits": found.logits,
            "loss": found.loss,
            "hidden_states": torch.stack(found.hidden_states),  # the last one is after the last norm
        }
        decoded = {
            name: [generate(model, prompt, *settings) for prompt in prompts]
            for name, settings in DECODINGS.items()
        }
    OUT.mkdir(exist_ok=True)
    state = {
        k.removeprefix("transformer."): v for k, v in model.state_dict().items() if k != "lm_head.weight"
    }
    for i in range(config.n_layer):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 48, 48).tril().to(torch.uint8)
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, OUT / "pytorch_model.bin")
    torch.save(expected, OUT / "expected.pt")
    (OUT / "config.json").write_text(json.dumps({"model_type": "gpt2", **SIZES}, indent=1) + "\n")
    rows = {
        "new_tokens": NEW_TOKENS,
        "prompts": prompts,
        "decodings": [
            dict(zip(("beam_size", "length_penalty", "no_repeat_ngram_size"), DECODINGS[name], strict=True))
            | {"name": name, "completions": completions}
            for name, completions in decoded.items()
        ],
    }
    (OUT / "generated.json").write_text(json.dumps(rows) + "\n")


def generate(model, prompt, beams, length_penalty, ngram):
    """One prompt alone: the completion, up to the end token."""
    options = {
        "num_beams": beams,
        "length_penalty": length_penalty,
        "no_repeat_ngram_size": ngram,
        "do_sample": False,
    }
    ids = torch.tensor([prompt])
    end = SIZES["eos_token_id"]
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, pad_token_id=end, **options
    )
    completion = [*found[0, len(prompt) :].tolist(), end]
    return completion[: completion.index(end)]


if __name__ == "__main__":
    main()
