"""Where large files lie for a while on this host: dumps taken with several sessions, archives read by several.

A folder there is locked for as long as anybody works in it, opsctl or a program it has started. One that nobody holds
is of a run that was killed: the next one removes it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from opsctl.amounts import size
from opsctl.errors import ConfigurationError, Refused

SPOOL = "spool"
"""Where they lie in the state folder, if nothing else is configured."""

PREFIX = "opsctl-staging-"


@dataclass(frozen=True)
class StagingFolder:
    """A private folder. ``lock`` is an open file: a program that inherits it holds the folder, too."""

    path: Path
    lock: int


@dataclass(frozen=True)
class Staging:
    """The place for them, below ``path``."""

    path: Path

    @contextmanager
    def folder(self, needed_bytes: int, *, doing: str, hint: str) -> Iterator[StagingFolder]:
        """A new folder, removed at the end. Raises Refused when ``needed_bytes`` of disk are not free."""
        self._prepare(needed_bytes, doing=doing, hint=hint)
        with self._turn():
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.path))
            lock = _locked(path)
        try:
            yield StagingFolder(path, lock)
        finally:
            shutil.rmtree(path, ignore_errors=True)  # what a dying program has added meanwhile, the next run removes
            os.close(lock)

    @contextmanager
    def file(self, needed_bytes: int, *, doing: str, hint: str) -> Iterator[IO[bytes]]:
        """A new file without a name: gone however we end. Raises Refused when ``needed_bytes`` are not free."""
        self._prepare(needed_bytes, doing=doing, hint=hint)
        with tempfile.TemporaryFile(dir=self.path) as file:
            yield file

    def remove_leftovers(self) -> list[str]:
        """Remove what killed runs have left, and name it; what others work in stays."""
        removed: list[str] = []
        if not self.path.is_dir():
            return removed
        with suppress(ConfigurationError), self._turn():  # whoever needs the place will hear of it
            for path in sorted(self.path.glob(f"{PREFIX}*")):
                with suppress(OSError):
                    lock = _locked(path)
                    try:
                        shutil.rmtree(path)
                        removed.append(path.name)
                    finally:
                        os.close(lock)
        return removed

    def require_room(self, needed_bytes: int, *, doing: str, hint: str) -> None:
        """Raises Refused when ``needed_bytes`` of disk are not free, ConfigurationError where there can be no files."""
        with self.mapped():
            there = next(each for each in (self.path, *self.path.parents) if each.exists())
            status = os.statvfs(there)
        free = status.f_bavail * status.f_frsize
        if free < needed_bytes:
            raise Refused(
                f"There are {size(free)} of free disk in {self.path}, and {doing} needs about {size(needed_bytes)}.",
                hint=hint,
            )

    def _prepare(self, needed_bytes: int, *, doing: str, hint: str) -> None:
        self.remove_leftovers()
        with self.mapped():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.require_room(needed_bytes, doing=doing, hint=hint)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One at a time: a folder that was just made is not locked yet."""
        with self.mapped():
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """What the disk refuses, a file that has no room any more included, as ConfigurationError."""
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"The folder for large temporary files, {self.path}, cannot be used: {error.strerror}.",
                hint="Set staging_path in [state] to a folder this user owns.",
            ) from error


def _locked(path: Path) -> int:
    """An open file that holds the lock of a folder. Raises OSError when somebody else does, or it is no folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
