"""The servers that drills restore into: made for a drill, or lent to it, and clean again afterwards."""

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from opsctl.amounts import size
from opsctl.config import without_libpq_variables
from opsctl.drill_records import DrillRecords, drop_drilled
from opsctl.errors import OpsctlError, RestoreFailed
from opsctl.manifest import Facts, Manifest
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.cluster import throwaway_cluster
from opsctl.postgres.cluster_files import children, remove_remains, temporary_folder
from opsctl.postgres.databases import create_bare_roles
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools

OS_USERS = ("opsctl-drill", "nobody", "postgres")
"""Who runs the server when root drills: what the backup's functions do, they do as that user. Best one of its own."""

LIVE_OS_USER = "postgres"
"""The user that live servers run as, too: their files are within its reach."""

DATABASE = "drill"
BASE_BYTES = 256 << 20
"""What a server takes besides the data: its own catalogs, the programs where they have to be copied, a little air."""

WAL_BYTES = 1 << 30
RESERVE_BYTES = 128 << 20
"""So much of the disk stays free whatever the load does."""

TIMEOUT_SECONDS = 6 * 3600.0
LEAST_MEMORY_BYTES = 256 << 20
MOST_BUFFER_BYTES = 1 << 30
WATCH_SECONDS = 0.5
_MIB = 1 << 20


@dataclass(frozen=True)
class DrillServer:
    """A server to drill on. ``superuser`` is its almighty login where ``server`` is an ordinary one."""

    server: Server
    superuser: Server | None
    trusts_superuser: bool
    """Whether code of the backup may run as superuser there: then it runs as the server's user of this host, too."""

    work_path: Path
    stopped_because: Callable[[], str | None]
    """Why the server was stopped from outside, if it was."""

    tools: Tools | None = None
    """PostgreSQL's programs beside the server, for where this host's do not fit."""


class Candidate(Protocol):
    """A place where a backup could be drilled."""

    @property
    def description(self) -> str: ...

    def open(self, manifest: Manifest) -> AbstractContextManager["DrillServer"]:
        """The server, until the context ends. Raises OpsctlError when there is no room, or it cannot be had."""


@dataclass(frozen=True)
class Throwaway:
    """A server of its own on this host, from ``binaries``; its files go to ``folder``."""

    binaries: Binaries
    records: DrillRecords
    folder: Path | None = None
    max_disk_bytes: int | None = None
    max_memory_bytes: int | None = None
    allow_superuser: bool = False
    timeout_seconds: float = TIMEOUT_SECONDS

    @property
    def description(self) -> str:
        return f"PostgreSQL {self.binaries.version} ({'embedded' if self.binaries.embedded else self.binaries.folder})"

    @contextmanager
    def open(self, manifest: Manifest) -> Iterator[DrillServer]:
        parent = self.folder or temporary_folder(OS_USERS)
        allowed = allowed_disk(parent, manifest, self.max_disk_bytes)
        settings = drill_settings(self.max_memory_bytes)
        name = secrets.token_hex(4)
        folder = parent / f"opsctl-drill-{name}"
        with (
            self.records.keep(name, folder=str(folder)) as forget,
            without_libpq_variables(),
            ExitStack() as cleanup,
        ):
            cleanup.callback(_clear, folder, forget)
            try:
                folder.mkdir(mode=0o711)
            except OSError as error:
                raise OpsctlError(
                    f"{parent} cannot be written: {error.strerror}.", hint="See [drill] folder."
                ) from error
            folder.chmod(0o711)  # whatever the umask: the server's user passes through
            cluster = cleanup.enter_context(
                throwaway_cluster(
                    self.binaries,
                    folder=folder,
                    settings=settings,
                    os_users=OS_USERS,
                    superuser=f"opsctl_{name}",
                    niceness=10,
                )
            )
            superuser = Server(cluster.url(DATABASE))
            loader = f"opsctl_loader_{name}"
            stop = Stop(cluster.kill)
            cleanup.enter_context(watching(stop, self.timeout_seconds, folder, allowed))
            create_bare_roles(superuser, needed_roles(manifest.facts), loader=loader)
            yield DrillServer(
                server=Server(cluster.url(DATABASE, user=loader)),
                superuser=superuser,
                trusts_superuser=self.allow_superuser or cluster.os_user not in {None, LIVE_OS_USER},
                work_path=folder,
                stopped_because=stop.reason,
            )


