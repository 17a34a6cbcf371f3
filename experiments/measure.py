"""How the benchmarks measure: calls in turn, the memory of a process of its own, that of shapes alone."""

import statistics
import time
import weakref
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from device import peak_memory, synchronise

CLEAR_REFS = Path("/proc/self/clear_refs")
MEMORY = ("peak memory, MiB", "after the imports")  # the columns that `memory` fills


def in_turn(makers, rounds, device, times):
    """{name: seconds of a call, one number a round}, for {name: a function that makes the call}.

    A round runs each call `times` times, one call after another; the first round does not count. A GPU holds
    one at a time: there a call is made anew for each round, and runs once more before.
    """
    gpu, found = device.type == "cuda", {name: [] for name in makers}
    made = {} if gpu else {name: make() for name, make in makers.items()}
    for number in range(1 + rounds):
        for name, make in makers.items():
            call = made.get(name) or make()
            if gpu:
                call()
            each = seconds(call, times, device)
            del call
            if number > 0:
                found[name].append(each)
    return found


def seconds(call, times, device):
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / times


def ratio(found, name, base):
    """A cell: the median over the rounds of one call's time over another's in the same round."""
    return f"{statistics.median(a / b for a, b in zip(found[name], found[base], strict=True)):.3f}"


def memory(device, make, times):
    """MEMORY's cells, of `alone`."""
    return [f"{size / 2**20:.0f}" for size in alone(device, make, times)[1:]]


def alone(device, make, times):
    """A new process calls make() and then `times` times what that has returned.

    -> the median seconds of a call, bytes at the calls' peak, how many of them came after the imports. What
    make() itself needs for a moment does not count.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            return process.submit(_alone, device, make, times).result()
        except BrokenExecutor:
            raise MemoryError("the system ended the process") from None


def _alone(device, make, times):
    first = nn.Linear(1, 1, device=device)
    first(torch.ones(1, 1, device=device)).backward()
    torch.optim.AdamW(first.parameters()).step()  # torch imports more of itself with the first step
    before, call = peak_memory(device), make()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # the peak starts again from what is held
    each = statistics.median(seconds(call, 1, device) for _ in range(times))
    peak = peak_memory(device)
    return each, peak, peak - before


class OnGPU(TorchFunctionMode):
    """What a GPU keeps for the backward pass, on a CPU: dropout's mask in bytes, of attention no weights."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        options = kwargs or {}
        if function is F.dropout and options["training"]:
            return torch.native_dropout(*args, options["p"], True)[0]
        if function is F.scaled_dot_product_attention:
            options = dict(zip(("attn_mask", "dropout_p", "is_causal"), args[3:], strict=False)) | options
            args, options["dropout_p"] = args[:3], 0.0
        return function(*args, **options)


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if id(storage) not in self.alive:
                self._count(id(storage), size := storage.nbytes())
                weakref.finalize(storage, self._count, id(storage), -size)
        return out

    def _count(self, number, size):
        self.alive ^= {number}
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_of_shapes(make):
    """Bytes: the most that a GPU holds in make() and two of its calls. Nothing is computed."""
    with FakeTensorMode(), OnGPU(), Held() as held:
        call = make()
        call()
        call()
    return held.peak


def machine(device):
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
