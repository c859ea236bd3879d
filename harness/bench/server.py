"""What the process that times does when it is asked. See `isolated`."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from samebits.harness.bench.measuring import DeviceLost
from samebits.harness.bench.options import Options
from samebits.harness.bench.session import BenchSession
from samebits.harness.isolation.forked import Answer, Send


@dataclass(frozen=True)
class Question:
    """What the process is asked for.

    Attributes:
        problem: place of one among the session's; None for what the machine does at most.
        without: labels of contenders that are not to be tried.
    """

    problem: int | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """The last message of an answer.

    Attributes:
        lost: why nothing can be computed in that process any more, as a clause; empty where it can.
    """

    lost: str = ""


def make_server(options: Options) -> Answer:
    """Answers questions with what a session yields, and `Done`, all of it pickled.

    Args:
        options: of the asking process's session.
    """
    session = BenchSession(options)

    def answer(message: bytes, send: Send) -> None:
        question: Question = pickle.loads(message)
        lost = ""
        try:
            if question.problem is None:
                for rate in session.rates():
                    send(pickle.dumps(rate))
            else:
                for told in session.time(session.problems[question.problem], question.without):
                    send(pickle.dumps(told))
        except DeviceLost as error:
            lost = str(error)
        send(pickle.dumps(Done(lost)))

    return answer