@dataclass(frozen=True)
class Scratch:
    """A server that is lent for drills; ``open_server`` gives it with a database of that name."""

    open_server: Callable[[str], Server]
    records: DrillRecords
    state_path: Path
    timeout_seconds: float = TIMEOUT_SECONDS

    @property
    def description(self) -> str:
        return f"the scratch server {self.open_server('postgres').address}"

    @contextmanager
    def open(self, manifest: Manifest) -> Iterator[DrillServer]:
        name = secrets.token_hex(4)
        server = self.open_server(f"opsctl_drill_{name}")
        if server.info.system_identifier is not None and server.info.system_identifier == manifest.system_identifier:
            raise OpsctlError(
                "The scratch server is the very server the backup is of.", hint="[drill] scratch_url names another one."
            )
        stop = Stop(partial(_let_go, server))
        with self.records.keep(name, address=server.address, database=server.database) as forget:
            try:
                with watching(stop, self.timeout_seconds):
                    yield DrillServer(server, None, True, self.state_path, stop.reason)
            except BaseException:
                with suppress(OpsctlError):  # a server that hangs: the next drill sees to it
                    drop_drilled(server)
                    forget()
                raise
            drop_drilled(server)
            forget()


def _let_go(server: Server) -> None:
    """End what waits for a lent server, which is not ours to end: our connections, and the programs that load."""
    server.abandon()
    for pid in children(os.getpid()):
        with suppress(OSError):
            if os.fsencode(server.database) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def _clear(folder: Path, forget: Callable[[], None]) -> None:
    remove_remains(folder)
    forget()


def needed_roles(facts: Facts) -> set[str]:
    """The roles a restore needs."""
    roles = {*facts.roles, *facts.database.grantees, *([facts.database.owner] if facts.database.owner else [])}
    return roles | {setting.role for setting in facts.database.settings if setting.role}


class Stop:
    """Stops a drill from outside by ending its server, once and for a reason."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._reason: str | None = None

    def __call__(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason  # before anybody notices the end
            with suppress(OpsctlError):
                self._end()

    def reason(self) -> str | None:
        return self._reason


@contextmanager
def watching(
    stop: Stop, timeout_seconds: float, folder: Path | None = None, allowed_bytes: int | None = None
) -> Iterator[None]:
    """Stop a drill that takes too long, and before it fills the disk of ``folder``.

    Whatever fails afterwards raises OpsctlError with the reason of that.
    """
    done = Event()
    begun_with = _free(folder) if folder else 0
    end = time.monotonic() + timeout_seconds

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            if time.monotonic() > end:
                stop(f"it took longer than {timeout_seconds:g} seconds, the timeout_seconds of [drill]")
                return
            free = _free(folder) if folder else RESERVE_BYTES
            if free < RESERVE_BYTES or (allowed_bytes is not None and begun_with - free > allowed_bytes):
                stop(f"the disk of {folder} ran short: {size(free)} were left")
                return

    thread = Thread(target=watch, name="drill", daemon=True)
    thread.start()
    try:
        yield
    except OpsctlError as error:
        if reason := stop.reason():
            raise OpsctlError(reason, hint="See [drill] in the configuration.") from error
        raise
    finally:
        done.set()
        thread.join()


def allowed_disk(folder: Path, manifest: Manifest, max_bytes: int | None) -> int:
    """How many bytes of disk the drill may take there. Raises OpsctlError when it needs more."""
    data = manifest.restored_bytes
    needed = data + min(data, WAL_BYTES) + BASE_BYTES
    try:
        free = max(0, _free(folder) - RESERVE_BYTES)
    except OSError as error:
        raise OpsctlError(f"{folder} cannot be used: {error.strerror}.", hint="See [drill] folder.") from error
    allowed = min(free, max_bytes) if max_bytes is not None else free
    if needed > allowed:
        raise OpsctlError(
            f"A drill needs about {size(needed)} of disk in {folder}, and may take {size(allowed)}.",
            hint="Set folder in [drill] to a larger disk, or raise its max_disk_bytes.",
        )
    return allowed


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def available_memory() -> int:
    """The bytes a new process could have: of the machine, or of the control group this one is in."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" is no number
        found.append(limit - int((group / "memory.current").read_text()))
    if not found:
        raise RestoreFailed("How much memory there is cannot be read.", hint="Is /proc mounted?")
    return min(found)


def drill_settings(max_memory_bytes: int | None) -> dict[str, str]:
    """The server's: an eighth of the memory each for pages and for building indexes.

    Raises OpsctlError when there is too little.
    """
    found = available_memory()
    memory = min(found, max_memory_bytes) if max_memory_bytes is not None else found
    if memory < LEAST_MEMORY_BYTES:
        raise OpsctlError(
            f"A drill needs {size(LEAST_MEMORY_BYTES)} of memory, and may take {size(memory)}.",
            hint="Drill at another hour, or on another machine.",
        )
    share = f"{min(memory // 8, MOST_BUFFER_BYTES) // _MIB}MB"
    wal = f"{WAL_BYTES // _MIB}MB"
    return {"shared_buffers": share, "maintenance_work_mem": share, "max_wal_size": wal, "lc_messages": "C"}


def throwaways(found: Sequence[Binaries], manifest: Manifest) -> list[Binaries]:
    """The servers that could take a backup: of its own major version first, then newer ones."""
    fitting = [each for each in found if each.major >= manifest.server_major and each.has("postgres", "initdb")]
    return sorted(fitting, key=lambda each: each.major)
