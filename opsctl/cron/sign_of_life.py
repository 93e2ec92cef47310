"""What run-scheduled leaves in the state folder while it lives: for the health check, doctor and `cron check`."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from opsctl.errors import ConfigurationError, LockHeld
from opsctl.times import format_time

FILE = "scheduler.json"
LOCK = "scheduler.lock"
STALE_SECONDS = 90
"""It shows itself every few seconds; a machine that swaps may take its time."""


@dataclass(frozen=True)
class SignOfLife:
    """``age_seconds`` is by a clock that nobody sets."""

    pid: int
    source: str
    started_at: datetime
    age_seconds: float

    @property
    def is_alive(self) -> bool:
        return 0 <= self.age_seconds <= STALE_SECONDS


def show(folder: Path, source: str, *, started_at: datetime, jobs: Mapping[str, Any]) -> None:
    """Raises OSError."""
    about = {"pid": os.getpid(), "source": source, "started_at": format_time(started_at), "boot_seconds": _boot()}
    partial = folder / f".{FILE}.partial"
    partial.write_text(json.dumps({**about, "jobs": dict(jobs)}, default=str), encoding="utf-8")
    partial.rename(folder / FILE)


def seen(folder: Path) -> SignOfLife | None:
    """The last sign there is, if any can be read."""
    try:
        about = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return SignOfLife(
            about["pid"],
            about["source"],
            datetime.fromisoformat(about["started_at"]),
            _boot() - about["boot_seconds"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _boot() -> float:
    """Seconds since this machine was started, asleep or not; the same in every container."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one at a time with this state folder. Raises LockHeld, ConfigurationError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written: {error.strerror}.", hint="run-scheduled needs a state folder: [state] path."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = seen(folder)
            raise LockHeld(
                f"Another run-scheduled{f' (pid {other.pid})' if other else ''} works with {folder}.",
                hint="Two would run everything twice; give this one a state folder of its own, or end the other.",
            ) from error
        yield
    finally:
        os.close(descriptor)
