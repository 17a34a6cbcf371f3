"""Makes tests/reference/t5/: a tiny random T5, and what transformers computes with it, in float32.

usage: python tests/reference/make_t5.py      needs transformers (5.23 was used)

The weights have the layout of the published t5-small: the embeddings four times, and one bias that nothing
reads.
"""

import json
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

OUT = Path(__file__).parent / "t5"
SIZES = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 10,  # heads × d_kv is not d_model, as in the published 3B
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
LENGTHS = (37, 21, 2)  # longer than the farthest distance, and padding
NEW_TOKENS = 16
DECODINGS = {  # of beam_size, length_penalty, no_repeat_ngram_size
    "greedy": (1, 1.0, 0),
    "greedy, no bigram twice": (1, 1.0, 2),
    "4 beams": (4, 1.0, 0),
    "10 beams, no 4-gram twice": (10, 0.9, 4),
    "5 beams, no bigram twice, long": (5, 2.0, 2),
    "3 beams, no token twice, short": (3, 0.5, 1),
}


def main():
    torch.manual_seed(2)
    config = T5Config(**SIZES)
    model = T5ForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            # transformers starts them at 1, which would hide a swap
            torch.nn.init.normal_(parameter, 1.0, 0.3)
        elif "relative" in name:
            torch.nn.init.normal_(parameter, std=1.5)
        elif "shared" in name:
            parameter.data *= 0.7
            parameter.data[config.eos_token_id] *= 2  # so that some outputs end
        elif name.endswith(("o.weight", "v.weight")):
            parameter.data *= 2  # else the decoder says again and again what it has just said
    input_ids = torch.randint(2, config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    input_ids[~mask] = config.pad_token_id
    labels = torch.randint(2, config.vocab_size, (len(LENGTHS), 29))
    sources = [torch.randint(2, config.vocab_size, (n,)).tolist() for n in (11, 3, 33, 1, 11, 6, 17, 2)]
    with torch.no_grad():
        asked = {"output_hidden_states": True, "output_attentions": True}
        model.set_attn_implementation("eager")  # the only one that returns its weights
        found = model(input_ids, mask.long(), labels=labels, **asked)
        expected = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "labels": labels,
            "logits": found.logits,
            "loss": found.loss,
            "encoder_hidden_states": torch.stack(
                found.encoder_hidden_states
            ),  # the last one is after the last norm
            "decoder_hidden_states": torch.stack(found.decoder_hidden_states),
            "cross_attentions": torch.stack(found.cross_attentions),
        }
        decoded = {
            name: [generate(model, source, *settings) for source in sources]
            for name, settings in DECODINGS.items()
        }
    OUT.mkdir(exist_ok=True)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(12, 3)
    torch.save(state, OUT / "pytorch_model.bin")
    torch.save(expected, OUT / "expected.pt")
    (OUT / "config.json").write_text(json.dumps({"model_type": "t5", **SIZES}, indent=1) + "\n")
    rows = {
        "new_tokens": NEW_TOKENS,
        "sources": sources,
        "decodings": [
            dict(zip(("beam_size", "length_penalty", "no_repeat_ngram_size"), DECODINGS[name], strict=True))
            | {"name": name, "outputs": outputs}
            for name, outputs in decoded.items()
        ],
    }
    (OUT / "generated.json").write_text(json.dumps(rows) + "\n")


def generate(model, source, beams, length_penalty, ngram):
    """One source alone: the output, without the start token, up to the end token.

    Without a cache, which transformers lays out for as many layers as the encoder has.
    """
    options = {
        "num_beams": beams,
        "length_penalty": length_penalty,
        "no_repeat_ngram_size": ngram,
        "do_sample": False,
    }
    ids, end = torch.tensor([source]), SIZES["eos_token_id"]
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, use_cache=False, **options
    )
    output = [*found[0, 1:].tolist(), end]
    return output[: output.index(end)]


if __name__ == "__main__":
    main()
