"""Controls of the dtype suite: one correct kernel, and the ways in which its arithmetic is made worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from samebits.backends.contract import AttentionConfig, Claims, Tiling
from samebits.backends.problem import Mask
from samebits.backends.support import Support
from samebits.harness.controls.kernels import AttentionControl, Call, finite
from samebits.harness.controls.losses import flushed_early, tf32, through
from samebits.harness.matrix import Flaw

_TILE = 16
_TILES_PER_SPLIT = 8


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _hidden_where_nan(scores: torch.Tensor) -> torch.Tensor:
    return torch.where(scores.isnan(), -torch.inf, scores)


def _finite_scores(scores: torch.Tensor) -> torch.Tensor:
    return scores.clamp(-3.0e38, 3.0e38)


def _nan_of_the_tile(scores: torch.Tensor) -> torch.Tensor:
    return torch.where(scores.isnan().any(dim=1, keepdim=True), torch.nan, scores)


def _first_of_equals(weights: torch.Tensor) -> torch.Tensor:
    earlier = (weights.unsqueeze(3) == weights.unsqueeze(2)).tril(-1).any(dim=3)
    return weights.masked_fill(earlier, 0.0)


@dataclass(frozen=True)
class Arithmetic:
    """Where a kernel rounds, and to what; by default as a correct one does.

    Attributes:
        factors: applied to the operands of both products.
        accumulator: applied to the output accumulator after each tile.
        partial: applied to the output of a split before it is merged.
        values: applied to the values.
        scores: applied to the scores before the softmax.
        weights: applied to the unnormalised weights, beyond their rounding to the dtype.
        total: applied to the denominator after each tile and each merge.
        shifted: whether the maximum is subtracted from the scores before the exponential.
        hidden_score: score of keys that a row does not see.
        output: applied before the rounding to the dtype.
        base: of the exponential.
        lse_scale: applied to the log-sum-exp.
    """

    factors: Callable[[torch.Tensor], torch.Tensor] = _same
    accumulator: Callable[[torch.Tensor], torch.Tensor] = _same
    partial: Callable[[torch.Tensor], torch.Tensor] = _same
    values: Callable[[torch.Tensor], torch.Tensor] = _same
    scores: Callable[[torch.Tensor], torch.Tensor] = _same
    weights: Callable[[torch.Tensor], torch.Tensor] = _same
    total: Callable[[torch.Tensor], torch.Tensor] = _same
    shifted: bool = True
    hidden_score: float = -math.inf
    output: Callable[[torch.Tensor], torch.Tensor] = _same
    base: float = math.e
    lse_scale: float = 1.0


@dataclass(frozen=True)
class Degradation(Flaw):
    """A way to lose precision, which the error budget must show.

    Attributes:
        dtype: that must show it.
        arithmetic: the degraded arithmetic.
    """

    dtype: str
    arithmetic: Arithmetic


DEGRADATIONS: tuple[Degradation, ...] = (
    Degradation("tf32", "normal", "products of TF32 where fp32 was asked for", "fp32", Arithmetic(factors=tf32)),
    Degradation(
        "bf16_accumulator",
        "offset_values",
        "the output is accumulated in bf16",
        "bf16",
        Arithmetic(accumulator=through(torch.bfloat16)),
    ),
    Degradation(
        "bf16_partials",
        "offset_values",
        "the outputs of splits are rounded to bf16 before they are merged",
        "bf16",
        Arithmetic(partial=through(torch.bfloat16)),
    ),
    Degradation(
        "bf16_scores",
        "large_scores",
        "scores are rounded to bf16 before the softmax",
        "bf16",
        Arithmetic(scores=through(torch.bfloat16)),
    ),
    Degradation(
        "no_maximum",
        "huge_scores",
        "exponentials are taken of scores without their maximum",
        "fp32",
        Arithmetic(shifted=False),
    ),
    Degradation(
        "no_maximum_lse",
        "lse_huge_scores",
        "the log-sum-exp is that of scores without their maximum",
        "bf16",
        Arithmetic(shifted=False),
    ),
    Degradation(
        "hidden_score_0",
        "negative_scores",
        "keys that a row does not see get a score of 0 rather than -inf",
        "bf16",
        Arithmetic(hidden_score=0.0),
    ),
    Degradation(
        "first_of_equals",
        "ties",
        "of equal weights in a tile, the first one takes part",
        "bf16",
        Arithmetic(weights=_first_of_equals),
    ),
    Degradation(
        "flushed_early",
        "denormal_values",
        "values below 2^16 times the smallest normal number count as 0",
        "fp32",
        Arithmetic(values=flushed_early),
    ),
    Degradation(
        "e4m3_weights",
        "large_values",
        "P is rounded to e4m3",
        "bf16",
        Arithmetic(weights=through(torch.float8_e4m3fn)),
    ),
    Degradation(
        "fp16_output",
        "huge_values",
        "the output passes through fp16",
        "bf16",
        Arithmetic(output=through(torch.float16)),
    ),
    Degradation(
        "base_2_lse", "lse_normal", "the log-sum-exp is in base 2", "fp32", Arithmetic(lse_scale=1 / math.log(2.0))
    ),
    Degradation(
        "bf16_scores_lse",
        "lse_large_scores",
        "the log-sum-exp is that of scores rounded to bf16",
        "bf16",
        Arithmetic(scores=through(torch.bfloat16)),
    ),
    Degradation(
        "hidden_score_0_lse",
        "lse_negative_scores",
        "the log-sum-exp counts keys that a row does not see",
        "bf16",
        Arithmetic(hidden_score=0.0),
    ),
    Degradation(
        "bf16_denominator_lse",
        "lse_ties",
        "the log-sum-exp is that of a denominator in bf16",
        "bf16",
        Arithmetic(total=through(torch.bfloat16)),
    ),
    Degradation(
        "nan_swallowed",
        "seen_nan",
        "results that are no numbers become 0",
        "bf16",
        Arithmetic(output=torch.nan_to_num),
    ),
    Degradation(
        "nan_score_swallowed",
        "lse_seen_nan",
        "scores that are no numbers become 0",
        "bf16",
        Arithmetic(scores=lambda scores: torch.where(scores.isnan(), 0.0, scores)),
    ),
    Degradation(
        "nan_maximum_swallowed",
        "all_nan",
        "a row whose scores are no numbers counts as one that sees no key",
        "bf16",
        Arithmetic(scores=_hidden_where_nan, output=torch.nan_to_num),
    ),
    Degradation(
        "nan_maximum_swallowed_lse",
        "lse_all_nan",
        "the log-sum-exp of scores that are no numbers is that of no key",
        "bf16",
        Arithmetic(scores=_hidden_where_nan),
    ),
    Degradation(
        "infinity_clamped",
        "seen_inf",
        "values are clamped to what is finite",
        "bf16",
        Arithmetic(values=lambda values: values.clamp(max=3.0e38)),
    ),
    Degradation(
        "infinite_score_clamped_lse",
        "lse_seen_inf",
        "the log-sum-exp is that of scores clamped to what is finite",
        "bf16",
        Arithmetic(scores=_finite_scores),
    ),
    Degradation(
        "nan_of_the_tile",
        "nan_query",
        "a score that is NaN makes those of its tile NaN",
        "fp32",
        Arithmetic(scores=_nan_of_the_tile),
    ),
    Degradation("missing_log2e", "normal", "exp2 takes scores without log2(e)", "bf16", Arithmetic(base=2.0)),
)


class TiledKernel(AttentionControl):
    """Online softmax in float32 over tiles and splits, as kernels do it, with its roundings open to damage."""

    claims = Claims(source="plain tiles of 16 keys, splits of 128")
    support = Support(
        dtypes=("fp32", "bf16"), masks=(Mask.CAUSAL,), softcap=False, query_longer_than_kv=False, lse=True
    )
    tiling = Tiling(query_tile=16, kv_tile=_TILE, kv_split=_TILE * _TILES_PER_SPLIT)

    def __init__(self, flaw: Degradation | None = None) -> None:
        """Makes the correct kernel, or one with degraded arithmetic."""
        self.flaw = flaw
        self.name = flaw.name if flaw else "correct_arithmetic"
        self._arithmetic = flaw.arithmetic if flaw else Arithmetic()

    @property
    def parent(self) -> TiledKernel:
        """The correct kernel."""
        return TiledKernel()

    def compute(self, call: Call) -> None:
        """Computes one request after another."""
        config, metadata, every_row = call.plan.config, call.plan.metadata, call.plan.query_rows
        for pages, kv_len, rows in zip(metadata.block_table, metadata.seq_lens.tolist(), every_row, strict=True):
            token = torch.arange(kv_len)
            page = pages[token // config.page_size].long()
            key, value = (
                cache[page, token % config.page_size].transpose(0, 1).repeat_interleave(config.group_size, dim=0)
                for cache in (call.key_cache, call.value_cache)
            )
            result, call.lse[:, rows] = self._attend(call.query[rows].transpose(0, 1), key, value, config)
            call.output[rows] = self._arithmetic.output(result).to(config.dtype).transpose(0, 1)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, config: AttentionConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits of tiles, merged in order: `[num_heads, query_len, head_dim]` and `[num_heads, query_len]`."""
        arithmetic = self._arithmetic
        query_len, kv_len = query.shape[1], key.shape[1]
        factor = math.log(arithmetic.base)
        position = torch.arange(query_len).unsqueeze(1) + kv_len - query_len
        maximum = torch.full((query.shape[0], query_len), -torch.inf)
        total = torch.zeros_like(maximum)
        result = torch.zeros(query.shape)
        for first in range(0, kv_len, self.tiling.kv_split):
            split = slice(first, min(first + self.tiling.kv_split, kv_len))
            split_maximum, split_total = torch.full_like(maximum, -torch.inf), torch.zeros_like(total)
            split_result = torch.zeros_like(result)
            for start in range(split.start, split.stop, _TILE):
                tile = slice(start, min(start + _TILE, split.stop))
                scores = arithmetic.factors(query.float()) @ arithmetic.factors(key[:, tile].float()).transpose(1, 2)
                hidden = torch.arange(tile.start, tile.stop) > position
                scores = (scores * (config.scale * factor)).masked_fill(hidden, arithmetic.hidden_score)
                scores = arithmetic.scores(scores)
                new = torch.maximum(split_maximum, scores.amax(dim=2))
                if not arithmetic.shifted:
                    new = torch.zeros_like(new)
                weights = torch.exp(scores - finite(new).unsqueeze(2))
                rescale = torch.exp(split_maximum - finite(new))
                split_total = arithmetic.total(split_total * rescale + weights.sum(dim=2))
                rounded = arithmetic.factors(arithmetic.weights(weights.to(config.dtype).float()))
                product = rounded @ arithmetic.factors(arithmetic.values(value[:, tile].float()))
                split_result = arithmetic.accumulator(split_result * rescale.unsqueeze(2) + product)
                split_maximum = new
            merged = torch.maximum(maximum, split_maximum)
            old, added = (torch.exp(part - finite(merged)) for part in (maximum, split_maximum))
            total = arithmetic.total(total * old + split_total * added)
            result = result * old.unsqueeze(2) + arithmetic.partial(split_result) * added.unsqueeze(2)
            maximum = merged
        lse = (finite(maximum) + total.log()) / factor * arithmetic.lse_scale
        return result / total.unsqueeze(2), lse
