"""Devices that are not here: what kernels are compiled for ahead of time, and the scope in which they seem to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A kind of device, by what decides the code of a kernel and whether that code can be launched.

    Attributes:
        name: the architecture's, for example `sm_90`.
        kind: `cuda` or `rocm`, as `Platform.kind` has it.
        warp_size: threads of a warp.
        shared_bytes: shared memory that one program may have.
        multiprocessors: of the device that kernels are mostly launched on; heuristics of launches ask for it.
    """

    name: str
    kind: str
    warp_size: int
    shared_bytes: int
    multiprocessors: int


# Shared memory: CUDA C++ Programming Guide, "Compute Capabilities", 227 KiB for 9.0; AMD's CDNA 3 and CDNA 4 white
# papers, 64 and 160 KiB of LDS for each compute unit. Multiprocessors: H100 SXM, MI300X, MI355X.
_TARGETS = (
    Target("sm_90", "cuda", warp_size=32, shared_bytes=227 << 10, multiprocessors=132),
    Target("gfx942", "rocm", warp_size=64, shared_bytes=64 << 10, multiprocessors=304),
    Target("gfx950", "rocm", warp_size=64, shared_bytes=160 << 10, multiprocessors=256),
)
TARGETS: Mapping[str, Target] = {target.name: target for target in _TARGETS}

_SUPPOSED: ContextVar[Target | None] = ContextVar("samebits_supposed_target", default=None)


def supposed_target() -> Target | None:
    """The device that implementations are to take for this machine's; None for the one that is there."""
    return _SUPPOSED.get()


@contextmanager
def supposing(target: Target) -> Iterator[None]:
    """Lets `accelerator()` and `multiprocessors()` tell of a device that is not here.

    An implementation that is made inside launches what it would launch there. Its tensors lie in host memory, so
    nothing may run: see `samebits.harness.compilation`, which compiles what is launched.
    """
    token = _SUPPOSED.set(target)
    try:
        yield
    finally:
        _SUPPOSED.reset(token)
