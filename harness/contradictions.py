"""Metadata that contradict themselves, which a planner that reads them refuses before anything is read by them.

An engine's bookkeeping goes wrong at times, above all between a capture and a replay, where tensors are padded and
refilled. A kernel then reads the next request's pages, or memory that is nobody's, and the numbers look like numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.contract import AttentionMetadata, Implementation
from samebits.backends.problem import Contradiction, Problem
from samebits.backends.subject import Subject
from samebits.harness.batch import Batch, make_batch
from samebits.harness.execution import Execution
from samebits.harness.global_state import restoring_global_state
from samebits.harness.relations import AnyProblem


def _narrow_table(batch: Batch) -> AttentionMetadata:
    problem, table = batch.problem, batch.metadata.block_table
    pages = -(-max(request.num_slots for request in problem.requests) // problem.geometry.page_size)
    return replace(batch.metadata, block_table=table[:, : pages - 1])


def _descending_rows(batch: Batch) -> AttentionMetadata:
    return replace(batch.metadata, query_start_loc=batch.metadata.query_start_loc.flip(0))


def _missing_length(batch: Batch) -> AttentionMetadata:
    return replace(batch.metadata, seq_lens=batch.metadata.seq_lens[:-1])


# What each is in words, and how it is made.
_CONTRADICTORY: Mapping[Contradiction, tuple[str, Callable[[Batch], AttentionMetadata]]] = {
    Contradiction.NARROW_TABLE: ("a block table narrower than its longest request", _narrow_table),
    Contradiction.DESCENDING_ROWS: ("query_start_loc that descends", _descending_rows),
    Contradiction.MISSING_LENGTH: ("fewer lengths than requests", _missing_length),
}


def contradictory_metadata(batch: Batch, contradiction: Contradiction) -> AttentionMetadata:
    """The metadata of a batch that has two requests or more, made to contradict themselves.

    Args:
        batch: whose metadata are right.
        contradiction: in what they shall contradict themselves.
    """
    _, make = _CONTRADICTORY[contradiction]
    return make(batch)


def refusal_reasons(subject: Subject, problem: AnyProblem) -> list[str]:
    """Why an implementation need not refuse a problem's metadata, as one sentence; none where it must, or need compute.

    Args:
        subject: whose claim counts.
        problem: its circumstances say whether its metadata contradict themselves.
    """
    if problem.circumstances.contradiction is None or subject.claims.refuses_contradictions:
        return []
    return ["refuses_contradictions is not claimed"]


def execute_refusal(implementation: Implementation[Any], problem: Problem, device: torch.device) -> Execution:
    """Hands metadata that contradict themselves to a planner, and runs nothing.

    Args:
        implementation: available here; it claims to refuse them.
        problem: its circumstances say in what the metadata contradict themselves.
        device: where the implementation computes.

    Returns:
        An execution without results, with a fault where they are not refused in one sentence.
    """
    contradiction = problem.circumstances.contradiction
    assert contradiction is not None, "others are computed"
    batch = make_batch(problem, device)
    faults: list[str] = []
    with restoring_global_state("plan", device, faults):
        faults += _faults_of_plan(implementation, batch, contradiction)
    return Execution(problem, {}, {}, "", tuple(faults))


def _faults_of_plan(implementation: Implementation[Any], batch: Batch, contradiction: Contradiction) -> list[str]:
    words, _ = _CONTRADICTORY[contradiction]
    try:
        implementation.plan(batch.config, contradictory_metadata(batch, contradiction))
    except ValueError as error:
        sentence = str(error).strip()
        return [] if sentence and "\n" not in sentence else [f"plan refused {words} without a sentence"]
    except Exception as error:
        return [f"plan met {words} with {type(error).__name__}, and not with a ValueError that says so: {error}"]
    return [f"plan took {words}"]
