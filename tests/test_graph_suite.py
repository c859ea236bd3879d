"""The CUDA-graph suite sees what goes wrong between a capture and a replay, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Availability, Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.graph_use import GraphHistory, GraphMode, GraphUse
from samebits.backends.plan_tensors import plan_tensors
from samebits.backends.problem import Mask, Problem
from samebits.backends.subject import Claims, GraphSupport, PaddingRows
from samebits.backends.support import Support
from samebits.harness.batch import make_batch
from samebits.harness.controls.graphs import GRAPH_FLAWS, GraphControl
from samebits.harness.graphs.buffers import Capacity, PersistentBuffers
from samebits.harness.graphs.capture import remembered_plan
from samebits.harness.graphs.cases import graph_cases
from samebits.harness.graphs.freed_memory import FreedMemory
from samebits.harness.graphs.relations import GRAPH_RELATIONS
from samebits.harness.graphs.states import other_state
from samebits.harness.museum.catalogue import MUSEUM
from samebits.harness.records import Verdict
from samebits.harness.registry import load_registry

from .judged_cells import cells_of, record_of, records_of
from .suite_runs import PLANTED

pytestmark = pytest.mark.usefixtures("no_smallest_batch")

CPU = torch.device("cpu")
MUTANTS = load_registry([PLANTED / "graphs.py", MUSEUM / "graph.py"])


def test_every_relation_has_a_control() -> None:
    checks = {flaw.check for flaw in GRAPH_FLAWS}
    assert {f"{prefix}_{check}" for prefix in ("persistent", "graph") for check in checks} == set(GRAPH_RELATIONS)


@pytest.mark.parametrize(
    ("mutant", "relation", "case", "told"),
    [
        ("CPU/b63-sliced-table", "persistent_replay", "llama3-8b-causal-extend", "of the error budget used"),
        ("CPU/b63-sliced-table", "persistent_buffers", "llama3-8b-causal-extend", "block_table is stale"),
        ("TRITON_ATTN/uncopied-lengths", "persistent_replay", "llama3-8b-causal-decode", "of the error budget used"),
        ("TRITON_ATTN/uncopied-lengths", "persistent_buffers", "llama3-8b-causal-decode", "kv_lens is stale"),
        ("TRITON_ATTN/growing-workspace", "persistent_outgrown", "llama3-8b-causal-decode", "workspace was"),
        ("CPU/b66-table-of-the-capture", "persistent_replay", "llama3-8b-causal-decode", "of the error budget used"),
        ("CPU/b66-table-of-the-capture", "persistent_buffers", "llama3-8b-causal-decode", "block_table is stale"),
        ("CPU/frozen-tasks", "persistent_replay", "llama3-8b-causal-extend", "of the error budget used"),
        ("CPU/frozen-tasks", "persistent_buffers", "llama3-8b-causal-extend", "tasks is stale"),
        ("CPU/plain-plan", "persistent_replay", "llama3-8b-causal-decode", "it was bound anew"),
        ("CPU/kept-schedule", "persistent_replay", "llama3-8b-causal-decode", "of the error budget used"),
        ("CPU/b64-fresh-tensors", "persistent_replay", "llama3-8b-causal-decode", "it was bound anew"),
    ],
)
def test_a_bug_of_a_public_backend_is_caught_by_name(mutant: str, relation: str, case: str, told: str) -> None:
    (subject,) = MUTANTS.select(names=[mutant])
    cells = cells_of("cuda_graph", subject)
    (cell,) = [cell for cell in cells if (cell.relation.name, cell.case.case_id) == (relation, case)]
    record = record_of(cell)
    assert record.verdict is Verdict.FAIL, f"{cell.cell_id} came to {record.verdict}: {record.reasons}"
    assert any(told in reason for reason in record.reasons), f"{told!r} is not told, only {record.reasons}"


def test_a_plan_that_is_refilled_in_place_passes() -> None:
    records = records_of(cells_of("cuda_graph", BundledAttention()))
    wrong = {record.cell_id: record.reasons for record in records if record.verdict is Verdict.FAIL}
    assert not wrong, f"the bundled kernel is not right: {wrong}"
    passed = {record.relation for record in records if record.verdict is Verdict.PASS}
    assert passed == {relation for relation in GRAPH_RELATIONS if relation.startswith("persistent")}
    for record in records:
        if record.relation.startswith("graph_"):
            assert record.verdict is Verdict.UNSUPPORTED
            assert record.reasons == ("a CUDA graph needs a GPU, and it computes on cpu",)


class LeavesSettingBehind(BundledAttention):
    """The bundled kernel, one step of which changes a setting of torch for the whole process."""

    name = "leaves-setting"

    def __init__(self, step: str) -> None:
        super().__init__()
        right = getattr(self, step)

        def spoilt(*arguments: object) -> object:
            result = right(*arguments)
            torch.set_float32_matmul_precision("high")
            return result

        setattr(self, step, spoilt)


@pytest.mark.parametrize("step", ["plan", "plan_for_graph", "refill", "run"])
def test_a_setting_of_the_process_is_told_by_the_step_that_changed_it_and_set_back(step: str) -> None:
    before = torch.get_float32_matmul_precision()
    for cell in cells_of("cuda_graph", LeavesSettingBehind(step), tier="smoke"):
        if not cell.relation.name.startswith("persistent_") or cell.case.case_id != "llama3-8b-causal-decode":
            continue
        record = record_of(cell)
        assert torch.get_float32_matmul_precision() == before, f"{cell.cell_id} left the setting as it was changed"
        told = f"{step} changed torch.get_float32_matmul_precision() from {before} to high"
        assert record.verdict is Verdict.FAIL, f"{cell.cell_id} came to {record.verdict}: {record.reasons}"
        is_told = any(reason.startswith(told) for reason in record.reasons)
        assert is_told, f"{cell.cell_id} is told as {record.reasons}"


class Unaware(Implementation[Any]):
    """A third party's, which reads lengths on the host and does not know of graphs."""

    backend, name = "MINE", "unaware"
    support = Support(dtypes=("fp32", "bf16"), masks=(Mask.CAUSAL,), softcap=False)

    def probe(self) -> Availability:
        return Availability()

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> object:
        return SimpleNamespace(
            config=config,
            metadata=metadata,
            starts=metadata.query_start_loc.tolist(),
            seq_lens=metadata.seq_lens.tolist(),
        )

    def run(
        self,
        plan: Any,  # noqa: ANN401 -- its own
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        for request, kv_len in enumerate(plan.seq_lens):
            rows = slice(plan.starts[request], plan.starts[request + 1])
            query_len = rows.stop - rows.start
            pages = plan.metadata.block_table[request, : -(-kv_len // plan.config.page_size)]
            keys, values = (
                cache[pages].flatten(0, 1)[:kv_len].repeat_interleave(plan.config.group_size, dim=1).transpose(0, 1)
                for cache in (key_cache, value_cache)
            )
            mask = torch.ones(query_len, kv_len, dtype=torch.bool).tril(kv_len - query_len)
            output[rows] = torch.nn.functional.scaled_dot_product_attention(
                query[rows].transpose(0, 1), keys, values, mask, scale=plan.config.scale
            ).transpose(0, 1)


def test_who_does_not_know_of_graphs_gets_rows_that_say_so_and_no_error() -> None:
    records = records_of(cells_of("cuda_graph", Unaware()))
    assert {record.verdict for record in records} == {Verdict.UNSUPPORTED}
    causal = next(record for record in records if record.mask == "causal")
    assert causal.claimed is False
    assert causal.reasons[0] == "cuda_graph is claimed as NEVER, and this batch needs SINGLE_TOKEN_DECODE"


def test_who_claims_graphs_and_reads_lengths_on_the_host_fails() -> None:
    unaware = Unaware()
    unaware.claims = Claims(cuda_graph=GraphSupport.ALWAYS)
    cell = next(cell for cell in cells_of("cuda_graph", unaware) if cell.relation.name == "persistent_replay")
    record = record_of(cell)
    assert record.verdict is Verdict.FAIL, f"{record.verdict}: {record.reasons}"
    assert any("claims cuda_graph, but" in reason for reason in record.reasons), record.reasons


@pytest.mark.parametrize(
    ("level", "batches"),
    [
        (GraphSupport.SINGLE_TOKEN_DECODE, {"decode"}),
        (GraphSupport.UNIFORM_BATCH, {"decode", "draft"}),
        (GraphSupport.ALWAYS, {"decode", "draft", "extend"}),
    ],
)
def test_a_level_holds_those_before_it(level: GraphSupport, batches: set[str]) -> None:
    subject = BundledAttention()
    subject.claims = replace(subject.claims, cuda_graph=level)
    ran = set()
    for cell in cells_of("cuda_graph", subject):
        if cell.relation.name == "persistent_buffers" and record_of(cell).verdict is Verdict.PASS:
            ran.add(cell.case.case_id.rsplit("-", 1)[1])
    assert ran == batches


@pytest.mark.parametrize(
    ("promised", "told"),
    [
        (PaddingRows.UNTOUCHED, "claims to leave padding rows untouched, but output has other bits in them"),
        (PaddingRows.FINITE, "claims that padding rows stay finite, but output is not in them"),
        (PaddingRows.ANYTHING, None),
    ],
)
def test_padding_rows_are_held_against_what_is_claimed(promised: PaddingRows, told: str | None) -> None:
    def spoil(plan: object, result: torch.Tensor, written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where(written[:, None, None], result, torch.inf), torch.ones_like(written)

    flaw = next(flaw for flaw in GRAPH_FLAWS if flaw.name == "writes_padding")
    control = GraphControl(replace(flaw, spoil=spoil))
    control.claims = replace(control.claims, padding_rows=promised)
    cell = next(cell for cell in cells_of("cuda_graph", control) if cell.relation.name == "persistent_replay")
    record = record_of(replace(cell, dtype="fp32"))
    if told is None:
        assert record.verdict is Verdict.PASS, record.reasons
    else:
        assert told in record.reasons


def states() -> list[tuple[Problem, GraphUse]]:
    found = []
    for case in graph_cases("nightly"):
        problem = case.problem("fp32", BundledAttention().tiling, 0)
        for comparison in GRAPH_RELATIONS["persistent_replay"].compare(problem, BundledAttention().tiling):
            (state,) = comparison.right
            assert isinstance(state, Problem)
            assert state.circumstances.graph is not None
            found.append((state, state.circumstances.graph))
    return found


@pytest.mark.parametrize(("state", "use"), states(), ids=lambda part: str(part)[:60])
def test_what_is_captured_on_equals_nothing_of_what_is_replayed(state: Problem, use: GraphUse) -> None:
    config = make_batch(state, CPU).config
    filled = []
    for problem in (state, other_state(state, use, 1, use.num_requests, use.num_tokens)):
        buffers = PersistentBuffers(config, Capacity.of(state, use), "nan", with_lse=True)
        buffers.fill(make_batch(problem, CPU))
        filled.append(buffers.inputs())
    alike = {name for name in filled[0] if torch.equal(filled[0][name].nan_to_num(), filled[1][name].nan_to_num())}
    allowed = {"sinks"}
    if use.num_requests == 1:
        # Of one request alone, the place of its query tokens and whether it is causal can be no other.
        allowed |= {"query_start_loc", "causal_requests"}
    if state.mask is Mask.CROSS:
        # It stores nothing.
        allowed |= {"slot_mapping"}
    assert alike <= allowed, f"{alike - allowed} are at capture what they are at a replay"


@pytest.mark.parametrize(("state", "use"), states(), ids=lambda part: str(part)[:60])
def test_what_is_captured_on_reaches_the_bounds_and_stays_inside_of_the_table(state: Problem, use: GraphUse) -> None:
    other = other_state(state, use, 1, use.num_requests, use.num_tokens)
    assert max(other.kv_len(request) for request in other.requests) == use.max_seq_len
    assert sum(request.query_len for request in other.requests) == use.num_tokens
    columns = Capacity.of(state, use).columns
    assert all(request.num_slots <= columns * state.geometry.page_size for request in other.requests)


@dataclass
class Nested:
    lengths: torch.Tensor
    tasks: np.ndarray[Any, Any]
    parts: tuple[dict[str, torch.Tensor], ...]
    splits: int


def nested() -> Nested:
    return Nested(torch.zeros(2), np.zeros(3), ({"inner": torch.zeros(1)},), splits=4)


def test_the_tensors_of_a_plan_are_found_by_their_paths() -> None:
    plan = nested()
    found = plan_tensors(plan)
    assert set(found) == {"lengths", "tasks", "parts.0.inner"}
    plan.tasks[1] = 7
    assert found["tasks"].tolist() == [0, 7, 0], "the array's memory is not what is looked at"


def test_the_tensors_of_plain_objects_are_found_and_of_functions_not() -> None:
    inner = SimpleNamespace(lengths=torch.zeros(2), mask=lambda: torch.zeros(3), kind=Mask.CAUSAL)
    inner.itself = inner
    assert set(plan_tensors(SimpleNamespace(inner=inner, size=3))) == {"inner.lengths"}
    remembered = remembered_plan(inner)
    inner.lengths = torch.ones(2)
    assert remembered.lengths.tolist() == [0, 0], "a tensor that was bound anew is seen"
    assert remembered.itself is remembered, "a part that leads back to the whole is another whole"
    assert remembered.kind is Mask.CAUSAL


def test_a_remembered_plan_keeps_tensors_and_forgets_what_takes_their_place() -> None:
    plan = nested()
    remembered = remembered_plan(plan)
    plan.lengths.fill_(1)
    assert remembered.lengths.tolist() == [1, 1], "a refill in place is not seen"
    plan.lengths, plan.splits = torch.full((2,), 5.0), 8
    plan.parts[0]["inner"] = torch.full((1,), 5.0)
    assert remembered.lengths.tolist() == [1, 1], "a tensor that was bound anew is seen"
    assert remembered.parts[0]["inner"].tolist() == [0], "a tensor that was bound anew in a dictionary is seen"
    assert remembered.splits == 4, "a number of the host that changed is seen"


def test_a_write_into_memory_that_was_given_back_is_seen() -> None:
    freed = FreedMemory(CPU, [1000])
    assert freed.faults() == []
    freed._pieces[2][3] = 1.0
    assert freed.faults() == ["the captured run wrote into memory that it had given back: a piece of 512 bytes"]


def test_the_histories_are_all_run() -> None:
    problem = next(graph_cases("smoke")).problem("fp32", BundledAttention().tiling, 0)
    histories = set()
    for relation in GRAPH_RELATIONS.values():
        for comparison in relation.compare(problem, BundledAttention().tiling):
            for state in comparison.right:
                assert state.circumstances.graph is not None
                histories.add((state.circumstances.graph.mode, state.circumstances.graph.history))
    modes = (GraphMode.PERSISTENT, GraphMode.CAPTURED)
    assert histories == {(mode, history) for mode in modes for history in GraphHistory}
