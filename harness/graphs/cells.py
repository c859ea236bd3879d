"""The cells of the CUDA-graph suite."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from samebits.backends.token_problem import TOKEN_OPERATIONS
from samebits.harness.controls.graph_operations import token_graph_controls
from samebits.harness.controls.graphs import graph_controls
from samebits.harness.graphs.cases import GraphCase, graph_cases
from samebits.harness.graphs.relations import GRAPH_RELATIONS, ON_EVERY_CASE, TOKEN_GRAPH_RELATIONS
from samebits.harness.matrix import Cell, Selection, TieredCase
from samebits.harness.relations import Relation
from samebits.harness.tokens.cases import TokenCase, token_cases

SUITE = "cuda_graph"


def cuda_graph_cells(selection: Selection) -> Iterator[Cell]:
    """What was planned or captured once computes every other batch of its padded sizes."""
    yield from graph_controls(SUITE, selection.seed)
    yield from token_graph_controls(SUITE, selection.seed)
    for implementation in selection.attention:
        for tiered in selection.tiered(graph_cases):
            yield from selection.cells(SUITE, implementation, _checked(tiered))
    for operation in TOKEN_OPERATIONS:
        tiered_cases = selection.tiered(functools.partial(_token_cases, operation.operation))
        for tokens in selection.of_tokens(operation.operation):
            for tiered in tiered_cases:
                checked = ((relation, tiered) for relation in TOKEN_GRAPH_RELATIONS.values())
                yield from selection.cells(SUITE, tokens, checked)


def _token_cases(operation: str, tier: str) -> list[TokenCase]:
    """The first case of an operation on tokens, and in the nightly tier all."""
    found = list(token_cases(operation, tier))
    return found if tier == "nightly" else found[:1]


def _checked(tiered: TieredCase) -> Iterator[tuple[Relation, TieredCase]]:
    """Every relation with the case: below the nightly tier most cases have few of them."""
    assert isinstance(tiered.case, GraphCase)
    for name, relation in GRAPH_RELATIONS.items():
        usual = tiered.case.all_relations or name.endswith(ON_EVERY_CASE)
        yield relation, tiered if usual else tiered.nightly()
