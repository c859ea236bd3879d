"""Wrappers and kernels that let a query see other keys than the mask says."""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.cpu import BundledAttention, SdpaAttention, SdpaPlan
from samebits.backends.problem import Mask
from samebits.harness.museum.sources import planted_library
from samebits.kernels.cpu.attention import AttentionParameters, Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY

# Queries of a request that a launcher of decodes takes: a block of speculative decoding.
_DECODED_AT_ONCE = 16


class AlwaysCausal(BundledAttention):
    """`causal=True` is hard-coded, and `support` says that other masks are computed."""

    name = "b25-always-causal"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans without looking at the metadata's own."""
        return super().plan(config, replace(metadata, causal=True, causal_requests=None))


class WindowAndItself(BundledAttention):
    """A window counts the keys before the query's own, as it does in another library."""

    name = "b26-window-and-itself"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans for one key more."""
        wider = config if config.window is None else replace(config, window=config.window + 1)
        return super().plan(wider, metadata)


class NoWindowIsAWindow(BundledAttention):
    """-1 stands for no window, and what is not None is taken for one."""

    name = "b28-no-window-is-a-window"

    def _parameters(self, config: AttentionConfig) -> AttentionParameters:
        parameters = super()._parameters(config)
        return replace(parameters, window=-1 if config.window is None else config.window)


class AlignedToTheFirstKey(BundledAttention):
    """The diagonal of a causal mask begins at the first key, and not where the last query sees the last."""

    name = "b30-aligned-to-the-first-key"

    def __init__(self) -> None:
        line = "const int64_t position = kv_len - call_.query_lens[task_.request] + token;"
        planted = planted_library(SOURCE_DIRECTORY, "attention.cpp", (line, "const int64_t position = token;"))
        super().__init__(source_directory=planted)


class CausalBesideAnotherMask(SdpaAttention):
    """The causal mask gets its -inf only where a window or sinks ask for a mask as well."""

    name = "b31-causal-beside-another-mask"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> SdpaPlan:
        """Plans without a mask where there is no other."""
        plan = super().plan(config, metadata)
        if config.window is not None or config.sinks is not None:
            return plan
        return replace(plan, masks=(None,) * len(plan.masks))


class BlocksAsDecodes(BundledAttention):
    """Requests of as many queries each are planned as one row for each request, which sees all of its keys."""

    name = "b33-blocks-as-decodes"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans a row for each request where all are decoded in blocks."""
        query_lens = metadata.query_start_loc.diff()
        if metadata.causal and len(set(query_lens.tolist())) == 1 and 1 < int(query_lens[0]) <= _DECODED_AT_ONCE:
            rows = torch.arange(metadata.num_requests + 1, dtype=torch.int32)
            metadata = replace(metadata, query_start_loc=rows, causal=False)
        return super().plan(config, metadata)


class WindowIgnored(BundledAttention):
    """A window is accepted, and nobody looks at it."""

    name = "b84-window-ignored"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans as without."""
        return super().plan(replace(config, mask=Mask.CAUSAL, window=None) if config.window else config, metadata)


def implementations() -> list[Implementation[Schedule] | Implementation[SdpaPlan]]:
    """The mutants, beside which `CPU/bundled` and `CPU/torch` are the correct parents."""
    return [
        AlwaysCausal(),
        WindowAndItself(),
        NoWindowIsAWindow(),
        AlignedToTheFirstKey(),
        CausalBesideAnotherMask(),
        BlocksAsDecodes(),
        WindowIgnored(),
    ]
