"""A dump on its way from a repository into a database: while it is read, or from a file that several sessions read."""

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import IO, TypedDict

from opsctl.dumps.contents import contents_of
from opsctl.dumps.script import Excerpt, Script
from opsctl.dumps.selection import Selected
from opsctl.errors import BackupDamaged, ConfigurationError, OpsctlError, Refused, RestoreFailed
from opsctl.keys import Keys, Source
from opsctl.manifest import Manifest
from opsctl.postgres.binaries import Binaries, knows_restrict
from opsctl.postgres.directory_format import unpack
from opsctl.postgres.server import Server, one
from opsctl.postgres.tools import Child, Tools
from opsctl.restore_plan import Mode, Obstacle, RestoreOptions
from opsctl.staging import Staging, StagingFolder
from opsctl.stream import READ_BYTES, Advance, Packing, check_stored

ARCHIVE_IS_DAMAGED = (
    "end of file",
    "could not read from input file",
    "did not find magic string",
    "unrecognized data block type",
    "unexpected block ID",
    "could not find block ID",
    "could not uncompress",
    "corrupt tar header",
    "could not find header for file",
    "restoring data out of order",
)
"""pg_restore's words for an archive that is cut or broken, whatever the digests say."""

SPOOLED = {
    "doing": "a restore with several jobs, or of a signed backup,",
    "hint": "Set staging_path in [state] to a larger disk; --jobs 1 streams what needs no signature.",
}

LARGE_BYTES = 64 << 20
"""From this size on several sessions load a dump, where nobody says how many."""

MOST_JOBS = 4
"""So many then at most, one for each processor."""

LOOK_SECONDS = 2.0
"""How often a growing database is asked for its size."""

StartProgress = Callable[[str, int], Advance]
Load = Callable[[str, Mode], None]
"""Loads a dump into a database, as the plan says. Raises RestoreFailed and BackupDamaged."""

IN_ONE_TRANSACTION: set[Mode] = {"fill", "in_place"}
"""Straight into a database that is there: it succeeds as a whole or changes nothing."""


def fitting_sessions(manifest: Manifest, *, processors: int | None) -> int:
    """How many sessions suit a dump, by the processors of the server; of another host's nothing is known."""
    is_large = manifest.format != "plain" and manifest.dump.bytes >= LARGE_BYTES
    return min(MOST_JOBS, processors or 1) if is_large else 1


class _Files(TypedDict, total=False):
    archive: IO[bytes]
    folder: StagingFolder


