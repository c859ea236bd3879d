"""RMSNorm whose bits depend on the row alone.

`tl.sum` adds in an order that follows the layout of registers, and that layout follows how wide the loads before it can
be: Triton compiles a kernel once for rows that start at multiples of 16 bytes and once for others, and the two may add
in different orders. Here the order is written out instead. The squares of elements `i`, `i + LANES`, `i + 2 LANES` ...
are added up in lane `i`; then neighbouring lanes are added, pair by pair, until one is left. All other operations are
IEEE's, on one element each, and kernels are launched with `enable_fp_fusion=False`, so that a product and a sum are two
roundings everywhere: a row's bits are the same on any device.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code="assignment,var-annotated"

import triton
import triton.language as tl


@triton.jit
def _sum_pairs(lanes, LOG2_LANES: tl.constexpr):
    """Adds up `[rows, 2**LOG2_LANES]` to `[rows, 1]`, neighbour to neighbour: a sum of two has one order."""
    for _ in tl.static_range(LOG2_LANES):
        lanes = tl.sum(tl.reshape(lanes, [lanes.shape[0], lanes.shape[1] // 2, 2]), 2)
    return lanes


@triton.jit(do_not_specialize=["num_rows", "size_1", "size_2"])
def rms_norm_kernel(
    input,
    weight,
    output,
    num_rows,
    size_1,
    size_2,
    stride_0,
    stride_1,
    stride_2,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    LOG2_LANES: tl.constexpr,
):
    """Normalises one tile of rows.

    Tensors:
        input: `[size_0, size_1, size_2, SIZE]` with strides `stride_0`, `stride_1`, `stride_2` and 1.
        weight: `[SIZE]`.
        output: `[num_rows, SIZE]`, contiguous.

    Numbers:
        num_rows: `size_0 * size_1 * size_2`.
        epsilon: added to the mean square.
        BLOCK_ROWS: rows of a tile.
        LOG2_LANES: logarithm of the number of lanes.
    """
    LANES: tl.constexpr = 1 << LOG2_LANES
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = row < num_rows
    rows = row.to(tl.int64) * stride_2
    # Divisions would take as long as reading a row.
    if size_2 != num_rows:
        outer = row // size_2
        rows = (outer // size_1).to(tl.int64) * stride_0 + (outer % size_1).to(tl.int64) * stride_1
        rows += (row % size_2).to(tl.int64) * stride_2
    inputs = input + rows[:, None]
    outputs = output + row.to(tl.int64)[:, None] * SIZE
    lane = tl.arange(0, LANES)[None, :]

    # All is read at once, and stays in registers until it is used for the last time.
    elements = ()
    weights = ()
    for start in tl.static_range(0, SIZE, LANES):
        exists = row_exists[:, None] & (start + lane < SIZE)
        elements += (tl.load(inputs + start + lane, mask=exists, other=0.0),)
        weights += (tl.load(weight + start + lane, mask=start + lane < SIZE, other=0.0),)

    squares = tl.full([BLOCK_ROWS, LANES], 0.0, tl.float32)
    for start in tl.static_range(0, SIZE, LANES):
        values = elements[start // LANES].to(tl.float32)
        squares += values * values
    mean_square = tl.math.div_rn(_sum_pairs(squares, LOG2_LANES), SIZE * 1.0)
    factor = tl.math.div_rn(1.0, tl.math.sqrt_rn(mean_square + epsilon))

    for start in tl.static_range(0, SIZE, LANES):
        exists = row_exists[:, None] & (start + lane < SIZE)
        scaled = elements[start // LANES].to(tl.float32) * factor * weights[start // LANES].to(tl.float32)
        tl.store(outputs + start + lane, scaled.to(output.dtype.element_ty), mask=exists)
