"""What the controls have in common: they run anywhere, and know the correct kernel that they were broken from."""

from __future__ import annotations

import abc
import itertools
from dataclasses import dataclass

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.subject import Availability, Subject
from samebits.harness.declarations import CONTROL_BACKEND
from samebits.harness.matrix import AnyCase, Cell, Flaw
from samebits.harness.relations import Relation


class Control(Subject):
    """A plain kernel of the harness's own, correct or with a flaw.

    Attributes:
        flaw: what is broken on purpose; None where nothing is.
    """

    backend = CONTROL_BACKEND
    flaw: Flaw | None = None

    def probe(self) -> Availability:
        """Runs wherever torch does."""
        return Availability(version=torch.__version__)

    @property
    @abc.abstractmethod
    def parent(self) -> Subject:
        """The same kernel without a flaw."""


@dataclass(frozen=True)
class PlannedBatch:
    """A batch as a control keeps it between `plan` and `run`."""

    config: AttentionConfig
    metadata: AttentionMetadata

    @property
    def query_rows(self) -> list[slice]:
        """The rows of each request, padding requests among them."""
        starts = self.metadata.query_start_loc.tolist()
        return [slice(start, stop) for start, stop in itertools.pairwise(starts)]


@dataclass(frozen=True)
class Call:
    """A planned batch, and the tensors that `run` is given: see `samebits.backends.contract`."""

    plan: PlannedBatch
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    output: torch.Tensor
    lse: torch.Tensor


class AttentionControl(Control, Implementation[PlannedBatch]):
    """Attention that returns a log-sum-exp. A subclass implements `compute`."""

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlannedBatch:
        """Keeps what `run` needs."""
        self.require(config)
        return PlannedBatch(config, metadata)

    def run(
        self,
        plan: PlannedBatch,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> None:
        """Computes the batch."""
        if lse is None:
            # Computed all the same, and thrown away.
            lse = torch.empty((query.shape[1], query.shape[0]), device=query.device)
        self.compute(Call(plan, query, key_cache, value_cache, output, lse))

    @abc.abstractmethod
    def compute(self, call: Call) -> None:
        """Computes the batch, one request after another."""


def control_cell(suite: str, control: Control, check: Relation, case: AnyCase, dtype: str, seed: int) -> Cell:
    """The cell in which a check must see a control.

    Args:
        suite: name of the suite that the check belongs to.
        control: with a flaw.
        check: that must see it.
        case: on which base problem.
        dtype: in which dtype.
        seed: of all data.
    """
    return Cell(suite, control, check, case, dtype, "smoke", seed, control.flaw, control.parent)


def finite(maximum: torch.Tensor) -> torch.Tensor:
    """A maximum that can be subtracted: 0 where nothing was seen."""
    return maximum.masked_fill(maximum == -torch.inf, 0.0)
