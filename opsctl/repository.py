"""The repository format over a storage: what a backup is made of, and which there are.

``<database>/<backup id>/`` holds ``dump.zst`` or ``dump.tar.zst``, ``globals.sql.zst`` (with ``.age`` behind when they
are encrypted), ``manifest.json``, ``evidence/`` and ``pin``.
The manifest comes last and goes first: it exists exactly when the backup does. There is no index: the storage is the
catalog.
"""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, BinaryIO, Literal, cast
from urllib.parse import quote, unquote

from opsctl.background import in_background, in_parallel
from opsctl.catalog import Backup, Catalog, Evidence, Incomplete, StoredBackup, merged
from opsctl.errors import BackupDamaged, Refused, RemovalRefused, RepositoryUnreachable
from opsctl.listing import Listing
from opsctl.manifest import EVIDENCE_LEVELS, EvidenceLevel, Manifest, StoredFile, parse_manifest
from opsctl.manifest_cache import ManifestCache, ManifestReader
from opsctl.storage import Entry, Publication, Storage, locked_text
from opsctl.stream import Writer
from opsctl.times import format_time

MANIFEST = "manifest.json"
PIN = "pin"
HIDDEN = "hidden by a delete marker"
"""Why a backup is none that somebody has deleted, in a bucket that keeps versions, without removing them."""

CLOCK_LIMIT = timedelta(minutes=5)
"""With clocks further apart than this, a backup's age means nothing, and nothing is pruned by it."""

READERS = 8

RESTORE_TEXT = """\
How to restore a backup of this repository without opsctl
==========================================================

Each backup is a folder <database>/<backup id>/. manifest.json in it names the files with their SHA-256
("sha256": of the file as it lies here) and, as "restore_command", the line that restores it. In general:

    cd <database>/<backup id>
    sha256sum dump.zst                                       # compare with manifest.json
    createdb --template=template0 restored
    zstd --decompress --stdout dump.zst | pg_restore --exit-on-error --dbname=restored

A file dump.tar.zst is restored by the same line. With several sessions:

    mkdir dump
    zstd --decompress --stdout dump.tar.zst | tar --extract --directory=dump
    pg_restore --jobs=4 --exit-on-error --dbname=restored dump

Roles must exist before their objects do; they are in globals.sql.zst:

    zstd --decompress --stdout globals.sql.zst | less        # run what is missing with psql

A backup whose files end in .age is encrypted to the recipients in manifest.json ("encryption"). Decrypting needs the
program age and the identity of one of them, an age identity or an OpenSSH key, here in the file KEY:

    sha256sum dump.zst.age                                   # compare with manifest.json
    createdb --template=template0 restored
    age --decrypt --identity KEY dump.zst.age | zstd --decompress --stdout \\
        | pg_restore --exit-on-error --dbname=restored
    age --decrypt --identity KEY globals.sql.zst.age | zstd --decompress --stdout | less

A dump.sql.zst is plain SQL that was imported: psql --set=ON_ERROR_STOP=1 in place of pg_restore.

pg_restore must be at least as new as the pg_dump in manifest.json ("pg_dump_version").
"""


def segment(name: str) -> str:
    """A name as one segment of a path: percent-encoded, and never ``.``, ``..`` or hidden."""
    encoded = quote(name, safe="")
    return f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded


