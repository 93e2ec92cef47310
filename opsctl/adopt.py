"""Adopt a dump that was made without opsctl: into the repositories, with a manifest that says what is not known of it.

Its bytes go the way of every backup: digested, compressed, encrypted, into all repositories at once, published last.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from opsctl.catalog import Backup
from opsctl.dumps.examine import STORED_NAMES, Examined
from opsctl.encryption import SUFFIX, Recipients
from opsctl.errors import BackupDamaged, OpsctlError
from opsctl.manifest import Encryption, Manifest, StoredFile, backup_id
from opsctl.repository import Repository, segment
from opsctl.signing import SigningKey
from opsctl.stream import READ_BYTES, Advance, Compression, store, unpacked
from opsctl.uploads import Uploads

LOADED_BY = {
    "plain": "psql --no-psqlrc --set=ON_ERROR_STOP=1 --dbname=DATABASE",
    "custom": "pg_restore --exit-on-error --dbname=DATABASE",
    "directory": "pg_restore --exit-on-error --dbname=DATABASE",
}


@dataclass(frozen=True)
class Adoption:
    """A dump, read to its end, that is to become a backup. ``manifest`` describes it as it lies there."""

    examined: Examined
    manifest: Manifest
    repositories: Sequence[Repository]
    compression: Compression = field(default_factory=Compression)
    recipients: Recipients | None = None
    signing_key: SigningKey | None = None

    def known(self, backups: Iterable[Backup]) -> Backup | None:
        """The backup of the same database that holds the same dump already, whatever its file was called."""
        digest = self.examined.file.plain_sha256
        mine = (each for each in backups if each.database == self.manifest.database)
        return next((each for each in mine if each.manifest.dump.plain_sha256 == digest), None)

    def execute(self, *, clock: Callable[[], datetime], advance: Advance) -> "Adopted":
        """Store it and publish it everywhere. Raises BackupDamaged when it is no longer what was read before.

        Raises RepositoryUnreachable when no repository could be written; then nothing is left of it.
        """
        manifest = self._named()
        name = f"{STORED_NAMES[self.examined.dump.kind]}.zst" + (SUFFIX if self.recipients else "")
        uploads = Uploads(self.repositories, manifest.database, manifest.id, created_at=clock())
        try:
            with self.examined.dump.open() as file, uploads.file(name) as writer:
                pieces = iter(lambda: file.read(READ_BYTES), b"")
                chunks = unpacked(pieces, self.examined.dump.packing)
                stored = store(name, chunks, writer, self.compression, advance, self.recipients)
            self._require_unchanged(stored)
            manifest = replace(
                manifest,
                files=(stored,),
                compression="zstd",
                compression_level=self.compression.level,
                encryption=Encryption(self.recipients.keys) if self.recipients else None,
                restore_command=self._restore_command(name),
            )
            if self.signing_key:
                manifest = self.signing_key.signed(manifest)
            stored_in = uploads.publish(manifest)
        except BaseException:
            uploads.abandon()
            raise
        return Adopted(manifest, tuple(stored_in), tuple(uploads.slow), dict(uploads.failures))

    def _require_unchanged(self, stored: StoredFile) -> None:
        if stored.plain_sha256 != self.examined.file.plain_sha256:
            raise BackupDamaged(
                f"{self.examined.dump.path} was changed while it was read.", hint="Is it still being written?"
            )

    def _named(self) -> Manifest:
        """With an id of its time; a second that another backup of the database has is passed over."""
        manifest = self.manifest
        at = manifest.started_at
        while True:
            beginning = backup_id(segment(manifest.database), at, "")
            if not any(each.has_id_beginning(manifest.database, beginning) for each in self.repositories):
                identifier = backup_id(segment(manifest.database), at, secrets.token_hex(2))
                return replace(manifest, id=identifier, started_at=at, finished_at=at)
            at += timedelta(seconds=1)

    def _restore_command(self, name: str) -> str:
        unpack = f"zstd --decompress --stdout {name}"
        if self.recipients:
            unpack = f"age --decrypt --identity KEY {name} | zstd --decompress --stdout"
        return f"{unpack} | {LOADED_BY[self.manifest.format]}"


@dataclass(frozen=True)
class Adopted:
    """A backup that exists now, in ``stored_in``; ``failures`` names the repositories that did not get it."""

    manifest: Manifest
    stored_in: tuple[str, ...]
    slow: tuple[str, ...]
    failures: Mapping[str, OpsctlError]
