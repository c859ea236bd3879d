"""The cells of the CUDA-graph suite."""

from __future__ import annotations

from collections.abc import Iterator

from samebits.backends.token_problem import TOKEN_OPERATIONS
from samebits.harness.controls.graph_operations import token_graph_controls
from samebits.harness.controls.graphs import graph_controls
from samebits.harness.graphs.cases import GraphCase, graph_cases
from samebits.harness.graphs.relations import GRAPH_RELATIONS, ON_EVERY_CASE, TOKEN_GRAPH_RELATIONS
from samebits.harness.matrix import Cell, Selection
from samebits.harness.relations import Relation
from samebits.harness.tokens.cases import token_cases

SUITE = "cuda_graph"


def cuda_graph_cells(selection: Selection) -> Iterator[Cell]:
    """What was planned or captured once computes every other batch of its padded sizes."""
    yield from graph_controls(SUITE, selection.seed)
    yield from token_graph_controls(SUITE, selection.seed)
    for implementation in selection.attention:
        for case in graph_cases(selection.tier):
            for dtype in selection.dtypes_of(case):
                tier = case.tier if dtype in case.dtypes else "nightly"
                for relation in _relations(case):
                    yield Cell(SUITE, implementation, relation, case, dtype, tier, selection.seed)
    for operation in TOKEN_OPERATIONS:
        cases = list(token_cases(operation.operation, selection.tier))
        for tokens in selection.of_tokens(operation.operation):
            for token_case in cases if selection.tier == "nightly" else cases[:1]:
                for dtype in selection.dtypes_of(token_case):
                    tier = token_case.tier if dtype in token_case.dtypes else "nightly"
                    for relation in TOKEN_GRAPH_RELATIONS.values():
                        yield Cell(SUITE, tokens, relation, token_case, dtype, tier, selection.seed)


def _relations(case: GraphCase) -> list[Relation]:
    return [
        relation for name, relation in GRAPH_RELATIONS.items() if case.all_relations or name.endswith(ON_EVERY_CASE)
    ]
