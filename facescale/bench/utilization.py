"""How busy a CUDA device is while a block runs, by nvidia-smi; None where there is no such device or no nvidia-smi.

Called by facescale.bench.gpu.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PERIOD_MS = 200


class DeviceMeter:
    """Samples the device's utilization; use it as a context manager.

    Args:
        device: a CPU has none.
        command: prints a whole number of percent a line until it is killed; None for nvidia-smi.
    """

    def __init__(self, device: torch.device, command: list[str] | None = None) -> None:
        self._command = command or _nvidia_smi(device)
        self._samples: list[int] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> DeviceMeter:
        if self._command is not None:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def restart(self) -> None:
        """Forget what was sampled so far."""
        self._samples.clear()

    @property
    def busy(self) -> float | None:
        """Mean share of time in which a kernel ran, 0..1; None without samples."""
        return sum(self._samples) / len(self._samples) / 100 if self._samples else None

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdecimal():
                self._samples.append(int(line))


def _nvidia_smi(device: torch.device) -> list[str] | None:
    path = shutil.which("nvidia-smi") if device.type == "cuda" else None
    if path is None:
        return None
    what = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return [path, "-i", _smi_id(device), *what, "-lms", str(_PERIOD_MS)]


def _smi_id(device: torch.device) -> str:
    """The device as nvidia-smi knows it: CUDA_VISIBLE_DEVICES renumbers what this process sees."""
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
