"""The program, run in a fork of a process that has loaded its modules already: each run saves what importing costs.

Everything else is as in a process of its own: arguments, environment, working folder, standard streams, signals, exit
code. What has to be a process from the first instruction on (interrupted runs, another locale) is started as one.
"""

import array
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opsctl

LOADED_LATE = (
    *("boto3", "botocore.session", "botocore.client", "docker", "dotenv", "encodings.ascii", "markdown_it"),
    *("psycopg", "psycopg.conninfo", "psycopg.sql", "pydantic_settings", "pyrage", "rich.console", "rich.progress"),
    *("rich.table", "rich.text", "sentry_sdk", "structlog", "typer._adapters", "zstandard"),
)
"""What the program imports when it is first needed."""


class Forks:
    """A process that forks one run of the program for each that is asked for."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forks", dir="/tmp")
        self._address = f"{self._folder.name}/s"
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._address], env=dict(environment), stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not Path(self._address).exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the process that forks runs of the program did not start")
            time.sleep(0.01)

    def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], given: str | None, timeout: float
    ) -> tuple[int, str, str]:
        """Run to the end: exit code (negative: the signal it died of), stdout and stderr."""
        (stdin, input_end), (output, stdout), (errors, stderr) = os.pipe(), os.pipe(), os.pipe()
        wanted = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "stdin": given is not None}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self._address)
            socket.send_fds(connection, [b"\0"], [stdin, stdout, stderr])
            for each in (stdin, stdout, stderr):
                os.close(each)
            connection.sendall(json.dumps(wanted).encode("utf-8", "surrogateescape") + b"\n")
            collected = [_collect(output), _collect(errors)]
            with suppress(BrokenPipeError), os.fdopen(input_end, "wb") as pipe:
                pipe.write((given or "").encode())
            with connection.makefile("rb") as answers:
                pid = int(answers.readline())
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(arguments), timeout) from None
        stdout_text, stderr_text = (_joined(*each) for each in collected)
        return code, _text(stdout_text), _text(stderr_text)

    def end(self) -> None:
        self._server.kill()
        self._server.wait()
        self._folder.cleanup()


def _joined(thread: threading.Thread, pieces: list[bytes]) -> bytes:
    thread.join()
    return b"".join(pieces)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _collect(descriptor: int) -> tuple[threading.Thread, list[bytes]]:
    pieces: list[bytes] = []

    def read() -> None:
        with os.fdopen(descriptor, "rb", buffering=0) as pipe:
            while piece := pipe.read(1 << 16):
                pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    return thread, pieces


# The process that forks


def serve(address: str) -> None:
    for module in pkgutil.walk_packages(opsctl.__path__, "opsctl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LOADED_LATE:
        importlib.import_module(name)
    gc.freeze()  # a run's collections leave the pages alone that it shares with this process
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as waiting:
        listener.bind(f"{address}.new")
        listener.listen(64)
        Path(f"{address}.new").rename(address)  # nobody sees it before it listens
        waiting.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is listener:
                    run = _forked(listener)
                    waiting.register(run.ended, selectors.EVENT_READ, run)
                else:
                    waiting.unregister(key.fileobj)
                    key.data.tell_the_end()


@dataclass(frozen=True)
class _Run:
    pid: int
    ended: int
    """A descriptor that can be read when the process has ended."""
    asked_by: socket.socket

    def tell_the_end(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.ended)
        with self.asked_by, suppress(OSError):
            self.asked_by.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _forked(listener: socket.socket) -> _Run:
    """Fork the run that the next one in the queue asks for, and tell its process id."""
    connection, _ = listener.accept()
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i")
    streams.frombytes(ancillary[0][2])
    with connection.makefile("rb") as asked:
        wanted = json.loads(asked.readline().decode("utf-8", "surrogateescape"))
    pid = os.fork()
    if pid == 0:
        _become(wanted, list(streams))
    for each in streams:
        os.close(each)
    with suppress(OSError):  # whoever asked has given up
        connection.sendall(b"%d\n" % pid)
    return _Run(pid, os.pidfd_open(pid), connection)


def _become(wanted: dict[str, Any], streams: list[int]) -> None:
    """What an interpreter does before and after the program."""
    code: Any = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if not wanted["stdin"]:
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        time.tzset()
        kept = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
        sys.stdin = open(0, closefd=False, **kept)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False, **kept)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        sys.argv = ["opsctl", *wanted["arguments"]]
        runpy.run_module("opsctl", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter prints it
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
