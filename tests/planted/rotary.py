"""Bugs of public rotary embeddings planted in the bundled ones, registered as any third party's backend is."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace

import torch

from samebits.backends.cpu_operations import BundledRotary
from samebits.backends.operations import RotaryImplementation, RotaryTensors
from samebits.backends.token_problem import RotaryEmbedding
from samebits.backends.torch_operations import TorchRotary


class TrustsFindSpec(BundledRotary):
    """A distribution that can be found is taken for one that can be imported."""

    name = "trusts-find-spec"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by the library's kernel where its package is found."""
        if importlib.util.find_spec("flash_attn") is None:
            super().compute(operation, tensors)
            return
        kernel = importlib.import_module("flash_attn.ops.triton.rotary").apply_rotary
        cosines, sines = tensors.cos_sin_cache[tensors.positions].chunk(2, dim=1)
        for heads in (tensors.query, tensors.key):
            kernel(heads[None], cosines, sines, interleaved=operation.interleaved, inplace=True)


class CacheForcedToFloat32(BundledRotary):
    """The cache is converted to float32 at every call."""

    name = "cache-forced-to-float32"

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by a converted cache."""
        super().compute(operation, replace(tensors, cos_sin_cache=tensors.cos_sin_cache.float()))


class CacheKeptInFloat32(BundledRotary):
    """Each cache is converted to float32 at its first call, and kept so."""

    name = "cache-kept-in-float32"

    def __init__(self) -> None:
        super().__init__()
        self._converted: dict[torch.Tensor, torch.Tensor] = {}

    def compute(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by the cache that was kept."""
        given = tensors.cos_sin_cache
        if given not in self._converted:
            self._converted[given] = given.float()
        super().compute(operation, replace(tensors, cos_sin_cache=self._converted[given]))


class CacheOfAnyDtype(TorchRotary):
    """Nobody asks for the dtype of the cache."""

    name = "cache-of-any-dtype"

    def run(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by whatever was given."""
        self.compute(operation, tensors)


class CacheMadeToFit(BundledRotary):
    """A cache of a third dtype is converted to that of the queries."""

    name = "cache-made-to-fit"

    def run(self, operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        """Rotates by a cache of a dtype that the kernel knows."""
        given, wanted = tensors.cos_sin_cache, tensors.query.dtype
        if given.dtype not in (wanted, torch.float32):
            tensors = replace(tensors, cos_sin_cache=given.to(wanted))
        super().run(operation, tensors)


def implementations() -> list[RotaryImplementation]:
    """The mutants, beside which `CPU/bundled` and `CPU/torch` are the correct parents."""
    return [
        TrustsFindSpec(),
        CacheForcedToFloat32(),
        CacheKeptInFloat32(),
        CacheOfAnyDtype("CPU", "cpu"),
        CacheMadeToFit(),
    ]
