"""How a CUDA graph comes to compute a batch, as plain data: its padded sizes, and what came between its replays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GraphMode(StrEnum):
    """How a batch of padded sizes is computed.

    * `EAGER`: planned anew, from tensors that nobody else has, and run. What the others must come to.
    * `PERSISTENT`: planned once, from persistent buffers that held another batch; then the buffers are refilled and
      `run` is called with the plan as it was. A graph's contract, kept without a graph, on any device.
    * `CAPTURED`: the same, with `run` captured in a CUDA graph that is replayed.
    """

    EAGER = "eager"
    PERSISTENT = "persistent"
    CAPTURED = "captured"


class GraphHistory(StrEnum):
    """What a plan or a graph goes through before it computes the batch that counts.

    * `REPLAYED`: it computes another batch; padding rows are looked at.
    * `REPEATED`: it computes the batch three times, the second time on another stream.
    * `OUTGROWN`: a larger batch is planned and run by itself; then memory that nobody holds is filled.
    * `INTERLEAVED`: a second one, of larger sizes, is captured after it, and both take turns.
    * `EVICTED`: memory that nobody holds is filled with NaN, and watched.
    * `AUDITED`: each buffer that it may read is compared with that of a plan made anew.
    * `WATCHED`: its allocations and, on a GPU, its waiting for the host are watched.
    """

    REPLAYED = "replayed"
    REPEATED = "repeated"
    OUTGROWN = "outgrown"
    INTERLEAVED = "interleaved"
    EVICTED = "evicted"
    AUDITED = "audited"
    WATCHED = "watched"


@dataclass(frozen=True)
class GraphUse:
    """A batch computed at padded sizes, as a captured graph would.

    Attributes:
        mode: how.
        num_requests, num_tokens: padded sizes; what the batch's own requests leave is padding.
        max_query_len, max_seq_len: bounds that hold for every batch of these sizes.
        history: what comes before.
    """

    mode: GraphMode
    num_requests: int
    num_tokens: int
    max_query_len: int
    max_seq_len: int
    history: GraphHistory = GraphHistory.REPLAYED

    @property
    def uniform(self) -> bool:
        """Whether every request, padding too, has as many query tokens."""
        return self.num_tokens == self.num_requests * self.max_query_len

    def __str__(self) -> str:
        sizes = f"{self.num_requests} requests, {self.num_tokens} tokens"
        bounds = f"queries to {self.max_query_len}, keys to {self.max_seq_len}"
        return f"{self.mode} at {sizes}, {bounds}, {self.history}"
