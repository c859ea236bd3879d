"""Where a batch of FlexAttention stands in tiles and in memory, which needs no compiling."""

from __future__ import annotations

import pytest
import torch

from samebits.kernels.flex.cache import as_sequence, page_distance
from samebits.kernels.flex.tiles import (
    BlockLists,
    KeyBlocks,
    QueryRows,
    Sequences,
    TileShape,
    Visibility,
    find_key_blocks,
    lead_with_sink,
    move_pages_apart,
    place_queries,
)


def test_a_cache_is_read_in_place() -> None:
    """Among others one that is stored head by head, and one that is a slice of a wider one."""
    storage = torch.arange(5 * 2 * 3 * 16 * 8.0).view(5, 2, 3, 16, 8)
    for cache in (
        storage[:, 0].transpose(1, 2),
        storage.view(5, 16, 2, 3, 8)[:, :, 1],
        storage.view(5, 16, 3, 16)[..., 8:],
        storage.view(5, 16, 6, 8)[:, :, :3],
    ):
        distance = page_distance(cache, cache, keys_per_block=16)
        sequence = as_sequence(cache, num_slots=4 * distance + 16)
        assert sequence.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr(), "the cache was copied"
        for page in range(5):
            slots = sequence[:, 0, page * distance : page * distance + 16]
            assert torch.equal(slots.transpose(0, 1), cache[page]), (
                f"page {page} of a cache of strides {cache.stride()}"
            )


def told(lists: BlockLists) -> list[list[int]]:
    """The blocks of each tile."""
    return [indices[:count].tolist() for indices, count in zip(lists.indices, lists.counts.tolist(), strict=True)]


SHAPE = TileShape(rows=16, keys=16)
PAGE_SIZE = 32


def laid_out(
    *lengths: tuple[int, int, int, int],
    group_size: int = 3,
    window: int | None = None,
    causal: bool = True,
    tell_full: bool = False,
) -> tuple[QueryRows, KeyBlocks]:
    """Lays out requests of (query_len, context_len, first_slot, num_keys); request b has pages 10 b + 9, 10 b + 8..."""
    sequences = Sequences(*(torch.tensor(column) for column in zip(*lengths, strict=True)))
    rows = place_queries(sequences, group_size, SHAPE, min_rows=64)
    table = torch.arange(len(lengths)).unsqueeze(1) * 10 + 9 - torch.arange(10)
    visibility = Visibility(causal=torch.full((len(lengths),), causal), window=window)
    return rows, find_key_blocks(
        sequences, rows, visibility, table, PAGE_SIZE, SHAPE, min_slots=64, tell_full=tell_full
    )


def test_a_row_stands_where_its_position_puts_it() -> None:
    rows, _ = laid_out((5, 0, 0, 5), (0, 9, 0, 9), (20, 7, 0, 27), (3, -2, 0, 1))
    expected = (rows.position.unsqueeze(1) * 3 + torch.arange(3)) % SHAPE.rows
    assert (rows.row % SHAPE.rows).tolist() == expected.tolist()
    assert len(set(rows.row.flatten().tolist())) == rows.row.numel(), "two queries have the same row"
    assert int(rows.row.max()) < rows.num_rows


