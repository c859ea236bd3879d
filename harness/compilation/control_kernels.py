"""Triton kernels that the compile suite must find something about."""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

import triton
import triton.language as tl


@triton.jit
def conversion_kernel(values, UNKNOWN_TYPE: tl.constexpr):
    """Rounds 128 values to a type of 8 bits: one that every target has, or one that AMD's have not."""
    element = values + tl.arange(0, 128)
    kind = tl.float8e4b15 if UNKNOWN_TYPE else tl.float8e5
    tl.store(element, tl.load(element).to(kind).to(tl.float32))


@triton.jit
def product_kernel(left, right, output, DEPTH: tl.constexpr, ALL: tl.constexpr):
    """Multiplies `[128, ALL]` by `[ALL, 128]` in steps of `DEPTH`, whose tiles wait in shared memory."""
    row = tl.arange(0, 128)
    column = tl.arange(0, DEPTH)
    total = tl.zeros([128, 128], tl.float32)
    for start in range(0, ALL, DEPTH):
        left_tile = tl.load(left + row[:, None] * ALL + start + column[None, :])
        right_tile = tl.load(right + row[None, :] * ALL + start + column[:, None])
        total = tl.dot(left_tile, right_tile, total)
    tl.store(output + row[:, None] * 128 + row[None, :], total)


@triton.jit
def recurrence_kernel(values, output, SIZE: tl.constexpr):
    """Holds two rows of `SIZE` values in one program, all of them alive at once."""
    element = tl.arange(0, SIZE)
    first = tl.load(values + element)
    second = tl.load(values + element + 1)
    for _ in range(4):
        first, second = second * first + 1.0, first * second - tl.sum(second, 0)
    tl.store(output + element, first + second)
