"""One backup on its way into several repositories at once; one that fails does not stop the others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from opsctl.errors import RepositoryUnreachable
from opsctl.manifest import Manifest
from opsctl.repository import Repository, Upload
from opsctl.stream import Writer


class Uploads:
    """The uploads still alive, and the error of each that is not.

    Every method raises RepositoryUnreachable once none is left. Leave through :meth:`publish` or :meth:`abandon`.
    """

    def __init__(
        self, repositories: Sequence[Repository], database: str, backup_id: str, *, created_at: datetime
    ) -> None:
        self.failures: dict[str, RepositoryUnreachable] = {}
        self._uploads: dict[str, Upload] = {}
        try:
            for repository in repositories:
                with self.surviving(repository.name):
                    self._uploads[repository.name] = repository.begin(database, backup_id, created_at=created_at)
            self.require_one()
        except BaseException:
            self.abandon()
            raise

    @contextmanager
    def file(self, name: str) -> Iterator[Writer]:
        """One file, written to every upload; on their disks when the context ends."""
        opened = {}
        for repository, upload in list(self._uploads.items()):
            with self.surviving(repository):
                context = upload.file(name)
                opened[repository] = (context, context.__enter__())
        self.require_one()
        writer = _FanOut(self, {repository: each for repository, (_, each) in opened.items()})
        try:
            yield writer
        except BaseException as error:
            for context, _ in opened.values():
                context.__exit__(type(error), error, error.__traceback__)
            raise
        for repository, (context, _) in opened.items():
            with self.surviving(repository):
                context.__exit__(None, None, None)
        self.require_one()

    def publish(self, manifest: Manifest) -> list[str]:
        """Let the backup exist; the names of the repositories that have it."""
        for repository, upload in list(self._uploads.items()):
            with self.surviving(repository):
                upload.publish(manifest)
        self.require_one()
        return list(self._uploads)

    def abandon(self) -> None:
        """Remove what was written everywhere."""
        for upload in self._uploads.values():
            upload.abandon()
        self._uploads.clear()

    @contextmanager
    def surviving(self, repository: str) -> Iterator[None]:
        """Record the failure of one repository, and drop what it has got so far."""
        try:
            yield
        except RepositoryUnreachable as error:
            self.failures[repository] = error
            upload = self._uploads.pop(repository, None)
            if upload is not None:
                upload.abandon()

    def require_one(self) -> None:
        """Raise the first failure when no repository is left."""
        if not self._uploads:
            raise next(iter(self.failures.values()))


class _FanOut:
    def __init__(self, uploads: Uploads, writers: dict[str, Writer]) -> None:
        self._uploads = uploads
        self._writers = writers

    def write(self, data: bytes) -> None:
        for repository, writer in list(self._writers.items()):
            with self._uploads.surviving(repository):
                writer.write(data)
            if repository in self._uploads.failures:
                del self._writers[repository]
        self._uploads.require_one()
