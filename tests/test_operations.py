"""What holds of every operation on tokens: no tokens are no work, and where tensors begin in memory changes no bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.operations import CacheWriteTensors

from .token_operations import (
    EVERY,
    MARKS,
    OPERATIONS,
    AnyToken,
    assert_same_bits,
    device_of,
    each_dtype,
    tensors_of,
)

pytestmark = MARKS

each_implementation = pytest.mark.parametrize(
    "implementation", EVERY, ids=lambda each: f"{each.label}-{each.operation}"
)
claim_invariance = pytest.mark.parametrize(
    "implementation",
    [each for each in EVERY if each.claims.batch_invariant],
    ids=lambda each: f"{each.label}-{each.operation}",
)


@each_implementation
def test_no_tokens_are_no_work(implementation: AnyToken) -> None:
    tensors = tensors_of(implementation.operation, 0, device=device_of(implementation))
    implementation.run(OPERATIONS[implementation.operation], tensors)
    if isinstance(tensors, CacheWriteTensors):
        assert not tensors.key_cache.any(), "something was written for no token"


def one_element_on(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that begins one element behind the start of its memory, which is no multiple of 16 bytes."""
    memory = tensor.new_empty(tensor.numel() + 1)
    return memory[1:].view(tensor.shape).copy_(tensor)


@claim_invariance
@each_dtype
def test_where_tensors_begin_in_memory_changes_no_bit(implementation: AnyToken, dtype: str) -> None:
    tensors = tensors_of(implementation.operation, 37, dtype, device_of(implementation))
    moved: dict[str, Any] = {name: one_element_on(tensor) for name, tensor in vars(tensors).items()}
    elsewhere = replace(tensors, **moved)
    for each in (tensors, elsewhere):
        implementation.run(OPERATIONS[implementation.operation], each)
    for name in set(vars(tensors)) - {"positions", "slot_mapping"}:
        assert_same_bits(getattr(elsewhere, name), getattr(tensors, name), f"{name} one element on")
