"""The contract of operations that treat each token by itself: what the harness hands over, and what must come back.

An implementation of one of them subclasses `RotaryImplementation`, `CacheWriteImplementation`, `MergeImplementation`,
`LinearImplementation` or `RmsNormImplementation`, and is returned from `implementations()` beside those of attention.
All of them compute a token's result from the token alone, so that none may let its bits follow the number of tokens.

Tensors may be views: every stride but the last, which is 1, can be larger than the sizes behind it suggest.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from samebits.backends.contract import dtype_name
from samebits.backends.subject import Subject
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation


@dataclass(frozen=True)
class RotaryTensors:
    """Queries and keys to rotate in place.

    Attributes:
        query: `[num_tokens, num_heads, head_dim]`; elements from `rotary_dim` on stay as they are.
        key: `[num_tokens, num_kv_heads, head_dim]`, likewise.
        positions: int64 `[num_tokens]`.
        cos_sin_cache: `[max_position, rotary_dim]`, of the queries' dtype or float32: a position's `rotary_dim / 2`
            cosines, then as many sines. It is read where it lies: never converted as a whole, never copied.
    """

    query: torch.Tensor
    key: torch.Tensor
    positions: torch.Tensor
    cos_sin_cache: torch.Tensor


@dataclass(frozen=True)
class CacheWriteTensors:
    """New keys and values, and the cache they go to.

    Attributes:
        key, value: `[num_tokens, num_kv_heads, head_dim]`.
        key_cache, value_cache: `[num_pages, page_size, num_kv_heads, head_dim]`.
        slot_mapping: int64 `[num_tokens]`, `page * page_size + offset`; -1 is padding and writes nothing.
    """

    key: torch.Tensor
    value: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    slot_mapping: torch.Tensor


@dataclass(frozen=True)
class MergeTensors:
    """Two partial results and where they are merged.

    With `m` the larger log-sum-exp, `w_i = exp(lse_i - m)` and `s = w_0 + w_1`: the output is
    `(w_0 o_0 + w_1 o_1) / s` and its log-sum-exp `m + log(s)`. A side whose log-sum-exp is `-inf` saw no key: whatever
    its output holds, NaN included, is not used, and the other side's output passes through bit by bit. Where neither
    saw one, the output is 0 and its log-sum-exp `-inf`.

    Attributes:
        prefix_output, suffix_output, output: `[num_tokens, num_heads, head_dim]`.
        prefix_lse, suffix_lse, lse: float32 `[num_heads, num_tokens]`, natural logarithm.
    """

    prefix_output: torch.Tensor
    prefix_lse: torch.Tensor
    suffix_output: torch.Tensor
    suffix_lse: torch.Tensor
    output: torch.Tensor
    lse: torch.Tensor


@dataclass(frozen=True)
class LinearTensors:
    """`output = input @ weight.T + bias`, with one rounding to the output's dtype at the end.

    Attributes:
        input: `[..., in_features]`, with one to three leading dimensions of any strides.
        weight: `[out_features, in_features]`, contiguous.
        bias: `[out_features]`, or None.
        output: `[..., out_features]`, with the leading dimensions of `input`, contiguous.
    """

    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    output: torch.Tensor


@dataclass(frozen=True)
class RmsNormTensors:
    """`output = input / sqrt(mean(input^2) + epsilon) * weight`, with one rounding at the end.

    Attributes:
        input: `[..., size]`, with one to three leading dimensions of any strides.
        weight: `[size]`, of the input's dtype.
        output: of the input's shape, contiguous.
    """

    input: torch.Tensor
    weight: torch.Tensor
    output: torch.Tensor


TokenTensors = RotaryTensors | CacheWriteTensors | MergeTensors | LinearTensors | RmsNormTensors
OperationT = TypeVar("OperationT", bound=TokenOperation)
TensorsT = TypeVar("TensorsT", bound=TokenTensors)


class TokenImplementation(Subject, Generic[OperationT, TensorsT]):
    """One operation on tokens by one concrete kernel library.

    Attributes:
        dtypes: names of dtypes that it can compute.
    """

    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")

    def reasons(self, operation: OperationT, dtype: str) -> list[str]:
        """Why an operation cannot be computed in a dtype, one sentence each; empty when it can."""
        if dtype in self.dtypes:
            return []
        return [f"dtype {dtype} is not supported, only {', '.join(self.dtypes)}"]

    @abc.abstractmethod
    def run(self, operation: OperationT, tensors: TensorsT) -> None:
        """Computes the operation on the tensors. Launches only: no synchronisation with the host."""


class RotaryImplementation(TokenImplementation[RotaryEmbedding, RotaryTensors]):
    """Rotary position embedding. A subclass implements `rotate`."""

    operation = RotaryEmbedding.operation

    def run(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates queries and keys in place.

        Raises:
            ValueError: the cache has a dtype that is neither the queries' nor float32.
        """
        refuse_cache(tensors.query, tensors.cos_sin_cache)
        self.rotate(operation, tensors)

    @abc.abstractmethod
    def rotate(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates queries and keys in place, in float32 with one rounding at the end."""


class CacheWriteImplementation(TokenImplementation[CacheWrite, CacheWriteTensors]):
    """Writes new keys and values to a page cache."""

    operation = CacheWrite.operation


class MergeImplementation(TokenImplementation[MergeStates, MergeTensors]):
    """Merges two partial attention results."""

    operation = MergeStates.operation


class LinearImplementation(TokenImplementation[Linear, LinearTensors]):
    """A linear layer."""

    operation = Linear.operation


class RmsNormImplementation(TokenImplementation[RmsNorm, RmsNormTensors]):
    """A normalisation by the root mean square."""

    operation = RmsNorm.operation


def refuse_cache(query: torch.Tensor, cos_sin_cache: torch.Tensor) -> None:
    """Refuses a rotary cache of any dtype but the queries' and float32, in the same words for every implementation.

    Raises:
        ValueError: it has another.
    """
    if cos_sin_cache.dtype not in (query.dtype, torch.float32):
        given, queries = (dtype_name(tensor.dtype) for tensor in (cos_sin_cache, query))
        raise ValueError(
            f"cos_sin_cache is {given} beside queries of {queries}; it must be of the queries' dtype or fp32"
        )
