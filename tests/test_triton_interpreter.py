"""Triton's interpreter computes in bfloat16 what a GPU computes, row by row, and leaves compiled kernels alone."""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from samebits.backends.triton_interpreter import import_interpreted, interpreting
from samebits.kernels.triton import paged_attention

WIDTH = 64

with interpreting():

    @triton.jit
    def dot_kernel(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
        rows = tl.arange(0, M)[:, None]
        columns = tl.arange(0, N)[None, :]
        left = tl.load(a + rows * K + tl.arange(0, K)[None, :])
        right = tl.load(b + tl.arange(0, K)[:, None] * N + columns)
        tl.store(c + rows * N + columns, tl.dot(left, right, input_precision="ieee"))

    @triton.jit
    def convert_kernel(source, target, N: tl.constexpr):
        index = tl.arange(0, N)
        tl.store(target + index, tl.load(source + index).to(target.dtype.element_ty))

    @triton.jit
    def arithmetic_kernel(x, y, out, N: tl.constexpr):
        index = tl.arange(0, N)
        left = tl.load(x + index)
        right = tl.load(y + index)
        tl.store(out + index, left + right)
        tl.store(out + N + index, left * right)
        tl.store(out + 2 * N + index, tl.fma(left, right, left))
        tl.store(out + 3 * N + index, tl.where(left < right, left * 2.5, -right))
        tl.store(out + 4 * N + index, tl.full([N], 1.5, tl.bfloat16))

    @triton.jit
    def number_kernel(x, out, NUMBER: tl.constexpr, N: tl.constexpr):
        index = tl.arange(0, N)
        tl.store(out + index, (tl.load(x + index) + NUMBER).to(tl.float32))

    @triton.jit
    def double(x):
        return x + x

    @triton.jit
    def largest_product_kernel(x, y, out, N: tl.constexpr):
        index = tl.arange(0, N)
        tl.store(out, tl.max(tl.load(x + index) * tl.load(y + index), 0))

    @triton.jit
    def library_kernel(x, bound, out, N: tl.constexpr):
        index = tl.arange(0, N)
        total = tl.zeros([N], tl.float32)
        for _ in range(0, tl.load(bound)):
            total += double(tl.load(x + index))
        tl.store(out, tl.max(total, 0) + tl.cdiv(N, 3))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def interpreted_dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    (m, k), n = left.shape, right.shape[1]
    result = torch.empty(m, n)
    dot_kernel[(1,)](left.contiguous(), right.contiguous(), result, m, n, k)
    return result


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_are_of_values_not_of_bit_patterns(dtype: torch.dtype) -> None:
    left, right = random(16, WIDTH).to(dtype), random(WIDTH, 32, seed=1).to(dtype)
    exact = left.double() @ right.double()
    error = (interpreted_dot(left, right).double() - exact).abs().max()
    assert error < 1e-4, f"the largest error of {WIDTH} {dtype} products is {error}"


@pytest.mark.parametrize("rows", [1, 2, 16, 64])
def test_a_row_of_a_product_does_not_depend_on_its_tile(rows: int) -> None:
    row, right = random(1, WIDTH), random(WIDTH, 32, seed=1)
    expected = interpreted_dot(row.expand(8, -1), right)[3]
    for place in {0, rows // 2, rows - 1}:
        tile = random(rows, WIDTH, seed=rows)
        tile[place] = row
        found = interpreted_dot(tile, right)[place]
        assert torch.equal(bits(found), bits(expected)), f"row {place} of {rows} has other bits than row 3 of 8"


@pytest.mark.parametrize(("left", "right"), [(3e38, 3e38), (torch.inf, 0.0), (torch.nan, 1.0)])
def test_nothing_is_warned_of_that_no_device_would(left: float, right: float) -> None:
    result = torch.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        largest_product_kernel[(1,)](torch.full((16,), left), torch.full((16,), right), result, 16)
    assert not result.isfinite().any(), "there is nothing that numpy would warn of"


def test_float32_is_rounded_to_nearest_even_in_bfloat16() -> None:
    one_and = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1 + 2**-8 - 2**-20, 2 - 2**-8, 255.75]
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-40, -1e-40, 1e-45]
    values = torch.tensor([*one_and, *special, *random(64 - len(one_and) - len(special)).tolist()])
    result = torch.empty(64, dtype=torch.bfloat16)
    convert_kernel[(1,)](values, result, 64)
    expected = values.to(torch.bfloat16)
    number = ~expected.isnan()
    assert torch.equal(bits(result)[number], bits(expected)[number]), f"{values} became {result}"
    assert result.isnan().equal(expected.isnan()), f"NaN of {values} became {result}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_bfloat16_converts_to_and_from_other_types(dtype: torch.dtype) -> None:
    values = torch.arange(-32, 32, dtype=torch.bfloat16) * 2
    other = torch.empty(64, dtype=dtype)
    convert_kernel[(1,)](values, other, 64)
    assert torch.equal(other, values.to(dtype)), f"bfloat16 {values} became {other}"
    back = torch.empty_like(values)
    convert_kernel[(1,)](other, back, 64)
    assert torch.equal(back, values), f"{other} became bfloat16 {back}"


