"""Bugs of public backends in what they take a batch's metadata for, planted in the C++ and the Triton attention.

They are registered as any third party's backend is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.problem import Mask
from samebits.backends.triton_attn import TritonAttention, TritonPlan
from samebits.kernels.cpu.attention import Schedule


class WithoutOffset(AttentionMetadata):
    """Self-attention begins at a request's first slot, where its encoder tokens are."""

    def kv_starts(self, mask: Mask) -> torch.Tensor:
        """The first slot, whatever the mask."""
        return torch.zeros_like(self.seq_lens)


class OffsetForAll(AttentionMetadata):
    """Cross-attention begins behind the encoder tokens too."""

    def kv_starts(self, mask: Mask) -> torch.Tensor:
        """The first slot behind the encoder tokens, whatever the mask."""
        return super().kv_starts(Mask.CAUSAL)


def first_encoder_for_all(metadata: AttentionMetadata) -> AttentionMetadata:
    """The first request's encoder length stands for every request's."""
    lengths = metadata.encoder_seq_lens
    return metadata if lengths is None else replace(metadata, encoder_seq_lens=lengths[:1].repeat(len(lengths)))


def always_causal(metadata: AttentionMetadata) -> AttentionMetadata:
    """`causal=True` is hard-coded, and `support` says that other masks are computed."""
    return replace(metadata, causal=True, causal_requests=None)


MISTAKES: Mapping[str, Callable[[AttentionMetadata], AttentionMetadata]] = {
    "no-encoder-offset": lambda metadata: WithoutOffset(**vars(metadata)),
    "offset-in-cross": lambda metadata: OffsetForAll(**vars(metadata)),
    "first-encoder-for-all": first_encoder_for_all,
    "always-causal": always_causal,
}


class MistakenOnCpu(BundledAttention):
    """The C++ kernel, planned for other metadata."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans for what the metadata is taken for."""
        return super().plan(config, MISTAKES[self.name](metadata))


class MistakenOnTriton(TritonAttention):
    """The Triton kernel, planned for other metadata."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> TritonPlan:
        """Plans for what the metadata is taken for."""
        return super().plan(config, MISTAKES[self.name](metadata))


def implementations() -> list[Implementation[Any]]:
    """The mutants, beside which `CPU/bundled` and `TRITON_ATTN/bundled` are the correct parents."""
    return [kind(name) for kind in (MistakenOnCpu, MistakenOnTriton) for name in MISTAKES]
