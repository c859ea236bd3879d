"""Operations on tokens from persistent tensors: run or captured once on other tokens, and refilled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.graph_use import GraphMode
from samebits.backends.operations import TokenImplementation, TokenTensors
from samebits.backends.persistent_copy import copy_to_persistent
from samebits.backends.problem import Circumstances, Request
from samebits.backends.subject import Availability
from samebits.backends.token_problem import TokenOperation, TokenProblem
from samebits.harness.batch import poison_value
from samebits.harness.comparison import same_bits
from samebits.harness.execution import Execution
from samebits.harness.graphs.capture import captured_in_graph, give_back_graphs
from samebits.harness.graphs.states import FIRST_OTHER_KEY, FIRST_OTHER_PAGE_SEED
from samebits.harness.tokens.execution import execute_tokens, prepare

# What padding holds where poison would be no number that a token may have.
_PADDING = {"slot_mapping": -1, "positions": 0}
_REPLAYS = 2


def execute_tokens_in_graph(
    implementation: TokenImplementation[Any, Any], problem: TokenProblem, device: torch.device
) -> Execution:
    """Runs a problem as a captured graph would, and judges every request.

    Args:
        implementation: of the problem's operation, available here, and without reasons against the problem.
        problem: what to compute; its circumstances have a `graph`.
        device: where the implementation computes.
    """
    use = problem.circumstances.graph
    assert use is not None, "a problem without padded sizes is computed by itself"
    replayed = _Replayed(implementation, problem, use.mode, device)
    execution = execute_tokens(replayed, problem, device)
    give_back_graphs(use.mode)
    return replace(execution, faults=(*execution.faults, *replayed.faults))


class _Replayed(TokenImplementation[Any, Any]):
    """An implementation that is captured on other tokens, and replayed on those that it is given.

    Attributes:
        faults: what went wrong apart from the results.
    """

    def __init__(
        self,
        implementation: TokenImplementation[Any, Any],
        problem: TokenProblem,
        mode: GraphMode,
        device: torch.device,
    ) -> None:
        self.operation, self.backend = implementation.operation, implementation.backend
        self.name, self.claims = implementation.name, implementation.claims
        self.faults: list[str] = []
        self._implementation, self._problem = implementation, problem
        self._mode, self._device = mode, device

    def probe(self) -> Availability:
        """As the implementation that it stands for."""
        return self._implementation.probe()

    def run(self, operation: TokenOperation, tensors: TokenTensors) -> None:
        """Computes the operation on the tensors, by way of persistent ones."""
        states = [_fields(prepare(_other_tokens(self._problem, salt), self._device).tensors) for salt in (0, 1)]
        given = _fields(tensors)
        persistent = {
            name: _large_enough([state[name] for state in (*states, given)], self._padding(name)) for name in given
        }
        arguments = with_tensors(tensors, persistent)

        def once() -> None:
            self._implementation.run(operation, arguments)

        def refill(state: Mapping[str, torch.Tensor]) -> None:
            for name, tensor in state.items():
                copy_to_persistent(tensor, persistent[name], self._padding(name))

        refill(states[0])
        launch = self._captured(once)
        refill(states[1])
        launch()
        results = []
        for _ in range(_REPLAYS):
            refill(given)
            launch()
            results.append({name: tensor.clone() for name, tensor in persistent.items()})
        for name, tensor in given.items():
            tensor.copy_(persistent[name][tuple(slice(size) for size in tensor.shape)])
            if not same_bits(results[0][name], results[-1][name]):
                self.faults.append(f"a second replay of the same tokens has other bits in its {name}")

    def _captured(self, once: Callable[[], None]) -> Callable[[], None]:
        if self._mode is GraphMode.CAPTURED:
            return captured_in_graph(once, self._device)
        once()
        return once

    def _padding(self, name: str) -> float:
        return _PADDING.get(name, poison_value(self._problem.layout.poison))


def with_tensors(tensors: TokenTensors, others: Mapping[str, torch.Tensor]) -> TokenTensors:
    """The tensors of an operation, some of them by their names replaced by others."""
    return type(tensors)(**(vars(tensors) | dict(others)))


def _fields(tensors: TokenTensors) -> dict[str, torch.Tensor]:
    """The tensors of an operation by name, without those that are not there."""
    found = {field.name: getattr(tensors, field.name) for field in dataclasses.fields(tensors)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _large_enough(tensors: list[torch.Tensor], padding: float) -> torch.Tensor:
    """A tensor that holds each of some others, full of padding."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.full(shape, padding, dtype=tensors[0].dtype, device=tensors[0].device)


def _other_tokens(problem: TokenProblem, salt: int) -> TokenProblem:
    """As many rows as a problem has with its padding, of other requests at other positions and in other slots."""
    rows = problem.num_tokens + problem.layout.padding_tokens
    shares = [share for share in (rows - rows // 2, rows // 2) if share]
    requests = tuple(
        Request(FIRST_OTHER_KEY + 10 * salt + index, share, 40 + 7 * index + 11 * salt)
        for index, share in enumerate(shares)
    )
    layout = replace(problem.layout, padding_tokens=0, page_seed=FIRST_OTHER_PAGE_SEED + salt)
    return replace(problem, requests=requests, layout=layout, circumstances=Circumstances())
