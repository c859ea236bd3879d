"""Problems run through one implementation, each only once."""

from __future__ import annotations

from dataclasses import replace

import torch

from samebits.backends.contract import Implementation
from samebits.backends.operations import TokenImplementation
from samebits.backends.problem import Circumstances, Problem
from samebits.backends.subject import Subject
from samebits.harness.bounded_cache import BoundedCache, forget_everything
from samebits.harness.contradictions import execute_refusal, refusal_reasons
from samebits.harness.device_memory import limit_memory
from samebits.harness.execution import Execution, execute
from samebits.harness.graphs.execution import execute_graph
from samebits.harness.graphs.reasons import graph_reasons
from samebits.harness.graphs.tokens import execute_tokens_in_graph
from samebits.harness.relations import AnyProblem
from samebits.harness.second_process import SecondProcess, least, unlike
from samebits.harness.tokens.execution import execute_tokens

# What every library says where a device has too little.
_OUT_OF_MEMORY = "out of memory"
# Executions that are kept, and the bytes of their results: there is an executor for every implementation.
_KEPT_EXECUTIONS, _KEPT_BYTES = 256, 1 << 27


class Executor:
    """Runs problems through one implementation, each only once.

    Many cells share a problem, above all each request alone; what a deterministic run gave once need not be computed
    again. Each of the repeated calls of the run-to-run suite differs in its circumstances, which are part of a problem,
    so that none of them is taken from what was computed before.
    """

    def __init__(self, subject: Subject, device: torch.device, second_process: SecondProcess | None = None) -> None:
        """Has computed nothing yet.

        Args:
            subject: what computes.
            device: where it does.
            second_process: computes what must be computed in a process of its own; None where nothing must.
        """
        self.subject = subject
        self.device = device
        self._second_process = second_process
        self._first: AnyProblem | None = None
        limit_memory(device)
        self._done: BoundedCache[AnyProblem, Execution] = BoundedCache(
            _KEPT_EXECUTIONS, _KEPT_BYTES, lambda execution: execution.nbytes
        )

    def __call__(self, problem: AnyProblem) -> Execution:
        """The execution of `problem`, computed now or earlier."""
        asked = self._as_asked(problem)
        return self._done.get(asked, lambda: self._computed(asked))

    def _as_asked(self, problem: AnyProblem) -> AnyProblem:
        """The problem as this implementation is asked it: who returns no log-sum-exp is never asked for one."""
        returns_one = isinstance(self.subject, Implementation) and self.subject.support.lse
        if returns_one or not problem.circumstances.output_only:
            return problem
        return replace(problem, circumstances=replace(problem.circumstances, output_only=False))

    def _computed(self, problem: AnyProblem) -> Execution:
        if problem.circumstances.second_process:
            assert self._second_process is not None, "a session has one"
            alike = replace(problem, circumstances=Circumstances())
            others = [other for other in (alike, least(alike)) if not reasons_against(self.subject, other)]
            first = unlike(self._first or alike, others)
            return replace(self._second_process.execute(self.subject, first, alike, self.device), problem=problem)
        self._first = self._first or problem
        try:
            return run_problem(self.subject, problem, self.device)
        except RuntimeError as error:
            # Torch's own error is one of these; Triton has none for it.
            if _OUT_OF_MEMORY not in str(error):
                raise
        # What is kept only for later gives way, here and not inside: the exception holds what was being computed.
        forget_everything()
        if self.device.type == "cuda":
            # Of every stream that anything was multiplied on, among them those of graphs that are gone.
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
        return run_problem(self.subject, problem, self.device)


def run_problem(subject: Subject, problem: AnyProblem, device: torch.device) -> Execution:
    """Runs a problem through an implementation of its operation.

    Raises:
        TypeError: the implementation computes another operation.
    """
    at_padded_sizes = problem.circumstances.graph is not None
    if isinstance(subject, Implementation) and isinstance(problem, Problem):
        if problem.circumstances.contradiction is not None:
            return execute_refusal(subject, problem, device)
        return (execute_graph if at_padded_sizes else execute)(subject, problem, device)
    if isinstance(subject, TokenImplementation) and not isinstance(problem, Problem):
        return (execute_tokens_in_graph if at_padded_sizes else execute_tokens)(subject, problem, device)
    raise TypeError(f"{subject.label} computes {subject.operation} and not {problem}")


def reasons_against(subject: Subject, problem: AnyProblem) -> list[str]:
    """Why an implementation cannot compute a problem, one sentence each; empty when it can."""
    if isinstance(subject, Implementation) and isinstance(problem, Problem):
        return subject.reasons(problem) + graph_reasons(subject, problem) + refusal_reasons(subject, problem)
    if isinstance(subject, TokenImplementation) and not isinstance(problem, Problem):
        return subject.reasons(problem) + graph_reasons(subject, problem)
    return [f"it computes {subject.operation}"]
