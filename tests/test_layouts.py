"""What takes one tensor's strides for another's, or writes between elements, is seen by the suites that users run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.cpu_operations import BundledCacheWrite
from samebits.backends.operations import CacheWriteTensors, TokenImplementation
from samebits.backends.problem import Geometry, Mask, Problem, Request, Strides
from samebits.backends.subject import Subject
from samebits.backends.token_problem import CacheWrite, TokenProblem
from samebits.backends.triton_attn import TritonAttention
from samebits.backends.triton_operations import TritonCacheWrite
from samebits.harness.batch import guarded, make_batch, poison_value
from samebits.harness.comparison import same_bits
from samebits.harness.far_memory import distance_reasons
from samebits.harness.records import Verdict
from samebits.harness.strides import strides_of, whole_memory
from samebits.harness.tokens.cache_write import PreparedCacheWrite

from .judged_cells import cells_of, records_of

pytestmark = pytest.mark.usefixtures("no_smallest_batch")

CPU = torch.device("cpu")
GEOMETRY = Geometry("test", num_heads=6, num_kv_heads=2, head_dim=32, page_size=4)
PROBLEM = Problem(GEOMETRY, Mask.CAUSAL, "fp32", (Request(1, 5), Request(2, 1, 6))).with_layout(padding_tokens=2)
CACHE_WRITE = CacheWrite("test", num_kv_heads=2, head_dim=32, page_size=4)


def seen_as(tensor: torch.Tensor, *strides: int) -> torch.Tensor:
    """The tensor as a kernel sees it that takes its strides for others."""
    return tensor.as_strided(tensor.shape, strides, tensor.storage_offset())


def strides_of_keys(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return keys, seen_as(values, *keys.stride())


def heads_side_by_side(*caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(seen_as(cache, *cache.stride()[:2], cache.shape[3], 1) for cache in caches)


def slots_side_by_side(*caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(
        seen_as(cache, cache.stride(0), cache.shape[2] * cache.shape[3], cache.stride(2), 1) for cache in caches
    )


def pages_side_by_side(*caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(seen_as(cache, cache.shape[1] * cache.stride(1), *cache.stride()[1:]) for cache in caches)


# What is taken for granted of a pair of caches.
MISTAKES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "strides-of-keys": strides_of_keys,
    "heads-side-by-side": heads_side_by_side,
    "slots-side-by-side": slots_side_by_side,
    "pages-side-by-side": pages_side_by_side,
}
# The kinds of strides that show it.
SEEN_BY: Mapping[str, set[Strides]] = {
    "strides-of-keys": {Strides.PADDED_HEADS, Strides.MIXED_ORDER},
    "heads-side-by-side": {Strides.HEADS_FIRST, Strides.PADDED_HEADS, Strides.MIXED_ORDER},
    "slots-side-by-side": {Strides.HEADS_FIRST, Strides.PADDED_HEADS, Strides.MIXED_ORDER},
    "pages-side-by-side": {Strides.INTERLEAVED, Strides.HEADS_FIRST, Strides.MIXED_ORDER},
}


def behind_heads(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that lie directly behind the heads of a tensor."""
    first = tensor.storage_offset() + tensor.shape[-1]
    return tensor.as_strided((*tensor.shape[:-1], 1), tensor.stride(), first)


def has_padded_heads(tensor: torch.Tensor) -> bool:
    return tensor.stride(-2) > tensor.shape[-1] and tensor.stride(-3) > tensor.stride(-2)


def mistaken_attention(parent: type[Implementation[Any]], mistake: str) -> Implementation[Any]:
    """The parent, with caches taken for others."""

    class Mistaken(parent):  # type: ignore[misc, valid-type]
        name = mistake

        def run(self, plan: Any, query: Any, keys: Any, values: Any, output: Any, lse: Any) -> None:  # noqa: ANN401
            super().run(plan, query, *MISTAKES[mistake](keys, values), output, lse)

    return Mistaken()


