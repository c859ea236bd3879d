"""The columns of a head for the kernel for Hopper: in parts that are powers of two, as the sides of all its tiles are.

Heads of 96 are a part of 64 and one of 32, so that no column is padding: a part more costs a few instructions, and 32
columns of zeros would take a quarter of the time. What has the columns of a head is a tuple of its parts. In shared
memory the columns of a part lie in spans: so many side by side, and the next ones behind all rows of a tile.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- Triton gives the arguments of a kernel their types
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disable-error-code=assignment

from samebits.kernels.triton import hopper_tiles as tiles
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def widths(head_dim):
    """Columns of each part: a power of two up to `PART`, and the rest if there is one."""
    wide = min(1 << (head_dim.bit_length() - 1), tiles.PART.value)
    return (wide,) if wide == head_dim else (wide, head_dim - wide)


@gluon.constexpr_function
def span_of(width):
    """Columns of a span of a part."""
    return min(width, tiles.SPAN.value)


@gluon.constexpr_function
def swizzled(width):
    """Layout of a part in shared memory, as the tensor memory accelerator writes it and `wgmma` reads it."""
    return gl.NVMMASharedLayout(span_of(width) * tiles.ELEMENT_BYTES.value, 8 * tiles.ELEMENT_BYTES.value, 2)


@gluon.constexpr_function
def copied(width):
    """Layout of rows of a part that the threads of a warpgroup copy by 16 bytes each."""
    columns = 16 // tiles.ELEMENT_BYTES.value
    return gl.BlockedLayout([1, columns], [32 * columns // width, width // columns], [4, 1], [1, 0])


@gluon.constexpr_function
def accumulator(width):
    """Layout of 64 rows of results that a warpgroup adds up in its registers."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])


@gluon.jit
def allocate(dtype: gl.constexpr, COUNT: gl.constexpr, ROWS: gl.constexpr, HEAD_DIM: gl.constexpr):
    """Shared memory of so many matrices `[ROWS, HEAD_DIM]`."""
    WIDTHS: gl.constexpr = widths(HEAD_DIM)
    buffers = ()
    for part in gl.static_range(len(WIDTHS)):
        buffers += (_allocate_part(dtype, COUNT, ROWS, WIDTHS[part]),)
    return buffers


@gluon.jit
def _allocate_part(dtype: gl.constexpr, COUNT: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    SPAN: gl.constexpr = span_of(COLUMNS)
    return gl.allocate_shared_memory(dtype, [COUNT, ROWS * COLUMNS // SPAN, SPAN], swizzled(COLUMNS))


@gluon.jit
def matrices(buffers, index, ROWS: gl.constexpr, HEAD_DIM: gl.constexpr):
    """One of the matrices of `allocate`, each part as `[ROWS, its columns]`."""
    WIDTHS: gl.constexpr = widths(HEAD_DIM)
    parts = ()
    for part in gl.static_range(len(WIDTHS)):
        buffer = buffers[part].index(index)
        parts += (buffer._reinterpret(buffer.dtype, [ROWS, WIDTHS[part]], swizzled(WIDTHS[part])),)
    return parts


@gluon.jit
def zeros(HEAD_DIM: gl.constexpr):
    """64 rows of zeros, float32."""
    WIDTHS: gl.constexpr = widths(HEAD_DIM)
    output = ()
    for part in gl.static_range(len(WIDTHS)):
        output += (gl.full([tiles.ROWS, WIDTHS[part]], 0.0, gl.float32, accumulator(WIDTHS[part])),)
    return output


@gluon.jit
def addresses(memory, output, part: gl.constexpr, HEAD_DIM: gl.constexpr):
    """Where a part of an output is in memory of `[64, HEAD_DIM]`: each thread reads what it wrote itself."""
    LAYOUT: gl.constexpr = output[part].type.layout
    row = gl.arange(0, tiles.ROWS, gl.SliceLayout(1, LAYOUT))[:, None]
    column = part * output[0].shape[1] + gl.arange(0, output[part].shape[1], gl.SliceLayout(0, LAYOUT))[None, :]
    return memory + row * HEAD_DIM + column


@gluon.jit
def as_factors(values, output):
    """Values of rows, `[64]`, as `[64, 1]` in the layout of a part of an output."""
    return gl.convert_layout(values, gl.SliceLayout(1, output.type.layout))[:, None]


@gluon.jit
def scaled(output, factor):
    """An output, each row times its factor."""
    result = ()
    for part in gl.static_range(len(output)):
        result += (output[part] * as_factors(factor, output[part]),)
    return result


@gluon.jit
def without_negative_zero(output):
    """An output with +0.0 in place of -0.0."""
    result = ()
    for part in gl.static_range(len(output)):
        result += (output[part] + 0.0,)
    return result


@gluon.jit
def store(pointer, offsets, exists, output):
    """Stores the rows of an output that exist, each at its offset, in the type of what is pointed to."""
    for part in gl.static_range(len(output)):
        column = gl.arange(0, output[part].shape[1], gl.SliceLayout(0, output[part].type.layout))
        row_offsets = as_factors(offsets, output[part]) + part * output[0].shape[1]
        values = output[part].to(pointer.dtype.element_ty)
        gl.store(pointer + row_offsets + column[None, :], values, mask=as_factors(exists, output[part]))
