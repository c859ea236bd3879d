"""Operations on tokens in plain torch, on any device: the rows that every backend shows whose library has none.

Nothing but torch is imported, and every operation only launches: indices and masks stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch

from samebits.backends.operations import (
    CacheWriteImplementation,
    CacheWriteTensors,
    MergeImplementation,
    MergeTensors,
    RotaryImplementation,
    RotaryTensors,
    TokenImplementation,
)
from samebits.backends.subject import Availability, Claims, GraphSupport, Subject
from samebits.backends.token_problem import CacheWrite, MergeStates, RotaryEmbedding


def _invariant(reason: str) -> Claims:
    return Claims(
        batch_invariant=True,
        schedule_invariant=True,
        # Indices and masks stay on the device.
        cuda_graph=GraphSupport.ALWAYS,
        source=f"backends/torch_operations.py: {reason}",
    )


class OnTorch(Subject):
    """What is computed by torch alone: available wherever the backend is.

    Args:
        backend: whose row it is.
        device: torch device type it computes on.
    """

    name = "torch"

    def __init__(self, backend: str, device: str) -> None:
        self.backend = backend
        self._device = device

    def probe(self) -> Availability:
        """Always available: torch is what samebits stands on."""
        return Availability(version=torch.__version__, device=self._device)


class TorchRotary(OnTorch, RotaryImplementation):
    """Rotary embedding by torch's elementwise kernels, from the tokens' own rows of the cache."""

    claims = _invariant("IEEE products and sums of single elements; no reduction")
    configuration = MappingProxyType({"api": "torch.index_select, elementwise in float32"})

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Gathers a row of cosines and sines for each token, and turns all heads by it."""
        cache, positions = tensors.cos_sin_cache, tensors.positions
        # A GPU's kernels would end the process where an index is outside.
        outside = (positions < 0) | (positions >= cache.shape[0])
        angles = cache.index_select(0, positions.masked_fill(outside, 0)).float()
        angles.masked_fill_(outside.unsqueeze(1), math.nan)
        cosines, sines = angles.unsqueeze(1).chunk(2, dim=2)
        if operation.inverse:
            sines = -sines
        for heads in (tensors.query, tensors.key):
            rotated = heads[..., : operation.rotary_dim]
            if operation.interleaved:
                first, second = rotated[..., 0::2], rotated[..., 1::2]
            else:
                first, second = rotated.chunk(2, dim=2)
            x, y = first.float(), second.float()
            # In float32 `x` and `y` are what is written to.
            turned = x * cosines - y * sines, y * cosines + x * sines
            first.copy_(turned[0])
            second.copy_(turned[1])


class TorchCacheWrite(OnTorch, CacheWriteImplementation):
    """A cache write by one `index_put` each for keys and values."""

    claims = _invariant("elements are copied, none is computed")
    configuration = MappingProxyType({"api": "torch.Tensor.index_put_"})

    def compute(self, operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        """Writes each token's key and value, and a padding token's nowhere."""
        slots = tensors.slot_mapping
        if not len(slots):
            return
        # Dropping the padding tokens would make their number known to the host, which waits for the device. Instead
        # each of them repeats the first token that is none, to the same slot: whichever comes last, the bits are those.
        num_slots = tensors.key_cache.shape[0] * operation.page_size
        written = (slots >= 0) & (slots < num_slots)
        tokens = torch.where(written, torch.arange(len(slots), device=slots.device), written.to(torch.int8).argmax())
        # Where all are padding, slot 0 is given what it holds.
        any_written = written.any()
        slots = slots[tokens].masked_fill(~any_written, 0)
        pages, offsets = slots // operation.page_size, slots % operation.page_size
        for new, cache in ((tensors.key, tensors.key_cache), (tensors.value, tensors.value_cache)):
            cache[pages, offsets] = torch.where(any_written, new[tokens], cache[pages, offsets])


class TorchMerge(OnTorch, MergeImplementation):
    """A merge of partial results by torch's elementwise kernels."""

    claims = _invariant("elementwise, and exp and log of an element by themselves")
    configuration = MappingProxyType({"api": "torch.exp, torch.log and elementwise in float32"})

    def compute(self, operation: MergeStates, tensors: MergeTensors) -> None:
        """Weighs both sides, and passes on the bits of one whose other side saw no key."""
        prefix_lse, suffix_lse = tensors.prefix_lse, tensors.suffix_lse
        prefix_empty, suffix_empty = torch.isneginf(prefix_lse), torch.isneginf(suffix_lse)
        largest = torch.maximum(prefix_lse, suffix_lse)
        prefix_weight, suffix_weight = (prefix_lse - largest).exp(), (suffix_lse - largest).exp()
        weights = prefix_weight + suffix_weight
        merged = (
            _per_row(prefix_weight) * tensors.prefix_output.float()
            + _per_row(suffix_weight) * tensors.suffix_output.float()
        ) / _per_row(weights)
        output = torch.where(_per_row(suffix_empty), tensors.prefix_output, merged.to(tensors.output.dtype))
        output = torch.where(_per_row(prefix_empty), tensors.suffix_output, output)
        tensors.output.copy_(output.masked_fill(_per_row(prefix_empty & suffix_empty), 0.0))
        lse = torch.where(suffix_empty, prefix_lse, largest + weights.log())
        tensors.lse.copy_(torch.where(prefix_empty, suffix_lse, lse))


def operations(backend: str, device: str) -> Sequence[TokenImplementation[Any, Any]]:
    """The operations that stand beside attention, for a backend whose library has none of its own.

    Args:
        backend: whose rows they are.
        device: torch device type to compute on.
    """
    return [TorchRotary(backend, device), TorchCacheWrite(backend, device), TorchMerge(backend, device)]


def _per_row(values: torch.Tensor) -> torch.Tensor:
    """From `[num_heads, num_tokens]` to what multiplies `[num_tokens, num_heads, head_dim]`."""
    return values.transpose(0, 1).unsqueeze(2)
