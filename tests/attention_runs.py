"""Attention run on a batch as several test modules need it: its output and log-sum-exp, and whether bits agree."""

from __future__ import annotations

import math
from typing import Any

import torch

from samebits.backends.contract import Implementation
from samebits.harness.batch import Batch


def compute(implementation: Implementation[Any], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and LSE of a batch, NaN where nothing was written."""
    output = torch.full_like(batch.query, math.nan)
    lse = torch.full((batch.config.num_heads, batch.query.shape[0]), math.nan)
    plan = implementation.plan(batch.config, batch.metadata)
    implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, lse)
    return output, lse


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors of one dtype hold the same bytes."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
