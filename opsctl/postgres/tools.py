"""pg_dump, pg_dumpall and pg_restore: how they are called, and what their endings mean."""

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from opsctl.errors import ConfigurationError, DumpFailed, OpsctlError
from opsctl.postgres.binaries import Binaries, choose_dump, choose_psql, choose_restore
from opsctl.postgres.programs import INSTALL_HINT, Place, Program, ThisHost
from opsctl.postgres.server import Server
from opsctl.staging import StagingFolder

STDERR_LINES = 200
HOOK_SECONDS = 60
TABLE_DATA = re.compile(rb"^\d+; \d+ (\d+) TABLE DATA ", re.MULTILINE)


class Tools:
    """The client programs of ``place``: of this host, if it is not given, started with ``environment``."""

    def __init__(
        self, *, search_path: Sequence[str], environment: Mapping[str, str], place: Place | None = None
    ) -> None:
        self._environment = environment
        self._place = place or ThisHost(search_path, environment)

    @property
    def reads_files(self) -> bool:
        """Whether they can read a file of this host; if not, they load with one session."""
        return self._place.reads_files

    def for_dump(self, server_major: int) -> Binaries:
        """pg_dump of the server's own major, else of the nearest newer one. Raises ConfigurationError."""
        found = self._place.find("pg_dump")
        chosen = choose_dump(found, server_major)
        if chosen is None:
            raise ConfigurationError(
                f"The server is PostgreSQL {server_major}, and {_there_are('pg_dump', found)}; pg_dump refuses servers"
                " newer than itself.",
                hint=self._place.hint,
            )
        return chosen

    def of_version(self, version: str) -> Binaries | None:
        """The programs of exactly that version, if they are here."""
        return next((each for each in self._place.find("pg_restore") if each.version == version), None)

    def for_restore(self, *, archive_major: int, server_major: int) -> Binaries:
        """pg_restore that reads the archive and suits the server. Raises ConfigurationError."""
        found = self._place.find("pg_restore")
        chosen = choose_restore(found, archive_major=archive_major, server_major=server_major)
        if chosen is None:
            raise ConfigurationError(
                f"The archive was written by pg_dump {archive_major}, and {_there_are('pg_restore', found)}.",
                hint=self._place.hint,
            )
        return chosen

    @contextmanager
    def dump(
        self,
        binaries: Binaries,
        server: Server,
        *,
        snapshot: str,
        lock_timeout_seconds: float,
        encoding: str,
        without_data: Sequence[bytes] = (),
        jobs: int = 1,
        folder: StagingFolder | None = None,
    ) -> Iterator["Child"]:
        """pg_dump's custom format, uncompressed, of one snapshot; read ``child.chunks()``, then ``child.finish()``.

        With a ``folder`` it is the directory format, written there by ``jobs`` sessions, and nothing is to be read.
        ``encoding`` is the database's own: else the login's, or PGCLIENTENCODING, would decide what is in the archive.
        ``without_data`` are quoted names, in that encoding, of tables whose rows stay out. Excluding the tables
        themselves could leave views that do not restore.
        """
        arguments: list[str | Path] = [binaries.path("pg_dump"), "--compress=0", "--no-password"]
        if folder is None:
            arguments += ["--format=custom"]
        else:  # what lies there is not the backup: it need not survive a power failure
            arguments += ["--format=directory", f"--jobs={jobs}", "--no-sync", f"--file={folder.path}"]
        arguments += [f"--snapshot={snapshot}", f"--lock-wait-timeout={int(lock_timeout_seconds * 1000)}"]
        arguments += [f"--encoding={encoding}", f"--dbname={server.public_conninfo()}"]
        arguments += [f"--exclude-table-data={os.fsdecode(quoted)}" for quoted in without_data]
        with self._start(
            arguments, password=server.password, inherited=() if folder is None else (folder.lock,)
        ) as child:
            yield child

    @contextmanager
    def dump_globals(self, binaries: Binaries, server: Server, *, role_passwords: bool) -> Iterator["Child"]:
        """Roles, memberships and tablespaces as SQL; password hashes only a superuser may read."""
        arguments: list[str | Path] = [binaries.path("pg_dumpall"), "--globals-only"]
        arguments += [] if role_passwords else ["--no-role-passwords"]
        arguments += ["--no-password", f"--dbname={server.public_conninfo(server.maintenance_database)}"]
        with self._start(arguments, password=server.password) as child:
            yield child

    @contextmanager
    def list_archive(self, binaries: Binaries) -> Iterator["Child"]:
        """``pg_restore --list`` of an archive written to ``child.stdin``; it reads no further than the contents."""
        with self._start([binaries.path("pg_restore"), "--list"], reads_input=True) as child:
            yield child

    def list_folder(self, binaries: Binaries, folder: Path) -> bytes:
        """What ``pg_restore --list`` says of a dump in the directory format, finished or not. Raises DumpFailed."""
        with self._start([binaries.path("pg_restore"), "--list", folder]) as child:
            return _everything(child)

    @contextmanager
    def schema(self, binaries: Binaries) -> Iterator["Child"]:
        """All but the data of an archive written to ``child.stdin``, as SQL; it reads no further than the contents."""
        with self._start([binaries.path("pg_restore"), "--schema-only", "--file=-"], reads_input=True) as child:
            yield child

    @contextmanager
    def script(self, binaries: Binaries, *, flags: Sequence[str] = ()) -> Iterator["Child"]:
        """All of an archive written to ``child.stdin``, as SQL on ``child.stdout``; no server needed."""
        with self._start([binaries.path("pg_restore"), "--file=-", *flags], reads_input=True) as child:
            yield child

    @contextmanager
    def decode(self, binaries: Binaries) -> Iterator["Child"]:
        """Every data block of an archive written to ``child.stdin``, as SQL on ``child.stdout``; no server needed."""
        arguments: list[str | Path] = [binaries.path("pg_restore"), "--data-only", "--file=-"]
        with self._start(arguments, reads_input=True) as child:
            yield child

    @contextmanager
    def restore(
        self,
        binaries: Binaries,
        server: Server,
        database: str,
        *,
        in_one_transaction: bool,
        flags: Sequence[str] = (),
        jobs: int = 1,
        archive: IO[bytes] | None = None,
        folder: StagingFolder | None = None,
        use_list: bytes | None = None,
    ) -> Iterator["Child"]:
        """pg_restore into ``database``, from what is written to it; with several jobs from an open file or a folder."""
        arguments: list[str | Path] = [binaries.path("pg_restore"), "--exit-on-error", "--no-password"]
        conninfo = server.public_conninfo_for_loading(database, in_one_transaction=in_one_transaction)
        arguments += [f"--dbname={conninfo}", *flags, f"--jobs={jobs}"]
        arguments += ["--single-transaction"] if in_one_transaction else []
        inherited: tuple[int, ...] = ()
        if archive is not None:
            inherited = (archive.fileno(),)
            arguments += [f"/proc/self/fd/{archive.fileno()}"]
        elif folder is not None:
            inherited = (folder.lock,)
            arguments += [folder.path]
        with ExitStack() as cleanup:
            if use_list is not None:
                entries = cleanup.enter_context(tempfile.TemporaryFile())
                entries.write(use_list)
                entries.flush()
                arguments.append(f"--use-list=/proc/self/fd/{entries.fileno()}")
            child = cleanup.enter_context(
                self._start(
                    arguments,
                    password=server.password,
                    reads_input=not inherited,
                    writes_output=False,
                    inherited=inherited if use_list is None else (*inherited, entries.fileno()),
                )
            )
            yield child

    def for_script(self, server_major: int) -> Binaries:
        """The psql for a plain dump: one that can be told to run SQL alone, if there is. Raises ConfigurationError."""
        found = self._place.find("psql")
        chosen = choose_psql(found, server_major)
        if chosen is None:
            raise ConfigurationError(
                f"There is no psql here, and the dump is plain SQL ({_there_are('psql', found)}).",
                hint=self._place.hint,
            )
        return chosen

    @contextmanager
    def run_script(
        self, binaries: Binaries, server: Server, database: str, *, in_one_transaction: bool
    ) -> Iterator["Child"]:
        """Psql into ``database``, from ``child.stdin``: no file of the user's, one session, the first error ends it."""
        arguments: list[str | Path] = [binaries.path("psql"), "--no-psqlrc", "--quiet", "--no-password", "--file=-"]
        conninfo = server.public_conninfo_for_loading(database, in_one_transaction=in_one_transaction)
        arguments += ["--set=ON_ERROR_STOP=1", f"--dbname={conninfo}"]
        arguments += ["--single-transaction"] if in_one_transaction else []
        with self._start(arguments, password=server.password, reads_input=True, writes_output=False) as child:
            yield child

    def run_hook(self, command: str) -> None:
        """Run a hook of the configuration, without a shell. Raises OpsctlError when it fails or takes too long."""
        try:
            done = subprocess.run(
                shlex.split(command),
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=HOOK_SECONDS,
                text=True,
                errors="replace",
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise OpsctlError(f"The hook {command!r} could not be run: {error}.") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise OpsctlError(f"The hook {command!r} ended with exit code {done.returncode}: {' '.join(said)}")

    @contextmanager
    def _start(
        self,
        arguments: Sequence[str | Path],
        *,
        password: str | None = None,
        reads_input: bool = False,
        writes_output: bool = True,
        inherited: tuple[int, ...] = (),
    ) -> Iterator["Child"]:
        program = self._place.start(
            arguments,
            password=password,
            reads_input=reads_input,
            writes_output=writes_output,
            inherited=inherited,
        )
        child = Child(Path(arguments[0]).name, program)
        try:
            yield child
        finally:
            child.end()


class Child:
    """A running program. Whoever leaves its context early ends it."""

    def __init__(self, name: str, program: Program) -> None:
        self.name = name
        self._program = program
        self._code = 0
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self.warnings: list[str] = []
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()

    def chunks(self) -> Iterator[bytes]:
        """What the program writes, in pieces, until it closes its output."""
        return self._program.chunks()

    def write(self, data: bytes) -> None:
        """All of ``data`` into its input. Raises BrokenPipeError when it has closed that."""
        self._program.write(data)

    def close_stdin(self) -> None:
        """Tell it that its input is at an end."""
        self._program.close_stdin()

    def finish(self) -> int:
        """Wait for its end and return its exit code. Its input must be at an end."""
        self._code = self._program.wait()
        self._reader.join()
        return self._code

    def stop(self) -> None:
        """Tell it to end, from whatever thread."""
        self._program.stop()

    def end(self) -> None:
        """Make sure it and all it has started are gone."""
        self._program.end()
        self._reader.join(timeout=5)

    def said(self, words: str) -> bool:
        """Whether the program, which has ended, wrote these words to its stderr."""
        return any(words in line for line in self._stderr)

    def failure(self, error: type[OpsctlError], doing: str) -> OpsctlError:
        """The program's bad ending as an error, with its own last words."""
        code = self._code
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        signs = ("error:", "ERROR:", "FATAL")
        words = [line for line in self._stderr if any(sign in line for sign in signs)] or list(self._stderr)[-1:]
        said = f": {words[0].partition('error: ')[2] or words[0]}" if words else ""
        return error(f"{self.name} {how} {doing}{said}", hint=_hint(" ".join(self._stderr)))

    def _read_stderr(self) -> None:
        for raw in self._program.stderr_lines():
            line = raw.decode("utf-8", "replace").rstrip()
            self._stderr.append(line)
            if "warning:" in line and len(self.warnings) < STDERR_LINES:
                self.warnings.append(line)


def schema_digest(sql: bytes) -> str:
    """The SHA-256 of what :meth:`Tools.schema` gives, without the lines that are random."""
    lines = (line for line in sql.splitlines(keepends=True) if not line.startswith((b"\\restrict", b"\\unrestrict")))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def dumped_tables(listing: bytes) -> list[int]:
    """The oids of the tables whose data an archive holds, from its ``pg_restore --list``."""
    return [int(oid) for oid in TABLE_DATA.findall(listing)]


class ContentsReader:
    """Learns what an archive says of itself at its beginning while its bytes pass by, from a pg_restore.

    :meth:`feed` it everything, then :meth:`end`. The listing is complete once the archive's beginning has passed,
    long before the dump ends; another thread may wait for it.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._open = True

    @property
    def is_open(self) -> bool:
        """Whether pg_restore wants more."""
        return self._open

    def feed(self, chunk: bytes) -> None:
        """Hand on the archive's next bytes, until pg_restore has seen enough."""
        if self._open:
            try:
                self._child.write(chunk)
            except BrokenPipeError:
                self.end()

    def end(self) -> None:
        """There is no more to feed; called by the thread that feeds."""
        self._open = False
        self._child.close_stdin()

    def listing(self) -> bytes:
        """All that pg_restore says; waits for it. Raises DumpFailed when pg_restore cannot read the archive."""
        return _everything(self._child)


def _everything(child: Child) -> bytes:
    said = b"".join(child.chunks())
    if child.finish() != 0:
        raise child.failure(DumpFailed, "while reading the archive's contents")
    return said


def _there_are(program: str, found: Sequence[Binaries]) -> str:
    if not found:
        return f"no {program} was found here"
    return f"the newest {program} here is {max(found, key=lambda binaries: binaries.major).version}"


def _hint(said: str) -> str:
    if "server version mismatch" in said or "unsupported version" in said:
        return INSTALL_HINT
    if "permission denied" in said:
        return "GRANT pg_read_all_data TO the login, or use the owner's."
    if "could not write" in said and "No space left" in said:
        return "Set staging_path in [state] to a larger disk, or leave out jobs, which needs none."
    if "SSL" in said:
        return "The embedded programs have no TLS; install PostgreSQL's client programs for an encrypted connection."
    if "server closed the connection" in said or "terminating connection" in said or "shutting down" in said:
        return "Is the server restarting? Try again."
    return "The message is PostgreSQL's own; the server's log may say more."
