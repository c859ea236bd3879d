"""Cases of the CUDA-graph suite: batches of each kind that a level of support names, with each kind of metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from samebits.backends.contract import Tiling
from samebits.backends.problem import Geometry, Mask, Problem, Request
from samebits.harness.geometries import GEOMETRIES
from samebits.harness.records import TIERS

# Query tokens of each request, by the name of a batch.
_QUERY_LENS = {"decode": (1, 1, 1, 1), "draft": (4, 4, 4), "extend": (1, 9, 3)}


@dataclass(frozen=True)
class GraphCase:
    """A base problem, apart from dtype and tiling.

    Attributes:
        geometry: shape of the layer.
        mask: which keys a query sees.
        batch: `decode`, one query token for each request; `draft`, as many for each; or `extend`, any.
        tier: smallest tier that holds the case.
        dtypes: those it has in that tier; in the nightly tier it has all.
        all_relations: whether every relation is run on it; otherwise those of `ON_EVERY_CASE`.
    """

    geometry: Geometry
    mask: Mask
    batch: str
    tier: str
    dtypes: tuple[str, ...]
    all_relations: bool = False

    @property
    def case_id(self) -> str:
        """Names the case across runs."""
        return f"{self.geometry.name}-{self.mask}-{self.batch}"

    def problem(self, dtype: str, tiling: Tiling, seed: int) -> Problem:
        """The base problem for an implementation's tiling: contexts that cross a split, a tile, and neither."""
        contexts = (tiling.kv_split + 1, tiling.kv_tile - 1, self.geometry.page_size, 5)
        requests = [
            Request(key, query_len, context, causal=key % 2 == 0)
            for key, (query_len, context) in enumerate(zip(_QUERY_LENS[self.batch], contexts, strict=False), start=1)
        ]
        if self.mask is Mask.CROSS:
            requests = [Request(request.key, request.query_len, 2, encoder_len=request.seq_len) for request in requests]
        if self.mask is not Mask.PER_REQUEST:
            requests = [replace(request, causal=True) for request in requests]
        return Problem(self.geometry, self.mask, dtype, tuple(requests), seed=seed)


_LLAMA, _VISION = GEOMETRIES["llama3-8b"], GEOMETRIES["llama3.2-11b-vision"]
_CASES = (
    GraphCase(_LLAMA, Mask.CAUSAL, "decode", "smoke", ("bf16",), all_relations=True),
    GraphCase(_LLAMA, Mask.CAUSAL, "extend", "smoke", ("bf16",)),
    GraphCase(_LLAMA, Mask.NON_CAUSAL, "draft", "smoke", ("fp32",)),
    GraphCase(_VISION, Mask.CROSS, "decode", "default", ("bf16",)),
    GraphCase(GEOMETRIES["mistral-7b"], Mask.SLIDING_WINDOW, "extend", "default", ("bf16",)),
    GraphCase(_LLAMA, Mask.PER_REQUEST, "draft", "default", ("bf16",)),
    GraphCase(GEOMETRIES["gpt-oss-20b"], Mask.SLIDING_WINDOW, "decode", "nightly", ("bf16",)),
)


def graph_cases(tier: str) -> Iterator[GraphCase]:
    """The cases of a tier.

    Args:
        tier: one of `TIERS`.
    """
    return (case for case in _CASES if TIERS.index(case.tier) <= TIERS.index(tier))
