"""A linear layer: its tensors and its reference."""

from __future__ import annotations

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import LinearTensors
from samebits.backends.problem import Request
from samebits.backends.token_problem import Linear, TokenProblem
from samebits.harness.batch import LAYER_KEY, poison_value
from samebits.harness.dataset import Role, values_at
from samebits.harness.rounding import (
    DEVIATIONS,
    FLOAT32_ROUNDOFF,
    UNIFORM_VARIANCE,
    lost_in_operations,
    lost_on_reading,
)
from samebits.harness.tokens.leading import padded_rows, placed_input, with_leading
from samebits.harness.tokens.placement import place
from samebits.harness.tokens.prepared import Expected, Prepared, all_values, request_values, token_rows


class PreparedLinear(Prepared[LinearTensors]):
    """Rows to multiply by a weight."""

    def __init__(self, problem: TokenProblem, operation: Linear, device: torch.device) -> None:
        self._problem, self._operation = problem, operation
        layout = problem.layout
        num_rows = padded_rows(problem)
        inputs = all_values(problem, Role.INPUT, (1, operation.in_features), device, num_rows).squeeze(1)
        placed = placed_input(inputs, problem)
        empty = torch.full((num_rows, operation.out_features), poison_value(layout.poison), dtype=inputs.dtype)
        output = place(empty.to(device), problem, contiguous=True)
        self._weight = self._layer(Role.WEIGHT, operation.out_features, operation.in_features, device)
        self._bias = self._layer(Role.BIAS, 1, operation.out_features, device)[0] if operation.bias else None
        self.tensors = LinearTensors(
            input=placed,
            weight=self._weight,
            bias=self._bias,
            output=with_leading(output.tensor, layout.leading_dimensions),
        )
        self.read = {"input": placed, "weight": self._weight}
        if self._bias is not None:
            self.read["bias"] = self._bias
        self.written = {"output": output}

    def results(self) -> dict[int, dict[str, torch.Tensor]]:
        """The output of each request's tokens."""
        output = self.written["output"].tensor
        return {
            request.key: {"output": output[rows].clone()}
            for request, rows in zip(self._problem.requests, token_rows(self._problem), strict=True)
        }

    def expected(self, request: Request) -> dict[str, Expected]:
        """The product in float64; for the bound of its sum, see `samebits.harness.reference`."""
        shape = (1, self._operation.in_features)
        inputs = request_values(self._problem, request, Role.INPUT, shape).squeeze(1)
        rows = inputs.to(self._weight.device, torch.float64)
        weight = self._weight.to(torch.float64)
        product = rows @ weight.T
        values = product if self._bias is None else product + self._bias.to(torch.float64)
        terms = self._operation.in_features
        squares = rows**2 @ (weight**2).T
        # One rounding more per term than additions alone, where no FMA is used, and one for the bias.
        variance = (terms / 2 + 1) * squares + (terms / 3 + 1) * product**2 + values**2
        bound = DEVIATIONS * FLOAT32_ROUNDOFF * (UNIFORM_VARIANCE * variance).sqrt()
        # What is taken for 0 below the smallest normal number: inputs, products, sums, the output.
        operations = lost_in_operations(torch.tensor(2.0 * terms + 2.0))
        flushed = lost_on_reading(rows, inputs.dtype) @ weight.abs().T + operations
        return {"output": Expected(values, bound + flushed + torch.finfo(inputs.dtype).tiny)}

    def _layer(self, role: Role, rows: int, width: int, device: torch.device) -> torch.Tensor:
        """The layer's own values, `[rows, width]`: such that outputs deviate as inputs do."""
        values = values_at(self._problem.seed, LAYER_KEY, role, (rows, width), 0, 1)[0]
        scale = self._operation.in_features**-0.5 if role is Role.WEIGHT else 1.0
        return (torch.tensor(values) * scale).to(DTYPES[self._problem.dtype]).to(device)