class Repository:
    """A repository by its configured name. Its backups are locked for ``lock_for``, where the storage can do that."""

    def __init__(
        self, name: str, storage: Storage, lock_for: timedelta | None = None, cache: ManifestCache | None = None
    ) -> None:
        self.name = name
        self.storage = storage
        self.lock_for = lock_for
        self._cache = cache
        self.listing: Listing[StoredBackup] = Listing()
        """What this run has seen here, and done to it."""

    def catalog(self, databases: Sequence[str] = ()) -> Catalog:
        """Every backup, or those of some databases; what cannot be read as one is named as incomplete."""
        self.listing.ask()
        wanted = {segment(name) for name in databases}
        folders = [name for name in self.storage.folders() if not wanted or name in wanted]
        catalog = Catalog(incomplete=list(self._hidden(wanted)))
        hidden = {each.folder for each in catalog.incomplete}
        trees = in_parallel(self.storage.tree, folders, workers=READERS)
        for folder, tree in zip(folders, trees, strict=True):
            there = [(folder, name, entries) for name, entries in tree.items()]
            listed = [entry for _, _, entries in there for entry in entries if entry.key.endswith(f"/{MANIFEST}")]
            manifests = ManifestReader(self.storage, folder, listed, self._cache)
            for found in in_parallel(partial(self._read, manifests), there, workers=READERS):
                if isinstance(found, StoredBackup):
                    catalog.backups.append(Backup((found,)))
                elif found.folder not in hidden:
                    catalog.incomplete.append(found)
            manifests.remember()
        copies = {(backup.database, backup.id): backup.copies[0] for backup in catalog.backups}
        self.listing.answer(databases, copies, len(catalog.incomplete))
        return catalog

    def _hidden(self, databases: Iterable[str]) -> Iterator[Incomplete]:
        """The backups whose manifest is there only below a delete marker."""
        grouped: dict[str, list[Entry]] = {}
        for prefix in databases or ("",):
            for entry in self.storage.hidden(prefix):
                grouped.setdefault("/".join(entry.key.split("/")[:2]), []).append(entry)
        for folder, entries in grouped.items():
            if any(entry.key == f"{folder}/{MANIFEST}" for entry in entries):
                database, _, name = folder.partition("/")
                total, newest = sum(each.bytes for each in entries), max(each.modified_at for each in entries)
                yield Incomplete(self.name, name, unquote(database), total, newest, HIDDEN, folder)

    def _read(self, manifests: ManifestReader, found: tuple[str, str, list[Entry]]) -> StoredBackup | Incomplete:
        database, name, entries = found
        prefix = f"{database}/{name}/"
        keys = {entry.key.removeprefix(prefix): entry for entry in entries}
        unpublished = self.storage.unpublished(name)
        reason = "interrupted"
        if MANIFEST in keys and unpublished is None:
            try:
                manifest = manifests.read(keys[MANIFEST])
                return StoredBackup(self.name, manifest, PIN in keys, tuple(_evidence(keys)))
            except BackupDamaged as error:
                reason = error.message
            except FileNotFoundError:
                pass  # being removed by another run
        # A backup that waits for locks may have a folder and no file yet.
        modified = max((entry.modified_at for entry in entries), default=None) or self.storage.modified_at(prefix)
        total = sum(entry.bytes for entry in entries)
        backup = unpublished or name
        return Incomplete(self.name, backup, unquote(database), total, modified, reason, prefix.rstrip("/"))

    def has_id_beginning(self, database: str, beginning: str) -> bool:
        """Whether a backup, whole or not, has such an id; one that does not answer has none."""
        try:
            names = self.storage.folders(segment(database))
        except RepositoryUnreachable:
            return False
        return any((self.storage.unpublished(name) or name).startswith(beginning) for name in names)

    def begin(self, database: str, backup_id: str, *, created_at: datetime) -> "Upload":
        """Begin a new backup. The repository comes into being with its first one.

        Raises Refused for a database whose folder differs from another one's in upper and lower case alone.
        """
        if self.storage.prepare():
            with suppress(FileExistsError):  # another first run was faster
                self.storage.create("RESTORE.txt", RESTORE_TEXT.encode())
        self._require_own_folder(segment(database))
        retain_until = created_at + self.lock_for if self.lock_for else None
        publication = self.storage.begin(f"{segment(database)}/{backup_id}", retain_until=retain_until)
        return Upload(publication, self._added)

    def _added(self, manifest: Manifest, *, is_copy: bool) -> None:
        copy = StoredBackup(self.name, manifest, pinned=False, evidence=())
        self.listing.put(manifest.database, manifest.id, copy)
        self.listing.copied += is_copy

    def _require_own_folder(self, folder: str) -> None:
        names = self.storage.folders()
        similar = next((name for name in names if name.casefold() == folder.casefold()), None)
        if similar is not None and folder not in names:
            raise Refused(
                f"The repository {self.name} has backups of {unquote(similar)!r}, and {unquote(folder)!r} differs from"
                " that in upper and lower case alone.",
                hint="On a disk that does not tell these apart they would mix; call the database something else.",
            )

    def open(self, manifest: Manifest, file: StoredFile) -> BinaryIO:
        """A file of a backup for reading. Raises BackupDamaged when it is not there."""
        key = f"{_folder(manifest)}/{file.name}"
        try:
            return self.storage.open(key)
        except FileNotFoundError as error:
            raise BackupDamaged(
                f"{key} is missing in the repository {self.name}.", hint="Another repository may have a copy."
            ) from error

    def reread(self, manifest: Manifest) -> tuple[bytes, Manifest]:
        """The manifest as it lies there now: its bytes, and what they say. Raises BackupDamaged."""
        key = f"{_folder(manifest)}/{MANIFEST}"
        try:
            data = self.storage.read(key)
        except FileNotFoundError as error:
            raise BackupDamaged(
                f"{key} is missing in the repository {self.name}.", hint="Another repository may have a copy."
            ) from error
        return data, parse_manifest(data, where=key)

    def remove(self, manifest: Manifest) -> None:
        """Remove a backup: its manifest first, so that an interruption leaves an orphan and no broken backup.

        Raises RemovalRefused before anything is touched while the backup is locked, and when we may not delete.
        """
        locked = self.locked_until(manifest)
        if locked is not None:
            raise RemovalRefused(
                f"{manifest.id} in {self.name} {locked_text(locked)}.",
                hint="A prune after that removes it.",
                locked_until=locked,
            )
        self.storage.delete(f"{_folder(manifest)}/{MANIFEST}")
        self.listing.drop(manifest.database, manifest.id)
        self.listing.removed += 1
        self.storage.delete_folder(_folder(manifest))

    def remove_orphan(self, incomplete: Incomplete) -> None:
        self.storage.delete_folder(incomplete.folder)

    def record_evidence(
        self, manifest: Manifest, level: EvidenceLevel, outcome: Literal["pass", "fail"], *, at: datetime, details: Any
    ) -> None:
        """Add what was proven, or disproven, to the backup."""
        body = {"schema": 1, "backup_id": manifest.id, "level": level, "outcome": outcome, "at": format_time(at)}
        data = json.dumps({**body, "details": details}, indent=2).encode()
        self.add_evidence(manifest, Evidence(level, outcome == "pass", at), data)

    def add_evidence(self, manifest: Manifest, evidence: Evidence, data: bytes) -> None:
        """Evidence as it stands elsewhere. Raises FileExistsError."""
        self.storage.create(f"{_folder(manifest)}/{evidence.key}", data)
        known = self.listing.get(manifest.database, manifest.id)
        if known is not None:
            changed = replace(known, evidence=(*known.evidence, evidence))
            self.listing.put(manifest.database, manifest.id, changed)

    def read_evidence(self, manifest: Manifest, evidence: Evidence) -> bytes:
        """What stands in it. Raises FileNotFoundError."""
        return self.storage.read(f"{_folder(manifest)}/{evidence.key}")

    def locked_until(self, manifest: Manifest) -> datetime | None:
        """Until when nobody can remove the backup; None if it is not locked."""
        return self.storage.locked_until(_folder(manifest))

    def pin(self, manifest: Manifest, *, now: datetime) -> None:
        """Keep a backup whatever the retention says. Its lock begins anew."""
        if self.lock_for:
            self.storage.extend_lock(_folder(manifest), now + self.lock_for)
        try:
            self.storage.create(f"{_folder(manifest)}/{PIN}", b"")
        except FileExistsError:
            return

    def unpin(self, manifest: Manifest) -> None:
        self.storage.delete(f"{_folder(manifest)}/{PIN}")

    def clock_skew(self, clock: Callable[[], datetime]) -> timedelta:
        """How far this host's clock is from the service's; nothing where there is just one."""
        there = self.storage.now()
        return abs(clock() - there) if there else timedelta(0)


