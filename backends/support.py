"""What an implementation can compute, as data, and the sentences that say what it cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from samebits.backends.problem import Mask, Problem


def _any_value(value: int) -> bool:
    return True


@dataclass(frozen=True)
class Support:
    """What an implementation can compute.

    Attributes:
        dtypes: names of dtypes.
        masks: mask kinds.
        head_dims: which head dims; any collection of them or a predicate.
        page_sizes: which page sizes; any collection of them or a predicate.
        softcap: whether scores can be capped.
        query_longer_than_kv: whether a causal request may have more queries than keys.
        empty_kv: whether a request may have no keys at all.
        encoder_offset: whether self-attention can start behind a request's encoder tokens.
        lse: whether the log-sum-exp can be returned.
        sinks: whether a learned logit for each head can enter the softmax.
    """

    dtypes: tuple[str, ...] = ("fp32", "bf16")
    masks: tuple[Mask, ...] = (Mask.CAUSAL, Mask.NON_CAUSAL, Mask.SLIDING_WINDOW, Mask.CROSS)
    head_dims: Collection[int] | Callable[[int], bool] = field(default=_any_value)
    page_sizes: Collection[int] | Callable[[int], bool] = field(default=_any_value)
    softcap: bool = True
    query_longer_than_kv: bool = True
    empty_kv: bool = True
    encoder_offset: bool = False
    lse: bool = False
    sinks: bool = False

    def refusals(
        self, *, dtype: str, mask: Mask, head_dim: int, page_size: int, softcap: float | None, sinks: bool
    ) -> list[str]:
        """What of a layer is outside this support, one sentence each; empty when nothing is."""
        found: list[str] = []
        if dtype not in self.dtypes:
            found.append(f"dtype {dtype} is not supported, only {', '.join(self.dtypes)}")
        if mask not in self.masks:
            found.append(f"mask {mask} is not supported, only {', '.join(map(str, self.masks))}")
        if not _accepts(self.head_dims, head_dim):
            found.append(f"head_dim {head_dim} is not supported{_only(self.head_dims)}")
        if not _accepts(self.page_sizes, page_size):
            found.append(f"page_size {page_size} is not supported{_only(self.page_sizes)}")
        if softcap is not None and not self.softcap:
            found.append(f"softcap {softcap:g} is not supported")
        if sinks and not self.sinks:
            found.append("sinks are not supported")
        return found

    def reasons(self, problem: Problem) -> list[str]:
        """Why `problem` is outside this support, one sentence each; empty when it is inside."""
        geometry = problem.geometry
        found = self.refusals(
            dtype=problem.dtype,
            mask=problem.mask,
            head_dim=geometry.head_dim,
            page_size=geometry.page_size,
            softcap=geometry.softcap,
            sinks=geometry.sinks,
        )
        live = [request for request in problem.requests if request.query_len]
        if not self.empty_kv and any(problem.kv_len(request) == 0 for request in live):
            found.append("a request with no keys is not supported")
        blind = any(problem.is_causal(request) and request.context_len < 0 for request in live)
        if not self.query_longer_than_kv and blind:
            found.append("a causal request with more queries than keys is not supported")
        behind_encoder = problem.mask is not Mask.CROSS and any(request.encoder_len for request in live)
        if not self.encoder_offset and behind_encoder:
            found.append("self-attention behind a request's encoder tokens is not supported")
        return found


def _accepts(allowed: Collection[int] | Callable[[int], bool], value: int) -> bool:
    return allowed(value) if callable(allowed) else value in allowed


def _only(allowed: Collection[int] | Callable[[int], bool]) -> str:
    return "" if callable(allowed) else f", only {', '.join(map(str, sorted(allowed)))}"
