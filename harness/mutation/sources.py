"""The sources that are mutated, and whose cells tell of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samebits.harness.mutation.mutants import Mutant, numbered
from samebits.harness.records import UnusableInput

# The folder that holds all packages, of a checkout or of an installation.
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Group:
    """An implementation of an operation, whose cells tell of a mutant.

    Attributes:
        label: of the implementation.
        operation: what is computed.
    """

    label: str
    operation: str

    def __str__(self) -> str:
        return f"{self.label}, {self.operation}"


@dataclass(frozen=True)
class Source:
    """A source that is mutated.

    Attributes:
        path: below the folder that holds all packages, with slashes.
        groups: whose cells tell of its mutants: the next one's where none of the last one's is red.
        scopes: names of the functions and classes of a module that are mutated; empty for all.
    """

    path: str
    groups: tuple[Group, ...]
    scopes: tuple[str, ...] = ()

    @property
    def is_module(self) -> bool:
        """Whether it is a Python module, and not a C++ source."""
        return self.path.endswith(".py")

    @property
    def module(self) -> str:
        """Full name of the module that it is."""
        return "samebits." + self.path.removesuffix(".py").replace("/", ".")

    def content(self) -> bytes:
        """What it holds."""
        return (ROOT / self.path).read_bytes()

    def mutants(self) -> tuple[Mutant, ...]:
        """All of its mutants.

        Raises:
            UnusableInput: what parses it is not installed.
        """
        content = self.content()
        try:
            if self.is_module:
                from samebits.harness.mutation.python_operators import python_edits

                return numbered(self.path, content, python_edits(content, self.scopes))
            from samebits.harness.mutation.cpp_operators import cpp_edits
        except ImportError as error:
            raise UnusableInput(
                f"mutants need {error.name}, which parses sources; pip install 'samebits[mutants]'"
            ) from error
        return numbered(self.path, content, cpp_edits(content))


_ATTENTION, _ROPE, _WRITE, _MERGE, _LINEAR, _NORM = "attention", "rope", "cache_write", "merge", "linear", "rms_norm"
# The C++ source of each operation, those of the cheapest cells first.
CPP_SOURCES = {
    _NORM: "rms_norm.cpp",
    _WRITE: "cache_write.cpp",
    _MERGE: "merge.cpp",
    _LINEAR: "linear.cpp",
    _ROPE: "rotary.cpp",
    _ATTENTION: "attention.cpp",
}


def _of(label: str, *operations: str) -> tuple[Group, ...]:
    return tuple(Group(label, operation) for operation in CPP_SOURCES if operation in operations)


_CPU, _TRITON, _FLEX = "CPU/bundled", "TRITON_ATTN/bundled", "FLEX_ATTENTION/torch"
# Left out: kernels/cpu/build.py and amx.py, which compute nothing, and the Triton kernel of the copy to a persistent
# buffer, which no cell calls on a processor. Headers that all operations share are judged by those that use most of
# them. kernels/cpu/amx*.h are compiled where a processor has AMX; elsewhere no mutant of theirs changes machine code.
SOURCES = (
    Source("kernels/cpu/attention.cpp", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/cache_write.cpp", _of(_CPU, _WRITE)),
    Source("kernels/cpu/linear.cpp", _of(_CPU, _LINEAR)),
    Source("kernels/cpu/merge.cpp", _of(_CPU, _MERGE)),
    Source("kernels/cpu/rms_norm.cpp", _of(_CPU, _NORM)),
    Source("kernels/cpu/rotary.cpp", _of(_CPU, _ROPE)),
    Source("kernels/cpu/amx.h", _of(_CPU, _LINEAR, _ATTENTION)),
    Source("kernels/cpu/amx_chunk.h", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/amx_linear.h", _of(_CPU, _LINEAR)),
    Source("kernels/cpu/amx_softmax.h", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/attention_call.h", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/chunk.h", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/elements.h", _of(_CPU, _ROPE, _ATTENTION, _MERGE)),
    Source("kernels/cpu/exponential.h", _of(_CPU, _MERGE, _ATTENTION)),
    Source("kernels/cpu/fma_chunk.h", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/lanes.h", _of(_CPU, _NORM, _LINEAR, _ATTENTION)),
    Source("kernels/cpu/rows.h", _of(_CPU, _NORM, _WRITE, _ROPE)),
    Source("kernels/cpu/threads.h", _of(_CPU, _NORM, _ATTENTION)),
    Source("kernels/cpu/tile.h", _of(_CPU, _LINEAR, _ATTENTION)),
    Source("kernels/cpu/arguments.py", _of(_CPU, _NORM, _WRITE, _MERGE, _LINEAR)),
    Source("kernels/cpu/attention.py", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/cache_write.py", _of(_CPU, _WRITE)),
    Source("kernels/cpu/lasting_schedule.py", _of(_CPU, _ATTENTION)),
    Source("kernels/cpu/linear.py", _of(_CPU, _LINEAR)),
    Source("kernels/cpu/merge.py", _of(_CPU, _MERGE)),
    Source("kernels/cpu/rms_norm.py", _of(_CPU, _NORM)),
    Source("kernels/cpu/rotary.py", _of(_CPU, _ROPE)),
    Source("backends/cpu.py", _of(_CPU, _ATTENTION), scopes=("BundledAttention",)),
    Source("kernels/triton/cache_write.py", _of(_TRITON, _WRITE)),
    Source("kernels/triton/linear.py", _of(_TRITON, _LINEAR)),
    Source("kernels/triton/merge.py", _of(_TRITON, _MERGE)),
    Source("kernels/triton/paged_attention.py", _of(_TRITON, _ATTENTION)),
    Source("kernels/triton/rms_norm.py", _of(_TRITON, _NORM)),
    Source("kernels/triton/rotary.py", _of(_TRITON, _ROPE)),
    Source("backends/triton_attn.py", _of(_TRITON, _ATTENTION), scopes=("TritonAttention",)),
    Source(
        "backends/triton_operations.py",
        _of(_TRITON, _WRITE, _NORM, _MERGE, _LINEAR, _ROPE),
        scopes=(
            "TritonOperation",
            "TritonRotary",
            "TritonCacheWrite",
            "TritonMerge",
            "TritonLinear",
            "TritonRmsNorm",
            "_row_layout",
            "_ceil_div",
        ),
    ),
    Source("kernels/flex/attention.py", _of(_FLEX, _ATTENTION)),
    Source("kernels/flex/cache.py", _of(_FLEX, _ATTENTION)),
    Source("kernels/flex/compiled.py", _of(_FLEX, _ATTENTION)),
    Source("kernels/flex/log_sum_exp.py", _of(_FLEX, _ATTENTION)),
    Source("kernels/flex/tiles.py", _of(_FLEX, _ATTENTION)),
    Source("backends/flex_attention.py", _of(_FLEX, _ATTENTION), scopes=("FlexAttention",)),
)


def chosen_sources(paths: tuple[str, ...]) -> tuple[Source, ...]:
    """The sources that are asked for by their paths, or by the ends of them; all where none is.

    Raises:
        UnusableInput: there is no such source.
    """
    for path in paths:
        if not any(_is_named(source, path) for source in SOURCES):
            raise UnusableInput(f"unknown source {path!r}; known are {', '.join(source.path for source in SOURCES)}")
    return tuple(source for source in SOURCES if not paths or any(_is_named(source, path) for path in paths))


def _is_named(source: Source, path: str) -> bool:
    return f"/{source.path}".endswith(f"/{path}")
