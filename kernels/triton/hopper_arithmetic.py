"""What the kernel for Hopper computes of numbers in registers: steps of `paged_attention`, whose bits they have."""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code=assignment

from samebits.kernels.triton import hopper_columns as columns
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def weigh(
    scores,
    chunk_max,
    chunk_sum,
    visible_end,
    tile_key,
    all_see_until,
    all_see_from,
    score_scale,
    SCORES: gl.constexpr,
    KV_TILE: gl.constexpr,
    WINDOW: gl.constexpr,
):
    """Turns the scores of a tile into weights: a step of `paged_attention._attend_chunk`.

    Every row sees the keys `all_see_from:all_see_until`, and a tile of such keys needs no mask.

    Returns:
        Weights, the factor of what the chunk came to before, the chunk's maximum and its sum of weights.
    """
    if (tile_key + KV_TILE > all_see_until) | (tile_key < all_see_from):
        key = (tile_key + gl.arange(0, KV_TILE, gl.SliceLayout(0, SCORES)))[None, :]
        visible = key < visible_end[:, None]
        if WINDOW:
            visible = visible & (key >= visible_end[:, None] - WINDOW)
        scores = gl.where(visible, scores, float("-inf"))
    new_max = gl.maximum(chunk_max, gl.max(scores, 1) * score_scale)
    scale = gl.full_like(scores, 0.0) + score_scale
    weights = gl.exp2(gl.fma(scores, scale, gl.full_like(scores, 0.0) + (0.0 - new_max)[:, None]))
    rescale = gl.exp2(chunk_max - new_max)
    return weights, rescale, new_max, chunk_sum * rescale + gl.sum(weights, 1)


@gluon.jit
def _merge_sums(row_max, row_sum, chunk_max, chunk_sum):
    new_max = gl.maximum(row_max, chunk_max)
    row_factor = gl.exp2(row_max - new_max)
    chunk_factor = gl.exp2(chunk_max - new_max)
    return new_max, row_sum * row_factor + chunk_sum * chunk_factor, row_factor, chunk_factor


@gluon.jit
def merge_chunk(row_max, row_sum, row_output, chunk_max, chunk_sum, chunk_output):
    """As `paged_attention._merge_chunk`."""
    new_max, new_sum, row_factor, chunk_factor = _merge_sums(row_max, row_sum, chunk_max, chunk_sum)
    new_output = ()
    for part in gl.static_range(len(row_output)):
        merged = row_output[part] * columns.as_factors(row_factor, row_output[part])
        merged += chunk_output[part] * columns.as_factors(chunk_factor, row_output[part])
        new_output += (merged + 0.0,)
    return new_max, new_sum, new_output


@gluon.jit
def merge_chunk_in_memory(
    memory,
    merged_before,
    row_max,
    row_sum,
    chunk_max,
    chunk_sum,
    chunk_output,
    HEAD_DIM: gl.constexpr,
    LAST: gl.constexpr,
):
    """As `merge_chunk`, with the rows' output in memory, float32 `[64, HEAD_DIM]`, if any chunk was `merged_before`.

    Parts are read one after another, each when the one before is written: there are registers for one.

    Returns:
        New maximum, sum and output. The output of the `LAST` chunk is not written, that of others not returned.
    """
    new_max, new_sum, row_factor, chunk_factor = _merge_sums(row_max, row_sum, chunk_max, chunk_sum)
    new_output = ()
    for part in gl.static_range(len(chunk_output)):
        addresses = columns.addresses(memory, chunk_output, part, HEAD_DIM)
        row_output = gl.load(addresses, mask=merged_before, other=0.0)
        merged = row_output * columns.as_factors(row_factor, row_output)
        merged += chunk_output[part] * columns.as_factors(chunk_factor, row_output)
        if LAST:
            new_output += (merged + 0.0,)
        else:
            gl.store(addresses, merged + 0.0)
    return new_max, new_sum, new_output
