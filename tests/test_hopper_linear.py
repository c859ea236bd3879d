"""The linear kernel for Hopper: what it is given, and, where there is one, that its bits are the portable kernel's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from samebits.backends import triton_hopper_linear
from samebits.backends.operations import LinearTensors
from samebits.backends.platform import accelerator, compute_capability
from samebits.backends.target import TARGETS, supposing
from samebits.backends.triton_hopper_linear import TILES, computes, launch_on_hopper, tile_for
from samebits.backends.triton_operations import INTERPRETED_LINEAR, TritonLinear

from .token_operations import assert_same_bits, linear_of

MULTIPROCESSORS = 132
on_hopper = pytest.mark.skipif(compute_capability() != (9, 0), reason="there is no Hopper GPU to run its kernel on")


def tensors_of(
    num_rows: int, in_features: int, out_features: int, dtype: torch.dtype = torch.bfloat16
) -> LinearTensors:
    rows, weight = torch.zeros(num_rows, in_features, dtype=dtype), torch.zeros(out_features, in_features, dtype=dtype)
    return LinearTensors(rows, weight, None, torch.zeros(num_rows, out_features, dtype=dtype))


def test_a_hopper_gpu_has_its_own_kernel_unless_another_is_asked_for() -> None:
    with supposing(TARGETS["sm_90"]):
        assert TritonLinear().on_hopper, "the kernel for Hopper was not chosen"
        others = (
            TritonLinear(on_hopper=False),
            TritonLinear(INTERPRETED_LINEAR),
            TritonLinear(kernels="samebits.kernels.triton.linear"),
        )
    with supposing(TARGETS["gfx942"]):
        assert not any(implementation.on_hopper for implementation in (*others, TritonLinear()))


def test_a_triton_without_the_kernels_language_is_told_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, triton_hopper_linear.KERNELS, None)
    with supposing(TARGETS["sm_90"]):
        assert triton_hopper_linear.KERNELS in TritonLinear().probe().reason
        assert TritonLinear(on_hopper=False).probe().available, "the portable kernel does not need it"


@pytest.mark.parametrize(
    ("num_rows", "out_features", "shape"),
    [
        (1, 4096, (64, 32)),
        (64, 4096, (64, 32)),
        (128, 4096, (64, 64)),
        (256, 4096, (64, 128)),
        (300, 6144, (64, 256)),
        (512, 4096, (128, 128)),
        (4096, 4096, (128, 256)),
        (64, 14336, (64, 128)),
        (1, 1, (64, 32)),
    ],
)
def test_a_tile_is_as_large_as_all_multiprocessors_stay_busy_with(
    num_rows: int, out_features: int, shape: tuple[int, int]
) -> None:
    tile = tile_for(num_rows, out_features, MULTIPROCESSORS)
    assert (tile.rows, tile.columns) == shape


def test_tensors_that_the_memory_accelerator_cannot_reach_are_left_to_the_portable_kernel() -> None:
    usual = tensors_of(5, 64, 16)
    assert computes(usual, row_stride=64)
    assert computes(usual, row_stride=72), "rows may be apart"
    astray = torch.zeros(5 * 64 + 1, dtype=torch.bfloat16)[1:].view(5, 64)
    left = {
        "fp32": (tensors_of(5, 64, 16, torch.float32), 64),
        "odd rows": (tensors_of(5, 68, 16), 68),
        "no features": (tensors_of(5, 0, 16), 0),
        "odd outputs": (tensors_of(5, 64, 20), 64),
        "odd stride": (usual, 68),
        "one row for all": (usual, 0),
        "rows that overlap": (usual, 32),
        "address of the input": (replace(usual, input=astray), 64),
    }
    for name, (tensors, row_stride) in left.items():
        assert not computes(tensors, row_stride), name


class Kernel:
    """Stands for a kernel of Triton's: notes its launches, each of which comes to a compiled kernel."""

    def __init__(self, name: str, launches: list[tuple[str, tuple[int, ...], int]]) -> None:
        self._name, self._launches = name, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Kernel]:
        def launch(*arguments: object, **options: object) -> Kernel:
            self._launches.append((self._name, grid, len(arguments)))
            return Kernel("compiled", self._launches)

        return launch


