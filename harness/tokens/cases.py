"""Cases of operations on tokens: sizes of real models, scaled down where an interpreter would take long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from samebits.backends.contract import Tiling
from samebits.backends.problem import DTYPE_NAMES, Mask, Request
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenOperation,
    TokenProblem,
)
from samebits.harness.records import TIERS

_LONGEST_CONTEXT = 131072
# Decode, a prefill that fills no tile, a draft block, an extend.
_REQUESTS = (Request(1, 1, 37), Request(2, 21), Request(3, 4, 60), Request(4, 1, 5), Request(5, 17, 15))
_FAR = (
    Request(1, 1, _LONGEST_CONTEXT - 1),
    Request(6, 5, _LONGEST_CONTEXT - 5),
    Request(7, 3, 65535),
    Request(8, 2),
)


@dataclass(frozen=True)
class TokenCase:
    """A base problem of an operation on tokens, apart from its dtype.

    Attributes:
        geometry: the operation and its sizes.
        tier: smallest tier that holds the case.
        dtypes: those it has in that tier; in the nightly tier it has all.
        far: whether its tokens are at the end of the longest context.
    """

    geometry: TokenOperation
    tier: str
    dtypes: tuple[str, ...]
    far: bool = False
    mask: Mask | None = None

    @property
    def case_id(self) -> str:
        """Names the case across runs."""
        return f"{self.geometry.operation}-{self.geometry.name}"

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> TokenProblem:
        """The base problem, whatever the tiling."""
        return TokenProblem(self.geometry, dtype, _FAR if self.far else _REQUESTS, seed=seed)


_BOTH, _BF16 = ("fp32", "bf16"), ("bf16",)
_CASES: Mapping[str, tuple[TokenCase, ...]] = {
    RotaryEmbedding.operation: (
        # Any two of these meet in some case: the dtypes of queries and of the cache beside them, the pairs, all or part
        # of a head, the direction, near and far positions.
        # All of a head of 128, four query heads on one.
        TokenCase(RotaryEmbedding("llama3-8b", 4, 1, 128, 128), "smoke", _BOTH),
        TokenCase(RotaryEmbedding("llama3-8b-cache32", 4, 1, 128, 128, cache_dtype="fp32"), "smoke", ("bf16", "fp16")),
        # 64 of 256, in neighbouring pairs.
        TokenCase(RotaryEmbedding("gpt-j-6b", 4, 4, 256, 64, interleaved=True), "smoke", DTYPE_NAMES),
        # 24 of 96, twelve pairs, on two key heads.
        TokenCase(RotaryEmbedding("gpt-neox-20b", 6, 2, 96, 24), "smoke", ("fp32", "fp16")),
        # Half of a head in neighbouring pairs, on two key heads, back again, by a cache of float32.
        TokenCase(
            RotaryEmbedding(
                "glm-4-inverse-far",
                8,
                2,
                128,
                64,
                interleaved=True,
                inverse=True,
                cache_dtype="fp32",
                max_position=_LONGEST_CONTEXT,
            ),
            "default",
            ("bf16", "fp16"),
            far=True,
        ),
        TokenCase(
            RotaryEmbedding("deepseek-v3.2-inverse", 8, 1, 64, 64, interleaved=True, inverse=True),
            "smoke",
            ("fp32", "fp16"),
        ),
        # 96 of 128, which fill no tile, back again.
        TokenCase(
            RotaryEmbedding("phi-4-mini-inverse-far", 3, 1, 128, 96, inverse=True, max_position=_LONGEST_CONTEXT),
            "default",
            ("bf16", "fp16"),
            far=True,
        ),
        # Eight key heads.
        TokenCase(
            RotaryEmbedding("llama3.2-1b-far", 16, 8, 64, 64, max_position=_LONGEST_CONTEXT),
            "smoke",
            ("fp32",),
            far=True,
        ),
    ),
    CacheWrite.operation: (
        TokenCase(CacheWrite("llama3-8b", 2, 128), "smoke", _BOTH),
        TokenCase(CacheWrite("phi-2", 3, 80, page_size=64), "default", ("bf16", "fp16")),
        # A page for each token, and one that fills no tile.
        TokenCase(CacheWrite("one-head-pages-of-1", 1, 96, page_size=1), "default", ("fp32",)),
        TokenCase(CacheWrite("llama3-8b-pages-of-48", 2, 128, page_size=48), "default", DTYPE_NAMES),
    ),
    MergeStates.operation: (
        TokenCase(MergeStates("llama3-8b", 4, 128), "smoke", _BOTH),
        TokenCase(MergeStates("phi-2", 3, 80), "default", ("bf16", "fp16")),
        TokenCase(MergeStates("gemma3-12b", 2, 256), "default", ("fp32",)),
    ),
    Linear.operation: (
        TokenCase(Linear("llama3-8b-qkv", 512, 192), "smoke", DTYPE_NAMES),
        # A bias, and sizes that fill no tile.
        TokenCase(Linear("odd-qkv", 1030, 77, bias=True), "smoke", DTYPE_NAMES),
    ),
    RmsNorm.operation: (
        TokenCase(RmsNorm("llama3-8b", 512), "smoke", DTYPE_NAMES),
        # A size that fills no tile, and another epsilon.
        TokenCase(RmsNorm("odd", 1031, epsilon=1e-5), "smoke", DTYPE_NAMES),
    ),
}


def token_cases(operation: str, tier: str) -> Iterator[TokenCase]:
    """The cases of an operation in a tier.

    Args:
        operation: name of the operation.
        tier: one of `TIERS`.
    """
    return (case for case in _CASES[operation] if TIERS.index(case.tier) <= TIERS.index(tier))
