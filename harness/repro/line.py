"""The command that runs one comparison again, as one line for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from samebits.harness.relations import Comparison
from samebits.harness.repro.grammar import told


def repro_line(label: str, relation: str, comparison: Comparison, options: Sequence[str]) -> str:
    """The `samebits repro` command of a comparison.

    Args:
        label: of the implementation.
        relation: name of the relation that the comparison is of.
        comparison: what is run again.
        options: words by which the command loads what the session loaded.
    """
    return shlex.join(["samebits", "repro", *options, label, relation, told(comparison)])
