from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.cli.catalog import readable_copy
from opsctl.cli.dump_files import database_of, examine_file
from opsctl.errors import Refused, UsageError

if TYPE_CHECKING:
    from opsctl.catalog import Backup, Catalog, Evidence
    from opsctl.cli.session import Session
    from opsctl.dumps.selection import Selected, Selection
    from opsctl.keys import Source
    from opsctl.manifest import Manifest
    from opsctl.stream import Packing


@dataclass(frozen=True)
class RestoreSource:
    """What is restored: a backup in a repository, or a dump that lies on this host."""

    manifest: "Manifest"
    source: "Source"
    database: str
    file: str | None = None
    packing: "Packing | None" = None
    backup: "Backup | None" = None
    others: "Sequence[Backup]" = ()
    """What earlier drills of the same database are looked for in."""

    @property
    def proven(self) -> "Evidence | None":
        return self.backup.proven if self.backup else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is known against it, for the plan."""
        if self.backup is None or not self.backup.failed:
            return ()
        return (f"a verification found this backup damaged: `opsctl verify {self.manifest.id}` says what is wrong",)

    @property
    def backup_id(self) -> str | None:
        return None if self.file else self.manifest.id

    @property
    def fields(self) -> dict[str, str]:
        """What the log and the history call it."""
        return {"file": self.file} if self.file else {"backup_id": self.manifest.id}


def source_of_backup(session: "Session", backup: "Backup", catalog: "Catalog") -> RestoreSource:
    repository, copy = readable_copy(session, backup)
    return RestoreSource(copy.manifest, repository, backup.database, backup=backup, others=catalog.backups)


def source_of_file(session: "Session", path: Path, *, named: str | None, elsewhere: str | None) -> RestoreSource:
    """A dump, read to its end. ``named`` is the configured database it goes to; ``elsewhere`` one on another server.

    Raises BackupDamaged, NoSuchBackup, UsageError, and Refused for what would not be run.
    """
    import socket

    from opsctl.dumps.examine import describe

    if session.keys.trusted:
        raise Refused(
            f"{path} is signed by nobody, and signing.public_keys wants a signature.",
            hint="`opsctl import` signs it with this host's signing.key_file; then restore the backup.",
        )
    if elsewhere is None and named is not None:
        session.config.database(named)
    examined = examine_file(session, path)
    database = elsewhere or database_of(session, examined, named)
    names = [database] if elsewhere else [database, session.server(database).database]
    manifest = describe(
        examined,
        database=database,
        section=examined.choose_section(names),
        backup_id=str(path),
        host=socket.gethostname(),
        now=session.clock(),
    )
    return RestoreSource(manifest, examined.dump, database, str(path), examined.dump.packing)


def part_of(session: "Session", source: RestoreSource, wanted: "Selection") -> "Selected | None":
    """What of an archive is restored, by its own table of contents; ``None`` is all of it.

    Raises UsageError for plain SQL, which has none.
    """
    if wanted.is_empty:
        return None
    from opsctl.dumps.contents import contents_of
    from opsctl.dumps.selection import select

    manifest = source.manifest
    if manifest.format == "plain":
        raise UsageError(
            "Plain SQL has no table of contents: it is restored as a whole.",
            hint="Restore it --into a database beside, and copy the tables from there.",
        )
    with session.keys.plain(source.source, manifest, lambda _count: None, packing=source.packing) as chunks:
        entries = contents_of(chunks, manifest.facts.database.encoding, is_tar=manifest.format == "directory")
    return select(entries, wanted)


def require_backup(path: str, *given: tuple[str, bool]) -> None:
    """Options that only a backup has. Raises UsageError when one was given with a file."""
    for option, is_given in given:
        if is_given:
            raise UsageError(f"{path} is a file, and {option} is about backups.")
