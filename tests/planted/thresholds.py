"""A correct kernel whose planner chooses the split length by what it must not, registered as any third party's backend.

Each follows a heuristic of a public kernel: it is right for a small batch, and for a large one too, and only their bits
differ.

The default tier catches all of them, and so does the nightly tier, which has all of its cells. The smoke tier catches
`pages-in-order` alone: the batches whose sizes and lengths cross the other thresholds are not among its cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from samebits.backends.contract import AttentionConfig, AttentionMetadata
from samebits.backends.cpu import BundledAttention
from samebits.kernels.cpu.attention import Schedule

# Whether a batch takes the shorter splits.
Choice = Callable[[AttentionConfig, AttentionMetadata], bool]


def real_tokens(metadata: AttentionMetadata) -> int:
    """Query tokens without padding."""
    return int(metadata.query_start_loc[-1])


def pages_in_order(config: AttentionConfig, metadata: AttentionMetadata) -> bool:
    """Whether the first request's pages follow one another."""
    slots = int((metadata.kv_starts(config.mask) + metadata.kv_lens(config.mask))[0])
    pages = metadata.block_table[0, : -(-slots // config.page_size)]
    return bool((pages.diff() == 1).all())


CHOICES: Mapping[str, Choice] = {
    "few-programs": lambda config, metadata: metadata.num_requests * config.num_kv_heads <= 128,
    "size-class": lambda config, metadata: 17 <= metadata.num_requests <= 32,
    "many-tokens": lambda config, metadata: real_tokens(metadata) > 2048,
    "longest-query": lambda config, metadata: metadata.max_query_len >= 512,
    "longest-context": lambda config, metadata: int(metadata.kv_lens(config.mask).max()) >= 4096,
    "sum-of-contexts": lambda config, metadata: int(metadata.kv_lens(config.mask).sum()) > 4096,
    "pages-in-order": pages_in_order,
}


class Chooses(BundledAttention):
    """The C++ kernel with splits half as long where a choice says so."""

    def __init__(self, name: str, choice: Choice) -> None:
        super().__init__()
        self.name = name
        self._choice = choice
        self._shorter = BundledAttention(64)

    def plan(self, config: AttentionConfig, metadata: AttentionMetadata) -> Schedule:
        """Plans with the splits of the choice."""
        if self._choice(config, metadata):
            return self._shorter.plan(config, metadata)
        return super().plan(config, metadata)


def implementations() -> list[BundledAttention]:
    """The mutants, beside which `CPU/bundled` is the correct parent."""
    return [Chooses(name, choice) for name, choice in CHOICES.items()]
