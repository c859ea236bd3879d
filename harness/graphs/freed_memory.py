"""Memory that nobody holds, taken and watched: a graph that still writes there, or reads there, shows."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Of each size as many, so that whichever block was given back is among them.
_PIECES = 3
# What a piece holds: whole elements of the largest dtype.
_ELEMENT = torch.float64
_SMALLEST, _LARGEST = 512, 64 << 20


class FreedMemory:
    """Pieces of memory full of NaN, held from now on.

    An allocator gives what was freed last to whoever asks for the same size: where a captured run uses memory that is
    its own no longer, it reads NaN, or writes into a piece. Where torch tells which blocks are idle, as on a GPU, every
    one of them is taken: what was given back may have grown together with its neighbours.
    """

    def __init__(self, device: torch.device, sizes: Iterable[int]) -> None:
        """Takes pieces of some sizes.

        Args:
            device: whose memory.
            sizes: in bytes.
        """
        wanted = {min(max(size, _SMALLEST), _LARGEST) for size in sizes} | {1 << power for power in range(9, 23)}
        pieces = [*_idle_blocks(device), *(size for size in sorted(wanted) for _ in range(_PIECES))]
        elements = [-(-size // _ELEMENT.itemsize) for size in pieces]
        self._pieces = [torch.full((count,), torch.nan, dtype=_ELEMENT, device=device) for count in elements]

    def faults(self) -> list[str]:
        """Whether anything wrote into one of the pieces, as one sentence."""
        written = [piece.nbytes for piece in self._pieces if not bool(piece.isnan().all())]
        if not written:
            return []
        return [f"the captured run wrote into memory that it had given back: a piece of {written[0]} bytes"]


def _idle_blocks(device: torch.device) -> list[int]:
    """Sizes of the blocks that torch holds for the current stream and nobody uses, the largest first; none on a CPU.

    Asked for in this order, each size gets a block of exactly that size.
    """
    if device.type != "cuda":
        return []
    stream = torch.cuda.current_stream(device)
    place = (stream.device_index, stream.cuda_stream)
    blocks = [
        block["size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        # Graphs have pools of their own, from which nobody else is given memory.
        if tuple(segment["segment_pool_id"]) == (0, 0) and (segment["device"], segment["stream"]) == place
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]
    return sorted(blocks, reverse=True)
