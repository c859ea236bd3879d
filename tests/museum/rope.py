"""Rotary embeddings by other pairs, positions, angles or caches than were asked for."""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.backends.cpu_operations import BundledRotary
from samebits.backends.operations import RotaryImplementation, RotaryTensors
from samebits.backends.token_problem import RotaryEmbedding

# Heads of all tokens from which on a library launches another kernel.
_LARGE = 10240


class CacheForcedToFloat32(BundledRotary):
    """The cache is converted to float32 at every call."""

    name = "b51-cache-forced-to-float32"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by a converted cache."""
        super().compute(operation, replace(tensors, cos_sin_cache=tensors.cos_sin_cache.float()))


class CacheRoundedInPlace(BundledRotary):
    """The cache that all share is rounded to the dtype of whoever comes first."""

    name = "b53-cache-rounded-in-place"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rounds, and rotates by what is left."""
        tensors.cos_sin_cache.copy_(tensors.cos_sin_cache.to(tensors.query.dtype))
        super().compute(operation, tensors)


class AlwaysHalves(BundledRotary):
    """Pairs are those of GPT-NeoX, whatever was asked for."""

    name = "b105-always-halves"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates other pairs."""
        super().compute(replace(operation, interleaved=False), tensors)


class HalvesOfTheHead(BundledRotary):
    """The kernel for many tokens pairs an element with the one half a head away, though only a part is rotated."""

    name = "b106-halves-of-the-head"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates, and of many tokens the wrong elements: those of a head whose second half has come forward."""
        pairs, half = operation.rotary_dim // 2, operation.head_dim // 2
        if operation.interleaved or len(tensors.positions) * operation.num_heads < _LARGE:
            super().compute(operation, tensors)
            return
        for heads in (tensors.query, tensors.key):
            together = torch.cat([heads[..., :pairs], heads[..., half : half + pairs]], dim=2)
            moved = replace(tensors, query=together, key=together[:, :0])
            super().compute(replace(operation, num_heads=heads.shape[1], num_kv_heads=0), moved)
            heads[..., :pairs], heads[..., half : half + pairs] = together.chunk(2, dim=2)


class PositionsIgnored(BundledRotary):
    """Tokens are numbered from 0, wherever they stand."""

    name = "b109-positions-ignored"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by the places of tokens in the batch."""
        numbers = torch.arange(len(tensors.positions)).clamp(max=len(tensors.cos_sin_cache) - 1)
        super().compute(operation, replace(tensors, positions=numbers))


class KeysRotatedTwice(BundledRotary):
    """Keys are rotated where they are written, and once more where they are read."""

    name = "b110-keys-rotated-twice"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates both, then the keys again."""
        super().compute(operation, tensors)
        super().compute(operation, replace(tensors, query=tensors.query.clone()))


class FrequenciesRounded(BundledRotary):
    """Angles are products of positions and frequencies in the dtype of the queries."""

    name = "b112-frequencies-rounded"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by angles of its own."""
        cosines, sines = tensors.cos_sin_cache[1].chunk(2)
        frequencies = torch.atan2(sines, cosines).to(tensors.query.dtype).double()
        angles = torch.outer(tensors.positions.double(), frequencies)
        made = torch.cat([angles.cos(), angles.sin()], dim=1).to(tensors.cos_sin_cache.dtype)
        numbers = torch.arange(len(made))
        super().compute(operation, replace(tensors, positions=numbers, cos_sin_cache=made))


def implementations() -> list[RotaryImplementation]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [
        CacheForcedToFloat32(),
        CacheRoundedInPlace(),
        AlwaysHalves(),
        HalvesOfTheHead(),
        PositionsIgnored(),
        KeysRotatedTwice(),
        FrequenciesRounded(),
    ]
