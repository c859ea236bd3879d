"""The second process itself: reads tasks from its standard input until there are no more. See `second_process`."""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Answers each task with its execution, or with what it raised."""
    # Libraries print; answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks = sys.stdin.buffer
    # Before anything else of samebits is imported, so that it is found where the other process found it.
    sys.path[:] = pickle.load(tasks)
    from samebits.harness.second_process_tasks import TaskRunner

    runner = TaskRunner(pickle.load(tasks))
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        pickle.dump(runner.answer(task), answers)
        answers.flush()


if __name__ == "__main__":
    main()
