"""Whether bfloat16 is multiplied by AMX, the matrix unit of Intel's processors from 2023 on."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

from samebits.kernels.cpu.build import BuildError, compiler_command, predefined_macros

# What amx.h asks of the compiler.
_MACROS = ("__AMX_TILE__", "__AMX_BF16__", "__AVX512BF16__", "__AVX512BW__")
# Linux on x86-64: arch_prctl, its ARCH_REQ_XCOMP_PERM, and the state of the tile registers.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


@functools.cache
def has_amx() -> bool:
    """Whether the compiler knows AMX, the processor has it, and Linux lets this process use it."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        macros = predefined_macros(tuple(compiler_command()))
    except BuildError:
        return False
    defined = {line.split()[1] for line in macros.splitlines() if line.startswith("#define ")}
    # Tile registers are saved in context switches for who has asked, for all threads of the process.
    return defined.issuperset(_MACROS) and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0
