"""The record of one backup, its facts, its name, and how one is chosen. Pure: no clock, no files, no server."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

from opsctl.errors import BackupDamaged, NoSuchBackup
from opsctl.times import format_time

SCHEMA = 1
EVIDENCE_LEVELS = ("stored", "decoded", "restored", "counted", "content")
"""What can be proven about a backup, weakest first."""

EvidenceLevel = Literal["stored", "decoded", "restored", "counted", "content"]


@dataclass(frozen=True)
class TableFacts:
    """Rows of one table whose data is in the archive; ``None`` where it was not counted or could not be read."""

    schema: str
    name: str
    rows: int | None = None
    content_hash: str | None = None


@dataclass(frozen=True)
class SequenceFacts:
    """A sequence's value before the dump began: a restored one stands there or further along."""

    schema: str
    name: str
    last_value: int
    increment: int


@dataclass(frozen=True)
class ExtensionFacts:
    """``version`` is ``None`` where only the dump is known, which does not tell it."""

    name: str
    version: str | None
    schema: str


@dataclass(frozen=True)
class Setting:
    """One row of ``ALTER DATABASE … SET`` (role ``None``) or ``ALTER ROLE … IN DATABASE … SET``."""

    role: str | None
    name: str
    value: str


@dataclass(frozen=True)
class DatabaseProperties:
    """What hangs on the database itself and pg_dump without ``-C`` does not carry.

    Of an imported dump only the encoding it is written in is known; owner and locale are ``None``.
    """

    owner: str | None
    encoding: str
    locale_provider: str | None
    collate: str | None
    ctype: str | None
    locale: str | None
    collation_version: str | None
    acl: tuple[str, ...] | None
    comment: str | None
    connection_limit: int
    settings: tuple[Setting, ...]

    @property
    def grantees(self) -> frozenset[str]:
        """The roles that the grants name, as ``role=privileges/grantor``; PUBLIC has no name."""
        names = [re.match(r'("(?:[^"]|"")*"|[^=]*)=', grant) for grant in self.acl or ()]
        return frozenset(_unquoted(name[1]) for name in names if name and name[1])


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


@dataclass(frozen=True)
class OwnedObjects:
    """What one role owns: how many objects, and the names of the first few."""

    role: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What was true in the very snapshot that was dumped."""

    level: Literal["none", "counts", "content"]
    tables: tuple[TableFacts, ...]
    sequences: tuple[SequenceFacts, ...]
    extensions: tuple[ExtensionFacts, ...]
    roles: tuple[str, ...]
    database: DatabaseProperties
    large_objects: int | None = None
    large_objects_hash: str | None = None
    owners: tuple[OwnedObjects, ...] = ()
    superuser_objects: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    schema_sha256: str | None = None
    """Of the archive's commands, as the pg_restore of the same version as pg_dump writes them."""

    @property
    def rows(self) -> int | None:
        """All rows of all tables, or ``None`` when one of them was not counted."""
        counts = [table.rows for table in self.tables]
        return None if None in counts else sum(count for count in counts if count is not None)


@dataclass(frozen=True)
class StoredFile:
    """One file of a backup: ``bytes`` and ``plain_sha256`` of the dump, ``stored_bytes`` and ``sha256`` of the file."""

    name: str
    bytes: int
    stored_bytes: int
    sha256: str
    plain_sha256: str

    @property
    def is_encrypted(self) -> bool:
        return self.name.endswith(".age")


@dataclass(frozen=True)
class Encryption:
    """Who can open the files: the public keys they are encrypted to, with age."""

    recipients: tuple[str, ...]


@dataclass(frozen=True)
class Signature:
    """Who wrote the manifest: an ed25519 public key in OpenSSH's form, and the signature in base64."""

    public_key: str
    value: str


@dataclass(frozen=True)
class Imported:
    """Where an imported dump comes from: the file as it was given, and where its time was taken from.

    ``section`` is the database that a file of ``pg_dump --create`` or ``pg_dumpall`` connects to; else it is empty.
    """

    file: str
    file_bytes: int
    file_sha256: str
    at: datetime
    dated_by: Literal["name", "header", "modified"]
    section: str = ""
    sql_bytes: int | None = None
    """How large it is as SQL: an archive may be compressed inside."""

    unknown: tuple[str, ...] = ()
    """What a backup of opsctl would know, in words."""


