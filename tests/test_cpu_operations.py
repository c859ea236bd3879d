"""The CPU's operations on tokens: values against float64, bits, memory, and what is refused."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.cpu_operations import (
    BundledCacheWrite,
    BundledLinear,
    BundledMerge,
    BundledRmsNorm,
    BundledRotary,
    operations,
)
from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
    TokenTensors,
)
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.allocations import largest_allocation
from samebits.harness.reference import budget_used
from samebits.kernels.cpu import build, cache_write, linear, merge, rms_norm, rotary

UNIT = 2.0**-24  # half a unit in the last place of a float32 of 1
AnyToken = TokenImplementation[Any, Any]
BUNDLED = [each for each in operations() if each.name == "bundled"]

each_dtype = pytest.mark.parametrize("dtype", list(DTYPES))
each_bundled = pytest.mark.parametrize("implementation", BUNDLED, ids=lambda each: each.operation)


def each_of(operation: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "implementation", [each for each in operations() if each.operation == operation], ids=lambda each: each.label
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain_library() -> ctypes.CDLL:
    """The kernels without the instructions that only this processor has."""
    return build.load_library(flags=(*(flag for flag in build.FLAGS if not flag.startswith(("-march", "-O"))), "-O1"))


def drawn(*shape: int, dtype: str = "fp32", seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def assert_same_bits(left: torch.Tensor, right: torch.Tensor, difference: str) -> None:
    count = int((bits(left) != bits(right)).sum())
    assert not count, f"{difference}: {count} of {left.numel()} elements differ"


def assert_within(actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
    used = budget_used(actual, expected, bound + torch.finfo(actual.dtype).tiny)
    worst = used.argmax()
    assert used.max() <= 1, (
        f"element {int(worst)} is {actual.flatten()[worst].item()!r} and not {expected.flatten()[worst].item()!r}, "
        f"{float(used.max()):.2f} times as far off as allowed before rounding"
    )


def rotary_cache(max_position: int, rotary_dim: int, dtype: str) -> torch.Tensor:
    angles = torch.outer(
        torch.arange(max_position).double(), 10000.0 ** -torch.linspace(0, 0.9, rotary_dim // 2).double()
    )
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(DTYPES[dtype])


def turned(heads: torch.Tensor, rows: torch.Tensor, operation: RotaryEmbedding) -> tuple[torch.Tensor, torch.Tensor]:
    """Heads rotated pair by pair as complex numbers in float64, and the magnitude of what each element adds up."""
    half = operation.rotary_dim // 2
    result, magnitude = heads.double(), torch.zeros(heads.shape, dtype=torch.float64)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if operation.interleaved else (i, half + i)
        sine = -rows[:, None, half + i] if operation.inverse else rows[:, None, half + i]
        turn = torch.complex(rows[:, None, i].double(), sine.double())
        point = torch.complex(heads[..., a].double(), heads[..., b].double()) * turn
        result[..., a], result[..., b] = point.real, point.imag
        for element, other in ((a, b), (b, a)):
            magnitude[..., element] = (heads[..., element].double() * turn.real).abs()
            magnitude[..., element] += (heads[..., other].double() * turn.imag).abs()
    return result, magnitude


@each_of("rope")
@each_dtype
@pytest.mark.parametrize("cache_is_float32", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("rotary_dim", "inverse"), [(80, False), (26, True)])
def test_rotary_turns_the_pairs_of_a_packed_projection_and_nothing_else(
    implementation: AnyToken, dtype: str, cache_is_float32: bool, interleaved: bool, rotary_dim: int, inverse: bool
) -> None:
    operation = RotaryEmbedding("test", 4, 2, 80, rotary_dim, interleaved, inverse)
    packed = drawn(9, 4 + 2 + 2, 80, dtype=dtype)
    before = packed.clone()
    cache = rotary_cache(64, rotary_dim, "fp32" if cache_is_float32 else dtype)
    positions = torch.tensor([3, 0, 63, 7, 7, 1, 40, 2, 0])
    implementation.run(operation, RotaryTensors(packed[:, :4], packed[:, 4:6], positions, cache))
    expected, magnitude = turned(before[:, :6], cache[positions], operation)
    assert_within(packed[:, :6], expected, 2 * UNIT * magnitude)
    assert_same_bits(packed[..., rotary_dim:], before[..., rotary_dim:], "elements from rotary_dim on were changed")
    assert_same_bits(packed[:, 6:], before[:, 6:], "the values beside the keys were changed")


@each_of("rope")
@each_dtype
def test_rotary_allocates_nothing_of_the_caches_size(implementation: AnyToken, dtype: str) -> None:
    operation = RotaryEmbedding("test", 2, 1, 64, 64, max_position=131072)
    cache = rotary_cache(131072, 64, dtype)
    query, key = drawn(5, 2, 64, dtype=dtype), drawn(5, 1, 64, dtype=dtype, seed=1)
    positions = torch.tensor([131071, 0, 65536, 131070, 99])
    expected, magnitude = turned(query, cache[positions], operation)
    tensors = RotaryTensors(query, key, positions, cache)
    implementation.probe()
    largest = largest_allocation(lambda: implementation.run(operation, tensors), cache.device)
    assert largest <= 4 * query.numel() * 4, f"{largest} bytes at once, for {query.nbytes} bytes of queries"
    assert_within(query, expected, 2 * UNIT * magnitude)


@pytest.mark.parametrize("position", [-1, 16])
def test_rotary_refuses_a_position_that_the_cache_does_not_hold_and_writes_nothing(position: int) -> None:
    query, key = drawn(3, 2, 32), drawn(3, 1, 32)
    before = query.clone()
    tensors = RotaryTensors(query, key, torch.tensor([0, 1, position]), rotary_cache(16, 32, "fp32"))
    with pytest.raises(ValueError, match=rf"token 2 has position {position}; the cache holds 0 to 15"):
        BundledRotary().run(RotaryEmbedding("test", 2, 1, 32, 32), tensors)
    assert_same_bits(query, before, "queries were rotated before the refusal")


def empty_caches(layout: str, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An allocation of 6 pages of 4 slots for 3 heads of 20, and the caches of keys and values in it."""
    if layout == "contiguous":
        whole = drawn(2, 6, 4, 3, 20, dtype=dtype)
        return whole, whole[0], whole[1]
    if layout == "interleaved":
        whole = drawn(6, 2, 4, 3, 20, dtype=dtype)
        return whole, whole[:, 0], whole[:, 1]
    # Heads outermost in a page, and rows longer than a head.
    whole = drawn(6, 3, 4, 2, 24, dtype=dtype)
    return whole, whole[..., 0, :20].transpose(1, 2), whole[..., 1, :20].transpose(1, 2)


