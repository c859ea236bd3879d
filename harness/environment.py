"""Where cells run: what besides a kernel may decide its bits."""

from __future__ import annotations

import functools
import importlib.metadata
import platform as host

import numpy as np
import torch

from samebits.backends.platform import accelerator, processor
from samebits.harness.records import Environment


@functools.cache
def environment(device_type: str) -> Environment:
    """The environment of implementations that compute on a device.

    Args:
        device_type: torch's, for example `cpu` or `cuda`.
    """
    platform = processor() if device_type == "cpu" else accelerator()
    versions = {
        "numpy": np.__version__,
        "python": host.python_version(),
        "samebits": importlib.metadata.version("samebits"),
        "torch": torch.__version__,
        "triton": _version("triton"),
    }
    if platform.kind == "cuda":
        versions["driver"] = str(torch.cuda.driver_version()) if hasattr(torch.cuda, "driver_version") else "unknown"
    if platform.kind == "rocm":
        versions["hip"] = str(torch.version.hip)
    return Environment(device=f"{platform.kind} {platform.name}", versions=versions, threads=torch.get_num_threads())


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
