"""The template itself: imports what its servers need, and is forked into them. See `forked`."""

from __future__ import annotations

import pickle
import socket
import sys


def main() -> None:
    """Reads where modules are found and which one serves, before anything heavy is imported."""
    told = sys.stdin.buffer
    # Before any other module of samebits is imported, so that it is found where the other process found it.
    sys.path[:] = pickle.load(told)
    from samebits.harness.isolation.forked import fork_on_demand

    fork_on_demand(socket.socket(fileno=int(sys.argv[1])), *pickle.load(told))


if __name__ == "__main__":
    main()
