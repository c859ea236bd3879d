"""Controls of operations on tokens: ways to get each of them wrong, or right with other bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenTensors,
)
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.controls.disturbances import FirstCallDecides
from samebits.harness.controls.kernels import control_cell
from samebits.harness.controls.losses import clamped, flushed_early, tf32, through, without_nan
from samebits.harness.controls.memory import TOKEN_MEMORIES
from samebits.harness.controls.plain_operations import (
    CORRECT,
    PlainOperation,
    Run,
    TokenFlaw,
    linear,
    merge,
    rotate,
    write,
)
from samebits.harness.controls.trespasses import TOKEN_TRESPASSES
from samebits.harness.matrix import Cell, Symptom
from samebits.harness.relations import Relation
from samebits.harness.tokens.cases import token_cases


def _one_unit_up(rows: torch.Tensor, chosen: torch.Tensor) -> None:
    """Moves the chosen rows by one unit in the last place: right, and not the same bits."""
    rows[chosen] = torch.nextafter(rows[chosen], torch.tensor(math.inf))


def _rows_of(tensors: TokenTensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the result, and of the input that a flaw looks at."""
    match tensors:
        case RotaryTensors():
            return tensors.query, tensors.query
        case CacheWriteTensors():
            return tensors.key, tensors.key
        case MergeTensors():
            return tensors.output, tensors.prefix_output
        case LinearTensors() | RmsNormTensors():
            return tensors.output.flatten(0, -2), tensors.input


_CALLS = itertools.count()
_few_rows_at_first = FirstCallDecides()


