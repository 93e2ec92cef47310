"""A step's command that is not opsctl's: started without a shell, in a process group of its own, for a limited time."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast

from opsctl.postgres.processes import die_with_parent

KEPT_BYTES = 512 * 1024
"""Of a longer output the beginning and the end are kept, half of this each."""

GRACE_SECONDS = 2.0
LOOK_SECONDS = 0.05

Ending = Literal["done", "failed", "timed_out"]


@dataclass(frozen=True)
class Done:
    """What running a command came to. ``message`` says why it failed; ``result`` is that of an opsctl command."""

    ending: Ending
    output: str = ""
    exit_code: int | None = None
    message: str = ""
    result: Mapping[str, Any] | None = None


def run_program(
    words: Sequence[str],
    *,
    timeout_seconds: float | None,
    environment: Mapping[str, str],
    show: Callable[[str], None] = lambda _text: None,
) -> Done:
    """Run to the end, or to the end of its time: then it is ended with everything that it started."""
    try:
        process = subprocess.Popen(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Done("failed", message=f"{words[0]} cannot be run: {reason}")
    output = _Output(show)
    try:
        is_over = _read(process, output, timeout_seconds)
    except BaseException:
        _end_group(process)
        raise
    if not is_over:
        _end_group(process)
        return Done(
            "timed_out",
            output.text(),
            message=f"it did not end within {round(timeout_seconds or 0, 1):g} s and was killed",
        )
    code = process.returncode
    if code == 0:
        return Done("done", output.text(), 0)
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return Done("failed", output.text(), code, f"{words[0]} {ended}")


@dataclass
class _Output:
    """What a program wrote, in bounded memory, shown while it comes."""

    show: Callable[[str], None]
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    left_out: int = 0

    def add(self, data: bytes) -> None:
        self.show(data.decode("utf-8", "replace"))
        room = max(0, KEPT_BYTES // 2 - len(self.head))
        self.head += data[:room]
        self.tail += data[room:]
        surplus = len(self.tail) - KEPT_BYTES // 2
        if surplus > 0:
            del self.tail[:surplus]
            self.left_out += surplus

    def text(self) -> str:
        gap = f"\n… {self.left_out} bytes left out …\n".encode() if self.left_out else b""
        return bytes(self.head + gap + self.tail).decode("utf-8", "replace")


def _read(process: "subprocess.Popen[bytes]", output: _Output, timeout_seconds: float | None) -> bool:
    """Whether it ended in time. What it left in the background may keep the pipe open: that is not waited for."""
    pipe = cast("IO[bytes]", process.stdout)
    ends_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    descriptor = pipe.fileno()
    os.set_blocking(descriptor, False)
    with selectors.DefaultSelector() as selector, pipe:
        selector.register(descriptor, selectors.EVENT_READ)
        is_open = True
        while True:
            has_ended = process.poll() is not None
            if is_open and (selector.select(0 if has_ended else LOOK_SECONDS) or has_ended):
                is_open = _drain(descriptor, output)
            elif not is_open and not has_ended:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
            if has_ended:
                return True
            if ends_at is not None and time.monotonic() >= ends_at:
                return False


def _drain(descriptor: int, output: _Output) -> bool:
    """Take what is there; whether more may come."""
    try:
        while data := os.read(descriptor, 65536):
            output.add(data)
            if len(data) < 65536:
                return True
    except BlockingIOError:
        return True
    return False


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """The program and whatever it started: asked first, then killed."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    give_up_at = time.monotonic() + GRACE_SECONDS
    while _group_lives(process) and time.monotonic() < give_up_at:
        time.sleep(LOOK_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _group_lives(process: "subprocess.Popen[bytes]") -> bool:
    process.poll()  # else the one that has ended counts as one that lives
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