class WritesByQueryStrides(BundledAttention):
    """The output is written as if it had the strides of the queries."""

    name = "strides-of-queries"

    def run(self, plan: Any, query: Any, keys: Any, values: Any, output: Any, lse: Any) -> None:  # noqa: ANN401
        super().run(plan, query, keys, values, seen_as(output, *query.stride()), lse)


class ClearsPadding(BundledAttention):
    """The padding of keys is set to zero, as where a cache is thought to be one's own."""

    name = "clears-padding"

    def run(self, plan: Any, query: Any, keys: Any, values: Any, output: Any, lse: Any) -> None:  # noqa: ANN401
        if has_padded_heads(keys):
            behind_heads(keys).zero_()
        super().run(plan, query, keys, values, output, lse)


class WritesBesideRows(BundledAttention):
    """Rows of the output are set to zero first, as far as they are apart."""

    name = "writes-beside-rows"

    def run(self, plan: Any, query: Any, keys: Any, values: Any, output: Any, lse: Any) -> None:  # noqa: ANN401
        if output.stride(0) > output.stride(1):
            output.as_strided((output.shape[0], output.stride(0)), (output.stride(0), 1)).zero_()
        super().run(plan, query, keys, values, output, lse)


def mistaken_write(parent: type[TokenImplementation[Any, Any]], mistake: str) -> TokenImplementation[Any, Any]:
    """The parent, with caches taken for others."""

    class Mistaken(parent):  # type: ignore[misc, valid-type]
        name = mistake

        def run(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
            keys, values = MISTAKES[mistake](tensors.key_cache, tensors.value_cache)
            super().run(operation, replace(tensors, key_cache=keys, value_cache=values))

    return Mistaken()


class ClearsBehindHeads(BundledCacheWrite):
    """The padding behind the heads of a tensor is set to zero."""

    def __init__(self, name: str, of: str) -> None:
        super().__init__()
        self.name, self._of = name, of

    def run(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        super().run(operation, tensors)
        padded = getattr(tensors, self._of)
        if has_padded_heads(padded):
            behind_heads(padded).zero_()


def verdicts(suite: str, subject: Subject) -> dict[str, tuple[Verdict, tuple[str, ...]]]:
    """What the cells of a suite that are about strides come to, by relation and mask."""
    cells = cells_of(suite, subject, tier="smoke", dtypes=("fp32",))
    records = records_of(cell for cell in cells if cell.relation.name.startswith("strided"))
    return {f"{record.relation}:{record.mask}": (record.verdict, record.reasons) for record in records}


@pytest.mark.parametrize("parent", [BundledAttention, TritonAttention])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_attention_that_mistakes_strides_is_seen_by_the_kinds_that_show_it(
    mistake: str, parent: type[Implementation[Any]]
) -> None:
    found = verdicts("semantics", mistaken_attention(parent, mistake))
    failed = {name for name, (verdict, _) in found.items() if verdict is Verdict.FAIL}
    expected = {name for name in found if name.split(":")[0] in {f"strided_{kind}" for kind in SEEN_BY[mistake]}}
    assert expected, f"no relation of {sorted(found)} is there for {mistake}"
    assert failed == expected, f"{mistake} was seen by {sorted(failed)}"


@pytest.mark.parametrize(
    ("attention", "relation", "fault"),
    [
        (WritesByQueryStrides(), "strided_padded_heads:causal", "run wrote outside the output tensor"),
        (WritesBesideRows(), "strided_interleaved:causal", "run wrote outside the output tensor"),
        (ClearsPadding(), "strided_padded_heads:causal", "run changed its query, its cache or its metadata"),
    ],
    ids=lambda value: value.name if isinstance(value, Implementation) else None,
)
def test_attention_that_writes_into_a_gap_is_reported(attention: BundledAttention, relation: str, fault: str) -> None:
    verdict, reasons = verdicts("semantics", attention)[relation]
    assert verdict is Verdict.FAIL, f"{relation} came to {verdict}"
    assert fault in reasons, f"{relation} says {reasons}"


@pytest.mark.parametrize("parent", [BundledCacheWrite, TritonCacheWrite])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_cache_write_that_mistakes_strides_is_seen(mistake: str, parent: type[TokenImplementation[Any, Any]]) -> None:
    found = verdicts("batch_invariant", mistaken_write(parent, mistake))
    assert [verdict for verdict, _ in found.values()] == [Verdict.FAIL], f"{mistake} came to {found}"


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        # As where the vectors that are stored are longer than a head.
        (ClearsBehindHeads("longer-vectors", "key_cache"), "run wrote outside of its key_cache"),
        (ClearsBehindHeads("clears-given-keys", "key"), "run changed one of key, value, slot_mapping"),
    ],
    ids=lambda value: value.name if isinstance(value, BundledCacheWrite) else None,
)
def test_a_cache_write_into_a_gap_is_reported(write: BundledCacheWrite, fault: str) -> None:
    ((verdict, reasons),) = verdicts("batch_invariant", write).values()
    assert verdict is Verdict.FAIL, f"the cell came to {verdict}"
    assert fault in reasons, f"the cell says {reasons}"


