"""How batches are drawn: from which seed, how many, and where failing ones are kept."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.matrix import Cell


@dataclass(frozen=True)
class Draws:
    """How a run draws batches.

    Attributes:
        seed: of what is drawn, fresh for each night; None for the same batches in every run.
        kept: directory of failing examples, which are tried before fresh batches; None for none.
    """

    seed: int | None = None
    kept: Path | None = None

    def of(self, cell: Cell) -> CellDraws:
        """How a cell draws.

        Implementations of one tiling and one support draw the same batches for a relation, a control and its parent
        among them. What is kept of one cell means nothing to another.
        """
        seed = "" if self.seed is None else self.seed
        drawn = f"{cell.relation.name}/{cell.case.case_id}/{cell.dtype}/{cell.seed}/{seed}"
        # Whose batches are the same in every run must not depend on what some other run left.
        kept = None if self.kept is None or self.seed is None else self.kept / _digest(cell.cell_id).hex()
        return CellDraws(int.from_bytes(_digest(drawn), "little"), kept)

    def configuration(self, examples: int) -> Mapping[str, str]:
        """What decides which batches a cell draws, for its record: rows that differ in it have other bits to compare.

        Args:
            examples: how many are drawn.
        """
        drawn = "the same" if self.seed is None else f"of seed {self.seed}"
        version = importlib.metadata.version("hypothesis")
        return {"hypothesis": version, "batches": f"{examples}, {drawn}"}


@dataclass(frozen=True)
class CellDraws:
    """How one cell draws batches.

    Attributes:
        seed: of what it draws.
        kept: directory of its failing examples; None for none.
    """

    seed: int
    kept: Path | None


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
