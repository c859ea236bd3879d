"""Controls of operations on tokens: plain correct kernels, and ways to get each of them wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from samebits.backends.operations import (
    CacheWriteTensors,
    LinearTensors,
    MergeTensors,
    RmsNormTensors,
    RotaryTensors,
    TokenImplementation,
    TokenTensors,
    refuse_cache,
)
from samebits.backends.subject import Availability, Claims
from samebits.backends.token_problem import CacheWrite, Linear, MergeStates, RmsNorm, RotaryEmbedding, TokenOperation
from samebits.harness.matrix import Cell
from samebits.harness.relations import Relation
from samebits.harness.tokens.cases import token_cases

_Run = Callable[[Any, Any], None]


def _rotate(operation: RotaryEmbedding, tensors: RotaryTensors, arithmetic: torch.dtype = torch.float64) -> None:
    cached = tensors.cos_sin_cache[tensors.positions].to(arithmetic).unsqueeze(1)
    cosines, sines = cached.chunk(2, dim=2)
    sines = -sines if operation.inverse else sines
    half = operation.rotary_dim // 2
    for heads in (tensors.query, tensors.key):
        rotated = heads[..., : operation.rotary_dim]
        first, second = (
            (rotated[..., 0::2], rotated[..., 1::2])
            if operation.interleaved
            else (rotated[..., :half], rotated[..., half:])
        )
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        first.copy_(turned[0]), second.copy_(turned[1])


def _rotate_by_the_rules(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    refuse_cache(tensors.query, tensors.cos_sin_cache)
    _rotate(operation, tensors)


def _write(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
    stored = tensors.slot_mapping >= 0
    slots = tensors.slot_mapping[stored]
    for values, cache in ((tensors.key, tensors.key_cache), (tensors.value, tensors.value_cache)):
        cache[slots // operation.page_size, slots % operation.page_size] = values[stored]


def _write_padding(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
    """As `cache[slot_mapping] = key` does: slot -1 is the last one."""
    slots = tensors.slot_mapping % (tensors.key_cache.shape[0] * operation.page_size)
    for values, cache in ((tensors.key, tensors.key_cache), (tensors.value, tensors.value_cache)):
        cache[slots // operation.page_size, slots % operation.page_size] = values
    _write(operation, tensors)


def _merge(operation: MergeStates, tensors: MergeTensors, base: float = math.e) -> None:
    lses = torch.stack([tensors.prefix_lse, tensors.suffix_lse]).double()
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp((lses - lse.masked_fill(lse == -math.inf, 0.0)) * math.log(base)).transpose(1, 2).unsqueeze(3)
    outputs = torch.stack([tensors.prefix_output, tensors.suffix_output]).double()
    # What a dead side holds may be NaN.
    tensors.output.copy_((weights * outputs.where(weights > 0, 0.0)).sum(dim=0))
    tensors.lse.copy_(lse)


def _linear(operation: Linear, tensors: LinearTensors) -> None:
    product = tensors.input.double() @ tensors.weight.double().T
    tensors.output.copy_(product if tensors.bias is None else product + tensors.bias.double())


def _normalise(operation: RmsNorm, tensors: RmsNormTensors) -> None:
    rows = tensors.input.double()
    mean_square = (rows**2).mean(dim=-1, keepdim=True)
    tensors.output.copy_(rows / (mean_square + operation.epsilon).sqrt() * tensors.weight.double())


@dataclass(frozen=True)
class TokenFlaw:
    """A way to get an operation wrong, and where it must show.

    Attributes:
        name: of the control.
        operation: type of the operation.
        check: the check that must see it.
        description: what it does wrong, in a line.
        run: the flawed kernel.
        dtype: dtype in which it must show.
        case: which of the operation's cases must show it.
        wrong_values: True where only the error budget or a fault can see it, False where bits must differ.
    """

    name: str
    operation: type[TokenOperation]
    check: str
    description: str
    run: _Run
    dtype: str = "fp32"
    case: int = 0
    wrong_values: bool = True


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
        lambda rows, count: _half_of(count, seed=int(rows.flatten()[:64].abs().sum() * 1000)),
    ),
    "padding": ("many rows take another kernel", lambda rows, count: torch.full((count,), count > 300)),
    "unread_memory": (
        "padding that is no number decides",
        lambda rows, count: torch.full((count,), bool(rows.isnan().any())),
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
    "threads": (
        "two threads take another kernel",
        lambda rows, count: torch.full((count,), torch.get_num_threads() == 2),
    ),
}


def _spoiled(run: _Run, relation: str) -> _Run:
    def spoil(operation: TokenOperation, tensors: TokenTensors) -> None:
        result, seen = _rows_of(tensors)
        chosen = _LEAKS[relation][1](seen.clone() if seen.is_contiguous() else seen, result.shape[0])
        if isinstance(tensors, MergeTensors):
            # A side alone passes through bit by bit, so that another unit would be wrong.
            chosen &= (tensors.prefix_lse.isfinite() & tensors.suffix_lse.isfinite()).all(dim=0)
        run(operation, tensors)
        _one_unit_up(result, chosen)

    return spoil


def _without(chosen: Callable[[CacheWriteTensors], torch.Tensor]) -> _Run:
    """A cache write that leaves out some tokens: to be exact is all that it can get wrong."""

    def leave_out(operation: CacheWrite, tensors: CacheWriteTensors) -> None:
        kept = tensors.slot_mapping.masked_fill(chosen(tensors), -1)
        _write(operation, replace(tensors, slot_mapping=kept))

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
            f"cache_write_{relation}", CacheWrite, relation, f"not all is written: {what}", _without(tokens)
        )


def _invariance_flaws(operation: type[TokenOperation], run: _Run, left_out: frozenset[str]) -> Iterator[TokenFlaw]:
    for relation, (description, _) in _LEAKS.items():
        if relation not in left_out:
            name = f"{operation.operation}_{relation}"
            yield TokenFlaw(name, operation, relation, description, _spoiled(run, relation), wrong_values=False)


def _with_inputs(run: _Run, through: Callable[[torch.Tensor], torch.Tensor]) -> _Run:
    """The operation on inputs that lost something on their way."""

    def lossy(operation: TokenOperation, tensors: Any) -> None:  # noqa: ANN401 -- of any operation
        names = ("prefix_output", "suffix_output") if isinstance(tensors, MergeTensors) else ("input",)
        run(operation, replace(tensors, **{name: through(getattr(tensors, name)) for name in names}))

    return lossy


# What each kind of data must show, in float32.
_LOSSES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "normal": ("inputs are rounded to bf16", lambda values: values.bfloat16().float()),
    "large_values": ("inputs are rounded to bf16", lambda values: values.bfloat16().float()),
    "offset_values": ("inputs are rounded to bf16", lambda values: values.bfloat16().float()),
    "huge_values": ("inputs pass through fp16", lambda values: values.half().float()),
    "denormal_values": (
        "inputs are scaled by the reciprocal of the largest, which overflows",
        lambda values: _scaled_to_one(values),
    ),
}


def _arithmetic_flaws(operation: type[TokenOperation], run: _Run) -> Iterator[TokenFlaw]:
    for data, (description, through) in _LOSSES.items():
        yield TokenFlaw(f"{operation.operation}_{data}", operation, data, description, _with_inputs(run, through))


def _half_rotated(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    half = operation.rotary_dim // 2
    fewer = RotaryEmbedding(**(vars(operation) | {"rotary_dim": half}))
    cache = tensors.cos_sin_cache
    kept = torch.cat([cache[:, : half // 2], cache[:, half : half + half // 2]], dim=1)
    _rotate(fewer, RotaryTensors(tensors.query, tensors.key, tensors.positions, kept))


def _other_pairs(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    other = RotaryEmbedding(**(vars(operation) | {"interleaved": not operation.interleaved}))
    _rotate(other, tensors)


def _rotate_through(through: Callable[[torch.Tensor], torch.Tensor]) -> _Run:
    def run(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
        for heads in (tensors.query, tensors.key):
            heads[..., : operation.rotary_dim] = through(heads[..., : operation.rotary_dim])
        _rotate(operation, tensors)

    return run


def _scaled_to_one(values: torch.Tensor) -> torch.Tensor:
    largest = values.abs().nan_to_num().amax()
    return values * (1.0 / largest) * largest


def _copies_cache(operation: RotaryEmbedding, tensors: RotaryTensors) -> None:
    refuse_cache(tensors.query, tensors.cos_sin_cache)
    halves = [half.contiguous() for half in tensors.cos_sin_cache.chunk(2, dim=1)]
    cache = torch.cat([half[tensors.positions] for half in halves], dim=1)
    places = torch.arange(len(tensors.positions))
    _rotate(operation, RotaryTensors(tensors.query, tensors.key, places, cache))


def _rounded_sums(operation: Linear, tensors: LinearTensors) -> None:
    """Sums of 64 products at a time, each added to an accumulator in the dtype of the result."""
    total = torch.zeros(tensors.output.shape, dtype=torch.float64)
    for start in range(0, operation.in_features, 64):
        part = slice(start, start + 64)
        total += tensors.input[..., part].double() @ tensors.weight[:, part].double().T
        total = total.to(tensors.output.dtype).double()
    tensors.output.copy_(total if tensors.bias is None else total + tensors.bias.double())


def _tf32(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _tf32_linear(operation: Linear, tensors: LinearTensors) -> None:
    rounded = LinearTensors(_tf32(tensors.input), _tf32(tensors.weight), tensors.bias, tensors.output)
    _linear(operation, rounded)


def _square_in_dtype(operation: RmsNorm, tensors: RmsNormTensors) -> None:
    mean_square = (tensors.input**2).mean(dim=-1, keepdim=True)
    root = (mean_square.double() + operation.epsilon).sqrt()
    tensors.output.copy_(tensors.input.double() / root * tensors.weight.double())


_FLAWS: tuple[TokenFlaw, ...] = (
    *_invariance_flaws(RotaryEmbedding, _rotate_by_the_rules, frozenset({"leading_dimensions"})),
    TokenFlaw("other_pairs", RotaryEmbedding, "normal", "the pairs are those of the other convention", _other_pairs),
    TokenFlaw(
        "fp16_rotation",
        RotaryEmbedding,
        "huge_values",
        "queries and keys pass through fp16",
        _rotate_through(lambda values: values.half().float()),
    ),
    TokenFlaw(
        "bf16_rotation",
        RotaryEmbedding,
        "large_values",
        "products and sums are rounded to bf16",
        lambda operation, tensors: _rotate(operation, tensors, torch.bfloat16),
        dtype="bf16",
    ),
    TokenFlaw("half_rotated", RotaryEmbedding, "offset_values", "half of rotary_dim is rotated", _half_rotated, case=2),
    TokenFlaw(
        "reciprocal_rotation",
        RotaryEmbedding,
        "denormal_values",
        "values are scaled by the reciprocal of the largest, which overflows",
        _rotate_through(_scaled_to_one),
    ),
    TokenFlaw(
        "any_cache", RotaryEmbedding, "cache_dtype", "a cache of any dtype is let through", _rotate, dtype="bf16"
    ),
    TokenFlaw(
        "cache_copied",
        RotaryEmbedding,
        "cache_in_place",
        "all cosines and all sines are copied apart",
        _copies_cache,
        dtype="bf16",
    ),
    *_invariance_flaws(Linear, _linear, frozenset()),
    *_invariance_flaws(RmsNorm, _normalise, frozenset()),
    *_invariance_flaws(MergeStates, _merge, frozenset({"leading_dimensions"})),
    *_cache_write_flaws(),
    *_arithmetic_flaws(Linear, _linear),
    *_arithmetic_flaws(RmsNorm, _normalise),
    *_arithmetic_flaws(MergeStates, _merge),
    TokenFlaw("tf32_linear", Linear, "normal", "products of TF32 where fp32 was asked for", _tf32_linear),
    TokenFlaw("bf16_linear", Linear, "offset_values", "the sum is accumulated in bf16", _rounded_sums, dtype="bf16"),
    TokenFlaw("square_in_bf16", RmsNorm, "large_values", "squares are rounded to bf16", _square_in_dtype, dtype="bf16"),
    TokenFlaw(
        "base_2_merge",
        MergeStates,
        "normal",
        "log-sum-exps are taken for those of base 2",
        lambda operation, tensors: _merge(operation, tensors, 2.0),
    ),
    TokenFlaw("slot_minus_1", CacheWrite, "padding", "slot -1 is written as the last one", _write_padding),
)


class FlawedOperation(TokenImplementation[Any, Any]):
    """An operation on tokens as a flaw would have it."""

    backend = "CONTROL"
    claims = Claims(batch_invariant=True, schedule_invariant=True, source="plain float64, but for its flaw")

    def __init__(self, flaw: TokenFlaw) -> None:
        """Takes the flaw's name and operation."""
        self.flaw, self.name, self.operation = flaw, flaw.name, flaw.operation.operation

    def probe(self) -> Availability:
        """Runs wherever torch does."""
        return Availability(version=torch.__version__)

    def run(self, operation: TokenOperation, tensors: TokenTensors) -> None:
        """Does it wrong."""
        self.flaw.run(operation, tensors)


def correct_operations() -> list[FlawedOperation]:
    """Every operation as it should be."""
    kernels: tuple[tuple[type[TokenOperation], _Run], ...] = (
        (RotaryEmbedding, _rotate_by_the_rules),
        (CacheWrite, _write),
        (MergeStates, _merge),
        (Linear, _linear),
        (RmsNorm, _normalise),
    )
    return [
        FlawedOperation(TokenFlaw(f"correct_{operation.operation}", operation, "", "nothing", run))
        for operation, run in kernels
    ]


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
            yield Cell(suite, FlawedOperation(flaw), by_name[flaw.check], case, flaw.dtype, "smoke", seed, flaw)
