"""Triton's interpreter, made right and usable beside compiled kernels in one process.

Without a GPU, Triton kernels run in Triton's own interpreter: numpy operations, one program after another. As shipped
in Triton 3.6 and 3.7 it cannot serve as a backend. This module is the one place that mends it, for every kernel that is
interpreted in the process, ours or another library's:

* **bfloat16.** The interpreter holds bfloat16 as bit patterns in uint16 and does arithmetic on the patterns: in
  `tl.dot` (triton issue 11584), elementwise arithmetic and comparisons, `tl.fma`, conversions from and to integers. It
  converts float32 by truncation, where compiled kernels round to nearest even. Here operands are widened to float32,
  and results are rounded once.
* **`tl.dot` in a fixed order.** The interpreter calls BLAS. OpenBLAS's kernels for processors without AVX-512 give a
  row other bits at another position in its tile, and everywhere a tile of one row goes to a matrix-vector routine, so
  that what a compiled kernel computes invariantly would vary here. Here one summation order serves every row.
* **Programmatic use.** `@triton.jit` decides when a kernel is defined whether it will be interpreted, Triton's own
  functions (`tl.max`, `tl.zeros`) included. They were defined when `triton` was imported, so interpreting later fails
  at their first call. Here they are callable while an interpreted kernel runs, and only then: compiled kernels, those
  of inductor among them, see Triton as it was.
* **Loop bounds.** Triton 3.6 cannot take one from memory with numpy 2.4, which refuses `int()` of an array of one
  element.
* **Speed.** Every integer addition computes an overflow check and then drops it, every call of a device function
  patches the language again, every operation builds its types and a table of numpy's anew and finds out what its
  operands become (`samebits.backends.triton_interpreter_types`), and every launch copies the memory of its arguments
  onto itself. Without that, results are the same in a quarter of the time.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    InterpreterBuilder,
    InterpreterOptions,
    TensorHandle,
)
from triton.runtime.jit import JITFunction

from samebits.backends.triton_interpreter_types import (
    comparing_names,
    looking_at_types_first,
    remembering_block_types,
    remembering_numpy_dtypes,
    remembering_operands,
    remembering_shapes,
    remembering_tensor_shapes,
)

# Of what stands before every function of the language: it looks whether it is called from inside of a kernel.
_LOOK_AT_ARGUMENTS = tl.core.builtin(lambda: None).__code__


@contextmanager
def interpreting() -> Iterator[None]:
    """Makes the kernels that are defined inside, as by importing their module, interpreted ones.

    Calling such a kernel needs no context: what a kernel is was decided when it was defined.
    """
    _mend_interpreter()
    before = triton.knobs.runtime.interpret
    triton.knobs.runtime.interpret = True
    try:
        yield
    finally:
        triton.knobs.runtime.interpret = before


@functools.cache
def import_interpreted(module_name: str) -> ModuleType:
    """Imports a private copy of a module of kernels, in which they are interpreted.

    The copy is not in `sys.modules`: whoever imports the module by name gets compiled kernels, before and after.

    Args:
        module_name: full dotted name of the module that defines the kernels.

    Returns:
        The copy, the same one at every call.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {module_name!r}", name=module_name)
    module = importlib.util.module_from_spec(spec)
    with interpreting():
        spec.loader.exec_module(module)
    return module


class MendedBuilder(InterpreterBuilder):  # type: ignore[misc]
    """The interpreter's operations, with bfloat16 arithmetic and a fixed summation order in `tl.dot`."""

    def __init__(self) -> None:
        super().__init__()
        self.options = InterpreterOptions(sanitize_overflow=False)

    def get_bf16(self, value: float) -> TensorHandle:
        """A constant; the interpreter has none of this type."""
        return _rounded(np.array([value], dtype=np.float32))

    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        """Any conversion between types but those of float8."""
        source = _widened(src)
        if dst_type.scalar == tl.bfloat16:
            return _rounded(source.data)
        return super().cast_impl(source, dst_type)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Callable[..., Any]) -> TensorHandle:
        """Arithmetic and comparisons of two operands of one type."""
        if lhs.dtype.scalar.name != tl.bfloat16.name:
            return super().binary_op(lhs, rhs, op)
        result = op(_widened(lhs).data, _widened(rhs).data)
        return TensorHandle(result, tl.int1) if result.dtype == np.bool_ else _rounded(result)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        """`x * y + z`."""
        if z.dtype.scalar != tl.bfloat16:
            return super().create_fma(x, y, z)
        return _rounded(_widened(x).data * _widened(y).data + _widened(z).data)

    def create_dot(
        self, a: TensorHandle, b: TensorHandle, d: TensorHandle, input_precision: object, max_num_imprecise_acc: int
    ) -> TensorHandle:
        """`a @ b + d`, accumulated in the type of `d`."""
        if a.dtype.scalar.primitive_bitwidth == 8:
            return super().create_dot(a, b, d, input_precision, max_num_imprecise_acc)
        # Both operands contiguous along the summed axis: einsum then sums each element in one order, whatever its row.
        rows = np.ascontiguousarray(_widened(a).data, dtype=d.data.dtype)
        columns = np.ascontiguousarray(np.swapaxes(_widened(b).data, -1, -2), dtype=d.data.dtype)
        return TensorHandle(np.einsum("...mk,...nk->...mn", rows, columns) + d.data, d.dtype.scalar)