def _half_of(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5


# What of the batch each relation must not let in: which rows it changes, from the input, and their number.
_LEAKS: dict[str, tuple[str, Callable[[torch.Tensor, int], torch.Tensor]]] = {
    "batch_size": ("few rows take another kernel", lambda rows, count: torch.full((count,), count < 30)),
    "position": ("even rows take another kernel", lambda rows, count: torch.arange(count) % 2 == 0),
    "neighbour_lengths": (
        "64 rows and more take another kernel",
        lambda rows, count: torch.full((count,), count >= 64),
    ),
    "neighbour_contents": (
        "the first value of the batch decides",
        # Behind those elements of a cache write's keys that are no numbers.
        lambda rows, count: _half_of(count, seed=int(rows.flatten()[8:64].abs().sum() * 1000)),
    ),
    "padding": ("many rows take another kernel", lambda rows, count: torch.full((count,), count > 300)),
    "many_rows": ("a thousand rows take another kernel", lambda rows, count: torch.full((count,), count > 1000)),
    "unread_memory": (
        "padding that is no number decides",
        lambda rows, count: torch.full((count,), bool(rows[-1].isnan().any())),
    ),
    "strided": ("views take another kernel", lambda rows, count: torch.full((count,), not rows.is_contiguous())),
    "leading_dimensions": (
        "three dimensions take another kernel",
        lambda rows, count: torch.full((count,), rows.dim() > 2),
    ),
    "decode": ("a single row takes another kernel", lambda rows, count: torch.full((count,), count == 1)),
    "repeated": (
        "every second call takes another kernel",
        lambda rows, count: torch.full((count,), next(_CALLS) % 2 == 1),
    ),
    "second_process": (
        "a first call of few rows decides on another kernel for all",
        lambda rows, count: torch.full((count,), _few_rows_at_first(count)),
    ),
    "threads": (
        "two threads take another kernel",
        lambda rows, count: torch.full((count,), torch.get_num_threads() == 2),
    ),
}


def _spoiled(run: Run, relation: str) -> Run:
    def spoil(operation: TokenOperation, tensors: TokenTensors) -> None:
        result, seen = _rows_of(tensors)
        chosen = _LEAKS[relation][1](seen.clone() if seen.is_contiguous() else seen, result.shape[0])
        if isinstance(tensors, MergeTensors):
            # A side alone passes through bit by bit, so that another unit would be wrong.
            chosen &= (tensors.prefix_lse.isfinite() & tensors.suffix_lse.isfinite()).all(dim=0)
        run(operation, tensors)
        _one_unit_up(result, chosen)

    return spoil


def _without(chosen: Callable[[CacheWriteTensors], torch.Tensor]) -> Run:
    """A cache write that leaves out some tokens: to be exact is all that it can get wrong."""

    def leave_out(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        kept = tensors.slot_mapping.masked_fill(chosen(tensors), -1)
        write(operation, replace(tensors, slot_mapping=kept))

    return leave_out


def _cache_write_flaws() -> Iterator[TokenFlaw]:
    def of(relation: str) -> Callable[[CacheWriteTensors], torch.Tensor]:
        return lambda tensors: _LEAKS[relation][1](tensors.key, len(tensors.slot_mapping))

    said_nothing_of = ("leading_dimensions",)
    chosen = {relation: of(relation) for relation in _LEAKS if relation not in said_nothing_of}
    chosen["unread_memory"] = lambda tensors: tensors.slot_mapping.ge(0) & tensors.key_cache.isnan().any()
    chosen["pages"] = lambda tensors: tensors.slot_mapping // tensors.key_cache.shape[1] % 2 == 0
    for relation, tokens in chosen.items():
        what = _LEAKS[relation][0] if relation in _LEAKS else "tokens of even pages are left out"
        yield TokenFlaw(
            f"cache_write_{relation}", relation, f"not all is written: {what}", CacheWrite, _without(tokens)
        )


def _invariance_flaws(operation: type[TokenOperation], left_out: str = "") -> Iterator[TokenFlaw]:
    for relation, (description, _) in _LEAKS.items():
        if relation != left_out:
            name, spoiled = f"{operation.operation}_{relation}", _spoiled(CORRECT[operation], relation)
            yield TokenFlaw(name, relation, description, operation, spoiled, symptom=Symptom.BITS)


def _with_inputs(run: Run, loss: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    """The operation on inputs that lost something on their way."""

    def lossy(operation: TokenOperation, tensors: Any) -> None:  # noqa: ANN401 -- of any operation
        names = ("prefix_output", "suffix_output") if isinstance(tensors, MergeTensors) else ("input",)
        run(operation, replace(tensors, **{name: loss(getattr(tensors, name)) for name in names}))

    return lossy


# What each kind of data must show, in float32.
_LOSSES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "normal": ("inputs are rounded to bf16", through(torch.bfloat16)),
    "large_values": ("inputs are rounded to bf16", through(torch.bfloat16)),
    "offset_values": ("inputs are rounded to bf16", through(torch.bfloat16)),
    "huge_values": ("inputs pass through fp16", through(torch.float16)),
    "denormal_values": ("inputs below 2^16 times the smallest normal number count as 0", flushed_early),
    "seen_nan": ("inputs that are NaN count as 0", without_nan),
    "seen_inf": ("infinite inputs are clamped", clamped),
}


def _arithmetic_flaws(operation: type[TokenOperation]) -> Iterator[TokenFlaw]:
    for data, (description, loss) in _LOSSES.items():
        lossy = _with_inputs(CORRECT[operation], loss)
        yield TokenFlaw(f"{operation.operation}_{data}", data, description, operation, lossy)


def _half_rotated(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    half = operation.rotary_dim // 2
    fewer = replace(operation, rotary_dim=half)
    cache = tensors.cos_sin_cache
    kept = torch.cat([cache[:, : half // 2], cache[:, half : half + half // 2]], dim=1)
    rotate(fewer, RotaryTensors(tensors.query, tensors.key, tensors.positions, kept))


def _other_pairs(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    other = replace(operation, interleaved=not operation.interleaved)
    rotate(other, tensors)


def _rotate_through(loss: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    def run(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        for heads in (tensors.query, tensors.key):
            heads[..., : operation.rotary_dim] = loss(heads[..., : operation.rotary_dim])
        rotate(operation, tensors)

    return run


def _rounded_sums(operation: Linear, tensors: LinearTensors) -> None:
    """Sums of 64 products at a time, each added to an accumulator in the dtype of the result."""
    total = torch.zeros(tensors.output.shape, dtype=torch.float64)
    for start in range(0, operation.in_features, 64):
        part = slice(start, start + 64)
        total += tensors.input[..., part].double() @ tensors.weight[:, part].double().T
        total = total.to(tensors.output.dtype).double()
    tensors.output.copy_(total if tensors.bias is None else total + tensors.bias.double())


def _tf32_linear(operation: Linear, tensors: LinearTensors) -> None:
    rounded = LinearTensors(tf32(tensors.input), tf32(tensors.weight), tensors.bias, tensors.output)
    linear(operation, rounded)


def _largest_lse(operation: MergeStates, tensors: MergeTensors) -> None:
    merge(operation, tensors)
    torch.maximum(tensors.prefix_lse, tensors.suffix_lse, out=tensors.lse)


def _infinite_lse_dead(operation: MergeStates, tensors: MergeTensors) -> None:
    """As where a library returns +inf for a query that sees no key, which FlashAttention 2 does."""
    lses = (lse.masked_fill(lse == math.inf, -math.inf) for lse in (tensors.prefix_lse, tensors.suffix_lse))
    prefix_lse, suffix_lse = lses
    merge(operation, replace(tensors, prefix_lse=prefix_lse, suffix_lse=suffix_lse))


def _square_in_dtype(operation: RmsNorm, tensors: RmsNormTensors) -> None:
    mean_square = (tensors.input**2).mean(dim=-1, keepdim=True)
    root = (mean_square.double() + operation.epsilon).sqrt()
    tensors.output.copy_(tensors.input.double() / root * tensors.weight.double())


_FLAWS: tuple[TokenFlaw, ...] = (
    *_invariance_flaws(RotaryEmbedding, left_out="leading_dimensions"),
    TokenFlaw("other_pairs", "normal", "the pairs are those of the other convention", RotaryEmbedding, _other_pairs),
    TokenFlaw(
        "fp16_rotation",
        "huge_values",
        "queries and keys pass through fp16",
        RotaryEmbedding,
        _rotate_through(through(torch.float16)),
    ),
    TokenFlaw(
        "bf16_rotation",
        "large_values",
        "products and sums are rounded to bf16",
        RotaryEmbedding,
        lambda operation, tensors: rotate(operation, tensors, torch.bfloat16),
        dtype="bf16",
    ),
    TokenFlaw("half_rotated", "offset_values", "half of rotary_dim is rotated", RotaryEmbedding, _half_rotated, case=2),
    TokenFlaw(
        "rotation_flushed_early",
        "denormal_values",
        "elements below 2^16 times the smallest normal number count as 0",
        RotaryEmbedding,
        _rotate_through(flushed_early),
    ),
    TokenFlaw(
        "rotation_without_nan",
        "seen_nan",
        "elements that are NaN count as 0",
        RotaryEmbedding,
        _rotate_through(without_nan),
    ),
    TokenFlaw(
        "clamped_rotation", "seen_inf", "infinite elements are clamped", RotaryEmbedding, _rotate_through(clamped)
    ),
    *_invariance_flaws(Linear),
    *_invariance_flaws(RmsNorm),
    *_invariance_flaws(MergeStates, left_out="leading_dimensions"),
    *_cache_write_flaws(),
    *_arithmetic_flaws(Linear),
    *_arithmetic_flaws(RmsNorm),
    *_arithmetic_flaws(MergeStates),
    TokenFlaw("tf32_linear", "normal", "products of TF32 where fp32 was asked for", Linear, _tf32_linear),
    TokenFlaw("bf16_linear", "offset_values", "the sum is accumulated in bf16", Linear, _rounded_sums, dtype="bf16"),
    TokenFlaw("square_in_bf16", "large_values", "squares are rounded to bf16", RmsNorm, _square_in_dtype, dtype="bf16"),
    TokenFlaw(
        "base_2_merge",
        "normal",
        "log-sum-exps are taken for those of base 2",
        MergeStates,
        lambda operation, tensors: merge(operation, tensors, 2.0),
    ),
    TokenFlaw(
        "infinite_lse_dead",
        "seen_inf",
        "a log-sum-exp of +inf is taken for one of no key",
        MergeStates,
        _infinite_lse_dead,
    ),
    TokenFlaw("largest_lse", "normal", "the log-sum-exp is the larger of the two", MergeStates, _largest_lse),
    *TOKEN_TRESPASSES,
    *TOKEN_MEMORIES,
)


def token_controls(suite: str, operations: Iterable[str], checks: Iterable[Relation], seed: int) -> Iterator[Cell]:
    """The controls of some checks of some operations.

    Args:
        suite: name of the suite that they belong to.
        operations: names of operations.
        checks: that must see them.
        seed: of all data.
    """
    by_name = {check.name: check for check in checks}
    for flaw in _FLAWS:
        if flaw.operation.operation in operations and flaw.check in by_name:
            case = list(token_cases(flaw.operation.operation, "smoke"))[flaw.case]
            control = PlainOperation(flaw.operation, flaw)
            yield control_cell(suite, control, by_name[flaw.check], case, flaw.dtype, seed)
