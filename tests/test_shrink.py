"""A comparison that differs is made smaller, within its attempts, by what its difference does not need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness.relations import Comparison
from samebits.harness.shrink import describe, shrink

PROBLEM = Problem(Geometry("tiny", 1, 1, 16), Mask.CAUSAL, "fp32", (Request(1, 1, 130),))
VICTIM = PROBLEM.requests[0]


class Differs:
    """A fake run that differs where a predicate says so, and remembers what it was asked."""

    def __init__(self, predicate: Callable[[Comparison], bool]) -> None:
        self.predicate = predicate
        self.asked: list[Comparison] = []

    def __call__(self, comparison: Comparison) -> bool:
        self.asked.append(comparison)
        return self.predicate(comparison)


def beside(*neighbours: Request) -> Comparison:
    """The victim alone against the victim behind its neighbours."""
    return Comparison((PROBLEM,), (PROBLEM.with_requests(*neighbours, VICTIM),))


def crowd(size: int) -> Comparison:
    return beside(*(Request(key, 1, 4) for key in range(2, size + 1)))


def batch(comparison: Comparison) -> tuple[Request, ...]:
    """The requests of the right side's only step."""
    (problem,) = comparison.right
    return problem.requests


def keys(comparison: Comparison) -> set[int]:
    return {request.key for request in batch(comparison)}


def test_one_neighbour_that_matters_is_found_among_a_few() -> None:
    differs = Differs(lambda comparison: 4 in keys(comparison))
    smallest = shrink(beside(*(Request(key, 1) for key in (2, 3, 4, 5))), differs, attempts=12, victim=1)
    assert keys(smallest) == {1, 4}, f"kept {describe(smallest)}"


def test_requests_are_dropped_one_by_one_where_no_pair_differs() -> None:
    differs = Differs(lambda comparison: {3, 5} <= keys(comparison))
    smallest = shrink(beside(*(Request(key, 1) for key in (2, 3, 4, 5))), differs, attempts=12, victim=1)
    assert keys(smallest) == {1, 3, 5}, f"kept {describe(smallest)}"


def test_a_long_batch_is_halved_before_anything_is_dropped_alone() -> None:
    differs = Differs(lambda comparison: len(batch(comparison)) > 8)
    smallest = shrink(crowd(64), differs, attempts=12, victim=1)
    assert 8 < len(batch(smallest)) <= 16, f"{len(batch(smallest))} of 64 requests are left after 12 attempts"


def test_a_long_batch_of_which_any_neighbour_will_do_takes_few_attempts() -> None:
    differs = Differs(lambda comparison: len(batch(comparison)) > 1)
    smallest = shrink(crowd(64), differs, attempts=3, victim=1)
    assert len(batch(smallest)) == 2, f"{len(batch(smallest))} of 64 requests are left after 3 attempts"


def test_the_request_that_differs_is_kept() -> None:
    requests = tuple(Request(key, 1, 20) for key in (1, 2, 3))
    moved = Comparison((PROBLEM.with_requests(*requests),), (PROBLEM.with_requests(*requests[::-1]),))
    differs = Differs(lambda comparison: keys(comparison) == {2, 3})
    smallest = shrink(moved, differs, attempts=12, victim=3)
    assert keys(smallest) == {2, 3}, f"kept {describe(smallest)}"
    for asked in differs.asked:
        assert 3 in keys(asked), f"tried {describe(asked)}, which is without the request that differs"


def test_where_only_the_layout_differs_one_request_is_enough() -> None:
    together = PROBLEM.with_requests(VICTIM, Request(2, 5), Request(3, 1, 9))
    differs = Differs(lambda comparison: True)
    smallest = shrink(Comparison((together,), (together.with_layout(page_seed=1),)), differs, attempts=1, victim=1)
    assert keys(smallest) == {1}, f"kept {describe(smallest)}"


def test_lengths_are_halved_while_the_difference_stays() -> None:
    differs = Differs(lambda comparison: batch(comparison)[0].query_len >= 128 and VICTIM in batch(comparison))
    smallest = shrink(beside(Request(2, 513, 40)), differs, attempts=20, victim=1)
    assert batch(smallest)[0] == Request(2, 129), f"left {describe(smallest)}"


def test_encoder_lengths_are_halved_too() -> None:
    crossed = replace(PROBLEM, mask=Mask.CROSS, requests=(Request(1, 1, 0, encoder_len=8),))
    both = crossed.with_requests(*crossed.requests, Request(2, 1, 0, encoder_len=64))
    differs = Differs(lambda comparison: batch(comparison)[-1].encoder_len >= 16)
    smallest = shrink(Comparison((crossed,), (both,)), differs, attempts=12, victim=1)
    assert batch(smallest)[-1].encoder_len == 16, f"left {describe(smallest)}"


def test_a_query_before_the_first_key_keeps_its_place() -> None:
    differs = Differs(lambda comparison: True)
    smallest = shrink(beside(Request(2, 5, -4)), differs, attempts=12, victim=1)
    assert batch(smallest)[0] == Request(2, 5, -4), f"left {describe(smallest)}"


def test_of_many_steps_the_one_that_differs_is_kept() -> None:
    whole = Request(1, 90, 0)
    chunks = [Request(1, 30, start) for start in (0, 30, 60)]
    one_shot = (PROBLEM.with_requests(whole),)
    chunked = Comparison(one_shot, tuple(PROBLEM.with_requests(chunk) for chunk in chunks))
    differs = Differs(lambda comparison: any(chunks[1] in step.requests for step in comparison.right))
    smallest = shrink(chunked, differs, attempts=12, victim=1)
    assert smallest == Comparison(one_shot, (PROBLEM.with_requests(chunks[1]),)), f"left {describe(smallest)}"


def test_no_comparison_is_tried_twice_nor_more_of_them_than_allowed() -> None:
    for attempts in (0, 5, 40):
        differs = Differs(lambda comparison: len(batch(comparison)) > 3)
        shrink(crowd(20), differs, attempts, victim=1)
        assert len(differs.asked) <= attempts, f"{len(differs.asked)} attempts where {attempts} were allowed"
        assert len(set(differs.asked)) == len(differs.asked), "a comparison was tried twice"


def test_what_nothing_smaller_shows_is_left_as_it_is() -> None:
    comparison = crowd(5)
    assert shrink(comparison, lambda smaller: False, attempts=100, victim=1) == comparison


def test_of_a_crowd_the_ends_are_told() -> None:
    told = describe(crowd(64))
    assert told == "[r1:q1c130] against [r2:q1c4 r3:q1c4 (60 more) r64:q1c4 r1:q1c130]"
