"""A second process that computes problems: what a process decides once, and keeps for its life, is another's to decide.

A kernel may choose a tile or a split when it is first called, by the shape of that call, by a measurement or by chance.
All later calls of the process agree, so that nothing in it differs; two processes of one engine do.

The second one is started when it is first needed, serves all implementations, and ends with this one.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from samebits.backends.problem import Mask, Problem, Request
from samebits.backends.subject import Subject
from samebits.harness.execution import Execution, RequestResult
from samebits.harness.isolation.limits import Limits
from samebits.harness.isolation.served import Lost, ServedProcess, Template
from samebits.harness.relations import AnyProblem

_MODULE = "samebits.harness.second_process_tasks"
# For a whole answer. A first call may compile; who takes longer than this hangs.
_SECONDS = 300.0


@dataclass(frozen=True)
class Task:
    """What the second process is asked for.

    Attributes:
        operation, label: of the implementation.
        first: what it computes before, unless it has computed anything in that process.
        problem: what is asked for.
    """

    operation: str
    label: str
    first: AnyProblem
    problem: AnyProblem


@dataclass(frozen=True)
class Failed:
    """In place of an execution: what was raised."""

    message: str


class SecondProcess:
    """Computes problems in another process, in which no implementation has been called as in this one."""

    def __init__(self, options: object) -> None:
        """Starts nothing yet.

        Args:
            options: of this session, by which the other process loads the same implementations.
        """
        self._template = Template(_MODULE, options)
        self._process: ServedProcess | None = None

    def execute(self, subject: Subject, first: AnyProblem, problem: AnyProblem, device: torch.device) -> Execution:
        """The execution of a problem there.

        Args:
            subject: computes it; known there by its operation and its label.
            first: what it computes before, unless it has computed anything there.
            problem: what to compute.
            device: where results go.

        Raises:
            RuntimeError: it raised there, or the process died or hangs; the message holds the last lines it wrote.
        """
        try:
            answer = self._ask(Task(subject.operation, subject.label, first, problem))
        except Lost as lost:
            self._process = None  # The next task starts another.
            raise RuntimeError(f"in a second process: it {lost}") from lost
        if isinstance(answer, Failed):
            raise RuntimeError(f"in a second process it raised {answer.message}")
        results = {
            key: RequestResult({name: tensor.to(device) for name, tensor in result.tensors.items()})
            for key, result in answer.results.items()
        }
        return replace(answer, results=results)

    def _ask(self, task: Task) -> Execution | Failed:
        self._process = self._process or self._template.fork()
        self._process.send(pickle.dumps(task))
        answer = pickle.loads(self._process.receive(Limits(_SECONDS)))
        # Last words are those of the next task.
        self._process.take_output()
        assert isinstance(answer, (Execution, Failed))
        return answer


def unlike(first_here: AnyProblem, candidates: Iterable[AnyProblem]) -> AnyProblem:
    """That one of some problems whose size is furthest from that of a first call here, many times larger or smaller."""
    return max(candidates, key=lambda other: abs(math.log((1 + other.work) / (1 + first_here.work))))


def least(problem: AnyProblem) -> AnyProblem:
    """One query over one key, or one token, of the same sizes else."""
    crossing = isinstance(problem, Problem) and problem.mask is Mask.CROSS
    return problem.with_requests(Request(problem.requests[0].key, 1, encoder_len=1 if crossing else 0))
