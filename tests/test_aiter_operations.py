"""AITER/triton: its operations on tokens are right where they are said to be, and refused where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samebits.backends.aiter_operations import RootMeanSquareNorm, Rotary
from samebits.backends.operations import TokenImplementation
from samebits.backends.platform import accelerator
from samebits.backends.problem import Request, Strides
from samebits.backends.token_problem import RmsNorm, RotaryEmbedding, TokenLayout, TokenProblem
from samebits.harness.comparison import compare_bits
from samebits.harness.tokens.execution import execute_tokens
from samebits.harness.tokens.rotary import PreparedRotary

from .needs_aiter import needs_aiter

pytestmark = needs_aiter

DEVICE = torch.device(accelerator().device)
# One token, and more of them than a program has.
REQUESTS = (Request(1, 1, 37), Request(2, 35, 4))
HEAD = RotaryEmbedding("head", num_heads=4, num_kv_heads=1, head_dim=64, rotary_dim=64)


def assert_correct(implementation: TokenImplementation, problem: TokenProblem) -> None:  # type: ignore[type-arg]
    assert implementation.reasons(problem) == [], f"{problem} should be supported"
    execution = execute_tokens(implementation, problem, DEVICE)
    assert execution.error_budget <= 1.0, f"{execution.error_budget:.3g} of the error budget at {execution.worst}"
    assert execution.faults == (), f"{implementation.label} did more than compute {problem}"


class TestRotary:
    @pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
    @pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "gptj"])
    @pytest.mark.parametrize("heads", [(4, 1), (7, 1), (4, 4)], ids=str)
    def test_agrees_with_the_reference(self, heads: tuple[int, int], interleaved: bool, inverse: bool) -> None:
        operation = replace(HEAD, num_heads=heads[0], num_kv_heads=heads[1], interleaved=interleaved, inverse=inverse)
        assert_correct(Rotary(), TokenProblem(operation, "fp32", REQUESTS))

    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    def test_rounds_once_where_the_cache_is_float32(self, dtype: str) -> None:
        assert_correct(Rotary(), TokenProblem(replace(HEAD, cache_dtype="fp32"), dtype, REQUESTS))

    @pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
    @pytest.mark.parametrize("rotary_dim", [16, 32])
    def test_rotates_any_part_of_a_head_whose_size_is_a_power_of_two(self, rotary_dim: int, inverse: bool) -> None:
        operation = replace(HEAD, head_dim=80, rotary_dim=rotary_dim, inverse=inverse)
        strided = TokenLayout(strides=Strides.INTERLEAVED, padding_tokens=3)
        assert_correct(Rotary(), TokenProblem(operation, "fp32", REQUESTS, strided))

    def test_a_cache_of_16_bits_would_be_rounded_with(self) -> None:
        problem = TokenProblem(HEAD, "bf16", REQUESTS)
        assert any("only one of fp32" in reason for reason in Rotary().reasons(problem))
        execution = execute_tokens(_Unrefused(), problem, DEVICE)
        assert execution.error_budget > 1000, "AITER rounds each product to bf16; if no more, support follows"

    def test_refuses_what_it_says_is_not_supported(self) -> None:
        prepared = PreparedRotary(TokenProblem(HEAD, "bf16", REQUESTS), HEAD, DEVICE)
        with pytest.raises(ValueError, match="a cos_sin_cache of bf16 beside queries of bf16 is not supported"):
            Rotary().run(HEAD, prepared.tensors)

    def test_refuses_a_cache_of_a_third_dtype(self) -> None:
        operation = replace(HEAD, cache_dtype="fp16")
        prepared = PreparedRotary(TokenProblem(operation, "fp32", REQUESTS), operation, DEVICE)
        with pytest.raises(ValueError, match="cos_sin_cache is fp16 beside queries of fp32"):
            Rotary().run(operation, prepared.tensors)

    @pytest.mark.parametrize(
        ("operation", "reason"),
        [
            (replace(HEAD, head_dim=96, rotary_dim=96), "rotary_dim 96 is not supported"),
            (replace(HEAD, num_heads=5, num_kv_heads=2), "num_heads 5 is not supported with num_kv_heads 2"),
            (replace(HEAD, num_heads=3, num_kv_heads=3), "num_heads = num_kv_heads = 3 is not supported"),
        ],
        ids=["rotary_dim", "groups", "heads"],
    )
    def test_names_what_it_cannot_compute(self, operation: RotaryEmbedding, reason: str) -> None:
        (told,) = Rotary().reasons(TokenProblem(operation, "fp32", REQUESTS))
        assert told.startswith(reason)

    def test_as_many_key_heads_as_query_heads_are_rotated_past_the_last(self) -> None:
        operation = replace(HEAD, num_heads=3, num_kv_heads=3)
        # One token alone: what lies behind its three heads is nobody's, and 32768 where a NaN would not show.
        problem = TokenProblem(operation, "fp32", REQUESTS[:1], TokenLayout(poison="large"))
        execution = execute_tokens(_Unrefused(), problem, DEVICE)
        assert execution.error_budget <= 1.0, "the heads themselves should be right"
        assert any("wrote outside" in fault for fault in execution.faults), "AITER masks heads now: support follows"

    def test_a_token_keeps_its_bits_where_another_kernel_runs(self) -> None:
        operation = replace(HEAD, interleaved=True, max_position=2048)
        # From 1024 tokens on, GPT-J pairs are rotated by a kernel of their own.
        alone = execute_tokens(Rotary(), TokenProblem(operation, "fp32", REQUESTS[:1]), DEVICE)
        among = execute_tokens(Rotary(), TokenProblem(operation, "fp32", (REQUESTS[0], Request(3, 1024))), DEVICE)
        for name, tensor in alone.results[1].tensors.items():
            difference = compare_bits(tensor, among.results[1].tensors[name])
            assert difference.mismatches == 0, f"{name}: {difference}"


class _Unrefused(Rotary):
    """What AITER computes whatever this package says of it."""

    def refusals(self, operation: RotaryEmbedding, dtype: str) -> list[str]:
        return []


class TestRmsNorm:
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("leading_dimensions", [1, 3])
    @pytest.mark.parametrize("strides", [Strides.CONTIGUOUS, Strides.INTERLEAVED])
    def test_agrees_with_the_reference(self, dtype: str, leading_dimensions: int, strides: Strides) -> None:
        layout = TokenLayout(strides=strides, leading_dimensions=leading_dimensions)
        assert_correct(RootMeanSquareNorm(), TokenProblem(RmsNorm("row", 80), dtype, REQUESTS, layout))

    def test_a_row_of_more_than_one_block_agrees_with_the_reference(self) -> None:
        assert_correct(RootMeanSquareNorm(), TokenProblem(RmsNorm("long", 17000), "fp32", REQUESTS[:1]))

    def test_rows_that_are_not_aligned_are_refused(self) -> None:
        assert RootMeanSquareNorm().reasons(TokenProblem(RmsNorm("odd", 7), "bf16", REQUESTS)) == [
            "size 7 in bf16 is not supported: a row has 14 bytes, which must be a multiple of 16"
        ]