@each_of("cache_write")
@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "interleaved", "heads_outermost"])
@pytest.mark.parametrize("slots", [[5, -1, 23, 0, -1, 6], [-1, 0, 22, 3, 7, 12], [-1] * 6, []], ids=str)
def test_cache_write_stores_bytes_in_their_slots_and_nowhere_else(
    implementation: AnyToken, dtype: str, layout: str, slots: list[int]
) -> None:
    whole, key_cache, value_cache = empty_caches(layout, dtype)
    packed = drawn(len(slots), 6, 20, dtype=dtype, seed=1)
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
    tensors = CacheWriteTensors(key, value, key_cache, value_cache, torch.tensor(slots, dtype=torch.int64))
    implementation.run(CacheWrite("test", 3, 20, 4), tensors)
    assert_same_bits(whole, expected, "the caches hold other bits")


@pytest.mark.parametrize("slot", [-2, 24])
def test_cache_write_refuses_a_slot_that_the_cache_does_not_have_and_writes_nothing(slot: int) -> None:
    whole, key_cache, value_cache = empty_caches("contiguous", "bf16")
    before, new = whole.clone(), drawn(2, 3, 20, dtype="bf16")
    tensors = CacheWriteTensors(new, new, key_cache, value_cache, torch.tensor([1, slot]))
    with pytest.raises(ValueError, match=rf"token 1 has slot {slot}; the cache has 0 to 23, and -1 is padding"):
        BundledCacheWrite().run(CacheWrite("test", 3, 20, 4), tensors)
    assert_same_bits(whole, before, "the cache was written before the refusal")


