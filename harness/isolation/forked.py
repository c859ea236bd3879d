"""What happens in a template and in the servers that it is forked into. `served` is how the asking process sees them.

The template imports and waits. It never computes, so that a server begins with no thread, no device and no memory of
what other servers did. It tells when a server has ended, and takes all servers with it when the asking process is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from samebits.harness.isolation.frames import FrameReader, read_frame, write_frame
from samebits.harness.isolation.parent_death import adopt_orphans, end_with_parent
from samebits.harness.isolation.processes import processes

# Sends a message to who asked.
Send = Callable[[bytes], None]
# What answers a question, in one message or several.
Answer = Callable[[bytes, Send], None]
# Asks a server for the frames that it is in.
STACK_SIGNAL = signal.SIGUSR1
# Pipes of a server: its questions, its answers, its stdout and its stderr.
PIPES = 4
_FIRST_TO_GO = "1000"
# A process in a system call that does not return ends when that does.
_ADOPTED_SECONDS = 2.0
_PAUSE_SECONDS = 0.002


def fork_on_demand(control: socket.socket, module: str, options: object) -> None:
    """Forks a server for each set of pipes that comes, and returns in that server when it has no more to do.

    Args:
        control: brings pipes; takes `forked PID` and `ended PID STATUS`, a line each.
        module: has `make_server(options)`, which returns an `Answer`.
        options: handed on to it.
    """
    make_server = importlib.import_module(module).make_server
    # What is imported is garbage in no server, and memory that nobody looks at stays shared.
    gc.collect()
    gc.freeze()
    adopt_orphans()
    template, pid = _Template(control), os.getpid()
    pipes = template.wait_for_server()
    if pipes is not None:
        _become_server(pid, *pipes[2:])
        _serve(make_server(options), *pipes[:2])


class _Template:
    """The process that is forked."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._ended, wake = socket.socketpair()
        self._wake = wake
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._servers: set[int] = set()

    def wait_for_server(self) -> list[int] | None:
        """Returns once in each server, with its pipes, and once in the template, when nobody can ask any more."""
        try:
            while True:
                ready, _, _ = select.select([self._control, self._ended], [], [])
                if self._ended in ready:
                    self._ended.recv(1 << 12)
                    self._tell_endings()
                if self._control in ready:
                    asked, pipes, _, _ = socket.recv_fds(self._control, 1, PIPES)
                    if not asked:
                        break
                    for pipe in pipes:
                        os.set_inheritable(pipe, False)
                    pid = os.fork()
                    if pid == 0:
                        self._forget()
                        return pipes
                    self._servers.add(pid)
                    for pipe in pipes:
                        os.close(pipe)
                    self._control.sendall(f"forked {pid}\n".encode())
        except OSError:
            pass  # The asking process is gone.
        for pid in self._servers:
            _kill_group(pid)
        _end_adopted()
        return None

    def _tell_endings(self) -> None:
        for pid in tuple(self._servers):
            # Looked at and not yet taken: as long as it is there, no other group has its number.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill_group(pid)
                _, status = os.waitpid(pid, 0)
                self._servers.remove(pid)
                # Whose they are cannot be told where another server lives, which may need them.
                if not self._servers:
                    _end_adopted()
                self._control.sendall(f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())

    def _forget(self) -> None:
        """In a server: nothing of the template's is its business."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._control, self._ended, self._wake):
            end.close()


def _kill_group(pid: int) -> None:
    """Ends a server, which may not have a group yet, and what it started in its group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _end_adopted() -> None:
    """Ends what servers left behind in sessions of their own, which became this process's children, and their children.

    Each that ends hands on its own children, so this goes on until there is none, or one cannot be ended.
    """
    end = time.monotonic() + _ADOPTED_SECONDS
    while time.monotonic() < end:
        adopted = [process.pid for process in processes() if process.parent == os.getpid()]
        if not adopted:
            return
        for pid in adopted:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in adopted:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_PAUSE_SECONDS)


def _become_server(template: int, output: int, errors: int) -> None:
    """Gives this process streams and a session of its own: an interrupt of the terminal is the asking process's."""
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    # Not stderr itself, which an implementation may close. The frames of what waits are those of the calling thread.
    faulthandler.enable(errors, all_threads=False)
    faulthandler.register(STACK_SIGNAL, errors, all_threads=False)
    end_with_parent(template)
    if sys.platform == "linux":
        # Where memory runs out the kernel should end this process, and not the one that keeps the records.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)


def _serve(answer: Answer, questions: int, answers: int) -> None:
    server, reader = os.getpid(), FrameReader()

    def send(message: bytes) -> None:
        if os.getpid() != server:
            os._exit(0)  # A copy that an implementation made of this process must not answer as well.
        try:
            write_frame(answers, message)
        except OSError as error:
            # Not by an exception, which would be taken for one of the implementation.
            with contextlib.suppress(OSError):
                os.write(2, f"the pipe of its answers cannot be written: {error}\n".encode())
            os._exit(1)

    while (question := read_frame(questions, reader)) is not None:
        answer(question, send)
