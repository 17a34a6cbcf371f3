"""Every method that can be trained, a row each: how it is put in, where it merges, its sizes and rates.

A new method is its layers and a function beside them, as in hut.py or baselines.py, and a row here. Every
script, experiment and test that goes over the methods finds it by its row.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import baselines
from hut import HUTLinear, apply_hut
from read.lst import apply_lst
from read.network import CELLS, WIDTH, apply_read

ENCODER, DECODER, T5 = LAYOUTS = ("encoder", "decoder", "encoder-decoder")  # a model's LAYOUT


class Method(NamedTuple):
    """A row. Sizes and rates go by the model's layout, the paper's entries by task.

    put_in   (model, r=…, **what it takes) -> the model, frozen, head and all, with the method in it
    source   the paper that the method is from
    lr       {layout: peak learning rate}, ours; the method goes into models of these layouts and no others
    mini     {layout or task: the rate on the bundled models}
    r        {layout: size}, the paper's; a method without a size takes no --r
    takes    {argument of put_in besides r: its default}; OPTIONS describes the arguments
    merges   the layouts in which its layers' `to_linear` gives plain weights that compute the same
    paper    {task or task:r: (lr, batch size, epochs)}: the paper's Tables 6 and 7; the rest is the task's
    head_lr  the head's rate, if the method's own is not for a dense layer
    max_len  tokens of GLUE's texts, if not the paper's 512
    """

    put_in: Callable
    source: str
    lr: dict
    mini: dict
    r: dict = {}
    takes: dict = {}
    merges: tuple = ()
    paper: dict = {}
    head_lr: float | None = None
    max_len: int | None = None


OPTIONS = {
    "targets": {"help": "layers to adapt: letters of qkvoud"},
    "cell": {"choices": CELLS, "help": "untied: a GRU for each layer, without recurrency"},
    "start": {"choices": ("zero", "random"), "help": "U's start: the frozen model, or the library's default"},
    "unscaled": {
        "action": "store_true", "default": None,
        "help": "add a T5's correction as Algorithm 1 prints it, not in proportion to what it corrects",
    },
    "drop_last": {"type": int, "metavar": "N", "help": "leave out the last N blocks, of a T5 on both sides"},
    "frozen_seed": {
        "type": int,
        "help": "seed of what is random and frozen; one for all runs, so that adapters can be mixed",
    },
}  # fmt: skip

QV, RANDOM = {"targets": "qv"}, {"targets": "qv", "frozen_seed": 0}

METHODS = {
    "hut": Method(
        apply_hut, "Zhang, Zhou & Chen, 2024, equations 8 to 10",
        lr={ENCODER: 5e-3, DECODER: 2e-3, T5: 1e-3},
        mini={ENCODER: 1e-2, "squad": 4e-2, DECODER: 5e-2, T5: 2.5e-2},
        r={ENCODER: 8, DECODER: 4, T5: 8}, takes=QV,
        merges=(ENCODER, DECODER),  # a T5 has no place for beta
        paper={
            "sst2": (1e-4,), "mrpc": (5e-3,), "cola": (1e-3,), "qnli": (2e-4,), "rte": (2e-3,),
            "stsb": (5e-3,), "e2e": (2e-3,),
            "mnli": (2e-4,), "qqp": (2e-4,), "wnli": (2e-3,), "squad": (2e-4,),  # ours: the paper has none
        },
    ),
    "read": Method(
        apply_read, "Nguyen, Wang, Li & Wu, 2023, Algorithm 1",
        lr=dict.fromkeys(LAYOUTS, 1e-3), mini={ENCODER: 3e-3, DECODER: 5e-3, T5: 5e-3},
        r=dict.fromkeys(LAYOUTS, WIDTH),
        takes={"cell": "gru", "start": "zero", "unscaled": False, "drop_last": 0},
    ),
    "head": Method(
        baselines.apply_nothing, "the head alone, the floor",
        lr={ENCODER: 5e-3}, mini={ENCODER: 1e-2}, merges=(ENCODER,),
    ),
    "frozen": Method(
        baselines.apply_nothing, "the model as it is, scored without training",
        lr={DECODER: None}, mini={DECODER: None}, merges=(DECODER,),
    ),
    "full": Method(
        baselines.apply_full, "every weight",
        lr={ENCODER: 5e-5, DECODER: 5e-5, T5: 1e-4}, mini={ENCODER: 5e-4, DECODER: 1e-3, T5: 1e-3},
        merges=LAYOUTS,
    ),
    "top2": Method(
        baselines.apply_top2, "Li & Liang, 2021",
        lr={ENCODER: 1e-4, DECODER: 1e-4}, mini={ENCODER: 1.5e-3, DECODER: 2e-3}, merges=(ENCODER, DECODER),
    ),
    "bitfit": Method(
        baselines.apply_bitfit, "Ben Zaken, Ravfogel & Goldberg, 2022, section 3",
        lr=dict.fromkeys(LAYOUTS, 1e-3), mini={ENCODER: 5e-3, DECODER: 2.5e-2, T5: 2.5e-2}, merges=LAYOUTS,
    ),
    "houlsby": Method(
        baselines.apply_houlsby, "Houlsby et al., 2019, section 2.1",
        lr=dict.fromkeys(LAYOUTS, 5e-4), mini={ENCODER: 1.2e-3, DECODER: 1e-2, T5: 2.5e-3},
        r={ENCODER: 64, DECODER: 112, T5: 64}, max_len=128,
        paper={
            "sst2": (3e-4, 32, 5), "mrpc": (3e-4, 32, 10), "cola": (3e-4, 32, 10),
            "qnli": (3e-4, 32, 5), "rte": (3e-4, 32, 20), "stsb": (3e-4, 32, 10),
        },
    ),
    "pfeiffer": Method(
        baselines.apply_pfeiffer, "Pfeiffer et al., 2021",
        lr={ENCODER: 5e-4, DECODER: 5e-4}, mini={ENCODER: 2.5e-3, DECODER: 1e-2},
        r={ENCODER: 64, DECODER: 64}, max_len=128,
        paper={
            "sst2": (3e-5, 32, 20), "mrpc": (3e-4, 32, 20), "cola": (3e-4, 32, 20),
            "qnli": (3e-4, 32, 10), "rte": (3e-4, 32, 20), "stsb": (3e-4, 32, 20), "sst2:16": (3e-4, 32, 20),
        },
    ),
    "lin": Method(
        baselines.apply_lin, "Lin, Madotto & Fung, 2020",
        lr={ENCODER: 5e-4, DECODER: 5e-4}, mini={ENCODER: 2.5e-3, DECODER: 1e-2}, r={ENCODER: 6, DECODER: 6},
    ),
    "prefix": Method(
        baselines.apply_prefix, "Li & Liang, 2021",
        lr={ENCODER: 5e-3, DECODER: 5e-3}, mini={ENCODER: 8e-3, DECODER: 1e-1}, r={ENCODER: 7, DECODER: 7},
    ),
    "lora": Method(
        baselines.apply_lora, "Hu et al., 2022, equation 3",
        lr=dict.fromkeys(LAYOUTS, 5e-4), mini={ENCODER: 2.5e-3, DECODER: 1e-2, T5: 2.5e-3},
        r={ENCODER: 8, DECODER: 4, T5: 32}, takes=QV, merges=LAYOUTS,
        max_len=128,  # as LoRA's authors have it; the paper prints 16, which would cut the texts
        paper={
            "sst2": (4e-4, 4, 10), "mrpc": (3e-4, 4, 20), "cola": (2e-4, 4, 20),
            "qnli": (2e-4, 4, 10), "rte": (4e-4, 4, 20), "stsb": (2e-4, 4, 10),
        },
    ),
    "vera": Method(
        baselines.apply_vera, "Kopiczko, Blankevoort & Asano, 2024, equation 2",
        lr={ENCODER: 1e-2, DECODER: 1e-2}, mini={ENCODER: 1.5e-2, DECODER: 2.5e-1},
        r={ENCODER: 256, DECODER: 1024}, takes=RANDOM, merges=(ENCODER, DECODER), head_lr=5e-3,
    ),
    "fourierft": Method(
        baselines.apply_fourierft, "Gao et al., 2024, section 3.1",
        lr={ENCODER: 5e-2, DECODER: 5e-2}, mini={ENCODER: 3e-2, DECODER: 1.0},
        r={ENCODER: 1000, DECODER: 1000}, takes=RANDOM, merges=(ENCODER, DECODER), head_lr=5e-3,
    ),
    "prompt": Method(
        baselines.apply_prompt, "Lester, Al-Rfou & Constant, 2021",
        lr={T5: 3e-3}, mini={T5: 1e-1}, r={T5: 20},
    ),
    "lst": Method(apply_lst, "Sung, Cho & Bansal, 2022", lr={T5: 1e-3}, mini={T5: 1e-3}),
}  # fmt: skip


def methods_of(layout):
    return [name for name, row in METHODS.items() if layout in row.lr]


def settings(method, task, layout, shared, mini=None, r=None):
    """What a run takes where its command leaves it open: {setting: value}.

    That is the paper's entry for this method, `r` and task where it has one, else the method's rate, and the
    rest from `shared`: the task's and the script's settings. `mini` has those of the bundled model and data.
    """
    row = METHODS[method]
    own = row.takes | {"r": row.r.get(layout), "lr": row.lr[layout]}
    if mini is not None:
        return shared | own | mini | {"lr": row.mini.get(task, row.mini[layout])}
    if row.head_lr and layout == ENCODER:
        own["head_lr"] = row.head_lr
    if task in row.paper and layout != T5:  # the paper has no T5
        printed = row.paper.get(f"{task}:{r}", row.paper[task])
        own |= dict(zip(("lr", "batch_size", "epochs"), printed, strict=False))
    return shared | own


def adapt(model, method, given):
    """`model` with a method in it; everything else is frozen, but for the head.

    given  {argument: value}, a command line's or an adapter file's; what is missing takes the row's default
    READ and LST return another object with the same layers. Raises ValueError as the row's function does.
    """
    known, plain = methods_of(model.body.LAYOUT), {type(module) for module in model.modules()}
    if method not in known:
        raise ValueError(f"method '{method}': expected one of {' '.join(known)}")
    if hasattr(model, "adapted_by"):
        raise ValueError(f"the model holds {model.adapted_by} already: a model is adapted once")
    row = METHODS[method]
    arguments = {name: given.get(name, default) for name, default in row.takes.items()}
    if row.r:
        arguments["r"] = given.get("r", row.r[model.body.LAYOUT])
    model = row.put_in(model, **arguments)
    if not plain >= {type(module) for module in model.modules()}:
        model.adapted_by = method
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name.startswith(model.HEAD))
    return model


# What a layer only multiplies by, or adds to the product: {class: names}. A class that is not here keeps its
# tensors in float32, as FourierFT, which builds a weight from W_0.
FACTORS = {
    nn.Linear: ("weight", "bias"),
    HUTLinear: ("weight",),
    baselines.LoRA: ("weight", "bias"),
    baselines.VeRA: ("weight", "bias", "A", "B"),
}


def store(model, dtype):
    """Stores the frozen FACTORS in `dtype`, to which autocast would cast them at each use; -> the model.

    Under autocast to `dtype` it computes the same, bit for bit. It can't be merged: that takes float32.
    """
    shared = {}
    for module in model.modules():
        for name in FACTORS.get(type(module), ()):
            tensor = getattr(module, name)
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                setattr(module, name, nn.Parameter(tensor.to(dtype), requires_grad=False))
            elif name in dict(module.named_buffers()):  # which layers may share
                setattr(module, name, shared.setdefault(tensor, tensor.to(dtype)))
    return model


def merge(model, method):
    """A copy of `model` with plain layers. ValueError where no plain weights compute the same."""
    check_merges(method, model.body.LAYOUT)
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError("merging needs the frozen weights in float32: `store` has rounded them")
    merged = copy.deepcopy(model).requires_grad_(False)
    for name, module in model.named_modules():
        if hasattr(module, "to_linear"):
            merged.set_submodule(name, module.to_linear().requires_grad_(False))
    return merged


def check_merges(method, layout):
    if layout not in METHODS[method].merges:
        raise ValueError(
            f"--method {method} does not merge: no weights of the plain {layout} compute the same"
        )
