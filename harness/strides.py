"""Where the elements of a tensor lie in its memory, for each kind of strides that a layout may have."""

from __future__ import annotations

import torch

from samebits.backends.problem import Strides

# Elements behind each padded head: whole vectors, so that the alignment of heads stays.
_HEAD_PADDING = 64


def strides_of(shape: tuple[int, ...], strides: Strides, *, second: bool = False) -> tuple[int, ...]:
    """The strides of one tensor.

    Args:
        shape: of the tensor; its last two dimensions are heads and their elements where it has three or more.
        strides: the kind. Where there are no heads, each but `contiguous` sets rows apart, those of a second further.
        second: whether it is the second of its pair, as values are beside keys and outputs beside queries. The two of a
            pair differ where heads are padded, and where orders are mixed.
    """
    has_heads = len(shape) > 2
    if strides is Strides.INTERLEAVED or (strides is not Strides.CONTIGUOUS and not has_heads):
        first, *inner = _compact(shape)
        return (first * (3 if second and not has_heads else 2), *inner)
    if strides is Strides.PADDED_HEADS and not second:
        return (*_compact((*shape[:-1], shape[-1] + _HEAD_PADDING))[:-1], 1)
    if strides is Strides.HEADS_FIRST or (strides is Strides.MIXED_ORDER and second):
        *outer, rows, heads, elements = shape
        *found, head, row, element = _compact((*outer, heads, rows, elements))
        return (*found, row, head, element)
    return _compact(shape)


def span(shape: tuple[int, ...], strides: Strides) -> int:
    """Elements of memory for a tensor, the gap behind its last row among them.

    A kernel may take the strides of one of a pair for those of the other, or some of them for those of a contiguous
    tensor. There is room for that, so that what it then reads is poison and what it writes is seen.
    """
    if 0 in shape:
        return 0
    candidates = (
        strides_of(shape, strides),
        strides_of(shape, strides, second=True),
        strides_of(shape, Strides.CONTIGUOUS),
    )
    largest = [max(of_dimension) for of_dimension in zip(*candidates, strict=True)]
    reached = 1 + sum((size - 1) * stride for size, stride in zip(shape, largest, strict=True))
    return max(reached, shape[0] * largest[0])


def whole_memory(tensor: torch.Tensor) -> torch.Tensor:
    """All elements of the memory that a tensor is a view of, in their order: one dimension."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((elements,), (1,), 0)


def _compact(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides)
