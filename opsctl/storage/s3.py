"""A bucket of any S3-compatible service as storage, through boto3.

There are no folders to rename here: a publication's files get their final keys as they are completed, and the folder
counts once its last file is there (for a backup: the manifest). docs/repository-format.md tells what that means.

A multipart upload that is under way is listed as the file it will be, with the bytes and the time of its newest part:
so an interrupted one is seen, and one that still grows is known to be alive.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from errno import ENOENT
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from opsctl.errors import ConfigurationError, RepositoryUnreachable
from opsctl.storage import Entry, Trial, new_trial
from opsctl.storage.s3_connection import ATTEMPTS, S3Connection, S3Options
from opsctl.storage.s3_errors import (
    CHANGED_ON_THE_WAY,
    MESSAGES,
    Place,
    broken_off,
    error_code,
    failed,
    http_status,
    refused,
    service_time,
)
from opsctl.storage.s3_transfer import MIB, Fetched, S3Publication, S3Reader, content_md5, status_of_cause
from opsctl.storage.s3_versions import S3Versions, Version

if TYPE_CHECKING:
    from opsctl.settings import RepositorySettings


def s3_storage(url: str, settings: "RepositorySettings | None" = None) -> "S3Storage":
    """The bucket and prefix of ``s3://bucket/prefix``, as they are written. Raises ConfigurationError."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket or any(character in bucket for character in "@?#:%"):
        raise ConfigurationError(f"{url!r} names no bucket.", hint="Write s3://bucket/prefix.")
    if settings is None:
        return S3Storage(bucket, prefix)
    options = S3Options(
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        profile=settings.profile,
        addressing_style=settings.addressing_style,
        storage_class=settings.storage_class,
        server_side_encryption=settings.server_side_encryption,
        kms_key_id=settings.kms_key_id,
        ca_bundle=settings.ca_bundle,
        object_lock=settings.object_lock,
    )
    return S3Storage(bucket, prefix, options)


