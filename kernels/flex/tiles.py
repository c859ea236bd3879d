"""Where the queries of a batch stand in tiles, and which blocks of the page cache each tile reads.

FlexAttention computes a tile of query rows against a list of key blocks. Its arithmetic for a row depends on the row's
place in its tile and on the order of the blocks, so both follow from the request alone:

* A row is one query head of one token. The heads that share a key/value head stand side by side (`position * group_size
  + head`), and a row's place in its tile is that number modulo the tile. A tile holds rows of one request only; rows
  that nobody fills see no key.
* A tile lists the blocks of its own request from the first to the last that any of its rows sees, in the order of the
  tokens and not of the pages. A block is whole inside a page, so that it holds the same tokens wherever the page is.

A block without a visible key leaves a row as it was, bit for bit, so neither do other rows of a tile matter to a row:
nor, then, which tokens were computed in the same step.

Where full blocks are told apart, FlexAttention computes them without the mask, and behind all others. So that no row's
order depends on who else is in its tile, a block is full if every row that could ever stand there sees all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

# Position of a key block that the request does not own: before every slot that a row may see.
_NOBODYS_BLOCK = -(1 << 30)


@dataclass(frozen=True)
class TileShape:
    """Rows of a tile of queries, and keys of a block: powers of two, of at least 16 where a matrix unit takes them."""

    rows: int
    keys: int


@dataclass(frozen=True)
class Sequences:
    """The requests of a batch: int64 `[num_requests]` on the host, each.

    Attributes:
        query_lens: query tokens.
        context_lens: position of the first query token among the request's decoder tokens; may be negative.
        first_slots: slot of the first attended key, counted from the request's own first slot.
        num_keys: keys that are attended to.
    """

    query_lens: torch.Tensor
    context_lens: torch.Tensor
    first_slots: torch.Tensor
    num_keys: torch.Tensor


@dataclass(frozen=True)
class Visibility:
    """Which keys of its request a query token sees.

    Attributes:
        causal: bool `[num_requests]` on the host: no key after the token's own.
        window: keys that it sees at most, its own among them; None for all.
    """

    causal: torch.Tensor
    window: int | None


@dataclass(frozen=True)
class QueryRows:
    """The rows of a batch's query tokens, in the order of tokens and of heads within a group.

    Attributes:
        row: int64 `[num_tokens, group_size]`, among all rows of a key/value head, those that nobody fills included.
        request: int64 `[num_tokens]`, request of each token.
        position: int64 `[num_tokens]`, of the token in its request's decoder sequence.
        num_rows: rows of a key/value head: a multiple of the tile.
    """

    row: torch.Tensor
    request: torch.Tensor
    position: torch.Tensor
    num_rows: int


@dataclass(frozen=True)
class BlockLists:
    """Key blocks of each tile.

    Attributes:
        counts: int32 `[num_tiles]`, how many a tile has.
        indices: int32 `[num_tiles, max(counts)]` or wider, their numbers in the cache, in the order of the tokens that
            they hold; 0 behind the last.
    """

    counts: torch.Tensor
    indices: torch.Tensor

    @property
    def width(self) -> int:
        """Blocks that a list has room for."""
        return int(self.indices.shape[1])

    @property
    def listed(self) -> torch.Tensor:
        """Which entries are blocks: bool, of the shape of `indices`."""
        return torch.arange(self.width) < self.counts.unsqueeze(1)

    def to(self, device: torch.device) -> BlockLists:
        """The same on another device."""
        return BlockLists(self.counts.to(device), self.indices.to(device))

    def as_mask(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as a block mask has them, which has lists for each request and each head, here for one of either."""
        return self.counts.view(1, 1, -1), self.indices.unsqueeze(0).unsqueeze(0)

    def with_width(self, width: int) -> BlockLists:
        """The same with as much room, or more than now."""
        if width == self.width:
            return self
        return replace(self, indices=torch.nn.functional.pad(self.indices, (0, width - self.width)))

    def numbered(self, number: Callable[[torch.Tensor], torch.Tensor]) -> BlockLists:
        """The same blocks under the numbers that a function has for the present ones, which are int64."""
        indices, listed = torch.zeros_like(self.indices), self.listed
        indices[listed] = number(self.indices[listed].to(torch.int64)).to(torch.int32)
        return replace(self, indices=indices)


