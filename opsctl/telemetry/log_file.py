"""A log file that others rotate: moved away, removed, or cut to nothing while it is written."""

import os
from pathlib import Path

MODE = 0o640


class LogFile:
    """Lines at the end of a file. Each is written at once: several runs may share it.

    Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def write(self, line: str) -> None:
        data = f"{line}\n".encode("utf-8", "replace")
        descriptor = self._open()
        written = os.write(descriptor, data)
        while written < len(data):  # a disk that is nearly full
            written += os.write(descriptor, data[written:])

    def _open(self) -> int:
        """The file of that name: logrotate may have moved ours away. What it cuts is written on from its new end."""
        if self._descriptor is not None and not self._is_ours(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        return self._descriptor

    def _is_ours(self, descriptor: int) -> bool:
        try:
            there, ours = self.path.stat(), os.fstat(descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
