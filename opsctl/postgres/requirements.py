"""What a database's objects need of a server's build and machine: kinds of values, locales, compression.

Recorded when the backup is taken; a server that lacks one of them says nothing about the backup.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from opsctl.manifest import DatabaseProperties
from opsctl.postgres.server import attempt, one, rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

LOCALE = re.compile(r"(libc|icu|builtin) locale (.+)")

UNKNOWN_LOCALE = {"22023", "42704"}
"""What a server says to a locale that the machine has not: invalid parameter value, undefined object."""

NEEDED = """
    with columns(kind, sorting) as (
        select coalesce(nullif(t.typelem, 0), a.atttypid), a.attcollation
        from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_type t on t.oid = a.atttypid
        where c.oid >= 16384 and not attisdropped and relkind in ('r', 'p', 'm', 'f', 'c', 'i', 'I')
          and relpersistence <> 't'
        union select typbasetype, typcollation from pg_type where typtype = 'd' and oid >= 16384)
    select 'type xml' from columns where kind = 'xml'::regtype
    union select 'collation ' || collname from columns join pg_collation c on c.oid = sorting
        where c.oid < 16384 and collprovider in ('c', 'i') and collname not in ('C', 'POSIX', 'default')
    union select case collprovider when 'i' then 'icu' when 'b' then 'builtin' else 'libc' end || ' locale ' || {locale}
        from pg_collation where oid >= 16384 and {locale} is not null
          and not exists (select from pg_depend where classid = 'pg_collation'::regclass and objid = pg_collation.oid
                          and deptype = 'e')
    union select 'compression lz4' from pg_attribute where attrelid >= 16384 and attcompression = 'l'
    order by 1"""


def read_requirements(connection: "Connection") -> list[str]:
    """In words: ``type xml``, ``collation de_DE``, ``icu locale de-u-co-phonebk``, ``compression lz4``."""
    version = connection.info.server_version
    own = "colllocale" if version >= 170000 else "colliculocale" if version >= 150000 else "null"
    return [row[0] for row in rows(connection, NEEDED.format(locale=f"coalesce({own}, collcollate)"))]


def missing_requirements(connection: "Connection", needed: Iterable[str]) -> list[str]:
    """Those that the server does not meet. Nothing of what is tried stays."""
    return [each for each in needed if not _is_met(connection, each)]


def _is_met(connection: "Connection", needed: str) -> bool:
    from psycopg.sql import SQL, Literal

    locale = LOCALE.fullmatch(needed)
    kind, _, name = needed.partition(" ")
    if locale:
        make = SQL("create collation pg_temp.opsctl_probe (provider = {}, locale = {})")
        return attempt(connection, make.format(SQL(locale[1]), Literal(locale[2])), undo=True) is None
    if needed == "type xml":
        return attempt(connection, "select '<a/>'::xml", undo=True) is None
    if kind == "collation":
        return bool(one(connection, "select exists (select from pg_collation where collname = %s)", (name,))[0])
    if kind == "compression":
        query = "select bool_or(%s = any(enumvals)) from pg_settings where name = 'default_toast_compression'"
        return bool(one(connection, query, (name,))[0])
    return True  # a newer opsctl's word


def has_locale(connection: "Connection", properties: DatabaseProperties) -> bool:
    """Whether a new database can have the locale of these: tried with a collation, of which nothing stays.

    Where that does not tell (another encoding, no right, a standby) the answer is yes.
    """
    import psycopg
    from psycopg.sql import SQL, Literal

    names = {properties.collate, properties.ctype} - {None, "C", "POSIX"}
    if not names or one(connection, "select getdatabaseencoding()")[0] != properties.encoding:
        return True
    make = SQL("create collation pg_temp.opsctl_probe (provider = libc, lc_collate = {}, lc_ctype = {})")
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(make.format(Literal(properties.collate), Literal(properties.ctype)))
    except psycopg.Error as error:
        return error.sqlstate not in UNKNOWN_LOCALE
    return True
