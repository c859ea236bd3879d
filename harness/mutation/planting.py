"""A mutant put in the place of its source, in this process and for the rest of its life.

What computes is imported again from there on: the mutated module from a copy, and every module that names it. So a
registry that is made afterwards has the mutant under the label of the implementation that it was made from.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from samebits.harness.mutation.sources import CPP_SOURCES, ROOT, Source

_BUILD = "samebits.kernels.cpu.build"
# The modules that adapters and kernels are in; whoever imports them is one of them.
_PLANTED_IN = ("samebits.backends.", "samebits.kernels.")
# Remembers the kernels' modules that it has imported, by name.
_INTERPRETER = "samebits.backends.triton_interpreter"


class DoesNotCompile(ValueError):
    """A changed C++ source is no program; the message is the compiler's."""


class _FromCopy(importlib.abc.MetaPathFinder):
    """Finds one module in a file that is not its own."""

    def __init__(self, module: str, file: Path) -> None:
        self._module, self._file = module, file

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self._file) if fullname == self._module else None


def plant(source: Source, content: bytes, operation: str, directory: Path) -> None:
    """Puts a content in the place of a source.

    Args:
        source: a module, or a C++ source.
        content: what it is to hold.
        operation: that will be computed: of C++ nothing else is compiled.
        directory: empty; where copies go. It must outlive the process.
    """
    module, file = source.module, directory / Path(source.path).name
    if not source.is_module:
        folder = (ROOT / source.path).parent
        for needed in (folder / CPP_SOURCES[operation], folder / "build.py", *folder.glob("*.h")):
            shutil.copy(needed, directory)
        # It compiles the sources that it lies among.
        module, file = _BUILD, directory / "build.py"
        os.environ["XDG_CACHE_HOME"] = str(directory)
    (directory / Path(source.path).name).write_bytes(content)
    sys.meta_path.insert(0, _FromCopy(module, file))
    for name in _naming(module, _loaded_files()):
        del sys.modules[name]
        # As an attribute of its package the old one would still be found.
        package, _, last = name.rpartition(".")
        vars(sys.modules[package]).pop(last, None)
    if _INTERPRETER in sys.modules:
        sys.modules[_INTERPRETER].import_interpreted.cache_clear()
    importlib.invalidate_caches()


def compiled(directory: Path) -> str:
    """Compiles the C++ sources that were copied to a directory, and returns a digest of the library.

    Raises:
        DoesNotCompile: they do not.
    """
    build = importlib.import_module(_BUILD)
    try:
        build.load_library()
    except build.BuildError as error:
        raise DoesNotCompile(str(error)) from error
    (library,) = directory.glob("samebits/*.so")
    return hashlib.sha256(library.read_bytes()).hexdigest()


def same_code(source: bytes, mutated: bytes) -> bool:
    """Whether two modules compile to the same instructions, wherever in the source these come from."""
    return _instructions(compile(source, "", "exec")) == _instructions(compile(mutated, "", "exec"))


def _instructions(code: CodeType) -> tuple[object, ...]:
    # By their types too: 1 is equal to 1.0, and to True.
    constants = [_instructions(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, tuple(constants)


def _loaded_files() -> dict[str, Path]:
    """The files of the modules that are loaded of those that adapters and kernels are in."""
    files = {}
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None)
        if name.startswith(_PLANTED_IN) and file:
            files[name] = Path(file)
    return files


def _naming(module: str, files: Mapping[str, Path]) -> set[str]:
    """The loaded modules that name a module, in an import or in a string, and those that name one of them."""
    named = {name: _named_in(file) for name, file in files.items()}
    found, left = set(), [module]
    while left:
        name = left.pop()
        found.add(name)
        # Of a package only the name may be written down, and the module's behind a dot.
        told = {name, name.rpartition(".")[0]} if name.startswith("samebits.kernels.triton.") else {name}
        left += [other for other, names in named.items() if other not in found and not told.isdisjoint(names)]
    return found & set(files)


def _named_in(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("samebits."):
            names.add(node.value)
    return names
