"""The data of a request, from a counter-based generator keyed by the request alone.

Philox4x64-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11) maps a key and a
counter to 256 bits. The key is (seed, request, tensor) and the counter the position of the token, so a token's values
are the same in any batch, at any place, on any page and in any chunk of its sequence, and one stream over the batch
never exists.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt

from samebits.backends.problem import Geometry
from samebits.harness.philox import WORDS_PER_COUNT

# A decoder position may be negative (see Request.context_len); counters may not.
_POSITION_ORIGIN = 1 << 32
# Sum of four uniform 16-bit integers: mean 2 * (2^16 - 1), variance 4 * (2^32 - 1) / 12.
LARGEST_SUM = 4 * 0xFFFF
_SUM_MEAN = LARGEST_SUM / 2
_SUM_DEVIATION = float(np.sqrt((2.0**32 - 1.0) / 3.0))
# Exponent of each dtype's smallest normal number, and by how much those of `denormal_values` differ from it: below it
# by all that bf16 has there, above by enough for what a thousand flushed operations lose to be small beside their sum.
# No two elements of a rotated pair lie a multiple of their number apart, so that those differ.
_SMALLEST_NORMAL_EXPONENT = {"fp32": -126, "bf16": -126, "fp16": -14}
_AROUND_SMALLEST_NORMAL = np.arange(-6, 22)


class Role(StrEnum):
    """What a tensor is to its request, or to the layer. Encoder keys and values are data of their own."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    ENCODER_KEY = "encoder_key"
    ENCODER_VALUE = "encoder_value"
    SINK = "sink"
    LSE = "lse"
    OTHER_LSE = "other_lse"
    INPUT = "input"
    OTHER_INPUT = "other_input"
    WEIGHT = "weight"
    BIAS = "bias"


def shaped(
    values: npt.NDArray[np.float32], first: Callable[[], npt.NDArray[np.float32]], role: Role, data: str, dtype: str
) -> npt.NDArray[np.float32]:
    """Turns normal values into another kind of data. What is said of values holds of every tensor that is summed up.

    * `large_scores`: queries 8 times as large, so that scores deviate by 8 and few keys carry the weight.
    * `huge_scores`: queries 64 times as large, so that the exponential of a score alone would overflow.
    * `negative_scores`: positive queries on negative keys, so that 0 would be the largest score of all, by so much that
      in float32 the exponential of every score is 0 beside it.
    * `far_scores`: the same on queries 4096 times as large, so that scores lie around -30,000, far below what stands in
      for infinity here and there, and above the ends of clamps. Of sinks, the even heads' lie as far above all scores,
      and the odd heads' mostly below, as low as fp16 can hold.
    * `large_values`: values 1000 times as large.
    * `huge_values`: values beyond what fp16 can hold, but in fp16.
    * `offset_values`: values around 10, so that nothing cancels in their sum.
    * `ties`: all keys of a request are its first one, so that all weights are equal.
    * `denormal_values`: values from well below to well above the smallest normal number of the dtype, by their place in
      the head: what is read, multiplied and added up falls below that number here and there, and results mostly do not.

    Args:
        values: of a range of tokens.
        first: makes those of the token at position 0 alone, `[1, heads, head_dim]`, where they are needed.
        role: which of the request's tensors.
        data: kind of data.
        dtype: name of the dtype that the values will have.
    """
    is_key = role in (Role.KEY, Role.ENCODER_KEY)
    is_value = role in (Role.VALUE, Role.ENCODER_VALUE, Role.INPUT, Role.OTHER_INPUT)
    if data == "large_scores" and role is Role.QUERY:
        return values * np.float32(8.0)
    if data == "huge_scores" and role is Role.QUERY:
        return values * np.float32(64.0)
    if data == "negative_scores" and not is_value:
        return -np.abs(values) if is_key else np.abs(values) * np.float32(16.0)
    if data == "far_scores" and role is Role.SINK:
        odd_head = (np.arange(values.shape[1]) % 2 == 1)[:, None]
        return np.where(odd_head, np.abs(values) * np.float32(-4096.0) - np.float32(49152.0), np.abs(values))
    if data == "far_scores" and not is_value:
        return -np.abs(values) if is_key else np.abs(values) * np.float32(4096.0)
    if data == "large_values" and is_value:
        return values * np.float32(1000.0)
    if data == "huge_values" and is_value:
        return (values + np.float32(4.0)) * np.float32(2.0**8 if dtype == "fp16" else 2.0**16)
    if data == "offset_values" and is_value:
        return values + np.float32(10.0)
    if data == "ties" and is_key:
        return np.broadcast_to(first(), values.shape)
    if data == "denormal_values" and is_value:
        exponents = np.resize(_AROUND_SMALLEST_NORMAL, values.shape[-1]) + _SMALLEST_NORMAL_EXPONENT[dtype]
        return values * np.ldexp(np.float32(1.0), exponents)
    return values


