"""Controls of the CUDA-graph suite: one correct kernel, and what goes wrong between a capture and a replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Claims, Implementation
from samebits.backends.graph_use import GraphMode
from samebits.backends.plan_tensors import plan_tensors
from samebits.backends.platform import accelerator
from samebits.backends.problem import Mask
from samebits.backends.subject import Availability, GraphSupport, PaddingRows
from samebits.backends.support import Support
from samebits.harness.controls.dense import CHUNK, REFILLED, DensePlan, attend, dense_plan
from samebits.harness.controls.kernels import Control, control_cell
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.graphs.cases import GraphCase
from samebits.harness.graphs.relations import GRAPH_RELATIONS, PREFIXES
from samebits.harness.matrix import Cell, Flaw, Symptom

_CASE = GraphCase(GEOMETRIES["llama3-8b"], Mask.CAUSAL, "decode", "smoke", ("fp32",))


class Capturable(Control):
    """A control that a graph can capture, where there is an accelerator."""

    def probe(self) -> Availability:
        """Runs wherever torch does, on the accelerator where there is one."""
        return Availability(version=torch.__version__, device=accelerator().device)


class GraphControl(Capturable, Implementation[DensePlan]):
    """The dense kernel, whose plan is refilled in place."""

    claims = Claims(
        batch_invariant=True,
        cuda_graph=GraphSupport.ALWAYS,
        padding_rows=PaddingRows.UNTOUCHED,
        source="launches of one shape, trees of additions",
    )
    support = Support(dtypes=("fp32",), masks=(Mask.CAUSAL,), softcap=False, lse=True)

    def __init__(self, flaw: GraphFlaw | None = None) -> None:
        """Makes the correct kernel, or one with a flaw."""
        self.flaw = flaw
        self._ways = flaw or _SOUND
        self.name = self._ways.name
        self.latest: DensePlan | None = None
        self.kept: list[torch.Tensor] = []
        self._workspace = torch.empty(0)

    @property
    def parent(self) -> GraphControl:
        """The correct kernel."""
        return GraphControl()

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> DensePlan:
        """Lays the batch out."""
        self.require(config)
        plan = dense_plan(config, metadata, self._ways.chunk(metadata))
        if plan.scratch.numel() != self._workspace.numel():
            # Of its size, not the largest so far: which batches came before this cell must not decide what it shows.
            self._workspace = torch.empty_like(plan.scratch)
        return plan

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> DensePlan:
        """As `plan`: shapes follow from sizes and bounds."""
        self.latest = self.plan(config, metadata)
        return self.latest

    def refill(self, config: AttentionConfig, plan: DensePlan, metadata: AttentionMetadata) -> None:
        """Copies what a plan made anew holds."""
        self._ways.refill(self, plan, dense_plan(config, metadata))

    def buffers(self, plan: DensePlan) -> Mapping[str, torch.Tensor]:
        """Those of the plan, and the workspace where it is used."""
        found = plan_tensors(plan)
        if self._ways.shares_workspace:
            found["workspace"] = self._workspace
        if self._ways.hides_scratch:
            del found["scratch"]
        return found

    def run(
        self,
        plan: DensePlan,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes all tokens, and writes those that are a request's."""
        scratch = plan.scratch
        if self._ways.shares_workspace:
            scratch = self._workspace.view(-1)[: scratch.numel()].view(scratch.shape)
        result, result_lse = attend(plan, scratch, query, key_cache, value_cache)
        result, written = self._ways.spoil(plan, result, plan.owned)
        output.copy_(torch.where(written[:, None, None], result, output))
        if lse is not None:
            lse.copy_(torch.where(written, result_lse, lse))


_Refill = Callable[[GraphControl, DensePlan, DensePlan], None]


def _refill(control: GraphControl, plan: DensePlan, fresh: DensePlan) -> None:
    _copy(plan, fresh)
    plan.total.zero_()


def _copy(plan: DensePlan, fresh: DensePlan, left_out: str = "") -> None:
    for name in REFILLED:
        if name != left_out:
            getattr(plan, name).copy_(getattr(fresh, name))


def _leaving_out(name: str) -> _Refill:
    return lambda control, plan, fresh: _copy(plan, fresh, name)


def _rebind(control: GraphControl, plan: DensePlan, fresh: DensePlan) -> None:
    _copy(plan, fresh, "last_key")
    # Somebody still holds the old one, so that no new tensor takes its place by chance.
    control.kept.append(plan.last_key)
    plan.last_key = fresh.last_key


def _by_compact_strides(control: GraphControl, plan: DensePlan, fresh: DensePlan) -> None:
    _copy(plan, fresh, "slots")
    num_requests, max_keys = plan.slots.shape
    plan.slots.as_strided((num_requests, max_keys), (max_keys, 1)).copy_(fresh.slots)


def _with_other_scratch(control: GraphControl, plan: DensePlan, fresh: DensePlan) -> None:
    _refill(control, plan, fresh)
    plan.scratch = torch.empty_like(plan.scratch)


def _into_latest(control: GraphControl, plan: DensePlan, fresh: DensePlan) -> None:
    latest = control.latest
    assert latest is not None, "a plan is made before it is refilled"
    _copy(plan, fresh, "last_key")
    if latest.last_key.shape == fresh.last_key.shape:
        latest.last_key.copy_(fresh.last_key)


_Result = tuple[torch.Tensor, torch.Tensor]


def _leave(plan: DensePlan, result: torch.Tensor, written: torch.Tensor) -> _Result:
    return result, written


