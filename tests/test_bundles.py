"""The script that makes bundles of vendors' libraries: what goes in, what comes out, and what is refused on the way."""

from __future__ import annotations

import fnmatch
import importlib.util
import io
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from samebits.backends import aiter, libraries, vllm_flash_attn, vllm_triton
from samebits.backends.libraries import TESTED_VERSIONS

from .suite_runs import ROOT


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


@pytest.mark.parametrize(
    "name",
    [
        "../out.py",
        "/tmp/out.py",
        "vllm/../../out.py",
        "vllm\\..\\out.py",
        "..",
        ".",
        "./a.py",
        "a//b.py",
        "a\x1b[31m",
        "\udc80",
    ],
)
def test_a_member_that_would_leave_the_folder_is_refused(
    tmp_path: Path, bundle: ModuleType, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    archive = archive_of(tmp_path, tarfile.TarInfo("fine.py"), tarfile.TarInfo(name))
    assert bundle.main(["unpack", str(archive), str(tmp_path / "in" / "libs")]) == 2
    assert "no plain file inside of its folder" in capsys.readouterr().err
    assert not (tmp_path / "in").exists(), "something was written before all names were looked at"


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_a_member_that_is_no_plain_file_is_refused(tmp_path: Path, bundle: ModuleType, kind: bytes) -> None:
    member = tarfile.TarInfo("vllm/link.py")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(bundle.UnusableInput, match="no plain file"):
        bundle.unpack(archive_of(tmp_path, member), tmp_path / "libs")


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path, bundle: ModuleType) -> None:
    with pytest.raises(bundle.UnusableInput, match=r"holds 'a\.py' twice; each file may be there once"):
        bundle.unpack(archive_of(tmp_path, tarfile.TarInfo("a.py"), tarfile.TarInfo("a.py")), tmp_path / "libs")


def test_what_the_archive_says_of_modes_and_owners_is_not_followed(tmp_path: Path, bundle: ModuleType) -> None:
    whole = made_bundle(tmp_path, bundle)
    with tarfile.open(whole) as opened, tarfile.open(tmp_path / "changed.tar.xz", "w:xz") as written:
        for member in opened:
            member.mode, member.uid, member.gid, member.mtime = 0o6777, 12345, 12345, 1
            written.addfile(member, opened.extractfile(member))
    bundle.unpack(tmp_path / "changed.tar.xz", tmp_path / "libs")
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat()
    for path in (path for path in (tmp_path / "libs").rglob("*") if path.is_file()):
        found = path.stat()
        assert (found.st_mode, found.st_uid) == (plain.st_mode, plain.st_uid), f"{path} is not as any new file"
        assert found.st_mtime > 1, f"{path} is as old as the archive says"


def tar_header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member that says of itself whatever it likes."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


HUGE, BELOW_ZERO = b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 10 + b"\xfe\x00"
SPARSE = tarfile.GNUTYPE_SPARSE


@pytest.mark.parametrize(
    "content",
    [
        tar_header("a.py", HUGE),
        tar_header("a.py", BELOW_ZERO),
        tar_header("a.py", HUGE, tarfile.XHDTYPE),
        tar_header("a.py", BELOW_ZERO, tarfile.XHDTYPE),
        tar_header("a.py", HUGE, tarfile.GNUTYPE_LONGNAME),
        tar_header("a.py", b"00000000000\0", SPARSE),
    ],
    ids=["huge", "below 0", "a huge name", "a name below 0", "a huge long name", "sparse"],
)
def test_a_size_that_no_bundle_has_is_refused_at_once(tmp_path: Path, bundle: ModuleType, content: bytes) -> None:
    path = tmp_path / "made.tar.xz"
    path.write_bytes(lzma.compress(content + bytes(20 * 512)))
    with pytest.raises(bundle.UnusableInput, match=r"no bundle: it says|no plain file|cannot be opened"):
        bundle.unpack(path, tmp_path / "in" / "libs")
    assert not (tmp_path / "in").exists(), "something was written before all sizes were looked at"


