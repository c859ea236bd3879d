"""Writing to a page cache: every byte in its slot, and no other byte."""

from __future__ import annotations

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import CacheWriteImplementation, CacheWriteTensors
from samebits.backends.token_problem import CacheWrite

from .token_operations import (
    BUNDLED,
    CPU,
    MARKS,
    NAN,
    ON_ANY_DEVICE,
    AnyToken,
    assert_same_bits,
    bits,
    device_of,
    drawn,
    each_dtype,
    each_of,
    far_apart,
    in_two_dtypes,
    on_the_host,
)

pytestmark = MARKS


def caches(layout: str, dtype: str, device: torch.device = CPU) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An allocation of 6 pages of 4 slots for 3 heads of 20, and the caches of keys and values in it."""
    if layout == "contiguous":
        whole = drawn(2, 6, 4, 3, 20, dtype=dtype, device=device)
        return whole, whole[0], whole[1]
    if layout == "interleaved":
        whole = drawn(6, 2, 4, 3, 20, dtype=dtype, device=device)
        return whole, whole[:, 0], whole[:, 1]
    # Heads outermost in a page, and rows longer than a head.
    whole = drawn(6, 3, 4, 2, 24, dtype=dtype, device=device)
    return whole, whole[..., 0, :20].transpose(1, 2), whole[..., 1, :20].transpose(1, 2)


@each_of("cache_write")
@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "interleaved", "heads_outermost"])
@pytest.mark.parametrize("slots", [[5, -1, 23, 0, -1, 6], [-1, 0, 22, 3, 7, 12], [-1] * 6, []], ids=str)
def test_bytes_are_stored_in_their_slots_and_nowhere_else(
    implementation: AnyToken, dtype: str, layout: str, slots: list[int]
) -> None:
    device = device_of(implementation)
    whole, key_cache, value_cache = caches(layout, dtype, device)
    packed = drawn(len(slots), 6, 20, dtype=dtype, seed=1, device=device)
    if slots:
        bits(packed)[0] |= 0x7FC1 if packed.element_size() == 2 else 0x7FC00001  # NaNs of many payloads
    key, value = packed[:, :3], packed[:, 3:]
    expected = whole.clone()
    expected_keys, expected_values = (
        expected.as_strided(cache.shape, cache.stride(), cache.storage_offset()) for cache in (key_cache, value_cache)
    )
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected_keys[slot // 4, slot % 4], expected_values[slot // 4, slot % 4] = key[token], value[token]
    slot_mapping = torch.tensor(slots, dtype=torch.int64, device=device)
    implementation.run(
        CacheWrite("test", 3, 20, 4), CacheWriteTensors(key, value, key_cache, value_cache, slot_mapping)
    )
    assert_same_bits(whole, expected, "the caches hold other bits")


@each_of("cache_write")
@in_two_dtypes
def test_every_bit_is_kept(implementation: AnyToken, dtype: str) -> None:
    device, wide = device_of(implementation), dtype == "fp32"
    patterns = torch.arange(-128, 128, dtype=torch.int32 if wide else torch.int16)
    # NaNs of many payloads, infinities, zeros of both signs, denormals.
    key = (patterns * (2**23 if wide else 2**7) + 1).view(DTYPES[dtype]).view(4, 2, 32).to(device)
    value = patterns.view(DTYPES[dtype]).view(4, 2, 32).to(device)
    key_cache, value_cache = (torch.zeros(3, 4, 2, 32, dtype=DTYPES[dtype], device=device) for _ in range(2))
    expected = []
    for rows, cache in ((key, key_cache), (value, value_cache)):
        filled = cache.clone().flatten(0, 1)
        filled[[11, 0, 5]] = rows[[0, 1, 3]]
        expected.append(filled.view(cache.shape))
    slots = torch.tensor([11, 0, -1, 5], device=device)
    implementation.run(CacheWrite("test", 2, 32, 4), CacheWriteTensors(key, value, key_cache, value_cache, slots))
    assert_same_bits(key_cache, expected[0], "key_cache")
    assert_same_bits(value_cache, expected[1], "value_cache")


@each_of("cache_write")
def test_the_strides_of_each_tensor_are_followed(implementation: AnyToken) -> None:
    device = device_of(implementation)
    packed = drawn(5, 3 * 2 * 24, device=device).view(5, 3, 2, 24)
    key, value = packed[:, 0], drawn(2, 5, 24, seed=1, device=device).transpose(0, 1)
    # Pages of keys and of something else lie in turn, heads before slots; pages of values have a slot more.
    key_cache = torch.full((3, 2, 2, 4, 24), NAN, device=device)[:, 0].transpose(1, 2)
    value_cache = torch.full((3, 5, 2, 24), NAN, device=device)[:, :4]
    slots = torch.tensor([3, -1, 8, 9, 0], device=device)
    implementation.run(CacheWrite("test", 2, 24, 4), CacheWriteTensors(key, value, key_cache, value_cache, slots))
    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                found = cache[slot // 4, slot % 4]
                assert_same_bits(found, rows[row], f"{name} in slot {slot}")
                found.fill_(NAN)
        whole = cache._base
        assert whole is not None, f"the {name} cache is not a view"
        assert whole.isnan().all(), f"{name}s were written to slots that no token has"


@each_of("cache_write", ON_ANY_DEVICE)
@pytest.mark.parametrize("slots", [[-2, 1, 24, 1 << 40], [24, -5, 1 << 40]], ids=str)
def test_what_has_no_slot_of_the_cache_is_written_nowhere_where_nobody_can_refuse_it(
    implementation: AnyToken, slots: list[int]
) -> None:
    """As on a GPU, whose values the host cannot look at without waiting: there `compute` is all that stands."""
    assert isinstance(implementation, CacheWriteImplementation)
    device = device_of(implementation)
    whole = drawn(2 + 6 + 2, 4, 3, 20, device=device)
    expected, new = whole.clone(), drawn(len(slots), 3, 20, seed=1, device=device)
    if 1 in slots:
        expected[2, 1] = new[slots.index(1)]
    cache = whole[2:8]
    tensors = CacheWriteTensors(new, new, cache, cache.clone(), torch.tensor(slots, device=device))
    implementation.compute(CacheWrite("test", 3, 20, 4), tensors)
    assert_same_bits(whole, expected, "the memory around the cache, or a slot that is nobody's")


@each_of("cache_write", BUNDLED)
def test_offsets_into_the_cache_have_64_bits(implementation: AnyToken) -> None:
    on_the_host(implementation)
    key, value = drawn(5, 2, 16, dtype="bf16"), drawn(5, 2, 16, dtype="bf16", seed=1)
    empty = torch.zeros(5, 4, 2, 16, dtype=torch.bfloat16)
    key_cache, value_cache = (far_apart(empty, 1 << 29) for _ in range(2))
    slots = torch.tensor([19, 16, 0, -1, 7])
    implementation.run(CacheWrite("test", 2, 16, 4), CacheWriteTensors(key, value, key_cache, value_cache, slots))
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert_same_bits(key_cache[slot // 4, slot % 4], key[row], f"key of slot {slot}")
            assert_same_bits(value_cache[slot // 4, slot % 4], value[row], f"value of slot {slot}")
