"""What is true in a snapshot: rows, hashes, sequences, extensions, roles, the database's own properties.

The same queries describe the source when it is dumped and the copy when it is restored; two sets are then compared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from opsctl.manifest import (
    DatabaseProperties,
    ExtensionFacts,
    Facts,
    SequenceFacts,
    Setting,
    TableFacts,
)
from opsctl.postgres.privileges import read_owners, read_superuser_objects
from opsctl.postgres.requirements import read_requirements
from opsctl.postgres.server import one, rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

FactsLevel = Literal["none", "counts", "content"]

LOCK_MILLISECONDS = 200
"""How long a count of the live database waits for a table that somebody has locked."""

TABLES_A_QUERY = 100

PINNED = (
    "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'postgres'; set bytea_output = 'hex';"
    "set extra_float_digits = 1; set lc_monetary = 'C'; set row_security = off; set xmlbinary = 'base64';"
    "set max_parallel_workers_per_gather = 4"
)
"""Settings that change how a value reads as text, and row security, which would hide rows from a count.

Counting and hashing run in the server's parallel workers, as many as it has to spare. More sessions would not do:
each had to lock the tables anew, and would queue behind a TRUNCATE that waits for the snapshot's end.
"""

LARGE_OBJECTS = f"""
    with recursive chunk(id, number, bytes, sha256) as (
        select m.oid, 0::bigint, length(data), sha256(data)
        from pg_largeobject_metadata m, lateral lo_get(m.oid, 0, {1 << 23}) as data
        union all
        select id, number + 1, length(data), sha256(data)
        from chunk, lateral lo_get(id, (number + 1) * {1 << 23}, {1 << 23}) as data where bytes = {1 << 23})
    select coalesce(sum(hashtextextended(
        id::text || case when number > 0 then '+' || number || ' ' else '' end || encode(sha256, 'hex'), 0
    )::numeric), 0) from chunk"""
"""In pieces of 8 MiB: one of several GB does not fit into a value."""


TABLES = """
    from pg_class c join pg_namespace n on n.oid = relnamespace, format('%%I.%%I', nspname, relname) as quoted
    where relpersistence <> 't' and not (relpersistence = 'u' and pg_is_in_recovery())
      and nspname !~ '^pg_' and nspname <> 'information_schema'
      and not exists (select from pg_depend d join pg_extension e on e.oid = d.refobjid
                      where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
                        and not coalesce(c.oid = any(e.extconfig), false))"""
"""Where pg_dump looks: a database's own tables, and of extensions those with configuration data.

