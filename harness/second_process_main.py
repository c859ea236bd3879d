"""The second process itself: reads tasks from its standard input until there are no more. See `second_process`."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from samebits.backends.subject import Subject
    from samebits.harness.execution import Execution
    from samebits.harness.executor import Executor
    from samebits.harness.second_process import Failed, Task
    from samebits.harness.session import MatrixSession


def main() -> None:
    """Answers each task with its execution, or with what it raised."""
    # Libraries print; answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks = sys.stdin.buffer
    # Before anything else of samebits is imported, so that it is found where the other process found it.
    sys.path[:] = pickle.load(tasks)
    from samebits.harness.session import MatrixSession

    session = MatrixSession(pickle.load(tasks))
    executors: dict[tuple[str, str], Executor] = {}
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        pickle.dump(_answer(session, task, executors), answers)
        answers.flush()


def _answer(session: MatrixSession, task: Task, executors: dict[tuple[str, str], Executor]) -> Execution | Failed:
    from samebits.harness.execution import RequestResult
    from samebits.harness.executor import Executor
    from samebits.harness.second_process import Failed

    try:
        name = (task.operation, task.label)
        if name not in executors:
            subject = _subject(session, task)
            executors[name] = Executor(subject, torch.device(session.availability(subject).device))
            executors[name](task.first)
        execution = executors[name](task.problem)
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}")
    results = {
        key: RequestResult({name: tensor.cpu() for name, tensor in result.tensors.items()})
        for key, result in execution.results.items()
    }
    return replace(execution, results=results)


def _subject(session: MatrixSession, task: Task) -> Subject:
    """The implementation of a task: a selected one, or a control."""
    from samebits.harness.suite_cells import SUITES

    for cell in SUITES["run_to_run"](session.selection):
        for subject in (cell.implementation, cell.parent):
            if subject is not None and (subject.operation, subject.label) == (task.operation, task.label):
                return subject
    raise LookupError(f"no {task.operation} of {task.label} is selected")


if __name__ == "__main__":
    main()
