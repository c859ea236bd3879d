"""What an implementation keeps from one call to the next is seen by the suites that users run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.backends.cpu_operations import BundledLinear, BundledRmsNorm, BundledRotary
from samebits.backends.operations import LinearTensors, RmsNormTensors, RotaryTensors
from samebits.backends.problem import Geometry, Layout, Mask, Problem, Request, Strides
from samebits.backends.subject import Subject
from samebits.backends.token_problem import Linear, RmsNorm, RotaryEmbedding, TokenProblem
from samebits.harness.allocations import total_allocated
from samebits.harness.batch import make_batch
from samebits.harness.execution import execute
from samebits.harness.other_layer import filled_with, other_layer, tensors_of
from samebits.harness.records import Record, Verdict
from samebits.harness.tokens.execution import prepare
from samebits.kernels.cpu.attention import Schedule

from .judged_cells import cells_of, records_of

pytestmark = pytest.mark.usefixtures("no_smallest_batch")

CPU = torch.device("cpu")
Looks = Callable[[torch.Tensor], Hashable]


class Keeps:
    """What was first seen of anything that looks the same, as copies."""

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        self._kept: dict[Hashable, torch.Tensor] = {}

    def __call__(self, given: torch.Tensor, made: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> torch.Tensor:
        looks = self._looks(given)
        if looks not in self._kept:
            self._kept[looks] = made(given)
        return self._kept[looks]


class Keeping:
    """A kernel that keeps something: to be mixed in before the one that is right."""

    def __init__(self, looks: Looks) -> None:
        super().__init__()
        self._kept = Keeps(looks)


def by_shape(tensor: torch.Tensor) -> Hashable:
    return tensor.shape, tensor.dtype


def by_address(tensor: torch.Tensor) -> Hashable:
    return tensor.data_ptr(), by_shape(tensor)


def by_identity(tensor: torch.Tensor) -> Hashable:
    return tensor  # Kept alive, so that no other takes its place.


class KeepingLinear(Keeping, BundledLinear):
    def __init__(self, name: str, looks: Looks) -> None:
        super().__init__(looks)
        self._name = name

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        given = getattr(tensors, self._name)
        if given is not None:
            tensors = replace(tensors, **{self._name: self._kept(given)})
        super().compute(operation, tensors)


class FirstWeight(BundledLinear):
    """Keeps the weight of its first call, and of the first that has another shape."""

    weight: torch.Tensor | None = None

    def compute(self, operation: Linear, tensors: LinearTensors) -> None:
        if self.weight is None or self.weight.shape != tensors.weight.shape:
            self.weight = tensors.weight.clone()
        super().compute(operation, replace(tensors, weight=self.weight))


class KeepingRmsNorm(Keeping, BundledRmsNorm):
    def compute(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        super().compute(operation, replace(tensors, weight=self._kept(tensors.weight)))


class KeepingRotary(Keeping, BundledRotary):
    """Converts a cache to float32 once, and keeps that."""

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        kept = self._kept(tensors.cos_sin_cache, lambda cache: cache.to(torch.float32, copy=True))
        super().compute(operation, replace(tensors, cos_sin_cache=kept))


class ConvertingInChunks(BundledRotary):
    """Converts a cache piece by piece, and holds one piece at a time."""

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        for chunk in tensors.cos_sin_cache.chunk(8):
            chunk.to(torch.float32, copy=True)
        super().compute(operation, tensors)


class ConvertingWhatIsUsed(BundledRotary):
    """Converts a cache up to the largest position of the batch."""

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        used = tensors.cos_sin_cache[: int(tensors.positions.max()) + 1].to(torch.float32, copy=True)
        super().compute(operation, replace(tensors, cos_sin_cache=used))


class KeepingSinks(Keeping, BundledAttention):
    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        if config.sinks is not None:
            config = replace(config, sinks=self._kept(config.sinks))
        return super().plan(config, metadata)


class KeepingTables(Keeping, BundledAttention):
    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        return super().plan(config, replace(metadata, block_table=self._kept(metadata.block_table)))


class LatestPlan(BundledAttention):
    """Keeps its plan in itself, where the next one takes its place."""

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        self.latest = super().plan(config, metadata)
        return self.latest

    def run(self, plan: Schedule, *tensors: Any) -> None:  # noqa: ANN401 -- as they come
        super().run(self.latest, *tensors)


class KeepingKeys(Keeping, BundledAttention):
    """As a kernel does that keeps the largest of its keys."""

    def run(self, plan: Schedule, query: torch.Tensor, key_cache: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
        super().run(plan, query, self._kept(key_cache), *tensors)


def records_of_relations(subject: Subject, suite: str, dtype: str, *relations: str) -> list[Record]:
    """What the cells of some of a suite's relations come to, as in a session that runs them in their order."""
    cells = [cell for cell in cells_of(suite, subject, dtypes=(dtype,)) if cell.relation.name in relations]
    assert cells, f"the {suite} suite has no cell of {subject.operation} in {relations}"
    return records_of(cells)


