"""Launching an implementation's kernels at the sizes of a real model, with tensors that nobody reads.

What a kernel is compiled for follows from dtypes, strides, sizes and lengths. So lengths are real, and of everything
else there is memory that was never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from samebits.backends.contract import DTYPES, AttentionMetadata, Implementation
from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
    TokenTensors,
)
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.backends.subject import Subject
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenOperation,
    TokenProblem,
)
from samebits.harness.batch import attention_config
from samebits.harness.relations import AnyProblem

# Llama 3 8B, whole.
_GEOMETRY = Geometry("llama3-8b", num_heads=32, num_kv_heads=8, head_dim=128, page_size=16)
_HIDDEN = 4096
_ATTENTION: Mapping[str, tuple[Request, ...]] = {
    "decode": tuple(Request(key, 1, 4095) for key in range(1, 9)),
    "prefill": (Request(1, 2048),),
}
_TOKENS = (Request(1, 64),)
_OPERATIONS: Mapping[str, TokenOperation] = {
    operation.operation: operation
    for operation in (
        # The cache of cosines and sines is of float32, as AITER's kernels need it beside 16-bit queries.
        RotaryEmbedding("llama3-8b", _GEOMETRY.num_heads, _GEOMETRY.num_kv_heads, 128, 128, cache_dtype="fp32"),
        CacheWrite("llama3-8b", _GEOMETRY.num_kv_heads, _GEOMETRY.head_dim, _GEOMETRY.page_size),
        MergeStates("llama3-8b", _GEOMETRY.num_heads, _GEOMETRY.head_dim),
        Linear("llama3-8b-qkv", _HIDDEN, (_GEOMETRY.num_heads + 2 * _GEOMETRY.num_kv_heads) * _GEOMETRY.head_dim),
        RmsNorm("llama3-8b", _HIDDEN),
    )
}


def batch_of(operation: str, batch: str, dtype: str) -> AnyProblem:
    """The problem of a kind of batch.

    Args:
        operation: what is computed.
        batch: `decode` or `prefill` of attention, `tokens` of other operations.
        dtype: name of a dtype.

    Raises:
        ValueError: the operation has no such batch.
    """
    if operation in _OPERATIONS and batch == "tokens":
        return TokenProblem(_OPERATIONS[operation], dtype, _TOKENS)
    if operation == Implementation.operation and batch in _ATTENTION:
        return Problem(_GEOMETRY, Mask.CAUSAL, dtype, _ATTENTION[batch])
    known = tuple(_ATTENTION) if operation == Implementation.operation else ("tokens",)
    raise ValueError(f"{operation} has no batch {batch!r} to compile kernels for; known are {', '.join(known)}")


@torch.no_grad()
def launch(subject: Subject, problem: AnyProblem) -> None:
    """Plans and runs a batch. Nothing may come of its launches: its tensors lie in host memory.

    Args:
        subject: an implementation of the problem's operation, made for the device that is supposed to be here.
        problem: of `batch_of`.

    Raises:
        TypeError: the implementation computes another operation.
    """
    if isinstance(subject, Implementation) and isinstance(problem, Problem):
        _attend(subject, problem)
    elif isinstance(subject, TokenImplementation) and isinstance(problem, TokenProblem):
        operation = problem.operation
        subject.run(operation, _TENSORS[type(operation)](operation, problem.num_tokens, DTYPES[problem.dtype]))
    else:
        raise TypeError(f"{subject.label} computes {subject.operation} and not {problem}")


def _attend(subject: Implementation[Any], problem: Problem) -> None:
    geometry, dtype = problem.geometry, DTYPES[problem.dtype]
    query_lens = torch.tensor([request.query_len for request in problem.requests])
    seq_lens = torch.tensor([request.seq_len for request in problem.requests], dtype=torch.int32)
    num_tokens, longest = int(query_lens.sum()), int(seq_lens.max())
    pages = longest // geometry.page_size
    metadata = AttentionMetadata(
        query_start_loc=torch.nn.functional.pad(query_lens.cumsum(0), (1, 0)).to(torch.int32),
        seq_lens=seq_lens,
        block_table=torch.zeros((len(problem.requests), pages), dtype=torch.int32),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.int64),
        max_query_len=int(query_lens.max()),
        max_seq_len=longest,
        causal=True,
    )
    cache_shape = (pages, geometry.page_size, geometry.num_kv_heads, geometry.head_dim)
    key_cache, value_cache = (torch.empty(cache_shape, dtype=dtype) for _ in range(2))
    query, output = (torch.empty((num_tokens, geometry.num_heads, geometry.head_dim), dtype=dtype) for _ in range(2))
    lse = torch.empty((geometry.num_heads, num_tokens)) if subject.support.lse else None
    plan = subject.plan(attention_config(problem, torch.device("cpu")), metadata)
    subject.run(plan, query, key_cache, value_cache, output, lse)


def _rotary(operation: RotaryEmbedding, num_tokens: int, dtype: torch.dtype) -> RotaryTensors:
    query, key = (
        torch.empty((num_tokens, heads, operation.head_dim), dtype=dtype)
        for heads in (operation.num_heads, operation.num_kv_heads)
    )
    cache_dtype = DTYPES[operation.cache_dtype] if operation.cache_dtype else dtype
    cos_sin_cache = torch.empty((operation.max_position, operation.rotary_dim), dtype=cache_dtype)
    return RotaryTensors(query, key, torch.zeros(num_tokens, dtype=torch.int64), cos_sin_cache)


def _cache_write(operation: CacheWrite, num_tokens: int, dtype: torch.dtype) -> CacheWriteTensors:
    row = (operation.num_kv_heads, operation.head_dim)
    key, value = (torch.empty((num_tokens, *row), dtype=dtype) for _ in range(2))
    key_cache, value_cache = (torch.empty((num_tokens, operation.page_size, *row), dtype=dtype) for _ in range(2))
    return CacheWriteTensors(key, value, key_cache, value_cache, torch.arange(num_tokens))


def _merge(operation: MergeStates, num_tokens: int, dtype: torch.dtype) -> MergeTensors:
    shape = (num_tokens, operation.num_heads, operation.head_dim)
    prefix, suffix, output = (torch.empty(shape, dtype=dtype) for _ in range(3))
    prefix_lse, suffix_lse, lse = (torch.empty((operation.num_heads, num_tokens)) for _ in range(3))
    return MergeTensors(prefix, prefix_lse, suffix, suffix_lse, output, lse)


def _linear(operation: Linear, num_tokens: int, dtype: torch.dtype) -> LinearTensors:
    return LinearTensors(
        input=torch.empty((num_tokens, operation.in_features), dtype=dtype),
        weight=torch.empty((operation.out_features, operation.in_features), dtype=dtype),
        bias=None,
        output=torch.empty((num_tokens, operation.out_features), dtype=dtype),
    )


def _rms_norm(operation: RmsNorm, num_tokens: int, dtype: torch.dtype) -> RmsNormTensors:
    rows, output = (torch.empty((num_tokens, operation.size), dtype=dtype) for _ in range(2))
    return RmsNormTensors(rows, torch.empty(operation.size, dtype=dtype), output)


_TENSORS: Mapping[type[TokenOperation], Callable[[Any, int, torch.dtype], TokenTensors]] = {
    RotaryEmbedding: _rotary,
    CacheWrite: _cache_write,
    MergeStates: _merge,
    Linear: _linear,
    RmsNorm: _rms_norm,
}
