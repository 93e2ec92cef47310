"""How a bucket is reached: the options, and boto3's session and client for them."""

import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from opsctl.errors import RepositoryUnreachable

ATTEMPTS = 5
CONNECTIONS = 16

AddressingStyle = Literal["auto", "path", "virtual"]
ObjectLock = Literal["off", "governance", "compliance"]


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
    object_lock: ObjectLock = "off"
    connect_timeout_seconds: float = 10
    read_timeout_seconds: float = 60


class S3Connection:
    """A session and a client, made when they are first asked for."""

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._opening = threading.Lock()
        self._session: Any = None
        self._client: Any = None

    @property
    def endpoint(self) -> str:
        """The service's address as far as it is known."""
        known: str | None = self._client.meta.endpoint_url if self._client is not None else self._options.endpoint_url
        return known or "AWS"

    def secrets(self) -> tuple[str, ...]:
        """What may never be shown; nothing where it cannot be found out: the first request says what is wrong."""
        from botocore.exceptions import BotoCoreError

        try:
            credentials = self.session.get_credentials()
            frozen = credentials.get_frozen_credentials() if credentials else None
        except (BotoCoreError, OSError, ValueError):
            return ()
        return tuple(secret for secret in (frozen.secret_key, frozen.token) if secret) if frozen else ()

    @property
    def client(self) -> Any:
        """The client, made when it is first asked for; it may be used by several threads."""
        session = self.session
        with self._opening:
            if self._client is None:
                self._client = self._new_client(session)
            return self._client

    @property
    def session(self) -> Any:
        with self._opening:
            if self._session is None:
                import boto3
                from botocore.session import get_session

                core = get_session()
                # Half of the time that a long listing takes to be read would go into its times.
                core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
                self._session = boto3.Session(
                    botocore_session=core,
                    profile_name=self._options.profile or None,
                    region_name=self._options.region or None,
                )
            return self._session

    def _new_client(self, session: Any) -> Any:
        from botocore.config import Config

        options = self._options
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
                # Many services know no trailing checksums: Content-MD5 covers the bytes of every put instead, and over
                # http their signature.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def _time(value: Any) -> datetime:
    """A time as services write it: RFC 3339 in listings, and in other places what botocore knows."""
    from botocore.utils import parse_timestamp

    if isinstance(value, str) and value[10:11] == "T":
        with suppress(ValueError):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    parsed: datetime = parse_timestamp(value)
    return parsed
