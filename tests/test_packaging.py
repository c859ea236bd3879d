"""What an installed samebits holds: every package of the checkout."""

from __future__ import annotations

import tomllib

from .suite_runs import ROOT

# Folders of the checkout that are packages for pytest alone, or none.
_NOT_INSTALLED = {"tests", "ci", "docs"}


def test_every_package_of_the_checkout_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[!.]*/**/__init__.py")}
    packages = {folder for folder in folders if folder.split("/")[0] not in _NOT_INSTALLED}
    missing = packages - set(settings["package-dir"].values())
    assert not missing, f"{sorted(missing)} would be missing where samebits is installed"
    assert set(settings["packages"]) == set(settings["package-dir"]), "the two lists of packages differ"


def test_every_file_that_a_package_reads_is_installed_with_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {folder: settings["package-data"].get(name, []) for name, folder in settings["package-dir"].items()}
    left_out = [
        path.relative_to(ROOT).as_posix()
        for folder, patterns in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".cpp", ".css", ".h", ".j2", ".js", ".jsonl")
        if "out" not in path.relative_to(ROOT / folder).parts
        if max((other for other in folders if path.is_relative_to(ROOT / other)), key=len) == folder
        if not any(path.relative_to(ROOT / folder).match(pattern) for pattern in patterns)
    ]
    assert not left_out, f"{left_out} would be missing where samebits is installed"
