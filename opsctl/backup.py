"""Take a backup: facts and dump in one snapshot, streamed into every repository, published last."""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl import __version__
from opsctl.errors import DumpFailed, OpsctlError
from opsctl.manifest import Facts, Manifest, StoredFile, backup_id
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.facts import FactsLevel
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server
from opsctl.postgres.snapshot import Snapshot, count_in_snapshot, join_snapshot, open_snapshot
from opsctl.postgres.tools import Child, ContentsReader, Tools, dumped_tables
from opsctl.repository import Repository, segment
from opsctl.stream import Advance, Compression, store
from opsctl.uploads import Uploads

if TYPE_CHECKING:
    from opsctl.postgres.server import Connection

DUMP = "dump.zst"
GLOBALS = "globals.sql.zst"
RESTORE_COMMAND = "zstd --decompress --stdout dump.zst | pg_restore --exit-on-error --dbname=DATABASE"
LOCK_LOST = "the lock's session was lost during the backup; another run may have begun meanwhile"


@dataclass(frozen=True)
class BackupPlan:
    """How one database is backed up."""

    server: Server
    database: str
    repositories: Sequence[Repository]
    tools: Tools
    state_path: Path
    facts: FactsLevel = "counts"
    compression: Compression = field(default_factory=Compression)
    lock_timeout_seconds: float = 60


@dataclass(frozen=True)
class TakenBackup:
    """A backup that exists now, in ``stored_in``; ``failures`` names the repositories that did not get it."""

    manifest: Manifest
    stored_in: tuple[str, ...]
    failures: dict[str, OpsctlError]
    warnings: tuple[str, ...]


def take_backup(
    plan: BackupPlan, *, clock: Callable[[], datetime], start_progress: Callable[[int], Advance]
) -> TakenBackup:
    """Take one backup and publish it in every repository that can be written.

    ``start_progress`` is called with the database's size in bytes and gives what is called as the dump advances.
    Raises LockHeld, DatabaseUnreachable, ConfigurationError (no pg_dump), RepositoryUnreachable (none could be
    written) and DumpFailed; then nothing of it is left anywhere.
    """
    binaries = plan.tools.for_dump(plan.server.info.major)  # before any file is made
    with database_lock(
        plan.server, plan.server.database, command="backup", state_path=plan.state_path, now=clock()
    ) as lock:
        started_at = clock()
        identifier = backup_id(segment(plan.database), started_at, secrets.token_hex(2))
        uploads = Uploads(plan.repositories, plan.database, identifier)
        try:
            files, facts, snapshot, warnings = _write_files(plan, binaries, uploads, start_progress)
            manifest = Manifest(
                id=identifier,
                database=plan.database,
                started_at=started_at,
                finished_at=clock(),
                opsctl_version=__version__,
                pg_dump_version=binaries.version,
                server_version=plan.server.info.version,
                host=socket.gethostname(),
                files=tuple(files),
                facts=facts,
                restore_command=RESTORE_COMMAND,
                compression_level=plan.compression.level,
                system_identifier=plan.server.info.system_identifier,
                database_oid=snapshot.database_oid,
                database_bytes=snapshot.database_bytes,
                warnings=tuple(warnings),
            )
            stored_in = uploads.publish(manifest)
            _outlast_second(started_at, clock)
        except BaseException:
            uploads.abandon()
            raise
        if not lock.is_held():
            warnings = [*warnings, LOCK_LOST]
    return TakenBackup(manifest, tuple(stored_in), dict(uploads.failures), tuple(warnings))


def _outlast_second(started_at: datetime, clock: Callable[[], datetime]) -> None:
    """Keep the lock until the second in the backup's id is over: the next holder gets one of its own."""
    following = started_at.replace(microsecond=0) + timedelta(seconds=1)
    time.sleep(max(0.0, min(1.0, (following - clock()).total_seconds())))


def _write_files(
    plan: BackupPlan, binaries: Binaries, uploads: Uploads, start_progress: Callable[[int], Advance]
) -> tuple[list[StoredFile], Facts, Snapshot, list[str]]:
    with open_snapshot(plan.server, level=plan.facts, lock_timeout_seconds=plan.lock_timeout_seconds) as snapshot:
        advance = start_progress(snapshot.database_bytes)
        dump, facts, warnings = _dump(plan, binaries, uploads, snapshot, advance)
    with plan.tools.dump_globals(binaries, plan.server) as child, uploads.file(GLOBALS) as writer:
        globals_file = store(GLOBALS, child.chunks(), writer, plan.compression, _ignore)
        _require_success(child, "while dumping the roles")
    return [dump, globals_file], facts, snapshot, [*warnings, *child.warnings]


def _dump(
    plan: BackupPlan, binaries: Binaries, uploads: Uploads, snapshot: Snapshot, advance: Advance
) -> tuple[StoredFile, Facts, list[str]]:
    """Dump and count side by side, in the same snapshot; what is counted is what the archive's contents name."""
    with (
        plan.tools.dump(
            binaries, plan.server, snapshot=snapshot.id, lock_timeout_seconds=plan.lock_timeout_seconds
        ) as child,
        plan.tools.list_archive(binaries) as lister,
        join_snapshot(plan.server, snapshot) as connection,
        uploads.file(DUMP) as writer,
    ):
        contents = ContentsReader(lister)
        counting = _Counting(connection, snapshot, contents)
        try:
            stored = store(DUMP, _passing(child, contents), writer, plan.compression, advance)
            contents.end()
            _require_success(child, f"after {stored.bytes:,} bytes")
            return stored, counting.result(), child.warnings
        except BaseException:
            counting.cancel()
            raise


class _Counting:
    """Counts the dumped tables in a thread, as soon as the archive's contents are known."""

    def __init__(self, connection: "Connection", snapshot: Snapshot, contents: ContentsReader) -> None:
        self._connection = connection
        self._snapshot = snapshot
        self._contents = contents
        self._facts: Facts | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="facts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            tables = dumped_tables(self._contents.listing())
            self._facts = count_in_snapshot(self._connection, self._snapshot, tables)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error

    def result(self) -> Facts:
        self._thread.join()
        if self._facts is None:
            raise self._error or RuntimeError("counting ended without a result")
        return self._facts

    def cancel(self) -> None:
        """End the query that runs; the connection is of no use afterwards."""
        self._contents.end()
        self._connection.cancel()
        self._thread.join(timeout=10)


def _passing(child: Child, contents: ContentsReader) -> Iterator[bytes]:
    """The dump's bytes; their beginning is shown to the reader of contents as well."""
    for chunk in child.chunks():
        contents.feed(chunk)
        yield chunk


def _require_success(child: Child, doing: str) -> None:
    if child.finish() != 0:
        raise child.failure(DumpFailed, doing)


def _ignore(_advanced: int) -> None:
    """Progress of what is too small to show."""