def partial_results(dtype: str) -> MergeTensors:
    """Seven tokens of three heads of 20, seen through views of wider tensors."""
    outputs = [drawn(7, 4, 24, dtype=dtype, seed=seed)[:, 1:, :20] for seed in range(2)]
    lses = [drawn(3, 9, seed=seed + 2)[:, :7] * 5 for seed in range(2)]
    return MergeTensors(
        outputs[0],
        lses[0],
        outputs[1],
        lses[1],
        torch.full_like(outputs[0], math.nan),
        torch.full_like(lses[0], math.nan),
    )


@each_of("merge")
@each_dtype
@pytest.mark.parametrize("into_prefix", [False, True])
def test_merge_weighs_both_sides_by_their_log_sum_exps(implementation: AnyToken, dtype: str, into_prefix: bool) -> None:
    tensors = partial_results(dtype)
    largest = torch.maximum(tensors.prefix_lse, tensors.suffix_lse).double()
    weights = torch.stack([(lse.double() - largest).exp() for lse in (tensors.prefix_lse, tensors.suffix_lse)])
    shares = (weights / weights.sum(dim=0)).transpose(1, 2).unsqueeze(3)
    terms = shares * torch.stack([tensors.prefix_output, tensors.suffix_output]).double()
    expected_lse = largest + weights.sum(dim=0).log()
    if into_prefix:
        tensors = dataclasses.replace(tensors, output=tensors.prefix_output, lse=tensors.prefix_lse)
    implementation.run(MergeStates("test", 3, 20), tensors)
    # A weight is off by the rounding of its exponent and its own; then come a product, two sums and a quotient.
    assert_within(tensors.output, terms.sum(dim=0), 8 * UNIT * terms.abs().sum(dim=0))
    assert_within(tensors.lse, expected_lse, 4 * UNIT * torch.ones_like(expected_lse))


@each_of("merge")
@each_dtype
def test_merge_passes_on_the_bits_of_a_side_whose_other_saw_no_key(implementation: AnyToken, dtype: str) -> None:
    tensors = partial_results(dtype)
    tensors.prefix_lse[:, [0, 4]], tensors.suffix_lse[:, [2, 4]] = -math.inf, -math.inf
    tensors.prefix_output[[0, 4]], tensors.suffix_output[[2, 4]] = math.nan, math.nan
    # A result may itself be NaN, of any payload, and -0.
    bits_of_both = torch.tensor([0x7FC00003, -(2**31)], dtype=torch.int32)
    if dtype != "fp32":
        bits_of_both = torch.tensor([0x7FC3, -(2**15)], dtype=torch.int16)
    tensors.suffix_output[0, 0, :2] = bits_of_both.view(DTYPES[dtype])
    implementation.run(MergeStates("test", 3, 20), tensors)
    assert_same_bits(tensors.output[0], tensors.suffix_output[0], "the suffix was not passed on")
    assert_same_bits(tensors.output[2], tensors.prefix_output[2], "the prefix was not passed on")
    assert_same_bits(tensors.output[4], torch.zeros(3, 20, dtype=DTYPES[dtype]), "nothing was seen, and it is not 0")
    assert_same_bits(tensors.lse[:, 0], tensors.suffix_lse[:, 0], "the suffix's log-sum-exp was not passed on")
    assert_same_bits(tensors.lse[:, 2], tensors.prefix_lse[:, 2], "the prefix's log-sum-exp was not passed on")
    assert torch.equal(tensors.lse[:, 4], torch.full((3,), -math.inf)), f"no key has {tensors.lse[:, 4].tolist()}"
    assert not tensors.output[[1, 3, 5, 6]].isnan().any(), "rows of two sides were not merged"


def compute_guarded(
    shape: tuple[int, ...], dtype: torch.dtype, compute: Callable[[torch.Tensor], None]
) -> torch.Tensor:
    """A contiguous output that is all NaN before, with memory behind it that must stay as it is."""
    size, guard = math.prod(shape), 64
    allocation = torch.full((size + guard,), math.nan, dtype=dtype)
    output = allocation[:size].view(shape)
    compute(output)
    assert allocation[size:].isnan().all(), "something was written behind the output"
    return output


