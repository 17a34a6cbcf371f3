"""The device and dtype of a run, and what the run uses: peak memory, and a GPU's energy."""

import contextlib
import math
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from data import UserError
from model import first_line

P_0 = 0.25  # kW: what a GPU draws at full utilisation, by the paper's assumption
QUERY = ("--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits", "--loop-ms=1000")


def pick_device(name, dtype):
    """(torch.device, dtype of the arithmetic): what was asked for, or the defaults that --help names."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name:
        try:
            device = torch.device(name)
            torch.zeros(1, device=device).item()  # a meta device has no values
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f"--device {name}: not available ({first_line(error)})") from None
    if dtype is None:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if fast else "float32"
    torch.backends.cudnn.allow_tf32 = dtype != "float32"  # which READ's RNNs would take for float32
    return device, getattr(torch, dtype)


def autocast(device, dtype):
    """The frozen model's arithmetic in `dtype`; parameters keep theirs."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device):
    """Bytes: the peak of the GPU's allocator, or the most this process has held."""
    status = Path("/proc/self/status")
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+)", status.read_text())):
        return int(peak[1]) * 1024  # Linux; its ru_maxrss would count the process that started this one
    # gVisor's Linux has no VmHWM; the unit is KiB, but on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Meter:
    """Samples a GPU with nvidia-smi, each second from now on; `kwh` is what it has used so far.

    "utilisation"  E = U p_0 / 6000, U the sum over minutes of the utilisation in percent (READ, eqs. 15, 16)
    "power"        the integral over the power that the GPU says it draws

    A sample stands for the time since the one before. None where nothing is measured: without a GPU, without
    nvidia-smi, or where the GPU reports none.
    """

    def __init__(self, gpu):
        self.kwh, self.process, self.started = {"utilisation": None, "power": None}, None, time.time()
        self.waiting = False  # for the first sample
        if gpu is None:
            return
        try:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            self.process = subprocess.Popen(["nvidia-smi", f"--id={gpu}", *QUERY], **pipes)
        except OSError:
            return
        self.total, self.last, self.waiting = {"utilisation": 0.0, "power": 0.0}, time.monotonic(), True
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        for line in self.process.stdout:
            now = time.monotonic()
            minutes, self.last = (now - self.last) / 60, now
            kwh_a_unit = {"utilisation": minutes * P_0 / 6000, "power": minutes / 60 / 1000}  # of %, of W
            for (name, factor), text in zip(kwh_a_unit.items(), [*line.split(","), ""], strict=False):
                used = math.nan  # which a sum keeps, where the GPU does not say: [N/A]
                with contextlib.suppress(ValueError):
                    used = float(text)
                self.total[name] += factor * used
            self.kwh = {name: None if math.isnan(kwh) else kwh for name, kwh in self.total.items()}
            self.waiting = False

    def stop(self):
        if self.process:
            self.process.terminate()
            self.thread.join()


def gpu_of(device):
    """nvidia-smi's name of a torch device, which it may number differently; None for a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None
