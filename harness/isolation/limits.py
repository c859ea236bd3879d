"""What an answer of another process may cost: time, and memory that it and its children hold meanwhile."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samebits.harness.isolation.processes import processes

# Of the machine's memory, for all such processes together: the rest is for those that ask them.
_SHARED_OUT = 0.8
# What every process may hold where there is so much: a case of full size, with its reference and the libraries.
_LEAST = 4 << 30
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """What an answer may cost.

    Attributes:
        seconds: until the next message of it has come.
        nbytes: that the process and those that it starts may hold meanwhile.
    """

    seconds: float = math.inf
    nbytes: float = math.inf


def share_of_memory(total: int, workers: int) -> int:
    """Bytes that one of some processes may hold.

    Args:
        total: bytes of the machine's memory.
        workers: processes that share it.
    """
    room = int(_SHARED_OUT * total)
    return max(room // workers, min(_LEAST, room))


def machine_memory() -> int:
    """Bytes of this machine's memory, or of what the control group of this process may have of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_group_limits()])


def held_memory(pid: int) -> int:
    """Bytes that a process holds, its shared memory among them; what lies in files does not count.

    Args:
        pid: of the process; one that is gone, or of a system that does not tell, holds nothing.
    """
    return _told_bytes(pid, "status", ("RssAnon", "RssShmem"))


def held_by_session(session: int, allowed: float) -> int:
    """Bytes that the processes of a session hold together; what lies in files does not count.

    A process and its copies share pages, which count in each. Only where that makes more than is allowed they are
    counted by share, for which the kernel looks at every page.

    Args:
        session: number of the process that began it.
        allowed: bytes.
    """
    members = [process.pid for process in processes() if process.session == session]
    counted = sum(map(held_memory, members))
    if counted <= allowed:
        return counted
    shares = sum(_told_bytes(pid, "smaps_rollup", ("Pss_Anon", "Pss_Shmem")) for pid in members)
    return shares or counted  # Older kernels tell no shares.


def _told_bytes(pid: int, file: str, names: tuple[str, ...]) -> int:
    """The sum of some lines of a file that the system has of a process, which it tells in KiB."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    told = (line.split() for line in lines)
    return sum(int(words[1]) << 10 for words in told if words and words[0].rstrip(":") in names)


def _group_limits() -> Iterator[int]:
    """What this process's control groups may hold, as a container's or a job's."""
    files = [_CGROUPS / "memory" / "memory.limit_in_bytes"]
    try:
        # Of the second version there is one group, in a line without a controller.
        groups = [line.split("::", 1)[1] for line in Path("/proc/self/cgroup").read_text().splitlines() if "::" in line]
    except OSError:
        groups = []
    for group in groups:
        inner = _CGROUPS / group.strip("/")
        files += [folder / "memory.max" for folder in (inner, *inner.parents) if folder.is_relative_to(_CGROUPS)]
    for file in files:
        try:
            yield int(file.read_text())
        except (OSError, ValueError):
            continue  # There is no such group, or "max": it has no limit.
