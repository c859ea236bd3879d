"""The CPU backend: what the C++ attention kernel would misread, or read out of bounds, is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samebits.backends.cpu import BundledAttention
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness.batch import Batch, make_batch

from .attention_runs import compute

pytestmark = pytest.mark.usefixtures("one_thread")

GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=2, head_dim=64, page_size=16)
KERNEL = BundledAttention()


@pytest.fixture
def batch() -> Batch:
    """Two decodes of 31 keys each."""
    requests = (Request(1, 1, 30), Request(2, 1, 30))
    return make_batch(Problem(GEOMETRY, Mask.CAUSAL, "fp32", requests), torch.device("cpu"))


def test_page_that_does_not_exist_is_refused(batch: Batch) -> None:
    batch.metadata.block_table[1, 1] = batch.key_cache.shape[0]
    with pytest.raises(ValueError, match=r"page outside 0\.\.\d+ for request 1"):
        compute(KERNEL, batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_table": lambda t: t.long()}, "block_table is torch.int64"),
        ({"block_table": lambda t: t[:, :1]}, "31 slots, but block_table has 1 pages of 16"),
        ({"block_table": lambda t: t[:1]}, "block_table for 1; they must agree"),
        ({"seq_lens": lambda t: -t}, "must not be negative"),
        ({"query_start_loc": lambda t: t.flip(0)}, "must not be negative or descend"),
    ],
)
def test_plan_refuses_metadata_that_would_be_read_out_of_bounds(
    batch: Batch, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]], message: str
) -> None:
    changed: dict[str, Any] = {name: change(getattr(batch.metadata, name)) for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        KERNEL.plan(batch.config, dataclasses.replace(batch.metadata, **changed))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("query", lambda t: t[:-1], "at least 2 tokens"),
        ("query", lambda t: t.double(), "dtype torch.float64; it must be one of"),
        ("query", lambda t: t[..., ::2], "it must be torch.float32 \\[2, 4, 64\\]"),
        ("key_cache", lambda t: t.bfloat16(), "key_cache is torch.bfloat16"),
        ("key_cache", lambda t: t[:-1], "value_cache is"),
        ("value_cache", lambda t: t.transpose(2, 3).contiguous().transpose(2, 3), "the last one must be 1"),
        ("output", lambda t: t[:, :1], "output is"),
        ("lse", lambda t: t.T.contiguous(), "lse is"),
    ],
)
def test_run_refuses_tensors_that_it_would_leave_the_bounds_of(
    batch: Batch, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    tensors = {
        "query": batch.query,
        "key_cache": batch.key_cache,
        "value_cache": batch.value_cache,
        "output": torch.empty_like(batch.query),
        "lse": torch.empty(4, 2),
    }
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=message):
        KERNEL.run(KERNEL.plan(batch.config, batch.metadata), **tensors)


def test_plan_refuses_sinks_that_it_would_misread(batch: Batch) -> None:
    with pytest.raises(ValueError, match="the last one must be 1"):
        KERNEL.plan(dataclasses.replace(batch.config, sinks=torch.zeros(8)[::2]), batch.metadata)


def test_chunk_size_that_is_no_multiple_of_the_lanes_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="chunk_size is 100; it must be a positive multiple of 16"):
        BundledAttention(chunk_size=100).plan(batch.config, batch.metadata)