def test_triton_is_asked_for_a_kernel_once_for_all_that_it_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[str, tuple[int, ...], int]] = []
    monkeypatch.setattr(triton_hopper_linear, "_kernel", lambda: Kernel("asked for", launches))
    monkeypatch.setattr(triton_hopper_linear, "_COMPILED", {})
    with supposing(TARGETS["sm_90"]):
        usual = tensors_of(1, 64, 64)
        others = (
            tensors_of(1, 64, 64, torch.float16),
            replace(usual, bias=usual.weight[0]),
            tensors_of(17, 64, 64),
            tensors_of(1, 64, 8192),
        )
        for tensors in (usual, *others):
            launches.clear()
            for _ in range(2):
                launch_on_hopper(tensors, row_stride=64)
            assert [name for name, _, _ in launches] == ["asked for", "compiled"], f"launches of {tensors.output.shape}"
            assert launches[0][1:] == launches[1][1:], "the second launch is another"
        launches.clear()
        launch_on_hopper(tensors_of(16, 128, 8192), row_stride=128)
        assert [name for name, _, _ in launches] == ["compiled"], "sizes and strides are compiled for"
    parameters = importlib.import_module(triton_hopper_linear.KERNELS).linear_kernel.params
    assert launches[0][2] == len(parameters), "a compiled kernel is given all arguments, constants too"


def layers(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Rows and weights whose sums tell orders, instructions and lost bits apart."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for num_rows, in_features, out_features in ((1, 512, 264), (20, 136, 8), (70, 4160, 1000), (300, 1000, 72)):
        rows, weight = normal(num_rows, in_features), normal(out_features, in_features)
        cancelling = rows.clone()
        cancelling[:, 1::2] = -rows[:, 0::2]
        scales = torch.exp2(torch.randint(-12, 6, rows.shape, generator=generator).float())
        special = rows.clone()
        special[::3, 5], special[1::3, 7] = torch.inf, torch.nan
        of_kinds = {"normal": rows, "cancelling": cancelling, "of many scales": rows * scales, "special": special}
        of_kinds["subnormal"] = rows * (2.0**-130 if dtype == torch.bfloat16 else 2.0**-20)
        for name, kind in of_kinds.items():
            device = accelerator().device
            yield f"{name} {num_rows} x {in_features}", kind.to(device, dtype), weight.to(device, dtype)


@on_hopper
@pytest.mark.parametrize(
    ("dtype", "has_bias"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)], ids=str
)
def test_every_tile_has_the_bits_of_the_portable_kernel(
    dtype: torch.dtype, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows, weight in layers(dtype):
        bias = weight[:, 3].contiguous() if has_bias else None
        expected = linear_of(TritonLinear(on_hopper=False), rows, weight, bias)
        for tile in TILES:
            monkeypatch.setattr(triton_hopper_linear, "tile_for", lambda *_, tile=tile: tile)
            assert_same_bits(linear_of(TritonLinear(), rows, weight, bias), expected, f"{name} in {tile}")


@on_hopper
def test_rows_that_are_apart_have_the_bits_of_rows_side_by_side() -> None:
    rows, weight = (torch.randn(size, 512, device=accelerator().device).bfloat16() for size in (40, 264))
    expected = linear_of(TritonLinear(), rows, weight)
    for gap in (8, 1):
        apart = torch.full((40, 512 + gap), torch.nan, dtype=torch.bfloat16, device=rows.device)
        apart[:, :512] = rows
        assert_same_bits(linear_of(TritonLinear(), apart[:, :512], weight), expected, f"rows {gap} elements apart")
