"""Merging two partial attention results: its tensors and its reference."""

from __future__ import annotations

import itertools
import math

import torch

from samebits.backends.operations import MergeTensors
from samebits.backends.problem import Request, Strides
from samebits.backends.token_problem import MergeStates, TokenProblem
from samebits.harness.batch import poison_value
from samebits.harness.comparison import same_bits
from samebits.harness.dataset import Role, values_at
from samebits.harness.rounding import EXPONENTIAL_ERROR_FLOAT32, FLOAT32_ROUNDOFF, FLOAT32_TINY, lost_on_reading
from samebits.harness.tokens.nonfinite import plant_in_lses
from samebits.harness.tokens.placement import place
from samebits.harness.tokens.prepared import Expected, Prepared, all_values, request_values, token_rows
from samebits.harness.tokens.untouched import plant_easily_lost

# Deviation of the log-sum-exps, so that now one side carries the weight and now both do.
_LSE_DEVIATION = 4.0
_LARGE_LSE = 30.0
# Roundings of a weighted sum of two outputs: of the weights, the products, the sum, the divisor and the quotient.
_OUTPUT_ROUNDINGS = 6.0


class PreparedMerge(Prepared[MergeTensors]):
    """Partial results of a prefix and of a suffix of each token's keys, here and there of none."""

    def __init__(self, problem: TokenProblem, operation: MergeStates, device: torch.device) -> None:
        self._problem, self._operation, self._device = problem, operation, device
        layout = problem.layout
        num_rows = problem.num_tokens + layout.padding_tokens
        shape = (operation.num_heads, operation.head_dim)
        lses = [self._all_lses(role) for role in (Role.LSE, Role.OTHER_LSE)]
        outputs = []
        dead = [lse.transpose(0, 1) == -math.inf for lse in lses]
        for role, own, other in zip((Role.INPUT, Role.OTHER_INPUT), dead, dead[::-1], strict=True):
            values = _planted_where(other, all_values(problem, role, shape, device, num_rows))
            # The output of a side that saw no key may be anything.
            values = values.masked_fill(own.unsqueeze(2), poison_value(layout.poison))
            outputs.append(place(values, problem, second=role is Role.OTHER_INPUT).tensor)
        # A kernel that stores by the strides of what it reads is wrong where what it reads is interleaved.
        compact = layout.strides is Strides.INTERLEAVED
        empty = torch.full((num_rows, *shape), poison_value(layout.poison), dtype=outputs[0].dtype)
        output = place(empty.to(device), problem, contiguous=compact)
        empty_lse = torch.full((operation.num_heads, num_rows), poison_value(layout.poison), dtype=torch.float32)
        lse = place(empty_lse.to(device), problem, contiguous=compact)
        self.tensors = MergeTensors(
            prefix_output=outputs[0],
            prefix_lse=lses[0],
            suffix_output=outputs[1],
            suffix_lse=lses[1],
            output=output.tensor,
            lse=lse.tensor,
        )
        self.read = {
            name: getattr(self.tensors, name) for name in ("prefix_output", "prefix_lse", "suffix_output", "suffix_lse")
        }
        self.written = {"output": output, "lse": lse}

    def results(self) -> dict[int, dict[str, torch.Tensor]]:
        """Output and log-sum-exp of each request, tokens first."""
        return {
            request.key: {
                "output": self.tensors.output[rows].clone(),
                "lse": self.tensors.lse[:, rows].transpose(0, 1).clone(),
            }
            for request, rows in zip(self._problem.requests, token_rows(self._problem), strict=True)
        }

    def faults(self) -> list[str]:
        """Whether a side whose other saw no key passed through with the bits that were given."""
        tensors, tokens = self.tensors, slice(self._problem.num_tokens)
        sides = {
            "prefix": (tensors.prefix_output[tokens], tensors.prefix_lse[:, tokens]),
            "suffix": (tensors.suffix_output[tokens], tensors.suffix_lse[:, tokens]),
        }
        faults = []
        for (name, (output, lse)), (other, (_, other_lse)) in itertools.permutations(sides.items()):
            alone = (other_lse == -math.inf) & (lse != -math.inf)
            rows = alone.transpose(0, 1)
            for what, given, found in (
                ("output", output[rows], tensors.output[tokens][rows]),
                ("log-sum-exp", lse[alone], tensors.lse[:, tokens][alone]),
            ):
                if not same_bits(given, found):
                    faults.append(f"run passed on other bits than those of its {name}'s {what} where no {other} key is")
        return faults

    def expected(self, request: Request) -> dict[str, Expected]:
        """Both merged in float64, with the errors of one exponential per side and a few roundings in float32."""
        shape = (self._operation.num_heads, self._operation.head_dim)
        lses = torch.stack([self._lse(request, role) for role in (Role.LSE, Role.OTHER_LSE)])
        wide = lses.to(self._device, torch.float64)
        dead = wide == -math.inf
        outputs = torch.stack(
            [
                _planted_where(other, request_values(self._problem, request, role, shape).to(self._device))
                for role, other in zip((Role.INPUT, Role.OTHER_INPUT), dead.flip(0), strict=True)
            ]
        ).to(torch.float64)
        # Of a side that saw no key nothing is used, and the other one passes through, whatever its log-sum-exp.
        outputs = outputs.masked_fill(dead.unsqueeze(3), 0.0)
        passes = dead.any(dim=0)
        largest = wide.amax(dim=0)
        exponentials = torch.where(passes, (~dead).to(wide), torch.exp(wide - largest))
        total = exponentials.sum(dim=0)
        lse = torch.where(passes, largest, largest + total.log())
        weights = (exponentials / total.masked_fill(passes, 1.0)).unsqueeze(3)
        terms = weights * outputs
        distance = (wide[0] - wide[1]).abs().unsqueeze(2)
        both = distance.isfinite()
        # d/dx of a logistic function is p (1 - p).
        relative = distance.masked_fill(~both, 0.0) * FLOAT32_ROUNDOFF + 2 * EXPONENTIAL_ERROR_FLOAT32
        weighing = weights[0] * weights[1] * (outputs[0] - outputs[1]).abs() * relative
        rounding = _OUTPUT_ROUNDINGS * FLOAT32_ROUNDOFF * terms.abs().sum(dim=0)
        dtype = self.tensors.output.dtype
        # What is taken for 0 below the smallest normal number: outputs as they are read, both products, their sum, the
        # quotient, the result.
        flushed = (weights * lost_on_reading(outputs, dtype)).sum(dim=0) + 4 * FLOAT32_TINY + torch.finfo(dtype).tiny
        # A side alone passes through bit by bit, and of two that saw nothing comes nothing.
        bound = torch.where(both, weighing + rounding + flushed, 0.0)
        magnitude = lse.abs() + 1.0
        lse_bound = magnitude * 3 * FLOAT32_ROUNDOFF + EXPONENTIAL_ERROR_FLOAT32
        return {
            "output": Expected(terms.sum(dim=0), bound),
            "lse": Expected(lse, torch.where(passes, 0.0, lse_bound)),
        }

    def _all_lses(self, role: Role) -> torch.Tensor:
        """float32 `[num_heads, num_rows]`, poison in padding rows."""
        padding = torch.full(
            (self._problem.layout.padding_tokens, self._operation.num_heads),
            poison_value(self._problem.layout.poison),
        )
        rows = torch.cat([*(self._lse(request, role) for request in self._problem.requests), padding])
        lses = rows.transpose(0, 1).to(self._device)
        return place(lses, self._problem, second=role is Role.OTHER_LSE).tensor

    def _lse(self, request: Request, role: Role) -> torch.Tensor:
        """float32 `[query_len, num_heads]` on the host, of which some are `-inf`."""
        shape = (self._operation.num_heads, 1)
        values = values_at(self._problem.seed, request.key, role, shape, request.context_len, request.seq_len)
        lse = torch.tensor(values[:, :, 0]) * _LSE_DEVIATION
        # Every third token's are so large that the exponential of one alone would overflow.
        lse[torch.arange(request.context_len, request.seq_len) % 3 == 0] *= _LARGE_LSE
        plant_in_lses(lse, self._problem, request, role)
        position = torch.arange(request.context_len, request.seq_len).unsqueeze(1)
        # Every seventh token has no prefix, every fifth no suffix; so some have neither.
        return lse.masked_fill(position % (7 if role is Role.LSE else 5) == 1, -math.inf)


def _planted_where(alone: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Puts bits that arithmetic may not keep into heads that must pass through: those whose other side saw no key.

    Args:
        alone: bool `[num_rows, num_heads]`.
        outputs: `[num_rows, num_heads, head_dim]` of one side.
    """
    return torch.where(alone.unsqueeze(2), plant_easily_lost(outputs.clone()), outputs)
