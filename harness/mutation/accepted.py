"""Mutants that survive and may: each with the reason why its bits are as right as the source's.

Each is named by what its lines hold, so that it fits no mutant any more once they change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samebits.harness.mutation.mutants import Mutant


@dataclass(frozen=True)
class Accepted:
    """A mutant that may survive.

    Attributes:
        path: of its source.
        before, after: the lines that it touches, as in `Mutant`.
        reason: why it may, as one sentence.
    """

    path: str
    before: str
    after: str
    reason: str

    def fits(self, mutant: Mutant) -> bool:
        """Whether a mutant is this one."""
        return (self.path, self.before, self.after) == (mutant.path, mutant.before, mutant.after)


ACCEPTED: tuple[Accepted, ...] = ()


def reason_for(mutant: Mutant, accepted: Iterable[Accepted] = ACCEPTED) -> str:
    """Why a mutant may survive; empty where nobody has said."""
    return next((known.reason for known in accepted if known.fits(mutant)), "")


def stale(mutants: Sequence[Mutant], accepted: Iterable[Accepted] = ACCEPTED) -> list[Accepted]:
    """The reasons that fit none of all mutants of their sources: those have changed.

    Args:
        mutants: all of some sources.
        accepted: reasons, of these sources and of others.
    """
    paths = {mutant.path for mutant in mutants}
    return [known for known in accepted if known.path in paths and not any(map(known.fits, mutants))]
