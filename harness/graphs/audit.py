"""What a captured run may read, compared with what a plan made anew would have it read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from samebits.harness.comparison import bits_of, same_bits


def stale_buffers(
    held: Mapping[str, torch.Tensor], anew: Mapping[str, torch.Tensor], scratch: Collection[str]
) -> list[str]:
    """Buffers that do not hold what they should, whether or not today's kernel reads them, a sentence for each.

    Args:
        held: the buffers of the captured plan, after a refill.
        anew: those of a plan that was made from the same batch, by the same names.
        scratch: names of those that the run itself writes.
    """
    found = []
    for name in dict.fromkeys((*held, *anew)):
        if name not in held or name not in anew:
            found.append(f"{name} is a buffer of {'the captured plan' if name in held else 'a plan made anew'} alone")
        elif held[name].shape != anew[name].shape or held[name].dtype != anew[name].dtype:
            ours, theirs = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (held[name], anew[name]))
            found.append(f"{name} is {ours} after a refill, and {theirs} in a plan made anew")
        elif name not in scratch and not same_bits(held[name], anew[name]):
            differing = int((bits_of(held[name]) != bits_of(anew[name])).sum())
            found.append(
                f"{name} is stale after a refill: {differing} of {held[name].numel()} elements are not those of a plan "
                "made anew"
            )
    return found
