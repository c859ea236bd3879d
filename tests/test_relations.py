"""What the relations compare in the default tier, told from the problems alone: nothing here is run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from samebits.backends.contract import Tiling
from samebits.backends.problem import Mask, Problem
from samebits.harness.cases import BATCHES, Case, cases
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.relations import RELATIONS, AnyProblem

# As implementations declare them: an interpreted kernel's, one of whole tiles, one of long splits, a GPU's.
TILINGS = (Tiling(32, 32, 64), Tiling(16, 16, 16), Tiling(32, 512, 512), Tiling(128, 128, 256))
MASKS = sorted({case.mask for case in cases("default")})
# A query of a non-causal chunk sees keys of later chunks, which are not there yet.
WITHOUT_COMPARISONS = {("chunked_prefill", Mask.NON_CAUSAL)}
# Requests of thousands of tokens stand beside one batch of each mask only.
PAIR = {case.mask: case for case in cases("default") if case.batch == "pair"}


@dataclass(frozen=True)
class Sides:
    """The two sides of a comparison of attention."""

    left: tuple[Problem, ...]
    right: tuple[Problem, ...]


def sides_of(case: Case, relation: str, tiling: Tiling) -> list[Sides]:
    def attention(side: tuple[AnyProblem, ...]) -> tuple[Problem, ...]:
        return tuple(problem for problem in side if isinstance(problem, Problem))

    found = RELATIONS[relation].compare(case.problem("fp32", tiling, 0), tiling)
    return [Sides(attention(comparison.left), attention(comparison.right)) for comparison in found]


def rows(side: tuple[Problem, ...]) -> set[tuple[int, int]]:
    """Every query row of a side: request key and position."""
    return {
        (request.key, position)
        for problem in side
        for request in problem.requests
        for position in range(request.context_len, request.seq_len)
    }


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_compares_rows_of_every_case(relation: str, mask: Mask, tiling: Tiling) -> None:
    for case in cases("default"):
        if case.mask is not mask:
            continue
        found = sides_of(case, relation, tiling)
        if (relation, mask) in WITHOUT_COMPARISONS:
            assert not found, f"{relation} says something about {case.case_id}: {found[0]}"
            continue
        assert found, f"{relation} compares nothing on {case.case_id} for {tiling}"
        for comparison in found:
            assert rows(comparison.left) & rows(comparison.right), f"no row on both sides of {comparison}"
            assert comparison.left != comparison.right, f"both sides are {comparison.left}"


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize("relation", ["chunked_prefill", "extend", "decode"])
def test_steps_of_cross_attention_cross_tiles_of_queries_and_splits_of_keys(relation: str, tiling: Tiling) -> None:
    for comparison in sides_of(PAIR[Mask.CROSS], relation, tiling):
        (whole,) = comparison.left[0].requests
        assert whole.query_len > tiling.query_tile, f"{whole} holds no more than one tile of {tiling}"
        assert whole.encoder_len > 2 * tiling.kv_split, f"{whole} has no more than two splits of {tiling}"
        encoder_lens = {problem.requests[0].encoder_len for problem in (*comparison.left, *comparison.right)}
        assert encoder_lens == {whole.encoder_len}, f"the steps see other keys: {comparison}"


@pytest.mark.parametrize("relation", ["chunked_prefill", "extend", "decode"])
def test_a_step_sees_the_keys_that_its_queries_see_in_one_shot(relation: str) -> None:
    tiling = TILINGS[0]
    for case in cases("nightly"):
        if case.batch not in ("mixed", "pair"):
            continue
        for comparison in sides_of(case, relation, tiling):
            (one_shot,) = comparison.left
            (whole,) = one_shot.requests
            for problem in comparison.right:
                (step,) = problem.requests
                keys_may_differ = problem.is_causal(step)
                assert keys_may_differ or problem.kv_len(step) == problem.kv_len(whole), f"{step} of {whole} in {case}"


def test_requests_of_a_batch_of_both_kinds_of_mask_are_of_both_kinds() -> None:
    for batch in BATCHES:
        case = Case(GEOMETRIES["llama3-8b"], Mask.PER_REQUEST, batch, "nightly", ("fp32",))
        kinds = {request.causal for request in case.problem("fp32", TILINGS[0], 0).requests}
        assert kinds == {True, False}, f"requests of {case.case_id} are causal: {kinds}"


def num_requests(problem: Problem) -> int:
    return len(problem.requests) + problem.layout.padding_requests


def longest_query(problem: Problem) -> int:
    return max(request.query_len for request in problem.requests)


def longest_keys(problem: Problem) -> int:
    return max(problem.kv_len(request) for request in problem.requests)


def requests_between(fewest: int, most: int) -> Callable[[Problem], bool]:
    return lambda problem: fewest <= num_requests(problem) <= most


# What a kernel may choose its launch by, and must not: each is true on one side of a comparison and false on the other.
CHOICES: dict[str, Callable[[Problem], bool]] = {
    "more than 128 programs of one request and head": lambda p: num_requests(p) * p.geometry.num_kv_heads > 128,
    "more than 128 requests of one query": lambda p: num_requests(p) > 128 and longest_query(p) == 1,
    "more than 256 tokens": lambda p: p.num_tokens > 256,
    "more than 2048 tokens": lambda p: p.num_tokens > 2048,
    "more than 2048 rows, padding among them": lambda p: p.num_tokens + p.layout.padding_tokens > 2048,
    "128 queries": lambda p: longest_query(p) >= 128,
    "512 queries": lambda p: longest_query(p) >= 512,
    "512 keys": lambda p: longest_keys(p) >= 512,
    "1024 keys": lambda p: longest_keys(p) >= 1024,
    "4096 keys": lambda p: longest_keys(p) >= 4096,
    "4096 keys beside one query each": lambda p: longest_keys(p) >= 4096 and longest_query(p) == 1,
    "more than 4096 keys together": lambda p: sum(p.kv_len(request) for request in p.requests) > 4096,
    "pages one after another": lambda p: p.layout.pages_in_order,
    **{f"{n} to {2 * n - 1} requests": requests_between(n, 2 * n - 1) for n in (2, 4, 8, 16, 32, 64)},
    **{f"{n + 1} to {2 * n} requests": requests_between(n + 1, 2 * n) for n in (1, 2, 4, 8, 16, 32)},
}


def compared(case: Case) -> Iterator[tuple[Problem, Problem]]:
    for relation in RELATIONS:
        for comparison in sides_of(case, relation, TILINGS[0]):
            for left in comparison.left:
                yield from ((left, right) for right in comparison.right)


@functools.cache
def compared_by_default(mask: Mask) -> list[tuple[Problem, Problem]]:
    return [pair for case in cases("default") if case.mask is mask for pair in compared(case)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_default_tier_stands_on_both_sides_of_what_kernels_choose_by(choice: str, mask: Mask) -> None:
    chosen = CHOICES[choice]
    sides = [(chosen(left), chosen(right)) for left, right in compared_by_default(mask)]
    assert (False, True) in sides or (True, False) in sides, f"no comparison under {mask} tells {choice!r} from less"


@pytest.mark.parametrize("mask", MASKS)
def test_only_the_smallest_batches_stand_beside_thousands_of_tokens(mask: Mask) -> None:
    """An interpreter takes seconds for them, so that every case cannot have them."""
    mixed = replace(PAIR[mask], batch="mixed")
    longest = max(longest_keys(problem) for sides in compared(mixed) for problem in sides)
    most = max(problem.num_tokens for sides in compared(mixed) for problem in sides)
    assert longest < 1024, f"a request of {longest} keys stands beside {mixed.case_id}"
    assert most < 1024, f"{most} tokens stand beside {mixed.case_id}"
