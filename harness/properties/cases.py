"""The case of a drawn cell: any batch of an operation."""

from __future__ import annotations

from dataclasses import dataclass

from samebits.backends.contract import Tiling
from samebits.backends.problem import DTYPE_NAMES, Geometry, Mask, Problem, Request

_ANY = Geometry("drawn", num_heads=1, num_kv_heads=1, head_dim=64)


@dataclass(frozen=True)
class Limits:
    """How long a search may take.

    Attributes:
        examples: comparisons that are drawn.
        shrinks: comparisons that are tried once one has failed.
    """

    examples: int
    shrinks: int


@dataclass(frozen=True)
class Bounds:
    """How large drawn batches and those that relations make of them may be, so that an interpreter runs them.

    Attributes:
        requests, tokens, keys: of a batch at most.
    """

    requests: int
    tokens: int
    keys: int

    def hold(self, problem: Problem) -> bool:
        """Whether a batch is no larger."""
        requests = problem.requests
        return (
            len(requests) + problem.layout.padding_requests <= self.requests
            and problem.num_tokens + problem.layout.padding_tokens <= self.tokens
            and sum(request.num_slots for request in requests) <= self.keys
        )


@dataclass(frozen=True)
class DrawnCase:
    """Whatever is drawn.

    Attributes:
        limits: how many batches.
        bounds: how large they may be.
        finite: whether all data are numbers; otherwise batches that are held against the reference alone may hold NaN.
        dtypes: those that drawn batches may be of.
        geometry: stands for all sizes, by its name.
        mask: none; each batch has its own.
    """

    limits: Limits
    bounds: Bounds
    finite: bool = False
    dtypes: tuple[str, ...] = DTYPE_NAMES
    geometry: Geometry = _ANY
    mask: Mask | None = None

    @property
    def case_id(self) -> str:
        """Names the case across runs."""
        return self.geometry.name

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> Problem:
        """The simplest batch, for who asks before any is drawn."""
        return Problem(self.geometry, Mask.CAUSAL, dtype, (Request(1, 1), Request(2, 1)), seed=seed)