def token_values(
    seed: int, request_key: int, role: Role, geometry: Geometry, start: int, stop: int
) -> npt.NDArray[np.float32]:
    """Values of the tokens at positions `start` to `stop` (exclusive) of one request, for attention.

    Returns:
        float32 `[stop - start, heads, head_dim]`, read-only; `heads` are `num_heads` of queries and sinks, else
        `num_kv_heads`.
    """
    heads = geometry.num_heads if role in (Role.QUERY, Role.SINK) else geometry.num_kv_heads
    return values_at(seed, request_key, role, (heads, geometry.head_dim), start, stop)


@dataclass(frozen=True)
class Stream:
    """Where the generator's words for one tensor of one request are found.

    Attributes:
        key: of the generator, 128 bits.
        counts_per_token: increments of the counter that a token takes; of its last words some may be left over.
    """

    key: int
    counts_per_token: int

    @classmethod
    def of(cls, seed: int, request_key: int, role: Role, shape: tuple[int, int]) -> Self:
        """The stream of a tensor whose tokens have a shape: heads and elements of each."""
        heads, width = shape
        name = f"{seed}/{request_key}/{role.value}/{heads}x{width}"
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
        return cls(key, counts_per_token=-(-heads * width // WORDS_PER_COUNT))

    @property
    def words_per_token(self) -> int:
        """64-bit words, the first of which are the token's elements."""
        return self.counts_per_token * WORDS_PER_COUNT

    def first_count(self, position: int) -> int:
        """The counter at which a token begins, by its position, which may be negative."""
        return (position + _POSITION_ORIGIN) * self.counts_per_token


def normal_values(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The values that sums of four 16-bit integers stand for: centred and scaled to variance 1."""
    values: npt.NDArray[np.float32] = ((sums - _SUM_MEAN) / _SUM_DEVIATION).astype(np.float32)
    return values


@functools.lru_cache(maxsize=512)
def values_at(
    seed: int, request_key: int, role: Role, shape: tuple[int, int], start: int, stop: int
) -> npt.NDArray[np.float32]:
    """Values of the tokens at positions `start` to `stop` (exclusive) of one request.

    Each value is the centred and scaled sum of four 16-bit integers: mean 0, variance 1, within 3.5 standard
    deviations of 0. Only integer sums and one correctly rounded division are involved, so every machine makes the same
    bits, which a logarithm or a cosine would not promise.

    Args:
        seed: of all data of the problem.
        request_key: names the request's data.
        role: which of the request's tensors.
        shape: of one token: heads and elements of each.
        start: first position; may be negative for queries.
        stop: position after the last.

    Returns:
        float32 `[stop - start, *shape]`, read-only.
    """
    heads, width = shape
    stream = Stream.of(seed, request_key, role, shape)
    generator = np.random.Philox(key=stream.key, counter=stream.first_count(start))
    words = generator.random_raw((stop - start) * stream.words_per_token)
    quarters = words.astype("<u8", copy=False).view("<u2").reshape(stop - start, stream.words_per_token, 4)
    sums = quarters[:, : heads * width].sum(axis=2, dtype=np.int64)
    values = normal_values(sums).reshape(stop - start, heads, width)
    values.flags.writeable = False
    return values
