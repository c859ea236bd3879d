"""What this machine is. A platform decides which backends can run, not a package's metadata."""

from __future__ import annotations

import functools
import importlib
import platform as host
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from samebits.backends.target import supposed_target

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Platform:
    """The accelerator of this machine, or its processor.

    Attributes:
        kind: `cuda`, `rocm` or `cpu`.
        device: torch device type that its kernels compute on: `cuda` for ROCm too, as torch names it.
        name: what decides bits: the accelerator's model, or the processor's instruction set.
    """

    kind: str
    device: str
    name: str


def accelerator() -> Platform:
    """The accelerator where there is one, else the processor; inside `supposing`, the device that is supposed."""
    target = supposed_target()
    return Platform(target.kind, "cuda", target.name) if target else _present_accelerator()


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of an accelerator: programs that it runs at once, at the least.

    Args:
        device: the accelerator; inside `supposing` whatever stands for it.
    """
    target = supposed_target()
    if target:
        return target.multiprocessors
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def compute_capability() -> tuple[int, int] | None:
    """Compute capability of the NVIDIA GPU that kernels are compiled for; None where they are for something else."""
    target = supposed_target()
    if target:
        return divmod(int(target.name.removeprefix("sm_")), 10) if target.kind == "cuda" else None
    return torch.cuda.get_device_capability() if accelerator().kind == "cuda" else None


def nvidia_reason(library: str, least: tuple[int, int], most: tuple[int, int] | None = None) -> str:
    """Why this machine's accelerator cannot run a library for NVIDIA GPUs, as one sentence; empty where it can.

    The arguments are those of `capability_reason`.
    """
    kind = accelerator().kind
    if kind != "cuda":
        return f"{library} runs on NVIDIA GPUs, and this machine computes on {kind}"
    return capability_reason(library, least, most)


def capability_reason(library: str, least: tuple[int, int], most: tuple[int, int] | None = None) -> str:
    """Why this machine's NVIDIA GPU cannot run a library, as one sentence; empty where it can.

    Args:
        library: what it is called.
        least: compute capability that it needs at least.
        most: the last one that it runs on; None for any.
    """
    found = torch.cuda.get_device_capability()
    if found < least or (most is not None and found > most):
        needed = f"{least[0]}.x" if most is not None else f"{'.'.join(map(str, least))} or newer"
        return f"{library} needs compute capability {needed}, and this GPU has {'.'.join(map(str, found))}"
    return ""


@functools.cache
def _present_accelerator() -> Platform:
    if torch.cuda.is_available():
        kind = "rocm" if torch.version.hip else "cuda"
        return Platform(kind=kind, device="cuda", name=torch.cuda.get_device_name())
    return processor()


@functools.cache
def processor() -> Platform:
    """The processor, named by what torch, MKL and oneDNN dispatch on: its vendor, architecture and instruction sets."""
    facts = _processor_facts()
    # x86 names its vendor, Arm a number of the implementer's.
    vendor = facts.get("vendor_id") or facts.get("cpu implementer") or "unknown"
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    capability = torch.backends.cpu.get_cpu_capability().lower()
    extensions = sorted(flags & {"amx_bf16", "avx512_bf16", "avx512_fp16", "bf16", "sve"})
    return Platform(kind="cpu", device="cpu", name="+".join([f"{vendor} {host.machine()}", capability, *extensions]))


def _processor_facts() -> dict[str, str]:
    """What Linux says of the first processor, by names in lower case; nothing on other systems."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().lower(), value.strip())
    return facts


def import_or_reason(module_name: str) -> tuple[ModuleType | None, str]:
    """Imports exactly what will be called, and says why that failed.

    An optional library can fail to import in any way: absent, half installed, built for another ABI, shadowed by
    another distribution of the same name. Each becomes a sentence.

    Args:
        module_name: full dotted name of the module that holds the functions to be called.

    Returns:
        The module and an empty reason, or None and one sentence.
    """
    try:
        return importlib.import_module(module_name), ""
    except (Exception, SystemExit) as error:
        return None, f"importing {module_name} raised {summary_of(error)}"


def summary_of(error: BaseException) -> str:
    """An exception's type and message in one line, of the message 300 characters at most."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300] or 'no message'}"
