"""The last lines of a run's log: what an error report and a heartbeat carry along."""

from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

MOST_LINES = 100
OF_EVERY_LINE = frozenset({"timestamp", "level", "event", "run_id", "command", "traceback", "_shown"})
"""What a line of a report says elsewhere, or not at all."""


class Recent:
    """A step of the log's processing, after redaction; it changes nothing."""

    def __init__(self, most_lines: int = MOST_LINES) -> None:
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=most_lines)

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self._lines.append(dict(event))
        return event

    @property
    def lines(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(self._lines)

    @property
    def complaints(self) -> tuple[str, ...]:
        """What was warned of, in words."""
        loud = (line for line in self._lines if line.get("level") in {"warning", "error", "critical"})
        return tuple(str(line["message"]) for line in loud if line.get("message"))

    def tail(self, most_bytes: int) -> str:
        """The end of the log as text, whole lines, the last one last."""
        kept: list[str] = []
        size = 0
        for line in reversed(self._lines):
            text = as_text(line)
            size += len(text.encode()) + 1
            if size > most_bytes:
                break
            kept.append(text)
        return "\n".join(reversed(kept))


def as_text(line: Mapping[str, Any]) -> str:
    fields = " ".join(f"{key}={value}" for key, value in details(line).items() if value is not None)
    head = (line.get("timestamp"), line.get("level"), line.get("event"), fields)
    return " ".join(str(part) for part in head if part)


def details(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in OF_EVERY_LINE}
