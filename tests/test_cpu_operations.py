"""What holds of all of the CPU's own operations on tokens: threads, instructions, interfaces, and no compiler."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import TokenTensors
from samebits.kernels.cpu import build, cache_write, linear, merge, rms_norm, rotary
from samebits.kernels.cpu.amx import has_amx

from .token_operations import BUNDLED, OPERATIONS, AnyToken, assert_same_bits, each_dtype, tensors_of

pytestmark = pytest.mark.usefixtures("one_thread")

IN_CPP = [each for each in BUNDLED if each.backend == "CPU"]
each_operation = pytest.mark.parametrize("implementation", IN_CPP, ids=lambda each: each.operation)


@pytest.fixture(scope="module")
def plain_library() -> ctypes.CDLL:
    """The kernels without the instructions that only this processor has."""
    return build.load_library(flags=(*(flag for flag in build.FLAGS if not flag.startswith(("-march", "-O"))), "-O1"))


def run_on_copies(implementation: AnyToken, tensors: TokenTensors) -> TokenTensors:
    copies = type(tensors)(**{name: tensor.clone() for name, tensor in vars(tensors).items()})
    implementation.run(OPERATIONS[implementation.operation], copies)
    return copies


def assert_same_results(left: TokenTensors, right: TokenTensors, setting: str) -> None:
    for name in set(vars(left)) - {"positions", "slot_mapping"}:
        assert_same_bits(getattr(left, name), getattr(right, name), f"{name}, {setting}")


@each_operation
@each_dtype
def test_bits_do_not_depend_on_threads_nor_on_the_callers_floating_point_environment(
    implementation: AnyToken, dtype: str
) -> None:
    tensors = tensors_of(implementation.operation, 6000, dtype)
    for name in {"query", "input", "bias", "prefix_output", "suffix_output"} & set(vars(tensors)):
        getattr(tensors, name)[::2] *= torch.finfo(DTYPES[dtype]).tiny  # about half of them subnormal

    def run_on(threads: int) -> TokenTensors:
        torch.set_num_threads(threads)
        return run_on_copies(implementation, tensors)

    once, others = run_on(1), {"two threads": run_on(2)}
    torch.set_flush_denormal(True)
    try:
        others["subnormal numbers flushed"] = run_on(2)
    finally:
        torch.set_flush_denormal(False)
    for setting, other in others.items():
        assert_same_results(other, once, setting)


@each_operation
@each_dtype
def test_bits_do_not_depend_on_the_instruction_set(
    implementation: AnyToken, dtype: str, plain_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementation, "_amx", False, raising=False)
    tensors = tensors_of(implementation.operation, 37, dtype)
    native = run_on_copies(implementation, tensors)
    monkeypatch.setattr(implementation, "_loaded", plain_library)
    assert_same_results(run_on_copies(implementation, tensors), native, f"compiled for any {platform.machine()}")


@pytest.mark.parametrize("amx", [False, True])
def test_a_row_of_a_linear_has_its_bits_in_any_block_of_rows_features_and_elements(amx: bool) -> None:
    if amx and not has_amx():
        pytest.skip("this processor, its compiler or its system has no AMX")
    generator = torch.Generator().manual_seed(1)
    library = build.load_library()

    def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        output = torch.full((len(rows), len(weight)), torch.nan, dtype=torch.bfloat16)
        linear.linear(library, rows, weight, None, output, amx=amx)
        return output

    for in_features, out_features in ((1030, 300), (160, 32), (0, 20)):
        memory = torch.randn(290, in_features + 5, generator=generator).bfloat16()
        weight = torch.randn(out_features, in_features, generator=generator).bfloat16()
        memory[:, in_features:] = torch.nan  # behind each row
        memory[7, 3] = torch.nan  # in one of them
        rows = memory[:, :in_features]
        together = product(rows, weight)
        for row in (0, 6, 8, 15, 16, 31, 32, 255, 256, 289):
            assert_same_bits(together[row : row + 1], product(rows[row : row + 1], weight), f"row {row} alone")
        assert_same_bits(together[:, 17:29], product(rows, weight[17:29].contiguous()), "twelve features alone")
        worst = (together[8:].double() - rows[8:].double() @ weight.double().T).abs().max().item()
        assert worst < 0.6, f"an element of about {in_features**0.5:.0f} is off by {worst}"


def test_python_mirrors_the_interfaces_of_the_kernels() -> None:
    library = build.load_library()
    for module, structure in (
        ("rotary", rotary.RotaryCall),
        ("cache_write", cache_write.CacheWriteCall),
        ("merge", merge.MergeCall),
    ):
        size = library[f"samebits_{module}_call_size"]
        size.restype = ctypes.c_int64
        assert size() == ctypes.sizeof(structure), (
            f"{module}: C++ has {size()} bytes, Python {ctypes.sizeof(structure)}"
        )
    interface = (ctypes.c_int64 * 3)()
    library.samebits_linear_interface(interface)
    assert list(interface) == [ctypes.sizeof(linear.LinearCall), linear.CHUNK, linear.ROW_TILE]
    library.samebits_rms_norm_interface(interface)
    assert list(interface)[:2] == [ctypes.sizeof(rms_norm.RmsNormCall), rms_norm.CHUNK]


def test_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for implementation in (type(each)() for each in IN_CPP):
        assert "no C++ compiler 'no-such-compiler'" in implementation.probe().reason
