"""opsctl.toml, found and completed from the environment. With config_file, the only reader of environment variables.

Searched in this order: ``--config``, ``OPSCTL_CONFIG``, ``./opsctl.toml``, ``$XDG_CONFIG_HOME/opsctl/opsctl.toml``,
``/etc/opsctl/opsctl.toml``. With none of them, ``DATABASE_URL`` and ``./backups`` are enough.
``.env`` and ``.env.local``, beside the configuration and in the working folder, are read; real variables win over them.
"""

import os
import pwd
import shlex
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from socket import gethostname
from typing import Any, Literal
from urllib.parse import urlsplit

# Whoever imports this module needs the models; the commands import it inside their bodies.
from pydantic import Field, SecretStr, ValidationError  # noqa: TID253
from pydantic_settings import BaseSettings, SettingsConfigDict  # noqa: TID253

from opsctl.config_file import (
    DEFAULT_REPOSITORY,
    database_in,
    default_state_path,
    env_files_of,
    find_file,
    read_toml,
    read_variables,
)
from opsctl.errors import ConfigurationError
from opsctl.known_secrets import SECRET_NAME, SHORTEST, endpoint_secrets, key_secrets, url_secrets
from opsctl.settings import (
    DatabaseSettings,
    FileSettings,
    HttpSettings,
    RepositorySettings,
    ServiceSettings,
    explained,
    nearest,
    validated,
)
from opsctl.staging import SPOOL

SHORTEST_TOKEN = 16
CHILD_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""What a child process needs of our environment, besides libpq's own ``PG*``: no other secret travels along."""


