"""The configuration in force: every setting with its value and where it came from. Nothing secret is in it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr  # noqa: TID253  # as in settings.py

from opsctl.config import Config
from opsctl.config_file import read_env_file
from opsctl.errors import ConfigurationError
from opsctl.known_secrets import SECRET_NAME

DEFAULT = "default"
ENVIRONMENT = "the environment"
SECRET = "***"  # noqa: S105
VARIABLES = ("OPSCTL_", "PG", "AWS_", "DOCKER_")
"""Prefixes of the variables that mean something whatever the file says."""


@dataclass(frozen=True)
class Setting:
    """One key of the configuration. ``source`` is the file, ``default``, or where the variable was found."""

    key: str
    value: Any
    source: str

    @property
    def is_set(self) -> bool:
        """Whether there is something to tell: nearly every default is that there is none."""
        return self.source != DEFAULT or self.value not in (None, [], {})


def settings_in_force(config: Config) -> list[Setting]:
    """Every key of the sections there are, in the order of the file's sections, then the variables."""
    found = [*_of_model(config.file, "", config.source), *_completed(config)]
    later = {each.key: each for each in found if each.source != DEFAULT or each.value is not None}
    seen = dict.fromkeys(each.key for each in found)
    return [later.get(key) or Setting(key, None, DEFAULT) for key in seen] + list(_of_variables(config))


def _of_model(model: BaseModel, prefix: str, source: str) -> Iterator[Setting]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        yield from _of_value(value, f"{prefix}{name}", source if name in model.model_fields_set else DEFAULT)


def _of_value(value: Any, key: str, source: str) -> Iterator[Setting]:
    if isinstance(value, BaseModel):
        yield from _of_model(value, f"{key}.", source)
    elif isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _of_value(each, f"{key}.{_as_key(name)}", source)
    elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        for number, each in enumerate(value):
            yield from _of_value(each, f"{key}[{number}]", source)
    else:
        yield Setting(key, _shown(value), source)


def _as_key(name: str) -> str:
    """As TOML writes a key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return without_secrets(value.get_secret_value())
    if isinstance(value, tuple | list):
        return [_shown(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def without_secrets(text: str) -> str:
    """An address without what opens it; of another secret nothing is left."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return SECRET
    is_postgres = parts.scheme.startswith("postgres")
    if not is_postgres and parts.scheme not in {"http", "https"}:
        return SECRET
    userinfo, at, host = parts.netloc.rpartition("@")
    if not is_postgres:
        return f"{parts.scheme}://{f'{SECRET}@' if at else ''}{host}/{SECRET if parts.path[1:] or parts.query else ''}"
    user, colon, _ = userinfo.partition(":")
    query = re.sub(r"(?i)(\w*(?:pass|token|secret)\w*)=[^&]*", rf"\1={SECRET}", parts.query)
    shown = f"{user}{f':{SECRET}' if colon else ''}{at}{host}"
    return f"{parts.scheme}://{shown}{parts.path}{f'?{query}' if query else ''}"


def _completed(config: Config) -> Iterator[Setting]:
    """What the file leaves to the environment, or to opsctl."""
    for name, database in config.databases.items():
        key = f"databases.{_as_key(name)}"
        if name not in config.file.databases:
            source = _source(config, "DATABASE_URL" if config.environment.database_url else "PGDATABASE")
            yield from (Setting(each.key, each.value, source) for each in _of_value(database.url, f"{key}.url", source))
        elif database.url_env:
            yield Setting(f"{key}.url", _database_url(config, name), _source(config, database.url_env))
    for name in config.repositories:
        source = config.source if name in config.file.repositories else DEFAULT
        yield Setting(f"repositories.{_as_key(name)}.url", config.repository_url(name), source)
    if config.sentry.dsn is None and config.sentry_dsn:
        dsn = without_secrets(config.sentry_dsn)
        yield Setting("sentry.dsn", dsn, _source(config, config.sentry.dsn_env))
    if config.sentry.environment is None and config.sentry_environment:
        yield Setting("sentry.environment", config.sentry_environment, _source(config, "SENTRY_ENVIRONMENT"))
    if config.variables.get(config.notify.urls_env):
        urls = [SECRET for _ in config.notify_urls]
        yield Setting("notify.urls", urls, _source(config, config.notify.urls_env))
    if config.environment.state_dir:
        yield Setting("state.path", str(config.state_path), _source(config, "OPSCTL_STATE_DIR"))
    elif config.file.state.path is None:
        yield Setting("state.path", str(config.state_path), DEFAULT)


def _database_url(config: Config, name: str) -> str | None:
    try:
        return without_secrets(config.database_url(name))
    except ConfigurationError:  # `config validate` says so
        return None


def _of_variables(config: Config) -> Iterator[Setting]:
    for name, value in sorted(config.variables.items()):
        if name.startswith(VARIABLES) and value:
            shown = SECRET if SECRET_NAME.search(name) and not name.endswith("FILE") else value
            yield Setting(f"environment.{name}", shown, _place(config, name))


def _source(config: Config, variable: str) -> str:
    return f"{variable} in {_place(config, variable)}"


def _place(config: Config, variable: str) -> str:
    """Where a variable was found: the process's environment, else the last of the ``.env`` files that has it."""
    if variable in config.inherited:
        return ENVIRONMENT
    holding = [path for path in config.env_files if path.is_file() and variable in read_env_file(path)]
    return str(holding[-1]) if holding else "nothing: it is not set"
