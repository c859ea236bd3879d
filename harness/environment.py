"""Where cells run: what besides a kernel may decide its bits."""

from __future__ import annotations

import functools
import importlib.metadata
import platform as host
import subprocess
from collections.abc import Mapping

import numpy as np
import torch

from samebits.backends.platform import Platform, accelerator, processor
from samebits.harness.records import Environment


def environment(device_type: str) -> Environment:
    """The environment of implementations that compute on a device, with as many threads as torch uses now.

    Args:
        device_type: torch's, for example `cpu` or `cuda`.
    """
    platform = processor() if device_type == "cpu" else accelerator()
    device = f"{platform.kind} {platform.name}"
    return Environment(device=device, versions=_versions(platform), threads=torch.get_num_threads())


@functools.cache
def _versions(platform: Platform) -> Mapping[str, str]:
    versions = {
        "numpy": np.__version__,
        "python": host.python_version(),
        "samebits": importlib.metadata.version("samebits"),
        "torch": torch.__version__,
        "triton": _version("triton"),
    }
    if platform.kind == "cuda":
        versions["driver"] = _nvidia_driver()
    if platform.kind == "rocm":
        versions["hip"] = str(torch.version.hip)
    return versions


def _nvidia_driver() -> str:
    """The driver's version, which torch does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip() or "unknown"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
