"""The log-sum-exp beside FlexAttention, where its kernel returns none.

Inductor's kernel for the CPU keeps the maximum and the sum of every row to itself. They cannot be had from its output
either: a key of known score and a value of 1 would tell a row's log-sum-exp, but in bfloat16 to 8 bits only. So it is
computed a second time, in float64 from the same tiles and blocks, and rounded once.

Every tile meets every block in a matrix product of its own, of one shape, and a row's sum goes on from block to block
in the order of the tokens. A block without a visible key leaves it as it was. So a row's bits depend on its request
alone, as those of the output do.
"""

from __future__ import annotations

import torch

from samebits.kernels.flex.tiles import KeyBlocks, TileShape


def log_sum_exp(
    rows: torch.Tensor,
    keys: torch.Tensor,
    blocks: KeyBlocks,
    shape: TileShape,
    scale: float,
    softcap: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The log-sum-exp of every row, over the keys it sees and its sink. Looks at how many blocks there are on the host.

    Args:
        rows: `[num_kv_heads, 1, num_rows, head_dim]`, queries in tiles.
        keys: `[num_kv_heads, 1, num_slots, head_dim]`.
        blocks: what the tiles read, without full blocks apart.
        shape: of the tiles.
        scale: factor on `q . k`.
        softcap: scalar, cap on the scaled scores; None for none.
        sinks: `[num_kv_heads * num_rows]`, logit of each row's sink; None for none.

    Returns:
        float32 `[num_kv_heads * num_rows]`, natural logarithm; `-inf` where a row sees neither a key nor a sink.
    """
    queries = rows.view(rows.shape[0], -1, shape.rows, rows.shape[3])
    starts, lower, upper = (of_row.view(-1, shape.rows, 1) for of_row in (blocks.starts, blocks.lower, blocks.upper))
    offset = torch.arange(shape.keys, device=rows.device)
    maximum = torch.full(queries.shape[:3], -torch.inf, dtype=torch.float64, device=rows.device)
    total = torch.zeros_like(maximum)
    if sinks is not None:
        maximum.copy_(sinks.view_as(maximum))
        total.fill_(1.0)

    for column in range(int(blocks.masked.counts.max())):
        (tiles,) = torch.nonzero(blocks.masked.counts > column, as_tuple=True)
        block = blocks.masked.indices[tiles, column].to(torch.int64).unsqueeze(1)
        key = keys[:, 0, block * shape.keys + offset].to(torch.float64)
        scores = queries[:, tiles].to(torch.float64) @ key.transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        position = blocks.positions[starts[tiles] + block.unsqueeze(1)] + offset
        hidden = (position < lower[tiles]) | (position >= upper[tiles])
        scores = scores.masked_fill(hidden, -torch.inf)

        before = maximum[:, tiles]
        after = torch.maximum(before, scores.amax(dim=3))
        # Of two infinities there is no difference.
        origin = after.masked_fill(after.isinf(), 0.0)
        total[:, tiles] = total[:, tiles] * torch.exp(before - origin) + torch.exp(scores - origin.unsqueeze(3)).sum(3)
        maximum[:, tiles] = after
    origin = maximum.masked_fill(maximum.isinf(), 0.0)
    return (origin + torch.log(total)).flatten().to(torch.float32)
