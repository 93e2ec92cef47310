"""Manifests read before, kept on this host: a list of 10,000 backups is then no longer 10,000 requests.

A cache, never the truth. A manifest is never changed once it is written, and what is kept here counts only while the
storage lists it under the same version (an S3 ETag). Losing the file loses nothing; one that cannot be used is passed
over without a word.
"""

import os
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from opsctl.errors import BackupDamaged
from opsctl.manifest import Manifest, parse_manifest
from opsctl.storage import Entry, Storage

FILE = "manifests-1.sqlite"
BUSY_SECONDS = 1.0
"""How long another run may keep us from it. It is not worth waiting longer for."""

SCHEMA = """
create table if not exists manifests (
    place text not null, folder text not null, key text not null, version text not null, data blob not null,
    primary key (place, folder, key)
)
"""


class ManifestCache:
    """The manifests of every repository, in one file that only its owner can read. Nothing here raises."""

    def __init__(self, state_path: Path) -> None:
        self._path = state_path / FILE

    def load(self, place: str, folder: str) -> dict[str, tuple[str, bytes]]:
        """The manifests of a folder by their keys, with their versions; ``place`` names the repository."""
        found: dict[str, tuple[str, bytes]] = {}
        with suppress(sqlite3.Error, OSError, zlib.error, TypeError), self._open() as connection:
            query = "select key, version, data from manifests where place = ? and folder = ?"
            for key, version, data in connection.execute(query, (place, folder)):
                found[key] = version, zlib.decompress(data)
        return found

    def ids(self, place: str) -> list[str]:
        """The backups of a repository that were read before."""
        with suppress(sqlite3.Error, OSError), self._open() as connection:
            keys = connection.execute("select key from manifests where place = ?", (place,)).fetchall()
            return [key.split("/")[-2] for (key,) in keys]
        return []

    def save(
        self, place: str, folder: str, new: Mapping[str, tuple[str, bytes]], *, gone: Collection[str] = ()
    ) -> None:
        """Remember some more, and forget those that are gone."""
        if not new and not gone:
            return
        rows = [(place, folder, key, version, zlib.compress(data, 1)) for key, (version, data) in new.items()]
        with suppress(sqlite3.Error, OSError), self._open() as connection, connection:
            connection.executemany("insert or replace into manifests values (?, ?, ?, ?, ?)", rows)
            connection.executemany(
                "delete from manifests where place = ? and folder = ? and key = ?",
                [(place, folder, key) for key in gone],
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its journal the same mode
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as connection:
                connection.execute("pragma synchronous = off")  # what a crash damages is begun anew
                connection.execute(SCHEMA)
                yield connection
        except sqlite3.OperationalError:
            raise  # locked, read-only, full: the next run may have more luck
        except sqlite3.DatabaseError:
            self._path.unlink(missing_ok=True)  # damaged: the next run begins a new one
            raise


class ManifestReader:
    """The manifests that are listed in one folder of a storage: from the cache where there is one and it has them."""

    def __init__(self, storage: Storage, folder: str, listed: Sequence[Entry], cache: ManifestCache | None) -> None:
        self._storage = storage
        self._folder = folder
        self._listed = {entry.key for entry in listed}
        # A storage that names no versions is as fast as the cache would be.
        self._cache = cache if any(entry.version for entry in listed) else None
        self._known = self._cache.load(storage.address, folder) if self._cache else {}
        self._new: dict[str, tuple[str, bytes]] = {}

    def read(self, entry: Entry) -> Manifest:
        """Raises FileNotFoundError, and BackupDamaged. May be called by several threads."""
        version = f"{entry.version} {entry.bytes} {entry.modified_at.isoformat()}" if entry.version else ""
        known_version, data = self._known.get(entry.key, ("", b""))
        if version and known_version == version:
            with suppress(BackupDamaged):
                manifest = parse_manifest(data, where=entry.key)
                if manifest.id == entry.key.split("/")[-2]:
                    return manifest
        data = self._storage.read(entry.key)
        manifest = parse_manifest(data, where=entry.key)
        if version:
            self._new[entry.key] = version, data
        return manifest

    def remember(self) -> None:
        """Keep what was read for the next run, and nothing that is gone."""
        if self._cache is not None:
            self._cache.save(self._storage.address, self._folder, self._new, gone=self._known.keys() - self._listed)
