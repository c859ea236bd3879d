"""Paged attention as FlashAttention's documentation has it, which stands in for vendors' kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from samebits.backends.contract import Implementation, Tiling
from samebits.backends.problem import Geometry, Mask, Problem
from samebits.harness.cases import Case
from samebits.harness.execution import execute

CPU = torch.device("cpu")
GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=2, head_dim=64, page_size=16, window=12, softcap=30.0)
WITH_SINKS = dataclasses.replace(GEOMETRY, sinks=True, softcap=None)
TILING = Tiling(query_tile=32, kv_tile=64, kv_split=128)


def plain_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    query_start_loc: torch.Tensor,
    kv_lens: torch.Tensor,
    block_table: torch.Tensor,
    scale: float,
    causal: Sequence[bool],
    window: tuple[int, int],
    softcap: float,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What FlashAttention's documentation says that its functions for paged caches compute, in float32.

    Rows of no request are NaN. A window counts the keys beside a query's own, -1 for all.
    """
    output, lse = torch.full_like(query, math.nan), torch.full((query.shape[1], query.shape[0]), math.nan)
    page_size, group = key_cache.shape[1], query.shape[1] // key_cache.shape[2]
    for request, num_keys in enumerate(kv_lens.tolist()):
        rows = slice(*query_start_loc[request : request + 2].tolist())
        token = torch.arange(num_keys)
        pages = block_table[request].long()[token // page_size]
        q, k, v = (
            tensor.float().transpose(0, 1)
            for tensor in (
                query[rows],
                key_cache[pages, token % page_size].repeat_interleave(group, dim=1),
                value_cache[pages, token % page_size].repeat_interleave(group, dim=1),
            )
        )
        offset = token[None] - torch.arange(q.shape[1])[:, None] - (num_keys - q.shape[1])
        hidden = torch.zeros_like(offset, dtype=torch.bool)
        if causal[request]:
            hidden |= offset > 0
        for side, keys in zip((-1, 1), window, strict=True):
            hidden |= (side * offset > keys) & (keys >= 0)
        scores = q @ k.transpose(1, 2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(hidden, -math.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.float()[:, None, None].expand(-1, q.shape[1], 1)], dim=2)
            v = torch.cat([v, torch.zeros_like(v[:, :1])] if num_keys else [v.new_zeros(v.shape[0], 1, v.shape[2])], 1)
        row_lse = torch.logsumexp(scores, dim=2)
        weights = torch.exp(scores - row_lse.masked_fill(row_lse == -math.inf, 0.0)[:, :, None])
        output[rows] = (weights @ v).transpose(0, 1).to(query.dtype)
        lse[:, rows] = row_lse
    return output, lse


def problem_of(geometry: Geometry, mask: Mask, batch: str, dtype: str = "bf16") -> Problem:
    """A batch of cases.py with padding behind it."""
    problem = Case(geometry, mask, batch, "smoke", (dtype,)).problem(dtype, TILING, seed=0)
    return problem.with_layout(padding_requests=2, padding_tokens=3)


def assert_right(implementation: Implementation[Any], problem: Problem) -> None:
    """Holds an implementation to its error budget, and to the tensors that it may write."""
    reasons = implementation.reasons(problem)
    assert not reasons, f"{implementation.label} refuses {problem}: {reasons}"
    execution = execute(implementation, problem, CPU)
    assert execution.error_budget <= 1, f"{problem}: {execution.worst}"
    assert not execution.faults, f"{problem}: {execution.faults}"
