"""From a batch that shows a difference to a smaller one that still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from samebits.backends.problem import Problem, Request
from samebits.harness.relations import Comparison


def shrink(comparison: Comparison, differs: Callable[[Comparison], bool], attempts: int) -> Comparison:
    """Drops requests and shortens contexts while the difference stays.

    Args:
        comparison: shows a difference.
        differs: whether a comparison shows one.
        attempts: how many smaller comparisons to try at most.

    Returns:
        The smallest comparison found; the given one where no smaller one differs.
    """
    smallest = comparison
    tried = 0
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(smallest):
            if tried >= attempts:
                return smallest
            tried += 1
            if differs(candidate):
                smallest, progress = candidate, True
                break
    return smallest


def describe(comparison: Comparison) -> str:
    """Both sides of a comparison in one line."""
    left, right = (_told_side(side) for side in (comparison.left, comparison.right))
    layouts = {problem.layout for problem in (*comparison.left, *comparison.right)}
    if len(layouts) > 1:
        changes = _layout_changes(comparison)
        return f"{left} against {right} with {changes}"
    return f"{left} against {right}"


def _told_side(side: tuple[Problem, ...]) -> str:
    """The steps of one side; of many, the first and the last."""
    if len(side) <= 3:
        return " then ".join(_told(problem) for problem in side)
    return f"{_told(side[0])} then {len(side) - 2} more then {_told(side[-1])}"


def _told(problem: Problem) -> str:
    return f"[{' '.join(str(request) for request in problem.requests)}]"


def _layout_changes(comparison: Comparison) -> str:
    left, right = comparison.left[0].layout, comparison.right[0].layout
    changed = [name for name in vars(left) if getattr(left, name) != getattr(right, name)]
    return ", ".join(f"{name} {getattr(left, name)} and {getattr(right, name)}" for name in changed)


def _smaller(comparison: Comparison) -> Iterator[Comparison]:
    keys = list(dict.fromkeys(request.key for problem in _problems(comparison) for request in problem.requests))
    # One victim with one neighbour, or alone, is what a reader can follow: tried before dropping one by one.
    if len(keys) > 2:
        for key in keys:
            for other in keys:
                if other != key:
                    yield from _kept(comparison, {key, other})
    elif len(keys) == 2:
        for key in keys:
            yield from _kept(comparison, {key})
    for key in keys:
        yield from _shortened(comparison, key)


def _problems(comparison: Comparison) -> tuple[Problem, ...]:
    return (*comparison.left, *comparison.right)


def _kept(comparison: Comparison, keys: set[int]) -> Iterator[Comparison]:
    """The comparison with some requests only, where both sides still hold one and are not the same."""
    sides = [
        tuple(
            problem.with_requests(*kept)
            for problem in side
            if (kept := [request for request in problem.requests if request.key in keys])
        )
        for side in (comparison.left, comparison.right)
    ]
    shared = set.intersection(*({request.key for problem in side for request in problem.requests} for side in sides))
    if shared and sides[0] != sides[1]:
        yield Comparison(*sides)


def _shortened(comparison: Comparison, key: int) -> Iterator[Comparison]:
    """The comparison with half of one request's context, where the request is computed in one step on each side."""
    steps = {request for problem in _problems(comparison) for request in problem.requests if request.key == key}
    if len(steps) != 1:
        return
    (request,) = steps
    if request.context_len > 0:
        shorter = replace(request, context_len=request.context_len // 2)
        yield Comparison(*(_replaced(side, request, shorter) for side in (comparison.left, comparison.right)))


def _replaced(side: tuple[Problem, ...], old: Request, new: Request) -> tuple[Problem, ...]:
    return tuple(
        problem.with_requests(*(new if request == old else request for request in problem.requests)) for problem in side
    )
