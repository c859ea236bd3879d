"""What every implementation says of itself, whatever it computes: its name, where it runs, what it promises."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from samebits.backends.problem import Mask

# As `Platform.kind` has them.
PLATFORMS = ("cpu", "cuda", "rocm")


@dataclass(frozen=True)
class Availability:
    """Whether an implementation can run here, found out by importing exactly what will be called.

    Attributes:
        reason: why not, as one sentence; empty when it can.
        version: of the library that holds the kernel; empty when unknown.
        device: torch device type the implementation computes on, for example `cpu` or `cuda`.
        probe_failed: whether nobody knows why, as the probe itself went wrong. The harness says so, and no probe.
    """

    reason: str = ""
    version: str = ""
    device: str = "cpu"
    probe_failed: bool = False

    @property
    def available(self) -> bool:
        """True when the implementation can run."""
        return not self.reason


class GraphSupport(IntEnum):
    """Which batches' `run` a CUDA graph may capture and replay; each level holds those before it.

    * `NEVER`: none.
    * `SINGLE_TOKEN_DECODE`: those in which every request has one query token.
    * `UNIFORM_BATCH`: those in which every request has the same number of query tokens.
    * `ALWAYS`: all.
    """

    NEVER = 0
    SINGLE_TOKEN_DECODE = 1
    UNIFORM_BATCH = 2
    ALWAYS = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class PaddingRows(StrEnum):
    """What a run leaves in rows of its output and log-sum-exp that belong to no request.

    * `ANYTHING`: whatever it likes.
    * `FINITE`: what was there, or numbers that are finite; a log-sum-exp may be `-inf`.
    * `UNTOUCHED`: what was there.
    """

    ANYTHING = "anything"
    FINITE = "finite"
    UNTOUCHED = "untouched"


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
        cuda_graph: of which batches a CUDA graph may capture `run`, to replay it on others of the same padded sizes
            once persistent buffers are refilled. Without a GPU, the same is asked of a plan that serves other batches.
        padding_rows: what a run leaves in rows of no request.
        refuses_contradictions: `plan` refuses metadata that contradict themselves with a `ValueError` of one sentence.
        source: where the claim is made: a document, a line of code.
    """

    batch_invariant: bool = False
    schedule_invariant: bool = False
    ignores_unread_memory: bool = True
    ignores_hidden_keys: bool = False
    deterministic: bool = True
    thread_invariant: bool = False
    cuda_graph: GraphSupport = GraphSupport.NEVER
    padding_rows: PaddingRows = PaddingRows.ANYTHING
    refuses_contradictions: bool = False
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
        geometry: name of the geometry that it is confined to, as case ids begin; None for any.
        batch: name of the batch that it is confined to, as case ids end; None for any.
        device: torch device type that it is confined to, for example `cuda`; None for any.
        raises: name of the exception that it raises; None where what it computes is wrong. Nothing else is excused: no
            other exception, and no write outside of the results.
        always: whether every cell inside fails. Otherwise, as with an error about as large as its bound, some may pass.
    """

    issue: str
    relation: str | None = None
    mask: Mask | None = None
    dtype: str | None = None
    geometry: str | None = None
    batch: str | None = None
    device: str | None = None
    raises: str | None = None
    always: bool = True

    def matches(self, relation: str, mask: Mask | None, dtype: str, case_id: str, device: str) -> bool:
        """Whether a cell lies inside the gap."""
        in_geometry = self.geometry is None or case_id.startswith(f"{self.geometry}-")
        in_batch = self.batch is None or case_id.endswith(f"-{self.batch}")
        return (
            in_geometry
            and in_batch
            and all(
                ours in (None, theirs)
                for ours, theirs in (
                    (self.relation, relation),
                    (self.mask, mask),
                    (self.dtype, dtype),
                    (self.device, device),
                )
            )
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
        triton_kernels: names of its Triton kernels by the kind of batch that launches them, `decode` or `prefill` of
            attention, `tokens` of other operations. Each is compiled ahead of time for devices that are not here, for
            which the implementation is made once more, without arguments.
        platforms: kinds of platform that it is made for, of `PLATFORMS`; the nightly matrix runs it on each.
        costly: True where a small batch takes seconds, as an interpreted kernel of many programs may. The default tier
            then gives it the cases of the smoke tier only.
        interpreted: True where its kernels run in an interpreter, one program after another. The default tier then
            leaves out the checks of thousands of rows or keys.
        compiles_each_shape: True where each number of heads, head_dim and page size is compiled anew, in seconds. The
            default tier then leaves out the table of option pairs, where no two cases have the same.
    """

    operation: str
    backend: str
    name: str
    variant: str = ""
    claims: Claims = Claims()
    tiling: Tiling = Tiling()
    configuration: Mapping[str, str] = {}
    known_gaps: tuple[KnownGap, ...] = ()
    triton_kernels: Mapping[str, tuple[str, ...]] = {}
    platforms: tuple[str, ...] = PLATFORMS
    costly: bool = False
    interpreted: bool = False
    compiles_each_shape: bool = False

    @property
    def label(self) -> str:
        """`BACKEND/name`, with `[variant]` where there is one."""
        variant = f"[{self.variant}]" if self.variant else ""
        return f"{self.backend}/{self.name}{variant}"

    def absence(self) -> str:
        """Why the library cannot be on this machine, as one sentence, found out without importing any of it.

        Empty where it may be here: `probe` then finds out. What is absent leaves one row in each suite and not one for
        each cell: for the libraries of vendors, most of which most machines are without.
        """
        return ""

    @abc.abstractmethod
    def probe(self) -> Availability:
        """Finds out whether the implementation can run here. Never raises for a missing or broken library.

        A probe that raises is a mistake of its own, and makes every cell an error.
        """
