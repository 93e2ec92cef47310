"""Take a backup: facts and dump in one snapshot, streamed into every repository, published last."""

import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl import __version__, unusual
from opsctl.background import in_background
from opsctl.encryption import SUFFIX, Recipients
from opsctl.errors import DumpFailed, LockHeld, OpsctlError, Refused
from opsctl.manifest import Encryption, Facts, Manifest, StoredFile, backup_id
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.counting import Counting
from opsctl.postgres.directory_format import packed
from opsctl.postgres.facts import FactsLevel
from opsctl.postgres.lock import database_lock
from opsctl.postgres.server import Server
from opsctl.postgres.snapshot import Snapshot, open_snapshot
from opsctl.postgres.swap import remove_leftovers
from opsctl.postgres.tools import Child, ContentsReader, Tools, dumped_tables, schema_digest
from opsctl.repository import Repository, segment
from opsctl.signing import SigningKey
from opsctl.staging import SPOOL, Staging
from opsctl.stream import Advance, Compression, store
from opsctl.unusual import Unusual
from opsctl.uploads import PATIENCE_SECONDS, Uploads

if TYPE_CHECKING:
    from opsctl.settings import UnusualSettings

DUMP = "dump.zst"
DIRECTORY_DUMP = "dump.tar.zst"
GLOBALS = "globals.sql.zst"
PG_DUMP_LOCK_SECONDS = 2
"""How long pg_dump waits for tables we have locked already: only somebody who waits for us can be in its way."""

LOCK_LOST = "the lock's session was lost during the backup; another run may have begun meanwhile"
GLOBALS_MISSING = "the roles are not in the backup"
INCOMPLETE_SIGNS = ("not dumped", "not saved", GLOBALS_MISSING, LOCK_LOST)
"""What makes a warning more than a remark: something that is missing, as pg_dump and we word it."""


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
    recipients: Recipients | None = None
    signing_key: SigningKey | None = None
    lock_timeout_seconds: float = 60
    exclude_tables: Sequence[str] = ()
    role_passwords: bool = False
    expected_server: str | None = None
    """The system identifier of the server the earlier backups are of; a backup of another one is refused."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long repositories wait for one of them."""
    earlier: Sequence[Manifest] = ()
    """The good backups there are, newest first: what this one is compared with, where ``limits`` are given."""
    limits: "UnusualSettings | None" = None
    jobs: int = 1
    """With more than one session pg_dump writes a folder of files, in ``staging``, which is stored as one."""
    staging: Staging | None = None

    def file_name(self, plain_name: str) -> str:
        return plain_name + SUFFIX if self.recipients else plain_name

    @property
    def dump_name(self) -> str:
        return self.file_name(DUMP if self.jobs == 1 else DIRECTORY_DUMP)

    @property
    def restore_command(self) -> str:
        """How the dump is restored without opsctl. pg_restore reads both formats from a pipe."""
        plain = f"zstd --decompress --stdout {self.dump_name}"
        if self.recipients:
            plain = f"age --decrypt --identity KEY {self.dump_name} | zstd --decompress --stdout"
        return f"{plain} | pg_restore --exit-on-error --dbname=DATABASE"


@dataclass(frozen=True)
class TakenBackup:
    """A backup that exists now, in ``stored_in``; ``failures`` names the repositories that did not get it.

    ``slow`` are those that did not keep up and take a copy now.
    """

    manifest: Manifest
    stored_in: tuple[str, ...]
    slow: tuple[str, ...]
    failures: dict[str, OpsctlError]
    warnings: tuple[str, ...]
    needs_attention: bool
    clock_skew_seconds: float = 0.0
    unusual: tuple[Unusual, ...] = ()
    """What is less than in the backups before it."""
    compared_with: str | None = None
    """The id of the newest of those."""


def take_backup(
    plan: BackupPlan, *, clock: Callable[[], datetime], start_progress: Callable[[int], Advance]
) -> TakenBackup:
    """Take one backup and publish it in every repository that can be written.

    ``start_progress`` is called with the database's size in bytes and gives what is called as the dump advances.
    Raises LockHeld, DatabaseUnreachable, ConfigurationError (no pg_dump), RepositoryUnreachable (none could be
    written) and DumpFailed; then nothing of it is left anywhere.
    """
    info = plan.server.info
    skew = (clock() - plan.server.now()).total_seconds()
    _require_same_server(plan)
    binaries = plan.tools.for_dump(info.major)  # before any file is made
    with database_lock(
        plan.server, plan.server.database, command="backup", state_path=plan.state_path, now=clock()
    ) as lock:
        remove_leftovers(plan.server, plan.server.database)
        _staging(plan).remove_leftovers()
        try:
            taken = _make(plan, binaries, clock, start_progress)
        except _Outrun as error:
            remark = f"{error.message.rstrip('.')}; it was dumped anew, with one session"
            taken = _make(replace(plan, jobs=1), binaries, clock, start_progress, (remark,))
        if not lock.is_held():
            taken = replace(taken, warnings=(*taken.warnings, LOCK_LOST), needs_attention=True)
    return replace(taken, clock_skew_seconds=skew)


