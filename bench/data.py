"""What is backed up: databases made by SQL alone, of text, jsonb, uuids and numbers as a small company has them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from opsctl.postgres.cluster import Cluster
from opsctl.postgres.server import Server, one

ROOT = Path(__file__).parents[1]
DATABASE = "bench"
GIB = 1 << 30
ROWS_A_BATCH = 50_000
LARGE_TABLES = 4

Session = Any
"""An open connection to a database."""

WORDS = """account add after again amount answer before bot build call cancel card chat check client close company
confirm create customer date delivery discount email error event export file first group help hour import invoice item
language last later link list login message minute month new next number offer open order page password pay payment
phone plan please price product question ready receipt refund remind reply report request restart save search send
server service settings shop show sign start status stop subject support team thank time today tomorrow total update
user version wait week welcome window write year"""

SCHEMA = """
create table {table} (
    id bigint generated always as identity primary key,
    external_id uuid not null,
    company_id int not null,
    kind text not null,
    body text not null,
    amount numeric(12, 2) not null,
    payload jsonb not null,
    occurred_at timestamptz not null
);
create index on {table} (company_id, occurred_at);
"""

BATCH = """
insert into {table} (external_id, company_id, kind, body, amount, payload, occurred_at)
select
    gen_random_uuid(), 1 + (random() * 4000)::int, w[1 + (random() * 4)::int],
    array_to_string(array(
        select w[1 + floor(random() * cardinality(w))::int] from generate_series(1, 12 + n %% 40)), ' '),
    round((random() * 100000)::numeric, 2),
    jsonb_build_object('session', md5(random()::text), 'page', w[1 + floor(random() * cardinality(w))::int],
                       'milliseconds', (random() * 900)::int, 'ok', random() < 0.97),
    timestamptz '2026-01-01' + random() * interval '300 days'
from generate_series(1, %s) n, (select string_to_array(%s, ' ') as w) words
"""

AGAIN = """
insert into {table} (external_id, company_id, kind, body, amount, payload, occurred_at)
select gen_random_uuid(), company_id, kind, body, amount, payload, occurred_at from {table} limit %s
"""
"""The rows that are there once more, with other ids: making new text takes an hour for 5 GiB. No peer finds what is the
same: a compressor looks back some MiB, and the ids are in every chunk of a deduplicating one."""

TENANT = """
create table tenant_{number} (
    id bigint generated always as identity primary key,
    external_id uuid not null default gen_random_uuid(),
    name text not null,
    amount numeric(12, 2) not null,
    payload jsonb not null
);
create index on tenant_{number} (name);
insert into tenant_{number} (name, amount, payload)
select 'item ' || n, n * 1.25, jsonb_build_object('n', n) from generate_series(1, 20) n;
"""


@dataclass(frozen=True)
class DataSet:
    """A database to measure with; ``fill`` makes it. Its ``name`` is what the report calls it."""

    name: str
    fill: Callable[[Session], None]
    needed_bytes: int
    """Room for the server, the copies that are made of it, and the largest of its dumps."""

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-").replace(",", "").replace(".", "_")

    def make(self, cluster: Cluster) -> int:
        """Fill a new database of a server; its size."""
        with Server(cluster.url()).connect() as connection:
            connection.execute(f"create database {DATABASE}")
        with Server(cluster.url(DATABASE)).connect() as connection:
            connection.execute("set search_path = public, pg_catalog")
            self.fill(connection)
            connection.execute("vacuum (analyze, freeze)")
            connection.execute("checkpoint")
        return self.size(cluster)

    @staticmethod
    def size(cluster: Cluster) -> int:
        with Server(cluster.url(DATABASE)).connect() as connection:
            return int(one(connection, "select pg_database_size(current_database())")[0])


def events(gib: float) -> DataSet:
    """A few large tables, ``gib`` GiB with their indexes."""

    def fill(connection: Session) -> None:
        names = [f"events_{number}" for number in range(LARGE_TABLES)]
        for name in names:
            connection.execute(SCHEMA.format(table=name))
        size = 0
        for name in cycle(names):
            if size < GIB:
                words = " ".join(WORDS.split())
                connection.execute(BATCH.format(table=name), (min(ROWS_A_BATCH, int(gib * 2e6)), words))
            else:
                connection.execute(AGAIN.format(table=name), (10 * ROWS_A_BATCH,))
            size = int(one(connection, "select pg_database_size(current_database())")[0])
            if size >= gib * GIB:
                return

    return DataSet(f"{gib:g} GiB", fill, int(5 * gib * GIB) + GIB // 2)


def tenants(tables: int) -> DataSet:
    """Many small tables, of 20 rows each."""

    def fill(connection: Session) -> None:
        for number in range(tables):
            connection.execute(TENANT.format(number=number))

    return DataSet(f"{tables:,} tables", fill, GIB + tables * 300_000)


def fill_repository(folder: Path, backups: int) -> None:
    """A configuration, and a repository with many backups beside it, by the records of the tests."""
    sys.path.insert(0, str(ROOT / "tests" / "web"))
    import story  # type: ignore[import-not-found]

    story.fill(folder, backups=backups, runs=0)
