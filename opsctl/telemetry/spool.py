"""What could not be sent, kept on disk for a later run: a folder of bounded size, a file for each."""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

MOST_FILES = 200
MOST_BYTES = 10 * 1024 * 1024
TIME = "%Y%m%dT%H%M%S%fZ"


class Fate(Enum):
    """What became of something that was sent."""

    SENT = "sent"
    REFUSED = "refused"
    """For good: it would be refused again."""
    UNSENT = "unsent"


class Spool:
    """Files named for when they were put here, and until when they are of use.

    When there is no room the oldest go: during a long outage the latest say most. Readable by the owner alone.
    """

    def __init__(self, folder: Path, *, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_files = most_files
        self._most_bytes = most_bytes

    def put(self, data: bytes, *, now: datetime, until: datetime | None = None) -> None:
        """Keep ``data``. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = (
            f"{now.astimezone(UTC):{TIME}}-{f'{until.astimezone(UTC):{TIME}}' if until else ''}-{secrets.token_hex(4)}"
        )
        partial = self._folder / f".{name}"
        try:
            with open(partial, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(data)
            partial.rename(self._folder / name)
        except OSError:
            partial.unlink(missing_ok=True)  # on a full disk
            raise
        self._make_room()

    def waiting(self) -> list[Path]:
        """What is here, the oldest first."""
        try:
            return sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
        except OSError:
            return []

    def deliver(
        self, send: Callable[[bytes], Fate], *, now: datetime, go_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Send what is here, the oldest first, until something cannot be sent or ``go_on`` says no.

        What is past its use is dropped. Another run that is at it is left alone. Raises OSError.
        """
        with self._alone() as alone:
            for path in self.waiting() if alone else ():
                if not go_on():
                    return
                until = path.name.split("-")[1]
                is_late = until and datetime.strptime(until, TIME).replace(tzinfo=UTC) <= now
                if not is_late and send(path.read_bytes()) is Fate.UNSENT:
                    return
                path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other run delivers at the moment: each would send everything."""
        if not self.waiting():
            yield False
            return
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)

    def _make_room(self) -> None:
        files, size = 0, 0
        for path in reversed(self.waiting()):
            with suppress(FileNotFoundError):
                files, size = files + 1, size + path.stat().st_size
                if files > self._most_files or size > self._most_bytes:
                    path.unlink()
