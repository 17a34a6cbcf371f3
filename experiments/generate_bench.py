"""How fast `GPT2.generate` is: beside transformers.generate, on the same weights, prompts and settings.

    python -m experiments.bench generate

Where transformers is not installed, only the first is measured.
"""

import statistics
from functools import partial
from importlib.util import find_spec

import torch

from experiments.measure import in_transformers, in_turn, machine, ratio
from experiments.tables import markdown
from model import GPT2, GPT2Config

LAYERS, WIDTH, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 512, 16, 40, 40
BEAMS = 10
SETTINGS = {"length_penalty": 0.9, "no_repeat_ngram_size": 4}


def with_transformers(reference, prompts):
    """Completions of prompts (B, P), as model.generate has them: without the prompt and the end token."""
    end, mask = reference.config.eos_token_id, torch.ones_like(prompts)
    options = SETTINGS | {"num_beams": BEAMS, "do_sample": False, "max_new_tokens": NEW_TOKENS}
    found = reference.generate(prompts, attention_mask=mask, pad_token_id=end, **options)
    texts = [[*text, end] for text in found[:, PROMPT_TOKENS:].tolist()]
    return [text[: text.index(end)] for text in texts]


def generate_table(args):
    """Decodes with random weights, ten times as large as usual: so the beams differ and are reordered."""
    torch.manual_seed(0)
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": WIDTH // 64, "n_positions": 128}
    model = GPT2(GPT2Config(**sizes, initializer_range=0.2)).to(args.device).eval()
    prompts = torch.randint(model.config.vocab_size, (PROMPTS, PROMPT_TOKENS), device=args.device)
    ways = {"model.py": partial(model.generate, prompts.tolist(), NEW_TOKENS, beam_size=BEAMS, **SETTINGS)}
    if find_spec("transformers"):
        reference = in_transformers(model, "AutoModelForCausalLM").eval()
        ways["transformers"] = partial(with_transformers, reference, prompts)
    found, rows = in_turn(ways, args.rounds, args.device), []
    for way, times in found.items():
        seconds = statistics.median(times)
        rows.append([way, f"{seconds:.2f}", f"{PROMPTS / seconds:.2f}", ratio(found, [*ways][-1], way)])
    print(
        f"GPT-2 of {LAYERS} layers × {WIDTH}, {PROMPTS} prompts × {PROMPT_TOKENS} tokens, {NEW_TOKENS} new, "
        f"{BEAMS} beams, {machine(args.device)}; median of {args.rounds} rounds\n"
    )
    print(markdown(["", "seconds", "sequences/s", "times as fast"], rows))
    ours, *others = (way() for way in ways.values())
    for theirs in others:
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        print(f"\ncompletions that are equal, token for token: {equal} of {PROMPTS}")
