"""What every implementation says of itself, whatever it computes: its name, where it runs, what it promises."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

from samebits.backends.problem import Mask


@dataclass(frozen=True)
class Availability:
    """Whether an implementation can run here, found out by importing exactly what will be called.

    Attributes:
        reason: why not, as one sentence; empty when it can.
        version: of the library that holds the kernel; empty when unknown.
        device: torch device type the implementation computes on, for example `cpu` or `cuda`.
    """

    reason: str = ""
    version: str = ""
    device: str = "cpu"

    @property
    def available(self) -> bool:
        """True when the implementation can run."""
        return not self.reason


@dataclass(frozen=True)
class Claims:
    """What an implementation says of itself. Audited, never trusted.

    Attributes:
        batch_invariant: a request's bits do not depend on its batch: size, position, neighbours, pages, padding.
        schedule_invariant: nor on how its tokens were divided over steps: chunked prefill, extend, decode.
        ignores_unread_memory: memory outside a request's keys may hold anything, NaN included; keys that the mask hides
            from all of its queries are outside too.
        deterministic: the same call gives the same bits, wherever its tensors lie, whatever scratch held before and
            whatever else runs.
        thread_invariant: bits do not depend on the number of threads within one operation on a processor.
        ignores_hidden_keys: what the mask hides from one query and shows another may hold NaN, and the first query's
            result stands.
        source: where the claim is made: a document, a line of code.
    """

    batch_invariant: bool = False
    schedule_invariant: bool = False
    ignores_unread_memory: bool = True
    ignores_hidden_keys: bool = False
    deterministic: bool = True
    thread_invariant: bool = False
    source: str = ""


@dataclass(frozen=True)
class Tiling:
    """Lengths at which an implementation's arithmetic changes, so that cases can cross them.

    Attributes:
        query_tile: query rows per tile.
        kv_tile: keys per tile.
        kv_split: keys per split, or what a split is a multiple of.
    """

    query_tile: int = 64
    kv_tile: int = 64
    kv_split: int = 256


@dataclass(frozen=True)
class KnownGap:
    """A failure that is known, by the issue that tracks it. Unless it comes and goes, a cell in it that passes is red.

    Attributes:
        issue: name or address of the issue.
        relation, mask, dtype: what the gap is confined to; None for any.
        batch: name of the batch that it is confined to, as case ids end; None for any.
        raises: name of the exception that it raises; None where what it computes is wrong. Nothing else is excused: no
            other exception, and no write outside of the results.
        always: whether every cell inside fails. Otherwise, as with an error about as large as its bound, some may pass.
    """

    issue: str
    relation: str | None = None
    mask: Mask | None = None
    dtype: str | None = None
    batch: str | None = None
    raises: str | None = None
    always: bool = True

    def matches(self, relation: str, mask: Mask | None, dtype: str, case_id: str) -> bool:
        """Whether a cell lies inside the gap."""
        in_batch = self.batch is None or case_id.endswith(f"-{self.batch}")
        return in_batch and all(
            ours in (None, theirs)
            for ours, theirs in ((self.relation, relation), (self.mask, mask), (self.dtype, dtype))
        )


class Subject(abc.ABC):
    """One operation of one concrete kernel library behind a backend: what the harness can check.

    Attributes are set on the class or on the instance. Constructing one must be cheap and must not import the library:
    `probe` does that.

    Attributes:
        operation: what it computes, for example `attention` or `rope`.
        backend: the name users select, for example `TRITON_ATTN`.
        name: the implementation's, for example `bundled`.
        variant: a setting that changes its bits, for example `num_splits=1`; empty for none.
        claims: what it promises.
        tiling: where its arithmetic changes.
        configuration: kernel settings that decide bits, recorded with every result.
        known_gaps: failures that are tracked elsewhere.
        costly: True where a small batch takes seconds, as an interpreted kernel of many programs may. The default tier
            then gives it the cases of the smoke tier only.
    """

    operation: str
    backend: str
    name: str
    variant: str = ""
    claims: Claims = Claims()
    tiling: Tiling = Tiling()
    configuration: Mapping[str, str] = {}
    known_gaps: tuple[KnownGap, ...] = ()
    costly: bool = False

    @property
    def label(self) -> str:
        """`BACKEND/name`, with `[variant]` where there is one."""
        variant = f"[{self.variant}]" if self.variant else ""
        return f"{self.backend}/{self.name}{variant}"

    @abc.abstractmethod
    def probe(self) -> Availability:
        """Finds out whether the implementation can run here. Never raises for a missing or broken library."""
