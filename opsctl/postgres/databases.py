"""Make, describe and drop whole databases: what pg_restore without ``--create`` leaves to others."""

import csv
from collections.abc import Iterable
from typing import TYPE_CHECKING

from opsctl.manifest import DatabaseProperties, Setting
from opsctl.postgres.server import attempt, rows

if TYPE_CHECKING:
    from psycopg.sql import Composable, Composed, Identifier

    from opsctl.postgres.server import Connection, Server

LIST_SETTINGS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
"""Settings whose value is a list of quoted names: each name is quoted apart (pg_dump's variable_is_guc_list_quote)."""


def create_staging(connection: "Connection", name: str, properties: DatabaseProperties) -> None:
    """An empty database with the encoding, locale and owner of the backup, closed to everybody but its owner.

    What is not known of them is the server's default, and the login.
    """
    from psycopg.sql import SQL, Identifier, Literal

    options: list[Composable] = [SQL("template template0")]
    if properties.collate is not None:  # else the server's own encoding and locale: psql converts
        options += [
            SQL("encoding {}").format(Literal(properties.encoding)),
            SQL("lc_collate {}").format(Literal(properties.collate)),
            SQL("lc_ctype {}").format(Literal(properties.ctype)),
        ]
    if properties.owner is not None:
        options.append(SQL("owner {}").format(Identifier(properties.owner)))
    version = connection.info.server_version
    if properties.locale_provider not in {None, "libc"} and version >= 150000:
        options.append(SQL("locale_provider {}").format(SQL(properties.locale_provider)))
        keyword = "builtin_locale" if properties.locale_provider == "builtin" else "icu_locale"
        options.append(SQL(f"{keyword} {{}}").format(Literal(properties.locale)))
    connection.execute(SQL("create database {} {}").format(Identifier(name), SQL(" ").join(options)))
    connection.execute(SQL("revoke connect, temporary on database {} from public").format(Identifier(name)))


def drop_database(connection: "Connection", name: str) -> None:
    """Drop a database and end its sessions; none of that name is fine."""
    from psycopg.sql import SQL, Identifier

    connection.execute(SQL("drop database if exists {} with (force)").format(Identifier(name)))


def create_bare_roles(superuser: "Server", roles: Iterable[str], *, loader: str) -> None:
    """Roles of another server, with no right at all, and a login that may give things to each of them.

    None of them is a superuser, whatever it was there: becoming one of them opens no door.
    """
    from psycopg.sql import SQL, Identifier

    with superuser.connect(superuser.maintenance_database) as connection:
        connection.execute(SQL("create role {} login createdb bypassrls").format(Identifier(loader)))
        for role in sorted(name for name in roles if not name.startswith("pg_")):
            connection.execute(SQL("create role {}").format(Identifier(role)))
            connection.execute(SQL("grant {} to {}").format(Identifier(role), Identifier(loader)))


def apply_properties(
    connection: "Connection", name: str, properties: DatabaseProperties, *, rehearse: bool = False
) -> list[str]:
    """Give a database its comment, connection limit and settings; what the login may not set is returned, named.

    ``rehearse`` only tries: settings such as default_transaction_read_only must not take effect before the load.
    """
    from psycopg.sql import SQL, Identifier, Literal

    database = Identifier(name)
    refused = []
    statements: list[tuple[str, Composed]] = [
        ("comment", SQL("comment on database {} is {}").format(database, Literal(properties.comment))),
        (
            "connection limit",
            SQL("alter database {} connection limit {}").format(database, Literal(properties.connection_limit)),
        ),
    ]
    for setting in properties.settings:
        of_role = f" of role {setting.role}" if setting.role else ""
        statements.append((f"setting {setting.name}{of_role}", _set_statement(database, setting)))
    for what, statement in statements:
        reason = attempt(connection, statement, undo=rehearse)
        if reason:
            refused.append(f"{what} was not carried over: {reason}")
    return refused


def _set_statement(database: "Identifier", setting: Setting) -> "Composed":
    from psycopg.sql import SQL, Identifier, Literal

    values = [setting.value]
    if setting.name in LIST_SETTINGS:
        values = next(csv.reader([setting.value], skipinitialspace=True), [""])
    name = SQL(".").join(Identifier(part) for part in setting.name.split("."))
    value = SQL(", ").join(Literal(each) for each in values)
    if setting.role is None:
        return SQL("alter database {} set {} to {}").format(database, name, value)
    return SQL("alter role {} in database {} set {} to {}").format(Identifier(setting.role), database, name, value)


def grants(connection: "Connection", name: str, properties: DatabaseProperties) -> list["Composed"]:
    """The statements that give database ``name`` the recorded grants, for the swap's transaction."""
    from psycopg.sql import SQL, Identifier

    database = Identifier(name)
    if properties.acl is None:
        return [SQL("grant connect, temporary on database {} to public").format(database)]
    statements: list[Composed] = [SQL("revoke all on database {} from public").format(database)]
    granted = rows(
        connection,
        """select case when grantee = 0 then null else pg_get_userbyid(grantee) end, privilege_type, is_grantable
           from aclexplode(%s::aclitem[])""",
        (list(properties.acl),),
    )
    for grantee, privilege, grantable in granted:
        to = SQL("public") if grantee is None else Identifier(grantee)
        option = SQL(" with grant option") if grantable else SQL("")
        statements.append(SQL("grant {} on database {} to {}{}").format(SQL(privilege), database, to, option))
    return statements
