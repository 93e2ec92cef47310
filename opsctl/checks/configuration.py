"""The configuration, where it can be read and still be wrong: addresses, permissions, tests that aim at production."""

import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from opsctl.checks.amounts import counted
from opsctl.checks.check import Check, Finding, Remedy, Target, Thresholds
from opsctl.checks.scope import Scope
from opsctl.errors import ConfigurationError

POSTGRES_URL = re.compile(r"\s*postgres(ql)?(\+\w+)?://", re.IGNORECASE)
BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
TEST_FILE = ".env.test"
LOCAL = frozenset({"", "localhost", "127.0.0.1", "::1"})


def check_urls(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    config = scope.config
    wanted = [each.url_env for each in config.databases.values() if each.url_env]
    return judge_urls(config.variables, wanted)


def judge_urls(variables: Mapping[str, str], wanted: Iterable[str] = ()) -> Finding:
    """Every PostgreSQL address of the environment: the application's own, too. ``wanted`` have to be there."""
    missing = [name for name in wanted if not variables.get(name)]
    addresses = {name: value for name, value in variables.items() if POSTGRES_URL.match(value)}
    wrong = [name for name, value in sorted(addresses.items()) if not _is_readable(value, name)]
    if not missing and not wrong:
        return Finding("ok", f"What the environment holds of PostgreSQL addresses ({len(addresses)}) can be read.")
    said = [*(f"{name} is not set" for name in missing), *(f"{name} cannot be read" for name in wrong)]
    return Finding(
        "crit",
        f"{', '.join(said)}.",
        code="unset" if missing else "unreadable",
        details={"unset": missing, "unreadable": wrong},
        remedy=Remedy(
            "An address is postgresql://user:password@host:5432/database; in the password @ : / ? # % are written as"
            " %40 %3A %2F %3F %23 %25.",
            "python3 -c 'import getpass, urllib.parse; print(urllib.parse.quote(getpass.getpass(), safe=\"\"))'",
        ),
    )


def _is_readable(url: str, name: str) -> bool:
    from opsctl.config import checked_url

    try:
        checked_url(url, where=name)
    except ConfigurationError:
        return False
    return not BROKEN_ESCAPE.search(url) and url == url.strip() and " " not in url.partition("?")[0]


@dataclass(frozen=True)
class SecretFile:
    path: Path
    mode: int

    @property
    def is_open(self) -> bool:
        """Whether anybody but owner and group may read it, or anybody but the owner write."""
        return bool(self.mode & (stat.S_IRWXO | stat.S_IWGRP))


def check_permissions(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    files = []
    for path in dict.fromkeys(secret_files(scope)):
        try:
            status = path.stat()
        except OSError:
            continue  # not there, or it is said elsewhere that it cannot be read
        if stat.S_ISREG(status.st_mode):
            files.append(SecretFile(path, stat.S_IMODE(status.st_mode)))
    return judge_permissions(files)


def secret_files(scope: Scope) -> Iterator[Path]:
    """The files that hold secrets: .env, password and key files, and opsctl.toml when a secret stands in it."""
    config = scope.config
    yield from config.env_files
    databases = config.databases.values()
    keys = (config.encryption.identity_file, config.signing.key_file, *(each.password_file for each in databases))
    yield from (config.folder / each.expanduser() for each in keys if each)
    file = Path(config.source)
    if file.is_absolute() and config.file_holds_secrets:
        yield file


def judge_permissions(files: list[SecretFile]) -> Finding:
    opened = [each for each in files if each.is_open]
    if not opened:
        return Finding("ok", f"{counted(len(files), 'file')} with secrets, none of them open to others.", value=0)
    told = ", ".join(f"{each.path} ({each.mode:04o})" for each in opened)
    names = " ".join(str(each.path) for each in opened)
    return Finding(
        "warn",
        f"Others on this machine can read or change {told}.",
        value=len(opened),
        code="permissions",
        details={"files": [str(each.path) for each in opened]},
        remedy=Remedy("Leave them to their owner; and think of the secrets as known.", f"chmod 600 {names}"),
    )


@dataclass(frozen=True)
class Place:
    """A database's address without login: what two addresses of the same database have in common."""

    host: str
    port: int
    database: str


def place_of(url: str) -> Place:
    parts = urlsplit(url)
    name = unquote(parts.path.lstrip("/")) or unquote(parts.username or "")
    servers = parts.netloc.rpartition("@")[2].lower()
    if "," in servers:  # several hosts, which only libpq reads
        return Place(servers, 5432, name)
    host = parts.hostname or ""
    return Place("" if host in LOCAL else host, parts.port or 5432, name)


def test_files(scope: Scope) -> Iterable[Target]:
    return [Target()] if _test_file(scope) else []


def _test_file(scope: Scope) -> Path | None:
    folders = dict.fromkeys(each.parent for each in scope.config.env_files)
    return next((folder / TEST_FILE for folder in folders if (folder / TEST_FILE).is_file()), None)


def check_test_environment(scope: Scope, _target: str, _thresholds: Thresholds) -> Finding:
    from opsctl.config_file import read_env_file

    path = _test_file(scope)
    if path is None:  # it went in between
        return Finding("skip", f"There is no {TEST_FILE}.")
    live = {}
    for name in scope.config.databases:
        try:
            live[name] = scope.config.database_url(name)
        except ConfigurationError:
            continue  # config.urls says so
    return judge_test_environment(path, read_env_file(path), live)


def judge_test_environment(path: Path, variables: Mapping[str, str], live: Mapping[str, str]) -> Finding:
    """Where tests would go: never to a database that is looked after."""
    url = variables.get("DATABASE_URL")
    edit = f"${{EDITOR:-vi}} {path}"
    if not url:
        return Finding(
            "warn",
            f"{path} has no DATABASE_URL: tests take that of the shell or of .env, which may be production's.",
            code="no_url",
            remedy=Remedy("Give it the address of a database that may be emptied.", edit),
        )
    if not POSTGRES_URL.match(url):
        return Finding("ok", f"{path} points at no PostgreSQL database.")
    if not _is_readable(url, f"DATABASE_URL of {path}"):
        return Finding(
            "crit",
            f"DATABASE_URL in {path} cannot be read: the tests that use it fail.",
            code="unreadable",
            remedy=Remedy("In the password @ : / ? # % are written as %40 %3A %2F %3F %23 %25.", edit),
        )
    same = [name for name, address in live.items() if place_of(address) == place_of(url)]
    if same:
        return Finding(
            "crit",
            f"DATABASE_URL in {path} is that of {same[0]}: tests would run, and clean up, in the live database.",
            code="production",
            details={"databases": same},
            remedy=Remedy("Give it the address of a database that may be emptied.", edit),
        )
    return Finding("ok", f"{path} points at a database of its own.")


CHECKS = (
    Check(
        id="config.urls",
        title="the addresses in the environment can be read",
        probe=check_urls,
        reads="every variable of the environment and of .env with a PostgreSQL address in it, and those url_env names",
        why="An @ or a % in a password that is not percent-encoded makes a host out of a part of it, which then stands"
        " in error messages. The application reads the same variables.",
        fix="Percent-encode the password; set what is not set, in .env or in the service's environment.",
    ),
    Check(
        id="config.env_permissions",
        title="files with secrets are their owner's alone",
        probe=check_permissions,
        reads="the mode of .env, .env.local, password and key files, and of opsctl.toml when a secret stands in it",
        why="Whoever can read them is the database's owner. A group may read, for a service that runs as a user of its"
        " own.",
        fix="chmod 600; and change the secrets, if others work on that machine.",
    ),
    Check(
        id="config.test_environment",
        title="tests do not aim at a live database",
        probe=check_test_environment,
        reads=f"DATABASE_URL in {TEST_FILE}, beside the configuration or in the working folder, against the databases"
        " that are looked after",
        why="Tests empty tables. When they fail for no reason, this variable is the first thing to look at.",
        fix=f"Give {TEST_FILE} the address of a database that may be emptied.",
        targets=test_files,
        not_configured=f"There is no {TEST_FILE}.",
    ),
)
