"""Kernels and wrappers that look for a request's keys elsewhere than where they are."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.cpu import BundledAttention, SdpaAttention, SdpaPlan
from samebits.backends.problem import Mask
from samebits.harness.museum.sources import Replacement, planted_library, planted_module
from samebits.kernels.cpu.attention import Schedule
from samebits.kernels.cpu.build import SOURCE_DIRECTORY

_GATHERED = "samebits.backends.gathered"


class WithoutOffset(AttentionMetadata):
    """Self-attention begins at a request's first slot, where its encoder tokens are."""

    def kv_starts(self, mask: Mask) -> torch.Tensor:
        """The first slot, whatever the mask."""
        return torch.zeros_like(self.seq_lens)


class NoEncoderOffset(BundledAttention):
    """Self-attention reads the encoder's slots."""

    name = "b34-no-encoder-offset"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans from the first slot."""
        return super().plan(config, WithoutOffset(**vars(metadata)))


class Batch(NamedTuple):
    """A planned batch, and what it was planned from."""

    schedule: Schedule
    config: AttentionConfig
    metadata: AttentionMetadata


class PagesForRequests(BundledAttention):
    """One length that all requests have is handed on as a number, and repeated for each page of the cache."""

    name = "b36-pages-for-requests"

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Any:  # noqa: ANN401 -- not the parent's
        """Keeps the metadata."""
        return Batch(super().plan(config, metadata), config, metadata)

    def run(self, plan: Any, query: torch.Tensor, key_cache: torch.Tensor, *tensors: Any) -> None:  # noqa: ANN401
        """Plans anew where lengths are one number."""
        schedule, metadata = plan.schedule, plan.metadata
        if len(metadata.seq_lens.unique()) == 1:
            repeated = torch.full((key_cache.shape[0],), int(metadata.seq_lens[0]), dtype=torch.int32)
            schedule = super().plan(plan.config, replace(metadata, seq_lens=repeated))
        super().run(schedule, query, key_cache, *tensors)


class MisplacedKeys(SdpaAttention):
    """Keys are gathered from other slots."""

    def __init__(self, name: str, module: str, *replacements: Replacement) -> None:
        super().__init__()
        self.name = name
        self._gathered = importlib.import_module(planted_module(_GATHERED, module, *replacements))

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> SdpaPlan:
        """Finds each request's slots as the planted module does."""
        self.require(config)
        requests = self._gathered.gathered_requests(config, metadata)
        return SdpaPlan(config, requests, tuple(self._gathered.additive_mask(each, config) for each in requests))


class NarrowOffsets(BundledAttention):
    """The offset of a page is a product in 32 bits."""

    name = "b86-narrow-offsets"

    def __init__(self) -> None:
        planted = planted_library(
            SOURCE_DIRECTORY,
            "attention.cpp",
            ("= page * call_.key_page_stride +", "= static_cast<int32_t>(page * call_.key_page_stride) +"),
        )
        super().__init__(source_directory=planted)


_TOKENS = "    token = torch.arange(kv_start + num_hidden, kv_start + kv_len, device=pages.device)\n"
_SLOTS = "slots=pages[token // config.page_size].to(torch.int64) * config.page_size + token % config.page_size,"


def implementations() -> list[Implementation[Any]]:
    """The mutants, beside which `CPU/bundled` and `CPU/torch` are the correct parents."""
    return [
        NoEncoderOffset(),
        PagesForRequests(),
        # A page that the table names twice is taken to be where it is named last.
        MisplacedKeys(
            "b39-last-of-a-page",
            "museum_b39_gathered",
            (
                _TOKENS,
                f"{_TOKENS}"
                "    inverse = torch.zeros(int(pages.max()) + 1, dtype=torch.int64)\n"
                "    inverse.scatter_(0, pages.long(), torch.arange(len(pages)))\n"
                "    page = token // config.page_size\n"
                "    token = token[inverse[pages[page].long()] == page]\n",
            ),
        ),
        # The table is read as if it named slots.
        MisplacedKeys(
            "b42-pages-of-one-slot",
            "museum_b42_gathered",
            (_SLOTS, "slots=pages[token.clamp(max=len(pages) - 1)].to(torch.int64),"),
        ),
        NarrowOffsets(),
    ]
