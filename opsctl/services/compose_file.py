"""A compose file as it is written: which services have health checks, which is PostgreSQL, where its password stands.

It is read, not resolved: what it takes from the environment must stay a reference.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsctl.services.compose_document import whole_document

NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""In compose's own order; each may have an override beside it."""

POSTGRES_IMAGE = re.compile(r"(?:^|/)(?:postgres(?:ql)?|postgis|timescaledb(?:-ha)?|pgvector)(?:[:@]|$)")
ADDRESS = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::(\d+))?(/[^\s'\"|;&)]*)?")
REFERENCE = re.compile(r"\$(?:\{(?P<braced>\w+)(?P<rest>(?::?[-?+][^}]*)?)\}|(?P<plain>\w+))")
ESCAPED = "$$"
PUBLISHED = re.compile(r"(?:(?P<host>[\d.]+|\[[^\]]+\]):)?(?P<published>\d+):(?P<target>\d+)(?:/tcp)?")


@dataclass(frozen=True)
class ComposeService:
    """One service. ``environment`` and ``env_files`` are as written; the latter relative to the file's folder."""

    name: str
    image: str
    has_health_check: bool
    has_own_command: bool
    health_address: str | None
    """What its health check asks for, as it is reached from this host; where that port is published."""

    environment: Mapping[str, str | None]
    env_files: tuple[str, ...]

    @property
    def is_postgres(self) -> bool:
        """Whether it is a server: its image is also what jobs around one are run in."""
        return bool(POSTGRES_IMAGE.search(self.image)) and not self.has_own_command


@dataclass(frozen=True)
class ComposeFile:
    path: Path
    project: str
    services: Mapping[str, ComposeService]
    secrets: Mapping[str, Path]

    @property
    def databases(self) -> list[ComposeService]:
        return [each for each in self.services.values() if each.is_postgres]

    @property
    def watched(self) -> list[ComposeService]:
        """The services that say when they are well, but for the databases: those have checks of their own."""
        return [each for each in self.services.values() if each.has_health_check and not each.is_postgres]


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """What compose makes of the variables in a value; of one that is not set, its default."""

    def value(match: re.Match[str]) -> str:
        default = re.fullmatch(r":?-(.*)", match["rest"] or "")
        return variables.get(match["braced"] or match["plain"]) or (default[1] if default else "")

    return "$".join(REFERENCE.sub(value, part) for part in text.split(ESCAPED))


def find_compose_file(folder: Path, variables: Mapping[str, str]) -> ComposeFile | None:
    """The compose file of a folder, with all that belongs to it. Raises ConfigurationError when that cannot be read."""
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None:
        return None
    document = whole_document(path, lambda text: interpolated(text, variables))
    services, secrets = document["services"], document["secrets"]
    return ComposeFile(
        path,
        _project(document, folder, variables),
        {name: _service(name, each, variables) for name, each in services.items() if isinstance(each, Mapping)},
        {name: Path(each["file"]) for name, each in secrets.items() if isinstance(each, Mapping) and "file" in each},
    )


def _project(document: Mapping[str, Any], folder: Path, variables: Mapping[str, str]) -> str:
    """The project's name, as compose finds it."""
    given = variables.get("COMPOSE_PROJECT_NAME") or document.get("name")
    return str(given) if given else re.sub(r"[^a-z0-9_-]", "", folder.absolute().name.lower()).lstrip("_-")


def _service(name: str, written: Mapping[str, Any], variables: Mapping[str, str]) -> ComposeService:
    health = written.get("healthcheck")
    test = health.get("test") if isinstance(health, Mapping) and not health.get("disable") else None
    words = " ".join(map(str, test)) if isinstance(test, list) else str(test or "")
    return ComposeService(
        name,
        image=str(written.get("image") or ""),
        has_health_check=bool(words) and words != "NONE",
        has_own_command="entrypoint" in written or not _is_server_command(written.get("command")),
        health_address=_health_address(words, dict(_published(written.get("ports") or (), variables))),
        environment=written["environment"],
        env_files=tuple(written.get("env_file") or ()),
    )


def _is_server_command(command: Any) -> bool:
    """Whether a PostgreSQL image still starts its server: only its options are given, or its name."""
    words = command if isinstance(command, list) else str(command or "").split()
    return not words or str(words[0]) == "postgres" or str(words[0]).startswith("-")


def _published(ports: Any, variables: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Ports of the container, each with the address it has on this host."""
    for each in ports:
        if isinstance(each, Mapping):
            host, target = each.get("host_ip"), str(each.get("target", ""))
            published = interpolated(str(each.get("published", "")), variables)
        else:
            match = PUBLISHED.fullmatch(interpolated(str(each), variables))
            host, published, target = match.group("host", "published", "target") if match else (None, "", "")
        if published.isdecimal() and target.isdecimal():
            yield int(target), f"{'127.0.0.1' if host in {None, '0.0.0.0', '[::]'} else host}:{published}"  # noqa: S104


def _health_address(words: str, published: Mapping[int, str]) -> str | None:
    match = ADDRESS.search(words)
    if match is None or "https://" in match[0]:  # whose certificate is not for this name
        return None
    address = published.get(int(match[1] or 80))
    return address and f"http://{address}{match[2] or '/'}"
