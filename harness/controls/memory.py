"""Controls that keep from one call to the next what belongs to that call, or leave behind what spoils others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.operations import RotaryTensors
from samebits.backends.token_problem import Linear, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.batch import poison_value
from samebits.harness.controls.disturbances import Disturbance, DisturbedKernel
from samebits.harness.controls.kernels import Call, PlannedBatch
from samebits.harness.controls.plain_operations import CORRECT, Run, TokenFlaw, rotate_by_the_rules
from samebits.harness.controls.readings import Misreading, PlainKernel
from samebits.harness.controls.schedules import ChunkedKernel
from samebits.harness.controls.trespasses import Trespass, TrespassingKernel
from samebits.harness.matrix import Flaw, Symptom
from samebits.harness.scratch import GIVEN_BACK_BYTES

_CHUNKS_OF_CACHE = 8


@dataclass(frozen=True)
class KeptPlan(Flaw):
    """A plan that is made once and used for whatever looks the same.

    Attributes:
        looks: what the kernel knows a batch by.
    """

    looks: Callable[[AttentionMetadata], Hashable]


def _sizes(metadata: AttentionMetadata) -> Hashable:
    return metadata.num_tokens, metadata.num_requests, metadata.max_query_len, metadata.max_seq_len


_KEPT_PLANS = (
    KeptPlan("plan_by_sizes", "repeated", "the first plan serves all batches of its sizes", _sizes),
    KeptPlan(
        "plan_by_address",
        "repeated",
        "a plan serves whatever is in the memory that it was made from",
        lambda metadata: (metadata.block_table.data_ptr(), _sizes(metadata)),
    ),
)


class KeepsPlans(ChunkedKernel):
    """The correct kernel, by a plan that was made before."""

    flaw: KeptPlan

    def __init__(self, flaw: KeptPlan) -> None:
        """Takes the flaw's name."""
        self.flaw, self.name = flaw, flaw.name
        self._kept: dict[Hashable, PlannedBatch] = {}

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlannedBatch:
        """Makes a plan of copies, or finds one."""
        looks = self.flaw.looks(metadata)
        if looks not in self._kept:
            self._kept[looks] = super().plan(config, copy.deepcopy(metadata))
        return self._kept[looks]


class TakesLatestPlan(ChunkedKernel):
    """The correct kernel, which keeps its plan in itself."""

    flaw = Flaw("latest_plan", "repeated", "the last plan that was made is the one that runs")
    name = flaw.name

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlannedBatch:
        """Keeps what `run` needs."""
        self._latest = super().plan(config, metadata)
        return self._latest

    def compute(self, call: Call) -> None:
        """Computes by the last plan."""
        super().compute(replace(call, plan=self._latest))


class KeepsSinks(PlainKernel):
    """Attention with the sinks of the first layer that had so many."""

    def __init__(self) -> None:
        """Reads all else as it should."""
        flaw = Misreading("sinks_kept", "sinks", "the sinks of the first layer are kept", lambda reading, _: reading)
        super().__init__(flaw)
        self._kept: dict[int, torch.Tensor] = {}

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlannedBatch:
        """Puts in the kept sinks."""
        if config.sinks is not None:
            config = replace(config, sinks=self._kept.setdefault(config.num_heads, config.sinks.clone()))
        return super().plan(config, metadata)


def _from_memory_given_back(query: torch.Tensor, call: int, call_of_plan: int) -> int:
    # Not by way of `torch.empty`, whose results hold poison wherever their memory comes from.
    found = [torch.ops.aten.empty.memory_format([size // 4], dtype=torch.float32) for size in GIVEN_BACK_BYTES]
    return 32 if any(float(memory[-1]) == poison_value("large") for memory in found) else 48


_READS_GIVEN_BACK = Disturbance(
    "reads_given_back",
    "repeated",
    "memory that an operator in C++ asks for is read before it is written",
    _from_memory_given_back,
)
_LEAVES_THREADS = Trespass(
    "leaves_threads",
    "repeated",
    "torch's number of threads is another after a call",
    lambda given: torch.set_num_threads(torch.get_num_threads() + 1),
)


def _keeping(operation: type[TokenOperation], name: str) -> Run:
    """The operation with a tensor of the layer that is kept by its shape and dtype from the first call on."""
    kept: dict[Hashable, torch.Tensor] = {}

    def run(operation_of_call: TokenOperation, tensors: Any) -> None:  # noqa: ANN401 -- of any operation
        given = getattr(tensors, name)
        looks = (given.shape, given.dtype)
        if looks not in kept:
            kept[looks] = given.clone()
        CORRECT[operation](operation_of_call, replace(tensors, **{name: kept[looks]}))

    return run


def _converts_in_chunks(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    for chunk in tensors.cos_sin_cache.chunk(_CHUNKS_OF_CACHE):
        chunk.double()
    rotate_by_the_rules(operation, tensors)


TOKEN_MEMORIES: tuple[TokenFlaw, ...] = (
    TokenFlaw("weight_kept", "repeated", "the first weight of its shape is kept", Linear, _keeping(Linear, "weight")),
    TokenFlaw("bias_kept", "repeated", "the first bias of its shape is kept", Linear, _keeping(Linear, "bias"), case=1),
    TokenFlaw(
        "norm_weight_kept", "repeated", "the first weight of its shape is kept", RmsNorm, _keeping(RmsNorm, "weight")
    ),
    TokenFlaw(
        "rotary_cache_kept",
        "repeated",
        "the first cache of its shape is kept",
        RotaryEmbedding,
        _keeping(RotaryEmbedding, "cos_sin_cache"),
    ),
    TokenFlaw(
        "converted_cache_kept",
        "cache_in_place",
        "the first cache of its shape is kept",
        RotaryEmbedding,
        _keeping(RotaryEmbedding, "cos_sin_cache"),
    ),
    TokenFlaw(
        "cache_converted_in_chunks",
        "cache_in_place",
        "the cache is converted in eight parts",
        RotaryEmbedding,
        _converts_in_chunks,
        symptom=Symptom.FAULT,
    ),
)


def repeated_controls() -> list[ChunkedKernel]:
    """Those of attention that the same call again must see."""
    disturbed, trespassing = DisturbedKernel(_READS_GIVEN_BACK), TrespassingKernel(_LEAVES_THREADS)
    return [*map(KeepsPlans, _KEPT_PLANS), TakesLatestPlan(), disturbed, trespassing]
