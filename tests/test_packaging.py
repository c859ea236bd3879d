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
