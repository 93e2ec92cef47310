"""A bucket of any S3-compatible service as storage, through boto3.

There are no folders to rename here: a publication's files get their final keys as they are completed, and the folder
counts once its last file is there (for a backup: the manifest). docs/repository-format.md tells what that means.

A multipart upload that is under way is listed as the file it will be, with the bytes and the time of its newest part:
so an interrupted one is seen, and one that still grows is known to be alive.
"""

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast

from opsctl.errors import ConfigurationError, RepositoryUnreachable
from opsctl.storage import Entry

if TYPE_CHECKING:
    from opsctl.config import RepositorySettings

MIB = 1 << 20
PART_BYTES = 16 * MIB
PARTS_PER_SIZE = 1000
LARGEST_PART_BYTES = 1088 * MIB
"""Parts double every thousand: 16 MiB up to 15 GiB, 32 MiB up to 46 GiB; at this size 10,000 of them hold 5 TiB."""

UPLOAD_BYTES = 96 * MIB
UPLOADS = 4
"""How much of one stream is held in memory, and in how many parts on their way at once; never fewer than one."""

RANGE_BYTES = 8 * MIB
RANGES_AHEAD = 3
"""How a file is read: this many ranges are fetched while one is consumed."""

ATTEMPTS = 5
CONNECTIONS = 16
ABANDON_SECONDS = 5
"""How long an abandoned upload waits for the parts that are on their way, to abort again what they left."""

T = TypeVar("T")
AddressingStyle = Literal["auto", "path", "virtual"]