class S3Storage:
    """The objects of ``bucket`` below ``prefix``. The bucket has to exist."""

    def __init__(self, bucket: str, prefix: str = "", options: S3Options | None = None) -> None:
        self.bucket = bucket
        self.options = options or S3Options()
        self._prefix = "".join(f"{part}/" for part in prefix.split("/") if part)
        self.connection = S3Connection(self.options)
        self.versions = S3Versions(self)

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    def prepare(self) -> bool:
        """Whether there is nothing yet; the bucket itself is the operator's to create."""
        with self.mapped("list"):
            answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)
        return not answer.get("Contents")

    def secrets(self) -> tuple[str, ...]:
        """The secret key and the session token, wherever boto3 finds them."""
        return self.connection.secrets()

    # Looking

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Objects, then the uploads under way."""
        inside = self._inside(prefix)
        with self.mapped("list"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=inside)
            for page in pages:
                for each in page.get("Contents", ()):
                    if not each["Key"].endswith("/"):  # what browsers of buckets leave as a "folder"
                        modified_at = each["LastModified"].astimezone(UTC)
                        yield Entry(self.relative(each["Key"]), each["Size"], modified_at, each.get("ETag"))
        for upload in self.uploads(inside):
            yield self._entry_of(upload)

    def folders(self, prefix: str = "") -> list[str]:
        inside = self._inside(prefix)
        names = set()
        with self.mapped("list"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=inside, Delimiter="/"
            )
            for page in pages:
                names |= {each["Prefix"].removeprefix(inside).rstrip("/") for each in page.get("CommonPrefixes", ())}
        for upload in self.uploads(inside):
            name, separator, _ = upload["Key"].removeprefix(inside).partition("/")
            names |= {name} if separator else set()
        return sorted(names - {""})

    def tree(self, prefix: str) -> dict[str, list[Entry]]:
        """By one listing: there are no folders without a file."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries(prefix):
            name, separator, _ = entry.key.removeprefix(f"{prefix}/").partition("/")
            if separator:
                found.setdefault(name, []).append(entry)
        return dict(sorted(found.items()))

    def unpublished(self, folder: str) -> str | None:  # noqa: ARG002
        """Nothing: a folder has its name from the first file on."""
        return None

    def modified_at(self, prefix: str) -> datetime:
        return max((each.modified_at for each in self.entries(prefix)), default=datetime.fromtimestamp(0, UTC))

    def uploads(self, inside: str) -> list[dict[str, Any]]:
        """The multipart uploads under way; none where the service, or its policy, does not list them."""
        from botocore.exceptions import ClientError

        found: list[dict[str, Any]] = []
        with self.mapped("list"):
            try:
                pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=inside)
                for page in pages:
                    found += [each for each in page.get("Uploads", ()) if each["Key"].startswith(inside)]
            except ClientError as error:
                if error_code(error) != "NoSuchUpload" and http_status(error) not in {400, 403, 405, 501}:
                    raise
        return found

    def _entry_of(self, upload: dict[str, Any]) -> Entry:
        size, newest = 0, upload["Initiated"].astimezone(UTC)
        with suppress(FileNotFoundError), self.mapped("list", upload["Key"]):  # completed or aborted meanwhile
            pages = self.client.get_paginator("list_parts").paginate(
                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
            for page in pages:
                for part in page.get("Parts", ()):
                    size += part["Size"]
                    newest = max(newest, part["LastModified"].astimezone(UTC))
        return Entry(self.relative(upload["Key"]), size, newest)

    # Reading

    def open(self, key: str) -> BinaryIO:
        return cast("BinaryIO", S3Reader(self, key))

    def read(self, key: str) -> bytes:
        return self.fetch(key).data

    def fetch(self, key: str, start: int = 0, end: int | None = None) -> Fetched:
        """The bytes from ``start`` to before ``end``, or to the object's end: one that breaks off is continued."""
        data, etag, total = bytearray(), None, 0
        for last_attempt in _attempts():
            with self.mapped("read", key):
                answer = self._get(key, start + len(data), end)
            total = _total_bytes(answer)
            self._require_same(key, etag, answer)
            etag = answer.get("ETag")
            with self.mapped("read"), _unless(last_attempt, broken_off()), closing(answer["Body"]) as body:
                while chunk := body.read(MIB):
                    data += chunk
            if len(data) >= (total if end is None else min(end, total)) - start:
                return Fetched(bytes(data), total, etag)
        raise RepositoryUnreachable(
            f"{key} in {self.address} breaks off after {len(data)} bytes.",
            hint="The service, or what lies between, ends its answers early; run it again.",
        )

    def _get(self, key: str, start: int, end: int | None) -> Any:
        whole = start == 0 and end is None
        wanted = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        answer = self.client.get_object(Bucket=self.bucket, Key=self.full_key(key), **wanted)
        if start and "ContentRange" not in answer:
            answer["Body"].close()
            raise RepositoryUnreachable(
                f"The service of {self.address} gives whole objects where parts were asked for.",
                hint="Ranged reads are needed of an S3 service.",
            )
        return answer

    def _require_same(self, key: str, etag: str | None, answer: Any) -> None:
        if etag not in {None, answer.get("ETag")}:
            answer["Body"].close()
            raise RepositoryUnreachable(f"{key} in {self.address} changed while it was read.", hint="Run it again.")

    # Writing

    def create(self, key: str, data: bytes) -> None:
        self.create_locked(key, data, None)

    def create_locked(self, key: str, data: bytes, until: datetime | None) -> None:
        """By a conditional put; where a service has none: look, put, and read back what is there then.

        Reading back also settles what a repeated request leaves open: its first try may have been the one that won.
        """
        if self._is_there(key):
            raise FileExistsError(key)
        lock = self.versions.lock_of_put(until)
        refused = False
        with self.mapped("write"):
            try:
                self.put_object(key, data, IfNoneMatch="*", **lock)
            except self.client.exceptions.ClientError as error:
                if http_status(error) in {409, 412}:
                    refused = True
                elif http_status(error) in {400, 501} and error_code(error) not in MESSAGES:
                    self.put_object(key, data, **lock)
                else:
                    raise
        try:
            mine = self.read(key) == data and (data or not refused)  # of two empty files none is anybody's own
        except FileNotFoundError:
            mine = False
        if not mine:
            raise FileExistsError(key)
        if until is not None:
            self.versions.lock(key, until)

    def delete(self, key: str) -> None:
        if self.versions.are_kept:
            versions = self.versions.of(key)
            self.versions.require_unlocked(versions)
            self.versions.remove(versions)
            return
        with suppress(FileNotFoundError), self.mapped("delete", key):
            self.client.delete_object(Bucket=self.bucket, Key=self.full_key(key))

    def delete_folder(self, prefix: str) -> None:
        """One by one: not every service can delete many at once."""
        inside = self._inside(prefix)
        versions = self.versions.below(inside) if self.versions.are_kept else []
        self.versions.require_unlocked(versions)
        for upload in self.uploads(inside):
            self.abort(upload["Key"], upload["UploadId"])
            self.delete(self.relative(upload["Key"]))  # services on files keep an empty folder otherwise
        if self.versions.are_kept:
            self.versions.remove(versions)
            return
        with self.mapped("list"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=inside)
            keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        for key in keys:
            self.delete(self.relative(key))

    def begin(self, folder: str, *, retain_until: datetime | None = None) -> S3Publication:
        """The locks come with the last file, so that what is abandoned can be removed."""
        if next(self.entries(folder), None) is not None:
            raise FileExistsError(folder)
        return S3Publication(self, folder, self.versions.planned_lock(retain_until))

    def free_bytes(self) -> None:
        """A bucket has no end."""
        return

    def now(self) -> datetime | None:
        """From the head of an answer; one that refuses has it as well."""
        with self.mapped("ask"):
            try:
                answer = self.client.head_bucket(Bucket=self.bucket)
            except self.client.exceptions.ClientError as error:
                answer = error.response
                if service_time(answer) is None:
                    raise
        return service_time(answer)

    # Versions and locks

    def locked_until(self, folder: str) -> datetime | None:
        return self.versions.locked_until(self._versions_below(folder))

    def extend_lock(self, folder: str, until: datetime) -> None:
        self.versions.extend(self._versions_below(folder), until)

    def hidden(self, prefix: str = "") -> Iterator[Entry]:
        yield from self.versions.hidden(self._versions_below(prefix))

    def _versions_below(self, folder: str) -> list[Version]:
        return self.versions.below(self._inside(folder)) if self.versions.are_kept else []

    # What the publication needs

    def put_file(self, key: str, data: bytes) -> None:
        with self.mapped("write"):
            self.put_object(key, data, **self._storage_class())

    def start_upload(self, key: str) -> str:
        with self.mapped("write"):
            answer = self.client.create_multipart_upload(
                Bucket=self.bucket, Key=self.full_key(key), **self._encryption(), **self._storage_class()
            )
        return str(answer["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: bytes | bytearray) -> str:
        target = {"Bucket": self.bucket, "Key": self.full_key(key), "UploadId": upload, "PartNumber": number}
        with self.mapped("write"):
            answer = self._send(self.client.upload_part, data, **target)
        return str(answer["ETag"])

    def complete_upload(self, key: str, upload: str, etags: list[str]) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        # A repeated request finds no upload any more when the first one had completed it: the size decides.
        with suppress(FileNotFoundError), self.mapped("write", key):
            self.client.complete_multipart_upload(
                Bucket=self.bucket, Key=self.full_key(key), UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def require_size(self, key: str, size: int) -> None:
        """Raise RepositoryUnreachable unless an object of that size is there: no service is trusted to have checked."""
        try:
            with self.mapped("read", key):
                found = self.client.head_object(Bucket=self.bucket, Key=self.full_key(key))["ContentLength"]
        except FileNotFoundError:
            found = "none"
        if found != size:
            raise RepositoryUnreachable(
                f"{self.address} has {found} of the {size} bytes written to {key}.",
                hint="The service lost a part of it, or a rule of the bucket aborted the upload.",
            )

    def try_write(self) -> None:
        """Begin an upload, send a part, abort: an object would leave a version behind, and a bucket's lock on it.

        Raises RemovalRefused, having begun nothing, where an upload could not be aborted.
        """
        key, upload = new_trial(), None
        whole = self.full_key(key)
        self._require_may_abort(whole)
        try:
            upload = self.start_upload(key)
            self.put_part(key, upload, 1, b"opsctl")
        except KeyboardInterrupt:
            if upload is None:  # begun perhaps, and the answer was not heard any more
                upload = next((each["UploadId"] for each in self.uploads(whole)), None)
            raise
        finally:
            if upload is not None:
                self.abort(whole, upload)

    def _require_may_abort(self, whole: str) -> None:
        """Tried on an upload that there is not."""
        try:
            self.abort(whole, "opsctl")
        except RepositoryUnreachable as error:
            if status_of_cause(error) != 400:  # some services say so of what is no id of theirs
                raise

    def remove_trials(self, before: datetime) -> None:
        from opsctl.storage.s3_check import remove_trials

        remove_trials(self, before)

    def examine(self) -> Iterator[Trial]:
        from opsctl.storage.s3_check import examine

        return examine(self)

    def abort(self, full_key: str, upload: str) -> None:
        with suppress(FileNotFoundError), self.mapped("delete", full_key):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=full_key, UploadId=upload)

    # Keys, objects, the client

    def full_key(self, key: str) -> str:
        return self._prefix + key

    def relative(self, full_key: str) -> str:
        return full_key.removeprefix(self._prefix)

    def _inside(self, folder: str) -> str:
        folder = folder.strip("/")
        return self.full_key(f"{folder}/") if folder else self._prefix

    def _is_there(self, key: str) -> bool:
        try:
            with self.mapped("read", key):
                self.client.head_object(Bucket=self.bucket, Key=self.full_key(key))
        except FileNotFoundError:
            return False
        return True

    def put_object(self, key: str, data: bytes, **more: Any) -> None:
        target = {"Bucket": self.bucket, "Key": self.full_key(key)}
        self._send(self.client.put_object, data, **target, **self._encryption(), **more)

    def _send(self, operation: Any, data: bytes | bytearray, **more: Any) -> Any:
        """A body with its MD5; sent again when the service says that it arrived changed."""
        digest = content_md5(data)
        for last_attempt in _attempts():
            try:
                return operation(Body=data, ContentMD5=digest, **more)
            except self.client.exceptions.ClientError as error:
                if last_attempt or error_code(error) not in CHANGED_ON_THE_WAY:
                    raise
        raise AssertionError  # the last attempt returns or raises

    def _encryption(self) -> dict[str, str]:
        wanted = {
            "ServerSideEncryption": self.options.server_side_encryption,
            "SSEKMSKeyId": self.options.kms_key_id,
        }
        return {name: value for name, value in wanted.items() if value}

    def _storage_class(self) -> dict[str, str]:
        """For the dumps alone: a manifest has to be readable at any time."""
        return {"StorageClass": self.options.storage_class} if self.options.storage_class else {}

    @property
    def client(self) -> Any:
        return self.connection.client

    @contextmanager
    def mapped(self, doing: str, key: str | None = None) -> Iterator[None]:
        """boto3's errors as ours; with a ``key``, the lack of it is FileNotFoundError."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            if key is not None and error_code(error) in {"404", "NoSuchKey", "NoSuchUpload"}:
                raise FileNotFoundError(ENOENT, "There is no such object", key) from error
            raise refused(self._place, doing, error) from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise failed(self._place, doing, error) from error

    @property
    def _place(self) -> Place:
        return Place(self.address, self.bucket, self.connection.endpoint)


def _total_bytes(answer: Any) -> int:
    """The size of the whole object, of which an answer may be a range."""
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    return int(total) if total.isdigit() else int(answer["ContentLength"])


# Trying again what boto3 does not: a body that breaks off


def _attempts() -> Iterator[bool]:
    """True for the last attempt; waits before each but the first."""
    for number in range(ATTEMPTS):
        if number:
            time.sleep(0.1 * 2**number)
        yield number == ATTEMPTS - 1


@contextmanager
def _unless(last: bool, transient: tuple[type[Exception], ...]) -> Iterator[None]:
    """Let a transient error pass as if nothing had happened, unless it is the ``last`` attempt's."""
    try:
        yield
    except transient:
        if last:
            raise
