"""What was written to a database, from the server's own counters: two readings, and what lies between them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.postgres.server import rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

Counters = dict[str, tuple[int, int, int]]
"""Rows inserted, updated and deleted by table, since the database came into being or its statistics were reset."""


@dataclass(frozen=True)
class TableWrites:
    table: str
    inserted: int
    updated: int
    deleted: int


def read_counters(connection: "Connection") -> Counters:
    query = "select schemaname || '.' || relname, n_tup_ins, n_tup_upd, n_tup_del from pg_stat_user_tables"
    return {table: (inserted, updated, deleted) for table, inserted, updated, deleted in rows(connection, query)}


def written_between(before: Counters, now: Counters) -> list[TableWrites] | None:
    """What was written from ``before`` to ``now``, most first; ``None`` when a crash has reset the counters."""
    writes = []
    for table, counts in now.items():
        delta = [new - old for new, old in zip(counts, before.get(table, (0, 0, 0)), strict=True)]
        if any(each < 0 for each in delta):
            return None
        if any(delta):
            writes.append(TableWrites(table, *delta))
    return sorted(writes, key=lambda each: (-(each.inserted + each.updated + each.deleted), each.table))
