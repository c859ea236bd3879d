"""Merging two partial attention results by their log-sum-exps, in float32 with one rounding at the end.

The formula is that of `samebits.backends.operations.MergeTensors`. A row follows from the rows of its two sides alone.
Products and sums are rounded one by one, so merging suffix with prefix gives the bits of merging prefix with suffix.
Nothing is summed over the elements of a row: how tensors are aligned in memory, which Triton compiles variants for,
decides how they are loaded and nothing else.
"""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

import triton
import triton.language as tl


# The distance between two heads of a contiguous log-sum-exp is the number of tokens. Log-sum-exps are often slices that
# start anywhere; an alignment of theirs is worth no variant.
@triton.jit(
    do_not_specialize=["num_tokens", "stride_prefix_lse_head", "stride_suffix_lse_head", "stride_lse_head"],
    do_not_specialize_on_alignment=["prefix_lse", "suffix_lse", "lse"],
)
def merge_states_kernel(
    prefix_output,
    prefix_lse,
    suffix_output,
    suffix_lse,
    output,
    lse,
    num_tokens,
    stride_prefix_token,
    stride_prefix_head,
    stride_suffix_token,
    stride_suffix_head,
    stride_output_token,
    stride_output_head,
    stride_prefix_lse_head,
    stride_suffix_lse_head,
    stride_lse_head,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
):
    """Merges one tile of rows. A row is one token under one head.

    Tensors, with last stride 1:
        prefix_output, suffix_output, output: `[num_tokens, NUM_HEADS, HEAD_DIM]`.
        prefix_lse, suffix_lse, lse: float32 `[NUM_HEADS, num_tokens]`, natural logarithm.

    Numbers:
        BLOCK_ROWS, HEAD_DIM_PADDED: shape of a tile; the second is `HEAD_DIM` rounded up to a power of 2.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = (row // NUM_HEADS).to(tl.int64)
    head = (row % NUM_HEADS).to(tl.int64)
    exists = token < num_tokens
    column = tl.arange(0, HEAD_DIM_PADDED)[None, :]
    stored = exists[:, None] & (column < HEAD_DIM)

    left_lse = tl.load(prefix_lse + head * stride_prefix_lse_head + token, mask=exists, other=0.0)
    right_lse = tl.load(suffix_lse + head * stride_suffix_lse_head + token, mask=exists, other=0.0)
    left_rows = token * stride_prefix_token + head * stride_prefix_head
    right_rows = token * stride_suffix_token + head * stride_suffix_head
    left_given = tl.load(prefix_output + left_rows[:, None] + column, mask=stored, other=0.0)
    right_given = tl.load(suffix_output + right_rows[:, None] + column, mask=stored, other=0.0)

    left_empty = left_lse == float("-inf")
    right_empty = right_lse == float("-inf")
    neither = left_empty & right_empty
    # Chosen, not multiplied by a weight of 0: 0 * NaN is not 0.
    left_given = tl.where(left_empty[:, None], 0.0, left_given)
    right_given = tl.where(right_empty[:, None], 0.0, right_given)
    left, right = left_given.to(tl.float32), right_given.to(tl.float32)
    larger = tl.maximum(left_lse, right_lse)
    # Nothing is chosen from where neither side saw a key; this only spares the interpreter's warnings of NaN.
    subtracted = tl.where(neither, 0.0, larger)
    left_weight = tl.exp(left_lse - subtracted)
    right_weight = tl.exp(right_lse - subtracted)
    total = tl.where(neither, 1.0, left_weight + right_weight)
    merged = tl.math.div_rn(left * left_weight[:, None] + right * right_weight[:, None], total[:, None])
    merged_lse = larger + tl.log(total)

    # One side alone passes bit by bit, as it was given: -0.0 + 0.0 is not -0.0, and float32 makes a quiet NaN of one
    # that signals.
    merged = merged.to(output.dtype.element_ty)
    merged = tl.where(right_empty[:, None], left_given, tl.where(left_empty[:, None], right_given, merged))
    merged_lse = tl.where(right_empty, left_lse, tl.where(left_empty, right_lse, merged_lse))
    output_rows = token * stride_output_token + head * stride_output_head
    tl.store(output + output_rows[:, None] + column, merged, mask=stored)
    tl.store(lse + head * stride_lse_head + token, merged_lse, mask=exists)