@dataclass(frozen=True)
class KeyBlocks:
    """What each tile reads and what each of its rows sees.

    Attributes:
        masked: blocks whose keys are looked at one by one.
        full: blocks of which each row of the tile sees every key, to be read behind the others; None where these are
            among `masked`.
        starts: int32 `[num_rows]`, where the row's request begins in `positions`.
        lower, upper: int32 `[num_rows]`, the first slot that a row sees and the one after the last, counted from the
            request's own first slot. A row that sees no key has none in between.
        positions: int32 `[num_requests * num_blocks]`, for each request and block of the cache: the first slot of the
            request that the block holds. Pages may be shared, so this is a matter of each request.
        num_pages: pages of the cache up to the last one that is read.
        num_blocks: blocks of as many pages, or of more where the sequence of all slots must be longer.
    """

    masked: BlockLists
    full: BlockLists | None
    starts: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    positions: torch.Tensor
    num_pages: int
    num_blocks: int

    def to(self, device: torch.device) -> KeyBlocks:
        """The same with its tensors on another device."""
        names = ("starts", "lower", "upper", "positions")
        tensors = {name: getattr(self, name).to(device) for name in names}
        return self.with_lists(lambda lists: lists.to(device), **tensors)

    @property
    def lists(self) -> tuple[BlockLists, ...]:
        """All lists of blocks, in the order in which they are read."""
        return (self.masked,) if self.full is None else (self.masked, self.full)

    def with_lists(self, change: Callable[[BlockLists], BlockLists], **changes: Any) -> KeyBlocks:  # noqa: ANN401
        """The same with other lists, and with other fields."""
        return replace(
            self, masked=change(self.masked), full=None if self.full is None else change(self.full), **changes
        )