class Upload:
    """A backup on its way into one repository."""

    def __init__(self, publication: Publication, published: Callable[..., None]) -> None:
        self._publication = publication
        self._published = published

    @contextmanager
    def file(self, name: str) -> Iterator[Writer]:
        with self._publication.file(name) as writer:
            yield writer

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest and let the backup exist."""
        self._publication.publish(MANIFEST, manifest.to_json())
        self._published(manifest, is_copy=False)

    def publish_raw(self, data: bytes, manifest: Manifest) -> None:
        """The same for a manifest that was written before, to the byte. Raises FileExistsError."""
        self._publication.publish(MANIFEST, data)
        self._published(manifest, is_copy=True)

    def abandon(self) -> None:
        self._publication.abandon()


def read_each(
    repositories: Iterable[Repository], databases: Sequence[str] = (), *, patience_seconds: float | None = None
) -> tuple[dict[str, Catalog], dict[str, RepositoryUnreachable]]:
    """The catalog of each repository, and the errors of those that do not answer (in time, if that is bounded).

    All are asked at once. Raises RepositoryUnreachable when none answers.
    """
    with _all_kept():
        asked = {repository.name: in_background(repository.catalog, databases) for repository in repositories}
        wait(asked.values(), timeout=patience_seconds)
    catalogs: dict[str, Catalog] = {}
    unreachable: dict[str, RepositoryUnreachable] = {}
    for name, answer in asked.items():
        try:
            catalogs[name] = answer.result(timeout=0)
        except RepositoryUnreachable as error:
            unreachable[name] = error
        except TimeoutError:
            unreachable[name] = RepositoryUnreachable(
                f"The repository {name} was not listed within {patience_seconds:g} seconds.",
                hint="Is it reachable, and is the link fast enough?",
            )
    if asked and not catalogs:
        raise next(iter(unreachable.values()))
    return catalogs, unreachable


@contextmanager
def _all_kept() -> Iterator[None]:
    """Python's collector does not look at what is made here: a million objects of manifests, and none is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once: a program that watches for days would never be rid of any ring
            gc.freeze()
        if was_on:
            gc.enable()


def read_all(
    repositories: Iterable[Repository], databases: Sequence[str] = (), *, patience_seconds: float | None = None
) -> Catalog:
    """The catalog of several repositories, each backup once with all its copies; see :func:`read_each`."""
    return merged(*read_each(repositories, databases, patience_seconds=patience_seconds))


def _folder(manifest: Manifest) -> str:
    return f"{segment(manifest.database)}/{manifest.id}"


def _evidence(keys: Iterable[str]) -> Iterator[Evidence]:
    """Evidence from the names ``evidence/<time>-<level>-<pass|fail>.json``; other files there are not ours."""
    for key in keys:
        parts = key.removeprefix("evidence/").removesuffix(".json").split("-")
        if not key.startswith("evidence/") or len(parts) != 3 or parts[1] not in EVIDENCE_LEVELS:
            continue
        try:
            at = datetime.fromisoformat(f"{parts[0][:15]}.{parts[0][15:]}")  # strptime takes ten times as long
        except ValueError:
            continue
        if at.tzinfo is not None:
            yield Evidence(cast("EvidenceLevel", parts[1]), parts[2] == "pass", at)