@dataclass(frozen=True)
class Loading:
    """Where a dump lies, and how it is loaded. ``packing``: how a file is compressed that opsctl did not write."""

    manifest: Manifest
    source: Source
    server: Server
    options: RestoreOptions
    tools: Tools
    keys: Keys
    staging: Staging
    packing: Packing | None = None
    part: Selected | None = None
    is_checked: bool = False

    @property
    def is_script(self) -> bool:
        return self.manifest.format == "plain"

    @property
    def binaries(self) -> Binaries:
        """The pg_restore, or psql, that suits dump and server. Raises ConfigurationError."""
        if self.is_script:
            return self.tools.for_script(self.server.info.major)
        return self.tools.for_restore(archive_major=self.manifest.pg_dump_major, server_major=self.server.info.major)

    @property
    def sessions(self) -> int:
        """How many sessions do what reads nothing of the dump: make indexes, check constraints, gather statistics."""
        processors = (os.cpu_count() or 1) if self.server.is_here else None
        return self.options.jobs or fitting_sessions(self.manifest, processors=processors)

    @property
    def jobs(self) -> int:
        """How many sessions load rows: what was asked for, else several where the file that they read may lie here.

        There has to be room for it, and what was encrypted lies nowhere in plain text unless somebody asks for that.
        """
        jobs = self.sessions
        if self.options.jobs or jobs == 1:
            return jobs
        if self.manifest.dump.is_encrypted or not self.tools.reads_files:
            return 1
        plain_bytes = self.manifest.dump.bytes
        try:
            self.staging.require_room(plain_bytes + (self.manifest.database_bytes or 2 * plain_bytes), **SPOOLED)
        except (ConfigurationError, Refused):
            return 1
        return jobs

    @property
    def holds_off_triggers(self) -> bool:
        """Rows are as they were dumped: what a trigger made of them is among them. Only a superuser may do that."""
        return self.options.data_only and self.server.info.is_superuser

    @property
    def _must_spool(self) -> bool:
        """Several sessions read files; and nothing of a signed backup runs before all of it was seen to be it.

        The storage could hand out one dump to be hashed and another one to be loaded.
        """
        return self.options.jobs > 1 or bool(self.keys.trusted) or self._is_reordered

    @property
    def _is_reordered(self) -> bool:
        """Whether the archive is not read from its beginning to its end."""
        return self.part is not None and self.part.is_reordered

    def obstacles(self) -> Iterator[Obstacle]:
        """Why the dump cannot be loaded in the way that was asked for."""
        if self._must_spool:
            try:
                self.staging.require_room(self.manifest.dump.bytes, **SPOOLED)
            except (ConfigurationError, Refused) as error:
                yield Obstacle(error.message.rstrip("."), error.hint or "")
        if self.options.jobs > 1 and not self.tools.reads_files:
            yield Obstacle('tools = "service" loads with one session', "Leave --jobs out.")
        if self.part and not self.tools.reads_files:
            yield Obstacle('tools = "service" restores backups as a whole', "Restore all of it --into a database.")
        if self.is_script:
            if self.options.jobs > 1:
                yield Obstacle("a plain dump is loaded with one session", "Leave --jobs out.")
            if self.options.in_place:
                yield Obstacle("a plain dump cannot take the place of what is there", "Leave --in-place out.")

    @contextmanager
    def ready(self, jobs: int, start_progress: StartProgress) -> Iterator[Load]:
        """What loads the dump. All of it has been read by then, and is what the manifest says: raises BackupDamaged."""
        dump = self.manifest.dump
        if jobs == 1 and not self._must_spool:
            if not self.is_checked:
                with self.source.open(self.manifest, dump) as file:
                    check_stored(dump, file, start_progress("checking", dump.stored_bytes))
            yield partial(self._streamed, start_progress)
            return
        advance = start_progress("unpacking", dump.bytes)
        if self.manifest.format == "directory" and (jobs > 1 or self._is_reordered):
            with self.staging.folder(dump.bytes, **SPOOLED) as folder:
                with self._plain(advance) as chunks, self.staging.mapped():
                    unpack(chunks, folder.path)
                yield partial(self._unpacked, start_progress, jobs, {"folder": folder})
            return
        with self.staging.file(dump.bytes, **SPOOLED) as archive:
            with self._plain(advance) as chunks, self.staging.mapped():
                archive.writelines(chunks)
                archive.flush()
            if self.is_script:
                archive.seek(0)
                pieces = iter(lambda: archive.read(READ_BYTES), b"")
                yield lambda database, mode: self._run_script(database, mode, pieces)
            else:
                yield partial(self._unpacked, start_progress, jobs, {"archive": archive})

    def _plain(self, advance: Advance) -> AbstractContextManager[Iterator[bytes]]:
        return self.keys.plain(self.source, self.manifest, advance, packing=self.packing)

    def _streamed(self, start_progress: StartProgress, database: str, mode: Mode) -> None:
        with self._plain(start_progress("restoring", self.manifest.dump.bytes)) as chunks:
            if self.is_script:
                self._run_script(database, mode, chunks)
                return
            beginning = _beginning(chunks) if self._indexes_apart(mode) else None
            if beginning is None or not beginning.is_complete:
                with self._pg_restore(database, mode) as child:
                    _feed(child, chain(beginning.chunks if beginning else (), chunks))
                return
            with self._pg_restore(database, mode, "--section=pre-data", "--section=data") as child:
                _feed(child, chain(beginning.chunks, chunks))
        # What is left is in the contents alone: they lie in memory, whatever may not be on a disk.
        with os.fdopen(os.memfd_create("contents"), "w+b") as contents:
            contents.writelines(beginning.chunks)
            contents.flush()
            with (
                _growth(self.server, database, start_progress("indexing", self.manifest.restored_bytes)),
                self._pg_restore(database, mode, "--section=post-data", jobs=self.sessions, archive=contents) as child,
            ):
                _require_success(child)

    def _indexes_apart(self, mode: Mode) -> bool:
        """Whether several sessions make the indexes of what one has loaded."""
        is_whole = self.part is None and mode not in IN_ONE_TRANSACTION
        return self.sessions > 1 and is_whole and self.manifest.format == "custom" and self.tools.reads_files

    def _unpacked(self, start_progress: StartProgress, jobs: int, files: _Files, database: str, mode: Mode) -> None:
        with (
            _growth(self.server, database, start_progress("restoring", self.manifest.restored_bytes)),
            self._pg_restore(database, mode, jobs=jobs, **files) as child,
        ):
            _require_success(child)

    @contextmanager
    def _pg_restore(
        self,
        database: str,
        mode: Mode,
        *more: str,
        jobs: int = 1,
        archive: IO[bytes] | None = None,
        folder: StagingFolder | None = None,
    ) -> Iterator[Child]:
        options = self.options
        flags = [
            *more,
            *(["--clean", "--if-exists"] if mode == "in_place" else []),
            *(["--no-owner"] if options.no_owner else []),
            *(["--no-privileges"] if options.no_privileges else []),
            *(["--no-tablespaces"] if options.no_tablespaces else []),
            *([f"--role={options.role}"] if options.role else []),
            *(["--data-only", "--disable-triggers"] if self.holds_off_triggers else []),
        ]
        use_list = self.part.use_list if self.part else None
        with self.tools.restore(
            self.binaries,
            self.server,
            database,
            in_one_transaction=mode in IN_ONE_TRANSACTION,
            flags=flags,
            jobs=jobs,
            archive=archive,
            folder=folder,
            use_list=use_list,
        ) as child:
            yield child

    def _run_script(self, database: str, mode: Mode, chunks: Iterator[bytes]) -> None:
        """What of a plain dump is about this database, through psql, which takes none of its own commands meanwhile."""
        options, binaries = self.options, self.binaries
        in_one_transaction = mode in IN_ONE_TRANSACTION
        script = Script(
            Excerpt(
                section=self.manifest.imported.section if self.manifest.imported else "",
                no_owner=options.no_owner,
                no_privileges=options.no_privileges,
                no_tablespaces=options.no_tablespaces,
                in_one_transaction=in_one_transaction,
            )
        )
        with self.tools.run_script(binaries, self.server, database, in_one_transaction=in_one_transaction) as child:
            _feed(child, chain(self._preamble(binaries), script.run(chunks)))

    def _preamble(self, binaries: Binaries) -> Iterator[bytes]:
        if knows_restrict(binaries):
            yield f"\\restrict {secrets.token_hex(16)}\n".encode()
        if self.options.role:
            quoted = self.options.role.replace('"', '""')
            yield f'SET ROLE "{quoted}";\n'.encode()


