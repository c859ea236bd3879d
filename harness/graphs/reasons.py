"""Why a problem cannot be computed at a graph's padded sizes."""

from __future__ import annotations

from samebits.backends.graph_use import GraphMode
from samebits.backends.problem import Problem
from samebits.backends.subject import GraphSupport, Subject
from samebits.harness.relations import AnyProblem


def graph_reasons(subject: Subject, problem: AnyProblem) -> list[str]:
    """Why an implementation need not compute a problem as a graph would, one sentence each; none for other problems.

    Args:
        subject: whose claim counts.
        problem: its circumstances say whether there is a graph.
    """
    use = problem.circumstances.graph
    if use is None or use.mode is GraphMode.EAGER:
        return []
    claimed, needed = subject.claims.cuda_graph, GraphSupport.ALWAYS
    if isinstance(problem, Problem) and use.uniform:
        needed = GraphSupport.SINGLE_TOKEN_DECODE if use.max_query_len == 1 else GraphSupport.UNIFORM_BATCH
    return [] if claimed >= needed else [f"cuda_graph is claimed as {claimed.name}, and this batch needs {needed.name}"]


def device_reasons(problem: AnyProblem, device: str) -> list[str]:
    """Why a device cannot replay what a problem asks for, as one sentence; none where it can.

    Args:
        problem: its circumstances say whether a graph must be captured.
        device: torch's device type.
    """
    use = problem.circumstances.graph
    if use is None or use.mode is not GraphMode.CAPTURED or device == "cuda":
        return []
    return [f"a CUDA graph needs a GPU, and it computes on {device}"]
