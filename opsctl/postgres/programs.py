"""Where PostgreSQL's client programs run: on this host, or inside the container of the server itself.

A password reaches a program of this host through an anonymous file in memory (PGPASSFILE), so a kill leaves nothing
behind and no argument list shows it. Such a program dies with its parent, and runs in a process group of its own, so
that Ctrl-C reaches opsctl alone and it can end its programs in order.
"""

import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from opsctl.errors import ConfigurationError
from opsctl.postgres.binaries import Binaries, find_binaries
from opsctl.postgres.processes import die_with_parent

PIPE_BYTES = 1 << 20
"""Size of the pipes and of one read: fewer switches between the processes; 1 MiB is what Linux allows everybody."""

OUTPUT_BYTES = 256 << 10
"""What a program writes at a time. C's own choice for a pipe, 4 KiB, is a system call for every page of a dump, and on
our side nearly as many: a tenth of a backup's time."""

OUTPUT_LIBRARIES = (
    "/usr/libexec/coreutils/libstdbuf.so",
    "/usr/lib/coreutils/libstdbuf.so",
    "/usr/lib64/coreutils/libstdbuf.so",
)
"""Where distributions have what stdbuf(1) puts into a program. Where there is none, dumps are as before, and slower."""

INSTALL_HINT = (
    "Install PostgreSQL's client programs (Debian: postgresql-client), or opsctl's extra `demo`: docs/install.md."
)
ANOTHER_IMAGE_HINT = 'Use an image that has PostgreSQL\'s client programs and sh, or leave tools = "service" out.'

FOREIGN = re.compile(r"PG(PASS.*|SERVICE.*|SYSCONFDIR|HOST.*|PORT|SSL(ROOT)?CERT|SSLKEY|SSLCRL.*)")
"""Variables that name a file of this host, or a server as this host sees it."""

FIND = r"""
for program in /usr/lib/postgresql/*/bin/"$1" /usr/pgsql-*/bin/"$1" /usr/local/pgsql/bin/"$1" "$(command -v "$1")"; do
    [ -x "$program" ] && echo "$program" && "$program" --version
done
exit 0
"""
FOUND = re.compile(r"^(/.+)\n.*\(PostgreSQL\) ((\d+)\S*)", re.MULTILINE)


class Program(Protocol):
    """A running program. What it writes to stdout and stderr is read by two threads, or it may stand still."""

    def chunks(self) -> Iterator[bytes]:
        """What it writes to stdout, until it closes that."""
        ...

    def write(self, data: bytes) -> None:
        """All of ``data`` into its input. Raises BrokenPipeError when it has closed that."""
        ...

    def close_stdin(self) -> None: ...

    def stderr_lines(self) -> Iterator[bytes]: ...

    def wait(self) -> int:
        """Its exit code once it has ended; negative is a signal's number."""
        ...

    def stop(self) -> None:
        """Tell it to end. May be called by another thread than the one that reads."""
        ...

    def end(self) -> None:
        """Make sure it and all it has started are gone; also after it has ended by itself."""
        ...


class Place(Protocol):
    """Where programs are found and started."""

    hint: str
    """What to do when a program is not there."""

    reads_files: bool
    """Whether a program there can open a file of this host."""

    def find(self, program: str) -> list[Binaries]:
        """Every ``program`` there."""
        ...

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        password: str | None = None,
        reads_input: bool = False,
        writes_output: bool = True,
        inherited: tuple[int, ...] = (),
    ) -> Program:
        """Start a program; ``inherited`` are open files it may read. Raises ConfigurationError when it cannot run."""
        ...


class ThisHost:
    """The programs of this host. ``environment`` is what they are started with."""

    hint = INSTALL_HINT
    reads_files = True

    def __init__(self, search_path: Sequence[str], environment: Mapping[str, str]) -> None:
        self._search_path = search_path
        self._environment = environment
        self._found: dict[str, list[Binaries]] = {}

    def find(self, program: str) -> list[Binaries]:
        if program not in self._found:  # each of them is asked for its version
            self._found[program] = find_binaries(program, search_path=self._search_path)
        return self._found[program]

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        password: str | None = None,
        reads_input: bool = False,
        writes_output: bool = True,
        inherited: tuple[int, ...] = (),
    ) -> "HostProgram":
        environment = {**self._environment, **_large_output(arguments[0], self._environment)}
        own: tuple[int, ...] = ()
        if password:
            own = (_password_file(password),)
            environment["PGPASSFILE"] = f"/proc/self/fd/{own[0]}"
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE if reads_input else subprocess.DEVNULL,
                stdout=subprocess.PIPE if writes_output else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                pass_fds=own + inherited,
                process_group=0,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
            )
        except OSError as error:
            raise ConfigurationError(f"{arguments[0]} cannot be run: {error.strerror}.", hint=INSTALL_HINT) from error
        finally:
            for descriptor in own:
                os.close(descriptor)
        return HostProgram(process)


