"""Rotary embedding: its tensors and its reference."""

from __future__ import annotations

import functools

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import RotaryTensors
from samebits.backends.problem import Request
from samebits.backends.token_problem import RotaryEmbedding, TokenProblem
from samebits.harness.comparison import same_bits
from samebits.harness.dataset import Role
from samebits.harness.rounding import FLOAT32_ROUNDOFF, FLOAT32_TINY, lost_on_reading
from samebits.harness.tokens.placement import place
from samebits.harness.tokens.prepared import Expected, Prepared, all_values, request_values, token_rows
from samebits.harness.tokens.touched import TouchedMemory, tells_touched
from samebits.harness.tokens.untouched import plant_easily_lost

# Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, section 3.2.2. Every seed has a
# multiple of its own, so that another layer has another, as in models that have two in their layers.
_BASE = 10000.0


class LentCopy:
    """A copy of the last cache that was asked for, lent to one call after another that leaves it as it was.

    A cache of 131,072 positions is tens of megabytes, and a copy for each call as dear as the call.
    """

    def __init__(self) -> None:
        """Has no copy yet."""
        self._original: torch.Tensor | None = None
        self._copy: torch.Tensor | None = None

    def lent(self, original: torch.Tensor) -> torch.Tensor:
        """A copy that nobody else has."""
        copy = self._copy if self._original is original else None
        self._original = self._copy = None
        return original.clone() if copy is None else copy

    def give_back(self, original: torch.Tensor, copy: torch.Tensor) -> None:
        """Keeps a copy that has the bits of its original for the next call."""
        self._original, self._copy = original, copy


_COPIES = LentCopy()


class PreparedRotary(Prepared[RotaryTensors]):
    """Queries and keys to rotate.

    Attributes:
        cache_memory: of the cosines and sines, where it is watched and tells what of it is touched; else None.
    """

    def __init__(self, problem: TokenProblem, operation: RotaryEmbedding, device: torch.device) -> None:
        self._problem, self._operation, self._device = problem, operation, device
        layout = problem.layout
        num_rows = problem.num_tokens + layout.padding_tokens
        query, key = (
            place(
                self._with_tails(all_values(problem, role, (heads, operation.head_dim), device, num_rows)),
                problem,
                second=role is Role.OTHER_INPUT,
            )
            for role, heads in ((Role.INPUT, operation.num_heads), (Role.OTHER_INPUT, operation.num_kv_heads))
        )
        positions = [torch.arange(request.context_len, request.seq_len) for request in problem.requests]
        # Engines give padding rows a position that exists.
        padding = torch.zeros(layout.padding_tokens, dtype=torch.int64)
        self._cache = cos_sin_cache(
            operation.max_position,
            operation.rotary_dim,
            operation.cache_dtype or problem.dtype,
            device,
            _BASE * (1 + problem.seed),
        )
        tells = layout.watched and device.type == "cpu" and tells_touched()
        self.cache_memory = TouchedMemory(self._cache) if tells else None
        self.tensors = RotaryTensors(
            query=query.tensor,
            key=key.tensor,
            positions=torch.cat([*positions, padding]).to(device),
            cos_sin_cache=_COPIES.lent(self._cache) if self.cache_memory is None else self.cache_memory.tensor,
        )
        self.read = {"positions": self.tensors.positions}
        self.written = {"query": query, "key": key}
        self._tails_before = {name: tail.clone() for name, tail in self._tails().items()}

    def results(self) -> dict[int, dict[str, torch.Tensor]]:
        """The rotated queries and keys of each request."""
        return {
            request.key: {"query": self.tensors.query[rows].clone(), "key": self.tensors.key[rows].clone()}
            for request, rows in zip(self._problem.requests, token_rows(self._problem), strict=True)
        }

    def faults(self) -> list[str]:
        """Whether the cache and the elements that are not rotated have the bits they had."""
        cache = self.tensors.cos_sin_cache
        # As integers: torch compares those several times as fast.
        bits = torch.int32 if cache.element_size() == 4 else torch.int16
        unchanged = torch.equal(cache.view(bits), self._cache.view(bits))
        if unchanged and self.cache_memory is None:
            _COPIES.give_back(self._cache, cache)
        return ([] if unchanged else ["run changed its cos_sin_cache"]) + [
            f"run changed bits of its {name} behind rotary_dim {self._operation.rotary_dim}"
            for name, tail in self._tails().items()
            if not same_bits(tail, self._tails_before[name])
        ]

    def expected(self, request: Request) -> dict[str, Expected]:
        """Both rotated in float64, by the cosines and sines of the cache as they are."""
        operation = self._operation
        cached = self._cache[request.context_len : request.seq_len].to(torch.float64)
        cosines, sines = cached.unsqueeze(1).chunk(2, dim=2)
        if operation.inverse:
            sines = -sines
        inputs = {
            name: self._with_tails(request_values(self._problem, request, role, (heads, operation.head_dim))).to(
                self._device
            )
            for name, role, heads in (
                ("query", Role.INPUT, operation.num_heads),
                ("key", Role.OTHER_INPUT, operation.num_kv_heads),
            )
        }
        return {name: _rotated(values, cosines, sines, operation) for name, values in inputs.items()}

    def _with_tails(self, heads: torch.Tensor) -> torch.Tensor:
        """Puts into each head, behind what is rotated, bits that arithmetic may not keep."""
        plant_easily_lost(heads[..., self._operation.rotary_dim :])
        return heads

    def _tails(self) -> dict[str, torch.Tensor]:
        """What of the requests' queries and keys is not rotated; padding rows are nobody's."""
        tokens, tail = slice(self._problem.num_tokens), slice(self._operation.rotary_dim, None)
        return {"query": self.tensors.query[tokens, :, tail], "key": self.tensors.key[tokens, :, tail]}


