"""Philox4x64-10 in wrapping int64 arithmetic, on any device: the bits that numpy's generator of that name gives.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11. Integer additions, products and shifts
give the same bits everywhere, so data may be drawn where they are needed. On a GPU that takes a small part of the time
in which a processor draws them and hands them over; see `samebits.harness.drawing`.
"""

from __future__ import annotations

import torch

WORDS_PER_COUNT = 4
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW_HALF = 0xFFFFFFFF


def philox_words(key: int, first_count: int, counts: int, device: torch.device) -> torch.Tensor:
    """The 64-bit words of consecutive counters.

    Args:
        key: 128 bits.
        first_count: the first counter, as numpy's `Philox(counter=...)` takes it; below 2^62.
        counts: how many counters.
        device: where to draw.

    Returns:
        int64 `[counts * 4]`, the bits of unsigned words in the order of numpy's `random_raw`.
    """
    # numpy counts on before it draws.
    counter = torch.arange(first_count + 1, first_count + 1 + counts, dtype=torch.int64, device=device)
    zeros = torch.zeros_like(counter)
    words = [counter, zeros, zeros, zeros]
    keys = [key & (2**64 - 1), key >> 64]
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(words[0], _MULTIPLIERS[0])
        high_1, low_1 = _product(words[2], _MULTIPLIERS[1])
        words = [
            high_1.bitwise_xor_(words[1]).bitwise_xor_(signed(keys[0])),
            low_1,
            high_0.bitwise_xor_(words[3]).bitwise_xor_(signed(keys[1])),
            low_0,
        ]
        keys = [(half + step) % 2**64 for half, step in zip(keys, _WEYL, strict=True)]
    return torch.stack(words, dim=1).flatten()


def signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word


def _product(words: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low words of the 128-bit products of unsigned words with a constant, from products of 32-bit halves."""
    factor_low, factor_high = factor & _LOW_HALF, factor >> 32
    low, high = words & _LOW_HALF, _high_half(words)
    # None of these sums exceeds 64 bits: (2^32 - 1)^2 + (2^32 - 1) is below 2^64.
    middle = (high * factor_low).add_(_high_half(low * factor_low))
    other_middle = low.mul_(factor_high).add_(middle & _LOW_HALF)
    upper = high.mul_(factor_high).add_(_high_half(middle)).add_(_high_half(other_middle))
    return upper, words * signed(factor)


def _high_half(words: torch.Tensor) -> torch.Tensor:
    """The upper 32 bits of words, as numbers: the shift itself would carry the sign along."""
    return (words >> 32).bitwise_and_(_LOW_HALF)
