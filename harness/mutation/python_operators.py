"""Edits of Python sources, planners and Triton kernels alike, found in the tree that libcst makes of them.

Edited are the bodies of functions and the values of a module's own constants. Left out is what computes nothing:
docstrings, decorators, annotations and the messages of exceptions; and what an implementation declares of itself, at
which the suites take it at its word: attributes of classes, and the functions of `_DECLARING`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import libcst as cst
from libcst import matchers
from libcst.metadata import ByteSpanPositionProvider, CodeSpan, MetadataWrapper

from samebits.harness.mutation.mutants import Edit, Operator
from samebits.harness.mutation.names import EXTREMA, NARROWER, neighbouring_strides

_DECLARING = ("__init__", "__str__", "probe", "reasons", "implementations", "operations")
_COMPARISONS: dict[type[cst.BaseCompOp], cst.BaseCompOp] = {
    cst.LessThan: cst.LessThanEqual(),
    cst.LessThanEqual: cst.LessThan(),
    cst.GreaterThan: cst.GreaterThanEqual(),
    cst.GreaterThanEqual: cst.GreaterThan(),
    cst.Equal: cst.NotEqual(),
    cst.NotEqual: cst.Equal(),
    cst.Is: cst.IsNot(),
    cst.IsNot: cst.Is(),
    cst.In: cst.NotIn(),
    cst.NotIn: cst.In(),
}
_ARITHMETIC: dict[type[cst.BaseBinaryOp], cst.BaseBinaryOp] = {
    cst.Add: cst.Subtract(),
    cst.Subtract: cst.Add(),
    cst.Multiply: cst.Add(),
    cst.Divide: cst.Multiply(),
    cst.FloorDivide: cst.Modulo(),
    cst.Modulo: cst.FloorDivide(),
    cst.LeftShift: cst.RightShift(),
    cst.RightShift: cst.LeftShift(),
    cst.BitOr: cst.BitAnd(),
}
_AUGMENTED: dict[type[cst.BaseAugOp], cst.BaseAugOp] = {
    cst.AddAssign: cst.SubtractAssign(),
    cst.SubtractAssign: cst.AddAssign(),
}
_LEAVING = matchers.Return() | matchers.Continue() | matchers.Break() | matchers.Raise()
_MASKING = ("mask", "other")


def python_edits(source: bytes, scopes: Collection[str] = ()) -> list[Edit]:
    """All edits of a module.

    Args:
        source: of the module.
        scopes: names of the functions and classes at its top that are edited; empty for the whole module.
    """
    wrapper = MetadataWrapper(cst.parse_module(source))
    finder = _Finder(wrapper, neighbouring_strides(source.decode()))
    for region in _regions(wrapper.module, scopes):
        region.visit(finder)
    return finder.edits


def _regions(module: cst.Module, scopes: Collection[str]) -> Iterator[cst.CSTNode]:
    """What is edited of a module: bodies of functions and methods, and values of constants."""
    for statement in module.body:
        if isinstance(statement, cst.SimpleStatementLine):
            yield from (part.value for part in statement.body if isinstance(part, cst.Assign) and not scopes)
        elif isinstance(statement, cst.FunctionDef | cst.ClassDef) and (not scopes or statement.name.value in scopes):
            inner = statement.body.body if isinstance(statement, cst.ClassDef) else [statement]
            functions = (part for part in inner if isinstance(part, cst.FunctionDef))
            yield from (function.body for function in functions if function.name.value not in _DECLARING)


class _Finder(cst.CSTVisitor):
    """Collects the edits of what it visits."""

    def __init__(self, wrapper: MetadataWrapper, strides: Mapping[str, str]) -> None:
        super().__init__()
        self.edits: list[Edit] = []
        self._module = wrapper.module
        self._spans = wrapper.resolve(ByteSpanPositionProvider)
        self._strides = strides

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Edits a node; what computes nothing is not gone into."""
        if isinstance(node, cst.Raise | cst.Assert | cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom):
            return False
        if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):
            return False
        for operator, replacement in _changed(node, self._strides):
            self._replace(node, operator, replacement)
        return True

    def visit_If_test(self, node: cst.If) -> None:
        """Takes a condition for false, and for true where it does not guard an early end alone."""
        ends = matchers.matches(node.body, matchers.IndentedBlock(body=[matchers.SimpleStatementLine(body=[_LEAVING])]))
        self._replace(node.test, Operator.GUARD, cst.Name("False"))
        if not ends:
            self._replace(node.test, Operator.GUARD, cst.Name("True"))

    def _replace(self, node: cst.CSTNode, operator: Operator, replacement: cst.CSTNode) -> None:
        span: CodeSpan = self._spans[node]
        # Parentheses are outside of a node's span, and stay.
        bare = (
            replacement.with_changes(lpar=(), rpar=()) if isinstance(replacement, cst.BaseExpression) else replacement
        )
        code = self._module.code_for_node(bare)
        if isinstance(node, cst.BinaryOperation):
            # It may be a part of another, which binds its parts otherwise.
            code = f"({code})"
        self.edits.append(Edit(span.start, span.start + span.length, operator, code))


