"""What a user asks of a benchmark, as data. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        problems, dtypes, backends, implementations: names; empty for all.
        quick: whether a few problems and runs are enough.
        rounds: runs of each call; None for as many as there is time for.
        threads: within one operation of a processor; None for one on each processor.
        load: Python files of further backends.
        libs: folders of vendors' libraries.
    """

    problems: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    implementations: tuple[str, ...] = ()
    quick: bool = False
    rounds: int | None = None
    threads: int | None = None
    load: tuple[Path, ...] = ()
    libs: tuple[Path, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Words of the command that narrow the run, or widen it."""
        named = {
            "--problem": self.problems,
            "--dtype": self.dtypes,
            "--backend": self.backends,
            "--implementation": self.implementations,
        }
        words = [word for option, values in named.items() for value in values for word in (option, value)]
        words += ["--quick"] if self.quick else []
        return (*words, *(["--rounds", str(self.rounds)] if self.rounds is not None else []))
