"""A folder as storage.

What is published appears at once and whole: files are written into ``.<name>.partial``, flushed to the disk, and the
folder is renamed.
"""

import ctypes
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from opsctl.errors import RemovalRefused, RepositoryUnreachable
from opsctl.storage import TRIAL_PREFIX, Entry, Trial

PARTIAL = ".partial"
_name = attrgetter("name")
PROBE = bytes(4096)
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class LocalStorage:
    """Files below ``root``, readable by their owner alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        return str(self.root)

    def prepare(self) -> bool:
        """Create the folder if it is missing; whether it was."""
        with self._mapped("create"):
            if self.root.is_dir():
                return False
            try:
                self.root.mkdir(mode=0o700, parents=True)
            except FileExistsError:
                if self.root.is_dir():
                    return False  # another run was faster
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            except FileNotFoundError as error:  # where folders cannot be made at all, as below /proc
                raise RepositoryUnreachable(
                    f"The repository {self.root} cannot be created: {error.strerror}.", hint="Name another folder."
                ) from error
            return True

    def secrets(self) -> tuple[str, ...]:
        """None: the system knows who we are."""
        return ()

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Every file whose key begins with the folder ``prefix``; nothing when the repository does not exist yet."""
        with self._mapped("list"):
            yield from _files(str(self.root / prefix), f"{prefix.rstrip('/')}/" if prefix else "")

    def folders(self, prefix: str = "") -> list[str]:
        """The folders directly below ``prefix``."""
        with self._mapped("list"):
            try:
                return sorted(
                    each.name for each in os.scandir(self.root / prefix) if each.is_dir(follow_symlinks=False)
                )
            except FileNotFoundError:
                return []

    def tree(self, prefix: str) -> dict[str, list[Entry]]:
        """The folders directly below ``prefix``, each with its files."""
        root = self.root / prefix
        with self._mapped("list"):
            found = {name: _files(f"{root}/{name}", f"{prefix}/{name}/") for name in self.folders(prefix)}
            # One without a file may have got its final name, or have gone, since the folders were listed.
            return {name: entries for name, entries in found.items() if entries or (root / name).is_dir()}

    def unpublished(self, folder: str) -> str | None:
        """What a hidden ``.<name>.partial`` is on its way to."""
        return folder[1 : -len(PARTIAL)] if folder.startswith(".") and folder.endswith(PARTIAL) else None

    def modified_at(self, prefix: str) -> datetime:
        """When a file in a folder was last written to; of an empty one, when it was made or emptied."""
        newest = max((entry.modified_at for entry in self.entries(prefix)), default=None)
        if newest is not None:
            return newest
        with self._mapped("list"):
            try:
                return datetime.fromtimestamp((self.root / prefix).stat().st_mtime, UTC)
            except FileNotFoundError:
                return datetime.fromtimestamp(0, UTC)

    def open(self, key: str) -> BinaryIO:
        """A stored file for reading. Raises FileNotFoundError when there is none."""
        with self._mapped("read"):
            return (self.root / key).open("rb")

    def read(self, key: str) -> bytes:
        """A small stored file, whole. Raises FileNotFoundError when there is none."""
        with self._mapped("read"), open(f"{self.root}/{key}", "rb", buffering=0) as file:  # noqa: PTH123 - thousands
            return file.read()

    def create(self, key: str, data: bytes) -> None:
        """Write a small file, whole or not at all. Raises FileExistsError rather than replace one."""
        path = self.root / key
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with self._mapped("write"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with _create(temporary) as file:
                    file.write(data)
                    os.fsync(file.fileno())
                os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def delete(self, key: str) -> None:
        """Remove a file; none to remove is fine."""
        with self._mapped("delete"):
            (self.root / key).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        """Remove what is left of a folder."""
        with self._mapped("delete"):
            shutil.rmtree(self.root / prefix, ignore_errors=False) if (self.root / prefix).is_dir() else None

    def begin(self, folder: str, *, retain_until: datetime | None = None) -> "LocalPublication":  # noqa: ARG002
        """Begin to write a folder that will appear as a whole."""
        with self._mapped("write"):
            return LocalPublication(self, self.root / folder)

    def locked_until(self, folder: str) -> None:  # noqa: ARG002
        """Never: a file system has no locks that last."""
        return

    def extend_lock(self, folder: str, until: datetime) -> None:
        """Nothing has a lock."""

    def hidden(self, prefix: str = "") -> Iterator[Entry]:  # noqa: ARG002
        """None: what is removed is gone."""
        return iter(())

    def now(self) -> None:
        """It has this host's clock."""
        return

    def free_bytes(self) -> int | None:
        """Room for this user on the file system."""
        folder = next((each for each in (self.root, *self.root.parents) if each.exists()), None)
        return shutil.disk_usage(folder).free if folder else None

    def try_write(self) -> None:
        """Write a file that goes at once; where the repository does not exist yet, see whether it could be made."""
        with self._mapped("write"):
            if self.root.is_dir():
                with tempfile.TemporaryFile(dir=self.root, prefix=".opsctl-") as file:
                    file.write(PROBE)
                    file.flush()
                    os.fsync(file.fileno())
                return
            above = next(each for each in self.root.parents if each.exists())
            if not os.access(above, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def remove_trials(self, before: datetime) -> None:
        for folder in self.folders():
            if folder.startswith(TRIAL_PREFIX) and self.modified_at(folder) < before:
                self.delete_folder(folder)

    def examine(self) -> Iterator[Trial]:
        from opsctl.storage.local_check import examine

        return examine(self)

    @contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        """The operating system's refusals as ours; FileNotFoundError and FileExistsError mean what they say."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            kind = RemovalRefused if doing == "delete" and error.errno in _DENIED else RepositoryUnreachable
            raise kind(
                f"Cannot {doing} in the repository {self.root}: {error.strerror or error}.", hint=_hint(error)
            ) from error


class LocalPublication:
    """A folder on its way: write its files, then :meth:`publish`, or :meth:`abandon`."""

    def __init__(self, storage: LocalStorage, target: Path) -> None:
        self._storage = storage
        self._target = target
        self._partial = target.with_name(f".{target.name}{PARTIAL}")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:  # a file stands there
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        self._partial.mkdir(mode=0o700)

    @contextmanager
    def file(self, name: str) -> Iterator["LocalFile"]:
        """One file of the folder, on the disk when the context ends."""
        with self._storage._mapped("write"), _create(self._partial / name) as file:  # noqa: SLF001
            yield LocalFile(self._storage, file)
            file.flush()
            os.fsync(file.fileno())

    def publish(self, name: str, data: bytes) -> None:
        """Write the last file and let the folder appear under its name. Raises FileExistsError when that is taken."""
        with self.file(name) as file:
            file.write(data)
        with self._storage._mapped("publish"):  # noqa: SLF001
            _sync_folder(self._partial)
            _rename_new(self._partial, self._target)
            _sync_folder(self._target.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._partial, ignore_errors=True)


class LocalFile:
    """A file being written; a full disk is the repository's error wherever it shows."""

    def __init__(self, storage: LocalStorage, file: BinaryIO) -> None:
        self._storage = storage
        self._file = file

    def write(self, data: bytes) -> None:
        with self._storage._mapped("write"):  # noqa: SLF001
            self._file.write(data)


def _files(folder: str, prefix: str) -> list[Entry]:
    """The files of a folder and below it, in the order of their keys, which begin with ``prefix``."""
    found: list[Entry] = []
    try:
        with os.scandir(folder) as there:
            entries = sorted(there, key=_name)
    except FileNotFoundError:
        return found
    for each in entries:
        if each.is_dir(follow_symlinks=False):
            found += _files(each.path, f"{prefix}{each.name}/")
        else:
            with suppress(FileNotFoundError):  # removed by another run in between
                status = each.stat()
                found.append(Entry(prefix + each.name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)))
    return found


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _rename_new(source: Path, target: Path) -> None:
    """Rename that never replaces: plain ``rename`` silently takes the place of an empty folder."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        renameat2 = None
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in {errno.EINVAL, errno.ENOSYS}:  # those two: this file system or kernel does not know the flag
            raise OSError(code, os.strerror(code), str(target))
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _hint(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "Free space there, or prune; nothing incomplete was left behind."
    if error.errno in _DENIED:
        return "The user opsctl runs as must be able to write there."
    return "Is the disk mounted and healthy?"