class Environment(BaseSettings):
    """The variables opsctl itself knows, from the process and the ``.env`` files."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=True, env_ignore_empty=True)

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    state_dir: Path | None = Field(None, validation_alias="OPSCTL_STATE_DIR")
    log_format: Literal["json", "console"] | None = Field(None, validation_alias="OPSCTL_LOG_FORMAT")
    log_schema: Literal["plain", "ecs", "otel"] | None = Field(None, validation_alias="OPSCTL_LOG_SCHEMA")
    log_file: Path | None = Field(None, validation_alias="OPSCTL_LOG_FILE")
    log_context: str | None = Field(None, validation_alias="OPSCTL_LOG_CONTEXT")
    xdg_state_home: Path | None = Field(None, validation_alias="XDG_STATE_HOME")


class Config:
    """What a run works with: the file's settings, completed from the environment.

    ``folder`` is what relative paths of the file are relative to; ``source`` names the file, or the environment.
    """

    def __init__(
        self,
        file: FileSettings,
        environment: Environment,
        variables: Mapping[str, str],
        *,
        folder: Path,
        source: str,
        env_files: Sequence[Path] = (),
        inherited: Collection[str] = (),
    ) -> None:
        """``inherited`` are the variables of ``variables`` that the process was started with."""
        self.file = file
        self.inherited = frozenset(inherited)
        self.source = source
        self.folder = folder
        self.env_files = env_files
        self.environment = environment
        self.variables = variables
        self.databases = dict(file.databases) or self._database_from_environment()
        self.repositories = dict(file.repositories) or {"local": RepositorySettings(url=DEFAULT_REPOSITORY)}
        self.services = dict(file.services)
        self.schedule = file.schedule
        self.doctor = file.doctor
        self.runbook = file.runbook
        self.drill = file.drill
        self.encryption = file.encryption
        self.signing = file.signing
        self.http = {**_endpoints_of(file.services), **file.http}
        self.tls = dict(file.tls)
        self.checks = file.checks
        self.sentry = file.sentry
        self.metrics = file.metrics
        self.notify = file.notify
        self._heartbeats = file.heartbeats
        self.serve = file.serve
        self._state_path = file.state.path
        self._staging_path = file.state.staging_path
        self._passwords: dict[str, str | None] = {}
        self._keys: dict[str, str] = {}

    def contradictions(self) -> Iterator[ConfigurationError]:
        """What one section says and another does not know. No command works with such a configuration."""
        yield from self._unknown_repositories()
        yield from self._names_taken_twice()

    def _database_from_environment(self) -> dict[str, DatabaseSettings]:
        url = self.environment.database_url
        if url is None and "PGDATABASE" in self.variables:
            return {self.variables["PGDATABASE"]: DatabaseSettings(url=SecretStr("postgresql://"))}
        if url is None:
            return {}
        database = validated(DatabaseSettings, {"url": url}, where="DATABASE_URL")
        return {database_in(database.url.get_secret_value() if database.url else "", self.variables): database}

    def _unknown_repositories(self) -> Iterator[ConfigurationError]:
        for name, database in self.databases.items():
            for repository in database.repositories or ():
                if repository not in self.repositories:
                    yield ConfigurationError(
                        f"{self.source}: databases.{name}.repositories names {repository!r}, which is not configured.",
                        hint=nearest(repository, self.repositories) or f"Add [repositories.{repository}].",
                    )

    def _names_taken_twice(self) -> Iterator[ConfigurationError]:
        """No two of what http.answer and tls.certificate look at have the same name."""
        of_services, of_http, of_tls = _endpoints_of(self.services), self.file.http, self.tls
        for name in dict.fromkeys((*of_http, *of_tls)):
            if name in of_services or (name in of_http and name in of_tls):
                yield ConfigurationError(
                    f"{self.source}: http and tls: two addresses have the name {name!r}.",
                    hint="[http.NAME], [tls.NAME] and [services.NAME.http] need names of their own.",
                )

    def database(self, name: str) -> DatabaseSettings:
        """The settings of one database; ConfigurationError names the configured ones."""
        return self.databases[self._section(name)]

    def is_of_all(self, name: str) -> bool:
        """Whether ``name`` has no section of its own and is one of the databases of an ``all = true``."""
        return self._section(name) != name

    def _section(self, name: str) -> str:
        """The section that ``name`` falls under. Raises ConfigurationError."""
        if not self.databases:
            raise ConfigurationError(
                "No database is configured.",
                hint="Set DATABASE_URL=postgresql://user@host/database, or write an opsctl.toml.",
            )
        section = self.section_of(name)
        if section is not None:
            return section
        raise ConfigurationError(
            f"{self.source}: there is no database {name!r}.",
            hint=nearest(name, self.databases) or f"Configured: {', '.join(self.databases)}.",
        )

    def section_of(self, name: str) -> str | None:
        """The section that ``name`` falls under: its own, else the one with ``all = true`` if there is just one."""
        if name in self.databases:
            return name
        whole_servers = [section for section, settings in self.databases.items() if settings.all]
        return whole_servers[0] if len(whole_servers) == 1 else None

    def repositories_of(self, name: str) -> list[str]:
        return list(self.database(name).repositories or self.repositories)

    def repository_url(self, name: str) -> str:
        """The repository's address, with a relative path made absolute."""
        url = self.repositories[name].url
        return url if "://" in url else str((self.folder / Path(url).expanduser()).absolute())

    def repository(self, name: str) -> RepositorySettings:
        """A repository's settings, with relative paths made absolute."""
        settings = self.repositories[name]
        bundle = settings.ca_bundle and (self.folder / settings.ca_bundle.expanduser()).absolute()
        return settings.model_copy(update={"url": self.repository_url(name), "ca_bundle": bundle})

    def service(self, name: str) -> ServiceSettings:
        """A service's settings, with relative paths made absolute; the defaults for one that is not configured."""
        settings = self.services.get(name, ServiceSettings())
        file = settings.compose_file and (self.folder / settings.compose_file.expanduser()).absolute()
        return settings.model_copy(update={"compose_file": file})

    @property
    def runbook_path(self) -> Path | None:
        """The configured runbook; without one it is the shipped one."""
        path = self.runbook.path
        return (self.folder / path.expanduser()).absolute() if path else None

    def database_url(self, name: str) -> str:
        """The database's URL: ``direct_url``, else ``url`` or the variable that ``url_env`` names."""
        settings = self.database(name)
        url = settings.direct_url or settings.url
        if url is not None:
            return url.get_secret_value()
        value = self.variable(settings.url_env or "", key=f"databases.{name}.url_env")
        return checked_url(value, where=str(settings.url_env))

    def variable(self, name: str, *, key: str) -> str:
        """The variable that ``key`` of the file names. Raises ConfigurationError when it is not set, or empty."""
        value = self.variables.get(name)
        if not value:
            raise ConfigurationError(
                f"{self.source}: {key} names {name}, which is not set.",
                hint=f"Set {name} in the environment or in .env.",
            )
        return value

    def database_port(self, name: str) -> int:
        """The port of the database's URL; PostgreSQL's own when it names none, or several."""
        authority = urlsplit(self.database_url(name)).netloc.rpartition("@")[2]
        port = authority.rpartition(":")[2]
        return int(port) if port.isdecimal() and "," not in authority else 5432

    def password(self, name: str) -> str | None:
        """The password that is not in the URL, from where one of the ``password_`` keys says; read once."""
        section = self._section(name)
        if section not in self._passwords:
            self._passwords[section] = self._read_password(section, self.databases[section])
        return self._passwords[section]

    def _read_password(self, name: str, settings: DatabaseSettings) -> str | None:
        if settings.password_env is not None:
            return self.variable(settings.password_env, key=f"databases.{name}.password_env")
        if settings.password_file is not None:
            return self._read_secret(settings.password_file, key=f"databases.{name}.password_file").rstrip("\r\n")
        if settings.password_command is None:
            return None
        return _secret_of(settings.password_command, key=f"databases.{name}.password_command").rstrip("\r\n")

    def identity(self) -> str | None:
        """The identities that open encrypted backups, from where ``[encryption]`` says; read once."""
        settings = self.encryption
        if settings.identity_file is not None:
            return self._key("encryption.identity_file", settings.identity_file)
        if settings.identity_command is not None and "identity" not in self._keys:
            self._keys["identity"] = _secret_of(settings.identity_command, key="encryption.identity_command")
        if settings.identity_env is not None:
            self._keys["identity"] = self.variable(settings.identity_env, key="encryption.identity_env")
        return self._keys.get("identity")

    def signing_key(self) -> str | None:
        """The private key that manifests are signed with; read once."""
        path = self.signing.key_file
        return None if path is None else self._key("signing.key_file", path)

    def serve_token(self) -> str | None:
        """What a request to the status page must show; None where nothing is configured. Raises ConfigurationError."""
        settings = self.serve
        if settings.token_file is not None:
            token = self._key("serve.token_file", settings.token_file).strip()
        elif settings.token_env is not None:
            token = self._keys["serve.token_env"] = self.variables.get(settings.token_env, "").strip()
        else:
            return None
        if len(token) < SHORTEST_TOKEN or not token.isascii():
            where = settings.token_env or settings.token_file
            raise ConfigurationError(
                f"{self.source}: serve: the token in {where} is missing, shorter than {SHORTEST_TOKEN} characters,"
                " or no ASCII.",
                hint="`openssl rand -hex 24` makes a good one.",
            )
        return token

    def _key(self, key: str, path: Path) -> str:
        if key not in self._keys:
            self._keys[key] = self._read_secret(path, key=key)
        return self._keys[key]

    def _read_secret(self, path: Path, *, key: str) -> str:
        path = self.folder / path.expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{key} cannot be read: {path}: {getattr(error, 'strerror', error)}.",
                hint="It must be readable by the user opsctl runs as.",
            ) from error

    @property
    def state_path(self) -> Path:
        """Where locks and temporary files of this host live."""
        if self.environment.state_dir:
            return self.environment.state_dir.absolute()
        if self._state_path:
            return (self.folder / self._state_path.expanduser()).absolute()
        return default_state_path(self.variables)

    @property
    def staging_path(self) -> Path:
        """Where large temporary files of this host live."""
        if self._staging_path:
            return (self.folder / self._staging_path.expanduser()).absolute()
        return self.state_path / SPOOL

    @property
    def textfile(self) -> Path | None:
        """Where metrics are written for node_exporter."""
        path = self.metrics.textfile
        return path and (self.folder / path.expanduser()).absolute()

    @property
    def pushgateway_url(self) -> str | None:
        url = self.metrics.pushgateway_url
        return url.get_secret_value() if url else None

    @property
    def actor(self) -> dict[str, Any]:
        """Who runs this: the user, who became it through sudo, from which address, on which host."""
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            user = str(os.geteuid())
        sudo_user, client = self.variables.get("SUDO_USER"), self.variables.get("SSH_CLIENT")
        actor = {"user": user, "sudo_user": sudo_user, "client": client and client.split(" ")[0]}
        return {**{key: value for key, value in actor.items() if value}, "host": gethostname(), "pid": os.getpid()}

    @property
    def drill_folder(self) -> Path | None:
        """Where the files of drills go, if that is configured."""
        return self.drill.folder and (self.folder / self.drill.folder.expanduser()).absolute()

    @property
    def search_path(self) -> list[str]:
        """The folders of PATH."""
        return [folder for folder in self.variables.get("PATH", os.defpath).split(os.pathsep) if folder]

    @property
    def sentry_environment(self) -> str | None:
        return self.sentry.environment or self.variables.get("SENTRY_ENVIRONMENT") or None

    @property
    def sentry_dsn(self) -> str | None:
        if self.sentry.dsn is not None:
            return self.sentry.dsn.get_secret_value() or None
        return self.variables.get(self.sentry.dsn_env) or None

    @property
    def heartbeat_urls(self) -> dict[str, str]:
        """The addresses that are told how a command ends, by the command."""
        given: Iterator[tuple[str, SecretStr | None]] = iter(self._heartbeats)
        return {command: url.get_secret_value() for command, url in given if url}

    @property
    def notify_urls(self) -> list[str]:
        """Who is told: what the file says, and what the environment adds, separated by white space."""
        return [*(url.get_secret_value() for url in self.notify.urls), *self._environment_urls]

    @property
    def _environment_urls(self) -> list[str]:
        return self.variables.get(self.notify.urls_env, "").split()

    @property
    def _file_endpoints(self) -> list[str]:
        """Addresses in the file of which a part is secret: whoever knows them can write there."""
        return [*self.heartbeat_urls.values(), *(url.get_secret_value() for url in self.notify.urls)]

    @property
    def child_environment(self) -> dict[str, str]:
        """What PostgreSQL's programs are started with; messages in English, so that they can be recognised."""
        kept = {name: value for name, value in self.variables.items() if name in CHILD_VARIABLES or name[:2] == "PG"}
        kept.pop("PGPASSWORD", None)  # handed over through a file that only the child can open
        return {**kept, "LC_MESSAGES": "C"}

    @property
    def drill_environment(self) -> dict[str, str]:
        """The same for programs that speak to a server of our own: no ``PG*`` variable points them elsewhere."""
        return {name: value for name, value in self.child_environment.items() if not name.startswith("PG")}

    @property
    def file_holds_secrets(self) -> bool:
        """Whether a secret stands in opsctl.toml itself."""
        given: Iterator[SecretStr | None] = (
            url for each in self.databases.values() for url in (each.url, each.direct_url, *each.replica_urls)
        )
        given = chain(given, [self.drill.scratch_url])
        in_urls = any(True for url in given if url for _ in url_secrets(url.get_secret_value()))
        in_urls = in_urls or any(True for _ in url_secrets(self.pushgateway_url or ""))
        in_endpoints = bool(self._file_endpoints or any(each.headers for each in self.http.values()))
        return in_urls or in_endpoints or self.sentry.dsn is not None

    def secrets(self) -> Iterator[str]:
        """Every secret known so far, for the redactor; passwords as written and percent-decoded."""
        urls = []
        for settings in self.databases.values():
            given = (settings.url, settings.direct_url, *settings.replica_urls)
            urls += [url.get_secret_value() for url in given if url is not None]
        urls += [self.drill.scratch_url.get_secret_value()] if self.drill.scratch_url else []
        urls += [self.variables.get(settings.url_env, "") for settings in self.databases.values() if settings.url_env]
        urls += [self.sentry_dsn or "", self.pushgateway_url or "", self.variables.get("DATABASE_URL", "")]
        for url in urls:
            yield from url_secrets(url)
        for url in (*self._file_endpoints, *self._environment_urls):
            yield from endpoint_secrets(url)
        yield from (password for password in self._passwords.values() if password)
        yield from (self.variables.get(each.password_env or "", "") for each in self.databases.values())
        for text in (*self._keys.values(), self.variables.get(self.encryption.identity_env or "", "")):
            yield from key_secrets(text)
        for endpoint in self.http.values():
            yield from (value.get_secret_value() for value in endpoint.headers.values())
        for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            yield self.variables.get(name, "")
        for name, value in self.variables.items():  # those of other programs, which a step or a log may show
            if SECRET_NAME.search(name) and len(value) >= SHORTEST and not value.startswith("/"):
                yield value


