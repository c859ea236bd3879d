"""What an implementation says of itself, checked when it is loaded, so that nonsense is told at once and by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from samebits.backends.contract import Claims, Implementation, KnownGap, Tiling
from samebits.backends.operations import TokenImplementation
from samebits.backends.problem import DTYPE_NAMES, Geometry, Mask, Problem, Request
from samebits.backends.subject import GraphSupport, PaddingRows
from samebits.backends.support import Support
from samebits.backends.token_problem import (
    TOKEN_OPERATIONS,
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenProblem,
)

# What the controls run as; see `harness.controls`.
CONTROL_BACKEND = "CONTROL"
_NAMES = {
    "backend": (re.compile(r"[A-Z][A-Z0-9_]*"), "capitals, digits and underscores, such as MY_ATTN"),
    "name": (re.compile(r"[a-z0-9][a-z0-9._-]*"), "lower-case letters, digits, '.', '_' and '-'"),
    "variant": (
        re.compile(r"([A-Za-z0-9][A-Za-z0-9._=,-]*)?"),
        "letters, digits and '.', '_', '=', ',', '-', or be empty",
    ),
}
# Claims that are no matter of yes or no.
_LEVELS: Mapping[str, type] = {"cuda_graph": GraphSupport, "padding_rows": PaddingRows}
# A problem of each operation that any implementation of it can be asked about.
_SMALL: Mapping[str, Problem | TokenProblem] = {
    Implementation.operation: Problem(
        Geometry("small", num_heads=1, num_kv_heads=1, head_dim=64), Mask.CAUSAL, "fp32", (Request(1, 1),)
    )
} | {
    operation.operation: TokenProblem(operation, "fp32", (Request(1, 1),))
    for operation in (
        RotaryEmbedding("small", num_heads=1, num_kv_heads=1, head_dim=64, rotary_dim=64),
        CacheWrite("small", num_kv_heads=1, head_dim=64),
        MergeStates("small", num_heads=1, head_dim=64),
        Linear("small", in_features=64, out_features=64),
        RmsNorm("small", size=64),
    )
}

AnyImplementation = Implementation[Any] | TokenImplementation[Any, Any]


def complaint(implementation: object) -> str:
    """What is wrong with a supposed implementation, as one sentence; empty when nothing is."""
    if not isinstance(implementation, Implementation | TokenImplementation):
        return (
            f"implementations() returned {implementation!r}, which is no instance of samebits' Implementation, nor of "
            "a class in samebits.backends.operations"
        )
    if isinstance(implementation, TokenImplementation) and _operation(implementation) is None:
        known = ", ".join(operation.operation for operation in TOKEN_OPERATIONS)
        given = getattr(implementation, "operation", None)
        return f"{type(implementation).__name__}.operation is {given!r}; it must be one of {known}"
    # Each check relies on those before it, which is why the first complaint ends them.
    checks: list[Callable[[Any], Iterator[str]]] = [_names, _kinds, _claims, _tiling, _configuration, _known_gaps]
    checks += [_support if isinstance(implementation, Implementation) else _token_dtypes, _answers]
    found = (told for check in checks for told in check(implementation))
    return next((f"{type(implementation).__name__}{told}" for told in found), "")


def _operation(implementation: TokenImplementation[Any, Any]) -> str | None:
    """The operation on tokens that an implementation names; None where there is none of that name."""
    given = getattr(implementation, "operation", None)
    return next((kind.operation for kind in TOKEN_OPERATIONS if kind.operation == given), None)


def _names(implementation: AnyImplementation) -> Iterator[str]:
    for attribute, (pattern, accepted) in _NAMES.items():
        value = getattr(implementation, attribute, None)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            yield f".{attribute} is {value!r}; it must be made of {accepted}"
    if implementation.backend == CONTROL_BACKEND:
        yield f".backend is {CONTROL_BACKEND!r}, which is the name of the harness's own controls"


def _kinds(implementation: AnyImplementation) -> Iterator[str]:
    kinds: dict[str, type] = {"claims": Claims, "tiling": Tiling}
    if isinstance(implementation, Implementation):
        kinds["support"] = Support
    for attribute, kind in kinds.items():
        value = getattr(implementation, attribute, None)
        if not isinstance(value, kind):
            yield f".{attribute} is {value!r}; it must be an instance of {kind.__name__}"
    for flag in ("costly", "interpreted", "compiles_each_shape"):
        value = getattr(implementation, flag)
        if not isinstance(value, bool):
            yield f".{flag} is {value!r}; it must be True or False"


def _claims(implementation: AnyImplementation) -> Iterator[str]:
    claims = vars(implementation.claims).copy()
    source = claims.pop("source")
    if not isinstance(source, str):
        yield f".claims has source={source!r}; it must be a string that says where they are made"
    for claim, kind in _LEVELS.items():
        value = claims.pop(claim)
        if not isinstance(value, kind):
            yield f" claims {claim}={value!r}; it must be a member of {kind.__name__}"
    for claim, value in claims.items():
        if not isinstance(value, bool):
            yield f" claims {claim}={value!r}; it must be True or False"


def _tiling(implementation: AnyImplementation) -> Iterator[str]:
    for length, value in vars(implementation.tiling).items():
        if type(value) is not int or value < 1:
            yield f".tiling has {length}={value!r}; it must be a whole number of at least 1"


def _configuration(implementation: AnyImplementation) -> Iterator[str]:
    configuration = implementation.configuration
    if not isinstance(configuration, Mapping) or not all(
        isinstance(word, str) for pair in configuration.items() for word in pair
    ):
        yield f".configuration is {configuration!r}; it must map strings to strings"


def _known_gaps(implementation: AnyImplementation) -> Iterator[str]:
    gaps = implementation.known_gaps
    if not _holds(gaps, lambda gap: isinstance(gap, KnownGap)):
        yield f".known_gaps is {gaps!r}; it must be a tuple of KnownGap"
        return
    for gap in gaps:
        if not isinstance(gap.issue, str) or not gap.issue:
            yield f".known_gaps has issue={gap.issue!r}; it must name the issue that tracks the gap"
        if not isinstance(gap.relation, str | None):
            yield f".known_gaps has relation={gap.relation!r}; it must be the name of one, or None for any"
        if not isinstance(gap.mask, Mask | None):
            yield f".known_gaps has mask={gap.mask!r}; it must be a Mask, or None for any"
        if not isinstance(gap.raises, str | None):
            yield f".known_gaps has raises={gap.raises!r}; it must be the name of an exception, or None for none"
        if not isinstance(gap.always, bool):
            yield f".known_gaps has always={gap.always!r}; it must be True or False"
        if not isinstance(gap.batch, str | None):
            yield f".known_gaps has batch={gap.batch!r}; it must be the name of one, or None for any"
        if not isinstance(gap.device, str | None):
            yield f".known_gaps has device={gap.device!r}; it must be a torch device type, or None for any"
        if gap.dtype not in (None, *DTYPE_NAMES):
            yield f".known_gaps has dtype={gap.dtype!r}; it must be among {', '.join(DTYPE_NAMES)}, or None for any"


def _support(implementation: Implementation[Any]) -> Iterator[str]:
    support = implementation.support
    yield from _dtypes(support.dtypes)
    if not support.masks or not _holds(support.masks, lambda mask: isinstance(mask, Mask)):
        yield f" supports masks {support.masks!r}; they must be a tuple of members of Mask"
    for dimension in ("head_dims", "page_sizes"):
        value = getattr(support, dimension)
        if not callable(value) and not _holds(value, lambda size: type(size) is int):
            yield f" supports {dimension} {value!r}; they must be whole numbers in a collection, or a function of one"
    for field in dataclasses.fields(support):
        value = getattr(support, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            yield f".support has {field.name}={value!r}; it must be True or False"


def _answers(implementation: AnyImplementation) -> Iterator[str]:
    computes_attention = isinstance(implementation, Implementation)
    problem = _SMALL[Implementation.operation if computes_attention else implementation.operation]
    ask: Callable[[Any], object] = implementation.reasons
    try:
        reasons = ask(problem)
    except Exception:
        return  # A cell that asks tells of it, and is an error of its own.
    if not isinstance(reasons, list) or not _holds(reasons, lambda reason: isinstance(reason, str)):
        yield f".reasons returned {reasons!r}; it must be a list of sentences, empty where a problem can be computed"


def _token_dtypes(implementation: TokenImplementation[Any, Any]) -> Iterator[str]:
    yield from _dtypes(implementation.dtypes)


def _dtypes(dtypes: object) -> Iterator[str]:
    if not dtypes or not _holds(dtypes, lambda dtype: dtype in DTYPE_NAMES):
        yield f" supports dtypes {dtypes!r}; they must be among {', '.join(DTYPE_NAMES)}"


def _holds(values: object, accepted: Callable[[Any], bool]) -> bool:
    """Whether values are a collection of what is accepted; a string is one of characters, which nobody means."""
    return isinstance(values, Collection) and not isinstance(values, str) and all(map(accepted, values))