@dataclass(frozen=True)
class Manifest:
    """The record of one backup; it exists exactly when the backup does."""

    id: str
    database: str
    started_at: datetime
    finished_at: datetime
    opsctl_version: str
    pg_dump_version: str
    server_version: str
    host: str
    files: tuple[StoredFile, ...]
    facts: Facts
    restore_command: str
    format: Literal["custom", "directory", "plain"] = "custom"
    compression: str = "zstd"
    compression_level: int = 3
    encryption: Encryption | None = None
    signature: Signature | None = None
    system_identifier: str | None = None
    database_oid: int | None = None
    database_bytes: int | None = None
    excluded_tables: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    imported: Imported | None = None
    """Set where the dump was not taken by opsctl."""

    schema: int = SCHEMA

    @property
    def dump(self) -> StoredFile:
        """The file with the dump itself."""
        return next(file for file in self.files if file.name.startswith("dump"))

    @property
    def plain_bytes(self) -> int:
        """The size of the dump without any compression."""
        return (self.imported.sql_bytes if self.imported else None) or self.dump.bytes

    @property
    def restored_bytes(self) -> int:
        """The disk that a restored copy takes, about; of an imported dump nobody knows, and indexes are large."""
        return self.database_bytes or 3 * self.plain_bytes

    @property
    def stored_bytes(self) -> int:
        return sum(file.stored_bytes for file in self.files)

    @property
    def created_at(self) -> datetime:
        return self.started_at

    @property
    def duration_seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def pg_dump_major(self) -> int:
        """0 where an imported dump does not tell."""
        return _major(self.pg_dump_version)

    @property
    def server_major(self) -> int:
        """0 where an imported dump does not tell."""
        return _major(self.server_version)

    def to_json(self) -> bytes:
        return json.dumps(vars(self), indent=2, ensure_ascii=False, default=_plain).encode("utf-8", "surrogateescape")


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest; unknown keys are ignored, so that a newer opsctl's manifests stay readable.

    Raises BackupDamaged, naming ``where``, when it is no manifest, and when its schema is newer than this opsctl knows.
    """
    hint = "Another repository may hold an intact copy; `opsctl verify --all` names every damaged backup."
    validate_json, invalid = _reader()
    try:
        manifest = validate_json(data)
        schema = manifest.schema
    except invalid as error:
        schema = _schema_of(data)
        if schema <= SCHEMA:
            raise BackupDamaged(f"The manifest {where} is damaged: {_first_problem(error)}.", hint=hint) from error
    if schema > SCHEMA:
        raise BackupDamaged(
            f"The manifest {where} has schema {schema}; this opsctl reads up to {SCHEMA}.",
            hint="Use the newer opsctl that wrote it.",
        )
    if not any(file.name.startswith("dump") for file in manifest.files):
        raise BackupDamaged(f"The manifest {where} is damaged: it names no dump.", hint=hint)
    return manifest


def _schema_of(data: bytes) -> int:
    """The schema of what is no manifest as we know them; 0 when it tells none."""
    try:
        schema = json.loads(data)["schema"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0
    return schema if isinstance(schema, int) else 0


@cache
def _reader() -> tuple[Callable[[bytes], Manifest], type[Exception]]:
    """What reads a manifest, and what it raises; loading it costs more than `opsctl --help` may."""
    from pydantic import TypeAdapter, ValidationError

    return TypeAdapter(Manifest).validate_json, ValidationError


def _first_problem(error: Any) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'document'}: {first['msg']}"


def _plain(value: object) -> Any:
    """A record's fields: ``asdict`` would copy each of them deeply, for thousands of tables."""
    if isinstance(value, datetime):
        return format_time(value)
    if is_dataclass(value):
        return vars(value)
    raise TypeError(f"{type(value).__name__} does not belong in a manifest")


def backup_id(database: str, moment: datetime, random_hex: str) -> str:
    """``<database>-<YYYYMMDDTHHMMSSZ>-<4 hex>``: sorts by time, and is never parsed for anything else."""
    return f"{database}-{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}-{random_hex}"


class Chosen(Protocol):
    """What :func:`choose` needs to know of a backup."""

    @property
    def id(self) -> str: ...
    @property
    def database(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


C = TypeVar("C", bound=Chosen)


def choose(
    backups: Iterable[C],
    wanted: str,
    *,
    now: datetime,
    before: datetime | None = None,
    databases: Sequence[str] = (),
) -> C:
    """The backup meant by ``latest``, ``latest:<database>``, an id or a unique prefix of one.

    A backup dated after ``now`` is never ``latest``. Raises NoSuchBackup, with what there is as the hint.
    """
    known = sorted(backups, key=lambda backup: (backup.created_at, backup.id), reverse=True)
    if wanted == "latest" or wanted.startswith("latest:"):
        return _latest(known, wanted.partition(":")[2], now=now, before=before, databases=databases)
    matches = [backup for backup in known if backup.id == wanted] or [
        backup for backup in known if wanted and backup.id.startswith(wanted)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(backup.id for backup in matches[:5])
        raise NoSuchBackup(f"{wanted!r} is the beginning of {len(matches)} backups.", hint=f"Name one of them: {names}")
    raise NoSuchBackup(f"There is no backup {wanted!r}.", hint="`opsctl list` shows the backups there are.")


def _latest(
    known: Sequence[C], database: str, *, now: datetime, before: datetime | None, databases: Sequence[str]
) -> C:
    limit = min(now, before) if before else now
    names = {database} if database else set(databases)
    found = [b for b in known if b.created_at <= limit and (not names or b.database in names)]
    of_database = f" of {database}" if database else ""
    if not found:
        until = f" before {format_time(before)}" if before else ""
        raise NoSuchBackup(f"There is no backup{of_database}{until} yet.", hint="`opsctl backup` takes one.")
    if not database and len({backup.database for backup in found}) > 1:
        choices = ", ".join(f"latest:{name}" for name in sorted({backup.database for backup in found}))
        raise NoSuchBackup("'latest' is not enough: there are backups of several databases.", hint=f"Use {choices}.")
    return found[0]