def test_bfloat16_arithmetic_rounds_each_result_once() -> None:
    left, right = random(WIDTH).bfloat16(), random(WIDTH, seed=1).bfloat16()
    found = torch.empty(5, WIDTH, dtype=torch.bfloat16)
    arithmetic_kernel[(1,)](left, right, found, WIDTH)
    fused = (left.double() * right.double() + left.double()).bfloat16()
    expected = [left + right, left * right, fused, torch.where(left < right, left * 2.5, -right), found[4] * 0 + 1.5]
    for name, one, other in zip(("+", "*", "fma", "where", "constant"), found, expected, strict=True):
        assert torch.equal(one, other), f"bfloat16 {name} gave {one}, but should give {other}"


def test_what_is_remembered_of_operands_is_that_of_their_own_types() -> None:
    largest, result = torch.full((16,), 2**31 - 1, dtype=torch.int32), torch.empty(16)
    # Equal numbers, of which one makes the sum a float. Each twice, the second time from what is remembered.
    for number, expected in ((1, -(2.0**31)), (1.0, 2.0**31), (1, -(2.0**31)), (1.0, 2.0**31)):
        number_kernel[(1,)](largest, result, number, 16)
        assert result.tolist() == [expected] * 16, f"{largest[0]} + {number} is {result[0]}"
        number_kernel[(1,)](largest.long(), result, number, 16)
        assert result.tolist() == [2.0**31] * 16, f"{largest[0]} in 64 bits + {number} is {result[0]}"
    for _ in range(2):
        with pytest.raises(InterpreterError, match="unsigned tensor and a negative scalar"):
            number_kernel[(1,)](largest.to(torch.uint8), result, -1, 16)


def test_device_functions_loops_and_tritons_own_functions_run() -> None:
    x, result = random(WIDTH), torch.empty(1)
    library_kernel[(1,)](x, torch.tensor([3], dtype=torch.int32), result, WIDTH)
    doubled = x + x
    assert result.item() == (doubled + doubled + doubled).max() + 22, f"the kernel gave {result}"


def language() -> list[object]:
    """What an interpreted kernel is given otherwise."""
    functions = [vars(tl).get(name) for name in ("max", "load", "reduce", "range")]
    return [*functions, vars(tl.tensor)["__add__"], vars(tl.dtype)["__eq__"], tl.core._unwrap_if_constexpr]


def test_compiled_kernels_see_triton_as_it_was() -> None:
    before = language()
    library_kernel[(1,)](random(WIDTH), torch.tensor([1], dtype=torch.int32), torch.empty(1), WIDTH)
    assert language() == before, "an interpreted launch left the language patched"
    assert not triton.knobs.runtime.interpret, "kernels defined from now on would be interpreted"
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        tl.max(1, 0)


def test_an_interpreted_module_is_a_private_copy() -> None:
    copy = import_interpreted(paged_attention.__name__)
    assert isinstance(copy.paged_attention_kernel, InterpretedFunction), "the copy is not interpreted"
    assert isinstance(paged_attention.paged_attention_kernel, JITFunction), "the module itself became interpreted"
    assert sys.modules[paged_attention.__name__] is paged_attention, "the copy took the module's place"
    assert import_interpreted(paged_attention.__name__) is copy, "a second import made a second copy"


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'samebits\.kernels\.triton\.absent'"):
        import_interpreted("samebits.kernels.triton.absent")


def test_the_compiler_takes_nothing_from_the_interpreter_where_it_is_first_needed_inside_an_interpreted_kernel() -> (
    None
):
    program = """
        from samebits.backends.triton_interpreter import interpreting
        import triton, triton.language as tl

        def kernel():
            from triton.compiler.code_generator import CodeGenerator

        with interpreting():
            kernel = triton.jit(kernel)
        kernel[(1,)]()
        from triton.compiler.code_generator import CodeGenerator
        kept = CodeGenerator.builtin_namespace["min"]
        assert kept is tl.core.builtin_min, f"compiled kernels are given {kept} for min"
    """
    finished = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
