"""What is saved before a container is restarted: its newest log lines and its description, without its secrets."""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from opsctl.services import Service, ServiceRuntime
from opsctl.services.compose import variables_of
from opsctl.services.log_lines import read_lines
from opsctl.times import format_time

LOG_LINES = 500
MASK = "***"
SHORTEST = 6
"""A shorter value of a variable is masked where it is set only: it would be found in many a word."""

SECRET_NAME = re.compile(r"pass|secret|token|key|credential|auth|dsn|private", re.IGNORECASE)
URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]*:([^\s@/]+)@", re.IGNORECASE)

Redact = Callable[[Any], Any]


def secrets_of(described: Mapping[str, Any]) -> Iterator[str]:
    """What is secret among a container's variables: by name, and passwords in URLs, as written and decoded."""
    for name, value in variables_of(described).items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST:
            yield value
        for password in URL_PASSWORD.findall(value):
            yield from {password, unquote(password)}


def masked(described: Mapping[str, Any]) -> dict[str, Any]:
    """A container's description without any variable's value, wherever it stands, and without secret arguments."""
    variables = variables_of(described)
    values = sorted((each for each in variables.values() if len(each) >= SHORTEST), key=len, reverse=True)
    hidden = re.compile("|".join(map(re.escape, values))) if values else None

    def clean(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: MASK if _is_secret(name, each) else clean(each, name) for name, each in value.items()}
        if isinstance(value, list):
            if key == "Env":
                return [f"{each.partition('=')[0]}={MASK}" for each in value]
            return [clean(each) for each in _arguments(value)]
        if isinstance(value, str) and hidden is not None and not _is_name(key):
            return hidden.sub(MASK, value)
        return value

    result: dict[str, Any] = clean(described)
    return result


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and bool(SECRET_NAME.search(name))


def _is_name(key: str) -> bool:
    """What identifies the container stays readable, though a variable may have the same value."""
    return key in {"Id", "Name", "Image", "Hostname", "Status", "StartedAt", "FinishedAt", "Created"}


def _arguments(words: list[Any]) -> list[Any]:
    """A command line, with ``--password=…``, ``PASSWORD=…`` and what follows ``--password`` masked."""
    if not all(isinstance(word, str) for word in words):
        return words
    kept = [_argument(word) for word in words]
    for number, (word, after) in enumerate(pairwise(words), 1):
        if word.startswith("-") and "=" not in word and SECRET_NAME.search(word) and not after.startswith("-"):
            kept[number] = MASK
    return kept


def _argument(word: str) -> str:
    name, separator, value = word.partition("=")
    return f"{name}={MASK}" if separator and value and SECRET_NAME.search(name) else word


def take_capture(
    runtime: ServiceRuntime, services: Sequence[Service], folder: Path, *, now: datetime, redact: Redact
) -> Path:
    """Save how the containers of a service are at this moment; the file, which only its owner may read."""
    described = {service.container: masked(runtime.describe(service)) for service in services}
    lines = list(read_lines(runtime, services, tail=LOG_LINES))
    document = {
        "schema": "opsctl.capture/1",
        "service": services[0].name,
        "taken_at": format_time(now),
        "logs": [
            {"at": format_time(line.at), "container": line.container, "stream": line.stream, "text": line.text}
            for line in lines
        ],
        "containers": described,
    }
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{_safe(services[0].name)}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
        json.dump(redact(document), file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    return path


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)
