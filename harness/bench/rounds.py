"""Runs of several calls that take turns, so that a machine which slows down does so for all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from samebits.harness.bench.stopwatch import Call, Lap, Stopwatch

# Consecutive runs that must agree, and how well, for a call to be warm; and after how many it is taken for warm.
_STEADY_RUNS, _STEADY_SHARE, _MOST_WARM_RUNS = 3, 0.05, 12


@dataclass(frozen=True)
class Budget:
    """How much time goes into the calls of one problem.

    Attributes:
        rounds: runs of a call at most.
        least: runs of a call at least, however long it takes.
        seconds: for all calls together, each of which has an equal share, but for those that need more for the least.
        warming: seconds after which a call is taken for warm.
    """

    rounds: int
    least: int
    seconds: float
    warming: float

    def runs(self, estimates: Sequence[float]) -> list[int]:
        """How often each call runs.

        Args:
            estimates: seconds of a run of each, the eviction before it among them.
        """
        share = self.seconds / max(1, len(estimates))
        least = min(self.least, self.rounds)
        return [max(least, int(min(self.rounds, share / max(estimate, 1e-9)))) for estimate in estimates]


def warmed_up(stopwatch: Stopwatch, call: Call, seconds: float) -> tuple[Call, float]:
    """Runs a call until its times are steady, or until that has taken long enough.

    Args:
        stopwatch: that times it.
        call: to warm up.
        seconds: what is long enough.

    Returns:
        The call, which knows by then how long the host takes for it, and seconds of a run with what belongs to it.
    """
    laps: list[Lap] = []
    spent = 0.0
    while not laps or (len(laps) < _MOST_WARM_RUNS and spent < seconds):
        laps += stopwatch.laps([call])
        spent += laps[-1].seconds + stopwatch.eviction_seconds
        call = replace(call, launching=min(lap.launching for lap in laps[-_STEADY_RUNS:]))
        last = [lap.seconds for lap in laps[-_STEADY_RUNS:]]
        if len(last) == _STEADY_RUNS and max(last) - min(last) <= _STEADY_SHARE * min(last):
            break
    return call, min(lap.seconds for lap in laps[-_STEADY_RUNS:]) + stopwatch.eviction_seconds


def in_turns(stopwatch: Stopwatch, calls: Sequence[Call], runs: Sequence[int]) -> list[list[Lap]]:
    """Runs each call as often as it should, by turns.

    A call of fewer runs sits out rounds that are evenly spread, so that its runs are as far apart as the others'.

    Returns:
        The laps of each call.
    """
    found: list[list[Lap]] = [[] for _ in calls]
    rounds = max(runs, default=0)
    for place in range(rounds):
        playing = [i for i, count in enumerate(runs) if (place + 1) * count // rounds > place * count // rounds]
        # Each begins as often as the others, so that none always follows the same one.
        playing = playing[place % len(playing) :] + playing[: place % len(playing)] if playing else []
        for i, lap in zip(playing, stopwatch.laps([calls[i] for i in playing]), strict=True):
            found[i].append(lap)
    return found
