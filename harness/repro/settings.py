"""A problem as named settings, one level deep, and back: all of it but its requests.

Each table names every field of a dataclass and says of which kind its values are. No two fields of one problem have the
same name, but those of a graph's use, which begin with `graph_`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samebits.backends.graph_use import GraphHistory, GraphMode, GraphUse
from samebits.backends.problem import (
    DATA_NAMES,
    DTYPE_NAMES,
    POISON_NAMES,
    Circumstances,
    Contradiction,
    Geometry,
    Layout,
    Mask,
    OtherLayer,
    Problem,
    Request,
    Strides,
)
from samebits.backends.token_problem import (
    CacheWrite,
    Linear,
    MergeStates,
    RmsNorm,
    RotaryEmbedding,
    TokenLayout,
    TokenOperation,
    TokenProblem,
)
from samebits.harness.relations import AnyProblem
from samebits.harness.repro.kinds import Choice, Flag, Kind, Name, Number, Optional, Whole, members

Kinds = Mapping[str, Kind]

_COUNT, _SIZE, _SEED, _FLAG = Whole(), Whole(1), Whole(None, None), Flag()
_STRIDES, _DTYPE, _POISON = members(Strides), Choice(DTYPE_NAMES), Choice(POISON_NAMES)
# Seeds of a permutation are keys of a counter-based generator, which has 128 bits for them and for what is stale.
_PAGE_SEED = Whole(0, 2**63 - 1)

_GEOMETRY: Kinds = {
    "name": Name(),
    "num_heads": _SIZE,
    "num_kv_heads": _SIZE,
    "head_dim": _SIZE,
    "page_size": _SIZE,
    "window": Optional(_SIZE),
    "softcap": Optional(Number(positive=True)),
    "scale": Optional(Number()),
    "sinks": _FLAG,
}
_LAYOUT: Kinds = {
    "page_seed": _PAGE_SEED,
    "pages_in_order": _FLAG,
    "extra_table_columns": _COUNT,
    "max_seq_len_slack": _COUNT,
    "padding_requests": _COUNT,
    "padding_tokens": _COUNT,
    "strides": _STRIDES,
    "far_pages": _FLAG,
    "poison": _POISON,
}
_TOKEN_LAYOUT: Kinds = {
    "padding_tokens": _COUNT,
    "strides": _STRIDES,
    "leading_dimensions": Whole(1, 3),
    "page_seed": _PAGE_SEED,
    "poison": _POISON,
    "watched": _FLAG,
}
_CIRCUMSTANCES: Kinds = {
    "attempt": _COUNT,
    "scratch": Optional(_POISON),
    "shift": _COUNT,
    "beside_work": _FLAG,
    "threads": Optional(Whole(1, 1024)),
    "calls": _SIZE,
    "other_layer": Optional(members(OtherLayer)),
    "second_process": _FLAG,
    "output_only": _FLAG,
    "contradiction": Optional(members(Contradiction)),
}
_GRAPH: Kinds = {
    "mode": members(GraphMode),
    "num_requests": _SIZE,
    "num_tokens": _SIZE,
    "max_query_len": _COUNT,
    "max_seq_len": _COUNT,
    "history": members(GraphHistory),
}
_GRAPH_PREFIX = "graph_"
_OPERATIONS: Mapping[type[TokenOperation], Kinds] = {
    RotaryEmbedding: {
        "name": Name(),
        "num_heads": _SIZE,
        "num_kv_heads": _SIZE,
        "head_dim": _SIZE,
        "rotary_dim": _SIZE,
        "interleaved": _FLAG,
        "inverse": _FLAG,
        "cache_dtype": Optional(_DTYPE),
        "max_position": _SIZE,
    },
    CacheWrite: {"name": Name(), "num_kv_heads": _SIZE, "head_dim": _SIZE, "page_size": _SIZE},
    MergeStates: {"name": Name(), "num_heads": _SIZE, "head_dim": _SIZE},
    Linear: {"name": Name(), "in_features": _SIZE, "out_features": _SIZE, "bias": _FLAG},
    RmsNorm: {"name": Name(), "size": _SIZE, "epsilon": Number()},
}
_OF_REQUESTS: Kinds = {"dtype": _DTYPE, "data": Choice(DATA_NAMES), "seed": _SEED}
_ATTENTION = "attention"


@dataclass(frozen=True)
class Form:
    """What a problem of one operation consists of besides its requests.

    Attributes:
        sizes: the dataclass of its sizes.
        size_kinds: of those.
        layout: the dataclass of its layout.
        layout_kinds: of that.
        own: settings of the problem itself.
    """

    sizes: type[Geometry | TokenOperation]
    size_kinds: Kinds
    layout: type[Layout | TokenLayout]
    layout_kinds: Kinds
    own: Kinds

    @property
    def kinds(self) -> dict[str, Kind]:
        """Of all settings, by name, in the order in which they are told."""
        of_graph = {_GRAPH_PREFIX + name: kind for name, kind in _GRAPH.items()}
        return {**self.size_kinds, **self.own, **self.layout_kinds, **_CIRCUMSTANCES, **of_graph}

    @property
    def defaults(self) -> dict[str, object]:
        """Of those settings that have one, by name."""
        kinds = (self.sizes, self._problem, self.layout, Circumstances)
        return {
            field.name: field.default
            for kind in kinds
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        }

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the settings that every problem needs."""
        return tuple(name for name in (*self.size_kinds, *self.own) if name not in self.defaults)

    def settings_of(self, problem: AnyProblem) -> dict[str, object]:
        """All settings of a problem by name; those of a graph where it has one."""
        sizes = problem.geometry if isinstance(problem, Problem) else problem.operation
        graph = problem.circumstances.graph
        found = {name: getattr(sizes, name) for name in self.size_kinds}
        found |= {name: getattr(problem, name) for name in self.own}
        found |= {name: getattr(problem.layout, name) for name in self.layout_kinds}
        found |= {name: getattr(problem.circumstances, name) for name in _CIRCUMSTANCES}
        return found | ({_GRAPH_PREFIX + name: getattr(graph, name) for name in _GRAPH} if graph else {})

    def problem(self, settings: Mapping[str, Any], requests: tuple[Request, ...]) -> AnyProblem:
        """The problem of some settings, which hold all that are required.

        Args:
            settings: by name; a default stands for what is not among them.
            requests: the batch.

        Raises:
            ValueError: they do not fit together.
        """

        def of(kinds: Kinds, prefix: str = "") -> dict[str, Any]:
            return {name: settings[prefix + name] for name in kinds if prefix + name in settings}

        of_graph = of(_GRAPH, _GRAPH_PREFIX)
        missing = [name for name in _GRAPH if name not in of_graph and name != "history"]
        if of_graph and missing:
            given, absent = (f"{_GRAPH_PREFIX}{names[0]}" for names in (list(of_graph), missing))
            raise ValueError(f"{given} is given and {absent} is not; a graph needs both")
        circumstances = Circumstances(**of(_CIRCUMSTANCES), graph=GraphUse(**of_graph) if of_graph else None)
        sizes = self.sizes(**of(self.size_kinds))
        layout: Any = self.layout(**of(self.layout_kinds))
        shared = {"requests": requests, "layout": layout, "circumstances": circumstances, **of(self.own)}
        if isinstance(sizes, Geometry):
            return Problem(geometry=sizes, **shared)
        return TokenProblem(operation=sizes, **shared)

    @property
    def _problem(self) -> type[AnyProblem]:
        return Problem if self.sizes is Geometry else TokenProblem


FORMS: Mapping[str, Form] = {
    _ATTENTION: Form(Geometry, _GEOMETRY, Layout, _LAYOUT, {"mask": members(Mask), **_OF_REQUESTS}),
    **{
        operation.operation: Form(operation, kinds, TokenLayout, _TOKEN_LAYOUT, _OF_REQUESTS)
        for operation, kinds in _OPERATIONS.items()
    },
}


def operation_of(problem: AnyProblem) -> str:
    """The name of what a problem asks for, by which its form is found."""
    return _ATTENTION if isinstance(problem, Problem) else problem.operation.operation
