"""What a backup is worth: read back (stored), and decoded down to its rows. Neither needs a server."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from opsctl.background import in_background
from opsctl.catalog import Backup
from opsctl.dumps.examine import count_imported
from opsctl.errors import (
    BackupDamaged,
    ConfigurationError,
    DumpFailed,
    OpsctlError,
    Refused,
    RepositoryUnreachable,
    ServiceFailed,
    ServicesUnreachable,
)
from opsctl.keys import Keys
from opsctl.manifest import EVIDENCE_LEVELS, EvidenceLevel, Facts, Manifest
from opsctl.postgres.encodings import read_name
from opsctl.postgres.feeding import Feeding
from opsctl.postgres.tools import ContentsReader, Tools, schema_digest
from opsctl.repository import Repository
from opsctl.stream import Advance, check_stored

Outcome = Literal["pass", "fail", "unknown"]

NOT_DECODED = "encrypted, and not decoded: no identity is configured here"

_NAME = rb'(?:"(?:[^"]|"")+"|[^\s".(]+)'
_COPY = re.compile(rb"COPY (%b)\.(%b) +(?:\((?:[^\")]|\"[^\"]*\")*\) )?FROM stdin;\n" % (_NAME, _NAME))
"""A doubled quote in a column's name reads as the end of one quoted piece and the beginning of the next."""

_END = b"\n\\.\n"
_HEADER_BYTES = 1 << 18
"""A COPY line is not longer: 1,600 columns with names of 63 bytes."""


@dataclass(frozen=True)
class Verification:
    """What came out for one copy of a backup. ``unknown``: it could not be examined, which is never a pass."""

    backup_id: str
    repository: str
    outcome: Outcome
    evidence: EvidenceLevel | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was not examined, though nothing is wrong with that."""

    restore_seconds: float | None = None
    """How long the restore of a drill took."""

    restored_on: str | None = None
    """The server it was restored into."""


def due(
    backups: Sequence[Backup], level: EvidenceLevel, *, before: datetime | None = None, at_most: int | None = None
) -> list[Backup]:
    """Those with a copy that nobody has examined down to ``level`` since ``before``; the longest unseen ones first.

    Run again and again, every backup has its turn. Pure.
    """
    rank = EVIDENCE_LEVELS.index(level)
    never = datetime.min.replace(tzinfo=UTC)

    def examined_at(backup: Backup) -> datetime:
        last = ([e.at for e in copy.evidence if EVIDENCE_LEVELS.index(e.level) >= rank] for copy in backup.copies)
        return min(max(times, default=never) for times in last)

    waiting = sorted(backups, key=lambda backup: (examined_at(backup), backup.created_at, backup.id))
    return [backup for backup in waiting if before is None or examined_at(backup) < before][:at_most]


def verify_backup(
    manifest: Manifest,
    repository: Repository,
    tools: Tools,
    keys: Keys,
    *,
    clock: Callable[[], datetime],
    start_progress: Callable[[str, int], Advance],
) -> Verification:
    """Read every file of a backup back, then decode its dump and count the rows; the result becomes evidence.

    One that is encrypted is decoded where an identity is configured: a host that takes backups needs none. A signature
    that is missing or wrong fails without evidence: it says nothing about the bytes, and nothing to other readers.
    ``manifest`` only names the backup: what it is compared with is the one that lies there now.
    """
    try:
        _, manifest = repository.reread(manifest)
        keys.require_signature(repository, manifest)
        problems = check_files(manifest, repository, start_progress)
    except (Refused, BackupDamaged) as error:
        return Verification(manifest.id, repository.name, "fail", None, (error.message,))
    except RepositoryUnreachable as error:
        return Verification(manifest.id, repository.name, "unknown", None, (error.message,))
    level: EvidenceLevel = "stored"
    outcome: Outcome = "fail" if problems else "pass"
    reached: EvidenceLevel | None = None if problems else "stored"
    notes: tuple[str, ...] = ()
    if not problems:
        try:
            if manifest.encryption and keys.identities is None:
                notes = (NOT_DECODED,)
            else:
                keys.require_identity(repository, manifest)
                problems = _check_decoded(manifest, repository, tools, keys, start_progress)
                level = "decoded"
                outcome, reached = ("fail", "stored") if problems else ("pass", "decoded")
        except (ConfigurationError, RepositoryUnreachable, ServiceFailed, ServicesUnreachable) as error:
            problems, outcome = [error.message], "unknown"
    if outcome != "unknown":
        try:
            repository.record_evidence(manifest, level, outcome, at=clock(), details={"problems": problems})
        except OpsctlError as error:
            problems = [*problems, f"the evidence could not be recorded: {error.message}"]
    return Verification(manifest.id, repository.name, outcome, reached, tuple(problems), notes)


def check_files(manifest: Manifest, repository: Repository, start_progress: Callable[[str, int], Advance]) -> list[str]:
    """Read every file whole and compare its digest; what is damaged."""
    problems = []
    advance = start_progress("reading", manifest.stored_bytes)
    for stored in manifest.files:
        try:
            with repository.open(manifest, stored) as file:
                check_stored(stored, file, advance)
        except BackupDamaged as error:
            problems.append(error.message)
    return problems


def _check_decoded(
    manifest: Manifest, repository: Repository, tools: Tools, keys: Keys, start_progress: Callable[[str, int], Advance]
) -> list[str]:
    if manifest.imported:
        return _check_imported(manifest, repository, tools, keys, start_progress)
    major = manifest.pg_dump_major
    binaries = tools.for_restore(archive_major=major, server_major=major)
    advance = start_progress("decoding", manifest.dump.bytes)
    try:
        with (
            keys.plain(repository, manifest, advance) as chunks,
            tools.decode(binaries) as child,
            Feeding(child, chunks),
        ):
            counted = count_rows(child.chunks(), manifest.facts.database.encoding)
            code = child.finish()
    except BackupDamaged as error:
        return [error.message]
    if code != 0:
        return [child.failure(BackupDamaged, "while decoding the dump").message]
    return [*check_schema(manifest, repository, tools, keys), *_differences(manifest.facts, counted)]


def _check_imported(
    manifest: Manifest,
    repository: Repository,
    tools: Tools,
    keys: Keys,
    start_progress: Callable[[str, int], Advance],
) -> list[str]:
    """The same for a dump that opsctl did not take: read as it was when it was imported."""
    advance = start_progress("decoding", manifest.dump.bytes)
    try:
        with keys.plain(repository, manifest, advance) as chunks:
            counted = count_imported(manifest, chunks, tools)
    except (BackupDamaged, Refused) as error:
        return [error.message]
    return list(_differences(manifest.facts, counted))


def check_schema(manifest: Manifest, repository: Repository, tools: Tools, keys: Keys) -> Iterator[str]:
    """Whether the archive's commands are those that were dumped; only the same pg_restore writes them the same."""
    binaries = tools.of_version(manifest.pg_dump_version)
    expected = manifest.facts.schema_sha256
    if binaries is None or expected is None:
        return
    with keys.plain(repository, manifest, lambda _count: None) as chunks, tools.schema(binaries) as child:
        reader = ContentsReader(child)
        sql = in_background(reader.listing)
        for chunk in chunks:
            reader.feed(chunk)
            if not reader.is_open:
                break
        reader.end()
        try:
            found = schema_digest(sql.result())
        except DumpFailed as error:
            yield error.message
            return
        if found != expected:
            yield "the definitions of tables and other objects in the dump are not those of the manifest"