def _add_up(plan: DensePlan, result: torch.Tensor, written: torch.Tensor) -> _Result:
    return plan.total.add_(result), written


def _write_padding(plan: DensePlan, result: torch.Tensor, written: torch.Tensor) -> _Result:
    return result, torch.ones_like(written)


def _multiply_as_tf32(plan: DensePlan, result: torch.Tensor, written: torch.Tensor) -> _Result:
    torch.set_float32_matmul_precision("high")
    return result, written


def _allocate_by_length(plan: DensePlan, result: torch.Tensor, written: torch.Tensor) -> _Result:
    torch.empty(1024 * (1 + int(plan.last_key.max())), device=result.device)
    return result, written


def _usual_chunk(metadata: AttentionMetadata) -> int:
    return CHUNK


def _chunk_by_length(metadata: AttentionMetadata) -> int:
    return CHUNK // 2 if int(metadata.seq_lens.max()) >= metadata.max_seq_len else CHUNK


def _chunk_by_size(metadata: AttentionMetadata) -> int:
    return CHUNK if metadata.num_requests % 2 else CHUNK // 2


@dataclass(frozen=True)
class GraphFlaw(Flaw):
    """What goes wrong between a capture and a replay. Its check is named without the mode.

    Attributes:
        refill: brings a plan up to date, from one made anew.
        spoil: what becomes of a result, and of the rows that are written.
        chunk: keys that are added up from zero.
        shares_workspace: whether scores go to a workspace of the implementation, made anew for another size.
        hides_scratch: whether the scratch is missing from its buffers. Only a graph can then show that it is another:
            what remembers a plan keeps the old one alive.
    """

    refill: _Refill = field(default=_refill, kw_only=True)
    spoil: Callable[[DensePlan, torch.Tensor, torch.Tensor], _Result] = field(default=_leave, kw_only=True)
    chunk: Callable[[AttentionMetadata], int] = field(default=_usual_chunk, kw_only=True)
    shares_workspace: bool = field(default=False, kw_only=True)
    hides_scratch: bool = field(default=False, kw_only=True)


# The ways of the correct kernel.
_SOUND = GraphFlaw("refilled", "", "")
GRAPH_FLAWS: tuple[GraphFlaw, ...] = (
    GraphFlaw(
        "rebound_pointer", "replay", "a tensor takes the place of another, which the graph reads", refill=_rebind
    ),
    GraphFlaw(
        "wrong_strides", "replay", "as_strided over compact strides, where rows are longer", refill=_by_compact_strides
    ),
    GraphFlaw(
        "stale_metadata", "replay", "one tensor of the metadata is not refilled", refill=_leaving_out("last_key")
    ),
    GraphFlaw(
        "frozen_splits",
        "replay",
        "the split count is that of the lengths at capture",
        chunk=_chunk_by_length,
        symptom=Symptom.BITS,
    ),
    GraphFlaw(
        "writes_padding", "replay", "padding rows are written all the same", spoil=_write_padding, symptom=Symptom.FAULT
    ),
    GraphFlaw(
        "setting_left_by_replay",
        "replay",
        "float32 is multiplied as TF32 from then on, in the whole process",
        spoil=_multiply_as_tf32,
        symptom=Symptom.FAULT,
    ),
    GraphFlaw("adds_up", "again", "the output is added to that of the replay before", spoil=_add_up),
    GraphFlaw(
        "resized_workspace",
        "outgrown",
        "a workspace of the implementation is another for a batch of another size",
        shares_workspace=True,
        symptom=Symptom.FAULT,
    ),
    GraphFlaw("refills_latest", "interleaved", "a refill goes to the plan that was captured last", refill=_into_latest),
    GraphFlaw(
        "reallocated_scratch",
        "memory",
        "scratch is allocated anew after the capture",
        refill=_with_other_scratch,
        symptom=Symptom.FAULT,
    ),
    GraphFlaw(
        "hidden_scratch",
        "memory",
        "scratch is allocated anew after the capture, and nobody is told",
        refill=_with_other_scratch,
        hides_scratch=True,
        symptom=Symptom.FAULT,
    ),
    GraphFlaw(
        "stale_unread",
        "buffers",
        "a tensor that the kernel does not read yet is not refilled",
        refill=_leaving_out("lengths"),
        symptom=Symptom.FAULT,
    ),
    GraphFlaw(
        "allocates_by_length",
        "launches",
        "run reads a length on the host, and allocates by it",
        spoil=_allocate_by_length,
        symptom=Symptom.FAULT,
    ),
    GraphFlaw(
        "split_by_padded_size",
        "unpadded",
        "the split length is chosen from the padded number of requests",
        chunk=_chunk_by_size,
        symptom=Symptom.BITS,
    ),
)


def modes_here() -> Iterator[tuple[GraphMode, str]]:
    """The modes that this machine has, each with the prefix of its relations."""
    for mode, prefix in PREFIXES.items():
        if mode is not GraphMode.CAPTURED or accelerator().device == "cuda":
            yield mode, prefix


def graph_controls(suite: str, seed: int) -> Iterator[Cell]:
    """The controls in every mode that this machine has.

    Args:
        suite: name of the suite.
        seed: of all data.
    """
    for mode, prefix in modes_here():
        for flaw in GRAPH_FLAWS:
            if flaw.hides_scratch and mode is not GraphMode.CAPTURED:
                continue
            in_mode = replace(flaw, check=f"{prefix}_{flaw.check}")
            yield control_cell(suite, GraphControl(in_mode), GRAPH_RELATIONS[in_mode.check], _CASE, "fp32", seed)
