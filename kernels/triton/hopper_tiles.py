"""What the warps of the kernel for Hopper share: constants, and tiles of rows, told in a few slots of shared memory.

Constants are read through this module: Triton compares those that a kernel has as globals at every launch.
"""

# ruff: noqa: ANN001, ANN201 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LN_2 = gl.constexpr(0.6931471805599453)
LOG2_E = gl.constexpr(1.4426950408889634)
LOWEST = gl.constexpr(-3.4028234663852886e38)
# Values that are not seen are taken out of a tile in pieces of so many keys.
PIECE = gl.constexpr(16)
SEARCH_WIDTH = gl.constexpr(128)
MANY_ROWS = gl.constexpr(1 << 30)
# Rows that a warpgroup computes: those of one instruction.
ROWS = gl.constexpr(64)
ELEMENT_BYTES = gl.constexpr(2)
# Columns that lie side by side in shared memory, 128 bytes of them, where there are as many.
SPAN = gl.constexpr(64)
# Columns of a part of a head at most.
PART = gl.constexpr(128)
# Tiles of rows that are told ahead, and the numbers by which each is told.
SLOTS = gl.constexpr(2)
FIRST_ROW = gl.constexpr(0)
TILE_TOKEN = gl.constexpr(1)
QUERY_LEN = gl.constexpr(2)
FIRST_POSITION = gl.constexpr(3)
KV_HEAD = gl.constexpr(4)
BEGIN_KEY = gl.constexpr(5)
END_KEY = gl.constexpr(6)
BEGIN_TILE = gl.constexpr(7)
END_TILE = gl.constexpr(8)
NUMBERS = gl.constexpr(9)


@gluon.jit
def tell(numbers, slot, NUMBER: gl.constexpr, value):
    """Writes a number of the tile in a slot."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    numbers.index(slot * NUMBERS + NUMBER).store(gl.full([1], 0, gl.int32, LAYOUT) + value)


@gluon.jit
def told_number(numbers, slot, NUMBER: gl.constexpr):
    """Reads a number of the tile in a slot."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.sum(numbers.index(slot * NUMBERS + NUMBER).load(LAYOUT), 0)
