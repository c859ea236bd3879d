"""Covering tables hold every pair that may be, and those of attention's options are made into cases."""

from __future__ import annotations

import itertools

from samebits.backends.problem import Mask
from samebits.harness.covering import Choice, covering_rows, pairs_of
from samebits.harness.crossed import OPTIONS, crossed_cases, excluded


def test_any_two_choices_that_may_meet_do() -> None:
    rows = covering_rows(OPTIONS, excluded)
    met = {frozenset(pair) for row in rows for pair in itertools.combinations(row.items(), 2)}
    missing = [sorted(map(str, pair)) for pair in pairs_of(OPTIONS, excluded) if pair not in met]
    assert not missing, f"never together: {missing}"


def test_choices_that_may_not_meet_do_not() -> None:
    rows = covering_rows(OPTIONS, excluded)
    assert all(row["encoder"] for row in rows if row["mask"] is Mask.CROSS), "cross-attention without an encoder"


def test_all_pairs_are_asked_for() -> None:
    options = {"one": ("a", "b"), "two": (1, 2, 3), "three": (None,)}
    pairs = pairs_of(options, lambda one, other: {one, other} == {("one", "a"), ("two", 2)})
    assert len(pairs) == 2 * 3 - 1 + 2 + 3, f"asked for {pairs}"


def test_a_table_has_about_as_many_rows_as_its_two_longest_options_need() -> None:
    longest, second = sorted((len(set(values)) for values in OPTIONS.values()), reverse=True)[:2]
    rows = covering_rows(OPTIONS, excluded)
    assert longest * second <= len(rows) <= 1.2 * longest * second, f"{len(rows)} rows for {longest} by {second} values"


def test_a_value_that_is_listed_twice_is_taken_more_often_where_there_is_a_choice() -> None:
    def never(one: Choice, other: Choice) -> bool:
        return False

    options = {"one": tuple(range(6)), "two": tuple(range(6)), "rare": (False, False, True)}
    taken = [row["rare"] for row in covering_rows(options, never)]
    assert taken.count(False) > taken.count(True), f"{taken.count(True)} of {len(taken)} rows have the rare value"


def test_each_row_is_a_case_of_its_own_in_one_dtype() -> None:
    cases = crossed_cases()
    names = {case.case_id for case in cases}
    assert len(names) == len(cases), "two rows have one name"
    assert {len(case.dtypes) for case in cases} == {1}, "a row has several dtypes"
