"""What a database holds that not every login can restore: other roles' objects, and what only a superuser creates.

Recorded when the backup is taken, so that a plan can name each such entry from the manifest alone.
"""

from typing import TYPE_CHECKING

from opsctl.manifest import OwnedObjects
from opsctl.postgres.server import rows

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

EXAMPLES = 5

OWNED = """
    with owned(role, classid, objid) as (
        select refobjid, classid, objid from pg_shdepend
        where refclassid = 'pg_authid'::regclass and deptype = 'o' and objsubid = 0
          and dbid = (select oid from pg_database where datname = current_database())
        -- the bootstrap superuser is pinned: what it owns is not recorded in pg_shdepend
        union all select relowner, 'pg_class'::regclass, oid from pg_class
                  where relowner = 10 and oid >= 16384 and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                    and relpersistence <> 't'
        union all select proowner, 'pg_proc'::regclass, oid from pg_proc where proowner = 10 and oid >= 16384
        union all select nspowner, 'pg_namespace'::regclass, oid from pg_namespace
                  where nspowner = 10 and oid >= 16384 and nspname !~ '^pg_'
        union all select typowner, 'pg_type'::regclass, oid from pg_type
                  where typowner = 10 and oid >= 16384 and typtype in ('d', 'e', 'r')),
    named as (
        select role, type || ' ' || identity as object from owned, lateral pg_identify_object(classid, objid, 0)
        where type is not null and identity !~ '^pg_(toast|temp)'
          and classid not in ('pg_extension'::regclass, 'pg_event_trigger'::regclass)
          and not exists (select from pg_depend d where d.classid = owned.classid and d.objid = owned.objid
                          and d.deptype in ('e', 'i')))
    select rolname, count(*), (array_agg(object order by object))[1:%s]
    from named join pg_roles r on r.oid = role group by rolname order by rolname"""

NOT_OF_EXTENSION = """not exists (select from pg_depend d where d.classid = '{0}'::regclass and d.objid = {0}.oid
                                  and d.deptype = 'e')"""

SUPERUSER_ONLY = (
    ("event trigger", "evtname", "pg_event_trigger", "true"),
    ("publication", "pubname", "pg_publication", "puballtables"),
    ("foreign-data wrapper", "fdwname", "pg_foreign_data_wrapper", "true"),
    ("language", "lanname", "pg_language", "lanispl and not lanpltrusted"),
    ("C function", "proname", "pg_proc", "prolang in (select oid from pg_language where lanname in ('c', 'internal'))"),
    ("base type", "typname", "pg_type", "typtype = 'b' and typelem = 0"),
    ("operator class", "opcname", "pg_opclass", "true"),
    ("operator family", "opfname", "pg_opfamily", "true"),
    ("access method", "amname", "pg_am", "true"),
    ("text search template", "tmplname", "pg_ts_template", "true"),
    ("text search parser", "prsname", "pg_ts_parser", "true"),
)
"""Kinds of objects that only a superuser can create: word, name column, catalog, which of them."""


def read_owners(connection: "Connection") -> list[OwnedObjects]:
    """How many objects each role owns, with a few of them by name."""
    return [OwnedObjects(role, count, tuple(names)) for role, count, names in rows(connection, OWNED, (EXAMPLES,))]


def read_superuser_objects(connection: "Connection") -> list[str]:
    """Objects only a superuser can create; those of extensions come with their extension."""
    parts = [
        f"select '{word} ' || {column} as object from {catalog}"
        f" where {catalog}.oid >= 16384 and ({condition}) and {NOT_OF_EXTENSION.format(catalog)}"
        for word, column, catalog, condition in SUPERUSER_ONLY
    ]
    if connection.info.server_version >= 150000:
        parts.append(
            "select 'publication ' || pubname || ' (of schema ' || nspname || ')' from pg_publication_namespace"
            " join pg_publication p on p.oid = pnpubid join pg_namespace n on n.oid = pnnspid"
        )
    return [row[0] for row in rows(connection, f"{' union '.join(parts)} order by object")]
