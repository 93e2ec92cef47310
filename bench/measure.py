"""One run of one command: how long, how much processor, how much memory of how many processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from opsctl.postgres.processes import die_with_parent

TIMEOUT_SECONDS = 3600
LOOK_SECONDS, MOST_SECONDS = 0.02, 0.2
"""How often memory is looked at: at first, and when a command has taken long. Looking takes processor from what is
measured; a peak that is shorter is missed."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Contender:
    """One way to do something.

    ``prepare`` and ``clean`` are run before and after it, and not measured. ``output`` is what it leaves: its size is
    noted, then it is removed. ``says`` picks numbers out of the JSON document it prints.
    """

    name: str
    command: Command
    prepare: Sequence[Command] = ()
    clean: Sequence[Command] = ()
    output: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    """A program that has to be installed for it."""
    discards: bool = False
    """Whether what it prints goes nowhere."""


@dataclass(frozen=True)
class Sample:
    """What one run took. The server's share of the work is not in it."""

    seconds: float
    cpu_seconds: float
    python_bytes: int
    """The most memory that the Python programs among its processes had at one time."""
    tree_bytes: int
    """The same for all its processes."""
    stored_bytes: int | None = None
    said: Mapping[str, float] = field(default_factory=dict)


class CommandFailed(Exception):
    """A command ended with an error: what it was, and the end of what it said."""


def measure(contender: Contender, environment: Mapping[str, str], folder: Path) -> Sample:
    """Run a contender once; nothing of it is left. Raises CommandFailed."""
    environment = {**environment, **contender.environment}
    with _removed(contender.output):
        try:
            for command in contender.prepare:
                _run(command, environment, folder)
            os.sync()  # nobody pays for what another one has written
            return _measured(contender, environment, folder)
        finally:
            for command in contender.clean:
                _run(command, environment, folder)


def _measured(contender: Contender, environment: Mapping[str, str], folder: Path) -> Sample:
    started = time.perf_counter()
    output = Path(os.devnull) if contender.discards else folder / "stdout"
    with output.open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = _start(contender.command, environment, folder, stdout, stderr)
        with _ended(process), _Memory(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            raise _failure(contender.command, process.returncode, folder)
    return Sample(
        seconds,
        usage.ru_utime + usage.ru_stime,
        memory.python_bytes,
        memory.tree_bytes,
        _size(contender.output) if contender.output else None,
        _said(folder / "stdout", contender.says) if contender.says else {},
    )


def _run(command: Command, environment: Mapping[str, str], folder: Path) -> None:
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = _start(command, environment, folder, stdout, stderr)
        with _ended(process):
            process.wait(TIMEOUT_SECONDS)
    if process.returncode != 0:
        raise _failure(command, process.returncode, folder)


def _start(
    command: Command, environment: Mapping[str, str], folder: Path, stdout: Any, stderr: Any
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
    )


@contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Whatever happens, and after the time for it is over, nothing of it runs any more."""
    watchdog = threading.Timer(TIMEOUT_SECONDS, _kill, [process.pid])
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        _kill(process.pid)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _failure(command: Command, code: int, folder: Path) -> CommandFailed:
    said = (folder / "stderr").read_text(errors="replace") or (folder / "stdout").read_text(errors="replace")
    words = " ".join(str(word) for word in command)
    return CommandFailed(f"{words[:200]} ended with {code}:\n{said.strip()[-1000:]}")


def _said(path: Path, says: Mapping[str, str]) -> dict[str, float]:
    """Numbers of a JSON document, each by its path in it: ``result.outage_seconds``."""
    found: dict[str, float] = {}
    for name, where in says.items():
        value: Any = json.loads(path.read_text())
        for key in where.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        found[name] = float(value)
    return found


@contextmanager
def _removed(output: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if output is not None and output.is_dir():
            shutil.rmtree(output)
        elif output is not None:
            output.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


class _Memory:
    """Looks again and again at what a process and its children hold, in a thread."""

    def __init__(self, pid: int) -> None:
        self.python_bytes = self.tree_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(max(LOOK_SECONDS, min(MOST_SECONDS, (time.monotonic() - began) / 20))):
            held = [(_is_python(pid), _resident_bytes(pid)) for pid in _tree(self._pid)]
            self.python_bytes = max(self.python_bytes, sum(size for python, size in held if python))
            self.tree_bytes = max(self.tree_bytes, sum(size for _, size in held))


def _tree(pid: int, above: bytes = b"") -> Iterator[int]:
    """The process and those below it, but for what is a copy of its parent still: it is about to become a program."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if words == above:
            return
        yield pid
        for task in os.scandir(f"/proc/{pid}/task"):
            with suppress(OSError):
                for child in Path(task.path, "children").read_text().split():
                    yield from _tree(int(child), words)


def _is_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def environment_for(folder: Path, programs: Path) -> dict[str, str]:
    """What every command sees: nothing of the caller's but the way to programs, PostgreSQL's own first."""
    own = Path(sys.executable).parent
    return {
        "PATH": f"{programs}:{own}:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OPSCTL_STATE_DIR": str(folder / "state"),
    }
