"""The servers that drills restore into: made for a drill, or lent to it, and clean again afterwards, even after a kill.

Each drill leaves a record in the state folder for as long as it runs, locked by its process. A record that nobody holds
is of a drill that was killed: what it names is removed by the next one.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from opsctl.config import without_libpq_variables
from opsctl.errors import ConfigurationError, OpsctlError, RestoreFailed
from opsctl.manifest import Facts, Manifest
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.cluster import Cluster, throwaway_cluster
from opsctl.postgres.cluster_files import remove_remains, temporary_folder
from opsctl.postgres.databases import create_bare_roles, drop_database
from opsctl.postgres.server import Server
from opsctl.postgres.swap import find_staging

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


class Candidate(Protocol):
    """A place where a backup could be drilled."""

    @property
    def description(self) -> str: ...

    def open(self, manifest: Manifest) -> AbstractContextManager["DrillServer"]:
        """The server, until the context ends. Raises OpsctlError when there is no room, or it cannot be had."""


class DrillRecords:
    """The records of drills in the state folder."""

    def __init__(self, state_path: Path) -> None:
        self._folder = state_path / "drills"

    @contextmanager
    def keep(self, name: str, **content: str) -> Iterator[Callable[[], None]]:
        """Hold the record of a drill; call what is given when nothing is left of it, else the next drill sees to it.

        Raises ConfigurationError when the state folder cannot be written.
        """
        path = self._folder / f"{name}.json"
        with ExitStack() as cleanup:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                unlocked = self._folder / f".{name}"
                descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                cleanup.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.write(descriptor, json.dumps(content).encode())
                unlocked.rename(path)
            except OSError as error:
                raise ConfigurationError(
                    f"The state folder {self._folder.parent} cannot be written: {error.strerror}.",
                    hint="Set OPSCTL_STATE_DIR, or path in [state], to a folder this user owns.",
                ) from error
            yield path.unlink

    def remove_leftovers(self, open_scratch: Callable[[str], Server] | None) -> list[str]:
        """Remove what killed drills have left, and name it. What cannot be reached now waits for the next drill."""
        removed = []
        for path in sorted(self._folder.glob("*.json")):
            with suppress(OSError, OpsctlError, ValueError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _remove(json.load(file), open_scratch):
                    path.unlink()
                    removed.append(path.stem)
        return removed


def _remove(content: dict[str, str], open_scratch: Callable[[str], Server] | None) -> bool:
    if "folder" in content:
        remove_remains(Path(content["folder"]))
        return True
    if open_scratch is None:
        return False
    server = open_scratch(content["database"])
    if server.address != content["address"]:
        return False
    _drop_all(server)
    return True


def _drop_all(server: Server) -> None:
    """The drilled database, and the staging database of one that was killed."""
    with server.connect(server.maintenance_database) as connection:
        for name in (server.database, *find_staging(connection, server.database)):
            drop_database(connection, name)


@dataclass(frozen=True)
class Throwaway:
    """A server of its own on this host, from ``binaries``; its files go to ``folder``."""

    binaries: Binaries
    records: DrillRecords
    folder: Path | None = None
    max_disk_bytes: int | None = None
    max_memory_bytes: int | None = None
    allow_superuser: bool = False

    @property
    def description(self) -> str:
        return f"PostgreSQL {self.binaries.version} ({'embedded' if self.binaries.embedded else self.binaries.folder})"

    @contextmanager
    def open(self, manifest: Manifest) -> Iterator[DrillServer]:
        parent = self.folder or temporary_folder(OS_USERS)
        self._require_disk(parent, manifest)
        settings = _memory_settings(self._memory())
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
                    settings={**settings, "max_wal_size": f"{WAL_BYTES // _MIB}MB", "lc_messages": "C"},
                    os_users=OS_USERS,
                    superuser=f"opsctl_{name}",
                    niceness=10,
                )
            )
            superuser = Server(cluster.url(DATABASE))
            loader = f"opsctl_loader_{name}"
            create_bare_roles(superuser, _roles(manifest.facts), loader=loader)
            watch = cleanup.enter_context(_watching(cluster, folder, self._allowed(parent)))
            yield DrillServer(
                server=Server(cluster.url(DATABASE, user=loader)),
                superuser=superuser,
                trusts_superuser=self.allow_superuser or cluster.os_user not in {None, LIVE_OS_USER},
                work_path=folder,
                stopped_because=watch,
            )

    def _allowed(self, parent: Path) -> int:
        """How many bytes of disk the drill may take."""
        status = os.statvfs(parent)
        free = max(0, status.f_bavail * status.f_frsize - RESERVE_BYTES)
        return min(free, self.max_disk_bytes) if self.max_disk_bytes is not None else free

    def _require_disk(self, parent: Path, manifest: Manifest) -> None:
        data = manifest.database_bytes or 3 * manifest.dump.bytes
        needed = data + min(data, WAL_BYTES) + BASE_BYTES
        try:
            allowed = self._allowed(parent)
        except OSError as error:
            raise OpsctlError(f"{parent} cannot be used: {error.strerror}.", hint="See [drill] folder.") from error
        if needed > allowed:
            raise OpsctlError(
                f"A drill needs about {needed:,} bytes of disk in {parent}, and may take {allowed:,}.",
                hint="Set folder in [drill] to a larger disk, or raise its max_disk_bytes.",
            )

    def _memory(self) -> int:
        found = available_memory()
        memory = min(found, self.max_memory_bytes) if self.max_memory_bytes is not None else found
        if memory < LEAST_MEMORY_BYTES:
            raise OpsctlError(
                f"A drill needs {LEAST_MEMORY_BYTES:,} bytes of memory, and may take {memory:,}.",
                hint="Drill at another hour, or on another machine.",
            )
        return memory


@dataclass(frozen=True)
class Scratch:
    """A server that is lent for drills; ``open_server`` gives it with a database of that name."""

    open_server: Callable[[str], Server]
    records: DrillRecords
    state_path: Path

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
        with self.records.keep(name, address=server.address, database=server.database) as forget:
            try:
                yield DrillServer(server, None, True, self.state_path, lambda: None)
            finally:
                _drop_all(server)
                forget()


def _clear(folder: Path, forget: Callable[[], None]) -> None:
    remove_remains(folder)
    forget()


def _roles(facts: Facts) -> set[str]:
    """The roles a restore needs."""
    roles = {*facts.roles, facts.database.owner, *facts.database.grantees}
    return roles | {setting.role for setting in facts.database.settings if setting.role}


@contextmanager
def _watching(cluster: Cluster, folder: Path, allowed_bytes: int) -> Iterator[Callable[[], str | None]]:
    """Kill the server before it fills the disk. Gives a function that says so, if it was done."""
    reasons: list[str] = []
    done = Event()
    begun_with = _free(folder)

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            free = _free(folder)
            if free < RESERVE_BYTES or begun_with - free > allowed_bytes:
                reasons.append(f"the disk of {folder.parent} ran short: {free:,} bytes were left")
                cluster.kill()
                return

    thread = Thread(target=watch, name="disk", daemon=True)
    thread.start()
    try:
        yield lambda: reasons[0] if reasons else None
    finally:
        done.set()
        thread.join()


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


def _memory_settings(memory_bytes: int) -> dict[str, str]:
    """An eighth each for pages and for building indexes."""
    size = f"{min(memory_bytes // 8, MOST_BUFFER_BYTES) // _MIB}MB"
    return {"shared_buffers": size, "maintenance_work_mem": size}


def throwaways(found: Sequence[Binaries], manifest: Manifest) -> list[Binaries]:
    """The servers that could take a backup: of its own major version first, then newer ones."""
    own = int(manifest.server_version.split(".")[0])
    fitting = [each for each in found if each.major >= own and each.has("postgres", "initdb")]
    return sorted(fitting, key=lambda each: each.major)
