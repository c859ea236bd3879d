"""The contract of operations that treat each token by itself: what the harness hands over, and what must come back.

An implementation of one of them subclasses `RotaryImplementation`, `CacheWriteImplementation`, `MergeImplementation`,
`LinearImplementation` or `RmsNormImplementation`, and is returned from `implementations()` beside those of attention.
All of them compute a token's result from the token alone, so that none may let its bits follow the number of tokens.

Tensors may be views: the last stride is 1, and the others may be any, each tensor's its own. All tensors of a call are
on one device. What breaks these rules is refused by `run` before anything is computed, in the same words for every
implementation; `compute` may rely on them.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from samebits.backends.contract import DTYPES, dtype_name
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


@dataclass(frozen=True)
class RotaryTensors:
    """Queries and keys to rotate in place.

    Attributes:
        query: `[num_tokens, num_heads, head_dim]`; elements from `rotary_dim` on stay as they are.
        key: `[num_tokens, num_kv_heads, head_dim]`, likewise, of the queries' dtype.
        positions: int64 `[num_tokens]`, from 0 to `max_position - 1`. On a processor others are refused. On another
            device nobody can look at them without waiting: there nothing is read outside of the cache, and what would
            be rotated of such a token becomes NaN.
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
        key, value: `[num_tokens, num_kv_heads, head_dim]`, of the caches' dtype.
        key_cache, value_cache: `[num_pages, page_size, num_kv_heads, head_dim]`.
        slot_mapping: int64 `[num_tokens]`, `page * page_size + offset`; -1 is padding and writes nothing. On a
            processor other slots that the cache does not have are refused; on another device they write nothing.
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
        prefix_output, suffix_output, output: `[num_tokens, num_heads, head_dim]`, of one dtype.
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
        weight: `[out_features, in_features]`, contiguous, of the input's dtype.
        bias: `[out_features]`, of the input's dtype, or None.
        output: `[..., out_features]`, with the leading dimensions and the dtype of `input`, contiguous.
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
        output: of the input's shape and dtype, contiguous.
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

    def reasons(self, problem: TokenProblem) -> list[str]:
        """Why this problem cannot be computed, one sentence each; empty when it can."""
        if problem.dtype in self.dtypes:
            return []
        return [f"dtype {problem.dtype} is not supported, only {', '.join(self.dtypes)}"]

    @abc.abstractmethod
    def run(self, operation: OperationT, tensors: TensorsT) -> None:
        """Computes the operation on the tensors. Launches only: no synchronisation with the host."""


class CheckedImplementation(TokenImplementation[OperationT, TensorsT]):
    """An operation whose tensors are checked before it computes. A subclass implements `compute`."""

    def run(self, operation: OperationT, tensors: TensorsT) -> None:
        """Computes the operation on the tensors, unless they break its rules.

        Raises:
            ValueError: they do; nothing has been written then.
        """
        self.check(operation, tensors)
        self.compute(operation, tensors)

    @abc.abstractmethod
    def check(self, operation: OperationT, tensors: TensorsT) -> None:
        """Refuses tensors that break the rules, by what the host knows of them.

        Raises:
            ValueError: one sentence, which does not name the implementation.
        """

    @abc.abstractmethod
    def compute(self, operation: OperationT, tensors: TensorsT) -> None:
        """Computes the operation on tensors that keep the rules. Launches only: no synchronisation with the host."""


