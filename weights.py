"""A method's weights: in the model that they are trained in, in their file, and merged."""

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from data import UserError, as_user_error
from data.hub import copy_tokenizer
from hut import copy_tensors
from methods import OPTIONS, adapt, merge, store
from model import load_file, write_file, writing

KEYS = ("method", "config", "task", "base", "adapter", "head")
SEARCH = {
    "beam_size": 10, "length_penalty": 0.9, "no_repeat_ngram": 4,  # the paper's Table 7
    "ngram_scope": "completion", "max_new_tokens": 64,  # LoRA's decoder's, as the paper leaves them open
}  # fmt: skip
CHOSEN = ("model", "max_len", "doc_stride", *SEARCH)  # may differ where an adapter is used
# what "config" holds of a script's arguments
RECORDED = ("seed", "r", *OPTIONS, "pool", "text", "label", "labels", *CHOSEN)
LARGEST_DIFFERENCE = 1e-3  # of a logit, merged − unmerged, in float32

# ---- the model


def prepare(args, model_class, directory, device, dtype=torch.float32, **options):
    """(the model on `device`, frozen and with args.method in it; the fingerprint of its base).

    Frozen matrices are in `dtype`, that of the arithmetic, or for merging in float32. A head that the
    checkpoint does not have, and all that is trained, are drawn from args.seed, in float32.
    """
    torch.manual_seed(args.seed)
    if pool := getattr(args, "pool", None):  # train_glue.py has it
        options["pool"] = pool
    with as_user_error():
        model = model_class.from_pretrained(directory, **options)
        base = fingerprint(model)
        model = store(adapt(model.to(device), args.method, vars(args)), dtype)
    if device.type == "cuda":  # the copy in float32 was needed for a moment only
        torch.cuda.reset_peak_memory_stats(device)
    if args.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = args.dropout
    if vars(args).get("init_adapter"):
        load_adapter(args.init_adapter, args, model, base, with_head=False)
    return model, base


def trained(args, model_class, directory, device, dtype=torch.float32, **options):
    """The model of --adapter, or of the run in args.out, with its tensors, in eval mode; see `prepare`."""
    dtype = torch.float32 if vars(args).get("export") else dtype
    model, base = prepare(args, model_class, directory, device, dtype, **options)
    load_adapter(args.adapter or args.out / "adapter.pt", args, model, base)
    return model.eval()


def fingerprint(model):
    """sha256 over the names, shapes and bytes of a plain model's tensors, the head's left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(model.HEAD):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def trainable(model):
    """(adapter, head): the trainable parameters by name."""
    adapter, head = {}, {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            (head if name.startswith(model.HEAD) else adapter)[name] = p
    return adapter, head


def count(tensors):
    return sum(t.numel() for t in tensors)


# ---- files


def write_adapter(path, args, model, base):
    """Writes what `load_adapter` reads: the trained tensors, and which model they go into."""
    config = {key: value for key, value in vars(args).items() if key in RECORDED}
    if config.get("model", "mini") != "mini" and Path(args.model).is_dir():
        config["model"] = os.path.abspath(args.model)  # for a process that is somewhere else
    content = {"method": args.method, "config": config, "task": args.task, "base": base}
    for key, part in zip(("adapter", "head"), trainable(model), strict=True):
        content[key] = {name: p.detach().cpu() for name, p in part.items()}
    save(path, content)


def read_adapter(path, *scripts):
    """An adapter file's dict, with the "script" that made it. UserError if `scripts`, if any, lack it."""
    found = read_dict(path, *KEYS)
    script = {"e2e": "train_e2e.py", "squad": "train_squad.py"}.get(found["task"])
    found["script"] = script or ("train_glue.py" if found["head"] else "train_read.py")
    if scripts and found["script"] not in scripts:
        made = f"made by {found['script']} for {found['task']}"
        raise UserError(f"{path}: {made}: expected an adapter of {' or '.join(scripts)}")
    return found


def load_adapter(path, args, model, base, with_head=True):
    """Copies an adapter file's tensors into `model`, which `prepare` has made with the fingerprint `base`."""
    found = read_adapter(path)
    if found["method"] != args.method:
        raise UserError(f"{path}: made with --method {found['method']}, not {args.method}")
    if found["base"] != base:
        known = f"{found['base'][:12]}…, this one is {base[:12]}…"
        raise UserError(f"{path}: made on another base checkpoint ({known}): name that with --model")
    for key in () if with_head else ("frozen_seed", "unscaled"):  # which no tensor's name or shape tells
        if (made := found["config"].get(key) or 0) != (given := vars(args).get(key) or 0):
            raise UserError(f"{path}: made with --{key.replace('_', '-')} {made}, not {given}: give the same")
    adapter, head = trainable(model)
    with as_user_error(f"{path}: "):
        copy_tensors(found["adapter"], adapter)
        if with_head:
            copy_tensors(found["head"], head)


def save(path, content):
    write_file(path, lambda file: torch.save(content, file))


def read_dict(path, *keys):
    """The dict saved at `path`. UserError, naming the file, if it is damaged or lacks one of `keys`."""
    try:
        with as_user_error():
            content = load_file(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: not a file of this program: it has no '{key}'")
    return content


# ---- merging


def export(args, model, directory, logits, examples, **config):
    """Writes the merged model to --export in HuggingFace's layout, if its logits are the unmerged one's.

    directory  the checkpoint whose tokenizer goes with it
    logits     a function of a model: its logits in float32 on the development set, batch by batch
    examples   what these are of, in words
    config     entries for config.json
    """
    plain, folder = merge(model, args.method).eval(), Path(args.export)
    model.eval()
    with torch.no_grad():
        pairs = zip(logits(model), logits(plain), strict=True)
        largest = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    print(f"largest logit difference, merged − unmerged, on {examples}: {largest:.2e}")
    if not largest <= LARGEST_DIFFERENCE:
        raise UserError(f"--export: above {LARGEST_DIFFERENCE:g}; nothing was written")
    plain.save_pretrained(folder, **config)
    with writing(folder):
        copy_tokenizer(directory, folder)
    print(f"{folder}: the merged model, in HuggingFace's layout")
