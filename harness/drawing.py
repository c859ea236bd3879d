"""Many tokens of a request drawn where they are needed, with the bits of `samebits.harness.dataset.values_at`.

The keys of a request of 131,072 tokens are 134 million values, for which numpy takes some ten seconds and several GiB.
Here the same generator counts on the device, and the four 16-bit integers of a word are added up there. What follows,
a division, two roundings and what a kind of data does to a value, depends on their sum alone, which has fewer than 2^18
values: it is done by numpy for each of them, as for few tokens, and looked up. So no device divides or rounds, and all
make the same bits.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from samebits.backends.contract import DTYPES
from samebits.harness.dataset import LARGEST_SUM, Role, Stream, normal_values, shaped
from samebits.harness.philox import philox_words

# Kinds of data that make of each value what depends on it alone; the others are drawn by numpy.
_KINDS_BY_VALUE = ("normal", "large_scores", "huge_scores", "negative_scores", "large_values", "offset_values")
# What numpy draws in less time than the launches take, or than it is worth where few dtypes and kinds of data share it.
_FEW_ON_HOST, _FEW_ON_DEVICE = 1 << 22, 1 << 16
# Counters drawn at once: as many as fit into a processor's cache, and enough to fill a GPU.
_COUNTS_ON_HOST, _COUNTS_ON_DEVICE = 1 << 14, 1 << 20


def is_drawn_here(data: str, elements: int, device: torch.device) -> bool:
    """Whether values are drawn here rather than by numpy: the bits are the same, and it is faster."""
    few = _FEW_ON_HOST if device.type == "cpu" else _FEW_ON_DEVICE
    return elements >= few and data in _KINDS_BY_VALUE


def drawn_values(
    seed: int,
    request_key: int,
    role: Role,
    shape: tuple[int, int],
    start: int,
    stop: int,
    data: str,
    dtype: str,
    device: torch.device,
) -> torch.Tensor:
    """Values of the tokens at positions `start` to `stop` (exclusive) of one request.

    Args:
        seed: of all data of the problem.
        request_key: names the request's data.
        role: which of the request's tensors.
        shape: of one token: heads and elements of each.
        start: first position; may be negative for queries.
        stop: position after the last.
        data: kind of data, one of those that change each value by itself.
        dtype: name of the dtype.
        device: where to draw.

    Returns:
        `[stop - start, *shape]` in the dtype.
    """
    heads, width = shape
    elements = heads * width
    stream = Stream.of(seed, request_key, role, shape)
    table = _values_of_sums(role, data, dtype).to(device)
    values = torch.empty((stop - start, elements), dtype=DTYPES[dtype], device=device)
    at_once = _COUNTS_ON_HOST if device.type == "cpu" else _COUNTS_ON_DEVICE
    tokens_at_once = max(1, at_once // stream.counts_per_token)
    for first in range(0, stop - start, tokens_at_once):
        tokens = min(tokens_at_once, stop - start - first)
        words = philox_words(stream.key, stream.first_count(start + first), tokens * stream.counts_per_token, device)
        of_tokens = words.view(tokens, stream.words_per_token)[:, :elements]
        values[first : first + tokens] = table[_sum_of_quarters(of_tokens)]
    return values.view(stop - start, heads, width)


def _sum_of_quarters(words: torch.Tensor) -> torch.Tensor:
    """The sum of the four 16-bit integers of each word."""
    quarters = words & 0xFFFF
    for shift in (16, 32, 48):
        quarters += (words >> shift) & 0xFFFF
    return quarters


@functools.lru_cache(maxsize=32)
def _values_of_sums(role: Role, data: str, dtype: str) -> torch.Tensor:
    """The value that each sum of four 16-bit integers stands for, in a dtype, on the host."""
    sums = np.arange(LARGEST_SUM + 1, dtype=np.int64)
    normal = normal_values(sums).reshape(-1, 1, 1)
    values = shaped(normal, lambda: normal[:1], role, data, dtype)
    return torch.tensor(values.reshape(-1), dtype=torch.float32).to(DTYPES[dtype])