def _endpoints_of(services: Mapping[str, ServiceSettings]) -> dict[str, HttpSettings]:
    return {name: each.http for name, each in services.items() if each.http is not None}


def _secret_of(command: str, *, key: str) -> str:
    """What a command prints. Raises ConfigurationError that shows neither it nor its output: both may be secret."""
    try:
        answer = subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=30, text=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        hint = "Run it by hand, as the user opsctl runs as and without a shell."
        raise ConfigurationError(f"{key} failed.", hint=hint) from error
    return answer.stdout


def checked_url(url: str, *, where: str) -> str:
    """A PostgreSQL URL from outside the file, as libpq reads it. Raises ConfigurationError that does not show it."""
    checked = validated(DatabaseSettings, {"url": url}, where=where)
    return checked.url.get_secret_value() if checked.url else url


def environment_dsn() -> str | None:
    """The Sentry DSN of the environment alone, to report a configuration that cannot be read."""
    return os.environ.get("SENTRY_DSN") or None


def log_variables() -> dict[str, str]:
    """What the environment says of the logs, before anything else is read."""
    return {name: value for name, value in os.environ.items() if name.startswith("OPSCTL_LOG_")}


@contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Hide the caller's ``PG*`` variables, which libpq reads by itself, from connections made within this context."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def load_config(explicit: Path | None = None, *, working_folder: Path | None = None) -> Config:
    """The configuration that commands work with. Raises ConfigurationError, also where it contradicts itself."""
    config = read_config(explicit, working_folder=working_folder)
    require_consistent(config)
    return config


def require_consistent(config: Config) -> None:
    """Raises ConfigurationError with the first contradiction, and the others."""
    problems = [*config.contradictions()]
    if problems:
        raise ConfigurationError(problems[0].message, hint=problems[0].hint, others=problems[1:])


def read_config(explicit: Path | None = None, *, working_folder: Path | None = None) -> Config:
    """Read the configuration and the environment.

    Raises ConfigurationError that names the file, the key and, for an unknown key, the nearest known one.
    """
    here = working_folder or Path.cwd()
    path = find_file(explicit, here)
    folder = path.parent if path else here
    source = str(path) if path else "the environment"
    env_files = env_files_of(folder, here)
    variables, inherited = read_variables(env_files), set(os.environ)
    try:
        environment = Environment(_env_file=env_files)
    except ValidationError as error:
        raise explained(error, Environment, where="the environment") from None
    for name, value in variables.items():
        if name.startswith(("PG", "AWS_")):
            os.environ.setdefault(name, value)  # libpq and boto3 read these for themselves
    settings = validated(FileSettings, read_toml(path), where=source) if path else FileSettings()
    return Config(
        settings, environment, variables, folder=folder, source=source, env_files=env_files, inherited=inherited
    )
