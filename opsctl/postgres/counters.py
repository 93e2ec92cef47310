"""What the server has counted in a database since its statistics were last reset."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.postgres.server import mapped_errors, one

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection


@dataclass(frozen=True)
class Counters:
    """Counts of one database. ``blocks_hit`` were in shared_buffers, ``blocks_read`` were not."""

    deadlocks: int
    blocks_hit: int
    blocks_read: int


@mapped_errors()
def read_counters(connection: "Connection") -> Counters:
    query = "select deadlocks, blks_hit, blks_read from pg_stat_database where datname = current_database()"
    return Counters(*one(connection, query))
