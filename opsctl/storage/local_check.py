"""What has to work in a folder, tried: its owner and mode, whole files, renames that never replace, removal."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from opsctl.errors import RepositoryUnreachable
from opsctl.storage import Trial, new_trial

if TYPE_CHECKING:
    from opsctl.storage.local import LocalStorage

DATA = b"opsctl tries whether backups can be written here\n"


def examine(storage: "LocalStorage") -> Iterator[Trial]:
    if not storage.root.exists():
        yield _not_there_yet(storage)
        return
    yield _folder(storage.root)
    trial = new_trial()
    try:
        yield _tried("put", "Files can be written, and reach the disk.", lambda: storage.create(f"{trial}/one", DATA))
        if not (storage.root / trial / "one").exists():
            return
        yield _tried("get", "They can be read back.", lambda: _read_back(storage, f"{trial}/one"))
        yield _tried("conditional_put", "No file is ever replaced.", lambda: _not_replaced(storage, f"{trial}/one"))
        yield _tried(
            "publish", "A folder appears as a whole, and takes nobody's place.", lambda: _publish(storage, trial)
        )
        yield _tried("delete", "Files can be removed.", lambda: storage.delete_folder(trial), vital=False)
    finally:
        shutil.rmtree(storage.root / trial, ignore_errors=True)


def _not_there_yet(storage: "LocalStorage") -> Trial:
    try:
        storage.try_write()
    except RepositoryUnreachable as error:
        return Trial("folder", "fail", error.message, error.hint, vital=True)
    return Trial("folder", "ok", f"{storage.root} does not exist yet; the first backup creates it.", vital=True)


def _folder(root: Path) -> Trial:
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        return Trial("folder", "fail", f"{root} is no folder.", "Correct the repository's url.", vital=True)
    mode, me = stat.S_IMODE(status.st_mode), os.geteuid()
    if status.st_uid not in {me, 0} or (status.st_uid == 0 and me != 0):
        text = f"{root} belongs to user {status.st_uid}, and opsctl runs as {me}."
        return Trial("folder", "warn", text, f"chown it, or run opsctl as its owner: stat {root}")
    if mode & 0o077:
        text = f"Others may enter {root} (mode {mode:04o}); backups hold everything that is in the database."
        return Trial("folder", "warn", text, f"chmod 700 {root}")
    return Trial("folder", "ok", f"{root} is its owner's alone.", vital=True)


def _tried(identifier: str, works: str, attempt: Callable[[], object], *, vital: bool = True) -> Trial:
    try:
        attempt()
    except RepositoryUnreachable as error:
        return Trial(identifier, "fail", error.message, error.hint, vital=vital)
    except OSError as error:
        text = f"It does not work: {error.strerror or error}."
        return Trial(identifier, "fail", text, "Another file system may do.", vital=vital)
    return Trial(identifier, "ok", works, vital=vital)


def _read_back(storage: "LocalStorage", key: str) -> None:
    if storage.read(key) != DATA:
        raise RepositoryUnreachable("What was written is not what is read.", hint="Is the disk healthy?")


def _not_replaced(storage: "LocalStorage", key: str) -> None:
    try:
        storage.create(key, b"another")
    except FileExistsError:
        return
    raise RepositoryUnreachable("A file took the place of another.", hint="Another file system may do.")


def _publish(storage: "LocalStorage", folder: str) -> None:
    for data in (b"first", b"second"):
        publication = storage.begin(f"{folder}/published")
        try:
            publication.publish("manifest.json", data)
        except FileExistsError:
            publication.abandon()
    if storage.read(f"{folder}/published/manifest.json") != b"first":
        raise RepositoryUnreachable("A folder took the place of another.", hint="Another file system may do.")
