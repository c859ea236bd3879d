"""Edits of C++ sources, found in the tree that tree-sitter makes of them.

The tree is only as good as the parser's idea of macros and attributes, so those are blanked before it sees a source,
and nothing is edited in what it could not make out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import tree_sitter_cpp
from tree_sitter import Language, Node, Parser

from samebits.harness.mutation.mutants import Edit, Operator
from samebits.harness.mutation.names import EXTREMA, NARROWER, neighbouring_strides

_PARSER = Parser(Language(tree_sitter_cpp.language()))
# Macros that stand for words of the language, attributes, and directives inside of functions.
_BLANKED = re.compile(rb"SAMEBITS_INLINE|__attribute__ *\(\((?:[^()]|\([^()]*\))*\)\)|#pragma (?:GCC|omp)[^\n]*")
_COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_ARITHMETIC = {"+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "<<": ">>", ">>": "<<"}
_LOGIC = {"&&": "||", "||": "&&"}
_AUGMENTED = {"+=": "-=", "-=": "+=", "/=": "*="}
# The grammar takes a minus before a number for a part of it.
_WHOLE = re.compile(r"(-?\d+|0[xX][0-9a-fA-F]+)([uUlL]*)")
_FRACTION = re.compile(r"(.*?)([fF]?)", re.DOTALL)
_LEAVING = ("return_statement", "continue_statement", "break_statement")
_LEFT_OUT = (
    "preproc_include",
    "preproc_def",
    "preproc_function_def",
    "preproc_call",
    "static_assert_declaration",
    "comment",
)


def cpp_edits(source: bytes) -> list[Edit]:
    """All edits of a source or a header.

    Args:
        source: its content.
    """
    tree = _PARSER.parse(_BLANKED.sub(lambda found: re.sub(rb"[^\n]", b" ", found.group()), source))
    strides = neighbouring_strides(source.decode())
    return [
        Edit(node.start_byte, node.end_byte, operator, replacement)
        for node in _nodes(tree.root_node)
        for operator, replacement in _changed(node, strides)
    ]


def _nodes(node: Node) -> Iterator[Node]:
    if node.type in _LEFT_OUT or node.is_error or node.is_missing:
        return
    yield node
    for child in node.children:
        yield from _nodes(child)


def _text(node: Node | None) -> str:
    text = node.text if node is not None else None
    assert text is not None, "the grammar promises it, and nothing has been edited"
    return text.decode()


def _changed(node: Node, strides: Mapping[str, str]) -> Iterator[tuple[Operator, str]]:
    """What may take the place of a node."""
    match node.type:
        case "binary_expression":
            yield from _changed_operations(node)
        case "unary_expression" if node.children[0].type in ("!", "-"):
            inner = _text(node.child_by_field_name("argument"))
            yield (Operator.LOGIC if node.children[0].type == "!" else Operator.SIGN), inner
        case "number_literal":
            yield from _changed_numbers(_text(node))
        case "conditional_expression":
            for side in ("consequence", "alternative"):
                yield Operator.BRANCH, f"({_text(node.child_by_field_name(side))})"
        case "condition_clause" if node.parent is not None and node.parent.type == "if_statement":
            yield Operator.GUARD, "(false)"
            consequence = node.parent.child_by_field_name("consequence")
            if consequence is not None and consequence.type not in _LEAVING:
                yield Operator.GUARD, "(true)"
        case "assignment_expression":
            left, sign, right = (_text(child) for child in node.children)
            if sign in _AUGMENTED:
                yield Operator.ARITHMETIC, f"{left} {_AUGMENTED[sign]} {right}"
                yield Operator.STATEMENT, left
        case "expression_statement" if node.children[0].type == "call_expression":
            yield Operator.STATEMENT, ";"
        case "true" | "false":
            yield Operator.LOGIC, "false" if node.type == "true" else "true"
        case "identifier" | "field_identifier" | "primitive_type":
            yield from _changed_names(node, strides)


def _changed_operations(node: Node) -> Iterator[tuple[Operator, str]]:
    left, sign, right = (_text(child) for child in node.children)
    if sign in _COMPARISONS:
        yield Operator.COMPARISON, f"{left} {_COMPARISONS[sign]} {right}"
    elif sign in _ARITHMETIC:
        # It may be a part of another operation, which binds its parts otherwise.
        yield Operator.ARITHMETIC, f"({left} {_ARITHMETIC[sign]} {right})"
    elif sign in _LOGIC:
        yield Operator.LOGIC, f"({left} {_LOGIC[sign]} {right})"
    elif sign in ("&", "|"):
        yield Operator.MASK, f"({left})"
        yield Operator.MASK, f"({right})"


def _changed_numbers(text: str) -> Iterator[tuple[Operator, str]]:
    whole = _WHOLE.fullmatch(text)
    if whole is not None:
        value, suffix = int(whole[1], 0), whole[2]
        yield Operator.OFF_BY_ONE, f"{value + 1}{suffix}"
        if value != 0:
            yield Operator.OFF_BY_ONE, f"{value - 1}{suffix}"
        return
    fraction = _FRACTION.fullmatch(text)
    assert fraction is not None, "anything matches"
    value_text, suffix = fraction[1], fraction[2]
    number = float.fromhex(value_text) if "0x" in value_text.lower() else float(value_text)
    yield Operator.CONSTANT, f"{(2.0 * number or 1.0)!r}{suffix}"


def _changed_names(node: Node, strides: Mapping[str, str]) -> Iterator[tuple[Operator, str]]:
    name = _text(node)
    parent = node.parent
    # Declarations of strides stay: a swap there is a swap of the caller's.
    if name in strides and parent is not None and not parent.type.endswith(("declaration", "declarator")):
        yield Operator.STRIDE, strides[name]
    if name in EXTREMA:
        yield Operator.EXTREMUM, EXTREMA[name]
    if name in NARROWER:
        yield Operator.TYPE, NARROWER[name]
