"""Where a repository's bytes live: what every kind of storage promises; one module per kind.

Keys are relative to the repository, with ``/`` between segments; a folder is what precedes a ``/`` in keys.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol
from urllib.parse import unquote, urlsplit

from opsctl.errors import ConfigurationError

if TYPE_CHECKING:
    from opsctl.settings import RepositorySettings


FOREVER = datetime.max.replace(tzinfo=UTC)
"""Until when something is locked that has no end."""


def locked_text(until: datetime) -> str:
    """A lock in words."""
    return "has a legal hold" if until == FOREVER else f"is locked until {until:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Entry:
    """One stored file, or one that is being written; its time is the service's own.

    ``version`` changes with what is in it, where the storage tells such a thing.
    """

    key: str
    bytes: int
    modified_at: datetime
    version: str | None = None


TrialStatus = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Trial:
    """What one attempt showed about a storage. ``vital``: without it nothing can be backed up to it."""

    id: str
    status: TrialStatus
    message: str
    hint: str | None = None
    vital: bool = False


TRIAL_PREFIX = ".opsctl-trial-"


def new_trial() -> str:
    """A name for what is written to see whether it can be."""
    return f"{TRIAL_PREFIX}{secrets.token_hex(8)}"


class Writer(Protocol):
    """A file being written."""

    def write(self, data: bytes, /) -> object:
        """Take ``data`` in any sizes. Raises RepositoryUnreachable, also for what was taken earlier."""


class Publication(Protocol):
    """A folder on its way. It counts once :meth:`publish` has returned; until then :meth:`abandon` takes it back."""

    def file(self, name: str) -> AbstractContextManager[Writer]:
        """One file of the folder, stored for good and with the right size when the context ends without an error."""

    def publish(self, name: str, data: bytes) -> None:
        """Write the last file, create-only. Raises FileExistsError when the folder is taken."""

    def abandon(self) -> None:
        """Remove what was written, as far as the storage lets us; never raises, never touches what is published."""


class Storage(Protocol):
    """Files by key.

    Every method raises RepositoryUnreachable, with a hint, when the storage refuses or does not answer.
    tests/storage/test_contract.py is this docstring as tests.
    """

    @property
    def address(self) -> str:
        """The repository as messages name it; holds no secret."""

    def prepare(self) -> bool:
        """Make ready for the first file; whether nothing was there before."""

    def secrets(self) -> Iterable[str]:
        """What may never be shown. Does not raise: what cannot be found out is not used either."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Every file in the folder ``prefix`` and below it, those being written included; none if it is not there."""

    def folders(self, prefix: str = "") -> list[str]:
        """The folders directly below ``prefix``, those being written included, sorted."""

    def tree(self, prefix: str) -> dict[str, list[Entry]]:
        """Both at once: those folders, sorted, each with every file in it and below it."""

    def unpublished(self, folder: str) -> str | None:
        """The name that such a folder will be published under, if its own says that it is not."""

    def modified_at(self, prefix: str) -> datetime:
        """When something was last written to a folder; the epoch when it is gone."""

    def open(self, key: str) -> BinaryIO:
        """A file for reading from its beginning, in bounded memory. Raises FileNotFoundError when there is none."""

    def read(self, key: str) -> bytes:
        """A small file, whole. Raises FileNotFoundError when there is none."""

    def create(self, key: str, data: bytes) -> None:
        """Write a small file, whole or not at all. Raises FileExistsError rather than replace one.

        Of several that create the same one at once exactly one succeeds, except on S3 services without conditional
        writes (docs/repository-format.md): there the last one stays, whole.
        """

    def delete(self, key: str) -> None:
        """Remove a file with all its versions; none to remove is fine.

        Raises RemovalRefused, having removed nothing, while one of them is locked or when we may not delete.
        """

    def delete_folder(self, prefix: str) -> None:
        """Remove a folder with everything in it, what is being written included; none to remove is fine.

        Raises RemovalRefused, having removed nothing, while a file in it is locked; also when we may not delete.
        """

    def begin(self, folder: str, *, retain_until: datetime | None = None) -> Publication:
        """Begin to write a folder that will appear as a whole.

        Once published, none of its files can be removed before ``retain_until``, where the storage has such locks;
        elsewhere, and for a time that is over, it means nothing.
        Raises FileExistsError when somebody is seen to be writing it; one that is there already may show only when
        it is published.
        """

    def locked_until(self, folder: str) -> datetime | None:
        """The last moment a file in a folder is locked, FOREVER for a hold without an end; None if none is."""

    def extend_lock(self, folder: str, until: datetime) -> None:
        """Make the locks that files of a folder have last until then; none becomes shorter, none is added."""

    def hidden(self, prefix: str = "") -> Iterator[Entry]:
        """Files that are there only as earlier versions, below a delete marker; none where versions are not kept."""

    def examine(self) -> Iterator[Trial]:
        """Try everything that opsctl does with a storage, and look at what endangers backups in it; leave nothing.

        Raises nothing: what does not work is a trial that failed.
        """

    def free_bytes(self) -> int | None:
        """The room left, where there is such a thing."""

    def try_write(self) -> None:
        """Write a few bytes and take them back: nobody can see them, no version and no lock of them stays.

        Raises RemovalRefused, having written nothing, where they could not be taken back.
        """

    def remove_trials(self, before: datetime) -> None:
        """Remove what trials that were killed have left, as far as it was written ``before``."""

    def now(self) -> datetime | None:
        """The clock of the service, where it has one of its own; to the second."""


def open_storage(url: str, settings: "RepositorySettings | None" = None) -> Storage:
    """The storage behind a repository's ``url``. Nothing is read or written yet. Raises ConfigurationError."""
    from opsctl.storage.local import LocalStorage

    if "://" not in url:
        return LocalStorage(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return LocalStorage(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from opsctl.storage.s3 import s3_storage

        return s3_storage(url, settings)
    raise ConfigurationError(
        f"There is no storage for {parts.scheme}:// addresses.",
        hint="A repository's url is a path, file:///path or s3://bucket/prefix.",
    )