def _widened(handle: TensorHandle) -> TensorHandle:
    """A bfloat16 handle as the same values in float32; any other handle as it is."""
    if handle.dtype.scalar.name != tl.bfloat16.name:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(values: np.ndarray[Any, Any]) -> TensorHandle:
    """Values as a bfloat16 handle, rounded to nearest even; NaN stays NaN."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # The carry of a NaN's rounding could run into its sign: take its upper half and set the quiet bit.
    kept = np.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, rounded)
    return TensorHandle(kept.astype(np.uint16), tl.bfloat16)


@functools.cache
def _mend_interpreter() -> None:
    """Puts the mended parts in place, once per process."""
    # The compiler takes `min` and `max` from the language when it is imported, which Triton leaves to whoever is first
    # to need it: inside an interpreted kernel it would take the interpreter's, and keep them.
    importlib.import_module("triton.compiler.code_generator")
    semantic, builder = interpreter.interpreter_semantic, MendedBuilder()
    interpreter.interpreter_builder = semantic.builder = builder
    semantic.broadcast_impl_value = remembering_shapes(builder, semantic.broadcast_impl_value)
    semantic.binary_op_type_checking_impl = remembering_operands(
        semantic.binary_op_type_checking_impl, semantic.cast, semantic.broadcast_impl_value
    )
    interpreter._patch_attr = _calling_at_once
    interpreter._get_np_dtype = remembering_numpy_dtypes(interpreter._get_np_dtype)
    interpreter._patch_lang = _patching_once(interpreter._patch_lang)
    interpreter.GridExecutor.__call__ = _unwarned(interpreter.GridExecutor.__call__)
    interpreter.GridExecutor._restore_args_dev = _restoring_from_host(interpreter.GridExecutor._restore_args_dev)


def _calling_at_once(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:  # noqa: ANN401 -- Triton's
    """Puts a function of the language in place, with nothing between it and its caller that looks at its arguments."""
    function = member.__wrapped__ if getattr(member, "__code__", None) is _LOOK_AT_ARGUMENTS else member

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- of any function of the language
        kwargs["_semantic"] = interpreter.interpreter_semantic
        return function(*args, **kwargs)

    scope.set_attr(owner, name, call)


def _patching_once(patch_language: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Patches the language when a kernel starts, for all device functions below it, Triton's own included."""
    # The original patches the language modules that a function's globals name. A kernel may name `tl` alone, and a
    # device function below it `tl.core`.
    both_modules = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    block_type_init = remembering_block_types(tl.block_type.__init__)
    tensor_init = remembering_tensor_shapes(tl.tensor.__init__)
    same_type = comparing_names(tl.dtype.__eq__)
    unwrap = looking_at_types_first(tl.core._unwrap_if_constexpr)

    def patch(fn: Any) -> Any:  # noqa: ANN401 -- both types are private to the interpreter
        if JITFunction.__call__ is _call_python:
            return interpreter._LangPatchScope()
        scope = patch_language(both_modules)
        scope.set_attr(JITFunction, "__call__", _call_python)
        scope.set_attr(tl.tensor, "__index__", _to_index)
        scope.set_attr(tl.block_type, "__init__", block_type_init)
        scope.set_attr(tl.tensor, "__init__", tensor_init)
        scope.set_attr(tl.dtype, "__eq__", same_type)
        scope.set_attr(tl.core, "_unwrap_if_constexpr", unwrap)
        return scope

    return patch


def _call_python(function: JITFunction[Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any device function
    """Calls the Python function behind a compiled one: the language that it speaks is patched at that time."""
    return function.fn(*args, **kwargs)


def _to_index(tensor: tl.tensor) -> int:
    return int(tensor.handle.data.item())


def _unwarned(launch: Callable[..., None]) -> Callable[..., None]:
    """Launches without numpy's warnings of infinities and NaN: no device that the interpreter stands for has any."""

    def call(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- of any kernel
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            launch(*args, **kwargs)

    return call


def _restoring_from_host(restore: Callable[..., None]) -> Callable[..., None]:
    """Copies results back to the device of the arguments, unless that is the host, where they are already."""

    def restore_arguments(executor: Any, args_dev: Any, args_hst: Any, kwargs: Any, kwargs_hst: Any) -> None:  # noqa: ANN401
        devices = {argument.device.type for argument in (*args_dev, *kwargs.values()) if hasattr(argument, "device")}
        if devices != {"cpu"}:
            restore(executor, args_dev, args_hst, kwargs, kwargs_hst)

    return restore_arguments