@dataclass(frozen=True)
class S3Options:
    """How a bucket is reached, and what its objects are stored as; None leaves it to AWS's own configuration."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: AddressingStyle = "auto"
    storage_class: str | None = None
    server_side_encryption: str | None = None
    kms_key_id: str | None = None
    ca_bundle: Path | None = None
    connect_timeout_seconds: float = 10
    read_timeout_seconds: float = 60


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
    )
    return S3Storage(bucket, prefix, options)


class S3Storage:
    """The objects of ``bucket`` below ``prefix``. The bucket has to exist."""

    def __init__(self, bucket: str, prefix: str = "", options: S3Options | None = None) -> None:
        self.bucket = bucket
        self.options = options or S3Options()
        self._prefix = "".join(f"{part}/" for part in prefix.split("/") if part)
        self._opening = threading.Lock()
        self._session: Any = None
        self._client: Any = None

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    def prepare(self) -> bool:
        """Whether there is nothing yet; the bucket itself is the operator's to create."""
        with self._mapped("list"):
            answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)
        return not answer.get("Contents")

    def secrets(self) -> tuple[str, ...]:
        """The secret key and the session token, wherever boto3 finds them."""
        from botocore.exceptions import BotoCoreError

        try:
            credentials = self._opened_session().get_credentials()
            frozen = credentials.get_frozen_credentials() if credentials else None
        except (BotoCoreError, OSError, ValueError):
            return ()  # the first request says what is wrong
        return tuple(secret for secret in (frozen.secret_key, frozen.token) if secret) if frozen else ()

    # Looking

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Objects, then the uploads under way."""
        inside = self._inside(prefix)
        with self._mapped("list"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=inside)
            for page in pages:
                for each in page.get("Contents", ()):
                    if not each["Key"].endswith("/"):  # what browsers of buckets leave as a "folder"
                        yield Entry(self._relative(each["Key"]), each["Size"], each["LastModified"].astimezone(UTC))
        for upload in self._uploads(inside):
            yield self._entry_of(upload)

    def folders(self, prefix: str = "") -> list[str]:
        inside = self._inside(prefix)
        names = set()
        with self._mapped("list"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=inside, Delimiter="/"
            )
            for page in pages:
                names |= {each["Prefix"].removeprefix(inside).rstrip("/") for each in page.get("CommonPrefixes", ())}
        for upload in self._uploads(inside):
            name, separator, _ = upload["Key"].removeprefix(inside).partition("/")
            names |= {name} if separator else set()
        return sorted(names - {""})

    def unpublished(self, folder: str) -> str | None:  # noqa: ARG002
        """Nothing: a folder has its name from the first file on."""
        return None

    def modified_at(self, prefix: str) -> datetime:
        return max((each.modified_at for each in self.entries(prefix)), default=datetime.fromtimestamp(0, UTC))

    def _uploads(self, inside: str) -> list[dict[str, Any]]:
        """The multipart uploads under way; none where the service, or its policy, does not list them."""
        from botocore.exceptions import ClientError

        found: list[dict[str, Any]] = []
        with self._mapped("list"):
            try:
                pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=inside)
                for page in pages:
                    found += [each for each in page.get("Uploads", ()) if each["Key"].startswith(inside)]
            except ClientError as error:
                if _code(error) != "NoSuchUpload" and _status(error) not in {400, 403, 405, 501}:
                    raise
        return found

    def _entry_of(self, upload: dict[str, Any]) -> Entry:
        size, newest = 0, upload["Initiated"].astimezone(UTC)
        with suppress(FileNotFoundError), self._mapped("list", upload["Key"]):  # completed or aborted meanwhile
            pages = self.client.get_paginator("list_parts").paginate(
                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
            for page in pages:
                for part in page.get("Parts", ()):
                    size += part["Size"]
                    newest = max(newest, part["LastModified"].astimezone(UTC))
        return Entry(self._relative(upload["Key"]), size, newest)

    # Reading

    def open(self, key: str) -> BinaryIO:
        return cast("BinaryIO", _Reader(self, key))

    def read(self, key: str) -> bytes:
        return self.fetch(key).data

    def fetch(self, key: str, start: int = 0, end: int | None = None) -> "_Fetched":
        """The bytes from ``start`` to before ``end``, or to the object's end: one that breaks off is continued."""
        data, etag, total = bytearray(), None, 0
        for last_attempt in _attempts():
            with self._mapped("read", key):
                answer = self._get(key, start + len(data), end)
            total = _total_bytes(answer)
            self._require_same(key, etag, answer)
            etag = answer.get("ETag")
            with self._mapped("read"), _unless(last_attempt, _broken_off()), closing(answer["Body"]) as body:
                while chunk := body.read(MIB):
                    data += chunk
            if len(data) >= (total if end is None else min(end, total)) - start:
                return _Fetched(bytes(data), total, etag)
        raise RepositoryUnreachable(
            f"{key} in {self.address} breaks off after {len(data)} bytes.",
            hint="The service, or what lies between, ends its answers early; run it again.",
        )

    def _get(self, key: str, start: int, end: int | None) -> Any:
        whole = start == 0 and end is None
        wanted = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key), **wanted)
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
        """By a conditional put; where a service has none: look, put, and read back what is there then.

        Reading back also settles what a repeated request leaves open: its first try may have been the one that won.
        """
        if self._is_there(key):
            raise FileExistsError(key)
        refused = False
        with self._mapped("write"):
            try:
                self._put(key, data, IfNoneMatch="*")
            except self.client.exceptions.ClientError as error:
                if _status(error) in {409, 412}:
                    refused = True
                elif _status(error) in {400, 501} and _code(error) not in _MESSAGES:
                    self._put(key, data)
                else:
                    raise
        try:
            mine = self.read(key) == data and (data or not refused)  # of two empty files none is anybody's own
        except FileNotFoundError:
            mine = False
        if not mine:
            raise FileExistsError(key)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), self._mapped("delete", key):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def delete_folder(self, prefix: str) -> None:
        """One by one: not every service can delete many at once."""
        inside = self._inside(prefix)
        for upload in self._uploads(inside):
            self.abort(upload["Key"], upload["UploadId"])
            self.delete(self._relative(upload["Key"]))  # services on files keep an empty folder otherwise
        with self._mapped("list"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=inside)
            keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        for key in keys:
            self.delete(self._relative(key))

    def begin(self, folder: str) -> "S3Publication":
        if next(self.entries(folder), None) is not None:
            raise FileExistsError(folder)
        return S3Publication(self, folder)

    def free_bytes(self) -> None:
        """A bucket has no end."""
        return

    # What the publication needs

    def put_file(self, key: str, data: bytes) -> None:
        with self._mapped("write"):
            self._put(key, data, **self._storage_class())

    def start_upload(self, key: str) -> str:
        with self._mapped("write"):
            answer = self.client.create_multipart_upload(
                Bucket=self.bucket, Key=self._key(key), **self._encryption(), **self._storage_class()
            )
        return str(answer["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        with self._mapped("write"):
            answer = self.client.upload_part(
                Bucket=self.bucket, Key=self._key(key), UploadId=upload, PartNumber=number, Body=data
            )
        return str(answer["ETag"])

    def complete_upload(self, key: str, upload: str, etags: list[str]) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        # A repeated request finds no upload any more when the first one had completed it: the size decides.
        with suppress(FileNotFoundError), self._mapped("write", key):
            self.client.complete_multipart_upload(
                Bucket=self.bucket, Key=self._key(key), UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def require_size(self, key: str, size: int) -> None:
        """Raise RepositoryUnreachable unless an object of that size is there: no service is trusted to have checked."""
        try:
            with self._mapped("read", key):
                found = self.client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]
        except FileNotFoundError:
            found = "none"
        if found != size:
            raise RepositoryUnreachable(
                f"{self.address} has {found} of the {size} bytes written to {key}.",
                hint="The service lost a part of it, or a rule of the bucket aborted the upload.",
            )

    def abort(self, full_key: str, upload: str) -> None:
        with suppress(FileNotFoundError), self._mapped("delete", full_key):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=full_key, UploadId=upload)

    def full_key(self, key: str) -> str:
        return self._key(key)

    # Keys, objects, the client

    def _key(self, key: str) -> str:
        return self._prefix + key

    def _relative(self, full_key: str) -> str:
        return full_key.removeprefix(self._prefix)

    def _inside(self, folder: str) -> str:
        folder = folder.strip("/")
        return self._key(f"{folder}/") if folder else self._prefix

    def _is_there(self, key: str) -> bool:
        try:
            with self._mapped("read", key):
                self.client.head_object(Bucket=self.bucket, Key=self._key(key))
        except FileNotFoundError:
            return False
        return True

    def _put(self, key: str, data: bytes, **more: Any) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **self._encryption(), **more)

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
        """The client, made when it is first asked for; it may be used by several threads."""
        session = self._opened_session()
        with self._opening:
            if self._client is None:
                self._client = self._new_client(session)
            return self._client

    def _opened_session(self) -> Any:
        with self._opening:
            if self._session is None:
                import boto3

                self._session = boto3.Session(
                    profile_name=self.options.profile or None, region_name=self.options.region or None
                )
            return self._session

    def _new_client(self, session: Any) -> Any:
        from botocore.config import Config

        options = self.options
        if options.ca_bundle is not None and not options.ca_bundle.is_file():
            raise RepositoryUnreachable(f"There is no file {options.ca_bundle}.", hint="Correct ca_bundle.")
        style: str = options.addressing_style
        if style == "auto" and options.endpoint_url:
            style = "path"  # the other needs a DNS name per bucket, which few servers but AWS's have
        return session.client(
            "s3",
            region_name=session.region_name or "us-east-1",
            endpoint_url=options.endpoint_url,
            verify=str(options.ca_bundle) if options.ca_bundle else None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": style},
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                connect_timeout=options.connect_timeout_seconds,
                read_timeout=options.read_timeout_seconds,
                max_pool_connections=CONNECTIONS,
                tcp_keepalive=True,
                # Many services know no trailing checksums. The signature covers the bytes of every request instead.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @contextmanager
    def _mapped(self, doing: str, key: str | None = None) -> Iterator[None]:
        """boto3's errors as ours; with a ``key``, the lack of it is FileNotFoundError."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            if key is not None and _code(error) in {"404", "NoSuchKey", "NoSuchUpload"}:
                raise FileNotFoundError(ENOENT, "There is no such object", key) from error
            raise self._refused(doing, error) from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise self._failed(doing, error) from error

    def _refused(self, doing: str, error: Any) -> RepositoryUnreachable:
        """What the service answered."""
        code, status = _code(error), _status(error)
        answer = error.response.get("Error", {})
        said = str(answer.get("Message") or "no reason given").rstrip(".")
        explained = _MESSAGES.get(code)
        if explained is None and status in {401, 403}:
            explained = _MESSAGES["AccessDenied"]
        if explained is None and status >= 500:
            explained = _MESSAGES["SlowDown"]
        what, hint = explained or (
            "the service answered {code}: {said}",
            "Look the code up in the service's documentation.",
        )
        facts = {
            "bucket": self.bucket,
            "endpoint": self._endpoint,
            "code": code,
            "status": status,
            "said": said,
            "operation": error.operation_name,
            "region": answer.get("Region")
            or error.response.get("ResponseMetadata", {})
            .get("HTTPHeaders", {})
            .get("x-amz-bucket-region", "another one"),
            "skew": _skew(error),
        }
        return RepositoryUnreachable(
            f"Cannot {doing} in the repository {self.address}: {what.format(**facts)}.", hint=hint.format(**facts)
        )

    def _failed(self, doing: str, error: Exception) -> RepositoryUnreachable:
        """What kept a request from being answered."""
        from botocore import exceptions

        endpoint = self._endpoint
        what, hint = str(error).rstrip("."), "Check url, endpoint_url and region of this repository."
        if isinstance(error, exceptions.ProfileNotFound):
            hint = "profile names a section of ~/.aws/config or ~/.aws/credentials."
        elif isinstance(
            error,
            exceptions.NoCredentialsError
            | exceptions.PartialCredentialsError
            | exceptions.CredentialRetrievalError
            | exceptions.TokenRetrievalError,
        ):
            what = f"there are no usable credentials ({what})"
            hint = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile."
        elif isinstance(error, exceptions.SSLError):
            what = f"no trusted TLS connection to {endpoint} ({what})"
            hint = "For a certificate authority of your own, name its certificates in ca_bundle."
        elif isinstance(error, exceptions.ConnectTimeoutError | exceptions.ReadTimeoutError):
            what = f"{endpoint} does not answer in time"
            hint = "Is the service up, and is there a firewall or a slow link in between?"
        elif isinstance(
            error,
            exceptions.EndpointConnectionError | exceptions.ConnectionClosedError | exceptions.ProxyConnectionError,
        ):
            what = f"no connection to {endpoint}, or it broke off"
            hint = "Is the service up, and endpoint_url right?"
        elif _is_broken_off(error):
            what = f"the connection to {endpoint} broke off"
            hint = "Is the link stable? Run it again."
        elif isinstance(error, exceptions.ResponseParserError):
            what = f"what {endpoint} answers is not S3"
            hint = "endpoint_url has to be the address of the S3 service, not of its console."
        return RepositoryUnreachable(f"Cannot {doing} in the repository {self.address}: {what}.", hint=hint)

    @property
    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url if self._client is not None else self.options.endpoint_url or "AWS"


_CREDENTIALS = (
    "the service refuses the credentials ({code})",
    "Check the access key and its secret: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile.",
)
_EXPIRED = ("the credentials have expired", "Renew the session's credentials.")
_REGION = ("the bucket {bucket} is in another region ({region})", "Set region to the bucket's own.")

_MESSAGES: dict[str, tuple[str, str]] = {
    "NoSuchBucket": (
        "there is no bucket {bucket} at {endpoint}",
        "Create it, or correct url, endpoint_url and region; opsctl creates no buckets.",
    ),
    "AccessDenied": (
        "the service denies {operation} ({said})",
        "These credentials need the right to {operation} in the bucket {bucket}; wrong ones are denied as well.",
    ),
    "InvalidObjectState": (
        "the object is archived, and cannot be read as it is",
        "Have the service bring it back (RestoreObject), then run it again.",
    ),
    "RequestTimeTooSkewed": (
        "this host's clock and the service's are {skew} apart",
        "Set this host's clock; run a time service.",
    ),
    "SlowDown": (
        "the service answers {status} {code}, also after several attempts",
        "It is overloaded or down; run it again later.",
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure", "InvalidClientTokenId"),
        _CREDENTIALS,
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), _EXPIRED),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IncorrectEndpoint"), _REGION),
}
"""What a service's code means and what to do about it."""


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _skew(error: Any) -> str:
    """How far apart the clocks are, as far as the answer tells."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        seconds = (datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return "too far"
    return f"{abs(seconds):.0f} seconds"


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


def _broken_off() -> tuple[type[Exception], ...]:
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return (HTTPClientError, IncompleteReadError, ConnectionError, TimeoutError)


def _is_broken_off(error: Exception) -> bool:
    return isinstance(error, _broken_off())


def _start(work: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Run in a thread that ends with the program: an interrupted run does not wait for a request to time out."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="s3", daemon=True).start()
    return future


# Writing


class S3Publication:
    """A folder on its way: its files are there as they end, and count when :meth:`publish` adds the last one."""

    def __init__(self, storage: S3Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self._files: list[S3File] = []
        self._last: tuple[str, bytes] | None = None
        self._done = False

    @contextmanager
    def file(self, name: str) -> Iterator["S3File"]:
        file = S3File(self._storage, f"{self._folder}/{name}")
        self._files.append(file)
        try:
            yield file
            file.finish()
        except BaseException:
            file.remove()
            raise

    def publish(self, name: str, data: bytes) -> None:
        key = f"{self._folder}/{name}"
        self._last = key, data
        try:
            self._storage.create(key, data)
        except FileExistsError:
            self._last, self._done = None, True  # another run's: our files may have become its own
            raise
        self._done = True

    def abandon(self) -> None:
        """As removal always goes: what makes the folder count first. While that cannot be told, everything stays."""
        if self._done:
            return
        with suppress(RepositoryUnreachable):
            if self._last is not None:
                key, data = self._last
                with suppress(FileNotFoundError):
                    if self._storage.read(key) != data:
                        return
                    self._storage.delete(key)
            for file in self._files:
                file.remove()
        self._done = True


class S3File:
    """One object being written: by one put if it is small, else by parts that are on their way side by side."""

    def __init__(self, storage: S3Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._buffer = io.BytesIO()
        self._size = 0
        self._upload: str | None = None
        self._parts: list[Future[str]] = []
        self._stored = False
        self._failure: RepositoryUnreachable | None = None

    def write(self, data: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        view = memoryview(data)
        while view:
            room = _part_bytes(len(self._parts)) - self._buffer.tell()
            self._buffer.write(view[:room])
            self._size += len(view[:room])
            view = view[room:]
            if self._buffer.tell() == _part_bytes(len(self._parts)):
                with self._failing():
                    self._send()

    def finish(self) -> None:
        """Store what is left, and see that all of it is there."""
        if self._failure is not None:
            raise self._failure
        with self._failing():
            if self._upload is None:
                self._stored = True
                self._storage.put_file(self._key, self._buffer.getvalue())
            else:
                if self._buffer.tell():
                    self._send()
                etags = [part.result() for part in self._parts]
                self._stored = True
                self._storage.complete_upload(self._key, self._upload, etags)
            self._storage.require_size(self._key, self._size)

    def remove(self) -> None:
        """Take back what was written, once; writing on fails from here on."""
        upload, stored = self._upload, self._stored
        self._upload, self._stored, self._buffer = None, False, io.BytesIO()
        self._failure = self._failure or RepositoryUnreachable(
            f"The upload of {self._key} to {self._storage.address} was given up.", hint="Run it again."
        )
        with suppress(RepositoryUnreachable):
            if upload is not None:
                full_key = self._storage.full_key(self._key)
                self._storage.abort(full_key, upload)
                if not all(part.done() for part in self._parts):
                    wait(self._parts, timeout=ABANDON_SECONDS)
                    self._storage.abort(full_key, upload)  # a part that was on its way may have come after the first
            if stored or upload is not None:  # also where services on files made a folder for it
                self._storage.delete(self._key)

    def _send(self) -> None:
        body = self._buffer.getvalue()
        self._buffer = io.BytesIO()
        if self._upload is None:
            self._upload = self._storage.start_upload(self._key)
        self._wait_for_room(len(body))
        number = len(self._parts) + 1
        self._parts.append(_start(self._storage.put_part, self._key, self._upload, number, body))

    def _wait_for_room(self, size: int) -> None:
        """Until this part, the next one and those on their way fit; raises what went wrong with any."""
        together = max(1, min(UPLOADS, UPLOAD_BYTES // size - 1))
        for part in self._parts:
            if part.done():
                part.result()
        while len(on_their_way := [part for part in self._parts if not part.done()]) >= together:
            for part in wait(on_their_way, return_when=FIRST_COMPLETED).done:
                part.result()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RepositoryUnreachable as error:
            self._failure = error
            raise


def _part_bytes(sent: int) -> int:
    return min(PART_BYTES << (sent // PARTS_PER_SIZE), LARGEST_PART_BYTES)


# Reading


@dataclass(frozen=True)
class _Fetched:
    data: bytes
    total: int
    etag: str | None


class _Reader(io.RawIOBase):
    """An object read from its beginning, a few ranges ahead."""

    def __init__(self, storage: S3Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        first = self._first()
        self._total, self._etag = first.total, first.etag
        self._current = memoryview(first.data)
        self._fetched_to = len(first.data)
        self._ahead: list[Future[_Fetched]] = []

    def _first(self) -> _Fetched:
        try:
            return self._storage.fetch(self._key, 0, RANGE_BYTES)
        except RepositoryUnreachable as error:
            # No range of an empty object exists.
            if _status_of_cause(error) != 416:
                raise
            return self._storage.fetch(self._key)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._current:
            self._fetch_ahead()
            if not self._ahead:
                return 0
            fetched = self._ahead.pop(0).result()
            if fetched.etag != self._etag:
                raise RepositoryUnreachable(
                    f"{self._key} in {self._storage.address} changed while it was read.", hint="Run it again."
                )
            self._current = memoryview(fetched.data)
        self._fetch_ahead()
        count = min(len(buffer), len(self._current))
        buffer[:count] = self._current[:count]
        self._current = self._current[count:]
        return count

    def _fetch_ahead(self) -> None:
        while len(self._ahead) < RANGES_AHEAD and self._fetched_to < self._total:
            end = min(self._fetched_to + RANGE_BYTES, self._total)
            self._ahead.append(_start(self._storage.fetch, self._key, self._fetched_to, end))
            self._fetched_to = end

    def close(self) -> None:
        self._ahead = []
        super().close()


def _status_of_cause(error: Exception) -> int:
    cause = error.__cause__
    return _status(cause) if cause is not None and hasattr(cause, "response") else 0
