"""What a caller wants to see in every log line: ``OPSCTL_LOG_CONTEXT``, as JSON or as ``key=value``. Pure."""

import json
import re
import shlex
from typing import Any

MOST_FIELDS = 20
MOST_CHARACTERS = 500
KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

OWN = frozenset(
    {"timestamp", "level", "event", "exception", "traceback", "run_id", "command", "database", "repository"}
    | {"backup_id", "exit_code", "duration_seconds", "code", "message", "hint", "exc_info"}
)
"""Fields that are opsctl's: a caller's would say something else under the same name."""


def parse_context(text: str) -> tuple[dict[str, Any], str | None]:
    """The fields, and what is wrong with the rest. A caller's mistake here costs a field, never a backup."""
    given, problem = _read(text.strip())
    fields = {key: _value(value) for key, value in given.items() if KEY.fullmatch(key) and key not in OWN}
    left_out = [key for key in given if key not in fields]
    if left_out and problem is None:
        problem = f"{', '.join(left_out)[:200]}: no name for a field of a caller's"
    if len(fields) > MOST_FIELDS:
        problem = f"only the first {MOST_FIELDS} fields are logged"
    return dict(list(fields.items())[:MOST_FIELDS]), problem


def _read(text: str) -> tuple[dict[str, Any], str | None]:
    if text.startswith("{"):
        try:
            return dict(json.loads(text)), None
        except ValueError:
            return {}, "it is no JSON object"
    try:
        words = shlex.split(text.replace(",", " "))
    except ValueError:
        words = text.replace(",", " ").split()
    pairs = [word.partition("=") for word in words]
    problem = None if all(separator for _, separator, _ in pairs) else "it is neither a JSON object nor key=value"
    return {key: value for key, separator, value in pairs if separator}, problem


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:MOST_CHARACTERS]