def _changed(node: cst.CSTNode, strides: Mapping[str, str]) -> Iterator[tuple[Operator, cst.CSTNode]]:
    """What may take the place of a node."""
    match node:
        case cst.Comparison(comparisons=[cst.ComparisonTarget() as target]) if type(target.operator) in _COMPARISONS:
            changed = target.with_changes(operator=_COMPARISONS[type(target.operator)])
            yield Operator.COMPARISON, node.with_changes(comparisons=[changed])
        case cst.BinaryOperation(operator=cst.BitAnd()):
            yield Operator.MASK, node.left
            yield Operator.MASK, node.right
        case cst.BinaryOperation() if type(node.operator) in _ARITHMETIC:
            yield Operator.ARITHMETIC, node.with_changes(operator=_ARITHMETIC[type(node.operator)])
        case cst.BooleanOperation():
            other = cst.Or() if isinstance(node.operator, cst.And) else cst.And()
            yield Operator.LOGIC, node.with_changes(operator=other)
        case cst.UnaryOperation(operator=cst.Not()):
            yield Operator.LOGIC, node.expression
        case cst.UnaryOperation(operator=cst.Minus()):
            yield Operator.SIGN, node.expression
        case cst.Integer():
            yield Operator.OFF_BY_ONE, cst.Integer(str(node.evaluated_value + 1))
            if node.evaluated_value > 0:
                yield Operator.OFF_BY_ONE, cst.Integer(str(node.evaluated_value - 1))
        case cst.Float():
            yield Operator.CONSTANT, cst.Float(repr(2.0 * node.evaluated_value or 1.0))
        case cst.IfExp():
            yield Operator.BRANCH, node.body
            yield Operator.BRANCH, node.orelse
        case cst.AugAssign() if type(node.operator) in _AUGMENTED:
            yield Operator.ARITHMETIC, node.with_changes(operator=_AUGMENTED[type(node.operator)])
            yield Operator.STATEMENT, cst.Pass()
        case cst.Expr(value=cst.Call()):
            yield Operator.STATEMENT, cst.Pass()
        case cst.Call():
            yield from _changed_calls(node)
        case cst.Name():
            yield from _changed_names(node, strides)


def _changed_calls(call: cst.Call) -> Iterator[tuple[Operator, cst.CSTNode]]:
    if any(argument.keyword and argument.keyword.value == "mask" for argument in call.args):
        kept = [argument for argument in call.args if not (argument.keyword and argument.keyword.value in _MASKING)]
        # The comma behind the last argument that stays would be the first of none.
        yield (
            Operator.MASK,
            call.with_changes(args=[*kept[:-1], kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]),
        )
    chosen = matchers.Call(func=matchers.Attribute(attr=matchers.Name("where")), args=[matchers.DoNotCare()] * 3)
    if matchers.matches(call, chosen):
        yield from ((Operator.BRANCH, argument.value) for argument in call.args[1:])


def _changed_names(name: cst.Name, strides: Mapping[str, str]) -> Iterator[tuple[Operator, cst.CSTNode]]:
    tables = (
        (Operator.EXTREMUM, EXTREMA),
        (Operator.TYPE, NARROWER),
        (Operator.STRIDE, strides),
        (Operator.LOGIC, {"True": "False", "False": "True"}),
    )
    for operator, table in tables:
        if name.value in table:
            yield operator, cst.Name(table[name.value])
