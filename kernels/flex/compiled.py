"""FlexAttention over rows and slots, compiled for batches of every size.

Compiling costs seconds, so little is compiled in: dtype, head_dim, scale, whether there are a softcap and sinks,
whether there is one key/value head, and of the cache's strides only how they follow from its shape. The rest is data.
The mask is a range of slots per row, the key/value heads are FlexAttention's batch dimension (its number of heads is
always compiled in, and here always 1), and the query heads that share one are rows like others.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx.experimental import _config as symbolic_shapes_config
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, FlexKernelOptions, flex_attention

from samebits.kernels.flex.tiles import TileShape

# FlexAttention compiles in the width of lists that have fewer columns.
MIN_COLUMNS = 2
# Graphs of one process, far more than a matrix needs. Beyond them torch raises; it never runs uncompiled.
_MAX_GRAPHS = 128


@dataclass(frozen=True)
class Pipeline:
    """How a program of a GPU works through its blocks. The processor's kernel has none of it.

    Attributes:
        num_warps: warps of a program.
        num_stages: blocks that are being loaded or computed at a time.
    """

    num_warps: int = 4
    num_stages: int = 2


@contextlib.contextmanager
def compiler_configuration() -> Iterator[None]:
    """One graph serves every size, numbers are compiled in, and running out of graphs is an error."""
    with (
        # Sizes that happen to be equal in the first batch need not be in the next.
        symbolic_shapes_config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        torch._dynamo.config.patch(
            # A number of the tile's shape that were a symbol would not compile inside a mask (Triton, torch 2.11).
            specialize_int=True,
            specialize_float=True,
            recompile_limit=_MAX_GRAPHS,
            fail_on_recompile_limit_hit=True,
        ),
    ):
        yield


@functools.cache
def compiled_attention(
    shape: TileShape, pipeline: Pipeline, *, with_lse: bool
) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """FlexAttention over rows and slots, compiled at its first call, which takes seconds.

    Args:
        shape: of the tiles.
        pipeline: of a GPU's programs.
        with_lse: whether to return the log-sum-exp too. Inductor for the CPU: "only supports inference and `return_lse`
            is not supported yet" (torch 2.11 to 2.13; pytorch/pytorch#190562 is to change that).
    """
    # A cast, as IS_DIVISIBLE and FLOAT32_PRECISION are options of the kernel that torch's type does not list.
    kernel_options = cast(
        FlexKernelOptions,
        {
            "BLOCK_M": shape.rows,
            "BLOCK_N": shape.keys,
            # No other kernel for a batch of few rows, which would split the keys by the number of processors.
            "FORCE_USE_FLEX_ATTENTION": True,
            # Rows are whole tiles, and slots whole blocks.
            "IS_DIVISIBLE": True,
            # Nothing is left for autotuning to choose.
            "num_warps": pipeline.num_warps,
            "num_stages": pipeline.num_stages,
            # Products of float32 are not rounded to TF32, whatever the process allows elsewhere.
            "FLOAT32_PRECISION": "'ieee'",
        },
    )

    # What mask and scores read has one dimension each, and names to be kept. Their sizes are symbols in the C++ of the
    # mask, named by a hash of the parameter's name, and inductor (2.11 to 2.13) corrupts those that begin like its own
    # two for the tile's sizes, which are numbered behind them: where these are `ks4` and `ks5`, or `ks6` and `ks7` with
    # sinks, a size called `s79` comes out as `cur_kvSplitSize9`, undeclared.
    def attend(
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_counts: torch.Tensor,
        key_blocks: torch.Tensor,
        full_counts: torch.Tensor | None,
        full_blocks: torch.Tensor | None,
        starts: torch.Tensor,
        lower: torch.Tensor,
        upper: torch.Tensor,
        positions: torch.Tensor,
        scale: float,
        softcap: torch.Tensor | None,
        sink_logits: torch.Tensor | None,
        head_starts: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        def mask(head: torch.Tensor, unused: torch.Tensor, row: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
            position = positions[starts[row] + slot // shape.keys] + slot % shape.keys
            visible = (position >= lower[row]) & (position < upper[row])
            return visible if sink_logits is None else visible | (slot == 0)

        def change_score(
            score: torch.Tensor,
            head: torch.Tensor,
            unused: torch.Tensor,
            row: torch.Tensor,
            slot: torch.Tensor,
        ) -> torch.Tensor:
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if sink_logits is not None and head_starts is not None:
                score = torch.where(slot == 0, sink_logits[head_starts[head] + row], score)
            # The kernel for the CPU drops a NaN when it looks for the maximum of a row, and takes a row whose maximum
            # is -inf then for one that sees no key (torch 2.11 to 2.13). Of infinity it makes the NaN that is due.
            return torch.where(score.isnan(), torch.inf, score) if on_processor else score

        on_processor = query.device.type == "cpu"
        changes_score = on_processor or softcap is not None or sink_logits is not None
        block_mask = BlockMask(
            seq_lengths=(query.shape[2], keys.shape[2]),
            kv_num_blocks=key_counts,
            kv_indices=key_blocks,
            # Read behind all others, without the mask.
            full_kv_num_blocks=full_counts,
            full_kv_indices=full_blocks,
            q_num_blocks=None,
            q_indices=None,
            full_q_num_blocks=None,
            full_q_indices=None,
            BLOCK_SIZE=(shape.rows, shape.keys),
            mask_mod=mask,
        )
        attention, auxiliary = flex_attention(
            query,
            keys,
            values,
            score_mod=change_score if changes_score else None,
            block_mask=block_mask,
            scale=scale,
            kernel_options=kernel_options,
            return_aux=AuxRequest(lse=with_lse),
        )
        return attention, auxiliary.lse

    return torch.compile(attend, fullgraph=True, dynamic=True)


def put(rows: torch.Tensor, row_of_head: torch.Tensor, queries: torch.Tensor) -> None:
    """Copies queries into their rows.

    Args:
        rows: `[num_rows, head_dim]`.
        row_of_head: int64 `[num_tokens * num_heads]`, the row of each query head of each token.
        queries: `[num_tokens, num_heads, head_dim]`, any strides.
    """
    rows.index_copy_(0, row_of_head, queries.reshape(-1, queries.shape[2]))


def take(output: torch.Tensor, rows: torch.Tensor, row_of_head: torch.Tensor) -> None:
    """Copies rows to where the output has them: the way back of `put`."""
    output.copy_(rows[row_of_head].view(output.shape))


@functools.cache
def compiled_copies() -> tuple[Callable[..., None], Callable[..., None]]:
    """`put` and `take` in one pass each, which on a GPU take half the time of torch's own kernels."""
    return torch.compile(put, dynamic=True), torch.compile(take, dynamic=True)
