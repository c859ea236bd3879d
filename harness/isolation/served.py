"""Processes that answer questions and can be thrown away, as the process that asks sees them.

A server is forked from a `Template`, which takes milliseconds, where a new interpreter would import for seconds. See
`forked` for what happens on the other side.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable

from samebits.harness.isolation.forked import STACK_SIGNAL
from samebits.harness.isolation.frames import FrameReader, Garbled, write_frame
from samebits.harness.isolation.last_words import Tail, ending, last_words, memory
from samebits.harness.isolation.limits import Limits, held_by_session, held_memory

_MODULE = "samebits.harness.isolation.template_main"
_PIECE = 1 << 16
# A template imports, on a machine that may be busy and from a disk that may be far away.
_START_SECONDS = 300.0
# How often memory is looked at: an allocation takes longer to fill a machine.
_TICK_SECONDS = 0.1
# How often that of its children is, too, for which all processes of the machine are looked at.
_SESSION_TICK_SECONDS = 1.0
# For what takes no time unless something is wrong: to end, or to write down where it is.
_PATIENCE_SECONDS = 10.0
_STACK_SECONDS = 2.0
_QUIET_SECONDS = 0.2


class Lost(RuntimeError):
    """A server that does not serve any more.

    Attributes:
        broke_limit: whether it was ended because it took too long or too much memory.
    """

    def __init__(self, how: str, words: str, broke_limit: bool = False) -> None:
        """Puts what is known into one clause, without its subject.

        Args:
            how: it ended.
            words: that it wrote last.
            broke_limit: whether it was ended because it took too long or too much memory.
        """
        super().__init__(f"{how}: {words}")
        self.broke_limit = broke_limit


class Template:
    """A process that has imported what servers need, and waits to be forked into them."""

    def __init__(self, module: str, options: object) -> None:
        """Starts nothing yet.

        Args:
            module: dotted name of what serves; has `make_server(options)`.
            options: handed on to it; must be picklable.
        """
        self._told = pickle.dumps(sys.path) + pickle.dumps((module, options))
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._forked: list[int] = []
        # By process id, as `subprocess` has them; those that nobody has asked for yet.
        self._exit_codes: dict[int, int] = {}

    @property
    def pid(self) -> int:
        """Of the process; 0 where there is none."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the process and does not wait for it; nothing where it is there already."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- as long as the process
        self.control, theirs = socket.socketpair()
        # Not from the working directory, whose folders may have the names of packages. In a session of its own: an
        # interrupt of the terminal is this process's to deal with.
        command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._process = process
        self._finalizer = weakref.finalize(self, _end_template, process, self.control)
        assert process.stdin is not None
        try:
            process.stdin.write(self._told)
            process.stdin.close()
        except BrokenPipeError:
            pass  # It is dead, which is told to who asks for a server.

    def fork(self) -> ServedProcess:
        """A new server, when the template can be forked.

        Raises:
            Lost: there is none.
        """
        self.start()
        ours, theirs = _pipes()
        try:
            socket.send_fds(self.control, [b"f"], theirs)
        except OSError as error:
            _close_all(ours)
            raise self._failed() from error
        finally:
            _close_all(theirs)
        end = time.monotonic() + _START_SECONDS
        while not self._forked:
            if not self.note(max(0.0, end - time.monotonic())):
                _close_all(ours)
                raise self._failed()
        return ServedProcess(self, self._forked.pop(), *ours)

    def note(self, seconds: float) -> bool:
        """Waits for news of servers, and says whether any came.

        Args:
            seconds: to wait at most.
        """
        self.control.settimeout(seconds)
        try:
            data = self.control.recv(_PIECE)
        except (TimeoutError, BlockingIOError, ConnectionError):
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for word, pid, *status in map(bytes.split, lines):
            if word == b"forked":
                self._forked.append(int(pid))
            else:
                self._exit_codes[int(pid)] = int(status[0])
        return bool(data)

    def exit_code(self, pid: int) -> int | None:
        """How a server ended; None where it has not, as far as is known."""
        return self._exit_codes.get(pid)

    def close(self) -> None:
        """Ends the process and its servers."""
        if self._process is not None:
            self._finalizer()
            self._process = None
            self._rest, self._forked, self._exit_codes = b"", [], {}

    def _failed(self) -> Lost:
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        self._errors.seek(0)
        words = last_words(self._errors.read().decode(errors="replace"))
        self.close()
        return Lost(f"could not be started: the process that it is forked from {ending(code)}", words)


