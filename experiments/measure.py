"""How the benchmarks measure: calls in turn, the memory of a process of its own, a GPU's energy."""

import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from math import ceil
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from device import Meter, gpu_of, peak_memory, synchronise

CLEAR_REFS = Path("/proc/self/clear_refs")
MEMORY = ("peak memory, MiB", "after the imports")  # the columns that `memory` fills
METERED = 10  # seconds: the meter takes a sample each second


def in_turn(calls, rounds, device, times=1):
    """{name: seconds that a call takes, one number a round}, for {name: a function without arguments}.

    A round runs each function `times` times, one function after another. A first round does not count.
    """
    found = {name: [] for name in calls}
    for number in range(1 + rounds):
        for name, call in calls.items():
            each = seconds(call, times, device)
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
    """MEMORY's cells, from a new process that calls make() and then `times` times what make() has returned.

    The peak is that of the calls. What make() itself needs for a moment does not count.
    """
    return [f"{size / 2**20:.0f}" for size in alone(device, make, times)[1:]]


def alone(device, make, times):
    """As `memory`, but numbers: the median seconds of a call, bytes at the peak, bytes after the imports."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_alone, device, make, times).result()


def _alone(device, make, times):
    first = nn.Linear(1, 1, device=device)
    first(torch.ones(1, 1, device=device)).backward()
    torch.optim.AdamW(first.parameters()).step()  # torch imports more of itself with the first step
    before = peak_memory(device)
    call = make()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # the peak starts again from what is held
    each = statistics.median(seconds(call, 1, device) for _ in range(times))
    peak = peak_memory(device)
    return each, peak, peak - before


def joules(call, device):
    """{measure of device.Meter: J that a call takes, or None}, from METERED seconds of calls."""
    gpu = gpu_of(device)
    if gpu is None:
        return Meter(None).kwh
    each = seconds(call, 3, device)
    seconds(call, ceil(2 / each), device)  # the meter looks back
    started, meter = time.monotonic(), Meter(gpu)
    each = seconds(call, ceil(METERED / each), device)
    meter.stop()
    return {key: kwh and kwh * 3.6e6 * each / (meter.last - started) for key, kwh in meter.kwh.items()}


def machine(device):
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def in_transformers(model, class_name):
    """A model of transformers with the weights of `model`, on its device."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        theirs = getattr(transformers, class_name).from_pretrained(directory)
    return theirs.to(next(model.parameters()).device)
