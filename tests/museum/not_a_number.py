"""NaN that reaches a result which it must not reach, and rows of which nothing is left to divide by."""

from __future__ import annotations

import importlib
from typing import Any

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.cpu import SdpaAttention, SdpaPlan
from samebits.backends.operations import MergeImplementation, MergeTensors
from samebits.backends.subject import Subject
from samebits.backends.token_problem import MergeStates
from samebits.backends.torch_operations import TorchMerge
from samebits.backends.triton_attn import KERNELS, TritonAttention
from samebits.harness.museum.sources import planted_module

_OPERATIONS = planted_module(
    "samebits.backends.torch_operations",
    "museum_b72_operations",
    (
        "prefix_empty, suffix_empty = torch.isneginf(prefix_lse), torch.isneginf(suffix_lse)",
        "prefix_empty = torch.isneginf(prefix_lse) & (suffix_lse > -math.inf)\n"
        "        suffix_empty = torch.isneginf(suffix_lse) & (prefix_lse > -math.inf)",
    ),
)
_GATHERED = planted_module(
    "samebits.backends.gathered",
    "museum_b78_gathered",
    ("num_blind = max(0, query_len - kv_len) if causal or kv_len == 0 else 0", "num_blind = query_len * (kv_len == 0)"),
    (
        "mask = mask.masked_fill(~request.visible(), -torch.inf)[None, None]",
        "mask = mask.masked_fill(~request.visible(), torch.finfo(config.dtype).min)[None, None]",
    ),
)


class NothingMinusNothing(TorchMerge):
    """Where neither side saw a key, -inf is subtracted from -inf."""

    name = "b72-nothing-minus-nothing"

    def compute(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """Merges as the planted module does."""
        merge: MergeImplementation = importlib.import_module(_OPERATIONS).TorchMerge(self.backend, "cpu")
        merge.compute(operation, tensors)


class AverageOfNothing(SdpaAttention):
    """Hidden keys score the lowest number there is, so that a row which sees none averages them all."""

    name = "b78-average-of-nothing"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> SdpaPlan:
        """Makes the masks as the planted module does."""
        self.require(config)
        gathered = importlib.import_module(_GATHERED)
        requests = gathered.gathered_requests(config, metadata)
        return SdpaPlan(config, requests, tuple(gathered.additive_mask(request, config) for request in requests))


class TailTimes0(TritonAttention):
    """Values behind the last key are loaded too, and multiplied by weights of 0."""

    name = "b76-tail-times-0"

    def __init__(self) -> None:
        planted = planted_module(
            KERNELS,
            "museum_b76_kernel",
            (
                "values = tl.load(value_columns + value_rows[:, None], mask=loaded, other=0.0)",
                "values = tl.load(value_columns + value_rows[:, None])",
            ),
        )
        super().__init__(kernels=planted)


def implementations() -> list[Subject | Implementation[Any]]:
    """The mutants, beside which `CPU/torch` and `TRITON_ATTN/bundled` are the correct parents."""
    return [NothingMinusNothing("CPU", "cpu"), AverageOfNothing(), TailTimes0()]
