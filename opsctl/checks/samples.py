"""What checks saw the last time: for values that only mean something as a difference. Kept in the state folder."""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

HISTORY_SECONDS = 6 * 3600
HISTORY_EVERY_SECONDS = 240
"""Doctor every five minutes adds one each time; `--watch` does not fill the file."""


class Samples:
    """The samples of earlier runs, and this run's. A file that cannot be read or written is as good as none."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = Lock()
        self._earlier = _read(path) if path else {}
        self._taken: dict[str, Any] = {}

    def exchange(
        self, check: str, target: str, values: Mapping[str, Any], *, now: datetime
    ) -> tuple[float, dict[str, Any]] | None:
        """Keep ``values`` for the next run; the age in seconds and the values of the run before, if there was one."""
        key = f"{check}/{target}"
        with self._lock:
            self._taken[key] = {"at": now.astimezone(UTC).timestamp(), "values": dict(values)}
            earlier = self._earlier.get(key)
        try:
            age = now.timestamp() - float(earlier["at"]) if earlier else 0.0
            return (age, dict(earlier["values"])) if earlier and age > 0 else None
        except (TypeError, KeyError, ValueError):
            return None

    def history(self, check: str, target: str, value: float, *, now: datetime) -> list[tuple[float, float]]:
        """Keep ``value``; the values of the last hours with their times in seconds, this one the last."""
        at = now.timestamp()
        earlier = self.exchange(check, target, {}, now=now)
        points = [(float(t), float(v)) for t, v in (earlier[1].get("points", ()) if earlier else ())]
        points = [point for point in points if at - HISTORY_SECONDS <= point[0] < at]
        is_due = not points or at - points[-1][0] >= HISTORY_EVERY_SECONDS
        self.exchange(check, target, {"points": [*points, (at, value)] if is_due else points}, now=now)
        return [*points, (at, value)]

    def save(self) -> None:
        """Write them down, all at once: another run may read at the same time."""
        if self._path is None or not self._taken:
            return
        with self._lock:
            text = json.dumps({**self._earlier, **self._taken})
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".samples-", dir=self._path.parent)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            Path(name).replace(self._path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
