"""What the tests of data and scripts share: a tiny checkpoint with a tokenizer, a tiny CoLA, train_glue.py
in this process, how a script fails.
"""

import http.server
import json
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import train_glue
from arguments import run_as_script
from read.t5 import T5Config
from run import Run

torch.set_num_threads(1)  # the models of these tests are too small for two, which would wait for each other

WORDS = [
    "the",
    "a",
    "dog",
    "cat",
    "girl",
    "boy",
    "sees",
    "sleeps",
    "runs",
    "hears",
    ".",
    "red",
    "small",
    "old",
    "and",
]
# published models, of which only the base size is in the code
T5_SMALL = T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8)
T5_LARGE = T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16)
T5_3B = T5Config(d_model=1024, d_ff=16384, num_layers=24, num_heads=32, d_kv=128)
LABELS = ["acceptable", "unacceptable"]  # CoLA's, as T5 writes them


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tests/reference/roberta, as a directory with a tokenizer.json of whole words."""
    directory = tmp_path_factory.mktemp("tiny") / "roberta"
    shutil.copytree(Path(__file__).parent / "reference" / "roberta", directory)
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """tests/reference/t5, as a directory with a tokenizer.json of whole words."""
    directory = tmp_path_factory.mktemp("tiny") / "t5"
    shutil.copytree(Path(__file__).parent / "reference" / "t5", directory)
    words = ["<pad>", "</s>", "<unk>", *WORDS, "cola", "sentence", ":", *LABELS]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def tiny_glue(tmp_path):
    """A folder with CoLA/train.tsv (40 rows), dev.tsv (12) and test.tsv: a sentence is right if it ends in a
    full stop.
    """
    folder = tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)

    def sentence(i):
        words = f"the {WORDS[7 + i % 2]} {WORDS[2 + i % 4]} {WORDS[6 + i % 4]}"
        return f"{words} {'small ' * (i % 5)}{'.' if i % 3 else 'and'}"

    rows = [f"made\t{int(i % 3 > 0)}\t{'' if i % 3 else '*'}\t{sentence(i)}\n" for i in range(52)]
    (folder / "train.tsv").write_text("".join(rows[:40]))
    (folder / "dev.tsv").write_text("".join(rows[40:]))
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(f"{i}\t{sentence(i)}\n" for i in range(5)))
    return folder.parent


@pytest.fixture
def glue(monkeypatch):
    """train_glue.py in this process: glue("--task", …)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_glue.py", *map(str, arguments)])
        train_glue.main()

    return call


@pytest.fixture
def server(monkeypatch):
    """A local HTTP server; files[name] = (bytes, Content-Length to claim). Its address is yielded with the
    dict.
    """
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = files.get(self.path.strip("/"), (None, 0))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/", files
        httpd.shutdown()


def fails(capsys, main, *arguments):
    """The one line on standard error of a script that ends with status 2."""

    def script():
        main(*arguments)

    with pytest.raises(SystemExit) as exit_:
        run_as_script(script)
    line = capsys.readouterr().err
    assert exit_.value.code == 2 and line.count("\n") == 1 and line.startswith("error: "), line
    return line


def with_states(model, *inputs):
    """(what a model returns, [the output of each block]), seen from outside."""
    states = []
    blocks = getattr(model, "body", model).blocks
    hooks = [block.register_forward_hook(lambda m, i, output: states.append(output)) for block in blocks]
    found = model(*inputs)
    for hook in hooks:
        hook.remove()
    return found, states


def with_t5_states(model, *inputs):
    """(logits, the states of the `encoder`'s and the `decoder`'s blocks, and cross-attention's weights)."""
    logits, states = with_states(model, *inputs)
    of_decoder = [(x, weights) for x, weights in states if weights is not None]
    decoder, cross = zip(*of_decoder, strict=True)
    encoder = [x for x, weights in states if weights is None]
    return logits, SimpleNamespace(encoder=encoder, decoder=decoder, cross=cross)


def clip_keeps_hut_in_place(monkeypatch, script, out, *arguments):
    """Runs `script` with a --clip far below AdamW's epsilon. HUT then stays at its start, 0 and 1; and no
    gradient is left when a step is counted.
    """
    advance, kept = Run.advance, []

    def watched(run, *given):
        kept.extend(p for p in run.model.parameters() if p.grad is not None)
        advance(run, *given)

    monkeypatch.setattr(Run, "advance", watched)
    script(*arguments, "--clip", 1e-12)
    tensors = torch.load(out / "adapter.pt", weights_only=True)["adapter"].values()
    assert not kept and all((tensor - tensor.round()).abs().max() < 1e-4 for tensor in tensors)


def without_timing(folder):
    """What a run promises to be the same again: metrics, result, tensors."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    for entry in (result, *rows):
        del entry["timing"]
    tensors = {}
    for name in ("adapter.pt", "adapter-last.pt"):
        content = torch.load(folder / name, weights_only=True)
        tensors |= {f"{name} {key}": t for part in ("adapter", "head") for key, t in content[part].items()}
    return rows, result, {key: t.numpy().tobytes() for key, t in tensors.items()}
