"""How fast `GPT2.generate` is beside transformers.generate: the same weights, prompts and settings, outputs compared.

    python -m experiments.bench generate

Where transformers is not importable, beside the same search with every token computed again at every step.
"""

import statistics
import tempfile
import time

import torch

from model import GPT2, GPT2Config, GPT2Decoder, beam_search

LAYERS, WIDTH, PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 512, 16, 40, 40
SETTINGS = {"length_penalty": 0.9, "no_repeat_ngram_size": 4}
BEAMS = 10


class WithoutCache(GPT2Decoder):
    """The same three functions by plain re-computation: each beam is a text of its own, read from its first token."""

    def __init__(self, model, prompts):
        self.model, self.texts = model, torch.stack(prompts)[:, None]  # (B, 1, P), then (B, K, P + n)

    def start(self):
        B, K, _ = self.texts.shape
        return self.model(self.texts.flatten(0, 1), where=self._last()).unflatten(0, (B, K))

    def step(self, tokens, parents):
        self.texts = torch.cat(
            [torch.take_along_dim(self.texts, parents[..., None], 1), tokens[..., None]], 2
        )
        return self.start()

    def keep(self, rows):
        self.texts = self.texts[rows]

    def _last(self):
        last = torch.zeros_like(self.texts.flatten(0, 1), dtype=torch.bool)
        last[:, -1] = True
        return last


@torch.inference_mode()
def generate_without_cache(model, prompts, end_token):
    prompts = torch.tensor(prompts, device=model.word.weight.device)
    decoder = WithoutCache(model, list(prompts))
    ngram_size, penalty = SETTINGS["no_repeat_ngram_size"], SETTINGS["length_penalty"]
    return beam_search(decoder, prompts, NEW_TOKENS, end_token, ngram_size, BEAMS, penalty)


def generate_with_transformers(reference, prompts, end_token):
    prompts = torch.tensor(prompts, device=reference.device)
    options = {
        "num_beams": BEAMS,
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": end_token,
    }
    mask = torch.ones_like(prompts)
    found = reference.generate(prompts, attention_mask=mask, eos_token_id=end_token, **options, **SETTINGS)
    texts = [[*text, end_token] for text in found[:, prompts.shape[1] :].tolist()]
    return [text[: text.index(end_token)] for text in texts]


def rival(model):
    """(name, the function that model.generate is compared with)."""
    try:
        import transformers
    except ImportError:
        return "without a cache", lambda *inputs: generate_without_cache(model, *inputs)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        reference = (
            transformers.AutoModelForCausalLM.from_pretrained(directory).to(model.word.weight.device).eval()
        )
    return f"transformers {transformers.__version__}", lambda *inputs: generate_with_transformers(
        reference, *inputs
    )


def generate_table(rounds, device, seed=0):
    """Prints the table; returns the ratio of the medians, theirs to ours. Rounds are interleaved, after a warm-up.

    The weights are random and ten times their usual size, so that the beams differ and are reordered as in
    use.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=WIDTH // 64, n_positions=128, initializer_range=0.2
    )
    model = GPT2(config).to(device).eval()
    prompts = torch.randint(config.vocab_size, (PROMPTS, PROMPT_TOKENS)).tolist()
    end = config.eos_token_id

    def ours(prompts, end_token):
        return model.generate(prompts, NEW_TOKENS, beam_size=BEAMS, end_token=end_token, **SETTINGS)

    name, theirs = rival(model)
    found = {"model.py": [], name: []}
    seconds = {"model.py": [], name: []}
    for _ in range(1 + rounds):
        for key, run in (("model.py", ours), (name, theirs)):
            start = time.perf_counter()
            found[key] = run(prompts, end)
            seconds[key].append(time.perf_counter() - start)
    median = {key: statistics.median(times[1:]) for key, times in seconds.items()}
    equal = sum(a == b for a, b in zip(found["model.py"], found[name], strict=True))
    where = (
        f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    )
    print(
        f"GPT-2 {LAYERS} × {WIDTH}, vocabulary {config.vocab_size}; {PROMPTS} prompts × {PROMPT_TOKENS} tokens, "
        f"{NEW_TOKENS} new, {BEAMS} beams; {device}, {where}, torch {torch.__version__}; median of {rounds} rounds"
    )
    print(f"{'':20} {'seconds':>8} {'sequences/s':>12} {'ratio':>6}")
    for key, value in median.items():
        print(f"{key:20} {value:8.2f} {PROMPTS / value:12.2f} {median[name] / value:6.2f}")
    print(f"completions that are equal, token for token: {equal} of {PROMPTS}")
    return median[name] / median["model.py"]