@pytest.mark.parametrize("kind", Strides)
def test_each_kind_places_the_same_values(kind: Strides) -> None:
    plain, other = (make_batch(PROBLEM.with_layout(strides=strides), CPU) for strides in (Strides.CONTIGUOUS, kind))
    for name in ("query", "key_cache", "value_cache"):
        left, right = getattr(plain, name), getattr(other, name)
        assert torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0)), f"{name} holds other values"
        assert right.stride(-1) == 1, f"the elements of {name}'s heads are {right.stride(-1)} apart"
    names = ("query", "key_cache", "value_cache")
    assert all(getattr(plain, name).is_contiguous() for name in names), "the plain layout has gaps"
    if kind is not Strides.CONTIGUOUS:
        assert not all(getattr(other, name).is_contiguous() for name in names), f"{kind} is contiguous"


@pytest.mark.parametrize("poison", ["nan", "large"])
@pytest.mark.parametrize("kind", Strides)
def test_gaps_hold_poison(kind: Strides, poison: str) -> None:
    batch = make_batch(PROBLEM.with_layout(strides=kind, poison=poison), CPU)
    pieces = batch.memory()
    tensors = (batch.query, batch.key_cache, batch.value_cache)
    assert len(pieces) == (2 if kind is Strides.INTERLEAVED else 3), f"{kind} has {len(pieces)} pieces of memory"
    held = torch.cat([tensor.flatten() for tensor in tensors])
    whole = torch.cat(pieces)
    poisoned = [_is_poison(values, poison).sum() for values in (held, whole)]
    assert whole.numel() - held.numel() == poisoned[1] - poisoned[0], "a gap holds something else"


def test_far_pages_hold_the_same_values_and_an_offset_that_was_cut_stays_in_their_memory() -> None:
    plain, far = (make_batch(PROBLEM.with_layout(far_pages=distant), CPU) for distant in (False, True))
    for left, right in ((plain.key_cache, far.key_cache), (plain.value_cache, far.value_cache)):
        assert same_bits(left.contiguous(), right.contiguous())
        assert right.stride()[1:] == left.stride()[1:], "slots or heads have moved too"
        memory = whole_memory(right)
        for page in range(len(right)):
            offset = page * right.stride(0)
            assert offset < 2**31 or page > 1, "the stride alone does not fit 32 bits"
            for cut in ((offset + 2**31) % 2**32 - 2**31, offset % 2**32):
                found = memory[right.storage_offset() + cut]
                assert cut == offset or page == 0 or not found.isfinite() or found == 0.0
    assert (len(far.key_cache) - 1) * far.key_cache.stride(0) >= 2**32, "no offset leaves 32 bits without a sign"
    assert sum(memory.numel() for memory in far.memory()) < 2**16, "more than pages is looked at"


