"""What the benchmarks share: how long a call takes, variants in turn, and the memory of a process of its own."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from training import peak_memory

CLEAR_REFS = Path("/proc/self/clear_refs")


def seconds(call, times, device):
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / times


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(timers, rounds):
    """{name: seconds of each round}: every timer once a round, after a round that does not count."""
    found = {name: [] for name in timers}
    for count in range(rounds + 1):
        for name, timer in timers.items():
            seconds = timer()
            if count:
                found[name].append(seconds)
    return found


def ratio(found, name, base):
    """The median over the rounds of one variant's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))


def machine(device):
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{name}, torch {torch.__version__}"


def memory(*which):
    """The peak memory of a process of its own, and what of it came after the imports, in MiB: two cells of a table."""
    command = [sys.executable, "-m", "experiments.bench", *sys.argv[1:], *which]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def print_memory(device, make, run):
    """What `memory` reads: run(make()), with what making the model takes for a moment aside."""
    first = nn.Linear(1, 1, device=device)
    first(torch.ones(1, 1, device=device)).backward()
    torch.optim.AdamW(first.parameters()).step()  # torch imports more of itself with the first step
    before = peak_memory(device)
    made = make()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # the peak starts again from what is held
    run(made)
    peak = peak_memory(device)
    print(f"{peak / 2**20:.0f} | {(peak - before) / 2**20:.0f}")
