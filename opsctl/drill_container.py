"""A drill's server in a container, for where Docker is and no PostgreSQL of this host can take the backup.

It has no network: it is reached through its socket, in a folder that both sides see. Its data is in the container's own
layer and goes with it. When opsctl is killed the next drill removes it; without one it ends by itself after the limit.
"""

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from opsctl.config import without_libpq_variables
from opsctl.drill_records import DrillRecords
from opsctl.drill_servers import (
    DATABASE,
    TIMEOUT_SECONDS,
    DrillServer,
    Stop,
    allowed_disk,
    drill_settings,
    needed_roles,
    watching,
)
from opsctl.errors import DatabaseUnreachable, OpsctlError, ServiceFailed
from opsctl.manifest import Manifest
from opsctl.postgres.cluster import FAST, START_SECONDS
from opsctl.postgres.cluster_files import remove_remains
from opsctl.postgres.databases import create_bare_roles
from opsctl.postgres.programs import InsideContainer
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools
from opsctl.services import Service
from opsctl.services.docker_throwaway import ThrowawayContainers

OS_USER = "postgres"
"""Who the server runs as in an image that does not say so itself: PostgreSQL refuses root."""

POLL_SECONDS = 0.1
LOG_LINES = 10
_SHORT_FOLDER = Path("/tmp")  # noqa: S108
_LONGEST_FOLDER = 70
"""A socket's path has 107 bytes at most, and names of ours come behind the folder."""

SCRIPT = """
folder=$1 user=$2 seconds=$3; shift 3
exec >"$folder/log" 2>&1
umask 077
data=/tmp/opsctl-data
make() { initdb --pgdata="$data" --no-sync --encoding=UTF8 --username="$user" --auth=trust --locale="$1"; }
make C.UTF-8 || { rm -rf "$data"; make C; } || exit 1
postgres -D "$data" -c unix_socket_directories="$folder" "$@" &
server=$!
{ sleep "$seconds"; kill -QUIT "$server"; } &
wait "$server"
"""
"""The image's own entrypoint starts a server twice, and takes connections the first time already."""


@dataclass(frozen=True)
class InContainer:
    """A server in a container of ``image``; ``environment`` is what PostgreSQL's programs are started with."""

    containers: ThrowawayContainers
    records: DrillRecords
    image: str
    environment: Mapping[str, str]
    may_pull: bool = False
    max_disk_bytes: int | None = None
    max_memory_bytes: int | None = None
    timeout_seconds: float = TIMEOUT_SECONDS

    @property
    def description(self) -> str:
        return f"a container of {self.image}"

    @contextmanager
    def open(self, manifest: Manifest) -> Iterator[DrillServer]:
        self._require_image()
        data_folder = self.containers.data_folder()
        allowed = allowed_disk(data_folder, manifest, self.max_disk_bytes) if data_folder else None
        settings = {**FAST, **drill_settings(self.max_memory_bytes), "listen_addresses": ""}
        name = f"opsctl-drill-{secrets.token_hex(4)}"
        folder = _temporary_folder() / name
        with self.records.keep(name, folder=str(folder), container=name) as forget, ExitStack() as cleanup:
            cleanup.enter_context(without_libpq_variables())
            cleanup.callback(_clear, self.containers, name, folder, forget)
            shared = _made(folder)
            user = name.replace("-", "_")
            stop = Stop(partial(self.containers.kill, name))
            cleanup.enter_context(watching(stop, self.timeout_seconds, data_folder, allowed))
            service = self._started(name, user, shared, settings)
            superuser = Server(_url(shared, user))
            self._wait(superuser, name, shared)
            loader = f"{user}_loader"
            create_bare_roles(superuser, needed_roles(manifest.facts), loader=loader)
            place = InsideContainer(lambda: partial(self.containers.docker.start, service), self.environment)
            yield DrillServer(
                server=Server(_url(shared, loader)),
                superuser=superuser,
                trusts_superuser=True,  # what it starts is shut in with it
                work_path=folder,
                stopped_because=stop.reason,
                tools=Tools(search_path=[], environment=self.environment, place=place),
            )

    def _require_image(self) -> None:
        if self.containers.has_image(self.image):
            return
        if not self.may_pull:
            raise ServiceFailed(
                "the image is not here, and drills may not pull it",
                hint=f"`docker pull {self.image}`, or set pull in [drill].",
            )
        self.containers.pull(self.image)

    def _started(self, name: str, user: str, shared: Path, settings: Mapping[str, str]) -> Service:
        arguments = [word for setting in settings.items() for word in ("-c", "=".join(setting))]
        limit = int(self.timeout_seconds + START_SECONDS)
        return self.containers.start(
            name,
            self.image,
            ["sh", "-c", SCRIPT, "opsctl", str(shared), user, str(limit), *arguments],
            user=OS_USER,
            shared=shared,
            memory_bytes=self.max_memory_bytes,
        )

    def _wait(self, server: Server, name: str, shared: Path) -> None:
        """Until it takes connections. Raises ServiceFailed with the end of its log."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with server.connect("postgres", connect_seconds=2):
                    return
            except DatabaseUnreachable as error:
                has_ended = self.containers.find(name) is None
                if has_ended or time.monotonic() > end:
                    what = "has ended" if has_ended else f"does not answer within {START_SECONDS:g} seconds"
                    said = _log(shared) or error.message
                    raise ServiceFailed(f"the server in the container {what}: {said}") from error
            time.sleep(POLL_SECONDS)


def _temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir())
    return folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else _SHORT_FOLDER


def _made(folder: Path) -> Path:
    """The drill's folder, which is ours alone, and in it the one for the socket, where the container's user writes."""
    try:
        folder.mkdir(mode=0o700)
        shared = folder / "s"
        shared.mkdir()
        shared.chmod(0o777)  # whatever the umask
    except OSError as error:
        raise OpsctlError(f"{folder.parent} cannot be written: {error.strerror}.", hint="Set TMPDIR.") from error
    return shared


def _url(shared: Path, user: str) -> str:
    return f"postgresql:///{DATABASE}?host={quote(str(shared), safe='')}&port=5432&user={user}"


def _log(shared: Path) -> str:
    try:
        lines = (shared / "log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_LINES:])


def _clear(containers: ThrowawayContainers, name: str, folder: Path, forget: Callable[[], None]) -> None:
    containers.remove(name)
    remove_remains(folder)
    forget()