On a standby unlogged tables have no rows, and nobody may look.
"""


@dataclass(frozen=True)
class Table:
    """A table as it can be named: ``quoted`` in a statement, ``native`` (in the database's encoding) to pg_dump."""

    oid: int
    schema: str
    name: str
    quoted: bytes
    native: bytes
    condition: bytes
    """Which rows are dumped, as a WHERE clause: an extension may name those of its rows that are not its own."""


Counting = Callable[["Connection", Table, FactsLevel], TableFacts]


def list_tables(connection: "Connection", *, kinds: str = "r") -> list[Table]:
    """The tables pg_dump would dump: ``kinds`` ``r`` are those with rows of their own, ``rp`` partitioned ones too."""
    query = (
        "select c.oid, nspname, relname, textsend(quoted), convert_to(quoted, getdatabaseencoding()),"
        " textsend(coalesce((select extcondition[array_position(extconfig, c.oid)]"
        " from pg_extension where c.oid = any(extconfig)), ''))"
        f" {TABLES} and relkind = any(%s) order by c.oid"
    )
    return [Table(*row) for row in rows(connection, query, (list(kinds),))]


def present_facts(connection: "Connection", database: str, level: FactsLevel) -> Facts:
    """The facts of a database as it is now; of a restored copy, to be compared with the backup's."""
    connection.execute(PINNED)
    return count_all(connection, read_facts(connection, database, level), list_tables(connection))


def live_facts(connection: "Connection", database: str, level: FactsLevel) -> Facts:
    """The facts of a database in use: no transaction holds them together, because nobody should wait for one.

    Each table is counted at its own moment; one that is locked, or goes meanwhile, is unknown.
    """
    import psycopg

    def count(connection: "Connection", table: Table, level: FactsLevel) -> TableFacts:
        try:
            return count_table(connection, table, level)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return TableFacts(table.schema, table.name)

    connection.execute(PINNED)
    connection.execute(f"set lock_timeout = '{LOCK_MILLISECONDS}ms'; set default_transaction_read_only = on")
    facts = read_facts(connection, database, level)
    return count_all(connection, facts, list_tables(connection), count)


def count_all(
    connection: "Connection", facts: Facts, tables: Iterable[Table], count: "Counting | None" = None
) -> Facts:
    """``facts`` completed by the rows of these tables and the large objects."""
    if count is None and facts.level == "counts":
        counted = list(count_tables(connection, list(tables)))
    else:
        counted = [(count or count_table)(connection, table, facts.level) for table in tables]
    counted.sort(key=lambda table: (table.schema, table.name))
    large_objects, large_objects_hash = count_large_objects(connection, facts.level)
    return replace(facts, tables=tuple(counted), large_objects=large_objects, large_objects_hash=large_objects_hash)


def read_facts(
    connection: "Connection", database: str, level: FactsLevel, sequences: Iterable[SequenceFacts] | None = None
) -> Facts:
    """Everything but the rows; ``sequences`` as they were read before, where that matters."""
    return Facts(
        level=level,
        tables=(),
        sequences=tuple(read_sequences(connection) if sequences is None else sequences),
        extensions=tuple(read_extensions(connection)),
        roles=tuple(_read_roles(connection)),
        database=read_properties(connection, database),
        owners=tuple(read_owners(connection)),
        superuser_objects=tuple(read_superuser_objects(connection)),
        requires=tuple(read_requirements(connection)),
    )


def read_sequences(connection: "Connection") -> list[SequenceFacts]:
    """Sequences that were used and may be read. They follow no snapshot: read them before the dump begins."""
    found = rows(
        connection,
        """select schemaname, sequencename, last_value, increment_by from pg_sequences
           where last_value is not null and not cycle and schemaname !~ '^pg_' order by 1, 2""",
    )
    return [SequenceFacts(*row) for row in found]


def read_extensions(connection: "Connection") -> list[ExtensionFacts]:
    query = (
        "select extname, extversion, nspname from pg_extension e join pg_namespace n on n.oid = extnamespace order by 1"
    )
    return [ExtensionFacts(*row) for row in rows(connection, query)]


def _read_roles(connection: "Connection") -> list[str]:
    """Roles that own something here or are named in a grant or policy: a restore needs them to exist."""
    query = """
        select rolname from pg_roles where oid in (
            select refobjid from pg_shdepend
            where refclassid = 'pg_authid'::regclass
              and dbid = (select oid from pg_database where datname = current_database())
            -- the bootstrap superuser is pinned: what it owns is not recorded in pg_shdepend
            union select relowner from pg_class where oid >= 16384
            union select nspowner from pg_namespace where oid >= 16384
            union select proowner from pg_proc where oid >= 16384
            union select typowner from pg_type where oid >= 16384
            union select datdba from pg_database where datname = current_database())
        order by 1"""
    return [row[0] for row in rows(connection, query)]


def read_properties(connection: "Connection", database: str) -> DatabaseProperties:
    """The properties of a database, from any session of its server. Raises LookupError when there is none."""
    version = connection.info.server_version
    locale = "datlocale" if version >= 170000 else "daticulocale" if version >= 150000 else "null::text"
    provider = "datlocprovider" if version >= 150000 else "'c'"
    collversion = "datcollversion" if version >= 150000 else "null::text"
    found = rows(
        connection,
        f"""select pg_get_userbyid(datdba), pg_encoding_to_char(encoding), {provider}::text, datcollate, datctype,
                   {locale}, {collversion}, datacl::text[], shobj_description(d.oid, 'pg_database'), datconnlimit, d.oid
            from pg_database d where datname = %s""",
        (database,),
    )
    if not found:
        raise LookupError(database)
    owner, encoding, provider, collate, ctype, locale, collversion, acl, comment, limit, oid = found[0]
    return DatabaseProperties(
        owner=owner,
        encoding=encoding,
        locale_provider={"c": "libc", "i": "icu", "b": "builtin"}[provider],
        collate=collate,
        ctype=ctype,
        locale=locale,
        collation_version=collversion,
        acl=None if acl is None else tuple(acl),
        comment=comment,
        connection_limit=max(limit, -1),  # -2 marks a database that was being dropped: no limit
        settings=tuple(_read_settings(connection, oid)),
    )


def _read_settings(connection: "Connection", database_oid: int) -> list[Setting]:
    query = """
        select rolname, split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)
        from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole, unnest(setconfig) as setting
        where setdatabase = %s and (setrole = 0 or rolname is not null) order by 1 nulls first, 2"""
    return [Setting(*row) for row in rows(connection, query, (database_oid,))]


def count_table(connection: "Connection", table: Table, level: FactsLevel) -> TableFacts:
    """The table with its rows counted, and with an order-free hash of its content at level ``content``.

    What cannot be counted (a value too large for its text, a right that is missing) stays ``None``: unknown, never a
    failed backup.
    """
    import psycopg

    unknown = TableFacts(table.schema, table.name)
    if level == "none":
        return unknown
    query = b"select count(*) from only %b %b" % (table.quoted, table.condition)
    if level == "content":
        query = _content_query(connection, table)
    try:
        with connection.transaction():
            row = one(connection, query)
    except (psycopg.errors.ProgramLimitExceeded, psycopg.errors.OutOfMemory, psycopg.errors.InsufficientPrivilege):
        return count_table(connection, table, "counts") if level == "content" else unknown
    return TableFacts(table.schema, table.name, row[0], f"{int(row[1]):x}" if level == "content" else None)


def count_tables(connection: "Connection", tables: Sequence[Table]) -> Iterator[TableFacts]:
    """The rows of many tables, by few queries: with thousands of small ones the way there and back is most of it.

    What one table keeps from being counted would be all of its query's, so its tables are counted one by one then.
    """
    import psycopg

    for start in range(0, len(tables), TABLES_A_QUERY):
        some = tables[start : start + TABLES_A_QUERY]
        counts = (b"(select count(*) from only %b %b)" % (table.quoted, table.condition) for table in some)
        try:
            with connection.transaction():
                row = one(connection, b"select " + b", ".join(counts))
        except (psycopg.errors.ProgramLimitExceeded, psycopg.errors.OutOfMemory, psycopg.errors.InsufficientPrivilege):
            yield from (count_table(connection, table, "counts") for table in some)
        else:
            yield from (TableFacts(table.schema, table.name, rows) for table, rows in zip(some, row, strict=True))


def _content_query(connection: "Connection", table: Table) -> bytes:
    """``sum`` of each row's 64-bit hash: the order of rows does not matter, duplicates do.

    Columns are taken by name, because a restore may change their order in inherited tables. The rows' alias is one
    that no column shares by accident: ``t::text`` would mean a column called t.
    """
    columns = one(
        connection,
        """select textsend(coalesce(string_agg(quote_ident(attname), ', ' order by attname collate "C"), ''))
           from pg_attribute where attrelid = %s and attnum > 0 and not attisdropped""",
        (table.oid,),
    )[0]
    return (
        b"select count(*), coalesce(sum(hashtextextended((t.*)::text, 0)::numeric), 0)"
        b" from (select %b from only %b %b) t"
    ) % (columns, table.quoted, table.condition)


def count_large_objects(connection: "Connection", level: FactsLevel) -> tuple[int | None, str | None]:
    """How many large objects there are and, at level ``content``, a hash over all of them."""
    import psycopg

    if level == "none":
        return None, None
    count = one(connection, "select count(*) from pg_largeobject_metadata")[0]
    if level == "counts" or not count:
        return count, None
    try:
        with connection.transaction():
            return count, f"{int(one(connection, LARGE_OBJECTS)[0]):x}"
    except (psycopg.errors.ProgramLimitExceeded, psycopg.errors.OutOfMemory, psycopg.errors.InsufficientPrivilege):
        return count, None


def compare(expected: Facts, found: Facts) -> list[str]:
    """What differs, a sentence each: the dumped facts against the restored ones. Unknown values are not compared."""
    return [
        *_compare_tables(expected.tables, {(table.schema, table.name): table for table in found.tables}),
        *_compare_sequences(expected.sequences, {(seq.schema, seq.name): seq for seq in found.sequences}),
        *_compare_extensions(expected.extensions, {extension.name for extension in found.extensions}),
        *_differing("large objects", expected.large_objects, found.large_objects),
        *_differing("content of the large objects", expected.large_objects_hash, found.large_objects_hash),
    ]


def _compare_tables(expected: Iterable[TableFacts], found: dict[tuple[str, str], TableFacts]) -> Iterable[str]:
    for table in expected:
        name = f"{table.schema}.{table.name}"
        copy = found.get((table.schema, table.name))
        if copy is None:
            yield f"table {name} is missing"
            continue
        yield from _differing(f"rows of {name}", table.rows, copy.rows)
        if table.rows == copy.rows:
            yield from _differing(f"content of {name}", table.content_hash, copy.content_hash)


def _compare_sequences(expected: Iterable[SequenceFacts], found: dict[tuple[str, str], SequenceFacts]) -> Iterable[str]:
    for sequence in expected:
        name = f"{sequence.schema}.{sequence.name}"
        copy = found.get((sequence.schema, sequence.name))
        if copy is None:
            yield f"sequence {name} is missing"
        elif (copy.last_value - sequence.last_value) * sequence.increment < 0:
            yield f"sequence {name}: stands at {copy.last_value}, before {sequence.last_value}"


def _compare_extensions(expected: Iterable[ExtensionFacts], found: set[str]) -> Iterable[str]:
    return (f"extension {extension.name} is missing" for extension in expected if extension.name not in found)


def compare_objects(expected: Facts, found: Facts) -> list[str]:
    """What differs besides the rows where owners were restored, too: what each role owns, for one."""
    theirs = {owned.role: owned.count for owned in found.owners}
    # More may be seen of a role that was a server's bootstrap superuser and is an ordinary one here.
    fewer = [
        f"objects of {owned.role}: {owned.count} in the backup, {theirs.get(owned.role, 0)} restored"
        for owned in expected.owners
        if theirs.get(owned.role, 0) < owned.count
    ]
    missing = sorted(set(expected.superuser_objects) - set(found.superuser_objects))
    encodings = _differing("encoding", expected.database.encoding, found.database.encoding)
    return [*fewer, *(f"{name} is missing" for name in missing), *encodings]


def _differing(what: str, expected: Any, found: Any) -> Iterable[str]:
    if expected is not None and found is not None and expected != found:
        yield f"{what}: {expected} in the backup, {found} restored"