def linear_output(
    implementation: AnyToken, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    operation = Linear("test", weight.shape[1], len(weight), bias is not None)
    return compute_guarded(
        (*given.shape[:-1], len(weight)),
        given.dtype,
        lambda output: implementation.run(operation, LinearTensors(given, weight, bias, output)),
    )


@each_of("linear")
@each_dtype
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (50, 7), (512, 64), (1090, 81)])
def test_linear_is_within_the_error_of_float32_sums(
    implementation: AnyToken, dtype: str, has_bias: bool, in_features: int, out_features: int
) -> None:
    given, weight = drawn(37, in_features, dtype=dtype), drawn(out_features, in_features, dtype=dtype, seed=1)
    bias = drawn(out_features, dtype=dtype, seed=2) if has_bias else None
    expected = given.double() @ weight.double().T
    products = given.double().abs() @ weight.double().abs().T
    if bias is not None:
        expected, products = expected + bias.double(), products + bias.double().abs()
    # Errors of a sum grow with the root of its length: Higham and Mary, "A new approach to probabilistic rounding error
    # analysis", 2019.
    bound = 4 * UNIT * math.sqrt(in_features + 2) * products
    assert_within(linear_output(implementation, given, weight, bias), expected, bound)


@each_of("linear")
@each_dtype
def test_linear_of_a_strided_input_of_three_leading_dimensions_has_its_rows_in_place(
    implementation: AnyToken, dtype: str
) -> None:
    wide = drawn(3, 5, 2, 90, dtype=dtype).transpose(0, 1)[..., 7:57]
    weight, bias = drawn(9, 50, dtype=dtype, seed=1), drawn(9, dtype=dtype, seed=2)
    given = linear_output(implementation, wide, weight, bias)
    flat = linear_output(implementation, wide.reshape(30, 50), weight, bias)
    assert_same_bits(given.flatten(0, 2), flat, "the same rows in one dimension have other bits")


@each_dtype
def test_bundled_linear_gives_a_row_the_same_bits_in_any_number_of_rows(dtype: str) -> None:
    implementation = BundledLinear()
    given, weight, bias = (
        drawn(600, 530, dtype=dtype),
        drawn(70, 530, dtype=dtype, seed=1),
        drawn(70, dtype=dtype, seed=2),
    )
    whole = linear_output(implementation, given, weight, bias)
    for rows in (*range(1, 36), 63, 64, 65, 599):
        first = 600 - rows
        part = linear_output(implementation, given[first:], weight, bias)
        assert_same_bits(part, whole[first:], f"the last {rows} of 600 rows have other bits by themselves")
    poisoned = given.clone()
    poisoned[::2] = math.nan
    kept = linear_output(implementation, poisoned, weight, bias)[1::2]
    assert_same_bits(kept, whole[1::2], "rows between rows of NaN have other bits")


@each_dtype
def test_bundled_linear_computes_a_feature_alike_beside_any_others(dtype: str) -> None:
    implementation = BundledLinear()
    given, weight = drawn(5, 100, dtype=dtype), drawn(130, 100, dtype=dtype, seed=1)
    whole = linear_output(implementation, given, weight, None)
    for features in (1, 15, 16, 17, 63, 64, 65):
        part = linear_output(implementation, given, weight[-features:], None)
        assert_same_bits(part, whole[:, -features:], f"the last {features} features have other bits by themselves")


