"""A planner that looks at the lengths it is given, and one that does not: the control of contradictory metadata."""

from __future__ import annotations

from dataclasses import replace

from samebits.backends.consistency import refuse_contradictions
from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.harness.controls.kernels import PlannedBatch
from samebits.harness.controls.readings import Misreading, PlainKernel
from samebits.harness.matrix import Symptom

# Of planners, and of no reading of attention.
PLANS_ANYTHING = Misreading(
    "plans_anything",
    "contradictions",
    "whatever is given is planned",
    lambda reading, _: reading,
    symptom=Symptom.FAULT,
)


class PlannedKernel(PlainKernel):
    """The plain kernel behind a planner that refuses metadata which contradict themselves, unless it has the flaw."""

    claims = replace(PlainKernel.claims, refuses_contradictions=True)

    def __init__(self, flaw: Misreading | None = None) -> None:
        """Makes the correct kernel, or the one with the flaw."""
        super().__init__(flaw)
        self.name = flaw.name if flaw else "refuses_contradictions"

    @property
    def parent(self) -> PlainKernel:
        """The correct kernel."""
        return PlannedKernel()

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> PlannedBatch:
        """Looks at the lengths, or not."""
        if self.flaw is None:
            refuse_contradictions(config, metadata)
        return super().plan(config, metadata)
