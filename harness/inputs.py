"""The checks of the dtype suite: kinds of data on which every number is judged against the reference alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Problem
from samebits.backends.token_problem import TokenProblem
from samebits.harness.relations import AnyProblem, Comparison, Relation

_DESCRIPTIONS = {
    "normal": "normal queries, keys and values",
    "large_scores": "scores that deviate by 8",
    "huge_scores": "scores that deviate by 64",
    "negative_scores": "scores that are all below 0",
    "large_values": "values of 1000",
    "huge_values": "values beyond the range of fp16",
    "offset_values": "values around 10",
    "ties": "equal scores",
    "denormal_values": "values around the smallest normal number",
    "seen_nan": "one NaN that every query must see",
    "seen_inf": "one infinity in a key or a value that every query must see",
    "all_nan": "keys that are all NaN",
}
# What a log-sum-exp depends on.
_OF_SCORES = ("normal", "large_scores", "huge_scores", "negative_scores", "ties", "seen_nan", "seen_inf", "all_nan")
# What there is of kinds of data for operations on tokens.
_TOKEN_DESCRIPTIONS = {
    **{
        data: _DESCRIPTIONS[data]
        for data in ("normal", "large_values", "huge_values", "offset_values", "denormal_values")
    },
    "seen_nan": "a NaN in here and there a token, which is that token's alone",
    "seen_inf": "an infinity in here and there a token, which is that token's alone",
}


def _on(data: str, description: str, judged: tuple[str, ...]) -> Relation:
    def compare(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
        yield Comparison((replace(problem, data=data),), ())

    prefix = "lse_" if judged == ("lse",) else ""
    of_what = "log-sum-exps " if prefix else ""
    return Relation(prefix + data, None, f"{of_what}right on {description}", compare, judged)


def _nan_query(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
    if isinstance(problem, Problem):
        yield Comparison((problem,), (replace(problem, data="nan_query"),), but_nan=True)


def _unseen_nan(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
    if isinstance(problem, TokenProblem):
        return
    if any(hidden for request in problem.requests for hidden in problem.hidden_slots(request)):
        yield Comparison((problem,), (replace(problem, data="unseen_nan"),))


def _hidden_nan(problem: AnyProblem, tiling: Tiling) -> Iterable[Comparison]:
    if not isinstance(problem, TokenProblem) and any(problem.hides_last_key(request) for request in problem.requests):
        yield Comparison((problem,), (replace(problem, data="hidden_nan"),), last_rows=1)


_INPUTS = (
    *(_on(data, description, ("output",)) for data, description in _DESCRIPTIONS.items()),
    *(_on(data, _DESCRIPTIONS[data], ("lse",)) for data in _OF_SCORES),
    Relation("nan_query", "batch_invariant", "beside a NaN in one head of a query, which is its alone", _nan_query),
    Relation(
        "unseen_nan", "ignores_unread_memory", "NaN and infinities in keys and values that no query sees", _unseen_nan
    ),
    Relation(
        "hidden_nan",
        "ignores_hidden_keys",
        "NaN and an infinity in a key and a value that only the last query sees",
        _hidden_nan,
    ),
)

INPUTS: Mapping[str, Relation] = {relation.name: relation for relation in _INPUTS}
# Those in which a number that is none must not get lost, as it may where a kernel of its own merges splits of decodes.
INPUTS_OF_DECODES = ("seen_nan", "seen_inf", "all_nan", "lse_seen_nan", "lse_seen_inf", "lse_all_nan", "nan_query")
TOKEN_INPUTS: Mapping[str, Relation] = {
    data: _on(data, description, ()) for data, description in _TOKEN_DESCRIPTIONS.items()
}
