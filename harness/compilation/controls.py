"""Kernels of which it is known what must be found: that they do not compile, do not fit their device, or spill."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from samebits.backends.subject import Availability
from samebits.backends.target import TARGETS
from samebits.backends.token_problem import Linear
from samebits.harness.compilation.cases import COMPILES, CompiledSubject, KernelCase
from samebits.harness.compilation.compiler import Compilation, compile_launched
from samebits.harness.controls.kernels import Control
from samebits.harness.matrix import Flaw

_MODULE = "samebits.harness.compilation.control_kernels"
# Enough for what every kernel would read, were it run.
_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class KernelFlaw(Flaw):
    """What is wrong with a kernel.

    Attributes:
        case: the kernel, in `control_kernels`, and the device for which it is wrong.
        tensors: dtypes of the tensors that it takes.
        flawed, sound: its other arguments and launch options, by name: those that make it wrong, and others.
        spills: whether that it spills is what is wrong with it; otherwise it does not compile, or does not fit.
    """

    case: KernelCase = field(kw_only=True)
    tensors: tuple[torch.dtype, ...] = field(kw_only=True)
    flawed: Mapping[str, int] = field(kw_only=True)
    sound: Mapping[str, int] = field(kw_only=True)
    spills: bool = field(default=False, kw_only=True)


def _case(kernel: str, target: str) -> KernelCase:
    """A kernel that stands in for that of the linear layer."""
    return KernelCase(Linear.operation, "tokens", kernel, TARGETS[target], tier="smoke")


KERNEL_FLAWS = (
    *(
        KernelFlaw(
            f"unknown_type_{target}",
            COMPILES.name,
            f"converts to a type of 8 bits that {target} has not",
            case=_case("conversion_kernel", target),
            tensors=(torch.float32,),
            flawed={"UNKNOWN_TYPE": True},
            sound={"UNKNOWN_TYPE": False},
        )
        for target in ("gfx942", "gfx950")
    ),
    *(
        KernelFlaw(
            f"too_much_shared_{target}",
            COMPILES.name,
            f"compiles, with tiles in flight that fill the shared memory of {target} several times over",
            case=_case("product_kernel", target),
            tensors=(torch.bfloat16, torch.bfloat16, torch.float32),
            flawed={"DEPTH": 128, "ALL": 4096, "num_stages": 8},
            sound={"DEPTH": 32, "ALL": 4096, "num_stages": 2},
        )
        for target in ("sm_90", "gfx942")
    ),
    *(
        KernelFlaw(
            f"spilling_{target}",
            COMPILES.name,
            "holds more values in one warp than it has registers",
            case=_case("recurrence_kernel", target),
            tensors=(torch.float32, torch.float32),
            flawed={"SIZE": size, "num_warps": 1},
            sound={"SIZE": 1024, "num_warps": 4},
            spills=True,
        )
        # Twice 128 values a thread where it has 255 registers; twice 256 where it has 512, and the addresses besides.
        for target, size in (("sm_90", 4096), ("gfx942", 16384))
    ),
)


class ControlKernel(Control, CompiledSubject):
    """A kernel of the harness's own, with what is wrong with it or without.

    Attributes:
        spills: whether it is about spills.
    """

    def __init__(self, flaw: KernelFlaw, sound: bool = False) -> None:
        self._flaw = flaw
        self.spills = flaw.spills
        self.flaw = None if sound else flaw
        self.name = f"{flaw.name}_mended" if sound else flaw.name
        self.configuration = {name: str(value) for name, value in (flaw.sound if sound else flaw.flawed).items()}

    @property
    def parent(self) -> ControlKernel:
        """The same kernel with other arguments."""
        return ControlKernel(self._flaw, sound=True)

    def probe(self) -> Availability:
        """Whether Triton is here."""
        try:
            triton = importlib.import_module("triton")
        except ImportError as error:
            return Availability(reason=f"importing triton raised ImportError: {error}")
        return Availability(version=triton.__version__)

    def settings(self, case: KernelCase) -> Mapping[str, str]:
        """Its arguments."""
        return self.configuration

    def compile(self, case: KernelCase, dtype: str) -> Compilation:
        """Compiles the kernel."""
        flaw = self._flaw
        arguments = flaw.flawed if self.flaw else flaw.sound

        def launch() -> None:
            kernel = getattr(importlib.import_module(_MODULE), case.kernel)
            kernel[(1,)](*(torch.empty(_ELEMENTS, dtype=tensor) for tensor in flaw.tensors), **arguments)

        return compile_launched(launch, case.kernel, case.target)
