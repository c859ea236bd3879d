"""A linear layer whose bits depend on the row alone.

The features that a product sums over are divided into chunks at fixed boundaries, multiples of `FEATURE_CHUNK`. Each
chunk is summed from zero in tiles of `FEATURE_TILE`, one `tl.dot` after another, and chunks are added up in ascending
order; one chunk may hold all features. That is the arithmetic; neither the number of rows nor their place has a part in
it:

* `BLOCK_ROWS` never follows the number of rows. Tiles of other heights may be given to other instructions of the tensor
  cores, and nobody promises that those round alike.
* Rows and features that do not exist are zeros, whatever memory holds there.
* The alignment of rows in memory, which Triton compiles variants for, decides how operands are loaded and nothing else:
  every sum over features is inside of `tl.dot`, in the layout of its instruction.

Programs that own one chunk each, and a merge of what they write in ascending order, would give the same bits.
"""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

import triton
import triton.language as tl

# Tiles of columns that are computed side by side, for the cache's sake.
COLUMN_GROUP = tl.constexpr(8)


@triton.jit(do_not_specialize=["num_rows", "size_1", "size_2"])
def linear_kernel(
    input,
    weight,
    bias,
    output,
    num_rows,
    size_1,
    size_2,
    stride_0,
    stride_1,
    stride_2,
    IN_FEATURES: tl.constexpr,
    OUT_FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    FEATURE_TILE: tl.constexpr,
    FEATURE_CHUNK: tl.constexpr,
):
    """Computes one tile of the output: program (tile of rows, tile of columns).

    Tensors:
        input: `[size_0, size_1, size_2, IN_FEATURES]` with strides `stride_0`, `stride_1`, `stride_2` and 1.
        weight: `[OUT_FEATURES, IN_FEATURES]`, contiguous.
        bias: `[OUT_FEATURES]`, or None.
        output: `[num_rows, OUT_FEATURES]`, contiguous.

    Numbers:
        num_rows: `size_0 * size_1 * size_2`.
        BLOCK_ROWS, BLOCK_COLUMNS: shape of a tile of the output.
        FEATURE_TILE, FEATURE_CHUNK: features of a tile; features of a chunk, a multiple of it.
    """
    column_tile, row_tile = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), COLUMN_GROUP
    )
    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row_exists = row < num_rows
    column_exists = column < OUT_FEATURES
    outer = (row // size_2).to(tl.int64)
    rows = outer // size_1 * stride_0 + outer % size_1 * stride_1 + (row % size_2).to(tl.int64) * stride_2
    feature = tl.arange(0, FEATURE_TILE)
    inputs = input + rows[:, None] + feature[None, :]
    weights = weight + column.to(tl.int64)[None, :] * IN_FEATURES + feature[:, None]

    total = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], 0.0, tl.float32)
    for chunk in range(0, IN_FEATURES, FEATURE_CHUNK):
        chunk_total = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], 0.0, tl.float32)
        for tile in range(chunk, tl.minimum(chunk + FEATURE_CHUNK, IN_FEATURES), FEATURE_TILE):
            feature_exists = tile + feature < IN_FEATURES
            input_tile = tl.load(inputs + tile, mask=row_exists[:, None] & feature_exists[None, :], other=0.0)
            weight_tile = tl.load(weights + tile, mask=feature_exists[:, None] & column_exists[None, :], other=0.0)
            chunk_total = tl.dot(input_tile, weight_tile, chunk_total, input_precision="ieee")
        total += chunk_total
    if bias is not None:
        total += tl.load(bias + column, mask=column_exists, other=0.0).to(tl.float32)[None, :]

    outputs = output + row.to(tl.int64)[:, None] * OUT_FEATURES + column[None, :]
    tl.store(outputs, total.to(output.dtype.element_ty), mask=row_exists[:, None] & column_exists[None, :])
