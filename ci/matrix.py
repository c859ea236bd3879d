#!/usr/bin/env python3
"""Writes the nightly matrix: `ci/matrix.py FILE [arguments of samebits matrix --json]`.

On GitHub it also sets the outputs `jobs`, those that some runner can take, and `unavailable`, how many cannot be run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_USAGE = "usage: ci/matrix.py FILE [arguments of samebits matrix --json]"


def main(path: str, *arguments: str) -> int:
    """Runs `samebits matrix` and keeps what it prints.

    Raises:
        OSError: a file cannot be written.
    """
    command = [sys.executable, "-m", "samebits.harness.cli", "matrix", "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    jobs = json.loads(done.stdout)["jobs"]
    Path(path).write_text(done.stdout, encoding="utf-8")
    runnable = [job for job in jobs if job["runner"]]
    outputs = os.environ.get("GITHUB_OUTPUT")
    if outputs:
        with Path(outputs).open("a", encoding="utf-8") as stream:
            stream.write(f"jobs={json.dumps(runnable)}\nunavailable={len(jobs) - len(runnable)}\n")
    print(f"{len(runnable)} jobs have a runner, {len(jobs) - len(runnable)} have none")
    return 0


if __name__ == "__main__":
    words = sys.argv[1:]
    asked = not {"-h", "--help"}.isdisjoint(words)
    if asked or not words or words[0].startswith("-"):
        print(_USAGE, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    try:
        sys.exit(main(*words))
    except OSError as error:
        print(f"ci/matrix.py: {error.filename!r} cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