class ServedProcess:
    """A server: asked by `send`, answers by `receive`, one message after another.

    Attributes:
        pid: of the process, whose group has the same number.
    """

    def __init__(self, template: Template, pid: int, questions: int, answers: int, output: int, errors: int) -> None:
        """Takes over the pipes of a process that was forked."""
        self.pid = pid
        self._template = template
        self._questions = questions
        self._answers = FrameReader()
        self._output, self._errors = Tail(), Tail()
        self._sinks: dict[int, FrameReader | Tail] = {
            answers: self._answers,
            output: self._output,
            errors: self._errors,
        }
        self._answers_pipe = answers
        self._selector = selectors.DefaultSelector()
        for pipe in self._sinks:
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ)
        self._selector.register(template.control, selectors.EVENT_READ)
        self._is_open = True

    @property
    def exit_code(self) -> int | None:
        """How it ended, as `subprocess` has it; None where it has not, as far as is known."""
        if self._is_open:
            self._read(0.0)
        return self._template.exit_code(self.pid)

    def send(self, question: bytes) -> None:
        """Asks.

        Raises:
            Lost: it has ended.
        """
        try:
            write_frame(self._questions, question)
        except BrokenPipeError as error:
            raise self._lost(self._how_it_ended()) from error

    def receive(self, limits: Limits) -> bytes:
        """The next message of its answer.

        Raises:
            Lost: it ended, or was ended because it broke a limit.
        """
        begun = time.monotonic()
        end, next_look = begun + limits.seconds, begun + _SESSION_TICK_SECONDS
        wait = 0.0  # What came together with the message before is there already.
        while True:
            # Before the clock is looked at: this process, too, may have been stopped for a while.
            self._read(wait)
            wait = _TICK_SECONDS
            try:
                message = self._answers.next()
            except Garbled as error:
                raise self._lost(f"wrote into the pipe of its answers, where {error}") from error
            if message is not None:
                return message
            if self._has_ended():
                raise self._lost(self._how_it_ended())
            held = held_memory(self.pid)
            if held <= limits.nbytes and time.monotonic() > next_look:
                held = held_by_session(self.pid, limits.nbytes)
                next_look = time.monotonic() + _SESSION_TICK_SECONDS
            if held > limits.nbytes:
                told = f"held {memory(held)} of memory, and may hold {memory(limits.nbytes)}"
                raise self._lost(told, broke_limit=True)
            if time.monotonic() > end:
                self._ask_for_stack()
                raise self._lost(f"did not answer in full for {limits.seconds:g} s", broke_limit=True)

    def take_output(self) -> tuple[str, str]:
        """What it wrote to stdout and to stderr since this was asked last, or the end of it."""
        if self._is_open:
            self._read(0.0)
        return self._output.take(), self._errors.take()

    def close(self) -> None:
        """Ends it, which it does by itself when it cannot be asked any more."""
        if self._is_open:
            os.close(self._questions)
            self._wait(_PATIENCE_SECONDS)
            self._kill()

    def kill(self) -> None:
        """Ends it, whatever it does."""
        if self._is_open:
            os.close(self._questions)
            self._kill()

    def _has_ended(self) -> bool:
        return self._template.exit_code(self.pid) is not None or self._answers_pipe not in self._selector.get_map()

    def _how_it_ended(self) -> str:
        self._wait(1.0)
        code = self._template.exit_code(self.pid)
        return "closed the pipe of its answers" if code is None else ending(code)

    def _lost(self, how: str, broke_limit: bool = False) -> Lost:
        self.kill()
        return Lost(how, last_words(self._errors.peek()), broke_limit)

    def _ask_for_stack(self) -> None:
        """Has it write the frames that it is in, and waits until it has."""
        try:
            os.kill(self.pid, STACK_SIGNAL)
        except ProcessLookupError:
            return
        end = time.monotonic() + _STACK_SECONDS
        while time.monotonic() < end and self._read(_QUIET_SECONDS):
            continue

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._template.exit_code(self.pid) is None and self._template.control in self._selector.get_map():
            # Time is looked at even where something comes again and again, as of who prints without end.
            if not self._read(max(0.0, end - time.monotonic())) or time.monotonic() > end:
                return

    def _kill(self) -> None:
        if self._template.exit_code(self.pid) is None:
            for kill in (os.killpg, os.kill):  # It may not have a group yet.
                try:
                    kill(self.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._wait(_PATIENCE_SECONDS)
        # What is still in the pipes, into which a process in a session of its own may write on.
        end = time.monotonic() + _STACK_SECONDS
        while self._read(0.0) and time.monotonic() < end:
            continue
        self._is_open = False
        self._selector.close()
        _close_all(self._sinks)

    def _read(self, seconds: float) -> bool:
        """Takes what comes, and says whether anything did.

        Args:
            seconds: to wait for it at most.
        """
        came = False
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._template.control:
                if not self._template.note(0.0):
                    self._selector.unregister(key.fileobj)
                came = True
                continue
            data = os.read(key.fd, _PIECE)
            if not data:
                self._selector.unregister(key.fd)
            self._sinks[key.fd].feed(data)
            came = True
        return came


def _pipes() -> tuple[list[int], list[int]]:
    """Our ends and theirs of four pipes: questions, answers, stdout and stderr."""
    their_questions, questions = os.pipe()
    answers, their_answers = os.pipe()
    output, their_output = os.pipe()
    errors, their_errors = os.pipe()
    return [questions, answers, output, errors], [their_questions, their_answers, their_output, their_errors]


def _close_all(pipes: Iterable[int]) -> None:
    for pipe in pipes:
        os.close(pipe)


def _end_template(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """Ends a template, which does so with its servers when it cannot be asked any more."""
    control.close()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
