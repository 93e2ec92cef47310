"""What runs out, or grows without being of use: the numbers of sequences, the room in tables."""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsctl.postgres.server import mapped_errors, rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

AT_ONCE = 200
"""Sequences per statement. Each stays locked until its end, and the server's table of locks is small."""

ESTIMATED_TABLES = 200
"""Only the largest: bloat that matters is in there."""

SMALLEST_BYTES = 10 * 1024 * 1024

SEQUENCES = """
    select s.seqrelid, has_sequence_privilege(s.seqrelid, 'select, usage')
    from pg_sequence s join pg_class c on c.oid = s.seqrelid
    where not seqcycle and (relpersistence = 'p' or relpersistence = 'u' and not pg_is_in_recovery())
      and not exists (select from pg_locks l where l.locktype = 'relation' and l.relation = s.seqrelid
                      and l.database = (select oid from pg_database where datname = current_database())
                      and mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
    order by 1"""
"""Without those that begin anew by themselves, and those somebody is changing: nothing here waits for a lock."""

USE = """
    select name, owner_table, owner_column, column_type, limit_type, last_value::float8,
           case when seqincrement > 0 then (last_value - seqmin + 1)::float8 / greatest(highest - seqmin + 1, 1)::float8
                else (seqmax - last_value + 1)::float8 / greatest(seqmax - lowest + 1, 1)::float8 end,
           case when seqincrement > 0 then highest else lowest end::float8
    from (
        select format('%%I.%%I', nspname, c.relname) as name, pg_sequence_last_value(c.oid)::numeric as last_value,
               seqmin::numeric, seqmax::numeric, seqincrement,
               least(seqmax, coalesce(highest, seqmax))::numeric as highest,
               greatest(seqmin, coalesce(-highest - 1, seqmin))::numeric as lowest,
               owner_table, owner_column, column_type,
               case when highest < seqmax then column_type else format_type(seqtypid, null) end as limit_type
        from pg_sequence s join pg_class c on c.oid = seqrelid join pg_namespace n on n.oid = relnamespace
        left join lateral (
            select format('%%I.%%I', tn.nspname, t.relname) as owner_table, quote_ident(attname) as owner_column,
                   format_type(atttypid, null) as column_type,
                   case atttypid when 'int2'::regtype then 32767 when 'int4'::regtype then 2147483647 end::int8
                     as highest
            from pg_depend d join pg_class t on t.oid = d.refobjid join pg_namespace tn on tn.oid = t.relnamespace
            join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.objsubid = 0
              and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') limit 1) owner on true
        where c.oid = any(%s)) numbers
    where last_value is not null"""

ESTIMATES = f"""
    with large as (
        select c.oid, nspname, relname, relpages::int8 as pages, reltuples, relnatts, current_setting('block_size')::int
                 as page_bytes, has_table_privilege(c.oid, 'select') as is_readable,
               coalesce((select option_value::int from pg_options_to_table(reloptions)
                         where option_name = 'fillfactor'), 100) as fillfactor
        from pg_class c join pg_namespace n on n.oid = relnamespace
        where relkind in ('r', 'm') and relpersistence <> 't' and nspname !~ '^pg_' and reltuples >= 0
          and relpages::int8 * current_setting('block_size')::int8 >= {SMALLEST_BYTES}
        order by relpages desc limit {ESTIMATED_TABLES}),
    widths as (
        select l.oid, sum((1 - null_frac) * avg_width) as width, count(*) as columns
        from large l join pg_stats s on s.schemaname = nspname and s.tablename = relname and not s.inherited
        group by l.oid)
    select format('%I.%I', nspname, relname), is_readable, pages * page_bytes,
           -- a row: its header of 23 bytes and the bitmap of nulls, then its columns, both padded to 8, and a pointer
           pages * page_bytes - least(pages, ceil(reltuples / greatest(1, floor(
             (page_bytes - 24) * fillfactor / 100.0
             / (ceil((23 + ceil(relnatts / 8.0)) / 8) * 8 + ceil(width / 8) * 8 + 4)))))::int8 * page_bytes
    from large l left join widths w using (oid)
    where not is_readable or columns = (select count(*) from pg_attribute a
                                        where a.attrelid = l.oid and attnum > 0 and not attisdropped)"""
"""Only tables all of whose columns the server has statistics of."""


@dataclass(frozen=True)
class Sequence:
    """``used`` is a share of 1; ``limit`` what it ends at, because of the type ``limit_type``. Names are quoted."""

    name: str
    table: str | None
    column: str | None
    column_type: str | None
    limit_type: str
    last_value: float
    used: float
    limit: float


@dataclass(frozen=True)
class Sequences:
    """Those in use, the most used first; ``unreadable`` are those this login may not read."""

    found: tuple[Sequence, ...]
    unreadable: int


@dataclass(frozen=True)
class Bloat:
    """What a table takes, and how much of it an estimate says it would not take if it were written anew."""

    table: str
    total_bytes: int
    wasted_bytes: int


@dataclass(frozen=True)
class Bloats:
    """The most wasted first; ``unreadable`` counts tables whose statistics this login does not see."""

    found: tuple[Bloat, ...]
    unreadable: int


@mapped_errors()
def read_sequences(connection: "Connection") -> Sequences:
    listed = rows(connection, SEQUENCES)
    readable = [oid for oid, is_readable in listed if is_readable]
    found = [Sequence(*row) for oids in _batches(readable) for row in rows(connection, USE, (oids,))]
    found.sort(key=lambda each: (-each.used, each.name))
    return Sequences(tuple(found), len(listed) - len(readable))


def _batches(oids: SequenceOf[int]) -> Iterator[list[int]]:
    for start in range(0, len(oids), AT_ONCE):
        yield list(oids[start : start + AT_ONCE])


@mapped_errors()
def read_bloat(connection: "Connection") -> Bloats:
    """An estimate from the planner's statistics, for tables of 10 MiB and more."""
    listed = rows(connection, ESTIMATES)
    found = [Bloat(name, total, wasted) for name, is_readable, total, wasted in listed if is_readable]
    found.sort(key=lambda each: (-each.wasted_bytes, each.table))
    return Bloats(tuple(found), len(listed) - len(found))
