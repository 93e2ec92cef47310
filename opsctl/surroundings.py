"""What a folder tells of a database and its services, before there is a configuration: variables and a compose file."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from opsctl.config_file import read_env_file, variables_at
from opsctl.errors import ConfigurationError
from opsctl.schedule import time_zone
from opsctl.services.compose_file import REFERENCE, ComposeFile, ComposeService, find_compose_file, interpolated
from opsctl.settings import nearest

POSTGRES_URL = re.compile(r"postgres(ql)?(\+\w+)?://", re.IGNORECASE)
NOT_THE_LIVE_ONE = re.compile(r"test|shadow|direct|unpooled|migrat", re.IGNORECASE)


@dataclass(frozen=True)
class DatabaseSource:
    """A way to a database. ``keys`` are those of its section: where secrets are, none of them itself."""

    name: str
    found_in: str
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def service(self) -> str | None:
        return self.keys.get("service")


@dataclass(frozen=True)
class Surroundings:
    folder: Path
    variables: Mapping[str, str]
    compose: ComposeFile | None

    @property
    def databases(self) -> list[DatabaseSource]:
        """Every way to a database, the likeliest first."""
        found = [*self._in_variables(), *self._libpq()]
        covered = {each.service for each in found}
        return found + [each for each in self._in_compose() if each.service not in covered]

    @property
    def services(self) -> list[ComposeService]:
        """The services to watch."""
        return self.compose.watched if self.compose else []

    @property
    def time_zone(self) -> str:
        """The one of this machine, as far as it has a name."""
        return _host_time_zone(self.variables)

    def of_variable(self, name: str) -> DatabaseSource:
        """The database behind a variable, set or not yet."""
        url = self.variables.get(name, "")
        keys: dict[str, Any] = {"url_env": name}
        host, database = _parts(url)
        if self.compose is not None and host in self.compose.services:  # a name of compose's network, not of this host
            keys |= _in_container(self.compose.services[host])
        return DatabaseSource(database or "main", f"{name}, {self._place(name)}", keys)

    def of_url(self, url: str) -> DatabaseSource:
        """A database by an address without a password."""
        host, database = _parts(url)
        keys: dict[str, Any] = {"url": url}
        if self.compose is not None and host in self.compose.services:
            keys |= _in_container(self.compose.services[host])
        return DatabaseSource(database or "main", "the command line", keys)

    def _place(self, name: str) -> str:
        holding = [each for each in (".env", ".env.local") if name in _variables_of(self.folder / each)]
        return f"in {holding[-1]}" if holding else "in the environment" if name in self.variables else "not set yet"

    def _in_variables(self) -> Iterator[DatabaseSource]:
        names = [name for name, value in self.variables.items() if POSTGRES_URL.match(value)]
        for name in sorted(names, key=lambda each: (each != "DATABASE_URL", each)):
            if not NOT_THE_LIVE_ONE.search(name):
                yield self.of_variable(name)

    def _libpq(self) -> Iterator[DatabaseSource]:
        name = self.variables.get("PGDATABASE")
        if name:
            yield DatabaseSource(name, f"PGDATABASE, {self._place('PGDATABASE')}", {"url": "postgresql://"})

    def of_service(self, name: str) -> DatabaseSource:
        """The database in a service of the compose file. Raises ConfigurationError."""
        services = self.compose.services if self.compose else {}
        if self.compose is None or name not in services:
            raise ConfigurationError(
                f"There is no service {name!r} in a compose file of {self.folder}.",
                hint=nearest(name, services) or f"Services there: {', '.join(services) or 'none'}.",
            )
        return self._of_service(self.compose, services[name])

    def _in_compose(self) -> Iterator[DatabaseSource]:
        if self.compose is not None:
            for service in self.compose.databases:
                yield self._of_service(self.compose, service)

    def _of_service(self, compose: ComposeFile, service: ComposeService) -> DatabaseSource:
        """What the official images make of their variables."""
        user = self._value(service, "POSTGRES_USER") or "postgres"
        database = self._value(service, "POSTGRES_DB") or user
        url = f"postgresql://{quote(user, safe='')}@{service.name}:5432/{quote(database, safe='')}"
        keys = {"url": url, **self._password(compose, service), **_in_container(service)}
        return DatabaseSource(database, f"the service {service.name} of {compose.path.name}", keys)

    def _value(self, service: ComposeService, name: str) -> str | None:
        """What a variable of a container will be, as far as that can be told here."""
        written = service.environment.get(name)
        if written is not None:
            return interpolated(written, self.variables)
        if name in service.environment:
            return self.variables.get(name)
        for file in reversed(service.env_files):
            value = _variables_of(self.folder / file).get(name)
            if value is not None:
                return value
        return None

    def _password(self, compose: ComposeFile, service: ComposeService) -> dict[str, str]:
        """Where the password is: a variable, a file, else the container itself."""
        secret = Path(self._value(service, "POSTGRES_PASSWORD_FILE") or "").name
        if secret in compose.secrets:
            return {"password_file": str(compose.secrets[secret])}
        if self._value(service, "POSTGRES_HOST_AUTH_METHOD") == "trust":
            return {}
        name, written = "POSTGRES_PASSWORD", service.environment.get("POSTGRES_PASSWORD")
        match = REFERENCE.fullmatch(written or "")
        if match is not None:
            name = match["braced"] or match["plain"]
        if (match is not None or written is None) and self.variables.get(name):
            return {"password_env": name}
        file = shlex.quote(str(compose.path.absolute()))
        return {"password_command": f"docker compose --file {file} exec -T {service.name} printenv POSTGRES_PASSWORD"}


def look_around(folder: Path) -> Surroundings:
    """Raises ConfigurationError when ``.env`` or the compose file cannot be read."""
    variables = variables_at(folder)
    return Surroundings(folder, variables, find_compose_file(folder, variables))


def _in_container(service: ComposeService) -> dict[str, str]:
    """Its container is found through Docker, and has the programs of the server's own version."""
    return {"service": service.name, **({"tools": "service"} if service.is_postgres else {})}


def _parts(url: str) -> tuple[str, str]:
    """Host and database of an address; what cannot be read is not there. The configuration says what is wrong."""
    try:
        parts = urlsplit(url)
        return unquote(parts.hostname or ""), unquote(parts.path.lstrip("/"))
    except ValueError:
        return "", ""


def _variables_of(path: Path) -> Mapping[str, str]:
    return read_env_file(path) if path.is_file() else {}


def _host_time_zone(variables: Mapping[str, str]) -> str:
    link = Path("/etc/localtime")
    linked = str(link.readlink()).partition("zoneinfo/")[2] if link.is_symlink() else ""
    for name in (variables.get("TZ", "").lstrip(":"), linked):
        try:
            time_zone(name or "?")
        except ValueError:
            continue
        return name
    return "UTC"
