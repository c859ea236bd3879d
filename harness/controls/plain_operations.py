"""Plain correct kernels of operations on tokens, in float64, and what takes their place in a control."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
    TokenTensors,
    refuse_cache,
)
from samebits.backends.subject import Claims
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.controls.kernels import Control
from samebits.harness.matrix import Flaw

Run = Callable[[Any, Any], None]


def rotate(operation: RotaryEmbedding, tensors: RotaryTensors, arithmetic: torch.dtype = torch.float64) -> None:
    """Rotates in place, whatever dtype the cache has."""
    cached = tensors.cos_sin_cache[tensors.positions].to(arithmetic).unsqueeze(1)
    cosines, sines = cached.chunk(2, dim=2)
    sines = -sines if operation.inverse else sines
    half = operation.rotary_dim // 2
    for heads in (tensors.query, tensors.key):
        rotated = heads[..., : operation.rotary_dim]
        first, second = (
            (rotated[..., 0::2], rotated[..., 1::2])
            if operation.interleaved
            else (rotated[..., :half], rotated[..., half:])
        )
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        first.copy_(turned[0]), second.copy_(turned[1])


def rotate_by_the_rules(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    """Rotates in place, by a cache that the rules allow."""
    refuse_cache(tensors.query, tensors.cos_sin_cache)
    rotate(operation, tensors)


def write(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
    """Stores the tokens that have a slot."""
    stored = tensors.slot_mapping >= 0
    slots = tensors.slot_mapping[stored]
    for values, cache in ((tensors.key, tensors.key_cache), (tensors.value, tensors.value_cache)):
        cache[slots // operation.page_size, slots % operation.page_size] = values[stored]


def merge(operation: MergeStates, tensors: MergeTensors, base: float = math.e) -> None:
    """Merges two sides whose log-sum-exps are of some base."""
    lses = torch.stack([tensors.prefix_lse, tensors.suffix_lse]).double()
    outputs = torch.stack([tensors.prefix_output, tensors.suffix_output]).double()
    dead, largest = lses == -math.inf, lses.amax(dim=0)
    # A side alone passes through, whatever its log-sum-exp; what a dead side holds may be NaN.
    passes = dead.any(dim=0)
    weights = torch.where(passes, (~dead).double(), torch.exp((lses - largest) * math.log(base)))
    total = weights.sum(dim=0).masked_fill(dead.all(dim=0), 1.0)
    weights, dead = (rows.transpose(1, 2).unsqueeze(3) for rows in (weights / total, dead))
    merged = (weights * outputs.masked_fill(dead, 0.0)).sum(dim=0).to(tensors.output.dtype)
    lse = (largest + total.log() / math.log(base)).to(tensors.lse.dtype)
    # The bits of a side alone, which float64 would change: of a NaN that signals it makes a quiet one.
    no_prefix, no_suffix = dead
    merged = torch.where(no_prefix & ~no_suffix, tensors.suffix_output, merged)
    tensors.output.copy_(torch.where(no_suffix & ~no_prefix, tensors.prefix_output, merged))
    lse = torch.where(lses[0] == -math.inf, tensors.suffix_lse, lse)
    tensors.lse.copy_(torch.where(lses[1] == -math.inf, tensors.prefix_lse, lse))


def linear(operation: Linear, tensors: LinearTensors) -> None:
    """Multiplies by the weight, and adds the bias."""
    product = tensors.input.double() @ tensors.weight.double().T
    tensors.output.copy_(product if tensors.bias is None else product + tensors.bias.double())


def normalise(operation: RmsNorm, tensors: RmsNormTensors) -> None:
    """Divides by the root mean square, and multiplies by the weight."""
    rows = tensors.input.double()
    mean_square = (rows**2).mean(dim=-1, keepdim=True)
    tensors.output.copy_(rows / (mean_square + operation.epsilon).sqrt() * tensors.weight.double())


@dataclass(frozen=True)
class TokenFlaw(Flaw):
    """A way to get an operation wrong.

    Attributes:
        operation: type of the operation.
        run: the flawed kernel.
        dtype: dtype in which it must show.
        case: which of the operation's cases must show it.
    """

    operation: type[TokenOperation]
    run: Run
    dtype: str = "fp32"
    case: int = 0


# Each operation as it should be.
CORRECT: Mapping[type[TokenOperation], Run] = {
    RotaryEmbedding: rotate_by_the_rules,
    CacheWrite: write,
    MergeStates: merge,
    Linear: linear,
    RmsNorm: normalise,
}


class PlainOperation(Control, TokenImplementation[Any, Any]):
    """An operation on tokens as it should be, or as a flaw would have it."""

    claims = Claims(batch_invariant=True, schedule_invariant=True, source="plain float64, but for its flaw")

    def __init__(self, operation: type[TokenOperation], flaw: TokenFlaw | None = None) -> None:
        """Takes the operation's correct kernel, or the flaw's."""
        self._kind, self.flaw, self.operation = operation, flaw, operation.operation
        self.name = flaw.name if flaw else f"correct_{self.operation}"
        self._compute = flaw.run if flaw else CORRECT[operation]

    @property
    def parent(self) -> PlainOperation:
        """The correct kernel."""
        return PlainOperation(self._kind)

    def run(self, operation: TokenOperation, tensors: TokenTensors) -> None:
        """Computes it."""
        self._compute(operation, tensors)
