"""FLASH_ATTN on a GPU: how a batch is laid out for torch's variable-length kernel, for which a plain one stands in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch

from samebits.backends import variable_length
from samebits.backends.contract import Tiling
from samebits.backends.platform import Platform
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.backends.variable_length import VariableLengthFlash
from samebits.harness.batch import make_batch
from samebits.harness.cases import BATCHES, Case
from samebits.harness.execution import execute

CPU = torch.device("cpu")
GEOMETRY = Geometry("test", num_heads=4, num_kv_heads=2, head_dim=64, page_size=16, window=12)
TILING = Tiling(query_tile=32, kv_tile=64, kv_split=128)


@dataclasses.dataclass
class PlainKernel:
    """Computes what `aten::_flash_attention_forward` is documented to, in float32, and counts its calls."""

    num_calls: int = 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_start_loc: torch.Tensor,
        key_start_loc: torch.Tensor,
        max_query_len: int,
        max_key_len: int,
        dropout: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float,
        window_size_left: int | None,
        window_size_right: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_calls += 1
        assert query.dtype in (torch.bfloat16, torch.float16), f"the kernel has no {query.dtype}"
        assert query.is_contiguous(), "rows of any stride may lie at addresses that the kernel cannot load from"
        assert key.is_contiguous(), "keys of any stride may lie at addresses that the kernel cannot load from"
        assert int(query_start_loc[-1]) == query.shape[0], "the kernel takes rows of padding for requests"
        assert int(key_start_loc[-1]) == key.shape[0] == value.shape[0], "the keys do not fit the requests"
        assert int(query_start_loc.diff().max()) <= max_query_len, "max_query_len is no bound"
        assert int(key_start_loc.diff().max()) <= max_key_len, "max_key_len is no bound"
        output, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
        group = query.shape[1] // key.shape[1]
        for request in range(len(query_start_loc) - 1):
            rows = slice(*query_start_loc[request : request + 2].tolist())
            keys = slice(*key_start_loc[request : request + 2].tolist())
            q, k, v = (
                tensor.float().transpose(0, 1)
                for tensor in (
                    query[rows],
                    key[keys].repeat_interleave(group, dim=1),
                    value[keys].repeat_interleave(group, dim=1),
                )
            )
            # Aligned to the last key, as FlashAttention's README has it from version 2.1 on.
            offset = torch.arange(k.shape[1])[None] - torch.arange(q.shape[1])[:, None] - (k.shape[1] - q.shape[1])
            hidden = torch.zeros_like(offset, dtype=torch.bool)
            if is_causal or window_size_right is not None:
                hidden |= offset > (window_size_right or 0)
            if window_size_left is not None:
                hidden |= offset < -window_size_left
            scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)
            row_lse = torch.logsumexp(scores, dim=2)
            weights = torch.exp(scores - row_lse.masked_fill(row_lse == -math.inf, 0.0)[:, :, None])
            output[rows] = (weights @ v).transpose(0, 1).to(query.dtype)
            lse[:, rows] = row_lse.masked_fill(row_lse == -math.inf, math.inf)
        return output, lse


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlainKernel]:
    plain = PlainKernel()
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", plain)
    yield plain
    assert plain.num_calls, "the implementation called another kernel"


def problem_of(mask: Mask, batch: str) -> Problem:
    """A batch of cases.py, every other request of which is causal where that is each request's own."""
    problem = Case(GEOMETRY, mask, batch, "smoke", ("bf16",)).problem("bf16", TILING, seed=0)
    requests = [dataclasses.replace(request, causal=index % 2 == 0) for index, request in enumerate(problem.requests)]
    return problem.with_requests(*requests).with_layout(padding_requests=2, padding_tokens=3)


@pytest.mark.parametrize("mask", Mask, ids=str)
def test_batch_is_laid_out_for_the_kernel(kernel: PlainKernel, mask: Mask) -> None:
    for batch in BATCHES:
        execution = execute(VariableLengthFlash(), problem_of(mask, batch), CPU)
        assert execution.error_budget <= 1, f"{execution.problem}: {execution.worst}"
        assert not execution.faults, f"{execution.problem}: {execution.faults}"


