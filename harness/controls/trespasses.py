"""Controls of the rules that every check upholds, whatever it compares: what is right, and yet does what it must not.

They write outside of their results, change what they were given or a setting of torch, or break a rule of the rotary
cache. Their values are right and their bits agree, so that nothing else can see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    RmsNormTensors,
    RotaryTensors,
    refuse_cache,
)
from samebits.backends.token_problem import CacheWrite, Linear, RmsNorm, RotaryEmbedding
from samebits.harness.controls.kernels import Call
from samebits.harness.controls.plain_operations import TokenFlaw, linear, normalise, rotate, rotate_by_the_rules, write
from samebits.harness.controls.schedules import ChunkedKernel
from samebits.harness.matrix import Flaw, Symptom


@dataclass(frozen=True)
class Trespass(Flaw):
    """Something that attention must leave alone.

    Attributes:
        act: done after the results are right.
    """

    act: Callable[[Call], object]
    symptom: Symptom = field(default=Symptom.FAULT, kw_only=True)


def _element(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """A view of one element of the memory that a tensor lies in, counted from the tensor's first."""
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + place)


TRESPASSES: tuple[Trespass, ...] = (
    Trespass(
        "row_behind_the_last",
        "padding",
        "a row behind the last of the output is written",
        lambda call: _element(call.output, call.output.numel()).zero_(),
    ),
    Trespass(
        "lse_before_the_first",
        "padding",
        "padding is written before the first log-sum-exp",
        lambda call: _element(call.lse, -1).zero_(),
    ),
    Trespass(
        "query_scaled_in_place",
        "batch_size",
        "queries are scaled where they lie",
        lambda call: call.query.mul_(0.5),
    ),
    Trespass(
        "padding_stored",
        "padding",
        "keys of padding are stored in the null page",
        lambda call: call.key_cache[0].zero_(),
    ),
    Trespass(
        "setting_left_behind",
        "position",
        "float32 is multiplied as TF32 from then on, in the whole process",
        lambda call: torch.set_float32_matmul_precision("high"),
    ),
    Trespass(
        "stale_pages_cleared",
        "table_width",
        "entries of the block table behind a request's own are set to 0",
        lambda call: call.plan.metadata.block_table[:, -1:].zero_(),
    ),
)


class TrespassingKernel(ChunkedKernel):
    """The correct kernel, which then does what it must not."""

    flaw: Trespass

    def __init__(self, flaw: Trespass) -> None:
        """Takes the flaw's name."""
        self.flaw, self.name = flaw, flaw.name

    def compute(self, call: Call) -> None:
        """Computes the batch, and trespasses."""
        super().compute(call)
        self.flaw.act(call)


def _linear_and_a_row(operation: Linear, tensors: LinearTensors) -> None:
    linear(operation, tensors)
    _element(tensors.output, tensors.output.numel()).zero_()


def _between_rows(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    rotate_by_the_rules(operation, tensors)
    if not tensors.query.is_contiguous():
        _element(tensors.query, operation.num_heads * operation.head_dim).zero_()


def _normalised_in_place(operation: RmsNorm, tensors: RmsNormTensors) -> None:
    normalise(operation, tensors)
    tensors.input.copy_(tensors.output)


def _negates_sines(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    tensors.cos_sin_cache[:, operation.rotary_dim // 2 :].neg_()
    rotate(replace(operation, inverse=False), tensors)


def _copies_cache(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    refuse_cache(tensors.query, tensors.cos_sin_cache)
    halves = [half.contiguous() for half in tensors.cos_sin_cache.chunk(2, dim=1)]
    cache = torch.cat([half[tensors.positions] for half in halves], dim=1)
    places = torch.arange(len(tensors.positions))
    rotate(operation, replace(tensors, positions=places, cos_sin_cache=cache))


def _refused_otherwise(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    if tensors.cos_sin_cache.dtype not in (tensors.query.dtype, torch.float32):
        raise ValueError("unsupported dtype")
    rotate(operation, tensors)


def _write_padding(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
    """As `cache[slot_mapping] = key` does: slot -1 is the last one."""
    slots = tensors.slot_mapping % (tensors.key_cache.shape[0] * operation.page_size)
    for values, cache in ((tensors.key, tensors.key_cache), (tensors.value, tensors.value_cache)):
        cache[slots // operation.page_size, slots % operation.page_size] = values
    write(operation, tensors)


def _sign_of_0_lost(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
    write(operation, replace(tensors, key=tensors.key + 0.0, value=tensors.value + 0.0))


TOKEN_TRESPASSES: tuple[TokenFlaw, ...] = (
    TokenFlaw(
        "rows_behind_the_last",
        "padding",
        "a row behind the last of the output is written",
        Linear,
        _linear_and_a_row,
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "between_rows",
        "strided",
        "what lies between two rows of queries is written",
        RotaryEmbedding,
        _between_rows,
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "normalised_in_place",
        "batch_size",
        "the input is overwritten by the result",
        RmsNorm,
        _normalised_in_place,
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "negates_sines",
        "normal",
        "to rotate back, the sines of the cache are negated where they lie",
        RotaryEmbedding,
        _negates_sines,
        case=4,
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "any_cache",
        "cache_dtype",
        "a cache of any dtype is let through",
        RotaryEmbedding,
        rotate,
        dtype="bf16",
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "refused_otherwise",
        "cache_dtype",
        "a cache of a third dtype is refused in other words",
        RotaryEmbedding,
        _refused_otherwise,
        dtype="bf16",
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "cache_copied",
        "cache_in_place",
        "all cosines and all sines are copied apart",
        RotaryEmbedding,
        _copies_cache,
        dtype="bf16",
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "slot_minus_1",
        "padding",
        "slot -1 is written as the last one",
        CacheWrite,
        _write_padding,
        symptom=Symptom.FAULT,
    ),
    TokenFlaw(
        "sign_of_0_lost",
        "pages",
        "values pass through an addition, which loses the sign of 0",
        CacheWrite,
        _sign_of_0_lost,
        symptom=Symptom.FAULT,
    ),
)
