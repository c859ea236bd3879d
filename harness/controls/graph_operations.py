"""Controls of the CUDA-graph suite: operations on tokens that a graph can capture, and stale inputs of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samebits.backends.operations import CacheWriteTensors, TokenImplementation, TokenTensors
from samebits.backends.subject import Claims, GraphSupport
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.controls.graphs import Capturable, modes_here
from samebits.harness.controls.kernels import control_cell
from samebits.harness.controls.plain_operations import CORRECT, Run
from samebits.harness.graphs.relations import TOKEN_GRAPH_RELATIONS
from samebits.harness.graphs.tokens import with_tensors
from samebits.harness.matrix import Cell, Flaw
from samebits.harness.tokens.cases import token_cases


def _write_without_host(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
    """Stores the tokens that have a slot, which are not counted on the host."""
    slots, num_slots = tensors.slot_mapping, tensors.key_cache.shape[0] * operation.page_size
    tokens = torch.arange(len(slots), device=slots.device)
    token_of_slot = slots.new_full((num_slots + 1,), -1)
    token_of_slot.scatter_(0, torch.where(slots >= 0, slots, num_slots), tokens)
    token_of_slot = token_of_slot[:num_slots].view(-1, operation.page_size)
    for values, cache in ((tensors.key, tensors.key_cache), (tensors.value, tensors.value_cache)):
        new = values[token_of_slot.clamp(min=0)]
        cache.copy_(torch.where((token_of_slot >= 0)[:, :, None, None], new, cache))


_CAPTURABLE: Mapping[type[TokenOperation], Run] = {**CORRECT, CacheWrite: _write_without_host}
# Of each operation a tensor that tells tokens apart.
_REMEMBERED: Mapping[type[TokenOperation], str] = {
    RotaryEmbedding: "positions",
    CacheWrite: "slot_mapping",
    MergeStates: "prefix_lse",
    Linear: "input",
    RmsNorm: "input",
}


@dataclass(frozen=True)
class StaleInput(Flaw):
    """A tensor that is copied at the first run, and not again.

    Attributes:
        operation: type of the operation.
        tensor: name of the tensor.
    """

    operation: type[TokenOperation]
    tensor: str


class GraphOperation(Capturable, TokenImplementation[Any, Any]):
    """An operation on tokens that a graph can capture, or one of a stale input."""

    claims = Claims(batch_invariant=True, cuda_graph=GraphSupport.ALWAYS, source="plain float64, launches only")
    flaw: StaleInput | None

    def __init__(self, operation: type[TokenOperation], flaw: StaleInput | None = None) -> None:
        """Takes the operation's plain kernel."""
        self._kind, self.flaw, self.operation = operation, flaw, operation.operation
        self.name = flaw.name if flaw else f"captured_{self.operation}"
        # Each tensor that was seen, which stays alive so that no other takes its identity, and what it held.
        self._remembered: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def parent(self) -> GraphOperation:
        """The correct kernel."""
        return GraphOperation(self._kind)

    def run(self, operation: TokenOperation, tensors: TokenTensors) -> None:
        """Computes it, with a flaw from what the tensor held when it was first seen."""
        if self.flaw is not None:
            given = getattr(tensors, self.flaw.tensor)
            if id(given) not in self._remembered:
                self._remembered[id(given)] = given, given.clone()
            tensors = with_tensors(tensors, {self.flaw.tensor: self._remembered[id(given)][1]})
        _CAPTURABLE[self._kind](operation, tensors)


def token_graph_controls(suite: str, seed: int) -> Iterator[Cell]:
    """The controls of every operation in every mode that this machine has.

    Args:
        suite: name of the suite.
        seed: of all data.
    """
    for _, prefix in modes_here():
        check = TOKEN_GRAPH_RELATIONS[f"{prefix}_replay"]
        for operation, tensor in _REMEMBERED.items():
            description = f"{tensor} is copied at the first run, and not again"
            flaw = StaleInput(f"stale_{operation.operation}", check.name, description, operation, tensor)
            case = next(token_cases(operation.operation, "smoke"))
            yield control_cell(suite, GraphOperation(operation, flaw), check, case, "fp32", seed)