def test_an_archive_that_unpacks_to_more_than_a_bundle_has_is_refused(
    tmp_path: Path, bundle: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_MOST_BYTES", 1 << 20)
    member = tarfile.TarInfo("zeros")
    member.size = 1 << 22
    with tarfile.open(tmp_path / "made.tar.xz", "w:xz") as archive:
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert (tmp_path / "made.tar.xz").stat().st_size < 4096, "this test needs an archive that is small"
    with pytest.raises(bundle.UnusableInput, match="more bytes than a bundle may have"):
        bundle.unpack(tmp_path / "made.tar.xz", tmp_path / "in" / "libs")
    assert not (tmp_path / "in").exists()


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


def made_bundle(folder: Path, bundle: ModuleType) -> Path:
    make_wheel(folder / "wheels", "vllm-triton", bundle, VLLM_FILES)
    bundle.make([bundle.PARTS["vllm-triton"]], folder / "wheels", folder / "whole.tar.xz")
    return folder / "whole.tar.xz"


def repacked(folder: Path, archive: Path, changes: dict[str, bytes | None]) -> Path:
    """An archive with some files changed or added, or left out where there is None."""
    with tarfile.open(archive) as opened:
        contents = {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]
    with tarfile.open(folder / "changed.tar.xz", "w:xz") as written:
        for name, content in (contents | changes).items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                written.addfile(member, io.BytesIO(content))
    return folder / "changed.tar.xz"


UNIFIED = "vllm/vllm/v1/attention/ops/triton_unified_attention.py"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bundle.json": None}, "is no bundle of libraries: it holds no bundle.json"),
        ({"bundle.json": b"{"}, "is no manifest: JSONDecodeError"),
        ({"bundle.json": b"[]"}, "is no manifest: TypeError"),
        ({"bundle.json": b"[" * 100_000}, "is no manifest: RecursionError"),
        ({"bundle.json": b"\xff"}, "is no manifest: UnicodeDecodeError"),
        ({"bundle.json": b'{"schema": 2, "libraries": []}'}, "has schema 2; it must be 1"),
        ({UNIFIED: None}, f"is without '{UNIFIED}', which its bundle.json lists"),
        ({"vllm/more.py": b""}, "holds 'vllm/more.py', which its bundle.json does not list"),
        ({UNIFIED: b"unified = 2\n"}, f"'{UNIFIED}' of .* differs from its checksum in bundle.json"),
    ],
)
def test_an_archive_whose_files_are_not_those_of_its_manifest_leaves_nothing(
    tmp_path: Path, bundle: ModuleType, changes: dict[str, bytes | None], told: str
) -> None:
    whole = made_bundle(tmp_path, bundle)
    (tmp_path / "there").mkdir()
    with pytest.raises(bundle.UnusableInput, match=told):
        bundle.unpack(repacked(tmp_path, whole, changes), tmp_path / "there" / "libs")
    assert not list((tmp_path / "there").iterdir()), "half a folder is left, which a retry would refuse"
    bundle.unpack(whole, tmp_path / "there" / "libs")
    assert libraries.read_bundle(tmp_path / "there" / "libs")


def test_an_archive_that_holds_nothing_is_no_bundle(
    tmp_path: Path, bundle: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"empty": b"", "of_no_files": archive_of(tmp_path).read_bytes(), "of_zeros": lzma.compress(bytes(10240))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert bundle.main(["unpack", str(tmp_path / name), str(tmp_path / "libs")]) == 2, f"the archive {name}"
        told = capsys.readouterr().err
        assert told.startswith(f"bundle: {tmp_path / name} "), told
        assert told.count("\n") == 1, f"more than one sentence: {told}"
        assert not (tmp_path / "libs").exists()


def test_an_archive_that_is_cut_off_anywhere_leaves_nothing(tmp_path: Path, bundle: ModuleType) -> None:
    whole = made_bundle(tmp_path, bundle).read_bytes()
    (tmp_path / "there").mkdir()
    for cut in (1, 10, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.tar.xz").write_bytes(whole[:-cut])
        with pytest.raises(bundle.UnusableInput, match=r"cut\.tar\.xz cannot be opened"):
            bundle.unpack(tmp_path / "cut.tar.xz", tmp_path / "there" / "libs")
        assert not list((tmp_path / "there").iterdir()), f"something is left of an archive without {cut} bytes"


def test_a_folder_that_cannot_be_made_is_not_the_fault_of_the_archive(
    tmp_path: Path, bundle: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "libs"
    assert bundle.main(["unpack", str(made_bundle(tmp_path, bundle)), str(folder)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"bundle: {folder} cannot be made: "), told


def test_an_empty_folder_or_a_link_to_one_is_filled(tmp_path: Path, bundle: ModuleType) -> None:
    whole = made_bundle(tmp_path, bundle)
    (tmp_path / "libs").mkdir()
    (tmp_path / "link").symlink_to("libs")
    assert bundle.unpack(whole, tmp_path / "link") == 5
    assert (tmp_path / "link").is_symlink()
    assert libraries.read_bundle(tmp_path / "libs")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "libs").stat().st_mode == (tmp_path / "plain").stat().st_mode, "others cannot read the bundle"


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
