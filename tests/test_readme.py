"""README.md and RESULTS.md: names are there, tables are tables. (.ci/run runs both commands.)"""

import copy
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
pages = pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])


def test_what_is_named_in_a_file_is_there():
    """Would catch: `hut.py` `HUTLinear` after the class has another name."""
    found = re.findall(r"`([\w/]+\.py)` `(\w+)`", README)
    assert len(found) > 5
    for file, name in found:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*((def|class) {name}\b|{name} = )", text, re.M), f"{file} has no {name}"


class Sentences(torch.nn.Module):
    """Stands for transformers' RoBERTa: layers of these names, some without a bias, as in Llama."""

    def __init__(self):
        super().__init__()
        self.query, self.key = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.value, self.classifier = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.query(x) * self.key(x) + self.value(x))


def test_the_snippet_for_transformers_runs(tmp_path, monkeypatch):
    """Would catch: a name that is not imported, a head that is not trained, saved or loaded; a wrong merge.

    The module in transformers' place is the smallest that has its layers.
    """
    (snippet,) = re.findall(r"```python\n(import torch\nfrom transformers.*?)```", README, re.S)
    torch.manual_seed(0)
    made, x = Sentences(), torch.randn(5, 4)
    bare = copy.deepcopy(made)
    auto = SimpleNamespace(from_pretrained=lambda name: made)
    module = SimpleNamespace(AutoModelForSequenceClassification=auto)
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.chdir(tmp_path)

    def train(model):
        named = dict(model.named_parameters())
        trained = {name for name, parameter in named.items() if parameter.requires_grad}
        assert {name.split(".")[0] for name in trained} == {"query", "value", "classifier"}
        assert {"classifier.weight", "query.M_A", "value.beta"} <= trained
        assert not {"query.weight", "query.bias", "key.weight"} & trained
        with torch.no_grad():
            for name in trained:
                named[name].add_(torch.randn_like(named[name]), alpha=0.1)

    before, loop, after = snippet.partition("...  # your training loop\n")
    saving, loading, rest = after.partition("saved = ")
    names = {"train": train}
    exec(f"{before}train(model)\n{saving}", names)
    expected, made = names["model"](x), bare
    assert loop and not torch.allclose(expected, bare(x))
    names["model"] = names["apply_hut"](bare, r=8, targets=["query", "value"])  # another process
    exec(loading + rest, names)
    torch.testing.assert_close(names["model"](x), expected)
    torch.testing.assert_close(names["merged"](x), expected)
    assert {type(m) for m in names["merged"].children()} == {torch.nn.Linear}


@pages
def test_files_that_are_named_exist(page):
    """Would catch: a file that was renamed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|md))`", text) + re.findall(r"\]\(((?!http)[^)]+)\)", text)
    for name in [
        *named,
        *(f"{module.replace('.', '/')}.py" for module in re.findall(r"-m (experiments\.\w+)", text)),
    ]:
        assert (ROOT / name).exists(), name


@pages
def test_tables_have_as_many_cells_a_row_as_in_their_header(page):
    """Would catch: a table that GitHub shows as text."""
    width = 0
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        assert not (width and cells) or cells == width, f"{page}:{number}"
        width = cells
