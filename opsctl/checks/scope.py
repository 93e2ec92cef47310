"""What a run of checks may look at. Everything is opened when it is first asked for, in the thread that asks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING

from opsctl.checks.samples import Samples
from opsctl.errors import ConfigurationError, DatabaseUnreachable

if TYPE_CHECKING:
    from opsctl.catalog import Catalog
    from opsctl.config import Config
    from opsctl.postgres.server import Connection, Server
    from opsctl.postgres.tools import Tools
    from opsctl.repository import Repository
    from opsctl.services import Service
    from opsctl.services.names import Services

CONNECT_SECONDS = 4


def _no_services() -> "Services":
    raise ConfigurationError("There are no services here.", hint="Write a section [services.NAME].")


@dataclass
class Scope:
    """The configuration, the databases to look at, the clock, and how servers, repositories and tools are opened."""

    config: "Config"
    databases: Sequence[str]
    clock: Callable[[], datetime]
    open_server: Callable[[str], "Server"]
    open_repositories: Callable[[], Mapping[str, "Repository"]]
    open_tools: Callable[[str], "Tools"]
    samples: Samples = field(default_factory=Samples)
    open_services: Callable[[], "Services"] = _no_services

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._servers: dict[str, Server] = {}
        self._sessions: dict[str, tuple[ExitStack, Connection]] = {}
        self._is_closed = False
        self._looking = Lock()
        self._containers: dict[str, list[Service]] = {}
        self.catalogs: dict[str, Catalog] = {}
        """What the repositories hold that answered, see :meth:`read_catalog`."""

    def server(self, database: str) -> "Server":
        if database not in self._servers:
            self._servers[database] = self.open_server(database)
        return self._servers[database]

    @property
    def repositories(self) -> Mapping[str, "Repository"]:
        with self._lock:
            return self.open_repositories()

    def tools_of(self, database: str) -> "Tools":
        """What a database is dumped with."""
        with self._lock:
            return self.open_tools(database)

    @property
    def services(self) -> "Services":
        with self._lock:
            return self.open_services()

    def containers(self, service: str) -> "list[Service]":
        """A service's containers as they were when a check of this run first asked: all judge the same moment."""
        services = self.services
        with self._looking:
            if service not in self._containers:
                self._containers[service] = services.seen(service)
            return self._containers[service]

    def read_catalog(self, repository: str) -> "Catalog":
        """What a repository holds, for all checks of this run. Raises RepositoryUnreachable."""
        self.catalogs[repository] = self.repositories[repository].catalog()
        return self.catalogs[repository]

    def session(self, database: str) -> "Connection":
        """The one session with a database, which all its checks share: use it in the lane ``database`` only."""
        from opsctl.postgres.session import examining

        if database not in self._sessions:
            stack = ExitStack()
            connection = stack.enter_context(examining(self.server(database), connect_seconds=CONNECT_SECONDS))
            with self._lock:
                if not self._is_closed:
                    self._sessions[database] = stack, connection
                    return connection
            stack.close()
            raise DatabaseUnreachable("The session came after the run was over.")
        return self._sessions[database][1]

    def end_session(self, database: str) -> None:
        """End a database's session, if there is one, once all its checks are through."""
        with self._lock:
            stack, _ = self._sessions.pop(database, (None, None))
        if stack is not None:
            stack.close()

    def close(self, *, but_for: Collection[str] = ()) -> None:
        """End the sessions, but for those whose threads hang in them: they end with the process."""
        with self._lock:
            self._is_closed = True
        for database, (stack, _) in self._sessions.items():
            if database not in but_for:
                stack.close()
