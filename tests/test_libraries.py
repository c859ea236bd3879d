"""Vendors' libraries: found where they are installed or in a bundle, checked before they are loaded, told if absent."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from samebits.backends.compiled_library import CompiledLibrary
from samebits.backends.libraries import LibraryMissing, UnusableBundle, find, use_bundles
from samebits.backends.subject import Availability
from samebits.harness.cli import main as samebits
from samebits.harness.matrix import Cell
from samebits.harness.session import MatrixSession, Options

NAME, FILE = "some-vendor", "vendor/kernels.py"


@pytest.fixture(autouse=True)
def no_bundles() -> Iterator[None]:
    yield
    use_bundles(())


def make_folder(
    folder: Path,
    files: dict[str, bytes],
    name: str = NAME,
    torch_version: str = "",
    changes: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """A bundle of one library of version 1.5, with some keys of its manifest changed."""
    for path, content in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(content)
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    library = {"name": name, "version": "1.5", "torch": torch_version, "files": digests}
    folder.mkdir(exist_ok=True)
    manifest = {"schema": 1, "libraries": [library], **changes}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_a_file_is_found_with_its_version(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "libs", {FILE: b"x = 1\n"})
    use_bundles([folder])
    found = find(NAME, FILE)
    assert (found.path, found.version) == (folder / NAME / FILE, "1.5")


def test_a_second_bundle_holds_what_the_first_has_not(tmp_path: Path) -> None:
    first = make_folder(tmp_path / "first", {"vendor/other.py": b""})
    second = make_folder(tmp_path / "second", {FILE: b""})
    use_bundles([first, second])
    assert find(NAME, FILE).path == second / NAME / FILE
    assert find(NAME, "vendor/other.py").path == first / NAME / "vendor/other.py"


def test_what_is_installed_comes_before_a_bundle(tmp_path: Path) -> None:
    use_bundles([make_folder(tmp_path / "libs", {"numpy/__init__.py": b"bundled\n"}, name="numpy")])
    found = find("numpy", "numpy/__init__.py")
    assert found.version == importlib.metadata.version("numpy")
    assert tmp_path not in found.path.parents
    with pytest.raises(LibraryMissing, match=r"numpy .* is installed without numpy/no_such_file\.py"):
        find("numpy", "numpy/no_such_file.py")


@pytest.mark.parametrize(
    ("files", "asked", "sentence"),
    [
        (None, NAME, "some-vendor is not installed, and no bundle is given"),
        ({FILE: b""}, "other-vendor", "other-vendor is not installed, and no bundle holds it"),
        ({"vendor/other.py": b""}, NAME, "the bundle's some-vendor 1.5 is without vendor/kernels.py"),
    ],
)
def test_what_is_absent_is_one_sentence(
    tmp_path: Path, files: dict[str, bytes] | None, asked: str, sentence: str
) -> None:
    use_bundles([] if files is None else [make_folder(tmp_path / "libs", files)])
    with pytest.raises(LibraryMissing, match=sentence):
        find(asked, FILE)


@pytest.mark.parametrize(
    ("built_for", "ours", "fits"),
    [
        ("2.11.0", "2.11.0+cu130", True),
        ("2.11.0", "2.11.0", True),
        ("2.13.0+cpu", "2.13.0+cpu", True),
        ("2.13.0+cpu", "2.13.0+cu130", False),
        ("2.11.0", "2.13.0+cpu", False),
        ("", "2.13.0", True),
    ],
)
def test_compiled_files_are_for_one_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_for: str, ours: str, fits: bool
) -> None:
    use_bundles([make_folder(tmp_path / "libs", {"vendor/_C.abi3.so": b"", FILE: b""}, torch_version=built_for)])
    monkeypatch.setattr(torch, "__version__", ours)
    assert find(NAME, FILE).version == "1.5", "Python files are for any torch"
    if fits:
        assert find(NAME, "vendor/_C.abi3.so").version == "1.5"
    else:
        with pytest.raises(LibraryMissing, match="was built for torch"):
            find(NAME, "vendor/_C.abi3.so")


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_file_refuses_the_bundle(tmp_path: Path, damage: str) -> None:
    folder = make_folder(tmp_path / "libs", {FILE: b"x = 1\n"})
    if damage == "changed":
        (folder / NAME / FILE).write_bytes(b"x = 2\n")
    else:
        (folder / NAME / FILE).unlink()
    with pytest.raises(UnusableBundle, match="unpack it again" if damage == "changed" else "cannot be read"):
        use_bundles([folder])
    with pytest.raises(LibraryMissing):
        find(NAME, FILE)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 2}, "has schema 2; it must be 1"),
        ({"libraries": [{"name": NAME}]}, "no manifest of a bundle"),
        ({"libraries": 3}, "no manifest of a bundle"),
        (
            {"libraries": [{"name": NAME, "version": "1", "torch": "", "files": {"../../secret": "0"}}]},
            "names '../../secret'; it must be a plain path",
        ),
        ({"libraries": [{"name": "..", "version": "1", "torch": "", "files": {}}]}, "names '..'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UnusableBundle, match=sentence):
        use_bundles([make_folder(tmp_path / "libs", {}, changes=changes)])


@pytest.mark.parametrize("content", [None, "not json"])
def test_a_folder_that_is_no_bundle_is_one_sentence_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "bundle.json").write_text(content)
    assert samebits(["list", "--libs", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("samebits: "), f"a traceback was printed:\n{told}"
    assert "bundle.json" in told


OPERATORS = {"scale": ("x", "bias", "factor")}


@pytest.fixture
def library() -> CompiledLibrary:
    """A library that nothing has loaded yet."""
    return CompiledLibrary("some-vendor", "vendor/_C.abi3.so", "samebits_test_vendor", OPERATORS)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiled library that loads, and registers `scale(x, bias, factor)`."""
    use_bundles([make_folder(tmp_path / "libs", {"vendor/_C.abi3.so": b"\x7fELF"})])
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    with torch.library._scoped_library("samebits_test_vendor", "FRAGMENT") as defined:
        defined.define("scale(Tensor x, Tensor? bias, float factor=3.0) -> Tensor")

        def scale(x: torch.Tensor, bias: torch.Tensor | None, factor: float = 3.0) -> torch.Tensor:
            return x * factor if bias is None else x * factor + bias

        defined.impl("scale", scale, "CompositeExplicitAutograd")
        yield


