"""Ids of pytest's tests that are cells."""

from __future__ import annotations


def cell_id_of(node_id: str) -> str:
    """The id of the cell that a test may be, else whatever the test has in brackets; empty where it has none.

    Args:
        node_id: of any test.
    """
    return node_id.rpartition("::")[2].partition("[")[2].removesuffix("]")


def names_cell(parameter: str) -> bool:
    """Whether a test may be a cell: a test of another project must not make this one's session.

    Args:
        parameter: what the test has in brackets.
    """
    return parameter.count(":") >= 3
