"""Many HUT adapters on one base, in one batch: python many.py --adapters A B … --predict-file F …

HUT scales and shifts element by element, so each example i of a batch can have vectors of its adapter w_i:

    h_i = ((x_i ⊙ m_A[w_i]) × W_0) ⊙ (gamma ⊙ m_B)[w_i] + (b + beta)[w_i]

At rank 1, fLoRA (Wen & Chaudhuri, 2023, arXiv 2312.05677) is this without the shift.
"""

import time
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from tqdm import tqdm

from adapter import EVAL_BATCH, load, named
from arguments import Parser, check_out_file, run_as_script
from data import UserError, glue, table
from data.batching import Tokens, sorted_batches
from device import autocast
from hut import HUTLinear
from weights import read_adapter


class ManyHUT(nn.Module):
    """The HUTLinears of N adapters: x (B, L, d) -> h (B, L, k). m_A is (N, d), scale and shift are (N, k)."""

    def __init__(self, layer, adapters):
        super().__init__()
        self.weight, found = layer.weight, []
        for tensors in adapters:
            one = HUTLinear(layer.weight, layer.bias, tensors["M_A"].shape[1])
            one.load_state_dict(tensors, strict=False)  # all but W_0 and b
            found.append([vector.detach() for vector in one.vectors()])
        self.m_A, self.scale, self.shift = (nn.Parameter(torch.stack(t)) for t in zip(*found, strict=True))

    def forward(self, x):
        m_A, scale, shift = (t[self.which][:, None] for t in (self.m_A, self.scale, self.shift))
        h = nn.functional.linear((x * m_A).to(x.dtype), self.weight)
        return torch.addcmul(shift, h, scale).to(h.dtype)


class Many(nn.Module):
    """A RobertaClassifier that has been through apply_hut, with the adapters and heads of `files` in it.

    files  what read_adapter returns; all have the model's base and layers
    """

    def __init__(self, model, files):
        super().__init__()
        self.model, self.layers = model, []
        self.heads = [part_of(file["head"], "classifier.") for file in files]
        for name, layer in model.named_modules():
            if isinstance(layer, HUTLinear):
                self.layers.append(ManyHUT(layer, [part_of(file["adapter"], f"{name}.") for file in files]))
                model.set_submodule(name, self.layers[-1])

    def forward(self, ids, mask, which):
        """Each example's logits (num_labels,), by its adapter `which` (B,). Other heads are not touched."""
        for layer in self.layers:
            layer.which = which
        x, logits = self.model.pooled(self.model.roberta(ids, mask), mask), [None] * len(ids)
        for i in set(which.tolist()):
            rows, head = (which == i).nonzero()[:, 0], {n: t.to(x.device) for n, t in self.heads[i].items()}
            for row, one in zip(rows, functional_call(self.model.classifier, head, x[rows]), strict=True):
                logits[row] = one
        return logits


def part_of(tensors, start):
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def opened(paths, model=None, device=None):
    """(Many, the first adapter's Predictor, each one's task); UserError unless all are HUT's on one base."""
    files = [read_adapter(path, "train_glue.py") for path in paths]
    alike = ("pool", "max_len")
    about = [(f["base"][:12], sorted(f["adapter"]), *map(f["config"].get, alike)) for f in files]
    for path, file, own in zip(paths, files, about, strict=True):
        if file["method"] != "hut" or own != about[0]:
            expected = f"expected hut, and base, --targets, --pool and --max-len as of {paths[0]}"
            raise UserError(f"{path}: {file['method']} on base {own[0]}…: {expected}")
    first = load(paths[0], model, device)
    tasks = [table.task_of(Namespace(**file["config"], task=file["task"])) for file in files]
    return Many(first.model, files), first, tasks


def main():
    parser, file = Parser(description=__doc__.splitlines()[0]), {"required": True, "metavar": "FILE"}
    column, add = file | {"metavar": "COLUMN"}, parser.add_argument
    add("--adapters", nargs="+", help="adapter.pt files, in folders of different names", **file)
    add("--predict-file", help="a table", **file)
    add("--text", nargs="+", help="its one or two texts", **column)
    add("--which", help="the name of each row's adapter folder", **column)
    add("--out-file", help="the same rows, with columns: predicted, probability", **file)
    add("--model", help="where the base is, if that has moved")
    add("--device", help="(default: cuda if there is one)")
    args = parser.parse_args()
    check_out_file(args)
    names, path = [Path(one).resolve().parent.name for one in args.adapters], args.predict_file
    if len(set(names)) < len(names):
        raise UserError(f"--adapters: files in {' '.join(names)}: expected folders of different names")
    (many, first, tasks), new = opened(args.adapters, args.model, args.device), ("predicted", "probability")
    if any(len(task.texts) != len(args.text) for task in tasks):
        raise UserError(f"--text: {len(args.text)} column(s): expected what each adapter reads")
    rows, known = table.read(path, (*args.text, args.which), new), table.place_in(names)
    which = torch.tensor([table.cell(path, line, row, args.which, known) for line, row in rows])
    texts = [[table.cell(path, line, row, one) for one in args.text] for line, row in rows]
    ids = glue.encode(first.tokenizer, [glue.Example(*pair) for pair in texts], first.args.max_len)
    tokens, started = Tokens(ids, first.model.config.pad_token_id, first.on[0]), time.time()
    with torch.no_grad(), autocast(*first.on):
        for batch in tqdm(sorted_batches(tokens.lengths, EVAL_BATCH), path, disable=None, leave=False):
            for i, logits in zip(batch, many(*tokens(batch), which[batch].to(first.on[0])), strict=True):
                rows[i][1].update(zip(new, *named(tasks[which[i]], logits[None].float().cpu()), strict=True))
    print(f"{len(rows):,} rows by {len(names)} adapters, {len(rows) / (time.time() - started):,.0f} a second")
    table.write(args.out_file, [row for _, row in rows])


if __name__ == "__main__":
    run_as_script(main)
