"""A session whose problems are timed in another process: what a kernel does to that process costs its own row."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

from samebits.harness.bench.measuring import Trying, untimed
from samebits.harness.bench.records import Measurement, Rate
from samebits.harness.bench.server import Done, Question
from samebits.harness.bench.session import BenchSession
from samebits.harness.isolation.limits import Limits, machine_memory, share_of_memory
from samebits.harness.isolation.served import Lost, ServedProcess, Template

_MODULE = "samebits.harness.bench.server"
# Until a contender has compiled, been found right and warmed up, or all have been timed.
_SECONDS = 600.0


class IsolatedBench:
    """Times the problems of a session in a process that is replaced when a contender breaks it."""

    def __init__(self, session: BenchSession) -> None:
        """Begins to import what is needed there.

        Args:
            session: whose problems they are.
        """
        self._session = session
        self._template = Template(_MODULE, session.options)
        self._template.start()
        self._process: ServedProcess | None = None
        self._limits = Limits(_SECONDS, share_of_memory(machine_memory(), 1))

    def rates(self) -> Iterator[Rate]:
        """What the machine does at most; nothing where that cannot be measured."""
        try:
            yield from self._ask(Question())
        except Lost:
            return

    def time(self, place: int) -> Iterator[Measurement]:
        """Times a problem, again without who broke the process where one does.

        Args:
            place: of the problem among the session's.
        """
        problem = self._session.problems[place]
        contenders = {contender.label: contender for contender in self._session.contenders(problem)}
        broken: dict[str, str] = {}
        while True:
            trying, measurements = "", []
            try:
                for message in self._ask(Question(place, tuple(broken))):
                    if isinstance(message, Trying):
                        trying = message.label
                    else:
                        measurements.append(message)
            except Lost as lost:
                # Where all took turns, or none had begun, nobody knows whose doing it was.
                blamed = [trying] if trying else [label for label in contenders if label not in broken]
                broken |= dict.fromkeys(blamed, f"its process {lost}")
                if not trying:
                    break
            else:
                break
        found = {measurement.label: measurement for measurement in measurements if measurement.label not in broken}
        found |= {label: untimed(problem, contenders[label], reason) for label, reason in broken.items()}
        yield from (found[label] for label in contenders if label in found)

    def close(self) -> None:
        """Ends the other processes."""
        if self._process is not None:
            self._process.close()
            self._process = None
        self._template.close()

    def _ask(self, question: Question) -> Iterator[Any]:
        """The messages of an answer.

        Raises:
            Lost: the other process ended, was ended, or cannot compute any more.
        """
        process = self._process = self._process or self._template.fork()
        try:
            process.send(pickle.dumps(question))
            while not isinstance(message := pickle.loads(process.receive(self._limits)), Done):
                yield message
            # Last words are those of the next answer.
            process.take_output()
            if message.lost:
                raise Lost("left its device unusable", message.lost)
        except BaseException:
            # An interrupt, too, leaves a process that is busy.
            process.kill()
            self._process = None
            raise