class RotaryImplementation(CheckedImplementation[RotaryEmbedding, RotaryTensors]):
    """Rotary position embedding in place, in float32 with one rounding at the end."""

    operation = RotaryEmbedding.operation

    def check(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """See `RotaryTensors`."""
        query, cache = tensors.query, tensors.cos_sin_cache
        refuse_cache(query, cache)
        num_tokens, head_dim = query.shape[:1], operation.head_dim
        _check_floats("query", query, (*num_tokens, operation.num_heads, head_dim))
        _check("key", tensors.key, (*num_tokens, operation.num_kv_heads, head_dim), query.dtype, query.device)
        _check("positions", tensors.positions, num_tokens, torch.int64, query.device)
        _check("cos_sin_cache", cache, (*cache.shape[:1], operation.rotary_dim), cache.dtype, query.device)
        max_position = cache.shape[0]
        _refuse_outside("position", tensors.positions, range(max_position), f"the cache holds 0 to {max_position - 1}")


class CacheWriteImplementation(CheckedImplementation[CacheWrite, CacheWriteTensors]):
    """Writes new keys and values to a page cache."""

    operation = CacheWrite.operation

    def check(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        """See `CacheWriteTensors`."""
        key, key_cache = tensors.key, tensors.key_cache
        num_tokens, num_pages = key.shape[:1], key_cache.shape[:1]
        head = (operation.num_kv_heads, operation.head_dim)
        _check_floats("key", key, (*num_tokens, *head))
        _check("value", tensors.value, (*num_tokens, *head), key.dtype, key.device)
        for name, cache in (("key_cache", key_cache), ("value_cache", tensors.value_cache)):
            _check(name, cache, (*num_pages, operation.page_size, *head), key.dtype, key.device)
        _check("slot_mapping", tensors.slot_mapping, num_tokens, torch.int64, key.device)
        num_slots = key_cache.shape[0] * operation.page_size
        accepted = f"the cache has 0 to {num_slots - 1}, and -1 is padding"
        _refuse_outside("slot", tensors.slot_mapping, range(-1, num_slots), accepted)


class MergeImplementation(CheckedImplementation[MergeStates, MergeTensors]):
    """Merges two partial attention results."""

    operation = MergeStates.operation

    def check(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """See `MergeTensors`."""
        prefix = tensors.prefix_output
        num_tokens = prefix.shape[:1]
        shape = (*num_tokens, operation.num_heads, operation.head_dim)
        _check_floats("prefix_output", prefix, shape)
        for name in ("suffix_output", "output"):
            _check(name, getattr(tensors, name), shape, prefix.dtype, prefix.device)
        for name in ("prefix_lse", "suffix_lse", "lse"):
            _check(name, getattr(tensors, name), (operation.num_heads, *num_tokens), torch.float32, prefix.device)


class LinearImplementation(CheckedImplementation[Linear, LinearTensors]):
    """A linear layer."""

    operation = Linear.operation

    def check(self, operation: Linear, tensors: LinearTensors) -> None:
        """See `LinearTensors`."""
        input, in_features, out_features = tensors.input, operation.in_features, operation.out_features
        leading = _leading_dimensions(input)
        _check_floats("input", input, (*leading, in_features))
        _check_contiguous("weight", tensors.weight, (out_features, in_features), input)
        if tensors.bias is not None:
            _check("bias", tensors.bias, (out_features,), input.dtype, input.device)
        _check_contiguous("output", tensors.output, (*leading, out_features), input)


class RmsNormImplementation(CheckedImplementation[RmsNorm, RmsNormTensors]):
    """A normalisation by the root mean square."""

    operation = RmsNorm.operation

    def check(self, operation: RmsNorm, tensors: RmsNormTensors) -> None:
        """See `RmsNormTensors`."""
        input = tensors.input
        shape = (*_leading_dimensions(input), operation.size)
        _check_floats("input", input, shape)
        _check("weight", tensors.weight, (operation.size,), input.dtype, input.device)
        _check_contiguous("output", tensors.output, shape, input)


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


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Refuses another shape, dtype or device, and a last stride that is not 1."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{name} is {dtype_name(tensor.dtype)} {list(tensor.shape)} on {tensor.device}; "
            f"it must be {dtype_name(dtype)} {list(shape)} on {device}"
        )
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {list(tensor.stride())}; the last one must be 1")


def _check_floats(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """The same for the tensor whose dtype and device the others must have."""
    if tensor.dtype not in DTYPES.values():
        raise ValueError(f"{name} is {dtype_name(tensor.dtype)}; it must be one of {', '.join(DTYPES)}")
    _check(name, tensor, shape, tensor.dtype, tensor.device)


def _check_contiguous(name: str, tensor: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor) -> None:
    """The same for a tensor that has no gaps, and dtype and device of another."""
    _check(name, tensor, shape, like.dtype, like.device)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {list(tensor.stride())}; it must be contiguous")


def _leading_dimensions(input: torch.Tensor) -> torch.Size:
    """Sizes of the dimensions before the last, of which there are one to three."""
    if not 2 <= input.dim() <= 4:
        raise ValueError(f"input has shape {list(input.shape)}; it must have one to three dimensions before the last")
    return input.shape[:-1]


def _refuse_outside(name: str, numbers: torch.Tensor, allowed: range, accepted: str) -> None:
    """Refuses a token's position or slot that the cache does not have, where looking at it costs nothing."""
    if numbers.device.type != "cpu":
        return
    # In numpy, so that no operation of torch is seen that would wait elsewhere.
    values = numbers.numpy()
    outside = np.flatnonzero((values < allowed.start) | (values >= allowed.stop))
    if len(outside):
        token = outside[0]
        raise ValueError(f"token {token} has {name} {values[token]}; {accepted}")