def test_a_tile_holds_rows_of_one_request() -> None:
    rows, _ = laid_out((5, 0, 0, 5), (1, 9, 0, 10), (20, 7, 0, 27), (3, -2, 0, 1))
    owners: dict[int, set[int]] = {}
    for tiles, request in zip((rows.row // SHAPE.rows).tolist(), rows.request.tolist(), strict=True):
        for tile in tiles:
            owners.setdefault(tile, set()).add(request)
    assert all(len(requests) == 1 for requests in owners.values()), f"tiles and their requests: {owners}"


def test_the_tile_that_reads_most_is_begun_first() -> None:
    _, blocks = laid_out((40, 0, 0, 40), (20, 10, 0, 30))
    first, second = [3, 3, 2, 2, 2, 1, 1, 1], [2, 2, 2, 1, 1]
    assert blocks.masked.counts.tolist() == first + second, "not the last tile of a request first"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("group_size", [1, 3, 7])
def test_a_full_block_is_seen_by_all_rows_that_its_tile_could_hold(
    causal: bool, window: int | None, group_size: int
) -> None:
    layout = {"causal": causal, "window": window, "group_size": group_size}
    rows, blocks = laid_out((90, 10, 20, 100), (9, 0, 0, 9), tell_full=True, **layout)  # type: ignore[arg-type]
    _, together = laid_out((90, 10, 20, 100), (9, 0, 0, 9), **layout)  # type: ignore[arg-type]
    assert blocks.full is not None
    assert window == 5 or int(blocks.full.counts.sum()), "no block is full"
    full = told(blocks.full)
    for tile, (masked, listed) in enumerate(zip(told(blocks.masked), told(together.masked), strict=True)):
        assert masked == [block for block in listed if block not in full[tile]], "a block is lost, or in another place"
        assert full[tile] == [block for block in listed if block in full[tile]]
    for row in rows.row.flatten().tolist():
        for block in full[row // SHAPE.rows]:
            first = int(blocks.positions[blocks.starts[row] + block])
            assert blocks.lower[row] <= first, f"row {row} does not see the beginning of block {block}"
            assert first + SHAPE.keys <= blocks.upper[row], f"row {row} does not see the end of block {block}"
    # A decode of the last token, and a later chunk.
    for query_len in (1, 37):
        fewer, alone = laid_out((query_len, 100 - query_len, 20, 100), (9, 0, 0, 9), tell_full=True, **layout)  # type: ignore[arg-type]
        assert alone.full is not None
        tiles, of_all = (int(each.row[token, 0]) // SHAPE.rows for each, token in ((fewer, query_len - 1), (rows, 89)))
        assert told(alone.full)[tiles] == full[of_all], "which blocks are full depends on who else is in the tile"


def test_blocks_are_listed_in_the_order_of_the_tokens() -> None:
    _, blocks = laid_out((1, 69, 0, 70), group_size=1)
    listed = blocks.masked.indices[0, : blocks.masked.counts[0]].tolist()
    assert listed == [18, 19, 16, 17, 14], "pages 9, 8 and 7 hold two blocks each, of which the last is not needed"
    assert blocks.positions[listed].tolist() == [0, 16, 32, 48, 64]


def test_a_window_lists_no_block_before_it() -> None:
    _, blocks = laid_out((1, 69, 5, 70), group_size=1, window=20)
    row = 69 % SHAPE.rows
    slots = int(blocks.lower[row]), int(blocks.upper[row])
    assert slots == (55, 75), "20 slots, the last of them that of position 69 behind 5 encoder tokens"
    assert blocks.masked.indices[0, : blocks.masked.counts[0]].tolist() == [17, 14], "slots 48 to 63 and 64 to 79"


def test_rows_that_nobody_fills_see_nothing() -> None:
    rows, blocks = laid_out((5, 0, 0, 5), (3, -3, 0, 0))
    empty = torch.ones(rows.num_rows, dtype=torch.bool)
    empty[rows.row[:5]] = False
    assert (blocks.lower[empty] >= blocks.upper[empty]).all(), "a row that nobody fills sees keys"
    assert blocks.masked.counts.tolist() == [1, 0, 0, 0], "only the first request's tile has keys to read"


def test_the_blocks_of_pages_that_are_apart_lie_at_their_pages() -> None:
    _, blocks = laid_out((1, 69, 0, 70), (1, 3, 0, 4), group_size=1)
    apart = move_pages_apart(blocks, blocks_per_page=2, distance=6)
    assert apart.masked.indices[0, : apart.masked.counts[0]].tolist() == [54, 55, 48, 49, 42], (
        "pages 9, 8 and 7 of 6 blocks each"
    )
    first, second = (int(apart.starts[row]) for row in (69 % SHAPE.rows, SHAPE.rows + 3))
    assert [int(apart.positions[first + block]) for block in (54, 55, 48, 49, 42)] == [0, 16, 32, 48, 64]
    assert int(apart.positions[second + 19 // 2 * 6]) < 0, "the first request's page belongs to the second too"
    assert int(apart.positions[second + 114]) == 0, "the second request's first block is the first of page 19"
    between = [first + block for block in range(apart.num_blocks) if block % 6 > 1]
    assert (apart.positions[between] < 0).all(), "what is between two pages belongs to a request"


def test_a_sink_has_a_block_that_every_tile_reads_and_no_request_owns() -> None:
    _, blocks = laid_out((1, 69, 0, 70), (1, 3, 0, 4), (1, 9, 0, 0), group_size=1)
    led, read = lead_with_sink(blocks, min_blocks=4)
    assert sorted(read.tolist()) == [14, 16, 17, 18, 19, 38], "not each block of the cache that is read, once"
    assert led.masked.indices[:, 0].eq(0).all(), "a tile does not begin with the sink's block"
    assert read[led.masked.indices[0, 1 : led.masked.counts[0]] - 1].tolist() == [18, 19, 16, 17, 14], (
        "not in the order of the tokens"
    )
    assert led.masked.counts.tolist() == [6, 2, 1, 1]
    assert (led.positions.view(3, -1)[:, 0] < 0).all(), "a request owns the sink's block"
    start = int(led.starts[69 % SHAPE.rows])
    assert [int(led.positions[start + block]) for block in led.masked.indices[0, 1:]] == [0, 16, 32, 48, 64]


def test_a_sink_stands_in_front_of_what_is_looked_at_key_by_key() -> None:
    _, blocks = laid_out((1, 69, 0, 70), (1, 40, 0, 41), group_size=1, tell_full=True)
    led, read = lead_with_sink(blocks, min_blocks=4)
    assert led.full is not None
    assert [[int(read[block - 1]) for block in of_tile] for of_tile in told(led.full)[:2]] == [
        [18, 19, 16, 17],
        [38, 39],
    ]
    assert [of_tile[0] for of_tile in told(led.masked)] == [0, 0, 0, 0]
    assert [[int(read[block - 1]) for block in of_tile[1:]] for of_tile in told(led.masked)[:2]] == [[14], [36]]