def test_only_a_batch_that_mixes_masks_takes_two_calls(kernel: PlainKernel) -> None:
    mixed = problem_of(Mask.PER_REQUEST, "mixed")
    uniform = mixed.with_requests(*(dataclasses.replace(request, causal=True) for request in mixed.requests))
    for problem, expected in ((problem_of(Mask.CAUSAL, "mixed"), 1), (mixed, 2), (uniform, 1)):
        kernel.num_calls = 0
        execute(VariableLengthFlash(), problem, CPU)
        assert kernel.num_calls == expected, f"{problem} took {kernel.num_calls} calls"


@pytest.mark.parametrize("mask", [Mask.SLIDING_WINDOW, Mask.PER_REQUEST], ids=str)
def test_nan_in_the_keys_and_values_of_a_request_stays_there(kernel: PlainKernel, mask: Mask) -> None:
    requests = (Request(1, 2, 100, causal=False), Request(2, 5, 60), Request(3, 1, 30, causal=False))
    batch = make_batch(Problem(GEOMETRY, mask, "bf16", requests), CPU)
    for page in batch.metadata.block_table[1, :5]:
        batch.key_cache[page] = math.nan
        batch.value_cache[page] = math.nan
    # Left of the window of the first request's first query, position 100.
    for page in batch.metadata.block_table[0, : 5 if mask is Mask.SLIDING_WINDOW else 0]:
        batch.value_cache[page] = math.nan
    output, lse = torch.zeros_like(batch.query), torch.zeros(4, 8)
    implementation = VariableLengthFlash()
    plan = implementation.plan(batch.config, batch.metadata)
    implementation.run(plan, batch.query, batch.key_cache, batch.value_cache, output, lse)
    rows = torch.arange(8)
    for name, nan in (("output", output.isnan().any(dim=2).any(dim=1)), ("log-sum-exp", lse.isnan().any(dim=0))):
        assert rows[nan].tolist() == [2, 3, 4, 5, 6], f"rows {rows[nan].tolist()} of the {name} hold NaN"


@pytest.mark.parametrize(
    ("geometry", "dtype", "reason"),
    [
        (dataclasses.replace(GEOMETRY, sinks=True), "bf16", "sinks are not supported"),
        (dataclasses.replace(GEOMETRY, softcap=20.0), "bf16", "softcap 20 is not supported"),
        (dataclasses.replace(GEOMETRY, head_dim=100), "bf16", "head_dim 100 is not supported"),
        (GEOMETRY, "fp32", "dtype fp32 is not supported, only bf16, fp16"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused_in_the_words_of_the_reasons(
    geometry: Geometry, dtype: str, reason: str
) -> None:
    implementation = VariableLengthFlash()
    problem = Problem(geometry, Mask.CAUSAL, dtype, (Request(1, 1),))
    assert implementation.reasons(problem) == [reason]
    batch = make_batch(problem, CPU)
    with pytest.raises(ValueError, match=f"FLASH_ATTN/torch cannot compute this layer: {reason}"):
        implementation.plan(batch.config, batch.metadata)


@pytest.mark.parametrize(
    ("kind", "capability", "reason"),
    [
        ("cuda", (7, 5), "torch's flash attention needs compute capability 8.0 or newer, and this GPU has 7.5"),
        ("cuda", (8, 0), ""),
        ("cuda", (10, 0), ""),
        # A ROCm build counts its architectures in another way.
        ("rocm", (7, 5), ""),
    ],
)
def test_gpu_too_old_for_the_kernel_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, kind: str, capability: tuple[int, int], reason: str
) -> None:
    monkeypatch.setattr(variable_length, "accelerator", lambda: Platform(kind, "cuda", "test"))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert VariableLengthFlash().probe().reason == reason


def test_torch_built_without_the_kernel_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert VariableLengthFlash().probe().reason == "this torch was built without flash attention"