@dataclass(frozen=True)
class _Beginning:
    """The first chunks of an archive, as far as its contents go; ``is_complete`` where those could be read."""

    chunks: list[bytes]
    is_complete: bool


def _beginning(chunks: Iterator[bytes]) -> _Beginning:
    seen: list[bytes] = []

    def kept() -> Iterator[bytes]:
        for chunk in chunks:
            seen.append(chunk)
            yield chunk

    try:
        contents_of(kept(), "UTF8", is_tar=False)
    except BackupDamaged:  # or newer than we know: pg_restore says which
        return _Beginning(seen, is_complete=False)
    return _Beginning(seen, is_complete=True)


def _feed(child: Child, chunks: Iterator[bytes]) -> None:
    """Everything into pg_restore; when it has closed its input, its own error says why."""
    with suppress(BrokenPipeError):
        for chunk in chunks:
            child.write(chunk)
    child.close_stdin()
    _require_success(child)
    for _rest in chunks:  # it may end before the archive does; the digests cover everything
        pass


def _require_success(child: Child) -> None:
    if child.finish() != 0:
        damaged = any(child.said(sign) for sign in ARCHIVE_IS_DAMAGED)
        raise child.failure(BackupDamaged if damaged else RestoreFailed, "and what it had loaded is gone again")


@contextmanager
def _growth(server: Server, database: str, advance: Advance) -> Iterator[None]:
    """Progress of what several sessions do: how much the database has grown. Nobody fails because it cannot be seen."""
    ended = threading.Event()

    def look() -> None:
        seen = 0
        with suppress(OpsctlError), server.connect(server.maintenance_database) as connection:
            while not ended.wait(LOOK_SECONDS):
                size = one(connection, "select pg_database_size(%s)", (database,))[0]
                advance(max(0, size - seen))
                seen = max(seen, size)

    thread = threading.Thread(target=look, name="growth", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOOK_SECONDS)  # a server that hangs is no reason to wait
