"""Memory that tells how much of it was touched, whoever touched it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from samebits.harness.tokens.touched import TouchedMemory, tells_touched

pytestmark = pytest.mark.skipif(not tells_touched(), reason="this machine does not tell which memory was touched")

VALUES = torch.arange(1 << 20, dtype=torch.int32).view(1024, 1024)
# What the kernel of Linux looks up around a page that is touched.
AROUND = 1 << 16


def test_nothing_has_been_touched_at_first() -> None:
    memory = TouchedMemory(VALUES)
    memory.forget()
    assert memory.touched_bytes() == 0


@pytest.mark.parametrize("row", [0, 511, 1023])
def test_a_row_costs_what_is_looked_up_around_it(row: int) -> None:
    memory = TouchedMemory(VALUES)
    memory.forget()
    found = memory.tensor[torch.tensor([row])]
    assert 0 < memory.touched_bytes() <= AROUND, f"a row of 4 KiB counts as {memory.touched_bytes()} bytes"
    assert torch.equal(found[0], VALUES[row])


@pytest.mark.parametrize(
    "reads",
    [
        lambda tensor: tensor.double(),
        lambda tensor: tensor.numpy().astype("float64"),
        lambda tensor: [row.numpy().copy() for row in tensor],
        lambda tensor: tensor.numpy().tobytes(),
        lambda tensor: tensor.fill_(0),
    ],
    ids=["torch", "numpy", "row by row", "bytes", "written"],
)
def test_whoever_touches_all_of_it_is_seen(reads: Callable[[torch.Tensor], object]) -> None:
    memory = TouchedMemory(VALUES)
    memory.forget()
    reads(memory.tensor)
    assert memory.touched_bytes() == VALUES.nbytes


def test_what_is_forgotten_keeps_its_values() -> None:
    memory = TouchedMemory(VALUES)
    memory.tensor[0, 0] = 7
    memory.forget()
    expected = VALUES.clone()
    expected[0, 0] = 7
    assert torch.equal(memory.tensor, expected), "what was written before is lost"
