"""Writing keys and values to a page cache: its tensors, and the bits that must be there."""

from __future__ import annotations

import numpy as np
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import CacheWriteTensors
from samebits.backends.problem import Request
from samebits.backends.token_problem import CacheWrite, TokenProblem
from samebits.harness.batch import poison_value
from samebits.harness.comparison import same_bits
from samebits.harness.dataset import Role
from samebits.harness.tokens.placement import Placed, place
from samebits.harness.tokens.prepared import Expected, Prepared, all_values, request_values, token_rows
from samebits.harness.tokens.untouched import plant_easily_lost

_UNUSED_PAGES = 3
# One token in this many is not to be stored, as where an engine has it cached already.
_SKIPPED_EVERY = 13
# What the keys and values of such tokens hold: a cache never does, so that storing one shows.
_WITHOUT_SLOT = 3.0


class PreparedCacheWrite(Prepared[CacheWriteTensors]):
    """Keys and values to store."""

    def __init__(self, problem: TokenProblem, operation: CacheWrite, device: torch.device) -> None:
        self._problem, self._operation, self._device = problem, operation, device
        layout = problem.layout
        shape = (operation.num_kv_heads, operation.head_dim)
        num_rows = problem.num_tokens + layout.padding_tokens
        slots, num_pages = _scattered_slots(problem, operation.page_size)
        keys = self._given(Role.KEY, shape, num_rows, slots)
        values = self._given(Role.VALUE, shape, num_rows, slots, second=True)
        self._slots = slots.to(device)
        slot_mapping = torch.cat([self._slots, torch.full((layout.padding_tokens,), -1, device=device)])
        key_cache, value_cache = (self._cache(num_pages, second=second) for second in (False, True))
        self.tensors = CacheWriteTensors(keys, values, key_cache.tensor, value_cache.tensor, slot_mapping)
        self.read = {"key": keys, "value": values, "slot_mapping": slot_mapping}
        self.written = {"key_cache": key_cache, "value_cache": value_cache}

    def results(self) -> dict[int, dict[str, torch.Tensor]]:
        """What the slots of each request's tokens hold; zeros for tokens that are not to be stored."""
        found = {}
        for request, rows in zip(self._problem.requests, token_rows(self._problem), strict=True):
            slots = self._slots[rows]
            stored = (slots >= 0).view(-1, 1, 1)
            places = slots.clamp(min=0)
            found[request.key] = {
                name: torch.where(stored, cache[places // cache.shape[1], places % cache.shape[1]], 0.0)
                for name, cache in (("key", self.tensors.key_cache), ("value", self.tensors.value_cache))
            }
        return found

    def faults(self) -> list[str]:
        """Whether stored bits are those that were given: a value alone would not tell -0.0 or one NaN from another."""
        stored = self._slots >= 0
        slots = self._slots[stored]
        tensors, page_size = self.tensors, self._operation.page_size
        return [
            f"run stored other bits than those of its {name}"
            for name, given, cache in (
                ("key", tensors.key, tensors.key_cache),
                ("value", tensors.value, tensors.value_cache),
            )
            if not same_bits(given[: len(stored)][stored], cache[slots // page_size, slots % page_size])
        ]

    def expected(self, request: Request) -> dict[str, Expected]:
        """The very bits that were given."""
        shape = (self._operation.num_kv_heads, self._operation.head_dim)
        stored = torch.tensor([not _is_skipped(position) for position in _positions(request)], dtype=torch.bool)
        stored = stored.view(-1, 1, 1)
        found = {}
        for name, role in (("key", Role.KEY), ("value", Role.VALUE)):
            values = plant_easily_lost(request_values(self._problem, request, role, shape)).to(torch.float64)
            kept = torch.where(stored, values, 0.0).to(self._device)
            found[name] = Expected(kept, torch.zeros_like(kept))
        return found

    def _given(
        self, role: Role, shape: tuple[int, int], num_rows: int, slots: torch.Tensor, *, second: bool = False
    ) -> torch.Tensor:
        """Keys or values; rows without a slot hold what the cache does not, so that storing one shows."""
        rows = plant_easily_lost(all_values(self._problem, role, shape, self._device, num_rows))
        rows[len(slots) :] = _WITHOUT_SLOT
        rows[: len(slots)][slots.to(self._device) < 0] = _WITHOUT_SLOT
        return place(rows, self._problem, second=second).tensor

    def _cache(self, num_pages: int, *, second: bool) -> Placed:
        """A cache of poison, of which only the slots of the batch may be written."""
        operation, layout = self._operation, self._problem.layout
        shape = (num_pages, operation.page_size, operation.num_kv_heads, operation.head_dim)
        poison = torch.full(shape, poison_value(layout.poison), dtype=DTYPES[self._problem.dtype], device=self._device)
        placed = place(poison, self._problem, second=second)
        writable = torch.zeros_like(placed.writable)
        # The same view of the mask as the tensor is of its allocation.
        slots = writable.as_strided(shape, placed.tensor.stride(), placed.tensor.storage_offset())
        stored = self._slots[self._slots >= 0]
        slots[stored // operation.page_size, stored % operation.page_size] = True
        return Placed(placed.tensor, placed.allocation, writable, placed.before)


def _scattered_slots(problem: TokenProblem, page_size: int) -> tuple[torch.Tensor, int]:
    """A slot for each token of each request, -1 for those that are not to be stored, and the number of pages."""
    needed = [-(-max(request.seq_len, 0) // page_size) for request in problem.requests]
    num_pages = sum(needed) + _UNUSED_PAGES
    # The last page is nobody's: who takes -1 for an index writes there.
    pages = np.random.Generator(np.random.Philox(key=problem.layout.page_seed)).permutation(num_pages - 1)
    slots = []
    for request, stop, count in zip(problem.requests, np.cumsum(needed), needed, strict=True):
        owned = pages[stop - count : stop]
        for position in _positions(request):
            skipped = _is_skipped(position)
            slots.append(-1 if skipped else int(owned[position // page_size]) * page_size + position % page_size)
    return torch.tensor(slots, dtype=torch.int64), num_pages


def _positions(request: Request) -> range:
    return range(request.context_len, request.seq_len)


def _is_skipped(position: int) -> bool:
    """Whether a token has no slot: queries before the first key have none, and here and there another."""
    return position < 0 or position % _SKIPPED_EVERY == _SKIPPED_EVERY - 1