class HostProgram:
    """A child process, reached through pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _widen(pipe)

    def chunks(self) -> Iterator[bytes]:
        descriptor = _present(self._process.stdout).fileno()
        while chunk := os.read(descriptor, PIPE_BYTES):
            yield chunk

    def write(self, data: bytes) -> None:
        descriptor = _present(self._process.stdin).fileno()
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def close_stdin(self) -> None:
        with suppress(BrokenPipeError):
            _present(self._process.stdin).close()

    def stderr_lines(self) -> Iterator[bytes]:
        with _present(self._process.stderr) as lines:
            yield from lines

    def wait(self) -> int:
        code = self._process.wait()
        if code < 0:
            self._signal_group(signal.SIGKILL)  # its workers finish what they are at, and nobody wants that any more
        return code

    def stop(self) -> None:
        if self._process.poll() is None:
            self._signal_group(signal.SIGTERM)

    def end(self) -> None:
        """SIGTERM, so that it can cancel its query, then SIGKILL."""
        if self._process.poll() is None:
            self._signal_group(signal.SIGTERM)
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._signal_group(signal.SIGKILL)
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _signal_group(self, number: signal.Signals) -> None:
        """To the whole group: on PATH may be a script that runs the program, and pg_restore has its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class StartInside(Protocol):
    """Starts a program inside a container; what a service runtime does."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        reads_input: bool,
        environment: Mapping[str, str],
        secret_environment: Mapping[str, str],
    ) -> Program: ...


class InsideContainer:
    """The programs of a container, mostly the server's own; ``begin`` starts one.

    ``environment`` is what a program of this host would be started with: libpq's variables go along. Whatever is given
    to ``begin`` as secret is in no list of processes.
    """

    hint = ANOTHER_IMAGE_HINT
    reads_files = False

    def __init__(self, begin: Callable[[], StartInside], environment: Mapping[str, str]) -> None:
        self._begin = begin
        self._environment = {
            name: value
            for name, value in environment.items()
            if name == "LC_MESSAGES" or (name.startswith("PG") and not FOREIGN.fullmatch(name))
        }
        self._found: dict[str, list[Binaries]] = {}

    def find(self, program: str) -> list[Binaries]:
        if program not in self._found:
            running = self.start(["sh", "-c", FIND, "opsctl", program])
            try:
                text = b"".join(running.chunks()).decode("utf-8", "replace")
            finally:
                running.end()
            found = {Path(path).parent: (int(major), version) for path, version, major in FOUND.findall(text)}
            self._found[program] = [
                Binaries(folder, major, version, embedded=False) for folder, (major, version) in found.items()
            ]
        return self._found[program]

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        password: str | None = None,
        reads_input: bool = False,
        writes_output: bool = True,  # noqa: ARG002 - what nobody reads is thrown away at the end
        inherited: tuple[int, ...] = (),
    ) -> Program:
        if inherited:
            raise ConfigurationError(
                'tools = "service" cannot read a file of this host.', hint="Restore with --jobs 1, which streams."
            )
        return self._begin()(
            [str(argument) for argument in arguments],
            reads_input=reads_input,
            environment=self._environment,
            secret_environment={"PGPASSWORD": password} if password else {},
        )


def _password_file(password: str) -> int:
    """A .pgpass for any host, in memory: the descriptor of a file nobody else can open."""
    descriptor = os.memfd_create("pgpass", 0)
    os.fchmod(descriptor, 0o600)
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    os.write(descriptor, f"*:*:*:*:{escaped}\n".encode())
    return descriptor


def _large_output(program: str | Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that have a program write its output in large pieces, as stdbuf would.

    Only a program of the system, whose C library is sure to be the one that the system's own library is made for.
    """
    library = next(filter(os.path.exists, OUTPUT_LIBRARIES), None)
    if library is None or not Path(program).resolve().is_relative_to("/usr"):
        return {}
    loaded = " ".join(filter(None, (environment.get("LD_PRELOAD"), library)))
    return {"LD_PRELOAD": loaded, "_STDBUF_O": str(OUTPUT_BYTES)}


def _widen(pipe: IO[bytes]) -> None:
    with suppress(OSError, AttributeError):  # another system, or the user's pipe budget is spent: smaller pipes do
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _present(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise TypeError("this program was started without that pipe")
    return pipe
