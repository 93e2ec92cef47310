"""Files that a command writes where its caller asked for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from opsctl.errors import OpsctlError, Refused


def new_file(path: Path, text: str) -> None:
    """A new file, readable by its owner alone and on the disk. Raises Refused rather than replace one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Refused(f"{path} exists already, and is not replaced.", hint="Name a new file with -o.") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OpsctlError:
    return OpsctlError(f"{path} cannot be written: {error.strerror}.", hint="Name another file with -o.")


@contextmanager
def whole_file(output: Path) -> Iterator[BinaryIO]:
    """A file, readable by its owner alone, that appears when it is whole, in place of one that may be there.

    A device or a pipe stays what it is: a rename would put a file in its place. Raises OSError.
    """
    target = output.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
