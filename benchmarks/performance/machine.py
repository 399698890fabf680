"""What a result depends on besides the code: versions, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["machine", "versions"]

PACKAGES = ("torch", "mlflow", "numpy", "optuna", "pandas", "lrrt-stage")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that take most of the time."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the processor, its cores, the threads that were used, and the GPU if one was used."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": _cpu(), "cores": os.cpu_count(), "threads": threads, "gpu": gpu}


def _cpu() -> str:
    """Return the model of the processor, which Python itself does not say on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