def place_queries(sequences: Sequences, group_size: int, shape: TileShape, min_rows: int) -> QueryRows:
    """Gives every query head of every token its row.

    Args:
        sequences: the requests.
        group_size: query heads that share a key/value head.
        shape: of the tiles.
        min_rows: rows to have at least.
    """
    query_lens, context_lens = sequences.query_lens, sequences.context_lens
    first_tiles = torch.div(context_lens * group_size, shape.rows, rounding_mode="floor")
    stop_tiles = -torch.div(-(context_lens + query_lens) * group_size, shape.rows, rounding_mode="floor")
    num_tiles = (stop_tiles - first_tiles) * (query_lens > 0)
    # The last tile of a request comes first: a causal one reads the most keys, and is not to be begun when others end.
    first_rows = (num_tiles.cumsum(0) - num_tiles + stop_tiles - 1) * shape.rows
    request = torch.repeat_interleave(query_lens)
    token_of_request = torch.arange(len(request)) - (query_lens.cumsum(0) - query_lens)[request]
    position = token_of_request + context_lens[request]
    number = position.unsqueeze(1) * group_size + torch.arange(group_size)
    place = number.remainder(shape.rows)
    row = first_rows[request].unsqueeze(1) - (number - place) + place
    filled_rows = int(num_tiles.sum()) * shape.rows
    return QueryRows(row, request, position, num_rows=max(filled_rows, -(-min_rows // shape.rows) * shape.rows))


def find_key_blocks(
    sequences: Sequences,
    rows: QueryRows,
    visibility: Visibility,
    block_table: torch.Tensor,
    page_size: int,
    shape: TileShape,
    min_slots: int,
    *,
    tell_full: bool,
) -> KeyBlocks:
    """Lists the key blocks of every tile, and the slots that every row sees.

    Only the entries of `block_table` that hold attended slots are looked at: the others are stale.

    Args:
        sequences: the requests.
        rows: where their queries stand.
        visibility: which keys a query sees.
        block_table: int `[num_requests, max_pages_per_request]`, on the host.
        page_size: tokens per page; a multiple of `shape.keys`.
        shape: of the tiles.
        min_slots: slots of the cache to span at least.
        tell_full: whether to tell full blocks apart.
    """
    first, stop = _visible_slots(sequences, rows.request, rows.position, visibility)
    num_tiles = rows.num_rows // shape.rows
    tile_of_row = rows.row // shape.rows
    tile_request = torch.zeros(num_tiles, dtype=torch.int64)
    tile_request[tile_of_row] = rows.request.unsqueeze(1).expand_as(rows.row)

    sees = stop > first
    seeing_tiles = tile_of_row[sees].flatten()

    def over_tiles(initial: int, of_token: torch.Tensor, reduction: str) -> torch.Tensor:
        of_row = of_token[sees].repeat_interleave(rows.row.shape[1])
        return torch.full((num_tiles,), initial).scatter_reduce(0, seeing_tiles, of_row, reduction)

    first_block = over_tiles(torch.iinfo(torch.int32).max, first // shape.keys, "amin")
    stop_block = over_tiles(0, -(-stop // shape.keys), "amax")
    counts = (stop_block - first_block).clamp(min=0)
    column = torch.arange(int(counts.max()))
    listed = column < counts.unsqueeze(1)
    owner = tile_request.unsqueeze(1).expand_as(listed)[listed]
    request_block = (first_block.unsqueeze(1) + column)[listed]

    blocks_per_page = page_size // shape.keys
    page = block_table[owner, request_block // blocks_per_page].to(torch.int64)
    cache_block = page * blocks_per_page + request_block % blocks_per_page
    num_pages = int(page.max()) + 1 if len(page) else 0
    num_blocks = max(num_pages, -(-min_slots // page_size)) * blocks_per_page

    full = torch.zeros_like(request_block, dtype=torch.bool)
    if tell_full:
        full_first, full_stop = _full_blocks(sequences, rows, visibility, shape, tile_of_row, tile_request)
        tile = torch.arange(num_tiles).unsqueeze(1).expand_as(listed)[listed]
        full = (request_block >= full_first[tile]) & (request_block < full_stop[tile])

    def lists(chosen: torch.Tensor) -> BlockLists:
        of_tile = torch.zeros(listed.shape, dtype=torch.bool)
        of_tile[listed] = chosen
        found = of_tile.sum(1)
        indices = torch.zeros((num_tiles, int(found.max())), dtype=torch.int32)
        indices[torch.arange(indices.shape[1]) < found.unsqueeze(1)] = cache_block[chosen].to(torch.int32)
        return BlockLists(found.to(torch.int32), indices)

    positions = torch.full((len(sequences.query_lens) * num_blocks,), _NOBODYS_BLOCK, dtype=torch.int32)
    positions[owner * num_blocks + cache_block] = (request_block * shape.keys).to(torch.int32)

    def over_rows(of_token: torch.Tensor) -> torch.Tensor:
        of_row = torch.zeros(rows.num_rows, dtype=torch.int32)
        of_row[rows.row] = of_token.to(torch.int32).unsqueeze(1)
        return of_row

    return KeyBlocks(
        masked=lists(~full),
        full=lists(full) if tell_full else None,
        starts=over_rows(rows.request * num_blocks),
        lower=over_rows(first),
        upper=over_rows(stop),
        positions=positions,
        num_pages=num_pages,
        num_blocks=num_blocks,
    )


def with_columns(blocks: KeyBlocks, num_columns: int, num_pages: int) -> KeyBlocks:
    """The same blocks in lists of a given width, of a cache of a given number of pages.

    Args:
        blocks: of a batch.
        num_columns: blocks that a list has room for.
        num_pages: pages of the cache.

    Raises:
        ValueError: a tile reads more blocks, or a page that is none of those.
    """
    listed = max(lists.width for lists in blocks.lists)
    if listed > num_columns or blocks.num_pages > num_pages:
        raise ValueError(
            f"the batch reads {listed} blocks a tile and {blocks.num_pages} pages; the plan has room for {num_columns} "
            f"and {num_pages}"
        )
    return blocks.with_lists(lambda lists: lists.with_width(num_columns), num_pages=num_pages)


def move_pages_apart(blocks: KeyBlocks, blocks_per_page: int, distance: int) -> KeyBlocks:
    """The same blocks in a cache whose pages begin further apart than they are long.

    Args:
        blocks: of a cache whose pages follow each other.
        blocks_per_page: blocks that a page holds.
        distance: blocks from the beginning of one page to that of the next. What is between pages is nobody's.
    """
    pages = blocks.num_blocks // blocks_per_page
    num_blocks = (pages - 1) * distance + blocks_per_page
    positions = blocks.positions.view(-1, pages, blocks_per_page)
    apart = torch.nn.functional.pad(positions, (0, distance - blocks_per_page), value=_NOBODYS_BLOCK)

    def moved(lists: BlockLists) -> BlockLists:
        indices = lists.indices
        return replace(lists, indices=indices // blocks_per_page * distance + indices % blocks_per_page)

    return blocks.with_lists(
        moved,
        starts=blocks.starts // blocks.num_blocks * num_blocks,
        positions=apart.flatten(1)[:, :num_blocks].flatten(),
        num_blocks=num_blocks,
    )


def lead_with_sink(blocks: KeyBlocks, min_blocks: int) -> tuple[KeyBlocks, torch.Tensor]:
    """The same blocks behind a block 0 that no request owns and that every tile reads first.

    Args:
        blocks: of the cache.
        min_blocks: blocks to have at least.

    Returns:
        The blocks under their new numbers, and int64 `[num_read]`: the number in the cache of block 1, 2 and so on,
        each of which occurs once.
    """
    read = torch.unique(torch.cat([lists.indices[lists.listed] for lists in blocks.lists]).to(torch.int64))
    behind = blocks.with_lists(lambda lists: lists.numbered(lambda block: torch.searchsorted(read, block) + 1))
    num_blocks = max(len(read) + 1, min_blocks)
    positions = blocks.positions.view(-1, blocks.num_blocks)[:, read]
    return replace(
        behind,
        masked=BlockLists(behind.masked.counts + 1, torch.nn.functional.pad(behind.masked.indices, (1, 0))),
        starts=blocks.starts // blocks.num_blocks * num_blocks,
        positions=torch.nn.functional.pad(positions, (1, num_blocks - len(read) - 1), value=_NOBODYS_BLOCK).flatten(),
        num_blocks=num_blocks,
    ), read


def _full_blocks(
    sequences: Sequences,
    rows: QueryRows,
    visibility: Visibility,
    shape: TileShape,
    tile_of_row: torch.Tensor,
    tile_request: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first full block of each tile and the one after the last, counted from the request's own first slot.

    They follow from the place of the tile among all that the request could fill, and not from the rows that it has in
    this batch: `int64 [num_tiles]` each. In a tile without rows they say nothing.
    """
    group_size = rows.row.shape[1]
    number = rows.position.unsqueeze(1) * group_size + torch.arange(group_size)
    tile_start = torch.zeros(len(tile_request), dtype=torch.int64)
    tile_start[tile_of_row] = number - rows.row % shape.rows
    earliest, latest = (
        torch.div(of_row, group_size, rounding_mode="floor") for of_row in (tile_start, tile_start + shape.rows - 1)
    )
    _, stop = _visible_slots(sequences, tile_request, earliest, visibility)
    first, _ = _visible_slots(sequences, tile_request, latest, visibility)
    return -(-first // shape.keys), stop // shape.keys


def _visible_slots(
    sequences: Sequences, request: torch.Tensor, position: torch.Tensor, visibility: Visibility
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first slot that a token of a request sees and the one after the last: int64, of the shape of `position`."""
    origin = sequences.first_slots[request]
    first, stop = origin, origin + sequences.num_keys[request]
    causal = visibility.causal[request]
    stop = torch.where(causal, torch.minimum(stop, origin + position + 1), stop)
    if visibility.window is not None:
        first = origin + (position + 1 - visibility.window).clamp(min=0)
    # A query before the first key sees the slots from `first` to `first`: none.
    return first, torch.maximum(first, stop)
