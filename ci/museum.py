#!/usr/bin/env python3
"""Looks at the museum's bugs: `ci/museum.py [arguments of samebits museum]`.

All of them are looked at unless the arguments say otherwise. On GitHub the table becomes the summary of the step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_MUSEUM = (sys.executable, "-m", "samebits.harness.cli", "museum")
_USAGE = "usage: ci/museum.py [arguments of samebits museum]"
# As the Makefile has them.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main(*arguments: str) -> int:
    """Runs the suites on each bug, and tells.

    Returns:
        0, 1 where a bug is missed or a correct implementation fails beside one, 2 where one can no longer be planted.
    """
    command = [*_MUSEUM, *arguments]
    looked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | _ENVIRONMENT)
    print(looked.stdout, end="")
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(f"## The museum of bugs\n\n{looked.stdout}\n")
    return looked.returncode


if __name__ == "__main__":
    words = sys.argv[1:]
    if not {"-h", "--help"}.isdisjoint(words):
        print(_USAGE)
        sys.exit(0)
    sys.exit(main(*words))
