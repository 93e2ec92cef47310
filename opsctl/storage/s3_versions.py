"""What a bucket keeps besides the objects one sees: earlier versions, delete markers, and locks on them.

Where versions are kept, a delete without a version's id removes nothing: it hides. So versions are what is removed, the
ones that are seen last, and a lock is looked for before anything goes.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from opsctl.errors import RemovalRefused, RepositoryUnreachable
from opsctl.storage import FOREVER, Entry, locked_text
from opsctl.storage.s3_errors import error_code, http_status, service_time

if TYPE_CHECKING:
    from opsctl.storage.s3 import S3Storage

NOT_TOLD = frozenset({400, 403, 404, 405, 501})
"""What services answer to a question about the bucket that they do not know, or that is not for these credentials."""

EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Version:
    """One version of an object, or a delete marker, which hides the versions before it."""

    key: str
    id: str
    bytes: int
    modified_at: datetime
    is_latest: bool
    is_marker: bool


class S3Versions:
    """The versions and locks of a storage's bucket. Keys here are whole: the repository's prefix is in them.

    What kind of bucket it is is asked once.
    """

    def __init__(self, storage: "S3Storage") -> None:
        self._storage = storage
        self._asking = threading.Lock()
        self._are_kept: bool | None = None
        self._have_locks: bool | None = None

    # What kind of bucket it is

    @property
    def are_kept(self) -> bool:
        """Whether the bucket has versions, or had them once."""
        with self._asking:
            if self._are_kept is None:
                self._are_kept = self._find_out_whether_kept()
            return self._are_kept

    def _find_out_whether_kept(self) -> bool:
        answer = self._told("get_bucket_versioning")
        if answer is not None:
            return answer.get("Status") in {"Enabled", "Suspended"}
        found = self._told("list_object_versions", Prefix=self._storage.full_key(""), MaxKeys=1) or {}
        return any(
            each["VersionId"] != "null" for each in (*found.get("Versions", ()), *found.get("DeleteMarkers", ()))
        )

    @property
    def have_locks(self) -> bool:
        """Whether the bucket has Object Lock; true as well while the credentials may not ask."""
        if not self.are_kept:
            return False
        with self._asking:
            if self._have_locks is None:
                self._have_locks = self._find_out_whether_locks()
            return self._have_locks

    def _find_out_whether_locks(self) -> bool:
        try:
            with self._storage.mapped("ask"):
                answer = self._client.get_object_lock_configuration(Bucket=self._storage.bucket)
        except RepositoryUnreachable as error:
            status = http_status(error.__cause__) if hasattr(error.__cause__, "response") else 0
            if status not in NOT_TOLD or error_code(error.__cause__) == "NoSuchBucket":
                raise
            return status == 403
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def _told(self, operation: str, **about: Any) -> dict[str, Any] | None:
        """An answer about the bucket, or None where there is none to be had."""
        from botocore.exceptions import ClientError

        with self._storage.mapped("ask"):
            try:
                answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._storage.bucket, **about)
            except ClientError as error:
                if http_status(error) not in NOT_TOLD or error_code(error) == "NoSuchBucket":
                    raise
                return None
        return answer

    # Looking

    def of(self, key: str) -> list[Version]:
        """All versions of one file, by its key in the repository."""
        whole = self._storage.full_key(key)
        return [version for version in self.below(whole) if version.key == whole]

    def below(self, inside: str) -> list[Version]:
        """All versions of everything whose key begins so."""
        found = []
        with self._storage.mapped("list"):
            pages = self._client.get_paginator("list_object_versions").paginate(
                Bucket=self._storage.bucket, Prefix=inside
            )
            for page in pages:
                found += [_version(each, is_marker=False) for each in page.get("Versions", ())]
                found += [_version(each, is_marker=True) for each in page.get("DeleteMarkers", ())]
        return found

    def hidden(self, versions: Iterable[Version]) -> Iterator[Entry]:
        """What a delete marker hides: of each file its newest version."""
        markers, newest = set(), dict[str, Version]()
        for version in versions:
            if version.is_marker:
                markers |= {version.key} if version.is_latest else set()
            elif version.key not in newest or version.modified_at > newest[version.key].modified_at:
                newest[version.key] = version
        for key in sorted(markers & newest.keys()):
            yield Entry(self._storage.relative(key), newest[key].bytes, newest[key].modified_at)

    # Removing

    def remove(self, versions: list[Version]) -> None:
        """For good. Those that are seen go last: an interruption brings nothing back that was hidden."""
        for version in sorted(versions, key=lambda each: (each.is_latest, each.modified_at)):
            with suppress(FileNotFoundError), self._storage.mapped("delete", version.key):
                self._client.delete_object(Bucket=self._storage.bucket, Key=version.key, VersionId=version.id)

    def require_unlocked(self, versions: list[Version]) -> None:
        """Raises RemovalRefused that says until when something is locked."""
        until = self.locked_until(versions)
        if until is None:
            return
        name = self._storage.relative(versions[0].key)
        folder = name.rpartition("/")[0] or name
        raise RemovalRefused(
            f"Cannot delete in the repository {self._storage.address}: {folder} {locked_text(until)}.",
            hint="Object Lock of the bucket keeps it; a later prune removes it.",
            locked_until=until,
        )

    # Locks

    def locked_until(self, versions: Iterable[Version]) -> datetime | None:
        """The last moment one of them is locked, by the service's clock; None if none is."""
        if not self.have_locks:
            return None
        latest = None
        for version in versions:
            head = self._head(version)
            until = FOREVER if head.get("ObjectLockLegalHoldStatus") == "ON" else head.get("ObjectLockRetainUntilDate")
            if until is not None and until > (service_time(head) or EPOCH):
                latest = max(latest or EPOCH, until.astimezone(UTC) if until != FOREVER else FOREVER)
        return latest

    def extend(self, versions: Iterable[Version], until: datetime) -> None:
        """Of those that have a lock, or had one. Holds and modes stay as they are."""
        if not self.have_locks:
            return
        for version in versions:
            head = self._head(version)
            had = head.get("ObjectLockRetainUntilDate")
            if had is not None and had < until:
                self._retain(version.key, version.id, head["ObjectLockMode"], until)

    def planned_lock(self, until: datetime | None) -> datetime | None:
        """Until when new files will be locked, in whole seconds. Raises RepositoryUnreachable if they cannot be."""
        if until is None or self._storage.options.object_lock == "off":
            return None
        if not self.have_locks:
            raise RepositoryUnreachable(
                f"Cannot write in the repository {self._storage.address}: object_lock is set, and the bucket"
                f" {self._storage.bucket} has no Object Lock.",
                hint="Switch it on for the bucket (docs/s3.md), or set object_lock to off.",
            )
        now = self._storage.now()
        return until.replace(microsecond=0) if now is None or until > now + timedelta(minutes=1) else None

    def lock_of_put(self, until: datetime | None) -> dict[str, Any]:
        """A lock as a put carries it."""
        return {} if until is None else {"ObjectLockMode": self._mode, "ObjectLockRetainUntilDate": until}

    def lock(self, key: str, until: datetime) -> None:
        """Lock a file unless it is already. Raises RepositoryUnreachable when the service does not show the lock."""
        whole = self._storage.full_key(key)
        for may_still_lock in (True, False):
            with self._storage.mapped("lock"):
                head = self._client.head_object(Bucket=self._storage.bucket, Key=whole)
            if (head.get("ObjectLockRetainUntilDate") or EPOCH) >= until:
                return
            if may_still_lock:
                self._retain(whole, head["VersionId"], self._mode, until)
        raise RepositoryUnreachable(
            f"Cannot lock in the repository {self._storage.address}: it took the lock of {key} and shows none.",
            hint="The credentials need s3:GetObjectRetention (docs/s3.md); or the service has no working Object Lock.",
        )

    def _retain(self, key: str, version: str, mode: str, until: datetime) -> None:
        with self._storage.mapped("lock"):
            self._client.put_object_retention(
                Bucket=self._storage.bucket,
                Key=key,
                VersionId=version,
                Retention={"Mode": mode, "RetainUntilDate": until.replace(microsecond=0)},
            )

    def _head(self, version: Version) -> dict[str, Any]:
        """A version's head, which tells retention and hold at once; nothing for a marker, which cannot be locked."""
        if version.is_marker:
            return {}
        try:
            with self._storage.mapped("read", version.key):
                answer: dict[str, Any] = self._client.head_object(
                    Bucket=self._storage.bucket, Key=version.key, VersionId=version.id
                )
                return answer
        except FileNotFoundError:  # removed by another run
            return {}

    @property
    def _mode(self) -> str:
        return self._storage.options.object_lock.upper()

    @property
    def _client(self) -> Any:
        return self._storage.client


def _version(listed: dict[str, Any], *, is_marker: bool) -> Version:
    return Version(
        key=listed["Key"],
        id=listed["VersionId"],
        bytes=listed.get("Size", 0),
        modified_at=listed["LastModified"].astimezone(UTC),
        is_latest=listed["IsLatest"],
        is_marker=is_marker,
    )