@functools.lru_cache(maxsize=16)
def cos_sin_cache(
    max_position: int, rotary_dim: int, dtype: str, device: torch.device, base: float = _BASE
) -> torch.Tensor:
    """Cosines, then sines, of every position: `[max_position, rotary_dim]` in a dtype. It is shared: not to be written.

    Args:
        max_position: rows.
        rotary_dim: columns; pair `i` turns by `position * base^(-2 i / rotary_dim)`.
        dtype: name of the dtype.
        device: where it goes.
        base: of the angles' powers.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    angles = torch.outer(torch.arange(max_position, dtype=torch.float64), base**-exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(DTYPES[dtype]).to(device)


def _rotated(values: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, operation: RotaryEmbedding) -> Expected:
    """Rotates the pairs; the bound is that of two products and one sum in float32, to first order.

    Below the smallest normal number, elements as they are read, both products, and their sum may be taken for 0.
    """
    wide = values.to(torch.float64)
    result, bound = wide.clone(), torch.zeros_like(wide)
    rotary_dim = operation.rotary_dim
    if operation.interleaved:
        pair = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
    else:
        pair = slice(0, rotary_dim // 2), slice(rotary_dim // 2, rotary_dim)
    first, second = (wide[..., half] for half in pair)
    lost = lost_on_reading(wide, values.dtype)
    for half, products, (by_cosine, by_sine) in (
        (pair[0], (first * cosines, -second * sines), pair),
        (pair[1], (second * cosines, first * sines), pair[::-1]),
    ):
        result[..., half] = products[0] + products[1]
        magnitude = products[0].abs() + products[1].abs()
        flushed = lost[..., by_cosine] * cosines.abs() + lost[..., by_sine] * sines.abs() + 2 * FLOAT32_TINY
        bound[..., half] = 2 * FLOAT32_ROUNDOFF * magnitude + flushed + torch.finfo(values.dtype).tiny
    return Expected(result, bound)
