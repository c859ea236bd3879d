"""Scratch that holds poison: what a kernel reads of it before writing it shows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from samebits.backends.contract import DTYPES
from samebits.harness.batch import poison_value

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
# How Python asks torch for memory that nobody has written.
_ALLOCATORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
)
# Memory that is asked for in other ways, by operators in C++, is likely to be what was just given back.
GIVEN_BACK_BYTES = tuple(1 << power for power in range(8, 23, 2))


@contextmanager
def poisoned_scratch(poison: str) -> Iterator[None]:
    """While it is open, uninitialised tensors hold poison.

    Args:
        poison: `nan` or `large`; integers then hold the largest number that they can.
    """
    with ExitStack() as patches:
        for owner, name in _ALLOCATORS:
            allocate = getattr(owner, name)
            patches.enter_context(mock.patch.object(owner, name, _poisoning(allocate, poison)))
        yield


def give_back_poison(poison: str, device: torch.device) -> None:
    """Fills memory of many sizes with poison and gives it back to the allocator.

    Args:
        poison: `nan` or `large`.
        device: whose memory.
    """
    held = [torch.full((size // 4,), poison_value(poison), device=device) for size in GIVEN_BACK_BYTES]
    del held


def _poisoning(allocate: Callable[..., torch.Tensor], poison: str) -> Callable[..., torch.Tensor]:
    @functools.wraps(allocate)
    def allocate_poison(*arguments: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401 -- handed on to torch
        tensor = allocate(*arguments, **options)
        if tensor.dtype in DTYPES.values() or tensor.dtype == torch.float64:
            return tensor.fill_(poison_value(poison))
        if tensor.dtype in _INTEGERS:
            return tensor.fill_(torch.iinfo(tensor.dtype).max)
        # Of other dtypes not every kernel of torch's knows how to fill a tensor.
        return tensor

    return allocate_poison
