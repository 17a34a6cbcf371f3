"""What a training run takes of a GPU's energy: estimated from its utilisation, as in the READ paper, and as metered."""

import math
import subprocess
import threading
import time

import torch

P_0 = 0.25  # kW: the power that the paper takes a GPU to draw at full utilisation
QUERY = ("--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits", "--loop-ms=1000")


class Meter:
    """Samples a GPU with nvidia-smi, each second from now on; `kwh` is what it has taken so far.

    "utilisation"  E = U p_0 / 6000, with U the sum over minutes of the utilisation in percent (READ, equations 15, 16)
    "power"        the integral over the power that the GPU says it draws

    A sample stands for the time since the one before. None where nothing is measured: without a GPU, without
    nvidia-smi, or where the GPU does not tell.
    """

    def __init__(self, gpu):
        self.kwh, self.process, self.started = {"utilisation": None, "power": None}, None, time.time()
        if gpu is None:
            return
        try:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            self.process = subprocess.Popen(["nvidia-smi", f"--id={gpu}", *QUERY], **pipes)
        except OSError:
            return
        self.total, self.last = {"utilisation": 0.0, "power": 0.0}, time.monotonic()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        for line in self.process.stdout:
            now = time.monotonic()
            minutes, self.last = (now - self.last) / 60, now
            kwh_a_unit = {
                "utilisation": minutes * P_0 / 6000,
                "power": minutes / 60 / 1000,
            }  # of percent, of W
            for (name, factor), text in zip(kwh_a_unit.items(), line.split(","), strict=False):
                self.total[name] += factor * told(text)
            self.kwh = {name: None if math.isnan(kwh) else kwh for name, kwh in self.total.items()}

    def stop(self):
        if self.process:
            self.process.terminate()
            self.thread.join()


def told(text):
    """The number in `text`; not-a-number, which a sum keeps, where the GPU does not tell ([N/A])."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def gpu_of(device):
    """nvidia-smi's name of a torch device, which it may number otherwise; None for a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None