def count_rows(chunks: Iterable[bytes], encoding: str = "UTF8") -> dict[tuple[str, str], int]:
    r"""Rows per (schema, table) of what ``pg_restore --data-only`` writes: lines between COPY and ``\.``.

    ``encoding`` is the database's, which names in the archive are in.
    """
    counted: dict[tuple[str, str], int] = {}
    counter = _RowCounter(counted, encoding)
    for chunk in chunks:
        counter.feed(chunk)
    counter.feed(b"\n")
    return counted


class _RowCounter:
    r"""Counts in a stream whose pieces end anywhere. Data never holds a bare ``\.`` line: COPY escapes it."""

    def __init__(self, counted: dict[tuple[str, str], int], encoding: str) -> None:
        self._counted = counted
        self._encoding = encoding
        self._buffer = b"\n"
        self._table: tuple[str, str] | None = None

    def feed(self, chunk: bytes) -> None:
        self._buffer += chunk
        while self._in_data() if self._table else self._in_sql():
            pass

    def _in_data(self) -> bool:
        """Count rows up to the end of the data, or all but an unfinished line; whether the end was there."""
        buffer = self._buffer  # begins with the line break before the next row
        end = buffer.find(_END)
        stop = end if end >= 0 else max(0, len(buffer) - len(_END))
        if self._table is not None:
            self._counted[self._table] += buffer.count(b"\n", 1, stop + 1) if stop else 0
        if end < 0:
            self._buffer = buffer[stop:]
            return False
        self._buffer = buffer[end + len(_END) - 1 :]
        self._table = None
        return True

    def _in_sql(self) -> bool:
        """Skip to the data of the next table; whether there was one."""
        start = self._buffer.find(b"\nCOPY ")
        if start < 0:
            self._buffer = self._buffer[-len(b"\nCOPY ") :]
            return False
        match = _COPY.match(self._buffer, start + 1)
        if match is None:
            self._buffer = self._buffer[start:]
            if len(self._buffer) < _HEADER_BYTES:
                return False  # the line is not all here yet
            self._buffer = self._buffer[1:]
            return True
        self._table = (_unquoted(match[1], self._encoding), _unquoted(match[2], self._encoding))
        self._counted.setdefault(self._table, 0)
        self._buffer = self._buffer[match.end() - 1 :]
        return True


def _unquoted(name: bytes, encoding: str) -> str:
    if name.startswith(b'"'):
        name = name[1:-1].replace(b'""', b'"')
    return read_name(name, encoding)


def _differences(facts: Facts, counted: dict[tuple[str, str], int]) -> Iterator[str]:
    expected = {(table.schema, table.name) for table in facts.tables}
    has_unreadable = any(table not in expected for table in counted)
    for table in facts.tables:
        key = (table.schema, table.name)
        if has_unreadable and key not in counted and not "".join(key).isascii():
            continue  # a name that Python reads differently from the server: which rows are its own is unknown
        found = counted.get(key, 0)
        if table.rows is not None and table.rows != found:
            yield f"table {table.schema}.{table.name} has {found} rows in the dump, {table.rows} in the manifest"
