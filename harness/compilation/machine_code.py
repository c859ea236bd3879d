"""What a compiled kernel asks of its device, read from its code: registers, spills, scratch, shared memory."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samebits.backends.target import Target

_REGISTER_BYTES = 4
# Of `cuobjdump --dump-resource-usage`: registers, and bytes of stack and of local memory, for each thread.
_CUDA_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class MachineCode:
    """A kernel compiled for a target.

    Attributes:
        digest: of the code, as it is loaded.
        resources: by name. `registers`: vector registers of each thread, those for accumulators among them.
            `scalar_registers`: of each warp, where the device has them apart. `spills`: registers kept in memory, or in
            other registers. `scratch_bytes`: memory of each thread in which spilled registers and indexed arrays lie.
            `shared_bytes`: shared memory of a program. `threads`: of a program.
    """

    digest: str
    resources: Mapping[str, int]


def read_machine_code(kernel: Any, target: Target) -> MachineCode:  # noqa: ANN401 -- Triton's, which has no types
    """Reads what `triton.compile` returned.

    Args:
        kernel: a `triton.compiler.CompiledKernel`.
        target: what it was compiled for.

    Raises:
        RuntimeError: the code does not tell what it needs.
    """
    metadata = kernel.metadata
    code, figures = _cuda(kernel) if target.kind == "cuda" else _rocm(kernel)
    figures |= {"shared_bytes": int(metadata.shared), "threads": int(metadata.num_warps) * target.warp_size}
    return MachineCode(hashlib.blake2b(code, digest_size=16).hexdigest(), figures)


def _cuda(kernel: Any) -> tuple[bytes, dict[str, int]]:  # noqa: ANN401
    import triton

    code: bytes = kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = _CUDA_USAGE.search(told)
    if found is None:
        raise RuntimeError(f"cuobjdump tells nothing of registers: {' '.join(told.split())[:200]!r}")
    registers, stack, local = map(int, found.groups())
    scratch = stack + local
    # As Triton itself counts spills, from the memory of a thread.
    return code, {"registers": registers, "spills": scratch // _REGISTER_BYTES, "scratch_bytes": scratch}


def _rocm(kernel: Any) -> tuple[bytes, dict[str, int]]:  # noqa: ANN401
    assembly: str = kernel.asm["amdgcn"]

    def figure(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly's metadata has no .{name}")
        return int(found.group(1))

    return kernel.asm["hsaco"], {
        "registers": figure("vgpr_count"),
        "scalar_registers": figure("sgpr_count"),
        "spills": figure("vgpr_spill_count") + figure("sgpr_spill_count"),
        "scratch_bytes": figure("private_segment_fixed_size"),
    }
