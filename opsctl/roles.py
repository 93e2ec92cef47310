"""Bring back roles from a backup's globals: what is missing is created, what exists is left as it is and shown."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from opsctl.encryption import Identities
from opsctl.manifest import Manifest
from opsctl.postgres.server import Server, attempt, rows
from opsctl.repository import Repository
from opsctl.stream import load

_NAME = r'("(?:[^"]|"")+"|[^\s;"]+)'
_CREATE = re.compile(rf"CREATE ROLE {_NAME}\Z")
_ALTER = re.compile(rf"(?:ALTER ROLE|COMMENT ON ROLE) {_NAME} ")
_GRANT = re.compile(rf"GRANT {_NAME} TO {_NAME}(?= |\Z)")
_GRANTED_BY = re.compile(rf" GRANTED BY {_NAME}\Z")
_STATEMENT = re.compile(r"""((?:[^;'"]|'(?:[^']|'')*'|"(?:[^"]|"")*")+);""")


@dataclass(frozen=True)
class RolesPlan:
    """``missing`` are the roles to create by ``statements``; ``left_alone`` is what the backup says besides."""

    missing: tuple[str, ...]
    statements: tuple[str, ...]
    left_alone: tuple[str, ...]


def read_globals(repository: Repository, manifest: Manifest, identities: Identities | None = None) -> str | None:
    """The backup's globals as SQL, checked; ``None`` when it was taken without the right to read them."""
    file = next((each for each in manifest.files if each.name.startswith("globals.sql")), None)
    if file is None:
        return None
    with repository.open(manifest, file) as stored:
        return b"".join(load(file, stored, lambda _count: None, identities)).decode("utf-8", "replace")


def plan_roles(sql: str, existing: frozenset[str]) -> RolesPlan:
    """Which statements of pg_dumpall's globals create what is missing. Pure."""
    statements = list(_statements(sql))
    created = [_unquoted(match[1]) for each in statements if (match := _CREATE.match(each))]
    missing = frozenset(created) - existing
    wanted = [each for each in statements if _concerned(each) & missing]
    return RolesPlan(
        missing=tuple(name for name in created if name in missing),
        statements=tuple(_GRANTED_BY.sub("", each) for each in wanted),
        left_alone=tuple(each for each in statements if each not in wanted),
    )


def existing_roles(server: Server) -> frozenset[str]:
    with server.connect(server.maintenance_database) as connection:
        return frozenset(row[0] for row in rows(connection, "select rolname from pg_roles"))


def create_roles(server: Server, plan: RolesPlan) -> list[str]:
    """Run the plan; what the login may not do is returned, named, and the rest is done all the same."""
    refused = []
    with server.connect(server.maintenance_database) as connection:
        for statement in plan.statements:
            reason = attempt(connection, statement)
            if reason:
                refused.append(f"{without_password(statement)}: {reason}")
    return refused


def _statements(sql: str) -> Iterator[str]:
    """The statements of a globals dump, without comments, SETs and psql's own commands."""
    lines = [line for line in sql.splitlines() if not line.startswith(("--", "\\"))]
    for match in _STATEMENT.finditer("\n".join(lines)):
        statement = match[1].strip()
        if statement and not statement.startswith(("SET ", "SELECT ")):
            yield statement


def _concerned(statement: str) -> frozenset[str]:
    """The roles a statement makes, changes or puts into one another."""
    for pattern in (_CREATE, _ALTER, _GRANT):
        match = pattern.match(statement)
        if match:
            return frozenset(_unquoted(name) for name in match.groups())
    return frozenset()


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def without_password(statement: str) -> str:
    """A statement without the password hash it may carry."""
    return re.sub(r"PASSWORD '[^']*'", "PASSWORD '***'", statement)
