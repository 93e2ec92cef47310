"""Databases: each test's own, copied from a template and gone with the test."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import opsctl
from opsctl.postgres.cluster import Cluster

DEMO_SQL = Path(opsctl.__file__).with_name("demo.sql")
RICH_SQL = Path(__file__).with_name("rich_schema.sql")


@dataclass(frozen=True)
class Database:
    cluster: Cluster
    name: str

    @property
    def url(self) -> str:
        return self.cluster.url(self.name)

    @contextmanager
    def connect(self, **options: Any) -> Iterator[Any]:
        """A psycopg connection; it commits by itself unless told otherwise."""
        import psycopg

        with psycopg.connect(self.url, **{"autocommit": True, **options}) as connection:
            yield connection

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run ``sql`` on a connection of its own; the rows, if it returns any."""
        with self.connect() as connection:
            cursor = connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def new_database_on(cluster: Cluster, prefix: str, template: str = "template1") -> Iterator[Database]:
    """A database of its own; it and every database whose name begins like its name are dropped afterwards."""
    from psycopg.sql import SQL, Identifier

    admin = Database(cluster, "postgres")
    name = f"{prefix}_{uuid.uuid4().hex[:8]}"
    with admin.connect() as connection:
        # Copying files is the faster strategy here: nothing is flushed.
        create = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        connection.execute(create.format(Identifier(name), Identifier(template)))
    try:
        yield Database(cluster, name)
    finally:
        with admin.connect() as connection:
            derived = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name])
            for (left,) in derived.fetchall():
                connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(left)))


@contextmanager
def _template(cluster: Cluster, prefix: str, script: Path) -> Iterator[str]:
    with new_database_on(cluster, prefix) as database:
        database.execute(script.read_text())
        yield database.name


@pytest.fixture(scope="session")
def _saas_template(cluster: Cluster) -> Iterator[str]:
    with _template(cluster, "template_saas", DEMO_SQL) as name:
        yield name


@pytest.fixture(scope="session")
def _rich_template(cluster: Cluster) -> Iterator[str]:
    with _template(cluster, "template_rich", RICH_SQL) as name:
        yield name


@pytest.fixture
def new_database() -> Iterator[Callable[..., Database]]:
    """``new_database(cluster)``: an empty database on any server; it goes with everything named after it."""
    with ExitStack() as cleanup:

        def make(cluster: Cluster, prefix: str = "empty", template: str = "template1") -> Database:
            return cleanup.enter_context(new_database_on(cluster, prefix, template))

        yield make


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """An empty database: ``.name``, ``.url``, ``.execute(sql, *parameters)``, ``.connect()``."""
    with new_database_on(cluster, "empty") as fresh:
        yield fresh


@pytest.fixture
def saas(cluster: Cluster, _saas_template: str) -> Iterator[Database]:
    """A small SaaS with 82,040 rows, see opsctl/demo.sql."""
    with new_database_on(cluster, "saas", _saas_template) as fresh:
        yield fresh


@pytest.fixture
def rich(cluster: Cluster, _rich_template: str) -> Iterator[Database]:
    """Everything an ordinary database may hold, see tests/rich_schema.sql."""
    with new_database_on(cluster, "rich", _rich_template) as fresh:
        yield fresh


@pytest.fixture
def facts_of() -> Callable[[Database], Any]:
    """``facts_of(rich)``: rows and content hash of every table, as they are now."""
    from opsctl.postgres.facts import present_facts
    from opsctl.postgres.server import Server

    def present(database: Database) -> Any:
        with Server(database.url).connect() as connection:
            return present_facts(connection, database.name, "content")

    return present


@pytest.fixture
def schema_of(binaries: Any) -> Callable[[Database], list[str]]:
    """What ``pg_dump --schema-only`` writes of a database, without the key of this very run."""

    def lines(database: Database) -> list[str]:
        command = [binaries.path("pg_dump"), "--schema-only", f"--dbname={database.url}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]

    return lines


@pytest.fixture
def databases_like(cluster: Cluster) -> Callable[[Database], list[str]]:
    """``databases_like(rich)``: every database of the server whose name begins with that database's."""

    def names(database: Database) -> list[str]:
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1"
        return [name for (name,) in Database(cluster, "postgres").execute(query, database.name)]

    return names