def relations_that_fail(records: list[Record]) -> set[str]:
    return {record.relation for record in records if record.verdict is Verdict.FAIL}


RUN_TO_RUN: dict[str, tuple[Callable[[], Subject], str]] = {
    "weight_by_shape": (lambda: KeepingLinear("weight", by_shape), "fp32"),
    "weight_by_address": (lambda: KeepingLinear("weight", by_address), "fp32"),
    "weight_by_identity": (lambda: KeepingLinear("weight", by_identity), "bf16"),
    "weight_of_first_call": (FirstWeight, "fp32"),
    "bias_by_shape": (lambda: KeepingLinear("bias", by_shape), "fp32"),
    "bias_by_identity": (lambda: KeepingLinear("bias", by_identity), "fp32"),
    "norm_weight_by_shape": (lambda: KeepingRmsNorm(by_shape), "bf16"),
    "norm_weight_by_identity": (lambda: KeepingRmsNorm(by_identity), "fp32"),
    "rotary_cache_by_shape": (lambda: KeepingRotary(by_shape), "bf16"),
    "rotary_cache_by_address": (lambda: KeepingRotary(by_address), "bf16"),
    "table_by_shape": (lambda: KeepingTables(by_shape), "bf16"),
    "table_by_address": (lambda: KeepingTables(by_address), "bf16"),
    "table_by_identity": (lambda: KeepingTables(by_identity), "bf16"),
    "latest_plan": (LatestPlan, "bf16"),
    "keys_by_address": (lambda: KeepingKeys(by_address), "fp32"),
}
IN_PLACE: dict[str, Callable[[], Subject]] = {
    "cache_by_shape": lambda: KeepingRotary(by_shape),
    "cache_by_address": lambda: KeepingRotary(by_address),
    "cache_by_identity": lambda: KeepingRotary(by_identity),
    "cache_in_chunks": ConvertingInChunks,
    "cache_as_far_as_used": ConvertingWhatIsUsed,
}
CORRECT: dict[str, tuple[Callable[[], Subject], str]] = {
    "linear": (BundledLinear, "fp32"),
    "rms_norm": (BundledRmsNorm, "bf16"),
    "rope": (BundledRotary, "bf16"),
    "attention": (BundledAttention, "bf16"),
}


@pytest.mark.parametrize("name", RUN_TO_RUN)
def test_the_same_call_again_sees_what_is_kept(name: str) -> None:
    make, dtype = RUN_TO_RUN[name]
    records = records_of_relations(make(), "run_to_run", dtype, "repeated")
    told = [(record.cell_id, record.verdict, record.reasons) for record in records]
    assert relations_that_fail(records), f"{name} was not seen: {told}"


@pytest.mark.parametrize("name", CORRECT)
def test_the_parents_pass_the_same_call_again(name: str) -> None:
    make, dtype = CORRECT[name]
    failed = {
        record.cell_id: record.reasons
        for record in records_of_relations(make(), "run_to_run", dtype, "repeated")
        if record.red
    }
    assert not failed, f"the correct implementation does not pass: {failed}"


@pytest.mark.parametrize("looks", [by_shape, by_address, by_identity])
def test_semantics_sees_sinks_that_are_kept(looks: Looks) -> None:
    records = records_of_relations(KeepingSinks(looks), "semantics", "fp32", "sinks")
    assert relations_that_fail(records) == {"sinks"}, f"kept {looks.__name__}, and was not seen"


def test_semantics_passes_sinks_that_are_read_each_time() -> None:
    records = records_of_relations(BundledAttention(), "semantics", "fp32", "sinks")
    assert {record.verdict for record in records} == {Verdict.PASS}, [record.reasons for record in records]


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_rope_suite_sees_a_cache_that_is_kept_or_converted(name: str) -> None:
    records = records_of_relations(IN_PLACE[name](), "rope", "bf16", "normal", "cache_in_place")
    seen = [record for record in records if record.relation == "cache_in_place" and record.verdict is Verdict.FAIL]
    everywhere = [record for record in records if record.relation == "cache_in_place"]
    assert seen == everywhere, f"{name} was seen in {len(seen)} of {len(everywhere)} cells"


def test_a_rotary_embedding_may_allocate_what_its_tokens_need() -> None:
    records = records_of_relations(BundledRotary(), "rope", "bf16", "cache_in_place")
    assert {record.verdict for record in records} == {Verdict.PASS}, [record.reasons for record in records]


