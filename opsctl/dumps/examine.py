"""A dump read whole before anything is done with it: is it complete, what is in it, and would all of it be run."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from opsctl import __version__
from opsctl.dumps.file import DumpFile, Kind
from opsctl.dumps.lexer import CUT_HINT
from opsctl.dumps.script import Script, Section
from opsctl.errors import BackupDamaged, Refused
from opsctl.manifest import (
    DatabaseProperties,
    ExtensionFacts,
    Facts,
    Imported,
    Manifest,
    OwnedObjects,
    StoredFile,
    TableFacts,
)
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.encodings import read_name
from opsctl.postgres.feeding import Feeding
from opsctl.postgres.tools import Tools
from opsctl.stream import READ_BYTES, Advance, NotUnpacked, unpacked

DatedBy = Literal["name", "header", "modified"]

UNKNOWN = (
    "the values of sequences",
    "the versions of extensions",
    "the owner, locale, grants and settings of the database",
    "the server it was taken from",
)
"""What a backup knows and a dump does not tell."""

STORED_NAMES: dict[Kind, str] = {"plain": "dump.sql", "custom": "dump", "directory": "dump.tar"}
"""What the dump is called in a repository, before it is compressed there."""

ALWAYS_THERE = frozenset({"postgres", "template0", "template1"})

_DATE = re.compile(
    r"(?<!\d)(20\d\d)([-_.]?)(\d\d)\2(\d\d)"
    r"(?:[-_.T ]?(?P<hour>\d\d)[-_.:h]?(?P<minute>\d\d)(?:[-_.:m]?(?P<second>\d\d))?(?P<zone>Z|UTC)?)?(?!\d)"
)


@dataclass(frozen=True)
class Examined:
    """A dump that is whole, and what is known of it."""

    dump: DumpFile
    file: StoredFile
    script: Script

    @property
    def names(self) -> list[str]:
        """The databases it is of, as far as it tells; several in a file of pg_dumpall."""
        sections = [name for name, section in self.script.sections.items() if section.has_content and name]
        others = [name for name in sections if name not in ALWAYS_THERE] or sections
        if others or self.dump.head is None:
            return others
        return [self.dump.head.database]

    def choose_section(self, wanted: Iterable[str]) -> str:
        """The section to restore: the only one with something in it, else one of these names. Raises Refused."""
        there = [name for name, section in self.script.sections.items() if section.has_content]
        found = [name for name in there if name not in ALWAYS_THERE] or there
        if len(found) > 1:
            found = [name for name in found if name in set(wanted)] or found
        if len(found) > 1:
            raise Refused(
                f"{self.dump.path} holds several databases: {', '.join(found)}.",
                hint="--database names the one to take, as it is called in the configuration or on the server.",
            )
        if not found and self.script.is_cluster:
            raise Refused(f"{self.dump.path} holds no database, only roles.", hint="psql runs it.")
        section = found[0] if found else list(self.script.sections)[-1]
        self._require_definitions(self.script.sections[section])
        return section

    def _require_definitions(self, section: Section) -> None:
        """An extension brings tables of its own; else rows need the tables they go into."""
        undefined = sorted(section.tables.keys() - section.created)
        if undefined and not section.extensions:
            schema, name = (read_name(part, section.encoding) for part in undefined[0])
            raise Refused(
                f"{self.dump.path} holds rows without their tables, {schema}.{name} for one.",
                hint="A dump of the data alone goes into tables that are there: psql or pg_restore loads it by hand.",
            )


def examine(dump: DumpFile, advance: Advance) -> Examined:
    """Read a dump to its end. Raises BackupDamaged, and Refused when something in it would not be run."""
    if dump.kind == "directory":  # pg_restore 15 never ends when a tar does too early
        with dump.open() as file:
            while file.read(READ_BYTES):
                pass
    stored, plain = _Counted(), _Counted()
    script = Script()
    with dump.open() as file:
        raw = stored.passing(_advancing(iter(lambda: file.read(READ_BYTES), b""), advance))
        chunks = plain.passing(unpacked(raw, dump.packing))
        try:
            if dump.kind == "plain":
                _read(script, chunks)
            else:
                _read_archive(script, chunks, dump.tools, dump.binaries)
        except NotUnpacked as error:
            raise BackupDamaged(f"{dump.path} is damaged: {error}.", hint=CUT_HINT) from error
        except (BackupDamaged, Refused) as error:
            raise type(error)(f"{dump.path}: {error.message}", hint=error.hint) from error
    described = StoredFile(STORED_NAMES[dump.kind], plain.bytes, stored.bytes, stored.hexdigest, plain.hexdigest)
    return Examined(dump, described, script)


def count_imported(manifest: Manifest, chunks: Iterator[bytes], tools: Tools) -> dict[tuple[str, str], int]:
    """The rows of each table of an imported dump. Raises BackupDamaged and Refused, as when it was examined."""
    script = Script()
    if manifest.format == "plain":
        _read(script, chunks)
    else:
        major = manifest.pg_dump_major
        _read_archive(script, chunks, tools, tools.for_restore(archive_major=major, server_major=major))
    section = script.sections.get(manifest.imported.section if manifest.imported else "", Section())
    tables = _facts(section).tables
    return {(table.schema, table.name): table.rows for table in tables if table.rows is not None}


def _read(script: Script, chunks: Iterable[bytes]) -> None:
    for _piece in script.run(chunks):
        pass


def _read_archive(script: Script, chunks: Iterator[bytes], tools: Tools, binaries: Binaries) -> None:
    """The archive as the very SQL that pg_restore would run, every block of its data included."""
    with tools.script(binaries) as child:
        feeding = Feeding(child, chunks)
        try:
            with feeding:
                _read(script, child.chunks())
                code = child.finish()
        except BackupDamaged as error:
            if feeding.error is not None:  # the archive could not be read on: the script is only cut by that
                raise feeding.error from error
            if child.finish() == 0:
                raise
            raise child.failure(BackupDamaged, "while decoding the dump") from error
        if code != 0:
            raise child.failure(BackupDamaged, "while decoding the dump")


def _advancing(pieces: Iterable[bytes], advance: Advance) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))


class _Counted:
    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def passing(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._sha256.update(piece)
            self.bytes += len(piece)
            yield piece

    @property
    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def describe(examined: Examined, *, database: str, section: str, backup_id: str, host: str, now: datetime) -> Manifest:
    """The manifest of a dump as it lies there: what is known, and what is not."""
    at, dated_by = dated(examined)
    dump, script = examined.dump, examined.script
    part = script.sections[section]
    return Manifest(
        id=backup_id,
        database=database,
        started_at=at,
        finished_at=at,
        opsctl_version=__version__,
        pg_dump_version=script.pg_dump_version,
        server_version=script.server_version,
        host=host,
        files=(examined.file,),
        facts=_facts(part),
        restore_command="",
        format=dump.kind,
        compression=dump.packing,
        compression_level=0,
        warnings=tuple(_warnings(script)),
        imported=Imported(
            file=str(dump.path),
            file_bytes=dump.size_bytes,
            file_sha256=examined.file.sha256,
            at=now,
            dated_by=dated_by,
            section=section,
            sql_bytes=part.bytes,
            unknown=UNKNOWN,
        ),
    )


def _facts(section: Section) -> Facts:
    def read(name: bytes) -> str:
        return read_name(name, section.encoding)

    # pg_dump --load-via-partition-root: which of the partitions they go to, only the server knows.
    is_spread = any(section.tables.get(table) for table in section.partitioned)
    tables = [
        TableFacts(read(schema), read(name), None if is_spread and not rows else rows)
        for (schema, name), rows in section.tables.items()
        if (schema, name) not in section.partitioned
    ]
    owners = [
        OwnedObjects(read(role), len(examples), tuple(read(each) for each in examples))
        for role, examples in sorted(section.owned.items())
    ]
    roles = {read(role) for role in (*section.roles, *section.owned)}
    return Facts(
        level="counts",
        tables=tuple(sorted(tables, key=lambda table: (table.schema, table.name))),
        sequences=(),
        extensions=tuple(ExtensionFacts(read(name), None, read(schema)) for name, schema in section.extensions.items()),
        roles=tuple(sorted(role for role in roles if role != "current_user")),
        database=DatabaseProperties(
            owner=None,
            encoding=section.encoding,
            locale_provider=None,
            collate=None,
            ctype=None,
            locale=None,
            collation_version=None,
            acl=None,
            comment=None,
            connection_limit=-1,
            settings=(),
        ),
        owners=tuple(owners),
        superuser_objects=tuple(sorted(f"{word} {read(name)}" for word, name in section.superuser_objects)),
    )


def _warnings(script: Script) -> Iterator[str]:
    if script.left:
        what = ", ".join(f"{words} ({count})" for words, count in sorted(script.left.items()))
        yield f"not run, because it is not about the contents of one database: {what}"


def dated(examined: Examined) -> tuple[datetime, DatedBy]:
    """When a dump was made: its name says so, else its head, else the file's time. Wall clocks are this host's."""
    named = date_in_name(examined.dump.path)
    if named is not None:
        return named, "name"
    head = examined.dump.head
    if head is not None and head.created_at is not None:
        return head.created_at.astimezone(UTC), "header"
    if examined.script.started_on is not None:
        return datetime.fromisoformat(examined.script.started_on).astimezone(UTC), "header"
    return examined.dump.modified_at, "modified"


def date_in_name(path: Path) -> datetime | None:
    """The date in a name such as ``saasdb_20251101_030000.sql``; without a ``Z`` it is this host's local time."""
    for match in _DATE.finditer(path.name):
        year, month, day = int(match[1]), int(match[3]), int(match[4])
        hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
        try:
            moment = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - a wall clock
        except ValueError:
            continue
        return moment.replace(tzinfo=UTC) if match["zone"] else moment.astimezone(UTC)
    return None
