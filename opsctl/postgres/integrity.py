"""What is damaged in a database, or may be without anybody noticing: pages, indexes, the order of text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.postgres.server import mapped_errors, one, rows
from opsctl.postgres.session import require_statistics

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

CHECKSUMS = """
    select coalesce(datname, ''), checksum_failures,
           extract(epoch from clock_timestamp() - checksum_last_failure)::float8
    from pg_stat_database where checksum_failures > 0 order by 2 desc, 1"""

INVALID_INDEXES = r"""
    select format('%I.%I', n.nspname, i.relname), format('%I.%I', tn.nspname, t.relname), x.indisunique,
           i.relkind = 'I', i.relname ~ '_cc(new|old)\d*$'
    from pg_index x
    join pg_class i on i.oid = x.indexrelid join pg_namespace n on n.oid = i.relnamespace
    join pg_class t on t.oid = x.indrelid join pg_namespace tn on tn.oid = t.relnamespace
    where not (x.indisvalid and x.indisready and x.indislive)
      and not exists (select from pg_stat_progress_create_index p
                      where p.datid = (select oid from pg_database where datname = current_database())
                        and p.relid in (x.indrelid, (select m.oid from pg_class m where m.reltoastrelid = x.indrelid)))
    order by 1"""
"""Those of a table of which an index is being built right now are left out: they are invalid until it is done."""

DATABASE_COLLATION = """
    select quote_ident(datname), datcollversion, pg_database_collation_actual_version(oid)
    from pg_database where datname = current_database()"""

COLLATIONS = """
    with versions as (
        select c.oid, format('%I.%I', nspname, collname) as name, collversion as recorded,
               pg_collation_actual_version(c.oid) as actual
        from pg_collation c join pg_namespace n on n.oid = collnamespace
        where collversion is not null
          and c.oid in (select distinct attcollation from pg_attribute where attcollation <> 0))
    select name, recorded, actual from versions where recorded is distinct from actual order by name"""
"""Of those that columns and indexes use; asking all of ICU's would take a second."""


@dataclass(frozen=True)
class ChecksumFailures:
    """Of one database; of what all databases share where it has no name. ``last_seconds`` is an age."""

    database: str
    failures: int
    last_seconds: float | None


@dataclass(frozen=True)
class Checksums:
    is_on: bool
    failures: tuple[ChecksumFailures, ...]


@dataclass(frozen=True)
class InvalidIndex:
    """Names are quoted as SQL needs them. ``is_leftover``: a REINDEX CONCURRENTLY that failed made it."""

    name: str
    table: str
    is_unique: bool
    is_partitioned: bool
    is_leftover: bool


@dataclass(frozen=True)
class Version:
    """Which version of its library sorted a collation when it was made, and which does now."""

    name: str
    recorded: str | None
    actual: str | None


@dataclass(frozen=True)
class CollationVersions:
    """``database`` is ``None`` before PostgreSQL 15, which records no such thing; its name is quoted."""

    database: Version | None
    changed: tuple[Version, ...]


@mapped_errors()
def read_checksums(connection: "Connection") -> Checksums:
    """The failures the server has counted in all its databases."""
    (is_on,) = one(connection, "select current_setting('data_checksums') = 'on'")
    return Checksums(is_on, tuple(ChecksumFailures(*row) for row in rows(connection, CHECKSUMS)))


@mapped_errors()
def read_invalid_indexes(connection: "Connection") -> list[InvalidIndex]:
    """Indexes of this database that are no use, and will not become any. Raises NotPermitted."""
    require_statistics(connection)  # else indexes that others build just now would look broken
    return [InvalidIndex(*row) for row in rows(connection, INVALID_INDEXES)]


@mapped_errors()
def read_collation_versions(connection: "Connection") -> CollationVersions:
    database = None
    if connection.info.server_version >= 150000:
        database = Version(*one(connection, DATABASE_COLLATION))
    return CollationVersions(database, tuple(Version(*row) for row in rows(connection, COLLATIONS)))
