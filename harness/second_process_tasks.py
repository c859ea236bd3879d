"""What the second process does with a task: finds the implementation, and computes. See `second_process`."""

from __future__ import annotations

import pickle
from dataclasses import replace

import torch

from samebits.backends.subject import Subject
from samebits.harness.execution import Execution, RequestResult
from samebits.harness.executor import Executor
from samebits.harness.isolation.forked import Answer, Send
from samebits.harness.second_process import Failed, Task
from samebits.harness.session import MatrixSession, Options
from samebits.harness.suite_cells import SUITES


def make_server(options: Options) -> Answer:
    """Answers tasks with their executions, pickled as they are.

    Args:
        options: of the other process's session.
    """
    runner = TaskRunner(options)

    def answer(question: bytes, send: Send) -> None:
        send(pickle.dumps(runner.answer(pickle.loads(question))))

    return answer


class TaskRunner:
    """Answers tasks, whose implementations it loads as the other process did."""

    def __init__(self, options: Options) -> None:
        """Has computed nothing yet.

        Args:
            options: of the other process's session.
        """
        self._session = MatrixSession(options)
        # All that may be asked for: what is selected, and controls with what they were broken from.
        self._subjects: dict[tuple[str, str], Subject] = {}
        for cell in SUITES["run_to_run"](self._session.selection):
            for subject in (cell.implementation, cell.parent):
                if subject is not None:
                    self._subjects.setdefault((subject.operation, subject.label), subject)
        self._executors: dict[tuple[str, str], Executor] = {}

    def answer(self, task: Task) -> Execution | Failed:
        """The execution of a task's problem with its results on the host, or what it raised."""
        try:
            execution = self._executor(task)(task.problem)
        except Exception as error:
            return Failed(f"{type(error).__name__}: {error}")
        results = {
            key: RequestResult({name: tensor.cpu() for name, tensor in result.tensors.items()})
            for key, result in execution.results.items()
        }
        return replace(execution, results=results)

    def _executor(self, task: Task) -> Executor:
        """That of a task's implementation, which has computed the first problem of its first task."""
        name = (task.operation, task.label)
        if name not in self._executors:
            subject = self._subjects.get(name)
            if subject is None:
                raise LookupError(f"no {task.operation} of {task.label} is selected")
            self._executors[name] = Executor(subject, torch.device(self._session.availability(subject).device))
            self._executors[name](task.first)
        return self._executors[name]
