"""Copying into a slice of a persistent buffer and filling what is left of it, bit by bit, in one launch."""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

import triton
import triton.language as tl

_SIZES = ["destination_size_1", "destination_size_2", "destination_size_3", "num_elements"]
_SIZES += [f"source_size_{dimension}" for dimension in range(4)]
_OUTER_STRIDES = [f"{tensor}_stride_{dimension}" for tensor in ("source", "destination") for dimension in range(3)]


# Sizes and strides follow the batch, and are not worth a variant each but for an innermost stride of 1; nor is what is
# filled in.
@triton.jit(do_not_specialize=[*_SIZES, *_OUTER_STRIDES, "padding"])
def persistent_copy_kernel(
    source,
    destination,
    padding,
    num_elements,
    destination_size_1,
    destination_size_2,
    destination_size_3,
    source_size_0,
    source_size_1,
    source_size_2,
    source_size_3,
    source_stride_0,
    source_stride_1,
    source_stride_2,
    source_stride_3,
    destination_stride_0,
    destination_stride_1,
    destination_stride_2,
    destination_stride_3,
    BLOCK: tl.constexpr,
):
    """Writes one block of the destination's elements, in the order of their indices.

    Tensors, of four dimensions and any strides, as integers of the width of their elements:
        source: what is copied to the destination's elements of the same indices.
        destination: at least as large as the source in every dimension.

    Numbers:
        padding: the bits of every other element of the destination.
        num_elements: of the destination.
        BLOCK: elements of a program.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = element < num_elements
    index_3 = element % destination_size_3
    rest = element // destination_size_3
    index_2 = rest % destination_size_2
    rest = rest // destination_size_2
    index_1 = rest % destination_size_1
    index_0 = rest // destination_size_1
    copied = exists & (index_0 < source_size_0) & (index_1 < source_size_1)
    copied = copied & (index_2 < source_size_2) & (index_3 < source_size_3)
    from_source = index_0 * source_stride_0 + index_1 * source_stride_1
    from_source += index_2 * source_stride_2 + index_3 * source_stride_3
    bits = tl.load(source + from_source, mask=copied, other=0)
    bits = tl.where(copied, bits, padding.to(bits.dtype))
    to_destination = index_0 * destination_stride_0 + index_1 * destination_stride_1
    to_destination += index_2 * destination_stride_2 + index_3 * destination_stride_3
    tl.store(destination + to_destination, bits, mask=exists)