def attention_problems() -> Iterator[Problem]:
    geometry = Geometry("small", num_heads=2, num_kv_heads=1, head_dim=8, page_size=4, sinks=True)
    requests = (Request(1, 3, 9), Request(2, 1, 2), Request(3, 5))
    for mask in (Mask.CAUSAL, Mask.PER_REQUEST):
        yield Problem(geometry, mask, "fp32", requests)
    yield Problem(geometry, Mask.CROSS, "fp32", (Request(1, 2, encoder_len=7), Request(2, 1, 4, encoder_len=2)))


@pytest.mark.parametrize("problem", list(attention_problems()), ids=lambda problem: str(problem.mask))
def test_another_layer_has_the_same_sizes_and_other_data(problem: Problem) -> None:
    other = other_layer(problem)
    assert other_layer(other) == problem
    ours, theirs = (make_batch(one, CPU) for one in (problem, other))
    for name in ("query", "key_cache", "value_cache"):
        mine, its = getattr(ours, name), getattr(theirs, name)
        assert mine.shape == its.shape, f"{name} is of {its.shape}, not of {mine.shape}"
        assert not torch.equal(mine, its), f"{name} holds the same in both layers"
    for mine, its in zip(
        tensors_of(ours.config, ours.metadata), tensors_of(theirs.config, theirs.metadata), strict=True
    ):
        assert mine.shape == its.shape, f"a tensor is of {its.shape}, not of {mine.shape}"
    assert not torch.equal(ours.metadata.block_table, theirs.metadata.block_table)
    assert (ours.metadata.max_query_len, ours.metadata.max_seq_len) == (
        theirs.metadata.max_query_len,
        theirs.metadata.max_seq_len,
    )


@pytest.mark.parametrize(
    ("operation", "layer"),
    [
        (Linear("small", 8, 4, bias=True), ("weight", "bias")),
        (RmsNorm("small", 8), ("weight",)),
        (RotaryEmbedding("small", 2, 1, 8, 4, max_position=64), ("cos_sin_cache",)),
    ],
    ids=lambda value: getattr(value, "operation", ""),
)
def test_another_layer_has_other_layer_data_in_operations(operation: Any, layer: tuple[str, ...]) -> None:  # noqa: ANN401 -- of any operation
    problem = TokenProblem(operation, "fp32", (Request(1, 3, 9), Request(2, 1, 2)))
    ours, theirs = (prepare(one, CPU).tensors for one in (problem, other_layer(problem)))
    for name in layer:
        mine, its = getattr(ours, name), getattr(theirs, name)
        assert mine.shape == its.shape, f"{name} is of {its.shape}, not of {mine.shape}"
        assert not torch.equal(mine, its), f"{name} is the same in both layers"


def test_filled_memory_gets_its_own_bits_back() -> None:
    memory = torch.tensor([[-0.0, torch.nan, 1e-42, 3.0], [5.0, 6.0, 7.0, 8.0]])
    before = memory.clone()
    with filled_with([torch.ones(2, 2)], [memory[:, ::2]]):
        assert torch.equal(memory[:, ::2], torch.ones(2, 2))
        assert torch.equal(memory[:, 1::2].view(torch.int32), before[:, 1::2].view(torch.int32))
    assert torch.equal(memory.view(torch.int32), before.view(torch.int32)), f"{memory} is not {before} again"


def test_what_is_allocated_piece_by_piece_counts_whole() -> None:
    source = torch.zeros(1 << 16)

    def in_pieces() -> None:
        for piece in source.chunk(8):
            piece.clone()

    assert total_allocated(in_pieces, CPU) == source.nbytes
    assert total_allocated(lambda: source.add_(1.0), CPU) < source.nbytes // 100


class WritesIntoGaps(BundledAttention):
    """Writes behind the first row of queries, or of keys, where a view leaves a gap."""

    def __init__(self, of_keys: bool) -> None:
        super().__init__()
        self._of_keys = of_keys

    def run(self, plan: Schedule, query: torch.Tensor, key_cache: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
        super().run(plan, query, key_cache, *tensors)
        written = key_cache if self._of_keys else query
        row = written[0, 0].numel() if self._of_keys else written[0].numel()
        behind = row if self._of_keys else written.stride(0) - 1
        written.as_strided((1,), (1,), written.storage_offset() + behind).fill_(7.0)


@pytest.mark.parametrize("of_keys", [False, True], ids=["query", "key_cache"])
def test_a_write_between_the_rows_of_an_input_is_a_fault(of_keys: bool) -> None:
    geometry = Geometry("small", num_heads=2, num_kv_heads=1, head_dim=8, page_size=4)
    strides = Strides.PADDED_HEADS if of_keys else Strides.INTERLEAVED
    problem = Problem(geometry, Mask.CAUSAL, "fp32", (Request(1, 3, 9),), Layout(strides=strides))
    implementation = WritesIntoGaps(of_keys)
    assert implementation.probe().available
    assert execute(BundledAttention(), problem, CPU).faults == ()
    assert execute(implementation, problem, CPU).faults == ("run changed its query, its cache or its metadata",)
