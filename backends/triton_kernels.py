"""Our Triton kernels found and loaded: compiled where there is a GPU, interpreted where there is none."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from samebits.backends.platform import import_or_reason
from samebits.backends.subject import Availability


def probe_kernels(kernels: str, device: str) -> Availability:
    """Imports Triton, and a module of kernels as they will be run.

    Args:
        kernels: name of the module.
        device: torch device type; the kernels are interpreted on `cpu`.
    """
    needed = ["triton.language", kernels]
    if device == "cpu":
        needed.insert(1, "samebits.backends.triton_interpreter")
    for name in needed:
        _, reason = import_or_reason(name)
        if reason:
            return Availability(reason=reason, device=device)
    triton_version = importlib.import_module("triton").__version__
    version = f"{importlib.metadata.version('samebits')}+triton{triton_version}"
    return Availability(version=version, device=device)


def load_kernels(kernels: str, device: str) -> ModuleType:
    """A module of kernels, ready to launch. See `probe_kernels` for the arguments."""
    if device != "cpu":
        return importlib.import_module(kernels)
    # Imported here, as it imports Triton, which may be missing.
    from samebits.backends.triton_interpreter import import_interpreted

    return import_interpreted(kernels)


def next_power_of_two(size: int) -> int:
    """The smallest power of 2 that is at least `size`: what each side of a kernel's tile must be."""
    return 1 << (size - 1).bit_length()