def test_pages_are_far_apart_on_a_processor_alone_and_where_the_system_maps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = PROBLEM.with_layout(far_pages=True)
    assert distance_reasons(PROBLEM, "cuda") == distance_reasons(problem, "cpu") == []
    assert distance_reasons(problem, "cuda")[0].endswith("and it computes on cuda")
    monkeypatch.setattr("samebits.harness.far_memory._maps_far", lambda: False)
    assert distance_reasons(problem, "cpu") == ["pages this far apart need more memory than this machine maps"]


def _is_poison(values: torch.Tensor, poison: str) -> torch.Tensor:
    return values.isnan() if poison == "nan" else values == poison_value(poison)


def test_interleaved_caches_share_their_memory_page_by_page() -> None:
    batch = make_batch(PROBLEM.with_layout(strides=Strides.INTERLEAVED), CPU)
    page = batch.key_cache[0].numel()
    assert batch.key_cache.stride(0) == batch.value_cache.stride(0) == 2 * page
    assert batch.value_cache.storage_offset() - batch.key_cache.storage_offset() == page


@pytest.mark.parametrize("kind", Strides)
def test_what_takes_some_strides_for_others_stays_in_the_memory(kind: Strides) -> None:
    batch = make_batch(PROBLEM.with_layout(strides=kind), CPU)
    caches = (batch.key_cache, batch.value_cache)
    contiguous = strides_of(batch.key_cache.shape, Strides.CONTIGUOUS)
    for mixed in itertools.product(*zip(*(cache.stride() for cache in caches), contiguous, strict=True)):
        for cache in caches:
            assert seen_as(cache, *mixed).shape == cache.shape, f"{mixed} leads out of a cache's memory"


@pytest.mark.parametrize("shape", [(5, 3, 32), (3, 5), (0, 3, 32)], ids=str)
@pytest.mark.parametrize("kind", Strides)
def test_a_write_beside_an_output_is_seen_wherever_it_lies(kind: Strides, shape: tuple[int, ...]) -> None:
    output = guarded(shape, torch.float32, CPU, "nan", kind)
    assert output.tensor.isnan().all(), "the output does not hold poison"
    output.tensor.fill_(3.0)
    assert output.intact(), "a write of the output counts as one beside it"
    memory = whole_memory(output.tensor)
    beside = torch.ones(memory.shape, dtype=torch.bool)
    beside.as_strided(output.tensor.shape, output.tensor.stride(), output.tensor.storage_offset()).fill_(False)
    for index in (0, *beside.nonzero().flatten()[:: max(1, int(beside.sum()) // 7)].tolist(), len(memory) - 1):
        kept = memory[index].clone()
        memory[index] = 0.0
        assert not output.intact(), f"a write to element {index} of the memory was not seen"
        memory[index] = kept
    assert output.intact(), "the memory was not put back"


@pytest.mark.parametrize("kind", Strides)
def test_only_slots_of_the_batch_may_be_written(kind: Strides) -> None:
    problem = TokenProblem(CACHE_WRITE, "fp32", (Request(1, 5), Request(2, 3, 2))).with_layout(strides=kind)
    prepared = PreparedCacheWrite(problem, CACHE_WRITE, CPU)
    for name, cache in (("key_cache", prepared.tensors.key_cache), ("value_cache", prepared.tensors.value_cache)):
        written = prepared.written[name]
        stored = int((prepared.tensors.slot_mapping >= 0).sum())
        assert int(written.writable.sum()) == stored * cache.shape[2] * cache.shape[3], f"{name} may be written beside"
        slot = int(prepared.tensors.slot_mapping.max())
        cache[slot // 4, slot % 4] = 1.0
        assert written.intact(), f"a write to a slot of {name} counts as one outside of it"


def test_some_kind_tells_every_stride_of_one_of_a_pair_from_the_others() -> None:
    shape = (7, 4, 2, 32)
    pairs = {kind: [strides_of(shape, kind, second=second) for second in (False, True)] for kind in Strides}
    for dimension, name in enumerate(("page", "slot", "head")):
        differ = [kind for kind, (first, second) in pairs.items() if first[dimension] != second[dimension]]
        assert differ, f"keys and values have one {name} stride in every kind"
