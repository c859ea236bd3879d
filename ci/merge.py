#!/usr/bin/env python3
"""Merges shards and compares with a baseline: `ci/merge.py MATRIX SHARDS DIRECTORY BASELINE`.

SHARDS holds a directory of results for each job. One merged run for each kind of device goes to DIRECTORY, and each is
compared with BASELINE. On GitHub the pages become the summary of the step, and so does what is wrong with the shards.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SAMEBITS = (sys.executable, "-m", "samebits.harness.cli")
_PAGE = "regression.md"
_USAGE = "usage: ci/merge.py MATRIX SHARDS DIRECTORY BASELINE"


def main(matrix: str, shards: str, directory: str, baseline: str) -> int:
    """Merges, compares, and tells.

    Returns:
        0, 1 for a regression on any device, 2 where shards are lost or do not belong together.
    """
    results = sorted(str(path.parent) for path in Path(shards).rglob("records.jsonl"))
    if not results:
        return _refused(f"there are no results in {shards!r}")
    merge = [*_SAMEBITS, "merge", "--matrix", matrix, "-o", directory, *results]
    merged = subprocess.run(merge, stderr=subprocess.PIPE, text=True, check=False)
    if merged.returncode:
        return _refused(merged.stderr.strip())
    worst = 0
    for device in sorted(path.parent for path in Path(directory).glob("*/records.jsonl")):
        output = device / "compared"
        compared = subprocess.run([*_SAMEBITS, "compare", baseline, str(device), "-o", str(output)], check=False)
        worst = max(worst, compared.returncode)
        page = output / _PAGE
        _summarise(page.read_text(encoding="utf-8") if page.exists() else f"{device.name} could not be compared\n")
    return worst


def _refused(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    _summarise(f"**{sentence}**\n")
    return 2


def _summarise(page: str) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(page + "\n")


if __name__ == "__main__":
    words = sys.argv[1:]
    asked = not {"-h", "--help"}.isdisjoint(words)
    if asked or len(words) != 4 or any(word.startswith("-") for word in words):
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    sys.exit(main(*words))