def normalised(implementation: AnyToken, given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    operation = RmsNorm("test", given.shape[-1], 1e-5)
    return compute_guarded(
        tuple(given.shape),
        given.dtype,
        lambda output: implementation.run(operation, RmsNormTensors(given, weight, output)),
    )


@each_of("rms_norm")
@each_dtype
@pytest.mark.parametrize("size", [1, 50, 512, 1090])
@pytest.mark.parametrize("scale", [1.0, 2.0**-12])
def test_rms_norm_is_within_the_error_of_float32(implementation: AnyToken, dtype: str, size: int, scale: float) -> None:
    given, weight = drawn(11, size, dtype=dtype) * scale, drawn(size, dtype=dtype, seed=1)
    exact = given.double()
    expected = exact / (exact.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.double()
    bound = (6 + 4 * math.sqrt(size)) * UNIT * expected.abs()
    assert_within(normalised(implementation, given, weight), expected, bound)


@each_of("rms_norm")
@each_dtype
def test_rms_norm_of_a_strided_input_of_three_leading_dimensions_has_its_rows_in_place(
    implementation: AnyToken, dtype: str
) -> None:
    wide = drawn(3, 5, 2, 90, dtype=dtype).transpose(0, 1)[..., 7:57]
    weight = drawn(50, dtype=dtype, seed=1)
    given = normalised(implementation, wide, weight)
    assert_same_bits(given.flatten(0, 2), normalised(implementation, wide.reshape(30, 50), weight), "other bits flat")


OPERATIONS: dict[str, TokenOperation] = {
    "rope": RotaryEmbedding("test", 2, 1, 32, 32),
    "cache_write": CacheWrite("test", 1, 32, 4),
    "merge": MergeStates("test", 2, 32),
    "linear": Linear("test", 32, 8, bias=True),
    "rms_norm": RmsNorm("test", 32),
}


def tensors_of(operation: str, tokens: int, dtype: str = "fp32") -> TokenTensors:
    """Tensors for one of `OPERATIONS`, every element of every output 0."""
    heads, one_head, row = (drawn(tokens, *shape, dtype=dtype) for shape in ((2, 32), (1, 32), (32,)))
    lse, cache = drawn(2, tokens), torch.zeros(tokens // 4 + 1, 4, 1, 32, dtype=DTYPES[dtype])
    match operation:
        case "rope":
            return RotaryTensors(heads, one_head, torch.arange(tokens), rotary_cache(max(tokens, 16), 32, dtype))
        case "cache_write":
            return CacheWriteTensors(one_head, one_head, cache, cache.clone(), torch.arange(tokens))
        case "merge":
            return MergeTensors(heads, lse, heads.flip(1), lse.flip(0), torch.zeros_like(heads), torch.zeros_like(lse))
        case "linear":
            output = torch.zeros(tokens, 8, dtype=DTYPES[dtype])
            return LinearTensors(row, drawn(8, 32, dtype=dtype), drawn(8, dtype=dtype), output)
        case _:
            return RmsNormTensors(row, drawn(32, dtype=dtype), torch.zeros_like(row))


@pytest.mark.parametrize("implementation", operations(), ids=lambda each: f"{each.label}-{each.operation}")
def test_no_tokens_are_no_work(implementation: AnyToken) -> None:
    tensors = tensors_of(implementation.operation, 0)
    implementation.run(OPERATIONS[implementation.operation], tensors)
    if isinstance(tensors, CacheWriteTensors):
        assert not tensors.key_cache.any(), "something was written for no token"


def run_on_copies(implementation: AnyToken, tensors: TokenTensors) -> TokenTensors:
    copies = type(tensors)(**{name: tensor.clone() for name, tensor in vars(tensors).items()})
    implementation.run(OPERATIONS[implementation.operation], copies)
    return copies


def assert_same_results(left: TokenTensors, right: TokenTensors, setting: str) -> None:
    for name in set(vars(left)) - {"positions", "slot_mapping"}:
        assert_same_bits(getattr(left, name), getattr(right, name), f"{name}, {setting}")


@each_bundled
@each_dtype
def test_bits_do_not_depend_on_threads_nor_on_the_callers_floating_point_environment(
    implementation: AnyToken, dtype: str
) -> None:
    tensors = tensors_of(implementation.operation, 6000, dtype)
    for name in {"query", "input", "prefix_output", "suffix_output"} & set(vars(tensors)):
        getattr(tensors, name)[::2] *= torch.finfo(DTYPES[dtype]).tiny  # about half of them subnormal

    def run_on(threads: int) -> TokenTensors:
        torch.set_num_threads(threads)
        return run_on_copies(implementation, tensors)

    once, others = run_on(1), {"two threads": run_on(2)}
    torch.set_flush_denormal(True)
    try:
        others["subnormal numbers flushed"] = run_on(2)
    finally:
        torch.set_flush_denormal(False)
    for setting, other in others.items():
        assert_same_results(other, once, setting)


@each_bundled
@each_dtype
def test_bits_do_not_depend_on_the_instruction_set(
    implementation: AnyToken, dtype: str, plain_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tensors_of(implementation.operation, 37, dtype)
    native = run_on_copies(implementation, tensors)
    monkeypatch.setattr(implementation, "_loaded", plain_library)
    assert_same_results(run_on_copies(implementation, tensors), native, f"compiled for any {platform.machine()}")


def test_python_mirrors_the_interfaces_of_the_kernels() -> None:
    library = build.load_library()
    for module, structure in (
        ("rotary", rotary.RotaryCall),
        ("cache_write", cache_write.CacheWriteCall),
        ("merge", merge.MergeCall),
    ):
        size = library[f"samebits_{module}_call_size"]
        size.restype = ctypes.c_int64
        assert size() == ctypes.sizeof(structure), (
            f"{module}: C++ has {size()} bytes, Python {ctypes.sizeof(structure)}"
        )
    interface = (ctypes.c_int64 * 3)()
    library.samebits_linear_interface(interface)
    assert list(interface) == [ctypes.sizeof(linear.LinearCall), linear.CHUNK, linear.ROW_TILE]
    library.samebits_rms_norm_interface(interface)
    assert list(interface)[:2] == [ctypes.sizeof(rms_norm.RmsNormCall), rms_norm.CHUNK]


@pytest.mark.parametrize(
    ("implementation", "name", "change", "message"),
    [
        (BundledRotary(), "query", lambda t: t.double(), "query has dtype torch.float64; it must be one of"),
        (BundledRotary(), "key", lambda t: t[:-1], r"key is .*; it must be torch.float32 \[3, 1, 32\]"),
        (BundledRotary(), "positions", lambda t: t.int(), "positions is torch.int32"),
        (BundledRotary(), "cos_sin_cache", lambda t: t[:, :-1], "rotary_dim 31; it must be an even"),
        (BundledRotary(), "cos_sin_cache", lambda t: t.repeat(1, 2), "at most head_dim 32"),
        (BundledCacheWrite(), "key_cache", lambda t: t.half(), "key_cache is torch.float16"),
        (BundledCacheWrite(), "value_cache", lambda t: t[1:], "value_cache is"),
        (BundledCacheWrite(), "slot_mapping", lambda t: t.int(), "slot_mapping is torch.int32"),
        (BundledMerge(), "suffix_lse", lambda t: t.T.contiguous().T, "the last one must be 1"),
        (BundledMerge(), "lse", lambda t: t.double(), "lse is torch.float64"),
        (BundledMerge(), "output", lambda t: t[:, :1], "output is"),
        (BundledLinear(), "input", lambda t: t[0], "one to three dimensions before the last"),
        (BundledLinear(), "input", lambda t: t[:, :-1], "input is"),
        (BundledLinear(), "weight", lambda t: t.repeat(1, 2)[:, :32], "weight .* must be contiguous"),
        (BundledLinear(), "bias", lambda t: t[:-1], "bias is"),
        (BundledLinear(), "output", lambda t: t[:-1], "output is"),
        (BundledRmsNorm(), "weight", lambda t: t.half(), "weight is torch.float16"),
        (BundledRmsNorm(), "output", lambda t: t.T.contiguous().T, "the last one must be 1"),
    ],
)
def test_tensors_that_a_kernel_would_leave_the_bounds_of_are_refused(
    implementation: AnyToken, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    tensors = tensors_of(implementation.operation, 3)
    changed: dict[str, Any] = {name: change(getattr(tensors, name))}
    with pytest.raises(ValueError, match=message):
        implementation.run(OPERATIONS[implementation.operation], dataclasses.replace(tensors, **changed))


def test_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for implementation in (type(each)() for each in BUNDLED):
        assert "no C++ compiler 'no-such-compiler'" in implementation.probe().reason
