"""From a batch that fails to a smaller one that still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from samebits.backends.problem import Request
from samebits.harness.relations import AnyProblem, Comparison

# Among more neighbours than these, one alone is tried with the victim, and then they are dropped by halves.
_FEW_NEIGHBOURS = 6
# Of more requests than these, the first and the last are told.
_TOLD = 8


def shrink(comparison: Comparison, fails: Callable[[Comparison], bool], attempts: int, victim: int) -> Comparison:
    """Drops steps and requests and shortens lengths while a failure stays.

    Args:
        comparison: fails, with two sides that differ or with one that is wrong.
        fails: whether a comparison does.
        attempts: how many smaller comparisons to try at most.
        victim: key of a request that fails.

    Returns:
        The smallest comparison found; the given one where no smaller one fails.
    """
    smallest = comparison
    tried = {comparison}
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(smallest, victim):
            if candidate in tried:
                continue
            if len(tried) > attempts:
                return smallest
            tried.add(candidate)
            if fails(candidate):
                smallest, progress = candidate, True
                break
    return smallest


def describe(comparison: Comparison) -> str:
    """Both sides of a comparison in one line, or the only one."""
    left, right = (_told_side(side) for side in (comparison.left, comparison.right))
    if not comparison.right:
        return left
    changes = _changes(comparison)
    return f"{left} against {right} with {changes}" if changes else f"{left} against {right}"


def _told_side(side: tuple[AnyProblem, ...]) -> str:
    """The steps of one side; of many, the first and the last."""
    if len(side) <= 3:
        return " then ".join(told_batch(problem) for problem in side)
    return f"{told_batch(side[0])} then {len(side) - 2} more then {told_batch(side[-1])}"


def told_batch(problem: AnyProblem) -> str:
    """The requests of one step; of a crowd, those at its ends."""
    requests = [str(request) for request in problem.requests]
    if len(requests) > _TOLD:
        requests[2:-2] = [f"({len(requests) - 4} more)"]
    return f"[{' '.join(requests)}]"


def _changes(comparison: Comparison) -> str:
    """What besides the requests is another on the right: layout, data, circumstances."""
    left, right = (
        {"data": side[0].data} | vars(side[0].layout) | vars(side[0].circumstances)
        for side in (comparison.left, comparison.right)
    )
    return ", ".join(f"{name} {left[name]} and {right[name]}" for name in left if left[name] != right[name])


def _smaller(comparison: Comparison, victim: int) -> Iterator[Comparison]:
    """Smaller comparisons, those first that are the easiest to follow if they still fail."""
    yield from _fewer_steps(comparison)
    neighbours = [key for key in _keys(comparison) if key != victim]
    yield from _kept(comparison, {victim})
    for other in neighbours if len(neighbours) <= _FEW_NEIGHBOURS else neighbours[-1:]:
        yield from _kept(comparison, {victim, other})
    run = len(neighbours) // 2
    while run:
        for start in range(0, len(neighbours), run):
            yield from _kept(comparison, {victim, *neighbours[:start], *neighbours[start + run :]})
        run //= 2
    for key in (*neighbours, victim):
        yield from _shortened(comparison, key)


def _problems(comparison: Comparison) -> tuple[AnyProblem, ...]:
    return (*comparison.left, *comparison.right)


def _keys(comparison: Comparison) -> list[int]:
    return list(dict.fromkeys(request.key for problem in _problems(comparison) for request in problem.requests))


def _fewer_steps(comparison: Comparison) -> Iterator[Comparison]:
    """The comparison with one step only of a side that has many."""
    if len(comparison.left) > 1:
        yield from (replace(comparison, left=(step,)) for step in comparison.left)
    if len(comparison.right) > 1:
        yield from (replace(comparison, right=(step,)) for step in comparison.right)


def _kept(comparison: Comparison, keys: set[int]) -> Iterator[Comparison]:
    """The comparison with some requests only, where each side still holds one and the two are not the same."""
    left, right = (
        tuple(
            problem.with_requests(*kept)
            for problem in side
            if (kept := [request for request in problem.requests if request.key in keys])
        )
        for side in (comparison.left, comparison.right)
    )
    if (
        left
        and bool(right) == bool(comparison.right)
        and left != right
        and (left, right) != (comparison.left, comparison.right)
    ):
        yield replace(comparison, left=left, right=right)


def _shortened(comparison: Comparison, key: int) -> Iterator[Comparison]:
    """The comparison with half of one request's lengths, where it is computed in one step on each side."""
    steps = {request for problem in _problems(comparison) for request in problem.requests if request.key == key}
    if len(steps) != 1:
        return
    (request,) = steps
    if request.context_len < 0:
        return  # Its query_len and context_len hang together.
    halves = (
        replace(request, encoder_len=request.encoder_len // 2),
        replace(request, context_len=request.context_len // 2),
        replace(request, query_len=-(-request.query_len // 2)),
    )
    for shorter in halves:
        if shorter != request:
            left, right = (_replaced(side, request, shorter) for side in (comparison.left, comparison.right))
            yield replace(comparison, left=left, right=right)


def _replaced(side: tuple[AnyProblem, ...], old: Request, new: Request) -> tuple[AnyProblem, ...]:
    return tuple(
        problem.with_requests(*(new if request == old else request for request in problem.requests)) for problem in side
    )
