"""What Triton's interpreter finds out about types, remembered: it asks the same of them at every operation.

An operation on tensors of a few hundred elements takes numpy a microsecond, and the interpreter twenty times as long to
find out, in Python, what the operands become: by which type they are computed, whether that is theirs, which of them is
spread over the shape of the other. All of it follows from two types. Types cannot be hashed, so what is known of them
is remembered by their names, which tell them apart. Results are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

# What becomes of an operand.
_Step = Callable[[Any], Any]
_Operands = tuple[tl.tensor, tl.tensor]
# Constants that are kept: a kernel has a few dozen, and each number of a loop is another.
_KEPT_CONSTANTS = 1024


def remembering_numpy_dtypes(
    numpy_dtype_of: Callable[[tl.dtype], np.dtype[Any]],
) -> Callable[[tl.dtype], np.dtype[Any]]:
    """The interpreter's table from its types to numpy's, made once."""
    known: dict[str, np.dtype[Any]] = {}

    def lookup(dtype: tl.dtype) -> np.dtype[Any]:
        scalar = dtype.scalar
        if scalar.name not in known:
            known[scalar.name] = numpy_dtype_of(scalar)
        return known[scalar.name]

    return lookup


def remembering_block_types(block_type_init: Callable[..., None]) -> Callable[..., None]:
    """`tl.block_type.__init__`, which checks each type of an element and a shape once."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(self: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:  # noqa: ANN401 -- any sequence of Triton's
        key = (element_ty.name, *shape)
        if key not in known:
            block_type_init(self, element_ty, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key])

    return init


def remembering_tensor_shapes(tensor_init: Callable[..., None]) -> Callable[..., None]:
    """`tl.tensor.__init__`, which takes the shape of each type apart once."""
    known: dict[str, dict[str, Any]] = {}

    def init(self: tl.tensor, handle: TensorHandle, type: tl.dtype) -> None:
        if type.name not in known:
            tensor_init(self, handle, type)
            known[type.name] = {name: getattr(self, name) for name in ("shape", "numel", "dtype")}
        vars(self).update(known[type.name], handle=handle, type=type)

    return init


def looking_at_types_first(unwrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`tl.core._unwrap_if_constexpr`, which most is handed to that holds no constant of the language."""
    plain = frozenset({int, float, bool, str, type(None), tl.tensor, tl.dtype, tl.pointer_type, tl.block_type})
    return lambda value: value if type(value) in plain else unwrap(value)


def comparing_names(equal: Callable[[tl.dtype, object], bool]) -> Callable[[tl.dtype, object], bool]:
    """`tl.dtype.__eq__`, which looks for constants of the language inside of the other where it is no type."""

    def same(self: tl.dtype, other: object) -> bool:
        return self.name == other.name if isinstance(other, tl.dtype) else equal(self, other)

    return same


def remembering_shapes(builder: Any, broadcast: Callable[..., _Operands]) -> Callable[..., _Operands]:  # noqa: ANN401 -- Triton's
    """`TritonSemantic.broadcast_impl_value`: which of two operands is spread over the shape of the other.

    Args:
        builder: the interpreter's operations.
        broadcast: the original, bound.
    """
    known: dict[tuple[str, str], tuple[_Step, _Step]] = {}

    def broadcast_once(lhs: tl.tensor, rhs: tl.tensor) -> _Operands:
        key = (lhs.type.name, rhs.type.name)
        if key not in known:
            results = broadcast(lhs, rhs)
            known[key] = (_spread(builder, lhs, results[0]), _spread(builder, rhs, results[1]))
            return results
        of_lhs, of_rhs = known[key]
        return of_lhs(lhs), of_rhs(rhs)

    return broadcast_once


def remembering_operands(
    check: Callable[..., _Operands], cast: Callable[..., Any], broadcast: Callable[..., _Operands]
) -> Callable[..., _Operands]:
    """`TritonSemantic.binary_op_type_checking_impl`: what two operands become before they are computed.

    Args:
        check: the original, bound.
        cast: converts an operand to the type of other elements.
        broadcast: spreads one operand over the shape of another.
    """
    computed_as: dict[tuple[Any, ...], tuple[_Step, _Step]] = {}
    constants: dict[tuple[Any, ...], tuple[_Step, tl.tensor]] = {}

    def check_once(lhs: Any, rhs: Any, *flags: bool, **named_flags: bool) -> _Operands:  # noqa: ANN401
        rules = (*flags, *named_flags.items())
        if isinstance(lhs, tl.tensor) and isinstance(rhs, tl.tensor):
            key = (lhs.type.name, rhs.type.name, rules)
            if key in computed_as:
                of_lhs, of_rhs = computed_as[key]
                return broadcast(of_lhs(lhs), of_rhs(rhs))
            results = check(lhs, rhs, *flags, **named_flags)
            computed_as[key] = (_converted(cast, lhs, results[0]), _converted(cast, rhs, results[1]))
            return results
        # A number beside a tensor. Numbers that are equal may be of several types, which decide.
        tensor, number, place = (lhs, rhs, 1) if isinstance(lhs, tl.tensor) else (rhs, lhs, 0)
        if not isinstance(tensor, tl.tensor) or not isinstance(number, int | float):
            return check(lhs, rhs, *flags, **named_flags)
        beside = (tensor.type.name, type(number), number, place, rules)
        if beside not in constants:
            results = check(lhs, rhs, *flags, **named_flags)
            constant = results[place]
            constant.handle.data.flags.writeable = False
            if len(constants) >= _KEPT_CONSTANTS:
                constants.clear()
            constants[beside] = (_converted(cast, tensor, results[1 - place]), constant)
            return results
        of_tensor, constant = constants[beside]
        return (of_tensor(lhs), constant) if place else (constant, of_tensor(rhs))

    return check_once


def _converted(cast: Callable[..., Any], given: tl.tensor, found: tl.tensor) -> _Step:
    """How the elements of an operand came to another type, for all of its type."""
    wanted = found.type.scalar
    return _as_it_is if wanted == given.type.scalar else lambda operand: cast(operand, wanted)


def _as_it_is(operand: tl.tensor) -> tl.tensor:
    return operand


def _spread(builder: Any, given: tl.tensor, found: tl.tensor) -> _Step:  # noqa: ANN401 -- Triton's
    """How an operand came to another shape, for all of its type."""
    if found is given:
        return _as_it_is
    becomes = found.type
    if not given.type.is_block():
        as_built = becomes.to_ir(builder)
        return lambda operand: tl.tensor(builder.create_splat(as_built, operand.handle), becomes)
    shape = found.handle.data.shape
    return lambda operand: tl.tensor(builder.create_broadcast(operand.handle, shape), becomes)
