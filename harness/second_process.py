"""A second process that computes problems: what a process decides once, and keeps for its life, is another's to decide.

A kernel may choose a tile or a split when it is first called, by the shape of that call, by a measurement or by chance.
All later calls of the process agree, so that nothing in it differs; two processes of one engine do.

The second one is started when it is first needed, serves all implementations, and ends with this one.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import select
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

import torch

from samebits.backends.problem import Mask, Problem, Request
from samebits.backends.subject import Subject
from samebits.harness.execution import Execution, RequestResult
from samebits.harness.relations import AnyProblem

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MODULE = "samebits.harness.second_process_main"
# For a whole answer. A first call may compile; who takes longer than this hangs.
_SECONDS = 300
_LINES_TOLD = 5


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
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        # Unbuffered, as every process that is started writes on from the place at which this one left the file.
        self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- as long as the process

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
        except (EOFError, OSError, TimeoutError, pickle.UnpicklingError) as error:
            raise RuntimeError(self._end(error)) from error
        if isinstance(answer, Failed):
            raise RuntimeError(f"in a second process it raised {answer.message}")
        results = {
            key: RequestResult({name: tensor.to(device) for name, tensor in result.tensors.items()})
            for key, result in answer.results.items()
        }
        return replace(answer, results=results)

    def _ask(self, task: Task) -> Execution | Failed:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump(task, process.stdin)
        process.stdin.flush()
        answer = pickle.load(io.BufferedReader(_OneAnswer(process.stdout, _SECONDS)))
        assert isinstance(answer, (Execution, Failed))
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # Not from the working directory, whose folders may have the names of packages.
        command = [sys.executable, "-P", "-m", _MODULE]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr)
        weakref.finalize(self, _close, process)
        self._process = process
        assert process.stdin is not None
        pickle.dump(sys.path, process.stdin)
        pickle.dump(self._options, process.stdin)
        return process

    def _end(self, error: Exception) -> str:
        """Ends a process that does not serve any more, and says what is known of it. The next task starts another."""
        assert self._process is not None
        code = _close(self._process, kill=isinstance(error, TimeoutError))
        self._process = None
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()[-_LINES_TOLD:]
        self._stderr.seek(0)
        self._stderr.truncate()
        why = str(error) if isinstance(error, TimeoutError) else f"it ended with exit code {code}"
        return f"in a second process: {why}: {' / '.join(lines) or 'it wrote nothing'}"


class _OneAnswer(io.RawIOBase):
    """What is read from a pipe until a time is over, however little comes at once: who stops halfway hangs, too."""

    def __init__(self, pipe: IO[bytes], seconds: float) -> None:
        self._pipe = pipe
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        ready, _, _ = select.select([self._pipe], [], [], max(0.0, self._end - time.monotonic()))
        if not ready:
            raise TimeoutError(f"it did not answer in full for {self._seconds} s")
        return os.readv(self._pipe.fileno(), [buffer])


def _close(process: subprocess.Popen[bytes], *, kill: bool = False) -> int:
    """Ends a process, which does so by itself when nothing more can come, and says its exit code."""
    if kill:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            continue  # It is dead, and did not read what was written last.
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def unlike(first_here: AnyProblem, candidates: Iterable[AnyProblem]) -> AnyProblem:
    """That one of some problems whose size is furthest from that of a first call here, many times larger or smaller."""
    return max(candidates, key=lambda other: abs(math.log(_work(other) / _work(first_here))))


def least(problem: AnyProblem) -> AnyProblem:
    """One query over one key, or one token, of the same sizes else."""
    crossing = isinstance(problem, Problem) and problem.mask is Mask.CROSS
    return problem.with_requests(Request(problem.requests[0].key, 1, encoder_len=1 if crossing else 0))


def _work(problem: AnyProblem) -> int:
    """About how much there is to do: pairs of queries and keys, or tokens."""
    if isinstance(problem, Problem):
        return 1 + sum(request.query_len * problem.kv_len(request) for request in problem.requests)
    return 1 + problem.num_tokens
