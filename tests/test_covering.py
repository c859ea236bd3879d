"""Covering tables hold all that may meet, and those of attention's options are made into cases."""

from __future__ import annotations

import itertools

import pytest

from samebits.backends.problem import Mask
from samebits.harness.covering import (
    Choice,
    Meeting,
    Row,
    combinations_of,
    covering_rows,
    meetings_of,
    rows_with_every_value,
)
from samebits.harness.crossed import OPTIONS, crossed_cases, default_rows, excluded
from samebits.harness.records import TIERS
from samebits.harness.semantics import MEANINGS, semantic_cases


def never(one: Choice, other: Choice) -> bool:
    return False


def never_together(rows: tuple[Row, ...], meetings: list[Meeting]) -> list[list[str]]:
    """The combinations of some options that no row has."""
    met = {frozenset((name, row[name]) for name in meeting) for row in rows for meeting in meetings}
    wanted = combinations_of(OPTIONS, excluded, meetings)
    return [sorted(map(str, combination)) for combination in wanted if combination not in met]


def test_any_two_choices_that_may_meet_do() -> None:
    missing = never_together(default_rows(), meetings_of(OPTIONS, 2))
    assert not missing, f"never together: {missing}"


@pytest.mark.parametrize(
    "options",
    [
        ("mask", "softcap", "sinks"),
        ("mask", "sinks", "encoder"),
        ("batch", "softcap", "sinks"),
        ("batch", "sinks", "dtype"),
        ("mask", "sinks", "dtype"),
        ("strides", "sinks", "encoder"),
        ("softcap", "sinks", "encoder"),
        ("scale", "softcap", "sinks"),
        ("page_size", "softcap", "encoder"),
    ],
    ids="-".join,
)
def test_three_options_of_few_values_meet_in_the_default_tier(options: Meeting) -> None:
    missing = never_together(default_rows(), [options])
    assert not missing, f"never together: {missing}"


def test_choices_that_may_not_meet_do_not() -> None:
    assert all(row["encoder"] for row in default_rows() if row["mask"] is Mask.CROSS), "cross-attention, no encoder"


@pytest.mark.parametrize(("count", "combinations"), [(2, 2 * 3 + 2 * 1 + 3 * 1 - 1), (3, (2 * 3 - 1) * 1)])
def test_all_that_may_meet_is_asked_for(count: int, combinations: int) -> None:
    options = {"one": ("a", "b", "b"), "two": (1, 2, 3), "three": (None,)}
    found = combinations_of(
        options, lambda one, other: {one, other} == {("one", "a"), ("two", 2)}, meetings_of(options, count)
    )
    assert len(set(found)) == len(found) == combinations, f"asked for {found}"


def test_a_limit_leaves_out_what_has_more_combinations() -> None:
    options = {"one": ("a", "b", "b"), "two": (1, 2, 3), "three": (0, 1, 2, 3)}
    assert meetings_of(options, 2, 8) == [("one", "two"), ("one", "three")]


def test_a_table_has_few_more_rows_than_its_two_longest_options_need() -> None:
    longest, second = sorted((len(set(values)) for values in OPTIONS.values()), reverse=True)[:2]
    rows = default_rows()
    assert longest * second <= len(rows) <= 1.4 * longest * second, f"{len(rows)} rows for {longest} by {second} values"


def test_a_value_that_is_listed_twice_is_taken_more_often_where_there_is_a_choice() -> None:
    options = {"one": tuple(range(6)), "two": tuple(range(6)), "rare": (False, False, True)}
    taken = [row["rare"] for row in covering_rows(options, never, meetings_of(options, 2))]
    assert taken.count(False) > taken.count(True), f"{taken.count(True)} of {len(taken)} rows have the rare value"


def test_every_value_occurs_in_few_of_the_rows() -> None:
    rows = default_rows()
    few = rows_with_every_value(rows)
    for name, values in OPTIONS.items():
        assert {row[name] for row in few} == set(values), f"a value of {name} does not occur"
    assert len(few) < len(rows) / 4, f"{len(few)} of {len(rows)} rows"


def test_each_row_is_a_case_of_its_own_in_one_dtype_and_some_in_fp16_too() -> None:
    cases = crossed_cases("default")
    assert len({case.case_id for case in cases}) == len(cases) == len(default_rows()), "two rows have one name"
    in_fp16 = [case for case in cases if "fp16" in case.dtypes]
    assert len(in_fp16) == len(rows_with_every_value(default_rows()))
    assert {len(case.dtypes) - ("fp16" in case.dtypes) for case in cases} == {1}, "a row has several other dtypes"


def test_the_nightly_tier_adds_rows_in_which_all_threes_meet() -> None:
    crossed = MEANINGS["crossed"]
    found = {tier: [case.case_id for case in semantic_cases(crossed, tier)] for tier in TIERS}
    assert found["nightly"][: len(found["default"])] == found["default"], "the nightly tier is without the default one"
    assert len(set(found["nightly"])) == len(found["nightly"]), "two rows have one name"
    assert not found["smoke"], "the smoke tier has a table of options"
    # All threes of masks, groups of heads and strides.
    met = {
        (case.mask, case.geometry.group_size, case.geometry.num_kv_heads, case.strides)
        for tier in ("default", "nightly")
        for case in crossed_cases(tier)
    }
    wanted = list(itertools.product(OPTIONS["mask"], OPTIONS["heads"], OPTIONS["strides"]))
    assert len(met) == len(wanted), f"{len(met)} of {len(wanted)} meet"