def _make(
    plan: BackupPlan,
    binaries: Binaries,
    clock: Callable[[], datetime],
    start_progress: Callable[[int], Advance],
    remarks: Sequence[str] = (),
) -> TakenBackup:
    """Dump and publish; when something goes wrong, nothing is left. Raises _Outrun, too."""
    started_at = _begin_second(plan, clock)
    identifier = backup_id(segment(plan.database), started_at, secrets.token_hex(2))
    uploads = Uploads(
        plan.repositories,
        plan.database,
        identifier,
        created_at=started_at,
        patience_seconds=plan.patience_seconds,
    )
    try:
        written = _write_files(plan, binaries, uploads, start_progress)
        info = plan.server.info
        manifest = Manifest(
            id=identifier,
            database=plan.database,
            started_at=started_at,
            finished_at=clock(),
            opsctl_version=__version__,
            pg_dump_version=binaries.version,
            server_version=info.version,
            host=socket.gethostname(),
            files=tuple(written.files),
            facts=written.facts,
            restore_command=plan.restore_command,
            format="custom" if plan.jobs == 1 else "directory",
            compression_level=plan.compression.level,
            encryption=Encryption(plan.recipients.keys) if plan.recipients else None,
            system_identifier=info.system_identifier,
            database_oid=written.snapshot.database_oid,
            database_bytes=written.snapshot.database_bytes,
            excluded_tables=tuple(f"{table.schema}.{table.name}" for table in written.snapshot.without_data),
            warnings=(*remarks, *written.warnings),
        )
        warnings = manifest.warnings
        usual = unusual.compared(manifest, plan.earlier, plan.limits) if plan.limits else []
        found = unusual.judge(manifest, usual, plan.limits) if plan.limits else ()
        # Whoever looks for a backup to restore one day should see it there.
        manifest = replace(manifest, warnings=(*warnings, *unusual.sentences(found)))
        if plan.signing_key:
            manifest = plan.signing_key.signed(manifest)
        stored_in = uploads.publish(manifest)
    except BaseException:
        uploads.abandon()
        raise
    return TakenBackup(
        manifest=manifest,
        stored_in=tuple(stored_in),
        slow=tuple(uploads.slow),
        failures=dict(uploads.failures),
        warnings=warnings,
        needs_attention=bool(found) or any(sign in warning for warning in warnings for sign in INCOMPLETE_SIGNS),
        unusual=found,
        compared_with=unusual.typical(usual).id if usual else None,
    )


def _staging(plan: BackupPlan) -> Staging:
    return plan.staging or Staging(plan.state_path / SPOOL)


def _require_same_server(plan: BackupPlan) -> None:
    found = plan.server.info.system_identifier
    if plan.expected_server and found and found != plan.expected_server:
        raise Refused(
            f"The earlier backups of {plan.database!r} are of another server (system identifier"
            f" {plan.expected_server}, this one has {found}).",
            hint="After a move or an upgrade, --new-server accepts it once; else check the database's URL.",
        )


def _begin_second(plan: BackupPlan, clock: Callable[[], datetime]) -> datetime:
    """The start of this backup, in a second that no other backup of the database has in its id."""
    while True:
        now = clock()
        beginning = backup_id(segment(plan.database), now, "")
        asked = [in_background(each.has_id_beginning, plan.database, beginning) for each in plan.repositories]
        answered = wait(asked, timeout=plan.patience_seconds).done
        if not any(each.result() for each in answered):
            return now
        time.sleep((now.replace(microsecond=0) + timedelta(seconds=1) - now).total_seconds())


@dataclass(frozen=True)
class _Written:
    files: list[StoredFile]
    facts: Facts
    snapshot: Snapshot
    warnings: list[str]


def _write_files(
    plan: BackupPlan, binaries: Binaries, uploads: Uploads, start_progress: Callable[[int], Advance]
) -> _Written:
    deadline = time.monotonic() + plan.lock_timeout_seconds
    while True:
        try:
            with (
                open_snapshot(
                    plan.server,
                    level=plan.facts,
                    lock_timeout_seconds=plan.lock_timeout_seconds,
                    exclude_tables=plan.exclude_tables,
                ) as snapshot,
                Counting(snapshot) as counting,
            ):
                dump, facts, warnings = _dump(plan, binaries, uploads, snapshot, counting, start_progress)
            break
        except _Overtaken:
            if time.monotonic() > deadline:
                raise
    files = [dump]
    sql, complaint = _globals(plan, binaries)
    if complaint is None:
        name = plan.file_name(GLOBALS)
        with uploads.file(name) as writer:
            files.append(store(name, [sql], writer, plan.compression, _ignore, plan.recipients))
    return _Written(files, facts, snapshot, [*snapshot.warnings, *warnings, *([complaint] if complaint else [])])


