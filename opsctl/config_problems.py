"""What is wrong with a configuration that can be read, as far as this machine can tell: nothing is connected to."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opsctl.checks import all_checks, check_ids, thresholds_of
from opsctl.config import Config
from opsctl.encryption import parse_recipients
from opsctl.errors import ConfigurationError
from opsctl.retention import lock_span, policy_of
from opsctl.settings import RepositorySettings
from opsctl.signing import parse_public_keys, parse_signing_key
from opsctl.storage import open_storage


def problems_of(config: Config) -> Iterator[ConfigurationError]:
    """Every problem: what contradicts itself, then in the order of the file's sections."""
    yield from config.contradictions()
    for attempt in (*_databases(config), *_repositories(config), *_keys(config), *_others(config)):
        try:
            attempt()
        except ConfigurationError as error:
            yield error


Attempt = Callable[[], Any]
"""Looks at one thing. Raises ConfigurationError."""


def _databases(config: Config) -> Iterator[Attempt]:
    if not config.databases and config.source == "the environment":
        yield lambda: config.database("")  # says that there is none
    for name, database in config.databases.items():
        yield partial(config.database_url, name)
        if database.password_command is None:  # which may ask another machine
            yield partial(config.password, name)


def _repositories(config: Config) -> Iterator[Attempt]:
    for name in config.repositories:
        settings = config.repository(name)
        where = f"{config.source}: repositories.{name}"
        yield partial(_open, settings, where=f"{where}.url")
        yield partial(lock_span, settings, policy_of(settings.retention), where=f"{where}.object_lock")
        yield from _files(config, {f"repositories.{name}.ca_bundle": settings.ca_bundle})


def _open(settings: RepositorySettings, *, where: str) -> None:
    try:
        open_storage(settings.url, settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error.message}", hint=error.hint) from error


def _keys(config: Config) -> Iterator[Attempt]:
    recipients, public_keys = config.encryption.recipients, config.signing.public_keys
    if recipients:
        yield lambda: parse_recipients(recipients, where=f"{config.source}: encryption.recipients")
    if public_keys:
        yield lambda: parse_public_keys(public_keys, where=f"{config.source}: signing.public_keys")
    if config.signing.key_file is not None:
        yield lambda: parse_signing_key(config.signing_key() or "", where=f"{config.source}: signing.key_file")
    if config.encryption.identity_command is None:
        yield config.identity


def _others(config: Config) -> Iterator[Attempt]:
    yield lambda: _checks(config)
    if config.sentry_dsn is not None:
        yield lambda: check_dsn(config.sentry_dsn or "", where=f"{config.source}: sentry")
    yield config.serve_token
    bundles = {f"http.{name}.ca_bundle": each.ca_bundle for name, each in config.http.items()}
    bundles |= {f"tls.{name}.ca_bundle": each.ca_bundle for name, each in config.tls.items()}
    compose_files = {f"services.{name}.compose_file": config.service(name).compose_file for name in config.services}
    yield from _files(config, {"runbook.path": config.runbook_path, **bundles, **compose_files})


def _checks(config: Config) -> None:
    """Checks that are named are there."""
    checks = all_checks(config)
    changed = {name: (each.warn, each.crit) for name, each in config.doctor.thresholds.items()}
    thresholds_of(changed, source=config.source, checks=checks)
    for key in ("disabled", "enabled"):
        check_ids(getattr(config.doctor, key), where=f"{config.source}: doctor.{key}", checks=checks)


def check_dsn(dsn: str, *, where: str) -> None:
    """A Sentry DSN is ``https://key@host/project``. Raises ConfigurationError that does not show it."""
    try:
        parts = urlsplit(dsn)
        is_good = parts.scheme in {"http", "https"} and bool(parts.username and parts.hostname)
        is_good = is_good and parts.path.rpartition("/")[2].isdecimal()
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigurationError(
            f"{where}: the DSN is not one.",
            hint="It looks like https://key@host/1; Sentry shows it among a project's settings, Client Keys.",
        )


def _files(config: Config, files: dict[str, Path | None]) -> Iterator[Attempt]:
    for key, path in files.items():
        if path is not None:
            yield partial(_require_file, config, key, path)


def _require_file(config: Config, key: str, path: Path) -> None:
    absolute = config.folder / path.expanduser()
    try:
        absolute.open("rb").close()
    except OSError as error:
        raise ConfigurationError(
            f"{config.source}: {key} cannot be read: {absolute}: {error.strerror}.",
            hint="It must be readable by the user opsctl runs as.",
        ) from error
