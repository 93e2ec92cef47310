"""A throwaway PostgreSQL server: made, used and removed by one program, for demo, drills and tests."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from opsctl.errors import OpsctlError
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.cluster_files import (
    PREFIX,
    children,
    copy_tree,
    enterable_folder,
    find_account,
    is_running,
    make_socket_folder,
    open_for_reading,
    remove_tree,
)
from opsctl.postgres.processes import die_with_parent

SUPERUSER = "postgres"

FAST = {
    # A crash of the host may lose this server: nothing is flushed, and WAL holds what a server crash needs only.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "shared_buffers": "128MB",
    # In files of the data folder: removed with it after a kill, and no 64 MB limit as in a container's /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
START_SECONDS = 600.0
"""For each step of a start. What is broken says so at once; a machine that is busy takes minutes."""

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_PORT = 5432
_FAST_SHUTDOWN_SECONDS = 30
_IMMEDIATE_SHUTDOWN_SECONDS = 10


@contextmanager
def throwaway_cluster(
    binaries: Binaries,
    *,
    folder: Path | None = None,
    settings: Mapping[str, str] = _NO_SETTINGS,
    listen: bool = False,
    os_users: Sequence[str] = ("postgres", "nobody"),
    superuser: str = SUPERUSER,
    niceness: int = 0,
    timeout_seconds: float = START_SECONDS,
) -> Iterator["Cluster"]:
    """A running server of its own on a unix socket; every trace of it is gone afterwards.

    It lives in a new folder inside ``folder`` (default: where temporary files go). ``settings`` win over the ones
    here. ``listen`` adds 127.0.0.1, with a password. As root it runs as the first of ``os_users`` there is, because
    PostgreSQL refuses root. It ends with the thread that called this, even when that is killed; its files stay then,
    for :func:`remove_remains`.
    Raises OpsctlError, with the end of the server's log, when it does not answer within ``timeout_seconds``.
    """
    with ExitStack() as cleanup:
        try:
            account = find_account(os_users)
            home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder or enterable_folder(account)))
            cleanup.callback(remove_tree, home)
            home.chmod(0o711)  # the server's account passes through; the log and the programs stay ours
            sockets = make_socket_folder(home)
            cleanup.callback(shutil.rmtree, sockets, ignore_errors=True)
            cluster = Cluster(
                binaries,
                home,
                sockets,
                account=account,
                listen=listen,
                superuser=superuser,
                niceness=niceness,
                timeout_seconds=timeout_seconds,
            )
            cleanup.callback(cluster.kill)  # should Ctrl-C come while it stops
            cleanup.callback(cluster.stop)
            cluster.create(settings)
            cluster.start()
        except OSError as error:
            raise OpsctlError(
                f"A throwaway PostgreSQL {binaries.version} server could not be made: {error}."
            ) from error
        yield cluster


class Cluster:
    """A throwaway server; :func:`throwaway_cluster` makes one."""

    def __init__(
        self,
        binaries: Binaries,
        folder: Path,
        socket_folder: Path,
        *,
        account: pwd.struct_passwd | None,
        listen: bool,
        superuser: str,
        niceness: int,
        timeout_seconds: float,
    ) -> None:
        self.binaries = binaries
        self.folder = folder
        self.socket_folder = socket_folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.user = superuser
        self.port = _free_port() if listen else _PORT
        self.password = secrets.token_urlsafe(18)
        """For connections over TCP; the socket, in a folder of its own, asks for none."""
        self._listen_addresses = "127.0.0.1" if listen else ""
        self._account = account
        self._niceness = niceness
        self._timeout_seconds = timeout_seconds
        self._programs = binaries.folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running server's process id."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def os_user(self) -> str | None:
        """The operating system's user it runs as, where that is not ours."""
        return self._account.pw_name if self._account else None

    def url(self, database: str = "postgres", *, user: str | None = None) -> str:
        """How to connect over the unix socket: as superuser if no user is named, without a password."""
        host, name = quote(str(self.socket_folder), safe=""), quote(user or self.user, safe="")
        return f"postgresql:///{quote(database, safe='')}?host={host}&port={self.port}&user={name}"

    def tcp_url(self, database: str = "postgres") -> str:
        """How to connect over TCP, for a server that listens: with the password in the URL."""
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def create(self, settings: Mapping[str, str] = _NO_SETTINGS) -> None:
        """Set up the data folder; once, before the first start."""
        self._programs = self._runnable_programs()
        self._give_away(self.socket_folder)
        self._initdb()
        self._configure(settings)

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        if self.pid is not None:
            return
        with self.log.open("ab") as log:
            started_at = log.tell()
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we end the server when done with it
                # Its sessions inherit the niceness, and with it their share of the disk.
                preexec_fn=die_with_parent(signal.SIGQUIT, niceness=self._niceness),  # noqa: PLW1509
                **self._as_account(),
            )
        self._wait_until_ready(started_at)

    def stop(self) -> None:
        """End the server: in an orderly way if it can, and in any case."""
        if self._process is None:
            return
        for how, seconds in (
            (signal.SIGINT, _FAST_SHUTDOWN_SECONDS),
            (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS),
        ):
            self._process.send_signal(how)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            self._process = None
            return
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the server, as a crash would end it; :meth:`start` recovers the data."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGSTOP)  # no new backends while they are listed
        backends = children(self._process.pid)
        self._process.kill()
        for pid in backends:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        deadline = time.monotonic() + _IMMEDIATE_SHUTDOWN_SECONDS
        while any(is_running(pid) for pid in backends) and time.monotonic() < deadline:
            time.sleep(0.01)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _runnable_programs(self) -> Path:
        """The folder of programs the server's account can run: a copy when it cannot reach the original.

        A virtual environment below /root is such a case.
        """
        if self._account is None or self._can_run(self.binaries.folder):
            return self.binaries.folder
        installation = self.binaries.folder.parent
        # The embedded programs look for their libraries beside the package they are in.
        package = self.folder / "programs" / installation.parent.name
        copy = package / installation.name
        for part in (self.binaries.folder.name, "lib", "share"):
            if (installation / part).is_dir():
                copy_tree(installation / part, copy / part)
        libraries = installation.parent.with_name(installation.parent.name + ".libs")
        if libraries.is_dir():
            copy_tree(libraries, package.with_name(libraries.name))
        open_for_reading(self.folder / "programs")
        return copy / self.binaries.folder.name

    def _can_run(self, programs: Path) -> bool:
        try:
            for program in ("postgres", "initdb"):
                subprocess.run([programs / program, "--version"], capture_output=True, check=True, **self._as_account())
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def _initdb(self) -> None:
        self.data.mkdir(mode=0o700)
        self._give_away(self.data)
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self.password)
        self._give_away(password)
        command: list[str | Path] = [
            self._programs / "initdb",
            "--pgdata",
            self.data,
            "--no-sync",
            "--encoding",
            "UTF8",
        ]
        command += ["--username", self.user, "--pwfile", password]
        command += ["--auth-local", "trust", "--auth-host", "scram-sha-256"]
        try:
            problem = self._run_initdb([*command, "--locale", "C.UTF-8"])
            if "locale" in problem:
                problem = self._run_initdb([*command, "--locale", "C"])
        finally:
            password.unlink()
        if problem:
            raise self._failure("could not be set up", problem)

    def _run_initdb(self, command: Sequence[str | Path]) -> str:
        """What initdb complained about; empty when it succeeded."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=self._timeout_seconds,
                preexec_fn=die_with_parent(signal.SIGTERM),
                **self._as_account(),
            )
        except OSError as error:
            return str(error)
        except subprocess.TimeoutExpired:
            raise self._failure(f"could not be set up within {self._timeout_seconds:g} seconds") from None
        return "" if done.returncode == 0 else done.stderr.decode(errors="replace") or f"exit {done.returncode}"

    def _configure(self, settings: Mapping[str, str]) -> None:
        settings = {
            "listen_addresses": self._listen_addresses,
            "unix_socket_directories": f'"{self.socket_folder}"',  # a list: quotes keep a comma in the path
            "unix_socket_permissions": "0700",
            "port": str(self.port),
            **FAST,
            **settings,
        }
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())

    def _wait_until_ready(self, log_offset: int) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        while not self._is_ready():
            if self.pid is None:
                raise self._failure("did not start", self._logged_since(log_offset))
            if time.monotonic() > deadline:
                how_long = f"did not answer within {self._timeout_seconds:g} seconds"
                raise self._failure(how_long, self._logged_since(log_offset))
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        """Whether postmaster.pid says so; one left by a killed server has another pid in it."""
        try:
            lines = (self.data / "postmaster.pid").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _logged_since(self, offset: int) -> str:
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def _failure(self, what: str, output: str = "") -> OpsctlError:
        last_lines = "\n".join(output.strip().splitlines()[-10:])
        said = f":\n{last_lines}" if last_lines else "."
        who = f"the operating system's user {self._account.pw_name}" if self._account else "this user"
        return OpsctlError(
            f"The throwaway PostgreSQL {self.binaries.version} server {what}{said}",
            hint=f"It runs as {who}, with the programs in {self._programs} and its data in {self.folder}.",
        )

    def _give_away(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _as_account(self) -> dict[str, Any]:
        """Arguments for subprocess: the server's account, a folder it may be in, and nothing of our environment."""
        arguments: dict[str, Any] = {
            "cwd": "/",
            "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        }
        if self._account is not None:
            arguments |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return arguments


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(value: str) -> str:
    """A value in postgresql.conf, where a backslash escapes too."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
