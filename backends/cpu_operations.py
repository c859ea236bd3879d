"""The CPU's operations on tokens: samebits' own C++ kernels, and torch."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from samebits.backends import torch_operations
from samebits.backends.operations import (
    CacheWriteImplementation,
    CacheWriteTensors,
    LinearImplementation,
    LinearTensors,
    MergeImplementation,
    MergeTensors,
    RmsNormImplementation,
    RmsNormTensors,
    RotaryImplementation,
    RotaryTensors,
    TokenImplementation,
)
from samebits.backends.subject import Availability, Claims, GraphSupport, KnownGap, Subject, Tiling
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding
from samebits.backends.torch_operations import OnTorch
from samebits.kernels.cpu import linear, rms_norm
from samebits.kernels.cpu.amx import has_amx
from samebits.kernels.cpu.build import SOURCE_DIRECTORY, BuildError, load_library
from samebits.kernels.cpu.cache_write import write_cache
from samebits.kernels.cpu.merge import merge_states
from samebits.kernels.cpu.rotary import rotate

BACKEND = "CPU"


def _invariant(source: str) -> Claims:
    """The claims of every kernel of ours, by the reason that its source gives, which follows the source's name."""
    return Claims(
        batch_invariant=True,
        schedule_invariant=True,
        thread_invariant=True,
        cuda_graph=GraphSupport.ALWAYS,
        source=f"kernels/cpu/{source}",
    )


class Bundled(Subject):
    """What samebits' own C++ kernels compute, compiled on first use.

    Args:
        source_directory: where their sources are.
    """

    backend = BACKEND
    name = "bundled"

    def __init__(self, source_directory: Path = SOURCE_DIRECTORY) -> None:
        self._source_directory = source_directory
        self._loaded: ctypes.CDLL | None = None

    def probe(self) -> Availability:
        """Compiles the kernels, unless this machine has done so before, and loads them."""
        try:
            self._library()
        except BuildError as error:
            return Availability(reason=str(error))
        return Availability(version=importlib.metadata.version("samebits"))

    def _library(self) -> ctypes.CDLL:
        if self._loaded is None:
            self._loaded = load_library(self._source_directory)
        return self._loaded


class BundledRotary(Bundled, RotaryImplementation):
    """Rotary embedding, token by token."""

    claims = _invariant("rotary.cpp: a pair of elements and its cosine and sine alone enter the result")

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Launches the kernel on torch's number of threads."""
        rotate(
            self._library(),
            tensors.query,
            tensors.key,
            tensors.positions,
            tensors.cos_sin_cache,
            interleaved=operation.interleaved,
            inverse=operation.inverse,
        )


class BundledCacheWrite(Bundled, CacheWriteImplementation):
    """A cache write, token by token."""

    claims = _invariant("cache_write.cpp: copies")

    def compute(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        """Launches the kernel on torch's number of threads."""
        write_cache(
            self._library(),
            tensors.key,
            tensors.value,
            tensors.key_cache,
            tensors.value_cache,
            tensors.slot_mapping,
        )


class BundledMerge(Bundled, MergeImplementation):
    """A merge of partial results, row by row."""

    claims = _invariant("merge.cpp: a row of each side alone enters")

    def compute(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """Launches the kernel on torch's number of threads."""
        merge_states(
            self._library(),
            tensors.prefix_output,
            tensors.prefix_lse,
            tensors.suffix_output,
            tensors.suffix_lse,
            tensors.output,
            tensors.lse,
        )


class BundledLinear(Bundled, LinearImplementation):
    """A linear layer that sums in one order, whatever the number of rows.

    Args:
        source_directory: where its sources are.
        amx: whether bf16 is multiplied by AMX, which it then must be possible to; None for wherever it is.
    """

    claims = _invariant(
        "linear.cpp: chunks at fixed positions, or the whole row, each from zero, added in ascending order"
    )
    tiling = Tiling(query_tile=linear.ROW_TILE)

    def __init__(self, source_directory: Path = SOURCE_DIRECTORY, amx: bool | None = None) -> None:
        super().__init__(source_directory)
        self._amx = has_amx() if amx is None else amx
        self.configuration = {
            "chunk": str(linear.CHUNK),
            "accumulator": "fp32",
            "bf16 products": "amx" if self._amx else "fma",
        }

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        """Launches the kernel on torch's number of threads."""
        linear.linear(self._library(), tensors.input, tensors.weight, tensors.bias, tensors.output, amx=self._amx)


class BundledRmsNorm(Bundled, RmsNormImplementation):
    """A normalisation that sums squares in one order, row by row."""

    claims = _invariant("rms_norm.cpp: chunks at fixed positions, each from zero, added in ascending order")
    configuration = MappingProxyType({"chunk": str(rms_norm.CHUNK), "accumulator": "fp32"})

    def compute(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        """Launches the kernel on torch's number of threads."""
        rms_norm.rms_norm(self._library(), tensors.input, tensors.weight, tensors.output, operation.epsilon)


class TorchLinear(OnTorch, LinearImplementation):
    """`torch.nn.functional.linear`, which promises nothing of the batch: its libraries choose a kernel by the rows."""

    # In bfloat16 oneDNN multiplies what lies behind a row that fills no tile by 0, and 0 * NaN is NaN.
    claims = Claims(ignores_unread_memory=False, source="torch.nn.functional.linear declares none")
    configuration = MappingProxyType({"api": "torch.nn.functional.linear"})
    # What lies behind a row is the next token's row.
    known_gaps = tuple(
        KnownGap("docs/backends.md, oneDNN reads the next row", relation=relation, dtype="bf16", always=False)
        for relation in ("seen_nan", "seen_inf")
    )

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        """Computes and copies to the output."""
        # Of three dimensions and more that are not contiguous, torch rounds the product before it adds the bias.
        rows = tensors.input.flatten(0, -2)
        tensors.output.flatten(0, -2).copy_(torch.nn.functional.linear(rows, tensors.weight, tensors.bias))


class TorchRmsNorm(OnTorch, RmsNormImplementation):
    """`torch.nn.functional.rms_norm`: on the CPU it computes in float32 and rounds once."""

    claims = Claims(source="torch.nn.functional.rms_norm declares none")
    configuration = MappingProxyType({"api": "torch.nn.functional.rms_norm"})

    def compute(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        """Computes and copies to the output."""
        normalised = torch.nn.functional.rms_norm(tensors.input, (operation.size,), tensors.weight, operation.epsilon)
        tensors.output.copy_(normalised)


def operations() -> Sequence[TokenImplementation[Any, Any]]:
    """What the CPU backend offers beside attention."""
    return [
        BundledRotary(),
        BundledCacheWrite(),
        BundledMerge(),
        BundledLinear(),
        BundledRmsNorm(),
        *torch_operations.operations(BACKEND, "cpu"),
        TorchLinear(BACKEND, "cpu"),
        TorchRmsNorm(BACKEND, "cpu"),
    ]
