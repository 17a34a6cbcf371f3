"""One run of several processes: torchrun --nproc-per-node N -- train_glue.py --task cola --r 8

Each takes its share of every batch. A step's loss is a sum over its examples (or tokens) divided by their
number in all the processes, so the sum of their gradients is what one process computes. Only the first
writes and prints; energy is not measured. On several machines --out must be on a disk that all see.
"""

import contextlib
import os
import sys
from datetime import timedelta

import torch
from torch import distributed

from data import UserError
from model import first_line


def start():
    """Joins the others, where torchrun has started this process."""
    if not distributed.is_torchelastic_launched() or distributed.is_initialized():
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if 0 < gpus <= local:
        raise UserError(f"--nproc-per-node: this machine has {gpus} GPUs (CUDA_VISIBLE_DEVICES= hides them)")
    if gpus:
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def size():
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank():
    return distributed.get_rank() if distributed.is_initialized() else 0


def first():
    return rank() == 0


def leave():
    """Ends the common work; true for the first process, which goes on alone."""
    was_first = first()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return was_first


def together(operation, *given):
    """Calls an operation of torch.distributed. UserError if another process is no longer there."""
    try:
        operation(*given)
    except RuntimeError as error:
        raise UserError(f"another process of this run has ended ({first_line(error)})") from None


def gathered(found):
    """[what each process has found]"""
    parts = [found] * size()
    if size() > 1:
        together(distributed.all_gather_object, parts, found)
    return parts


def mine(items):
    """This process's share."""
    return items[rank() :: size()]


def share(group):
    """This process's share of each batch, where it has one."""
    return [own for batch in group if (own := mine(batch))]


def in_shares(work, items):
    """work(items), a list with an entry an item, of which each process computes its share."""
    found, own = [None] * len(items), mine(items)
    for i, part in enumerate(gathered(work(own) if own else [])):
        found[i :: size()] = part
    return found


def all_reduce(optimizer, losses):
    """Adds up all gradients, in place, and `losses`, in one message; -> [the step's loss]."""
    if size() == 1:
        return losses
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts.append(sum(losses, parts[0].new_zeros(1)))
    flat = torch.cat([part.flatten() for part in parts])
    together(distributed.all_reduce, flat)
    for p, part in zip(parameters, flat.split([part.numel() for part in parts]), strict=False):
        p.grad = part.view_as(p)
    return [flat[-1].clone()]  # kept for a while, unlike the buffer


def any_of(flag):
    """Whether `flag` is true in any process; they wait for each other here."""
    if size() > 1:
        found = torch.tensor(float(flag))
        together(distributed.all_reduce, found)
        return found.item() > 0
    return flag


@contextlib.contextmanager
def first_then_others():
    """The first process runs the block, say to write a file, before the others do."""
    if not first():
        any_of(False)
    yield
    if first():
        any_of(False)
