"""Copying to a persistent buffer: a slice holds the source, the rest padding; what cannot be copied is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from samebits.backends.persistent_copy import copy_by_torch, copy_by_triton, copy_to_persistent

Copy = Callable[[torch.Tensor, torch.Tensor, float], None]
COPIES = pytest.mark.parametrize("copy", [copy_by_torch, copy_by_triton], ids=["torch", "triton"])
SHAPES = [
    ((3,), (5,)),
    ((2, 3), (4, 6)),
    ((4, 6), (4, 6)),
    ((0, 3), (4, 3)),
    ((2, 3, 2), (2, 5, 4)),
    ((1,) * 4, (2,) * 4),
]
PADDINGS = [
    (torch.float32, math.nan),
    (torch.bfloat16, -1.5),
    (torch.float16, math.inf),
    (torch.int64, -1),
    (torch.int32, 7),
    (torch.bool, 1),
]


def numbered(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return (
        (torch.arange(math.prod(shape)) % 2 if dtype is torch.bool else torch.arange(math.prod(shape)))
        .to(dtype)
        .view(shape)
    )


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@COPIES
@pytest.mark.parametrize(("dtype", "padding"), PADDINGS, ids=str)
@pytest.mark.parametrize(("given", "held"), SHAPES, ids=str)
def test_the_slice_holds_the_source_and_the_rest_padding(
    copy: Copy, given: tuple[int, ...], held: tuple[int, ...], dtype: torch.dtype, padding: float
) -> None:
    destination = torch.zeros(held, dtype=dtype)
    source = numbered(given, dtype)
    expected = torch.full(held, padding, dtype=dtype)
    expected[tuple(slice(size) for size in given)] = source
    copy(source, destination, padding)
    assert torch.equal(as_bytes(destination), as_bytes(expected)), f"{destination} should be {expected}"


@COPIES
def test_strides_are_those_of_the_destination_and_what_lies_between_its_rows_stays(copy: Copy) -> None:
    memory = torch.full((4, 10), 99, dtype=torch.int32)
    destination = memory[:, :6]
    wide = torch.arange(40, dtype=torch.int32).view(5, 8)
    copy(wide[:3, :4], destination, -1)
    assert torch.equal(memory[:, 6:], torch.full((4, 4), 99, dtype=torch.int32)), "the gap between rows was written"
    assert torch.equal(destination[:3, :4], wide[:3, :4])
    assert (destination[3] == -1).all(), "the row behind the slice keeps what it held"
    assert (destination[:, 4:] == -1).all(), "the columns behind the slice keep what they held"


@COPIES
def test_bits_of_nan_and_of_minus_zero_are_copied(copy: Copy) -> None:
    bits = torch.tensor([0x7FC01234, -0x80000000, 0x7F812345], dtype=torch.int32)
    destination = torch.zeros(4)
    copy(bits.view(torch.float32), destination, 0.0)
    assert torch.equal(destination.view(torch.int32)[:3], bits)


def test_a_smaller_batch_leaves_nothing_of_a_larger_one() -> None:
    buffer = torch.zeros(8, 5, dtype=torch.int32)
    copy_to_persistent(torch.full((8, 5), 7, dtype=torch.int32), buffer, 0)
    address = buffer.data_ptr()
    copy_to_persistent(torch.full((2, 3), 1, dtype=torch.int32), buffer, 0)
    assert int(buffer.sum()) == 6, f"left over: {buffer}"
    assert buffer.data_ptr() == address


@pytest.mark.parametrize(
    ("source", "destination", "padding", "told"),
    [
        (
            torch.zeros(5, 3),
            torch.zeros(4, 8),
            0.0,
            r"source has shape \[5, 3\]; it must fit into the destination's \[4, 8\]",
        ),
        (
            torch.zeros(3),
            torch.zeros(4, 8),
            0.0,
            r"source has shape \[3\]; it must fit into the destination's \[4, 8\]",
        ),
        (
            torch.zeros([1] * 5),
            torch.zeros([2] * 5),
            0.0,
            r"destination has shape .*; it must have one to 4 dimensions",
        ),
        (
            torch.zeros(3),
            torch.zeros(4, dtype=torch.bfloat16),
            0.0,
            "source is fp32; it must be bf16 as the destination",
        ),
        (
            torch.zeros(3, device="meta"),
            torch.zeros(4),
            0.0,
            "source is on meta; it must be on cpu as the destination is",
        ),
        (
            torch.zeros(1, 3),
            torch.zeros(1, 3).expand(4, 3),
            0.0,
            r"destination has shape \[4, 3\] and strides \(0, 1\), by which elements share memory",
        ),
        (torch.zeros(2, 2), torch.zeros(9).as_strided((3, 3), (2, 1)), 0.0, "by which elements share memory"),
        (
            torch.zeros(3),
            torch.zeros(4, dtype=torch.int32),
            0.0,
            "source is fp32; it must be int32 as the destination is",
        ),
        (
            torch.zeros(3, dtype=torch.int32),
            torch.zeros(4, dtype=torch.int32),
            math.nan,
            "padding is nan; .* int32 holds",
        ),
        (
            torch.zeros(3, dtype=torch.int32),
            torch.zeros(4, dtype=torch.int32),
            2**40,
            "must be a number that int32 holds",
        ),
        (torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool), 2, "must be a number that bool holds"),
    ],
)
def test_what_cannot_be_copied_is_refused(
    source: torch.Tensor, destination: torch.Tensor, padding: float, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        copy_to_persistent(source, destination, padding)


def test_a_source_in_the_memory_of_the_destination_is_refused() -> None:
    memory = torch.zeros(10)
    with pytest.raises(ValueError, match="source lies in the memory of the destination; it must lie elsewhere"):
        copy_to_persistent(memory[2:5], memory[:8], 0.0)


def test_rows_of_one_memory_that_do_not_meet_are_copied() -> None:
    memory = torch.arange(12.0)
    copy_to_persistent(memory[8:], memory[:6], -1.0)
    assert memory[:6].tolist() == [8.0, 9.0, 10.0, 11.0, -1.0, -1.0]