def _globals(plan: BackupPlan, binaries: Binaries) -> tuple[bytes, str | None]:
    """Roles and tablespaces as SQL, or what kept us from reading them: a login may lack the right to."""
    passwords = plan.role_passwords and plan.server.info.is_superuser
    with plan.tools.dump_globals(binaries, plan.server, role_passwords=passwords) as child:
        sql = b"".join(child.chunks())
        if child.finish() != 0:
            return b"", child.failure(DumpFailed, f"({GLOBALS_MISSING})").message
    return sql, None


class _Overtaken(LockHeld):
    """A TRUNCATE or ALTER TABLE waits for our lock, and pg_dump behind it: only our letting go gets both on."""


def _dump(
    plan: BackupPlan,
    binaries: Binaries,
    uploads: Uploads,
    snapshot: Snapshot,
    counting: Counting,
    start_progress: Callable[[int], Advance],
) -> tuple[StoredFile, Facts, list[str]]:
    """Dump and count side by side, in the same snapshot; what is counted is what the archive's contents name."""
    with _dumping(plan, binaries, snapshot) as (child, chunks):
        first = next(chunks, b"")  # it writes nothing before it holds its own locks
        if not first and child.finish() != 0 and child.said("LOCK TABLE"):
            raise _Overtaken(
                f"Changes of tables kept pg_dump from locking them for {plan.lock_timeout_seconds:g} s.",
                hint="Back up when fewer TRUNCATE and ALTER TABLE run, or raise lock_timeout_seconds.",
            )
        advance = start_progress(snapshot.database_bytes)
        return _stored(plan, binaries, uploads, counting, child, chain((first,), chunks), advance)


@contextmanager
def _dumping(plan: BackupPlan, binaries: Binaries, snapshot: Snapshot) -> Iterator[tuple[Child, Iterator[bytes]]]:
    """A pg_dump that runs, and the bytes of its archive: straight from it, or by way of the staging folder."""
    start = partial(
        plan.tools.dump,
        binaries,
        plan.server,
        snapshot=snapshot.id,
        lock_timeout_seconds=min(PG_DUMP_LOCK_SECONDS, plan.lock_timeout_seconds),
        encoding=snapshot.encoding,
        without_data=[table.native for table in snapshot.without_data],
    )
    if plan.jobs == 1:
        with start() as child:
            yield child, child.chunks()
        return
    with (
        _staging(plan).folder(
            snapshot.database_bytes,
            doing=f"a dump with {plan.jobs} jobs",
            hint="Set staging_path in [state] to a larger disk, or leave out jobs, which needs none.",
        ) as folder,
        start(jobs=plan.jobs, folder=folder) as child,
    ):
        list_contents = partial(plan.tools.list_folder, binaries, folder.path)
        yield child, packed(folder.path, child, binaries.major, list_contents)


def _stored(
    plan: BackupPlan,
    binaries: Binaries,
    uploads: Uploads,
    counting: Counting,
    child: Child,
    chunks: Iterable[bytes],
    advance: Advance,
) -> tuple[StoredFile, Facts, list[str]]:
    name = plan.dump_name
    with (
        plan.tools.list_archive(binaries) as lister,
        plan.tools.schema(binaries) as writing,
        uploads.file(name) as writer,
    ):
        contents, schema = ContentsReader(lister), ContentsReader(writing)
        listing, sql = in_background(contents.listing), in_background(schema.listing)
        passing = _passing(chunks, contents, schema)
        stored = store(name, passing, writer, plan.compression, advance, plan.recipients)
        contents.end()
        schema.end()
        _require_success(child, f"after {stored.bytes:,} bytes")
        facts = counting.result(dumped_tables(listing.result()))
        return stored, replace(facts, schema_sha256=schema_digest(sql.result())), child.warnings


class _Outrun(LockHeld):
    """A session of a parallel dump did not get the lock that pg_dump has already: somebody waits for a stronger one.

    Only our letting go gets both on. A pg_dump of one session keeps the locks it has, and is not troubled.
    """


def _passing(chunks: Iterable[bytes], *readers: ContentsReader) -> Iterator[bytes]:
    """The dump's bytes; their beginning is shown to the readers as well."""
    for chunk in chunks:
        for reader in readers:
            reader.feed(chunk)
        yield chunk


def _require_success(child: Child, doing: str) -> None:
    if child.finish() == 0:
        return
    failure = child.failure(DumpFailed, doing)
    if child.said("could not obtain lock on relation"):
        raise _Outrun(failure.message, hint=failure.hint)
    raise failure


def _ignore(_advanced: int) -> None:
    """Progress of what is too small to show."""