def test_operators_are_called_by_the_names_of_their_arguments(registered: None, library: CompiledLibrary) -> None:
    loaded = library.loaded
    assert loaded.version == "1.5"
    scale = loaded.operators["scale"]
    assert scale(factor=2.0, x=torch.ones(1), bias=torch.ones(1)).item() == 3.0
    assert scale(x=torch.ones(1), factor=2.0).item() == 2.0, "what has no default and is not named must be None"
    assert scale(x=torch.ones(1)).item() == 3.0, "what has a default and is not named must have it"
    with pytest.raises(RuntimeError, match="other"):
        scale(x=torch.ones(1), other=1)


def test_a_library_is_loaded_once(registered: None, library: CompiledLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[object] = []
    monkeypatch.setattr(torch.ops, "load_library", paths.append)
    assert library.availability("nobody asks for it", "cpu") == Availability(reason="nobody asks for it")
    assert not paths, "what need not be tried was loaded"
    assert library.availability("", "cuda") == Availability(version="1.5", device="cuda")
    assert library.loaded is library.loaded
    assert len(paths) == 1, f"it was loaded {len(paths)} times"


@pytest.mark.parametrize(
    ("operators", "sentence"),
    [
        ({"scale": ("x", "factor")}, "takes x, bias, factor; this adapter passes x, factor"),
        ({"scale": ("factor", "bias", "x")}, "takes x, bias, factor; this adapter passes factor, bias, x"),
        ({"shift": ("x",)}, "registers no samebits_test_vendor::shift"),
    ],
)
def test_another_version_of_an_operator_is_refused(
    registered: None, library: CompiledLibrary, operators: dict[str, Sequence[str]], sentence: str
) -> None:
    other = CompiledLibrary(library.distribution, library.relative, library.namespace, operators)
    assert sentence in other.availability("", "cpu").reason
    with pytest.raises(LibraryMissing, match=sentence):
        _ = other.loaded


def test_a_compiled_file_that_does_not_load_is_one_sentence(tmp_path: Path, library: CompiledLibrary) -> None:
    use_bundles([make_folder(tmp_path / "libs", {"vendor/_C.abi3.so": b"no library\n"})])
    assert library.missing() == "", "whether a file is there is found out without loading it"
    with pytest.raises(LibraryMissing, match=r"loading some-vendor 1\.5's vendor/_C\.abi3\.so raised OSError"):
        _ = library.loaded


ABSENT = """
from samebits.harness.registry import Unloadable


class Absent(Unloadable):
    def absence(self):
        return "" if self.name == "here" else "nobody has it"


def implementations():
    return [Absent("MY_ATTN", name, "nobody has it") for name in ("gone", "here")]
"""


def test_an_absent_library_leaves_one_row_in_each_suite(tmp_path: Path) -> None:
    path = tmp_path / "my_attention.py"
    path.write_text(ABSENT)
    session = MatrixSession(Options(backends=("MY_ATTN",), load=(path,), tier="smoke"))
    for suite in ("batch_invariant", "dtype", "semantics", "run_to_run"):
        cells: dict[str, list[Cell]] = {"gone": [], "here": []}
        for cell in session.cells(suite):
            if cell.flaw is None and cell.implementation.operation == "attention":
                cells[cell.implementation.name].append(cell)
        assert len(cells["gone"]) == 1, f"{suite} has {len(cells['gone'])} cells of an absent library"
        assert len(cells["here"]) > 1, f"{suite} left out cells of a library whose probe must say why it cannot run"
        (cell,) = cells["gone"]
        record = session.run(cell)
        assert (record.verdict.value, record.reasons) == ("unavailable", ("nobody has it",))


def test_a_cell_of_an_absent_library_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "my_attention.py"
    path.write_text(ABSENT)
    name = "MY_ATTN/gone:decode:llama3-8b-causal-mixed:bf16"
    session = MatrixSession(Options(load=(path,), cells=(name,), tier="smoke"))
    assert [cell.cell_id for cell in session.cells("batch_invariant")] == [name]


def test_a_library_that_cannot_say_whether_it_is_absent_leaves_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "my_attention.py"
    path.write_text(ABSENT.replace('return "" if self.name == "here" else', "raise OSError #"))
    session = MatrixSession(Options(backends=("MY_ATTN",), load=(path,), tier="smoke"))
    cells = [cell for cell in session.cells("run_to_run") if cell.flaw is None]
    assert len([cell for cell in cells if cell.implementation.label == "MY_ATTN/gone"]) > 1
