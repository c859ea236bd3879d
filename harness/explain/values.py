"""The order in which an attention kernel adds up the values of one query row, whatever kernel it is.

Where a query is 0 all its scores are equal, and so are its weights: the output is the plain sum of the values, divided
by their number. Each element of a head sums values of its own, so one call answers as many questions as a head has
elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from samebits.harness.explain.attention import RowCalls
from samebits.harness.explain.order import Node, accumulation_order
from samebits.harness.records import UnusableInput

# Up to how many values of 1 an output tells exactly: a sum is rounded once, and divided by the number of keys.
_COUNTED = {torch.float32: 1 << 12, torch.bfloat16: 120}


def values_tree(calls: RowCalls, guesses: Sequence[Node] = ()) -> Node:
    """Recovers how the values of the keys that a query row sees are added up.

    Args:
        calls: of a row whose query is 0.
        guesses: trees that it may be.

    Returns:
        The tree over the keys that the row sees, numbered from 0.

    Raises:
        UnusableInput: the sums do not follow any order, or float16 holds no value that absorbs others.
    """
    if calls.dtype is torch.float16:
        raise UnusableInput("the order of the values does not show in fp16, whose range is too small")

    def weights_under(terms: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(calls.num_keys, calls.width, dtype=torch.float64)
        values[:, : terms.shape[1]] = terms
        return calls.output(values)[: terms.shape[1]]

    # What all weights come to together: 1, unless there are sinks or the exponential of 0 is a little off.
    one = float(weights_under(torch.ones(calls.num_keys, 1, dtype=torch.float64))) / calls.num_keys
    return accumulation_order(
        lambda terms: weights_under(terms) / one, calls.num_keys, calls.width, _COUNTED[calls.dtype], guesses
    )
