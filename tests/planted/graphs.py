"""Bugs of public backends between a capture and a replay, planted in the bundled kernels.

They are registered as any third party's backend is. Each is correct as long as every batch is planned anew.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from samebits.backends.contract import AttentionConfig, AttentionMetadata, Implementation
from samebits.backends.cpu import BundledAttention
from samebits.backends.triton_attn import TritonAttention, TritonPlan
from samebits.kernels.cpu.attention import Schedule


class UncopiedLengths(TritonAttention):
    """A tensor is checked at a refill, and not copied."""

    name = "uncopied-lengths"

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> TritonPlan:
        """Keeps lengths of its own."""
        plan = self.plan(config, metadata)
        return replace(plan, kv_lens=plan.kv_lens.clone())

    def refill(self, config: AttentionConfig, plan: TritonPlan, metadata: AttentionMetadata) -> None:
        """Checks that there is room, and leaves it at that."""
        if len(metadata.seq_lens) > len(plan.kv_lens):
            raise ValueError(f"{len(metadata.seq_lens)} lengths; there is room for {len(plan.kv_lens)}")


class FrozenTasks(BundledAttention):
    """What was cut into tasks for the lengths at capture is what every replay computes."""

    name = "frozen-tasks"

    def refill(self, config: AttentionConfig, plan: Schedule, metadata: AttentionMetadata) -> None:
        """Refills lengths, and no tasks."""
        tasks, merges = plan.tasks.copy(), plan.merges.copy()
        super().refill(config, plan, metadata)
        plan.tasks[:], plan.merges[:] = tasks, merges


class PlainPlan(BundledAttention):
    """The plan is an object of no declared form, whose schedule is another one at every step."""

    name = "plain-plan"

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> Any:  # noqa: ANN401
        """Puts the schedule into such an object."""
        return SimpleNamespace(schedule=super().plan_for_graph(config, metadata, num_pages))

    def refill(self, config: AttentionConfig, plan: Any, metadata: AttentionMetadata) -> None:  # noqa: ANN401
        """Plans anew."""
        plan.schedule = super().plan_for_graph(config, metadata, num_pages=0)

    def run(self, plan: Any, *tensors: Any) -> None:  # noqa: ANN401 -- handed on
        """Computes the schedule that there is by now."""
        super().run(getattr(plan, "schedule", plan), *tensors)


class KeptSchedule(BundledAttention):
    """The schedule is the implementation's own, and another one at every step."""

    name = "kept-schedule"

    def plan_for_graph(self, config: AttentionConfig, metadata: AttentionMetadata, num_pages: int) -> Any:  # noqa: ANN401
        """Keeps the schedule."""
        self._kept = super().plan_for_graph(config, metadata, num_pages)
        return "kept"

    def refill(self, config: AttentionConfig, plan: Any, metadata: AttentionMetadata) -> None:  # noqa: ANN401
        """Plans anew."""
        self.plan_for_graph(config, metadata, num_pages=0)

    def run(self, plan: Any, *tensors: Any) -> None:  # noqa: ANN401 -- handed on
        """Computes the schedule that there is by now."""
        super().run(self._kept if plan == "kept" else plan, *tensors)


class GrowingWorkspace(TritonAttention):
    """Scratch belongs to the implementation, which makes it anew for a batch that is too large for it."""

    name = "growing-workspace"

    def __init__(self) -> None:
        super().__init__(num_segments=2)
        self._workspace: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> TritonPlan:
        """Leaves the scratch to `run`, unless what there is does not do."""
        plan = super().plan(config, metadata)
        assert plan.partials is not None, "two segments meet in scratch"
        if self._workspace is None or self._workspace[0].shape[0] < plan.partials[0].shape[0]:
            self._workspace = plan.partials
        return replace(plan, partials=None)

    def buffers(self, plan: TritonPlan) -> dict[str, torch.Tensor]:
        """Those of the plan, and the workspace."""
        assert self._workspace is not None, "there is a plan"
        return {**super().buffers(plan), "workspace": self._workspace[2]}

    def run(self, plan: TritonPlan, *tensors: Any) -> None:  # noqa: ANN401 -- handed on
        """Takes the workspace that there is by now."""
        super().run(replace(plan, partials=self._workspace), *tensors)


def implementations() -> list[Implementation[Any]]:
    """The mutants, beside which the bundled kernels are the correct parents."""
    return [
        UncopiedLengths(),
        FrozenTasks(),
        PlainPlan(),
        KeptSchedule(),
        GrowingWorkspace(),
    ]
