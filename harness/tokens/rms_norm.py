"""RMSNorm: its tensors and its reference."""

from __future__ import annotations

import torch

from samebits.backends.contract import DTYPES
from samebits.backends.operations import RmsNormTensors
from samebits.backends.problem import Request
from samebits.backends.token_problem import RmsNorm, TokenProblem
from samebits.harness.batch import LAYER_KEY, poison_value
from samebits.harness.dataset import Role, values_at
from samebits.harness.rounding import DEVIATIONS, FLOAT32_ROUNDOFF, FLOAT32_TINY, UNIFORM_VARIANCE, lost_on_reading
from samebits.harness.tokens.leading import padded_rows, placed_input, with_leading
from samebits.harness.tokens.placement import place
from samebits.harness.tokens.prepared import Expected, Prepared, all_values, request_values, token_rows

# Of the quotient, of epsilon's sum, of the two products.
_ROUNDINGS = 4.0
# Relative error of a reciprocal square root (CUDA C++ Programming Guide: rsqrtf, 2 units in the last place).
_RECIPROCAL_ROOT_ERROR = 2.0**-22


class PreparedRmsNorm(Prepared[RmsNormTensors]):
    """Rows to normalise."""

    def __init__(self, problem: TokenProblem, operation: RmsNorm, device: torch.device) -> None:
        self._problem, self._operation = problem, operation
        layout = problem.layout
        num_rows = padded_rows(problem)
        inputs = all_values(problem, Role.INPUT, (1, operation.size), device, num_rows).squeeze(1)
        placed = placed_input(inputs, problem)
        output = place(torch.full_like(inputs, poison_value(layout.poison)), problem, contiguous=True)
        weight = torch.tensor(values_at(problem.seed, LAYER_KEY, Role.WEIGHT, (1, operation.size), 0, 1)[0, 0])
        self._weight = (weight + 1.0).to(DTYPES[problem.dtype]).to(device)
        self.tensors = RmsNormTensors(
            input=placed,
            weight=self._weight,
            output=with_leading(output.tensor, layout.leading_dimensions),
        )
        self.read = {"input": placed, "weight": self._weight}
        self.written = {"output": output}

    def results(self) -> dict[int, dict[str, torch.Tensor]]:
        """The output of each request's tokens."""
        output = self.written["output"].tensor
        return {
            request.key: {"output": output[rows].clone()}
            for request, rows in zip(self._problem.requests, token_rows(self._problem), strict=True)
        }

    def expected(self, request: Request) -> dict[str, Expected]:
        """The rows normalised in float64; a sum of squares is off by the errors of its additions, its root by half."""
        size = self._operation.size
        inputs = request_values(self._problem, request, Role.INPUT, (1, size)).squeeze(1)
        rows = inputs.to(self._weight.device, torch.float64)
        mean_square = (rows**2).mean(dim=1, keepdim=True)
        root = (mean_square + self._operation.epsilon).sqrt()
        weight = self._weight.to(torch.float64)
        values = rows / root * weight
        summing = DEVIATIONS * FLOAT32_ROUNDOFF * ((size / 3 + 1) * UNIFORM_VARIANCE) ** 0.5
        # What is taken for 0 below the smallest normal number: inputs, and their product with the weight or with the
        # reciprocal of the root, whichever comes first; both come out as many times larger as the rest. The output.
        flushed = lost_on_reading(rows, inputs.dtype) / root * weight.abs() + FLOAT32_TINY * (1 / root + weight.abs())
        relative = summing / 2 + _RECIPROCAL_ROOT_ERROR + _ROUNDINGS * FLOAT32_ROUNDOFF
        return {"output": Expected(values, values.abs() * relative + flushed + torch.finfo(inputs.dtype).tiny)}
