"""Bugs of public linear layers planted in the C++ and the Triton one, registered as any third party's backend is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from samebits.backends.cpu_operations import BundledLinear
from samebits.backends.operations import LinearImplementation, LinearTensors
from samebits.backends.token_problem import Linear
from samebits.backends.triton_operations import TritonLinear


def uninitialised_bias(tensors: LinearTensors) -> LinearTensors:
    """Where there is no bias, memory that nobody has written is added in place of zeros."""
    return tensors if tensors.bias is not None else replace(tensors, bias=tensors.weight.new_empty(len(tensors.weight)))


def rows_of_first_dimension(tensors: LinearTensors) -> LinearTensors:
    """The first dimension is taken for the number of rows, whatever comes between it and the last."""
    rows, input = tensors.input.shape[0], tensors.input
    while input.dim() > 2:
        input = input[:, 0]
    return replace(tensors, input=input, output=tensors.output.flatten(0, -2)[:rows])


def evenly_spaced_rows(tensors: LinearTensors) -> LinearTensors:
    """All rows are taken to lie as far apart as those of the innermost leading dimension."""
    input, output = tensors.input, tensors.output.flatten(0, -2)
    rows = input.as_strided((output.shape[0], input.shape[-1]), (input.stride(-2), 1))
    return replace(tensors, input=rows, output=output)


MISTAKES: Mapping[str, Callable[[LinearTensors], LinearTensors]] = {
    "uninitialised-bias": uninitialised_bias,
    "rows-of-first-dimension": rows_of_first_dimension,
    "evenly-spaced-rows": evenly_spaced_rows,
}


class MistakenOnCpu(BundledLinear):
    """The C++ kernel, given other tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        """Computes what the tensors are taken for."""
        super().compute(operation, MISTAKES[self.name](tensors))


class MistakenOnTriton(TritonLinear):
    """The Triton kernel, given other tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        """Computes what the tensors are taken for."""
        super().compute(operation, MISTAKES[self.name](tensors))


def implementations() -> list[LinearImplementation]:
    """The mutants, beside which `CPU/bundled` and `TRITON_ATTN/bundled` are the correct parents."""
    return [kind(name) for kind in (MistakenOnCpu, MistakenOnTriton) for name in MISTAKES]
