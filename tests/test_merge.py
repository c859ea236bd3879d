"""Merging partial results by their log-sum-exps: values against float64, and what a side that saw no key leaves."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import MergeTensors
from samebits.backends.token_problem import MergeStates

from .token_operations import (
    BUNDLED,
    CPU,
    MARKS,
    NAN,
    UNIT,
    AnyToken,
    assert_nothing_outside,
    assert_same_bits,
    assert_within,
    device_of,
    drawn,
    each_dtype,
    each_of,
    in_two_dtypes,
    inside,
)

pytestmark = MARKS

NEGATIVE_ZERO = -0.0
ON_TRITON = tuple(each for each in BUNDLED if each.backend == "TRITON_ATTN")
Side = tuple[torch.Tensor, torch.Tensor]


def partial_results(dtype: str, device: torch.device = CPU) -> MergeTensors:
    """Seven tokens of three heads of 20, seen through views of wider tensors."""
    outputs = [drawn(7, 4, 24, dtype=dtype, seed=seed, device=device)[:, 1:, :20] for seed in range(2)]
    lses = [drawn(3, 9, seed=seed + 2, device=device)[:, :7] * 5 for seed in range(2)]
    return MergeTensors(
        outputs[0], lses[0], outputs[1], lses[1], torch.full_like(outputs[0], NAN), torch.full_like(lses[0], NAN)
    )


def merged(implementation: AnyToken, prefix: Side, suffix: Side) -> Side:
    """Output and log-sum-exp of two sides."""
    output, lse = torch.full_like(prefix[0], NAN), torch.full_like(prefix[1], NAN)
    num_heads, head_dim = output.shape[1:]
    implementation.run(MergeStates("test", num_heads, head_dim), MergeTensors(*prefix, *suffix, output, lse))
    return output, lse


@each_of("merge")
@each_dtype
@pytest.mark.parametrize("into_prefix", [False, True])
def test_both_sides_are_weighed_by_their_log_sum_exps(implementation: AnyToken, dtype: str, into_prefix: bool) -> None:
    tensors = partial_results(dtype, device_of(implementation))
    largest = torch.maximum(tensors.prefix_lse, tensors.suffix_lse).double()
    weights = torch.stack([(lse.double() - largest).exp() for lse in (tensors.prefix_lse, tensors.suffix_lse)])
    shares = (weights / weights.sum(dim=0)).transpose(1, 2).unsqueeze(3)
    terms = shares * torch.stack([tensors.prefix_output, tensors.suffix_output]).double()
    expected_lse = largest + weights.sum(dim=0).log()
    if into_prefix:
        tensors = dataclasses.replace(tensors, output=tensors.prefix_output, lse=tensors.prefix_lse)
    implementation.run(MergeStates("test", 3, 20), tensors)
    # A weight is off by the rounding of its exponent and its own; then come a product, two sums and a quotient.
    assert_within(tensors.output, terms.sum(dim=0), 8 * UNIT * terms.abs().sum(dim=0))
    assert_within(tensors.lse, expected_lse, 4 * UNIT * torch.ones_like(expected_lse))


@each_of("merge")
@each_dtype
def test_the_bits_of_a_side_whose_other_saw_no_key_are_passed_on(implementation: AnyToken, dtype: str) -> None:
    tensors = partial_results(dtype, device_of(implementation))
    tensors.prefix_lse[:, [0, 4]], tensors.suffix_lse[:, [2, 4]] = -math.inf, -math.inf
    tensors.prefix_output[[0, 4]], tensors.suffix_output[[2, 4]] = NAN, NAN
    # A result may itself be NaN, of any payload, and -0.
    bits_of_both = torch.tensor([0x7FC00003, -(2**31)], dtype=torch.int32)
    if dtype != "fp32":
        bits_of_both = torch.tensor([0x7FC3, -(2**15)], dtype=torch.int16)
    tensors.suffix_output[0, 0, :2] = bits_of_both.view(DTYPES[dtype])
    implementation.run(MergeStates("test", 3, 20), tensors)
    zeros = torch.zeros_like(tensors.output[4])
    assert_same_bits(tensors.output[0], tensors.suffix_output[0], "the suffix was not passed on")
    assert_same_bits(tensors.output[2], tensors.prefix_output[2], "the prefix was not passed on")
    assert_same_bits(tensors.output[4], zeros, "nothing was seen, and it is not 0")
    assert_same_bits(tensors.lse[:, 0], tensors.suffix_lse[:, 0], "the suffix's log-sum-exp was not passed on")
    assert_same_bits(tensors.lse[:, 2], tensors.prefix_lse[:, 2], "the prefix's log-sum-exp was not passed on")
    assert tensors.lse[:, 4].isneginf().all(), f"no key has {tensors.lse[:, 4].tolist()}"
    assert not tensors.output[[1, 3, 5, 6]].isnan().any(), "rows of two sides were not merged"


@each_of("merge")
@in_two_dtypes
@pytest.mark.parametrize("dead", [NAN, math.inf, 1e30])
def test_a_side_that_saw_no_key_leaves_the_bits_of_the_other(implementation: AnyToken, dead: float, dtype: str) -> None:
    device = device_of(implementation)
    output, lse = drawn(6, 3, 20, dtype=dtype, device=device), drawn(3, 6, seed=1, device=device)
    output[0], output[1, 0, :2], lse[0, 2] = NEGATIVE_ZERO, torch.tensor([1e-40, math.inf]), NEGATIVE_ZERO
    nothing = torch.full_like(output, dead), torch.full_like(lse, -math.inf)
    for name, sides in (("suffix", ((output, lse), nothing)), ("prefix", (nothing, (output, lse)))):
        found = merged(implementation, *sides)
        assert_same_bits(found[0], output, f"output beside an empty {name}")
        assert_same_bits(found[1], lse, f"log-sum-exp beside an empty {name}")
    found = merged(implementation, nothing, nothing)
    assert_same_bits(found[0], torch.zeros_like(output), "output of two sides that saw nothing")
    assert_same_bits(found[1], nothing[1], "log-sum-exp of two sides that saw nothing")


@each_of("merge", ON_TRITON)
def test_merging_the_other_way_round_gives_the_same_bits(implementation: AnyToken) -> None:
    device = device_of(implementation)
    left, right = (
        (drawn(40, 3, 20, dtype="bf16", seed=seed, device=device), drawn(3, 40, seed=seed + 1, device=device) * 5)
        for seed in (0, 2)
    )
    forth, back = merged(implementation, left, right), merged(implementation, right, left)
    for found, expected in zip(forth, back, strict=True):
        assert_same_bits(found, expected, "suffix and prefix exchanged")


@each_of("merge")
def test_the_strides_of_each_tensor_are_followed(implementation: AnyToken) -> None:
    device = device_of(implementation)
    prefix, suffix = drawn(7, 3, 20, device=device), drawn(7, 3, 20, seed=1, device=device)
    prefix_lse, suffix_lse = drawn(3, 7, seed=2, device=device), drawn(3, 7, seed=3, device=device)
    expected = merged(implementation, (prefix, prefix_lse), (suffix, suffix_lse))
    tensors = MergeTensors(
        prefix_output=inside(prefix, 0, 2, 4),
        prefix_lse=inside(prefix_lse, 0, 5),
        suffix_output=inside(suffix, 0, 1, 0),
        suffix_lse=inside(suffix_lse, 0, 2),
        output=inside(torch.zeros_like(prefix), 0, 0, 3),
        lse=inside(torch.zeros_like(prefix_lse), 0, 9),
    )
    implementation.run(MergeStates("test", 3, 20), tensors)
    for name, found, wanted in (("output", tensors.output, expected[0]), ("lse", tensors.lse, expected[1])):
        assert_same_bits(found, wanted, name)
        assert_nothing_outside(found, name)


@each_of("merge")
def test_a_nan_in_a_live_side_is_not_lost_and_stays_in_its_own_token(implementation: AnyToken) -> None:
    device = device_of(implementation)
    left, right = ((drawn(5, 1, 16, seed=seed, device=device), torch.zeros(1, 5, device=device)) for seed in range(2))
    left[0][1, 0, 3], right[1][0, 2], left[1][0, 3] = NAN, NAN, NAN
    output, lse = merged(implementation, left, right)
    expected = torch.zeros(5, 1, 16, dtype=torch.bool)
    expected[1, 0, 3], expected[2:4] = True, True
    assert torch.equal(output.isnan().cpu(), expected), "NaN must be where a live side or a log-sum-exp has it"
    assert lse.isnan().tolist() == [[False, False, True, True, False]], f"the log-sum-exps are {lse}"
