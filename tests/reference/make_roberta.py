"""Makes tests/reference/roberta/: a tiny random RoBERTa, and what transformers computes with it, in float32.

usage: python tests/reference/make_roberta.py      needs transformers (5.23 was used)

The weights have the layout of the published roberta-large: pooler, masked-LM head, tied decoder,
position_ids.
"""

import json
from pathlib import Path

import torch
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaModel,
)

OUT = Path(__file__).parent / "roberta"
SIZES = {
    "vocab_size": 120,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 34,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.5,  # large, so that a wrong detail shows
}


def main():
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES, num_labels=3)
    masked_lm = RobertaForMaskedLM(config).eval()
    for name, parameter in masked_lm.named_parameters():
        if name.endswith(("bias", "LayerNorm.weight", "layer_norm.weight")):
            # transformers starts them at 0 and 1, which would hide a swap
            torch.nn.init.normal_(parameter, std=0.3)
    classifier = RobertaForSequenceClassification(config).eval()
    classifier.roberta.load_state_dict(masked_lm.roberta.state_dict())
    lengths = [19, 32, 5]
    input_ids = torch.randint(3, config.vocab_size, (3, max(lengths)))
    attention_mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    input_ids[~attention_mask] = config.pad_token_id
    attention_mask = attention_mask.long()
    with torch.no_grad():
        body = masked_lm.roberta(input_ids, attention_mask, output_hidden_states=True)
        expected = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "hidden_states": torch.stack(body.hidden_states),
            "mlm_logits": masked_lm(input_ids, attention_mask).logits,
            "cls_logits": classifier(input_ids, attention_mask).logits,
            "cls_head": {k: v for k, v in classifier.state_dict().items() if k.startswith("classifier.")},
        }
    OUT.mkdir(exist_ok=True)
    state = dict(masked_lm.state_dict())
    state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    state["roberta.embeddings.position_ids"] = torch.arange(config.max_position_embeddings)[None]
    state |= {
        f"roberta.{k}": v for k, v in RobertaModel(config).state_dict().items() if k.startswith("pooler.")
    }
    torch.save(state, OUT / "pytorch_model.bin")
    span = RobertaForQuestionAnswering(RobertaConfig(**SIZES)).eval()
    span.roberta.load_state_dict(masked_lm.roberta.state_dict())
    with torch.no_grad():
        logits = span(input_ids, attention_mask)
    expected |= {"qa_start": logits.start_logits, "qa_end": logits.end_logits}
    expected["qa_head"] = {k: v for k, v in span.state_dict().items() if k.startswith("qa_outputs.")}
    torch.save(expected, OUT / "expected.pt")
    (OUT / "config.json").write_text(json.dumps({"model_type": "roberta", **SIZES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
